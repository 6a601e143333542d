//! Tests of the timeline of faults and members.

use replication::Digest;

use super::*;

fn epoch(counter: u64, node: u64) -> Epoch {
    Epoch { counter, node: NodeId(node) }
}

fn started(epoch: Epoch, round: u64) -> NodeEvent {
    NodeEvent::Federated(Event::RoundStarted { epoch, round, workers: 3 })
}

fn fit(epoch: Epoch, round: u64) -> NodeEvent {
    NodeEvent::Federated(Event::FitStarted { epoch, round })
}

fn finished(epoch: Epoch, round: u64, round_ns: u64) -> NodeEvent {
    NodeEvent::Federated(Event::RoundFinished {
        epoch,
        round,
        round_ns,
        fit_ns: 0,
        fit_workers: 3,
        fit_examples: 1,
        train_loss: None,
        evaluate_workers: 3,
        evaluate_examples: 1,
        loss: None,
        accuracy: None,
        digest: Digest::of(b""),
    })
}

/// Among five nodes.
fn timeline(faults: &[&str]) -> Timeline {
    seeded(faults, 7)
}

fn seeded(faults: &[&str], seed: u64) -> Timeline {
    let faults: Vec<Fault> = faults.iter().map(|text| text.parse().unwrap()).collect();
    Timeline::new(&faults, &[], &[1, 2, 3, 4, 5].map(NodeId), &[], seed)
}

/// Nodes struck, one after the other; 0: missed.
fn struck(actions: &[Action]) -> Vec<u64> {
    let nodes = |action: &Action| match action {
        Action::Strike { nodes, .. } => nodes.iter().map(|node| node.0).collect(),
        Action::Missed { .. } => vec![0],
        Action::Heal { .. } | Action::Join { .. } | Action::Leave { .. } => panic!("{action:?}"),
    };
    actions.iter().flat_map(nodes).collect()
}

/// The first round of node 1, in its middle at 100 ns.
fn begin(faults: &mut Timeline) -> Vec<Action> {
    faults.observe(90, NodeId(1), &started(epoch(1, 1), 1));
    faults.observe(100, NodeId(2), &fit(epoch(1, 1), 1))
}

#[test]
fn a_fault_strikes_in_the_middle_of_its_round_in_either_order_of_events() {
    let e = epoch(1, 1);
    let mut faults = timeline(&["kill@aggregator,round:2"]);
    assert!(faults.observe(0, NodeId(1), &started(e, 1)).is_empty());
    assert!(faults.observe(0, NodeId(2), &fit(e, 1)).is_empty());
    assert!(faults.observe(0, NodeId(2), &fit(e, 2)).is_empty(), "the round was not seen to start");
    assert_eq!(struck(&faults.observe(0, NodeId(1), &started(e, 2))), [1]);
    assert!(faults.remaining().is_empty());
    assert!(faults.observe(0, NodeId(3), &fit(e, 2)).is_empty());
}

#[test]
fn the_second_aggregator_is_killed_in_its_own_round() {
    let mut faults = timeline(&["kill@aggregator,round:1", "kill@aggregator,round:1"]);
    faults.observe(0, NodeId(1), &started(epoch(1, 1), 1));
    assert_eq!(struck(&faults.observe(0, NodeId(2), &fit(epoch(1, 1), 1))), [1]);
    assert!(
        faults.observe(0, NodeId(3), &fit(epoch(1, 1), 1)).is_empty(),
        "late news of the dead aggregator"
    );
    faults.observe(0, NodeId(3), &started(epoch(2, 3), 2));
    assert_eq!(struck(&faults.observe(0, NodeId(2), &fit(epoch(2, 3), 2))), [3]);
}

#[test]
fn several_nodes_can_be_killed_in_one_round_and_a_dead_one_is_missed() {
    let e = epoch(1, 1);
    let mut faults = timeline(&["kill@worker,round:1", "kill@node:2,round:1", "kill@node:3,round:1"]);
    faults.observe(0, NodeId(1), &started(e, 1));
    assert_eq!(struck(&faults.observe(0, NodeId(2), &fit(e, 1))), [2], "only the fault that has its worker");
    assert_eq!(struck(&faults.observe(0, NodeId(4), &fit(e, 1))), [0, 3]);
}

