//! Who aggregates: when to stand, what to promise, which claim is in force. Pure: liveness, fitness, time and randomness
//! come in, decisions go out.
//!
//! A candidate asks all for a promise of its epoch. Who promises takes part in no write of a lower epoch any more. With
//! more than half of the nodes as holders of every write, a majority of promises has seen whatever was acknowledged
//! (linear mode). With fewer holders whoever can be reached is asked, and a partition can have two aggregators: the
//! higher epoch stays when they meet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::announce::Order;
use crate::store::{Epoch, NodeId};

/// Counters beyond this are no counters: nobody could count past them.
pub(super) const MAX_COUNTER: u64 = u64::MAX / 2;

/// At the start, scores that are not known after this many intervals are not waited for.
const START_INTERVALS: u32 = 4;

/// Who was asked to take over tries again for this many intervals: requests for promises get lost, and connections may not all
/// be there yet. The aggregator does not stand again meanwhile, and its writes wait, if it has promised.
const BLESSING_INTERVALS: u32 = 8;

/// What is known of a node's fitness to aggregate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fitness {
    /// The newest checkpoint of the job's state it holds.
    pub(super) freshest: Option<Order>,
    /// Its suitability score, once it is known.
    pub(super) score: Option<u32>,
}

/// What to do about the office.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing, until something changes.
    Rest,
    /// Look again then.
    WaitUntil(Instant),
    /// Stand for the office.
    Stand,
}

/// What became of word of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    /// It is in force now.
    Now {
        /// The epoch before it.
        before: Option<Epoch>,
    },
    /// It is not newer than the one in force.
    NotNewer,
}

/// What has to survive a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Promises {
    /// No write below this epoch is taken part in.
    pub(super) promised: Epoch,
    /// The highest counter seen.
    pub(super) counter: u64,
}

#[derive(Debug)]
pub(super) struct Office {
    local: NodeId,
    /// Members of the cluster.
    nodes: usize,
    linear: bool,
    interval: Duration,
    started: Instant,
    promises: Promises,
    /// The highest epoch for which somebody refuses what is written in this one.
    fenced: Epoch,
    in_force: Option<Epoch>,
    /// The aggregator that asked this node to take over, and until when that counts.
    blessing: Option<(Epoch, Instant)>,
    /// When this node stands, as long as nobody aggregates.
    due: Option<Instant>,
    /// Before this it does not: somebody else is on the way into office, or this node has just failed to get there.
    rests_until: Option<Instant>,
}

impl Office {
    /// The office as node `local` of `nodes` sees it at the start, with what it promised in earlier lives.
    pub(super) fn new(
        local: NodeId,
        (nodes, linear): (usize, bool),
        interval: Duration,
        promises: Promises,
        now: Instant,
    ) -> Self {
        Self {
            local,
            nodes,
            linear,
            interval,
            started: now,
            promises,
            fenced: Epoch::default(),
            in_force: None,
            blessing: None,
            due: None,
            rests_until: None,
        }
    }

    /// From now on there are so many members.
    pub(super) fn among(&mut self, nodes: usize) {
        self.nodes = nodes;
    }

    pub(super) fn in_force(&self) -> Option<Epoch> {
        self.in_force
    }

    pub(super) fn promises(&self) -> Promises {
        self.promises
    }

    pub(super) fn promised(&self) -> Epoch {
        self.promises.promised
    }

    /// The later epoch that this node has promised, if it takes no part in writes of `epoch` any more.
    pub(super) fn fences(&self, epoch: Epoch) -> Option<Epoch> {
        Some(self.promises.promised).filter(|promised| self.outranks(*promised, epoch))
    }

    /// Whether what is promised to `later` cannot be written in `epoch`. Where it takes a majority a counter names one
    /// aggregator: a promise of the same counter went to a candidate that lost.
    fn outranks(&self, later: Epoch, epoch: Epoch) -> bool {
        if self.linear { later.counter > epoch.counter } else { later > epoch }
    }

    /// Whether this node aggregates.
    pub(super) fn is_mine(&self) -> bool {
        self.in_force.is_some_and(|epoch| epoch.node == self.local)
    }

    /// Takes note of an epoch that somebody has promised or follows.
    pub(super) fn seen(&mut self, epoch: Epoch) {
        self.promises.counter = self.promises.counter.max(epoch.counter.min(MAX_COUNTER));
    }

