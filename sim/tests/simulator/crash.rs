//! What a simulated power loss, a kill or a fault leaves: promises that no real disk can be asked about.

use std::{path::Path, sync::Arc, time::Duration};

use realize::{
    clock::Clock,
    fs::{Dir, File, Fs, Rename, Sight, write_all},
    model::{Name, RelPath},
};
use realize_sim::{clock::SimClock, fs::*, random::Random, world::process};
use rustix::io::Errno;

fn n(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn p(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

async fn root(disk: &Disk) -> SimDir {
    disk.fs().open_root(Path::new("/")).await.unwrap()
}

async fn make(dir: &SimDir, name: &str, content: &[u8]) -> SimFile {
    let file = dir.create(&n(name)).await.unwrap();
    write_all(&file, 0, content).await.unwrap();
    file
}

/// The contents of `path` that a crash may leave, over all enumerated states and many by chance.
fn outcomes(disk: &Disk, profile: Profile, path: &str) -> Vec<Option<Vec<u8>>> {
    let mut outcomes: Vec<_> = states(disk, profile)
        .iter()
        .map(|nodes| nodes.get(&p(path)).map(|node| node.content.to_vec()))
        .collect();
    outcomes.sort();
    outcomes.dedup();
    outcomes
}

fn states(disk: &Disk, profile: Profile) -> Vec<Nodes> {
    let mut states: Vec<Nodes> = disk.crash_states(profile, 5000).iter().map(Image::nodes).collect();
    let mut random = Random::new(7);
    states.extend((0..200).map(|_| disk.crash_state(profile, &mut random).nodes()));
    states
}

fn some(content: &[u8]) -> Option<Vec<u8>> {
    Some(content.to_vec())
}

#[test]
fn unsynced_rename_lost_on_crash() {
    process(async {
        let disk = Machine::new(1).disk(1);
        let dir = root(&disk).await;
        let file = make(&dir, "a", b"new").await;
        file.sync().await.unwrap();
        dir.sync().await.unwrap();
        dir.rename(&n("a"), &dir, &n("b"), Rename::NoReplace).await.unwrap();
        for profile in Profile::ALL {
            assert_eq!(outcomes(&disk, profile, "a"), [None, some(b"new")], "{profile:?}");
            assert_eq!(outcomes(&disk, profile, "b"), [None, some(b"new")], "{profile:?}");
        }
        dir.sync().await.unwrap();
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "b"), [some(b"new")]);
    });
}

#[test]
fn synced_content_under_a_synced_name_survives() {
    process(async {
        for profile in Profile::ALL {
            let machine = Machine::new(1);
            let disk = machine.disk(1);
            let dir = root(&disk).await;
            let file = make(&dir, "a", b"kept").await;
            file.sync().await.unwrap();
            dir.sync().await.unwrap();
            make(&dir, "other", b"x").await;
            assert_eq!(outcomes(&disk, profile, "a"), [some(b"kept")], "{profile:?}");
            machine.crash(profile, &mut Random::new(3));
            assert_eq!(disk.read("a").unwrap(), b"kept");
            assert_eq!(
                file.metadata().await.unwrap_err().raw_os_error(),
                Some(Errno::IO.raw_os_error())
            );
            assert!(root(&disk).await.open(&n("a")).await.is_ok());
        }
    });
}

#[test]
fn a_synced_name_of_an_unsynced_file_may_hold_anything() {
    process(async {
        let disk = Machine::new(1).disk(1);
        let dir = root(&disk).await;
        make(&dir, "a", &[7; 1024]).await;
        dir.sync().await.unwrap();
        let worst = outcomes(&disk, Profile::PosixWorst, "a");
        for legal in [
            vec![],
            vec![0; 1024],
            vec![7; 1024],
            [vec![7; 512], vec![0; 512]].concat(),
        ] {
            assert!(worst.contains(&Some(legal)));
        }
        assert!(!worst.contains(&None));
        let ordered = outcomes(&disk, Profile::Ordered, "a");
        assert_eq!(ordered, [some(b""), Some(vec![7; 1024])], "no size without its bytes");
    });
}

