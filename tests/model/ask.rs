//! Our words as CSI messages, and CSI's answers as our words.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::call::{
    Access, Answer, At, CUTS, Call, Create, Cut, From, Manner, Mode, NAMES, OnNode, Refused, Seen, Shown, ShownCut,
    Source, Use, Volume, Wanted,
};
use super::world::{Life, World, node};
use holdfast::csi::proto::{self as pb, volume_capability as cap, volume_content_source as content};
use holdfast::route::NODE_KEY;
use holdfast::types::{SnapshotId, VolumeId};

/// In which pools names are when the request is made.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub(super) volumes: [usize; NAMES],
    pub(super) cuts: [usize; CUTS],
}

/// When a snapshot says it was cut, for those an answer shows.
pub(super) type Times = Vec<(usize, (i64, i32))>;

/// An answer, or none for a caller who went away, and the times in it.
pub(super) struct Heard {
    pub(super) seen: Option<Seen>,
    pub(super) times: Times,
}

/// What a caller who hurries gives the driver.
const HURRY: Duration = Duration::from_millis(1);

impl World<'_> {
    /// Makes one call.
    pub(super) async fn ask(&self, life: &Life, call: &Call, manner: Manner, places: &Places) -> Heard {
        let asking = Asking { world: self, places, manner };
        let mut times = Vec::new();
        let answer = asking.call(life, call, &mut times);
        let seen = match manner {
            Manner::Waits | Manner::Hurries => Some(answer.await),
            // The first poll hands the work to its thread.
            Manner::GoesAway => {
                let mut answer = std::pin::pin!(answer);
                std::future::poll_fn(|context| {
                    let _too_quick = answer.as_mut().poll(context);
                    std::task::Poll::Ready(())
                })
                .await;
                None
            }
        };
        Heard { seen, times }
    }

    fn named(&self, id: &VolumeId) -> Option<(usize, usize)> {
        let pool = self.pools.iter().position(|pool| *pool == id.pool)?;
        (0..NAMES).find(|name| self.volume_id(pool, *name) == *id).map(|name| (pool, name))
    }

    fn cut_named(&self, id: &SnapshotId) -> Option<(usize, usize)> {
        let pool = self.pools.iter().position(|pool| *pool == id.pool)?;
        (0..CUTS).find(|cut| self.cut_id(pool, *cut) == *id).map(|cut| (pool, cut))
    }

    fn shown(&self, volume: pb::Volume, published: &[String]) -> Shown {
        let id: VolumeId = volume.volume_id.parse().unwrap();
        let (pool, name) = self.named(&id).unwrap_or_else(|| panic!("a volume nobody made: {volume:?}"));
        let place: Vec<_> = volume.accessible_topology.into_iter().map(|topology| topology.segments).collect();
        assert_eq!(place, [HashMap::from([(NODE_KEY.to_owned(), node(pool).to_string())])]);
        assert!(published.iter().all(|id| *id == node(pool).to_string()) && published.len() < 2, "{published:?}");
        let from = volume.content_source.map(|source| match source.r#type.unwrap() {
            content::Type::Snapshot(source) => {
                let (pool, cut) = self.cut_named(&source.snapshot_id.parse().unwrap()).unwrap();
                Source::Cut { pool, cut }
            }
            content::Type::Volume(source) => {
                let (pool, name) = self.named(&source.volume_id.parse().unwrap()).unwrap();
                Source::Volume { pool, name }
            }
        });
        Shown { name, pool, size: bytes(volume.capacity_bytes), from, granted: !published.is_empty() }
    }

    fn shown_cut(&self, snapshot: &pb::Snapshot, times: &mut Times) -> ShownCut {
        let (pool, cut) = self.cut_named(&snapshot.snapshot_id.parse().unwrap()).unwrap();
        let (source_pool, from) = self.named(&snapshot.source_volume_id.parse().unwrap()).unwrap();
        assert_eq!(pool, source_pool, "{snapshot:?}");
        let time = snapshot.creation_time.unwrap();
        times.push((cut, (time.seconds, time.nanos)));
        ShownCut { cut, pool, from, size: bytes(snapshot.size_bytes), ready: snapshot.ready_to_use }
    }
}

fn bytes(value: i64) -> u64 {
    u64::try_from(value).unwrap()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap()
}

fn range(required: u64, limit: u64) -> Option<pb::CapacityRange> {
    Some(pb::CapacityRange { required_bytes: signed(required), limit_bytes: signed(limit) })
}