    /// Takes note that somebody has promised `epoch` and refuses what is written in an earlier one.
    pub(super) fn fenced_by(&mut self, epoch: Epoch) {
        self.seen(epoch);
        self.fenced = self.fenced.max(epoch);
    }

    /// The aggregator in force, if it has asked this node to take over.
    fn blessing(&self, now: Instant) -> Option<Epoch> {
        let (blessing, until) = self.blessing?;
        (self.in_force == Some(blessing) && now < until).then_some(blessing)
    }

    /// Whether nobody aggregates, as far as this node can tell.
    fn vacant(&self, live: &BTreeSet<NodeId>, fitness: &BTreeMap<NodeId, Fitness>, now: Instant) -> bool {
        match self.in_force {
            None => {
                let known = |node| fitness.get(node).is_some_and(|fitness: &Fitness| fitness.score.is_some());
                let waited = now >= self.started + self.interval * START_INTERVALS;
                live.len() > self.nodes / 2 && (waited || live.iter().all(known))
            }
            // Others have promised a later epoch that did not come: this one cannot be written in any more.
            Some(epoch) if epoch.node == self.local => self.outranks(self.fenced, epoch),
            // Without a majority nobody can be elected, where it takes one.
            Some(epoch) => !live.contains(&epoch.node) && (!self.linear || live.len() > self.nodes / 2),
        }
    }

    /// What to do, given which members live (this node included) and how fit they are.
    pub(super) fn decide(
        &mut self,
        live: &BTreeSet<NodeId>,
        fitness: &BTreeMap<NodeId, Fitness>,
        now: Instant,
        rng: &mut ChaCha8Rng,
    ) -> Decision {
        if self.blessing(now).is_some() {
            // After a candidacy that did not succeed there is a pause here, too.
            return self
                .rests_until
                .filter(|until| now < *until)
                .map_or(Decision::Stand, Decision::WaitUntil);
        }
        if !self.vacant(live, fitness, now) {
            self.due = None;
            let start = self.started + self.interval * START_INTERVALS;
            let starting = self.in_force.is_none() && now < start;
            return if starting { Decision::WaitUntil(start) } else { Decision::Rest };
        }
        let due = *self.due.get_or_insert_with(|| {
            let rank = ranked(live, fitness).iter().position(|node| *node == self.local).unwrap_or(0) as u32;
            let own = self.in_force.is_some_and(|epoch| epoch.node == self.local);
            // An aggregator whose successor does not come waits for a while, others after those who are fitter.
            let from = |earliest: Instant| self.rests_until.map_or(earliest, |until| until.max(earliest));
            let turn = if own {
                from(now + self.interval * START_INTERVALS)
            } else {
                from(now) + self.interval * 2 * rank
            };
            let spread = if turn == now { 0.0 } else { rng.random_range(0.0..1.0) };
            turn + self.interval.mul_f64(spread)
        });
        if now >= due { Decision::Stand } else { Decision::WaitUntil(due) }
    }

    /// Begins a candidacy: the epoch to ask promises of, and the aggregator that asked for it, if one did.
    pub(super) fn stand(&mut self, now: Instant) -> (Epoch, Option<Epoch>) {
        let before = self.in_force.map_or(0, |epoch| epoch.counter);
        let counter = self.promises.counter.max(self.promises.promised.counter).max(before) + 1;
        let epoch = Epoch { counter, node: self.local };
        self.promises = Promises { promised: epoch, counter };
        (epoch, self.blessing(now).or(self.in_force.filter(|epoch| epoch.node == self.local)))
    }

    /// The candidacy of `epoch` did not succeed: it is withdrawn, and what was promised `before` it holds again. The next
    /// one comes after a random pause.
    pub(super) fn withdraw(&mut self, epoch: Epoch, before: Epoch, now: Instant, rng: &mut ChaCha8Rng) {
        if self.promises.promised == epoch {
            self.promises.promised = before;
        }
        self.rest(self.interval.mul_f64(rng.random_range(0.5..2.0)), now);
    }

    /// Whether a candidate has what it takes: `promises` of others out of those who `answered`.
    pub(super) fn suffices(&self, promises: usize, answered: usize) -> bool {
        let of = if self.linear { self.nodes } else { answered + 1 };
        promises + 1 > of / 2
    }

