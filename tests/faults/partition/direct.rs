//! One thing at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use tonic::Code;

use super::proxy::{Fate, Told};
use super::world::{INTERVAL, NODES, World, node};
use holdfast::csi::{Rpc, code_of};
use holdfast::home::{CreateVolume, Created, Home, Volume};
use holdfast::os::{Call, Deadline, Interceptor, Os, Stopwatch};
use holdfast::route::{Requirement, Segments};
use holdfast::telemetry::HomeState;
use holdfast::testing::scratch::{PoolFs, Scratch};
use holdfast::types::{
    AccessMode, Bytes, Capability, CapacityRange, Kind, Placement, Provisioning, VolumeMode, VolumeParameters,
};

/// A network whose fates a test sets as it goes.
#[derive(Clone, Default)]
struct Switch(Arc<Mutex<Vec<Set>>>);

/// The home, the call, and what becomes of it.
type Set = (usize, &'static str, Fate);

impl Switch {
    /// From now on this happens to these calls to this home.
    fn set(&self, home: usize, rpc: &'static str, fate: Fate) {
        let mut fates = self.0.lock().unwrap();
        fates.retain(|(at, call, _)| (*at, *call) != (home, rpc));
        fates.push((home, rpc, fate));
    }

    fn fates(&self) -> impl Fn(usize, &str, &str, u32) -> Fate + Send + Sync + Clone + 'static {
        let switch = self.clone();
        move |home, rpc, _, _| {
            let fates = switch.0.lock().unwrap();
            let set = fates.iter().find(|(at, call, _)| *at == home && *call == rpc);
            set.map_or(Fate::Passed, |(_, _, fate)| *fate)
        }
    }
}

const CUT_OFF: Told = Told::Code(Code::Unavailable);

fn request(name: &str, mib: u64, placement: Placement) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        range: CapacityRange { required: Some(Bytes::mib(mib)), limit: None },
        capabilities: vec![Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeWriter }],
        parameters: VolumeParameters { placement, provisioning: Some(Provisioning::Thin), ..Default::default() },
        source: None,
    }
}

/// Anywhere, and first on this node.
fn first_on(index: usize) -> Requirement {
    let all = [index, 1 - index].map(|index| Segments::of_local_volume(&node(index))).to_vec();
    Requirement { requisite: all.clone(), preferred: all }
}

fn create(world: &World, request: &CreateVolume, requirement: &Requirement) -> Result<Volume, (Code, String)> {
    let answer = Deadline::scope(Deadline::after(Duration::from_secs(5)), || {
        world.routers[0].create_volume(request, requirement)
    });
    let told = |failure| (code_of(Rpc::CreateVolume, &failure), failure.error().chain());
    answer.map(Created::into_inner).map_err(told)
}

/// Codes at which the provisioner keeps in mind that something may be there.
fn kept_in_mind(code: Code) -> bool {
    matches!(code, Code::Aborted | Code::Unavailable | Code::DeadlineExceeded)
}

#[test]
fn a_home_that_may_have_the_volume_is_not_passed_over_for_another() {
    let (scratch, switch) = (Scratch::new(PoolFs::Xfs), Switch::default());
    let world = World::new(&scratch, "pools", switch.fates());
    // No room on the first: it is made on the second, and the answer is lost.
    let room = world.proxies[0].local.report().unwrap()[0].available_thin.get() >> 20;
    let filler = world.proxies[0].local.create_volume(&request("filler", room, Placement::Selected)).unwrap();
    switch.set(1, "CreateVolume", Fate::Unanswered(CUT_OFF));
    let vol = request("vol", 8, Placement::Any);
    let (code, said) = create(&world, &vol, &first_on(0)).unwrap_err();
    assert!(kept_in_mind(code) && said.contains("node-b"), "{code:?}: {said}");
    assert_eq!(world.having("vol"), [node(1)]);
    // Room again, and the second cannot be asked.
    world.proxies[0].local.delete_volume(&filler.into_inner().id).unwrap();
    switch.set(1, "FindVolume", Fate::Lost(CUT_OFF));
    let again = create(&world, &vol, &first_on(0));
    assert_eq!(world.having("vol"), [node(1)], "{again:?}");
    let (code, said) = again.unwrap_err();
    assert!(kept_in_mind(code) && said.contains("node-b"), "{code:?}: {said}");
    switch.set(1, "FindVolume", Fate::Passed);
    switch.set(1, "CreateVolume", Fate::Passed);
    assert_eq!(create(&world, &vol, &first_on(0)).unwrap().home, node(1));
}

