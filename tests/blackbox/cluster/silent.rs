//! An unreachable home node: errors name it, everything else continues, and it is never treated as lost.

use std::time::Duration;

use holdfast::csi::proto as p;
use tonic::Code;

use super::harness::Cluster;
use crate::harness::{Use, await_that, check_tree, refused, write_tree};

#[test]
fn a_silent_home_is_named_and_the_others_go_on() {
    let mut cluster = Cluster::new(&["node-a", "node-b"], 2);
    let (here, there) = (cluster.create("here", Use::Ext4, "node-a"), cluster.create("there", Use::Ext4, "node-b"));
    cluster.publish(0, &there, "node-b").unwrap();
    write_tree(&cluster.stage(&there).unwrap(), 1);
    cluster.nodes.get_mut("node-b").unwrap().kill9();
    // At once: no process answers at its address.
    refused(cluster.publish(0, &there, "node-b"), &[Code::Unavailable]);
    await_that("it is known to be silent", Duration::from_secs(10), || {
        cluster.delete(0, &there).is_err_and(|status| status.message().contains("is unreachable"))
    });
    for index in 0..2 {
        let said = refused(cluster.unpublish(index, &there, "node-b"), &[Code::Unavailable]);
        assert!(said.contains("node-b"), "{said}");
        let said = refused(cluster.list(index), &[Code::Unavailable]);
        assert!(said.contains("node-b") && said.contains("incomplete"), "{said}");
        cluster.publish(index, &here, "node-a").unwrap();
        cluster.unpublish(index, &here, "node-a").unwrap();
    }
    assert_eq!(cluster.capacity(0, "node-b"), cluster.capacity(1, "node-b"));
    let more = cluster.create("more", Use::Block, "node-a");
    refused(cluster.try_create(0, "none", Use::Block, "node-b"), &[Code::Unavailable, Code::ResourceExhausted]);

    // A restarted controller knows the node only from the directories of others.
    cluster.controllers[0].kill9();
    cluster.start_controller(0);
    let said = refused(cluster.delete(0, &there), &[Code::Unavailable]);
    assert!(!said.is_empty());
    cluster.ready(0);
    cluster.heard(0, "node-a");
    for _ in 0..3 {
        refused(cluster.delete(0, &there), &[Code::Unavailable]);
        refused(cluster.publish(0, &there, "node-a"), &[Code::Unavailable]);
        let said = refused(cluster.list(0), &[Code::Unavailable]);
        assert!(said.contains("node-b"), "{said}");
        std::thread::sleep(Duration::from_millis(400));
    }

    cluster.start_node("node-b");
    cluster.until(0, &there, Code::Ok);
    cluster.until(1, &there, Code::Ok);
    check_tree(&cluster.stage(&there).unwrap(), 1);
    cluster.unstage(&there).unwrap();
    cluster.unpublish(0, &there, "node-b").unwrap();
    await_that("the list is whole again", Duration::from_secs(10), || cluster.list(0).is_ok_and(|ids| ids.len() == 3));
    for vol in [here, there, more] {
        cluster.delete(1, &vol).unwrap();
    }
    cluster.finish();
}