#[test]
fn a_fault_can_wait_for_a_voter_to_be_replaced_since_the_one_before() {
    let voters = |joined: Option<u64>| {
        let voters = vec![NodeId(2)];
        NodeEvent::Store(StoreEvent::VotersChanged { lost: None, joined: joined.map(NodeId), voters })
    };
    let mut faults = timeline(&["kill@aggregator,round:1", "kill@aggregator,voters-changed"]);
    assert!(faults.observe(0, NodeId(1), &voters(Some(5))).is_empty(), "before the first fault");
    faults.observe(0, NodeId(1), &started(epoch(1, 1), 1));
    assert_eq!(struck(&faults.observe(0, NodeId(2), &fit(epoch(1, 1), 1))), [1]);
    faults.observe(0, NodeId(3), &started(epoch(2, 3), 1));
    assert!(faults.observe(0, NodeId(2), &fit(epoch(2, 3), 1)).is_empty());
    assert!(faults.observe(0, NodeId(3), &voters(None)).is_empty(), "founding is no replacement");
    assert_eq!(struck(&faults.observe(0, NodeId(3), &voters(Some(4)))), [3]);
}

#[test]
fn after_its_end_a_round_has_no_middle() {
    let e = epoch(1, 1);
    let mut faults = timeline(&["kill@node:4,round:1", "kill@worker,round:1"]);
    faults.died(NodeId(2));
    faults.observe(0, NodeId(1), &started(e, 1));
    assert!(faults.observe(0, NodeId(2), &fit(e, 1)).is_empty(), "a dead node's late event");
    assert_eq!(faults.remaining().len(), 2);
}

#[test]
fn what_does_not_kill_ends_in_time_or_with_the_job() {
    let mut faults = timeline(&["stop@aggregator,round:1,for:50ms", "partition@worker,round:2"]);
    assert_eq!(struck(&begin(&mut faults)), [1]);
    let ends_ns = 100 + 50_000_000;
    assert_eq!(faults.next_ns(), Some(ends_ns));
    assert!(faults.advance(ends_ns - 1).is_empty());
    let healed = faults.advance(ends_ns);
    assert!(
        matches!(&healed[..], [Action::Heal { fault, nodes }]
            if fault.kind == Kind::Stop && *nodes == [NodeId(1)]),
        "{healed:?}"
    );
    assert_eq!((faults.next_ns(), faults.advance(ends_ns)), (None, Vec::new()));
    // Its round has ended with it; it may lead another one.
    faults.observe(ends_ns, NodeId(1), &started(epoch(3, 1), 2));
    assert_eq!(struck(&faults.observe(ends_ns, NodeId(3), &fit(epoch(3, 1), 2))), [3]);
    assert_eq!(faults.next_ns(), None);
    assert!(matches!(&faults.heal()[..], [Action::Heal { nodes, .. }] if *nodes == [NodeId(3)]));
    assert!(faults.heal().is_empty());
}

#[test]
fn those_that_are_struck_are_not_struck_again() {
    let mut faults = timeline(&["stop@aggregator,round:1", "kill@aggregator,round:1", "kill@node:1,round:1"]);
    assert_eq!(struck(&begin(&mut faults)), [1]);
    assert!(faults.observe(101, NodeId(3), &fit(epoch(1, 1), 1)).is_empty(), "late news");
    faults.observe(102, NodeId(2), &started(epoch(2, 2), 1));
    assert_eq!(struck(&faults.observe(103, NodeId(3), &fit(epoch(2, 2), 1))), [2]);
    faults.observe(104, NodeId(3), &started(epoch(3, 3), 1));
    assert_eq!(struck(&faults.observe(105, NodeId(4), &fit(epoch(3, 3), 1))), [0], "node 1 is stopped");
}

