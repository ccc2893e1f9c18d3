//! Records that a pod writes and counts once they are acknowledged, and their check. The host names the step and its
//! parameters in the environment.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The environment variable with a step: its name and its words.
pub(crate) const RECORDS: &str = "HOLDFAST_RECORDS";

const BLOCK: usize = 4096;
/// Blocks of a record.
pub(crate) const BLOCKS: u64 = 32;
/// Records in the file or device: a later one takes the place of an earlier one.
const SLOTS: u64 = 40;

/// Memory for direct I/O: one block.
struct Block(Vec<u8>);

impl Block {
    fn new() -> Self {
        Self(vec![0; 2 * BLOCK])
    }

    fn get(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[start..start + BLOCK]
    }
}

/// The bytes of a block, which no other one has.
fn fill(bytes: &mut [u8], record: u64, block: u64) {
    let mut state = record * BLOCKS + block;
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn offset(record: u64, block: u64) -> u64 {
    ((record - 1) % SLOTS * BLOCKS + block) * BLOCK as u64
}

fn exists(name: &str, what: &str) -> bool {
    Path::new(&format!("/tmp/{name}-{what}")).exists()
}

/// Until `/tmp/NAME-stop` exists. `/tmp/NAME` has how many records are acknowledged, and how many blocks of the next one
/// the device has completed. While `/tmp/NAME-hold` exists it waits in the middle of a record, with `/tmp/NAME-held`.
fn write(path: &str, name: &str, direct: bool) -> io::Result<()> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().write(true).create(!direct).truncate(false).custom_flags(flags).open(path)?;
    let progress = File::create(format!("/tmp/{name}"))?;
    let mut memory = Block::new();
    let mut whole = vec![0; BLOCK * usize::try_from(BLOCKS).unwrap()];
    for record in 1.. {
        let reached = |acknowledged: u64, block: u64| {
            progress.write_all_at(format!("{acknowledged:08} {block:04}\n").as_bytes(), 0)
        };
        if direct {
            for block in 0..BLOCKS {
                if block == BLOCKS / 2 && exists(name, "hold") {
                    fs::write(format!("/tmp/{name}-held"), "")?;
                    while exists(name, "hold") {
                        thread::sleep(Duration::from_millis(100));
                    }
                }
                fill(memory.get(), record, block);
                file.write_all_at(memory.get(), offset(record, block))?;
                reached(record - 1, block + 1)?;
            }
        } else {
            for (bytes, block) in whole.chunks_exact_mut(BLOCK).zip(0..) {
                fill(bytes, record, block);
            }
            file.write_all_at(&whole, offset(record, 0))?;
        }
        file.sync_all()?;
        reached(record, 0)?;
        if exists(name, "stop") {
            break;
        }
    }
    Ok(())
}

/// The records that are not there, of so many that were acknowledged and so many blocks of the next one. That one takes
/// the place of the earliest.
fn missing(path: &str, acknowledged: u64, blocks: u64) -> BTreeSet<u64> {
    // Past the page cache, which may have what the disk has not.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let (mut expected, mut found) = (vec![0; BLOCK], Block::new());
    let mut is_there = |record: u64, block: u64| {
        fill(&mut expected, record, block);
        file.read_exact_at(found.get(), offset(record, block)).is_ok() && found.get() == expected
    };
    let first = (acknowledged + 2).saturating_sub(SLOTS).max(1);
    let mut missing = BTreeSet::new();
    for record in first..=acknowledged {
        if !(0..BLOCKS).all(|block| is_there(record, block)) {
            missing.insert(record);
        }
    }
    if !(0..blocks).all(|block| is_there(acknowledged + 1, block)) {
        missing.insert(acknowledged + 1);
    }
    missing
}

#[test]
#[ignore = "in a guest: make guests"]
fn records() {
    let text = std::env::var(RECORDS).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    match words[..] {
        ["write", path, name, how] => {
            let ended = match write(path, name, how == "direct") {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            };
            fs::write(format!("/tmp/{name}-ended"), ended).unwrap();
        }
        ["check", path, acknowledged, blocks] => {
            let missing = missing(path, acknowledged.parse().unwrap(), blocks.parse().unwrap());
            let missing: Vec<_> = missing.iter().map(u64::to_string).collect();
            println!("=> {}\n", missing.join(" "));
        }
        _ => panic!("{text}?"),
    }
}
