//! [`Keeper`]: a controller's access to the CA that all controllers share, and its own certificate from that CA.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;

use super::rules::{CaText, Vault};
use super::trying::Trying;
use crate::os::Timestamp;
use crate::tls::{Authority, Holder, Issued, Role, renewal_of};
use crate::types::{Error, Kind, Result};

/// How often the CA is read: it changes when an operator replaces it.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The pauses after a failed read: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The CA that issues certificates now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Signing(watch::Receiver<Option<Arc<Authority>>>);

impl Signing {
    /// The CA, if there is one.
    #[must_use]
    pub fn authority(&self) -> Option<Arc<Authority>> {
        self.0.borrow().clone()
    }

    /// Completes when there is one.
    pub async fn there(mut self) {
        // The keeper is dropped only at the end of the process.
        let _ = self.0.wait_for(Option::is_some).await;
    }
}

/// Keeps the CA up to date.
pub struct Keeper {
    vault: Arc<dyn Vault>,
    life: Duration,
    holder: Holder,
    authority: watch::Sender<Option<Arc<Authority>>>,
    known: Option<CaText>,
    certified_at: i64,
    renew_at: i64,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("life", &self.life).finish_non_exhaustive()
    }
}

impl Keeper {
    /// For a controller whose own certificate goes to `holder` and is valid for `life`.
    #[must_use]
    pub fn new(vault: Arc<dyn Vault>, life: Duration, holder: Holder) -> (Self, Signing) {
        let (authority, seen) = watch::channel(None);
        (Self { vault, life, holder, authority, known: None, certified_at: 0, renew_at: 0 }, Signing(seen))
    }

    /// Runs until `stop`. The current CA stays in use while the vault does not answer.
    pub async fn run(mut self, mut stop: watch::Receiver<()>) {
        self.holder.missing("there is no CA yet: it is being read from the API server");
        let mut trying = Trying::new("the CA cannot be checked now and is checked again later", PAUSES);
        loop {
            let tried = self.look().await.map(|()| LOOK_EVERY.min(self.life / 10));
            if let Err(error) = &tried {
                self.holder.missing(&format!("there is no CA yet, it is read again later: {}", error.chain()));
            }
            if !trying.next(tried, &mut stop).await {
                return;
            }
        }
    }

    /// 1. Reads the CA, or creates the first one. Two controllers may do so at once: the vault stores one of them, and
    ///    the other controller reads it. A crash leaves a CA or none.
    /// 2. Uses it for signing, and issues this controller's certificate with it.
    /// 3. Publishes its certificate. A crash before that leaves nodes without it until the next check of any
    ///    controller.
    pub(super) async fn look(&mut self) -> Result<()> {
        // With the known CA, whether or not the vault answers.
        let renewed = self.renew();
        let ca = self.obtain().await?;
        if self.known.as_ref() != Some(&ca) {
            let authority = Authority::read(ca.certificates.as_bytes(), ca.key.as_bytes())
                .map_err(|wrong| wrong.context("the stored CA cannot be used"))?;
            info!(replaced = self.known.is_some(), "the CA is loaded");
            self.certify(&authority)?;
            self.authority.send_replace(Some(Arc::new(authority)));
            self.known = Some(ca.clone());
        } else {
            renewed?;
        }
        // Not the text that was read: it may contain more than certificates.
        let published = match &*self.authority.borrow() {
            Some(authority) => authority.bundle().to_owned(),
            None => return Ok(()),
        };
        if self.vault.publish(&published).await? {
            info!("the CA's certificate is published");
        }
        Ok(())
    }

    async fn obtain(&self) -> Result<CaText> {
        if let Some(ca) = self.vault.read().await? {
            return Ok(ca);
        }
        if self.known.is_some() {
            return Err(Error::new(
                Kind::Unavailable,
                "the CA no longer exists; restore it, or restart all controllers to create a new one",
            ));
        }
        let (made, key) = Authority::make()?;
        let ca = CaText { certificates: made.bundle().to_owned(), key };
        if self.vault.create(&ca).await? {
            info!("there was no CA: a new one was created");
            return Ok(ca);
        }
        let missing = || {
            Error::new(
                Kind::Unavailable,
                "another controller created a CA that does not exist any more; it is read again later",
            )
        };
        self.vault.read().await?.ok_or_else(missing)
    }

    fn renew(&mut self) -> Result<()> {
        let authority = self.authority.borrow().clone();
        let now = Timestamp::now().seconds();
        match authority {
            // Issued while a clock was ahead: no peer accepts it yet.
            Some(authority) if now >= self.renew_at || now < self.certified_at => self.certify(&authority),
            _ => Ok(()),
        }
    }

    fn certify(&mut self, authority: &Authority) -> Result<()> {
        let issued: Issued = authority.issue_lasting(&Role::Controller, self.life)?;
        // A CA whose certificates no peer accepts (names it may not certify) does not replace one that works.
        issued.check(&Role::Controller)?;
        self.holder.put(&issued)?;
        self.certified_at = Timestamp::now().seconds();
        self.renew_at = renewal_of(issued.certificate.as_bytes())?;
        Ok(())
    }
}
