//! Expansion of claims.

use serde_json::json;

use crate::harness::{Claim, Pod, Space, explained, get, patch, text, until, volume_of};

const MIB: u64 = 1 << 20;

fn grow(space: &Space, claim: &str, size: &str) {
    patch("pvc", &space.name, claim, &json!({"spec": {"resources": {"requests": {"storage": size}}}}));
}

fn has_grown(space: &Space, claim: &str, size: &str) {
    until(&format!("{claim} has {size}"), || {
        let found = get("pvc", &space.name, claim).ok_or("no such claim")?;
        if text(&found, "/status/capacity/storage") == size {
            Ok(())
        } else {
            Err(format!("{}\n{}", found["status"], space.events()))
        }
    });
}

fn room(space: &Space, pod: &str) -> u64 {
    space.exec(pod, "df -B1 --output=size /data | tail -1").trim().parse().unwrap()
}

#[test]
fn xfs_grows_under_a_running_pod() {
    let space = Space::new("growth-online");
    space.claim(&Claim::new("data").class("holdfast-xfs").size("320Mi"));
    space.run(&Pod::new("user").mounts("data"));
    space.exec("user", "echo here > /data/file && sync /data/file");
    let before = room(&space, "user");
    grow(&space, "data", "512Mi");
    has_grown(&space, "data", "512Mi");
    assert!(room(&space, "user") > before + 150 * MIB);
    assert_eq!(space.exec("user", "cat /data/file").trim(), "here");
    assert_eq!(volume_of(&space.volume_name("data")).unwrap().size, 512 * MIB);
    space.end();
}

#[test]
fn ext4_grows_between_two_pods() {
    let space = Space::new("growth-offline");
    space.claim(&Claim::new("data").size("128Mi"));
    space.run(&Pod::new("user").mounts("data"));
    space.exec("user", "echo here > /data/file && sync /data/file");
    let before = room(&space, "user");
    space.end_pod("user");
    grow(&space, "data", "256Mi");
    // The rest is done by the node: the filesystem grows when it is staged.
    space.run(&Pod::new("user").mounts("data"));
    has_grown(&space, "data", "256Mi");
    assert!(room(&space, "user") > before + 100 * MIB);
    assert_eq!(space.exec("user", "cat /data/file").trim(), "here");
    space.end();
}

#[test]
fn growth_beyond_the_pool_is_refused_in_words_and_harms_nothing() {
    let space = Space::new("growth-refused");
    space.claim(&Claim::new("data").class("holdfast-xfs").size("320Mi"));
    space.run(&Pod::new("user").mounts("data"));
    space.exec("user", "echo here > /data/file && sync /data/file");
    grow(&space, "data", "10Ti");
    let said = space.event("data", &["pool"]);
    assert!(said.contains("default"), "{said}");
    let words = ["grow from 320Mi to 10Ti", "OutOfRange", "default", "as little as 320Mi", "edit pvc data"];
    explained(&space.name, "data", &words);
    assert_eq!(space.exec("user", "cat /data/file").trim(), "here");
    // The size that cannot be reached is withdrawn, and a smaller one succeeds.
    grow(&space, "data", "384Mi");
    has_grown(&space, "data", "384Mi");
    space.end();
}
