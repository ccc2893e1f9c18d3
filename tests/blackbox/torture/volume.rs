//! A volume and a snapshot as their caller knows them, and the steps of their lifecycles.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use holdfast::csi::proto as p;
use tonic::Code;

use crate::harness::calls::{from_snapshot, from_volume};
use crate::harness::{
    MIB, PoolFs, Use, Vol, World, can_grow_ext4_online, create_request, device_size, fs_size, loops_on,
};

use super::caller::{Caller, PAUSE};
use super::content::Content;

const VOLUMES: usize = 3;
const SNAPSHOTS: usize = 3;
/// Names are reused when they are free.
const NAMES: u64 = 5;
/// The pod whose path is expanded, and another one.
const PODS: [&str; 2] = ["pod", "second"];
const GROWTH: i64 = 32 * MIB;
const MOST_GROWTH: i64 = 96 * MIB;

pub(super) struct Volume {
    pub(super) name: String,
    pub(super) vol: Vol,
    pub(super) content: Content,
    published: bool,
    pub(super) staged: bool,
    pods: BTreeSet<&'static str>,
    /// Expanded, and the node was not called yet.
    unfitted: bool,
}

pub(super) struct Snapshot {
    name: String,
    pub(super) id: String,
    size: i64,
    content: Content,
}

impl Volume {
    /// Where its content is visible.
    pub(super) fn roots(&self, world: &World) -> Vec<PathBuf> {
        self.pods.iter().map(|pod| world.target(&self.vol, pod)).collect()
    }

    /// Where something must be mounted.
    pub(super) fn mounts(&self, world: &World) -> Vec<PathBuf> {
        let staging = (self.staged && self.vol.kind != Use::Block).then(|| world.staging(&self.vol));
        self.roots(world).into_iter().chain(staging).collect()
    }

    /// Whether this process may grow its filesystem while it is mounted.
    fn grows_in_use(&self) -> bool {
        self.vol.kind != Use::Ext4 || can_grow_ext4_online()
    }
}

impl Caller {
    /// One random step; if it is not possible now, another volume makes a step forward.
    pub(super) fn step(&mut self) {
        let choice = self.dice.below(100);
        if self.volumes.is_empty() || (choice < 16 && self.volumes.len() < VOLUMES) {
            return self.create();
        }
        let index = self.dice.index(self.volumes.len());
        // While it is out of the list, it is not compared during a call for it.
        let mut volume = self.volumes.swap_remove(index);
        match choice {
            0..=29 => self.forward(&mut volume),
            30..=49 => self.write(&mut volume),
            50..=57 => self.back(&mut volume),
            58..=66 => self.snapshot(&mut volume),
            67..=75 if self.volumes.len() + 1 < VOLUMES => self.clone_of(&volume),
            76..=83 => self.expand(&mut volume),
            84..=86 => self.refused_delete(&volume),
            87..=93 => return self.delete(volume),
            94..=97 if !self.snapshots.is_empty() => {
                let index = self.dice.index(self.snapshots.len());
                self.drop_snapshot(index);
            }
            _ => self.forward(&mut volume),
        }
        self.volumes.push(volume);
    }

    /// Nothing is left of this caller's objects.
    pub(super) fn wind_up(&mut self) {
        while let Some(volume) = self.volumes.pop() {
            self.delete(volume);
        }
        while !self.snapshots.is_empty() {
            self.drop_snapshot(0);
        }
    }

    fn free_name(&self, what: &str, taken: impl Fn(&str) -> bool) -> String {
        let first = self.dice.roll();
        let name = |step: u64| format!("{what}-{}-{}", self.number, first.wrapping_add(step) % NAMES);
        (0..NAMES).map(name).find(|name| !taken(name)).unwrap()
    }

    /// Blank, or from one of the caller's snapshots.
    fn create(&mut self) {
        if !self.snapshots.is_empty() && self.dice.one_in(2) {
            let snapshot = &self.snapshots[self.dice.index(self.snapshots.len())];
            let (source, size, content) = (from_snapshot(&snapshot.id), snapshot.size, snapshot.content.clone());
            self.created(source, size, content, &[]);
        } else {
            let kind = [Use::Ext4, Use::Xfs, Use::Block, Use::Block][self.dice.index(4)];
            self.created(None, kind.size(), Content::blank(kind), &[]);
        }
    }

