//! How a node is, taken out of its samples, and how it changed from one look to the next. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::metrics::PREFIX;
use crate::metrics::text::Sample;

/// A node at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    /// Its number, as it says.
    pub node: Option<u64>,
    /// Its backend and workload.
    pub about: Option<(String, String)>,
    /// Whether it aggregates.
    pub aggregates: bool,
    /// The epoch that it knows; none: it knows none.
    pub epoch: Option<u64>,
    /// Who aggregates, as it knows.
    pub aggregator: Option<u64>,
    /// Its newest round.
    pub round: u64,
    /// Time since the newest checkpoint came to it.
    pub checkpoint_age: Option<Duration>,
    /// Nodes known to hold what it put last.
    pub holders: Option<u64>,
    /// Bytes that it sent, by class.
    pub sent_bytes: BTreeMap<String, u64>,
    /// The peer that its detector suspects most, and how much.
    pub suspects: Option<(u64, f64)>,
    /// What its last operations took, by name.
    pub last_took: BTreeMap<String, Duration>,
}

impl Look {
    /// What `samples` say; what they do not say is none, or 0.
    #[must_use]
    pub fn of(samples: &[Sample]) -> Self {
        let mut look = Self::default();
        for Sample { name, labels, value } in samples {
            let Some(name) = name.strip_prefix(PREFIX).and_then(|name| name.strip_prefix('_')) else {
                continue;
            };
            let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
            let count = whole(*value);
            let known = (count > 0).then_some(count);
            match name {
                "node_info" => {
                    look.node = label("node").parse().ok();
                    look.about = Some((label("backend"), label("workload")));
                }
                "is_aggregator" => look.aggregates = count == 1,
                "epoch" => look.epoch = known,
                "aggregator" => look.aggregator = known,
                "round" => look.round = count,
                "checkpoint_age_seconds" => look.checkpoint_age = seconds(*value),
                "checkpoint_holders" => look.holders = Some(count),
                "bytes_total" if label("direction") == "sent" => {
                    let sent = look.sent_bytes.entry(label("class")).or_default();
                    *sent = sent.saturating_add(count);
                }
                "suspicion_level" => {
                    let peer = label("peer").parse().unwrap_or(0);
                    if look.suspects.is_none_or(|(_, level)| level < *value) {
                        look.suspects = Some((peer, *value));
                    }
                }
                "operation_last_seconds" => {
                    look.last_took.extend(seconds(*value).map(|took| (label("operation"), took)));
                }
                _ => {}
            }
        }
        look
    }

    /// Bytes that it sent each second since it was `before`, `apart` earlier, by class. Whoever counts from 0 again was started again.
    #[must_use]
    pub fn rates(&self, before: &Self, apart: Duration) -> BTreeMap<String, u64> {
        let rate = |(class, sent): (&String, &u64)| {
            let earlier = before.sent_bytes.get(class).copied().unwrap_or(0);
            let sent = if earlier <= *sent { sent - earlier } else { *sent };
            (class.clone(), whole(sent as f64 / apart.as_secs_f64().max(0.001)))
        };
        self.sent_bytes.iter().map(rate).collect()
    }
}

/// A number that counts; whatever is none is 0.
fn whole(value: f64) -> u64 {
    // Saturates.
    value.max(0.0).round() as u64
}

fn seconds(value: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::text::parse;

    const PAGE: &str = "harness_node_info{node=\"2\",backend=\"raft\",workload=\"kv\"} 1\nharness_epoch{node=\"2\"} 3\n\
        harness_aggregator 1\nharness_round 40\nharness_checkpoint_age_seconds 0.5\n\
        harness_bytes_total{plane=\"replication\",class=\"log\",direction=\"sent\"} 3000\n\
        harness_bytes_total{plane=\"replication\",class=\"log\",direction=\"received\"} 9000\n\
        harness_suspicion_level{peer=\"3\"} 0.1\nharness_suspicion_level{peer=\"1\"} 1.4\n\
        harness_operation_last_seconds{operation=\"write\"} 0.002\nother_round 7\n";

    #[test]
    fn samples_become_a_look_and_two_looks_become_rates() {
        let look = Look::of(&parse(PAGE).unwrap());
        assert_eq!(
            (look.node, look.aggregates, look.epoch, look.aggregator),
            (Some(2), false, Some(3), Some(1))
        );
        assert_eq!((look.round, look.checkpoint_age), (40, Some(Duration::from_millis(500))));
        assert_eq!((look.suspects, look.holders), (Some((1, 1.4)), None));
        assert_eq!(look.last_took["write"], Duration::from_millis(2));
        let rate = |before: u64| {
            let before = Look { sent_bytes: [("log".into(), before)].into(), ..Look::default() };
            look.rates(&before, Duration::from_secs(2))["log"]
        };
        assert_eq!((rate(1000), rate(0), rate(5000)), (1000, 1500, 1500), "the last one was started again");
    }

    #[test]
    fn numbers_that_are_none_do_no_harm() {
        let page = "harness_epoch NaN\nharness_round -3\nharness_checkpoint_age_seconds -1\nharness_checkpoint_holders +Inf\n";
        let look = Look::of(&parse(page).unwrap());
        assert_eq!((look.epoch, look.round, look.checkpoint_age), (None, 0, None));
    }
}
