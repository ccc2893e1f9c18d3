//! The calls of the Controller service.

use tonic::Code;

use super::{
    Access, Against, Answer, Class, Cut, Format, Grant, Made, MadeCut, Mode, OnNode, Source, Specification, Use,
    Verdict, Volume, VolumeMode,
};
use crate::call::{Create, From, Wanted, mib};
use holdfast::types::{FsType, MIB};

/// What a new volume is filled from.
struct Origin {
    pool: usize,
    size: u64,
    least: u64,
    format: Format,
    source: Source,
}

impl Specification {
    pub(super) fn create(&mut self, asked: &Create) -> Verdict {
        let mut against = Against::default();
        // What is refused for its words is not final where the name exists: a later release may have made it.
        let refused = if self.volumes[asked.name].is_some() { Code::Aborted } else { Code::InvalidArgument };
        against.when(asked.zero && asked.thin == Some(true), refused);
        against.when(asked.limit != 0 && asked.limit < asked.required, refused);
        against.when(asked.uses.iter().any(|usage| usage.access == Access::ManyNodes), refused);
        let uses = asked.uses.iter().map(|usage| (of_class(usage.mode), usage.access)).collect();
        let origin = asked.from.map(|from| self.origin(from)).transpose();
        let itself = asked.from == Some(From::Volume(Volume::Of(asked.name)));
        against.when(itself, refused);

        if let Some(made) = &self.volumes[asked.name] {
            let source = asked.from.map(|from| self.source(from));
            let class = Class { thin: asked.thin, zero: asked.zero, uses, from: source.flatten() };
            let fits = asked.required <= made.size && (asked.limit == 0 || asked.limit >= made.size);
            let other_source = class.from != made.class.from || source == Some(None);
            let elsewhere = matches!(asked.wanted, Wanted::Required(node) if node != made.pool);
            against.when(class != made.class || !fits || other_source || elsewhere, Code::AlreadyExists);
            against.when(made.doomed, Code::Aborted);
            if other_source && let Err(code) = origin {
                against.when(true, code);
            }
            return against.or(|| Answer::Made(super::Shown { granted: false, ..made.shown(asked.name) }));
        }

        let origin = match origin {
            Ok(origin) => origin,
            Err(code) => {
                against.when(true, code);
                let source = asked.from.and_then(|from| self.source(from)).map(|source| match source {
                    Source::Cut { pool, .. } | Source::Volume { pool, .. } => pool,
                });
                against.when(self.placed(asked.wanted, source, 0).is_none(), Code::ResourceExhausted);
                return Verdict::Refused(against.0);
            }
        };
        let (mut default, mut minimum) = (mib(1024), MIB);
        for usage in &asked.uses {
            if let VolumeMode::Mount(fs) = of_class(usage.mode) {
                minimum = minimum.max(least(fs));
                against.when(fs == FsType::Xfs && asked.required != 0 && asked.required < least(fs), Code::OutOfRange);
            }
        }
        if let Some(origin) = &origin {
            (default, minimum) = (origin.size, minimum.max(origin.size));
            against.when(asked.limit != 0 && asked.limit < origin.size, Code::OutOfRange);
            against.when(asked.required != 0 && asked.required < origin.least, Code::OutOfRange);
            let only_block = only_block(asked);
            let unfit = asked.uses.iter().any(|usage| match (origin.format, of_class(usage.mode)) {
                (Format::Never | Format::Begun(_), _) | (Format::Raw, VolumeMode::Block) => false,
                (Format::Made(fs, _), VolumeMode::Mount(wanted)) => fs != wanted,
                (Format::Made(..), VolumeMode::Block) => !only_block,
                (Format::Raw, VolumeMode::Mount(_)) => true,
            });
            against.when(unfit, Code::InvalidArgument);
            against.when(matches!(origin.format, Format::Begun(_)), Code::Aborted);
            if let Source::Volume { name, .. } = origin.source {
                against.when(self.ground.copying && self.taken(name), Code::FailedPrecondition);
            }
        }
        let size = chosen(asked.required, asked.limit, default, minimum);
        against.when(size.is_none(), Code::OutOfRange);
        let size = size.unwrap_or_default();
        let pool = self.placed(asked.wanted, origin.as_ref().map(|origin| origin.pool), size);
        against.when(pool.is_none(), Code::ResourceExhausted);
        let made = Made {
            pool: pool.unwrap_or_default(),
            size,
            least: if asked.required == 0 { size } else { asked.required },
            class: Class {
                thin: asked.thin,
                zero: asked.zero,
                uses,
                from: origin.as_ref().map(|origin| origin.source),
            },
            grant: None,
            before: None,
            epoch: 0,
            format: origin.map_or(Format::Never, |origin| match origin.format {
                Format::Made(..) if only_block(asked) => Format::Raw,
                format => format,
            }),
            staged: None,
            held: false,
            doomed: false,
        };
        let shown = made.shown(asked.name);
        let verdict = against.or(|| Answer::Made(shown));
        if let Verdict::Ok(_) = verdict {
            self.volumes[asked.name] = Some(made);
        }
        verdict
    }

