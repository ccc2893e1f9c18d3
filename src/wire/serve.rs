//! Ports and sockets of gRPC: their listeners, and servers with the limits that all have in common.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router};
use tower::layer::util::{Identity, Stack};
use tracing::error;

use super::bounds::Bounds;
use crate::types::{Error, Kind, OsContext, Result};

/// When a server tells its clients to reconnect: a CA removed from `ca.crt` is not used longer.
pub const CONNECTION_AGE: Duration = Duration::from_secs(60 * 60);
/// Concurrent calls on one connection; a client holds back further ones by itself (RFC 9113, section 5.1.2).
const MOST_STREAMS: u32 = 128;
/// The largest header block of a request, in bytes.
const MOST_HEADERS: u32 = 16 << 10;
/// Streams that a client may open and reset at once, before its connection is closed.
const MOST_RESETS: usize = 64;
/// The most bytes that a client may send ahead of what was read: on one stream, and on one connection.
const AHEAD: (u32, u32) = (128 << 10, 512 << 10);
/// How often a connection's peer is probed, and how long it may take to answer: a machine that lost power closes no
/// connection.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// The same for a client of a Unix socket.
const SOCKET_KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// A server whose connections are probed so often.
fn limited((every, answer): (Duration, Duration)) -> Server {
    Server::builder()
        .max_concurrent_streams(MOST_STREAMS)
        .http2_max_header_list_size(MOST_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(MOST_RESETS))
        .http2_keepalive_interval(Some(every))
        .http2_keepalive_timeout(Some(answer))
}

/// A server for a port, without its [`Bounds`].
#[must_use]
pub fn server() -> Server {
    limited(KEEPALIVE).initial_stream_window_size(AHEAD.0).initial_connection_window_size(AHEAD.1)
}

/// A server for a Unix socket.
pub(crate) fn server_of_socket() -> Server {
    limited(SOCKET_KEEPALIVE)
}

/// A server for a port on which only daemons and operators connect.
pub(crate) fn server_of_daemons(bounds: Bounds) -> Server<Stack<Bounds, Identity>> {
    server().max_connection_age(CONNECTION_AGE).layer(bounds)
}

/// Serves a port until `until` completes. A failure is logged with this consequence.
pub(crate) async fn serve<C>(
    server: Router<Stack<Bounds, Identity>>,
    incoming: impl Stream<Item = io::Result<C>>,
    until: impl Future<Output = ()>,
    consequence: &'static str,
) where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    if let Err(failed) = server.serve_with_incoming_shutdown(incoming, until).await {
        error!(error = %failed, "{consequence}");
    }
}

/// Binds a TCP port; `flag` is the flag that messages name.
///
/// # Errors
/// `Precondition` when the address is in use or not one of this machine.
pub(crate) async fn bind(address: SocketAddr, flag: &str) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let message = format!("cannot listen on {flag} {address}; free the port or choose another");
        Error::new(Kind::Precondition, message).because(error)
    })?;
    let address = listener.local_addr().at(|| format!("read the address of {flag}"))?;
    Ok((listener, address))
}
