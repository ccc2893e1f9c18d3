//! The YAML file of `--config`.

use std::path::Path;

use serde::Deserialize;

use super::refuse;
use crate::types::{Result, nearest};

/// The configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct File {
    pub(super) endpoint: Option<String>,
    pub(super) node_name: Option<String>,
    pub(super) pools: Vec<PoolEntry>,
    pub(super) metrics: Option<String>,
    pub(super) log: LogEntry,
    pub(super) listen: Option<String>,
    pub(super) advertise: Option<String>,
    pub(super) controllers: Vec<String>,
    pub(super) fabric: Option<String>,
    pub(super) fabric_address: Option<String>,
    pub(super) fabric_ports: Option<String>,
    pub(super) state_directory: Option<String>,
    pub(super) tls: TlsEntry,
    pub(super) heartbeat: Option<String>,
    pub(super) lost_homes: Vec<String>,
    pub(super) pod_events: bool,
    pub(super) kubelet_registration: Option<String>,
    pub(super) kubelet_endpoint: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct TlsEntry {
    pub(super) directory: Option<String>,
    pub(super) auto: Option<AutoEntry>,
    pub(super) insecure_plain_text: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct AutoEntry {
    pub(super) authority: Option<String>,
    pub(super) listen: Option<String>,
    pub(super) account: Option<String>,
    pub(super) certificate_life: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) token: Option<String>,
    pub(super) servers: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct PoolEntry {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) overcommit: Option<f64>,
    pub(super) min_free: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogEntry {
    pub(super) format: Option<String>,
    pub(super) level: Option<String>,
}

impl File {
    /// Parses the text of a configuration file; `name` is its name in messages.
    ///
    /// # Errors
    /// `InvalidArgument` with file, line and key; for an unknown key also the nearest known one.
    pub fn parse(name: &Path, text: &str) -> Result<Self> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| {
            let plain = error.without_snippet();
            let sentence = plain.to_string();
            let line = plain.location().map(|at| at.line());
            let (line, reason) = match UnknownKey::parse(&sentence) {
                Some(unknown) => (unknown.line(text, line), unknown.sentence()),
                None => (line, strip_location(&sentence).to_owned()),
            };
            let line = line.map(|line| format!(" line {line}")).unwrap_or_default();
            refuse(format!("{}{line}: {reason}", name.display()))
        })
    }
}

/// Removes the position at the end of a parser message; our messages begin with it.
fn strip_location(sentence: &str) -> &str {
    let first = sentence.lines().next().unwrap_or_default();
    first.split(" at line ").next().unwrap_or(first)
}

/// The parts of serde's "unknown field `polls`, expected one of endpoint, nodeName".
struct UnknownKey<'a> {
    key: &'a str,
    known: Vec<&'a str>,
}

impl<'a> UnknownKey<'a> {
    fn parse(sentence: &'a str) -> Option<Self> {
        let (_, rest) = sentence.split_once("unknown field `")?;
        let (key, rest) = rest.split_once('`')?;
        let (_, known) = strip_location(rest).split_once("one of ")?;
        Some(Self { key, known: known.split(", ").collect() })
    }

    fn sentence(&self) -> String {
        match nearest(self.key, self.known.iter().copied()) {
            Some(near) => format!("the key {:?} is unknown; did you mean {near:?}?", self.key),
            None => format!("the key {:?} is unknown; the known ones here are {}", self.key, self.known.join(", ")),
        }
    }

    /// The parser reports the line where the enclosing mapping begins; the key is on that line or below.
    fn line(&self, text: &str, from: Option<u64>) -> Option<u64> {
        let from = from?;
        let is_key = |line: &str| {
            let line = line.trim_start().trim_start_matches("- ").trim_start();
            line.strip_prefix(self.key).is_some_and(|rest| rest.trim_start().starts_with(':'))
        };
        (1..)
            .zip(text.lines())
            .find(|(number, line)| *number >= from && is_key(line))
            .map_or(Some(from), |(n, _)| Some(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<File> {
        File::parse(Path::new("h.yaml"), text)
    }

    fn said(result: Result<File>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_in_the_file_names_line_and_nearest_key() {
        let sentence = said(file("nodeName: a\npolls: []\n"));
        assert!(sentence.starts_with("h.yaml line 2: "), "{sentence}");
        assert!(sentence.contains("\"polls\"") && sentence.contains("did you mean \"pools\""), "{sentence}");
        let inner = said(file("pools:\n  - name: a\n    path: /a\n    min_free: 1Gi\n"));
        assert!(inner.contains("line 4") && inner.contains("\"minFree\""), "{inner}");
        let far = said(file("zzzzzzzzzzzz: 1\n"));
        assert!(far.contains("the known ones here are endpoint"), "{far}");
        for text in ["pools: 7\n", "endpoint: [\n", "- a\n", "pools:\n  - name: a\n"] {
            let sentence = said(file(text));
            assert!(sentence.starts_with("h.yaml") && !sentence.contains('\n'), "{sentence:?}");
        }
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert!(file("").is_ok() && file("# only a comment\n\n").is_ok());
    }
}
