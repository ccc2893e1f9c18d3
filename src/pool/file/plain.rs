//! Opens the pool's own files. Each is a regular file on a path without symbolic links, because Holdfast created it so.

use std::io;
use std::path::Path;

use crate::types::{Error, Kind, OsContext, Result};

/// The error of an open or read that failed.
pub(super) trait Plain<T> {
    /// Something else at the file's path is `Corrupt`: a retry does not help. Other errors as with [`OsContext::at`].
    fn plain(self, what: &str, path: &Path) -> Result<T>;
}

impl<T> Plain<T> for io::Result<T> {
    fn plain(self, what: &str, path: &Path) -> Result<T> {
        match self {
            Err(error) if not_plain(&error) => Err(Error::new(
                Kind::Corrupt,
                format!(
                    "{what} {}: this is not the file that Holdfast created; nothing was changed; find out which process replaced it, then restore the file",
                    path.display()
                ),
            )
            .because(error)),
            result => result.at(|| format!("{what} {}", path.display())),
        }
    }
}

/// A symbolic link in the path, a directory, a pipe, a device, a file instead of a directory, or a record that is too
/// large.
fn not_plain(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EISDIR | libc::ENOTDIR | libc::ENXIO))
        || matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_retry_can_mend_is_corrupt() {
        let tried = |error: io::Error| Err::<(), _>(error).plain("open", Path::new("/p/data")).unwrap_err();
        for errno in [libc::ELOOP, libc::EISDIR, libc::ENOTDIR, libc::ENXIO] {
            let error = tried(io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind(), Kind::Corrupt, "{errno}");
            assert!(error.to_string().contains("/p/data") && error.to_string().contains("restore"), "{error}");
        }
        assert_eq!(tried(io::Error::new(io::ErrorKind::InvalidInput, "no file")).kind(), Kind::Corrupt);
        assert_eq!(tried(io::Error::from_raw_os_error(libc::EIO)).kind(), Kind::Internal);
        assert_eq!(tried(io::Error::from_raw_os_error(libc::ENOSPC)).kind(), Kind::NoCapacity);
    }
}
