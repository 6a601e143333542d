//! What nodes outside of the Raft group are told, and what a node knows of the group.
//!
//! A node's own log says who belongs to the group, as long as it is a member. The others learn it, and who leads, from the
//! leader's notices. Of the two the newer one counts, by log position: so a voter that was replaced while it was away
//! learns that it is no member any more, and one that is taken in again learns it from its log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::machine::RaftCore;
use super::proposer::Proposer;
use super::types::{LogId, StoredMembership};
use crate::store::{Epoch, NodeId};
use crate::transport::{Class, Frame};
use crate::wire;

/// A notice is repeated after this many heartbeats, in case one was lost.
const REPEATED_AFTER_HEARTBEATS: u64 = 10;

/// Who leads and who votes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    pub(crate) epoch: Epoch,
    /// The log entry that made these nodes voters; committed.
    pub(crate) since: Option<LogId>,
    pub(crate) voters: BTreeSet<NodeId>,
}

impl Notice {
    /// The newer of both in each respect: a new leader may not know yet that the newest membership is committed.
    fn merged(known: Option<&Self>, heard: Self) -> Self {
        let Some(known) = known else { return heard };
        let newer = if heard.since > known.since { &heard } else { known };
        Self { epoch: known.epoch.max(heard.epoch), since: newer.since, voters: newer.voters.clone() }
    }
}

/// Voters of a membership; of both configurations while it changes.
pub(crate) fn voters(membership: &StoredMembership) -> BTreeSet<NodeId> {
    membership.voter_ids().map(NodeId).collect()
}

fn newest(own: &StoredMembership, told: Option<&Notice>) -> BTreeSet<NodeId> {
    match told {
        Some(notice) if notice.since > *own.log_id() => notice.voters.clone(),
        _ => voters(own),
    }
}

/// Which epoch is in force: what the own log says (`own`, in `term`) or what was told. Whoever votes in a later term
/// knows that the epoch told of has ended.
pub(crate) fn in_force(own: Option<Epoch>, term: u64, votes: bool, told: Option<Epoch>) -> Option<Epoch> {
    own.max(told.filter(|told| !votes || told.counter >= term))
}

/// What this node knows of the group. Clones are the same.
#[derive(Clone)]
pub(crate) struct Standing {
    raft: RaftCore,
    /// Awaited by the election task only.
    told: watch::Sender<Option<Notice>>,
}

impl Standing {
    pub(crate) fn new(raft: RaftCore) -> Self {
        Self { raft, told: watch::Sender::new(None) }
    }

    /// Takes in a notice whose sender was checked.
    pub(crate) fn hear(&self, heard: Notice) {
        self.told.send_if_modified(|known| {
            let merged = Some(Notice::merged(known.as_ref(), heard));
            let changes = *known != merged;
            *known = merged;
            changes
        });
    }

    pub(crate) fn told(&self) -> Option<Epoch> {
        self.told.borrow().as_ref().map(|notice| notice.epoch)
    }

    pub(crate) fn follow(&self) -> watch::Receiver<Option<Notice>> {
        self.told.subscribe()
    }

    /// Who votes, as far as this node knows.
    pub(crate) fn voters(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        newest(&metrics.membership_config, self.told.borrow().as_ref())
    }

    /// How many nodes vote: while they change, in the smaller configuration. 0 before the group is founded.
    pub(crate) fn size(&self) -> u32 {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let own = &metrics.membership_config;
        let told = self.told.borrow();
        let size = match told.as_ref() {
            Some(notice) if notice.since > *own.log_id() => notice.voters.len(),
            _ => own.get_joint_config().iter().map(BTreeSet::len).min().unwrap_or(0),
        };
        size as u32
    }

    /// Whether this node votes, and so holds acknowledged state.
    pub(crate) fn votes(&self) -> bool {
        self.voters().contains(&NodeId(*self.raft.node_id()))
    }

