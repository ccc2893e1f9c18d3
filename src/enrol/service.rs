//! [`EnrolService`]: a controller certifies nodes. It is the only service of its port.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use tracing::info;

use super::keeper::Signing;
use super::proto::enrolment_server::Enrolment;
use super::proto::{EnrolReply, EnrolRequest};
use super::rules::{AUDIENCE, Denial, Tokens, node_of};
use crate::home::remote::{wire_answer, wire_denied};
use crate::kubernetes::ObjectName;
use crate::telemetry::EnrolMetrics;
use crate::tls::{Complaints, Peer};
use crate::types::{Error, Failure, Kind};

/// The largest message, in bytes: a token and a signing request have some kilobytes.
pub const MOST_MESSAGE: usize = 64 << 10;
/// The largest token asked about.
const MOST_TOKEN: usize = 32 << 10;
/// Questions to the API server at once, and of one address.
const MOST_REVIEWS: usize = 16;
const MOST_REVIEWS_OF_ONE: usize = 2;

/// The gRPC service.
pub struct EnrolService {
    tokens: Arc<dyn Tokens>,
    account: ObjectName,
    signing: Signing,
    life: Duration,
    reviews: Semaphore,
    asking: Mutex<BTreeMap<String, usize>>,
    metrics: EnrolMetrics,
    complaints: Complaints,
}

impl fmt::Debug for EnrolService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolService").field("account", &self.account).finish_non_exhaustive()
    }
}

impl EnrolService {
    /// Certifies nodes whose tokens are of this account, for so long.
    #[must_use]
    pub fn new(
        tokens: Arc<dyn Tokens>,
        account: ObjectName,
        signing: Signing,
        life: Duration,
        metrics: EnrolMetrics,
    ) -> Self {
        let (reviews, complaints) = (Semaphore::new(MOST_REVIEWS), Complaints::default());
        Self { tokens, account, signing, life, reviews, asking: Mutex::default(), metrics, complaints }
    }

    /// Counts who got no certificate, and says so unless it was said just now.
    fn refused(&self, who: &str, reason: &'static str, why: &str) {
        self.metrics.ended(reason);
        if let Some(unsaid) = self.complaints.may_say(who, reason) {
            tracing::warn!(address = who, reason, unsaid, "a node was not certified: {why}");
        }
    }

    /// Nobody is to blame: it may be asked again.
    fn not_now(&self, who: &str, reason: &'static str, error: Error) -> Status {
        self.refused(who, reason, &error.chain());
        wire_answer(&Failure::Clean(error.with_kind(Kind::Unavailable)))
    }

    fn denied(&self, who: &str, denial: &Denial) -> Status {
        self.refused(who, denial.reason, &denial.why);
        wire_denied(format!("no certificate for this node: {}", denial.why))
    }
}

/// One question of an address, given back when dropped.
struct Asking<'a> {
    all: &'a Mutex<BTreeMap<String, usize>>,
    who: &'a str,
}

impl<'a> Asking<'a> {
    fn begin(all: &'a Mutex<BTreeMap<String, usize>>, who: &'a str) -> Option<Self> {
        let mut asking = all.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = asking.entry(who.to_owned()).or_default();
        if *of_one >= MOST_REVIEWS_OF_ONE {
            return None;
        }
        *of_one += 1;
        Some(Self { all, who })
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asking = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = asking.get_mut(self.who) {
            *of_one -= 1;
            if *of_one == 0 {
                asking.remove(self.who);
            }
        }
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolReply>, Status> {
        let who = Peer::of(request.extensions()).map_or_else(|_| "unknown".to_owned(), ToString::to_string);
        let EnrolRequest { token, request } = request.into_inner();
        let Some(authority) = self.signing.authority() else {
            let why = Error::new(Kind::Unavailable, "this controller has no CA yet; its log says why; ask again");
            return Err(self.not_now(&who, "no_authority", why));
        };
        if token.is_empty() || token.len() > MOST_TOKEN {
            let why = format!("its token has {} bytes", token.len());
            return Err(self.denied(&who, &Denial { reason: "unauthenticated", why }));
        }
        let (Some(_asking), Ok(_permit)) = (Asking::begin(&self.asking, &who), self.reviews.try_acquire()) else {
            let many = format!("{MOST_REVIEWS} nodes or {MOST_REVIEWS_OF_ONE} of its address are looked at; ask again");
            let why = Error::new(Kind::Unavailable, many);
            return Err(self.not_now(&who, "crowded", why));
        };
        let review = match self.tokens.review(&token, AUDIENCE).await {
            Ok(review) => review,
            Err(error) => {
                return Err(self.not_now(&who, "unavailable", error.context("the token cannot be looked at")));
            }
        };
        drop(token);
        let node = node_of(&review, &self.account).map_err(|denial| self.denied(&who, &denial))?;
        let (certificate, until) = match authority.sign_lasting(request.as_bytes(), &node, self.life) {
            Ok(signed) => signed,
            Err(error) => {
                let why = format!("node {node}: {}", error.chain());
                return Err(self.denied(&who, &Denial { reason: "bad_request", why }));
            }
        };
        self.metrics.ended("issued");
        info!(%node, address = who, until, "a node was certified");
        Ok(Response::new(EnrolReply { certificate }))
    }
}
