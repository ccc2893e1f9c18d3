//! Sizes: whole bytes, never negative, printed with a unit.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Error, Kind, Result};

/// One MiB, the granularity of every volume size.
pub const MIB: u64 = 1 << 20;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

impl Bytes {
    /// Zero bytes.
    pub const ZERO: Self = Self(0);

    /// This number of bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// This number of MiB.
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib * MIB)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as CSI's signed field; sizes over `i64::MAX` are cut to it.
    #[must_use]
    pub fn to_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// `self - other`, or zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self + other`, or the maximum.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Rounded up to a whole number of MiB; `None` when that does not fit.
    #[must_use]
    pub fn round_up_mib(self) -> Option<Self> {
        self.0.checked_next_multiple_of(MIB).map(Self)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        for (unit, size) in UNITS {
            if self.0 >= size {
                let whole = self.0 / size;
                let tenth = self.0 % size * 10 / size;
                return if tenth == 0 { write!(f, "{whole} {unit}") } else { write!(f, "{whole}.{tenth} {unit}") };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// CSI's CapacityRange: at least `required`, at most `limit`; either may be absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapacityRange {
    /// The volume must be at least this big.
    pub required: Option<Bytes>,
    /// The volume must not be bigger than this.
    pub limit: Option<Bytes>,
}

impl CapacityRange {
    /// Whether an existing size satisfies the range.
    #[must_use]
    pub fn contains(&self, size: Bytes) -> bool {
        self.required.is_none_or(|required| size >= required) && self.limit.is_none_or(|limit| size <= limit)
    }

    /// The size of the volume: `required` or `default`, at least `minimum`, rounded up to a MiB, within the limit.
    ///
    /// # Errors
    /// [`Kind::OutOfRange`] when the limit is below the rounded size or the minimum.
    pub fn choose(&self, default: Bytes, minimum: Bytes) -> Result<Bytes> {
        let wanted = match (self.required, self.limit) {
            (Some(required), _) => required,
            (None, Some(limit)) => default.min(limit),
            (None, None) => default,
        };
        let too_big =
            || Error::new(Kind::OutOfRange, format!("a volume of {} bytes is too large; request less", wanted.get()));
        let size = wanted.max(minimum).round_up_mib().ok_or_else(too_big)?;
        if i64::try_from(size.get()).is_err() {
            return Err(too_big());
        }
        match self.limit {
            Some(limit) if size > limit && self.required.is_none() => {
                // Only a limit was given: use the largest whole MiB below it, unless that is below the minimum.
                let floor = Bytes::new(limit.get() / MIB * MIB);
                if floor >= minimum && floor > Bytes::ZERO { Ok(floor) } else { Err(Self::over(size, limit)) }
            }
            Some(limit) if size > limit => Err(Self::over(size, limit)),
            _ => Ok(size),
        }
    }

    fn over(size: Bytes, limit: Bytes) -> Error {
        Error::new(
            Kind::OutOfRange,
            format!(
                "the volume would have {} bytes (whole MiB, at least the filesystem's minimum), more than limit_bytes {}; raise the limit",
                size.get(),
                limit.get()
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(required: Option<u64>, limit: Option<u64>) -> CapacityRange {
        CapacityRange { required: required.map(Bytes::new), limit: limit.map(Bytes::new) }
    }

    #[test]
    fn sizes_are_rounded_up_then_held_against_the_limit() {
        let (default, minimum) = (Bytes::mib(1024), Bytes::mib(16));
        let choose = |r: CapacityRange| r.choose(default, minimum).map_err(|e| e.kind());
        assert_eq!(choose(range(None, None)), Ok(default));
        assert_eq!(choose(range(Some(20 * MIB), Some(20 * MIB))), Ok(Bytes::mib(20)));
        assert_eq!(choose(range(Some(20 * MIB + 1), None)), Ok(Bytes::mib(21)));
        assert_eq!(choose(range(Some(20 * MIB + 1), Some(20 * MIB + 2))), Err(Kind::OutOfRange));
        assert_eq!(choose(range(Some(1), None)), Ok(minimum));
        assert_eq!(choose(range(Some(1), Some(2))), Err(Kind::OutOfRange));
        assert_eq!(choose(range(None, Some(100 * MIB + 5))), Ok(Bytes::mib(100)));
        assert_eq!(choose(range(None, Some(5))), Err(Kind::OutOfRange));
        assert_eq!(choose(range(Some(u64::MAX), None)), Err(Kind::OutOfRange));
        assert_eq!(choose(range(Some(i64::MAX.unsigned_abs()), None)), Err(Kind::OutOfRange));
    }

    #[test]
    fn printed_as_a_person_would() {
        assert_eq!(Bytes::new(512).to_string(), "512 B");
        assert_eq!(Bytes::mib(1536).to_string(), "1.5 GiB");
        assert_eq!(Bytes::mib(300).to_string(), "300 MiB");
    }
}
