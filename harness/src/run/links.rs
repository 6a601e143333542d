//! The controller's ends of every node's control streams, joined into one queue of news. A node that does not read or
//! write (a stopped one) delays nobody else.

use std::collections::BTreeMap;

use replication::NodeId;
use tokio::io::BufReader;
use tokio::sync::mpsc;

use crate::control::codec::{LineReader, LineWriter};
use crate::control::{FromNode, ToNode};
use crate::place::Pipes;

/// News that wait for the controller; beyond that, nodes wait.
const WAITING_NEWS: usize = 1024;
/// Orders that wait for a node to read them; beyond that, orders are refused.
const WAITING_ORDERS: usize = 64;

/// What was heard of a node.
#[derive(Debug)]
pub(crate) enum News {
    /// It said something.
    Message(FromNode),
    /// It said something that was not understood.
    Unreadable(String),
    /// Its stream ended.
    Gone,
}

/// Every node's streams.
#[derive(Debug)]
pub(crate) struct Links {
    orders: BTreeMap<NodeId, mpsc::Sender<ToNode>>,
    news: mpsc::Receiver<(NodeId, News)>,
    report: mpsc::Sender<(NodeId, News)>,
}

impl Links {
    pub(crate) fn new() -> Self {
        let (report, news) = mpsc::channel(WAITING_NEWS);
        Self { orders: BTreeMap::new(), news, report }
    }

    /// Joins a node.
    pub(crate) fn add(&mut self, node: NodeId, pipes: Pipes) {
        let (orders, mut waiting) = mpsc::channel(WAITING_ORDERS);
        self.orders.insert(node, orders);
        let report = self.report.clone();
        tokio::spawn(async move {
            let mut reader = LineReader::new(BufReader::new(pipes.stdout));
            loop {
                let news = match reader.next().await {
                    Ok(Some(message)) => News::Message(message),
                    Ok(None) => News::Gone,
                    Err(error) if error.is_skippable() => News::Unreadable(error.to_string()),
                    Err(_) => News::Gone,
                };
                let gone = matches!(news, News::Gone);
                if report.send((node, news)).await.is_err() || gone {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let mut writer = LineWriter::new(pipes.stdin);
            while let Some(order) = waiting.recv().await {
                // A broken stream shows up as the end of the other one.
                if writer.send(&order).await.is_err_and(|error| !error.is_skippable()) {
                    return;
                }
            }
        });
    }

    /// Sends an order, unless the node is gone or does not read.
    pub(crate) fn send(&self, node: NodeId, order: ToNode) -> bool {
        self.orders.get(&node).is_some_and(|orders| orders.try_send(order).is_ok())
    }

    /// Closes the stream to a node, once every order is written.
    pub(crate) fn close(&mut self, node: NodeId) {
        self.orders.remove(&node);
    }

    /// The next news of any node. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<(NodeId, News)> {
        self.news.recv().await
    }
}
