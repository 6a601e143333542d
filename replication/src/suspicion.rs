//! How close a node's failure detector is to suspecting another node: for people who look, and for alarms.
//!
//! One number for detectors of every kind: the silence so far, as a share of the silence after which the detector suspects. It is
//! 0 when a sign of life has just come, and 1 or more when the other node is suspected. Phi (Hayashibara and others, 2004) is it
//! times phi's threshold.
//!
//! Nothing depends on it. Deliberately knows no detector.

use std::time::Duration;

use crate::store::NodeId;

/// What this node makes of another one's silence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Suspicion {
    /// The other node.
    pub node: NodeId,
    /// Its silence as a share of that after which it is suspected: 1 and more is suspected.
    pub level: f64,
}

impl Suspicion {
    /// `node` was silent for so long, and is suspected after `timeout`.
    #[must_use]
    pub fn of(node: NodeId, silence: Duration, timeout: Duration) -> Self {
        // Below a nanosecond there is no timeout.
        let level = silence.as_secs_f64() / timeout.as_secs_f64().max(1e-9);
        Self { node, level }
    }

    /// The same of a node that is suspected whatever its silence says, for example because its lifeline ended.
    #[must_use]
    pub fn suspected(self) -> Self {
        Self { level: self.level.max(1.0), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_measured_in_timeouts() {
        let of = |silence_ms, timeout_ms| {
            let ms = Duration::from_millis;
            Suspicion::of(NodeId(2), ms(silence_ms), ms(timeout_ms))
        };
        assert_eq!(of(0, 1000).level, 0.0);
        assert_eq!(of(1500, 1000).level, 1.5);
        assert!(of(1, 0).level.is_finite());
        assert_eq!((of(10, 1000).suspected().level, of(1500, 1000).suspected().level), (1.0, 1.5));
    }
}
