use super::*;
use crate::csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use crate::types::{Bytes, FsType, Placement};

const HANDLE: &str = "hf1_00000000000000aa_0123456789abcdef0123456789abcdef_n1";
const SNAPSHOT: &str = "hfs1_00000000000000aa_0123456789abcdef0123456789abcdef_n1";

fn mount(fs: &str, flags: &[&str], mode: i32) -> proto::VolumeCapability {
    proto::VolumeCapability {
        access_mode: Some(AccessMode { mode }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs.into(),
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..Default::default()
        })),
    }
}

fn block(mode: i32) -> proto::VolumeCapability {
    proto::VolumeCapability {
        access_mode: Some(AccessMode { mode }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn big() -> HashMap<String, String> {
    map(&[("k", &"v".repeat(5000))])
}

fn bytes(required_bytes: i64, limit_bytes: i64) -> Option<proto::CapacityRange> {
    Some(proto::CapacityRange { required_bytes, limit_bytes })
}

fn said<T: std::fmt::Debug>(result: Result<T>) -> (Kind, String) {
    result.map_err(|error| (error.kind(), error.to_string())).unwrap_err()
}

macro_rules! refused {
    ($decode:expr, $good:expr, $($field:ident: $bad:expr => $kind:ident $word:literal),* $(,)?) => {{
        $decode($good).unwrap();
        $({
            let mut bad = $good;
            bad.$field = $bad;
            let (kind, text) = said($decode(bad));
            assert!(kind == Kind::$kind && text.contains($word), "{}: {kind:?} {text}", stringify!($field));
        })*
    }};
}

fn new_volume() -> proto::CreateVolumeRequest {
    proto::CreateVolumeRequest {
        name: "pvc-1".into(),
        volume_capabilities: vec![mount("", &[], 7)],
        ..Default::default()
    }
}

fn from_snapshot(id: &str) -> Option<proto::VolumeContentSource> {
    use proto::volume_content_source::{SnapshotSource, Type};
    Some(proto::VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })) })
}

