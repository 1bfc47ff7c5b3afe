//! What is remembered of a partial is not read again, and is forgotten in the least doubt.

use std::sync::Arc;

use realize::{digest::CHUNK_BYTES, model::RelPath};
use realize_sim::{
    check::{Checker, Violation},
    fs::{Content, Kind, Off, Op, Profile},
    random::Random,
    world::{Body, World, cut},
};

const PART: &str = "target/.new.realize-part";
const SUMS: &str = "target/.new.realize-sums";

/// A file of so many chunks, mostly holes, that has these bytes in each.
fn long(chunks: u64, text: &[u8; 4]) -> Content {
    let mut content = Content::from(b"");
    content.set_len(chunks * CHUNK_BYTES);
    for chunk in 0..chunks {
        content.write(chunk * CHUNK_BYTES + 7777, text);
        content.write((chunk + 1) * CHUNK_BYTES - 1, b"!");
    }
    content
}

fn world(seed: u64, name: &str, chunks: u64) -> World {
    World::of(seed, false, vec![(name, Body::File(long(chunks, b"some")), None)])
}

/// Chunks of the file that is interrupted.
const CHUNKS: u64 = 30;

/// At which effect the file of hashes was written to for the last time.
fn last_sum(seed: u64) -> u64 {
    let world = world(seed, "new", CHUNKS);
    world.machine.keep_log();
    world.move_all();
    let log = world.machine.log();
    let path = RelPath::new(SUMS).unwrap();
    let mut sums = log
        .iter()
        .filter(|call| call.op == Op::Write && call.path.as_ref() == Some(&path));
    sums.next_back().expect("something is remembered").index
}

/// A world in which the program was killed when it had remembered some chunks.
fn interrupted(seed: u64) -> World {
    let world = world(seed, "new", CHUNKS);
    world.machine.inject(cut(last_sum(seed), Kind::Kill(Off::Hang)));
    assert!(world.move_all().result.is_none());
    world.machine.restart();
    world
}

/// Moves the rest, under all checks; how often the partial was read.
fn reads_of_the_rest(world: &World) -> usize {
    let checker = Arc::new(Checker::default());
    world.watch(&checker);
    world.machine.keep_log();
    let before = world.machine.log().len();
    let ended = world.move_all();
    let log = world.machine.log();
    let path = RelPath::new(PART).unwrap();
    checker.check_end(world);
    world.machine.unwatch();
    assert_eq!(checker.violations(), vec![], "{ended:?}");
    assert!(
        matches!(&ended.result, Some(Ok(report)) if report.is_complete()),
        "{ended:?}"
    );
    let calls = log[before..].iter();
    calls
        .filter(|call| call.op == Op::Read && call.path.as_ref() == Some(&path))
        .count()
}

#[test]
fn what_is_remembered_is_not_read_again() {
    for seed in 0..5 {
        let known = reads_of_the_rest(&interrupted(seed));
        let forgotten = {
            let world = interrupted(seed);
            world.target.remove(SUMS).unwrap();
            reads_of_the_rest(&world)
        };
        // Four places are looked at all the same.
        assert!(2 * known < forgotten, "{known} reads, {forgotten} without");
    }
}

#[test]
fn in_the_least_doubt_all_is_read() {
    type Doubt = fn(&World);
    let doubts: [(&str, Doubt); 5] = [
        ("another header", |world| world.target.write_at(SUMS, 20, b"?").unwrap()),
        ("another hash", |world| {
            world.target.write_at(SUMS, 64 + 5, b"?").unwrap()
        }),
        ("another file of the same bytes", |world| {
            let there = world.target.read(PART).unwrap();
            world.target.replace(PART, there).unwrap();
        }),
        ("cut", |world| world.target.truncate(PART, 100).unwrap()),
        ("changed long after", |world| {
            let now = world.target.stat(PART).unwrap().version.ctime;
            let later = realize::model::Timestamp {
                secs: now.secs + 61,
                ..now
            };
            world.machine.set_wall(move || later);
            world.target.write_at(PART, 7777, b"else").unwrap();
        }),
    ];
    for (what, doubt) in doubts {
        for seed in 0..4 {
            let world = interrupted(seed);
            doubt(&world);
            let reads = reads_of_the_rest(&world);
            // Of what was cut off nothing is left to be read.
            assert!(reads >= CHUNKS as usize || what == "cut", "{what}: {reads} reads");
        }
    }
}

/// Moves with the power going three times, the first at effect `first`, while the source becomes another, or again the first; what was violated.
fn violated(first: u64, effects: u64, profile: Profile, random: &mut Random) -> Vec<Violation> {
    // Of which there is a partial from the beginning: its name is durable.
    let world = world(first, "large", FEW);
    let checker = Arc::new(Checker::default());
    world.watch(&checker);
    for nth in 0..3 {
        let text = if random.below(2) == 0 { b"some" } else { b"else" };
        let at = world.machine.effects() + if nth == 0 { first } else { random.below(effects) };
        let kind = match random.below(3) {
            0 => Kind::Kill(Off::Hang),
            _ => Kind::PowerCut(Off::Hang),
        };
        world.machine.inject(cut(at, kind.clone()));
        world.move_all();
        match (world.machine.is_on(), kind) {
            (true, _) => {}
            (false, Kind::Kill(_)) => world.machine.restart(),
            _ => world.machine.crash(profile, random),
        }
        world.machine.heal();
        world.rebase();
        if world.source.node(&RelPath::new("source/large").unwrap()).is_none() {
            break;
        }
        for chunk in 0..FEW {
            let at = chunk * CHUNK_BYTES + 7777;
            world.source.write_at("source/large", at, text).unwrap();
        }
        world.source.sync("source/large").unwrap();
        let mut truth = world.truth();
        let truth = truth.values_mut().next().unwrap();
        truth
            .before
            .push(std::mem::replace(&mut truth.new, Body::File(long(FEW, text))));
    }
    world.move_all();
    checker.check_end(&world);
    world.machine.unwatch();
    checker.violations()
}

/// Chunks of the file that is cut off: more than the places that are looked at all the same.
const FEW: u64 = 10;

/// The first violation of any, the power going at every second effect at first.
fn first_violation() -> Option<(u64, Profile, Vec<Violation>)> {
    let mut random = Random::new(1);
    let effects = {
        let world = world(1, "large", FEW);
        world.move_all();
        world.machine.effects()
    };
    let cuts = (0..effects).step_by(2);
    let mut all = cuts.flat_map(|first| Profile::ALL.map(|profile| (first, profile)));
    all.find_map(|(first, profile)| {
        let violations = violated(first, effects, profile, &mut random);
        (!violations.is_empty()).then_some((first, profile, violations))
    })
}

#[test]
fn whatever_a_crash_leaves_what_is_remembered_is_right() {
    assert_eq!(first_violation(), None);
}

/// By `tests/planted`.
#[cfg(realize_planted)]
#[test]
fn what_is_remembered_wrongly_is_caught() {
    use realize::planted::{Bug, plant};
    for bug in [Bug::RememberedEarly, Bug::RememberedKept] {
        plant(Some(bug));
        let found = first_violation();
        plant(None);
        println!("{bug:?}: {found:?}");
        let (_, _, violations) = found.unwrap_or_else(|| panic!("{bug:?} is not seen"));
        let is_law = |violation: &Violation| violation.property == realize_sim::check::Property::Law;
        assert!(violations.iter().any(is_law), "{violations:?}");
    }
}
