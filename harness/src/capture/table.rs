//! Counts for people and as CSV rows. Pure.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{Direction, Interval};
use crate::units::show_bytes;

/// What was counted so far, and in the last interval.
#[derive(Debug, Default)]
pub struct Counts {
    rows: BTreeMap<(u16, Direction), Row>,
    dropped_packets: u64,
    span_ns: u64,
}

#[derive(Debug, Default)]
struct Row {
    packets: u64,
    bytes: u64,
    last_bytes: u64,
}

/// A row of the CSV file.
#[derive(Debug, Serialize)]
pub struct CsvRow<'a> {
    interface: &'a str,
    from_ns: u64,
    until_ns: u64,
    port: u16,
    direction: Direction,
    packets: u64,
    bytes: u64,
    dropped_packets: u64,
}

impl<'a> CsvRow<'a> {
    /// Names of the columns, in order.
    pub const COLUMNS: [&'static str; 8] =
        ["interface", "from_ns", "until_ns", "port", "direction", "packets", "bytes", "dropped_packets"];

    /// The rows of an interval.
    pub fn of(interface: &'a str, interval: &'a Interval) -> impl Iterator<Item = Self> {
        interval.counts.iter().map(move |count| Self {
            interface,
            from_ns: interval.from_ns,
            until_ns: interval.until_ns,
            port: count.port,
            direction: count.direction,
            packets: count.packets,
            bytes: count.bytes,
            dropped_packets: interval.dropped_packets,
        })
    }
}

impl Counts {
    /// Rows for `ports` in both directions, all zero.
    #[must_use]
    pub fn new(ports: &[u16]) -> Self {
        let keys =
            ports.iter().flat_map(|port| [Direction::Egress, Direction::Ingress].map(|to| (*port, to)));
        Self { rows: keys.map(|key| (key, Row::default())).collect(), ..Self::default() }
    }

    /// Adds an interval.
    pub fn add(&mut self, interval: &Interval) {
        self.span_ns = interval.until_ns.saturating_sub(interval.from_ns);
        self.dropped_packets += interval.dropped_packets;
        for row in self.rows.values_mut() {
            row.last_bytes = 0;
        }
        for count in &interval.counts {
            let row = self.rows.entry((count.port, count.direction)).or_default();
            row.packets += count.packets;
            row.bytes += count.bytes;
            row.last_bytes = count.bytes;
        }
    }

    /// Packets that were not counted, because the kernel dropped them.
    #[must_use]
    pub const fn dropped_packets(&self) -> u64 {
        self.dropped_packets
    }

    /// The table, a row per port and direction.
    #[must_use]
    pub fn render(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["port", "direction", "now per s", "packets", "bytes", "total"]);
        for ((port, direction), row) in &self.rows {
            let per_s = u128::from(row.last_bytes) * 1_000_000_000 / u128::from(self.span_ns.max(1));
            table.add_row([
                port.to_string(),
                direction.name().to_owned(),
                show_bytes(u64::try_from(per_s).unwrap_or(u64::MAX)),
                row.packets.to_string(),
                row.bytes.to_string(),
                show_bytes(row.bytes),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{table}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Count;

    #[test]
    fn ports_without_packets_have_rows_and_rates_are_of_the_last_interval() {
        let mut counts = Counts::new(&[8080, 5000]);
        let mut interval = Interval {
            from_ns: 0,
            until_ns: 500_000_000,
            counts: vec![Count { port: 8080, direction: Direction::Egress, packets: 2, bytes: 3000 }],
            dropped_packets: 1,
            ..Interval::default()
        };
        counts.add(&interval);
        let first = counts.render();
        assert_eq!(first.lines().count(), 5, "{first}");
        assert!(first.contains("6.0 kB") && first.contains("3.0 kB"), "{first}");
        interval.counts.clear();
        counts.add(&interval);
        let second = counts.render();
        assert!(!second.contains("6.0 kB") && second.contains("3000"), "{second}");
        assert_eq!(counts.dropped_packets(), 2);
    }
}