#[test]
fn every_field_of_create_volume() {
    let no_segments = proto::TopologyRequirement { requisite: vec![proto::Topology::default()], preferred: vec![] };
    refused!(create_volume, new_volume(),
        name: String::new() => InvalidArgument "name",
        name: "n".repeat(129) => InvalidArgument "128",
        name: "a\u{1}".into() => InvalidArgument "control",
        volume_capabilities: vec![] => InvalidArgument "volume_capabilities",
        volume_capabilities: vec![proto::VolumeCapability::default()] => InvalidArgument "access_type",
        volume_capabilities: vec![block(1), block(5)] => InvalidArgument "MULTI_NODE_MULTI_WRITER",
        volume_capabilities: vec![mount("ext3", &[], 1)] => InvalidArgument "ext3",
        volume_capabilities: vec![mount("ext4", &["suid-please"], 1)] => InvalidArgument "mount",
        capacity_range: bytes(-1, 0) => InvalidArgument "negative",
        capacity_range: bytes(2, 1) => InvalidArgument "limit_bytes",
        volume_capabilities: vec![mount("ext4", &[], 1), mount("xfs", &[], 1)] => InvalidArgument "two filesystems",
        parameters: map(&[("fstype", "ext4")]) => InvalidArgument "fstype",
        parameters: map(&[("mkfsOptions", "-F")]) => InvalidArgument "-F",
        parameters: big() => InvalidArgument "4096",
        mutable_parameters: map(&[("a", "b")]) => InvalidArgument "mutable_parameters",
        volume_content_source: Some(proto::VolumeContentSource { r#type: None }) => InvalidArgument "volume_content_source",
        volume_content_source: from_snapshot("") => InvalidArgument "snapshot_id",
        volume_content_source: from_snapshot("non-existing-snapshot-id") => NotFound "non-existing",
        accessibility_requirements: Some(no_segments) => InvalidArgument "segments",
    );
}

#[test]
fn discard_on_a_thick_class_is_refused_or_known() {
    let of = |provisioning: &[(&str, &str)], flags: &[&str]| {
        let request = proto::CreateVolumeRequest {
            volume_capabilities: vec![mount("ext4", flags, 7)],
            parameters: map(provisioning),
            ..new_volume()
        };
        create_volume(request).map(|decoded| decoded.discards)
    };
    let (kind, text) = said(of(&[("provisioning", "thick")], &["noatime,discard"]));
    assert!(kind == Kind::InvalidArgument && text.contains("discard") && text.contains("thin"), "{text}");
    assert!(of(&[("provisioning", "thin")], &["discard"]).unwrap());
    assert!(of(&[], &["discard"]).unwrap(), "the pool decides, and the log reports it");
    assert!(!of(&[("provisioning", "thick")], &["nodiscard"]).unwrap());
}

#[test]
fn a_bad_field_counts_more_than_a_source_that_does_not_exist() {
    let request = proto::CreateVolumeRequest {
        volume_content_source: from_snapshot("fake"),
        capacity_range: bytes(-1, 0),
        ..new_volume()
    };
    assert_eq!(said(create_volume(request)).0, Kind::InvalidArgument);
    let request = proto::CreateSnapshotRequest { source_volume_id: "fake".into(), ..Default::default() };
    assert_eq!(said(create_snapshot(&request)).0, Kind::InvalidArgument);
    let request = proto::ControllerExpandVolumeRequest { volume_id: "fake".into(), ..Default::default() };
    assert_eq!(said(expand(&request)).0, Kind::InvalidArgument);
}

#[test]
fn a_good_create_becomes_our_words() {
    let request = proto::CreateVolumeRequest {
        capacity_range: bytes(5, 9),
        volume_capabilities: vec![mount("", &["noatime"], 7), mount("xfs", &[], 7), block(1)],
        parameters: map(&[("csi.storage.k8s.io/fstype", "xfs"), ("placement", "any"), ("pool", "fast")]),
        volume_content_source: from_snapshot(SNAPSHOT),
        secrets: map(&[("key", "marked")]),
        ..new_volume()
    };
    let decoded = create_volume(request).unwrap();
    assert!(!format!("{decoded:?}").contains("marked"));
    let request = decoded.request;
    assert_eq!((request.range.required, request.range.limit), (Some(Bytes::new(5)), Some(Bytes::new(9))));
    let modes: Vec<_> = request.capabilities.iter().map(|one| one.mode).collect();
    assert_eq!(modes, [VolumeMode::Mount(FsType::Xfs), VolumeMode::Block], "two that are the same count once");
    assert_eq!(request.parameters.placement, Placement::Any);
    assert!(matches!(request.source, Some(Source::Snapshot(_))));
    assert_eq!(decoded.source, from_snapshot(SNAPSHOT));
    let plain = create_volume(new_volume()).unwrap().request;
    assert_eq!(plain.capabilities.first().unwrap().mode, VolumeMode::Mount(FsType::Ext4));
}

#[test]
fn every_field_of_publish_and_unpublish() {
    let good = || proto::ControllerPublishVolumeRequest {
        volume_id: HANDLE.into(),
        node_id: "n1".into(),
        volume_capability: Some(mount("", &[], 7)),
        ..Default::default()
    };
    refused!(|r| publish(&r), good(),
        volume_id: String::new() => InvalidArgument "volume_id",
        volume_id: "some-vol-id".into() => NotFound "some-vol-id",
        node_id: String::new() => InvalidArgument "node_id",
        node_id: "no such/node".into() => NotFound "no such/node",
        node_id: "n".repeat(257) => InvalidArgument "256",
        volume_capability: None => InvalidArgument "volume_capability",
        volume_capability: Some(mount("", &[], 5)) => InvalidArgument "MULTI_NODE",
        volume_context: big() => InvalidArgument "volume_context",
    );
    let read_only = publish(&proto::ControllerPublishVolumeRequest { readonly: true, ..good() }).unwrap();
    assert_eq!(read_only.read_only, ReadOnly::Yes);

    let from = |volume: &str, node: &str| {
        let request = proto::ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            ..Default::default()
        };
        unpublish(&request)
    };
    assert_eq!(said(from("", "n1")).0, Kind::InvalidArgument);
    assert!(matches!(from(HANDLE, ""), Ok(Unpublish::Everywhere(_))));
    assert!(matches!(from(HANDLE, "n1"), Ok(Unpublish::From(..))));
    assert_eq!(from("fake", "n1").unwrap(), Unpublish::NotOurs);
    assert_eq!(from(HANDLE, "no such/node").unwrap(), Unpublish::NotOurs);
}

#[test]
fn validate_tells_what_is_malformed_from_what_is_not_served() {
    let of = |id: &str, capabilities: Vec<proto::VolumeCapability>, parameters| {
        validate(&proto::ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: capabilities,
            parameters,
            ..Default::default()
        })
    };
    assert_eq!(said(of("", vec![block(1)], map(&[]))).0, Kind::InvalidArgument);
    assert_eq!(said(of(HANDLE, vec![], map(&[]))).0, Kind::InvalidArgument);
    assert_eq!(said(of("fake", vec![block(1)], map(&[]))).0, Kind::NotFound);
    let malformed = vec![block(5), proto::VolumeCapability::default()];
    assert_eq!(said(of(HANDLE, malformed, map(&[]))).0, Kind::InvalidArgument);
    assert_eq!(of(HANDLE, vec![block(1), mount("", &[], 2)], map(&[])).unwrap().verdict.unwrap().len(), 2);
    let many = of(HANDLE, vec![block(1), block(5)], map(&[])).unwrap();
    assert_eq!(said(many.verdict).0, Kind::Unsupported);
    assert!(of(HANDLE, vec![block(1)], map(&[("unknown", "x")])).unwrap().verdict.is_err());
}

