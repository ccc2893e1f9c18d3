//! Writes to a volume that say what was acknowledged, and what is there now. The host names the step and its parameters
//! in the environment.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The environment variable with a step: words `name=value`, the first one without a value.
pub(crate) const WRITES: &str = "HOLDFAST_WRITES";

/// The bytes of a block, in memory and as an offset.
const BLOCK: usize = 4096;
const STRIDE: u64 = 4096;
/// Writers of a load, half of them past the page cache, and the blocks of each: so few that each is soon written again.
const WRITERS: usize = 4;
const BLOCKS: u64 = 8;

/// Whether writes go through the page cache. All are followed by fsync.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Buffered,
    Direct,
}

/// A block in memory that direct I/O can use.
struct Memory(Vec<u8>);

impl Memory {
    fn new() -> Self {
        Self(vec![0; 2 * BLOCK])
    }

    fn block(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[start..start + BLOCK]
    }
}

fn open(path: &str, how: How) -> File {
    let flags = if how == How::Direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

fn opened_to_read(path: &str) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// Writes a word over and over into a block, and waits until it is durable.
fn put(file: &File, at: u64, word: &str) {
    let mut memory = Memory::new();
    let block = memory.block();
    for (byte, letter) in block.iter_mut().zip(word.bytes().chain(*b" ").cycle()) {
        *byte = letter;
    }
    file.write_all_at(block, at).unwrap();
    file.sync_all().unwrap();
}

/// The word of a block.
fn word_at(file: &File, at: u64) -> String {
    let mut memory = Memory::new();
    let block = memory.block();
    file.read_exact_at(block, at).unwrap();
    String::from_utf8_lossy(block).split(' ').next().unwrap_or_default().to_owned()
}

/// A block of a load's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    writer: u64,
    block: u64,
}

impl Place {
    fn offset(self) -> u64 {
        (self.writer * BLOCKS + self.block) * STRIDE
    }

    /// The content of record `number`: each half is the whole.
    fn content(self, number: u64, block: &mut [u8]) {
        for (at, bytes) in block.chunks_mut(8).enumerate() {
            let value = if at % 2 == 0 { number } else { self.writer << 32 | self.block };
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Reads the record past the page cache; an error that names what is there instead.
    fn check(self, file: &File, number: u64) -> Result<(), String> {
        let (mut memory, mut wanted) = (Memory::new(), vec![0; BLOCK]);
        let found = memory.block();
        file.read_exact_at(found, self.offset()).map_err(|error| format!("{self:?} cannot be read: {error}"))?;
        self.content(number, &mut wanted);
        if *found == *wanted {
            return Ok(());
        }
        let mut numbers: Vec<_> =
            found.chunks(16).map(|pair| u64::from_le_bytes(pair[..8].try_into().unwrap())).collect();
        numbers.dedup();
        Err(format!("{self:?} has record {numbers:?} instead of {number}"))
    }
}

/// What the writers of a load share.
#[derive(Default)]
struct Load {
    acknowledged: [AtomicU64; WRITERS],
    ends: AtomicBool,
    records: Mutex<Vec<(Place, u64)>>,
}

/// Writes numbered records until the load ends: each block again and again, fsync after each. After each one an earlier
/// record is read again.
fn write_records(path: &str, index: usize, load: &Load) -> Result<(), String> {
    let writer = u64::try_from(index).unwrap();
    let how = if index.is_multiple_of(2) { How::Direct } else { How::Buffered };
    let (file, reader) = (open(path, how), opened_to_read(path));
    let mut last = HashMap::new();
    let mut memory = Memory::new();
    let mut random = writer + 1;
    let mut number = 0;
    while !load.ends.load(Ordering::Relaxed) {
        number += 1;
        let mut any = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Place { writer, block: (random >> 33) % BLOCKS }
        };
        let (place, other) = (any(), any());
        let block = memory.block();
        place.content(number, block);
        let written = file.write_all_at(block, place.offset()).and_then(|()| file.sync_all());
        written.map_err(|error| format!("{place:?} cannot be written: {error}"))?;
        last.insert(place.block, number);
        load.acknowledged[index].store(number, Ordering::Relaxed);
        if let Some(number) = last.get(&other.block) {
            other.check(&reader, *number)?;
        }
    }
    let records = last.into_iter().map(|(block, number)| (Place { writer, block }, number));
    load.records.lock().unwrap().extend(records);
    Ok(())
}

/// Files of a load on its node: the fewest records that any writer has acknowledged, the wish to end, what went wrong, and
/// the records at the end.
fn load(path: &str, name: &str) -> String {
    let file = |what: &str| format!("/tmp/{name}-{what}");
    let store = |what: &str, text: &str| {
        fs::write(file("new"), text).unwrap();
        fs::rename(file("new"), file(what)).unwrap();
    };
    let load = Load::default();
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (load, failed, wrong) = (&load, &failed, file(&format!("wrong{writer}")));
            scope.spawn(move || {
                if let Err(error) = write_records(path, writer, load) {
                    fs::write(wrong, format!("{error}\n")).unwrap();
                    failed.store(true, Ordering::Relaxed);
                }
            });
        }
        while !Path::new(&file("stop")).exists() && !failed.load(Ordering::Relaxed) {
            let fewest = load.acknowledged.iter().map(|number| number.load(Ordering::Relaxed)).min();
            store("acknowledged", &fewest.unwrap_or_default().to_string());
            thread::sleep(Duration::from_millis(200));
        }
        load.ends.store(true, Ordering::Relaxed);
    });
    let records = load.records.into_inner().unwrap();
    let lines: String =
        records.iter().map(|(place, number)| format!("{} {} {number}\n", place.writer, place.block)).collect();
    store("records", &lines);
    let total: u64 = load.acknowledged.iter().map(|number| number.load(Ordering::Relaxed)).sum();
    format!("{total} records")
}