    /// Promises `epoch` to its node, unless one of its counter or a higher one is promised, or the aggregator in force lives
    /// and has not asked for this.
    pub(super) fn promise(
        &mut self,
        epoch: Epoch,
        blessing: Option<Epoch>,
        live: &BTreeSet<NodeId>,
        now: Instant,
    ) -> bool {
        let blessed = blessing.is_some() && blessing == self.in_force;
        let incumbent = self.in_force.filter(|epoch| live.contains(&epoch.node));
        // One promise for each counter, as one vote for each term: where it takes a majority, a counter names one aggregator.
        if epoch.counter <= self.promises.promised.counter
            || self.in_force.is_some_and(|now| epoch.counter <= now.counter)
            || epoch.counter > MAX_COUNTER
            || (incumbent.is_some_and(|incumbent| incumbent.node != epoch.node) && !blessed)
        {
            return false;
        }
        self.promises.promised = epoch;
        self.fenced_by(epoch);
        // Time for the candidate to come into office.
        self.rest(self.interval * START_INTERVALS, now);
        true
    }

    /// Somebody has promised `rival` to another candidate, and follows `in_force`: a rival on its way gets the time to arrive.
    pub(super) fn gives_way(&mut self, rival: Epoch, in_force: Option<Epoch>, now: Instant) {
        self.seen(rival);
        if rival.counter >= self.promises.promised.counter && in_force < Some(rival) {
            self.rest(self.interval * START_INTERVALS, now);
        }
    }

    /// This node does not stand for a while, whoever seems to live meanwhile.
    fn rest(&mut self, pause: Duration, now: Instant) {
        self.rests_until = self.rests_until.max(Some(now + pause));
        self.due = None;
    }

    /// The aggregator of `epoch` asks this node to take over, whoever else may be on the way into office.
    pub(super) fn bless(&mut self, epoch: Epoch, now: Instant) -> bool {
        let valid = self.in_force == Some(epoch);
        if valid {
            self.blessing = Some((epoch, now + self.interval * BLESSING_INTERVALS));
            self.rests_until = None;
        }
        valid
    }

    /// This node, which aggregates, asks another to take over, and gives it the time.
    pub(super) fn awaits_successor(&mut self, now: Instant) {
        self.rest(self.interval * BLESSING_INTERVALS, now);
    }

    /// Follows `epoch`, if it is newer than the one in force.
    pub(super) fn follow(&mut self, epoch: Epoch) -> Followed {
        self.seen(epoch);
        if epoch.counter > MAX_COUNTER || self.in_force.is_some_and(|now| epoch <= now) {
            return Followed::NotNewer;
        }
        if self.fences(epoch).is_none() {
            self.promises.promised = epoch;
        }
        self.due = None;
        self.rests_until = None;
        self.blessing = None;
        Followed::Now { before: self.in_force.replace(epoch) }
    }
}

