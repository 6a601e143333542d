//! The seeded network inside one process: delay, jitter, loss, duplication, bandwidth, partitions, pauses and crashes, in
//! tokio's time.
//!
//! Under a paused clock and on one thread, a run is a function of the seed: every random choice comes from a ChaCha
//! stream of its directed link, nothing iterates in hash order, and whoever waits is woken first come, first served.
//! (`tokio::sync::watch` wakes several waiters in random order: two tasks that await one node's `connected()` are
//! outside of this promise.)
//!
//! # What is modelled
//! - **Connections** as in [`quic`](super::quic): between each pair that can reach each other there is one; it survives
//!   silence shorter than the idle timeout, and `connected` shows it until then. A crashed or cut-off peer is silence;
//!   only [`Transport::close`] is noticed at once. A restarted node interrupts what its predecessor left pending.
//! - **Loss** hits packets of [`PACKET_BYTES`]. As on any reliable stream, a lost packet delays its message, by one
//!   retransmission timeout per loss; it is no error.
//! - **Pauses** are those of a node that is stopped and goes on later, as the others see it: what is sent to it or by it
//!   waits. Only its messages stand still, not its tasks.
//! - **Duplication** hands a request to its handler a second time, a little later; the second answer is discarded.
//! - **Reordering** comes from jitter: messages do not wait for each other.
//! - **Omission**: a node of which nothing arrives, or at which nothing does; its connections end as those of a silent one.
//! - **Corruption** flips a bit of a frame's encoding, which then goes through the codec of [`super::frame`]; **lies** change
//!   a bit before it is encoded, so that the codec cannot tell.
//! - **Bandwidth** is that of the sender's egress, shared by all its links. Control messages go before bulk, which is
//!   what two QUIC connections come to when one is nearly idle.
//!
//! # What is not
//! Handshakes fail or succeed as a whole, after one and a half round trips. There are no headers, acknowledgements and
//! keep-alives: datagram counts are estimates, frame bytes cut into packets. Dropping a request takes effect at once,
//! also at the peer, and a message still on its way is never delivered.

mod model;
mod tamper;

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

pub use model::{LinkSpec, PACKET_BYTES};
use model::{Model, Pair, Timer};
use tamper::Tamper;

use super::count::FrameCounters;
use super::frame::{self, FrameError, Status};
use super::{Class, DatagramCount, Frame, Handler, Lane, Refusal, Traffic, Transport, TransportError};
use crate::store::{MAX_PARAMETER_BYTES, NodeId};

/// Idle timeout unless another one is chosen: that of [`QuicConfig::new`](super::quic::QuicConfig::new).
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The network. Clones are the same network.
///
/// The network owns the handlers of its nodes until they close or crash.
#[derive(Clone)]
pub struct ChannelNetwork {
    net: Arc<Net>,
}

impl fmt::Debug for ChannelNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelNetwork").field("model", &*lock(&self.net.model)).finish_non_exhaustive()
    }
}

struct Net {
    idle_timeout: Duration,
    max_body_bytes: u64,
    model: Mutex<Model>,
    ends: Mutex<BTreeMap<NodeId, Arc<End>>>,
    changes: Changes,
    timers: Mutex<JoinSet<()>>,
    /// Frames with a flipped bit that were refused, and that were not.
    refused: AtomicU64,
    undetected: AtomicU64,
}

/// Tells of every change anywhere in the network, in the order in which tasks began to wait.
#[derive(Default)]
struct Changes(Notify);

impl Changes {
    fn announce(&self) {
        self.0.notify_waiters();
    }

    /// Waits until `look` sees something.
    async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut change = pin!(self.0.notified());
            // Counts as waiting from here, so that no change slips in between looking and waiting.
            change.as_mut().enable();
            if let Some(seen) = look() {
                return seen;
            }
            change.await;
        }
    }
}

/// One life of one node.
struct End {
    id: NodeId,
    handler: Mutex<Option<Arc<dyn Handler>>>,
    connected: watch::Sender<Vec<NodeId>>,
    closed: AtomicBool,
    frames: FrameCounters,
    datagrams: Mutex<(DatagramCount, DatagramCount)>,
}

impl ChannelNetwork {
    /// A network between `nodes`, none of which has joined yet, whose links all are as `link` says.
    #[must_use]
    pub fn new(seed: u64, link: LinkSpec, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self::with_limits(seed, link, nodes, DEFAULT_IDLE_TIMEOUT, MAX_PARAMETER_BYTES)
    }

