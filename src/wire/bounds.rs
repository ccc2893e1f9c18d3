//! The bounds of a gRPC port that others reach over the network. They hold before a call is looked at: who may not make
//! it is told so before its message is read.

#![expect(clippy::disallowed_methods, reason = "these refusals are made before any service has the call")]

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Extensions;
use http_body::Body as _;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Server;
use tower::{Layer, Service};

use super::connections::Peer;
use super::traffic::{ARRIVAL, Arrival, Arriving, MostArriving, answer};
use super::turns::{Turn, Turns};

type HttpRequest = http::Request<Body>;
type HttpResponse = http::Response<Body>;

/// Calls at once on one connection; a client keeps further ones back by itself (RFC 9113, section 5.1.2).
const MOST_STREAMS: u32 = 128;
/// The largest header block of a request, in bytes.
const MOST_HEADERS: u32 = 16 << 10;
/// Streams that a client opened and gave up at once, before it is hung up on.
const MOST_RESETS: usize = 64;
/// What a client may send ahead of what was read of it, in bytes: on one stream, and on one connection.
const AHEAD: (u32, u32) = (128 << 10, 512 << 10);
/// How often a connection's other side is asked whether it is still there, and how long it may take to say so: a machine
/// that lost its power says nothing.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);

/// A server for such a port, without its [`Bounds`].
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(MOST_STREAMS)
        .http2_max_header_list_size(MOST_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(MOST_RESETS))
        .initial_stream_window_size(AHEAD.0)
        .initial_connection_window_size(AHEAD.1)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
}

/// What the client of a call may have under way.
#[derive(Clone, Debug)]
pub struct Allowance {
    /// What it is counted by.
    pub client: Arc<str>,
    /// The connection the call came on.
    pub connection: Option<Arc<Peer>>,
    /// Its calls at once, with those whose answers it has not taken yet.
    pub calls: usize,
    /// The bytes of this call's request.
    pub bytes: usize,
}

/// Who may make which call, as far as the request's head shows.
pub trait Door: Send + Sync + 'static {
    /// Lets a call in, by what is known of its connection and by its HTTP path.
    ///
    /// # Errors
    /// The answer of a call that is not let in.
    fn admit(&self, from: &Extensions, path: &str) -> Result<Allowance, Status>;
}

/// The bounds of one port, as a layer of its server. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Bounds(Arc<Shared>);

struct Shared {
    door: Box<dyn Door>,
    arriving: Arriving,
    calls: Turns,
}

impl fmt::Debug for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounds").field("arriving", &self.0.arriving).finish_non_exhaustive()
    }
}

impl Bounds {
    /// For a port with this door.
    pub fn new(door: impl Door, most: MostArriving) -> Self {
        let (arriving, calls) = (Arriving::new(most), Turns::default());
        Self(Arc::new(Shared { door: Box::new(door), arriving, calls }))
    }

    fn admit(&self, request: &HttpRequest) -> Result<(Allowance, Turn, Arrival), Status> {
        let allowance = self.0.door.admit(request.extensions(), request.uri().path())?;
        let turn = self.0.calls.take(&allowance.client, allowance.calls).ok_or_else(crowded)?;
        let arrival = self.0.arriving.admit(&allowance.client).ok_or_else(flooded)?;
        Ok((allowance, turn, arrival))
    }
}

impl<S> Layer<S> for Bounds {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, bounds: self.clone() }
    }
}

/// Services behind the bounds.
#[derive(Clone, Debug)]
pub struct Bounded<S> {
    inner: S,
    bounds: Bounds,
}

impl<S> Service<HttpRequest> for Bounded<S>
where
    S: Service<HttpRequest, Response = HttpResponse, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = HttpResponse;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        let (allowance, turn, arrival) = match self.bounds.admit(&request) {
            Ok(admitted) => admitted,
            Err(refusal) => return Box::pin(async move { Ok(refusal.into_http()) }),
        };
        let request = request.map(|body| arrival.bounded(body, allowance.bytes, flooded, late));
        let inner = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, inner);
        Box::pin(async move {
            let response = ready.call(request).await?;
            // Requests that never arrive make nobody busy: a connection has a call once there is something to be taken.
            let is_taken = response.body().is_end_stream();
            let call = allowance.connection.filter(|_| !is_taken).map(|connection| connection.call());
            Ok(response.map(|body| answer(body, call, Some(turn))))
        })
    }
}

fn crowded() -> Status {
    Status::unavailable("this client has too many calls under way at this port; retry when some have ended")
}

fn flooded() -> Status {
    Status::unavailable("too many bytes of requests of this client are on their way into this port; retry later")
}

fn late() -> Status {
    Status::unavailable(format!("the request did not arrive within {} s; nothing was begun", ARRIVAL.as_secs()))
}

/// A message of more parts than its length is worth.
pub(super) fn crumbled(most: usize) -> Status {
    Status::invalid_argument(format!("the message has more than {most} parts, which is too many for its length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Open;

    impl Door for Open {
        fn admit(&self, _: &Extensions, path: &str) -> Result<Allowance, Status> {
            Ok(Allowance { client: path.into(), connection: None, calls: 2, bytes: 10 })
        }
    }

    #[test]
    fn a_client_has_so_many_calls_under_way_and_others_have_theirs() {
        let bounds = Bounds::new(Open, MostArriving { all: 1 << 20, of_one: 1 << 20 });
        let ask = |path: &str| bounds.admit(&http::Request::builder().uri(path).body(Body::empty()).unwrap());
        let (first, second) = (ask("/a").unwrap(), ask("/a").unwrap());
        assert_eq!(ask("/a").map(drop).unwrap_err().code(), tonic::Code::Unavailable);
        assert!(ask("/b").is_ok());
        drop(first);
        assert!(ask("/a").is_ok());
        drop(second);
    }

    #[test]
    fn one_client_s_bytes_are_not_anothers() {
        let bounds = Bounds::new(Open, MostArriving { all: 1 << 20, of_one: 40 << 10 });
        let ask = |path: &str| bounds.admit(&http::Request::builder().uri(path).body(Body::empty()).unwrap());
        let kept: Vec<_> = [ask("/a").unwrap(), ask("/a").unwrap()].into();
        assert!(ask("/b").is_ok());
        drop(kept);
        assert!(ask("/a").is_ok());
    }
}
