//! The protocol of a network attachment (docs/protocol.md), checked exhaustively within small bounds: every order of the
//! steps of the home node, two client nodes, their kernels and the controllers, with crashes, broken connections, and
//! late calls. The protocol is also broken on purpose (`Break`), and the checker must find what each break does.
//!
//! Each test prints how many states it visited. `HOLDFAST_PROTOCOL=large` takes larger bounds, more time and more
//! memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what went wrong by panicking"
)]

mod breaks;
mod calls;
mod client;
mod exits;
mod home;
mod meant;
mod model;
mod properties;
mod state;

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

use model::{Break, Kernel, Protocol, Reconnect};
use state::Faults;

const NO_FAULTS: Faults = Faults { daemon: 0, machine: 0, client: 0, network: 0 };

/// The protocol as docs/protocol.md has it, within the smallest bounds.
const MEANT: Protocol = Protocol {
    reconnect: Reconnect::Open,
    broken: Break::Nothing,
    kernel: Kernel::Disable,
    epochs: 2,
    writes: 2,
    faults: NO_FAULTS,
    socket: false,
    ordered: false,
    format: false,
    coarse: true,
    neighbour: false,
    repeats: false,
};

/// The same, where the client's kernel connects again by itself, and the home node's kernel accepts that only when it
/// has completed all earlier requests.
const DRAINED: Protocol = Protocol { reconnect: Reconnect::KernelAfterDrain, ..MEANT };

fn large() -> bool {
    std::env::var("HOLDFAST_PROTOCOL").is_ok_and(|bounds| bounds == "large")
}

/// Visits every state; asserts that exactly these properties fail, and that `sometimes` properties are reached.
fn fails<M>(name: &str, model: M, expected: &[&'static str])
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Clone + PartialEq + Debug + Send + Sync,
    M::Action: Clone + PartialEq + Debug,
{
    // A property that fails is not looked at again; the others need every state.
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    let mut failed = Vec::new();
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        if property.expectation.discovery_is_failure() == found.is_some() {
            if !expected.contains(&property.name) {
                panic!("{name}: {}: {:#?}", property.name, found.map(|path| path.into_actions()));
            }
            failed.push(property.name);
        }
    }
    assert_eq!(failed, expected, "{name}");
}

/// Asserts that every property holds in every state.
fn holds(name: &str, protocol: Protocol) {
    fails(name, protocol, &[]);
}

/// Asserts that the checker finds a state in which the property does not hold.
fn found<M>(name: &str, property: &'static str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Clone + PartialEq + Debug + Send + Sync,
    M::Action: Clone + PartialEq + Debug,
{
    let checker = model.checker().finish_when(HasDiscoveries::AnyOf([property].into())).spawn_bfs().join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discovery(property) else { panic!("{name}: not found in {states} states: {property}") };
    println!("{name}: found after {states} states, {} steps: {property}", path.clone().into_actions().len());
    if std::env::var_os("HOLDFAST_PROTOCOL_PATHS").is_some() {
        println!("{:#?}", path.into_actions());
    }
}
