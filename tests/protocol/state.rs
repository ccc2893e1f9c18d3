//! The state of the model: the record, the kernel of the home node, its daemon, and two client nodes.

use std::fmt;

/// Client nodes, 0 and 1.
pub(crate) const NODES: [u8; 2] = [0, 1];
/// Requests that the home node's kernel has at most. A bound that is reached would hide behaviour, so it is asserted.
pub(crate) const REQUESTS: usize = 4;

/// One attachment: its epoch, and the node that it is for. Names (subsystem NQN, host NQN, namespace uuid) are derived
/// from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Grant {
    pub(crate) epoch: u8,
    pub(crate) node: u8,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", char::from(b'A' + self.node), self.epoch)
    }
}

/// The attachment in the volume's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attachment {
    pub(crate) grant: Grant,
    pub(crate) revoking: bool,
}

/// The format state in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    Never,
    Formatting,
    Formatted,
}

/// What configfs has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Export {
    /// The grant that named the subsystem.
    pub(crate) subsystem: Option<Grant>,
    pub(crate) namespace: bool,
    pub(crate) host: bool,
    pub(crate) port: bool,
    pub(crate) link: bool,
}

/// A write that the home node's kernel has and has not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) value: u8,
    /// The node that sent it, and the attachment of its connection.
    pub(crate) node: u8,
    pub(crate) grant: Grant,
    /// Whether its connection is still up: if so, its completion reaches the client.
    pub(crate) live: bool,
    /// Whether it is in the queue of the block device (counted by `inflight`), or still with nvmet.
    pub(crate) submitted: bool,
}

/// A step of the home node's daemon. The code has these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    // build: after `RecordGrant`, at start, and at the end of `open`
    SetSync,
    CreateSubsystem,
    EnableNamespace,
    AllowHost,
    CreatePort,
    LinkPort,
    // fence, after `RecordRevoking`
    RemoveHost,
    UnlinkPort,
    AwaitIdle,
    DisableNamespace,
    /// The write of `enable` returns.
    DisableReturns,
    RemoveExport,
    ClearSync,
    RecordDetached,
    /// begin_format of an exported volume: the content is removed, and the record gets the next epoch.
    Blank,
}

/// The operation of the daemon on the volume; it holds the volume's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    None,
    /// Build the export; then answer `open` to the node, if there is one.
    Build(Step, Option<u8>),
    /// Fence.
    Fence(Step),
    /// Drop all connections and drain, for `open` of a node.
    Drain(Step, u8),
    /// The same for `begin_format`.
    Format(Step, u8),
}

/// The client's controller for the volume, in its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ctl {
    None,
    /// Connected.
    Live(Grant),
    /// Its connection broke; I/O waits.
    Broken(Grant),
}

impl Ctl {
    pub(crate) fn grant(self) -> Option<Grant> {
        match self {
            Self::None => None,
            Self::Live(grant) | Self::Broken(grant) => Some(grant),
        }
    }
}

/// The mount of the volume on a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mount {
    None,
    Mounted(Grant),
    /// Its device is gone: I/O errors.
    Dead,
}

/// How far NodeStage is. A crash of the client's daemon returns it to `Idle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Idle,
    /// `open` was sent.
    Waiting,
    /// `open` was answered.
    Opened(Grant),
    /// No controller of another attachment is left.
    Clean(Grant),
    Connected(Grant),
    Verified(Grant),
    /// mkfs runs.
    Making(Grant),
}

/// A client node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) stage: Stage,
    /// `begin_format` was answered for this stage.
    pub(crate) begun: bool,
    pub(crate) ctl: Ctl,
    pub(crate) mount: Mount,
    /// The write that is not acknowledged; 0: none.
    pub(crate) out: u8,
    /// Whether it was sent on the present connection.
    pub(crate) sent: bool,
    /// The last write that was acknowledged to this mount.
    pub(crate) acked: u8,
    /// The home node did not drain in the last `open`, because the connection was live.
    pub(crate) opened_live: bool,
}