#[test]
fn pages_and_tokens() {
    let of = |max_entries, token: &str| {
        list_volumes(&proto::ListVolumesRequest { max_entries, starting_token: token.into() })
    };
    assert_eq!(of(0, "").unwrap(), ListOf { after: None, limit: MAX_PAGE });
    assert_eq!(of(3, "").unwrap().limit, 3);
    assert_eq!(of(i32::MAX, "").unwrap().limit, MAX_PAGE);
    assert_eq!(said(of(-1, "")).0, Kind::InvalidArgument);
    assert_eq!(said(of(0, "invalid-token")).0, Kind::Busy, "answered ABORTED");
    let id: VolumeId = HANDLE.parse().unwrap();
    assert_eq!(of(1, &id.to_string()).unwrap().after, Some(id));
}

#[test]
fn every_filter_of_list_snapshots() {
    let of = |max_entries, token: &str, source: &str, snapshot: &str| {
        list_snapshots(&proto::ListSnapshotsRequest {
            max_entries,
            starting_token: token.into(),
            source_volume_id: source.into(),
            snapshot_id: snapshot.into(),
            ..Default::default()
        })
    };
    assert_eq!(said(of(-1, "", "fake", "")).0, Kind::InvalidArgument);
    assert_eq!(said(of(0, HANDLE, "", "")).0, Kind::Busy, "a token of the other list");
    assert_eq!(of(0, "", "fake", "").unwrap(), ListSnapshots::NotOurs);
    assert_eq!(of(0, "", "", "fake").unwrap(), ListSnapshots::NotOurs);
    assert!(matches!(of(0, "", HANDLE, SNAPSHOT).unwrap(), ListSnapshots::One(_, Some(_))));
    assert!(matches!(
        of(2, SNAPSHOT, HANDLE, "").unwrap(),
        ListSnapshots::Page(ListOf { after: Some(_), limit: 2 }, Some(_))
    ));
}

#[test]
fn every_field_of_capacity_snapshot_and_expand() {
    let empty = proto::GetCapacityRequest::default;
    refused!(|r| capacity(&r), empty(),
        volume_capabilities: vec![proto::VolumeCapability::default()] => InvalidArgument "access_type",
        parameters: big() => InvalidArgument "4096",
    );
    // CreateVolume refuses a wrong StorageClass.
    let wrong = proto::GetCapacityRequest { parameters: map(&[("poool", "x"), ("pool", "fast")]), ..empty() };
    let CapacityOf::Query(query, None) = capacity(&wrong).unwrap() else { panic!("it is a question") };
    assert_eq!(query.pool.unwrap().to_string(), "fast");
    let many = proto::GetCapacityRequest { volume_capabilities: vec![block(5)], ..empty() };
    assert!(matches!(capacity(&many).unwrap(), CapacityOf::Nothing));
    let anywhere = proto::GetCapacityRequest { accessible_topology: Some(proto::Topology::default()), ..empty() };
    assert!(matches!(capacity(&anywhere).unwrap(), CapacityOf::Query(_, None)));

    let cut = || proto::CreateSnapshotRequest {
        name: "snap-1".into(),
        source_volume_id: HANDLE.into(),
        parameters: map(&[("csi.storage.k8s.io/volumesnapshot/name", "s")]),
        ..Default::default()
    };
    refused!(|r| create_snapshot(&r), cut(),
        name: String::new() => InvalidArgument "name",
        name: "n".repeat(129) => InvalidArgument "128",
        source_volume_id: String::new() => InvalidArgument "source_volume_id",
        source_volume_id: "fake".into() => NotFound "fake",
        parameters: map(&[("speed", "x")]) => InvalidArgument "speed",
        parameters: big() => InvalidArgument "4096",
    );

    let grow = || proto::ControllerExpandVolumeRequest {
        volume_id: HANDLE.into(),
        capacity_range: bytes(7, 0),
        ..Default::default()
    };
    refused!(|r| expand(&r), grow(),
        volume_id: String::new() => InvalidArgument "volume_id",
        volume_id: "fake".into() => NotFound "fake",
        capacity_range: None => InvalidArgument "capacity_range",
        capacity_range: bytes(0, 0) => InvalidArgument "capacity_range",
        capacity_range: bytes(9, 8) => InvalidArgument "limit_bytes",
        volume_capability: Some(block(5)) => InvalidArgument "MULTI_NODE",
    );
}
