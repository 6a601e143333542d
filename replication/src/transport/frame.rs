//! Placeholder while the module is written.

/// Limit on the head of a frame, in bytes.
pub const MAX_HEAD_BYTES: u64 = 1024 * 1024;
