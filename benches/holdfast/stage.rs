//! Bringing a volume to its pod and away again, against the commands this needs.

use crate::bare::Bare;
use crate::figures::{Pair, ms, print};
use crate::ground::ScratchPlace;
use crate::harness::{MIB, Use, World, create_request};

const TIMES: usize = 9;
const SIZE: i64 = 1024 * MIB;

/// Calls, and the commands that do the same.
const ROWS: [(&str, &str); 5] = [
    ("NodeStage, never used", "losetup, mkfs, mount"),
    ("NodePublish", "mount --bind"),
    ("NodeUnpublish", "umount"),
    ("NodeUnstage", "umount, losetup -d"),
    ("NodeStage, formatted", "losetup, mount"),
];

pub(crate) fn run() {
    for ground in ScratchPlace::ALL {
        ground.with(16 << 30, |world| on(world, ground));
    }
}

fn on(world: &World, ground: ScratchPlace) {
    let mut rows = Vec::new();
    for kind in Use::FILESYSTEMS {
        let mut pairs: [Pair; 5] = Default::default();
        for time in 0..TIMES {
            ours(world, kind, time, &mut pairs);
            bare(world, kind, &mut pairs);
        }
        for ((call, commands), pair) in ROWS.iter().zip(&pairs) {
            let mut row = pair.row(&format!("{} {call}", kind.fs_type()), ms);
            row.insert(2, (*commands).to_owned());
            rows.push(row);
        }
    }
    print(
        &format!("Stage and publish: thick volumes of 1 GiB, pool on XFS on {}, {TIMES} times in turns", ground.name()),
        &["call", "driver", "bare commands", "they take", "ratio"],
        rows,
    );
}

fn ours(world: &World, kind: Use, time: usize, pairs: &mut [Pair; 5]) {
    let vol = world.try_create(kind, &create_request(&format!("{kind:?}-{time}"), kind, SIZE)).unwrap();
    world.publish(&vol).unwrap();
    let (stage, bind) = (world.stage_request(&vol), world.bind_request(&vol, "pod"));
    pairs[0].ours.time(|| world.node_stage_volume(stage.clone())).unwrap();
    pairs[1].ours.time(|| world.node_publish_volume(bind)).unwrap();
    pairs[2].ours.time(|| world.unbind(&vol, "pod")).unwrap();
    pairs[3].ours.time(|| world.unstage(&vol)).unwrap();
    pairs[4].ours.time(|| world.node_stage_volume(stage)).unwrap();
    world.unstage(&vol).unwrap();
    world.unpublish(&vol).unwrap();
    world.delete(&vol).unwrap();
}

fn bare(world: &World, kind: Use, pairs: &mut [Pair; 5]) {
    let mut bare = Bare::new(&world.scratch.root(), world.scratch.path(), "bare", SIZE);
    pairs[0].bare.time(|| {
        bare.attach();
        bare.make(kind);
        bare.mount();
    });
    pairs[1].bare.time(|| bare.bind());
    pairs[2].bare.time(|| bare.unbind());
    pairs[3].bare.time(|| {
        bare.unmount();
        bare.detach();
    });
    pairs[4].bare.time(|| {
        bare.attach();
        bare.mount();
    });
    bare.unmount();
    bare.detach();
    bare.remove();
}
