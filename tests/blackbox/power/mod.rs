//! Power loss, a failing disk, and interrupted mkfs: the pool's filesystem is on a disk in user space that logs every
//! write and flush, so that the state after any power cut can be rebuilt.

mod failing;
mod hanging;
mod interrupted;
mod layer;
mod life;
mod log;
mod loss;

use std::fs;

use layer::Layer;

use crate::harness::{PoolFs, Scratch, World};

/// A running driver on a pool on a recorded disk, and the number of the disk's flushes before the driver started.
fn recorded(kind: PoolFs, size: u64) -> (World, Layer, usize) {
    let layer = Layer::new(size);
    kind.make(&layer.disk());
    let scratch = Scratch::over(&layer.disk(), kind);
    nix::unistd::syncfs(std::fs::File::open(scratch.root()).unwrap()).unwrap();
    let born = layer.flushes();
    let mut world = World::over(scratch);
    world.start();
    (world, layer, born)
}

/// How many power cuts a run tries besides those right after each answer; `make power N=` sets it.
fn more() -> usize {
    std::env::var("HOLDFAST_POWER_POINTS").map_or(8, |text| text.parse().expect("a number"))
}

#[test]
fn a_filesystem_s_fsync_reaches_the_recorded_disk() {
    for kind in [PoolFs::Xfs, PoolFs::Ext4] {
        let layer = Layer::new(1 << 30);
        kind.make(&layer.disk());
        let scratch = Scratch::over(&layer.disk(), kind);
        let before = (layer.flushes(), layer.requests());
        let path = scratch.root().join("file");
        fs::write(&path, vec![7; 100_000]).unwrap();
        fs::File::open(&path).unwrap().sync_all().unwrap();
        assert!(layer.flushes() > before.0, "{kind:?}: an fsync that does not reach the disk proves nothing");
        assert!(layer.requests() > before.1 + 1);
        drop(scratch);
        let log = layer.into_log();
        assert!(log.bytes() > 100_000);
    }
}
