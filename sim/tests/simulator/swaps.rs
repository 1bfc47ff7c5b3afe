//! A large file in the place of an older final: whatever fails, and whoever does something in between, both versions are where it is told.

use std::sync::Arc;

use realize::{
    limits::Limits,
    model::{Name, RelPath},
    service::{Expected, Finish, ServiceError, Swept},
    store::{Partial, names},
};
use realize_sim::{fs::*, world::process};
use rustix::io::Errno;

use super::kept::{Bench, CHUNKS, PART, act, chunk, finish, write_unseen};

/// The name by which the older final of `bench` is out of the way.
fn swap(disk: &Disk) -> String {
    let paths = disk.nodes().into_keys();
    let names = paths.map(|path| String::from_utf8(path.as_bytes().to_vec()).unwrap());
    let mut swaps = names.filter(|name| name.starts_with(".new.realize-swap"));
    swaps.next().unwrap()
}

fn text(name: &Name) -> &str {
    str::from_utf8(name.as_bytes()).unwrap()
}

/// What another process finds while this one halts.
fn sweep_beside(machine: &Machine) -> Result<Swept, ServiceError> {
    let disk = machine.disk(1);
    #[expect(clippy::disallowed_methods, reason = "this thread halts; nothing runs beside it")]
    let swept = std::thread::spawn(move || {
        process(async move {
            let store = Bench::process(&disk, Limits::default()).await;
            store.sweep(&RelPath::root()).await
        })
    });
    swept.join().unwrap()
}

// What somebody, or the kernel, does meanwhile.

fn write_to_swapped(machine: &Machine) {
    let disk = machine.disk(1);
    disk.write_at(swap(&disk), 5, b"x").unwrap();
}

fn put_newer(machine: &Machine) {
    let disk = machine.disk(1);
    disk.remove("new").unwrap();
    disk.create("new", b"newer").unwrap();
}

fn exchange_names(machine: &Machine) {
    let disk = machine.disk(1);
    let swap = swap(&disk);
    disk.rename("new", "third").unwrap();
    disk.rename(&swap, "new").unwrap();
    disk.rename("third", &swap).unwrap();
}

/// All of the new file.
fn new() -> Vec<u8> {
    (0..CHUNKS).flat_map(chunk).collect()
}

fn is_there(bench: &Bench, name: &str, content: &[u8]) -> bool {
    bench.disk.read(name).is_ok_and(|read| read == content)
}

fn fails(at: At) -> Fault {
    Fault {
        at,
        kind: Kind::Error(Errno::IO),
    }
}

/// What the next process finds.
async fn sweep(bench: &Bench) -> Result<Swept, ServiceError> {
    let store = Bench::process(&bench.disk, Limits::default()).await;
    store.sweep(&RelPath::root()).await
}

/// A file that is to be finished in the place of an older one, and what it is asked to become.
async fn prepared(bench: &Bench) -> (Partial<SimFs>, Finish) {
    bench.disk.create("new", b"older").unwrap();
    bench.disk.settle();
    let partial = bench.whole().await;
    let finish = Finish {
        expected: Expected::Version(bench.disk.stat("new").unwrap().version),
        ..finish()
    };
    partial.prepare_finish(&bench.store, &finish).await.unwrap();
    bench.machine.keep_log();
    (partial, finish)
}

/// Finishes it while `faults` strike.
async fn replace(bench: &Bench, faults: Vec<Fault>) -> Result<bool, ServiceError> {
    let (partial, finish) = prepared(bench).await;
    faults.into_iter().for_each(|fault| bench.machine.inject(fault));
    loop {
        while !partial.read_back(&bench.store, 1).await? {}
        match partial.finish(&bench.store, &finish).await {
            Ok(false) => {}
            finished => return finished,
        }
    }
}

/// The exchange, and the looks after it.
fn calls() -> (u64, Vec<u64>) {
    process(async {
        let bench = Bench::new().await;
        assert_eq!(replace(&bench, vec![]).await, Ok(true));
        let log = bench.machine.log();
        let exchange = log.iter().rposition(|call| call.op == Op::Rename).unwrap();
        let looks = log[exchange + 1..].iter().take_while(|call| !call.op.is_effect());
        let looks: Vec<_> = looks.map(|call| call.index).collect();
        assert_eq!(looks.len(), 3, "both names, and the lease");
        (log[exchange].index, looks)
    })
}

