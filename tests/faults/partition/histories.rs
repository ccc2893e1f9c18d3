//! Random histories. Each caller repeats a call with the same arguments, now to one controller and now to the other, until the
//! answer is final, and forgets at a final code. Whatever became of the calls on the way: what was acknowledged holds,
//! what was refused left nothing, and nothing exists that no caller knows of.
//!
//! In some of them homes fall silent and are heard again, while they work on: callers then insist on one node, because the
//! same name may be made elsewhere while a home is silent (docs/operations.md).
//!
//! A caller's own calls do not arrive after his next step: only what is repeated is overtaken by itself. gRPC runs
//! over connections, so a call is delivered within its connection's life or never.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tonic::Code;

use super::proxy::{Fate, drawn};
use super::world::{World, node};
use holdfast::csi::{Rpc, code_of};
use holdfast::home::{
    CreateSnapshot, CreateVolume, GrantRequest, Home, ReadOnly, Snapshot, SnapshotFilter, Source, Volume,
};
use holdfast::os::Deadline;
use holdfast::route::{Requirement, Router, Segments};
use holdfast::testing::scratch::{PoolFs, Scratch};
use holdfast::types::{
    AccessMode, Bytes, Capability, CapacityRange, Failure, ObjectUuid, Placement, VolumeMode, VolumeParameters,
};

/// What a caller wants next of his volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    OfAnotherSize,
    Huge,
    Grant(ReadOnly),
    GrantElsewhere,
    Revoke,
    Grow,
    Cut,
    Restore,
    Uncut,
    Delete,
}

/// A caller's plan.
#[derive(Clone, Debug)]
struct Script {
    /// The node of the volume; none: any.
    on: Option<usize>,
    /// How long he waits for an answer.
    patience: Duration,
    steps: Vec<Step>,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Create),
        1 => Just(Step::OfAnotherSize),
        1 => Just(Step::Huge),
        2 => Just(Step::Grant(ReadOnly::No)),
        1 => Just(Step::Grant(ReadOnly::Yes)),
        1 => Just(Step::GrantElsewhere),
        2 => Just(Step::Revoke),
        1 => Just(Step::Grow),
        1 => Just(Step::Cut),
        1 => Just(Step::Restore),
        1 => Just(Step::Uncut),
        3 => Just(Step::Delete),
    ]
}

/// Homes that fall silent, one after the other, and for how long each.
type Silences = Vec<(usize, Duration)>;

fn silences() -> impl Strategy<Value = Silences> {
    // Three intervals without a heartbeat are silence; shorter ones are none.
    let one = (0..2_usize, 100..500_u64).prop_map(|(home, time)| (home, Duration::from_millis(time)));
    prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(one, 1..4)]
}

fn script() -> impl Strategy<Value = Script> {
    let steps = prop::collection::vec(step(), 1..9);
    (prop::option::weighted(0.7, 0..2_usize), 60..300_u64, steps).prop_map(|(on, patience, steps)| Script {
        on,
        patience: Duration::from_millis(patience),
        steps,
    })
}

/// What a caller knows: what was acknowledged to him.
struct Caller<'a> {
    world: &'a World,
    script: &'a Script,
    name: String,
    volume: Option<Volume>,
    granted: Option<ReadOnly>,
    snapshot: Option<Snapshot>,
    restored: Option<Volume>,
}

type Outcome<T> = Result<T, String>;

impl<'a> Caller<'a> {
    fn new(world: &'a World, script: &'a Script, name: String) -> Self {
        Self { world, script, name, volume: None, granted: None, snapshot: None, restored: None }
    }

