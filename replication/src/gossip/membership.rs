//! Nodes join and leave: one at a time, decided by the aggregator, and agreed on by as many members as hold a write.
//!
//! The rules are those of MongoDB's logless reconfiguration (Schultz, Dardik, Tripakis, "Design and Analysis of a Logless
//! Dynamic Reconfiguration Protocol", 2021), which fit, because nothing is in a log here either:
//!
//! 1. A configuration has a place (epoch, version). A node keeps the newest that it hears of, on disk before it says so.
//! 2. A candidate counts promises of the members of its configuration only, and who knows a newer one promises nothing. In
//!    office it takes the configuration over into its epoch, so that what a deposed aggregator made is older.
//! 3. Before one configuration follows another it has to be **settled**: as many members as a write awaits have it and have
//!    promised no later epoch, and whatever any of them holds is held by so many. Configurations that follow each other differ
//!    by one node.
//!
//! So where more than half hold every write, any two majorities that could decide something have a node in common, and what was
//! acknowledged among the members before is held by a majority of those after. The number of holders grows with the
//! members so as to remain a majority; it never falls below what was configured, and a node that it takes is not let go.
//! With fewer holders the same steps are taken and promise what the rest of that mode promises: two aggregators
//! may each change the members, and the later epoch's configuration stays.
//!
//! The aggregator counts only answers to itself, so its own writes need no more. A worker that writes its slot may be
//! behind with the configuration: it counts those whose configuration is its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::announce::Announcement;
use super::catalogue::Learned;
use super::config::GossipConfig;
use super::core::{Core, State};
use super::messages::{Convene, Convened};
use super::past::keep_members;
use crate::event::StoreEvent;
use crate::members::{Answer, Members, Place, Request, Step, step};
use crate::store::{Epoch, NodeId, Slot};
use crate::transport::{Class, Frame, Refusal};
use crate::wire;

/// Checkpoints that a node tells the aggregator of. One that holds more says so instead: nothing is settled on half of the truth.
const MAX_TOLD: usize = 8192;

/// A member has two intervals to answer, and this for its disk.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// What the members hold, by member.
type Holdings = BTreeMap<NodeId, BTreeSet<Announcement>>;

impl State {
    /// Holders that a write awaits now.
    pub(super) fn holders(&self, config: &GossipConfig) -> u32 {
        config.holders_among(self.members.len())
    }

    /// Members that live.
    pub(super) fn live_members(&self, local: NodeId) -> BTreeSet<NodeId> {
        &self.live(local) & self.members.nodes()
    }

    /// The epoch of this node, if there is somebody to tell who belongs to the cluster.
    fn unconfirmed(&self, local: NodeId) -> Option<(Epoch, BTreeSet<NodeId>)> {
        let epoch = self.office.in_force().filter(|epoch| epoch.node == local)?;
        let place = self.members.place();
        let mut left = self.reachable();
        left.retain(|peer| self.confirmed.get(peer) != Some(&place));
        (!left.is_empty()).then_some((epoch, left))
    }

    /// Whether `node` holds something that is retained here, or there is nothing: it is not far behind.
    fn is_near(&self, holds: Option<crate::store::CheckpointId>) -> bool {
        let retained = self.catalogue.newest_first(Slot::Global);
        let mut held = retained.filter(|entry| entry.held).map(|entry| entry.announced.id).peekable();
        held.peek().is_none() || held.any(|id| Some(id) == holds)
    }
}

impl Core {
    /// Keeps `members` if they are newer than what is known.
    pub(super) fn install(&self, members: &Members) -> bool {
        {
            let state = &mut *self.state();
            if members.place() <= state.members.place() {
                return false;
            }
            state.members = members.clone();
            state.office.among(members.len());
            state.office.seen(members.place().0);
            // What was counted among others may be too few now.
            state.catalogue.forget_accepted(self.local);
            for node in members.nodes().iter().filter(|node| **node != self.local) {
                state.peers.entry(*node).or_default();
            }
            keep_members(&self.archive, &state.members);
        }
        self.changes.announce();
        true
    }

