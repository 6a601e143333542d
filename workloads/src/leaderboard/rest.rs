//! The web service: routes, limits, and every refusal with its reason. `openapi.json` beside this file describes it, and the
//! tests below hold it to that.
//!
//! Deliberately knows no socket: whoever has one serves [`router`] on it.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::board::Invalid;
use super::desk::{Counted, Desk, VoteError};

/// Longest body of a request.
pub const MAX_BODY_BYTES: usize = 4096;
/// Most standings that one request may ask for.
pub const MAX_TOP: i64 = 1000;
/// Standings that are given where nobody says how many.
const DEFAULT_TOP: i64 = 10;
/// The header with a vote's key.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Seconds after which a voter may come again.
const RETRY_AFTER_S: u16 = 1;

const OPENAPI: &str = include_str!("openapi.json");
const PAGE: &str = include_str!("page.html");

/// The service of `desk`.
pub fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/add_vote", post(add_vote))
        .route("/top_n_scores", get(top_n_scores))
        .route("/player_rankings", get(player_rankings))
        .route("/healthz", get(healthz))
        .route("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }))
        .route("/", get(page))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is nothing here; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "not with this method; see /openapi.json")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(desk)
}

/// The page runs its own script and asks its own service, nothing else.
async fn page() -> Response {
    let policy =
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, PAGE).into_response()
}

fn answer(status: StatusCode, value: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, value.to_string()).into_response()
}

fn refuse(status: StatusCode, reason: impl std::fmt::Display) -> Response {
    answer(status, &json!({ "reason": reason.to_string() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vote {
    player: String,
}

async fn add_vote(
    State(desk): State<Arc<Desk>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let reason = format!("the body has more than {MAX_BODY_BYTES} bytes");
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, reason);
        }
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let Vote { player } = match serde_json::from_slice(&body) {
        Ok(vote) => vote,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format_args!("the body is no vote: {error}")),
    };
    let key = match headers.get(IDEMPOTENCY_KEY).map(HeaderValue::to_str).transpose() {
        Ok(key) => key.map(str::to_owned),
        Err(_) => return refuse(StatusCode::BAD_REQUEST, Invalid::Key),
    };
    match desk.vote(&player, key).await {
        Ok(Counted { votes, key }) => {
            answer(StatusCode::OK, &json!({ "player": player, "votes": votes, "idempotency_key": key }))
        }
        Err(error) => not_counted(&error),
    }
}

fn not_counted(error: &VoteError) -> Response {
    let mut told = json!({ "reason": error.to_string() });
    let status = match error {
        VoteError::Invalid(_) => StatusCode::BAD_REQUEST,
        VoteError::KeyReused | VoteError::Uncountable(_) | VoteError::BoardFull => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        VoteError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        VoteError::NoLeader { key, .. } => {
            told["idempotency_key"] = key.as_str().into();
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    let mut response = answer(status, &told);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S.into());
    }
    response
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Top {
    n: Option<i64>,
}

async fn top_n_scores(State(desk): State<Arc<Desk>>, query: Result<Query<Top>, QueryRejection>) -> Response {
    let n = match query {
        Ok(Query(Top { n })) => n.unwrap_or(DEFAULT_TOP),
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    if !(1..=MAX_TOP).contains(&n) {
        return refuse(StatusCode::BAD_REQUEST, format_args!("n must be from 1 to {MAX_TOP}, not {n}"));
    }
    let mut standings = desk.standings();
    standings.truncate(usize::try_from(n).unwrap_or(usize::MAX));
    answer(StatusCode::OK, &json!({ "standings": standings }))
}

async fn player_rankings(State(desk): State<Arc<Desk>>) -> Response {
    answer(StatusCode::OK, &json!({ "standings": desk.standings() }))
}

async fn healthz(State(desk): State<Arc<Desk>>) -> Response {
    let status = desk.status();
    let role = if status.leads { "leader" } else { "follower" };
    let leader = status.epoch.map(|epoch| epoch.node);
    let health = json!({ "node": status.node, "role": role, "leader": leader, "applied": status.index });
    answer(StatusCode::OK, &health)
}

#[cfg(test)]
mod tests;