    /// Asks as a sidecar does: again at every code that is not final.
    fn ask<T, E: Into<Failure>>(&self, rpc: Rpc, call: impl Fn(&Router) -> Result<T, E>) -> Outcome<Result<T, Code>> {
        let (mut attempts, mut turn) = (0, 0);
        while attempts < 200 {
            let router = &self.world.routers[turn % 2];
            turn += 1;
            // Until a silence ends nobody has to answer.
            attempts += usize::from(self.world.is_all_heard());
            let answer = Deadline::scope(Deadline::after(self.script.patience), || call(router));
            let failure = match answer.map_err(Into::into) {
                Ok(done) => return Ok(Ok(done)),
                Err(failure) => failure,
            };
            match code_of(rpc, &failure) {
                Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {}
                code => return Ok(Err(code)),
            }
            thread::sleep(Duration::from_millis(2));
        }
        Err(format!("{}: {rpc:?} is never answered", self.name))
    }

    fn demand(&self, rpc: Rpc, answer: Result<(), Code>, expected: Result<(), Code>) -> Outcome<()> {
        if answer == expected {
            return Ok(());
        }
        Err(format!("{}: {rpc:?} answered {answer:?}, not {expected:?}", self.name))
    }

    fn request(&self, name: &str, size: Bytes) -> CreateVolume {
        let placement = if self.script.on.is_none() { Placement::Any } else { Placement::Selected };
        CreateVolume {
            name: name.to_owned(),
            range: CapacityRange { required: Some(size), limit: None },
            capabilities: vec![Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeWriter }],
            parameters: VolumeParameters { placement, ..Default::default() },
            source: None,
        }
    }

    fn requirement(&self) -> Requirement {
        let all = || (0..2).map(|index| Segments::of_local_volume(&node(index))).collect::<Vec<_>>();
        match self.script.on {
            Some(index) => Requirement { requisite: all(), preferred: vec![Segments::of_local_volume(&node(index))] },
            None => Requirement { requisite: all(), preferred: all() },
        }
    }

    fn create(&self, request: &CreateVolume) -> Outcome<Result<Volume, Code>> {
        let requirement = self.requirement();
        let ask =
            |router: &Router| router.create_volume(request, &requirement).map(holdfast::home::Created::into_inner);
        self.ask(Rpc::CreateVolume, ask)
    }

    /// One step, to its final answer.
    fn step(&mut self, step: Step) -> Outcome<()> {
        self.world.settle(|about| self.is_mine(about));
        let size = self.volume.as_ref().map_or(Bytes::mib(2), |volume| volume.size);
        match step {
            Step::Create => {
                // The first request's arguments: growth since is no difference.
                let made = self.create(&self.request(&self.name, Bytes::mib(2)))?;
                self.demand(Rpc::CreateVolume, made.as_ref().map(drop).map_err(|code| *code), Ok(()))?;
                let made = made.unwrap();
                if self.volume.as_ref().is_some_and(|known| known.id != made.id || known.size != made.size) {
                    return Err(format!("{}: another volume: {made:?}, not {:?}", self.name, self.volume));
                }
                self.volume = Some(made);
            }
            Step::OfAnotherSize if self.volume.is_some() => {
                let made = self.create(&self.request(&self.name, Bytes::mib(200)))?;
                self.demand(Rpc::CreateVolume, made.map(drop), Err(Code::AlreadyExists))?;
            }
            Step::Huge => {
                let name = format!("{}-huge", self.name);
                let made = self.create(&self.request(&name, Bytes::mib(1 << 20)))?;
                self.demand(Rpc::CreateVolume, made.map(drop), Err(Code::ResourceExhausted))?;
            }
            Step::Restore => {
                if let Some(snapshot) = self.snapshot.as_ref() {
                    let source = Some(Source::Snapshot(snapshot.id));
                    let size = self.restored.as_ref().map_or(snapshot.size, |restored| restored.size);
                    let request = CreateVolume { source, ..self.request(&format!("{}-restored", self.name), size) };
                    let made = self.create(&request)?;
                    let expected = if self.restored.as_ref().is_some_and(|known| known.source != source) {
                        Err(Code::AlreadyExists)
                    } else {
                        Ok(())
                    };
                    self.demand(Rpc::CreateVolume, made.as_ref().map(drop).map_err(|code| *code), expected)?;
                    self.restored = made.ok().or(self.restored.take());
                }
            }
            Step::Grant(read_only) => {
                if let Some(volume) = self.volume.as_ref() {
                    let expected = match self.granted {
                        Some(held) if held != read_only => Err(Code::AlreadyExists),
                        _ => Ok(()),
                    };
                    let answer = self.grant(volume, volume.home.clone(), read_only)?;
                    self.demand(Rpc::ControllerPublishVolume, answer, expected)?;
                    self.granted = self.granted.or(Some(read_only));
                }
            }
            Step::GrantElsewhere => {
                if let Some(volume) = self.volume.as_ref() {
                    let other = if volume.home == node(0) { node(1) } else { node(0) };
                    let answer = self.grant(volume, other, ReadOnly::No)?;
                    self.demand(Rpc::ControllerPublishVolume, answer, Err(Code::FailedPrecondition))?;
                }
            }
            Step::Revoke => {
                if let Some(volume) = self.volume.as_ref() {
                    let ask = |router: &Router| router.revoke(&volume.id, Some(&volume.home)).map(drop);
                    self.demand(
                        Rpc::ControllerUnpublishVolume,
                        self.ask(Rpc::ControllerUnpublishVolume, ask)?,
                        Ok(()),
                    )?;
                    self.granted = None;
                }
            }
            Step::Grow => {
                if let Some(volume) = self.volume.as_mut() {
                    let wanted = Bytes::new(size.get() + (1 << 20));
                    let range = CapacityRange { required: Some(wanted), limit: None };
                    let id = volume.id;
                    let grown = self.ask(Rpc::ControllerExpandVolume, |router| router.expand(&id, &range))?;
                    self.demand(Rpc::ControllerExpandVolume, grown.as_ref().map(drop).map_err(|code| *code), Ok(()))?;
                    let grown = grown.unwrap().size;
                    if grown != wanted {
                        return Err(format!("{}: grown to {grown}, not {wanted}", self.name));
                    }
                    self.volume.as_mut().unwrap().size = grown;
                }
            }
            Step::Cut => {
                if let (Some(volume), None) = (self.volume.as_ref(), self.snapshot.as_ref()) {
                    let request = CreateSnapshot { name: format!("{}-cut", self.name), source: volume.id };
                    let ask =
                        |router: &Router| router.create_snapshot(&request).map(holdfast::home::Created::into_inner);
                    let cut = self.ask(Rpc::CreateSnapshot, ask)?;
                    self.demand(Rpc::CreateSnapshot, cut.as_ref().map(drop).map_err(|code| *code), Ok(()))?;
                    self.snapshot = cut.ok();
                }
            }
            Step::Uncut => {
                if let Some(snapshot) = self.snapshot.as_ref() {
                    let answer = self.ask(Rpc::DeleteSnapshot, |router| router.delete_snapshot(&snapshot.id))?;
                    self.demand(Rpc::DeleteSnapshot, answer.map(drop), Ok(()))?;
                    self.snapshot = None;
                }
            }
            Step::Delete => {
                if let Some(volume) = self.volume.as_ref() {
                    let expected = if self.granted.is_some() { Err(Code::FailedPrecondition) } else { Ok(()) };
                    let answer = self.ask(Rpc::DeleteVolume, |router| router.delete_volume(&volume.id))?;
                    self.demand(Rpc::DeleteVolume, answer.map(drop), expected)?;
                    if expected.is_ok() {
                        self.volume = None;
                    }
                }
            }
            Step::OfAnotherSize => {}
        }
        self.world.settle(|about| self.is_mine(about));
        self.holds()
    }

    fn grant(&self, volume: &Volume, to: holdfast::types::NodeId, read_only: ReadOnly) -> Outcome<Result<(), Code>> {
        let request =
            GrantRequest { node: to, mode: VolumeMode::Block.into(), access: AccessMode::SingleNodeWriter, read_only };
        self.ask(Rpc::ControllerPublishVolume, |router| router.grant(&volume.id, &request).map(drop))
    }

    /// Whether a call's first field is about something of this caller.
    fn is_mine(&self, about: &str) -> bool {
        let names = ["", "-huge", "-restored", "-cut"].map(|what| format!("{}{what}", self.name));
        let has = |uuid: ObjectUuid| about.ends_with(&uuid.to_string());
        names.iter().any(|name| about == name || has(ObjectUuid::of_volume(name)) || has(ObjectUuid::of_snapshot(name)))
    }

    /// What was acknowledged is there, once; what was refused or deleted is not.
    fn holds(&self) -> Outcome<()> {
        let known = [
            (self.name.clone(), self.volume.as_ref()),
            (format!("{}-huge", self.name), None),
            (format!("{}-restored", self.name), self.restored.as_ref()),
        ];
        for (name, volume) in known {
            let on = self.world.having(&name);
            let expected: Vec<_> = volume.iter().map(|volume| volume.home.clone()).collect();
            if on != expected {
                return Err(format!("volume {name} is on {on:?}, not {expected:?}"));
            }
            let Some(volume) = volume else { continue };
            let home = self.world.proxies.iter().find(|proxy| *proxy.local.node() == volume.home).unwrap();
            let real = home.local.volume(&volume.id).map_err(|error| error.chain())?;
            let granted = name == self.name && self.granted.is_some();
            let published: Vec<_> = granted.then(|| volume.home.clone()).into_iter().collect();
            if real.size != volume.size || real.published != published {
                return Err(format!("volume {name} is {real:?}; acknowledged: {volume:?}, to {published:?}"));
            }
        }
        Ok(())
    }

    /// The way back of everything.
    fn leave(&mut self) -> Outcome<()> {
        for step in [Step::Revoke, Step::Uncut, Step::Delete] {
            self.step(step)?;
        }
        if let Some(restored) = self.restored.take() {
            let answer = self.ask(Rpc::DeleteVolume, |router| router.delete_volume(&restored.id))?;
            self.demand(Rpc::DeleteVolume, answer.map(drop), Ok(()))?;
        }
        Ok(())
    }
}

