//! Raw block volumes on a kernel with device-mapper. One guest for several tests: booting takes as long as a test.

use crate::machine::Guest;

#[test]
fn raw_block_volumes_are_published_through_device_mapper() {
    let mut guest = Guest::boot("published", &[]);
    // First: device-mapper is a module there, and the driver's own check must load it.
    guest.test("raw_block::its_pod_cannot_control_what_is_below_it");
    guest.test("raw_block::it_grows_under_its_pod");
    guest.test("raw_block::a_pod_that_may_only_read_gets_a_device_that_refuses_writes");
    guest.test("releases::a_raw_block_volume_is_upgraded_and_downgraded");
    // Last: it removes device-mapper for a while.
    guest.test("raw_block::a_volume_published_as_a_loop_device_stays_one_until_it_is_unstaged");
}

#[test]
fn the_device_of_a_raw_block_volume() {
    let mut guest = Guest::boot("device", &[]);
    guest.test("linear_device::what_a_crash_leaves_is_finished_or_removed");
    guest.test("linear_device::any_call_may_fail_and_a_retry_ends_the_same");
    guest.test("linear_device::a_device_that_is_open_or_not_ours_stays_as_it_is");
    guest.test("linear_device::a_device_that_only_reads_refuses_writes");
    guest.test("linear_device::one_target_would_hand_the_loop_device_s_controls_through");
}
