//! Messages that replicate log entries, for benches: encoded, decoded, and as rows of the log on disk.

use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;

use super::network::{Append, decode_append, encode_append};
use super::types::{Command, Entry, LogId, Vote};
use crate::ledger::Record;
use crate::storage::Storage;
use crate::store::Checkpoint;
use crate::transport::{Frame, Refusal};

/// One AppendEntries request.
#[derive(Debug)]
pub struct Proposal(Append);

impl Proposal {
    /// An entry for each checkpoint, in order; `inline` ones carry the bytes.
    #[must_use]
    pub fn of(checkpoints: &[Checkpoint], inline: bool) -> Self {
        let entry = |(index, checkpoint): (u64, &Checkpoint)| {
            let parameters = inline.then(|| checkpoint.parameters().clone());
            let command = Command { record: Record::from(checkpoint), inline, parameters };
            Entry::new(LogId::new_term_index(1, index), EntryPayload::Normal(command))
        };
        let entries = (1..).zip(checkpoints).map(entry).collect();
        let start = LogId::new_term_index(1, 0);
        let vote = Vote::new_committed(1, 1);
        Self(Append { vote, prev_log_id: Some(start), entries, leader_commit: Some(start) })
    }

    /// As it is sent.
    #[must_use]
    pub fn encode(&self) -> Frame {
        encode_append(&self.0)
    }

    /// As it was sent; bytes are checked against their digests.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(frame: Frame) -> Result<Self, Refusal> {
        decode_append(frame).map(Self)
    }

    /// Bytes of its entries' rows on disk.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.0.entries.iter().map(|entry| Storage::encode(entry).len()).sum()
    }
}
