//! What every port and socket has in common: how many connections, how long a request may take to arrive and an answer
//! to be taken, how many bytes and calls one client may have under way, and what is left for the work.
//!
//! Knows neither who may ask what (a [`Door`] says that) nor what the calls mean.

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
