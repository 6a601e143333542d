//! Bytes that are nearly right: pieces of seeds, changed at random. Pure.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

/// Longest result, in bytes.
const MAX_BYTES: usize = 16 * 1024;
/// Bytes that mean something to many decoders.
const TELLING: [u8; 16] = *b"\0\x01\x7f\x80\xff\n \"',:=[]{9";

/// One of `seeds`, changed in some places.
pub(super) fn of(seeds: &[Vec<u8>], dice: &mut ChaCha8Rng) -> Vec<u8> {
    let any = |dice: &mut ChaCha8Rng| seeds[dice.random_range(0..seeds.len())].clone();
    let mut bytes = any(dice);
    for _ in 0..dice.random_range(1..6) {
        let (from, to) = piece(&bytes, dice);
        match dice.random_range(0..8) {
            0 if from < bytes.len() => bytes[from] ^= 1 << dice.random_range(0..8),
            1 if from < bytes.len() => bytes[from] = dice.random(),
            2 => bytes[from..to].fill(TELLING[dice.random_range(0..TELLING.len())]),
            3 => drop(bytes.drain(from..to)),
            4 => drop(bytes.splice(from..from, bytes[from..to].to_vec())),
            5 => bytes.truncate(from),
            6 => {
                let other = any(dice);
                let (begin, end) = piece(&other, dice);
                drop(bytes.splice(from..to, other[begin..end].to_vec()));
            }
            _ => bytes.insert(from, TELLING[dice.random_range(0..TELLING.len())]),
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

/// Begin and end of a piece, more often a short one.
fn piece(bytes: &[u8], dice: &mut ChaCha8Rng) -> (usize, usize) {
    let from = dice.random_range(0..=bytes.len());
    let longest = if dice.random_ratio(3, 4) { 8 } else { bytes.len() };
    (from, (from + dice.random_range(0..=longest)).min(bytes.len()))
}
