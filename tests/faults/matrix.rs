//! Goes through every point of one operation.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tonic::Code;

use super::state::State;
use super::world::{Answer, Ended, Failed, World};
use holdfast::csi::{Rpc, RpcClass};
use holdfast::os::{Call, Stopwatch};
use holdfast::testing::scratch::PoolFs;
use holdfast::testing::{BEHIND, Disturbance, Moment};
use holdfast::testing::{Fault, Row, row};

/// So many points failed that the rest need not be tried.
const ENOUGH: usize = 12;

/// An operation, and what is needed to try it again and again.
#[derive(Clone, Copy)]
pub(super) struct Operation {
    pub(super) name: &'static str,
    pub(super) ground: PoolFs,
    /// Size of the pool's filesystem, MiB.
    pub(super) mib: u64,
    /// Done once.
    pub(super) setup: fn(&World),
    /// The operation.
    pub(super) run: fn(&World) -> Answer,
    /// Brings back what was before it, also when it ended in an error.
    pub(super) inverse: fn(&World) -> Answer,
    /// Whether `inverse` may follow an error at once: a caller gives up.
    pub(super) give_up: GiveUp,
    /// That the data is there, after the operation.
    pub(super) proof: fn(&World),
    /// Takes away what `setup` made.
    pub(super) teardown: fn(&World) -> Answer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GiveUp {
    Yes,
    No,
}

/// What the caller does after the blow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Asks again.
    Retry,
    /// The daemon is started anew, then asks again.
    Restart,
    /// Takes the thing away instead.
    Undo,
}

/// One point of the matrix.
struct Point<'a> {
    operation: &'a str,
    n: usize,
    call: &'a (Call, String),
    blow: Disturbance,
    then: Then,
}

impl fmt::Display for Point<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (call, target) = self.call;
        let fault = match self.blow {
            Disturbance::Once(_, which) | Disturbance::Storm(_, which) => row(*call).faults().get(which).copied(),
            Disturbance::Kill => None,
        };
        write!(
            f,
            "{}: call {} {call:?} {target}: {:?} {fault:?}, then {:?}",
            self.operation, self.n, self.blow, self.then
        )
    }
}

/// The points of one call.
fn points((call, target): &(Call, String), give_up: GiveUp) -> Vec<(Disturbance, Then)> {
    let row = row(*call);
    let faults = row.faults();
    let mut points = Vec::new();
    for which in 0..faults.len() {
        points.push((Disturbance::Once(Moment::Before, which), Then::Retry));
    }
    points.push((Disturbance::Kill, Then::Restart));
    // Final errors are the dangerous ones when undoing fails: each is tried.
    for (which, fault) in faults.iter().enumerate() {
        if *fault != Fault::Killed {
            points.push((Disturbance::Storm(Moment::Before, which), Then::Retry));
        }
    }
    let late = if let Row::Acts(_) = row { Moment::After } else { Moment::Before };
    if late == Moment::After {
        points.push((Disturbance::Once(late, 0), Then::Retry));
        points.push((Disturbance::Storm(late, usize::from(faults.first() == Some(&Fault::Killed))), Then::Retry));
        points.push((Disturbance::Once(late, 0), Then::Restart));
    }
    if give_up == GiveUp::Yes && late == Moment::After {
        points.push((Disturbance::Once(late, 0), Then::Undo));
    }
    // A copy undoes nothing: it only tries again.
    points.retain(|(blow, _)| !(matches!(blow, Disturbance::Storm(..)) && target.ends_with(BEHIND)));
    points
}

/// Walks the whole matrix of an operation, or one of its parts (`part` of `parts`).
pub(super) fn walk(operation: &Operation, part: usize, parts: usize) {
    let watch = Stopwatch::start();
    let mut ready = Ready::new(operation);
    let calls = ready.calls.clone();
    let mut tally = BTreeMap::<Call, usize>::new();
    let (mut late, mut failures) = (0, Vec::new());
    for (n, call) in calls.iter().enumerate().filter(|(n, _)| n % parts == part) {
        for (blow, then) in points(call, operation.give_up) {
            let point = Point { operation: operation.name, n, call, blow, then };
            match disturb(&ready, operation, &point) {
                Ok(Met::Yes) => *tally.entry(call.0).or_default() += 1,
                Ok(Met::No) => {
                    println!("not reached: {point}");
                    late += 1;
                }
                Err(failure) => {
                    println!("{failure}");
                    failures.push(failure);
                    assert!(failures.len() < ENOUGH, "{}", failures.join("\n"));
                    // What it left is of no use to the points after it.
                    drop(ready);
                    ready = Ready::new(operation);
                }
            }
        }
    }
    ready.world.insist(operation.teardown, &"teardown").unwrap();
    settled(&ready.world, &ready.blank, &"taken away").unwrap();
    let points: usize = tally.values().sum();
    println!(
        "{} (part {} of {parts}): {} calls, {points} points, {late} not reached, {:.1} s: {tally:?}",
        operation.name,
        part + 1,
        calls.len(),
        watch.elapsed().as_secs_f64()
    );
    assert!(failures.is_empty(), "{} of {points} points failed:\n{}", failures.len(), failures.join("\n"));
    assert!(points > 0, "nothing was disturbed");
    // What is not reached is an effect that failed by itself, such as growing ext4 without the right to.
    assert!(late * 20 <= points, "{late} of {points} points were not reached: the calls differ from run to run");
}

