//! The controller's part of a leaderboard: the load balancer, voters, faults, and the check of every node's board.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context as _;
use replication::NodeId;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use workloads::keyvalue::history::{Ended, Operation};
use workloads::leaderboard::Standing;
use workloads::leaderboard::check::{Cast, Wrong, check};

use super::haproxy::{self, Haproxy};
use super::strikes::strikes;
use super::voters::{News, Vote, Voters, player};
use crate::http::client::{ask, get};
use crate::kv::outcome::{Early, Seen};
use crate::kv::plan::{Balancer, BoardPlan};
use crate::kv::run::Controller;
use crate::place::Placement;

/// The load balancer's address in the nodes' network, and its port.
const BALANCER_HOST: u8 = 254;
const BALANCER_PORT: u16 = 8000;
/// How long one request of the controller may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long votes of unknown outcome may take to be acknowledged after the load, all together.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long nodes may take to have the same board after the load.
const CONVERGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between looks.
const PAUSE: Duration = Duration::from_millis(100);

/// What a leaderboard's run came to, beside its votes.
#[derive(Debug, Clone, Default)]
pub(in crate::kv) struct Tally {
    /// The load balancer with its version; empty: there was none.
    pub(in crate::kv) balancer: String,
    /// Votes that were sent again after they were acknowledged.
    pub(in crate::kv) repeated: u64,
    /// Votes whose outcome was unknown, and which were acknowledged when they were sent again after the load.
    pub(in crate::kv) settled: u64,
    /// What is wrong with the boards; none: nothing.
    pub(in crate::kv) failure: Option<String>,
}

/// Ready when the load balancer has ended.
type BalancerEnd = Pin<Box<dyn Future<Output = String> + Send>>;

impl<P: Placement> Controller<P> {
    /// Serves a leaderboard, and has voters load it if there are any.
    pub(in crate::kv) async fn leaderboard(
        &mut self,
        board: BoardPlan,
    ) -> anyhow::Result<Result<Seen, Early>> {
        let plan = &self.trial.plan;
        let address = |node: &NodeId| plan.learning_address(*node).map(|at| (*node, SocketAddr::from(at)));
        let nodes: BTreeMap<NodeId, SocketAddr> = self.nodes.iter().filter_map(address).collect();
        let first = nodes.values().next().copied().context("a leaderboard without nodes")?;
        let (targets, mut end): (Vec<SocketAddr>, BalancerEnd) = match board.balancer {
            Balancer::None => (nodes.values().copied().collect(), Box::pin(std::future::pending())),
            Balancer::Haproxy => {
                let at = balancer_address(first)?;
                let mut haproxy = Haproxy::start(self.recorder.dir(), at, &nodes)?;
                (vec![at], Box::pin(async move { haproxy.ended().await }))
            }
        };
        for target in &targets {
            self.progress.note(&format!("leaderboard: http://{target}/"));
        }
        let until = Instant::now() + self.timeouts.start;
        match self.along(&mut end, led(targets.clone(), until)).await? {
            Ok(true) => {}
            Ok(false) => return Ok(Err(Early::Failed("no node led in time".into()))),
            Err(early) => return Ok(Err(early)),
        }
        let load = self.kv.load;
        let strikes = strikes(&self.trial.faults, &self.nodes, load.seed);
        if load.clients == 0 {
            self.begin_strikes(strikes);
            let serving = sleep(Duration::from_nanos(load.duration_ns));
            return Ok(self.along(&mut end, serving).await?.map(|()| Seen::default()));
        }
        let mut news = Voters { load, targets: targets.clone() }.start()?;
        let votes = loop {
            match self.along(&mut end, news.recv()).await? {
                Ok(Some(News::Begins { at_ns })) => {
                    self.begin_ns = Some(at_ns);
                    self.begin_strikes(strikes.clone());
                }
                Ok(Some(News::Ended(votes))) => break votes,
                Ok(Some(News::Failed(reason))) => return Ok(Err(Early::Failed(reason))),
                Ok(None) => return Ok(Err(Early::Failed("the voters ended".into()))),
                Err(early) => return Ok(Err(early)),
            }
        };
        self.end_strikes().await?;
        let living = nodes.into_iter().filter(|(node, _)| !self.is_dead(*node)).collect();
        let judged = judge(Voters { load, targets }, votes, living);
        let judged = self.along(&mut end, judged).await?;
        Ok(judged.map(|(history, mut tally)| {
            if board.balancer == Balancer::Haproxy {
                tally.balancer = haproxy::version().unwrap_or_default();
            }
            Seen { history, tally: Some(tally), ..Seen::default() }
        }))
    }

