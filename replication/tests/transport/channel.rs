//! What only the channel network has: faults on demand, virtual time, repetition from a seed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use replication::NodeId;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::frame::HEADER_BYTES;
use replication::transport::{Class, Frame, Transport, TransportError};
use tokio::time::{Instant, timeout};

use crate::support::{Actor, ECHO, IDLE, MAX_BODY_BYTES, MEASURE, body, ids, within};

const MS: Duration = Duration::from_millis(1);

async fn network(seed: u64, link: LinkSpec, count: u64) -> (ChannelNetwork, Vec<Arc<dyn Transport>>) {
    let network = ChannelNetwork::with_limits(seed, link, ids(count), IDLE, MAX_BODY_BYTES);
    let nodes: Vec<_> = ids(count).into_iter().map(|id| network.join(id)).collect();
    for node in &nodes {
        node.serve(Arc::new(Actor::default()));
    }
    for node in &nodes {
        until_connected(node, &node.peers()).await;
    }
    (network, nodes)
}

async fn until_connected(node: &Arc<dyn Transport>, peers: &[NodeId]) {
    let mut connected = node.connected();
    let what = format!("node {} to be connected to {peers:?}", node.local());
    drop(within(&what, connected.wait_for(|connected| connected == peers)).await);
}

async fn ask(
    node: &Arc<dyn Transport>,
    to: u64,
    class: Class,
    bytes: usize,
) -> Result<Duration, TransportError> {
    let begin = Instant::now();
    node.request(NodeId(to), class, Frame::new(MEASURE, "").with_segment(body(bytes))).await?;
    Ok(begin.elapsed())
}

fn link() -> LinkSpec {
    LinkSpec { delay: 10 * MS, ..LinkSpec::default() }
}

