//! The network interfaces of this process's network namespace (getifaddrs(3)).

#![expect(unsafe_code, reason = "getifaddrs(3) returns a linked list")]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

use super::Os;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its addresses, without those that only this machine or this link can reach (loopback, link-local).
    pub addresses: Vec<IpAddr>,
    /// Whether it carries packets.
    pub link: Link,
}

/// Whether an interface carries packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// It is up and has a carrier.
    Up,
    /// It is down, or no cable or peer is connected.
    #[default]
    Down,
}

/// The list that getifaddrs(3) allocated.
struct List(*mut libc::ifaddrs);

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the list is from getifaddrs, which is freed once, here.
        unsafe { libc::freeifaddrs(self.0) }
    }
}

impl Os {
    /// The interfaces, by name.
    ///
    /// # Errors
    /// Those of getifaddrs(3).
    pub fn interfaces(&self) -> io::Result<BTreeMap<String, Interface>> {
        let mut first = ptr::null_mut();
        // SAFETY: `first` is a valid place for the result.
        if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let list = List(first);
        let mut found = BTreeMap::<String, Interface>::new();
        let mut next = list.0;
        // SAFETY: `next` is null or an entry of the list, which lives until the end of this function.
        while let Some(entry) = unsafe { next.as_ref() } {
            next = entry.ifa_next;
            // SAFETY: each entry has a name, which ends with NUL.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
            let interface = found.entry(name).or_default();
            let up = libc::IFF_UP | libc::IFF_RUNNING;
            if i64::from(entry.ifa_flags) & i64::from(up) == i64::from(up) {
                interface.link = Link::Up;
            }
            // SAFETY: the address is null or that of this entry.
            if let Some(address) = unsafe { ip(entry.ifa_addr) }.filter(is_reachable) {
                interface.addresses.push(address);
            }
        }
        Ok(found)
    }
}

/// The IP address in a socket address, if it is one.
///
/// # Safety
/// `address` is null, or points to a socket address of its family.
unsafe fn ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller promises that it is null or valid.
    let family = i32::from(unsafe { address.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: the address has this family, and so this type. It may not be aligned for it.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// Whether other machines can reach an address, and not only those on the same link.
fn is_reachable(address: &IpAddr) -> bool {
    let is_of_link = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(is_of_link || address.is_loopback() || address.is_unspecified())
}
