//! Settings of a key-value run.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use workloads::keyvalue::load::Load;

use crate::exit::Usage;
use crate::units::exact_ms;

/// What is done to a node now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Disturbance {
    /// SIGKILL; the node is started again.
    Kill,
    /// SIGSTOP, then SIGCONT.
    Stop,
    /// No datagram passes between the node and the others. Clients still reach it.
    Partition,
}

/// Which disturbances, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disturbances {
    /// One of these each time; none: no disturbances.
    pub kinds: Vec<Disturbance>,
    /// From the begin of one to the begin of the next.
    pub every_ns: u64,
    /// How long each lasts.
    pub lasts_ns: u64,
}

impl Disturbances {
    /// Checks that one ends before the next begins.
    ///
    /// # Errors
    /// By option, with its remedy.
    pub fn validate(&self) -> Result<(), Usage> {
        if !self.kinds.is_empty() && (self.lasts_ns == 0 || self.lasts_ns >= self.every_ns) {
            let wrong =
                format!("it has to last, and to end before the next one, every {}", exact_ms(self.every_ns));
            return Err(Usage::option(
                "--disturb-for",
                exact_ms(self.lasts_ns),
                wrong,
                "use a shorter one, or a longer --disturb-every",
            ));
        }
        Ok(())
    }
}

/// Settings of a key-value run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvPlan {
    /// What clients do.
    pub load: Load,
    /// How stale reads may be where they are not linearizable.
    pub staleness_ns: u64,
    /// What is done to nodes meanwhile.
    pub disturbances: Disturbances,
}
