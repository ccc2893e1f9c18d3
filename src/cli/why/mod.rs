//! `holdfast why`: what a claim, pod or volume of Kubernetes waits for, and the next command. It only reads the cluster.
//!
//! `gather` asks the API server and a controller; `rules` decides from these facts alone.

mod facts;
mod gather;
#[cfg(test)]
mod network_tests;
mod objects;
mod rules;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast::kubernetes::connect;
use holdfast::os::Timestamp;
use holdfast::registry::Nodes;
use holdfast::types::ObjectName;
use holdfast::types::printable;
use serde::Serialize;

use self::facts::{Facts, Found};
use self::gather::Gatherer;
use self::objects::Volume;
use self::rules::{Explanation, explain};
use super::asked::ControllerArguments;
use super::output::{Columns, Format, Paint, complain, document, say, say_as_is, say_marked};

/// Flags of `holdfast why`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// A claim or a pod as NAMESPACE/NAME, or a PersistentVolume by its name or handle.
    #[arg(value_name = "NAMESPACE/CLAIM")]
    what: String,
    #[command(flatten)]
    controller: ControllerArguments,
    /// The output format.
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

/// One claim, as `--output json` shows it.
#[derive(Serialize)]
struct Answer {
    claim: String,
    #[serde(flatten)]
    explanation: Explanation,
}

/// Prints what waits: exit code 0 if nothing waits, 1 if something does.
///
/// # Errors
/// When the API server does not answer, or the claim cannot be read.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (homes, unasked) = controllers_view(&arguments.controller)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let answers = runtime.block_on(answers(&arguments.what, homes, unasked))?;
    let waits = answers.iter().any(|answer| !answer.explanation.findings.is_empty());
    if arguments.output == Format::Table {
        answers.iter().for_each(tell);
    } else {
        document(arguments.output, &answers)?;
    }
    Ok(if waits { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The nodes and pools that a controller knows, or why they are not known.
fn controllers_view(arguments: &ControllerArguments) -> Result<(Option<Nodes>, Vec<String>)> {
    let Some(mut asked) = arguments.asked()? else {
        let said = "pools and their nodes: no controller was named; set --controller or HOLDFAST_CONTROLLER";
        return Ok((None, vec![said.to_owned()]));
    };
    Ok(match asked.nodes() {
        Ok(nodes) => (Some(nodes), Vec::new()),
        Err(error) => (None, vec![format!("pools and their nodes: {error:#}")]),
    })
}

async fn answers(what: &str, homes: Option<Nodes>, unasked: Vec<String>) -> Result<Vec<Answer>> {
    let mut gatherer = Gatherer::new(connect().await?);
    let (names, asked) = if what.contains('/') {
        (gatherer.claims_of(&what.parse::<ObjectName>()?).await, None)
    } else {
        let (name, volume) = claim_of_volume(&mut gatherer, what).await?;
        (vec![name], Some(volume))
    };
    drop(gatherer.unasked());
    let mut all = Vec::new();
    for name in names {
        let mut facts = Facts { homes: homes.clone(), asked: asked.clone(), ..gatherer.facts(&name).await };
        if matches!(facts.claim, Found::Unknown) {
            bail!("{}", facts.unasked.join("; "));
        }
        facts.unasked.extend(unasked.iter().cloned());
        let explanation = explain(&facts, Timestamp::now().seconds());
        all.push(Answer { claim: name.to_string(), explanation });
    }
    Ok(all)
}

/// The claim of a volume, and the volume.
async fn claim_of_volume(gatherer: &mut Gatherer, what: &str) -> Result<(ObjectName, Volume)> {
    let volume = match gatherer.volume_of(what).await {
        Found::Yes(volume) => volume,
        Found::No => {
            bail!("there is no PersistentVolume {what}; name a claim as NAMESPACE/CLAIM, or run kubectl get pv")
        }
        Found::Unknown => bail!("{}", gatherer.unasked().join("; ")),
    };
    let name = &volume.metadata.name;
    let Some(claim) = &volume.spec.claim_ref else {
        bail!(
            "PersistentVolume {name} is {} and has no claim; to use it, create a claim with spec.volumeName: {name}",
            volume.status.phase
        );
    };
    Ok((format!("{}/{}", claim.namespace, claim.name).parse()?, volume))
}

fn tell(answer: &Answer) {
    let paint = Paint::detect();
    let mut columns = Columns::new(&["object", "name", "state"]);
    for link in &answer.explanation.chain {
        columns.row([link.kind.to_owned(), link.name.clone(), link.state.clone()]);
    }
    columns.print();
    say("");
    if answer.explanation.findings.is_empty() {
        say_marked(&paint.good("ok"), &format!("claim {}: no problems found; nothing waits", answer.claim));
    }
    let now = Timestamp::now().seconds();
    for finding in &answer.explanation.findings {
        let since = finding.since.map_or(String::new(), |since| {
            format!(" (for {})", ago(u64::try_from(now.saturating_sub(since)).unwrap_or(0)))
        });
        let object = printable(&finding.object);
        say_as_is(&format!("{}  {object} waits for {}{since}", paint.bad("!!"), paint.strong(&finding.waits_for)));
        say(&format!("    do  {}", finding.next));
    }
    for hint in &answer.explanation.hints {
        say(&format!("--  {}", hint.what));
        say(&format!("    do  {}", hint.next));
    }
    for unasked in &answer.explanation.unasked {
        complain(&format!("not checked: {unasked}"));
    }
}

/// An elapsed time, for people.
fn ago(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}
