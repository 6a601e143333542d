//! Raft's log and vote, in memory and, with a storage, on disk.
//!
//! Reads are answered from memory. With a storage, every change is written behind the one before it, and what openraft
//! relies upon is flushed: an appended entry before its callback, a vote before it is answered. Bytes of `inline` entries are
//! on the shelf, where the state machine's are, so that they are on disk once: there before their entry, and until after it.
//! Entries share their bytes with the state machine, so that a checkpoint is in memory once. The log knows how many bytes it
//! holds back from being freed; [`super::RaftStore`] asks for a snapshot, after which openraft purges, when it is too many.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};

use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::storage::{Batch, Shelf, Storage, StorageError};
use crate::store::Digest;

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

/// Entries by index, as 8 bytes in network order.
const ENTRIES: &str = "raft_log";
/// The vote, and up to where the log was purged.
pub(super) const STATE: &str = "raft_state";
pub(super) const VOTE: &[u8] = b"vote";
pub(super) const PURGED: &[u8] = b"purged";

/// The inline bytes of an entry, with their digest.
fn inline(entry: &Entry) -> Option<(Digest, &Bytes)> {
    match &entry.payload {
        EntryPayload::Normal(command) => Some((command.record.digest, command.parameters.as_ref()?)),
        _ => None,
    }
}

/// The log of one node. Clones share the content.
#[derive(Debug, Clone, Default)]
pub(crate) struct RaftLog {
    content: Arc<Mutex<Content>>,
    shelf: Option<Shelf>,
}

