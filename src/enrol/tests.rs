//! Controllers and nodes over real TLS, with the CA and the tokens behind real HTTP.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kube::Config;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Status};

use super::proto::EnrolRequest;
use super::proto::enrolment_client::EnrolmentClient;
use super::proto::enrolment_server::EnrolmentServer;
use super::*;
use crate::kubernetes::double::{ApiServer, TOKEN};
use crate::kubernetes::{KubernetesTokens, KubernetesVault};
use crate::os::{Activity, Call, Interceptor, Os};
use crate::registry::proto::HeartbeatRequest;
use crate::registry::proto::registry_client::RegistryClient;
use crate::telemetry::{Metrics, Sampled};
use crate::tls::{Authority, Credentials, Holder, Issued, Role, Trust, signing_request};
use crate::types::{Kind, NodeId, ObjectName, Result};

const LIFE: Duration = Duration::from_secs(30 * 86_400);
const ACCOUNT: &str = "system:serviceaccount:ns:holdfast-node";

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn dial(trust: Trust, address: SocketAddr) -> Result<Channel> {
    let credentials = Credentials::trusting(trust, Metrics::new(Activity::default()).tls().clone());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    Ok(endpoint.connect_with_connector_lazy(credentials.connector(&Role::Controller)))
}

/// An API server, and a controller that issues certificates.
struct Rig {
    api: ApiServer,
    scratch: TempDir,
    metrics: Arc<Metrics>,
    of_node: Arc<Metrics>,
}

struct Controller {
    keeper: Keeper,
    signing: Signing,
    address: SocketAddr,
}

impl Rig {
    fn new() -> Self {
        let (api, metrics) = (ApiServer::start(), || Metrics::new(Activity::default()));
        api.know("token-of-1", ACCOUNT, &["holdfast"], Some("node-1"));
        Self { api, scratch: tempfile::tempdir().unwrap(), metrics: metrics(), of_node: metrics() }
    }

    fn client(&self) -> kube::Client {
        let mut config = Config::new(self.api.url().parse().unwrap());
        config.auth_info.token = Some(TOKEN.to_owned().into());
        config.default_retry = false;
        kube::Client::try_from(config).unwrap()
    }

