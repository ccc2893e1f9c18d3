//! Whether a history of several callers has an order that the specification allows and that is consistent with real
//! time: a call that was answered before another was made comes before it (linearizability; the search is that of Wing
//! and Gong, with states seen before left out, after Lowe).
//!
//! - ABORTED is allowed while another call on the same thing is under way, and has no effect but what the call had
//!   done until then (`Specification::unfinished`).
//! - A call nobody heard the answer of, because its caller went away or the process was killed, may have had its effect,
//!   a part of it, or none, at any time since.
//! - A volume that is still copied has its name and is no volume yet: another create may be told ALREADY_EXISTS, any other
//!   call that it does not exist.
//! - A create that waits for a copy is its caller's retry, done by the driver: what it made first may be changed, or
//!   deleted, before it looks again and answers.
//! - A list is not one moment: each thing it shows, or does not, was so at some moment of it.
//! - Room is reserved before a thing is there, and given back after it is gone: never too little, but perhaps too much
//!   while others make or delete.

use std::collections::HashSet;
use std::fmt::Write as _;

use tonic::Code;

use super::call::{Answer, CUTS, Call, Cut, From, NAMES, Refused, Seen, Shown, ShownCut, Volume};
use super::specification::{Specification, Verdict};

/// What a caller did, and between which ticks of the common clock.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) caller: usize,
    pub(super) from: u64,
    /// None when nobody heard the end of it.
    pub(super) to: Option<u64>,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// A call and its answer, if it was heard.
    Call(Call, Option<Seen>),
    Restart,
}

/// A moment that has to be put in order.
struct Moment {
    from: u64,
    to: u64,
    kind: Kind,
    /// Whether another call that may change the same thing overlaps.
    disturbed: bool,
    /// Whether one overlaps that may change the room.
    crowded: bool,
    /// Whether one overlaps that may copy into the volume this one wants to create.
    claimed: bool,
}

enum Kind {
    Call(Call, Seen),
    /// Its effect may or may not have come.
    Unheard(Call),
    /// What a create did before it waited.
    Attempt(Call),
    Restart,
    SeesVolume(usize, Option<Shown>),
    SeesCut(usize, Call, Option<ShownCut>),
}

/// Looks for an order.
pub(super) fn check(start: &Specification, events: &[Event]) -> Result<(), String> {
    let moments = moments(events, start.ground.copying);
    let mut search = Search { moments: &moments, seen: HashSet::new(), best: (0, String::new()) };
    if search.from(start, vec![false; moments.len()]) {
        return Ok(());
    }
    Err(format!(
        "no order of these answers is allowed; the best one stops at:\n{}\nThe history:\n{}",
        search.best.1,
        shown(events)
    ))
}

/// A history for people.
pub(super) fn shown(events: &[Event]) -> String {
    let mut sorted: Vec<_> = events.iter().collect();
    sorted.sort_by_key(|event| event.from);
    let mut text = String::new();
    for Event { caller, from, to, what } in sorted {
        let to = to.map_or_else(|| "?".to_owned(), |to| to.to_string());
        let _ = match what {
            What::Restart => writeln!(text, "  {from:>3}-{to:<3} caller {caller}: restart"),
            What::Call(call, None) => writeln!(text, "  {from:>3}-{to:<3} caller {caller}: {call:?} -> not heard"),
            What::Call(call, Some(Ok(answer))) => {
                writeln!(text, "  {from:>3}-{to:<3} caller {caller}: {call:?} -> {answer:?}")
            }
            What::Call(call, Some(Err(Refused { code, said }))) => {
                writeln!(text, "  {from:>3}-{to:<3} caller {caller}: {call:?} -> {code:?} {said}")
            }
        };
    }
    text
}

