//! Generates the CSI messages and services from proto/csi/v1/csi.proto, without protoc.

use std::path::Path;

/// Messages with a `csi_secret` field or mount flags: their Debug is ours (src/csi/secrets.rs).
const UNLOGGABLE: &[&str] = &[
    "CreateVolumeRequest",
    "DeleteVolumeRequest",
    "ControllerPublishVolumeRequest",
    "ControllerUnpublishVolumeRequest",
    "ValidateVolumeCapabilitiesRequest",
    "ControllerListVolumeHealthRequest",
    "ControllerGetVolumeHealthRequest",
    "ControllerModifyVolumeRequest",
    "CreateSnapshotRequest",
    "DeleteSnapshotRequest",
    "ListSnapshotsRequest",
    "GetSnapshotRequest",
    "ControllerExpandVolumeRequest",
    "NodeStageVolumeRequest",
    "NodePublishVolumeRequest",
    "NodeExpandVolumeRequest",
    "NodeGetStorageHealthRequest",
    "CreateVolumeGroupSnapshotRequest",
    "DeleteVolumeGroupSnapshotRequest",
    "GetVolumeGroupSnapshotRequest",
    "GetMetadataAllocatedRequest",
    "GetMetadataDeltaRequest",
    "VolumeCapability.MountVolume",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = Path::new("proto/csi/v1/csi.proto");
    println!("cargo::rerun-if-changed={}", proto.display());
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_file(proto)?;
    // With the options csi_secret and alpha_*, which the tests of the wire interface and of redaction read.
    let descriptors = Path::new(&std::env::var("OUT_DIR")?).join("csi.bin");
    std::fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_transport(true)
        .generate_default_stubs(true)
        .codec_path("crate::csi::codec::Codec")
        .skip_debug(UNLOGGABLE.iter().map(|message| format!(".csi.v1.{message}")))
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
