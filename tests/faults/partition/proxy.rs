//! A proxy of the test, between a controller and the gRPC service of a real home. What becomes of a call is drawn from a
//! seed, the call's name, what it is about and how often it came: the same whatever else goes on.

#![expect(clippy::disallowed_methods, reason = "a proxy answers what a network answers")]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use holdfast::home::remote::proto::GetVolumeRequest;
use holdfast::home::remote::proto::home_server::HomeServer;
use holdfast::home::remote::{HomeService, RemoteHome};
use holdfast::home::{Home, LocalHome};
use holdfast::tls::Peer;

type Request = http::Request<Body>;
type Reply = http::Response<Body>;
type Inner = HomeServer<HomeService>;

/// What a caller is told when he is not told the home's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A code of the network's.
    Code(Code),
    /// Nothing, until his time is over.
    Nothing,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing special.
    Passed,
    /// It waits on the way; its caller may have given up when it arrives.
    Slow(Duration),
    /// It never arrives.
    Lost(Told),
    /// It is done, and the reply is lost.
    Unanswered(Told),
    /// It arrives twice, one after the other; the second reply is given.
    Twice,
    /// It arrives twice at the same moment; the first reply is given.
    AtOnce,
    /// It arrives after other calls.
    Late(Told),
    /// It is done and answered, and arrives again after other calls.
    Echoed,
}

/// A call as it came.
#[derive(Clone)]
struct Wired {
    uri: http::Uri,
    headers: http::HeaderMap,
    body: axum::body::Bytes,
    about: String,
}

/// A call that has come, for the test to look at.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) rpc: String,
    /// gRPC's own header.
    pub(super) timeout: Option<String>,
}

/// The fate of a call by its name, by what it is about, and how often that came before.
type Fates = Box<dyn Fn(&str, &str, u32) -> Fate + Send + Sync>;

/// The network between a controller and one home.
pub(super) struct Net {
    fates: Fates,
    came: Mutex<HashMap<(String, String), u32>>,
    late: Mutex<Vec<Wired>>,
    under_way: Mutex<BTreeMap<String, usize>>,
    pub(super) seen: Mutex<Vec<Seen>>,
    pub(super) tally: Mutex<BTreeMap<&'static str, usize>>,
}

/// The proxy, its home and the way through it.
pub(super) struct Proxy {
    runtime: Option<tokio::runtime::Runtime>,
    inner: Inner,
    pub(super) net: Arc<Net>,
    pub(super) address: String,
    pub(super) local: LocalHome,
    /// The home as its controller has it.
    pub(super) remote: Arc<dyn Home>,
}

/// What a call is about before that is read.
const UNREAD: &str = "?";

/// A fate drawn from a seed. A call that came often is passed on, so that every caller comes to an end.
pub(super) fn drawn(seed: u64) -> impl Fn(usize, &str, &str, u32) -> Fate + Send + Sync {
    const MOST: u32 = 4;
    const CODES: [Code; 6] =
        [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled, Code::ResourceExhausted, Code::Aborted];
    move |home, rpc, about, nth| {
        let mut hasher = DefaultHasher::new();
        (seed, home, rpc, about, nth).hash(&mut hasher);
        let dice = hasher.finish();
        let told = match (dice >> 8) % 3 {
            0 => Told::Nothing,
            _ => Told::Code(CODES[usize::try_from((dice >> 16) % 6).unwrap()]),
        };
        match dice % 12 {
            _ if nth >= MOST => Fate::Passed,
            0 | 1 => Fate::Lost(told),
            2..4 => Fate::Unanswered(told),
            4 => Fate::Twice,
            5 => Fate::AtOnce,
            6 => Fate::Late(told),
            7 => Fate::Echoed,
            8 => Fate::Slow(Duration::from_millis((dice >> 24) % 150)),
            _ => Fate::Passed,
        }
    }
}

impl Fate {
    fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Slow(_) => "slow",
            Self::Lost(_) => "lost",
            Self::Unanswered(_) => "unanswered",
            Self::Twice => "twice",
            Self::AtOnce => "at once",
            Self::Late(_) => "late",
            Self::Echoed => "echoed",
        }
    }
}

impl Net {
    fn begin(self: &Arc<Self>, about: &str) -> UnderWay {
        *self.under_way.lock().unwrap().entry(about.to_owned()).or_default() += 1;
        UnderWay(Arc::clone(self), about.to_owned())
    }

    /// A call that was held back. It is under way before it is no longer held back.
    fn one_late(self: &Arc<Self>, mine: impl Fn(&str) -> bool) -> Option<(Wired, UnderWay)> {
        let mut late = self.late.lock().unwrap();
        let index = late.iter().position(|call| mine(&call.about))?;
        let way = self.begin(&late[index].about);
        Some((late.remove(index), way))
    }
}

/// A call between its arrival and the end of its work.
struct UnderWay(Arc<Net>, String);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = self.0.under_way.lock().unwrap();
        let count = under_way.get_mut(&self.1).unwrap();
        *count -= 1;
        if *count == 0 {
            under_way.remove(&self.1);
        }
    }
}

