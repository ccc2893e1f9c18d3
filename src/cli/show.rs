//! `holdfast volumes show HANDLE`: one volume, or the PersistentVolume for it.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast::csi::DRIVER_NAME;
use holdfast::home::record::VolumeRecord;
use holdfast::home::{FormatState, PoolView, Volume};
use holdfast::os::Os;
use holdfast::route::{FABRIC_KEY, NO_FABRIC, NODE_KEY};
use holdfast::types::{Access, Authentication, Bytes, FsType, VolumeId, VolumeMode};
use serde::Serialize;
use serde_json::{Value, json};

use super::asked::ControllerConnection;
use super::inventory::{LookArguments, open_all};
use super::output::{Format, document};

/// Flags of `holdfast volumes show`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The handle of the volume: column HANDLE of `holdfast volumes`, volumeHandle of a PersistentVolume.
    #[arg(value_name = "HANDLE")]
    handle: VolumeId,
    /// Prints a PersistentVolume for the volume, to apply by hand. Its reclaim policy is Retain.
    #[arg(long)]
    pv: bool,
    /// With --pv: the StorageClass of the PersistentVolume. Default: none.
    #[arg(long, value_name = "NAME", requires = "pv", default_value = "")]
    class: String,
    #[command(flatten)]
    look: LookArguments,
}

/// A volume as it is printed, and in a PersistentVolume; size in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    handle: String,
    name: String,
    claim: Option<String>,
    node: String,
    size: Bytes,
    used_as: VolumeMode,
    access: Access,
    /// Whether connections must be authenticated; none for a local volume.
    authentication: Option<Authentication>,
    /// The storage network of its home node, whose nodes can use it; none for a local volume, and without a controller.
    fabric: Option<String>,
}

fn of_network(access: Access, authentication: Authentication) -> Option<Authentication> {
    (access == Access::Network).then_some(authentication)
}

/// How the volume is used: its content decides, otherwise its first requested capability.
fn mode(format: FormatState, made_for: impl IntoIterator<Item = VolumeMode>) -> VolumeMode {
    match format {
        FormatState::Raw => VolumeMode::Block,
        FormatState::Formatting { fs, .. } | FormatState::Formatted { fs, .. } => VolumeMode::Mount(fs),
        FormatState::Never => made_for.into_iter().next().unwrap_or(VolumeMode::Mount(FsType::Ext4)),
    }
}

impl Shown {
    fn of_cluster(volume: &Volume) -> Self {
        Self {
            handle: volume.id.to_string(),
            name: volume.name.clone(),
            claim: volume.claim.as_ref().map(ToString::to_string),
            node: volume.home.to_string(),
            size: volume.size,
            used_as: mode(volume.format, volume.modes.iter().copied()),
            access: volume.access,
            authentication: of_network(volume.access, volume.authentication),
            fabric: None,
        }
    }

    fn of_record(record: &VolumeRecord, view: &PoolView) -> Self {
        let made_for = record.request.capabilities.iter().map(|capability| capability.known.mode);
        Self {
            handle: record.handle.clone(),
            name: record.co_name.clone(),
            claim: record.claim().map(|claim| claim.to_string()),
            node: view.pool.identity().home.to_string(),
            size: record.size,
            used_as: mode(record.format.known, made_for),
            access: record.access,
            authentication: of_network(record.access, record.request.parameters.authentication),
            fabric: None,
        }
    }

    /// The object that the provisioner would have created, but with reclaim policy Retain.
    ///
    /// # Errors
    /// For a network volume whose fabric is not known.
    fn persistent_volume(&self, class: &str) -> Result<Value> {
        let (key, value) = match (self.access, &self.fabric) {
            (Access::Local, _) => (NODE_KEY, &self.node),
            (Access::Network, Some(fabric)) => (FABRIC_KEY, fabric),
            (Access::Network, None) => bail!(
                "volume {} can be used on every node of a fabric, and the pool does not have the name of the fabric: ask a controller (--controller), while node {} is reachable and has a fabric",
                self.handle,
                self.node
            ),
        };
        let (volume_mode, fs_type) = match self.used_as {
            VolumeMode::Block => ("Block", None),
            VolumeMode::Mount(fs) => ("Filesystem", Some(fs.to_string())),
        };
        Ok(json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": self.name,
                // With it the provisioner deletes the volume once the reclaim policy is Delete.
                "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER_NAME},
            },
            "spec": {
                "capacity": {"storage": self.size.get().to_string()},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": class,
                "volumeMode": volume_mode,
                "csi": {"driver": DRIVER_NAME, "volumeHandle": self.handle, "fsType": fs_type},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": key, "operator": "In", "values": [value]},
                ]}]}},
            },
        }))
    }
}

