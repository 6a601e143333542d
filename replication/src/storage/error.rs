//! What can go wrong with what a node keeps on disk: which file, what is wrong, what helps.

use crate::store::NodeId;

/// An error of a [`Storage`](super::Storage). Nothing that fails with one has become durable for certain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Another process, or another store of this one, has the file open.
    #[error("{file} is in use by another process: end it, or give this node a file of its own")]
    InUse {
        /// The file.
        file: String,
    },
    /// The file is truncated, overwritten or torn in a way that no power loss explains.
    #[error(
        "{file} is damaged ({reason}): move it away; the node has lost its votes and must come back under a new id"
    )]
    Damaged {
        /// The file.
        file: String,
        /// What was found.
        reason: String,
    },
    /// The file was written by another version of this program.
    #[error(
        "{file} has format {found}, this program reads and writes format {expected}: use the program that wrote it, or \
         begin with an empty file"
    )]
    OtherFormat {
        /// The file.
        file: String,
        /// The format it names.
        found: String,
        /// The format that was expected.
        expected: u32,
    },
    /// The file is that of another node, or of another cluster.
    #[error(
        "{file} belongs to node {found} of {found_cluster}, not to node {node} of {cluster}: give this node its own file"
    )]
    OtherOwner {
        /// The file.
        file: String,
        /// Whose file it is.
        found: NodeId,
        /// Of which cluster.
        found_cluster: String,
        /// Who opened it.
        node: NodeId,
        /// For which cluster.
        cluster: String,
    },
    /// The operating system refused. Whatever was not flushed before may be lost; nothing more is written.
    #[error("{file}: {reason}; see that the disk is there, writable and not full")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        reason: String,
    },
    /// There is no room for what was written. It stays queued, in its order, and is tried again with the next flush.
    #[error("{file} has no room on its disk for what is to be written: make some")]
    Full {
        /// The file.
        file: String,
    },
    /// The storage was closed.
    #[error("{file} is closed")]
    Closed {
        /// The file.
        file: String,
    },
}

impl From<StorageError> for std::io::Error {
    fn from(error: StorageError) -> Self {
        Self::other(error)
    }
}