    /// The pool with room, among those allowed.
    fn placed(&self, wanted: Wanted, source: Option<usize>, size: u64) -> Option<usize> {
        let all = 0..self.ground.room.len();
        let allowed = |pool: &usize| match (wanted, source) {
            (Wanted::Required(node), Some(source)) => node == source && *pool == source,
            (_, Some(source)) => *pool == source,
            (Wanted::Anywhere, None) => true,
            (Wanted::Preferred(node) | Wanted::Required(node), None) => *pool == node,
        };
        all.filter(allowed).find(|pool| size <= self.room(*pool))
    }

    fn origin(&self, from: From) -> Result<Origin, Code> {
        let (pool, size, least, format) = match from {
            From::Cut(cut) => {
                let (_, made) = self.cut_of(cut)?;
                (made.pool, made.size, made.least, made.format)
            }
            From::Volume(volume) => {
                let (_, made) = self.volume(volume)?;
                (made.pool, made.size, made.least, made.format)
            }
        };
        Ok(Origin { pool, size, least, format, source: self.source(from).ok_or(Code::NotFound)? })
    }

    /// The source a request names, existing or not; none for an id of another driver or pool.
    fn source(&self, from: From) -> Option<Source> {
        match from {
            From::Cut(Cut::Of(cut)) => Some(Source::Cut { pool: self.pool_of_cut(cut), cut }),
            From::Volume(Volume::Of(name)) => Some(Source::Volume { pool: self.pool_of(name), name }),
            From::Cut(_) | From::Volume(_) => None,
        }
    }

    pub(super) fn delete(&mut self, volume: Volume) -> Verdict {
        let name = match volume {
            Volume::Elsewhere => return Verdict::Refused(vec![Code::Unavailable]),
            Volume::Foreign => return Verdict::Ok(Answer::Done),
            Volume::Of(name) => name,
        };
        if self.taken(name) {
            return Verdict::Refused(vec![Code::FailedPrecondition]);
        }
        self.volumes[name] = None;
        Verdict::Ok(Answer::Done)
    }

    pub(super) fn grant(&mut self, volume: Volume, node: OnNode, usage: Use, read_only: bool) -> Verdict {
        let nodes = self.ground.nodes;
        let mut against = Against::default();
        against.when(usage.access == Access::ManyNodes, Code::InvalidArgument);
        against.when(!matches!(node, OnNode::Of(number) if number < nodes), Code::NotFound);
        let (name, made) = match self.volume(volume) {
            Ok(found) => found,
            Err(code) => {
                against.when(true, code);
                return Verdict::Refused(against.0);
            }
        };
        let mode = made.resolved(usage.mode).filter(|mode| made.allows(*mode));
        against.when(mode.is_none(), Code::InvalidArgument);
        against.when(matches!(node, OnNode::Of(number) if number != made.pool), Code::FailedPrecondition);
        let grant = mode.map(|mode| Grant { mode, access: usage.access, read_only });
        against.when(made.grant.is_some() && made.grant != grant, Code::AlreadyExists);
        let other = made.grant.is_none() && made.before.is_some() && made.before != grant;
        against.when(other && self.in_use(name), Code::FailedPrecondition);
        let epoch = if made.grant.is_some() { made.epoch } else { made.epoch + 1 };
        let verdict = against.or(|| Answer::Granted { epoch });
        if let (Verdict::Ok(_), Some(made)) = (&verdict, &mut self.volumes[name]) {
            (made.grant, made.before, made.epoch) = (grant, None, epoch);
        }
        verdict
    }

    pub(super) fn revoke(&mut self, volume: Volume, node: Option<OnNode>) -> Verdict {
        let name = match volume {
            // What no node of this driver can have is attached nowhere, whatever its pool.
            Volume::Elsewhere => return Verdict::Refused(vec![Code::Unavailable]),
            Volume::Foreign => return Verdict::Ok(Answer::Done),
            Volume::Of(name) => name,
        };
        let here = |pool: usize| node.is_none_or(|node| node == OnNode::Of(pool));
        let taken = self.volumes[name].as_ref().is_some_and(|made| made.grant.is_some() && here(made.pool));
        if !taken {
            return Verdict::Ok(Answer::Done);
        }
        // What is left is the volume's own node's use: it may go on, and keeps the volume from all others.
        let used = self.in_use(name);
        if let Some(made) = &mut self.volumes[name] {
            made.before = made.grant.take().filter(|_| used);
        }
        Verdict::Ok(Answer::Done)
    }

    pub(super) fn validate(&self, volume: Volume, usage: Use) -> Verdict {
        match self.volume(volume) {
            Err(code) => Verdict::Refused(vec![code]),
            Ok((_, made)) => {
                let mode = made.resolved(usage.mode).filter(|mode| made.allows(*mode));
                Verdict::Ok(Answer::Confirmed(mode.is_some() && usage.access != Access::ManyNodes))
            }
        }
    }

