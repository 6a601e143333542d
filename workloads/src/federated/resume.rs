//! Where a job continues: pure decisions from the newest acknowledged checkpoint.

use replication::Phase;

use super::config::Profile;

/// What an aggregator does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Have the workers train, average.
    Fit,
    /// Have the workers evaluate what was averaged.
    Evaluate,
}

/// A position in the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) round: u64,
    pub(crate) step: Step,
}

/// Where to continue after `latest` was acknowledged and the rounds up to `finished` were evaluated: a round that was
/// averaged is never trained again.
pub(crate) fn after(latest: Option<(u64, Phase)>, finished: u64) -> Position {
    match latest {
        Some((round, Phase::AggregateFit | Phase::ConfigureEvaluate)) if round <= finished => {
            Position { round: round + 1, step: Step::Fit }
        }
        None => Position { round: 1, step: Step::Fit },
        Some((round, Phase::ConfigureFit)) => Position { round, step: Step::Fit },
        Some((round, Phase::AggregateFit | Phase::ConfigureEvaluate)) => {
            Position { round, step: Step::Evaluate }
        }
    }
}

/// Whether the global state is written at `phase`.
pub(crate) fn writes_at(profile: Profile, phase: Phase) -> bool {
    match profile {
        Profile::Once | Profile::Workers => phase == Phase::AggregateFit,
        Profile::Paper | Profile::Prototype => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_averaged_round_is_not_trained_again() {
        assert_eq!(after(None, 0), Position { round: 1, step: Step::Fit });
        for phase in [Phase::AggregateFit, Phase::ConfigureEvaluate] {
            assert_eq!(after(Some((7, phase)), 6), Position { round: 7, step: Step::Evaluate });
        }
        assert_eq!(after(Some((8, Phase::ConfigureFit)), 7), Position { round: 8, step: Step::Fit });
    }

    #[test]
    fn a_round_finished_before_a_hand_over_is_not_evaluated_again() {
        assert_eq!(after(Some((7, Phase::AggregateFit)), 7), Position { round: 8, step: Step::Fit });
    }
}
