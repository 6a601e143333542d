//! How a node joins a group that runs, and leaves one on purpose.
//!
//! Where everyone votes, a joining node asks the leader again and again, and says how far it is: it becomes a learner,
//! catches up (by snapshot if the log is compacted), and votes once it has the bytes of every retained checkpoint. Where the
//! most suitable vote, it needs not ask: it is outside of the group, and may be chosen when a voter is lost. A node that
//! leaves hands over if it leads, and asks the leader until it is no member. What each request changes follows from the
//! membership as it is, so that any leader can go on with what another one began.
//!
//! The id is that of the certificate: a node joins and leaves for itself only, so peers that do not lead say who does, and
//! forward nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{ChangeMembers, EmptyNode};
use serde::{Deserialize, Serialize};

use super::config::Electorate;
use super::notice::Notice;
use super::proposer::Proposer;
use crate::event::StoreEvent;
use crate::store::{Epoch, NodeId};
use crate::transport::{Class, Frame, Refusal, TransportError};
use crate::wire;

/// What a node asks of the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// To be taken in.
    Join {
        /// The dead node whose place it takes.
        replaces: Option<NodeId>,
        /// Log entries it has applied, by the index of the last.
        applied: Option<u64>,
        /// Whether it has the bytes of every checkpoint in its state.
        complete: bool,
    },
    /// To be let go.
    Leave,
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It is in force.
    Done(Notice),
    /// It is under way: ask again.
    UnderWay,
    /// This node does not lead; the one that does, if it knows.
    Elsewhere(Option<Epoch>),
}

/// The newest membership, as the leader has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Members {
    /// One configuration, or two while voters change.
    configurations: Vec<BTreeSet<u64>>,
    learners: BTreeSet<u64>,
    /// Index of the log entry that made it so.
    since: Option<u64>,
    committed: bool,
}

/// What a request takes.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Done,
    Wait,
    AddLearner,
    Change(ChangeMembers<u64, EmptyNode>),
    /// Never.
    Refuse(String),
}

impl Members {
    fn settled(&self) -> bool {
        self.committed && self.configurations.len() == 1
    }

    fn votes(&self, node: NodeId) -> bool {
        self.configurations.iter().any(|voters| voters.contains(&node.0))
    }

    fn joining(&self, node: NodeId, gone: Option<NodeId>, applied: Option<u64>, complete: bool) -> Step {
        let gone = gone.filter(|gone| *gone != node && self.votes(*gone));
        let votes = self.votes(node);
        if votes && applied.is_none() {
            // It may have voted: it must not vote again in the same term.
            return Step::Refuse(format!("node {node} is a member already and has lost its state"));
        }
        if !self.settled() {
            return Step::Wait;
        }
        if votes && gone.is_none() {
            return Step::Done;
        }
        if !votes && !self.learners.contains(&node.0) {
            return Step::AddLearner;
        }
        let caught_up = complete && applied >= self.since;
        if !votes && !caught_up {
            return Step::Wait;
        }
        let mut change = vec![ChangeMembers::AddVoterIds([node.0].into())];
        change.extend(gone.map(|gone| ChangeMembers::RemoveVoters([gone.0].into())));
        Step::Change(ChangeMembers::Batch(change))
    }

    fn leaving(&self, node: NodeId) -> Step {
        if !self.settled() {
            Step::Wait
        } else if self.votes(node) {
            Step::Change(ChangeMembers::RemoveVoters([node.0].into()))
        } else if self.learners.contains(&node.0) {
            Step::Change(ChangeMembers::RemoveNodes([node.0].into()))
        } else {
            Step::Done
        }
    }
}

impl Proposer {
    fn members(&self) -> Members {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        let membership = stored.membership();
        Members {
            configurations: membership.get_joint_config().clone(),
            learners: membership.learner_ids().collect(),
            since: stored.log_id().as_ref().map(|since| since.index),
            committed: metrics.membership_config == metrics.committed_membership_config,
        }
    }

