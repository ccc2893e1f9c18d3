//! What `holdfast controller` and `holdfast node` need besides the configuration of `standalone`: each other's addresses
//! and the certificates for their connections.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::{EnrolConfig, File, Flags, PoolConfig, Said, Serving, SigningConfig, pick, pools, refuse};
use crate::kubelet::Registration;
use crate::route::{Lost, NO_FABRIC, Rhythm};
use crate::types::{Error, NodeId, Result};

/// How the two sides of a connection authenticate each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode<A> {
    /// With `ca.crt`, `tls.crt` and `tls.key` in this directory.
    Files(PathBuf),
    /// With certificates that the controllers issue: what this side needs for that.
    Auto(A),
    /// Not at all: for tests only, and only when set explicitly.
    InsecurePlainText,
}

/// Everything `holdfast controller` needs, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// The socket and the log.
    pub serving: Serving,
    /// The address for nodes and operators.
    pub listen: SocketAddr,
    /// Its certificates.
    pub tls: TlsMode<SigningConfig>,
    /// The interval of the nodes' heartbeats.
    pub rhythm: Rhythm,
    /// The nodes and pools that an operator declared lost.
    pub lost: BTreeSet<Lost>,
    /// Whether it creates events on pods whose volume does not work.
    pub pod_events: bool,
}

/// How a node uses volumes of other nodes, and exports its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FabricConfig {
    /// The name of the storage network: nodes with the same name reach each other's exports.
    pub name: String,
    /// The address of this node's exports.
    pub address: ExportAddress,
    /// The TCP ports of this node's exports.
    pub ports: RangeInclusive<u16>,
}

/// Where a node's exports listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportAddress {
    /// On this address.
    Ip(IpAddr),
    /// On the one address of the network interface of this name, which is read at start.
    Interface(String),
}

/// The ports of exports where none are configured: below the range of ports that the kernel gives to clients.
const PORTS: RangeInclusive<u16> = 4500..=4999;

/// Everything `holdfast node` needs, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The socket and the log.
    pub serving: Serving,
    /// This node.
    pub node: NodeId,
    /// Its pools; a node may have none.
    pub pools: Vec<PoolConfig>,
    /// The address for controllers.
    pub listen: SocketAddr,
    /// The address that controllers connect to, `HOST:PORT`.
    pub advertise: String,
    /// The controllers, `HOST:PORT` each.
    pub controllers: Vec<String>,
    /// Its storage network; `None` without one.
    pub fabric: Option<FabricConfig>,
    /// The state directory.
    pub state: PathBuf,
    /// Its certificates.
    pub tls: TlsMode<EnrolConfig>,
    /// The interval of its heartbeats.
    pub rhythm: Rhythm,
    /// How it registers itself with kubelet, if it does.
    pub registration: Option<Registration>,
}

impl ControllerConfig {
    /// Puts flags, file and environment together.
    ///
    /// # Errors
    /// `InvalidArgument`, with the missing or invalid value and its origin.
    pub fn resolve(flags: &Flags, file: &File, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Ok(Self {
            serving: Serving::resolve(flags, file, &environment)?,
            listen: listen(flags, file)?,
            tls: tls(flags, file, SigningConfig::resolve)?,
            rhythm: rhythm(flags, file)?,
            lost: file.lost_homes.iter().map(|said| lost(said)).collect::<Result<_>>()?,
            pod_events: file.pod_events,
        })
    }
}

