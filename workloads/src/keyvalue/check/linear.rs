//! Linearizability of a dictionary whose operations touch one key each: key by key (Herlihy and Wing 1990: locality), by the
//! search of Wing and Gong (1993) with Lowe's memory of what was tried (2017).
//!
//! A configuration is which operations have taken effect, and the value that they left. An operation may take effect next if
//! every operation that ended before it began has. Reads that fit the value take effect at once, which loses nothing, because
//! they leave it as it is. An operation of unknown outcome may take effect at any time after its start, or never.
//!
//! Each value is written once, so its reads follow its write before anything else is written. While nobody has yet to read
//! the value in force, a write that may come next together with all its reads loses nothing by coming first: without deletes
//! nothing is ever searched (Gibbons and Korach 1997 show that this case is easy).

use std::collections::{HashMap, HashSet};

use super::super::history::{Ended, Kind, Operation};
use super::by_key;

/// Configurations that are tried for one key before the search is given up.
const MAX_CONFIGURATIONS: usize = 2_000_000;
/// Configurations that are tried to tell more of a violation that is certain.
const MAX_EXPLAINING: usize = 20_000;

/// What the search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    Violation {
        /// Of this key.
        key: u32,
        /// An operation that no order explains together with those before it.
        operation: Operation,
    },
    /// The search was given up.
    Undecided {
        /// On this key.
        key: u32,
    },
}

/// Whether there is an order of the operations, each between its start and its end, that explains every answer.
#[must_use]
pub fn linearizable(history: &[Operation]) -> Verdict {
    let mut undecided = None;
    for (key, operations) in by_key(history) {
        let search = Search::new(&operations);
        match search.run(Way::Short) {
            Found::Order => {}
            Found::None { stuck_at } => {
                // Short ways end early: the long way gets as far as one can, and tells more.
                let further = search.run(Way::Long);
                let operation = if let Found::None { stuck_at } = further { stuck_at } else { stuck_at };
                return Verdict::Violation { key, operation };
            }
            Found::GivenUp => undecided = undecided.or(Some(key)),
        }
    }
    undecided.map_or(Verdict::Linearizable, |key| Verdict::Undecided { key })
}

enum Found {
    Order,
    None { stuck_at: Operation },
    GivenUp,
}

/// How the search goes on from a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Without what cannot lead to an order, and by one candidate only where no other can do better.
    Short,
    /// By every candidate.
    Long,
}

