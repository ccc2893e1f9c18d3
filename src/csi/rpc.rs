//! The calls that this driver answers, by name, and the meanings that an error of each must not have.

/// What a call does; decides the codes of its errors (`csi::status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Creates a volume or snapshot, which the CO forgets after a final code.
    Create,
    /// Attaches, mounts or expands: after a final code the CO believes that nothing is left to undo.
    Attach,
    /// Deletes, detaches or unmounts: the CO retries until it succeeds.
    Release,
    /// Reads; changes nothing.
    Query,
    /// Checks whether this process can serve.
    Probe,
}

/// The CSI service of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// On every socket.
    Identity,
    /// Volumes are created and attached here.
    Controller,
    /// Volumes are mounted here.
    Node,
}

macro_rules! rpcs {
    ($($service:ident / $name:ident : $class:ident),* $(,)?) => {
        /// A call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rpc {
            $(#[doc = concat!("`", stringify!($name), "`.")] $name,)*
            /// A query of operators about the whole cluster (proto/registry/v1); its service checks who may call it.
            Operators,
            /// Any other path: answered with UNIMPLEMENTED.
            Unimplemented,
        }

        impl Rpc {
            /// All calls that are answered.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            /// The call of an HTTP path such as `/csi.v1.Node/NodeGetInfo`.
            pub(crate) fn from_path(path: &str) -> Self {
                match path {
                    $(concat!("/csi.v1.", stringify!($service), "/", stringify!($name)) => Self::$name,)*
                    _ if path.starts_with("/holdfast.registry.v1.Registry/") => Self::Operators,
                    _ => Self::Unimplemented,
                }
            }

            /// Its name in the specification.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    Self::Operators => "operators",
                    Self::Unimplemented => "unimplemented",
                }
            }

            /// Its class.
            #[must_use]
            pub fn class(self) -> Class {
                match self {
                    $(Self::$name => Class::$class,)*
                    Self::Operators | Self::Unimplemented => Class::Query,
                }
            }

            /// The service it belongs to.
            #[must_use]
            pub fn service(self) -> Service {
                match self {
                    $(Self::$name => Service::$service,)*
                    Self::Operators | Self::Unimplemented => Service::Identity,
                }
            }
        }
    };
}

rpcs! {
    Identity/GetPluginInfo: Query,
    Identity/GetPluginCapabilities: Query,
    Identity/Probe: Probe,
    Controller/CreateVolume: Create,
    Controller/DeleteVolume: Release,
    Controller/ControllerPublishVolume: Attach,
    Controller/ControllerUnpublishVolume: Release,
    Controller/ValidateVolumeCapabilities: Query,
    Controller/ListVolumes: Query,
    Controller/GetCapacity: Query,
    Controller/ControllerGetCapabilities: Query,
    Controller/CreateSnapshot: Create,
    Controller/DeleteSnapshot: Release,
    Controller/ListSnapshots: Query,
    Controller/GetSnapshot: Query,
    Controller/ControllerExpandVolume: Attach,
    Controller/ControllerGetVolume: Query,
    Node/NodeStageVolume: Attach,
    Node/NodeUnstageVolume: Release,
    Node/NodePublishVolume: Attach,
    Node/NodeUnpublishVolume: Release,
    Node/NodeGetVolumeStats: Query,
    Node/NodeGetVolumeHealth: Query,
    Node/NodeExpandVolume: Attach,
    Node/NodeGetCapabilities: Query,
    Node/NodeGetInfo: Query,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_finds_its_call_and_nothing_else_does() {
        for rpc in Rpc::ALL {
            assert_eq!(Rpc::from_path(&format!("/csi.v1.{:?}/{}", rpc.service(), rpc.name())), *rpc);
        }
        for path in ["", "/csi.v1.Controller/ControllerModifyVolume", "/csi.v1.Node/Probe", "/csi.v0.Identity/Probe"] {
            assert_eq!(Rpc::from_path(path), Rpc::Unimplemented, "{path}");
        }
    }
}
