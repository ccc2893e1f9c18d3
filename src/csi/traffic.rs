//! Requests on their way in and answers on their way out: both have a time limit, and requests a limit together, so that
//! clients that send or read slowly hold neither memory nor anybody else's turn.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::AbortHandle;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tracing::{Instrument, Span, info};

use super::connections::PeerCall;
use super::status;
use crate::works::Slot;

/// How long a request may take to arrive.
pub(super) const ARRIVAL: Duration = Duration::from_secs(10);
/// How long an answer may wait to be taken.
const TAKING: Duration = Duration::from_secs(30);
/// The most bytes of requests on their way in, all together.
const MOST_ARRIVING: usize = 64 << 20;
/// What a request on its way in costs before its first byte: its headers and state.
const ONE_ARRIVING: usize = 16 << 10;

/// What is on its way in. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Arriving(Arc<AtomicUsize>);

impl Arriving {
    /// A request that begins to arrive; `None` when there is no room for it.
    pub(super) fn admit(&self) -> Option<Arrival> {
        let mut arrival = Arrival { all: self.clone(), bytes: 0 };
        arrival.grow(ONE_ARRIVING).then_some(arrival)
    }
}

/// A request on its way in; what it took is given back when dropped.
#[derive(Debug)]
pub(super) struct Arrival {
    all: Arriving,
    bytes: usize,
}

impl Arrival {
    /// Takes so many bytes more; false when there are none.
    fn grow(&mut self, bytes: usize) -> bool {
        let before = self.all.0.fetch_add(bytes, Ordering::SeqCst);
        self.bytes += bytes;
        before.saturating_add(bytes) <= MOST_ARRIVING
    }

    /// The request's body, which counts until it has ended.
    pub(super) fn body(self, inner: Body) -> Body {
        Body::new(ArrivingBody { inner, arrival: Some(self) })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

struct ArrivingBody {
    inner: Body,
    arrival: Option<Arrival>,
}

impl HttpBody for ArrivingBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                if self.arrival.as_mut().is_some_and(|arrival| !arrival.grow(length)) {
                    self.arrival = None;
                    return Poll::Ready(Some(Err(status::flooded())));
                }
            }
            Poll::Ready(None | Some(Err(_))) => self.arrival = None,
            Poll::Pending => {}
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

/// An answer's body; until it was taken, its call is under way for its connection, and its work's slot is not free.
pub(super) fn answer(inner: Body, call: Option<PeerCall>, slot: Option<Slot>) -> Body {
    if inner.is_end_stream() {
        return inner;
    }
    let patience = call.as_ref().map(|call| {
        let peer = call.weak();
        let patience = async move {
            tokio::time::sleep(TAKING).await;
            if let Some(peer) = peer.upgrade() {
                info!("the client does not read its answer: its connection is closed");
                peer.close();
            }
        };
        tokio::spawn(patience.instrument(Span::current())).abort_handle()
    });
    Body::new(Answer { inner, patience, _call: call, _slot: slot })
}

struct Answer {
    inner: Body,
    patience: Option<AbortHandle>,
    _call: Option<PeerCall>,
    _slot: Option<Slot>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

impl HttpBody for Answer {
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

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(patience) = &self.patience {
            patience.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_is_counted_together_and_given_back() {
        let arriving = Arriving::default();
        let mut first = arriving.admit().unwrap();
        assert!(first.grow(MOST_ARRIVING - 2 * ONE_ARRIVING));
        let second = arriving.admit().unwrap();
        assert!(arriving.admit().is_none(), "the room is full");
        drop(first);
        assert!(arriving.admit().is_some());
        drop(second);
        assert_eq!(arriving.0.load(Ordering::SeqCst), 0);
    }
}
