//! The end of an export: its removal with writes in flight, and the home node's death.

use std::thread;
use std::time::Duration;

use holdfast::os::Stopwatch;

use crate::exports::{Pair, SIZE, done, line, nothing_left, refused};
use crate::harness::await_that;
use crate::machine::Guest;
use crate::root::Kernel;

/// How long a state may take to appear.
const SOON: Duration = Duration::from_secs(60);
/// Requests in flight that count as many: the writers are 64.
const MANY: u64 = 48;

/// Runs a step in the background of a guest; its output goes to a file.
fn begin(guest: &mut Guest, what: &str, output: &str) {
    guest.must(&format!("({} >/tmp/.{output} 2>&1; mv /tmp/.{output} /tmp/{output}) >/dev/null 2>&1 &", line(what)));
}

/// Waits for the output of a step in the background.
fn ended(guest: &mut Guest, output: &str) -> String {
    let mut text = String::new();
    await_that("a step in the background ends", SOON, || {
        text = guest.run(&format!("cat /tmp/{output}")).output;
        text.contains("=> ")
    });
    text
}

fn in_flight(guest: &mut Guest, device: &str) -> u64 {
    let text = guest.must(&format!("cat /sys/block/{}/inflight", &device[5..]));
    text.split_whitespace().map(|number| number.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_fence_lets_no_write_through_and_holds_up_nobody() {
    fences(Kernel::Newest);
}

pub(crate) fn fences(kernel: Kernel) {
    let mut pair = Pair::start(kernel, 2);
    let (slow, fast) = (pair.volume(1, "slow", 0), pair.volume(2, "fast", 1));
    let third = pair.volume(2, "third", 2);
    done(&mut pair.home, &format!("ensure name=slow nonce=1 port=20001 device={slow}"));
    done(&mut pair.home, &format!("ensure name=fast nonce=2 port=20002 device={fast}"));
    let disk = done(&mut pair.client, &format!("attach name=slow nonce=1 port=20001 size={SIZE}"));
    let other = done(&mut pair.client, &format!("attach name=fast nonce=2 port=20002 size={SIZE}"));
    begin(&mut pair.client, &format!("write device={disk}"), "slow");
    begin(&mut pair.client, &format!("write device={other} writers=2"), "fast");
    thread::sleep(Duration::from_secs(2));
    pair.home.throttle(1, 1);
    await_that("many writes are in flight", SOON, || in_flight(&mut pair.home, &slow) >= MANY);
    pair.said("many writes are in flight on a slow disk");

    // Until the disk has finished them, the export stays. The deadline is kept.
    let watch = Stopwatch::start();
    let fence = "fence name=slow nonce=1 port=20001";
    let error = refused(&mut pair.home, &format!("{fence} ms=2000"), "Busy");
    assert!(error.contains("requests are in flight on /dev/loop0"), "{error}");
    assert!(watch.elapsed() < Duration::from_secs(15), "{:?}", watch.elapsed());
    // A later call waits; meanwhile others go on.
    begin(&mut pair.home, &format!("{fence} ms=300000"), "fence");
    let watch = Stopwatch::start();
    done(&mut pair.home, &format!("ensure name=third nonce=3 port=20003 device={third}"));
    let attach = format!("attach name=third nonce=3 port=20003 size={SIZE}");
    if kernel == Kernel::Newest {
        done(&mut pair.client, &attach);
        done(&mut pair.client, "detach name=third");
    } else {
        // 6.1 first waits until every closed connection of the whole target is torn down (nvmet_tcp_install_queue).
        begin(&mut pair.client, &attach, "third");
        thread::sleep(Duration::from_secs(5));
        assert!(pair.client.run("cat /tmp/third").output.contains("can't open"), "6.1 connects now: change the docs");
    }
    assert_eq!(done(&mut pair.home, "fence name=third nonce=3 port=20003 ms=20000"), "Now");
    assert!(pair.home.run("cat /tmp/fence").output.contains("can't open"), "the fence still waits");
    assert!(in_flight(&mut pair.home, &slow) > 0, "the disk is still slow");
    assert!(watch.elapsed() < SOON, "{:?}", watch.elapsed());
    // Another volume's client writes all the time, and its fence is as short.
    assert_eq!(done(&mut pair.home, "fence name=fast nonce=2 port=20002 ms=20000"), "Now");
    pair.said("other exports were created, connected and removed");
    // Why ports stay until the last fence: the kernel does not remove any port while a connection is torn down.
    pair.home.must(
        "cd /sys/kernel/config/nvmet/ports && mkdir 30000 && { (rmdir 30000; touch /tmp/removed) >/dev/null 2>&1 & }",
    );
    thread::sleep(Duration::from_secs(2));
    assert!(pair.home.run("ls /tmp/removed").code != 0, "the kernel removes ports at once: change `remove_ports`");
    assert!(in_flight(&mut pair.home, &slow) > 0, "the disk is still slow");

    pair.home.throttle(1, 0);
    let fenced = ended(&mut pair.home, "fence");
    assert!(fenced.contains("=> ok Now"), "{fenced}");
    pair.said("the fence returned");
    assert_eq!(in_flight(&mut pair.home, &slow), 0);
    let sum = done(&mut pair.home, &format!("sum device={slow}"));
    thread::sleep(Duration::from_secs(4));
    assert_eq!(
        done(&mut pair.home, &format!("sum device={slow}")),
        sum,
        "a write of the client arrived after the fence"
    );
    assert_eq!(done(&mut pair.home, fence), "Absent");
    // The last fence removes the ports too.
    nothing_left(&mut pair.home);

    // The client's writes wait until its controller goes; then they fail, and every acknowledged one is on the disk.
    assert!(pair.client.run("cat /tmp/slow").output.contains("can't open"), "the writers wait");
    done(&mut pair.home, &format!("ensure name=slow nonce=4 port=20001 device={slow}"));
    done(&mut pair.client, &format!("attach name=slow nonce=4 port=20001 size={SIZE}"));
    let written = ended(&mut pair.client, "slow");
    let acknowledged: u64 = written.split("=> ok ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    let sum: u64 = sum.parse().unwrap();
    assert!(acknowledged <= sum, "{acknowledged} writes were acknowledged, {sum} are on the disk");
    pair.said(&format!("{acknowledged} writes acknowledged, {sum} on the disk"));
    assert_eq!(done(&mut pair.home, &format!("sum device={slow}")), sum.to_string());
}

#[test]
fn a_flush_in_flight_holds_up_its_own_fence_alone() {
    flushes(Kernel::Newest);
}

pub(crate) fn flushes(kernel: Kernel) {
    let mut pair = Pair::start(kernel, 2);
    let (slow, fast) = (pair.volume(1, "slow", 0), pair.volume(2, "fast", 1));
    pair.volume(1, "hog", 2);
    done(&mut pair.home, &format!("ensure name=slow nonce=1 port=20001 device={slow}"));
    let disk = done(&mut pair.client, &format!("attach name=slow nonce=1 port=20001 size={SIZE}"));
    pair.home.throttle(1, 1);
    // Others keep the disk busy, so that a request takes seconds.
    begin(&mut pair.home, "write device=/tmp/pool1/hog writers=12", "hog");
    pair.client.must(&format!(
        "(i=0; while i=$((i+1)); do dd if=/dev/zero of={disk} bs=4k count=1 seek=$i conv=fsync,notrunc; done) >/dev/null 2>&1 &"
    ));
    await_that("a write is in flight", SOON, || in_flight(&mut pair.home, &slow) > 0);
    await_that("its flush follows", SOON, || in_flight(&mut pair.home, &slow) == 0);
    pair.said("a flush is in flight");
    // In the background: a process does not end before its abandoned call.
    begin(&mut pair.home, "fence name=slow nonce=1 port=20001 ms=2000", "fence");
    thread::sleep(Duration::from_secs(3));
    let watch = Stopwatch::start();
    done(&mut pair.home, &format!("ensure name=fast nonce=2 port=20002 device={fast}"));
    assert_eq!(done(&mut pair.home, "fence name=fast nonce=2 port=20002 ms=10000"), "Now");
    assert!(pair.home.run("cat /tmp/fence").output.contains("can't open"), "the flush is still in flight");
    pair.said(&format!("another export was created and removed in {:?}", watch.elapsed()));
    let fence = ended(&mut pair.home, "fence");
    assert!(fence.contains("=> error Busy") && fence.contains("a flush is in flight on /dev/loop0"), "{fence}");
    pair.home.throttle(1, 0);
    assert_eq!(done(&mut pair.home, "fence name=slow nonce=1 port=20001"), "Now");
    pair.said("fenced");
}

#[test]
fn clients_resume_when_the_home_node_was_killed_and_their_exports_are_rebuilt() {
    rebuilds(Kernel::Newest, 4);
}

pub(crate) fn rebuilds(kernel: Kernel, count: usize) {
    let mut pair = Pair::start(kernel, 1);
    let export = |pair: &mut Pair, number: usize, controllers: &str| {
        let device = pair.volume(1, &format!("v{number}"), number);
        let port = 20_000 + number;
        let at = format!("name=v{number} nonce={} port={port} device={device}", number + 1);
        assert_eq!(done(&mut pair.home, &format!("ensure {at} controllers={controllers}")), "Yes");
        pair.home.must(&format!("[ $(cat /sys/kernel/config/nvmet/ports/{port}/addr_trsvcid) = {port} ]"));
    };
    for number in 0..count {
        export(&mut pair, number, "lower");
    }
    for number in 0..count {
        let at = format!("name=v{number} nonce={} port={}", number + 1, 20_000 + number);
        let disk = done(&mut pair.client, &format!("attach {at} size={SIZE}"));
        // A writer each: it counts what fsync acknowledged.
        pair.client.must(&format!(
            "mkfs.ext4 -q {disk} && mkdir -p /tmp/m{number} && mount {disk} /tmp/m{number} && {{ (i=0; while i=$((i+1)); echo $i >/tmp/m{number}/f && sync /tmp/m{number}/f; do echo $i >/tmp/ack{number}; sleep 0.5; done; echo failed >/tmp/failed{number}) >/dev/null 2>&1 & }}"
        ));
    }
    let acknowledged = |pair: &mut Pair| -> Vec<u64> {
        let text = pair.client.must(&format!("for i in $(seq 0 {}); do cat /tmp/ack$i; done", count - 1));
        text.split_whitespace().map(|number| number.parse().unwrap()).collect()
    };
    await_that("every writer writes", SOON, || {
        pair.client.run(&format!("for i in $(seq 0 {}); do cat /tmp/ack$i || exit 1; done", count - 1)).code == 0
    });
    pair.said(&format!("{count} clients write"));
    pair.home.kill();
    thread::sleep(Duration::from_secs(3));
    pair.home.boot_again();
    pair.load_home();
    let before = acknowledged(&mut pair);
    pair.said("the home node is back");
    for number in 0..count {
        export(&mut pair, number, "upper");
    }
    pair.said("rebuilt");
    thread::sleep(Duration::from_secs(3));
    assert_eq!(acknowledged(&mut pair), before, "the kernel does not connect again by itself");
    for number in 0..count {
        let at = format!("name=v{number} nonce={} port={}", number + 1, 20_000 + number);
        done(&mut pair.client, &format!("rejoin {at}"));
    }
    let mut now = Vec::new();
    await_that("every writer goes on", SOON, || {
        now = acknowledged(&mut pair);
        now.iter().zip(&before).all(|(now, before)| now > before)
    });
    assert_eq!(pair.client.must("ls /tmp | grep -c failed || true").trim(), "0", "no writer had an error");
    pair.said(&format!("{count} of {count} resumed: {before:?} -> {now:?}"));
    let errors = pair.client.must("dmesg | grep -c 'I/O error' || true");
    assert_eq!(errors.trim(), "0", "{}", pair.client.must("dmesg | tail -n 50"));
}
