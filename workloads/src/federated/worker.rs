//! The worker's side: joins whoever aggregates, trains and evaluates when told to.
//!
//! A worker deliberately knows nothing of rounds beyond the one it is told: the epoch in the instruction decides whether it
//! is obeyed, and its digest says which parameters it is about.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use replication::transport::{Class, Frame, Handler, Refusal, Transport};
use replication::{
    AnyStore, Blob, Carrier, Checkpoint, CheckpointId, Digest, Epoch, Metadata, NodeId, Phase, Slot,
};
use tokio::sync::watch;

use super::checkpoint::{Writer, tensors};
use super::config::Profile;
use super::event::{Event, Events};
use super::learner::Learner;
use super::node::Participant;
use super::offers::{Offers, Predecessors};
use super::policy::Standing;
use super::probe::Probes;
use super::protocol::{self, Answer, FitResult, Instruction};
use super::train::Evaluation;

/// Global parameters a worker keeps: those it trains from, and those it evaluates.
const KEPT_PARAMETERS: usize = 2;

/// The part of a worker's slot that holds the parameters it trained.
const OWN_UPDATE: u16 = 0;

/// Metadata of what a worker trained: the digest it started from, examples, mean loss.
const START: &str = "start";
const EXAMPLES: &str = "examples";
const LOSS: &str = "train_loss";

/// How long a worker waits for what it trained before it was started again, rather than train again.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// First and longest pause between two offers to the same aggregator.
const JOIN_RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// How long an instruction waits for this node's store to tell of its epoch.
const EPOCH_PATIENCE: Duration = Duration::from_secs(2);

/// How long an offer may take to be answered.
const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

struct State {
    /// Global parameters, newest last.
    parameters: VecDeque<Blob>,
    /// The last finished training, by the round and the parameters it started from.
    update: Option<(u64, Digest, Arc<FinishedUpdate>)>,
    /// Whether the store was asked for what this node trained before it started.
    looked_back: bool,
}

#[derive(Debug)]
struct FinishedUpdate {
    parameters: Blob,
    examples: u64,
    loss: Option<f64>,
}

