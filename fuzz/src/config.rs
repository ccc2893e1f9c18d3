//! The configuration file: refused in one line, or a configuration that keeps the driver in its place.

use std::path::{Component, Path};

use holdfast::config::{Config, ControllerConfig, File, Flags, NodeConfig};

use crate::text;

/// Reads the text as a configuration file, and puts it together with flags.
pub fn run(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let file = match File::parse(Path::new("h.yaml"), text) {
        Ok(file) => file,
        Err(error) => {
            let said = error.to_string();
            return assert!(said.starts_with("h.yaml") && !said.contains('\n'), "{said:?}");
        }
    };
    resolved(&Flags::default(), &file);
    let said = |text: &str| Some(text.to_owned());
    let flags = Flags { endpoint: said("unix:///run/h.sock"), node_name: said("n1"), ..Flags::default() };
    resolved(&flags, &file);
    let mut lines = text.lines().map(str::to_owned);
    let from_text = Flags {
        endpoint: lines.next(),
        node_name: lines.next(),
        metrics: lines.next(),
        log_format: lines.next(),
        log_level: lines.next(),
        listen: lines.next(),
        advertise: lines.next(),
        fabric: lines.next(),
        tls: lines.next(),
        heartbeat: lines.next(),
        controllers: lines.next().into_iter().collect(),
        pools: lines.collect(),
        ..Flags::default()
    };
    // What the other two daemons make of it is refused in words or a configuration, never a panic.
    for flags in [&flags, &from_text] {
        let _ = (ControllerConfig::resolve(flags, &file, |_| None), NodeConfig::resolve(flags, &file, |_| None));
    }
    resolved(&from_text, &file);
    resolved(&from_text, &File::default());
}

fn resolved(flags: &Flags, file: &File) {
    let config = match Config::resolve(flags, file, |_| None) {
        Ok(config) => config,
        Err(error) => {
            let said = error.to_string();
            return assert!(!said.is_empty(), "{said:?}");
        }
    };
    assert!(config.serving.socket.is_absolute() && config.serving.socket.as_os_str().len() <= 107);
    assert!(!config.pools.is_empty());
    for pool in &config.pools {
        let plain = |part: Component| matches!(part, Component::RootDir | Component::Normal(_));
        assert!(pool.root().is_absolute() && pool.root().parent().is_some() && pool.root().components().all(plain));
        let others = config.pools.iter().filter(|other| other.root().starts_with(pool.root()));
        assert_eq!(others.count(), 1, "one pool lies in another");
    }
}
