//! From global parameters to the store's checkpoints and back, as the profile has it.

use bytes::Bytes;
use replication::transport::head;
use replication::{
    Blob, Carrier, Checkpoint, CheckpointId, CheckpointStore, Digest, Epoch, Held, Metadata, Phase, Slot,
    StoreError,
};
use serde::{Deserialize, Serialize};

use super::config::Profile;
use super::event::{Event, Events};
use super::model::TENSORS;

/// Puts checkpoints and tells of it.
#[derive(Clone, Copy)]
pub(crate) struct Writer<'a> {
    pub(crate) store: &'a dyn CheckpointStore,
    pub(crate) events: &'a Events,
}

impl Writer<'_> {
    /// One put, timed.
    pub(crate) async fn put(&self, checkpoint: Checkpoint, carrier: Carrier) -> Result<Held, StoreError> {
        let (id, bytes) = (checkpoint.id(), checkpoint.parameters().len() as u64);
        let begun = tokio::time::Instant::now();
        match self.store.put_carried(checkpoint, carrier).await {
            Ok(receipt) => {
                let put_ns = begun.elapsed().as_nanos() as u64;
                let replication::Receipt { digest, guarantee, holders, .. } = receipt;
                (self.events)(Event::CheckpointPut { id, digest, bytes, put_ns, guarantee, holders });
                Ok(Held { id, digest })
            }
            Err(error) => {
                let may_have_happened = error.outcome() == replication::Outcome::Unknown;
                (self.events)(Event::CheckpointFailed { id, reason: error.to_string(), may_have_happened });
                Err(error)
            }
        }
    }

    /// Writes the global state of a phase as `profile` has it.
    pub(crate) async fn put_global(
        &self,
        profile: Profile,
        (epoch, round, phase): (Epoch, u64, Phase),
        parameters: &Blob,
        metadata: Metadata,
        carrier: Carrier,
    ) -> Result<Held, StoreError> {
        let id = |slot| CheckpointId { epoch, round, phase, slot };
        if profile != Profile::Prototype {
            let checkpoint = Checkpoint::of_blob(id(Slot::Global), parameters.clone(), metadata);
            return self.put(checkpoint, carrier).await;
        }
        let mut index = Index { digest: parameters.digest(), parts: Vec::new() };
        for (part, tensor) in tensors(parameters.bytes()) {
            let checkpoint = Checkpoint::new(id(Slot::Part(part)), tensor, Metadata::new());
            index.parts.push(checkpoint.id());
            self.put(checkpoint, carrier).await?;
        }
        // The key that makes the phase complete comes last.
        self.put(Checkpoint::new(id(Slot::Global), head::encode(&index), metadata), carrier).await
    }
}

/// The tensors of encoded parameters, with the part number each is written under. Bytes that are no model of ours are one
/// part.
pub(crate) fn tensors(parameters: &Bytes) -> Vec<(u16, Bytes)> {
    let model_bytes: usize = TENSORS.iter().map(|tensor| 4 * tensor.len()).sum();
    if parameters.len() != model_bytes {
        return vec![(0, parameters.clone())];
    }
    let slice = |(part, tensor): (usize, &super::model::TensorSpec)| {
        let begin = 4 * tensor.offset;
        (part as u16, parameters.slice(begin..begin + 4 * tensor.len()))
    };
    TENSORS.iter().enumerate().map(slice).collect()
}

/// What profile `prototype` writes last in a phase: where the tensors are, and what they make together.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    digest: Digest,
    parts: Vec<CheckpointId>,
}

/// Global state read back from a store.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    /// The checkpoint as the store has it: with profile `prototype` its bytes are an index.
    pub(crate) held: Held,
    pub(crate) parameters: Blob,
}

/// Reads the newest global state.
pub(crate) async fn restore(
    store: &dyn CheckpointStore,
    profile: Profile,
) -> Result<Option<Restored>, StoreError> {
    let Some(latest) = store.latest().await? else { return Ok(None) };
    let held = Held { id: latest.id(), digest: latest.digest() };
    if profile != Profile::Prototype {
        return Ok(Some(Restored { held, parameters: latest.into_blob() }));
    }
    let missing = StoreError::Missing { digest: latest.digest() };
    let index: Index = head::decode(latest.parameters()).map_err(|_| missing.clone())?;
    let mut parameters = Vec::new();
    for part in index.parts {
        let tensor = store.get(part).await?.ok_or_else(|| missing.clone())?;
        parameters.extend_from_slice(tensor.parameters());
    }
    let parameters = Blob::verified(index.digest, parameters.into()).ok_or(missing)?;
    Ok(Some(Restored { held, parameters }))
}
