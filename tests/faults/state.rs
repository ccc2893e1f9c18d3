//! What is compared: everything an operation can leave, without what differs from one honest run to another (times,
//! numbers of grants and devices, UUIDs chosen at random).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use super::world::World;
use holdfast::home::{CapacityQuery, Home};
use holdfast::os::LoopStatus;
use holdfast::types::MIB;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Every file and directory of the pool; records and images with what is in them.
    pub(super) pool: BTreeSet<String>,
    /// Loop devices, mounts, staging paths and targets.
    pub(super) node: BTreeSet<String>,
    /// Sums of the ledger.
    pub(super) ledger: String,
}

impl State {
    /// Without temporaries of records: one that could not be removed belongs to its volume, and to its next write.
    pub(super) fn without_unwritten(mut self) -> Self {
        self.pool.retain(|line| !line.contains(".json.tmp: "));
        self
    }

    /// What differs, for messages.
    pub(super) fn against(&self, expected: &Self) -> String {
        let mut lines = Vec::new();
        for (is, should) in [(&self.pool, &expected.pool), (&self.node, &expected.node)] {
            lines.extend(is.difference(should).map(|line| format!("  is, and should not be: {line}")));
            lines.extend(should.difference(is).map(|line| format!("  should be, and is not: {line}")));
        }
        if self.ledger != expected.ledger {
            lines.push(format!("  the ledger says {} instead of {}", self.ledger, expected.ledger));
        }
        lines.join("\n")
    }
}

impl World {
    pub(super) fn state(&self) -> State {
        let mut state = State { pool: self.disk(), node: BTreeSet::new(), ledger: self.ledger() };
        state.node = self.devices();
        state.node.extend(self.mounts());
        for entry in fs::read_dir(self.kubelet()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            // Staging paths are the orchestrator's.
            if !name.starts_with("staging-") {
                state.node.insert(format!("path {name} {:?}", entry.file_type().unwrap()));
            }
        }
        state
    }

    fn disk(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        self.walk(&self.scratch.root(), &mut lines);
        lines
    }

    fn walk(&self, directory: &Path, lines: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let shown = path.strip_prefix(self.scratch.root()).unwrap().display().to_string();
            if shown == "lost+found" {
                continue;
            }
            if path.is_dir() {
                lines.insert(format!("{shown}/"));
                self.walk(&path, lines);
            } else if path.extension().is_some_and(|end| end == "json") {
                let text = fs::read(&path).unwrap();
                let mut value: Value = serde_json::from_slice(&text).unwrap();
                self.normalise(&mut value);
                lines.insert(format!("{shown}: {value}"));
            } else if shown == "reserve" {
                // What is in it means nothing.
                let whole = fs::metadata(&path).unwrap().blocks() * 512 >= MIB;
                lines.insert(format!("{shown}: {}", if whole { "whole" } else { "short" }));
            } else {
                let meta = fs::metadata(&path).unwrap();
                let taken = meta.blocks() * 512;
                let class = match taken {
                    0 => "nothing",
                    _ if taken >= meta.len() => "all",
                    _ => "a part",
                };
                lines.insert(format!("{shown}: {} bytes, {class} allocated", self.relative(meta.len())));
            }
        }
    }

    /// A size relative to what growth began from.
    fn relative(&self, bytes: u64) -> String {
        let base = self.base.get() * MIB;
        match bytes.checked_sub(base) {
            _ if base == 0 || bytes.abs_diff(base) > 8 * MIB => bytes.to_string(),
            Some(more) => format!("base+{more}"),
            None => format!("base-{}", base - bytes),
        }
    }

    fn normalise(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("created");
                fields.remove("epoch");
                // Which device a block volume had last stays until it is detached.
                fields.remove("boot_id");
                fields.remove("device");
                fields.remove("view");
                for (key, field) in fields.iter_mut() {
                    match (key.as_str(), &*field) {
                        ("size" | "target_size", Value::Number(bytes)) => {
                            *field = self.relative(bytes.as_u64().unwrap()).into();
                        }
                        ("size_request", Value::Object(request)) => {
                            let mut request = request.clone();
                            for field in request.values_mut() {
                                if let Some(bytes) = field.as_u64() {
                                    *field = self.relative(bytes).into();
                                }
                            }
                            *field = request.into();
                        }
                        ("format", Value::Object(format)) => {
                            let mut format = format.clone();
                            for key in ["uuid", "planned_uuid"] {
                                if format.contains_key(key) {
                                    format.insert(key.to_owned(), "some".into());
                                }
                            }
                            *field = format.into();
                        }
                        _ => self.normalise(field),
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.normalise(value)),
            _ => {}
        }
    }

    /// Every loop device over a file of this pool, there or deleted.
    fn devices(&self) -> BTreeSet<String> {
        let root = self.os.identity(&self.scratch.root()).unwrap().unwrap();
        let describe = |status: LoopStatus| {
            let sysfs = Path::new("/sys/block").join(status.device.path().file_name().unwrap());
            let number = |name: &str| fs::read_to_string(sysfs.join(name)).unwrap().trim().parse::<u64>().unwrap();
            // What a number had last stays with it, and is no matter where nothing is written.
            let discards = match (number("queue/discard_max_bytes"), status.read_only) {
                (_, true) => "no matter which",
                (0, false) => "without",
                (_, false) => "with",
            };
            format!(
                "loop {} from {}, {} bytes in blocks of {}, direct {}, read-only {}, autoclear {}, {discards} discards",
                status.name,
                status.offset,
                self.relative(number("size") * 512),
                number("queue/logical_block_size"),
                status.direct_io,
                status.read_only,
                status.autoclear
            )
        };
        self.os.loops_beside(&root).unwrap().into_iter().map(describe).collect()
    }

    fn mounts(&self) -> BTreeSet<String> {
        let kubelet = self.kubelet();
        let table = self.os.mounts().unwrap();
        let ours = table.entries().iter().filter(|entry| entry.mount_point.starts_with(&kubelet));
        ours.map(|entry| {
            let point = entry.mount_point.strip_prefix(&kubelet).unwrap().display();
            let root = entry.root.display().to_string();
            let root = if root.starts_with("/loop") { "a device" } else { &root };
            let size = match entry.fs_type.as_str() {
                "xfs" => {
                    let geometry = self.os.xfs_geometry(&entry.mount_point).unwrap();
                    self.relative(geometry.blocks * u64::from(geometry.block_size))
                }
                _ => "any".to_owned(),
            };
            format!(
                "mount {point}, {} deep: {root} of {} of {size} bytes, {:?}, {:?}",
                table.depth(&entry.mount_point),
                entry.fs_type,
                entry.options,
                entry.super_options.first()
            )
        })
        .collect()
    }

    fn ledger(&self) -> String {
        let home = self.home();
        // Counts what is promised again.
        home.capacity(&CapacityQuery::default()).unwrap();
        let report = home.report().unwrap().remove(0);
        // What a growing image has taken of its promise depends on where it was written.
        let promised = match (report.promised.get().div_ceil(MIB), self.base.get()) {
            (0, _) => "nothing".to_owned(),
            (mib, 0) => format!("{mib} MiB"),
            _ => "something".to_owned(),
        };
        format!(
            "{} volumes of {}, {} snapshots, {promised} promised",
            report.volumes,
            self.relative(report.provisioned.get()),
            report.snapshots,
        )
    }
}
