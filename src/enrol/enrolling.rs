//! [`Enrolling`]: a node comes to its certificate, and to the next one in time.

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

/// How often it is looked whether a certificate is wanted: time, or another CA, makes it so.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The pauses after a try that failed: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a controller may take to answer; it asks the API server in that time.
const ANSWER: Duration = Duration::from_secs(20);

/// How a controller is dialled whose certificate has to be of these CAs; it connects when it is needed.
pub type DialEnrol = Box<dyn Fn(Trust, SocketAddr) -> Result<Channel> + Send + Sync>;

/// A node that wants to be certified.
pub struct Enrolling {
    /// Where its disk is.
    pub os: Os,
    /// Who it is. A certificate for another node is not taken.
    pub node: NodeId,
    /// Where controllers certify, `HOST:PORT` each; a host may have several addresses.
    pub servers: Vec<String>,
    /// The token's file, read at each try.
    pub token: PathBuf,
    /// The file with the CAs by which controllers are believed, read at each look.
    pub ca: PathBuf,
    /// Where the certificate is kept.
    pub kept: Kept,
    /// What it is given to.
    pub holder: Holder,
    /// How controllers are dialled.
    pub dial: DialEnrol,
}

impl fmt::Debug for Enrolling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolling").field("node", &self.node).field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// What a try needs from the disk.
pub(super) struct Wanted {
    why: String,
    ca: Vec<u8>,
    token: String,
}

impl Enrolling {
    /// Takes what was kept, whether or not it can be used. Blocks.
    pub fn take_kept(kept: &Kept, holder: &Holder) {
        let taken = match kept.read() {
            Ok(Some(issued)) => holder.put(&issued),
            Ok(None) => return holder.missing("this node has not been certified yet"),
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            holder.missing(&format!(
                "what this node has in {} cannot be used: {}",
                kept.file().display(),
                error.chain()
            ));
        }
    }

    /// Runs until `stop` says so. What is there goes on while nobody certifies.
    pub async fn run(self, mut stop: watch::Receiver<()>) {
        let this = std::sync::Arc::new(self);
        let failing = "this node is not certified now, it is tried again; local volumes are served";
        let mut trying = Trying::new(failing, PAUSES);
        loop {
            let looking = std::sync::Arc::clone(&this);
            let wanted = tokio::task::spawn_blocking(move || looking.wanted()).await;
            let tried = match wanted {
                Ok(Ok(None)) => Ok(()),
                Ok(Ok(Some(wanted))) => std::sync::Arc::clone(&this).enrol(wanted).await,
                Ok(Err(error)) => Err(error),
                Err(failed) => Err(Error::new(Kind::Internal, format!("the look for a certificate failed: {failed}"))),
            };
            if let Err(error) = &tried {
                this.holder.missing(&error.chain());
            }
            if !trying.next(tried.map(|()| LOOK_EVERY), &mut stop).await {
                return;
            }
        }
    }

