//! `/metrics`, `/healthz` (the process runs) and `/readyz` (every pool is served, or which is not and why) over plain HTTP.
//!
//! Any client may connect, so a connection has one request and a time limit, and their number is limited: see
//! [`crate::wire`].

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::{Metrics, PoolWatch, Readiness, Sampled};
use crate::types::{Error, Kind, Result};
use crate::wire::{Connection, Incoming, Most, Shares};

/// The time limit for the head of a request.
const ARRIVAL: Duration = Duration::from_secs(10);
/// The time limit of a connection: request, measurement and answer.
const LASTING: Duration = Duration::from_secs(40);
/// The time that connections get to end when the process stops.
const GRACE: Duration = Duration::from_secs(1);
/// The largest request, in bytes; the connection of a larger one is closed.
const MOST_HEAD: usize = 16 << 10;
/// The connections of one network: a quarter of all.
const PARTS: usize = 4;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A bound listener; [`Http::serve`] answers.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
    about: About,
    most: usize,
}

#[derive(Clone, Debug)]
struct About {
    metrics: Arc<Metrics>,
    pools: PoolWatch,
}

impl Http {
    /// Binds the address, so that a port in use is detected before anything else starts.
    ///
    /// # Errors
    /// `Precondition` with the address.
    pub async fn bind(address: SocketAddr, metrics: Arc<Metrics>, pools: PoolWatch) -> Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Error::new(
                Kind::Precondition,
                format!("metrics and health cannot listen on --metrics {address}; free the address or choose another"),
            )
            .because(error)
        })?;
        let most = Shares::of(u64::MAX).health();
        Ok(Self { listener, about: About { metrics, pools }, most })
    }

    /// Limits the connections to the share of this port.
    #[must_use]
    pub fn within(self, shares: Shares) -> Self {
        Self { most: shares.health(), ..self }
    }

    /// The address it listens on, with the real port if 0 was requested.
    ///
    /// # Errors
    /// `Internal` when the system does not report it.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener
            .local_addr()
            .map_err(|error| Error::new(Kind::Internal, "the metrics listener has no address").because(error))
    }

    /// Answers until `shutdown` completes. Each connection is closed after its answer.
    ///
    /// # Errors
    /// `Internal` when the listener has no address.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        info!(address = %self.address()?, "metrics and health are served");
        let router = axum::Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .with_state(self.about);
        let most = Most { all: self.most, of_one: self.most.div_ceil(PARTS) };
        let mut incoming = Incoming::new(self.listener, "the port of metrics and health", most);
        let (mut serving, mut shutdown) = (JoinSet::new(), pin!(shutdown));
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                connection = incoming.next() => if let Some(Ok(connection)) = connection {
                    serving.spawn(answer(connection, router.clone()));
                },
                Some(_) = serving.join_next() => {}
            }
        }
        let _ = timeout(GRACE, async { while serving.join_next().await.is_some() {} }).await;
        Ok(())
    }
}

/// One connection: one request and its answer.
async fn answer(connection: Connection<tokio::net::TcpStream>, router: axum::Router) {
    let peer = Arc::clone(connection.peer());
    // Counts from the head until the connection ends: the client may not have read the answer yet.
    let call = Mutex::new(None);
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        if let Ok(mut call) = call.lock() {
            *call = Some(peer.call());
        }
        router.clone().oneshot(request.map(Body::new))
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL)
        .max_buf_size(MOST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(connection), service);
    match timeout(LASTING, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(client = &**peer.name(), "a connection to metrics and health failed: {error}"),
        Err(_) => debug!(client = &**peer.name(), "closed a connection whose client does not read the answer"),
    }
}

async fn metrics(State(about): State<About>) -> impl IntoResponse {
    let (pools, extents, findings, network) = tokio::join!(
        about.pools.figures(),
        about.pools.extents(),
        about.pools.findings(),
        about.metrics.network().read()
    );
    let pools = pools.map_err(|error| warn!("{}", error.chain())).ok();
    let extents = extents.map_err(|error| warn!("{}", error.chain())).unwrap_or_default();
    let findings = findings.map_err(|error| warn!("{}", error.chain())).unwrap_or_default();
    match about.metrics.text(Sampled { pools, extents, findings, network }) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.chain() + "\n"),
    }
}

async fn ready(State(about): State<About>) -> impl IntoResponse {
    match about.pools.readiness().await {
        Readiness::Ready(_) => match about.metrics.tls().why_missing() {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(why) => (
                StatusCode::OK,
                format!("ok; but other daemons cannot be reached without a usable certificate: {why}\n"),
            ),
        },
        Readiness::Starting => {
            let text = match about.metrics.tls().why_missing() {
                None => "not ready yet: a node opens its pools, or a controller waits for heartbeats\n".to_owned(),
                Some(why) => format!("not ready without a usable certificate: {why}\n"),
            };
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        Readiness::Partly { served, outages } => {
            let text = format!("{}\nserved: {}\n", outages.join("\n"), served.join(", "));
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        Readiness::Nothing(outages) => (StatusCode::SERVICE_UNAVAILABLE, outages.join("\n") + "\n"),
        Readiness::Failing(error) => (StatusCode::SERVICE_UNAVAILABLE, error.chain() + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::Activity;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_three_pages_and_a_taken_port() {
        let pools = PoolWatch::new(|| Ok(Vec::new()), || Ok(Vec::new()), || Ok(Vec::new()));
        let any = "127.0.0.1:0".parse().unwrap();
        let http = Http::bind(any, Metrics::new(Activity::default()), pools.clone()).await.unwrap();
        let address = http.address().unwrap();
        let taken = Http::bind(address, Metrics::new(Activity::default()), pools.clone()).await.unwrap_err();
        assert!(taken.to_string().contains(&address.to_string()), "{taken}");

        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(http.serve(async move { drop(stopped.await) }));
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        pools.opened();
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/metrics").await.contains("holdfast_pools_readable 1"));
        stop.send(()).unwrap();
        serving.await.unwrap().unwrap();
    }
}
