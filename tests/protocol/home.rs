//! The steps of the home node: its daemon and its kernel.

use super::model::{Break, Kernel, Protocol, Reconnect};
use super::state::{Attachment, Export, Grant, NODES, Request, Stage, State, Step, Task};

/// What a client gets when it connects to the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The connection is refused, and the client retries.
    Refused,
    /// An error with DNR ("do not retry"): the client removes its controller.
    Rejected,
    /// A connection without a namespace.
    Empty,
    /// A connection to another volume.
    Foreign,
    Device,
}

impl Protocol {
    /// The name of the subsystem, with the host NQN, of an attachment.
    fn name(&self, grant: Grant) -> (u8, u8) {
        match self.broken {
            Break::NonceReused | Break::NameByPort => (0, grant.node),
            _ => (grant.epoch, grant.node),
        }
    }

    pub(crate) fn port(&self, state: &State, grant: Grant) -> Answer {
        let export = state.export;
        if state.neighbour {
            return if self.broken == Break::NameByPort { Answer::Foreign } else { Answer::Rejected };
        }
        if !export.link {
            return Answer::Refused;
        }
        if export.subsystem.map(|named| self.name(named)) != Some(self.name(grant)) || !export.host {
            return Answer::Rejected;
        }
        if !export.namespace {
            return Answer::Empty;
        }
        let busy = match self.reconnect {
            Reconnect::Kernel | Reconnect::Open => false,
            Reconnect::KernelAfterInflight => state.submitted(),
            Reconnect::KernelAfterDrain => state.requests().next().is_some(),
        };
        if busy { Answer::Refused } else { Answer::Device }
    }

    fn after(&self, step: Step) -> Option<Step> {
        use Step::*;
        let order = match self.broken {
            Break::LinkBeforeHost => [SetSync, CreateSubsystem, EnableNamespace, CreatePort, LinkPort, AllowHost],
            Break::LinkBeforeNamespace => [SetSync, CreateSubsystem, AllowHost, CreatePort, LinkPort, EnableNamespace],
            _ => [SetSync, CreateSubsystem, EnableNamespace, AllowHost, CreatePort, LinkPort],
        };
        let at = order.iter().position(|other| *other == step)?;
        order.get(at + 1).copied()
    }

    pub(crate) fn record_grant(&self, state: &mut State, node: u8) -> Option<()> {
        let free = match state.attachment {
            None => true,
            Some(other) => self.broken == Break::GrantWhileRevoking && other.revoking && other.grant.node != node,
        };
        // The nodes are alike: the first attachment is A's.
        if state.epoch == 0 && node != 0
            || !state.up
            || state.task != Task::None
            || !free
            || state.neighbour
            || state.epoch == self.epochs
        {
            return None;
        }
        state.epoch += 1;
        state.attachment = Some(Attachment { grant: Grant { epoch: state.epoch, node }, revoking: false });
        state.task = Task::Build(Step::SetSync, None);
        Some(())
    }

    pub(crate) fn record_revoking(&self, state: &mut State) -> Option<()> {
        if !state.up || state.task != Task::None {
            return None;
        }
        let attachment = state.attachment.as_mut()?;
        attachment.revoking = true;
        let epoch = attachment.grant.epoch;
        state.task = Task::Fence(Step::RemoveHost);
        match self.broken {
            Break::AnswerBeforeFence => state.told = epoch,
            Break::ForcedWithoutFence => {
                state.export.host = false;
                state.task = Task::Fence(Step::RecordDetached);
            }
            _ => {}
        }
        Some(())
    }

    pub(crate) fn give_up(state: &mut State) -> Option<()> {
        let stuck = match state.task {
            Task::Fence(step) | Task::Drain(step, _) | Task::Format(step, _) => match step {
                Step::AwaitIdle => state.submitted(),
                Step::DisableNamespace | Step::DisableReturns => state.disabling,
                _ => false,
            },
            _ => false,
        };
        state.task = Task::None;
        stuck.then_some(())
    }

    /// The lock (flock) of the pool belongs to the process, so a thread of the old process that is still in the kernel
    /// keeps the new one from starting.
    pub(crate) fn start(&self, state: &mut State) -> Option<()> {
        if state.up || state.disabling && self.broken != Break::EnableRead {
            return None;
        }
        state.up = true;
        state.task = match state.attachment {
            None => Task::None,
            Some(Attachment { revoking: true, .. }) => Task::Fence(Step::RemoveHost),
            // Its client asks for the export.
            Some(_) if self.reconnect == Reconnect::Open => Task::None,
            Some(_) => Task::Build(Step::SetSync, None),
        };
        Some(())
    }

    pub(crate) fn disabled(&self, state: &mut State) -> Option<()> {
        let waits = self.kernel == Kernel::Disable && state.requests().next().is_some();
        (state.disabling && !waits).then_some(())?;
        state.disabling = false;
        Some(())
    }

