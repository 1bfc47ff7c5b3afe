//! Plans by chance, from proptest, so that it knows how to make them smaller.

use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::{Act, BodyPlan, Errno, FaultPlan, FilePlan, Lack, NAMES, Near, Plan, Scenario, Size, Step, There};
use crate::{
    fs::{Cache, Off, Profile},
    net::{LinePlan, Trouble, Way, WireFault},
    two_hosts::{Early, OtherConfig, Reload},
};

/// Effects of a move of a plan: most have fewer.
const EFFECTS: u64 = 160;

/// Bytes of a conversation about small files, most are shorter.
const BYTES: u64 = 9000;

/// Bytes of one about large files, as a power of two.
const BYTES_LOG: u32 = 20;

/// The plan of a seed, and how to make it smaller.
pub fn plan_of(scenario: Scenario, seed: u64) -> Box<dyn ValueTree<Value = Plan>> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8] = scenario as u8;
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let tree = plans(scenario).new_tree(&mut runner);
    Box::new(tree.expect("nothing is filtered"))
}

/// All plans of a scenario.
pub fn plans(scenario: Scenario) -> impl Strategy<Value = Plan> {
    // Hashing a mebibyte takes as long as the rest of a small plan: few are about large files, and then about little else.
    let few = prop::collection::vec(file(large_body().boxed()), 1..3);
    let files = prop_oneof![15 => prop::collection::vec(file(body().boxed()), 1..7), 1 => few];
    let steps = prop::collection::vec(step(scenario), 0..6);
    let profile = select(&Profile::ALL[..]);
    (any::<u64>().no_shrink(), files, steps, profile).prop_map(move |(seed, files, steps, profile)| Plan {
        seed,
        scenario,
        files,
        steps,
        profile,
    })
}

fn file(new: BoxedStrategy<BodyPlan>) -> impl Strategy<Value = FilePlan> {
    let there = prop_oneof![
        3 => Just(There::Nothing),
        1 => Just(There::Equal),
        1 => Just(There::Lookalike),
        2 => near().prop_map(There::Near),
        2 => body().prop_map(There::Other),
        // Wholly there is a boundary, so not left to chance.
        1 => (prop_oneof![0..1001u16, Just(1000)], any::<bool>()).prop_map(|(thousandths, is_right)| There::Partial(thousandths, is_right)),
    ];
    (0..NAMES.len(), new, there).prop_map(|(name, new, there)| FilePlan { name, new, there })
}

fn near() -> impl Strategy<Value = Near> {
    prop_oneof![
        Just(Near::Changed),
        (1..200u8).prop_map(Near::Shifted),
        Just(Near::Cut),
        Just(Near::Longer),
    ]
}

fn body() -> impl Strategy<Value = BodyPlan> {
    let size = prop_oneof![
        6 => Just(Size::Small),
        1 => Just(Size::Empty),
        3 => Just(Size::Large),
        2 => Just(Size::Blocks),
        1 => (0..3u8).prop_map(Size::AtBatch),
    ];
    prop_oneof![
        5 => (size, any::<u8>()).prop_map(|(size, first)| BodyPlan::File(size, first)),
        1 => (0..4u8).prop_map(BodyPlan::Link),
    ]
}

/// Of a chunk or more.
fn large_body() -> impl Strategy<Value = BodyPlan> {
    let size = prop_oneof![4 => Just(Size::Sparse), 3 => (0..3u8).prop_map(Size::AtChunk), 1 => Just(Size::Long)];
    (size, any::<u8>()).prop_map(|(size, first)| BodyPlan::File(size, first))
}

