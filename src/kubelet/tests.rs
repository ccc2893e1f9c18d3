//! The registrar against a client that does what kubelet does, over real sockets.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::proto::registration_client::RegistrationClient;
use super::proto::{InfoRequest, PluginInfo, RegistrationStatus};
use super::{Registrar, Registration};
use crate::csi::DRIVER_NAME;
use crate::csi::proto::identity_server::{Identity as CsiIdentity, IdentityServer};
use crate::csi::proto::{GetPluginInfoRequest, GetPluginInfoResponse};
use crate::os::{Activity, Stopwatch};
use crate::telemetry::{Metrics, Sampled};

/// A driver that only answers with its name.
struct Named(&'static str);

#[tonic::async_trait]
impl CsiIdentity for Named {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse { name: self.0.into(), ..GetPluginInfoResponse::default() }))
    }
}

/// A directory kubelet watches, and the registrar of a driver beside it.
struct Scene {
    dir: tempfile::TempDir,
    metrics: std::sync::Arc<Metrics>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Scene {
    /// CSI is not served yet.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("registry")).unwrap();
        let metrics = Metrics::new(Activity::default());
        let registration =
            Registration::within(&dir.path().join("registry"), &dir.path().join("csi.sock"), "/host/csi.sock");
        let (stop, stopped) = oneshot::channel::<()>();
        let registrar = Registrar::new(registration, metrics.kubelet().clone());
        let running = tokio::spawn(registrar.run(async move { drop(stopped.await) }));
        Self { dir, metrics, stop: Some(stop), running }
    }

    /// With a driver that answers.
    fn served() -> Self {
        let scene = Self::new();
        scene.serve_csi(DRIVER_NAME);
        scene
    }

    fn serve_csi(&self, name: &'static str) {
        let listener = UnixListener::bind(self.dir.path().join("csi.sock")).unwrap();
        let server = Server::builder().add_service(IdentityServer::new(Named(name)));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    }

