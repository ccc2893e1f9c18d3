//! What network volumes need from this machine, besides an answer of [`super::Export::support`]. Reads only.

use std::path::Path;

use crate::os::{Os, Process};
use crate::types::{OsContext, Result};

const MULTIPATH: &str = "/sys/module/nvme_core/parameters/multipath";
const PANIC: &str = "/proc/sys/kernel/hung_task_panic";
const PATIENCE: &str = "/proc/sys/kernel/hung_task_timeout_secs";

/// Something of this machine that keeps network volumes from working, or makes them a danger to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortcoming {
    /// What it is, and what follows.
    pub what: String,
    /// Where it was found.
    pub place: &'static str,
    /// The next step.
    pub remedy: &'static str,
}

/// The kernel modules that are not loaded.
///
/// # Errors
/// `Internal` when sysfs cannot be read.
pub fn missing_modules(os: &Os) -> Result<Vec<Shortcoming>> {
    let mut missing = Vec::new();
    for (place, what, remedy) in [
        (
            "/sys/module/nvmet_tcp",
            "the kernel modules nvmet and nvmet-tcp are not loaded: no other node can use the network volumes of this node",
            "run `modprobe nvmet-tcp` on the node, load it at boot (/etc/modules-load.d), and restart the driver",
        ),
        (
            "/sys/module/nvme_tcp",
            "the kernel module nvme-tcp is not loaded: no pod on this node can use a network volume of another node",
            "run `modprobe nvme-tcp` on the node, load it at boot (/etc/modules-load.d), and restart the driver",
        ),
    ] {
        if os.identity(Path::new(place)).at(|| format!("stat {place}"))?.is_none() {
            missing.push(Shortcoming { what: what.to_owned(), place, remedy });
        }
    }
    Ok(missing)
}

/// The settings of this machine that network volumes should not meet.
///
/// # Errors
/// `Internal` when a setting cannot be read.
pub fn unfit_settings(os: &Os) -> Result<Vec<Shortcoming>> {
    let read = |path: &str| os.kernel_setting(Path::new(path)).at(|| format!("read {path}"));
    let settings = Settings {
        multipath: match os.identity(Path::new("/sys/module/nvme_core")).at(|| "stat /sys/module/nvme_core")? {
            Some(_) => Multipath::Is(read(MULTIPATH)?),
            None => Multipath::NotLoaded,
        },
        hung_task_panic: read(PANIC)?,
        hung_task_timeout: read(PATIENCE)?,
        multipathd: os.process_called("multipathd"),
    };
    Ok(settings.judged())
}

/// What was read.
#[derive(Clone, Debug)]
struct Settings {
    multipath: Multipath,
    hung_task_panic: Option<String>,
    hung_task_timeout: Option<String>,
    multipathd: Option<Process>,
}

/// Native multipath of the NVMe host driver.
#[derive(Clone, Debug)]
enum Multipath {
    /// The driver is not loaded.
    NotLoaded,
    /// The value of its parameter; none if the kernel is built without it.
    Is(Option<String>),
}

impl Settings {
    fn judged(&self) -> Vec<Shortcoming> {
        let mut found = Vec::new();
        let mut unfit = |what: String, place, remedy| found.push(Shortcoming { what, place, remedy });
        match &self.multipath {
            Multipath::NotLoaded => {}
            Multipath::Is(Some(value)) if value == "Y" => {}
            Multipath::Is(Some(value)) => unfit(
                format!(
                    "native NVMe multipath is off (nvme_core.multipath={value}), and network volumes of other nodes need it to survive a lost connection"
                ),
                MULTIPATH,
                "remove `nvme_core.multipath=N` from the kernel's command line and `options nvme_core multipath=N` from /etc/modprobe.d, and restart the node",
            ),
            Multipath::Is(None) => unfit(
                "this kernel has no native NVMe multipath, and network volumes of other nodes need it to survive a lost connection".to_owned(),
                MULTIPATH,
                "start a kernel with CONFIG_NVME_MULTIPATH",
            ),
        }
        let is_set = |value: &Option<String>| value.as_ref().is_some_and(|value| value != "0");
        if is_set(&self.hung_task_panic) && is_set(&self.hung_task_timeout) {
            unfit(
                format!(
                    "kernel.hung_task_panic is {}: this node panics when a process waits longer than {} s for a network volume, for example while its home node restarts",
                    self.hung_task_panic.as_deref().unwrap_or_default(),
                    self.hung_task_timeout.as_deref().unwrap_or_default()
                ),
                PANIC,
                "run `sysctl -w kernel.hung_task_panic=0` on the node, and set it in /etc/sysctl.d",
            );
        }
        if let Some(process) = &self.multipathd {
            unfit(
                format!(
                    "multipathd (pid {}) runs on this node and may take the devices of network volumes",
                    process.pid
                ),
                "/etc/multipath.conf",
                "add `blacklist { devnode \"^nvme\" }` there, and run `multipathd reconfigure`",
            );
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> Settings {
        Settings {
            multipath: Multipath::Is(Some("Y".to_owned())),
            hung_task_panic: Some("0".to_owned()),
            hung_task_timeout: Some("120".to_owned()),
            multipathd: None,
        }
    }

    /// The only shortcoming, as one sentence.
    fn said(settings: &Settings) -> String {
        let [found] = settings.judged().try_into().unwrap();
        format!("{} ({}); {}", found.what, found.place, found.remedy)
    }

    #[test]
    fn a_setting_that_network_volumes_should_not_meet_is_named_with_the_next_step() {
        assert_eq!(fit().judged(), []);
        assert_eq!(Settings { multipath: Multipath::NotLoaded, ..fit() }.judged(), []);
        let off = Settings { multipath: Multipath::Is(Some("N".to_owned())), ..fit() };
        assert!(
            said(&off).contains("nvme_core.multipath=N") && said(&off).contains("/etc/modprobe.d"),
            "{}",
            said(&off)
        );
        let without = Settings { multipath: Multipath::Is(None), ..fit() };
        assert!(said(&without).contains("CONFIG_NVME_MULTIPATH"), "{}", said(&without));
        let panics = Settings { hung_task_panic: Some("1".to_owned()), ..fit() };
        assert!(
            said(&panics).contains("longer than 120 s") && said(&panics).contains("sysctl -w"),
            "{}",
            said(&panics)
        );
        // The kernel does not look for such tasks at all.
        let never = Settings { hung_task_timeout: Some("0".to_owned()), ..panics.clone() };
        assert_eq!(never.judged(), []);
        assert_eq!(Settings { hung_task_timeout: None, ..panics }.judged(), []);
        let daemon = Process { pid: 7, command: "multipathd".to_owned() };
        let taken = Settings { multipathd: Some(daemon), ..fit() };
        assert!(said(&taken).contains("pid 7") && said(&taken).contains("^nvme"), "{}", said(&taken));
    }

    #[test]
    fn what_this_machine_has_is_read() {
        let os = Os::new();
        let panics = std::fs::read_to_string(PANIC).is_ok_and(|value| value.trim() != "0");
        let found = unfit_settings(&os).unwrap();
        assert_eq!(found.iter().any(|one| one.place == PANIC), panics, "{found:?}");
        for (path, name) in [("/sys/module/nvmet_tcp", "nvmet-tcp"), ("/sys/module/nvme_tcp", "nvme-tcp")] {
            let is_named =
                missing_modules(&os).unwrap().iter().any(|one| one.remedy.contains(&format!("modprobe {name}`")));
            assert_eq!(is_named, !Path::new(path).exists(), "{path}");
        }
    }
}
