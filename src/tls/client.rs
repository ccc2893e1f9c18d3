//! Connecting to a server with one role.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};
use tower::Service;

use super::connection::{Connection, Known, Wire};
use super::credentials::{Credentials, Now};
use super::refusal::{Reason, Refusal};
use super::role::RoleName;
use crate::os::Timestamp;
use crate::types::{Error, Kind, Result};

const SIDE: &str = "client";
/// The limit for name resolution and dialling.
const DIAL: Duration = Duration::from_secs(5);
/// The limit for the handshake after that.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A tower service from an address (`http://HOST:PORT`) to a connection whose server has exactly the expected role.
///
/// # Errors
/// Of a call: `Unavailable` when no server answers, `Denied` when the server has another role or refuses us during the
/// handshake. A TLS 1.3 server may refuse us a moment later: then the first call on the connection fails.
#[derive(Clone)]
pub struct Connector {
    credentials: Credentials,
    expected: RoleName,
}

impl Connector {
    pub(super) fn new(credentials: Credentials, expected: RoleName) -> Self {
        Self { credentials, expected }
    }

    async fn connect(self, uri: Uri) -> Result<Connection> {
        let (host, port) = match (uri.host(), uri.port_u16()) {
            (Some(host), Some(port)) => (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port),
            _ => {
                return Err(Error::new(
                    Kind::InvalidArgument,
                    format!("{uri} is not an address; use http://HOST:PORT"),
                ));
            }
        };
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        let refuse = |kind, names: Option<&str>, refusal: &Refusal| {
            self.credentials.refused(SIDE, &address, &address, names, refusal);
            let expected = &self.expected;
            Error::new(kind, format!("{expected} at {address} cannot be reached: {}", refusal.why))
        };
        let config = match self.credentials.current().await {
            Now::Plain => None,
            Now::Mutual(material) => {
                self.credentials.look_at_own(&material, Timestamp::now().seconds());
                Some(material.client(&self.expected)?)
            }
            Now::Trusting(trust) => Some(trust.client(&self.expected)?),
            Now::Missing(why) => {
                let why = format!("this process has no certificate: {why}");
                return Err(refuse(Kind::Unavailable, None, &Refusal::new(Reason::NoOwnCertificate, why)));
            }
        };
        let tcp = match timeout(DIAL, TcpStream::connect((host, port))).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => {
                return Err(refuse(Kind::Unavailable, None, &Refusal::new(Reason::NoAnswer, error.to_string())));
            }
            Err(_) => {
                let why = format!("the server did not answer within {} s", DIAL.as_secs());
                return Err(refuse(Kind::Unavailable, None, &Refusal::new(Reason::NoAnswer, why)));
            }
        };
        // Small messages are sent without delay; a socket that does not support it works as well.
        let _ = tcp.set_nodelay(true);
        let broken = |refusal| refuse(Kind::Denied, None, &refusal);
        let Some((config, seen)) = config else {
            let (wire, credentials) = (Wire::Plain(tcp), self.credentials.clone());
            return Connection::new(wire, &Known::Plain, SIDE, address.clone(), credentials).map_err(broken);
        };
        let name = ServerName::try_from(self.expected.as_str().to_owned())
            .map_err(|error| Error::new(Kind::Internal, "a role's name is not a DNS name").because(error))?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        match timeout(HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => {
                let wire = Wire::Tls(Box::new(TlsStream::Client(stream)));
                let known = Known::Seen(&seen);
                Connection::new(wire, &known, SIDE, address.clone(), self.credentials.clone()).map_err(broken)
            }
            Ok(Err(error)) => {
                let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let refusal = seen.refusal.unwrap_or_else(|| Refusal::of(&error));
                let kind = if refusal.reason == Reason::Gone { Kind::Unavailable } else { Kind::Denied };
                Err(refuse(kind, seen.shown.as_deref(), &refusal))
            }
            Err(_) => {
                let why = format!("the handshake did not finish within {} s", HANDSHAKE.as_secs());
                Err(refuse(Kind::Unavailable, None, &Refusal::new(Reason::Timeout, why)))
            }
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}
