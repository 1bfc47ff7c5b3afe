//! What is known of a partial that was closed is not read again, and is not believed in the least doubt.

use std::sync::Arc;

use realize::{digest::CHUNK_BYTES, model::RelPath};
use realize_sim::{
    check::Checker,
    fs::{At, Content, Fault, Kind, Op, Profile},
    random::Random,
    world::{Body, World, at_source},
};
use rustix::io::Errno;

const PART: &str = "target/.new.realize-part";
const HASHES: &str = "target/.new.realize-hash";

/// Chunks of the file that is moved: more than are under way at once.
const CHUNKS: u64 = 90;

/// How many of them are known at least when the move has failed. One read tells whether a chunk is right; beside that, both with and without what is known,
/// the chunks at the end of the partial are made of its holes, block by block.
const KNOWN: u64 = 30;

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

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

/// A world in which a move has failed at the source, after most chunks were written, and closed the partial in order.
fn interrupted(seed: u64, chunks: u64) -> World {
    let world = World::of(seed, false, vec![("new", Body::File(long(chunks, b"some")), None)]);
    let reads = {
        let whole = World::of(seed, false, vec![("new", Body::File(long(chunks, b"some")), None)]);
        calls(&whole, Op::Read, at_source(&path("new")).as_bytes())
    };
    world.machine.inject(Fault {
        at: At::Call {
            op: Op::Read,
            path: Some(at_source(&path("new"))),
            nth: reads * 3 / 4,
        },
        kind: Kind::Error(Errno::IO),
    });
    let ended = world.move_all();
    assert!(!ended.stays.is_empty(), "{ended:?}");
    assert!(world.target.read(HASHES).is_ok(), "nothing was left");
    world.machine.heal();
    world
}

/// Moves the rest, under all checks; how often the file at `path` was called so.
fn calls(world: &World, op: Op, path: &[u8]) -> u64 {
    let checker = Arc::new(Checker::default());
    world.watch(&checker);
    world.machine.keep_log();
    let before = world.machine.log().len();
    let ended = world.move_all();
    let log = world.machine.log();
    checker.check_end(world);
    world.machine.unwatch();
    assert_eq!(checker.violations(), vec![], "{ended:?}");
    assert!(
        matches!(&ended.result, Some(Ok(report)) if report.is_complete()),
        "{ended:?}"
    );
    let of_path = log[before..]
        .iter()
        .filter(|call| call.op == op && call.path.as_ref().is_some_and(|at| at.as_bytes() == path));
    of_path.count() as u64
}

fn reads_of_the_rest(world: &World) -> u64 {
    calls(world, Op::Read, PART.as_bytes())
}

#[test]
fn what_was_known_is_not_read_again() {
    for seed in 0..5 {
        let known = reads_of_the_rest(&interrupted(seed, CHUNKS));
        let forgotten = {
            let world = interrupted(seed, CHUNKS);
            world.target.remove(HASHES).unwrap();
            reads_of_the_rest(&world)
        };
        assert!(known + KNOWN <= forgotten, "{known} reads, {forgotten} without");
    }
}

#[test]
fn in_the_least_doubt_all_is_read() {
    type Doubt = fn(&World);
    let doubts: [(&str, Doubt); 6] = [
        ("another header", |world| {
            world.target.write_at(HASHES, 20, b"?").unwrap()
        }),
        ("another hash", |world| world.target.write_at(HASHES, 90, b"?").unwrap()),
        ("cut hashes", |world| world.target.truncate(HASHES, 200).unwrap()),
        ("another file of the same bytes", |world| {
            let there = world.target.read(PART).unwrap();
            world.target.replace(PART, there).unwrap();
        }),
        ("a changed partial", |world| {
            world.target.write_at(PART, 7777, b"else").unwrap()
        }),
        ("written as it was", |world| {
            world.target.write_at(PART, 7777, b"some").unwrap()
        }),
    ];
    for (what, doubt) in doubts {
        for seed in 0..2 {
            let world = interrupted(seed, CHUNKS);
            let known = reads_of_the_rest(&interrupted(seed, CHUNKS));
            doubt(&world);
            let reads = reads_of_the_rest(&world);
            assert!(reads >= known + KNOWN, "{what}: {reads} reads, {known} without a doubt");
        }
    }
}

