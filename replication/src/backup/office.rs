//! The task that keeps a node in its place: it says that it aggregates, or succeeds who does not any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::network::{Beat, Source, Standing};
use super::node::{EPOCH, Node, Wanted};
use super::succession::Step;
use crate::event::StoreEvent;
use crate::ledger::{Ledger, Record};
use crate::lifeline::{self, Follower};
use crate::members;
use crate::store::{Checkpoint, Epoch, NodeId, Slot};
use crate::transport::{Class, Frame};
use crate::wire;

/// Why a node would begin an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It is the first of a new cluster.
    First,
    /// Nothing is heard of the aggregator.
    Silence,
    /// The aggregator asked for it.
    Appointed,
}

/// Runs until the transport closes.
pub(super) async fn run(node: Arc<Node>, mut lifeline: Follower) {
    let mut changes = node.transport.connected();
    let mut could_lead = false;
    loop {
        changes.mark_unchanged();
        let peers = node.connected();
        let (step, appointed) = {
            let mut state = node.state();
            let can_lead = peers.len() >= state.succession.needed();
            // Silence while there was nobody to be heard does not count.
            if can_lead && !could_lead {
                state.succession.wait_anew(Instant::now());
            }
            could_lead = can_lead;
            (state.succession.step(Instant::now(), &peers), std::mem::take(&mut state.appointed))
        };
        lifeline.follow(node.current());
        let turn = match step {
            Step::Lead => {
                lead(&node).await;
                continue;
            }
            Step::Begin => Some(Turn::First),
            Step::Succeed => Some(Turn::Silence),
            Step::Wait(_) if appointed => Some(Turn::Appointed),
            Step::Wait(_) => None,
        };
        if let Some(turn) = turn {
            let begun = take_over(&node, &peers, turn).await;
            if !begun && turn == Turn::First {
                // Others are not ready yet.
                tokio::time::sleep(Duration::from_millis(node.config.heartbeat_ms)).await;
            }
            continue;
        }
        let due = async {
            match step {
                Step::Wait(Some(until)) => tokio::time::sleep_until(until).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = node.changed.notified() => {}
            changed = changes.changed() => if changed.is_err() { return },
            epoch = lifeline.ended() => {
                let now = Instant::now();
                let silence_ns = Some(node.state().succession.silence_ns(now));
                node.observer.observe(StoreEvent::Suspected { epoch: Some(epoch), silence_ns, lifeline: true });
                node.state().succession.hurry(now, lifeline::turn(node.transport.as_ref()));
            }
            () = due => {}
        }
    }
}

/// Tells everyone at every interval, until this node aggregates no more.
async fn lead(node: &Arc<Node>) {
    let mut beats = JoinSet::new();
    let mut interval = tokio::time::interval(Duration::from_millis(node.config.heartbeat_ms));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = node.changed.notified() => {}
            _ = interval.tick() => {}
        }
        let epoch = node.state().succession.epoch();
        let Some(epoch) = epoch.filter(|epoch| epoch.node == node.local()) else { return };
        while beats.try_join_next().is_some() {}
        // Whoever is about to join, too.
        let connected = node.transport.connected().borrow().clone();
        for peer in connected {
            beats.spawn(beat(node.clone(), peer, epoch));
        }
    }
}

async fn beat(node: Arc<Node>, peer: NodeId, epoch: Epoch) {
    let members = node.state().members.clone();
    let sent = Beat { epoch, members: members.place() };
    let frame = Frame::new(wire::BACKUP_HEARTBEAT, wire::encode(&sent));
    let request = node.transport.request(peer, Class::Heartbeat, frame);
    let Ok(Ok(response)) = tokio::time::timeout(node.patience(), request).await else { return };
    match wire::decode::<Beat>(&response.head) {
        Ok(heard) => {
            // An error says that a still higher one is known here.
            let _ = node.hear(heard.epoch);
            if heard.epoch == epoch && heard.members < members.place() {
                node.tell_members(peer, epoch, members).await;
            }
        }
        Err(refusal) => tracing::debug!(%peer, %refusal, "answered a heartbeat with nonsense"),
    }
}

/// What a node answered to an enquiry.
type Answers = BTreeMap<NodeId, (Standing, Vec<Record>)>;