    /// As [`ChannelNetwork::new`], with another idle timeout and another limit on bodies in bytes.
    #[must_use]
    pub fn with_limits(
        seed: u64,
        link: LinkSpec,
        nodes: impl IntoIterator<Item = NodeId>,
        idle_timeout: Duration,
        max_body_bytes: u64,
    ) -> Self {
        let net = Net {
            idle_timeout,
            max_body_bytes,
            model: Mutex::new(Model::new(seed, link, nodes)),
            ends: Mutex::default(),
            changes: Changes::default(),
            timers: Mutex::default(),
            refused: AtomicU64::new(0),
            undetected: AtomicU64::new(0),
        };
        Self { net: Arc::new(net) }
    }

    /// `node`'s end of the network, to be called inside a tokio runtime. An id the network did not know is added to it;
    /// an id that is up crashes first.
    pub fn join(&self, node: NodeId) -> Arc<dyn Transport> {
        self.crash(node);
        let end = Arc::new(End {
            id: node,
            handler: Mutex::default(),
            connected: watch::Sender::new(Vec::new()),
            closed: AtomicBool::new(false),
            frames: FrameCounters::default(),
            datagrams: Mutex::default(),
        });
        lock(&self.net.ends).insert(node, end.clone());
        self.net.change(|model| model.set_up(node, true));
        Arc::new(ChannelTransport { net: self.net.clone(), end })
    }

    /// As [`ChannelNetwork::join`]: a new life of a node that crashed or closed.
    pub fn restart(&self, node: NodeId) -> Arc<dyn Transport> {
        self.join(node)
    }

    /// Ends `node` without a word: its transport is closed, the others hear nothing until the idle timeout.
    pub fn crash(&self, node: NodeId) {
        let end = lock(&self.net.ends).remove(&node);
        if let Some(end) = end {
            end.shut();
            self.net.change(|model| model.set_up(node, false));
        }
    }

    /// Cuts every link between nodes of different groups; nodes in no group form one more. Replaces earlier cuts.
    pub fn partition(&self, groups: &[&[NodeId]]) {
        self.net.change(|model| model.partition(groups));
    }

    /// Cuts the link between two nodes, in both directions.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        self.net.change(|model| model.cut(a, b));
    }

    /// Cuts all links of `node`.
    pub fn isolate(&self, node: NodeId) {
        self.net.change(|model| model.isolate(node));
    }

    /// From now on `node` omits to send, to receive, both or neither, until [`ChannelNetwork::heal`].
    pub fn omit(&self, node: NodeId, to_send: bool, to_receive: bool) {
        self.net.change(|model| model.omit(node, to_send, to_receive));
    }

    /// Sets the probability that a bit of a frame flips on its way, on every link.
    pub fn set_corruption(&self, share: f64) {
        lock(&self.net.model).corruption = share;
    }

    /// Has `node` change a bit of this share of the frames it sends, before they are encoded.
    pub fn lie(&self, node: NodeId, share: f64) {
        lock(&self.net.model).lies.insert(node, share);
    }

    /// Frames with a flipped bit: those that the codec refused, and those that it did not.
    #[must_use]
    pub fn corrupted(&self) -> (u64, u64) {
        (self.net.refused.load(Ordering::Relaxed), self.net.undetected.load(Ordering::Relaxed))
    }

    /// Repairs every cut link, and ends omissions.
    pub fn heal(&self) {
        self.net.change(Model::heal);
    }

    /// Holds every message to and from `node`, until it resumes or its connections idle out.
    pub fn pause(&self, node: NodeId) {
        self.net.change(|model| model.pause(node));
    }

    /// Ends a pause: what was held arrives.
    pub fn resume(&self, node: NodeId) {
        self.net.change(|model| model.resume(node));
    }

    /// Sets the probability that a packet is lost, on every link.
    pub fn set_loss(&self, loss: f64) {
        lock(&self.net.model).link.loss = loss;
    }

    /// Adds `delay`, one way, to every link of `node`.
    pub fn set_distance(&self, node: NodeId, delay: Duration) {
        lock(&self.net.model).distances.insert(node, delay);
    }

    /// Changes every link.
    pub fn set_link(&self, link: LinkSpec) {
        lock(&self.net.model).link = link;
    }
}