impl Client {
    pub(crate) const NEW: Self = Self {
        stage: Stage::Idle,
        begun: false,
        ctl: Ctl::None,
        mount: Mount::None,
        out: 0,
        sent: false,
        acked: 0,
        opened_live: false,
    };
}

/// How many faults of each kind may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// The home node's daemon is killed.
    pub(crate) daemon: u8,
    /// The home node loses power.
    pub(crate) machine: u8,
    /// A client node loses power, or its daemon is killed.
    pub(crate) client: u8,
    /// A connection breaks.
    pub(crate) network: u8,
}

/// A state of the system. `told` and `synced` are the memory of the properties; `wrong` says which one does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    // durable, in the pool
    pub(crate) epoch: u8,
    pub(crate) attachment: Option<Attachment>,
    pub(crate) format: Format,
    pub(crate) sync: bool,
    /// The block's content on stable media: the number of the write.
    pub(crate) durable: u8,
    // the kernel of the home node
    pub(crate) export: Export,
    /// The same port number is linked to another volume's subsystem.
    pub(crate) neighbour: bool,
    /// The block's content as a read sees it.
    pub(crate) cached: u8,
    pub(crate) queue: [Option<Request>; REQUESTS],
    /// A thread is in the write of `enable`.
    pub(crate) disabling: bool,
    // the daemon of the home node
    pub(crate) up: bool,
    pub(crate) task: Task,
    pub(crate) clients: [Client; 2],
    // bounds
    pub(crate) writes: u8,
    pub(crate) left: Faults,
    // what the properties remember
    /// The highest epoch whose detach was answered OK.
    pub(crate) told: u8,
    /// The last write whose fsync was acknowledged.
    pub(crate) synced: u8,
    pub(crate) wrong: Wrong,
}

/// What went wrong, for the properties that are about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Wrong {
    pub(crate) two_writers: bool,
    pub(crate) after_detach: bool,
    pub(crate) changed: bool,
    pub(crate) error: bool,
    pub(crate) no_device: bool,
    pub(crate) foreign: bool,
}

impl State {
    pub(crate) fn requests(&self) -> impl Iterator<Item = Request> {
        self.queue.into_iter().flatten()
    }

    pub(crate) fn submitted(&self) -> bool {
        self.requests().any(|request| request.submitted)
    }

    pub(crate) fn client(&mut self, node: u8) -> &mut Client {
        &mut self.clients[usize::from(node)]
    }

    /// The attachment in the record, if it is not being removed.
    pub(crate) fn granted(&self) -> Option<Grant> {
        self.attachment.filter(|attachment| !attachment.revoking).map(|attachment| attachment.grant)
    }

    pub(crate) fn push(&mut self, request: Request) {
        let free = self.queue.iter_mut().find(|place| place.is_none());
        *free.expect("the bound of requests hides behaviour") = Some(request);
    }

    pub(crate) fn remove(&mut self, at: usize) -> Request {
        let removed = self.queue[at].take().expect("a request");
        self.queue[at..].rotate_left(1);
        removed
    }

    /// The node's connection is lost. Its requests stay in the kernel of the home node.
    pub(crate) fn disconnect(&mut self, node: u8) {
        self.queue.iter_mut().flatten().filter(|r| r.node == node).for_each(|request| request.live = false);
        let client = self.client(node);
        client.sent = false;
        if let Ctl::Live(grant) = client.ctl {
            client.ctl = Ctl::Broken(grant);
        }
    }

    /// The client's kernel removes the controller: the device is gone, and its I/O fails.
    pub(crate) fn delete_controller(&mut self, node: u8) {
        self.disconnect(node);
        let client = self.client(node);
        client.ctl = Ctl::None;
        client.out = 0;
        if matches!(client.mount, Mount::Mounted(_)) {
            client.mount = Mount::Dead;
        }
    }
}
