//! As `home::remote::wire`, for this interface.

use prost::Message as _;

use super::proto as pb;
use crate::home::remote::wire::{Interface, generated};

#[test]
fn messages_of_every_release_are_read_as_they_were_meant() {
    let interface = Interface {
        package: "holdfast.enrol.v1",
        descriptors: include_bytes!(concat!(env!("OUT_DIR"), "/enrol.bin")),
        generated: generated!(pb: EnrolRequest, EnrolReply),
        // The messages carry text: tokens and PEM.
        ours: Vec::new(),
        spared: &[],
    };
    interface.check();
}
