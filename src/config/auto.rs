//! TLS mode `auto`: what a controller needs to issue certificates, and a node to request them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{File, Flags, Said, pick, refuse};
use crate::types::{Error, ObjectName, Result};

/// The default lifetime of a certificate: 30 days.
const LIFE: Duration = Duration::from_secs(30 * 86_400);
/// The shortest and the longest lifetime.
const LIVES: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(825 * 86_400));

/// For a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningConfig {
    /// The Secret with the CA, and the ConfigMap with its certificate.
    pub authority: ObjectName,
    /// The address where nodes request certificates.
    pub listen: SocketAddr,
    /// The service account of nodes.
    pub account: ObjectName,
    /// The lifetime of certificates, including the controller's own.
    pub life: Duration,
}

/// For a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolConfig {
    /// The file with the CA certificates that verify controllers.
    pub ca: PathBuf,
    /// The file with the node's token.
    pub token: PathBuf,
    /// The addresses where controllers issue certificates, `HOST:PORT` each.
    pub servers: Vec<String>,
}

impl SigningConfig {
    pub(super) fn resolve(flags: &Flags, file: &File) -> Result<Self> {
        let entry = file.tls.auto.clone().unwrap_or_default();
        let none = |_: &str| None;
        let said =
            pick(&flags.signing.tls_authority, "--tls-authority", &entry.authority, "tls.auto.authority", "", none);
        let authority = said.ok_or_else(|| {
            refuse("no location for the CA: set --tls-authority NAMESPACE/NAME; the controllers create this Secret and ConfigMap")
        })?;
        let said = pick(&flags.signing.enrol_account, "--enrol-account", &entry.account, "tls.auto.account", "", none);
        let account = said.ok_or_else(|| {
            refuse("no account for certificate requests: set --enrol-account NAMESPACE/NAME, the service account of the nodes")
        })?;
        let said = pick(&flags.signing.enrol_listen, "--enrol-listen", &entry.listen, "tls.auto.listen", "", none);
        let listen = said.ok_or_else(|| {
            refuse("no address where nodes request certificates: set --enrol-listen ADDRESS:PORT, such as 0.0.0.0:9812")
        })?;
        let life = (&flags.signing.certificate_life, &entry.certificate_life);
        let life = pick(life.0, "--certificate-life", life.1, "tls.auto.certificateLife", "", none);
        Ok(Self {
            authority: object(&authority)?,
            listen: super::listen(&listen)?,
            account: object(&account)?,
            life: life.map(|said| time(&said)).transpose()?.unwrap_or(LIFE),
        })
    }
}

impl EnrolConfig {
    pub(super) fn resolve(flags: &Flags, file: &File) -> Result<Self> {
        let entry = file.tls.auto.clone().unwrap_or_default();
        let none = |_: &str| None;
        let ca = pick(&flags.enrol.tls_ca, "--tls-ca", &entry.ca, "tls.auto.ca", "", none).ok_or_else(|| {
            refuse("no CA certificate to verify the controllers: set --tls-ca FILE (mount the ConfigMap of the controllers)")
        })?;
        let token = pick(&flags.enrol.tls_token, "--tls-token", &entry.token, "tls.auto.token", "", none).ok_or_else(|| {
            refuse("no token to identify this node: set --tls-token FILE, a projected service account token with audience holdfast")
        })?;
        let servers = if flags.enrol.enrol.is_empty() { entry.servers } else { flags.enrol.enrol.clone() };
        if servers.is_empty() {
            return Err(refuse(
                "no controller that issues certificates: set --enrol HOST:PORT to the controllers' --enrol-listen",
            ));
        }
        let endpoint = |text: String| super::cluster::endpoint(&Said { text, place: "--enrol".to_owned() });
        let servers = servers.into_iter().map(endpoint).collect::<Result<_>>()?;
        Ok(Self { ca: PathBuf::from(ca.text), token: PathBuf::from(token.text), servers })
    }
}

fn object(said: &Said) -> Result<ObjectName> {
    said.text.parse().map_err(|error: Error| refuse(format!("{}: {error}", said.place)))
}

/// Hours, minutes or seconds: `720h`.
fn time(said: &Said) -> Result<Duration> {
    let wrong = || {
        refuse(format!(
            "{}: {:?} is not a lifetime of a certificate; use 15s to 19800h, such as 720h",
            said.place, said.text
        ))
    };
    let unit = |suffix: &str, seconds: u64| {
        let number: u64 = said.text.strip_suffix(suffix)?.parse().ok()?;
        number.checked_mul(seconds).map(Duration::from_secs)
    };
    let life = unit("h", 3600).or_else(|| unit("m", 60)).or_else(|| unit("s", 1)).ok_or_else(wrong)?;
    if life < LIVES.0 || life > LIVES.1 { Err(wrong()) } else { Ok(life) }
}

