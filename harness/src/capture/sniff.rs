//! Counts what a [`Ring`] holds, on a thread of its own.
//!
//! The thread reads what has come, then rests, whether more comes or not: woken by every packet it would take the processor
//! from whom it measures a thousand times a second. The ring holds what comes meanwhile.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pnet_datalink::NetworkInterface;

use super::ring::Ring;
use super::tally::{Own, Tally};
use super::{InterfaceCounts, Interval, Settings, filter};
use crate::{clock, offload};

/// Memory of a ring, in bytes: 32,768 packets of any length, of which only the heads are kept. It is part of the process that
/// captures, and counts as resident.
pub const BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// How long the thread rests when it has read everything: at a gigabit per second some 3,300 full packets come meanwhile, a tenth
/// of what the ring holds. A packet may count for the second after its own if it comes so close to the end.
const REST: Duration = Duration::from_millis(40);
/// Packets that are counted between two looks at the clock.
const AT_ONCE: usize = 256;
/// How long the rest may take to be read at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Length of an [`Interval`].
const INTERVAL: Duration = Duration::from_secs(1);

/// Why a capture cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is no such interface.
    #[error("there is no interface {name}; there are: {others}")]
    NoInterface {
        /// Its name.
        name: String,
        /// Those that are there.
        others: String,
    },
    /// Raw sockets need privileges.
    #[error("a raw socket needs CAP_NET_RAW, which root has")]
    NotPermitted,
    /// More than [`filter::MAX_PORTS`].
    #[error("more than {} ports", filter::MAX_PORTS)]
    TooManyPorts,
    /// The system refuses for another reason.
    #[error("cannot capture on {name}: {source}")]
    System {
        /// The interface.
        name: String,
        /// The system's error.
        source: io::Error,
    },
}

/// A socket that collects packets, and what was counted of them.
pub struct Sniffer {
    ring: Ring,
    tally: Tally,
    interface: String,
    mtu_bytes: u64,
    /// Whether no offload was seen on so far.
    offloads_off: bool,
    base: InterfaceCounts,
    from_ns: u64,
}

impl fmt::Debug for Sniffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sniffer").field("interface", &self.interface).finish_non_exhaustive()
    }
}

impl Sniffer {
    /// Begins to collect.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn open(settings: &Settings) -> Result<Self, CaptureError> {
        if settings.ports.len() > filter::MAX_PORTS {
            return Err(CaptureError::TooManyPorts);
        }
        let name = settings.interface.clone();
        let failed = |source| CaptureError::System { name: name.clone(), source };
        let interface = find(&name)?;
        let program = filter::program(settings, interface.is_loopback());
        let ring =
            Ring::open(interface.index, &program, settings.buffer_bytes).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::PermissionDenied => CaptureError::NotPermitted,
                    _ => failed(error),
                }
            })?;
        let own = match (interface.is_loopback(), interface.mac) {
            (false, Some(mac)) => Own::Mac(mac.octets()),
            _ => Own::Outgoing,
        };
        let base = InterfaceCounts::of(&name).map_err(failed)?;
        let tally = Tally::new(&settings.ports, settings.others, own);
        let mtu_bytes = offload::mtu_bytes(&name).map_err(failed)?;
        // Loopback carries packets of any size, whatever its settings say.
        let offloads_off = !interface.is_loopback() && are_off(&name);
        let from_ns = clock::monotonic_ns();
        Ok(Self { ring, tally, interface: name, mtu_bytes, offloads_off, base, from_ns })
    }

    /// Counts the next packet; false if there is none.
    ///
    /// # Errors
    /// If nothing more can be read, because the interface is gone, for example.
    pub fn step(&mut self) -> io::Result<bool> {
        let counted = self.ring.next(|head, length_bytes| self.tally.packet(head, length_bytes));
        if !counted {
            self.ring.check()?;
        }
        Ok(counted)
    }

    /// Counts the next packets, a bounded number of them; false if there are no more.
    fn steps(&mut self) -> io::Result<bool> {
        for _ in 0..AT_ONCE {
            if !self.step()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What was counted since the last call.
    pub fn take(&mut self) -> Interval {
        let from_ns = std::mem::replace(&mut self.from_ns, clock::monotonic_ns());
        let counters = InterfaceCounts::of(&self.interface);
        self.offloads_off &= are_off(&self.interface);
        Interval {
            from_ns,
            until_ns: self.from_ns,
            counts: self.tally.take(),
            dropped_packets: self.ring.take_dropped(),
            exact: self.offloads_off && self.tally.longest_bytes() <= self.mtu_bytes,
            interface: counters.map(|counters| counters.since(self.base)).unwrap_or_default(),
            failure: None,
            last: false,
        }
    }

    /// Reads on until `stop`, then what is left; tells of every second.
    fn run(mut self, stop: &AtomicBool, mut tell: impl FnMut(Interval)) {
        let mut due = Instant::now() + INTERVAL;
        let mut drained_by = None;
        let failure = loop {
            match self.steps() {
                Ok(true) => {}
                Ok(false) if drained_by.is_some() => break None,
                Ok(false) => std::thread::sleep(REST),
                Err(error) => break Some(error.to_string()),
            }
            let now = Instant::now();
            if drained_by.is_none() && stop.load(Ordering::Acquire) {
                drained_by = Some(now + DRAIN_TIMEOUT);
                // What was sent is still on its way through the kernel, perhaps.
                std::thread::sleep(REST);
            }
            if drained_by.is_some_and(|by| now > by) {
                break Some("packets came faster than they could be read".into());
            }
            if now >= due {
                due += INTERVAL;
                tell(self.take());
            }
        };
        tell(Interval { failure, last: true, ..self.take() });
    }
}

fn find(name: &str) -> Result<NetworkInterface, CaptureError> {
    let all = pnet_datalink::interfaces();
    let others = all.iter().map(|interface| interface.name.clone()).collect::<Vec<_>>().join(", ");
    all.into_iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| CaptureError::NoInterface { name: name.into(), others })
}

/// Whether no offload of `interface` joins packets.
fn are_off(interface: &str) -> bool {
    offload::state(interface).is_ok_and(|state| state.iter().all(|(_, on)| !on))
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins; `tell` is called about every second on the capture's thread, and a last time at the end.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn start(
        settings: &Settings,
        tell: impl FnMut(Interval) + Send + 'static,
    ) -> Result<Self, CaptureError> {
        let sniffer = Sniffer::open(settings)?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("capture".into()).spawn({
            let stop = stop.clone();
            move || sniffer.run(&stop, tell)
        });
        let failed = |source| CaptureError::System { name: settings.interface.clone(), source };
        Ok(Self { stop, thread: Some(thread.map_err(failed)?) })
    }

    /// Whether it still reads.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Asks it to read what is left and to end; does not wait.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Reads what is left and ends.
    pub fn finish(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the capture's thread panicked");
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.join();
    }
}
