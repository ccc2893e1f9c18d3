//! Random steps. Most follow the usual paths, so that volumes live long enough to get into every state; the rest is
//! anything.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::call::{
    Access, At, CUTS, Call, Create, Cut, From, Manner, Mode, NAMES, OnNode, Step, TARGETS, Use, Volume, Wanted, mib,
};
use holdfast::types::FsType;

const EXT4: Mode = Mode::Mount(Some(FsType::Ext4));
const XFS: Mode = Mode::Mount(Some(FsType::Xfs));

/// Steps of one caller. Node calls and restarts cost more than others: `dear` is their weight among 100.
pub(super) fn steps(homes: usize, dear: u32, length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let piece = prop_oneof![
        10 => step(homes, dear).prop_map(|step| vec![step]),
        1 => path(dear),
    ];
    prop::collection::vec(piece, length).prop_map(|pieces| pieces.concat())
}

/// Some of what an orchestrator does with one volume, in its order.
fn path(dear: u32) -> BoxedStrategy<Vec<Step>> {
    let bring = |name: usize, target: usize| {
        let (volume, usage) = (Volume::Of(name), usual_use(Volume::Of(name)));
        vec![
            usual_create(name, Wanted::Anywhere),
            Call::Grant { volume, node: OnNode::Of(0), usage, read_only: false },
            Call::Stage { volume, usage },
            Call::Publish { volume, target, usage, read_only: false },
        ]
    };
    let take = |name: usize, target: usize| {
        let volume = Volume::Of(name);
        vec![
            Call::Unpublish { volume, target },
            Call::Unstage(volume),
            Call::Revoke { volume, node: Some(OnNode::Of(0)) },
            Call::Delete(volume),
        ]
    };
    let either = prop_oneof![3 => Just(true), 1 => Just(false)];
    let some = (0..NAMES, 0..TARGETS, either).prop_flat_map(move |(name, target, to)| {
        let calls = if to { bring(name, target) } else { take(name, target) };
        // Without the node, only what the controller does.
        let most = if to && dear == 0 { 2 } else { 4 };
        subsequence(calls[..most].to_vec(), 1..=most)
    });
    some.prop_map(|calls| calls.into_iter().map(|call| Step::Call(call, Manner::Waits)).collect()).boxed()
}

fn step(homes: usize, dear: u32) -> impl Strategy<Value = Step> {
    let manner = prop_oneof![
        30 => Just(Manner::Waits),
        1 => Just(Manner::GoesAway),
        1 => Just(Manner::Hurries),
    ];
    prop_oneof![
        49 => (call(homes, dear), manner).prop_map(|(call, manner)| Step::Call(call, manner)),
        1 => Just(Step::Restart),
    ]
}

fn volume() -> impl Strategy<Value = Volume> {
    prop_oneof![
        40 => (0..NAMES).prop_map(Volume::Of),
        1 => Just(Volume::Foreign),
        1 => Just(Volume::Elsewhere),
    ]
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![
        30 => (0..CUTS).prop_map(Cut::Of),
        1 => Just(Cut::Foreign),
        1 => Just(Cut::Elsewhere),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![4 => Just(Mode::Block), 4 => Just(EXT4), 3 => Just(Mode::Mount(None)), 1 => Just(XFS)]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        12 => Just(Access::Multi),
        2 => Just(Access::Single),
        2 => Just(Access::Reader),
        1 => Just(Access::ManyNodes),
    ]
}

fn usage() -> impl Strategy<Value = Use> {
    (mode(), access()).prop_map(|(mode, access)| Use { mode, access })
}

/// How a name is used mostly: 0 as ext4, 1 raw, 2 either way, 3 as ext4 or, rarely, XFS.
fn usual_use(volume: Volume) -> Use {
    let mode = match volume {
        Volume::Of(1) => Mode::Block,
        _ => Mode::Mount(None),
    };
    Use { mode, access: Access::Multi }
}

/// A volume and mostly its usual use.
fn used() -> impl Strategy<Value = (Volume, Use)> {
    (volume(), prop::option::weighted(0.25, usage()))
        .prop_map(|(volume, other)| (volume, other.unwrap_or_else(|| usual_use(volume))))
}

fn uses() -> impl Strategy<Value = Vec<Use>> {
    prop_oneof![
        4 => usage().prop_map(|usage| vec![usage]),
        1 => Just([Mode::Block, EXT4].map(|mode| Use { mode, access: Access::Multi }).to_vec()),
    ]
}

fn wanted(homes: usize) -> BoxedStrategy<Wanted> {
    if homes == 1 {
        return prop_oneof![20 => Just(Wanted::Anywhere), 1 => (0..2_usize).prop_map(Wanted::Required)].boxed();
    }
    prop_oneof![
        2 => Just(Wanted::Anywhere),
        2 => (0..=homes).prop_map(Wanted::Preferred),
        1 => (0..=homes).prop_map(Wanted::Required),
    ]
    .boxed()
}

/// Bytes required.
fn required() -> impl Strategy<Value = u64> {
    select(vec![
        mib(16),
        mib(16),
        mib(20),
        mib(24),
        mib(24),
        mib(48),
        mib(4),
        0,
        mib(18) - 1,
        mib(100),
        mib(300),
        mib(700),
        mib(5000),
    ])
}