    /// Whether `node` is there, as far as this leader sees. The connection to one that died is kept until its idle timeout.
    fn lives(&self, node: NodeId) -> bool {
        node == self.transport.local() || self.transport.connected().borrow().contains(&node)
    }

    /// Answers a node that wants to join or leave.
    pub(crate) async fn on_membership(&self, from: NodeId, request: &Frame) -> Result<Frame, Refusal> {
        let request: Request = wire::decode(&request.head)?;
        let answer = match self.standing.notice() {
            None => Answer::Elsewhere(*self.aggregator.borrow()),
            Some(_) => {
                let done = self.advance(from, request).await.inspect_err(|refusal| {
                    let reason = refusal.0.clone();
                    self.observer.observe(StoreEvent::Refused { from, reason });
                })?;
                // As of now: the receiver believes it in place of its log.
                match self.standing.notice().filter(|_| done) {
                    Some((notice, _)) => Answer::Done(notice),
                    None => Answer::UnderWay,
                }
            }
        };
        Ok(Frame::new(wire::MEMBERSHIP, wire::encode(&answer)))
    }

    /// Takes the next step of what `from` asks; true if nothing is left to do.
    async fn advance(&self, from: NodeId, request: Request) -> Result<bool, Refusal> {
        // One change at a time; whoever asks meanwhile asks again.
        let Ok(_changing) = self.changing.try_lock() else { return Ok(false) };
        let chosen = self.config.electorate != Electorate::Everyone;
        let step = match request {
            Request::Join { .. } if chosen => return Err(Refusal("here the group chooses who votes".into())),
            Request::Join { replaces: Some(gone), .. } if self.lives(gone) => Step::Wait,
            Request::Join { replaces, applied, complete } => {
                self.members().joining(from, replaces, applied, complete)
            }
            Request::Leave => self.members().leaving(from),
        };
        let timeout = Duration::from_millis(self.config.put_timeout_ms);
        match step {
            Step::Done => return Ok(true),
            Step::Wait => {}
            Step::Refuse(reason) => return Err(Refusal(reason)),
            Step::AddLearner => {
                let adding = self.raft.add_learner(from.0, EmptyNode {}, false);
                if !matches!(tokio::time::timeout(timeout, adding).await, Ok(Ok(_))) {
                    tracing::info!(%from, "was not taken in yet");
                }
            }
            // Another one votes in its place first: see `membership`.
            Step::Change(ChangeMembers::RemoveVoters(_)) if chosen => self.let_go(from),
            Step::Change(change) => self.change(change).await,
        }
        Ok(false)
    }

    /// Changes who is a member. What fails is tried again by whoever wants it.
    pub(super) async fn change(&self, change: ChangeMembers<u64, EmptyNode>) {
        let timeout = Duration::from_millis(self.config.put_timeout_ms);
        match tokio::time::timeout(timeout, self.raft.change_membership(change, false)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(%error, "the membership was not changed"),
            Err(_) => tracing::info!("the membership was not changed within {timeout:?}"),
        }
    }

    /// Asks whoever leads, as far as that is known here or to a connected peer.
    ///
    /// # Errors
    /// The leader's refusal, which is final.
    pub(crate) async fn ask_leader(&self, request: Request) -> Result<Answer, Refusal> {
        let connected = self.transport.connected().borrow().clone();
        let mut next: Vec<NodeId> = connected.iter().rev().copied().collect();
        next.extend(self.aggregator.borrow().map(|epoch| epoch.node));
        let mut asked = BTreeSet::from([self.transport.local()]);
        // A change may take the leader that long, and its answer the way back.
        let timeout = Duration::from_millis(2 * self.config.put_timeout_ms);
        while let Some(peer) = next.pop() {
            if !connected.contains(&peer) || !asked.insert(peer) {
                continue;
            }
            let frame = Frame::new(wire::MEMBERSHIP, wire::encode(&request));
            let asking = self.transport.request(peer, Class::Election, frame);
            match tokio::time::timeout(timeout, asking).await {
                Ok(Ok(answer)) => match wire::decode::<Answer>(&answer.head)? {
                    Answer::Elsewhere(leader) => next.extend(leader.map(|epoch| epoch.node)),
                    answer => return Ok(answer),
                },
                Ok(Err(TransportError::Refused { reason, .. })) => return Err(Refusal(reason)),
                Ok(Err(error)) => tracing::debug!(%error, %peer, "asked the next about the group"),
                Err(_) => tracing::debug!(%peer, "asked the next about the group"),
            }
        }
        Ok(Answer::Elsewhere(None))
    }
}

