//! Many claims at once.

use std::time::Instant;

use serde_json::json;

use crate::harness::{Claim, Pod, Space, list, text, until};

const CLAIMS: usize = 100;

#[test]
fn a_hundred_claims_with_their_pods_come_and_go() {
    let space = Space::new("many");
    let names: Vec<_> = (0..CLAIMS).map(|index| format!("m{index}")).collect();
    let items: Vec<_> = names
        .iter()
        .flat_map(|name| {
            let pod = Pod::new(name).mounts(name).runs(&format!("echo {name} > /{name}/file && sync /{name}/file"));
            [Claim::new(name).size("64Mi").manifest(), pod.manifest()]
        })
        .collect();
    let start = Instant::now();
    space.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}));
    let running = || list("pods", &space.name).iter().filter(|pod| text(pod, "/status/phase") == "Running").count();
    crate::harness::within(600, "all run", || {
        if running() == CLAIMS { Ok(()) } else { Err(format!("{} of {CLAIMS}", running())) }
    });
    let up = start.elapsed();
    let warnings: Vec<_> = list("events", &space.name)
        .iter()
        .filter(|event| text(event, "/type") == "Warning")
        .map(|event| text(event, "/message").to_owned())
        .collect();
    let unasked: Vec<_> =
        warnings.iter().filter(|warning| warning.contains("does not answer whether it already has")).collect();
    assert!(unasked.is_empty(), "nodes must answer many queries at once: {unasked:?}");
    for name in names.iter().step_by(17) {
        until("its file", || {
            let read = crate::harness::exec(&space.name, name, &format!("cat /{name}/file"))?;
            if read.trim() == name { Ok(()) } else { Err(read) }
        });
    }
    let start = Instant::now();
    space.end();
    eprintln!(
        "{CLAIMS} claims with their pods ran after {} s and were gone after {} s",
        up.as_secs(),
        start.elapsed().as_secs()
    );
    eprintln!("warnings meanwhile: {}", warnings.len());
    for warning in warnings.iter().take(5) {
        eprintln!("  {warning}");
    }
}