#[test]
fn a_synced_file_without_its_name_is_lost() {
    process(async {
        let disk = Machine::new(1).disk(1);
        let dir = root(&disk).await;
        make(&dir, "a", b"x").await.sync().await.unwrap();
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "a"), [None, some(b"x")]);
        assert_eq!(
            outcomes(&disk, Profile::Ordered, "a"),
            [some(b"x")],
            "a journal commits in order"
        );
    });
}

#[test]
fn sync_of_a_new_dir_without_its_parent_is_lost() {
    process(async {
        let disk = Machine::new(1).disk(1);
        let dir = root(&disk).await;
        dir.mkdir(&n("d")).await.unwrap();
        let below = dir.open_dir(&p("d")).await.unwrap();
        make(&below, "a", b"x").await.sync().await.unwrap();
        below.sync().await.unwrap();
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "d/a"), [None, some(b"x")]);
        assert!(!disk.ancestors_guaranteed(&p("d/a")) && !disk.always_holds(&p("d/a"), &Content::from(b"x")));
        dir.sync().await.unwrap();
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "d/a"), [some(b"x")]);
        assert!(disk.always_holds(&p("d/a"), &Content::from(b"x")));
    });
}

#[test]
fn rename_is_atomic_under_crash() {
    process(async {
        let disk = Machine::new(1).disk(1);
        let dir = root(&disk).await;
        disk.mkdir_all("d").unwrap();
        disk.create("a", "one").unwrap();
        disk.create("b", "two").unwrap();
        disk.settle();
        let to = dir.open_dir(&p("d")).await.unwrap();
        dir.rename(&n("a"), &to, &n("c"), Rename::Replace).await.unwrap();
        to.rename(&n("c"), &dir, &n("b"), Rename::Exchange).await.unwrap();
        for profile in Profile::ALL {
            for nodes in states(&disk, profile) {
                let names: Vec<String> = nodes.keys().map(ToString::to_string).collect();
                let holds = |content: &[u8]| nodes.values().filter(|n| n.content == Content::from(content)).count();
                assert_eq!((holds(b"one"), holds(b"two")), (1, 1), "{profile:?}: {names:?}");
            }
        }
        let (one, keys) = (Content::from(b"one"), [p("a"), p("b"), p("d/c")]);
        assert!(disk.survives(&keys, &one) && !disk.survives(&keys[1..], &one) && !disk.survives(&keys[..2], &one));
    });
}

#[test]
fn syncing_one_end_of_a_rename_syncs_the_other() {
    process(async {
        let disk = Machine::new(1).disk(1);
        disk.mkdir_all("d").unwrap();
        disk.create("a", "x").unwrap();
        disk.settle();
        let dir = root(&disk).await;
        let to = dir.open_dir(&p("d")).await.unwrap();
        dir.rename(&n("a"), &to, &n("a"), Rename::Replace).await.unwrap();
        dir.sync().await.unwrap();
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "d/a"), [some(b"x")]);
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "a"), [None]);
    });
}

#[test]
fn a_sync_covers_what_its_changes_depend_on() {
    process(async {
        let disk = Machine::new(1).disk(1);
        disk.mkdir_all("d").unwrap();
        disk.settle();
        let dir = root(&disk).await;
        let to = dir.open_dir(&p("d")).await.unwrap();
        make(&dir, "a", b"x").await.sync().await.unwrap();
        make(&dir, "b", b"").await;
        dir.rename(&n("a"), &to, &n("a"), Rename::Replace).await.unwrap();
        to.sync().await.unwrap();
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "d/a"), [some(b"x")]);
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "a"), [None]);
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "b"), [None, some(b"")]);
    });
}

#[test]
fn an_inode_number_is_used_again_once_no_crash_can_bring_it_back() {
    process(async {
        let disk = Machine::new(1).disk(1);
        let dir = root(&disk).await;
        make(&dir, "a", b"x").await;
        dir.sync().await.unwrap();
        let first = disk.stat("a").unwrap().version.ino;
        dir.unlink(&n("a")).await.unwrap();
        make(&dir, "b", b"x").await;
        assert_ne!(disk.stat("b").unwrap().version.ino, first);
        dir.sync().await.unwrap();
        make(&dir, "c", b"x").await;
        assert_eq!(disk.stat("c").unwrap().version.ino, first);
    });
}

