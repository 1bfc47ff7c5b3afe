//! A partial that a move has left is kept open, and what is known of it is not read again; in the least doubt all of it is.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use realize::{
    digest::{CHUNK_BYTES, ChunkHash, FileHasher, hash_chunk},
    fs::{Dir, File, Fs, Lock},
    limits::Limits,
    model::{Name, RelPath, Timestamp},
    service::{Expected, Finish, Meta, Role, RunId, ServiceError, Verify},
    store::{FailedSync, Partial, Store},
};
use realize_sim::{fs::*, world::process};
use rustix::io::Errno;

pub(super) const PART: &str = ".new.realize-part";
pub(super) const CHUNKS: u64 = 3;
const SIZE: u64 = CHUNKS * CHUNK_BYTES;

pub(super) fn chunk(index: u64) -> Bytes {
    vec![b'a' + index as u8; CHUNK_BYTES as usize].into()
}

fn hashes() -> Vec<ChunkHash> {
    (0..CHUNKS)
        .map(|index| hash_chunk(SIZE, index, &chunk(index)))
        .collect()
}

/// A disk, and a process that moves a file to it.
pub(super) struct Bench {
    pub machine: Machine,
    pub disk: Disk,
    pub store: Store<SimFs>,
}

impl Bench {
    pub async fn new() -> Self {
        let machine = Machine::new(1);
        let disk = machine.disk(1);
        let store = Self::process(&disk, Limits::default()).await;
        Self { machine, disk, store }
    }

    /// Another process on the same disk.
    pub async fn process(disk: &Disk, limits: Limits) -> Store<SimFs> {
        let root = disk.fs().open_root(Path::new("/")).await.unwrap();
        Store::new(root, limits, false, disk.fs().boot(), FailedSync::default())
    }

    async fn open(&self) -> Partial<SimFs> {
        open(&self.store, SIZE).await
    }

    /// A partial of which two chunks of three were written.
    async fn begun(&self) -> Partial<SimFs> {
        let partial = self.open().await;
        for index in 0..2 {
            write(&self.store, &partial, index).await.unwrap();
        }
        partial
    }

    /// A partial of which all chunks were written.
    pub async fn whole(&self) -> Partial<SimFs> {
        let partial = self.begun().await;
        write(&self.store, &partial, 2).await.unwrap();
        partial
    }

    /// Leaves a partial of which two chunks were written.
    async fn leave(&self) {
        self.store.keep(&self.begun().await).await;
    }

    /// Which chunks are right, and how many bytes were read to tell.
    async fn compared(&self, partial: &Partial<SimFs>) -> (Vec<bool>, u64) {
        let before = self.machine.bytes(1, Op::Read);
        let equal = partial.compare(&self.store, 0, &hashes(), 0).await.unwrap();
        (equal, self.machine.bytes(1, Op::Read) - before)
    }
}

/// Somebody writes a byte of the partial, and sets its mtime back.
pub(super) fn write_unseen(machine: &Machine) {
    unseen(&machine.disk(1), |disk| disk.write_at(PART, 5, b"x").unwrap());
}

/// Somebody makes a `change` to the partial, and sets its mtime back.
fn unseen(disk: &Disk, change: impl FnOnce(&Disk)) {
    let mtime = disk.stat(PART).unwrap().version.mtime;
    change(disk);
    disk.set_meta(PART, 0o644, mtime).unwrap();
}

pub(super) fn act(at: At, act: impl Fn(&Machine) + Send + Sync + 'static) -> Fault {
    let kind = Kind::Act(Act(Arc::new(act)));
    Fault { at, kind }
}

async fn open(store: &Store<SimFs>, size: u64) -> Partial<SimFs> {
    let path = RelPath::new("new").unwrap();
    store.open_partial(&path, size, None).await.unwrap()
}

pub(super) async fn write(store: &Store<SimFs>, partial: &Partial<SimFs>, index: u64) -> Result<(), ServiceError> {
    partial.write_chunk(store, index, &chunk(index), false, ()).await
}

