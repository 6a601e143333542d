//! Carries out what the timeline of faults decides: signals to nodes, impairments of their links.

use std::time::Duration;

use replication::NodeId;
use tokio::time::Instant;

use super::Controller;
use super::cluster::list;
use crate::clock;
use crate::control::{Entry, ToNode};
use crate::fault::{Action, Fault, Kind, Planned};
use crate::place::Placement;
use crate::record::ControllerEvent;

/// The end of a command that was to cut a host's power.
#[derive(Debug)]
pub(super) struct Cut {
    node: NodeId,
    took_ns: u64,
    done: anyhow::Result<()>,
}

impl<P: Placement> Controller<P> {
    /// Carries `actions` out, in order.
    pub(super) fn carry_out(&mut self, actions: Vec<Action>) -> anyhow::Result<()> {
        actions.into_iter().try_for_each(|action| match action {
            Action::Strike { fault, nodes } => self.strike(fault, &nodes),
            Action::Heal { fault, nodes } => self.end_fault(fault, &nodes),
            Action::Join { node } => {
                self.progress.note(&format!("node {node} joins"));
                self.enter(node, Entry::Joins)
            }
            Action::Leave { node } => {
                self.progress.note(&format!("node {node} is asked to leave"));
                self.let_leave(node);
                self.recorder.controller_event(&ControllerEvent::NodeLeaving { target: node })
            }
            Action::Missed { planned } => {
                self.progress.warn(&format!("{planned}: its nodes are dead or struck already"));
                self.recorder.controller_event(&match planned {
                    Planned::Fault(fault) => ControllerEvent::FaultMissed { fault: fault.to_string() },
                    Planned::Change(change) => ControllerEvent::MemberMissed { member: change.to_string() },
                })
            }
        })
    }

    fn strike(&mut self, fault: Fault, nodes: &[NodeId]) -> anyhow::Result<()> {
        // Before anything is done: what follows from it must not be earlier.
        let at_ns = clock::monotonic_ns();
        self.faults_struck += 1;
        for node in nodes {
            match fault.kind {
                Kind::Kill | Kind::Restart { .. } => {
                    self.struck.insert(*node);
                    self.placement.kill(*node)?;
                    if let Kind::Restart { after_ns } = fault.kind {
                        self.comes_back(*node, Duration::from_nanos(after_ns));
                    }
                    if let Some(epoch) = self.cluster.aggregator.filter(|epoch| epoch.node == *node) {
                        self.vacancies.crashed(at_ns, epoch);
                    }
                }
                Kind::PowerOff => {
                    self.struck.insert(*node);
                    let (target, cut) = (*node, self.placement.power_off(*node)?);
                    self.power_cuts.spawn(async move {
                        let done = cut.await;
                        Cut { node: target, took_ns: clock::monotonic_ns().saturating_sub(at_ns), done }
                    });
                    if let Some(epoch) = self.cluster.aggregator.filter(|epoch| epoch.node == *node) {
                        self.vacancies.crashed(at_ns, epoch);
                    }
                }
                Kind::Stop => self.placement.stop(*node)?,
                Kind::Partition
                | Kind::Loss { .. }
                | Kind::OmitSend
                | Kind::OmitReceive
                | Kind::Corrupt { .. }
                | Kind::Delay { .. } => {}
            }
        }
        if fault.kind.disturbs_links() {
            self.impair();
        }
        let done = match fault.kind {
            Kind::Kill | Kind::Restart { .. } => "killed",
            Kind::PowerOff => "to be cut off from power",
            Kind::Stop => "stopped",
            Kind::Partition => "cut off from the others",
            Kind::Loss { .. } => "given lossy links",
            Kind::OmitSend => "kept from sending",
            Kind::OmitReceive => "kept from receiving",
            Kind::Corrupt { .. } => "made to send corrupted frames",
            Kind::Delay { .. } => "given slow links",
        };
        self.progress.note(&format!("fault {fault}: {} {done}", list(nodes)));
        self.failovers.struck(at_ns, fault.to_string(), nodes, self.timeline.well());
        nodes.iter().try_for_each(|node| {
            let event = ControllerEvent::FaultStruck { fault: fault.to_string(), target: *node };
            self.recorder.controller_event_at(at_ns, &event)
        })
    }

    /// The power of a host was cut, or not. When exactly it was gone is not known better than from what it took.
    pub(super) fn power_is_cut(&mut self, cut: Cut) -> anyhow::Result<()> {
        let Cut { node, took_ns, done } = cut;
        done?;
        self.placement.without_power(node);
        self.failovers.took(took_ns, node);
        self.progress.note(&format!("the power of node {node} is cut"));
        Ok(())
    }

    /// Waits for power cuts that have begun: a board must not be left with half of one.
    pub(super) async fn end_power_cuts(&mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        while let Some(cut) = self.power_cuts.join_next().await {
            let cut = cut.map_err(anyhow::Error::from).and_then(|cut| self.power_is_cut(cut));
            outcome = outcome.and(cut);
        }
        outcome
    }

    fn end_fault(&mut self, fault: Fault, nodes: &[NodeId]) -> anyhow::Result<()> {
        let at_ns = clock::monotonic_ns();
        match fault.kind {
            Kind::Stop => nodes.iter().try_for_each(|node| self.placement.resume(*node))?,
            kind if kind.disturbs_links() => self.impair(),
            _ => {}
        }
        self.progress.note(&format!("fault {fault} is over"));
        nodes.iter().try_for_each(|node| {
            let event = ControllerEvent::FaultHealed { fault: fault.to_string(), target: *node };
            self.recorder.controller_event_at(at_ns, &event)
        })
    }

    /// Ends every fault that is in force, so that the cluster can settle.
    pub(super) fn heal(&mut self) -> anyhow::Result<()> {
        let actions = self.timeline.heal();
        self.carry_out(actions)
    }

    /// Tells every living node what its links do to what it sends now.
    fn impair(&self) {
        for node in self.cluster.alive() {
            if !self.links.send(node, ToNode::Impair(self.timeline.impairment(node))) {
                self.progress.warn(&format!("node {node} does not read: its links stay as they were"));
            }
        }
    }
}

/// Waits until `at_ns` on CLOCK_MONOTONIC; for ever, if there is none.
pub(super) async fn until(at_ns: Option<u64>) {
    match at_ns {
        None => std::future::pending().await,
        Some(at_ns) => {
            let left = Duration::from_nanos(at_ns.saturating_sub(clock::monotonic_ns()));
            tokio::time::sleep_until(Instant::now() + left).await;
        }
    }
}
