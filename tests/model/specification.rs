//! What CSI 1.13 and docs/design.md demand, as a state and what each call does to it. Written from these texts, not
//! from the driver: where several reasons refuse a request, any of their codes is right.

mod controller;
mod node;

use std::collections::BTreeSet;

use tonic::Code;

use super::call::{
    Access, Answer, At, CUTS, Call, Cut, Mode, NAMES, OnNode, Shown, ShownCut, Source, TARGETS, Use, Volume,
};
use holdfast::types::{FsType, MIB};

/// What a call must be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok(Answer),
    /// With one of these codes; nothing has changed.
    Refused(Vec<Code>),
}

/// What is fixed for a whole case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CaseSetting {
    /// Bytes that may be reserved in each pool; pool n is that of node n.
    pub(super) room: Vec<u64>,
    /// Pools without reflinks: attached volumes are not copied.
    pub(super) copying: bool,
    /// Whether the kernel lets this process grow a mounted ext4.
    pub(super) grows_mounted_ext4: bool,
    /// Node numbers that exist; those without a pool come last.
    pub(super) nodes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Specification {
    pub(super) ground: CaseSetting,
    pub(super) volumes: [Option<Made>; NAMES],
    pub(super) cuts: [Option<MadeCut>; CUTS],
    /// What pods see.
    pub(super) targets: [Option<Bound>; TARGETS],
}

/// What a volume was asked to be, as far as retries are compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Class {
    thin: Option<bool>,
    zero: bool,
    uses: BTreeSet<(VolumeMode, Access)>,
    from: Option<Source>,
}

