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

/// Where to continue after `latest` was acknowledged: a round that was averaged is never trained again.
pub(crate) fn after(latest: Option<(u64, Phase)>) -> Position {
    match latest {
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
        assert_eq!(after(None), Position { round: 1, step: Step::Fit });
        for phase in [Phase::AggregateFit, Phase::ConfigureEvaluate] {
            assert_eq!(after(Some((7, phase))), Position { round: 7, step: Step::Evaluate });
        }
        assert_eq!(after(Some((8, Phase::ConfigureFit))), Position { round: 8, step: Step::Fit });
    }
}
