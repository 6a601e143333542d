//! Who belongs to a cluster without a log, which nodes join and leave while it runs; how they ask for it.
//!
//! ```text
//!   Members    one configuration: its nodes, the epoch whose aggregator made it or took it over, a version
//!   step       what a request takes, given the configuration: pure
//!   join       asks the aggregator again and again until this node is a member
//!   leave      hands over if this node aggregates, and asks until it is a member no more
//! ```
//!
//! Of two configurations the one of the later epoch counts, of one epoch the higher version: one line, because in an epoch only
//! its aggregator makes configurations, by one node at a time, and every new aggregator takes the newest that it finds over
//! into its own epoch. When a configuration may follow another is the backend's business: see `gossip::membership` and
//! `backup::membership`. This module deliberately knows neither quorums nor checkpoints.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::StoreError;
use crate::store::{CheckpointId, CheckpointStore, Epoch, NodeId};
use crate::transport::{Class, Frame, Refusal, Transport};
use crate::wire;

/// The fact on disk that says who belongs to the cluster.
pub(crate) const FACT: &str = "members";

/// How long a node asks to be let go.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the aggregator may take for the next step of a request, and its answer for the way back.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The place of a configuration among others: the greater is newer.
pub(crate) type Place = (Epoch, u64);

/// One configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Members {
    epoch: Epoch,
    version: u64,
    nodes: BTreeSet<NodeId>,
}

impl Members {
    /// The one that a cluster begins with.
    pub(crate) fn founding(nodes: BTreeSet<NodeId>) -> Self {
        Self { epoch: Epoch::default(), version: 1, nodes }
    }

    /// What is known before a configuration is: nobody, older than any.
    pub(crate) fn unknown() -> Self {
        Self::default()
    }

    pub(crate) fn place(&self) -> Place {
        (self.epoch, self.version)
    }

    pub(crate) fn nodes(&self) -> &BTreeSet<NodeId> {
        &self.nodes
    }

    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.nodes.contains(&node)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The same nodes, taken over by the aggregator of `epoch`.
    pub(crate) fn renewed(&self, epoch: Epoch) -> Self {
        Self { epoch, ..self.clone() }
    }

    /// What comes next in the same epoch, beyond `version`.
    pub(crate) fn become_of(&self, nodes: BTreeSet<NodeId>, version: u64) -> Self {
        Self { epoch: self.epoch, version: self.version.max(version) + 1, nodes }
    }
}

/// What a node asks of the aggregator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// To be taken in.
    Join {
        /// The dead node whose place it takes.
        replaces: Option<NodeId>,
        /// The newest checkpoint of the job's state that it holds.
        holds: Option<CheckpointId>,
    },
    /// To be let go.
    Leave,
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It is in force.
    Done,
    /// It is under way: ask again.
    UnderWay,
    /// This node does not aggregate; the one that does, if it knows.
    Elsewhere(Option<Epoch>),
    /// Those that are left could not keep what was promised. Nothing was done.
    TooFew {
        /// Nodes that would be left.
        left: u32,
        /// Nodes that the promise takes.
        needed: u32,
    },
}

/// What a request takes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is so already.
    Done,
    /// Something else comes first.
    Wait,
    /// These are to be the members, one more or one less.
    Become(BTreeSet<NodeId>),
    /// As [`Answer::TooFew`].
    TooFew { left: u32, needed: u32 },
}

/// What `request` of `from` takes. `lives` says whether the node that is to be replaced is there, `caught_up` whether `from` holds
/// what a member holds, `needed` how many members a promise takes among so many.
pub(crate) fn step(
    members: &Members,
    (from, request): (NodeId, Request),
    (lives, caught_up): (bool, bool),
    needed: impl Fn(usize) -> u32,
) -> Step {
    let without = |gone: NodeId| {
        let mut left = members.nodes.clone();
        left.remove(&gone);
        let (count, needed) = (left.len() as u32, needed(left.len()));
        if count < needed { Step::TooFew { left: count, needed } } else { Step::Become(left) }
    };
    let with_it = || {
        let nodes = members.nodes.iter().copied().chain([from]).collect();
        if caught_up { Step::Become(nodes) } else { Step::Wait }
    };
    let inside = members.contains(from);
    match request {
        Request::Leave if !inside => Step::Done,
        Request::Leave => without(from),
        Request::Join { replaces, .. } => {
            let gone = replaces.filter(|gone| *gone != from && members.contains(*gone));
            match gone {
                Some(_) if lives => Step::Wait,
                // The dead one first, so that promises are not counted among more nodes than there are.
                Some(gone) => match without(gone) {
                    Step::TooFew { .. } if !inside => with_it(),
                    Step::TooFew { .. } => Step::Wait,
                    change => change,
                },
                None if inside => Step::Done,
                None => with_it(),
            }
        }
    }
}

