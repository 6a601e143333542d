//! Voters in open loop, on threads of their own: a vote is due at a fixed time whatever became of those before, and is repeated
//! under its key until it is acknowledged or its voter's patience ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use workloads::keyvalue::history::{Ended, Kind, Operation, Stage};
use workloads::keyvalue::load::Load;
use workloads::leaderboard::rest::IDEMPOTENCY_KEY;

use super::haproxy::{SERVED_BY, node_of};
use crate::clock;
use crate::http::client::{Answer, ask};

/// Votes per second, unless said otherwise.
pub const DEFAULT_RATE: f64 = 200.0;
/// Voters begin so long after everything is ready.
const LEAD: Duration = Duration::from_millis(100);
/// Votes under way at once; one that is due beyond that is not sent, and counts as failed.
const MAX_UNDER_WAY: usize = 4096;
/// One in so many votes is sent again after it was acknowledged, as by a voter that missed the answer.
const REPEAT_EVERY: u64 = 10;
/// Pause where nobody said when to come again.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause, whatever is said.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// What voters tell.
#[derive(Debug)]
pub(super) enum News {
    /// The first vote is due at this time of CLOCK_MONOTONIC.
    Begins { at_ns: u64 },
    /// Every voter is done.
    Ended(Vec<Vote>),
    /// They cannot go on.
    Failed(String),
}

/// A vote, and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Vote {
    /// As it was for the one who cast it.
    pub(super) operation: Operation,
    /// Whether it was sent again after it was acknowledged.
    pub(super) repeated: bool,
    /// Whether it was then answered with another number than before.
    pub(super) altered: bool,
}

/// Where votes go, and whose they are.
#[derive(Debug)]
pub(super) struct Voters {
    pub(super) load: Load,
    /// The load balancer; or, without one, every node.
    pub(super) targets: Vec<SocketAddr>,
}

/// A player's name.
pub(super) fn player(number: u32) -> String {
    format!("player-{number:04}")
}

/// How an attempt ended.
enum Attempt {
    /// Counted; the player has so many votes, as this node says.
    Counted { votes: u64, node: u64 },
    /// Not counted by this attempt, and not by any other.
    Refused(String),
    /// Not acknowledged, and perhaps counted all the same; come again after a pause.
    Again { after: Duration },
}

