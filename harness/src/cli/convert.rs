//! From options to a validated plan, and back to the command that repeats it.

use std::net::Ipv4Addr;
use std::time::Duration;

use clap::ValueEnum;
use replication::NodeId;
use workloads::federated::model::ENCODED_BYTES;
use workloads::federated::{Config, EngineKind, Profile, Training};

use super::{BackendArg, CaptureArg, DurabilityArg, EngineArg, PlacementArg, ProfileArg, RunArgs, Span};
use crate::capture::CaptureMode;
use crate::exit::Usage;
use crate::fault::Kind;
use crate::link::{self, Link};
use crate::place::inventory::{self, Shelf};
use crate::plan::{self, Durability, Member, PlacementKind, Plan, Trial};
use crate::resources::Override;
use crate::units::MAX_DURATION;

/// How many nodes there are by default.
const DEFAULT_NODES: u64 = 10;
/// What `--round-deadline` is by default, unless the parameters need longer.
const SHORTEST_ROUND_DEADLINE: Duration = Duration::from_secs(120);
/// Nodes that may be added to a cluster that others can reach.
const ADDABLE: u64 = 4;
/// What all links together carry at least, for that.
const SLOWEST_BYTES_PER_MS: u64 = 1000;

impl RunArgs {
    /// The trial these options describe. `random_seed` is used where no seed was given.
    ///
    /// # Errors
    /// The first contradiction, by option, with its remedy.
    pub fn to_trial(&self, random_seed: u64) -> Result<Trial, Usage> {
        plan::validate_nodes(self.nodes())?;
        let shelf = self.shelf()?;
        let network = self.effective_network();
        if network.octets()[3] != 0 {
            let wrong = "not the first address of a /24";
            return Err(Usage::option(
                "--network",
                network,
                wrong,
                "let it end in .0, for example 127.0.0.0",
            ));
        }
        let durability = self.durability()?;
        let (newcomers, spares) = (self.newcomers(), self.spares(&durability));
        let members = self.nodes() + newcomers + spares;
        if members > plan::MAX_NODES {
            let wrong = format!(
                "with {newcomers} that join and {spares} that come back under a new id more than a /24 of addresses has"
            );
            let most = plan::MAX_NODES.saturating_sub(newcomers + spares);
            return Err(Usage::option("--nodes", self.nodes(), wrong, format_args!("use at most {most}")));
        }
        let (job, backend) = (self.job(random_seed), self.store.to_plan(self.nodes())?);
        let trial = Trial {
            plan: Plan {
                kv: self.kv.to_plan(backend.backend(), job.seed)?,
                job,
                backend,
                suitability: self.suitability(shelf.as_ref()),
                placement: match self.placement {
                    PlacementArg::Process => PlacementKind::Process,
                    PlacementArg::Netns => PlacementKind::Netns,
                    PlacementArg::Ssh => PlacementKind::Ssh,
                },
                members: match &shelf {
                    None => Plan::members_in(network, members),
                    Some(shelf) => members_on(shelf, members)?,
                },
                founders: self.nodes(),
                spares,
                learning_port: self.learning_port,
                replication_port: self.replication_port,
                link: self.link.as_deref().map_or(Ok(Link::default()), link::load)?,
                capture: match self.capture {
                    CaptureArg::Off => CaptureMode::Off,
                    CaptureArg::Auto => CaptureMode::Auto,
                    CaptureArg::Required => CaptureMode::Required,
                },
                disk: None,
                metrics: self.metrics,
            },
            durability,
            faults: self.fault.clone(),
            changes: self.member.clone(),
            shelf,
            out: self.out.clone(),
            json: self.json,
            quiet: self.quiet,
        };
        trial.validate()?;
        Ok(trial)
    }

    /// How many nodes there are, unless the hosts of an inventory were counted ([`with_hosts`](Self::with_hosts)).
    #[must_use]
    pub fn nodes(&self) -> u64 {
        self.nodes.unwrap_or(DEFAULT_NODES)
    }

    /// These options with as many nodes as there are hosts for them, where they do not say how many.
    ///
    /// # Errors
    /// An inventory that cannot be used.
    pub fn with_hosts(mut self) -> Result<Self, Usage> {
        if let (None, Some(shelf)) = (self.nodes, self.shelf()?) {
            let others = self.newcomers() + self.spares(&self.durability()?);
            self.nodes = Some((shelf.hosts.len() as u64).saturating_sub(others));
        }
        Ok(self)
    }

