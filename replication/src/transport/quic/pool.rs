//! The live connections of an endpoint: one per peer and lane, whoever dialled it.
//!
//! # Which of two connections stays
//! A newer connection replaces an older one; the only question is what "newer" means when both ends dialled at the same
//! time, because both must answer alike. [`Origin::supersedes`] decides from facts that both ends know: a peer that
//! restarted (its incarnation differs) always wins; of two connections dialled by the same node the later attempt wins;
//! of two that crossed, the one dialled by the lower id wins.
//!
//! Locks are never held across an await, and the watches are never sent to under the state's lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use tokio::sync::watch;

use super::link::code;
use crate::store::NodeId;
use crate::transport::{DatagramCount, Lane};

/// Locks `mutex`; a panic elsewhere leaves our state consistent, because every update is a single assignment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a connection came from, in facts both ends know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// Who dialled.
    pub(super) dialled_by: NodeId,
    /// The dialler's count of attempts.
    pub(super) attempt: u64,
    /// Drawn by the peer's process when it bound its socket.
    pub(super) peer_incarnation: u64,
}

impl Origin {
    /// Whether a connection of this origin takes the place of a live one of origin `current`.
    fn supersedes(&self, current: &Self) -> bool {
        if self.peer_incarnation != current.peer_incarnation {
            true
        } else if self.dialled_by == current.dialled_by {
            self.attempt > current.attempt
        } else {
            self.dialled_by < current.dialled_by
        }
    }
}

/// The connection to one peer on one lane.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) peer: NodeId,
    pub(super) lane: Lane,
    pub(super) origin: Origin,
    pub(super) connection: Connection,
}

/// A connection's place in the pool: leaves it, closed, when dropped, however its task ends.
#[derive(Debug)]
pub(super) struct Seat {
    pool: Arc<Pool>,
    pub(super) link: Link,
    _counting: Counting,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Closing a connection that is lost already would cover up the reason.
        if self.link.connection.close_reason().is_none() {
            self.link.connection.close(code::CLOSING, b"");
        }
        self.pool.remove(&self.link);
    }
}

/// Another connection stays. This one has no place in the pool, but its peer may have admitted it meanwhile.
#[derive(Debug)]
pub(super) struct Duplicate(pub(super) Seat);

#[derive(Debug, Default)]
struct State {
    links: BTreeMap<(NodeId, Lane), Link>,
    /// Connections whose datagrams are still counted by quinn.
    counting: BTreeMap<u64, (Lane, Connection)>,
    next_serial: u64,
    /// Datagrams of connections that are gone.
    past: (DatagramCount, DatagramCount),
}

impl State {
    fn live(&self, peer: NodeId, lane: Lane) -> Option<&Link> {
        self.links.get(&(peer, lane)).filter(|link| link.connection.close_reason().is_none())
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pool {
    state: Mutex<State>,
    connected: watch::Sender<Vec<NodeId>>,
    /// Counts changes of `links`.
    changes: watch::Sender<u64>,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            connected: watch::Sender::new(Vec::new()),
            changes: watch::Sender::new(0),
        }
    }

    /// The live connection to `peer`.
    pub(super) fn live(&self, peer: NodeId, lane: Lane) -> Option<Connection> {
        lock(&self.state).live(peer, lane).map(|link| link.connection.clone())
    }

    /// Round-trip times of the live control connections.
    pub(super) fn round_trips(&self) -> Vec<(NodeId, Duration)> {
        let state = lock(&self.state);
        let peers = state.links.keys().filter(|(_, lane)| *lane == Lane::Control).map(|(peer, _)| *peer);
        peers.filter_map(|peer| Some((peer, state.live(peer, Lane::Control)?.connection.rtt()))).collect()
    }

    /// Takes in a new authenticated connection and returns its seat with its predecessor, if that is still open.
    pub(super) fn admit(
        self: &Arc<Self>,
        link: Link,
        counting: Counting,
    ) -> Result<(Seat, Option<Link>), Duplicate> {
        let current = {
            let mut state = lock(&self.state);
            let current = state.live(link.peer, link.lane).cloned();
            let stays = |current: &Link| !link.origin.supersedes(&current.origin);
            if current.as_ref().is_some_and(stays) {
                drop(state);
                return Err(Duplicate(Seat { pool: self.clone(), link, _counting: counting }));
            }
            state.links.insert((link.peer, link.lane), link.clone());
            current
        };
        self.publish();
        Ok((Seat { pool: self.clone(), link, _counting: counting }, current))
    }

