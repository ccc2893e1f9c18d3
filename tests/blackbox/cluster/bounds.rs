//! One node with a valid certificate that attacks: the memory of others, their devices, their turns.

use std::collections::VecDeque;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use holdfast::home::remote::proto as h;
use holdfast::home::remote::proto::home_client::HomeClient;
use holdfast::os::{Activity, Os, Stopwatch};
use holdfast::telemetry::Metrics;
use holdfast::tls::{Credentials, Role, Trust};
use http_body::Frame;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::ServiceExt;

use super::harness::{Cluster, Wire};
use crate::harness::raw::figures;
use crate::harness::{Use, run};

/// How much more memory a daemon may use in these tests, in KiB.
const MOST_MORE: u64 = 64 << 10;

impl Cluster {
    /// A channel to a daemon with the certificate of a node.
    fn as_node(&self, name: &str, server: &Role, address: &str) -> Channel {
        let directory = self.authority().with_file_name(format!("tls-of-{name}"));
        if !directory.exists() {
            self.issue(&format!("node:{name}"), &directory);
        }
        let metrics = Metrics::new(Activity::default());
        let role = Role::Node(name.parse().unwrap());
        let credentials = Credentials::from_files(Os::new(), &directory, role, metrics.tls().clone()).unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        self.wait(async { endpoint.connect_with_connector_lazy(credentials.connector(server)) })
    }
}

/// A request's body that never ends.
struct Unfinished(VecDeque<Bytes>);

impl Unfinished {
    /// The beginning of a message of 4 MiB.
    fn new() -> Self {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let length: u32 = (4 << 20) - 5;
        let head = [&[0], length.to_be_bytes().as_slice()].concat();
        let rest = std::iter::repeat_n(Bytes::from_static(&ZEROES), 63);
        Self([Bytes::from(head)].into_iter().chain(rest).collect())
    }
}

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.0.pop_front() {
            Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
            None => Poll::Pending,
        }
    }
}

