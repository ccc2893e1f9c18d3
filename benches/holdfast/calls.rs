//! Calls that change nothing: what a call costs before it does anything.

use holdfast::csi::proto as p;

use crate::figures::{Series, print, ratio, us};
use crate::ground::ScratchPlace;
use crate::harness::{Use, World};

const TIMES: usize = 300;

pub(crate) fn run() {
    ScratchPlace::Disk.with(4 << 30, |world| all(world));
}

fn all(world: &World) {
    let vol = world.create("quiet", Use::Ext4);
    world.attach(&vol).unwrap();
    let (stage, bind) = (world.stage_request(&vol), world.bind_request(&vol, "pod"));
    let rows = [
        ("Probe", measure(|| world.probe(p::ProbeRequest::default()).map(drop))),
        (
            "ControllerGetCapabilities",
            measure(|| world.controller_get_capabilities(p::ControllerGetCapabilitiesRequest::default()).map(drop)),
        ),
        ("GetCapacity", measure(|| world.get_capacity(p::GetCapacityRequest::default()).map(drop))),
        ("ControllerPublish, again", measure(|| world.publish(&vol))),
        ("NodeStage, again", measure(|| world.node_stage_volume(stage.clone()).map(drop))),
        ("NodePublish, again", measure(|| world.node_publish_volume(bind.clone()).map(drop))),
        ("NodeGetVolumeStats", measure(|| stats(world, &bind))),
    ];
    let first = rows[0].1.clone();
    let rows = rows.iter().map(|(name, series)| vec![(*name).to_owned(), series.shown(us), ratio(series, &first)]);
    print(
        &format!("Calls that change nothing, {TIMES} times, one after the other, client included"),
        &["call", "takes", "of Probe"],
        rows.collect(),
    );
}

fn measure(call: impl Fn() -> Result<(), tonic::Status>) -> Series {
    let mut series = Series::default();
    call().unwrap();
    for _ in 0..TIMES {
        series.time(&call).unwrap();
    }
    series
}

fn stats(world: &World, bind: &p::NodePublishVolumeRequest) -> Result<(), tonic::Status> {
    let request = p::NodeGetVolumeStatsRequest {
        volume_id: bind.volume_id.clone(),
        volume_path: bind.target_path.clone(),
        staging_target_path: bind.staging_target_path.clone(),
    };
    world.node_get_volume_stats(request).map(drop)
}
