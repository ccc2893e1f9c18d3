//! What must hold in every state.

use stateright::Property;

use super::model::Protocol;
use super::state::{Export, State};

pub(crate) const TWO_WRITERS: &str = "a write of an attachment that is not the record's never lands";
pub(crate) const AFTER_DETACH: &str = "no write lands after its detach was answered OK";
pub(crate) const LOST: &str = "a write whose fsync was acknowledged is neither lost nor overtaken";
pub(crate) const CHANGED: &str = "a mounted volume changes only by writes of its mount";
pub(crate) const ERROR: &str = "an attached client never gets an I/O error";
pub(crate) const NO_DEVICE: &str = "a connection comes with its device";
pub(crate) const HANG: &str = "no call into nvmet waits for the disk";
pub(crate) const FOREIGN: &str = "a client never reaches another volume";
pub(crate) const TIDY: &str = "a volume that is not attached has no export and no S_SYNC";

pub(crate) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(TWO_WRITERS, |_, state: &State| !state.wrong.two_writers),
        Property::always(AFTER_DETACH, |_, state: &State| !state.wrong.after_detach),
        Property::always(LOST, |_, state: &State| state.cached >= state.synced),
        Property::always(CHANGED, |_, state: &State| !state.wrong.changed),
        Property::always(ERROR, |_, state: &State| !state.wrong.error),
        Property::always(NO_DEVICE, |_, state: &State| !state.wrong.no_device),
        Property::always(HANG, |_, state: &State| !(state.disabling && state.submitted())),
        Property::always(FOREIGN, |_, state: &State| !state.wrong.foreign),
        Property::sometimes("a volume is written on its second node", |_, state: &State| {
            state.granted().is_some_and(|grant| grant.node == 1) && state.clients[1].acked > 0
        }),
        Property::always(TIDY, |_, state: &State| {
            state.attachment.is_some() || state.export == Export::default() && !state.sync
        }),
    ]
}
