//! The connections to the socket, never more than a few hundred: file descriptors and memory are for the work.
//!
//! One more than [`MOST_CONNECTIONS`] is let in, and the quietest is closed for it: one that never made a call before one
//! that did, the longest without a call first, never one with a call under way. So a client that opens connections and
//! leaves them, or sends what is no call, makes room for those that do; an idle sidecar that loses its connection makes
//! a new one at its next call.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::os::Stopwatch;

/// Connections at once.
pub(super) const MOST_CONNECTIONS: usize = 256;
/// How many may be open besides, because they were told to close and have not yet; until one has, others wait.
const MOST_CLOSING: usize = 256;
/// How long they wait before it is looked again.
const CLOSING_PAUSE: Duration = Duration::from_millis(5);
/// How long to wait after accept(2) failed: it fails again at once when file descriptors or memory are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The same thing is not said again for so long.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// A connection as its calls see it.
#[derive(Debug)]
pub(super) struct Peer {
    /// Calls whose answer it has not taken yet.
    under_way: AtomicUsize,
    served: AtomicBool,
    /// Milliseconds on the table's clock: when it came or its last call ended.
    quiet_since: AtomicU64,
    closed: AtomicBool,
    waker: AtomicWaker,
    clock: Stopwatch,
}

impl Peer {
    fn new(clock: Stopwatch) -> Self {
        let peer = Self {
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

    /// A call of this connection, until the guard goes.
    pub(super) fn call(self: &Arc<Self>) -> PeerCall {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        PeerCall(Arc::clone(self))
    }

    /// Closes the connection, whatever is under way.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.waker.wake();
    }
}

/// A call of a connection, which is not quiet meanwhile.
#[derive(Debug)]
pub(super) struct PeerCall(Arc<Peer>);

impl PeerCall {
    /// Whose it is, while that is open.
    pub(super) fn weak(&self) -> Weak<Peer> {
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

/// All connections of a socket.
#[derive(Debug)]
struct Table {
    clock: Stopwatch,
    most: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    peers: BTreeMap<u64, Arc<Peer>>,
    said: Option<Stopwatch>,
}

impl Open {
    /// Whether it is time to say so again.
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

    /// Whether those that were told to close have to go before another is let in.
    fn closing(&self) -> bool {
        let open = self.open();
        open.peers.len() >= self.most + MOST_CLOSING
    }

    /// A place for one more; `None` when all are taken and none is quiet.
    fn admit(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open();
        let staying: Vec<_> = open.peers.values().filter(|peer| !peer.closed.load(Ordering::SeqCst)).collect();
        if staying.len() >= self.most {
            let quiet = staying.into_iter().filter(|peer| peer.under_way.load(Ordering::SeqCst) == 0);
            let rank =
                |peer: &&Arc<Peer>| (peer.served.load(Ordering::Relaxed), peer.quiet_since.load(Ordering::Relaxed));
            let quietest = quiet.min_by_key(rank).map(Arc::clone);
            if let Some(quietest) = &quietest {
                quietest.close();
            }
            if open.may_say() {
                warn!(
                    most = self.most,
                    "there are too many connections to the CSI socket: the quietest are closed; look for a client that leaves them open"
                );
            }
            quietest?;
        }
        let number = open.next;
        open.next += 1;
        let peer = Arc::new(Peer::new(self.clock));
        open.peers.insert(number, Arc::clone(&peer));
        Some(Place { table: Arc::clone(self), number, peer })
    }
}

/// A connection's place in the table, given back when dropped.
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

/// Accepts, for ever.
#[derive(Debug)]
pub(super) struct Incoming {
    listener: UnixListener,
    table: Arc<Table>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// From this socket, at most so many at once.
    pub(super) fn new(listener: UnixListener, most: usize) -> Self {
        let table = Table { clock: Stopwatch::start(), most, open: Mutex::default() };
        Self { listener, table: Arc::new(table), pause: None }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

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
                Ok((io, _)) => match self.table.admit() {
                    Some(place) => return Poll::Ready(Some(Ok(Connection { io, place }))),
                    None => debug!("a connection is refused: all others have calls under way"),
                },
                Err(error) => {
                    if self.table.open().may_say() {
                        warn!("connections to the CSI socket cannot be accepted now: {error}; it is tried again");
                    }
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// One connection: a Unix socket that is broken once it was told to close, for reading and for writing: a server that
/// waits for room to write does not read.
#[derive(Debug)]
pub(super) struct Connection {
    io: UnixStream,
    place: Place,
}

impl Connection {
    /// The socket, while it is not to be closed.
    fn open(&mut self, cx: &Context<'_>) -> io::Result<Pin<&mut UnixStream>> {
        let peer = &self.place.peer;
        peer.waker.register(cx.waker());
        if peer.closed.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(Pin::new(&mut self.io))
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.place.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
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
        Arc::new(Table { clock: Stopwatch::start(), most, open: Mutex::default() })
    }

    fn closed(place: &Place) -> bool {
        place.peer.closed.load(Ordering::SeqCst)
    }

    #[test]
    fn the_newcomer_takes_the_place_of_the_quietest_that_never_called() {
        let table = table(3);
        let places: Vec<_> = (0..3).map(|_| table.admit().unwrap()).collect();
        let calling = places[0].peer.call();
        drop(places[1].peer.call());
        let fourth = table.admit().unwrap();
        assert_eq!(places.iter().map(closed).collect::<Vec<_>>(), [false, false, true]);
        assert!(!closed(&fourth));
        // It is the fourth's turn now: the second made a call once, the first is at it.
        let fifth = table.admit().unwrap();
        assert!(closed(&fourth) && !closed(&places[1]) && !closed(&fifth));
        drop(calling);
    }

    #[test]
    fn a_connection_with_a_call_under_way_is_never_closed_for_another() {
        let table = table(2);
        let places: Vec<_> = (0..2).map(|_| table.admit().unwrap()).collect();
        let calls: Vec<_> = places.iter().map(|place| place.peer.call()).collect();
        assert!(table.admit().is_none());
        drop(calls);
        assert!(table.admit().is_some() && places.iter().filter(|place| closed(place)).count() == 1);
    }

    #[test]
    fn those_that_do_not_go_are_not_joined_by_ever_more() {
        let table = table(1);
        let places: Vec<_> = (0..=MOST_CLOSING).map_while(|_| (!table.closing()).then(|| table.admit())).collect();
        assert!(places.iter().all(Option::is_some) && table.closing());
        drop(places);
        assert!(table.open().peers.is_empty() && !table.closing());
    }
}
