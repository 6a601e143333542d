//! The wire between nodes: one frame per direction of a stream.
//!
//! ```text
//!   0        2         3        4       5     6             10              18         22
//!   | magic  | version | status | class | tag | head length | body length   | checksum | head ... | body ... |
//!     2 B      1 B       1 B      1 B     1 B   u32, BE       u64, BE         u32, BE
//! ```
//!
//! The checksum is the CRC-32 (IEEE 802.3) of everything else, in order. TLS protects a frame on its way between two endpoints; this
//! protects it from whatever lies between the endpoint and the protocol above: memory, a driver, a defect of ours. It is no defence
//! against a node that lies, which has the checksum right.
//!
//! Encoding joins header and head into one buffer and leaves the body's segments where they are. Decoding is a push
//! parser ([`Decoder`]): it is total (any bytes give a frame or a [`FrameError`], never a panic), and checks every
//! length against its limit before it reserves memory.
//!
//! This module does no IO and deliberately does not know what tags and heads mean, nor who sent a frame.

use bytes::{BufMut, Bytes, BytesMut};
use crc32fast::Hasher;

use super::{Class, Frame, TransportError};

/// First bytes of every frame.
pub const MAGIC: [u8; 2] = [0xC7, 0x1E];

/// Version of this wire format, also part of the connections' ALPN.
pub const VERSION: u8 = 2;

/// Bytes in front of head and body.
pub const HEADER_BYTES: usize = 22;

/// Bytes of the header in front of the checksum.
const FIELD_BYTES: usize = 18;

/// Limit on the head of a frame, in bytes.
pub const MAX_HEAD_BYTES: u64 = 1024 * 1024;

/// Limit on the text of a refusal, in bytes; longer texts are cut.
pub const MAX_REFUSAL_BYTES: usize = 1024;

/// Memory reserved on the word of a header alone, in bytes. Beyond it, at most twice what has arrived is reserved, so
/// that a lying length costs its sender as much as it costs us. A body up to this size is copied exactly once.
pub const MAX_UNPROVEN_BYTES: usize = 1024 * 1024;

/// What a frame is to the exchange it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Asks.
    Request,
    /// Answers.
    Response,
    /// Declines to answer; the head is the reason as UTF-8.
    Refusal,
}

impl Status {
    const ALL: [Self; 3] = [Self::Request, Self::Response, Self::Refusal];
}

/// Why bytes are no frame, or a frame cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes do not start with [`MAGIC`].
    #[error("not a frame of this protocol")]
    Foreign,
    /// The peer speaks another version.
    #[error("the peer speaks protocol version {theirs}, this node speaks {ours}")]
    Version {
        /// This node's version.
        ours: u8,
        /// The peer's version.
        theirs: u8,
    },
    /// A header field has a value without meaning.
    #[error("the {field} of a frame has the unknown value {value}")]
    Unknown {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u8,
    },
    /// A part of the frame is larger than allowed; nothing was reserved for it.
    #[error("a frame {part} of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// `head` or `body`.
        part: &'static str,
        /// Announced size in bytes.
        bytes: u64,
        /// Limit in bytes.
        limit: u64,
    },
    /// The stream ended inside the frame.
    #[error("a frame ended {missing} bytes early")]
    Truncated {
        /// Bytes that are missing (as far as the header tells).
        missing: u64,
    },
    /// The checksum is that of other bytes: something changed on the way.
    #[error("a frame was corrupted on its way")]
    Corrupt,
    /// The stream went on after the frame.
    #[error("bytes after the end of a frame")]
    Trailing,
}

impl FrameError {
    /// As the error of a request that was not sent.
    pub(crate) fn into_transport(self) -> TransportError {
        match self {
            Self::TooLarge { bytes, limit, .. } => TransportError::TooLarge { bytes, limit },
            // A frame to be sent has no other fault.
            _ => TransportError::TooLarge { bytes: u64::MAX, limit: MAX_HEAD_BYTES },
        }
    }
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Request, response or refusal.
    pub status: Status,
    /// What the exchange is for; a response repeats its request's class.
    pub class: Class,
    /// Given by the protocol above.
    pub tag: u8,
    /// Bytes of the head.
    pub head_bytes: u32,
    /// Bytes of the body.
    pub body_bytes: u64,
}

