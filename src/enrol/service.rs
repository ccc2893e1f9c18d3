//! [`EnrolService`]: a controller certifies nodes. It is the only service of its port.

use std::fmt;
use std::sync::Arc;
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
/// Questions to the API server at once.
const MOST_REVIEWS: usize = 16;

/// The gRPC service.
pub struct EnrolService {
    tokens: Arc<dyn Tokens>,
    account: ObjectName,
    signing: Signing,
    life: Duration,
    reviews: Semaphore,
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
        Self { tokens, account, signing, life, reviews, metrics, complaints }
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
        let Ok(_permit) = self.reviews.try_acquire() else {
            let why = Error::new(Kind::Unavailable, format!("{MOST_REVIEWS} nodes are being looked at; ask again"));
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
