//! Partials that begin as a reflink of the final that they replace: what is equal is not written, and nothing of the final is taken for new.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use realize::{
    digest::{CHUNK_BYTES, ChunkHash, FileHasher, hash_chunk},
    fs::Fs,
    limits::Limits,
    model::{RelPath, Timestamp},
    service::{Blocks, Expected, Finish, Meta, Verify},
    store::{FailedSync, Partial, Store},
};
use realize_sim::{
    fs::{Act, At, Content, Disk, Fault, Kind, Machine, Op, PAGE_BYTES, Refusals, SimFs},
    world::process,
};
use rustix::io::Errno;

const CHUNKS: u64 = 3;
const SIZE: u64 = CHUNKS * CHUNK_BYTES;

/// A chunk that is nowhere zero.
fn chunk(fill: u8) -> Bytes {
    vec![fill; CHUNK_BYTES as usize].into()
}

struct Bench {
    machine: Machine,
    disk: Disk,
    store: Store<SimFs>,
}

impl Bench {
    /// A disk with a final of the chunks `old`, and `more` bytes.
    async fn new(old: [u8; CHUNKS as usize], more: &[u8], refusals: Refusals) -> Self {
        Self::seeded(1, old, more, refusals).await
    }

    async fn seeded(seed: u64, old: [u8; CHUNKS as usize], more: &[u8], refusals: Refusals) -> Self {
        let machine = Machine::new(seed);
        let disk = machine.disk(1);
        disk.refuse(refusals);
        let old: Vec<u8> = old.into_iter().flat_map(chunk).chain(more.to_vec()).collect();
        disk.create("f", &old).unwrap();
        disk.settle();
        let root = disk.fs().open_root(Path::new("/")).await.unwrap();
        let store = Store::new(root, Limits::default(), false, disk.fs().boot(), FailedSync::default());
        Self { machine, disk, store }
    }

    async fn open(&self) -> Partial<SimFs> {
        let basis = self.disk.stat("f").unwrap().version;
        let path = RelPath::new("f").unwrap();
        self.store.open_partial(&path, SIZE, Some(&basis)).await.unwrap()
    }

    async fn compare(&self, partial: &Partial<SimFs>, new: [u8; CHUNKS as usize], shift: i64) -> Vec<bool> {
        let hash = |(index, fill)| hash_chunk(SIZE, index, &chunk(fill));
        let hashes: Vec<ChunkHash> = (0..).zip(new).map(hash).collect();
        partial.compare(&self.store, 0, &hashes, shift).await.unwrap()
    }

    fn partial(&self) -> Content {
        self.disk.content(".f.realize-part").unwrap()
    }

    fn written_bytes(&self) -> u64 {
        self.machine.bytes(1, Op::Write)
    }
}

fn refusing(reflink: Option<Errno>, punch: Option<Errno>) -> Refusals {
    Refusals {
        reflink,
        punch,
        ..Refusals::default()
    }
}

#[test]
fn what_is_equal_is_written_only_where_blocks_are_not_shared() {
    let refusals = [None, Some(Errno::OPNOTSUPP), Some(Errno::XDEV), Some(Errno::INVAL)];
    for (refused, written) in refusals.map(|errno| (errno, if errno.is_some() { 2 * CHUNK_BYTES } else { 0 })) {
        process(async move {
            let bench = Bench::new([1, 2, 3], b"and more", refusing(refused, None)).await;
            let partial = bench.open().await;
            assert_eq!(bench.compare(&partial, [1, 9, 3], 0).await, [true, false, true]);
            assert_eq!(bench.written_bytes(), written);
            partial
                .write_chunk(&bench.store, 1, &chunk(9), false, ())
                .await
                .unwrap();
            let there = bench.partial().to_vec();
            assert!(there[..SIZE as usize] == [chunk(1), chunk(9), chunk(3)].concat());
            // The final is not touched.
            assert!(bench.disk.read("f").unwrap()[..SIZE as usize] == [chunk(1), chunk(2), chunk(3)].concat());
        });
    }
}

#[test]
fn what_lies_elsewhere_is_copied_over_what_is_shared() {
    process(async {
        let bench = Bench::new([1, 2, 3], b"", Refusals::default()).await;
        let partial = bench.open().await;
        let equal = bench.compare(&partial, [2, 3, 3], CHUNK_BYTES as i64).await;
        assert_eq!(equal, [true, true, false]);
        assert!(bench.partial().to_vec() == [chunk(2), chunk(3), chunk(3)].concat());
    });
}

fn zeros() -> Bytes {
    vec![0; CHUNK_BYTES as usize].into()
}

/// What the source has as a hole is one at the target, whatever the final had there.
#[test]
fn a_hole_is_made_where_the_final_had_bytes() {
    const PAGE: usize = PAGE_BYTES as usize;
    let punched = SIZE / PAGE_BYTES - (CHUNK_BYTES / PAGE_BYTES - 23);
    for (punch, pages) in [(None, punched), (Some(Errno::OPNOTSUPP), SIZE / PAGE_BYTES)] {
        process(async move {
            let bench = Bench::new([1, 2, 3], b"", refusing(None, punch)).await;
            let partial = bench.open().await;
            bench.compare(&partial, [1, 0, 3], 0).await;
            // Of the zeros between these too few for a hole.
            let mut sparse = zeros().to_vec();
            (sparse[50 * PAGE + 5], sparse[60 * PAGE]) = (9, 9);
            (sparse[80 * PAGE], sparse[91 * PAGE]) = (9, 9);
            partial.write_chunk(&bench.store, 1, &sparse, true, ()).await.unwrap();
            let there = bench.partial();
            assert!(there.to_vec() == [chunk(1), sparse.into(), chunk(3)].concat());
            assert_eq!(there.pages(), pages);
        });
    }
}

