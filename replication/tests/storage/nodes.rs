//! Groups of any backend, each node on a disk of its own, on the seeded network under virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use replication::backup::BackupConfig;
use replication::gossip::{Detector, GossipConfig};
use replication::local::LocalConfig;
use replication::raft::{Electorate, RaftConfig};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::{
    AnyStore, Backend, Checkpoint, Epoch, Metadata, NodeId, Payload, Receipt, Silent, Site, Storage,
    StoreError, Window, open,
};

use super::disk::Disk;
use super::restart::{bytes, id};

/// Longer than anything takes that succeeds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const PUT_TIMEOUT_MS: u64 = 2000;
const RETAINED: usize = 4;

pub(crate) fn nodes() -> BTreeSet<NodeId> {
    (1..=3).map(NodeId).collect()
}

pub(crate) fn local() -> Backend {
    Backend::Local(LocalConfig {
        nodes: nodes(),
        heartbeat_ms: 50,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: RETAINED,
    })
}

pub(crate) fn raft(payload: Payload) -> Backend {
    Backend::Raft(RaftConfig {
        nodes: nodes(),
        electorate: Electorate::Everyone,
        payload,
        window: Window { from_ms: 200, to_ms: 400 },
        heartbeat_ms: 50,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: RETAINED,
        seed: 1,
    })
}

/// Two of three nodes hold what was acknowledged.
pub(crate) fn gossip() -> Backend {
    Backend::Gossip(GossipConfig {
        nodes: nodes(),
        holders: 2,
        interval_ms: 100,
        fan_out: 2,
        phi_milli: 4000,
        detector: Detector::Phi,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: RETAINED,
        seed: 1,
    })
}

/// Two of three nodes hold what was acknowledged.
pub(crate) fn backup() -> Backend {
    Backend::Backup(BackupConfig {
        nodes: nodes(),
        backups: 1,
        window: Window { from_ms: 200, to_ms: 400 },
        heartbeat_ms: 50,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: RETAINED,
        seed: 1,
    })
}

pub(crate) fn fresh_disks() -> BTreeMap<NodeId, Disk> {
    nodes().into_iter().map(|node| (node, Disk::default())).collect()
}

pub(crate) struct Group {
    network: ChannelNetwork,
    pub(crate) members: BTreeMap<NodeId, AnyStore>,
    pub(crate) disks: BTreeMap<NodeId, Disk>,
}

impl Group {
    /// Starts the nodes whose disk can be used.
    pub(crate) async fn start(backend: &Backend, seed: u64, disks: BTreeMap<NodeId, Disk>) -> Self {
        let network = ChannelNetwork::new(seed, LinkSpec::default(), nodes());
        let mut members = BTreeMap::new();
        for (node, disk) in &disks {
            let Ok(storage) = Storage::eager_on(disk.clone()) else { continue };
            let site = Site { storage: Some(storage), ..Site::new(network.join(*node), Arc::new(Silent)) };
            if let Ok(store) = open(backend.clone(), site).await {
                members.insert(*node, store);
            }
        }
        Self { network, members, disks }
    }

    /// The newest epoch whose node lives and says that it aggregates; none within the patience.
    pub(crate) async fn epoch(&self) -> Option<Epoch> {
        let looking = async {
            loop {
                let own = |(node, store): (&NodeId, &AnyStore)| {
                    (*store.aggregator().borrow()).filter(|epoch| epoch.node == *node)
                };
                if let Some(epoch) = self.members.iter().filter_map(own).max() {
                    return epoch;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.ok()
    }

    /// Writes the round after the newest on whoever aggregates.
    pub(crate) async fn write_next(&self) -> Option<Result<Receipt, StoreError>> {
        let epoch = self.epoch().await?;
        let store = &self.members[&epoch.node];
        let latest = tokio::time::timeout(PATIENCE, store.latest()).await.ok()?.ok()?;
        let round = latest.map_or(0, |latest| latest.id().round) + 1;
        let checkpoint = Checkpoint::new(id(epoch, round), bytes(round), Metadata::new());
        tokio::time::timeout(PATIENCE, store.put(checkpoint)).await.ok()
    }

    /// Ends a node without a word.
    pub(crate) async fn crash(&mut self, node: NodeId) {
        if let Some(store) = self.members.remove(&node) {
            self.network.crash(node);
            store.close().await;
        }
    }

    /// The power of all fails; returns what is on the disks.
    pub(crate) async fn power_off(mut self, seed: u64) -> BTreeMap<NodeId, Disk> {
        for disk in self.disks.values() {
            disk.cut_power();
        }
        for node in nodes() {
            self.crash(node).await;
        }
        self.disks.iter().map(|(node, disk)| (*node, disk.after_power_loss(seed))).collect()
    }
}

/// Checks that a group which comes back has what was acknowledged up to round `acknowledged`, and goes on.
pub(crate) async fn goes_on(group: &Group, acknowledged: u64, case: &str) {
    assert_eq!(group.members.len(), nodes().len(), "{case}: a power loss leaves no disk that cannot be used");
    let epoch = group.epoch().await.unwrap_or_else(|| panic!("{case}: nobody aggregates"));
    let latest = group.members[&epoch.node].latest().await.unwrap_or_else(|error| panic!("{case}: {error}"));
    let round = latest.as_ref().map_or(0, |latest| latest.id().round);
    assert!(round >= acknowledged, "{case}: {round} is the newest, {acknowledged} was acknowledged");
    if let Some(latest) = latest {
        assert!(latest.id().epoch < epoch, "{case}: a new life begins a new epoch");
        assert_eq!(*latest.parameters(), bytes(round), "{case}");
    }
    let written = group.write_next().await;
    assert!(matches!(written, Some(Ok(_))), "{case}: {written:?}");
}