/// Joins the group that runs, in the place of `replaces` if there is one. Returns once this node votes, or leaves.
pub(crate) async fn run(proposer: Arc<Proposer>, replaces: Option<NodeId>) {
    if proposer.standing.votes() {
        // It was restarted, and found its log.
        return;
    }
    let pause = Duration::from_millis(proposer.config.heartbeat_ms);
    while !proposer.leaving.load(Ordering::Relaxed) {
        let report = proposer.report().await;
        let request = Request::Join { replaces, applied: report.applied, complete: report.complete };
        match proposer.ask_leader(request).await {
            Ok(Answer::Done(_)) => return,
            Ok(_) => tokio::time::sleep(pause).await,
            Err(refusal) => {
                return tracing::error!(reason = refusal.0, "the group does not take this node in");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(configurations: Vec<BTreeSet<u64>>, learners: &[u64]) -> Members {
        Members {
            configurations,
            learners: learners.iter().copied().collect(),
            since: Some(7),
            committed: true,
        }
    }

    #[test]
    fn a_node_votes_once_it_has_caught_up() {
        let (four, three) = (NodeId(4), BTreeSet::from([1, 2, 3]));
        let without = members(vec![three.clone()], &[]);
        assert_eq!(without.joining(four, None, None, true), Step::AddLearner);
        let learner = members(vec![three], &[4]);
        assert_eq!(learner.joining(four, None, Some(6), true), Step::Wait);
        assert_eq!(learner.joining(four, None, Some(7), false), Step::Wait);
        let added = ChangeMembers::AddVoterIds([4].into());
        assert_eq!(
            learner.joining(four, None, Some(7), true),
            Step::Change(ChangeMembers::Batch(vec![added.clone()]))
        );
        assert_eq!(
            learner.joining(four, Some(NodeId(2)), Some(7), true),
            Step::Change(ChangeMembers::Batch(vec![added, ChangeMembers::RemoveVoters([2].into())]))
        );
        let voter = members(vec![[1, 2, 3, 4].into()], &[]);
        assert_eq!(voter.joining(four, Some(NodeId(9)), Some(8), true), Step::Done);
        assert!(matches!(voter.joining(four, None, None, true), Step::Refuse(_)), "it forgot its votes");
    }

    #[test]
    fn nothing_begins_before_a_change_has_ended() {
        let joint = members(vec![[1, 2, 3].into(), [1, 2, 3, 4].into()], &[]);
        let uncommitted = Members { committed: false, ..members(vec![[1, 2, 3].into()], &[]) };
        for members in [joint, uncommitted] {
            assert_eq!(members.joining(NodeId(5), None, None, true), Step::Wait);
            assert_eq!(members.leaving(NodeId(3)), Step::Wait);
            assert_eq!(members.leaving(NodeId(9)), Step::Wait);
        }
    }

    #[test]
    fn whoever_leaves_is_no_member_in_the_end() {
        let group = members(vec![[1, 2, 3].into()], &[4]);
        assert_eq!(group.leaving(NodeId(3)), Step::Change(ChangeMembers::RemoveVoters([3].into())));
        assert_eq!(group.leaving(NodeId(4)), Step::Change(ChangeMembers::RemoveNodes([4].into())));
        assert_eq!(group.leaving(NodeId(5)), Step::Done);
    }
}
