//! The pools that `pools`, `volumes` and `doctor` inspect.

use anyhow::{Result, bail};
use clap::Args;
use holdfast::config::{self, PoolConfig};
use holdfast::home::{Kernel, PoolView};
use holdfast::os::Os;

use super::PoolArguments;
use super::asked::{ControllerArguments, ControllerConnection};
use super::output::Format;

/// Arguments of every command that inspects pools.
#[derive(Args, Clone, Debug)]
pub(crate) struct LookArguments {
    #[command(flatten)]
    pools: PoolArguments,
    #[command(flatten)]
    controller: ControllerArguments,
    /// The output format.
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    pub(crate) output: Format,
}

impl LookArguments {
    /// The controller to ask instead, if one was named.
    ///
    /// # Errors
    /// Those of [`ControllerArguments::asked`].
    pub(crate) fn controller(&self) -> Result<Option<ControllerConnection>> {
        if self.pools.is_empty() {
            return self.controller.asked();
        }
        if self.controller.is_explicit() {
            bail!(
                "--controller shows the whole cluster, --pool and --config show pools of this machine; drop one of the two"
            );
        }
        Ok(None)
    }

    /// The pools to inspect.
    ///
    /// # Errors
    /// Those of [`config::pools`].
    pub(crate) fn pools(&self) -> Result<Vec<PoolConfig>> {
        Ok(config::pools(&self.pools.pools, &self.pools.file()?)?)
    }
}

/// Opens every pool read-only.
///
/// # Errors
/// That of the first pool that cannot be opened.
pub(crate) fn open_all(os: &Os, arguments: &LookArguments) -> Result<(Vec<PoolView>, Kernel)> {
    let kernel = Kernel::look(os)?;
    let pools = arguments.pools()?;
    let views = pools.iter().map(|config| PoolView::open(os, &config.spec, config.limits)).collect::<Result<_, _>>()?;
    Ok((views, kernel))
}
