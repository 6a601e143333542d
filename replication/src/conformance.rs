//! The suite every store passes: one function per property of the contract, over a cluster builder.
//!
//! [`conformance_suite!`](crate::conformance_suite) makes one named test per property for a cluster. Properties that a
//! backend does not promise are selected out by its [`Guarantees`](crate::Guarantees), never by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::{Builder, RngSeed, UnhandledPanic};

use crate::error::{Outcome, StoreError};
use crate::store::{
    AnyStore, Checkpoint, CheckpointId, Digest, Epoch, Held, MAX_METADATA_BYTES, Metadata, NodeId, Phase,
    Receipt, Slot,
};

/// How long a condition may take to come true before the suite gives up and says what it last saw.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A small cluster of the stores under test, on whatever network.
#[async_trait]
pub trait Cluster: Send {
    /// Every node, dead or alive, in ascending order.
    fn nodes(&self) -> Vec<NodeId>;

    /// The store of a living node.
    fn store(&self, node: NodeId) -> AnyStore;

    /// Ends a node at once, as SIGKILL would.
    async fn crash(&mut self, node: NodeId);

    /// Cuts the network between `side` and everyone else; false if this cluster cannot.
    fn isolate(&mut self, side: &BTreeSet<NodeId>) -> bool;

    /// Mends every cut.
    fn heal(&mut self);

    /// Whether time passes only when there is nothing left to do: then nobody is starved, and what may fail in time does not.
    fn in_virtual_time(&self) -> bool {
        false
    }
}

/// Living nodes of a cluster under test, and what the suite knows of it.
#[derive(Debug)]
pub struct Suite<C> {
    cluster: C,
    living: BTreeSet<NodeId>,
}

/// Runs `work` in virtual time on one thread, so that everything is a function of `seed`. A task that panics ends it: that is no
/// silence.
pub fn simulate<T>(seed: u64, work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
        .unhandled_panic(UnhandledPanic::ShutdownRuntime)
        .build();
    runtime.expect("a runtime").block_on(work)
}

/// Waits until `met` holds, or panics with `what` was waited for.
pub async fn until(what: &str, met: impl Fn() -> bool) {
    let waiting = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"));
}

/// Bytes of a checkpoint's size that differ for every `seed`.
#[must_use]
pub fn parameters(seed: u64, length: usize) -> Bytes {
    let mut output = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut output);
    output.into()
}

fn at(epoch: Epoch, round: u64) -> CheckpointId {
    CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global }
}

fn checkpoint(epoch: Epoch, round: u64) -> Checkpoint {
    let metadata = Metadata::from([("round".to_owned(), round.to_string())]);
    Checkpoint::new(at(epoch, round), parameters(round, 5000), metadata)
}

impl<C: Cluster> Suite<C> {
    /// A suite over a fresh cluster.
    pub fn new(cluster: C) -> Self {
        let living = cluster.nodes().into_iter().collect();
        Self { cluster, living }
    }

    async fn crash(&mut self, node: NodeId) {
        self.living.remove(&node);
        self.cluster.crash(node).await;
    }

    /// Waits until every node of `among` knows the same aggregator, other than `not`, and returns it.
    async fn agreed(&self, among: &BTreeSet<NodeId>, not: Option<Epoch>) -> Epoch {
        let mut watches: Vec<_> =
            among.iter().map(|node| (*node, self.cluster.store(*node).aggregator())).collect();
        let agreement = async {
            loop {
                let seen: Vec<Option<Epoch>> = watches.iter().map(|(_, watch)| *watch.borrow()).collect();
                if let Some(Some(epoch)) = seen.first()
                    && seen.iter().all(|other| *other == Some(*epoch))
                    && Some(*epoch) > not
                    && among.contains(&epoch.node)
                {
                    return *epoch;
                }
                let changes = watches.iter_mut().map(|(_, watch)| Box::pin(watch.changed()));
                let _ = futures_util::future::select_all(changes).await;
            }
        };
        let agreed = tokio::time::timeout(PATIENCE, agreement).await;
        agreed.unwrap_or_else(|_| {
            let seen: BTreeMap<NodeId, Option<Epoch>> =
                among.iter().map(|node| (*node, *self.cluster.store(*node).aggregator().borrow())).collect();
            panic!("no agreement on an aggregator after {not:?} within {PATIENCE:?}; seen: {seen:?}")
        })
    }

