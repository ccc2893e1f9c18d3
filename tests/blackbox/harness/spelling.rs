//! One spelling of a volume: where the driver names a volume or snapshot, it prints the whole handle, as the
//! PersistentVolume has it.

/// The uuid of handles that tests make up; they have no birth node.
const MADE_UP: &str = "0123456789abcdef0123456789abcdef";

/// The lengths of a pool id and of a uuid in a handle.
const POOL: usize = 16;
const UUID: usize = 32;

/// The messages about a record that cannot be read: the birth node is in it, so only the uuid is known.
const UNREADABLE: [&str; 4] =
    ["the record of ", "cannot read a record", "has no record", "values that this release cannot read"];

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The uuid at a place of a text, and the place behind it.
fn uuid(text: &str, at: usize) -> Option<(&str, usize)> {
    let end = at + UUID;
    let found = text.get(at..end).filter(|uuid| is_hex(uuid))?;
    let follows = text[end..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
    (!follows).then_some((found, end))
}

/// The uuids of handles in a text, and the place behind each.
fn handles(text: &str) -> Vec<(&str, usize)> {
    let of = |form: &'static str| {
        text.match_indices(form).filter_map(move |(at, _)| {
            let pool = at + form.len();
            let end = pool + POOL;
            text.get(pool..end).filter(|pool| is_hex(pool))?;
            text[end..].starts_with('_').then(|| uuid(text, end + 1)).flatten()
        })
    };
    of("hf1_").chain(of("hfs1_")).collect()
}

/// Fails if the driver's output has a handle without its birth node, or only the uuid of an object whose handle it knows.
pub(crate) fn check(output: &str) {
    let line = |at: usize| {
        let start = output[..at].rfind('\n').map_or(0, |end| end + 1);
        output[start..].lines().next().unwrap_or_default()
    };
    let handles = handles(output);
    for (uuid, end) in &handles {
        let is_full = *uuid == MADE_UP || output[*end..].starts_with('_');
        assert!(is_full, "a handle without its birth node: {}", line(*end));
    }
    for prefix in ["volume ", "snapshot ", "volume=", "snapshot=", "object="] {
        let bare = output.match_indices(prefix).filter_map(|(at, _)| uuid(output, at + prefix.len()));
        let nameable = bare.filter(|(_, end)| UNREADABLE.iter().all(|said| !line(*end).contains(said)));
        for (uuid, end) in nameable {
            assert!(handles.iter().all(|(known, _)| *known != uuid), "a uuid instead of a handle: {}", line(end));
        }
    }
}
