//! Clients that misbehave: the daemon refuses them or closes their connections, serves the others meanwhile, limits its
//! memory, and releases all file descriptors afterwards.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::csi::proto::identity_client::IdentityClient;
use holdfast::os::Stopwatch;
use tonic::Code;

use crate::harness::raw::{Raw, figures};
use crate::harness::{MIB, PoolFs, Use, World, await_that, create_request, refused, run};
use crate::observability::get;

/// How much more memory than idle the daemon may use in these tests, in KiB. Each of hundreds of running calls has a
/// thread, whose stack and malloc arena remain for a while.
const MOST_MORE: u64 = 96 << 10;
/// The daemon's limit of connections (src/csi/connections.rs), and what may be open besides for running work.
const MOST_CONNECTIONS: usize = 256;
const FOR_WORK: usize = 300;

/// The daemon's figures over a test: the peak is measured as long as this exists.
struct Watch {
    pid: u32,
    before: (u64, usize),
    peak: Arc<AtomicU64>,
    fds: Arc<AtomicU64>,
    stop: Arc<AtomicU64>,
    looking: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    fn new(world: &mut World) -> Self {
        world.volume_ids();
        let pid = world.daemon().pid();
        let (peak, fds, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (peak_seen, fds_seen, stopped) = (Arc::clone(&peak), Arc::clone(&fds), Arc::clone(&stop));
        let looking = std::thread::spawn(move || {
            while stopped.load(Ordering::Relaxed) == 0 {
                let Some((resident, open)) = figures(pid) else { return };
                peak_seen.fetch_max(resident, Ordering::Relaxed);
                fds_seen.fetch_max(u64::try_from(open).unwrap(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { pid, before: figures(pid).unwrap(), peak, fds, stop, looking: Some(looking) }
    }

    /// The daemon still runs, stays within its memory, serves, and has released its descriptors.
    fn ended(mut self, what: &str, world: &mut World) {
        self.stop.store(1, Ordering::Relaxed);
        self.looking.take().unwrap().join().unwrap();
        let (peak, fds) = (self.peak.load(Ordering::Relaxed), self.fds.load(Ordering::Relaxed));
        eprintln!("{what}: {} -> {peak} KiB resident, {} -> {fds} descriptors", self.before.0, self.before.1);
        assert!(world.daemon().ended().is_none(), "{what}: the daemon ended");
        assert!(peak <= self.before.0 + MOST_MORE, "{what}: {} KiB became {peak}", self.before.0);
        let most = self.before.1 + MOST_CONNECTIONS + FOR_WORK;
        assert!(usize::try_from(fds).unwrap() <= most, "{what}: {fds} descriptors were open");
        served(world);
        await_that(&format!("{what}: the descriptors are back"), Duration::from_secs(20), || {
            figures(self.pid).unwrap().1 <= self.before.1 + 2
        });
    }
}

/// A new, well-behaved client is answered soon.
fn served(world: &World) {
    let watch = Stopwatch::start();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", world.socket.display())).unwrap();
    let channel = world.block_on(endpoint.connect()).unwrap();
    let mut identity = IdentityClient::new(channel.clone());
    world.block_on(identity.probe(p::ProbeRequest {})).unwrap();
    let mut controller = ControllerClient::new(channel);
    world.block_on(controller.list_volumes(p::ListVolumesRequest::default())).unwrap();
    assert!(watch.elapsed() < Duration::from_secs(5), "a new client waited {:?}", watch.elapsed());
}

/// Raises the limit of this process; the daemon, started before, has the usual limit.
fn many_descriptors() {
    let pid = std::process::id().to_string();
    run("/usr/bin/prlimit", &["--pid", &pid, "--nofile=16384:"]);
}

#[test]
fn what_is_no_call_is_hung_up_on_or_refused() {
    let mut world = World::new(PoolFs::Xfs);
    let watch = Watch::new(&mut world);
    let soon = Duration::from_secs(12);
    let noise: Vec<u8> = (0..100_000_u32).map(|i| u8::try_from(i.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    type Say = fn(&mut Raw, &[u8]);
    let cases: &[(&str, Say)] = &[
        ("nothing, and goes", |raw, _| raw.hang_up_half()),
        ("noise", |raw, noise| {
            raw.say(noise);
        }),
        ("HTTP/1", |raw, _| {
            raw.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        }),
        ("half a preface, and goes", |raw, _| {
            raw.say(b"PRI * HTTP/2.0\r\n");
            raw.hang_up_half();
        }),
        ("noise behind the preface", |raw, noise| {
            raw.greet(65_535);
            raw.say(noise);
        }),
        ("noise within a call", |raw, noise| {
            raw.greet(65_535);
            raw.call(1, "/csi.v1.Controller/CreateVolume", &[]);
            raw.say(noise);
        }),
        ("half a call, and goes", |raw, _| {
            raw.greet(65_535);
            raw.call(1, "/csi.v1.Controller/CreateVolume", &[]);
            raw.message(1, 1000, b"\x0a\x03vol", false);
            raw.hang_up_half();
        }),
        ("a frame of 16 MiB", |raw, _| {
            raw.greet(65_535);
            raw.say(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
        }),
    ];
    for (what, say) in cases {
        let mut raw = Raw::connect(&world.socket);
        say(&mut raw, &noise);
        assert!(raw.closed_within(soon), "{what}: the connection stays");
        served(&world);
    }
    // A message that is too long is refused with an error, however it is sent.
    let mut request = create_request("n", Use::Block, 16 * MIB);
    request.name = "n".repeat(5 << 20);
    let said =
        refused(world.create_volume(request), &[Code::OutOfRange, Code::ResourceExhausted, Code::InvalidArgument]);
    assert!(said.contains("4194304"), "{said}");
    let mut raw = Raw::connect(&world.socket);
    raw.greet(65_535);
    for stream in 0..100 {
        raw.call(stream * 2 + 1, "/csi.v1.Controller/CreateVolume", &[]);
        raw.message(stream * 2 + 1, u32::MAX, b"", false);
        raw.call(stream * 2 + 201, "/csi.v1.Nothing/Nothing", &[("x-long", &"x".repeat(8000))]);
    }
    served(&world);
    drop(raw);
    watch.ended("no calls", &mut world);
    world.finish();
}

#[test]
fn thousands_of_connections_leave_room_for_those_that_call() {
    let mut world = World::new(PoolFs::Xfs);
    let watch = Watch::new(&mut world);
    many_descriptors();
    let vol = world.create("vol", Use::Block);
    let mut all = Vec::new();
    for i in 0..4000 {
        let mut raw = Raw::connect(&world.socket);
        match i % 4 {
            0 => {}
            1 => assert!(raw.say(b"PRI * HT")),
            2 => assert!(raw.greet(65_535)),
            _ => {
                raw.greet(65_535);
                raw.call(1, "/csi.v1.Controller/ListVolumes", &[]);
            }
        }
        all.push(raw);
        if i % 500 == 499 {
            served(&world);
            assert_eq!(world.create("vol", Use::Block).id, vol.id);
        }
    }
    let open = all.iter_mut().filter_map(|raw| (!raw.closed_within(Duration::from_millis(1))).then_some(())).count();
    assert!(open <= MOST_CONNECTIONS, "{open} of 4000 connections are open");
    served(&world);
    drop(all);
    watch.ended("4000 connections", &mut world);
    world.finish();
}

#[test]
fn requests_that_never_arrive_take_nobody_s_turn() {
    let mut world = World::new(PoolFs::Xfs);
    let watch = Watch::new(&mut world);
    let mut slow: Vec<_> = (0..40).map(|_| Raw::connect(&world.socket)).collect();
    let paths = ["/csi.v1.Controller/CreateVolume", "/csi.v1.Node/NodeStageVolume", "/csi.v1.Identity/Probe"];
    for (raw, path) in slow.iter_mut().zip(paths.iter().cycle()) {
        raw.greet(65_535);
        for stream in 0..100 {
            raw.call(stream * 2 + 1, path, &[]);
            // The beginning of a message with an allowed length.
            raw.message(stream * 2 + 1, 60_000, &[0; 500], false);
        }
    }
    let vol = world.create("vol", Use::Block);
    world.publish(&vol).unwrap();
    served(&world);
    // In the end they are refused: two of three, because Identity accepts no such message.
    await_that("all were ended", Duration::from_secs(60), || {
        world.log().lines().filter(|line| line.contains("did not arrive within")).count() >= 2600
    });
    served(&world);
    drop(slow);
    watch.ended("4000 requests that never arrive", &mut world);
    world.finish();
}

#[test]
fn answers_nobody_reads_do_not_fill_memory() {
    let mut world = World::new(PoolFs::Xfs);
    for i in 0..64 {
        let mut request = create_request(&format!("vol-{i}"), Use::Block, MIB);
        request.parameters.insert("provisioning".into(), "thin".into());
        world.create_volume(request).unwrap();
    }
    let watch = Watch::new(&mut world);
    let mut deaf: Vec<_> = (0..60).map(|_| Raw::connect(&world.socket)).collect();
    for raw in &mut deaf {
        raw.greet(0);
        for stream in 0..100 {
            raw.call(stream * 2 + 1, "/csi.v1.Controller/ListVolumes", &[]);
            raw.message(stream * 2 + 1, 0, b"", true);
        }
    }
    // They answer pings: the keepalive does not close them.
    let pings: Vec<_> = deaf.iter().map(Raw::answer_pings).collect();
    // Calls that need no work are answered; the other clients are closed because they read no answer.
    world.probe(p::ProbeRequest {}).unwrap();
    await_that("all turns are taken", Duration::from_secs(30), || {
        let listed = world.list_volumes(p::ListVolumesRequest::default());
        listed.is_err_and(|status| status.code() == Code::Unavailable)
    });
    world.probe(p::ProbeRequest {}).unwrap();
    await_that("others are served again", Duration::from_secs(60), || {
        world.list_volumes(p::ListVolumesRequest::default()).is_ok()
    });
    // Those whose answers were ready are closed; the others were refused because there were too many.
    await_that("one is hung up on", Duration::from_secs(10), || pings.iter().any(std::thread::JoinHandle::is_finished));
    deaf.iter().for_each(Raw::hang_up);
    pings.into_iter().for_each(|pings| pings.join().unwrap());
    drop(deaf);
    watch.ended("6000 answers nobody reads", &mut world);
    world.finish();
}

/// So many calls at once over so many connections; returns how many had which code.
fn storm(
    world: &World,
    connections: usize,
    count: usize,
    request: impl Fn(usize) -> p::CreateVolumeRequest,
) -> Vec<Code> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", world.socket.display())).unwrap();
    let channels: Vec<_> = (0..connections).map(|_| world.block_on(async { endpoint.connect_lazy() })).collect();
    let calls: Vec<_> = (0..count)
        .map(|i| {
            let mut client = ControllerClient::new(channels[i % connections].clone());
            let request = request(i);
            world.spawn(async move { client.create_volume(request).await })
        })
        .collect();
    let mut codes = Vec::new();
    for call in calls {
        let answer = world.block_on(call).unwrap();
        if let Err(status) = &answer {
            assert!(!status.message().is_empty());
        }
        codes.push(answer.map_or_else(|status| status.code(), |_| Code::Ok));
    }
    codes
}

fn tally(what: &str, codes: &[Code]) {
    let mut told = std::collections::BTreeMap::<String, usize>::new();
    for code in codes {
        *told.entry(format!("{code:?}")).or_default() += 1;
    }
    eprintln!("{what}: {told:?}");
    // All of these mean "retry" to every sidecar.
    let retried = [Code::Ok, Code::Aborted, Code::Unavailable, Code::DeadlineExceeded];
    assert!(codes.iter().all(|code| retried.contains(code)), "{what}: {told:?}");
    assert!(codes.contains(&Code::Ok), "{what}: none got through");
}

#[test]
fn ten_thousand_calls_at_once_on_one_volume_and_on_many() {
    let mut world = World::new(PoolFs::Xfs);
    let watch = Watch::new(&mut world);
    let thin = |name: String| {
        let mut request = create_request(&name, Use::Block, MIB);
        request.parameters.insert("provisioning".into(), "thin".into());
        request
    };
    let codes = storm(&world, 1, 10_000, |_| thin("one".into()));
    tally("10000 calls on one volume, 1 connection", &codes);
    served(&world);
    let codes = storm(&world, 20, 10_000, |i| thin(format!("many-{}", i % 200)));
    tally("10000 calls on 200 volumes, 20 connections", &codes);
    watch.ended("10000 calls at once", &mut world);
    assert!(world.volume_ids().len() <= 201);
    world.finish();
}

/// The most connections of the daemon's metrics port (src/wire/shares.rs), and those of one network.
const MOST_OF_METRICS: usize = 64;
const MOST_OF_ONE: usize = MOST_OF_METRICS / 4;

#[test]
fn half_requests_to_the_port_of_metrics_take_nothing_from_the_rest() {
    let mut world = World::new(PoolFs::Xfs);
    let watch = Watch::new(&mut world);
    many_descriptors();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", world.daemon().pid())).unwrap();
    let files: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "the soft limit is not the hard one: {files:?}");
    let vol = world.create("vol", Use::Block);
    let mut all = Vec::new();
    for i in 0..1500 {
        let mut stream = TcpStream::connect(&world.metrics).unwrap();
        let head: &[u8] = match i % 3 {
            0 => b"",
            1 => b"GET /metrics HTTP/1.1\r\nHost: x\r\n",
            _ => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        let _ = stream.write_all(head);
        all.push(stream);
        if i % 300 == 299 {
            served(&world);
            assert_eq!(world.create("vol", Use::Block).id, vol.id);
            assert_eq!(get(&world, "/healthz").0, 200);
            assert!(get(&world, "/metrics").1.contains("holdfast_pools_readable 1"));
        }
    }
    let is_open = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let mut buffer = [0; 64 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    };
    let open = all.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count();
    assert!(open <= MOST_OF_ONE, "{open} of 1500 connections are open");
    // A request longer than a header block, or one that never arrives, closes the connection.
    let mut long = TcpStream::connect(&world.metrics).unwrap();
    let _ = long.write_all(b"GET /metrics HTTP/1.1\r\n");
    let _ = (0..64).try_for_each(|i| long.write_all(format!("x-{i}: {}\r\n", "y".repeat(1000)).as_bytes()));
    let mut slow = TcpStream::connect(&world.metrics).unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
    await_that("both are hung up on", Duration::from_secs(20), || !is_open(&mut long) && !is_open(&mut slow));
    drop(all);
    watch.ended("1500 half requests to the port of metrics", &mut world);
    world.finish();
}
