//! Foreign content in an image: before its first stage, and in place of earlier content.

use std::fs;

use crate::harness::{HeldTool, PoolFs, Use, Vol, World, check_tree, create_request, refused, write_tree};

use super::corpus::{self, SIZE, Specimen};
use super::{NEEDS_A_HUMAN, Neighbour, blank, everything};

fn create(world: &World, kind: Use) -> Vol {
    world.try_create(kind, &create_request("victim", kind, i64::try_from(SIZE).unwrap())).unwrap()
}

/// The stage is refused, names the content, and changes nothing.
fn is_refused(world: &World, vol: &Vol, specimen: &Specimen) {
    let volume = world.image(vol).parent().unwrap().to_owned();
    let before = everything(&volume);
    for _ in 0..2 {
        let said = refused(world.stage(vol), NEEDS_A_HUMAN);
        let name = specimen.name;
        assert!(said.contains(vol.uuid()), "{name}: it must name the volume: {said}");
        assert!(said.contains("written"), "{name}: it must say that nothing was written: {said}");
        let advice = ["copy it from", "restore the volume", "delete the volume"];
        assert!(advice.iter().any(|word| said.contains(word)), "{name}: it must say what to do: {said}");
        let told = specimen.said.is_empty() || specimen.said.iter().any(|word| said.contains(word));
        assert!(told, "{name}: it must say what was found, such as {:?}: {said}", specimen.said);
        assert_eq!(everything(&volume), before, "{name}: something was written");
    }
}

fn before_the_first_stage(pool: PoolFs) {
    let world = World::new(pool);
    let tools = ["mkfs.ext4", "mkfs.xfs"].map(|tool| HeldTool::new(&world.scratch, tool));
    let mut neighbour = Neighbour::new(&world);
    let specimens = corpus::all(world.scratch.path());
    let runs = || tools.iter().map(|tool| tool.calls().iter().filter(|call| call.contains("/dev/loop")).count());
    let formatted: usize = runs().sum();
    let mut points = 0;
    for specimen in &specimens {
        for kind in Use::FILESYSTEMS {
            let vol = create(&world, kind);
            specimen.write(&world.image(&vol));
            world.publish(&vol).unwrap();
            is_refused(&world, &vol, specimen);
            assert_eq!(world.record(&vol)["format"]["state"], "never", "{}", specimen.name);
            world.unstage(&vol).unwrap();
            world.unpublish(&vol).unwrap();
            world.delete(&vol).unwrap();
            points += 1;
        }
    }
    assert_eq!(runs().sum::<usize>(), formatted, "mkfs was run on a device");
    neighbour.goes_on(&world);
    eprintln!("hostile devices, never formatted, pool on {pool:?}: {points} points, {} specimens", specimens.len());
    world.finish();
}

#[test]
fn what_is_found_before_the_first_stage_is_never_formatted_over_on_xfs() {
    before_the_first_stage(PoolFs::Xfs);
}

#[test]
fn what_is_found_before_the_first_stage_is_never_formatted_over_on_ext4() {
    before_the_first_stage(PoolFs::Ext4);
}

#[test]
fn what_is_found_in_place_of_a_filesystem_is_refused_and_the_image_put_back_is_whole() {
    let world = World::new(PoolFs::Xfs);
    let mut neighbour = Neighbour::new(&world);
    let specimens = corpus::all(world.scratch.path());
    let mut points = 0;
    for kind in Use::FILESYSTEMS {
        let vol = create(&world, kind);
        write_tree(&world.attach(&vol).unwrap(), 7);
        world.detach(&vol);
        world.publish(&vol).unwrap();
        let (image, pristine) = (world.image(&vol), world.scratch.root().join("pristine"));
        corpus::reflink(&image, &pristine);
        for specimen in &specimens {
            // A few bytes far inside a whole filesystem are a file's content, which no driver can recognize. Here the
            // filesystem is gone, and only they are left.
            blank(&image);
            specimen.write(&image);
            is_refused(&world, &vol, specimen);
            assert_eq!(world.record(&vol)["format"]["state"], "formatted", "{}", specimen.name);
            points += 1;
        }
        fs::rename(&pristine, &image).unwrap();
        check_tree(&world.attach(&vol).unwrap(), 7);
        world.detach(&vol);
        world.delete(&vol).unwrap();
    }
    neighbour.goes_on(&world);
    eprintln!("hostile devices, formatted before: {points} points, {} specimens", specimens.len());
    world.finish();
}
