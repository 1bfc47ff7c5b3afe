//! Cuts the power at every effect of a small move, for each crash profile, and lets a second run recover.

use std::sync::Arc;

use realize::model::RelPath;
use realize_sim::{
    check::Checker,
    fs::{At, Fault, Kind, Off, Op, Profile, Refusals},
    random::Random,
    world::{Body, Large, World, at_source, at_target, cut},
};
use rustix::io::Errno;

/// What is recovered at each effect: one crash state of the profile that loses most, and one of the one that most disks have. The others are met
/// by plans.
const STATES: [(Profile, Large); 2] = [
    (Profile::PosixWorst, Large::TwoChunks),
    (Profile::Ordered, Large::OneChunk),
];

#[test]
fn an_undisturbed_move_keeps_the_law_at_every_effect() {
    for (one_disk, large) in [
        (false, Large::TwoChunks),
        (true, Large::TwoChunks),
        (false, Large::OneChunk),
    ] {
        let (world, checker) = (World::small(1, one_disk, large), Arc::new(Checker::default()));
        world.watch(&checker);
        let ended = world.move_all();
        let report = ended.result.unwrap().unwrap();
        assert!(report.is_complete(), "{report:?} {:?}", ended.stays);
        checker.check_end(&world);
        assert_eq!(checker.violations(), vec![]);
        assert!(checker.checks() > 100, "{} moments", checker.checks());
        assert_eq!(
            world
                .machine
                .disks()
                .iter()
                .map(|disk| disk.open_handles())
                .sum::<usize>(),
            0
        );
    }
}

#[test]
fn a_second_run_moves_no_byte() {
    let world = World::small(1, false, Large::TwoChunks);
    world.move_all().result.unwrap().unwrap();
    let again = world.move_all().result.unwrap().unwrap();
    assert_eq!((again.copied, again.verified, again.bytes_sent), (0, 0, 0));
    assert!(again.is_complete());
}

/// A world as most tests here want it.
fn small(one_disk: bool, large: Large) -> World {
    World::small(1, one_disk, large)
}

/// A world whose file systems know neither NOREPLACE nor EXCHANGE.
fn knowing_little(one_disk: bool, large: Large) -> World {
    let world = World::small(1, one_disk, large);
    let refusals = Refusals {
        no_replace: Some(Errno::INVAL),
        exchange: Some(Errno::INVAL),
        ..Refusals::default()
    };
    world.source.refuse(refusals);
    world.target.refuse(refusals);
    world
}

/// Runs a move that is ended at each effect in turn by `kind`; `after` brings the machine back.
fn end_at_every_effect(make: impl Fn() -> World, kind: Kind, after: impl Fn(&World, u64)) {
    let mut effect = 0;
    loop {
        let (world, checker) = (make(), Arc::new(Checker::default()));
        world.watch(&checker);
        world.machine.inject(cut(effect, kind.clone()));
        let ended = world.move_all();
        assert_eq!(checker.violations(), vec![], "before the end at effect {effect}");
        if world.machine.is_on() {
            assert!(
                ended
                    .result
                    .is_some_and(|result| result.is_ok_and(|report| report.is_complete()))
            );
            assert!(effect > 50, "only {effect} effects");
            return;
        }
        after(&world, effect);
        recover(world, effect);
        effect += 1;
    }
}

/// A second run must move what is left, keeping the law, and a third nothing more.
fn recover(world: World, effect: u64) {
    let checker = Arc::new(Checker::default());
    world.rebase();
    world.watch(&checker);
    let ended = world.move_all();
    let complete = matches!(&ended.result, Some(Ok(report)) if report.is_complete());
    checker.check_complete(complete, &format!("{:?} {:?}", ended.result, ended.stays));
    checker.check_end(&world);
    assert_eq!(
        checker.violations(),
        vec![],
        "recovering from an end at effect {effect}"
    );
    let third = world.move_all().result.unwrap().unwrap();
    assert_eq!(
        (third.copied, third.bytes_sent),
        (0, 0),
        "third run after an end at effect {effect}"
    );
}

fn cut_power(one_disk: bool, off: Off) {
    for (profile, large) in STATES {
        end_at_every_effect(
            || small(one_disk, large),
            Kind::PowerCut(off),
            |world, effect| {
                world.machine.crash(profile, &mut Random::new(effect));
            },
        );
    }
}

#[test]
fn power_cut_at_every_effect_between_two_disks_loses_nothing() {
    cut_power(false, Off::Hang);
}

#[test]
fn power_cut_at_every_effect_on_one_disk_loses_nothing() {
    cut_power(true, Off::Hang);
}

#[test]
fn disks_that_fail_at_every_effect_and_all_later_ones_lose_nothing() {
    cut_power(false, Off::Fail);
}

#[test]
fn process_killed_at_every_effect_loses_nothing() {
    for (one_disk, large) in [(false, Large::TwoChunks), (true, Large::OneChunk)] {
        end_at_every_effect(
            || small(one_disk, large),
            Kind::Kill(Off::Hang),
            |world, _| {
                world.machine.restart();
            },
        );
    }
}

#[test]
fn process_killed_on_file_systems_that_know_little_loses_nothing() {
    end_at_every_effect(
        || knowing_little(false, Large::OneChunk),
        Kind::Kill(Off::Hang),
        |world, _| {
            world.machine.restart();
        },
    );
}

/// The times of a link are on the disk whenever the file system likes: the old one has to be known without them.
#[test]
fn a_link_that_was_made_a_moment_ago_can_be_replaced_through_a_power_cut() {
    let path = RelPath::new("link").unwrap();
    let killed_before_its_source_goes = || {
        let world = World::of(1, false, vec![("link", Body::Link(b"text".into()), None)]);
        world.machine.inject(Fault {
            at: At::Call {
                op: Op::Rename,
                path: Some(at_source(&path)),
                nth: 0,
            },
            kind: Kind::Kill(Off::Hang),
        });
        world.move_all();
        assert!(!world.machine.is_on());
        world.machine.restart();
        assert!(world.target.stat(at_target(&path).as_bytes()).is_ok());
        world
    };
    for profile in Profile::ALL {
        for state in 0..4 {
            for effect in 0.. {
                let (world, checker) = (killed_before_its_source_goes(), Arc::new(Checker::default()));
                world.rebase();
                world.watch(&checker);
                let kind = Kind::PowerCut(Off::Hang);
                world.machine.inject(cut(world.machine.effects() + effect, kind));
                world.move_all();
                assert_eq!(checker.violations(), vec![], "before the end at effect {effect}");
                if world.machine.is_on() {
                    assert!(effect > 10, "only {effect} effects");
                    break;
                }
                world.machine.crash(profile, &mut Random::new(effect * 4 + state));
                recover(world, effect);
            }
        }
    }
}

#[test]
fn power_cut_on_file_systems_that_know_little_loses_nothing() {
    for profile in [Profile::Ordered, Profile::PosixWorst] {
        end_at_every_effect(
            || knowing_little(false, Large::OneChunk),
            Kind::PowerCut(Off::Hang),
            |world, effect| {
                world.machine.crash(profile, &mut Random::new(effect));
            },
        );
    }
}
