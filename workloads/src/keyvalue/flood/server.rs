//! A server of the dictionary by flooding: any node takes any request, proposes what waits, and answers once it is decided.
//! Reads wait for an instance that began after them, so they are linearizable; local ones are answered at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use replication::NodeId;
use replication::transport::{Class, Frame, Handler, Refusal, Transport, head};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::machine::Machine;
use super::super::message::{self, Command, Freshness, Request, Response, Status, check_key, decode, encode};
use super::super::rates::{Bucket, Rates};
use super::super::server::{Asked, lock, look_up};
use super::super::tenure::{MAX_BATCH_COMMANDS, written};
use super::{Flood, Message, Step};

/// Tag of the messages between nodes.
const TAG: u8 = message::TAG + 1;
/// Multicasts that wait to be sent; whoever has more waits.
const OUTGOING: usize = 64;
/// Requests that wait for an instance; beyond that they are refused.
const WAITING: usize = 4096;

/// One node's server.
#[derive(Clone)]
pub struct FloodServer(Arc<Shared>);

struct Shared {
    node: NodeId,
    configuration: String,
    state: Mutex<State>,
    outgoing: mpsc::Sender<Message>,
    /// Taken by [`FloodServer::run`].
    to_send: Mutex<Option<mpsc::Receiver<Message>>>,
}

struct State {
    flood: Flood,
    machine: Machine,
    /// Not proposed yet.
    waiting: VecDeque<Ask>,
    /// Of the instance under way.
    proposed: Vec<Ask>,
    rates: Rates,
}

enum Ask {
    Write(Command, oneshot::Sender<Response>),
    Read(Asked, oneshot::Sender<Response>),
}

impl std::fmt::Debug for FloodServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FloodServer").field("node", &self.0.node).finish_non_exhaustive()
    }
}

impl FloodServer {
    /// The server of `node` among `nodes`; `configuration` is given to clients that ask for the test's.
    #[must_use]
    pub fn new(node: NodeId, nodes: &[NodeId], configuration: String) -> Self {
        let (outgoing, to_send) = mpsc::channel(OUTGOING);
        let state = State {
            flood: Flood::new(node, nodes),
            machine: Machine::default(),
            waiting: VecDeque::new(),
            proposed: Vec::new(),
            rates: Rates::new(Instant::now()),
        };
        let (state, to_send) = (Mutex::new(state), Mutex::new(Some(to_send)));
        Self(Arc::new(Shared { node, configuration, state, outgoing, to_send }))
    }

    /// Sends what this node has to say over `transport`, whose peers it has to have a connection to, and takes those for crashed
    /// whose connection ends. Once, and until it is dropped.
    pub async fn run(&self, transport: Arc<dyn Transport>) {
        let Some(mut to_send) = lock(&self.0.to_send).take() else { return };
        let (peers, mut connected) = (transport.peers(), transport.connected());
        let mut alive = connected.borrow_and_update().clone();
        let mut sending = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(message) = to_send.recv() => {
                    let frame = Frame::new(TAG, Bytes::new()).with_segment(head::encode(&message));
                    for peer in peers.iter().copied() {
                        let (transport, frame) = (transport.clone(), frame.clone());
                        // To somebody who has crashed it is in vain.
                        sending.spawn(async move { transport.request(peer, Class::Log, frame).await.is_ok() });
                    }
                }
                Some(_) = sending.join_next() => {}
                changed = connected.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = connected.borrow_and_update().clone();
                    let crashed: Vec<NodeId> = alive.iter().copied().filter(|peer| !now.contains(peer)).collect();
                    alive = now;
                    let messages = {
                        let mut state = lock(&self.0.state);
                        crashed.into_iter().for_each(|peer| state.flood.crashed(peer));
                        state.advance()
                    };
                    self.0.say(messages).await;
                }
            }
        }
    }

    /// Every entry of this node's copy.
    #[must_use]
    pub fn copy(&self) -> Machine {
        lock(&self.0.state).machine.clone()
    }

    /// Instances this node has decided.
    #[must_use]
    pub fn decided(&self) -> u64 {
        lock(&self.0.state).flood.decided()
    }
}

