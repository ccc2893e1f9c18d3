//! Controllers are stateless: two of them give the same answers, also at the same moment.

use holdfast::csi::proto as p;
use tonic::Code;

use super::harness::{Cluster, on};
use crate::harness::{MIB, Use, capability, create_request};

#[test]
fn the_same_request_at_the_same_moment_makes_one_volume() {
    let cluster = Cluster::new(&["node-a", "node-b"], 2);
    for round in 0..20 {
        let node = if round % 2 == 0 { "node-a" } else { "node-b" };
        let request = p::CreateVolumeRequest {
            accessibility_requirements: Some(on(node)),
            ..create_request(&format!("vol-{round}"), Use::Block, 16 * MIB)
        };
        let asking: Vec<_> = (0..6)
            .map(|caller| {
                let (mut client, request) = (cluster.controller(caller % 2), request.clone());
                cluster.spawn(async move {
                    loop {
                        match client.create_volume(request.clone()).await {
                            Err(status) if status.code() == Code::Aborted => tokio::task::yield_now().await,
                            answer => return answer.unwrap().into_inner().volume.unwrap().volume_id,
                        }
                    }
                })
            })
            .collect();
        let ids: Vec<_> = asking.into_iter().map(|task| cluster.join(task)).collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
    assert_eq!(cluster.list(0).unwrap(), cluster.list(1).unwrap());
    assert_eq!(cluster.list(0).unwrap().len(), 20);
    for id in cluster.list(0).unwrap() {
        let request = p::DeleteVolumeRequest { volume_id: id, ..Default::default() };
        cluster.call(cluster.controller(1).delete_volume(request)).unwrap();
    }
    cluster.finish();
}

#[test]
fn of_conflicting_requests_one_wins_and_both_controllers_say_which() {
    let cluster = Cluster::new(&["node-a"], 2);
    for round in 0..20 {
        let name = format!("vol-{round}");
        let of_size = |size: i64| p::CreateVolumeRequest {
            accessibility_requirements: Some(on("node-a")),
            ..create_request(&name, Use::Block, size)
        };
        let asking: Vec<_> = (0..4)
            .map(|caller: usize| {
                let mut client = cluster.controller(caller % 2);
                let request = of_size(if caller < 2 { 16 * MIB } else { 32 * MIB });
                cluster.spawn(async move {
                    loop {
                        match client.create_volume(request.clone()).await {
                            Err(status) if status.code() == Code::Aborted => tokio::task::yield_now().await,
                            Ok(answer) => return Ok(answer.into_inner().volume.unwrap().capacity_bytes),
                            Err(status) => return Err(status.code()),
                        }
                    }
                })
            })
            .collect();
        let answers: Vec<_> = asking.into_iter().map(|task| cluster.join(task)).collect();
        let won: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
        assert!(!won.is_empty() && won.iter().all(|size| *size == won[0]), "{answers:?}");
        let lost = answers.iter().filter_map(|answer| answer.as_ref().err());
        assert!(lost.clone().count() == 2 && lost.into_iter().all(|code| *code == Code::AlreadyExists), "{answers:?}");
    }
    for id in cluster.list(0).unwrap() {
        let request = p::DeleteVolumeRequest { volume_id: id, ..Default::default() };
        cluster.call(cluster.controller(1).delete_volume(request)).unwrap();
    }
    cluster.finish();
}

#[test]
fn a_grant_has_one_mode_whoever_was_asked() {
    let cluster = Cluster::new(&["node-a"], 2);
    let vol = cluster.create("vol", Use::Ext4, "node-a");
    for _ in 0..20 {
        let asking: Vec<_> = (0..4)
            .map(|caller: usize| {
                let mut client = cluster.controller(caller % 2);
                let request = p::ControllerPublishVolumeRequest {
                    volume_id: vol.id.clone(),
                    node_id: "node-a".into(),
                    volume_capability: Some(capability(Use::Ext4)),
                    readonly: caller >= 2,
                    ..Default::default()
                };
                cluster.spawn(async move {
                    loop {
                        match client.controller_publish_volume(request.clone()).await {
                            Err(status) if status.code() == Code::Aborted => tokio::task::yield_now().await,
                            answer => return answer.map(|_| request.readonly).map_err(|status| status.code()),
                        }
                    }
                })
            })
            .collect();
        let answers: Vec<_> = asking.into_iter().map(|task| cluster.join(task)).collect();
        let granted: Vec<_> = answers.iter().flatten().collect();
        assert!(granted.len() == 2 && granted[0] == granted[1], "{answers:?}");
        assert!(answers.iter().filter_map(|answer| answer.as_ref().err()).all(|code| *code == Code::AlreadyExists));
        cluster.unpublish(1, &vol, "node-a").unwrap();
    }
    cluster.delete(0, &vol).unwrap();
    cluster.finish();
}