    /// The hosts of the inventory, if nodes run on them.
    fn shelf(&self) -> Result<Option<Shelf>, Usage> {
        let over_ssh = self.placement == PlacementArg::Ssh;
        let Some(file) = &self.inventory else {
            if over_ssh {
                let wrong = "nothing says where the hosts are";
                return Err(Usage::option("--placement", "ssh", wrong, "add --inventory FILE"));
            }
            return Ok(None);
        };
        if !over_ssh {
            let wrong = format!("not for --placement {}", word(self.placement));
            return Err(Usage::option("--inventory", file.display(), wrong, "add --placement ssh"));
        }
        if let Some(network) = self.network {
            let wrong = "the inventory says which addresses nodes have";
            return Err(Usage::option("--network", network, wrong, "leave it out"));
        }
        let refuse = |error| {
            let remedy = "correct the file; docs/BOARDS.md explains it";
            Usage::option("--inventory", file.display(), error, remedy)
        };
        let hosts = inventory::load(file, self.group.as_deref()).map_err(refuse)?;
        Ok(Some(Shelf { file: file.clone(), ssh_config: self.ssh_config.clone(), hosts }))
    }

    /// What nodes are said to have to offer: by option, else by the inventory.
    fn suitability(&self, shelf: Option<&Shelf>) -> Vec<Override> {
        let mut all = self.store.suitability.clone();
        for (node, host) in (1..).map(NodeId).zip(shelf.iter().flat_map(|shelf| &shelf.hosts)) {
            let given = Override {
                node,
                cpu_mb_per_s: host.cpu_mb_per_s,
                memory_bytes: host.memory_bytes,
                bandwidth_bits_per_s: host.bandwidth_bits_per_s,
                mains_power: host.mains_power,
            };
            let nothing = Override {
                node,
                cpu_mb_per_s: None,
                memory_bytes: None,
                bandwidth_bits_per_s: None,
                mains_power: None,
            };
            if given != nothing && !all.iter().any(|other| other.node == node) && node.0 <= self.nodes() {
                all.push(given);
            }
        }
        all
    }

    /// How many nodes join.
    fn newcomers(&self) -> u64 {
        let joining = self.member.iter().filter(|change| change.leaver().is_none()).count() as u64;
        // Whom `harness kv add-node` adds: on this machine, where a node needs no host of its own.
        let adds = self.store.backend == BackendArg::Raft && self.placement != PlacementArg::Ssh;
        let addable = if adds && self.kv.cluster_file.is_some() { ADDABLE } else { 0 };
        joining + addable
    }

    /// How many nodes may come back under a new id, because they lost their memory.
    fn spares(&self, durability: &Durability) -> u64 {
        if *durability != Durability::Memory {
            return 0;
        }
        let most = self.nodes() + self.newcomers();
        let restarts = self.fault.iter().filter(|fault| matches!(fault.kind, Kind::Restart { .. }));
        restarts.map(|fault| fault.who.most_of(most as usize) as u64).sum()
    }

    fn durability(&self) -> Result<Durability, Usage> {
        match (self.effective_durability(), &self.store_dir) {
            (DurabilityArg::Disk, dir) => Ok(Durability::Disk { dir: dir.clone() }),
            (DurabilityArg::Memory, None) => Ok(Durability::Memory),
            (DurabilityArg::Memory, Some(dir)) => {
                let remedy = "add --durability disk, or leave it out";
                Err(Usage::option("--store", dir.display(), "nothing is stored on disk", remedy))
            }
        }
    }

    /// In memory, unless said otherwise or the backend is nothing without a disk.
    fn effective_durability(&self) -> DurabilityArg {
        let default = match self.store.backend {
            _ if self.kv.peer.is_some() => DurabilityArg::Disk,
            BackendArg::Local => DurabilityArg::Disk,
            _ => DurabilityArg::Memory,
        };
        self.durability.unwrap_or(default)
    }

    fn job(&self, random_seed: u64) -> Config {
        Config {
            rounds: self.rounds,
            training: Training {
                local_epochs: self.local_epochs,
                batch_size: self.batch_size,
                lr: self.lr,
                momentum: self.momentum,
            },
            examples_per_node: self.examples_per_node,
            test_examples_per_node: self.test_examples_per_node,
            partition: self.partition.0,
            data: self.data.clone(),
            seed: self.seed.unwrap_or(random_seed),
            profile: match self.profile {
                ProfileArg::Once => Profile::Once,
                ProfileArg::Paper => Profile::Paper,
                ProfileArg::Prototype => Profile::Prototype,
                ProfileArg::Workers => Profile::Workers,
            },
            min_fit_clients: self.effective_min_fit_clients(),
            round_deadline_ms: u64::try_from(self.effective_round_deadline().0.as_millis())
                .unwrap_or(u64::MAX),
            aggregator_trains: self.aggregator_trains,
            resend: self.resend,
            reuse: !self.no_reuse,
            stateless: self.store.stateless,
            policy: self.store.policy.0,
            engine: match self.engine {
                EngineArg::Candle => EngineKind::Candle,
                EngineArg::Torch => EngineKind::Torch,
                EngineArg::None => EngineKind::None,
            },
            parameter_bytes: self.effective_parameter_bytes(),
        }
    }

