//! Format once: the part of the home node.

use super::*;

both_ways! {
    formatted_once_and_never_again,
    a_foreign_byte_anywhere_forbids_the_format,
    a_written_zero_is_data_too,
    read_only_never_formats_and_raw_stays_raw,
}

fn formatted_once_and_never_again(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    let first = rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap();
    rig.write(&id, 4096, b"half a mkfs");
    let second = rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap();
    assert_ne!(first.planned_uuid, second.planned_uuid);
    assert_eq!(rig.read(&id, 4096, 11), vec![0; 11]);
    assert_eq!(rig.home.end_format(&id, &node(), first.planned_uuid).unwrap_err().kind(), Kind::Precondition);
    rig.home.end_format(&id, &node(), second.planned_uuid).unwrap();
    rig.home.end_format(&id, &node(), second.planned_uuid).unwrap();
    assert_eq!(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err().kind(), Kind::Precondition);
    assert_eq!(rig.home.use_raw(&id, &node()).unwrap_err().kind(), Kind::Precondition);
    rig.home.revoke(&id, None).unwrap();
    let rig = rig.again();
    assert_eq!(
        rig.home.volume(&id).unwrap().format,
        FormatState::Formatted { fs: FsType::Ext4, uuid: second.planned_uuid }
    );
}

fn a_foreign_byte_anywhere_forbids_the_format(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let size = Bytes::mib(32).get();
    for (name, offset) in [("first", 0), ("middle", size / 2 + 513), ("last", size - 1)] {
        let id = rig.create(name, 32).id;
        rig.grant(&id);
        rig.write(&id, offset, b"x");
        let error = rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err();
        assert_eq!(error.kind(), Kind::Precondition, "{}", error.chain());
        assert_eq!(rig.read(&id, offset, 1), b"x");
        assert_eq!(rig.home.volume(&id).unwrap().format, FormatState::Never);
    }
}

fn a_written_zero_is_data_too(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create("zero", 32).id;
    rig.grant(&id);
    rig.write(&id, 1 << 20, &[0; 4096]);
    assert_eq!(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err().kind(), Kind::Precondition);
}

fn read_only_never_formats_and_raw_stays_raw(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create("a", 32).id;
    rig.home.grant(&id, &GrantRequest { read_only: ReadOnly::Yes, ..grant() }).unwrap();
    assert_eq!(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err().kind(), Kind::Precondition);
    let id = rig.create_for_both("b", 32).id;
    rig.home.grant(&id, &GrantRequest { mode: VolumeMode::Block.into(), ..grant() }).unwrap();
    rig.home.use_raw(&id, &node()).unwrap();
    rig.home.use_raw(&id, &node()).unwrap();
    assert_eq!(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err().kind(), Kind::Precondition);
}