impl NodeConfig {
    /// Puts flags, file and environment together.
    ///
    /// # Errors
    /// As [`ControllerConfig::resolve`].
    pub fn resolve(flags: &Flags, file: &File, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let listen = listen(flags, file)?;
        let node = super::node_name(flags, file, &environment)?;
        let advertise = pick(&flags.node.advertise, "--advertise", &file.advertise, "advertise", "", |_| None);
        let advertise = match advertise {
            Some(said) => endpoint(&said)?,
            None if !listen.ip().is_unspecified() => listen.to_string(),
            None => {
                return Err(refuse(format!(
                    "no address that controllers can connect to: --listen {listen} means all addresses of this node; set --advertise HOST:PORT"
                )));
            }
        };
        let controllers = if flags.node.controllers.is_empty() { &file.controllers } else { &flags.node.controllers };
        if controllers.is_empty() {
            return Err(refuse(
                "no controllers: set --controllers HOST:PORT, or list controllers in the file of --config",
            ));
        }
        let of_controllers =
            |text: &String| endpoint(&Said { text: text.clone(), place: "a controller's address".to_owned() });
        let fabric = fabric(flags, file, &[&advertise, &listen.to_string()])?;
        let state = pick(&flags.node.state, "--state", &file.state_directory, "stateDirectory", "", |_| None);
        let serving = Serving::resolve(flags, file, &environment)?;
        let registration = super::kubelet::registration(flags, file, &serving.socket)?;
        Ok(Self {
            serving,
            node,
            pools: if flags.pools.is_empty() && file.pools.is_empty() {
                Vec::new()
            } else {
                pools(&flags.pools, file)?
            },
            listen,
            advertise,
            controllers: controllers.iter().map(of_controllers).collect::<Result<_>>()?,
            fabric,
            state: state.map_or_else(|| PathBuf::from("/var/lib/holdfast"), |said| PathBuf::from(said.text)),
            tls: tls(flags, file, EnrolConfig::resolve)?,
            rhythm: rhythm(flags, file)?,
            registration,
        })
    }
}

/// `others` are addresses of this node, as `HOST:PORT`, in the order in which the address of exports is taken from them.
fn fabric(flags: &Flags, file: &File, others: &[&str]) -> Result<Option<FabricConfig>> {
    let address =
        pick(&flags.node.fabric_address, "--fabric-address", &file.fabric_address, "fabricAddress", "", |_| None);
    let ports = pick(&flags.node.fabric_ports, "--fabric-ports", &file.fabric_ports, "fabricPorts", "", |_| None);
    let Some(name) = pick(&flags.node.fabric, "--fabric", &file.fabric, "fabric", "", |_| None) else {
        return match address.or(ports) {
            Some(said) => Err(refuse(format!("{} is set, but no fabric: set --fabric NAME too", said.place))),
            None => Ok(None),
        };
    };
    // A topology value has the format of a node's name.
    let parsed = NodeId::from_node_name(&name.text).ok().filter(|parsed| parsed.as_str() != NO_FABRIC);
    let parsed = parsed.ok_or_else(|| {
        refuse(format!(
            "{}: {:?} is not the name of a fabric; use at most 63 letters, digits, '-', '_' and '.', and not \"none\"",
            name.place, name.text
        ))
    })?;
    let address = match &address {
        Some(said) => export_address(said)?,
        None => {
            let mut parsed = others.iter().filter_map(|other| other.parse::<SocketAddr>().ok()).map(|other| other.ip());
            let address = parsed.find(|address| !address.is_unspecified()).ok_or_else(|| {
                refuse(
                    "no address for exports: --advertise and --listen have no IP address; set --fabric-address to an address or a network interface",
                )
            })?;
            ExportAddress::Ip(address)
        }
    };
    let ports = ports.map_or(Ok(PORTS), |said| {
        let range = said.text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
        range
            .filter(|range: &RangeInclusive<u16>| *range.start() > 0 && !range.is_empty())
            .ok_or_else(|| refuse(format!("{}: {:?} is not a range of ports; write 4500-4999", said.place, said.text)))
    })?;
    Ok(Some(FabricConfig { name: parsed.to_string(), address, ports }))
}

/// An address, or the name of an interface: at most 15 bytes without '/' and spaces (dev_valid_name in the kernel).
fn export_address(said: &Said) -> Result<ExportAddress> {
    let text = said.text.as_str();
    if let Ok(address) = text.parse::<IpAddr>() {
        if address.is_unspecified() {
            return Err(refuse(format!(
                "{}: {text} means all addresses of this node, but other nodes need the IP address to connect to; set that one, or the name of its network interface",
                said.place
            )));
        }
        return Ok(ExportAddress::Ip(address));
    }
    let inside = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
    if text.is_empty() || text.len() > 15 || matches!(text, "." | "..") || !text.chars().all(inside) {
        return Err(refuse(format!(
            "{}: {text:?} is neither an IP address nor the name of a network interface; write 10.1.0.11 or eth1",
            said.place
        )));
    }
    Ok(ExportAddress::Interface(text.to_owned()))
}

