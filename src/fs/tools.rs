//! The programs that volumes of a node need. A daemon searches for them when it starts, so that a missing one is known
//! before the first volume needs it.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::os::{Os, Output, Program};
use crate::types::{FsType, Result};

use super::{tool, xfs};

/// For the version of a tool.
const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// A program of e2fsprogs or xfsprogs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    name: &'static str,
    /// Arguments with which it prints its version and does nothing else.
    version: &'static [&'static str],
    fs: FsType,
    /// What a node cannot do without it.
    purpose: &'static str,
}

const TOOLS: [Tool; 5] = [
    Tool { name: "mkfs.ext4", version: &["-V"], fs: FsType::Ext4, purpose: "format new volumes" },
    Tool { name: "e2fsck", version: &["-V"], fs: FsType::Ext4, purpose: "check, repair and grow volumes" },
    Tool { name: "resize2fs", version: &[], fs: FsType::Ext4, purpose: "grow volumes" },
    Tool { name: "mkfs.xfs", version: &["-V"], fs: FsType::Xfs, purpose: "format new volumes" },
    Tool { name: "xfs_repair", version: &["-V"], fs: FsType::Xfs, purpose: "check volumes" },
];

/// A missing tool. Its text names the package and the StorageClasses that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingTool(Tool);

impl MissingTool {
    /// The problem without the next step.
    #[must_use]
    pub fn problem(self) -> String {
        let Self(Tool { name, fs, purpose, .. }) = self;
        let default = if fs == FsType::Ext4 { ", the default" } else { "" };
        format!(
            "{name} is missing: this node cannot {purpose} of StorageClasses with csi.storage.k8s.io/fstype {fs}{default}"
        )
    }

    /// The next step.
    #[must_use]
    pub fn remedy(self) -> String {
        let package = match self.0.fs {
            FsType::Ext4 => "e2fsprogs",
            FsType::Xfs => "xfsprogs",
        };
        format!("install the package {package} where the driver runs; a restart is not necessary")
    }
}

impl fmt::Display for MissingTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem(), self.remedy())
    }
}

/// The tools that are missing now. Starts no program.
#[must_use]
pub fn missing() -> Vec<MissingTool> {
    missing_of(&TOOLS)
}

fn missing_of(tools: &[Tool]) -> Vec<MissingTool> {
    tools.iter().filter(|tool| program(**tool).is_err()).copied().map(MissingTool).collect()
}

/// Each tool that is there, with its version. Blocks while the tools run.
///
/// # Errors
/// For one tool: it does not run, or it is too old.
pub fn versions(os: &Os) -> Vec<Result<String>> {
    TOOLS.iter().filter_map(|tool| Some(version(os, *tool, &program(*tool).ok()?))).collect()
}

fn version(os: &Os, tool: Tool, program: &Program) -> Result<String> {
    let target = Path::new("its version");
    if tool.name == "mkfs.xfs" {
        xfs::version(os, target)?;
    }
    let output = tool::run(os, tool.name, target, program)?;
    Ok(number(&output).map_or_else(|| tool.name.to_owned(), |number| format!("{} {number}", tool.name)))
}

/// The first word of the output that begins with a digit, as in "mke2fs 1.47.0 (5-Feb-2023)" and "mkfs.xfs version 6.1.0".
fn number(output: &Output) -> Option<&str> {
    let mut words = output.stdout.split_whitespace().chain(output.stderr.split_whitespace());
    words.find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
}

fn program(tool: Tool) -> Result<Program> {
    let program = tool::find(tool.name, Path::new("its version"), VERSION_LIMIT)?;
    Ok(program.args(tool.version.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every machine that runs the tests has them; scripts/prepare installs them.
    #[test]
    fn each_tool_is_found_with_its_version() {
        assert_eq!(missing(), []);
        let versions = versions(&Os::new());
        assert_eq!(versions.len(), TOOLS.len());
        for (tool, version) in TOOLS.iter().zip(versions) {
            let version = version.unwrap();
            let number = version.strip_prefix(tool.name).unwrap().trim();
            assert!(number.contains('.'), "{version}");
        }
    }

    #[test]
    fn a_missing_tool_is_reported_with_its_package_and_the_classes_that_need_it() {
        let [ext4, .., xfs] = TOOLS;
        let absent = |tool| Tool { name: "mkfs.absent", ..tool };
        let missing = missing_of(&[ext4, absent(ext4), xfs, absent(xfs)]);
        let texts: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let [first, second] = texts.try_into().unwrap();
        for part in ["mkfs.absent is missing", "format new volumes", "fstype ext4, the default", "package e2fsprogs"] {
            assert!(first.contains(part), "{first}");
        }
        for part in ["mkfs.absent is missing", "check volumes", "fstype xfs;", "package xfsprogs"] {
            assert!(second.contains(part), "{second}");
        }
    }
}
