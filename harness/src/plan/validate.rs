//! What can be wrong with a plan: pure. Every contradiction is named by option, value and remedy.

use std::net::Ipv4Addr;

use replication::Payload;
use replication::store::MAX_PARAMETER_BYTES;
use workloads::federated::model::ENCODED_BYTES;
use workloads::federated::{EngineKind, Partition, Policy, Profile};

use super::{
    Backend, BackendPlan, MAX_NODES, MAX_ROUNDS, PlacementKind, Plan, Scheme, TEST_EXAMPLES, TRAIN_EXAMPLES,
};
use crate::capture::CaptureMode;
use crate::exit::Usage;
use crate::units::exact_ms;

/// Fewest intervals of silence, in thousandths, after which gossip may suspect a node.
const MIN_PHI_MILLI: u32 = 2000;

impl Plan {
    /// Checks everything that can be checked without asking the machine.
    ///
    /// # Errors
    /// The first contradiction, by option, with its remedy.
    pub fn validate(&self) -> Result<(), Usage> {
        self.validate_kv()?;
        self.validate_size()?;
        if self.job.engine != EngineKind::None && self.kv.is_none() {
            self.validate_data()?;
            self.validate_training()?;
        }
        self.validate_rounds()?;
        self.validate_window()?;
        self.validate_heartbeat()?;
        self.validate_scheme()?;
        self.validate_policy()?;
        self.validate_suitability()?;
        self.validate_addresses()
    }

    /// Parameters have the model's size, unless nobody computes with them.
    fn validate_size(&self) -> Result<(), Usage> {
        let bytes = self.job.parameter_bytes;
        let refuse = |wrong: &dyn std::fmt::Display, remedy: &str| {
            Err(Usage::option("--parameter-bytes", bytes, wrong, remedy))
        };
        if self.job.engine != EngineKind::None {
            if bytes != ENCODED_BYTES as u64 {
                let wrong = format!("the model that is trained has {ENCODED_BYTES}");
                return refuse(&wrong, "leave it out, or use --engine none");
            }
            return Ok(());
        }
        if let Some(data) = &self.job.data {
            let wrong = "nobody trains on it with --engine none";
            return Err(Usage::option(
                "--data",
                data.display(),
                wrong,
                "leave it out, or choose another engine",
            ));
        }
        if !bytes.is_multiple_of(4) || bytes == 0 || bytes > MAX_PARAMETER_BYTES {
            let wrong = format!("not a multiple of 4 from 4 to {MAX_PARAMETER_BYTES}");
            return refuse(&wrong, "use for example 64kB or 45MB");
        }
        Ok(())
    }

    /// What a key-value run does not do.
    fn validate_kv(&self) -> Result<(), Usage> {
        let Some(kv) = &self.kv else { return Ok(()) };
        let workload = kv.workload();
        // Its clients, and a balancer, run beside the controller.
        let refused = match self.placement {
            PlacementKind::Netns => Some(("netns", "its clients would be outside of the namespaces")),
            PlacementKind::Ssh if kv.board.is_some() => {
                Some(("ssh", "its balancer is for nodes of this machine"))
            }
            PlacementKind::Ssh if kv.peer.is_some() => Some(("ssh", "a peer is started on this machine")),
            PlacementKind::Process | PlacementKind::Ssh => None,
        };
        if let Some((placement, reason)) = refused {
            let wrong = format!("not for --workload {workload}: {reason}");
            return Err(Usage::option("--placement", placement, wrong, "use --placement process"));
        }
        if self.capture == CaptureMode::Required {
            let wrong = format!("not for --workload {workload}: it captures nothing");
            return Err(Usage::option("--capture", "required", wrong, "leave it out"));
        }
        Ok(())
    }

