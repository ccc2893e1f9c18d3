//! A controller and nodes with a valid certificate that send false answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::home::{
    Client, CopyState, FormatState, Formatting, Health, NodeExpansion, OpenVolume, PoolHealth, SnapshotFilter,
};
use crate::os::Timestamp;
use crate::pool::Ability;
use crate::types::{
    Access, AccessMode, Authentication, Capability, FsType, Placement, Provisioning, SubsystemNqn, VolumeMode,
    VolumeParameters,
};

/// What a home node answers when it is asked for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// Nothing: it is honest, and empty.
    Nothing,
    /// Yes to every name, and shows it under a name of its choice.
    YesUnderAnyName,
    /// Yes to every name, and shows nothing.
    YesAndHides,
    /// It has this one, and shows it.
    Has(&'static str),
}

/// A home that creates whatever is requested.
struct Teller {
    node: NodeId,
    /// The pool it names in its answers.
    pool: PoolId,
    says: Says,
    /// Fixed answers to single calls, before all else.
    fixed: Fixed,
}

/// What a node answers whatever it is asked.
#[derive(Clone, Default)]
struct Fixed {
    volume: Option<Volume>,
    volumes: Option<Page<Volume, VolumeId>>,
    volume_ids: Option<Vec<VolumeId>>,
    snapshot: Option<Snapshot>,
    snapshots: Option<Page<Snapshot, SnapshotId>>,
    snapshot_ids: Option<Vec<SnapshotId>>,
    granted: Option<Granted>,
    extents: BTreeMap<VolumeId, u64>,
    report: Vec<PoolReport>,
}

impl Teller {
    fn volume_called(&self, name: &str) -> Volume {
        Volume {
            id: VolumeId::new(self.pool, ObjectUuid::of_volume(name)),
            birth_home: self.node.clone(),
            home: self.node.clone(),
            name: name.to_owned(),
            claim: None,
            size: Bytes::mib(8),
            source: None,
            published: Vec::new(),
            format: FormatState::Never,
            modes: vec![VolumeMode::Block],
            provisioning: Provisioning::Thin,
            created: Timestamp::now(),
            access: Access::Local,
            authentication: Authentication::Auto,
        }
    }
}

fn nobody_asks<T>() -> T {
    panic!("this call is not expected")
}