#[test]
fn a_home_that_fell_silent_is_no_reason_to_forget_what_it_may_have() {
    let (scratch, switch) = (Scratch::new(PoolFs::Xfs), Switch::default());
    let world = World::new(&scratch, "pools", switch.fates());
    switch.set(1, "CreateVolume", Fate::Unanswered(CUT_OFF));
    let vol = request("vol", 8, Placement::Selected);
    create(&world, &vol, &first_on(1)).unwrap_err();
    world.silence(1);
    let only = Requirement { requisite: vec![Segments::of_local_volume(&node(1))], preferred: Vec::new() };
    for requirement in [first_on(1), only] {
        let (code, said) = create(&world, &vol, &requirement).unwrap_err();
        assert!(kept_in_mind(code) && said.contains("node-b"), "{code:?}: {said}");
    }
    // Nor where the other one has no room.
    let huge = request("huge", 1 << 20, Placement::Any);
    let (code, said) = create(&world, &huge, &first_on(0)).unwrap_err();
    assert!(kept_in_mind(code) && said.contains("node-b"), "{code:?}: {said}");
    world.hear_all();
    switch.set(1, "CreateVolume", Fate::Passed);
    assert_eq!(create(&world, &vol, &first_on(1)).unwrap().home, node(1));
    assert_eq!(create(&world, &huge, &first_on(0)).unwrap_err().0, Code::ResourceExhausted);
}

#[test]
fn a_home_that_falls_silent_while_it_is_asked_is_still_allowed() {
    let (scratch, switch) = (Scratch::new(PoolFs::Xfs), Switch::default());
    let world = World::new(&scratch, "pools", switch.fates());
    let vol = request("vol", 8, Placement::Selected);
    let made = create(&world, &vol, &first_on(1)).unwrap();
    switch.set(1, "FindVolume", Fate::Slow(INTERVAL * 5));
    world.silent.store(1, Ordering::SeqCst);
    match create(&world, &vol, &first_on(1)) {
        Ok(again) => assert_eq!(again.id, made.id),
        Err((code, said)) => assert!(kept_in_mind(code), "{code:?}: {said}"),
    }
}

/// Holds the allocation of images until it is let go.
#[derive(Clone, Default)]
struct Stuck(Arc<(Mutex<bool>, Condvar, AtomicBool)>);

