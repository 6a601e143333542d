//! What can be wrong with a trial beyond its plan: durability, faults, and members that come and go. Pure, as [`validate`].
//!
//! [`validate`]: super::validate

use super::{Backend, Durability, PlacementKind, Trial, workers_of};
use crate::exit::Usage;
use crate::fault::{Change, Fault, Kind, When, Who};
use crate::kv::leaderboard;
use crate::kv::plan::Disturbance;
use crate::place::inventory::Host;

impl Trial {
    /// Checks the plan and the faults.
    ///
    /// # Errors
    /// The first contradiction, by option, with its remedy.
    pub fn validate(&self) -> Result<(), Usage> {
        self.plan.validate()?;
        let backend = self.plan.backend.backend();
        if self.durability != Durability::Memory && !backend.keeps_on_disk() {
            let wrong = format!("{backend} keeps its state in memory only");
            let remedy = "use --durability memory, or another --backend";
            return Err(Usage::option("--durability", "disk", wrong, remedy));
        }
        if self.durability == Durability::Memory && backend == Backend::Local {
            let wrong = "at level 1 the aggregator goes on from its own disk";
            let remedy = "use --durability disk, or --backend none for an aggregator without a disk";
            return Err(Usage::option("--durability", "memory", wrong, remedy));
        }
        self.validate_disturbances()?;
        self.validate_shelf()?;
        for fault in &self.faults {
            self.validate_restart(fault)?;
            self.validate_moment("--fault", fault, fault.when, Some(fault.who))?;
        }
        self.validate_changes()
    }

    /// What disturbs a key-value run.
    fn validate_disturbances(&self) -> Result<(), Usage> {
        let Some(kv) = &self.plan.kv else { return Ok(()) };
        if kv.board.is_some() {
            leaderboard::check_faults(&self.faults, &self.plan.founders(), kv.load.duration_ns)?;
        } else if let Some(fault) = self.faults.first() {
            let wrong = "not for --workload kv: it has no rounds";
            return Err(Usage::option("--fault", fault, wrong, "use --disturb"));
        }
        if let Some(change) = self.changes.first() {
            let wrong = "not for this workload: it has no rounds";
            return Err(Usage::option("--member", change, wrong, "leave it out"));
        }
        if let (Some(peer), Durability::Memory) = (kv.peer, &self.durability) {
            let wrong = format!("{} keeps its log on disk", peer.name());
            return Err(Usage::option("--durability", "memory", wrong, "leave it out, or --peer"));
        }
        if self.durability == Durability::Memory && kv.disturbances.kinds.contains(&Disturbance::Kill) {
            let wrong = "a node that lost its memory, and its votes with it, must not come back under its id";
            return Err(Usage::option(
                "--disturb",
                "kill",
                wrong,
                "use --durability disk, or stop or partition",
            ));
        }
        Ok(())
    }

    /// What nodes on other hosts cannot do, and what only they can.
    fn validate_shelf(&self) -> Result<(), Usage> {
        let over_ssh = self.plan.placement == PlacementKind::Ssh;
        if let (true, Durability::Disk { dir: Some(dir) }) = (over_ssh, &self.durability) {
            let wrong = "hosts keep no files after a run";
            return Err(Usage::option("--store", dir.display(), wrong, "leave it out"));
        }
        for fault in self.faults.iter().filter(|fault| fault.kind == Kind::PowerOff) {
            let Some(shelf) = &self.shelf else {
                let wrong = "only hosts of an inventory have power of their own";
                return Err(Usage::option("--fault", fault, wrong, "use kill, or --placement ssh"));
            };
            let struck = |(at, _): &(usize, &Host)| match fault.who {
                Who::Node(node) => node.0 == *at as u64 + 1,
                _ => *at < self.plan.devices().len(),
            };
            let hosts = shelf.hosts.iter().enumerate().filter(struck);
            if let Some((_, host)) = hosts.into_iter().find(|(_, host)| host.power_off.is_none()) {
                let wrong = format!("nobody knows how to cut the power of {}", host.name);
                return Err(Usage::option(
                    "--fault",
                    fault,
                    wrong,
                    "give it harness_power_off in the inventory",
                ));
            }
        }
        Ok(())
    }