/// Before anything is written to a partial, what is known of it is gone, and that is durable.
#[test]
fn what_is_known_is_gone_before_the_partial_changes() {
    let world = interrupted(1, CHUNKS);
    world.machine.keep_log();
    let before = world.machine.log().len();
    world.move_all();
    let log = world.machine.log().split_off(before);
    let first = |op: Op, at: &str| {
        let is_it = |call: &&realize_sim::fs::Call| call.op == op && call.path == Some(path(at));
        log.iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("no {op:?} of {at}"))
            .index
    };
    let removed = first(Op::Unlink, HASHES);
    let is_synced = |call: &&realize_sim::fs::Call| {
        call.op == Op::DirSync && call.path == Some(path("target")) && call.index > removed
    };
    let synced = log.iter().find(is_synced).expect("the removal is made durable").index;
    assert!(
        removed < synced && synced < first(Op::Write, PART),
        "{removed}, {synced}"
    );
}

#[test]
fn somebody_s_file_of_that_name_is_neither_believed_nor_removed() {
    let world = interrupted(1, CHUNKS);
    let text = world.target.read(HASHES).unwrap();
    world.target.remove(HASHES).unwrap();
    world.target.mkdir_all(HASHES).unwrap();
    let ended = world.move_all();
    assert!(
        matches!(&ended.result, Some(Ok(report)) if report.is_complete()),
        "{ended:?}"
    );
    assert!(world.target.stat(HASHES).is_ok());
    assert!(!text.is_empty());
}

/// The power goes at every effect of going on, and meanwhile the source has become another.
#[test]
fn whatever_a_crash_leaves_what_is_known_is_right() {
    const FEW: u64 = 50;
    let mut random = Random::new(1);
    let effects = {
        let world = interrupted(1, FEW);
        let before = world.machine.effects();
        world.move_all();
        before..world.machine.effects()
    };
    let mut crashes = 0;
    for (at, profile) in effects.zip(Profile::ALL.into_iter().cycle()) {
        let world = interrupted(1, FEW);
        let checker = Arc::new(Checker::default());
        world.watch(&checker);
        if at % 2 == 0 {
            // Of two chunks that are known.
            let mut truths = world.truth();
            let truth = truths.get_mut(&path("new")).unwrap();
            for chunk in [0, 3] {
                world
                    .source
                    .write_at("source/new", chunk * CHUNK_BYTES + 7777, b"else")
                    .unwrap();
            }
            let new = Body::File(world.source.content("source/new").unwrap());
            truth.before.push(std::mem::replace(&mut truth.new, new));
            world.source.sync("source/new").unwrap();
        }
        world
            .machine
            .inject(realize_sim::world::cut(at, Kind::PowerCut(realize_sim::fs::Off::Hang)));
        if world.move_all().result.is_none() {
            crashes += 1;
            world.machine.crash(profile, &mut random);
            world.rebase();
        }
        world.machine.heal();
        let ended = world.move_all();
        checker.check_end(&world);
        world.machine.unwatch();
        assert_eq!(checker.violations(), vec![], "effect {at}, {profile:?}: {ended:?}");
    }
    assert!(crashes > 20, "only {crashes}");
}

/// With the bug that a partial's hashes count for another one, what somebody wrote to it is published.
#[cfg(realize_planted)]
#[test]
fn hashes_of_another_partial_are_caught() {
    use realize::planted::{Bug, plant};
    use realize_sim::check::Property;

    for (bug, expected) in [(None, false), (Some(Bug::HashesOfAnother), true)] {
        plant(bug);
        let (world, checker) = (interrupted(1, CHUNKS), Arc::new(Checker::default()));
        world.target.write_at(PART, 5 * CHUNK_BYTES + 7777, b"else").unwrap();
        world.watch(&checker);
        world.move_all();
        plant(None);
        let torn = checker
            .violations()
            .into_iter()
            .any(|found| found.property == Property::WholeFinals);
        assert_eq!(torn, expected, "{bug:?}");
    }
}
