//! Raw block volumes where device-mapper exists. One guest for several tests: booting it costs as much as one.

use crate::machine::Guest;

#[test]
fn the_device_of_a_raw_block_volume() {
    let mut guest = Guest::boot("device", &[]);
    guest.test("linear_device::what_a_crash_leaves_is_finished_or_removed");
    guest.test("linear_device::a_device_that_is_open_or_not_ours_stays_as_it_is");
    guest.test("linear_device::a_device_that_only_reads_refuses_writes");
    guest.test("linear_device::one_target_would_hand_the_loop_device_s_controls_through");
}
