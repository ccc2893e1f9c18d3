//! The cluster, as kubectl shows it.

mod cluster;
mod driver;
mod install;
mod objects;
mod space;

pub(crate) use cluster::{
    delete, exec, exists, get, helm, kubectl, list, on_node, patch, text, try_kubectl, until, within,
};
pub(crate) use driver::{controller_pods, driver_exec, explained, node_pod, node_ready, volume_of, volumes};
pub(crate) use install::{Crashed, driver_ready, install, installed_chart, previous_chart, restart_kubelet};
pub(crate) use objects::{Claim, Pod, class, snapshot};
pub(crate) use space::Space;