    /// Where the placement's addresses usually are, unless said otherwise.
    fn effective_network(&self) -> Ipv4Addr {
        self.network.unwrap_or(match self.placement {
            PlacementArg::Process => Ipv4Addr::new(127, 0, 0, 0),
            PlacementArg::Netns | PlacementArg::Ssh => Ipv4Addr::new(10, 0, 0, 0),
        })
    }

    /// The model's, unless said otherwise.
    fn effective_parameter_bytes(&self) -> u64 {
        self.parameter_bytes.map_or(ENCODED_BYTES as u64, |size| size.0)
    }

    /// Time for the parameters to go to all workers and back over a slow link, unless said otherwise.
    fn effective_round_deadline(&self) -> Span {
        self.round_deadline.unwrap_or_else(|| {
            let workers = plan::workers_of(self.nodes(), self.aggregator_trains);
            let bytes = self.effective_parameter_bytes().saturating_mul(2 * workers);
            let travel = Duration::from_millis(bytes / SLOWEST_BYTES_PER_MS);
            Span(travel.max(SHORTEST_ROUND_DEADLINE).min(MAX_DURATION))
        })
    }

    /// Half of the workers, rounded up, unless said otherwise.
    fn effective_min_fit_clients(&self) -> u32 {
        let workers = plan::workers_of(self.nodes(), self.aggregator_trains);
        self.min_fit_clients.unwrap_or(workers.div_ceil(2) as u32)
    }

    /// The command that repeats the trial: every option spelled out, so that a later change of a default does not
    /// change it. Without --store: what is there now is the state at the end.
    #[must_use]
    pub fn repeat_command(&self, seed: u64) -> Vec<String> {
        let mut words: Vec<String> = ["harness", "run"].map(String::from).to_vec();
        let mut option = |name: &str, value: &dyn std::fmt::Display| {
            words.extend([format!("--{name}"), value.to_string()])
        };
        for (name, value) in self.store.repeat(self.nodes()) {
            option(name, &value);
        }
        let backend = self.store.to_plan(self.nodes()).map(|plan| plan.backend());
        for (name, value) in backend.map(|backend| self.kv.repeat(backend, seed)).unwrap_or_default() {
            option(name, &value);
        }
        option("durability", &word(self.effective_durability()));
        option("profile", &word(self.profile));
        option("nodes", &self.nodes());
        option("rounds", &self.rounds);
        option("min-fit-clients", &self.effective_min_fit_clients());
        option("round-deadline", &self.effective_round_deadline());
        option("seed", &seed);
        option("local-epochs", &self.local_epochs);
        option("batch-size", &self.batch_size);
        option("lr", &self.lr);
        option("momentum", &self.momentum);
        option("engine", &word(self.engine));
        if self.engine == EngineArg::None {
            option("parameter-bytes", &self.effective_parameter_bytes());
        }
        if let Some(data) = &self.data {
            option("data", &data.display());
        }
        option("examples-per-node", &self.examples_per_node);
        option("test-examples-per-node", &self.test_examples_per_node);
        option("partition", &self.partition);
        option("placement", &word(self.placement));
        if let Some(inventory) = &self.inventory {
            option("inventory", &inventory.display());
        } else {
            option("network", &self.effective_network());
        }
        if let Some(group) = &self.group {
            option("group", group);
        }
        if let Some(config) = &self.ssh_config {
            option("ssh-config", &config.display());
        }
        if let Some(link) = &self.link {
            option("link", link);
        }
        option("capture", &word(self.capture));
        option("learning-port", &self.learning_port);
        option("replication-port", &self.replication_port);
        for fault in &self.fault {
            option("fault", fault);
        }
        for change in &self.member {
            option("member", change);
        }
        if let Some(at) = &self.metrics {
            option("metrics", at);
        }
        option("out", &self.out.display());
        for (flag, given) in [
            ("--aggregator-trains", self.aggregator_trains),
            ("--resend", self.resend),
            ("--no-reuse", self.no_reuse),
            ("--fast-failover", self.store.fast_failover),
            ("--stateless", self.store.stateless),
        ] {
            if given {
                words.push(flag.into());
            }
        }
        words
    }
}

/// The first `count` hosts as nodes.
fn members_on(shelf: &Shelf, count: u64) -> Result<Vec<Member>, Usage> {
    let hosts = shelf.hosts.len() as u64;
    if hosts < count {
        let wrong = format!(
            "it lists {hosts} hosts, and the run needs {count} (those that join or come back included)"
        );
        let file = shelf.file.display();
        return Err(Usage::option("--inventory", file, wrong, "use fewer --nodes, or add hosts"));
    }
    let nodes = (1..=count).map(NodeId).zip(&shelf.hosts);
    Ok(nodes.map(|(node, host)| Member { node, ip: host.address }).collect())
}

