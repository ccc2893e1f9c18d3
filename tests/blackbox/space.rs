//! Honest space: thick stays thick, the ledger refuses before the pool is full, and a refusal leaves nothing.

use std::fs::File;
use std::time::Duration;

use holdfast::csi::proto as p;
use nix::fcntl::{FallocateFlags, fallocate};
use tonic::Code;

use crate::harness::{
    MIB, PoolFs, Use, World, allocated, await_that, create_request, is_dense, refused, try_run, write_tree,
};

const MIB_U: u64 = 1 << 20;

fn thin(name: &str, size: i64) -> p::CreateVolumeRequest {
    let mut request = create_request(name, Use::Block, size);
    request.parameters.insert("provisioning".into(), "thin".into());
    request
}

fn thick_stays_thick(pool: PoolFs) {
    let mut world = World::new(pool);
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        let path = world.attach(&vol).unwrap();
        assert!(is_dense(&world.image(&vol)), "mkfs made holes");
        write_tree(&path, 1);
        std::fs::remove_dir_all(path.join("tree-1")).unwrap();
        try_run("/usr/sbin/fstrim", &[path.to_str().unwrap()]);
        assert!(is_dense(&world.image(&vol)), "fstrim made holes");
        world.detach(&vol);
        // Another process made it sparse; the next stage repairs it.
        let file = File::options().write(true).open(world.image(&vol)).unwrap();
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, punch, vol.size - 8 * MIB, 4 * MIB).unwrap();
        drop(file);
        assert!(!is_dense(&world.image(&vol)));
        world.crash();
        world.attach(&vol).unwrap();
        assert!(is_dense(&world.image(&vol)), "the next stage did not heal the image");
    }
    world.finish();
}

#[test]
fn rawfile_295_a_thick_image_stays_dense_through_mkfs_and_fstrim_on_xfs() {
    thick_stays_thick(PoolFs::Xfs);
}

#[test]
fn rawfile_295_a_thick_image_stays_dense_through_mkfs_and_fstrim_on_ext4() {
    thick_stays_thick(PoolFs::Ext4);
}

#[test]
fn a_thick_clone_is_dense_or_reserved() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 1);
    let before = world.capacity().available_capacity;
    let clone = world.clone_of("clone", &vol);
    assert!(is_dense(&world.image(&clone)));
    assert!(world.capacity().available_capacity <= before - vol.size + 16 * MIB);
    world.finish();
}

#[test]
fn a_thin_volume_gives_freed_space_back() {
    let world = World::new(PoolFs::Xfs);
    let mut request = create_request("thin", Use::Ext4, 64 * MIB);
    request.parameters.insert("provisioning".into(), "thin".into());
    let vol = world.try_create(Use::Ext4, &request).unwrap();
    let path = world.attach(&vol).unwrap();
    for seed in 1..8 {
        write_tree(&path, seed * 10);
    }
    let full = allocated(&world.image(&vol));
    for seed in 1..8 {
        std::fs::remove_dir_all(path.join(format!("tree-{}", seed * 10))).unwrap();
    }
    crate::harness::run("/usr/bin/sync", &["-f", path.to_str().unwrap()]);
    crate::harness::run("/usr/sbin/fstrim", &[path.to_str().unwrap()]);
    assert!(allocated(&world.image(&vol)) + 15 * MIB_U < full);
    world.finish();
}