    fn clone_of(&mut self, source: &Volume) {
        if self.pool == PoolFs::Ext4 && source.published {
            return;
        }
        self.created(from_volume(&source.vol), source.vol.size, source.content.clone(), &[&source.name]);
    }

    fn created(&mut self, source: Option<p::VolumeContentSource>, size: i64, content: Content, taken: &[&str]) {
        let kind = content.kind;
        let filled = source.is_some();
        let name = self
            .free_name("pvc", |name| taken.contains(&name) || self.volumes.iter().any(|volume| volume.name == name));
        let size = if filled && self.dice.one_in(3) { size + GROWTH } else { size };
        let mut request = p::CreateVolumeRequest { volume_content_source: source, ..create_request(&name, kind, size) };
        let thin = self.dice.one_in(3);
        if thin {
            request.parameters.insert("provisioning".into(), "thin".into());
        }
        let vol = self.until_ok("CreateVolume", || (), |world| world.try_create(kind, &request));
        if self.dice.one_in(4) {
            let same = self.until_ok("CreateVolume", || (), |world| world.try_create(kind, &request));
            assert_eq!((&same.id, same.size), (&vol.id, vol.size), "caller {}: {name} was made twice", self.number);
        }
        assert_eq!(vol.size, size, "caller {}: {name}", self.number);
        self.shared.count(|figures| {
            *figures.volumes.entry(if kind == Use::Block { "block" } else { kind.fs_type() }).or_default() += 1;
            figures.thin += usize::from(thin);
            figures.filled += usize::from(filled);
        });
        let (published, staged, unfitted) = (false, false, false);
        self.volumes.push(Volume { name, vol, content, published, staged, pods: BTreeSet::new(), unfitted });
    }

    /// Attached, staged, in a pod, in a second one.
    fn forward(&self, volume: &mut Volume) {
        let vol = volume.vol.clone();
        if !volume.published {
            self.ask("ControllerPublish", |world| world.publish(&vol));
            volume.published = true;
        } else if !volume.staged {
            self.ask("NodeStage", |world| world.stage(&vol));
            volume.staged = true;
        } else if let Some(pod) = PODS.into_iter().find(|pod| !volume.pods.contains(pod)) {
            self.ask("NodePublish", |world| world.bind(&vol, pod).map(drop));
            volume.pods.insert(pod);
            self.check(volume);
            self.fit(volume);
        } else {
            self.check(volume);
        }
    }

    fn back(&self, volume: &mut Volume) {
        let vol = volume.vol.clone();
        if let Some(pod) = volume.pods.pop_last() {
            self.ask("NodeUnpublish", |world| world.unbind(&vol, pod));
            let target = self.world.target(&vol, pod);
            assert!(!target.exists(), "caller {}: unpublished, {} is there", self.number, target.display());
            fs::remove_dir(target.parent().unwrap()).unwrap();
        } else if volume.staged {
            volume.staged = false;
            self.ask("NodeUnstage", |world| world.unstage(&vol));
            let image = fs::metadata(self.world.image(&vol)).unwrap();
            let mut loops = loops_on(image.dev());
            loops.retain(|status| status.backing_inode == image.ino());
            assert!(loops.is_empty(), "LEAKED: caller {}: unstaged, and {loops:?}", self.number);
            let staging = self.world.staging(&vol);
            fs::remove_dir(&staging).unwrap_or_else(|error| {
                panic!("LEAKED: caller {}: unstaged, and {}: {error}", self.number, staging.display())
            });
        } else if volume.published {
            self.ask("ControllerUnpublish", |world| world.unpublish(&vol));
            volume.published = false;
        }
    }

    fn write(&self, volume: &mut Volume) {
        let Some(root) = volume.roots(&self.world).pop() else { return self.forward(volume) };
        for _ in 0..=self.dice.below(3) {
            let slot = volume.content.slot(volume.vol.size, self.dice.roll());
            volume.content.write(&root, slot, self.dice.roll());
        }
    }

