//! One caller: each answer is the one the specification gives, step by step.

use std::collections::HashMap;
use std::fmt::Write as _;

use tonic::Code;

use super::ask::{Heard, Places, Times};
use super::call::{CUTS, Call, Cut, Manner, NAMES, OnNode, Seen, Step, TARGETS, Volume};
use super::specification::{Specification, Verdict};
use super::tally::Tally;
use super::world::{Machine, World};

/// A case under way.
struct Sequence<'w> {
    world: &'w World<'w>,
    specification: Specification,
    /// When the snapshots there are were cut: never another time.
    times: HashMap<usize, (i64, i32)>,
}

/// Runs the steps, then takes everything away; what was wrong, with the steps that led there.
pub(super) fn run(machine: &Machine, steps: &[Step], tally: &mut Tally) -> Result<(), String> {
    let world = World::new(machine);
    let specification = Specification::new(world.ground());
    let mut sequence = Sequence { world: &world, specification, times: HashMap::new() };
    let empty = sequence.specification.clone();
    tally.cases += 1;
    machine.runtime.block_on(async {
        for (number, step) in steps.iter().enumerate() {
            tally.steps += 1;
            let wrong = |said| format!("step {number} of {}, {step:?}: {said}", steps.len());
            sequence.step(step, tally).await.map_err(wrong)?;
        }
        sequence.take_away(tally).await.map_err(|said| format!("taking all away: {said}"))?;
        world.leftovers()?;
        if sequence.specification.shown_volumes() != empty.shown_volumes() {
            return Err("the specification forgot something".to_owned());
        }
        Ok(())
    })
}

impl Sequence<'_> {
    async fn step(&mut self, step: &Step, tally: &mut Tally) -> Result<(), String> {
        match step {
            Step::Restart => {
                tally.restarts += 1;
                if let Some(life) = self.world.kill() {
                    self.world.ended(&life).await;
                }
                self.world.start();
                self.specification.restart();
                Ok(())
            }
            Step::Call(call, manner) => {
                let heard = self.ask(call, *manner).await;
                match &heard.seen {
                    Some(seen) => tally.heard(call.rpc(), seen),
                    None => tally.unheard += 1,
                }
                self.compare(call, *manner, &heard)
            }
        }
    }

    async fn ask(&self, call: &Call, manner: Manner) -> Heard {
        let life = self.world.life().unwrap();
        let heard = self.world.ask(&life, call, manner, &places(&self.specification)).await;
        if manner != Manner::Waits {
            // It goes on without its caller.
            self.world.ended(&life).await;
        }
        heard
    }

    fn compare(&mut self, call: &Call, manner: Manner, heard: &Heard) -> Result<(), String> {
        let verdict = self.specification.call(call);
        self.same_times(&heard.times)?;
        let Some(seen) = &heard.seen else { return Ok(()) };
        if manner == Manner::Hurries && matches!(seen, Err(refused) if refused.code == Code::DeadlineExceeded) {
            return Ok(());
        }
        agree(&verdict, seen)?;
        self.names_the_holder(call, seen)
    }

    /// A refusal for another node's sake names that node (spec, ControllerPublishVolume).
    fn names_the_holder(&self, call: &Call, seen: &Seen) -> Result<(), String> {
        let (Call::Grant { volume: Volume::Of(name), .. }, Err(refused)) = (call, seen) else { return Ok(()) };
        let holder = super::world::node(self.specification.pool_of(*name)).to_string();
        if refused.code == Code::FailedPrecondition && !refused.said.contains(&holder) {
            return Err(format!("the refusal does not name {holder}: {}", refused.said));
        }
        Ok(())
    }

    fn same_times(&mut self, times: &Times) -> Result<(), String> {
        let Specification { cuts, .. } = &self.specification;
        self.times.retain(|cut, _| cuts[*cut].is_some());
        for (cut, time) in times {
            let first = *self.times.entry(*cut).or_insert(*time);
            if first != *time {
                return Err(format!("snapshot {cut} was cut at {first:?}, and now at {time:?}"));
            }
        }
        Ok(())
    }

    /// What an orchestrator does at the end; all of it must succeed, and then nothing is there.
    async fn take_away(&mut self, tally: &mut Tally) -> Result<(), String> {
        for call in all_away() {
            let heard = self.ask(&call, Manner::Waits).await;
            let seen = heard.seen.as_ref().ok_or("no answer")?;
            tally.heard(call.rpc(), seen);
            self.compare(&call, Manner::Waits, &heard).map_err(|said| format!("{call:?}: {said}"))?;
            let other = matches!(call, Call::Unpublish { .. });
            if let (Err(refused), false) = (seen, other) {
                return Err(format!("{call:?}: {refused:?}"));
            }
        }
        Ok(())
    }
}

/// In which pools names are.
pub(super) fn places(specification: &Specification) -> Places {
    Places {
        volumes: std::array::from_fn(|name| specification.pool_of(name)),
        cuts: std::array::from_fn(|cut| specification.pool_of_cut(cut)),
    }
}

/// Calls that leave nothing, and those that show it. An unpublish of a target that another volume has is refused.
pub(super) fn all_away() -> Vec<Call> {
    let names = || (0..NAMES).map(Volume::Of);
    let mut calls = Vec::new();
    for volume in names() {
        calls.extend((0..TARGETS).map(|target| Call::Unpublish { volume, target }));
    }
    calls.extend(names().map(Call::Unstage));
    calls.extend(names().map(|volume| Call::Revoke { volume, node: None::<OnNode> }));
    calls.extend(names().map(Call::Delete));
    calls.extend((0..CUTS).map(|cut| Call::Uncut(Cut::Of(cut))));
    calls.push(Call::List { page: 0 });
    calls.push(Call::ListCuts { cut: None, from: None, page: 0 });
    calls.push(Call::Capacity { thin: None });
    calls
}

/// Whether the driver said what it must.
pub(super) fn agree(verdict: &Verdict, seen: &Seen) -> Result<(), String> {
    let good = match (verdict, seen) {
        (Verdict::Ok(expected), Ok(answer)) => expected.agrees(answer),
        (Verdict::Refused(codes), Err(refused)) => codes.contains(&refused.code),
        (Verdict::Ok(_), Err(_)) | (Verdict::Refused(_), Ok(_)) => false,
    };
    if good {
        return Ok(());
    }
    let mut said = String::new();
    let _ = match seen {
        Ok(answer) => write!(said, "answered {answer:?}"),
        Err(refused) => write!(said, "refused with {:?}: {}", refused.code, refused.said),
    };
    Err(format!("{said}; expected {verdict:?}"))
}
