//! The connections to one port or socket, at most a few hundred: most file descriptors and most memory are for the
//! work.
//!
//! One connection more than the limit is accepted, and an idle one is closed for it. A connection that never made a
//! call is closed before one that did, then the one with the longest time since its last call; never one with a call in
//! progress. So a client that opens connections and leaves them idle, or sends invalid calls, loses its places to
//! others. An idle sidecar that loses its connection reconnects at its next call.
//!
//! On a TCP port one network has a share of the places. When it has used its share, its own most idle connection is
//! closed for its next one, so that one client cannot take the places of others.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::unauthenticated::Network;
use crate::os::Stopwatch;

/// How many more may be open, because they were told to close and have not yet; until one has, others wait.
const MOST_CLOSING: usize = 256;
/// How long they wait before the next check.
const CLOSING_PAUSE: Duration = Duration::from_millis(5);
/// How long to wait after accept(2) failed: it fails again at once when file descriptors or memory are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The least time between two identical log lines.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// A connection, as its calls use it.
#[derive(Debug)]
pub struct Peer {
    /// The key that its arriving bytes are counted by.
    name: Arc<str>,
    /// Calls whose answer it has not read yet.
    under_way: AtomicUsize,
    served: AtomicBool,
    /// When it was accepted or its last call ended, in milliseconds on the table's clock.
    quiet_since: AtomicU64,
    closed: AtomicBool,
    waker: AtomicWaker,
    clock: Stopwatch,
}

impl Peer {
    /// A new connection of this client.
    pub(crate) fn new(name: &str, clock: Stopwatch) -> Self {
        let peer = Self {
            name: name.into(),
            under_way: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            quiet_since: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            clock,
        };
        peer.now_quiet();
        peer
    }

    fn now_quiet(&self) {
        self.quiet_since.store(u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The key that its arriving bytes are counted by.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Begins a call of this connection, until the guard is dropped.
    pub(crate) fn call(self: &Arc<Self>) -> PeerCall {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        PeerCall(Arc::clone(self))
    }

    /// Closes the connection, whatever is in progress.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    /// Whether it was told to close; otherwise the task is woken when it is.
    pub(crate) fn is_closed(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.closed.load(Ordering::SeqCst)
    }
}

/// A call of a connection, which is not idle meanwhile.
#[derive(Debug)]
pub(crate) struct PeerCall(Arc<Peer>);

impl PeerCall {
    /// Its connection, while that is open.
    pub(crate) fn weak(&self) -> Weak<Peer> {
        Arc::downgrade(&self.0)
    }
}

impl Drop for PeerCall {
    fn drop(&mut self) {
        self.0.served.store(true, Ordering::Relaxed);
        self.0.now_quiet();
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The most connections of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Most {
    /// Of all clients together.
    pub(crate) all: usize,
    /// Of one client: a network, or all clients of a Unix socket.
    pub(crate) of_one: usize,
}

impl Most {
    /// So many, of any client.
    pub(crate) fn of_socket(all: usize) -> Self {
        Self { all, of_one: all }
    }
}

/// All connections of a socket.
#[derive(Debug)]
struct Table {
    /// The port's name in messages.
    what: &'static str,
    clock: Stopwatch,
    most: Most,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// With the client of each.
    peers: BTreeMap<u64, (Arc<str>, Arc<Peer>)>,
    said: Option<Stopwatch>,
}

impl Open {
    /// Whether it may be logged again.
    fn may_say(&mut self) -> bool {
        let again = self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY);
        if again {
            self.said = Some(Stopwatch::start());
        }
        again
    }
}

impl Table {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether connections that were told to close must do so before another is accepted.
    fn closing(&self) -> bool {
        let open = self.open();
        open.peers.len() >= self.most.all + MOST_CLOSING.min(self.most.all)
    }

    /// A place for one more of this client; `None` when all are taken and none is idle.
    fn admit(self: &Arc<Self>, client: &Arc<str>) -> Option<Place> {
        let mut open = self.open();
        let staying = || open.peers.values().filter(|(_, peer)| !peer.closed.load(Ordering::SeqCst));
        let own = staying().filter(|(of, _)| of == client).count();
        let is_greedy = own >= self.most.of_one;
        if is_greedy || staying().count() >= self.most.all {
            let quiet = staying()
                .filter(|(of, peer)| peer.under_way.load(Ordering::SeqCst) == 0 && (!is_greedy || of == client));
            let rank =
                |peer: &&Arc<Peer>| (peer.served.load(Ordering::Relaxed), peer.quiet_since.load(Ordering::Relaxed));
            let quietest = quiet.map(|(_, peer)| peer).min_by_key(rank).map(Arc::clone);
            if let Some(quietest) = &quietest {
                quietest.close();
            }
            if open.may_say() {
                warn!(
                    most = self.most.all,
                    of_one = self.most.of_one,
                    client = &**client,
                    "there are too many connections to {}: idle ones are closed; look for a client that leaves its \
                     connections open",
                    self.what
                );
            }
            quietest?;
        }
        let number = open.next;
        open.next += 1;
        let peer = Arc::new(Peer::new(&format!("{client} {number}"), self.clock));
        open.peers.insert(number, (Arc::clone(client), Arc::clone(&peer)));
        Some(Place { table: Arc::clone(self), number, peer })
    }
}

/// A connection's place in the table, released when dropped.
#[derive(Debug)]
struct Place {
    table: Arc<Table>,
    number: u64,
    peer: Arc<Peer>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.open().peers.remove(&self.number);
    }
}

/// A source of connections.
pub(crate) trait Listener: Send + Unpin + 'static {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection and its client.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Arc<str>)>>;
}

impl Listener for UnixListener {
    type Io = UnixStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(UnixStream, Arc<str>)>> {
        UnixListener::poll_accept(self, cx).map_ok(|(io, _)| (io, "socket".into()))
    }
}

impl Listener for TcpListener {
    type Io = TcpStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, Arc<str>)>> {
        let accepted = TcpListener::poll_accept(self, cx);
        accepted.map_ok(|(io, address)| (io, Network::of(address.ip()).to_string().into()))
    }
}

