//! Sizes: the result of a request, and the minimum to request for a copy.
//!
//! Sizes are multiples of 1 MiB, and requests are not ("10G" is 10 000 000 000 bytes, which becomes 9 537 MiB). The
//! orchestrator compares the request of a restore with the snapshot's size (external-provisioner: RestoreSize). The
//! snapshot therefore reports the request that gave its source its size, and a copy is compared with the same number. A
//! claim with the same request as the source's claim gets the source's size.

use serde::{Deserialize, Serialize};

use crate::fs;
use crate::types::{Bytes, Capability, CapacityRange, Error, Kind, MIB, Result, VolumeMode};

/// The size of a volume without a requested size.
pub(super) const DEFAULT_SIZE: Bytes = Bytes::mib(1024);
/// The smallest possible volume.
const SMALLEST: Bytes = Bytes::new(MIB);

/// The last request that changed a volume's size, and the resulting size. A release that does not know this field may
/// have grown the volume since: then the sizes differ, and the field does not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeRequest {
    /// Requested bytes.
    pub required: Bytes,
    /// Resulting bytes.
    pub size: Bytes,
}

impl SizeRequest {
    /// A request that resulted in `size`.
    pub(super) fn new(range: &CapacityRange, size: Bytes) -> Self {
        Self { required: range.required.unwrap_or(size).min(size), size }
    }
}

/// The smallest volume with all these capabilities.
pub(super) fn minimum(capabilities: impl IntoIterator<Item = Capability>) -> Bytes {
    let of = |capability: Capability| match capability.mode {
        VolumeMode::Mount(fs) => fs::minimum_size(fs),
        VolumeMode::Block => Bytes::ZERO,
    };
    capabilities.into_iter().map(of).fold(SMALLEST, Bytes::max)
}

/// The smallest request that results in `size` after rounding up to a multiple of 1 MiB: valid for every request that
/// it may have come from.
pub(super) fn least_request(size: Bytes) -> Bytes {
    size.saturating_sub(Bytes::new(MIB - 1)).max(Bytes::new(1))
}

/// The size of a blank volume.
///
/// # Errors
/// `OutOfRange`.
pub(super) fn of_blank(range: &CapacityRange, minimum: Bytes) -> Result<Bytes> {
    range.choose(DEFAULT_SIZE, minimum)
}

/// A size in a pool whose sizes are multiples of `unit`: whole extents of a volume group, for example.
///
/// # Errors
/// `OutOfRange` when the next multiple is more than the limit.
pub(super) fn in_units(size: Bytes, unit: Bytes, range: &CapacityRange) -> Result<Bytes> {
    let rounded = size.get().checked_next_multiple_of(unit.get()).map(Bytes::new);
    let fits =
        |rounded: &Bytes| range.limit.is_none_or(|limit| *rounded <= limit) && i64::try_from(rounded.get()).is_ok();
    rounded.filter(fits).ok_or_else(|| {
        let message = format!(
            "the pool's sizes are multiples of {unit}, and the next one above {} bytes is more than limit_bytes allows; raise the limit",
            size.get()
        );
        Error::new(Kind::OutOfRange, message)
    })
}