    fn validate_training(&self) -> Result<(), Usage> {
        let training = &self.job.training;
        let examples = self.job.examples_per_node;
        if training.local_epochs == 0 {
            return Err(Usage::option("--local-epochs", 0, "a worker would not train", "use 1 or more"));
        }
        if training.batch_size == 0 {
            return Err(Usage::option("--batch-size", 0, "a batch needs an example", "use 1 or more"));
        }
        if training.batch_size > examples {
            return Err(Usage::option(
                "--batch-size",
                training.batch_size,
                format_args!("more than the {examples} examples of a worker"),
                "use a smaller batch or more --examples-per-node",
            ));
        }
        if !(training.lr.is_finite() && training.lr > 0.0) {
            return Err(Usage::option("--lr", training.lr, "not a positive number", "use for example 0.001"));
        }
        if !(0.0..1.0).contains(&training.momentum) {
            return Err(Usage::option(
                "--momentum",
                training.momentum,
                "outside of [0, 1)",
                "use for example 0.9",
            ));
        }
        if let Partition::Dirichlet { alpha } = self.job.partition
            && !(alpha.is_finite() && alpha > 0.0)
        {
            let wrong = "alpha must be a number greater than 0";
            return Err(Usage::option(
                "--partition",
                format_args!("dirichlet:{alpha}"),
                wrong,
                "use for example 0.5, or iid",
            ));
        }
        Ok(())
    }

    fn validate_data(&self) -> Result<(), Usage> {
        for (option, per_node, available) in [
            ("--examples-per-node", self.job.examples_per_node, TRAIN_EXAMPLES),
            ("--test-examples-per-node", self.job.test_examples_per_node, TEST_EXAMPLES),
        ] {
            if per_node == 0 {
                return Err(Usage::option(option, 0, "a worker needs data", "use 1 or more"));
            }
            // Any node can become the aggregator, so every node has a shard of its own.
            let nodes = self.devices().len() as u64;
            let needed = u64::from(per_node) * nodes;
            if needed > available {
                let most = available / u64::from(per_node);
                return Err(Usage::option(
                    "--nodes",
                    nodes,
                    format_args!(
                        "{nodes} nodes with {per_node} examples ({option}) need {needed}, the data has {available}"
                    ),
                    format_args!("use at most {} {option} or {most} --nodes", available / nodes),
                ));
            }
        }
        Ok(())
    }

    fn validate_rounds(&self) -> Result<(), Usage> {
        let job = &self.job;
        if job.rounds == 0 || job.rounds > MAX_ROUNDS {
            let remedy = format!("use 1 to {MAX_ROUNDS}");
            return Err(Usage::option("--rounds", job.rounds, "outside of what a run can do", remedy));
        }
        let (clients, workers) = (job.min_fit_clients, self.workers());
        if clients == 0 {
            return Err(Usage::option("--min-fit-clients", 0, "a round needs a result", "use 1 or more"));
        }
        if u64::from(clients) > workers {
            return Err(Usage::option(
                "--min-fit-clients",
                clients,
                format_args!("there are only {workers} workers"),
                format_args!("use at most {workers}"),
            ));
        }
        if job.round_deadline_ms == 0 {
            return Err(Usage::option(
                "--round-deadline",
                "0s",
                "no worker could answer",
                "use for example 120s",
            ));
        }
        Ok(())
    }

    fn validate_window(&self) -> Result<(), Usage> {
        let BackendPlan { window_lo_ns: low, window_hi_ns: high, .. } = self.backend;
        if low == 0 || low >= high {
            let window = format!("{}-{}", exact_ms(low), exact_ms(high));
            let wrong = "the low end must be greater than 0 and below the high end";
            return Err(Usage::option("--window", window, wrong, "use for example 1000-2000ms"));
        }
        Ok(())
    }

    fn validate_heartbeat(&self) -> Result<(), Usage> {
        let BackendPlan { window_lo_ns: low, window_hi_ns: high, heartbeat_ns: heartbeat, .. } = self.backend;
        let gossips = self.backend.backend() == Backend::Gossip;
        let (option, example) =
            if gossips { ("--gossip-interval", "250ms") } else { ("--heartbeat", "100ms") };
        if heartbeat < 1_000_000 {
            let remedy = format!("use for example {example}");
            return Err(Usage::option(option, exact_ms(heartbeat), "below 1ms", remedy));
        }
        // Gossip's own bound is on phi.
        if !gossips && heartbeat >= low / 2 {
            let window = format!("{}-{}", exact_ms(low), exact_ms(high));
            return Err(Usage::option(
                option,
                exact_ms(heartbeat),
                format_args!(
                    "not below half of the low end of --window {window}: one late heartbeat would start an election"
                ),
                format_args!("use less than {} or a later --window", exact_ms(low / 2)),
            ));
        }
        Ok(())
    }

