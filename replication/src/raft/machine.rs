//! Raft's state machine: committed entries become acknowledged checkpoints.
//!
//! With a storage, the ledger is on disk as it was after some applied entry: each entry's changes are written, and become
//! durable with the next flush. What was applied since is in the log, which openraft applies again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::mpsc;

use super::types::{Answer, Command, Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::blob::Blobs;
use crate::event::{Observer, StoreEvent};
use crate::ledger::{Admission, Ledger, Record};
use crate::storage::{Batch, Storage, StorageError};
use crate::store::{Digest, Slot};

/// A slot's checkpoints, by slot.
pub(super) const LEDGER: &str = "raft_ledger";
/// Up to where the log is applied.
pub(super) const APPLIED: &str = "raft_applied";

pub(crate) type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, Image>;
pub(crate) type RaftCore = openraft::Raft<TypeConfig, Machine>;

/// The state machine's content at one log position. Bytes are shared, not copied.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) ledger: Ledger,
    /// Bytes that travel with the snapshot, by digest: those of `inline` entries. The rest is pulled.
    pub(crate) blobs: Vec<(Digest, Bytes)>,
}

#[derive(Debug)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    ledger: Ledger,
    /// Whether the newest entries carried their bytes: decides whether snapshots do.
    inline: bool,
    snapshot: Option<(SnapshotMeta, Image)>,
}

/// The state machine of one node. Clones share the content.
#[derive(Clone)]
pub(crate) struct Machine {
    state: Arc<Mutex<State>>,
    blobs: Blobs,
    observer: Arc<dyn Observer>,
    /// Told of acknowledged checkpoints whose bytes are not here. Unbounded, but at most one message per log entry
    /// between snapshots.
    missing: mpsc::UnboundedSender<Record>,
    storage: Option<Storage>,
}

impl Machine {
    pub(crate) fn new(
        retained: usize,
        blobs: Blobs,
        observer: Arc<dyn Observer>,
        missing: mpsc::UnboundedSender<Record>,
    ) -> Self {
        let state = State {
            applied: None,
            membership: StoredMembership::default(),
            ledger: Ledger::new(retained),
            inline: false,
            snapshot: None,
        };
        Self { state: Arc::new(Mutex::new(state)), blobs, observer, missing, storage: None }
    }

    /// Continues from the ledger that is on disk, and keeps it there.
    ///
    /// # Errors
    /// Rows that make no sense.
    pub(crate) fn resume(mut self, storage: Storage, retained: usize) -> Result<Self, StorageError> {
        self.load(&storage, retained)?;
        self.storage = Some(storage);
        Ok(self)
    }

    /// Takes the ledger that is on disk.
    ///
    /// # Errors
    /// Rows that make no sense.
    pub(super) fn load(&self, storage: &Storage, retained: usize) -> Result<(), StorageError> {
        let mut rows: Vec<(Slot, VecDeque<Record>)> = Vec::new();
        for (slot, records) in storage.load(LEDGER)? {
            rows.push((storage.decode(&slot)?, storage.decode(&records)?));
        }
        let mut state = self.state();
        state.ledger = Ledger::of_rows(retained, rows);
        if let Some((_, applied)) = storage.load(APPLIED)?.into_iter().next() {
            (state.applied, state.membership, state.inline) = storage.decode(&applied)?;
        }
        for record in state.ledger.records() {
            self.blobs.refer(record.digest);
        }
        Ok(())
    }

    /// Up to where the log is applied, who votes, and whether snapshots carry bytes: what is on disk beside the ledger.
    pub(super) fn applied(&self) -> (Option<LogId>, StoredMembership, bool) {
        let state = self.state();
        (state.applied, state.membership.clone(), state.inline)
    }

    /// Asks for the bytes of acknowledged checkpoints that are not here.
    pub(crate) fn ask_for_missing(&self) {
        for record in self.state().ledger.records() {
            self.need(record.clone());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the acknowledged checkpoints.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Ledger) -> T) -> T {
        read(&self.state().ledger)
    }

