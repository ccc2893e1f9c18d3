//! A device-mapper device over a raw block volume's loop device, so that the pod that gets the volume does not get the
//! loop device's controls (docs/adr/0005).
//!
//! A process that can open a loop device can detach it, change its image and resize it, without any capability. A
//! device-mapper device is controlled through its control node, which requires CAP_SYS_ADMIN. It passes ioctls to the
//! device below only if its table has exactly one target. A single linear target as long as the loop device would pass
//! LOOP_CLR_FD. The table therefore always has two targets, which together cover the whole volume.
//!
//! This module keeps no state: it finds the device by its dm uuid, which contains pool and volume. A volume has the
//! device from its first stage to its unstage, or not at all: see [`Linear::device`].

use std::sync::{Arc, OnceLock};

use crate::os::{DevNum, DmMode, DmRemoved, DmState, DmSupport, DmTarget, Os};
use crate::types::{Bytes, Changed, Error, Kind, ObjectUuid, OsContext, PoolId, Result, VolumeId};

/// The prefix of the dm uuids of these devices; pool and volume follow.
const WRITABLE: &str = "HOLDFAST-RAW-";
/// The prefix for read-only devices ([`crate::attach::ReadOnlyViews`]).
const READ_ONLY: &str = "HOLDFAST-RO-";
/// Bytes of the second target, at the end of the volume: the largest possible logical block size.
const TAIL: u64 = 4096;
/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Creates, grows and removes these devices. All calls block and are idempotent.
#[derive(Debug)]
pub struct Linear {
    os: Os,
    support: Arc<OnceLock<DmSupport>>,
    mode: DmMode,
}

/// The device of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearDevice {
    /// Its number.
    pub number: DevNum,
    /// Its size.
    pub size: Bytes,
}

impl Linear {
    /// For the volumes of this node: writable devices.
    #[must_use]
    pub fn new(os: Os) -> Self {
        Self { os, support: Arc::default(), mode: DmMode::Writable }
    }

    /// The same with read-only devices. A volume may have one of each.
    #[must_use]
    pub fn read_only(&self) -> Self {
        Self { mode: DmMode::ReadOnly, os: self.os.clone(), support: Arc::clone(&self.support) }
    }

    /// The name of a volume's device, for `dmsetup` and messages.
    #[must_use]
    pub fn name(&self, volume: &VolumeId) -> String {
        match self.mode {
            DmMode::Writable => format!("holdfast-{}-{}", volume.pool, volume.uuid),
            DmMode::ReadOnly => format!("holdfast-ro-{}-{}", volume.pool, volume.uuid),
        }
    }

