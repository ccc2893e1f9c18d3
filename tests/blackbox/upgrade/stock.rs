//! Volumes and snapshots in every state between two calls of a lifecycle, and what holds for them whichever release
//! runs.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use holdfast::csi::proto as p;

use crate::harness::calls::{from_snapshot, from_volume};
use crate::harness::{
    Finished, MIB, Release, Use, Vol, World, can_grow_ext4_online, check_chunks, create_request, device_size, fs_size,
    mounts, try_run_unchecked, write_chunk,
};

/// The last call that a volume had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Created,
    /// It was used, and detached.
    Detached,
    Attached,
    Staged,
    Published,
}

/// Whether a volume has the size of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    None,
    /// After ControllerExpand, before NodeExpand.
    Begun,
    Done,
}

#[derive(Debug)]
struct Kept {
    request: p::CreateVolumeRequest,
    vol: Vol,
    state: State,
    growth: Growth,
    /// What was written, in order.
    seeds: Vec<u64>,
}

#[derive(Debug)]
struct Cut {
    name: String,
    source: Vol,
    snapshot: p::Snapshot,
    seeds: Vec<u64>,
}

/// What the orchestrator has.
#[derive(Debug, Default)]
pub(super) struct Stock {
    volumes: Vec<Kept>,
    snapshots: Vec<Cut>,
    seed: u64,
}