#[test]
fn changes_of_different_names_are_reordered_only_in_the_worst_case() {
    process(async {
        let disk = Machine::new(1).disk(1);
        let dir = root(&disk).await;
        dir.symlink(&n("first"), b"x").await.unwrap();
        dir.symlink(&n("second"), b"x").await.unwrap();
        let reordered = |profile| {
            let states = states(&disk, profile);
            states
                .iter()
                .any(|nodes| nodes.contains_key(&p("second")) && !nodes.contains_key(&p("first")))
        };
        assert!(reordered(Profile::PosixWorst));
        assert!(!reordered(Profile::Ordered) && !reordered(Profile::Writeback) && !reordered(Profile::Cow));
    });
}

#[test]
fn failed_sync_covers_nothing_and_its_retry_neither() {
    process(async {
        for cache in [Cache::Kept, Cache::Reverted] {
            let machine = Machine::new(1);
            let disk = machine.disk(1);
            disk.create("a", [1; 4096]).unwrap();
            disk.settle();
            let dir = root(&disk).await;
            let file = dir.open_write(&n("a")).await.unwrap();
            write_all(&file, 0, &[2; 4096]).await.unwrap();
            let at = At::Effect(machine.effects());
            let kind = Kind::SyncLost(Errno::IO, cache);
            machine.inject(Fault { at, kind });
            assert!(file.sync().await.is_err());
            file.sync().await.unwrap();
            assert_eq!(disk.read("a").unwrap() == [2; 4096], cache == Cache::Kept);
            assert!(!disk.always_holds(&p("a"), &Content::from(&[2; 4096])));
            assert!(!outcomes(&disk, Profile::PosixWorst, "a").contains(&Some(vec![2; 4096])));
            file.drop_cache().await.unwrap();
            assert_ne!(disk.read("a").unwrap(), [2; 4096], "reading back tells");
            write_all(&file, 0, &[2; 4096]).await.unwrap();
            file.sync().await.unwrap();
            assert!(disk.always_holds(&p("a"), &Content::from(&[2; 4096])));
        }
    });
}

#[test]
fn failed_sync_of_a_directory_loses_its_names_for_good() {
    process(async {
        let machine = Machine::new(1);
        let disk = machine.disk(1);
        let dir = root(&disk).await;
        make(&dir, "a", b"x").await.sync().await.unwrap();
        let (at, kind) = (At::Effect(machine.effects()), Kind::SyncLost(Errno::IO, Cache::Kept));
        machine.inject(Fault { at, kind });
        assert!(dir.sync().await.is_err());
        dir.sync().await.unwrap();
        assert_eq!(disk.read("a").unwrap(), b"x");
        assert_eq!(outcomes(&disk, Profile::PosixWorst, "a"), [None]);
        assert!(!disk.always_holds(&p("a"), &Content::from(b"x")));
    });
}

#[test]
fn a_failed_write_back_is_told_by_the_next_sync_only() {
    process(async {
        let machine = Machine::new(1);
        let disk = machine.disk(1);
        let dir = root(&disk).await;
        let at = At::Call {
            op: Op::Write,
            path: Some(p("a")),
            nth: 1,
        };
        let kind = Kind::WriteBackLost(Errno::NOSPC, Cache::Kept);
        machine.inject(Fault { at, kind });
        let file = make(&dir, "a", &[1; 512]).await;
        write_all(&file, 512, &[2; 512]).await.unwrap();
        assert_eq!(
            file.sync().await.unwrap_err().raw_os_error(),
            Some(Errno::NOSPC.raw_os_error())
        );
        file.sync().await.unwrap();
        assert!(!disk.always_holds(&p("a"), &disk.content("a").unwrap()));
    });
}

