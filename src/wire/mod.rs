//! What all gRPC interfaces have in common.
//!
//! - `serve`, `socket`, `channel`: listeners, servers and channels.
//! - `bounds`, `connections`, `traffic`, `turns`, `shares`, `unauthenticated`: the limits of a client: its connections,
//!   the time that a request may take to arrive and an answer to be read, the bytes and calls in progress.
//! - `error`: errors between daemons as statuses, and back. CSI has its own map, in `csi::status`.
//! - `works`: threads for the work of calls.
//!
//! It knows neither permissions (a [`Door`] decides) nor the meaning of the calls.

mod bounds;
mod channel;
mod codec;
mod complaints;
mod connections;
mod error;
pub mod proto;
mod serve;
mod shares;
pub(crate) mod socket;
mod traffic;
mod turns;
mod unauthenticated;
mod works;

pub use bounds::{Allowance, Bounds, Door};
pub use channel::{channel, socket_channel};
pub use codec::Codec;
pub use complaints::RateLimitedLog;
pub use connections::Peer;
pub(crate) use connections::{Connection, Incoming, Most, PeerCall};
pub use error::{busy, denied, failure, overdue, reason, run, status};
pub use serve::{CONNECTION_AGE, server};
pub(crate) use serve::{bind, serve, server_of_daemons, server_of_socket};
pub use shares::Shares;
pub use traffic::MostArriving;
pub(crate) use traffic::{ARRIVAL, Arrival, Arriving, answer};
pub use turns::{Turn, Turns};
pub(crate) use unauthenticated::{GuestPlace, Guests};
pub use unauthenticated::{LookedAt, Network, UnauthenticatedClient};
pub use works::{Crowd, Ended, Share, Slot, WorkerPool, reason_of};
