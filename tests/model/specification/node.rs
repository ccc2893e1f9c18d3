//! The calls of the Node service, on node 0.

use tonic::Code;

use super::{Access, Against, Answer, At, Bound, Format, Grant, Specification, Use, Verdict, Volume, VolumeMode};
use holdfast::types::FsType;

/// The node whose service is called.
const HERE: usize = 0;

impl Specification {
    pub(super) fn stage(&mut self, volume: Volume, usage: Use) -> Verdict {
        let mut against = Against::default();
        against.when(usage.access == Access::ManyNodes, Code::InvalidArgument);
        let (name, made) = match self.volume(volume) {
            Ok(found) => found,
            Err(code) => {
                against.when(true, code);
                return Verdict::Refused(against.0);
            }
        };
        if made.pool != HERE {
            // It can be granted to its own node only.
            against.when(true, Code::FailedPrecondition);
            against.when(true, Code::Unavailable);
            against.when(made.resolved(usage.mode).is_none(), Code::InvalidArgument);
            return Verdict::Refused(against.0);
        }
        let Some(mode) = made.resolved(usage.mode) else {
            // A raw block volume has no filesystem of its own, and is attached as block, if at all.
            against.when(true, Code::FailedPrecondition);
            return Verdict::Refused(against.0);
        };
        let grant = made.grant;
        against.when(grant.is_none_or(|grant| grant.mode != mode), Code::FailedPrecondition);
        let granted_to_read = grant.is_some_and(Grant::only_reads);
        let read_only = usage.access == Access::Reader || granted_to_read;
        let (mut format, mut staged, mut held) = (made.format, made.staged, made.held);
        match mode {
            VolumeMode::Block => {
                against.when(!matches!(format, Format::Never | Format::Raw), Code::FailedPrecondition);
                (format, held) = (Format::Raw, true);
            }
            VolumeMode::Mount(fs) => {
                if let Some(there) = made.staged {
                    against.when(there != (fs, read_only), Code::AlreadyExists);
                } else {
                    let fits = match format {
                        Format::Never => !read_only,
                        Format::Raw => false,
                        Format::Begun(begun) => begun == fs && !read_only,
                        Format::Made(made, _) => made == fs,
                    };
                    against.when(!fits, Code::FailedPrecondition);
                }
                let grows = made.staged.is_none() || fs == FsType::Xfs || self.ground.grows_mounted_ext4;
                format = match format {
                    Format::Made(..) if read_only || !grows => format,
                    _ => Format::Made(fs, made.size),
                };
                staged = Some((fs, read_only));
            }
        }
        let verdict = against.or(|| Answer::Done);
        if let (Verdict::Ok(_), Some(made)) = (&verdict, &mut self.volumes[name]) {
            (made.format, made.staged, made.held) = (format, staged, held);
        }
        verdict
    }

    pub(super) fn unstage(&mut self, volume: Volume) -> Verdict {
        let name = match volume {
            Volume::Foreign => return Verdict::Refused(vec![Code::NotFound]),
            Volume::Elsewhere => return Verdict::Ok(Answer::Done),
            Volume::Of(name) => name,
        };
        if self.published(name).next().is_some() {
            return Verdict::Refused(vec![Code::FailedPrecondition]);
        }
        if let Some(made) = &mut self.volumes[name] {
            (made.staged, made.held) = (None, false);
        }
        Verdict::Ok(Answer::Done)
    }

