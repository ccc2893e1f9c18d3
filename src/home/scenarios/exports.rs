//! Volumes attached to another node. The kernel's exports are played by [`Kernel`]; the real ones need another kernel
//! than that of the build machine, and are in tests/guests.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::*;
use crate::export::{ControllerIds, Enabled, Export, ExportState, Fenced, Remains, Spec, Support};
use crate::os::{Deadline, Dhchap};
use crate::telemetry::{AttachmentFigures, ExportFigures};

both_ways! {
    a_network_volume_is_exported_to_one_node_at_a_time,
    requests_in_flight_keep_the_volume_from_every_other_node,
    exports_are_the_same_after_a_restart,
    a_lost_connection_is_made_again_after_all_it_had_sent_has_ended,
    a_mkfs_is_begun_under_new_names,
    a_volume_in_use_at_home_is_not_exported,
    what_cannot_be_exported_is_refused,
    what_metrics_and_doctor_show_of_exports,
    authentication_that_is_required_is_never_left_out,
}

const OTHER: &str = "node-2";
const PORTS: std::ops::RangeInclusive<u16> = 4500..=4502;

/// The kernel's exports; they outlive a run of the driver.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<Exports>>);

#[derive(Default)]
struct Exports {
    all: BTreeMap<String, Spec>,
    /// Requests do not end.
    stuck: bool,
    /// TCP connections to each export.
    connections: usize,
    /// It is a kernel without DH-HMAC-CHAP.
    keyless: bool,
    resized: Vec<String>,
    /// Fences that ended an export.
    fences: usize,
}

impl Export for Kernel {
    fn support(&self) -> Result<Support> {
        Ok(Support::Yes(if self.0.lock().unwrap().keyless { Dhchap::No } else { Dhchap::Yes }))
    }

    fn ensure(&self, spec: &Spec) -> Result<Changed> {
        assert!(is_synchronous_at(&backing(&spec.device)), "synchronous first");
        let mut exports = self.0.lock().unwrap();
        match exports.all.insert(spec.subsystem.to_string(), spec.clone()) {
            Some(before) => {
                let same = Spec { controllers: before.controllers, ..spec.clone() };
                assert_eq!(before, same, "an export that is there is never changed");
                exports.all.insert(spec.subsystem.to_string(), before);
                Ok(Changed::No)
            }
            None => Ok(Changed::Yes),
        }
    }

    fn fence(&self, subsystem: &SubsystemNqn, remains: &Remains, _deadline: Deadline) -> Result<Fenced> {
        let mut exports = self.0.lock().unwrap();
        if exports.stuck {
            return Err(Error::new(Kind::Busy, format!("requests to {subsystem} do not end")));
        }
        let Some(spec) = exports.all.remove(&subsystem.to_string()) else { return Ok(Fenced::Absent) };
        assert_eq!(*remains, Remains::from(&spec));
        exports.fences += 1;
        Ok(Fenced::Now)
    }

    fn is_complete(&self, subsystem: &SubsystemNqn) -> Result<bool> {
        Ok(self.0.lock().unwrap().all.contains_key(&subsystem.to_string()))
    }

    fn exports(&self) -> Result<Vec<ExportState>> {
        let exports = self.0.lock().unwrap();
        let state = |spec: &Spec| ExportState {
            name: spec.subsystem.to_string(),
            subsystem: Some(spec.subsystem),
            device: Some(spec.device.clone()),
            number: Some(spec.number),
            namespace: Enabled::Yes,
            ports: vec![spec.listen.port()],
            hosts: 1,
            connections: exports.connections,
        };
        Ok(exports.all.values().map(state).collect())
    }

    fn exported_device(&self, _device: DevNum) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn resized(&self, subsystem: &SubsystemNqn) -> Result<()> {
        self.0.lock().unwrap().resized.push(subsystem.to_string());
        Ok(())
    }
}

impl Kernel {
    fn exports(&self) -> Vec<Spec> {
        self.0.lock().unwrap().all.values().cloned().collect()
    }

    fn stuck(&self, stuck: bool) {
        self.0.lock().unwrap().stuck = stuck;
    }