    /// Serving, with a CA only after [`Keeper::look`].
    async fn controller(&self) -> Controller {
        let name: ObjectName = "ns/holdfast-ca".parse().unwrap();
        let (credentials, holder) = Credentials::held(Role::Controller, self.metrics.tls().clone());
        let vault = Arc::new(KubernetesVault::new(&self.client(), name));
        let (keeper, signing) = Keeper::new(vault, LIFE, holder);
        let tokens = Arc::new(KubernetesTokens::new(&self.client()));
        let account = "ns/holdfast-node".parse().unwrap();
        let service = EnrolService::new(tokens, account, signing.clone(), LIFE, self.metrics.enrol().clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = credentials.incoming_from_anybody(listener);
        let server = Server::builder().add_service(EnrolmentServer::new(service)).serve_with_incoming(incoming);
        tokio::spawn(server);
        Controller { keeper, signing, address }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// What kubelet would mount.
    fn mount_ca(&self) {
        let map = self.api.object("configmaps/ns/holdfast-ca").unwrap();
        fs::write(self.place("ca.crt"), map["data"]["ca.crt"].as_str().unwrap()).unwrap();
    }

    fn kept(&self) -> Kept {
        Kept::new(&Os::new(), self.scratch.path())
    }

    fn held(&self, name: &str) -> (Credentials, Holder) {
        Credentials::held(Role::Node(node(name)), self.of_node.tls().clone())
    }

    /// What a start with the stored files would use.
    fn takes_kept(&self, name: &str) -> Result<String> {
        let issued = self.kept().read()?.expect("something is kept");
        self.held(name).1.put(&issued)?;
        Ok(issued.ca)
    }

    fn enrolling(&self, name: &str, token: &str, controller: &Controller) -> Arc<Enrolling> {
        fs::write(self.place("token"), format!("{token}\n")).unwrap();
        Arc::new(Enrolling {
            os: Os::new(),
            node: node(name),
            servers: vec![controller.address.to_string()],
            token: self.place("token"),
            ca: self.place("ca.crt"),
            kept: self.kept(),
            holder: self.held(name).1,
            dial: Box::new(dial),
        })
    }

    async fn ask(&self, controller: &Controller, token: &str, request: &str) -> std::result::Result<String, Status> {
        let trust = Trust::read(&fs::read(self.place("ca.crt")).unwrap(), &self.place("ca.crt")).unwrap();
        let message = Request::new(EnrolRequest { token: token.to_owned(), request: request.to_owned() });
        let answer = EnrolmentClient::new(dial(trust, controller.address).unwrap()).enrol(message).await;
        answer.map(|reply| reply.into_inner().certificate)
    }

    fn count(&self, outcome: &str) -> usize {
        let sample = format!("holdfast_enrolments_total{{outcome=\"{outcome}\"}} ");
        let text = self.metrics.text(Sampled::default()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(&sample)).map_or(0, |value| value.parse().unwrap())
    }

    /// An operator replaces the Secret.
    fn keep(&self, certificates: &str, key: &str) {
        let value = |text: &str| serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap();
        let data = serde_json::json!({"ca.crt": value(certificates), "ca.key": value(key)});
        self.api.put("secrets/ns/holdfast-ca", &data);
    }
}

#[tokio::test]
async fn controllers_that_start_at_once_make_one_ca() {
    let rig = Rig::new();
    let mut all = Vec::new();
    for _ in 0..6 {
        all.push(rig.controller().await);
    }
    let looks = all.iter_mut().map(|controller| controller.keeper.look());
    let ended = futures_util::future::join_all(looks).await;
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    let map = rig.api.object("configmaps/ns/holdfast-ca").unwrap();
    for controller in &all {
        let authority = controller.signing.authority().unwrap();
        assert_eq!(authority.bundle(), map["data"]["ca.crt"].as_str().unwrap());
    }
    assert!(!map.to_string().contains("PRIVATE KEY"));
    let secret = rig.api.object("secrets/ns/holdfast-ca").unwrap();
    assert_eq!(secret["data"].as_object().unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "ca.key"]);
    // A later controller uses the existing CA and changes nothing.
    let mut late = rig.controller().await;
    late.keeper.look().await.unwrap();
    assert_eq!(rig.api.object("secrets/ns/holdfast-ca").unwrap(), secret);
    assert_eq!(rig.api.object("configmaps/ns/holdfast-ca").unwrap(), map);
}

#[tokio::test]
async fn a_ca_that_went_away_is_not_made_anew_by_who_knew_it() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    controller.keeper.look().await.unwrap();
    rig.api.remove("secrets/ns/holdfast-ca");
    assert_eq!(controller.keeper.look().await.unwrap_err().kind(), Kind::Unavailable);
    assert!(rig.api.object("secrets/ns/holdfast-ca").is_none() && controller.signing.authority().is_some());
}

#[tokio::test]
async fn a_node_is_certified_for_what_its_token_says() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    controller.keeper.look().await.unwrap();
    rig.mount_ca();
    let enrolling = rig.enrolling("node-1", "token-of-1", &controller);
    let wanted = enrolling.wanted().unwrap().expect("the node has none");
    Arc::clone(&enrolling).enrol(wanted).await.unwrap();
    assert!(enrolling.wanted().unwrap().is_none());
    rig.takes_kept("node-1").unwrap();

    // The request is for another name: the token decides.
    let (key, request) = signing_request(&node("node-2")).unwrap();
    let certificate = rig.ask(&controller, "token-of-1", &request).await.unwrap();
    let ca = fs::read_to_string(rig.place("ca.crt")).unwrap();
    let issued = Issued { ca, certificate, key, until: String::new() };
    issued.check(&Role::Node(node("node-1"))).unwrap();
    issued.check(&Role::Node(node("node-2"))).unwrap_err();

    // A node that got another node's token does not accept that node's certificate.
    fs::remove_file(rig.kept().file()).unwrap();
    let enrolling = rig.enrolling("node-2", "token-of-1", &controller);
    let wanted = enrolling.wanted().unwrap().unwrap();
    let error = Arc::clone(&enrolling).enrol(wanted).await.unwrap_err();
    assert!(error.chain().contains("node-1") && error.chain().contains("node-2"), "{}", error.chain());
    assert!(rig.kept().read().unwrap().is_none());
    assert_eq!(rig.count("issued"), 3);
}

