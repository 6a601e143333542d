//! chitchat's transport over ours, in both directions.
//!
//! A Syn travels as a request, its SynAck as the response, the Ack as a request of its own. chitchat answers the address
//! a message came from, so a request under way has an address of its own; and it chooses its own peers without a seed, so
//! what it sends by itself is dropped: only what is asked of [`gossip_address`] goes out.
//!
//! chitchat believes whatever it is told of any node, and nodes join while others run: a message that names one whose address
//! is not its own, or more nodes than a cluster has, is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::{ChitchatId, ChitchatMessage, Deserializable, Serializable};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::store::NodeId;
use crate::transport::{Class, Frame, Refusal, Transport};
use crate::wire;

/// Messages that wait for chitchat, or for being sent; more are dropped, as on any network.
const MAX_QUEUED: usize = 64;

/// Exchanges this node began that are under way at a time.
const MAX_UNDER_WAY: usize = 32;

/// How long chitchat may take for an answer, and a peer for its response.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Port of every node, and of Acks.
const NODE_PORT: u16 = 5000;
/// Port to which a Syn goes out.
const GOSSIP_PORT: u16 = 5001;
/// Ports of requests that wait for their answer begin here.
const FIRST_TICKET: u16 = 10_000;

/// Bytes of a node's heartbeat and versions in a digest.
const NODE_DIGEST_BYTES: usize = 24;

/// Nodes that are known by name: those of a cluster, and many that joined and left.
const MAX_NODES: usize = 4096;

/// Addresses of the nodes, as chitchat knows them: the lower half of their ids. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Addresses(Arc<Mutex<BTreeMap<u32, NodeId>>>);

impl Addresses {
    pub(super) fn new(nodes: &BTreeSet<NodeId>) -> Self {
        let addresses = Self(Arc::default());
        nodes.iter().for_each(|node| {
            addresses.learn(*node);
        });
        addresses
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u32, NodeId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(node: NodeId) -> u32 {
        (node.0 & u64::from(u32::MAX)) as u32
    }

    /// Takes note of a node; false if there are too many, or another one has its address.
    pub(super) fn learn(&self, node: NodeId) -> bool {
        let mut known = self.known();
        let full = known.len() >= MAX_NODES;
        match known.get(&Self::host(node)) {
            Some(there) => *there == node,
            None if full => false,
            None => known.insert(Self::host(node), node).is_none(),
        }
    }

    fn with_port(node: NodeId, port: u16) -> SocketAddr {
        (Ipv4Addr::from(Self::host(node)), port).into()
    }

    fn node(&self, addr: SocketAddr) -> Option<NodeId> {
        let SocketAddr::V4(addr) = addr else { return None };
        self.known().get(&u32::from(*addr.ip())).copied()
    }

    /// A node's name in gossip state, in its life of this number.
    pub(super) fn id(node: NodeId, life: u64) -> ChitchatId {
        ChitchatId::new(node.to_string(), life, Self::with_port(node, NODE_PORT))
    }

    /// Whose name this is, and in which life.
    pub(super) fn named(&self, id: &ChitchatId) -> Option<(NodeId, u64)> {
        let (node, life) = (NodeId(id.node_id.parse().ok()?), id.generation_id);
        (Self::id(node, life) == *id && self.learn(node)).then_some((node, life))
    }

    /// Where to send for a round of gossip with `node`.
    pub(super) fn gossip_address(&self, node: NodeId) -> SocketAddr {
        Self::with_port(node, GOSSIP_PORT)
    }

    /// Decodes a message that names possible nodes only.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<ChitchatMessage, Refusal> {
        self.names_nodes_only(bytes).ok_or_else(|| Refusal("gossip of what is no node".into()))?;
        let mut rest = bytes;
        match ChitchatMessage::deserialize(&mut rest) {
            Ok(message) if rest.is_empty() => Ok(message),
            Ok(_) => Err(Refusal(format!("{} bytes after a gossip message", rest.len()))),
            Err(error) => Err(Refusal(format!("malformed gossip: {error}"))),
        }
    }

