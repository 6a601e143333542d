//! When to suspect the leader: a pure timer, and the task that runs it.
//!
//! openraft's own election timer cannot express most windows (its effective window after the last contact is
//! [max + min, 2 max) of its two timeouts), so it is switched off, and elections are asked for from here. Votes, terms and
//! log comparison stay openraft's.
//!
//! Where a lifeline tells that the leader crashed, a voter gives up its lease and stands at its turn instead of waiting for
//! the window. Nobody is elected whom a majority that has done so does not elect: one lifeline that breaks while the leader
//! is well changes nothing.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use openraft::raft::TransferLeaderRequest;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::machine::RaftCore;
use super::notice::{Standing, in_force};
use super::types::TypeConfig;
use crate::config::Window;
use crate::event::{Observer, StoreEvent};
use crate::lifeline::{self, Follower, TURNS};
use crate::store::{Epoch, NodeId};
use crate::transport::Transport;

/// The deadline after which the leader is suspected. Drawn anew after every contact.
#[derive(Debug)]
pub(crate) struct Deadline {
    window: Window,
    rng: ChaCha8Rng,
    at: Instant,
    /// Since when it runs.
    since: Instant,
}

impl Deadline {
    pub(crate) fn new(window: Window, rng: ChaCha8Rng, now: Instant) -> Self {
        let mut deadline = Self { window, rng, at: now, since: now };
        deadline.reset(now);
        deadline
    }

    /// The leader was heard of, or an election was begun.
    pub(crate) fn reset(&mut self, now: Instant) {
        let Window { from_ms, to_ms } = self.window;
        let draw_us = self.rng.random_range(from_ms * 1000..to_ms * 1000);
        self.at = now + Duration::from_micros(draw_us);
        self.since = now;
    }

