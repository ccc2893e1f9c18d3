//! One spelling of a volume: every error has the whole handle, as the PersistentVolume has it, and the claim.

use super::*;

both_ways! {
    every_error_names_the_volume_with_its_claim,
    a_copy_in_progress_names_both_volumes,
    a_new_volume_is_named_as_its_request_names_it,
}

const CLAIM: &str = "(claim db/data)";

/// A create with the metadata that the provisioner adds.
fn claimed(name: &str, mib: u64) -> CreateVolume {
    let key = |key: &str| format!("csi.storage.k8s.io/pvc/{key}");
    let metadata = [(key("namespace"), "db".to_owned()), (key("name"), "data".to_owned())].into();
    CreateVolume { parameters: VolumeParameters { metadata, ..Default::default() }, ..request(name, mib) }
}

/// The error has the full handle of each volume and snapshot it names, and nowhere less than that.
fn check_spelling(error: &Error) -> String {
    let said = error.chain();
    for form in ["hf1_", "hfs1_"] {
        for (at, _) in said.match_indices(form) {
            let after = &said[at + form.len() + 16 + 1 + 32..];
            assert!(after.starts_with("_node-1"), "a handle without its birth node: {said}");
        }
    }
    let bare = |noun: &str| {
        said.match_indices(noun).any(|(at, _)| {
            let word = said[at + noun.len()..].split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap();
            word.len() == 32
        })
    };
    assert!(!bare("volume ") && !bare("snapshot "), "a uuid instead of a handle: {said}");
    said
}

fn every_error_names_the_volume_with_its_claim(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Ext4));
    let made = rig.home.create_volume(&claimed("pvc-1", 32)).unwrap().into_inner();
    assert_eq!(made.claim.as_ref().map(ToString::to_string).as_deref(), Some("db/data"));
    let full = made.id.to_string();
    assert!(full.ends_with("_node-1"), "{full}");
    // As a node knows it that found only the device: the errors are the same.
    for id in [made.id, made.id.without_birth_node()] {
        let check = |error: Error, claim: bool| {
            let said = check_spelling(&error);
            assert!(said.contains(&full), "{said}");
            assert_eq!(said.matches(CLAIM).count(), usize::from(claim), "{said}");
        };
        let known = id.to_string() == full;
        let decided = |error: Error| check(error, true);
        decided(rig.home.open(&id, &node()).unwrap_err());
        decided(rig.home.grant(&id, &GrantRequest { node: "b".parse().unwrap(), ..grant() }).unwrap_err());
        rig.grant(&id);
        decided(rig.home.delete_volume(&id).unwrap_err());
        decided(rig.home.grant(&id, &GrantRequest { read_only: ReadOnly::Yes, ..grant() }).unwrap_err());
        decided(rig.home.create_snapshot(&snapshot_of("s", id)).unwrap_err().into_error());
        let smaller = CapacityRange { required: None, limit: Some(Bytes::mib(16)) };
        decided(rig.home.expand(&id, &smaller).unwrap_err());
        let huge = CapacityRange { required: Some(Bytes::mib(1 << 30)), limit: None };
        decided(rig.home.expand(&id, &huge).unwrap_err());
        decided(rig.home.end_format(&id, &node(), uuid::Uuid::nil()).unwrap_err());
        rig.write(&id, 1 << 20, b"data");
        decided(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err());
        let lock = rig.local.shared.lock_volume(&id, "a test").unwrap();
        if known {
            check(rig.home.open(&id, &node()).unwrap_err(), false);
        }
        drop(lock);
        let image = OpenOptions::new().write(true).open(rig.image(&id)).unwrap();
        image.set_len(16 << 20).unwrap();
        decided(rig.home.open(&id, &node()).unwrap_err());
        image.set_len(32 << 20).unwrap();
        rig.home.revoke(&id, None).unwrap();
    }
    rig.home.delete_volume(&made.id).unwrap();
    let said = check_spelling(&rig.home.volume(&made.id).unwrap_err());
    assert!(said.contains(&full), "{said}");
}

fn a_copy_in_progress_names_both_volumes(way: Way) {
    let gate = Arc::new(Gate::default());
    let os = Os::intercepted(Box::new(Gated(Arc::clone(&gate))));
    let rig = Rig::with(way, os, Scratch::new(PoolFs::Ext4), SpaceLimits::default());
    let source = rig.home.create_volume(&claimed("pvc-1", 32)).unwrap().into_inner().id;
    rig.write(&source, 1 << 20, b"data");
    let clone = CreateVolume { source: Some(Source::Volume(source)), ..claimed("pvc-2", 32) };
    let said = check_spelling(rig.home.create_volume(&clone).unwrap_err().error());
    assert!(said.contains("is being copied") && said.contains(CLAIM), "{said}");
    let said = check_spelling(&rig.home.delete_volume(&source).unwrap_err());
    assert!(said.contains(&source.to_string()) && said.matches(CLAIM).count() == 2, "{said}");
    gate.set(true);
    let made = until_made(&rig, &clone);
    assert!(made.id.to_string().ends_with("_node-1"));
    assert_eq!(made.source.map(|source| format!("{source:?}")), Some(format!("Volume({source:?})")));
}

fn a_new_volume_is_named_as_its_request_names_it(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let error = rig.home.create_volume(&claimed("pvc-1", 1 << 30)).unwrap_err().into_error();
    let said = check_spelling(&error);
    assert!(said.contains(&format!("volume \"pvc-1\" {CLAIM}")), "{said}");
    let there = rig.home.create_volume(&claimed("pvc-1", 32)).unwrap().into_inner();
    let error = rig.home.create_volume(&claimed("pvc-1", 64)).unwrap_err().into_error();
    let said = check_spelling(&error);
    assert!(said.contains(&format!("{} {CLAIM}", there.id)), "{said}");
    let found = rig.home.find_volume(there.id.uuid).unwrap();
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [there.id.to_string()]);
    let extents = rig.home.extents().unwrap();
    assert!(extents.keys().all(|id| id.to_string() == there.id.to_string()), "{extents:?}");
}