#[test]
fn a_home_that_hangs_slows_no_other() {
    let cluster = Cluster::new(&["node-a", "node-b"], 1);
    let (here, there) = (cluster.create("here", Use::Ext4, "node-a"), cluster.create("there", Use::Ext4, "node-b"));
    cluster.nodes["node-b"].freeze();
    // More callers than the controller has threads: one home node may use only so many of them.
    let clients: Vec<_> = (0..4).map(|_| cluster.controller(0)).collect();
    let stuck: Vec<_> = (0..400)
        .map(|caller: usize| {
            let mut client = clients[caller % 4].clone();
            let mut request = tonic::Request::new(p::ControllerGetVolumeRequest { volume_id: there.id.clone() });
            request.set_timeout(Duration::from_secs(6));
            cluster.spawn(async move { client.controller_get_volume(request).await.unwrap_err().code() })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    // The excess callers are told to retry, like any sidecar; then the other home node still answers.
    await_that("the other home is reached", Duration::from_secs(20), || cluster.publish(0, &here, "node-a").is_ok());
    cluster.unpublish(0, &here, "node-a").unwrap();
    for _ in 0..10 {
        cluster.publish(0, &here, "node-a").unwrap();
        cluster.unpublish(0, &here, "node-a").unwrap();
    }
    for task in stuck {
        let code = cluster.join(task);
        assert!([Code::Unavailable, Code::DeadlineExceeded].contains(&code), "{code:?}");
    }
    cluster.nodes["node-b"].thaw();
    cluster.until(0, &there, Code::Ok);
    for vol in [here, there] {
        cluster.delete(0, &vol).unwrap();
    }
    cluster.finish();
}

#[test]
fn a_controller_says_nothing_before_it_could_hear_the_nodes() {
    let mut cluster = Cluster::stopped(&["node-a"], 1, super::harness::Wire::Plain);
    cluster.start_controller(0);
    await_that("it answers", Duration::from_secs(10), || {
        cluster.list(0).is_err_and(|status| status.message().contains("just started"))
    });
    refused(cluster.try_create(0, "vol", Use::Block, "node-a"), &[Code::Unavailable]);
    cluster.ready(0);
    let said = refused(cluster.list(0), &[Code::Unavailable]);
    assert!(said.contains("no node"), "{said}");
    cluster.start_node("node-a");
    await_that("the node is heard", Duration::from_secs(10), || cluster.list(0).is_ok());
    cluster.finish();
}

#[test]
fn disks_that_moved_bring_their_volumes_under_the_same_handles() {
    let mut cluster = Cluster::stopped(&["node-a", "node-b", "node-c"], 1, super::harness::Wire::Plain);
    cluster.start_controller(0);
    cluster.start_node("node-a");
    cluster.start_node("node-b");
    // A node may have no pool at all.
    cluster.start_node_on("node-c", None);
    cluster.ready(0);
    for node in ["node-a", "node-b", "node-c"] {
        cluster.heard(0, node);
    }
    let vol = cluster.create("vol", Use::Xfs, "node-a");
    cluster.publish(0, &vol, "node-a").unwrap();
    write_tree(&cluster.stage(&vol).unwrap(), 1);
    cluster.unstage(&vol).unwrap();
    cluster.unpublish(0, &vol, "node-a").unwrap();
    assert_eq!(cluster.nodes.get_mut("node-a").unwrap().terminate(), 0);
    assert_eq!(cluster.nodes.get_mut("node-c").unwrap().terminate(), 0);
    let pool = cluster.pool_of("node-a");
    let spec = format!("test=file:{}", pool.display());
    // Not before an operator has claimed them.
    let driver = crate::harness::driver_binary();
    crate::harness::run(driver, &["pools", "claim", "--node-name", "node-c", "--pool", &spec]);
    cluster.start_node_on("node-c", Some(&pool));
    cluster.until(0, &vol, Code::Ok);
    // The old home node stays unreachable, and has nothing that a list would miss.
    await_that("the old home is known to be silent", Duration::from_secs(10), || {
        let nodes = cluster.command(0, &["pools", "--output", "json"]);
        nodes.stdout.contains("\"unreachable\"")
    });
    assert_eq!(cluster.list(0).unwrap(), std::slice::from_ref(&vol.id));
    let moved = super::harness::Vol { node: "node-c".into(), ..vol.clone() };
    let said = refused(cluster.publish(0, &moved, "node-b"), &[Code::FailedPrecondition]);
    assert!(said.contains("node-c"), "{said}");
    cluster.publish(0, &moved, "node-c").unwrap();
    check_tree(&cluster.stage(&moved).unwrap(), 1);
    cluster.unstage(&moved).unwrap();
    cluster.unpublish(0, &moved, "node-c").unwrap();
    cluster.delete(0, &moved).unwrap();
    cluster.finish();
}