    fn silence_ns(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What an election is asked for with, and who is told.
pub(crate) struct Voter {
    pub(crate) raft: RaftCore,
    pub(crate) standing: Standing,
    pub(crate) transport: Arc<dyn Transport>,
    /// The term found on disk: who led in it or before counts only once it was heard of again.
    pub(crate) restored_term: u64,
    pub(crate) observer: Arc<dyn Observer>,
}

/// Publishes who leads and asks for elections, until `raft` stops. `changed` hears of every change of the server's state.
pub(crate) async fn run(
    voter: Voter,
    changed: Arc<Notify>,
    mut deadline: Deadline,
    mut contact: watch::Receiver<Instant>,
    aggregator: watch::Sender<Option<Epoch>>,
    mut lifeline: Follower,
) {
    let Voter { raft, standing, restored_term, observer, .. } = &voter;
    let mut metrics = raft.server_metrics();
    let mut told = standing.follow();
    let mut was_eligible = false;
    let mut heard_of_any = false;
    let mut turns: Option<Turns> = None;
    loop {
        let told_epoch = told.borrow_and_update().as_ref().map(|notice| notice.epoch);
        let (leads, term, own) = {
            let metrics = metrics.borrow_and_update();
            let leads = metrics.current_leader == Some(metrics.id);
            let term = metrics.vote.leader_id.term;
            let own = metrics.current_leader.map(|node| Epoch { counter: term, node: NodeId(node) });
            (leads, term, own.filter(|epoch| heard_of_any || epoch.counter > *restored_term))
        };
        let votes = standing.votes();
        let eligible = votes && !leads;
        let epoch = in_force(own, term, votes, told_epoch);
        publish(&aggregator, epoch, observer.as_ref());
        changed.notify_one();
        lifeline.follow(aggregator.borrow().filter(|_| eligible));
        turns = turns.filter(|turns| eligible && *aggregator.borrow() <= Some(turns.epoch));
        // While a node leads, or knows no cluster, nobody is due to be heard of.
        if eligible && !was_eligible {
            deadline.reset(Instant::now());
        }
        was_eligible = eligible;
        let turn = turns.as_ref().and_then(|turns| turns.next);
        tokio::select! {
            biased;
            heard = contact.changed() => {
                if heard.is_err() { return }
                heard_of_any = true;
                deadline.reset(*contact.borrow_and_update());
                // What was under way when the leader crashed may be heard of later.
                if turns.is_some() && voter.give_up_lease().await.is_err() { return }
            }
            changed = metrics.changed() => if changed.is_err() { return },
            // Its sender is in `standing`.
            _ = told.changed() => {}
            ended = lifeline.ended() => {
                let silence_ns = Some(deadline.silence_ns());
                observer.observe(StoreEvent::Suspected { epoch: Some(ended), silence_ns, lifeline: true });
                if voter.give_up_lease().await.is_err() { return }
                turns = Some(voter.turns(ended));
            }
            () = tokio::time::sleep_until(turn.unwrap_or(deadline.at)), if turn.is_some() => {
                turns = turns.map(Turns::after_this);
                if voter.give_up_lease().await.is_err() || raft.trigger().elect(true).await.is_err() { return }
                deadline.reset(Instant::now());
            }
            () = tokio::time::sleep_until(deadline.at), if eligible => {
                let silence_ns = Some(deadline.silence_ns());
                observer.observe(StoreEvent::Suspected { epoch, silence_ns, lifeline: false });
                if raft.trigger().elect(true).await.is_err() { return }
                deadline.reset(Instant::now());
            }
        }
    }
}

/// When a voter stands whose lifeline to the leader ended: voters take turns, so that they do not split their votes.
struct Turns {
    /// The epoch whose leader crashed, or seems to have.
    epoch: Epoch,
    /// The next time, as long as there is one.
    next: Option<Instant>,
    /// How many there are after that.
    left: u32,
    /// Until it is this voter's turn again.
    round: Duration,
}

impl Turns {
    /// Turns of the voter that is number `rank` of so many.
    fn new(epoch: Epoch, rank: u32, voters: u32, turn: Duration, now: Instant) -> Self {
        Self { epoch, next: Some(now + turn * rank), left: TURNS - 1, round: turn * voters }
    }

    fn after_this(self) -> Self {
        let next = self.next.filter(|_| self.left > 0).map(|at| at + self.round);
        Self { next, left: self.left.saturating_sub(1), ..self }
    }
}

impl Voter {
    /// Forgets that the leader was heard of just now, so that this voter stands and grants others its vote. Terms, votes and
    /// the comparison of logs remain. openraft's way to say so is a transfer of leadership to another node than this one.
    async fn give_up_lease(&self) -> Result<(), Fatal<TypeConfig>> {
        let vote = self.raft.server_metrics().borrow_watched().vote;
        let leader = vote.leader_id.voted_for;
        if leader == self.transport.local().0 {
            return Ok(());
        }
        self.raft.handle_transfer_leader(TransferLeaderRequest::new(vote, leader, None)).await.map(drop)
    }

    /// The survivors' turns, in ascending order.
    fn turns(&self, epoch: Epoch) -> Turns {
        let local = self.transport.local();
        let survivors: Vec<NodeId> =
            self.standing.voters().into_iter().filter(|node| *node != epoch.node).collect();
        let rank = survivors.iter().position(|node| *node == local).unwrap_or(survivors.len());
        let turn = lifeline::turn(self.transport.as_ref());
        Turns::new(epoch, rank as u32, survivors.len() as u32, turn, Instant::now())
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
    fn survivors_take_turns() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let epoch = Epoch { counter: 3, node: NodeId(1) };
        let mut times = Vec::new();
        for rank in 0..4 {
            let mut turns = Turns::new(epoch, rank, 4, ms(10), now);
            while let Some(at) = turns.next {
                times.push((at - now).as_millis());
                turns = turns.after_this();
            }
        }
        times.sort_unstable();
        let all: Vec<u128> = (0..4 * u128::from(TURNS)).map(|turn| turn * 10).collect();
        assert_eq!(times, all, "nobody stands when another does");
    }

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
