//! What each call can fail with. Exhaustive: a new [`Call`] does not compile without a row here.

use crate::os::Call;

/// One way for a call to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The kernel's answer.
    Errno(i32),
    /// A child that had to be killed at its limit.
    TimedOut,
    /// A child that somebody else killed (SIGKILL): no error of the call, but of the child. Done for real.
    Killed,
}

/// What is known of a call.
#[derive(Clone, Copy, Debug)]
pub enum Row {
    /// It only asks: failing after its effect is failing before it.
    Asks(&'static [Fault]),
    /// It changes something.
    Acts(&'static [Fault]),
    /// No operation of the driver makes it, and why.
    Unused(&'static str),
}

use Fault::{Errno, Killed, TimedOut};

const EIO: Fault = Errno(libc::EIO);
const ENOSPC: Fault = Errno(libc::ENOSPC);
const ENOENT: Fault = Errno(libc::ENOENT);
const EBUSY: Fault = Errno(libc::EBUSY);
const EPERM: Fault = Errno(libc::EPERM);
const ENOMEM: Fault = Errno(libc::ENOMEM);
const EMFILE: Fault = Errno(libc::EMFILE);
const ENXIO: Fault = Errno(libc::ENXIO);
const EROFS: Fault = Errno(libc::EROFS);
const EINTR: Fault = Errno(libc::EINTR);
const EOPNOTSUPP: Fault = Errno(libc::EOPNOTSUPP);
const EUCLEAN: Fault = Errno(libc::EUCLEAN);
const ENODEV: Fault = Errno(libc::ENODEV);
const EINVAL: Fault = Errno(libc::EINVAL);
const EFBIG: Fault = Errno(libc::EFBIG);
const EADDRINUSE: Fault = Errno(libc::EADDRINUSE);
const EADDRNOTAVAIL: Fault = Errno(libc::EADDRNOTAVAIL);
const ECONNREFUSED: Fault = Errno(libc::ECONNREFUSED);
const ENOLCK: Fault = Errno(libc::ENOLCK);

/// The first of a row is the commonest: it stands for the others where one is enough.
pub fn row(call: Call) -> Row {
    use Row::{Acts, Asks, Unused};
    match call {
        Call::Read | Call::OpenImage | Call::LoopScan | Call::LoopView => Asks(&[EIO, EMFILE]),
        Call::ListDir | Call::Identity | Call::FsSpace | Call::FsAnswers | Call::NextData | Call::NextHole => {
            Asks(&[EIO])
        }
        Call::LoopStatus
        | Call::DeviceSize
        | Call::DeviceBlockSize
        | Call::ReadDevice
        | Call::XfsGeometry
        | Call::DiskSequence => Asks(&[EIO]),
        Call::Mounts | Call::Namespaces | Call::Holders | Call::DeviceUsers => Asks(&[EIO]),
        Call::Extents | Call::ImageFlags => Asks(&[EIO, EOPNOTSUPP]),
        Call::OpenDevice => Asks(&[EIO, ENXIO, ENOENT, EBUSY]),
        Call::OpenExclusive => Asks(&[EIO, ENXIO]),
        Call::CreateDir | Call::Link | Call::Rename | Call::Exchange => Acts(&[EIO, ENOSPC, EROFS]),
        Call::WriteFile | Call::SyncFile | Call::CreateImage | Call::WriteImage => Acts(&[EIO, ENOSPC]),
        Call::CopyRange | Call::FlushDevice => Acts(&[EIO, ENOSPC]),
        Call::SyncDir | Call::RemoveFile => Acts(&[EIO, EROFS]),
        Call::RemoveDir => Acts(&[EIO, EBUSY]),
        Call::SetLength => Acts(&[EIO, ENOSPC, EFBIG]),
        Call::Allocate => Acts(&[EIO, ENOSPC, EINTR, EFBIG]),
        Call::ZeroRange => Acts(&[EIO, ENOSPC, EOPNOTSUPP]),
        // Not EOPNOTSUPP: a filesystem that has reflinks does not say so, and one that says so is believed.
        Call::CloneFile => Acts(&[EIO, ENOSPC]),
        Call::SetExtentHints | Call::SetNoCow | Call::SetSynchronous => Acts(&[EIO, EOPNOTSUPP]),
        Call::LockOwner => Acts(&[EIO, ENOLCK]),
        Call::OpenRoot => Asks(&[EIO, EMFILE]),
        Call::RootIdentity => Asks(&[EIO]),
        Call::LoopAttach => Acts(&[EIO, EBUSY, ENOMEM, ENOENT]),
        Call::LoopClear | Call::LoopKeep => Acts(&[EIO, ENXIO]),
        Call::LoopSetCapacity => Acts(&[EIO, ENXIO]),
        Call::LoopSetDiscard => Acts(&[EIO, EINVAL]),
        Call::GrowExt4 | Call::GrowXfs => Acts(&[EIO, EPERM, ENOSPC]),
        Call::Mount => Acts(&[EIO, EBUSY, EPERM, ENODEV, EUCLEAN, EINVAL]),
        Call::Bind => Acts(&[ENOMEM, EPERM, ENOENT]),
        Call::Unmount => Acts(&[EIO, EBUSY]),
        Call::Exec => Acts(&[Killed, TimedOut, ENOMEM, ENOENT]),
        Call::Unshare => Unused("blocks stay shared, and the ledger keeps room for their copies"),
        Call::OwnMounts => Unused("only the demonstration and tests have mounts of their own"),
        Call::OpenFiles => Unused("it is made once, before anything is served"),
        Call::DmSupport => Asks(&[EIO, EMFILE]),
        Call::DmState | Call::DmList | Call::DeviceStack => Asks(&[EIO]),
        Call::DmCreate => Acts(&[EIO, EBUSY, ENOMEM]),
        Call::DmLoad => Acts(&[EIO, EBUSY, ENOMEM, EINVAL]),
        Call::DmResume => Acts(&[EIO, ENOMEM, EINTR]),
        Call::DmRemove => Acts(&[EIO]),
        Call::DeviceNode => Acts(&[EIO, ENOSPC, EROFS]),
        Call::BoundDevices => Asks(&[EIO]),
        Call::NvmetSupport | Call::NvmetList | Call::NvmetGet | Call::NvmeSupport | Call::NvmeList => Asks(&[EIO]),
        Call::NvmetCreate => Acts(&[ENOMEM, EIO]),
        Call::NvmetRemove => Acts(&[EBUSY, EIO]),
        Call::NvmetSet => Acts(&[EBUSY, ENOMEM, EINVAL]),
        Call::NvmetLink => Acts(&[ENOMEM, EADDRINUSE, EADDRNOTAVAIL]),
        Call::NvmetUnlink => Acts(&[EIO]),
        Call::NvmeConnect => Acts(&[ECONNREFUSED, EIO, TimedOut]),
        Call::NvmeDelete => Acts(&[EIO, TimedOut]),
        Call::NvmeRescan => Acts(&[EIO]),
        Call::NvmeRead => Asks(&[EIO, TimedOut]),
        Call::Start => Unused("only the demonstration starts a child that stays"),
    }
}

impl Row {
    /// The faults of the call; none for one that is not made.
    #[must_use]
    pub fn faults(self) -> &'static [Fault] {
        match self {
            Self::Asks(faults) | Self::Acts(faults) => faults,
            Self::Unused(_) => &[],
        }
    }
}
