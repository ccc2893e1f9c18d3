//! The driver against a small model of the specification (docs/testing.md): random calls of the CSI services, in
//! process, on real pools, with real loop devices and mounts, and restarts. A failing case is shrunk and printed.
//!
//! `specification` says what each call must be answered and does, from CSI 1.13 and docs/design.md; `world` is the
//! driver, `ask` puts our words into CSI messages. `sequence` compares one caller's answers step by step; `callers` runs
//! several at once, and `order` looks for one order of what they heard that the specification allows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what went wrong by panicking"
)]

mod ask;
mod call;
mod callers;
mod order;
mod sequence;
mod specification;
mod steps;
mod tally;
mod world;

use std::cell::{Cell, RefCell};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tonic::Code;

use holdfast::testing::scratch::PoolFs;
use tally::Tally;
use world::{Machine, Setting};

/// How many steps all tests here make together; `make model STEPS=` for more.
const STEPS: &str = "HOLDFAST_MODEL_STEPS";
const DEFAULT_STEPS: usize = 40_000;
/// The seed, 64 hex digits, or `random`; without it the same sequences are tried each time.
const SEED: &str = "HOLDFAST_MODEL_SEED";
/// Steps of one case.
const CASE: std::ops::Range<usize> = 1..160;

/// Pieces of one of several callers' steps.
const TURN: std::ops::Range<usize> = 1..50;

/// A test's share of the steps, in hundredths.
fn share(hundredths: usize) -> usize {
    let all = std::env::var(STEPS).map_or(DEFAULT_STEPS, |steps| steps.parse().unwrap());
    all * hundredths / 100
}