fn check(path: &str, records: &str) -> String {
    let file = opened_to_read(path);
    let mut count = 0;
    let mut wrong = Vec::new();
    for line in fs::read_to_string(records).unwrap().lines() {
        let mut numbers = line.split(' ').map(|number| number.parse::<u64>().unwrap());
        let mut next = || numbers.next().unwrap();
        let (place, number) = (Place { writer: next(), block: next() }, next());
        wrong.extend(place.check(&file, number).err());
        count += 1;
    }
    assert_eq!(wrong, Vec::<String>::new());
    format!("{count} blocks")
}

fn take(step: &str, parameters: &HashMap<String, String>) -> String {
    let get = |name: &str| parameters.get(name).unwrap_or_else(|| panic!("no {name}")).as_str();
    let at = || get("at").parse().unwrap();
    let how = || if get("how") == "direct" { How::Direct } else { How::Buffered };
    match step {
        // Writes several words to one block, one after the other. Each line is an acknowledged one.
        "put" => {
            let file = open(get("path"), how());
            for word in get("words").split(',') {
                put(&file, at(), word);
                println!("acknowledged {word}");
            }
            String::new()
        }
        "word" => word_at(&opened_to_read(get("path")), at()),
        // Finds the block with a word.
        "find" => {
            let file = opened_to_read(get("path"));
            let blocks = fs::metadata(get("path")).unwrap().len() / STRIDE;
            let mut offsets = (0..blocks).map(|number| number * STRIDE);
            offsets.find(|at| word_at(&file, *at) == get("word")).unwrap().to_string()
        }
        "load" => load(get("path"), get("name")),
        "check" => check(get("path"), get("records")),
        _ => panic!("{step}?"),
    }
}

#[test]
#[ignore = "in a guest: make guests"]
fn step() {
    let text = std::env::var(WRITES).unwrap();
    let mut words = text.split_whitespace();
    let step = words.next().unwrap();
    let parameters = words.map(|word| word.split_once('=').unwrap());
    let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    println!("\n=> {}", take(step, &parameters));
}
