//! NodeStageVolume and NodeUnstageVolume.

use std::path::Path;

use super::format::Formatter;
use super::mounts::{Shown, places};
use super::publish::has_stopped;
use super::removal::Stale;
use super::retry_busy::patiently;
use super::stagings::Left;
use super::{Node, StageRequest, path};
use crate::attach::{Attach, Attached, Wanted};
use crate::fs::{self, Grown, MountOptions};
use crate::home::{Changed, LockGuard, OpenVolume, ReadOnly};
use crate::os::{Entry, MountEntry};
use crate::types::{Error, FsType, Kind, OsContext, RequestedMode, Result, VolumeId, VolumeMode};

impl Node {
    /// Stages a volume on this node (NodeStageVolume): formats it on first use, and mounts it at its staging path. A
    /// block volume is only attached and marked as raw. If the volume is staged already, does only what is missing.
    ///
    /// 1. The home node attaches the device. A crash leaves it attached; the next stage or unstage finds it.
    /// 2. Format or verify (`format.rs`). After a crash the next stage continues from the record's format state.
    /// 3. Create the link that is the mount's source (`source.rs`), and mount. A crash leaves a mount, which the next
    ///    stage or unstage finds in mountinfo.
    /// 4. Grow the filesystem to its device. After a crash the next stage does it.
    ///
    /// After an error the mount and the device are removed again. A finished format stays.
    ///
    /// # Errors
    /// `Busy`; `AlreadyExists` when the path has the volume with other options, or something else; `InvalidArgument`
    /// for a bad path; `Precondition`, `Corrupt`, `OutOfRange` by the format table, with nothing written; `NotFound`,
    /// `Unavailable` from the home node; `Timeout`, `Internal`.
    pub fn stage(&self, request: &StageRequest) -> Result<Changed> {
        let lock = self.volumes.try_lock(&request.volume, "NodeStageVolume")?;
        match request.mode {
            RequestedMode::Block => self.stage_block(request),
            RequestedMode::Mount(_) => self.stage_mount(request, &lock),
        }
    }

    fn stage_block(&self, request: &StageRequest) -> Result<Changed> {
        let volume = &request.volume;
        path::resolve(&self.os, &request.staging)?;
        let held = self.raw.holds(volume);
        let opened = self.open(volume)?;
        granted_so(request, &opened).map_err(|error| self.only_opened(error, volume))?;
        if held {
            let attached = self.attach.attach(volume, &Wanted::from(&opened))?;
            self.linear_device(volume, &attached)?;
            return Ok(Changed::No);
        }
        // Staged before this process started: an error now must not remove the device.
        let was_staged = self.linear.device(volume)?.is_some();
        let staged = self.attach.attach(volume, &Wanted::from(&opened)).and_then(|attached| {
            self.home(volume)?.use_raw(volume, &self.id)?;
            self.linear_device(volume, &attached)?;
            self.raw.hold(*volume, attached.device);
            Ok(())
        });
        staged.map_err(|error| self.undone(error, || if was_staged { Ok(()) } else { self.let_go(volume) }))?;
        Ok(Changed::Yes)
    }

    /// The error, combined with the error of the undo if that failed too.
    fn undone(&self, error: Error, undo: impl FnOnce() -> Result<()>) -> Error {
        match undo() {
            Ok(()) => error,
            Err(undo) => error.and_undo_failed(&undo),
        }
    }

    /// After an error with nothing done but the home's `open`: detaches the device unless an earlier stage uses it.
    fn only_opened(&self, error: Error, volume: &VolumeId) -> Error {
        self.undone(error, || {
            if self.linear.device(volume)?.is_some() {
                return Ok(());
            }
            match self.unused(volume).and_then(|()| self.detach(volume)) {
                Err(held) if held.kind() == Kind::InUse => Ok(()),
                result => result,
            }
        })
    }

