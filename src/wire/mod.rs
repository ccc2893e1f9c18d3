//! The limits that all ports and sockets have in common: the number of connections, the time that a request may take to
//! arrive and an answer to be read, and the bytes and calls that one client may have in progress.
//!
//! It knows neither permissions (a [`Door`] decides) nor the meaning of the calls.

mod bounds;
mod channel;
mod codec;
mod complaints;
mod connections;
mod serve;
mod shares;
pub(crate) mod socket;
mod traffic;
mod turns;
mod unauthenticated;

pub use bounds::{Allowance, Bounds, Door};
pub use channel::{channel, socket_channel};
pub use codec::Codec;
pub use complaints::RateLimitedLog;
pub use connections::Peer;
pub(crate) use connections::{Connection, Incoming, Most, PeerCall};
pub use serve::{CONNECTION_AGE, server};
pub(crate) use serve::{bind, serve, server_of_daemons, server_of_socket};
pub use shares::Shares;
pub use traffic::MostArriving;
pub(crate) use traffic::{ARRIVAL, Arrival, Arriving, answer};
pub use turns::{Turn, Turns};
pub(crate) use unauthenticated::{GuestPlace, Guests};
pub use unauthenticated::{LookedAt, Network, UnauthenticatedClient};
