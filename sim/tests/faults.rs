//! One thing goes wrong at every effect and read of a small move in turn. Whatever it is, the law holds at every moment, and once
//! nothing fails any more a further run moves what is left.

use std::sync::Arc;

use realize::model::RelPath;
use realize_sim::{
    check::Checker,
    fs::{Act, At, Cache, Fault, Kind, Machine, Op, Refusals},
    world::{Large, SOURCE, TARGET, World, at_source, at_target},
};
use rustix::io::Errno;

/// Moves with one fault, then without; what was violated on the way is an error.
fn survive(one_disk: bool, fault: Fault) -> bool {
    let (mut world, checker) = (World::small(1, one_disk, Large::OneChunk), Arc::new(Checker::default()));
    if matches!(fault.kind, Kind::SyncLost(..) | Kind::WriteBackLost(..)) {
        // What somebody else left unsynced, and a disk then loses, is not the move's to answer for.
        world.target.settle();
    }
    world.watch(&checker);
    world.machine.inject(fault.clone());
    let first = world.move_all();
    let struck = world.machine.heal().is_empty();
    assert_eq!(checker.violations(), vec![], "{fault:?}: {first:?}");
    world.rebase();
    world.machine.restart();
    let checker = Arc::new(Checker::default());
    world.watch(&checker);
    let second = world.move_all();
    let complete = matches!(&second.result, Some(Ok(report)) if report.is_complete());
    checker.check_complete(complete, &format!("{:?} {:?}", second.result, second.stays));
    checker.check_end(&world);
    assert_eq!(
        checker.violations(),
        vec![],
        "the run after {fault:?}, which gave {first:?}"
    );
    struck
}

/// Every effect in turn; how many there were.
fn at_every_effect(one_disk: bool, kind: &Kind) -> u64 {
    (0..)
        .find(|effect| {
            !survive(
                one_disk,
                Fault {
                    at: At::Effect(*effect),
                    kind: kind.clone(),
                },
            )
        })
        .unwrap()
}

#[test]
fn an_effect_that_fails_loses_nothing() {
    for one_disk in [false, true] {
        for errno in [Errno::IO, Errno::NOSPC, Errno::ACCESS] {
            let effects = at_every_effect(one_disk, &Kind::Error(errno));
            assert!(effects > 50, "{effects} effects");
        }
    }
}

#[test]
fn a_read_that_fails_loses_nothing() {
    for one_disk in [false, true] {
        let reads = (0..).find(|read| {
            !survive(
                one_disk,
                Fault {
                    at: At::Read(*read),
                    kind: Kind::Error(Errno::IO),
                },
            )
        });
        assert!(reads.unwrap() > 100);
    }
}

#[test]
fn short_and_interrupted_calls_are_gone_on_with() {
    for kind in [Kind::Short(1), Kind::Error(Errno::INTR)] {
        for op in [Op::Read, Op::Write] {
            for nth in 0..6 {
                let fault = Fault {
                    at: At::Call { op, path: None, nth },
                    kind: kind.clone(),
                };
                assert!(survive(false, fault), "{op:?} {nth}");
            }
        }
    }
}

/// Every sync of a file in turn, lost so that the cache hides it or shows it.
#[test]
fn a_lost_sync_is_never_taken_for_one_that_was_made() {
    for cache in [Cache::Kept, Cache::Reverted] {
        for kind in [Kind::SyncLost(Errno::IO, cache), Kind::WriteBackLost(Errno::IO, cache)] {
            let op = if matches!(kind, Kind::SyncLost(..)) {
                Op::FileSync
            } else {
                Op::Write
            };
            let struck = (0..).find(|nth| {
                !survive(
                    false,
                    Fault {
                        at: At::Call {
                            op,
                            path: None,
                            nth: *nth,
                        },
                        kind: kind.clone(),
                    },
                )
            });
            assert!(struck.unwrap() >= 5, "{kind:?}");
        }
    }
}

#[test]
fn after_a_failed_sync_nothing_more_is_confirmed() {
    let world = World::small(1, false, Large::OneChunk);
    let at = At::Call {
        op: Op::FileSync,
        path: None,
        nth: 0,
    };
    world.machine.inject(Fault {
        at,
        kind: Kind::Error(Errno::IO),
    });
    let ended = world.move_all();
    let report = ended.result.unwrap().unwrap();
    assert!(report.stopped.is_some() && !report.is_complete(), "{report:?}");
    assert_eq!((report.copied, report.verified), (0, 0));
}

