//! A node that is unreachable for a while.

use super::writer::Writer;
use crate::harness::{Claim, Crashed, Pod, Space, driver_exec, explained, node_ready, until};

#[test]
fn while_a_home_is_down_its_volumes_say_so_and_the_others_work() {
    let space = Space::new("home-down");
    let elsewhere = Writer::start(&space, "elsewhere", "node1");
    space.claim(&Claim::new("there").size("64Mi"));
    space.run(&Pod::new("there").on("node2").mounts("there"));
    space.exec("there", "echo kept > /there/file && sync /there/file");

    let crashed = Crashed::new("node2");
    let said = until("the controllers miss it", || {
        let said = driver_exec(&["pools"]).unwrap_or_else(|said| said);
        if said.contains("unreachable") { Ok(said) } else { Err(said) }
    });
    assert!(said.contains("node2"), "{said}");
    let said = driver_exec(&["doctor"]).unwrap_err();
    for word in ["node2", "node2 is unreachable", "    do  check that holdfast runs there"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    explained(&space.name, "there", &["node node2, its home node", "is unreachable", "kubectl get node node2"]);

    space.claim(&Claim::new("fresh").size("64Mi"));
    space.run(&Pod::new("fresh").on("node1").mounts("fresh"));
    space.exec("fresh", "echo 1 > /fresh/file");
    elsewhere.goes_on();

    crashed.returns();
    until("the driver is registered", || if node_ready("node2") { Ok(()) } else { Err("not yet".to_owned()) });
    until("it is heard", || {
        let said = driver_exec(&["pools"]).unwrap_or_else(|said| said);
        if said.contains("unreachable") { Err(said) } else { Ok(()) }
    });
    // Its pod was evicted or still runs; either way the data is there.
    space.gone("pod", "there");
    space.run(&Pod::new("there").on("node2").mounts("there"));
    assert_eq!(space.exec("there", "cat /there/file").trim(), "kept");
    elsewhere.goes_on();
    space.end();
}