    fn validate_scheme(&self) -> Result<(), Usage> {
        let nodes = self.founders;
        let count = |option: &str, count: u32, most: u64, wrong: &str| {
            if (1..=most).contains(&u64::from(count)) {
                return Ok(());
            }
            let wrong = if count == 0 { wrong.into() } else { format!("there are only {nodes} nodes") };
            Err(Usage::option(option, count, wrong, format_args!("use 1 to {most}")))
        };
        match self.backend.scheme {
            Scheme::None | Scheme::Local | Scheme::Raft => Ok(()),
            Scheme::RaftSubset { voters, voter_grace_ns } => {
                count("--voters", voters, nodes, "nobody would vote")?;
                let least = self.backend.heartbeat_ns.saturating_mul(2);
                if voter_grace_ns < least {
                    let wrong = "a voter would be replaced for one late heartbeat";
                    let remedy = format!("use {} or more", exact_ms(least));
                    return Err(Usage::option("--voter-grace", exact_ms(voter_grace_ns), wrong, remedy));
                }
                Ok(())
            }
            Scheme::Gossip { holders, fan_out, phi_milli, .. } => {
                count("--holders", holders, nodes, "a checkpoint would be on no node")?;
                count("--fan-out", fan_out, nodes - 1, "nobody would gossip")?;
                self.digest_only("it is capped, and one large value holds back later ones")?;
                if phi_milli < MIN_PHI_MILLI {
                    let phi = f64::from(phi_milli) / 1000.0;
                    let wrong = "one late sign of life would make a node suspected";
                    let remedy = "use 2 or more, a later --window or a shorter --gossip-interval";
                    return Err(Usage::option("--phi", phi, wrong, remedy));
                }
                Ok(())
            }
            Scheme::Backup { backups } => {
                count("--backups", backups, nodes - 1, "nothing would survive the aggregator")?;
                self.digest_only("its messages name checkpoints, backups take the bytes apart")
            }
        }
    }

    fn validate_policy(&self) -> Result<(), Usage> {
        if self.job.policy == (Policy::Rotate { every_ms: 0 }) {
            let wrong = "nobody would stay in office for a round";
            return Err(Usage::option("--policy", "rotate:0", wrong, "use for example rotate:10"));
        }
        if self.job.stateless && self.job.profile == Profile::Workers {
            let wrong = "nothing is written at level 2";
            return Err(Usage::option(
                "--stateless",
                "with --profile workers",
                wrong,
                "leave one of them out",
            ));
        }
        Ok(())
    }

    fn digest_only(&self, why: &str) -> Result<(), Usage> {
        if self.backend.payload == Payload::Digest {
            return Ok(());
        }
        let backend = self.backend.backend();
        let wrong = format!("{backend} does not carry checkpoints in its own messages: {why}");
        let remedy = "use --payload digest, where bytes go by digest";
        Err(Usage::option("--payload", self.backend.payload, wrong, remedy))
    }

    fn validate_suitability(&self) -> Result<(), Usage> {
        for (index, given) in self.suitability.iter().enumerate() {
            let devices = self.devices();
            if !devices.contains(&given.node) {
                let remedy = format!("nodes are 1 to {}", devices.len());
                let wrong = format!("there is no node {}", given.node);
                return Err(Usage::option("--suitability", given, wrong, remedy));
            }
            if self.suitability[..index].iter().any(|other| other.node == given.node) {
                let wrong = format!("node {} was given before", given.node);
                return Err(Usage::option("--suitability", given, wrong, "give all of a node in one option"));
            }
        }
        Ok(())
    }

