//! The address of this node's exports.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::ops::RangeInclusive;

use tracing::warn;

use crate::config::ExportAddress;
use crate::os::{Link, Os};
use crate::types::{Error, Kind, OsContext, Result};

/// The address itself, or the one address of the interface. IPv4 is preferred: nodes of one fabric choose alike.
///
/// # Errors
/// `Precondition` when the interface does not exist, or has not exactly one address of the preferred family; `Internal`
/// when the interfaces cannot be listed.
pub(super) fn address(os: &Os, configured: &ExportAddress) -> Result<IpAddr> {
    let name = match configured {
        ExportAddress::Ip(address) => return Ok(*address),
        ExportAddress::Interface(name) => name,
    };
    let mut all = os.interfaces().at(|| "list the network interfaces")?;
    let Some(interface) = all.remove(name) else {
        let others: Vec<_> = all.into_keys().collect();
        return Err(refuse(format!(
            "--fabric-address {name}: this node has no network interface {name} (it has {}); set the name of one of them, or an IP address",
            others.join(", ")
        )));
    };
    if interface.link == Link::Down {
        warn!(
            interface = name,
            "the network interface of --fabric-address is down: no other node can use volumes of this node until it is up"
        );
    }
    let (v4, v6): (Vec<_>, Vec<_>) = interface.addresses.into_iter().partition(IpAddr::is_ipv4);
    let family = if v4.is_empty() { v6 } else { v4 };
    match family.as_slice() {
        [address] => Ok(*address),
        [] => Err(refuse(format!(
            "--fabric-address {name}: the network interface {name} has no address that other nodes can reach; give it one (`ip addr add ADDRESS/PREFIX dev {name}`), and restart the driver"
        ))),
        several => {
            let several: Vec<_> = several.iter().map(ToString::to_string).collect();
            Err(refuse(format!(
                "--fabric-address {name}: the network interface {name} has several addresses ({}); set one of them as the address",
                several.join(", ")
            )))
        }
    }
}

/// Why no export could listen on this address and these ports now, if none could. Before the exports of this node are
/// created again: a port is taken for a moment.
pub(super) fn unusable(address: IpAddr, ports: &RangeInclusive<u16>) -> Option<String> {
    for port in ports.clone() {
        match TcpListener::bind((address, port)) {
            Ok(_) => return None,
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                return Some(format!(
                    "{address} is not an address of this node, so no volume can be exported: add it to a network interface, or set --fabric-address to an address of this node"
                ));
            }
            Err(_) => {}
        }
    }
    Some(format!(
        "no port of {}-{} is free on {address}, so no more volumes can be exported: extend the range (--fabric-ports), or stop the programs that use these ports (`ss -ltnp` lists them)",
        ports.start(),
        ports.end()
    ))
}

fn refuse(sentence: String) -> Error {
    Error::new(Kind::Precondition, sentence)
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::testing::scratch::run;

    fn ip(os: &Os, line: &str) {
        run(os, "ip", line.split(' '));
    }

    #[test]
    fn the_address_of_an_interface_is_found_or_the_error_says_what_to_set() {
        // This thread alone has these interfaces.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let os = Os::new();
        let of = |name: &str| address(&os, &ExportAddress::Interface(name.to_owned()));
        let refused = |name: &str, words: &[&str]| {
            let error = of(name).unwrap_err();
            let said = error.chain();
            assert!(error.kind() == Kind::Precondition && words.iter().all(|words| said.contains(words)), "{said}");
        };
        for line in ["link add left type veth peer name right", "link set lo up", "link set left up"] {
            ip(&os, line);
        }
        refused("eth1", &["no network interface eth1", "left, lo, right"]);
        // Addresses of the machine or of one link alone are none.
        ip(&os, "addr add 169.254.7.7/16 dev left");
        refused("left", &["no address that other nodes can reach", "ip addr add"]);
        refused("lo", &["no address that other nodes can reach"]);
        // Its other end is down, and it has an address nevertheless.
        assert_eq!(os.interfaces().unwrap()["left"].link, Link::Down);
        ip(&os, "addr add fd00::1/64 dev left nodad");
        assert_eq!(of("left").unwrap().to_string(), "fd00::1");
        ip(&os, "link set right up");
        // The kernel notices that later, in a thread of its own.
        while os.interfaces().unwrap()["left"].link != Link::Up {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        ip(&os, "addr add fd00::2/64 dev left nodad");
        refused("left", &["several addresses", "fd00::1", "fd00::2"]);
        // The link-local address that the kernel gives to an interface that is up does not count.
        ip(&os, "addr add 192.0.2.7/24 dev left");
        assert_eq!(of("left").unwrap().to_string(), "192.0.2.7");
        ip(&os, "addr add 192.0.2.8/24 dev left");
        refused("left", &["several addresses (192.0.2.7, 192.0.2.8)", "set one of them"]);
        let chosen = ExportAddress::Ip("192.0.2.8".parse().unwrap());
        assert_eq!(address(&os, &chosen).unwrap().to_string(), "192.0.2.8");
        let at = |address: &str, ports| unusable(address.parse().unwrap(), &ports);
        assert!(at("192.0.2.9", 4500..=4501).unwrap().contains("192.0.2.9 is not an address of this node"));
        let held = TcpListener::bind("192.0.2.8:4500").unwrap();
        assert_eq!(at("192.0.2.8", 4500..=4501), None);
        assert!(at("192.0.2.8", 4500..=4500).unwrap().contains("no port of 4500-4500 is free"));
        drop(held);
        assert_eq!(at("192.0.2.8", 4500..=4500), None);
        // A routed address of the loopback interface is one that others reach.
        ip(&os, "addr add 198.51.100.1/32 dev lo");
        assert_eq!(of("lo").unwrap().to_string(), "198.51.100.1");
    }
}
