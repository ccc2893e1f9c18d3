//! How messages name a volume or snapshot: in one way everywhere, with its full handle and its claim.

use std::fmt;

use super::{ClaimName, Error, ObjectUuid, SnapshotId, VolumeId};

/// A volume or snapshot as messages name it: what it is, its handle as the PersistentVolume has it, and its claim where
/// that is known: `volume hf1_... (claim db/data)`.
#[derive(Clone, Debug)]
pub struct Named {
    noun: &'static str,
    /// The handle without its birth node.
    short: String,
    uuid: ObjectUuid,
    shown: Shown,
    claim: Option<ClaimName>,
}

#[derive(Clone, Debug)]
enum Shown {
    /// The full handle.
    Handle(String),
    /// The name in the orchestrator, of a volume that may not exist yet and so has no handle.
    Name(String),
}

impl Named {
    /// A volume.
    #[must_use]
    pub fn volume(id: VolumeId, claim: Option<ClaimName>) -> Self {
        let short = id.without_birth_node().to_string();
        Self { noun: "volume", short, uuid: id.uuid, shown: Shown::Handle(id.to_string()), claim }
    }

    /// A snapshot. Its VolumeSnapshot is not known to the driver.
    #[must_use]
    pub fn snapshot(id: SnapshotId) -> Self {
        let short = id.without_birth_node().to_string();
        Self { noun: "snapshot", short, uuid: id.uuid, shown: Shown::Handle(id.to_string()), claim: None }
    }

    /// A volume that is being created. Where it exists already, messages keep its handle.
    #[must_use]
    pub fn new_volume(id: VolumeId, name: &str, claim: Option<ClaimName>) -> Self {
        Self { shown: Shown::Name(format!("{name:?}")), ..Self::volume(id, claim) }
    }

    /// A snapshot that is being created.
    #[must_use]
    pub fn new_snapshot(id: SnapshotId, name: &str) -> Self {
        Self { shown: Shown::Name(format!("{name:?}")), ..Self::snapshot(id) }
    }

    /// The same error, with the object in its message as this type names it. A message that does not name the object
    /// gets the name in front.
    #[must_use]
    pub fn in_error(&self, error: Error) -> Error {
        let named = match error.reworded(|message| self.in_message(message)) {
            Ok(reworded) => return reworded,
            Err(error) => error,
        };
        let is_named = match &self.shown {
            Shown::Handle(handle) => named.chain().contains(handle.as_str()),
            // The message of a create names its volume, or is about the request or the pool.
            Shown::Name(_) => true,
        };
        if is_named { named } else { named.about(&self.to_string()) }
    }

    /// A text with the object named as this type names it, wherever it is named.
    #[must_use]
    pub fn in_text(&self, text: &str) -> String {
        self.in_message(text).unwrap_or_else(|| text.to_owned())
    }

    /// The message with every form of the object's name replaced; `None` if it has none.
    fn in_message(&self, message: &str) -> Option<String> {
        let mut reworded = String::with_capacity(message.len() + 128);
        let mut rest = message;
        let mut found = false;
        while let Some((before, form, after)) = self.next_form(rest) {
            reworded.push_str(before);
            match &self.shown {
                // It exists: its handle is more than its name.
                Shown::Name(_) if form.len() > self.short.len() => reworded.push_str(form),
                Shown::Handle(shown) | Shown::Name(shown) => reworded.push_str(shown),
            }
            if let Some(claim) = self.claim.as_ref().filter(|_| !found && !after.starts_with(" (claim ")) {
                reworded.push_str(&format!(" (claim {claim})"));
            }
            found = true;
            rest = after;
        }
        reworded.push_str(rest);
        found.then_some(reworded)
    }

