//! Capacity: where a pod is scheduled, and what is reported when there is not enough.

use serde_json::Value;

use crate::harness::{Claim, Pod, Space, driver_exec, explained, list, text, until, within};

/// The free capacity of each node's pool, in bytes, as the driver reports it.
fn available() -> Vec<(String, u64)> {
    let said: Value = serde_json::from_str(&driver_exec(&["pools", "--output", "json"]).unwrap()).unwrap();
    let rows = said.pointer("/pools").unwrap_or(&said).as_array().unwrap().clone();
    let mut found: Vec<_> =
        rows.iter().map(|row| (text(row, "/node").to_owned(), row["available"].as_u64().unwrap())).collect();
    found.sort();
    found
}

fn bytes(quantity: &str) -> u64 {
    let digits = quantity.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &quantity[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        other => panic!("unit {other}"),
    };
    digits.parse::<u64>().unwrap() * unit
}

/// The same, in the objects that the scheduler reads.
fn published(class: &str) -> Vec<(String, u64)> {
    let mut found: Vec<_> = list("csistoragecapacities", "holdfast")
        .iter()
        .filter(|object| text(object, "/storageClassName") == class)
        .map(|object| {
            let node = text(object, "/nodeTopology/matchLabels/csi.holdfast.storage~1node").to_owned();
            (node, bytes(text(object, "/capacity")))
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_pod_lands_where_there_is_room_and_is_told_when_there_is_none() {
    let space = Space::new("capacity");
    let each = available().iter().map(|(_, room)| *room).min().unwrap();
    // More than half of a node's capacity: each node can have one.
    let size = format!("{}Mi", each / (1 << 20) * 6 / 10);
    for name in ["a", "b"] {
        space.claim(&Claim::new(name).size(&size));
        space.run(&Pod::new(name).mounts(name));
    }
    assert_ne!(space.node_of("a"), space.node_of("b"));

    within(60, "the objects say what the driver says", || {
        let (driver, objects) = (available(), published("holdfast"));
        if driver == objects { Ok(()) } else { Err(format!("{driver:?} and {objects:?}")) }
    });
    space.claim(&Claim::new("c").size(&size));
    space.pod(&Pod::new("c").mounts("c"));
    space.event("c", &["did not have enough free storage"]);
    explained(&space.name, "c", &["node1", "node2", "free space"]);

    // As soon as one is deleted, the third runs.
    space.end_pod("a");
    space.gone("pvc", "a");
    space.running("c");
    space.end();
    until("all room is back", || {
        if available().iter().all(|(_, room)| *room + (4 << 20) > each) {
            Ok(())
        } else {
            Err(format!("{:?}", available()))
        }
    });
}