const ALL_READ: u64 = 2 * CHUNK_BYTES;

#[test]
fn what_was_written_is_not_read_again() {
    process(async {
        let bench = Bench::new().await;
        bench.leave().await;
        // And so from one move to the next.
        for _ in 0..3 {
            let partial = bench.open().await;
            assert_eq!(partial.found_len(), ALL_READ);
            assert_eq!(bench.compared(&partial).await, (vec![true, true, false], 0));
            bench.store.keep(&partial).await;
        }
    });
}

#[test]
fn what_was_read_once_is_not_read_again() {
    process(async {
        let bench = Bench::new().await;
        // Left by another process.
        drop(bench.begun().await);
        for read in [ALL_READ, 0] {
            let partial = bench.open().await;
            assert_eq!(bench.compared(&partial).await, (vec![true, true, false], read));
            bench.store.keep(&partial).await;
        }
    });
}

#[test]
fn what_the_source_has_otherwise_by_now_is_wrong() {
    process(async {
        let bench = Bench::new().await;
        bench.leave().await;
        let partial = bench.open().await;
        let mut hashes = hashes();
        hashes[0] = hashes[1];
        let equal = partial.compare(&bench.store, 0, &hashes, 0).await.unwrap();
        assert_eq!(equal, [false, true, false]);
    });
}

#[test]
fn in_doubt_all_is_read() {
    type Doubt = fn(&Disk);
    let doubts: [(&str, bool, Doubt); 7] = [
        ("written to", false, |disk| disk.write_at(PART, 7, b"other").unwrap()),
        ("written to as it was", true, |disk| {
            disk.write_at(PART, 7, b"aaaaa").unwrap();
        }),
        ("the mtime set back afterwards", false, |disk| {
            unseen(disk, |disk| disk.write_at(PART, 7, b"other").unwrap())
        }),
        ("touched", true, |disk| {
            let mtime = Timestamp { secs: 0, nanos: 0 };
            disk.set_meta(PART, 0o600, mtime).unwrap();
        }),
        ("another file of that name", true, |disk| {
            let content = disk.read(PART).unwrap();
            disk.remove(PART).unwrap();
            disk.create(PART, content).unwrap();
        }),
        ("another name too", true, |disk| {
            disk.link(PART, "twin").unwrap();
            disk.remove("twin").unwrap();
        }),
        ("longer", true, |disk| disk.write_at(PART, ALL_READ, b"x").unwrap()),
    ];
    for (what, is_right, doubt) in doubts {
        process(async {
            let bench = Bench::new().await;
            bench.leave().await;
            doubt(&bench.disk);
            let partial = bench.open().await;
            let (equal, read) = bench.compared(&partial).await;
            assert_eq!(equal, [is_right, true, false], "{what}");
            assert!(read >= ALL_READ, "{what}: {read} bytes were read");
        });
    }
}

/// Between the last write and the moment when it is given up, which may be long after: its writer waits for the run to come back.
#[test]
fn what_somebody_else_has_opened_before_it_is_given_up_is_read() {
    type Meanwhile = fn(&Disk);
    let others: [(&str, bool, Meanwhile); 3] = [
        ("written to", false, |disk| disk.write_at(PART, 7, b"other").unwrap()),
        ("the mtime set back afterwards", false, |disk| {
            unseen(disk, |disk| disk.write_at(PART, 7, b"other").unwrap())
        }),
        ("written to as it was", true, |disk| {
            disk.write_at(PART, 7, b"aaaaa").unwrap();
        }),
    ];
    for (what, is_right, meanwhile) in others {
        process(async {
            let bench = Bench::new().await;
            let partial = bench.begun().await;
            meanwhile(&bench.disk);
            bench.store.keep(&partial).await;
            drop(partial);
            let partial = bench.open().await;
            let (equal, read) = bench.compared(&partial).await;
            assert_eq!(equal, [is_right, true, false], "{what}");
            assert!(read >= ALL_READ, "{what}: {read} bytes were read");
        });
    }
}

