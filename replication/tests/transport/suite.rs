//! What every transport promises, one property per test, over both.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use replication::NodeId;
use replication::transport::frame::{HEADER_BYTES, MAX_HEAD_BYTES};
use replication::transport::{Class, Frame, TransportError};
use tokio::time::{Instant, timeout};

use crate::support::{Actor, ECHO, HANG, IDLE, MAX_BODY_BYTES, MEASURE, Mesh, REFUSE, body, within};

macro_rules! over_both {
    ($($name:ident($nodes:expr)),* $(,)?) => {
        mod over_quic {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(super::Mesh::quic($nodes).await).await;
                }
            )*
        }
        mod over_channel {
            $(
                #[tokio::test(start_paused = true)]
                async fn $name() {
                    super::$name(super::Mesh::channel($nodes).await).await;
                }
            )*
        }
    };
}

over_both! {
    bodies_of_all_sizes_arrive_whole(2),
    several_segments_arrive_as_one(2),
    many_requests_at_once(4),
    a_refusal_carries_its_text(2),
    dropping_a_request_drops_its_handler(2),
    an_unknown_node_is_unreachable(2),
    requests_wait_for_the_handler(2),
    an_oversized_frame_is_not_sent(2),
    frames_are_counted_by_class(2),
    closing_is_noticed_at_once(3),
    closing_twice_is_the_same(2),
    a_killed_peer_interrupts_after_the_idle_timeout(3),
    a_killed_node_comes_back_lower_id(3),
    a_killed_node_comes_back_higher_id(3),
    a_restart_interrupts_what_was_pending(2),
}

const TWO: NodeId = NodeId(2);

async fn bodies_of_all_sizes_arrive_whole(mesh: Mesh) {
    for bytes in [0, 1024, 248_024, 20_000_000] {
        let request = Frame::new(ECHO, "head").with_segment(body(bytes));
        let answer = mesh.node(1).transport.request(TWO, Class::Blob, request);
        let answer = within("an echo", answer).await.unwrap();
        assert_eq!((answer.tag, &answer.head[..]), (ECHO, &b"head"[..]));
        assert!(answer.body.len() <= 1);
        assert_eq!(answer.into_body(), body(bytes));
    }
    mesh.close().await;
}

async fn several_segments_arrive_as_one(mesh: Mesh) {
    let whole = body(100_000);
    let request = [0..10, 10..10, 10..70_000, 70_000..100_000]
        .into_iter()
        .fold(Frame::new(ECHO, ""), |frame, range| frame.with_segment(whole.slice(range)));
    let answer = within("an echo", mesh.node(1).transport.request(TWO, Class::Log, request)).await.unwrap();
    assert_eq!(answer.body, [whole]);
    mesh.close().await;
}

async fn many_requests_at_once(mesh: Mesh) {
    let requests = (0..400_usize).map(|at| {
        let (from, to) = (at as u64 % 4 + 1, at as u64 / 4 % 4 + 1);
        let to = if from == to { to % 4 + 1 } else { to };
        let class = Class::ALL[at % Class::ALL.len()];
        let request = Frame::new(MEASURE, "").with_segment(body(at * 50));
        let transport = mesh.node(from).transport.clone();
        async move {
            let answer = transport.request(NodeId(to), class, request).await.unwrap();
            assert_eq!(answer.head, format!("{from} {}", at * 50));
        }
    });
    within("400 answers", join_all(requests)).await;
    mesh.close().await;
}

async fn a_refusal_carries_its_text(mesh: Mesh) {
    for class in [Class::Election, Class::Blob] {
        let result = mesh.node(1).transport.request(TWO, class, Frame::new(REFUSE, "not a voter: ü")).await;
        let Err(TransportError::Refused { peer, reason }) = result else { panic!("{result:?}") };
        assert_eq!((peer, &reason[..]), (TWO, "not a voter: ü"));
    }
    mesh.close().await;
}