    fn validate_addresses(&self) -> Result<(), Usage> {
        for (option, port) in
            [("--learning-port", self.learning_port), ("--replication-port", self.replication_port)]
        {
            if port == 0 {
                return Err(Usage::option(option, 0, "not a port that peers can know", "use 1 to 65535"));
            }
        }
        if self.learning_port == self.replication_port {
            let remedy = "give the two planes different ports";
            return Err(Usage::option(
                "--learning-port",
                self.learning_port,
                "also the --replication-port",
                remedy,
            ));
        }
        let (fits, wrong, remedy): (fn(&Ipv4Addr) -> bool, _, _) = match self.placement {
            PlacementKind::Process => (
                Ipv4Addr::is_loopback,
                "not a loopback network, which --placement process needs",
                "use 127.X.Y.0",
            ),
            PlacementKind::Netns => (
                Ipv4Addr::is_private,
                "not a private network, which --placement netns needs",
                "use for example 10.X.Y.0",
            ),
            PlacementKind::Ssh => (
                |ip| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
                "no address of a host",
                "correct harness_address in the inventory",
            ),
        };
        match self.members.iter().find(|member| !fits(&member.ip)) {
            None => {
                self.metrics.map_or(Ok(()), |at| at.validate(self))?;
                self.validate_link()
            }
            Some(member) if self.placement == PlacementKind::Ssh => {
                Err(Usage::option("--inventory", member.ip, wrong, remedy))
            }
            Some(member) => Err(Usage::option("--network", member.ip, wrong, remedy)),
        }
    }

    fn validate_link(&self) -> Result<(), Usage> {
        if self.placement != PlacementKind::Netns && self.link.netem {
            let wrong = "netem is on the interfaces of network namespaces";
            return Err(Usage::option(
                "--link",
                "with netem",
                wrong,
                "use --placement netns, or leave netem out",
            ));
        }
        if let (PlacementKind::Process | PlacementKind::Ssh, Some(rate)) =
            (self.placement, self.link.rate_mbit_per_s)
        {
            let wrong =
                format!("its rate of {rate} Mbit/s needs an interface for each node that is ours to set");
            return Err(Usage::option("--link", "with a rate", wrong, "use --placement netns"));
        }
        Ok(())
    }
}

