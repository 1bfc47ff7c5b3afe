//! One thing goes wrong at every effect and read of a small move in turn. Whatever it is, the law holds at every moment, and once
//! nothing fails any more a further run moves what is left.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use realize::{
    model::{RelPath, Timestamp},
    service::Verify,
};
use realize_sim::{
    check::{Checker, Property, Violation},
    fs::{Act, At, Cache, Call, Content, Fault, Kind, Machine, Op, Refusals},
    world::{Body, Large, SOURCE, TARGET, World, at_source, at_target, process},
};
use rustix::io::Errno;

/// Moves with one fault, then without; what was violated on the way is an error.
fn survive(one_disk: bool, fault: Fault) -> bool {
    let (world, checker) = (World::small(1, one_disk, Large::OneChunk), Arc::new(Checker::default()));
    if matches!(fault.kind, Kind::SyncLost(..) | Kind::WriteBackLost(..)) {
        // What somebody else left unsynced, and a disk then loses, is not the move's to answer for.
        world.target.settle();
    }
    world.watch(&checker);
    world.machine.inject(fault.clone());
    let first = world.move_all();
    let struck = world.machine.heal().is_empty();
    assert_eq!(checker.violations(), vec![], "{fault:?}: {first:?}");
    if world.is_doubtful() {
        world.machine.reboot();
    } else {
        world.machine.restart();
    }
    world.rebase();
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
        for errno in [Errno::IO, Errno::NOSPC] {
            let effects = at_every_effect(one_disk, &Kind::Error(errno));
            assert!(effects > 50, "{effects} effects");
        }
    }
}

#[test]
fn a_read_that_fails_loses_nothing() {
    for one_disk in [false, true] {
        let reads = (0..).step_by(2).find(|read| {
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
                    at: At::call(op, nth),
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
                        at: At::call(op, *nth),
                        kind: kind.clone(),
                    },
                )
            });
            assert!(struck.unwrap() >= 5, "{kind:?}");
        }
    }
}

/// Somebody writes to a partial, or frees its room, before every call in turn: no source goes for what is not there, and an older final stays until
/// it is replaced by what it should be.
#[test]
fn what_somebody_else_does_to_a_partial_is_seen() {
    let part = path("target/.new.realize-part");
    let harms: [fn(&Machine, &RelPath); 4] = [
        |machine, part| machine.disk(2).write_at(part.as_bytes(), 7, b"other").unwrap(),
        |machine, part| machine.disk(2).truncate(part.as_bytes(), 0).unwrap(),
        // Where the source has a hole, and past what is there.
        |machine, part| {
            let offset = (1 << 20) + 9000;
            machine.disk(2).write_at(part.as_bytes(), offset, b"other").unwrap();
        },
        |machine, part| {
            let offset = (3 << 20) + 9000;
            machine.disk(2).write_at(part.as_bytes(), offset, b"other").unwrap();
        },
    ];
    let mut new = Content::from(b"");
    new.set_len((3 << 20) + 12345);
    new.write(100, b"beginning");
    new.write((2 << 20) + 100, b"middle");
    let older = Content::from(&vec![9; 2 << 20][..]);
    let world_of = |is_replacing: bool| {
        let older = is_replacing.then(|| Body::File(older.clone()));
        let world = World::of(1, false, vec![("new", Body::File(new.clone()), older)]);
        world.target.refuse(Refusals {
            reflink: Some(Errno::OPNOTSUPP),
            ..Refusals::default()
        });
        world
    };
    // Until there is a partial nothing can happen to it.
    let first = |is_effect: bool, is_replacing: bool| {
        let world = world_of(is_replacing);
        world.machine.keep_log();
        world.move_all();
        let on_partial = |call: &&Call| call.op.is_effect() == is_effect && call.path.as_ref() == Some(&part);
        world.machine.log().iter().find(on_partial).unwrap().index
    };
    let all = (0..harms.len()).flat_map(|harm| [(harm, false), (harm, true)]);
    for ((nth_harm, is_replacing), is_effect) in all.flat_map(|case| [(case, true), (case, false)]) {
        if !is_effect && (nth_harm % 2 == 1 || !is_replacing) {
            // Two of them tell for all that are no effects.
            continue;
        }
        let (harm, mut done) = (harms[nth_harm], 0);
        for nth in first(is_effect, is_replacing).. {
            let (world, checker) = (world_of(is_replacing), Arc::new(Checker::default()));
            world.watch(&checker);
            let (harmed, part) = (Arc::new(AtomicBool::new(false)), part.clone());
            let is_harmed = harmed.clone();
            let at = if is_effect { At::Effect(nth) } else { At::Read(nth) };
            world.machine.inject(act(at.clone(), move |machine| {
                if machine.disk(2).stat(part.as_bytes()).is_ok() {
                    harm(machine, &part);
                    is_harmed.store(true, Ordering::Relaxed);
                }
            }));
            let first = world.move_all();
            if !world.machine.heal().is_empty() {
                break;
            }
            let what = format!("{nth_harm} at {at:?}, replacing: {is_replacing}: {first:?}");
            let law = |violation: &Violation| violation.property == Property::Law;
            assert!(!checker.violations().iter().any(law), "{what}");
            if !harmed.load(Ordering::Relaxed) {
                continue;
            }
            done += 1;
            if is_replacing {
                let there = world.target.content("target/new").unwrap();
                assert!(there == older || there == new, "{what}");
            }
            world.move_all();
            assert!(world.target.content("target/new").unwrap() == new, "{what}");
            assert!(world.source.read("source/new").is_err(), "{what}");
        }
        assert!(done > 3, "{done}");
    }
}

