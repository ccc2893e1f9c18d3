//! A controller of this release and a home node of an older one.

use std::sync::Arc;

use super::home::MemoryHome;
use crate::home::{CreateVolume, GrantRequest, Home, ReadOnly};
use crate::testing::Loopback;
use crate::types::{AccessMode, Capability, CapacityRange, FsType, Kind, RequestedMode, VolumeMode, VolumeParameters};

fn attached(home: MemoryHome, modes: &[VolumeMode]) -> (crate::types::Result<()>, Vec<RequestedMode>) {
    let access = AccessMode::SingleNodeWriter;
    let request = CreateVolume {
        name: "v".to_owned(),
        range: CapacityRange::default(),
        capabilities: modes.iter().map(|mode| Capability { mode: *mode, access }).collect(),
        parameters: VolumeParameters::default(),
        source: None,
    };
    let id = home.create_volume(&request).unwrap().into_inner().id;
    let home = Arc::new(home);
    let wire = Loopback::new(Arc::clone(&home) as Arc<dyn Home>);
    let mode = RequestedMode::Mount(None);
    let grant = GrantRequest { node: "n1".parse().unwrap(), mode, access, read_only: ReadOnly::No };
    (wire.home().grant(&id, &grant).map(drop), home.asked())
}

#[test]
fn a_home_node_of_0_1_0_is_told_the_filesystem_of_an_attachment() {
    let xfs = VolumeMode::Mount(FsType::Xfs);
    let any = RequestedMode::Mount(None);
    let (answer, asked) = attached(MemoryHome::of_0_1_0(), &[VolumeMode::Block, xfs]);
    assert_eq!((answer.map_err(|error| error.chain()), asked), (Ok(()), vec![any, xfs.into()]));
    // A home node of this release finds it out itself.
    let (answer, asked) = attached(MemoryHome::new(), &[xfs]);
    assert_eq!((answer.map_err(|error| error.chain()), asked), (Ok(()), vec![any]));
    // A raw block volume has none.
    for home in [MemoryHome::of_0_1_0(), MemoryHome::new()] {
        let (answer, _) = attached(home, &[VolumeMode::Block]);
        assert_eq!(answer.unwrap_err().kind(), Kind::InvalidArgument);
    }
}
