//! Gossip.

mod config;

pub use self::config::GossipConfig;
