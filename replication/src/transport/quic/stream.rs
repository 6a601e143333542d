//! One request and its response on one bidirectional stream.
//!
//! The asking side writes a frame, finishes, and reads a frame. Dropping it resets its half and stops the other, which
//! drops the handler's future over there. The answering side reads within limits, and answers anything that is no frame
//! with a refusal: the stream ends, the connection lives on.

use std::sync::Arc;

use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::Semaphore;

use super::Shared;
use crate::store::NodeId;
use crate::transport::frame::{self, Decoder, FrameError, Header, Status};
use crate::transport::{Class, Frame, Lane, TransportError};

/// Requests answered at once on each lane, over all peers; more wait before their body is read.
pub const MAX_CONTROL_HANDLERS: usize = 1024;
/// As [`MAX_CONTROL_HANDLERS`], on bulk connections: each may hold a body in memory.
pub const MAX_BULK_HANDLERS: usize = 64;

/// Code of a stream that ends because whoever asked gave up.
const CANCELLED: VarInt = VarInt::from_u32(1);
/// Code of a stream that ends because its bytes were refused.
const REFUSED: VarInt = VarInt::from_u32(2);

/// Most bytes taken from a stream at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Slots for running handlers, apart by lane, so that bulk never holds up a vote.
#[derive(Debug)]
pub(super) struct HandlerSlots {
    control: Semaphore,
    bulk: Semaphore,
}

impl HandlerSlots {
    pub(super) fn new() -> Self {
        Self { control: Semaphore::new(MAX_CONTROL_HANDLERS), bulk: Semaphore::new(MAX_BULK_HANDLERS) }
    }

    fn of(&self, lane: Lane) -> &Semaphore {
        match lane {
            Lane::Control => &self.control,
            Lane::Bulk => &self.bulk,
        }
    }
}

/// Both halves of a stream; gives the stream up when dropped before its end.
struct Halves {
    send: SendStream,
    recv: RecvStream,
    /// Both sides said all they had to say: nothing to give up, and what is still on its way must arrive.
    done: bool,
}

impl Drop for Halves {
    fn drop(&mut self) {
        if !self.done {
            // Both fail only on a half that has already ended.
            let _ = self.send.reset(CANCELLED);
            let _ = self.recv.stop(CANCELLED);
        }
    }
}

enum ReceiveError {
    Frame(FrameError),
    Stream(ReadError),
}

async fn receive(recv: &mut RecvStream, max_body_bytes: u64) -> Result<(Header, Frame), ReceiveError> {
    let mut decoder = Decoder::new(max_body_bytes);
    while let Some(chunk) = recv.read_chunk(CHUNK_BYTES, true).await.map_err(ReceiveError::Stream)? {
        decoder.push(&chunk.bytes).map_err(ReceiveError::Frame)?;
    }
    decoder.finish().map_err(ReceiveError::Frame)
}

/// Sends `request` on the live connection to `peer` and waits for the answer.
pub(super) async fn request(
    shared: &Shared,
    peer: NodeId,
    class: Class,
    request: Frame,
) -> Result<Frame, TransportError> {
    let max_body_bytes = shared.config.max_body_bytes;
    let mut buffers = frame::encode(Status::Request, class, &request, max_body_bytes)
        .map_err(FrameError::into_transport)?;
    shared.config.corruption.pass(&mut buffers);
    let connection = shared
        .pool
        .live(peer, class.lane())
        .ok_or_else(|| shared.gone(TransportError::Unreachable { peer }))?;
    let interrupted = |reason: String| shared.gone(TransportError::Interrupted { peer, reason });
    let (send, recv) =
        connection.open_bi().await.map_err(|_| shared.gone(TransportError::Unreachable { peer }))?;
    let mut halves = Halves { send, recv, done: false };
    // Fails only if the stream has ended, which writing will tell.
    let _ = halves.send.set_priority(priority(class));
    match halves.send.write_all_chunks(&mut buffers).await {
        Ok(()) => {
            let _ = halves.send.finish();
            shared.frames.sent(class, frame::encoded_len(&request));
        }
        // The peer wants no more of it, and its answer says why.
        Err(WriteError::Stopped(_)) => {}
        // Its own text does not say why.
        Err(WriteError::ConnectionLost(error)) => return Err(interrupted(error.to_string())),
        Err(error) => return Err(interrupted(error.to_string())),
    }
    let (header, response) =
        receive(&mut halves.recv, max_body_bytes).await.map_err(|error| match error {
            ReceiveError::Frame(error) => interrupted(format!("its answer is unusable: {error}")),
            ReceiveError::Stream(error) => interrupted(describe(&error)),
        })?;
    halves.done = true;
    shared.frames.received(class, frame::encoded_len(&response));
    match header.status {
        Status::Response => Ok(response),
        Status::Refusal => Err(TransportError::Refused { peer, reason: frame::refusal_text(&response) }),
        Status::Request => Err(interrupted("its answer is a request".into())),
    }
}