#[test]
fn creates_are_refused_before_the_reserve_is_touched() {
    for pool in [PoolFs::Xfs, PoolFs::Ext4] {
        let world = World::sized(pool, 1 << 30);
        let mut made = 0;
        let refusal = loop {
            let request = create_request(&format!("vol-{made}"), Use::Block, 100 * MIB);
            match world.create_volume(request) {
                Ok(_) => made += 1,
                Err(status) => break status,
            }
            assert!(made < 10, "more space was reserved than exists");
        };
        assert!(made >= 5, "only {made}: {refusal:?}");
        let said = refused(Err::<(), _>(refusal), &[Code::ResourceExhausted]);
        assert!(said.contains("test"), "it must name the pool: {said}");
        let (free, total) = world.statfs();
        assert!(free >= total / 5, "minFree is 20 %: {free} of {total}");
        assert_eq!(world.in_pool("volumes").len(), made, "a refused create left something");
        let capacity = world.capacity();
        let largest = capacity.maximum_volume_size.unwrap();
        assert!(capacity.available_capacity < 100 * MIB && largest <= capacity.available_capacity, "{capacity:?}");
        let largest = largest / MIB * MIB;
        refused(world.create_volume(create_request("over", Use::Block, largest + MIB)), &[Code::ResourceExhausted]);
        if largest > 0 {
            world.create_volume(create_request("exactly", Use::Block, largest)).unwrap();
        }
        assert!(world.capacity().available_capacity >= 0);
        world.finish();
    }
}

#[test]
fn a_thin_volume_counts_as_what_it_may_become() {
    let world = World::sized(PoolFs::Xfs, 1 << 30);
    let (_, total) = world.statfs();
    let (mut made, mut sum) = (0, 0);
    while world.create_volume(thin(&format!("thin-{made}"), 100 * MIB)).is_ok() {
        made += 1;
        sum += 100 * MIB_U;
        assert!(sum <= total, "overcommit is 1.0, and more than the whole capacity was reserved");
    }
    refused(world.create_volume(thin("more", 100 * MIB)), &[Code::ResourceExhausted]);
    assert!(made >= 5, "only {made}");
    world.finish();
}

#[test]
fn overcommit_and_reserve_are_the_operators_words() {
    let mut world = World::stopped(PoolFs::Xfs, 1 << 30);
    let file = world.scratch.path().join("holdfast.yaml");
    let text =
        format!("pools:\n  - name: test\n    path: {}\n    overcommit: 3.0\n    minFree: 50%\n", world.pool.display());
    std::fs::write(&file, text).unwrap();
    world.configure_by(&file);
    world.start();
    let (_, total) = world.statfs();
    let mut made: u64 = 0;
    while world.create_volume(thin(&format!("thin-{made}"), 100 * MIB)).is_ok() {
        made += 1;
        assert!(made < 40);
    }
    assert!(made * 100 * MIB_U > total, "3 times the usable half is more than the whole: {made}");
    let largest = world.capacity().maximum_volume_size.unwrap();
    assert!(largest < 100 * MIB, "{largest}");
    for id in world.volume_ids() {
        world.delete_volume(p::DeleteVolumeRequest { volume_id: id, ..Default::default() }).unwrap();
    }
    let mut thick = 0;
    while world.create_volume(create_request(&format!("thick-{thick}"), Use::Block, 50 * MIB)).is_ok() {
        thick += 1;
        assert!(thick < 40);
    }
    let (free, total) = world.statfs();
    assert!(free >= total / 2, "thick volumes took from the reserve: {free} of {total}");
    assert!(thick >= 5, "only {thick}");
    world.finish();
}

#[test]
fn a_snapshot_of_a_thick_volume_reserves_its_size_or_is_refused() {
    let mut world = World::sized(PoolFs::Xfs, 1 << 30);
    let vol = world.try_create(Use::Block, &create_request("vol", Use::Block, 100 * MIB)).unwrap();
    let mut made = 0;
    loop {
        let before = world.capacity().available_capacity;
        match world.try_snapshot(&format!("snap-{made}"), &vol) {
            Ok(_) => made += 1,
            Err(status) => {
                refused(Err::<(), _>(status), &[Code::ResourceExhausted]);
                assert!(before < 100 * MIB);
                break;
            }
        }
        let after = world.capacity().available_capacity;
        assert!(after <= before - 100 * MIB + MIB, "nothing was reserved: {before} {after}");
        assert!(made < 10);
    }
    assert!(made >= 3, "only {made}");
    assert_eq!(world.in_pool("snapshots").len(), made, "a refused snapshot left something");
    let before = world.capacity();
    world.crash();
    assert_eq!(world.capacity(), before, "a reservation was forgotten");
    // The reserved space is there: every block of the volume is written again, twice.
    let path = world.attach(&vol).unwrap();
    for seed in [1, 1000] {
        crate::harness::write_device(&path, seed, 0, 100);
        crate::harness::check_device(&path, seed, 0, 100);
    }
    world.finish();
}

