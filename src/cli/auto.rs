//! The flags of TLS mode auto, of a controller and of a node.

use clap::Args;
use holdfast::config::Flags;

/// Flags of a controller.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SigningArguments {
    /// TLS mode auto: the name of the Secret with the CA and of the ConfigMap with its certificate.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    tls_authority: Option<String>,
    /// TLS mode auto: the address where nodes request certificates.
    #[arg(long, value_name = "ADDRESS:PORT")]
    enrol_listen: Option<String>,
    /// TLS mode auto: the service account of the nodes; only its pods get certificates.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    enrol_account: Option<String>,
    /// TLS mode auto: the lifetime of a certificate, which is renewed after two thirds of it. Default: 720h.
    #[arg(long, value_name = "TIME")]
    certificate_life: Option<String>,
}

impl SigningArguments {
    /// Adds these flags.
    pub(crate) fn flags(&self, others: Flags) -> Flags {
        Flags {
            tls_authority: self.tls_authority.clone(),
            enrol_listen: self.enrol_listen.clone(),
            enrol_account: self.enrol_account.clone(),
            certificate_life: self.certificate_life.clone(),
            ..others
        }
    }
}

/// Flags of a node.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct EnrolArguments {
    /// TLS mode auto: a file with the CA's certificate, which verifies controllers; changes are detected.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<String>,
    /// TLS mode auto: a file with a service account token with audience holdfast, bound to this node's pod.
    #[arg(long, value_name = "FILE")]
    tls_token: Option<String>,
    /// TLS mode auto: the controllers' --enrol-listen. Repeatable, or separated by commas.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    enrol: Vec<String>,
}

impl EnrolArguments {
    /// Adds these flags.
    pub(crate) fn flags(&self, others: Flags) -> Flags {
        Flags { tls_ca: self.tls_ca.clone(), tls_token: self.tls_token.clone(), enrol: self.enrol.clone(), ..others }
    }
}
