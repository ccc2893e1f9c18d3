//! [`Registrar`]: keeps the registration socket there while the driver serves.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::Endpoint;
use tracing::{debug, error, info, warn};

use super::Registration;
use super::proto::registration_server::RegistrationServer;
use super::service::{Service, Verdict};
use crate::csi::DRIVER_NAME;
use crate::csi::proto::GetPluginInfoRequest;
use crate::csi::proto::identity_client::IdentityClient;
use crate::os::DirectoryWatch;
use crate::telemetry::KubeletMetrics;
use crate::types::{Error, Kind, OsContext, Result};
use crate::wire::socket::{self, SocketFile};
use crate::wire::{self, Allowance, Bounds, Door, Incoming, Most, MostArriving};

/// The flag that messages name.
const FLAG: &str = "--kubelet-registration";
/// How long CSI may take to answer before an error is logged.
const CSI_PATIENCE: Duration = Duration::from_secs(10);
const CSI_PAUSE: Duration = Duration::from_millis(20);
/// How long connections have to end when the socket is created anew.
const GRACE: Duration = Duration::from_secs(1);
/// The largest request, in bytes: it contains kubelet's error.
const MOST_REQUEST: usize = 1 << 20;
/// Connections at once; kubelet has one.
const MOST_CONNECTIONS: usize = 8;
/// Calls at once on one connection.
const MOST_CALLS: usize = 16;
/// Bytes of requests that may be arriving at once.
const MOST_ARRIVING: MostArriving = MostArriving { all: 4 << 20, of_one: 2 << 20 };

/// Every client of the socket may make both calls.
struct Anybody;

impl Door for Anybody {
    fn admit(&self, from: &http::Extensions, _path: &str) -> std::result::Result<Allowance, tonic::Status> {
        let connection = from.get::<std::sync::Arc<wire::Peer>>().cloned();
        let client = connection.as_ref().map_or_else(|| "kubelet".into(), |peer| std::sync::Arc::clone(peer.name()));
        Ok(Allowance { client, connection, calls: MOST_CALLS, bytes: MOST_REQUEST })
    }
}

/// Registers the driver with kubelet, again whenever that is needed.
#[derive(Debug)]
pub struct Registrar {
    registration: Registration,
    metrics: KubeletMetrics,
    pause: Pause,
}

/// Why the socket is gone.
#[derive(Debug)]
enum Ended {
    /// Kubelet refused, and did not register the driver afterwards.
    Refused,
    /// Another process removed the file, or replaced it.
    Gone,
    /// It could not be created or served.
    Failed(Error),
}

impl Registrar {
    /// Does nothing before [`Registrar::run`].
    #[must_use]
    pub fn new(registration: Registration, metrics: KubeletMetrics) -> Self {
        Self { registration, metrics, pause: Pause::new() }
    }

    /// Runs until `stopped` completes or the future is dropped; then the socket is removed.
    pub async fn run(mut self, stopped: impl Future<Output = ()>) {
        self.metrics.unknown();
        let metrics = self.metrics.clone();
        let offering = async move {
            loop {
                self.again().await;
            }
        };
        tokio::select! {
            () = stopped => info!("the registration with kubelet is withdrawn"),
            () = offering => {}
        }
        metrics.unknown();
    }

    /// Offers the driver once, and pauses after a failure.
    async fn again(&mut self) {
        let ended = self.offer().await;
        self.metrics.unknown();
        let socket = self.registration.socket.display();
        let pause = match &ended {
            Ended::Refused => {
                info!(%socket, "the registration socket is created anew, so that kubelet queries it again");
                return;
            }
            Ended::Gone => {
                let pause = self.pause.next();
                warn!(
                    %socket, again_in = ?pause,
                    "another process removed the registration socket; it is created again"
                );
                pause
            }
            Ended::Failed(failed) => {
                let pause = self.pause.next();
                error!(again_in = ?pause, "the driver cannot be registered with kubelet: {}", failed.chain());
                pause
            }
        };
        sleep(pause).await;
    }

    /// Offers the driver until that ends.
    async fn offer(&mut self) -> Ended {
        self.try_offer().await.unwrap_or_else(Ended::Failed)
    }

