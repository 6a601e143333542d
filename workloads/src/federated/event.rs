//! What happens during a federated job, as told by its nodes. Who observes an event stamps it with node and time.

use std::sync::Arc;

use replication::{CheckpointId, Digest, Epoch, Guarantee, Held, NodeId};
use serde::{Deserialize, Serialize};

/// Receives a node's events, in order, from any thread. Must not block.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// Something that happened in a federated job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// This node has its data and engine and can be given work.
    Ready {
        /// Training examples in its shard.
        train_examples: u64,
        /// Test examples in its shard.
        test_examples: u64,
        /// Whether the examples are the built-in synthetic ones.
        synthetic: bool,
        /// The training engine.
        engine: String,
    },
    /// This node became aggregator and has the parameters to continue from.
    Restored {
        /// Its epoch.
        epoch: Epoch,
        /// The checkpoint it continues from; none: the initial model.
        from: Option<CheckpointId>,
        /// Digest of the parameters it continues from.
        digest: Digest,
    },
    /// The first worker offered itself to this aggregator in this epoch, and was accepted.
    Serving {
        /// The epoch.
        epoch: Epoch,
        /// The worker.
        worker: NodeId,
    },
    /// The aggregator waits, because fewer workers are there than a round needs.
    WaitingForWorkers {
        /// The epoch.
        epoch: Epoch,
        /// Workers that are there.
        present: u32,
        /// Workers that a round needs.
        needed: u32,
    },
    /// The aggregator sends fit instructions.
    RoundStarted {
        /// The epoch.
        epoch: Epoch,
        /// The round, from 1.
        round: u64,
        /// Workers that are given work.
        workers: u32,
    },
    /// A worker began to train (on the worker).
    FitStarted {
        /// The epoch of the instruction.
        epoch: Epoch,
        /// The round.
        round: u64,
    },
    /// A worker finished training (on the worker).
    FitFinished {
        /// The epoch of the instruction.
        epoch: Epoch,
        /// The round.
        round: u64,
        /// Examples trained on, all local epochs together.
        examples: u64,
        /// Mean training loss; none where nothing is trained.
        loss: Option<f64>,
        /// Time spent training.
        train_ns: u64,
    },
    /// A worker that was started again has its own parameters back, and does not train this round again (on the worker).
    UpdateRecovered {
        /// The epoch of the instruction.
        epoch: Epoch,
        /// The round.
        round: u64,
    },
    /// A worker dropped work, because its epoch has ended or a newer instruction came (on the worker).
    WorkDropped {
        /// The epoch of the dropped work.
        epoch: Epoch,
        /// The round.
        round: u64,
    },
    /// A worker's result did not come in time, or not at all (on the aggregator).
    WorkerFailed {
        /// The epoch.
        epoch: Epoch,
        /// The round.
        round: u64,
        /// The worker.
        worker: NodeId,
        /// Why.
        reason: String,
    },
    /// A checkpoint was acknowledged by the store.
    CheckpointPut {
        /// Its name.
        id: CheckpointId,
        /// Digest of its parameters.
        digest: Digest,
        /// Size of its parameters.
        bytes: u64,
        /// From the call of `put` to its return.
        put_ns: u64,
        /// What was true when it returned.
        guarantee: Guarantee,
        /// Nodes known to hold the bytes then.
        holders: Vec<NodeId>,
    },
    /// A checkpoint was not acknowledged.
    CheckpointFailed {
        /// Its name.
        id: CheckpointId,
        /// Why.
        reason: String,
        /// Whether it may have been written all the same.
        may_have_happened: bool,
    },
    /// The aggregator finished a round: trained, averaged, stored, evaluated.
    RoundFinished {
        /// The epoch.
        epoch: Epoch,
        /// The round.
        round: u64,
        /// From the first fit instruction to the last evaluation. A round taken over after its averaging counts from
        /// the take-over.
        round_ns: u64,
        /// Time from the first fit instruction to the averaged parameters; 0 if this node did not see it.
        fit_ns: u64,
        /// Workers whose parameters were averaged; 0 if this node did not see it.
        fit_workers: u32,
        /// Examples behind the average.
        fit_examples: u64,
        /// Mean training loss over the examples, as the workers reported it; none if unknown.
        train_loss: Option<f64>,
        /// Workers that evaluated.
        evaluate_workers: u32,
        /// Test examples.
        evaluate_examples: u64,
        /// Mean test loss over the examples.
        loss: Option<f64>,
        /// Share of test examples classified correctly.
        accuracy: Option<f64>,
        /// Digest of the round's parameters.
        digest: Digest,
    },
    /// This aggregator hands over on purpose, as the policy has it.
    HandingOver {
        /// The epoch that shall end.
        epoch: Epoch,
        /// Who shall take over.
        to: NodeId,
    },
    /// Nobody took over: this aggregator goes on.
    HandOverFailed {
        /// Its epoch.
        epoch: Epoch,
        /// Who should have taken over.
        to: NodeId,
        /// Why not.
        reason: String,
    },
    /// This aggregator's part ended, because another epoch is in force.
    Deposed {
        /// The epoch that ended.
        epoch: Epoch,
    },
    /// The last round is finished, and acknowledged if anything is written at all; the job is done.
    Completed {
        /// The epoch.
        epoch: Epoch,
        /// Rounds of the job.
        rounds: u64,
        /// The final checkpoint; none where the job keeps none.
        last: Option<Held>,
        /// Digest of the final global parameters.
        digest: Digest,
    },
}
