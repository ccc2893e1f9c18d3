//! The only module with system calls, `unsafe` and child processes.
//!
//! Everything except [`DirectoryWatch`] blocks; callers are workflows in their own threads (docs/adr/0001). Nothing
//! here knows a volume, a record or CSI. [`Os`] is passed to constructors. A test creates one with an [`Interceptor`],
//! which makes any selected call fail before or after its real effect. The fault matrix therefore runs against the real
//! kernel. Every method that changes or queries something goes through `Os::call` with its [`Call`] name, so there is
//! no call without a name.

mod activity;
mod answered;
mod answers;
mod bind;
mod blockdev;
mod blockstack;
mod clock;
mod daemon;
mod deadline;
mod devnode;
mod dm;
mod dm_ioctl;
mod exec;
mod file_identity;
mod files;
mod holders;
mod host;
mod image;
mod interfaces;
mod ioctl;
mod limits;
mod looks;
mod loopdev;
mod loopnumbers;
mod looptable;
mod loopview;
mod memory;
mod miscdev;
mod mount;
mod mountinfo;
mod namespace;
mod nvme;
mod nvmet;
mod owner;
mod root;
mod seen;
mod signals;
mod spawn;
mod users;
mod version;
mod waits;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};

pub use activity::{Activity, ActivityGuard, Ongoing};
pub use blockdev::{BlockDevice, DevNum, XfsGeometry};
pub use clock::{Stopwatch, Timestamp};
pub use daemon::Daemon;
pub use deadline::Deadline;
pub use dm::{DmDevice, DmMode, DmRemoved, DmState, DmSupport};
pub use dm_ioctl::DmTarget;
pub use exec::{Exit, Output, Program};
pub use file_identity::FileIdentity;
pub use files::{Entry, FsSpace};
pub use holders::Holder;
pub use image::{CowHint, ExtentSummary};
pub use interfaces::{Interface, Link};
pub use loopdev::{Discard, LoopAccess, LoopConfig, LoopDevice, LoopStatus};
pub use loopview::LoopView;
pub use mount::MountFlags;
pub use mountinfo::{MountEntry, MountTable, MountTexts};
pub use namespace::Visibility;
pub use nvme::{NvmeCondition, NvmeConnect, NvmeController, NvmeNamespace, NvmePath, NvmeSupport};
pub use nvmet::{Dhchap, NvmetLinks, NvmetObject, NvmetSupport};
pub use owner::OwnerLock;
pub use root::{Root, Shown};
pub use seen::Seen;
pub use users::{DeviceUse, Process};
pub use version::FileVersion;
pub use watch::DirectoryWatch;

/// The name of a system call wrapper, one for each method, for an [`Interceptor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is named like the method of Os that passes under it")]
pub enum Call {
    Read,
    CreateDir,
    WriteFile,
    SyncFile,
    SyncDir,
    Rename,
    Exchange,
    Link,
    RemoveFile,
    RemoveDir,
    ListDir,
    Identity,
    FsSpace,
    FsAnswers,
    OpenImage,
    CreateImage,
    WriteImage,
    SetLength,
    Allocate,
    ZeroRange,
    Unshare,
    NextData,
    NextHole,
    CopyRange,
    CloneFile,
    SetExtentHints,
    SetNoCow,
    SetSynchronous,
    ImageFlags,
    Extents,
    LockOwner,
    OpenRoot,
    RootIdentity,
    LoopScan,
    LoopView,
    LoopAttach,
    LoopStatus,
    LoopClear,
    LoopKeep,
    LoopSetCapacity,
    LoopSetDiscard,
    OpenDevice,
    OpenExclusive,
    DeviceSize,
    DeviceBlockSize,
    DiskSequence,
    ReadDevice,
    FlushDevice,
    GrowExt4,
    GrowXfs,
    XfsGeometry,
    Mount,
    Bind,
    Unmount,
    Mounts,
    Namespaces,
    OwnMounts,
    Exec,
    Start,
    Holders,
    DeviceUsers,
    OpenFiles,
    DmSupport,
    DmState,
    DmCreate,
    DmLoad,
    DmResume,
    DmRemove,
    DmList,
    DeviceStack,
    DeviceNode,
    BoundDevices,
    NvmetSupport,
    NvmetList,
    NvmetGet,
    NvmetCreate,
    NvmetRemove,
    NvmetSet,
    NvmetLink,
    NvmetUnlink,
    NvmeSupport,
    NvmeList,
    NvmeConnect,
    NvmeDelete,
    NvmeRescan,
    NvmeRead,
}

/// Runs before and after every call; injected by tests, never selected by `cfg!(test)`.
pub trait Interceptor: Send + Sync {
    /// Runs before the call; an error is returned instead of making the call.
    ///
    /// # Errors
    /// The simulated error of the call.
    fn before(&self, call: Call, target: &str) -> io::Result<()>;

    /// Runs after the call succeeded; an error is returned although the call had its effect.
    ///
    /// # Errors
    /// The simulated error of the call.
    fn after(&self, call: Call, target: &str) -> io::Result<()>;
}

/// The operating system, as the rest of Holdfast sees it. Cheap to clone.
#[derive(Clone)]
pub struct Os {
    inner: Arc<Inner>,
    /// The directory that is held open, if there is one: see [`Os::below`].
    root: Option<Arc<Root>>,
}

struct Inner {
    interceptor: Option<Box<dyn Interceptor>>,
    activity: Activity,
    loop_numbers: Mutex<loopnumbers::LoopNumbers>,
    bound_nodes: looks::Looks<loopnumbers::Bound>,
    loop_table: looptable::LoopTable,
    unanswered: answered::Unanswered,
    /// The limit of open files for children, if it is not ours.
    open_files: OnceLock<limits::OpenFiles>,
    /// Requests to mounted filesystems without a result yet.
    asked: Mutex<HashMap<DevNum, Arc<answers::Question>>>,
    /// Calls that may be abandoned and still run.
    waits: waits::Waits,
}

impl Os {
    /// The real system.
    #[must_use]
    pub fn new() -> Self {
        Self::build(None)
    }

    /// The real system with a test's interceptor in every call.
    #[must_use]
    pub fn intercepted(interceptor: Box<dyn Interceptor>) -> Self {
        Self::build(Some(interceptor))
    }

    fn build(interceptor: Option<Box<dyn Interceptor>>) -> Self {
        let inner = Inner {
            interceptor,
            activity: Activity::default(),
            loop_numbers: Mutex::default(),
            bound_nodes: looks::Looks::default(),
            loop_table: looptable::LoopTable::default(),
            unanswered: answered::Unanswered::default(),
            open_files: OnceLock::new(),
            asked: Mutex::default(),
            waits: waits::Waits::default(),
        };
        Self { inner: Arc::new(inner), root: None }
    }

    /// The running children and kernel calls, which may hang, with their age.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.inner.activity
    }

    /// Makes one call under its name. `target` is its object, for interceptors and messages.
    fn call<T>(&self, call: Call, target: &dyn fmt::Display, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        // Calls that may take long add their own entry, with a pid.
        let _ongoing = match call {
            Call::Exec | Call::Mount | Call::Bind | Call::Unmount => None,
            _ => Some(self.inner.activity.enter_short(format!("{call:?}"), target.to_string())),
        };
        let Some(interceptor) = &self.inner.interceptor else { return run() };
        let target = target.to_string();
        interceptor.before(call, &target)?;
        let value = run()?;
        interceptor.after(call, &target)?;
        Ok(value)
    }
}

impl Default for Os {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Os {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Os").field("intercepted", &self.inner.interceptor.is_some()).finish()
    }
}