    async fn try_offer(&mut self) -> Result<Ended> {
        self.csi_answers().await?;
        let watch = self.watch();
        socket::clear(&self.registration.registrar, FLAG).await?;
        let (listener, file) = socket::listen(&self.registration.socket, FLAG).await?;
        info!(
            socket = %self.registration.socket.display(),
            endpoint = self.registration.endpoint,
            "the driver waits for registration by kubelet"
        );
        let (verdicts, heard) = mpsc::channel(8);
        let (close, closed) = oneshot::channel::<()>();
        let service = Service::new(&self.registration.endpoint, verdicts);
        let incoming = Incoming::new(listener, "the registration socket", Most::of_socket(MOST_CONNECTIONS));
        let server = wire::server()
            .layer(Bounds::new(Anybody, MOST_ARRIVING))
            .add_service(RegistrationServer::new(service).max_decoding_message_size(MOST_REQUEST))
            .serve_with_incoming_shutdown(incoming, async move { drop(closed.await) });
        let mut server = Box::pin(server);
        let ended = tokio::select! {
            served = &mut server => {
                let failed = Error::new(Kind::Internal, "the registration socket is not served any more");
                return Err(match served {
                    Ok(()) => failed,
                    Err(error) => failed.because(error),
                });
            }
            () = self.refused(heard) => Ended::Refused,
            () = taken_away(watch, &file) => Ended::Gone,
        };
        drop(file);
        drop(close);
        // Connections that stay longer are closed.
        let _ = timeout(GRACE, server).await;
        Ok(ended)
    }

    /// Processes kubelet's notifications; completes when it refused and did not register the driver afterwards.
    async fn refused(&mut self, mut heard: mpsc::Receiver<Verdict>) {
        let mut until = None;
        loop {
            let verdict = match until {
                None => heard.recv().await,
                Some(at) => tokio::select! {
                    verdict = heard.recv() => verdict,
                    () = sleep_until(at) => return,
                },
            };
            match verdict {
                Some(Verdict::Registered) => {
                    self.pause.reset();
                    self.metrics.registered();
                    info!("kubelet has registered the driver");
                    until = None;
                }
                Some(Verdict::Refused(reason)) => {
                    let pause = self.pause.next();
                    self.metrics.refused();
                    error!(reason, again_in = ?pause, "kubelet refused to register the driver");
                    until = Some(Instant::now() + pause);
                }
                // The service is gone, and with it the socket: the offer ends elsewhere.
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until CSI answers on its socket: kubelet calls it as soon as it has seen ours.
    async fn csi_answers(&self) -> Result<()> {
        let mut last = None;
        let answered = async {
            while let Err(error) = self.ask_csi().await {
                debug!("CSI does not answer yet: {}", error.chain());
                last = Some(error);
                sleep(CSI_PAUSE).await;
            }
        };
        if timeout(CSI_PATIENCE, answered).await.is_ok() {
            return Ok(());
        }
        let silent = Error::new(
            Kind::Unavailable,
            format!(
                "the CSI socket {} has not answered for {} s",
                self.registration.csi.display(),
                CSI_PATIENCE.as_secs()
            ),
        );
        Err(match last {
            Some(error) => silent.because(error),
            None => silent,
        })
    }

    async fn ask_csi(&self) -> Result<()> {
        let socket = self.registration.csi.display();
        let unanswered = || Error::new(Kind::Unavailable, format!("call GetPluginInfo on {socket}"));
        let endpoint =
            Endpoint::from_shared(format!("unix://{socket}")).map_err(|error| unanswered().because(error))?;
        let channel = endpoint.connect().await.map_err(|error| unanswered().because(error))?;
        let answer = IdentityClient::new(channel).get_plugin_info(GetPluginInfoRequest {}).await;
        let name = answer.map_err(|error| unanswered().because(error))?.into_inner().name;
        if name == DRIVER_NAME {
            return Ok(());
        }
        Err(Error::new(
            Kind::Precondition,
            format!("another driver, {name:?}, answers on {socket}; stop it, or set another --endpoint"),
        ))
    }

    /// Watches the directory for removed files. Without it (the machine may have no inotify watch left) the socket is
    /// served all the same.
    fn watch(&self) -> Option<DirectoryWatch> {
        let directory = self.registration.directory();
        let watch = DirectoryWatch::new(directory)
            .at(|| format!("watch {}: removal of the registration socket is not detected", directory.display()));
        watch.inspect_err(|error| warn!("{}", error.chain())).ok()
    }
}

/// Completes when the file is not ours any more.
async fn taken_away(watch: Option<DirectoryWatch>, file: &SocketFile) {
    let Some(watch) = watch else { return std::future::pending().await };
    while file.is_ours() {
        if let Err(error) = watch.changed().await {
            warn!("removal of the registration socket is not detected from now on: {error}");
            return std::future::pending().await;
        }
    }
}

/// Pauses from one second to a minute, twice as long each time.
#[derive(Debug)]
pub(super) struct Pause(Duration);

impl Pause {
    const LEAST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(60);

    pub(super) fn new() -> Self {
        Self(Self::LEAST)
    }

    pub(super) fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(Self::MOST);
        now
    }

    pub(super) fn reset(&mut self) {
        self.0 = Self::LEAST;
    }
}
