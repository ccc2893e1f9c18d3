//! The certificate that handshakes use now: read again when the files change; the last usable one stays in use.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{error, info, warn};

use super::authority::Issued;
use super::certificate::date;
use super::material::{Material, Versions, versions};
use super::refusal::{Reason, Refusal};
use super::role::Role;
use super::trust::Trust;
use crate::os::{Os, Stopwatch, Timestamp};
use crate::telemetry::TlsMetrics;
use crate::types::Result;
use crate::wire::RateLimitedLog;

/// How long a handshake waits for the check of the files; then it uses what was read before.
const LOOK: Duration = Duration::from_secs(2);
/// Unusable files are read again after so long even if they did not change: the certificate may have become valid.
const AGAIN: Duration = Duration::from_secs(5);

/// How a process proves its identity and verifies others. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    inner: Arc<Inner>,
}

struct Inner {
    source: Source,
    metrics: TlsMetrics,
    complaints: RateLimitedLog,
}

#[derive(Debug)]
enum Source {
    Plain,
    Files(Arc<Files>),
    Held(Arc<Held>),
    Trusting(Trust),
}

/// The inputs of a handshake.
pub(super) enum Now {
    /// None, on purpose.
    Plain,
    /// A certificate, and trusted CAs.
    Mutual(Arc<Material>),
    /// Trusted CAs and no certificate: for a client.
    Trusting(Trust),
    /// A certificate is required and missing, for this reason.
    Missing(String),
}

impl Credentials {
    /// From `ca.crt`, `tls.crt` and `tls.key` in a directory, for a process of this role. Blocks.
    ///
    /// # Errors
    /// `Precondition` naming the file, the problem and the next step.
    pub fn from_files(os: Os, directory: &Path, role: Role, metrics: TlsMetrics) -> Result<Self> {
        let files = Files::load(os, directory, role, metrics.clone())?;
        Ok(Self::of(Source::Files(Arc::new(files)), metrics))
    }

    /// The same, but without an error: while the files cannot be used there are no connections, the reason is logged,
    /// and each attempt to connect checks the files again. Blocks.
    #[must_use]
    pub fn from_files_in_time(os: Os, directory: &Path, role: Role, metrics: TlsMetrics) -> Self {
        let files = Files::load_in_time(os, directory, role, metrics.clone());
        Self::of(Source::Files(Arc::new(files)), metrics)
    }

    /// For a process of this role whose certificate comes from the holder, also later ones; before the first there are
    /// no connections.
    #[must_use]
    pub fn held(role: Role, metrics: TlsMetrics) -> (Self, Holder) {
        let held = Arc::new(Held { role, metrics: metrics.clone(), state: Mutex::default() });
        let holder = Holder(Arc::clone(&held));
        holder.missing("this process has no certificate yet");
        (Self::of(Source::Held(held), metrics), holder)
    }

    /// For a client without a certificate that accepts servers of these CAs.
    #[must_use]
    pub fn trusting(trust: Trust, metrics: TlsMetrics) -> Self {
        Self::of(Source::Trusting(trust), metrics)
    }

    /// No encryption, no verification, every permission for every client: for tests, with a flag that says so. Logs a
    /// warning.
    #[must_use]
    pub fn plain(metrics: TlsMetrics) -> Self {
        warn!(
            "connections between daemons are plain text and no peer is verified: every client that reaches the port \
             may do everything; for tests only"
        );
        Self::of(Source::Plain, metrics)
    }

    fn of(source: Source, metrics: TlsMetrics) -> Self {
        Self { inner: Arc::new(Inner { source, metrics, complaints: RateLimitedLog::default() }) }
    }

    /// The inputs of a handshake now.
    pub(super) async fn current(&self) -> Now {
        match &self.inner.source {
            Source::Plain => Now::Plain,
            Source::Files(files) => files.current().await,
            Source::Held(held) => held.current(),
            Source::Trusting(trust) => Now::Trusting(trust.clone()),
        }
    }

    pub(super) fn metrics(&self) -> &TlsMetrics {
        &self.inner.metrics
    }