/// All volumes and snapshots there are.
fn everything(world: &World) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for proxy in world.proxies.iter() {
        let volumes = proxy.local.volumes(None, 0).unwrap().entries;
        let snapshots = proxy.local.snapshots(&SnapshotFilter::default(), None, 0).unwrap().entries;
        all.extend(volumes.into_iter().map(|volume| volume.name));
        all.extend(snapshots.into_iter().map(|snapshot| snapshot.name));
    }
    all
}

/// Makes homes silent in turn until the callers are done; all are heard afterwards.
fn fall_silent(world: &World, silences: &Silences, done: &AtomicBool) {
    for (home, time) in silences {
        if done.load(Ordering::SeqCst) {
            break;
        }
        world.silent.store(*home, Ordering::SeqCst);
        thread::sleep(*time);
        world.hear_all();
        thread::sleep(Duration::from_millis(50));
    }
}

fn history(world: &World, scripts: &[Script], silences: &Silences, number: &str) -> Outcome<()> {
    let mut callers: Vec<_> = scripts
        .iter()
        .enumerate()
        .map(|(index, script)| Caller::new(world, script, format!("h{number}-{index}")))
        .collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let run = |caller: &mut Caller<'_>| {
            let script = caller.script;
            script.steps.iter().try_for_each(|step| caller.step(*step))
        };
        let done = &done;
        scope.spawn(move || fall_silent(world, silences, done));
        let running: Vec<_> = callers.iter_mut().map(|caller| scope.spawn(move || run(caller))).collect();
        let ended: Vec<_> =
            running.into_iter().map(|one| one.join().unwrap_or_else(|_| Err("a caller panicked".to_owned()))).collect();
        done.store(true, Ordering::SeqCst);
        ended.into_iter().collect::<Outcome<()>>()
    })?;
    world.settle(|_| true);
    let mut known = BTreeSet::new();
    for caller in &callers {
        caller.holds()?;
        known.extend(caller.volume.iter().chain(&caller.restored).map(|volume| volume.name.clone()));
        known.extend(caller.snapshot.iter().map(|snapshot| snapshot.name.clone()));
    }
    let there = everything(world);
    if there != known {
        return Err(format!("there is {there:?}, and the callers know of {known:?}"));
    }
    callers.iter_mut().try_for_each(Caller::leave)?;
    world.settle(|_| true);
    let left = everything(world);
    if !left.is_empty() {
        return Err(format!("all was deleted, and {left:?} is left"));
    }
    world.wrong.lock().unwrap().pop().map_or(Ok(()), Err)
}

