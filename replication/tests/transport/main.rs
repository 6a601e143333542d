//! Tests of the transports. `suite` runs over both; `quic` and `channel` hold what only one of them has.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod channel;
mod quic;
mod suite;
mod support;