/// Checks the number of nodes, before anything is derived from it.
///
/// # Errors
/// Too few or too many.
pub fn validate_nodes(nodes: u64) -> Result<(), Usage> {
    match nodes {
        0 | 1 => {
            Err(Usage::option("--nodes", nodes, "an aggregator needs at least one worker", "use 2 or more"))
        }
        2..=MAX_NODES => Ok(()),
        _ => Err(Usage::option(
            "--nodes",
            nodes,
            "more than a /24 of addresses has",
            format!("use at most {MAX_NODES}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::tests::plan;
    use super::*;

    fn refused(change: impl FnOnce(&mut Plan)) -> String {
        let mut plan = plan(4);
        assert_eq!(plan.validate(), Ok(()));
        change(&mut plan);
        plan.validate().unwrap_err().to_string()
    }

    #[test]
    fn contradictions_are_named_by_option_value_and_remedy() {
        let message = refused(|plan| plan.backend.heartbeat_ns = 500_000_000);
        assert!(
            message.starts_with("--heartbeat 500ms: not below half of the low end of --window 1000ms-2000ms"),
            "{message}"
        );
        assert!(
            refused(|plan| plan.backend.window_hi_ns = 1_000_000_000).starts_with("--window 1000ms-1000ms:")
        );
        assert!(refused(|plan| plan.backend.heartbeat_ns = 0).starts_with("--heartbeat 0ms:"));
        assert!(refused(|plan| plan.job.training.batch_size = 0).starts_with("--batch-size 0:"));
        assert!(refused(|plan| plan.job.training.batch_size = 101).contains("more than the 100 examples"));
        assert!(
            refused(|plan| plan.job.partition = Partition::Dirichlet { alpha: 0.0 })
                .starts_with("--partition dirichlet:0:")
        );
        assert!(
            refused(|plan| plan.job.partition = Partition::Dirichlet { alpha: f64::NAN })
                .starts_with("--partition")
        );
        assert!(refused(|plan| plan.job.min_fit_clients = 4).contains("only 3 workers"));
        assert!(refused(|plan| plan.job.min_fit_clients = 0).starts_with("--min-fit-clients 0:"));
        assert!(refused(|plan| plan.job.training.lr = f64::INFINITY).starts_with("--lr inf:"));
        assert!(refused(|plan| plan.job.training.momentum = 1.0).starts_with("--momentum 1:"));
        assert!(refused(|plan| plan.job.rounds = 0).starts_with("--rounds 0:"));
        assert!(refused(|plan| plan.job.round_deadline_ms = 0).starts_with("--round-deadline 0s:"));
        assert!(
            refused(|plan| plan.job.policy = Policy::Rotate { every_ms: 0 })
                .starts_with("--policy rotate:0:")
        );
        assert!(refused(|plan| plan.learning_port = 5000).contains("--replication-port"));
        assert!(
            refused(|plan| plan.members[0].ip = Ipv4Addr::new(10, 0, 0, 1))
                .starts_with("--network 10.0.0.1:")
        );
    }

    #[test]
    fn the_data_bounds_the_nodes() {
        let message = refused(|plan| plan.job.examples_per_node = 20_000);
        assert!(
            message.starts_with("--nodes 4: 4 nodes with 20000 examples (--examples-per-node) need 80000"),
            "{message}"
        );
        assert!(message.contains("at most 12500 --examples-per-node or 2 --nodes"), "{message}");
        for nodes in [0, 1, MAX_NODES + 1, u64::MAX] {
            assert!(validate_nodes(nodes).is_err());
        }
    }

    #[test]
    fn backends_refuse_numbers_that_cannot_be() {
        let with = |scheme| {
            refused(move |plan| {
                plan.backend.payload = Payload::Digest;
                plan.backend.scheme = scheme;
            })
        };
        let subset = |voters| Scheme::RaftSubset { voters, voter_grace_ns: 10_000_000_000 };
        let gossip = |holders, fan_out, phi_milli| Scheme::Gossip {
            holders,
            fan_out,
            phi_milli,
            detector: Default::default(),
        };
        for (scheme, expected) in [
            (subset(0), "--voters 0: nobody would vote; use 1 to 4"),
            (subset(5), "--voters 5: there are only 4 nodes; use 1 to 4"),
            (
                Scheme::RaftSubset { voters: 3, voter_grace_ns: 1_000_000 },
                "--voter-grace 1ms: a voter would be replaced for one late heartbeat; use 200ms or more",
            ),
            (gossip(0, 2, 6000), "--holders 0:"),
            (gossip(5, 2, 6000), "--holders 5:"),
            (gossip(3, 4, 6000), "--fan-out 4:"),
            (gossip(3, 2, 1999), "--phi 1.999: one late sign of life"),
            (Scheme::Backup { backups: 0 }, "--backups 0:"),
            (Scheme::Backup { backups: 4 }, "--backups 4: there are only 4 nodes; use 1 to 3"),
        ] {
            let message = with(scheme);
            assert!(message.starts_with(expected), "{message}");
        }
        let message = refused(|plan| plan.backend.scheme = gossip(3, 2, 6000));
        assert!(message.starts_with("--payload inline: gossip does not carry"), "{message}");
    }

    #[test]
    fn resources_are_given_once_and_for_nodes_that_exist() {
        let given = |texts: &[&str]| {
            let suitability = texts.iter().map(|text| text.parse().unwrap()).collect();
            refused(move |plan| plan.suitability = suitability)
        };
        assert!(
            given(&["5:cpu=1"]).starts_with("--suitability 5:cpu=1: there is no node 5; nodes are 1 to 4")
        );
        assert!(given(&["2:cpu=1", "2:memory=1"]).contains("node 2 was given before"));
    }
}
