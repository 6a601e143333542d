//! One seed, many independent generators. Every random choice of a job names its purpose, so that no two of them share
//! a stream, and adding one changes none of the others.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Generator for `purpose` and its coordinates (node, round, index, ...), derived from the trial's seed.
///
/// The stream is the same on every platform. Equal arguments give equal streams.
pub(super) fn generator(seed: u64, purpose: &'static str, coordinates: &[u64]) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("federated job: seeded choice");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(purpose.len() as u64).to_le_bytes());
    hasher.update(purpose.as_bytes());
    for coordinate in coordinates {
        hasher.update(&coordinate.to_le_bytes());
    }
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    #[test]
    fn purposes_and_coordinates_are_apart() {
        let draw = |seed, purpose, coordinates: &[u64]| generator(seed, purpose, coordinates).random::<u64>();
        assert_eq!(draw(1, "a", &[2]), draw(1, "a", &[2]));
        let all = [
            draw(1, "a", &[2]),
            draw(2, "a", &[2]),
            draw(1, "b", &[2]),
            draw(1, "a", &[3]),
            draw(1, "a", &[]),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}
