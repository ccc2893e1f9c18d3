//! Snapshots and clones against size and extents, against `cp --reflink=always` of the same image.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::figures::{Pair, Series, ms, print, ratio};
use crate::ground::ScratchPlace;
use crate::harness::{MIB, Use, Vol, World, create_request, run as command};

const TIMES: usize = 3;
const WRITTEN: usize = 64 << 20;

pub(crate) fn run() {
    ScratchPlace::Disk.with(128 << 30, |world| all(world));
}

fn all(world: &World) {
    let mut rows = Vec::new();
    for (name, mib) in [("64 MiB", 64), ("1 GiB", 1024), ("8 GiB", 8192)] {
        let vol = world.try_create(Use::Block, &create_request(name, Use::Block, mib * MIB)).unwrap();
        fill(&world.image(&vol));
        rows.extend(measure(world, &vol, &format!("{name} thick, 64 MiB of it written")));
    }
    for extents in [1_000, 40_000] {
        let mut request = create_request(&format!("{extents} extents"), Use::Block, 1024 * MIB);
        request.parameters = HashMap::from([("provisioning".into(), "thin".into())]);
        let vol = world.try_create(Use::Block, &request).unwrap();
        scatter(&world.image(&vol), extents);
        rows.extend(measure(world, &vol, &format!("1 GiB thin, {extents} written extents")));
    }
    print(
        &format!("Snapshot and clone: pool on XFS with reflinks, {TIMES} times in turns"),
        &["what", "driver", "cp --reflink=always", "ratio"],
        rows,
    );
}

/// Writes the beginning of an image: as much of each size, so that sizes are compared and not extents.
fn fill(image: &Path) {
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(&vec![0x5a; WRITTEN], 0).unwrap();
    file.sync_all().unwrap();
}

/// Writes single blocks with room between them: each is an extent of its own.
fn scatter(image: &Path, extents: u64) {
    let file = File::options().write(true).open(image).unwrap();
    let stride = (1 << 30) / extents / 4096 * 4096;
    for extent in 0..extents {
        file.write_all_at(&[0x5a; 4096], extent * stride).unwrap();
    }
    file.sync_all().unwrap();
}

fn measure(world: &World, vol: &Vol, what: &str) -> Vec<Vec<String>> {
    let (mut snapshot, mut clone) = (Pair::default(), Series::default());
    let (image, copy) = (world.image(vol), world.scratch.root().join("copy.img"));
    for time in 0..TIMES {
        let made = snapshot.ours.time(|| world.snapshot(&format!("{what} {time}"), vol));
        let cloned = clone.time(|| world.clone_of(&format!("{what} {time}"), vol));
        snapshot.bare.time(|| {
            command("/usr/bin/cp", &["--reflink=always", image.to_str().unwrap(), copy.to_str().unwrap()]);
        });
        std::fs::remove_file(&copy).unwrap();
        world.drop_snapshot(&made.snapshot_id).unwrap();
        world.delete(&cloned).unwrap();
        // XFS frees in the background what was deleted; the next turn is not to pay for it.
        command("/usr/bin/sync", &["--file-system", world.pool.to_str().unwrap()]);
    }
    let cp = snapshot.bare.shown(ms);
    vec![
        snapshot.row(&format!("snapshot, {what}"), ms),
        vec![format!("clone, {what}"), clone.shown(ms), cp, ratio(&clone, &snapshot.bare)],
    ]
}
