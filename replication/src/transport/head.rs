//! How the heads of frames are encoded (postcard), on both planes.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Refusal;
use crate::work;

/// Most heads fit into so many bytes: room for one is taken at once.
const USUAL_BYTES: usize = 256;

/// Encodes plain data.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    match work::timed(work::Kind::Encode, || postcard::to_extend(value, Vec::with_capacity(USUAL_BYTES))) {
        Ok(encoded) => encoded.into(),
        Err(error) => unreachable!("heads are plain data and always encode: {error}"),
    }
}

/// Decodes what [`encode`] made; total.
///
/// # Errors
/// A refusal that says what is wrong: malformed, or longer than what it encodes.
pub fn decode<T: DeserializeOwned>(head: &[u8]) -> Result<T, Refusal> {
    match work::timed(work::Kind::Decode, || postcard::take_from_bytes(head)) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Refusal(format!("{} bytes after the end of a message head", rest.len()))),
        Err(error) => Err(Refusal(format!("malformed message head: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::store::{Digest, Epoch, NodeId};

    type Head = (Epoch, Option<Digest>, BTreeMap<String, u64>, Vec<Bytes>);

    proptest! {
        #[test]
        fn a_head_is_read_back_and_one_that_is_cut_or_longer_is_refused(
            counter: u64, node: u64, map in prop::collection::btree_map(".{0,8}", any::<u64>(), 0..4),
            bytes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..3),
        ) {
            let bytes: Vec<Bytes> = bytes.into_iter().map(Bytes::from).collect();
            let head: Head = (Epoch { counter, node: NodeId(node) }, Some(Digest::of(b"bytes")), map, bytes);
            let encoded = encode(&head);
            prop_assert_eq!(&decode::<Head>(&encoded).unwrap(), &head);
            for end in 0..encoded.len() {
                prop_assert!(decode::<Head>(&encoded[..end]).is_err());
            }
            prop_assert!(decode::<Head>(&[&encoded[..], &[0]].concat()).is_err());
        }

        #[test]
        fn any_bytes_are_a_head_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(head) = decode::<Head>(&bytes) {
                prop_assert!(encode(&head).len() <= bytes.len());
            }
        }
    }
}
