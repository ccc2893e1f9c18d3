//! Ways in which pods use volumes: replicas, owners, readers, one pod only.

use serde_json::json;

use crate::harness::{Claim, Pod, Space, explained, get, patch, text, until};

#[test]
fn replicas_keep_their_data_from_three_to_none_and_back() {
    let space = Space::new("pods-replicas");
    let claim = Claim::new("data").size("64Mi");
    let pod = Pod::new("set").spec();
    let mut template = json!({"metadata": {"labels": {"app": "set"}}, "spec": pod});
    template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    space.apply(&json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "set"},
        "spec": {"serviceName": "set", "replicas": 3, "podManagementPolicy": "Parallel",
                 "selector": {"matchLabels": {"app": "set"}}, "template": template,
                 "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim.spec()}]}
    }));
    let names = ["set-0", "set-1", "set-2"];
    for name in names {
        space.running(name);
        space.exec(name, "echo $HOSTNAME > /data/name && sync /data/name");
    }
    patch("statefulset", &space.name, "set", &json!({"spec": {"replicas": 0}}));
    for name in names {
        until(&format!("{name} is gone"), || {
            if get("pod", &space.name, name).is_none() { Ok(()) } else { Err(space.events()) }
        });
    }
    patch("statefulset", &space.name, "set", &json!({"spec": {"replicas": 3}}));
    for name in names {
        space.running(name);
        assert_eq!(space.exec(name, "cat /data/name").trim(), name);
    }
    space.end();
}

#[test]
fn only_one_pod_has_a_claim_of_one_pod() {
    let space = Space::new("pods-one");
    space.claim(&Claim::new("data").one_pod());
    space.run(&Pod::new("first").mounts("data"));
    space.pod(&Pod::new("second").mounts("data"));
    space.event("second", &["ReadWriteOncePod"]);
    assert_ne!(text(&get("pod", &space.name, "second").unwrap(), "/status/phase"), "Running");
    explained(&space.name, "data", &["ReadWriteOncePod", "first", "second"]);
    space.end_pod("first");
    space.running("second");
    space.end();
}

#[test]
fn a_claim_of_one_node_serves_several_pods_there() {
    let space = Space::new("pods-several");
    space.claim(&Claim::new("data"));
    space.run(&Pod::new("first").mounts("data"));
    space.run(&Pod::new("second").mounts("data"));
    space.exec("first", "echo here > /data/file");
    assert_eq!(space.exec("second", "cat /data/file").trim(), "here");
    space.end_pod("first");
    assert_eq!(space.exec("second", "cat /data/file").trim(), "here");
    space.end();
}

#[test]
fn an_ephemeral_volume_lives_as_long_as_its_pod() {
    let space = Space::new("pods-ephemeral");
    space.run(&Pod::new("user").ephemeral(&Claim::new("scratch").size("64Mi")));
    space.exec("user", "echo 1 > /scratch/file");
    let pv = space.volume_name("user-scratch");
    space.end_pod("user");
    until("the volume is gone", || {
        if get("pv", "default", &pv).is_none() { Ok(()) } else { Err("still there".to_owned()) }
    });
    space.end();
}

#[test]
fn the_group_of_a_pod_owns_its_volume() {
    let space = Space::new("pods-group");
    space.claim(&Claim::new("data"));
    let security = json!({"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000});
    space.run(&Pod::new("user").mounts("data").security(security));
    space.exec("user", "echo 1 > /data/file");
    assert_eq!(space.exec("user", "stat -c %g /data /data/file | sort -u").trim(), "2000");
    space.end();
}

#[test]
fn a_reader_cannot_write() {
    let space = Space::new("pods-reader");
    space.claim(&Claim::new("data"));
    space.run(&Pod::new("writer").mounts("data"));
    space.exec("writer", "echo here > /data/file");
    space.run(&Pod::new("reader").reads("data"));
    assert_eq!(space.exec("reader", "cat /data/file").trim(), "here");
    let said = crate::harness::exec(&space.name, "reader", "echo 1 > /data/other").unwrap_err();
    assert!(said.contains("Read-only file system"), "{said}");
    space.exec("writer", "echo more > /data/file");
    space.end();
}

#[test]
fn a_pod_that_cannot_be_on_the_node_of_its_volume_says_so() {
    let space = Space::new("pods-elsewhere");
    space.claim(&Claim::new("data"));
    space.run(&Pod::new("here").on("node1").mounts("data"));
    space.pod(&Pod::new("there").on("node2").mounts("data"));
    space.event("there", &["0/2 nodes are available"]);
    explained(&space.name, "data", &["node1", "there"]);
    space.end();
}