fn listen(flags: &Flags, file: &File) -> Result<SocketAddr> {
    let said = pick(&flags.wire.listen, "--listen", &file.listen, "listen", "", |_| None)
        .ok_or_else(|| refuse("no address to listen on: set --listen ADDRESS:PORT, such as 0.0.0.0:9810"))?;
    super::listen(&said)
}

/// `HOST:PORT`, where the host is a name or an address.
pub(super) fn endpoint(said: &Said) -> Result<String> {
    let wrong = || refuse(format!("{}: {:?} is not HOST:PORT; write node-1.example:9810", said.place, said.text));
    let (host, port) = said.text.rsplit_once(':').ok_or_else(wrong)?;
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(inside) || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    Ok(said.text.clone())
}

fn tls<A>(flags: &Flags, file: &File, auto: impl FnOnce(&Flags, &File) -> Result<A>) -> Result<TlsMode<A>> {
    let plain = flags.wire.insecure_plain_text || file.tls.insecure_plain_text;
    let directory = pick(&flags.wire.tls, "--tls", &file.tls.directory, "tls.directory", "", |_| None);
    match (directory, flags.wire.tls_auto || file.tls.auto.is_some(), plain) {
        (Some(said), false, false) => Ok(TlsMode::Files(PathBuf::from(said.text))),
        (None, true, false) => Ok(TlsMode::Auto(auto(flags, file)?)),
        (None, false, true) => Ok(TlsMode::InsecurePlainText),
        (None, false, false) => Err(refuse(
            "no certificates: set --tls DIR with ca.crt, tls.crt and tls.key (`holdfast ca issue` creates them), or --tls-auto",
        )),
        _ => {
            Err(refuse("--tls (a directory with certificates), --tls-auto and plain text exclude each other; keep one"))
        }
    }
}

fn rhythm(flags: &Flags, file: &File) -> Result<Rhythm> {
    let said = pick(&flags.wire.heartbeat, "--heartbeat", &file.heartbeat, "heartbeat", "", |_| None);
    let Some(said) = said else { return Ok(Rhythm::default()) };
    let wrong = || {
        refuse(format!(
            "{}: {:?} is not a heartbeat interval; use 100ms to 60s, such as 5s, and the same in all nodes and controllers",
            said.place, said.text
        ))
    };
    let interval = match said.text.strip_suffix("ms") {
        Some(number) => Duration::from_millis(number.parse().map_err(|_| wrong())?),
        None => {
            let number = said.text.strip_suffix('s').ok_or_else(wrong)?;
            Duration::from_secs(number.parse().map_err(|_| wrong())?)
        }
    };
    if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&interval) {
        return Err(wrong());
    }
    Ok(Rhythm { interval })
}