fn moments(events: &[Event], copying: bool) -> Vec<Moment> {
    let mut moments = Vec::new();
    for (index, event) in events.iter().enumerate() {
        let (from, to) = (event.from, event.to.unwrap_or(u64::MAX));
        let others = || {
            let other = events.iter().enumerate().filter(move |(number, _)| *number != index).map(|(_, event)| event);
            other.filter(move |other| other.from < to && from < other.to.unwrap_or(u64::MAX)).filter_map(|other| {
                match &other.what {
                    What::Call(call, _) => Some(call),
                    What::Restart => None,
                }
            })
        };
        let mut add = |kind, call: Option<&Call>| {
            let disturbed = call.is_some_and(|call| others().any(|other| call.meets(other)));
            let crowded = others().any(Call::changes_room);
            let claimed = copying && call.is_some_and(|call| others().any(|other| other.copies_into_what_makes(call)));
            moments.push(Moment { from, to, kind, disturbed, crowded, claimed });
        };
        match &event.what {
            What::Restart => add(Kind::Restart, None),
            What::Call(call, None) => {
                if call.changes() {
                    add(Kind::Unheard(call.clone()), Some(call));
                }
            }
            What::Call(Call::List { .. }, Some(Ok(Answer::Volumes(volumes)))) => {
                for name in 0..NAMES {
                    let seen = volumes.iter().find(|shown| shown.name == name).cloned();
                    add(Kind::SeesVolume(name, seen), None);
                }
            }
            What::Call(call @ Call::ListCuts { .. }, Some(Ok(Answer::Cuts(cuts)))) => {
                for cut in 0..CUTS {
                    // One that is still copied is there already.
                    let seen = cuts.iter().find(|shown| shown.cut == cut);
                    let seen = seen.map(|shown| ShownCut { ready: true, ..shown.clone() });
                    add(Kind::SeesCut(cut, call.clone(), seen), None);
                }
            }
            What::Call(call, Some(seen)) => {
                if copying && call.copies() && others().any(|other| other.changes() && call.meets(other)) {
                    add(Kind::Attempt(call.clone()), Some(call));
                }
                add(Kind::Call(call.clone(), seen.clone()), Some(call));
            }
        }
    }
    moments
}

struct Search<'m> {
    moments: &'m [Moment],
    seen: HashSet<(Vec<bool>, Specification)>,
    /// How many moments the best order has, and what came next.
    best: (usize, String),
}

impl Search<'_> {
    fn from(&mut self, state: &Specification, mut done: Vec<bool>) -> bool {
        // What fits now and never changes anything can only be in the way of others later.
        loop {
            let fits = self.next(&done).find(|index| {
                let moment = &self.moments[*index];
                moment.only_looks() && !moment.outcomes(state).is_empty()
            });
            let Some(index) = fits else { break };
            done[index] = true;
        }
        if self.complete(&done) {
            return true;
        }
        if !self.seen.insert((done.clone(), state.clone())) {
            return false;
        }
        let count = done.iter().filter(|done| **done).count();
        if count >= self.best.0 {
            self.best = (count, self.stuck(state, &done));
        }
        let next: Vec<_> = self.next(&done).collect();
        for index in next {
            let mut after = done.clone();
            after[index] = true;
            for outcome in self.moments[index].outcomes(state) {
                if self.from(&outcome, after.clone()) {
                    return true;
                }
            }
        }
        false
    }

    /// Whether all that must have happened did.
    fn complete(&self, done: &[bool]) -> bool {
        self.moments.iter().zip(done).all(|(moment, done)| *done || moment.to == u64::MAX)
    }

    /// What may come next: nothing that is still to come had ended before it began.
    fn next(&self, done: &[bool]) -> impl Iterator<Item = usize> {
        let open = || self.moments.iter().enumerate().zip(done).filter(|(_, done)| !**done).map(|(moment, _)| moment);
        let first_end = open().map(|(_, moment)| moment.to).min().unwrap_or(u64::MAX);
        let next: Vec<_> = open().filter(|(_, moment)| moment.from <= first_end).map(|(index, _)| index).collect();
        next.into_iter()
    }

    fn stuck(&self, state: &Specification, done: &[bool]) -> String {
        let mut text = String::new();
        for index in self.next(done) {
            let moment = &self.moments[index];
            let (from, to) = (moment.from, moment.to);
            let _ = match &moment.kind {
                Kind::Restart => writeln!(text, "  {from}-{to} restart"),
                Kind::Unheard(call) => writeln!(text, "  {from}-? {call:?} not heard"),
                Kind::Attempt(call) => writeln!(text, "  {from}-{to} {call:?} before it waited"),
                Kind::Call(call, seen) => {
                    let verdict = state.clone().call(call);
                    writeln!(text, "  {from}-{to} {call:?} -> {seen:?}; expected {verdict:?}")
                }
                Kind::SeesVolume(name, shown) => {
                    writeln!(text, "  {from}-{to} a list shows volume {name} as {shown:?}")
                }
                Kind::SeesCut(cut, _, shown) => {
                    writeln!(text, "  {from}-{to} a list shows snapshot {cut} as {shown:?}")
                }
            };
        }
        let _ = writeln!(text, "  while volumes are {:?}\n  and snapshots {:?}", state.volumes, state.cuts);
        text
    }
}

