//! A disk that is slower than those of the others.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use replication::conformance::until;
use replication::gossip::GossipConfig;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::{
    AnyStore, Backend, Checkpoint, CheckpointStoreExt, Metadata, NodeId, Silent, Site, Storage, open,
};

use super::nodes::{fresh_disks, gossip, nodes};
use super::restart::{bytes, id};

const PUT_TIMEOUT_MS: u64 = 60_000;

/// The others have said that they hold it long before this is over. If not, the test asks for less, and does not fail.
const TOLD_AFTER: Duration = Duration::from_millis(500);

#[tokio::test]
async fn whoever_writes_is_among_the_holders_even_if_all_others_are_faster() {
    let Backend::Gossip(config) = gossip() else { panic!("gossip") };
    let backend = Backend::Gossip(GossipConfig { put_timeout_ms: PUT_TIMEOUT_MS, ..config });
    let network = ChannelNetwork::new(1, LinkSpec::default(), nodes());
    let (disks, mut stores) = (fresh_disks(), BTreeMap::<NodeId, AnyStore>::new());
    for (node, disk) in &disks {
        let storage = Some(Storage::on(disk.clone()).unwrap());
        let site = Site { storage, ..Site::new(network.join(*node), Arc::new(Silent)) };
        stores.insert(*node, open(backend.clone(), site).await.unwrap());
    }
    let epoch = stores[&NodeId(1)].await_aggregator().await.unwrap();
    let store = stores.remove(&epoch.node).unwrap();
    until("the aggregator to know", || *store.aggregator().borrow() == Some(epoch)).await;

    let (stalls, stalled) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let disk = disks[&epoch.node].clone();
    let staller = thread::spawn(move || {
        let _guard = disk.stall();
        stalls.send(()).unwrap();
        wait.recv().unwrap();
    });
    stalled.recv().unwrap();
    let writing = store.put(Checkpoint::new(id(epoch, 1), bytes(1), Metadata::new()));
    let others_are_done = async {
        let holds = |store: &AnyStore| store.held().is_some_and(|held| held.id == id(epoch, 1));
        until("the others to hold it", || stores.values().all(holds)).await;
        tokio::time::sleep(TOLD_AFTER).await;
        go_on.send(()).unwrap();
    };
    let (receipt, ()) = tokio::join!(writing, others_are_done);
    let receipt = receipt.unwrap();
    assert!(receipt.holders.contains(&epoch.node), "{receipt:?}");
    staller.join().unwrap();
}
