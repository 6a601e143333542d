//! What fuzz targets reach of the learning plane's private decoders (feature `fuzz`), with the checks of [`replication::fuzz`].

use replication::fuzz::{again, stable};
use replication::transport::{Frame, Refusal};
use replication::{Digest, Epoch};

use super::checkpoint;
use super::protocol::{self, Answer, FitResult, Instruction};
use super::train::Evaluation;

/// Reads a request, by its tag.
///
/// # Errors
/// What is wrong with it.
pub fn request(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        protocol::JOIN => stable(frame, again::<Epoch>),
        protocol::FIT | protocol::EVALUATE => stable(frame, again::<Instruction>),
        protocol::HAND_OVER => stable(frame, again::<u64>),
        protocol::FETCH_UPDATE => stable(frame, again::<Digest>),
        unknown => Err(Refusal(format!("unknown message {unknown}"))),
    }
}

/// Reads the answer to a request with the tag of `frame`.
///
/// # Errors
/// What is wrong with it.
pub fn response(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        protocol::FIT => stable(frame, again::<Answer<FitResult>>),
        protocol::EVALUATE => stable(frame, again::<Answer<Evaluation>>),
        unknown => Err(Refusal(format!("nothing is read of an answer to message {unknown}"))),
    }
}

/// Reads, as the head of `frame`, what profile `prototype` writes last in a phase.
///
/// # Errors
/// What is wrong with it.
pub fn index(frame: &Frame) -> Result<(), Refusal> {
    stable(frame, again::<checkpoint::Index>)
}