    fn fabric(&self) -> Fabric {
        Fabric::new(Arc::new(self.clone()), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), PORTS)
    }

    fn rig(&self, way: Way, scratch: Scratch) -> Rig {
        let (os, limits) = (Os::new(), SpaceLimits::default());
        let pool = pool::open(&os, &spec(&scratch.root()), &node()).unwrap();
        let pools = vec![(Arc::clone(&pool), limits)];
        let local = LocalHome::open_with(os.clone(), node(), pools, Some(self.fabric())).unwrap();
        let (home, wire) = way.to(local.clone());
        Rig { way, _devices: Devices(Some(Arc::clone(&pool))), home, wire, local, pool, os, scratch }
    }

    /// Another run of the driver.
    fn again(&self, rig: Rig) -> Rig {
        let Rig { way, mut _devices, home, wire, local, pool, scratch, .. } = rig;
        drop((home, wire));
        while Arc::strong_count(&local.shared) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop((_devices.0.take(), local, pool));
        self.rig(way, scratch)
    }
}

/// The image of a loop device.
fn backing(device: &std::path::Path) -> PathBuf {
    let name = device.file_name().unwrap().to_str().unwrap();
    std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap().trim().into()
}

fn other() -> NodeId {
    OTHER.parse().unwrap()
}

fn to_other() -> GrantRequest {
    GrantRequest { node: other(), ..grant() }
}

fn network(name: &str) -> CreateVolume {
    let parameters = VolumeParameters { access: Access::Network, ..VolumeParameters::default() };
    CreateVolume { parameters, ..request(name, 32) }
}

fn create(rig: &Rig, name: &str) -> VolumeId {
    let made = rig.home.create_volume(&network(name)).unwrap().into_inner();
    assert_eq!(made.access, Access::Network);
    made.id
}

/// What the other node gets that has a connection to this export, or none.
fn opened(rig: &Rig, id: &VolumeId, connection: Option<&NvmeTcpAddress>) -> Result<OpenVolume> {
    let live = |at: &NvmeTcpAddress| Connection { export: at.subsystem, state: ConnectionState::Live };
    let client = Client { connection: connection.map(live), ..client() };
    rig.home.open_for(id, &other(), &client)
}

fn client() -> Client {
    Client { connection: None, authenticates: Dhchap::Yes, renaming: Renaming::Allowed }
}

/// What the other node gets whose connection to this export is lost.
fn rejoined(rig: &Rig, id: &VolumeId, at: &NvmeTcpAddress, controller: Option<u16>) -> Result<NvmeTcpAddress> {
    let connection = Connection { export: at.subsystem, state: ConnectionState::Waiting(controller) };
    let client = Client { connection: Some(connection), renaming: Renaming::Refused, ..client() };
    rig.home.open_for(id, &other(), &client).map(address_of)
}

fn address_of(opened: OpenVolume) -> NvmeTcpAddress {
    let DeviceAddress::NvmeTcp(at) = opened.at else { panic!("it is on another node") };
    *at
}

/// As at a stage.
fn address(rig: &Rig, id: &VolumeId) -> NvmeTcpAddress {
    address_of(opened(rig, id, None).unwrap())
}

/// As at a repeated stage.
fn again(rig: &Rig, id: &VolumeId, at: &NvmeTcpAddress) -> NvmeTcpAddress {
    address_of(opened(rig, id, Some(at)).unwrap())
}

fn is_synchronous(rig: &Rig, id: &VolumeId) -> bool {
    is_synchronous_at(&rig.image(id))
}

fn is_synchronous_at(image: &std::path::Path) -> bool {
    Os::new().is_synchronous(&std::fs::File::open(image).unwrap(), image).unwrap()
}

fn record(rig: &Rig, id: &VolumeId) -> serde_json::Value {
    serde_json::from_slice(&rig.pool.text(Object::Volume(id.uuid))).unwrap()
}