impl Home for Teller {
    fn node(&self) -> &NodeId {
        &self.node
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Created<Volume>, Failure> {
        Ok(Created::New(self.fixed.volume.clone().unwrap_or_else(|| self.volume_called(&request.name))))
    }

    fn delete_volume(&self, _: &VolumeId) -> Result<Changed> {
        nobody_asks()
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        if let Some(volume) = &self.fixed.volume {
            return Ok(volume.clone());
        }
        match self.says {
            Says::YesUnderAnyName => Ok(Volume { id: *id, ..self.volume_called("pvc-of-the-liar") }),
            Says::Has(name) => Ok(Volume { id: *id, ..self.volume_called(name) }),
            Says::Nothing | Says::YesAndHides => Err(Error::new(Kind::NotFound, "it does not exist")),
        }
    }

    fn find_volume(&self, uuid: ObjectUuid) -> Result<Vec<VolumeId>> {
        if let Some(ids) = &self.fixed.volume_ids {
            return Ok(ids.clone());
        }
        let yes = match self.says {
            Says::Nothing => false,
            Says::YesUnderAnyName | Says::YesAndHides => true,
            Says::Has(name) => ObjectUuid::of_volume(name) == uuid,
        };
        Ok(if yes { vec![VolumeId::new(self.pool, uuid)] } else { Vec::new() })
    }

    fn volumes(&self, _: Option<VolumeId>, _: usize) -> Result<Page<Volume, VolumeId>> {
        if let Some(page) = &self.fixed.volumes {
            return Ok(page.clone());
        }
        let mut entries: Vec<_> = ["a", "b", "c"].map(|name| self.volume_called(name)).into();
        entries.sort_by_key(|volume| volume.id);
        Ok(Page { entries, next: None })
    }

    fn grant(&self, _: &VolumeId, _: &GrantRequest) -> Result<Granted> {
        Ok(self.fixed.granted.clone().unwrap())
    }

    fn revoke(&self, _: &VolumeId, _: Option<&NodeId>) -> Result<Changed> {
        nobody_asks()
    }

    fn open_for(&self, _: &VolumeId, _: &NodeId, _: &Client) -> Result<OpenVolume> {
        nobody_asks()
    }

    fn close(&self, _: &VolumeId, _: &NodeId) -> Result<()> {
        nobody_asks()
    }

    fn device_of(&self, _: &VolumeId) -> Result<Option<crate::pool::ActiveDevice>> {
        nobody_asks()
    }

    fn volume_of(&self, _: crate::os::DevNum) -> Result<Option<VolumeId>> {
        nobody_asks()
    }

    fn was_given(&self, _: &VolumeId, _: crate::os::DevNum) -> Result<bool> {
        nobody_asks()
    }

    fn give_view(&self, _: &VolumeId, _: &NodeId, _: &crate::pool::ActiveDevice) -> Result<()> {
        nobody_asks()
    }

    fn begin_format(&self, _: &VolumeId, _: &NodeId, _: FsType) -> Result<Formatting> {
        nobody_asks()
    }

    fn end_format(&self, _: &VolumeId, _: &NodeId, _: Uuid) -> Result<()> {
        nobody_asks()
    }

    fn use_raw(&self, _: &VolumeId, _: &NodeId) -> Result<()> {
        nobody_asks()
    }

    fn create_snapshot(&self, _: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        Ok(Created::Existing(self.fixed.snapshot.clone().unwrap()))
    }

    fn delete_snapshot(&self, _: &SnapshotId) -> Result<Changed> {
        nobody_asks()
    }

    fn snapshot(&self, _: &SnapshotId) -> Result<Snapshot> {
        Ok(self.fixed.snapshot.clone().unwrap())
    }

    fn find_snapshot(&self, _: ObjectUuid) -> Result<Vec<SnapshotId>> {
        Ok(self.fixed.snapshot_ids.clone().unwrap_or_default())
    }

    fn snapshots(&self, _: &SnapshotFilter, _: Option<SnapshotId>, _: usize) -> Result<Page<Snapshot, SnapshotId>> {
        Ok(self.fixed.snapshots.clone().unwrap_or(Page { entries: Vec::new(), next: None }))
    }

    fn expand(&self, _: &VolumeId, _: &CapacityRange) -> Result<Expanded> {
        Ok(Expanded { size: Bytes::mib(8), node_expansion: NodeExpansion::NotNeeded, changed: Changed::No })
    }

    fn capacity(&self, _: &CapacityQuery) -> Result<Capacity> {
        nobody_asks()
    }

    fn exports(&self, _: &NodeId, _: PoolId) -> Result<Vec<SubsystemNqn>> {
        Ok(Vec::new())
    }

    fn extents(&self) -> Result<BTreeMap<VolumeId, u64>> {
        Ok(self.fixed.extents.clone())
    }

    fn report(&self) -> Result<Vec<PoolReport>> {
        Ok(self.fixed.report.clone())
    }

    fn readmit(&self, _: PoolId) -> Result<Changed> {
        nobody_asks()
    }

    fn examine(&self) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// The pool of a node, derived from its name.
fn pool_of(name: &str) -> PoolId {
    format!("{:016x}", name.bytes().fold(0_u64, |sum, byte| sum << 8 | u64::from(byte))).parse().unwrap()
}

fn heartbeat(name: &str, pools: &[PoolId]) -> Heartbeat {
    let health =
        |id: &PoolId| PoolHealth { id: *id, name: "test".parse().unwrap(), health: Health::Failing("x".into()) };
    Heartbeat {
        node: node(name),
        boot_id: String::new(),
        version: String::new(),
        endpoint: format!("{name}:1"),
        fabric: NO_FABRIC.to_owned(),
        pools: pools.iter().map(health).collect(),
        known: Vec::new(),
        left_out: 0,
        connections: None,
    }
}

fn entry(pool: PoolId, of: &str, heard: Timestamp) -> Entry {
    Entry { pool, name: "test".parse().unwrap(), node: node(of), endpoint: format!("{of}:1"), heard }
}

/// A node, its answers, and the node whose pool it names in them.
type Told = (&'static str, Says, &'static str);

/// A controller's directory that dials these.
fn directory_of(tellers: &[Told], interval: Duration) -> Directory {
    let tellers = tellers.to_vec();
    let dial = move |dialled: &NodeId, _: &str| {
        let (name, says, pool) = *tellers.iter().find(|(name, ..)| *name == dialled.as_str()).expect("a node");
        Ok(Arc::new(Teller { node: node(name), pool: pool_of(pool), says, fixed: Fixed::default() }) as Arc<dyn Home>)
    };
    Directory::of_controller(Box::new(dial), Rhythm { interval }, BTreeSet::from([Lost::Pool(pool_of("lost"))]))
}

/// The same, whose nodes are never unreachable.
fn directory(tellers: &[Told]) -> Directory {
    directory_of(tellers, Duration::from_secs(3600))
}

/// Routers that received heartbeats of all their nodes, for long enough.
fn routers<const N: usize>(all: [&[Told]; N]) -> [Router; N] {
    let interval = Duration::from_secs(2);
    let routers = all.map(|tellers| Router::new(directory_of(tellers, interval)));
    thread::sleep(Rhythm { interval }.settling());
    for (router, tellers) in routers.iter().zip(all) {
        for (name, ..) in tellers {
            router.directory().hear(heartbeat(name, &[pool_of(name)])).unwrap();
        }
    }
    routers
}

fn request(name: &str) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        range: CapacityRange { required: Some(Bytes::mib(8)), limit: None },
        capabilities: vec![Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeWriter }],
        parameters: VolumeParameters { placement: Placement::Selected, ..Default::default() },
        source: None,
    }
}