async fn dropping_a_request_drops_its_handler(mesh: Mesh) {
    let hang = Frame::new(HANG, "").with_segment(body(100_000));
    let mut request = mesh.node(1).transport.request(TWO, Class::Blob, hang);
    let actor = &mesh.node(2).actor;
    tokio::select! {
        result = &mut request => panic!("{result:?}"),
        () = actor.until_hanging(1) => {}
    }
    drop(request);
    actor.until_hanging(0).await;
    mesh.close().await;
}

async fn an_unknown_node_is_unreachable(mesh: Mesh) {
    let result = mesh.node(1).transport.request(NodeId(99), Class::Election, Frame::new(ECHO, "")).await;
    assert!(matches!(result, Err(TransportError::Unreachable { peer: NodeId(99) })), "{result:?}");
    mesh.close().await;
}

async fn requests_wait_for_the_handler(mut mesh: Mesh) {
    let late = mesh.join_mute(3).await;
    let asker = mesh.node(1).transport.clone();
    let mut request = asker.request(NodeId(3), Class::Digest, Frame::new(ECHO, "late"));
    let early = timeout(Duration::from_millis(100), &mut request).await;
    assert!(early.is_err(), "answered without a handler: {early:?}");
    late.serve(Arc::new(Actor::default()));
    assert_eq!(within("the late answer", request).await.unwrap().head, "late");
    late.close().await;
    mesh.close().await;
}

async fn an_oversized_frame_is_not_sent(mesh: Mesh) {
    let segment = body(1024 * 1024);
    let large = (0..=MAX_BODY_BYTES / segment.len() as u64)
        .fold(Frame::new(ECHO, ""), |frame, _| frame.with_segment(segment.clone()));
    let long = Frame::new(ECHO, body(MAX_HEAD_BYTES as usize + 1));
    for (frame, limit) in [(large, MAX_BODY_BYTES), (long, MAX_HEAD_BYTES)] {
        let result = mesh.node(1).transport.request(TWO, Class::Blob, frame).await;
        let Err(TransportError::TooLarge { bytes, limit: named }) = result else { panic!("{result:?}") };
        assert!(bytes > limit && named == limit);
    }
    assert!(mesh.node(1).transport.traffic().frames.iter().all(|(_, count)| count.sent_frames == 0));
    mesh.close().await;
}

async fn frames_are_counted_by_class(mesh: Mesh) {
    let frame = Frame::new(ECHO, "abc").with_segment(body(5000));
    let bytes = (HEADER_BYTES + 3 + 5000) as u64;
    for class in [Class::Digest, Class::Digest, Class::Blob] {
        within("an echo", mesh.node(1).transport.request(TWO, class, frame.clone())).await.unwrap();
    }
    for id in [1, 2] {
        let traffic = mesh.node(id).transport.traffic();
        assert_eq!(traffic.frames.iter().map(|(class, _)| *class).collect::<Vec<_>>(), Class::ALL);
        for (class, count) in &traffic.frames {
            let frames = match class {
                Class::Digest => 2,
                Class::Blob => 1,
                _ => 0,
            };
            let expected = (frames, frames * bytes, frames, frames * bytes);
            let counted = (count.sent_frames, count.sent_bytes, count.received_frames, count.received_bytes);
            assert_eq!(counted, expected, "node {id} {class:?}");
        }
        for (lane, frames) in [(traffic.control, 2), (traffic.bulk, 1)] {
            assert!(lane.sent_bytes >= frames * bytes && lane.received_bytes >= frames * bytes, "{lane:?}");
            assert!(lane.sent_datagrams > 0 && lane.received_datagrams > 0, "{lane:?}");
        }
    }
    mesh.close().await;
}