    pub(super) fn publish(&mut self, volume: Volume, target: usize, usage: Use, read_only: bool) -> Verdict {
        let mut against = Against::default();
        let read_only = read_only || usage.access == Access::Reader;
        against.when(usage.access == Access::ManyNodes, Code::InvalidArgument);
        let (name, made) = match self.volume(volume) {
            Ok(found) => found,
            Err(code) => {
                // Nothing of it is staged, either.
                against.when(true, code);
                against.when(true, Code::FailedPrecondition);
                return Verdict::Refused(against.0);
            }
        };
        if made.pool != HERE {
            against.when(true, Code::FailedPrecondition);
            against.when(true, Code::Unavailable);
            against.when(made.resolved(usage.mode).is_none(), Code::InvalidArgument);
            return Verdict::Refused(against.0);
        }
        let Some(mode) = made.resolved(usage.mode) else {
            // A raw block volume has no filesystem of its own, and is attached as block, if at all.
            against.when(true, Code::FailedPrecondition);
            return Verdict::Refused(against.0);
        };
        let bound = match mode {
            VolumeMode::Block => {
                // Staging a raw device leaves nothing that could be seen: being granted and used so is enough.
                let granted = made.grant.is_some_and(|grant| grant.mode == mode);
                let to_read = made.grant.is_some_and(Grant::only_reads);
                against.when(!granted || made.format != Format::Raw, Code::FailedPrecondition);
                Bound { name, block: true, read_only: read_only || to_read }
            }
            VolumeMode::Mount(fs) => {
                against.when(made.staged.is_none_or(|(staged, _)| staged != fs), Code::FailedPrecondition);
                let read_only = read_only || made.staged.is_some_and(|(_, read_only)| read_only);
                Bound { name, block: false, read_only }
            }
        };
        let there = self.targets[target];
        against.when(there.is_some_and(|there| there != bound), Code::AlreadyExists);
        let elsewhere = self.published(name).any(|other| other != target);
        against.when(there.is_none() && usage.access == Access::Single && elsewhere, Code::FailedPrecondition);
        let verdict = against.or(|| Answer::Done);
        if let (Verdict::Ok(_), Some(made)) = (&verdict, &mut self.volumes[name]) {
            self.targets[target] = Some(bound);
            made.held |= bound.block;
        }
        verdict
    }

    pub(super) fn unpublish(&mut self, volume: Volume, target: usize) -> Verdict {
        if volume == Volume::Foreign {
            return Verdict::Refused(vec![Code::NotFound]);
        }
        match self.targets[target] {
            Some(bound) if volume != Volume::Of(bound.name) => Verdict::Refused(vec![Code::FailedPrecondition]),
            _ => {
                self.targets[target] = None;
                Verdict::Ok(Answer::Done)
            }
        }
    }

    /// The volume as it is seen there: whether it is a block device, and its size.
    fn seen(&self, volume: Volume, at: At) -> Option<(usize, bool)> {
        let Volume::Of(name) = volume else { return None };
        match at {
            At::Staging => {
                let staged = self.volumes[name].as_ref().is_some_and(|made| made.staged.is_some());
                staged.then_some((name, false))
            }
            At::Target(target) => {
                self.targets[target].filter(|bound| bound.name == name).map(|bound| (name, bound.block))
            }
        }
    }

    pub(super) fn stats(&self, volume: Volume, at: At) -> Verdict {
        let Some((name, block)) = self.seen(volume, at) else { return Verdict::Refused(vec![Code::NotFound]) };
        let size = self.volumes[name].as_ref().map_or(0, |made| made.size);
        Verdict::Ok(if block { Answer::Device(size) } else { Answer::Filesystem(size) })
    }

    pub(super) fn grow(&mut self, volume: Volume, at: At, required: u64) -> Verdict {
        let Some((name, block)) = self.seen(volume, at) else { return Verdict::Refused(vec![Code::NotFound]) };
        let may = self.ground.grows_mounted_ext4;
        let Some(made) = &mut self.volumes[name] else { return Verdict::Refused(vec![Code::NotFound]) };
        let mut against = Against::default();
        against.when(made.grant.is_none(), Code::FailedPrecondition);
        against.when(required > made.size, Code::OutOfRange);
        if !block {
            against.when(made.staged.is_some_and(|(_, read_only)| read_only), Code::FailedPrecondition);
            let behind = matches!(made.format, Format::Made(FsType::Ext4, size) if size < made.size);
            against.when(behind && !may, Code::FailedPrecondition);
        }
        let size = made.size;
        let verdict = against.or(|| Answer::Size { size, node_expansion: false });
        if let (Verdict::Ok(_), Format::Made(fs, _)) = (&verdict, made.format) {
            made.format = Format::Made(fs, size);
        }
        verdict
    }
}