/// A request as the provisioner sends it with `--extra-create-metadata`.
fn claimed(name: &str, kind: Use, bytes: i64, source: Option<p::VolumeContentSource>) -> p::CreateVolumeRequest {
    let claim = [("csi.storage.k8s.io/pvc/name", name), ("csi.storage.k8s.io/pvc/namespace", "default")];
    p::CreateVolumeRequest {
        capacity_range: Some(p::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        parameters: claim.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        volume_content_source: source,
        ..create_request(name, kind, 0)
    }
}

impl Kept {
    fn created(world: &World, kind: Use, request: p::CreateVolumeRequest) -> Self {
        let vol = world.create_from(kind, &request);
        Self { request, vol, state: State::Created, growth: Growth::None, seeds: Vec::new() }
    }

    /// Calls what leads to this state; each call of it once, also those that were made before.
    fn raise(&mut self, world: &World, to: State) {
        let vol = &self.vol;
        if to >= State::Attached {
            world.publish(vol).unwrap();
        }
        if to >= State::Staged {
            world.stage(vol).unwrap();
        }
        if to >= State::Published {
            world.bind(vol, "pod").unwrap();
        }
        self.state = self.state.max(to);
    }

    /// Undoes the calls down to this state.
    fn lower(&mut self, world: &World, to: State) {
        let vol = &self.vol;
        if to < State::Published {
            world.unbind(vol, "pod").unwrap();
        }
        if to < State::Staged {
            world.unstage(vol).unwrap();
        }
        if to < State::Attached {
            world.unpublish(vol).unwrap();
        }
        self.state = to.max(State::Detached);
    }

    fn path(&self, world: &World) -> std::path::PathBuf {
        world.target(&self.vol, "pod")
    }

    fn check(&self, world: &World) {
        if self.state != State::Published {
            return;
        }
        let path = self.path(world);
        assert_eq!(mounts().depth(&path), 1, "{} is not mounted once", path.display());
        check_chunks(self.vol.kind, &path, &self.seeds);
    }

    fn grow(&mut self, world: &World, size: i64) {
        for _ in 0..2 {
            let answer = world.expand(&self.vol, size).unwrap();
            assert_eq!(answer.capacity_bytes, size, "{self:?}");
        }
        self.vol.size = size;
        self.growth = Growth::Begun;
    }

    /// NodeExpand, or a new stage where the kernel does not let this process grow a mounted ext4.
    fn finish_growth(&mut self, world: &World) {
        if self.vol.kind == Use::Ext4 && !can_grow_ext4_online() {
            self.lower(world, State::Attached);
            self.raise(world, State::Published);
        }
        for _ in 0..2 {
            assert_eq!(world.node_expand(&self.vol, self.vol.size).unwrap(), self.vol.size, "{self:?}");
        }
        let path = self.path(world);
        match self.vol.kind {
            Use::Block => assert_eq!(device_size(&path), self.vol.size),
            Use::Ext4 | Use::Xfs => {
                let size = i64::try_from(fs_size(&path)).unwrap();
                assert!(size > self.vol.size * 7 / 10, "{size} of {}", self.vol.size);
            }
        }
        self.growth = Growth::Done;
    }
}

impl Stock {
    fn seed(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    /// Volumes in every state, their snapshots, and copies of them.
    pub(super) fn create_more(&mut self, world: &World, kinds: &[Use], period: u32) {
        for &kind in kinds {
            let named = |what: &str| format!("{what}-{period}-{}", kind.fs_type());
            for state in [State::Created, State::Detached, State::Attached, State::Staged, State::Published] {
                let name = named(&format!("{state:?}").to_lowercase());
                // Copied volumes have a size that is no whole MiB, as claims may have, and one is thin.
                let odd = if state == State::Detached { 1_000_001 } else { 0 };
                let mut request = claimed(&name, kind, kind.size() + odd, None);
                if state == State::Published {
                    request.parameters.insert("provisioning".into(), "thin".into());
                }
                let mut kept = Kept::created(world, kind, request);
                if state > State::Attached || state == State::Detached {
                    kept.raise(world, State::Published);
                    kept.seeds.push(self.seed());
                    write_chunk(kind, &kept.path(world), 0, kept.seeds[0]);
                    kept.lower(world, state);
                } else {
                    kept.raise(world, state);
                }
                if state == State::Detached {
                    let snapshot = world.snapshot(&named("cut"), &kept.vol);
                    let source = from_snapshot(&snapshot.snapshot_id);
                    // Release 0.1.0 copies no volume at the size of its claim, but at its own size only, which is whole MiB.
                    let bytes = match world.release {
                        Release::This => kept.request.capacity_range.unwrap().required_bytes,
                        Release::Before => kept.vol.size,
                    };
                    for (what, source) in [("restored", source), ("cloned", from_volume(&kept.vol))] {
                        let mut copy = Kept::created(world, kind, claimed(&named(what), kind, bytes, source));
                        copy.seeds.clone_from(&kept.seeds);
                        self.volumes.push(copy);
                    }
                    let (source, seeds) = (kept.vol.clone(), kept.seeds.clone());
                    self.snapshots.push(Cut { name: named("cut"), source, snapshot, seeds });
                }
                // The other release has to finish it.
                if state >= State::Staged && kind != Use::Ext4 {
                    kept.grow(world, kept.vol.size + 16 * MIB);
                }
                self.volumes.push(kept);
            }
        }
    }

    /// The content of all published volumes; needs no driver.
    pub(super) fn check_content(&self, world: &World) {
        for kept in &self.volumes {
            kept.check(world);
        }
    }

    /// The lists, against what was answered before.
    pub(super) fn check_answers(&self, world: &World) {
        let entries = world.list_volumes(p::ListVolumesRequest::default()).unwrap().entries;
        assert_eq!(entries.len(), self.volumes.len());
        for kept in &self.volumes {
            let of = |entry: &&p::list_volumes_response::Entry| {
                entry.volume.as_ref().is_some_and(|volume| volume.volume_id == kept.vol.id)
            };
            let entry = entries.iter().find(of).unwrap_or_else(|| panic!("not listed: {kept:?}"));
            assert_eq!(entry.volume.as_ref().unwrap().capacity_bytes, kept.vol.size, "{kept:?}");
            let nodes = if kept.state >= State::Attached { vec![world.node.clone()] } else { Vec::new() };
            assert_eq!(entry.status.as_ref().unwrap().published_node_ids, nodes, "{kept:?}");
            let request = p::ControllerGetVolumeRequest { volume_id: kept.vol.id.clone() };
            let answer = world.controller_get_volume(request).unwrap();
            assert_eq!(answer.volume, entry.volume);
        }
        let entries = world.list_snapshots(p::ListSnapshotsRequest::default()).unwrap().entries;
        let listed: BTreeSet<_> =
            entries.iter().map(|entry| entry.snapshot.as_ref().unwrap().snapshot_id.clone()).collect();
        let cut: BTreeSet<_> = self.snapshots.iter().map(|cut| cut.snapshot.snapshot_id.clone()).collect();
        assert_eq!(listed, cut);
        for cut in &self.snapshots {
            let again = world.snapshot(&cut.name, &cut.source);
            // Release 0.1.0 answers the size of the volume, and this one the size that its claim requested.
            let least = match world.release {
                Release::This => cut.source.size - MIB,
                Release::Before => cut.source.size - 1,
            };
            assert!(again.size_bytes > least && again.size_bytes <= cut.source.size, "{again:?} of {:?}", cut.source);
            assert_eq!(p::Snapshot { size_bytes: 0, ..again }, p::Snapshot { size_bytes: 0, ..cut.snapshot.clone() });
        }
    }

    /// The orchestrator repeats the calls that it made to the other release.
    pub(super) fn repeat_calls(&mut self, world: &World) {
        for kept in &mut self.volumes {
            let again = world.try_create(kept.vol.kind, &kept.request).unwrap();
            assert_eq!((&again.id, again.size), (&kept.vol.id, kept.vol.size), "{kept:?}");
            kept.raise(world, kept.state);
            kept.check(world);
            if kept.state <= State::Detached {
                world.unpublish(&kept.vol).unwrap();
                world.unstage(&kept.vol).unwrap();
            }
        }
    }

    /// Uses each volume as pods do, then returns it to its state.
    pub(super) fn use_all(&mut self, world: &mut World) {
        let mut seed = self.seed;
        for kept in &mut self.volumes {
            let state = kept.state;
            kept.raise(world, State::Published);
            kept.check(world);
            seed += 1;
            let path = kept.path(world);
            write_chunk(kept.vol.kind, &path, kept.seeds.len().try_into().unwrap(), seed);
            kept.seeds.push(seed);
            let (kind, second) = (kept.vol.kind, world.bind(&kept.vol, "second").unwrap());
            check_chunks(kind, &second, &kept.seeds);
            if kind == Use::Block {
                let number = |path: &Path| std::fs::metadata(path).unwrap().rdev();
                assert_eq!(number(&second), number(&path), "two pods of one volume have two devices");
            }
            world.unbind(&kept.vol, "second").unwrap();
            // A published ext4 stays mounted through all releases where it cannot grow so.
            let grows = kind != Use::Ext4 || can_grow_ext4_online() || state != State::Published;
            if kept.growth == Growth::None && grows {
                kept.grow(world, (kept.vol.size / MIB + 16) * MIB);
            }
            if kept.growth == Growth::Begun {
                kept.finish_growth(world);
            }
            let stats = world.node_get_volume_stats(p::NodeGetVolumeStatsRequest {
                volume_id: kept.vol.id.clone(),
                volume_path: path.to_str().unwrap().into(),
                staging_target_path: String::new(),
            });
            assert!(stats.unwrap().usage.iter().any(|usage| usage.total > 0));
            kept.check(world);
            kept.lower(world, state);
        }
        self.seed = seed;
        self.copy(world);
    }

    /// Restores of all snapshots, and a new snapshot and a clone of a volume of each kind.
    fn copy(&self, world: &World) {
        for cut in &self.snapshots {
            let restored = world.restore("once", cut.source.kind, &cut.snapshot.snapshot_id, cut.source.size);
            check_chunks(restored.kind, &world.attach(&restored).unwrap(), &cut.seeds);
            world.detach(&restored);
            world.delete(&restored).unwrap();
        }
        for kind in Use::ALL {
            let detached = |kept: &&Kept| kept.vol.kind == kind && kept.state == State::Detached;
            let Some(kept) = self.volumes.iter().rfind(detached) else { continue };
            let snapshot = world.snapshot("once", &kept.vol);
            for copy in [
                world.clone_of("cloned-once", &kept.vol),
                world.restore("restored-once", kind, &snapshot.snapshot_id, kept.vol.size),
            ] {
                check_chunks(kind, &world.attach(&copy).unwrap(), &kept.seeds);
                world.detach(&copy);
                world.delete(&copy).unwrap();
            }
            world.drop_snapshot(&snapshot.snapshot_id).unwrap();
        }
    }

    /// The commands of both releases see the pool of the running one, and find no problem.
    pub(super) fn check_commands(&self, world: &World) {
        let pool = format!("test=file:{}", world.pool.display());
        for release in Release::ALL {
            let ask = |name: &str| -> Finished {
                let arguments = [name, "--pool", &pool, "--output", "json"];
                // Unchecked: the source of a copy is shown without the node on which it was created.
                let finished = try_run_unchecked(&release.binary(), &arguments, &[]);
                assert_eq!(finished.code, Some(0), "{name} of {release:?}: {} {}", finished.stdout, finished.stderr);
                finished
            };
            assert!(ask("pools").stdout.contains(world.pool.to_str().unwrap()));
            let volumes = ask("volumes").stdout;
            for kept in &self.volumes {
                assert!(volumes.contains(kept.vol.uuid()), "{release:?} does not list {kept:?}: {volumes}");
            }
            assert_eq!(ask("doctor").stdout.trim(), "[]", "doctor of {release:?}");
        }
    }

    /// Deletes half of the volumes and snapshots of the period before: the oldest of each kind and state.
    pub(super) fn delete_some(&mut self, world: &World) {
        if let Some(oldest) = (!self.snapshots.is_empty()).then(|| self.snapshots.remove(0)) {
            for _ in 0..2 {
                world.drop_snapshot(&oldest.snapshot.snapshot_id).unwrap();
            }
        }
        let (mut kept, mut all) = (Vec::new(), std::mem::take(&mut self.volumes));
        for (number, mut volume) in all.drain(..).enumerate() {
            if number % 3 != 0 {
                kept.push(volume);
                continue;
            }
            volume.lower(world, State::Detached);
            for _ in 0..2 {
                world.delete(&volume.vol).unwrap();
            }
        }
        self.volumes = kept;
    }
}
