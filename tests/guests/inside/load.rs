//! Reads or writes a device for some time, past the page cache, and counts. The host names the job in the environment.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use holdfast::os::Stopwatch;

/// The environment variable with a job: `PATH read|write random|sequential BYTES THREADS fsync|plain MILLISECONDS`.
pub(crate) const LOAD: &str = "HOLDFAST_LOAD";

const ALIGNED: usize = 4096;

/// How a job goes over a device.
#[derive(Clone, Copy)]
struct Job {
    write: bool,
    random: bool,
    fsync: bool,
    bytes: usize,
    limit: Duration,
}

impl Job {
    /// One request after the other until the time is over. A thread starts where no other one does.
    fn run(self, file: &File, thread: u64, requests: &AtomicU32) {
        let mut memory = vec![0x5a_u8; self.bytes + ALIGNED];
        let start = memory.as_ptr().align_offset(ALIGNED);
        let buffer = &mut memory[start..start + self.bytes];
        let places = crate::exports::SIZE / self.bytes as u64;
        let (watch, mut state) = (Stopwatch::start(), thread);
        while watch.elapsed() < self.limit {
            state = if self.random {
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
            } else {
                state + 1
            };
            let place = if self.random { state >> 33 } else { state };
            let offset = place % places * self.bytes as u64;
            if self.write {
                file.write_all_at(buffer, offset).unwrap();
            } else {
                file.read_exact_at(buffer, offset).unwrap();
            }
            if self.fsync {
                file.sync_all().unwrap();
            }
            requests.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
#[ignore = "in a guest: make guests"]
fn load() {
    let text = std::env::var(LOAD).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    let [path, direction, order, bytes, threads, fsync, milliseconds] = words[..] else { panic!("{text}?") };
    let job = Job {
        write: direction == "write",
        random: order == "random",
        fsync: fsync == "fsync",
        bytes: bytes.parse().unwrap(),
        limit: Duration::from_millis(milliseconds.parse().unwrap()),
    };
    let file = OpenOptions::new().read(true).write(job.write).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let (requests, watch) = (AtomicU32::new(0), Stopwatch::start());
    thread::scope(|scope| {
        for thread in 0..threads.parse().unwrap() {
            let (file, requests) = (&file, &requests);
            scope.spawn(move || job.run(file, thread, requests));
        }
    });
    println!("=> {:.2}\n", f64::from(requests.into_inner()) / watch.elapsed().as_secs_f64());
}
