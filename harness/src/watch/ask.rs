//! Asks nodes for their metrics, all at once. Whoever does not answer in time has not answered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;

use super::look::Look;
use super::targets::Target;
use crate::http::client::{ask, get};
use crate::metrics::text::{MAX_BYTES, parse};
use crate::plan::metrics_at::PATH;

/// How long a node may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a node answered, and when; otherwise why not.
pub type Answer = Result<(Look, Instant), String>;

/// The answers of `targets`, in their order.
pub async fn all(targets: &[Target]) -> Vec<Answer> {
    let mut asked = JoinSet::new();
    for (place, target) in targets.iter().enumerate() {
        let at = target.at;
        asked.spawn(async move { (place, one(at).await) });
    }
    let mut answers: Vec<Answer> = targets.iter().map(|_| Err("not asked".into())).collect();
    while let Some(answer) = asked.join_next().await {
        if let Ok((place, answer)) = answer {
            answers[place] = answer.map_err(|error| format!("{error:#}"));
        }
    }
    answers
}

async fn one(at: SocketAddr) -> anyhow::Result<(Look, Instant)> {
    let answer = ask(at, get(at, PATH)?, PATIENCE).await?;
    ensure!(answer.status.is_success(), "{PATH}: {}", answer.status);
    ensure!(answer.body.len() <= MAX_BYTES, "its answer is too long");
    let text = std::str::from_utf8(&answer.body).context("its answer is no text")?;
    let look = Look::of(&parse(text)?);
    ensure!(look.node.is_some(), "something else than a node of this program answers");
    Ok((look, Instant::now()))
}
