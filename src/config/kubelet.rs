//! Where the driver registers itself with kubelet, if it does.

use std::path::{Path, PathBuf};

use super::{File, Flags, Said, pick, refuse};
use crate::kubelet::Registration;
use crate::types::Result;

/// sun_path of unix(7): 108 bytes with its terminator.
const MOST_PATH: usize = 107;

/// From flags and file; `csi` is the socket on which CSI is served.
///
/// # Errors
/// `InvalidArgument`: an invalid path, or an endpoint without a registration.
pub(super) fn registration(flags: &Flags, file: &File, csi: &Path) -> Result<Option<Registration>> {
    let directory = pick(
        &flags.kubelet.kubelet_registration,
        "--kubelet-registration",
        &file.kubelet_registration,
        "kubeletRegistration",
        "",
        |_| None,
    );
    let endpoint = pick(
        &flags.kubelet.kubelet_endpoint,
        "--kubelet-endpoint",
        &file.kubelet_endpoint,
        "kubeletEndpoint",
        "",
        |_| None,
    );
    let Some(directory) = directory else {
        return match endpoint {
            None => Ok(None),
            Some(said) => Err(refuse(format!(
                "{}: it has no effect without --kubelet-registration DIR; set that too, or remove this",
                said.place
            ))),
        };
    };
    let endpoint = match endpoint {
        Some(said) => absolute(&said, "/var/lib/kubelet/plugins/csi.holdfast.storage/csi.sock")?,
        None => csi.to_owned(),
    };
    let registration = Registration::within(
        &absolute(&directory, "/var/lib/kubelet/plugins_registry")?,
        csi,
        // Lossless: both paths come from strings.
        &endpoint.to_string_lossy(),
    );
    // The path here, and the path on the host: kubelet connects to the second.
    let of_kubelet = registration.socket_of_kubelet();
    for socket in [Some(&registration.socket), of_kubelet.as_ref()].into_iter().flatten() {
        if socket.as_os_str().len() > MOST_PATH {
            return Err(refuse(format!(
                "{}: the path of the socket {} would have {} bytes, and a socket path has at most {MOST_PATH}; choose a shorter directory for kubelet",
                directory.place,
                socket.display(),
                socket.as_os_str().len()
            )));
        }
    }
    Ok(Some(registration))
}

fn absolute(said: &Said, example: &str) -> Result<PathBuf> {
    let path = Path::new(&said.text);
    if !path.is_absolute() || said.text.len() > MOST_PATH || said.text.chars().any(char::is_control) {
        return Err(refuse(format!(
            "{}: {:?} is not an absolute path of at most {MOST_PATH} bytes without control characters; use a path such as {example}",
            said.place, said.text
        )));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::KubeletFlags;
    use super::*;

    fn resolve(directory: Option<&str>, endpoint: Option<&str>, file: &str) -> Result<Option<Registration>> {
        let kubelet = KubeletFlags {
            kubelet_registration: directory.map(str::to_owned),
            kubelet_endpoint: endpoint.map(str::to_owned),
        };
        let flags = Flags { kubelet, ..Flags::default() };
        registration(&flags, &File::parse(Path::new("h.yaml"), file).unwrap(), Path::new("/csi/csi.sock"))
    }

    #[test]
    fn only_who_asks_is_registered_and_by_default_under_its_own_socket() {
        assert_eq!(resolve(None, None, "").unwrap(), None);
        let own = resolve(Some("/registry"), None, "").unwrap().unwrap();
        assert_eq!(own.socket, Path::new("/registry/kubelet@csi.holdfast.storage-reg.sock"));
        assert_eq!((own.csi.as_path(), own.endpoint.as_str()), (Path::new("/csi/csi.sock"), "/csi/csi.sock"));
        let file = "kubeletRegistration: /r\nkubeletEndpoint: /host/csi.sock\n";
        let from_file = resolve(None, None, file).unwrap().unwrap();
        assert_eq!((from_file.directory(), from_file.endpoint.as_str()), (Path::new("/r"), "/host/csi.sock"));
        let flags_win = resolve(Some("/flag"), Some("/flag.sock"), file).unwrap().unwrap();
        assert_eq!((flags_win.directory(), flags_win.endpoint.as_str()), (Path::new("/flag"), "/flag.sock"));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_next_step() {
        let said = |directory, endpoint| resolve(directory, endpoint, "").unwrap_err().to_string();
        let alone = said(None, Some("/host/csi.sock"));
        assert!(alone.contains("--kubelet-endpoint") && alone.contains("--kubelet-registration DIR"), "{alone}");
        let relative = said(Some("registry"), None);
        assert!(relative.contains("--kubelet-registration") && relative.contains("plugins_registry"), "{relative}");
        assert!(said(Some("/r"), Some("unix:///csi.sock")).contains("--kubelet-endpoint"));
        let long = format!("/{}", "x".repeat(90));
        assert!(said(Some(&long), None).contains("shorter directory"));
        // As in the chart's container: only the endpoint tells where kubelet looks.
        let root = |length: usize| format!("/{}", "k".repeat(length - 1));
        let of = |root: &str| format!("{root}/plugins/csi.holdfast.storage/csi.sock");
        let too_long = said(Some("/registration"), Some(&of(&root(53))));
        assert!(too_long.contains("/plugins_registry/kubelet@csi") && too_long.contains("108 bytes"), "{too_long}");
        assert!(resolve(Some("/registration"), Some(&of(&root(52))), "").unwrap().is_some());
    }
}
