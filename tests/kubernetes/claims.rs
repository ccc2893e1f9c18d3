//! A claim's whole lifecycle.

use crate::harness::{Claim, Pod, Space, explained, get, text, until, volume_of};

const MIB: u64 = 1 << 20;

#[test]
fn a_claim_waits_for_its_pod_and_becomes_a_volume_of_its_size_and_name() {
    let space = Space::new("claim-life");
    space.claim(&Claim::new("data").size("300Mi"));
    space.event("data", &["waiting for first consumer"]);
    explained(&space.name, "data", &["first consumer", "start the pod"]);
    assert_eq!(text(&get("pvc", &space.name, "data").unwrap(), "/status/phase"), "Pending");

    space.run(&Pod::new("user").mounts("data"));
    let pv = space.volume_name("data");
    let volume = volume_of(&pv).expect("the pool has it under the name of the PersistentVolume");
    assert_eq!((volume.size, volume.node.clone()), (300 * MIB, space.node_of("user")));
    let object = get("pv", "default", &pv).unwrap();
    assert_eq!(text(&object, "/spec/csi/volumeHandle"), volume.handle);
    assert_eq!(text(&object, "/spec/capacity/storage"), "300Mi");
    space.exec("user", "echo 1 > /data/file && sync /data/file && df -B1 --output=size /data | tail -1");

    // While a pod uses it, a deleted claim remains, and so does the volume.
    crate::harness::delete("pvc", &space.name, "data");
    explained(&space.name, "data", &["pod user to be deleted", "still used", "delete pod user"]);
    space.exec("user", "grep -qx 1 /data/file");
    assert!(volume_of(&pv).is_some());
    space.end_pod("user");
    until("the volume is gone", || if volume_of(&pv).is_none() { Ok(()) } else { Err("it is there".to_owned()) });
    space.end();
}

const START: &str = "
export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
install -d -o postgres -m 700 /data/db
# The claim is of one pod at a time here: whoever wrote this is gone.
rm -f /data/db/postmaster.pid
[ -s /data/db/PG_VERSION ] || su postgres -c \"$(command -v initdb) -D /data/db --auth=trust\" >/dev/null
su postgres -c \"$(command -v postgres) -D /data/db -k /tmp\" &
";

/// The answer to a statement, once the database answers.
fn sql(space: &Space, pod: &str, statement: &str) -> String {
    let script = format!("psql -h /tmp -U postgres -v ON_ERROR_STOP=1 -Atc \"{statement}\"");
    until("the database answers", || crate::harness::exec(&space.name, pod, &script)).trim().to_owned()
}

#[test]
fn a_database_has_the_same_rows_in_the_next_pod() {
    let space = Space::new("claim-database");
    space.claim(&Claim::new("data").size("512Mi").class("holdfast-xfs"));
    let pod = Pod::new("db").mounts("data").runs(START);
    space.run(&pod);
    sql(&space, "db", "create table t as select i, md5(i::text) from generate_series(1, 20000) i");
    let before = sql(&space, "db", "select count(*), md5(string_agg(md5, '' order by i)) from t");
    assert!(before.starts_with("20000|"), "{before}");
    // Without a graceful shutdown: its log is replayed.
    space.exec("db", "for exe in /proc/[0-9]*/exe; do case $(readlink $exe || :) in */postgres) p=${exe#/proc/}; kill -9 ${p%/exe} || :;; esac; done");
    space.end_pod("db");

    space.run(&pod);
    assert_eq!(sql(&space, "db", "select count(*), md5(string_agg(md5, '' order by i)) from t"), before);
    space.end();
}