    /// Whether a certificate is wanted now, and why. Where what is kept is good it is held: at the start it may not have been, by
    /// a clock that was wrong or a disk that did not answer. Blocks.
    pub(super) fn wanted(&self) -> Result<Option<Wanted>> {
        let role = Role::Node(self.node.clone());
        let shown = self.ca.display();
        let ca = self.os.read(&self.ca).at(|| format!("read {shown}"))?;
        let usable = |issued: Issued| Ok((issued.renewal(&role)?, issued));
        let why = match self.kept.read().and_then(|kept| kept.map(usable).transpose()) {
            Ok(None) => "it has none".to_owned(),
            Err(error) => format!("what it has cannot be used: {}", error.chain()),
            Ok(Some((at, _))) if Timestamp::now().seconds() >= at => {
                "two thirds of the last one's life are over".to_owned()
            }
            Ok(Some((_, known))) if ca.as_ref().is_some_and(|ca| ca != known.ca.as_bytes()) => {
                "the CAs changed".to_owned()
            }
            Ok(Some((_, known))) => return self.holder.hold(&known).map(|()| None),
        };
        let Some(ca) = ca else {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "there is no CA's certificate in {shown} yet, and this node wants a certificate ({why}). The first \
                     controller that reaches the API server publishes it, and kubelet brings it here within about a minute; \
                     if it stays away, look at the log of the controllers, then at the ConfigMap that is mounted here"
                ),
            ));
        };
        Ok(Some(Wanted { why, ca, token: self.token()? }))
    }

    /// One try at every controller, until one certifies.
    ///
    /// 1. A new key and a request for it, in memory.
    /// 2. A controller certifies it. A crash here leaves a certificate nobody has the key of.
    /// 3. Key, certificate and CAs are taken for handshakes. A crash leaves what was kept before; that they cannot be kept is an
    ///    error, and no reason not to use them.
    /// 4. They replace what is kept, all at once. A crash leaves one or the other, which the next start takes.
    pub(super) async fn enrol(self: std::sync::Arc<Self>, Wanted { why, ca, token }: Wanted) -> Result<()> {
        info!(node = %self.node, "asking for a certificate: {why}");
        let trust = Trust::read(&ca, &self.ca)?;
        let (key, request) = signing_request(&self.node)?;
        let ca = String::from_utf8(ca)
            .map_err(|_| Error::new(Kind::Precondition, format!("{} is not text", self.ca.display())))?;
        let asked = self.ask(&trust, &token, &request).await;
        let certificate = asked.map_err(|error| error.context(format!("no controller certifies this node ({why})")))?;
        let issued = Issued { ca, certificate, key, until: String::new() };
        let until = issued.check(&Role::Node(self.node.clone()))?;
        let write = move || {
            let this = self;
            this.holder.put(&issued)?;
            this.kept.write(&issued)?;
            info!(node = %this.node, until, file = %this.kept.file().display(), "this node is certified");
            Ok(())
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|failed| Error::new(Kind::Internal, format!("the certificate could not be kept: {failed}")))?
    }

    fn token(&self) -> Result<String> {
        let shown = self.token.display();
        let text = self.os.read(&self.token).at(|| format!("read {shown}"))?.ok_or_else(|| {
            Error::new(Kind::Unavailable, format!("{shown} is not there; mount a projected service account token"))
        })?;
        // Nothing of what is there may be in the message.
        let text = String::from_utf8(text).ok().map(|text| text.trim().to_owned());
        text.filter(|token| !token.is_empty())
            .ok_or_else(|| Error::new(Kind::Precondition, format!("{shown} holds no token")))
    }

    async fn ask(&self, trust: &Trust, token: &str, request: &str) -> Result<String> {
        let mut addresses = BTreeSet::new();
        let mut said = Vec::new();
        for name in &self.servers {
            match tokio::net::lookup_host(name).await {
                Ok(found) => addresses.extend(found),
                Err(failed) => said.push(format!("{name} cannot be looked up: {failed}")),
            }
        }
        for address in addresses {
            let mut client =
                EnrolmentClient::new((self.dial)(trust.clone(), address)?).max_decoding_message_size(MOST_MESSAGE);
            let mut message = Request::new(EnrolRequest { token: token.to_owned(), request: request.to_owned() });
            message.set_timeout(ANSWER);
            match tokio::time::timeout(ANSWER, client.enrol(message)).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner().certificate),
                Ok(Err(status)) => said.push(format!("{address}: {}", reason(&status))),
                Err(_) => said.push(format!("{address} has not answered within {} s", ANSWER.as_secs())),
            }
        }
        if said.is_empty() {
            said.push("no controller has an address".to_owned());
        }
        Err(Error::new(Kind::Unavailable, said.join("; ")))
    }
}

/// A status in words: what the controller said, or what is below it.
fn reason(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = std::error::Error::source(status);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