#[test]
fn a_file_of_another_size_is_compared_anew() {
    process(async {
        let bench = Bench::new().await;
        bench.leave().await;
        let before = bench.machine.bytes(1, Op::Read);
        let partial = open(&bench.store, SIZE + 1).await;
        let equal = partial.compare(&bench.store, 0, &hashes()[..2], 0).await.unwrap();
        // A chunk's hash depends on its place alone, where there is more than one.
        assert_eq!(equal, [true, true]);
        assert_eq!(bench.machine.bytes(1, Op::Read) - before, ALL_READ);
    });
}

#[test]
fn what_was_not_written_whole_is_not_known() {
    process(async {
        let bench = Bench::new().await;
        let partial = bench.begun().await;
        bench.machine.inject(Fault {
            at: At::call_on(PART, Op::Write, 0),
            kind: Kind::Error(Errno::NOSPC),
        });
        partial
            .write_chunk(&bench.store, 0, &chunk(1), false, ())
            .await
            .unwrap_err();
        bench.store.keep(&partial).await;
        let partial = bench.open().await;
        assert_eq!(bench.compared(&partial).await, (vec![true, true, false], CHUNK_BYTES));
    });
}

#[test]
fn a_read_that_fails_forgets_all() {
    process(async {
        let bench = Bench::new().await;
        drop(bench.begun().await);
        let partial = bench.open().await;
        bench.machine.inject(Fault {
            at: At::call_on(PART, Op::Read, 1),
            kind: Kind::Error(Errno::IO),
        });
        let equal = partial.compare(&bench.store, 0, &hashes(), 0).await.unwrap();
        assert_eq!(equal, [true, false, false]);
        bench.store.keep(&partial).await;
        drop(partial);
        let partial = bench.open().await;
        assert_eq!(bench.compared(&partial).await, (vec![true, true, false], ALL_READ));
    });
}

#[test]
fn after_a_failed_sync_nothing_is_kept() {
    process(async {
        let bench = Bench::new().await;
        let limits = Limits {
            sync_every_bytes: CHUNK_BYTES,
            ..Limits::default()
        };
        let store = Bench::process(&bench.disk, limits).await;
        let partial = open(&store, SIZE).await;
        bench.machine.inject(Fault {
            at: At::call_on(PART, Op::FileSync, 0),
            kind: Kind::SyncLost(Errno::IO, Cache::Kept),
        });
        write(&store, &partial, 0).await.unwrap_err();
        store.keep(&partial).await;
        drop(partial);
        assert_eq!(bench.disk.open_handles(), 2, "the two roots");
        // Nor does another run begin there: it is told at once.
        let claimed = store.claim(Role::Target, RunId([1; 16])).await;
        assert!(matches!(claimed.err(), Some(ServiceError::Unsafe(_))));
    });
}

#[test]
fn another_process_may_go_on_with_it() {
    process(async {
        let bench = Bench::new().await;
        // Else they might have stored through a mapping.
        bench.disk.refuse(Refusals {
            maps_tell: true,
            ..Refusals::default()
        });
        bench.leave().await;
        let other = Bench::process(&bench.disk, Limits::default()).await;
        let theirs = open(&other, SIZE).await;
        assert_eq!(
            bench
                .store
                .open_partial(&RelPath::new("new").unwrap(), SIZE, None)
                .await
                .err(),
            Some(ServiceError::Busy(
                "another run is writing this file; it stays for the next run".into()
            )),
        );
        write(&other, &theirs, 2).await.unwrap();
        drop(theirs);
        let partial = bench.open().await;
        let (equal, read) = bench.compared(&partial).await;
        assert_eq!((equal, read), (vec![true; 3], SIZE));
    });
}

