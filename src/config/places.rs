//! Which directories may contain each other. A pool's directory holds only the pool's files, and no pool is inside
//! kubelet's directory, because kubelet removes files that it does not know.

use std::path::{Path, PathBuf};

use super::{PoolConfig, refuse};
use crate::kubelet::Registration;
use crate::types::Result;

/// A path that the daemon writes or receives, and its name in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    name: String,
    path: PathBuf,
    /// Whether a pool inside it is rejected too.
    shuts_out_pools: bool,
}

impl Place {
    /// A file or directory that must not be inside a pool; a pool may be beside or below it.
    #[must_use]
    pub fn outside_pools(name: &str, path: &Path) -> Self {
        Self { name: name.to_owned(), path: path.to_owned(), shuts_out_pools: false }
    }

    /// The directories of kubelet: the one it watches, and its root directory if that is known.
    #[must_use]
    pub fn of_kubelet(registration: &Registration) -> Vec<Self> {
        let of =
            |path: &Path| Self { name: "kubelet's directory".to_owned(), path: path.to_owned(), shuts_out_pools: true };
        let root = registration.kubelet_root();
        root.iter().map(|root| of(root)).chain([of(registration.directory())]).collect()
    }
}

/// Checks that pools and places do not overlap. `resolve` follows symbolic links as far as a path exists.
///
/// # Errors
/// `InvalidArgument` with the two that overlap.
pub fn apart(pools: &[PoolConfig], places: &[Place], resolve: impl Fn(&Path) -> PathBuf) -> Result<()> {
    let roots: Vec<(String, PathBuf)> =
        pools.iter().map(|pool| (format!("pool {}", pool.spec), resolve(pool.root()))).collect();
    let mut rest = roots.as_slice();
    while let Some(((name, root), others)) = rest.split_first() {
        for (other_name, other) in others {
            if root.starts_with(other) || other.starts_with(root) {
                return Err(refuse(format!(
                    "{name} and {other_name} overlap: one directory contains the other{}; use separate directories",
                    followed(&[root, other], pools)
                )));
            }
        }
        rest = others;
    }
    for (name, root) in &roots {
        for place in places {
            let path = resolve(&place.path);
            if path.starts_with(root) || (place.shuts_out_pools && root.starts_with(&path)) {
                return Err(refuse(format!(
                    "{} ({}) and {name} overlap: a pool's directory may hold only the pool's files; move one of them, for example the pool to /var/lib/holdfast/pool",
                    place.name,
                    place.path.display()
                )));
            }
        }
    }
    Ok(())
}

/// The resolved path, if it differs from the given one.
fn followed(resolved: &[&PathBuf], pools: &[PoolConfig]) -> String {
    let said = |path: &&&PathBuf| pools.iter().any(|pool| pool.root() == path.as_path());
    match resolved.iter().find(|path| !said(path)) {
        Some(path) => format!(" (through a symbolic link, in {})", path.display()),
        None => String::new(),
    }
}

/// The path with every symbolic link followed as far as it exists; the rest is unchanged.
#[must_use]
pub fn resolved(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|above| Some((std::fs::canonicalize(above).ok()?, path.strip_prefix(above).ok()?)))
        .map_or_else(|| path.to_owned(), |(real, rest)| real.components().chain(rest.components()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::SpaceLimits;

    fn pool(text: &str) -> PoolConfig {
        PoolConfig { spec: text.parse().unwrap(), limits: SpaceLimits::default() }
    }

    fn said(pools: &[&str], places: &[Place]) -> Option<String> {
        let pools: Vec<_> = pools.iter().map(|text| pool(text)).collect();
        apart(&pools, places, Path::to_owned).err().map(|error| error.to_string())
    }

    fn kubelet(directory: &str) -> Vec<Place> {
        Place::of_kubelet(&Registration::within(Path::new(directory), Path::new("/run/h.sock"), "/run/h.sock"))
    }

    #[test]
    fn nothing_but_the_pool_s_own_files_is_in_a_pool() {
        let state = [Place::outside_pools("the state directory", Path::new("/var/lib/holdfast"))];
        assert_eq!(said(&["a=file:/var/lib/holdfast/pool", "b=file:/b"], &state), None);
        for root in ["/var/lib/holdfast", "/var/lib", "/var"] {
            let said = said(&[&format!("a=file:{root}")], &state).unwrap();
            assert!(
                said.contains("state directory") && said.contains(root) && said.contains("holdfast/pool"),
                "{said}"
            );
        }
        assert_eq!(said(&["a=file:/var/lib/holdfast-pool"], &state), None, "a name that begins alike is another");
        let socket = [Place::outside_pools("the socket", Path::new("/pool/run/csi.sock"))];
        assert!(said(&["a=file:/pool"], &socket).is_some() && said(&["a=file:/pool/run/p"], &socket).is_none());
    }

    #[test]
    fn no_pool_is_in_kubelet_s_directory_and_it_in_none() {
        let usual = kubelet("/var/lib/kubelet/plugins_registry");
        for root in ["/var/lib/kubelet", "/var/lib/kubelet/pods/p", "/var/lib/kubelet/plugins_registry", "/var/lib"] {
            assert!(said(&[&format!("a=file:{root}")], &usual).is_some(), "{root}");
        }
        assert_eq!(said(&["a=file:/var/lib/kubelet2", "b=file:/var/lib/holdfast/pool"], &usual), None);
        assert_eq!(said(&["a=file:/x/pool"], &kubelet("/x/watched")), None, "its root is not known then");
        let endpoint = "/data/kubelet/plugins/csi.holdfast.storage/csi.sock";
        let inside = Registration::within(Path::new("/registration"), Path::new("/csi/csi.sock"), endpoint);
        assert!(
            said(&["a=file:/data/kubelet/pool"], &Place::of_kubelet(&inside)).is_some(),
            "as in the chart's container"
        );
        assert_eq!(said(&["a=file:/pool"], &kubelet("/plugins_registry")), None);
    }

    #[test]
    fn links_are_followed_as_far_as_they_lead() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| std::fs::canonicalize(scratch.path()).unwrap().join(name);
        std::fs::create_dir_all(at("real/deep")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        assert_eq!(resolved(&at("link/deep/not/yet")), at("real/deep/not/yet"));
        assert_eq!(resolved(&at("none/at/all")), at("none/at/all"));
        let pools =
            [pool(&format!("a=file:{}", at("real").display())), pool(&format!("b=file:{}", at("link/deep").display()))];
        let said = apart(&pools, &[], resolved).unwrap_err().to_string();
        assert!(said.contains("symbolic link") && said.contains("real/deep"), "{said}");
        let state = [Place::outside_pools("the state directory", &at("link/state"))];
        assert!(apart(&pools[..1], &state, resolved).is_err());
    }
}
