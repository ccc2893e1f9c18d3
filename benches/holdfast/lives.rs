//! Volumes a second through their whole life, by several callers at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use holdfast::csi::proto as p;
use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::csi::proto::node_client::NodeClient;
use holdfast::os::Stopwatch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::bare::Bare;
use crate::figures::{Pair, per_second, print, seconds};
use crate::ground::ScratchPlace;
use crate::harness::{MIB, Use, World, capability, create_request};
use crate::many::resident;

const TIMES: usize = 3;
const SECONDS: u64 = 3;
const SIZE: i64 = 64 * MIB;

pub(crate) fn run() {
    for ground in ScratchPlace::ALL {
        ground.with(16 << 30, |world| on(world, ground));
    }
}

/// So many lives, by so many callers, before the memory is measured again.
const MANY: usize = 1000;
const TOGETHER: usize = 16;

fn on(world: &World, ground: ScratchPlace) {
    if ground == ScratchPlace::Memory {
        memory(world);
    }
    let mut rows = Vec::new();
    for callers in [1, 16, 64] {
        let (mut pair, mut refused) = (Pair::default(), BTreeMap::<String, usize>::new());
        for time in 0..TIMES {
            pair.ours.add(ours(world, callers, time, &mut refused));
            pair.bare.add(bare(world, callers));
        }
        let mut row = pair.row(&callers.to_string(), per_second);
        let refused: Vec<_> = refused.iter().map(|(code, count)| format!("{count} {code}")).collect();
        row.push(if refused.is_empty() { "none".to_owned() } else { refused.join(", ") });
        rows.push(row);
    }
    print(
        &format!(
            "Whole lives: create, attach, stage with mkfs, publish and back to delete; thick ext4 of 64 MiB, pool on XFS on {}, {TIMES} times {SECONDS} s in turns",
            ground.name()
        ),
        &["callers", "driver", "bare commands", "ratio", "errors"],
        rows,
    );
}

/// The driver's memory, idle and after many lifecycles.
fn memory(world: &World) {
    let mut rows = vec![resident(world, "idle", Some(8.0))];
    let place = world.scratch.path().join("many-lives");
    let caller = Caller { channel: world.channel(), node: world.node.clone(), place };
    let tasks: Vec<_> = (0..TOGETHER)
        .map(|number| {
            let caller = caller.clone();
            let mine = MANY / TOGETHER + usize::from(number < MANY % TOGETHER);
            world.spawn(async move {
                for whole in 0..mine {
                    caller.life(format!("many-{number}-{whole}")).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        world.block_on(task).unwrap();
    }
    rows.push(resident(world, &format!("after {MANY} lives by {TOGETHER} callers"), Some(16.0)));
    print("Resident memory", &["when", "VmRSS", "of it anonymous", "target", "ratio"], rows);
}

/// One caller's way to the driver.
#[derive(Clone)]
struct Caller {
    channel: Channel,
    node: String,
    place: PathBuf,
}

impl Caller {
    async fn life(&self, name: String) -> Result<(), Status> {
        let (mut controller, mut node) =
            (ControllerClient::new(self.channel.clone()), NodeClient::new(self.channel.clone()));
        let created = controller.create_volume(create_request(&name, Use::Ext4, SIZE)).await?.into_inner();
        let volume_id = created.volume.unwrap().volume_id;
        let volume_capability = Some(capability(Use::Ext4));
        let publish = p::ControllerPublishVolumeRequest {
            volume_id: volume_id.clone(),
            node_id: self.node.clone(),
            volume_capability: volume_capability.clone(),
            ..Default::default()
        };
        let publish_context = controller.controller_publish_volume(publish).await?.into_inner().publish_context;
        let (staging, pod) = (self.place.join(&name), self.place.join(format!("{name}-pod")));
        fs::create_dir_all(&staging)?;
        fs::create_dir_all(&pod)?;
        let staging_target_path = staging.to_str().unwrap().to_owned();
        let target_path = pod.join("mount").to_str().unwrap().to_owned();
        let stage = p::NodeStageVolumeRequest {
            volume_id: volume_id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: staging_target_path.clone(),
            volume_capability: volume_capability.clone(),
            ..Default::default()
        };
        node.node_stage_volume(stage).await?;
        let bind = p::NodePublishVolumeRequest {
            volume_id: volume_id.clone(),
            publish_context,
            staging_target_path: staging_target_path.clone(),
            target_path: target_path.clone(),
            volume_capability,
            ..Default::default()
        };
        node.node_publish_volume(bind).await?;
        node.node_unpublish_volume(p::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path }).await?;
        let unstage = p::NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path };
        node.node_unstage_volume(unstage).await?;
        let unpublish = p::ControllerUnpublishVolumeRequest {
            volume_id: volume_id.clone(),
            node_id: self.node.clone(),
            ..Default::default()
        };
        controller.controller_unpublish_volume(unpublish).await?;
        controller.delete_volume(p::DeleteVolumeRequest { volume_id, ..Default::default() }).await?;
        fs::remove_dir(staging)?;
        fs::remove_dir(pod)?;
        Ok(())
    }
}

/// Lives a second; every life that was begun is ended and counted.
fn ours(world: &World, callers: usize, time: usize, refused: &mut BTreeMap<String, usize>) -> f64 {
    let place = world.scratch.path().join("lives");
    let caller = Caller { channel: world.channel(), node: world.node.clone(), place };
    let watch = Arc::new(Stopwatch::start());
    let tasks: Vec<_> = (0..callers)
        .map(|number| {
            let (caller, watch) = (caller.clone(), Arc::clone(&watch));
            world.spawn(async move {
                let (mut whole, mut broken) = (0_u32, Vec::<Code>::new());
                while watch.elapsed() < seconds(SECONDS) {
                    match caller.life(format!("{callers}-{time}-{number}-{whole}-{}", broken.len())).await {
                        Ok(()) => whole += 1,
                        Err(status) => {
                            eprintln!("{status}");
                            broken.push(status.code());
                        }
                    }
                }
                (whole, broken)
            })
        })
        .collect();
    let mut whole = 0;
    for task in tasks {
        let (done, broken) = world.block_on(task).unwrap();
        whole += done;
        for code in broken {
            *refused.entry(format!("{code:?}")).or_default() += 1;
        }
    }
    f64::from(whole) / watch.elapsed().as_secs_f64()
}

/// The same by hand, by as many threads. What the driver makes durable, this does not.
fn bare(world: &World, callers: usize) -> f64 {
    let (watch, whole) = (Stopwatch::start(), AtomicU32::new(0));
    let (images, points) = (world.scratch.root(), world.scratch.path());
    let live = |number: usize| {
        while watch.elapsed() < seconds(SECONDS) {
            let mut bare = Bare::new(&images, points, &format!("life-{number}"), SIZE);
            bare.attach();
            bare.make(Use::Ext4);
            bare.mount();
            bare.bind();
            bare.unbind();
            bare.unmount();
            bare.detach();
            bare.remove();
            whole.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for number in 0..callers {
            let live = &live;
            scope.spawn(move || live(number));
        }
    });
    f64::from(whole.load(Ordering::Relaxed)) / watch.elapsed().as_secs_f64()
}
