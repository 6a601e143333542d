//! The client library: a dictionary (get, set, delete, add, iterate) over the servers of a cluster.
//!
//! A client asks one node at a time. It follows redirects to the aggregator, and repeats what was not answered, elsewhere if
//! need be, until an answer comes or its patience ends. A write keeps its serial when it is repeated, so it is applied once
//! ([`Delivery::ExactlyOnce`]). Deliberately knows no addresses: a transport does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use replication::NodeId;
use replication::transport::{Class, Transport, TransportError};
use tokio::time::{Instant, sleep, timeout_at};

use super::message::{
    Change, Command, Effect, Freshness, LogLine, Origin, Refused, Request, Response, SessionId, Status,
    TooLarge, check_key, decode, encode,
};

/// Pause before another attempt, where the last one was not answered or there is nobody to be sent to.
const PAUSE: Duration = Duration::from_millis(20);

/// How often a write may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Once, however often it is repeated: writes are numbered within a session.
    ExactlyOnce,
    /// As often as it arrives.
    AtLeastOnce,
}

/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long one node may take to answer before the request is repeated.
    pub attempt: Duration,
    /// How long an operation may take in all.
    pub patience: Duration,
    /// How new reads have to be.
    pub freshness: Freshness,
    /// How often a write may be applied.
    pub delivery: Delivery,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(2),
            patience: Duration::from_secs(10),
            freshness: Freshness::Index,
            delivery: Delivery::ExactlyOnce,
        }
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Key or value are over a limit. Nothing was sent.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The write did nothing.
    #[error("the write was refused: {0}")]
    Refused(Refused),
    /// Nobody led in time.
    #[error("no node led within {}{}", round(*.waited), unless_certain(*.maybe))]
    NoLeader {
        /// How long was waited.
        waited: Duration,
        /// Whether the operation may have happened.
        maybe: bool,
    },
    /// Nodes sent the client to each other until its patience ended.
    #[error("nodes {} sent the request to each other for {}{}", list(.nodes), round(*.waited), unless_certain(*.maybe))]
    RedirectLoop {
        /// Them.
        nodes: Vec<NodeId>,
        /// How long was waited.
        waited: Duration,
        /// Whether the operation may have happened.
        maybe: bool,
    },
    /// Nobody answered in time.
    #[error("no answer within {}: {reason}{}", round(*.waited), unless_certain(*.maybe))]
    NoAnswer {
        /// How long was waited.
        waited: Duration,
        /// The last failure.
        reason: String,
        /// Whether the operation may have happened.
        maybe: bool,
    },
    /// The server's answer makes no sense, or it says that the request makes none.
    #[error("{reason}")]
    Protocol {
        /// What is wrong.
        reason: String,
    },
}

fn unless_certain(maybe: bool) -> &'static str {
    if maybe { "; it may have been done all the same" } else { "" }
}

/// To the millisecond.
fn round(waited: Duration) -> String {
    format!("{:?}", Duration::from_millis(waited.as_millis() as u64))
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

impl ClientError {
    /// Whether a write that failed with this may have happened, now or later.
    #[must_use]
    pub fn maybe(&self) -> bool {
        match self {
            Self::TooLarge(_) => false,
            // Before the session was closed, or by an attempt that was overtaken.
            Self::Refused(refused) => matches!(refused, Refused::UnknownSession | Refused::Stale),
            Self::NoLeader { maybe, .. }
            | Self::RedirectLoop { maybe, .. }
            | Self::NoAnswer { maybe, .. } => *maybe,
            Self::Protocol { .. } => true,
        }
    }
}

/// A page of an iteration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the order of their keys.
    pub entries: Vec<(String, Bytes)>,
    /// Whether there are more.
    pub more: bool,
    /// Commands applied when it was read.
    pub index: u64,
}

/// What a client did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests sent, repeated ones included.
    pub attempts: u64,
    /// Answers that sent it elsewhere.
    pub redirects: u64,
}

/// A client. One operation at a time.
#[derive(Debug)]
pub struct Client {
    transport: Arc<dyn Transport>,
    nodes: Vec<NodeId>,
    settings: Settings,
    /// Whom to ask next: who led last, or the next in turn.
    at: NodeId,
    session: Option<SessionId>,
    serial: u64,
    tally: Tally,
}

/// What became of an attempt that was not answered.
enum Trouble {
    None,
    NoLeader,
    SentOn,
    Other(String),
}

/// What to do after an attempt.
enum Next {
    Done(Response),
    /// Ask another node at once.
    Follow,
    /// Ask again after a pause.
    Again,
}

/// One operation under way.
struct Operation {
    begun: Instant,
    maybe: bool,
    trouble: Trouble,
    /// Nodes that sent the client elsewhere since the last pause, and before it.
    sent_on: BTreeSet<NodeId>,
    circle: BTreeSet<NodeId>,
}