impl Moment {
    /// Whether it leaves every state as it is.
    fn only_looks(&self) -> bool {
        match &self.kind {
            Kind::SeesVolume(..) | Kind::SeesCut(..) => true,
            Kind::Call(call, Ok(_)) => !call.changes(),
            Kind::Call(_, Err(refused)) => refused.code != Code::Aborted || !self.disturbed,
            Kind::Unheard(_) | Kind::Attempt(_) | Kind::Restart => false,
        }
    }

    /// The states after it, if it comes now; none when it cannot.
    fn outcomes(&self, state: &Specification) -> Vec<Specification> {
        let mut after = state.clone();
        match &self.kind {
            Kind::Restart => {
                after.restart();
                vec![after]
            }
            Kind::Unheard(call) => {
                let mut outcomes = state.unfinished(call);
                if let Verdict::Ok(_) = after.call(call) {
                    outcomes.push(after);
                }
                outcomes.retain(|outcome| outcome != state);
                outcomes
            }
            Kind::Attempt(call) => match after.call(call) {
                Verdict::Ok(_) if after != *state => vec![state.clone(), after],
                _ => vec![state.clone()],
            },
            Kind::SeesVolume(name, seen) => {
                let shown = state.shown_volumes().into_iter().find(|shown| shown.name == *name);
                if shown == *seen { vec![after] } else { Vec::new() }
            }
            Kind::SeesCut(cut, call, seen) => {
                let Verdict::Ok(Answer::Cuts(cuts)) = after.call(call) else { return Vec::new() };
                if cuts.into_iter().find(|shown| shown.cut == *cut) == *seen { vec![after] } else { Vec::new() }
            }
            Kind::Call(call, seen) => self.answered(state, call, seen),
        }
    }

    fn answered(&self, state: &Specification, call: &Call, seen: &Seen) -> Vec<Specification> {
        let mut after = state.clone();
        let verdict = after.call(call);
        match (&verdict, seen) {
            (Verdict::Ok(Answer::Room(room)), Ok(Answer::Room(seen))) => {
                let good = if self.crowded { seen <= room } else { seen == room };
                if good { vec![after] } else { Vec::new() }
            }
            (Verdict::Ok(expected), Ok(answer)) if expected.agrees(answer) => vec![after],
            (Verdict::Refused(codes), Err(refused)) if codes.contains(&refused.code) => vec![after],
            (_, Err(refused)) if refused.code == Code::Aborted && self.disturbed => {
                let mut outcomes = vec![state.clone()];
                outcomes.extend(state.unfinished(call).into_iter().filter(|outcome| outcome != state));
                outcomes
            }
            (_, Err(refused)) if refused.code == Code::ResourceExhausted && self.crowded && !state.has_made(call) => {
                vec![state.clone()]
            }
            (_, Err(refused)) if refused.code == Code::AlreadyExists && self.claimed => vec![state.clone()],
            (_, Err(refused))
                if refused.code == Code::OutOfRange && self.crowded && matches!(call, Call::Expand { .. }) =>
            {
                vec![state.clone()]
            }
            // A stage under way has the device in hand, also one that ends with an error.
            (_, Err(refused)) if refused.code == Code::FailedPrecondition && self.disturbed && call.takes_device() => {
                vec![state.clone()]
            }
            _ => Vec::new(),
        }
    }
}

