//! Stands for the office when it is time: asks for promises, takes over the newest checkpoint, claims the epoch.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::announce::Announcement;
use super::catalogue::Learned;
use super::core::Core;
use super::messages::{Candidacy, Promised};
use super::office::Decision;
use crate::blob::transfer_timeout;
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
            let decision = {
                let state = &mut *core.state();
                let live = state.live(core.local);
                state.office.decide(&live, &state.fitness, Instant::now(), &mut state.rng)
            };
            match decision {
                Decision::Rest => None,
                other => Some(other),
            }
        });
        match turn.await {
            Decision::WaitUntil(until) => wait = Some(until),
            Decision::Rest => {}
            Decision::Stand => stand(&core).await,
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

async fn stand(core: &Arc<Core>) {
    let (epoch, blessing, before) = {
        let mut state = core.state();
        let before = state.office.promised();
        let (epoch, blessing) = state.office.stand();
        (epoch, blessing, before)
    };
    let elected = ask(core, Candidacy { epoch, blessing }).await && take_over(core, epoch).await;
    let in_office = elected && {
        let state = core.state();
        // Nobody was promised a higher epoch meanwhile.
        state.office.promised() == epoch && state.office.in_force() < Some(epoch)
    };
    if !in_office {
        let state = &mut *core.state();
        state.office.withdraw(epoch, before, Instant::now(), &mut state.rng);
        return;
    }
    let base = core.global_base();
    core.state().base = base;
    core.follow(epoch);
    let connected = core.state().connected();
    core.claim(connected);
}

/// Asks whoever can be reached for a promise; whether enough was promised.
async fn ask(core: &Arc<Core>, candidacy: Candidacy) -> bool {
    let peers: Vec<NodeId> = {
        let state = core.state();
        let live = state.live(core.local);
        let asked = |peer: &NodeId| core.config.linear() || live.contains(peer);
        state.connected().into_iter().filter(asked).collect()
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
                    core.learn(announced, None, Some(peer));
                }
            }
            Promised::Refused { promised, in_force } => {
                core.state().office.seen(promised);
                if let Some(in_force) = in_force.filter(|epoch| epoch.node != core.local) {
                    core.follow(in_force);
                }
            }
        }
        if core.config.linear() && core.state().office.suffices(granted, answered) {
            break;
        }
    }
    core.state().office.suffices(granted, answered)
}

/// Brings in the newest checkpoint of the job's state; false if its bytes cannot be had and must be.
async fn take_over(core: &Arc<Core>, epoch: Epoch) -> bool {
    loop {
        let newest: Option<(Announcement, bool)> = {
            let state = core.state();
            let mut known = state.catalogue.newest_first(Slot::Global);
            known.find(|entry| entry.announced.id.epoch < epoch).map(|entry| (entry.announced, entry.held))
        };
        let Some((newest, false)) = newest else { return true };
        let fetched = tokio::time::timeout(transfer_timeout(newest.bytes), core.bytes(&newest)).await;
        if !matches!(fetched, Ok(Some(_))) {
            // With few holders what was acknowledged may be lost with them.
            return !core.config.linear() || !core.accepted_somewhere(&newest);
        }
    }
}

impl Core {
    /// Whether somebody says that it holds a checkpoint, so that it may have been acknowledged.
    fn accepted_somewhere(&self, announced: &Announcement) -> bool {
        let holders = self.state().catalogue.find(announced.id).map(|entry| entry.holders.clone());
        holders.is_some_and(|holders| !holders.is_empty())
    }

    /// Learns what a peer announces in gossip state, the newest first.
    pub(super) fn learn_all(self: &Arc<Self>, holder: NodeId, announced: Vec<Announcement>) {
        for announced in announced {
            if self.learn(announced, None, Some(holder)) == Learned::Refused {
                tracing::debug!(%holder, id = %announced.id, "an announcement is not kept");
            }
        }
    }
}
