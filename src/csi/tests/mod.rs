//! The gRPC layer as a client sees it: over a real socket, with a home in memory.

mod home;
mod older;
mod redaction;
mod served;
mod wire;

use prost_reflect::DescriptorPool;

/// The descriptor of the interface, options included.
fn descriptors() -> DescriptorPool {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/csi.bin")).as_slice()).unwrap()
}