#[test]
fn who_tidies_up_does_not_make_it_forgotten() {
    process(async {
        let bench = Bench::new().await;
        // Else they might have stored through a mapping.
        bench.disk.refuse(Refusals {
            maps_tell: true,
            ..Refusals::default()
        });
        bench.leave().await;
        let other = Bench::process(&bench.disk, Limits::default()).await;
        let theirs = open(&other, SIZE).await;
        let path = RelPath::new("new").unwrap();
        let opened = bench.store.open_partial(&path, SIZE, None).await;
        assert!(matches!(opened, Err(ServiceError::Busy(_))));
        drop(theirs);
        let partial = bench.open().await;
        assert_eq!(bench.compared(&partial).await, (vec![true, true, false], 0));
    });
}

#[test]
fn nothing_is_done_with_a_handle_that_was_left() {
    process(async {
        let bench = Bench::new().await;
        let late = bench.begun().await;
        bench.store.keep(&late).await;
        assert_eq!(write(&bench.store, &late, 2).await, Err(ServiceError::BadHandle));
        assert_eq!(
            late.compare(&bench.store, 0, &hashes(), 0).await,
            Err(ServiceError::BadHandle)
        );
    });
}

#[test]
fn it_is_closed_when_it_is_old_or_not_what_it_was() {
    process(async {
        let bench = Bench::new().await;
        let hour = Duration::from_secs(3600);
        bench.leave().await;
        assert_eq!(bench.disk.open_handles(), 2);
        bench.store.tidy(hour).await;
        bench.store.tidy(24 * hour).await;
        assert_eq!(bench.disk.open_handles(), 2);
        bench.store.tidy(25 * hour).await;
        assert_eq!(bench.disk.open_handles(), 1, "too old");

        bench.leave().await;
        bench.disk.rename(PART, "new").unwrap();
        bench.store.tidy(hour).await;
        assert_eq!(bench.disk.open_handles(), 1, "it has another name");
    });
}

#[test]
fn only_some_are_kept() {
    process(async {
        let bench = Bench::new().await;
        for number in 0..20 {
            let path = RelPath::new(format!("{number}")).unwrap();
            let partial = bench.store.open_partial(&path, SIZE, None).await.unwrap();
            write(&bench.store, &partial, 0).await.unwrap();
            bench.store.keep(&partial).await;
        }
        assert_eq!(bench.disk.open_handles(), 1 + Limits::default().partials_kept);
        // Of one whose chunks nobody knows there is nothing to be kept.
        let limits = Limits {
            hashes_remembered: 0,
            ..Limits::default()
        };
        let store = Bench::process(&bench.disk, limits).await;
        let partial = open(&store, SIZE).await;
        write(&store, &partial, 0).await.unwrap();
        store.keep(&partial).await;
        drop(partial);
        assert_eq!(bench.disk.open_handles(), 2 + Limits::default().partials_kept);
    });
}

#[test]
fn its_lock_is_free() {
    process(async {
        let bench = Bench::new().await;
        bench.leave().await;
        let root = bench.disk.fs().open_root(Path::new("/")).await.unwrap();
        let file = root.open(&Name::new(PART).unwrap()).await.unwrap();
        file.try_lock(Lock::Exclusive).await.unwrap();
    });
}

/// A peer that may write must not leave a hash behind that a later one takes for its file's.
#[test]
fn zeros_that_come_after_other_bytes_are_written() {
    process(async {
        let bench = Bench::new().await;
        let zeros = Bytes::from(vec![0; CHUNK_BYTES as usize]);
        let partial = bench.open().await;
        for index in [0, 2] {
            write(&bench.store, &partial, index).await.unwrap();
            partial
                .write_chunk(&bench.store, index, &zeros, true, ())
                .await
                .unwrap();
        }
        bench.store.keep(&partial).await;
        assert_eq!(bench.disk.read(PART).unwrap()[..CHUNK_BYTES as usize], zeros[..]);
        let partial = bench.open().await;
        let hash = hash_chunk(SIZE, 2, &zeros);
        let equal = partial.compare(&bench.store, 2, &[hash], 0).await.unwrap();
        assert_eq!(equal, [true]);
        assert_eq!(bench.disk.read(PART).unwrap()[2 * CHUNK_BYTES as usize..], zeros[..]);
    });
}