impl Proxy {
    /// In front of `local`, on a port of its own.
    pub(super) fn new(local: LocalHome, fates: impl Fn(&str, &str, u32) -> Fate + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let inner = HomeServer::new(HomeService::new(Arc::new(local.clone())));
        let net = Arc::new(Net {
            fates: Box::new(fates),
            came: Mutex::default(),
            late: Mutex::default(),
            under_way: Mutex::default(),
            seen: Mutex::default(),
            tally: Mutex::default(),
        });
        let service = Between { inner: inner.clone(), net: Arc::clone(&net) };
        runtime.spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = {
            let _in_runtime = runtime.enter();
            Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
        };
        let remote = RemoteHome::new(local.node().clone(), &*address, channel, runtime.handle().clone());
        Self { runtime: Some(runtime), inner, net, address, local, remote: Arc::new(remote) }
    }

    /// Every late call that is about one of these arrives, and all that are about them end.
    pub(super) fn settle(&self, mine: impl Fn(&str) -> bool) {
        let runtime = self.runtime.as_ref().unwrap();
        // On the same connection: what was sent before has arrived when this is answered.
        self.remote.report().unwrap();
        let waits = || {
            let under_way = self.net.under_way.lock().unwrap();
            under_way.keys().any(|about| about == UNREAD || mine(about))
        };
        while waits() {
            std::thread::sleep(Duration::from_millis(1));
        }
        while let Some((call, _way)) = self.net.one_late(&mine) {
            runtime.block_on(deliver(self.inner.clone(), call));
        }
        while waits() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

/// One delivery, to the end of its work.
async fn deliver(inner: Inner, call: Wired) -> Reply {
    let mut request = Request::new(Body::new(axum::body::Body::from(call.body)));
    *request.uri_mut() = call.uri;
    *request.headers_mut() = call.headers;
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    request.extensions_mut().insert(Peer::Unverified);
    let Ok(reply) = inner.oneshot(request).await;
    reply
}

async fn tell(told: Told) -> Reply {
    match told {
        Told::Code(code) => Status::new(code, "the network said so").into_http(),
        Told::Nothing => std::future::pending().await,
    }
}

/// What stands between.
#[derive(Clone)]
struct Between {
    inner: Inner,
    net: Arc<Net>,
}

impl NamedService for Between {
    const NAME: &'static str = Inner::NAME;
}

impl Service<Request> for Between {
    type Response = Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (inner, net) = (self.inner.clone(), Arc::clone(&self.net));
        let unread = net.begin(UNREAD);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(axum::body::Body::new(body), usize::MAX).await.unwrap_or_default();
            // All messages have a name or an id in field 1, or nothing; five bytes come before each.
            let first = GetVolumeRequest::decode(body.get(5..).unwrap_or_default());
            let about = first.map(|message| message.id).unwrap_or_default();
            let call = Wired { uri: parts.uri, headers: parts.headers, body, about };
            // On its own: it goes on when the caller is gone.
            let way = net.begin(&call.about);
            let answer = tokio::spawn(net.carry(inner, call, way));
            drop(unread);
            Ok(answer.await.unwrap_or_else(|_| Status::new(Code::Unknown, "the proxy panicked").into_http()))
        })
    }
}

impl Net {
    async fn carry(self: Arc<Self>, inner: Inner, call: Wired, way: UnderWay) -> Reply {
        let rpc = call.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        let timeout = call.headers.get("grpc-timeout").map(|value| value.to_str().unwrap().to_owned());
        self.seen.lock().unwrap().push(Seen { rpc: rpc.clone(), timeout });
        let nth = {
            let mut came = self.came.lock().unwrap();
            let count = came.entry((rpc.clone(), call.about.clone())).or_default();
            *count += 1;
            *count - 1
        };
        let fate = if call.about.is_empty() { Fate::Passed } else { (self.fates)(&rpc, &call.about, nth) };
        *self.tally.lock().unwrap().entry(fate.name()).or_default() += 1;
        // Something that was held back arrives now, beside this call.
        if nth % 2 == 1
            && let Some((late, way)) = self.one_late(|_| true)
        {
            let arriving = deliver(inner.clone(), late);
            tokio::spawn(async move {
                let _way = way;
                arriving.await
            });
        }
        let once = |call: Wired| deliver(inner.clone(), call);
        let told = match fate {
            Fate::Passed => return once(call).await,
            Fate::Slow(time) => {
                tokio::time::sleep(time).await;
                return once(call).await;
            }
            Fate::Twice => {
                drop(once(call.clone()).await);
                return once(call).await;
            }
            Fate::AtOnce => {
                let again = tokio::spawn(once(call.clone()));
                let reply = once(call).await;
                drop(again.await);
                return reply;
            }
            Fate::Echoed => {
                self.late.lock().unwrap().push(call.clone());
                return once(call).await;
            }
            Fate::Lost(told) => told,
            Fate::Unanswered(told) => {
                drop(once(call).await);
                told
            }
            Fate::Late(told) => {
                self.late.lock().unwrap().push(call);
                told
            }
        };
        // Nothing of it is under way any more, only its caller waits.
        drop(way);
        tell(told).await
    }
}
