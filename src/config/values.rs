//! The values flags and file can take.

use std::str::FromStr;

use crate::types::Bytes;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The least important lines that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// An operator must act.
    Error,
    /// Served, but degraded.
    Warn,
    /// A state changed.
    #[default]
    Info,
    /// Steps.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word for it, as `tracing` knows it too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// What stays free on a pool's filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// So many percent of the filesystem, 0 to 90.
    Percent(u8),
    /// So many bytes.
    Bytes(Bytes),
}

impl FromStr for MinFree {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.trim().parse() {
                Ok(percent @ 0..=90) => Ok(Self::Percent(percent)),
                _ => Err("a share is a whole number from 0% to 90%".to_owned()),
            };
        }
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let scale = match unit.trim() {
            "" => 1,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1_u64 << 40,
            _ => return Err("write a share as 20%, or a size as 10Gi".to_owned()),
        };
        let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
        bytes.map(|bytes| Self::Bytes(Bytes::new(bytes))).ok_or("write a share as 20%, or a size as 10Gi".to_owned())
    }
}