fn a_network_volume_is_exported_to_one_node_at_a_time(way: Way) {
    let kernel = Kernel::default();
    let rig = kernel.rig(way, Scratch::new(PoolFs::Xfs));
    let id = create(&rig, "a");
    // At home without an export, and readable by schema 1 in everything but its access.
    rig.grant(&id);
    assert!(matches!(rig.home.open(&id, &node()).unwrap().at, DeviceAddress::Local { .. }));
    assert!(kernel.exports().is_empty() && !is_synchronous(&rig, &id));
    assert_eq!(rig.home.grant(&id, &to_other()).unwrap_err().kind(), Kind::Precondition);
    rig.home.revoke(&id, None).unwrap();

    assert_eq!(rig.home.grant(&id, &to_other()).unwrap().changed, Changed::Yes);
    assert_eq!(rig.home.grant(&id, &to_other()).unwrap().changed, Changed::No);
    let at = address(&rig, &id);
    assert_eq!(at, again(&rig, &id, &at));
    let [export] = kernel.exports().try_into().unwrap();
    assert_eq!((export.subsystem, export.namespace), (at.subsystem, at.namespace));
    assert_eq!((export.host, export.key, export.listen), (at.host, at.key.clone(), at.address));
    assert!(at.key.is_some() && at.subsystem.volume == id && is_synchronous(&rig, &id));
    assert_eq!(at.address.to_string(), "192.0.2.1:4500");
    let stored = record(&rig, &id);
    assert_eq!((&stored["min_reader"], &stored["attachments"][0]["path"]), (&2.into(), &"nvme-tcp".into()));
    let shown = format!("{:?}", opened(&rig, &id, Some(&at)).unwrap());
    assert!(!shown.contains(&at.host.host_id().to_string()), "{shown}");

    let error = rig.home.grant(&id, &grant()).unwrap_err();
    assert!(error.kind() == Kind::Precondition && error.to_string().contains(OTHER), "{error}");
    assert_eq!(rig.home.exports(&other(), id.pool).unwrap(), [at.subsystem]);
    assert_eq!(rig.home.exports(&node(), id.pool).unwrap(), []);
    assert_eq!(rig.home.exports(&other(), PoolId::random()).unwrap_err().kind(), Kind::Unavailable);
    // The client's unstage ends nothing, and nobody else may open it.
    rig.home.close(&id, &other()).unwrap();
    assert_eq!(kernel.exports().len(), 1);
    assert_eq!(rig.home.open(&id, &node()).unwrap_err().kind(), Kind::Precondition);

    let range = CapacityRange { required: Some(Bytes::mib(48)), limit: None };
    rig.home.expand(&id, &range).unwrap();
    assert_eq!(kernel.0.lock().unwrap().resized, [at.subsystem.to_string()]);

    assert_eq!(rig.home.delete_volume(&id).unwrap_err().kind(), Kind::InUse);
    assert_eq!(rig.home.revoke(&id, Some(&other())).unwrap(), Changed::Yes);
    assert!(kernel.exports().is_empty() && !is_synchronous(&rig, &id));
    assert_eq!(rig.home.exports(&other(), id.pool).unwrap(), []);
    assert_eq!(rig.home.open(&id, &other()).unwrap_err().kind(), Kind::Precondition);

    // Nothing of the next attachment is as before: an earlier client finds nothing.
    rig.home.grant(&id, &to_other()).unwrap();
    let next = address(&rig, &id);
    assert!(next.subsystem != at.subsystem && next.host != at.host && next.namespace != at.namespace);
    assert!(next.key != at.key && next.address != at.address);
    rig.home.revoke(&id, None).unwrap();
    rig.grant(&id);
    rig.home.open(&id, &node()).unwrap();
    rig.home.revoke(&id, None).unwrap();
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
}

