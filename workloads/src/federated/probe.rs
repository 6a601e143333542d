//! How far the other nodes are: requests that are answered at once, timed.
//!
//! A transport's own estimate of a round trip is as old as what was last sent, and workers say little to each other. Compared
//! with that of an aggregator that talks to everybody, it would make every worker look near. It knows neither policies nor
//! who aggregates.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use replication::NodeId;
use replication::transport::{Class, Transport};
use tokio::time::{Instant, MissedTickBehavior};

use super::protocol;

/// Every peer is probed this often.
const INTERVAL: Duration = Duration::from_millis(250);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers of a peer that count. The fastest of them is the distance: the others waited for a processor as well. Of fewer, as
/// at the start when every node is busy with its handshakes, nothing is concluded.
const KEPT: usize = 8;

/// Round-trip times to the peers of one node.
pub(crate) struct Probes {
    learning: Arc<dyn Transport>,
    answers: Mutex<BTreeMap<NodeId, VecDeque<Duration>>>,
}

impl Probes {
    pub(crate) fn new(learning: Arc<dyn Transport>) -> Self {
        Self { learning, answers: Mutex::default() }
    }

    /// Probes until it is dropped.
    pub(crate) async fn run(&self) {
        let mut due = tokio::time::interval(INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let peers = self.learning.connected().borrow().clone();
            self.answers().retain(|peer, _| peers.contains(peer));
            join_all(peers.into_iter().map(|peer| self.probe(peer))).await;
        }
    }

    async fn probe(&self, peer: NodeId) {
        let begun = Instant::now();
        let request =
            self.learning.request(peer, Class::LearningControl, protocol::frame(protocol::PROBE, &()));
        if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, request).await {
            let mut answers = self.answers();
            let answers = answers.entry(peer).or_default();
            answers.push_back(begun.elapsed());
            if answers.len() > KEPT {
                answers.pop_front();
            }
        }
    }

    /// The distance of every connected peer that has answered often enough, in ascending order of peers.
    pub(crate) fn round_trips(&self) -> Vec<(NodeId, Duration)> {
        let answers = self.answers();
        let enough = answers.iter().filter(|(_, times)| times.len() == KEPT);
        enough.filter_map(|(peer, times)| Some((*peer, *times.iter().min()?))).collect()
    }

    fn answers(&self) -> MutexGuard<'_, BTreeMap<NodeId, VecDeque<Duration>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
