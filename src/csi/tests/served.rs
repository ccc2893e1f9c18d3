//! The services over a real socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use super::home::MemoryHome;
use crate::csi::proto::controller_client::ControllerClient;
use crate::csi::proto::identity_client::IdentityClient;
use crate::csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use crate::csi::proto::{self as pb};
use crate::csi::{ServeConfig, serve};
use crate::os::Activity;
use crate::route::{Directory, NODE_KEY, Router};
use crate::telemetry::{Metrics, PoolWatch, Sampled};
use crate::types::Result;

/// A server on a socket of its own.
struct Served {
    home: Arc<MemoryHome>,
    metrics: Arc<Metrics>,
    pools: PoolWatch,
    socket: PathBuf,
    channel: Channel,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<Result<()>>,
    _dir: tempfile::TempDir,
}

async fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("csi.sock");
    let home = Arc::new(MemoryHome::new());
    let router = Arc::new(Router::new(Directory::standalone(Arc::clone(&home) as Arc<_>, [home.pool()])));
    let metrics = Metrics::new(Activity::default());
    let asked = Arc::clone(&router);
    let pools = PoolWatch::new(move || asked.figures(), || Ok(Vec::new()), || Ok(Vec::new()));
    let config = ServeConfig {
        socket: socket.clone(),
        controller: Some(router),
        others: Routes::default(),
        node: None,
        metrics: Arc::clone(&metrics),
        pools: pools.clone(),
        shares: crate::wire::Shares::of(1 << 16),
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let ended = tokio::spawn(serve(config, async move { drop(stopped.await) }));
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(!ended.is_finished());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    let channel = endpoint.connect().await.unwrap();
    Served { home, metrics, pools, socket, channel, stop: Some(stop), ended, _dir: dir }
}

impl Served {
    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    async fn make(&self, name: &str) -> std::result::Result<pb::Volume, tonic::Status> {
        let made = self.controller().create_volume(new_volume(name)).await?;
        Ok(made.into_inner().volume.unwrap())
    }

    async fn until(&self, reached: impl Fn(&MemoryHome) -> bool) {
        while !reached(&self.home) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn mount(fs: &str, mode: i32) -> pb::VolumeCapability {
    pb::VolumeCapability {
        access_mode: Some(AccessMode { mode }),
        access_type: Some(AccessType::Mount(MountVolume { fs_type: fs.into(), ..Default::default() })),
    }
}

fn new_volume(name: &str) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest { name: name.into(), volume_capabilities: vec![mount("", 7)], ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_from_create_to_delete() {
    let served = served().await;
    let mut controller = served.controller();
    let volume = served.make("pvc-1").await.unwrap();
    let segments = &volume.accessible_topology.first().unwrap().segments;
    assert_eq!(segments.get(NODE_KEY).map(String::as_str), Some("n1"));
    assert!(volume.volume_id.starts_with("hf1_00000000000000aa_") && volume.volume_id.ends_with("_n1"));

    let publish = |node: &str, capability| pb::ControllerPublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        node_id: node.into(),
        volume_capability: Some(capability),
        ..Default::default()
    };
    let unknown = controller.controller_publish_volume(publish("n2", mount("", 7))).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let as_xfs = controller.controller_publish_volume(publish("n1", mount("xfs", 7))).await.unwrap_err();
    assert!(as_xfs.code() == Code::InvalidArgument && as_xfs.message().contains("not as xfs"), "{as_xfs:?}");
    assert!(as_xfs.message().starts_with(&format!("volume {} ", volume.volume_id)), "{as_xfs:?}");
    let granted = controller.controller_publish_volume(publish("n1", mount("", 7))).await.unwrap().into_inner();
    let mut keys: Vec<_> = granted.publish_context.keys().cloned().collect();
    keys.sort();
    assert_eq!(keys, ["epoch", "home"]);

    let got = controller.controller_get_volume(pb::ControllerGetVolumeRequest { volume_id: volume.volume_id.clone() });
    assert_eq!(got.await.unwrap().into_inner().status.unwrap().published_node_ids, ["n1"]);

    let validate = |capability| pb::ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_capabilities: vec![capability],
        ..Default::default()
    };
    for (capability, confirmed) in
        [(mount("", 7), true), (mount("ext4", 1), true), (mount("xfs", 1), false), (mount("", 5), false)]
    {
        let answer = controller.validate_volume_capabilities(validate(capability)).await.unwrap().into_inner();
        assert_eq!(answer.confirmed.is_some(), confirmed, "{answer:?}");
        assert_eq!(answer.message.is_empty(), confirmed, "{answer:?}");
    }

    let range = Some(pb::CapacityRange { required_bytes: 9 << 20, limit_bytes: 0 });
    let expand = pb::ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: range,
        ..Default::default()
    };
    let grown = controller.controller_expand_volume(expand).await.unwrap().into_inner();
    assert!(grown.capacity_bytes == 9 << 20 && grown.node_expansion_required);