/// What is equal, but for a place that the disk does not give any more, is replaced by what the source has.
#[test]
fn a_final_that_cannot_be_read_is_replaced() {
    let film = || Body::File(Content::from(&vec![7; 3 << 20][..]));
    for (name, body) in [("small", text("the same")), ("film", film())] {
        let files = vec![(name, body.clone(), Some(body))];
        let (world, checker) = (World::of(1, false, files), Arc::new(Checker::default()));
        world.watch(&checker);
        world.machine.inject(Fault {
            at: At::Call {
                op: Op::Read,
                path: Some(at_target(&path(name))),
                nth: 0,
            },
            kind: Kind::Error(Errno::IO),
        });
        let ended = world.move_all();
        assert_eq!(world.machine.struck().len(), 1, "{name}");
        let report = ended.result.unwrap().unwrap();
        assert!(report.is_complete() && report.copied == 1, "{name}: {report:?}");
        checker.check_complete(true, name);
        checker.check_end(&world);
        assert_eq!(checker.violations(), vec![], "{name}");
    }
}

#[test]
fn after_a_failed_sync_nothing_more_is_confirmed() {
    let world = World::small(1, false, Large::OneChunk);
    let at = At::call(Op::FileSync, 0);
    world.machine.inject(Fault {
        at,
        kind: Kind::Error(Errno::IO),
    });
    let ended = world.move_all();
    let report = ended.result.unwrap().unwrap();
    assert!(report.stopped.is_some() && !report.is_complete(), "{report:?}");
    assert_eq!((report.copied, report.verified), (0, 0));
}

