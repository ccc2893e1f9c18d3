//! Generates messages and services from proto/, without protoc.

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
    println!("cargo::rerun-if-changed=proto");
    csi()?;
    homes()?;
    enrolment()?;
    kubelet()
}

fn csi() -> Result<(), Box<dyn std::error::Error>> {
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_file("proto/csi/v1/csi.proto")?;
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

/// What homes, controllers and nodes say to each other.
fn homes() -> Result<(), Box<dyn std::error::Error>> {
    for proto in ["home/v1/home.proto", "registry/v1/registry.proto"] {
        let mut compiler = protox::Compiler::new(["proto"])?;
        compiler.include_imports(true).open_file(proto)?;
        // For the tests of what earlier releases say (src/home/remote/wire.rs).
        let name = proto.split('/').next().unwrap_or_default();
        let descriptors = Path::new(&std::env::var("OUT_DIR")?).join(format!("{name}.bin"));
        std::fs::write(descriptors, compiler.encode_file_descriptor_set())?;
        let mut generator = tonic_prost_build::configure()
            .build_transport(false)
            .generate_default_stubs(true)
            .codec_path("crate::wire::Codec")
            // It carries names and keys of an export (src/home/remote/encode.rs).
            .skip_debug([".holdfast.home.v1.Coordinates.NvmeTcp"]);
        if proto.starts_with("registry") {
            // In a directory of its own: it writes a file of the home's package too, with what is not extern.
            let out = Path::new(&std::env::var("OUT_DIR")?).join("registry");
            std::fs::create_dir_all(&out)?;
            generator = generator.extern_path(".holdfast.home.v1", "crate::wire::proto").out_dir(out);
        }
        generator.compile_fds(compiler.file_descriptor_set())?;
    }
    Ok(())
}

/// How a node comes to its certificate. The request's Debug is ours: it carries a token.
fn enrolment() -> Result<(), Box<dyn std::error::Error>> {
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.open_file("enrol/v1/enrol.proto")?;
    // For the test of what earlier releases say (src/enrol/wire.rs).
    let descriptors = Path::new(&std::env::var("OUT_DIR")?).join("enrol.bin");
    std::fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug([".holdfast.enrol.v1.EnrolRequest"])
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// How kubelet gets to know the driver.
fn kubelet() -> Result<(), Box<dyn std::error::Error>> {
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.open_file("pluginregistration/v1/registration.proto")?;
    tonic_prost_build::configure().build_transport(false).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