    /// Without its memory a node may come back only under another id, in a group that is still there.
    fn validate_restart(&self, fault: &Fault) -> Result<(), Usage> {
        if !matches!(fault.kind, Kind::Restart { .. }) || self.durability != Durability::Memory {
            return Ok(());
        }
        let backend = self.plan.backend.backend();
        let remedy = if backend.keeps_on_disk() { "use --durability disk, or kill" } else { "use kill" };
        // Nobody comes back under another id where no job is learned.
        if self.plan.kv.is_some() || self.plan.backend.has_fixed_members(&self.plan.founders()) {
            let taker = if self.plan.kv.is_some() { "this workload".into() } else { backend.to_string() };
            let wrong = format!(
                "a node that lost its memory, and its votes with it, must not come back under its id, and {taker} \
                 takes in no other"
            );
            return Err(Usage::option("--fault", fault, wrong, remedy));
        }
        if matches!(fault.who, Who::All | Who::Majority) {
            let wrong = "a majority that lost its memory is gone, and with it the group that could be joined";
            return Err(Usage::option("--fault", fault, wrong, remedy));
        }
        Ok(())
    }

    fn validate_moment(
        &self,
        option: &str,
        given: impl std::fmt::Display,
        when: When,
        who: Option<Who>,
    ) -> Result<(), Usage> {
        let backend = self.plan.backend.backend();
        if when == When::VotersChanged && backend != Backend::RaftSubset {
            let wrong = format!("{backend} replaces no voters");
            return Err(Usage::option(option, given, wrong, "use --backend raft-subset or round:N"));
        }
        if let When::Round(round) | When::Random(round) = when
            && round > self.plan.job.rounds
        {
            let wrong = format!("the run has {} rounds", self.plan.job.rounds);
            return Err(Usage::option(option, given, wrong, "name an earlier round or use more --rounds"));
        }
        if matches!(when, When::Time(_)) && self.plan.kv.is_none() {
            let wrong = "a federated job has rounds";
            return Err(Usage::option(option, given, wrong, "use round:N, or --workload leaderboard"));
        }
        let devices = self.plan.devices();
        if let Some(Who::Node(node)) = who
            && !devices.contains(&node)
        {
            let remedy = format!("nodes are 1 to {}", devices.len());
            return Err(Usage::option(option, given, format_args!("there is no node {node}"), remedy));
        }
        Ok(())
    }