fn step(scenario: Scenario) -> BoxedStrategy<Step> {
    let fault = (any::<bool>(), 0..EFFECTS, fault(scenario)).prop_map(|(at_target, effect, kind)| Step::Fault {
        at_target,
        effect,
        kind,
    });
    let act = (0..EFFECTS, act()).prop_map(|(effect, act)| Step::Act { effect, act });
    let lack = select(&[Lack::Renames, Lack::Leases][..]).prop_map(Step::Lacks);
    if scenario.is_remote() {
        let throttled = (10_000..1_000_000u64).prop_map(Step::Throttled);
        let early = (any::<bool>(), 0..800u16).prop_map(|(is_signal, millis)| match is_signal {
            true => Early::Signal(millis),
            false => Early::TimeOver(millis),
        });
        let ended = early.prop_map(Step::Ended);
        prop_oneof![
            4 => line().prop_map(Step::Line),
            4 => fault,
            1 => act,
            1 => lack,
            1 => throttled,
            1 => ended,
            1 => reload().prop_map(Step::Reloaded),
        ]
        .boxed()
    } else {
        prop_oneof![6 => fault, 2 => act, 1 => lack].boxed()
    }
}

fn reload() -> impl Strategy<Value = Reload> {
    let other = select(
        &[
            OtherConfig::Same,
            OtherConfig::ReadOnly,
            OtherConfig::WithoutPeer,
            OtherConfig::Directories,
        ][..],
    );
    (0..800u16, 0..1500u16, other).prop_map(|(after, lasts, other)| Reload { after, lasts, other })
}

fn fault(scenario: Scenario) -> impl Strategy<Value = FaultPlan> {
    let cache = || select(&[Cache::Kept, Cache::Reverted][..]);
    let errno = select(
        &[
            Errno::Io,
            Errno::NoSpace,
            Errno::Quota,
            Errno::Access,
            Errno::Interrupted,
        ][..],
    );
    // Over a network a disk that fails before it is gone has the other side to talk to.
    let off = if scenario.is_remote() {
        Just(Off::Hang).boxed()
    } else {
        select(&[Off::Hang, Off::Fail][..]).boxed()
    };
    prop_oneof![
        3 => off.prop_map(FaultPlan::PowerCut),
        2 => Just(FaultPlan::Kill),
        2 => errno.prop_map(FaultPlan::Error),
        2 => cache().prop_map(FaultPlan::SyncLost),
        1 => cache().prop_map(FaultPlan::WriteBackLost),
        1 => any::<u8>().prop_map(FaultPlan::Short),
        1 => any::<u8>().prop_map(FaultPlan::Stall),
        1 => any::<u8>().prop_map(FaultPlan::Pause),
        1 => (-400..400i16).prop_map(FaultPlan::Clock),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let (file, first) = (0..8usize, any::<u8>());
    (0..6u8, file, first).prop_map(|(kind, file, first)| match kind {
        0 => Act::ReplaceSource(file, first),
        1 => Act::WriteSource(file, first),
        2 => Act::RemoveSource(file),
        3 => Act::MapSource(file, first),
        4 => Act::WriteTarget(file, first),
        _ => Act::AppearAtTarget(file, first),
    })
}

fn line() -> impl Strategy<Value = LinePlan> {
    let trouble = prop_oneof![
        Just(Trouble::Reset),
        Just(Trouble::Close),
        Just(Trouble::Stall),
        Just(Trouble::Swallow),
        (0..8u8).prop_map(|bit| Trouble::Flip { bit }),
    ];
    let ways = select(&[Way::Up, Way::Down][..]);
    // Before its first byte a connection is accepted, and silent.
    let at = prop_oneof![
        1 => Just(0),
        6 => 0..BYTES,
        2 => (0..BYTES_LOG, any::<u64>()).prop_map(|(log, at)| (1 << log) + at % (1 << log)),
    ];
    let fault = (ways, at, trouble).prop_map(|(way, at, trouble)| WireFault { way, at, trouble });
    let faults = || prop::collection::vec(fault.clone(), 0..3);
    prop_oneof![
        8 => faults().prop_map(LinePlan::Made),
        1 => (10_000..1_000_000u64, faults()).prop_map(|(rate, faults)| LinePlan::Slow(rate, faults)),
        1 => Just(LinePlan::Hangs),
        1 => Just(LinePlan::Refused),
    ]
}
