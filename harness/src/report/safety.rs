//! Safety scored from recorded rows: acknowledged checkpoints lost or superseded, rounds trained twice, two aggregators at the
//! same time. What the rows cannot tell is unknown, not 0.

use std::collections::{BTreeMap, BTreeSet};

use super::rows::{Checkpoint, phase_rank};
use super::study::Trial;

/// A count over trials, and of how many it could not be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    /// The sum over trials that tell.
    pub sum: u64,
    /// Trials that tell.
    pub known: usize,
    /// Trials that do not.
    pub unknown: usize,
}

impl Score {
    fn of(values: impl Iterator<Item = Option<u64>>) -> Self {
        values.fold(Self::default(), |score, value| match value {
            Some(value) => Self { sum: score.sum + value, known: score.known + 1, ..score },
            None => Self { unknown: score.unknown + 1, ..score },
        })
    }

    /// In words, the sum said by `show`.
    #[must_use]
    pub fn words(&self, show: impl Fn(u64) -> String) -> String {
        match (self.known, self.unknown) {
            (0, _) => "unknown".into(),
            (_, 0) => show(self.sum),
            (_, unknown) => format!("{} ({unknown} unknown)", show(self.sum)),
        }
    }
}

/// What is scored of some trials.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Safety {
    /// Trials.
    pub trials: usize,
    /// States that were acknowledged.
    pub acknowledged: u64,
    /// Of these, such that no node that lived to the end had them or newer ones.
    pub lost: Score,
    /// Of these, such that a later epoch had another one acknowledged in their place.
    pub superseded: Score,
    /// Rounds whose training was finished in more than one epoch.
    pub trained_twice: Score,
    /// Time in which an older aggregator still had writes acknowledged, or had not yielded to its rival, in ns.
    pub two_aggregators_ns: Score,
}

impl Safety {
    /// The score of `trials`.
    #[must_use]
    pub fn of(trials: &[&Trial]) -> Self {
        Self {
            trials: trials.len(),
            acknowledged: trials.iter().map(|trial| states(trial).count() as u64).sum(),
            lost: Score::of(trials.iter().map(|trial| lost(trial))),
            superseded: Score::of(trials.iter().map(|trial| superseded(trial))),
            trained_twice: Score::of(trials.iter().map(|trial| trained_twice(trial))),
            two_aggregators_ns: Score::of(trials.iter().map(|trial| two_aggregators_ns(trial))),
        }
    }
}

/// Counter and node of an epoch.
type Epoch = (u64, u64);

fn states(trial: &Trial) -> impl Iterator<Item = &Checkpoint> {
    trial.checkpoints.iter().filter(|row| row.is_acknowledged_state())
}

/// Unknown if no node that ended in order said what it has.
fn lost(trial: &Trial) -> Option<u64> {
    let ended = trial.nodes.iter().filter(|node| node.state == "exit code 0");
    let held = ended.filter_map(|node| Some((node.latest_round?, phase_rank(node.latest_phase.as_deref()?))));
    let held = held.max()?;
    let positions: BTreeSet<(u64, u8)> =
        states(trial).map(Checkpoint::position).filter(|position| *position > held).collect();
    Some(positions.len() as u64)
}

fn superseded(trial: &Trial) -> Option<u64> {
    let mut by_position: BTreeMap<(u64, u8), BTreeMap<Epoch, &str>> = BTreeMap::new();
    for row in states(trial) {
        let epoch = (row.epoch_counter, row.epoch_node);
        by_position.entry(row.position()).or_default().insert(epoch, row.digest.as_deref()?);
    }
    let superseded = by_position.values().map(|epochs| {
        let last = epochs.values().next_back();
        epochs.values().filter(|digest| Some(*digest) != last).count() as u64
    });
    Some(superseded.sum())
}

