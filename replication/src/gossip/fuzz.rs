//! This backend's messages and what rides in gossip state, for [`crate::fuzz`].

use super::announce::{Announcement, MAX_VALUE_BYTES, epoch_to_text, parse_epoch};
use super::messages::{
    Candidacy, Convene, Convened, HandOver, Have, Heard, Promised, Pull, Pulled, Rumour, Yield,
};
use super::network::Addresses;
use crate::fuzz::{again, stable};
use crate::store::{CheckpointId, Epoch, Metadata, NodeId};
use crate::transport::{Frame, Refusal};
use crate::wire;

pub(crate) fn request(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        wire::GOSSIP_MESSAGE => gossip_message(&frame.head),
        wire::GOSSIP_RUMOUR => stable(frame, again::<Rumour>),
        wire::GOSSIP_HAVE => stable(frame, again::<Have>),
        wire::GOSSIP_PULL => stable(frame, again::<Pull>),
        wire::GOSSIP_DESCRIBE => stable(frame, again::<CheckpointId>),
        wire::GOSSIP_PROMISE => stable(frame, again::<Candidacy>),
        wire::GOSSIP_CLAIM => stable(frame, again::<Epoch>),
        wire::GOSSIP_HAND_OVER => stable(frame, again::<HandOver>),
        wire::GOSSIP_YIELD => stable(frame, again::<Yield>),
        wire::GOSSIP_MEMBERS => stable(frame, again::<Convene>),
        unknown => Err(Refusal(format!("unknown message {unknown}"))),
    }
}

pub(crate) fn response(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        wire::GOSSIP_MESSAGE => gossip_message(&frame.head),
        wire::GOSSIP_RUMOUR | wire::GOSSIP_HAVE => stable(frame, again::<Heard>),
        wire::GOSSIP_PULL => stable(frame, again::<Pulled>),
        wire::GOSSIP_DESCRIBE => stable(frame, again::<Option<Metadata>>),
        wire::GOSSIP_PROMISE => stable(frame, again::<Promised>),
        wire::GOSSIP_MEMBERS => stable(frame, again::<Convened>),
        unknown => Err(Refusal(format!("nothing is read of an answer to message {unknown}"))),
    }
}

/// Reads a message of chitchat in a cluster of nodes 1 to 4. It is not written again: chitchat does that with messages of its own
/// making only, and asserts it.
///
/// # Errors
/// What is wrong with it.
pub fn gossip_message(bytes: &[u8]) -> Result<(), Refusal> {
    Addresses::new(&(1..=4).map(NodeId).collect()).decode(bytes).map(drop)
}

/// Reads a value of gossip state, as a checkpoint that is announced and as an epoch; whether it is one of them.
#[must_use]
pub fn gossip_value(text: &str) -> bool {
    let announced = Announcement::parse(text);
    if let Some(announced) = announced {
        let written = announced.to_text();
        assert!(written.len() <= MAX_VALUE_BYTES);
        assert_eq!(Announcement::parse(&written), Some(announced));
    }
    let epoch = parse_epoch(text);
    if let Some(epoch) = epoch {
        assert_eq!(parse_epoch(&epoch_to_text(Some(epoch))), Some(epoch));
    }
    announced.is_some() || epoch.is_some()
}