#[tokio::test]
async fn tokens_that_are_not_of_a_node_are_refused_and_counted() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    rig.api.know("of-another", "system:serviceaccount:ns:default", &["holdfast"], Some("node-1"));
    rig.api.know("of-elsewhere", "system:serviceaccount:other:holdfast-node", &["holdfast"], Some("node-1"));
    rig.api.know("for-the-api", ACCOUNT, &["https://kubernetes.default.svc"], Some("node-1"));
    rig.api.know("without-node", ACCOUNT, &["holdfast"], None);
    controller.keeper.look().await.unwrap();
    rig.mount_ca();
    let (_, request) = signing_request(&node("node-1")).unwrap();
    let long = "x".repeat(40_000);
    let cases = [
        ("unknown", "unauthenticated"),
        ("", "unauthenticated"),
        (&long, "unauthenticated"),
        ("for-the-api", "unauthenticated"),
        ("of-another", "account"),
        ("of-elsewhere", "account"),
        ("without-node", "no_node"),
    ];
    for (token, reason) in cases {
        let before = rig.count(reason);
        let status = rig.ask(&controller, token, &request).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{token} {status:?}");
        assert!(token.is_empty() || !status.message().contains(token), "{status:?}");
        assert_eq!(rig.count(reason), before + 1, "{token}");
    }
    for bad in ["", "nonsense", &"x".repeat(50_000)] {
        assert_eq!(rig.ask(&controller, "token-of-1", bad).await.unwrap_err().code(), Code::PermissionDenied);
    }
    assert_eq!((rig.count("bad_request"), rig.count("issued")), (3, 0));
    // Larger than any token and request: not even read.
    let status = rig.ask(&controller, &"x".repeat(5 << 20), &request).await.unwrap_err();
    assert_ne!(status.code(), Code::PermissionDenied);
    // The API server cannot answer now: the node retries, and nothing is decided.
    rig.api.answer_with(Some((500, "out of order".to_owned())));
    let status = rig.ask(&controller, "token-of-1", &request).await.unwrap_err();
    assert_ne!(status.code(), Code::PermissionDenied);
    assert_eq!(rig.count("unavailable"), 1);
    assert!(!format!("{:?}", EnrolRequest { token: "marker-4711".into(), request: String::new() }).contains("4711"));
}

#[tokio::test]
async fn the_port_without_certificates_certifies_and_nothing_else() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    controller.keeper.look().await.unwrap();
    rig.mount_ca();
    let trust = |text: &[u8]| Trust::read(text, &rig.place("ca.crt")).unwrap();
    let ca = fs::read(rig.place("ca.crt")).unwrap();
    let channel = dial(trust(&ca), controller.address).unwrap();
    let heartbeat = HeartbeatRequest { node: "node-1".into(), ..HeartbeatRequest::default() };
    let status = RegistryClient::new(channel).heartbeat(heartbeat).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    // Nothing is sent to a controller of another CA.
    let foreign = Authority::make().unwrap().0;
    let channel = dial(trust(foreign.bundle().as_bytes()), controller.address).unwrap();
    let (_, request) = signing_request(&node("node-1")).unwrap();
    let message = EnrolRequest { token: "token-of-1".into(), request };
    EnrolmentClient::new(channel).enrol(message).await.unwrap_err();
    assert_eq!(rig.api.asked("POST /apis/authentication.k8s.io/v1/tokenreviews"), 0);
}

