//! What this machine says of itself while it runs: the board, its clocks and its limits. Reads; changes nothing. What cannot be
//! learned is not there.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::meter::field_bytes;
use crate::resources;

/// A board, or any other machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Board {
    /// Model, as the device tree names it.
    pub model: Option<String>,
    /// What chooses the frequency of the processor.
    pub governor: Option<String>,
    /// Temperature of the processor in thousandths of a degree Celsius.
    pub temperature_millicelsius: Option<i64>,
    /// Why a Raspberry Pi throttles or has throttled since it was started, as its firmware's bits; 0: it has not.
    pub throttled_bits: Option<u64>,
    /// Its wireless link, if it has one.
    #[serde(default)]
    pub wifi: Option<Wifi>,
    /// Whether it has no battery of its own, or a supply that is plugged in.
    #[serde(default)]
    pub mains_power: bool,
    /// Memory that is free or can be freed, in bytes.
    pub memory_available_bytes: u64,
    /// Space that is free in [`STORES`], in bytes.
    pub disk_available_bytes: u64,
}

/// A wireless link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wifi {
    /// Its interface.
    pub interface: String,
    /// Strength of the signal, in dBm.
    pub signal_dbm: Option<i64>,
    /// Rate at which it sends, in bit/s, as `iw` says.
    pub sent_bits_per_s: Option<u64>,
}

/// Where hosts keep stores for the time of a run: on disk, which /tmp need not be.
pub const STORES: &str = "/var/tmp";

/// How long a program may take to say something of the board, and how often it is looked whether it has.
const SAYS_WITHIN: Duration = Duration::from_secs(2);
const SAYS_INTERVAL: Duration = Duration::from_millis(5);
/// Most bytes of its words that are kept.
const MOST_SAID_BYTES: u64 = 64 * 1024;

/// Bits of `throttled_bits` that speak of now: under-voltage, frequency capped, throttled, temperature limit.
const THROTTLED_NOW: u64 = 0xf;

impl Board {
    /// This machine.
    #[must_use]
    pub fn this() -> Self {
        Self::at(Path::new("/"))
    }

    fn at(root: &Path) -> Self {
        let text = |path: &str| {
            let text = fs::read_to_string(root.join(path)).ok()?;
            let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned();
            (!text.is_empty()).then_some(text)
        };
        let bits = |text: String| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let disk = rustix::fs::statvfs(STORES);
        Self {
            model: text("proc/device-tree/model"),
            governor: text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            temperature_millicelsius: text("sys/class/thermal/thermal_zone0/temp")
                .and_then(|text| text.parse().ok()),
            throttled_bits: text("sys/devices/platform/soc/soc:firmware/get_throttled")
                .or_else(|| {
                    said(&["vcgencmd"], &["get_throttled"])?.strip_prefix("throttled=").map(Into::into)
                })
                .and_then(bits),
            wifi: text("proc/net/wireless").and_then(|table| wireless(&table)).map(|wifi| Wifi {
                sent_bits_per_s: said(&["iw", "/usr/sbin/iw"], &["dev", &wifi.interface, "link"])
                    .and_then(|words| sent_bits_per_s(&words)),
                ..wifi
            }),
            mains_power: resources::mains_power(&root.join("sys/class/power_supply")),
            memory_available_bytes: field_bytes(&text("proc/meminfo").unwrap_or_default(), "MemAvailable:"),
            disk_available_bytes: disk.map_or(0, |disk| disk.f_bavail * disk.f_frsize),
        }
    }

    /// Whether it is throttled now, or its power or temperature limits it.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        self.throttled_bits.is_some_and(|bits| bits & THROTTLED_NOW != 0)
    }
}

/// What the first of these `programs` that there is says, unless it takes long: some hang.
fn said(programs: &[&str], arguments: &[&str]) -> Option<String> {
    let start = |program: &&str| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()
    };
    let mut child = programs.iter().find_map(start)?;
    let deadline = Instant::now() + SAYS_WITHIN;
    // Few words fit into the pipe, so that whoever says them ends without being listened to.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(SAYS_INTERVAL),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let mut words = String::new();
    child.stdout.take()?.take(MOST_SAID_BYTES).read_to_string(&mut words).ok()?;
    status.success().then(|| words.trim().to_owned())
}