    /// Hears who belongs to the cluster from the aggregator of an epoch.
    pub(super) async fn on_convene(self: &Arc<Self>, convene: Convene) -> Result<Frame, Refusal> {
        let Convene { epoch, members, counts } = convene;
        let answer = |answer: &Convened| Ok(Frame::new(0, wire::encode(answer)));
        let fenced_by = self.state().office.fences(epoch);
        if let Some(promised) = fenced_by {
            return answer(&Convened::No { promised });
        }
        self.follow(epoch);
        self.install(&members);
        let too_many = || Refusal(format!("it holds more than {MAX_TOLD} checkpoints"));
        let holds = if counts { self.holds().ok_or_else(too_many)? } else { Vec::new() };
        let members = self.state().members.place();
        let refusal = |error: crate::storage::StorageError| Refusal(error.to_string());
        self.archive.flush_facts().await.map_err(refusal)?;
        if counts {
            self.archive.flush().await.map_err(refusal)?;
        }
        let fenced_by = self.state().office.fences(epoch);
        match fenced_by {
            Some(promised) => answer(&Convened::No { promised }),
            None => answer(&Convened::Yes { members, holds }),
        }
    }

    /// What this node holds; none if it is too much to be told.
    fn holds(&self) -> Option<Vec<Announcement>> {
        let state = self.state();
        let held = state.catalogue.entries().filter(|entry| entry.held).map(|entry| entry.announced);
        let held: Vec<Announcement> = held.take(MAX_TOLD + 1).collect();
        (held.len() <= MAX_TOLD).then_some(held)
    }

    /// Tells `peers` who belongs to the cluster. Returns what those hold that have the configuration `place` now, by node.
    async fn convene(
        self: &Arc<Self>,
        epoch: Epoch,
        peers: BTreeSet<NodeId>,
        counts: bool,
    ) -> (Place, Holdings, BTreeSet<Announcement>) {
        let members = self.state().members.clone();
        let place = members.place();
        let patience = self.config.interval() * 2 + ANSWER_GRACE;
        let frame = Frame::new(wire::GOSSIP_MEMBERS, wire::encode(&Convene { epoch, members, counts }));
        let mut asked: FuturesUnordered<_> = peers
            .into_iter()
            .map(|peer| {
                let request = self.transport.request(peer, Class::Election, frame.clone());
                async move { (peer, tokio::time::timeout(patience, request).await) }
            })
            .collect();
        let (mut holdings, mut all) = (Holdings::new(), BTreeSet::new());
        while let Some((peer, answer)) = asked.next().await {
            let Ok(Ok(answer)) = answer else { continue };
            match wire::decode(&answer.head) {
                Ok(Convened::Yes { members, holds }) => {
                    all.extend(holds.iter().copied());
                    self.state().confirmed.insert(peer, members);
                    if members == place {
                        holdings.insert(peer, holds.into_iter().collect());
                    }
                }
                Ok(Convened::No { promised }) => {
                    self.state().office.fenced_by(promised);
                    self.changes.announce();
                }
                Err(refusal) => tracing::debug!(%peer, %refusal, "answered a configuration with nonsense"),
            }
        }
        (place, holdings, all)
    }

    /// Makes sure that the configuration is settled, so that another may follow; `beside` holds something too, perhaps.
    async fn settle_members(self: &Arc<Self>, epoch: Epoch, beside: NodeId) -> bool {
        let place = self.state().members.place();
        if self.state().settled == Some(place) {
            return true;
        }
        let deadline = Instant::now() + Duration::from_millis(self.config.put_timeout_ms);
        let mut wanted: Option<BTreeSet<Announcement>> = None;
        while Instant::now() < deadline {
            let peers = {
                let state = self.state();
                let mut peers = state.reachable();
                peers.retain(|peer| state.members.contains(*peer) || *peer == beside);
                peers
            };
            let Some(own) = self.holds() else { return false };
            let kept = async {
                self.archive.flush_facts().await?;
                self.archive.flush().await
            };
            if kept.await.is_err() {
                return false;
            }
            let (now, mut holdings, mut all) = self.convene(epoch, peers, true).await;
            all.extend(own.iter().copied());
            holdings.insert(self.local, own.into_iter().collect());
            {
                let state = self.state();
                if now != place || state.members.place() != place || state.office.in_force() != Some(epoch) {
                    return false;
                }
                holdings.retain(|node, _| state.members.contains(*node));
            }
            let needed = self.config.holders_among(self.state().members.len()) as usize;
            if holdings.len() >= needed {
                let wanted = wanted.get_or_insert(all);
                self.take_over_all(wanted, &holdings);
                let held = |announced: &Announcement| {
                    holdings.values().filter(|held| held.contains(announced)).count() >= needed
                };
                if wanted.iter().all(held) {
                    self.state().settled = Some(place);
                    return true;
                }
                self.fetch_missing();
            }
            tokio::time::sleep(self.config.interval()).await;
        }
        false
    }

