//! Where votes are taken: passes one on to whoever aggregates, until it is acknowledged or time is up.
//!
//! A vote keeps its idempotency key however often it is passed on, so it counts once. Deliberately knows neither HTTP nor
//! which backend answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use replication::transport::{Class, Transport, TransportError};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::board::{self, Invalid, MAX_PLAYERS, Standing};
use crate::keyvalue::Server;
use crate::keyvalue::message::{Effect, Refused, Request, Response, Status, decode, encode};
use crate::keyvalue::meter::Operation;

/// How long a vote may take in all: beyond that its voter is told to come again.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long whoever aggregates may take before it is asked who does by now.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Pause before another attempt; each is twice the one before, up to the longest. Hundreds of votes may wait for an election, and
/// must not keep the nodes from holding it.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// Votes under way at once; beyond that a voter is told to come again.
pub const MAX_UNDER_WAY: usize = 1024;

/// A vote that was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The player's votes, this one included.
    pub votes: u64,
    /// The key under which it was counted.
    pub key: String,
}

/// Why a vote was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoteError {
    /// It makes no sense.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The key was used for another player.
    #[error("this Idempotency-Key was used for a vote for another player")]
    KeyReused,
    /// The player has as many votes as can be counted, or an entry that is no number.
    #[error("the vote cannot be counted: {0}")]
    Uncountable(Refused),
    /// There is no place for another player.
    #[error("the board is full: it has {MAX_PLAYERS} players, and takes votes for these only")]
    BoardFull,
    /// Too many votes at once. This one was not counted.
    #[error("too many votes at once; this one was not counted")]
    Busy,
    /// Nobody acknowledged it in time.
    #[error("no node led within {waited:?}{}", if *.maybe { "; the vote may have been counted: repeat it with the same Idempotency-Key" } else { "" })]
    NoLeader {
        /// How long was waited.
        waited: Duration,
        /// Whether it may have been counted.
        maybe: bool,
        /// The key under which it was counted, if it was.
        key: String,
    },
}

/// One node's desk.
#[derive(Debug)]
pub struct Desk {
    server: Server,
    transport: Arc<dyn Transport>,
    under_way: Semaphore,
    /// Tells keys given here from those of other nodes and other lives.
    nonce: u64,
    given: AtomicU64,
}

impl Desk {
    /// The desk of the node of `server`; `transport` reaches the others' servers, and `nonce` is drawn anew for each life.
    #[must_use]
    pub fn new(server: Server, transport: Arc<dyn Transport>, nonce: u64) -> Self {
        Self { server, transport, under_way: Semaphore::new(MAX_UNDER_WAY), nonce, given: AtomicU64::new(0) }
    }

    /// Counts a vote for `player`, once under `key`; a vote without one is given one of its own.
    ///
    /// Whether the board is full is asked of this node's copy, so that votes under way at the same time may still put a few more
    /// players on it: the limit keeps the service answering, it is no number to rely on.
    ///
    /// # Errors
    /// [`VoteError`].
    pub async fn vote(&self, player: &str, key: Option<String>) -> Result<Counted, VoteError> {
        let begun = Instant::now();
        let outcome = self.cast(player, key, begun).await;
        // What is refused for what it says is no operation.
        if let Ok(_) | Err(VoteError::Busy | VoteError::NoLeader { .. }) = &outcome {
            self.server.measured(Operation::Vote, begun, outcome.is_ok());
        }
        outcome
    }

    async fn cast(&self, player: &str, key: Option<String>, begun: Instant) -> Result<Counted, VoteError> {
        let key = key.unwrap_or_else(|| self.key());
        let request = Request::Write(board::vote(player, &key)?);
        if self.server.look(|machine| board::is_full_for(machine, player)) {
            return Err(VoteError::BoardFull);
        }
        let _place = self.under_way.try_acquire().map_err(|_| VoteError::Busy)?;
        let until = begun + PATIENCE;
        let (mut unsure, mut pause) = (false, PAUSE);
        loop {
            match timeout_at(until, self.attempt(&request)).await {
                Ok(Response::Written { effect, .. }) => return counted(effect, key),
                Ok(Response::Unavailable { maybe, .. }) => unsure |= maybe,
                Ok(_) => {}
                Err(_) => unsure = true,
            }
            if Instant::now() + pause >= until {
                return Err(VoteError::NoLeader { waited: begun.elapsed(), maybe: unsure, key });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn key(&self) -> String {
        format!(
            "{}-{:016x}-{}",
            self.transport.local(),
            self.nonce,
            self.given.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Asks this node, and whoever it says aggregates.
    async fn attempt(&self, request: &Request) -> Response {
        let response = self.server.answer(request.clone()).await;
        let Response::Elsewhere { leader: Some(leader) } = response else { return response };
        let unavailable = |maybe, reason: String| Response::Unavailable { maybe, reason };
        let asked = self.transport.request(leader, Class::LearningControl, encode(request));
        match timeout(ATTEMPT, asked).await {
            Ok(Ok(frame)) => decode(frame).unwrap_or_else(|refusal| unavailable(true, refusal.0)),
            Ok(Err(error)) => {
                unavailable(matches!(error, TransportError::Interrupted { .. }), error.to_string())
            }
            Err(_) => unavailable(true, format!("node {leader} is silent")),
        }
    }

    /// Everybody's place, as this node knows it.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        board::standings(self.server.look(board::players))
    }

    /// How the node is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.server.status()
    }
}

fn counted(effect: Effect, key: String) -> Result<Counted, VoteError> {
    match effect {
        Effect::Sum(votes) => Ok(Counted { votes: votes.unsigned_abs(), key }),
        Effect::Refused(Refused::KeyReused) => Err(VoteError::KeyReused),
        Effect::Refused(refused) => Err(VoteError::Uncountable(refused)),
        // No effect of an addition.
        Effect::Opened(_) | Effect::Done { .. } => Err(VoteError::Uncountable(Refused::NotANumber)),
    }
}
