//! When to suspect the leader: a pure timer, and the task that runs it.
//!
//! openraft's own election timer cannot express most windows (its effective window after the last contact is
//! [max + min, 2 max) of its two timeouts), so it is switched off, and elections are asked for from here. Votes, terms and
//! log comparison stay openraft's.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::machine::RaftCore;
use super::notice::{Standing, in_force};
use crate::config::Window;
use crate::store::{Epoch, NodeId, Observer, StoreEvent};

/// The deadline after which the leader is suspected. Drawn anew after every contact.
#[derive(Debug)]
pub(crate) struct Deadline {
    window: Window,
    rng: ChaCha8Rng,
    at: Instant,
}

impl Deadline {
    pub(crate) fn new(window: Window, rng: ChaCha8Rng, now: Instant) -> Self {
        let mut deadline = Self { window, rng, at: now };
        deadline.reset(now);
        deadline
    }

    /// The leader was heard of, or an election was begun.
    pub(crate) fn reset(&mut self, now: Instant) {
        let Window { from_ms, to_ms } = self.window;
        let draw_us = self.rng.random_range(from_ms * 1000..to_ms * 1000);
        self.at = now + Duration::from_micros(draw_us);
    }
}

/// Publishes who leads and asks for elections, until `raft` stops. `changed` hears of every change of the server's state.
/// Who led in `restored_term`, the term found on disk, or before it counts only once it was heard of again.
#[allow(clippy::too_many_arguments, reason = "each is another end of a channel")]
pub(crate) async fn run(
    raft: RaftCore,
    standing: Standing,
    restored_term: u64,
    changed: Arc<Notify>,
    mut deadline: Deadline,
    mut contact: watch::Receiver<Instant>,
    aggregator: watch::Sender<Option<Epoch>>,
    observer: Arc<dyn Observer>,
) {
    let mut metrics = raft.server_metrics();
    let mut told = standing.follow();
    let mut was_eligible = false;
    let mut heard_of_any = false;
    loop {
        let told_epoch = told.borrow_and_update().as_ref().map(|notice| notice.epoch);
        let (leads, term, own) = {
            let metrics = metrics.borrow_and_update();
            let leads = metrics.current_leader == Some(metrics.id);
            let term = metrics.vote.leader_id.term;
            let own = metrics.current_leader.map(|node| Epoch { counter: term, node: NodeId(node) });
            (leads, term, own.filter(|epoch| heard_of_any || epoch.counter > restored_term))
        };
        let votes = standing.votes();
        let eligible = votes && !leads;
        let epoch = in_force(own, term, votes, told_epoch);
        publish(&aggregator, epoch, observer.as_ref());
        changed.notify_one();
        // While a node leads, or knows no cluster, nobody is due to be heard of.
        if eligible && !was_eligible {
            deadline.reset(Instant::now());
        }
        was_eligible = eligible;
        tokio::select! {
            biased;
            heard = contact.changed() => {
                if heard.is_err() { return }
                heard_of_any = true;
                deadline.reset(*contact.borrow_and_update());
            }
            changed = metrics.changed() => if changed.is_err() { return },
            // Its sender is in `standing`.
            _ = told.changed() => {}
            () = tokio::time::sleep_until(deadline.at), if eligible => {
                observer.observe(StoreEvent::Suspected { epoch });
                if raft.trigger().elect(true).await.is_err() { return }
                deadline.reset(Instant::now());
            }
        }
    }
}

/// Epochs only grow: a late metric never takes a newer aggregator back.
fn publish(aggregator: &watch::Sender<Option<Epoch>>, epoch: Option<Epoch>, observer: &dyn Observer) {
    let changed = aggregator.send_if_modified(|known| {
        let changes = *known != epoch && (epoch.is_none() || epoch > *known);
        if changes {
            *known = epoch;
        }
        changes
    });
    if changed {
        observer.observe(StoreEvent::AggregatorChanged { epoch });
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn draws_fill_the_window() {
        let now = Instant::now();
        let window = Window { from_ms: 150, to_ms: 300 };
        let mut deadline = Deadline::new(window, ChaCha8Rng::seed_from_u64(1), now);
        let mut draws = Vec::new();
        for _ in 0..1000 {
            deadline.reset(now);
            draws.push((deadline.at - now).as_millis());
        }
        assert!(draws.iter().all(|draw| (150..300).contains(draw)));
        assert!(draws.iter().min() < Some(&155) && draws.iter().max() > Some(&294));
    }
}
