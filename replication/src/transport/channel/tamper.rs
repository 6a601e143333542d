//! What happens to frames between one node and another beside delay and loss: bits that flip on the way, and a node that lies.
//! Both go through the real codec. Decisions are a function of the dice.

use bytes::BytesMut;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::transport::frame::{Decoder, FrameError, Status, encode};
use crate::transport::{Class, Frame};

/// What is done to one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tamper {
    /// One bit of its encoding flips on the way.
    Flip,
    /// Its sender changes one bit before it is encoded: the checksum is right, the content wrong.
    Lie,
}

fn flip(bytes: &mut [u8], dice: &mut ChaCha8Rng) {
    if !bytes.is_empty() {
        let bit = dice.random_range(0..bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// The frame as it arrives.
pub(super) fn deliver(
    tamper: Tamper,
    (status, class): (Status, Class),
    frame: Frame,
    max_body_bytes: u64,
    dice: &mut ChaCha8Rng,
) -> Result<Frame, FrameError> {
    match tamper {
        Tamper::Flip => {
            let mut bytes = encode(status, class, &frame, max_body_bytes)?.concat();
            flip(&mut bytes, dice);
            let mut decoder = Decoder::new(max_body_bytes);
            decoder.push(&bytes)?;
            decoder.finish().map(|(_, frame)| frame)
        }
        Tamper::Lie => {
            let mut head = BytesMut::from(&frame.head[..]);
            let mut body = BytesMut::from(&frame.body.concat()[..]);
            // Where there is a body it is often most of the frame, and the head what decides.
            let part = if body.is_empty() || (!head.is_empty() && dice.random_bool(0.8)) {
                &mut head
            } else {
                &mut body
            };
            flip(part, dice);
            let body = if body.is_empty() { Vec::new() } else { vec![body.freeze()] };
            Ok(Frame { head: head.freeze(), body, ..frame })
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_flip_is_noticed_and_a_lie_is_not() {
        let frame = Frame::new(7, "head").with_segment("body".into());
        for seed in 0..200 {
            let mut dice = ChaCha8Rng::seed_from_u64(seed);
            let mut deliver =
                |tamper| deliver(tamper, (Status::Request, Class::Log), frame.clone(), 100, &mut dice);
            assert!(deliver(Tamper::Flip).is_err(), "seed {seed}");
            let lie = deliver(Tamper::Lie).unwrap();
            assert_eq!((lie.tag, lie.head.len()), (7, 4));
            assert_ne!((&lie.head, lie.body.concat()), (&frame.head, frame.body.concat()), "seed {seed}");
        }
    }
}
