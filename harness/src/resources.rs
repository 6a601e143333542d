//! What a node has to offer, measured by the node itself; and what a plan says instead of it. Knows nothing of scores.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use replication::suitability::Resources;
use replication::{Digest, NodeId};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::meter;

/// Bandwidth of a link whose speed is not known, loopback included: 1 Gbit/s.
pub const DEFAULT_BANDWIDTH_BITS_PER_S: u64 = 1_000_000_000;
/// Bytes that are hashed at a time.
const HASHED_BYTES: usize = 1 << 20;
/// Processor time spent hashing.
const HASHING_NS: u64 = 20_000_000;

/// What a plan says of a node in place of what the node would measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The node.
    pub node: NodeId,
    /// Processing speed in MB of BLAKE3 per second.
    pub cpu_mb_per_s: Option<u64>,
    /// Main memory.
    pub memory_bytes: Option<u64>,
    /// Bandwidth of its link.
    pub bandwidth_bits_per_s: Option<u64>,
    /// Whether it is on mains power.
    pub mains_power: Option<bool>,
}

impl Override {
    /// `measured`, except for what the plan says.
    #[must_use]
    pub fn apply(&self, measured: Resources) -> Resources {
        Resources {
            cpu_mb_per_s: self.cpu_mb_per_s.unwrap_or(measured.cpu_mb_per_s),
            memory_bytes: self.memory_bytes.unwrap_or(measured.memory_bytes),
            bandwidth_bits_per_s: self.bandwidth_bits_per_s.unwrap_or(measured.bandwidth_bits_per_s),
            mains_power: self.mains_power.unwrap_or(measured.mains_power),
        }
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [
            ("cpu", self.cpu_mb_per_s),
            ("memory", self.memory_bytes),
            ("bandwidth", self.bandwidth_bits_per_s),
        ];
        let mut parts: Vec<String> =
            numbers.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value)?))).collect();
        if let Some(mains) = self.mains_power {
            parts.push(format!("mains={}", if mains { "yes" } else { "no" }));
        }
        write!(f, "{}:{}", self.node, parts.join(","))
    }
}

impl FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write NODE:cpu=MB/s,memory=BYTES,bandwidth=BITS,mains=yes|no, any of them";
        let (node, parts) = text.split_once(':').ok_or(FORM)?;
        let node = node.parse().map_err(|_| format!("'{node}' is not a node's number; {FORM}"))?;
        let mut found = Self {
            node: NodeId(node),
            cpu_mb_per_s: None,
            memory_bytes: None,
            bandwidth_bits_per_s: None,
            mains_power: None,
        };
        for part in parts.split(',') {
            let (name, value) = part.split_once('=').ok_or(FORM)?;
            let number =
                || value.parse::<u64>().map_err(|_| format!("'{value}' is not a whole number; {FORM}"));
            let twice = match name {
                "cpu" => found.cpu_mb_per_s.replace(number()?).is_some(),
                "memory" => found.memory_bytes.replace(number()?).is_some(),
                "bandwidth" => found.bandwidth_bits_per_s.replace(number()?).is_some(),
                "mains" => match value {
                    "yes" => found.mains_power.replace(true).is_some(),
                    "no" => found.mains_power.replace(false).is_some(),
                    _ => return Err(format!("'{value}' is neither yes nor no; {FORM}")),
                },
                _ => return Err(format!("unknown resource '{name}'; {FORM}")),
            };
            if twice {
                return Err(format!("{name} is given twice"));
            }
        }
        Ok(found)
    }
}

/// Measures this machine, as seen from the node's address. Takes about 20 ms of processor time.
#[must_use]
pub fn measure(address: Ipv4Addr) -> Resources {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Resources {
        cpu_mb_per_s: rounded(hashing_mb_per_s()).saturating_mul(cores),
        memory_bytes: meter::field_bytes(&memory, "MemTotal:"),
        bandwidth_bits_per_s: bandwidth(address).unwrap_or(DEFAULT_BANDWIDTH_BITS_PER_S),
        mains_power: mains_power(Path::new("/sys/class/power_supply")),
    }
}

/// Speed of one core, by the fastest of many pieces. In processor time, so that other nodes on the same cores do not make
/// it slower.
fn hashing_mb_per_s() -> u64 {
    let bytes = vec![0x5a_u8; HASHED_BYTES];
    let begun = clock::thread_cpu_ns();
    let mut fastest_ns = u64::MAX;
    let mut before = begun;
    while before - begun < HASHING_NS {
        std::hint::black_box(Digest::of(std::hint::black_box(&bytes)));
        let now = clock::thread_cpu_ns();
        fastest_ns = fastest_ns.min((now - before).max(1));
        before = now;
    }
    HASHED_BYTES as u64 * 1000 / fastest_ns
}

/// The nearest power of two: machines that are alike measure speeds that are a little different, and shall score alike.
fn rounded(mb_per_s: u64) -> u64 {
    let below = 1_u64 << mb_per_s.max(1).ilog2();
    // Nearest by ratio: the border is at the square root of two.
    if u128::from(mb_per_s).pow(2) >= 2 * u128::from(below).pow(2) { below.saturating_mul(2) } else { below }
}