/// An older final, whose sync takes its time, is replaced by nothing that anybody wrote to meanwhile.
#[test]
fn what_is_written_while_the_older_final_is_synced_is_not_published() {
    type Harm = fn(&Machine);
    let harms: [(&str, Op, Harm); 4] = [
        ("new", Op::FileSync, |machine| {
            machine.disk(1).write_at(PART, 5, b"x").unwrap()
        }),
        ("new", Op::FileSync, write_unseen),
        // Once the last look is over, as it gets the name by which it is put in the place of the older one, and as it is put there.
        (PART, Op::Rename, |machine| {
            machine.disk(1).write_at(PART, 5, b"x").unwrap()
        }),
        ("new", Op::Rename, write_to_swapped),
    ];
    for (path, at, harm) in harms {
        process(async move {
            let bench = Bench::new().await;
            let finished = replace(&bench, vec![act(At::call_on(path, at, 0), harm)]).await;
            assert_eq!(bench.machine.struck().len(), 1);
            assert!(matches!(finished, Err(ServiceError::Busy(_))), "{finished:?}");
            assert!(bench.disk.read("new").unwrap() == b"older", "{path} {at:?}");
        });
    }
}

/// An error of the look whether all was right: the older final gets its name back, or keeps one that is told, whoever looks next.
#[test]
fn an_older_final_of_which_no_more_can_be_told_is_not_lost() {
    let (exchange, looks) = calls();
    for look in looks {
        for is_lost in [false, true] {
            process(async move {
                let bench = Bench::new().await;
                let mut faults = vec![fails(At::Read(look))];
                faults.extend(is_lost.then(|| fails(At::Effect(exchange + 1))));
                let count = faults.len();
                let finished = replace(&bench, faults).await;
                assert_eq!(bench.machine.struck().len(), count);
                let left = match finished {
                    Err(ServiceError::Io { .. }) => vec![],
                    Err(ServiceError::Leftover(told)) => vec![told],
                    finished => panic!("{finished:?}"),
                };
                assert_eq!(!left.is_empty(), is_lost);
                assert_eq!(sweep(&bench).await.unwrap().leftovers, left);
                let place = left.first().map_or("new", |told| text(told));
                assert!(is_there(&bench, place, b"older"));
                assert!(is_there(&bench, if is_lost { "new" } else { PART }, &new()));
            });
        }
    }
}

/// Somebody writes to what is put there, so the older final gets its name back; meanwhile somebody has put a newer one there.
#[test]
fn what_somebody_puts_between_two_exchanges_stays_under_the_name_that_is_told() {
    let (exchange, _) = calls();
    for is_synced in [true, false] {
        process(async move {
            let bench = Bench::new().await;
            let mut faults = vec![
                act(At::Effect(exchange), write_to_swapped),
                act(At::Effect(exchange + 1), put_newer),
            ];
            faults.extend((!is_synced).then(|| fails(At::Effect(exchange + 2))));
            let count = faults.len();
            let finished = replace(&bench, faults).await;
            assert_eq!(bench.machine.struck().len(), count);
            let Err(ServiceError::Leftover(told)) = finished else {
                panic!("{finished:?}")
            };
            match sweep(&bench).await {
                Ok(swept) => assert_eq!(swept.leftovers, std::slice::from_ref(&told)),
                swept => assert!(!is_synced && matches!(swept, Err(ServiceError::Unsafe(_)))),
            }
            assert!(is_there(&bench, text(&told), b"newer"));
            assert!(is_there(&bench, "new", b"older"));
        });
    }
}

/// Where names can't be exchanged too.
#[test]
fn an_older_final_that_somebody_is_writing_to_is_not_replaced() {
    for exchange in [None, Some(Errno::INVAL)] {
        process(async move {
            let bench = Bench::new().await;
            bench.disk.refuse(Refusals {
                exchange,
                ..Refusals::default()
            });
            let writer = Arc::new(std::sync::Mutex::new(None));
            let opened = writer.clone();
            let open = move |machine: &Machine| {
                *opened.lock().unwrap() = Some(machine.disk(1).open_writer("new").unwrap());
            };
            let finished = replace(&bench, vec![act(At::call_on("new", Op::FileSync, 0), open)]).await;
            assert!(
                matches!(finished, Err(ServiceError::Busy(_) | ServiceError::Changed)),
                "{finished:?}"
            );
            let writer = writer.lock().unwrap().take().unwrap();
            writer.write(0, b"their").unwrap();
            assert!(is_there(&bench, "new", b"their"));
            assert!(is_there(&bench, PART, &new()));
        });
    }
}

