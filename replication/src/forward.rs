//! A write by a node that does not aggregate, sent to the one that does.
//!
//! Where bytes are named by their digest they go along only if the aggregator lacks them: what workers write is often what
//! they were sent.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::blob::Blobs;
use crate::error::StoreError;
use crate::event::{Observer, StoreEvent};
use crate::ledger::Record;
use crate::store::{Checkpoint, NodeId, Receipt};
use crate::transport::{Class, Frame, Refusal, Transport, TransportError};
use crate::wire;

/// Pause before a peer is tried again whose connections do not both stand yet.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    record: Record,
    /// Whether the bytes are the body.
    carried: bool,
}

/// What came of it; `None`: send the bytes.
type Answer = Option<Result<Receipt, StoreError>>;

/// Has the aggregator of the checkpoint's epoch write it. Waits until that is connected, without a limit of its own.
pub(crate) async fn put(
    transport: &dyn Transport,
    tag: u8,
    checkpoint: &Checkpoint,
    mut carried: bool,
) -> Result<Receipt, StoreError> {
    let to = checkpoint.id().epoch.node;
    let unavailable = |reason: String| StoreError::Unavailable { reason };
    loop {
        let head = Head { record: Record::from(checkpoint), carried };
        let mut frame = Frame::new(tag, wire::encode(&head));
        if carried {
            frame = frame.with_segment(checkpoint.parameters().clone());
        }
        let class = if carried { Class::Blob } else { Class::Digest };
        let response = request_once_connected(transport, to, class, frame).await;
        let response = response.map_err(|error| unavailable(error.to_string()))?;
        match wire::decode::<Answer>(&response.head).map_err(|refusal| unavailable(refusal.0))? {
            Some(outcome) => return outcome,
            None if carried => {
                return Err(unavailable(format!("node {to} does not take the bytes it was sent")));
            }
            None => carried = true,
        }
    }
}

/// A node may hear of an aggregator before both of its connections to it stand.
async fn request_once_connected(
    transport: &dyn Transport,
    to: NodeId,
    class: Class,
    frame: Frame,
) -> Result<Frame, TransportError> {
    let mut connected = transport.connected();
    loop {
        let there = connected.wait_for(|peers| peers.contains(&to)).await.is_ok();
        match transport.request(to, class, frame.clone()).await {
            Err(TransportError::Unreachable { .. }) if there => tokio::time::sleep(RETRY_PAUSE).await,
            answer => return answer,
        }
    }
}

/// Answers what [`put`] of `from` sent: `write` writes it.
///
/// # Errors
/// A malformed request.
pub(crate) async fn answer(
    from: NodeId,
    request: Frame,
    blobs: &Blobs,
    observer: &dyn Observer,
    write: impl AsyncFnOnce(Checkpoint) -> Result<Receipt, StoreError>,
) -> Result<Frame, Refusal> {
    let Head { record, carried } = wire::decode(&request.head)?;
    let Record { id, digest, metadata, .. } = record;
    let checkpoint = if carried {
        Some(Checkpoint::verified(id, digest, request.into_body(), metadata, from))
    } else {
        let here = blobs.get(digest);
        here.map(|bytes| Ok(Checkpoint::already_verified(id, digest, bytes, metadata)))
    };
    let answer: Answer = match checkpoint {
        Some(Ok(checkpoint)) => Some(write(checkpoint).await),
        Some(Err(error)) => {
            observer.observe(StoreEvent::CorruptBlob { from, digest });
            Some(Err(error))
        }
        None => None,
    };
    Ok(Frame::new(0, wire::encode(&answer)))
}
