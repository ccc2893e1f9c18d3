//! The calls this driver answers, by name, and what an error in each of them must not mean.

/// What a call does; decides what its errors may be answered as ([`super::status`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Makes a volume or snapshot that the CO forgets at a final code.
    Creating,
    /// Attaches, mounts or grows: at a final code the CO believes that nothing is left to take back.
    Bringing,
    /// Takes away: the CO asks again until it is done.
    Taking,
    /// Asks; nothing changes.
    Asking,
    /// Asks whether this process can serve at all.
    Probing,
}

/// Which side of CSI a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Service {
    /// On every socket.
    Identity,
    /// Where volumes are made and attached.
    Controller,
    /// Where they are mounted.
    Node,
}

macro_rules! rpcs {
    ($($service:ident / $name:ident : $class:ident),* $(,)?) => {
        /// A call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Rpc {
            $($name,)*
            /// A question of people about the whole cluster (proto/registry/v1); its service says who may ask.
            Operators,
            /// Any other path: answered UNIMPLEMENTED.
            Unimplemented,
        }

        impl Rpc {
            /// All that are answered.
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
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    Self::Operators => "operators",
                    Self::Unimplemented => "unimplemented",
                }
            }

            /// What it does.
            pub(crate) fn class(self) -> Class {
                match self {
                    $(Self::$name => Class::$class,)*
                    Self::Operators | Self::Unimplemented => Class::Asking,
                }
            }

            /// Whose it is.
            pub(crate) fn service(self) -> Service {
                match self {
                    $(Self::$name => Service::$service,)*
                    Self::Operators | Self::Unimplemented => Service::Identity,
                }
            }
        }
    };
}

rpcs! {
    Identity/GetPluginInfo: Asking,
    Identity/GetPluginCapabilities: Asking,
    Identity/Probe: Probing,
    Controller/CreateVolume: Creating,
    Controller/DeleteVolume: Taking,
    Controller/ControllerPublishVolume: Bringing,
    Controller/ControllerUnpublishVolume: Taking,
    Controller/ValidateVolumeCapabilities: Asking,
    Controller/ListVolumes: Asking,
    Controller/GetCapacity: Asking,
    Controller/ControllerGetCapabilities: Asking,
    Controller/CreateSnapshot: Creating,
    Controller/DeleteSnapshot: Taking,
    Controller/ListSnapshots: Asking,
    Controller/GetSnapshot: Asking,
    Controller/ControllerExpandVolume: Bringing,
    Controller/ControllerGetVolume: Asking,
    Node/NodeStageVolume: Bringing,
    Node/NodeUnstageVolume: Taking,
    Node/NodePublishVolume: Bringing,
    Node/NodeUnpublishVolume: Taking,
    Node/NodeGetVolumeStats: Asking,
    Node/NodeExpandVolume: Bringing,
    Node/NodeGetCapabilities: Asking,
    Node/NodeGetInfo: Asking,
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