/// The first link of `/proc/net/wireless`.
fn wireless(table: &str) -> Option<Wifi> {
    let line = table.lines().find(|line| line.contains(':') && !line.contains('|'))?;
    let (interface, rest) = line.split_once(':')?;
    let level = rest.split_whitespace().nth(2).map(|level| level.trim_end_matches('.'));
    // Some drivers give no strength but a quality, which is above 0.
    let signal_dbm = level.and_then(|level| level.parse().ok()).filter(|level| *level < 0);
    Some(Wifi { interface: interface.trim().into(), signal_dbm, sent_bits_per_s: None })
}

/// The rate that `iw dev ... link` tells: `tx bitrate: 72.2 MBit/s MCS 7 short GI`.
fn sent_bits_per_s(words: &str) -> Option<u64> {
    let line = words.lines().find_map(|line| line.trim().strip_prefix("tx bitrate:"))?;
    let mbit_per_s: f64 = line.split_whitespace().next()?.parse().ok()?;
    (mbit_per_s >= 0.0).then_some((mbit_per_s * 1e6) as u64)
}

/// Bits of `throttled_bits` that speak of the time since the start of the board.
const THROTTLED_SINCE: u64 = 0xf_0000;

/// Looks at this board now and then, and remembers whether it has throttled since the first look.
#[derive(Debug, Default)]
pub struct Watch {
    /// What had happened before, as the firmware remembers.
    before: Option<u64>,
    throttled: bool,
}

impl Watch {
    /// Begins.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a look; whether it throttles, or has since the first one.
    pub fn note(&mut self, board: &Board) -> bool {
        // What it cannot say now it may say later, with all that was before the run.
        let Some(bits) = board.throttled_bits else { return self.throttled };
        let since = bits & THROTTLED_SINCE;
        let before = *self.before.get_or_insert(since);
        self.throttled |= board.is_throttled() || since & !before != 0;
        self.throttled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raspberry_pi_is_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/device-tree/model", "Raspberry Pi 3 Model B Plus Rev 1.3\0");
        write("proc/meminfo", "MemTotal: 948304 kB\nMemAvailable: 700000 kB\n");
        write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n");
        write("sys/class/thermal/thermal_zone0/temp", "61376\n");
        write("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n");
        let board = Board::at(root.path());
        assert_eq!(board.model.as_deref(), Some("Raspberry Pi 3 Model B Plus Rev 1.3"));
        assert_eq!(board.governor.as_deref(), Some("ondemand"));
        assert_eq!((board.temperature_millicelsius, board.throttled_bits), (Some(61_376), Some(0x50005)));
        assert_eq!(board.memory_available_bytes, 700_000 * 1024);
        assert!(board.is_throttled());
        write(
            "proc/net/wireless",
            "Inter-| sta-|   Quality        |   Discarded packets\n face | tus | link level noise |  nwid\n wlan0: 0000   70.  -39.  -256        0\n",
        );
        let wifi = Board::at(root.path()).wifi.unwrap();
        assert_eq!((wifi.interface.as_str(), wifi.signal_dbm), ("wlan0", Some(-39)));
        assert_eq!(sent_bits_per_s("Connected\n\ttx bitrate: 72.2 MBit/s MCS 7\n"), Some(72_200_000));
        assert_eq!(sent_bits_per_s("Not connected."), None);
        write("sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n");
        assert!(!Board::at(root.path()).is_throttled(), "only earlier");
        assert_eq!(Board::at(&root.path().join("nothing")).model, None);
    }

    #[test]
    fn a_program_that_hangs_is_given_up() {
        assert_eq!(said(&["/nonexistent/iw", "echo"], &["hello"]).as_deref(), Some("hello"));
        assert_eq!(said(&["false"], &[]), None);
        let begun = Instant::now();
        assert_eq!(said(&["sleep"], &["1000"]), None);
        assert!(begun.elapsed() >= SAYS_WITHIN);
    }

    #[test]
    fn only_what_throttles_while_it_is_watched_counts() {
        let board = |bits| Board { throttled_bits: Some(bits), ..Board::default() };
        let mut watch = Watch::new();
        assert!(!watch.note(&board(0x4_0000)), "before the first look");
        assert!(!watch.note(&board(0x4_0000)) && !watch.note(&Board::default()));
        assert!(watch.note(&board(0x5_0000)), "in between");
        assert!(watch.note(&board(0x5_0000)), "and it is remembered");
        assert!(Watch::new().note(&board(0x4)));
    }
}