    /// The next form of the name: the handle, with or without a birth node, or the uuid behind the noun.
    fn next_form<'m>(&self, message: &'m str) -> Option<(&'m str, &'m str, &'m str)> {
        let handle =
            message.find(&self.short).map(|at| (at, self.handle_length(message.get(at..).unwrap_or_default())));
        let uuid = self.uuid.to_string();
        let bare = format!("{} {uuid}", self.noun);
        let bare = message.find(&bare).map(|at| (at + self.noun.len() + 1, uuid.len()));
        let (at, length) = handle.into_iter().chain(bare).min()?;
        let (before, rest) = message.split_at_checked(at)?;
        let (form, after) = rest.split_at_checked(length)?;
        Some((before, form, after))
    }

    /// The length of the handle at the start of a text, with its birth node.
    fn handle_length(&self, text: &str) -> usize {
        let birth = text.get(self.short.len()..).unwrap_or_default();
        if !birth.starts_with('_') {
            return self.short.len();
        }
        let in_node = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let node = birth.split(|c| !in_node(c)).next().unwrap_or_default();
        // A node's name ends with a letter or digit: a full stop behind it ends the sentence.
        let node = node.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        self.short.len() + node.len()
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Shown::Handle(shown) | Shown::Name(shown)) = &self.shown;
        write!(f, "{} {shown}", self.noun)?;
        match &self.claim {
            Some(claim) => write!(f, " (claim {claim})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Kind;

    const SHORT: &str = "hf1_00112233445566aa_0123456789abcdef0123456789abcdef";
    const FULL: &str = "hf1_00112233445566aa_0123456789abcdef0123456789abcdef_node-1.a";

    fn said(named: &Named, message: &str) -> String {
        named.in_error(Error::new(Kind::Busy, message.to_owned()).because("a cause")).chain()
    }

    fn claim() -> Option<ClaimName> {
        "db/data".parse().ok()
    }

    #[test]
    fn every_form_of_a_name_becomes_the_handle_with_the_claim_once() {
        let named = Named::volume(FULL.parse().unwrap(), claim());
        let shown = format!("volume {FULL} (claim db/data)");
        assert_eq!(named.to_string(), shown);
        for form in [FULL, SHORT, "0123456789abcdef0123456789abcdef", &format!("{SHORT}_other")] {
            assert_eq!(said(&named, &format!("volume {form}: wait")), format!("{shown}: wait: a cause"));
            assert_eq!(
                said(&named, &format!("the device of volume {form}.")),
                format!("the device of {shown}.: a cause")
            );
        }
        assert_eq!(said(&named, "open /dev/loop1"), format!("{shown}: open /dev/loop1: a cause"));
        assert_eq!(said(&named, &format!("{shown}: wait")), format!("{shown}: wait: a cause"));
        let twice = format!("volume {SHORT} and again {SHORT}");
        assert_eq!(said(&named, &twice), format!("{shown} and again {FULL}: a cause"));
        let other = format!("volume {} is here", FULL.replace("0123", "3210"));
        assert_eq!(said(&named, &other), format!("{shown}: {other}: a cause"));
        let path = "volumes/0123456789abcdef0123456789abcdef/data is gone";
        assert_eq!(said(&named, path), format!("{shown}: {path}: a cause"));
    }

    #[test]
    fn without_a_claim_an_error_still_has_the_handle() {
        let named = Named::volume(FULL.parse().unwrap(), None);
        assert_eq!(said(&named, "mkfs failed"), format!("volume {FULL}: mkfs failed: a cause"));
        assert_eq!(said(&named, &format!("volume {FULL} is busy")), format!("volume {FULL} is busy: a cause"));
        let in_cause = Error::new(Kind::Internal, "cannot stage").because(format!("volume {FULL} is busy"));
        assert_eq!(named.in_error(in_cause).chain(), format!("cannot stage: volume {FULL} is busy"));
        let snapshot = format!("hfs1_00112233445566aa_{}_node-1", ObjectUuid::of_snapshot("s"));
        let named = Named::snapshot(snapshot.parse().unwrap());
        let bare = format!("snapshot {} is gone", ObjectUuid::of_snapshot("s"));
        assert_eq!(said(&named, &bare), format!("snapshot {snapshot} is gone: a cause"));
    }

    #[test]
    fn a_volume_that_may_not_exist_has_its_name() {
        let named = Named::new_volume(SHORT.parse().unwrap(), "pvc-1", claim());
        let shown = "volume \"pvc-1\" (claim db/data)";
        assert_eq!(said(&named, &format!("volume {SHORT} needs 1 MiB")), format!("{shown} needs 1 MiB: a cause"));
        let bare = "volume 0123456789abcdef0123456789abcdef needs 1 MiB";
        assert_eq!(said(&named, bare), format!("{shown} needs 1 MiB: a cause"));
        assert_eq!(said(&named, "there is no pool p"), "there is no pool p: a cause");
        let exists = format!("volume \"pvc-1\" exists already as {FULL}");
        assert_eq!(said(&named, &exists), format!("{exists} (claim db/data): a cause"));
    }
}
