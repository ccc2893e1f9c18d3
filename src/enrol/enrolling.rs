//! [`Enrolling`]: a node requests its certificate, and renews it in time.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tonic::Request;
use tonic::transport::Channel;
use tracing::info;

use super::kept::Kept;
use super::proto::EnrolRequest;
use super::proto::enrolment_client::EnrolmentClient;
use super::service::MOST_MESSAGE;
use super::trying::Trying;
use crate::os::{Os, Timestamp};
use crate::tls::{Holder, Issued, Role, Trust, signing_request};
use crate::types::{Error, Kind, NodeId, OsContext, Result};
use crate::wire;

/// How often the node checks whether it needs a certificate: because of its age, or another CA.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The pauses after a failed attempt: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a controller may take to answer; it queries the API server in that time.
const ANSWER: Duration = Duration::from_secs(20);

/// How a controller is dialled whose certificate must be issued by these CAs; the channel connects when it is used.
pub type DialEnrol = Box<dyn Fn(Trust, SocketAddr) -> Result<Channel> + Send + Sync>;

/// A node that requests certificates.
pub struct Enrolling {
    /// Access to its disk.
    pub os: Os,
    /// Its id. A certificate for another node is not accepted.
    pub node: NodeId,
    /// Where controllers issue certificates, `HOST:PORT` each; a host may have several addresses.
    pub servers: Vec<String>,
    /// The token's file, read at each attempt.
    pub token: PathBuf,
    /// The file with the CAs that controllers' certificates must be issued by, read at each check.
    pub ca: PathBuf,
    /// Where the certificate is stored.
    pub kept: Kept,
    /// The holder that gets it.
    pub holder: Holder,
    /// How controllers are dialled.
    pub dial: DialEnrol,
}

impl fmt::Debug for Enrolling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolling").field("node", &self.node).field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// The inputs of an attempt.
pub(super) struct Wanted {
    why: String,
    ca: Vec<u8>,
    token: String,
}

impl Enrolling {
    /// Loads the stored certificate, whether or not it can be used. Blocks.
    pub fn take_kept(kept: &Kept, holder: &Holder) {
        let taken = match kept.read() {
            Ok(Some(issued)) => holder.put(&issued),
            Ok(None) => return holder.missing("this node has no certificate yet"),
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            holder.missing(&format!(
                "the certificate of this node in {} cannot be used: {}",
                kept.file().display(),
                error.chain()
            ));
        }
    }

    /// Runs until `stop`. The current certificate stays in use while no controller issues one.
    pub async fn run(self, mut stop: watch::Receiver<()>) {
        let this = std::sync::Arc::new(self);
        let failing = "this node cannot get a certificate now and retries; local volumes are served";
        let mut trying = Trying::new(failing, PAUSES);
        loop {
            let looking = std::sync::Arc::clone(&this);
            let wanted = tokio::task::spawn_blocking(move || looking.wanted()).await;
            let tried = match wanted {
                Ok(Ok(None)) => Ok(()),
                Ok(Ok(Some(wanted))) => std::sync::Arc::clone(&this).enrol(wanted).await,
                Ok(Err(error)) => Err(error),
                Err(failed) => {
                    Err(Error::new(Kind::Internal, format!("the check of the certificate failed: {failed}")))
                }
            };
            if let Err(error) = &tried {
                this.holder.missing(&error.chain());
            }
            if !trying.next(tried.map(|()| LOOK_EVERY), &mut stop).await {
                return;
            }
        }
    }