    /// Nodes come into being by a digest, which Syn (0) and SynAck (1) begin with: after magic, version and type a count,
    /// then ids, each with its heartbeat and versions.
    fn names_nodes_only(&self, bytes: &[u8]) -> Option<()> {
        let (head, mut rest) = bytes.split_at_checked(4)?;
        if head[3] > 1 {
            return Some(());
        }
        let (count, digests) = rest.split_at_checked(2)?;
        rest = digests;
        for _ in 0..u16::from_le_bytes([count[0], count[1]]) {
            self.named(&ChitchatId::deserialize(&mut rest).ok()?)?;
            rest = rest.get(NODE_DIGEST_BYTES..)?;
        }
        Some(())
    }
}

type Inbound = (SocketAddr, ChitchatMessage);

#[derive(Debug)]
struct Post {
    to: NodeId,
    message: Vec<u8>,
    /// It is a Syn, whose response is for chitchat.
    asks: bool,
}

#[derive(Debug, Default)]
struct Tickets {
    last: u16,
    waiting: BTreeMap<u16, oneshot::Sender<Bytes>>,
}

/// Joins chitchat to a transport.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    addresses: Addresses,
    inbound: mpsc::Sender<Inbound>,
    tickets: Arc<Mutex<Tickets>>,
    /// chitchat has seen a message.
    seen: Arc<Notify>,
}

/// The other ends of a bridge, until chitchat and the carrier take them.
#[derive(Debug)]
pub(super) struct Ends {
    inbox: mpsc::Receiver<Inbound>,
    outbox: mpsc::Sender<Post>,
    posts: mpsc::Receiver<Post>,
}

impl Bridge {
    pub(super) fn new(addresses: Addresses) -> (Self, Ends) {
        let (inbound, inbox) = mpsc::channel(MAX_QUEUED);
        let (outbox, posts) = mpsc::channel(MAX_QUEUED);
        let bridge = Self { addresses, inbound, tickets: Arc::default(), seen: Arc::default() };
        (bridge, Ends { inbox, outbox, posts })
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until chitchat has seen another message.
    pub(super) async fn seen(&self) {
        self.seen.notified().await;
    }

    /// Answers a peer's message: with chitchat's answer to a Syn, with nothing to an Ack.
    pub(super) async fn on_message(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let message = self.addresses.decode(&request.head)?;
        let busy = || Refusal("too much gossip at once".into());
        let asks = match message {
            ChitchatMessage::Syn { .. } => true,
            ChitchatMessage::Ack { .. } => false,
            _ => return Err(Refusal("an answer to no question".into())),
        };
        let (port, answer) = if asks { self.ticket().ok_or_else(busy)? } else { (NODE_PORT, None) };
        if !self.addresses.learn(from) {
            return Err(Refusal(format!("there are too many nodes for node {from}")));
        }
        let addr = Addresses::with_port(from, port);
        self.inbound.try_send((addr, message)).map_err(|_| busy())?;
        let Some(answer) = answer else { return Ok(Frame::default()) };
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        self.tickets().waiting.remove(&port);
        match answered {
            Ok(Ok(answer)) => Ok(Frame::new(0, answer)),
            _ => Err(Refusal("gossip has stopped".into())),
        }
    }

    fn ticket(&self) -> Option<(u16, Option<oneshot::Receiver<Bytes>>)> {
        let mut tickets = self.tickets();
        tickets.waiting.retain(|_, waiting| !waiting.is_closed());
        if tickets.waiting.len() >= MAX_QUEUED {
            return None;
        }
        tickets.last = tickets.last.checked_add(1).unwrap_or(0).max(FIRST_TICKET);
        let (sender, receiver) = oneshot::channel();
        let port = tickets.last;
        tickets.waiting.insert(port, sender);
        Some((port, Some(receiver)))
    }

    /// Carries chitchat's messages until it ends.
    async fn carry(self, mut posts: mpsc::Receiver<Post>, transport: Arc<dyn Transport>) {
        let mut under_way = JoinSet::new();
        while let Some(post) = posts.recv().await {
            while under_way.try_join_next().is_some() {}
            if under_way.len() < MAX_UNDER_WAY {
                under_way.spawn(self.clone().exchange(post, transport.clone()));
            }
        }
    }

    async fn exchange(self, post: Post, transport: Arc<dyn Transport>) {
        let request = Frame::new(wire::GOSSIP_MESSAGE, post.message);
        let request = transport.request(post.to, Class::Heartbeat, request);
        let Ok(Ok(response)) = tokio::time::timeout(ANSWER_TIMEOUT, request).await else { return };
        if !post.asks {
            return;
        }
        let addr = Addresses::with_port(post.to, NODE_PORT);
        if let Ok(message @ ChitchatMessage::SynAck { .. }) = self.addresses.decode(&response.head) {
            let _ = self.inbound.try_send((addr, message));
        }
    }
}

/// Gives chitchat its socket, once.
struct Opener(Mutex<Option<Socket>>);

struct Socket {
    bridge: Bridge,
    inbox: mpsc::Receiver<Inbound>,
    outbox: mpsc::Sender<Post>,
}

/// Starts chitchat on `bridge`, and the task that carries its messages in `tasks`.
pub(super) async fn start(
    config: chitchat::ChitchatConfig,
    values: Vec<(String, String)>,
    (bridge, ends): (Bridge, Ends),
    transport: Arc<dyn Transport>,
    tasks: &mut JoinSet<()>,
) -> Result<chitchat::ChitchatHandle, String> {
    let Ends { inbox, outbox, posts } = ends;
    tasks.spawn(bridge.clone().carry(posts, transport));
    let opener = Opener(Mutex::new(Some(Socket { bridge, inbox, outbox })));
    chitchat::spawn_chitchat(config, values, &opener).await.map_err(|error| error.to_string())
}

#[async_trait]
impl chitchat::transport::Transport for Opener {
    async fn open(&self, _addr: SocketAddr) -> Result<Box<dyn chitchat::transport::Socket>, anyhow::Error> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let socket = socket.ok_or_else(|| anyhow::anyhow!("opened twice"))?;
        Ok(Box::new(socket))
    }
}