/// Asks whoever aggregates, as far as that is known here or to a connected peer.
async fn ask(transport: &dyn Transport, aggregator: Option<Epoch>, request: Request) -> Answer {
    let connected = transport.connected().borrow().clone();
    let mut next: Vec<NodeId> = connected.iter().rev().copied().collect();
    next.extend(aggregator.map(|epoch| epoch.node));
    let mut asked = BTreeSet::from([transport.local()]);
    while let Some(peer) = next.pop() {
        if !connected.contains(&peer) || !asked.insert(peer) {
            continue;
        }
        let frame = Frame::new(wire::MEMBERSHIP, wire::encode(&request));
        let asking = transport.request(peer, Class::Election, frame);
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(Ok(answer)) => wire::decode::<Answer>(&answer.head).map_err(|Refusal(reason)| reason),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {ANSWER_TIMEOUT:?}")),
        };
        match answer {
            Ok(Answer::Elsewhere(aggregator)) => next.extend(aggregator.map(|epoch| epoch.node)),
            Ok(answer) => return answer,
            Err(reason) => tracing::debug!(%peer, reason, "asked the next about membership"),
        }
    }
    Answer::Elsewhere(None)
}

/// Asks to be taken in whenever `wanted` gives a request, until the store closes.
pub(crate) async fn join(
    transport: &dyn Transport,
    aggregator: watch::Receiver<Option<Epoch>>,
    pause: Duration,
    wanted: impl Fn() -> Option<Request>,
) {
    loop {
        if let Some(request) = wanted() {
            let current = *aggregator.borrow();
            ask(transport, current, request).await;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Hands over if this node aggregates, and asks to be let go until it is.
///
/// # Errors
/// As [`CheckpointStore::leave`].
pub(crate) async fn leave(
    store: &dyn CheckpointStore,
    transport: &dyn Transport,
    pause: Duration,
) -> Result<(), StoreError> {
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    loop {
        let current = *store.aggregator().borrow();
        let reason = if current.is_some_and(|epoch| epoch.node == transport.local()) {
            store.step_down(None).await.err().map(|error| error.to_string())
        } else {
            match ask(transport, current, Request::Leave).await {
                Answer::Done => return Ok(()),
                Answer::TooFew { left, needed } => {
                    return Err(StoreError::TooFewWouldBeLeft { left, needed });
                }
                Answer::UnderWay => Some("the change of members was not agreed on".into()),
                Answer::Elsewhere(_) => Some("no node that aggregates is connected".into()),
            }
        };
        match reason {
            Some(reason) if Instant::now() >= deadline => return Err(StoreError::Unavailable { reason }),
            _ => tokio::time::sleep(pause).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members<const N: usize>(nodes: [u64; N]) -> Members {
        Members::founding(nodes.map(NodeId).into())
    }

    fn become_of<const N: usize>(nodes: [u64; N]) -> Step {
        Step::Become(nodes.map(NodeId).into())
    }

    fn join(replaces: Option<u64>) -> Request {
        Request::Join { replaces: replaces.map(NodeId), holds: None }
    }

    #[test]
    fn one_node_at_a_time_comes_or_goes() {
        let three = members([1, 2, 3]);
        let step = |request, state| step(&three, (NodeId(4), request), state, |_| 2);
        assert_eq!(step(join(None), (false, false)), Step::Wait, "it has to catch up");
        assert_eq!(step(join(None), (false, true)), become_of([1, 2, 3, 4]));
        assert_eq!(step(join(Some(3)), (true, true)), Step::Wait, "whom it replaces lives");
        assert_eq!(step(join(Some(3)), (false, true)), become_of([1, 2]));
        assert_eq!(step(join(Some(9)), (false, true)), become_of([1, 2, 3, 4]));
        assert_eq!(step(Request::Leave, (false, true)), Step::Done);
    }

    #[test]
    fn nobody_goes_whom_a_promise_needs() {
        let three = members([1, 2, 3]);
        let leaving = step(&three, (NodeId(3), Request::Leave), (false, true), |_| 3);
        assert_eq!(leaving, Step::TooFew { left: 2, needed: 3 });
        let replacing = step(&three, (NodeId(4), join(Some(3))), (false, true), |_| 3);
        assert_eq!(replacing, become_of([1, 2, 3, 4]), "its successor comes first");
        let four = members([1, 2, 3, 4]);
        assert_eq!(step(&four, (NodeId(4), join(Some(3))), (false, true), |_| 3), become_of([1, 2, 4]));
    }

    #[test]
    fn a_later_epoch_supersedes_every_version_of_an_earlier_one() {
        let (first, second) = (members([1, 2]), Epoch { counter: 2, node: NodeId(2) });
        let grown = first.become_of([1, 2, 3].map(NodeId).into(), 7);
        assert!(grown.place() > first.place() && first.renewed(second).place() > grown.place());
        assert!(Members::unknown().place() < first.place());
        assert_eq!(grown.place().1, 8);
    }
}