    fn prefix(&self) -> &'static str {
        match self.mode {
            DmMode::Writable => WRITABLE,
            DmMode::ReadOnly => READ_ONLY,
        }
    }

    fn uuid_of(&self, volume: &VolumeId) -> String {
        format!("{}{}-{}", self.prefix(), volume.pool, volume.uuid)
    }

    /// The volume in a dm uuid.
    fn volume_in(&self, uuid: &str) -> Option<VolumeId> {
        let (pool, uuid) = uuid.strip_prefix(self.prefix())?.split_once('-')?;
        Some(VolumeId::new(pool.parse::<PoolId>().ok()?, uuid.parse::<ObjectUuid>().ok()?))
    }

    /// Whether this kernel has device-mapper. The result is cached.
    ///
    /// # Errors
    /// `Internal` when the kernel cannot be queried; the next call tries again.
    pub fn support(&self) -> Result<&DmSupport> {
        if let Some(support) = self.support.get() {
            return Ok(support);
        }
        let support = self.os.dm_support().at(|| "check whether the kernel has device-mapper")?;
        Ok(self.support.get_or_init(|| support))
    }

    fn is_there(&self) -> Result<bool> {
        self.support().map(|support| matches!(support, DmSupport::Yes(_)))
    }

    /// The device of a volume. `None`: the volume is used through its loop device until it is unstaged. A device
    /// without a live table, which a crash left, counts as none.
    ///
    /// # Errors
    /// `Corrupt` when a device has the volume's uuid and a foreign table; `Internal`.
    pub fn device(&self, volume: &VolumeId) -> Result<Option<LinearDevice>> {
        let Some(state) = self.state(volume)? else { return Ok(None) };
        let Some((_, size)) = shape(&state.table).transpose().map_err(|()| foreign(volume, &self.name(volume)))? else {
            return Ok(None);
        };
        Ok(Some(LinearDevice { number: state.number, size }))
    }

    /// Creates the volume's device on the loop device `below`, which has `size` bytes, or grows and resumes an existing
    /// one.
    ///
    /// 1. Create the device, without a table. A crash leaves a device of size 0. The next call continues, and `release`
    ///    removes it.
    /// 2. Load the table beside the live one. A crash leaves the live table unchanged.
    /// 3. Make the table live. A crash leaves the finished device.
    /// 4. Read the device back and compare.
    ///
    /// # Errors
    /// `Busy` when another call is creating it; `InUse` when it is on top of another loop device, or another program
    /// changed its read-only flag and it is open; `Corrupt` when it is larger than the loop device, or its table is
    /// foreign; `Precondition` without device-mapper; `OutOfRange` for a size that cannot be mapped; `Internal`.
    pub fn ensure(&self, volume: &VolumeId, below: DevNum, size: Bytes) -> Result<LinearDevice> {
        if let DmSupport::No(why) = self.support()? {
            return Err(Error::new(
                Kind::Precondition,
                format!("cannot create a device-mapper device for volume {volume}: {why}"),
            ));
        }
        let uuid = self.uuid_of(volume);
        let wanted = table(volume, below, size)?;
        match self.state(volume)? {
            None => {
                let name = self.name(volume);
                self.os.dm_create(&name, &uuid).map_err(|error| create_failed(volume, &name, error))?;
            }
            Some(state) if state.table == wanted && state.mode == self.mode && !state.is_suspended => {
                return Ok(LinearDevice { number: state.number, size });
            }
            Some(state) => may_change(volume, &self.name(volume), &state, below, size, self.mode)?,
        }
        self.os
            .dm_load(&uuid, &wanted, self.mode)
            .map_err(|error| load_failed(volume, &self.name(volume), below, error))?;
        self.os.dm_resume(&uuid).at(|| format!("resume {} of volume {volume}", self.name(volume)))?;
        let state = self.state(volume)?.ok_or_else(|| unlike(volume, &self.name(volume), "has disappeared"))?;
        if state.table != wanted || state.mode != self.mode || state.is_suspended {
            return Err(unlike(volume, &self.name(volume), "has another table"));
        }
        let shown = self.os.device_size_shown(state.number).at(|| format!("read the size of {}", self.name(volume)))?;
        if shown != size.get() {
            return Err(unlike(volume, &self.name(volume), "has a size that differs from its table"));
        }
        Ok(LinearDevice { number: state.number, size })
    }

    /// Resizes a volume's device to the size of its loop device, with steps 2 and 3 of [`Linear::ensure`]. Requests of
    /// the pod wait meanwhile. Does nothing for a volume without a device.
    ///
    /// # Errors
    /// Those of [`Linear::ensure`].
    pub fn resize(&self, volume: &VolumeId, below: DevNum, size: Bytes) -> Result<Changed> {
        match self.device(volume)? {
            Some(device) if device.size != size => self.ensure(volume, below, size).map(|_| Changed::Yes),
            _ => Ok(Changed::No),
        }
    }

    /// Removes a volume's device, in whatever state a crash left it. This module then no longer holds the loop device.
    ///
    /// # Errors
    /// `InUse` when it is open; `Internal`.
    pub fn release(&self, volume: &VolumeId) -> Result<Changed> {
        if !self.is_there()? {
            return Ok(Changed::No);
        }
        let name = self.name(volume);
        match self.os.dm_remove(&self.uuid_of(volume)).at(|| format!("remove {name}"))? {
            DmRemoved::Now => Ok(Changed::Yes),
            DmRemoved::Absent => Ok(Changed::No),
            DmRemoved::InUse => {
                let users = self.users(volume).unwrap_or_default();
                Err(Error::new(
                    Kind::InUse,
                    format!(
                        "the device {name} of volume {volume} is {users}; stop the pod or process that has it open and retry (`dmsetup info {name}` shows how often it is open)"
                    ),
                ))
            }
        }
    }

    /// The users of a device, as far as they are visible.
    fn users(&self, volume: &VolumeId) -> Result<String> {
        let Some(state) = self.state(volume)? else { return Ok("busy".to_owned()) };
        let above =
            self.os.devices_above(state.number).at(|| format!("list the devices on top of {}", state.number))?;
        let above: Vec<_> = above.iter().map(ToString::to_string).collect();
        Ok(match above.is_empty() {
            true => format!("open {} times", state.open_count),
            false => format!("open {} times, also by the block devices {}", state.open_count, above.join(", ")),
        })
    }

    /// The volume of this device number; `None` for any other device. Opens nothing.
    ///
    /// # Errors
    /// `Internal` when sysfs cannot be read.
    pub fn volume_of(&self, number: DevNum) -> Result<Option<VolumeId>> {
        let device = self.os.dm_device(number).at(|| format!("look up block device {number}"))?;
        Ok(device.and_then(|device| self.volume_in(&device.uuid)))
    }

    /// Every volume with such a device, from sysfs. This includes one that a crash left incomplete, but from kernel
    /// 5.15 on only if it has a table. Opens nothing.
    ///
    /// # Errors
    /// `Internal` when sysfs cannot be read.
    pub fn all(&self) -> Result<Vec<(VolumeId, DevNum)>> {
        let devices = self.os.dm_devices(self.prefix()).at(|| "list the device-mapper devices")?;
        Ok(devices.into_iter().filter_map(|device| Some((self.volume_in(&device.uuid)?, device.number))).collect())
    }

    fn state(&self, volume: &VolumeId) -> Result<Option<DmState>> {
        if !self.is_there()? {
            return Ok(None);
        }
        self.os.dm_state(&self.uuid_of(volume)).at(|| format!("read the state of the device {}", self.name(volume)))
    }
}

