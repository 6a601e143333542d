//! Serves a router on a listener: whoever sends slowly or not at all is given up, and no more are served at once than the process
//! can spare descriptors for, since its store needs some, too.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

/// How long the head of a request may take to arrive, also the next one on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request may take with its body; longer than a leaderboard's desk is patient.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be accepted: there may be no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `service`, to so many connections at once; others wait. Ends when it is dropped.
pub async fn accept(listener: TcpListener, service: Router, max_connections: usize) {
    let places = Arc::new(Semaphore::new(max_connections));
    let mut served = JoinSet::new();
    // It is never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        while served.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                served.spawn(async move {
                    serve_one(stream, service).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve_one(stream: TcpStream, service: Router) {
    let answer = service_fn(move |request| respond(service.clone(), request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn respond(service: Router, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    match timeout(REQUEST_TIMEOUT, service.oneshot(request)).await {
        Ok(answer) => answer,
        Err(_) => {
            let mut late = Response::new(Body::from("{\"reason\":\"the request took too long\"}"));
            *late.status_mut() = StatusCode::REQUEST_TIMEOUT;
            Ok(late)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn serving() -> (std::net::SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let echo = |body: axum::body::Bytes| async move { body };
        let service = Router::new().route("/", axum::routing::post(echo));
        let mut task = JoinSet::new();
        task.spawn(accept(listener, service, 1024));
        (at, task)
    }

    async fn told(at: std::net::SocketAddr, sent: &str) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut told = String::new();
        timeout(Duration::from_secs(60), stream.read_to_string(&mut told)).await.unwrap().unwrap();
        told
    }

    #[tokio::test]
    async fn who_never_ends_a_head_or_a_body_is_given_up_and_others_are_served() {
        let (at, _serving) = serving().await;
        let head = "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n";
        let (half, whole) = (format!("{head}\r\nab"), format!("{head}\r\nabcd"));
        let (slow, stuck, quick) = tokio::join!(told(at, head), told(at, &half), told(at, &whole),);
        assert!(!slow.contains("200"), "{slow}");
        assert!(stuck.starts_with("HTTP/1.1 408"), "{stuck}");
        assert!(quick.starts_with("HTTP/1.1 200") && quick.ends_with("abcd"), "{quick}");
    }
}