impl Stuck {
    fn let_go(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

impl Interceptor for Stuck {
    fn before(&self, call: Call, target: &str) -> std::io::Result<()> {
        if call == Call::SetLength && target.contains("data") {
            self.0.2.store(true, Ordering::SeqCst);
            let free = self.0.0.lock().unwrap();
            drop(self.0.1.wait_timeout_while(free, Duration::from_secs(30), |free| !*free).unwrap());
        }
        Ok(())
    }

    fn after(&self, _: Call, _: &str) -> std::io::Result<()> {
        Ok(())
    }
}

/// gRPC's TimeoutValue and unit.
fn time_of(text: &str) -> Duration {
    let (digits, unit) = text.split_at(text.len() - 1);
    let value = digits.parse().unwrap();
    match unit {
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => panic!("{text}"),
    }
}

#[test]
fn a_home_has_two_seconds_less_than_the_caller_and_its_work_goes_on() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let stuck = Stuck::default();
    let held = Os::intercepted(Box::new(stuck.clone()));
    let world = World::on(&[&held, scratch.os()], &scratch, "pools", Switch::default().fates());
    let vol = request("vol", 8, Placement::Selected);
    let ask = |seconds| {
        let watch = Stopwatch::start();
        let answer = Deadline::scope(Deadline::after(Duration::from_secs(seconds)), || {
            world.routers[0].create_volume(&vol, &first_on(0))
        });
        (answer, watch.elapsed())
    };
    let (answer, took) = ask(4);
    let failure = answer.unwrap_err();
    assert_eq!(code_of(Rpc::CreateVolume, &failure), Code::DeadlineExceeded, "{}", failure.error().chain());
    assert!(failure.error().to_string().contains("node-a"), "{}", failure.error().chain());
    assert!(took > Duration::from_millis(1800) && took < Duration::from_millis(3500), "{took:?}");
    assert!(stuck.0.2.load(Ordering::SeqCst), "the home was never at it");
    let seen = world.proxies[0].net.seen.lock().unwrap();
    let told = seen.iter().find(|seen| seen.rpc == "CreateVolume").unwrap().timeout.clone().unwrap();
    drop(seen);
    let told = time_of(&told);
    assert!(told <= Duration::from_secs(2) && told > Duration::from_millis(1500), "{told:?}");
    // It is still at work there, and says so.
    let (answer, _) = ask(10);
    let failure = answer.unwrap_err();
    assert_eq!(failure.error().kind(), Kind::Busy, "{}", failure.error().chain());
    assert_eq!(code_of(Rpc::CreateVolume, &failure), Code::Aborted);
    stuck.let_go();
    let existing = loop {
        match ask(10).0 {
            Ok(existing) => break existing,
            Err(failure) => assert_eq!(failure.error().kind(), Kind::Busy, "{}", failure.error().chain()),
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(matches!(existing, Created::Existing(_)), "{existing:?}");
    assert_eq!(world.having("vol"), [node(0)]);
}

#[test]
fn a_node_of_a_release_without_a_call_is_named_with_the_call_and_nothing_is_forgotten() {
    let (scratch, switch) = (Scratch::new(PoolFs::Xfs), Switch::default());
    let world = World::new(&scratch, "pools", switch.fates());
    let missing = Fate::Lost(Told::Code(Code::Unimplemented));
    let vol = request("vol", 8, Placement::Any);
    for (home, rpc) in [(1, "FindVolume"), (0, "CreateVolume")] {
        switch.set(home, rpc, missing);
        let (code, said) = create(&world, &vol, &first_on(0)).unwrap_err();
        let words = [rpc, NODES[home], "upgrade"];
        assert!(code == Code::Unavailable && words.iter().all(|word| said.contains(word)), "{code:?}: {said}");
        switch.set(home, rpc, Fate::Passed);
    }
    let made = create(&world, &vol, &first_on(0)).unwrap();
    switch.set(0, "DeleteVolume", missing);
    let error = world.routers[0].delete_volume(&made.id).unwrap_err();
    let said = error.chain();
    assert_eq!(code_of(Rpc::DeleteVolume, &error.into()), Code::Unavailable);
    assert!(["DeleteVolume", "node-a", "upgrade"].iter().all(|word| said.contains(word)), "{said}");
}

#[test]
fn a_heard_node_that_lost_its_pool_may_still_have_the_volume() {
    let (scratch, switch) = (Scratch::new(PoolFs::Xfs), Switch::default());
    let world = World::new(&scratch, "pools", switch.fates());
    switch.set(1, "CreateVolume", Fate::Unanswered(CUT_OFF));
    let vol = request("vol", 8, Placement::Selected);
    create(&world, &vol, &first_on(1)).unwrap_err();
    assert_eq!(world.having("vol"), [node(1)]);
    // Its disk is gone: the node is heard, and has no pool.
    world.without_pools(1);
    switch.set(1, "CreateVolume", Fate::Passed);
    switch.set(1, "FindVolume", Fate::Passed);
    let only = Requirement { requisite: vec![Segments::of_local_volume(&node(1))], preferred: Vec::new() };
    for requirement in [first_on(1), only] {
        let (code, said) = create(&world, &vol, &requirement).unwrap_err();
        assert!(kept_in_mind(code) && said.contains("node-b"), "{code:?}: {said}");
    }
    world.hear_all();
    assert_eq!(create(&world, &vol, &first_on(1)).unwrap().home, node(1));
}

#[test]
fn metrics_name_each_home_with_its_state() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let world = World::new(&scratch, "pools", Switch::default().fates());
    let states = || -> Vec<(String, HomeState)> {
        world.routers[0].directory().homes().into_iter().map(|home| (home.node, home.state)).collect()
    };
    let both = |second| vec![("node-a".to_owned(), HomeState::Reachable), ("node-b".to_owned(), second)];
    assert_eq!(states(), both(HomeState::Reachable));
    world.silence(1);
    assert_eq!(states(), both(HomeState::Unreachable));
    let since = world.routers[0].directory().homes()[1].heard;
    assert!(since > INTERVAL * 3 && since < Duration::from_secs(60), "{since:?}");
    world.hear_all();
    assert_eq!(states(), both(HomeState::Reachable));
    world.without_pools(1);
    assert_eq!(states(), both(HomeState::Unreachable));
    world.hear_all();
    let pool = world.proxies[1].local.health()[0].id;
    world.proxies[1].local.quarantine(pool).unwrap();
    let watch = Stopwatch::start();
    while states() != both(HomeState::Quarantined) {
        assert!(watch.elapsed() < Duration::from_secs(10), "{:?}", states());
        thread::sleep(INTERVAL / 10);
    }
}
