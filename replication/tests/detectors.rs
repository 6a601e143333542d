//! Both failure detectors of gossip on the seeded network under virtual time: completeness, accuracy and detection time under loss
//! and pauses. The figures are printed (`--nocapture`); docs/FAILURES.md has them.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use replication::gossip::{Detector, GossipConfig};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::{AnyStore, Backend, DEFAULT_RETAINED, NodeId, Silent, Site, conformance, open};
use tokio::time::{Instant, sleep, sleep_until};

const NODES: u64 = 5;
/// Suspected after about 600 ms at first.
const INTERVAL_MS: u64 = 100;
const PHI_MILLI: u32 = 6000;
/// How often nodes are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// The node that is disturbed, and then crashes.
const SUBJECT: NodeId = NodeId(3);

/// What is done before the crash.
#[derive(Debug, Clone, Copy)]
enum Disturbed {
    /// Packets are lost.
    Loss(f64),
    /// The subject stands still again and again, for this long every ten seconds.
    Pauses(Duration),
}

/// What a detector did.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    /// Times that a node took a living one for dead, while disturbed, in the first and in the second half.
    false_suspicions: (u32, u32),
    /// From the crash until a node suspected it: the first and the last.
    detected: (Duration, Duration),
}

fn config(detector: Detector, seed: u64) -> GossipConfig {
    GossipConfig {
        nodes: (1..=NODES).map(NodeId).collect(),
        holders: 3,
        interval_ms: INTERVAL_MS,
        fan_out: 2,
        phi_milli: PHI_MILLI,
        detector,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed,
    }
}

/// Whom each node takes for alive.
type Views = BTreeMap<NodeId, BTreeSet<NodeId>>;

fn views(stores: &BTreeMap<NodeId, AnyStore>) -> Views {
    stores.iter().map(|(node, store)| (*node, store.candidates().into_iter().collect())).collect()
}

/// Suspicions that begin between two looks.
fn begun(before: &Views, now: &Views) -> u32 {
    before.iter().map(|(node, alive)| alive.difference(&now[node]).count() as u32).sum()
}

fn measure(detector: Detector, disturbed: Disturbed, seed: u64) -> Measured {
    conformance::simulate(seed, watch(detector, disturbed, seed))
}

async fn watch(detector: Detector, disturbed: Disturbed, seed: u64) -> Measured {
    let link =
        LinkSpec { delay: Duration::from_millis(5), jitter: Duration::from_millis(5), ..LinkSpec::default() };
    let network = ChannelNetwork::new(seed, link, (1..=NODES).map(NodeId));
    let mut stores = BTreeMap::new();
    for node in (1..=NODES).map(NodeId) {
        let site = Site::new(network.join(node), Arc::new(Silent));
        stores.insert(node, open(Backend::Gossip(config(detector, seed)), site).await.unwrap());
    }
    sleep(Duration::from_secs(5)).await;
    let mut before = views(&stores);
    assert!(before.values().all(|alive| alive.len() as u64 == NODES - 1), "{before:?}");

    let mut measured = Measured::default();
    for round in 0..20 {
        let begin = Instant::now();
        match disturbed {
            Disturbed::Loss(loss) => network.set_loss(loss),
            Disturbed::Pauses(_) => network.pause(SUBJECT),
        }
        while Instant::now() < begin + Duration::from_secs(10) {
            if let Disturbed::Pauses(lasts) = disturbed
                && begin.elapsed() >= lasts
            {
                network.resume(SUBJECT);
            }
            sleep(LOOK).await;
            let now = views(&stores);
            let half =
                if round < 10 { &mut measured.false_suspicions.0 } else { &mut measured.false_suspicions.1 };
            *half += begun(&before, &now);
            before = now;
        }
        let all = before.values().all(|alive| alive.len() as u64 == NODES - 1);
        assert!(
            matches!(disturbed, Disturbed::Loss(_)) || all,
            "whoever goes on is trusted again: {before:?}"
        );
    }

    network.crash(SUBJECT);
    stores.remove(&SUBJECT);
    let crashed = Instant::now();
    let mut when = BTreeMap::new();
    while when.len() < stores.len() {
        assert!(crashed.elapsed() < Duration::from_secs(60), "complete: every node suspects whoever crashed");
        sleep(LOOK).await;
        for (node, alive) in views(&stores) {
            if !alive.contains(&SUBJECT) {
                when.entry(node).or_insert_with(|| crashed.elapsed());
            }
        }
    }
    measured.detected = (*when.values().min().unwrap(), *when.values().max().unwrap());
    // It stays suspected.
    sleep_until(crashed + Duration::from_secs(90)).await;
    assert!(views(&stores).values().all(|alive| !alive.contains(&SUBJECT)), "suspected for good");
    for store in stores.values() {
        store.close().await;
    }
    println!("{detector:?}, {disturbed:?}, seed {seed}: {measured:?}");
    measured
}

#[test]
fn timeouts_that_grow_stop_suspecting_a_node_that_pauses() {
    let pauses = Disturbed::Pauses(Duration::from_millis(1500));
    for seed in 1..=2 {
        let phi = measure(Detector::Phi, pauses, seed);
        let perfect = measure(Detector::EventuallyPerfect, pauses, seed);
        // Four others suspect the node that pauses, and it suspects the four: each time anew.
        assert!(phi.false_suspicions.0 >= 40 && phi.false_suspicions.1 >= 40, "{phi:?}");
        assert!(
            perfect.false_suspicions.0 > 0,
            "the first pauses are longer than the first timeout: {perfect:?}"
        );
        assert_eq!(perfect.false_suspicions.1, 0, "accurate in the end: {perfect:?}");
        // Accuracy is paid for with detection time.
        assert!(phi.detected.1 < Duration::from_millis(1500), "{phi:?}");
        assert!(perfect.detected.0 > phi.detected.1, "{perfect:?} {phi:?}");
        assert!(perfect.detected.1 < Duration::from_secs(5), "{perfect:?}");
    }
}

#[test]
fn a_quiet_network_is_judged_alike() {
    for detector in [Detector::Phi, Detector::EventuallyPerfect] {
        let quiet = measure(detector, Disturbed::Loss(0.0), 3);
        assert_eq!(quiet.false_suspicions, (0, 0), "{detector:?}");
        let (first, last) = quiet.detected;
        assert!(
            first >= Duration::from_millis(300) && last < Duration::from_millis(1500),
            "{detector:?} {quiet:?}"
        );
    }
}

#[test]
fn loss_alone_makes_nobody_suspected_who_lives() {
    let loss = Disturbed::Loss(0.5);
    for detector in [Detector::Phi, Detector::EventuallyPerfect] {
        // What is lost is sent again before a timeout is over.
        let lossy = measure(detector, loss, 4);
        assert_eq!(lossy.false_suspicions, (0, 0), "{detector:?}");
        assert!(lossy.detected.1 < Duration::from_secs(2), "{detector:?} {lossy:?}");
    }
}