/// A limit for what is required: mostly none.
fn limit(required: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => Just(0),
        1 => Just(required),
        1 => Just(required + mib(8)),
        1 => Just(required.saturating_sub(1)),
        1 => Just(mib(20)),
    ]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    required().prop_flat_map(|required| (Just(required), limit(required)))
}

fn from() -> impl Strategy<Value = From> {
    prop_oneof![3 => cut().prop_map(From::Cut), 2 => volume().prop_map(From::Volume)]
}

/// What an orchestrator asks again and again for this name.
fn usual_create(name: usize, wanted: Wanted) -> Call {
    let of = |mode| Use { mode, access: Access::Multi };
    let uses = match name {
        1 => vec![of(Mode::Block)],
        2 => vec![of(Mode::Block), of(EXT4)],
        _ => vec![of(Mode::Mount(None))],
    };
    let thin = (name == 3).then_some(true);
    Call::Create(Create { name, required: mib(16), limit: 0, uses, thin, zero: name == 1, from: None, wanted })
}

fn create(homes: usize) -> BoxedStrategy<Call> {
    let usual = (0..NAMES, wanted(homes)).prop_map(|(name, wanted)| usual_create(name, wanted));
    let copied = (0..NAMES, from(), select(vec![0, 0, mib(24), mib(48)])).prop_map(|(name, from, required)| {
        let uses = vec![usual_use(Volume::Of(name))];
        Create { name, required, limit: 0, uses, thin: None, zero: false, from: Some(from), wanted: Wanted::Anywhere }
    });
    let thin = select(vec![None, None, Some(true), Some(false)]);
    let zero = prop::bool::weighted(0.1);
    let any = (0..NAMES, range(), uses(), thin, zero, prop::option::weighted(0.3, from()), wanted(homes)).prop_map(
        |(name, (required, limit), uses, thin, zero, from, wanted)| Create {
            name,
            required,
            limit,
            uses,
            thin,
            zero,
            from,
            wanted,
        },
    );
    prop_oneof![6 => usual, 3 => copied.prop_map(Call::Create), 3 => any.prop_map(Call::Create)].boxed()
}

fn grant(homes: usize) -> BoxedStrategy<Call> {
    let node = prop_oneof![
        8 => Just(OnNode::Of(0)),
        2 => (0..=homes).prop_map(OnNode::Of),
        1 => Just(OnNode::Unknown),
    ];
    (used(), node, prop::bool::weighted(0.1))
        .prop_map(|((volume, usage), node, read_only)| Call::Grant { volume, node, usage, read_only })
        .boxed()
}

fn revoke(homes: usize) -> BoxedStrategy<Call> {
    let node = prop_oneof![
        4 => Just(Some(OnNode::Of(0))),
        1 => Just(None),
        1 => (0..=homes).prop_map(|number| Some(OnNode::Of(number))),
        1 => Just(Some(OnNode::Unknown)),
    ];
    (volume(), node).prop_map(|(volume, node)| Call::Revoke { volume, node }).boxed()
}

fn at() -> impl Strategy<Value = At> {
    prop_oneof![1 => Just(At::Staging), 2 => (0..TARGETS).prop_map(At::Target)]
}

fn controller(homes: usize) -> BoxedStrategy<Call> {
    let page = || 0..4_i32;
    let required = || prop_oneof![2 => Just(0), 1 => Just(mib(16)), 1 => Just(mib(64)), 1 => Just(mib(2000))];
    prop_oneof![
        16 => create(homes),
        4 => volume().prop_map(Call::Delete),
        12 => grant(homes),
        5 => revoke(homes),
        3 => used().prop_map(|(volume, usage)| Call::Validate { volume, usage }),
        3 => volume().prop_map(Call::Get),
        5 => page().prop_map(|page| Call::List { page }),
        1 => Just(Call::ListBadly),
        3 => prop::option::of(any::<bool>()).prop_map(|thin| Call::Capacity { thin }),
        5 => (volume(), range()).prop_map(|(volume, (required, limit))| Call::Expand { volume, required, limit }),
        3 => (volume(), required()).prop_map(|(volume, required)| Call::Expand { volume, required, limit: 0 }),
        10 => (0..CUTS, volume()).prop_map(|(cut, from)| Call::Cut { cut, from }),
        4 => cut().prop_map(Call::Uncut),
        3 => cut().prop_map(Call::GetCut),
        5 => (prop::option::weighted(0.3, cut()), prop::option::weighted(0.3, volume()), page())
            .prop_map(|(cut, from, page)| Call::ListCuts { cut, from, page }),
    ]
    .boxed()
}

fn on_node() -> BoxedStrategy<Call> {
    prop_oneof![
        6 => used().prop_map(|(volume, usage)| Call::Stage { volume, usage }),
        3 => volume().prop_map(Call::Unstage),
        6 => (used(), 0..TARGETS, prop::bool::weighted(0.2))
            .prop_map(|((volume, usage), target, read_only)| Call::Publish { volume, target, usage, read_only }),
        3 => (volume(), 0..TARGETS).prop_map(|(volume, target)| Call::Unpublish { volume, target }),
        2 => (volume(), at()).prop_map(|(volume, at)| Call::Stats { volume, at }),
        2 => (volume(), at(), select(vec![0, 0, mib(16), mib(64)]))
            .prop_map(|(volume, at, required)| Call::Grow { volume, at, required }),
    ]
    .boxed()
}

fn call(homes: usize, dear: u32) -> BoxedStrategy<Call> {
    prop_oneof![100 - dear => controller(homes), dear => on_node()].boxed()
}