#[test]
fn a_power_cut_stops_every_disk_at_its_effect_and_calls_never_return() {
    process(async {
        let machine = Machine::new(5);
        let (one, two) = (machine.disk(1), machine.disk(2));
        let kind = Kind::PowerCut(Off::Hang);
        machine.inject(Fault {
            at: At::Effect(3),
            kind,
        });
        let (a, b) = (root(&one).await, root(&two).await);
        let fs = one.fs();
        let work = {
            let (a, b) = (a.clone(), b.clone());
            fs.offload(async move {
                for i in 0..9 {
                    a.mkdir(&n(&format!("{i}"))).await.unwrap();
                    b.mkdir(&n(&format!("{i}"))).await.unwrap();
                }
            })
        };
        let mut work = Box::pin(work);
        assert!(futures::poll!(&mut work).is_pending());
        machine.until_off().await;
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut work).is_pending() && !machine.is_on());
        assert_eq!((machine.effects(), one.nodes().len(), two.nodes().len()), (4, 2, 2));
        machine.crash(Profile::PosixWorst, &mut Random::new(1));
        assert!(
            futures::poll!(Box::pin(a.names())).is_pending(),
            "handles of before stay dead"
        );
        assert_eq!(root(&one).await.names().await.unwrap().len(), one.nodes().len());
        assert_eq!(one.open_handles(), 0);
    });
}

#[test]
fn a_sync_that_the_power_cut_strikes_covers_nothing() {
    process(async {
        let machine = Machine::new(5);
        let disk = machine.disk(1);
        let dir = root(&disk).await;
        dir.mkdir(&n("d")).await.unwrap();
        let (at, kind) = (At::Effect(1), Kind::PowerCut(Off::Fail));
        machine.inject(Fault { at, kind });
        assert!(dir.sync().await.is_err() && dir.names().await.is_err());
        assert_eq!(disk.possible_values(&p("d")).unwrap().len(), 2);
    });
}

#[test]
fn a_kill_frees_locks_and_loses_nothing() {
    process(async {
        let machine = Machine::new(5);
        let disk = machine.disk(1);
        let dir = root(&disk).await;
        dir.try_lock(realize::fs::Lock::Exclusive).await.unwrap();
        let kind = Kind::Kill(Off::Fail);
        machine.inject(Fault {
            at: At::Effect(1),
            kind,
        });
        let file = dir.create(&n("a")).await.unwrap();
        assert!(file.write_at(0, b"x").await.is_err());
        machine.restart();
        assert_eq!(disk.read("a").unwrap(), b"x");
        assert!(dir.names().await.is_err());
        root(&disk).await.try_lock(realize::fs::Lock::Exclusive).await.unwrap();
    });
}

#[test]
fn errors_short_calls_and_refusals_strike_where_they_are_told_to() {
    process(async {
        let machine = Machine::new(5);
        let disk = machine.disk(1);
        let dir = root(&disk).await;
        let file = make(&dir, "a", b"content").await;
        let call = |op, nth| At::Call {
            op,
            path: Some(p("a")),
            nth,
        };
        machine.inject(Fault {
            at: call(Op::Write, 0),
            kind: Kind::Error(Errno::INTR),
        });
        machine.inject(Fault {
            at: call(Op::Write, 1),
            kind: Kind::Short(2),
        });
        machine.inject(Fault {
            at: call(Op::Read, 0),
            kind: Kind::Short(3),
        });
        machine.inject(Fault {
            at: At::Effect(machine.effects() + 2),
            kind: Kind::Error(Errno::XDEV),
        });
        assert_eq!(
            file.write_at(0, b"xyz").await.unwrap_err().kind(),
            std::io::ErrorKind::Interrupted
        );
        assert_eq!(file.write_at(0, b"xyz").await.unwrap(), 2);
        assert_eq!(file.read_at(0, &mut [0; 7]).await.unwrap(), 3);
        let renamed = dir.rename(&n("a"), &dir, &n("b"), Rename::Replace).await;
        assert_eq!(renamed.unwrap_err().raw_os_error(), Some(Errno::XDEV.raw_os_error()));
        assert!(machine.heal().is_empty());
        disk.refuse(Refusals {
            no_replace: Some(Errno::INVAL),
            lease: Some(Errno::ACCESS),
            ..Refusals::default()
        });
        assert!(dir.rename(&n("a"), &dir, &n("b"), Rename::NoReplace).await.is_err());
        drop(file);
        assert!(dir.open(&n("a")).await.unwrap().lease().await.is_err());
        disk.set_capacity(Some(2 * PAGE_BYTES));
        let file = dir.open_write(&n("a")).await.unwrap();
        assert_eq!(file.write_at(0, &[1; 10_000]).await.unwrap(), 8192);
        assert_eq!(
            file.write_at(8192, &[1]).await.unwrap_err().raw_os_error(),
            Some(Errno::NOSPC.raw_os_error())
        );
        let other = machine.disk(2);
        let elsewhere = root(&other).await;
        let renamed = dir.rename(&n("a"), &elsewhere, &n("a"), Rename::Replace).await;
        assert_eq!(renamed.unwrap_err().raw_os_error(), Some(Errno::XDEV.raw_os_error()));
    });
}

