//! One node's server: answers clients, leads where the store says that this node aggregates, follows where it does not.
//!
//! ```text
//!   handle   any number of requests at once   -> queues of the tenure, or an answer from this node's copy
//!   lead     one tenure (`tenure`), two loops    writes: batch, put, apply, answer    reads: confirm, answer
//!   follow   takes batches out of the store, for local reads and a quick take-over
//! ```
//!
//! What is queued when a tenure ends is answered as unknown; clients repeat it elsewhere under the same serial.
//! Deliberately knows neither how requests arrive nor which backend answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use replication::transport::{Frame, Handler, Refusal};
use replication::{AnyStore, Epoch, NodeId, Outcome, StoreError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::machine::Machine;
use super::message::{Command, Freshness, PAGE_BYTES, Request, Response, Status, check_key, decode, encode};
use super::meter::{Meter, Operation};
use super::rates::{Bucket, Rates};
use super::replica::{Replica, ReplicaError};
pub(super) use super::tenure::Asked;
use super::tenure::{Read, Tenure, Write};

/// How often a node that does not aggregate looks into its store.
pub const REFRESH: Duration = Duration::from_millis(20);
/// Pause before something that failed is tried again.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Takes the answer to a request for one more node.
pub type Admission = oneshot::Sender<Response>;

/// One node's server.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

pub(super) struct Shared {
    node: NodeId,
    pub(super) store: AnyStore,
    /// What [`Request::Configuration`] is answered with.
    configuration: String,
    /// Whoever can start one more node takes requests for it here.
    admissions: Option<mpsc::Sender<Admission>>,
    meter: Option<Arc<dyn Meter>>,
    pub(super) replica: Mutex<Replica>,
    pub(super) tenure: Mutex<Option<Tenure>>,
    pub(super) rates: Mutex<Rates>,
    left: watch::Sender<bool>,
}

/// What a server may be given beside its store.
#[derive(Default)]
pub struct Extras {
    /// Goes to whoever can start one more node; without it requests for one are refused.
    pub admissions: Option<mpsc::Sender<Admission>>,
    /// Is told of operations.
    pub meter: Option<Arc<dyn Meter>>,
}

impl std::fmt::Debug for Extras {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extras").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("node", &self.0.node).finish_non_exhaustive()
    }
}

impl Server {
    /// The server of `node` over its store; `configuration` is given to clients that ask for the test's.
    #[must_use]
    pub fn new(node: NodeId, store: AnyStore, configuration: String) -> Self {
        Self::with(node, store, configuration, Extras::default())
    }

    /// As [`Server::new`], with `extras`.
    #[must_use]
    pub fn with(node: NodeId, store: AnyStore, configuration: String, extras: Extras) -> Self {
        let Extras { admissions, meter } = extras;
        Self(Arc::new(Shared {
            node,
            store,
            configuration,
            admissions,
            meter,
            replica: Mutex::default(),
            tenure: Mutex::default(),
            rates: Mutex::new(Rates::new(Instant::now())),
            left: watch::Sender::new(false),
        }))
    }

    /// Serves until the store is closed or this node has left its cluster.
    pub async fn run(&self) {
        let shared = &self.0;
        let mut aggregator = shared.store.aggregator();
        let mut left = shared.left.subscribe();
        loop {
            let epoch = *aggregator.borrow_and_update();
            let ended = tokio::select! {
                biased;
                _ = left.wait_for(|left| *left) => true,
                changed = aggregator.wait_for(|now| *now != epoch) => changed.is_err(),
                () = shared.serve(epoch) => false,
            };
            *lock(&shared.tenure) = None;
            if ended {
                return;
            }
        }
    }

    /// Whether this node has left its cluster.
    #[must_use]
    pub fn has_left(&self) -> bool {
        *self.0.left.borrow()
    }

    /// How the node is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// The answer to `request`, as a client would have it.
    pub async fn answer(&self, request: Request) -> Response {
        self.0.answer(request).await
    }

    /// Tells the meter, if there is one, of an operation that began then.
    pub(crate) fn measured(&self, operation: Operation, begun: Instant, done: bool) {
        self.0.measured(operation, begun, done);
    }

    /// Looks at this node's copy of the dictionary.
    pub fn look<T>(&self, at: impl FnOnce(&Machine) -> T) -> T {
        at(lock(&self.0.replica).machine())
    }