    pub(crate) fn home(&self, state: &mut State, step: Step) -> Option<()> {
        match state.task {
            Task::Build(at, node) if at == step => {
                self.build(state, step)?;
                let mut next = self.after(step);
                while let Some(step) = next.filter(|step| self.coarse && *step != Step::LinkPort) {
                    self.build(state, step)?;
                    next = self.after(step);
                }
                state.task = match next {
                    Some(next) => Task::Build(next, node),
                    None => Task::None,
                };
                if let (Task::None, Some(node), Some(grant)) = (state.task, node, state.granted())
                    && state.client(node).stage == Stage::Waiting
                {
                    state.client(node).stage = Stage::Opened(grant);
                }
            }
            Task::Fence(at) if at == step => {
                let next = self.fence(state, step)?;
                state.task = next.map_or(Task::None, Task::Fence);
            }
            Task::Drain(at, node) if at == step => {
                state.task = match self.fence(state, step)? {
                    Some(Step::ClearSync) | None => Task::Build(Step::SetSync, Some(node)),
                    Some(next) => Task::Drain(next, node),
                };
            }
            Task::Format(Step::Blank, node) if step == Step::Blank => {
                state.epoch += 1;
                state.attachment = Some(Attachment { grant: Grant { epoch: state.epoch, node }, revoking: false });
                (state.cached, state.durable) = (0, 0);
                state.task = Task::Build(Step::SetSync, Some(node));
            }
            Task::Format(at, node) if at == step => {
                state.task = match self.fence(state, step)? {
                    Some(Step::ClearSync) | None => Task::Format(Step::Blank, node),
                    Some(next) => Task::Format(next, node),
                };
            }
            _ => return None,
        }
        Some(())
    }

    fn build(&self, state: &mut State, step: Step) -> Option<()> {
        let grant = state.granted()?;
        let export = &mut state.export;
        match step {
            Step::SetSync => state.sync = self.broken != Break::NoSync,
            Step::CreateSubsystem if export.subsystem == Some(grant) => {}
            Step::CreateSubsystem => *export = Export { subsystem: Some(grant), ..Export::default() },
            Step::EnableNamespace if state.disabling => return None,
            Step::EnableNamespace => export.namespace = true,
            Step::AllowHost => export.host = true,
            Step::CreatePort => export.port = true,
            Step::LinkPort => export.link = true,
            _ => return None,
        }
        Some(())
    }

    /// One step of the fence, and the next one.
    fn fence(&self, state: &mut State, step: Step) -> Option<Option<Step>> {
        let drains = !matches!(state.task, Task::Fence(_));
        let next = match step {
            Step::RemoveHost => {
                state.export.host = false;
                if self.broken == Break::HostOnly { Step::RecordDetached } else { Step::UnlinkPort }
            }
            Step::UnlinkPort => {
                if state.export.link {
                    NODES.into_iter().for_each(|node| state.disconnect(node));
                }
                state.export.link = false;
                if self.broken == Break::NoDrain { Step::DisableNamespace } else { Step::AwaitIdle }
            }
            Step::AwaitIdle if state.submitted() => return None,
            Step::AwaitIdle if self.broken == Break::InflightIsProof && !drains => Step::RecordDetached,
            Step::AwaitIdle => Step::DisableNamespace,
            Step::DisableNamespace if self.broken == Break::EnableRead && !state.export.namespace && !drains => {
                Step::RecordDetached
            }
            // All such writes are in one thread.
            Step::DisableNamespace if state.disabling => return None,
            // In the kernel a second write returns at once.
            Step::DisableNamespace if !state.export.namespace => Step::RemoveExport,
            Step::DisableNamespace => {
                state.export.namespace = false;
                state.disabling = true;
                Step::DisableReturns
            }
            Step::DisableReturns if state.disabling => return None,
            Step::DisableReturns if drains && self.broken == Break::DrainStopsAtDisable => return Some(None),
            Step::DisableReturns => Step::RemoveExport,
            Step::RemoveExport if self.kernel == Kernel::Rmdir && state.requests().next().is_some() => return None,
            Step::RemoveExport => {
                state.export = Export::default();
                Step::ClearSync
            }
            Step::ClearSync => {
                state.sync = false;
                Step::RecordDetached
            }
            Step::RecordDetached => {
                let epoch = state.attachment?.grant.epoch;
                state.attachment = None;
                state.told = state.told.max(epoch);
                return Some(None);
            }
            _ => return None,
        };
        Some(Some(next))
    }

    pub(crate) fn land(&self, state: &mut State, at: usize) -> Option<()> {
        let request = state.queue[at].filter(|request| request.submitted)?;
        if self.ordered && state.queue[..at].iter().flatten().any(|earlier| earlier.submitted) {
            return None;
        }
        state.remove(at);
        state.cached = request.value;
        if state.sync {
            state.durable = request.value;
        }
        let current = state.attachment.map(|attachment| attachment.grant);
        if current != Some(request.grant) || request.node != request.grant.node {
            state.wrong.two_writers = true;
        }
        if request.grant.epoch <= state.told {
            state.wrong.after_detach = true;
        }
        if request.live {
            let client = state.client(request.node);
            client.out = 0;
            client.sent = false;
            client.acked = request.value;
        }
        Some(())
    }

    pub(crate) fn submit_to_device(state: &mut State, at: usize) -> Option<()> {
        state.queue[at].filter(|request| !request.submitted)?;
        let request = state.remove(at);
        state.push(Request { submitted: true, ..request });
        Some(())
    }

    pub(crate) fn power_cut(state: &mut State) {
        state.up = false;
        state.task = Task::None;
        state.export = Export::default();
        state.neighbour = false;
        state.disabling = false;
        state.cached = state.durable;
        NODES.into_iter().for_each(|node| state.disconnect(node));
        state.queue = Default::default();
    }
}
