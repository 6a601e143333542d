//! Whether a history is possible under what a store promises. Pure: from operations alone.

mod linear;
mod stale;

pub use linear::{Verdict, linearizable};
pub use stale::{Staleness, staleness};

use std::collections::BTreeMap;

use super::history::Operation;

/// Operations by key, each key's in the order of their starts.
fn by_key(history: &[Operation]) -> BTreeMap<u32, Vec<&Operation>> {
    let mut keys: BTreeMap<u32, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(operation.key).or_default().push(operation);
    }
    for operations in keys.values_mut() {
        operations.sort_by_key(|operation| (operation.start_ns, operation.end_ns));
    }
    keys
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::history::{Ended, Kind, Operation, Stage};

    /// An operation on key 0, from `start` to `end`.
    pub(super) fn operation(kind: Kind, value: Option<u64>, start: u64, end: u64) -> Operation {
        Operation {
            stage: Stage::Load,
            client: 0,
            key: 0,
            kind,
            value,
            intended_ns: start,
            start_ns: start,
            end_ns: end,
            ended: Ended::Ok,
            node: 1,
            attempts: 1,
        }
    }

    pub(super) fn set(value: u64, start: u64, end: u64) -> Operation {
        operation(Kind::Set, Some(value), start, end)
    }

    pub(super) fn get(value: u64, start: u64, end: u64) -> Operation {
        operation(Kind::Get, Some(value), start, end)
    }
}
