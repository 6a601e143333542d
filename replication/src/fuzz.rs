//! What fuzz targets reach of this crate's private decoders (feature `fuzz`; the targets are in `fuzz/`).
//!
//! Each function reads bytes as the node that gets them does, and checks what holds of whatever is accepted: it encodes to
//! something no longer, which is accepted again and encodes to the same. A check that fails panics.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StoreError;
use crate::ledger::Record;
use crate::store::{Digest, Epoch, Receipt};
use crate::transport::{Frame, Refusal};
use crate::{backup, forward, gossip, local, members, raft, wire};

pub use crate::gossip::fuzz::{gossip_message, gossip_value};
pub use crate::transport::quic::greeting;

/// Reads a request of the replication plane, by its tag.
///
/// # Errors
/// What is wrong with it.
pub fn request(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        wire::FORWARD_PUT | wire::BACKUP_FORWARD => stable(frame, again::<forward::Head>),
        wire::BLOB_PUSH | wire::BLOB_PULL => stable(frame, again::<Digest>),
        wire::BLOB_AWAIT => stable(frame, again::<(Digest, u64)>),
        wire::LOCAL_EPOCH => stable(frame, again::<Epoch>),
        wire::LOCAL_READ => stable(frame, again::<local::Wanted>),
        wire::LOCAL_FORWARD => stable(frame, again::<Record>),
        wire::MEMBERSHIP => stable(frame, again::<members::Request>).or_else(|_| raft::fuzz::request(frame)),
        1..=10 => raft::fuzz::request(frame),
        32..=41 => gossip::fuzz::request(frame),
        48..=57 => backup::fuzz::request(frame),
        unknown => Err(Refusal(format!("unknown message {unknown}"))),
    }
}

/// Reads the answer to a request with the tag of `frame`.
///
/// # Errors
/// What is wrong with it.
pub fn response(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        wire::FORWARD_PUT | wire::BACKUP_FORWARD => {
            stable(frame, again::<Option<Result<Receipt, StoreError>>>)
        }
        wire::LOCAL_READ | wire::READ | wire::BACKUP_READ => stable(frame, again::<Option<Record>>),
        wire::LOCAL_FORWARD => stable(frame, again::<Result<Receipt, StoreError>>),
        wire::MEMBERSHIP => stable(frame, again::<members::Answer>).or_else(|_| raft::fuzz::response(frame)),
        1..=10 => raft::fuzz::response(frame),
        32..=41 => gossip::fuzz::response(frame),
        48..=57 => backup::fuzz::response(frame),
        unknown => Err(Refusal(format!("nothing is read of an answer to message {unknown}"))),
    }
}

/// The frame with its head decoded as a `T` and encoded again.
///
/// # Errors
/// The head is no `T`.
pub fn again<T: Serialize + DeserializeOwned>(frame: Frame) -> Result<Frame, Refusal> {
    let head: T = wire::decode(&frame.head)?;
    Ok(Frame { head: wire::encode(&head), ..frame })
}

/// Checks that `read`, which decodes and encodes, comes to rest at once.
///
/// # Errors
/// That of `read`.
///
/// # Panics
/// If it does not.
pub fn stable(frame: &Frame, read: impl Fn(Frame) -> Result<Frame, Refusal>) -> Result<(), Refusal> {
    let first = read(frame.clone())?;
    assert!(first.head.len() <= frame.head.len(), "a longer encoding: {frame:?} became {first:?}");
    let second = read(first.clone());
    let second = second.unwrap_or_else(|Refusal(reason)| panic!("{first:?} is refused: {reason}"));
    assert_eq!((first.head, first.body.concat()), (second.head, second.body.concat()));
    Ok(())
}