impl FinishedUpdate {
    /// What is written beside the parameters: the digest they were trained from, and the result.
    fn metadata(&self, start: Digest) -> Metadata {
        let facts = [(START, start.to_hex()), (EXAMPLES, self.examples.to_string())];
        let loss = self.loss.map(|loss| (LOSS, loss.to_string()));
        facts.into_iter().chain(loss).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The round, the parameters it started from and the training that a checkpoint holds, if its metadata says so.
    fn recovered(checkpoint: Checkpoint) -> Option<(u64, Digest, Arc<Self>)> {
        let metadata = checkpoint.metadata();
        let start = Digest::from_hex(metadata.get(START)?)?;
        let examples = metadata.get(EXAMPLES)?.parse().ok()?;
        let loss = metadata.get(LOSS).map(|loss| loss.parse()).transpose().ok()?;
        let round = checkpoint.id().round;
        Some((round, start, Arc::new(Self { parameters: checkpoint.into_blob(), examples, loss })))
    }
}

/// One node's worker.
pub(crate) struct Worker {
    node: NodeId,
    learner: Arc<dyn Learner>,
    store: AnyStore,
    /// By which profile this worker writes; none if the job keeps nothing.
    writes: Option<Profile>,
    /// Whether the store is given the parameters that come here.
    reuse: bool,
    /// Where this node's place in the network shows.
    learning: Arc<dyn Transport>,
    score: u32,
    events: Events,
    /// The newest epoch this node's store told of.
    probes: Probes,
    epoch: watch::Sender<Epoch>,
    state: Mutex<State>,
    /// One piece of work at a time: the next waits until the cancelled one has ended.
    working: tokio::sync::Mutex<()>,
    /// Raised by every instruction, so that the one before it is dropped.
    turn: watch::Sender<u64>,
}

impl Worker {
    pub(crate) fn new(participant: &Participant, initial: Blob) -> Self {
        let Participant { config, store, learning, learner, score, events, .. } = participant;
        let reuse = config.reuses(store.as_ref());
        if reuse {
            store.provide(initial.clone());
        }
        Self {
            node: learning.local(),
            learner: learner.clone(),
            store: store.clone(),
            writes: Some(config.profile).filter(|_| !config.stateless),
            reuse,
            learning: learning.clone(),
            score: *score,
            events: events.clone(),
            probes: Probes::new(learning.clone()),
            epoch: watch::Sender::new(Epoch::default()),
            state: Mutex::new(State {
                parameters: VecDeque::from([initial]),
                update: None,
                looked_back: false,
            }),
            working: tokio::sync::Mutex::new(()),
            turn: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures how far the others are, until it is dropped.
    pub(crate) async fn probe(&self) {
        self.probes.run().await;
    }

    /// How fit this node is to aggregate.
    pub(crate) fn standing(&self) -> Standing {
        Standing::new(&self.probes.round_trips(), self.score)
    }

    /// Takes note of a newer epoch: work of older ones is dropped.
    pub(crate) fn learn_epoch(&self, epoch: Epoch) {
        self.epoch.send_if_modified(|known| {
            let newer = epoch > *known;
            if newer {
                *known = epoch;
            }
            newer
        });
    }

    /// Offers this worker to the aggregator of `epoch` until it accepts, or the connection shows that it is gone.
    pub(crate) async fn join(&self, epoch: Epoch) {
        let learning = self.learning.as_ref();
        let mut pause = JOIN_RETRY.0;
        let mut connected = learning.connected();
        loop {
            if connected.wait_for(|peers| peers.contains(&epoch.node)).await.is_err() {
                return;
            }
            let request =
                learning.request(epoch.node, Class::LearningControl, protocol::frame(protocol::JOIN, &epoch));
            if let Ok(Ok(_)) = tokio::time::timeout(JOIN_TIMEOUT, request).await {
                // Accepted. Offer again should the connection be lost and come back.
                if connected.wait_for(|peers| !peers.contains(&epoch.node)).await.is_err() {
                    return;
                }
                pause = JOIN_RETRY.0;
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(JOIN_RETRY.1);
            }
        }
    }

    /// The parameters of an instruction: those sent along, checked, or those this worker has.
    fn parameters(&self, wanted: Digest, sent: Bytes) -> Result<Option<Bytes>, Refusal> {
        let mut state = self.state();
        if let Some(kept) = state.parameters.iter().find(|kept| kept.digest() == wanted) {
            return Ok(Some(kept.bytes().clone()));
        }
        if sent.is_empty() {
            return Ok(None);
        }
        let blob = Blob::verified(wanted, sent.clone());
        let blob = blob.ok_or_else(|| Refusal(format!("the parameters do not match digest {wanted}")))?;
        if self.reuse {
            self.store.provide(blob.clone());
        }
        state.parameters.push_back(blob);
        if state.parameters.len() > KEPT_PARAMETERS {
            state.parameters.pop_front();
        }
        Ok(Some(sent))
    }

    /// Does `work` for an instruction, unless its epoch has ended or a newer instruction takes its place.
    async fn obey<T, F>(&self, instruction: Instruction, sent: Bytes, work: F) -> Result<Answer<T>, Refusal>
    where
        F: AsyncFnOnce(Bytes) -> Result<T, String>,
    {
        let Instruction { epoch, round, parameters } = instruction;
        // Only the store says who aggregates. An instruction may be ahead of what it has told this node so far.
        let mut known = self.epoch.subscribe();
        let told =
            tokio::time::timeout(EPOCH_PATIENCE, known.wait_for(|known| *known >= epoch)).await.is_ok();
        let current = *self.epoch.borrow();
        if !told {
            return Err(Refusal(format!("epoch {epoch} is not known here, {current} is")));
        }
        if current > epoch {
            return Ok(Answer::Stale(current));
        }
        let Some(parameters) = self.parameters(parameters, sent)? else {
            return Ok(Answer::ParametersMissing);
        };
        self.turn.send_modify(|turn| *turn += 1);
        let mut turn = self.turn.subscribe();
        let mut newer = self.epoch.subscribe();
        let dropped = tokio::select! {
            biased;
            now = newer.wait_for(|now| *now > epoch) => now.map_or(epoch, |now| *now),
            _ = turn.changed() => epoch,
            done = async {
                let _one_at_a_time = self.working.lock().await;
                work(parameters).await
            } => return Ok(done.map_or_else(Answer::Failed, Answer::Done)),
        };
        (self.events)(Event::WorkDropped { epoch, round });
        Ok(if dropped > epoch {
            Answer::Stale(dropped)
        } else {
            Answer::Failed("a newer instruction came".into())
        })
    }

    /// Trains, or answers again with what was trained before from the same parameters in the same round.
    async fn fit(&self, instruction: Instruction, parameters: Bytes) -> Result<FitResult, String> {
        let Instruction { epoch, round, parameters: start } = instruction;
        if self.writes == Some(Profile::Prototype) {
            self.write_received(instruction, &parameters).await;
        }
        let known = |of: &(u64, Digest, _)| (of.0, of.1) == (round, start);
        if self.writes == Some(Profile::Workers) && !std::mem::replace(&mut self.state().looked_back, true) {
            let recovered = self.recover().await;
            if recovered.as_ref().is_some_and(known) {
                (self.events)(Event::UpdateRecovered { epoch, round });
                self.state().update = recovered;
            }
        }
        let finished = self.state().update.clone().filter(known);
        let finished = match finished {
            Some((_, _, finished)) => finished,
            None => {
                (self.events)(Event::FitStarted { epoch, round });
                let begun = tokio::time::Instant::now();
                let update = self.learner.fit(round, parameters).await.map_err(|error| error.to_string())?;
                let train_ns = begun.elapsed().as_nanos() as u64;
                let (examples, loss) = (update.examples, update.loss);
                (self.events)(Event::FitFinished { epoch, round, examples, loss, train_ns });
                let parameters = Blob::new(update.parameters);
                let finished = Arc::new(FinishedUpdate { parameters, examples, loss });
                self.state().update = Some((round, start, finished.clone()));
                finished
            }
        };
        if self.writes == Some(Profile::Workers) {
            self.write_own(instruction, &finished).await;
        }
        Ok(FitResult {
            update: finished.parameters.digest(),
            examples: finished.examples,
            loss: finished.loss,
            standing: self.standing(),
        })
    }

    fn writer(&self) -> Writer<'_> {
        Writer { store: self.store.as_ref(), events: &self.events }
    }

    fn own_slot(&self, instruction: Instruction, phase: Phase, part: u16) -> CheckpointId {
        let slot = Slot::Worker { node: self.node, part };
        CheckpointId { epoch: instruction.epoch, round: instruction.round, phase, slot }
    }

    /// Profile `workers`: the parameters this worker trained, and what it takes to answer with them again.
    async fn write_own(&self, instruction: Instruction, finished: &FinishedUpdate) {
        let id = self.own_slot(instruction, Phase::AggregateFit, OWN_UPDATE);
        let metadata = finished.metadata(instruction.parameters);
        let checkpoint = Checkpoint::of_blob(id, finished.parameters.clone(), metadata);
        // A failure is an event; the round does not depend on it.
        let _ = self.writer().put(checkpoint, Carrier::Store).await;
    }

    /// The last training that this worker wrote, also before it was started again.
    async fn recover(&self) -> Option<(u64, Digest, Arc<FinishedUpdate>)> {
        let own = Slot::Worker { node: self.node, part: OWN_UPDATE };
        let read = tokio::time::timeout(RECOVERY_TIMEOUT, self.store.newest(own)).await;
        match read {
            Ok(Ok(checkpoint)) => FinishedUpdate::recovered(checkpoint?),
            Ok(Err(error)) => {
                tracing::warn!(%error, "what this worker trained before cannot be read: it trains again");
                None
            }
            Err(_) => {
                tracing::warn!("what this worker trained before was not read in time: it trains again");
                None
            }
        }
    }

    /// Profile `prototype`: the parameters this worker received, one write per tensor.
    async fn write_received(&self, instruction: Instruction, parameters: &Bytes) {
        for (part, tensor) in tensors(parameters) {
            let id = self.own_slot(instruction, Phase::ConfigureFit, part);
            // A failure is an event; the round does not depend on it.
            let _ = self.writer().put(Checkpoint::new(id, tensor, [].into()), Carrier::Store).await;
        }
    }

    /// Answers a fit instruction.
    pub(crate) async fn on_fit(
        &self,
        instruction: Instruction,
        sent: Bytes,
    ) -> Result<Answer<FitResult>, Refusal> {
        self.obey(instruction, sent, async |parameters| self.fit(instruction, parameters).await).await
    }

    /// Answers an evaluate instruction.
    pub(crate) async fn on_evaluate(
        &self,
        instruction: Instruction,
        sent: Bytes,
    ) -> Result<Answer<Evaluation>, Refusal> {
        let evaluate =
            async |parameters| self.learner.evaluate(parameters).await.map_err(|error| error.to_string());
        self.obey(instruction, sent, evaluate).await
    }

    /// The parameters of a finished training.
    pub(crate) fn update(&self, digest: Digest) -> Option<Blob> {
        let state = self.state();
        let (_, _, finished) = state.update.as_ref()?;
        (finished.parameters.digest() == digest).then(|| finished.parameters.clone())
    }
}

/// Only the node that an epoch names may speak for it.
fn speaks_for(epoch: Epoch, from: NodeId) -> Result<(), Refusal> {
    if epoch.node == from {
        Ok(())
    } else {
        Err(Refusal(format!("node {from} does not aggregate in epoch {epoch}")))
    }
}

/// Answers the learning plane's requests on one node: it is a worker, and may be the aggregator.
pub(crate) struct Inbox {
    pub(crate) worker: Arc<Worker>,
    /// Offers of workers to this node, for the epochs in which it aggregates.
    pub(crate) offers: watch::Sender<Offers>,
    /// Nodes that lost their office.
    pub(crate) predecessors: Arc<Mutex<Predecessors>>,
}

#[async_trait]
impl Handler for Inbox {
    async fn handle(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        match request.tag {
            protocol::JOIN => {
                let epoch: Epoch = protocol::head(&request)?;
                let accepted = self.offers.send_if_modified(|offers| offers.accept(epoch, from));
                if accepted || self.offers.borrow().has(epoch, from) {
                    Ok(Frame::default())
                } else {
                    Err(Refusal(format!("this node does not aggregate in epoch {epoch}")))
                }
            }
            protocol::FIT => {
                let instruction: Instruction = protocol::head(&request)?;
                speaks_for(instruction.epoch, from)?;
                let answer = self.worker.on_fit(instruction, request.into_body()).await?;
                Ok(protocol::frame(protocol::FIT, &answer))
            }
            protocol::EVALUATE => {
                let instruction: Instruction = protocol::head(&request)?;
                speaks_for(instruction.epoch, from)?;
                let answer = self.worker.on_evaluate(instruction, request.into_body()).await?;
                Ok(protocol::frame(protocol::EVALUATE, &answer))
            }
            protocol::HAND_OVER => {
                let finished_round: u64 = protocol::head(&request)?;
                let mut predecessors = self.predecessors.lock().unwrap_or_else(PoisonError::into_inner);
                predecessors.hands_over(from, finished_round);
                Ok(Frame::default())
            }
            protocol::PROBE => Ok(Frame::default()),
            protocol::FETCH_UPDATE => {
                let digest: Digest = protocol::head(&request)?;
                let update = self.worker.update(digest);
                let update = update.ok_or_else(|| Refusal(format!("update {digest} is not here")))?;
                Ok(Frame::default().with_segment(update.bytes().clone()))
            }
            unknown => Err(Refusal(format!("unknown message {unknown}"))),
        }
    }
}