/// Somebody removes what is out of the way, or another run that looks through the directory has moved it: what it was can't be told any more.
#[test]
fn what_is_gone_from_out_of_the_way_is_not_called_replaced() {
    let (exchange, looks) = calls();
    for moment in [At::Read(looks[0]), At::Effect(exchange + 1)] {
        for is_written in [false, true] {
            let moment = moment.clone();
            process(async move {
                let bench = Bench::new().await;
                let remove = |machine: &Machine| {
                    let disk = machine.disk(1);
                    disk.remove(swap(&disk)).unwrap();
                };
                let is_unlinked = moment == At::Effect(exchange + 1) && !is_written;
                let mut faults = vec![act(moment, remove)];
                faults.extend(is_written.then(|| act(At::Effect(exchange), write_to_swapped)));
                let count = faults.len();
                let finished = replace(&bench, faults).await;
                assert_eq!(bench.machine.struck().len(), count);
                match is_unlinked {
                    // It would have been removed then.
                    true => assert_eq!(finished, Ok(true)),
                    false => assert!(matches!(finished, Err(ServiceError::Busy(_))), "{finished:?}"),
                }
                assert_eq!(is_there(&bench, "new", &new()), !is_written);
            });
        }
    }
}

/// Somebody replaces what has just been put there, while it is seen that it was written to: theirs stays.
#[test]
fn what_somebody_puts_over_what_was_put_there_stays() {
    let (exchange, looks) = calls();
    process(async move {
        let bench = Bench::new().await;
        // The lease is not asked for any more: this is the look before the second exchange.
        let faults = vec![
            act(At::Effect(exchange), write_to_swapped),
            act(At::Read(looks[2]), put_newer),
        ];
        let finished = replace(&bench, faults).await;
        assert_eq!(bench.machine.struck().len(), 2);
        let Err(ServiceError::Leftover(told)) = finished else {
            panic!("{finished:?}")
        };
        assert!(is_there(&bench, "new", b"newer"));
        assert!(is_there(&bench, text(&told), b"older"));
        assert_eq!(sweep(&bench).await.unwrap().leftovers, [told]);
    });
}

/// The second exchange is made, though it is said that it failed: ours is the partial again.
#[test]
fn what_is_back_is_the_partial() {
    let (exchange, looks) = calls();
    process(async move {
        let bench = Bench::new().await;
        let faults = vec![
            fails(At::Read(looks[0])),
            act(At::Effect(exchange + 1), exchange_names),
            fails(At::Effect(exchange + 1)),
        ];
        let finished = replace(&bench, faults).await;
        assert_eq!(bench.machine.struck().len(), 3);
        assert!(matches!(finished, Err(ServiceError::Io { .. })), "{finished:?}");
        assert!(is_there(&bench, "new", b"older"));
        assert!(is_there(&bench, PART, &new()));
    });
}

/// The exchange was made, though it is said that it failed.
#[test]
fn an_older_final_is_not_taken_for_the_partial() {
    let (exchange, _) = calls();
    process(async move {
        let bench = Bench::new().await;
        let faults = vec![act(At::Effect(exchange), exchange_names), fails(At::Effect(exchange))];
        let finished = replace(&bench, faults).await;
        assert_eq!(bench.machine.struck().len(), 2);
        let Err(ServiceError::Leftover(told)) = finished else {
            panic!("{finished:?}")
        };
        assert_eq!(sweep(&bench).await.unwrap().leftovers, std::slice::from_ref(&told));
        assert!(is_there(&bench, text(&told), b"older"));
        assert!(is_there(&bench, "new", &new()));
    });
}

/// An older final that could not be removed goes with the next run, unless somebody is writing to it. What has its name is not written to any more.
#[test]
fn an_older_final_that_is_left_goes_when_nobody_is_writing_to_it() {
    let (exchange, _) = calls();
    process(async move {
        let bench = Bench::new().await;
        let (partial, finish) = prepared(&bench).await;
        assert_eq!(partial.read_back(&bench.store, 1).await, Ok(true));
        bench.machine.inject(fails(At::Effect(exchange + 1)));
        let finished = partial.finish(&bench.store, &finish).await;
        assert!(matches!(finished, Err(ServiceError::Io { .. })), "{finished:?}");
        let late = partial.write_chunk(&bench.store, 0, &chunk(7), false, ()).await;
        assert_eq!(late, Err(ServiceError::BadHandle));
        drop(partial);
        let left = swap(&bench.disk);
        let writer = bench.disk.open_writer(&left).unwrap();
        let told = sweep(&bench).await.unwrap().leftovers;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].as_bytes(), left.as_bytes());
        assert!(is_there(&bench, &left, b"older"));
        drop(writer);
        assert!(sweep(&bench).await.unwrap().leftovers.is_empty());
        assert!(bench.disk.read(&left).is_err());
        assert!(is_there(&bench, "new", &new()));
    });
}

