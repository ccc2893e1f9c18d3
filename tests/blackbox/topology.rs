//! The driver's identity, the topology of its volumes, and its access modes: exactly what works.

use std::collections::HashSet;

use holdfast::csi::proto as p;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::harness::calls::from_snapshot;
use crate::harness::{MIB, PoolFs, Use, World, capability, create_request, refused, segments, with_mode};

const NODE: &str = "csi.holdfast.storage/node";
const FABRIC: &str = "csi.holdfast.storage/fabric";

fn node_of(volume: &p::Volume) -> Vec<Option<String>> {
    volume.accessible_topology.iter().map(|topology| topology.segments.get(NODE).cloned()).collect()
}

#[test]
fn the_driver_says_who_it_is() {
    let world = World::new(PoolFs::Xfs);
    let info = world.get_plugin_info(p::GetPluginInfoRequest {}).unwrap();
    assert_eq!((info.name.as_str(), info.vendor_version.is_empty()), ("csi.holdfast.storage", false));
    let node = world.node_get_info(p::NodeGetInfoRequest {}).unwrap();
    assert_eq!(node.node_id, world.node);
    assert!(node.max_volumes_per_node >= 0);
    let segments = node.accessible_topology.unwrap().segments;
    assert_eq!(segments.get(NODE), Some(&world.node));
    assert_eq!(segments.get(FABRIC).map(String::as_str), Some("none"));
    assert_eq!(world.probe(p::ProbeRequest {}).unwrap().ready, Some(true));
    world.finish();
}

