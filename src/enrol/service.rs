//! [`EnrolService`]: a controller issues certificates to nodes. It is the only service of its port.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};
use tracing::info;

use super::keeper::Signing;
use super::proto::enrolment_server::Enrolment;
use super::proto::{EnrolReply, EnrolRequest};
use super::rules::{AUDIENCE, Denial, Tokens, node_of};
use crate::telemetry::EnrolMetrics;
use crate::tls::{Peer, allowance};
use crate::types::{Error, Failure, Kind, ObjectName};
use crate::wire::{self, Allowance, Bounds, Door, MostArriving, RateLimitedLog, UnauthenticatedClient};

/// The largest message, in bytes: a token and a signing request have some kilobytes.
pub const MOST_MESSAGE: usize = 64 << 10;
/// Concurrent requests of one network, and the bytes of all that may be arriving.
const MOST_CALLS_OF_ONE: usize = 64;
const MOST_ARRIVING: MostArriving = MostArriving { all: 16 << 20, of_one: 4 << 20 };
/// The largest token that is reviewed.
const MOST_TOKEN: usize = 32 << 10;
/// Concurrent reviews by the API server, and those of one network; others wait for their turn.
const MOST_REVIEWS: usize = 16;
const MOST_REVIEWS_OF_ONE: usize = 4;
/// The longest wait: together with the API server's own time, the caller still gets an answer in time.
const TURN: Duration = Duration::from_secs(4);

/// The gRPC service.
pub struct EnrolService {
    tokens: Arc<dyn Tokens>,
    account: ObjectName,
    signing: Signing,
    life: Duration,
    reviews: Reviews,
    metrics: EnrolMetrics,
    complaints: RateLimitedLog,
}

impl fmt::Debug for EnrolService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolService").field("account", &self.account).finish_non_exhaustive()
    }
}

impl EnrolService {
    /// Issues certificates, valid for so long, to nodes whose tokens are of this account.
    #[must_use]
    pub fn new(
        tokens: Arc<dyn Tokens>,
        account: ObjectName,
        signing: Signing,
        life: Duration,
        metrics: EnrolMetrics,
    ) -> Self {
        let (reviews, complaints) = (Reviews::default(), RateLimitedLog::default());
        Self { tokens, account, signing, life, reviews, metrics, complaints }
    }

    /// The limits of the port it is served on.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        Bounds::new(Anybody, MOST_ARRIVING)
    }

    /// Counts a refused client, and logs the reason unless it was logged recently.
    fn refused(&self, who: &Who, reason: &'static str, why: &str) {
        self.metrics.ended(reason);
        if let Some(unsaid) = self.complaints.may_say(&who.network, reason) {
            tracing::warn!(address = who.address, reason, unsaid, "no certificate was issued to a node: {why}");
        }
    }

    /// Not the client's fault: it may retry.
    fn not_now(&self, who: &Who, reason: &'static str, error: Error) -> Status {
        self.refused(who, reason, &error.chain());
        wire::status(&Failure::Clean(error.with_kind(Kind::Unavailable)))
    }

    fn denied(&self, who: &Who, denial: &Denial) -> Status {
        self.refused(who, denial.reason, &denial.why);
        wire::denied(format!("no certificate for this node: {}", denial.why))
    }
}

/// Every client may request a certificate.
struct Anybody;

impl Door for Anybody {
    fn admit(&self, from: &http::Extensions, _path: &str) -> Result<Allowance, Status> {
        // A message has a header of five bytes.
        Ok(allowance(from, MOST_CALLS_OF_ONE, MOST_MESSAGE + 5))
    }
}

/// The origin of a request.
struct Who {
    address: String,
    /// The key that it is counted by.
    network: String,
    guest: Option<UnauthenticatedClient>,
}

impl Who {
    fn asks(extensions: &http::Extensions) -> Self {
        match Peer::of(extensions) {
            Ok(Peer::Anonymous(guest)) => {
                Self { address: guest.to_string(), network: guest.network().to_string(), guest: Some(guest.clone()) }
            }
            other => {
                let name = other.map_or_else(|_| "unknown".to_owned(), ToString::to_string);
                Self { address: name.clone(), network: name, guest: None }
            }
        }
    }
}

/// The reviews by the API server, in the order of arrival; a network with many running ones waits by itself.
struct Reviews {
    all: Semaphore,
    of: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

impl Default for Reviews {
    fn default() -> Self {
        Self { all: Semaphore::new(MOST_REVIEWS), of: Mutex::default() }
    }
}

impl Reviews {
    /// A turn, which lasts until it is dropped; `None` when it does not come within [`TURN`].
    async fn turn(&self, network: &str) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'_>)> {
        let own = self.of_network(network);
        let both = async { Some((own.acquire_owned().await.ok()?, self.all.acquire().await.ok()?)) };
        tokio::time::timeout(TURN, both).await.ok().flatten()
    }

    fn of_network(&self, network: &str) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        of.retain(|_, one| one.strong_count() > 0);
        if let Some(there) = of.get(network).and_then(Weak::upgrade) {
            return there;
        }
        let new = Arc::new(Semaphore::new(MOST_REVIEWS_OF_ONE));
        of.insert(network.to_owned(), Arc::downgrade(&new));
        new
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolReply>, Status> {
        let who = Who::asks(request.extensions());
        let EnrolRequest { token, request } = request.into_inner();
        let Some(authority) = self.signing.authority() else {
            let why = Error::new(Kind::Unavailable, "this controller has no CA yet; see its log for the reason; retry");
            return Err(self.not_now(&who, "no_authority", why));
        };
        if token.is_empty() || token.len() > MOST_TOKEN {
            let why = format!("its token has {} bytes", token.len());
            return Err(self.denied(&who, &Denial { reason: "unauthenticated", why }));
        }
        let Some(_turn) = self.reviews.turn(&who.network).await else {
            let many =
                format!("{MOST_REVIEWS} tokens, or {MOST_REVIEWS_OF_ONE} of its network, are being reviewed; retry");
            return Err(self.not_now(&who, "overloaded", Error::new(Kind::Unavailable, many)));
        };
        let _looked_at = who.guest.as_ref().map(UnauthenticatedClient::looked_at);
        let review = match self.tokens.review(&token, AUDIENCE).await {
            Ok(review) => review,
            Err(error) => {
                return Err(self.not_now(&who, "unavailable", error.context("the token cannot be reviewed")));
            }
        };
        drop(token);
        let node = node_of(&review, &self.account).map_err(|denial| self.denied(&who, &denial))?;
        if let Some(guest) = &who.guest {
            guest.prove();
        }
        let (certificate, until) = match authority.sign_lasting(request.as_bytes(), &node, self.life) {
            Ok(signed) => signed,
            Err(error) => {
                let why = format!("node {node}: {}", error.chain());
                return Err(self.denied(&who, &Denial { reason: "bad_request", why }));
            }
        };
        self.metrics.ended("issued");
        info!(%node, address = who.address, until, "a certificate was issued to a node");
        Ok(Response::new(EnrolReply { certificate }))
    }
}
