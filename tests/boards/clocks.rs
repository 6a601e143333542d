//! Ten boards whose clocks differ by hours: what a run tells of them is as right as it says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{ended, json, rows};
use crate::shelf::{AHEAD_S, Shelf};

/// How far the clock of a node's host is ahead of the controller's: what the hosts were made with is the truth.
fn ahead_ns(node: u64) -> i128 {
    i128::from(node * AHEAD_S) * 1_000_000_000
}

/// Rows of `clocks.csv`.
struct Comparisons(Vec<BTreeMap<String, String>>);

fn number(row: &BTreeMap<String, String>, name: &str) -> i128 {
    row[name].parse().unwrap()
}

impl Comparisons {
    fn of(&self, node: u64) -> impl Iterator<Item = &BTreeMap<String, String>> {
        self.0.iter().filter(move |row| row["node"] == node.to_string())
    }

    fn assert_right(&self) {
        for row in &self.0 {
            let error = number(row, "offset_ns") - ahead_ns(row["node"].parse().unwrap());
            assert!(error.abs() <= number(row, "uncertainty_ns"), "{row:?}: wrong by {error} ns");
        }
    }

    /// How wrong a moment may be at most, by any one comparison that was made before: that, and 100 ns for each ms between.
    fn promised_ns(&self, node: u64, at_ns: i128) -> i128 {
        let promises = self.of(node).filter_map(|row| {
            let (uncertainty_ns, age_ns) = (number(row, "uncertainty_ns"), at_ns - number(row, "at_ns"));
            // The comparison itself took twice its uncertainty.
            (age_ns >= 0).then(|| uncertainty_ns + (age_ns + 2 * uncertainty_ns) / 10_000)
        });
        promises.min().unwrap_or_else(|| panic!("the clock of node {node} was not compared before {at_ns}"))
    }

    /// The moments of all events, as they were translated.
    fn assert_moments_are_right(&self, events: &[Value]) {
        for event in events {
            let shown = event["node"].as_u64().zip(event["node_at_ns"].as_u64());
            let Some((node, shown_ns)) = shown else { continue };
            let at_ns = i128::from(event["at_ns"].as_u64().unwrap());
            let error = at_ns - (i128::from(shown_ns) - ahead_ns(node));
            let promised_ns = self.promised_ns(node, at_ns);
            assert!(error.abs() <= promised_ns, "{event}: wrong by {error} ns, not by {promised_ns} ns");
        }
    }
}

/// The only fail-over says how uncertain it is; returns that.
fn assert_failover_is_flagged_if_uncertain(results: &Path) -> i128 {
    let failovers = rows(&results.join("failovers.csv"));
    let [failover] = &failovers[..] else { panic!("{failovers:?}") };
    let uncertainty_ns = number(failover, "uncertainty_ns");
    assert!(uncertainty_ns > 0, "{failover:?}");
    let flagged = uncertainty_ns * 100 > number(failover, "agreed_ns") * 5;
    assert_eq!(failover["uncertain"], flagged.to_string(), "{failover:?}");
    uncertainty_ns
}

#[test]
fn a_run_on_ten_hosts_begins_soon_measures_right_and_leaves_nothing_behind() {
    let shelf = Shelf::new(10);
    fs::write(shelf.path("hosts.ini"), shelf.inventory(10, |_| String::new())).unwrap();
    let begun_ns = harness::clock::monotonic_ns();
    // Enough rounds for several comparisons of clocks, one every two seconds.
    let run = shelf.run(&["--rounds", "20", "--fault", "kill@aggregator,round:2", "--capture", "required"]);
    let (code, summary, said) = ended(run);
    shelf.assert_nothing_left_now(1..=10);
    assert_eq!(code, Some(0), "{said}");
    let results = shelf.path(summary["results"].as_str().unwrap());
    let manifest = json(&results.join("manifest.json"));
    assert_eq!(manifest["hosts"].as_array().unwrap().len(), 10);
    assert!(manifest["hosts"][3]["after"]["memory_available_bytes"].as_u64().unwrap() > 0);
    let traffic = &summary["traffic"];
    assert_eq!((&traffic["source"], &traffic["valid"]), (&"capture".into(), &true.into()), "{traffic}");
    assert_eq!(summary["unexpected_deaths"], 0);

    let clocks = Comparisons(rows(&results.join("clocks.csv")));
    let victim = &crate::federated::events_in(&results, "fault_struck")[0]["target"];
    for node in (1..=10_u64).filter(|node| *victim != *node) {
        let compared = clocks.of(node).count();
        assert!(compared >= 2, "node {node} is compared again: {compared}");
    }
    clocks.assert_right();
    let uncertainty_ns = assert_failover_is_flagged_if_uncertain(&results);
    let text = fs::read_to_string(results.join("events.jsonl")).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    clocks.assert_moments_are_right(&events);
    let first_round = events.iter().find(|event| event["event"] == "round_started").unwrap();
    let start_ns = first_round["at_ns"].as_u64().unwrap() - begun_ns;
    assert!(start_ns < 20_000_000_000, "the first round began after {start_ns} ns");
    println!("first round after {start_ns} ns, uncertainty {uncertainty_ns} ns");
    let report = shelf.harness(&["report", results.to_str().unwrap()]);
    assert_eq!(report.status.code(), Some(0), "{}", String::from_utf8_lossy(&report.stderr));
}