    fn registry(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    fn socket(&self) -> PathBuf {
        self.registry().join("kubelet@csi.holdfast.storage-reg.sock")
    }

    /// The socket, once it answers and is not `other`.
    async fn appears(&self, other: Option<Identity>) -> Identity {
        let watch = Stopwatch::start();
        loop {
            if let Some(found) = identity(&self.socket())
                && Some(found) != other
                && std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
            {
                return found;
            }
            assert!(watch.elapsed() < Duration::from_secs(20), "no socket appears");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn kubelet(&self) -> RegistrationClient<Channel> {
        // As kubelet's gRPC library derives an authority from a path.
        let authority = self.socket().display().to_string().replace('/', "%2F");
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket().display())).unwrap();
        let endpoint = endpoint.origin(format!("http://{authority}").parse().unwrap());
        RegistrationClient::new(endpoint.connect().await.unwrap())
    }

    async fn say(&self, plugin_registered: bool, error: &str) {
        let status = RegistrationStatus { plugin_registered, error: error.into() };
        self.kubelet().await.notify_registration_status(status).await.unwrap();
    }

    fn metric(&self, name: &str) -> Option<String> {
        let text = self.metrics.text(Sampled::default()).unwrap();
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    }

    async fn metric_is(&self, name: &str, value: &str) {
        let watch = Stopwatch::start();
        while self.metric(name).as_deref() != Some(value) {
            assert!(watch.elapsed() < Duration::from_secs(10), "{name} is {:?}, not {value}", self.metric(name));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Identifies a file: inode numbers are reused, so with its creation time.
type Identity = (u64, i64, i64);

fn identity(path: &Path) -> Option<Identity> {
    std::fs::symlink_metadata(path).ok().map(|there| (there.ino(), there.mtime(), there.mtime_nsec()))
}

#[tokio::test]
async fn kubelet_is_told_who_serves_where_and_only_once_csi_answers() {
    let scene = Scene::new();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!scene.socket().exists(), "kubelet would have called a CSI socket that does not exist");
    scene.serve_csi(DRIVER_NAME);
    scene.appears(None).await;
    assert_eq!(std::fs::metadata(scene.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(scene.registry()).unwrap().count(), 1);
    let info = scene.kubelet().await.get_info(InfoRequest {}).await.unwrap().into_inner();
    let expected = PluginInfo {
        r#type: "CSIPlugin".into(),
        name: "csi.holdfast.storage".into(),
        endpoint: "/host/csi.sock".into(),
        supported_versions: vec!["1.0.0".into()],
    };
    assert_eq!(info, expected);
    scene.metric_is("holdfast_kubelet_registered", "0").await;
    scene.say(true, "").await;
    scene.metric_is("holdfast_kubelet_registered", "1").await;
}

#[tokio::test]
async fn another_driver_s_socket_is_never_offered() {
    let scene = Scene::new();
    scene.serve_csi("csi.example.com");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!scene.socket().exists());
}

#[tokio::test]
async fn after_a_refusal_the_socket_is_made_anew_and_kubelet_asks_from_the_beginning() {
    let scene = Scene::served();
    let first = scene.appears(None).await;
    scene.say(true, "").await;
    scene.say(false, "no node ID").await;
    scene.metric_is("holdfast_kubelet_registrations_total{outcome=\"refused\"}", "1").await;
    scene.metric_is("holdfast_kubelet_registered", "0").await;
    let second = scene.appears(Some(first)).await;
    scene.kubelet().await.get_info(InfoRequest {}).await.unwrap();
    scene.say(true, "").await;
    scene.metric_is("holdfast_kubelet_registered", "1").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(identity(&scene.socket()), Some(second), "a registered driver offered itself again");
}

#[tokio::test]
async fn a_refusal_that_kubelet_thinks_better_of_changes_nothing() {
    let scene = Scene::served();
    let first = scene.appears(None).await;
    scene.say(false, "not yet").await;
    scene.say(true, "").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(identity(&scene.socket()), Some(first));
    assert_eq!(scene.metric("holdfast_kubelet_registered").unwrap(), "1");
}

#[tokio::test]
async fn a_socket_that_was_taken_away_comes_back() {
    let scene = Scene::served();
    let first = scene.appears(None).await;
    // Other files come and go, and nothing happens.
    std::fs::write(scene.registry().join("other"), "").unwrap();
    std::fs::remove_file(scene.registry().join("other")).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(identity(&scene.socket()), Some(first));

    let aside = scene.dir.path().join("aside.sock");
    std::fs::rename(scene.socket(), &aside).unwrap();
    let second = scene.appears(Some(first)).await;
    std::fs::remove_dir_all(scene.registry()).unwrap();
    scene.metric_is("holdfast_kubelet_registered", "0").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    std::fs::create_dir(scene.registry()).unwrap();
    scene.appears(Some(second)).await;
    scene.kubelet().await.get_info(InfoRequest {}).await.unwrap();
}

#[tokio::test]
async fn what_lies_in_its_place_is_left_alone() {
    let mut scene = Scene::served();
    scene.appears(None).await;
    let precious = scene.registry().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    std::fs::rename(&precious, scene.socket()).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(std::fs::read_to_string(scene.socket()).unwrap(), "precious");
    assert!(!scene.running.is_finished(), "it continues as soon as the file is gone");
    drop(scene.stop.take());
    (&mut scene.running).await.unwrap();
    assert_eq!(std::fs::read_to_string(scene.socket()).unwrap(), "precious");
}

#[tokio::test]
async fn the_socket_goes_when_the_driver_goes_however_it_goes() {
    let mut scene = Scene::served();
    scene.appears(None).await;
    drop(scene.stop.take());
    (&mut scene.running).await.unwrap();
    assert!(!scene.socket().exists());
    assert_eq!(scene.metric("holdfast_kubelet_registered").unwrap(), "0");

    let mut scene = Scene::served();
    scene.appears(None).await;
    scene.running.abort();
    assert!((&mut scene.running).await.unwrap_err().is_cancelled());
    assert!(!scene.socket().exists());
}

#[test]
fn pauses_grow_to_a_minute_and_begin_again() {
    let mut pause = super::registrar::Pause::new();
    let pauses: Vec<_> = (0..8).map(|_| pause.next().as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    pause.reset();
    assert_eq!(pause.next().as_secs(), 1);
}
