//! What rides in gossip state: names, digests and sizes of checkpoints, never their bytes; and how it is written there.
//!
//! chitchat's values are strings, and one too large to fit holds back all later ones of its node: whatever is written
//! here stays below [`MAX_VALUE_BYTES`]. Parsing is total: what is malformed is no announcement.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::office::MAX_COUNTER;
use crate::ledger::Record;
use crate::store::{CheckpointId, Digest, Epoch, MAX_PARAMETER_BYTES, Metadata, NodeId, Phase, Slot};
use crate::wire;

/// Limit on one value in gossip state, in bytes.
pub(super) const MAX_VALUE_BYTES: usize = 256;

/// The place of a checkpoint among those of its slot: a later epoch supersedes what an earlier one left.
pub(super) type Order = (Epoch, u64, Phase);

/// A checkpoint by name, without its bytes and metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Announcement {
    /// Its name.
    pub(super) id: CheckpointId,
    /// Digest of its parameters.
    pub(super) digest: Digest,
    /// Size of its parameters in bytes.
    pub(super) bytes: u64,
    /// Digest of its encoded metadata.
    pub(super) metadata: Digest,
}

/// The digest that an announcement gives of `metadata`.
pub(super) fn metadata_digest(metadata: &Metadata) -> Digest {
    Digest::of(&wire::encode(metadata))
}

impl From<&Record> for Announcement {
    fn from(record: &Record) -> Self {
        let metadata = metadata_digest(&record.metadata);
        Self { id: record.id, digest: record.digest, bytes: record.bytes, metadata }
    }
}

impl Announcement {
    pub(super) fn order(&self) -> Order {
        order(self.id)
    }

    /// Who wrote it: the aggregator of its epoch, or the worker whose slot it is.
    pub(super) fn writer(&self) -> NodeId {
        match self.id.slot {
            Slot::Worker { node, .. } => node,
            Slot::Global | Slot::Part(_) => self.id.epoch.node,
        }
    }

    /// Whether there can be such a checkpoint. Who wrote it may have left.
    pub(super) fn plausible(&self) -> bool {
        self.bytes <= MAX_PARAMETER_BYTES && self.id.epoch.counter <= MAX_COUNTER
    }

    /// As a value of gossip state.
    pub(super) fn to_text(self) -> String {
        let bytes = wire::encode(&self);
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in &bytes {
            // Writing into a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// Of a value of gossip state.
    pub(super) fn parse(text: &str) -> Option<Self> {
        wire::decode(&unhex(text)?).ok()
    }
}

/// The place of a checkpoint of this name in its slot.
pub(super) fn order(id: CheckpointId) -> Order {
    (id.epoch, id.round, id.phase)
}

/// An epoch as a value of gossip state; empty if there is none.
pub(super) fn epoch_to_text(epoch: Option<Epoch>) -> String {
    epoch.map_or_else(String::new, |epoch| epoch.to_string())
}

/// An epoch of a value of gossip state.
pub(super) fn parse_epoch(text: &str) -> Option<Epoch> {
    let (counter, node) = text.split_once('@')?;
    Some(Epoch { counter: counter.parse().ok()?, node: NodeId(node.parse().ok()?) })
}

/// Runs for every announcement of every node at every round of gossip.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if text.len() > MAX_VALUE_BYTES || !rest.is_empty() {
        return None;
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    let mut bytes = Vec::with_capacity(pairs.len());
    for [high, low] in pairs {
        bytes.push((nibble(*high)? << 4 | nibble(*low)?) as u8);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn announcement(counter: u64, node: u64, round: u64, part: u16, bytes: u64) -> Announcement {
        let id = CheckpointId {
            epoch: Epoch { counter, node: NodeId(node) },
            round,
            phase: Phase::ConfigureEvaluate,
            slot: Slot::Worker { node: NodeId(node), part },
        };
        Announcement { id, digest: Digest::of(b"bytes"), bytes, metadata: metadata_digest(&Metadata::new()) }
    }

    proptest! {
        #[test]
        fn what_is_announced_is_parsed(counter: u64, node: u64, round: u64, part: u16, bytes: u64) {
            let announced = announcement(counter, node, round, part, bytes);
            prop_assert_eq!(Announcement::parse(&announced.to_text()), Some(announced));
            prop_assert_eq!(parse_epoch(&epoch_to_text(Some(announced.id.epoch))), Some(announced.id.epoch));
        }

        #[test]
        fn any_text_parses_or_does_not(text in ".*") {
            let _ = (Announcement::parse(&text), parse_epoch(&text));
        }

        #[test]
        fn any_hexadecimal_text_parses_or_does_not(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            if let Some(announced) = Announcement::parse(&text) {
                prop_assert_eq!(Announcement::parse(&announced.to_text()), Some(announced));
            }
        }
    }

    #[test]
    fn the_largest_value_is_within_its_limit() {
        let largest = announcement(u64::MAX, u64::MAX, u64::MAX, u16::MAX, u64::MAX);
        let length = largest.to_text().len();
        assert!(length <= MAX_VALUE_BYTES, "{length}");
    }
}
