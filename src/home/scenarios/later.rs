//! Records and requests of a later release. What this release cannot read it does not serve, change or lose
//! (docs/design.md section 6).

use crate::home::record::SCHEMA;
use serde_json::{Value, json};
use tonic::{Code, Request};

use super::*;
use crate::home::remote::HomeService;
use crate::home::remote::proto::{self as pb, home_server::Home as _};
use crate::tls::Peer;

both_ways! {
    a_volume_with_a_word_of_a_later_release_is_not_served,
    a_snapshot_with_a_word_of_a_later_release_is_not_served,
    a_raw_device_with_a_field_of_a_later_release_is_attached_and_not_given_out,
    a_field_of_a_later_release_keeps_nothing_from_its_use,
    a_later_release_s_copy_is_left_to_it,
}

/// Fields that a later release may write into a record, beside those this one knows: never edit a case.
fn words() -> Vec<(String, Value)> {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../fixtures/words-of-a-later-release.json")).unwrap();
    let patch = |case: &Value| {
        let mut patch = case["patch"].clone();
        patch["min_reader"] = case.get("min_reader").cloned().unwrap_or(json!(SCHEMA + 1));
        (case["what"].as_str().unwrap().to_owned(), patch)
    };
    cases.iter().map(patch).collect()
}

impl Rig {
    /// Writes fields into an object's record, without the driver; returns the record's bytes.
    fn patch(&self, object: Object, patch: &Value) -> Vec<u8> {
        let mut record: Value = serde_json::from_slice(&self.pool.text(object)).unwrap();
        for (name, value) in patch.as_object().unwrap() {
            record[name] = value.clone();
        }
        let written = serde_json::to_vec(&record).unwrap();
        self.pool.write(object, &written).unwrap();
        written
    }
}

/// Every answer is an error that names the release. None says that the object does not exist.
fn refused(what: &str, answers: Vec<(&str, Error)>) {
    for (call, error) in answers {
        let said = error.chain();
        assert!(
            matches!(error.kind(), Kind::Precondition | Kind::Unavailable),
            "{what}: {call}: {:?} {said}",
            error.kind()
        );
        assert!(said.contains("newer Holdfast") && said.contains("upgrade"), "{what}: {call}: {said}");
    }
}

fn dirty<T: std::fmt::Debug>(result: Result<T, Failure>) -> Error {
    match result.unwrap_err() {
        Failure::Dirty(error) => error,
        Failure::Clean(error) => panic!("final: {}", error.chain()),
    }
}

fn a_volume_with_a_word_of_a_later_release_is_not_served(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create("a", 32).id;
    rig.write(&id, 1 << 20, b"of a later release");
    let object = Object::Volume(id.uuid);
    let whole = rig.pool.text(object);
    for (what, patch) in words() {
        let record = rig.patch(object, &patch);
        let (home, node) = (&rig.home, &node());
        let more = CapacityRange { required: Some(Bytes::mib(64)), limit: None };
        refused(
            &what,
            vec![
                ("volume", home.volume(&id).unwrap_err()),
                ("grant", home.grant(&id, &grant()).unwrap_err()),
                ("open", home.open(&id, node).unwrap_err()),
                ("use_raw", home.use_raw(&id, node).unwrap_err()),
                ("begin_format", home.begin_format(&id, node, FsType::Ext4).unwrap_err()),
                ("end_format", home.end_format(&id, node, uuid::Uuid::nil()).unwrap_err()),
                ("revoke", home.revoke(&id, None).unwrap_err()),
                ("expand", home.expand(&id, &more).unwrap_err()),
                ("delete", home.delete_volume(&id).unwrap_err()),
                ("volumes", home.volumes(None, 0).unwrap_err()),
                ("snapshot", home.create_snapshot(&snapshot_of("s", id)).unwrap_err().into_error()),
                ("clone", home.create_volume(&from("b", 32, Source::Volume(id))).unwrap_err().into_error()),
                ("create again", dirty(home.create_volume(&request("a", 32)))),
            ],
        );
        assert_eq!(rig.pool.text(object), record, "{what}: its record was changed");
        assert_eq!(rig.read(&id, 1 << 20, 18), b"of a later release", "{what}");
        assert_eq!(rig.pool.local().active(id.uuid).unwrap(), None, "{what}: it has a device");
    }
    rig.pool.write(object, &whole).unwrap();
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
}

