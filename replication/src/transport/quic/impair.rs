//! Delay, jitter, loss and reordering of what an endpoint sends, decided by a seeded generator.
//!
//! [`Schedule`] decides for each datagram, pure; [`wrapper`] carries it out between the endpoint and its socket. What is
//! lost never reaches the system, so a capture does not see it, as on a link whose far end loses. Nothing here limits
//! the rate. A [`Disturbance`] is laid on an endpoint while it runs: losses on single links, up to a cut of all of them, and
//! a delay of everything.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::SocketWrapper;
use super::pool::lock;

/// Datagrams that may be in delay at once; beyond that they are lost, as in a full queue.
pub const MAX_DELAYED_DATAGRAMS: usize = 16_384;

/// What happens to datagrams on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Impairment {
    /// Every datagram's delay.
    pub delay: Duration,
    /// At most this is added, uniformly; the order is kept.
    pub jitter: Duration,
    /// Share of datagrams that are lost, from 0 to 1.
    pub loss: f64,
    /// Share of datagrams that are sent at once and overtake those in delay, from 0 to 1.
    pub reorder: f64,
}

/// What happens to each datagram in turn; the same for the same seed.
#[derive(Debug)]
pub struct Schedule {
    impairment: Impairment,
    dice: ChaCha8Rng,
}

/// The fate of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is lost.
    Lost,
    /// It leaves at once, before those in delay.
    Overtakes,
    /// It leaves after this time, and not before those that were sent earlier.
    Leaves(Duration),
}

impl Schedule {
    /// A schedule from a seed.
    #[must_use]
    pub fn new(impairment: Impairment, seed: u64) -> Self {
        Self { impairment, dice: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The fate of the next datagram, on a link that loses a share of its own besides. Always throws three dice, so that
    /// one setting does not change another's luck.
    pub fn next_fate(&mut self, link_loss: f64) -> Fate {
        let [loss, reorder, jitter]: [f64; 3] = self.dice.random();
        let Impairment { delay, jitter: most, loss: all_loss, .. } = self.impairment;
        if loss < 1.0 - (1.0 - all_loss) * (1.0 - link_loss) {
            Fate::Lost
        } else if reorder < self.impairment.reorder {
            Fate::Overtakes
        } else {
            Fate::Leaves(delay + most.mul_f64(jitter))
        }
    }
}

/// What is laid on endpoints while they run, beside their impairment. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Disturbance(Arc<Mutex<Disturbed>>);

#[derive(Debug, Default)]
struct Disturbed {
    /// Shares of datagrams that are lost, from 0 to 1, by destination.
    losses: BTreeMap<SocketAddr, f64>,
    /// What is sent leaves so much later.
    delay: Duration,
}

impl Disturbance {
    /// From now on these shares are lost, from 0 to 1, by destination, and everything that is sent leaves later by `delay`.
    /// Replaces what was said before; what is sent to other destinations is not lost.
    pub fn set(&self, losses: BTreeMap<SocketAddr, f64>, delay: Duration) {
        *lock(&self.0) = Disturbed { losses, delay };
    }

    /// Share that is lost on the way to `destination`, and the delay.
    fn towards(&self, destination: SocketAddr) -> (f64, Duration) {
        let disturbed = lock(&self.0);
        (disturbed.losses.get(&destination).copied().unwrap_or(0.0), disturbed.delay)
    }

    fn is_none(&self) -> bool {
        let disturbed = lock(&self.0);
        disturbed.losses.is_empty() && disturbed.delay.is_zero()
    }
}

/// For [`QuicConfig::wrap_socket`](super::QuicConfig::wrap_socket). Must be applied inside a tokio runtime. Without
/// impairment and disturbance everything passes as it is.
#[must_use]
pub fn wrapper(impairment: Impairment, seed: u64, disturbance: Disturbance) -> SocketWrapper {
    Arc::new(move |inner| {
        let schedule = Schedule::new(impairment, seed);
        Arc::new(ImpairedSocket::new(inner, schedule, disturbance.clone()))
    })
}

/// A datagram in delay.
struct Delayed {
    due: Instant,
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    contents: Bytes,
    segment_size: Option<usize>,
    src_ip: Option<IpAddr>,
}

impl Delayed {
    fn transmit(&self) -> Transmit<'_> {
        Transmit {
            destination: self.destination,
            ecn: self.ecn,
            contents: &self.contents,
            segment_size: self.segment_size,
            src_ip: self.src_ip,
        }
    }
}

struct ImpairedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    disturbance: Disturbance,
    decided: Mutex<Decided>,
    /// Whether every datagram goes through the queue.
    always: bool,
    delayed: mpsc::Sender<Delayed>,
}

struct Decided {
    schedule: Schedule,
    /// When the last datagram that keeps the order leaves.
    last_due: Instant,
}

