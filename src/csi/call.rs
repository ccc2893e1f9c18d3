//! The layer around every call: span, metrics, the caller's deadline, limits on arriving requests, shutdown of the
//! process, and a last guard against a panic or a code that tonic chose itself.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use http::HeaderMap;
use tokio::time::sleep;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span, debug, error, field, info, info_span};

use super::rpc::{Class, Rpc};
use super::status;
use crate::os::{Deadline, Stopwatch};
use crate::telemetry::Metrics;
use crate::wire::{self, ARRIVAL, Arrival, Arriving, MostArriving, Peer, PeerCall};
use crate::wire::{Slot, reason_of};

/// Bytes of requests that may be arriving at once.
const MOST_ARRIVING: MostArriving = MostArriving { all: 64 << 20, of_one: 32 << 20 };

type HttpRequest = http::Request<Body>;
type HttpResponse = http::Response<Body>;

/// State shared by all calls of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Calls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    metrics: Arc<Metrics>,
    stopping: AtomicBool,
    arriving: Arriving,
}

impl Calls {
    /// For a server that has just started.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared { metrics, stopping: AtomicBool::new(false), arriving: Arriving::new(MOST_ARRIVING) }))
    }

    /// From now on new calls are refused.
    pub(super) fn stop(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
    }

    /// Admits a call, or returns the reason for the refusal.
    fn admit(&self, rpc: Rpc, client: Option<&Arc<str>>) -> Result<Arrival, Status> {
        if self.0.stopping.load(Ordering::SeqCst) {
            return Err(status::stopping(rpc));
        }
        let nobody = || "in process".into();
        self.0.arriving.admit(&client.map_or_else(nobody, Arc::clone)).ok_or_else(status::flooded)
    }
}

impl<S> Layer<S> for Calls {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallService { inner, calls: self.clone() }
    }
}

/// The generated services inside the layer.
#[derive(Clone, Debug)]
pub(crate) struct CallService<S> {
    inner: S,
    calls: Calls,
}

impl<S> Service<HttpRequest> for CallService<S>
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

    fn call(&mut self, mut request: HttpRequest) -> Self::Future {
        let path = request.uri().path().to_owned();
        let rpc = Rpc::from_path(&path);
        let span = info_span!(
            "call",
            rpc = rpc.name(),
            name = field::Empty,
            volume = field::Empty,
            snapshot = field::Empty,
            node = field::Empty
        );
        let limit = deadline(request.headers());
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let begun = Begun::by(peer.as_ref(), given(request.headers()).and_then(Deadline::after));
        if rpc == Rpc::Operators {
            // Its handlers do not mark it; its requests are a few bytes, from this machine.
            begun.begin();
        }
        request.extensions_mut().insert(begun.clone());
        let mut entered = Entered::new(&self.calls, rpc);
        let request = match self.calls.admit(rpc, peer.as_ref().map(|peer| peer.name())) {
            Ok(arrival) => request.map(|body| arrival.body(body, status::flooded)),
            Err(refusal) => {
                span.in_scope(|| info!(code = ?refusal.code(), "{}", refusal.message()));
                return Box::pin(async move { Ok(entered.leave(refusal.into_http())) });
            }
        };
        let inner = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, inner);
        let answer = async move {
            let answering = AssertUnwindSafe(async move { ready.call(request).await }).catch_unwind();
            let mut response = match within(limit, &begun, answering).await {
                Ended::Answered(Ok(Ok(response))) => guarded(rpc, &path, &begun, response),
                Ended::Answered(Ok(Err(never))) => match never {},
                Ended::Answered(Err(panic)) => {
                    error!(reason = reason_of(&*panic), "{} panicked", rpc.name());
                    status::panicked(rpc).into_http()
                }
                Ended::Overdue => told(&status::overdue(rpc)),
                Ended::Unsent => told(&status::unsent(rpc, ARRIVAL)),
            };
            let slot = response.extensions_mut().remove::<Slot>();
            Ok(entered.leave(response).map(|body| wire::answer(body, begun.call(), slot)))
        };
        Box::pin(answer.instrument(span))
    }
}

/// A refusal caused by the caller.
fn told(refusal: &Status) -> HttpResponse {
    info!("{}", refusal.message());
    refusal.clone().into_http()
}

/// Whether a call reached its handler. Only from then on it counts as a call of its connection: a request that never
/// arrives must not make a connection count as busy.
#[derive(Clone, Debug)]
pub(super) struct Begun(Arc<Beginning>);