/// The size of a copy of `object`, which has `size` bytes and whose copies must request at least `least`.
///
/// # Errors
/// `OutOfRange`.
pub(super) fn of_copy(
    range: &CapacityRange,
    minimum: Bytes,
    object: &dyn std::fmt::Display,
    size: Bytes,
    least: Bytes,
) -> Result<Bytes> {
    let too_small = |next: String| {
        let message = format!("{object} has {} bytes, and a copy cannot be smaller; {next}", size.get());
        Err(Error::new(Kind::OutOfRange, message))
    };
    if range.limit.is_some_and(|limit| limit < size) {
        return too_small("raise limit_bytes".to_owned());
    }
    if range.required.is_some_and(|required| required < least) {
        return too_small(format!("request at least {} bytes", least.get()));
    }
    range.choose(size, minimum.max(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_multiple_of_the_pool_s_unit() {
        let limit = |limit| CapacityRange { required: None, limit };
        let of =
            |size, limit_of| in_units(Bytes::mib(size), Bytes::mib(4), &limit(limit_of)).map_err(|error| error.kind());
        assert_eq!(of(4, None), Ok(Bytes::mib(4)));
        assert_eq!(of(5, None), Ok(Bytes::mib(8)));
        assert_eq!(of(5, Some(Bytes::mib(8))), Ok(Bytes::mib(8)));
        assert_eq!(of(5, Some(Bytes::mib(7))), Err(Kind::OutOfRange));
        assert_eq!(in_units(Bytes::new(u64::MAX), Bytes::mib(4), &limit(None)).unwrap_err().kind(), Kind::OutOfRange);
    }
    use crate::types::{AccessMode, FsType};
    use proptest::prelude::*;

    /// Converts a claim's request into a size as the external-provisioner does: only required_bytes is set, and a
    /// volume smaller than the request is deleted (pkg/controller/controller.go, Provision).
    fn provisioned(size: Bytes, requested: Bytes) -> Bytes {
        assert!(size >= requested, "the provisioner deletes a volume of {size:?} for a claim of {requested:?}");
        size
    }

    /// Whether the external-provisioner accepts a restore: it rejects a request below the snapshot's RestoreSize.
    fn passed_on(requested: Bytes, restore_size: Bytes) -> bool {
        requested >= restore_size
    }

    fn claim(required: u64) -> CapacityRange {
        CapacityRange { required: Some(Bytes::new(required)), limit: None }
    }

    fn of(mode: VolumeMode) -> Bytes {
        minimum([Capability { mode, access: AccessMode::SingleNodeWriter }])
    }

    const MODES: [VolumeMode; 3] = [VolumeMode::Block, VolumeMode::Mount(FsType::Ext4), VolumeMode::Mount(FsType::Xfs)];

    /// A claim, the same after growth, and copies of it with its own request: sizes, and the minimum to request for a
    /// copy.
    fn life(required: u64, grown: u64, mode: VolumeMode) {
        let minimum = of(mode);
        let mut range = claim(required);
        let mut size = provisioned(of_blank(&range, minimum).unwrap(), Bytes::new(required));
        for wanted in [required, grown] {
            range = claim(wanted.max(required));
            if wanted > size.get() {
                size = provisioned(range.choose(size, Bytes::ZERO).unwrap(), Bytes::new(wanted));
            }
            let known = SizeRequest::new(&range, size).required;
            let requested = range.required.unwrap();
            for least in [known, least_request(size)] {
                // If a filesystem's minimum made it larger, only the request itself is exact.
                if least == least_request(size) && requested < least {
                    assert!(size == minimum && known == requested);
                    continue;
                }
                assert!(
                    passed_on(requested, least),
                    "{mode}: a claim of {requested:?} has a restore size of {least:?}"
                );
                let copy = of_copy(&range, minimum, &"it", size, least).unwrap();
                assert_eq!(provisioned(copy, requested), size, "{mode}: a copy at its own request is as large");
                let copy_of_copy = of_copy(&range, minimum, &"it", copy, SizeRequest::new(&range, copy).required);
                assert_eq!(copy_of_copy.unwrap(), size);
            }
        }
    }

    #[test]
    fn a_claim_can_be_copied_at_its_own_request_whatever_it_is() {
        for mode in MODES {
            for required in [1, MIB - 1, MIB, MIB + 1, 10_000_000_000, 1_000_000_000, 10 << 30, (10 << 30) + 1] {
                for grown in [0, 12_345_678_901, 20_000_000_000, 20 << 30] {
                    life(required, grown, mode);
                }
            }
        }
    }

    #[test]
    fn a_copy_that_asks_for_less_is_refused_and_told_how_much_to_ask_for() {
        let (size, least) = (Bytes::mib(9537), Bytes::new(10_000_000_000));
        let of =
            |range: CapacityRange| of_copy(&range, SMALLEST, &"snapshot s", size, least).map_err(|e| e.to_string());
        assert_eq!(of(claim(10_000_000_000)), Ok(size));
        let said = of(claim(9_999_999_999)).unwrap_err();
        assert!(said.contains("10000000000") && said.contains("snapshot s"), "{said}");
        assert_eq!(of(claim(20 << 30)), Ok(Bytes::mib(20 << 10)));
        assert_eq!(of(CapacityRange::default()), Ok(size));
        let limited = CapacityRange { required: None, limit: Some(Bytes::new(10_000_000_000)) };
        assert!(of(limited).unwrap_err().contains("limit_bytes"));
    }

    proptest! {
        #[test]
        fn any_claim_can_be_copied_at_its_own_request(required in 1..(64_u64 << 40), grown in 0..(64_u64 << 40)) {
            for mode in MODES {
                life(required, grown, mode);
            }
        }
    }
}