/// How a volume is used, its filesystem named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum VolumeMode {
    Block,
    Mount(FsType),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Format {
    Never,
    Raw,
    /// A mkfs was cut off; the next stage finishes it.
    Begun(FsType),
    /// Made, and so many bytes long.
    Made(FsType, u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Made {
    pub(super) pool: usize,
    pub(super) size: u64,
    /// What a copy has to ask for at least: what was asked for when it got its size.
    pub(super) least: u64,
    pub(super) class: Class,
    pub(super) grant: Option<Grant>,
    /// The grant that ended while the node still used the volume: until it does not, the next is of the same kind.
    before: Option<Grant>,
    epoch: u64,
    pub(super) format: Format,
    /// Mounted at its staging path: as what, and whether only to be read.
    pub(super) staged: Option<(FsType, bool)>,
    /// The node has the raw device in hand.
    pub(super) held: bool,
    /// A delete was cut off: gone for everybody but the next delete.
    pub(super) doomed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Grant {
    pub(super) mode: VolumeMode,
    pub(super) access: Access,
    pub(super) read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct MadeCut {
    pub(super) pool: usize,
    pub(super) from: usize,
    pub(super) size: u64,
    /// What a restore has to ask for at least.
    pub(super) least: u64,
    pub(super) format: Format,
    pub(super) doomed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bound {
    pub(super) name: usize,
    block: bool,
    read_only: bool,
}

/// The reasons against a request.
#[derive(Default)]
struct Against(Vec<Code>);

impl Against {
    fn when(&mut self, holds: bool, code: Code) {
        if holds {
            self.0.push(code);
        }
    }

    fn or(self, ok: impl FnOnce() -> Answer) -> Verdict {
        if self.0.is_empty() { Verdict::Ok(ok()) } else { Verdict::Refused(self.0) }
    }
}

impl Specification {
    pub(super) fn new(ground: CaseSetting) -> Self {
        Self { ground, volumes: Default::default(), cuts: Default::default(), targets: Default::default() }
    }

    /// What the call is answered, and what it does.
    pub(super) fn call(&mut self, call: &Call) -> Verdict {
        match call {
            Call::Create(create) => self.create(create),
            Call::Delete(volume) => self.delete(*volume),
            Call::Grant { volume, node, usage, read_only } => self.grant(*volume, *node, *usage, *read_only),
            Call::Revoke { volume, node } => self.revoke(*volume, *node),
            Call::Validate { volume, usage } => self.validate(*volume, *usage),
            Call::Get(volume) => match self.volume(*volume) {
                Ok((name, made)) => Verdict::Ok(Answer::Volume(made.shown(name))),
                Err(code) => Verdict::Refused(vec![code]),
            },
            Call::List { .. } => Verdict::Ok(Answer::Volumes(self.shown_volumes())),
            Call::ListBadly => Verdict::Refused(vec![Code::Aborted]),
            Call::Capacity { .. } => {
                Verdict::Ok(Answer::Room((0..self.ground.room.len()).map(|pool| self.room(pool)).sum()))
            }
            Call::Expand { volume, required, limit } => self.expand(*volume, *required, *limit),
            Call::Cut { cut, from } => self.cut(*cut, *from),
            Call::Uncut(cut) => self.uncut(*cut),
            Call::GetCut(cut) => match self.cut_of(*cut) {
                Ok((number, made)) => Verdict::Ok(Answer::Cut(made.shown(number))),
                Err(code) => Verdict::Refused(vec![code]),
            },
            Call::ListCuts { cut, from, .. } => self.list_cuts(*cut, *from),
            Call::Stage { volume, usage } => self.stage(*volume, *usage),
            Call::Unstage(volume) => self.unstage(*volume),
            Call::Publish { volume, target, usage, read_only } => self.publish(*volume, *target, *usage, *read_only),
            Call::Unpublish { volume, target } => self.unpublish(*volume, *target),
            Call::Stats { volume, at } => self.stats(*volume, *at),
            Call::Grow { volume, at, required } => self.grow(*volume, *at, *required),
        }
    }

    /// The process ends and begins again: devices that no pod sees are not held any more.
    pub(super) fn restart(&mut self) {
        for name in 0..NAMES {
            let bound = self.targets.iter().flatten().any(|bound| bound.name == name && bound.block);
            if let Some(made) = &mut self.volumes[name] {
                made.held = bound;
            }
        }
    }

    /// The volume that a request means, if it is there.
    fn volume(&self, volume: Volume) -> Result<(usize, &Made), Code> {
        match volume {
            Volume::Of(name) => {
                let made = self.volumes[name].as_ref().filter(|made| !made.doomed);
                made.map(|made| (name, made)).ok_or(Code::NotFound)
            }
            Volume::Foreign => Err(Code::NotFound),
            Volume::Elsewhere => Err(Code::Unavailable),
        }
    }

    fn cut_of(&self, cut: Cut) -> Result<(usize, &MadeCut), Code> {
        match cut {
            Cut::Of(number) => {
                let made = self.cuts[number].as_ref().filter(|made| !made.doomed);
                made.map(|made| (number, made)).ok_or(Code::NotFound)
            }
            Cut::Foreign => Err(Code::NotFound),
            Cut::Elsewhere => Err(Code::Unavailable),
        }
    }

    /// The pool a request for a name goes to.
    pub(super) fn pool_of(&self, name: usize) -> usize {
        self.volumes[name].as_ref().map_or(0, |made| made.pool)
    }

    pub(super) fn pool_of_cut(&self, cut: usize) -> usize {
        self.cuts[cut].as_ref().map_or(0, |made| made.pool)
    }

    /// Bytes that are reserved in a pool.
    pub(super) fn reserved(&self, pool: usize) -> u64 {
        let volumes = self.volumes.iter().flatten().filter(|made| made.pool == pool).map(|made| made.size);
        let cuts = self.cuts.iter().flatten().filter(|made| made.pool == pool).map(|made| made.size);
        volumes.chain(cuts).sum()
    }

    /// Bytes that new volumes may take, in whole MiB.
    fn room(&self, pool: usize) -> u64 {
        self.ground.room[pool].saturating_sub(self.reserved(pool)) / MIB * MIB
    }

    /// In order of pool and name; the world puts its answers in this order too, after it has checked theirs.
    pub(super) fn shown_volumes(&self) -> Vec<Shown> {
        let there = self.volumes.iter().enumerate().filter_map(|(name, made)| Some((name, made.as_ref()?)));
        there.filter(|(_, made)| !made.doomed).map(|(name, made)| made.shown(name)).collect()
    }

    pub(super) fn shown_cuts(&self) -> Vec<ShownCut> {
        let there = self.cuts.iter().enumerate().filter_map(|(cut, made)| Some((cut, made.as_ref()?)));
        there.filter(|(_, made)| !made.doomed).map(|(cut, made)| made.shown(cut)).collect()
    }

    fn published(&self, name: usize) -> impl Iterator<Item = usize> {
        (0..TARGETS).filter(move |target| self.targets[*target].is_some_and(|bound| bound.name == name))
    }

    /// Whether the node still shows a volume, so that it cannot be taken away from it.
    fn in_use(&self, name: usize) -> bool {
        let used = self.volumes[name].as_ref().is_some_and(|made| made.held || made.staged.is_some());
        used || self.published(name).next().is_some()
    }

    /// Whether nothing may be done that wants a volume at rest.
    fn taken(&self, name: usize) -> bool {
        self.volumes[name].as_ref().is_some_and(|made| made.grant.is_some()) || self.in_use(name)
    }
}

impl Made {
    pub(super) fn shown(&self, name: usize) -> Shown {
        Shown { name, pool: self.pool, size: self.size, from: self.class.from, granted: self.grant.is_some() }
    }

    /// Whether it was made to be used so.
    fn allows(&self, mode: VolumeMode) -> bool {
        self.class.uses.iter().any(|(made, _)| *made == mode)
    }

    /// What a mode means for this volume.
    fn resolved(&self, mode: Mode) -> Option<VolumeMode> {
        match mode {
            Mode::Block => Some(VolumeMode::Block),
            Mode::Mount(Some(fs)) => Some(VolumeMode::Mount(fs)),
            Mode::Mount(None) => self.class.uses.iter().map(|(mode, _)| *mode).find(|mode| *mode != VolumeMode::Block),
        }
    }
}

impl Grant {
    /// Whether nothing may be written.
    fn only_reads(self) -> bool {
        self.read_only || self.access == Access::Reader
    }
}

impl MadeCut {
    pub(super) fn shown(&self, cut: usize) -> ShownCut {
        ShownCut { cut, pool: self.pool, from: self.from, size: self.least, ready: true }
    }
}

impl Specification {
    /// What a call may leave that did not end: none of it is answered as done, and asking again goes on from there.
    pub(super) fn unfinished(&self, call: &Call) -> Vec<Self> {
        let mut left = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut state = self.clone();
            change(&mut state);
            left.push(state);
        };
        match call {
            Call::Delete(Volume::Of(name)) if self.volumes[*name].is_some() && !self.taken(*name) => {
                with(&|state| state.change(*name, |made| made.doomed = true));
            }
            Call::Uncut(Cut::Of(cut)) => with(&|state| {
                if let Some(made) = &mut state.cuts[*cut] {
                    made.doomed = true;
                }
            }),
            Call::Stage { volume: Volume::Of(name), .. } => {
                let mut done = self.clone();
                let Verdict::Ok(_) = done.call(call) else { return left };
                let Some(format) = done.volumes[*name].as_ref().map(|made| made.format) else { return left };
                // The device, and what is on it, without the mount.
                with(&|state| state.change(*name, |made| made.format = format));
                if let (Format::Made(fs, _), Some(Format::Never | Format::Begun(_))) =
                    (format, self.volumes[*name].as_ref().map(|made| made.format))
                {
                    with(&|state| state.change(*name, |made| made.format = Format::Begun(fs)));
                }
                // Mounted, and not grown.
                with(&|state| {
                    let before = state.volumes[*name].as_ref().map(|made| made.format);
                    state.clone_from(&done);
                    if let Some(before @ Format::Made(..)) = before {
                        state.change(*name, |made| made.format = before);
                    }
                });
            }
            Call::Unstage(Volume::Of(name)) if self.published(*name).next().is_none() => {
                with(&|state| state.change(*name, |made| (made.staged, made.held) = (None, false)));
            }
            Call::Publish { volume: Volume::Of(name), .. } => {
                let mut done = self.clone();
                if let Verdict::Ok(_) = done.call(call) {
                    let held = done.volumes[*name].as_ref().is_some_and(|made| made.held);
                    with(&|state| state.change(*name, |made| made.held = held));
                }
            }
            Call::Cut { .. } | Call::Create(_) if !self.ground.copying => {}
            // A copy that was begun ends behind the caller's back.
            Call::Unpublish { .. } | Call::Grow { .. } | Call::Cut { .. } | Call::Create(_) => {
                let mut done = self.clone();
                if let Verdict::Ok(_) = done.call(call) {
                    with(&|state| state.clone_from(&done));
                }
            }
            _ => {}
        }
        left
    }

    fn change(&mut self, name: usize, change: impl Fn(&mut Made)) {
        if let Some(made) = &mut self.volumes[name] {
            change(made);
        }
    }
}
