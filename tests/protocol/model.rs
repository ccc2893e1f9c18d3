//! The bounds of a run, the deliberate breaks, and the actions.

use stateright::{Model, Property};

use super::state::{Client, Export, Faults, Format, NODES, REQUESTS, State, Step, Task, Wrong};

/// What connects a client again after its connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reconnect {
    /// The client's kernel, by itself, while earlier requests may still be with the home node's kernel.
    Kernel,
    /// The same, but the home node's kernel accepts it only when `inflight` is 0 0.
    KernelAfterInflight,
    /// The same, but the home node's kernel accepts it only when it has completed all earlier requests.
    KernelAfterDrain,
    /// The client's daemon, through `open`: the home node drops all connections and drains first.
    Open,
}

/// A deliberate break of the protocol; the checker must find what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    Nothing,
    LinkBeforeHost,
    LinkBeforeNamespace,
    NoSync,
    NoDrain,
    InflightIsProof,
    HostOnly,
    GrantWhileRevoking,
    OpenWithoutComparison,
    OpenWithoutDrain,
    NonceReused,
    NameByPort,
    AnswerBeforeFence,
    ForcedWithoutFence,
    StaleControllerKept,
    EnableRead,
    FormatWithoutDrain,
    DrainStopsAtDisable,
    NoPoll,
    ConnectWithoutOpen,
}

/// Which kernel the home node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The write of `enable` returns when no request is left.
    Disable,
    /// Linux 6.13 before 6.13.5: only the rmdir of the namespace waits.
    Rmdir,
}

/// The protocol within bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    pub(crate) reconnect: Reconnect,
    pub(crate) broken: Break,
    pub(crate) kernel: Kernel,
    pub(crate) epochs: u8,
    pub(crate) writes: u8,
    pub(crate) faults: Faults,
    /// Whether requests may wait between the socket and the block device.
    pub(crate) socket: bool,
    /// Whether overlapping writes land in the order in which they were submitted.
    pub(crate) ordered: bool,
    /// Whether the volume must be formatted first.
    pub(crate) format: bool,
    /// Whether steps that no client and no disk can see are one with the step before: the export below a port that is not
    /// linked, and the check of the device.
    pub(crate) coarse: bool,
    /// Whether another volume may get the port number.
    pub(crate) neighbour: bool,
    /// Whether calls are repeated for a volume that is mounted and connected.
    pub(crate) repeats: bool,
}

/// One step of a node, a kernel or the network, or a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// ControllerPublishVolume arrives at the home node. Any controller may send it at any time, so late and repeated
    /// calls are included.
    RecordGrant(u8),
    /// ControllerUnpublishVolume arrives, normal or forced.
    RecordRevoking,
    /// The next step of the daemon's task.
    Home(Step),
    /// The task ends without its result, because the device does not become idle in time.
    GiveUp,
    Start,
    /// The write of `enable` returns in the kernel of the home node.
    Disabled,
    LinkNeighbour,
    UnlinkNeighbour,
    Open(u8),
    OpenFailed(u8),
    DeleteStale(u8),
    Connect(u8),
    VerifyDevice(u8),
    BeginFormat(u8),
    EndFormat(u8),
    Mount(u8),
    Reconnect(u8),
    Poll(u8),
    Unstage(u8),
    Submit(u8),
    Arrive(u8),
    Fsync(u8),
    /// nvmet submits a request to the block device.
    SubmitToDevice(usize),
    /// The block device completes a request.
    Land(usize),
    // faults
    KillDaemon,
    PowerCut,
    ClientPowerCut(u8),
    KillClientDaemon(u8),
    BreakConnection(u8),
}

impl Action {
    pub(crate) fn is_fault(self) -> bool {
        use Action::*;
        matches!(self, KillDaemon | PowerCut | ClientPowerCut(_) | KillClientDaemon(_) | BreakConnection(_))
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            epoch: 0,
            attachment: None,
            format: if self.format { Format::Never } else { Format::Formatted },
            sync: false,
            durable: 0,
            export: Export::default(),
            neighbour: false,
            cached: 0,
            queue: [None; REQUESTS],
            disabling: false,
            up: true,
            task: Task::None,
            clients: [Client::NEW; 2],
            writes: 0,
            left: self.faults,
            told: 0,
            synced: 0,
            wrong: Wrong::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        use Action::*;
        if state.wrong != Wrong::default() {
            return;
        }
        actions.extend([RecordRevoking, GiveUp, Start, Disabled, LinkNeighbour, UnlinkNeighbour, KillDaemon, PowerCut]);
        match state.task {
            Task::None => {}
            Task::Build(step, _) | Task::Fence(step) | Task::Drain(step, _) | Task::Format(step, _) => {
                actions.push(Home(step));
            }
        }
        for node in NODES {
            actions.extend([RecordGrant(node), Open(node), OpenFailed(node), DeleteStale(node), Connect(node)]);
            actions.extend([VerifyDevice(node), BeginFormat(node), EndFormat(node), Mount(node), Reconnect(node)]);
            actions.extend([Poll(node), Unstage(node), Submit(node), Arrive(node), Fsync(node)]);
            actions.extend([ClientPowerCut(node), KillClientDaemon(node), BreakConnection(node)]);
        }
        for (at, _) in state.queue.iter().enumerate().filter(|(_, request)| request.is_some()) {
            actions.extend([SubmitToDevice(at), Land(at)]);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        self.apply(&mut next, action)?;
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        super::properties::all()
    }
}
