//! Who votes: what an earlier leader left of a change is brought to its end, and where only the most suitable vote, a voter
//! that stays away or leaves is replaced.
//!
//! [`Watch`] decides, from what the leader sees; [`run`] carries it out on the leader. A replacement is three steps: the
//! next most suitable node that is connected becomes a learner, catches up until it has the bytes of every retained
//! checkpoint, and then votes in place of the one that is lost (a joint change, Ongaro's dissertation, section 4.3). A
//! leader that dies in between leaves a learner or a joint configuration; the next one tidies up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{ChangeMembers, EmptyNode, Instant as _};
use tokio::time::Instant;

use super::config::Electorate;
use super::founding::reports;
use super::proposer::Proposer;
use crate::event::StoreEvent;
use crate::store::NodeId;
use crate::suitability::ranked;

/// How long a node may take to catch up before another one is tried.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);

/// What the leader sees of its group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sight {
    term: u64,
    /// One configuration, or two while voters change.
    configurations: Vec<BTreeSet<NodeId>>,
    learners: BTreeSet<NodeId>,
    /// Voters that want to be replaced.
    leaving: BTreeSet<NodeId>,
    /// Whether the newest membership is committed.
    settled: bool,
    /// When each node last acknowledged something to this leader.
    acknowledged: BTreeMap<NodeId, Instant>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Nothing, or it is under way.
    Wait,
    /// End a joint configuration that an earlier leader left.
    LeaveJoint,
    /// Let learners go that an earlier attempt left.
    Dismiss(BTreeSet<NodeId>),
    /// Replace this voter.
    Replace(NodeId),
}

/// Since when which voter is away, in the eyes of one leader.
#[derive(Debug)]
struct Watch {
    local: NodeId,
    /// How long a voter may be away; without it nobody is replaced, and learners are on their way to vote.
    grace: Option<Duration>,
    term: u64,
    /// When this leader first saw each voter: nobody is away for longer.
    seen: BTreeMap<NodeId, Instant>,
}

impl Watch {
    fn new(local: NodeId, grace: Option<Duration>) -> Self {
        Self { local, grace, term: 0, seen: BTreeMap::new() }
    }

    /// Voters that are away for longer than the grace time, the longest first.
    fn away(&mut self, sight: &Sight, now: Instant) -> Vec<NodeId> {
        if sight.term != self.term {
            self.term = sight.term;
            self.seen.clear();
        }
        let voters: BTreeSet<NodeId> = sight.configurations.iter().flatten().copied().collect();
        self.seen.retain(|voter, _| voters.contains(voter));
        let Some(grace) = self.grace else { return Vec::new() };
        let mut away = Vec::new();
        for voter in voters.into_iter().filter(|voter| *voter != self.local) {
            let seen = *self.seen.entry(voter).or_insert(now);
            let heard = sight.acknowledged.get(&voter).map_or(seen, |at| seen.max(*at));
            if now.saturating_duration_since(heard) > grace {
                away.push((heard, voter));
            }
        }
        away.sort();
        away.into_iter().map(|(_, voter)| voter).collect()
    }

    fn next(&mut self, sight: &Sight, now: Instant) -> Step {
        let away = self.away(sight, now);
        match &sight.configurations[..] {
            _ if !sight.settled => Step::Wait,
            [voters] if self.grace.is_some() && !sight.learners.is_empty() && !voters.is_empty() => {
                Step::Dismiss(sight.learners.clone())
            }
            [voters] => match away.first().or(sight.leaving.intersection(voters).next()) {
                // Without a majority nothing can be changed.
                Some(lost) if 2 * (voters.len() - away.len()) > voters.len() => Step::Replace(*lost),
                _ => Step::Wait,
            },
            [] => Step::Wait,
            _ => Step::LeaveJoint,
        }
    }
}

/// Who was lost and who joined between two sets of voters.
fn difference(before: &BTreeSet<NodeId>, after: &BTreeSet<NodeId>) -> (Option<NodeId>, Option<NodeId>) {
    if before.is_empty() {
        return (None, None);
    }
    (before.difference(after).next().copied(), after.difference(before).next().copied())
}

/// Watches over the voters; acts while this node leads.
pub(crate) async fn run(proposer: Arc<Proposer>) {
    let grace = match proposer.config.electorate {
        Electorate::Everyone => None,
        // A leader hears of voters that are well at every heartbeat only.
        Electorate::MostSuitable { grace_ms, .. } => {
            Some(Duration::from_millis(grace_ms.max(proposer.config.window.to_ms)))
        }
    };
    let watch = Watch::new(proposer.transport.local(), grace);
    let mut steward = Steward { proposer, watch, announced: BTreeSet::new(), tried: BTreeSet::new() };
    loop {
        tokio::time::sleep(Duration::from_millis(steward.proposer.config.heartbeat_ms)).await;
        steward.tick().await;
    }
}

