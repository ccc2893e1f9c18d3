//! Exports and connections of one machine to itself: leftovers of crashes, failed calls, numbers that are given again.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast::attach::{Attach, NvmeTcp, Wanted};
use holdfast::export::{ControllerIds, Enabled, Export, Fenced, Nvmet, Remains, Spec};
use holdfast::home::{Changed, Connection, ConnectionState, DeviceAddress};
use holdfast::os::{Call, Deadline, DevNum, Discard, Interceptor, LoopAccess, LoopConfig, LoopStatus, Os};
use holdfast::types::{Bytes, HostNqn, Kind, ObjectUuid, SubsystemNqn, VolumeId};
use uuid::Uuid;

use super::number_of;
use crate::harness::{PoolFs, Scratch, run};

const SIZE: u64 = 16 << 20;
const ROOT: &str = "/sys/kernel/config/nvmet";

/// A volume with its loop device.
struct Vol {
    status: LoopStatus,
    spec: Spec,
}

impl Vol {
    fn new(scratch: &Scratch, name: &str, port: u16) -> Self {
        let path = scratch.root().join(name);
        let image = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        image.set_len(SIZE).unwrap();
        let config = LoopConfig {
            block_size: 4096,
            name: name.to_owned(),
            owner: name.to_owned(),
            discard: Discard::On,
            access: LoopAccess::Writable,
        };
        let device = Os::new().loop_attach(&image, &path, &config).unwrap();
        let status = Os::new().loop_status(device).unwrap().unwrap();
        let volume: VolumeId = format!("hf1_00000000000000ab_{}", ObjectUuid::of_volume(name)).parse().unwrap();
        let spec = Spec {
            subsystem: SubsystemNqn { volume, nonce: Uuid::new_v4() },
            namespace: Uuid::new_v4(),
            host: HostNqn::random(),
            key: None,
            listen: SocketAddr::new("127.0.0.1".parse().unwrap(), port),
            number: number_of(&device.path()),
            device: device.path(),
            controllers: ControllerIds::default(),
        };
        Self { status, spec }
    }

    fn id(&self) -> VolumeId {
        self.spec.subsystem.volume
    }

    fn wanted(&self) -> Wanted {
        let at = DeviceAddress::NvmeTcp(Box::new(self.spec.address()));
        Wanted { at, size: Bytes::new(SIZE), block_size: 4096, connection: None }
    }

    fn fence(&self, nvmet: &Nvmet) -> holdfast::types::Result<Fenced> {
        let deadline = Deadline::after(Duration::from_secs(60)).unwrap();
        nvmet.fence(&self.spec.subsystem, &Remains::from(&self.spec), deadline)
    }

    fn end(self) {
        assert!(Os::new().loop_clear(&self.status).unwrap());
    }
}

fn nvmet(os: Os) -> Nvmet {
    Nvmet::new(os, 20_000..=20_099)
}

fn entries(directory: &str) -> Vec<String> {
    let found = fs::read_dir(Path::new(ROOT).join(directory)).unwrap();
    let names = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with("discovery")).collect()
}

fn nothing_left() {
    for directory in ["subsystems", "hosts", "ports"] {
        assert_eq!(entries(directory), Vec::<String>::new(), "{directory}");
    }
    assert_eq!(Os::new().nvme_controllers().unwrap(), Vec::new());
}

/// Fails the `at`-th call and every later one: as a crash before it, which is one after the call before it.
struct Crash {
    at: usize,
    seen: Arc<AtomicUsize>,
}

