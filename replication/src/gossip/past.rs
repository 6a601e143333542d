//! What a node of the gossip backend finds on disk when it starts: promises, checkpoints, how often it has lived.
//!
//! Deliberately knows neither the network nor what a promise is good for.

use std::collections::VecDeque;

use super::announce::Announcement;
use super::catalogue::Catalogue;
use super::config::GossipConfig;
use super::office::Promises;
use crate::archive::{Archive, Opened};
use crate::blob::Blobs;
use crate::members::{self, Members};
use crate::storage::{Storage, StorageError};
use crate::store::{NodeId, Slot};

/// The fact that says what was promised.
const PROMISES: &str = "promises";
/// The fact that says how often the node has started with this storage.
const LIFE: &str = "life";

/// What is left of earlier lives.
pub(super) struct Past {
    pub(super) archive: Archive,
    pub(super) blobs: Blobs,
    pub(super) catalogue: Catalogue,
    pub(super) promises: Promises,
    /// Who belongs to the cluster.
    pub(super) members: Members,
    /// Number of this life, from 1; always 0 without a storage. No two lives share one.
    pub(super) life: u64,
}

impl Past {
    /// Reads what `local` left in `storage`, and begins the next life.
    ///
    /// # Errors
    /// [`StorageError`]: somebody else's file, rows that make no sense, or a disk that takes nothing.
    pub(super) async fn read(
        config: &GossipConfig,
        local: NodeId,
        joins: bool,
        storage: Option<Storage>,
    ) -> Result<Self, StorageError> {
        let nodes: Vec<String> = config.nodes.iter().map(NodeId::to_string).collect();
        let cluster = format!("gossip among nodes {} with {} holders", nodes.join(", "), config.holders);
        let Opened { archive, rows, blobs } = Archive::open(storage, local, &cluster).await?;
        let mut catalogue = Catalogue::new(config.retained);
        for record in rows.into_iter().flat_map(|(_, records)| records) {
            let announced = Announcement::from(&record);
            catalogue.learn(announced, None);
            catalogue.describe(announced.id, record.metadata);
            if blobs.get(record.digest).is_none() {
                return Err(archive.damaged(format!("the bytes of {} are gone", record.id)));
            }
            catalogue.arrived(record.digest, local);
        }
        let promises = archive.fact(PROMISES)?.unwrap_or_default();
        let begins = || if joins { Members::unknown() } else { Members::founding(config.nodes.clone()) };
        let members = archive.fact(members::FACT)?.unwrap_or_else(begins);
        let life = if archive.is_durable() { archive.fact::<u64>(LIFE)?.unwrap_or(0) + 1 } else { 0 };
        archive.note(LIFE, &life);
        archive.flush_facts().await?;
        Ok(Self { archive, blobs, catalogue, promises, members, life })
    }
}

/// Writes what is promised now. It counts once it is flushed.
pub(super) fn keep_promises(archive: &Archive, promises: Promises) {
    archive.note(PROMISES, &promises);
}

/// Writes who belongs to the cluster now. It counts once it is flushed.
pub(super) fn keep_members(archive: &Archive, members: &Members) {
    archive.note(members::FACT, members);
}

/// Writes what is held of a slot now.
pub(super) fn keep_slot(archive: &Archive, catalogue: &Catalogue, slot: Slot) {
    if archive.is_durable() {
        let records: VecDeque<_> = catalogue.held(slot).collect();
        archive.keep(slot, Some(&records).filter(|records| !records.is_empty()));
    }
}
