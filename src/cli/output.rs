//! The output of commands: tables for people, JSON and YAML for programs, colours on a terminal only.
//!
//! Much of the output is text from nodes, controllers and the API server. In tables and sentences, characters that
//! control a terminal or end a line are shown by their number; documents use the escapes of their format.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use holdfast::types::printable;
use serde::Serialize;

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// The first error of writing standard output. Global, as standard output is.
static UNSAID: OnceLock<io::Error> = OnceLock::new();

/// Prints a text unchanged: it is our own, or every foreign part was made printable. A closed pipe is not an error; the
/// command fails with any other error ([`end`]).
pub(crate) fn say_as_is(text: &str) {
    note(writeln!(io::stdout(), "{text}"));
}

fn note(written: io::Result<()>) {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => drop(UNSAID.set(error)),
        _ => {}
    }
}

/// The exit code of a command: the given one, or an error if a part of its output could not be written.
pub(crate) fn end(code: ExitCode) -> ExitCode {
    note(io::stdout().flush());
    let Some(error) = UNSAID.get() else { return code };
    complain(&format!("standard output cannot be written, so the output is incomplete: {error}"));
    ExitCode::from(super::REFUSED)
}

/// Prints a line that may contain foreign text.
pub(crate) fn say(line: &str) {
    say_as_is(&printable(line));
}

/// Prints a line that begins with one of our marks, with or without colour.
pub(crate) fn say_marked(mark: &str, line: &str) {
    say_as_is(&format!("{mark}  {}", printable(line)));
}

/// Prints an error in one line.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "holdfast: {}", printable(line));
}

/// Prints a longer error unchanged.
pub(crate) fn complain_as_is(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Rows under headings, with two spaces between columns and numbers aligned right.
pub(crate) struct Columns {
    table: Table,
}

impl Columns {
    /// An empty table.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
        Self { table }
    }

    /// Adds a row. A cell that begins with a digit is aligned right.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cell = |text: String| {
            let figure = text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(['/', ':']);
            Cell::new(printable(&text)).set_alignment(if figure { CellAlignment::Right } else { CellAlignment::Left })
        };
        self.table.add_row(cells.into_iter().map(|text| cell(text.into())));
    }

    /// Prints it.
    pub(crate) fn print(&mut self) {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in self.table.lines() {
            say_as_is(line.trim_end());
        }
    }
}

/// Prints a document for programs.
///
/// # Errors
/// When the value cannot be written in the format; none of our values causes this.
pub(crate) fn document<T: Serialize>(format: Format, value: &T) -> Result<()> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).context("write YAML")?,
        Format::Json | Format::Table => serde_json::to_string_pretty(value).context("write JSON")?,
    };
    say_as_is(text.trim_end());
    Ok(())
}

/// Whether output has colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// Colours where standard output is a terminal and `NO_COLOR` is not set.
    pub(crate) fn detect() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { on: io::stdout().is_terminal() && !refused }
    }

    fn wrap(self, code: &str, text: &str) -> String {
        let text = printable(text);
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into_owned() }
    }

    /// Success.
    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Failure.
    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// A heading.
    pub(crate) fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// Less important text.
    pub(crate) fn faint(self, text: &str) -> String {
        self.wrap("2", text)
    }
}

/// A number of seconds, in the largest unit that fits.
pub(crate) fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_others_do_not_act_on_the_terminal() {
        let bad = "node\u{1b}]0;x\u{7}\nok  all is well\u{202e}";
        let mut columns = Columns::new(&["node"]);
        columns.row([bad]);
        let lines: Vec<_> = columns.table.lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        let painted = Paint { on: true }.strong(bad);
        let shown = painted.strip_prefix("\x1b[1m").and_then(|rest| rest.strip_suffix("\x1b[0m")).unwrap();
        for text in lines.iter().map(String::as_str).chain([shown]) {
            assert!(text.chars().all(holdfast::types::is_printable), "{text:?}");
        }
    }

    #[test]
    fn ages_are_said_in_the_largest_unit_that_fits() {
        for (seconds, said) in [(-5, "0s"), (90, "90s"), (180, "3m"), (7200, "2h"), (200_000, "2d")] {
            assert_eq!(age(seconds), said);
        }
    }
}