fn first_on(name: &str, others: &[&str]) -> Requirement {
    let all: Vec<_> = [name].iter().chain(others).map(|name| Segments::of_local_volume(&node(name))).collect();
    Requirement { requisite: all.clone(), preferred: all }
}

#[test]
fn a_node_that_says_yes_to_every_name_captures_no_create_and_keeps_none_from_others() {
    let honest = ("honest", Says::Nothing, "honest");
    let [under_any_name, hiding, having] = routers([
        &[honest, ("liar", Says::YesUnderAnyName, "liar")],
        &[honest, ("liar", Says::YesAndHides, "liar")],
        &[honest, ("other", Says::Has("pvc-1"), "other")],
    ]);
    for router in [under_any_name, hiding] {
        // Where any node would do, and where the lying node is not allowed.
        for requirement in [first_on("honest", &["liar"]), first_on("honest", &[])] {
            let made = router.create_volume(&request("pvc-1"), &requirement);
            let made = made.map_err(|failure| failure.error().chain()).unwrap().into_inner();
            assert_eq!((made.home.as_str(), made.id.pool), ("honest", pool_of("honest")));
        }
    }
    // A node that has it shows it: it is found where it was created before, whatever is preferred now.
    let found = having.create_volume(&request("pvc-1"), &first_on("honest", &["other"])).unwrap().into_inner();
    assert_eq!(found.home.as_str(), "other");
}

#[test]
fn what_a_node_says_of_another_s_pool_is_not_used_and_names_it() {
    let [router] = routers([&[
        ("honest", Says::Nothing, "honest"),
        ("liar", Says::Has("pvc-1"), "honest"),
        ("third", Says::Nothing, "third"),
    ]]);
    let made = router.create_volume(&request("pvc-1"), &first_on("honest", &["third"])).unwrap().into_inner();
    assert_eq!(made.home.as_str(), "honest");
    // The lying node is asked to create one, and names a volume in the pool of another.
    let failure = router.create_volume(&request("pvc-2"), &first_on("liar", &[])).unwrap_err();
    let said = failure.error().chain();
    assert!(matches!(failure, Failure::Dirty(_)), "{said}");
    assert!(said.contains("node liar") && said.contains(&pool_of("honest").to_string()), "{said}");
    let error = router.volumes(None, 0).unwrap_err();
    assert!(error.kind() == Kind::Unavailable && error.chain().contains("liar"), "{}", error.chain());
    // The command line lists the others, and names the lying node.
    let found = router.inventory();
    assert_eq!(found.volumes.len(), 6);
    assert!(found.unheard.iter().any(|why| why.contains("node liar")), "{:?}", found.unheard);
}

