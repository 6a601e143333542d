//! openraft's network over a [`Transport`], in both directions: [`Peer`] sends, [`Inbox`] answers.
//!
//! Checkpoint bytes travel as body segments beside the encoded message, so that they are never copied into it. Votes and
//! heartbeats use the control connection; whatever carries bytes uses the bulk connection.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EntryPayload, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::Electorate;
use super::machine::{Image, RaftCore, RaftSnapshot};
use super::notice::Notice;
use super::proposer::Proposer;
use super::types::{SnapshotMeta, TypeConfig, Vote};
use crate::blob::{Exchange, transfer_timeout};
use crate::event::{Observer, StoreEvent};
use crate::forward;
use crate::ledger::{Ledger, Record};
use crate::store::{Carrier, Checkpoint, Digest, MAX_PARAMETER_BYTES, NodeId};
use crate::transport::{Class, Frame, Handler, Refusal, Transport, TransportError};
use crate::wire;

pub(super) type Append = AppendEntriesRequest<TypeConfig>;

/// Terms beyond this are no terms: nobody could count past them.
const MAX_TERM: u64 = u64::MAX / 2;

/// Makes [`Peer`]s. Dials nothing: the transport keeps its connections warm by itself, and openraft awaits this inside
/// its core.
#[derive(Debug, Clone)]
pub(crate) struct Peers(pub(crate) Arc<dyn Transport>);

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &openraft::EmptyNode) -> Peer {
        Peer { transport: self.0.clone(), target: NodeId(target) }
    }
}

/// Sends Raft's messages to one node.
#[derive(Debug)]
pub(crate) struct Peer {
    transport: Arc<dyn Transport>,
    target: NodeId,
}

fn rpc_error(error: &TransportError) -> RPCError<TypeConfig> {
    match error {
        TransportError::Unreachable { .. } | TransportError::Closed => {
            RPCError::Unreachable(Unreachable::new(error))
        }
        _ => RPCError::Network(NetworkError::new(error)),
    }
}

