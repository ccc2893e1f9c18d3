//! The benchmark (docs/benchmarks.md): the release binary over its socket on a scratch XFS, against the bare commands
//! that do the same. Every figure is a ratio within one run; nothing here passes or fails by the clock. Needs root.
//!
//! `make bench` runs all of it; `make bench ONLY="stage fio"` some.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark says what went wrong by panicking, and what it measured by printing"
)]

#[path = "../../tests/blackbox/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "what the black-box tests stand on; a benchmark needs a part of it")]
mod harness;

mod bare;
mod calls;
mod clones;
mod figures;
mod fio;
mod ground;
mod lives;
mod many;
mod stage;

use holdfast::os::Stopwatch;

/// The parts, in the order they run in.
const PARTS: &[(&str, fn())] = &[
    ("stage", stage::run),
    ("calls", calls::run),
    ("clones", clones::run),
    ("fio", fio::run),
    ("lives", lives::run),
    ("many", many::run),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let unknown = wanted.iter().find(|wanted| PARTS.iter().all(|(name, _)| name != wanted));
    if let Some(unknown) = unknown {
        let names: Vec<_> = PARTS.iter().map(|(name, _)| *name).collect();
        eprintln!("there is no part {unknown}; the parts are: {}", names.join(" "));
        std::process::exit(2);
    }
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            let watch = Stopwatch::start();
            // A thread of its own: its mount namespace goes with it.
            if std::thread::spawn(part).join().is_err() {
                std::process::exit(1);
            }
            println!("({name} took {:.0} s)\n", watch.elapsed().as_secs_f64());
        }
    }
}
