//! Settings of a key-value run.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use workloads::keyvalue::Freshness;
use workloads::keyvalue::load::Load;
use workloads::keyvalue::once::MAX_MARKS;

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

/// A system of others that serves in place of this suite's nodes, for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// etcd, the program of this name on the PATH; without TLS.
    Etcd,
}

impl Peer {
    /// Its name, also that of its program.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
        }
    }

    /// What installs it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Etcd => "install it (Debian: apt-get install etcd-server), or leave --peer out",
        }
    }

    /// Whether its program can be started here.
    #[must_use]
    pub fn is_installed(self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .any(|folder| rustix::fs::access(folder.join(self.name()), rustix::fs::Access::EXEC_OK).is_ok())
    }
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

/// What stands in front of a leaderboard's nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Balancer {
    /// HAProxy, the program on the PATH, with the configuration in scripts/haproxy.
    Haproxy,
    /// Nothing: voters ask the nodes in turn.
    None,
}

/// Settings of a leaderboard, whose players are the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardPlan {
    /// What stands in front of the nodes.
    pub balancer: Balancer,
}

/// Settings of a key-value run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvPlan {
    /// What clients do.
    pub load: Load,
    /// Who serves in place of this suite's nodes.
    #[serde(default)]
    pub peer: Option<Peer>,
    /// If nodes serve a leaderboard over HTTP, how.
    #[serde(default)]
    pub board: Option<BoardPlan>,
    /// How stale reads may be where they are not linearizable.
    pub staleness_ns: u64,
    /// What is done to nodes meanwhile.
    pub disturbances: Disturbances,
}

impl KvPlan {
    /// Name of the workload, as written in results.
    #[must_use]
    pub const fn workload(&self) -> &'static str {
        if self.board.is_some() { "leaderboard" } else { "kv" }
    }

    /// Votes that a leaderboard's voters cast.
    #[must_use]
    pub fn votes(&self) -> f64 {
        self.load.rate.unwrap_or(0.0) * self.load.duration_ns as f64 / 1e9
    }

    /// Checks that a vote whose outcome is unknown is remembered until the end.
    fn validate_votes(&self) -> Result<(), Usage> {
        if self.load.clients == 0 || self.votes() <= MAX_MARKS as f64 {
            return Ok(());
        }
        let wrong = format!(
            "{:.0} votes; nodes remember {MAX_MARKS} of them, and one repeated after that would count twice",
            self.votes()
        );
        Err(Usage::option(
            "--duration",
            exact_ms(self.load.duration_ns),
            wrong,
            "use a shorter one, or a lower --rate",
        ))
    }

    /// Checks what its parts allow each other.
    ///
    /// # Errors
    /// By option, with its remedy.
    pub fn validate(&self) -> Result<(), Usage> {
        self.load.validate().map_err(|error| {
            let wrong = format!("must be {}", error.range);
            Usage::option(&format!("--{}", error.what), error.given, wrong, "use a value in that range")
        })?;
        self.disturbances.validate()?;
        if self.board.is_some() {
            self.validate_votes()?;
        }
        let Some(peer) = self.peer else { return Ok(()) };
        let refuse = |wrong: &str| Err(Usage::option("--peer", peer.name(), wrong, "leave it out"));
        if self.load.clients == 0 {
            return refuse("it is only asked by this program's clients, and --clients is 0");
        }
        if self.load.freshness != Freshness::Index {
            return refuse("it is only asked for linearizable reads, as with --reads index");
        }
        if !self.disturbances.kinds.is_empty() {
            return refuse("its members are not disturbed");
        }
        Ok(())
    }
}