/// Operations of one key.
struct Search<'a> {
    /// Those that took effect, by their start.
    certain: Vec<&'a Operation>,
    /// Writes that may have.
    uncertain: Vec<&'a Operation>,
    /// Places of the reads among the certain, ascending, by what they saw.
    readers: HashMap<Option<u64>, Vec<usize>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Configuration {
    /// Every certain operation before this one has taken effect; this one has not.
    low: usize,
    /// Certain operations after it that have, ascending.
    beyond: Vec<usize>,
    /// Uncertain ones that have, ascending.
    happened: Vec<usize>,
    value: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Candidate {
    Certain(usize),
    Uncertain(usize),
}

impl<'a> Search<'a> {
    fn new(operations: &[&'a Operation]) -> Self {
        let certain: Vec<&Operation> =
            operations.iter().copied().filter(|operation| operation.ended == Ended::Ok).collect();
        let mut readers: HashMap<Option<u64>, Vec<usize>> = HashMap::new();
        for (at, operation) in certain.iter().enumerate().filter(|(_, operation)| operation.kind == Kind::Get)
        {
            readers.entry(operation.value).or_default().push(at);
        }
        // A value that nobody read explains nothing.
        let matters = |operation: &Operation| match operation.kind {
            Kind::Get => false,
            Kind::Set => operation.value.is_some() && readers.contains_key(&operation.value),
            Kind::Delete => true,
        };
        let uncertain = operations
            .iter()
            .copied()
            .filter(|operation| operation.ended == Ended::Unknown && matters(operation))
            .collect();
        Self { certain, uncertain, readers }
    }

    fn run(&self, way: Way) -> Found {
        let mut start = Configuration { low: 0, beyond: vec![], happened: vec![], value: None };
        self.take_reads(&mut start);
        let most = if way == Way::Short { MAX_CONFIGURATIONS } else { MAX_EXPLAINING };
        let mut furthest = start.low;
        let mut tried = HashSet::from([start.clone()]);
        let mut ways = vec![(self.candidates(&start, way), start)];
        while let Some((candidates, configuration)) = ways.last_mut() {
            if configuration.low >= self.certain.len() {
                return Found::Order;
            }
            let Some(candidate) = candidates.pop() else {
                ways.pop();
                continue;
            };
            let next = self.after(configuration, candidate);
            furthest = furthest.max(next.low);
            if tried.len() >= most {
                return Found::GivenUp;
            }
            if tried.insert(next.clone()) {
                ways.push((self.candidates(&next, way), next));
            }
        }
        match self.certain.get(furthest) {
            Some(stuck_at) => Found::None { stuck_at: **stuck_at },
            None => Found::Order,
        }
    }

    /// Certain operations that have not taken effect and may do so next.
    fn open(&self, configuration: &Configuration) -> Vec<usize> {
        let mut first_end = u64::MAX;
        let mut open = Vec::new();
        for at in configuration.low..self.certain.len() {
            let operation = self.certain[at];
            if operation.start_ns > first_end {
                break;
            }
            if configuration.beyond.binary_search(&at).is_err() {
                first_end = first_end.min(operation.end_ns);
                open.push(at);
            }
        }
        open.retain(|at| self.certain[*at].start_ns <= first_end);
        open
    }

    /// Writes that may take effect next; the last one is tried first.
    fn candidates(&self, configuration: &Configuration, way: Way) -> Vec<Candidate> {
        let open = self.open(configuration);
        let first_end = open.iter().map(|at| self.certain[*at].end_ns).min().unwrap_or(u64::MAX);
        let uncertain = (0..self.uncertain.len())
            .filter(|at| self.uncertain[*at].start_ns <= first_end)
            .filter(|at| configuration.happened.binary_search(at).is_err())
            .map(Candidate::Uncertain);
        let mut certain: Vec<usize> =
            open.into_iter().filter(|at| self.certain[*at].kind != Kind::Get).collect();
        certain.sort_by_key(|at| std::cmp::Reverse(self.certain[*at].end_ns));
        let all = uncertain.chain(certain.into_iter().map(Candidate::Certain)).collect();
        if way == Way::Long { all } else { self.worth_trying(configuration, all) }
    }

    /// Those of `all` after which nobody has yet to read a value that was overwritten; one of them is enough, if it leaves
    /// nothing to anybody else.
    fn worth_trying(&self, configuration: &Configuration, all: Vec<Candidate>) -> Vec<Candidate> {
        let done_with = !self.is_awaited(configuration);
        let mut worth = Vec::new();
        for candidate in all.into_iter().rev() {
            let next = self.after(configuration, candidate);
            let whole = next.value.is_some() && !self.is_awaited(&next);
            if whole && done_with {
                return vec![candidate];
            }
            if whole || next.value.is_none() {
                worth.push(candidate);
            }
        }
        worth.reverse();
        worth
    }

    /// Whether somebody has yet to read the value in force.
    fn is_awaited(&self, configuration: &Configuration) -> bool {
        let Some(readers) = self.readers.get(&configuration.value) else { return false };
        let rest = &readers[readers.partition_point(|at| *at < configuration.low)..];
        rest.iter().any(|at| configuration.beyond.binary_search(at).is_err())
    }

    fn after(&self, before: &Configuration, candidate: Candidate) -> Configuration {
        let mut next = before.clone();
        let operation = match candidate {
            Candidate::Certain(at) => {
                self.take(&mut next, at);
                self.certain[at]
            }
            Candidate::Uncertain(at) => {
                let place = next.happened.partition_point(|other| *other < at);
                next.happened.insert(place, at);
                self.uncertain[at]
            }
        };
        next.value = if operation.kind == Kind::Set { operation.value } else { None };
        self.take_reads(&mut next);
        next
    }

    fn take(&self, configuration: &mut Configuration, at: usize) {
        let place = configuration.beyond.partition_point(|other| *other < at);
        configuration.beyond.insert(place, at);
        while configuration.beyond.first() == Some(&configuration.low) {
            configuration.beyond.remove(0);
            configuration.low += 1;
        }
    }

    /// Lets every read that fits the value take effect.
    fn take_reads(&self, configuration: &mut Configuration) {
        loop {
            let fits = |at: &usize| {
                let operation = self.certain[*at];
                operation.kind == Kind::Get && operation.value == configuration.value
            };
            let Some(at) = self.open(configuration).into_iter().find(fits) else { return };
            self.take(configuration, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{get, operation, set};
    use super::*;

    fn violated(history: &[Operation]) -> Option<Operation> {
        match linearizable(history) {
            Verdict::Linearizable => None,
            Verdict::Violation { operation, .. } => Some(operation),
            Verdict::Undecided { key } => panic!("undecided on key {key}"),
        }
    }

    fn unknown(mut operation: Operation) -> Operation {
        operation.ended = Ended::Unknown;
        operation
    }

    #[test]
    fn what_happened_at_once_may_be_seen_in_any_order() {
        let history =
            [set(1, 0, 10), set(2, 5, 20), get(1, 6, 15), get(2, 16, 30), operation(Kind::Get, None, 0, 9)];
        assert_eq!(violated(&history), None);
        // Two reads disagree about the order of the writes.
        let history = [set(1, 0, 10), set(2, 0, 10), get(1, 11, 12), get(2, 13, 14), get(1, 15, 16)];
        assert!(violated(&history).is_some());
    }

    #[test]
    fn a_stale_read_and_a_lost_write_are_rejected() {
        assert_eq!(violated(&[set(1, 0, 1), set(2, 2, 3), get(1, 4, 5)]), Some(get(1, 4, 5)));
        let nothing = operation(Kind::Get, None, 4, 5);
        assert_eq!(violated(&[set(1, 0, 1), nothing]), Some(nothing));
        let delete = operation(Kind::Delete, None, 2, 3);
        assert_eq!(violated(&[set(1, 0, 1), delete, nothing]), None);
        assert_eq!(violated(&[set(1, 0, 1), delete, get(1, 4, 5)]), Some(get(1, 4, 5)));
        assert!(violated(&[set(1, 0, 1), get(9, 2, 3)]).is_some(), "a value that nobody wrote");
    }

    #[test]
    fn an_unknown_write_may_have_happened_late_or_never() {
        let late = unknown(set(2, 0, 1));
        assert_eq!(violated(&[set(1, 0, 1), late, get(1, 5, 6), get(2, 7, 8), get(2, 9, 10)]), None);
        assert_eq!(violated(&[set(1, 0, 1), late, get(1, 5, 6)]), None);
        assert!(
            violated(&[set(1, 0, 1), late, get(2, 5, 6), get(1, 7, 8)]).is_some(),
            "once, not back again"
        );
        let failed = Operation { ended: Ended::Failed, ..set(2, 0, 1) };
        assert!(violated(&[set(1, 0, 1), failed, get(2, 5, 6)]).is_some());
    }

    /// Each at once with all others of its time, and read much later or by nobody: many orders, of which few are right.
    #[test]
    fn what_many_wrote_at_once_is_decided_without_a_search() {
        let mut history = Vec::new();
        for round in 0..200_u64 {
            let (from, to) = (100 * round, 100 * round + 90);
            history
                .extend((0..40).map(|writer| set(100 * round + writer, from + writer % 7, to - writer % 5)));
            history.push(get(100 * round + (17 * round) % 40, to + 2, to + 4));
        }
        assert_eq!(violated(&history), None);
        // The value of a round before.
        history.push(get(100 * 198, 100 * 199 + 95, 100 * 199 + 96));
        assert!(violated(&history).is_some());
    }

    #[test]
    fn keys_are_apart() {
        let other = |mut operation: Operation| {
            operation.key = 1;
            operation
        };
        assert_eq!(violated(&[set(1, 0, 1), other(set(2, 2, 3)), get(1, 4, 5), other(get(2, 4, 5))]), None);
    }

    /// Tries every order of a few operations.
    fn by_brute_force(history: &[Operation]) -> bool {
        fn search(left: &[Operation], value: Option<u64>) -> bool {
            if left.iter().all(|operation| operation.ended == Ended::Unknown) {
                return true;
            }
            let first_end = left.iter().filter(|o| o.ended == Ended::Ok).map(|o| o.end_ns).min();
            left.iter().enumerate().any(|(at, operation)| {
                if Some(operation.start_ns) > first_end {
                    return false;
                }
                let after = match operation.kind {
                    Kind::Get if operation.value != value => return false,
                    Kind::Get => value,
                    Kind::Set => operation.value,
                    Kind::Delete => None,
                };
                let mut rest = left.to_vec();
                rest.remove(at);
                search(&rest, after)
            })
        }
        let relevant = |operation: &&Operation| {
            operation.ended != Ended::Failed && (operation.kind != Kind::Get || operation.ended == Ended::Ok)
        };
        search(&history.iter().filter(relevant).copied().collect::<Vec<_>>(), None)
    }

    fn few_operations() -> impl Strategy<Value = Vec<Operation>> {
        let one = (0..3_u8, 0..3_u64, 0..12_u64, 0..6_u64, 0..6_u8);
        proptest::collection::vec(one, 0..7).prop_map(|drawn| {
            let mut history = Vec::new();
            for (number, (kind, value, start, length, ended)) in drawn.into_iter().enumerate() {
                // Values are written once.
                let (kind, value) = match kind {
                    0 => (Kind::Get, value.checked_sub(1)),
                    1 => (Kind::Set, Some(number as u64)),
                    _ => (Kind::Delete, None),
                };
                let mut operation = operation(kind, value, start, start + length);
                operation.ended =
                    [Ended::Unknown, Ended::Failed].get(ended as usize).copied().unwrap_or(Ended::Ok);
                history.push(operation);
            }
            history
        })
    }

    proptest! {
        #[test]
        fn the_search_agrees_with_trying_everything(history in few_operations()) {
            prop_assert_eq!(violated(&history).is_none(), by_brute_force(&history), "{:?}", history);
        }
    }
}