#[test]
fn advertised_is_what_works_and_what_does_not_is_unimplemented() {
    let world = World::new(PoolFs::Xfs);
    use p::controller_service_capability::rpc::Type as C;
    use p::node_service_capability::rpc::Type as N;
    let controller = world.controller_get_capabilities(p::ControllerGetCapabilitiesRequest {}).unwrap().capabilities;
    let controller: HashSet<_> = controller
        .into_iter()
        .map(|capability| match capability.r#type.unwrap() {
            p::controller_service_capability::Type::Rpc(rpc) => rpc.r#type(),
        })
        .collect();
    let wanted = [
        C::CreateDeleteVolume,
        C::PublishUnpublishVolume,
        C::ListVolumes,
        C::GetCapacity,
        C::CreateDeleteSnapshot,
        C::ListSnapshots,
        C::CloneVolume,
        C::PublishReadonly,
        C::ExpandVolume,
        C::ListVolumesPublishedNodes,
        C::GetVolume,
        C::SingleNodeMultiWriter,
        C::GetSnapshot,
    ];
    assert_eq!(controller, HashSet::from(wanted));
    let node = world.node_get_capabilities(p::NodeGetCapabilitiesRequest {}).unwrap().capabilities;
    let node: HashSet<_> = node
        .into_iter()
        .map(|capability| match capability.r#type.unwrap() {
            p::node_service_capability::Type::Rpc(rpc) => rpc.r#type(),
        })
        .collect();
    assert_eq!(
        node,
        HashSet::from([N::StageUnstageVolume, N::GetVolumeStats, N::ExpandVolume, N::SingleNodeMultiWriter])
    );
    use p::plugin_capability::{Type, service, volume_expansion};
    let plugin = world.get_plugin_capabilities(p::GetPluginCapabilitiesRequest {}).unwrap().capabilities;
    let has = |wanted: &dyn Fn(&Type) -> bool| plugin.iter().filter_map(|one| one.r#type.as_ref()).any(wanted);
    for wanted in [service::Type::ControllerService, service::Type::VolumeAccessibilityConstraints] {
        assert!(has(&|one| matches!(one, Type::Service(service) if service.r#type() == wanted)), "{plugin:?}");
    }
    for absent in [service::Type::GroupControllerService, service::Type::SnapshotMetadataService] {
        assert!(!has(&|one| matches!(one, Type::Service(service) if service.r#type() == absent)), "{plugin:?}");
    }
    let online = volume_expansion::Type::Online;
    assert!(has(&|one| matches!(one, Type::VolumeExpansion(growth) if growth.r#type() == online)), "{plugin:?}");
    let vol = world.create("vol", Use::Ext4);
    let modify = p::ControllerModifyVolumeRequest { volume_id: vol.id.clone(), ..Default::default() };
    refused(world.controller_modify_volume(modify), &[Code::Unimplemented]);
    world.finish();
}

#[test]
fn a_volume_is_where_its_pool_is() {
    let world = World::new(PoolFs::Xfs);
    let create = |name: &str, requisite: &[&str], preferred: &[&str]| {
        let list = |nodes: &[&str]| nodes.iter().map(|node| segments(&[(NODE, node), (FABRIC, "none")])).collect();
        let accessibility_requirements =
            Some(p::TopologyRequirement { requisite: list(requisite), preferred: list(preferred) });
        let request =
            p::CreateVolumeRequest { accessibility_requirements, ..create_request(name, Use::Block, 16 * MIB) };
        world.create_volume(request).map(|answer| node_of(&answer.volume.unwrap()))
    };
    let here = vec![Some(world.node.clone())];
    let node = world.node.as_str();
    assert_eq!(create("none", &[], &[]).unwrap(), here);
    assert_eq!(create("selected", &["node-b", node], &[node, "node-b"]).unwrap(), here);
    assert_eq!(create("requisite", &["node-b", node], &[]).unwrap(), here);
    assert_eq!(create("preferred", &[], &[node]).unwrap(), here);
    // The scheduler chose another node: a volume here would leave the pod unschedulable.
    refused(create("other", &["node-b", node], &["node-b", node]), &[Code::ResourceExhausted]);
    refused(create("elsewhere", &["node-b"], &["node-b"]), &[Code::ResourceExhausted]);
    refused(create("elsewhere", &["node-b"], &[]), &[Code::ResourceExhausted]);
    assert_eq!(world.volume_ids().len(), 4, "a refused create left something");
    let request = |placement: &str| {
        let list = |nodes: [&str; 2]| nodes.iter().map(|node| segments(&[(NODE, node)])).collect();
        let mut request = create_request("any", Use::Block, 16 * MIB);
        request.parameters.insert("placement".into(), placement.into());
        request.accessibility_requirements =
            Some(p::TopologyRequirement { requisite: list(["node-b", node]), preferred: list(["node-b", node]) });
        request
    };
    refused(world.create_volume(request("selected")), &[Code::ResourceExhausted]);
    assert_eq!(node_of(&world.create_volume(request("any")).unwrap().volume.unwrap()), here);
    let strange = p::TopologyRequirement { requisite: vec![segments(&[("zone", "x")])], preferred: Vec::new() };
    let strange = p::CreateVolumeRequest {
        accessibility_requirements: Some(strange),
        ..create_request("strange", Use::Block, 16 * MIB)
    };
    refused(world.create_volume(strange), &[Code::ResourceExhausted, Code::InvalidArgument]);
    world.finish();
}

#[test]
fn a_restore_is_where_its_source_is_whatever_the_scheduler_chose() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Block);
    let snapshot = world.snapshot("snap", &vol);
    let request = p::CreateVolumeRequest {
        volume_content_source: from_snapshot(&snapshot.snapshot_id),
        accessibility_requirements: Some(p::TopologyRequirement {
            requisite: vec![segments(&[(NODE, "node-b")]), segments(&[(NODE, &world.node)])],
            preferred: vec![segments(&[(NODE, "node-b")])],
        }),
        ..create_request("restored", Use::Block, 16 * MIB)
    };
    let volume = world.create_volume(request).unwrap().volume.unwrap();
    assert_eq!(node_of(&volume), [Some(world.node.clone())]);
    assert_eq!(volume.content_source, from_snapshot(&snapshot.snapshot_id));
    world.finish();
}

#[test]
fn a_long_node_name_becomes_a_valid_label_value_everywhere() {
    let mut world = World::stopped(PoolFs::Xfs, 1 << 30);
    let long = format!("{}.example.com", "rack-7-node-with-a-very-long-name".repeat(3));
    world.node = long;
    world.start();
    let info = world.node_get_info(p::NodeGetInfoRequest {}).unwrap();
    assert!(info.node_id.len() <= 63 && info.node_id.starts_with("rack-7-node"), "{}", info.node_id);
    assert_eq!(info.accessible_topology.unwrap().segments[NODE], info.node_id);
    let vol = world.create("vol", Use::Ext4);
    assert!(vol.id.len() <= 128);
    world.publish_to(&vol, &info.node_id).unwrap();
    world.stage(&vol).unwrap();
    world.bind(&vol, "pod").unwrap();
    world.finish();
}

#[test]
fn only_single_node_access_is_served_and_the_reason_is_said() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    for served in
        [Mode::SingleNodeWriter, Mode::SingleNodeReaderOnly, Mode::SingleNodeSingleWriter, Mode::SingleNodeMultiWriter]
    {
        let mut request = create_request(&format!("{served:?}"), Use::Ext4, 32 * MIB);
        request.volume_capabilities = vec![with_mode(Use::Ext4, served)];
        world.create_volume(request).unwrap();
    }
    for refused_mode in
        [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter, Mode::Unknown]
    {
        let capability = with_mode(Use::Ext4, refused_mode);
        let mut request = create_request("multi", Use::Ext4, 32 * MIB);
        request.volume_capabilities = vec![capability.clone()];
        refused(world.create_volume(request), &[Code::InvalidArgument]);
        refused(world.publish(&vol.with(capability.clone())), &[Code::InvalidArgument]);
        let validate = p::ValidateVolumeCapabilitiesRequest {
            volume_id: vol.id.clone(),
            volume_capabilities: vec![capability],
            ..Default::default()
        };
        match world.validate_volume_capabilities(validate) {
            Ok(answer) => assert!(answer.confirmed.is_none() && !answer.message.is_empty(), "{answer:?}"),
            Err(status) => assert_eq!((status.code(), refused_mode), (Code::InvalidArgument, Mode::Unknown)),
        }
    }
    let validate = |capabilities: Vec<p::VolumeCapability>| {
        world.validate_volume_capabilities(p::ValidateVolumeCapabilitiesRequest {
            volume_id: vol.id.clone(),
            volume_capabilities: capabilities,
            ..Default::default()
        })
    };
    let both = vec![with_mode(Use::Ext4, Mode::SingleNodeWriter), capability(Use::Ext4)];
    assert_eq!(validate(both.clone()).unwrap().confirmed.unwrap().volume_capabilities, both);
    let mixed = vec![capability(Use::Ext4), with_mode(Use::Ext4, Mode::MultiNodeMultiWriter)];
    assert!(validate(mixed).unwrap().confirmed.is_none(), "all of them or none");
    assert!(validate(vec![capability(Use::Xfs)]).unwrap().confirmed.is_none(), "it is an ext4 volume");
    assert!(validate(vec![capability(Use::Block)]).unwrap().confirmed.is_none(), "it is no raw volume");
    world.finish();
}

#[test]
fn lists_come_in_pages_that_survive_change() {
    let mut world = World::new(PoolFs::Xfs);
    let all: Vec<_> = (0..7).map(|n| world.create(&format!("vol-{n}"), Use::Block)).collect();
    let page = |world: &World, max_entries: i32, starting_token: &str| {
        let starting_token = starting_token.into();
        let answer = world.list_volumes(p::ListVolumesRequest { max_entries, starting_token }).unwrap();
        let ids: Vec<_> = answer.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
        (ids, answer.next_token)
    };
    assert_eq!(page(&world, 0, "").0.len(), 7);
    assert_eq!(page(&world, 7, ""), page(&world, 0, ""));
    let (first, token) = page(&world, 3, "");
    assert_eq!(first.len(), 3);
    // The volume of the token is deleted, the driver restarts: the rest is listed all the same.
    let last = all.iter().find(|vol| vol.id == first[2]).unwrap();
    world.delete(last).unwrap();
    world.crash();
    let (second, token) = page(&world, 3, &token);
    let (third, token) = page(&world, 3, &token);
    assert!(token.is_empty());
    let seen: HashSet<_> = first.into_iter().chain(second).chain(third).collect();
    assert_eq!(seen, all.iter().map(|vol| vol.id.clone()).collect());
    for starting_token in ["nonsense", "-1", "%%%", "7"] {
        let request = p::ListVolumesRequest { starting_token: starting_token.into(), ..Default::default() };
        refused(world.list_volumes(request), &[Code::Aborted]);
    }
    refused(
        world.list_volumes(p::ListVolumesRequest { max_entries: -1, ..Default::default() }),
        &[Code::InvalidArgument],
    );
    world.finish();
}
