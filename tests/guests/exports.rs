//! Exports over NVMe/TCP between two guests: `home` exports, `client` connects. They are joined by a cable, and each step
//! is a process of its own, so every step is also one after a restart of the driver.

use std::path::PathBuf;

use holdfast::os::Stopwatch;
use holdfast::types::DhchapKey;

use crate::inside::exports::STEP;
use crate::machine::{Guest, Image, Machine, Memory, Wire};
use crate::root::Kernel;

/// Bytes of a volume.
pub(crate) const SIZE: u64 = 64 << 20;

/// Two guests and the disks of the first.
pub(crate) struct Pair {
    pub(crate) home: Guest,
    pub(crate) client: Guest,
    _disks: Vec<tempfile::NamedTempFile>,
    watch: Stopwatch,
}

impl Pair {
    /// Boots both. The home's disks have XFS and are mounted at /tmp/pool1 and on.
    pub(crate) fn start(kernel: Kernel, disks: usize) -> Self {
        Self::with_programs(kernel, disks, &[])
    }

    /// The same with more programs of this machine in both guests.
    pub(crate) fn with_programs(kernel: Kernel, disks: usize, programs: &[&str]) -> Self {
        let watch = Stopwatch::start();
        let root = Image::with(programs);
        let made = || {
            let disk = tempfile::Builder::new().prefix("holdfast-disk-").tempfile().unwrap();
            disk.as_file().set_len(8 << 30).unwrap();
            disk
        };
        let disks: Vec<_> = (0..disks).map(|_| made()).collect();
        let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.path().to_owned()).collect();
        let [left, right] = Wire::ends();
        let machine = |disks, link| {
            let (root, memory) = (root.clone(), Memory::Kept);
            Machine { kernel, root, disks, memory, link: Some(link), parameters: "" }
        };
        let (home, client) = std::thread::scope(|scope| {
            let home = scope.spawn(|| Guest::start("home", machine(paths, left)));
            let client = scope.spawn(|| Guest::start("client", machine(Vec::new(), right)));
            (home.join().unwrap(), client.join().unwrap())
        });
        let mut pair = Self { home, client, _disks: disks, watch };
        pair.said("booted");
        for disk in 1..=pair._disks.len() {
            pair.home.must(&format!("mkfs.xfs -q {}", vd(disk)));
        }
        pair.load_home();
        pair.client.must("modprobe -a nvme-tcp xfs && ping -c 1 -W 5 10.0.0.1");
        pair
    }

    /// What the home needs after each boot.
    pub(crate) fn load_home(&mut self) {
        self.home.must("modprobe -a nvmet-tcp nvme-tcp xfs loop && mount -t configfs configfs /sys/kernel/config");
        for disk in 1..=self._disks.len() {
            self.home.must(&format!("mkdir -p /tmp/pool{disk} && mount {} /tmp/pool{disk}", vd(disk)));
        }
    }

    /// Attaches the loop device of a volume, with its image on a pool; the image is created if it is missing.
    pub(crate) fn volume(&mut self, pool: usize, name: &str, number: usize) -> String {
        let image = format!("/tmp/pool{pool}/{name}");
        self.home.must(&format!(
            "[ -e {image} ] || fallocate -l {SIZE} {image}; /usr/sbin/losetup --direct-io=on --sector-size 4096 /dev/loop{number} {image} 2>/dev/null || {{ mknod /dev/loop{number} b 7 {number}; /usr/sbin/losetup --direct-io=on --sector-size 4096 /dev/loop{number} {image}; }}"
        ));
        format!("/dev/loop{number}")
    }

    /// Prints what was reached, and when.
    pub(crate) fn said(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", self.watch.elapsed().as_secs_f64());
    }
}

fn vd(disk: usize) -> String {
    format!("/dev/vd{}", ["a", "b", "c"][disk])
}

/// The line of shell of a step.
pub(crate) fn line(step: &str) -> String {
    let itself = std::env::current_exe().unwrap();
    format!("{STEP}='{step}' {} --ignored --exact --nocapture inside::exports::step", itself.display())
}

/// Runs a step of [`crate::inside::exports`].
pub(crate) fn step(guest: &mut Guest, step: &str) -> Result<String, String> {
    let watch = Stopwatch::start();
    let output = guest.must(&line(step));
    let (_, result) = output.split_once("=> ").unwrap_or_else(|| panic!("{step}: {output}"));
    let (result, _) = result.split_once("\ntest ").unwrap_or((result, ""));
    let result = result.split("\nok\n").next().unwrap().trim();
    let shown = result.lines().next().unwrap_or_default();
    eprintln!("    {:5.2} s  {step}: {shown}", watch.elapsed().as_secs_f64());
    match result.strip_prefix("error ") {
        Some(error) => Err(error.to_owned()),
        None => Ok(result.strip_prefix("ok").unwrap().trim().to_owned()),
    }
}

