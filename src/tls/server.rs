//! Accepting connections: handshakes in tasks of their own, limited in time and number.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_stream::Stream;
use tracing::error;

use super::connection::{Connection, Held, Known, Wire};
use super::credentials::{Credentials, Now};
use super::places::{Place, Table};
use super::refusal::{Reason, Refusal};
use super::role::Peer;
use crate::os::Timestamp;
use crate::wire::{Guests, Network, Shares};

const SIDE: &str = "server";
/// The limit for a whole handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Concurrent handshakes. One more ends the oldest: a normal one takes milliseconds, and a stalled one is not waited
/// for.
const MOST_HANDSHAKES: usize = 256;
/// How long to wait after accept(2) failed: it fails again at once when file descriptors or memory are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The places of a port.
#[derive(Clone, Debug, Default)]
struct Places {
    known: Arc<Mutex<Table>>,
    guests: Arc<Guests>,
}

impl Places {
    /// The connection with a place, if there is a free one.
    fn admit(&self, made: Connection, credentials: &Credentials) -> Result<Connection, Refusal> {
        let place = match made.peer() {
            Peer::Verified(name) => Held::Known(Place::take(&self.known, Some(name))?),
            Peer::Unverified => Held::Known(Place::take(&self.known, None)?),
            Peer::Anonymous(guest) => {
                let full = || {
                    Refusal::new(
                        Reason::Overloaded,
                        "all places for clients without a certificate are taken by recent ones; retry later",
                    )
                };
                let (place, left) = self.guests.admit(guest).ok_or_else(full)?;
                if let Some(left) = left {
                    let why = "a new client needed the place: this client had it long enough, or its network has many";
                    let refusal = Refusal::new(Reason::Overloaded, why);
                    credentials.refused(SIDE, &left.network().to_string(), &left.to_string(), None, &refusal);
                }
                Held::UnauthenticatedClient(place)
            }
        };
        Ok(made.with_place(place))
    }
}

/// The clients that a port accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clients {
    /// Those with a certificate.
    Certified,
    /// All; a certificate is not requested, and no client has a role.
    Anybody,
}

/// Connections whose handshake is done, without end. Refused ones are logged and counted, and never an item.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    credentials: Credentials,
    clients: Clients,
    places: Places,
    handshakes: JoinSet<Option<Connection>>,
    /// The same handshakes, the oldest first.
    order: VecDeque<AbortHandle>,
    most_handshakes: usize,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(super) fn new(listener: TcpListener, credentials: Credentials, clients: Clients) -> Self {
        let (handshakes, order) = (JoinSet::new(), VecDeque::new());
        let (places, most_handshakes) = (Places::default(), MOST_HANDSHAKES);
        Self { listener, credentials, clients, places, handshakes, order, most_handshakes, pause: None }
    }

    /// With no more connections than the port's share.
    #[must_use]
    pub fn within(mut self, shares: Shares) -> Self {
        self.most_handshakes = shares.handshakes();
        self.places = Places {
            known: Arc::new(Mutex::new(Table::of(shares.daemons()))),
            guests: Arc::new(Guests::of(shares.enrolling())),
        };
        self
    }

    fn begin(&mut self, tcp: TcpStream, address: SocketAddr) {
        self.order.retain(|handshake| !handshake.is_finished());
        while self.order.len() >= self.most_handshakes {
            let Some(oldest) = self.order.pop_front() else { break };
            oldest.abort();
            let refusal =
                Refusal::new(Reason::Timeout, "too many handshakes: the oldest unfinished one is ended for a new one");
            self.credentials.refused(SIDE, "many", "many", None, &refusal);
        }
        let handshake = accept(tcp, address, self.credentials.clone(), self.clients, self.places.clone());
        self.order.push_back(self.handshakes.spawn(handshake));
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(connection)))) => return Poll::Ready(Some(Ok(connection))),
                Poll::Ready(Some(Ok(None))) => continue,
                Poll::Ready(Some(Err(ended))) => {
                    if ended.is_panic() {
                        error!("a handshake panicked: {ended}");
                    }
                    continue;
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((tcp, address)) => self.begin(tcp, address),
                Err(error) => {
                    let refusal = Refusal::new(Reason::Overloaded, format!("accept failed and is retried: {error}"));
                    self.credentials.refused(SIDE, "listener", "any", None, &refusal);
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// One handshake; a refusal is logged and counted here.
async fn accept(
    tcp: TcpStream,
    address: SocketAddr,
    credentials: Credentials,
    clients: Clients,
    places: Places,
) -> Option<Connection> {
    let mut names = None;
    let made = match timeout(HANDSHAKE, handshake(tcp, address, &credentials, clients, &mut names)).await {
        Ok(made) => made,
        Err(_) => {
            let why = format!("the handshake did not finish within {} s", HANDSHAKE.as_secs());
            Err(Refusal::new(Reason::Timeout, why))
        }
    };
    made.and_then(|made| places.admit(made, &credentials))
        .map_err(|refusal| {
            let place = Network::of(address.ip()).to_string();
            credentials.refused(SIDE, &place, &address.to_string(), names.as_deref(), &refusal);
        })
        .ok()
}

async fn handshake(
    tcp: TcpStream,
    address: SocketAddr,
    credentials: &Credentials,
    clients: Clients,
    names: &mut Option<String>,
) -> Result<Connection, Refusal> {
    // Small messages are sent without delay; a socket that does not support it works as well.
    let _ = tcp.set_nodelay(true);
    let material = match credentials.current().await {
        Now::Plain => {
            return Connection::new(Wire::Plain(tcp), &Known::Plain, SIDE, address.to_string(), credentials.clone());
        }
        Now::Mutual(material) => material,
        Now::Missing(why) => {
            let why = format!("this process has no certificate: {why}");
            return Err(Refusal::new(Reason::NoOwnCertificate, why));
        }
        Now::Trusting(_) => {
            return Err(Refusal::new(Reason::NoOwnCertificate, "this process is a client only"));
        }
    };
    credentials.look_at_own(&material, Timestamp::now().seconds());
    let unfit = |error: crate::types::Error| Refusal::new(Reason::Protocol, error.chain());
    if clients == Clients::Anybody {
        let config = material.server_of_anybody().map_err(unfit)?;
        let stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await.map_err(|error| Refusal::of(&error))?;
        let wire = Wire::Tls(Box::new(TlsStream::Server(stream)));
        let known = Known::Anonymous(address.ip());
        return Connection::new(wire, &known, SIDE, address.to_string(), credentials.clone());
    }
    let (config, seen) = material.server().map_err(unfit)?;
    let handshake = TlsAcceptor::from(Arc::new(config)).accept(tcp).await;
    let noted = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    *names = noted.shown;
    match handshake {
        Ok(stream) => {
            let wire = Wire::Tls(Box::new(TlsStream::Server(stream)));
            Connection::new(wire, &Known::Seen(&seen), SIDE, address.to_string(), credentials.clone())
        }
        Err(error) => Err(noted.refusal.unwrap_or_else(|| Refusal::of(&error))),
    }
}