#[test]
fn every_node_is_told_which_pools_were_declared_lost() {
    let directory = directory_of(&[("a", Says::Nothing, "a"), ("b", Says::Nothing, "b")], Duration::from_secs(5));
    let told = directory.hear(heartbeat("a", &[pool_of("lost"), pool_of("a")])).unwrap();
    assert_eq!((told.lost, told.lost_elsewhere), (vec![pool_of("lost")], Vec::new()));
    let told = directory.hear(heartbeat("b", &[pool_of("b")])).unwrap();
    assert_eq!((told.lost, told.lost_elsewhere), (Vec::new(), vec![pool_of("lost")]));
}

#[test]
fn a_time_that_has_not_come_is_nobody_s_last_word() {
    let now = Timestamp::now();
    let later = |seconds: u64| Timestamp::from_nanos(now.as_nanos() + seconds * 1_000_000_000);
    let heard_of = |first: &[Entry], then: &[Entry]| {
        let interval = Duration::from_millis(10);
        let directory = directory_of(&[("a", Says::Nothing, "a"), ("b", Says::Nothing, "b")], interval);
        let a = Heartbeat { known: first.to_vec(), ..heartbeat("a", &[pool_of("a")]) };
        directory.hear(a).unwrap();
        let b = Heartbeat { known: then.to_vec(), ..heartbeat("b", &[pool_of("b")]) };
        let told = directory.hear(b).unwrap().directory;
        thread::sleep(Rhythm { interval }.settling());
        let error = directory.answering(pool_of("gone")).err().map(|error| error.chain()).unwrap_or_default();
        (told.into_iter().find(|entry| entry.pool == pool_of("gone")).unwrap(), error)
    };
    let honest = entry(pool_of("gone"), "home", Timestamp::from_nanos(now.as_nanos() - 1_000_000_000));
    for ahead in [3600, 10 * 365 * 86_400] {
        let lie = entry(pool_of("gone"), "wrong", later(ahead));
        for (first, then) in [(&lie, &honest), (&honest, &lie)] {
            let (told, said) = heard_of(std::slice::from_ref(first), std::slice::from_ref(then));
            assert_eq!((told.node.as_str(), told.heard), ("home", honest.heard));
            assert!(said.contains("node home") && !said.contains("wrong"), "{said}");
        }
        // No better entry exists: it is kept without its time, and the message names its source.
        let (told, said) = heard_of(std::slice::from_ref(&lie), &[]);
        assert_eq!(told.heard, Timestamp::from_nanos(0));
        assert!(said.contains("an unknown time") && said.contains("according to the directory of node a"), "{said}");
    }
    // Clocks differ a little: a heartbeat a moment in the future counts as received now.
    let (told, _) = heard_of(&[entry(pool_of("gone"), "home", later(60))], &[]);
    assert!(told.heard >= now && told.heard < later(60), "{told:?}");
}

#[test]
fn what_nodes_remember_is_bounded_and_no_partial_list_is_given() {
    let directory = directory(&[("a", Says::Nothing, "a"), ("b", Says::Nothing, "b")]);
    let many = |from: u64, count: u64| -> Vec<Entry> {
        let id = |n: u64| format!("{n:016x}").parse().unwrap();
        (from..from + count).map(|n| entry(id(n), "nowhere", Timestamp::from_nanos(n))).collect()
    };
    let most = u64::try_from(MOST_KNOWN).unwrap();
    let a = Heartbeat { known: many(1 << 32, most), ..heartbeat("a", &[]) };
    assert_eq!(directory.hear(a).unwrap().directory.len(), MOST_KNOWN);
    let b = Heartbeat { known: many(1 << 40, 500), ..heartbeat("b", &[pool_of("b")]) };
    let told = directory.hear(b).unwrap().directory;
    // A node's own pools are always known.
    assert_eq!(told.len(), MOST_KNOWN + 1);
    let unheard = directory.unheard();
    assert!(unheard.iter().any(|why| why.contains("node b reports 500 pools more")), "{}", unheard.len());
    // Long names count by their bytes.
    let directory = self::directory(&[("a", Says::Nothing, "a")]);
    let long = many(1 << 32, most).into_iter().map(|entry| Entry { endpoint: "x".repeat(1000), ..entry }).collect();
    let told = directory.hear(Heartbeat { known: long, ..heartbeat("a", &[]) }).unwrap().directory;
    assert!(told.iter().map(|entry| entry.endpoint.len()).sum::<usize>() <= 2 << 20);
}

