//! Tests of the whole: the built binary, from outside.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

mod cli;
mod federated;
mod signals;
