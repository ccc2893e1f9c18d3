//! Arriving requests and outgoing answers: both have a time limit, and requests a common size limit, so that clients
//! that send or read slowly hold neither memory nor the turn of others.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tracing::{Instrument, Span, info};

use super::connections::PeerCall;

/// How long a request may take to arrive.
pub(crate) const ARRIVAL: Duration = Duration::from_secs(10);
/// How long an answer may wait to be read.
const TAKING: Duration = Duration::from_secs(30);
/// The cost of an arriving request before its first byte: its headers and state.
const ONE_ARRIVING: usize = 16 << 10;

/// The most bytes that may be arriving at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MostArriving {
    /// Of all clients together.
    pub all: usize,
    /// Of one client.
    pub of_one: usize,
}

/// The bytes that are arriving. Cheap to clone; clones share the count.
#[derive(Clone, Debug)]
pub(crate) struct Arriving(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    most: MostArriving,
    all: AtomicUsize,
    /// By client; without those that have none arriving.
    of: Mutex<BTreeMap<Arc<str>, usize>>,
}

impl Arriving {
    /// Empty.
    pub(crate) fn new(most: MostArriving) -> Self {
        Self(Arc::new(Counted { most, all: AtomicUsize::new(0), of: Mutex::default() }))
    }

    /// A request of a client that begins to arrive; `None` when the limit is reached.
    pub(crate) fn admit(&self, client: &Arc<str>) -> Option<Arrival> {
        let mut arrival = Arrival { all: self.clone(), client: Arc::clone(client), bytes: 0 };
        arrival.grow(ONE_ARRIVING).then_some(arrival)
    }

    fn of(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, usize>> {
        self.0.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An arriving request; its bytes are released when it is dropped.
#[derive(Debug)]
pub(crate) struct Arrival {
    all: Arriving,
    client: Arc<str>,
    bytes: usize,
}

impl Arrival {
    /// Adds so many bytes; false when the limit is reached.
    fn grow(&mut self, bytes: usize) -> bool {
        let counted = &self.all.0;
        let before = counted.all.fetch_add(bytes, Ordering::SeqCst);
        self.bytes += bytes;
        let own = {
            let mut of = self.all.of();
            let own = of.entry(Arc::clone(&self.client)).or_default();
            *own += bytes;
            *own
        };
        before.saturating_add(bytes) <= counted.most.all && own <= counted.most.of_one
    }

    /// The request's body, counted until it has ended. An incomplete one ends with the status `refused`.
    pub(crate) fn body(self, inner: Body, refused: fn() -> Status) -> Body {
        Body::new(ArrivingBody { inner, arrival: Some(self), refused, limit: None })
    }

    /// The same, with at most so many bytes, within [`ARRIVAL`].
    pub(crate) fn bounded(self, inner: Body, most: usize, refused: fn() -> Status, late: fn() -> Status) -> Body {
        let limit = Limit { left: most, end: Box::pin(sleep(ARRIVAL)), late };
        Body::new(ArrivingBody { inner, arrival: Some(self), refused, limit: Some(limit) })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.all.0.all.fetch_sub(self.bytes, Ordering::SeqCst);
        let mut of = self.all.of();
        if let Some(own) = of.get_mut(&self.client) {
            *own -= self.bytes;
            if *own == 0 {
                of.remove(&self.client);
            }
        }
    }
}

/// The limits of one request.
struct Limit {
    /// Bytes.
    left: usize,
    end: Pin<Box<Sleep>>,
    late: fn() -> Status,
}

struct ArrivingBody {
    inner: Body,
    arrival: Option<Arrival>,
    refused: fn() -> Status,
    limit: Option<Limit>,
}

impl HttpBody for ArrivingBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                let is_too_long = self.limit.as_mut().is_some_and(|limit| {
                    let is_too_long = length > limit.left;
                    limit.left = limit.left.saturating_sub(length);
                    is_too_long
                });
                if is_too_long || self.arrival.as_mut().is_some_and(|arrival| !arrival.grow(length)) {
                    self.arrival = None;
                    return Poll::Ready(Some(Err((self.refused)())));
                }
            }
            Poll::Ready(None | Some(Err(_))) => self.arrival = None,
            Poll::Pending => {
                if let Some(limit) = &mut self.limit
                    && limit.end.as_mut().poll(cx).is_ready()
                {
                    let late = (limit.late)();
                    (self.arrival, self.limit) = (None, None);
                    return Poll::Ready(Some(Err(late)));
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body; until it was read, its call is in progress for its connection, and its work's slot is not free.
pub(crate) fn answer<S: Send + Unpin + 'static>(inner: Body, call: Option<PeerCall>, slot: Option<S>) -> Body {
    if inner.is_end_stream() {
        return inner;
    }
    let patience = call.as_ref().map(|call| {
        let peer = call.weak();
        let patience = async move {
            tokio::time::sleep(TAKING).await;
            if let Some(peer) = peer.upgrade() {
                info!("the client does not read its answer; its connection is closed");
                peer.close();
            }
        };
        tokio::spawn(patience.instrument(Span::current())).abort_handle()
    });
    Body::new(Answer { inner, patience, _call: call, _slot: slot })
}

struct Answer<S> {
    inner: Body,
    patience: Option<AbortHandle>,
    _call: Option<PeerCall>,
    _slot: Option<S>,
}

impl<S> fmt::Debug for Answer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

impl<S: Unpin> HttpBody for Answer<S> {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<S> Drop for Answer<S> {
    fn drop(&mut self) {
        if let Some(patience) = &self.patience {
            patience.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: MostArriving = MostArriving { all: 64 << 20, of_one: 48 << 20 };

    fn client(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn what_arrives_is_counted_together_and_given_back() {
        let arriving = Arriving::new(MOST);
        let mut first = arriving.admit(&client("a")).unwrap();
        assert!(first.grow(MOST.of_one - ONE_ARRIVING));
        let mut second = arriving.admit(&client("b")).unwrap();
        assert!(second.grow(MOST.all - MOST.of_one - ONE_ARRIVING));
        assert!(arriving.admit(&client("c")).is_none(), "the limit is reached");
        drop(first);
        assert!(arriving.admit(&client("c")).is_some());
        drop(second);
        assert_eq!(arriving.0.all.load(Ordering::SeqCst), 0);
        assert!(arriving.of().is_empty());
    }

    #[test]
    fn one_client_leaves_room_for_another() {
        let arriving = Arriving::new(MOST);
        let mut greedy: Vec<_> = (0..3).map(|_| arriving.admit(&client("greedy")).unwrap()).collect();
        let took = greedy.iter_mut().filter_map(|arrival| arrival.grow(20 << 20).then_some(())).count();
        assert_eq!(took, 2);
        greedy.pop();
        assert!(arriving.admit(&client("other")).unwrap().grow(4 << 20));
    }
}
