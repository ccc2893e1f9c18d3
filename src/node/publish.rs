//! NodePublishVolume and NodeUnpublishVolume.

use std::path::{Path, PathBuf};

use super::mounts::{Shown, places};
use super::removal::Stale;
use super::{Node, PublishRequest, path};
use crate::attach::{Attach, Attached, Wanted};
use crate::fs::{self, Stopped};
use crate::home::{Changed, FormatState, OpenVolume, ReadOnly};
use crate::os::{Entry, MountEntry, MountFlags};
use crate::types::{Error, FsType, Kind, OsContext, RequestedMode, Result, VolumeId, VolumeMode};

/// The source of the bind mount.
pub(super) struct Source {
    /// The staging mount, or the device node.
    pub(super) path: PathBuf,
    pub(super) flags: MountFlags,
    pub(super) shown: Shown,
}

/// The object at a path without a mount.
enum There {
    Directory,
    EmptyFile,
    Other,
}

/// The object created at the target before the bind mount.
enum Target {
    Directory,
    File,
}

impl Node {
    /// Makes a staged volume visible at a pod's path (NodePublishVolume). Does nothing if it is there already, the same
    /// way.
    ///
    /// 1. Find the live staging mount or device. An empty directory is never bind-mounted.
    /// 2. Create the target, and its parent if only that is missing. A crash leaves an empty target. The next publish
    ///    uses it, and an unpublish removes it.
    /// 3. Bind-mount it with all flags in one step, then check mountinfo. A crash leaves the finished bind mount.
    ///
    /// After an error the target is removed again if this call created it.
    ///
    /// # Errors
    /// `Busy`; `AlreadyExists` when the target has the volume with other settings, or something else; `InvalidArgument`
    /// for a bad path; `Precondition` when the volume is not staged, is published elsewhere and its access mode allows
    /// one path, or its filesystem stopped after errors; `Internal`.
    pub fn publish(&self, request: &PublishRequest) -> Result<Changed> {
        let volume = &request.volume;
        // Several pods publish concurrently where the access mode allows several. Calls for one target exclude each
        // other.
        let one = request.access.one_target();
        let lock = if one {
            self.volumes.try_lock(volume, "NodePublishVolume")
        } else {
            self.volumes.try_share(volume, "NodePublishVolume")
        }?;
        let target = self.target(&request.target)?;
        let _target_lock = self.targets.try_lock(&target.display().to_string(), "NodePublishVolume")?;
        lock.works_on(&target.display());
        self.visible(&target)?;

        match request.mode {
            RequestedMode::Mount(fs) => self.publish_from(request, &self.staged_filesystem(request, fs)?, &target),
            RequestedMode::Block => self.publish_device(request, &target),
        }
    }

    /// A block volume: its own device, or its read-only view.
    fn publish_device(&self, request: &PublishRequest, target: &Path) -> Result<Changed> {
        let volume = &request.volume;
        let (opened, attached) = self.staged_device(request)?;
        let published = if only_reads(request, &opened) {
            self.publish_view(volume, &attached, opened.block_size, |source| self.publish_from(request, source, target))
        } else {
            let shown = Shown::Device(attached.device.number());
            let path = self.raw_node(volume, &attached)?;
            self.publish_from(request, &Source { path, flags: MountFlags::default(), shown }, target)
        };
        // Kept open only after the bind mount: a failed publish must not prevent a detach.
        if published.is_ok() {
            self.raw.hold(*volume, attached.device);
        }
        published
    }

    /// Steps 2 and 3.
    fn publish_from(&self, request: &PublishRequest, source: &Source, target: &Path) -> Result<Changed> {
        let volume = &request.volume;
        let mounts = self.mounts(volume)?;
        if let Some((entry, shown)) = mounts.ours(target, Kind::AlreadyExists)? {
            return if shown == source.shown && same_flags(entry, source) {
                Ok(Changed::No)
            } else {
                Err(differs(request))
            };
        }
        if request.access.one_target() {
            let others = self.published(&mounts, volume)?;
            if !others.is_empty() {
                return Err(Error::new(
                    Kind::Precondition,
                    format!(
                        "volume {volume} is already published at {}, and its access mode allows only one path; unpublish it there first",
                        places(&others)
                    ),
                ));
            }
        }

        let made = self.make_target(request.mode, target)?;
        if let Err(error) = self.bind(volume, source, target) {
            let undo = match made {
                Some(Target::Directory) => self.os.remove_dir(target).map(drop),
                Some(Target::File) => self.os.remove_file(target).map(drop),
                None => Ok(()),
            };
            return Err(match undo.at(|| format!("remove {}", target.display())) {
                Ok(()) => error,
                Err(undo) => error.and_undo_failed(&undo),
            });
        }
        Ok(Changed::Yes)
    }

