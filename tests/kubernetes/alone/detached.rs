//! An attachment that ends while its node still has the volume staged: kubelet waits for that before it mounts the
//! volume for the next pod, so the home node must allow the end.

use crate::harness::{Claim, Crashed, Pod, Space, get, kubectl, list, node_ready, text, try_kubectl, until};

const NODE: &str = "node1";

/// A pod on the node with a filesystem and a raw device, with data in both.
fn first_pod(space: &Space) {
    space.claim(&Claim::new("data").size("64Mi"));
    space.claim(&Claim::new("disk").size("64Mi").block());
    space.run(&Pod::new("first").on(NODE).mounts("data").device("disk"));
    space.exec("first", "echo kept > /data/file && sync /data/file");
    space.exec("first", "printf raw | dd of=/dev/disk bs=4096 conv=sync,fsync oflag=direct status=none");
    assert_eq!(attachments(space).len(), 2);
}

/// The names of the attachments of the space's volumes.
fn attachments(space: &Space) -> Vec<String> {
    let volumes = ["data", "disk"].map(|claim| space.volume_name(claim));
    let of_space =
        |one: &serde_json::Value| volumes.iter().any(|volume| text(one, "/spec/source/persistentVolumeName") == volume);
    let all = list("volumeattachments", "default").into_iter().filter(of_space);
    all.map(|one| text(&one, "/metadata/name").to_owned()).collect()
}

/// The pod is deleted in the API server, and continues to run where no kubelet stops it.
fn forget_first(space: &Space) {
    kubectl(&["-n", &space.name, "delete", "pod", "first", "--grace-period=0", "--force"]);
    until("the pod is forgotten", || match get("pod", &space.name, "first") {
        None => Ok(()),
        Some(found) => Err(found["status"].to_string()),
    });
}

/// The next pod finds the data of the first one, and can write; then nothing is left.
fn second_pod_works(space: Space) {
    space.running("second");
    assert_eq!(space.exec("second", "cat /data/file").trim(), "kept");
    assert_eq!(space.exec("second", "head -c 3 /dev/disk"), "raw");
    space.exec("second", "echo more > /data/other && sync /data/other");
    space.end_pod("second");
    // Deleted like any other: the records of the home node show no use any more.
    space.end();
}

fn back(crashed: Crashed) {
    crashed.returns();
    until("the driver is registered", || if node_ready(NODE) { Ok(()) } else { Err("not yet".to_owned()) });
}

/// As the controller does for a node that does not report the volumes in use any more.
fn delete_attachments(names: &[String]) {
    for name in names {
        drop(try_kubectl(&["delete", "volumeattachment", name, "--wait=false"], None));
    }
}

/// `kubectl delete node`, and its kubelet returns: the attachments end while kubelet is away and the volumes are in
/// use.
#[test]
fn a_node_that_was_deleted_and_is_back_gets_its_volumes_again() {
    let space = Space::new("detached-node");
    first_pod(&space);
    let crashed = Crashed::kubelet(NODE);
    kubectl(&["delete", "node", NODE]);
    forget_first(&space);
    delete_attachments(&attachments(&space));
    until("the attachments end, though the node has the volumes staged", || {
        let left = attachments(&space);
        if left.is_empty() { Ok(()) } else { Err(kubectl(&["get", "volumeattachments", "-o", "yaml"])) }
    });
    space.pod(&Pod::new("second").on(NODE).mounts("data").device("disk"));
    back(crashed);
    second_pod_works(space);
}

/// The node is away, its pod and its attachments are deleted by force (as the controller does after six minutes). The
/// attachments cannot end while the node does not answer; when it is back, its kubelet waits for that, with the volumes
/// staged.
#[test]
fn a_node_whose_attachments_were_deleted_while_it_was_away_gets_its_volumes_again() {
    let space = Space::new("detached-away");
    first_pod(&space);
    let before = attachments(&space);
    let crashed = Crashed::new(NODE);
    forget_first(&space);
    delete_attachments(&before);
    space.pod(&Pod::new("second").on(NODE).mounts("data").device("disk"));
    back(crashed);
    second_pod_works(space);
}
