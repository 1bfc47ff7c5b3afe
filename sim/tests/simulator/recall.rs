//! What was read of a source is not read again, by a later process either; in the least doubt all of it is.

use std::{path::Path, sync::Arc};

use realize::{
    digest::{CHUNK_BYTES, ChunkHash, hash_chunk},
    fs::{Dir, Fs},
    limits::Limits,
    model::{RelPath, Timestamp},
    service::{FileRef, ServiceError},
    store::{FailedSync, Source, SourceFile, Store},
};
use realize_sim::{fs::*, world::process};
use rustix::io::Errno;

const CHUNKS: u64 = 40;

/// How many of them a killed process has written down.
const WRITTEN: u64 = 32;

/// A time of day at which the files of the disk are old.
const LATER: Timestamp = Timestamp {
    secs: 1 << 40,
    nanos: 0,
};

/// A disk with a large source, and one where hashes are remembered.
struct Bench {
    machine: Machine,
    disk: Disk,
    state: Disk,
}

impl Bench {
    fn new() -> Self {
        let machine = Machine::new(1);
        let (disk, state) = (machine.disk(1), machine.disk(2));
        disk.refuse(Refusals {
            maps_tell: true,
            ..Refusals::default()
        });
        let mut content = Content::from(b"");
        content.set_len(CHUNKS * CHUNK_BYTES);
        for chunk in 0..CHUNKS {
            content.write(chunk * CHUNK_BYTES + 77, &chunk.to_le_bytes());
        }
        disk.create("film", content.to_vec()).unwrap();
        disk.settle();
        Self { machine, disk, state }
    }

    /// A process that moves from the disk.
    async fn process(&self) -> Store<SimFs> {
        let root = |disk: Disk| async move { disk.fs().open_root(Path::new("/")).await.unwrap() };
        let store = Store::new(
            root(self.disk.clone()).await,
            Limits::default(),
            false,
            self.disk.fs().boot(),
            FailedSync::default(),
        );
        let dir = root(self.state.clone()).await;
        let owner = dir.metadata().await.unwrap().uid;
        store.remember_in(dir, owner).await.unwrap();
        store
    }

    fn file(&self) -> FileRef {
        FileRef {
            path: RelPath::new("film").unwrap(),
            version: self.disk.stat("film").unwrap().version,
        }
    }

    async fn open(&self, store: &Store<SimFs>) -> Source<SimFs> {
        store.open_source(&self.file(), LATER).await.unwrap()
    }

    /// The hashes of all chunks, and how many were read.
    async fn hashes(&self, source: &Source<SimFs>) -> (Vec<ChunkHash>, u64) {
        let Source::File(file) = source else { panic!("a file") };
        let before = self.machine.bytes(1, Op::Read);
        let mut hashes = Vec::new();
        for index in 0..CHUNKS {
            hashes.push(file.hash_chunk(index).await.unwrap());
        }
        (hashes, (self.machine.bytes(1, Op::Read) - before) / CHUNK_BYTES)
    }

    /// As [`hashes`](Self::hashes), of a process of its own that is killed then.
    async fn hashes_of_process(&self) -> (Vec<ChunkHash>, u64) {
        let store = self.process().await;
        let source = self.open(&store).await;
        self.hashes(&source).await
    }

    fn files(&self) -> usize {
        self.state
            .nodes()
            .values()
            .filter(|node| node.kind == realize::model::Kind::File)
            .count()
    }
}

#[test]
fn what_was_read_is_not_read_again() {
    process(async {
        let bench = Bench::new();
        let store = bench.process().await;
        let (hashes, read) = bench.hashes(&bench.open(&store).await).await;
        assert_eq!(read, CHUNKS);
        assert_eq!(bench.hashes(&bench.open(&store).await).await, (hashes.clone(), 0));
        drop(store);
        assert_eq!(bench.hashes_of_process().await, (hashes.clone(), CHUNKS - WRITTEN));
        assert_eq!(bench.files(), 1);
        // All that is right is gone on with.
        let (again, read) = bench.hashes_of_process().await;
        assert!(again == hashes && read <= CHUNKS - WRITTEN, "{read}");
    });
}

