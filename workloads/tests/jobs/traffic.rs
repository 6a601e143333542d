//! What crosses the two planes.

use replication::Payload;
use replication::transport::Class;
use workloads::federated::{Config, Profile, model};

use super::job::{Job, Node, assert_final_parameters, config, trains_for};

/// Parameters on the learning plane, in units of workers times size, over the rounds of a job.
async fn sent_per_round(resend: bool) -> f64 {
    let (workers, rounds) = (4, 5);
    let config = Config { resend, ..config(workers + 1, rounds, Profile::Once) };
    let job = Job::start(config, workers + 1, Payload::Inline, |_| trains_for(1)).await;
    job.completed().await;
    let sent = |node: &Node| {
        let traffic = node.learning.traffic();
        let bulk = traffic.frames.iter().find(|(class, _)| *class == Class::LearningBulk);
        bulk.map_or(0, |(_, count)| count.sent_bytes)
    };
    let bytes: u64 = job.nodes.values().map(sent).sum();
    bytes as f64 / (workers * rounds * model::ENCODED_BYTES as u64) as f64
}

#[tokio::test(start_paused = true)]
async fn parameters_are_sent_to_a_worker_once() {
    // Its update comes back, and the average goes out; the next round starts from that.
    let once = sent_per_round(false).await;
    assert!((2.0..2.01).contains(&once), "{once} W S a round");
    // As in Flower: with the fit instruction, with its result, with the evaluate instruction.
    let resent = sent_per_round(true).await;
    assert!((3.0..3.01).contains(&resent), "{resent} W S a round");
}

/// Bytes of writes on the replication plane, in units of voters beside the leader times size, over the rounds of a job.
async fn replicated_per_round(profile: Profile, reuse: bool) -> f64 {
    let (workers, rounds) = (4, 5);
    let config = Config { reuse, ..config(workers + 1, rounds, profile) };
    let job = Job::start(config, workers + 1, Payload::Digest, |_| trains_for(1)).await;
    job.completed().await;
    // Under profile prototype a global checkpoint is an index, whose digest is another one.
    if profile != Profile::Prototype {
        assert_final_parameters(&job, rounds).await;
    }
    let sent = |node: &Node| {
        let traffic = node.replication.traffic();
        // Heartbeats are as many as the job is long, whatever it writes.
        let writes = traffic.frames.iter().filter(|(class, _)| *class != Class::Heartbeat);
        writes.map(|(_, count)| count.sent_bytes).sum::<u64>()
    };
    let bytes: u64 = job.nodes.values().map(sent).sum();
    bytes as f64 / (workers * rounds * model::ENCODED_BYTES as u64) as f64
}

#[tokio::test(start_paused = true)]
async fn the_store_does_not_send_what_the_learning_plane_carries() {
    for profile in [Profile::Once, Profile::Paper] {
        let reused = replicated_per_round(profile, true).await;
        assert!(reused < 0.05, "{profile:?}: {reused} W S a round");
    }
}

#[tokio::test(start_paused = true)]
async fn without_reuse_the_same_bytes_cross_the_replication_plane_once() {
    // With profile paper the first round writes the initial model too.
    // What workers write under profile prototype is what they were sent.
    let profiles = [(Profile::Once, 5.0), (Profile::Paper, 6.0), (Profile::Prototype, 6.0)];
    for (profile, checkpoints) in profiles {
        let sent = replicated_per_round(profile, false).await * 5.0;
        assert!((checkpoints..checkpoints * 1.05).contains(&sent), "{profile:?}: {sent} W S in all");
    }
}
