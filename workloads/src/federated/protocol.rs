//! The learning plane's messages, in Flower's terms, and what a worker may answer.
//!
//! Every message carries the epoch of the aggregator it belongs to, so that a stale aggregator is refused and work of an
//! old epoch is dropped. Parameters travel as a frame's body, and only if the receiver may not have them: both sides name
//! them by digest. A worker's result is fetched by the aggregator when it has room for it: that paces the uploads.

use replication::transport::{Frame, Refusal, head};
use replication::{Digest, Epoch};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::policy::Standing;

/// A worker offers itself to the aggregator of an epoch.
pub(crate) const JOIN: u8 = 64;
/// Train: answered when training has ended.
pub(crate) const FIT: u8 = 65;
/// Hand over the parameters of a finished training.
pub(crate) const FETCH_UPDATE: u8 = 66;
/// Evaluate: answered with the result.
pub(crate) const EVALUATE: u8 = 67;

/// An aggregator that hands over says so to its successor, with the last round it finished: it will work for it.
pub(crate) const HAND_OVER: u8 = 68;

/// How far are you? Answered at once.
pub(crate) const PROBE: u8 = 69;

/// Head of [`FIT`] and [`EVALUATE`]; the parameters are the body, or absent if the worker should have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instruction {
    pub(crate) epoch: Epoch,
    pub(crate) round: u64,
    /// Digest of the global parameters to start from.
    pub(crate) parameters: Digest,
}

/// What a worker answers to an instruction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer<T> {
    /// It was done.
    Done(T),
    /// The worker does not have the parameters: send them along.
    ParametersMissing,
    /// The instruction's epoch has ended; this one is in force.
    Stale(Epoch),
    /// It could not be done.
    Failed(String),
}

/// Result of a fit instruction; the parameters are fetched apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct FitResult {
    /// Digest of the trained parameters.
    pub(crate) update: Digest,
    /// Examples in the worker's shard: its weight in the average.
    pub(crate) examples: u64,
    /// Mean training loss; none where nothing is trained.
    pub(crate) loss: Option<f64>,
    /// How fit the worker is to aggregate.
    pub(crate) standing: Standing,
}

/// A frame with an encoded head.
pub(crate) fn frame<T: Serialize>(tag: u8, value: &T) -> Frame {
    Frame::new(tag, head::encode(value))
}

/// Decodes a head; total.
pub(crate) fn head<T: DeserializeOwned>(frame: &Frame) -> Result<T, Refusal> {
    head::decode(&frame.head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use replication::NodeId;

    use super::*;
    use crate::federated::Evaluation;

    proptest! {
        #[test]
        fn messages_are_read_back_as_written(
            counter: u64, node: u64, round: u64, bytes: Vec<u8>, loss in prop::num::f64::NORMAL, reason: String,
        ) {
            let (epoch, parameters) = (Epoch { counter, node: NodeId(node) }, Digest::of(&bytes));
            let instruction = Instruction { epoch, round, parameters };
            prop_assert_eq!(head::<Instruction>(&frame(FIT, &instruction)).unwrap(), instruction);
            let evaluation = Evaluation { loss_sum: loss, correct: round, examples: counter };
            for answer in
                [Answer::Done(evaluation), Answer::ParametersMissing, Answer::Stale(epoch), Answer::Failed(reason)]
            {
                prop_assert_eq!(&head::<Answer<Evaluation>>(&frame(EVALUATE, &answer)).unwrap(), &answer);
            }
        }

        #[test]
        fn any_bytes_are_messages_or_refused(bytes: Vec<u8>) {
            let frame = Frame::new(FIT, bytes);
            let _ = head::<Instruction>(&frame);
            let _ = head::<Answer<FitResult>>(&frame);
            let _ = head::<Answer<Evaluation>>(&frame);
        }
    }
}
