//! Places for clients without a certificate: a network with many places loses one to a network with few.
//!
//! A node that is certified needs a place for some milliseconds; a client that keeps one longer only waits. So when all
//! places are taken:
//!
//! - If the new client's network would still have fewer places than the network with the most, it takes a place of that
//!   one, at once.
//! - Otherwise it takes a place of a network that has no fewer than its own, from a client that had it for at least
//!   [`FIRST`]; if there is none, the new client is refused. So a thousand nodes at once are served one after the other
//!   and do not displace each other.
//!
//! Among several, first a client without a proof or a review in progress loses its place, then the oldest. Few are
//! reviewed at a time.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::os::Stopwatch;

/// The number of places.
const MOST: usize = 128;
/// The time that each client has, as far as networks with no more places are concerned.
const FIRST: Duration = Duration::from_secs(2);
/// The part of an IPv6 address that identifies a network: the owner of one address has its whole /64.
const NETWORK_BITS: u32 = 64;

/// The key that clients are counted by: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(IpAddr);

impl Network {
    /// The network of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << (128 - NETWORK_BITS))).into(),
            four @ IpAddr::V4(_) => four,
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(four) => four.fmt(f),
            IpAddr::V6(six) => write!(f, "{six}/{NETWORK_BITS}"),
        }
    }
}

/// A client without a certificate. Cheap to clone; clones are the same one.
#[derive(Clone, Debug)]
pub struct UnauthenticatedClient {
    address: IpAddr,
    known: Arc<Known>,
}

#[derive(Debug, Default)]
struct Known {
    proven: AtomicBool,
    /// How many of its proofs are being reviewed.
    looked_at: AtomicUsize,
}

/// A proof under review, until it is dropped.
#[derive(Debug)]
pub struct LookedAt(Arc<Known>);

impl Drop for LookedAt {
    fn drop(&mut self) {
        self.0.looked_at.fetch_sub(1, Ordering::Relaxed);
    }
}

impl UnauthenticatedClient {
    /// From this address, and otherwise unknown.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address: address.to_canonical(), known: Arc::default() }
    }

    /// Its network.
    #[must_use]
    pub fn network(&self) -> Network {
        Network::of(self.address)
    }

    /// It has proved its identity: others lose their places before it does.
    pub fn prove(&self) {
        self.known.proven.store(true, Ordering::Relaxed);
    }

    /// Its proof is under review: until that ends, others lose their places before it does.
    #[must_use]
    pub fn looked_at(&self) -> LookedAt {
        self.known.looked_at.fetch_add(1, Ordering::Relaxed);
        LookedAt(Arc::clone(&self.known))
    }

    /// The order of losing places; greater ones are last.
    fn rank(&self) -> (bool, bool) {
        (self.known.proven.load(Ordering::Relaxed), self.known.looked_at.load(Ordering::Relaxed) > 0)
    }
}

impl PartialEq for UnauthenticatedClient {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.known, &other.known)
    }
}

impl Eq for UnauthenticatedClient {}

impl fmt::Display for UnauthenticatedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// All places.
#[derive(Debug)]
pub(crate) struct Guests {
    most: usize,
    first: Duration,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: BTreeMap<u64, Seat>,
}

#[derive(Debug)]
struct Seat {
    guest: UnauthenticatedClient,
    since: Stopwatch,
    /// Dropped with the seat, which notifies the connection.
    _stay: oneshot::Sender<Infallible>,
}

impl Default for Guests {
    fn default() -> Self {
        Self::new(MOST, FIRST)
    }
}

impl Guests {
    /// With at most so many.
    pub(crate) fn of(most: usize) -> Self {
        Self::new(most, FIRST)
    }

    fn new(most: usize, first: Duration) -> Self {
        Self { most, first, seats: Mutex::default() }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, and the client that lost one for it; `None` when there is none.
    pub(crate) fn admit(
        self: &Arc<Self>,
        guest: &UnauthenticatedClient,
    ) -> Option<(GuestPlace, Option<UnauthenticatedClient>)> {
        let mut seats = self.seats();
        let left = if seats.taken.len() >= self.most {
            let number = seats.gives_way(guest.network(), self.first)?;
            seats.taken.remove(&number).map(|seat| seat.guest)
        } else {
            None
        };
        let number = seats.next;
        seats.next += 1;
        let (stay, gone) = oneshot::channel();
        seats.taken.insert(number, Seat { guest: guest.clone(), since: Stopwatch::start(), _stay: stay });
        Some((GuestPlace { guests: Arc::clone(self), number, gone }, left))
    }
}

impl Seats {
    fn gives_way(&self, newcomer: Network, first: Duration) -> Option<u64> {
        let mut held = BTreeMap::<Network, usize>::new();
        for seat in self.taken.values() {
            *held.entry(seat.guest.network()).or_default() += 1;
        }
        let of = |network: &Network| held.get(network).copied().unwrap_or_default();
        let (most, own) = (held.values().copied().max().unwrap_or_default(), of(&newcomer));
        let may_go = |seat: &Seat| {
            let theirs = of(&seat.guest.network());
            if own + 1 < most { theirs == most } else { theirs >= own && seat.since.elapsed() >= first }
        };
        let candidates = self.taken.iter().filter(|(_, seat)| may_go(seat));
        candidates.min_by_key(|(number, seat)| (seat.guest.rank(), **number)).map(|(n, _)| *n)
    }
}

/// A place, released when dropped.
#[derive(Debug)]
pub(crate) struct GuestPlace {
    guests: Arc<Guests>,
    number: u64,
    gone: oneshot::Receiver<Infallible>,
}

impl GuestPlace {
    /// Whether another client has the place now; otherwise the task is woken when that happens.
    pub(crate) fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        matches!(Pin::new(&mut self.gone).poll(cx), Poll::Ready(Err(_)))
    }
}