impl Net {
    /// Changes what can reach what; begins what follows from it, and tells whoever waits.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut Model)) {
        let timers = {
            let mut model = lock(&self.model);
            change(&mut model);
            model.refresh(self.idle_timeout)
        };
        let mut running = lock(&self.timers);
        while running.try_join_next().is_some() {}
        for (after, timer) in timers {
            running.spawn(fire(Arc::downgrade(self), Instant::now() + after, timer));
        }
        drop(running);
        self.publish();
    }

    fn publish(&self) {
        let ends: Vec<_> = lock(&self.ends).values().cloned().collect();
        for end in ends {
            end.connected.send_if_modified(|connected| {
                let now = lock(&self.model).connected(end.id);
                let changed = *connected != now;
                *connected = now;
                changed
            });
        }
        self.changes.announce();
    }

    /// Waits until the connection `generation` of `pair` is no more.
    async fn until_lost(&self, pair: Pair, generation: u64) {
        let gone = || lock(&self.model).generation(pair) != Some(generation);
        self.changes.until(|| gone().then_some(())).await;
    }

    async fn until_shut(&self, end: &End) {
        self.changes.until(|| end.is_shut().then_some(())).await;
    }

    /// Carries one message of `bytes` and returns when it has arrived. Until a cut link is repaired it does not.
    async fn carry(&self, from: &End, to: NodeId, lane: Lane, bytes: u64) {
        let departure = lock(&self.model).send(from.id, to, lane, bytes, Instant::now());
        let packets = bytes.div_ceil(PACKET_BYTES);
        from.datagram(lane, |count| {
            count.sent_datagrams += packets + departure.lost_packets;
            count.sent_bytes += bytes + departure.lost_packets * PACKET_BYTES.min(bytes);
            count.lost_packets += departure.lost_packets;
        });
        sleep_until(departure.arrives).await;
        while !lock(&self.model).carries(from.id, to) {
            self.changes.until(|| lock(&self.model).carries(from.id, to).then_some(())).await;
            let retransmission = lock(&self.model).link.retransmission_timeout();
            sleep(retransmission).await;
        }
        if let Some(to) = lock(&self.ends).get(&to) {
            to.datagram(lane, |count| {
                count.received_datagrams += packets;
                count.received_bytes += bytes;
            });
        }
    }

    /// A frame as it arrives.
    fn arrived(
        &self,
        (from, to): (NodeId, NodeId),
        (status, class): (Status, Class),
        frame: Frame,
    ) -> Result<Frame, FrameError> {
        let mut model = lock(&self.model);
        let Some(tamper) = model.tampers(from, to) else { return Ok(frame) };
        let delivered =
            tamper::deliver(tamper, (status, class), frame, self.max_body_bytes, model.dice(from, to));
        if tamper == Tamper::Flip {
            let counter = if delivered.is_err() { &self.refused } else { &self.undetected };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        delivered
    }

    /// Carries a request that has arrived a second time, while the connection lasts.
    fn deliver_again(self: &Arc<Self>, from: &Arc<End>, to: NodeId, lane: Lane, request: Frame) {
        let pair = Pair::new(from.id, to);
        let Some(generation) = lock(&self.model).generation(pair) else { return };
        let (net, from) = (Arc::downgrade(self), from.clone());
        lock(&self.timers).spawn(async move {
            let Some(net) = net.upgrade() else { return };
            let again = async {
                net.carry(&from, to, lane, frame::encoded_len(&request)).await;
                let end = lock(&net.ends).get(&to).cloned();
                if let Some(end) = end {
                    let _discarded = run_handler(net.clone(), end, from.id, joined(request)).await;
                }
            };
            tokio::select! {
                biased;
                () = net.until_lost(pair, generation) => {}
                () = again => {}
            }
        });
    }

    /// A request and its response, while the connection lasts: what cannot be answered never returns.
    async fn exchange(
        self: &Arc<Self>,
        from: &Arc<End>,
        to: NodeId,
        class: Class,
        request: Frame,
    ) -> Result<Frame, TransportError> {
        let bytes = frame::encoded_len(&request);
        from.frames.sent(class, bytes);
        self.carry(from, to, class.lane(), bytes).await;
        let end = lock(&self.ends).get(&to).cloned();
        let Some(end) = end else { return std::future::pending().await };
        end.frames.received(class, bytes);
        if lock(&self.model).duplicates(from.id, to) {
            self.deliver_again(from, to, class.lane(), request.clone());
        }
        let result = match self.arrived((from.id, to), (Status::Request, class), request) {
            Ok(request) => run_handler(self.clone(), end.clone(), from.id, joined(request)).await?,
            // As the endpoint answers bytes that are no frame.
            Err(error) => Err(Refusal(error.to_string())),
        };
        let (response, refused) = match result {
            Ok(response) => match frame::check(&response, self.max_body_bytes) {
                Ok(()) => (response, false),
                Err(error) => (frame::refusal(&format!("the response cannot be sent: {error}")), true),
            },
            Err(refusal) => (frame::refusal(&refusal.0), true),
        };
        let bytes = frame::encoded_len(&response);
        end.frames.sent(class, bytes);
        self.carry(&end, from.id, class.lane(), bytes).await;
        from.frames.received(class, bytes);
        let status = if refused { Status::Refusal } else { Status::Response };
        let response = self.arrived((to, from.id), (status, class), response).map_err(|error| {
            let reason = format!("its answer is unusable: {error}");
            TransportError::Interrupted { peer: to, reason }
        })?;
        if refused {
            Err(TransportError::Refused { peer: to, reason: frame::refusal_text(&response) })
        } else {
            Ok(joined(response))
        }
    }
}

