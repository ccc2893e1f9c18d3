//! Flags, file and environment -> one validated [`Config`]. Pure: reads no file, no variable, no clock.
//!
//! Flags override the file, and the file overrides the environment. Every error names the setting, the reason and the
//! next step.

mod auto;
mod cluster;
mod file;
mod flags;
mod kubelet;
mod level;
mod places;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use auto::{EnrolConfig, SigningConfig};
pub use cluster::{ControllerConfig, ExportAddress, FabricConfig, NodeConfig, TlsMode};
pub use file::File;
use file::PoolEntry;
pub use flags::{DaemonFlags, EnrolFlags, Flags, KubeletFlags, NodeFlags, SigningFlags, WireFlags};
pub use level::LogLevel;
pub use places::{Place, apart, resolved};

use crate::home::SpaceLimits;
use crate::kubelet::Registration;
use crate::pool::{PoolKind, PoolSpec};
use crate::telemetry::LogFormat;
use crate::types::{Error, Kind, NodeId, PoolName, Result};

/// The environment variable for an endpoint that neither a flag nor the file sets.
pub const ENDPOINT_VARIABLE: &str = "CSI_ENDPOINT";
/// The same for the name of the node.
pub const NODE_VARIABLE: &str = "NODE_NAME";

/// One pool to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name, kind and location.
    pub spec: PoolSpec,
    /// Its space limits.
    pub limits: SpaceLimits,
}

impl PoolConfig {
    /// Its directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        let PoolKind::File { root, .. } = &self.spec.kind;
        root
    }

    fn from_flag(text: &str) -> Result<Self> {
        let spec = text.parse().map_err(|error: Error| refuse(format!("--pool {text}: {error}")))?;
        Ok(Self { spec, limits: SpaceLimits::default() })
    }

    fn from_entry(entry: &PoolEntry) -> Result<Self> {
        let wrong = |error: Error| refuse(format!("pool {:?} in the configuration file: {error}", entry.name));
        let mut limits = SpaceLimits::default();
        if let Some(factor) = entry.overcommit {
            limits.overcommit = factor.to_string().parse().map_err(wrong)?;
        }
        if let Some(text) = &entry.min_free {
            limits.min_free = text.parse().map_err(wrong)?;
        }
        let name: PoolName = entry.name.parse().map_err(wrong)?;
        Ok(Self { spec: PoolSpec::file(name, Path::new(&entry.path)).map_err(wrong)?, limits })
    }
}

/// The settings of every daemon: socket, metrics and log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The Unix socket's path.
    pub socket: PathBuf,
    /// The address of metrics and health, if they are served.
    pub metrics: Option<SocketAddr>,
    /// The format of the log.
    pub log_format: LogFormat,
    /// The level of the log.
    pub log_level: LogLevel,
}

/// The validated configuration of `holdfast standalone`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The socket and the log.
    pub serving: Serving,
    /// This node.
    pub node: NodeId,
    /// The pools, at least one.
    pub pools: Vec<PoolConfig>,
    /// How it registers with kubelet, if it does.
    pub registration: Option<Registration>,
}

impl Serving {
    fn resolve(flags: &Flags, file: &File, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let endpoint =
            pick(&flags.daemon.endpoint, "--endpoint", &file.endpoint, "endpoint", ENDPOINT_VARIABLE, environment)
                .ok_or_else(|| refuse("no endpoint: set --endpoint unix:///run/holdfast/csi.sock (or CSI_ENDPOINT)"))?;
        let metrics = pick(&flags.daemon.metrics, "--metrics", &file.metrics, "metrics", "", |_| None);
        let format = pick(&flags.daemon.log_format, "--log-format", &file.log.format, "log.format", "", |_| None);
        let level = pick(&flags.daemon.log_level, "--log-level", &file.log.level, "log.level", "", |_| None);
        Ok(Self {
            socket: socket(&endpoint)?,
            metrics: metrics.map(|said| listen(&said)).transpose()?,
            log_format: format.map(|said| log_format(&said)).transpose()?.unwrap_or_default(),
            log_level: level.map(|said| log_level(&said)).transpose()?.unwrap_or_default(),
        })
    }
}

impl Config {
    /// Combines flags, file and environment.
    ///
    /// # Errors
    /// `InvalidArgument` with the missing or wrong setting and its source.
    pub fn resolve(flags: &Flags, file: &File, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let serving = Serving::resolve(flags, file, &environment)?;
        let registration = kubelet::registration(flags, file, &serving.socket)?;
        Ok(Self {
            serving,
            node: node_name(flags, file, &environment)?,
            pools: pools(&flags.pools, file)?,
            registration,
        })
    }
}

/// The name of this node in the orchestrator.
fn node_name(flags: &Flags, file: &File, environment: impl Fn(&str) -> Option<String>) -> Result<NodeId> {
    let said = pick(&flags.node_name, "--node-name", &file.node_name, "nodeName", NODE_VARIABLE, environment)
        .ok_or_else(|| refuse("no node name: set --node-name NAME (or NODE_NAME)"))?;
    NodeId::from_node_name(&said.text).map_err(|error| refuse(format!("{}: {error}", said.place)))
}

