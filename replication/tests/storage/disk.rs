//! A disk that loses power, or is full: a [`redb::StorageBackend`] in memory that knows which writes were flushed.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use redb::StorageBackend;

/// What a disk writes in one piece.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone)]
enum Operation {
    Write(usize, Vec<u8>),
    SetLength(usize),
}

impl Operation {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::SetLength(length) => content.resize(*length, 0),
            Self::Write(offset, data) => {
                // What lies behind the end of the file as the directory knows it is nowhere.
                let end = (offset + data.len()).min(content.len());
                if *offset < end {
                    content[*offset..end].copy_from_slice(&data[..end - offset]);
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// What a running program sees.
    content: Vec<u8>,
    /// What the last flush left on the medium.
    flushed: Vec<u8>,
    /// What happened since.
    unflushed: Vec<Operation>,
    operations: u64,
    flushes: u64,
    /// Power fails instead of this operation.
    cut_at: Option<u64>,
    /// From this operation on there is no room: nothing is written, and no file grows.
    full_from: Option<u64>,
    /// No file grows beyond this.
    capacity: Option<usize>,
    /// Flushes fail for want of room.
    flushes_fail: bool,
}

/// The medium. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    /// Held while nothing reaches the medium.
    stalled: Arc<Mutex<()>>,
}

impl Disk {
    /// A disk that holds `content`, flushed.
    pub(crate) fn holding(content: Vec<u8>) -> Self {
        let state = State { flushed: content.clone(), content, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn cut_power_at(&self, operation: u64) {
        self.state().cut_at = Some(operation);
    }

    /// Power fails now.
    pub(crate) fn cut_power(&self) {
        let mut state = self.state();
        state.cut_at = Some(state.operations);
    }

    /// Whether power has failed.
    pub(crate) fn is_dark(&self) -> bool {
        let state = self.state();
        state.cut_at.is_some_and(|at| state.operations > at)
    }

    /// From this operation on there is no room for anything.
    pub(crate) fn full_from(&self, operation: u64) {
        self.state().full_from = Some(operation);
    }

    /// There is no room for more than there is.
    pub(crate) fn fill(&self) {
        let mut state = self.state();
        state.capacity = Some(state.content.len());
    }

    /// What was written finds no room only when it is flushed.
    pub(crate) fn fail_flushes(&self) {
        self.state().flushes_fail = true;
    }

    pub(crate) fn make_room(&self) {
        let mut state = self.state();
        (state.full_from, state.capacity, state.flushes_fail) = (None, None, false);
    }

    /// Keeps whoever writes waiting until the guard is gone.
    pub(crate) fn stall(&self) -> MutexGuard<'_, ()> {
        self.stalled.lock().unwrap()
    }

    /// Writes, changes of length and flushes so far.
    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    pub(crate) fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// What a running program sees.
    pub(crate) fn content(&self) -> Vec<u8> {
        self.state().content.clone()
    }

    /// What is found when power is back: everything flushed, and of the rest, by `seed`, nothing, everything, or some
    /// operations whole, some by sector, some not at all.
    pub(crate) fn after_power_loss(&self, seed: u64) -> Self {
        let state = self.state();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut content = state.flushed.clone();
        for operation in &state.unflushed {
            let fate = if seed < 2 { seed * 2 } else { rng.random_range(0..3) };
            match (fate, operation) {
                (0, _) => {}
                (1, Operation::Write(offset, data)) => {
                    for (sector, piece) in data.chunks(SECTOR_BYTES).enumerate() {
                        if rng.random() {
                            Operation::Write(offset + sector * SECTOR_BYTES, piece.to_vec())
                                .apply(&mut content);
                        }
                    }
                }
                _ => operation.apply(&mut content),
            }
        }
        Self::holding(content)
    }

    /// Counts an operation; one that fails for want of power may have reached the medium all the same.
    fn operate(&self, operation: Option<Operation>) -> io::Result<()> {
        drop(self.stall());
        let mut state = self.state();
        if state.cut_at.is_some_and(|at| state.operations > at) {
            return Err(io::Error::other("no power"));
        }
        let fails = state.cut_at == Some(state.operations);
        let grows = matches!(operation, Some(Operation::SetLength(length)) if state.capacity.is_some_and(|most| length > most));
        let full = operation.is_some() && state.full_from.is_some_and(|from| state.operations >= from);
        state.operations += 1;
        if grows || full || (operation.is_none() && state.flushes_fail) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match operation {
            Some(operation) => {
                operation.apply(&mut state.content);
                state.unflushed.push(operation);
            }
            None if !fails => {
                state.flushed = state.content.clone();
                state.unflushed.clear();
                state.flushes += 1;
            }
            None => {}
        }
        if fails { Err(io::Error::other("power failed")) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let begin = offset as usize;
        let bytes = state.content.get(begin..begin.saturating_add(out.len()));
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(Some(Operation::SetLength(len as usize)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operate(Some(Operation::Write(offset as usize, data.to_vec())))
    }
}
