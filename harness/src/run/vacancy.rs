//! How long a run was without an aggregator: a pure function of events, whose times are of one clock.
//!
//! A vacancy begins when an aggregator decides to hand over, or when a fault kills it; it ends when the aggregator of a
//! later epoch accepts its first worker. Events of different nodes may arrive in any order.

use std::collections::BTreeMap;

use replication::{Epoch, NodeId};
use workloads::federated::Event;

/// When aggregators left and served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Vacancies {
    /// Epochs that hand over, since when.
    handing_over: BTreeMap<Epoch, u64>,
    /// Epochs whose node was killed, when.
    crashed: BTreeMap<Epoch, u64>,
    /// Of these, by node: whose kill was ordered, and is not known to have reached it.
    ordered: BTreeMap<NodeId, Epoch>,
    /// When each epoch accepted its first worker.
    serving: BTreeMap<Epoch, u64>,
}

impl Vacancies {
    /// Takes note of an event of the job.
    pub(super) fn observe(&mut self, at_ns: u64, event: &Event) {
        match *event {
            Event::HandingOver { epoch, .. } => {
                self.handing_over.insert(epoch, at_ns);
            }
            Event::HandOverFailed { epoch, .. } => {
                self.handing_over.remove(&epoch);
            }
            Event::Serving { epoch, .. } => {
                self.serving.entry(epoch).or_insert(at_ns);
            }
            _ => {}
        }
    }

    /// Takes note that the aggregator of `epoch` is asked to leave, and hands over.
    pub(super) fn hands_over(&mut self, at_ns: u64, epoch: Epoch) {
        self.handing_over.insert(epoch, at_ns);
    }

    /// Takes note of the kill of the node that aggregates in `epoch`.
    pub(super) fn crashed(&mut self, at_ns: u64, epoch: Epoch) {
        self.handing_over.remove(&epoch);
        self.crashed.insert(epoch, at_ns);
        self.ordered.insert(epoch.node, epoch);
    }

    /// Takes note that the kill of `node` reached it at `at_ns`, not when it was ordered. Only the kill of an aggregator matters.
    pub(super) fn reached(&mut self, at_ns: u64, node: NodeId) {
        let epoch = self.ordered.remove(&node);
        if let Some(from_ns) = epoch.and_then(|epoch| self.crashed.get_mut(&epoch)) {
            *from_ns = at_ns;
        }
    }

    /// How long each planned hand-over took that ended, in the order of epochs.
    #[must_use]
    pub(super) fn hand_overs_ns(&self) -> Vec<u64> {
        self.ended(&self.handing_over)
    }

    /// How long each vacancy after a crash lasted that ended, in the order of epochs.
    #[must_use]
    pub(super) fn take_overs_ns(&self) -> Vec<u64> {
        self.ended(&self.crashed)
    }

    fn ended(&self, begun: &BTreeMap<Epoch, u64>) -> Vec<u64> {
        let length = |(epoch, from_ns): (&Epoch, &u64)| {
            let (_, to_ns) = self.serving.range(*epoch..).find(|(serving, _)| *serving > epoch)?;
            Some(to_ns.saturating_sub(*from_ns))
        };
        begun.iter().filter_map(length).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, node: NodeId(counter % 3) }
    }

    fn serving(counter: u64) -> Event {
        Event::Serving { epoch: epoch(counter), worker: NodeId(9) }
    }

    #[test]
    fn a_vacancy_lasts_until_a_later_epoch_serves() {
        let mut vacancies = Vacancies::default();
        vacancies.observe(5, &serving(1));
        // News of the successor may be heard first.
        vacancies.observe(130, &serving(4));
        vacancies.observe(100, &Event::HandingOver { epoch: epoch(1), to: NodeId(2) });
        vacancies.crashed(200, epoch(4));
        assert_eq!((vacancies.hand_overs_ns(), vacancies.take_overs_ns()), (vec![30], vec![]));
        vacancies.reached(190, NodeId(7));
        vacancies.reached(201, NodeId(1));
        // Another kill, of a worker by then.
        vacancies.reached(5000, NodeId(1));
        vacancies.observe(1201, &serving(7));
        vacancies.observe(1300, &serving(7));
        assert_eq!(vacancies.take_overs_ns(), [1000]);
    }

    #[test]
    fn a_hand_over_that_fails_or_ends_in_a_crash_is_none() {
        let mut vacancies = Vacancies::default();
        let handing_over = Event::HandingOver { epoch: epoch(1), to: NodeId(2) };
        vacancies.observe(100, &handing_over);
        let failed = Event::HandOverFailed { epoch: epoch(1), to: NodeId(2), reason: "it is away".into() };
        vacancies.observe(110, &failed);
        vacancies.observe(500, &serving(2));
        assert!(vacancies.hand_overs_ns().is_empty());
        vacancies.observe(600, &Event::HandingOver { epoch: epoch(2), to: NodeId(3) });
        vacancies.crashed(610, epoch(2));
        vacancies.observe(900, &serving(3));
        assert_eq!((vacancies.hand_overs_ns(), vacancies.take_overs_ns()), (vec![], vec![290]));
    }
}