    /// Learns what members hold, so that it is fetched here and announced to others; what is too old to be kept, or named by
    /// another checkpoint already, is not wanted.
    fn take_over_all(self: &Arc<Self>, wanted: &mut BTreeSet<Announcement>, holdings: &Holdings) {
        for (holder, held) in holdings {
            for announced in held.intersection(wanted) {
                self.learn(*announced, None, Some(*holder));
            }
        }
        wanted.retain(|announced| self.learn(*announced, None, None) != Learned::Refused);
    }

    /// Makes `nodes` the members, as the aggregator of `epoch`; true once they are settled.
    async fn become_members(
        self: &Arc<Self>,
        epoch: Epoch,
        before: &Members,
        next: Members,
        beside: NodeId,
    ) -> bool {
        {
            let state = self.state();
            if state.office.in_force() != Some(epoch) || state.members.place() != before.place() {
                return false;
            }
        }
        self.install(&next);
        let nodes: Vec<String> = next.nodes().iter().map(NodeId::to_string).collect();
        tracing::info!(%epoch, members = nodes.join(", "), "members change");
        let settled = self.settle_members(epoch, beside).await;
        if settled {
            let (lost, joined) = (before.nodes() - next.nodes(), next.nodes() - before.nodes());
            let voters = next.nodes().iter().copied().collect();
            let (lost, joined) = (lost.first().copied(), joined.first().copied());
            self.observer.observe(StoreEvent::VotersChanged { lost, joined, voters });
        }
        settled
    }

    /// Answers a node that wants to join or leave.
    pub(super) async fn on_membership(self: &Arc<Self>, from: NodeId, request: Request) -> Answer {
        // One change at a time; whoever asks meanwhile asks again.
        let Ok(_changing) = self.changing.try_lock() else { return Answer::UnderWay };
        let (in_force, before, state_of) = {
            let state = self.state();
            let state_of = match request {
                Request::Join { replaces, holds } => {
                    let live = state.live(self.local);
                    (replaces.is_some_and(|gone| live.contains(&gone)), state.is_near(holds))
                }
                Request::Leave => (false, false),
            };
            (state.office.in_force(), state.members.clone(), state_of)
        };
        // Who has just come into office takes the members over first.
        let mine = in_force.filter(|epoch| epoch.node == self.local && before.place().0 == *epoch);
        let Some(epoch) = mine else { return Answer::Elsewhere(in_force) };
        let step = step(&before, (from, request), state_of, |members| self.config.holders_among(members));
        self.carry_out(epoch, from, before, step).await
    }

    async fn carry_out(self: &Arc<Self>, epoch: Epoch, from: NodeId, before: Members, step: Step) -> Answer {
        let settled = match step {
            Step::TooFew { left, needed } => return Answer::TooFew { left, needed },
            Step::Wait => false,
            Step::Done => self.settle_members(epoch, from).await,
            Step::Become(nodes) => {
                let next = before.become_of(nodes, 0);
                self.settle_members(epoch, from).await
                    && self.become_members(epoch, &before, next, from).await
                    // In the place of one that died it takes two steps.
                    && self.state().members.nodes().symmetric_difference(before.nodes()).any(|node| *node == from)
            }
        };
        if settled { Answer::Done } else { Answer::UnderWay }
    }

    /// What this node asks for, if it is outside and wants in.
    pub(super) fn wants_in(&self, replaces: Option<NodeId>) -> Option<Request> {
        let state = self.state();
        let gone = replaces.filter(|gone| state.members.contains(*gone));
        let outside = !state.members.contains(self.local) || gone.is_some();
        let holds = state.catalogue.held_global().map(|entry| entry.announced.id);
        (outside && !self.leaving.load(Ordering::Relaxed))
            .then_some(Request::Join { replaces: gone.or(replaces), holds })
    }
}

/// Tells whoever has not confirmed it who belongs to the cluster, as long as this node aggregates.
pub(super) async fn run(core: Arc<Core>) {
    loop {
        let (epoch, left) = core.changes.until(|| core.state().unconfirmed(core.local)).await;
        core.convene(epoch, left, false).await;
        tokio::time::sleep(core.config.interval()).await;
    }
}