/// Nodes in the order of their fitness: the freshest checkpoint, then the score, then the lower id.
pub(super) fn ranked(live: &BTreeSet<NodeId>, fitness: &BTreeMap<NodeId, Fitness>) -> Vec<NodeId> {
    let mut ranked: Vec<NodeId> = live.iter().copied().collect();
    ranked.sort_by_key(|node| {
        let Fitness { freshest, score } = fitness.get(node).copied().unwrap_or_default();
        (std::cmp::Reverse((freshest, score)), *node)
    });
    ranked
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::store::Phase;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn epoch(counter: u64, node: u64) -> Epoch {
        Epoch { counter, node: NodeId(node) }
    }

    fn scores(scores: &[(u64, u32)]) -> BTreeMap<NodeId, Fitness> {
        let fitness = |score| Fitness { freshest: None, score: Some(score) };
        scores.iter().map(|(node, score)| (NodeId(*node), fitness(*score))).collect()
    }

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(1)
    }

    #[test]
    fn the_freshest_then_the_fittest_then_the_lowest_comes_first() {
        let mut fitness = scores(&[(1, 500), (2, 700), (3, 700), (4, 100)]);
        assert_eq!(ranked(&nodes(&[1, 2, 3, 4]), &fitness), [2, 3, 1, 4].map(NodeId));
        fitness.get_mut(&NodeId(4)).unwrap().freshest = Some((epoch(1, 1), 3, Phase::AggregateFit));
        assert_eq!(ranked(&nodes(&[1, 2, 3, 4]), &fitness)[0], NodeId(4));
    }

    #[test]
    fn the_fittest_stands_at_once_when_a_majority_is_known() {
        let now = Instant::now();
        let fitness = scores(&[(1, 500), (2, 400), (3, 300)]);
        let mut first = Office::new(NodeId(1), (5, true), INTERVAL, Promises::default(), now);
        assert_ne!(first.decide(&nodes(&[1, 2]), &fitness, now, &mut rng()), Decision::Stand);
        assert_eq!(first.decide(&nodes(&[1, 2, 3]), &fitness, now, &mut rng()), Decision::Stand);
        let mut second = Office::new(NodeId(2), (5, true), INTERVAL, Promises::default(), now);
        let Decision::WaitUntil(turn) = second.decide(&nodes(&[1, 2, 3]), &fitness, now, &mut rng()) else {
            panic!("waits for the fitter one")
        };
        assert_eq!(second.decide(&nodes(&[1, 2, 3]), &fitness, turn, &mut rng()), Decision::Stand);
    }

    #[test]
    fn an_aggregator_that_lives_is_not_replaced_unless_it_asks() {
        let (now, all) = (Instant::now(), nodes(&[1, 2, 3]));
        let mut office = Office::new(NodeId(2), (3, true), INTERVAL, Promises::default(), now);
        office.follow(epoch(1, 1));
        assert_eq!(office.decide(&all, &scores(&[]), now, &mut rng()), Decision::Rest);
        assert!(!office.promise(epoch(2, 3), None, &all, now));
        assert!(!office.promise(epoch(2, 3), Some(epoch(1, 2)), &all, now), "a blessing of nobody in force");
        assert!(office.promise(epoch(2, 3), Some(epoch(1, 1)), &all, now));
        assert!(!office.promise(epoch(2, 2), None, &nodes(&[2, 3]), now), "a higher one is promised");
        assert!(!office.promise(epoch(2, 4), None, &nodes(&[2, 3]), now), "its counter is promised");
        assert!(office.promise(epoch(3, 2), None, &nodes(&[2, 3]), now), "the aggregator is gone");
        assert!(office.bless(epoch(1, 1), now) && !office.bless(epoch(1, 3), now));
        assert_eq!(office.decide(&all, &scores(&[]), now, &mut rng()), Decision::Stand);
        let promised = office.promised();
        assert_eq!(office.stand(now), (epoch(4, 2), Some(epoch(1, 1))));
        office.withdraw(epoch(4, 2), promised, now, &mut rng());
        assert_eq!((office.promised(), office.stand(now).0), (promised, epoch(5, 2)));
    }

    #[test]
    fn who_was_asked_to_take_over_tries_again_for_a_while() {
        let (begin, all) = (Instant::now(), nodes(&[1, 2, 3]));
        let mut office = Office::new(NodeId(2), (3, true), INTERVAL, Promises::default(), begin);
        office.follow(epoch(1, 1));
        assert!(office.bless(epoch(1, 1), begin));
        let end = begin + INTERVAL * BLESSING_INTERVALS;
        let (mut now, mut candidacies) = (begin, 0);
        while now < end {
            match office.decide(&all, &scores(&[]), now, &mut rng()) {
                Decision::Stand => {
                    let before = office.promised();
                    let (stood_for, blessing) = office.stand(now);
                    assert_eq!(blessing, Some(epoch(1, 1)));
                    office.withdraw(stood_for, before, now, &mut rng());
                    candidacies += 1;
                }
                Decision::WaitUntil(until) => now = until,
                Decision::Rest => panic!("gave up after {candidacies} candidacies"),
            }
        }
        assert!((4..=16).contains(&candidacies), "{candidacies}");
        assert_eq!(office.decide(&all, &scores(&[]), end, &mut rng()), Decision::Rest);
        assert!(office.bless(epoch(1, 1), end));
        office.follow(epoch(2, 3));
        assert_eq!(office.decide(&all, &scores(&[]), end, &mut rng()), Decision::Rest);
    }

    #[test]
    fn nobody_stands_while_somebody_is_on_the_way_into_office() {
        let now = Instant::now();
        let fitness = scores(&[(1, 500), (2, 400), (3, 300)]);
        let (known, unknown) = (nodes(&[1, 2, 3]), nodes(&[1, 2, 3, 4]));
        let mut office = Office::new(NodeId(1), (5, true), INTERVAL, Promises::default(), now);
        assert!(office.promise(epoch(1, 2), None, &known, now));
        // While nodes appear, it is not certain at times who is fit.
        let soon = now + INTERVAL;
        assert_ne!(office.decide(&known, &fitness, soon, &mut rng()), Decision::Stand);
        assert_ne!(office.decide(&unknown, &fitness, soon, &mut rng()), Decision::Stand);
        let Decision::WaitUntil(turn) = office.decide(&known, &fitness, soon, &mut rng()) else {
            panic!("gives it time")
        };
        assert!(turn >= now + INTERVAL * START_INTERVALS);
        assert_eq!(office.decide(&known, &fitness, turn, &mut rng()), Decision::Stand);
        assert_eq!(office.stand(turn).0, epoch(2, 1));
        office.gives_way(epoch(2, 3), None, turn);
        office.withdraw(epoch(2, 1), epoch(1, 2), turn, &mut rng());
        let Decision::WaitUntil(later) = office.decide(&known, &fitness, turn, &mut rng()) else {
            panic!("gives another one time")
        };
        assert!(later >= turn + INTERVAL * START_INTERVALS);
        office.follow(epoch(2, 3));
        let gone = nodes(&[1, 2, 4]);
        assert_eq!(
            office.decide(&gone, &fitness, soon, &mut rng()),
            Decision::Stand,
            "its failure is another matter"
        );
    }

    #[test]
    fn what_was_promised_in_an_earlier_life_holds() {
        let (now, all) = (Instant::now(), nodes(&[1, 2, 3]));
        let promises = Promises { promised: epoch(4, 3), counter: 6 };
        let mut office = Office::new(NodeId(1), (3, true), INTERVAL, promises, now);
        assert!(!office.promise(epoch(4, 2), None, &all, now));
        assert!(office.promise(epoch(5, 2), None, &all, now));
        assert_eq!(office.stand(now).0, epoch(7, 1), "no epoch is begun twice");
    }

    #[test]
    fn a_later_epoch_is_followed_and_an_earlier_one_is_not() {
        let now = Instant::now();
        let mut office = Office::new(NodeId(1), (3, true), INTERVAL, Promises::default(), now);
        assert_eq!(office.follow(epoch(1, 1)), Followed::Now { before: None });
        assert_eq!(office.follow(epoch(2, 3)), Followed::Now { before: Some(epoch(1, 1)) });
        assert_eq!(office.follow(epoch(1, 2)), Followed::NotNewer);
        assert_eq!(office.promised(), epoch(2, 3));
        assert_eq!(office.stand(now).0, epoch(3, 1));
    }

    #[test]
    fn a_promise_to_a_candidate_that_lost_fences_nothing_where_a_counter_names_one_aggregator() {
        let (now, all) = (Instant::now(), nodes(&[1, 2, 3]));
        for (linear, fence) in [(true, None), (false, Some(epoch(1, 3)))] {
            let mut office = Office::new(NodeId(1), (3, linear), INTERVAL, Promises::default(), now);
            assert!(office.promise(epoch(1, 3), None, &all, now));
            assert_eq!(office.fences(epoch(1, 2)), fence);
            office.follow(epoch(1, 2));
            assert_eq!(office.fences(epoch(1, 2)), fence);
            assert!(!office.promise(epoch(1, 3), None, &nodes(&[1, 3]), now));
            assert!(office.promise(epoch(2, 3), None, &nodes(&[1, 3]), now));
            assert_eq!(office.fences(epoch(1, 2)), Some(epoch(2, 3)));
        }
    }

    #[test]
    fn a_majority_of_all_or_of_those_who_answered() {
        let office =
            |linear| Office::new(NodeId(1), (5, linear), INTERVAL, Promises::default(), Instant::now());
        assert!(office(true).suffices(2, 2) && !office(true).suffices(1, 1));
        let weak = office(false);
        assert!(weak.suffices(0, 0) && !weak.suffices(1, 3) && weak.suffices(2, 3));
    }

    #[test]
    fn an_aggregator_whose_successor_never_came_stands_again() {
        let (now, all) = (Instant::now(), nodes(&[1, 2, 3]));
        let mut office = Office::new(NodeId(1), (3, true), INTERVAL, Promises::default(), now);
        office.follow(epoch(1, 1));
        assert!(office.promise(epoch(2, 3), Some(epoch(1, 1)), &all, now));
        let Decision::WaitUntil(turn) = office.decide(&all, &scores(&[]), now, &mut rng()) else {
            panic!("gives it time")
        };
        assert_eq!(office.decide(&all, &scores(&[]), turn, &mut rng()), Decision::Stand);
        assert_eq!(office.stand(now), (epoch(3, 1), Some(epoch(1, 1))));
    }
}