/// Whoever writes to what an earlier run has left keeps what they write: when the lease is taken, they are done; or it is under the lease, and the
/// mtime is set back.
#[test]
fn an_older_final_that_somebody_has_just_written_to_is_left() {
    let (exchange, _) = calls();
    for (moment, is_seen) in [(Op::Lease, true), (Op::LeaseHeld, false)] {
        process(async move {
            let bench = Bench::new().await;
            let failed = replace(&bench, vec![fails(At::Effect(exchange + 1))]).await;
            assert!(matches!(failed, Err(ServiceError::Io { .. })), "{failed:?}");
            let left = swap(&bench.disk);
            let path = left.clone();
            let write = move |machine: &Machine| {
                let disk = machine.disk(1);
                let mtime = disk.stat(&path).unwrap().version.mtime;
                disk.write_at(&path, 0, b"their").unwrap();
                if !is_seen {
                    disk.set_meta(&path, 0o644, mtime).unwrap();
                }
            };
            bench.machine.inject(act(At::call_on(&left, moment, 0), write));
            assert_eq!(sweep(&bench).await.unwrap().leftovers.len(), 1);
            assert!(is_there(&bench, &left, b"their"));
        });
    }
}

/// A link can't be locked: a run that is at it may have swapped somebody's file out just now.
#[test]
fn what_has_come_in_the_place_of_a_link_is_not_removed() {
    process(async {
        let bench = Bench::new().await;
        let disk = &bench.disk;
        disk.symlink("l", b"old").unwrap();
        let tag = names::link_tag(&disk.stat("l").unwrap().version, b"old");
        let swap = names::swap(&Name::new("l").unwrap(), &tag);
        let swap = text(&swap).to_owned();
        disk.symlink(&swap, b"new").unwrap();
        disk.settle();
        let path = swap.clone();
        let newer = move |machine: &Machine| {
            let disk = machine.disk(1);
            disk.remove(&path).unwrap();
            disk.create(&path, b"newer").unwrap();
        };
        // Before it is removed, however that begins.
        for op in [Op::Unlink, Op::Rename] {
            bench.machine.inject(act(At::call_on(&swap, op, 0), newer.clone()));
        }
        let swept = sweep(&bench).await.unwrap();
        assert_eq!(swept.leftovers.len(), 1);
        assert!(is_there(&bench, &swap, b"newer"));
    });
}

/// The older final can't be opened just now (a disk error, no descriptor left): nobody could tell whether somebody is writing to it.
#[test]
fn an_older_final_that_can_not_be_opened_just_now_is_not_replaced() {
    for errno in [Errno::IO, Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
        process(async move {
            let bench = Bench::new().await;
            let (partial, finish) = prepared(&bench).await;
            // Somebody has it open for writing all the while.
            let writer = bench.disk.open_writer("new").unwrap();
            bench.machine.inject(Fault {
                at: At::call_on("new", Op::Open, 0),
                kind: Kind::Error(errno),
            });
            while !partial.read_back(&bench.store, 1).await.unwrap() {}
            let finished = partial.finish(&bench.store, &finish).await;
            assert_eq!(bench.machine.struck().len(), 1);
            writer.write(0, b"their").unwrap();
            assert!(is_there(&bench, "new", b"their"), "{errno:?}: {finished:?}");
            assert!(finished.is_err());
        });
    }
}

/// The second exchange was made, but neither can that be looked at, nor be made durable: ours is not moved on.
#[test]
fn what_is_back_but_not_durably_stays_where_it_is_though_a_look_fails() {
    let (exchange, looks) = calls();
    process(async move {
        let bench = Bench::new().await;
        let faults = vec![
            act(At::Effect(exchange), write_to_swapped),
            // The look whether it is back, after the one at the final name.
            fails(At::Read(looks[2] + 1)),
            fails(At::Effect(exchange + 2)),
        ];
        let finished = replace(&bench, faults).await;
        assert_eq!(bench.machine.struck().len(), 3);
        assert!(bench.disk.read(PART).is_err(), "ours was moved on: {finished:?}");
        assert!(matches!(finished, Err(ServiceError::Io { .. })), "{finished:?}");
    });
}