impl Peer {
    async fn call<T: DeserializeOwned>(
        &self,
        class: Class,
        frame: Frame,
        timeout: std::time::Duration,
    ) -> Result<T, TransportError> {
        let peer = self.target;
        let interrupted = |reason: String| TransportError::Interrupted { peer, reason };
        let response = tokio::time::timeout(timeout, self.transport.request(peer, class, frame))
            .await
            .map_err(|_| interrupted(format!("no answer within {timeout:?}")))??;
        wire::decode(&response.head).map_err(|refusal| interrupted(refusal.0))
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Image;

    async fn append_entries(
        &mut self,
        rpc: Append,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let heartbeat = rpc.entries.is_empty();
        let frame = encode_append(&rpc);
        let bytes = frame.body_len() as u64;
        // A message that carries entries may take as long as its bytes need; openraft gives up on it by itself when the
        // leader changes.
        let (class, timeout) = match (heartbeat, bytes) {
            (true, _) => (Class::Heartbeat, option.hard_ttl()),
            (false, 0) => (Class::Digest, transfer_timeout(0)),
            (false, _) => (Class::Log, transfer_timeout(bytes)),
        };
        self.call(class, frame, timeout).await.map_err(|error| rpc_error(&error))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let frame = Frame::new(wire::RAFT_VOTE, wire::encode(&rpc));
        self.call(Class::Election, frame, option.hard_ttl()).await.map_err(|error| rpc_error(&error))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let frame = Frame::new(wire::RAFT_PRE_VOTE, wire::encode(&rpc));
        self.call(Class::Election, frame, option.hard_ttl()).await.map_err(|error| rpc_error(&error))
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let frame = Frame::new(wire::RAFT_TRANSFER, wire::encode(&rpc));
        self.call(Class::Election, frame, option.hard_ttl()).await.map_err(|error| rpc_error(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let frame = encode_snapshot(&vote, &snapshot.meta, &snapshot.snapshot);
        let timeout = transfer_timeout(frame.body_len() as u64);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            response = self.call(Class::Log, frame, timeout) => response.map_err(|error| match rpc_error(&error) {
                RPCError::Unreachable(unreachable) => StreamingError::Unreachable(unreachable),
                _ => StreamingError::Network(NetworkError::new(&error)),
            }),
        }
    }
}

pub(super) fn encode_append(rpc: &Append) -> Frame {
    let mut frame = Frame::new(wire::RAFT_APPEND, wire::encode(rpc));
    for entry in &rpc.entries {
        if let EntryPayload::Normal(command) = &entry.payload {
            frame.body.extend(command.parameters.clone());
        }
    }
    frame
}

/// Takes `bytes` from the front of `body`.
fn take(body: &mut Bytes, bytes: u64) -> Result<Bytes, Refusal> {
    let length = usize::try_from(bytes).ok().filter(|length| *length <= body.len());
    length.map(|length| body.split_to(length)).ok_or_else(|| Refusal(format!("{bytes} bytes are cut short")))
}

/// Takes `bytes` from the front of `body` and checks them against `digest`.
fn take_verified(body: &mut Bytes, bytes: u64, digest: Digest) -> Result<Bytes, Refusal> {
    let taken = take(body, bytes)?;
    if Digest::of(&taken) == digest {
        Ok(taken)
    } else {
        Err(Refusal(format!("bytes do not match digest {digest}")))
    }
}

fn nothing_left(body: &Bytes) -> Result<(), Refusal> {
    if body.is_empty() { Ok(()) } else { Err(Refusal(format!("{} bytes that no entry claims", body.len()))) }
}

pub(super) fn decode_append(frame: Frame) -> Result<Append, Refusal> {
    let mut rpc: Append = wire::decode(&frame.head)?;
    let mut next = rpc.prev_log_id.map_or(0, |prev| prev.index.saturating_add(1));
    let mut body = frame.into_body();
    for entry in &mut rpc.entries {
        if entry.log_id.index != next {
            return Err(Refusal(format!("entry {} where {next} should be", entry.log_id.index)));
        }
        next = next.saturating_add(1);
        if let EntryPayload::Normal(command) = &mut entry.payload {
            let Record { bytes, digest, .. } = command.record;
            if bytes > MAX_PARAMETER_BYTES {
                return Err(Refusal(format!(
                    "a checkpoint of {bytes} bytes is over the limit of {MAX_PARAMETER_BYTES}"
                )));
            }
            if command.inline {
                command.parameters = Some(take_verified(&mut body, bytes, digest)?);
            }
        }
    }
    nothing_left(&body)?;
    Ok(rpc)
}

/// What a snapshot's head says; the list of checkpoints may be too long for a head, so it opens the body.
type SnapshotHead = (Vote, SnapshotMeta, u64);
type SnapshotIndex = (Ledger, Vec<(Digest, u64)>);

pub(super) fn encode_snapshot(vote: &Vote, meta: &SnapshotMeta, image: &Image) -> Frame {
    let lengths: Vec<(Digest, u64)> =
        image.blobs.iter().map(|(digest, bytes)| (*digest, bytes.len() as u64)).collect();
    let index = wire::encode(&(&image.ledger, lengths));
    let head = wire::encode(&(vote, meta, index.len() as u64));
    let mut frame = Frame::new(wire::RAFT_SNAPSHOT, head).with_segment(index);
    frame.body.extend(image.blobs.iter().map(|(_, bytes)| bytes.clone()));
    frame
}

pub(super) fn decode_snapshot(frame: Frame) -> Result<(Vote, RaftSnapshot), Refusal> {
    let (vote, meta, index_bytes): SnapshotHead = wire::decode(&frame.head)?;
    let mut body = frame.into_body();
    let (ledger, lengths): SnapshotIndex = wire::decode(&take(&mut body, index_bytes)?)?;
    let mut blobs = Vec::new();
    for (digest, bytes) in lengths {
        blobs.push((digest, take_verified(&mut body, bytes, digest)?));
    }
    nothing_left(&body)?;
    Ok((vote, RaftSnapshot { meta, snapshot: Image { ledger, blobs } }))
}

/// Answers the replication plane's requests on one node.
pub(crate) struct Inbox {
    pub(crate) raft: RaftCore,
    pub(crate) exchange: Exchange,
    pub(crate) proposer: Arc<Proposer>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) contact: Contact,
}

/// When the leader, or a candidate this node voted for, was last heard of.
#[derive(Debug, Clone)]
pub(crate) struct Contact(pub(crate) watch::Sender<Instant>);

impl Contact {
    fn heard(&self, at: Instant) {
        self.0.send_if_modified(|last| {
            let later = at > *last;
            *last = at.max(*last);
            later
        });
    }
}

impl Inbox {
    /// A node speaks for itself only: the vote in a message names the node its certificate names.
    fn authentic(&self, vote: &Vote, from: NodeId) -> Result<(), Refusal> {
        let claimed = NodeId(vote.leader_id.voted_for);
        let reason = if claimed != from {
            format!("node {from} may not speak as node {claimed}")
        } else if vote.leader_id.term > MAX_TERM {
            format!("term {} is out of range", vote.leader_id.term)
        } else {
            return Ok(());
        };
        Err(self.refuse(from, reason))
    }

