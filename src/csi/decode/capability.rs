//! CSI's VolumeCapability. A malformed one is refused; a well-formed one that this driver cannot serve is
//! `Unsupported`, which ValidateVolumeCapabilities reports as a message and every other call refuses.

use super::{MAX_MAP, invalid, missing};
use crate::csi::proto::volume_capability::access_mode::Mode;
use crate::csi::proto::{VolumeCapability, volume_capability::AccessType};
use crate::fs::{MountOptions, RequestedOptions};
use crate::types::{AccessMode, Capability, Error, FsType, Kind, RequestedMode, Result, VolumeMode};

/// One requested capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::csi) struct RequestedCapability {
    /// Block or filesystem.
    pub(in crate::csi) mode: RequestedMode,
    /// The access mode.
    pub(in crate::csi) access: AccessMode,
    /// The mount flags of a filesystem.
    pub(in crate::csi) options: RequestedOptions,
}

impl RequestedCapability {
    /// The capability and its mount options, with `own` as the filesystem where none is named.
    ///
    /// # Errors
    /// `InvalidArgument` for a mount option that is not allowed, without naming it.
    pub(in crate::csi) fn resolved(&self, own: FsType) -> Result<(Capability, MountOptions)> {
        let (mode, options) = match self.mode {
            RequestedMode::Block => (VolumeMode::Block, MountOptions::default()),
            RequestedMode::Mount(named) => {
                let fs = named.unwrap_or(own);
                (VolumeMode::Mount(fs), self.options.of(fs)?)
            }
        };
        Ok((Capability { mode, access: self.access }, options))
    }

    /// Checks the mount options as far as the filesystem is known: without one, some filesystem must have them all.
    ///
    /// # Errors
    /// `InvalidArgument` for a mount option that is not allowed, without naming it.
    pub(in crate::csi) fn checked(&self) -> Result<()> {
        match self.mode {
            RequestedMode::Block => Ok(()),
            RequestedMode::Mount(Some(fs)) => self.options.of(fs).map(drop),
            RequestedMode::Mount(None) => {
                let [first, others @ ..] = FsType::ALL;
                let refused = self.options.of(first).map(drop);
                refused.or_else(
                    |error| if others.iter().any(|fs| self.options.of(*fs).is_ok()) { Ok(()) } else { Err(error) },
                )
            }
        }
    }
}

fn unsupported(message: String) -> Error {
    Error::new(Kind::Unsupported, message)
}

/// The requested capability, if this driver can serve it.
///
/// # Errors
/// `InvalidArgument` when it is missing or malformed, `Unsupported` when it cannot be served.
pub(in crate::csi) fn asked(capability: Option<&VolumeCapability>) -> Result<RequestedCapability> {
    let capability = capability.ok_or_else(|| missing("volume_capability"))?;
    let access_type = capability.access_type.as_ref().ok_or_else(|| missing("volume_capability.access_type"))?;
    let mode = capability.access_mode.as_ref().ok_or_else(|| missing("volume_capability.access_mode"))?.mode;
    let access = match Mode::try_from(mode) {
        Ok(Mode::SingleNodeWriter) => AccessMode::SingleNodeWriter,
        Ok(Mode::SingleNodeReaderOnly) => AccessMode::SingleNodeReaderOnly,
        Ok(Mode::SingleNodeSingleWriter) => AccessMode::SingleNodeSingleWriter,
        Ok(Mode::SingleNodeMultiWriter) => AccessMode::SingleNodeMultiWriter,
        Ok(Mode::Unknown) => return Err(missing("volume_capability.access_mode.mode")),
        Ok(many @ (Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)) => {
            return Err(unsupported(format!(
                "access mode {} is not served: a volume of this driver is used on one node at a time; use \
                 ReadWriteOnce or ReadWriteOncePod",
                many.as_str_name()
            )));
        }
        Err(_) => return Err(unsupported(format!("access mode {mode} does not exist in CSI 1.13"))),
    };
    match access_type {
        AccessType::Block(_) => {
            Ok(RequestedCapability { mode: RequestedMode::Block, access, options: RequestedOptions::default() })
        }
        AccessType::Mount(mount) => {
            if !mount.volume_mount_group.is_empty() {
                return Err(unsupported(
                    "volume_mount_group is not served: with fsGroupPolicy: File in the CSIDriver, kubelet sets the \
                     group"
                        .to_owned(),
                ));
            }
            let size: usize = mount.mount_flags.iter().map(String::len).sum();
            if size > MAX_MAP {
                return Err(invalid(format!("mount_flags have {size} bytes; at most {MAX_MAP} are allowed")));
            }
            let fs = match mount.fs_type.as_str() {
                "" => None,
                named => Some(named.parse::<FsType>().map_err(|error| error.with_kind(Kind::Unsupported))?),
            };
            let options = RequestedOptions::new(mount.mount_flags.clone());
            Ok(RequestedCapability { mode: RequestedMode::Mount(fs), access, options })
        }
    }
}

