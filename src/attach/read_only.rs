//! The device of a raw block volume for pods with read-only access.
//!
//! A read-only bind mount of a device node does not prevent writes. Such a pod therefore gets its own device that
//! rejects all writes: a view of the volume's loop device. With device-mapper the view is a read-only linear device,
//! otherwise a read-only loop device over the volume's loop device. A volume has one view, shared by all its read-only
//! pods. The first pod creates it, the last one removes it.
//!
//! A view has its own page cache. Data that another pod writes becomes visible after that pod syncs it. It is then
//! visible to reads that bypass the reader's page cache (O_DIRECT) or are the first of their block.
//!
//! At start the views are found in the kernel ([`ReadOnlyViews::recover`]); later ones are created by this process. A
//! view belongs to a volume because the volume's device is below it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Attach, Attached};
use crate::home::{Changed, Locks};
use crate::linear::Linear;
use crate::os::{
    BlockDevice, DevNum, DeviceUse, Discard, DmSupport, LoopAccess, LoopConfig, LoopDevice, LoopStatus, LoopView, Os,
};
use crate::pool::ActiveDevice;
use crate::types::{Bytes, Error, Kind, OsContext, Result, VolumeId};

/// The prefix of the names of these loop devices (`lo_file_name`), for people.
const NAME: &str = "ro:";

/// Creates, finds and removes views. All calls block and are idempotent. The caller prevents concurrent calls for one
/// volume.
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
    /// Held open, so that the kernel does not reuse its number; with its sequence number (diskseq) at that time, because a
    /// process that has it open can give it another file.
    Loop(Arc<BlockDevice>, Option<u64>),
    /// A loop device that could not be opened, or could not be reopened after a failed detach.
    Unheld(DevNum, LoopStatus),
    /// A view may exist over this loop device: creating it failed, and so did the search for it.
    Unfound(DevNum),
}

impl View {
    fn number(&self) -> Option<DevNum> {
        match self {
            Self::Linear(number) | Self::Unheld(number, _) => Some(*number),
            Self::Loop(device, _) => Some(device.number()),
            Self::Unfound(_) => None,
        }
    }
}

impl ReadOnlyViews {
    /// For the volumes of this node; `linear` has their writable device-mapper devices. Knows no view before
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

    /// The view of a volume if it is a loop device, which a process that has it open can detach; otherwise `None`.
    #[must_use]
    pub fn loop_device(&self, volume: &VolumeId) -> Option<ActiveDevice> {
        let Some(View::Loop(view, diskseq)) = self.known(|known| known.get(volume).cloned()) else { return None };
        Some(ActiveDevice { path: view.path().to_owned(), number: view.number(), diskseq })
    }

    /// The volume of a view.
    #[must_use]
    pub fn volume_of(&self, device: DevNum) -> Option<VolumeId> {
        self.known(|known| known.iter().find(|(_, view)| view.number() == Some(device)).map(|(volume, _)| *volume))
    }

