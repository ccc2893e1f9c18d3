//! Several pools of one home node: none reads, waits for or answers for another.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::pool::FirstUse;

/// What happens to calls at or below a path.
#[derive(Default)]
struct Disk {
    root: Mutex<PathBuf>,
    fails: AtomicBool,
    hangs: Mutex<bool>,
    answers: Condvar,
    asked: Mutex<Vec<String>>,
}

struct Watched(Arc<Disk>);

impl Interceptor for Watched {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        let disk = &self.0;
        if !std::path::Path::new(target).starts_with(&*disk.root.lock().unwrap()) {
            return Ok(());
        }
        let hangs = disk.hangs.lock().unwrap();
        drop(disk.answers.wait_while(hangs, |hangs| *hangs).unwrap());
        if disk.fails.load(Ordering::SeqCst) {
            disk.asked.lock().unwrap().push(format!("{call:?} {target}"));
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

/// A home with pool `one`, whose disk the test controls, and pool `two`.
struct Two {
    home: LocalHome,
    disk: Arc<Disk>,
    _devices: Devices,
    _grounds: [Scratch; 2],
}

impl Two {
    fn new() -> Self {
        let disk = Arc::new(Disk::default());
        let os = Os::intercepted(Box::new(Watched(Arc::clone(&disk))));
        let grounds = [Scratch::new(PoolFs::Xfs), Scratch::new(PoolFs::Xfs)];
        *disk.root.lock().unwrap() = grounds[0].root().canonicalize().unwrap();
        let named = |name: &str, scratch: &Scratch| {
            let spec = format!("{name}=file:{}", scratch.root().display()).parse().unwrap();
            pool::open(&os, &spec, &node()).unwrap()
        };
        let (one, two) = (named("one", &grounds[0]), named("two", &grounds[1]));
        let pools = [one, Arc::clone(&two)].map(|pool| (pool, SpaceLimits::default()));
        let home = LocalHome::open(os.clone(), node(), pools.into()).unwrap();
        Self { home, disk, _devices: Devices(Some(two)), _grounds: grounds }
    }

    fn create(&self, pool: &str, name: &str) -> Result<Volume, Failure> {
        let parameters = VolumeParameters { pool: Some(pool.parse().unwrap()), ..VolumeParameters::default() };
        self.home.create_volume(&CreateVolume { parameters, ..request(name, 32) }).map(Created::into_inner)
    }

    fn healths(&self) -> [Health; 2] {
        let mut conditions = self.home.conditions();
        conditions.sort_by_key(|condition| condition.name.clone());
        conditions.into_iter().map(|condition| condition.health).collect::<Vec<_>>().try_into().unwrap()
    }
}

#[test]
fn no_call_for_a_pool_touches_another_and_a_failing_one_is_unavailable_by_name() {
    let two = Two::new();
    let lost = two.create("one", "lost").unwrap();
    two.disk.fails.store(true, Ordering::SeqCst);
    let home = &two.home;
    let volume = two.create("two", "a").unwrap();
    two.create("two", "a").unwrap();
    assert_eq!(home.find_volume(volume.id.uuid).unwrap(), [volume.id]);
    home.volume(&volume.id).unwrap();
    home.grant(&volume.id, &grant()).unwrap();
    home.open(&volume.id, &node()).unwrap();
    home.expand(&volume.id, &CapacityRange { required: Some(Bytes::mib(48)), limit: None }).unwrap();
    let snapshot = CreateSnapshot { name: "s".into(), source: volume.id };
    let snapshot = home.create_snapshot(&snapshot).unwrap().into_inner();
    home.snapshot(&snapshot.id).unwrap();
    home.delete_snapshot(&snapshot.id).unwrap();
    home.close(&volume.id, &node()).unwrap();
    home.revoke(&volume.id, None).unwrap();
    home.delete_volume(&volume.id).unwrap();
    assert_eq!(*two.disk.asked.lock().unwrap(), Vec::<String>::new(), "the other pool was asked");
    let refused = |error: Error| {
        assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
        assert!(error.chain().contains("pool one") && error.chain().contains("findmnt"), "{}", error.chain());
    };
    refused(home.volume(&lost.id).unwrap_err());
    refused(home.delete_volume(&lost.id).unwrap_err());
    refused(home.revoke(&lost.id, None).unwrap_err());
    refused(home.find_volume(lost.id.uuid).unwrap_err());
    refused(home.volumes(None, 0).unwrap_err());
    refused(two.create("one", "new").unwrap_err().into_error());
    let [one, other] = two.healths();
    assert!(matches!(one, Health::Failing(why) if why.contains("pool one")));
    assert!(matches!(other, Health::Served(_)));
    two.disk.fails.store(false, Ordering::SeqCst);
    home.volume(&lost.id).unwrap();
    assert!(matches!(two.healths(), [Health::Served(_), Health::Served(_)]));
}

#[test]
fn a_pool_that_does_not_answer_costs_the_others_no_figures() {
    let two = Two::new();
    *two.disk.hangs.lock().unwrap() = true;
    for _ in 0..2 {
        let [one, other] = two.healths();
        assert!(matches!(one, Health::Failing(why) if why.contains("does not answer")));
        assert!(matches!(other, Health::Served(_)));
    }
    two.create("two", "a").unwrap();
    *two.disk.hangs.lock().unwrap() = false;
    two.disk.answers.notify_all();
    while matches!(two.healths(), [Health::Failing(_), _]) {
        thread::sleep(Duration::from_millis(20));
    }
}

/// As a standalone driver and, over gRPC, a node answer it.
#[test]
fn each_pool_is_examined_by_its_home_and_one_that_fails_is_a_finding() {
    let two = Two::new();
    let kept = two.create("two", "a").unwrap();
    let root = two._grounds[1].root();
    let stray = root.join("volumes/notes.txt");
    let left = root.join(format!("volumes/.tmp-{}", ObjectUuid::of_volume("b")));
    std::fs::write(&stray, "not ours").unwrap();
    std::fs::create_dir(&left).unwrap();
    std::fs::write(root.join(format!("volumes/{}/volume.json", kept.id.uuid)), "{").unwrap();
    two.disk.fails.store(true, Ordering::SeqCst);
    let over_grpc = Loopback::new(Arc::new(two.home.clone()));
    for home in [Arc::new(two.home.clone()) as Arc<dyn Home>, over_grpc.home()] {
        let found = home.examine().unwrap();
        let of = |pool: &str, kind| {
            let of = found.iter().filter(|finding| (finding.pool.as_str(), finding.kind) == (pool, kind));
            of.map(|finding| finding.place.clone()).collect::<Vec<_>>()
        };
        let name = |path: &std::path::Path| path.canonicalize().unwrap().display().to_string();
        assert_eq!(of("two", FindingKind::Orphan), [name(&stray)], "{found:?}");
        assert_eq!(of("two", FindingKind::Unfinished), [name(&left)], "{found:?}");
        assert!(of("two", FindingKind::Unreadable)[0].ends_with(&kept.id.uuid.to_string()), "{found:?}");
        assert_eq!(of("one", FindingKind::Unreadable).len(), 1, "{found:?}");
    }
}

#[test]
fn a_pool_that_is_not_there_at_the_start_is_waited_for_and_none_is_made() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let (place, aside) = (scratch.root().join("pool"), scratch.root().join("aside"));
    std::fs::create_dir(&place).unwrap();
    let spec = spec(&place);
    let os = scratch.os().clone();
    let id = {
        let pool = pool::open(&os, &spec, &node()).unwrap();
        let id = pool.identity().id;
        let home = LocalHome::open(os.clone(), node(), vec![(pool, SpaceLimits::default())]).unwrap();
        home.create_volume(&request("a", 32)).unwrap();
        id
    };
    // As after a boot with a late mount: the directory exists and is empty.
    std::fs::rename(&place, &aside).unwrap();
    std::fs::create_dir(&place).unwrap();
    let opening = (os.clone(), spec.clone());
    let configured = |known| {
        let (os, spec) = opening.clone();
        ConfiguredPool {
            name: spec.name.clone(),
            place: place.display().to_string(),
            known,
            limits: SpaceLimits::default(),
            open: Arc::new(move |first: FirstUse| pool::open_or(&os, &spec, &node(), first)),
        }
    };
    let home = LocalHome::start(os.clone(), node(), vec![configured(Some(id))], None).unwrap();
    let uuid = ObjectUuid::of_volume("a");
    let volume = VolumeId::new(id, uuid);
    let refused = |error: Error| {
        assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
        let place = place.display().to_string();
        assert!(error.chain().contains(&place) && error.chain().contains("findmnt"), "{}", error.chain());
    };
    refused(home.volume(&volume).unwrap_err());
    refused(home.delete_volume(&volume).unwrap_err());
    refused(home.volumes(None, 0).unwrap_err());
    refused(home.create_volume(&request("b", 32)).unwrap_err().into_error());
    let found = |served: bool| {
        for _ in 0..1000 {
            home.find_pools();
            if home.volume(&volume).is_ok() == served {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("the pool is not found");
    };
    home.find_pools();
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "a pool was made");
    std::fs::remove_dir(&place).unwrap();
    std::fs::rename(&aside, &place).unwrap();
    found(true);
    assert_eq!(home.volumes(None, 0).unwrap().entries.len(), 1);
    // A second pool with the same name is rejected at once, and so is one where waiting does not help.
    let twice = LocalHome::start(os.clone(), node(), vec![configured(None), configured(None)], None);
    assert_eq!(twice.map(|_| ()).unwrap_err().kind(), Kind::InvalidArgument);
    let owned = LocalHome::start(os, node(), vec![configured(None)], None);
    assert_eq!(owned.map(|_| ()).unwrap_err().kind(), Kind::InUse);
}

/// Records cannot be read while it is set.
#[derive(Default)]
struct Slow {
    reads: Mutex<bool>,
    answers: Condvar,
}

struct SlowRecords(Arc<Slow>);

impl Interceptor for SlowRecords {
    fn before(&self, _call: Call, target: &str) -> io::Result<()> {
        if target.contains("/volumes/") && target.ends_with(".json") {
            let reads = self.0.reads.lock().unwrap();
            drop(self.0.answers.wait_while(reads, |reads| *reads).unwrap());
        }
        Ok(())
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_pool_that_came_back_does_not_say_that_a_volume_is_not_there_before_it_is_read() {
    let (scratch, slow) = (Scratch::new(PoolFs::Xfs), Arc::new(Slow::default()));
    let (place, aside) = (scratch.root().join("pool"), scratch.root().join("aside"));
    std::fs::create_dir(&place).unwrap();
    let os = Os::intercepted(Box::new(SlowRecords(Arc::clone(&slow))));
    let open = || {
        let pool = pool::open(&os, &spec(&place), &node()).unwrap();
        LocalHome::open(os.clone(), node(), vec![(pool, SpaceLimits::default())]).unwrap()
    };
    let volume = open().create_volume(&request("a", 32)).unwrap().into_inner().id;
    let (hidden, uuid) = (scratch.root().join("hidden"), volume.uuid);
    std::fs::rename(place.join("volumes").join(uuid.to_string()), &hidden).unwrap();
    let home = open();
    assert_eq!(home.find_volume(uuid).unwrap(), []);
    // The pool goes away, and comes back with a volume that was not there before.
    std::fs::rename(&place, &aside).unwrap();
    assert_eq!(home.volumes(None, 0).unwrap_err().kind(), Kind::Unavailable);
    // It is looked for, and closed until it is found.
    for _ in 0..100 {
        home.find_pools();
        thread::sleep(Duration::from_millis(20));
    }
    std::fs::rename(&hidden, aside.join("volumes").join(uuid.to_string())).unwrap();
    *slow.reads.lock().unwrap() = true;
    std::fs::rename(&aside, &place).unwrap();
    let is_read = || {
        home.find_pools();
        let answer = home.find_volume(uuid);
        thread::sleep(Duration::from_millis(20));
        answer.is_err_and(|error| error.chain().contains("its records are being read"))
    };
    assert!((0..500).any(|_| is_read()), "{:?}", home.find_volume(uuid));
    *slow.reads.lock().unwrap() = false;
    slow.answers.notify_all();
    while home.find_volume(uuid).is_err() {
        home.find_pools();
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(home.find_volume(uuid).unwrap(), [volume]);
}