/// Of such a partial nothing is known, least of all that nobody has written to it.
#[test]
fn zeros_that_come_after_other_bytes_are_written_where_nothing_can_be_remembered() {
    process(async {
        let zeros = Bytes::from(vec![0; CHUNK_BYTES as usize]);
        for (hashes_remembered, is_forgotten) in [(0, false), (2, false), (Limits::default().hashes_remembered, true)] {
            let bench = Bench::new().await;
            let limits = Limits {
                hashes_remembered,
                ..Limits::default()
            };
            let store = Bench::process(&bench.disk, limits).await;
            let partial = open(&store, SIZE).await;
            for index in 0..CHUNKS {
                write(&store, &partial, index).await.unwrap();
            }
            if is_forgotten {
                bench.machine.inject(Fault {
                    at: At::call_on(PART, Op::Read, 0),
                    kind: Kind::Error(Errno::IO),
                });
                let finish = Finish {
                    verify: Verify::Disk,
                    ..finish()
                };
                partial.prepare_finish(&store, &finish).await.unwrap();
                partial.read_back(&bench.store, 1).await.unwrap_err();
            }
            for index in 0..CHUNKS {
                partial.write_chunk(&store, index, &zeros, true, ()).await.unwrap();
            }
            let there = bench.disk.read(PART).unwrap();
            let is_there = there.iter().all(|byte| *byte == 0);
            assert!(is_there, "{hashes_remembered} hashes, forgotten: {is_forgotten}");
        }
    });
}

#[test]
fn holes_stay_holes_from_one_move_to_the_next() {
    process(async {
        let bench = Bench::new().await;
        let zeros = Bytes::from(vec![0; CHUNK_BYTES as usize]);
        for _ in 0..2 {
            let partial = bench.open().await;
            partial.write_chunk(&bench.store, 1, &zeros, true, ()).await.unwrap();
            bench.store.keep(&partial).await;
        }
        assert_eq!(bench.machine.bytes(1, Op::Write), 0);
    });
}

/// What came twice, or in part, is read back before it counts.
#[test]
fn what_a_digest_is_told_of_is_what_is_on_the_disk() {
    type Meanwhile = for<'a> fn(&'a Bench, &'a Partial<SimFs>) -> futures::future::BoxFuture<'a, ()>;
    let cases: [(bool, Meanwhile); 3] = [
        (true, |_, _| Box::pin(async {})),
        (false, |bench, partial| {
            Box::pin(async {
                // While the first is missing, it waits.
                partial
                    .write_chunk(&bench.store, 2, &chunk(0), false, ())
                    .await
                    .unwrap();
                write(&bench.store, partial, 2).await.unwrap();
            })
        }),
        (false, |bench, partial| {
            Box::pin(async {
                bench.machine.inject(Fault {
                    at: At::call_on(PART, Op::Write, 0),
                    kind: Kind::Error(Errno::NOSPC),
                });
                // Something of it may be there.
                let other = partial.write_chunk(&bench.store, 2, &chunk(0), false, ()).await;
                other.unwrap_err();
            })
        }),
    ];
    for (counts, meanwhile) in cases {
        process(async {
            let bench = Bench::new().await;
            let partial = bench.open().await;
            for index in [1, 2] {
                write(&bench.store, &partial, index).await.unwrap();
            }
            meanwhile(&bench, &partial).await;
            write(&bench.store, &partial, 0).await.unwrap();
            let before = bench.machine.bytes(1, Op::Read);
            while !partial.read_back(&bench.store, 1).await.unwrap_or(true) {}
            assert_eq!(bench.machine.bytes(1, Op::Read) == before, counts);
        });
    }
}

