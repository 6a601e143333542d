//! Nodes join and leave: the order of succession grows and shrinks, decided by the aggregator.
//!
//! A configuration is kept like a checkpoint: it is in force once it is on the aggregator and `backups` other members of the one
//! before it, on disk if there is one. So whoever succeeds, and asks as many as the configuration that it knows takes, hears of
//! the next one from somebody, and asks as many as that one takes. Nobody holds anything as a backup before it is in force.
//!
//! Before a node is let go everything acknowledged is brought to `backups` others, since it may be one of those that hold it;
//! meanwhile no write counts on it. A cluster is not let shrink below the aggregator and its backups.
//!
//! There is no consensus, here neither: two aggregators of a partition may each change the members. The configuration of the
//! higher epoch stays when they meet; who had joined the other side asks again by itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::network::{Roster, Source};
use super::node::Node;
use crate::error::StoreError;
use crate::ledger::Record;
use crate::members::{self, Answer, Members, Place, Request, Step, step};
use crate::store::{Checkpoint, CheckpointId, Epoch, NodeId, Slot};
use crate::transport::{Class, Frame};
use crate::wire;

/// While it lives no write counts on a node.
struct Leaving<'a>(&'a Node);

impl<'a> Leaving<'a> {
    fn begins(node: &'a Node, gone: Option<NodeId>) -> Self {
        node.state().leaving = gone;
        Self(node)
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.state().leaving = None;
    }
}

