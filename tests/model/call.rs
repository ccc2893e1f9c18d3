//! What a caller asks, in words small enough to be read when a case has shrunk, and what it is answered.

use tonic::Code;

use holdfast::types::{FsType, MIB};

/// Names of volumes, of snapshots, and targets of pods.
pub(super) const NAMES: usize = 4;
pub(super) const CUTS: usize = 3;
pub(super) const TARGETS: usize = 3;

/// A volume as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Volume {
    /// The handle of one of our names, whether or not it exists.
    Of(usize),
    /// No handle of this driver.
    Foreign,
    /// Of a pool that nobody serves.
    Elsewhere,
}

/// A snapshot as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cut {
    Of(usize),
    Foreign,
    Elsewhere,
}

/// A volume's source as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum From {
    Cut(Cut),
    Volume(Volume),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Mode {
    Block,
    /// A filesystem; none is the volume's own.
    Mount(Option<FsType>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Access {
    /// SINGLE_NODE_MULTI_WRITER
    Multi,
    /// SINGLE_NODE_SINGLE_WRITER
    Single,
    /// SINGLE_NODE_READER_ONLY
    Reader,
    /// MULTI_NODE_MULTI_WRITER, which this driver does not have
    ManyNodes,
}

/// One capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Use {
    pub(super) mode: Mode,
    pub(super) access: Access,
}

/// A node as a request names it: its number, or one nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum OnNode {
    Of(usize),
    Unknown,
}

/// Where a new volume is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    Anywhere,
    Preferred(usize),
    Required(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Create {
    pub(super) name: usize,
    /// Bytes; zero is unset.
    pub(super) required: u64,
    pub(super) limit: u64,
    pub(super) uses: Vec<Use>,
    pub(super) thin: Option<bool>,
    pub(super) zero: bool,
    pub(super) from: Option<From>,
    pub(super) wanted: Wanted,
}

/// Where a volume is looked at on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum At {
    Staging,
    Target(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Call {
    Create(Create),
    Delete(Volume),
    Grant {
        volume: Volume,
        node: OnNode,
        usage: Use,
        read_only: bool,
    },
    Revoke {
        volume: Volume,
        node: Option<OnNode>,
    },
    Validate {
        volume: Volume,
        usage: Use,
    },
    Get(Volume),
    /// All volumes, in pages of so many; 0 is one page.
    List {
        page: i32,
    },
    /// A token that is not of the list.
    ListBadly,
    Capacity {
        thin: Option<bool>,
    },
    Expand {
        volume: Volume,
        required: u64,
        limit: u64,
    },
    Cut {
        cut: usize,
        from: Volume,
    },
    Uncut(Cut),
    GetCut(Cut),
    ListCuts {
        cut: Option<Cut>,
        from: Option<Volume>,
        page: i32,
    },
    Stage {
        volume: Volume,
        usage: Use,
    },
    Unstage(Volume),
    Publish {
        volume: Volume,
        target: usize,
        usage: Use,
        read_only: bool,
    },
    Unpublish {
        volume: Volume,
        target: usize,
    },
    Stats {
        volume: Volume,
        at: At,
    },
    Grow {
        volume: Volume,
        at: At,
        required: u64,
    },
}

impl Call {
    /// Its name in the specification.
    pub(super) fn rpc(&self) -> &'static str {
        match self {
            Self::Create(_) => "CreateVolume",
            Self::Delete(_) => "DeleteVolume",
            Self::Grant { .. } => "ControllerPublishVolume",
            Self::Revoke { .. } => "ControllerUnpublishVolume",
            Self::Validate { .. } => "ValidateVolumeCapabilities",
            Self::Get(_) => "ControllerGetVolume",
            Self::List { .. } | Self::ListBadly => "ListVolumes",
            Self::Capacity { .. } => "GetCapacity",
            Self::Expand { .. } => "ControllerExpandVolume",
            Self::Cut { .. } => "CreateSnapshot",
            Self::Uncut(_) => "DeleteSnapshot",
            Self::GetCut(_) => "GetSnapshot",
            Self::ListCuts { .. } => "ListSnapshots",
            Self::Stage { .. } => "NodeStageVolume",
            Self::Unstage(_) => "NodeUnstageVolume",
            Self::Publish { .. } => "NodePublishVolume",
            Self::Unpublish { .. } => "NodeUnpublishVolume",
            Self::Stats { .. } => "NodeGetVolumeStats",
            Self::Grow { .. } => "NodeExpandVolume",
        }
    }
}

/// How the caller behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It waits for the answer.
    Waits,
    /// It goes away as soon as the call is made.
    GoesAway,
    /// It has a millisecond.
    Hurries,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Call(Call, Manner),
    /// The daemon's process ends and begins again.
    Restart,
}

/// A volume as an answer shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shown {
    pub(super) name: usize,
    pub(super) pool: usize,
    pub(super) size: u64,
    pub(super) from: Option<Source>,
    /// Whether its home has it; nobody else ever may.
    pub(super) granted: bool,
}

/// A source that exists or existed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Cut { pool: usize, cut: usize },
    Volume { pool: usize, name: usize },
}

/// A snapshot as an answer shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ShownCut {
    pub(super) cut: usize,
    pub(super) pool: usize,
    pub(super) from: usize,
    pub(super) size: u64,
    pub(super) ready: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Made(Shown),
    Granted {
        epoch: u64,
    },
    Confirmed(bool),
    Volume(Shown),
    Volumes(Vec<Shown>),
    Room(u64),
    Size {
        size: u64,
        node_expansion: bool,
    },
    Cut(ShownCut),
    Cuts(Vec<ShownCut>),
    /// A filesystem's total is at most its device's size: see [`Answer::agrees`].
    Filesystem(u64),
    Device(u64),
}

impl Answer {
    /// Whether the driver may say `seen` where this is expected.
    pub(super) fn agrees(&self, seen: &Self) -> bool {
        match (self, seen) {
            (Self::Filesystem(size), Self::Filesystem(total)) => *total > 0 && total <= size,
            _ => self == seen,
        }
    }
}

/// An answer with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: Code,
    pub(super) said: String,
}

pub(super) type Seen = Result<Answer, Refused>;

pub(super) const fn mib(n: u64) -> u64 {
    n * MIB
}