/// A value and its source.
struct Said {
    text: String,
    place: String,
}

fn pick(
    flag: &Option<String>,
    flag_name: &str,
    file: &Option<String>,
    key: &str,
    variable: &str,
    environment: impl Fn(&str) -> Option<String>,
) -> Option<Said> {
    let said = |text: &String, place: String| Said { text: text.clone(), place };
    flag.as_ref().map(|text| said(text, flag_name.to_owned())).or_else(|| {
        file.as_ref().map(|text| said(text, format!("{key} in the configuration file"))).or_else(|| {
            let text = environment(variable).filter(|text| !text.is_empty())?;
            Some(Said { text, place: format!("the environment variable {variable}") })
        })
    })
}

/// The path in `unix:///PATH`.
///
/// # Errors
/// `InvalidArgument` for everything else.
pub fn socket_path(text: &str) -> Result<PathBuf> {
    socket(&Said { text: text.to_owned(), place: "--controller".to_owned() })
}

fn socket(said: &Said) -> Result<PathBuf> {
    let text = said.text.as_str();
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
    let wrong = |reason: &str| {
        refuse(format!("{}: {text:?} is not an endpoint: {reason}; write unix:///run/holdfast/csi.sock", said.place))
    };
    if text.contains("://") && !text.starts_with("unix://") {
        return Err(wrong("only Unix sockets are supported"));
    }
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(wrong("it must be the absolute path of a socket"));
    }
    if path.chars().any(char::is_control) {
        return Err(wrong("the path of a socket must not contain control characters"));
    }
    // sun_path of unix(7): 108 bytes with its terminator.
    if path.len() > 107 {
        return Err(wrong("the path of a socket has at most 107 bytes"));
    }
    Ok(PathBuf::from(path))
}

fn listen(said: &Said) -> Result<SocketAddr> {
    said.text.parse().map_err(|_| {
        refuse(format!("{}: {:?} is not an address and port; write 127.0.0.1:9808", said.place, said.text))
    })
}

fn log_format(said: &Said) -> Result<LogFormat> {
    said.text.parse().map_err(|error: Error| refuse(format!("{}: {error}", said.place)))
}

fn log_level(said: &Said) -> Result<LogLevel> {
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
    levels.into_iter().find(|level| level.as_str() == said.text).ok_or_else(|| {
        refuse(format!("{}: {:?} is not a log level; use error, warn, info, debug or trace", said.place, said.text))
    })
}

/// The pools of `--pool` and file: any `--pool` replaces the file's list, and keeps the limits that the file has for that
/// name.
///
/// # Errors
/// `InvalidArgument`: no pool, one that is not `NAME=file:DIR`, a repeated name or directory, one inside another.
pub fn pools(flags: &[String], file: &File) -> Result<Vec<PoolConfig>> {
    let from_file = file.pools.iter().map(PoolConfig::from_entry).collect::<Result<Vec<_>>>()?;
    let pools = if flags.is_empty() {
        from_file
    } else {
        let with_limits = |text: &String| {
            let pool = PoolConfig::from_flag(text)?;
            Ok(match from_file.iter().find(|other| other.spec.name == pool.spec.name) {
                Some(known) => PoolConfig { limits: known.limits, ..pool },
                None => pool,
            })
        };
        flags.iter().map(with_limits).collect::<Result<Vec<_>>>()?
    };
    if pools.is_empty() {
        return Err(refuse("no pool: set --pool NAME=file:DIR, or list pools in the file given with --config"));
    }
    let mut rest = pools.as_slice();
    while let Some((pool, others)) = rest.split_first() {
        for other in others {
            if pool.spec.name == other.spec.name {
                return Err(refuse(format!("pool {} is given twice; give each pool its own name", pool.spec.name)));
            }
            if pool.root().starts_with(other.root()) || other.root().starts_with(pool.root()) {
                return Err(refuse(format!(
                    "the directories of pools {} and {} overlap; give each pool its own directory",
                    pool.spec, other.spec
                )));
            }
        }
        rest = others;
    }
    Ok(pools)
}