/// As [`asked`], for calls where an unsupported capability is the caller's error.
///
/// # Errors
/// `InvalidArgument`.
pub(in crate::csi) fn supported(capability: Option<&VolumeCapability>) -> Result<RequestedCapability> {
    asked(capability).map_err(|error| error.with_kind(Kind::InvalidArgument))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::proto::volume_capability as pb;

    fn capability(access_type: Option<AccessType>, mode: Option<i32>) -> VolumeCapability {
        VolumeCapability { access_type, access_mode: mode.map(|mode| pb::AccessMode { mode }) }
    }

    fn mount(fs: &str, flags: &[&str], group: &str) -> Option<AccessType> {
        Some(AccessType::Mount(pb::MountVolume {
            fs_type: fs.into(),
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            volume_mount_group: group.into(),
        }))
    }

    #[test]
    fn the_table_of_capabilities() {
        let block = || Some(AccessType::Block(pb::BlockVolume {}));
        let rows = [
            (capability(block(), Some(1)), Ok((RequestedMode::Block, AccessMode::SingleNodeWriter))),
            (capability(block(), Some(2)), Ok((RequestedMode::Block, AccessMode::SingleNodeReaderOnly))),
            (
                capability(mount("", &[], ""), Some(6)),
                Ok((RequestedMode::Mount(None), AccessMode::SingleNodeSingleWriter)),
            ),
            (
                capability(mount("xfs", &["noatime"], ""), Some(7)),
                Ok((RequestedMode::Mount(Some(FsType::Xfs)), AccessMode::SingleNodeMultiWriter)),
            ),
            (capability(block(), Some(3)), Err((Kind::Unsupported, "MULTI_NODE_READER_ONLY"))),
            (capability(block(), Some(4)), Err((Kind::Unsupported, "MULTI_NODE_SINGLE_WRITER"))),
            (capability(block(), Some(5)), Err((Kind::Unsupported, "ReadWriteOnce"))),
            (capability(block(), Some(99)), Err((Kind::Unsupported, "99"))),
            (capability(mount("btrfs", &[], ""), Some(1)), Err((Kind::Unsupported, "ext4 or xfs"))),
            (capability(mount("ext4", &[], "1000"), Some(1)), Err((Kind::Unsupported, "fsGroupPolicy"))),
            (capability(block(), Some(0)), Err((Kind::InvalidArgument, "access_mode.mode"))),
            (capability(block(), None), Err((Kind::InvalidArgument, "access_mode"))),
            (capability(None, Some(1)), Err((Kind::InvalidArgument, "access_type"))),
            (capability(mount("", &[&"f".repeat(5000)], ""), Some(1)), Err((Kind::InvalidArgument, "mount_flags"))),
        ];
        for (capability, expected) in rows {
            match (asked(Some(&capability)), expected) {
                (Ok(got), Ok(wanted)) => assert_eq!((got.mode, got.access), wanted),
                (Err(error), Err((kind, word))) => {
                    assert!(error.kind() == kind && error.to_string().contains(word), "{error}");
                    assert_eq!(supported(Some(&capability)).unwrap_err().kind(), Kind::InvalidArgument);
                }
                (got, wanted) => panic!("{got:?} instead of {wanted:?}"),
            }
        }
        assert_eq!(asked(None).unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn mount_flags_are_checked_and_never_shown() {
        let asked = asked(Some(&capability(mount("ext4", &["s3cr3t"], ""), Some(1)))).unwrap();
        assert!(!format!("{asked:?}").contains("s3cr3t"));
        let error = asked.checked().unwrap_err();
        assert!(error.kind() == Kind::InvalidArgument && !error.chain().contains("s3cr3t"), "{error}");
    }

    #[test]
    fn without_a_filesystem_some_filesystem_must_have_the_options() {
        let checked =
            |flags: &[&str]| super::asked(Some(&capability(mount("", flags, ""), Some(1)))).unwrap().checked();
        // Of ext4, of XFS, and of both.
        for known in ["commit=30", "swalloc", "noatime"] {
            assert!(checked(&[known]).is_ok(), "{known}");
        }
        assert_eq!(checked(&["commit=30", "swalloc"]).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(checked(&["noload"]).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
