//! What the benches of this crate are fed with: sizes and contents that are the same in every run.

#![allow(dead_code, reason = "each bench uses a part")]

use bytes::Bytes;
use replication::bench::{Neighbourhood, Proposal};
use replication::conformance::parameters;
use replication::transport::frame::{self, Status};
use replication::transport::{Class, Frame};
use replication::{Checkpoint, CheckpointId, Digest, Epoch, Metadata, NodeId, Phase, Slot};

/// Bytes of the job's model.
pub(crate) const CHECKPOINT_BYTES: usize = 248_024;

/// Bytes of the largest body that a bench decodes.
pub(crate) const MAX_BODY_BYTES: u64 = 16 * 1024 * 1024;

/// Bytes that arrive at once, as quinn hands them over from full datagrams of 1,452 bytes.
const PIECE_BYTES: usize = 1_414;

/// The job's parameters, encoded.
pub(crate) fn model() -> Bytes {
    parameters(1, CHECKPOINT_BYTES)
}

/// Checkpoints of that many bytes, in order.
pub(crate) fn checkpoints(count: u64, bytes: usize) -> Vec<Checkpoint> {
    (1..=count).map(|round| Checkpoint::new(id(round), parameters(round, bytes), metadata(round))).collect()
}

/// The name of a round's checkpoint.
pub(crate) fn id(round: u64) -> CheckpointId {
    let epoch = Epoch { counter: 1, node: NodeId(1) };
    CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global }
}

fn metadata(round: u64) -> Metadata {
    Metadata::from([("round".to_owned(), round.to_string()), ("train_loss".to_owned(), "1.25".to_owned())])
}

/// A frame with a head of 64 bytes and a body of so many.
pub(crate) fn framed(body_bytes: usize) -> Frame {
    let frame = Frame::new(3, parameters(2, 64));
    if body_bytes == 0 { frame } else { frame.with_segment(parameters(3, body_bytes)) }
}

/// The same frame as it arrives.
pub(crate) fn pieces(body_bytes: usize) -> Vec<Bytes> {
    let buffers = frame::encode(Status::Request, Class::Log, &framed(body_bytes), MAX_BODY_BYTES);
    let whole = Bytes::from(buffers.expect("within limits").concat());
    (0..whole.len())
        .step_by(PIECE_BYTES)
        .map(|at| whole.slice(at..whole.len().min(at + PIECE_BYTES)))
        .collect()
}

/// The message that replicates one checkpoint of the job's size, bytes included.
pub(crate) fn inline() -> Proposal {
    Proposal::of(&checkpoints(1, CHECKPOINT_BYTES), true)
}

/// The message that replicates the names of 64 checkpoints.
pub(crate) fn digests() -> Proposal {
    Proposal::of(&checkpoints(64, 8), false)
}

/// A cluster of so many nodes that announce checkpoints of the job's size.
pub(crate) fn neighbourhood(nodes: u64) -> Neighbourhood {
    Neighbourhood::new(nodes, CHECKPOINT_BYTES as u64)
}

/// One that has taken note of them.
pub(crate) fn noted(nodes: u64) -> Neighbourhood {
    neighbourhood(nodes).noted()
}

/// One that holds the job's parameters, and their digest.
pub(crate) fn holding() -> (Neighbourhood, Digest) {
    let model = model();
    (neighbourhood(10).holding(&model), Digest::of(&model))
}
