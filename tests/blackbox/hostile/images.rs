//! Images that do not match their records: truncated, longer, missing, another volume's, not a file; and damaged
//! filesystems.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tonic::Code;

use crate::harness::{PoolFs, Use, Vol, World, check_tree, checksum, refused, run, superblock_uuid, write_tree};

use super::corpus::reflink;
use super::{NEEDS_A_HUMAN, Neighbour, blank, everything, put};

/// A way to damage an image.
type Spoil = (&'static str, fn(&Path));

/// With these, a volume is not staged, whatever its format state.
const NEVER_SERVED: &[Spoil] = &[
    ("missing", |image| fs::remove_file(image).unwrap()),
    ("cut by a block", |image| resize(image, |length| length - 4096)),
    ("cut by a byte", |image| resize(image, |length| length - 1)),
    ("cut to nothing", |image| resize(image, |_| 0)),
    ("a symbolic link to itself moved", |image| {
        let moved = image.with_file_name("moved");
        fs::rename(image, &moved).unwrap();
        symlink("moved", image).unwrap();
    }),
    ("a symbolic link to a device", |image| {
        fs::remove_file(image).unwrap();
        symlink("/dev/null", image).unwrap();
    }),
    ("a directory", |image| {
        fs::remove_file(image).unwrap();
        fs::create_dir(image).unwrap();
    }),
    ("a pipe", |image| {
        fs::remove_file(image).unwrap();
        nix::unistd::mkfifo(image, Mode::S_IRWXU).unwrap();
    }),
    ("a device node", |image| {
        fs::remove_file(image).unwrap();
        mknod(image, SFlag::S_IFBLK, Mode::S_IRWXU, makedev(7, 0)).unwrap();
    }),
];

/// With these, a formatted volume is not staged.
const NOT_ITS_FILESYSTEM: &[Spoil] = &[
    ("blank", blank),
    ("zeroes written over it", |image| {
        let length = fs::metadata(image).unwrap().len();
        (0..length >> 20).for_each(|mib| put(image, mib << 20, &[0; 1 << 20]));
    }),
    ("its head blank", |image| put(image, 0, &[0; 65536])),
    ("another UUID, its checksum right", other_uuid),
    ("made again", |image| {
        let program = if magic(image) == *b"XFSB" { "/usr/sbin/mkfs.xfs" } else { "/usr/sbin/mkfs.ext4" };
        let forced = if program.ends_with("xfs") { ["-q", "-f", "-ssize=4096"] } else { ["-q", "-F", "-m0"] };
        run(program, &[&forced[..], &[image.to_str().unwrap()]].concat());
    }),
    ("the other filesystem", |image| {
        let head = head_of_the_other(image);
        blank(image);
        put(image, 0, &head);
    }),
    ("both filesystems", |image| {
        // Each keeps the other's superblock: ext4 begins at byte 1024, XFS fills only its sector.
        let (head, xfs) = (head_of_the_other(image), magic(image) == *b"XFSB");
        let (from, until) = if xfs { (1024, 2048) } else { (0, 512) };
        put(image, u64::try_from(from).unwrap(), &head[from..until]);
    }),
];

/// The first 64 KiB of a valid XFS where the image has an ext4, and the other way round.
fn head_of_the_other(image: &Path) -> Vec<u8> {
    let other = image.with_file_name("other");
    File::create(&other).unwrap().set_len(320 << 20).unwrap();
    let program = if magic(image) == *b"XFSB" { "/usr/sbin/mkfs.ext4" } else { "/usr/sbin/mkfs.xfs" };
    run(program, &["-q", other.to_str().unwrap()]);
    let mut head = vec![0; 65536];
    File::open(&other).unwrap().read_exact_at(&mut head, 0).unwrap();
    fs::remove_file(&other).unwrap();
    head
}

fn resize(image: &Path, wanted: impl Fn(u64) -> u64) {
    let file = File::options().write(true).open(image).unwrap();
    file.set_len(wanted(file.metadata().unwrap().len())).unwrap();
}

fn magic(image: &Path) -> [u8; 4] {
    let mut magic = [0; 4];
    File::open(image).unwrap().read_exact_at(&mut magic, 0).unwrap();
    magic
}

fn other_uuid(image: &Path) {
    let path = image.to_str().unwrap();
    let before = superblock_uuid(image);
    if magic(image) == *b"XFSB" {
        run("/usr/sbin/xfs_admin", &["-U", "generate", path]);
    } else {
        run("/usr/sbin/debugfs", &["-w", "-R", "set_super_value uuid random", path]);
    }
    assert_ne!(superblock_uuid(image), before);
}

/// Refused, with an error that names the volume and the next step; nothing in its directory changes.
fn is_refused(world: &World, vol: &Vol, name: &str) {
    let volume = world.image(vol).parent().unwrap().to_owned();
    let before = everything(&volume);
    for _ in 0..2 {
        let said = refused(world.stage(vol), NEEDS_A_HUMAN);
        assert!(said.contains(vol.uuid()), "{name}: it must name the volume: {said}");
        let advice = [
            "restore",
            "estore",
            "delete the volume",
            "bring the image back",
            "look at it",
            "inspect it",
            "put it back",
        ];
        assert!(advice.iter().any(|word| said.contains(word)), "{name}: it must say what to do: {said}");
        assert_eq!(everything(&volume), before, "{name}: something was changed: {said}");
    }
}

#[test]
fn an_image_that_is_not_the_record_s_is_refused_and_put_back_it_is_whole() {
    let mut world = World::new(PoolFs::Xfs);
    let mut neighbour = Neighbour::new(&world);
    let mut points = 0;
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        write_tree(&world.attach(&vol).unwrap(), 5);
        world.detach(&vol);
        world.publish(&vol).unwrap();
        let (image, pristine) = (world.image(&vol), world.scratch.root().join("pristine"));
        let record = world.record(&vol);
        for (name, spoil) in NEVER_SERVED.iter().chain(NOT_ITS_FILESYSTEM) {
            reflink(&image, &pristine);
            spoil(&image);
            is_refused(&world, &vol, name);
            assert_eq!(world.record(&vol), record, "{name}");
            if points % 5 == 0 {
                world.crash();
                is_refused(&world, &vol, name);
                neighbour.goes_on(&world);
            }
            clear(&image);
            fs::rename(&pristine, &image).unwrap();
            let path = world.attach(&vol).unwrap_or_else(|status| panic!("{name}, put back: {status:?}"));
            check_tree(&path, 5);
            world.unbind(&vol, "pod").unwrap();
            world.unstage(&vol).unwrap();
            points += 1;
        }
        world.unpublish(&vol).unwrap();
    }
    eprintln!("images that are not their records': {points} points");
    world.finish();
}