fn capability(usage: Use) -> pb::VolumeCapability {
    use cap::access_mode::Mode as Code;
    let mode = match usage.access {
        Access::Multi => Code::SingleNodeMultiWriter,
        Access::Single => Code::SingleNodeSingleWriter,
        Access::Reader => Code::SingleNodeReaderOnly,
        Access::ManyNodes => Code::MultiNodeMultiWriter,
    };
    let kind = match usage.mode {
        Mode::Block => cap::AccessType::Block(cap::BlockVolume {}),
        Mode::Mount(fs) => cap::AccessType::Mount(cap::MountVolume {
            fs_type: fs.map(|fs| fs.as_str().to_owned()).unwrap_or_default(),
            ..Default::default()
        }),
    };
    pb::VolumeCapability { access_mode: Some(cap::AccessMode { mode: mode.into() }), access_type: Some(kind) }
}

fn provisioning(thin: Option<bool>) -> Option<(String, String)> {
    thin.map(|thin| ("provisioning".to_owned(), if thin { "thin" } else { "thick" }.to_owned()))
}

fn node_id(node_name: OnNode) -> String {
    match node_name {
        OnNode::Of(number) => node(number).to_string(),
        OnNode::Unknown => "node-nobody-knows".to_owned(),
    }
}

fn topology(number: usize) -> Vec<pb::Topology> {
    vec![pb::Topology { segments: HashMap::from([(NODE_KEY.to_owned(), node(number).to_string())]) }]
}

/// One request on its way.
struct Asking<'w> {
    world: &'w World<'w>,
    places: &'w Places,
    manner: Manner,
}

/// What every answer must keep: an error says something, and nothing beside it (spec, "Errors").
fn heard<T>(answer: Result<Response<T>, Status>) -> Result<T, Refused> {
    answer.map(Response::into_inner).map_err(|status| {
        assert!(!status.message().is_empty() && status.details().is_empty(), "{status:?}");
        Refused { code: status.code(), said: status.message().to_owned() }
    })
}