    fn stage_mount(&self, request: &StageRequest, lock: &LockGuard<VolumeId>) -> Result<Changed> {
        let volume = &request.volume;
        let missing = || {
            Error::new(
                Kind::Precondition,
                format!(
                    "staging path {} of volume {volume} does not exist; create it and retry (kubelet normally creates it)",
                    request.staging.display()
                ),
            )
        };
        let staging = path::resolve(&self.os, &request.staging)?.ok_or_else(missing)?;
        lock.works_on(&staging.display());
        self.visible(&staging)?;
        let mounts = self.mounts(volume)?;
        if let Some((entry, shown)) = mounts.ours(&staging, Kind::AlreadyExists)? {
            self.stagings.name(volume, &staging);
            if !mounts.is_left_over(shown)? {
                return self.stage_again(request, &staging, entry, shown);
            }
            tracing::warn!(%volume, path = %staging.display(), device = %entry.device, "the device of this mount is gone; the node unmounts it and stages the volume again, unless pods still have it");
            self.unpublished(volume, &staging)?;
            self.unmount_all(volume, &staging, Stale::Refuse)?;
        }
        match self.os.entry(&staging).at(|| format!("stat {}", staging.display()))? {
            Some(Entry::Directory) => {}
            Some(_) => {
                let why = format!(
                    "staging path {} of volume {volume} is not a directory; remove it and retry",
                    staging.display()
                );
                return Err(Error::new(Kind::Precondition, why));
            }
            None => return Err(missing()),
        }

        let opened = self.open(volume)?;
        let wanted = Wish::of(request, &opened).map_err(|error| self.only_opened(error, volume))?;
        let staged = self.stage_fresh(request, &wanted, &staging, &opened, lock);
        staged.map_err(|error| self.undone(error, || self.undo(volume, &staging)))?;
        self.stagings.name(volume, &staging);
        Ok(Changed::Yes)
    }

    /// Steps 2 to 4.
    fn stage_fresh(
        &self,
        request: &StageRequest,
        wanted: &Wish,
        staging: &Path,
        opened: &OpenVolume,
        lock: &LockGuard<VolumeId>,
    ) -> Result<()> {
        let volume = &request.volume;
        let (fs, read_only, options) = (wanted.fs, wanted.read_only, &wanted.options);
        let home = self.home(volume)?;
        let formatter = Formatter {
            os: &self.os,
            node: &self.id,
            home: home.as_ref(),
            attach: &self.attach,
            slots: &self.slots,
            lock,
            volume,
            fs,
            read_only,
            opened,
        };
        let attached = formatter.ready()?;
        lock.works_on(&staging.display());
        self.mount(volume, &attached, staging, fs, options)?;
        if read_only == ReadOnly::Yes {
            return Ok(());
        }
        match fs::of(fs).grow_mounted(&self.os, &attached.device, staging, opened.size)? {
            Grown::Yes | Grown::AlreadyThere => Ok(()),
            Grown::NotPermitted => {
                // No other process uses the mount: this call made it just now, under the volume's lock.
                self.unmount(staging)?;
                lock.works_on(&attached.device.path().display());
                fs::of(fs).grow_unmounted(&self.os, &attached.device, opened.size)?;
                lock.works_on(&staging.display());
                self.mount(volume, &attached, staging, fs, options)
            }
        }
    }

    /// The volume is mounted here already: the same request succeeds once the filesystem has its size.
    fn stage_again(&self, request: &StageRequest, staging: &Path, entry: &MountEntry, shown: Shown) -> Result<Changed> {
        let volume = &request.volume;
        let opened = self.open(volume)?;
        let Wish { fs, read_only, options } = Wish::of(request, &opened)?;
        let Shown::Filesystem(_) = shown else { return Err(differs(volume, staging)) };
        match fs::stopped(&self.os, &[entry]) {
            Some(why) if read_only == ReadOnly::No || !why.is_readable() => {
                return Err(has_stopped(volume, entry, why));
            }
            _ => {}
        }
        if entry.fs_type != fs.as_str() || entry.root != Path::new("/") || !options.made(fs, entry) {
            return Err(differs(volume, staging));
        }
        if read_only == ReadOnly::Yes || entry.super_read_only() {
            return Ok(Changed::No);
        }
        let attached = self.attach.attach(volume, &Wanted::from(&opened))?;
        match fs::of(fs).grow_mounted(&self.os, &attached.device, staging, opened.size)? {
            Grown::Yes => Ok(Changed::Yes),
            Grown::AlreadyThere => Ok(Changed::No),
            Grown::NotPermitted => {
                tracing::warn!(%volume, path = %staging.display(), "the kernel does not allow this process to grow a mounted ext4 (CAP_SYS_RESOURCE); the node grows it when the volume is unstaged and staged again");
                Ok(Changed::No)
            }
        }
    }

