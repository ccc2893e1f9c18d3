//! The device of a raw block volume for pods that may only read.
//!
//! A read-only bind of a device node stops no write. So such a pod gets a device of its own that refuses writes, whoever
//! asks: a view of the volume's loop device. Where the kernel has device-mapper it is a read-only linear device; elsewhere
//! it is a read-only loop device over the volume's loop device. A volume has one view, which all its reading pods share:
//! made for the first one, removed after the last one.
//!
//! A view has a page cache of its own. What another pod writes meanwhile is seen once that pod has synced it, by reads
//! that pass the reader's page cache (O_DIRECT) or are the first of their block.
//!
//! What views there are is known from the kernel at the start ([`ReadOnlyViews::recover`]) and from what this process made
//! since. A view is a volume's because the volume's device lies below it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Attach, Attached, Linear};
use crate::home::Changed;
use crate::os::{BlockDevice, DevNum, Discard, DmSupport, LoopAccess, LoopConfig, LoopDevice, LoopStatus, Os};
use crate::pool::ActiveDevice;
use crate::types::{Bytes, Error, Kind, OsContext, Result, VolumeId};

/// What the names of these loop devices begin with (`lo_file_name`), for people.
const NAME: &str = "ro:";

/// Makes, finds and removes views. All calls block and are idempotent. Two calls for one volume at the same time are the
/// caller's to prevent.
#[derive(Debug)]
pub struct ReadOnlyViews {
    os: Os,
    linear: Linear,
    known: Mutex<HashMap<VolumeId, View>>,
}

/// One view.
#[derive(Clone, Debug)]
enum View {
    Linear(DevNum),
    /// Held open, so that its number is given to nothing else.
    Loop(Arc<BlockDevice>),
    /// A loop device that could not be opened, or not again after it could not be cleared.
    Unheld(DevNum, LoopStatus),
    /// One may lie over this loop device: making it failed, and so did looking for it.
    Unfound(DevNum),
}

impl View {
    fn number(&self) -> Option<DevNum> {
        match self {
            Self::Linear(number) | Self::Unheld(number, _) => Some(*number),
            Self::Loop(device) => Some(device.number()),
            Self::Unfound(_) => None,
        }
    }
}

impl ReadOnlyViews {
    /// For the volumes of this node, whose writable device-mapper devices are those of `linear`. None is known before
    /// [`ReadOnlyViews::recover`].
    #[must_use]
    pub fn new(os: Os, linear: &Linear) -> Self {
        Self { os, linear: linear.read_only(), known: Mutex::default() }
    }

    /// The view of a volume, if it has one.
    #[must_use]
    pub fn device_of(&self, volume: &VolumeId) -> Option<DevNum> {
        self.known(|known| known.get(volume).and_then(View::number))
    }

    /// Whether a volume has a view, or may have one.
    #[must_use]
    pub fn has(&self, volume: &VolumeId) -> bool {
        self.known(|known| known.contains_key(volume))
    }

    /// The view of a volume as a loop device, which a process that has it open can detach; `None` where it is none.
    ///
    /// # Errors
    /// `Internal` when its sequence number cannot be read.
    pub fn loop_device(&self, volume: &VolumeId) -> Result<Option<ActiveDevice>> {
        let Some(View::Loop(view)) = self.known(|known| known.get(volume).cloned()) else { return Ok(None) };
        let path = view.path().to_owned();
        let diskseq = self.os.disk_sequence(&view).at(|| format!("read the sequence number of {}", path.display()))?;
        Ok(Some(ActiveDevice { path, number: view.number(), diskseq }))
    }

    /// The volume that a view shows.
    #[must_use]
    pub fn volume_of(&self, device: DevNum) -> Option<VolumeId> {
        self.known(|known| known.iter().find(|(_, view)| view.number() == Some(device)).map(|(volume, _)| *volume))
    }