/// What makes a partial of all chunks final.
pub(super) fn finish() -> Finish {
    let mut hasher = FileHasher::new(SIZE, 1);
    for (index, hash) in (0..).zip(hashes()) {
        hasher.add(index, hash).unwrap();
    }
    Finish {
        digest: hasher.digest().unwrap(),
        meta: Meta {
            mode: 0o644,
            mtime: Timestamp { secs: 5, nanos: 0 },
        },
        expected: Expected::Absent,
        verify: Verify::Written,
    }
}

/// Finishes a partial that `somebody` has opened, who does something once the first chunk has been read back.
async fn finish_shared(bench: &Bench, somebody: impl Future<Output = ()>) -> Result<bool, ServiceError> {
    let partial = bench.whole().await;
    drop(bench.disk.open_writer(PART).unwrap());
    partial.prepare_finish(&bench.store, &finish()).await.unwrap();
    assert_eq!(partial.read_back(&bench.store, 1).await, Ok(false));
    somebody.await;
    while !partial.read_back(&bench.store, 1).await? {}
    partial.finish(&bench.store, &finish()).await
}

#[test]
fn what_is_written_while_all_is_read_back_is_not_published() {
    process(async {
        let bench = Bench::new().await;
        let writer = async { bench.disk.write_at(PART, 5, b"other").unwrap() };
        let finished = finish_shared(&bench, writer).await;
        assert!(matches!(finished, Err(ServiceError::Busy(_))), "{finished:?}");
        assert!(bench.disk.read("new").is_err());
    });
}

/// A file that is looked at by whoever looks at all files is published all the same.
#[test]
fn who_only_reads_is_in_nobodys_way() {
    process(async {
        let bench = Bench::new().await;
        let root = bench.disk.fs().open_root(Path::new("/")).await.unwrap();
        let before = bench.machine.bytes(1, Op::Read);
        let reader = async { drop(root.open(&Name::new(PART).unwrap()).await.unwrap()) };
        assert_eq!(finish_shared(&bench, reader).await, Ok(true));
        assert_eq!(bench.machine.bytes(1, Op::Read) - before, SIZE, "read once");
        let all: Vec<u8> = (0..CHUNKS).flat_map(chunk).collect();
        assert!(bench.disk.read("new").unwrap() == all);
    });
}

/// A lease that is refused for want of memory, say, does not tell that nobody has the partial open; one that no file of the file system
/// can have tells nothing of it.
#[test]
fn without_a_lease_all_is_read_back_unless_there_are_none() {
    for (errno, read) in [(Errno::NOMEM, SIZE), (Errno::OPNOTSUPP, 0)] {
        process(async move {
            let bench = Bench::new().await;
            bench.machine.inject(Fault {
                at: At::call_on(PART, Op::Lease, 0),
                kind: Kind::Error(errno),
            });
            let partial = bench.whole().await;
            assert_eq!(bench.machine.struck().len(), 1);
            partial.prepare_finish(&bench.store, &finish()).await.unwrap();
            let before = bench.machine.bytes(1, Op::Read);
            while !partial.read_back(&bench.store, 1).await.unwrap() {}
            assert_eq!(bench.machine.bytes(1, Op::Read) - before, read);
        });
    }
}

/// Not every file system has such stores change a file's times: who opened it is seen by the lease.
#[test]
fn what_is_stored_through_a_mapping_of_a_kept_partial_is_seen() {
    for maps_tell in [false, true] {
        process(async move {
            let bench = Bench::new().await;
            bench.disk.refuse(Refusals {
                maps_tell,
                ..Refusals::default()
            });
            bench.leave().await;
            let map = bench.disk.open_writer(PART).unwrap().map();
            map.write(7, b"other").unwrap();
            drop(map);
            let partial = bench.open().await;
            assert_eq!(bench.compared(&partial).await, (vec![false, true, false], ALL_READ));
        });
    }
}

