//! When each step of a move happened: for people, never asserted.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::app::App;
use crate::guest::Guest;

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// One change of an object that the API server reported.
#[derive(Clone, Debug)]
struct Seen {
    at: f64,
    fields: Vec<String>,
}

/// Watches pods, attachments and nodes until it is dropped.
pub(crate) struct Timeline {
    watches: Vec<Child>,
    pods: Arc<Mutex<Vec<Seen>>>,
    attachments: Arc<Mutex<Vec<Seen>>>,
    nodes: Arc<Mutex<Vec<Seen>>>,
    volume: String,
    handle: String,
    began: f64,
}

fn watch(arguments: &[&str], template: &str) -> (Child, Arc<Mutex<Vec<Seen>>>) {
    let directory = std::env::var("HOLDFAST_E2E").unwrap();
    let mut kubectl = Command::new(format!("{directory}/bin/kubectl"));
    kubectl.arg(format!("--kubeconfig={directory}/admin.kubeconfig")).arg("get").args(arguments);
    kubectl.args(["--watch", "--output-watch-events", "-o", &format!("jsonpath={template}{{\"\\n\"}}")]);
    let mut child = kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let to = Arc::clone(&seen);
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let fields = line.split('|').map(str::to_owned).collect();
            to.lock().unwrap().push(Seen { at: now(), fields });
        }
    });
    (child, seen)
}

impl Timeline {
    pub(crate) fn begin(app: &App) -> Self {
        let condition = |name: &str| format!("{{.object.status.conditions[?(@.type==\"{name}\")].status}}");
        let pods = watch(
            &["pods", "-n", &app.space.name],
            &format!(
                "{{.type}}|{{.object.metadata.name}}|{{.object.metadata.deletionTimestamp}}|{{.object.spec.nodeName}}|{}|{}",
                condition("PodReadyToStartContainers"),
                condition("Ready")
            ),
        );
        let attachments = watch(
            &["volumeattachments"],
            "{.type}|{.object.spec.source.persistentVolumeName}|{.object.spec.nodeName}|{.object.metadata.deletionTimestamp}|{.object.status.attached}",
        );
        let nodes = watch(
            &["nodes"],
            "{.type}|{.object.metadata.name}|{.object.status.volumesInUse}|{.object.status.volumesAttached[*].name}",
        );
        let watches = [&pods.1, &attachments.1, &nodes.1].map(Arc::clone);
        crate::harness::until("the watches have begun", || {
            if watches[0].lock().unwrap().is_empty() || watches[2].lock().unwrap().is_empty() {
                Err(String::new())
            } else {
                Ok(())
            }
        });
        let volume = app.volumes()[0].clone();
        let object = crate::harness::get("pv", "default", &volume).expect("the volume is there");
        Self {
            watches: vec![pods.0, attachments.0, nodes.0],
            pods: pods.1,
            attachments: attachments.1,
            nodes: nodes.1,
            handle: crate::harness::text(&object, "/spec/csi/volumeHandle").to_owned(),
            volume,
            began: now(),
        }
    }

    /// Prints the steps from the deletion of the pod `old` on a node until the pod `new` is ready on another one.
    pub(crate) fn end(self, old: &str, new: &str, from: Guest, to: Guest) {
        // The watches may be a little late.
        thread::sleep(Duration::from_secs(1));
        let first = |all: &Arc<Mutex<Vec<Seen>>>, is: &dyn Fn(&[String]) -> bool| {
            let all = all.lock().unwrap();
            all.iter().find(|one| one.at >= self.began && is(&one.fields)).map(|one| one.at)
        };
        let (a, b) = (from.name(), to.name());
        let (volume, handle) = (&self.volume, self.handle.as_str());
        let pod = |name: &str, field: usize, value: Option<&str>| {
            first(&self.pods, &|fields| {
                fields[1] == name && value.map_or(!fields[field].is_empty(), |value| fields[field] == value)
            })
        };
        let attachment = |node: &str, field: usize, value: Option<&str>| {
            first(&self.attachments, &|fields| {
                fields[1] == *volume
                    && fields[2] == node
                    && value.map_or(!fields[field].is_empty(), |value| fields[field] == value)
            })
        };
        let zero = pod(old, 2, None).unwrap_or(self.began);
        let mut steps = vec![
            ("the pod is deleted", Some(zero)),
            ("its replacement is created", pod(new, 1, Some(new))),
            ("the old pod is gone", pod(old, 0, Some("DELETED"))),
            (
                "kubelet reports that the volume is not in use",
                first(&self.nodes, &|fields| fields[1] == a && !fields[2].contains(handle)),
            ),
            ("its VolumeAttachment is deleted", attachment(&a, 3, None)),
            ("its VolumeAttachment is gone", attachment(&a, 0, Some("DELETED"))),
            ("the replacement has a node", pod(new, 3, Some(&b))),
            (
                "kubelet reports that the volume is in use",
                first(&self.nodes, &|fields| fields[1] == b && fields[2].contains(handle)),
            ),
            ("a new VolumeAttachment is created", attachment(&b, 2, Some(&b))),
            ("it is attached", attachment(&b, 4, Some("true"))),
            (
                "kubelet knows that it is attached",
                first(&self.nodes, &|fields| fields[1] == b && fields[3].contains(handle)),
            ),
            ("the pod's sandbox is ready", pod(new, 4, Some("True"))),
            ("the pod is ready", pod(new, 5, Some("True"))),
        ];
        for (what, at) in logged(from, to, self.began) {
            steps.push((what, Some(at)));
        }
        steps.sort_by(|one, other| one.1.unwrap_or(f64::MAX).total_cmp(&other.1.unwrap_or(f64::MAX)));
        eprintln!("from {a} to {b}, in seconds:");
        for (what, at) in steps {
            match at {
                Some(at) => eprintln!("{:8.2}  {what}", at - zero),
                None => eprintln!("       -  {what}"),
            }
        }
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        for watch in &mut self.watches {
            drop(watch.kill());
            drop(watch.wait());
        }
    }
}

/// What kubelet logged about the volume, in the time of this machine.
fn logged(from: Guest, to: Guest, since: f64) -> Vec<(&'static str, f64)> {
    let mut found = Vec::new();
    for (guest, steps) in [
        (
            from,
            [
                ("kubelet has unpublished it", "UnmountVolume.TearDown succeeded"),
                ("kubelet has unstaged it", "UnmountDevice succeeded"),
            ],
        ),
        (
            to,
            [
                ("kubelet has staged it", "MountVolume.MountDevice succeeded"),
                ("kubelet has published it", "MountVolume.SetUp succeeded"),
            ],
        ),
    ] {
        let before = now();
        // Not the one of busybox, which has whole seconds only. A frozen guest says nothing.
        let Ok(there) = guest.run("/usr/bin/date +%s.%N") else { continue };
        let there: f64 = there.trim().parse().expect("seconds");
        let offset = there - f64::midpoint(before, now());
        // Lines begin `I1130 16:51:02.123456`.
        for (what, words) in steps {
            let script = format!(
                "grep '{words}' /var/log/kubelet.log | grep csi.holdfast.storage | cut -c7-21 | while read t; do /usr/bin/date -d \"$(/usr/bin/date +%F) $t\" +%s.%N; done"
            );
            let times = guest.must(&script);
            let mut times = times.lines().filter_map(|line| line.trim().parse::<f64>().ok()).map(|at| at - offset);
            if let Some(at) = times.rfind(|at| *at >= since) {
                found.push((what, at));
            }
        }
    }
    found
}
