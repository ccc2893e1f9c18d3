//! The long tests, and those on the older kernel: `make soak`.

use crate::cluster::{A, B};
use crate::harness::{PoolFs, Use};
use crate::moves::Rounds;
use crate::reconnect::Break;
use crate::root::Kernel;
use crate::{detach, exports, fences, moves, power_cuts, reconnect, restarts, sanity};

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

#[test]
fn a_volume_follows_its_pod_many_times() {
    moves::follows(Kernel::Newest, PoolFs::Xfs, &Use::ALL, Rounds(5));
}

#[test]
fn a_volume_of_a_pool_on_ext4_follows_its_pod() {
    moves::follows(Kernel::Newest, PoolFs::Ext4, &Use::ALL, Rounds(3));
}

#[test]
fn a_volume_follows_its_pod_on_the_older_kernel() {
    moves::follows(Kernel::Oldest, PoolFs::Xfs, &Use::ALL, Rounds(3));
}

#[test]
fn volumes_are_taken_from_a_node_that_writes() {
    detach::taken(Kernel::Newest, &Use::FILESYSTEMS);
}

#[test]
fn volumes_are_taken_from_a_node_that_writes_on_the_older_kernel() {
    detach::taken(Kernel::Oldest, &Use::FILESYSTEMS);
}

#[test]
fn daemons_are_killed_under_a_pod_that_writes() {
    restarts::daemons(Kernel::Newest);
}

#[test]
fn daemons_are_killed_under_a_pod_that_writes_on_the_older_kernel() {
    restarts::daemons(Kernel::Oldest);
}

#[test]
fn machines_lose_power_under_pods_that_write() {
    restarts::machines(Kernel::Newest, PoolFs::Xfs);
}

#[test]
fn machines_lose_power_under_pods_that_write_with_a_pool_on_ext4() {
    restarts::machines(Kernel::Newest, PoolFs::Ext4);
}

#[test]
fn machines_lose_power_under_pods_that_write_on_the_older_kernel() {
    restarts::machines(Kernel::Oldest, PoolFs::Xfs);
}

#[test]
fn every_acknowledged_write_to_a_network_volume_outlives_a_power_cut_on_xfs() {
    power_cuts::nothing_acknowledged_is_lost(Kernel::Newest, PoolFs::Xfs);
}

#[test]
fn every_acknowledged_write_to_a_network_volume_outlives_a_power_cut_on_ext4() {
    power_cuts::nothing_acknowledged_is_lost(Kernel::Newest, PoolFs::Ext4);
}

#[test]
fn every_acknowledged_write_to_a_network_volume_outlives_a_power_cut_on_the_older_kernel() {
    power_cuts::nothing_acknowledged_is_lost(Kernel::Oldest, PoolFs::Xfs);
}

#[test]
fn without_the_flag_a_power_cut_loses_an_acknowledged_write_on_xfs() {
    power_cuts::lost_without_the_flag(Kernel::Newest, PoolFs::Xfs);
}

#[test]
fn without_the_flag_a_power_cut_loses_an_acknowledged_write_on_ext4() {
    power_cuts::lost_without_the_flag(Kernel::Newest, PoolFs::Ext4);
}

#[test]
fn a_detach_continues_after_its_daemon_was_killed() {
    restarts::in_a_detach(Kernel::Newest);
}

#[test]
fn a_detach_continues_after_its_daemon_was_killed_on_the_older_kernel() {
    restarts::in_a_detach(Kernel::Oldest);
}

#[test]
fn csi_sanity_passes_with_volumes_of_another_node() {
    sanity::passes(Kernel::Newest, &[(B, "mount")]);
}

#[test]
fn csi_sanity_passes_with_raw_volumes_and_at_the_home_node() {
    sanity::passes(Kernel::Newest, &[(B, "block"), (A, "mount")]);
}

#[test]
fn csi_sanity_passes_with_volumes_of_another_node_on_the_older_kernel() {
    sanity::passes(Kernel::Oldest, &[(B, "mount")]);
}

#[test]
fn no_acknowledged_write_is_overtaken_by_an_earlier_one() {
    reconnect::old_copy(Kernel::Newest, Kernel::Newest, &[Use::Block, Use::Ext4], &Break::ALL);
}

#[test]
fn no_acknowledged_write_is_overtaken_by_an_earlier_one_on_the_older_kernel() {
    reconnect::old_copy(Kernel::Oldest, Kernel::Oldest, &[Use::Block, Use::Ext4], &Break::ALL);
}

#[test]
fn no_acknowledged_write_is_overtaken_by_an_earlier_one_of_an_older_node() {
    reconnect::old_copy(Kernel::Newest, Kernel::Oldest, &[Use::Block, Use::Ext4], &Break::ALL);
}

#[test]
fn no_acknowledged_write_is_overtaken_by_an_earlier_one_with_an_older_home_node() {
    reconnect::old_copy(Kernel::Oldest, Kernel::Newest, &[Use::Block, Use::Ext4], &Break::ALL);
}

#[test]
fn connections_break_under_load() {
    reconnect::under_load(Kernel::Newest, Kernel::Newest);
}

#[test]
fn connections_break_under_load_on_the_older_kernel() {
    reconnect::under_load(Kernel::Oldest, Kernel::Oldest);
}

#[test]
fn connections_break_for_long() {
    reconnect::long_breaks(Kernel::Newest, Kernel::Newest);
}

#[test]
fn connections_break_for_long_on_the_older_kernel() {
    reconnect::long_breaks(Kernel::Oldest, Kernel::Oldest);
}

#[test]
fn a_node_that_connects_again_is_interrupted() {
    reconnect::interrupted(Kernel::Newest, Kernel::Newest, 2);
}

#[test]
fn a_node_that_connects_again_is_interrupted_on_the_older_kernel() {
    reconnect::interrupted(Kernel::Oldest, Kernel::Oldest, 2);
}