/// Removes whatever replaces an image.
fn clear(image: &Path) {
    let _ = fs::remove_dir(image);
    let _ = fs::remove_file(image);
    let _ = fs::remove_file(image.with_file_name("moved"));
}

#[test]
fn a_volume_never_used_is_not_served_without_its_image_either() {
    let world = World::new(PoolFs::Xfs);
    let mut neighbour = Neighbour::new(&world);
    for (name, spoil) in NEVER_SERVED {
        let vol = world.create("victim", Use::Ext4);
        world.publish(&vol).unwrap();
        spoil(&world.image(&vol));
        is_refused(&world, &vol, name);
        assert_eq!(world.record(&vol)["format"]["state"], "never", "{name}");
        neighbour.goes_on(&world);
        world.unpublish(&vol).unwrap_or_else(|status| panic!("{name}: {status:?}"));
        world.delete(&vol).unwrap_or_else(|status| panic!("{name}: {status:?}"));
        assert_eq!(world.volume_ids().len(), 1, "{name}");
    }
    assert_eq!(world.in_pool("trash"), Vec::<String>::new());
    world.finish();
}

#[test]
fn swapped_images_are_refused_on_both_sides_and_whole_when_swapped_back() {
    let world = World::new(PoolFs::Xfs);
    let used = |name: &str, seed| {
        let vol = world.create(name, Use::Ext4);
        write_tree(&world.attach(&vol).unwrap(), seed);
        world.detach(&vol);
        vol
    };
    let (one, two, fresh) = (used("one", 1), used("two", 2), world.create("fresh", Use::Ext4));
    let swap = |a: &Vol, b: &Vol| {
        let aside = world.scratch.root().join("aside");
        fs::rename(world.image(a), &aside).unwrap();
        fs::rename(world.image(b), world.image(a)).unwrap();
        fs::rename(&aside, world.image(b)).unwrap();
    };
    for vol in [&one, &two, &fresh] {
        world.publish(vol).unwrap();
    }
    for (a, b) in [(&one, &two), (&two, &fresh), (&one, &fresh)] {
        swap(a, b);
        let sums = [a, b].map(|vol| checksum(&world.image(vol)));
        for vol in [a, b] {
            let said = refused(world.stage(vol), NEEDS_A_HUMAN);
            assert!(said.contains(vol.uuid()), "{said}");
        }
        assert_eq!([a, b].map(|vol| checksum(&world.image(vol))), sums, "something was written");
        swap(a, b);
    }
    assert_eq!(world.record(&fresh)["format"]["state"], "never");
    check_tree(&world.attach(&one).unwrap(), 1);
    check_tree(&world.attach(&two).unwrap(), 2);
    write_tree(&world.attach(&fresh).unwrap(), 3);
    world.finish();
}

