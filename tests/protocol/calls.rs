//! ControllerPublishVolume and ControllerUnpublishVolume between an orchestrator, its controllers and the home node,
//! when requests are late or arrive twice and answers are lost. What the home node does with one is one step here.
//!
//! Numbers are only compared, and an old one is never the current one again. So the model keeps whether a number is
//! current, and has no bound on how often the orchestrator changes its mind.

use stateright::{Model, Property};

/// How the home node recognizes a request that is too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requests {
    /// It does not.
    Plain,
    /// A request carries the record's generation. The controller reads it, and then sends the request if its caller
    /// still waits for the answer. Each request that the home node accepts makes the next generation, also a detach
    /// that finds nothing.
    Generation,
    /// The same, but a detach that finds nothing leaves the generation.
    GenerationOfChanges,
    /// The same as `Generation`, but the controller sends its request also when its caller is gone.
    CallerIgnored,
}

/// What the orchestrator wants, for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Wish {
    Publish(u8),
    Unpublish(u8),
}

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Progress {
    /// A controller has it.
    Called,
    /// The controller read the generation.
    Read,
    /// The request is under way to the home node.
    Sent,
}

/// A call that is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Call {
    wish: Wish,
    progress: Progress,
    /// It is for what the orchestrator wants now.
    wanted: bool,
    /// The generation that was read is the record's.
    current: bool,
}

/// The record, and what is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    node: Option<u8>,
    wish: Wish,
    /// The orchestrator got OK for its wish.
    answered: bool,
    calls: [Option<Call>; 3],
}

/// One step of the orchestrator, a controller, the network or the home node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Want(Wish),
    Call,
    ReadGeneration(usize),
    Send(usize),
    Arrive(usize),
    /// The request arrives, and the answer is lost.
    ArriveUnanswered(usize),
    /// The request arrives, and will arrive again.
    ArriveTwice(usize),
    /// A controller ends, or the network loses the request.
    End(usize),
}

/// The calls of one volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    pub(crate) requests: Requests,
}

pub(crate) const AGREE: &str = "the volume is attached as the orchestrator was last told";

impl Calls {
    /// What the home node does; whether it answers OK.
    fn arrive(&self, state: &mut State, call: Call) -> bool {
        if call.wish == Wish::Publish(state.node.unwrap_or(u8::MAX)) {
            return true;
        }
        if self.requests != Requests::Plain && !call.current {
            return false;
        }
        let changed = match (call.wish, state.node) {
            (Wish::Publish(node), None) => {
                state.node = Some(node);
                true
            }
            (Wish::Publish(_), Some(_)) => return false,
            (Wish::Unpublish(node), Some(attached)) if node == attached => {
                state.node = None;
                true
            }
            (Wish::Unpublish(_), _) => false,
        };
        if changed || self.requests != Requests::GenerationOfChanges {
            state.calls.iter_mut().flatten().for_each(|call| call.current = false);
        }
        true
    }
}

impl Model for Calls {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { node: None, wish: Wish::Publish(0), answered: false, calls: [None; 3] }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        match state.wish {
            // Also when the attach was not answered.
            Wish::Publish(node) => actions.push(Action::Want(Wish::Unpublish(node))),
            Wish::Unpublish(_) if state.answered => {
                actions.extend([0, 1].map(|node| Action::Want(Wish::Publish(node))));
            }
            Wish::Unpublish(_) => {}
        }
        if !state.answered {
            actions.push(Action::Call);
        }
        for at in 0..state.calls.len() {
            actions.extend([Action::ReadGeneration(at), Action::Send(at), Action::Arrive(at)]);
            actions.extend([Action::ArriveUnanswered(at), Action::ArriveTwice(at), Action::End(at)]);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        match action {
            Action::Want(wish) => {
                (next.wish, next.answered) = (wish, false);
                next.calls.iter_mut().flatten().for_each(|call| call.wanted = false);
            }
            Action::Call => {
                let free = next.calls.iter_mut().find(|call| call.is_none())?;
                let call = Call { wish: state.wish, progress: Progress::Called, wanted: true, current: false };
                *free = Some(call);
            }
            Action::ReadGeneration(at) => {
                let call = next.calls[at].as_mut().filter(|call| call.progress == Progress::Called)?;
                (call.progress, call.current) = (Progress::Read, true);
            }
            Action::Send(at) => {
                let call = next.calls[at].as_mut().filter(|call| call.progress == Progress::Read)?;
                call.progress = Progress::Sent;
                let waits = call.wanted && !state.answered;
                if !waits && !matches!(self.requests, Requests::Plain | Requests::CallerIgnored) {
                    next.calls[at] = None;
                }
            }
            Action::Arrive(at) | Action::ArriveUnanswered(at) | Action::ArriveTwice(at) => {
                let call = next.calls[at].filter(|call| call.progress == Progress::Sent)?;
                let done = self.arrive(&mut next, call);
                if done && call.wanted && !matches!(action, Action::ArriveUnanswered(_)) {
                    next.answered = true;
                }
                if !matches!(action, Action::ArriveTwice(_)) {
                    next.calls[at] = None;
                }
            }
            Action::End(at) => next.calls[at] = None,
        }
        // Their order means nothing.
        next.calls.sort_unstable();
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(AGREE, |_, state: &State| match state.wish {
                _ if !state.answered => true,
                Wish::Publish(node) => state.node == Some(node),
                Wish::Unpublish(_) => state.node.is_none(),
            }),
            Property::sometimes("an attach is answered", |_, state: &State| state.answered && state.node.is_some()),
        ]
    }
}
