//! The service on two nodes that share a memory: what it answers, and that its description has every answer.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt as _;
use replication::NodeId;
use replication::memory::MemoryCluster;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use tower::ServiceExt as _;

use super::*;
use crate::keyvalue::{self, Server};
use crate::leaderboard::{MAX_PLAYERS, board};

/// Node 1 leads, node 2 follows.
struct Nodes {
    cluster: MemoryCluster,
    network: ChannelNetwork,
    servers: Vec<Server>,
    routers: Vec<Router>,
    tasks: tokio::task::JoinSet<()>,
}

fn nodes() -> Nodes {
    let ids = [NodeId(1), NodeId(2)];
    let cluster = MemoryCluster::new(ids);
    let network = ChannelNetwork::new(1, LinkSpec::default(), ids);
    let mut tasks = tokio::task::JoinSet::new();
    let mut servers = Vec::new();
    let routers = ids.map(|node| {
        let server = Server::new(node, cluster.store(node), String::new());
        let transport = network.join(node);
        transport.serve(Arc::new(server.clone()));
        let desk = Desk::new(server.clone(), transport, 7);
        servers.push(server.clone());
        tasks.spawn(async move { server.run().await });
        router(Arc::new(desk))
    });
    Nodes { cluster, network, servers, routers: routers.into(), tasks }
}