#[test]
fn file_systems_that_know_little_lose_nothing() {
    let refusals = [
        Refusals {
            no_replace: Some(Errno::INVAL),
            ..Refusals::default()
        },
        Refusals {
            exchange: Some(Errno::INVAL),
            ..Refusals::default()
        },
        Refusals {
            no_replace: Some(Errno::NOSYS),
            exchange: Some(Errno::NOSYS),
            ..Refusals::default()
        },
        Refusals {
            no_replace: Some(Errno::INVAL),
            link: Some(Errno::PERM),
            ..Refusals::default()
        },
        Refusals {
            lease: Some(Errno::INVAL),
            ..Refusals::default()
        },
        Refusals {
            lease: Some(Errno::ACCESS),
            ..Refusals::default()
        },
    ];
    for refusal in refusals {
        let (world, checker) = (World::small(1, false, Large::OneChunk), Arc::new(Checker::default()));
        world.source.refuse(refusal);
        world.target.refuse(refusal);
        world.watch(&checker);
        let ended = world.move_all();
        checker.check_complete(
            ended.result.unwrap().unwrap().is_complete(),
            &format!("{:?}", ended.stays),
        );
        checker.check_end(&world);
        assert_eq!(checker.violations(), vec![], "{refusal:?}");
    }
}

#[test]
fn without_directory_syncs_nothing_is_moved() {
    let world = World::small(1, false, Large::OneChunk);
    world.target.refuse(Refusals {
        dir_sync: Some(Errno::INVAL),
        ..Refusals::default()
    });
    let before = world.source.nodes().len();
    assert!(world.move_all().result.unwrap().is_err());
    assert_eq!(world.source.nodes().len(), before);
}