    /// The live mount of the volume at its staging path.
    fn staged_filesystem(&self, request: &PublishRequest, named: Option<FsType>) -> Result<Source> {
        let volume = &request.volume;
        let not_staged = || {
            let place = request.staging.as_deref().map_or_else(|| "any path".into(), |path| path.display().to_string());
            Error::new(
                Kind::Precondition,
                format!("volume {volume} is not staged at {place}; stage it before you publish it"),
            )
        };
        let staging = request.staging.as_deref().ok_or_else(not_staged)?;
        let staging = path::resolve(&self.os, staging)?.ok_or_else(not_staged)?;
        let mounts = self.mounts(volume)?;
        let (entry, shown) = match mounts.ours(&staging, Kind::Precondition)? {
            Some((entry, shown @ Shown::Filesystem(_))) => (entry, shown),
            _ => return Err(not_staged()),
        };
        if mounts.is_left_over(shown)? {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {volume} is mounted at {}, but its device {} is gone; stop every pod that uses the volume on this node: the node mounts it again at the next stage",
                    staging.display(),
                    entry.device
                ),
            ));
        }
        let fs = entry.fs_type.parse().ok().filter(|fs| named.is_none_or(|named| named == *fs));
        let mount = request.mount.of(fs.ok_or_else(not_staged)?)?;
        self.stagings.name(volume, &staging);
        let read_only = request.read_only == ReadOnly::Yes
            || request.access.read_only()
            || mount.flags().read_only
            || entry.read_only();
        self.alive(volume, entry, if read_only { ReadOnly::Yes } else { ReadOnly::No })?;
        Ok(Source { path: staging, flags: MountFlags { read_only, ..mount.flags() }, shown })
    }

    /// A filesystem that stopped after errors is not given to a pod that needs to write.
    fn alive(&self, volume: &VolumeId, entry: &MountEntry, read_only: ReadOnly) -> Result<()> {
        match fs::stopped(&self.os, &[entry]) {
            Some(why) if read_only == ReadOnly::No || !why.is_readable() => Err(has_stopped(volume, entry, why)),
            _ => Ok(()),
        }
    }

    /// The device of a block volume, verified and open, and its state from the home node.
    fn staged_device(&self, request: &PublishRequest) -> Result<(OpenVolume, Attached)> {
        let volume = &request.volume;
        let opened = self.open(volume)?;
        if opened.mode != VolumeMode::Block || opened.format != FormatState::Raw {
            return Err(Error::new(
                Kind::Precondition,
                format!("volume {volume} is not staged as a raw block device; stage it as one before you publish it"),
            ));
        }
        let attached = self.attach.attach(volume, &Wanted::from(&opened))?;
        Ok((opened, attached))
    }

    /// The target without symbolic links in its parents. Its parent directory is created if only that one is missing.
    fn target(&self, target: &Path) -> Result<PathBuf> {
        if let Some(resolved) = path::resolve(&self.os, target)? {
            return Ok(resolved);
        }
        let parent = target.parent().unwrap_or(target);
        self.os.ensure_dir(parent).at(|| format!("create {}, the parent of the target path", parent.display()))?;
        path::resolve(&self.os, target)?.ok_or_else(|| {
            Error::new(Kind::Internal, format!("{} was created, but does not exist; retry", parent.display()))
        })
    }

    fn look(&self, target: &Path) -> Result<Option<There>> {
        let shown = target.display();
        let there = match self.os.entry(target).at(|| format!("stat {shown}"))? {
            None => return Ok(None),
            Some(Entry::Directory) => There::Directory,
            Some(Entry::File) => {
                let file = self.os.identity(target).at(|| format!("stat {shown}"))?;
                if file.is_some_and(|file| file.size == 0) { There::EmptyFile } else { There::Other }
            }
            Some(Entry::Symlink | Entry::Other) => There::Other,
        };
        Ok(Some(there))
    }

    fn make_target(&self, mode: RequestedMode, target: &Path) -> Result<Option<Target>> {
        let there = self.look(target)?;
        let shown = target.display();
        match (mode, there) {
            (RequestedMode::Mount(_), Some(There::Directory)) | (RequestedMode::Block, Some(There::EmptyFile)) => {
                Ok(None)
            }
            (RequestedMode::Mount(_), None) => {
                self.os.ensure_dir(target).at(|| format!("create directory {shown}"))?;
                Ok(Some(Target::Directory))
            }
            (RequestedMode::Block, None) => {
                self.os.ensure_file(target).at(|| format!("create file {shown}"))?;
                Ok(Some(Target::File))
            }
            (RequestedMode::Mount(_), Some(_)) => {
                Err(Error::new(Kind::AlreadyExists, format!("target {shown} exists and is not a directory; remove it")))
            }
            (RequestedMode::Block, Some(_)) => Err(Error::new(
                Kind::AlreadyExists,
                format!("target {shown} exists and is not an empty file; remove it"),
            )),
        }
    }

    fn bind(&self, volume: &VolumeId, source: &Source, target: &Path) -> Result<()> {
        let (from, to) = (source.path.display(), target.display());
        self.os
            .bind(&source.path, target, source.flags)
            .at(|| format!("bind-mount {from} of volume {volume} at {to}"))?;
        let error = match self.is_bound(volume, source, target) {
            Ok(true) => return Ok(()),
            Ok(false) => Error::new(
                Kind::Internal,
                format!(
                    "{from} of volume {volume} was bind-mounted at {to}, but mountinfo does not show it there as requested; the node removes the bind mount; retry"
                ),
            ),
            Err(error) => error,
        };
        Err(match self.unmount(target) {
            Ok(()) => error,
            Err(undo) => error.and_undo_failed(&undo),
        })
    }

    /// Whether mountinfo shows the volume at the target as requested.
    fn is_bound(&self, volume: &VolumeId, source: &Source, target: &Path) -> Result<bool> {
        let mounts = self.mounts(volume)?;
        let Some(entry) = mounts.at(target) else { return Ok(false) };
        Ok(mounts.shows(entry)? == Some(source.shown) && same_flags(entry, source))
    }

    /// Removes a volume from a pod's path, and the path (NodeUnpublishVolume). Succeeds if both are gone already.
    ///
    /// Decides from mountinfo, and accesses the path only when nothing is mounted there. Never removes anything that
    /// has content. A bind-mounted device node that now shows something else is removed too, if the volume's pods were
    /// given that device.
    ///
    /// 1. Unmount every mount of the volume at the path. After a crash the next unpublish continues.
    /// 2. Remove the read-only view of a block volume if that was its last pod. A crash leaves the view without a bind
    ///    mount: the next start removes it.
    /// 3. Remove the empty directory or file. After a crash the next unpublish continues.
    ///
    /// # Errors
    /// `Busy`; `InUse` naming the user; `InvalidArgument` for a bad path; `Precondition` when something else is mounted
    /// there, or the path is not empty after the unmount; `Internal`.
    pub fn unpublish(&self, volume: &VolumeId, target: &Path) -> Result<Changed> {
        let lock = self.volumes.try_share(volume, "NodeUnpublishVolume")?;
        let target = path::known(&self.os, target)?;
        let _target_lock = self.targets.try_lock(&target.display().to_string(), "NodeUnpublishVolume")?;
        lock.works_on(&target.display());
        let changed = self.unmount_all(volume, &target, Stale::Unmount)?;
        self.drop_unused_view(volume)?;
        let shown = target.display();
        let removed = match self.look(&target)? {
            None => false,
            Some(There::Directory) => self.os.remove_dir(&target).map_err(|error| match error.raw_os_error() {
                Some(libc::ENOTEMPTY | libc::EEXIST) => left_over(&target, "is a directory that is not empty"),
                _ => Error::new(Kind::Internal, format!("remove directory {shown}")).because(error),
            })?,
            Some(There::EmptyFile) => self.os.remove_file(&target).at(|| format!("remove file {shown}"))?,
            Some(There::Other) => return Err(left_over(&target, "is neither a directory nor an empty file")),
        };
        Ok(if removed { Changed::Yes } else { changed })
    }
}