    /// Whether `holders` include a majority of the voters: of both configurations while they change.
    pub(crate) fn is_majority(&self, holders: &BTreeSet<NodeId>) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let configurations = metrics.membership_config.get_joint_config();
        let majority_of = |voters: &BTreeSet<u64>| {
            2 * voters.iter().filter(|voter| holders.contains(&NodeId(**voter))).count() > voters.len()
        };
        !configurations.is_empty() && configurations.iter().all(majority_of)
    }

    /// What others are to be told and who are members, if this node leads.
    pub(crate) fn notice(&self) -> Option<(Notice, BTreeSet<NodeId>)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        if metrics.current_leader != Some(metrics.id) {
            return None;
        }
        let committed = &metrics.committed_membership_config;
        let notice = Notice {
            epoch: Epoch { counter: metrics.vote.leader_id.term, node: NodeId(metrics.id) },
            since: *committed.log_id(),
            voters: voters(committed),
        };
        let members = metrics.membership_config.nodes().map(|(member, _)| NodeId(*member)).collect();
        Some((notice, members))
    }
}

/// While this node leads, tells every connected node outside of the group who leads and who votes: at once when either
/// changes (`changed`) or the node connects, and again from time to time.
pub(crate) async fn run(proposer: Arc<Proposer>, changed: Arc<Notify>) {
    let heartbeat = Duration::from_millis(proposer.config.heartbeat_ms);
    let again = Duration::from_millis(proposer.config.heartbeat_ms * REPEATED_AFTER_HEARTBEATS);
    let mut last = None;
    let mut repeat_at = Instant::now();
    let mut told = BTreeSet::new();
    loop {
        tokio::select! {
            biased;
            () = changed.notified() => {}
            () = tokio::time::sleep(heartbeat) => {}
        }
        let Some((notice, members)) = proposer.standing.notice() else {
            last = None;
            continue;
        };
        let now = Instant::now();
        if last.as_ref() != Some(&notice) || now >= repeat_at {
            told.clear();
            repeat_at = now + again;
        }
        let connected = proposer.transport.connected().borrow().clone();
        let outside: BTreeSet<NodeId> =
            connected.into_iter().filter(|peer| !members.contains(peer)).collect();
        let frame = Frame::new(wire::NOTICE, wire::encode(&notice));
        for peer in outside.difference(&told).copied() {
            let (transport, frame) = (proposer.transport.clone(), frame.clone());
            proposer.background().spawn(async move {
                let telling = transport.request(peer, Class::Heartbeat, frame);
                if !matches!(tokio::time::timeout(again, telling).await, Ok(Ok(_))) {
                    tracing::debug!(%peer, "a notice was not answered");
                }
            });
        }
        told = outside;
        last = Some(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(counter: u64, node: u64) -> Epoch {
        Epoch { counter, node: NodeId(node) }
    }

    fn at(term: u64, index: u64) -> Option<LogId> {
        Some(LogId::new_term_index(term, index))
    }

    fn membership(since: Option<LogId>, voters: [u64; 3]) -> StoredMembership {
        let group = openraft::Membership::new_with_defaults(vec![BTreeSet::from(voters)], []);
        StoredMembership::new(since, group)
    }

    fn notice(counter: u64, since: Option<LogId>, voters: [u64; 3]) -> Notice {
        Notice { epoch: epoch(counter, 1), since, voters: voters.map(NodeId).into() }
    }

    #[test]
    fn the_newer_of_log_and_notice_says_who_votes() {
        let own = membership(at(1, 0), [1, 2, 3]);
        let replaced = notice(2, at(2, 9), [1, 2, 4]);
        assert_eq!(newest(&own, Some(&replaced)), replaced.voters);
        let taken_in_again = membership(at(3, 12), [1, 3, 4]);
        assert_eq!(newest(&taken_in_again, Some(&replaced)), voters(&taken_in_again));
        assert_eq!(newest(&own, None), voters(&own));
    }

    #[test]
    fn a_new_leader_that_does_not_know_of_the_commitment_takes_nothing_back() {
        let known = notice(2, at(2, 9), [1, 2, 4]);
        let merged = Notice::merged(Some(&known), notice(3, at(1, 0), [1, 2, 3]));
        assert_eq!((merged.epoch, merged.since, merged.voters), (epoch(3, 1), at(2, 9), known.voters));
    }

    #[test]
    fn only_voters_know_that_an_epoch_has_ended_without_a_next() {
        let told = Some(epoch(5, 2));
        assert_eq!(in_force(None, 6, false, told), told);
        assert_eq!(in_force(None, 6, true, told), None);
        assert_eq!(in_force(None, 5, true, told), told);
        assert_eq!(in_force(Some(epoch(7, 3)), 7, true, told), Some(epoch(7, 3)));
        assert_eq!(in_force(Some(epoch(4, 3)), 4, false, told), told);
    }
}
