//! As `home::remote::wire`, for this interface.

use prost::Message as _;

use super::{convert, proto as pb};
use crate::home::remote::wire::{Interface, generated, way};

#[test]
fn messages_of_every_release_are_read_as_they_were_meant() {
    let interface = Interface {
        package: "holdfast.registry.v1",
        descriptors: include_bytes!(concat!(env!("OUT_DIR"), "/registry.bin")),
        generated: generated!(pb:
            HeartbeatRequest, HeartbeatReply, ListNodesRequest, ListNodesReply, ListInventoryRequest, ListInventoryReply,
            ListFindingsRequest, ListFindingsReply, ReadmitRequest, ReadmitReply,
        ),
        ours: vec![way("HeartbeatRequest", |bytes| {
            let heard = convert::heartbeat_in(pb::HeartbeatRequest::decode(bytes).unwrap())?;
            Ok(Some(convert::heartbeat_out(&heard).encode_to_vec()))
        })],
        spared: &[("holdfast.home.v1.Pool.default_provisioning", "figures cannot be read")],
    };
    interface.check();
}