/// Paused time advances in whole milliseconds.
fn about(measured: Duration, expected: Duration) {
    assert!(measured >= expected && measured <= expected + 4 * MS, "{measured:?} instead of {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn an_exchange_takes_two_delays() {
    let (_network, nodes) = network(1, link(), 2).await;
    about(ask(&nodes[0], 2, Class::Election, 0).await.unwrap(), 20 * MS);
}

#[tokio::test(start_paused = true)]
async fn jitter_stays_within_its_bounds() {
    let (_network, nodes) = network(1, LinkSpec { jitter: 20 * MS, ..link() }, 2).await;
    let mut times = Vec::new();
    for _ in 0..200 {
        times.push(ask(&nodes[0], 2, Class::Election, 0).await.unwrap());
    }
    let (least, most) = (*times.iter().min().unwrap(), *times.iter().max().unwrap());
    assert!(least >= 20 * MS && least < 35 * MS && most > 45 * MS && most <= 64 * MS, "{least:?} {most:?}");
}

#[tokio::test(start_paused = true)]
async fn bandwidth_is_shared_by_all_links_of_a_sender() {
    let link = LinkSpec { bandwidth_bytes_per_s: Some(1_000_000), ..link() };
    let (_network, nodes) = network(1, link, 4).await;
    let times = join_all((2..=4).map(|to| ask(&nodes[0], to, Class::Blob, 100_000))).await;
    for (place, time) in (1..).zip(times) {
        about(time.unwrap(), 100 * MS * place + 20 * MS);
    }
}

#[tokio::test(start_paused = true)]
async fn control_goes_before_bulk() {
    let link = LinkSpec { bandwidth_bytes_per_s: Some(1_000_000), ..link() };
    let (_network, nodes) = network(1, link, 2).await;
    let bulk = ask(&nodes[0], 2, Class::Blob, 1_000_000);
    let (bulk, control) = tokio::join!(bulk, ask(&nodes[0], 2, Class::Heartbeat, 0));
    about(bulk.unwrap(), 1020 * MS);
    about(control.unwrap(), 20 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_lost_packet_is_a_delay_and_no_error() {
    let (network, nodes) = network(3, link(), 2).await;
    network.set_loss(0.3);
    let mut late = 0;
    for _ in 0..100 {
        let time = ask(&nodes[0], 2, Class::Election, 0).await.unwrap();
        late += u32::from(time > 40 * MS);
    }
    assert!((20..80).contains(&late), "{late} of 100 were late");
    assert!(nodes[0].traffic().control.lost_packets > 0);
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_silence_until_the_idle_timeout() {
    let (network, nodes) = network(1, link(), 5).await;
    let (left, right) = (ids(2), ids(5)[2..].to_vec());
    network.partition(&[&left, &right]);
    let begin = Instant::now();
    assert_eq!(nodes[0].connected().borrow().len(), 4);
    ask(&nodes[0], 2, Class::Election, 0).await.unwrap();
    ask(&nodes[2], 5, Class::Election, 0).await.unwrap();
    let result = ask(&nodes[0], 3, Class::Election, 0).await;
    assert!(matches!(result, Err(TransportError::Interrupted { peer: NodeId(3), .. })), "{result:?}");
    about(begin.elapsed(), IDLE);
    until_connected(&nodes[0], &[NodeId(2)]).await;
    let result = ask(&nodes[0], 3, Class::Election, 0).await;
    assert!(matches!(result, Err(TransportError::Unreachable { peer: NodeId(3) })), "{result:?}");
    network.heal();
    let begin = Instant::now();
    until_connected(&nodes[0], &nodes[0].peers()).await;
    about(begin.elapsed(), 30 * MS);
    ask(&nodes[0], 3, Class::Election, 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_heals_in_time_delays_what_was_pending() {
    let (network, nodes) = network(1, link(), 3).await;
    network.cut(NodeId(1), NodeId(2));
    ask(&nodes[0], 3, Class::Digest, 0).await.unwrap();
    let mut request = Box::pin(ask(&nodes[0], 2, Class::Digest, 0));
    assert!(timeout(IDLE / 2, &mut request).await.is_err());
    network.heal();
    let took = within("the delayed answer", request).await.unwrap();
    assert!(took > IDLE / 2 && took < IDLE, "{took:?}");
    assert_eq!(nodes[0].connected().borrow().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_isolated_node_has_nobody() {
    let (network, nodes) = network(1, link(), 3).await;
    network.isolate(NodeId(2));
    until_connected(&nodes[1], &[]).await;
    until_connected(&nodes[0], &[NodeId(3)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_crashed_node_answers_nothing_and_its_transport_is_closed() {
    let (network, nodes) = network(1, link(), 2).await;
    network.crash(NodeId(2));
    assert!(matches!(ask(&nodes[1], 1, Class::Log, 0).await, Err(TransportError::Closed)));
    let begin = Instant::now();
    assert!(matches!(ask(&nodes[0], 2, Class::Log, 0).await, Err(TransportError::Interrupted { .. })));
    about(begin.elapsed(), IDLE);
    let again = network.restart(NodeId(2));
    again.serve(Arc::new(Actor::default()));
    until_connected(&nodes[0], &[NodeId(2)]).await;
    ask(&nodes[0], 2, Class::Log, 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_to_a_former_life_never_reaches_the_next() {
    let (network, nodes) = network(1, link(), 2).await;
    let mut request = Box::pin(nodes[0].request(NodeId(2), Class::Log, Frame::new(ECHO, "old")));
    assert!(timeout(MS, &mut request).await.is_err());
    network.crash(NodeId(2));
    let again = network.restart(NodeId(2));
    again.serve(Arc::new(Actor::default()));
    let result = within("the old request to end", request).await;
    assert!(matches!(result, Err(TransportError::Interrupted { .. })), "{result:?}");
    assert!(again.traffic().frames.iter().all(|(_, count)| count.received_frames == 0));
}

#[tokio::test(start_paused = true)]
async fn goodbyes_do_not_cross_a_cut() {
    let (network, nodes) = network(1, link(), 3).await;
    network.cut(NodeId(1), NodeId(2));
    nodes[1].close().await;
    assert_eq!(*nodes[2].connected().borrow(), [NodeId(1)]);
    assert_eq!(*nodes[0].connected().borrow(), [NodeId(2), NodeId(3)]);
    until_connected(&nodes[0], &[NodeId(3)]).await;
}

#[tokio::test(start_paused = true)]
async fn datagrams_are_estimated_from_frames() {
    let (_network, nodes) = network(1, link(), 2).await;
    ask(&nodes[0], 2, Class::Blob, 12_000).await.unwrap();
    let bulk = nodes[0].traffic().bulk;
    assert_eq!(bulk.sent_bytes, (12_000 + HEADER_BYTES) as u64);
    assert_eq!(bulk.sent_datagrams, 11);
}

/// Delivery times of a busy, lossy hour in milliseconds, with faults in it.
async fn history(seed: u64) -> Vec<(u64, u64, Option<u128>)> {
    let link = LinkSpec { jitter: 15 * MS, loss: 0.05, bandwidth_bytes_per_s: Some(5_000_000), ..link() };
    let (network, nodes) = network(seed, link, 4).await;
    let asks = (0..120_u64).map(|at| {
        let node = nodes[(at % 4) as usize].clone();
        async move {
            tokio::time::sleep(MS * (at * 37 % 900) as u32).await;
            let to = (at + 1 + at / 4 % 3) % 4 + 1;
            let class = Class::ALL[at as usize % Class::ALL.len()];
            let took = ask(&node, to, class, (at * 997 % 20_000) as usize).await;
            (at, to, took.ok().map(|took| took.as_nanos()))
        }
    });
    let faults = async {
        tokio::time::sleep(300 * MS).await;
        network.partition(&[&ids(2)]);
        tokio::time::sleep(200 * MS).await;
        network.heal();
        network.crash(NodeId(4));
    };
    tokio::join!(join_all(asks), faults).0
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let run = |seed| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(history(seed))
    };
    let first = run(7);
    assert!(first.iter().any(|(.., took)| took.is_some()) && first.iter().any(|(.., took)| took.is_none()));
    for _ in 0..5 {
        assert_eq!(run(7), first);
    }
    assert_ne!(run(8), first);
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_messages_and_looks_like_silence() {
    let (network, nodes) = network(1, link(), 3).await;
    network.pause(NodeId(2));
    let asking = tokio::spawn({
        let node = nodes[0].clone();
        async move { ask(&node, 2, Class::Election, 0).await }
    });
    tokio::time::sleep(IDLE / 2).await;
    assert_eq!(*nodes[0].connected().borrow(), [2, 3].map(NodeId));
    assert!(!asking.is_finished());
    // A partition that heals does not end a pause.
    network.isolate(NodeId(2));
    network.heal();
    tokio::time::sleep(100 * MS).await;
    assert!(!asking.is_finished());
    network.resume(NodeId(2));
    let took = within("the held request", asking).await.unwrap().unwrap();
    assert!(took >= IDLE / 2 + 100 * MS && took < IDLE, "{took:?}");

    network.pause(NodeId(3));
    until_connected(&nodes[0], &[NodeId(2)]).await;
    network.resume(NodeId(3));
    until_connected(&nodes[0], &[2, 3].map(NodeId)).await;
}

#[tokio::test(start_paused = true)]
async fn a_duplicated_request_is_handled_twice_and_answered_once() {
    let (_network, nodes) = network(1, LinkSpec { duplication: 0.5, ..link() }, 2).await;
    let counter = Arc::new(Counter::default());
    nodes[1].serve(counter.clone());
    for _ in 0..200 {
        ask(&nodes[0], 2, Class::Election, 0).await.unwrap();
    }
    tokio::time::sleep(100 * MS).await;
    let handled = counter.0.load(std::sync::atomic::Ordering::Relaxed);
    assert!((270..330).contains(&handled), "{handled} of 200 requests");
    let traffic = nodes[0].traffic();
    let received: u64 = traffic.frames.iter().map(|(_, count)| count.received_frames).sum();
    assert_eq!(received, 200);
}

/// Counts what it is asked.
#[derive(Default)]
struct Counter(std::sync::atomic::AtomicU64);

#[async_trait::async_trait]
impl replication::transport::Handler for Counter {
    async fn handle(&self, _from: NodeId, _request: Frame) -> Result<Frame, replication::transport::Refusal> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Frame::default())
    }
}
