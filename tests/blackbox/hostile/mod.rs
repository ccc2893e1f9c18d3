//! Hostile devices: foreign content in an image, before its first use or later, and records that are wrong. Each is
//! refused with an error that names the content, its location and the next step; not one byte changes, and the other
//! volumes continue.

mod corpus;
mod devices;
mod images;
mod newer;
mod records;

use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use holdfast::csi::proto as p;
use tonic::Code;

use crate::harness::{Use, Vol, World, check_tree, checksum, write_tree};

/// The codes for a volume that needs an operator.
const NEEDS_A_HUMAN: &[Code] = &[Code::FailedPrecondition, Code::Internal, Code::DataLoss];

/// Everything below a path, exact to the byte: names, kinds, link targets, lengths, contents.
fn everything(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(meta) = fs::symlink_metadata(path) else { return found };
    let kind = meta.file_type();
    let shown = path.display();
    if kind.is_dir() {
        found.push(format!("{shown}/"));
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        found.extend(names.iter().flat_map(|name| everything(name)));
    } else if kind.is_symlink() {
        found.push(format!("{shown} -> {}", fs::read_link(path).unwrap().display()));
    } else if kind.is_file() {
        found.push(format!("{shown} {:?}", checksum(path)));
    } else {
        found.push(format!("{shown} fifo {} block {}", kind.is_fifo(), kind.is_block_device()));
    }
    found
}

fn put(image: &Path, offset: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(image).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

/// Makes an image one hole of the same length.
fn blank(image: &Path) {
    let file = fs::File::options().write(true).open(image).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(0).unwrap();
    file.set_len(length).unwrap();
    file.sync_all().unwrap();
}

/// A volume in use during the test.
struct Neighbour {
    vol: Vol,
    seed: u64,
}

impl Neighbour {
    fn new(world: &World) -> Self {
        let vol = world.create("neighbour", Use::Ext4);
        write_tree(&world.attach(&vol).unwrap(), 1);
        Self { vol, seed: 1 }
    }

    /// It still reads and writes, and new volumes are still made and deleted.
    fn goes_on(&mut self, world: &World) {
        let path = world.target(&self.vol, "pod");
        check_tree(&path, self.seed);
        fs::remove_dir_all(path.join(format!("tree-{}", self.seed))).unwrap();
        self.seed += 1;
        write_tree(&path, self.seed);
        match world.list_volumes(p::ListVolumesRequest::default()) {
            Ok(list) => {
                let mut listed = list.entries.into_iter().filter_map(|entry| entry.volume);
                assert!(listed.any(|volume| volume.volume_id == self.vol.id));
            }
            // A partial list would detach the volumes that it omits (docs/design.md section 10): there is no list, and
            // an error says why.
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.message().contains("doctor"), "{status:?}");
            }
        }
        let other = world.create("other", Use::Ext4);
        world.delete(&other).unwrap();
    }
}
