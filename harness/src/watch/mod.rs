//! A cluster's nodes as a table in a terminal: asked for their metrics again and again, as Prometheus would.
//!
//! ```text
//!   targets   whose metrics: from a results folder, or addresses        look    samples to how a node is, two of them to rates (pure)
//!   ask       all nodes at once, each with a time limit                 table   rows in words (pure)
//! ```
//!
//! A node that does not answer is a row that says so. Sees nothing but the metrics; deliberately knows no run and no backend.

pub mod ask;
pub mod look;
pub mod table;
pub mod targets;