/// The table of a volume: two linear targets one after the other, the second one block long.
fn table(volume: &VolumeId, below: DevNum, size: Bytes) -> Result<Vec<DmTarget>> {
    let split = size.get().checked_sub(TAIL).filter(|head| *head > 0 && size.get().is_multiple_of(TAIL));
    let head = split.ok_or_else(|| {
        Error::new(
            Kind::OutOfRange,
            format!("volume {volume} of {} bytes cannot be used as a raw block device: its size must be a multiple of {TAIL} bytes, and larger than that", size.get()),
        )
    })?;
    let linear = |start: u64, length: u64| DmTarget {
        start: start / SECTOR,
        length: length / SECTOR,
        kind: "linear".to_owned(),
        parameters: format!("{below} {}", start / SECTOR),
    };
    Ok(vec![linear(0, head), linear(head, TAIL)])
}

/// The device (`major:minor`) and size of a table of ours; `None` for an empty table, `Err` for a foreign one.
fn shape(table: &[DmTarget]) -> Option<std::result::Result<(&str, Bytes), ()>> {
    match table {
        [] => None,
        [head, tail] => {
            let size = Bytes::new(tail.start.saturating_add(tail.length).saturating_mul(SECTOR));
            let follows = head.start == 0 && tail.start == head.length;
            let both = straight(head).zip(straight(tail)).filter(|(one, other)| follows && one == other);
            Some(both.map(|(device, _)| (device, size)).ok_or(()))
        }
        _ => Some(Err(())),
    }
}

/// The device below a linear target, if the offsets on both sides are equal.
fn straight(target: &DmTarget) -> Option<&str> {
    let (device, start) = target.parameters.split_once(' ')?;
    (target.kind == "linear" && start.parse() == Ok(target.start)).then_some(device)
}