/// What somebody removes while ours is put back is not told.
#[test]
fn what_somebody_has_removed_is_not_told_as_left() {
    let (exchange, _) = calls();
    process(async move {
        let bench = Bench::new().await;
        let remove = |machine: &Machine| {
            let disk = machine.disk(1);
            disk.remove(swap(&disk)).unwrap();
        };
        let faults = vec![
            act(At::Effect(exchange), write_to_swapped),
            act(At::Effect(exchange + 3), remove),
        ];
        let finished = replace(&bench, faults).await;
        assert_eq!(bench.machine.struck().len(), 2);
        assert!(matches!(finished, Err(ServiceError::Busy(_))), "{finished:?}");
    });
}

/// A run is about to give the older final its name back, when somebody puts a newer one there, and another run looks through the directory: that must
/// not take for replaced what the first swaps out in the middle of it.
#[test]
fn what_a_live_run_swaps_out_is_not_removed_by_who_looks_through_the_directory() {
    let (exchange, _) = calls();
    process(async move {
        let bench = Bench::new().await;
        let look = |machine: &Machine| {
            put_newer(machine);
            // What the first run does next.
            machine.inject(act(At::call(Op::LeaseHeld, 0), exchange_names));
            sweep_beside(machine).unwrap();
        };
        let faults = vec![
            act(At::Effect(exchange), write_to_swapped),
            act(At::Effect(exchange + 1), look),
        ];
        let finished = replace(&bench, faults).await;
        let is_newer = |node: &Node| node.content.to_vec() == b"newer";
        assert!(bench.disk.nodes().values().any(is_newer), "{finished:?}");
        assert_eq!(bench.machine.struck().len(), 2, "the lease is not even asked for");
    });
}

/// A live run is about to take back a replacement, as somebody has written to the older final: what it has out of the way is not left over.
#[test]
fn what_a_live_run_has_out_of_the_way_is_not_told_as_left() {
    let (exchange, _) = calls();
    process(async move {
        let bench = Bench::new().await;
        let told = Arc::new(std::sync::Mutex::new(None));
        let is_told = told.clone();
        let look = move |machine: &Machine| *is_told.lock().unwrap() = Some(sweep_beside(machine));
        let faults = vec![
            act(At::Effect(exchange), |machine| {
                machine.disk(1).write_at("new", 5, b"x").unwrap()
            }),
            // Ours is about to become the partial again, or the older one is being made durable.
            act(At::Effect(exchange + 2), look),
        ];
        let finished = replace(&bench, faults).await;
        assert_eq!(bench.machine.struck().len(), 2);
        let swept = told.lock().unwrap().take().unwrap().unwrap();
        assert_eq!(swept.leftovers, [], "{finished:?}");
    });
}

/// What a sweep tells is there.
#[test]
fn what_a_sweep_could_not_look_at_once_more_is_told_where_it_is() {
    for is_link in [false, true] {
        process(async move {
            let bench = Bench::new().await;
            let disk = &bench.disk;
            let put = |at: &str, content: &[u8]| match is_link {
                true => disk.symlink(at, content).unwrap(),
                false => disk.create(at, content).unwrap(),
            };
            put("new", b"older");
            let version = disk.stat("new").unwrap().version;
            let tag = match is_link {
                true => names::link_tag(&version, b"older"),
                false => names::version_tag(&version),
            };
            put(text(&names::swap(&Name::new("new").unwrap(), &tag)), b"brand new");
            disk.settle();
            let part = if is_link { ".new.realize-link" } else { PART };
            // The look after the rename; of a link there is one before.
            bench
                .machine
                .inject(fails(At::call_on(part, Op::Stat, u64::from(is_link))));
            let swept = sweep(&bench).await.unwrap();
            assert_eq!(bench.machine.struck().len(), 1);
            assert_eq!(swept.leftovers.len(), 1);
            for told in swept.leftovers {
                assert!(disk.stat(told.as_bytes()).is_ok(), "{told} is told, and not there");
            }
        });
    }
}

/// What is neither the older final nor ours, and which may not be read, or can't be: somebody's.
#[test]
fn what_can_not_be_opened_is_told() {
    for errno in [Errno::IO, Errno::ACCESS] {
        process(async move {
            let bench = Bench::new().await;
            let disk = &bench.disk;
            disk.create("other", b"other").unwrap();
            disk.create("new", b"ours").unwrap();
            let tag = names::version_tag(&disk.stat("other").unwrap().version);
            let left = names::swap(&Name::new("new").unwrap(), &tag);
            disk.create(text(&left), b"somebody's newer").unwrap();
            disk.settle();
            bench.machine.inject(Fault {
                at: At::call_on(text(&left), Op::Open, 0),
                kind: Kind::Error(errno),
            });
            assert_eq!(sweep(&bench).await.unwrap().leftovers, [left], "{errno:?}");
        });
    }
}
