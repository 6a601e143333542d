//! What controller, nodes and hosts say to each other in lines of JSON, and what voters ask over HTTP.

use std::fmt::Debug;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use harness::control::codec::{LineError, LineReader, LineWriter, MAX_LINE_BYTES};
use harness::control::{FromNode, ToNode};
use harness::probe::{Answer, Question};
use http_body_util::BodyExt as _;
use replication::NodeId;
use replication::memory::MemoryCluster;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tower::ServiceExt as _;
use workloads::keyvalue::Server;
use workloads::leaderboard::{Desk, router};

use super::{block_on, selected};

/// Who reads, and what it reads.
pub(crate) fn control(bytes: &[u8]) -> bool {
    let Some((selector, rest)) = selected(bytes) else { return false };
    match selector {
        b'n' => block_on(messages::<ToNode>(rest)),
        b'c' => block_on(messages::<FromNode>(rest)),
        b'q' => block_on(messages::<Question>(rest)),
        b'a' => block_on(messages::<Answer>(rest)),
        _ => false,
    }
}

/// Reads lines to the end of the stream; whether there were some, and all were messages.
async fn messages<T: Serialize + DeserializeOwned + PartialEq + Debug + Sync>(bytes: &[u8]) -> bool {
    let (mut open, mut secret) = (LineReader::new(bytes), LineReader::secret(bytes));
    let (mut lines, mut good) = (0, 0);
    loop {
        let read = open.next::<T>().await;
        let unseen = secret.next::<T>().await;
        match (read, unseen) {
            (Ok(None), Ok(None)) => return good > 0 && good == lines,
            (Ok(Some(message)), Ok(Some(same))) => {
                assert_eq!(message, same);
                let mut written = Vec::new();
                LineWriter::new(&mut written).send(&message).await.expect("it was within the limit");
                let read = LineReader::new(&written[..]).next::<T>().await;
                assert_eq!(read.expect("what was written is read").as_ref(), Some(&message));
                good += 1;
            }
            (Err(told), Err(kept)) => {
                assert!(told.is_skippable() && kept.is_skippable());
                if let LineError::Garbage { excerpt, .. } = &told {
                    assert!(excerpt.len() <= 4 * MAX_LINE_BYTES && !excerpt.chars().any(char::is_control));
                }
                if let LineError::Garbage { excerpt, .. } = &kept {
                    assert!(excerpt.is_empty());
                }
            }
            (read, unseen) => panic!("{read:?} and {unseen:?}"),
        }
        lines += 1;
        assert!(lines <= bytes.len());
    }
}

const OPENAPI: &str = include_str!("../../workloads/src/leaderboard/openapi.json");

/// A request as text: method and path, headers, an empty line, the body. The answer is one that the service's description has.
pub(crate) fn rest(bytes: &[u8]) -> bool {
    let Some(request) = request(bytes) else { return false };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (status, body) = block_on(asked(request));
    let described: Value = serde_json::from_str(OPENAPI).expect("a description");
    // Methods are told apart by case, too.
    let name = [Method::GET, Method::POST].contains(&method).then(|| method.as_str().to_lowercase());
    let answers = &described["paths"][&path][name.unwrap_or_default()]["responses"];
    if answers.is_null() {
        assert!(
            [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED, StatusCode::OK].contains(&status),
            "{status}"
        );
    } else {
        assert!(answers[status.as_str()].is_object(), "{method} {path}: {status} is not described");
    }
    if !status.is_success() && method != Method::HEAD {
        let told: Value = serde_json::from_slice(&body).expect("a reason");
        assert!(told["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    }
    status.is_success()
}

fn request(bytes: &[u8]) -> Option<Request<Body>> {
    let end = bytes.windows(2).position(|pair| pair == b"\n\n")?;
    let mut head = bytes[..end].split(|byte| *byte == b'\n');
    let (method, path) = std::str::from_utf8(head.next()?).ok()?.split_once(' ')?;
    let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).ok()?).uri(path);
    for line in head {
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    request.body(Body::from(bytes[end + 2..].to_vec())).ok()
}

/// The answer of a node that leads alone.
async fn asked(request: Request<Body>) -> (StatusCode, Vec<u8>) {
    let node = NodeId(1);
    let network = ChannelNetwork::new(1, LinkSpec::default(), [node]);
    let server = Server::new(node, MemoryCluster::new([node]).store(node), String::new());
    let transport = network.join(node);
    transport.serve(Arc::new(server.clone()));
    let desk = Desk::new(server.clone(), transport, 7);
    let running = tokio::spawn(async move { server.run().await });
    let response = router(Arc::new(desk)).oneshot(request).await.expect("a router answers");
    let status = response.status();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    running.abort();
    (status, body.to_vec())
}