    /// While the call is repeated, the pods continue to write: the snapshot may be before or after their writes.
    fn snapshot(&mut self, volume: &mut Volume) {
        let at_rest_only = self.pool == PoolFs::Ext4 && volume.published;
        if at_rest_only || self.snapshots.len() == SNAPSHOTS {
            return self.forward(volume);
        }
        let name = self.free_name("snap", |name| self.snapshots.iter().any(|snapshot| snapshot.name == name));
        let (vol, before) = (volume.vol.clone(), volume.content.clone());
        let mut write_on = || {
            let slot = volume.content.free_slot(vol.size, self.dice.roll());
            if let (Some(root), Some(slot)) = (volume.roots(&self.world).pop(), slot) {
                volume.content.write(&root, slot, self.dice.roll());
            }
        };
        let made = loop {
            let made = self.until_ok("CreateSnapshot", &mut write_on, |world| world.try_snapshot(&name, &vol));
            if made.ready_to_use {
                break made;
            }
            std::thread::sleep(PAUSE);
        };
        assert_eq!((&made.source_volume_id, made.size_bytes), (&vol.id, vol.size), "caller {}: {name}", self.number);
        let content = before.cut(&volume.content);
        self.shared.count(|figures| figures.snapshots += 1);
        self.snapshots.push(Snapshot { name, id: made.snapshot_id, size: vol.size, content });
    }

    fn drop_snapshot(&mut self, index: usize) {
        let id = self.snapshots.swap_remove(index).id;
        self.ask("DeleteSnapshot", |world| world.drop_snapshot(&id));
    }

    fn expand(&self, volume: &mut Volume) {
        let size = volume.vol.size + GROWTH;
        // An XFS in use that was just expanded is not expanded again for half a minute.
        let slow = volume.vol.kind == Use::Xfs && volume.content.fitted.is_some_and(|(size, _)| size > Use::Xfs.size());
        if size > volume.vol.kind.size() + MOST_GROWTH || (slow && !self.dice.one_in(6)) {
            return self.forward(volume);
        }
        let vol = volume.vol.clone();
        let answer = self.until_ok("ControllerExpand", || (), |world| world.expand(&vol, size));
        assert_eq!(answer.capacity_bytes, size, "caller {}: {}", self.number, volume.name);
        self.shared.count(|figures| figures.growths += 1);
        volume.vol.size = size;
        volume.unfitted = true;
        self.fit(volume);
    }

    /// The node grows the filesystem on the device; then both sizes match.
    fn fit(&self, volume: &mut Volume) {
        if !volume.pods.contains(PODS[0]) || !volume.grows_in_use() {
            return;
        }
        let vol = volume.vol.clone();
        if volume.unfitted {
            let size = self.until_ok("NodeExpand", || (), |world| world.node_expand(&vol, vol.size));
            assert_eq!(size, vol.size, "caller {}: {}", self.number, volume.name);
            volume.unfitted = false;
        }
        let root = self.world.target(&vol, PODS[0]);
        if vol.kind == Use::Block {
            assert_eq!(device_size(&root), vol.size, "caller {}: the device of {}", self.number, volume.name);
            return;
        }
        let found = i64::try_from(fs_size(&root)).unwrap();
        if let Some((size, filesystem)) = volume.content.fitted {
            let least = filesystem + (vol.size - size) * 8 / 10;
            assert!(found >= least, "caller {}: {}: {found} is less than {least}", self.number, volume.name);
        }
        volume.content.fitted = Some((vol.size, found));
    }

    /// While it is attached, no caller can delete the volume.
    fn refused_delete(&self, volume: &Volume) {
        if !volume.published {
            return;
        }
        let said = self.until_ok(
            "DeleteVolume in use",
            || (),
            |world| match world.delete(&volume.vol) {
                Err(status) if status.code() == Code::FailedPrecondition => Ok(true),
                other => other.map(|()| false),
            },
        );
        assert!(said, "LOST: caller {}: {} was deleted in use", self.number, volume.vol.id);
        self.shared.count(|figures| figures.deletes_refused += 1);
        self.check(volume);
    }

    /// Read once more, unpublished and unstaged everywhere, deleted.
    fn delete(&self, mut volume: Volume) {
        self.check(&volume);
        while volume.published {
            self.back(&mut volume);
        }
        let vol = volume.vol;
        self.ask("DeleteVolume", |world| world.delete(&vol));
        let left = self.world.image(&vol);
        assert!(!left.exists(), "LEAKED: caller {}: deleted, {} is there", self.number, left.display());
    }
}