fn act(at: At, act: impl Fn(&Machine) + Send + Sync + 'static) -> Fault {
    Fault {
        at,
        kind: Kind::Act(Act(Arc::new(act))),
    }
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

/// Somebody acts on one file before every effect in turn; `lost` tells from the disks whether theirs is gone.
fn somebody_acts_anywhere(
    what: &str,
    theirs: impl Fn(&Machine) + Send + Sync + Clone + 'static,
    lost: impl Fn(&World) -> bool,
) {
    let mut effect = 0;
    loop {
        let world = World::small(1, false, Large::OneChunk);
        world.machine.inject(act(At::Effect(effect), theirs.clone()));
        let ended = world.move_all();
        if !world.machine.heal().is_empty() {
            assert!(effect > 50);
            return;
        }
        assert!(!lost(&world), "{what} at effect {effect}: {ended:?}");
        effect += 1;
    }
}

#[test]
fn a_source_that_is_replaced_at_any_moment_is_not_lost() {
    let source = at_source(&path("d/b"));
    let theirs = move |machine: &Machine| {
        // Its directory may be gone already.
        machine.disk(SOURCE).replace(source.as_bytes(), b"theirs").ok();
    };
    let lost = |world: &World| {
        let (source, target) = (world.source.nodes(), world.target.nodes());
        let made = source
            .keys()
            .any(|path| path.is_within(&RelPath::new("source/d").unwrap()));
        let holds = |content: Option<Vec<u8>>| content.as_deref() == Some(b"theirs");
        let at = |nodes: &realize_sim::fs::Nodes, path: &RelPath| nodes.get(path).map(|node| node.content.to_vec());
        made && !holds(at(&source, &at_source(&path("d/b")))) && !holds(at(&target, &at_target(&path("d/b"))))
    };
    somebody_acts_anywhere("replacing a source", theirs, lost);
}

#[test]
fn a_source_that_is_written_to_at_any_moment_is_not_lost() {
    let source = at_source(&path("d/b"));
    let theirs = move |machine: &Machine| {
        machine.disk(SOURCE).write_at(source.as_bytes(), 0, b"THEM").ok();
    };
    let lost = |world: &World| {
        let theirs = |content: std::io::Result<Vec<u8>>| content.is_ok_and(|content| content == b"THEM");
        let whole = |content: std::io::Result<Vec<u8>>| content.is_ok_and(|content| content == b"beta");
        let (source, target) = (at_source(&path("d/b")), at_target(&path("d/b")));
        let target_is_whole = whole(world.target.read(target.as_bytes()));
        let target_is_theirs = theirs(world.target.read(target.as_bytes()));
        let source_is_there = world.source.stat(source.as_bytes()).is_ok();
        // Either they wrote in time and theirs is somewhere, or the source had gone before.
        !(target_is_theirs || source_is_there || target_is_whole)
    };
    somebody_acts_anywhere("writing to a source", theirs, lost);
}

#[test]
fn a_final_that_appears_at_any_moment_is_not_overwritten() {
    for name in ["d/b", "large", "a"] {
        let target = at_target(&path(name));
        let theirs = {
            let target = target.clone();
            move |machine: &Machine| {
                // Where ours is already, theirs does not appear.
                machine.disk(TARGET).create(target.as_bytes(), b"theirs").ok();
            }
        };
        let source = at_source(&path(name));
        let lost = move |world: &World| {
            let appeared = world
                .target
                .read(target.as_bytes())
                .is_ok_and(|content| content == b"theirs");
            let source_is_there = world.source.stat(source.as_bytes()).is_ok();
            let arrived = world.truth.get(&path(name)).is_some_and(|truth| {
                world
                    .target
                    .nodes()
                    .get(&target)
                    .is_some_and(|node| realize_sim::world::is(node, &truth.new))
            });
            // Theirs and our source, or ours where theirs came too late.
            !((appeared && source_is_there) || arrived)
        };
        somebody_acts_anywhere("appearing at the target", theirs, lost);
    }
}

#[test]
fn an_old_final_that_is_replaced_at_any_moment_is_not_overwritten() {
    let target = at_target(&path("older"));
    let theirs = {
        let target = target.clone();
        move |machine: &Machine| machine.disk(TARGET).replace(target.as_bytes(), b"theirs").unwrap()
    };
    let lost = move |world: &World| {
        !world
            .target
            .nodes()
            .values()
            .any(|node| node.content.to_vec() == b"theirs")
    };
    // Before the listing it is an older version like any other, and is replaced as the user asked.
    let world = World::small(1, false, Large::OneChunk);
    world.machine.keep_log();
    world.move_all();
    let makes_partial = |call: &&realize_sim::fs::Call| {
        call.op == Op::Create && call.path == Some(at_target(&path(".older.realize-part")))
    };
    let log = world.machine.log();
    let mut effect = log.iter().find(makes_partial).unwrap().index;
    loop {
        let world = World::small(1, false, Large::OneChunk);
        world.machine.inject(act(At::Effect(effect), theirs.clone()));
        let ended = world.move_all();
        if !world.machine.heal().is_empty() {
            break;
        }
        assert!(!lost(&world), "at effect {effect}: {ended:?}");
        effect += 1;
    }
}

#[test]
fn a_file_whose_directory_is_moved_away_meanwhile_is_not_called_moved() {
    for (name, step) in [("d/b", Op::Rename), ("d/b", Op::FileSync)] {
        let world = World::small(1, false, Large::OneChunk);
        let theirs = |machine: &Machine| {
            let disk = machine.disk(TARGET);
            disk.rename("target/d", "target/elsewhere").unwrap();
            disk.mkdir_all("target/d/e").unwrap();
        };
        let partial = at_target(&path("d/.b.realize-part"));
        world.machine.inject(act(
            At::Call {
                op: step,
                path: Some(partial),
                nth: 0,
            },
            theirs,
        ));
        let ended = world.move_all();
        assert!(
            world.machine.heal().is_empty(),
            "{name} was to be disturbed at its {step:?}"
        );
        assert!(
            world.source.stat(at_source(&path(name)).as_bytes()).is_ok(),
            "{step:?}: {ended:?}"
        );
        assert!(ended.stays.iter().any(|failure| failure.path == path(name)));
    }
}

#[test]
fn a_source_replaced_while_a_link_stands_for_its_rename_is_not_unlinked() {
    let world = World::small(1, false, Large::OneChunk);
    let no_replace = Some(Errno::INVAL);
    world.source.refuse(Refusals {
        no_replace,
        ..Refusals::default()
    });
    let source = at_source(&path("d/b"));
    let theirs = {
        let source = source.clone();
        move |machine: &Machine| machine.disk(SOURCE).replace(source.as_bytes(), b"theirs").unwrap()
    };
    // Looked at in the listing, when it is opened, and once it is linked.
    let at = At::Call {
        op: Op::Stat,
        path: Some(source.clone()),
        nth: 2,
    };
    world.machine.inject(act(at, theirs));
    let ended = world.move_all();
    assert!(
        world.machine.heal().is_empty(),
        "it was not looked at before the unlink"
    );
    assert_eq!(world.source.read(source.as_bytes()).unwrap(), b"theirs", "{ended:?}");
}