fn requests_in_flight_keep_the_volume_from_every_other_node(way: Way) {
    let kernel = Kernel::default();
    let rig = kernel.rig(way, Scratch::new(PoolFs::Ext4));
    let id = create(&rig, "a");
    rig.home.grant(&id, &to_other()).unwrap();
    let found = |kind: FindingKind, words: &str| {
        let all = rig.local.examine().unwrap();
        all.iter().filter(|finding| finding.kind == kind && finding.what.contains(words)).count()
    };
    assert_eq!(found(FindingKind::Image, "not synchronous"), 0);
    let is_missing = usize::from(!std::path::Path::new("/sys/module/nvmet_tcp").exists());
    assert_eq!(found(FindingKind::Service, "nvmet-tcp are not loaded"), is_missing);
    let image = std::fs::File::open(rig.image(&id)).unwrap();
    rig.os.set_synchronous(&image, &rig.image(&id), false).unwrap();
    drop(image);
    assert_eq!(found(FindingKind::Image, "not synchronous"), 1);
    again(&rig, &id, &address(&rig, &id));
    assert_eq!(found(FindingKind::Image, "not synchronous"), 0);

    kernel.stuck(true);
    assert_eq!(rig.home.revoke(&id, None).unwrap_err().kind(), Kind::Busy);
    assert_eq!(record(&rig, &id)["attachments"][0]["state"], "revoking");
    assert_eq!(found(FindingKind::Unfinished, OTHER), 1);
    let refused = |rig: &Rig| {
        assert_eq!(rig.home.open(&id, &other()).unwrap_err().kind(), Kind::Precondition);
        for request in [grant(), to_other()] {
            assert_eq!(rig.home.grant(&id, &request).unwrap_err().kind(), Kind::Precondition);
        }
        assert_eq!(rig.home.delete_volume(&id).unwrap_err().kind(), Kind::InUse);
        assert!(is_synchronous(rig, &id));
        assert_eq!(rig.home.volume(&id).unwrap().published, vec![other()]);
    };
    refused(&rig);
    // Another volume is not affected, and gets another port.
    kernel.stuck(false);
    let second = create(&rig, "b");
    rig.home.grant(&second, &to_other()).unwrap();
    assert_eq!(address(&rig, &second).address.port(), 4501);
    kernel.stuck(true);
    // A restart continues it, and does not conclude that it ended.
    let rig = kernel.again(rig);
    refused(&rig);
    kernel.stuck(false);
    let rig = kernel.again(rig);
    assert_eq!(kernel.exports().len(), 1, "the other volume's");
    assert_eq!(rig.home.revoke(&id, None).unwrap(), Changed::Yes);
    rig.grant(&id);
    rig.home.revoke(&id, None).unwrap();
    rig.home.revoke(&second, None).unwrap();
}

fn exports_are_the_same_after_a_restart(way: Way) {
    let kernel = Kernel::default();
    let rig = kernel.rig(way, Scratch::new(PoolFs::Xfs));
    let ids = [create(&rig, "a"), create(&rig, "b")];
    for id in &ids {
        rig.home.grant(id, &to_other()).unwrap();
    }
    let before = ids.map(|id| address(&rig, &id));
    // The driver restarts: the kernel's exports stay.
    let rig = kernel.again(rig);
    assert_eq!(kernel.exports().len(), 2);
    for (id, at) in ids.iter().zip(&before) {
        assert_eq!(again(&rig, id, at), *at);
    }
    // A record that cannot be read may be that of an export: its node must not conclude that it lost it.
    let record = rig.pool.text(Object::Volume(ids[1].uuid));
    rig.pool.write(Object::Volume(ids[1].uuid), b"{").unwrap();
    let rig = kernel.again(rig);
    assert_eq!(rig.home.exports(&other(), ids[0].pool).unwrap_err().kind(), Kind::Unavailable);
    rig.pool.write(Object::Volume(ids[1].uuid), &record).unwrap();
    let rig = kernel.again(rig);
    let listed = rig.home.exports(&other(), ids[0].pool).unwrap();
    assert!(listed.len() == 2 && before.iter().all(|at| listed.contains(&at.subsystem)), "{listed:?}");
    // The machine restarts: they are gone until their node asks, and are the same then.
    kernel.0.lock().unwrap().all.clear();
    let rig = kernel.again(rig);
    assert!(kernel.exports().is_empty());
    let listed = rig.home.exports(&other(), ids[0].pool).unwrap();
    assert!(before.iter().all(|at| listed.contains(&at.subsystem)), "the node keeps its connections: {listed:?}");
    for (id, at) in ids.iter().zip(&before) {
        assert_eq!(rejoined(&rig, id, at, Some(1)).unwrap(), *at);
        assert_eq!(again(&rig, id, at), *at);
    }
    // The other node restarts: what it sent before must not arrive after it has mounted the volume again.
    kernel.stuck(true);
    assert_eq!(opened(&rig, &ids[0], None).unwrap_err().kind(), Kind::Busy);
    kernel.stuck(false);
    let next = address(&rig, &ids[0]);
    assert!(next.subsystem != before[0].subsystem && next.host != before[0].host);
    assert_eq!((next.address, kernel.exports().len()), (before[0].address, 2));
    assert_eq!(again(&rig, &ids[0], &next), next);
    // Its kernel may have no authentication.
    let plain = Client { authenticates: Dhchap::No, ..client() };
    assert!(address_of(rig.home.open_for(&ids[0], &other(), &plain).unwrap()).key.is_none());
    // A port that a record has is not given to another volume.
    let third = create(&rig, "c");
    rig.home.grant(&third, &to_other()).unwrap();
    assert_eq!(address(&rig, &third).address.port(), 4502);
    for id in ids.iter().chain([&third]) {
        rig.home.revoke(id, None).unwrap();
    }
}

