//! `harness leaderboard serve`: a run of the leaderboard without voters, for people to try.

use std::time::Duration;

use crate::cli::{RunArgs, Span, WorkloadArg};
use crate::exit::Exit;
use crate::kv::leaderboard::haproxy;
use crate::kv::plan::Balancer;

/// Nodes, unless said otherwise.
const NODES: u64 = 3;
/// How long it serves, unless said otherwise.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn serve(mut args: RunArgs) -> anyhow::Result<Exit> {
    args.kv.workload = WorkloadArg::Leaderboard;
    args.kv.clients.get_or_insert(0);
    args.kv.duration.get_or_insert(Span(DAY));
    args.kv.balancer.get_or_insert_with(|| match haproxy::version() {
        Some(_) => Balancer::Haproxy,
        None => Balancer::None,
    });
    args.nodes.get_or_insert(NODES);
    super::run::run(&args)
}