/// A call that begins and never completes.
async fn begin(channel: Channel, path: &'static str) -> Option<Code> {
    let request = http::Request::builder()
        .method("POST")
        .uri(format!("http://daemon{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Unfinished::new()))
        .unwrap();
    let answered = tokio::time::timeout(Duration::from_secs(25), channel.oneshot(request)).await.ok()?;
    let response = answered.ok()?;
    Status::from_header_map(response.headers()).map(|status| status.code())
}

#[test]
fn unfinished_messages_of_one_node_cost_no_daemon_its_memory_or_its_others() {
    let cluster = Cluster::wired(&["node-a"], 1, Wire::Tls);
    let node = Role::Node("node-a".parse().unwrap());
    let ports = [
        (&cluster.controllers[0], Role::Controller, "/holdfast.registry.v1.Registry/Heartbeat", Code::Unavailable),
        (&cluster.controllers[0], Role::Controller, "/holdfast.registry.v1.Registry/Readmit", Code::PermissionDenied),
        (&cluster.nodes["node-a"], node.clone(), "/holdfast.home.v1.Home/Open", Code::Unavailable),
        (&cluster.nodes["node-a"], node, "/holdfast.home.v1.Home/CreateVolume", Code::PermissionDenied),
    ];
    for (n, (machine, server, path, code)) in ports.into_iter().enumerate() {
        let (before, _) = figures(machine.pid()).unwrap();
        let channels: Vec<_> = (0..4).map(|_| cluster.as_node("node-z", &server, &machine.address)).collect();
        let calls: Vec<_> = (0..200).map(|i| cluster.spawn(begin(channels[i % 4].clone(), path))).collect();
        let (mut peak, watch) = (0, Stopwatch::start());
        let mut is_served = false;
        while calls.iter().any(|call| !call.is_finished()) {
            assert!(watch.elapsed() < Duration::from_secs(30), "{path}: calls stay");
            peak = figures(machine.pid()).unwrap().0.max(peak);
            if !is_served && watch.elapsed() > Duration::from_millis(300) {
                let vol = cluster.create(&format!("meanwhile-{n}"), Use::Block, "node-a");
                cluster.publish(0, &vol, "node-a").unwrap();
                is_served = true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        eprintln!("{path}: {before} -> {peak} KiB, {:?}", watch.elapsed());
        assert!(peak <= before + MOST_MORE, "{path}: {before} KiB became {peak}");
        let codes: Vec<_> = calls.into_iter().map(|call| cluster.join(call)).collect();
        assert!(codes.iter().filter(|said| **said == Some(code)).count() >= 150, "{path}: {codes:?}");
    }
    assert!(cluster.try_create(0, "after", Use::Block, "node-a").is_ok());
    cluster.finish();
}

#[test]
fn unfinished_requests_for_certificates_cost_a_controller_neither_memory_nor_its_nodes() {
    let cluster = Cluster::wired(&["node-a"], 1, Wire::Auto);
    let controller = &cluster.controllers[0];
    let published = cluster.nodes["node-a"].directory.join("published.crt");
    let trust = Trust::read(&std::fs::read(&published).unwrap(), &published).unwrap();
    let credentials = Credentials::trusting(trust, Metrics::new(Activity::default()).tls().clone());
    let endpoint = Endpoint::from_shared(format!("http://{}", controller.enrol)).unwrap();
    let channel =
        || cluster.wait(async { endpoint.connect_with_connector_lazy(credentials.connector(&Role::Controller)) });
    let (before, _) = figures(controller.pid()).unwrap();
    let channels: Vec<_> = (0..4).map(|_| channel()).collect();
    let begun = |i: usize| begin(channels[i % 4].clone(), "/holdfast.enrol.v1.Enrolment/Enrol");
    let calls: Vec<_> = (0..200).map(|i| cluster.spawn(begun(i))).collect();
    let mut peak = 0;
    while calls.iter().any(|call| !call.is_finished()) {
        peak = figures(controller.pid()).unwrap().0.max(peak);
        std::thread::sleep(Duration::from_millis(5));
    }
    eprintln!("requests for certificates: {before} -> {peak} KiB");
    assert!(peak <= before + MOST_MORE, "{before} KiB became {peak}");
    let codes: Vec<_> = calls.into_iter().map(|call| cluster.join(call)).collect();
    assert!(!codes.contains(&Some(Code::Ok)), "{codes:?}");
    cluster.create("after", Use::Block, "node-a");
    cluster.finish();
}

#[test]
fn a_node_lets_go_of_nothing_that_is_not_attached_to_it() {
    let cluster = Cluster::wired(&["node-a", "node-b"], 1, Wire::Tls);
    let (vol, other) = (cluster.create("vol", Use::Block, "node-a"), cluster.create("other", Use::Block, "node-a"));
    cluster.publish(0, &vol, "node-a").unwrap();
    cluster.stage(&vol).unwrap();
    let uuid = vol.id.split('_').nth(2).unwrap();
    let image = cluster.pool_of("node-a").join("volumes").join(uuid).join("data");
    let loops = |image: &Path| run("/usr/sbin/losetup", &["-j", image.to_str().unwrap()]);
    let before = loops(&image);
    assert!(before.contains("/dev/loop"), "{before}");

    let (id, own) = (vol.id.clone(), "node-b".to_owned());
    let channel = cluster.as_node("node-b", &Role::Node("node-a".parse().unwrap()), &cluster.nodes["node-a"].address);
    let mut home = HomeClient::new(channel);
    let said = [
        cluster.call(home.open(h::OpenRequest { id: id.clone(), node: own.clone(), ..Default::default() })).map(drop),
        cluster.call(home.close(h::CloseRequest { id: id.clone(), node: own.clone() })).map(drop),
        cluster.call(home.begin_format(h::BeginFormatRequest { id: id.clone(), node: own.clone(), fs: 1 })).map(drop),
        cluster
            .call(home.end_format(h::EndFormatRequest {
                id: id.clone(),
                node: own.clone(),
                fs_uuid: "01234567-89ab-4def-8123-456789abcdef".into(),
            }))
            .map(drop),
        cluster.call(home.use_raw(h::UseRawRequest { id: id.clone(), node: own.clone() })).map(drop),
    ];
    for answer in said {
        let status = answer.unwrap_err();
        assert!(status.message().contains("not attached to node node-b"), "{status:?}");
    }
    let in_another_s_name = h::CloseRequest { id: id.clone(), node: "node-a".into() };
    assert_eq!(cluster.call(home.close(in_another_s_name)).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(loops(&image), before);

    // As fast as it can, and others still get their turns.
    let asking: Vec<_> = (0..64)
        .map(|_| {
            let (mut home, request) = (home.clone(), h::CloseRequest { id: id.clone(), node: own.clone() });
            cluster.spawn(async move {
                for _ in 0..50 {
                    let _ = home.close(request.clone()).await;
                }
            })
        })
        .collect();
    for _ in 0..5 {
        cluster.publish(0, &other, "node-a").unwrap();
        cluster.publish(0, &vol, "node-a").unwrap();
        cluster.unpublish(0, &other, "node-a").unwrap();
    }
    asking.into_iter().for_each(|asking| cluster.join(asking));
    assert_eq!(loops(&image), before);
    let refusals = cluster.nodes["node-a"].said().lines().filter(|line| line.contains("Close is refused")).count();
    assert_eq!(refusals, 1, "a refusal is logged once a minute");
    cluster.unstage(&vol).unwrap();
    cluster.unpublish(0, &vol, "node-a").unwrap();
    cluster.delete(0, &vol).unwrap();
    cluster.delete(0, &other).unwrap();
    cluster.finish();
}
