//! [`Kept`]: the last issued certificate of a node on its disk: key, certificate and CAs in one file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::os::Os;
use crate::tls::{CA, CERTIFICATE, Issued, KEY};
use crate::types::{Error, Kind, OsContext, Result};

/// The file, in the node's state directory.
const FILE: &str = "certificate.json";
/// Where earlier releases stored the files, and what a crash left beside it.
const EARLIER: [&str; 2] = ["tls", ".tls.new"];

/// Where a node stores its certificate. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kept {
    os: Os,
    state: PathBuf,
}

/// The content of the file, each in PEM. Fields of a later release are ignored.
#[derive(Serialize, Deserialize)]
struct Content {
    ca: String,
    certificate: String,
    key: String,
}

impl Kept {
    /// In this directory, which must exist when something is written.
    #[must_use]
    pub fn new(os: &Os, state: &Path) -> Self {
        Self { os: os.clone(), state: state.to_owned() }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.state.join(FILE)
    }

    /// The stored certificate, usable or not; `None` when there is none. Blocks.
    ///
    /// # Errors
    /// `Corrupt` for a damaged file; its content is not in the message. Those of open(2) and read(2).
    pub fn read(&self) -> Result<Option<Issued>> {
        let file = self.file();
        let Some(text) = self.os.read(&file).at(|| format!("read {}", file.display()))? else {
            return self.read_earlier();
        };
        let damaged = || Error::new(Kind::Corrupt, format!("{} is damaged", file.display()));
        let Content { ca, certificate, key } = serde_json::from_slice(&text).map_err(|_| damaged())?;
        Ok(Some(Issued { ca, certificate, key, until: String::new() }))
    }

    fn read_earlier(&self) -> Result<Option<Issued>> {
        let read = |name: &str| {
            let file = self.state.join(EARLIER[0]).join(name);
            let text = self.os.read(&file).at(|| format!("read {}", file.display()))?;
            Ok::<_, Error>(text.and_then(|text| String::from_utf8(text).ok()))
        };
        let (ca, certificate, key) = (read(CA)?, read(CERTIFICATE)?, read(KEY)?);
        let all = ca.zip(certificate).zip(key);
        Ok(all.map(|((ca, certificate), key)| Issued { ca, certificate, key, until: String::new() }))
    }

    /// Replaces the stored certificate, all at once. Blocks.
    ///
    /// 1. The file is replaced ([`Os::replace_file`]). A crash leaves the earlier content, or the new.
    /// 2. The files of earlier releases are removed. A crash leaves some of them, which are not read any more; the next
    ///    write removes them.
    ///
    /// # Errors
    /// Those of writing; the file then has the earlier content, or the new.
    pub fn write(&self, issued: &Issued) -> Result<()> {
        let (ca, certificate, key) = (issued.ca.clone(), issued.certificate.clone(), issued.key.clone());
        let text = serde_json::to_vec_pretty(&Content { ca, certificate, key })
            .map_err(|_| Error::new(Kind::Internal, "the certificate cannot be written as JSON"))?;
        let file = self.file();
        self.os.replace_file(&file, &text).at(|| format!("write {}", file.display()))?;
        for earlier in EARLIER {
            if let Err(error) = self.remove(&self.state.join(earlier)) {
                warn!(
                    "the certificate and key of an earlier release cannot be removed; remove them: {}",
                    error.chain()
                );
            }
        }
        Ok(())
    }

    fn remove(&self, earlier: &Path) -> Result<()> {
        for name in [KEY, CERTIFICATE, CA] {
            let file = earlier.join(name);
            self.os.remove_file(&file).at(|| format!("remove {}", file.display()))?;
        }
        self.os.remove_dir(earlier).at(|| format!("remove {}", earlier.display())).map(drop)
    }
}