pub(super) fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// `words` as one line that a POSIX shell reads back as these words.
#[must_use]
pub fn shell_line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    let quote = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// The words of a line that [`shell_line`] wrote; none if it is not one.
#[must_use]
pub fn shell_words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let (mut quoted, mut letters) = (false, line.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if !quoted => word.get_or_insert_default().push(letters.next()?),
            ' ' if !quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    pub(in crate::cli) fn parse(words: &[&str]) -> RunArgs {
        let words = ["harness", "run"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_the_paper_s_set_up() {
        let trial = parse(&[]).to_trial(42).unwrap();
        let job = &trial.plan.job;
        assert_eq!((trial.plan.members.len(), job.rounds, job.seed), (10, 5, 42));
        assert_eq!((job.training.lr, job.training.momentum, job.training.batch_size), (0.001, 0.9, 32));
        assert_eq!((job.min_fit_clients, job.round_deadline_ms), (5, 120_000), "half of nine, rounded up");
        assert!(job.reuse && !job.resend);
        assert_eq!(trial.plan.members[0].ip.to_string(), "127.0.0.11");
    }

    #[test]
    fn the_repeating_command_describes_the_same_trial() {
        let args = parse(&[
            "--nodes",
            "4",
            "--rounds",
            "2",
            "--partition",
            "dirichlet:0.5",
            "--window",
            "150-300",
            "--heartbeat",
            "30",
            "--lr",
            "0.01",
            "--fault",
            "kill@aggregator,round:1",
            "--fault",
            "kill@node:2,round:2",
            "--member",
            "join@round:1",
            "--member",
            "leave@aggregator,random:2",
            "--aggregator-trains",
            "--resend",
            "--payload",
            "digest",
            "--profile",
            "paper",
            "--policy",
            "rotate:2.5",
            "--round-deadline",
            "1.5s",
            "--network",
            "127.4.4.0",
            "--min-fit-clients",
            "1",
            "--out",
            "a b",
        ]);
        let words = args.repeat_command(99);
        let again = parse(&words[2..].iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(again.to_trial(1).unwrap(), args.to_trial(99).unwrap());
        assert_eq!(again.repeat_command(99), words);
    }

    #[test]
    fn nodes_and_network_are_checked_before_anything_is_derived() {
        for (words, start) in [
            (["--nodes", "0"], "--nodes 0:"),
            (["--nodes", "18446744073709551615"], "--nodes 18446744073709551615:"),
            (["--network", "127.0.0.7"], "--network 127.0.0.7:"),
            (["--network", "10.0.0.0"], "--network 10.0.0.11:"),
        ] {
            let message = parse(&words).to_trial(1).unwrap_err().to_string();
            assert!(message.starts_with(start), "{message}");
        }
    }

    #[test]
    fn parameters_without_training_have_any_size_and_the_deadline_follows() {
        let args = parse(&["--engine", "none", "--nodes", "4", "--parameter-bytes", "45MB"]);
        let job = args.to_trial(1).unwrap().plan.job;
        assert_eq!((job.parameter_bytes, job.round_deadline_ms), (45_000_000, 270_000));
        let repeat = args.repeat_command(1);
        let again = parse(&repeat[2..].iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(again.to_trial(2).unwrap().plan.job, job);
        // As many nodes as there are addresses: no shard has to go round.
        let many = parse(&["--engine", "none", "--nodes", "244"]).to_trial(1).unwrap();
        assert_eq!(many.plan.job.parameter_bytes, 248_024);
        for (words, start) in [
            (
                &["--parameter-bytes", "64kB"][..],
                "--parameter-bytes 64000: the model that is trained has 248024",
            ),
            (&["--engine", "none", "--parameter-bytes", "3"], "--parameter-bytes 3: not a multiple of 4"),
            (
                &["--engine", "none", "--parameter-bytes", "1GB"],
                "--parameter-bytes 1000000000: not a multiple of 4",
            ),
            (&["--engine", "none", "--data", "x"], "--data x: nobody trains on it"),
        ] {
            let message = parse(words).to_trial(1).unwrap_err().to_string();
            assert!(message.starts_with(start), "{message}");
        }
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        let words = ["a b", "it's", "plain-1.5", ""].map(String::from);
        assert_eq!(shell_line(&words), r"'a b' 'it'\''s' plain-1.5 ''");
        assert_eq!(shell_words(&shell_line(&words)).as_deref(), Some(&words[..]));
        assert_eq!(shell_words("'open"), None);
    }
    proptest::proptest! {
        #[test]
        fn any_words_are_read_back(words in proptest::collection::vec("(?s)[a' \\\\\n.]{0,6}", 0..5)) {
            proptest::prop_assert_eq!(shell_words(&shell_line(&words)), Some(words));
        }
    }
}
