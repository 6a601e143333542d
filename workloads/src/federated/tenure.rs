//! One epoch of a node that aggregates: what it has to work with, and who is there to work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replication::transport::Transport;
use replication::{AnyStore, Blob, Digest, Epoch, NodeId, StoreError};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::config::Config;
use super::event::{Event, Events};
use super::offers::Offers;
use super::policy::Chooser;
use super::worker::Worker;

/// Updates fetched at once: more would overrun the aggregator's receive buffer.
const UPLOADS_AT_ONCE: usize = 2;

/// How long the first round of an epoch waits for nodes that have not offered themselves, once enough have: at the start
/// of the job, when nodes are still loading, and after a failure, when one more may have died.
const START_GRACE: Duration = Duration::from_secs(30);
const FAILOVER_GRACE: Duration = Duration::from_secs(1);

/// Pause before a round is tried again that too few workers finished.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Why an aggregator stops before the job is done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    /// Another epoch is in force.
    #[error("another epoch is in force")]
    Deposed,
    /// The store or the model failed for good.
    #[error("{0}")]
    Failed(String),
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotAggregator { .. } | StoreError::Fenced { .. } => Self::Deposed,
            error => Self::Failed(error.to_string()),
        }
    }
}

/// One node's aggregator.
pub(crate) struct Aggregator {
    pub(crate) config: Config,
    pub(crate) store: AnyStore,
    pub(crate) learning: Arc<dyn Transport>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) offers: watch::Sender<Offers>,
    /// The model every node starts from.
    pub(crate) initial: Blob,
    pub(crate) events: Events,
}

impl Aggregator {
    /// Whether this node's store is given what the learning plane carries.
    pub(super) fn reuses(&self) -> bool {
        self.config.reuses(self.store.as_ref())
    }
}

/// One epoch of this aggregator: what it carries from round to round.
pub(super) struct Tenure<'a> {
    pub(super) aggregator: &'a Aggregator,
    pub(super) epoch: Epoch,
    /// Nodes that should offer themselves before the first round.
    expected: BTreeSet<NodeId>,
    patience: Instant,
    pub(super) uploads: Semaphore,
    /// The global parameters.
    pub(super) global: Blob,
    /// Whether it was told that this node has workers.
    serving: AtomicBool,
    /// Whether the first round has begun: from then on nobody is waited for who is not there.
    assembled: AtomicBool,
    pub(super) begun: Instant,
    pub(super) chooser: Chooser,
    /// What each worker is known to have; a worker not listed is asked first.
    pub(super) has: Mutex<BTreeMap<NodeId, Digest>>,
}

impl<'a> Tenure<'a> {
    pub(super) fn new(
        aggregator: &'a Aggregator,
        epoch: Epoch,
        predecessors: &BTreeSet<NodeId>,
        continues: bool,
        global: Blob,
    ) -> Self {
        let starting = !continues && predecessors.is_empty();
        let present = |node: &NodeId| starting || aggregator.learning.connected().borrow().contains(node);
        let peers = aggregator.learning.peers().into_iter().filter(present);
        let expected = peers.filter(|node| !predecessors.contains(node)).collect();
        let grace = if starting { START_GRACE } else { FAILOVER_GRACE };
        Self {
            aggregator,
            epoch,
            expected,
            patience: Instant::now() + grace,
            uploads: Semaphore::new(UPLOADS_AT_ONCE),
            global,
            serving: AtomicBool::new(false),
            assembled: AtomicBool::new(false),
            begun: Instant::now(),
            chooser: Chooser::new(aggregator.config.policy, epoch.node),
            has: Mutex::default(),
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.aggregator.config
    }

    pub(super) fn emit(&self, event: Event) {
        (self.aggregator.events)(event);
    }

    pub(super) fn has(&self) -> MutexGuard<'_, BTreeMap<NodeId, Digest>> {
        self.has.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Workers that offered themselves and are connected, once there are `enough` of them.
    pub(super) async fn workers(&self, enough: u32) -> Result<Vec<NodeId>, Stopped> {
        let mut told_waiting = false;
        let own = usize::from(self.config().aggregator_trains);
        let mut offers = self.aggregator.offers.subscribe();
        let mut connected = self.aggregator.learning.connected();
        loop {
            let joined = {
                let offers = offers.borrow_and_update();
                if offers.epoch != Some(self.epoch) {
                    return Err(Stopped::Deposed);
                }
                let connected = connected.borrow_and_update();
                let present = offers.joined.iter().filter(|node| connected.contains(node));
                present.copied().collect::<BTreeSet<NodeId>>()
            };
            if let Some(worker) = joined.first().copied()
                && !self.serving.swap(true, Ordering::Relaxed)
            {
                self.emit(Event::Serving { epoch: self.epoch, worker });
            }
            let complete = self.assembled.load(Ordering::Relaxed)
                || self.expected.is_subset(&joined)
                || Instant::now() >= self.patience;
            let count = (joined.len() + own) as u32;
            if complete && count >= enough {
                self.assembled.store(true, Ordering::Relaxed);
                return Ok(joined.into_iter().chain((own > 0).then_some(self.epoch.node)).collect());
            }
            if complete && !std::mem::replace(&mut told_waiting, true) {
                self.emit(Event::WaitingForWorkers { epoch: self.epoch, present: count, needed: enough });
            }
            tokio::select! {
                changed = offers.changed() => changed.map_err(|_| Stopped::Deposed)?,
                changed = connected.changed() => changed.map_err(|_| Stopped::Deposed)?,
                () = tokio::time::sleep_until(self.patience), if !complete => {}
            }
        }
    }
}