    /// Counts a refused connection, and logs it unless that was done recently. `address` is the peer's, `place` is the
    /// key of the limit on log lines.
    pub(super) fn refused(
        &self,
        side: &'static str,
        place: &str,
        address: &str,
        names: Option<&str>,
        refusal: &Refusal,
    ) {
        self.inner.metrics.refused(side, refusal.reason.label());
        let Some(unsaid) = self.inner.complaints.may_say(place, refusal.reason.label()) else { return };
        let (reason, names) = (refusal.reason.label(), names.unwrap_or("no certificate"));
        warn!(side, address, names, reason, unsaid, "connection refused: {}", refusal.why);
    }

    /// Logs that our own certificate has expired, unless that was done recently.
    pub(super) fn look_at_own(&self, material: &Material, now: i64) {
        if material.not_after >= now {
            return;
        }
        let date = date(material.not_after);
        self.inner.metrics.missing(material.name.as_str(), &format!("it expired on {date}; renew it"));
        if self.inner.complaints.may_say("own", Reason::Expired.label()).is_some() {
            error!(
                name = %material.name,
                "our own certificate expired on {date} and was not renewed: other daemons refuse us; renew it"
            );
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials").field(&self.inner.source).finish()
    }
}

/// A certificate in memory.
struct Held {
    role: Role,
    metrics: TlsMetrics,
    state: Mutex<Holding>,
}

#[derive(Default)]
struct Holding {
    material: Option<Arc<Material>>,
    /// The certificate and the CAs that it came with.
    of: Option<(String, String)>,
    /// Why there is none.
    why: String,
}

impl Held {
    fn state(&self) -> MutexGuard<'_, Holding> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Now {
        let state = self.state();
        match &state.material {
            Some(material) => Now::Mutual(Arc::clone(material)),
            None => Now::Missing(state.why.clone()),
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Gives a process its certificate. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Holder(Arc<Held>);

impl Holder {
    /// New handshakes use this certificate; existing connections continue.
    ///
    /// # Errors
    /// `Precondition` when it cannot be used; the current one stays in use.
    pub fn put(&self, issued: &Issued) -> Result<()> {
        let material = issued.material(&self.0.role)?;
        self.0.metrics.expires(material.name.as_str(), material.not_after);
        info!(name = %material.name, until = %date(material.not_after), "certificate accepted");
        for remark in &material.remarks {
            warn!("{remark}");
        }
        let before = {
            let mut state = self.0.state();
            state.of = Some((issued.certificate.clone(), issued.ca.clone()));
            state.material.replace(Arc::new(material))
        };
        if before.is_some() {
            self.0.metrics.reloaded("renewed");
        }
        Ok(())
    }

    /// As [`Holder::put`], unless it is in use already; the metrics then report it as valid again, because a clock may
    /// have been wrong.
    ///
    /// # Errors
    /// Those of [`Holder::put`].
    pub fn hold(&self, issued: &Issued) -> Result<()> {
        let held = {
            let state = self.0.state();
            let same = state.of.as_ref().is_some_and(|(own, ca)| *own == issued.certificate && *ca == issued.ca);
            state.material.clone().filter(|_| same)
        };
        match held {
            Some(material) => {
                self.0.metrics.expires(material.name.as_str(), material.not_after);
                Ok(())
            }
            None => self.put(issued),
        }
    }

    /// Records why there is no certificate, and the next step. Does nothing while the current certificate is valid.
    pub fn missing(&self, why: &str) {
        let mut state = self.0.state();
        if state.material.as_ref().is_none_or(|material| material.not_after < Timestamp::now().seconds()) {
            self.0.metrics.missing(self.0.role.name().as_str(), why);
            why.clone_into(&mut state.why);
        }
    }
}

/// Three files and the result of their last reading.
struct Files {
    os: Os,
    directory: PathBuf,
    role: Role,
    metrics: TlsMetrics,
    looking: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// The last usable certificate; none before the first.
    material: Option<Arc<Material>>,
    /// The versions that were read last, usable or not.
    seen: Versions,
    failed: Option<Failed>,
}

struct Failed {
    at: Stopwatch,
    why: String,
}

/// Ends a check, also one that panics.
struct Looking(Arc<Files>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.looking.store(false, Ordering::Release);
    }
}

impl Files {
    fn load(os: Os, directory: &Path, role: Role, metrics: TlsMetrics) -> Result<Self> {
        let (material, seen) = Material::load(&os, directory, &role)?;
        let material = Arc::new(material);
        let state = State { material: Some(Arc::clone(&material)), seen, failed: None };
        let files = Self::with(os, directory, role, metrics, state);
        files.tell(&material, "certificate loaded");
        Ok(files)
    }

