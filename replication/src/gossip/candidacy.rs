//! Stands for the office when it is time: asks for promises, takes over the newest checkpoint, claims the epoch.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::announce::{Announcement, order};
use super::catalogue::Learned;
use super::core::{Core, State};
use super::messages::{Candidacy, Promised};
use super::office::Decision;
use crate::blob::transfer_timeout;
use crate::lifeline::Follower;
use crate::members::Members;
use crate::store::{Epoch, NodeId, Slot};
use crate::transport::{Class, Frame};
use crate::wire;

/// A candidate waits for promises for two intervals, and this.
const PROMISE_GRACE: Duration = Duration::from_millis(250);

/// Stands whenever it is this node's turn.
pub(super) async fn run(core: Arc<Core>) {
    loop {
        let mut wait = None;
        let turn = core.changes.until(|| {
            let state = &mut *core.state();
            if !state.members.contains(core.local) {
                return None;
            }
            let live = state.live_members(core.local);
            match state.office.decide(&live, &state.fitness, Instant::now(), &mut state.rng) {
                Decision::Rest => None,
                Decision::WaitUntil(until) => Some(Turn::WaitUntil(until)),
                // At once: nothing may be promised in between.
                Decision::Stand => Some(Turn::Standing(Standing::begin(&core, state))),
            }
        });
        match turn.await {
            Turn::WaitUntil(until) => wait = Some(until),
            Turn::Standing(standing) => stand(&core, standing).await,
        }
        if let Some(until) = wait {
            let mut first = true;
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => {}
                () = core.changes.until(|| if std::mem::take(&mut first) { None } else { Some(()) }) => {}
            }
        }
    }
}

/// Heeds lifelines to whoever aggregates, until the store closes.
pub(super) async fn heed(core: Arc<Core>, mut lifeline: Follower) {
    let mut aggregator = core.aggregator.subscribe();
    loop {
        lifeline.follow(*aggregator.borrow_and_update());
        tokio::select! {
            biased;
            changed = aggregator.changed() => if changed.is_err() { return },
            epoch = lifeline.ended() => core.crashed(epoch),
        }
    }
}

enum Turn {
    WaitUntil(Instant),
    Standing(Standing),
}

/// A candidacy that has begun.
struct Standing {
    epoch: Epoch,
    blessing: Option<Epoch>,
    /// What was promised before.
    before: Epoch,
    /// Among whom.
    members: Members,
}

impl Standing {
    fn begin(core: &Core, state: &mut State) -> Self {
        let before = state.office.promised();
        let (epoch, blessing) = state.office.stand(Instant::now());
        core.keep_promises(state);
        Self { epoch, blessing, before, members: state.members.clone() }
    }
}

async fn stand(core: &Arc<Core>, Standing { epoch, blessing, before, members }: Standing) {
    // Another life must not stand for the same epoch.
    let kept = core.archive.flush_facts().await.inspect_err(|error| tracing::warn!(%error, "no candidacy"));
    let elected = kept.is_ok()
        && match ask(core, Candidacy { epoch, blessing, members: members.clone() }).await {
            Some(newest) => take_over(core, newest).await,
            None => false,
        };
    let in_office = elected && {
        let state = core.state();
        // Nobody was promised a higher epoch meanwhile.
        let among_them = state.members.place() == members.place() && members.place().0 < epoch;
        state.office.promised() == epoch && state.office.in_force() < Some(epoch) && among_them
    };
    if !in_office {
        let state = &mut *core.state();
        state.office.withdraw(epoch, before, Instant::now(), &mut state.rng);
        core.keep_promises(state);
        return;
    }
    let base = core.global_base();
    core.state().base = base;
    core.follow(epoch);
    core.install(&members.renewed(epoch));
    let connected = core.state().connected();
    core.claim(connected);
}

/// Asks whoever can be reached for a promise. If enough was promised, returns the newest checkpoint of the job's state that
/// those hold who promised.
async fn ask(core: &Arc<Core>, candidacy: Candidacy) -> Option<Option<Announcement>> {
    let mut newest: Option<Announcement> = None;
    let peers: Vec<NodeId> = {
        let state = core.state();
        let live = state.live(core.local);
        let asked = |peer: &NodeId| core.config.linear() || live.contains(peer);
        let members = state.connected().into_iter().filter(|peer| candidacy.members.contains(*peer));
        members.filter(asked).collect()
    };
    let frame = Frame::new(wire::GOSSIP_PROMISE, wire::encode(&candidacy));
    let mut answers: FuturesUnordered<_> = peers
        .iter()
        .map(|peer| {
            let request = core.transport.request(*peer, Class::Election, frame.clone());
            async move { (*peer, request.await) }
        })
        .collect();
    let until = Instant::now() + core.config.interval() * 2 + PROMISE_GRACE;
    let (mut granted, mut answered) = (0, 0);
    while let Ok(Some((peer, answer))) = tokio::time::timeout_at(until, answers.next()).await {
        let Some(promised) = answer.ok().and_then(|answer| wire::decode(&answer.head).ok()) else { continue };
        answered += 1;
        match promised {
            Promised::Granted { holds } => {
                granted += 1;
                for announced in holds {
                    let global = announced.id.slot == Slot::Global && announced.id.epoch < candidacy.epoch;
                    if global && newest.is_none_or(|newest| announced.order() > newest.order()) {
                        newest = Some(announced);
                    }
                    core.learn(announced, None, Some(peer));
                }
            }
            Promised::Refused { promised, in_force, members } => {
                core.install(&members);
                core.state().office.gives_way(promised, in_force, Instant::now());
                if let Some(in_force) = in_force.filter(|epoch| epoch.node != core.local) {
                    core.follow(in_force);
                }
            }
        }
        if core.config.linear() && core.state().office.suffices(granted, answered) {
            break;
        }
    }
    core.state().office.suffices(granted, answered).then_some(newest)
}

/// Brings in what those hold who promised; false if it must be had and cannot. What nobody of them holds was not
/// acknowledged, whatever gossip tells of it.
async fn take_over(core: &Arc<Core>, newest: Option<Announcement>) -> bool {
    let Some(newest) = newest else { return true };
    let here = core.global_base().map(order);
    if here >= Some(newest.order()) {
        return true;
    }
    let fetched = tokio::time::timeout(transfer_timeout(newest.bytes), core.bytes(&newest)).await;
    // With few holders what was acknowledged may be lost with them.
    matches!(fetched, Ok(Some(_))) || !core.config.linear()
}

impl Core {
    /// Learns what a peer announces in gossip state, the newest first.
    pub(super) fn learn_all(self: &Arc<Self>, holder: NodeId, announced: Vec<Announcement>) {
        for announced in announced {
            if self.learn(announced, None, Some(holder)) == Learned::Refused {
                tracing::debug!(%holder, id = %announced.id, "an announcement is not kept");
            }
        }
    }
}