/// A runner whose seed is printed, and can be given.
fn runner(cases: usize) -> TestRunner {
    let mut seed = [7; 32];
    let said = std::env::var(SEED).unwrap_or_default();
    if said == "random" {
        seed = std::array::from_fn(|_| rand_byte());
    } else if !said.is_empty() {
        for (byte, digits) in seed.iter_mut().zip(said.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        }
    }
    println!("{SEED}={}", seed.map(|byte| format!("{byte:02x}")).concat());
    let config = Config {
        cases: u32::try_from(cases).unwrap(),
        failure_persistence: None,
        max_shrink_iters: 2000,
        max_shrink_time: 150_000,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

fn rand_byte() -> u8 {
    uuid::Uuid::new_v4().as_bytes()[0]
}

/// What every sequence of this length reaches.
const REACHED: &[(&str, &[Code])] = {
    use Code::{
        Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Ok, OutOfRange, ResourceExhausted,
        Unavailable,
    };
    &[
        ("CreateVolume", &[Ok, AlreadyExists, InvalidArgument, NotFound, OutOfRange, ResourceExhausted]),
        ("DeleteVolume", &[Ok, FailedPrecondition, Unavailable]),
        ("ControllerPublishVolume", &[Ok, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable]),
        ("ControllerUnpublishVolume", &[Ok, Unavailable]),
        ("ValidateVolumeCapabilities", &[Ok, NotFound]),
        ("ControllerGetVolume", &[Ok, NotFound]),
        ("ListVolumes", &[Ok, Aborted]),
        ("GetCapacity", &[Ok]),
        ("ControllerExpandVolume", &[Ok, InvalidArgument, NotFound, OutOfRange]),
        ("CreateSnapshot", &[Ok, AlreadyExists, NotFound]),
        ("DeleteSnapshot", &[Ok, Unavailable]),
        ("GetSnapshot", &[Ok, NotFound]),
        ("ListSnapshots", &[Ok]),
        ("NodeStageVolume", &[Ok, FailedPrecondition, InvalidArgument, NotFound]),
        ("NodeUnstageVolume", &[Ok, FailedPrecondition]),
        ("NodePublishVolume", &[Ok, AlreadyExists, FailedPrecondition, InvalidArgument]),
        ("NodeUnpublishVolume", &[Ok, FailedPrecondition]),
        ("NodeGetVolumeStats", &[Ok, NotFound]),
        ("NodeExpandVolume", &[Ok, NotFound]),
    ]
};

/// What several callers reach besides: they meet.
const MET: &[(&str, &[Code])] = {
    use Code::{Aborted, FailedPrecondition, Ok};
    &[
        ("CreateVolume", &[Ok, Aborted]),
        ("DeleteVolume", &[Ok, Aborted, FailedPrecondition]),
        ("ControllerPublishVolume", &[Ok, Aborted, FailedPrecondition]),
        ("ControllerUnpublishVolume", &[Ok, Aborted]),
        ("ControllerExpandVolume", &[Ok, Aborted]),
        ("CreateSnapshot", &[Ok, Aborted]),
        ("DeleteSnapshot", &[Ok]),
        ("ListVolumes", &[Ok]),
        ("ListSnapshots", &[Ok]),
        ("GetCapacity", &[Ok]),
        ("NodeStageVolume", &[Ok, Aborted, FailedPrecondition]),
        ("NodeUnstageVolume", &[Ok, Aborted]),
        ("NodePublishVolume", &[Ok, Aborted, FailedPrecondition]),
        ("NodeUnpublishVolume", &[Ok]),
    ]
};

/// One caller, so many steps.
fn sequential(setting: Setting, dear: u32, steps: usize) {
    let machine = Machine::new(setting);
    let tally = RefCell::new(Tally::default());
    let strategy = steps::steps(setting.homes, dear, CASE);
    let cases = steps * 2 / (CASE.start + CASE.end) + 1;
    let result = runner(cases)
        .run(&strategy, |steps| sequence::run(&machine, &steps, &mut tally.borrow_mut()).map_err(TestCaseError::fail));
    println!("{setting:?}: {}", tally.borrow());
    if let Err(TestError::Fail(reason, steps)) = &result {
        let shown: Vec<_> = steps.iter().enumerate().map(|(number, step)| format!("  {number}: {step:?}")).collect();
        panic!("{reason}\nThe steps, {} of them:\n{}", steps.len(), shown.join("\n"));
    }
    result.unwrap();
    let missing = tally.borrow().missing(REACHED);
    assert!(steps < 5_000 || missing.is_empty(), "never reached: {}", missing.join(", "));
}

const XFS: Setting = Setting { ground: PoolFs::Xfs, homes: 1 };

#[test]
fn one_caller() {
    sequential(XFS, 25, share(40));
}

#[test]
fn one_caller_and_copies() {
    sequential(Setting { ground: PoolFs::Ext4, homes: 1 }, 15, share(32));
}

#[test]
fn one_caller_and_two_homes() {
    sequential(Setting { ground: PoolFs::Xfs, homes: 2 }, 15, share(28));
}

/// So many callers at once.
fn concurrent(setting: Setting, dear: u32, steps: usize) {
    let machine = Machine::new(setting);
    let tally = RefCell::new(Tally::default());
    let strategy = proptest::collection::vec(steps::steps(setting.homes, dear, TURN), 2..5);
    let cases = steps * 4 / (7 * TURN.end) + 1;
    let failed = Cell::new(false);
    let result = runner(cases).run(&strategy, |callers| {
        // Which of the callers is quicker is not the same every time: a smaller case gets several chances to fail.
        let chances = if failed.get() { 6 } else { 1 };
        for _ in 0..chances {
            callers::run(&machine, &callers, &mut tally.borrow_mut()).map_err(|said| {
                failed.set(true);
                TestCaseError::fail(said)
            })?;
        }
        Ok(())
    });
    println!("{setting:?}: {}", tally.borrow());
    if let Err(TestError::Fail(reason, callers)) = &result {
        panic!("{reason}\nThe callers: {callers:#?}");
    }
    result.unwrap();
    let missing = tally.borrow().missing(MET);
    assert!(steps < 5_000 || missing.is_empty(), "never reached: {}", missing.join(", "));
}

#[test]
fn callers_at_once() {
    concurrent(XFS, 25, share(11));
}

#[test]
fn callers_at_once_and_copies() {
    concurrent(Setting { ground: PoolFs::Ext4, homes: 1 }, 15, share(8));
}
