//! The published prototype as it was measured again (results/reference/), carried in the program. Its folder's README says how.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Deserialize;

const TRAFFIC: &str = include_str!("../../../results/reference/raft_flower_traffic.csv");
const ELECTION: &str = include_str!("../../../results/reference/raft_flower_election.csv");

/// Bytes of one checkpoint's parameters in every run of the reference.
pub const PARAMETER_BYTES: u64 = 248_024;

/// A row of raft_flower_traffic.csv: one round, bytes at IP level.
#[derive(Debug, Clone, Deserialize)]
struct TrafficRow {
    variant: String,
    workers: u64,
    #[serde(rename = "l3_bytes_5000_total")]
    replication_total: u64,
    #[serde(rename = "l3_bytes_5000_idle")]
    replication_idle: u64,
    #[serde(rename = "l3_bytes_8080_total")]
    learning_total: u64,
}

/// A row of raft_flower_election.csv.
#[derive(Debug, Clone, Deserialize)]
struct ElectionRow {
    scenario: String,
    nodes: u64,
    #[serde(rename = "a_all_survivors_agree_s")]
    agreed_s: Option<f64>,
    #[serde(rename = "b_first_client_accepted_s")]
    serving_s: Option<f64>,
    #[serde(rename = "c_next_round_done_s")]
    resumed_s: Option<f64>,
}

/// One version of the prototype: bytes of learning and replication of one round, per run, by workers.
#[derive(Debug, Clone, Default)]
pub struct Version {
    /// What it is called in figures.
    pub label: &'static str,
    /// Which colour it has.
    pub class: &'static str,
    /// (learning, replication) bytes of each run, by number of workers.
    pub bytes: BTreeMap<u64, Vec<(u64, u64)>>,
}

/// The prototype's figures.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    /// Plain Flower, and the prototype in two versions.
    pub versions: Vec<Version>,
    /// From the kill of the aggregator, in ns, by number of workers before it: all survivors agree, first worker accepted, next
    /// round done.
    pub recoveries: BTreeMap<u64, Vec<[Option<u64>; 3]>>,
}

impl Reference {
    /// Reads what the program carries.
    ///
    /// # Errors
    /// If the files in the program are damaged, which a test excludes.
    pub fn load() -> anyhow::Result<Self> {
        let rows: Vec<TrafficRow> = csv::Reader::from_reader(TRAFFIC.as_bytes())
            .deserialize()
            .collect::<Result<_, _>>()
            .context("raft_flower_traffic.csv")?;
        let versions = [
            ("flower_fedavg", "plain Flower", "none"),
            ("raft_feb2024", "prototype, Feb 2024", "prototype-old"),
            ("raft_head", "prototype, newest", "prototype"),
        ];
        let versions = versions.map(|(variant, label, class)| {
            let mut version = Version { label, class, bytes: BTreeMap::new() };
            for row in rows.iter().filter(|row| row.variant == variant) {
                let replication = row.replication_total.saturating_sub(row.replication_idle);
                version.bytes.entry(row.workers).or_default().push((row.learning_total, replication));
            }
            version
        });
        let rows: Vec<ElectionRow> = csv::Reader::from_reader(ELECTION.as_bytes())
            .deserialize()
            .collect::<Result<_, _>>()
            .context("raft_flower_election.csv")?;
        let mut recoveries: BTreeMap<u64, Vec<[Option<u64>; 3]>> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.scenario == "kill_during_round") {
            let stages = [row.agreed_s, row.serving_s, row.resumed_s];
            let ns = stages.map(|seconds| seconds.map(|seconds| (seconds * 1e9).round() as u64));
            recoveries.entry(row.nodes.saturating_sub(1)).or_default().push(ns);
        }
        Ok(Self { versions: versions.into(), recoveries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::median;

    #[test]
    fn the_reference_gives_the_medians_that_its_readme_states() {
        let reference = Reference::load().unwrap();
        let replication = |version: usize, workers: u64| {
            let runs: Vec<u64> =
                reference.versions[version].bytes[&workers].iter().map(|run| run.1).collect();
            median(&runs).unwrap() as f64 / 1e6
        };
        assert!((replication(2, 10) - 50.61).abs() < 0.01, "{}", replication(2, 10));
        assert!((replication(1, 10) - 7.88).abs() < 0.01, "{}", replication(1, 10));
        assert_eq!(replication(0, 10), 0.0);
        let agreed: Vec<u64> = reference.recoveries[&10].iter().filter_map(|run| run[0]).collect();
        assert_eq!(agreed.len(), 7);
        assert!((median(&agreed).unwrap() as f64 / 1e9 - 1.40).abs() < 0.01);
    }
}