impl Voters {
    /// Starts them; they begin at once.
    pub(super) fn start(self) -> anyhow::Result<mpsc::UnboundedReceiver<News>> {
        let (tell, news) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the voters")?;
        let run = move || {
            let ended = runtime.block_on(Arc::new(self).run(&tell));
            let _ = tell.send(ended.map_or_else(|error| News::Failed(format!("{error:#}")), News::Ended));
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("voters".into()).spawn(run).context("cannot start the voters")?;
        Ok(news)
    }

    async fn run(self: Arc<Self>, news: &mpsc::UnboundedSender<News>) -> anyhow::Result<Vec<Vote>> {
        let (begin, at_ns) = (Instant::now() + LEAD, clock::monotonic_ns() + LEAD.as_nanos() as u64);
        let _ = news.send(News::Begins { at_ns });
        let rate = self.load.rate.unwrap_or(DEFAULT_RATE);
        let (mut under_way, mut done) = (JoinSet::new(), Vec::new());
        for nth in 0.. {
            let due = Duration::from_secs_f64(nth as f64 / rate);
            if due.as_nanos() >= u128::from(self.load.duration_ns) {
                break;
            }
            sleep_until(begin + due).await;
            while let Some(ended) = under_way.try_join_next() {
                done.push(ended.context("a voter failed")?);
            }
            let due_ns = at_ns + due.as_nanos() as u64;
            if under_way.len() < MAX_UNDER_WAY {
                let voters = self.clone();
                under_way.spawn(async move { voters.vote(nth, due_ns).await });
            } else {
                let operation = Operation { ended: Ended::Failed, ..self.operation(nth, due_ns) };
                done.push(Vote { operation, repeated: false, altered: false });
            }
        }
        while let Some(ended) = under_way.join_next().await {
            done.push(ended.context("a voter failed")?);
        }
        Ok(done)
    }

    fn operation(&self, nth: u64, due_ns: u64) -> Operation {
        let now_ns = clock::monotonic_ns();
        Operation {
            stage: Stage::Load,
            client: (nth % u64::from(self.load.clients.max(1))) as u32,
            key: (nth % u64::from(self.load.entries)) as u32,
            kind: Kind::Set,
            value: Some(nth),
            intended_ns: due_ns,
            start_ns: now_ns,
            end_ns: now_ns,
            ended: Ended::Unknown,
            node: 0,
            attempts: 0,
        }
    }

    /// Casts a vote, until it is acknowledged or patience ends.
    async fn vote(&self, nth: u64, due_ns: u64) -> Vote {
        let mut operation = self.operation(nth, due_ns);
        let patience = Duration::from_nanos(self.load.patience_ns);
        let counted = self.persist(&mut operation, patience).await;
        let mut vote = Vote { operation, repeated: false, altered: false };
        if let Some(votes) = counted
            && nth.is_multiple_of(REPEAT_EVERY)
            && let Attempt::Counted { votes: again, .. } = self.attempt(&vote.operation, patience).await
        {
            (vote.repeated, vote.altered) = (true, again != votes);
        }
        vote
    }

    /// Sends a vote again whose outcome is unknown, for as long as `patience`; returns whether it is known now.
    pub(super) async fn settle(&self, vote: &Vote, patience: Duration) -> bool {
        let mut operation = vote.operation;
        self.persist(&mut operation, patience).await.is_some()
    }

    /// Sends a vote until it is acknowledged; returns the number it was answered with, and notes how it ended.
    async fn persist(&self, operation: &mut Operation, patience: Duration) -> Option<u64> {
        let until = Instant::now() + patience;
        let nth = operation.value.unwrap_or(0);
        let counted = loop {
            operation.attempts += 1;
            let left = until.saturating_duration_since(Instant::now());
            match self.attempt(operation, left).await {
                Attempt::Counted { votes, node } => {
                    (operation.ended, operation.node) = (Ended::Ok, node);
                    break Some(votes);
                }
                Attempt::Refused(reason) => {
                    tracing::warn!(nth, reason, "a vote was refused");
                    // An attempt before may have been counted although its answer was lost.
                    operation.ended = if operation.attempts > 1 { Ended::Unknown } else { Ended::Failed };
                    break None;
                }
                Attempt::Again { after } => {
                    if Instant::now() + after >= until {
                        operation.ended = Ended::Unknown;
                        break None;
                    }
                    sleep(after).await;
                }
            }
        };
        operation.end_ns = clock::monotonic_ns();
        counted
    }

    /// Sends a vote once.
    async fn attempt(&self, vote: &Operation, patience: Duration) -> Attempt {
        let nth = vote.value.unwrap_or(0);
        let to = self.targets[((nth + vote.attempts) % self.targets.len() as u64) as usize];
        let body = format!("{{\"player\": \"{}\"}}", player(vote.key));
        let request = Request::post("/add_vote")
            .header(header::HOST, to.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .header(IDEMPOTENCY_KEY, format!("{:016x}-{nth}", self.load.seed))
            .body(Full::new(Bytes::from(body)));
        let request = match request {
            Ok(request) => request,
            Err(error) => return Attempt::Refused(error.to_string()),
        };
        match ask(to, request, patience).await {
            Ok(answer) => judge(&answer),
            Err(error) => {
                tracing::debug!(nth, error = format!("{error:#}"), "not answered");
                Attempt::Again { after: PAUSE }
            }
        }
    }
}

/// What an answer means for the vote.
fn judge(answer: &Answer) -> Attempt {
    let text = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
    match answer.status {
        StatusCode::OK => {
            let told: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
            let votes = told.and_then(|told| told["votes"].as_u64());
            let node = text(SERVED_BY).and_then(node_of).unwrap_or(0);
            // It was counted, but who knows with which number: asked again, it is answered once more.
            votes.map_or(Attempt::Again { after: PAUSE }, |votes| Attempt::Counted { votes, node })
        }
        // The load balancer's words for a request that did not arrive in time.
        StatusCode::REQUEST_TIMEOUT => Attempt::Again { after: PAUSE },
        status if status.is_client_error() => {
            Attempt::Refused(format!("{status}: {}", String::from_utf8_lossy(&answer.body)))
        }
        _ => {
            let told = text("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
            Attempt::Again { after: told.unwrap_or(PAUSE).min(MAX_PAUSE) }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[test]
    fn answers_are_judged_by_what_they_say_of_the_vote() {
        let answer = |status: u16, headers: &[(&'static str, &str)], body: &'static str| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            judge(&Answer {
                status: StatusCode::from_u16(status).unwrap(),
                headers: map,
                body: Bytes::from_static(body.as_bytes()),
            })
        };
        let counted = answer(200, &[("x-served-by", "node-3")], r#"{"votes": 7}"#);
        assert!(matches!(counted, Attempt::Counted { votes: 7, node: 3 }));
        assert!(matches!(answer(200, &[], "{}"), Attempt::Again { .. }));
        assert!(matches!(answer(408, &[], ""), Attempt::Again { .. }));
        assert!(matches!(answer(422, &[], ""), Attempt::Refused(_)));
        let after = |attempt| match attempt {
            Attempt::Again { after } => after,
            _ => Duration::MAX,
        };
        assert_eq!(after(answer(503, &[("retry-after", "1")], "")), Duration::from_secs(1));
        assert_eq!(after(answer(503, &[("retry-after", "900")], "")), MAX_PAUSE);
        assert_eq!(after(answer(502, &[], "")), PAUSE);
    }
}
