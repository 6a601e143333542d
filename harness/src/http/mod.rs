//! HTTP/1.1 over TCP, both ends: a bounded server for any router, and one request over a connection of its own.
//!
//! Deliberately knows no route: the leaderboard and the metrics have theirs.

pub mod client;
pub mod service;