impl Header {
    /// Reads a header and checks it against the limits.
    ///
    /// # Errors
    /// [`FrameError::Foreign`], [`FrameError::Version`], [`FrameError::Unknown`] or [`FrameError::TooLarge`].
    pub fn decode(bytes: &[u8; HEADER_BYTES], max_body_bytes: u64) -> Result<Self, FrameError> {
        let [m0, m1, version, status, class, tag, h0, h1, h2, h3, b0, b1, b2, b3, b4, b5, b6, b7, ..] =
            *bytes;
        if [m0, m1] != MAGIC {
            return Err(FrameError::Foreign);
        }
        if version != VERSION {
            return Err(FrameError::Version { ours: VERSION, theirs: version });
        }
        let status = *Status::ALL
            .get(usize::from(status))
            .ok_or(FrameError::Unknown { field: "status", value: status })?;
        let class = *Class::ALL
            .get(usize::from(class))
            .ok_or(FrameError::Unknown { field: "class", value: class })?;
        let header = Self {
            status,
            class,
            tag,
            head_bytes: u32::from_be_bytes([h0, h1, h2, h3]),
            body_bytes: u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
        };
        let head_bytes = u64::from(header.head_bytes);
        within([("head", head_bytes, MAX_HEAD_BYTES), ("body", header.body_bytes, max_body_bytes)])?;
        Ok(header)
    }

    /// Everything but the checksum.
    fn fields(&self) -> [u8; FIELD_BYTES] {
        let mut bytes = [0; FIELD_BYTES];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = VERSION;
        bytes[3] = self.status as u8;
        bytes[4] = self.class as u8;
        bytes[5] = self.tag;
        bytes[6..10].copy_from_slice(&self.head_bytes.to_be_bytes());
        bytes[10..].copy_from_slice(&self.body_bytes.to_be_bytes());
        bytes
    }
}

fn within(sizes: [(&'static str, u64, u64); 2]) -> Result<(), FrameError> {
    for (part, bytes, limit) in sizes {
        if bytes > limit {
            return Err(FrameError::TooLarge { part, bytes, limit });
        }
    }
    Ok(())
}

/// Bytes of `frame` on the wire.
#[must_use]
pub fn encoded_len(frame: &Frame) -> u64 {
    HEADER_BYTES as u64 + frame.head.len() as u64 + frame.body_len() as u64
}

/// Checks whether `frame` may be sent.
///
/// # Errors
/// [`FrameError::TooLarge`].
pub fn check(frame: &Frame, max_body_bytes: u64) -> Result<(), FrameError> {
    let sizes = [
        ("head", frame.head.len() as u64, MAX_HEAD_BYTES),
        ("body", frame.body_len() as u64, max_body_bytes),
    ];
    within(sizes)
}

/// The frame's buffers in the order they are sent: header with head, then the body's segments, uncopied.
///
/// # Errors
/// [`FrameError::TooLarge`].
pub fn encode(
    status: Status,
    class: Class,
    frame: &Frame,
    max_body_bytes: u64,
) -> Result<Vec<Bytes>, FrameError> {
    check(frame, max_body_bytes)?;
    let header = Header {
        status,
        class,
        tag: frame.tag,
        // Fits, because the limit does.
        head_bytes: frame.head.len() as u32,
        body_bytes: frame.body_len() as u64,
    };
    let fields = header.fields();
    let mut sum = Hasher::new();
    sum.update(&fields);
    sum.update(&frame.head);
    frame.body.iter().for_each(|segment| sum.update(segment));
    let mut first = BytesMut::with_capacity(HEADER_BYTES + frame.head.len());
    first.put_slice(&fields);
    first.put_u32(sum.finalize());
    first.put_slice(&frame.head);
    let segments = frame.body.iter().filter(|segment| !segment.is_empty()).cloned();
    Ok(std::iter::once(first.freeze()).chain(segments).collect())
}

/// A refusal as a frame; the text is cut to [`MAX_REFUSAL_BYTES`].
#[must_use]
pub fn refusal(reason: &str) -> Frame {
    let end = (0..=reason.len().min(MAX_REFUSAL_BYTES)).rev().find(|end| reason.is_char_boundary(*end));
    Frame::new(0, Bytes::copy_from_slice(&reason.as_bytes()[..end.unwrap_or(0)]))
}

/// The text of a refusal; any bytes give some text.
#[must_use]
pub fn refusal_text(frame: &Frame) -> String {
    String::from_utf8_lossy(&frame.head[..frame.head.len().min(MAX_REFUSAL_BYTES)]).into_owned()
}

/// Assembles one frame from the pieces in which it arrives.
#[derive(Debug)]
pub struct Decoder {
    max_body_bytes: u64,
    raw: [u8; HEADER_BYTES],
    raw_len: usize,
    header: Option<Header>,
    /// Of what has arrived.
    sum: Hasher,
    head: BytesMut,
    body: BytesMut,
}

impl Decoder {
    /// A decoder of one frame whose body may have `max_body_bytes`.
    #[must_use]
    pub fn new(max_body_bytes: u64) -> Self {
        Self {
            max_body_bytes,
            raw: [0; HEADER_BYTES],
            raw_len: 0,
            header: None,
            sum: Hasher::new(),
            head: BytesMut::new(),
            body: BytesMut::new(),
        }
    }

    /// The header, once it has arrived.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Bytes of memory this decoder holds for head and body.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.head.capacity() + self.body.capacity()
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// Any [`FrameError`] but [`FrameError::Truncated`] and [`FrameError::Corrupt`]. The decoder is of no use afterwards.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        if self.header.is_none() {
            let (now, rest) = bytes.split_at(bytes.len().min(HEADER_BYTES - self.raw_len));
            self.raw[self.raw_len..self.raw_len + now.len()].copy_from_slice(now);
            self.raw_len += now.len();
            bytes = rest;
            if self.raw_len < HEADER_BYTES {
                return Ok(());
            }
            self.header = Some(Header::decode(&self.raw, self.max_body_bytes)?);
            self.sum.update(&self.raw[..FIELD_BYTES]);
        }
        let Some(header) = self.header else { return Ok(()) };
        self.sum.update(bytes);
        let bytes = fill(&mut self.head, u64::from(header.head_bytes), bytes);
        let bytes = fill(&mut self.body, header.body_bytes, bytes);
        if bytes.is_empty() { Ok(()) } else { Err(FrameError::Trailing) }
    }

    /// The frame, when the stream has ended.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] if it is not complete, [`FrameError::Corrupt`] if it is not what was sent.
    pub fn finish(self) -> Result<(Header, Frame), FrameError> {
        let Some(header) = self.header else {
            return Err(FrameError::Truncated { missing: (HEADER_BYTES - self.raw_len) as u64 });
        };
        let arrived = self.head.len() as u64 + self.body.len() as u64;
        // Both lengths passed their limits, so the sum is far from overflowing.
        let missing = u64::from(header.head_bytes) + header.body_bytes - arrived;
        if missing > 0 {
            return Err(FrameError::Truncated { missing });
        }
        if self.sum.finalize().to_be_bytes() != self.raw[FIELD_BYTES..] {
            return Err(FrameError::Corrupt);
        }
        let body = if self.body.is_empty() { Vec::new() } else { vec![self.body.freeze()] };
        Ok((header, Frame { tag: header.tag, head: self.head.freeze(), body }))
    }
}