#[test]
fn a_partition_cuts_both_ways_and_losses_add_up() {
    let shares = |faults: &Timeline, from: u64| -> Vec<(u64, u64)> {
        let percent = |loss: &LinkLoss| (loss.to.0, (loss.share * 100.0).round() as u64);
        faults.impairment(NodeId(from)).losses.iter().map(percent).collect()
    };
    let mut faults = timeline(&["loss:50@node:2,round:1", "loss:20@node:3,round:1"]);
    assert_eq!(shares(&faults, 2), []);
    begin(&mut faults);
    assert_eq!(shares(&faults, 1), [(2, 50), (3, 20)]);
    assert_eq!(shares(&faults, 2), [(1, 50), (3, 60), (4, 50), (5, 50)]);
    let mut faults = timeline(&["partition@aggregator,round:1,for:1ms"]);
    begin(&mut faults);
    assert_eq!(shares(&faults, 1), [(2, 100), (3, 100), (4, 100), (5, 100)]);
    assert_eq!(shares(&faults, 4), [(1, 100)]);
    faults.advance(2_000_000);
    assert_eq!((shares(&faults, 1), shares(&faults, 4)), (vec![], vec![]));
}

#[test]
fn an_omission_goes_one_way_and_corruption_is_the_sender_s() {
    let mut faults =
        timeline(&["omit-send@node:2,round:1", "omit-receive@node:3,round:1", "corrupt:25@node:4,round:1"]);
    begin(&mut faults);
    // Node 2 is not well any more: the next fault waits for another worker.
    faults.observe(101, NodeId(5), &fit(epoch(1, 1), 1));
    let losses = |from: u64| -> Vec<(u64, f64)> {
        faults.impairment(NodeId(from)).losses.iter().map(|loss| (loss.to.0, loss.share)).collect()
    };
    assert_eq!(losses(1), [(3, 1.0)]);
    assert_eq!(losses(2), [(1, 1.0), (3, 1.0), (4, 1.0), (5, 1.0)]);
    assert_eq!(losses(3), []);
    let corrupt = |from| (faults.impairment(NodeId(from)).corrupt * 100.0).round() as u64;
    assert_eq!((corrupt(3), corrupt(4)), (0, 25));
    assert_eq!(faults.well(), [1, 4, 5].map(NodeId));
}

#[test]
fn what_a_slow_node_sends_leaves_later_until_it_is_over() {
    let delays = |faults: &Timeline| [1, 2].map(|node| faults.impairment(NodeId(node)).delay_ns);
    let mut faults = timeline(&["delay:40ms@aggregator,round:1,for:1ms", "delay:2ms@node:1,round:1"]);
    assert_eq!(delays(&faults), [0, 0]);
    begin(&mut faults);
    assert_eq!(delays(&faults), [42_000_000, 0]);
    faults.advance(2_000_000);
    assert_eq!(delays(&faults), [2_000_000, 0]);
}

#[test]
fn sides_have_the_size_that_their_name_says_and_the_aggregator() {
    for seed in 0..20 {
        for (who, size) in [("majority", 3), ("minority", 2)] {
            let mut faults = seeded(&[&format!("partition@{who},round:1"), "kill@aggregator,round:1"], seed);
            let actions = begin(&mut faults);
            let Action::Strike { nodes, .. } = &actions[0] else { panic!("{actions:?}") };
            assert_eq!((nodes.len(), nodes.contains(&NodeId(1))), (size, true), "{actions:?}");
            // An aggregator with a majority goes on, so that it can be killed next; one without is as good as gone.
            let goes_on = faults.motion_of(epoch(1, 1), 2).is_some() || actions.len() == 2;
            assert_eq!(goes_on, who == "majority", "{actions:?}");
        }
    }
}

#[test]
fn random_nodes_are_the_seed_s_choice_among_the_well() {
    let pick = |seed| struck(&begin(&mut seeded(&["kill@node:3,round:1", "kill@random,round:1"], seed)));
    let picked: BTreeSet<u64> = (0..100).map(|seed| pick(seed)[1]).collect();
    assert_eq!(picked, BTreeSet::from([1, 2, 4, 5]));
    assert_eq!(pick(5), pick(5));
}

