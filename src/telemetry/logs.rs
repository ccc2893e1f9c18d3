//! One line per state change, on standard error, as text for people or JSON for machines; times are RFC 3339 in UTC.
//!
//! Messages and fields may contain foreign text (from nodes, kubelet, the API server, any client). In text format,
//! characters that control a terminal or end a line are shown by their number. JSON has its own escapes.

use std::fmt::{self, Debug};
use std::io::IsTerminal;
use std::str::FromStr;

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt as lines, registry};

use crate::types::{Error, Kind, Result, printable};

/// Message and fields as text: `message name=value name="text"`; every character is printable.
#[derive(Clone, Copy, Debug, Default)]
struct Printable;

impl<'w> FormatFields<'w> for Printable {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_first: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, field: &Field, value: &str) {
        if self.result.is_err() {
            return;
        }
        let space = if std::mem::take(&mut self.is_first) { "" } else { " " };
        let value = printable(value);
        self.result = match field.name() {
            "message" => write!(self.writer, "{space}{value}"),
            name => write!(self.writer, "{space}{}={value}", name.strip_prefix("r#").unwrap_or(name)),
        };
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.write(field, value),
            _ => self.write(field, &format!("{value:?}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, &format!("{value:?}"));
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal only.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(Error::new(Kind::InvalidArgument, format!("log format {text:?} is unknown; use text or json"))),
        }
    }
}

/// Starts logging for the whole process. `level` is `error`, `warn`, `info`, `debug` or `trace`, or a list of
/// levels of modules such as `info,holdfast::home=debug`.
///
/// # Errors
/// `InvalidArgument` for a level that does not parse, `Precondition` when logging was started before.
pub fn init_logs(format: LogFormat, level: &str) -> Result<()> {
    let filter = filter(level)?;
    let started = match format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let lines = lines::layer().fmt_fields(Printable).with_ansi(colours).with_writer(std::io::stderr);
            registry().with(lines).with(filter).try_init()
        }
        LogFormat::Json => {
            let lines = lines::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
            registry().with(lines.with_writer(std::io::stderr)).with(filter).try_init()
        }
    };
    started.map_err(|error| Error::new(Kind::Precondition, "logging was started twice").because(error))
}

/// The directives of `level`. Libraries log warnings only, unless they are named. kube logs nothing: its warnings quote
/// complete answers of the API server, which may contain a Secret or a token.
fn filter(level: &str) -> Result<Targets> {
    let quiet = ["h2", "hyper", "hyper_util", "tonic", "tower"].map(|library| format!("{library}=warn")).join(",");
    let directives = if level.trim().is_empty() { "info" } else { level };
    format!("{quiet},kube_client=off,{directives}").parse().map_err(|error: tracing_subscriber::filter::ParseError| {
        Error::new(
            Kind::InvalidArgument,
            format!("log level {level:?} is invalid; use error, warn, info, debug or trace"),
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

    #[derive(Clone, Default)]
    struct Written(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_words_of_others_stay_on_their_line_and_do_not_act_on_the_terminal() {
        let written = Written::default();
        let writer = written.clone();
        let lines = lines::layer().fmt_fields(Printable).with_ansi(false).with_writer(move || writer.clone());
        let subscriber = registry().with(lines).with(filter("info").unwrap());
        let bad = "a\u{1b}[2J\u{7}\n2026-01-01T00:00:00Z  INFO all is well\u{202e}";
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("call", volume = %bad).entered();
            tracing::warn!(node = %bad, error = bad, seconds = 7, "refused: {bad}");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(text.trim_end().chars().all(crate::types::is_printable), "{text:?}");
        for part in
            ["WARN call{volume=a\\u{1b}[2J", ": refused: a\\u{1b}[2J\\u{7}\\n2026", "seconds=7", "error=\"a\\u{1b}"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