impl Nodes {
    /// Sends a request to a node, and looks its answer up in the description.
    async fn ask(&self, node: usize, request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
        let (method, path) = (request.method().as_str().to_lowercase(), request.uri().path().to_owned());
        let response = self.routers[node - 1].clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let described: Value = serde_json::from_str(OPENAPI).unwrap();
        let answers = &described["paths"][&path][&method]["responses"];
        assert!(answers[status.as_str()].is_object(), "{method} {path}: {status} is not described");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn get(&self, node: usize, path: &str) -> (StatusCode, Value) {
        let (status, _, value) = self.ask(node, Request::get(path).body(Body::empty()).unwrap()).await;
        (status, value)
    }

    async fn vote(&self, node: usize, body: &str, key: Option<&str>) -> (StatusCode, HeaderMap, Value) {
        let mut request = Request::post("/add_vote");
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        self.ask(node, request.body(Body::from(body.to_owned())).unwrap()).await
    }
}

const ADA: &str = r#"{"player": "ada"}"#;

#[tokio::test(start_paused = true)]
async fn a_vote_counts_once_whichever_node_it_reaches() {
    let nodes = nodes();
    for node in [2, 1, 2] {
        let (status, _, told) = nodes.vote(node, ADA, Some("one")).await;
        assert_eq!((status, &told["votes"]), (StatusCode::OK, &1.into()), "{told}");
    }
    let (status, _, told) = nodes.vote(2, r#"{"player": "bob"}"#, Some("one")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{told}");
    let (_, _, first) = nodes.vote(2, ADA, None).await;
    let (_, _, second) = nodes.vote(2, ADA, None).await;
    assert_eq!((&first["votes"], &second["votes"]), (&2.into(), &3.into()));
    assert_ne!(first["idempotency_key"], second["idempotency_key"]);
    nodes.vote(1, r#"{"player": "bob"}"#, None).await;

    let (status, top) = nodes.get(1, "/top_n_scores?n=1").await;
    let ada = json!({ "standings": [{ "rank": 1, "player": "ada", "votes": 3 }] });
    assert_eq!((status, top), (StatusCode::OK, ada));
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while nodes.get(2, "/player_rankings").await.1["standings"].as_array().unwrap().len() < 2 {
        assert!(tokio::time::Instant::now() < until, "the follower does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (node, role) in [(1, "leader"), (2, "follower")] {
        let (_, health) = nodes.get(node, "/healthz").await;
        assert_eq!((&health["role"], &health["leader"]), (&role.into(), &1.into()), "{health}");
    }
    for path in ["/", "/openapi.json"] {
        assert_eq!(nodes.get(1, path).await.0, StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn bad_input_is_refused_with_a_reason() {
    let nodes = nodes();
    let long = format!(r#"{{"player": "{}"}}"#, "x".repeat(65));
    let huge = format!(r#"{{"player": "{}"}}"#, "x".repeat(MAX_BODY_BYTES));
    for (body, key, status, reason) in [
        ("", None, 400, "the body is no vote"),
        ("{", None, 400, "the body is no vote"),
        ("[]", None, 400, "the body is no vote"),
        ("{}", None, 400, "missing field `player`"),
        (r#"{"player": 7}"#, None, 400, "expected a string"),
        (r#"{"player": "ada", "votes": 9}"#, None, 400, "unknown field `votes`"),
        (r#"{"player": "ada", "player": "bob"}"#, None, 400, "duplicate field"),
        (r#"{"player": ""}"#, None, 400, "the player's name is empty"),
        (r#"{"player": "a\u0000"}"#, None, 400, "control character"),
        (long.as_str(), None, 400, "65 bytes, the limit is 64"),
        (ADA, Some(""), 400, "Idempotency-Key"),
        (ADA, Some("a b"), 400, "Idempotency-Key"),
        (huge.as_str(), None, 413, "more than 4096 bytes"),
    ] {
        let (found, _, told) = nodes.vote(2, body, key).await;
        assert_eq!(found.as_u16(), status, "{body}: {told}");
        assert!(told["reason"].as_str().unwrap().contains(reason), "{body}: {told}");
    }
    for n in ["0", "-3", "1001", "x", "", "9999999999999999999999"] {
        let (status, told) = nodes.get(1, &format!("/top_n_scores?n={n}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{n}: {told}");
        assert!(!told["reason"].as_str().unwrap().is_empty());
    }
    assert_eq!(nodes.get(1, "/top_n_scores?m=3").await.0, StatusCode::BAD_REQUEST);
    let (_, board) = nodes.get(1, "/player_rankings").await;
    assert_eq!(board["standings"], json!([]), "nothing was counted");
    for (request, status) in [("/none", StatusCode::NOT_FOUND), ("/add_vote", StatusCode::METHOD_NOT_ALLOWED)]
    {
        let request = Request::get(request).body(Body::empty()).unwrap();
        let response = nodes.routers[0].clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_board_takes_no_further_player() {
    let nodes = nodes();
    // From here on node 1 leads.
    assert_eq!(nodes.vote(1, r#"{"player": "player-0"}"#, None).await.0, StatusCode::OK);
    let leader = &nodes.servers[0];
    let votes = (1..MAX_PLAYERS).map(|number| async move {
        let player = format!("player-{number}");
        leader.answer(keyvalue::message::Request::Write(board::vote(&player, &player).unwrap())).await
    });
    futures_util::future::join_all(votes).await;
    let (status, _, told) = nodes.vote(1, ADA, None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{told}");
    assert!(
        told["reason"].as_str().unwrap().starts_with("the board is full: it has 10000 players"),
        "{told}"
    );
    let (status, _, told) = nodes.vote(1, r#"{"player": "player-7"}"#, None).await;
    assert_eq!((status, &told["votes"]), (StatusCode::OK, &2.into()));
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_a_voter_is_told_to_come_again() {
    let mut nodes = nodes();
    assert_eq!(nodes.vote(2, ADA, Some("before")).await.0, StatusCode::OK);
    nodes.network.crash(NodeId(1));
    let (status, headers, told) = nodes.vote(2, ADA, Some("during")).await;
    assert_eq!(
        (status, headers[header::RETRY_AFTER].as_bytes()),
        (StatusCode::SERVICE_UNAVAILABLE, &b"1"[..]),
        "{told}"
    );
    assert_eq!(told["idempotency_key"], "during");
    let (status, _) = nodes.get(2, "/top_n_scores").await;
    assert_eq!(status, StatusCode::OK, "the board is there all the same");
    nodes.cluster.crash(NodeId(1));
    let (status, _, told) = nodes.vote(2, ADA, Some("during")).await;
    assert_eq!((status, &told["votes"]), (StatusCode::OK, &2.into()), "counted once: {told}");
    nodes.tasks.abort_all();
}
