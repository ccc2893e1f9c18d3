//! A connection that was made: bytes, who is at the other end, and an end.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;
use tracing::debug;

use super::credentials::Credentials;
use super::refusal::{Reason, Refusal};
use super::role::{Link, Peer};
use super::verify::Seen;
use crate::os::{Stopwatch, Timestamp};
use crate::wire::{self, Guest, GuestPlace};

/// When a server should tell its clients to connect anew (tonic's `max_connection_age`): what left `ca.crt` is gone by then.
pub const CONNECTION_AGE: Duration = Duration::from_secs(60 * 60);
/// When a connection is cut, told or not.
const MOST_AGE: Duration = Duration::from_secs(70 * 60);
/// When a connection of somebody without a certificate is cut.
const ANONYMOUS_AGE: Duration = Duration::from_secs(30);

/// How the other side is known.
pub(super) enum Known<'a> {
    /// Not at all: plain text.
    Plain,
    /// By what the handshake showed.
    Seen(&'a Mutex<Seen>),
    /// It showed nothing, and was not asked to.
    Anonymous(IpAddr),
}

/// What counts it, given back when it goes.
pub(super) enum Held {
    /// Nothing: a client's.
    Nothing,
    /// Among those that are known.
    Known(#[expect(dead_code, reason = "it counts as long as it is there")] super::server::Place),
    /// Among those that are not.
    Guest(GuestPlace),
}

/// Plain or encrypted.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! on_wire {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.wire {
            Wire::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Wire::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

/// One connection between daemons. It ends when the other side's certificate expires, and after [`CONNECTION_AGE`] and ten
/// minutes in any case.
pub struct Connection {
    wire: Wire,
    peer: Peer,
    side: &'static str,
    address: String,
    credentials: Credentials,
    end: Pin<Box<Sleep>>,
    ended: bool,
    told: bool,
    place: Held,
    /// The same connection as its calls see it.
    link: Arc<wire::Peer>,
}

impl Connection {
    /// What a handshake ended as.
    pub(super) fn new(
        wire: Wire,
        known: &Known<'_>,
        side: &'static str,
        address: String,
        credentials: Credentials,
    ) -> Result<Self, Refusal> {
        let (peer, left) = match known {
            Known::Plain => (Peer::Unverified, MOST_AGE),
            Known::Anonymous(address) => (Peer::Anonymous(Guest::new(*address)), ANONYMOUS_AGE),
            Known::Seen(seen) => {
                let verified = seen.lock().unwrap_or_else(PoisonError::into_inner).verified.clone();
                let Some((name, not_after)) = verified else {
                    return Err(Refusal::new(Reason::NoCertificate, "it was not verified"));
                };
                let left = not_after.saturating_sub(Timestamp::now().seconds()).saturating_add(1);
                let left = Duration::from_secs(u64::try_from(left).unwrap_or_default());
                (Peer::Verified(name), left.min(MOST_AGE))
            }
        };
        credentials.metrics().connected(side);
        let end = Box::pin(sleep(left));
        let client = match &peer {
            Peer::Verified(name) => name.to_string(),
            Peer::Anonymous(guest) => guest.network().to_string(),
            Peer::Unverified => format!("unverified {}", address.rsplit_once(':').map_or(&*address, |(host, _)| host)),
        };
        let link = Arc::new(wire::Peer::new(&client, Stopwatch::start()));
        Ok(Self { wire, peer, side, address, credentials, end, ended: false, told: false, place: Held::Nothing, link })
    }

    pub(super) fn with_place(mut self, place: Held) -> Self {
        self.place = place;
        self
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// An error once its time is over, or its place another's.
    fn alive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.ended && self.end.as_mut().poll(cx).is_ready() {
            self.ended = true;
            debug!(peer = %self.peer, address = %self.address, "a connection has reached its age or its certificate's end");
        }
        if let (false, Held::Guest(place)) = (self.ended, &mut self.place) {
            self.ended = place.is_gone(cx);
        }
        if !self.ended && self.link.is_closed(cx) {
            self.ended = true;
        }
        if self.ended { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// A TLS 1.3 client learns only now that the server refused it.
    fn look_at(&mut self, error: &io::Error) {
        if let Some(refusal) = Refusal::by_peer(error)
            && !std::mem::replace(&mut self.told, true)
        {
            let names = self.peer.to_string();
            self.credentials.refused(self.side, &self.address, &self.address, Some(&names), &refusal);
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, side, address, .. } = self;
        f.debug_struct("Connection")
            .field("peer", peer)
            .field("side", side)
            .field("address", address)
            .finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.credentials.metrics().disconnected(self.side);
    }
}

impl Connected for Connection {
    type ConnectInfo = Link;

    fn connect_info(&self) -> Link {
        Link { peer: self.peer.clone(), connection: Arc::clone(&self.link) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        let polled = on_wire!(self, stream => stream.poll_read(cx, buf));
        if let Poll::Ready(Err(error)) = &polled {
            self.look_at(error);
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        on_wire!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        on_wire!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        on_wire!(self, stream => stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        on_wire!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(stream) => stream.is_write_vectored(),
            Wire::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