impl Asking<'_> {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if self.manner == Manner::Hurries {
            request.set_timeout(HURRY);
        }
        request
    }

    fn id(&self, volume: Volume) -> String {
        match volume {
            Volume::Of(name) => {
                let pool = self.places.volumes[name];
                self.world.volume_id(pool, name).born_on(&node(pool)).to_string()
            }
            Volume::Foreign => "vol-0815".to_owned(),
            Volume::Elsewhere => "hf1_00000000000000aa_0123456789abcdef0123456789abcdef_n9".to_owned(),
        }
    }

    fn cut_id(&self, cut: Cut) -> String {
        match cut {
            Cut::Of(cut) => {
                let pool = self.places.cuts[cut];
                self.world.cut_id(pool, cut).born_on(&node(pool)).to_string()
            }
            Cut::Foreign => "snap-0815".to_owned(),
            Cut::Elsewhere => "hfs1_00000000000000aa_0123456789abcdef0123456789abcdef_n9".to_owned(),
        }
    }

    fn staging(&self, volume: Volume) -> String {
        match volume {
            Volume::Of(name) => self.world.machine.staging(name),
            Volume::Foreign | Volume::Elsewhere => self.world.machine.kubelet().join("staging-none"),
        }
        .display()
        .to_string()
    }

    fn target(&self, target: usize) -> String {
        self.world.machine.target(target).display().to_string()
    }

    fn at(&self, volume: Volume, at: At) -> String {
        match at {
            At::Staging => self.staging(volume),
            At::Target(target) => self.target(target),
        }
    }

    fn create(&self, asked: &Create) -> pb::CreateVolumeRequest {
        let source = asked.from.map(|from| pb::VolumeContentSource {
            r#type: Some(match from {
                From::Cut(cut) => content::Type::Snapshot(content::SnapshotSource { snapshot_id: self.cut_id(cut) }),
                From::Volume(volume) => content::Type::Volume(content::VolumeSource { volume_id: self.id(volume) }),
            }),
        });
        let mut parameters: HashMap<_, _> = provisioning(asked.thin).into_iter().collect();
        if asked.zero {
            parameters.insert("onDelete".to_owned(), "zero".to_owned());
        }
        let requirement = match asked.wanted {
            Wanted::Anywhere => None,
            Wanted::Preferred(number) => {
                Some(pb::TopologyRequirement { requisite: Vec::new(), preferred: topology(number) })
            }
            Wanted::Required(number) => {
                Some(pb::TopologyRequirement { requisite: topology(number), preferred: Vec::new() })
            }
        };
        pb::CreateVolumeRequest {
            name: self.world.name(asked.name),
            capacity_range: range(asked.required, asked.limit),
            volume_capabilities: asked.uses.iter().map(|usage| capability(*usage)).collect(),
            parameters,
            volume_content_source: source,
            accessibility_requirements: requirement,
            ..Default::default()
        }
    }

    async fn call(&self, life: &Life, call: &Call, times: &mut Times) -> Seen {
        let (mut controller, mut on_node) = (life.services.controller(), life.services.node());
        match call {
            Call::Create(asked) => {
                let made = heard(controller.create_volume(self.request(self.create(asked))).await)?;
                let volume = made.volume.unwrap();
                Ok(Answer::Made(self.world.shown(volume, &[])))
            }
            Call::Delete(volume) => {
                let message = pb::DeleteVolumeRequest { volume_id: self.id(*volume), ..Default::default() };
                heard(controller.delete_volume(self.request(message)).await).map(|_| Answer::Done)
            }
            Call::Grant { volume, node, usage, read_only } => {
                let message = pb::ControllerPublishVolumeRequest {
                    volume_id: self.id(*volume),
                    node_id: node_id(*node),
                    volume_capability: Some(capability(*usage)),
                    readonly: *read_only,
                    ..Default::default()
                };
                let granted = heard(controller.controller_publish_volume(self.request(message)).await)?;
                Ok(Answer::Granted { epoch: granted.publish_context["epoch"].parse().unwrap() })
            }
            Call::Revoke { volume, node } => {
                let message = pb::ControllerUnpublishVolumeRequest {
                    volume_id: self.id(*volume),
                    node_id: node.map(node_id).unwrap_or_default(),
                    ..Default::default()
                };
                heard(controller.controller_unpublish_volume(self.request(message)).await).map(|_| Answer::Done)
            }
            Call::Validate { volume, usage } => {
                let message = pb::ValidateVolumeCapabilitiesRequest {
                    volume_id: self.id(*volume),
                    volume_capabilities: vec![capability(*usage)],
                    ..Default::default()
                };
                let answer = heard(controller.validate_volume_capabilities(self.request(message)).await)?;
                Ok(Answer::Confirmed(answer.confirmed.is_some()))
            }
            Call::Get(volume) => {
                let message = pb::ControllerGetVolumeRequest { volume_id: self.id(*volume) };
                let got = heard(controller.controller_get_volume(self.request(message)).await)?;
                let published = got.status.unwrap().published_node_ids;
                Ok(Answer::Volume(self.world.shown(got.volume.unwrap(), &published)))
            }
            Call::List { page } => self.list(life, *page).await,
            Call::ListBadly => {
                let message = pb::ListVolumesRequest { max_entries: 1, starting_token: "no token".to_owned() };
                heard(controller.list_volumes(self.request(message)).await).map(|_| Answer::Done)
            }
            Call::Capacity { thin } => {
                let parameters = provisioning(*thin).into_iter().collect();
                let message = pb::GetCapacityRequest { parameters, ..Default::default() };
                let room = heard(controller.get_capacity(self.request(message)).await)?;
                assert!(room.maximum_volume_size.unwrap() <= room.available_capacity);
                Ok(Answer::Room(bytes(room.available_capacity)))
            }
            Call::Expand { volume, required, limit } => {
                let message = pb::ControllerExpandVolumeRequest {
                    volume_id: self.id(*volume),
                    capacity_range: range(*required, *limit),
                    ..Default::default()
                };
                let grown = heard(controller.controller_expand_volume(self.request(message)).await)?;
                let node_expansion = grown.node_expansion_required;
                Ok(Answer::Size { size: bytes(grown.capacity_bytes), node_expansion })
            }
            Call::Cut { cut, from } => {
                let message = pb::CreateSnapshotRequest {
                    name: self.world.cut_name(*cut),
                    source_volume_id: self.id(*from),
                    ..Default::default()
                };
                let made = heard(controller.create_snapshot(self.request(message)).await)?;
                Ok(Answer::Cut(self.world.shown_cut(&made.snapshot.unwrap(), times)))
            }
            Call::Uncut(cut) => {
                let message = pb::DeleteSnapshotRequest { snapshot_id: self.cut_id(*cut), ..Default::default() };
                heard(controller.delete_snapshot(self.request(message)).await).map(|_| Answer::Done)
            }
            Call::GetCut(cut) => {
                let message = pb::GetSnapshotRequest { snapshot_id: self.cut_id(*cut), ..Default::default() };
                let got = heard(controller.get_snapshot(self.request(message)).await)?;
                Ok(Answer::Cut(self.world.shown_cut(&got.snapshot.unwrap(), times)))
            }
            Call::ListCuts { cut, from, page } => self.list_cuts(life, (*cut, *from), *page, times).await,
            Call::Stage { volume, usage } => {
                let message = pb::NodeStageVolumeRequest {
                    volume_id: self.id(*volume),
                    staging_target_path: self.staging(*volume),
                    volume_capability: Some(capability(*usage)),
                    ..Default::default()
                };
                heard(on_node.node_stage_volume(self.request(message)).await).map(|_| Answer::Done)
            }
            Call::Unstage(volume) => {
                let message = pb::NodeUnstageVolumeRequest {
                    volume_id: self.id(*volume),
                    staging_target_path: self.staging(*volume),
                };
                heard(on_node.node_unstage_volume(self.request(message)).await).map(|_| Answer::Done)
            }
            Call::Publish { volume, target, usage, read_only } => {
                let message = pb::NodePublishVolumeRequest {
                    volume_id: self.id(*volume),
                    staging_target_path: self.staging(*volume),
                    target_path: self.target(*target),
                    volume_capability: Some(capability(*usage)),
                    readonly: *read_only,
                    ..Default::default()
                };
                heard(on_node.node_publish_volume(self.request(message)).await).map(|_| Answer::Done)
            }
            Call::Unpublish { volume, target } => {
                let message =
                    pb::NodeUnpublishVolumeRequest { volume_id: self.id(*volume), target_path: self.target(*target) };
                heard(on_node.node_unpublish_volume(self.request(message)).await).map(|_| Answer::Done)
            }
            Call::Stats { volume, at } => {
                let message = pb::NodeGetVolumeStatsRequest {
                    volume_id: self.id(*volume),
                    volume_path: self.at(*volume, *at),
                    ..Default::default()
                };
                let usage = heard(on_node.node_get_volume_stats(self.request(message)).await)?.usage;
                let total = bytes(usage[0].total);
                Ok(if usage.len() == 1 { Answer::Device(total) } else { Answer::Filesystem(total) })
            }
            Call::Grow { volume, at, required } => {
                let message = pb::NodeExpandVolumeRequest {
                    volume_id: self.id(*volume),
                    volume_path: self.at(*volume, *at),
                    capacity_range: range(*required, 0),
                    ..Default::default()
                };
                let grown = heard(on_node.node_expand_volume(self.request(message)).await)?;
                Ok(Answer::Size { size: bytes(grown.capacity_bytes), node_expansion: false })
            }
        }
    }

    /// Every page, one after the other. Ours in the order of names, theirs seen to be in that of handles.
    async fn list(&self, life: &Life, page: i32) -> Seen {
        let mut pages = Pages::of(page);
        let mut shown = Vec::new();
        while let Some(starting_token) = pages.next.take() {
            let message = pb::ListVolumesRequest { max_entries: page, starting_token };
            let listed = heard(life.services.controller().list_volumes(self.request(message)).await)?;
            pages.entries(
                listed.entries.iter().map(|entry| entry.volume.as_ref().unwrap().volume_id.clone()),
                listed.next_token,
            );
            shown.extend(listed.entries.into_iter().map(|entry| {
                let published = entry.status.unwrap().published_node_ids;
                self.world.shown(entry.volume.unwrap(), &published)
            }));
        }
        shown.sort_by_key(|shown| shown.name);
        Ok(Answer::Volumes(shown))
    }

    async fn list_cuts(
        &self,
        life: &Life,
        (cut, from): (Option<Cut>, Option<Volume>),
        page: i32,
        times: &mut Times,
    ) -> Seen {
        let mut pages = Pages::of(page);
        let mut shown = Vec::new();
        while let Some(starting_token) = pages.next.take() {
            let message = pb::ListSnapshotsRequest {
                max_entries: page,
                starting_token,
                snapshot_id: cut.map(|cut| self.cut_id(cut)).unwrap_or_default(),
                source_volume_id: from.map(|volume| self.id(volume)).unwrap_or_default(),
                ..Default::default()
            };
            let listed = heard(life.services.controller().list_snapshots(self.request(message)).await)?;
            let ids = listed.entries.iter().map(|entry| entry.snapshot.as_ref().unwrap().snapshot_id.clone());
            pages.entries(ids, listed.next_token);
            shown.extend(
                listed.entries.iter().map(|entry| self.world.shown_cut(entry.snapshot.as_ref().unwrap(), times)),
            );
        }
        shown.sort_by_key(|shown| shown.cut);
        Ok(Answer::Cuts(shown))
    }
}

/// A walk through pages: never more entries than asked for, in order, each once, and no empty page that promises more.
struct Pages {
    most: usize,
    next: Option<String>,
    last: String,
}

impl Pages {
    fn of(page: i32) -> Self {
        Self { most: usize::try_from(page).unwrap(), next: Some(String::new()), last: String::new() }
    }

    fn entries(&mut self, ids: impl Iterator<Item = String>, token: String) {
        let ids: Vec<_> = ids.collect();
        assert!(self.most == 0 || ids.len() <= self.most, "{} entries in a page of {}", ids.len(), self.most);
        assert!(!ids.is_empty() || token.is_empty(), "an empty page with a token");
        for id in ids {
            assert!(self.last < id, "{id} after {}", self.last);
            self.last = id;
        }
        self.next = (!token.is_empty()).then_some(token);
    }
}
