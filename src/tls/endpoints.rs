//! What certificates are used for: ports that accept connections, and connections to other daemons.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tonic::transport::Channel;

use super::client::Connector;
use super::credentials::Credentials;
use super::role::Role;
use super::server::{Clients, Incoming};
use crate::types::Result;
use crate::wire::{self, Shares};

impl Credentials {
    /// Connections accepted from a listener, for tonic's `serve_with_incoming_shutdown`; give the server
    /// `max_connection_age(CONNECTION_AGE)`. Each request then has a [`super::Peer`] in its extensions.
    #[must_use]
    pub fn incoming(&self, listener: TcpListener) -> Incoming {
        Incoming::new(listener, self.clone(), Clients::Certified)
    }

    /// The same from clients that need no certificate. Each request has a [`super::Peer::Anonymous`], which has no
    /// permissions; each connection ends after 30 s, and their number is small.
    #[must_use]
    pub fn incoming_from_anybody(&self, listener: TcpListener) -> Incoming {
        Incoming::new(listener, self.clone(), Clients::Anybody)
    }

    /// Connects to servers with exactly this role, for tonic's `connect_with_connector_lazy`.
    #[must_use]
    pub fn connector(&self, role: &Role) -> Connector {
        Connector::new(self.clone(), role.name())
    }

    /// Listens on `--listen` for daemons and operators, within the share of the port.
    ///
    /// # Errors
    /// `Precondition` when the address is in use.
    pub async fn listen(&self, address: SocketAddr, shares: Shares) -> Result<(Incoming, SocketAddr)> {
        let (listener, address) = wire::bind(address, "--listen").await?;
        Ok((self.incoming(listener).within(shares), address))
    }

    /// Listens on `--enrol-listen` for clients without a certificate, within the share of the port.
    ///
    /// # Errors
    /// `Precondition` when the address is in use.
    pub async fn listen_to_anybody(&self, address: SocketAddr, shares: Shares) -> Result<(Incoming, SocketAddr)> {
        let (listener, address) = wire::bind(address, "--enrol-listen").await?;
        Ok((self.incoming_from_anybody(listener).within(shares), address))
    }

    /// A channel to another daemon at `HOST:PORT`, which must have this role. Connects when needed, and reconnects after
    /// a failure. Needs a running tokio runtime.
    ///
    /// # Errors
    /// `InvalidArgument` for an invalid address.
    pub fn channel(&self, role: &Role, address: &str) -> Result<Channel> {
        wire::channel(self.connector(role), address)
    }
}
