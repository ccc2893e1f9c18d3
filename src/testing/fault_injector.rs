//! Makes chosen system calls fail, hang or end the process, and records all of them in order.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::panic;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};

use super::fault_table::{Fault, Row, row};
use crate::home::LocalHome;
use crate::os::{Call, Interceptor};

/// Whether a call fails without its effect or with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Without its effect.
    Before,
    /// With its effect.
    After,
}

/// What happens at the chosen call. The number is that of the fault in the call's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// It fails.
    Once(Moment, usize),
    /// It fails, and every later call with EIO, until disarmed: what is done to undo it fails too.
    Storm(Moment, usize),
    /// The process is gone from here on: nothing of it makes another call.
    Kill,
}

/// The suffix of the target of a call that a copy's thread made.
pub const BEHIND: &str = " (in the copy's thread)";

/// Unwinds the threads of a process that was killed.
struct Gone;

/// The injector of one process of the driver; the processes that follow it share what is counted and armed. Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct FaultInjector {
    plan: Arc<Plan>,
    life: u64,
}

#[derive(Default)]
struct Plan {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    made: Vec<(Call, String)>,
    /// The call each thread is in.
    within: HashMap<ThreadId, usize>,
    armed: Option<(usize, Disturbance)>,
    struck: Option<(Call, String)>,
    /// Lives before this one are over.
    alive_from: u64,
    /// The call that will not come back: its kind, and what its target contains.
    to_hold: Option<(Call, String)>,
    /// One stands there now.
    holding: bool,
    /// What a kill ends besides.
    on_kill: Option<Weak<LocalHome>>,
    /// There is no room for a new file, nor for more of the reserve.
    full: bool,
    /// Tells a stand-in for a tool when to be killed.
    tool_mode: Option<PathBuf>,
}

impl FaultInjector {
    /// The injector of the next process; threads of the processes before it end at their next call.
    pub fn next(&self) -> Self {
        let mut state = self.state();
        state.alive_from += 1;
        Self { plan: Arc::clone(&self.plan), life: state.alive_from }
    }

    /// The file in which stand-ins for tools read when to be killed.
    pub fn tools_at(&self, mode: PathBuf) {
        self.state().tool_mode = Some(mode);
    }

    /// A kill ends this home's copies too.
    pub fn kills(&self, home: &Arc<LocalHome>) {
        self.state().on_kill = Some(Arc::downgrade(home));
    }

    /// Forgets the calls made so far; the `n`-th call from here on is disturbed.
    pub fn arm(&self, n: usize, blow: Disturbance) {
        let mut state = self.state();
        state.made.clear();
        state.within.clear();
        state.struck = None;
        state.armed = Some((n, blow));
    }

    /// Forgets the calls made so far, and only counts.
    pub fn watch(&self) {
        self.arm(usize::MAX, Disturbance::Kill);
    }

    /// No further call fails; the one that did, if one did.
    pub fn disarm(&self) -> Option<(Call, String)> {
        let mut state = self.state();
        state.armed = None;
        if let Some(mode) = &state.tool_mode {
            let _ = fs::remove_file(mode);
        }
        state.struck.take()
    }

    /// The calls since [`FaultInjector::arm`].
    pub fn made(&self) -> Vec<(Call, String)> {
        self.state().made.clone()
    }

    /// Whether this process was killed.
    pub fn is_dead(&self) -> bool {
        self.life < self.state().alive_from
    }

    /// The pool is full: no temporary file of a record can be created, and the reserve cannot be filled.
    pub fn fill_pool(&self) {
        self.state().full = true;
    }

    /// The pool has free space again.
    pub fn make_room(&self) {
        self.state().full = false;
    }

    /// The next call of this kind on such a target does not come back until [`FaultInjector::release`].
    pub fn hold(&self, call: Call, target: &str) {
        self.state().to_hold = Some((call, target.to_owned()));
    }

    /// Waits until a call is held.
    pub fn wait_for_held(&self) {
        let mut state = self.state();
        while !state.holding {
            state = self.plan.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The held call continues.
    pub fn release(&self) {
        self.state().holding = false;
        self.plan.moved.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.plan.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the call fails now.
    fn verdict(state: &mut State, call: Call, target: &str, index: usize, moment: Moment) -> io::Result<()> {
        let Some((n, blow)) = state.armed else { return Ok(()) };
        let (when, which) = match blow {
            Disturbance::Storm(when, _) if index > n || (index == n && state.struck.is_some() && moment != when) => {
                return if state.struck.is_some() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) };
            }
            _ if index != n => return Ok(()),
            Disturbance::Once(when, which) | Disturbance::Storm(when, which) => (when, which),
            Disturbance::Kill => return Ok(()),
        };
        let faults = row(call).faults();
        let fault = faults.get(which % faults.len().max(1)).copied().expect("a row with faults");
        if fault == Fault::Killed {
            if moment == Moment::Before {
                state.struck = Some((call, target.to_owned()));
                let mode = state.tool_mode.as_ref().expect("stand-ins for tools");
                fs::write(mode, if when == Moment::Before { "before" } else { "after" })?;
            }
            return Ok(());
        }
        if moment != when {
            return Ok(());
        }
        state.struck = Some((call, target.to_owned()));
        Err(match fault {
            Fault::Errno(errno) => io::Error::from_raw_os_error(errno),
            Fault::TimedOut | Fault::Killed => io::Error::new(io::ErrorKind::TimedOut, "injected: killed at its limit"),
        })
    }
}

impl Interceptor for FaultInjector {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        let mut state = self.state();
        if let Row::Unused(why) = row(call) {
            drop(state);
            panic!("{call:?} on {target} has no faults in the table: {why}");
        }
        let index = state.made.len();
        if state.armed == Some((index, Disturbance::Kill)) && self.life == state.alive_from {
            state.struck = Some((call, target.to_owned()));
            state.alive_from += 1;
        }
        if self.life < state.alive_from {
            let home = state.on_kill.take();
            drop(state);
            if let Some(home) = home.and_then(|home| home.upgrade()) {
                home.abandon();
            }
            panic::resume_unwind(Box::new(Gone));
        }
        let takes_room = match call {
            Call::WriteFile => target.ends_with(".json.tmp"),
            Call::Allocate => target.ends_with("/reserve"),
            _ => false,
        };
        if state.full && takes_room {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let behind = if thread::current().name() == Some("copy") { BEHIND } else { "" };
        state.made.push((call, format!("{target}{behind}")));
        state.within.insert(thread::current().id(), index);
        if state.to_hold.as_ref().is_some_and(|(kind, part)| *kind == call && target.contains(part.as_str())) {
            state.to_hold = None;
            state.holding = true;
            self.plan.moved.notify_all();
            while state.holding {
                state = self.plan.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        Self::verdict(&mut state, call, target, index, Moment::Before)
    }

    fn after(&self, call: Call, target: &str) -> io::Result<()> {
        let mut state = self.state();
        if let (Call::Exec, Some(mode)) = (call, &state.tool_mode) {
            let _ = fs::remove_file(mode);
        }
        let index = state.within.get(&thread::current().id()).copied().unwrap_or(usize::MAX - 1);
        Self::verdict(&mut state, call, target, index, Moment::After)
    }
}