#[test]
fn in_doubt_all_is_read() {
    type Doubt = fn(&Bench);
    let doubts: [(&str, u64, Doubt); 9] = [
        ("written to, its mtime set back", CHUNKS, |bench| {
            let before = bench.disk.stat("film").unwrap().version.mtime;
            bench.disk.write_at("film", 5, b"other").unwrap();
            bench.disk.set_meta("film", 0o644, before).unwrap();
        }),
        ("written through a mapping", CHUNKS, |bench| {
            let mapping = bench.disk.open_writer("film").unwrap().map();
            mapping.write(5, b"other").unwrap();
        }),
        ("another file", CHUNKS, |bench| {
            let content = bench.disk.read("film").unwrap();
            bench.disk.replace("film", content).unwrap();
        }),
        ("another name too", CHUNKS, |bench| {
            bench.disk.link("film", "twin").unwrap()
        }),
        ("another run of the kernel", CHUNKS, |bench| bench.machine.reboot()),
        ("a file system that is not told of mappings", CHUNKS, |bench| {
            bench.disk.refuse(Refusals::default());
        }),
        ("one that has no leases", CHUNKS, |bench| {
            bench.disk.refuse(Refusals {
                maps_tell: true,
                lease: Some(Errno::INVAL),
                ..Refusals::default()
            });
        }),
        ("a record that is another's", CHUNKS - WRITTEN + 1, |bench| {
            let name = bench.name();
            bench.state.write_at(&name, 20, b"???").unwrap();
        }),
        ("records that were cut", CHUNKS - 3, |bench| {
            bench.state.truncate(bench.name(), 3 * 48 + 5).unwrap();
        }),
    ];
    for (what, expected, doubt) in doubts {
        process(async {
            let bench = Bench::new();
            bench.hashes_of_process().await;
            doubt(&bench);
            let (hashes, read) = bench.hashes_of_process().await;
            assert_eq!(read, expected, "{what}");
            let truth = Bench {
                state: bench.machine.disk(3),
                machine: bench.machine.clone(),
                disk: bench.disk.clone(),
            };
            assert_eq!(hashes, truth.hashes_of_process().await.0, "{what}");
        });
    }
}

impl Bench {
    /// Of the file where the hashes are.
    fn name(&self) -> Vec<u8> {
        let nodes = self.state.nodes();
        let (path, _) = nodes
            .iter()
            .find(|(_, node)| node.kind == realize::model::Kind::File)
            .unwrap();
        path.as_bytes().to_vec()
    }
}

#[test]
fn what_changed_a_moment_ago_is_not_remembered() {
    process(async {
        let bench = Bench::new();
        let store = bench.process().await;
        let ctime = bench.file().version.ctime;
        let soon = Timestamp {
            secs: ctime.secs + 2,
            ..ctime
        };
        for _ in 0..2 {
            let source = store.open_source(&bench.file(), soon).await.unwrap();
            assert_eq!(bench.hashes(&source).await.1, CHUNKS);
        }
    });
}

#[test]
fn what_is_gone_or_can_not_be_read_is_forgotten() {
    process(async {
        let bench = Bench::new();
        let store = bench.process().await;
        let source = bench.open(&store).await;
        bench.hashes(&source).await;
        assert_eq!(bench.files(), 1);
        store.delete_source(&source, None).await.unwrap();
        assert_eq!(bench.files(), 0);

        let bench = Bench::new();
        bench.hashes_of_process().await;
        let store = bench.process().await;
        let source = bench.open(&store).await;
        bench.machine.inject(Fault {
            at: At::call_on("film", Op::Read, 0),
            kind: Kind::Error(Errno::IO),
        });
        let Source::File(file) = &source else { panic!("a file") };
        file.hash_chunk(CHUNKS - 1).await.unwrap_err();
        assert_eq!((bench.files(), bench.hashes(&source).await.1), (0, CHUNKS));
    });
}

/// Hashes that are wrong have been believed of other chunks, so nothing is taken for proven.
#[test]
fn what_differs_from_what_was_remembered_stops_the_file() {
    process(async {
        let bench = Bench::new();
        bench.hashes_of_process().await;
        let store = bench.process().await;
        // By a means that no time tells of.
        bench.disk.refuse(Refusals {
            maps_tell: false,
            ..Refusals::default()
        });
        bench
            .disk
            .open_writer("film")
            .unwrap()
            .map()
            .write(5, b"other")
            .unwrap();
        bench.disk.refuse(Refusals {
            maps_tell: true,
            ..Refusals::default()
        });
        let [source, other] = [bench.open(&store).await, bench.open(&store).await];
        fn file(source: &Source<SimFs>) -> &SourceFile<SimFs> {
            match source {
                Source::File(file) => file,
                Source::Link { .. } => panic!("a file"),
            }
        }
        file(&source).hash_chunk(1).await.unwrap();
        file(&other).hash_chunk(2).await.unwrap();
        assert_eq!(file(&source).read_chunk(0).await.err(), Some(ServiceError::Changed));
        for source in [&source, &other] {
            assert_eq!(store.delete_source(source, None).await, Err(ServiceError::Changed));
        }
        assert_eq!(bench.files(), 0);
        let (hashes, read) = bench.hashes(&bench.open(&store).await).await;
        assert_eq!((hashes.len() as u64, read), (CHUNKS, CHUNKS));
    });
}