#[test]
fn one_image_under_two_names_is_never_on_two_devices() {
    let world = World::new(PoolFs::Xfs);
    let one = world.create("one", Use::Ext4);
    write_tree(&world.attach(&one).unwrap(), 1);
    for (name, stolen) in [("formatted", true), ("never", false)] {
        let two = world.create(name, Use::Ext4);
        if stolen {
            world.attach(&two).unwrap();
            world.detach(&two);
        }
        fs::remove_file(world.image(&two)).unwrap();
        fs::hard_link(world.image(&one), world.image(&two)).unwrap();
        world.publish(&two).unwrap();
        let said = refused(world.stage(&two), NEEDS_A_HUMAN);
        assert!(said.contains(two.uuid()), "{said}");
        check_tree(&world.target(&one, "pod"), 1);
        // The other volume is not in use: the image is still not the one of its record.
        world.detach(&one);
        let before = checksum(&world.image(&one));
        refused(world.stage(&two), NEEDS_A_HUMAN);
        assert_eq!(checksum(&world.image(&one)), before);
        world.unpublish(&two).unwrap();
        world.delete(&two).unwrap();
        check_tree(&world.attach(&one).unwrap(), 1);
    }
    world.finish();
}

#[test]
fn an_image_that_somebody_made_longer_is_used_as_its_record_says() {
    let world = World::new(PoolFs::Xfs);
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        write_tree(&world.attach(&vol).unwrap(), 1);
        world.detach(&vol);
        resize(&world.image(&vol), |length| length + (8 << 20));
        let before = superblock_uuid(&world.image(&vol));
        check_tree(&world.attach(&vol).unwrap(), 1);
        assert_eq!(superblock_uuid(&world.image(&vol)), before);
        assert_eq!(world.record(&vol)["size"], vol.size);
        world.detach(&vol);

        let fresh = world.create(&format!("fresh-{}", kind.fs_type()), kind);
        resize(&world.image(&fresh), |length| length + (8 << 20));
        let end = fs::metadata(world.image(&fresh)).unwrap().len();
        put(&world.image(&fresh), end - 1, b"x");
        world.publish(&fresh).unwrap();
        refused(world.stage(&fresh), &[Code::FailedPrecondition]);
    }
    world.finish();
}

#[test]
fn a_filesystem_whose_superblock_is_all_that_is_left_is_not_made_again() {
    let world = World::new(PoolFs::Xfs);
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        write_tree(&world.attach(&vol).unwrap(), 1);
        world.detach(&vol);
        let (image, uuid) = (world.image(&vol), superblock_uuid(&world.image(&vol)));
        let head = {
            let mut head = vec![0; 4096];
            File::open(&image).unwrap().read_exact_at(&mut head, 0).unwrap();
            head
        };
        blank(&image);
        put(&image, 0, &head);
        world.publish(&vol).unwrap();
        refused(world.stage(&vol), NEEDS_A_HUMAN);
        // The kernel may record errors in the superblock; nothing formats it again.
        assert_eq!(superblock_uuid(&image), uuid);
        assert_eq!(world.record(&vol)["format"]["uuid"], uuid.to_string());
        world.unstage(&vol).unwrap();
    }
    world.finish();
}