/// Within one connection, votes and proofs of life go before other small messages.
fn priority(class: Class) -> i32 {
    i32::from(matches!(class, Class::Election | Class::Heartbeat))
}

fn describe(error: &ReadError) -> String {
    match error {
        ReadError::Reset(_) => "the peer gave the request up".into(),
        ReadError::ConnectionLost(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// Answers the request on one stream; returns early if the peer gives up.
pub(super) async fn answer(
    shared: Arc<Shared>,
    peer: NodeId,
    lane: Lane,
    send: SendStream,
    recv: RecvStream,
) {
    // The semaphore is never closed.
    let Ok(_slot) = shared.handlers.of(lane).acquire().await else { return };
    let given_up = send.stopped();
    let mut halves = Halves { send, recv, done: false };
    tokio::select! {
        biased;
        // Ends early only when the peer stops the stream or the connection is lost: it is not finished before the end.
        _ = given_up => {}
        () = exchange(&shared, peer, lane, &mut halves) => {}
    }
}

async fn exchange(shared: &Shared, peer: NodeId, lane: Lane, halves: &mut Halves) {
    let (header, request) = match receive(&mut halves.recv, shared.config.max_body_bytes).await {
        Ok(received) => received,
        Err(ReceiveError::Stream(error)) => {
            tracing::debug!(%peer, %error, "request not received");
            return;
        }
        Err(ReceiveError::Frame(error)) => {
            return refuse(shared, peer, &error.to_string(), halves).await;
        }
    };
    let class = header.class;
    if header.status != Status::Request || class.lane() != lane {
        return refuse(shared, peer, "not a request of this lane", halves).await;
    }
    shared.frames.received(class, frame::encoded_len(&request));
    let mut handler = shared.handler.subscribe();
    let handler = match handler.wait_for(Option::is_some).await {
        Ok(handler) => handler.clone(),
        Err(_) => return,
    };
    let Some(handler) = handler else { return };
    let (status, response) = match handler.handle(peer, request).await {
        Ok(response) => (Status::Response, response),
        Err(refusal) => (Status::Refusal, frame::refusal(&refusal.0)),
    };
    respond(shared, peer, class, status, &response, halves).await;
}

/// Answers bytes that are no acceptable request. Like them, the answer belongs to no class and is not counted.
async fn refuse(shared: &Shared, peer: NodeId, reason: &str, halves: &mut Halves) {
    shared.refused_frame(peer, reason);
    let _ = halves.recv.stop(REFUSED);
    // The asker goes by the status; the class is a placeholder. A refusal has no body and a short head.
    let encoded = frame::encode(Status::Refusal, Class::Heartbeat, &frame::refusal(reason), 0);
    let Ok(mut buffers) = encoded else { return };
    if halves.send.write_all_chunks(&mut buffers).await.is_ok() {
        let _ = halves.send.finish();
        halves.done = true;
    }
}

async fn respond(
    shared: &Shared,
    peer: NodeId,
    class: Class,
    status: Status,
    response: &Frame,
    halves: &mut Halves,
) {
    let (mut buffers, bytes) = match frame::encode(status, class, response, shared.config.max_body_bytes) {
        Ok(buffers) => (buffers, frame::encoded_len(response)),
        Err(error) => {
            tracing::error!(%peer, ?class, %error, "a handler's response cannot be sent");
            let refusal = frame::refusal(&format!("the response cannot be sent: {error}"));
            let bytes = frame::encoded_len(&refusal);
            // A refusal has no body and a short head.
            let Ok(buffers) = frame::encode(Status::Refusal, class, &refusal, u64::MAX) else { return };
            (buffers, bytes)
        }
    };
    shared.config.corruption.pass(&mut buffers);
    // Fails only if the stream has ended, which writing will tell.
    let _ = halves.send.set_priority(priority(class));
    match halves.send.write_all_chunks(&mut buffers).await {
        Ok(()) => {
            shared.frames.sent(class, bytes);
            let _ = halves.send.finish();
            halves.done = true;
        }
        Err(error) => tracing::debug!(%peer, %error, "response not sent"),
    }
}
