//! How full a pool may get: the operator's limits for each pool.

use std::fmt;
use std::str::FromStr;

use crate::types::{Bytes, Error, Kind, MIB, Result};

/// A pool's limits (docs/design.md section 9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceLimits {
    /// The highest ratio of provisioned size to usable capacity.
    pub overcommit: Overcommit,
    /// The space that always stays free.
    pub min_free: MinFree,
}

/// A factor of at least 0.1 with at most three decimals; 1.0 by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overcommit {
    thousandths: u32,
}

impl Overcommit {
    /// `bytes` times the factor.
    #[must_use]
    pub fn times(self, bytes: Bytes) -> Bytes {
        let product = u128::from(bytes.get()) * u128::from(self.thousandths) / 1000;
        Bytes::new(u64::try_from(product).unwrap_or(u64::MAX))
    }

    /// Whether reserved space is guaranteed: no more is reserved than exists.
    #[must_use]
    pub fn is_honest(self) -> bool {
        self.thousandths <= 1000
    }
}

impl Default for Overcommit {
    fn default() -> Self {
        Self { thousandths: 1000 }
    }
}

impl fmt::Display for Overcommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.thousandths / 1000, self.thousandths % 1000)
    }
}

impl FromStr for Overcommit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            Error::new(
                Kind::InvalidArgument,
                format!(
                    "overcommit {text:?} is not valid: use a factor from 0.1 to 100 with at most three decimals, such as 1.5"
                ),
            )
        };
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str| !s.is_empty() && s.len() <= 3 && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(decimals) {
            return Err(refused());
        }
        let whole: u32 = whole.parse().map_err(|_| refused())?;
        let thousandths: u32 = format!("{decimals:0<3}").parse().map_err(|_| refused())?;
        let thousandths = whole * 1000 + thousandths;
        if (100..=100_000).contains(&thousandths) { Ok(Self { thousandths }) } else { Err(refused()) }
    }
}

/// The free space that is kept on a pool's filesystem: a percentage or a number of bytes; 20 % by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// Percent of the whole.
    Percent(u8),
    /// A number of bytes.
    Bytes(Bytes),
}

impl MinFree {
    /// The bytes, on a filesystem of this size.
    #[must_use]
    pub fn of(self, total: Bytes) -> Bytes {
        match self {
            Self::Percent(percent) => Bytes::new(total.get() / 100 * u64::from(percent)),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Default for MinFree {
    fn default() -> Self {
        Self::Percent(20)
    }
}

impl fmt::Display for MinFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

impl FromStr for MinFree {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            Error::new(
                Kind::InvalidArgument,
                format!("minFree {text:?} is not valid: use a percentage from 0% to 95% or a size such as 10GiB"),
            )
        };
        if let Some(percent) = text.strip_suffix('%') {
            let percent: u8 = percent.trim().parse().map_err(|_| refused())?;
            return if percent <= 95 { Ok(Self::Percent(percent)) } else { Err(refused()) };
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits).ok_or_else(refused)?;
        let shift = match unit.trim() {
            "" | "B" => 0,
            "Ki" | "KiB" => 10,
            "Mi" | "MiB" => 20,
            "Gi" | "GiB" => 30,
            "Ti" | "TiB" => 40,
            _ => return Err(refused()),
        };
        let number: u64 = number.parse().map_err(|_| refused())?;
        if unit.trim().is_empty() && (1..MIB).contains(&number) {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!(
                    "minFree {text:?} would be {number} bytes: set {number}% for a percentage of the pool's filesystem, or a size with its unit such as {number}GiB; for so few bytes write {number}B"
                ),
            ));
        }
        number.checked_mul(1 << shift).map(|bytes| Self::Bytes(Bytes::new(bytes))).ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_exact() {
        let times = |text: &str| text.parse::<Overcommit>().unwrap().times(Bytes::mib(1000));
        assert_eq!(times("1.0"), Bytes::mib(1000));
        assert_eq!(times("1.5"), Bytes::mib(1500));
        assert_eq!(times("2"), Bytes::mib(2000));
        assert_eq!(times("0.125"), Bytes::mib(125));
        for bad in ["", "0", "-1", "1.2345", "1e3", "x", "1.", "200"] {
            assert!(bad.parse::<Overcommit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_and_sizes() {
        assert_eq!(
            "20%".parse::<MinFree>().unwrap().of(Bytes::mib(1000)),
            Bytes::new(Bytes::mib(1000).get() / 100 * 20)
        );
        assert_eq!("10GiB".parse::<MinFree>().unwrap(), MinFree::Bytes(Bytes::mib(10240)));
        assert_eq!("0".parse::<MinFree>().unwrap(), MinFree::Bytes(Bytes::ZERO));
        assert_eq!("20B".parse::<MinFree>().unwrap(), MinFree::Bytes(Bytes::new(20)));
        assert_eq!("10737418240".parse::<MinFree>().unwrap(), "10GiB".parse().unwrap());
        for bare in ["1", "20", "1048575"] {
            let said = bare.parse::<MinFree>().unwrap_err().to_string();
            assert!(said.contains(&format!("{bare}%")) && said.contains(&format!("{bare}GiB")), "{said}");
        }
        for bad in ["", "%", "96%", "10GB", "-5", "99999999999TiB"] {
            assert!(bad.parse::<MinFree>().is_err(), "{bad}");
        }
    }
}
