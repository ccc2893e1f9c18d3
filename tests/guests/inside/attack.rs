//! What a pod may try on the node of its raw block volume: a process without any capability, which may open the node.

#![expect(
    unsafe_code,
    reason = "ioctl(2) is unsafe by nature; the kernel reads or writes at most the buffer it is given"
)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::harness::try_run_with;

/// The path of the target for the attacker.
const TARGET: &str = "HOLDFAST_ATTACKED";

/// include/uapi/linux/loop.h and fs.h: calls with no argument, a number, or a pointer to at most a buffer's length.
const ON_THE_DEVICE: [(&str, libc::Ioctl); 11] = [
    ("LOOP_GET_STATUS64", 0x4C05),
    ("LOOP_SET_STATUS64", 0x4C04),
    ("LOOP_SET_STATUS", 0x4C02),
    ("LOOP_CHANGE_FD", 0x4C06),
    ("LOOP_CONFIGURE", 0x4C0A),
    ("LOOP_SET_CAPACITY", 0x4C07),
    ("LOOP_SET_DIRECT_IO", 0x4C08),
    ("LOOP_SET_BLOCK_SIZE", 0x4C09),
    ("LOOP_CLR_FD", 0x4C01),
    ("BLKRRPART", 0x125F),
    ("BLKROSET", 0x125D),
];
/// include/uapi/linux/dm-ioctl.h: DM_REMOVE_ALL, DM_DEV_CREATE, DM_DEV_REMOVE, DM_DEV_SUSPEND, DM_TABLE_LOAD,
/// DM_TABLE_STATUS.
const ON_THE_CONTROL_NODE: [(&str, libc::Ioctl); 6] = [
    ("DM_REMOVE_ALL", 0xC138_FD01),
    ("DM_DEV_CREATE", 0xC138_FD03),
    ("DM_DEV_REMOVE", 0xC138_FD04),
    ("DM_DEV_SUSPEND", 0xC138_FD06),
    ("DM_TABLE_LOAD", 0xC138_FD09),
    ("DM_TABLE_STATUS", 0xC138_FD0C),
];

/// The calls that a process without capabilities can make on a block device's node, by name, without those that the
/// kernel refused. The node must be open for writing, or the attack proves nothing.
pub(crate) fn succeeds_with(node: &Path) -> Vec<String> {
    let itself = std::env::current_exe().unwrap();
    let drop_all = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"];
    let attacker = [itself.to_str().unwrap(), "--ignored", "--exact", "--nocapture", "inside::attack::attacker"];
    let arguments: Vec<_> = drop_all.into_iter().chain(attacker).collect();
    let target = [(TARGET, node.to_str().unwrap())];
    let said = try_run_with("/usr/bin/setpriv", &arguments, &target);
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    let lines: Vec<_> = said.stdout.lines().collect();
    let tried = lines.iter().filter(|line| line.starts_with("tried ")).count();
    assert_eq!(tried, ON_THE_DEVICE.len() + ON_THE_CONTROL_NODE.len(), "{}", said.stdout);
    lines.iter().filter_map(|line| line.strip_suffix(" = done")?.strip_prefix("tried ")).map(str::to_owned).collect()
}

#[test]
#[ignore = "started by succeeds_with, in a guest"]
fn attacker() {
    let target = std::env::var(TARGET).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(status.lines().any(|line| line == "CapEff:\t0000000000000000"), "{status}");
    let node = OpenOptions::new().read(true).write(true).open(&target).unwrap();
    // After the test's name, which has no end of line.
    println!();
    // LOOP_CLR_FD near the end: after it the other calls would have no device.
    attempt(&node, &ON_THE_DEVICE);
    let control = OpenOptions::new().read(true).write(true).open("/dev/mapper/control").unwrap();
    attempt(&control, &ON_THE_CONTROL_NODE);
}

fn attempt(file: &File, requests: &[(&str, libc::Ioctl)]) {
    for (name, request) in requests {
        // The head of a dm message: version 4.0.0, its size and where its data begins; to a loop device it is zeroes
        // enough.
        let mut buffer = [0_u8; 4096];
        if name.starts_with("DM_") {
            buffer[0] = 4;
            buffer[12..16].copy_from_slice(&4096_u32.to_ne_bytes());
            buffer[16..20].copy_from_slice(&312_u32.to_ne_bytes());
        }
        // SAFETY: the kernel reads or writes at most one structure of these interfaces, all shorter than the buffer;
        // those
        // that take a number take the pointer for one.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), *request, buffer.as_mut_ptr()) };
        let error = std::io::Error::last_os_error();
        println!("tried {name} = {}", if result < 0 { error.to_string() } else { "done".to_owned() });
    }
}
