//! The training thread: its priority, cancellation, and that it leaves the runtime alone.

use std::sync::mpsc;
use std::time::Duration;

use super::super::data::{Source, Split};
use super::*;

const TRAINING: Training = Training { local_epochs: 1, batch_size: 32, lr: 0.001, momentum: 0.9 };

fn examples() -> Arc<Examples> {
    Arc::new(Source::Synthetic { seed: 1 }.read(Split::Train, &(0..64).collect::<Vec<_>>()).unwrap())
}

fn start() -> Bytes {
    model::encode(model::initial(1)).unwrap()
}

/// Work that takes longer than any test.
fn endless() -> (BatchOrder, Training) {
    let training = Training { local_epochs: u32::MAX, ..TRAINING };
    (BatchOrder::new(1, 1, 1, 64, &training), training)
}

#[tokio::test]
async fn work_is_done_as_by_the_engine() {
    let trainer = Trainer::start(EngineKind::Candle).await.unwrap();
    let order = BatchOrder::new(1, 1, 1, 64, &TRAINING);
    let fit = trainer.fit(start(), examples(), order, TRAINING, &Cancel::new()).await.unwrap();
    let mut engine = open_engine(EngineKind::Candle).unwrap();
    assert_eq!(trainer.engine(), engine.name());
    assert_eq!(fit, engine.fit(&model::initial(1), &examples(), &order, TRAINING, &Cancel::new()).unwrap());
    let evaluation = trainer.evaluate(start(), examples(), &Cancel::new()).await.unwrap();
    assert_eq!(evaluation.examples, 64);
    let error = trainer.evaluate(Bytes::from_static(b"no parameters"), examples(), &Cancel::new()).await;
    assert!(matches!(error, Err(EngineError::Model(_))));
}

#[tokio::test]
async fn dropping_the_future_cancels_the_work() {
    let trainer = Trainer::start(EngineKind::Candle).await.unwrap();
    let (order, training) = endless();
    let cancel = Cancel::new();
    let fit = trainer.fit(start(), examples(), order, training, &cancel);
    assert!(tokio::time::timeout(Duration::from_millis(50), fit).await.is_err());
    assert!(!cancel.is_cancelled());
    // The thread is free again, or this would never end.
    trainer.evaluate(start(), examples(), &cancel).await.unwrap();
}

#[tokio::test]
async fn cancelling_ends_the_work() {
    let trainer = Trainer::start(EngineKind::Candle).await.unwrap();
    let (order, training) = endless();
    let cancel = Cancel::new();
    // On a runtime of one thread: if training blocked it, nobody would get to cancel.
    let (fit, ()) = tokio::join!(trainer.fit(start(), examples(), order, training, &cancel), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancel.cancel();
    });
    assert!(matches!(fit, Err(EngineError::Cancelled)));
}

/// Tells its thread's name and niceness from inside of a piece of work.
#[cfg(target_os = "linux")]
struct Probe(Box<dyn Engine>, mpsc::Sender<(String, i64)>);

#[cfg(target_os = "linux")]
impl Engine for Probe {
    fn name(&self) -> &str {
        "probe"
    }

    fn fit(
        &mut self,
        parameters: &[f32],
        examples: &Examples,
        order: &BatchOrder,
        training: Training,
        cancel: &Cancel,
    ) -> Result<FitOutcome, EngineError> {
        let outcome = self.0.fit(parameters, examples, order, training, cancel);
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let name = stat[stat.find('(').unwrap() + 1..stat.rfind(')').unwrap()].to_owned();
        // Field 19 of proc_pid_stat(5), counted behind the name (field 2).
        let nice = stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(16).unwrap().parse().unwrap();
        self.1.send((name, nice)).unwrap();
        outcome
    }

    fn evaluate(&mut self, _: &[f32], _: &Examples, _: &Cancel) -> Result<Evaluation, EngineError> {
        panic!("the test's engine fails")
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_thread_has_a_name_and_the_lowest_priority() {
    let (tell, told) = mpsc::channel();
    let open = move || Ok(Box::new(Probe(open_engine(EngineKind::Candle)?, tell)) as Box<dyn Engine>);
    let trainer = Trainer::start_with(open).await.unwrap();
    let training = Training { batch_size: 64, ..TRAINING };
    let order = BatchOrder::new(1, 1, 1, 64, &training);
    trainer.fit(start(), examples(), order, training, &Cancel::new()).await.unwrap();
    // Thread pools of the libraries below, by the names they give their threads.
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let name = std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap_or_default();
        assert!(!name.starts_with("candle") && !name.starts_with("rayon"), "{name}");
    }
    assert_eq!(told.recv().unwrap(), ("train".to_owned(), 19));
    // A panic of the engine is an error for its caller and for those after it.
    for _ in 0..2 {
        let result = trainer.evaluate(start(), examples(), &Cancel::new()).await;
        assert!(matches!(result, Err(EngineError::Stopped)));
    }
}

#[tokio::test]
async fn an_engine_that_cannot_be_opened_is_an_error() {
    let result = Trainer::start_with(|| Err(EngineError::NoExamples)).await;
    assert!(matches!(result, Err(EngineError::NoExamples)));
}