/// Moves bytes into `part` until it has `len`; returns the rest.
fn fill<'a>(part: &mut BytesMut, len: u64, bytes: &'a [u8]) -> &'a [u8] {
    let missing = usize::try_from(len).unwrap_or(usize::MAX) - part.len();
    let (now, rest) = bytes.split_at(bytes.len().min(missing));
    if now.len() > part.capacity() - part.len() {
        let ahead = part.len().max(MAX_UNPROVEN_BYTES).max(now.len());
        part.reserve(ahead.min(missing));
    }
    part.put_slice(now);
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 256 * 1024 * 1024;

    fn wire(status: Status, class: Class, frame: &Frame) -> Vec<u8> {
        encode(status, class, frame, LIMIT).unwrap().concat()
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<(Header, Frame), FrameError> {
        let mut decoder = Decoder::new(LIMIT);
        bytes.chunks(piece.max(1)).try_for_each(|piece| decoder.push(piece))?;
        decoder.finish()
    }

    fn frames() -> impl Strategy<Value = (Status, Class, Frame)> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        (0..3_usize, 0..7_usize, any::<u8>(), bytes(), proptest::collection::vec(bytes(), 0..4)).prop_map(
            |(status, class, tag, head, body)| {
                (Status::ALL[status], Class::ALL[class], Frame { tag, head, body })
            },
        )
    }

    proptest! {
        #[test]
        fn a_frame_survives_the_wire((status, class, frame) in frames(), piece in 1..400_usize) {
            let bytes = wire(status, class, &frame);
            prop_assert_eq!(bytes.len() as u64, encoded_len(&frame));
            let (header, decoded) = decode(&bytes, piece).unwrap();
            prop_assert_eq!((header.status, header.class), (status, class));
            prop_assert_eq!((decoded.tag, &decoded.head), (frame.tag, &frame.head));
            prop_assert!(decoded.body.len() <= 1);
            prop_assert_eq!(decoded.into_body(), frame.into_body());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1..50_usize) {
            let _ = decode(&bytes, piece);
        }

        #[test]
        fn arbitrary_bytes_behind_a_valid_start_never_panic(
            status in 0..4_u8, class in 0..9_u8, rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = decode(&[&MAGIC[..], &[VERSION, status, class], &rest].concat(), 7);
        }

        #[test]
        fn a_flipped_bit_is_always_noticed((status, class, frame) in frames(), at in any::<prop::sample::Index>()) {
            let mut bytes = wire(status, class, &frame);
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&bytes, 64).is_err(), "bit {}", bit);
        }

        #[test]
        fn a_frame_cut_anywhere_is_an_error((status, class, frame) in frames()) {
            let bytes = wire(status, class, &frame);
            for end in 0..bytes.len() {
                let cut = decode(&bytes[..end], 64);
                prop_assert!(matches!(cut, Err(FrameError::Truncated { missing }) if missing > 0), "{:?}", cut);
            }
        }
    }

    /// A header of these lengths, with some checksum.
    fn header(head_bytes: u32, body_bytes: u64) -> [u8; HEADER_BYTES] {
        let header = Header { status: Status::Request, class: Class::Blob, tag: 0, head_bytes, body_bytes };
        let mut bytes = [0; HEADER_BYTES];
        bytes[..FIELD_BYTES].copy_from_slice(&header.fields());
        bytes
    }

    #[test]
    fn body_segments_are_not_copied() {
        let segment = Bytes::from(vec![7; 5000]);
        let frame = Frame::new(1, "head").with_segment(segment.clone()).with_segment(segment.clone());
        let buffers = encode(Status::Request, Class::Blob, &frame, LIMIT).unwrap();
        assert_eq!(buffers.len(), 3);
        assert_eq!((buffers[1].as_ptr(), buffers[2].as_ptr()), (segment.as_ptr(), segment.as_ptr()));
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = wire(Status::Request, Class::Election, &Frame::new(1, "vote"));
        bytes[2] = 9;
        assert_eq!(decode(&bytes, 64), Err(FrameError::Version { ours: VERSION, theirs: 9 }));
    }

    #[test]
    fn bytes_after_the_frame_are_an_error() {
        let mut bytes = wire(Status::Request, Class::Election, &Frame::new(1, "vote"));
        bytes.push(0);
        assert_eq!(decode(&bytes, 64), Err(FrameError::Trailing));
    }

    #[test]
    fn over_the_limit_nothing_is_reserved() {
        for header in [header(0, LIMIT + 1), header(0, u64::MAX), header(u32::MAX, 0)] {
            let mut decoder = Decoder::new(LIMIT);
            assert!(matches!(decoder.push(&header), Err(FrameError::TooLarge { .. })));
            assert_eq!(decoder.reserved(), 0);
        }
    }

    #[test]
    fn a_lying_length_reserves_in_step_with_what_arrives() {
        let mut decoder = Decoder::new(LIMIT);
        decoder.push(&header(0, LIMIT)).unwrap();
        assert_eq!(decoder.reserved(), 0);
        let mut arrived = 0;
        while arrived < 8 * MAX_UNPROVEN_BYTES {
            decoder.push(&[0; 1400]).unwrap();
            arrived += 1400;
            assert!(
                decoder.reserved() <= 2 * arrived.max(MAX_UNPROVEN_BYTES) + 4096,
                "{}",
                decoder.reserved()
            );
        }
    }

    #[test]
    fn a_checkpoint_lands_in_one_exact_allocation() {
        let frame = Frame::new(1, "").with_segment(Bytes::from(vec![1; 248_024]));
        let bytes = wire(Status::Request, Class::Blob, &frame);
        let mut decoder = Decoder::new(LIMIT);
        bytes.chunks(1400).for_each(|piece| decoder.push(piece).unwrap());
        assert_eq!(decoder.reserved(), 248_024);
    }

    #[test]
    fn a_refusal_is_cut_at_a_character() {
        let text = "é".repeat(MAX_REFUSAL_BYTES);
        let frame = refusal(&text[..]);
        assert!(frame.head.len() <= MAX_REFUSAL_BYTES);
        assert!(text.starts_with(&refusal_text(&frame)));
        assert_eq!(refusal_text(&refusal("no")), "no");
    }
}