impl Specification {
    /// Whether what a create is to make is there.
    fn has_made(&self, call: &Call) -> bool {
        matches!(call, Call::Create(create) if self.volumes[create.name].is_some())
    }
}

/// What a call is about, as far as others can get in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thing {
    Volume(usize),
    Cut(usize),
    /// Of the pool that nobody serves: one handle.
    Elsewhere,
    Target(usize),
    /// So many filesystems are made at once, and no more.
    Formatting,
}

impl Call {
    fn things(&self) -> Vec<Thing> {
        let volume = |volume: &Volume| match volume {
            Volume::Of(name) => Some(Thing::Volume(*name)),
            Volume::Elsewhere => Some(Thing::Elsewhere),
            Volume::Foreign => None,
        };
        let cut = |cut: &Cut| match cut {
            Cut::Of(cut) => Some(Thing::Cut(*cut)),
            Cut::Foreign | Cut::Elsewhere => None,
        };
        let things = match self {
            Self::Create(create) => {
                let source = create.from.and_then(|from| match from {
                    From::Cut(number) => cut(&number),
                    From::Volume(name) => volume(&name),
                });
                vec![Some(Thing::Volume(create.name)), source]
            }
            Self::Delete(name)
            | Self::Grant { volume: name, .. }
            | Self::Revoke { volume: name, .. }
            | Self::Validate { volume: name, .. }
            | Self::Get(name)
            | Self::Expand { volume: name, .. }
            | Self::Unstage(name)
            | Self::Stats { volume: name, .. }
            | Self::Grow { volume: name, .. } => vec![volume(name)],
            Self::Cut { cut: number, from } => vec![Some(Thing::Cut(*number)), volume(from)],
            Self::Uncut(number) | Self::GetCut(number) => vec![cut(number)],
            Self::Stage { volume: name, .. } => vec![volume(name), Some(Thing::Formatting)],
            Self::Publish { volume: name, target, .. } | Self::Unpublish { volume: name, target } => {
                vec![volume(name), Some(Thing::Target(*target))]
            }
            Self::List { .. } | Self::ListBadly | Self::Capacity { .. } | Self::ListCuts { .. } => Vec::new(),
        };
        things.into_iter().flatten().collect()
    }

    /// Whether two calls are about one thing.
    fn meets(&self, other: &Self) -> bool {
        let others = other.things();
        self.things().iter().any(|thing| others.contains(thing))
    }

    /// Whether it may wait for a copy.
    fn copies(&self) -> bool {
        matches!(self, Self::Create(create) if create.from.is_some())
    }

    /// Whether it may copy into the volume that another call makes.
    fn copies_into_what_makes(&self, other: &Self) -> bool {
        let (Self::Create(this), Self::Create(that)) = (self, other) else { return false };
        self.copies() && this.name == that.name && this != that
    }

    fn takes_device(&self) -> bool {
        matches!(self, Self::Revoke { .. })
    }