fn a_lost_connection_is_made_again_after_all_it_had_sent_has_ended(way: Way) {
    let kernel = Kernel::default();
    let rig = kernel.rig(way, Scratch::new(PoolFs::Xfs));
    let id = create(&rig, "a");
    rig.home.grant(&id, &to_other()).unwrap();
    let at = address(&rig, &id);
    let ids = || kernel.exports()[0].controllers;
    let epoch = opened(&rig, &id, Some(&at)).unwrap().epoch;
    // A write of the lost connection is still at the disk: there is no export until it has ended.
    kernel.stuck(true);
    assert_eq!(rejoined(&rig, &id, &at, Some(1)).unwrap_err().kind(), Kind::Busy);
    assert_eq!(record(&rig, &id)["attachments"][0]["state"], "granted");
    assert_eq!(rig.home.exports(&other(), id.pool).unwrap(), [at.subsystem], "the node keeps its connection");
    kernel.stuck(false);
    // The next controller never has the number of the one that waits, however often the answer is lost.
    for (waiting, expected) in [(1, ControllerIds::Upper), (1, ControllerIds::Upper), (0x8000, ControllerIds::Lower)] {
        let fences = kernel.0.lock().unwrap().fences;
        assert_eq!(rejoined(&rig, &id, &at, Some(waiting)).unwrap(), at);
        assert_eq!((ids(), kernel.exports().len()), (expected, 1));
        assert!(!expected.range().contains(&waiting) && is_synchronous(&rig, &id));
        assert_eq!(kernel.0.lock().unwrap().fences, fences + 1);
    }
    assert_eq!(opened(&rig, &id, Some(&at)).unwrap().epoch, epoch);
    assert_eq!(rejoined(&rig, &id, &at, None).unwrap(), at);
    // One of an earlier attachment is not made again, and changes nothing.
    rig.home.revoke(&id, None).unwrap();
    assert_eq!(rejoined(&rig, &id, &at, Some(1)).unwrap_err().kind(), Kind::Precondition);
    rig.home.grant(&id, &to_other()).unwrap();
    let next = address(&rig, &id);
    assert_eq!(rejoined(&rig, &id, &at, Some(1)).unwrap_err().kind(), Kind::Precondition);
    assert_eq!(again(&rig, &id, &next), next);
    rig.home.revoke(&id, None).unwrap();
}

