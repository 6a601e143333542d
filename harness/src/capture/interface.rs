//! The counters that an interface keeps itself, from `/proc`.

use std::io;

use serde::{Deserialize, Serialize};

use super::tally::ETHERNET_HEADER_BYTES;

/// Packets and bytes of an interface. Bytes are at the level of [`Count`](super::Count), without Ethernet headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceCounts {
    /// Packets that left.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that came in.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

impl InterfaceCounts {
    /// The counters of `interface` in the calling thread's network namespace.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn of(interface: &str) -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        parse(&text, interface).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            sent_packets: self.sent_packets.saturating_sub(earlier.sent_packets),
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
            received_packets: self.received_packets.saturating_sub(earlier.received_packets),
            received_bytes: self.received_bytes.saturating_sub(earlier.received_bytes),
        }
    }
}

/// A line is `name: received bytes, packets and six more, sent bytes, packets and six more`.
fn parse(text: &str, interface: &str) -> Option<InterfaceCounts> {
    let numbers = text.lines().find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == interface).then_some(numbers)
    })?;
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let &[received_bytes, received_packets, _, _, _, _, _, _, sent_bytes, sent_packets, ..] =
        numbers.as_slice()
    else {
        return None;
    };
    let behind_headers = |bytes: u64, packets: u64| bytes.saturating_sub(packets * ETHERNET_HEADER_BYTES);
    Some(InterfaceCounts {
        sent_packets,
        sent_bytes: behind_headers(sent_bytes, sent_packets),
        received_packets,
        received_bytes: behind_headers(received_bytes, received_packets),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_headers_taken_off() {
        let text = "Inter-| Receive\n face |bytes packets\n  eth0: 1014 1 0 0 0 0 0 0 2028 2 0 0 0 0 0 0\n";
        let expected =
            InterfaceCounts { sent_packets: 2, sent_bytes: 2000, received_packets: 1, received_bytes: 1000 };
        assert_eq!(parse(text, "eth0"), Some(expected));
        assert_eq!(parse(text, "eth"), None);
        assert_eq!(parse("eth0: 1 2", "eth0"), None);
        assert_eq!(expected.since(expected), InterfaceCounts::default());
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert!(InterfaceCounts::of("nothere0").is_err());
        InterfaceCounts::of("lo").unwrap();
    }
}
