//! What a node shows, from a snapshot to the page; and that the dashboard asks for nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use replication::transport::{Class, FrameCount, Traffic};
use replication::{
    CheckpointId, Digest, Epoch, Guarantee, Observer as _, Phase, Slot, StoreEvent, Suspicion,
};
use workloads::federated::Event;
use workloads::keyvalue::meter::{Meter as _, Operation};

use super::text::{Sample, parse};
use super::*;
use crate::control::Status;
use crate::http::client::{ask, get as request};

fn id(round: u64, slot: Slot) -> CheckpointId {
    CheckpointId { epoch: Epoch { counter: 4, node: NodeId(1) }, round, phase: Phase::AggregateFit, slot }
}

fn snapshot() -> Snapshot {
    let count = FrameCount { sent_frames: 2, sent_bytes: 700, received_frames: 1, received_bytes: 30 };
    let traffic = Traffic {
        frames: vec![(Class::Log, count), (Class::Blob, FrameCount::default())],
        ..Traffic::default()
    };
    Snapshot {
        status: Status {
            epoch: Some(Epoch { counter: 4, node: NodeId(1) }),
            replication: traffic,
            ..Status::default()
        },
        round: 0,
        suspicions: vec![Suspicion { node: NodeId(2), level: 0.25 }],
        connected: [1, 2],
    }
}

/// A node on which everything has happened once.
fn shown() -> Registry {
    let observed = Arc::new(Observed::default());
    observed.federated(&Event::RoundStarted { epoch: Epoch::default(), round: 7, workers: 2 });
    let put = |id, holders| Event::CheckpointPut {
        id,
        digest: Digest::of(b""),
        bytes: 0,
        put_ns: 3_000_000,
        guarantee: Guarantee::Majority { of: 3 },
        holders,
    };
    observed.federated(&put(id(7, Slot::Global), vec![NodeId(1), NodeId(3)]));
    observed.federated(&put(id(7, Slot::Worker { node: NodeId(1), part: 0 }), Vec::new()));
    observed.observe(StoreEvent::Suspected { epoch: None, silence_ns: None, lifeline: false });
    for operation in [Operation::Read, Operation::Write, Operation::Vote] {
        observed.measured(operation, Duration::from_millis(20), true);
        observed.measured(operation, Duration::from_millis(20), false);
    }
    registry(&crate::plan::tests::plan(3), NodeId(1), Arc::new(snapshot), observed)
}

fn samples(registry: &Registry) -> Vec<Sample> {
    let mut page = String::new();
    encode(&mut page, registry).unwrap();
    parse(&page).unwrap()
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&Sample| {
        sample.name == format!("harness_{name}")
            && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
    };
    let found: Vec<f64> = samples.iter().filter(fits).map(|sample| sample.value).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0]
}

#[test]
fn a_snapshot_becomes_samples() {
    let samples = samples(&shown());
    assert!(samples.iter().all(|sample| sample.labels["node"] == "1"));
    let is = |name: &str, labels: &[(&str, &str)]| value(&samples, name, labels);
    assert_eq!(is("node_info", &[("backend", "raft"), ("workload", "federated")]), 1.0);
    assert_eq!((is("is_aggregator", &[]), is("epoch", &[]), is("aggregator", &[])), (1.0, 4.0, 1.0));
    assert_eq!((is("round", &[]), is("checkpoint_holders", &[])), (7.0, 2.0));
    assert!((0.0..60.0).contains(&is("checkpoint_age_seconds", &[])));
    let log = |direction| [("plane", "replication"), ("class", "log"), ("direction", direction)];
    assert_eq!((is("bytes_total", &log("sent")), is("bytes_total", &log("received"))), (700.0, 30.0));
    assert_eq!((is("suspicion_level", &[("peer", "2")]), is("suspicions_total", &[])), (0.25, 1.0));
    assert_eq!(is("operation_seconds_count", &[("operation", "put")]), 2.0);
    assert_eq!(is("operation_seconds_bucket", &[("operation", "write"), ("le", "0.016")]), 0.0);
    assert_eq!(is("operation_seconds_bucket", &[("operation", "write"), ("le", "0.032")]), 1.0);
    assert_eq!(is("operation_last_seconds", &[("operation", "vote")]), 0.02);
    assert_eq!(is("operations_failed_total", &[("operation", "read")]), 1.0);
}