    /// Mounts the open device and verifies in mountinfo that it is the topmost mount there.
    fn mount(
        &self,
        volume: &VolumeId,
        attached: &Attached,
        staging: &Path,
        fs: FsType,
        options: &MountOptions,
    ) -> Result<()> {
        let device = attached.device.path();
        let source = self.name_source(volume, device)?;
        patiently(|| {
            let mounted = self.os.mount(&source, staging, fs.as_str(), options.flags(), &options.data(fs));
            mounted.map_err(|error| mount_failed(volume, device, staging, fs, error))
        })?;
        let mounts = self.os.mounts().at(|| "read the mount table")?;
        match mounts.at(staging) {
            Some(entry) if entry.device == attached.device.number() && entry.fs_type == fs.as_str() => Ok(()),
            _ => Err(Error::new(
                Kind::Internal,
                format!(
                    "{} was mounted at {}, but mountinfo does not show it there; check whether another process mounts at that path, then retry",
                    device.display(),
                    staging.display()
                ),
            )),
        }
    }

    fn undo(&self, volume: &VolumeId, staging: &Path) -> Result<()> {
        if self.mounts(volume)?.ours(staging, Kind::Internal)?.is_some() {
            self.unmount(staging)?;
        }
        self.let_go(volume)
    }

    /// Detaches the device that a failed stage attached, unless it was in use before: staged with other settings, or at
    /// another path.
    fn let_go(&self, volume: &VolumeId) -> Result<()> {
        if self.raw.holds(volume) || !self.mounts(volume)?.others(&[])?.is_empty() {
            return Ok(());
        }
        self.detach(volume)
    }

    /// Unstages a volume (NodeUnstageVolume). Succeeds if the volume is not staged, or not at this path: then a mount
    /// elsewhere stays. Succeeds for a volume whose record or pool is gone, once nothing of it remains. Decides from
    /// mountinfo and never accesses the path itself: a dead filesystem is unmounted like any other. If the volume is
    /// staged at several paths, only this one is unmounted; the last one also detaches the device.
    ///
    /// 1. Fail while pods use it, and change nothing.
    /// 2. Unmount every mount of the volume at the path. After a crash the next unstage continues.
    /// 3. Detach. After a crash the next unstage continues.
    ///
    /// # Errors
    /// `Busy`; `InUse` naming the user; `Precondition` when something else is mounted at the path, or a mount on a
    /// parent directory covers it; `Internal`.
    pub fn unstage(&self, volume: &VolumeId, staging: &Path) -> Result<Changed> {
        let lock = self.volumes.try_lock(volume, "NodeUnstageVolume")?;
        let staging = path::known(&self.os, staging)?;
        lock.works_on(&staging.display());
        if !self.staged_at(volume, &staging)? {
            return Ok(Changed::No);
        }
        let left = self.unpublished(volume, &staging)?;
        let mut changed = self.unmount_all(volume, &staging, Stale::Refuse)?;
        self.stagings.forget(volume, &staging);
        if left == Left::Staged {
            return Ok(changed);
        }
        if let Some(device) = self.raw.take(volume) {
            let path = device.path().display().to_string();
            lock.works_on(&path);
            let _closing = self.os.activity().enter("close (write back)", &path, None);
            drop(device);
            changed = Changed::Yes;
        }
        self.detach(volume)?;
        self.claims.forget(volume);
        self.connections.forget(volume);
        Ok(changed)
    }

