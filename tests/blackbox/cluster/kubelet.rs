//! One node of several registers itself with its kubelet.

use super::harness::Cluster;
use crate::registration::Kubelet;

#[test]
fn a_node_registers_itself_with_kubelet() {
    let mut cluster = Cluster::new(&["n1"], 1);
    let kubelet = Kubelet::new(&cluster.nodes["n1"].directory);
    let node = cluster.nodes.get_mut("n1").unwrap();
    assert_eq!(node.terminate(), 0);
    node.extra = vec!["--kubelet-registration".into(), kubelet.directory().into()];
    cluster.start_node("n1");
    assert_eq!(kubelet.register(), "n1");
    assert_eq!(cluster.nodes.get_mut("n1").unwrap().terminate(), 0);
    assert_eq!(std::fs::read_dir(kubelet.directory()).unwrap().count(), 0);
    cluster.finish();
}
