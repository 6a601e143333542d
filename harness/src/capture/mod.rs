//! Counts packets where they leave and enter an interface, by port, direction and second, at IP level.
//!
//! ```text
//!   filter   which packets the kernel hands over, and how much of each: pure
//!   head     the head of an IP packet, of both versions: pure
//!   tally    packet heads -> counts: pure
//!   ring     an AF_PACKET socket that hands over heads of packets by shared memory; what the kernel dropped
//!   sniff    the thread that reads it
//!   interface  the counters that the interface keeps itself
//!   table    counts for people, and as CSV: pure
//! ```
//!
//! It does not know what a port is used for, nor what a run is.

pub mod filter;
pub mod head;
pub mod interface;
pub mod ring;
pub mod sniff;
pub mod table;
pub mod tally;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use interface::InterfaceCounts;
pub use sniff::{Capture, CaptureError};
pub use tally::{Count, Direction, OTHER_PORT, Tally};

/// Whether packets are captured in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureMode {
    /// No.
    Off,
    /// Where every node has an interface of its own.
    #[default]
    Auto,
    /// Yes; without it the run fails.
    Required,
}

/// What is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the interface.
    pub interface: String,
    /// Ports that are counted apart, at most [`filter::MAX_PORTS`].
    pub ports: Vec<u16>,
    /// Whether everything else is counted, too, as port [`OTHER_PORT`]; not on loopback.
    pub others: bool,
    /// The only sender whose packets are counted, for a loopback interface, which many share.
    pub only_from: Option<Ipv4Addr>,
    /// Memory of the ring between the kernel and this process, in bytes.
    pub buffer_bytes: usize,
}

impl Settings {
    /// Every packet of `interface`, with `ports` apart.
    #[must_use]
    pub fn everything(interface: &str, ports: &[u16]) -> Self {
        Self {
            interface: interface.into(),
            ports: ports.to_vec(),
            others: true,
            only_from: None,
            buffer_bytes: sniff::BUFFER_BYTES,
        }
    }
}

/// What was counted in a stretch of time, about a second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Begin, on CLOCK_MONOTONIC.
    pub from_ns: u64,
    /// End, on CLOCK_MONOTONIC.
    pub until_ns: u64,
    /// By port and direction, in ascending order; without rows of zeroes.
    pub counts: Vec<Count>,
    /// Packets that the kernel dropped, because they were not read fast enough. With any, the counts are too low.
    pub dropped_packets: u64,
    /// Whether what was captured are the packets of the wire: no offload that joins or splits packets was on, and none was
    /// longer than the interface's MTU. On loopback it never is.
    pub exact: bool,
    /// The interface's own counters since the capture began.
    pub interface: InterfaceCounts,
    /// Why the capture ended, if not on request.
    pub failure: Option<String>,
    /// Whether this is the last one.
    pub last: bool,
}