    /// Does `work`, and meanwhile what the nodes, the faults and the user ask for.
    async fn along<T>(
        &mut self,
        end: &mut BalancerEnd,
        work: impl Future<Output = T>,
    ) -> anyhow::Result<Result<T, Early>> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(Ok(done)),
                reason = &mut *end => return Ok(Err(Early::Failed(reason))),
                early = self.look_once() => if let Some(early) = early? {
                    return Ok(Err(early));
                },
            }
        }
    }
}

/// Where the load balancer listens: in the nodes' network.
fn balancer_address(node: SocketAddr) -> anyhow::Result<SocketAddr> {
    let SocketAddr::V4(node) = node else { anyhow::bail!("nodes have addresses of IPv4") };
    let [a, b, c, _] = node.ip().octets();
    Ok((Ipv4Addr::new(a, b, c, BALANCER_HOST), BALANCER_PORT).into())
}

/// Waits until whoever answers knows who leads; returns whether that was in time.
async fn led(targets: Vec<SocketAddr>, until: Instant) -> bool {
    for turn in 0.. {
        let to = targets[turn % targets.len()];
        match fetch(to, "/healthz").await {
            Ok(health) if !health["leader"].is_null() => return true,
            Ok(_) => {}
            Err(error) => tracing::debug!(error = format!("{error:#}"), "not ready"),
        }
        if Instant::now() >= until {
            return false;
        }
        sleep(PAUSE).await;
    }
    false
}

async fn fetch(from: SocketAddr, path: &str) -> anyhow::Result<Value> {
    let answer = ask(from, get(from, path)?, PATIENCE).await?;
    anyhow::ensure!(answer.status.is_success(), "{}", answer.status);
    Ok(serde_json::from_slice(&answer.body)?)
}

/// Has votes of unknown outcome acknowledged, then compares every node's board with what voters know.
async fn judge(
    voters: Voters,
    votes: Vec<Vote>,
    nodes: BTreeMap<NodeId, SocketAddr>,
) -> (Vec<Operation>, Tally) {
    let mut tally = Tally::default();
    let mut cast: BTreeMap<String, Cast> = BTreeMap::new();
    let until = Instant::now() + SETTLE_TIMEOUT;
    for vote in &votes {
        let cast = cast.entry(player(vote.operation.key)).or_default();
        tally.repeated += u64::from(vote.repeated);
        match vote.operation.ended {
            Ended::Ok => cast.acknowledged += 1,
            Ended::Failed => {}
            Ended::Unknown => {
                let left = until.saturating_duration_since(Instant::now());
                let settled = !left.is_zero() && voters.settle(vote, left).await;
                tally.settled += u64::from(settled);
                *(if settled { &mut cast.acknowledged } else { &mut cast.unknown }) += 1;
            }
        }
    }
    let altered = votes.iter().filter(|vote| vote.altered).count();
    if altered > 0 {
        tally.failure =
            Some(format!("{altered} votes that were sent again were answered with another number"));
    }
    let until = Instant::now() + CONVERGE_TIMEOUT;
    for (node, at) in nodes {
        if let Err(wrong) = agrees(at, &cast, until).await {
            tally.failure.get_or_insert_with(|| format!("node {node}: {wrong:#}"));
        }
    }
    (votes.into_iter().map(|vote| vote.operation).collect(), tally)
}

/// Waits until the board of the node at `at` is right.
async fn agrees(at: SocketAddr, cast: &BTreeMap<String, Cast>, until: Instant) -> anyhow::Result<()> {
    loop {
        let board = fetch(at, "/player_rankings")
            .await
            .and_then(|mut told| Ok(serde_json::from_value::<Vec<Standing>>(told["standings"].take())?));
        let wrong = match board {
            Ok(board) => match check(&board, cast) {
                Ok(()) => return Ok(()),
                // Votes only become more: waiting does not help.
                Err(wrong @ Wrong::Doubled { .. }) => return Err(wrong.into()),
                Err(wrong) => wrong.into(),
            },
            Err(error) => error,
        };
        if Instant::now() >= until {
            return Err(wrong);
        }
        sleep(PAUSE).await;
    }
}
