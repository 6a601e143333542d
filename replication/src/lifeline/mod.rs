//! Lifelines tell at once that a node has crashed, where silence tells only after the detection window.
//!
//! A backend that is given a [`Lifeline`] follows the aggregator in force with it (`Follower`). Its end is a hint, never
//! proof: it may be false, and what a backend does on it must be as safe as if its window had passed. A node that is stopped
//! or cut off ends no lifeline.

mod tcp;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use tcp::{LifelineError, TcpLifeline};

use crate::store::{Epoch, NodeId};
use crate::transport::Transport;

/// One node's end of its lifelines.
#[async_trait]
pub trait Lifeline: fmt::Debug + Send + Sync + 'static {
    /// Has a lifeline made to `node`, again and again until it is there; returns when it was there and ended. Dropping the
    /// future lets it go.
    async fn ended(&self, node: NodeId);
}

/// How often a survivor stands after the end of a lifeline, before it waits for its window as always.
pub(crate) const TURNS: u32 = 3;
/// Least time that a candidate has before the next one stands.
const LEAST_TURN: Duration = Duration::from_millis(10);
/// A candidate takes a round trip for each of asking, being elected and the first word in office; and some for the rest.
const ROUND_TRIPS_OF_A_TURN: u32 = 4;

/// How long a candidate has before the next one stands, by the round trips to its peers.
pub(crate) fn turn(transport: &dyn Transport) -> Duration {
    let slowest = transport.round_trips().into_iter().map(|(_, time)| time).max().unwrap_or_default();
    LEAST_TURN.max(slowest * ROUND_TRIPS_OF_A_TURN)
}

/// What a node's lifelines carried since it began, in bytes of TCP payload (TLS included, headers of TCP and IP not).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifelineCount {
    /// Lifelines that were there, those of others to this node included.
    pub lifelines: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
}

/// The end of a lifeline.
type End = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A lifeline to whoever aggregates, or none.
pub(crate) struct Follower {
    lifeline: Option<Arc<dyn Lifeline>>,
    local: NodeId,
    followed: Option<(Epoch, End)>,
}

impl Follower {
    pub(crate) fn new(lifeline: Option<Arc<dyn Lifeline>>, local: NodeId) -> Self {
        Self { lifeline, local, followed: None }
    }

    /// Follows the aggregator of `epoch` from now on, unless that is this node.
    pub(crate) fn follow(&mut self, epoch: Option<Epoch>) {
        let epoch = epoch.filter(|epoch| epoch.node != self.local);
        if self.followed.as_ref().map(|(followed, _)| *followed) == epoch {
            return;
        }
        let followed = epoch.zip(self.lifeline.clone());
        self.followed = followed.map(|(epoch, lifeline)| {
            let ended = async move { lifeline.ended(epoch.node).await };
            (epoch, Box::pin(ended) as End)
        });
    }

    /// Returns the epoch that is followed when the lifeline to its aggregator ends. Cancel safe.
    pub(crate) async fn ended(&mut self) -> Epoch {
        let Some((epoch, ended)) = &mut self.followed else { return std::future::pending().await };
        ended.await;
        let epoch = *epoch;
        self.followed = None;
        epoch
    }
}
