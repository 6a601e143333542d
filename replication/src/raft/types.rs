//! openraft's types, filled in: what a log entry and its answer are.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ledger::{Admission, Record};

/// Tokio, with openraft's own draws (the phase of its ticks) from a seed: whatever spawns tasks is begun in its scope.
pub(crate) type Seeded = openraft_rt::deterministic_rng::DeterministicRng<openraft_rt_tokio::TokioRuntime>;

openraft::declare_raft_types!(
    /// Textbook Raft: at most one leader per term, so that a term is an epoch.
    pub(crate) TypeConfig:
        D = Command,
        R = Answer,
        NodeId = u64,
        Node = openraft::impls::EmptyNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Seeded,
);

pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// What a log entry asks for: acknowledge this checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) record: Record,
    /// Whether the entry carries the bytes (payload mode `inline`).
    pub(crate) inline: bool,
    /// The bytes, beside the encoded entry: they travel and are stored without being copied into it.
    #[serde(skip)]
    pub(crate) parameters: Option<Bytes>,
}

impl Command {
    /// Bytes that the entry occupies in the log beyond a constant.
    pub(crate) fn inline_bytes(&self) -> usize {
        self.parameters.as_ref().map_or(0, Bytes::len)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "put {}", self.record.id)
    }
}

/// What the state machine answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// A blank or membership entry.
    Nothing,
    /// What the order rules said.
    Admitted(Admission),
    /// The entry was proposed in another term than its checkpoint's epoch.
    Fenced,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