impl Node {
    /// Keeps `members` if they are newer than what is known.
    pub(super) fn install(&self, members: &Members) -> bool {
        let mut state = self.state();
        if members.place() <= state.members.place() {
            return false;
        }
        state.succession.among(members.nodes().clone());
        state.members = members.clone();
        self.archive.note(members::FACT, members);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Hears who belongs to the cluster from the aggregator of an epoch that is in force.
    pub(super) async fn on_roster(&self, members: &Members) -> Result<Place, StoreError> {
        self.install(members);
        let place = self.state().members.place();
        self.archive.flush_facts().await?;
        Ok(place)
    }

    /// Tells `peer` who belongs to the cluster; true if it knows.
    pub(super) async fn tell_members(&self, peer: NodeId, epoch: Epoch, members: Members) -> bool {
        let place = members.place();
        let frame = Frame::new(wire::BACKUP_MEMBERS, wire::encode(&Roster { epoch, members }));
        let request = self.transport.request(peer, Class::Election, frame);
        let patience = self.patience() + Duration::from_millis(self.config.put_timeout_ms);
        let Ok(Ok(answer)) = tokio::time::timeout(patience, request).await else { return false };
        matches!(wire::decode(&answer.head), Ok(Ok::<Place, StoreError>(known)) if known == place)
    }

    /// Nodes that a configuration of so many has to keep: the aggregator and its backups.
    fn needed(&self) -> u32 {
        self.config.backups + 1
    }

    /// Whether this node could let `left` members go on without it.
    pub(super) fn may_leave(&self) -> Result<(), StoreError> {
        let state = self.state();
        let left = state.members.len().saturating_sub(1) as u32;
        if state.members.contains(self.local()) && left < self.needed() {
            return Err(StoreError::TooFewWouldBeLeft { left, needed: self.needed() });
        }
        Ok(())
    }

    /// Answers a node that wants to join or leave.
    pub(super) async fn on_membership(&self, from: NodeId, request: Request) -> Answer {
        // One change at a time; whoever asks meanwhile asks again.
        let Ok(_changing) = self.changing.try_lock() else { return Answer::UnderWay };
        let connected: BTreeSet<NodeId> = self.transport.connected().borrow().iter().copied().collect();
        let (current, leads, before) = {
            let state = self.state();
            let leads = state.succession.leads() && !state.resigning;
            (state.succession.epoch(), leads, state.members.clone())
        };
        let Some(epoch) = current.filter(|_| leads) else { return Answer::Elsewhere(current) };
        let lives =
            matches!(request, Request::Join { replaces: Some(gone), .. } if connected.contains(&gone));
        // Who joins holds nothing before it is chosen as a backup.
        match step(&before, (from, request), (lives, true), |_| self.needed()) {
            Step::Done => Answer::Done,
            Step::Wait => Answer::UnderWay,
            Step::TooFew { left, needed } => Answer::TooFew { left, needed },
            Step::Become(nodes) => {
                let gone = before.nodes().difference(&nodes).next().copied();
                let last = !matches!(request, Request::Join { .. } if gone.is_some());
                let _leaving = Leaving::begins(self, gone);
                let moved = match gone {
                    Some(gone) => self.relieve(epoch, gone).await,
                    None => Ok(()),
                };
                let changed = match moved {
                    Ok(()) => self.become_members(epoch, &before, nodes).await,
                    Err(error) => {
                        tracing::info!(%error, "what a node holds was not brought to others yet");
                        false
                    }
                };
                if changed && last { Answer::Done } else { Answer::UnderWay }
            }
        }
    }

    /// Brings everything acknowledged to as many others as promised, without `gone`.
    async fn relieve(&self, epoch: Epoch, gone: NodeId) -> Result<(), StoreError> {
        let records: Vec<Record> = self.state().ledger.records().cloned().collect();
        let mut sources = self.connected();
        // Those of a newcomer's predecessor are not there any more.
        sources.sort_by_key(|node| *node != gone);
        for record in records {
            let Record { id, digest, bytes, metadata } = record;
            let parameters = match self.exchange.fetch(digest, bytes, &sources).await {
                Ok(parameters) => parameters,
                // Lost with the losses that are not promised to be survived, or unacknowledged.
                Err(error) if !self.is_newest(id) => {
                    tracing::info!(%error, %id, "nobody serves it");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let checkpoint = Checkpoint::already_verified(id, digest, parameters, metadata);
            let timeout = self.put_timeout(bytes);
            let spread = self.spread(epoch, &checkpoint, Source::There, true);
            let late = |_| StoreError::Unavailable { reason: format!("too few backups for {id}") };
            tokio::time::timeout(timeout, spread).await.map_err(late)??;
        }
        Ok(())
    }

    fn is_newest(&self, id: CheckpointId) -> bool {
        self.state().ledger.newest(id.slot).is_some_and(|newest| newest.id == id)
    }

    /// Makes `nodes` the members; true once that is in force.
    async fn become_members(&self, epoch: Epoch, before: &Members, nodes: BTreeSet<NodeId>) -> bool {
        let next = {
            let mut state = self.state();
            let next = before.become_of(nodes, state.proposed);
            state.proposed = next.place().1;
            next
        };
        let told: FuturesUnordered<_> = self
            .connected()
            .into_iter()
            .filter(|peer| next.contains(*peer))
            .map(|peer| self.tell_members(peer, epoch, next.clone()))
            .collect();
        // Everybody else, who joins among them, hears of it with the heartbeats once it is in force.
        let knowing = told.filter(|knows| std::future::ready(*knows));
        let enough = knowing.take(self.config.backups as usize).count().await;
        let same = {
            let state = self.state();
            let unchanged = state.members.place() == before.place() && !state.closed;
            unchanged && state.succession.epoch() == Some(epoch)
        };
        if enough < self.config.backups as usize || !same || !self.install(&next) {
            return false;
        }
        let names: Vec<String> = next.nodes().iter().map(NodeId::to_string).collect();
        tracing::info!(%epoch, members = names.join(", "), "members changed");
        self.archive.flush_facts().await.is_ok()
    }

    /// What this node asks for, if it is outside and wants in.
    pub(super) fn wants_in(&self, replaces: Option<NodeId>) -> Option<Request> {
        let state = self.state();
        let gone = replaces.filter(|gone| state.members.contains(*gone));
        let outside = !state.members.contains(self.local()) || gone.is_some();
        let holds = state.ledger.newest(Slot::Global).map(|record| record.id);
        let wanted = outside && !self.leaves.load(Ordering::Relaxed) && !state.closed;
        wanted.then_some(Request::Join { replaces, holds })
    }
}

/// Asks to be taken in, whenever this node is outside.
pub(super) async fn join(node: Arc<Node>, replaces: Option<NodeId>) {
    let (aggregator, pause) = (node.aggregator.subscribe(), Duration::from_millis(node.config.heartbeat_ms));
    members::join(node.transport.as_ref(), aggregator, pause, || node.wants_in(replaces)).await;
}