fn a_mkfs_is_begun_under_new_names(way: Way) {
    let kernel = Kernel::default();
    let rig = kernel.rig(way, Scratch::new(PoolFs::Xfs));
    let id = create(&rig, "a");
    rig.home.grant(&id, &to_other()).unwrap();
    let mut names = vec![address(&rig, &id)];
    // The first mkfs, and that after a killed one.
    for _ in 0..2 {
        let epoch = opened(&rig, &id, names.last()).unwrap().epoch;
        let begun = rig.home.begin_format(&id, &other(), FsType::Ext4).unwrap();
        let DeviceAddress::NvmeTcp(at) = begun.at else { panic!("it is on another node") };
        assert_eq!(again(&rig, &id, &at), *at);
        assert!(names.iter().all(|before| before.subsystem != at.subsystem && before.host != at.host));
        assert_eq!(opened(&rig, &id, Some(&at)).unwrap().epoch, epoch + 1);
        assert_eq!(kernel.exports().len(), 1);
        names.push(*at);
        kernel.stuck(true);
        assert_eq!(rig.home.begin_format(&id, &other(), FsType::Ext4).unwrap_err().kind(), Kind::Busy);
        kernel.stuck(false);
    }
    let FormatState::Formatting { planned_uuid, .. } = opened(&rig, &id, names.last()).unwrap().format else {
        panic!("mkfs began")
    };
    rig.home.end_format(&id, &other(), planned_uuid).unwrap();
    let error = rig.home.begin_format(&id, &other(), FsType::Ext4).unwrap_err();
    assert_eq!((error.kind(), kernel.exports().len()), (Kind::Precondition, 1), "{error}");
    assert_eq!(again(&rig, &id, names.last().unwrap()), *names.last().unwrap());
    rig.home.revoke(&id, None).unwrap();
}

fn a_volume_in_use_at_home_is_not_exported(way: Way) {
    let kernel = Kernel::default();
    let rig = kernel.rig(way, Scratch::new(PoolFs::Xfs));
    let id = create(&rig, "a");
    rig.grant(&id);
    let DeviceAddress::Local { device } = rig.home.open(&id, &node()).unwrap().at else { panic!("it is here") };
    let held = rig.os.open_device(&device).unwrap();
    rig.home.revoke(&id, None).unwrap();
    let error = rig.home.grant(&id, &to_other()).unwrap_err();
    assert!(error.kind() == Kind::Precondition && error.to_string().contains(device.to_str().unwrap()), "{error}");
    assert!(kernel.exports().is_empty() && record(&rig, &id)["attachments"].as_array().unwrap().is_empty());
    drop(held);
    rig.home.grant(&id, &to_other()).unwrap();
    // A process of the home node that opens the device meanwhile: nobody else gets the volume.
    let held = rig.os.open_device(&kernel.exports()[0].device).unwrap();
    assert_eq!(rig.home.revoke(&id, None).unwrap_err().kind(), Kind::InUse);
    assert!(kernel.exports().is_empty());
    assert_eq!(rig.home.grant(&id, &grant()).unwrap_err().kind(), Kind::Precondition);
    drop(held);
    assert_eq!(rig.home.revoke(&id, None).unwrap(), Changed::Yes);
    rig.grant(&id);
    rig.home.revoke(&id, None).unwrap();
}

fn what_cannot_be_exported_is_refused(way: Way) {
    let kernel = Kernel::default();
    let rig = kernel.rig(way, Scratch::new(PoolFs::Xfs));
    let local = rig.create("local", 32).id;
    let error = rig.home.grant(&local, &to_other()).unwrap_err();
    assert!(error.kind() == Kind::Precondition && error.to_string().contains("local to node"), "{error}");
    let ids: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| create(&rig, name)).collect();
    for id in &ids[..3] {
        rig.home.grant(id, &to_other()).unwrap();
    }
    let error = rig.home.grant(&ids[3], &to_other()).unwrap_err();
    assert!(error.kind() == Kind::NoCapacity && error.to_string().contains("4500-4502"), "{error}");
    assert!(record(&rig, &ids[3])["attachments"].as_array().unwrap().is_empty());
    rig.home.revoke(&ids[1], None).unwrap();
    rig.home.grant(&ids[3], &to_other()).unwrap();
    assert_eq!(address(&rig, &ids[3]).address.port(), 4501);
    for id in &ids {
        rig.home.revoke(id, None).unwrap();
    }
    // A retry of a create is compared with its access.
    let other = CreateVolume { parameters: VolumeParameters::default(), ..network("a") };
    assert_eq!(clean(rig.home.create_volume(&other)), Kind::AlreadyExists);

    let without = Rig::on(way, Scratch::new(PoolFs::Xfs));
    // The kernel may still have exports: the node must not conclude that its attachments were removed.
    let pool = without.create("local", 32).id.pool;
    assert_eq!(without.home.exports(&to_other().node, pool).unwrap_err().kind(), Kind::Precondition);
    assert_eq!(clean(without.home.create_volume(&network("a"))), Kind::NoCapacity);
    let btrfs = kernel.rig(way, Scratch::new(PoolFs::Btrfs));
    assert_eq!(clean(btrfs.home.create_volume(&network("a"))), Kind::Unsupported);
}