/// Unknown without a single row of a round.
fn trained_twice(trial: &Trial) -> Option<u64> {
    if trial.rounds.is_empty() {
        return None;
    }
    let mut epochs: BTreeMap<u64, BTreeSet<Epoch>> = BTreeMap::new();
    for row in trial.rounds.iter().filter(|row| row.fit_workers > 0) {
        epochs.entry(row.round).or_default().insert((row.epoch_counter, row.epoch_node));
    }
    for row in states(trial).filter(|row| row.phase == "aggregate_fit") {
        // A write that is repeated after a take-over carries the same bytes; other bytes come of other training.
        let same = |other: &&Checkpoint| other.position() == row.position() && other.digest == row.digest;
        if states(trial).find(same).is_some_and(|first| first == row) {
            epochs.entry(row.round).or_default().insert((row.epoch_counter, row.epoch_node));
        }
    }
    Some(epochs.values().filter(|epochs| epochs.len() > 1).count() as u64)
}

/// An epoch as `counter@node`.
fn epoch(text: &str) -> Option<Epoch> {
    let (counter, node) = text.split_once('@')?;
    Some((counter.parse().ok()?, node.parse().ok()?))
}

/// Unknown without events, or if two aggregators met and the rows do not tell when the later one began.
fn two_aggregators_ns(trial: &Trial) -> Option<u64> {
    let began = first_signs(trial);
    let mut until: BTreeMap<(Epoch, Epoch), u64> = BTreeMap::new();
    for event in trial.events.as_ref()?.iter().filter(|event| event.event == "rival_aggregators") {
        let field = |name: &str| event.detail.split(' ').find_map(|word| epoch(word.strip_prefix(name)?));
        let (stays, yields) = (field("stays=")?, field("yields=")?);
        let pair = (stays.min(yields), stays.max(yields));
        // The one that yields is the one that knows when it did.
        let knows = event.node == yields.1;
        let end = until.entry(pair).or_insert(event.at_ns);
        *end = if knows { event.at_ns } else { *end };
    }
    for row in states(trial) {
        let old = (row.epoch_counter, row.epoch_node);
        for newer in began.range((std::ops::Bound::Excluded(old), std::ops::Bound::Unbounded)) {
            if row.at_ns > *newer.1 {
                let end = until.entry((old, *newer.0)).or_insert(row.at_ns);
                *end = row.at_ns.max(*end);
            }
        }
    }
    let spans = until.into_iter().map(|((_, newer), end)| Some(end.saturating_sub(*began.get(&newer)?)));
    spans.sum()
}

/// When each epoch was first told of: its election after a fault, or its first row.
fn first_signs(trial: &Trial) -> BTreeMap<Epoch, u64> {
    let elected = trial.failovers.iter().filter_map(|row| {
        Some(((row.to_epoch_counter, row.to_epoch_node), row.struck_at_ns + row.elected_ns?))
    });
    let written = states(trial)
        .map(|row| ((row.epoch_counter, row.epoch_node), row.at_ns - row.put_ns.unwrap_or(0).min(row.at_ns)));
    let finished = trial
        .rounds
        .iter()
        .map(|row| ((row.epoch_counter, row.epoch_node), row.at_ns - row.round_ns.min(row.at_ns)));
    let mut signs = BTreeMap::new();
    for (epoch, at_ns) in elected.chain(written).chain(finished) {
        let first = signs.entry(epoch).or_insert(at_ns);
        *first = at_ns.min(*first);
    }
    signs
}

#[cfg(test)]
mod tests {
    use super::super::rows::{Event, Failover, Node, Round};
    use super::*;

    fn put(round: u64, epoch: (u64, u64), digest: &str, at_ns: u64) -> Checkpoint {
        Checkpoint {
            round,
            epoch_counter: epoch.0,
            epoch_node: epoch.1,
            phase: "aggregate_fit".into(),
            slot: "global".into(),
            at_ns,
            outcome: "acknowledged".into(),
            digest: Some(digest.into()),
            put_ns: Some(1),
            ..Checkpoint::default()
        }
    }

    fn node(round: Option<u64>) -> Node {
        let latest_phase = round.map(|_| "aggregate_fit".into());
        Node { state: "exit code 0".into(), latest_round: round, latest_phase, ..Node::default() }
    }

    fn score(trial: &Trial) -> Safety {
        Safety::of(&[trial])
    }

    fn known(sum: u64) -> Score {
        Score { sum, known: 1, unknown: 0 }
    }