    /// Gives a volume its view over its attached device, or looks whether the one it has is as it must be.
    ///
    /// With device-mapper the steps are those of [`Linear::ensure`]. Else:
    /// 1. Attach a read-only loop device over the volume's. A crash leaves it, bound to nothing: `recover` removes it.
    /// 2. Open it, reserve its number, read everything back. What differs is removed again.
    ///
    /// # Errors
    /// Those of [`Linear::ensure`]; `Precondition` when a process changed what the view shows while pods use it;
    /// `Internal`.
    pub fn ensure(&self, volume: &VolumeId, attached: &Attached, block_size: u32) -> Result<DevNum> {
        let held = match self.known(|known| known.get(volume).cloned()) {
            Some(View::Loop(view)) => Some(view),
            Some(View::Unheld(_, status)) => Some(self.hold(volume, status.device)?),
            Some(View::Linear(_) | View::Unfound(_)) | None => None,
        };
        if let Some(view) = held {
            match self.differs(&view, attached)? {
                None => return Ok(view.number()),
                Some(what) => self.give_up(volume, view, &what)?,
            }
        }
        if let DmSupport::Yes(_) = self.linear.support()? {
            let made = self.linear.ensure(volume, attached.device.number(), attached.size)?;
            self.know(*volume, View::Linear(made.number));
            return Ok(made.number);
        }
        let config = LoopConfig {
            block_size,
            name: format!("{NAME}{}", volume.uuid),
            owner: owner(volume),
            // It passes nothing on that would change the volume.
            discard: Discard::Off,
            access: LoopAccess::ReadOnly,
        };
        let below = attached.device.path().display();
        let made = match self.find(volume, attached.device.number())? {
            Some(left) => Ok(left.device),
            None => self
                .os
                .loop_attach_over(&attached.device, &config)
                .at(|| format!("attach a read-only loop device over {below} of volume {volume}")),
        };
        let number = made.and_then(|made| {
            let view = self.hold(volume, made)?;
            match self.differs(&view, attached)? {
                None => Ok(view.number()),
                Some(what) => Err(Error::new(
                    Kind::Internal,
                    format!(
                        "{} was created as the read-only device of volume {volume}, but {what}; retry",
                        view.path().display()
                    ),
                )),
            }
        });
        number.map_err(|error| match self.drop_unbound(volume, attached.device.number()) {
            Ok(_) => error,
            Err(undo) => error.and_undo_failed(&undo),
        })
    }

    /// Lets a volume's view take the size its device has now. Nothing to do for a volume without one.
    ///
    /// # Errors
    /// Those of [`Linear::ensure`]; `Internal`.
    pub fn resize(&self, volume: &VolumeId, below: DevNum, size: Bytes) -> Result<Changed> {
        match self.known(|known| known.get(volume).cloned()) {
            None | Some(View::Unheld(..) | View::Unfound(_)) => Ok(Changed::No),
            Some(View::Linear(_)) => self.linear.resize(volume, below, size),
            Some(View::Loop(view)) => self.fit(&view, size),
        }
    }

    /// Removes a volume's view, whatever state a crash left it in.
    ///
    /// # Errors
    /// `InUse` when a process has it open; `Internal`.
    pub fn release(&self, volume: &VolumeId) -> Result<Changed> {
        match self.known(|known| known.remove(volume)) {
            Some(View::Loop(view)) => {
                let status =
                    self.os.held_loop_status(&view).at(|| format!("read the state of {}", view.path().display()));
                match status {
                    Ok(Some(status)) => {
                        let number = view.number();
                        // Our own descriptor would keep it; the sequence number tells that it is the same until it is cleared.
                        drop(view);
                        self.clear(volume, number, status)
                    }
                    Ok(None) => self.forget(volume),
                    Err(error) => {
                        self.know(*volume, View::Loop(view));
                        Err(error)
                    }
                }
            }
            Some(View::Unheld(number, status)) => self.clear(volume, number, status),
            Some(View::Unfound(below)) => self.drop_unbound(volume, below),
            known => {
                let released = self.linear.release(volume);
                if let (Err(_), Some(view)) = (&released, known) {
                    self.know(*volume, view);
                }
                released
            }
        }
    }