fn authentication_that_is_required_is_never_left_out(way: Way) {
    let kernel = Kernel::default();
    let keyless = |keyless: bool| kernel.0.lock().unwrap().keyless = keyless;
    let rig = kernel.rig(way, Scratch::new(PoolFs::Xfs));
    let request = |name: &str| {
        let mut request = network(name);
        request.parameters.authentication = Authentication::Required;
        request
    };
    keyless(true);
    let error = clean_error(rig.home.create_volume(&request("a")));
    let said = error.chain();
    assert!(error.kind() == Kind::NoCapacity && said.contains("CONFIG_NVME_TARGET_AUTH"), "{said}");
    assert!(said.contains(NODE) && rig.home.volumes(None, 0).unwrap().entries.is_empty(), "{said}");
    // Without the parameter there is none, as before.
    create(&rig, "plain");
    keyless(false);
    let made = rig.home.create_volume(&request("a")).unwrap().into_inner();
    let id = made.id;
    assert_eq!(made.authentication, Authentication::Required);
    assert_eq!(clean(rig.home.create_volume(&network("a"))), Kind::AlreadyExists);
    let stored = record(&rig, &id);
    let of_request = |record: &serde_json::Value| record["request"]["parameters"]["authentication"].clone();
    assert_eq!((of_request(&stored), &stored["min_reader"]), ("required".into(), &2.into()));
    let plain = record(&rig, &VolumeId::new(id.pool, ObjectUuid::of_volume("plain")));
    assert!(of_request(&plain).is_null(), "{plain}");
    // A pod on the home node needs no connection.
    keyless(true);
    rig.grant(&id);
    rig.home.open(&id, &node()).unwrap();
    rig.home.revoke(&id, None).unwrap();

    let refused = |error: Error, words: &[&str]| {
        let said = error.chain();
        assert!(error.kind() == Kind::Precondition && words.iter().all(|words| said.contains(words)), "{said}");
    };
    // The home node runs another kernel by now: nothing is attached.
    refused(rig.home.grant(&id, &to_other()).unwrap_err(), &["CONFIG_NVME_TARGET_AUTH", NODE, "for exports"]);
    assert!(record(&rig, &id)["attachments"].as_array().unwrap().is_empty() && kernel.exports().is_empty());
    keyless(false);
    rig.home.grant(&id, &to_other()).unwrap();
    let [export] = kernel.exports().try_into().unwrap();
    assert!(export.key.is_some());
    // The other node cannot: it gets nothing, and the export stays as it is.
    let without = Client { authenticates: Dhchap::No, ..client() };
    refused(rig.home.open_for(&id, &other(), &without).unwrap_err(), &["CONFIG_NVME_HOST_AUTH", OTHER, "connections"]);
    assert_eq!(kernel.exports(), std::slice::from_ref(&export));
    let at = address(&rig, &id);
    assert_eq!((at.subsystem, &at.key), (export.subsystem, &export.key));
    // Under new names it has a key again.
    let begun = rig.home.begin_format(&id, &other(), FsType::Ext4).unwrap();
    let DeviceAddress::NvmeTcp(next) = begun.at else { panic!("it is on another node") };
    assert!(next.key.is_some() && next.key != at.key);
    // Not with the other kernel: the client keeps what it has, and no new connection is offered.
    keyless(true);
    refused(opened(&rig, &id, None).unwrap_err(), &["CONFIG_NVME_TARGET_AUTH", NODE]);
    assert!(kernel.exports().iter().all(|export| export.key.is_some()));
    keyless(false);

    // A record that lost its key, and a restart: it is not exported until it is attached again.
    let mut damaged = record(&rig, &id);
    damaged["attachments"][0]["export"].as_object_mut().unwrap().remove("key").unwrap();
    kernel.0.lock().unwrap().all.clear();
    rig.pool.write(Object::Volume(id.uuid), &serde_json::to_vec(&damaged).unwrap()).unwrap();
    let rig = kernel.again(rig);
    assert!(kernel.exports().is_empty());
    assert_eq!(rig.home.grant(&id, &to_other()).unwrap_err().kind(), Kind::Corrupt);
    assert!(kernel.exports().is_empty());
    rig.home.revoke(&id, None).unwrap();
    rig.home.grant(&id, &to_other()).unwrap();
    assert!(address(&rig, &id).key.is_some());
    rig.home.revoke(&id, None).unwrap();
}

