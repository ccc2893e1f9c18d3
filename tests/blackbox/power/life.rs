//! A volume lifecycle; for each step it notes the disk's flushes before it began and when it was answered.

use std::collections::HashMap;

use crate::harness::{MIB, PoolFs, Use, Vol, World, create_request, write_tree};

use super::layer::Layer;

/// The effect of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Create,
    Publish,
    Unpublish,
    /// With the UUID that was recorded.
    Stage(String),
    /// A tree of files, each fsynced; or that of the source snapshot.
    Write(u64),
    Expand(i64),
    Delete,
    /// A snapshot of the volume: name, id, and the trees in it.
    Snapshot(&'static str, String, Vec<u64>),
    DropSnapshot(String),
}

/// The possible progress of a step in a state of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// Nothing of it can exist.
    Not,
    /// It was in progress: all of it or nothing exists.
    Maybe,
    /// It was answered: it must exist.
    Done,
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) volume: String,
    pub(super) what: What,
    begun: usize,
    pub(super) done: usize,
}

impl Step {
    /// In the state after so many flushes. A step that was answered before more flushes came is in it: nothing later
    /// can have made it durable.
    pub(super) fn at(&self, flushes: usize) -> Stand {
        match (self.done <= flushes, self.begun <= flushes) {
            (true, _) => Stand::Done,
            (false, true) => Stand::Maybe,
            (false, false) => Stand::Not,
        }
    }
}

/// All of it.
pub(super) struct Life {
    /// The pool's filesystem.
    pub(super) pool: PoolFs,
    pub(super) steps: Vec<Step>,
    pub(super) volumes: HashMap<String, Vol>,
}

impl Life {
    fn step<T>(&mut self, layer: &Layer, volume: &str, act: impl FnOnce() -> (What, T)) -> T {
        let begun = layer.flushes();
        let (what, value) = act();
        self.steps.push(Step { volume: volume.into(), what, begun, done: layer.flushes() });
        value
    }

    fn create(&mut self, world: &World, layer: &Layer, name: &str, kind: Use) -> Vol {
        let vol = self.step(layer, name, || (What::Create, world.create(name, kind)));
        self.volumes.insert(name.into(), vol.clone());
        vol
    }

    fn attach(&mut self, world: &World, layer: &Layer, name: &str) {
        let vol = self.volumes[name].clone();
        self.step(layer, name, || (What::Publish, world.publish(&vol).unwrap()));
        self.step(layer, name, || {
            world.stage(&vol).unwrap();
            (What::Stage(world.record(&vol)["format"]["uuid"].as_str().unwrap().into()), ())
        });
        world.bind(&vol, "pod").unwrap();
    }

    fn detach(&mut self, world: &World, layer: &Layer, name: &str) {
        let vol = self.volumes[name].clone();
        world.unbind(&vol, "pod").unwrap();
        world.unstage(&vol).unwrap();
        self.step(layer, name, || (What::Unpublish, world.unpublish(&vol).unwrap()));
    }

    fn write(&mut self, world: &World, layer: &Layer, name: &str, seed: u64) {
        let path = world.target(&self.volumes[name], "pod");
        self.step(layer, name, || (What::Write(seed), write_tree(&path, seed)));
    }

    fn snapshot(&mut self, world: &World, layer: &Layer, name: &str, called: &'static str, trees: &[u64]) -> String {
        let vol = self.volumes[name].clone();
        self.step(layer, name, || {
            let id = world.snapshot(called, &vol).snapshot_id;
            (What::Snapshot(called, id.clone(), trees.to_vec()), id)
        })
    }

    /// Everything a driver does, on a pool on `kind`.
    pub(super) fn of(world: &World, layer: &Layer, kind: PoolFs) -> Self {
        let mut life = Self { pool: kind, steps: Vec::new(), volumes: HashMap::new() };
        life.create(world, layer, "a", Use::Ext4);
        life.attach(world, layer, "a");
        life.write(world, layer, "a", 10);
        if kind == PoolFs::Xfs {
            // Reflinks: a snapshot of a volume in use.
            life.snapshot(world, layer, "a", "in-use", &[10]);
        }
        life.detach(world, layer, "a");
        let snapshot = life.snapshot(world, layer, "a", "at-rest", &[10]);
        life.attach(world, layer, "a");
        life.write(world, layer, "a", 20);
        let a = life.volumes["a"].clone();
        life.step(layer, "a", || (What::Expand(48 * MIB), world.expand(&a, 48 * MIB).map(|_| ()).unwrap()));
        life.write(world, layer, "a", 30);

        life.create(world, layer, "x", Use::Xfs);
        life.attach(world, layer, "x");
        life.write(world, layer, "x", 40);

        let restored = life.step(layer, "r", || (What::Create, world.restore("r", Use::Ext4, &snapshot, 32 * MIB)));
        life.volumes.insert("r".into(), restored);
        life.step(layer, "r", || (What::Write(10), ()));
        life.attach(world, layer, "r");
        life.write(world, layer, "r", 50);

        let doomed = life.create(world, layer, "d", Use::Ext4);
        life.attach(world, layer, "d");
        life.detach(world, layer, "d");
        life.step(layer, "d", || (What::Delete, world.delete(&doomed).unwrap()));
        life.step(layer, "a", || {
            world.drop_snapshot(&snapshot).unwrap();
            (What::DropSnapshot(snapshot.clone()), ())
        });
        life.create(world, layer, "last", Use::Ext4);
        life.detach(world, layer, "x");
        life
    }

    /// The steps of a volume.
    pub(super) fn steps_of<'a>(&'a self, volume: &'a str) -> impl Iterator<Item = &'a Step> {
        self.steps.iter().filter(move |step| step.volume == volume)
    }

    /// The progress of the first step for which `is` is true.
    pub(super) fn stand(&self, volume: &str, flushes: usize, is: impl Fn(&What) -> bool) -> Stand {
        self.steps_of(volume).find(|step| is(&step.what)).map_or(Stand::Not, |step| step.at(flushes))
    }

    /// The request that created a volume.
    pub(super) fn request(&self, volume: &str) -> holdfast::csi::proto::CreateVolumeRequest {
        let vol = &self.volumes[volume];
        create_request(volume, vol.kind, vol.size)
    }
}
