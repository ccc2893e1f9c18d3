//! Whether every reachable state has a way out: a search of the whole graph, forwards over all actions, then backwards
//! from the goal over the actions that may be relied on.

use std::collections::HashMap;

use stateright::Model;

use super::model::{Action, Protocol};
use super::state::{Client, Ctl, Export, Mount, Stage, State, Task};

/// What a search found.
pub(crate) struct Found {
    pub(crate) states: usize,
    /// How many of them must reach the goal.
    pub(crate) must: usize,
    /// One that cannot.
    pub(crate) stuck: Option<State>,
}

/// Looks for a reachable state that `must` reach `goal`, and cannot by actions that are `relied` on.
pub(crate) fn search(
    protocol: Protocol,
    must: fn(&State) -> bool,
    goal: fn(&State) -> bool,
    relied: fn(Action) -> bool,
) -> Found {
    let mut states = protocol.init_states();
    let mut known: HashMap<State, usize> = states.iter().copied().zip(0..).collect();
    // To each state, the states that an action on which one may rely leads from.
    let mut before: Vec<Vec<u32>> = vec![Vec::new()];
    let mut actions = Vec::new();
    let mut at = 0;
    while let Some(state) = states.get(at).copied() {
        protocol.actions(&state, &mut actions);
        for action in actions.drain(..) {
            let Some(next) = protocol.next_state(&state, action) else { continue };
            let to = *known.entry(next).or_insert_with(|| {
                states.push(next);
                before.push(Vec::new());
                states.len() - 1
            });
            if relied(action) {
                before[to].push(u32::try_from(at).expect("fewer states"));
            }
        }
        at += 1;
    }
    let mut reaches: Vec<bool> = states.iter().map(goal).collect();
    let mut left: Vec<usize> = (0..states.len()).filter(|at| reaches[*at]).collect();
    while let Some(to) = left.pop() {
        for from in before[to].iter().map(|from| usize::try_from(*from).unwrap()) {
            if !reaches[from] {
                reaches[from] = true;
                left.push(from);
            }
        }
    }
    let all = states.iter().zip(&reaches).filter(|(state, _)| must(state));
    Found {
        states: states.len(),
        must: all.clone().count(),
        stuck: all.clone().find(|(_, reaches)| !**reaches).map(|(state, _)| *state),
    }
}

/// Detached, nothing exported, nothing connected, nothing mounted, and the home node serves.
pub(crate) fn detached(state: &State) -> bool {
    let kernel = state.export == Export::default() && !state.disabling && state.requests().next().is_none();
    let clean = |client: &Client| client.ctl == Ctl::None && client.mount == Mount::None && client.stage == Stage::Idle;
    state.attachment.is_none() && state.up && state.task == Task::None && kernel && state.clients.iter().all(clean)
}

/// Attached, and no detach began.
pub(crate) fn attached(state: &State) -> bool {
    state.granted().is_some()
}

/// The node of the attachment has the volume mounted and no I/O waits.
pub(crate) fn in_use(state: &State) -> bool {
    state.granted().is_some_and(|grant| {
        let client = state.clients[usize::from(grant.node)];
        client.mount == Mount::Mounted(grant) && client.ctl == Ctl::Live(grant) && client.out == 0
    })
}

pub(crate) fn no_fault(action: Action) -> bool {
    !action.is_fault()
}

pub(crate) fn no_fault_and_no_detach(action: Action) -> bool {
    !action.is_fault() && action != Action::RecordRevoking
}