#[async_trait]
impl chitchat::transport::Socket for Socket {
    /// Queues a message; chitchat waits for this, so it never blocks.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> Result<(), anyhow::Error> {
        let asks = matches!(message, ChitchatMessage::Syn { .. });
        if asks && to.port() != GOSSIP_PORT {
            return Ok(());
        }
        let message = message.serialize_to_vec();
        if to.port() >= FIRST_TICKET {
            if let Some(waiting) = self.bridge.tickets().waiting.remove(&to.port()) {
                let _ = waiting.send(message.into());
            }
        } else if let Some(to) = self.bridge.addresses.node(to) {
            let _ = self.outbox.try_send(Post { to, message, asks });
        }
        Ok(())
    }

    async fn recv(&mut self) -> Result<Inbound, anyhow::Error> {
        // chitchat asks for the next message when it is done with the last.
        self.bridge.seen.notify_one();
        self.inbox.recv().await.ok_or_else(|| anyhow::anyhow!("closed"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses() -> Addresses {
        Addresses::new(&[3, 70_000, u64::MAX].map(NodeId).into())
    }

    #[test]
    fn every_node_has_an_address_and_no_other() {
        let addresses = addresses();
        for node in [3, 70_000, u64::MAX].map(NodeId) {
            let id = Addresses::id(node, 7);
            assert_eq!(addresses.named(&id), Some((node, 7)));
            assert_eq!(addresses.named(&ChitchatId { node_id: "4".into(), ..id }), None);
        }
        let joins = Addresses::id(NodeId(4), 0);
        assert_eq!(addresses.named(&joins), Some((NodeId(4), 0)));
        assert!(!addresses.learn(NodeId(4 + (1 << 32))), "its address is another node's");
    }

    #[test]
    fn only_so_many_nodes_are_known() {
        let addresses = Addresses::new(&(0..MAX_NODES as u64).map(NodeId).collect());
        assert!(addresses.learn(NodeId(7)) && !addresses.learn(NodeId(MAX_NODES as u64)));
        assert_eq!(addresses.named(&Addresses::id(NodeId(70_000), 0)), None);
    }

    #[test]
    fn a_message_that_names_a_stranger_is_refused() {
        let syn = |id: &ChitchatId| {
            let mut bytes = vec![0x53, 0xb0, 0, 0, 1, 0];
            id.serialize(&mut bytes);
            bytes.extend([0; NODE_DIGEST_BYTES]);
            "run".to_owned().serialize(&mut bytes);
            bytes
        };
        let member = Addresses::id(NodeId(3), 0);
        assert!(addresses().decode(&syn(&member)).is_ok());
        let stranger = ChitchatId::new("4", 0, member.gossip_advertise_addr);
        assert!(addresses().decode(&syn(&stranger)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = addresses().decode(&bytes);
            let _ = addresses().decode(&[&[0x53, 0xb0, 0, 1][..], &bytes].concat());
        }
    }
}
