//! Every operation of the driver, one test each.

use std::fs;
use std::path::Path;

use super::matrix::{GiveUp, Operation, walk};
use super::world::{Answer, BLOCK, EXT4, Shape, World, XFS, is_marked, mark, thick, thin};
use holdfast::home::{ReadOnly, Source};
use holdfast::testing::scratch::PoolFs;
use holdfast::types::OnDelete;

fn nothing(_world: &World) {}

fn no_answer(_world: &World) -> Answer {
    Ok(())
}

const PLAIN: Operation = Operation {
    name: "",
    ground: PoolFs::Xfs,
    mib: 512,
    setup: nothing,
    run: no_answer,
    inverse: no_answer,
    give_up: GiveUp::Yes,
    proof: nothing,
    teardown: no_answer,
};

const SMALL: Shape = thick(16, EXT4);
const ZERO: Shape = Shape { on_delete: OnDelete::Zero, ..thick(16, BLOCK) };

/// Everything that may be there of the volume `v` is taken away.
fn gone(w: &World) -> Answer {
    w.unpublish("v")?;
    w.unstage("v")?;
    w.revoke("v")?;
    w.delete("v")
}

/// From now on records are replaced from the reserve, which has become what the last record took.
fn full(w: &World) -> Answer {
    w.hand().fill_pool();
    w.revoke("v")
}

fn room_and_delete(w: &World) -> Answer {
    w.hand().make_room();
    w.delete("v")
}

pub(super) fn granted(w: &World, shape: Shape) -> Answer {
    w.create("v", shape, None)?;
    w.grant("v", shape.mode)
}

fn staged(w: &World, shape: Shape) -> Answer {
    granted(w, shape)?;
    w.stage("v", shape.mode)
}

/// Staged, with a file in it that is durable.
pub(super) fn used(w: &World, shape: Shape) {
    staged(w, shape).unwrap();
    let file = w.staging("v").join("precious");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
}

pub(super) fn file_is_whole(directory: &Path) {
    assert_eq!(fs::read(directory.join("precious")).unwrap(), vec![7; 1 << 20], "the file is not what it was");
}

fn refuses_writes(device: &Path) {
    use std::os::unix::fs::FileExt;
    let written = fs::OpenOptions::new().write(true).open(device).and_then(|device| {
        device.write_all_at(&[1; 4096], 8 << 20)?;
        device.sync_all()
    });
    assert!(written.is_err(), "a pod that may only read wrote to {}", device.display());
}

/// A volume never staged, with data in its image, and a snapshot of it.
fn source(w: &World) {
    w.create("s", thick(16, BLOCK), None).unwrap();
    mark(&w.image("s"));
    w.insist(|w| w.snapshot("cut", "s"), &"snapshot").unwrap();
}

fn source_gone(w: &World) -> Answer {
    w.delete_snapshot("cut")?;
    w.delete("s")
}

fn restore(w: &World, shape: Shape) -> Answer {
    w.create("v", shape, Some(Source::Snapshot(w.snapshot_id("cut"))))
}

fn clone(w: &World, shape: Shape) -> Answer {
    w.create("v", shape, Some(Source::Volume(w.id("s"))))
}

fn both_are_whole(w: &World) {
    is_marked(&w.image("s"));
    is_marked(&w.image("v"));
    is_marked(&w.snapshot_image("cut"));
}

const FROM_SOURCE: Operation =
    Operation { setup: source, inverse: |w| w.delete("v"), proof: both_are_whole, teardown: source_gone, ..PLAIN };

macro_rules! matrix {
    ($($name:ident $parts:literal: $operation:expr;)*) => {
        $(mod $name {
            use super::*;
            const OPERATION: Operation = Operation { name: stringify!($name), ..$operation };
            #[test]
            fn first() {
                walk(&OPERATION, 0, $parts);
            }
            #[test]
            fn others() {
                (1..$parts).for_each(|part| walk(&OPERATION, part, $parts));
            }
        })*
    };
}