/// A chunk of zeros that the source has as a hole is left out in new ground alone: what lies there is looked at under the lease.
#[test]
fn what_somebody_writes_just_before_the_lease_is_no_hole() {
    process(async {
        let bench = Bench::new().await;
        let write = |machine: &Machine| machine.disk(1).write_at(PART, CHUNK_BYTES + 5, b"other").unwrap();
        bench.machine.inject(act(At::call_on(PART, Op::Lease, 0), write));
        let partial = bench.open().await;
        assert_eq!(bench.machine.struck().len(), 1);
        let zeros = Bytes::from(vec![0; CHUNK_BYTES as usize]);
        for index in 0..CHUNKS {
            partial
                .write_chunk(&bench.store, index, &zeros, true, ())
                .await
                .unwrap();
        }
        assert!(bench.disk.read(PART).unwrap().iter().all(|byte| *byte == 0));
    });
}

#[test]
fn what_was_read_back_before_somebody_opened_it_is_read_again() {
    process(async {
        let bench = Bench::new().await;
        let partial = bench.whole().await;
        let finish = Finish {
            verify: Verify::Disk,
            ..finish()
        };
        partial.prepare_finish(&bench.store, &finish).await.unwrap();
        assert_eq!(partial.read_back(&bench.store, 1).await, Ok(false));
        write_unseen(&bench.machine);
        while !partial.read_back(&bench.store, 1).await.unwrap() {}
        let finished = partial.finish(&bench.store, &finish).await;
        assert!(matches!(finished, Err(ServiceError::Busy(_))), "{finished:?}");
        assert!(bench.disk.read("new").is_err());
    });
}

/// Who opens it while it is taken is seen by the lease that has held until then: one that is taken anew would hide that.
#[test]
fn the_lease_of_a_kept_partial_is_not_taken_anew() {
    process(async {
        let bench = Bench::new().await;
        bench.leave().await;
        let store = |machine: &Machine| {
            let map = machine.disk(1).open_writer(PART).unwrap().map();
            map.write(7, b"other").unwrap();
        };
        bench.machine.inject(act(At::call_on(PART, Op::Lease, 0), store));
        let partial = bench.open().await;
        assert_eq!(bench.compared(&partial).await, (vec![true, true, false], 0));
        assert_eq!(bench.machine.heal().len(), 1, "it was taken anew");
    });
}

/// Somebody writes what is there already: as long as that is not durable, it is not there.
#[test]
fn what_somebody_else_has_written_is_durable_before_it_counts() {
    process(async {
        let bench = Bench::new().await;
        let partial = bench.whole().await;
        partial.prepare_finish(&bench.store, &finish()).await.unwrap();
        let all: Vec<u8> = (0..CHUNKS).flat_map(chunk).collect();
        unseen(&bench.disk, |disk| {
            disk.truncate(PART, 5).unwrap();
            disk.write_at(PART, 5, &all[5..]).unwrap();
        });
        while !partial.read_back(&bench.store, 1).await.unwrap() {}
        assert_eq!(partial.finish(&bench.store, &finish()).await, Ok(true));
        let new = RelPath::new("new").unwrap();
        assert!(bench.disk.always_holds(&new, &Content::from(&all[..])));
    });
}

#[test]
fn a_kept_partial_that_is_the_equal_final_by_now_is_let_go() {
    process(async {
        let bench = Bench::new().await;
        let partial = bench.whole().await;
        bench.store.keep(&partial).await;
        drop(partial);
        // Another program, or person, has published it.
        bench.disk.rename(PART, "new").unwrap();
        bench.disk.settle();
        let version = bench.disk.stat("new").unwrap().version;
        let path = RelPath::new("new").unwrap();
        let confirm = bench.store.open_final(&path, &version).await.unwrap();
        assert_eq!(confirm.compare(0, &hashes()).await.unwrap(), [true; 3]);
        while !confirm.read_back(1).await.unwrap() {}
        assert_eq!(confirm.finish(&bench.store, &finish()).await, Ok(()));
    });
}
