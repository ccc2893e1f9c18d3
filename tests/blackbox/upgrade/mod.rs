//! The release before and this one, one after the other, on the same pool, sockets and mounts: upgrades and downgrades
//! in place, under volumes in every state. `scripts/release-before` builds the release before.

mod in_use;
mod stock;
mod unfinished;

use crate::harness::{PoolFs, Release, Use, World};
use stock::Stock;

/// How the driver ends before the other release starts.
#[derive(Clone, Copy, Debug)]
enum End {
    /// SIGTERM, as kubelet and systemd stop it.
    Terminated,
    Killed,
}

/// A world in which this release runs.
fn run_by(release: Release, pool: PoolFs) -> World {
    let mut world = World::stopped(pool, 16 << 30);
    world.release = release;
    world.start();
    world
}

/// Replaces the driver by the other release.
fn replace(world: &mut World, end: End) {
    match end {
        End::Terminated => assert_eq!(world.terminate(), 0),
        End::Killed => world.kill9(),
    }
    world.release = world.release.other();
    world.start();
}

/// Runs the releases in turns, each between two replacements: it finds everything as the other one left it, repeats the
/// last call of each volume, uses all of them, and creates more. The last one deletes all.
fn in_turns(first: Release, pool: PoolFs, kinds: &[Use], end: End) {
    let mut world = run_by(first, pool);
    let mut stock = Stock::default();
    for period in 0..4 {
        if period > 0 {
            replace(&mut world, end);
            stock.check_content(&world);
        }
        stock.check_answers(&world);
        stock.repeat_calls(&world);
        stock.use_all(&mut world);
        stock.check_answers(&world);
        stock.check_commands(&world);
        stock.delete_some(&world);
        // One stock of each release.
        if period < 2 {
            stock.create_more(&world, kinds, period);
        }
    }
    stock.check_content(&world);
    world.finish();
}

#[test]
fn upgraded_and_downgraded_in_place_nothing_is_lost() {
    in_turns(Release::Before, PoolFs::Xfs, &Use::ALL, End::Terminated);
}

/// Without reflinks each snapshot and copy is written, which is too much for the log of each XFS.
#[test]
fn killed_upgraded_and_downgraded_in_place_nothing_is_lost() {
    in_turns(Release::Before, PoolFs::Ext4, &[Use::Ext4, Use::Block], End::Killed);
}

#[test]
fn a_new_pool_is_usable_after_a_downgrade() {
    in_turns(Release::This, PoolFs::Xfs, &Use::ALL, End::Killed);
}
