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

    #[test]
    fn a_field_of_each_kind_is_one_part() {
        // What is in a field looks like fields.
        let fields: [&[u8]; 7] = [
            &[0x08, 0x88, 0x10],
            &[0x11, 8, 0, 8, 0, 8, 0, 8, 0],
            &[0x1a, 4, 8, 0, 8, 0],
            &[0x25, 8, 0, 8, 0],
            &[0x2b],
            &[0x2c],
            // A field number of two bytes.
            &[0xa2, 0x06, 2, 8, 0],
        ];
        let message = fields.concat();
        assert!(has_more_parts(&message, fields.len() - 1) && !has_more_parts(&message, fields.len()));
        for field in fields {
            assert!(has_more_parts(field, 0) && !has_more_parts(field, 1), "{field:?}");
        }
        // Nothing is counted after a kind that does not exist, since the length of such a field is unknown.
        let crumbs = [0x3a, 0].repeat(4);
        for kind in [0x0e, 0x0f] {
            assert!(!has_more_parts(&[&[kind], crumbs.as_slice()].concat(), 1));
        }
        // The decoder reports these: two kinds that do not exist, a length beyond the end, a number without an end.
        for invalid in [&[0x0e][..], &[0x0f], &[0x1a, 100], &[0x08, 0x80, 0x80, 0x80], &[0x80; 11]] {
            let message = [crumbs.as_slice(), invalid].concat();
            assert!(has_more_parts(&message, 3) && !has_more_parts(&message, 5), "{invalid:?}");
        }
    }

    #[tokio::test]
    async fn a_message_of_crumbs_is_refused_before_it_is_decoded() {
        let crumbs = "\u{3a}\0".repeat(1 << 16);
        // Flags and length of a message (gRPC over HTTP/2, Length-Prefixed-Message): 2^17 bytes.
        let body = format!("\0\0\u{2}\0\0{crumbs}");
        let decoder = tonic::codec::Codec::decoder(&mut Codec::<(), pb::HeartbeatRequest>::default());
        let mut arriving = tonic::Streaming::new_request(decoder, body, None, None);
        let refused = arriving.message().await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("more than 12288 parts"), "{refused}");
    }

    proptest! {
        #[test]
        fn any_bytes_come_to_an_end(bytes: Vec<u8>) {
            prop_assert!(!has_more_parts(&bytes, bytes.len()));
        }
    }
}
