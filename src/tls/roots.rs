//! The trusted CAs in a text.

use std::path::Path;

use rustls::RootCertStore;

use super::certificate::{Certificate, date};
use super::pem;
use crate::types::{Error, Kind, Result};

/// The CAs of a text; expired ones are left out and noted in `remarks`.
pub(super) fn roots(text: &[u8], place: &Path, now: i64, remarks: &mut Vec<String>) -> Result<RootCertStore> {
    let wrong = |why: &str, next: &str| Error::new(Kind::Precondition, format!("{}: {why}; {next}", place.display()));
    let name = place.file_name().unwrap_or(place.as_os_str()).display();
    let mut roots = RootCertStore::empty();
    let mut last = None;
    for der in pem::certificates(text).map_err(|why| wrong(why, "write the CA's certificate there"))? {
        let ca =
            Certificate::read(&der).map_err(|error| wrong(&error.to_string(), "write the CA's certificate there"))?;
        if ca.not_after < now {
            last = Some(ca.not_after);
            remarks.push(format!("a CA in {name} expired on {} and is left out; remove it", date(ca.not_after)));
            continue;
        }
        roots
            .add(der)
            .map_err(|_| wrong("a certificate in it is not a CA certificate", "write only CA certificates there"))?;
    }
    match last {
        Some(last) if roots.is_empty() => {
            let why = format!("every CA in it has expired, the last on {}", date(last));
            Err(wrong(&why, "create a new CA and issue all certificates again"))
        }
        _ => Ok(roots),
    }
}