#[test]
fn a_node_names_so_many_pools_and_no_more() {
    let directory = directory(&[("a", Says::Nothing, "a")]);
    let pools =
        |from: u64| -> Vec<PoolId> { (from..from + 600).map(|n| format!("{n:016x}").parse().unwrap()).collect() };
    directory.hear(heartbeat("a", &pools(1))).unwrap();
    let error = directory.hear(heartbeat("a", &pools(1000))).unwrap_err();
    assert!(error.kind() == Kind::InvalidArgument && error.to_string().contains("node a"), "{error}");
    // Its earlier report remains valid.
    directory.hear(heartbeat("a", &pools(1))).unwrap();
}

/// A volume as node `a` has it, and a snapshot of it.
fn honest() -> (Volume, Snapshot) {
    let teller = Teller { node: node("a"), pool: pool_of("a"), says: Says::Nothing, fixed: Fixed::default() };
    let volume = teller.volume_called("v");
    let snapshot = Snapshot {
        id: SnapshotId::new(pool_of("a"), ObjectUuid::of_snapshot("s")),
        birth_home: node("a"),
        home: node("a"),
        name: "s".to_owned(),
        source: volume.id,
        source_birth_home: node("a"),
        size: Bytes::mib(8),
        cut: Timestamp::now(),
        copy: CopyState::Ready,
    };
    (volume, snapshot)
}

/// Whether the answers of node `a` to each kind of question are used.
fn used(fixed: Fixed) -> [bool; 9] {
    let (volume, snapshot) = honest();
    let teller = Teller { node: node("a"), pool: pool_of("a"), says: Says::Nothing, fixed };
    let home = owned::OwnedHome::new(Arc::new(teller), owned::Pools::of(&BTreeSet::from([pool_of("a")])));
    let grant = GrantRequest {
        node: node("a"),
        mode: VolumeMode::Block.into(),
        access: AccessMode::SingleNodeWriter,
        read_only: crate::home::ReadOnly::No,
    };
    let filter = SnapshotFilter { source: Some(volume.id) };
    let cut = CreateSnapshot { name: "s".to_owned(), source: volume.id };
    // A create whose answer is not used may have had an effect.
    let created = home.create_volume(&request("v"));
    assert!(created.as_ref().err().is_none_or(|failure| matches!(failure, Failure::Dirty(_))));
    [
        created.is_ok() && home.volume(&volume.id).is_ok(),
        home.volumes(None, 2).is_ok(),
        home.find_volume(volume.id.uuid).is_ok(),
        home.create_snapshot(&cut).is_ok() && home.snapshot(&snapshot.id).is_ok(),
        home.snapshots(&filter, None, 2).is_ok(),
        home.find_snapshot(snapshot.id.uuid).is_ok(),
        home.grant(&volume.id, &grant).is_ok(),
        home.extents().is_ok(),
        home.report().is_ok(),
    ]
}