#[test]
fn rot_shows_once_the_cache_is_dropped() {
    process(async {
        let machine = Machine::new(5);
        let disk = machine.disk(1);
        disk.create("a", [1; 100]).unwrap();
        disk.settle();
        let (device, path) = (1, p("a"));
        let at = At::Read(machine.reads() + 1);
        machine.inject(Fault {
            at,
            kind: Kind::BitRot {
                device,
                path,
                offset: 50,
            },
        });
        let file = root(&disk).await.open(&n("a")).await.unwrap();
        assert_eq!(disk.read("a").unwrap(), [1; 100]);
        assert!(!disk.always_holds(&p("a"), &Content::from(&[1; 100])));
        file.drop_cache().await.unwrap();
        assert_ne!(disk.read("a").unwrap(), [1; 100]);
    });
}

#[test]
fn somebody_acts_between_two_calls_and_watchers_see_both() {
    process(async {
        let machine = Machine::new(5);
        let disk = machine.disk(1);
        disk.create("a", "mine").unwrap();
        let act = Act(Arc::new(|machine: &Machine| {
            machine.disk(1).replace("a", "theirs").unwrap()
        }));
        machine.inject(Fault {
            at: At::Effect(0),
            kind: Kind::Act(act),
        });
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (notes, other) = (seen.clone(), disk.clone());
        machine.watch(move |moment, call| {
            notes
                .lock()
                .unwrap()
                .push((moment, call.op, call.path.clone(), other.read("a").ok()));
        });
        root(&disk).await.unlink(&n("a")).await.unwrap();
        let (op, path) = (Op::Unlink, Some(p("a")));
        let before = (Moment::Before, op, path.clone(), some(b"theirs"));
        assert_eq!(*seen.lock().unwrap(), [before, (Moment::After, op, path, None)]);
    });
}

#[test]
fn what_did_nothing_does_not_count_among_what_has_struck() {
    process(async {
        let machine = Machine::new(5);
        let disk = machine.disk(1);
        let dir = root(&disk).await;
        let act = Act(Arc::new(Machine::has_not_acted));
        let lost = Kind::SyncLost(Errno::IO, Cache::Kept);
        // Who is killed before it could tell of a failed sync of a directory is not: it goes on.
        for (effect, kind) in [(0, Kind::Act(act)), (1, lost), (2, Kind::Kill(Off::Fail))] {
            let at = At::Effect(effect);
            machine.inject(Fault { at, kind });
        }
        dir.create(&n("a")).await.unwrap();
        assert!(dir.sync().await.is_err());
        dir.create(&n("b")).await.unwrap();
        let struck = machine.struck();
        assert!(matches!(struck[..], [(Kind::SyncLost(..), _)]), "{struck:?}");
    });
}

#[test]
fn a_writer_through_a_mapping_is_seen_by_some_file_systems_times_and_refuses_the_lease() {
    process(async {
        let disk = Machine::new(5).disk(1);
        disk.create("a", "before").unwrap();
        let before = disk.stat("a").unwrap();
        let mapping = disk.open_writer("a").unwrap().map();
        mapping.write(0, b"BE").unwrap();
        assert_eq!(
            (disk.stat("a").unwrap(), disk.read("a").unwrap()),
            (before, b"BEfore".to_vec())
        );
        let file = root(&disk).await.open(&n("a")).await.unwrap();
        assert!(file.lease().await.is_err());
        assert_eq!(file.sight().await.unwrap(), Sight::All);
        disk.refuse(Refusals {
            maps_tell: true,
            ..Refusals::default()
        });
        assert_eq!(file.sight().await.unwrap(), Sight::AllByCtime);
        mapping.write(0, b"BE").unwrap();
        assert_ne!(disk.stat("a").unwrap(), before);
        drop(mapping);
        file.lease().await.unwrap();
        disk.write_at("a", 0, b"x").unwrap();
        assert!(!file.lease_held().await.unwrap());
    });
}