fn what_metrics_and_doctor_show_of_exports(way: Way) {
    let kernel = Kernel::default();
    let rig = kernel.rig(way, Scratch::new(PoolFs::Xfs));
    let figures = |rig: &Rig| rig.local.attachment_figures().unwrap();
    let exports = |rig: &Rig| rig.local.export_figures().unwrap().unwrap();
    assert_eq!(figures(&rig), AttachmentFigures { ports: 3, ..AttachmentFigures::default() });
    assert_eq!(exports(&rig), ExportFigures::default());

    let ids = [create(&rig, "a"), create(&rig, "b")];
    for id in &ids {
        rig.home.grant(id, &to_other()).unwrap();
    }
    let attached = AttachmentFigures { authenticated: 2, ports_taken: 2, ports: 3, ..AttachmentFigures::default() };
    assert_eq!(figures(&rig), attached);
    assert_eq!(exports(&rig), ExportFigures { idle: 2, ..ExportFigures::default() });
    kernel.0.lock().unwrap().connections = 3;
    assert_eq!(exports(&rig), ExportFigures { connected: 2, connections: 6, ..ExportFigures::default() });
    // A client whose kernel has no authentication.
    let plain = Client { authenticates: Dhchap::No, ..client() };
    rig.home.open_for(&ids[0], &other(), &plain).unwrap();
    let unlike = AttachmentFigures { authenticated: 1, unauthenticated: 1, ..attached.clone() };
    assert_eq!(figures(&rig), unlike);

    // Another process removed an export: the metric counts it, and doctor names its volume.
    let gone = kernel.0.lock().unwrap().all.pop_first().unwrap();
    assert_eq!(exports(&rig).missing, 1);
    let missing = |rig: &Rig| {
        let found = rig.local.examine().unwrap();
        let of =
            found.into_iter().filter(|one| one.kind == FindingKind::Service && one.what.contains("does not export it"));
        of.map(|one| one.place).collect::<Vec<_>>()
    };
    let [place] = missing(&rig).try_into().unwrap();
    assert!(place.contains(&ids[0].uuid.to_string()), "{place}");
    kernel.0.lock().unwrap().all.insert(gone.0, gone.1);
    assert!(exports(&rig).missing == 0 && missing(&rig).is_empty());

    // A fence that does not end: its age survives a restart, and its port stays taken.
    kernel.stuck(true);
    assert_eq!(rig.home.revoke(&ids[0], None).unwrap_err().kind(), Kind::Busy);
    let begun = figures(&rig).detaching;
    assert_eq!((begun.len(), figures(&rig).ports_taken, exports(&rig).missing), (1, 2, 0));
    std::thread::sleep(Duration::from_millis(20));
    let rig = kernel.again(rig);
    assert!(figures(&rig).detaching.len() == 1 && figures(&rig).detaching[0] >= begun[0] + Duration::from_millis(20));
    assert_eq!(figures(&rig).authenticated, 1);
    let detaching = rig.local.examine().unwrap();
    let said = detaching.iter().find(|one| one.kind == FindingKind::Unfinished).unwrap();
    assert!(said.what.contains("in detaching from node node-2 for 0 s"), "{said:?}");
    kernel.stuck(false);
    for id in &ids {
        rig.home.revoke(id, None).unwrap();
    }
    assert_eq!(figures(&rig), AttachmentFigures { ports: 3, ..AttachmentFigures::default() });
    assert_eq!(exports(&rig), ExportFigures::default());
}