fn a_snapshot_with_a_word_of_a_later_release_is_not_served(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create("a", 32).id;
    let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner().id;
    let object = Object::Snapshot(snapshot.uuid);
    let of_snapshots = ["/format", "/phase", "/provisioning"];
    let mut tried = 0;
    for (what, patch) in words() {
        if !of_snapshots.iter().any(|field| patch.pointer(field).is_some()) {
            continue;
        }
        let record = rig.patch(object, &patch);
        let home = &rig.home;
        refused(
            &what,
            vec![
                ("snapshot", home.snapshot(&snapshot).unwrap_err()),
                ("delete", home.delete_snapshot(&snapshot).unwrap_err()),
                ("snapshots", home.snapshots(&SnapshotFilter::default(), None, 0).unwrap_err()),
                ("restore", home.create_volume(&from("b", 32, Source::Snapshot(snapshot))).unwrap_err().into_error()),
                ("create again", dirty(home.create_snapshot(&snapshot_of("s", id)))),
            ],
        );
        assert_eq!(rig.pool.text(object), record, "{what}: its record was changed");
        tried += 1;
    }
    assert_eq!(tried, 5);
}

fn a_raw_device_with_a_field_of_a_later_release_is_attached_and_not_given_out(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let block = Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeWriter };
    let id = rig
        .home
        .create_volume(&CreateVolume { capabilities: vec![block], ..request("a", 32) })
        .unwrap()
        .into_inner()
        .id;
    for state in ["raw", "never"] {
        let later = json!({ "format": { "state": state, "header": "of a later release" }, "schema": SCHEMA + 1, "min_reader": SCHEMA + 1 });
        rig.patch(Object::Volume(id.uuid), &later);
        rig.home.grant(&id, &GrantRequest { mode: block.mode.into(), access: block.access, ..grant() }).unwrap();
        refused(
            state,
            vec![
                ("open", rig.home.open(&id, &node()).unwrap_err()),
                ("use_raw", rig.home.use_raw(&id, &node()).unwrap_err()),
            ],
        );
        assert_eq!(rig.pool.local().active(id.uuid).unwrap(), None, "it has a device");
        assert_eq!(rig.home.revoke(&id, None).unwrap(), Changed::Yes);
        let record: Value = serde_json::from_slice(&rig.pool.text(Object::Volume(id.uuid))).unwrap();
        assert_eq!((&record["format"], &record["min_reader"]), (&later["format"], &json!(SCHEMA + 1)));
    }
}

fn a_field_of_a_later_release_keeps_nothing_from_its_use(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create("a", 32).id;
    rig.patch(Object::Volume(id.uuid), &json!({ "schema": SCHEMA + 1, "min_reader": 1, "quality": { "iops": 100 } }));
    rig.grant(&id);
    let planned = rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap().planned_uuid;
    rig.home.end_format(&id, &node(), planned).unwrap();
    rig.home.expand(&id, &CapacityRange { required: Some(Bytes::mib(48)), limit: None }).unwrap();
    let record: Value = serde_json::from_slice(&rig.pool.text(Object::Volume(id.uuid))).unwrap();
    assert_eq!((&record["quality"]["iops"], &record["min_reader"]), (&json!(100), &json!(1)));
    rig.home.revoke(&id, None).unwrap();
    rig.home.create_snapshot(&snapshot_of("s", id)).unwrap();
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
}

fn a_later_release_s_copy_is_left_to_it(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Ext4));
    let id = rig.create("a", 32).id;
    let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner().id;
    let copy = json!({ "from": { "volume": id.uuid.to_string() }, "done": 0, "total": 32 << 20 });
    let object = Object::Snapshot(snapshot.uuid);
    let record = rig.patch(object, &json!({ "min_reader": SCHEMA + 1, "phase": "creating", "copy": copy }));
    let rig = rig.again();
    refused("a copy", vec![("create again", dirty(rig.home.create_snapshot(&snapshot_of("s", id))))]);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(rig.pool.text(object), record, "it was gone on with");
}

#[test]
fn what_another_release_asks_for_in_other_words_is_final_only_where_its_name_does_not_exist() {
    let rig = Rig::on(Way::InProcess, Scratch::new(PoolFs::Xfs));
    rig.create("a", 32);
    let service = HomeService::new(Arc::new(rig.local.clone()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let asked = |name: &str, change: fn(&mut pb::CreateVolumeRequest)| {
        let mut message = pb::CreateVolumeRequest { name: name.to_owned(), ..Default::default() };
        change(&mut message);
        let mut request = Request::new(message);
        request.extensions_mut().insert(Peer::Unverified);
        let status = runtime.block_on(service.create_volume(request)).unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        let error: pb::Error = prost::Message::decode(status.details()).unwrap();
        (error.left == i32::from(pb::error::Left::Nothing), error.message)
    };
    let changes: [fn(&mut pb::CreateVolumeRequest); 4] = [
        |message| drop(message.parameters.insert("replicas".to_owned(), "3".to_owned())),
        |message| drop(message.parameters.insert("encryption".to_owned(), "luks2".to_owned())),
        |message| message.capabilities.push(pb::Capability { access: 99, ..Default::default() }),
        |message| message.source = Some(pb::Source { source: None }),
    ];
    for change in changes {
        let (is_final, said) = asked("a", change);
        assert!(!is_final && said.contains("exists already as hf1_"), "{said}");
        let (is_final, said) = asked("b", change);
        assert!(is_final && !said.contains("exists"), "{said}");
    }
}