    /// Forgets `link`, unless another connection took its place.
    fn remove(&self, link: &Link) {
        {
            let mut state = lock(&self.state);
            let key = (link.peer, link.lane);
            let same = |current: &Link| current.connection.stable_id() == link.connection.stable_id();
            if state.links.get(&key).is_some_and(same) {
                state.links.remove(&key);
            }
        }
        self.publish();
    }

    /// Forgets every connection that `keep` does not want to keep, and returns them.
    pub(super) fn remove_unless(&self, keep: impl Fn(NodeId) -> bool) -> Vec<Link> {
        let removed = {
            let mut state = lock(&self.state);
            let (kept, removed) =
                std::mem::take(&mut state.links).into_iter().partition(|((id, _), _)| keep(*id));
            state.links = kept;
            let removed: BTreeMap<_, _> = removed;
            removed.into_values().collect()
        };
        self.publish();
        removed
    }

    /// Follows which peers have a live control connection.
    pub(super) fn connected(&self) -> watch::Receiver<Vec<NodeId>> {
        self.connected.subscribe()
    }

    /// Follows changes; to be used with [`Pool::live`].
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn publish(&self) {
        self.connected.send_if_modified(|connected| {
            let state = lock(&self.state);
            let both = |id: &NodeId| state.links.contains_key(&(*id, Lane::Bulk));
            let control = state.links.keys().filter(|(_, lane)| *lane == Lane::Control);
            let now: Vec<NodeId> = control.map(|(id, _)| *id).filter(both).collect();
            let changed = *connected != now;
            *connected = now;
            changed
        });
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// Counts the datagrams of `connection`, all it ever sent and received. Once per connection: when the guard is
    /// dropped, the sum is kept.
    pub(super) fn count(self: &Arc<Self>, lane: Lane, connection: Connection) -> Counting {
        let mut state = lock(&self.state);
        let serial = state.next_serial;
        state.next_serial += 1;
        state.counting.insert(serial, (lane, connection));
        Counting { pool: self.clone(), serial }
    }

    /// Datagrams of the control and of the bulk connections, past ones included.
    pub(super) fn datagrams(&self) -> (DatagramCount, DatagramCount) {
        let state = lock(&self.state);
        let mut sum = state.past;
        for (lane, connection) in state.counting.values() {
            add(&mut sum, *lane, connection);
        }
        sum
    }
}

/// Keeps a connection's statistics when it ends.
#[derive(Debug)]
pub(super) struct Counting {
    pool: Arc<Pool>,
    serial: u64,
}

impl Drop for Counting {
    fn drop(&mut self) {
        let mut state = lock(&self.pool.state);
        if let Some((lane, connection)) = state.counting.remove(&self.serial) {
            add(&mut state.past, lane, &connection);
        }
    }
}

fn add(sum: &mut (DatagramCount, DatagramCount), lane: Lane, connection: &Connection) {
    let stats = connection.stats();
    let sum = match lane {
        Lane::Control => &mut sum.0,
        Lane::Bulk => &mut sum.1,
    };
    sum.sent_datagrams += stats.udp_tx.datagrams;
    sum.sent_bytes += stats.udp_tx.bytes;
    sum.received_datagrams += stats.udp_rx.datagrams;
    sum.received_bytes += stats.udp_rx.bytes;
    sum.lost_packets += stats.path.lost_packets;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(dialled_by: u64, attempt: u64, peer_incarnation: u64) -> Origin {
        Origin { dialled_by: NodeId(dialled_by), attempt, peer_incarnation }
    }

    #[test]
    fn both_ends_keep_the_same_of_two_crossing_connections() {
        // What the ends know differs only in the incarnation of the other; within a pair of processes it is constant.
        let (by_lower, by_higher) = (origin(1, 1, 7), origin(2, 5, 7));
        assert!(by_lower.supersedes(&by_higher));
        assert!(!by_higher.supersedes(&by_lower));
    }

    #[test]
    fn a_restarted_peer_and_a_later_attempt_win() {
        assert!(origin(2, 1, 8).supersedes(&origin(1, 9, 7)));
        assert!(origin(1, 2, 7).supersedes(&origin(1, 1, 7)));
        assert!(!origin(1, 1, 7).supersedes(&origin(1, 2, 7)));
    }
}