impl Interceptor for Crash {
    fn before(&self, _call: Call, _target: &str) -> io::Result<()> {
        let number = self.seen.fetch_add(1, Ordering::SeqCst);
        if number >= self.at { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `act` with a crash at every call in turn; `check` follows each. Returns the number of calls.
fn crashes(act: impl Fn(Os) -> bool, check: impl Fn(usize)) -> usize {
    for at in 0.. {
        let seen = Arc::new(AtomicUsize::new(0));
        let ended = act(Os::intercepted(Box::new(Crash { at, seen: Arc::clone(&seen) })));
        check(at);
        if seen.load(Ordering::SeqCst) <= at {
            assert!(ended, "without a crash it succeeds");
            return at;
        }
    }
    unreachable!()
}

#[test]
#[ignore = "in a guest: make guests"]
fn a_crash_at_any_call_is_repaired_by_the_next_one() {
    let scratch = Scratch::new(PoolFs::Ext4, 256 << 20);
    let vol = Vol::new(&scratch, "a", 20_001);
    let real = nvmet(Os::new());
    let state = || {
        let [export] = real.exports().unwrap().try_into().unwrap();
        assert_eq!((export.subsystem, export.number), (Some(vol.spec.subsystem), Some(vol.spec.number)));
        (export.namespace, export.ports, export.hosts)
    };
    // After a crash of `ensure`: finished by the next, or removed at once.
    let calls = crashes(
        |os| nvmet(os).ensure(&vol.spec).is_ok(),
        |at| {
            if at % 2 == 0 {
                real.ensure(&vol.spec).unwrap();
                assert_eq!(state(), (Enabled::Yes, vec![20_001], 1));
                assert_eq!(real.ensure(&vol.spec).unwrap(), Changed::No);
            }
            vol.fence(&real).unwrap();
            nothing_left();
        },
    );
    println!("ensure: {calls} calls");
    // After a crash of `fence`.
    let calls = crashes(
        |os| {
            real.ensure(&vol.spec).unwrap();
            vol.fence(&nvmet(os)).is_ok()
        },
        |_| {
            vol.fence(&real).unwrap();
            nothing_left();
        },
    );
    println!("fence: {calls} calls");
    // After a crash of `attach`, and of `detach`.
    real.ensure(&vol.spec).unwrap();
    let nvme = NvmeTcp::new(Os::new());
    let calls = crashes(
        |os| NvmeTcp::new(os).attach(&vol.id(), &vol.wanted()).is_ok(),
        |at| {
            if at % 2 == 0 {
                nvme.attach(&vol.id(), &vol.wanted()).unwrap();
            }
            nvme.detach(&vol.id()).unwrap();
            assert_eq!(nvme.device_of(&vol.id()).unwrap(), None);
        },
    );
    println!("attach: {calls} calls");
    let calls = crashes(
        |os| {
            nvme.attach(&vol.id(), &vol.wanted()).unwrap();
            NvmeTcp::new(os).detach(&vol.id()).is_ok()
        },
        |_| nvme.detach(&vol.id()).unwrap(),
    );
    println!("detach: {calls} calls");
    vol.fence(&real).unwrap();
    nothing_left();
    vol.end();
}

/// What a node and its home node do until the volume has one live connection, as the daemons do every second.
fn connect_again(nvmet: &Nvmet, nvme: &NvmeTcp, rejoining: &NvmeTcp, vol: &Vol) -> holdfast::types::Result<()> {
    let Connection { export, state } = nvme.client(&vol.id())?.connection.expect("a controller is left");
    assert_eq!(export, vol.spec.subsystem);
    if let ConnectionState::Waiting(id) = state {
        vol.fence(nvmet)?;
        nvmet
            .ensure(&Spec { controllers: ControllerIds::without(id.expect("it has a number")), ..vol.spec.clone() })?;
    }
    let wanted = Wanted { connection: Some(Connection { export, state }), ..vol.wanted() };
    rejoining.rejoin(&vol.id(), &wanted)
}

#[test]
#[ignore = "in a guest: make guests"]
fn a_lost_connection_is_made_again_after_a_crash_at_any_call() {
    let scratch = Scratch::new(PoolFs::Ext4, 256 << 20);
    let vol = Vol::new(&scratch, "a", 20_001);
    let (real, nvme) = (nvmet(Os::new()), NvmeTcp::new(Os::new()));
    real.ensure(&vol.spec).unwrap();
    let attached = nvme.attach(&vol.id(), &vol.wanted()).unwrap();
    let number = attached.device.number();
    let file = OpenOptions::new().write(true).open(attached.device.path()).unwrap();
    file.write_all_at(&[7; 4096], 8192).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let instances = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let calls = crashes(
        |os| {
            vol.fence(&real).unwrap();
            while nvme.waiting().unwrap().is_empty() {
                std::thread::sleep(Duration::from_millis(50));
            }
            // Nothing is connected in the place of a connection that the home node does not know as lost.
            let live = Connection { export: vol.spec.subsystem, state: ConnectionState::Live };
            for connection in [None, Some(live)] {
                let error = nvme.attach(&vol.id(), &Wanted { connection, ..vol.wanted() }).unwrap_err();
                assert!(error.kind() == Kind::Busy && error.to_string().contains("changed a moment ago"), "{error}");
            }
            connect_again(&real, &nvme, &NvmeTcp::new(os), &vol).is_ok()
        },
        |_| {
            let live = || nvme.waiting().unwrap().is_empty();
            while !live() {
                connect_again(&real, &nvme, &nvme, &vol).unwrap();
            }
            let [controller] = Os::new().nvme_controllers().unwrap().try_into().unwrap();
            instances.borrow_mut().insert(controller.instance);
            assert_eq!(controller.namespaces[0].number, number, "the device stays the same");
            let read = Os::new().read_device_direct(&attached.device, 8192, 4096).unwrap();
            assert_eq!(read, [7; 4096]);
        },
    );
    println!("rejoin: {calls} calls; controllers {:?}", instances.borrow());
    assert!(calls > 4 && instances.borrow().len() > 1, "another controller takes the place of the lost one");
    drop(attached);
    nvme.detach(&vol.id()).unwrap();
    vol.fence(&real).unwrap();
    nothing_left();
    vol.end();
}

#[test]
#[ignore = "in a guest: make guests"]
fn ports_and_subsystems_of_others_stay_as_they_are() {
    let scratch = Scratch::new(PoolFs::Ext4, 256 << 20);
    let vol = Vol::new(&scratch, "a", 20_001);
    let real = nvmet(Os::new());
    // What a crash left between mkdir and the first write is used.
    let port = PathBuf::from(ROOT).join("ports/20001");
    fs::create_dir(&port).unwrap();
    real.ensure(&vol.spec).unwrap();
    vol.fence(&real).unwrap();
    nothing_left();
    // A port that somebody else configured is an error, and stays.
    fs::create_dir(&port).unwrap();
    fs::write(port.join("addr_trsvcid"), "4420").unwrap();
    assert_eq!(real.ensure(&vol.spec).unwrap_err().kind(), Kind::InUse);
    vol.fence(&real).unwrap();
    assert_eq!(entries("ports"), ["20001"]);
    fs::remove_dir(&port).unwrap();
    // So does a port outside of the range, and another program's export. The latter is a use of its device.
    let other = PathBuf::from(ROOT).join("subsystems/nqn.2014-08.org.example:disk");
    fs::create_dir(&other).unwrap();
    fs::create_dir(other.join("namespaces/7")).unwrap();
    fs::write(other.join("namespaces/7/device_path"), vol.spec.device.to_str().unwrap()).unwrap();
    fs::create_dir(Path::new(ROOT).join("ports/4420")).unwrap();
    let used = Os::new().device_users(vol.spec.number).unwrap();
    assert_eq!(
        used.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["exported over NVMe as nqn.2014-08.org.example:disk"]
    );
    assert_eq!(real.exports().unwrap(), Vec::new());
    real.ensure(&vol.spec).unwrap();
    assert_eq!(real.exported_device(vol.spec.number).unwrap().len(), 2);
    vol.fence(&real).unwrap();
    // While the other namespace is there, our port stays for the next export.
    assert_eq!((entries("ports").len(), entries("subsystems").len()), (2, 1));
    fs::remove_dir(Path::new(ROOT).join("ports/4420")).unwrap();
    fs::remove_dir(other.join("namespaces/7")).unwrap();
    fs::remove_dir(&other).unwrap();
    // A TCP port in use, an address of another machine, and a wrong device node.
    let listener = std::net::TcpListener::bind(vol.spec.listen).unwrap();
    let error = real.ensure(&vol.spec).unwrap_err();
    assert!(error.kind() == Kind::InUse && error.to_string().contains("another program listens"), "{error}");
    drop(listener);
    let elsewhere = Spec { listen: "10.9.9.9:20001".parse().unwrap(), ..vol.spec.clone() };
    assert_eq!(real.ensure(&elsewhere).unwrap_err().kind(), Kind::Precondition);
    real.ensure(&vol.spec).unwrap();
    vol.fence(&real).unwrap();
    let misnamed = Spec { number: DevNum { major: 7, minor: 99 }, ..vol.spec.clone() };
    assert_eq!(real.ensure(&misnamed).unwrap_err().kind(), Kind::Precondition);
    vol.fence(&real).unwrap();
    nothing_left();
    vol.end();
}

#[test]
#[ignore = "in a guest: make guests"]
fn a_number_that_a_pod_still_has_is_given_to_no_other_volume() {
    let scratch = Scratch::new(PoolFs::Ext4, 256 << 20);
    let (one, other) = (Vol::new(&scratch, "one", 20_001), Vol::new(&scratch, "other", 20_002));
    let (real, os) = (nvmet(Os::new()), Os::new());
    let nvme = NvmeTcp::new(os.clone());
    for vol in [&one, &other] {
        real.ensure(&vol.spec).unwrap();
    }
    let attached = nvme.attach(&one.id(), &one.wanted()).unwrap();
    let number = attached.device.number();
    let bind = |node: &Path, name: &str| {
        let point = scratch.path().join(name);
        fs::write(&point, "").unwrap();
        run("/usr/bin/mount", &["--bind", node.to_str().unwrap(), point.to_str().unwrap()]);
        point
    };
    let point = bind(attached.device.path(), "pod");
    drop(attached);
    let error = nvme.detach(&one.id()).unwrap_err();
    assert!(error.kind() == Kind::InUse && error.to_string().contains("bound to"), "{error}");
    // The export is taken away, and so is the connection: the pod keeps its device node.
    one.fence(&real).unwrap();
    for controller in os.nvme_controllers().unwrap() {
        assert!(os.nvme_delete(&controller).unwrap());
    }
    assert_eq!(os.nvme_of(number).unwrap(), None);
    // More pods have the numbers around it.
    let others: Vec<_> = (0..3).filter(|minor| *minor != number.minor).collect();
    let points: Vec<_> = others
        .iter()
        .map(|minor| {
            let node = PathBuf::from(format!("/dev/pod{minor}"));
            run("/usr/bin/mknod", &[node.to_str().unwrap(), "b", &number.major.to_string(), &minor.to_string()]);
            bind(&node, &format!("pod{minor}"))
        })
        .collect();
    let attached = nvme.attach(&other.id(), &other.wanted()).unwrap();
    println!("the first had {number}, the other has {}", attached.device.number());
    assert!(attached.device.number().minor > 2 && number.minor <= 2);
    let again = nvme.attach(&other.id(), &other.wanted()).unwrap();
    assert_eq!(again.device.number(), attached.device.number());
    assert!(OpenOptions::new().read(true).open(&point).is_err(), "the pod's device is gone");
    drop((attached, again));
    nvme.detach(&other.id()).unwrap();
    for point in points.iter().chain([&point]) {
        run("/usr/bin/umount", &[point.to_str().unwrap()]);
    }
    // Smaller than its record, and with another block size: not handed out.
    let refused = |size: u64, block_size: u32| {
        let wanted = Wanted { size: Bytes::new(size), block_size, ..other.wanted() };
        nvme.attach(&other.id(), &wanted).unwrap_err().kind()
    };
    assert_eq!((refused(2 * SIZE, 4096), refused(SIZE, 512)), (Kind::Corrupt, Kind::Corrupt));
    nvme.detach(&other.id()).unwrap();
    other.fence(&real).unwrap();
    nothing_left();
    one.end();
    other.end();
}
