//! Raft's log and vote in memory.
//!
//! Entries share their bytes with the state machine, so that a checkpoint is in memory once. The log knows how many bytes
//! it holds back from being freed; [`super::RaftStore`] asks for a snapshot, after which openraft purges, when it is too many.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};

use super::types::{Entry, LogId, TypeConfig, Vote};

/// Entries read for one replication message stop at this many bytes of checkpoints (but at least one is read) ...
const READ_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// ... or at this many bytes of everything else, well below the limit on a frame's head.
const READ_LIMIT_HEAD_BYTES: usize = 512 * 1024;

#[derive(Debug, Default)]
struct Content {
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
    inline_bytes: usize,
    committed: Option<LogId>,
    vote: Option<Vote>,
}

fn inline_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => command.inline_bytes(),
        _ => 0,
    }
}

/// Bytes of an entry's encoding without its checkpoint, at most.
fn head_bytes(entry: &Entry) -> usize {
    const NAMES_AND_LENGTHS: usize = 160;
    match &entry.payload {
        EntryPayload::Normal(command) => {
            let metadata = command.record.metadata.iter();
            NAMES_AND_LENGTHS + metadata.map(|(key, value)| key.len() + value.len() + 10).sum::<usize>()
        }
        _ => NAMES_AND_LENGTHS,
    }
}

impl Content {
    fn remove(&mut self, indexes: impl RangeBounds<u64>) {
        let removed: Vec<u64> = self.entries.range(indexes).map(|(index, _)| *index).collect();
        for index in removed {
            if let Some(entry) = self.entries.remove(&index) {
                self.inline_bytes -= inline_bytes(&entry);
            }
        }
    }
}

/// The log of one node. Clones share the content.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryLog(Arc<Mutex<Content>>);

impl MemoryLog {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries in the log, and the checkpoint bytes they hold.
    pub(crate) fn size(&self) -> (usize, usize) {
        let content = self.content();
        (content.entries.len(), content.inline_bytes)
    }
}

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        Ok(self.content().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let content = self.content();
        let (mut bytes, mut heads) = (0, 0);
        let fits = |entry: &&Entry| {
            let first = heads == 0;
            bytes += inline_bytes(entry);
            heads += head_bytes(entry);
            first || (bytes <= READ_LIMIT_BYTES && heads <= READ_LIMIT_HEAD_BYTES)
        };
        Ok(content.entries.range(start..end).map(|(_, entry)| entry).take_while(fits).cloned().collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.content().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let content = self.content();
        let last = content.entries.values().next_back().map(RaftEntry::log_id);
        Ok(LogState { last_purged_log_id: content.purged, last_log_id: last.or(content.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.content().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.content().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.content().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        {
            let mut content = self.content();
            for entry in entries {
                content.inline_bytes += inline_bytes(&entry);
                if let Some(replaced) = content.entries.insert(entry.index(), entry) {
                    content.inline_bytes -= inline_bytes(&replaced);
                }
            }
        }
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.content().remove(last.map_or(0, |last| last.index + 1)..);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut content = self.content();
        content.purged = content.purged.max(Some(upto));
        content.remove(..=upto.index);
        Ok(())
    }
}