impl ImpairedSocket {
    fn new(inner: Arc<dyn AsyncUdpSocket>, schedule: Schedule, disturbance: Disturbance) -> Self {
        let always = schedule.impairment != Impairment::default();
        let (delayed, waiting) = mpsc::channel(MAX_DELAYED_DATAGRAMS);
        // Ends by itself after the socket was dropped and what was in delay has left.
        tokio::spawn(release(inner.clone(), waiting));
        let decided = Mutex::new(Decided { schedule, last_due: Instant::now() });
        Self { inner, disturbance, decided, always, delayed }
    }
}

/// Sends what is in delay when it is due. The queue is in the order of its times.
async fn release(socket: Arc<dyn AsyncUdpSocket>, mut waiting: mpsc::Receiver<Delayed>) {
    let mut poller = socket.clone().create_io_poller();
    while let Some(datagram) = waiting.recv().await {
        sleep_until(datagram.due).await;
        loop {
            match socket.try_send(&datagram.transmit()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.is_err() {
                        return;
                    }
                }
                // Any other error is a datagram that did not arrive.
                _ => break,
            }
        }
    }
}

impl fmt::Debug for ImpairedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImpairedSocket").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for ImpairedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let (link_loss, delay) = self.disturbance.towards(transmit.destination);
        let mut decided = lock(&self.decided);
        let now = Instant::now();
        // After a delay is over, nothing overtakes what is still in it.
        if !self.always && delay.is_zero() && decided.last_due <= now {
            let lost = link_loss > 0.0 && decided.schedule.next_fate(link_loss) == Fate::Lost;
            return if lost { Ok(()) } else { self.inner.try_send(transmit) };
        }
        let due = match decided.schedule.next_fate(link_loss) {
            Fate::Lost => return Ok(()),
            // A socket that is full cannot be overtaken; the fate is not decided again.
            Fate::Overtakes => match self.inner.try_send(transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => now,
                outcome => return outcome,
            },
            Fate::Leaves(after) => now + after + delay,
        };
        decided.last_due = decided.last_due.max(due);
        let delayed = Delayed {
            due: decided.last_due,
            destination: transmit.destination,
            ecn: transmit.ecn,
            contents: Bytes::copy_from_slice(transmit.contents),
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        // Still under the lock, so that the queue is in the order of its times. A full queue loses the datagram.
        let _ = self.delayed.try_send(delayed);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        // One datagram has one fate. A burst that was put together just before a disturbance is lost or not as a whole.
        if !self.always && self.disturbance.is_none() { self.inner.max_transmit_segments() } else { 1 }
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use quinn::{Runtime as _, TokioRuntime};

    use super::*;

    fn fates(impairment: Impairment, seed: u64, count: usize) -> Vec<Fate> {
        let mut schedule = Schedule::new(impairment, seed);
        (0..count).map(|_| schedule.next_fate(0.0)).collect()
    }

    const ROUGH: Impairment = Impairment {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(10),
        loss: 0.1,
        reorder: 0.05,
    };

    #[test]
    fn a_seed_repeats_and_another_differs() {
        assert_eq!(fates(ROUGH, 1, 1000), fates(ROUGH, 1, 1000));
        assert_ne!(fates(ROUGH, 1, 1000), fates(ROUGH, 2, 1000));
    }

    #[test]
    fn shares_and_spans_are_as_asked() {
        let fates = fates(ROUGH, 7, 10_000);
        let count = |fate| fates.iter().filter(|other| **other == fate).count();
        assert!((900..1100).contains(&count(Fate::Lost)), "{}", count(Fate::Lost));
        // Of those that are not lost.
        assert!((380..520).contains(&count(Fate::Overtakes)), "{}", count(Fate::Overtakes));
        let spans =
            || fates.iter().filter_map(|fate| if let Fate::Leaves(span) = fate { Some(*span) } else { None });
        assert!(spans().min().unwrap() < ROUGH.delay + Duration::from_millis(1));
        assert!(spans().max().unwrap() > ROUGH.delay + Duration::from_millis(9));
        assert!(spans().all(|span| (ROUGH.delay..=ROUGH.delay + ROUGH.jitter).contains(&span)));
    }

    #[test]
    fn one_setting_does_not_change_another_s_luck() {
        let lost = |impairment| -> Vec<bool> {
            fates(impairment, 3, 1000).into_iter().map(|fate| fate == Fate::Lost).collect()
        };
        assert_eq!(lost(ROUGH), lost(Impairment { jitter: Duration::ZERO, reorder: 0.0, ..ROUGH }));
    }

    /// Sends numbered datagrams through an impaired socket and returns those that arrived, with the time each took.
    async fn through(impairment: Impairment, count: u32) -> Vec<(u32, Duration)> {
        let receiver = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let sender = TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let sender = wrapper(impairment, 5, Disturbance::default())(sender);
        assert_eq!(sender.max_transmit_segments(), 1);
        let mut poller = sender.clone().create_io_poller();
        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        let begun = Instant::now();
        for number in 0..count {
            let transmit = Transmit {
                destination: receiver.local_addr().unwrap(),
                ecn: None,
                contents: &number.to_be_bytes(),
                segment_size: None,
                src_ip: None,
            };
            sender.try_send(&transmit).unwrap();
        }
        // What never arrives is known beforehand, so nothing has to be waited for in vain.
        let expected =
            fates(impairment, 5, count as usize).iter().filter(|fate| **fate != Fate::Lost).count();
        let mut arrived = Vec::new();
        let mut buffer = [0; 4];
        while arrived.len() < expected {
            let receive = tokio::time::timeout(Duration::from_secs(10), receiver.recv(&mut buffer));
            assert_eq!(receive.await.expect("a datagram in delay arrives").unwrap(), 4);
            arrived.push((u32::from_be_bytes(buffer), begun.elapsed()));
        }
        arrived
    }

    #[tokio::test]
    async fn datagrams_arrive_late_in_order_and_without_the_lost() {
        let impairment = Impairment { reorder: 0.0, ..ROUGH };
        let arrived = through(impairment, 100).await;
        let expected = fates(impairment, 5, 100);
        let kept: Vec<u32> = (0..100).filter(|number| expected[*number as usize] != Fate::Lost).collect();
        assert_eq!(arrived.iter().map(|(number, _)| *number).collect::<Vec<_>>(), kept);
        assert!(arrived.iter().all(|(_, took)| *took >= ROUGH.delay), "{arrived:?}");
    }

    #[tokio::test]
    async fn those_that_overtake_come_first() {
        let impairment = Impairment { loss: 0.0, ..ROUGH };
        let arrived = through(impairment, 100).await;
        let fates = fates(impairment, 5, 100);
        let ahead = fates.iter().filter(|fate| **fate == Fate::Overtakes).count();
        assert!(ahead > 0);
        for (place, (number, _)) in arrived.iter().enumerate() {
            assert_eq!(fates[*number as usize] == Fate::Overtakes, place < ahead, "{place}: {arrived:?}");
        }
    }

    #[tokio::test]
    async fn dropping_the_socket_lets_go_of_it_after_the_last_datagram() {
        let sender = TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let inner = Arc::downgrade(&sender);
        drop(wrapper(ROUGH, 1, Disturbance::default())(sender));
        let released = async {
            while inner.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), released).await.unwrap();
    }

    #[test]
    fn a_link_s_own_loss_adds_to_that_of_all() {
        let lost = |link_loss| {
            let mut schedule = Schedule::new(ROUGH, 3);
            (0..10_000).filter(|_| schedule.next_fate(link_loss) == Fate::Lost).count()
        };
        // Of ten, one is lost anyway; of the other nine, half.
        assert!((5350..5650).contains(&lost(0.5)), "{}", lost(0.5));
        assert_eq!(lost(1.0), 10_000);
    }

    #[tokio::test]
    async fn links_are_cut_and_mended_while_the_socket_runs() {
        let [near, far] = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let sender = TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let plain_segments = sender.max_transmit_segments();
        let disturbance = Disturbance::default();
        let sender = wrapper(Impairment::default(), 5, disturbance.clone())(sender);
        let mut poller = sender.clone().create_io_poller();
        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        let send = |to: &std::net::UdpSocket, number: u8| {
            let destination = to.local_addr().unwrap();
            let contents = &[number];
            sender.try_send(&Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None })
        };
        assert_eq!(sender.max_transmit_segments(), plain_segments);
        disturbance.set(BTreeMap::from([(far.local_addr().unwrap(), 1.0)]), Duration::ZERO);
        assert_eq!(sender.max_transmit_segments(), 1);
        send(&far, 1).unwrap();
        send(&near, 2).unwrap();
        disturbance.set(BTreeMap::new(), Duration::ZERO);
        send(&far, 3).unwrap();
        let receive = |from: &std::net::UdpSocket| {
            from.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut buffer = [0];
            from.recv(&mut buffer).map(|_| buffer[0]).unwrap()
        };
        // Loopback keeps the order: the third is the first that arrives only if the one before was lost.
        assert_eq!((receive(&near), receive(&far)), (2, 3));
    }

    #[tokio::test]
    async fn everything_is_delayed_for_a_while_and_the_order_is_kept() {
        const DELAY: Duration = Duration::from_millis(50);
        let receiver = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let sender = TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let disturbance = Disturbance::default();
        let sender = wrapper(Impairment::default(), 5, disturbance.clone())(sender);
        let mut poller = sender.clone().create_io_poller();
        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        let destination = receiver.local_addr().unwrap();
        let send = |number: u8| {
            let contents = &[number];
            let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None };
            sender.try_send(&transmit).unwrap();
        };
        let begun = Instant::now();
        disturbance.set(BTreeMap::new(), DELAY);
        send(1);
        disturbance.set(BTreeMap::new(), Duration::ZERO);
        send(2);
        let mut arrived = Vec::new();
        let mut buffer = [0];
        for _ in 0..2 {
            let receive = tokio::time::timeout(Duration::from_secs(10), receiver.recv(&mut buffer));
            receive.await.expect("a datagram in delay arrives").unwrap();
            arrived.push(buffer[0]);
        }
        assert_eq!(arrived, [1, 2]);
        assert!(begun.elapsed() >= DELAY);
    }
}
