//! A volume follows its pod.

use crate::app::{App, cordon, uncordon};
use crate::guest::{HOME, OTHER};
use crate::harness::{Claim, Pod, kubectl};
use crate::timeline::Timeline;

/// Appends numbered lines, each synced.
const WRITES: &str = "
i=$(tail -n 1 /data/log 2>/dev/null || echo 0)
while i=$((i+1)); do { echo $i >>/data/log && sync /data/log; } || break; sleep 0.1; done &
";

/// The number of lines, after a check that all are there, in order.
fn lines(app: &App) -> u64 {
    let pod = app.pod();
    let counted = app.space.exec(&pod, "head -n -1 /data/log | awk '$1 != NR {exit 1} END {print NR}'");
    counted.trim().parse().unwrap()
}

#[test]
fn a_volume_follows_its_pod_by_deletion_and_by_drain() {
    let claim = Claim::new("data").class("network").one_pod();
    let app = App::new("moves", &[claim], &Pod::new("app").mounts("data").runs(WRITES));
    let pod = app.runs_on(HOME);
    app.why_not("on its home node");
    app.space.exec(&pod, "head -c 20M /dev/urandom >/data/file; sync /data/file");
    let sum = app.space.exec(&pod, "md5sum /data/file");
    uncordon(OTHER);

    cordon(HOME);
    let before = lines(&app);
    let timeline = Timeline::begin(&app);
    kubectl(&["-n", &app.space.name, "delete", "pod", &pod, "--wait=false"]);
    let moved = app.runs_on(OTHER);
    timeline.end(&pod, &moved, HOME, OTHER);
    assert_eq!(app.space.exec(&moved, "md5sum /data/file"), sum);
    assert!(lines(&app) >= before);
    assert_eq!(app.attached_to(), [OTHER.name()]);
    app.why_not("on the other node");

    uncordon(HOME);
    let before = lines(&app);
    let timeline = Timeline::begin(&app);
    kubectl(&["drain", &OTHER.name(), "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s"]);
    let back = app.runs_on(HOME);
    timeline.end(&moved, &back, OTHER, HOME);
    assert_eq!(app.space.exec(&back, "md5sum /data/file"), sum);
    assert!(lines(&app) >= before);
    uncordon(OTHER);
    app.end(&[HOME, OTHER]);
}
