//! Bits that flip between the codec and the connection, on purpose: below, TLS makes of such a bit a lost datagram; here it
//! arrives, and the peer's codec has to notice.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::pool::lock;

/// What is done to the frames that an endpoint sends. Clones share it; by default nothing.
#[derive(Debug, Clone, Default)]
pub struct Corruption(Arc<Mutex<Option<Flips>>>);

#[derive(Debug)]
struct Flips {
    /// Share of frames, from 0 to 1.
    share: f64,
    dice: ChaCha8Rng,
}

impl Corruption {
    /// From now on one bit flips in this share of the frames, drawn from `seed`.
    pub fn set(&self, share: f64, seed: u64) {
        let flips = Flips { share, dice: ChaCha8Rng::seed_from_u64(seed) };
        *lock(&self.0) = (share > 0.0).then_some(flips);
    }

    /// An encoded frame on its way.
    pub(super) fn pass(&self, buffers: &mut [Bytes]) {
        let mut flips = lock(&self.0);
        let Some(Flips { share, dice }) = &mut *flips else { return };
        if dice.random::<f64>() >= *share {
            return;
        }
        let bytes: usize = buffers.iter().map(Bytes::len).sum();
        let mut at = dice.random_range(0..bytes.max(1));
        for buffer in buffers {
            if at < buffer.len() {
                let mut changed = buffer.to_vec();
                changed[at] ^= 1 << dice.random_range(0..8);
                *buffer = changed.into();
                return;
            }
            at -= buffer.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_frames_has_one_bit_flipped() {
        let corruption = Corruption::default();
        let frame = || [Bytes::from_static(b"head"), Bytes::from_static(b"body, longer")];
        let changed = || {
            let mut passed = frame();
            corruption.pass(&mut passed);
            let bits =
                passed.concat().iter().zip(frame().concat()).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
            assert!(bits <= 1);
            bits
        };
        assert_eq!((0..100).map(|_| changed()).sum::<u32>(), 0, "nothing by default");
        corruption.set(0.25, 7);
        let flips = (0..1000).map(|_| changed()).sum::<u32>();
        assert!((200..300).contains(&flips), "{flips}");
        corruption.set(0.0, 7);
        assert_eq!((0..100).map(|_| changed()).sum::<u32>(), 0);
    }
}
