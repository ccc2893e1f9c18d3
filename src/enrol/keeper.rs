//! [`Keeper`]: a controller's hold on the CA that all controllers have in common, and its own certificate from it.

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

/// How often the CA is looked at: it changes when a person replaces it.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The pauses after a look that failed: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The CA that certifies now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Signing(watch::Receiver<Option<Arc<Authority>>>);

impl Signing {
    /// It, once there is one.
    #[must_use]
    pub fn authority(&self) -> Option<Arc<Authority>> {
        self.0.borrow().clone()
    }

    /// Completes when there is one.
    pub async fn there(mut self) {
        // The keeper is gone at the end of the process only.
        let _ = self.0.wait_for(Option::is_some).await;
    }
}

/// Keeps the CA.
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
    /// Of a controller whose own certificate goes to `holder` and lives so long.
    #[must_use]
    pub fn new(vault: Arc<dyn Vault>, life: Duration, holder: Holder) -> (Self, Signing) {
        let (authority, seen) = watch::channel(None);
        (Self { vault, life, holder, authority, known: None, certified_at: 0, renew_at: 0 }, Signing(seen))
    }

    /// Looks after it until `stop` says so. What is there goes on while the vault does not answer.
    pub async fn run(mut self, mut stop: watch::Receiver<()>) {
        self.holder.missing("there is no CA yet: the API server is being asked for it");
        let mut trying = Trying::new("the CA cannot be looked after now, it is tried again", PAUSES);
        loop {
            let tried = self.look().await.map(|()| LOOK_EVERY.min(self.life / 10));
            if let Err(error) = &tried {
                self.holder.missing(&format!("there is no CA yet, it is looked for again: {}", error.chain()));
            }
            if !trying.next(tried, &mut stop).await {
                return;
            }
        }
    }

    /// 1. Reads the CA, or makes the first one. Two controllers may do so at once: the vault takes one of them, and the
    ///    other reads it. A crash leaves a CA or none.
    /// 2. Takes it for signing, and certifies this controller with it.
    /// 3. Publishes its certificate. A crash before leaves nodes without it until the next look of any controller.
    pub(super) async fn look(&mut self) -> Result<()> {
        // By the CA that is known, whether or not the vault answers.
        let renewed = self.renew();
        let ca = self.obtain().await?;
        if self.known.as_ref() != Some(&ca) {
            let authority = Authority::read(ca.certificates.as_bytes(), ca.key.as_bytes())
                .map_err(|wrong| wrong.context("the CA that is kept cannot be used"))?;
            info!(replaced = self.known.is_some(), "the CA is there");
            self.certify(&authority)?;
            self.authority.send_replace(Some(Arc::new(authority)));
            self.known = Some(ca.clone());
        } else {
            renewed?;
        }
        // Not the text that was read: whatever else is in it is for nobody.
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
                "the CA is not there any more; put it back, or restart all controllers to have a new one made",
            ));
        }
        let (made, key) = Authority::make()?;
        let ca = CaText { certificates: made.bundle().to_owned(), key };
        if self.vault.create(&ca).await? {
            info!("there was no CA: one was made");
            return Ok(ca);
        }
        let missing =
            || Error::new(Kind::Unavailable, "a CA was made by another and is not there; it is looked for again");
        self.vault.read().await?.ok_or_else(missing)
    }

    fn renew(&mut self) -> Result<()> {
        let authority = self.authority.borrow().clone();
        let now = Timestamp::now().seconds();
        match authority {
            // Certified by a clock that was ahead, it is not valid yet for anybody.
            Some(authority) if now >= self.renew_at || now < self.certified_at => self.certify(&authority),
            _ => Ok(()),
        }
    }

    fn certify(&mut self, authority: &Authority) -> Result<()> {
        let issued: Issued = authority.issue_lasting(&Role::Controller, self.life)?;
        // A CA whose certificates nobody accepts (names it may not certify) replaces none that works.
        issued.check(&Role::Controller)?;
        self.holder.put(&issued)?;
        self.certified_at = Timestamp::now().seconds();
        self.renew_at = renewal_of(issued.certificate.as_bytes())?;
        Ok(())
    }
}