/// Begins an epoch with what the others know, unless one of them has heard of the aggregator just now, or too few answer.
/// Returns whether it did.
async fn take_over(node: &Arc<Node>, peers: &[NodeId], turn: Turn) -> bool {
    let (before, needed, silence_ns) = {
        let state = node.state();
        // In a hurry the lifeline's end was the suspicion.
        let told = state.succession.hurries();
        let silence_ns = (!told).then(|| state.succession.silence_ns(Instant::now()));
        (state.succession.epoch(), state.succession.needed(), silence_ns)
    };
    if turn == Turn::Silence && silence_ns.is_some() {
        node.observer.observe(StoreEvent::Suspected { epoch: before, silence_ns, lifeline: false });
    }
    let silent = before.filter(|_| turn == Turn::Silence).map(|epoch| epoch.node);
    let answers = enquire(node, peers, silent).await;
    node.state().succession.wait_anew(Instant::now());
    let highest = answers.values().filter_map(|(standing, _)| standing.epoch).max();
    if highest > before {
        // Whoever holds it will be heard of, or not, in a window from now.
        let _ = highest.map(|epoch| node.hear(epoch));
        return false;
    }
    // Those that it names may have to be asked, too.
    let newest =
        answers.values().map(|(standing, _)| &standing.members).max_by_key(|members| members.place());
    if newest.is_some_and(|newest| node.install(newest)) {
        return false;
    }
    let content = answers.values().any(|(standing, _)| standing.content);
    if answers.len() < needed || (content && turn != Turn::Appointed) {
        return false;
    }
    let reported: Vec<Record> = answers.values().flat_map(|(_, records)| records.clone()).collect();
    let merged = merge(&node.state().ledger, node.config.retained, &reported);
    if let Some(newest) = merged.latest() {
        let has = |(_, records): &&(Standing, Vec<Record>)| records.contains(newest);
        let holders: Vec<NodeId> =
            answers.iter().filter(|(_, answer)| has(answer)).map(|(peer, _)| *peer).collect();
        if let Err(error) = node.exchange.fetch(newest.digest, newest.bytes, &holders).await {
            tracing::warn!(%error, id = %newest.id, "nobody serves the newest checkpoint: no succession yet");
            return false;
        }
    }
    let begun = assume_office(node, before, &reported).await;
    if begun {
        let restoring = node.clone();
        node.background().spawn(async move { restore(&restoring).await });
    }
    begun
}

/// Asks `peers` what they hold. The one that is silent is not waited for longer than a heartbeat: it may have come back with
/// what it had on disk, and holds it again.
async fn enquire(node: &Node, peers: &[NodeId], silent: Option<NodeId>) -> Answers {
    let durable = node.archive.is_durable();
    let mut asked: FuturesUnordered<_> = peers
        .iter()
        .copied()
        .filter(|peer| durable || Some(*peer) != silent)
        .map(async |peer| {
            let response = node
                .transport
                .request(peer, Class::Election, Frame::new(wire::BACKUP_ENQUIRE, [].as_slice()))
                .await;
            let answer = response.ok().and_then(|response| {
                let standing: Standing = wire::decode(&response.head).ok()?;
                let records: Vec<Record> = wire::decode(&response.into_body()).ok()?;
                Some((standing, records))
            });
            (peer, answer)
        })
        .collect();
    let mut answers = Answers::new();
    let mut left: BTreeSet<NodeId> = peers.iter().copied().filter(|peer| Some(*peer) != silent).collect();
    // Who does not answer in time counts as gone.
    let mut until = Instant::now() + node.patience();
    while let Ok(Some((peer, answer))) = tokio::time::timeout_at(until, asked.next()).await {
        answers.extend(answer.map(|answer| (peer, answer)));
        if left.remove(&peer) && left.is_empty() {
            until = until.min(Instant::now() + Duration::from_millis(node.config.heartbeat_ms));
        }
    }
    answers
}

/// What a node and others took, as one history: of two that cannot both be, the later epoch's stays.
fn merge(own: &Ledger, retained: usize, reported: &[Record]) -> Ledger {
    let mut records: Vec<Record> = own.records().chain(reported).cloned().collect();
    records.sort_by_key(|record| record.id);
    let mut merged = Ledger::new(retained);
    for record in records {
        let epoch = record.id.epoch;
        merged.overrule(record, epoch);
    }
    merged
}

/// Begins the next epoch, unless another one began meanwhile.
async fn assume_office(node: &Node, before: Option<Epoch>, reported: &[Record]) -> bool {
    let next = node.state().succession.next_epoch();
    let members = node.state().members.renewed(next);
    node.archive.note(EPOCH, &next);
    node.archive.note(members::FACT, &members);
    // Another life must not begin it again.
    if let Err(error) = node.archive.flush_facts().await {
        tracing::warn!(%error, "no succession");
        return false;
    }
    let state = &mut *node.state();
    if state.closed || state.succession.epoch() != before || state.members.nodes() != members.nodes() {
        return false;
    }
    state.members = members;
    let merged = merge(&state.ledger, node.config.retained, reported);
    let slots: BTreeSet<Slot> = state.ledger.slots().chain(merged.slots()).collect();
    node.archive.save(&merged, slots);
    let kept: BTreeSet<_> = merged.records().map(|record| record.digest).collect();
    for record in state.ledger.records().filter(|record| !kept.contains(&record.digest)) {
        node.exchange.blobs().release(record.digest);
    }
    for digest in kept {
        node.exchange.blobs().refer(digest);
    }
    state.ledger = merged;
    state.pending.clear();
    state.succession.begin(next, Instant::now());
    node.publish(state, next);
    true
}

/// The newest checkpoint may be on fewer nodes than promised: brings it to the backups of this epoch.
async fn restore(node: &Node) {
    let Some(Record { id, digest, metadata, .. }) = node.known(Wanted::Newest(Slot::Global)) else { return };
    let (Some(epoch), Some(parameters)) = (node.current(), node.exchange.blobs().get(digest)) else { return };
    let checkpoint = Checkpoint::already_verified(id, digest, parameters, metadata);
    let timeout = node.put_timeout(checkpoint.parameters().len() as u64);
    match tokio::time::timeout(timeout, node.spread(epoch, &checkpoint, Source::There, false)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::info!(%error, %id, "not restored"),
        Err(_) => tracing::warn!(%id, "too few backups to restore the newest checkpoint"),
    }
}