struct Steward {
    proposer: Arc<Proposer>,
    watch: Watch,
    /// The voters that were last seen or told of.
    announced: BTreeSet<NodeId>,
    /// Nodes that did not catch up.
    tried: BTreeSet<NodeId>,
}

impl Steward {
    async fn tick(&mut self) {
        self.announce();
        let Some(sight) = self.sight() else { return };
        match self.watch.next(&sight, Instant::now()) {
            Step::Wait => {}
            Step::LeaveJoint => self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await,
            Step::Dismiss(learners) => {
                self.change(ChangeMembers::RemoveNodes(learners.iter().map(|node| node.0).collect())).await;
            }
            Step::Replace(lost) => self.replace(lost, &sight).await,
        }
        self.announce();
    }

    /// What this node sees, if it leads.
    fn sight(&self) -> Option<Sight> {
        let raft = &self.proposer.raft;
        let (server, data) = (raft.server_metrics(), raft.data_metrics());
        let server = server.borrow_watched();
        if server.current_leader != Some(server.id) {
            return None;
        }
        let membership = server.membership_config.membership();
        let now = Instant::now();
        let data = data.borrow_watched();
        let acknowledged = data.heartbeat.iter().flatten();
        let acknowledged = acknowledged
            .filter_map(|(node, at)| Some((NodeId(*node), now.checked_sub(at.as_ref()?.elapsed())?)))
            .collect();
        Some(Sight {
            term: server.vote.leader_id.term,
            configurations: membership
                .get_joint_config()
                .iter()
                .map(|voters| voters.iter().copied().map(NodeId).collect())
                .collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            leaving: self.proposer.let_go.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            settled: server.membership_config == server.committed_membership_config,
            acknowledged,
        })
    }

    /// Tells of a change of voters once it is committed.
    fn announce(&mut self) {
        let metrics = self.proposer.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let [voters] = &metrics.committed_membership_config.get_joint_config()[..] else { return };
        let voters: BTreeSet<NodeId> = voters.iter().copied().map(NodeId).collect();
        if voters.is_empty() || voters == self.announced {
            return;
        }
        let founded = self.announced.is_empty();
        let (lost, joined) = difference(&self.announced, &voters);
        self.announced = voters.clone();
        let mut let_go = self.proposer.let_go.lock().unwrap_or_else(PoisonError::into_inner);
        let_go.retain(|voter| voters.contains(voter));
        drop(let_go);
        // Where everyone votes, who founds the group is no news.
        let news = !founded || self.watch.grace.is_some();
        if news && metrics.current_leader == Some(metrics.id) {
            let voters = voters.into_iter().collect();
            self.proposer.observer.observe(StoreEvent::VotersChanged { lost, joined, voters });
        }
    }

    /// Whether this node still leads, and `lost` is still away or leaves.
    fn must_go(&mut self, lost: NodeId) -> bool {
        let Some(sight) = self.sight() else { return false };
        sight.leaving.contains(&lost) || self.watch.away(&sight, Instant::now()).contains(&lost)
    }

    /// Lets the most suitable node that is connected vote instead of `lost`. Whatever fails is tidied up and tried again
    /// in a later step.
    async fn replace(&mut self, lost: NodeId, sight: &Sight) {
        let Some(voters) = sight.configurations.first() else { return };
        let Some(successor) = self.successor(voters).await else {
            if sight.leaving.contains(&lost) && voters.len() > 1 {
                // There is nobody to take its place: the group goes on with fewer voters.
                self.change(ChangeMembers::RemoveVoters([lost.0].into())).await;
            }
            return;
        };
        let timeout = Duration::from_millis(self.proposer.config.put_timeout_ms);
        let adding = self.proposer.raft.add_learner(successor.0, EmptyNode {}, false);
        let added = match tokio::time::timeout(timeout, adding).await {
            Ok(Ok(added)) => added.log_id.index,
            Ok(Err(error)) => return tracing::info!(%error, %successor, "was not taken in"),
            Err(_) => return tracing::info!(%successor, "was not taken in within {timeout:?}"),
        };
        if !self.caught_up(successor, lost, added).await {
            return;
        }
        let mut next: BTreeSet<u64> = voters.iter().map(|voter| voter.0).collect();
        next.remove(&lost.0);
        next.insert(successor.0);
        self.change(ChangeMembers::ReplaceAllVoters(next)).await;
    }

    async fn successor(&mut self, voters: &BTreeSet<NodeId>) -> Option<NodeId> {
        let connected = self.proposer.transport.connected().borrow().clone();
        let outside: BTreeSet<NodeId> = connected.into_iter().filter(|peer| !voters.contains(peer)).collect();
        if outside.is_subset(&self.tried) {
            self.tried.clear();
        }
        let reports = reports(&self.proposer.transport, outside.difference(&self.tried).copied()).await;
        let stay = reports.iter().filter(|(_, report)| !report.leaving);
        ranked(stay.map(|(node, report)| (*node, report.resources.score()))).first().copied()
    }