#[test]
fn a_delete_by_way_of_another_name_survives_until_its_unlink() {
    process(async {
        let disk = Machine::new(1).disk(1);
        disk.create("a", "x").unwrap();
        disk.settle();
        let (dir, content, keys) = (root(&disk).await, Content::from(b"x"), [p("a"), p("a.gone")]);
        assert!(disk.survives(&keys, &content));
        dir.rename(&n("a"), &dir, &n("a.gone"), Rename::NoReplace)
            .await
            .unwrap();
        assert!(disk.survives(&keys, &content) && !disk.survives(&keys[..1], &content));
        dir.rename(&n("a.gone"), &dir, &n("a"), Rename::NoReplace)
            .await
            .unwrap();
        dir.rename(&n("a"), &dir, &n("a.gone"), Rename::NoReplace)
            .await
            .unwrap();
        assert!(disk.survives(&keys, &content));
        dir.unlink(&n("a.gone")).await.unwrap();
        assert!(!disk.survives(&keys, &content));
    });
}

#[test]
fn one_seed_gives_one_run() {
    let trace = |seed| {
        let machine = Machine::new(seed);
        machine.keep_log();
        let mut times = Vec::new();
        process(async {
            let disk = machine.disk(1);
            let dir = root(&disk).await;
            let jobs = (0..5).map(|job| {
                let dir = dir.clone();
                tokio::spawn(async move {
                    for i in 0..10 {
                        make(&dir, &format!("{job}-{i}"), b"x").await.sync().await.unwrap();
                    }
                })
            });
            for job in jobs.collect::<Vec<_>>() {
                job.await.unwrap();
                times.push(machine.effects());
            }
            machine.crash(Profile::PosixWorst, &mut Random::new(seed));
        });
        (machine.log(), times, machine.disk(1).nodes())
    };
    assert!(trace(1) == trace(1));
    assert!(trace(1).0 != trace(2).0 && trace(1).2 != trace(2).2);
}

#[test]
fn a_disk_that_stalls_answers_when_that_is_over() {
    process(async {
        let machine = Machine::new(1);
        machine.stall_one_in(0);
        let dir = root(&machine.disk(1)).await;
        let clock = SimClock::on(&machine);
        let kind = Kind::Stall(Duration::from_secs(2));
        machine.inject(Fault {
            at: At::Effect(1),
            kind,
        });
        dir.mkdir(&n("a")).await.unwrap();
        assert_eq!(clock.now(), Duration::ZERO);
        dir.mkdir(&n("b")).await.unwrap();
        assert_eq!(clock.now(), Duration::from_secs(2));
        dir.mkdir(&n("c")).await.unwrap();
        assert_eq!(clock.now(), Duration::from_secs(2));
        assert_eq!(machine.take_pause(), None);
    });
}

#[test]
fn the_time_of_day_jumps_and_then_gains() {
    process(async {
        let machine = Machine::new(1);
        let dir = root(&machine.disk(1)).await;
        let clock = SimClock::on(&machine);
        let morning = clock.wall().secs;
        machine.inject(Fault {
            at: At::Effect(0),
            kind: Kind::Clock(-3600, 100),
        });
        clock.sleep_until(Duration::from_secs(1000)).await;
        assert_eq!(clock.wall().secs, morning + 1000);
        dir.mkdir(&n("a")).await.unwrap();
        assert_eq!(clock.wall().secs, morning + 1000 - 3600 + 100);
        clock.sleep_until(Duration::from_secs(2000)).await;
        assert_eq!(clock.wall().secs, morning + 2000 - 3600 + 200);
        assert!(clock.now() >= Duration::from_secs(2000), "the other clock does not");
        machine.heal();
        assert_eq!(clock.wall().secs, morning + 2000);
    });
}
