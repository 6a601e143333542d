//! One node's part in a federated job: aggregator when the store says so, worker otherwise.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use replication::transport::Transport;
use replication::{AnyStore, Blob, Epoch, NodeId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::{Config, Policy};
use super::event::{Event, Events};
use super::learner::Learner;
use super::offers::{Inheritance, Offers, Predecessors};
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
    /// This node's suitability.
    pub score: u32,
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
    let initial = Blob::new(participant.initial.clone());
    let worker = Arc::new(Worker::new(&participant, initial.clone()));
    let Participant { config, store, learning, events, .. } = participant;
    let node = learning.local();
    let offers = watch::Sender::new(Offers::default());
    let predecessors = Arc::new(Mutex::new(Predecessors::default()));
    learning.serve(Arc::new(Inbox {
        worker: worker.clone(),
        offers: offers.clone(),
        predecessors: predecessors.clone(),
    }));
    let aggregator = Aggregator {
        config,
        store: store.clone(),
        learning: learning.clone(),
        worker: worker.clone(),
        offers,
        initial,
        events: events.clone(),
    };

    let measures = aggregator.config.policy == Policy::Latency;
    let mut probing = pin!(async {
        if measures {
            worker.probe().await;
        }
        std::future::pending::<()>().await;
    });
    let mut office = store.aggregator();
    loop {
        let current = *office.borrow_and_update();
        if let Some(epoch) = current {
            worker.learn_epoch(epoch);
        }
        let leading = async {
            match current {
                Some(epoch) if epoch.node == node => {
                    let inheritance = locked(&predecessors).take_over(Instant::now());
                    lead(&aggregator, epoch, &inheritance).await
                }
                Some(epoch) => {
                    worker.join(epoch).await;
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
            () = &mut probing => {}
        }
        if let Some(epoch) = current {
            locked(&predecessors).lost_office(epoch.node, Instant::now());
            if epoch.node == node {
                events(Event::Deposed { epoch });
            }
        }
    }
}

async fn lead(aggregator: &Aggregator, epoch: Epoch, inheritance: &Inheritance) -> Result<(), String> {
    match aggregator.lead(epoch, inheritance).await {
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

fn locked(predecessors: &Mutex<Predecessors>) -> MutexGuard<'_, Predecessors> {
    predecessors.lock().unwrap_or_else(PoisonError::into_inner)
}
