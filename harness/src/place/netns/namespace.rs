//! An anonymous network namespace. It has no name in the file system: a descriptor of this process and the processes
//! inside hold it, and the kernel removes it with all of its interfaces once they are gone, however they ended.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace held by this process.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// A new namespace with a loopback interface that is down.
    ///
    /// # Errors
    /// If the system refuses, which it does without root.
    pub fn new() -> io::Result<Self> {
        // A namespace belongs to a thread: a short-lived one makes it, so that no other of this process moves.
        in_a_thread(|| {
            // SAFETY: only this new thread's network namespace is left; its descriptors are those of the process.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?.into()))
        })
    }

    /// Runs `work` inside, on a thread of its own.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or what `work` failed with.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_a_thread(|| {
            enter(&self.0)?;
            work()
        })
    }

    /// A path under which a child of this process finds the namespace while it exists.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// For [`enter`] in a child, between fork and exec.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

/// Moves the calling thread into a namespace. One system call: may be called between fork and exec.
///
/// # Errors
/// If the system refuses.
pub fn enter(handle: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn in_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(work);
        worker.join().unwrap_or_else(|_| Err(io::Error::other("a thread of a namespace panicked")))
    })
}
