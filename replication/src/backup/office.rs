//! The task that keeps a node in its place: it says that it aggregates, or succeeds who does not any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::network::{Source, Standing};
use super::node::{Node, Wanted};
use super::succession::Step;
use crate::ledger::{Ledger, Record};
use crate::lifeline::{self, Follower};
use crate::store::{Checkpoint, Epoch, NodeId, Slot, StoreEvent};
use crate::transport::{Class, Frame};
use crate::wire;

/// Runs until the transport closes.
pub(super) async fn run(node: Arc<Node>, mut lifeline: Follower) {
    let mut changes = node.transport.connected();
    let mut could_lead = false;
    loop {
        changes.mark_unchanged();
        let peers = node.connected();
        let can_lead = peers.len() >= node.config.backups as usize;
        let (step, appointed) = {
            let mut state = node.state();
            // Silence while there was nobody to be heard does not count.
            if can_lead && !could_lead {
                state.succession.wait_anew(Instant::now());
            }
            (state.succession.step(Instant::now(), &peers), std::mem::take(&mut state.appointed))
        };
        could_lead = can_lead;
        lifeline.follow(node.current());
        let until = match step {
            Step::Lead => {
                lead(&node).await;
                continue;
            }
            Step::Begin => {
                let first = node.state().succession.next_epoch();
                // An error says that somebody else was faster.
                let _ = node.hear(first);
                continue;
            }
            Step::Succeed => {
                take_over(&node, &peers, false).await;
                continue;
            }
            Step::Wait(_) if appointed => {
                take_over(&node, &peers, true).await;
                continue;
            }
            Step::Wait(until) => until,
        };
        let due = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
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
        for peer in node.connected() {
            beats.spawn(beat(node.clone(), peer, epoch));
        }
    }
}

async fn beat(node: Arc<Node>, peer: NodeId, epoch: Epoch) {
    let frame = Frame::new(wire::BACKUP_HEARTBEAT, wire::encode(&epoch));
    let request = node.transport.request(peer, Class::Heartbeat, frame);
    let Ok(Ok(response)) = tokio::time::timeout(node.patience(), request).await else { return };
    match wire::decode::<Epoch>(&response.head) {
        Ok(current) => {
            // An error says that a still higher one is known here.
            let _ = node.hear(current);
        }
        Err(refusal) => tracing::debug!(%peer, %refusal, "answered a heartbeat with nonsense"),
    }
}

/// What a node answered to an enquiry.
type Answers = BTreeMap<NodeId, (Standing, Vec<Record>)>;

/// Begins an epoch with what the others know, unless one of them has heard of the aggregator just now, or too few
/// answer.
async fn take_over(node: &Arc<Node>, peers: &[NodeId], appointed: bool) {
    let before = node.current();
    let silent = before.filter(|_| !appointed).map(|epoch| epoch.node);
    if !appointed && !node.state().succession.hurries() {
        let silence_ns = Some(node.state().succession.silence_ns(Instant::now()));
        node.observer.observe(StoreEvent::Suspected { epoch: before, silence_ns, lifeline: false });
    }
    let asked = peers.iter().copied().filter(|peer| Some(*peer) != silent);
    let answers = enquire(node, asked).await;
    node.state().succession.wait_anew(Instant::now());
    let highest = answers.values().filter_map(|(standing, _)| standing.epoch).max();
    if highest > before {
        // Whoever holds it will be heard of, or not, in a window from now.
        let _ = highest.map(|epoch| node.hear(epoch));
        return;
    }
    let content = answers.values().any(|(standing, _)| standing.content);
    if answers.len() < node.config.backups as usize || (content && !appointed) {
        return;
    }
    let reported: Vec<Record> = answers.values().flat_map(|(_, records)| records.clone()).collect();
    let merged = merge(node, &reported);
    if let Some(newest) = merged.latest() {
        let has = |(_, records): &&(Standing, Vec<Record>)| records.contains(newest);
        let holders: Vec<NodeId> =
            answers.iter().filter(|(_, answer)| has(answer)).map(|(peer, _)| *peer).collect();
        if let Err(error) = node.exchange.fetch(newest.digest, newest.bytes, &holders).await {
            tracing::warn!(%error, id = %newest.id, "nobody serves the newest checkpoint: no succession yet");
            return;
        }
    }
    if assume_office(node, before, &reported) {
        let restoring = node.clone();
        node.background().spawn(async move { restore(&restoring).await });
    }
}

async fn enquire(node: &Node, peers: impl Iterator<Item = NodeId>) -> Answers {
    let mut asked: FuturesUnordered<_> = peers
        .map(async |peer| {
            let response = node
                .transport
                .request(peer, Class::Election, Frame::new(wire::BACKUP_ENQUIRE, [].as_slice()))
                .await
                .ok()?;
            let standing: Standing = wire::decode(&response.head).ok()?;
            let records: Vec<Record> = wire::decode(&response.into_body()).ok()?;
            Some((peer, (standing, records)))
        })
        .collect();
    let mut answers = Answers::new();
    let all = async {
        while let Some(answer) = asked.next().await {
            answers.extend(answer);
        }
    };
    // Who does not answer in time counts as gone.
    let _ = tokio::time::timeout(node.patience(), all).await;
    answers
}

/// What this node and others took, as one history: of two that cannot both be, the later epoch's stays.
fn merge(node: &Node, reported: &[Record]) -> Ledger {
    let mut records: Vec<Record> = node.state().ledger.records().chain(reported).cloned().collect();
    records.sort_by_key(|record| record.id);
    let mut merged = Ledger::new(node.config.retained);
    for record in records {
        let epoch = record.id.epoch;
        merged.overrule(record, epoch);
    }
    merged
}

/// Begins the next epoch, unless another one began meanwhile.
fn assume_office(node: &Node, before: Option<Epoch>, reported: &[Record]) -> bool {
    let merged = merge(node, reported);
    let next = {
        let mut state = node.state();
        if state.closed || state.succession.epoch() != before {
            return false;
        }
        let kept: BTreeSet<_> = merged.records().map(|record| record.digest).collect();
        for record in state.ledger.records().filter(|record| !kept.contains(&record.digest)) {
            node.exchange.blobs().release(record.digest);
        }
        for digest in kept {
            node.exchange.blobs().refer(digest);
        }
        state.ledger = merged;
        state.pending.clear();
        state.succession.next_epoch()
    };
    node.hear(next).is_ok()
}

/// The newest checkpoint may be on fewer nodes than promised: brings it to the backups of this epoch.
async fn restore(node: &Node) {
    let Some(Record { id, digest, metadata, .. }) = node.known(Wanted::Newest(Slot::Global)) else { return };
    let (Some(epoch), Some(parameters)) = (node.current(), node.exchange.blobs().get(digest)) else { return };
    let checkpoint = Checkpoint::already_verified(id, digest, parameters, metadata);
    let timeout = node.put_timeout(checkpoint.parameters().len() as u64);
    match tokio::time::timeout(timeout, node.spread(epoch, &checkpoint, Source::There)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::info!(%error, %id, "not restored"),
        Err(_) => tracing::warn!(%id, "too few backups to restore the newest checkpoint"),
    }
}