    /// Finds the views that an earlier process made. One that is bound nowhere is what a crash left, and is removed. One that
    /// cannot be taken in hand is logged.
    ///
    /// # Errors
    /// `Internal` when devices or mounts cannot be listed.
    pub fn recover(&self, attach: &dyn Attach) -> Result<()> {
        for (volume, number) in self.linear.all()? {
            self.know(volume, View::Linear(number));
            self.drop_if_unbound(&volume, number)?;
        }
        let views = self.os.loop_views(|backing| below_of(backing).is_some()).at(|| "list the loop devices")?;
        for view in views.into_iter().filter(|view| view.read_only) {
            let Some(below) = below_of(&view.backing).and_then(LoopDevice::number) else { continue };
            let taken = self.recover_one(attach, view.device, below);
            if let Err(error) = taken {
                tracing::warn!(device = %view.device.path().display(), error = error.chain(), "cannot open the read-only device of a raw block volume in use");
            }
        }
        Ok(())
    }

    fn recover_one(&self, attach: &dyn Attach, device: LoopDevice, below: DevNum) -> Result<()> {
        let Some(volume) = attach.volume_of(below)? else { return Ok(()) };
        if self.device_of(&volume).is_some() {
            return Ok(());
        }
        let shown = device.path();
        let status = self.os.loop_status(device).at(|| format!("read the state of {}", shown.display()))?;
        let Some(status) = status.filter(|status| status.shows_device(below)) else { return Ok(()) };
        let Some(number) = device.number() else { return Ok(()) };
        // An administrator's own read-only loop device is left alone.
        if !self.is_bound(number)? && !status.name.starts_with(NAME) {
            return Ok(());
        }
        if let Err(error) = self.hold(&volume, device) {
            self.know(volume, View::Unheld(number, status));
            return Err(error);
        }
        self.drop_if_unbound(&volume, number)
    }

    /// Before this process ends: no view goes away with our descriptor (LO_FLAGS_AUTOCLEAR).
    pub fn keep_all(&self) {
        let held: Vec<_> = self.known(|known| known.iter().map(|(volume, view)| (*volume, view.clone())).collect());
        for (volume, view) in held {
            if let View::Loop(device) = view
                && let Err(error) = self.os.loop_keep(&device)
            {
                tracing::error!(%volume, device = %device.path().display(), %error, "cannot clear the autoclear flag: the device may disappear when this process exits, while pods read it");
            }
        }
    }

    /// Opens a view and knows it from here on.
    fn hold(&self, volume: &VolumeId, device: LoopDevice) -> Result<Arc<BlockDevice>> {
        let path = device.path();
        let shown = path.display();
        let view = Arc::new(self.os.open_device_to_read(&path).at(|| format!("open {shown}"))?);
        self.os.loop_keep(&view).at(|| format!("clear the autoclear flag of {shown}"))?;
        self.os.reserve_loop(device, &owner(volume));
        self.know(*volume, View::Loop(Arc::clone(&view)));
        Ok(view)
    }

    /// How a view is not what it must be, in words. One that is smaller because the volume grew is resized.
    fn differs(&self, view: &BlockDevice, attached: &Attached) -> Result<Option<String>> {
        let shown = view.path().display();
        let status = self.os.held_loop_status(view).at(|| format!("read the state of {shown}"))?;
        let below = attached.device.number();
        let Some(status) = status.filter(|status| status.shows_device(below)) else {
            return Ok(Some(format!("it is not on top of block device {below}")));
        };
        if status.offset != 0 || !status.read_only {
            return Ok(Some("a process that has it open changed its offset or its read-only flag".to_owned()));
        }
        if self.os.loop_keep(view).at(|| format!("clear the autoclear flag of {shown}"))? {
            tracing::warn!(device = %shown, "a process marked the loop device to be detached with its last user (losetup -d, or a pod); the node removed the mark");
        }
        self.fit(view, attached.size)?;
        let size = self.os.device_size(view).at(|| format!("read the size of {shown}"))?;
        if size != attached.size.get() {
            return Ok(Some(format!("it has {size} bytes instead of {}", attached.size.get())));
        }
        Ok(None)
    }

    fn fit(&self, view: &BlockDevice, size: Bytes) -> Result<Changed> {
        let shown = view.path().display();
        if self.os.device_size(view).at(|| format!("read the size of {shown}"))? == size.get() {
            return Ok(Changed::No);
        }
        self.os.loop_set_capacity(view).at(|| format!("resize {shown}"))?;
        Ok(Changed::Yes)
    }

