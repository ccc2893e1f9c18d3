//! What an export costs, in ratios within one run: `make bench-network`. Nothing passes or fails by its time.

use crate::exports::{Pair, SIZE, done};
use crate::inside::load::LOAD;
use crate::machine::Guest;
use crate::root::Kernel;

/// How often each job runs, in turns, and for how long.
const TIMES: usize = 3;
const MILLISECONDS: u32 = 2000;
/// Of the export that is made by hand.
const NQN: &str = "nqn.2026-11.test:by-hand";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:6f1c3a52-6d3c-4d7a-8f0a-0123456789ab";

/// A name, and the words of the job.
const JOBS: [(&str, &str); 7] = [
    ("read, 4 KiB anywhere, 1 at a time", "read random 4096 1 plain"),
    ("read, 4 KiB anywhere, 32 at once", "read random 4096 32 plain"),
    ("write, 4 KiB anywhere, 1 at a time", "write random 4096 1 plain"),
    ("write, 4 KiB anywhere, 32 at once", "write random 4096 32 plain"),
    ("read, 1 MiB, one after the other", "read sequential 1048576 1 plain"),
    ("write, 1 MiB, one after the other", "write sequential 1048576 1 plain"),
    ("fsync after every 4 KiB written", "write random 4096 1 fsync"),
];

/// Requests a second.
fn load(guest: &mut Guest, device: &str, job: &str) -> f64 {
    let itself = std::env::current_exe().unwrap();
    let output = guest.must(&format!(
        "{LOAD}='{device} {job} {MILLISECONDS}' {} --ignored --exact --nocapture inside::load::load",
        itself.display()
    ));
    let (_, figure) = output.split_once("=> ").unwrap_or_else(|| panic!("{job}: {output}"));
    figure.lines().next().unwrap().trim().parse().unwrap()
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// The loop device of an image whose blocks are all written, so that no job allocates.
fn device(pair: &mut Pair, name: &str, number: usize, flag: &str) -> String {
    let device = pair.volume(1, name, number);
    pair.home.must(&format!(
        "dd if=/dev/zero of={device} bs=1M count={} oflag=direct 2>/dev/null && sync && chattr {flag}S /tmp/pool1/{name}",
        SIZE >> 20
    ));
    device
}

/// Exports a device with the settings of the driver, and connects.
fn by_hand(pair: &mut Pair, device: &str) -> String {
    pair.home.must(&format!(
        "cd /sys/kernel/config/nvmet && mkdir -p subsystems/{NQN}/namespaces/1 hosts/{HOST} ports/9 && cd subsystems/{NQN} && \
         echo 0 >attr_allow_any_host && echo {device} >namespaces/1/device_path && echo 1 >namespaces/1/enable && \
         ln -s /sys/kernel/config/nvmet/hosts/{HOST} allowed_hosts/ && cd ../../ports/9 && echo tcp >addr_trtype && \
         echo ipv4 >addr_adrfam && echo 10.0.0.1 >addr_traddr && echo 20090 >addr_trsvcid && \
         ln -s /sys/kernel/config/nvmet/subsystems/{NQN} subsystems/"
    ));
    pair.client.must(&format!(
        "echo transport=tcp,traddr=10.0.0.1,trsvcid=20090,nqn={NQN},hostnqn={HOST},hostid=6f1c3a52-6d3c-4d7a-8f0a-0123456789ab,ctrl_loss_tmo=-1,keep_alive_tmo=5,nr_io_queues=1 >/dev/nvme-fabrics"
    ));
    let found = format!(
        "for of in /sys/class/nvme-subsystem/*; do if grep -qx {NQN} $of/subsysnqn; then cd $of && ls -d nvme*n1; fi; done"
    );
    let name = pair.client.must(&format!("until [ -n \"$({found})\" ]; do sleep 0.1; done; {found}"));
    format!("/dev/{}", name.trim())
}

#[test]
fn an_export_beside_others() {
    let mut pair = Pair::with_programs(Kernel::Newest, 1, &["/usr/bin/chattr"]);
    let local = device(&mut pair, "local", 1, "-");
    let at = format!("name=export nonce=1 port=20001 device={}", device(&mut pair, "export", 2, "+"));
    done(&mut pair.home, &format!("ensure {at}"));
    let export = done(&mut pair.client, &format!("attach name=export nonce=1 port=20001 size={SIZE}"));
    let other = device(&mut pair, "hand", 3, "+");
    let hand = by_hand(&mut pair, &other);
    pair.said("connected");
    println!("| job | local device | export | by hand | without FS_SYNC_FL | of local | of by hand | of without |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, job) in JOBS {
        let mut figures: [Vec<f64>; 4] = Default::default();
        for _ in 0..TIMES {
            figures[0].push(load(&mut pair.home, &local, job));
            figures[1].push(load(&mut pair.client, &export, job));
            figures[2].push(load(&mut pair.client, &hand, job));
            pair.home.must("chattr -S /tmp/pool1/export");
            figures[3].push(load(&mut pair.client, &export, job));
            pair.home.must("chattr +S /tmp/pool1/export");
        }
        let [local, export, hand, without] = figures.map(median);
        let ratios = [local, hand, without].map(|other| format!("{:.2}", export / other)).join(" | ");
        println!("| {name} | {local:.0}/s | {export:.0}/s | {hand:.0}/s | {without:.0}/s | {ratios} |");
    }
    pair.said("measured");
}
