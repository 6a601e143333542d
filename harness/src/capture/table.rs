//! Counts for people and as CSV rows. Pure.

use std::collections::{BTreeMap, VecDeque};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{Direction, Interval};
use crate::units::show_bytes;

/// Rates are shown over this many of the last intervals, of about a second each.
const SPANS: [usize; 3] = [2, 10, 40];

/// What was counted so far, and in the last intervals.
#[derive(Debug, Default)]
pub struct Counts {
    rows: BTreeMap<(u16, Direction), Row>,
    dropped_packets: u64,
    inexact: bool,
    /// Lengths of the last intervals in ns, the latest first.
    spans_ns: VecDeque<u64>,
}

#[derive(Debug, Default)]
struct Row {
    packets: u64,
    bytes: u64,
    /// Bytes of the last intervals, the latest first.
    last_bytes: VecDeque<u64>,
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
    exact: bool,
}

impl<'a> CsvRow<'a> {
    /// Names of the columns, in order.
    pub const COLUMNS: [&'static str; 9] = [
        "interface",
        "from_ns",
        "until_ns",
        "port",
        "direction",
        "packets",
        "bytes",
        "dropped_packets",
        "exact",
    ];

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
            exact: interval.exact,
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
        push(&mut self.spans_ns, interval.until_ns.saturating_sub(interval.from_ns));
        self.dropped_packets += interval.dropped_packets;
        self.inexact |= !interval.exact;
        for row in self.rows.values_mut() {
            push(&mut row.last_bytes, 0);
        }
        for count in &interval.counts {
            let row = self.rows.entry((count.port, count.direction)).or_default();
            row.packets += count.packets;
            row.bytes += count.bytes;
            match row.last_bytes.front_mut() {
                Some(bytes) => *bytes = count.bytes,
                None => push(&mut row.last_bytes, count.bytes),
            }
        }
    }

    /// Packets that were not counted, because the kernel dropped them.
    #[must_use]
    pub const fn dropped_packets(&self) -> u64 {
        self.dropped_packets
    }

    /// Whether packets may have been counted that were joined by an offload, or are those of loopback.
    #[must_use]
    pub const fn is_inexact(&self) -> bool {
        self.inexact
    }

    /// The table, a row per port and direction.
    #[must_use]
    pub fn render(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let rates = SPANS.map(|span| format!("B/s, {span} s"));
        let header = ["port", "direction"].map(str::to_owned).into_iter().chain(rates);
        table.set_header(header.chain(["packets", "bytes", "total"].map(str::to_owned)));
        for ((port, direction), row) in &self.rows {
            let rates = SPANS.map(|span| show_bytes(self.rate(row, span)));
            let begin = [port.to_string(), direction.name().to_owned()];
            let end = [row.packets.to_string(), row.bytes.to_string(), show_bytes(row.bytes)];
            table.add_row(begin.into_iter().chain(rates).chain(end));
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{table}\n")
    }

    /// Bytes per second of `row` in the last `span` intervals, as far as there were so many.
    fn rate(&self, row: &Row, span: usize) -> u64 {
        let bytes: u64 = row.last_bytes.iter().take(span).sum();
        let span_ns: u64 = self.spans_ns.iter().take(span).sum();
        let per_s = u128::from(bytes) * 1_000_000_000 / u128::from(span_ns.max(1));
        u64::try_from(per_s).unwrap_or(u64::MAX)
    }
}

/// Puts `value` before the others and forgets those that no rate is shown of.
fn push(values: &mut VecDeque<u64>, value: u64) {
    values.push_front(value);
    values.truncate(SPANS[SPANS.len() - 1]);
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
        assert_eq!(
            first.matches("6.0 kB").count(),
            3,
            "the only interval is all there is to each rate: {first}"
        );
        assert!(first.contains("3.0 kB"), "{first}");
        interval.counts.clear();
        interval.until_ns = 1_000_000_000;
        counts.add(&interval);
        let second = counts.render();
        assert_eq!(second.matches("2.0 kB").count(), 3, "{second}");
        counts.add(&interval);
        let third = counts.render();
        assert_eq!(third.matches("1.2 kB").count(), 2, "not in the last two any more: {third}");
        assert_eq!(counts.dropped_packets(), 3);
        assert!(counts.is_inexact());
    }

    #[test]
    fn a_row_that_appears_later_has_a_rate_of_its_own_intervals() {
        let mut counts = Counts::default();
        let mut interval = Interval { until_ns: 1_000_000_000, exact: true, ..Interval::default() };
        counts.add(&interval);
        interval.counts = vec![Count { port: 0, direction: Direction::Ingress, packets: 1, bytes: 500 }];
        counts.add(&interval);
        let shown = counts.render();
        assert!(shown.contains("250 B") && !counts.is_inexact(), "{shown}");
    }
}
