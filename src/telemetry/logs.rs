//! One line a state change, on standard error, as text for people or JSON for machines; times are RFC 3339 in UTC.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;
use tracing_subscriber::fmt::format::{DefaultFields, Format};

use crate::types::{Error, Kind, Result};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal only.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(Error::new(Kind::InvalidArgument, format!("log format {text:?} is not known; use text or json"))),
        }
    }
}

/// Starts logging for the whole process. `level` is `error`, `warn`, `info`, `debug` or `trace`, or a list of
/// tracing-subscriber's directives such as `info,holdfast::home=debug`.
///
/// # Errors
/// `InvalidArgument` for a level that does not parse, `Precondition` when logging was started before.
pub fn init_logs(format: LogFormat, level: &str) -> Result<()> {
    let filter = filter(level)?;
    let started = match format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder(filter).with_ansi(colours).with_writer(std::io::stderr).try_init()
        }
        LogFormat::Json => builder(filter)
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .try_init(),
    };
    started.map_err(|error| Error::new(Kind::Precondition, "logging was started twice").because(error))
}

fn builder(filter: EnvFilter) -> SubscriberBuilder<DefaultFields, Format, EnvFilter> {
    tracing_subscriber::fmt().with_env_filter(filter).with_target(true)
}

/// The directives of `level`; the libraries below us say warnings only, unless they are named. kube says nothing: its
/// warnings quote whole answers of the API server, which may be a Secret or hold a token.
fn filter(level: &str) -> Result<EnvFilter> {
    let quiet = ["h2", "hyper", "hyper_util", "tonic", "tower"].map(|library| format!("{library}=warn")).join(",");
    let directives = if level.trim().is_empty() { "info" } else { level };
    EnvFilter::try_new(format!("{quiet},kube_client=off,{directives}")).map_err(|error| {
        Error::new(
            Kind::InvalidArgument,
            format!("log level {level:?} is not understood; use error, warn, info, debug or trace"),
        )
        .because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_formats_are_read() {
        for level in ["", "info", "debug", "warn,holdfast::home=trace"] {
            assert!(filter(level).is_ok(), "{level}");
        }
        assert_eq!(filter("loud,,=x").unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
        assert!("xml".parse::<LogFormat>().unwrap_err().to_string().contains("text or json"));
    }
}
