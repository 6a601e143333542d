//! Frames, and what nodes say to each other.

use bytes::Bytes;
use replication::fuzz::{gossip_message, gossip_value, greeting};
use replication::transport::Frame;
use replication::transport::frame::{
    Decoder, HEADER_BYTES, MAX_UNPROVEN_BYTES, encode, encoded_len, refusal, refusal_text,
};
use replication::{Checkpoint, CheckpointId, Epoch, Metadata, NodeId, Phase, Slot};
use serde::Serialize;
use serde::de::DeserializeOwned;
use workloads::federated::{fuzz as learning_plane, model};
use workloads::keyvalue::flood::Message;
use workloads::keyvalue::journal::{Batch, Snapshot};
use workloads::keyvalue::machine::Machine;
use workloads::keyvalue::message::{self, Change, Command, Request, Response};

use super::selected;

/// Largest body, in bytes: more than arrives here, so that lengths can lie.
const MAX_BODY_BYTES: u64 = 256 * 1024 * 1024;
/// The bit of a selector that says that an answer follows, not a request.
const ANSWER: u8 = 0x80;
const EPOCH: Epoch = Epoch { counter: 1, node: NodeId(1) };

/// The first byte is how the rest arrives: the size of a piece, and whether the checksum is put right first.
pub(crate) fn frame(bytes: &[u8]) -> bool {
    let Some((how, rest)) = selected(bytes) else { return false };
    let mut wire = rest.to_vec();
    if how & 0x80 != 0 && wire.len() >= HEADER_BYTES {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&wire[..HEADER_BYTES - 4]);
        sum.update(&wire[HEADER_BYTES..]);
        wire[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&sum.finalize().to_be_bytes());
    }
    let mut decoder = Decoder::new(MAX_BODY_BYTES);
    let mut arrived = 0;
    for piece in wire.chunks(usize::from(how & 0x7f).max(1)) {
        arrived += piece.len();
        let outcome = decoder.push(piece);
        // Capacities are rounded up by the allocator, of head and body each.
        assert!(decoder.reserved() <= 2 * arrived.max(MAX_UNPROVEN_BYTES) + 4096, "{}", decoder.reserved());
        if outcome.is_err() {
            return false;
        }
    }
    let Ok((header, frame)) = decoder.finish() else { return false };
    assert_eq!(encoded_len(&frame), wire.len() as u64);
    let again = encode(header.status, header.class, &frame, MAX_BODY_BYTES)
        .expect("what was accepted is within limits");
    assert_eq!(again.concat(), wire);
    let reason = refusal_text(&frame);
    assert!(reason.starts_with(&refusal_text(&refusal(&reason))));
    true
}

/// The tag of a message (with [`ANSWER`], of an answer to it), the length of its head, head and body. Tag 0: a greeting.
pub(crate) fn replication(bytes: &[u8]) -> bool {
    let Some((selector, rest)) = selected(bytes) else { return false };
    if selector == 0 {
        return greeting(rest).is_ok();
    }
    let Some((length, rest)) = rest.split_at_checked(2) else { return false };
    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
    let (head, body) = rest.split_at(length.min(rest.len()));
    let frame = Frame::new(selector & !ANSWER, head.to_vec());
    let frame = if body.is_empty() { frame } else { frame.with_segment(body.to_vec().into()) };
    let read = if selector & ANSWER == 0 { replication::fuzz::request } else { replication::fuzz::response };
    read(&frame).is_ok()
}

/// A message of chitchat, or a value of its state.
pub(crate) fn gossip(bytes: &[u8]) -> bool {
    gossip_message(bytes).is_ok() || std::str::from_utf8(bytes).is_ok_and(gossip_value)
}

/// The tag of a message as in [`replication`], and its head. Tag 0: where a checkpoint's tensors are. Tag 1: parameters, of which
/// the bytes are the beginning, repeated.
pub(crate) fn learning(bytes: &[u8]) -> bool {
    let Some((selector, rest)) = selected(bytes) else { return false };
    let frame = Frame::new(selector & !ANSWER, rest.to_vec());
    match selector {
        0 => learning_plane::index(&frame).is_ok(),
        1 => parameters(rest),
        _ if selector & ANSWER == 0 => learning_plane::request(&frame).is_ok(),
        _ => learning_plane::response(&frame).is_ok(),
    }
}

fn parameters(pattern: &[u8]) -> bool {
    assert!(model::decode(pattern).is_err(), "too short for a model");
    let encoded: Bytes = pattern.iter().copied().cycle().take(model::ENCODED_BYTES).collect();
    let Ok(parameters) = model::decode(&encoded) else { return false };
    assert!(parameters.iter().all(|parameter| parameter.is_finite()));
    let again = model::encode(parameters.into_owned()).expect("finite parameters");
    assert_eq!(again, encoded);
    true
}

/// Which kind of message or checkpoint, and its bytes.
pub(crate) fn keyvalue(bytes: &[u8]) -> bool {
    let Some((selector, rest)) = selected(bytes) else { return false };
    match selector {
        0 => match said::<Request>(rest) {
            Some(Request::Write(command)) => {
                Machine::default().apply(&command);
                true
            }
            request => request.is_some(),
        },
        1 => said::<Response>(rest).is_some(),
        2 => said::<Message>(rest).is_some(),
        3 => Batch::of(&checkpoint(rest)).is_ok_and(|batch| {
            assert_eq!(Batch::of(&batch.to_checkpoint(EPOCH, 1)).as_ref().ok(), Some(&batch));
            let mut machine = Machine::default();
            for command in &batch.commands {
                machine.apply(command);
            }
            machine.index() == batch.commands.len() as u64 && machine.adds_up()
        }),
        4 => Snapshot::of(&checkpoint(rest)).is_ok_and(|snapshot| {
            assert_eq!(Snapshot::of(&snapshot.to_checkpoint(EPOCH)).as_ref().ok(), Some(&snapshot));
            let mut machine = snapshot.machine;
            let keys: Vec<String> = machine.entries_after(None).map(|(key, _)| key.clone()).collect();
            for key in keys {
                machine.apply(&Command::Change { origin: None, change: Change::Delete { key } });
            }
            assert_eq!((machine.len(), machine.bytes()), (0, 0));
            true
        }),
        _ => false,
    }
}

/// A message that was read and is read back as it is written.
fn said<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let frame = Frame::new(message::TAG, Bytes::new()).with_segment(bytes.to_vec().into());
    let message: T = message::decode(frame).ok()?;
    let written = message::encode(&message);
    assert!(written.body_len() <= bytes.len(), "a longer encoding of {message:?}");
    assert_eq!(message::decode::<T>(written).as_ref().ok(), Some(&message));
    Some(message)
}

fn checkpoint(bytes: &[u8]) -> Checkpoint {
    let id = CheckpointId { epoch: EPOCH, round: 1, phase: Phase::AggregateFit, slot: Slot::Global };
    Checkpoint::new(id, bytes.to_vec().into(), Metadata::new())
}