#[test]
fn an_answer_about_anything_but_the_question_and_the_node_s_own_is_not_used() {
    let (volume, snapshot) = honest();
    let teller = Teller { node: node("a"), pool: pool_of("a"), says: Says::Nothing, fixed: Fixed::default() };
    let page = |entries: Vec<Volume>, next| Some(Page { entries, next });
    let report = |id| PoolReport {
        id,
        name: "test".parse().unwrap(),
        kind: "file".into(),
        place: String::new(),
        room: crate::pool::FreeSpace { total: Bytes::ZERO, available: Bytes::ZERO, inodes: None, inodes_free: None },
        available: Bytes::ZERO,
        available_thick: None,
        available_thin: Bytes::ZERO,
        default_provisioning: Provisioning::Thin,
        promised: Bytes::ZERO,
        provisioned: Bytes::ZERO,
        volumes: 0,
        snapshots: 0,
        network: Ability::No,
    };
    let granted = |home: &str| Some(Granted { home: node(home), epoch: 1, changed: Changed::Yes });
    let truth = Fixed {
        volume: Some(volume.clone()),
        volumes: page(vec![volume.clone()], Some(volume.id)),
        volume_ids: Some(vec![volume.id]),
        snapshot: Some(snapshot.clone()),
        snapshots: Some(Page { entries: vec![snapshot.clone()], next: None }),
        snapshot_ids: Some(vec![snapshot.id]),
        granted: granted("a"),
        extents: BTreeMap::from([(volume.id, 1)]),
        report: vec![report(pool_of("a"))],
    };
    assert_eq!(used(truth.clone()), [true; 9]);

    let mut sorted = ["a", "b", "c"].map(|name| teller.volume_called(name)).to_vec();
    sorted.sort_by_key(|volume| volume.id);
    let [one, two, three] = <[Volume; 3]>::try_from(sorted).unwrap();
    let other_pool = VolumeId::new(pool_of("b"), volume.id.uuid);
    let other_snapshot = SnapshotId::new(snapshot.id.pool, ObjectUuid::of_snapshot("other"));
    let many = (0..1025).map(|n| node(&format!("n{n}"))).collect();
    let lies: Vec<(&str, usize, Fixed)> = vec![
        ("another volume", 0, Fixed { volume: Some(teller.volume_called("w")), ..truth.clone() }),
        ("another home", 0, Fixed { volume: Some(Volume { home: node("b"), ..volume.clone() }), ..truth.clone() }),
        ("too many nodes", 0, Fixed { volume: Some(Volume { published: many, ..volume.clone() }), ..truth.clone() }),
        ("another name", 0, Fixed { volume: Some(Volume { name: "w".into(), ..volume.clone() }), ..truth.clone() }),
        ("not in order", 1, Fixed { volumes: page(vec![two.clone(), one.clone()], None), ..truth.clone() }),
        ("one twice", 1, Fixed { volumes: page(vec![one.clone(), one.clone()], None), ..truth.clone() }),
        ("too long", 1, Fixed { volumes: page(vec![one.clone(), two.clone(), three], None), ..truth.clone() }),
        ("a token before the end", 1, Fixed { volumes: page(vec![two], Some(one.id)), ..truth.clone() }),
        ("another uuid", 2, Fixed { volume_ids: Some(vec![one.id]), ..truth.clone() }),
        ("one pool twice", 2, Fixed { volume_ids: Some(vec![volume.id; 2]), ..truth.clone() }),
        ("another pool", 2, Fixed { volume_ids: Some(vec![other_pool]), ..truth.clone() }),
        (
            "another snapshot",
            3,
            Fixed { snapshot: Some(Snapshot { id: other_snapshot, ..snapshot.clone() }), ..truth.clone() },
        ),
        (
            "its source elsewhere",
            3,
            Fixed { snapshot: Some(Snapshot { source: other_pool, ..snapshot.clone() }), ..truth.clone() },
        ),
        (
            "of another source",
            4,
            Fixed {
                snapshots: Some(Page { entries: vec![Snapshot { source: one.id, ..snapshot.clone() }], next: None }),
                ..truth.clone()
            },
        ),
        ("another snapshot's uuid", 5, Fixed { snapshot_ids: Some(vec![other_snapshot]), ..truth.clone() }),
        ("attached by another", 6, Fixed { granted: granted("b"), ..truth.clone() }),
        ("extents elsewhere", 7, Fixed { extents: BTreeMap::from([(other_pool, 1)]), ..truth.clone() }),
        ("figures of another pool", 8, Fixed { report: vec![report(pool_of("b"))], ..truth.clone() }),
    ];
    for (what, question, lie) in lies {
        let mut expected = [true; 9];
        expected[question] = false;
        assert_eq!(used(lie), expected, "{what}");
    }
}