    fn refuse(&self, from: NodeId, reason: String) -> Refusal {
        self.observer.observe(StoreEvent::Refused { from, reason: reason.clone() });
        Refusal(reason)
    }

    async fn append(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let heard = Instant::now();
        let rpc = decode_append(request).map_err(|refusal| self.refuse(from, refusal.0))?;
        self.authentic(&rpc.vote, from)?;
        let (raft, contact) = (self.raft.clone(), self.contact.clone());
        to_the_end(async move {
            let answer = raft.append_entries(rpc).await;
            if let Ok(AppendEntriesResponse::Success | AppendEntriesResponse::Conflict) = answer {
                contact.heard(heard);
            }
            respond(answer)
        })
        .await
    }

    async fn vote(&self, from: NodeId, request: &Frame, pre: bool) -> Result<Frame, Refusal> {
        let heard = Instant::now();
        let rpc: VoteRequest<TypeConfig> = wire::decode(&request.head)?;
        self.authentic(&rpc.vote, from)?;
        let (raft, contact) = (self.raft.clone(), self.contact.clone());
        to_the_end(async move {
            if pre {
                return respond(raft.pre_vote(rpc).await);
            }
            let answer = raft.vote(rpc).await;
            if matches!(&answer, Ok(answer) if answer.vote_granted) {
                contact.heard(heard);
            }
            respond(answer)
        })
        .await
    }

    async fn snapshot(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let (vote, snapshot) = decode_snapshot(request).map_err(|refusal| self.refuse(from, refusal.0))?;
        self.authentic(&vote, from)?;
        let (raft, contact) = (self.raft.clone(), self.contact.clone());
        to_the_end(async move {
            let answer = raft.install_full_snapshot(vote, snapshot).await;
            if matches!(&answer, Ok(answer) if answer.vote == vote) {
                contact.heard(Instant::now());
            }
            respond(answer)
        })
        .await
    }

    async fn transfer(&self, from: NodeId, request: &Frame) -> Result<Frame, Refusal> {
        let rpc: TransferLeaderRequest<TypeConfig> = wire::decode(&request.head)?;
        self.authentic(rpc.from_leader(), from)?;
        respond(self.raft.handle_transfer_leader(rpc).await)
    }

    fn notice(&self, from: NodeId, request: &Frame) -> Result<Frame, Refusal> {
        let notice: Notice = wire::decode(&request.head)?;
        let reason = if self.proposer.config.electorate == Electorate::Everyone {
            "notices are for nodes outside of the group, from its leader".into()
        } else if notice.epoch.node != from {
            format!("node {from} may not speak as node {}", notice.epoch.node)
        } else if notice.epoch.counter > MAX_TERM {
            format!("term {} is out of range", notice.epoch.counter)
        } else {
            self.proposer.standing.hear(notice);
            return Ok(Frame::default());
        };
        Err(self.refuse(from, reason))
    }

    async fn found(&self, from: NodeId, request: &Frame) -> Result<Frame, Refusal> {
        let voters: BTreeSet<NodeId> = wire::decode(&request.head)?;
        self.proposer.found_for(from, &voters).await.map(|()| Frame::default())
    }

