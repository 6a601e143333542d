//! What every engine must do, and that engines agree.

use std::time::{Duration, Instant};

use super::super::config::Training;
use super::super::data::{Examples, Source, Split};
use super::super::model::{self, PARAMETERS};
use super::super::train::{BatchOrder, Cancel};
use super::*;

const TRAINING: Training = Training { local_epochs: 1, batch_size: 32, lr: 0.001, momentum: 0.9 };

/// The engines of this build.
fn engines() -> Vec<Box<dyn Engine>> {
    let kinds = [EngineKind::Candle, EngineKind::Torch];
    kinds.into_iter().filter_map(|kind| open_engine(kind).ok()).collect()
}

fn examples(split: Split, range: std::ops::Range<u32>) -> Examples {
    Source::Synthetic { seed: 1 }.read(split, &range.collect::<Vec<_>>()).unwrap()
}

fn order(examples: &Examples, round: u64, training: &Training) -> BatchOrder {
    BatchOrder::new(1, 1, round, examples.len() as u32, training)
}

#[test]
fn the_default_engine_is_always_there() {
    assert!(open_engine(EngineKind::Candle).is_ok());
    if cfg!(not(feature = "torch")) {
        let error = open_engine(EngineKind::Torch).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("--features torch") && error.contains("libtorch-dev"), "{error}");
    }
}

#[test]
fn the_loss_falls() {
    let (train, test) = (examples(Split::Train, 0..1_000), examples(Split::Test, 0..500));
    let training = Training { lr: 0.01, ..TRAINING };
    for mut engine in engines() {
        let mut parameters = model::initial(1);
        let mut losses = Vec::new();
        for round in 1..=4 {
            let fit =
                engine.fit(&parameters, &train, &order(&train, round, &training), training, &Cancel::new());
            let fit = fit.unwrap();
            assert_eq!(fit.examples, 1_000);
            losses.push(fit.loss);
            parameters = fit.parameters;
        }
        let evaluated = engine.evaluate(&parameters, &test, &Cancel::new()).unwrap();
        let accuracy = evaluated.correct as f64 / evaluated.examples as f64;
        assert!(losses[3] < losses[0] - 0.5 && accuracy > 0.3, "{}: {losses:?} {accuracy}", engine.name());
    }
}

#[test]
fn equal_work_has_equal_results() {
    let train = examples(Split::Train, 0..100);
    let order = order(&train, 1, &TRAINING);
    for (mut one, mut two) in engines().into_iter().zip(engines()) {
        let first = one.fit(&model::initial(1), &train, &order, TRAINING, &Cancel::new()).unwrap();
        let second = two.fit(&model::initial(1), &train, &order, TRAINING, &Cancel::new()).unwrap();
        assert_eq!(first, second);
        assert_eq!(first, one.fit(&model::initial(1), &train, &order, TRAINING, &Cancel::new()).unwrap());
    }
}

#[test]
fn cancelling_stops_within_a_batch() {
    let train = examples(Split::Train, 0..200);
    let endless = Training { local_epochs: u32::MAX, ..TRAINING };
    let order = order(&train, 1, &endless);
    for mut engine in engines() {
        let cancel = Cancel::new();
        let remote = cancel.clone();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            remote.cancel();
            Instant::now()
        });
        let result = engine.fit(&model::initial(1), &train, &order, endless, &cancel);
        let stopped = Instant::now();
        assert!(matches!(result, Err(EngineError::Cancelled)));
        // A batch takes milliseconds; the rest is for a busy machine.
        assert!(stopped.duration_since(canceller.join().unwrap()) < Duration::from_secs(2));
        assert!(matches!(engine.evaluate(&model::initial(1), &train, &cancel), Err(EngineError::Cancelled)));
    }
}

#[test]
fn work_that_makes_no_sense_is_refused() {
    let train = examples(Split::Train, 0..10);
    let none = Examples::default();
    for mut engine in engines() {
        let mut fit = |parameters: &[f32], examples: &Examples, of: &Examples, training: Training| {
            let order = order(of, 1, &training);
            engine.fit(parameters, examples, &order, training, &Cancel::new()).unwrap_err()
        };
        let start = model::initial(1);
        assert!(matches!(fit(&start[1..], &train, &train, TRAINING), EngineError::Model(_)));
        assert!(matches!(fit(&[f32::NAN; PARAMETERS], &train, &train, TRAINING), EngineError::Model(_)));
        assert!(matches!(fit(&start, &none, &none, TRAINING), EngineError::NoExamples));
        assert!(matches!(
            fit(&start, &train, &none, TRAINING),
            EngineError::Order { order: 0, examples: 10 }
        ));
        for training in [
            Training { local_epochs: 0, ..TRAINING },
            Training { batch_size: 0, ..TRAINING },
            Training { lr: f64::NAN, ..TRAINING },
            Training { momentum: 1.0, ..TRAINING },
        ] {
            assert!(matches!(fit(&start, &train, &train, training), EngineError::Setting { .. }));
        }
        let error = engine.evaluate(&[1e30; PARAMETERS], &train, &Cancel::new()).unwrap_err();
        assert!(matches!(error, EngineError::Diverged { step: 1, .. }), "{error}");
        let mut fit = |training: Training| {
            let order = order(&train, 1, &training);
            engine.fit(&start, &train, &order, training, &Cancel::new()).unwrap_err()
        };
        let explosive = Training { lr: 1e30, local_epochs: 10, ..TRAINING };
        let error = fit(explosive);
        assert!(matches!(error, EngineError::Diverged { .. } | EngineError::Model(_)), "{error}");
    }
}

#[cfg(feature = "torch")]
#[test]
fn engines_agree_after_twenty_steps() {
    let (train, test) = (examples(Split::Train, 0..640), examples(Split::Test, 0..300));
    // The last batch size is one that the pure Rust engine differentiates in parts.
    for training in [TRAINING, Training { lr: 0.01, ..TRAINING }, Training { batch_size: 70, ..TRAINING }] {
        let order = order(&train, 1, &training);
        let mut results = engines().into_iter().map(|mut engine| {
            let fit = engine.fit(&model::initial(1), &train, &order, training, &Cancel::new()).unwrap();
            let evaluation = engine.evaluate(&fit.parameters, &test, &Cancel::new()).unwrap();
            (fit, evaluation)
        });
        let ((a, a_evaluation), (b, b_evaluation)) = (results.next().unwrap(), results.next().unwrap());
        for (index, (a, b)) in a.parameters.iter().zip(&b.parameters).enumerate() {
            assert!((a - b).abs() <= 1e-5 + 1e-3 * b.abs(), "parameter {index}: {a} and {b}");
        }
        assert!((a.loss - b.loss).abs() < 1e-5, "{} and {}", a.loss, b.loss);
        assert!((a_evaluation.loss_sum - b_evaluation.loss_sum).abs() < 0.01);
    }
}