    /// Whether an unstage at a path concerns the volume: not when its filesystem is mounted only elsewhere. A raw
    /// device has no staging mount, so any path is accepted.
    fn staged_at(&self, volume: &VolumeId, staging: &Path) -> Result<bool> {
        let mounts = self.mounts(volume)?;
        if mounts.ours(staging, Kind::Precondition)?.is_some() || self.raw.holds(volume) {
            return Ok(true);
        }
        let elsewhere = mounts.others(&[])?.iter().any(|(_, shown)| matches!(shown, Shown::Filesystem(_)));
        Ok(!elsewhere)
    }

    /// Fails if a mount of the volume exists. A block volume has no staging mount.
    pub(super) fn unused(&self, volume: &VolumeId) -> Result<()> {
        let mounts = self.mounts(volume)?;
        let others = mounts.others(&[])?;
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::InUse,
            format!("volume {volume} is still published at {}; unpublish it there first", places(&others)),
        ))
    }
}

/// The filesystem that a stage asks for.
struct Wish {
    fs: FsType,
    read_only: ReadOnly,
    options: MountOptions,
}

impl Wish {
    /// # Errors
    /// `Precondition` when the volume is attached in another mode; `InvalidArgument` for a mount option that the
    /// filesystem does not have.
    fn of(request: &StageRequest, opened: &OpenVolume) -> Result<Self> {
        let VolumeMode::Mount(fs) = granted_so(request, opened)? else {
            return Err(granted_otherwise(request, opened));
        };
        let (options, read_only) = (request.mount.of(fs)?, request.access.read_only());
        // Read-only by its attachment, the access mode or the mount flags.
        let by_home = opened.access.read_only() || opened.read_only == ReadOnly::Yes;
        Ok(if read_only || by_home || options.flags().read_only {
            Self { fs, read_only: ReadOnly::Yes, options: options.read_only() }
        } else {
            Self { fs, read_only: ReadOnly::No, options }
        })
    }
}

/// The mode in which the volume is attached, which must be the requested one.
fn granted_so(request: &StageRequest, opened: &OpenVolume) -> Result<VolumeMode> {
    request.mode.of(opened.mode).ok_or_else(|| granted_otherwise(request, opened))
}

fn granted_otherwise(request: &StageRequest, opened: &OpenVolume) -> Error {
    Error::new(
        Kind::Precondition,
        format!(
            "volume {} is attached to this node as {}, but the request stages it as {}; detach it and attach it as it is to be used",
            request.volume, opened.mode, request.mode
        ),
    )
}

fn differs(volume: &VolumeId, staging: &Path) -> Error {
    Error::new(
        Kind::AlreadyExists,
        format!(
            "volume {volume} is staged at {} with another filesystem or other mount options; unstage it first",
            staging.display()
        ),
    )
}

/// The error of a failed mount(2). It does not contain the options, which may be sensitive.
fn mount_failed(volume: &VolumeId, device: &Path, staging: &Path, fs: FsType, error: std::io::Error) -> Error {
    let (kind, next) = match error.raw_os_error() {
        Some(libc::EBUSY) => (Kind::Busy, "another mount or process holds the device; retry"),
        Some(libc::EUCLEAN) => (Kind::Corrupt, "the filesystem is damaged; check it manually"),
        Some(libc::ENODEV) => (Kind::Unsupported, "this kernel does not support the filesystem; load its module"),
        Some(libc::EPERM | libc::EACCES) => (Kind::Precondition, "give the node plugin CAP_SYS_ADMIN"),
        Some(libc::ENOTDIR | libc::ENOENT) => (Kind::Precondition, "the staging path must be a directory"),
        Some(libc::EINVAL) => {
            (Kind::Precondition, "the kernel rejects the superblock or a mount option; see the kernel log")
        }
        _ => (Kind::Internal, "retry; the kernel log may show the cause"),
    };
    let what =
        format!("cannot mount {fs} of volume {volume} from {} at {}; {next}", device.display(), staging.display());
    Error::new(kind, what).because(error)
}
