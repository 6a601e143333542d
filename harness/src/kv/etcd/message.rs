//! The little of protobuf that three calls of etcd need, by hand: fields of bytes. Pure, and total: what is damaged is not there.

use bytes::{BufMut as _, BytesMut};

/// The value in a `RangeResponse`: that of its first entry (`RangeResponse.kvs`, `KeyValue.value`); none: it has no entry.
#[must_use]
pub fn value_of(answer: &[u8]) -> Option<&[u8]> {
    // protobuf leaves out what is empty.
    find_bytes(answer, 2).map(|entry| find_bytes(entry, 5).unwrap_or_default())
}

/// Adds a field of bytes to a message of protobuf.
pub(super) fn put_bytes(message: &mut BytesMut, number: u8, value: &[u8]) {
    message.put_u8(number << 3 | 2);
    put_varint(message, value.len() as u64);
    message.put_slice(value);
}

fn put_varint(message: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        message.put_u8((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    message.put_u8(value as u8);
}

fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The first field `number` of a message of protobuf, if it is of bytes.
fn find_bytes(mut message: &[u8], number: u64) -> Option<&[u8]> {
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        match tag & 7 {
            0 => drop(take_varint(&mut message)?),
            2 => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                let (value, rest) = message.split_at_checked(length)?;
                if tag >> 3 == number {
                    return Some(value);
                }
                message = rest;
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_others_and_damage_is_none() {
        let mut entry = BytesMut::new();
        put_bytes(&mut entry, 1, b"key");
        entry.put_slice(&[2 << 3, 0x96, 0x01]);
        put_bytes(&mut entry, 5, &[7; 300]);
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, b"header");
        put_bytes(&mut message, 2, &entry);
        let found = find_bytes(&message, 2).and_then(|entry| find_bytes(entry, 5));
        assert_eq!(found, Some(&[7; 300][..]));
        assert_eq!(find_bytes(&message, 3), None);
        for cut in 0..message.len() {
            assert_eq!(find_bytes(&message[..cut], 2), None, "cut at {cut}");
        }
    }
    proptest::proptest! {
        #[test]
        fn a_value_is_found_behind_any_fields_and_damage_is_no_value(
            before in proptest::collection::vec(0_u8.., 0..300), value in proptest::collection::vec(0_u8.., 0..300),
            cut: proptest::sample::Index,
        ) {
            let (mut entry, mut message) = (BytesMut::new(), BytesMut::new());
            put_bytes(&mut entry, 1, &before);
            put_bytes(&mut entry, 5, &value);
            put_bytes(&mut message, 1, &before);
            put_bytes(&mut message, 2, &entry);
            proptest::prop_assert_eq!(value_of(&message), Some(&value[..]));
            proptest::prop_assert_eq!(value_of(&message[..cut.index(message.len())]), None);
            let _ = value_of(&before);
        }
    }
}