#[test]
fn where_others_may_write_nothing_is_remembered() {
    process(async {
        let bench = Bench::new();
        let root = bench.state.fs().open_root(Path::new("/")).await.unwrap();
        let metadata = root.metadata().await.unwrap();
        let store = bench.process().await;
        assert!(store.remember_in(root.clone(), metadata.uid + 1).await.is_err());
        root.set_meta(0o770, metadata.version.mtime).await.unwrap();
        assert!(store.remember_in(root, metadata.uid).await.is_err());
    });
}

#[test]
fn what_can_not_be_written_down_is_in_nobodys_way() {
    process(async {
        let bench = Bench::new();
        bench.state.set_capacity(Some(0));
        for _ in 0..2 {
            assert_eq!(bench.hashes_of_process().await.1, CHUNKS);
        }
    });
}

/// Between being opened and leased, with its mtime set back.
#[test]
fn what_somebody_writes_just_before_the_lease_is_read() {
    process(async {
        let bench = Bench::new();
        bench.hashes_of_process().await;
        let write = |machine: &Machine| {
            let disk = machine.disk(1);
            let before = disk.stat("film").unwrap().version.mtime;
            disk.write_at("film", 5, b"newer").unwrap();
            disk.set_meta("film", 0o644, before).unwrap();
        };
        bench.machine.inject(Fault {
            at: At::call(Op::Lease, 0),
            kind: Kind::Act(Act(Arc::new(write))),
        });
        let store = bench.process().await;
        let Source::File(file) = bench.open(&store).await else {
            panic!("a file")
        };
        assert_eq!(bench.machine.struck().len(), 1);
        let is = bench.disk.read("film").unwrap();
        let is = hash_chunk(is.len() as u64, 0, &is[..CHUNK_BYTES as usize]);
        // To be refused for what has changed would do as well.
        assert!(file.hash_chunk(0).await.is_ok_and(|hash| hash == is));
    });
}

#[test]
fn one_process_remembers_no_more_versions_than_are_kept() {
    process(async {
        let bench = Bench::new();
        let store = bench.process().await;
        let first = bench.open(&store).await;
        bench.hashes(&first).await;
        for number in 0..40 {
            let name = format!("film {number}");
            bench.disk.create(&name, bench.disk.read("film").unwrap()).unwrap();
            let file = FileRef {
                path: RelPath::new(&*name).unwrap(),
                version: bench.disk.stat(&name).unwrap().version,
            };
            let source = store.open_source(&file, LATER).await.unwrap();
            bench.hashes(&source).await;
            bench.disk.remove(&name).unwrap();
        }
        assert_eq!(bench.files(), 32);
        drop(store);
        // One that is in use is not given up for others.
        let (_, read) = bench.hashes_of_process().await;
        assert_eq!(read, CHUNKS - WRITTEN);
    });
}

/// More of them than that, all in use at once, are each remembered; once they are not, no more stay than are kept.
#[test]
fn what_is_in_use_at_once_is_given_up_once_it_is_not() {
    process(async {
        let bench = Bench::new();
        let store = bench.process().await;
        let mut sources = Vec::new();
        for number in 0..40 {
            let name = format!("film {number}");
            bench.disk.create(&name, bench.disk.read("film").unwrap()).unwrap();
            let file = FileRef {
                path: RelPath::new(&*name).unwrap(),
                version: bench.disk.stat(&name).unwrap().version,
            };
            sources.push(store.open_source(&file, LATER).await.unwrap());
            bench.hashes(sources.last().unwrap()).await;
        }
        assert_eq!(bench.files(), 40);
        drop(sources);
        bench.hashes(&bench.open(&store).await).await;
        assert_eq!(bench.files(), 32);
    });
}

#[test]
fn only_some_versions_are_remembered() {
    process(async {
        let bench = Bench::new();
        for _ in 0..40 {
            bench.hashes_of_process().await;
            bench.disk.write_at("film", 5, b"other").unwrap();
        }
        bench.process().await;
        assert_eq!(bench.files(), 32);
    });
}
