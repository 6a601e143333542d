//! Which engines this build has.

use super::config::EngineKind;
use super::engine_candle::CandleEngine;
use super::train::{Engine, EngineError};

/// Makes the engine asked for.
///
/// # Errors
/// [`EngineError::Unavailable`] for torch in a build without the feature `torch`.
pub fn open_engine(kind: EngineKind) -> Result<Box<dyn Engine>, EngineError> {
    match kind {
        EngineKind::Candle => Ok(Box::new(CandleEngine::new())),
        EngineKind::None => Err(EngineError::Unavailable {
            engine: "none",
            remedy: "it does not train; choose the engine 'candle' where somebody shall",
        }),
        #[cfg(feature = "torch")]
        EngineKind::Torch => Ok(Box::new(super::engine_torch::TorchEngine::new())),
        #[cfg(not(feature = "torch"))]
        EngineKind::Torch => Err(EngineError::Unavailable {
            engine: "torch",
            remedy: "install libtorch 1.13 (Debian 12: apt-get install libtorch-dev) and build with \
                     LIBTORCH=/usr cargo build --features torch, or choose the engine 'candle'",
        }),
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
