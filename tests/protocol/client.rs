//! The steps of a client node, and which action is which.

use super::home::Answer;
use super::model::{Action, Break, Protocol, Reconnect};
use super::state::{Client, Ctl, Format, Mount, Request, Stage, State, Step, Task};

impl Protocol {
    /// Applies an action; `None` when it cannot happen now.
    pub(crate) fn apply(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::RecordGrant(node) => self.record_grant(state, node)?,
            Action::RecordRevoking => self.record_revoking(state)?,
            Action::Home(step) => self.home(state, step)?,
            Action::GiveUp => Self::give_up(state)?,
            Action::Start => self.start(state)?,
            Action::Disabled => self.disabled(state)?,
            Action::LinkNeighbour => {
                (self.neighbour && state.up && state.attachment.is_none() && !state.export.port).then_some(())?;
                state.neighbour = true;
            }
            Action::UnlinkNeighbour => state.neighbour = false,
            Action::Open(node) => self.open(state, node)?,
            Action::OpenFailed(node) => {
                let asks = match state.task {
                    Task::Drain(_, other) | Task::Format(_, other) | Task::Build(_, Some(other)) => other == node,
                    _ => false,
                };
                (state.client(node).stage == Stage::Waiting && !asks).then_some(())?;
                state.client(node).stage = Stage::Idle;
            }
            Action::DeleteStale(node) => self.delete_stale(state, node)?,
            Action::Connect(node) => self.connect(state, node)?,
            Action::VerifyDevice(node) => {
                let client = state.client(node);
                let Stage::Connected(grant) = client.stage else { return None };
                client.stage = if client.ctl == Ctl::Live(grant) { Stage::Verified(grant) } else { Stage::Idle };
            }
            Action::BeginFormat(node) => self.begin_format(state, node)?,
            Action::EndFormat(node) => Self::end_format(state, node)?,
            Action::Mount(node) => Self::mount(state, node)?,
            Action::Reconnect(node) => self.reconnect(state, node)?,
            Action::Poll(node) => {
                let granted = state.granted();
                let stale = state.client(node).ctl.grant().is_some_and(|grant| granted != Some(grant));
                (state.up && stale && self.broken != Break::NoPoll).then_some(())?;
                state.delete_controller(node);
            }
            Action::Unstage(node) => Self::unstage(state, node)?,
            Action::Submit(node) => {
                let client = state.clients[usize::from(node)];
                let writes = matches!(client.mount, Mount::Mounted(_)) || matches!(client.stage, Stage::Making(_));
                let may = writes && client.ctl != Ctl::None && client.out == 0 && state.writes < self.writes;
                may.then_some(())?;
                state.writes += 1;
                state.client(node).out = state.writes;
            }
            Action::Arrive(node) => {
                let client = state.client(node);
                let Ctl::Live(grant) = client.ctl else { return None };
                (client.out != 0 && !client.sent).then_some(())?;
                client.sent = true;
                let value = client.out;
                state.push(Request { value, node, grant, live: true, submitted: !self.socket });
            }
            Action::Fsync(node) => {
                let client = state.clients[usize::from(node)];
                let may = matches!(client.mount, Mount::Mounted(_)) && matches!(client.ctl, Ctl::Live(_));
                (may && client.out == 0 && client.acked > state.synced).then_some(())?;
                state.durable = state.cached;
                state.synced = client.acked;
            }
            Action::SubmitToDevice(at) => Self::submit_to_device(state, at)?,
            Action::Land(at) => self.land(state, at)?,
            Action::KillDaemon => {
                state.left.daemon = state.left.daemon.checked_sub(1).filter(|_| state.up)?;
                state.up = false;
                state.task = Task::None;
            }
            Action::PowerCut => {
                state.left.machine = state.left.machine.checked_sub(1)?;
                Self::power_cut(state);
            }
            Action::ClientPowerCut(node) => {
                (*state.client(node) != Client::NEW).then_some(())?;
                state.left.client = state.left.client.checked_sub(1)?;
                state.disconnect(node);
                *state.client(node) = Client::NEW;
            }
            Action::KillClientDaemon(node) => {
                (state.client(node).stage != Stage::Idle).then_some(())?;
                state.left.client = state.left.client.checked_sub(1)?;
                state.client(node).stage = Stage::Idle;
                state.client(node).begun = false;
            }
            Action::BreakConnection(node) => {
                matches!(state.client(node).ctl, Ctl::Live(_)).then_some(())?;
                state.left.network = state.left.network.checked_sub(1)?;
                state.disconnect(node);
            }
        }
        Some(())
    }

    /// NodeStage, also with an old publish_context: the home node decides.
    fn open(&self, state: &mut State, node: u8) -> Option<()> {
        let client = *state.client(node);
        let grant = match self.broken {
            Break::OpenWithoutComparison => state.attachment?.grant,
            _ => state.granted().filter(|grant| grant.node == node)?,
        };
        let needed = match (client.mount, client.ctl) {
            (Mount::Mounted(mounted), Ctl::Broken(_)) => mounted != grant || self.reconnect == Reconnect::Open,
            (Mount::Mounted(mounted), _) => mounted != grant || self.repeats,
            _ => true,
        };
        let idle = state.up && state.task == Task::None && client.stage == Stage::Idle;
        (idle && needed).then_some(())?;
        let at_once = client.ctl == Ctl::Live(grant)
            || matches!(self.broken, Break::OpenWithoutDrain | Break::OpenWithoutComparison) && state.export.link;
        if at_once {
            state.client(node).opened_live = client.ctl == Ctl::Live(grant);
            state.client(node).stage = Stage::Opened(grant);
        } else {
            state.client(node).stage = Stage::Waiting;
            state.task = Task::Drain(Step::UnlinkPort, node);
        }
        Some(())
    }

    fn delete_stale(&self, state: &mut State, node: u8) -> Option<()> {
        let Stage::Opened(grant) = state.client(node).stage else { return None };
        let stale = state.client(node).ctl.grant().is_some_and(|other| other != grant);
        if stale && self.broken != Break::StaleControllerKept {
            state.delete_controller(node);
        }
        let client = state.client(node);
        if client.mount != Mount::Mounted(grant) {
            client.mount = Mount::None;
        }
        client.stage = Stage::Clean(grant);
        Some(())
    }

    fn connect(&self, state: &mut State, node: u8) -> Option<()> {
        let client = *state.client(node);
        let Stage::Clean(grant) = client.stage else { return None };
        state.client(node).stage = Stage::Idle;
        state.client(node).opened_live = false;
        // What the connection left that was lost after `open` may not have ended.
        if client.opened_live && client.ctl != Ctl::Live(grant) && self.broken != Break::ConnectWithoutOpen {
            state.client(node).begun = false;
            return Some(());
        }
        let connected = client.ctl == Ctl::Live(grant) || self.port(state, grant) == Answer::Device;
        if connected {
            if client.ctl.grant().is_some_and(|other| other != grant) {
                state.wrong.no_device = true;
            }
            state.client(node).ctl = Ctl::Live(grant);
            state.client(node).stage = if self.coarse { Stage::Verified(grant) } else { Stage::Connected(grant) };
        } else {
            state.client(node).begun = false;
        }
        Some(())
    }

    fn begin_format(&self, state: &mut State, node: u8) -> Option<()> {
        let client = *state.client(node);
        let Stage::Verified(grant) = client.stage else { return None };
        let may = state.up && state.task == Task::None && state.granted() == Some(grant);
        (may && state.format != Format::Formatted).then_some(())?;
        if client.begun || state.format == Format::Never {
            state.format = Format::Formatting;
            state.client(node).begun = true;
            state.client(node).stage = Stage::Making(grant);
            return Some(());
        }
        (state.epoch < self.epochs).then_some(())?;
        state.delete_controller(node);
        state.client(node).stage = Stage::Waiting;
        state.client(node).begun = true;
        let first = if self.broken == Break::FormatWithoutDrain { Step::Blank } else { Step::UnlinkPort };
        state.task = Task::Format(first, node);
        Some(())
    }

    fn end_format(state: &mut State, node: u8) -> Option<()> {
        let client = *state.client(node);
        let Stage::Making(grant) = client.stage else { return None };
        if client.ctl != Ctl::Live(grant) {
            // mkfs fails or is killed.
            state.client(node).stage = Stage::Idle;
            state.client(node).begun = false;
            return Some(());
        }
        (client.out == 0 && state.up && state.task == Task::None && state.granted() == Some(grant)).then_some(())?;
        state.durable = state.cached;
        state.format = Format::Formatted;
        state.client(node).stage = Stage::Verified(grant);
        state.client(node).begun = false;
        Some(())
    }

    fn mount(state: &mut State, node: u8) -> Option<()> {
        let client = *state.client(node);
        let Stage::Verified(grant) = client.stage else { return None };
        if client.ctl != Ctl::Live(grant) {
            state.client(node).stage = Stage::Idle;
            return Some(());
        }
        (state.format == Format::Formatted).then_some(())?;
        state.client(node).stage = Stage::Idle;
        if client.mount != Mount::Mounted(grant) {
            if state.requests().next().is_some() {
                state.wrong.changed = true;
            }
            state.client(node).mount = Mount::Mounted(grant);
            state.client(node).acked = 0;
        }
        Some(())
    }

    /// The client's kernel, by itself.
    fn reconnect(&self, state: &mut State, node: u8) -> Option<()> {
        let Ctl::Broken(grant) = state.client(node).ctl else { return None };
        (self.reconnect != Reconnect::Open).then_some(())?;
        match self.port(state, grant) {
            Answer::Refused => return None,
            Answer::Device => state.client(node).ctl = Ctl::Live(grant),
            Answer::Foreign => state.wrong.foreign = true,
            Answer::Rejected | Answer::Empty => {
                if state.granted() == Some(grant) {
                    state.wrong.error = true;
                }
                state.delete_controller(node);
            }
        }
        Some(())
    }

    fn unstage(state: &mut State, node: u8) -> Option<()> {
        let client = *state.client(node);
        (client.stage == Stage::Idle).then_some(())?;
        match (client.mount, client.ctl) {
            (Mount::Mounted(_), Ctl::Live(_)) if client.out == 0 => {
                state.durable = state.cached;
                state.synced = state.synced.max(client.acked);
            }
            // umount waits.
            (Mount::Mounted(_), _) => return None,
            (Mount::Dead, _) => {}
            (Mount::None, Ctl::None) => return None,
            (Mount::None, _) => {}
        }
        state.delete_controller(node);
        let client = state.client(node);
        client.mount = Mount::None;
        client.acked = 0;
        Some(())
    }
}