    /// Changes happen in the order given, so it is known how many nodes there are after each.
    fn validate_changes(&self) -> Result<(), Usage> {
        let plan = &self.plan;
        let mut nodes = plan.founders;
        for change in &self.changes {
            if plan.backend.has_fixed_members(&plan.founders()) {
                let wrong = format!("nobody joins or leaves with --backend {}", plan.backend.backend());
                return Err(Usage::option("--member", change, wrong, "use a backend that elects"));
            }
            self.validate_moment("--member", change, change.when(), change.leaver())?;
            match change {
                Change::Join { .. } => nodes += 1,
                Change::Leave { .. } => nodes = nodes.saturating_sub(1),
            }
            let least = plan.backend.least_members(plan.founders);
            if nodes < least {
                let wrong = format!("it leaves {nodes} nodes, and {least} hold a checkpoint");
                let remedy = "have fewer leave, or have fewer hold it";
                return Err(Usage::option("--member", change, wrong, remedy));
            }
            let workers = workers_of(nodes, plan.job.aggregator_trains);
            if nodes < 2 || workers < u64::from(plan.job.min_fit_clients) {
                let wrong = format!("it leaves {nodes} nodes, {workers} of them workers");
                let remedy = "have fewer leave, or use a lower --min-fit-clients";
                return Err(Usage::option("--member", change, wrong, remedy));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use replication::Payload;

    use super::super::tests::plan;
    use super::super::{Plan, Scheme};
    use super::*;
    use crate::place::inventory::{self, Shelf};

    #[test]
    fn faults_must_be_able_to_strike() {
        let trial = |fault: &str| Trial {
            plan: plan(4),
            durability: Durability::Memory,
            faults: vec![fault.parse().unwrap()],
            changes: Vec::new(),
            shelf: None,
            out: "out".into(),
            json: false,
            quiet: false,
        };
        assert_eq!(trial("kill@node:4,round:3").validate(), Ok(()));
        assert!(
            trial("kill@aggregator,voters-changed")
                .validate()
                .unwrap_err()
                .to_string()
                .contains("replaces no voters")
        );
        let restart = trial("restart@all,round:2");
        let message = restart.validate().unwrap_err().to_string();
        assert!(message.contains("a majority that lost its memory is gone"), "{message}");
        assert_eq!(trial("restart@worker,round:2").validate(), Ok(()), "it comes back as another one");
        let disk = Durability::Disk { dir: None };
        assert_eq!(Trial { durability: disk.clone(), ..restart }.validate(), Ok(()));
        let mut other = Trial { durability: disk, ..trial("kill@node:4,round:3") };
        other.plan.backend.scheme =
            Scheme::Gossip { holders: 3, fan_out: 2, phi_milli: 6000, detector: Default::default() };
        other.plan.backend.payload = Payload::Digest;
        assert_eq!(other.validate(), Ok(()));
        other.plan.backend.scheme = Scheme::None;
        let message = other.validate().unwrap_err().to_string();
        assert!(message.starts_with("--durability disk: none keeps its state in memory only;"), "{message}");
        assert!(trial("kill@node:5,round:3").validate().unwrap_err().to_string().contains("no node 5"));
        assert!(
            trial("kill@aggregator,round:4").validate().unwrap_err().to_string().contains("has 3 rounds")
        );
    }

    #[test]
    fn power_is_cut_only_where_a_hook_says_how() {
        let faults = vec!["power-off@aggregator,round:2".parse().unwrap()];
        let (durability, changes, out) = (Durability::Memory, Vec::new(), "out".into());
        let plan = plan(2);
        let mut trial =
            Trial { plan, durability, faults, changes, shelf: None, out, json: false, quiet: false };
        let refused = |trial: &Trial| trial.validate().unwrap_err().to_string();
        assert!(refused(&trial).ends_with("use kill, or --placement ssh"));
        let text = "10.0.0.1 harness_power_off='plug 1 off'\n10.0.0.2\n";
        let hosts = inventory::parse(text, false, None).unwrap();
        trial.shelf = Some(Shelf { file: "boards.ini".into(), ssh_config: None, hosts });
        trial.plan.placement = PlacementKind::Ssh;
        assert!(refused(&trial).contains("how to cut the power of 10.0.0.2; give it harness_power_off"));
        trial.faults = vec!["power-off@node:1,round:2".parse().unwrap()];
        assert_eq!(trial.validate(), Ok(()));
        trial.durability = Durability::Disk { dir: Some("stores".into()) };
        assert!(refused(&trial).starts_with("--store stores: hosts keep no files after a run"));
    }

    #[test]
    fn members_must_be_able_to_come_and_go() {
        let trial = |changes: &[&str]| Trial {
            plan: Plan { founders: 3, ..plan(4) },
            durability: Durability::Memory,
            faults: Vec::new(),
            changes: changes.iter().map(|text| text.parse().unwrap()).collect(),
            shelf: None,
            out: "out".into(),
            json: false,
            quiet: false,
        };
        let refused = |trial: &Trial| trial.validate().unwrap_err().to_string();
        assert_eq!(
            trial(&["join@round:1", "leave@node:4,round:2", "leave@worker,round:3"]).validate(),
            Ok(())
        );
        let message = refused(&trial(&["leave@worker,round:1", "leave@worker,round:2"]));
        assert!(message.starts_with("--member leave@worker,round:2: it leaves 1 nodes"), "{message}");
        assert!(refused(&trial(&["leave@node:5,round:1"])).contains("there is no node 5; nodes are 1 to 4"));
        assert!(refused(&trial(&["join@round:4"])).contains("the run has 3 rounds"));
        let mut shrinks = trial(&["leave@worker,round:1"]);
        shrinks.plan.job.min_fit_clients = 1;
        shrinks.plan.backend.payload = Payload::Digest;
        for scheme in [
            Scheme::Gossip { holders: 3, fan_out: 2, phi_milli: 6000, detector: Default::default() },
            Scheme::Backup { backups: 2 },
        ] {
            shrinks.plan.backend.scheme = scheme;
            let message = refused(&shrinks);
            assert!(message.contains("it leaves 2 nodes, and 3 hold a checkpoint"), "{message}");
        }
        shrinks.plan.backend.scheme = Scheme::Backup { backups: 1 };
        assert_eq!(shrinks.validate(), Ok(()));
        let mut fixed = trial(&["join@round:1"]);
        fixed.plan.backend.scheme = Scheme::None;
        let message = refused(&fixed);
        assert!(
            message.starts_with("--member join@round:1: nobody joins or leaves with --backend none"),
            "{message}"
        );
        let restart = "restart@worker,round:1".parse().unwrap();
        let fixed = Trial { faults: vec![restart], changes: Vec::new(), ..fixed };
        assert!(
            refused(&fixed).contains("must not come back under its id, and none takes in no other; use kill")
        );
    }
}
