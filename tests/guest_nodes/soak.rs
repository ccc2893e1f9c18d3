//! A database that follows its pod through everything that happens to nodes.

use std::thread;
use std::time::Duration;

use crate::app::{App, cordon, nothing_left, uncordon};
use crate::database::{Database, START};
use crate::guest::{Guest, HOME, OTHER};
use crate::harness::{Claim, Pod, get, kubectl, text, until, within};
use crate::timeline::Timeline;

/// A node is unreachable after 50 s without a report.
const UNREACHABLE: u64 = 400;
const TAINT: &str = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";

/// Started by hand in the pod that is to be cut off: numbered blocks on the raw device, and lines in a file, until the first
/// error; the last acknowledged numbers, and the errors, are on the node.
const OLD_WRITERS: &str = "
setsid bash -c 'n=0; while n=$((n+1)); do
    printf \"%-4096s\" \"old $n\" | dd of=/dev/disk bs=4096 count=1 seek=$((n % 1000)) iflag=fullblock oflag=direct conv=notrunc status=none 2>/node/disk.error || break
    echo $n >/node/disk
done; touch /node/disk.failed' >/dev/null 2>&1 </dev/null &
setsid bash -c 'n=0; while n=$((n+1)); do
    { echo $n >>/db/old && sync /db/old; } 2>/node/file.error || break
    echo $n >/node/file
done; touch /node/file.failed' >/dev/null 2>&1 </dev/null &
";

fn number(guest: Guest, file: &str) -> u64 {
    guest.run(&format!("cat /run/test/database/{file}")).ok().and_then(|said| said.trim().parse().ok()).unwrap_or(0)
}

fn await_unreachable(guest: Guest) {
    within(UNREACHABLE, &format!("{} is found unreachable", guest.name()), || {
        let node = get("node", "default", &guest.name()).ok_or("no such node")?;
        let conditions = node.pointer("/status/conditions").and_then(|all| all.as_array().cloned()).unwrap_or_default();
        let ready =
            conditions.iter().find(|one| text(one, "/type") == "Ready").map(|one| text(one, "/status").to_owned());
        if ready.as_deref() == Some("Unknown") { Ok(()) } else { Err(format!("{ready:?}")) }
    });
}

#[test]
fn a_database_survives_drain_the_death_of_its_home_node_and_of_its_own_and_deletion() {
    let claims =
        [Claim::new("db").class("network").size("640Mi"), Claim::new("disk").class("network").size("16Mi").block()];
    let app = App::new("database", &claims, &Pod::new("app").mounts("db").device("disk").runs(START));
    let first = app.runs_on(HOME);
    uncordon(OTHER);
    let mut database = Database::new(&app);
    app.why_not("on its home node");

    // Drain.
    let client = database.client(&app);
    let timeline = Timeline::begin(&app);
    kubectl(&["drain", &HOME.name(), "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"]);
    let second = app.runs_on(OTHER);
    timeline.end(&first, &second, HOME, OTHER);
    drop(client);
    uncordon(HOME);
    database.complete(&app, "after a drain");
    app.why_not("on the other node");

    home_death(&app, &mut database);
    let third = node_death(&app, &mut database, &second);

    // Deletion.
    let client = database.client(&app);
    cordon(HOME);
    let timeline = Timeline::begin(&app);
    kubectl(&["-n", &app.space.name, "delete", "pod", &third, "--wait=false"]);
    let fourth = app.runs_on(OTHER);
    timeline.end(&third, &fourth, HOME, OTHER);
    drop(client);
    uncordon(HOME);
    database.complete(&app, "after a deletion");

    database.checksums(&app);
    app.end(&[HOME, OTHER]);
}

/// The node of the pod stops between two instructions and is declared out of service; later its processes continue. Returns
/// the pod's successor.
fn node_death(app: &App, database: &mut Database, pod: &str) -> String {
    app.space.exec(pod, OLD_WRITERS);
    let client = database.client(app);
    until("the old pod writes", || {
        let (disk, file) = (number(OTHER, "disk"), number(OTHER, "file"));
        if disk > 5 && file > 5 { Ok(()) } else { Err(format!("{disk} and {file}")) }
    });
    OTHER.freeze();
    drop(client);
    await_unreachable(OTHER);
    app.why("its node does not answer", &["node guest2, which is not ready", "    do  kubectl describe node guest2"]);
    let timeline = Timeline::begin(app);
    kubectl(&["-n", &app.space.name, "delete", "pod", pod, "--wait=false"]);
    app.why(
        "its pod is deleted, but its node does not answer",
        &["to be detached from node guest2, to which it is attached"],
    );
    kubectl(&["taint", "node", &OTHER.name(), TAINT]);
    let successor = app.runs_on(HOME);
    timeline.end(pod, &successor, OTHER, HOME);
    assert_eq!(app.attached_to(), [HOME.name()]);
    database.complete(app, "after the death of a node");
    app.why_not("on its home node, while the old node is frozen");
    let sums = "md5sum /dev/disk /db/old";
    let before = app.space.exec(&successor, sums);

    OTHER.thaw();
    let client = database.client(app);
    // What its kernel says whether kubelet ends the processes before or after they get the error.
    let said = until("the old pod's writes fail", || {
        OTHER.run(
            "dmesg | grep -E 'nvme.*(failing I/O|I/O error)|Aborting journal'; cat /run/test/database/*.error; dmesg | grep -qE 'nvme.*failing I/O'",
        )
    });
    eprintln!("the old node:\n{said}");
    until("nothing is left on the old node", || nothing_left(OTHER));
    let left = OTHER.run("ls -d /var/lib/kubelet/pods/*/volumes/kubernetes.io~csi/* /var/lib/kubelet/pods/*/volumeDevices/kubernetes.io~csi/* 2>/dev/null; true");
    eprintln!("directories of volumes on the old node: {left:?}");
    thread::sleep(Duration::from_secs(5));
    assert_eq!(app.space.exec(&successor, sums), before, "the old node wrote after its volume had been detached");
    let (disk, file) = (number(OTHER, "disk"), number(OTHER, "file"));
    let acknowledged = "head -c 4 /dev/disk; tail -n 1 /db/old";
    eprintln!(
        "the old pod's last acknowledged writes: {disk} to the device, {file} to the file; found: {}",
        app.space.exec(&successor, acknowledged).trim()
    );
    drop(client);
    database.complete(app, "after the old node is back");
    kubectl(&["taint", "node", &OTHER.name(), &format!("{TAINT}-")]);
    OTHER.ready();
    successor
}

/// The I/O errors that the kernel of the other node reported.
fn io_errors() -> String {
    OTHER.must("dmesg | grep 'I/O error' || true")
}

/// The home node dies and boots under a pod of the other node.
fn home_death(app: &App, database: &mut Database) {
    let errors = io_errors();
    let _client = database.client(app);
    HOME.kill();
    thread::sleep(Duration::from_secs(3));
    let stalled = database.acknowledged();
    app.why(
        "its home node is dead",
        &["node guest1, its home node, which is unreachable", "    do  kubectl get node guest1"],
    );
    assert_eq!(database.acknowledged(), stalled, "rows are acknowledged while the home node is dead");
    HOME.boot();
    let rows = database.goes_on();
    eprintln!("{stalled} rows when the home node died, {rows} some time after it is back");
    assert_eq!(io_errors(), errors, "the pod's node has I/O errors");
    HOME.ready();
    app.why_not("its home node is back");
    database.complete(app, "after the home node is back");
}