/// What a failed sync of a directory has lost is seen until the kernel starts anew, and no later sync brings it back: another process must
/// not take what it sees there for safe.
#[test]
fn a_later_process_does_not_trust_a_directory_whose_sync_failed() {
    let mut refused = 0;
    for (nth, cache) in (0..20).flat_map(|nth| [(nth, Cache::Kept), (nth, Cache::Reverted)]) {
        let (world, checker) = (World::small(1, false, Large::OneChunk), Arc::new(Checker::default()));
        world.target.settle();
        world.watch(&checker);
        let (op, path) = (Op::DirSync, None);
        world.machine.inject(Fault {
            at: At::Call { op, path, nth },
            kind: Kind::SyncLost(Errno::IO, cache),
        });
        let first = world.move_all();
        if !world.machine.heal().is_empty() {
            break;
        }
        let second = world.move_all();
        let is_complete = matches!(&second.result, Some(Ok(report)) if report.is_complete());
        refused += u64::from(!is_complete);
        world.machine.reboot();
        world.rebase();
        let third = world.move_all();
        let is_complete = matches!(&third.result, Some(Ok(report)) if report.is_complete());
        checker.check_complete(is_complete, &format!("{:?} {:?}", third.result, third.stays));
        checker.check_end(&world);
        assert_eq!(checker.violations(), vec![], "sync {nth}: {first:?}, then {second:?}");
    }
    assert!(refused > 5, "{refused}");
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
            let arrived = world.truth().get(&path(name)).is_some_and(|truth| {
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
    // Looked at in the listing, and once it is linked.
    let at = At::Call {
        op: Op::Stat,
        path: Some(source.clone()),
        nth: 1,
    };
    world.machine.inject(act(at, theirs));
    let ended = world.move_all();
    assert!(
        world.machine.heal().is_empty(),
        "it was not looked at before the unlink"
    );
    assert_eq!(world.source.read(source.as_bytes()).unwrap(), b"theirs", "{ended:?}");
}

/// The calls about `name` at the target from the first that changes something on, in a move that nothing disturbs.
fn calls_at(name: &str, one_disk: bool) -> Vec<At> {
    let world = World::small(1, one_disk, Large::OneChunk);
    world.machine.keep_log();
    world.move_all();
    let path = at_target(&path(name));
    let (dir, name) = path.split().unwrap();
    let ours = [dir.as_bytes(), b"/.", name.as_bytes(), b".realize-"].concat();
    let is_at = |at: &Option<RelPath>| {
        let at = at.as_ref();
        at.is_some_and(|at| *at == path || at.as_bytes().starts_with(&ours))
    };
    let log = world.machine.log();
    let at = |call: &realize_sim::fs::Call| match call.op.is_effect() {
        true => At::Effect(call.index),
        false => At::Read(call.index),
    };
    log.iter()
        .filter(|call| is_at(&call.path) || is_at(&call.to))
        .skip_while(|call| !call.op.is_effect())
        .map(at)
        .collect()
}

/// What is under the final name when nobody of the move's was to put it there.
fn stays_replaced(name: &str, one_disk: bool, moments: &[At]) -> bool {
    let target = at_target(&path(name));
    let world = World::small(1, one_disk, Large::OneChunk);
    for (nth, at) in moments.iter().enumerate() {
        let target = target.clone();
        world.machine.inject(act(at.clone(), move |machine: &Machine| {
            let theirs = [b"theirs".as_slice(), &[b'0' + nth as u8]].concat();
            machine
                .disk(if one_disk { SOURCE } else { TARGET })
                .replace(target.as_bytes(), &theirs)
                .unwrap();
        }));
    }
    let ended = world.move_all();
    if !world.machine.heal().is_empty() {
        return false;
    }
    let last = [b"theirs".as_slice(), &[b'0' + moments.len() as u8 - 1]].concat();
    // Two of theirs may have come so fast that the move can't tell which is to stay: then it says so, and both do.
    let is_kept = |at: &RelPath| *at == target || at.as_bytes().windows(14).any(|bytes| bytes == b".realize-swap-");
    let nodes = world.target.nodes();
    let kept = nodes.iter().filter(|(at, _)| is_kept(at));
    assert!(
        kept.map(|(_, node)| node.content.to_vec())
            .any(|content| content == last),
        "{name} replaced at {moments:?}: {ended:?}"
    );
    assert!(moments.len() > 1 || world.target.read(target.as_bytes()).unwrap() == last);
    true
}

#[test]
fn what_somebody_puts_over_a_final_at_any_moment_stays_there() {
    for one_disk in [false, true] {
        for name in ["d/b", "large", "a", "d/link", "older", "relink"] {
            let struck = calls_at(name, one_disk)
                .into_iter()
                .filter(|at| stays_replaced(name, one_disk, std::slice::from_ref(at)))
                .count();
            assert!(struck > if one_disk { 0 } else { 5 }, "{name}: {struck}");
        }
    }
}

#[test]
fn what_two_put_over_a_final_one_after_the_other_leaves_the_second() {
    for name in ["d/b", "older", "other", "relink"] {
        let calls = calls_at(name, false);
        for (nth, first) in calls.iter().enumerate() {
            for second in &calls[nth + 1..] {
                stays_replaced(name, false, &[first.clone(), second.clone()]);
            }
        }
    }
}

fn text(text: &str) -> realize_sim::world::Body {
    realize_sim::world::Body::File(realize_sim::fs::Content::from(text.as_bytes()))
}

/// Moves twice to a file system on which some names are one, and expects every content on one side or the other.
fn survives_folding(files: &[&str]) {
    let world = World::of(1, false, files.iter().map(|name| (*name, text(name), None)).collect());
    let refusals = Refusals {
        folds: true,
        ..Refusals::default()
    };
    world.target.refuse(refusals);
    for _ in 0..2 {
        let ended = world.move_all();
        let (source, target) = (world.source.nodes(), world.target.nodes());
        for name in files {
            let holds =
                |nodes: &realize_sim::fs::Nodes| nodes.values().any(|node| node.content.to_vec() == name.as_bytes());
            assert!(holds(&source) || holds(&target), "{name}: {ended:?}");
        }
        assert!(!ended.stays.is_empty(), "{ended:?}");
    }
}

#[test]
fn directories_that_the_target_takes_for_one_are_not_merged() {
    let between: Vec<_> = ('a'..='y').map(|letter| format!("bar/{letter}")).collect();
    let mut files = vec!["Bar/z", "bar/z"];
    files.extend(between.iter().map(String::as_str));
    survives_folding(&files);
}

#[test]
fn names_without_letters_that_the_target_takes_for_one_do_not_replace_each_other() {
    survives_folding(&["2024", "2024-1", "2024-2", "2024-3", "2024-4", "2024-5", "2024."]);
}

#[test]
fn equal_files_whose_names_the_target_takes_for_one_both_stay_somewhere() {
    let same = || text("the same");
    let files = vec![
        ("Foo", same(), None),
        ("a", text("a"), None),
        ("b", text("b"), None),
        ("foo", same(), None),
    ];
    let world = World::of(1, false, files);
    world.target.refuse(Refusals {
        folds: true,
        ..Refusals::default()
    });
    let ended = world.move_all();
    let exists = |disk: &realize_sim::fs::Disk, name: &str| disk.nodes().contains_key(&path(name));
    for name in ["Foo", "foo"] {
        let there =
            exists(&world.source, &format!("source/{name}")) || exists(&world.target, &format!("target/{name}"));
        assert!(there, "{name}: {ended:?}");
    }
}

/// A program that asked who owns what it makes died between making a file for that and removing it.
#[test]
fn what_a_crash_left_of_asking_for_the_owner_is_in_nobodys_way() {
    use realize::{
        fs::Fs,
        limits::Limits,
        model::Name,
        store::{FailedSync, Store},
    };
    let disk = Machine::new(1).disk(1);
    let part = realize::store::names::partial(&Name::new("large").unwrap());
    let probe = realize::store::names::probe(&part);
    disk.mkdir_all("target").unwrap();
    for (name, content) in [(&part, &b"old"[..]), (&probe, b"")] {
        let path = format!("target/{}", std::str::from_utf8(name.as_bytes()).unwrap());
        disk.create(path.as_str(), content).unwrap();
    }
    disk.settle();
    let found = process(async {
        let root = disk.fs().open_root(std::path::Path::new("/target")).await.unwrap();
        // Nobody has claimed it, so the owner is not known.
        let store: Store<realize_sim::fs::SimFs> =
            Store::new(root, Limits::default(), false, [1; 16], FailedSync::default());
        let partial = store.open_partial(&path("large"), 3, None).await;
        partial.map(|partial| partial.found_len())
    });
    assert_eq!(found, Ok(3));
    let left: Vec<_> = disk
        .nodes()
        .into_keys()
        .filter(|path| path.is_within(&self::path("target")))
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// A world of one file, on file systems without RENAME_NOREPLACE and RENAME_EXCHANGE.
fn without_renames(old: Option<&str>) -> World {
    let body = |text: &str| Body::File(text.as_bytes().into());
    let world = World::of(1, false, vec![("a", body("the new one"), old.map(body))]);
    for disk in [&world.source, &world.target] {
        disk.refuse(Refusals {
            no_replace: Some(Errno::INVAL),
            exchange: Some(Errno::INVAL),
            ..Refusals::default()
        });
    }
    world
}

#[test]
fn a_failed_sync_of_a_name_given_back_is_not_tried_again() {
    let (world, checker) = (without_renames(None), Arc::new(Checker::default()));
    world.source.rename("source/a", "source/.a.realize-gone").unwrap();
    world.source.settle();
    world.watch(&checker);
    let source = RelPath::new("source").unwrap();
    world.machine.inject(Fault {
        at: At::Call {
            op: Op::DirSync,
            path: Some(source),
            nth: 0,
        },
        kind: Kind::SyncLost(Errno::IO, Cache::Kept),
    });
    // The second is another process, which can know it only from the mark.
    for _ in 0..2 {
        world.move_all();
    }
    assert_eq!(checker.violations(), vec![]);
    world.machine.reboot();
    world.rebase();
    let last = world.move_all();
    let is_complete = matches!(&last.result, Some(Ok(report)) if report.is_complete());
    assert!(is_complete, "{last:?}");
    checker.check_end(&world);
    assert_eq!(checker.violations(), vec![]);
}

#[test]
fn who_writes_to_a_file_while_its_second_name_goes_is_not_overwritten() {
    let world = without_renames(Some("old"));
    let part = RelPath::new("target/.a.realize-part").unwrap();
    world.target.link("target/a", part.as_bytes()).unwrap();
    world.target.settle();
    world.rebase();
    let words = b"somebody's precious words";
    let target = world.target.clone();
    world.machine.inject(Fault {
        at: At::Call {
            op: Op::Unlink,
            path: Some(part),
            nth: 0,
        },
        kind: Kind::Act(Act(Arc::new(move |_| {
            target.write_at("target/a", 0, words).unwrap();
            target.sync("target/a").unwrap();
        }))),
    });
    let ended = world.move_all();
    assert_eq!(world.machine.struck().len(), 1);
    assert_eq!(world.target.read("target/a").unwrap(), words, "{ended:?}");
}

/// Files' times: two seconds before the program begins.
#[test]
fn what_changed_a_moment_ago_stays_where_there_are_no_leases() {
    let just_now = Timestamp {
        secs: 1_700_003_600 - 2,
        nanos: 0,
    };
    for has_leases in [false, true] {
        let world = World::small(1, false, Large::OneChunk);
        world.source.refuse(Refusals {
            lease: (!has_leases).then_some(Errno::INVAL),
            ..Refusals::default()
        });
        world.machine.set_wall(move || just_now);
        world.source.set_meta("source/a", 0o640, just_now).unwrap();
        let ended = world.move_all();
        let stays: Vec<_> = ended.stays.iter().map(|failure| failure.path.to_string()).collect();
        assert_eq!(world.source.stat("source/a").is_ok(), !has_leases, "{ended:?}");
        assert_eq!(stays, if has_leases { vec![] } else { vec!["\"a\""] });
    }
}

/// A bit of what was written and synced turns over on the device: with `--verify=disk` that is seen before anything rests on it.
#[test]
fn what_rots_on_the_disk_is_seen_by_who_reads_it_back() {
    for (file, part) in [
        ("d/b", "target/d/.b.realize-part"),
        ("large", "target/.large.realize-part"),
    ] {
        let path = RelPath::new(file).unwrap();
        let mut world = World::small(1, false, Large::TwoChunks);
        world.verify = Verify::Disk;
        let part = RelPath::new(part).unwrap();
        // Of a partial that was found the cache is dropped once more, before.
        let nth = u64::from(file == "large");
        let at = At::Call {
            op: Op::DropCache,
            path: Some(part.clone()),
            nth,
        };
        let rot = Kind::BitRot {
            device: TARGET,
            path: part,
            offset: 2,
        };
        world.machine.inject(Fault { at, kind: rot });
        let checker = Arc::new(Checker::default());
        world.watch(&checker);
        let ended = world.move_all();
        assert_eq!(world.machine.struck().len(), 1, "{file}");
        assert_eq!(checker.violations(), vec![], "{file}");
        let stays: Vec<_> = ended.stays.iter().map(|failure| &failure.path).collect();
        assert_eq!(stays, [&path], "{ended:?}");
        assert!(world.source.node(&at_source(&path)).is_some() && world.target.node(&at_target(&path)).is_none());
        // What is wrong is found and repaired by the next run.
        let again = world.move_all();
        assert!(again.stays.is_empty(), "{again:?}");
        checker.check_end(&world);
        assert_eq!(checker.violations(), vec![], "{file}");
    }
}

/// A final that is equal already, and gets the source's times: who writes to it while it or its name is made durable is seen.
#[test]
fn an_equal_final_that_is_written_to_before_it_counts_is_seen() {
    for body in [text("equal"), Body::File(vec![7; 3 << 20].as_slice().into())] {
        let world = || World::of(1, false, vec![("same", body.clone(), Some(body.clone()))]);
        let undisturbed = world();
        undisturbed.machine.keep_log();
        assert!(undisturbed.move_all().stays.is_empty());
        let log = undisturbed.machine.log();
        // The last look at it, and the syncs before.
        let is = |call: &&Call, op, at: &str| call.op == op && call.path == Some(path(at));
        let looked = log.iter().rposition(|call| is(&call, Op::Stat, "target/same"));
        let before = &log[..looked.unwrap()];
        let write = |machine: &Machine| machine.disk(TARGET).write_at("target/same", 1, b"their").unwrap();
        for (op, at) in [(Op::FileSync, "target/same"), (Op::DirSync, "target")] {
            let synced = before.iter().rfind(|call| is(call, op, at)).unwrap().index;
            let world = world();
            world.machine.inject(act(At::Effect(synced), write));
            let ended = world.move_all();
            assert_eq!(world.machine.struck().len(), 1);
            assert!(world.source.stat("source/same").is_ok(), "{op:?}: {ended:?}");
        }
    }
}

/// A final that is equal already, and gets the source's times: who writes to it right before it gets them is seen, where the length tells nothing too.
#[test]
fn an_equal_final_that_is_written_to_as_it_gets_the_sources_times_is_seen() {
    let writes: [fn(&Machine); 2] = [
        |machine| {
            let newer = b"their newer and other content";
            machine.disk(TARGET).write("target/same", newer).unwrap()
        },
        |machine| machine.disk(TARGET).write_at("target/same", 1, b"heir").unwrap(),
    ];
    for body in [text("equal"), Body::File(vec![7; 3 << 20].as_slice().into())] {
        for write in writes {
            for (op, is_refused) in [(Op::Lease, false), (Op::FileSetMeta, true), (Op::FileSetMeta, false)] {
                let world = World::of(1, false, vec![("same", body.clone(), Some(body.clone()))]);
                let at = At::call_on("target/same", op, 0);
                world.machine.inject(act(at.clone(), write));
                if is_refused {
                    // It belongs to somebody else.
                    world.machine.inject(Fault {
                        at,
                        kind: Kind::Error(Errno::PERM),
                    });
                }
                let ended = world.move_all();
                assert_eq!(world.machine.struck().len(), 1 + usize::from(is_refused));
                assert!(
                    world.source.stat("source/same").is_ok(),
                    "{op:?} {is_refused}: the source went: {ended:?}"
                );
            }
        }
    }
}
