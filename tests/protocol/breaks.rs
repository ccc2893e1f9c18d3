//! Each deliberate break of the protocol, and what the checker must find.

use super::calls::{AGREE, Calls, Requests};
use super::exits::{detached, no_fault, search};
use super::model::{Break, Kernel, Protocol, Reconnect};
use super::properties::{AFTER_DETACH, CHANGED, ERROR, FOREIGN, HANG, LOST, NO_DEVICE, TWO_WRITERS};
use super::state::Faults;
use super::{DRAINED, MEANT, NO_FAULTS, found};

const POWER_CUT: Faults = Faults { machine: 1, ..NO_FAULTS };
const CLIENT: Faults = Faults { client: 1, ..NO_FAULTS };
const NETWORK: Faults = Faults { network: 1, ..NO_FAULTS };

#[test]
fn a_port_linked_before_the_host_is_allowed_gives_an_attached_client_an_error() {
    let protocol = Protocol { broken: Break::LinkBeforeHost, faults: POWER_CUT, coarse: false, ..DRAINED };
    found("link before host", ERROR, protocol);
}

#[test]
fn a_port_linked_before_the_namespace_is_enabled_gives_an_attached_client_an_error() {
    let protocol = Protocol { broken: Break::LinkBeforeNamespace, faults: POWER_CUT, coarse: false, ..DRAINED };
    found("link before namespace", ERROR, protocol);
}

#[test]
fn without_s_sync_a_power_cut_loses_an_acknowledged_fsync() {
    found("no S_SYNC", LOST, Protocol { broken: Break::NoSync, faults: POWER_CUT, ..MEANT });
}

#[test]
fn without_the_wait_for_an_idle_device_a_call_into_nvmet_waits_for_the_disk() {
    found("no drain", HANG, Protocol { broken: Break::NoDrain, ..MEANT });
}

#[test]
fn inflight_0_is_no_proof() {
    found("inflight is proof", TWO_WRITERS, Protocol { broken: Break::InflightIsProof, socket: true, ..MEANT });
}

#[test]
fn a_host_that_is_not_allowed_any_more_goes_on_writing() {
    found("remove host only", TWO_WRITERS, Protocol { broken: Break::HostOnly, ..MEANT });
}

#[test]
fn a_grant_beside_a_fence_makes_two_writers() {
    found("grant while revoking", TWO_WRITERS, Protocol { broken: Break::GrantWhileRevoking, ..MEANT });
}

#[test]
fn an_open_that_compares_nothing_makes_two_writers() {
    found("epoch not compared", TWO_WRITERS, Protocol { broken: Break::OpenWithoutComparison, ..MEANT });
}

#[test]
fn a_connection_in_the_place_of_one_that_was_lost_after_open_loses_an_acknowledged_fsync() {
    let broken = Break::ConnectWithoutOpen;
    found("connect without open", LOST, Protocol { broken, repeats: true, faults: NETWORK, ..MEANT });
}

#[test]
fn without_a_drain_in_open_a_write_of_before_a_client_s_crash_changes_its_next_mount() {
    found("open without drain", CHANGED, Protocol { broken: Break::OpenWithoutDrain, faults: CLIENT, ..MEANT });
}

#[test]
fn a_nonce_that_is_used_again_lets_an_old_controller_in() {
    found("nonce reused", TWO_WRITERS, Protocol { broken: Break::NonceReused, ..DRAINED });
}

#[test]
fn names_without_a_nonce_lead_to_another_volume_that_has_the_port_now() {
    found("names by port", FOREIGN, Protocol { broken: Break::NameByPort, neighbour: true, ..DRAINED });
}

#[test]
fn an_answer_before_the_fence_returned_is_followed_by_a_write() {
    found("answer before fence", AFTER_DETACH, Protocol { broken: Break::AnswerBeforeFence, ..MEANT });
}

#[test]
fn a_forced_detach_without_a_fence_makes_two_writers() {
    found("forced without fence", TWO_WRITERS, Protocol { broken: Break::ForcedWithoutFence, ..MEANT });
}

#[test]
fn a_stale_controller_that_is_kept_leaves_a_connection_without_a_device() {
    found("stale controller kept", NO_DEVICE, Protocol { broken: Break::StaleControllerKept, ..MEANT });
}

#[test]
fn enable_reads_0_while_requests_run() {
    found("enable read", TWO_WRITERS, Protocol { broken: Break::EnableRead, socket: true, ..MEANT });
}

#[test]
fn a_format_without_a_drain_is_written_over_by_the_mkfs_before_it() {
    let protocol = Protocol { broken: Break::FormatWithoutDrain, format: true, faults: CLIENT, ..MEANT };
    found("format without drain", TWO_WRITERS, protocol);
}

/// Linux 6.13 before 6.13.5.
#[test]
fn where_disable_does_not_wait_a_drain_needs_the_namespace_removed() {
    let kernel = Kernel::Rmdir;
    let open = Protocol { broken: Break::DrainStopsAtDisable, kernel, socket: true, faults: CLIENT, ..MEANT };
    found("open stops at disable", CHANGED, open);
    found("begin_format stops at disable", TWO_WRITERS, Protocol { format: true, ..open });
}

#[test]
fn without_the_poll_a_fenced_client_has_no_way_out() {
    for protocol in [MEANT, DRAINED] {
        let found = search(Protocol { broken: Break::NoPoll, writes: 1, ..protocol }, |_| true, detached, no_fault);
        println!("no poll: {} states", found.states);
        assert!(found.stuck.is_some());
    }
}

/// What nvmet and nvme-tcp do since Linux 6.8.
#[test]
fn a_kernel_that_connects_again_by_itself_loses_an_acknowledged_write() {
    let kernel = Protocol { reconnect: Reconnect::Kernel, faults: NETWORK, ..MEANT };
    found("reconnect by the kernel", LOST, kernel);
    found("the same with an ordered disk", LOST, Protocol { socket: true, ordered: true, ..kernel });
    let inflight = Protocol { reconnect: Reconnect::KernelAfterInflight, socket: true, ..kernel };
    found("reconnect after inflight 0", LOST, inflight);
}

#[test]
fn late_calls_without_a_generation_undo_what_was_answered() {
    for requests in [Requests::Plain, Requests::GenerationOfChanges, Requests::CallerIgnored] {
        found(&format!("calls, {requests:?}"), AGREE, Calls { requests });
    }
}