    pub(super) fn apply_entry(&self, entry: Entry) -> Answer {
        let mut state = self.state();
        state.applied = Some(entry.log_id);
        let answer = match entry.payload {
            EntryPayload::Blank => Answer::Nothing,
            EntryPayload::Membership(membership) => {
                state.membership = StoredMembership::new(Some(entry.log_id), membership);
                Answer::Nothing
            }
            EntryPayload::Normal(command) => return self.apply_command(&mut state, entry.log_id, command),
        };
        self.save(&state, None);
        answer
    }

    /// Writes up to where the log is applied, and the slots that changed.
    fn save(&self, state: &State, changed: impl IntoIterator<Item = Slot>) {
        let Some(storage) = &self.storage else { return };
        let mut batch = Batch::default();
        batch.put(
            APPLIED,
            APPLIED.as_bytes(),
            Storage::encode(&(state.applied, &state.membership, state.inline)),
        );
        for slot in changed {
            match state.ledger.row(slot) {
                Some(records) => batch.put(LEDGER, Storage::encode(&slot), Storage::encode(records)),
                None => batch.remove(LEDGER, Storage::encode(&slot)),
            }
        }
        storage.write(batch);
    }

    fn apply_command(&self, state: &mut State, log_id: LogId, command: Command) -> Answer {
        let Command { record, inline, parameters } = command;
        if record.id.epoch.counter != log_id.committed_leader_id().term {
            self.save(state, None);
            return Answer::Fenced;
        }
        let slot = record.id.slot;
        let (admission, released) = state.ledger.insert(record.clone());
        if admission == Admission::New {
            state.inline = inline;
            if let Some(parameters) = parameters {
                self.blobs.stage(record.digest, parameters);
            }
            self.acknowledge(record);
        }
        // Before the bytes go that no row refers to any more.
        self.save(state, Some(slot));
        for digest in released {
            self.blobs.release(digest);
        }
        Answer::Admitted(admission)
    }

    fn acknowledge(&self, record: Record) {
        self.blobs.refer(record.digest);
        self.observer.observe(StoreEvent::Applied {
            id: record.id,
            digest: record.digest,
            bytes: record.bytes,
        });
        self.need(record);
    }

    fn need(&self, record: Record) {
        if self.blobs.get(record.digest).is_none() {
            // Fails only when the store is closing.
            let _ = self.missing.send(record);
        }
    }

    fn image(&self, state: &State) -> Image {
        let mut blobs = BTreeMap::new();
        if state.inline {
            for record in state.ledger.records() {
                if let Some(bytes) = self.blobs.get(record.digest) {
                    blobs.insert(record.digest, bytes);
                }
            }
        }
        Image { ledger: state.ledger.clone(), blobs: blobs.into_iter().collect() }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        let mut state = self.state();
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
        let image = self.image(&state);
        state.snapshot = Some((meta.clone(), image.clone()));
        Ok(RaftSnapshot { meta, snapshot: image })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Image;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let answer = self.apply_entry(entry);
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Image) -> io::Result<()> {
        let latest = image.ledger.latest().map(|record| record.id);
        {
            let mut state = self.state();
            // What is here already needs no pin beside what refers to it.
            for (digest, bytes) in image.blobs.iter().filter(|(digest, _)| self.blobs.get(*digest).is_none())
            {
                self.blobs.stage(*digest, bytes.clone());
            }
            let before = std::mem::replace(&mut state.ledger, image.ledger.clone());
            state.applied = meta.last_log_id;
            state.membership = meta.last_membership.clone();
            state.inline = !image.blobs.is_empty();
            for record in image.ledger.records().filter(|record| before.find(record.id).is_none()) {
                self.acknowledge(record.clone());
            }
            let slots: BTreeSet<Slot> = before.slots().chain(image.ledger.slots()).collect();
            self.save(&state, slots);
            for record in before.records().filter(|record| !image.ledger.refers_to(record.digest)) {
                self.blobs.release(record.digest);
            }
            state.snapshot = Some((meta.clone(), image));
        }
        // The leader is told that everything up to here is on this node.
        let flushed = self.storage.as_ref().map(Storage::flush_patiently);
        if let Some(flushed) = flushed {
            flushed.await?;
        }
        self.observer.observe(StoreEvent::SnapshotInstalled { latest });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        let state = self.state();
        Ok(state
            .snapshot
            .as_ref()
            .map(|(meta, image)| RaftSnapshot { meta: meta.clone(), snapshot: image.clone() }))
    }
}
