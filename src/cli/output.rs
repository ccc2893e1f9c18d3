//! How commands speak: tables for people, JSON and YAML for programs, colours on a terminal only.
//!
//! What is shown are often the words of others: nodes, controllers, the API server. In tables and sentences whatever could act on the
//! terminal or begin a line of its own is shown by its number; documents have the escapes of their format.

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

/// Why standard output could not be written, the first time: it is the process's, and so is this.
static UNSAID: OnceLock<io::Error> = OnceLock::new();

/// Prints a text as it is: it is ours, or every foreign part of it was made printable. A reader that went away is no
/// error; another one is what the command ends with ([`end`]).
pub(crate) fn say_as_is(text: &str) {
    note(writeln!(io::stdout(), "{text}"));
}

fn note(written: io::Result<()>) {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => drop(UNSAID.set(error)),
        _ => {}
    }
}

/// The exit code of a command that came to its end: not its own when something of what it printed is missing.
pub(crate) fn end(code: ExitCode) -> ExitCode {
    note(io::stdout().flush());
    let Some(error) = UNSAID.get() else { return code };
    complain(&format!("standard output cannot be written, so what was printed is not complete: {error}"));
    ExitCode::from(super::REFUSED)
}

/// Prints a line that may hold words of others.
pub(crate) fn say(line: &str) {
    say_as_is(&printable(line));
}

/// Prints a line that begins with a mark of ours, in colours or not.
pub(crate) fn say_marked(mark: &str, line: &str) {
    say_as_is(&format!("{mark}  {}", printable(line)));
}

/// Prints a complaint in one line.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "holdfast: {}", printable(line));
}

/// Prints a longer complaint as it is.
pub(crate) fn complain_as_is(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Rows under headings, two spaces between columns, numbers to the right where `right` names the column.
pub(crate) struct Columns {
    table: Table,
}

impl Columns {
    /// An empty table.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
        Self { table }
    }

    /// Adds a row; figures begin with a digit and stand to the right.
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
/// When it cannot be written in the format, which no value of ours causes.
pub(crate) fn document<T: Serialize>(format: Format, value: &T) -> Result<()> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).context("write YAML")?,
        Format::Json | Format::Table => serde_json::to_string_pretty(value).context("write JSON")?,
    };
    say_as_is(text.trim_end());
    Ok(())
}

/// Colours, or none.
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

    /// Something went well.
    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Something went wrong.
    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// A heading.
    pub(crate) fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// Less important.
    pub(crate) fn faint(self, text: &str) -> String {
        self.wrap("2", text)
    }
}

/// Seconds as a person says them, in the largest unit that fits.
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