    fn load_in_time(os: Os, directory: &Path, role: Role, metrics: TlsMetrics) -> Self {
        let files = Self::with(os, directory, role, metrics, State { material: None, seen: [None; 3], failed: None });
        files.read(versions(&files.os, &files.directory));
        files
    }

    fn with(os: Os, directory: &Path, role: Role, metrics: TlsMetrics, state: State) -> Self {
        let (looking, state) = (AtomicBool::new(false), Mutex::new(state));
        Self { os, directory: directory.to_owned(), role, metrics, looking, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, material: &Material, what: &str) {
        self.metrics.expires(material.name.as_str(), material.not_after);
        let (place, until) = (self.directory.display(), date(material.not_after));
        info!(name = %material.name, directory = %place, %until, "{what}");
        for remark in &material.remarks {
            warn!(directory = %place, "{remark}");
        }
    }

    /// The certificate to use. The files are checked in a thread, one check at a time: a filesystem that hangs costs
    /// that thread and [`LOOK`] of one handshake; others do not wait.
    async fn current(self: &Arc<Self>) -> Now {
        if !self.looking.swap(true, Ordering::Acquire) {
            let looking = Looking(Arc::clone(self));
            let look = tokio::task::spawn_blocking(move || looking.0.look());
            if tokio::time::timeout(LOOK, look).await.is_err() {
                let place = self.directory.display();
                warn!(
                    directory = %place,
                    "the certificate files do not answer now; the last certificate that was read is used"
                );
            }
        }
        let state = self.state();
        match (&state.material, &state.failed) {
            (Some(material), _) => Now::Mutual(Arc::clone(material)),
            (None, Some(failed)) => Now::Missing(failed.why.clone()),
            (None, None) => Now::Missing("the files have not been read yet".to_owned()),
        }
    }

    /// Reads the files again if they changed.
    fn look(&self) {
        let versions = versions(&self.os, &self.directory);
        {
            let state = self.state();
            let again = state.failed.as_ref().is_some_and(|failed| failed.at.elapsed() >= AGAIN);
            if state.seen == versions && !again {
                return;
            }
        }
        self.read(versions);
    }

    /// Reads the files, whose versions were these before.
    fn read(&self, versions: Versions) {
        let loaded = Material::load(&self.os, &self.directory, &self.role);
        let mut state = self.state();
        match loaded {
            Ok((material, seen)) => {
                if state.material.is_some() {
                    self.metrics.reloaded("renewed");
                    self.tell(&material, "certificate renewed");
                } else {
                    self.tell(&material, "certificate loaded");
                }
                *state = State { material: Some(Arc::new(material)), seen, failed: None };
            }
            Err(error) => {
                let why = error.chain();
                let known = state.seen == versions && state.failed.as_ref().is_some_and(|failed| failed.why == why);
                match &state.material {
                    _ if known => {}
                    Some(before) => {
                        self.metrics.reloaded("failed");
                        let until = date(before.not_after);
                        error!(%until, "the renewed certificate cannot be used; the one before stays in use: {why}");
                    }
                    None => {
                        self.metrics.missing(self.role.name().as_str(), &why);
                        warn!(
                            "there is no usable certificate; other daemons cannot be reached until there is one: {why}"
                        );
                    }
                }
                state.seen = versions;
                state.failed = Some(Failed { at: Stopwatch::start(), why });
            }
        }
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("directory", &self.directory).field("role", &self.role).finish_non_exhaustive()
    }
}