    /// Whether a certificate is needed now, and why. A good stored certificate is loaded: at the start it may not have
    /// been, because of a wrong clock or a disk that did not answer. Blocks.
    pub(super) fn wanted(&self) -> Result<Option<Wanted>> {
        let role = Role::Node(self.node.clone());
        let shown = self.ca.display();
        let ca = self.os.read(&self.ca).at(|| format!("read {shown}"))?;
        let usable = |issued: Issued| Ok((issued.renewal(&role)?, issued));
        let why = match self.kept.read().and_then(|kept| kept.map(usable).transpose()) {
            Ok(None) => "the node has none".to_owned(),
            Err(error) => format!("the stored one cannot be used: {}", error.chain()),
            Ok(Some((at, _))) if Timestamp::now().seconds() >= at => {
                "two thirds of the current one's lifetime have passed".to_owned()
            }
            Ok(Some((_, known))) if ca.as_ref().is_some_and(|ca| ca != known.ca.as_bytes()) => {
                "the CAs have changed".to_owned()
            }
            Ok(Some((_, known))) => return self.holder.hold(&known).map(|()| None),
        };
        let Some(ca) = ca else {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "there is no CA certificate in {shown} yet, and this node needs a certificate ({why}). The first \
                     controller that reaches the API server publishes it, and kubelet mounts it here within about a \
                     minute; if it does not appear, check the log of the controllers, then the ConfigMap that is \
                     mounted here"
                ),
            ));
        };
        Ok(Some(Wanted { why, ca, token: self.token()? }))
    }

    /// One attempt at each controller, until one issues a certificate.
    ///
    /// 1. Create a new key and a signing request for it, in memory.
    /// 2. A controller issues the certificate. A crash here leaves a certificate without a key.
    /// 3. Use key, certificate and CAs for handshakes. A crash leaves the stored ones. A failure to store them is an
    ///    error, but they are used all the same.
    /// 4. Replace the stored ones, all at once. A crash leaves one or the other, which the next start loads.
    pub(super) async fn enrol(self: std::sync::Arc<Self>, Wanted { why, ca, token }: Wanted) -> Result<()> {
        info!(node = %self.node, "requesting a certificate: {why}");
        let trust = Trust::read(&ca, &self.ca)?;
        let (key, request) = signing_request(&self.node)?;
        let ca = String::from_utf8(ca)
            .map_err(|_| Error::new(Kind::Precondition, format!("{} is not UTF-8 text", self.ca.display())))?;
        let asked = self.ask(&trust, &token, &request).await;
        let certificate = asked
            .map_err(|error| error.context(format!("no controller issues a certificate for this node ({why})")))?;
        let issued = Issued { ca, certificate, key, until: String::new() };
        let until = issued.check(&Role::Node(self.node.clone()))?;
        let write = move || {
            let this = self;
            this.holder.put(&issued)?;
            this.kept.write(&issued)?;
            info!(node = %this.node, until, file = %this.kept.file().display(), "this node has a new certificate");
            Ok(())
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|failed| Error::new(Kind::Internal, format!("the certificate cannot be stored: {failed}")))?
    }

    fn token(&self) -> Result<String> {
        let shown = self.token.display();
        let text = self.os.read(&self.token).at(|| format!("read {shown}"))?.ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!("{shown} does not exist; mount a projected service account token there"),
            )
        })?;
        // The message must not contain any of the content.
        let text = String::from_utf8(text).ok().map(|text| text.trim().to_owned());
        text.filter(|token| !token.is_empty()).ok_or_else(|| {
            Error::new(
                Kind::Precondition,
                format!("{shown} contains no token; mount a projected service account token there"),
            )
        })
    }

    async fn ask(&self, trust: &Trust, token: &str, request: &str) -> Result<String> {
        let mut addresses = BTreeSet::new();
        let mut said = Vec::new();
        for name in &self.servers {
            match tokio::net::lookup_host(name).await {
                Ok(found) => addresses.extend(found),
                Err(failed) => said.push(format!("{name} cannot be resolved: {failed}")),
            }
        }
        for address in addresses {
            let mut client =
                EnrolmentClient::new((self.dial)(trust.clone(), address)?).max_decoding_message_size(MOST_MESSAGE);
            let mut message = Request::new(EnrolRequest { token: token.to_owned(), request: request.to_owned() });
            message.set_timeout(ANSWER);
            match tokio::time::timeout(ANSWER, client.enrol(message)).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner().certificate),
                Ok(Err(status)) => said.push(format!("{address}: {}", wire::reason(&status))),
                Err(_) => said.push(format!("{address} did not answer within {} s", ANSWER.as_secs())),
            }
        }
        if said.is_empty() {
            said.push("no controller has an address; check the configured names".to_owned());
        }
        Err(Error::new(Kind::Unavailable, said.join("; ")))
    }
}
