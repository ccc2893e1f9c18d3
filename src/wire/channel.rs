//! Channels to other processes. Each connects when it is needed, and reconnects after a failure.

use std::path::Path;
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, Write};
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::types::{Error, Kind, Result};

/// The interval of keepalive pings to another daemon, and the time limit of their answer: a machine that lost power
/// does not answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);
/// The time limit to connect; the address is in the same network.
const DIAL: Duration = Duration::from_secs(5);

/// A channel to a daemon of this machine through its Unix socket.
///
/// # Errors
/// `InvalidArgument` for a path that a URI cannot have.
pub fn socket_channel(socket: &Path) -> Result<Channel> {
    let address = format!("unix://{}", socket.display());
    let endpoint = Endpoint::from_shared(address.clone()).map_err(|error| {
        let message = format!("{address:?} is not a valid socket address; use unix:///PATH");
        Error::new(Kind::InvalidArgument, message).because(error)
    })?;
    Ok(endpoint.connect_timeout(DIAL).connect_lazy())
}

/// A channel to `HOST:PORT` through a connector.
///
/// # Errors
/// `InvalidArgument` for an invalid address.
pub fn channel<C>(connector: C, address: &str) -> Result<Channel>
where
    C: Service<Uri> + Send + 'static,
    C::Response: Read + Write + Send + Unpin,
    C::Future: Send,
    Box<dyn std::error::Error + Send + Sync>: From<C::Error>,
{
    let wrong = || Error::new(Kind::InvalidArgument, format!("{address:?} is not a valid address; use HOST:PORT"));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| wrong().because(error))?
        .connect_timeout(DIAL)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}
