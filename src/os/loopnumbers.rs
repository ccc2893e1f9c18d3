//! The loop numbers that may be used. A number identifies a device node, and a container that still has a device node
//! sees the next image with that number. A number is therefore skipped
//!
//! - while it is reserved for another volume: its record says that a pod may have the device node
//!   ([`Os::reserve_loop`]);
//! - while its device node is bind-mounted in any readable mount namespace, unless this process detached the device,
//!   verified that it was idle, and no image was attached since (according to the kernel's sequence number).
//!
//! A scan for bind-mounted nodes reads the mounts of every container. If many volumes are attached at once, as after a
//! start of the node, the calls that wait for a scan share the next one. It begins after each of these calls, so it finds
//! the same as a scan of their own.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};

use super::loopview::{backing, diskseq, loop_numbers};
use super::users::bound_block_devices;
use super::{DevNum, LoopDevice, Os, ioctl};

/// The numbers that this process knows.
#[derive(Debug, Default)]
pub(super) struct LoopNumbers {
    /// The owner of each reserved number.
    reserved: HashMap<LoopDevice, String>,
    /// Detached by us, with the sequence number after that.
    cleared: HashMap<LoopDevice, u64>,
}

/// The devices whose nodes are bind-mounted somewhere.
pub(super) type Bound = HashSet<DevNum>;

impl Os {
    /// Reserves a number for `owner`, until [`Os::release_loops`]. A number reserved for another owner stays with that
    /// owner.
    pub fn reserve_loop(&self, device: LoopDevice, owner: &str) {
        self.numbers(|numbers| {
            numbers.reserved.entry(device).or_insert_with(|| owner.to_owned());
        });
    }

    /// Releases every number reserved for an owner.
    pub fn release_loops(&self, owner: &str) {
        self.numbers(|numbers| numbers.reserved.retain(|_, of| of != owner));
    }

    /// Records that this process verified the device to be idle and detached it.
    pub(super) fn cleared(&self, device: LoopDevice) {
        if let Ok(Some(sequence)) = diskseq(device) {
            self.numbers(|numbers| numbers.cleared.insert(device, sequence));
        }
    }

    /// The numbers that may be used for `owner`, one after another.
    pub(super) fn free_numbers<'a>(&'a self, owner: &'a str) -> FreeNumbers<'a> {
        FreeNumbers { os: self, owner, bound: None, tried: HashSet::new() }
    }

    /// Whose a number is.
    #[cfg(test)]
    pub(crate) fn loop_owner(&self, device: LoopDevice) -> Option<String> {
        self.numbers(|numbers| numbers.reserved.get(&device).cloned())
    }

    fn numbers<T>(&self, act: impl FnOnce(&mut LoopNumbers) -> T) -> T {
        act(&mut self.inner.loop_numbers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) struct FreeNumbers<'a> {
    os: &'a Os,
    owner: &'a str,
    /// Read once, on first use.
    bound: Option<Arc<Bound>>,
    tried: HashSet<LoopDevice>,
}

impl FreeNumbers<'_> {
    /// The next number to try: the kernel's choice if it may be used, otherwise another free one, otherwise a new
    /// device.
    pub(super) fn next(&mut self, control: &File) -> io::Result<LoopDevice> {
        // The owner's own number first: a pod that still has the device node then sees its own volume again.
        let own = self.os.numbers(|numbers| {
            let own = numbers.reserved.iter().filter(|(_, of)| of.as_str() == self.owner);
            own.map(|(device, _)| *device).collect::<Vec<_>>()
        });
        for device in own {
            if self.tried.insert(device) && device.number().is_some() && backing(device)?.is_none() {
                return Ok(device);
            }
        }
        let first = LoopDevice(ioctl::loop_ctl_get_free(control.as_fd())?);
        // If another process took the number meanwhile, the kernel returns the same number again; it is not excluded.
        if self.usable(first)? {
            return Ok(first);
        }
        for device in loop_numbers()? {
            if !self.tried.contains(&device) && backing(device)?.is_none() && self.usable(device)? {
                self.tried.insert(device);
                return Ok(device);
            }
        }
        loop {
            let device = LoopDevice(ioctl::loop_ctl_add_any(control.as_fd())?);
            if self.usable(device)? {
                return Ok(device);
            }
        }
    }

    fn usable(&mut self, device: LoopDevice) -> io::Result<bool> {
        let sequence = diskseq(device)?;
        let (reserved, cleared) = self.os.numbers(|numbers| {
            let reserved = numbers.reserved.get(&device).map(|of| of == self.owner);
            (reserved, sequence.is_some() && numbers.cleared.get(&device).copied() == sequence)
        });
        match reserved {
            // The owner's own: a pod that still has the device node sees its own volume.
            Some(own) => Ok(own),
            None if cleared => Ok(true),
            None => {
                if self.bound.is_none() {
                    self.bound = Some(self.os.inner.bound_nodes.share(bound_block_devices)?);
                }
                let bound = self.bound.as_ref();
                Ok(device.number().is_none_or(|number| bound.is_none_or(|bound| !bound.contains(&number))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;
    use crate::os::MountFlags;

    fn control() -> File {
        OpenOptions::new().read(true).write(true).open("/dev/loop-control").unwrap()
    }

    /// The free numbers that were there. Other tests take some meanwhile.
    fn free(control: &File) -> Vec<LoopDevice> {
        ioctl::loop_ctl_get_free(control.as_fd()).unwrap();
        loop_numbers().unwrap().into_iter().filter(|device| backing(*device).unwrap().is_none()).collect()
    }

    #[test]
    fn a_reserved_number_is_its_owner_s_and_nobody_else_s() {
        let (os, control) = (Os::new(), control());
        let all = free(&control);
        all.iter().for_each(|device| os.reserve_loop(*device, "a"));
        let others = os.free_numbers("b").next(&control).unwrap();
        assert!(!all.contains(&others), "{others:?}");
        os.reserve_loop(others, "b");
        os.reserve_loop(others, "a");
        assert_eq!(os.loop_owner(others).unwrap(), "b", "the first one keeps it");
        os.release_loops("a");
        assert!(all.iter().all(|device| os.loop_owner(*device).is_none()));
        // Its own comes before the kernel's choice.
        let os = loop {
            let (os, own) = (Os::new(), *free(&control).last().unwrap());
            os.reserve_loop(own, "a");
            let next = os.free_numbers("a").next(&control).unwrap();
            if next == own {
                break os;
            }
            assert!(backing(own).unwrap().is_some(), "{next:?} instead of {own:?}");
        };
        os.release_loops("a");
    }

    #[test]
    fn a_bound_number_is_used_only_when_nothing_was_attached_since_this_process_freed_it() {
        let os = Os::new();
        os.own_mounts().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node");
        File::create(&path).unwrap();
        let device = *free(&control()).last().unwrap();
        os.bind(&device.path(), &path, MountFlags::default()).unwrap();
        let usable = || os.free_numbers("a").usable(device).unwrap();
        assert!(!usable(), "its node is bound");
        loop {
            let sequence = diskseq(device).unwrap();
            os.numbers(|numbers| numbers.cleared.insert(device, sequence.unwrap() - 1));
            assert!(!usable(), "something was attached since");
            os.cleared(device);
            // Unless another test has it now.
            if usable() {
                break;
            }
            assert_ne!(diskseq(device).unwrap(), sequence);
        }
        assert!(os.unmount(&path).unwrap());
    }
}
