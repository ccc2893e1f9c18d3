//! The command line, unparsed. Each daemon has the groups of flags that concern it; the text of a flag here is its help.

use clap::Args;

/// The flags of all daemons; a daemon leaves out the groups that it does not have.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--node-name`.
    pub node_name: Option<String>,
    /// Every `--pool`.
    pub pools: Vec<String>,
    /// Of every daemon.
    pub daemon: DaemonFlags,
    /// Of daemons that serve a node.
    pub kubelet: KubeletFlags,
    /// Of daemons that connect to other daemons.
    pub wire: WireFlags,
    /// Of a node.
    pub node: NodeFlags,
    /// Of a node, for TLS mode auto.
    pub enrol: EnrolFlags,
    /// Of a controller, for TLS mode auto.
    pub signing: SigningFlags,
}

/// Flags of every daemon.
#[derive(Args, Clone, Debug, Default)]
pub struct DaemonFlags {
    /// The Unix socket on which CSI is served. Default: CSI_ENDPOINT.
    #[arg(long, value_name = "unix:///PATH")]
    pub endpoint: Option<String>,
    /// The address and port for metrics and health. Default: not served.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<String>,
    /// The format of log lines: text or json. Default: text.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// The lowest level of log lines: error, warn, info, debug or trace. Default: info.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// Flags of daemons that serve a node.
#[derive(Args, Clone, Debug, Default)]
pub struct KubeletFlags {
    /// The directory that kubelet watches; the driver registers itself there. Default: use a registrar.
    #[arg(long, value_name = "DIR")]
    pub kubelet_registration: Option<String>,
    /// The path of the --endpoint socket as kubelet sees it. Default: the path of --endpoint.
    #[arg(long, value_name = "PATH")]
    pub kubelet_endpoint: Option<String>,
}

/// Flags of daemons that connect to other daemons.
#[derive(Args, Clone, Debug, Default)]
pub struct WireFlags {
    /// The TCP address on which this process accepts connections.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// A directory with ca.crt, tls.crt and tls.key; changed files are loaded without a restart.
    #[arg(long, value_name = "DIR")]
    pub tls: Option<String>,
    /// The controllers issue the certificates, and verify nodes by their Kubernetes tokens.
    #[arg(long)]
    pub tls_auto: bool,
    /// No certificates and no encryption: for tests only.
    #[arg(long)]
    pub insecure_plain_text: bool,
    /// The time between two heartbeats, the same in all processes. Default: 5s.
    #[arg(long, value_name = "TIME")]
    pub heartbeat: Option<String>,
}

/// Flags of a node.
#[derive(Args, Clone, Debug, Default)]
pub struct NodeFlags {
    /// The controllers; a name with several addresses means all of them. Repeatable, or separated by commas.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub controllers: Vec<String>,
    /// The address that controllers connect to. Default: --listen.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The name of the storage network of this node. Default: none.
    #[arg(long, value_name = "NAME")]
    pub fabric: Option<String>,
    /// The address on which this node exports volumes to the other nodes of the fabric, or the network interface that has
    /// it. Default: that of --advertise or --listen.
    #[arg(long, value_name = "ADDRESS")]
    pub fabric_address: Option<String>,
    /// The TCP ports for exports, one per volume that another node uses. Default: 4500-4999.
    #[arg(long, value_name = "FIRST-LAST")]
    pub fabric_ports: Option<String>,
    /// The state directory: the known pools of all nodes, and the node's certificate. Default: /var/lib/holdfast.
    #[arg(long, value_name = "DIR")]
    pub state: Option<String>,
}

/// Flags of a node, for TLS mode auto.
#[derive(Args, Clone, Debug, Default)]
pub struct EnrolFlags {
    /// TLS mode auto: a file with the CA's certificate, which verifies controllers; changes are detected.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<String>,
    /// TLS mode auto: a file with a service account token with audience holdfast, bound to this node's pod.
    #[arg(long, value_name = "FILE")]
    pub tls_token: Option<String>,
    /// TLS mode auto: the controllers' --enrol-listen. Repeatable, or separated by commas.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub enrol: Vec<String>,
}

/// Flags of a controller, for TLS mode auto.
#[derive(Args, Clone, Debug, Default)]
pub struct SigningFlags {
    /// TLS mode auto: the name of the Secret with the CA and of the ConfigMap with its certificate.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub tls_authority: Option<String>,
    /// TLS mode auto: the address where nodes request certificates.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub enrol_listen: Option<String>,
    /// TLS mode auto: the service account of the nodes; only its pods get certificates.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub enrol_account: Option<String>,
    /// TLS mode auto: the lifetime of a certificate, which is renewed after two thirds of it. Default: 720h.
    #[arg(long, value_name = "TIME")]
    pub certificate_life: Option<String>,
}
