//! A leaderboard over the replicated dictionary: players and their votes, as a web service on every node.
//!
//! ```text
//!   browser, load balancer  -- HTTP -->  rest (any node)  -->  desk  -- to the node that aggregates -->  keyvalue::Server
//!                                          |
//!                                          +--> standings, from this node's copy
//! ```
//!
//! A vote is one command of the dictionary: add 1 to the player's entry, once under the vote's idempotency key
//! ([`keyvalue::once`](crate::keyvalue::once)). So a vote that was acknowledged survives whatever the store survives, and one that
//! is repeated counts once, whichever node it reaches. Standings come from the copy of the node that is asked: they may be as old
//! as that copy, and are there while nobody leads.
//!
//! ```text
//!   board   names, votes as commands, standings (pure)        desk   one vote, until it is acknowledged or time is up
//!   rest    the web service: routes, limits, refusals          check  were all votes counted, and each once (pure)
//! ```
//!
//! Deliberately knows no backend, socket or process.

pub mod board;
pub mod check;
pub mod desk;
pub mod rest;

pub use board::{MAX_NAME_BYTES, MAX_PLAYERS, Standing};
pub use desk::{Desk, VoteError};
pub use rest::router;