fn refuse(sentence: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, sentence.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::MinFree;
    use crate::types::Bytes;

    fn flags(pools: &[&str]) -> Flags {
        Flags {
            node_name: Some("n1".into()),
            pools: pools.iter().map(|p| (*p).to_owned()).collect(),
            daemon: DaemonFlags { endpoint: Some("unix:///run/h.sock".into()), ..DaemonFlags::default() },
            ..Flags::default()
        }
    }

    fn file(text: &str) -> Result<File> {
        File::parse(Path::new("h.yaml"), text)
    }

    fn said<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    const WHOLE: &str = "endpoint: unix:///f.sock\nnodeName: from-file\npools:\n  - name: a\n    path: /pools/a\n    overcommit: 1.5\n    minFree: 10Gi\nmetrics: 127.0.0.1:9808\nlog: {format: json, level: debug}\n";

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_environment() {
        let environment = |name: &str| Some(format!("/env/{name}"));
        let file = file(WHOLE).unwrap();
        let all = Config::resolve(&flags(&["b=file:/pools/b"]), &file, environment).unwrap();
        assert_eq!((all.serving.socket.to_str().unwrap(), all.node.as_str()), ("/run/h.sock", "n1"));
        assert_eq!(all.pools.len(), 1);
        assert_eq!(all.pools[0].root(), Path::new("/pools/b"));
        let from_file = Config::resolve(&Flags::default(), &file, environment).unwrap();
        assert_eq!((from_file.serving.socket.to_str().unwrap(), from_file.node.as_str()), ("/f.sock", "from-file"));
        assert_eq!((from_file.serving.log_format, from_file.serving.log_level), (LogFormat::Json, LogLevel::Debug));
        assert_eq!(from_file.serving.metrics.unwrap().port(), 9808);
        let only_pools = Flags { pools: vec!["b=file:/b".into()], ..Flags::default() };
        let from_environment =
            |name: &str| Some(if name == NODE_VARIABLE { "n9" } else { "unix:///e.sock" }.to_owned());
        let last = Config::resolve(&only_pools, &File::default(), from_environment).unwrap();
        assert_eq!((last.serving.socket.to_str().unwrap(), last.node.as_str()), ("/e.sock", "n9"));
    }

    #[test]
    fn a_pool_flag_keeps_the_limits_the_file_has_for_its_name() {
        let config = Config::resolve(&flags(&["a=file:/elsewhere"]), &file(WHOLE).unwrap(), |_| None).unwrap();
        assert_eq!(config.pools[0].root(), Path::new("/elsewhere"));
        assert_eq!(config.pools[0].limits.min_free, MinFree::Bytes(Bytes::mib(10 * 1024)));
        assert_eq!(config.pools[0].limits.overcommit, "1.5".parse().unwrap());
        let plain = Config::resolve(&flags(&["c=file:/c"]), &File::default(), |_| None).unwrap();
        assert_eq!(plain.pools[0].limits, SpaceLimits::default());
    }

    #[test]
    fn what_is_missing_is_named_with_the_flag_that_gives_it() {
        let none = |flags: &Flags| said(Config::resolve(flags, &File::default(), |_| None));
        assert!(none(&Flags { daemon: DaemonFlags::default(), ..flags(&["a=file:/a"]) }).contains("--endpoint"));
        assert!(none(&Flags { node_name: None, ..flags(&["a=file:/a"]) }).contains("--node-name"));
        assert!(none(&flags(&[])).contains("--pool NAME=file:DIR"));
    }

    #[test]
    fn wrong_values_are_one_line_that_names_where_they_were_said() {
        let with = |change: fn(&mut Flags)| {
            let mut flags = flags(&["a=file:/a"]);
            change(&mut flags);
            said(Config::resolve(&flags, &File::default(), |_| None))
        };
        let cases = [
            (with(|f| f.daemon.endpoint = Some("tcp://0.0.0.0:1".into())), "only Unix sockets"),
            (with(|f| f.daemon.endpoint = Some("unix:///run/h\0.sock".into())), "control characters"),
            (with(|f| f.daemon.endpoint = Some("csi.sock".into())), "absolute path"),
            (with(|f| f.daemon.endpoint = Some(format!("/{}", "x".repeat(120)))), "107 bytes"),
            (with(|f| f.node_name = Some("no spaces".into())), "--node-name"),
            (with(|f| f.daemon.metrics = Some("9808".into())), "127.0.0.1:9808"),
            (with(|f| f.daemon.log_level = Some("loud".into())), "error, warn, info"),
            (with(|f| f.daemon.log_format = Some("xml".into())), "text or json"),
            (with(|f| f.pools = vec!["a".into()]), "NAME=file:DIR"),
            (with(|f| f.pools = vec!["a=lvm:vg".into()]), "not in this release"),
            (with(|f| f.pools = vec!["a=file:x".into()]), "absolute path"),
            (with(|f| f.pools = vec!["a=file:/x/../y".into()]), "\"..\""),
            (with(|f| f.pools = vec!["A=file:/x".into()]), "not a pool name"),
            (with(|f| f.pools.push("a=file:/b".into())), "given twice"),
            (with(|f| f.pools.push("b=file:/a/b/".into())), "overlap"),
        ];
        for (sentence, part) in cases {
            assert!(sentence.contains(part) && !sentence.contains('\n'), "{sentence:?} lacks {part:?}");
        }
    }

    #[test]
    fn limits_out_of_reason_are_refused() {
        let pool = |extra: &str| {
            let text = format!("pools:\n  - name: a\n    path: /a\n    {extra}\n");
            pools(&[], &file(&text).unwrap())
        };
        assert_eq!(pool("minFree: 5%").unwrap()[0].limits.min_free, MinFree::Percent(5));
        assert!(said(pool("minFree: 99%")).contains("minFree"));
        assert!(said(pool("minFree: lots")).contains("10Gi"));
        assert!(said(pool("overcommit: 0.01")).contains("overcommit"));
        assert!(said(pool("overcommit: .nan")).contains("overcommit"));
    }
}