async fn fire(net: Weak<Net>, at: Instant, timer: Timer) {
    sleep_until(at).await;
    if let Some(net) = net.upgrade() {
        net.change(|model| model.fire(timer));
    }
}

/// Runs `end`'s handler on a task of its own, which ends with this future or with the node.
async fn run_handler(
    net: Arc<Net>,
    end: Arc<End>,
    from: NodeId,
    request: Frame,
) -> Result<Result<Frame, super::Refusal>, TransportError> {
    let peer = end.id;
    let mut task = JoinSet::new();
    task.spawn(async move {
        let answer = async {
            let handler = net.changes.until(|| lock(&end.handler).clone()).await;
            Some(handler.handle(from, request).await)
        };
        tokio::select! {
            biased;
            () = net.until_shut(&end) => None,
            answer = answer => answer,
        }
    });
    match task.join_next().await {
        Some(Ok(Some(answer))) => Ok(answer),
        Some(Err(error)) => {
            Err(TransportError::Interrupted { peer, reason: format!("its handler failed: {error}") })
        }
        // It crashed: silence.
        Some(Ok(None)) | None => std::future::pending().await,
    }
}

/// As received: a body of at most one segment.
fn joined(mut frame: Frame) -> Frame {
    frame.body.retain(|segment| !segment.is_empty());
    if frame.body.len() > 1 {
        frame.body = vec![frame.body.concat().into()];
    }
    frame
}

impl End {
    fn shut(&self) {
        self.closed.store(true, Ordering::Release);
        self.connected.send_replace(Vec::new());
        *lock(&self.handler) = None;
    }

    fn is_shut(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn datagram(&self, lane: Lane, update: impl FnOnce(&mut DatagramCount)) {
        let mut datagrams = lock(&self.datagrams);
        update(match lane {
            Lane::Control => &mut datagrams.0,
            Lane::Bulk => &mut datagrams.1,
        });
    }
}

/// One node's end of a [`ChannelNetwork`].
struct ChannelTransport {
    net: Arc<Net>,
    end: Arc<End>,
}

impl fmt::Debug for ChannelTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelTransport").field("local", &self.end.id).finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for ChannelTransport {
    fn local(&self) -> NodeId {
        self.end.id
    }

    fn peers(&self) -> Vec<NodeId> {
        lock(&self.net.model).nodes().filter(|id| *id != self.end.id).collect()
    }

    async fn request(&self, to: NodeId, class: Class, request: Frame) -> Result<Frame, TransportError> {
        if self.end.is_shut() {
            return Err(TransportError::Closed);
        }
        frame::check(&request, self.net.max_body_bytes).map_err(FrameError::into_transport)?;
        let pair = Pair::new(self.end.id, to);
        let generation = lock(&self.net.model).generation(pair);
        let generation = generation.ok_or(TransportError::Unreachable { peer: to })?;
        tokio::select! {
            biased;
            () = self.net.until_shut(&self.end) => Err(TransportError::Closed),
            () = self.net.until_lost(pair, generation) => {
                Err(TransportError::Interrupted { peer: to, reason: "the connection was lost".into() })
            }
            result = self.net.exchange(&self.end, to, class, request) => result,
        }
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        if !self.end.is_shut() {
            *lock(&self.end.handler) = Some(handler);
            self.net.changes.announce();
        }
    }

    fn connected(&self) -> watch::Receiver<Vec<NodeId>> {
        self.end.connected.subscribe()
    }

    fn round_trips(&self) -> Vec<(NodeId, Duration)> {
        let model = lock(&self.net.model);
        let trip = |peer| (peer, model.round_trip(self.end.id, peer));
        model.connected(self.end.id).into_iter().map(trip).collect()
    }

    fn traffic(&self) -> Traffic {
        let (control, bulk) = *lock(&self.end.datagrams);
        Traffic { frames: self.end.frames.snapshot(), control, bulk }
    }

    async fn close(&self) {
        if self.end.is_shut() {
            return;
        }
        lock(&self.net.ends).remove(&self.end.id);
        self.end.shut();
        self.net.change(|model| model.leave(self.end.id));
    }
}