    async fn aggregator(&self, not: Option<Epoch>) -> Epoch {
        self.agreed(&self.living, not).await
    }

    async fn put(&self, checkpoint: Checkpoint) -> Receipt {
        let id = checkpoint.id();
        let store = self.cluster.store(id.epoch.node);
        match tokio::time::timeout(PATIENCE, store.put(checkpoint)).await {
            Ok(Ok(receipt)) => receipt,
            Ok(Err(error)) => panic!("put of {id} failed: {error}"),
            Err(_) => panic!("put of {id} did not return within {PATIENCE:?}"),
        }
    }

    /// Makes the aggregator hand over. Returns its epoch and the next one. By the contract nobody may take over, if the
    /// successor is starved for long enough: then it is asked again.
    async fn hand_over(&self, mut epoch: Epoch) -> (Epoch, Epoch) {
        let handing_over = async {
            loop {
                match self.cluster.store(epoch.node).step_down(None).await {
                    Ok(named) => return (epoch, named),
                    Err(StoreError::Unavailable { reason }) if !self.cluster.in_virtual_time() => {
                        println!("{epoch} did not hand over: {reason}");
                        epoch = self.aggregator(None).await;
                    }
                    Err(error) => panic!("{epoch} did not hand over: {error}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, handing_over).await.expect("a hand-over in time")
    }

    async fn latest(&self, node: NodeId) -> Option<Checkpoint> {
        let read = tokio::time::timeout(PATIENCE, self.cluster.store(node).latest()).await;
        read.unwrap_or_else(|_| panic!("node {node} did not read within {PATIENCE:?}"))
            .unwrap_or_else(|error| panic!("node {node} could not read: {error}"))
    }

    /// Waits until `node` knows a checkpoint: a store without order may hear of it after a later one.
    async fn hears_of(&self, node: NodeId, id: CheckpointId) {
        let store = self.cluster.store(node);
        let known = async {
            while store.get(id).await == Ok(None) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let known = tokio::time::timeout(PATIENCE, known).await;
        known.unwrap_or_else(|_| panic!("node {node} does not hear of {id} within {PATIENCE:?}"));
    }

    /// Waits until `node` serves `digest` as its latest checkpoint.
    async fn serves(&self, node: NodeId, digest: Digest) {
        let mut seen = None;
        let served = async {
            loop {
                seen = self.latest(node).await.map(|latest| (latest.id(), latest.digest()));
                if seen.is_some_and(|(_, latest)| latest == digest) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, served).await.is_err() {
            panic!("node {node} does not serve {digest}; it serves {seen:?}");
        }
    }

    /// A write is acknowledged, says who holds it, and is read back everywhere with bytes and metadata intact.
    pub async fn what_is_acknowledged_is_read_back(self) {
        let epoch = self.aggregator(None).await;
        assert!(self.latest(epoch.node).await.is_none());
        let written = checkpoint(epoch, 1);
        let receipt = self.put(written.clone()).await;
        assert_eq!((receipt.id, receipt.digest), (written.id(), written.digest()));
        assert!(receipt.holders.contains(&epoch.node), "{receipt:?}");
        for node in &self.living {
            self.serves(*node, written.digest()).await;
            assert_eq!(self.latest(*node).await, Some(written.clone()));
        }
        for node in &receipt.holders {
            let held = Held { id: written.id(), digest: written.digest() };
            assert_eq!(self.cluster.store(*node).held(), Some(held), "node {node} is named as a holder");
        }
    }

    /// A write whose outcome is unknown can be repeated; a different one under the same name is refused.
    pub async fn a_write_can_be_repeated(self) {
        let epoch = self.aggregator(None).await;
        let first = self.put(checkpoint(epoch, 1)).await;
        let again = self.put(checkpoint(epoch, 1)).await;
        assert_eq!((again.id, again.digest), (first.id, first.digest));
        let other = Checkpoint::new(at(epoch, 1), parameters(77, 5000), Metadata::new());
        let refusal = self.cluster.store(epoch.node).put(other).await;
        assert_eq!(refusal, Err(StoreError::Superseded { id: at(epoch, 1), latest: at(epoch, 1) }));
        self.serves(epoch.node, first.digest).await;
    }

    /// Rounds and phases only grow.
    pub async fn older_checkpoints_are_refused(self) {
        let epoch = self.aggregator(None).await;
        self.put(checkpoint(epoch, 5)).await;
        let refusal = self.cluster.store(epoch.node).put(checkpoint(epoch, 4)).await;
        let error = StoreError::Superseded { id: at(epoch, 4), latest: at(epoch, 5) };
        assert_eq!(error.outcome(), Outcome::DidNotHappen);
        assert_eq!(refusal, Err(error));
        assert_eq!(self.latest(epoch.node).await.map(|latest| latest.id().round), Some(5));
    }

    /// Only the aggregator writes the job's state; a worker may write its own slot.
    pub async fn others_write_only_their_own_slot(self) {
        let epoch = self.aggregator(None).await;
        let worker = *self.living.iter().find(|node| **node != epoch.node).expect("more than one node");
        let store = self.cluster.store(worker);
        let refusal = store.put(checkpoint(epoch, 1)).await;
        assert_eq!(refusal, Err(StoreError::NotAggregator { current: Some(epoch) }));
        let slot = |node| CheckpointId { slot: Slot::Worker { node, part: 3 }, ..at(epoch, 1) };
        let foreign = Checkpoint::new(slot(epoch.node), parameters(1, 100), Metadata::new());
        assert_eq!(store.put(foreign).await, Err(StoreError::NotAggregator { current: Some(epoch) }));
        let own = Checkpoint::new(slot(worker), parameters(2, 100), Metadata::new());
        let receipt = tokio::time::timeout(PATIENCE, store.put(own.clone())).await.expect("in time");
        assert_eq!(receipt.map(|receipt| receipt.digest), Ok(own.digest()));
        let aggregator = self.cluster.store(epoch.node);
        assert_eq!(aggregator.get(slot(worker)).await, Ok(Some(own.clone())));
        let newer = CheckpointId { round: 2, ..slot(worker) };
        let newer = Checkpoint::new(newer, parameters(3, 100), Metadata::new());
        let receipt = tokio::time::timeout(PATIENCE, store.put(newer.clone())).await.expect("in time");
        assert_eq!(receipt.map(|receipt| receipt.digest), Ok(newer.digest()));
        assert_eq!(aggregator.newest(slot(worker).slot).await, Ok(Some(newer)));
        assert_eq!(aggregator.newest(slot(epoch.node).slot).await, Ok(None));
        assert_eq!(self.latest(epoch.node).await, None, "a worker's slot is not the job's state");
    }

    /// Limits are checked before anything happens.
    pub async fn limits_are_enforced(self) {
        let epoch = self.aggregator(None).await;
        let metadata = Metadata::from([("note".to_owned(), "x".repeat(MAX_METADATA_BYTES as usize + 1))]);
        let refusal =
            self.cluster.store(epoch.node).put(Checkpoint::new(at(epoch, 1), Bytes::new(), metadata)).await;
        assert!(matches!(refusal, Err(StoreError::TooLarge { .. })), "{refusal:?}");
        assert_eq!(self.latest(epoch.node).await, None);
    }

    /// What was acknowledged survives the loss of as many nodes as promised, the aggregator first.
    pub async fn acknowledged_survives_the_losses_promised(mut self) {
        let mut epoch = self.aggregator(None).await;
        let losses = self.cluster.store(epoch.node).guarantees().tolerated_losses as usize;
        for round in 1..=losses.min(self.living.len() - 1) as u64 {
            let receipt = self.put(checkpoint(epoch, round)).await;
            self.crash(epoch.node).await;
            epoch = self.aggregator(Some(epoch)).await;
            let latest = self.latest(epoch.node).await.expect("what was acknowledged is there");
            assert_eq!((latest.id(), latest.digest()), (receipt.id, receipt.digest), "after loss {round}");
        }
    }

    /// After a change of aggregator the old epoch's writes are refused, and the epoch has grown. Where nobody takes over,
    /// nobody is handed over to.
    pub async fn epochs_grow_and_fence(mut self) {
        let mut epoch = self.aggregator(None).await;
        let store = self.cluster.store(epoch.node);
        if !store.guarantees().fails_over {
            assert!(matches!(store.step_down(None).await, Err(StoreError::Unavailable { .. })));
            assert_eq!(*store.aggregator().borrow(), Some(epoch));
            assert_eq!(store.candidates(), []);
            return;
        }
        for round in 1..=2 {
            self.put(checkpoint(epoch, round)).await;
            let (old, named) = self.hand_over(epoch).await;
            epoch = self.aggregator(Some(old)).await;
            assert!(epoch > old && named > old && epoch.node != old.node, "{old} -> {named} -> {epoch}");
            let refusal = self.cluster.store(epoch.node).put(checkpoint(old, round + 1)).await;
            let error = refusal.expect_err("the old epoch is fenced");
            assert_eq!(error.outcome(), Outcome::DidNotHappen, "{error}");
            assert_eq!(self.latest(epoch.node).await.map(|latest| latest.id().round), Some(round));
        }
        self.crash(epoch.node).await;
        let next = self.aggregator(Some(epoch)).await;
        assert!(next.counter > epoch.counter);
        self.put(checkpoint(next, 3)).await;
    }

    /// Acknowledged checkpoints are found by name, from any node, until they are too old.
    pub async fn acknowledged_is_retrievable_by_id(self) {
        let epoch = self.aggregator(None).await;
        for round in 1..=3 {
            self.put(checkpoint(epoch, round)).await;
        }
        for node in &self.living {
            self.serves(*node, checkpoint(epoch, 3).digest()).await;
            for round in 1..=3 {
                let in_order = self.cluster.store(*node).guarantees().in_order;
                if *node != epoch.node && !in_order {
                    self.hears_of(*node, at(epoch, round)).await;
                }
                let found = self.cluster.store(*node).get(at(epoch, round)).await;
                assert_eq!(found, Ok(Some(checkpoint(epoch, round))), "round {round} on node {node}");
            }
            assert_eq!(self.cluster.store(*node).get(at(epoch, 9)).await, Ok(None));
        }
    }

    /// `latest` never goes back, while writes and, if there may be one, a change of aggregator are under way.
    pub async fn reads_are_monotonic(mut self) {
        let mut epoch = self.aggregator(None).await;
        let readers: Vec<_> = self
            .living
            .iter()
            .filter(|node| **node != epoch.node)
            .map(|node| {
                let store = self.cluster.store(*node);
                let node = *node;
                tokio::spawn(async move {
                    let mut last = 0;
                    while last < 12 {
                        if let Ok(latest) = store.latest().await {
                            let round = latest.map_or(0, |latest| latest.id().round);
                            assert!(round >= last, "node {node} went back from round {last} to {round}");
                            last = round;
                        }
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                })
            })
            .collect();
        for round in 1..=6 {
            self.put(checkpoint(epoch, round)).await;
        }
        if self.cluster.store(epoch.node).guarantees().fails_over {
            self.crash(epoch.node).await;
            epoch = self.aggregator(Some(epoch)).await;
        }
        for round in 7..=12 {
            self.put(checkpoint(epoch, round)).await;
        }
        for reader in readers {
            tokio::time::timeout(PATIENCE, reader)
                .await
                .expect("readers see the end")
                .expect("no reader went back");
        }
    }

    /// On the minority side of a partition nothing is acknowledged; after healing all hold what the majority acknowledged.
    pub async fn a_minority_acknowledges_nothing(mut self) {
        let epoch = self.aggregator(None).await;
        if !self.cluster.store(epoch.node).guarantees().minority_refuses {
            return;
        }
        self.put(checkpoint(epoch, 1)).await;
        let minority = BTreeSet::from([epoch.node]);
        if !self.cluster.isolate(&minority) {
            return;
        }
        let lonely = self.cluster.store(epoch.node);
        let attempt = tokio::spawn(async move { lonely.put(checkpoint(epoch, 2)).await });
        let majority: BTreeSet<NodeId> = self.living.difference(&minority).copied().collect();
        let next = self.agreed(&majority, Some(epoch)).await;
        let acknowledged = Checkpoint::new(at(next, 2), parameters(222, 5000), Metadata::new());
        self.put(acknowledged.clone()).await;
        self.cluster.heal();
        let lonely =
            tokio::time::timeout(PATIENCE, attempt).await.expect("the minority gives up").expect("no panic");
        assert!(lonely.is_err(), "the minority acknowledged {lonely:?}");
        for node in self.living.clone() {
            self.serves(node, acknowledged.digest()).await;
        }
    }

    /// After a partition heals every node holds the same newest checkpoint.
    pub async fn healing_converges(mut self) {
        let epoch = self.aggregator(None).await;
        self.put(checkpoint(epoch, 1)).await;
        let cut_off =
            self.living.iter().rev().find(|node| **node != epoch.node).copied().into_iter().collect();
        if !self.cluster.isolate(&cut_off) {
            return;
        }
        for round in 2..=20 {
            self.put(checkpoint(epoch, round)).await;
        }
        self.cluster.heal();
        for node in &self.living {
            self.serves(*node, checkpoint(epoch, 20).digest()).await;
        }
    }

    /// A closed store acknowledges nothing.
    pub async fn a_closed_store_acknowledges_nothing(self) {
        let epoch = self.aggregator(None).await;
        let store = self.cluster.store(epoch.node);
        store.close().await;
        store.close().await;
        let refusal = tokio::time::timeout(PATIENCE, store.put(checkpoint(epoch, 1))).await.expect("in time");
        assert!(refusal.is_err(), "{refusal:?}");
    }
}

/// Makes one test per property. `$cluster` is an expression that makes a fresh [`Cluster`]; `$attribute` the test
/// attribute.
#[macro_export]
macro_rules! conformance_suite {
    ($(#[$attribute:meta])+ $cluster:expr) => {
        $crate::conformance_suite!(@each { $(#[$attribute])+ } { $cluster }
            what_is_acknowledged_is_read_back
            a_write_can_be_repeated
            older_checkpoints_are_refused
            others_write_only_their_own_slot
            limits_are_enforced
            acknowledged_survives_the_losses_promised
            epochs_grow_and_fence
            acknowledged_is_retrievable_by_id
            reads_are_monotonic
            a_minority_acknowledges_nothing
            healing_converges
            a_closed_store_acknowledges_nothing
        );
    };
    (@each $attributes:tt { $cluster:expr } $($property:ident)+) => {
        $( $crate::conformance_suite!(@one $attributes { $cluster } $property); )+
    };
    (@one { $(#[$attribute:meta])+ } { $cluster:expr } $property:ident) => {
        $(#[$attribute])+
        async fn $property() {
            $crate::conformance::Suite::new($cluster).$property().await;
        }
    };
}