/// Speed of the link behind `address`, where the kernel knows it.
fn bandwidth(address: Ipv4Addr) -> Option<u64> {
    if address.is_loopback() {
        return None;
    }
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    let interface = interface_of(&routes, address)?;
    let speed = fs::read_to_string(Path::new("/sys/class/net").join(interface).join("speed")).ok()?;
    let mbit_per_s: u64 = speed.trim().parse().ok()?;
    Some(mbit_per_s.saturating_mul(1_000_000)).filter(|speed| *speed > 0)
}

/// The interface whose own network holds `address`, from `/proc/net/route`: the most specific one.
fn interface_of(routes: &str, address: Ipv4Addr) -> Option<&str> {
    // The file shows addresses as the machine's own integers of bytes in network order.
    let address = u32::from_ne_bytes(address.octets());
    let matching = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
        let (network, gateway, mask) = (number(1)?, number(2)?, number(7)?);
        (gateway == 0 && mask != 0 && address & mask == network).then(|| (mask.count_ones(), fields[0]))
    });
    matching.max_by_key(|(bits, _)| *bits).map(|(_, interface)| interface)
}

/// Whether the machine has no battery of its own, or a supply that is plugged in.
pub(crate) fn mains_power(supplies: &Path) -> bool {
    let Ok(found) = fs::read_dir(supplies) else { return true };
    let (mut battery, mut plugged) = (false, false);
    for supply in found.flatten() {
        let read = |name: &str| fs::read_to_string(supply.path().join(name)).unwrap_or_default();
        // A mouse's battery has the scope "Device".
        match (read("type").trim(), read("scope").trim()) {
            ("Battery", scope) => battery |= scope != "Device",
            ("Mains" | "USB", _) => plugged |= read("online").trim() == "1",
            _ => {}
        }
    }
    plugged || !battery
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_read_and_written_alike_and_win() {
        for text in ["3:cpu=500", "1:memory=1,mains=no", "7:cpu=1,memory=2,bandwidth=3,mains=yes"] {
            assert_eq!(text.parse::<Override>().unwrap().to_string(), text);
        }
        for text in ["", "3", "3:", "x:cpu=1", "3:cpu", "3:cpu=-1", "3:disk=1", "3:mains=1", "3:cpu=1,cpu=2"]
        {
            assert!(text.parse::<Override>().is_err(), "{text}");
        }
        let given: Override = "2:memory=5,mains=no".parse().unwrap();
        let measured = Resources::default();
        assert_eq!(given.apply(measured), Resources { memory_bytes: 5, mains_power: false, ..measured });
    }

    #[test]
    fn this_machine_has_something_to_offer() {
        let measured = measure(Ipv4Addr::new(127, 0, 0, 11));
        assert!(measured.cpu_mb_per_s > 10 && measured.memory_bytes > 1_000_000, "{measured:?}");
        assert_eq!(measured.bandwidth_bits_per_s, DEFAULT_BANDWIDTH_BITS_PER_S);
    }

    #[test]
    fn speeds_that_differ_a_little_are_the_same() {
        for (measured, expected) in [(0, 1), (1, 1), (900, 1024), (1024, 1024), (1400, 1024), (1500, 2048)] {
            assert_eq!(rounded(measured), expected, "{measured}");
        }
        assert_eq!(rounded(u64::MAX), u64::MAX);
    }

    #[test]
    fn the_interface_is_that_of_the_most_specific_network() {
        let hex = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let line = |interface: &str, network, gateway, mask| {
            let (network, gateway, mask) = (hex(network), hex(gateway), hex(mask));
            format!("{interface}\t{network}\t{gateway}\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n")
        };
        let routes = "Iface\tDestination\n".to_owned()
            + &line("eth0", [0; 4], [10, 0, 0, 1], [0; 4])
            + &line("eth0", [10, 0, 0, 0], [0; 4], [255, 0, 0, 0])
            + &line("wlan0", [10, 1, 2, 0], [0; 4], [255, 255, 255, 0])
            + "broken\n";
        assert_eq!(interface_of(&routes, Ipv4Addr::new(10, 1, 2, 3)), Some("wlan0"));
        assert_eq!(interface_of(&routes, Ipv4Addr::new(10, 9, 2, 3)), Some("eth0"));
        assert_eq!(interface_of(&routes, Ipv4Addr::new(11, 9, 2, 3)), None, "beyond a gateway");
    }

    #[test]
    fn a_battery_without_a_plug_is_no_mains_power() {
        let dir = tempfile::tempdir().unwrap();
        let supply = |name: &str, files: &[(&str, &str)]| {
            let folder = dir.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            for (file, text) in files {
                fs::write(folder.join(file), format!("{text}\n")).unwrap();
            }
        };
        assert!(mains_power(&dir.path().join("none")) && mains_power(dir.path()));
        supply("mouse", &[("type", "Battery"), ("scope", "Device")]);
        assert!(mains_power(dir.path()), "a battery that is not the machine's own");
        supply("BAT0", &[("type", "Battery")]);
        assert!(!mains_power(dir.path()));
        supply("AC", &[("type", "Mains"), ("online", "0")]);
        assert!(!mains_power(dir.path()));
        supply("AC", &[("online", "1")]);
        assert!(mains_power(dir.path()));
    }
}