    fn changes_room(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Delete(_) | Self::Expand { .. } | Self::Cut { .. } | Self::Uncut(_))
    }

    fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Validate { .. }
                | Self::Get(_)
                | Self::List { .. }
                | Self::ListBadly
                | Self::Capacity { .. }
                | Self::GetCut(_)
                | Self::ListCuts { .. }
                | Self::Stats { .. }
        )
    }

    /// Whether asking again never helps: the pool is nobody's, or the token no token.
    pub(super) fn is_hopeless(&self) -> bool {
        let nobodys = |from: &From| matches!(from, From::Cut(Cut::Elsewhere) | From::Volume(Volume::Elsewhere));
        match self {
            Self::ListBadly | Self::Uncut(Cut::Elsewhere) | Self::GetCut(Cut::Elsewhere) => true,
            Self::Create(create) => create.from.as_ref().is_some_and(nobodys),
            Self::ListCuts { cut, from, .. } => *cut == Some(Cut::Elsewhere) || *from == Some(Volume::Elsewhere),
            Self::Cut { from, .. } => *from == Volume::Elsewhere,
            Self::Delete(volume)
            | Self::Grant { volume, .. }
            | Self::Revoke { volume, .. }
            | Self::Validate { volume, .. }
            | Self::Get(volume)
            | Self::Expand { volume, .. }
            | Self::Stage { volume, .. }
            | Self::Unstage(volume)
            | Self::Publish { volume, .. }
            | Self::Unpublish { volume, .. }
            | Self::Stats { volume, .. }
            | Self::Grow { volume, .. } => *volume == Volume::Elsewhere,
            Self::List { .. } | Self::Capacity { .. } | Self::Uncut(_) | Self::GetCut(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::call::{Access, Create, Mode, Source, Use, Wanted};
    use super::super::specification::CaseSetting;
    use super::*;

    const SOURCE: Source = Source::Volume { pool: 0, name: 0 };

    fn create(name: usize, from: Option<From>) -> Call {
        let uses = vec![Use { mode: Mode::Block, access: Access::Multi }];
        let (thin, wanted) = (None, Wanted::Anywhere);
        Call::Create(Create { name, required: 16 << 20, limit: 0, uses, thin, zero: false, from, wanted })
    }

    fn made(name: usize, from: Option<Source>) -> Seen {
        Ok(Answer::Made(Shown { name, pool: 0, size: 16 << 20, from, granted: false }))
    }

    /// Volume 1 is cloned from volume 0; what others hear of it meanwhile, and a clone that is made at last.
    fn while_cloning(copying: bool, others: Vec<(u64, u64, Call, Seen)>) -> Result<(), String> {
        let clone = create(1, Some(From::Volume(Volume::Of(0))));
        let mut heard = vec![(1, 2, create(0, None), made(0, None)), (3, 20, clone, made(1, Some(SOURCE)))];
        heard.extend(others);
        let event =
            |(from, to, call, seen)| Event { caller: 0, from, to: Some(to), what: What::Call(call, Some(seen)) };
        let events: Vec<_> = heard.into_iter().map(event).collect();
        let ground = CaseSetting { room: vec![1 << 30], copying, grows_mounted_ext4: true, nodes: 1 };
        check(&Specification::new(ground), &events)
    }

    fn refused(code: Code) -> Seen {
        Err(Refused { code, said: String::new() })
    }

    #[test]
    fn only_a_create_that_waits_for_a_copy_may_make_its_volume_again_after_a_delete() {
        let get = Call::Get(Volume::Of(1));
        let there = Ok(Answer::Volume(Shown { name: 1, pool: 0, size: 16 << 20, from: Some(SOURCE), granted: false }));
        let seen = (5, 6, get.clone(), there.clone());
        let deleted = (7, 8, Call::Delete(Volume::Of(1)), Ok(Answer::Done));
        let missed = (9, 10, get.clone(), refused(Code::NotFound));
        let again = (21, 22, get, there);
        let all = vec![seen.clone(), deleted, missed.clone(), again.clone()];
        while_cloning(true, all.clone()).unwrap();
        while_cloning(false, all).unwrap_err();
        while_cloning(true, vec![seen, missed, again]).unwrap_err();
    }

    #[test]
    fn a_name_is_taken_before_its_volume_is_there_only_while_it_is_copied() {
        let other = |from, to| (from, to, create(1, None), refused(Code::AlreadyExists));
        let missed = |from, to| (from, to, Call::Get(Volume::Of(1)), refused(Code::NotFound));
        while_cloning(true, vec![other(5, 6), missed(7, 8)]).unwrap();
        while_cloning(false, vec![other(5, 6), missed(7, 8)]).unwrap_err();
        while_cloning(true, vec![other(21, 22), missed(23, 24)]).unwrap_err();
    }
}