    async fn forwarded_put(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let write = async |checkpoint: Checkpoint| self.proposer.put(checkpoint, from, Carrier::Store).await;
        forward::answer(from, request, self.exchange.blobs(), self.observer.as_ref(), write).await
    }
}

/// Runs `answering` to its end even if the peer gives up on the answer: what it says was heard all the same.
async fn to_the_end(
    answering: impl Future<Output = Result<Frame, Refusal>> + Send + 'static,
) -> Result<Frame, Refusal> {
    tokio::spawn(answering).await.unwrap_or_else(|error| Err(Refusal(error.to_string())))
}

fn respond<T: Serialize, E: std::fmt::Display>(answer: Result<T, E>) -> Result<Frame, Refusal> {
    answer.map(|answer| Frame::new(0, wire::encode(&answer))).map_err(|error| Refusal(error.to_string()))
}

#[async_trait]
impl Handler for Inbox {
    async fn handle(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        match request.tag {
            wire::RAFT_APPEND => self.append(from, request).await,
            wire::RAFT_VOTE => self.vote(from, &request, false).await,
            wire::RAFT_PRE_VOTE => self.vote(from, &request, true).await,
            wire::RAFT_SNAPSHOT => self.snapshot(from, request).await,
            wire::RAFT_TRANSFER => self.transfer(from, &request).await,
            wire::FORWARD_PUT => self.forwarded_put(from, request).await,
            wire::REPORT => Ok(Frame::new(wire::REPORT, wire::encode(&self.proposer.report().await))),
            wire::FOUND => self.found(from, &request).await,
            wire::NOTICE => self.notice(from, &request),
            wire::MEMBERSHIP => self.proposer.on_membership(from, &request).await,
            wire::READ => self.proposer.on_read(&request).await,
            wire::BLOB_PUSH => self.exchange.on_push(from, request).await,
            wire::BLOB_PULL => self.exchange.on_pull(&request),
            wire::BLOB_AWAIT => self.exchange.on_await(&request).await,
            unknown => Err(Refusal(format!("unknown message {unknown}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::alias::EntryOf;
    use openraft::entry::RaftEntry as _;
    use openraft::vote::RaftLeaderId as _;
    use proptest::prelude::*;

    use super::super::types::{Command, LogId};
    use super::*;
    use crate::store::{CheckpointId, Epoch, Metadata, Phase, Slot};

    fn entry(index: u64, parameters: Vec<u8>, inline: bool) -> EntryOf<TypeConfig> {
        let epoch = Epoch { counter: 2, node: NodeId(1) };
        let id = CheckpointId { epoch, round: index, phase: Phase::AggregateFit, slot: Slot::Global };
        let parameters = Bytes::from(parameters);
        let record = Record::from(&Checkpoint::new(id, parameters.clone(), Metadata::new()));
        let command = Command { record, inline, parameters: inline.then_some(parameters) };
        let leader = Vote::new(2, 1).leader_id;
        EntryOf::<TypeConfig>::new(LogId::new(leader.to_committed(), index), EntryPayload::Normal(command))
    }

    proptest! {
        #[test]
        fn entries_come_with_their_bytes_and_no_others(
            bytes in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..50), any::<bool>()), 0..5),
        ) {
            let entries = (0..).zip(&bytes).map(|(index, (bytes, inline))| entry(index, bytes.clone(), *inline));
            let entries = entries.collect();
            let rpc = Append { vote: Vote::new(2, 1), prev_log_id: None, entries, leader_commit: None };
            let frame = encode_append(&rpc);
            prop_assert_eq!(&decode_append(frame.clone()).unwrap().entries, &rpc.entries);
            prop_assert!(decode_append(frame.clone().with_segment("x".into())).is_err());
            let body = frame.clone().into_body();
            if let Some((_, cut)) = body.split_last() {
                let cut = Frame { body: vec![Bytes::copy_from_slice(cut)], ..frame };
                prop_assert!(decode_append(cut).is_err());
            }
        }

        #[test]
        fn any_bytes_are_messages_or_refused(
            head in prop::collection::vec(any::<u8>(), 0..100), body in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let frame = Frame::new(0, head).with_segment(body.into());
            let _ = decode_append(frame.clone());
            let _ = decode_snapshot(frame);
        }
    }
}
