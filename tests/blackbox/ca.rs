//! `holdfast ca`: certificates from the command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use holdfast::os::{Activity, Os};
use holdfast::telemetry::Metrics;
use holdfast::tls::{Credentials, Role};
use tempfile::TempDir;

use crate::harness::{Finished, driver_binary, try_run};

/// A scratch directory in which commands are run with paths relative to it.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `holdfast ca`, with `@name` as a path in the scratch directory.
    fn ca(&self, arguments: &str) -> Finished {
        let arguments: Vec<String> = arguments
            .split_ascii_whitespace()
            .map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| self.path(name).display().to_string()))
            .collect();
        let arguments: Vec<_> = std::iter::once("ca").chain(arguments.iter().map(String::as_str)).collect();
        try_run(driver_binary(), &arguments)
    }

    fn works(&self, arguments: &str) -> String {
        let done = self.ca(arguments);
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{arguments}: {}", done.stdout);
        done.stdout
    }

    /// One line on standard error, exit code 2, and these words.
    fn refuses(&self, arguments: &str, words: &[&str]) {
        let done = self.ca(arguments);
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{arguments}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{arguments}: {}", done.stderr);
        for word in words {
            assert!(done.stderr.contains(word), "{arguments}: {} has no {word}", done.stderr);
        }
        assert!(!done.stderr.contains("PRIVATE"), "{}", done.stderr);
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }
}

/// The names in a directory, hidden ones too.
fn names(place: &Path) -> Vec<String> {
    Os::new().list_dir(place).unwrap()
}

/// Whether a process of the role accepts the files.
fn fits(place: &Path, role: &str) -> Result<(), String> {
    let metrics = Metrics::new(Activity::default());
    let loaded = Credentials::from_files(Os::new(), place, role.parse::<Role>().unwrap(), metrics.tls().clone());
    loaded.map(drop).map_err(|error| error.chain())
}

#[test]
fn a_certificate_for_each_role_is_issued_and_renewed() {
    let desk = Desk::new();
    let said = desk.works("issue --dir @ca --role controller --out @controller");
    assert!(said.contains("made a CA") && said.contains("controller.csi.holdfast.storage"), "{said}");
    for (role, out) in [("node:host-7", "host-7"), ("node:Host_8", "host-8"), ("operator", "me")] {
        let said = desk.works(&format!("issue --dir @ca --role {role} --days 7 --out @{out}"));
        assert!(!said.contains("made a CA"), "{said}");
        fits(&desk.path(out), role).unwrap();
        assert!(fits(&desk.path(out), "controller").unwrap_err().contains("but this process is controller"));
    }
    assert_eq!(names(&desk.path("controller")), ["ca.crt", "tls.crt", "tls.key"]);
    for file in ["ca/ca.key", "controller/tls.key"] {
        assert_eq!(desk.mode(file), 0o600);
    }
    assert_eq!(fs::read(desk.path("ca/ca.crt")).unwrap(), fs::read(desk.path("me/ca.crt")).unwrap());

    let before = fs::read(desk.path("me/tls.key")).unwrap();
    desk.works("issue --dir @ca --role operator --out @me");
    assert_ne!(before, fs::read(desk.path("me/tls.key")).unwrap());
    fits(&desk.path("me"), "operator").unwrap();
    assert_eq!(names(desk.0.path()), ["ca", "controller", "host-7", "host-8", "me"]);
}

#[test]
fn a_node_s_key_is_made_on_the_node_and_only_its_request_travels() {
    let desk = Desk::new();
    desk.works("issue --dir @ca --role controller --out @controller");
    desk.works("request --node host-7 --out @node");
    assert_eq!(
        (names(&desk.path("node")), desk.mode("node/tls.key")),
        (vec!["tls.csr".into(), "tls.key".into()], 0o600)
    );
    desk.works("sign --dir @ca --csr @node/tls.csr --node host-7 --out @node/tls.crt");
    fs::copy(desk.path("ca/ca.crt"), desk.path("node/ca.crt")).unwrap();
    fits(&desk.path("node"), "node:host-7").unwrap();
    // Signed for another node, the certificate is for that node, whatever the request contains.
    desk.works("sign --dir @ca --csr @node/tls.csr --node host-8 --out @node/tls.crt");
    assert!(fits(&desk.path("node"), "node:host-7").unwrap_err().contains("it is for host-8.node"));
    desk.refuses("request --node host-7 --out @node", &["already contains"]);
}

