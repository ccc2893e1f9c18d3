//! The limits of a gRPC port that is reachable over the network. They apply before a call is processed: a client
//! without permission is refused before its message is read.

#![expect(clippy::disallowed_methods, reason = "these refusals are made before any service has the call")]

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Extensions;
use http_body::Body as _;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::connections::Peer;
use super::traffic::{ARRIVAL, Arrival, Arriving, MostArriving, answer};
use super::turns::{Turn, Turns};

type HttpRequest = http::Request<Body>;
type HttpResponse = http::Response<Body>;

/// What the client of a call may have in progress.
#[derive(Clone, Debug)]
pub struct Allowance {
    /// The key that it is counted by.
    pub client: Arc<str>,
    /// The connection the call came on.
    pub connection: Option<Arc<Peer>>,
    /// Its concurrent calls, including those whose answers it has not read yet.
    pub calls: usize,
    /// The bytes of this call's request.
    pub bytes: usize,
}

/// Decides which client may make which call, by the request's head.
pub trait Door: Send + Sync + 'static {
    /// Admits a call, by its connection and its HTTP path.
    ///
    /// # Errors
    /// The answer of a call that is refused.
    fn admit(&self, from: &Extensions, path: &str) -> Result<Allowance, Status>;
}

/// The limits of one port, as a layer of its server. Cheap to clone; clones share the counts.
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

/// Services with the limits.
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
            // A request that never arrives must not make a connection count as busy: its call begins once there is a
            // message.
            let is_taken = response.body().is_end_stream();
            let call = allowance.connection.filter(|_| !is_taken).map(|connection| connection.call());
            Ok(response.map(|body| answer(body, call, Some(turn))))
        })
    }
}

fn crowded() -> Status {
    Status::unavailable("this client has too many calls in progress at this port; retry when some have finished")
}

fn flooded() -> Status {
    Status::unavailable("this port is receiving too many bytes of requests of this client at once; retry later")
}

fn late() -> Status {
    Status::unavailable(format!(
        "the request did not arrive within {} s; nothing was started; retry",
        ARRIVAL.as_secs()
    ))
}

/// A message with more parts than its length justifies.
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
}
