//! One request over a connection of its own, as from somebody who comes once.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
}

/// A GET of `path`.
///
/// # Errors
/// A path that is none.
pub fn get(to: SocketAddr, path: &str) -> anyhow::Result<Request<Full<Bytes>>> {
    Ok(Request::get(path).header(http::header::HOST, to.to_string()).body(Full::default())?)
}

/// Sends `request` to `to`, and waits so long for all of the answer.
///
/// # Errors
/// No connection, no answer in time, or none that can be read.
pub async fn ask(
    to: SocketAddr,
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> anyhow::Result<Answer> {
    let answered = timeout(patience, async {
        let stream = TcpStream::connect(to).await.context("cannot connect")?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with this request, however that ends.
        let mut driving = JoinSet::new();
        driving.spawn(connection);
        let answer = sender.send_request(request).await.context("not answered")?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(anyhow::Error::from_boxed)?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    });
    answered.await.context("no answer in time")?
}
