//! Log levels.

/// The lowest level of log lines that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// An operator must act.
    Error,
    /// The driver serves, but degraded.
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
    /// Its name, which `tracing` knows too.
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