/// The last chunk is shared whole, though the file is shorter: no more is told of than that has.
#[test]
fn what_is_kept_of_one_is_no_longer_than_its_file() {
    process(async {
        let bench = Bench::new([1, 2, 3], b"", Refusals::default()).await;
        let basis = bench.disk.stat("f").unwrap().version;
        let (path, size) = (RelPath::new("f").unwrap(), SIZE - 5000);
        let partial = bench.store.open_partial(&path, size, Some(&basis)).await.unwrap();
        partial
            .write_chunk(&bench.store, 0, &chunk(9), false, ())
            .await
            .unwrap();
        bench.store.keep(&partial).await;
        drop(partial);
        bench.disk.remove("f").unwrap();
        let partial = bench.store.open_partial(&path, size, None).await.unwrap();
        assert_eq!((partial.found_len(), partial.basis_len()), (size, 0));
        let sums = partial.signature(CHUNKS - 1, 1, Blocks::Fine).await.unwrap();
        assert_eq!(sums.bytes, CHUNK_BYTES - 5000);
    });
}

#[test]
fn what_is_shared_beyond_the_end_of_the_file_is_cut_off() {
    process(async {
        let bench = Bench::new([1, 2, 3], b"", Refusals::default()).await;
        let basis = bench.disk.stat("f").unwrap().version;
        let (path, size) = (RelPath::new("f").unwrap(), SIZE - 5000);
        let partial = bench.store.open_partial(&path, size, Some(&basis)).await.unwrap();
        assert_eq!(bench.partial().to_vec().len(), SIZE as usize);
        let last = chunk(9).slice(..CHUNK_BYTES as usize - 5000);
        finish(&bench, &partial, &[chunk(1), chunk(8), last]).await;
    });
}

/// A final that is damaged so that it can't be read is repaired as any other.
#[test]
fn a_block_that_cannot_be_read_is_not_equal() {
    for refused in [None, Some(Errno::OPNOTSUPP)] {
        process(async move {
            let bench = Bench::new([1, 2, 3], b"", refusing(refused, None)).await;
            let partial = bench.open().await;
            for path in ["f", ".f.realize-part"] {
                bench.machine.inject(Fault {
                    at: At::call_on(path, Op::Read, 1),
                    kind: Kind::Error(Errno::IO),
                });
            }
            assert_eq!(bench.compare(&partial, [1, 2, 3], 0).await, [true, false, true]);
            partial
                .write_chunk(&bench.store, 1, &chunk(2), false, ())
                .await
                .unwrap();
            assert!(bench.partial().to_vec() == [chunk(1), chunk(2), chunk(3)].concat());
        });
    }
}

/// Writes all of `chunks`, with holes for zeros; the file is exactly that then.
async fn finish(bench: &Bench, partial: &Partial<SimFs>, chunks: &[Bytes]) {
    let all = chunks.concat();
    let size = all.len() as u64;
    let mut hasher = FileHasher::new(size, 1);
    for (index, data) in (0..).zip(chunks) {
        partial.write_chunk(&bench.store, index, data, true, ()).await.unwrap();
        hasher.add(index, hash_chunk(size, index, data)).unwrap();
    }
    let finish = Finish {
        digest: hasher.digest().unwrap(),
        meta: Meta {
            mode: 0o644,
            mtime: Timestamp { secs: 5, nanos: 0 },
        },
        expected: Expected::Version(bench.disk.stat("f").unwrap().version),
        verify: Verify::Written,
    };
    partial.prepare_finish(&bench.store, &finish).await.unwrap();
    assert_eq!(partial.read_back(&bench.store, 1).await, Ok(true));
    assert_eq!(partial.finish(&bench.store, &finish).await, Ok(true));
    assert!(bench.disk.read("f").unwrap() == all);
}

/// Whatever a reflink that is cut short says of it: else what is left out as a hole would be what the final had.
#[test]
fn what_a_reflink_that_was_cut_short_has_left_does_not_count() {
    for seed in 0..32 {
        process(async move {
            let bench = Bench::seeded(seed, [1, 2, 3], b"", Refusals::default()).await;
            bench.machine.inject(Fault {
                at: at_reflink(),
                kind: Kind::Short(CHUNK_BYTES as usize + 5000),
            });
            let partial = bench.open().await;
            assert_eq!(bench.machine.struck().len(), 1);
            finish(&bench, &partial, &vec![zeros(); CHUNKS as usize]).await;
        });
    }
}

/// The final grows between being opened and shared: what it gains is not in the way of a hole.
#[test]
fn what_the_final_gains_meanwhile_is_not_taken_for_a_hole() {
    for more in [&b""[..], b"and more"] {
        process(async move {
            let bench = Bench::new([1, 2, 3], more, Refusals::default()).await;
            let basis = bench.disk.stat("f").unwrap().version;
            let grow = |machine: &Machine| {
                let writer = machine.disk(1).open_writer("f").unwrap();
                writer.write(SIZE, &chunk(4)).unwrap();
            };
            bench.machine.inject(Fault {
                at: at_reflink(),
                kind: Kind::Act(Act(Arc::new(grow))),
            });
            let (path, size) = (RelPath::new("f").unwrap(), SIZE + CHUNK_BYTES);
            let partial = bench.store.open_partial(&path, size, Some(&basis)).await.unwrap();
            assert_eq!(bench.machine.struck().len(), 1);
            finish(&bench, &partial, &vec![zeros(); CHUNKS as usize + 1]).await;
        });
    }
}

fn at_reflink() -> At {
    At::call(Op::Reflink, 0)
}