#[test]
fn openssl_takes_what_is_issued_and_its_requests_are_signed() {
    let desk = Desk::new();
    desk.works("issue --dir @ca --role node:host-7 --out @node");
    let path = |name: &str| desk.path(name).display().to_string();
    let openssl = |arguments: &[&str]| {
        let done = try_run("openssl", arguments);
        assert_eq!(done.code, Some(0), "{arguments:?}: {}", done.stderr);
        done.stdout
    };
    openssl(&["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", &path("ca/ca.crt"), &path("node/tls.crt")]);
    openssl(&["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", &path("ca/ca.crt"), &path("node/tls.crt")]);
    let (key, csr) = (path("key"), path("csr"));
    for kind in ["rsa:2048", "ec"] {
        let mut arguments =
            vec!["req", "-new", "-nodes", "-newkey", kind, "-subj", "/CN=controller.csi.holdfast.storage"];
        if kind == "ec" {
            arguments.extend(["-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        }
        arguments.extend([
            "-addext",
            "subjectAltName=DNS:controller.csi.holdfast.storage",
            "-keyout",
            &key,
            "-out",
            &csr,
        ]);
        openssl(&arguments);
        desk.works("sign --dir @ca --csr @csr --node host-9 --out @crt");
        openssl(&["verify", "-CAfile", &path("ca/ca.crt"), &path("crt")]);
        let shown = openssl(&["x509", "-noout", "-subject", "-ext", "subjectAltName", "-in", &path("crt")]);
        assert!(shown.contains("DNS:host-9.node.csi.holdfast.storage") && !shown.contains("controller"), "{shown}");
    }
}

#[test]
fn what_cannot_be_done_is_one_line_and_changes_nothing() {
    let desk = Desk::new();
    desk.works("issue --dir @ca --role controller --out @out");
    desk.works("request --node n --out @node");
    fs::create_dir(desk.path("mine")).unwrap();
    fs::write(desk.path("mine/letter"), "x").unwrap();
    fs::write(desk.path("file"), "x").unwrap();
    let before: Vec<_> = ["ca", "out", "node", "mine"].map(|name| names(&desk.path(name))).into();
    let certificate = fs::read(desk.path("out/tls.crt")).unwrap();

    desk.refuses("issue --dir @ca --role admin --out @new", &["admin", "node:NAME"]);
    desk.refuses("issue --dir @ca --role node:a/b --out @new", &["a/b"]);
    desk.refuses("issue --dir @ca --role operator --days 0 --out @new", &["1 to 825"]);
    desk.refuses("issue --dir @ca --role operator --out @mine", &["letter", "not overwritten"]);
    desk.refuses("issue --dir @ca --role operator --out @ca", &["ca.key"]);
    desk.refuses("issue --dir @ca --role operator --out @no/where", &["does not exist"]);
    desk.refuses("issue --dir @ca --role operator --out @file", &["file"]);
    desk.refuses("issue --dir @mine --role operator --out @new", &["ca.crt"]);
    desk.refuses("sign --dir @none --csr @node/tls.csr --node n --out @new", &["ca.crt"]);
    desk.refuses("sign --dir @ca --csr @none --node n --out @new", &["--csr"]);
    desk.refuses("sign --dir @ca --csr @node/tls.key --node n --out @new", &["no certificate signing request"]);
    desk.refuses("sign --dir @ca --csr @node/tls.csr --node n --out @no/where", &["--out"]);
    desk.refuses("sign --dir @ca --csr @node/tls.csr --out @new", &["--node"]);
    fs::write(desk.path("ca/ca.key"), fs::read(desk.path("node/tls.key")).unwrap()).unwrap();
    desk.refuses("issue --dir @ca --role operator --out @new", &["ca.key is not the key"]);

    assert_eq!(before, ["ca", "out", "node", "mine"].map(|name| names(&desk.path(name))));
    assert_eq!(certificate, fs::read(desk.path("out/tls.crt")).unwrap());
    assert_eq!(names(desk.0.path()), ["ca", "file", "mine", "node", "out"]);
}