#[test]
fn a_node_that_knows_nothing_yet_shows_no_age_and_no_holders() {
    let source: Source = Arc::new(Snapshot::default);
    let registry = registry(&crate::plan::tests::plan(3), NodeId(2), source, Arc::default());
    let samples = samples(&registry);
    let names: BTreeSet<&str> = samples.iter().map(|sample| sample.name.as_str()).collect();
    assert!(
        !names.contains("harness_checkpoint_age_seconds") && !names.contains("harness_checkpoint_holders")
    );
    assert_eq!((value(&samples, "round", &[]), value(&samples, "aggregator", &[])), (0.0, 0.0));
}

#[tokio::test]
async fn the_page_is_served_and_an_address_in_use_is_named_with_its_option() {
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let serving = serve(at, shown(), &Handle::current()).unwrap();
    let patience = Duration::from_secs(10);
    let answer = ask(at, request(at, metrics_at::PATH).unwrap(), patience).await.unwrap();
    assert_eq!(
        (answer.status, answer.headers["content-type"].as_bytes()),
        (StatusCode::OK, CONTENT_TYPE.as_bytes())
    );
    assert!(parse(std::str::from_utf8(&answer.body).unwrap()).unwrap().len() > 20);
    let other = ask(at, request(at, "/").unwrap(), patience).await.unwrap();
    assert_eq!(other.status, StatusCode::NOT_FOUND);
    let refused = serve(at, shown(), &Handle::current()).unwrap_err().to_string();
    let expected =
        format!("--metrics {}: TCP address {at} is in use by another process; use another", at.port());
    assert!(refused.starts_with(&expected), "{refused}");
    drop(serving);
}

/// Every metric and label that a query names. Words of the query language are told from names by the prefix and the braces.
fn named(query: &str) -> Vec<String> {
    let word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    query
        .split(|character| !word(character))
        .filter(|word| word.starts_with("harness_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_query_of_the_dashboard_and_every_name_of_its_readme_exists() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/monitoring");
    let samples = samples(&shown());
    let mut names: BTreeSet<String> = samples.iter().map(|sample| sample.name.clone()).collect();
    let dashboard: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("dashboard.json")).unwrap()).unwrap();
    let (mut queries, mut asked) = (0, BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(panel["title"].is_string() && panel["gridPos"].is_object(), "{panel}");
        for target in panel["targets"].as_array().unwrap_or(&Vec::new()) {
            let query = target["expr"].as_str().unwrap();
            let found = named(query);
            assert!(!found.is_empty(), "{query}");
            for name in found {
                assert!(names.contains(&name), "{query}: there is no {name}");
                asked.insert(name);
            }
            queries += 1;
        }
    }
    assert!(queries >= 12 && asked.len() >= 12, "{queries} queries, {asked:?}");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        assert!(
            named(variable["query"].as_str().unwrap()).iter().all(|name| names.contains(name)),
            "{variable}"
        );
    }
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    // The table names a histogram as a whole, and the service that runs the node.
    names.extend(["harness_operation_seconds".to_owned()]);
    let told: BTreeSet<String> = named(&readme).into_iter().collect();
    assert!(told.iter().all(|name| names.contains(name)), "{:?}", told.difference(&names));
    let suffixes = ["_bucket", "_sum", "_count"];
    let untold = names.iter().filter(|name| !suffixes.iter().any(|suffix| name.ends_with(suffix)));
    let untold: Vec<&String> = untold.filter(|name| !told.contains(*name)).collect();
    assert!(untold.is_empty(), "README.md does not explain {untold:?}");
}