#[derive(Debug)]
struct Beginning {
    begun: AtomicBool,
    peer: Option<Arc<Peer>>,
    deadline: Option<Deadline>,
    call: Mutex<Option<PeerCall>>,
}

impl Begun {
    fn by(peer: Option<&Arc<Peer>>, deadline: Option<Deadline>) -> Self {
        let (begun, call) = (AtomicBool::new(false), Mutex::default());
        Self(Arc::new(Beginning { begun, peer: peer.cloned(), deadline, call }))
    }

    /// The handler has the decoded request. Returns the caller's deadline.
    pub(super) fn mark<M>(request: &tonic::Request<M>) -> Option<Deadline> {
        let begun: &Self = request.extensions().get()?;
        begun.begin();
        begun.0.deadline
    }

    fn begin(&self) {
        self.0.begun.store(true, Ordering::Relaxed);
        *self.0.call.lock().unwrap_or_else(PoisonError::into_inner) = self.0.peer.as_ref().map(Peer::call);
    }

    fn is(&self) -> bool {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// The call, if it has started, to be ended with its answer.
    fn call(&self) -> Option<PeerCall> {
        self.0.call.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Replaces INTERNAL, UNKNOWN and UNIMPLEMENTED answers of tonic itself by the codes of this driver.
fn guarded(rpc: Rpc, path: &str, begun: &Begun, response: HttpResponse) -> HttpResponse {
    let Some(said) = Status::from_header_map(response.headers()) else { return response };
    if said.code() == Code::Unimplemented {
        return told(&status::unimplemented(path));
    }
    if !matches!(said.code(), Code::Internal | Code::Unknown) {
        return response;
    }
    if !begun.is() {
        return status::undecodable(said.message()).into_http();
    }
    match rpc.class() {
        Class::Create | Class::Attach => status::panicked(rpc).into_http(),
        Class::Release | Class::Query | Class::Probe => response,
    }
}

/// A call that is counted until it ends, also when its caller goes away first.
#[derive(Debug)]
struct Entered {
    calls: Calls,
    rpc: Rpc,
    since: Stopwatch,
    code: Code,
}

impl Entered {
    fn new(calls: &Calls, rpc: Rpc) -> Self {
        calls.0.metrics.call_began(rpc.name());
        Self { calls: calls.clone(), rpc, since: Stopwatch::start(), code: Code::Cancelled }
    }

    fn leave(&mut self, response: HttpResponse) -> HttpResponse {
        self.code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
        response
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        self.calls.0.metrics.call_ended(self.rpc.name(), code_name(self.code), took);
        debug!(parent: &Span::current(), rpc = self.rpc.name(), code = code_name(self.code), ?took, "answered");
    }
}

/// The name of a code in the specification, for metrics.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// How long to work before answering the caller: a little less than its timeout, so that our reason arrives.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let given = given(headers)?;
    Some(given.saturating_sub((given / 10).min(Duration::from_millis(200))))
}

/// The caller's timeout.
fn given(headers: &HeaderMap) -> Option<Duration> {
    timeout(headers.get("grpc-timeout")?.to_str().ok()?)
}

/// gRPC's TimeoutValue TimeoutUnit: at most 8 digits and one of H M S m u n.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// How waiting for an answer ended.
enum Ended<T> {
    /// With an answer.
    Answered(T),
    /// The caller's deadline has passed.
    Overdue,
    /// The request did not arrive in time.
    Unsent,
}

async fn within<T>(limit: Option<Duration>, begun: &Begun, work: impl Future<Output = T>) -> Ended<T> {
    let overdue = async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let (mut work, mut overdue, mut arrival) = (pin!(work), pin!(overdue), pin!(sleep(ARRIVAL)));
    let mut arriving = true;
    loop {
        tokio::select! {
            biased;
            answer = &mut work => return Ended::Answered(answer),
            () = &mut overdue => return Ended::Overdue,
            () = &mut arrival, if arriving => {
                if !begun.is() {
                    return Ended::Unsent;
                }
                arriving = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(timeout("10S"), Some(Duration::from_secs(10)));
        assert_eq!(timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "10", "123456789S", "-1S", "1x", "1ü"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_answer_comes_before_the_callers_time_is_over() {
        let limit =
            |text: &str| deadline(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]));
        assert_eq!(limit("10S"), Some(Duration::from_millis(9800)));
        assert_eq!(limit("100m"), Some(Duration::from_millis(90)));
        assert_eq!(deadline(&HeaderMap::new()), None);
    }
}