    for id in [volume.volume_id.clone(), volume.volume_id.clone(), "no handle at all".into()] {
        let request = pb::ControllerUnpublishVolumeRequest { volume_id: id.clone(), ..Default::default() };
        controller.controller_unpublish_volume(request).await.unwrap();
        controller.delete_volume(pb::DeleteVolumeRequest { volume_id: id, ..Default::default() }).await.unwrap();
    }
    assert_eq!(served.home.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_go_through_every_volume_once_also_when_the_last_one_seen_is_deleted() {
    let served = served().await;
    let mut controller = served.controller();
    let mut made = Vec::new();
    for i in 0..5 {
        made.push(served.make(&format!("pvc-{i}")).await.unwrap().volume_id);
    }
    made.sort();
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListVolumesRequest { max_entries: 2, starting_token: token };
        let page = controller.list_volumes(request).await.unwrap().into_inner();
        assert!(page.entries.len() <= 2 && page.entries.iter().all(|entry| entry.status.is_some()));
        seen.extend(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id));
        token = page.next_token;
        if token.is_empty() {
            break;
        }
        let last = seen.last().unwrap().clone();
        controller.delete_volume(pb::DeleteVolumeRequest { volume_id: last, ..Default::default() }).await.unwrap();
    }
    assert_eq!(seen, made);
    let bad = pb::ListVolumesRequest { max_entries: 0, starting_token: "invalid-token".into() };
    assert_eq!(controller.list_volumes(bad).await.unwrap_err().code(), Code::Aborted);
    let list = |snapshot: &str, source: &str| pb::ListSnapshotsRequest {
        snapshot_id: snapshot.into(),
        source_volume_id: source.into(),
        ..Default::default()
    };
    let unknown = "hfs1_00000000000000aa_0123456789abcdef0123456789abcdef";
    for request in [list("foreign", ""), list(unknown, ""), list("", "foreign"), list("", &made[0])] {
        assert!(controller.list_snapshots(request).await.unwrap().into_inner().entries.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_answers_the_caller_and_the_work_goes_on() {
    let served = served().await;
    let mut request = Request::new(new_volume("slow-1"));
    // Long enough that a busy machine answers before the client itself gives up.
    request.set_timeout(Duration::from_secs(3));
    let error = served.controller().create_volume(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(
        error.message().contains("it continues in the driver"),
        "our reason arrives before the client gives up: {error:?}"
    );
    assert_eq!((served.home.waiting(), served.home.len()), (1, 0));
    served.home.open_gate();
    served.until(|home| home.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_leaves_its_work_running() {
    let served = served().await;
    let mut controller = served.controller();
    let call = tokio::spawn(async move { controller.create_volume(new_volume("slow-2")).await });
    served.until(|home| home.waiting() == 1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    let metrics = Arc::clone(&served.metrics);
    let cancelled = "holdfast_csi_calls_total{rpc=\"CreateVolume\",code=\"CANCELLED\"} 1";
    served.until(|_| metrics.text(Sampled::default()).unwrap().contains(cancelled)).await;
    assert!(metrics.text(Sampled::default()).unwrap().contains("holdfast_csi_calls_in_flight{rpc=\"CreateVolume\"} 0"));
    assert_eq!((served.home.waiting(), served.home.len()), (1, 0), "the caller is gone, the work is not");
    served.home.open_gate();
    served.until(|home| home.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_in_the_home_is_never_final_by_mistake() {
    let served = served().await;
    for (name, code) in [("panics", Code::Unavailable), ("unfinished", Code::Aborted), ("broken", Code::Aborted)] {
        let error = served.make(name).await.unwrap_err();
        assert_eq!(error.code(), code, "{name}: {error:?}");
        assert!(!error.message().is_empty() && error.details().is_empty());
    }
    served.make("after-all-that").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_run_side_by_side_and_a_stuck_one_holds_up_nothing() {
    let served = served().await;
    let slow: Vec<_> = (0..8)
        .map(|i| {
            let mut controller = served.controller();
            tokio::spawn(async move { controller.create_volume(new_volume(&format!("slow-{i}"))).await })
        })
        .collect();
    served.until(|home| home.waiting() == 8).await;
    served.make("quick").await.unwrap();
    served.home.open_gate();
    for call in slow {
        call.await.unwrap().unwrap();
    }
    assert_eq!(served.home.len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_decode_is_the_callers_fault_and_an_unknown_call_is_unimplemented() {
    let served = served().await;
    let mut grpc = tonic::client::Grpc::new(served.channel.clone());
    grpc.ready().await.unwrap();
    // Field 1 of CreateVolumeRequest is a name; here it is not UTF-8, sent as bytes of another message.
    let path = http::uri::PathAndQuery::from_static("/csi.v1.Controller/CreateVolume");
    let codec = tonic_prost::ProstCodec::<BadName, pb::CreateVolumeResponse>::default();
    let request = Request::new(BadName { name: vec![0xff, 0xfe] });
    let error = grpc.unary::<_, pb::CreateVolumeResponse, _>(request, path, codec).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");

    let request = pb::ControllerModifyVolumeRequest::default();
    let error = served.controller().controller_modify_volume(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("csi.v1.Controller/ControllerModifyVolume is not served"), "{error:?}");
    let mut node = pb::node_client::NodeClient::new(served.channel.clone());
    let error = node.node_get_info(pb::NodeGetInfoRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "no Node service on a controller's socket");
    assert!(error.message().contains("csi.v1.Node/NodeGetInfo is not served"), "{error:?}");
}

#[derive(Clone, PartialEq, prost::Message)]
struct BadName {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_the_pools() {
    let served = served().await;
    let mut identity = IdentityClient::new(served.channel.clone());
    let ready = identity.probe(pb::ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready, Some(false));
    served.pools.opened();
    let ready = identity.probe(pb::ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready, Some(true));
    let name = identity.get_plugin_info(pb::GetPluginInfoRequest {}).await.unwrap().into_inner().name;
    assert_eq!(name, "csi.holdfast.storage");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_refuses_the_new_finishes_the_running_and_removes_the_socket() {
    let mut served = served().await;
    let mut controller = served.controller();
    let running = tokio::spawn(async move { controller.create_volume(new_volume("slow-3")).await });
    served.until(|home| home.waiting() == 1).await;
    served.stop.take().unwrap().send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let refused = served.make("late").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    served.home.open_gate();
    running.await.unwrap().unwrap();
    (&mut served.ended).await.unwrap().unwrap();
    assert!(!served.socket.exists());
    assert_eq!(served.home.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn capacity_is_what_the_homes_of_the_topology_have() {
    let served = served().await;
    let ask = |node: &str, capability| {
        let topology = pb::Topology { segments: [(NODE_KEY.to_owned(), node.to_owned())].into() };
        pb::GetCapacityRequest {
            accessible_topology: Some(topology),
            volume_capabilities: vec![capability],
            ..Default::default()
        }
    };
    let block = pb::VolumeCapability {
        access_mode: Some(AccessMode { mode: 1 }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    };
    for (request, expected) in
        [(ask("n1", block.clone()), 100 << 20), (ask("n2", block), 0), (ask("n1", mount("", 5)), 0)]
    {
        let got = served.controller().get_capacity(request).await.unwrap().into_inner();
        assert_eq!(got.available_capacity, expected);
    }
}
