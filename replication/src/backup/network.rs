//! The backend's messages, and how a node answers them.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::node::{Node, Wanted};
use crate::error::StoreError;
use crate::event::StoreEvent;
use crate::forward;
use crate::ledger::Record;
use crate::members::{Members, Place};
use crate::store::{Carrier, Checkpoint, Epoch, MAX_PARAMETER_BYTES, NodeId};
use crate::transport::{Frame, Handler, Refusal};
use crate::wire;

/// Epochs beyond this are no epochs: nobody could count past them.
const MAX_COUNTER: u64 = u64::MAX / 2;

/// Where the bytes of a checkpoint are for a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Source {
    /// In the message.
    Here,
    /// On their way by somebody else: worth waiting for.
    Carried,
    /// On the aggregator, if the backup has not got them.
    There,
}

/// The head of a [`wire::BACKUP_STORE`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) epoch: Epoch,
    pub(super) record: Record,
    pub(super) source: Source,
    /// It is acknowledged, and may be older than what the backup has.
    pub(super) fills: bool,
}

/// The head of a [`wire::BACKUP_HEARTBEAT`]: who aggregates; and its answer: which epoch and which members the receiver knows.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Beat {
    pub(super) epoch: Epoch,
    pub(super) members: Place,
}

/// The head of a [`wire::BACKUP_MEMBERS`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Roster {
    pub(super) epoch: Epoch,
    pub(super) members: Members,
}

/// The answer to a [`wire::BACKUP_ENQUIRE`]; what the node took is in the body.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Standing {
    pub(super) epoch: Option<Epoch>,
    pub(super) members: Members,
    /// It has heard of the aggregator of that epoch just now.
    pub(super) content: bool,
}

/// Answers the replication plane's requests on one node.
pub(super) struct Inbox(pub(super) Arc<Node>);

fn answer<T: Serialize>(answer: &T) -> Frame {
    Frame::new(0, wire::encode(answer))
}

impl Inbox {
    /// A node speaks for its own epochs only.
    fn authentic(&self, epoch: Epoch, from: NodeId) -> Result<(), Refusal> {
        if epoch.node != from {
            Err(self.refuse(from, format!("node {from} may not speak as node {}", epoch.node)))
        } else if epoch.counter > MAX_COUNTER {
            Err(self.refuse(from, format!("{epoch} is no epoch of this cluster")))
        } else {
            Ok(())
        }
    }

    fn refuse(&self, from: NodeId, reason: String) -> Refusal {
        self.0.observer.observe(StoreEvent::Refused { from, reason: reason.clone() });
        Refusal(reason)
    }

    fn heartbeat(&self, from: NodeId, request: &Frame) -> Result<Frame, Refusal> {
        let Beat { epoch, .. } = wire::decode(&request.head)?;
        self.authentic(epoch, from)?;
        let epoch = self.0.hear_from_aggregator(epoch).err().unwrap_or(epoch);
        Ok(answer(&Beat { epoch, members: self.0.state().members.place() }))
    }

    async fn members(&self, from: NodeId, request: &Frame) -> Result<Frame, Refusal> {
        let Roster { epoch, members } = wire::decode(&request.head)?;
        self.authentic(epoch, from)?;
        if let Err(current) = self.0.hear_from_aggregator(epoch) {
            let fenced = StoreError::Fenced { epoch, current: Some(current) };
            return Ok(answer(&Err::<Place, _>(fenced)));
        }
        Ok(answer(&self.0.on_roster(&members).await))
    }

    async fn store(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let order: Order = wire::decode(&request.head)?;
        self.authentic(order.epoch, from)?;
        let Order { epoch, record, .. } = &order;
        if record.bytes > MAX_PARAMETER_BYTES || record.id.epoch > *epoch {
            return Err(self.refuse(from, format!("{} cannot be stored in epoch {epoch}", record.id)));
        }
        if let Err(current) = self.0.hear_from_aggregator(*epoch) {
            let fenced = StoreError::Fenced { epoch: *epoch, current: Some(current) };
            return Ok(answer(&Err::<(), _>(fenced)));
        }
        Ok(answer(&self.obtain(from, order, request).await))
    }

    async fn obtain(&self, from: NodeId, order: Order, request: Frame) -> Result<(), StoreError> {
        let Order { epoch, record, source, fills } = order;
        let blobs = self.0.exchange.blobs();
        self.0.archive.room().await;
        if source == Source::Here {
            let staged = blobs.stage_verified(record.digest, request.into_body(), from);
            staged.inspect_err(|_| {
                self.0.observer.observe(StoreEvent::CorruptBlob { from, digest: record.digest });
            })?;
        } else if source == Source::Carried {
            let _ = tokio::time::timeout(self.0.carried_patience(), blobs.arrival(record.digest)).await;
        }
        let parameters = self.0.exchange.fetch(record.digest, record.bytes, &[from]).await?;
        let Record { id, digest, metadata, .. } = record;
        let checkpoint = Checkpoint::already_verified(id, digest, parameters, metadata);
        checkpoint.within_limits()?;
        self.0.take(Record::from(&checkpoint), epoch, fills).await
    }

    fn enquire(&self) -> Frame {
        let state = self.0.state();
        let (epoch, content) = (state.succession.epoch(), state.succession.content(Instant::now()));
        let records: Vec<&Record> = state.ledger.records().collect();
        let members = state.members.clone();
        answer(&Standing { epoch, members, content }).with_segment(wire::encode(&records))
    }

    fn hand_over(&self, from: NodeId, request: &Frame) -> Result<Frame, Refusal> {
        let epoch: Epoch = wire::decode(&request.head)?;
        self.authentic(epoch, from)?;
        if self.0.hear_from_aggregator(epoch).is_err() {
            return Err(Refusal(format!("epoch {epoch} has ended")));
        }
        self.0.state().appointed = true;
        self.0.changed.notify_one();
        Ok(Frame::default())
    }

    fn read(&self, request: &Frame) -> Result<Frame, Refusal> {
        let wanted: Wanted = wire::decode(&request.head)?;
        if !self.0.state().succession.leads() {
            return Err(Refusal("this node does not aggregate".into()));
        }
        Ok(answer(&self.0.known(wanted)))
    }

    async fn forwarded(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let write = async |checkpoint: Checkpoint| self.0.put(checkpoint, from, Carrier::Store).await;
        forward::answer(from, request, self.0.exchange.blobs(), self.0.observer.as_ref(), write).await
    }
}

#[async_trait]
impl Handler for Inbox {
    async fn handle(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        if self.0.state().closed {
            return Err(Refusal("the store is closed".into()));
        }
        match request.tag {
            wire::BACKUP_HEARTBEAT => self.heartbeat(from, &request),
            wire::BACKUP_STORE => self.store(from, request).await,
            wire::BACKUP_ENQUIRE => Ok(self.enquire()),
            wire::BACKUP_HAND_OVER => self.hand_over(from, &request),
            wire::BACKUP_READ => self.read(&request),
            wire::BACKUP_FORWARD => self.forwarded(from, request).await,
            wire::BACKUP_MEMBERS => self.members(from, &request).await,
            wire::MEMBERSHIP => Ok(answer(&self.0.on_membership(from, wire::decode(&request.head)?).await)),
            wire::BLOB_PULL => self.0.exchange.on_pull(&request),
            unknown => Err(Refusal(format!("unknown message {unknown}"))),
        }
    }
}