    /// Every entry of this node's copy.
    #[must_use]
    pub fn copy(&self) -> Replica {
        lock(&self.0.replica).clone()
    }
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, _from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let response = self.0.answer(decode(request)?).await;
        Ok(encode(&response))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Write(command) => self.write(command).await,
            Request::Read { key, freshness } => match check_key(&key) {
                Ok(()) => self.read(Asked::Key(key), freshness).await,
                Err(error) => Response::Invalid { reason: error.to_string() },
            },
            Request::Page { after, freshness } => self.read(Asked::After(after), freshness).await,
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Log { lines } => Response::Log(lock(&self.replica).log(lines)),
            Request::Configuration => Response::Configuration(self.configuration.clone()),
            Request::Leave => match self.store.leave().await {
                Ok(()) => {
                    self.left.send_replace(true);
                    Response::Left
                }
                Err(error) => unavailable(&error),
            },
            Request::AddNode => self.admit().await,
        }
    }

    async fn admit(&self) -> Response {
        let refuse = |reason: &str| Response::Unavailable { maybe: false, reason: reason.into() };
        let Some(admissions) = &self.admissions else { return refuse("nobody here can start a node") };
        let (reply, answer) = oneshot::channel();
        match admissions.try_send(reply) {
            Ok(()) => answer
                .await
                .unwrap_or(Response::Unavailable { maybe: true, reason: "this node ended meanwhile".into() }),
            Err(_) => refuse("other nodes are being added"),
        }
    }

    async fn write(&self, command: Command) -> Response {
        if let Err(error) = command.within_limits() {
            return Response::Invalid { reason: error.to_string() };
        }
        let begun = Instant::now();
        let (reply, answer) = oneshot::channel();
        let queue = lock(&self.tenure).as_ref().map(|tenure| tenure.writes.clone());
        let response = self.ask(queue, Write { command, reply }, answer).await;
        self.answered(Operation::Write, begun, &response);
        lock(&self.rates).note(Instant::now(), |bucket| bucket.writes += 1);
        response
    }

    async fn read(&self, asked: Asked, freshness: Freshness) -> Response {
        let begun = Instant::now();
        let response = if freshness == Freshness::Local {
            look_up(lock(&self.replica).machine(), &asked)
        } else {
            let (reply, answer) = oneshot::channel();
            let queue = lock(&self.tenure).as_ref().map(|tenure| tenure.reads.clone());
            self.ask(queue, Read { asked, freshness, reply }, answer).await
        };
        self.answered(Operation::Read, begun, &response);
        lock(&self.rates).note(Instant::now(), |bucket| bucket.reads += 1);
        response
    }

    pub(super) fn measured(&self, operation: Operation, begun: Instant, done: bool) {
        if let Some(meter) = &self.meter {
            meter.measured(operation, begun.elapsed(), done);
        }
    }

    /// Who is sent elsewhere has its operation there.
    fn answered(&self, operation: Operation, begun: Instant, response: &Response) {
        if !matches!(response, Response::Elsewhere { .. }) {
            self.measured(operation, begun, !matches!(response, Response::Unavailable { .. }));
        }
    }

    /// Queues `item`, and waits for its answer.
    async fn ask<T>(
        &self,
        queue: Option<mpsc::Sender<T>>,
        item: T,
        answer: oneshot::Receiver<Response>,
    ) -> Response {
        let Some(queue) = queue else { return self.elsewhere() };
        if queue.send(item).await.is_err() {
            return self.elsewhere();
        }
        let lost = || Response::Unavailable { maybe: true, reason: "this node lost its office".into() };
        answer.await.unwrap_or_else(|_| lost())
    }

    /// Says who aggregates. This node, while it prepares to, is nobody to be sent to.
    fn elsewhere(&self) -> Response {
        let leader = self.store.aggregator().borrow().map(|epoch| epoch.node);
        Response::Elsewhere { leader: leader.filter(|leader| *leader != self.node) }
    }

    fn status(&self) -> Status {
        let epoch = *self.store.aggregator().borrow();
        let mut members = self.store.candidates();
        members.push(self.node);
        members.sort_unstable();
        members.dedup();
        let Bucket { reads, writes, appends } = lock(&self.rates).last_10_s(Instant::now());
        let replica = lock(&self.replica);
        let machine = replica.machine();
        Status {
            node: self.node,
            leads: lock(&self.tenure).is_some(),
            epoch,
            index: machine.index(),
            batches: replica.last().map_or(0, |last| last.round),
            entries: machine.len() as u64,
            bytes: machine.bytes(),
            members,
            reads,
            writes,
            appends,
        }
    }

    async fn serve(&self, epoch: Option<Epoch>) {
        let replica = loop {
            match Replica::load(self.store.as_ref()).await {
                Ok(replica) => break replica,
                Err(error @ ReplicaError::Foreign { .. }) => tracing::error!(%error, "cannot serve"),
                Err(error) => tracing::debug!(%error, "not loaded yet"),
            }
            sleep(PAUSE).await;
        };
        *lock(&self.replica) = replica;
        match epoch {
            Some(epoch) if epoch.node == self.node => self.lead(epoch).await,
            _ => self.follow().await,
        }
    }

    /// Takes batches out of the store, until one cannot be taken.
    async fn follow(&self) {
        loop {
            let position = lock(&self.replica).position();
            match position.next_step(self.store.as_ref()).await {
                Ok(Some(step)) => {
                    lock(&self.replica).take(step);
                    lock(&self.rates).note(Instant::now(), |bucket| bucket.appends += 1);
                }
                Ok(None) => sleep(REFRESH).await,
                Err(error) => {
                    tracing::debug!(%error, "not followed");
                    return sleep(PAUSE).await;
                }
            }
        }
    }
}

pub(super) fn unavailable(error: &StoreError) -> Response {
    Response::Unavailable { maybe: error.outcome() == Outcome::Unknown, reason: error.to_string() }
}

pub(super) fn look_up(machine: &Machine, asked: &Asked) -> Response {
    let index = machine.index();
    match asked {
        Asked::Key(key) => Response::Value { value: machine.get(key).cloned(), index },
        Asked::After(after) => {
            let mut rest = machine.entries_after(after.as_deref());
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for (key, value) in rest.by_ref() {
                bytes += key.len() + value.len();
                entries.push((key.clone(), value.clone()));
                if bytes >= PAGE_BYTES {
                    break;
                }
            }
            Response::Page { entries, more: rest.next().is_some(), index }
        }
    }
}
