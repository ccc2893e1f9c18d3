//! A pod that writes continuously and detects interruptions.

use std::thread;
use std::time::Duration;

use crate::harness::{Claim, Pod, Space, get, text, until};

/// Appends a line and syncs it, in a loop; the first error ends the loop and is stored.
const SCRIPT: &str = "
i=$(tail -n 1 /data/log 2>/dev/null || echo 0)
while :; do
    i=$((i+1))
    { echo $i >> /data/log && sync /data/log; } || { touch /tmp/failed; break; }
    sleep 0.1
done &
";

/// The pod `NAME` with its claim `NAME`, on a node.
pub(super) struct Writer<'s> {
    space: &'s Space,
    name: String,
    uid: String,
}

fn uid(space: &Space, name: &str) -> String {
    text(&get("pod", &space.name, name).expect("the pod is there"), "/metadata/uid").to_owned()
}

impl<'s> Writer<'s> {
    pub(super) fn start(space: &'s Space, name: &str, node: &str) -> Self {
        let mut claim = Claim::new(name);
        "holdfast-xfs".clone_into(&mut claim.class);
        "320Mi".clone_into(&mut claim.size);
        space.claim(&claim);
        let script = SCRIPT.replace("/data", &format!("/{name}"));
        space.run(&Pod::new(name).on(node).mounts(name).runs(&script));
        let writer = Self { space, name: name.to_owned(), uid: uid(space, name) };
        writer.goes_on();
        writer
    }

    /// The last line, after a check that all lines before it are in order.
    pub(super) fn lines(&self) -> u64 {
        let script = format!("awk '$1 != NR {{exit 1}} END {{print NR}}' /{}/log", self.name);
        // The last line may be incomplete.
        until("the lines are whole", || crate::harness::exec(&self.space.name, &self.name, &script))
            .trim()
            .parse()
            .unwrap()
    }

    /// It still writes, as the same pod, without a restart or an error.
    pub(super) fn goes_on(&self) {
        let before = until("it has written", || match self.lines() {
            0 => Err("nothing yet".to_owned()),
            lines => Ok(lines),
        });
        thread::sleep(Duration::from_secs(1));
        until("it writes on", || if self.lines() > before { Ok(()) } else { Err(format!("at {before}")) });
        let pod = get("pod", &self.space.name, &self.name).expect("the pod is there");
        assert_eq!(text(&pod, "/metadata/uid"), self.uid);
        assert_eq!(pod.pointer("/status/containerStatuses/0/restartCount"), Some(&serde_json::json!(0)));
        assert_eq!(self.space.exec(&self.name, "ls /tmp/failed 2>/dev/null || echo none").trim(), "none");
    }
}
