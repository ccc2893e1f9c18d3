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
    /// Creates a key and a certificate for a role, and the CA if there is none.
    Issue(Issue),
    /// Creates a key and a signing request; run it on the node itself.
    Request(Request),
    /// Signs the request of a node. The certificate is for that node only, whatever the request contains.
    Sign(Sign),
}

#[derive(Debug, Args)]
struct Issue {
    /// The CA's directory: ca.crt and ca.key.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The role of the certificate: controller, node:NAME or operator.
    #[arg(long)]
    role: Role,
    /// The validity in days.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// The directory for ca.crt, tls.crt and tls.key: a new one, or one of an earlier issue.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Request {
    /// The name of the node in the orchestrator.
    #[arg(long, value_name = "NAME", value_parser = NodeId::from_node_name)]
    node: NodeId,
    /// The new directory for tls.key and tls.csr.
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
    /// The name of the node in the orchestrator.
    #[arg(long, value_name = "NAME", value_parser = NodeId::from_node_name)]
    node: NodeId,
    /// The validity in days.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// The file for the certificate.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs it.
///
/// # Errors
/// When a file cannot be read, created or written; existing files are then unchanged.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let os = Os::new();
    match &arguments.command {
        Command::Issue(Issue { dir, role, days, out }) => {
            let (authority, made) = Authority::open_or_make(&os, dir)?;
            if made {
                say(&format!("made a CA in {}: store its ca.key where only you can read it", dir.display()));
            }
            let issued = authority.issue(role, *days)?;
            issued.write(&os, out)?;
            say(&format!("issued {}, valid until {}, in {}", role.name(), issued.until, out.display()));
        }
        Command::Request(Request { node, out }) => {
            request(&os, node, out)?;
            let out = out.display();
            say(&format!(
                "made {out}/tls.key and {out}/tls.csr; keep the key here, and run `holdfast ca sign --node {node}` with tls.csr"
            ));
        }
        Command::Sign(Sign { dir, csr, node, days, out }) => {
            let text = os.read(csr).with_context(|| format!("--csr {} cannot be read", csr.display()))?;
            let Some(text) = text else {
                bail!("--csr {} does not exist; copy tls.csr of `holdfast ca request` there", csr.display())
            };
            let authority = Authority::open(&os, dir)?;
            let (certificate, until) = authority.sign(&text, node, *days)?;
            os.replace_file(out, certificate.as_bytes())
                .with_context(|| format!("--out {} cannot be written", out.display()))?;
            let name = Role::Node(node.clone()).name();
            say(&format!("signed {name}, valid until {until}, in {}", out.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}