impl RaftLog {
    /// The log that is on disk; `found` are the bytes on the shelf.
    ///
    /// # Errors
    /// A log with a hole, or without the bytes of an entry.
    pub(crate) fn open(shelf: Shelf, found: &BTreeMap<Digest, Bytes>) -> Result<Self, StorageError> {
        let storage = shelf.storage();
        let mut content = Content::default();
        for (key, value) in storage.load(STATE)? {
            match &key[..] {
                VOTE => content.vote = Some(storage.decode(&value)?),
                PURGED => content.purged = Some(storage.decode(&value)?),
                _ => {}
            }
        }
        let mut next = content.purged.map_or(0, |purged| purged.index.saturating_add(1));
        for (key, value) in storage.load(ENTRIES)? {
            let mut entry: Entry = storage.decode(&value)?;
            if key[..] != next.to_be_bytes() || entry.index() != next {
                return Err(storage.damaged(format!("the log has no entry {next}")));
            }
            if let EntryPayload::Normal(command) = &mut entry.payload
                && command.inline
            {
                let digest = command.record.digest;
                let bytes = found.get(&digest);
                let bytes = bytes.ok_or_else(|| storage.damaged(format!("the log lacks bytes {digest}")))?;
                shelf.keep(digest, bytes);
                command.parameters = Some(bytes.clone());
            }
            content.inline_bytes += inline_bytes(&entry);
            content.entries.insert(entry.index(), entry);
            next = next.saturating_add(1);
        }
        Ok(Self { content: Arc::new(Mutex::new(content)), shelf: Some(shelf) })
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn storage(&self) -> Option<&Storage> {
        self.shelf.as_ref().map(Shelf::storage)
    }

    /// The term of the vote; 0 without one.
    pub(crate) fn term(&self) -> u64 {
        self.content().vote.map_or(0, |vote| vote.leader_id.term)
    }

    /// Entries in the log, and the checkpoint bytes they hold.
    pub(crate) fn size(&self) -> (usize, usize) {
        let content = self.content();
        (content.entries.len(), content.inline_bytes)
    }

    /// Writes changes, and lets go of what is not in the log any more.
    fn write(&self, batch: Batch, gone: Vec<Entry>) {
        let Some(shelf) = &self.shelf else { return };
        shelf.storage().write(batch);
        for entry in gone {
            if let Some((digest, _)) = inline(&entry) {
                shelf.release(digest);
            }
        }
    }

    /// Returns the entry that was in its place.
    fn insert(&self, content: &mut Content, entry: Entry, batch: &mut Batch) -> Option<Entry> {
        if let Some(shelf) = &self.shelf {
            if let Some((digest, bytes)) = inline(&entry) {
                shelf.keep(digest, bytes);
            }
            batch.put(ENTRIES, entry.index().to_be_bytes().to_vec(), Storage::encode(&entry));
        }
        content.inline_bytes += inline_bytes(&entry);
        let replaced = content.entries.insert(entry.index(), entry);
        content.inline_bytes -= replaced.as_ref().map_or(0, inline_bytes);
        replaced
    }

    /// Returns what was there.
    fn remove(content: &mut Content, indexes: impl RangeBounds<u64>, batch: &mut Batch) -> Vec<Entry> {
        let indexes: Vec<u64> = content.entries.range(indexes).map(|(index, _)| *index).collect();
        let removed: Vec<Entry> =
            indexes.into_iter().filter_map(|index| content.entries.remove(&index)).collect();
        for entry in &removed {
            content.inline_bytes -= inline_bytes(entry);
            batch.remove(ENTRIES, entry.index().to_be_bytes().to_vec());
        }
        removed
    }
}

impl RaftLogReader<TypeConfig> for RaftLog {
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

impl RaftLogStorage<TypeConfig> for RaftLog {
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
        if let Some(storage) = self.storage() {
            let mut batch = Batch::default();
            batch.put(STATE, VOTE, Storage::encode(vote));
            // It relies on no entry: where the disk is full it may pass those that wait.
            storage.write_first(batch);
            storage.flush_first_patiently().await?;
        }
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
        if let Some(storage) = self.storage() {
            storage.room().await;
        }
        {
            let mut content = self.content();
            let (mut batch, mut replaced) = (Batch::default(), Vec::new());
            for entry in entries {
                replaced.extend(self.insert(&mut content, entry, &mut batch));
            }
            self.write(batch, replaced);
        }
        match self.storage() {
            // On a full disk the entry does not count towards a majority until there is room.
            Some(storage) => {
                storage.flush_patiently_then(|flushed| callback.io_completed(flushed.map_err(Into::into)))
            }
            None => callback.io_completed(Ok(())),
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let mut content = self.content();
        let mut batch = Batch::default();
        let removed = Self::remove(&mut content, last.map_or(0, |last| last.index + 1).., &mut batch);
        self.write(batch, removed);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut content = self.content();
        content.purged = content.purged.max(Some(upto));
        let mut batch = Batch::default();
        batch.put(STATE, PURGED, Storage::encode(&content.purged.unwrap_or(upto)));
        let removed = Self::remove(&mut content, ..=upto.index, &mut batch);
        self.write(batch, removed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;

    use super::super::types::Command;
    use super::*;
    use crate::ledger::Record;
    use crate::store::{Checkpoint, CheckpointId, Epoch, Metadata, NodeId, Phase, Slot};

    /// A disk that remembers what it held whenever it was flushed.
    #[derive(Debug, Clone, Default)]
    struct Recorder {
        disk: Arc<InMemoryBackend>,
        flushed: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl StorageBackend for Recorder {
        fn len(&self) -> io::Result<u64> {
            self.disk.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.disk.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.disk.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            let mut content = vec![0; self.disk.len()? as usize];
            self.disk.read(0, &mut content)?;
            self.flushed.lock().unwrap().push(content);
            Ok(())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.disk.write(offset, data)
        }
    }

    fn entry(term: u64, index: u64, round: u64) -> Entry {
        let epoch = Epoch { counter: term, node: NodeId(1) };
        let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
        let checkpoint = Checkpoint::new(id, vec![round as u8; 100].into(), Metadata::new());
        let parameters = Some(checkpoint.parameters().clone());
        let command = Command { record: Record::from(&checkpoint), inline: true, parameters };
        Entry::new(LogId::new_term_index(term, index), EntryPayload::Normal(command))
    }

    #[tokio::test]
    async fn an_entry_never_lacks_its_bytes_wherever_the_writes_end() {
        let recorder = Recorder::default();
        let (shelf, found) = Shelf::open(Storage::eager_on(recorder.clone()).unwrap()).unwrap();
        // What it held before it was a database.
        recorder.flushed.lock().unwrap().clear();
        let mut log = RaftLog::open(shelf, &found).unwrap();
        log.append((0..4).map(|index| entry(1, index, index)), IOFlushed::noop()).await.unwrap();
        log.append([entry(2, 3, 7)], IOFlushed::noop()).await.unwrap();
        log.truncate_after(Some(entry(1, 1, 1).log_id)).await.unwrap();
        log.append([entry(3, 2, 9)], IOFlushed::noop()).await.unwrap();
        log.purge(entry(1, 1, 1).log_id).await.unwrap();
        assert_eq!(log.size(), (1, 100));
        let states = recorder.flushed.lock().unwrap().clone();
        assert!(states.len() > 10, "{}", states.len());
        for content in states {
            opened_again(&content);
        }
    }

    fn opened_again(content: &[u8]) -> RaftLog {
        let disk = InMemoryBackend::new();
        disk.set_len(content.len() as u64).unwrap();
        disk.write(0, content).unwrap();
        let (shelf, found) = Shelf::open(Storage::inline_on(disk).unwrap()).unwrap();
        RaftLog::open(shelf, &found).unwrap()
    }

    #[tokio::test]
    async fn the_last_index_that_can_be_is_one_as_well() {
        let recorder = Recorder::default();
        let (shelf, found) = Shelf::open(Storage::eager_on(recorder.clone()).unwrap()).unwrap();
        let mut log = RaftLog::open(shelf, &found).unwrap();
        log.purge(entry(1, u64::MAX - 1, 1).log_id).await.unwrap();
        log.append([entry(1, u64::MAX, 2)], IOFlushed::noop()).await.unwrap();
        let content = recorder.flushed.lock().unwrap().last().unwrap().clone();
        assert_eq!(opened_again(&content).size(), (1, 100));
    }
}