impl Drop for GuestPlace {
    fn drop(&mut self) {
        self.guests.seats().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    fn guest(address: &str) -> UnauthenticatedClient {
        UnauthenticatedClient::new(address.parse().unwrap())
    }

    fn guests(most: usize, first: Duration) -> Arc<Guests> {
        Arc::new(Guests::new(most, first))
    }

    /// Places, all of which are free.
    fn fill<'a>(
        guests: &Arc<Guests>,
        addresses: impl IntoIterator<Item = &'a str>,
    ) -> Vec<(UnauthenticatedClient, GuestPlace)> {
        let enter = |address| {
            let guest = guest(address);
            let (place, left) = guests.admit(&guest).unwrap();
            assert_eq!(left, None);
            (guest, place)
        };
        addresses.into_iter().map(enter).collect()
    }

    #[test]
    fn one_address_has_all_places_until_another_wants_one() {
        let guests = guests(8, NEVER);
        let greedy = fill(&guests, ["10.0.0.1"; 8]);
        assert!(guests.admit(&guest("10.0.0.1")).is_none());
        let mut others = Vec::new();
        for (n, gone) in (2..6).zip(&greedy) {
            let (place, left) = guests.admit(&guest(&format!("10.0.0.{n}"))).unwrap();
            assert_eq!(left.as_ref(), Some(&gone.0), "the oldest");
            others.push(place);
        }
        // Four of one network and one each of four: one of these has no claim to a second.
        assert!(guests.admit(&guest("10.0.0.1")).is_none());
        assert!(guests.admit(&guest("10.0.0.2")).unwrap().1.as_ref() == Some(&greedy[4].0));
    }

    #[test]
    fn who_proved_something_goes_last() {
        let guests = guests(3, NEVER);
        let all = fill(&guests, ["10.0.0.1"; 3]);
        all[0].0.prove();
        let (_place, left) = guests.admit(&guest("10.0.0.2")).unwrap();
        assert_eq!(left.as_ref(), Some(&all[1].0));
    }

    #[test]
    fn who_is_being_looked_at_goes_after_who_waits() {
        let guests = guests(3, NEVER);
        let all = fill(&guests, ["10.0.0.1"; 3]);
        let looked_at = all[0].0.looked_at();
        assert_eq!(guests.admit(&guest("10.0.0.2")).unwrap().1.as_ref(), Some(&all[1].0));
        drop(looked_at);
        let guests = self::guests(2, Duration::ZERO);
        let all = fill(&guests, ["10.0.0.1"; 2]);
        drop(all[0].0.looked_at());
        assert_eq!(guests.admit(&guest("10.0.0.1")).unwrap().1.as_ref(), Some(&all[0].0));
    }

    #[test]
    fn equals_give_way_when_they_had_their_time() {
        let young = guests(4, NEVER);
        let _all = fill(&young, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert!(young.admit(&guest("10.0.0.5")).is_none() && young.admit(&guest("10.0.0.1")).is_none());
        let old = guests(4, Duration::ZERO);
        let all = fill(&old, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(old.admit(&guest("10.0.0.5")).unwrap().1.as_ref(), Some(&all[0].0));
    }

    #[test]
    fn a_64_of_ipv6_is_one_network() {
        let guests = guests(4, NEVER);
        let many: Vec<String> = (0..4).map(|n| format!("2001:db8:0:1:{n}::1")).collect();
        let _all = fill(&guests, many.iter().map(String::as_str));
        assert!(guests.admit(&guest("2001:db8:0:1:ffff::1")).is_none());
        assert!(guests.admit(&guest("2001:db8:0:2::1")).is_some());
        assert_eq!(Network::of("2001:db8:0:1:2:3:4:5".parse().unwrap()).to_string(), "2001:db8:0:1::/64");
        assert_eq!(Network::of("::ffff:10.0.0.1".parse().unwrap()).to_string(), "10.0.0.1");
    }

    #[test]
    fn places_are_given_back_once() {
        let guests = guests(2, Duration::ZERO);
        let mut all = fill(&guests, ["10.0.0.1"; 2]);
        let (newer, left) = guests.admit(&guest("10.0.0.2")).unwrap();
        assert_eq!(left.as_ref(), Some(&all[0].0));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(all[0].1.is_gone(&mut cx) && !all[1].1.is_gone(&mut cx));
        drop(all);
        assert_eq!(guests.seats().taken.len(), 1);
        drop(newer);
        assert!(guests.seats().taken.is_empty());
    }
}
