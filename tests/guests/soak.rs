//! The long tests, and those on the older kernel: `make soak`.

use crate::root::Kernel;
use crate::{exports, fences};

#[test]
fn a_volume_is_written_on_one_node_and_read_on_another_on_the_older_kernel() {
    exports::moves(Kernel::Oldest);
}

#[test]
fn a_fence_lets_no_write_through_and_holds_up_nobody_on_the_older_kernel() {
    fences::fences(Kernel::Oldest);
}

#[test]
fn a_flush_in_flight_holds_up_its_own_fence_alone_on_the_older_kernel() {
    fences::flushes(Kernel::Oldest);
}

#[test]
fn clients_resume_on_the_older_kernel() {
    fences::rebuilds(Kernel::Oldest, 4);
}

#[test]
fn fifty_clients_resume() {
    fences::rebuilds(Kernel::Newest, 50);
}

#[test]
fn exports_and_connections_of_one_machine_on_the_older_kernel() {
    exports::alone(Kernel::Oldest, "");
}

#[test]
fn exports_and_connections_without_native_multipath() {
    exports::alone(Kernel::Newest, "nvme_core.multipath=N");
}
