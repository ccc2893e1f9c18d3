//! mountinfo: a table that parses answers every question, in finite time and without losing a line.

use std::path::Path;

use holdfast::os::MountTable;

/// Parses, then asks everything of every entry.
pub fn run(data: &[u8]) {
    let Ok(table) = MountTable::parse(data) else { return };
    let lines = data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!(table.entries().len(), lines, "a line was lost");
    for entry in table.entries().iter().take(64) {
        assert!(table.depth(&entry.mount_point) > 0 && table.at(&entry.mount_point).is_some());
        assert!(table.of_device(entry.device).any(|other| other == entry));
        let (_, inside) = table.covers(entry);
        drop((inside, entry.read_only(), entry.super_read_only(), table.seen(&entry.mount_point)));
    }
    assert!(table.at(Path::new("/no such place")).is_none_or(|_| lines > 0));
}
