//! Many volumes: what one more takes, what a list takes, and the driver's memory.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use holdfast::csi::proto as p;
use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::os::Stopwatch;

use crate::figures::{Series, mib, ms, print, ratio, seconds};
use crate::harness::{MIB, PoolFs, Use, World, create_request};

const STEPS: [u32; 3] = [10, 1_000, 10_000];
const TIMES: usize = 11;
const CALLERS: usize = 16;
/// Making them is given up after so long; then it is said how many there are.
const PATIENCE: u64 = 150;

pub(crate) fn run() {
    let mut world = World::with_arguments(PoolFs::Xfs, 512 << 30, &["--log-level", "info"]);
    let mut memory = Vec::new();
    std::thread::sleep(seconds(1));
    memory.push(resident(&world, "idle, no volume", Some(8.0)));
    let (mut rows, mut first, mut there) = (Vec::new(), None, 0);
    for step in STEPS {
        there = fill(&world, there, step);
        let target = (step == STEPS[2]).then_some(16.0);
        if there == step {
            memory.push(resident(&world, &format!("{there} volumes made"), target));
        }
        let now = Round::of(&world);
        let first = first.get_or_insert_with(|| now.clone());
        rows.extend(now.rows(there, first));
        memory.push(resident(&world, &format!("{there} volumes, all listed {TIMES} times"), target));
    }
    assert_eq!(world.terminate(), 0);
    let mut start = Series::default();
    start.time(|| world.start());
    std::thread::sleep(seconds(1));
    memory.push(resident(&world, &format!("{there} volumes, started anew"), Some(16.0)));
    rows.push(vec!["start until Probe says ready".into(), there.to_string(), start.shown(ms), String::new()]);
    print(
        &format!("Many volumes: thin, 16 MiB, pool on XFS on disk, {TIMES} times"),
        &["call", "volumes there", "takes", "of the first"],
        rows,
    );
    print("Resident memory", &["when", "VmRSS", "of it anonymous", "target", "ratio"], memory);
    assert_eq!(world.terminate(), 0);
}

fn request(name: &str) -> p::CreateVolumeRequest {
    let parameters = HashMap::from([("provisioning".to_owned(), "thin".to_owned())]);
    p::CreateVolumeRequest { parameters, ..create_request(name, Use::Ext4, 16 * MIB) }
}

/// Makes volumes until there are `wanted`; how many there are.
fn fill(world: &World, there: u32, wanted: u32) -> u32 {
    let (next, watch) = (Arc::new(AtomicU32::new(there)), Arc::new(Stopwatch::start()));
    let tasks: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (next, watch, channel) = (Arc::clone(&next), Arc::clone(&watch), world.channel());
            world.spawn(async move {
                let mut made = 0;
                while watch.elapsed() < seconds(PATIENCE) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= wanted {
                        break;
                    }
                    ControllerClient::new(channel.clone())
                        .create_volume(request(&format!("many-{number}")))
                        .await
                        .unwrap();
                    made += 1;
                }
                made
            })
        })
        .collect();
    let mut there = there;
    for task in tasks {
        there += tokio_wait(world, task);
    }
    there
}

/// Longer than one answer may take.
fn tokio_wait(world: &World, task: tokio::task::JoinHandle<u32>) -> u32 {
    while !task.is_finished() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    world.block_on(task).unwrap()
}

/// What is measured at each number of volumes.
#[derive(Clone, Default)]
struct Round {
    create: Series,
    delete: Series,
    page: Series,
    last: Series,
    all: Series,
    capacity: Series,
}

impl Round {
    fn of(world: &World) -> Self {
        let mut round = Self::default();
        let list = |max_entries: i32, token: &str| {
            let starting_token = token.to_owned();
            world.list_volumes(p::ListVolumesRequest { max_entries, starting_token }).unwrap()
        };
        let everything = list(0, "").entries.len();
        let late = i32::try_from(everything).unwrap() - 10;
        let token = if late > 0 { list(late, "").next_token } else { String::new() };
        for time in 0..TIMES {
            let vol = round.create.time(|| world.try_create(Use::Ext4, &request(&format!("one more {time}")))).unwrap();
            round.delete.time(|| world.delete(&vol)).unwrap();
            round.page.time(|| list(10, ""));
            round.last.time(|| list(10, &token));
            round.all.time(|| list(0, ""));
            round.capacity.time(|| world.capacity());
        }
        round
    }

    fn rows(&self, there: u32, first: &Self) -> Vec<Vec<String>> {
        let rows = [
            ("CreateVolume", &self.create, &first.create),
            ("DeleteVolume", &self.delete, &first.delete),
            ("ListVolumes, the first 10", &self.page, &first.page),
            ("ListVolumes, the last 10", &self.last, &first.last),
            ("ListVolumes, all", &self.all, &first.all),
            ("GetCapacity", &self.capacity, &first.capacity),
        ];
        let row = |(name, now, first): (&str, &Series, &Series)| {
            vec![name.to_owned(), there.to_string(), now.shown(ms), ratio(now, first)]
        };
        rows.into_iter().map(row).collect()
    }
}

/// A row of the driver's memory now.
pub(crate) fn resident(world: &World, when: &str, target: Option<f64>) -> Vec<String> {
    let pid = world.block_on(async {
        let stream = tokio::net::UnixStream::connect(&world.socket).await.unwrap();
        stream.peer_cred().unwrap().pid().unwrap()
    });
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| -> f64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
    };
    let all = of("VmRSS");
    let (target, ratio) = target.map_or_else(Default::default, |target| (mib(target), format!("{:.2}", all / target)));
    vec![when.to_owned(), mib(all), mib(of("RssAnon")), target, ratio]
}