matrix! {
    create_thick 2: Operation {
        run: |w| w.create("v", SMALL, None),
        inverse: |w| w.delete("v"),
        ..PLAIN
    };
    create_thin 2: Operation {
        run: |w| w.create("v", thin(16, EXT4), None),
        inverse: |w| w.delete("v"),
        ..PLAIN
    };
    restore_thick 2: Operation { run: |w| restore(w, thick(20, BLOCK)), ..FROM_SOURCE };
    clone_thin 2: Operation { run: |w| clone(w, thin(16, BLOCK)), ..FROM_SOURCE };
    restore_by_copy 2: Operation { ground: PoolFs::Ext4, run: |w| restore(w, thick(20, BLOCK)), ..FROM_SOURCE };
    clone_by_copy 2: Operation { ground: PoolFs::Ext4, run: |w| clone(w, thin(16, BLOCK)), ..FROM_SOURCE };
    delete 2: Operation {
        setup: |w| w.create("v", SMALL, None).unwrap(),
        run: |w| w.delete("v"),
        inverse: |w| w.create("v", SMALL, None),
        give_up: GiveUp::No,
        teardown: |w| w.delete("v"),
        ..PLAIN
    };
    delete_with_zeroes 2: Operation {
        setup: |w| w.create("v", ZERO, None).unwrap(),
        run: |w| w.delete("v"),
        inverse: |w| w.create("v", ZERO, None),
        give_up: GiveUp::No,
        teardown: |w| w.delete("v"),
        ..PLAIN
    };
    grant 2: Operation {
        // A volume remembers that it was attached once.
        setup: |w| { granted(w, SMALL).unwrap(); w.revoke("v").unwrap(); },
        run: |w| w.grant("v", EXT4),
        inverse: |w| w.revoke("v"),
        teardown: |w| w.delete("v"),
        ..PLAIN
    };
    revoke 2: Operation {
        setup: |w| { granted(w, thick(16, BLOCK)).unwrap(); w.open("v").unwrap(); },
        run: |w| w.revoke("v"),
        inverse: |w| { w.grant("v", BLOCK)?; w.open("v") },
        teardown: gone,
        ..PLAIN
    };
    revoke_in_use 2: Operation {
        setup: |w| used(w, SMALL),
        run: |w| w.revoke("v"),
        inverse: |w| w.grant("v", EXT4),
        proof: |w| file_is_whole(&w.staging("v")),
        teardown: gone,
        ..PLAIN
    };
    grant_in_full_pool 2: Operation {
        setup: |w| { granted(w, SMALL).unwrap(); full(w).unwrap(); },
        run: |w| w.grant("v", EXT4),
        inverse: |w| w.revoke("v"),
        teardown: room_and_delete,
        ..PLAIN
    };
    revoke_in_full_pool 2: Operation {
        setup: |w| { granted(w, SMALL).unwrap(); full(w).unwrap(); w.grant("v", EXT4).unwrap(); },
        run: |w| w.revoke("v"),
        inverse: |w| w.grant("v", EXT4),
        teardown: |w| { w.revoke("v")?; room_and_delete(w) },
        ..PLAIN
    };
    delete_in_full_pool 2: Operation {
        setup: |w| { granted(w, ZERO).unwrap(); full(w).unwrap(); },
        run: |w| w.delete("v"),
        inverse: |w| { granted(w, ZERO)?; w.revoke("v") },
        give_up: GiveUp::No,
        teardown: room_and_delete,
        ..PLAIN
    };
    stage_with_mkfs_ext4 2: Operation {
        setup: |w| granted(w, SMALL).unwrap(),
        run: |w| w.stage("v", EXT4),
        inverse: |w| { gone(w)?; granted(w, SMALL) },
        teardown: gone,
        ..PLAIN
    };
    stage_with_mkfs_xfs 2: Operation {
        setup: |w| granted(w, thin(300, XFS)).unwrap(),
        run: |w| w.stage("v", XFS),
        inverse: |w| { gone(w)?; granted(w, thin(300, XFS)) },
        teardown: gone,
        ..PLAIN
    };
    stage_ext4 2: Operation {
        setup: |w| { used(w, SMALL); w.unstage("v").unwrap(); },
        run: |w| w.stage("v", EXT4),
        inverse: |w| w.unstage("v"),
        proof: |w| file_is_whole(&w.staging("v")),
        teardown: gone,
        ..PLAIN
    };
    stage_xfs 2: Operation {
        setup: |w| { used(w, thin(300, XFS)); w.unstage("v").unwrap(); },
        run: |w| w.stage("v", XFS),
        inverse: |w| w.unstage("v"),
        proof: |w| file_is_whole(&w.staging("v")),
        teardown: gone,
        ..PLAIN
    };
    stage_block 2: Operation {
        setup: |w| granted(w, thick(16, BLOCK)).unwrap(),
        run: |w| w.stage("v", BLOCK),
        inverse: |w| { gone(w)?; granted(w, thick(16, BLOCK)) },
        teardown: gone,
        ..PLAIN
    };
    unstage 2: Operation {
        setup: |w| used(w, SMALL),
        run: |w| w.unstage("v"),
        inverse: |w| { w.stage("v", EXT4)?; file_is_whole(&w.staging("v")); Ok(()) },
        teardown: gone,
        ..PLAIN
    };
    unstage_block 2: Operation {
        setup: |w| staged(w, thick(16, BLOCK)).unwrap(),
        run: |w| w.unstage("v"),
        inverse: |w| w.stage("v", BLOCK),
        teardown: gone,
        ..PLAIN
    };
    publish 2: Operation {
        setup: |w| used(w, SMALL),
        run: |w| w.publish("v", EXT4, ReadOnly::No),
        inverse: |w| w.unpublish("v"),
        proof: |w| file_is_whole(&w.target("v")),
        teardown: gone,
        ..PLAIN
    };
    publish_read_only 2: Operation {
        setup: |w| used(w, SMALL),
        run: |w| w.publish("v", EXT4, ReadOnly::Yes),
        inverse: |w| w.unpublish("v"),
        proof: |w| file_is_whole(&w.target("v")),
        teardown: gone,
        ..PLAIN
    };
    publish_block 2: Operation {
        setup: |w| { staged(w, thick(16, BLOCK)).unwrap(); mark(&w.image("v")); },
        run: |w| w.publish("v", BLOCK, ReadOnly::No),
        inverse: |w| w.unpublish("v"),
        proof: |w| is_marked(&w.target("v")),
        teardown: gone,
        ..PLAIN
    };
    publish_block_to_read 2: Operation {
        setup: |w| { staged(w, thick(16, BLOCK)).unwrap(); mark(&w.image("v")); },
        run: |w| w.publish("v", BLOCK, ReadOnly::Yes),
        inverse: |w| w.unpublish("v"),
        proof: |w| { is_marked(&w.target("v")); refuses_writes(&w.target("v")); },
        teardown: gone,
        ..PLAIN
    };
    unpublish 2: Operation {
        setup: |w| { used(w, SMALL); w.publish("v", EXT4, ReadOnly::No).unwrap(); },
        run: |w| w.unpublish("v"),
        inverse: |w| w.publish("v", EXT4, ReadOnly::No),
        proof: |w| file_is_whole(&w.staging("v")),
        teardown: gone,
        ..PLAIN
    };
    unpublish_block 2: Operation {
        setup: |w| { staged(w, thick(16, BLOCK)).unwrap(); w.publish("v", BLOCK, ReadOnly::No).unwrap(); },
        run: |w| w.unpublish("v"),
        inverse: |w| w.publish("v", BLOCK, ReadOnly::No),
        teardown: gone,
        ..PLAIN
    };
    unpublish_block_to_read 2: Operation {
        setup: |w| { staged(w, thick(16, BLOCK)).unwrap(); w.publish("v", BLOCK, ReadOnly::Yes).unwrap(); },
        run: |w| w.unpublish("v"),
        inverse: |w| w.publish("v", BLOCK, ReadOnly::Yes),
        teardown: gone,
        ..PLAIN
    };
    expand 2: Operation {
        setup: |w| { w.create("v", SMALL, None).unwrap(); mark(&w.image("v")); },
        run: |w| w.expand("v", 24),
        inverse: |w| { w.delete("v")?; w.create("v", SMALL, None)?; mark(&w.image("v")); Ok(()) },
        give_up: GiveUp::No,
        proof: |w| is_marked(&w.image("v")),
        teardown: |w| w.delete("v"),
        ..PLAIN
    };
    expand_in_use 2: Operation {
        setup: |w| { staged(w, thin(16, BLOCK)).unwrap(); mark(&w.image("v")); w.base.set(16); },
        run: |w| w.expand("v", w.base.get() + 1),
        inverse: |w| { w.base.set(w.base.get() + 1); w.expand("v", w.base.get()) },
        give_up: GiveUp::No,
        proof: |w| is_marked(&w.image("v")),
        teardown: |w| { w.base.set(0); gone(w) },
        ..PLAIN
    };
    expand_xfs_on_node 2: Operation {
        mib: 4096,
        setup: |w| { used(w, thin(300, XFS)); w.base.set(301); w.expand("v", 301).unwrap(); },
        run: |w| w.expand_on_node("v"),
        // Unmounted in between: a growth that is not on disk yet holds up the next.
        inverse: |w| {
            w.expand_on_node("v")?;
            w.unstage("v")?;
            w.stage("v", XFS)?;
            w.base.set(w.base.get() + 1);
            w.expand("v", w.base.get())
        },
        give_up: GiveUp::No,
        proof: |w| file_is_whole(&w.staging("v")),
        teardown: |w| { w.base.set(0); gone(w) },
        ..PLAIN
    };
    grow_ext4_at_stage 2: Operation {
        setup: |w| { used(w, SMALL); w.unstage("v").unwrap(); w.expand("v", 17).unwrap(); w.base.set(17); },
        run: |w| w.stage("v", EXT4),
        inverse: |w| { w.unstage("v")?; w.base.set(w.base.get() + 1); w.expand("v", w.base.get()) },
        give_up: GiveUp::No,
        proof: |w| file_is_whole(&w.staging("v")),
        teardown: |w| { w.base.set(0); gone(w) },
        ..PLAIN
    };
    snapshot 2: Operation {
        setup: |w| { staged(w, thick(16, BLOCK)).unwrap(); mark(&w.image("v")); },
        run: |w| w.snapshot("cut", "v"),
        inverse: |w| w.delete_snapshot("cut"),
        proof: |w| { is_marked(&w.image("v")); is_marked(&w.snapshot_image("cut")); },
        teardown: gone,
        ..PLAIN
    };
    snapshot_by_copy 2: Operation {
        ground: PoolFs::Ext4,
        setup: |w| { w.create("v", thick(16, BLOCK), None).unwrap(); mark(&w.image("v")); },
        run: |w| w.snapshot("cut", "v"),
        inverse: |w| w.delete_snapshot("cut"),
        proof: |w| { is_marked(&w.image("v")); is_marked(&w.snapshot_image("cut")); },
        teardown: |w| w.delete("v"),
        ..PLAIN
    };
    delete_snapshot 2: Operation {
        setup: |w| { w.create("v", ZERO, None).unwrap(); mark(&w.image("v")); w.snapshot("cut", "v").unwrap(); },
        run: |w| w.delete_snapshot("cut"),
        inverse: |w| w.snapshot("cut", "v"),
        give_up: GiveUp::No,
        proof: |w| is_marked(&w.image("v")),
        teardown: |w| { w.delete_snapshot("cut")?; w.delete("v") },
        ..PLAIN
    };
    start 2: Operation {
        setup: |w| { source(w); staged(w, thick(16, BLOCK)).unwrap(); w.publish("v", BLOCK, ReadOnly::No).unwrap(); },
        run: |w| { w.end(); w.start() },
        give_up: GiveUp::No,
        proof: |w| { is_marked(&w.image("s")); is_marked(&w.snapshot_image("cut")); },
        teardown: |w| { gone(w)?; source_gone(w) },
        ..PLAIN
    };
}
