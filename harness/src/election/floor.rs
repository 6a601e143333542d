//! The least time that detection can take: analytic, from the timers and seeded draws; nothing of it is measured but the age of
//! the last heartbeat. docs/METHODOLOGY.md has the formula.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use crate::plan::{BackendPlan, Scheme};

/// What bounds one trial from below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    /// Survivors whose deadlines compete.
    pub(super) eligible: u64,
    /// Whether the end of a lifeline tells, so that no deadline has to pass.
    pub(super) told_at_once: bool,
}

/// How many survivors can be the first to stand and be elected: with equal logs every surviving voter, with unequal ones those
/// with the longer log (`ahead`); in a fixed order of succession, or at one timeout for all, one.
pub(super) fn eligible(plan: &BackendPlan, nodes: u64, ahead: Option<u64>) -> u64 {
    let voters = match plan.scheme {
        Scheme::Raft => nodes,
        Scheme::RaftSubset { voters, .. } => u64::from(voters),
        _ => return 1,
    };
    ahead.unwrap_or(voters - 1)
}

/// The earliest of the eligible survivors' deadlines after the stroke, in ns: each draws from the detection window, as the
/// nodes do, counted from a heartbeat that was `heartbeat_age_ns` old; without one, its age is drawn from the interval.
pub(super) fn floor_ns(
    plan: &BackendPlan,
    bound: Bound,
    heartbeat_age_ns: Option<u64>,
    dice: &mut ChaCha8Rng,
) -> u64 {
    let (low, high) = plan.detection_ns();
    let draws =
        (0..bound.eligible.max(1)).map(|_| if low < high { dice.random_range(low..high) } else { low });
    let earliest = draws.min().unwrap_or(low);
    let age = dice.random_range(0..plan.heartbeat_ns.max(1));
    if bound.told_at_once {
        return 0;
    }
    earliest.saturating_sub(heartbeat_age_ns.unwrap_or(age))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::stats::median;

    const MS: u64 = 1_000_000;

    fn plan(scheme: Scheme) -> BackendPlan {
        BackendPlan {
            scheme,
            window_lo_ns: 150 * MS,
            window_hi_ns: 300 * MS,
            heartbeat_ns: 30 * MS,
            ..crate::plan::tests::plan(5).backend
        }
    }

    /// The minimum of four draws has the median 150 + 150 (1 - 0.5^(1/4)) = 173.9 ms, and a heartbeat is 15 ms old at the
    /// median.
    #[test]
    fn the_earliest_of_four_draws_less_the_heartbeat_s_age_is_about_160_ms() {
        let plan = plan(Scheme::Raft);
        let bound = Bound { eligible: eligible(&plan, 5, None), told_at_once: false };
        assert_eq!(bound.eligible, 4);
        let mut dice = ChaCha8Rng::seed_from_u64(1);
        let floors: Vec<u64> = (0..20_000).map(|_| floor_ns(&plan, bound, None, &mut dice)).collect();
        let median = median(&floors).unwrap();
        assert!((158 * MS..162 * MS).contains(&median), "{median}");
        assert!(floors.iter().all(|floor| (120 * MS..300 * MS).contains(floor)));
        let fixed = floor_ns(&plan, bound, Some(100 * MS), &mut dice);
        assert!((50 * MS..200 * MS).contains(&fixed), "{fixed}");
    }

    #[test]
    fn fewer_survivors_are_eligible_where_fewer_can_win() {
        let subset = plan(Scheme::RaftSubset { voters: 3, voter_grace_ns: 1 });
        assert_eq!(eligible(&subset, 9, None), 2);
        assert_eq!(eligible(&plan(Scheme::Raft), 5, Some(2)), 2);
        assert_eq!(eligible(&plan(Scheme::Backup { backups: 2 }), 5, None), 1);
    }

    #[test]
    fn gossip_has_one_timeout_and_a_lifeline_none() {
        let gossip =
            plan(Scheme::Gossip { holders: 3, fan_out: 2, phi_milli: 7500, detector: Default::default() });
        let mut dice = ChaCha8Rng::seed_from_u64(1);
        let bound = Bound { eligible: 1, told_at_once: false };
        assert_eq!(floor_ns(&gossip, bound, Some(5 * MS), &mut dice), 220 * MS);
        assert_eq!(floor_ns(&gossip, Bound { told_at_once: true, ..bound }, Some(5 * MS), &mut dice), 0);
    }
}