/// Connected from a chosen address.
async fn connected(ca: &[u8], from: &str, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{from}:0").parse().unwrap())?;
    let stream = socket.connect(to).await?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(Role::Controller.name().to_string()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn who_holds_places_and_says_nothing_keeps_no_node_waiting() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    controller.keeper.look().await.unwrap();
    rig.mount_ca();
    let ca = fs::read(rig.place("ca.crt")).unwrap();
    let mut slow = Vec::new();
    for n in 0..160 {
        slow.push(connected(&ca, &format!("127.0.1.{}", n % 8), controller.address).await);
    }
    let (_, request) = signing_request(&node("node-1")).unwrap();
    for _ in 0..3 {
        let asked = tokio::time::timeout(Duration::from_secs(5), rig.ask(&controller, "token-of-1", &request));
        asked.await.expect("in time").unwrap();
    }
    assert_eq!(rig.count("issued"), 3);
    drop(slow);
}

#[tokio::test]
async fn who_asks_all_the_time_lets_others_have_a_turn() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    controller.keeper.look().await.unwrap();
    rig.mount_ca();
    rig.api.answer_after(Duration::from_millis(200));
    let ca = Arc::new(fs::read(rig.place("ca.crt")).unwrap());
    let (address, asking) = (controller.address, Arc::new(AtomicBool::new(true)));
    let mut floods = Vec::new();
    for n in 0..40 {
        let (ca, asking) = (Arc::clone(&ca), Arc::clone(&asking));
        floods.push(tokio::spawn(async move {
            let connector = tower::service_fn(move |_: http::Uri| {
                let ca = Arc::clone(&ca);
                async move { connected(&ca, &format!("127.0.1.{}", n % 8), address).await.map(TokioIo::new) }
            });
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            let mut client = EnrolmentClient::new(endpoint.connect_with_connector_lazy(connector));
            while asking.load(Ordering::Relaxed) {
                let message = EnrolRequest { token: "nonsense".into(), request: String::new() };
                client.enrol(message).await.unwrap_err();
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (_, request) = signing_request(&node("node-1")).unwrap();
    for _ in 0..3 {
        rig.ask(&controller, "token-of-1", &request).await.unwrap();
    }
    asking.store(false, Ordering::Relaxed);
    futures_util::future::join_all(floods).await.into_iter().for_each(Result::unwrap);
}

#[tokio::test]
async fn another_ca_reaches_everybody_in_steps() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    controller.keeper.look().await.unwrap();
    rig.mount_ca();
    let enrolling = rig.enrolling("node-1", "token-of-1", &controller);
    let certified = async || {
        rig.mount_ca();
        let wanted = enrolling.wanted().unwrap().expect("the CAs have changed");
        Arc::clone(&enrolling).enrol(wanted).await.unwrap();
        assert!(enrolling.wanted().unwrap().is_none());
        rig.takes_kept("node-1").unwrap()
    };
    let old = controller.signing.authority().unwrap().bundle().to_owned();
    certified().await;
    let (new, new_key) = Authority::make().unwrap();
    let old_key = {
        let secret = rig.api.object("secrets/ns/holdfast-ca").unwrap();
        let bytes: k8s_openapi::ByteString = serde_json::from_value(secret["data"]["ca.key"].clone()).unwrap();
        String::from_utf8(bytes.0).unwrap()
    };
    // Both trusted; then the new one issues; then it is alone.
    for (certificates, key) in [
        (format!("{old}{}", new.bundle()), &old_key),
        (format!("{}{old}", new.bundle()), &new_key),
        (new.bundle().to_owned(), &new_key),
    ] {
        rig.keep(&certificates, key);
        controller.keeper.look().await.unwrap();
        assert_eq!(certified().await, certificates);
    }
    // A CA that cannot be used changes nothing.
    rig.keep(new.bundle(), &old_key);
    controller.keeper.look().await.unwrap_err();
    assert_eq!(controller.signing.authority().unwrap().bundle(), new.bundle());
}

#[tokio::test]
async fn a_node_goes_on_trying_until_there_is_a_controller() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    let enrolling = rig.enrolling("node-1", "token-of-1", &controller);
    let (stop, stopped) = watch::channel(());
    let running = tokio::spawn(Arc::into_inner(enrolling).unwrap().run(stopped));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(rig.kept().read().unwrap().is_none());
    let why = rig.of_node.tls().why_missing().unwrap();
    assert!(why.contains("ca.crt") && why.contains("the log of the controllers"), "{why}");
    controller.keeper.look().await.unwrap();
    rig.mount_ca();
    // A new certificate is used first, and stored after that.
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if rig.of_node.tls().why_missing().is_none() && rig.kept().read().unwrap().is_some() {
            break;
        }
    }
    assert_eq!(rig.of_node.tls().why_missing(), None);
    rig.takes_kept("node-1").unwrap();
    stop.send_replace(());
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_held_also_when_it_was_not_at_the_start() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    controller.keeper.look().await.unwrap();
    rig.mount_ca();
    let first = rig.enrolling("node-1", "token-of-1", &controller);
    let wanted = first.wanted().unwrap().unwrap();
    first.enrol(wanted).await.unwrap();
    // A later process, whose clock or disk was wrong at the start.
    let later = rig.enrolling("node-1", "token-of-1", &controller);
    assert!(rig.of_node.tls().why_missing().is_some());
    assert!(later.wanted().unwrap().is_none());
    assert_eq!(rig.of_node.tls().why_missing(), None);
    // A clock that was ahead for a while reported that it expired.
    rig.of_node.tls().missing(Role::Node(node("node-1")).name().as_str(), "it expired");
    assert!(later.wanted().unwrap().is_none());
    assert_eq!(rig.of_node.tls().why_missing(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_kept_is_used() {
    let rig = Rig::new();
    let mut controller = rig.controller().await;
    controller.keeper.look().await.unwrap();
    rig.mount_ca();
    let failing = Failing::default();
    failing.from(0);
    let kept = Kept::new(&Os::intercepted(Box::new(failing)), rig.scratch.path());
    let usual = Arc::into_inner(rig.enrolling("node-1", "token-of-1", &controller)).unwrap();
    let enrolling = Arc::new(Enrolling { kept, ..usual });
    let wanted = enrolling.wanted().unwrap().unwrap();
    enrolling.enrol(wanted).await.unwrap_err();
    assert_eq!(rig.of_node.tls().why_missing(), None);
    assert!(rig.kept().read().unwrap().is_none());
}

/// From the n-th call on every call fails, and names are never exchanged.
#[derive(Clone, Default)]
struct Failing(Arc<(AtomicUsize, AtomicUsize)>);

impl Failing {
    fn from(&self, call: usize) {
        self.0.0.store(call, Ordering::Relaxed);
        self.0.1.store(0, Ordering::Relaxed);
    }

    fn met(&self) -> usize {
        self.0.1.load(Ordering::Relaxed)
    }
}

impl Interceptor for Failing {
    fn before(&self, call: Call, _: &str) -> io::Result<()> {
        let number = self.0.1.fetch_add(1, Ordering::Relaxed);
        let fails = call == Call::Exchange || number >= self.0.0.load(Ordering::Relaxed);
        if fails { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }

    fn after(&self, _: Call, _: &str) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_certificate_is_kept_where_names_cannot_be_exchanged_and_after_a_crash_anywhere() {
    let rig = Rig::new();
    let role = Role::Node(node("node-1"));
    let (authority, _) = Authority::make().unwrap();
    let issue = || authority.issue(&role, 1).unwrap();
    let (old, new) = (issue(), issue());
    // The state of an earlier release, with the leftovers of its crash.
    old.write(&Os::new(), &rig.place("tls")).unwrap();
    fs::create_dir(rig.place(".tls.new")).unwrap();
    fs::write(rig.place(".tls.new/tls.key"), &old.key).unwrap();
    assert_eq!(rig.kept().read().unwrap().unwrap().key, old.key);

    let failing = Failing::default();
    let kept = Kept::new(&Os::intercepted(Box::new(failing.clone())), rig.scratch.path());
    let mut calls = 0;
    loop {
        // Every call from this one on fails: the file is one of the two, whole.
        failing.from(calls);
        let written = kept.write(&new);
        let there = rig.kept().read().unwrap().unwrap();
        assert!(there.check(&role).is_ok() && [&old.key, &new.key].contains(&&there.key), "{calls}");
        assert!(written.is_err() || there.key == new.key, "{calls}");
        if failing.met() <= calls {
            break;
        }
        calls += 1;
    }
    assert!(calls > 5, "{calls}");
    assert_eq!(Os::new().list_dir(rig.scratch.path()).unwrap(), ["certificate.json"]);
    assert_eq!(fs::metadata(kept.file()).unwrap().permissions().mode() & 0o777, 0o600);
    for damaged in ["", "{", "{\"ca\": \"x\"}"] {
        fs::write(kept.file(), damaged).unwrap();
        assert_eq!(rig.kept().read().unwrap_err().kind(), Kind::Corrupt, "{damaged}");
    }
}