    /// A view that shows something else is made anew, if no pod has it.
    fn give_up(&self, volume: &VolumeId, view: Arc<BlockDevice>, what: &str) -> Result<()> {
        if self.is_bound(view.number())? {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "{} is the read-only device of volume {volume} and pods use it, but {what}; stop those pods, then retry: the node creates the device again",
                    view.path().display()
                ),
            ));
        }
        drop(view);
        self.release(volume).map(drop)
    }

    fn drop_if_unbound(&self, volume: &VolumeId, number: DevNum) -> Result<()> {
        if self.is_bound(number)? {
            return Ok(());
        }
        match self.release(volume) {
            Err(error) if error.kind() == Kind::InUse => Ok(()),
            released => released.map(drop),
        }
    }

    /// Removes what a failed `ensure` left over a device: found by what is behind it, because an error may come after the
    /// effect.
    fn drop_unbound(&self, volume: &VolumeId, below: DevNum) -> Result<Changed> {
        self.know(*volume, View::Unfound(below));
        if let Some(left) = self.find(volume, below)? {
            let shown = left.device.path();
            if !self.os.loop_clear(&left).at(|| format!("clear {}", shown.display()))? {
                return Err(self.in_use(volume, left.device));
            }
        }
        self.known(|known| known.remove(volume));
        self.forget(volume)
    }

    /// The read-only loop device that this driver made over a volume's device.
    fn find(&self, volume: &VolumeId, below: DevNum) -> Result<Option<LoopStatus>> {
        let over = |backing: &Path| below_of(backing).and_then(LoopDevice::number) == Some(below);
        let name = format!("{NAME}{}", volume.uuid);
        for view in self.os.loop_views(over).at(|| "list the loop devices")? {
            let shown = view.device.path();
            let status = self.os.loop_status(view.device).at(|| format!("read the state of {}", shown.display()))?;
            if let Some(status) = status.filter(|status| status.shows_device(below) && status.name == name) {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// Clears a view that this process does not hold. One that stays is taken in hand again: a retry finds it.
    fn clear(&self, volume: &VolumeId, number: DevNum, status: LoopStatus) -> Result<Changed> {
        let device = status.device;
        let cleared = self.os.loop_clear(&status);
        if let Ok(true) = cleared {
            return self.forget(volume);
        }
        if self.hold(volume, device).is_err() {
            self.know(*volume, View::Unheld(number, status));
        }
        cleared.at(|| format!("clear {}", device.path().display()))?;
        Err(self.in_use(volume, device))
    }

    fn in_use(&self, volume: &VolumeId, device: LoopDevice) -> Error {
        let users = device.number().and_then(|number| self.os.device_users(number).ok()).unwrap_or_default();
        let users: Vec<_> = users.iter().map(ToString::to_string).collect();
        let users = match users.is_empty() {
            true => "held open by a process that is not visible from here".to_owned(),
            false => users.join(", "),
        };
        let shown = device.path();
        Error::new(
            Kind::InUse,
            format!(
                "{}, the read-only device of volume {volume}, is {users}; stop the process that uses it, then retry",
                shown.display()
            ),
        )
    }

    /// Nothing of the view is there any more.
    fn forget(&self, volume: &VolumeId) -> Result<Changed> {
        self.os.release_loops(&owner(volume));
        Ok(Changed::Yes)
    }

    fn is_bound(&self, number: DevNum) -> Result<bool> {
        Ok(!self.os.mounts().at(|| "read the mount table")?.uses(number).is_empty())
    }

    fn know(&self, volume: VolumeId, view: View) {
        self.known(|known| known.insert(volume, view));
    }

    fn known<T>(&self, act: impl FnOnce(&mut HashMap<VolumeId, View>) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whose the number of a view is: never the volume's own, which a pod that only reads must not see.
fn owner(volume: &VolumeId) -> String {
    format!("{NAME}{}_{}", volume.pool, volume.uuid)
}

/// The loop device a loop device lies on, by the path of its image.
fn below_of(backing: &Path) -> Option<LoopDevice> {
    LoopDevice::named(backing.file_name()?.to_str()?)
}