#[async_trait]
impl Handler for FloodServer {
    async fn handle(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        if request.tag != TAG {
            return Ok(encode(&self.0.answer(decode(request)?).await));
        }
        let message = head::decode(&request.into_body())?;
        let messages = {
            let mut state = lock(&self.0.state);
            state.flood.take(from, message);
            state.advance()
        };
        self.0.say(messages).await;
        Ok(Frame::new(TAG, Bytes::new()))
    }
}

impl Shared {
    async fn say(&self, messages: Vec<Message>) {
        for message in messages {
            // Nobody sends any more once this node has ended.
            let _ = self.outgoing.send(message).await;
        }
    }

    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Write(command) => {
                if let Err(error) = command.within_limits() {
                    return Response::Invalid { reason: error.to_string() };
                }
                self.ask(|reply| Ask::Write(command, reply)).await
            }
            Request::Read { key, freshness } => match check_key(&key) {
                Ok(()) => self.read(Asked::Key(key), freshness).await,
                Err(error) => Response::Invalid { reason: error.to_string() },
            },
            Request::Page { after, freshness } => self.read(Asked::After(after), freshness).await,
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Configuration => Response::Configuration(self.configuration.clone()),
            Request::Log { .. } | Request::Leave | Request::AddNode => {
                Response::Invalid { reason: "flooding has neither a log nor members that come and go".into() }
            }
        }
    }

    async fn read(&self, asked: Asked, freshness: Freshness) -> Response {
        if freshness == Freshness::Local {
            return look_up(&lock(&self.state).machine, &asked);
        }
        self.ask(|reply| Ask::Read(asked, reply)).await
    }

    async fn ask(&self, ask: impl FnOnce(oneshot::Sender<Response>) -> Ask) -> Response {
        let (reply, answer) = oneshot::channel();
        let messages = {
            let mut state = lock(&self.state);
            if state.waiting.len() >= WAITING {
                let reason = format!("{WAITING} requests wait already");
                return Response::Unavailable { maybe: false, reason };
            }
            state.waiting.push_back(ask(reply));
            state.advance()
        };
        self.say(messages).await;
        let lost = || Response::Unavailable { maybe: true, reason: "this node has ended".into() };
        answer.await.unwrap_or_else(|_| lost())
    }

    fn status(&self) -> Status {
        let mut state = lock(&self.state);
        let Bucket { reads, writes, appends } = state.rates.last_10_s(Instant::now());
        let State { flood, machine, .. } = &*state;
        Status {
            node: self.node,
            index: machine.index(),
            batches: flood.decided(),
            entries: machine.len() as u64,
            bytes: machine.bytes(),
            members: flood.alive.iter().copied().collect(),
            reads,
            writes,
            appends,
            ..Status::default()
        }
    }
}

impl State {
    /// Goes on as far as it can; returns what is to be multicast.
    fn advance(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            if self.flood.is_idle() && (self.flood.is_called() || !self.waiting.is_empty()) {
                messages.push(self.propose());
            }
            match self.flood.step() {
                Some(Step::Send(message)) => messages.push(message),
                Some(Step::Decide(commands)) => self.apply(commands),
                None => return messages,
            }
        }
    }

    fn propose(&mut self) -> Message {
        self.proposed = self.waiting.drain(..self.waiting.len().min(MAX_BATCH_COMMANDS)).collect();
        let writes = self.proposed.iter().filter_map(|ask| match ask {
            Ask::Write(command, _) => Some(command.clone()),
            Ask::Read(..) => None,
        });
        self.flood.propose(writes.collect())
    }

    fn apply(&mut self, commands: Vec<(NodeId, Command)>) {
        let mut own = VecDeque::new();
        for (node, command) in commands {
            let effect = self.machine.apply(&command);
            if node == self.flood.node {
                own.push_back(written(effect, self.machine.index()));
            }
        }
        let now = Instant::now();
        self.rates.note(now, |bucket| bucket.appends += 1);
        for ask in self.proposed.drain(..) {
            // Whoever asked may be gone.
            let _ = match ask {
                Ask::Write(_, reply) => {
                    self.rates.note(now, |bucket| bucket.writes += 1);
                    own.pop_front().map(|answer| reply.send(answer))
                }
                Ask::Read(asked, reply) => {
                    self.rates.note(now, |bucket| bucket.reads += 1);
                    Some(reply.send(look_up(&self.machine, &asked)))
                }
            };
        }
    }
}
