//! Lifelines on the simulated network: a crash ends those to the node, and a false alarm those of a node, whoever is well.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use replication::NodeId;
use replication::lifeline::Lifeline;
use tokio::sync::oneshot;

/// All lifelines, in the order in which they were made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifelines(Arc<Mutex<Vec<Made>>>);

/// Whose, to whom, and what ends it.
type Made = (NodeId, NodeId, oneshot::Sender<()>);

impl Lifelines {
    /// The end of `node`.
    pub(crate) fn of(&self, node: NodeId) -> Arc<dyn Lifeline> {
        Arc::new(End { node, all: self.clone() })
    }

    /// `node` crashed.
    pub(crate) fn crash(&self, node: NodeId) {
        self.0.lock().unwrap().retain(|(by, _, _)| *by != node);
        self.cut(|_, to| to == node);
    }

    /// The lifeline that `node` has breaks, although nobody crashed.
    pub(crate) fn snap(&self, node: NodeId) {
        self.cut(|by, _| by == node);
    }

    fn cut(&self, ends: impl Fn(NodeId, NodeId) -> bool) {
        let mut all = self.0.lock().unwrap();
        for (by, to, end) in std::mem::take(&mut *all) {
            if ends(by, to) {
                // Whoever let go of it does not hear.
                let _ = end.send(());
            } else if !end.is_closed() {
                all.push((by, to, end));
            }
        }
    }
}

#[derive(Debug)]
struct End {
    node: NodeId,
    all: Lifelines,
}

#[async_trait]
impl Lifeline for End {
    async fn ended(&self, node: NodeId) {
        let (end, ended) = oneshot::channel();
        self.all.0.lock().unwrap().push((self.node, node, end));
        if ended.await.is_err() {
            // The node itself is gone.
            std::future::pending::<()>().await;
        }
    }
}