/// The name of a node, or the id of a pool. 16 hex digits are always a pool id.
fn lost(said: &str) -> Result<Lost> {
    if let Ok(pool) = said.parse() {
        return Ok(Lost::Pool(pool));
    }
    // The id is accepted too: messages name a node with a long name by its id.
    said.parse().or_else(|_| NodeId::from_node_name(said)).map(Lost::Node).map_err(|error: Error| {
        refuse(format!(
            "lostHomes in the configuration file: {said:?} is neither the name of a node nor a pool id: {error}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{NodeFlags, WireFlags};
    use super::*;
    use std::path::Path;

    fn file(text: &str) -> File {
        File::parse(Path::new("h.yaml"), text).unwrap()
    }

    const NODE: &str = "endpoint: unix:///n.sock\nnodeName: n1\nlisten: 10.0.0.1:9811\ncontrollers: [c-0.holdfast:9810, c-1.holdfast:9810]\nfabric: rack-1\nstateDirectory: /state\ntls: {directory: /tls}\nheartbeat: 500ms\npools: [{name: a, path: /pools/a}]\n";
    const CONTROLLER: &str = "endpoint: unix:///c.sock\nlisten: 0.0.0.0:9810\ntls: {directory: /tls}\nlostHomes: [node-7, 00000000000000ab]\n";

    fn said<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_node_and_a_controller_from_their_files() {
        let node = NodeConfig::resolve(&Flags::default(), &file(NODE), |_| None).unwrap();
        assert_eq!((node.advertise.as_str(), node.fabric.as_ref().unwrap().name.as_str()), ("10.0.0.1:9811", "rack-1"));
        let fabric = node.fabric.unwrap();
        assert_eq!((fabric.address, fabric.ports), (ExportAddress::Ip("10.0.0.1".parse().unwrap()), 4500..=4999));
        let of_interface = NODE.replace("fabric: rack-1\n", "fabric: rack-1\nfabricAddress: eth1.40\n");
        let node = NodeConfig::resolve(&Flags::default(), &file(&of_interface), |_| None).unwrap();
        assert_eq!(node.fabric.unwrap().address, ExportAddress::Interface("eth1.40".to_owned()));
        assert_eq!((node.controllers.len(), node.pools.len()), (2, 1));
        assert_eq!(node.rhythm.interval, Duration::from_millis(500));
        let controller = ControllerConfig::resolve(&Flags::default(), &file(CONTROLLER), |_| None).unwrap();
        assert!(controller.lost.contains(&Lost::Node("node-7".parse().unwrap())));
        assert!(controller.lost.contains(&Lost::Pool("00000000000000ab".parse().unwrap())));
        assert_eq!((controller.rhythm, controller.pod_events), (Rhythm::default(), false));
        let with = file(&format!("{CONTROLLER}podEvents: true\n"));
        assert!(ControllerConfig::resolve(&Flags::default(), &with, |_| None).unwrap().pod_events);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_with_the_next_step() {
        let node = |flags: Flags, text: &str| said(NodeConfig::resolve(&flags, &file(text), |_| None));
        let any = NODE.replace("10.0.0.1:9811", "0.0.0.0:9811");
        assert!(node(Flags::default(), &any).contains("--advertise"));
        assert!(
            node(
                Flags::default(),
                &NODE
                    .replace("controllers: [", "fabric2: [")
                    .replace("fabric2: [c-0.holdfast:9810, c-1.holdfast:9810]", "")
            )
            .contains("--controllers")
        );
        let wire = |wire: WireFlags| Flags { wire, ..Flags::default() };
        let both = wire(WireFlags { insecure_plain_text: true, ..WireFlags::default() });
        assert!(node(both, NODE).contains("exclude each other"));
        let advertise = NodeFlags { advertise: Some("host".into()), ..NodeFlags::default() };
        assert!(node(Flags { node: advertise, ..Flags::default() }, NODE).contains("HOST:PORT"));
        for bad in ["5", "0ms", "2m", "61s", "-1s"] {
            let heartbeat = wire(WireFlags { heartbeat: Some(bad.into()), ..WireFlags::default() });
            assert!(node(heartbeat, NODE).contains("heartbeat"), "{bad}");
        }
        let with = |change: &str| node(Flags::default(), &NODE.replace("fabric: rack-1\n", change));
        for (change, part) in [
            ("fabric: none\n", "\"none\""),
            ("fabric: a b\n", "name of a fabric"),
            ("fabricPorts: 1-2\n", "set --fabric NAME"),
            ("fabric: a\nfabricAddress: node-1.example:4500\n", "neither an IP address"),
            ("fabric: a\nfabricAddress: node-1.a.domain.example\n", "neither an IP address"),
            ("fabric: a\nfabricAddress: ../eth1\n", "neither an IP address"),
            ("fabric: a\nfabricAddress: '::'\n", "IP address to connect to"),
            ("fabric: a\nfabricAddress: 0.0.0.0\n", "IP address"),
            ("fabric: a\nfabricPorts: 4500\n", "4500-4999"),
            ("fabric: a\nfabricPorts: 9-8\n", "4500-4999"),
            ("fabric: a\nfabricPorts: 0-8\n", "4500-4999"),
        ] {
            assert!(with(change).contains(part), "{change}: {}", with(change));
        }
        let named = NODE.replace("listen: 10.0.0.1:9811", "listen: 0.0.0.0:9811\nadvertise: node-1:9811");
        assert!(node(Flags::default(), &named).contains("--fabric-address"));
        let controller = |text: &str| said(ControllerConfig::resolve(&Flags::default(), &file(text), |_| None));
        assert!(controller(&CONTROLLER.replace("tls: {directory: /tls}\n", "")).contains("holdfast ca issue"));
        assert!(controller(&CONTROLLER.replace("listen: 0.0.0.0:9810\n", "")).contains("--listen"));
        assert!(controller(&CONTROLLER.replace("node-7", "\"not a node\"")).contains("lostHomes"));
    }
}