/// Whether the existing device may get another table.
fn may_change(volume: &VolumeId, name: &str, now: &DmState, below: DevNum, size: Bytes, mode: DmMode) -> Result<()> {
    let Some((device, has)) = shape(&now.table).transpose().map_err(|()| foreign(volume, name))? else { return Ok(()) };
    if device != below.to_string() {
        return Err(Error::new(
            Kind::InUse,
            format!(
                "the device {name} of volume {volume} is on top of block device {device}, but the volume's loop device is {below}; stop every pod that uses the volume and unstage it"
            ),
        ));
    }
    if has > size {
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "the device {name} of volume {volume} has {} bytes, but the loop device below it has {}: the loop device was truncated; nothing was changed; stop every pod that uses the volume and unstage it",
                has.get(),
                size.get()
            ),
        ));
    }
    if now.mode != mode && now.open_count > 0 {
        return Err(Error::new(
            Kind::InUse,
            format!(
                "another program changed the read-only flag of the device {name} of volume {volume}, and the device is open; nothing was changed; stop every pod that uses the volume and unstage it"
            ),
        ));
    }
    Ok(())
}

fn foreign(volume: &VolumeId, name: &str) -> Error {
    Error::new(
        Kind::Corrupt,
        format!(
            "the device {name} of volume {volume} has a table that this driver did not load; nothing was changed; inspect it with `dmsetup table {name}`, stop every pod that uses the volume, and run `dmsetup remove {name}`"
        ),
    )
}

fn unlike(volume: &VolumeId, name: &str, what: &str) -> Error {
    let why = format!(
        "the device {name} of volume {volume} was loaded, but {what}; check whether another program changes it, then retry"
    );
    Error::new(Kind::Internal, why)
}

fn create_failed(volume: &VolumeId, name: &str, error: std::io::Error) -> Error {
    let what = format!("create the device {name} of volume {volume}");
    match error.raw_os_error() {
        Some(libc::EBUSY) => Error::new(
            Kind::Busy,
            format!(
                "{what}: another call is creating it, or another device has its name (`dmsetup info {name}`); retry"
            ),
        )
        .because(error),
        _ => Error::new(Kind::Internal, what).because(error),
    }
}

