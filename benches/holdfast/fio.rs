//! What a program in a pod gets, against the same filesystem on a bare loop device and against a bare file.

use std::fs;
use std::path::Path;

use crate::bare::Bare;
use crate::figures::{Series, mib_per_second, per_second, print, ratio};
use crate::ground::ScratchPlace;
use crate::harness::{MIB, Use, World, create_request, run as command};

const TIMES: usize = 3;
const SECONDS: &str = "--runtime=1";
const SIZE: i64 = 1024 * MIB;
/// Size of the file that is written and read, in MiB.
const FILE: u32 = 256;

type Job = (&'static str, &'static [&'static str], Count, &'static str);

/// Name, fio's arguments, and whether bytes or operations are counted in which of fio's two directions.
const JOBS: &[Job] = &[
    ("write, 1 MiB, one after the other", &["--rw=write", "--bs=1M", "--iodepth=4"], Count::Bytes, "write"),
    ("read, 1 MiB, one after the other", &["--rw=read", "--bs=1M", "--iodepth=4"], Count::Bytes, "read"),
    ("write, 4 KiB anywhere, 16 at once", &["--rw=randwrite", "--bs=4k", "--iodepth=16"], Count::Operations, "write"),
    ("read, 4 KiB anywhere, 16 at once", &["--rw=randread", "--bs=4k", "--iodepth=16"], Count::Operations, "read"),
    (
        "fsync after every 4 KiB written",
        &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
        Count::Operations,
        "write",
    ),
];

#[derive(Clone, Copy, PartialEq)]
enum Count {
    Bytes,
    Operations,
}

pub(crate) fn run() {
    ScratchPlace::Memory.with(8 << 30, |world| {
        for kind in Use::FILESYSTEMS {
            on(world, kind, ScratchPlace::Memory, JOBS);
        }
    });
    ScratchPlace::Disk.with(8 << 30, |world| {
        for kind in Use::FILESYSTEMS {
            on(world, kind, ScratchPlace::Disk, &JOBS[JOBS.len() - 1..]);
        }
    });
}

fn on(world: &World, kind: Use, ground: ScratchPlace, jobs: &[Job]) {
    let vol = world.try_create(kind, &create_request(&format!("fio-{kind:?}"), kind, SIZE)).unwrap();
    let published = world.attach(&vol).unwrap().join("file");
    let mut bare = Bare::new(&world.scratch.root(), world.scratch.path(), "fio-bare", SIZE);
    bare.attach();
    bare.make(kind);
    bare.mount();
    let looped = bare.point.join("file");
    let plain = world.scratch.root().join("fio-file");
    let files = [published, looped, plain.clone()];
    for file in &files {
        fio(file, &["--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"]);
    }
    let mut rows = Vec::new();
    for (name, arguments, count, direction) in jobs {
        let mut all: [Series; 3] = Default::default();
        for _ in 0..TIMES {
            for (file, series) in files.iter().zip(&mut all) {
                let said = fio(file, &[*arguments, &[SECONDS, "--time_based"]].concat());
                let key = if *count == Count::Bytes { "bw_bytes" } else { "iops" };
                series.add(said["jobs"][0][direction][key].as_f64().unwrap());
            }
        }
        let show = if *count == Count::Bytes { mib_per_second } else { per_second };
        let mut row = vec![(*name).to_owned()];
        row.extend(all.iter().map(|series| series.shown(show)));
        row.extend([ratio(&all[0], &all[1]), ratio(&all[0], &all[2])]);
        rows.push(row);
    }
    print(
        &format!(
            "fio on {} in a thick volume of 1 GiB, file of {FILE} MiB, O_DIRECT, pool on XFS on {}, {TIMES} times 1 s in turns",
            kind.fs_type(),
            ground.name()
        ),
        &["job", "published volume", "bare loop", "bare file in the pool", "of bare loop", "of bare file"],
        rows,
    );
    bare.unmount();
    bare.detach();
    bare.remove();
    fs::remove_file(plain).unwrap();
    world.detach(&vol);
    world.delete(&vol).unwrap();
}

fn fio(file: &Path, arguments: &[&str]) -> serde_json::Value {
    let file = format!("--filename={}", file.display());
    let size = format!("--size={FILE}M");
    let always =
        ["--name=bench", &file, &size, "--direct=1", "--ioengine=libaio", "--output-format=json", "--randrepeat=0"];
    serde_json::from_str(&command("/usr/bin/fio", &[&always[..], arguments].concat())).unwrap()
}
