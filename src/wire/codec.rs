//! Protobuf between daemons, where a message of many tiny parts is refused before it is decoded.
//!
//! Each part of a message costs some hundred bytes of memory, whatever its encoded size: an empty one has two bytes. So
//! a message of 4 MiB could need half a GiB.

use std::fmt;

use prost::Message;
use prost::bytes::Buf;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// The parts that a message may have whatever their size.
const FREE: usize = 4096;
/// In a message with more parts, the least average size of a part, in bytes. A pool's id alone has 18.
const LEAST: usize = 16;

/// Protobuf; build.rs names it in every generated method.
#[derive(Debug, Clone)]
pub struct Codec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = FrugalDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        FrugalDecoder(self.0.decoder())
    }
}

/// Decodes a message whose size justifies its memory.
pub struct FrugalDecoder<U>(ProstDecoder<U>);

impl<U> fmt::Debug for FrugalDecoder<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrugalDecoder")
    }
}

impl<U: Message + Default> Decoder for FrugalDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let most = src.remaining() / LEAST + FREE;
        if has_more_parts(src.chunk(), most) {
            return Err(super::bounds::crumbled(most));
        }
        self.0.decode(src)
    }

    fn buffer_settings(&self) -> tonic::codec::BufferSettings {
        self.0.buffer_settings()
    }
}

/// Whether a message has more fields than `most`, counting each element of a list. False for an invalid message: the
/// decoder reports what is wrong with it.
fn has_more_parts(mut bytes: &[u8], most: usize) -> bool {
    let mut parts = 0_usize;
    while let Some(key) = varint(&mut bytes) {
        parts += 1;
        if parts > most {
            return true;
        }
        let skipped = match key & 7 {
            0 => varint(&mut bytes).map(|_| 0),
            1 => Some(8),
            2 => varint(&mut bytes).and_then(|length| usize::try_from(length).ok()),
            5 => Some(4),
            // The begin and end of a group: the fields in it are counted one by one.
            3 | 4 => Some(0),
            _ => None,
        };
        match skipped.and_then(|length| bytes.get(length..)) {
            Some(rest) => bytes = rest,
            None => return false,
        }
    }
    false
}

/// The number at the beginning (Base 128 Varints in the description of the encoding).
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::proto as pb;
    use proptest::prelude::*;

    #[test]
    fn parts_are_counted_and_nothing_is_made_of_them() {
        let entry = pb::DirectoryEntry { pool: "00000000000000aa".into(), ..Default::default() };
        let heartbeat = pb::HeartbeatRequest { known: vec![entry; 10], node: "a".into(), ..Default::default() };
        let bytes = heartbeat.encode_to_vec();
        assert!(has_more_parts(&bytes, 10) && !has_more_parts(&bytes, 11));
        // Two bytes each: an empty entry.
        let crumbs = [0x3a, 0].repeat(1 << 20);
        assert!(has_more_parts(&crumbs, crumbs.len() / LEAST + FREE));
        // An unknown group, which a decoder skips, does not hide fields.
        let behind = [&[0x7b, 0x7c], crumbs.as_slice()].concat();
        assert!(has_more_parts(&behind, behind.len() / LEAST + FREE));
    }

    proptest! {
        #[test]
        fn any_bytes_come_to_an_end(bytes: Vec<u8>) {
            prop_assert!(!has_more_parts(&bytes, bytes.len()));
        }
    }
}
