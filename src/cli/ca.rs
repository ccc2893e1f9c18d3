//! `holdfast ca`: certificates for daemons and operators, from a CA in a directory.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use holdfast::os::Os;
use holdfast::tls::{Authority, Role, request};
use holdfast::types::NodeId;

use super::output::say;

/// `holdfast ca`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a key and a certificate for a role; makes the CA first if there is none.
    Issue(Issue),
    /// Makes a key and a signing request, on the node itself.
    Request(Request),
    /// Signs a node's request: for that node and nothing else, whatever it asks.
    Sign(Sign),
}

#[derive(Debug, Args)]
struct Issue {
    /// The CA's directory: ca.crt and ca.key.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Whose certificate it is: controller, node:NAME or operator.
    #[arg(long)]
    role: Role,
    /// How many days it is good.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// Where ca.crt, tls.crt and tls.key are written: a new directory, or one of an earlier issue.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Request {
    /// The node, as the orchestrator calls it.
    #[arg(long, value_name = "NAME", value_parser = NodeId::from_node_name)]
    node: NodeId,
    /// Where tls.key and tls.csr are written: a new directory.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Sign {
    /// The CA's directory: ca.crt and ca.key.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The signing request, PEM.
    #[arg(long, value_name = "FILE")]
    csr: PathBuf,
    /// The node it is for, as the orchestrator calls it.
    #[arg(long, value_name = "NAME", value_parser = NodeId::from_node_name)]
    node: NodeId,
    /// How many days the certificate is good.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// Where the certificate is written.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs it.
///
/// # Errors
/// When anything cannot be read, made or written; what was there before is then still there.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let os = Os::new();
    match &arguments.command {
        Command::Issue(Issue { dir, role, days, out }) => {
            let (authority, made) = Authority::open_or_make(&os, dir)?;
            if made {
                say(&format!("made a CA in {}: keep its ca.key where only you can read it", dir.display()));
            }
            let issued = authority.issue(role, *days)?;
            issued.write(&os, out)?;
            say(&format!("issued {}, good until {}, in {}", role.name(), issued.until, out.display()));
        }
        Command::Request(Request { node, out }) => {
            request(&os, node, out)?;
            let out = out.display();
            say(&format!(
                "made {out}/tls.key, which stays here, and {out}/tls.csr for `holdfast ca sign --node {node}`"
            ));
        }
        Command::Sign(Sign { dir, csr, node, days, out }) => {
            let text = os.read(csr).with_context(|| format!("--csr {} cannot be read", csr.display()))?;
            let Some(text) = text else { bail!("--csr {} does not exist", csr.display()) };
            let authority = Authority::open(&os, dir)?;
            let (certificate, until) = authority.sign(&text, node, *days)?;
            os.replace_file(out, certificate.as_bytes())
                .with_context(|| format!("--out {} cannot be written", out.display()))?;
            let name = Role::Node(node.clone()).name();
            say(&format!("signed {name}, good until {until}, in {}", out.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}