/// The error for a mounted filesystem that no longer works.
pub(super) fn has_stopped(volume: &VolumeId, entry: &MountEntry, why: Stopped) -> Error {
    let error = Error::new(
        Kind::Precondition,
        format!(
            "volume {volume}: its filesystem at {} {why}; stop every pod that uses the volume: the node checks the filesystem at the next stage; see the kernel log for the cause",
            entry.mount_point.display()
        ),
    );
    match why.into_reason() {
        Some(reason) => error.because(reason),
        None => error,
    }
}

fn left_over(target: &Path, what: &str) -> Error {
    Error::new(
        Kind::Precondition,
        format!("{} {what}, and nothing is mounted there; Holdfast does not delete it; move it away", target.display()),
    )
}

/// Whether a bind mount has the required flags: all requested ones, and read-only exactly as requested.
fn same_flags(entry: &MountEntry, source: &Source) -> bool {
    let has = |name: &str| entry.options.iter().any(|option| option == name);
    let flags = source.flags;
    let added = [
        (flags.no_suid, "nosuid"),
        (flags.no_dev, "nodev"),
        (flags.no_exec, "noexec"),
        (flags.no_atime, "noatime"),
        (flags.no_dir_atime, "nodiratime"),
    ];
    flags.read_only == entry.read_only() && added.into_iter().all(|(wanted, name)| !wanted || has(name))
}

/// Whether a pod has read-only access to a block volume: by its claim, its access mode or its attachment.
fn only_reads(request: &PublishRequest, opened: &OpenVolume) -> bool {
    request.read_only == ReadOnly::Yes
        || request.access.read_only()
        || opened.read_only == ReadOnly::Yes
        || opened.access.read_only()
}

fn differs(request: &PublishRequest) -> Error {
    Error::new(
        Kind::AlreadyExists,
        format!(
            "volume {} is already published at {} with other settings (block, filesystem, read-only or mount flags); unpublish it first",
            request.volume,
            request.target.display()
        ),
    )
}
