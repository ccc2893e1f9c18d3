//! The limits that all ports and sockets have in common: the number of connections, the time that a request may take to
//! arrive and an answer to be read, and the bytes and calls that one client may have in progress.
//!
//! It knows neither permissions (a [`Door`] decides) nor the meaning of the calls.

mod bounds;
mod codec;
mod complaints;
mod connections;
mod guests;
mod shares;
mod traffic;
mod turns;

pub use bounds::{Allowance, Bounds, Door, server};
pub use codec::Codec;
pub use complaints::Complaints;
pub use connections::Peer;
pub(crate) use connections::{Connection, Incoming, Most, PeerCall};
pub use guests::{Guest, LookedAt, Network};
pub(crate) use guests::{GuestPlace, Guests};
pub use shares::Shares;
pub use traffic::MostArriving;
pub(crate) use traffic::{ARRIVAL, Arrival, Arriving, answer};
pub use turns::{Turn, Turns};
