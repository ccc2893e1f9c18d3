//! A home node that never returns is declared lost by an operator, and only then; one that returns after all is
//! quarantined.

use std::fs;
use std::time::Duration;

use tonic::Code;

use super::harness::Cluster;
use crate::harness::{Use, await_that, refused};

#[test]
fn only_a_human_gives_up_a_home_and_it_comes_back_in_quarantine() {
    let mut cluster = Cluster::new(&["node-a", "node-b"], 1);
    let here = cluster.create("here", Use::Block, "node-a");
    let (gone, kept) = (cluster.create("gone", Use::Ext4, "node-b"), cluster.create("kept", Use::Ext4, "node-b"));
    cluster.publish(0, &gone, "node-b").unwrap();
    cluster.nodes.get_mut("node-b").unwrap().kill9();
    refused(cluster.unpublish(0, &gone, "node-b"), &[Code::Unavailable]);

    let declare = |cluster: &mut Cluster, lost: &str| {
        let file = cluster.controllers[0].directory.join("controller.yaml");
        fs::write(&file, format!("lostHomes: [{lost}]\n")).unwrap();
        cluster.controllers[0].extra = vec!["--config".into(), file.display().to_string()];
        assert_eq!(cluster.controllers[0].terminate(), 0);
        cluster.start_controller(0);
        cluster.ready(0);
        cluster.heard(0, "node-a");
    };
    declare(&mut cluster, "node-b");
    await_that("the list is whole without it", Duration::from_secs(10), || {
        cluster.list(0).is_ok_and(|ids| ids == [here.id.clone()])
    });
    cluster.unpublish(0, &gone, "node-b").unwrap();
    cluster.delete(0, &gone).unwrap();
    refused(cluster.publish(0, &kept, "node-b"), &[Code::Unavailable]);

    // It was not lost: nothing in it is served or listed until an operator has readmitted it.
    cluster.start_node("node-b");
    await_that("it is in quarantine", Duration::from_secs(10), || {
        cluster.nodes["node-b"].said().contains("in quarantine until an operator readmits it")
    });
    assert_eq!(cluster.list(0).unwrap(), std::slice::from_ref(&here.id));
    let pool = cluster.pool_id("node-b");
    let refused_while_lost = cluster.command(0, &["pools", "readmit", &pool]);
    assert_ne!(refused_while_lost.code, Some(0));
    assert!(refused_while_lost.stderr.contains("lostHomes"), "{}", refused_while_lost.stderr);

    declare(&mut cluster, "");
    cluster.heard(0, "node-b");
    await_that("the quarantine outlives the declaration", Duration::from_secs(10), || {
        cluster.publish(0, &kept, "node-b").is_err_and(|status| status.message().contains("readmit"))
    });
    assert_eq!(cluster.list(0).unwrap(), std::slice::from_ref(&here.id));
    // The home node's own volumes continue.
    assert_eq!(cluster.nodes.get_mut("node-b").unwrap().terminate(), 0);
    cluster.start_node("node-b");
    refused(cluster.publish(0, &kept, "node-b"), &[Code::Unavailable]);

    // The node has just started: it may not listen yet.
    await_that("the pool is readmitted", Duration::from_secs(10), || {
        let readmitted = cluster.command(0, &["pools", "readmit", &pool]);
        assert!(readmitted.code == Some(0) || readmitted.stderr.contains("cannot be reached"), "{}", readmitted.stderr);
        readmitted.code == Some(0)
    });
    cluster.until(0, &kept, Code::Ok);
    await_that("everything is listed again", Duration::from_secs(10), || {
        cluster.list(0).is_ok_and(|ids| ids.len() == 3)
    });
    // The deleted volume still exists there, with its attachment: the operator decides.
    refused(cluster.delete(0, &gone), &[Code::FailedPrecondition]);
    cluster.unpublish(0, &gone, "node-b").unwrap();
    for vol in [here, gone, kept] {
        cluster.delete(0, &vol).unwrap();
    }
    cluster.finish();
}