/// So many at once: most of their time is waiting.
const LANES: u32 = 4;

/// `HOLDFAST_HISTORIES` is how many.
#[test]
fn whatever_becomes_of_calls_on_the_way_what_was_answered_holds() {
    let all = std::env::var("HOLDFAST_HISTORIES").map_or(150, |count| count.parse().unwrap());
    let scratch = Scratch::new(PoolFs::Xfs);
    let tally = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        let running: Vec<_> = (0..LANES)
            .map(|lane| {
                let cases = all / LANES + u32::from(lane < all % LANES);
                let (scratch, tally) = (&scratch, &tally);
                scope.spawn(move || histories(scratch, lane, cases, tally))
            })
            .collect();
        for lane in running {
            lane.join().unwrap();
        }
    });
    println!("{all} histories: {:?}", tally.lock().unwrap());
}

/// One after another, in one world.
fn histories(scratch: &Scratch, lane: u32, cases: u32, tally: &Mutex<BTreeMap<&'static str, usize>>) {
    let (seed, number, made) = (Arc::new(AtomicU64::new(0)), AtomicU64::new(0), AtomicU64::new(0));
    let fates = {
        let seed = Arc::clone(&seed);
        move |home: usize, rpc: &str, about: &str, nth: u32| -> Fate {
            drawn(seed.load(Ordering::SeqCst))(home, rpc, about, nth)
        }
    };
    let make = |number: u64| World::new(scratch, &format!("pools-{lane}-{number}"), fates.clone());
    let world = Mutex::new(make(0));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 100, ..Config::default() };
    let strategy = (any::<u64>(), prop::collection::vec(script(), 1..4), silences());
    // The same histories each time; more of them are others.
    let mut runner = match std::env::var_os("HOLDFAST_HISTORIES") {
        Some(_) => TestRunner::new(config),
        None => {
            let seed = [u8::try_from(lane).unwrap(); 32];
            TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
        }
    };
    let ran = runner.run(&strategy, |(dice, mut scripts, silences)| {
        if !silences.is_empty() {
            scripts.iter_mut().for_each(|script| script.on = script.on.or(Some(0)));
            *tally.lock().unwrap().entry("silences").or_default() += silences.len();
        }
        seed.store(dice, Ordering::SeqCst);
        let number = number.fetch_add(1, Ordering::SeqCst) + 1;
        let mut world = world.lock().unwrap();
        let ended = history(&world, &scripts, &silences, &format!("{lane}-{number}"));
        for proxy in world.proxies.iter() {
            for (fate, count) in std::mem::take(&mut *proxy.net.tally.lock().unwrap()) {
                *tally.lock().unwrap().entry(fate).or_default() += count;
            }
        }
        ended.map_err(|wrong| {
            // What is left of a history that failed is in nobody's way.
            *world = make(number);
            let before = made.swap(number, Ordering::SeqCst);
            std::fs::remove_dir_all(scratch.root().join(format!("pools-{lane}-{before}"))).unwrap();
            TestCaseError::fail(wrong)
        })
    });
    if let Err(failed) = ran {
        panic!("{failed}");
    }
}