/// Runs a step that must succeed.
pub(crate) fn done(guest: &mut Guest, what: &str) -> String {
    step(guest, what).unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Runs a step that must be refused with this kind.
pub(crate) fn refused(guest: &mut Guest, what: &str, kind: &str) -> String {
    let error = step(guest, what).expect_err(what);
    assert!(error.starts_with(&format!("{kind}: ")), "{what}: {error}");
    error
}

/// Asserts that no part of an export is left in configfs. The discovery subsystem is the kernel's own.
pub(crate) fn nothing_left(home: &mut Guest) {
    let left = home.must("cd /sys/kernel/config/nvmet && ls subsystems hosts ports");
    let left: Vec<_> =
        left.split_whitespace().filter(|name| !name.ends_with(':') && !name.ends_with("discovery")).collect();
    assert_eq!(left, Vec::<&str>::new());
}

#[test]
fn exports_and_connections_of_one_machine() {
    alone(Kernel::Newest, "");
}

pub(crate) fn alone(kernel: Kernel, parameters: &'static str) {
    let (root, memory) = (Image::new(), Memory::Kept);
    let machine = Machine { kernel, root, disks: Vec::new(), memory, link: None, parameters };
    let mut guest = Guest::start("alone", machine);
    guest.must("modprobe -a nvmet-tcp nvme-tcp loop && mount -t configfs configfs /sys/kernel/config");
    if parameters.contains("multipath=N") {
        let support = done(&mut guest, "support");
        assert!(support.contains("No(") && support.contains("nvme_core.multipath=Y"), "{support}");
        return;
    }
    guest.test("loopback::a_crash_at_any_call_is_repaired_by_the_next_one");
    guest.test("loopback::a_lost_connection_is_made_again_after_a_crash_at_any_call");
    guest.test("loopback::ports_and_subsystems_of_others_stay_as_they_are");
    guest.test("loopback::a_number_that_a_pod_still_has_is_given_to_no_other_volume");
    let multipath = guest.must("cat /sys/module/nvme_core/parameters/multipath");
    assert_eq!(multipath.trim(), if parameters.is_empty() { "Y" } else { "N" });
}

#[test]
fn a_volume_is_written_on_one_node_and_read_on_another() {
    moves(Kernel::Newest);
}

pub(crate) fn moves(kernel: Kernel) {
    let mut pair = Pair::start(kernel, 1);
    let device = pair.volume(1, "a", 0);
    eprintln!("{}", pair.home.must("uname -r").trim());
    let support = done(&mut pair.home, "support");
    let (home, client) = support.split_once(' ').unwrap();
    // Debian's 6.1 kernel has DH-HMAC-CHAP on neither side.
    let has = if kernel == Kernel::Newest { "Yes(Yes)" } else { "Yes(No)" };
    assert_eq!((home, client), (has, has));

    // Nothing listens before the export is complete.
    let at = |nonce: u32| format!("name=a nonce={nonce} port=20001 device={device}");
    let from = |nonce: u32| format!("name=a nonce={nonce} port=20001 size={SIZE}");
    refused(&mut pair.client, &format!("attach {}", from(1)), "Unavailable");
    assert_eq!(done(&mut pair.home, &format!("ensure {}", at(1))), "Yes");
    assert_eq!(done(&mut pair.home, &format!("ensure {}", at(1))), "No");
    pair.said("exported");
    // O_EXCL does not see an export; its users are found nevertheless.
    let users = done(&mut pair.home, &format!("users device={device}"));
    assert_eq!(users.matches("nqn.2026-11.storage.holdfast:").count(), 2, "{users}");
    // A live export is compared, never changed.
    for other in ["namespace=77", "host=78"] {
        let error = refused(&mut pair.home, &format!("ensure {} {other}", at(1)), "Precondition");
        assert!(error.contains("exists and differs"), "{error}");
    }
    // A port belongs to one export.
    pair.volume(1, "b", 1);
    let error = refused(&mut pair.home, "ensure name=b nonce=5 port=20001 device=/dev/loop1", "InUse");
    assert!(error.contains("port 20001"), "{error}");
    assert_eq!(done(&mut pair.home, "fence name=b nonce=5 port=20001"), "Now");
    assert_eq!(done(&mut pair.home, "fence name=b nonce=5 port=20001"), "Absent");

    // Another host is refused, and leaves nothing.
    step(&mut pair.client, &format!("attach {} host=79", from(1))).unwrap_err();
    assert_eq!(pair.client.must("ls /sys/class/nvme").trim(), "");
    let disk = done(&mut pair.client, &format!("attach {}", from(1)));
    assert_eq!(done(&mut pair.client, &format!("attach {}", from(1))), disk, "one connection");
    pair.said("attached");
    let exports = done(&mut pair.home, "exports");
    for shown in ["namespace: Yes", "20001", "hosts: 1", "connections: 2"] {
        assert!(exports.contains(shown), "{shown}: {exports}");
    }
    assert_eq!(pair.client.must(&format!("cat /sys/block/{}/queue/logical_block_size", &disk[5..])).trim(), "4096");
    pair.client.must(&format!(
        "mkfs.ext4 -q {disk} && mkdir -p /tmp/m && mount {disk} /tmp/m && seq 100000 >/tmp/m/file && sync"
    ));
    let sum = pair.client.must("sha256sum </tmp/m/file");
    let error = refused(&mut pair.client, "detach name=a", "InUse");
    assert!(error.contains("mounted at /tmp/m"), "{error}");
    pair.client.must("umount /tmp/m");
    done(&mut pair.client, "detach name=a");
    assert_eq!(pair.client.must("ls /sys/class/nvme").trim(), "");
    pair.said("written and detached");

    let disk = done(&mut pair.client, &format!("attach {}", from(1)));
    pair.client.must(&format!("mount {disk} /tmp/m"));
    assert_eq!(pair.client.must("sha256sum </tmp/m/file"), sum);
    pair.said("read again");
    // Growth reaches the client without a new connection.
    pair.home.must(&format!("fallocate -l {} /tmp/pool1/a && /usr/sbin/losetup -c {device}", 2 * SIZE));
    done(&mut pair.home, &format!("resized {}", at(1)));
    pair.client.must(&format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do [ $(cat /sys/block/{}/size) = {} ] && exit 0; sleep 0.2; done; exit 1",
        &disk[5..],
        2 * SIZE / 512
    ));
    pair.client.must(&format!("resize2fs {disk} 2>&1; sha256sum /tmp/m/file; umount /tmp/m"));
    pair.said("grown");

    // Detached at the home, and attached again under another name, while the client still has the first connection.
    assert_eq!(done(&mut pair.home, &format!("fence {}", at(1))), "Now");
    nothing_left(&mut pair.home);
    done(&mut pair.home, &format!("ensure {}", at(2)));
    let disk = done(&mut pair.client, &format!("attach {}", from(2)));
    assert_eq!(
        pair.client.must("cat /sys/class/nvme/nvme*/subsysnqn").trim().lines().count(),
        1,
        "the stale one is gone"
    );
    pair.client.must(&format!("mount {disk} /tmp/m"));
    pair.client.must("sha256sum /tmp/m/file; umount /tmp/m");
    // The earlier name has no export any more.
    refused(&mut pair.client, &format!("attach {}", from(1)), "Busy");
    assert_eq!(pair.client.must("ls /sys/class/nvme").trim(), "");
    pair.said("attached again under another name");

    if kernel == Kernel::Newest {
        let (key, other) = (DhchapKey::random().unwrap(), DhchapKey::random().unwrap());
        let device = pair.volume(1, "k", 2);
        let at = format!("name=k nonce=3 port=20003 device={device} key={}", key.reveal());
        assert_eq!(done(&mut pair.home, &format!("ensure {at}")), "Yes");
        assert_eq!(done(&mut pair.home, &format!("ensure {at}")), "No");
        let from = format!("name=k nonce=3 port=20003 size={SIZE}");
        step(&mut pair.client, &format!("attach {from}")).unwrap_err();
        step(&mut pair.client, &format!("attach {from} key={}", other.reveal())).unwrap_err();
        done(&mut pair.client, &format!("attach {from} key={}", key.reveal()));
        done(&mut pair.client, "detach name=k");
        done(&mut pair.home, &format!("fence name=k nonce=3 port=20003 device={device}"));
        pair.said("authenticated");
    }
    let dmesg = pair.client.must("dmesg | grep -ciE 'I/O error|duplicate IDs' || true");
    eprintln!("errors in the client's log: {}", dmesg.trim());
}
