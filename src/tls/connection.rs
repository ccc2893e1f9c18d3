//! An established connection: bytes, the identity of the peer, and an end.

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
use super::places::Place;
use super::refusal::{Reason, Refusal};
use super::role::{Link, Peer};
use super::verify::Seen;
use crate::os::{Stopwatch, Timestamp};
use crate::wire::{self, GuestPlace, UnauthenticatedClient};

/// When a connection is closed in any case.
const MOST_AGE: Duration = Duration::from_secs(70 * 60);
/// When a connection without a client certificate is closed.
const ANONYMOUS_AGE: Duration = Duration::from_secs(30);

/// How the peer is identified.
pub(super) enum Known<'a> {
    /// Not at all: plain text.
    Plain,
    /// By the certificate of the handshake.
    Seen(&'a Mutex<Seen>),
    /// Without a certificate, which was not requested.
    Anonymous(IpAddr),
}

/// The place that the connection occupies, released when it is dropped.
pub(super) enum Held {
    /// None: a client's connection.
    Nothing,
    /// Among those with an identity.
    Known(#[expect(dead_code, reason = "it counts as long as it is there")] Place),
    /// Among those without one.
    UnauthenticatedClient(GuestPlace),
}

/// Plain text or encrypted.
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

/// One connection between daemons. It ends when the peer's certificate expires, and ten minutes after
/// [`wire::CONNECTION_AGE`] in any case.
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
    /// The same connection, as its calls use it.
    link: Arc<wire::Peer>,
}

impl Connection {
    /// From the result of a handshake.
    pub(super) fn new(
        wire: Wire,
        known: &Known<'_>,
        side: &'static str,
        address: String,
        credentials: Credentials,
    ) -> Result<Self, Refusal> {
        let (peer, left) = match known {
            Known::Plain => (Peer::Unverified, MOST_AGE),
            Known::Anonymous(address) => (Peer::Anonymous(UnauthenticatedClient::new(*address)), ANONYMOUS_AGE),
            Known::Seen(seen) => {
                let verified = seen.lock().unwrap_or_else(PoisonError::into_inner).verified.clone();
                let Some((name, not_after)) = verified else {
                    return Err(Refusal::new(Reason::NoCertificate, "the peer was not verified"));
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

    /// The peer.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// An error once its time is over, or another connection took its place.
    fn alive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.ended && self.end.as_mut().poll(cx).is_ready() {
            self.ended = true;
            debug!(
                peer = %self.peer, address = %self.address,
                "the connection has reached its age limit, or the peer's certificate has expired"
            );
        }
        if let (false, Held::UnauthenticatedClient(place)) = (self.ended, &mut self.place) {
            self.ended = place.is_gone(cx);
        }
        if !self.ended && self.link.is_closed(cx) {
            self.ended = true;
        }
        if self.ended { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// Only now a TLS 1.3 client learns that the server refused it.
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