fn load_failed(volume: &VolumeId, name: &str, below: DevNum, error: std::io::Error) -> Error {
    let what = format!("load the table of {name} over block device {below}");
    match error.raw_os_error() {
        Some(libc::EBUSY) => Error::new(
            Kind::InUse,
            format!("{what}: a mount or another block device uses the loop device of volume {volume} exclusively; remove that, then retry"),
        )
        .because(error),
        _ => Error::new(Kind::Internal, what).because(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> VolumeId {
        format!("hf1_00000000000000ab_{}", ObjectUuid::of_volume("a")).parse().unwrap()
    }

    fn loop_device() -> DevNum {
        DevNum { major: 7, minor: 3 }
    }

    fn target(start: u64, length: u64, kind: &str, parameters: &str) -> DmTarget {
        DmTarget { start, length, kind: kind.into(), parameters: parameters.into() }
    }

    #[test]
    fn the_table_has_two_targets_and_shows_every_byte_once() {
        let made = table(&volume(), loop_device(), Bytes::new(1 << 20)).unwrap();
        assert_eq!(made, [target(0, 2040, "linear", "7:3 0"), target(2040, 8, "linear", "7:3 2040")]);
        assert_eq!(shape(&made), Some(Ok(("7:3", Bytes::new(1 << 20)))));
        for size in [0, 4096, 4096 * 2 + 512, (1 << 20) - 1] {
            assert_eq!(
                table(&volume(), loop_device(), Bytes::new(size)).unwrap_err().kind(),
                Kind::OutOfRange,
                "{size}"
            );
        }
        assert!(table(&volume(), loop_device(), Bytes::new(8192)).is_ok());
    }

    #[test]
    fn a_table_that_is_not_ours_is_told() {
        assert_eq!(shape(&[]), None);
        for other in [
            vec![target(0, 2048, "linear", "7:3 0")],
            vec![target(0, 8, "linear", "7:3 8"), target(8, 8, "linear", "7:3 0")],
            vec![target(0, 8, "linear", "7:3 0"), target(8, 8, "linear", "7:4 8")],
            vec![target(0, 8, "error", ""), target(8, 8, "error", "")],
            vec![target(0, 8, "crypt", "7:3 0"), target(8, 8, "linear", "7:3 8")],
            vec![target(8, 8, "linear", "7:3 8"), target(16, 8, "linear", "7:3 16")],
        ] {
            assert_eq!(shape(&other), Some(Err(())), "{other:?}");
        }
    }

    #[test]
    fn a_device_is_changed_only_if_it_is_this_volume_s_and_grows() {
        let state = |table: Vec<DmTarget>, open_count| DmState {
            number: DevNum { major: 252, minor: 5000 },
            open_count,
            is_suspended: false,
            mode: DmMode::Writable,
            table,
        };
        let of = |size| table(&volume(), loop_device(), Bytes::new(size)).unwrap();
        let may = |state: &DmState, below, size, mode| {
            may_change(&volume(), "a", state, below, Bytes::new(size), mode).map_err(|error| error.kind())
        };
        let small = state(of(8192), 1);
        assert_eq!(may(&small, loop_device(), 16384, DmMode::Writable), Ok(()));
        assert_eq!(may(&small, loop_device(), 16384, DmMode::ReadOnly), Err(Kind::InUse));
        assert_eq!(may(&state(of(8192), 0), loop_device(), 8192, DmMode::ReadOnly), Ok(()));
        assert_eq!(may(&state(of(16384), 0), loop_device(), 8192, DmMode::Writable), Err(Kind::Corrupt));
        let elsewhere = DevNum { major: 7, minor: 4 };
        assert_eq!(may(&small, elsewhere, 16384, DmMode::Writable), Err(Kind::InUse));
        assert_eq!(may(&state(Vec::new(), 0), elsewhere, 8192, DmMode::ReadOnly), Ok(()), "half made");
        let error = vec![target(0, 16, "error", "")];
        assert_eq!(may(&state(error, 0), loop_device(), 8192, DmMode::Writable), Err(Kind::Corrupt));
    }

    #[test]
    fn a_dm_uuid_names_pool_and_volume_and_fits() {
        let writable = Linear::new(Os::new());
        let read_only = writable.read_only();
        let uuid = writable.uuid_of(&volume());
        for linear in [&writable, &read_only] {
            let uuid = linear.uuid_of(&volume());
            assert_eq!(linear.volume_in(&uuid), Some(volume()));
            assert!(uuid.len() < 129 && linear.name(&volume()).len() < 128);
        }
        assert_eq!(read_only.volume_in(&uuid), None, "one of each is told apart");
        assert_eq!(writable.volume_in(&read_only.uuid_of(&volume())), None);
        for other in
            ["", "HOLDFAST-RAW-", "LVM-abc", "HOLDFAST-RAW-x-y", "CRYPT-LUKS2-x-y", &uuid[1..], &format!("{uuid}0")]
        {
            assert_eq!(writable.volume_in(other), None, "{other}");
        }
    }

    #[test]
    fn without_device_mapper_nothing_is_made_and_nothing_has_to_go() {
        let linear = Linear::new(Os::new());
        if matches!(linear.support().unwrap(), DmSupport::Yes(_)) {
            return;
        }
        assert_eq!(linear.device(&volume()).unwrap(), None);
        assert_eq!(linear.release(&volume()).unwrap(), Changed::No);
        assert_eq!(linear.resize(&volume(), loop_device(), Bytes::new(8192)).unwrap(), Changed::No);
        let refused = linear.ensure(&volume(), loop_device(), Bytes::new(8192)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Precondition);
        assert_eq!(linear.all().unwrap(), Vec::new());
    }
}