/// Accepts connections, without end.
#[derive(Debug)]
pub(crate) struct Incoming<L> {
    listener: L,
    table: Arc<Table>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<L: Listener> Incoming<L> {
    /// From this listener, with this name in messages and these limits.
    pub(crate) fn new(listener: L, what: &'static str, most: Most) -> Self {
        let table = Table { what, clock: Stopwatch::start(), most, open: Mutex::default() };
        Self { listener, table: Arc::new(table), pause: None }
    }
}

impl<L: Listener> Stream for Incoming<L> {
    type Item = io::Result<Connection<L::Io>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            if self.table.closing() {
                self.pause = Some(Box::pin(sleep(CLOSING_PAUSE)));
                continue;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((io, client)) => match self.table.admit(&client) {
                    Some(place) => return Poll::Ready(Some(Ok(Connection { io, place }))),
                    None => debug!("a connection is refused: all others have calls in progress"),
                },
                Err(error) => {
                    if self.table.open().may_say() {
                        warn!("cannot accept connections to {}: {error}; retrying", self.table.what);
                    }
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// One connection, which fails once it was told to close, for reading and for writing: a server that waits until it can
/// write does not read.
#[derive(Debug)]
pub(crate) struct Connection<T> {
    io: T,
    place: Place,
}

impl<T: Unpin> Connection<T> {
    /// The connection, as its calls use it.
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.place.peer
    }

    /// The stream, while it is not to be closed.
    fn open(&mut self, cx: &Context<'_>) -> io::Result<Pin<&mut T>> {
        if self.place.peer.is_closed(cx) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(Pin::new(&mut self.io))
    }
}

impl<T: Send + Unpin + 'static> Connected for Connection<T> {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.place.peer)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.open(cx)?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.open(cx)?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(most: usize) -> Arc<Table> {
        table_of(Most::of_socket(most))
    }

    fn table_of(most: Most) -> Arc<Table> {
        Arc::new(Table { what: "a test", clock: Stopwatch::start(), most, open: Mutex::default() })
    }

    fn root() -> Arc<str> {
        "root".into()
    }

    fn closed(place: &Place) -> bool {
        place.peer.closed.load(Ordering::SeqCst)
    }

    #[test]
    fn the_newcomer_takes_the_place_of_the_quietest_that_never_called() {
        let table = table(3);
        let places: Vec<_> = (0..3).map(|_| table.admit(&root()).unwrap()).collect();
        let calling = places[0].peer.call();
        drop(places[1].peer.call());
        let fourth = table.admit(&root()).unwrap();
        assert_eq!(places.iter().map(closed).collect::<Vec<_>>(), [false, false, true]);
        assert!(!closed(&fourth));
        // Now the fourth is next: the second has made a call, the first has one in progress.
        let fifth = table.admit(&root()).unwrap();
        assert!(closed(&fourth) && !closed(&places[1]) && !closed(&fifth));
        drop(calling);
    }

    #[test]
    fn a_connection_with_a_call_under_way_is_never_closed_for_another() {
        let table = table(2);
        let places: Vec<_> = (0..2).map(|_| table.admit(&root()).unwrap()).collect();
        let calls: Vec<_> = places.iter().map(|place| place.peer.call()).collect();
        assert!(table.admit(&root()).is_none());
        drop(calls);
        assert!(table.admit(&root()).is_some() && places.iter().filter(|place| closed(place)).count() == 1);
    }

    #[test]
    fn those_that_do_not_go_are_not_joined_by_ever_more() {
        let table = table(1);
        let places: Vec<_> =
            (0..=MOST_CLOSING).map_while(|_| (!table.closing()).then(|| table.admit(&root()))).collect();
        assert!(places.iter().all(Option::is_some) && table.closing());
        drop(places);
        assert!(table.open().peers.is_empty() && !table.closing());
    }

    #[test]
    fn one_network_makes_room_for_itself_and_never_takes_the_place_of_another() {
        let table = table_of(Most { all: 4, of_one: 2 });
        let (one, other): (Arc<str>, Arc<str>) = ("10.0.0.1".into(), "10.0.0.2".into());
        let quiet = table.admit(&other).unwrap();
        let mut greedy: Vec<_> = (0..2).map(|_| table.admit(&one).unwrap()).collect();
        greedy.push(table.admit(&one).unwrap());
        assert_eq!(greedy.iter().map(closed).collect::<Vec<_>>(), [true, false, false]);
        assert!(!closed(&quiet));
        let calls: Vec<_> = greedy.iter().map(|place| place.peer.call()).collect();
        assert!(table.admit(&one).is_none(), "all of its own have calls in progress");
        assert!(table.admit(&other).is_some() && !closed(&quiet));
        drop(calls);
    }
}