#[test]
fn members_come_and_go_at_the_moments_of_faults_and_can_be_struck_while_they_are_there() {
    let changes = ["join@round:1", "join@round:2", "leave@aggregator,round:2"];
    let changes = changes.map(|text| text.parse().unwrap());
    let faults = ["kill@node:6,round:1", "kill@node:1,round:3"].map(|text| text.parse().unwrap());
    let (nodes, newcomers) = ([1, 2, 3].map(NodeId), [6, 7].map(NodeId));
    let mut timeline = Timeline::new(&faults, &changes, &nodes, &newcomers, 7);
    // A fault does not find who is not there yet.
    let first = begin(&mut timeline);
    assert!(matches!(&first[..], [Action::Missed { .. }, Action::Join { node: NodeId(6) }]), "{first:?}");
    timeline.observe(0, NodeId(1), &finished(epoch(1, 1), 1, 5));
    timeline.observe(0, NodeId(1), &started(epoch(1, 1), 2));
    let second = timeline.observe(0, NodeId(6), &fit(epoch(1, 1), 2));
    let expected = [Action::Join { node: NodeId(7) }, Action::Leave { node: NodeId(1) }];
    assert_eq!(second, expected);
    assert_eq!(timeline.well(), [2, 3, 6, 7].map(NodeId));
    // Who has left aggregates no more, and nothing strikes it.
    timeline.observe(0, NodeId(1), &started(epoch(1, 1), 3));
    assert!(timeline.observe(0, NodeId(6), &fit(epoch(1, 1), 3)).is_empty());
    timeline.observe(0, NodeId(2), &started(epoch(2, 2), 3));
    assert_eq!(struck(&timeline.observe(0, NodeId(6), &fit(epoch(2, 2), 3))), [0]);
    timeline.died(NodeId(3));
    timeline.replaced(NodeId(3), NodeId(8));
    assert_eq!(timeline.well(), [2, 6, 7, 8].map(NodeId));
    assert_eq!(timeline.remaining(), []);
}

#[test]
fn a_random_moment_is_a_share_of_the_round_before() {
    let moment = |seed| {
        let mut faults = seeded(&["kill@aggregator,random:2"], seed);
        let e = epoch(1, 1);
        begin(&mut faults);
        faults.observe(1000, NodeId(1), &finished(e, 1, 900_000));
        assert_eq!(faults.next_ns(), None);
        assert!(faults.observe(1100, NodeId(1), &started(e, 2)).is_empty());
        let drawn_ns = faults.next_ns().unwrap();
        assert!(faults.advance(drawn_ns - 1).is_empty());
        assert_eq!(struck(&faults.advance(drawn_ns)), [1]);
        drawn_ns
    };
    let moments: Vec<u64> = (0..200).map(moment).collect();
    assert!(moments.iter().all(|moment| (1100..901_100).contains(moment)), "{moments:?}");
    for third in 0..3 {
        let span = 1100 + third * 300_000..1100 + (third + 1) * 300_000;
        let count = moments.iter().filter(|moment| span.contains(*moment)).count();
        assert!((40..100).contains(&count), "{third}: {count}");
    }
    assert_eq!(moment(3), moments[3]);
}

#[test]
fn a_moment_between_two_rounds_waits_for_the_next_one() {
    let mut faults = timeline(&["kill@aggregator,random:2"]);
    let e = epoch(1, 1);
    begin(&mut faults);
    faults.observe(1000, NodeId(1), &finished(e, 1, 1_000_000));
    faults.observe(1100, NodeId(1), &started(e, 2));
    let drawn_ns = faults.next_ns().unwrap();
    faults.observe(1200, NodeId(1), &finished(e, 2, 50));
    assert_eq!(faults.next_ns(), None, "no busy waiting");
    assert!(faults.advance(drawn_ns + 1).is_empty());
    assert_eq!(struck(&faults.observe(drawn_ns + 2, NodeId(1), &started(e, 3))), [1]);
}