    /// Waits until `successor` has applied entry `added` and has all bytes; false if it fails to, if `lost` is back, or this
    /// node leads no more.
    async fn caught_up(&mut self, successor: NodeId, lost: NodeId, added: u64) -> bool {
        let deadline = Instant::now() + CATCH_UP_TIMEOUT;
        while self.must_go(lost) {
            let reports = reports(&self.proposer.transport, [successor]).await;
            match reports.get(&successor) {
                Some(report) if report.complete && report.applied >= Some(added) => {
                    self.tried.clear();
                    return self.must_go(lost);
                }
                Some(_) if Instant::now() < deadline => {}
                _ => {
                    self.tried.insert(successor);
                    return false;
                }
            }
            tokio::time::sleep(Duration::from_millis(self.proposer.config.heartbeat_ms)).await;
        }
        false
    }

    async fn change(&self, change: ChangeMembers<u64, EmptyNode>) {
        let _changing = self.proposer.changing.lock().await;
        self.proposer.change(change).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn set<const N: usize>(nodes: [u64; N]) -> BTreeSet<NodeId> {
        nodes.map(NodeId).into()
    }

    fn sight(at: Instant) -> Sight {
        Sight {
            term: 1,
            configurations: vec![set([1, 2, 3])],
            learners: BTreeSet::new(),
            leaving: BTreeSet::new(),
            settled: true,
            acknowledged: [2, 3].map(|node| (NodeId(node), at)).into(),
        }
    }

    fn watch() -> Watch {
        Watch::new(NodeId(1), Some(GRACE))
    }

    #[test]
    fn a_voter_is_replaced_after_the_grace_and_not_before() {
        let (start, mut watch) = (Instant::now(), watch());
        let mut sight = sight(start);
        assert_eq!(watch.next(&sight, start), Step::Wait);
        sight.acknowledged.insert(NodeId(2), start + GRACE);
        assert_eq!(watch.next(&sight, start + GRACE), Step::Wait);
        let late = start + GRACE + Duration::from_millis(1);
        assert_eq!(watch.next(&sight, late), Step::Replace(NodeId(3)));
        sight.acknowledged.insert(NodeId(3), late);
        assert_eq!(watch.next(&sight, late), Step::Wait, "it is back");
    }

    #[test]
    fn nobody_is_replaced_without_a_majority() {
        let (start, mut watch) = (Instant::now(), watch());
        let mut sight = sight(start);
        watch.next(&sight, start);
        assert_eq!(watch.next(&sight, start + 2 * GRACE), Step::Wait);
        sight.configurations = vec![set([1, 2, 3, 4, 5])];
        let now = start + 2 * GRACE;
        sight.acknowledged.insert(NodeId(4), now);
        assert_eq!(
            watch.next(&sight, now),
            Step::Replace(NodeId(2)),
            "5 is new here; the longest away first"
        );
    }

    #[test]
    fn a_new_leader_gives_everyone_the_whole_grace() {
        let (start, mut watch) = (Instant::now(), watch());
        let mut sight = Sight { acknowledged: BTreeMap::new(), ..sight(start) };
        watch.next(&sight, start);
        sight.term = 2;
        let now = start + 2 * GRACE;
        assert_eq!(watch.next(&sight, now), Step::Wait);
        sight.acknowledged.insert(NodeId(2), now + 2 * GRACE);
        assert_eq!(watch.next(&sight, now + 2 * GRACE), Step::Replace(NodeId(3)));
    }

    #[test]
    fn what_an_earlier_leader_left_is_tidied_up_first() {
        let (start, mut watch) = (Instant::now(), watch());
        let mut left = Sight { learners: set([4]), ..sight(start) };
        assert_eq!(watch.next(&left, start), Step::Dismiss(set([4])));
        left.settled = false;
        assert_eq!(watch.next(&left, start), Step::Wait);
        let joint = Sight { configurations: vec![set([1, 2, 3]), set([1, 2, 4])], ..sight(start) };
        assert_eq!(watch.next(&joint, start), Step::LeaveJoint);
    }

    #[test]
    fn a_voter_that_leaves_is_replaced_at_once_and_only_where_voters_are_chosen() {
        let start = Instant::now();
        let leaving = Sight { leaving: set([3, 9]), ..sight(start) };
        assert_eq!(watch().next(&leaving, start), Step::Replace(NodeId(3)));
        let mut everyone = Watch::new(NodeId(1), None);
        let joining = Sight { learners: set([4]), ..sight(start) };
        everyone.next(&joining, start);
        assert_eq!(everyone.next(&joining, start + 2 * GRACE), Step::Wait, "it catches up");
    }

    #[test]
    fn an_event_names_who_was_lost_and_who_joined() {
        assert_eq!(difference(&set([1, 2, 3]), &set([1, 3, 7])), (Some(NodeId(2)), Some(NodeId(7))));
        assert_eq!(difference(&set([]), &set([1, 3, 7])), (None, None));
    }
}