#[test]
fn a_full_filesystem_is_resource_exhausted_and_nothing_is_left() {
    for pool in [PoolFs::Xfs, PoolFs::Ext4] {
        let world = World::sized(pool, 1 << 30);
        let vol = world.create("vol", Use::Ext4);
        write_tree(&world.attach(&vol).unwrap(), 1);
        world.detach(&vol);
        // Another process fills the pool's filesystem.
        let (free, _) = world.statfs();
        let hog = File::create(world.scratch.root().join("hog")).unwrap();
        fallocate(&hog, FallocateFlags::empty(), 0, i64::try_from(free).unwrap() - 8 * MIB).unwrap();
        let request = create_request("new", Use::Block, 64 * MIB);
        refused(world.create_volume(request.clone()), &[Code::ResourceExhausted]);
        refused(world.expand(&vol, 128 * MIB), &[Code::OutOfRange]);
        refused(world.try_snapshot("snap", &vol), &[Code::ResourceExhausted]);
        assert_eq!(world.capacity().available_capacity, 0);
        assert_eq!((world.in_pool("volumes").len(), world.in_pool("snapshots").len()), (1, 0));
        // The reserved space is still there.
        let path = world.attach(&vol).unwrap();
        write_tree(&path, 2);
        drop(hog);
        std::fs::remove_file(world.scratch.root().join("hog")).unwrap();
        // XFS frees deleted space a moment later.
        await_that("there is room again", Duration::from_secs(20), || world.create_volume(request.clone()).is_ok());
        world.finish();
    }
}

#[test]
fn deleting_gives_the_space_back() {
    let world = World::sized(PoolFs::Xfs, 1 << 30);
    let before = world.capacity();
    for (index, on_delete) in ["unlink", "zero"].into_iter().enumerate() {
        let mut request = create_request(&format!("vol-{index}"), Use::Block, 64 * MIB);
        request.parameters.insert("onDelete".into(), on_delete.into());
        let vol = world.try_create(Use::Block, &request).unwrap();
        assert!(world.capacity().available_capacity <= before.available_capacity - 64 * MIB + MIB);
        crate::harness::write_device(&world.attach(&vol).unwrap(), 1, 0, 64);
        world.detach(&vol);
        world.retried("DeleteVolume", || world.delete(&vol));
        await_that("space is given back", Duration::from_secs(20), || {
            world.capacity().available_capacity >= before.available_capacity - MIB
        });
    }
    world.finish();
}

#[test]
fn capacity_is_of_the_pool_and_node_asked_about() {
    let world = World::new(PoolFs::Xfs);
    let ask = |parameters: &[(&str, &str)], topology: &[(&str, &str)]| {
        let parameters = parameters.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let accessible_topology = (!topology.is_empty()).then(|| crate::harness::segments(topology));
        world.get_capacity(p::GetCapacityRequest { parameters, accessible_topology, ..Default::default() })
    };
    let here = ask(&[], &[]).unwrap();
    assert!(here.available_capacity > 0);
    assert_eq!(ask(&[("pool", "test")], &[("csi.holdfast.storage/node", &world.node)]).unwrap(), here);
    assert_eq!(ask(&[("pool", "elsewhere")], &[]).unwrap().available_capacity, 0);
    assert_eq!(ask(&[], &[("csi.holdfast.storage/node", "node-b")]).unwrap().available_capacity, 0);
    let xfs =
        p::GetCapacityRequest { volume_capabilities: vec![crate::harness::capability(Use::Xfs)], ..Default::default() };
    assert_eq!(world.get_capacity(xfs).unwrap().minimum_volume_size, Some(300 * MIB));
    world.finish();
}