    #[test]
    fn a_trial_in_order_scores_nothing() {
        let checkpoints = vec![put(1, (1, 1), "a", 10), put(2, (2, 3), "b", 90)];
        let rounds = vec![Round {
            round: 1,
            epoch_counter: 1,
            epoch_node: 1,
            fit_workers: 2,
            at_ns: 20,
            round_ns: 15,
            ..Round::default()
        }];
        let trial = Trial {
            checkpoints,
            rounds,
            nodes: vec![node(Some(2))],
            events: Some(Vec::new()),
            ..Trial::default()
        };
        let safety = score(&trial);
        assert_eq!((safety.acknowledged, safety.lost, safety.superseded), (2, known(0), known(0)));
        assert_eq!((safety.trained_twice, safety.two_aggregators_ns), (known(0), known(0)));
    }

    #[test]
    fn what_no_survivor_has_is_lost_and_what_nobody_says_is_unknown() {
        let checkpoints = vec![put(1, (1, 1), "a", 10), put(2, (1, 1), "b", 20)];
        let mut trial = Trial { checkpoints, nodes: vec![node(Some(1)), node(None)], ..Trial::default() };
        assert_eq!(score(&trial).lost, known(1));
        trial.nodes = vec![node(None)];
        assert_eq!(score(&trial).lost, Score { sum: 0, known: 0, unknown: 1 });
        assert_eq!(score(&trial).lost.words(|sum| sum.to_string()), "unknown");
        assert_eq!(score(&trial).trained_twice.words(|sum| sum.to_string()), "unknown");
    }

    #[test]
    fn another_value_in_the_same_place_supersedes_and_was_trained_twice() {
        let checkpoints = vec![put(1, (1, 1), "a", 10), put(1, (2, 2), "b", 30), put(2, (2, 2), "c", 40)];
        let rounds = vec![Round {
            round: 1,
            epoch_counter: 2,
            epoch_node: 2,
            fit_workers: 2,
            at_ns: 35,
            round_ns: 10,
            ..Round::default()
        }];
        let trial = Trial { checkpoints, rounds, ..Trial::default() };
        assert_eq!((score(&trial).superseded, score(&trial).trained_twice), (known(1), known(1)));
    }

    #[test]
    fn the_same_value_again_supersedes_nothing() {
        let checkpoints = vec![put(1, (1, 1), "a", 10), put(1, (2, 2), "a", 30)];
        let rounds = vec![Round {
            round: 1,
            epoch_counter: 1,
            epoch_node: 1,
            fit_workers: 2,
            at_ns: 15,
            round_ns: 10,
            ..Round::default()
        }];
        let trial = Trial { checkpoints, rounds, ..Trial::default() };
        assert_eq!((score(&trial).superseded, score(&trial).trained_twice), (known(0), known(0)));
    }

    #[test]
    fn two_aggregators_are_timed_from_the_later_s_election_to_the_older_s_end() {
        let failovers = vec![Failover {
            struck_at_ns: 100,
            to_epoch_counter: 2,
            to_epoch_node: 2,
            elected_ns: Some(50),
            ..Failover::default()
        }];
        let event = |node, at_ns| Event {
            at_ns,
            node,
            event: "rival_aggregators".into(),
            detail: "stays=2@2 yields=1@1".into(),
        };
        let checkpoints = vec![put(1, (1, 1), "a", 10)];
        let mut trial = Trial {
            checkpoints,
            failovers,
            events: Some(vec![event(3, 400), event(1, 350), event(4, 500)]),
            ..Trial::default()
        };
        assert_eq!(score(&trial).two_aggregators_ns, known(200));
        trial.events = Some(Vec::new());
        assert_eq!(score(&trial).two_aggregators_ns, known(0));
        trial.checkpoints.push(put(2, (1, 1), "b", 190));
        assert_eq!(score(&trial).two_aggregators_ns, known(40));
        trial.checkpoints.clear();
        (trial.failovers, trial.events) = (Vec::new(), Some(vec![event(1, 350)]));
        assert_eq!(score(&trial).two_aggregators_ns.unknown, 1);
    }
}
