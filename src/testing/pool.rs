//! Shortcuts to a pool. They panic where a test would.

use crate::pool::{LocalDevices, Object, Pool, Version};
use crate::types::Result;

impl dyn Pool + '_ {
    /// The devices of a pool that has them.
    #[must_use]
    pub fn local(&self) -> &dyn LocalDevices {
        self.devices().unwrap()
    }

    /// The text of an object's record.
    #[must_use]
    pub fn text(&self, object: Object) -> Vec<u8> {
        self.read_record(object).unwrap().unwrap().text
    }

    /// Replaces an object's record.
    ///
    /// # Errors
    /// Those of [`Pool::write_record`].
    pub fn write(&self, object: Object, record: &[u8]) -> Result<()> {
        let before = self.read_record(object).ok().flatten().map_or(Version::ONE_WRITER, |stored| stored.version);
        self.write_record(object, record, before).map(drop)
    }
}