/// A world as the operation finds it, and what an undisturbed run does there.
struct Ready {
    world: World,
    blank: State,
    start: State,
    end: State,
    calls: Vec<(Call, String)>,
}

impl Ready {
    fn new(operation: &Operation) -> Self {
        let world = World::new(operation.ground, operation.mib);
        let blank = world.state();
        (operation.setup)(&world);
        let start = world.state();
        world.hand().watch();
        world.insist(operation.run, &"undisturbed").unwrap();
        world.hand().disarm();
        let calls = world.hand().made();
        let end = world.state();
        (operation.proof)(&world);
        world.insist(operation.inverse, &"undone").unwrap();
        settled(&world, &start, &"undone").unwrap();
        Self { world, blank, start, end, calls }
    }
}

enum Met {
    Yes,
    No,
}

fn disturb(ready: &Ready, operation: &Operation, point: &Point<'_>) -> Result<Met, String> {
    let Ready { world, start, end, .. } = ready;
    world.hand().arm(point.n, point.blow);
    let ended = world.attempt(operation.run);
    let met = if world.hand().disarm().is_some() { Met::Yes } else { Met::No };
    let at = match &ended {
        Ended::Answered(Err(failed)) => format!("{point}: {failed:?}"),
        Ended::Answered(Ok(())) => format!("{point}: OK"),
        Ended::Killed => point.to_string(),
    };
    let mut answered = matches!(ended, Ended::Answered(Ok(())));
    if let Ended::Answered(Err(failed)) = &ended {
        judge(failed, world, start, &at)?;
    }
    if let (Ended::Answered(Err(failed)), Disturbance::Once(Moment::Before, _)) = (&ended, point.blow) {
        takes_back(failed, world, start, &at)?;
    }
    if matches!(ended, Ended::Killed) || point.then == Then::Restart {
        world.restart();
        answered = false;
    }
    if point.then == Then::Undo {
        world.insist(operation.inverse, &at)?;
        settled(world, start, &format!("{at}: given up"))?;
        return Ok(met);
    }
    if !answered {
        world.insist(operation.run, &at)?;
    }
    settled(world, end, &at)?;
    (operation.proof)(world);
    world.insist(operation.inverse, &format!("{at}: undone"))?;
    settled(world, start, &format!("{at}: undone"))?;
    Ok(met)
}

/// Whether the code was right for what is left behind at this moment (docs/design.md section 10).
fn judge(failed: &Failed, world: &World, start: &State, at: &str) -> Result<(), String> {
    let (Some(rpc), Some(code)) = (failed.rpc, failed.code()) else { return Ok(()) };
    let making = matches!(rpc.class(), RpcClass::Create | RpcClass::Attach);
    if making && matches!(code, Code::Internal | Code::Unknown) {
        return Err(format!("{at}: {code:?} of a call that makes something"));
    }
    // What the CO does not look at again after such a code is to be as it was.
    let asks_again = matches!(code, Code::Aborted | Code::Unavailable | Code::DeadlineExceeded);
    let now = match rpc {
        _ if asks_again || !making => return Ok(()),
        // The filesystem's growth is never taken back: the next try goes on.
        Rpc::NodeExpandVolume => return Ok(()),
        Rpc::CreateVolume | Rpc::CreateSnapshot | Rpc::ControllerPublishVolume => world.state(),
        Rpc::ControllerExpandVolume => State { node: start.node.clone(), ..world.state() }.without_unwritten(),
        _ => State { node: world.state().node, ..start.clone() },
    };
    if now == *start { Ok(()) } else { Err(format!("{at}: final, and this is left:\n{}", now.against(start))) }
}

/// One failure, and nothing in the way of undoing: a stage or publish leaves the node as it was, whatever its code.
fn takes_back(failed: &Failed, world: &World, start: &State, at: &str) -> Result<(), String> {
    if !matches!(failed.rpc, Some(Rpc::NodeStageVolume | Rpc::NodePublishVolume)) {
        return Ok(());
    }
    let now = State { node: world.state().node, ..start.clone() };
    if now == *start { Ok(()) } else { Err(format!("{at}: not taken back:\n{}", now.against(start))) }
}

/// Waits a moment for what ends behind the answer (a copy's last bookkeeping).
fn settled(world: &World, expected: &State, at: &dyn fmt::Display) -> Result<(), String> {
    let watch = Stopwatch::start();
    loop {
        let now = world.state();
        if now == *expected {
            return Ok(());
        }
        if watch.elapsed() > Duration::from_secs(2) {
            return Err(format!("{at}:\n{}", now.against(expected)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
