//! StorageClasses side by side, retained volumes, and volumes that are bound by hand.

use serde_json::json;

use crate::harness::{
    Claim, Pod, Space, class, delete, driver_exec, get, kubectl, text, try_kubectl, until, volume_of,
};

fn gone(pv: &str) {
    until("the PersistentVolume is gone", || match get("pv", "default", pv) {
        None => Ok(()),
        Some(found) => Err(found["status"].to_string()),
    });
}

#[test]
fn one_class_deletes_and_the_other_retains() {
    let space = Space::new("classes-two");
    try_kubectl(&["apply", "-f", "-"], Some(&class("holdfast-retain", "Retain", &json!({})).to_string())).unwrap();
    space.claim(&Claim::new("goes").size("64Mi"));
    space.claim(&Claim::new("stays").class("holdfast-retain").size("64Mi"));
    space.run(&Pod::new("user").mounts("goes").mounts("stays"));
    space.exec("user", "echo kept > /stays/file && sync /stays/file");
    let (goes, stays) = (space.volume_name("goes"), space.volume_name("stays"));
    space.end_pod("user");
    space.gone("pvc", "goes");
    space.gone("pvc", "stays");
    gone(&goes);
    assert!(volume_of(&goes).is_none());
    until("it is released", || match get("pv", "default", &stays) {
        Some(found) if text(&found, "/status/phase") == "Released" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let volume = volume_of(&stays).expect("its data stays");
    let said = driver_exec(&["why", &stays]).unwrap_err();
    for word in ["Released", "its claim classes-two/stays is gone", "claimRef"] {
        assert!(said.contains(word), "{word}: {said}");
    }

    // The object is deleted too: the data stays, and the output of `volumes show --pv` restores it.
    kubectl(&["delete", "pv", &stays]);
    let mut pv: serde_json::Value =
        serde_json::from_str(&driver_exec(&["volumes", "show", &volume.handle, "--pv", "--output", "json"]).unwrap())
            .unwrap();
    assert_eq!(text(&pv, "/spec/csi/volumeHandle"), volume.handle);
    assert_eq!(text(&pv, "/spec/persistentVolumeReclaimPolicy"), "Retain");
    pv["metadata"]["name"] = json!("by-hand");
    pv["metadata"]["labels"] = json!({"made": "by-hand"});
    try_kubectl(&["apply", "-f", "-"], Some(&pv.to_string())).unwrap();
    space.claim(
        &Claim::new("again")
            .class(text(&pv, "/spec/storageClassName"))
            .size("64Mi")
            .selected(&json!({"made": "by-hand"})),
    );
    space.run(&Pod::new("reader").mounts("again"));
    assert_eq!(space.volume_name("again"), "by-hand");
    assert_eq!(space.exec("reader", "cat /again/file").trim(), "kept");
    space.end_pod("reader");
    space.gone("pvc", "again");

    // Finally deleted by hand.
    crate::harness::patch("pv", "default", "by-hand", &json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
    gone("by-hand");
    assert!(volume_of(&stays).is_none());
    delete("storageclass", "default", "holdfast-retain");
    space.end();
}

#[test]
fn a_parameter_that_is_not_known_is_named_with_the_nearest() {
    let space = Space::new("classes-parameter");
    try_kubectl(
        &["apply", "-f", "-"],
        Some(&class("holdfast-typo", "Delete", &json!({"provisionning": "thin"})).to_string()),
    )
    .unwrap();
    space.claim(&Claim::new("data").class("holdfast-typo"));
    space.pod(&Pod::new("user").mounts("data"));
    let said = space.event("data", &["provisionning", "provisioning"]);
    assert!(said.contains("InvalidArgument"), "{said}");
    crate::harness::explained(&space.name, "data", &["provisionning"]);
    delete("storageclass", "default", "holdfast-typo");
    space.end();
}

#[test]
fn two_classes_make_two_filesystems() {
    let space = Space::new("classes-fs");
    space.claim(&Claim::new("one").size("64Mi"));
    space.claim(&Claim::new("two").class("holdfast-xfs").size("320Mi"));
    space.run(&Pod::new("user").mounts("one").mounts("two"));
    assert_eq!(space.exec("user", "stat -f -c %T /one /two").trim(), "ext2/ext3\nxfs");
    space.end();
}

#[test]
fn a_volume_named_by_its_claim_is_that_volume() {
    let space = Space::new("classes-named");
    space.claim(&Claim::new("first").size("64Mi"));
    space.run(&Pod::new("user").mounts("first"));
    space.exec("user", "echo mine > /first/file && sync /first/file");
    let pv = space.volume_name("first");
    crate::harness::patch("pv", "default", &pv, &json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}));
    space.end_pod("user");
    space.gone("pvc", "first");
    // How an administrator reuses a released volume.
    crate::harness::patch("pv", "default", &pv, &json!({"spec": {"claimRef": null}}));
    space.claim(&Claim::new("second").size("64Mi").of_volume(&pv));
    space.run(&Pod::new("next").mounts("second"));
    assert_eq!(space.exec("next", "cat /second/file").trim(), "mine");
    crate::harness::patch("pv", "default", &pv, &json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
    space.end();
}