/// Prints the volume.
///
/// # Errors
/// When none of the inspected pools has it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let shown = match arguments.look.controller()? {
        Some(mut asked) => in_cluster(&mut asked, arguments.handle)?,
        None => here(arguments)?,
    };
    // One object does not need a table.
    let format = if arguments.look.output == Format::Table { Format::Yaml } else { arguments.look.output };
    if arguments.pv {
        document(format, &shown.persistent_volume(&arguments.class)?)?;
    } else {
        document(format, &shown)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn in_cluster(asked: &mut ControllerConnection, handle: VolumeId) -> Result<Shown> {
    let everything = asked.everything()?;
    let found = everything.volumes.iter().find(|volume| volume.id == handle);
    let volume = found.with_context(|| match everything.unheard.as_slice() {
        [] => format!("no pool of the cluster has volume {handle}; run holdfast volumes for a list"),
        unheard => format!("no pool that answered has volume {handle}; {}; retry later", unheard.join("; ")),
    })?;
    let fabric = match volume.access {
        Access::Local => None,
        Access::Network => {
            let nodes = asked.nodes()?.nodes;
            let home = nodes.into_iter().find(|row| row.node == volume.home).map(|row| row.fabric);
            home.filter(|fabric| fabric != NO_FABRIC)
        }
    };
    Ok(Shown { fabric, ..Shown::of_cluster(volume) })
}

fn here(arguments: &Arguments) -> Result<Shown> {
    let handle = arguments.handle;
    let (views, _) = open_all(&Os::new(), &arguments.look)?;
    let of_pool = views.iter().find(|view| view.pool.identity().id == handle.pool);
    let view = of_pool.with_context(|| {
        format!("volume {handle} is in none of the given pools; set --pool to pool {}", handle.pool)
    })?;
    let record = view.survey.volumes.iter().find(|record| record.uuid == handle.uuid);
    let record = record.with_context(|| format!("pool {} has no volume {handle}; run holdfast volumes", view.name))?;
    Ok(Shown::of_record(record, view))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_persistent_volume_is_kept_and_stays_on_its_node() {
        let mut shown = Shown {
            handle: "hf1_0123456789abcdef_00112233445566778899aabbccddeeff_n1".to_owned(),
            name: "pvc-1".to_owned(),
            claim: Some("db/data".to_owned()),
            node: "n1".to_owned(),
            size: Bytes::new(1 << 30),
            used_as: VolumeMode::Mount(FsType::Xfs),
            access: Access::Local,
            authentication: None,
            fabric: None,
        };
        let pv = shown.persistent_volume("fast").unwrap();
        let at = |pointer: &str| pv.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/spec/csi/volumeHandle"), json!(shown.handle));
        assert_eq!(at("/spec/csi/fsType"), json!("xfs"));
        assert_eq!(at("/spec/capacity/storage"), json!("1073741824"));
        assert_eq!(at("/spec/persistentVolumeReclaimPolicy"), json!("Retain"));
        assert_eq!(at("/spec/storageClassName"), json!("fast"));
        let term = "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0";
        assert_eq!(at(term), json!({"key": "csi.holdfast.storage/node", "operator": "In", "values": ["n1"]}));
        shown.used_as = VolumeMode::Block;
        let pv = shown.persistent_volume("").unwrap();
        assert_eq!(pv.pointer("/spec/volumeMode"), Some(&json!("Block")));
        assert_eq!(pv.pointer("/spec/csi/fsType"), Some(&Value::Null));
    }

    #[test]
    fn the_persistent_volume_of_a_network_volume_is_for_the_nodes_of_its_fabric() {
        let mut shown = Shown {
            handle: "hf1_0123456789abcdef_00112233445566778899aabbccddeeff_n1".to_owned(),
            name: "pvc-1".to_owned(),
            claim: None,
            node: "n1".to_owned(),
            size: Bytes::new(1 << 30),
            used_as: VolumeMode::Block,
            access: Access::Network,
            authentication: Some(Authentication::Auto),
            fabric: Some("rack-1".to_owned()),
        };
        let pv = shown.persistent_volume("").unwrap();
        let term = "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0";
        let expected = json!({"key": "csi.holdfast.storage/fabric", "operator": "In", "values": ["rack-1"]});
        assert_eq!(pv.pointer(term), Some(&expected));
        shown.fabric = None;
        let error = shown.persistent_volume("").unwrap_err().to_string();
        assert!(error.contains("--controller") && error.contains("n1"), "{error}");
    }

    #[test]
    fn what_is_on_a_volume_says_what_it_is_used_as() {
        let made_for = [VolumeMode::Mount(FsType::Xfs)];
        assert_eq!(mode(FormatState::Never, made_for), made_for[0]);
        assert_eq!(mode(FormatState::Raw, made_for), VolumeMode::Block);
    }
}
