//! What each fuzz target does with its bytes. A target panics when the driver breaks a promise; that it does not panic
//! or hang by itself comes for free.

pub mod config;
pub mod enrol;
pub mod handle;
pub mod mountinfo;
pub mod options;
pub mod parameters;
pub mod pool_json;
pub mod probe;
pub mod record;
pub mod rpc;

/// The text of an input; inputs that are none are of no use to parsers of `&str`.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}
