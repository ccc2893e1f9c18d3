//! The protocol as it is meant: every property holds in every state, and every state has a way out.

use super::calls::{Calls, Requests};
use super::exits::{attached, detached, in_use, no_fault, no_fault_and_no_detach, search};
use super::model::{Kernel, Protocol, Reconnect};
use super::properties::HANG;
use super::state::Faults;
use super::{DRAINED, MEANT, fails, holds, large};

/// Faults of each kind: kills of the home node's daemon, power cuts of the home node, power cuts of a client or kills of
/// its daemon, broken connections.
const fn faults(daemon: u8, machine: u8, client: u8, network: u8) -> Faults {
    Faults { daemon, machine, client, network }
}

/// Small bounds, or those of `HOLDFAST_PROTOCOL=large`.
fn bounds<T>(small: T, of_large: T) -> T {
    if large() { of_large } else { small }
}

#[test]
fn it_holds_with_faults_when_clients_connect_again_through_open() {
    let writes = bounds(1, 2);
    holds("open", Protocol { writes, faults: bounds(faults(1, 1, 0, 1), faults(1, 1, 1, 1)), ..MEANT });
    holds("open, client", Protocol { writes, faults: bounds(faults(0, 0, 1, 1), faults(0, 0, 2, 1)), ..MEANT });
}

#[test]
fn it_holds_when_calls_are_repeated_while_a_connection_breaks() {
    let faults = faults(0, 0, bounds(0, 1), bounds(1, 2));
    holds("repeats", Protocol { repeats: true, faults, ..MEANT });
}

#[test]
fn it_holds_with_faults_when_a_kernel_drains_before_it_accepts() {
    holds("drained", Protocol { faults: bounds(faults(0, 1, 0, 1), faults(1, 1, 1, 1)), ..DRAINED });
    holds(
        "drained, crashes",
        Protocol { writes: 1, faults: bounds(faults(1, 0, 1, 0), faults(2, 1, 1, 1)), ..DRAINED },
    );
}

/// Each step of the home node apart, and kills of its daemon after any two of them.
#[test]
fn it_holds_when_the_home_node_s_daemon_is_killed_after_any_step() {
    let protocol = Protocol { faults: faults(bounds(1, 2), 0, 0, 0), coarse: false, ..MEANT };
    holds("daemon", protocol);
    holds("daemon, drained", Protocol { reconnect: Reconnect::KernelAfterDrain, ..protocol });
}

#[test]
fn it_holds_when_a_volume_moves_twice() {
    let protocol = Protocol { epochs: 3, writes: 1, ..MEANT };
    holds("three attachments", Protocol { faults: faults(0, bounds(0, 1), 0, 0), ..protocol });
    let drained = Protocol { faults: faults(bounds(0, 1), 0, 0, bounds(0, 1)), ..protocol };
    holds("three attachments, drained", Protocol { reconnect: Reconnect::KernelAfterDrain, ..drained });
}

/// `inflight` counts only what the block device has. So `enable` may be written while a request is about to reach it,
/// and waits if the disk then hangs. No data is in danger.
#[test]
fn only_hangs_are_possible_when_requests_wait_between_socket_and_disk() {
    let protocol = Protocol { socket: true, faults: faults(bounds(0, 1), 0, 0, 1), ..MEANT };
    fails("socket", protocol, &[HANG]);
    fails("socket, client", Protocol { faults: faults(0, 0, 1, bounds(0, 1)), ..protocol }, &[HANG]);
    fails("socket, drained", Protocol { reconnect: Reconnect::KernelAfterDrain, ..protocol }, &[HANG]);
}

/// Linux 6.13 before 6.13.5.
#[test]
fn it_holds_where_only_the_removal_of_the_namespace_waits() {
    let faults = faults(bounds(0, 1), 0, 1, 0);
    let protocol = Protocol { kernel: Kernel::Rmdir, socket: true, faults, ..MEANT };
    fails("rmdir waits", protocol, &[HANG]);
}

#[test]
fn it_holds_with_an_interrupted_first_format() {
    let protocol = Protocol { format: true, faults: faults(0, 0, 1, 0), ..MEANT };
    holds("format", Protocol { faults: faults(bounds(0, 1), 0, 1, bounds(0, 1)), ..protocol });
    holds("format, drained", Protocol { reconnect: Reconnect::KernelAfterDrain, ..protocol });
}

#[test]
fn it_holds_when_another_volume_gets_the_port_number() {
    holds("port", Protocol { neighbour: true, faults: faults(0, 0, 0, bounds(0, 1)), ..DRAINED });
    holds("port, open", Protocol { neighbour: true, faults: faults(bounds(0, 1), 0, 0, 0), ..MEANT });
}

/// Were nothing between socket and disk, a disk that completes overlapping writes in their order would be enough.
#[test]
fn an_ordered_disk_is_enough_only_when_nothing_waits_above_it() {
    let faults = faults(0, bounds(0, 1), 0, 1);
    holds("ordered", Protocol { reconnect: Reconnect::Kernel, ordered: true, faults, ..MEANT });
}

#[test]
fn late_and_doubled_calls_change_nothing() {
    fails("calls", Calls { requests: Requests::Generation }, &[]);
}

/// When no further fault happens.
#[test]
fn every_state_leads_to_detached() {
    for protocol in [MEANT, DRAINED] {
        let faults = bounds(faults(1, 0, 0, 1), faults(1, 1, 1, 1));
        let found = search(Protocol { writes: 1, faults, ..protocol }, |_| true, detached, no_fault);
        println!("{:?}, to detached: {} states", protocol.reconnect, found.states);
        assert_eq!(found.stuck, None);
    }
    let format = Protocol { format: true, writes: 1, faults: faults(0, 0, 1, 0), ..MEANT };
    let found = search(format, |_| true, detached, no_fault);
    println!("format, to detached: {} states", found.states);
    assert_eq!(found.stuck, None);
}

/// When no further fault and no detach happens.
#[test]
fn every_attached_state_leads_to_a_mount_that_works() {
    for protocol in [MEANT, DRAINED] {
        let faults = bounds(faults(0, 1, 0, 0), faults(1, 1, 1, 1));
        let found = search(Protocol { writes: 1, faults, ..protocol }, attached, in_use, no_fault_and_no_detach);
        println!("{:?}, to a mount: {} of {} states", protocol.reconnect, found.must, found.states);
        assert_eq!(found.stuck, None);
    }
}
