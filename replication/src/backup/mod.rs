//! Primary and backups.

mod config;

pub use self::config::BackupConfig;
