//! The training thread: training runs beside the async runtime, never on it, and at the lowest priority, so that it
//! starves neither consensus nor the network. It does one piece of work at a time and knows nothing of what it is for.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::config::{EngineKind, Training};
use super::data::Examples;
use super::engine::open_engine;
use super::model;
use super::train::{BatchOrder, Cancel, Engine, EngineError, Evaluation, FitOutcome};

/// Niceness of the training thread: the lowest priority there is.
#[cfg(target_os = "linux")]
const NICENESS: libc::c_int = 19;

/// Pieces of work that wait for the thread; callers beyond that wait too.
const QUEUE: usize = 4;

type Answer<T> = oneshot::Sender<Result<T, EngineError>>;

/// A piece of work, with everything it needs.
enum Job {
    Fit(Work, BatchOrder, Training, Answer<FitOutcome>),
    Evaluate(Work, Answer<Evaluation>),
}

/// What every piece of work has.
struct Work {
    parameters: Bytes,
    examples: Arc<Examples>,
    cancel: Cancel,
}

/// Runs an engine on a thread of its own. The thread ends when this is dropped and its work is done or cancelled.
#[derive(Debug)]
pub struct Trainer {
    jobs: mpsc::Sender<Job>,
    engine: String,
}

impl Trainer {
    /// Starts the thread, named `train`, with the engine asked for.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`], or [`EngineError::Thread`] if the thread cannot be had at low priority.
    pub async fn start(kind: EngineKind) -> Result<Self, EngineError> {
        Self::start_with(move || open_engine(kind)).await
    }

    /// As [`Self::start`], with the engine that `open` makes on the training thread.
    ///
    /// # Errors
    /// Those of `open`, or [`EngineError::Thread`].
    pub async fn start_with<F>(open: F) -> Result<Self, EngineError>
    where
        F: FnOnce() -> Result<Box<dyn Engine>, EngineError> + Send + 'static,
    {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (ready, opened) = oneshot::channel();
        let thread = move || {
            // Before the engine is made, so that threads it may start have the same priority.
            match lower_priority().map_err(EngineError::Thread).and_then(|()| open()) {
                Ok(engine) => {
                    // Nobody listens if the caller gave up; the queue is closed then, too.
                    let _ = ready.send(Ok(engine.name().to_owned()));
                    run(engine, queue);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        std::thread::Builder::new().name("train".to_owned()).spawn(thread).map_err(EngineError::Thread)?;
        let engine = opened.await.map_err(|_| EngineError::Stopped)??;
        Ok(Self { jobs, engine })
    }

    /// Name of the engine.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Trains as [`Engine::fit`], from encoded parameters. Dropping the future cancels the work, as `cancel` does.
    ///
    /// # Errors
    /// [`EngineError`]; `Stopped` if the thread has ended, which only a panic of the engine brings about.
    pub async fn fit(
        &self,
        parameters: Bytes,
        examples: Arc<Examples>,
        order: BatchOrder,
        training: Training,
        cancel: &Cancel,
    ) -> Result<FitOutcome, EngineError> {
        self.submit(parameters, examples, cancel, |work, answer| Job::Fit(work, order, training, answer))
            .await
    }

    /// Evaluates as [`Engine::evaluate`], from encoded parameters. Dropping the future cancels the work.
    ///
    /// # Errors
    /// As [`Self::fit`].
    pub async fn evaluate(
        &self,
        parameters: Bytes,
        examples: Arc<Examples>,
        cancel: &Cancel,
    ) -> Result<Evaluation, EngineError> {
        self.submit(parameters, examples, cancel, Job::Evaluate).await
    }

    async fn submit<T>(
        &self,
        parameters: Bytes,
        examples: Arc<Examples>,
        cancel: &Cancel,
        job: impl FnOnce(Work, Answer<T>) -> Job,
    ) -> Result<T, EngineError> {
        let own = CancelOnDrop(cancel.child());
        let (answer, answered) = oneshot::channel();
        let work = Work { parameters, examples, cancel: own.0.clone() };
        self.jobs.send(job(work, answer)).await.map_err(|_| EngineError::Stopped)?;
        answered.await.map_err(|_| EngineError::Stopped)?
    }
}

/// Cancels a piece of work when nobody waits for it any more.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The thread's loop: until the [`Trainer`] is gone. An answer that nobody waits for is dropped.
fn run(mut engine: Box<dyn Engine>, mut queue: mpsc::Receiver<Job>) {
    while let Some(job) = queue.blocking_recv() {
        match job {
            Job::Fit(work, order, training, answer) => {
                let Work { examples, cancel, .. } = &work;
                let fit = |parameters: &[f32]| engine.fit(parameters, examples, &order, training, cancel);
                let _ = answer.send(with_parameters(&work, fit));
            }
            Job::Evaluate(work, answer) => {
                let Work { examples, cancel, .. } = &work;
                let evaluate = |parameters: &[f32]| engine.evaluate(parameters, examples, cancel);
                let _ = answer.send(with_parameters(&work, evaluate));
            }
        }
    }
}

/// Decodes the parameters, unless the work was cancelled while it waited.
fn with_parameters<T>(
    work: &Work,
    compute: impl FnOnce(&[f32]) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    if work.cancel.is_cancelled() {
        return Err(EngineError::Cancelled);
    }
    compute(&model::decode(&work.parameters)?)
}

/// Gives the calling thread the lowest priority.
#[cfg(target_os = "linux")]
fn lower_priority() -> std::io::Result<()> {
    // Linux keeps the niceness per thread, and 0 names the calling one.
    // SAFETY: the call takes and returns integers only.
    let status = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Elsewhere the niceness belongs to the process, and lowering all of it would slow what must not be slowed.
#[cfg(not(target_os = "linux"))]
fn lower_priority() -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;
