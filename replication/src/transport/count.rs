//! Counts frames by class; shared by both transports.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Class, FrameCount};

/// Frames since the transport was opened, by class.
#[derive(Debug, Default)]
pub(crate) struct FrameCounters([Counter; Class::ALL.len()]);

#[derive(Debug, Default)]
struct Counter {
    sent_frames: AtomicU64,
    sent_bytes: AtomicU64,
    received_frames: AtomicU64,
    received_bytes: AtomicU64,
}

impl FrameCounters {
    /// A frame of `bytes` encoded bytes was handed to the network.
    pub(crate) fn sent(&self, class: Class, bytes: u64) {
        let counter = &self.0[class as usize];
        counter.sent_frames.fetch_add(1, Ordering::Relaxed);
        counter.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A frame of `bytes` encoded bytes arrived completely.
    pub(crate) fn received(&self, class: Class, bytes: u64) {
        let counter = &self.0[class as usize];
        counter.received_frames.fetch_add(1, Ordering::Relaxed);
        counter.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All classes, in the order of [`Class::ALL`].
    pub(crate) fn snapshot(&self) -> Vec<(Class, FrameCount)> {
        let count = |counter: &Counter| FrameCount {
            sent_frames: counter.sent_frames.load(Ordering::Relaxed),
            sent_bytes: counter.sent_bytes.load(Ordering::Relaxed),
            received_frames: counter.received_frames.load(Ordering::Relaxed),
            received_bytes: counter.received_bytes.load(Ordering::Relaxed),
        };
        Class::ALL.iter().map(|class| (*class, count(&self.0[*class as usize]))).collect()
    }
}