impl Client {
    /// A client of `nodes`, which the transport reaches; asks `first` first.
    ///
    /// # Panics
    /// Without nodes.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, nodes: Vec<NodeId>, first: usize, settings: Settings) -> Self {
        let at = nodes[first % nodes.len()];
        Self { transport, nodes, settings, at, session: None, serial: 0, tally: Tally::default() }
    }

    /// What it did so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// How long an operation may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.settings.patience
    }

    /// The node that answered last, or will be asked next.
    #[must_use]
    pub fn at(&self) -> NodeId {
        self.at
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&mut self, key: &str) -> Result<Option<Bytes>, ClientError> {
        check_key(key)?;
        let request = Request::Read { key: key.to_owned(), freshness: self.settings.freshness };
        match self.call(&request, Instant::now()).await? {
            Response::Value { value, .. } => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives `key` a value; returns whether it had one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set(&mut self, key: &str, value: Bytes) -> Result<bool, ClientError> {
        existed(self.write(Change::Set { key: key.to_owned(), value }).await?)
    }

    /// Removes `key`; returns whether it was there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete(&mut self, key: &str) -> Result<bool, ClientError> {
        existed(self.write(Change::Delete { key: key.to_owned() }).await?)
    }

    /// Adds to the number that `key` has (none: 0); returns the sum.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add(&mut self, key: &str, by: i64) -> Result<i64, ClientError> {
        match self.write(Change::Add { key: key.to_owned(), by }).await? {
            Effect::Sum(sum) => Ok(sum),
            other => Err(unexpected(&other)),
        }
    }

    /// The page of entries after the key `after`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn page(&mut self, after: Option<String>) -> Result<Page, ClientError> {
        let request = Request::Page { after, freshness: self.settings.freshness };
        match self.call(&request, Instant::now()).await? {
            Response::Page { entries, more, index } => Ok(Page { entries, more, index }),
            other => Err(unexpected(&other)),
        }
    }

    /// Every entry, page after page.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn entries(&mut self) -> Result<Vec<(String, Bytes)>, ClientError> {
        let mut all: Vec<(String, Bytes)> = Vec::new();
        loop {
            let page = self.page(all.last().map(|(key, _)| key.clone())).await?;
            all.extend(page.entries);
            if !page.more {
                return Ok(all);
            }
        }
    }

    /// Asks one node, and nobody else.
    ///
    /// # Errors
    /// [`ClientError::NoAnswer`] or [`ClientError::Protocol`].
    pub async fn ask(&self, node: NodeId, request: &Request) -> Result<Response, ClientError> {
        let begun = Instant::now();
        let until = begun + self.settings.patience;
        loop {
            let call = self.transport.request(node, Class::LearningControl, encode(request));
            let (reason, maybe) = match timeout_at(until, call).await {
                Ok(Ok(frame)) => {
                    return decode(frame).map_err(|refusal| ClientError::Protocol { reason: refusal.0 });
                }
                Ok(Err(error @ TransportError::Unreachable { .. })) if Instant::now() + PAUSE < until => {
                    tracing::debug!(%error, "waiting for the node");
                    sleep(PAUSE).await;
                    continue;
                }
                Ok(Err(error)) => (error.to_string(), !matches!(error, TransportError::Unreachable { .. })),
                Err(_) => (format!("node {node} is silent"), true),
            };
            // What only tells something does nothing.
            let maybe = maybe && matches!(request, Request::Leave | Request::AddNode);
            return Err(ClientError::NoAnswer { waited: begun.elapsed(), reason, maybe });
        }
    }

    /// How `node` is.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn status(&self, node: NodeId) -> Result<Status, ClientError> {
        match self.ask(node, &Request::Status).await? {
            Response::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// The newest commands that `node` has applied.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn log(&self, node: NodeId, lines: u32) -> Result<Vec<LogLine>, ClientError> {
        match self.ask(node, &Request::Log { lines }).await? {
            Response::Log(lines) => Ok(lines),
            other => Err(unexpected(&other)),
        }
    }

    /// The test's configuration, from whoever answers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn configuration(&mut self) -> Result<String, ClientError> {
        match self.call(&Request::Configuration, Instant::now()).await? {
            Response::Configuration(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes, under a serial if writes are numbered.
    async fn write(&mut self, change: Change) -> Result<Effect, ClientError> {
        change.within_limits()?;
        let begun = Instant::now();
        let origin = match self.settings.delivery {
            Delivery::AtLeastOnce => None,
            Delivery::ExactlyOnce => Some(self.origin(begun).await?),
        };
        match self.call(&Request::Write(Command::Change { origin, change }), begun).await? {
            Response::Written { effect: Effect::Refused(refused), .. } => {
                if refused == Refused::UnknownSession {
                    self.session = None;
                }
                Err(ClientError::Refused(refused))
            }
            Response::Written { effect, .. } => Ok(effect),
            other => Err(unexpected(&other)),
        }
    }

    /// The next serial, in a session that is opened when there is none. A session that nobody heard was opened stays unused.
    async fn origin(&mut self, begun: Instant) -> Result<Origin, ClientError> {
        let session = match self.session {
            Some(session) => session,
            None => match self.call(&Request::Write(Command::OpenSession), begun).await {
                Ok(Response::Written { effect: Effect::Opened(session), .. }) => {
                    (self.session, self.serial) = (Some(session), 0);
                    session
                }
                Ok(other) => return Err(unexpected(&other)),
                // The write itself was not sent.
                Err(mut error) => {
                    if let ClientError::NoLeader { maybe, .. }
                    | ClientError::RedirectLoop { maybe, .. }
                    | ClientError::NoAnswer { maybe, .. } = &mut error
                    {
                        *maybe = false;
                    }
                    return Err(error);
                }
            },
        };
        self.serial += 1;
        Ok(Origin { session, serial: self.serial })
    }

    /// Asks until somebody answers, for an operation that was begun then.
    async fn call(&mut self, request: &Request, begun: Instant) -> Result<Response, ClientError> {
        let until = begun + self.settings.patience;
        let mut operation = Operation {
            begun,
            maybe: false,
            trouble: Trouble::None,
            sent_on: BTreeSet::new(),
            circle: BTreeSet::new(),
        };
        loop {
            let attempt_until = until.min(Instant::now() + self.settings.attempt);
            self.tally.attempts += 1;
            let call = self.transport.request(self.at, Class::LearningControl, encode(request));
            let next = match timeout_at(attempt_until, call).await {
                Ok(answer) => self.judge(&mut operation, answer)?,
                Err(_) => {
                    operation.maybe = true;
                    // What ends with the client's patience says nothing of the node.
                    if attempt_until == until && !matches!(operation.trouble, Trouble::None) {
                        return Err(operation.failed());
                    }
                    operation.trouble = Trouble::Other(format!("node {} is silent", self.at));
                    self.turn();
                    Next::Again
                }
            };
            match next {
                Next::Done(response) => return Ok(response),
                Next::Follow => {}
                Next::Again => {
                    operation.circle = std::mem::take(&mut operation.sent_on);
                    sleep(PAUSE).await;
                }
            }
            if Instant::now() >= until {
                return Err(operation.failed());
            }
        }
    }

    fn judge(
        &mut self,
        operation: &mut Operation,
        answer: Result<replication::transport::Frame, TransportError>,
    ) -> Result<Next, ClientError> {
        let protocol = |reason: String| Err(ClientError::Protocol { reason });
        let response = match answer {
            Ok(frame) => match decode(frame) {
                Ok(response) => response,
                Err(refusal) => return protocol(refusal.0),
            },
            Err(error @ (TransportError::Unreachable { .. } | TransportError::Interrupted { .. })) => {
                operation.maybe |= matches!(error, TransportError::Interrupted { .. });
                operation.trouble = Trouble::Other(error.to_string());
                self.turn();
                return Ok(Next::Again);
            }
            Err(error) => return protocol(error.to_string()),
        };
        match response {
            Response::Elsewhere { leader: Some(leader) } if self.nodes.contains(&leader) => {
                self.tally.redirects += 1;
                operation.trouble = Trouble::SentOn;
                let first_time = operation.sent_on.insert(self.at);
                self.at = leader;
                Ok(if first_time { Next::Follow } else { Next::Again })
            }
            Response::Elsewhere { .. } => {
                operation.trouble = Trouble::NoLeader;
                self.turn();
                Ok(Next::Again)
            }
            Response::Unavailable { maybe, reason } => {
                operation.maybe |= maybe;
                operation.trouble = Trouble::Other(reason);
                Ok(Next::Again)
            }
            Response::Invalid { reason } => protocol(reason),
            response => Ok(Next::Done(response)),
        }
    }

    /// Goes on with the next node.
    fn turn(&mut self) {
        let place = self.nodes.iter().position(|node| *node == self.at).unwrap_or(0);
        self.at = self.nodes[(place + 1) % self.nodes.len()];
    }
}

impl Operation {
    fn failed(self) -> ClientError {
        let (waited, maybe) = (self.begun.elapsed(), self.maybe);
        match self.trouble {
            Trouble::SentOn => ClientError::RedirectLoop {
                nodes: (&self.sent_on | &self.circle).into_iter().collect(),
                waited,
                maybe,
            },
            Trouble::None | Trouble::NoLeader => ClientError::NoLeader { waited, maybe },
            Trouble::Other(reason) => ClientError::NoAnswer { waited, reason, maybe },
        }
    }
}

fn existed(effect: Effect) -> Result<bool, ClientError> {
    match effect {
        Effect::Done { existed } => Ok(existed),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &dyn std::fmt::Debug) -> ClientError {
    ClientError::Protocol { reason: format!("the answer is to another question: {answer:?}") }
}