    /// Creates a volume's view over its attached device, or verifies the existing one.
    ///
    /// With device-mapper the steps are those of [`Linear::ensure`]. Otherwise:
    /// 1. Attach a read-only loop device over the volume's. A crash leaves it without a bind mount: `recover` removes
    ///    it.
    /// 2. Open it, reserve its number, read everything back. A view that differs is removed again.
    ///
    /// # Errors
    /// Those of [`Linear::ensure`]; `Precondition` when a process changed the view while pods use it; `Internal`.
    pub fn ensure(&self, volume: &VolumeId, attached: &Attached, block_size: u32) -> Result<DevNum> {
        let held = match self.known(|known| known.get(volume).cloned()) {
            Some(View::Loop(view, diskseq)) => Some((view, diskseq)),
            Some(View::Unheld(_, status)) => Some(self.hold(volume, status.device)?),
            Some(View::Linear(_) | View::Unfound(_)) | None => None,
        };
        if let Some((view, diskseq)) = held {
            match self.differs(&view, diskseq, attached, block_size)? {
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
            // A view must not pass on requests that change the volume.
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
            let (view, diskseq) = self.hold(volume, made)?;
            match self.differs(&view, diskseq, attached, block_size)? {
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

    /// Resizes a volume's view to the size of its device. Does nothing for a volume without a view.
    ///
    /// # Errors
    /// Those of [`Linear::ensure`]; `Internal`.
    pub fn resize(&self, volume: &VolumeId, below: DevNum, size: Bytes) -> Result<Changed> {
        match self.known(|known| known.get(volume).cloned()) {
            None | Some(View::Unheld(..) | View::Unfound(_)) => Ok(Changed::No),
            Some(View::Linear(_)) => self.linear.resize(volume, below, size),
            Some(View::Loop(view, _)) => self.fit(&view, size),
        }
    }

    /// Removes a volume's view, in whatever state a crash left it.
    ///
    /// # Errors
    /// `InUse` when a process has it open; `Internal`.
    pub fn release(&self, volume: &VolumeId) -> Result<Changed> {
        match self.known(|known| known.remove(volume)) {
            Some(View::Loop(view, diskseq)) => match self.to_clear(&view) {
                Ok(Some(status)) => {
                    let number = view.number();
                    // Our own descriptor would keep it open.
                    drop(view);
                    self.clear(volume, number, status)
                }
                Ok(None) => self.forget(volume),
                Err(error) => {
                    self.know(*volume, View::Loop(view, diskseq));
                    Err(error)
                }
            },
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

    /// Removes the view over a volume's device that this process does not know: its pool was not served when the process
    /// looked for views. `No` when there is none.
    ///
    /// # Errors
    /// `InUse` when a pod or a process uses it; `Internal`.
    pub fn release_over(&self, volume: &VolumeId, below: DevNum) -> Result<Changed> {
        match self.find(volume, below)? {
            Some(_) => self.drop_unbound(volume, below),
            None => Ok(Changed::No),
        }
    }

    /// Whether a device is a volume's view, also one that this process does not know: a read-only loop device over the
    /// volume's device, or the read-only device-mapper device with its uuid. Opens nothing.
    ///
    /// # Errors
    /// `Internal` when the kernel cannot be asked.
    pub fn shows(&self, volume: &VolumeId, device: DevNum, below: DevNum) -> Result<bool> {
        if let Some(found) = self.os.loop_of(device).at(|| format!("look up block device {device}"))? {
            let view = self.os.loop_view(found).at(|| format!("read the state of {}", found.path().display()))?;
            let over = |view: LoopView| view.read_only && view.below().and_then(LoopDevice::number) == Some(below);
            return Ok(view.is_some_and(over));
        }
        Ok(self.linear.device(volume)?.is_some_and(|view| view.number == device))
    }

    /// Finds the views that an earlier process created. A view without a bind mount is left over from a crash, and is
    /// removed. A view that cannot be opened is logged. Skips a volume while a call creates or removes its view
    /// (`viewing`).
    ///
    /// # Errors
    /// `Internal` when devices cannot be listed.
    pub fn recover(&self, attach: &dyn Attach, viewing: &Locks<VolumeId>) -> Result<()> {
        const RECOVERY: &str = "the search for devices";
        for (volume, number) in self.linear.all()? {
            let Ok(_lock) = viewing.try_lock(&volume, RECOVERY) else { continue };
            if let Err(error) = self.recover_linear(attach, &volume, number) {
                tracing::warn!(%volume, device = %number, error = error.chain(), "cannot check the read-only device of a raw block volume");
            }
        }
        let views = self.os.loop_views(|backing| below_of(backing).is_some()).at(|| "list the loop devices")?;
        for view in views.into_iter().filter(|view| view.read_only) {
            let Some(below) = view.below().and_then(LoopDevice::number) else { continue };
            let taken = attach.volume_of(below).and_then(|volume| {
                let Some(volume) = volume else { return Ok(()) };
                let Ok(_lock) = viewing.try_lock(&volume, RECOVERY) else { return Ok(()) };
                self.recover_loop(&volume, view.device, below)
            });
            if let Err(error) = taken {
                tracing::warn!(device = %view.device.path().display(), error = error.chain(), "cannot open the read-only device of a raw block volume in use");
            }
        }
        Ok(())
    }

    /// Another driver on this machine has such devices too: one is this node's only if it lies over a device of a volume
    /// of this node.
    fn recover_linear(&self, attach: &dyn Attach, volume: &VolumeId, number: DevNum) -> Result<()> {
        if self.has(volume) {
            return Ok(());
        }
        let below = self.os.devices_below(number).at(|| format!("read what block device {number} lies on"))?;
        let [below] = below.as_slice() else { return Ok(()) };
        let Some(volume) = attach.volume_of(*below)?.filter(|found| found == volume) else { return Ok(()) };
        self.know(volume, View::Linear(number));
        self.drop_if_unbound(&volume, number)
    }

    fn recover_loop(&self, volume: &VolumeId, device: LoopDevice, below: DevNum) -> Result<()> {
        if self.has(volume) {
            return Ok(());
        }
        let shown = device.path();
        let status = self.os.loop_status(device).at(|| format!("read the state of {}", shown.display()))?;
        let Some(status) = status.filter(|status| status.shows_device(below)) else { return Ok(()) };
        let Some(number) = device.number() else { return Ok(()) };
        // A read-only loop device of an administrator is not touched.
        if !self.is_bound(number)? && !status.name.starts_with(NAME) {
            return Ok(());
        }
        if let Err(error) = self.hold(volume, device) {
            self.know(*volume, View::Unheld(number, status));
            return Err(error);
        }
        self.drop_if_unbound(volume, number)
    }

    /// Before this process exits: no view disappears when our descriptor is closed (LO_FLAGS_AUTOCLEAR).
    pub fn keep_all(&self) {
        let held: Vec<_> = self.known(|known| known.iter().map(|(volume, view)| (*volume, view.clone())).collect());
        for (volume, view) in held {
            if let View::Loop(device, _) = view
                && let Err(error) = self.os.keep_attached(&device)
            {
                tracing::error!(%volume, device = %device.path().display(), %error, "cannot clear the autoclear flag: the device may disappear when this process exits, while pods read it");
            }
        }
    }

    /// Opens a view and registers it.
    fn hold(&self, volume: &VolumeId, device: LoopDevice) -> Result<(Arc<BlockDevice>, Option<u64>)> {
        let path = device.path();
        let shown = path.display();
        let view = Arc::new(self.os.open_device_to_read(&path).at(|| format!("open {shown}"))?);
        self.os.keep_attached(&view).at(|| format!("clear the autoclear flag of {shown}"))?;
        let diskseq = self.os.disk_sequence(&view).at(|| format!("read the sequence number of {shown}"))?;
        self.os.reserve_loop(device, &owner(volume));
        self.know(*volume, View::Loop(Arc::clone(&view), diskseq));
        Ok((view, diskseq))
    }

    /// The reason why a view is not valid, for a message. A view that is too small because the volume grew is resized.
    fn differs(
        &self,
        view: &BlockDevice,
        diskseq: Option<u64>,
        attached: &Attached,
        block_size: u32,
    ) -> Result<Option<String>> {
        let shown = view.path().display();
        // LOOP_CHANGE_FD gives a read-only loop device another file, without any capability. That file is not queried: its
        // filesystem may not answer.
        if self.os.disk_sequence(view).at(|| format!("read the sequence number of {shown}"))? != diskseq {
            return Ok(Some("a process that has it open changed its backing file".to_owned()));
        }
        let status = self.os.held_loop_status(view).at(|| format!("read the state of {shown}"))?;
        let below = attached.device.number();
        let Some(status) = status.filter(|status| status.shows_device(below)) else {
            return Ok(Some(format!("it is not on top of block device {below}")));
        };
        let blocks = self.os.device_block_size(view).at(|| format!("read the block size of {shown}"))?;
        if status.offset != 0 || !status.read_only || !status.direct_io || blocks != block_size {
            return Ok(Some("a process that has it open changed its settings".to_owned()));
        }
        if self.os.keep_attached(view).at(|| format!("clear the autoclear flag of {shown}"))? {
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

    /// A view of another device is created again, if no pod uses it.
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

    /// Removes a device that a failed `ensure` left. It is found by its backing device, because an error may come after
    /// the effect.
    fn drop_unbound(&self, volume: &VolumeId, below: DevNum) -> Result<Changed> {
        self.know(*volume, View::Unfound(below));
        if let Some(left) = self.find(volume, below)? {
            let shown = left.device.path();
            if let Some(number) = left.device.number()
                && self.is_bound(number)?
            {
                self.know(*volume, View::Unheld(number, left.clone()));
                return Err(self.in_use(volume, left.device));
            }
            if !self.os.loop_clear(&left).at(|| format!("clear {}", shown.display()))? {
                return Err(self.in_use(volume, left.device));
            }
        }
        self.known(|known| known.remove(volume));
        self.forget(volume)
    }

    /// The read-only loop device that this driver created over a volume's device.
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

    /// Detaches a view that this process does not hold. If that fails, the view is opened again, so that a retry finds
    /// it.
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

    /// Nothing is left of the view.
    fn forget(&self, volume: &VolumeId) -> Result<Changed> {
        self.os.release_loops(&owner(volume));
        Ok(Changed::Yes)
    }

    /// Whether a device node is bind-mounted in any readable mount namespace.
    fn is_bound(&self, number: DevNum) -> Result<bool> {
        let users = self.os.device_users(number).at(|| format!("look for the users of block device {number}"))?;
        Ok(users.iter().any(|used| matches!(used, DeviceUse::Bound(..))))
    }

    /// The state of a view as it is now, whatever a process made of it; `None` when nothing is attached.
    fn to_clear(&self, view: &BlockDevice) -> Result<Option<LoopStatus>> {
        let shown = view.path().display();
        let Some(device) = below_of(view.path()) else { return Ok(None) };
        let now = self.os.loop_view(device).at(|| format!("read the state of {shown}"))?;
        match now {
            // The sequence number identifies it; its file is not queried.
            Some(now) if now.diskseq.is_some() => Ok(Some(now.unasked())),
            Some(_) => self.os.held_loop_status(view).at(|| format!("read the state of {shown}")),
            None => Ok(None),
        }
    }

    fn know(&self, volume: VolumeId, view: View) {
        self.known(|known| known.insert(volume, view));
    }

    fn known<T>(&self, act: impl FnOnce(&mut HashMap<VolumeId, View>) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The owner of a view's number: never the volume's own, because a read-only pod must not see the writable device.
fn owner(volume: &VolumeId) -> String {
    format!("{NAME}{}_{}", volume.pool, volume.uuid)
}

/// The loop device below a loop device, from the path of its image.
fn below_of(backing: &Path) -> Option<LoopDevice> {
    LoopDevice::named(backing.file_name()?.to_str()?)
}
