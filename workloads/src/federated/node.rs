//! One node's part in a federated job: aggregator when the store says so, worker otherwise.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use replication::transport::Transport;
use replication::{AnyStore, Blob, Epoch, NodeId};
use tokio::sync::watch;

use super::config::Config;
use super::event::{Event, Events};
use super::learner::Learner;
use super::offers::Offers;
use super::tenure::{Aggregator, Stopped};
use super::worker::{Inbox, Worker};

/// What one node brings to a job.
pub struct Participant {
    /// The job, the same on every node.
    pub config: Config,
    /// This node's store.
    pub store: AnyStore,
    /// This node's end of the learning plane.
    pub learning: Arc<dyn Transport>,
    /// This node's shard and engine.
    pub learner: Arc<dyn Learner>,
    /// The model every node starts from, encoded.
    pub initial: Bytes,
    /// Takes note of what happens.
    pub events: Events,
}

impl std::fmt::Debug for Participant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Participant").field("learning", &self.learning).finish_non_exhaustive()
    }
}

/// The job cannot go on at this node.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the federated job failed on node {node}: {reason}")]
pub struct JobError {
    /// The node.
    pub node: NodeId,
    /// Why.
    pub reason: String,
}

/// Takes part in the job until the store is closed or the future is dropped. The end of the job is an
/// [`Event::Completed`]; nodes stay available afterwards.
///
/// # Errors
/// The store or the model failed for good while this node aggregated.
pub async fn run(participant: Participant) -> Result<(), JobError> {
    let Participant { config, store, learning, learner, initial, events } = participant;
    let node = learning.local();
    let initial = Blob::new(initial);
    let worker =
        Arc::new(Worker::new(node, learner, store.clone(), &config, initial.clone(), events.clone()));
    let offers = watch::Sender::new(Offers::default());
    learning.serve(Arc::new(Inbox { worker: worker.clone(), offers: offers.clone() }));
    let aggregator = Aggregator {
        config,
        store: store.clone(),
        learning: learning.clone(),
        worker: worker.clone(),
        offers,
        initial,
        events: events.clone(),
    };

    let mut office = store.aggregator();
    let mut predecessors = BTreeSet::new();
    loop {
        let current = *office.borrow_and_update();
        if let Some(epoch) = current {
            worker.learn_epoch(epoch);
        }
        let leading = async {
            match current {
                Some(epoch) if epoch.node == node => lead(&aggregator, epoch, &predecessors).await,
                Some(epoch) => {
                    worker.join(learning.as_ref(), epoch).await;
                    Ok(())
                }
                None => Ok(()),
            }
        };
        tokio::select! {
            biased;
            changed = office.wait_for(|now| *now != current) => if changed.is_err() { return Ok(()) },
            failed = async { leading.await?; std::future::pending::<Result<(), String>>().await } => {
                return failed.map_err(|reason| JobError { node, reason });
            }
        }
        if let Some(epoch) = current {
            predecessors.insert(epoch.node);
            if epoch.node == node {
                events(Event::Deposed { epoch });
            }
        }
    }
}

async fn lead(aggregator: &Aggregator, epoch: Epoch, predecessors: &BTreeSet<NodeId>) -> Result<(), String> {
    match aggregator.lead(epoch, predecessors).await {
        Ok(()) => Ok(()),
        Err(Stopped::Deposed) => {
            tracing::info!(%epoch, "this node does not aggregate any more");
            Ok(())
        }
        Err(Stopped::Failed(reason)) => {
            tracing::error!(%epoch, %reason, "the job failed");
            Err(reason)
        }
    }
}
