//! What is seen of a cluster: a line on the whole and a row for each node, in words. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use comfy_table::{ContentArrangement, Table, presets};

use super::ask::Answer;
use super::look::Look;
use super::targets::Target;
use crate::units::{nanoseconds, show_bytes, show_ns};

/// Classes of messages in the order of the columns, and what their columns are called.
const CLASSES: [(&str, &str); 8] = [
    ("election", "election/s"),
    ("heartbeat", "heartbeat/s"),
    ("log", "log/s"),
    ("digest", "digest/s"),
    ("blob", "blob/s"),
    ("lifeline", "lifeline/s"),
    ("learning_control", "control/s"),
    ("learning_bulk", "parameters/s"),
];
/// Columns before and after those of the classes.
const FIRST: [&str; 6] = ["node", "role", "epoch", "round", "checkpoint", "holders"];
const LAST: [&str; 2] = ["suspicion", "last operations"];
/// From here on a peer is suspected.
const SUSPECTED: f64 = 1.0;

/// A node as it is shown: what it answered last and before that.
#[derive(Debug, Clone)]
pub struct Row {
    target: Target,
    before: Option<Answer>,
    now: Option<Answer>,
    has_answered: bool,
}

impl Row {
    /// A node that was not asked yet.
    #[must_use]
    pub fn of(target: Target) -> Self {
        Self { target, before: None, now: None, has_answered: false }
    }

    /// Takes note of an answer.
    pub fn take(&mut self, answer: Answer) {
        self.has_answered |= answer.is_ok();
        self.before = self.now.replace(answer);
    }

    fn look(&self) -> Option<&Look> {
        self.now.as_ref()?.as_ref().ok().map(|(look, _)| look)
    }

    /// Bytes that it sent each second, by class, if it has answered twice.
    fn rates(&self) -> Option<BTreeMap<String, u64>> {
        let ((now, now_at), (before, before_at)) =
            (self.now.as_ref()?.as_ref().ok()?, self.before.as_ref()?.as_ref().ok()?);
        Some(now.rates(before, now_at.duration_since(*before_at)))
    }

    fn is_shown(&self) -> bool {
        self.has_answered || !self.target.may_come
    }

    fn name(&self) -> String {
        match self.look().and_then(|look| look.node).or(self.target.node.map(|node| node.0)) {
            Some(node) => node.to_string(),
            None => self.target.at.to_string(),
        }
    }
}

/// How many of `rows` have answered the last time.
#[must_use]
pub fn answering(rows: &[Row]) -> usize {
    rows.iter().filter(|row| row.look().is_some()).count()
}

/// The view of `rows`, at most `width` characters wide where that is known.
#[must_use]
pub fn render(rows: &[Row], width: Option<u16>) -> String {
    let shown: Vec<&Row> = rows.iter().filter(|row| row.is_shown()).collect();
    let carried: BTreeSet<&str> = shown
        .iter()
        .filter_map(|row| row.look())
        .flat_map(|look| look.sent_bytes.iter().filter(|(_, sent)| **sent > 0))
        .map(|(class, _)| class.as_str())
        .collect();
    let classes: Vec<(&str, &str)> =
        CLASSES.into_iter().filter(|(class, _)| carried.contains(class)).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width {
        table.set_width(width);
    }
    let mut heads = FIRST.to_vec();
    heads.extend(classes.iter().map(|(_, head)| *head));
    heads.extend(LAST);
    table.set_header(heads);
    for row in &shown {
        table.add_row(match row.look() {
            Some(look) => cells(row, look, &classes),
            None => silence(row, classes.len()),
        });
    }
    format!("{}\n{}\n", summary(&shown), table.trim_fmt())
}

