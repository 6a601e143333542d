//! How stale reads were, where they may be: by how much a read came after the acknowledgement of a write that replaced what
//! it returned.

use super::super::history::{Ended, Kind, Operation};
use super::by_key;

/// How stale the reads of a history were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Staleness {
    /// Reads that were answered.
    pub reads: u64,
    /// Those that returned what had been replaced.
    pub stale: u64,
    /// The largest age of what they returned, since its replacement was acknowledged, in nanoseconds.
    pub most_ns: u64,
    /// Reads of a value that no client wrote.
    pub made_up: u64,
}

/// How stale the reads of a history were.
#[must_use]
pub fn staleness(history: &[Operation]) -> Staleness {
    let mut total = Staleness::default();
    for operations in by_key(history).values() {
        let writes: Vec<&Operation> =
            operations.iter().copied().filter(|operation| operation.kind != Kind::Get).collect();
        let acknowledged: Vec<&Operation> =
            writes.iter().copied().filter(|operation| operation.ended == Ended::Ok).collect();
        // By start; the earliest end of those that begin no earlier.
        let mut first_ends = vec![u64::MAX; acknowledged.len() + 1];
        for at in (0..acknowledged.len()).rev() {
            first_ends[at] = first_ends[at + 1].min(acknowledged[at].end_ns);
        }
        for read in operations.iter().filter(|read| read.kind == Kind::Get && read.ended == Ended::Ok) {
            total.reads += 1;
            let Some(written_by) = written_until(&writes, read) else {
                total.made_up += 1;
                continue;
            };
            let replacing = acknowledged.partition_point(|write| write.start_ns <= written_by);
            let age = read.start_ns.saturating_sub(first_ends[replacing]);
            total.stale += u64::from(age > 0);
            total.most_ns = total.most_ns.max(age);
        }
    }
    total
}

/// Until when what a read returned was written; `None`: nobody wrote it. A write of unknown outcome may come late, so nothing
/// is known to have replaced it.
fn written_until(writes: &[&Operation], read: &Operation) -> Option<u64> {
    let end = |write: &&Operation| if write.ended == Ended::Ok { write.end_ns } else { u64::MAX };
    match read.value {
        Some(_) => {
            writes.iter().find(|write| write.value == read.value && write.start_ns <= read.end_ns).map(end)
        }
        // Of all that could have left nothing, the latest.
        None => {
            let deletes = writes
                .iter()
                .filter(|write| write.kind == Kind::Delete && write.start_ns <= read.end_ns)
                .map(end);
            Some(deletes.max().unwrap_or(0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{get, operation, set};
    use super::*;

    #[test]
    fn age_counts_from_the_acknowledgement_of_what_replaced_it() {
        let history = [set(1, 10, 20), set(2, 30, 40), get(1, 35, 36), get(1, 47, 48), get(2, 50, 51)];
        let expected = Staleness { reads: 3, stale: 1, most_ns: 7, made_up: 0 };
        assert_eq!(staleness(&history), expected);
        let nothing = operation(Kind::Get, None, 25, 26);
        assert_eq!(staleness(&[set(1, 10, 20), nothing]).most_ns, 5);
        let delete = operation(Kind::Delete, None, 15, 22);
        assert_eq!(staleness(&[set(1, 10, 20), delete, nothing]).most_ns, 0);
        assert_eq!(staleness(&[set(1, 10, 20), get(3, 25, 26)]).made_up, 1);
    }
}