async fn closing_is_noticed_at_once(mesh: Mesh) {
    let asker = mesh.node(1).transport.clone();
    let request = tokio::spawn(async move { asker.request(TWO, Class::Digest, Frame::new(HANG, "")).await });
    mesh.node(2).actor.until_hanging(1).await;
    let begin = Instant::now();
    mesh.node(2).transport.close().await;
    let result = within("the request to end", request).await.unwrap();
    assert!(matches!(result, Err(TransportError::Interrupted { peer: TWO, .. })), "{result:?}");
    mesh.until_connected(NodeId(1), &[NodeId(3)]).await;
    assert!(begin.elapsed() < IDLE, "{:?}", begin.elapsed());
    let result = mesh.node(1).transport.request(TWO, Class::Digest, Frame::new(ECHO, "")).await;
    assert!(matches!(result, Err(TransportError::Unreachable { peer: TWO })), "{result:?}");
    mesh.close().await;
}

async fn closing_twice_is_the_same(mesh: Mesh) {
    let transport = &mesh.node(1).transport;
    let pending = transport.request(TWO, Class::Digest, Frame::new(HANG, ""));
    let closing = async {
        mesh.node(2).actor.until_hanging(1).await;
        tokio::join!(transport.close(), transport.close());
    };
    let (result, ()) = within("close", async { tokio::join!(pending, closing) }).await;
    assert!(matches!(result, Err(TransportError::Closed)), "{result:?}");
    within("close again", transport.close()).await;
    let result = transport.request(TWO, Class::Digest, Frame::new(ECHO, "")).await;
    assert!(matches!(result, Err(TransportError::Closed)), "{result:?}");
    assert!(transport.connected().borrow().is_empty());
    mesh.close().await;
}

async fn a_killed_peer_interrupts_after_the_idle_timeout(mut mesh: Mesh) {
    let asker = mesh.node(1).transport.clone();
    let begin = Instant::now();
    mesh.silence(2);
    assert_eq!(*asker.connected().borrow(), [TWO, NodeId(3)], "silence is not noticed");
    let result =
        within("the request to end", asker.request(TWO, Class::Election, Frame::new(ECHO, ""))).await;
    assert!(matches!(result, Err(TransportError::Interrupted { peer: TWO, .. })), "{result:?}");
    mesh.until_connected(NodeId(1), &[NodeId(3)]).await;
    let elapsed = begin.elapsed();
    // The last sign of life may be a keep-alive interval old, and the request itself renews the sender's patience.
    assert!(elapsed >= IDLE / 2 && elapsed <= IDLE * 3, "{elapsed:?}");
    mesh.close().await;
}

async fn a_killed_node_comes_back_lower_id(mesh: Mesh) {
    comes_back(mesh, 1).await;
}

async fn a_killed_node_comes_back_higher_id(mesh: Mesh) {
    comes_back(mesh, 3).await;
}

async fn comes_back(mut mesh: Mesh, id: u64) {
    mesh.kill(id).await;
    let begin = Instant::now();
    mesh.restart(id).await;
    for other in mesh.others(NodeId(id)) {
        // The other side may still hold, and lose, its connection to the former life.
        let answer = async {
            loop {
                mesh.until_connected(other, &mesh.others(other)).await;
                let asker = &mesh.node(other.0).transport;
                if let Ok(answer) = asker.request(NodeId(id), Class::Blob, Frame::new(MEASURE, "")).await {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(within("an answer", answer).await.head, format!("{other} 0"));
    }
    println!("node {id} was back after {:?}", begin.elapsed());
    assert!(begin.elapsed() < IDLE, "{:?}", begin.elapsed());
    mesh.close().await;
}

async fn a_restart_interrupts_what_was_pending(mut mesh: Mesh) {
    let asker = mesh.node(1).transport.clone();
    let request = tokio::spawn(async move { asker.request(TWO, Class::Digest, Frame::new(HANG, "")).await });
    mesh.node(2).actor.until_hanging(1).await;
    mesh.kill(2).await;
    let begin = Instant::now();
    mesh.restart(2).await;
    let result = within("the request to end", request).await.unwrap();
    assert!(matches!(result, Err(TransportError::Interrupted { peer: TWO, .. })), "{result:?}");
    assert!(begin.elapsed() < IDLE, "{:?}", begin.elapsed());
    mesh.close().await;
}