fn cells(row: &Row, look: &Look, classes: &[(&str, &str)]) -> Vec<String> {
    let none = || "-".to_owned();
    let role = if look.aggregates { "aggregator" } else { "follower" };
    let mut cells = vec![
        row.name(),
        role.to_owned(),
        look.epoch.map_or_else(none, |epoch| epoch.to_string()),
        look.round.to_string(),
        look.checkpoint_age.map_or_else(none, |age| format!("{} old", show_ns(nanoseconds(age)))),
        look.holders.map_or_else(none, |holders| holders.to_string()),
    ];
    let rates = row.rates();
    let rate = |class: &str| rates.as_ref().map(|rates| rates.get(class).copied().unwrap_or(0));
    cells.extend(classes.iter().map(|(class, _)| rate(class).map_or_else(none, show_bytes)));
    cells.push(match look.suspects {
        None => none(),
        Some((peer, level)) if level >= SUSPECTED => format!("{level:.2}: node {peer} suspected"),
        Some((peer, level)) => format!("{level:.2} of node {peer}"),
    });
    let took =
        |(name, took): (&String, &std::time::Duration)| format!("{name} {}", show_ns(nanoseconds(*took)));
    let operations: Vec<String> = look.last_took.iter().map(took).collect();
    cells.push(if operations.is_empty() { none() } else { operations.join(", ") });
    cells
}

/// The row of a node without figures: why there are none is in the last column, which is the widest.
fn silence(row: &Row, classes: usize) -> Vec<String> {
    let at: SocketAddr = row.target.at;
    let (state, why) = match &row.now {
        Some(Err(reason)) => ("no answer", format!("{at}: {reason}")),
        _ => ("not asked", at.to_string()),
    };
    let mut cells = vec![row.name(), state.to_owned()];
    cells.resize(FIRST.len() + classes + LAST.len() - 1, "-".to_owned());
    cells.push(why);
    cells
}

fn summary(shown: &[&Row]) -> String {
    let looks: Vec<&Look> = shown.iter().filter_map(|row| row.look()).collect();
    let about = looks.iter().find_map(|look| look.about.as_ref());
    let about = about.map_or_else(String::new, |(backend, workload)| format!("{workload} over {backend}: "));
    // Who knows the newest epoch knows best.
    let newest = looks.iter().max_by_key(|look| look.epoch);
    let aggregator = match newest.and_then(|look| Some((look.aggregator?, look.epoch?))) {
        Some((node, epoch)) => format!("node {node} aggregates in epoch {epoch}"),
        None => "nobody is known to aggregate".into(),
    };
    format!("{about}{} of {} nodes answer; {aggregator}", looks.len(), shown.len())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use replication::NodeId;

    use super::*;

    fn row(node: u64, may_come: bool) -> Row {
        Row::of(Target { at: "127.9.9.11:9464".parse().unwrap(), node: Some(NodeId(node)), may_come })
    }

    #[test]
    fn a_row_says_how_a_node_is_or_why_it_does_not_answer() {
        let at = Instant::now();
        let look = |log| Look {
            node: Some(1),
            about: Some(("raft".into(), "kv".into())),
            aggregates: true,
            epoch: Some(3),
            aggregator: Some(1),
            round: 40,
            checkpoint_age: Some(Duration::from_millis(31)),
            sent_bytes: [("log".into(), log), ("blob".into(), 0)].into(),
            suspects: Some((2, 1.25)),
            last_took: [("put".into(), Duration::from_millis(4))].into(),
            ..Look::default()
        };
        let mut rows = vec![row(1, false), row(2, false), row(3, true)];
        rows[0].take(Ok((look(1000), at)));
        rows[0].take(Ok((look(5000), at + Duration::from_secs(2))));
        rows[1].take(Err("cannot connect".into()));
        rows[2].take(Err("cannot connect".into()));
        let text = render(&rows, None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "kv over raft: 1 of 2 nodes answer; node 1 aggregates in epoch 3");
        assert!(lines[1].contains("log/s") && !text.contains("blob"), "{text}");
        for part in ["aggregator", "40", "31 ms old", "2.0 kB", "1.25: node 2 suspected", "put 4.0 ms"] {
            assert!(lines[2].contains(part), "{part}: {text}");
        }
        assert!(lines[3].starts_with(" 2     no answer "), "{text}");
        assert!(lines[3].trim_end().ends_with(" 127.9.9.11:9464: cannot connect"), "{text}");
        assert_eq!((lines.len(), answering(&rows)), (4, 1), "who may come later is no row: {text}");
        rows[2].take(Ok((look(0), at)));
        assert_eq!(render(&rows, Some(80)).lines().next().unwrap().split(' ').nth(3), Some("2"));
    }
}
