//! Several callers at once, over the same volumes: what each asked and heard is written down, and `order` looks for one
//! order of it all that the specification allows.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures_util::future::join_all;
use tokio::sync::Notify;
use tonic::Code;

use super::ask::Places;
use super::call::{Answer, CUTS, Call, Cut, Manner, NAMES, Refused, Seen, Step, Volume};
use super::order::{self, Event, What};
use super::sequence::all_away;
use super::specification::Specification;
use super::tally::Tally;
use super::world::{Life, Machine, World};

/// How often a sidecar asks again before the test gives up on it.
const TRIES: usize = 10;

/// What all callers share.
struct Stage<'w> {
    world: &'w World<'w>,
    clock: Cell<u64>,
    events: RefCell<Vec<Event>>,
    /// Rings when a new life has begun.
    begun: Notify,
    tally: RefCell<&'w mut Tally>,
}

/// Runs all callers at once, asks again what got no answer, looks at everything and takes it away.
pub(super) fn run(machine: &Machine, callers: &[Vec<Step>], tally: &mut Tally) -> Result<(), String> {
    let world = World::new(machine);
    tally.cases += 1;
    tally.steps += callers.iter().map(Vec::len).sum::<usize>();
    let stage = Stage {
        world: &world,
        clock: Cell::default(),
        events: RefCell::default(),
        begun: Notify::new(),
        tally: RefCell::new(tally),
    };
    machine.runtime.block_on(async {
        let unanswered = join_all(callers.iter().enumerate().map(|(caller, steps)| stage.caller(caller, steps))).await;
        world.ended(&world.life().unwrap()).await;
        let wrong = stage.settle(callers.len(), unanswered.into_iter().flatten().collect()).await;
        let events = stage.events.into_inner();
        wrong.map_err(|said| format!("{said}\n{}", order::shown(&events)))?;
        order::check(&Specification::new(world.ground()), &events)?;
        world.leftovers()
    })
}

impl Stage<'_> {
    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// One caller's steps; the last call of it that got no final answer.
    async fn caller(&self, caller: usize, steps: &[Step]) -> Option<Call> {
        let mut unanswered = None;
        for step in steps {
            match step {
                Step::Restart => self.restart(caller).await,
                Step::Call(call, manner) => {
                    let seen = self.call(caller, call, *manner).await;
                    let again = seen.as_ref().is_none_or(|seen| asks_again(call, seen));
                    unanswered = again.then(|| call.clone());
                }
            }
        }
        unanswered
    }

    async fn life(&self) -> Rc<Life> {
        loop {
            let begun = self.begun.notified();
            if let Some(life) = self.world.life() {
                return life;
            }
            begun.await;
        }
    }

    async fn restart(&self, caller: usize) {
        let Some(life) = self.world.kill() else { return };
        let from = self.tick();
        self.world.ended(&life).await;
        // The others hear how their calls ended; with the last of them the pool is nobody's.
        while Rc::strong_count(&life) > 1 {
            tokio::task::yield_now().await;
        }
        drop(life);
        self.world.start();
        self.tally.borrow_mut().restarts += 1;
        self.events.borrow_mut().push(Event { caller, from, to: Some(self.tick()), what: What::Restart });
        self.begun.notify_waiters();
    }

    async fn call(&self, caller: usize, call: &Call, manner: Manner) -> Option<Seen> {
        let life = self.life().await;
        let from = self.tick();
        let heard = self.world.ask(&life, call, manner, &Places::default()).await;
        let to = self.tick();
        match &heard.seen {
            Some(seen) => self.tally.borrow_mut().heard(call.rpc(), seen),
            None => self.tally.borrow_mut().unheard += 1,
        }
        // What a dying process said last, or a deadline, says nothing of what was done, or goes on.
        let silent = |seen: &Seen| match seen {
            Err(Refused { code: Code::DeadlineExceeded, .. }) => manner == Manner::Hurries,
            // It goes on behind the caller's back.
            Err(Refused { code: Code::Aborted, said }) if said.contains("is being copied") => true,
            Err(Refused { code: Code::Unavailable | Code::Aborted | Code::Internal, .. }) => life.is_dead(),
            Err(_) => false,
            Ok(Answer::Cut(shown)) => !shown.ready,
            Ok(_) => false,
        };
        let seen = heard.seen.clone().filter(|seen| !silent(seen));
        let to = seen.is_some().then_some(to);
        self.events.borrow_mut().push(Event { caller, from, to, what: What::Call(call.clone(), seen) });
        heard.seen
    }

    /// Nothing goes on any more: what was not answered is asked again, then all is looked at and taken away.
    async fn settle(&self, caller: usize, unanswered: Vec<Call>) -> Result<(), String> {
        let mut calls = unanswered;
        calls.extend((0..NAMES).map(|name| Call::Get(Volume::Of(name))));
        calls.extend((0..CUTS).map(|cut| Call::GetCut(Cut::Of(cut))));
        calls.push(Call::List { page: 2 });
        calls.push(Call::ListCuts { cut: None, from: None, page: 2 });
        for call in calls {
            let _seen = self.insist(caller, &call).await?;
        }
        for call in all_away() {
            let seen = self.insist(caller, &call).await?;
            if let (Err(refused), false) = (seen, matches!(call, Call::Unpublish { .. })) {
                return Err(format!("taking all away: {call:?}: {refused:?}"));
            }
        }
        Ok(())
    }

    /// The same request until it is answered.
    async fn insist(&self, caller: usize, call: &Call) -> Result<Seen, String> {
        // A format that was cut off is finished by a stage only, so what copies it waits for that.
        let waits = matches!(call, Call::Create(_) | Call::Cut { .. });
        for attempt in 1.. {
            let seen = self.call(caller, call, Manner::Waits).await.ok_or("no answer")?;
            match &seen {
                seen if !asks_again(call, seen) => {}
                Err(Refused { code: Code::Aborted, .. }) if waits && attempt == TRIES => {}
                seen if attempt == TRIES => return Err(format!("{call:?}: asked {TRIES} times, and still {seen:?}")),
                _ => {
                    tokio::time::sleep(std::time::Duration::from_millis(1 << attempt)).await;
                    continue;
                }
            }
            return Ok(seen);
        }
        unreachable!("the loop ends by its tries")
    }
}

/// Whether an answer makes the caller ask again.
fn asks_again(call: &Call, seen: &Seen) -> bool {
    match seen {
        Ok(Answer::Cut(shown)) => !shown.ready,
        Ok(_) => false,
        Err(refused) => {
            let waiting = matches!(refused.code, Code::Aborted | Code::Unavailable | Code::DeadlineExceeded);
            waiting && !call.is_hopeless()
        }
    }
}