#[cfg(test)]
mod tests {
    use super::super::{ControllerConfig, NodeConfig, TlsMode};
    use super::super::{SigningFlags, WireFlags};
    use super::*;
    use std::path::Path;

    const CONTROLLER: &str = "endpoint: unix:///c.sock\nlisten: 0.0.0.0:9810\ntls: {auto: {authority: ns/holdfast-ca, listen: '0.0.0.0:9812', account: ns/holdfast-node}}\n";
    const NODE: &str = "endpoint: unix:///n.sock\nnodeName: n1\nlisten: 10.0.0.1:9811\ncontrollers: [c:9810]\ntls: {auto: {ca: /ca.crt, token: /token, servers: ['c:9812']}}\n";

    fn file(text: &str) -> File {
        File::parse(Path::new("h.yaml"), text).unwrap()
    }

    fn controller(flags: &Flags, text: &str) -> Result<TlsMode<SigningConfig>> {
        ControllerConfig::resolve(flags, &file(text), |_| None).map(|config| config.tls)
    }

    fn node(flags: &Flags, text: &str) -> Result<TlsMode<EnrolConfig>> {
        NodeConfig::resolve(flags, &file(text), |_| None).map(|config| config.tls)
    }

    #[test]
    fn both_sides_from_files_and_flags() {
        let TlsMode::Auto(all) = controller(&Flags::default(), CONTROLLER).unwrap() else { panic!("not auto") };
        assert_eq!((all.authority.to_string().as_str(), all.listen.port()), ("ns/holdfast-ca", 9812));
        assert_eq!((all.account.name(), all.life), ("holdfast-node", LIFE));
        let TlsMode::Auto(all) = node(&Flags::default(), NODE).unwrap() else { panic!("not auto") };
        assert_eq!((all.ca.as_path(), all.servers), (Path::new("/ca.crt"), vec!["c:9812".to_owned()]));
        let signing = SigningFlags {
            tls_authority: Some("a/b".into()),
            enrol_listen: Some("127.0.0.1:1".into()),
            enrol_account: Some("a/c".into()),
            certificate_life: Some("90m".into()),
        };
        let wire = WireFlags { tls_auto: true, ..WireFlags::default() };
        let flags = Flags { wire, signing, ..Flags::default() };
        let TlsMode::Auto(all) = controller(&flags, &CONTROLLER.replace("tls:", "# tls:")).unwrap() else {
            panic!("not auto")
        };
        assert_eq!(all.life, Duration::from_secs(5400));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let said = |result: Result<()>| result.unwrap_err().to_string();
        let c = |from: &str, to: &str| said(controller(&Flags::default(), &CONTROLLER.replace(from, to)).map(drop));
        assert!(c("authority: ns/holdfast-ca, ", "").contains("--tls-authority"));
        assert!(c("listen: '0.0.0.0:9812', ", "").contains("--enrol-listen"));
        assert!(c(", account: ns/holdfast-node", "").contains("--enrol-account"));
        assert!(c("ns/holdfast-node", "holdfast-node").contains("NAMESPACE/NAME"));
        assert!(c("tls: {", "tls: {directory: /tls, ").contains("exclude each other"));
        let n = |from: &str, to: &str| said(node(&Flags::default(), &NODE.replace(from, to)).map(drop));
        assert!(n("ca: /ca.crt, ", "").contains("--tls-ca"));
        assert!(n("token: /token, ", "").contains("--tls-token"));
        assert!(n(", servers: ['c:9812']", "").contains("--enrol"));
        assert!(n("'c:9812'", "'c'").contains("HOST:PORT"));
        let wire = WireFlags { insecure_plain_text: true, ..WireFlags::default() };
        let both = Flags { wire, ..Flags::default() };
        assert!(said(node(&both, NODE).map(drop)).contains("exclude each other"));
        for life in ["", "30", "14s", "-1h", "19801h", "30d"] {
            let signing = SigningFlags { certificate_life: Some(life.into()), ..SigningFlags::default() };
            let flags = Flags { signing, ..Flags::default() };
            assert!(said(controller(&flags, CONTROLLER).map(drop)).contains("--certificate-life"), "{life}");
        }
    }
}
