//! Recorded messages of every released version, tested with the current code (tests/wire/). Each message has one file
//! with its bytes and its fields. `HOLDFAST_WIRE=write` writes the files of the version in development; those of a
//! released version are never written again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind as FieldKind, MapKey, MessageDescriptor, ReflectMessage,
    Value,
};

use super::{decode, encode, proto as pb};
use crate::types::{Kind, Result};

/// Decodes and encodes a message with the current generated code.
pub(crate) type Generated = (&'static str, fn(&[u8]) -> Vec<u8>);
/// Decodes a message to our own types, and encodes it again if possible.
pub(crate) type Ours = (&'static str, Through);
/// The function for this.
type Through = fn(&[u8]) -> Result<Option<Vec<u8>>>;

/// The interface under test.
pub(crate) struct Interface {
    pub(crate) package: &'static str,
    pub(crate) descriptors: &'static [u8],
    pub(crate) generated: Vec<Generated>,
    pub(crate) ours: Vec<Ours>,
    /// Fields whose unknown value affects only one part of a message, and the resulting text of that part. An unknown
    /// value of any other field rejects the message, with its name in the error.
    pub(crate) spared: &'static [(&'static str, &'static str)],
}

const VOLUME: &str = "hf1_00000000000000aa_0123456789abcdef0123456789abcdef";
const SNAPSHOT: &str = "hfs1_00000000000000aa_0123456789abcdef0123456789abcdef";

/// A valid text for a field.
fn text(message: &str, field: &str) -> String {
    let of_snapshots = message.contains("Snapshot");
    match (message, field) {
        ("Pool" | "PoolHealth", "id") | ("ReadmitRequest" | "DirectoryEntry" | "ListExportsRequest", "pool") | (_, "lost" | "lost_elsewhere") => {
            "00000000000000aa"
        }
        ("Pool" | "PoolHealth" | "DirectoryEntry", "name") | (_, "pool") => "default",
        ("FindVolumeRequest" | "FindSnapshotRequest", "uuid") => "0123456789abcdef0123456789abcdef",
        ("NvmeTcp", "address") => "192.0.2.1:4500",
        ("OpenRequest", "connection") | ("NvmeTcp", "subsystem") | ("ListExportsReply", "subsystems") => {
            "nqn.2026-11.storage.holdfast:00000000000000aa:0123456789abcdef0123456789abcdef:0123456789ab4def8123456789abcdef"
        }
        ("NvmeTcp", "key") => "DHHC-1:00:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAACtVQoZ:",
        (_, "uuid" | "fs_uuid" | "planned_uuid" | "host" | "namespace") => "01234567-89ab-4def-8123-456789abcdef",
        (_, "snapshot") => SNAPSHOT,
        (_, "volume" | "source") => VOLUME,
        (_, "id" | "ids" | "after" | "next") if of_snapshots => SNAPSHOT,
        (_, "id" | "ids" | "after" | "next" | "extents") => VOLUME,
        (_, "node" | "home" | "birth_home" | "source_birth_home" | "published") => "node-a",
        (_, "parameters") => "pool",
        (_, "claim") => "db/data",
        (_, "endpoint") => "10.0.0.1:9811",
        _ => field,
    }
    .to_owned()
}

fn value(kind: &FieldKind, field: &FieldDescriptor, variant: usize) -> Value {
    let number = field.number();
    match kind {
        FieldKind::String => Value::String(text(field.parent_message().name(), field.name())),
        FieldKind::Uint64 => Value::U64(u64::from(number) << 30 | 7),
        FieldKind::Uint32 => Value::U32(number + 7),
        FieldKind::Bool => Value::Bool(true),
        FieldKind::Enum(one) => Value::EnumNumber(one.values().last().unwrap().number()),
        FieldKind::Message(message) => Value::Message(filled(message, variant)),
        other => panic!("{}: no value for {other:?}", field.full_name()),
    }
}

/// A message with every field set; of each oneof, the field with this index.
fn filled(descriptor: &MessageDescriptor, variant: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if let Some(oneof) = field.containing_oneof().filter(|oneof| !oneof.is_synthetic()) {
            let chosen = variant % oneof.fields().len();
            if oneof.fields().nth(chosen).unwrap().number() != field.number() {
                continue;
            }
        }
        let set = if field.is_map() {
            let FieldKind::Message(entry) = field.kind() else { panic!("a map is a message") };
            let key = MapKey::String(text(descriptor.name(), field.name()));
            let held = entry.get_field(2).unwrap();
            let held = match held.kind() {
                FieldKind::String => Value::String("default".to_owned()),
                kind => value(&kind, &held, variant),
            };
            Value::Map([(key, held)].into())
        } else if field.is_list() {
            Value::List(vec![value(&field.kind(), &field, variant)])
        } else {
            value(&field.kind(), &field, variant)
        };
        message.set_field(&field, set);
    }
    message
}

/// How many variants cover every field of every oneof.
fn variants(descriptor: &MessageDescriptor) -> usize {
    let oneofs = descriptor.oneofs().map(|oneof| oneof.fields().len()).max().unwrap_or(1);
    let inner = descriptor.fields().filter_map(|field| field.kind().as_message().map(variants));
    inner.max().unwrap_or(1).max(oneofs)
}

fn say(out: &mut String, path: &str, value: &Value) {
    match value {
        Value::Message(message) => {
            if message.fields().next().is_none() {
                writeln!(out, "{path} {{}}").unwrap();
            }
            for (field, value) in message.fields() {
                say(out, &format!("{path}.{}", field.name()), value);
            }
        }
        Value::List(values) => {
            values.iter().enumerate().for_each(|(i, value)| say(out, &format!("{path}[{i}]"), value))
        }
        Value::Map(values) => {
            values.iter().for_each(|(key, value)| say(out, &format!("{path}[{key:?}]"), value));
        }
        scalar => writeln!(out, "{path} = {scalar:?}").unwrap(),
    }
}

/// The fields of a message as text.
fn said(message: &DynamicMessage) -> String {
    let mut out = String::new();
    say(&mut out, message.descriptor().name(), &Value::Message(message.clone()));
    out
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn of_hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// The messages that are sent: those of every call, and the error.
fn travelling(pool: &DescriptorPool, package: &str) -> Vec<MessageDescriptor> {
    let mut all: Vec<_> = pool
        .services()
        .filter(|service| service.package_name() == package)
        .flat_map(|service| service.methods().flat_map(|m| [m.input(), m.output()]).collect::<Vec<_>>())
        .chain(pool.get_message_by_name(&format!("{package}.Error")))
        .collect();
    all.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    all.dedup();
    all
}

/// Adds an unknown field before and after.
fn with_unknown(bytes: &[u8]) -> Vec<u8> {
    // Field 1999 as a varint, field 2000 as three bytes.
    [&[0xf8, 0x7c, 0x05], bytes, &[0x82, 0x7d, 0x03, b'n', b'e', b'w']].concat()
}

fn samples(descriptor: &MessageDescriptor) -> String {
    let sample = |variant| {
        let message = filled(descriptor, variant);
        format!("{}\n{}", to_hex(&message.encode_to_vec()), said(&message))
    };
    (0..variants(descriptor)).map(sample).collect::<Vec<_>>().join("\n")
}

/// The message with each of its enums, in turn, set to a value of a later release.
fn with_later_values(message: &DynamicMessage) -> Vec<(String, DynamicMessage)> {
    let mut all = Vec::new();
    for (field, value) in message.fields() {
        let mut put = |what: String, value: Value| {
            let mut changed = message.clone();
            changed.set_field(&field, value);
            all.push((what, changed));
        };
        match value {
            Value::EnumNumber(_) => put(field.full_name().to_owned(), Value::EnumNumber(99)),
            Value::Message(inner) => {
                with_later_values(inner).into_iter().for_each(|(what, inner)| put(what, Value::Message(inner)));
            }
            Value::List(values) => {
                if let Some(Value::Message(inner)) = values.first() {
                    for (what, inner) in with_later_values(inner) {
                        put(what, Value::List(vec![Value::Message(inner)]));
                    }
                }
            }
            _ => {}
        }
    }
    all
}

impl Interface {
    fn generated(&self, name: &str) -> fn(&[u8]) -> Vec<u8> {
        let found = self.generated.iter().find(|(one, _)| *one == name);
        found.unwrap_or_else(|| panic!("{name} travels and is not tried")).1
    }

    fn ours(&self, name: &str) -> Option<Through> {
        self.ours.iter().find(|(one, _)| *one == name).map(|(_, way)| *way)
    }

    /// Checks all guarantees of this module.
    pub(crate) fn check(&self) {
        let pool = DescriptorPool::decode(self.descriptors).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire");
        let now = root.join(env!("CARGO_PKG_VERSION"));
        if std::env::var("HOLDFAST_WIRE").is_ok_and(|what| what == "write") {
            fs::create_dir_all(&now).unwrap();
            for descriptor in travelling(&pool, self.package) {
                fs::write(now.join(format!("{}.txt", descriptor.full_name())), samples(&descriptor)).unwrap();
            }
        }
        for descriptor in travelling(&pool, self.package) {
            let path = now.join(format!("{}.txt", descriptor.full_name()));
            let stored = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(stored, samples(&descriptor), "{} is not what is sent; see HOLDFAST_WIRE", path.display());
        }
        let mut tried = 0;
        for version in fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()) {
            let of_package = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(self.package);
            for path in fs::read_dir(version).unwrap().map(|entry| entry.unwrap().path()).filter(of_package) {
                self.check_file(&pool, &path);
                tried += 1;
            }
        }
        println!("{}: {tried} messages", self.package);
    }

    fn check_file(&self, pool: &DescriptorPool, path: &Path) {
        let full_name = path.file_stem().unwrap().to_str().unwrap();
        let descriptor = pool.get_message_by_name(full_name).unwrap_or_else(|| panic!("{full_name} is gone"));
        let (generated, ours) = (self.generated(descriptor.name()), self.ours(descriptor.name()));
        let read = |bytes: &[u8]| DynamicMessage::decode(descriptor.clone(), bytes).unwrap();
        for sample in fs::read_to_string(path).unwrap().split("\n\n") {
            let (hex, says) = sample.split_once('\n').unwrap_or((sample, ""));
            let bytes = of_hex(hex);
            let message = read(&bytes);
            assert_eq!(said(&message).trim_end(), says.trim_end(), "{full_name} is read as something else");
            let extended = with_unknown(&bytes);
            for bytes in [&bytes, &extended] {
                assert_eq!(said(&read(&generated(bytes))), said(&message), "{full_name}");
                let Some(ours) = ours else { continue };
                if let Some(back) = ours(bytes).unwrap_or_else(|error| panic!("{full_name}: {}", error.chain())) {
                    assert_eq!(said(&read(&back)), said(&message), "{full_name}");
                }
            }
            let Some(ours) = ours else { continue };
            for (what, later) in with_later_values(&message) {
                let spared = self.spared.iter().find(|(field, _)| *field == what);
                if let Some((_, words)) = spared {
                    let heard =
                        ours(&later.encode_to_vec()).unwrap_or_else(|error| panic!("{full_name}: {}", error.chain()));
                    let heard = said(&read(&heard.expect("it is said again")));
                    assert!(heard.contains(words) && heard.contains("release"), "{full_name}: {what}: {heard}");
                    continue;
                }
                let Err(error) = ours(&later.encode_to_vec()) else {
                    panic!("{full_name}: {what} 99 is taken for something")
                };
                let words = error.chain();
                assert!(error.kind() == Kind::Unsupported && words.contains("release"), "{full_name}: {what}: {words}");
            }
        }
    }
}

/// The named messages in the current generated code.
macro_rules! generated {
    ($path:ident : $($message:ident),* $(,)?) => {
        vec![$($crate::home::remote::wire::tried(stringify!($message), |bytes| {
            $path::$message::decode(bytes).unwrap().encode_to_vec()
        })),*]
    };
}
pub(crate) use generated;

/// One entry of [`generated`].
pub(crate) fn tried(name: &'static str, way: fn(&[u8]) -> Vec<u8>) -> Generated {
    (name, way)
}

/// A conversion through our types.
pub(crate) fn way(name: &'static str, way: Through) -> Ours {
    (name, way)
}

/// Converts a message to our types and back.
fn there<M: prost::Message + Default, T>(
    bytes: &[u8],
    read: impl Fn(M) -> Result<T>,
    write: impl Fn(T) -> Option<Vec<u8>>,
) -> Result<Option<Vec<u8>>> {
    read(M::decode(bytes).unwrap()).map(write)
}

fn bytes(message: &impl prost::Message) -> Option<Vec<u8>> {
    Some(message.encode_to_vec())
}

#[test]
fn messages_of_every_release_are_read_as_they_were_meant() {
    let interface = Interface {
        package: "holdfast.home.v1",
        descriptors: include_bytes!(concat!(env!("OUT_DIR"), "/home.bin")),
        generated: generated!(pb:
            CreateVolumeRequest, CreateVolumeReply, DeleteVolumeRequest, ChangedReply, GetVolumeRequest, Volume,
            FindVolumeRequest, FindVolumeReply, ListVolumesRequest, ListVolumesReply, GrantRequest, GrantReply,
            RevokeRequest, OpenRequest, OpenReply, CloseRequest, CloseReply, BeginFormatRequest, BeginFormatReply,
            EndFormatRequest, EndFormatReply, UseRawRequest, UseRawReply, CreateSnapshotRequest, CreateSnapshotReply,
            DeleteSnapshotRequest, GetSnapshotRequest, Snapshot, FindSnapshotRequest, FindSnapshotReply,
            ListSnapshotsRequest, ListSnapshotsReply, ExpandRequest, ExpandReply, GetCapacityRequest, GetCapacityReply,
            ListExtentsRequest, ListExtentsReply, ReportRequest, ReportReply, ExamineRequest, ExamineReply,
            ReadmitRequest, Error, ListExportsRequest, ListExportsReply,
        ),
        ours: vec![
            way("ChangedReply", |bytes| {
                let read = |m: pb::ChangedReply| decode::changed(m.changed);
                there(bytes, read, |changed| {
                    self::bytes(&pb::ChangedReply { changed: encode::changed(changed).into() })
                })
            }),
            way("Volume", |b| there(b, |m| decode::volume(Some(m)), |v| bytes(&encode::volume(v)))),
            way("Snapshot", |b| there(b, |m| decode::snapshot(Some(m)), |s| bytes(&encode::snapshot(s)))),
            way("CreateVolumeRequest", |b| there(b, decode::create_volume, |r| bytes(&encode::create_volume(&r)))),
            way("CreateSnapshotRequest", |b| {
                there(b, decode::create_snapshot, |r| bytes(&encode::create_snapshot(&r)))
            }),
            way("GrantRequest", |b| {
                there(
                    b,
                    |m: pb::GrantRequest| Ok((decode::text(&m.id)?, decode::grant(&m)?, m.generation)),
                    |(id, request, generation)| bytes(&pb::GrantRequest { generation, ..encode::grant(&id, &request) }),
                )
            }),
            way("GrantReply", |b| there(b, |m| decode::granted(&m), |g| bytes(&encode::granted(&g)))),
            way("OpenReply", |b| there(b, decode::opened, |o| bytes(&encode::opened(&o)))),
            way("BeginFormatReply", |b| there(b, decode::formatting, |_| None)),
            way("BeginFormatRequest", |b| there(b, |m: pb::BeginFormatRequest| decode::fs_type(m.fs), |_| None)),
            way("ExpandReply", |b| there(b, |m| decode::expanded(&m), |_| None)),
            way("GetCapacityRequest", |b| there(b, decode::capacity_query, |_| None)),
            way("ReportReply", |b| {
                let pools =
                    |m: pb::ReportReply| m.pools.into_iter().map(decode::pool_report).collect::<Result<Vec<_>>>();
                there(b, pools, |pools| bytes(&pb::ReportReply { pools: pools.iter().map(encode::pool).collect() }))
            }),
        ],
        spared: &[],
    };
    interface.check();
}
