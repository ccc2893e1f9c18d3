//! The contract of [`Pool`](super::Pool), run against real pools. What is expected follows from `abilities()`.

use super::scratch::{Ground, Scratch};
use super::{Fill, Geometry, Object};
use crate::types::{Bytes, ObjectUuid, Provisioning};

#[test]
fn smoke() {
    for ground in [Ground::Xfs, Ground::XfsWithoutReflink, Ground::Ext4, Ground::Btrfs] {
        let scratch = Scratch::new(ground);
        let pool = scratch.pool();
        eprintln!("{ground:?} {:?} {:?}", pool.abilities(), pool.room().unwrap());
        let uuid = ObjectUuid::of_volume("a");
        let geometry =
            Geometry { size: Bytes::mib(16), block_size: 4096, provisioning: pool.abilities().default_provisioning };
        pool.create(Object::Volume(uuid), &geometry, Fill::Blank, b"{}").unwrap();
        let device = pool.activate(uuid, &geometry).unwrap();
        for status in scratch.os().loops().unwrap() {
            eprintln!("{status:?}");
        }
        assert_eq!(pool.activate(uuid, &geometry).unwrap(), device);
        eprintln!("{:?}", pool.deactivate(uuid).unwrap());
        eprintln!("{:?}", pool.strays().unwrap());
        pool.remove(Object::Volume(uuid)).unwrap();
    }
    let _ = Provisioning::Thin;
}