    pub(super) fn expand(&mut self, volume: Volume, required: u64, limit: u64) -> Verdict {
        let mut against = Against::default();
        against.when(required == 0 && limit == 0, Code::InvalidArgument);
        against.when(limit != 0 && limit < required, Code::InvalidArgument);
        let (name, made) = match self.volume(volume) {
            Ok(found) => found,
            Err(code) => {
                against.when(true, code);
                return Verdict::Refused(against.0);
            }
        };
        against.when(limit != 0 && limit < made.size, Code::OutOfRange);
        let target = required.max(made.size).next_multiple_of(MIB);
        against.when(limit != 0 && limit < target, Code::OutOfRange);
        against.when(target - made.size > self.room(made.pool), Code::OutOfRange);
        let only_block = made.class.uses.iter().all(|(mode, _)| *mode == VolumeMode::Block);
        let node_expansion = match made.format {
            Format::Never => !only_block,
            // The devices over a raw volume's own follow on the node.
            Format::Raw | Format::Begun(_) | Format::Made(..) => true,
        };
        let verdict = against.or(|| Answer::Size { size: target, node_expansion });
        if let (Verdict::Ok(_), Some(made)) = (&verdict, &mut self.volumes[name]) {
            if target > made.size {
                made.least = required;
            }
            made.size = target;
        }
        verdict
    }

    pub(super) fn cut(&mut self, cut: usize, from: Volume) -> Verdict {
        if let Some(made) = &self.cuts[cut] {
            let mut against = Against::default();
            let same = from == Volume::Of(made.from) && self.pool_of(made.from) == made.pool;
            against.when(!same, Code::AlreadyExists);
            against.when(made.doomed, Code::Aborted);
            if !same && let Err(code) = self.volume(from) {
                against.when(true, code);
            }
            return against.or(|| Answer::Cut(made.shown(cut)));
        }
        let (name, source) = match self.volume(from) {
            Ok(found) => found,
            Err(code) => return Verdict::Refused(vec![code]),
        };
        let mut against = Against::default();
        against.when(matches!(source.format, Format::Begun(_)), Code::Aborted);
        against.when(self.ground.copying && self.taken(name), Code::FailedPrecondition);
        against.when(source.size > self.room(source.pool), Code::ResourceExhausted);
        let made = MadeCut {
            pool: source.pool,
            from: name,
            size: source.size,
            least: source.least,
            format: source.format,
            doomed: false,
        };
        let shown = made.shown(cut);
        let verdict = against.or(|| Answer::Cut(shown));
        if let Verdict::Ok(_) = verdict {
            self.cuts[cut] = Some(made);
        }
        verdict
    }

    pub(super) fn uncut(&mut self, cut: Cut) -> Verdict {
        match cut {
            Cut::Elsewhere => return Verdict::Refused(vec![Code::Unavailable]),
            Cut::Foreign => {}
            Cut::Of(cut) => self.cuts[cut] = None,
        }
        Verdict::Ok(Answer::Done)
    }

    pub(super) fn list_cuts(&self, cut: Option<Cut>, from: Option<Volume>) -> Verdict {
        let silent = cut == Some(Cut::Elsewhere) || (cut.is_none() && from == Some(Volume::Elsewhere));
        let foreign = cut == Some(Cut::Foreign) || from == Some(Volume::Foreign);
        if foreign {
            return Verdict::Ok(Answer::Cuts(Vec::new()));
        }
        if silent {
            return Verdict::Refused(vec![Code::Unavailable]);
        }
        let mut shown = self.shown_cuts();
        shown.retain(|shown| cut.is_none_or(|cut| cut == Cut::Of(shown.cut)));
        // A source is named by its handle: of a name that is in another pool now, these are other volumes.
        let source =
            |shown: &super::ShownCut| from == Some(Volume::Of(shown.from)) && self.pool_of(shown.from) == shown.pool;
        shown.retain(|shown| from.is_none() || source(shown));
        Verdict::Ok(Answer::Cuts(shown))
    }
}

/// Whether a volume is to be used as a raw block device and in no other way.
fn only_block(asked: &Create) -> bool {
    asked.uses.iter().all(|usage| usage.mode == Mode::Block)
}

/// What a class without a filesystem of its own makes of a mode: ext4 (docs/design.md section 12).
fn of_class(mode: Mode) -> VolumeMode {
    match mode {
        Mode::Block => VolumeMode::Block,
        Mode::Mount(fs) => VolumeMode::Mount(fs.unwrap_or(FsType::Ext4)),
    }
}

fn least(fs: FsType) -> u64 {
    match fs {
        FsType::Ext4 => mib(16),
        FsType::Xfs => mib(300),
    }
}

/// A whole number of MiB within the range: what is required, else the default as far as the limit lets it.
fn chosen(required: u64, limit: u64, default: u64, minimum: u64) -> Option<u64> {
    let wanted = match (required, limit) {
        (0, 0) => default,
        (0, limit) => default.min(limit),
        (required, _) => required,
    };
    let size = wanted.max(minimum).next_multiple_of(MIB);
    if limit == 0 || size <= limit {
        return Some(size);
    }
    let below = limit / MIB * MIB;
    (required == 0 && below >= minimum).then_some(below)
}
