//! The promises of `realize::fs`, checked on any file system: one function per promise that can be seen without a
//! power loss. [`contract_suite!`](crate::contract_suite) makes tests of them all.

use std::{fmt::Debug, future::Future, io, path::PathBuf};

use realize::{
    fs::{Dir, File, Fs, Lock, Rename, read_full, write_all},
    model::{Kind, Name, RelPath, Timestamp},
};
use rustix::io::Errno;

use crate::world::process;

/// An empty directory on the file system under test.
pub struct Bench<F: Fs> {
    /// The file system.
    pub fs: F,
    /// Where the directory is.
    pub path: PathBuf,
    /// Makes a FIFO of this name in it.
    pub fifo: Box<dyn Fn(&Name) + Send + Sync>,
    /// What must live as long.
    pub keep: Box<dyn std::any::Any + Send>,
}

impl<F: Fs> Bench<F> {
    /// The directory, opened anew.
    pub async fn root(&self) -> F::Dir {
        ok(self.fs.open_root(&self.path).await)
    }
}

/// Runs a promise to its end on virtual time.
pub fn run<F: Fs, P: Future<Output = ()>>(bench: Bench<F>, promise: impl FnOnce(Bench<F>) -> P) {
    process(promise(bench));
}

/// A `#[test]` for every promise, on the [`Bench`] that the expression makes.
#[macro_export]
macro_rules! contract_suite {
    ($bench:expr) => {
        $crate::contract_suite!(@each $bench;
            a_file_that_was_written_reads_the_same
            what_is_skipped_is_a_hole_and_reads_as_zeros
            a_cut_file_reads_zeros_when_extended_again
            a_huge_sparse_file_costs_nothing
            a_punched_hole_reads_as_zeros
            a_reflink_reads_the_same_until_either_is_written_to
            reading_at_the_end_gives_nothing
            new_things_have_private_modes
            create_refuses_any_name_that_is_taken
            what_is_missing_is_enoent
            open_tells_what_is_not_a_regular_file
            a_file_opened_for_reading_cannot_be_changed
            mode_and_mtime_are_kept
            set_mtime_does_not_follow_a_link
            times_and_mode_of_a_directory_are_set_last
            a_write_changes_mtime_and_ctime
            a_symlink_keeps_its_text
            open_dir_follows_no_link
            open_dir_of_the_root_path_is_itself
            open_root_follows_links_and_refuses_files
            names_are_all_names
            a_link_is_the_same_inode
            link_refuses_directories_and_taken_names
            rename_replaces_a_file
            rename_noreplace_leaves_a_file_that_is_there
            rename_exchange_swaps
            rename_of_two_links_of_one_inode_does_nothing
            rename_between_kinds_is_refused
            a_directory_does_not_move_into_itself
            rename_keeps_the_inode_and_its_mtime
            a_failed_rename_changes_nothing
            unlink_removes_no_directory
            rmdir_removes_only_empty_directories
            an_unlinked_file_stays_usable_while_open
            nothing_is_made_in_a_removed_directory
            a_locked_directory_refuses_another_handle
            shared_locks_go_together
            a_lock_ends_with_the_last_clone
            a_file_lock_ends_with_the_last_clone
            a_lease_is_refused_while_a_writer_is_open
            a_lease_ends_when_somebody_opens_for_writing
            the_lease_of_a_writer_ends_when_anybody_opens
            reading_and_a_lease_change_no_times
            syncs_succeed_and_drop_cache_loses_nothing
            places_tell_inside_from_outside
            an_open_file_tells_what_it_was_when_it_was_opened
            uncarried_tells_hard_links_and_special_bits
            uncarried_tells_set_id_bits_of_a_directory
            an_offloaded_job_gives_its_value_back
            a_panicking_job_is_lost
            a_job_runs_on_when_nobody_waits
        );
    };
    (@each $bench:expr; $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                $crate::contract::run($bench, $crate::contract::$promise);
            }
        )*
    };
}

fn n(name: &str) -> Name {
    Name::new(name).expect("a good name")
}

fn p(path: &str) -> RelPath {
    RelPath::new(path).expect("a good path")
}

#[track_caller]
fn ok<T>(result: io::Result<T>) -> T {
    result.expect("must succeed")
}

#[track_caller]
fn refused<T>(result: io::Result<T>, errno: Errno) {
    refused_with(result, &[errno]);
}

#[track_caller]
fn refused_with<T>(result: io::Result<T>, errnos: &[Errno]) {
    let error = result.err().expect("must be refused");
    let number = error.raw_os_error().expect("errors carry the system's number");
    assert!(
        errnos.iter().any(|errno| errno.raw_os_error() == number),
        "{error:?} is none of {errnos:?}"
    );
}

#[track_caller]
fn same<T: PartialEq + Debug>(is: T, should_be: T) {
    assert_eq!(is, should_be);
}

async fn make<D: Dir>(dir: &D, name: &str, content: &[u8]) -> D::File {
    let file = ok(dir.create(&n(name)).await);
    ok(write_all(&file, 0, content).await);
    file
}

async fn content<D: Dir>(dir: &D, name: &str) -> Vec<u8> {
    let file = ok(dir.open(&n(name)).await);
    let mut buf = vec![0; 1 << 16];
    let count = ok(read_full(&file, 0, &mut buf).await);
    buf.truncate(count);
    buf
}

async fn sub<D: Dir>(dir: &D, name: &str) -> D {
    ok(dir.mkdir(&n(name)).await);
    ok(dir.open_dir(&p(name)).await)
}

async fn sorted_names<D: Dir>(dir: &D) -> Vec<Name> {
    let mut names = ok(dir.names().await);
    names.sort();
    names
}

const THEN: Timestamp = Timestamp {
    secs: 1_000_000_000,
    nanos: 123_456_789,
};

#[expect(missing_docs, reason = "the names say it")]
mod promises {
    use super::*;

    pub async fn a_file_that_was_written_reads_the_same<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let data: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        let file = make(&root, "a", &data).await;
        same(content(&root, "a").await, data.clone());
        ok(write_all(&file, 5000, b"new").await);
        let mut part = [0; 5];
        same(ok(read_full(&file, 4999, &mut part).await), 5);
        same(part.to_vec(), vec![data[4999], b'n', b'e', b'w', data[5003]]);
        same(ok(file.metadata().await).version.size, 10_000);
    }

    pub async fn what_is_skipped_is_a_hole_and_reads_as_zeros<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = ok(root.create(&n("a")).await);
        ok(write_all(&file, 100_000, b"x").await);
        let mut buf = vec![1; 4096];
        same(ok(read_full(&file, 50_000, &mut buf).await), 4096);
        assert!(buf.iter().all(|byte| *byte == 0));
        let data = ok(file.next_data(0).await).expect("there is data");
        assert!(data <= 100_000, "{data}");
        same(ok(file.next_data(100_000).await), Some(100_000));
        same(ok(file.next_data(100_001).await), None);
        ok(file.set_len(200_000).await);
        if data > 0 {
            same(ok(file.next_data(150_000).await), None);
        }
    }

    pub async fn a_cut_file_reads_zeros_when_extended_again<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", &[7; 6000]).await;
        ok(file.set_len(100).await);
        ok(file.set_len(6000).await);
        let read = content(&root, "a").await;
        assert!(read[..100].iter().all(|byte| *byte == 7) && read[100..].iter().all(|byte| *byte == 0));
    }

    pub async fn a_huge_sparse_file_costs_nothing<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = ok(root.create(&n("a")).await);
        ok(file.set_len(1 << 41).await);
        ok(write_all(&file, (1 << 40) + 1, b"middle").await);
        let mut buf = [0; 8];
        same(ok(read_full(&file, 1 << 40, &mut buf).await), 8);
        same(buf, *b"\0middle\0");
        same(ok(file.metadata().await).version.size, 1 << 41);
    }

    /// Where the file system can't, the bytes are as they were, or zeros.
    pub async fn a_punched_hole_reads_as_zeros<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", &[7; 50_000]).await;
        let is_punched = file.punch(20_000, 20_000).await.is_ok();
        let read = content(&root, "a").await;
        let (hole, data) = (&read[20_000..40_000], [&read[..20_000], &read[40_000..]].concat());
        assert!(data == [7; 30_000]);
        assert!(hole.iter().all(|byte| *byte == 0 || (*byte == 7 && !is_punched)));
        if is_punched {
            ok(file.punch(49_999, 100_000).await);
            same(ok(file.metadata().await).version.size, 50_000);
        }
    }

    pub async fn a_reflink_reads_the_same_until_either_is_written_to<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let (from, to) = (make(&root, "a", &[7; 50_001]).await, make(&root, "b", b"").await);
        let reader = ok(root.open(&n("a")).await);
        if let Err(error) = to.reflink(&reader, 50_001).await {
            let refusals = [Errno::OPNOTSUPP, Errno::XDEV, Errno::NOTTY];
            refused_with(Err::<(), _>(error), &refusals);
            assert!(content(&root, "b").await.is_empty());
            return;
        }
        assert!(content(&root, "b").await == [7; 50_001]);
        ok(write_all(&from, 10, b"from").await);
        ok(write_all(&to, 30_000, b"to").await);
        let (from, to) = (content(&root, "a").await, content(&root, "b").await);
        assert!(from[10..14] == *b"from" && from[30_000..30_002] == [7; 2]);
        assert!(to[10..14] == [7; 4] && to[30_000..30_002] == *b"to");
    }

    pub async fn reading_at_the_end_gives_nothing<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", b"abc").await;
        let mut buf = [0; 8];
        same(ok(file.read_at(3, &mut buf).await), 0);
        same(ok(file.read_at(1 << 40, &mut buf).await), 0);
        same(ok(file.read_at(0, &mut []).await), 0);
        same(ok(file.read_at(1, &mut buf).await), 2);
        same(ok(file.write_at(100, b"").await), 0);
        same(ok(file.metadata().await).version.size, 3);
    }

    pub async fn new_things_have_private_modes<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = ok(root.create(&n("file")).await);
        let metadata = ok(file.metadata().await);
        same(
            (metadata.kind, metadata.mode, metadata.links, metadata.version.size),
            (Kind::File, 0o600, 1, 0),
        );
        let dir = sub(&root, "dir").await;
        let metadata = ok(dir.metadata().await);
        same((metadata.kind, metadata.mode), (Kind::Dir, 0o700));
    }

    pub async fn create_refuses_any_name_that_is_taken<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "file", b"old").await;
        sub(&root, "dir").await;
        ok(root.symlink(&n("link"), b"nowhere").await);
        (bench.fifo)(&n("fifo"));
        for name in ["file", "dir", "link", "fifo"] {
            refused(root.create(&n(name)).await, Errno::EXIST);
            refused(root.mkdir(&n(name)).await, Errno::EXIST);
            refused(root.symlink(&n(name), b"x").await, Errno::EXIST);
        }
        same(content(&root, "file").await, b"old".to_vec());
        refused(root.stat(&n("nowhere")).await, Errno::NOENT);
    }

    pub async fn what_is_missing_is_enoent<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let none = n("none");
        refused(root.stat(&none).await, Errno::NOENT);
        refused(root.open(&none).await, Errno::NOENT);
        refused(root.open_write(&none).await, Errno::NOENT);
        refused(root.readlink(&none).await, Errno::NOENT);
        refused(root.unlink(&none).await, Errno::NOENT);
        refused(root.rmdir(&none).await, Errno::NOENT);
        refused(root.set_mtime(&none, THEN).await, Errno::NOENT);
        refused(root.link(&none, &root, &n("to")).await, Errno::NOENT);
        refused(root.open_dir(&p("none")).await, Errno::NOENT);
        for how in [Rename::Replace, Rename::NoReplace, Rename::Exchange] {
            refused(root.rename(&none, &root, &n("to"), how).await, Errno::NOENT);
        }
        refused(bench.fs.open_root(&bench.path.join("none")).await, Errno::NOENT);
    }

    pub async fn open_tells_what_is_not_a_regular_file<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "file", b"").await;
        sub(&root, "dir").await;
        ok(root.symlink(&n("link"), b"file").await);
        (bench.fifo)(&n("fifo"));
        for (name, errno) in [("link", Errno::LOOP), ("dir", Errno::ISDIR), ("fifo", Errno::INVAL)] {
            refused(root.open(&n(name)).await, errno);
            refused(root.open_write(&n(name)).await, errno);
        }
        same(ok(root.stat(&n("fifo")).await).kind, Kind::Special);
        refused(root.open_dir(&p("fifo")).await, Errno::NOTDIR);
    }

    pub async fn a_file_opened_for_reading_cannot_be_changed<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "a", b"abc").await;
        let file = ok(root.open(&n("a")).await);
        refused(file.write_at(0, b"x").await, Errno::BADF);
        refused_with(file.set_len(0).await, &[Errno::INVAL, Errno::BADF]);
        same(content(&root, "a").await, b"abc".to_vec());
    }

    pub async fn mode_and_mtime_are_kept<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", b"abc").await;
        for (mode, mtime) in [(0o644, THEN), (0o4711, Timestamp { secs: 5, nanos: 0 })] {
            ok(file.set_meta(mode, mtime).await);
            for metadata in [ok(file.metadata().await), ok(root.stat(&n("a")).await)] {
                same((metadata.mode, metadata.version.mtime), (mode, mtime));
            }
        }
        ok(root.set_mtime(&n("a"), THEN).await);
        let metadata = ok(file.metadata().await);
        same((metadata.mode, metadata.version.mtime), (0o4711, THEN));
    }

    pub async fn set_mtime_does_not_follow_a_link<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "file", b"").await;
        ok(root.symlink(&n("link"), b"file").await);
        let before = ok(root.stat(&n("file")).await);
        ok(root.set_mtime(&n("link"), THEN).await);
        same(ok(root.stat(&n("link")).await).version.mtime, THEN);
        same(ok(root.stat(&n("file")).await), before);
    }

    pub async fn times_and_mode_of_a_directory_are_set_last<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "dir").await;
        ok(dir.set_meta(0o751, THEN).await);
        let metadata = ok(root.stat(&n("dir")).await);
        same((metadata.mode, metadata.version.mtime), (0o751, THEN));
        make(&dir, "a", b"").await;
        assert_ne!(ok(dir.metadata().await).version.mtime, THEN);
        ok(dir.set_meta(0o751, THEN).await);
        ok(dir.unlink(&n("a")).await);
        assert_ne!(ok(dir.metadata().await).version.mtime, THEN);
    }

    pub async fn a_write_changes_mtime_and_ctime<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", b"abc").await;
        ok(file.set_meta(0o600, THEN).await);
        let before = ok(file.metadata().await).version;
        ok(write_all(&file, 0, b"x").await);
        let after = ok(file.metadata().await).version;
        assert!(after.mtime > before.mtime && after.ctime >= before.ctime);
    }

    pub async fn a_symlink_keeps_its_text<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let long = vec![b'x'; 4000];
        for (name, text) in [("a", &b"../../etc/\xff"[..]), ("b", &long), ("c", b"/")] {
            let made = root.symlink(&n(name), text).await;
            if text.len() > 1023 && made.is_err() {
                // XFS takes no longer ones.
                refused(made, Errno::NAMETOOLONG);
                continue;
            }
            ok(made);
            same(ok(root.readlink(&n(name)).await), text.to_vec());
            let metadata = ok(root.stat(&n(name)).await);
            same(
                (metadata.kind, metadata.version.size),
                (Kind::Symlink, text.len() as u64),
            );
        }
        make(&root, "file", b"").await;
        refused(root.readlink(&n("file")).await, Errno::INVAL);
    }

    pub async fn open_dir_follows_no_link<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "dir").await;
        sub(&dir, "below").await;
        make(&root, "file", b"").await;
        for text in ["dir", "..", "/"] {
            ok(root.symlink(&n("link"), text.as_bytes()).await);
            for path in ["link", "link/below"] {
                refused_with(root.open_dir(&p(path)).await, &[Errno::LOOP, Errno::NOTDIR]);
            }
            ok(root.unlink(&n("link")).await);
        }
        for path in ["file", "file/below"] {
            refused(root.open_dir(&p(path)).await, Errno::NOTDIR);
        }
        ok(root.open_dir(&p("dir/below")).await.map(drop));
    }

    pub async fn open_dir_of_the_root_path_is_itself<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let again = ok(root.open_dir(&RelPath::root()).await);
        same(
            ok(again.metadata().await).version.ino,
            ok(root.metadata().await).version.ino,
        );
    }

    pub async fn open_root_follows_links_and_refuses_files<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "dir").await;
        make(&dir, "file", b"").await;
        ok(root.symlink(&n("link"), b"dir").await);
        let through = ok(bench.fs.open_root(&bench.path.join("link")).await);
        same(ok(through.metadata().await), ok(dir.metadata().await));
        refused(bench.fs.open_root(&bench.path.join("link/file")).await, Errno::NOTDIR);
        ok(root.symlink(&n("circle"), b"circle").await);
        refused(bench.fs.open_root(&bench.path.join("circle")).await, Errno::LOOP);
    }

    pub async fn names_are_all_names<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        same(sorted_names(&root).await, vec![]);
        let mut names: Vec<Name> = (0..300).map(|i| n(&format!("name-{i}"))).collect();
        names.push(Name::new(&b"\xff\x01 "[..]).expect("a good name"));
        names.push(n(&"x".repeat(255)));
        for name in &names {
            ok(root.create(name).await.map(drop));
        }
        names.sort();
        same(sorted_names(&root).await, names);
    }

    pub async fn a_link_is_the_same_inode<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "dir").await;
        make(&root, "a", b"abc").await;
        ok(root.link(&n("a"), &dir, &n("b")).await);
        let (a, b) = (ok(root.stat(&n("a")).await), ok(dir.stat(&n("b")).await));
        same(a, b);
        same(a.links, 2);
        ok(root.unlink(&n("a")).await);
        same(content(&dir, "b").await, b"abc".to_vec());
        same(ok(dir.stat(&n("b")).await).links, 1);
        ok(root.symlink(&n("s"), b"x").await);
        ok(root.link(&n("s"), &root, &n("t")).await);
        same(ok(root.readlink(&n("t")).await), b"x".to_vec());
    }

    pub async fn link_refuses_directories_and_taken_names<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "a", b"").await;
        sub(&root, "dir").await;
        refused(root.link(&n("a"), &root, &n("a")).await, Errno::EXIST);
        refused(root.link(&n("a"), &root, &n("dir")).await, Errno::EXIST);
        refused(root.link(&n("dir"), &root, &n("b")).await, Errno::PERM);
    }

    pub async fn rename_replaces_a_file<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "dir").await;
        make(&root, "a", b"new").await;
        let old = make(&dir, "b", b"old").await;
        ok(root.rename(&n("a"), &dir, &n("b"), Rename::Replace).await);
        same(content(&dir, "b").await, b"new".to_vec());
        same(sorted_names(&root).await, vec![n("dir")]);
        same(ok(old.metadata().await).links, 0);
        ok(dir.rename(&n("b"), &root, &n("c"), Rename::Replace).await);
        same(content(&root, "c").await, b"new".to_vec());
    }

    pub async fn rename_noreplace_leaves_a_file_that_is_there<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "a", b"new").await;
        make(&root, "b", b"old").await;
        refused(
            root.rename(&n("a"), &root, &n("b"), Rename::NoReplace).await,
            Errno::EXIST,
        );
        refused(
            root.rename(&n("a"), &root, &n("a"), Rename::NoReplace).await,
            Errno::EXIST,
        );
        same(content(&root, "b").await, b"old".to_vec());
        ok(root.rename(&n("a"), &root, &n("c"), Rename::NoReplace).await);
        same(content(&root, "c").await, b"new".to_vec());
    }

    pub async fn rename_exchange_swaps<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "dir").await;
        make(&root, "a", b"one").await;
        make(&dir, "b", b"two").await;
        ok(root.rename(&n("a"), &dir, &n("b"), Rename::Exchange).await);
        same(content(&root, "a").await, b"two".to_vec());
        same(content(&dir, "b").await, b"one".to_vec());
        refused(
            root.rename(&n("a"), &root, &n("none"), Rename::Exchange).await,
            Errno::NOENT,
        );
        ok(root.symlink(&n("s"), b"x").await);
        ok(root.rename(&n("a"), &root, &n("s"), Rename::Exchange).await);
        same(content(&root, "s").await, b"two".to_vec());
        same(ok(root.readlink(&n("a")).await), b"x".to_vec());
    }

    pub async fn rename_of_two_links_of_one_inode_does_nothing<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "a", b"abc").await;
        ok(root.link(&n("a"), &root, &n("b")).await);
        let before = ok(root.stat(&n("a")).await);
        ok(root.rename(&n("a"), &root, &n("b"), Rename::Replace).await);
        same(sorted_names(&root).await, vec![n("a"), n("b")]);
        same(ok(root.stat(&n("a")).await), before);
    }

    pub async fn rename_between_kinds_is_refused<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "file", b"").await;
        sub(&root, "dir").await;
        let full = sub(&root, "full").await;
        make(&full, "x", b"").await;
        let replace = Rename::Replace;
        refused(root.rename(&n("file"), &root, &n("dir"), replace).await, Errno::ISDIR);
        refused(root.rename(&n("dir"), &root, &n("file"), replace).await, Errno::NOTDIR);
        // XFS says the second.
        refused_with(
            root.rename(&n("dir"), &root, &n("full"), replace).await,
            &[Errno::NOTEMPTY, Errno::EXIST],
        );
        ok(root.rename(&n("full"), &root, &n("dir"), replace).await);
        same(sorted_names(&root).await, vec![n("dir"), n("file")]);
        same(sorted_names(&full).await, vec![n("x")]);
    }

    pub async fn a_directory_does_not_move_into_itself<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "dir").await;
        let below = sub(&dir, "below").await;
        refused(
            root.rename(&n("dir"), &below, &n("x"), Rename::Replace).await,
            Errno::INVAL,
        );
        refused(
            root.rename(&n("dir"), &dir, &n("below"), Rename::Replace).await,
            Errno::INVAL,
        );
        refused(
            dir.rename(&n("below"), &root, &n("dir"), Rename::Replace).await,
            Errno::NOTEMPTY,
        );
        refused(
            dir.rename(&n("below"), &root, &n("dir"), Rename::Exchange).await,
            Errno::INVAL,
        );
    }

    pub async fn rename_keeps_the_inode_and_its_mtime<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", b"abc").await;
        ok(file.set_meta(0o640, THEN).await);
        let before = ok(file.metadata().await);
        ok(root.rename(&n("a"), &root, &n("b"), Rename::NoReplace).await);
        let after = ok(root.stat(&n("b")).await);
        assert!(after.version.same_but_ctime(&before.version));
        same((after.mode, after.links), (before.mode, before.links));
    }

    pub async fn a_failed_rename_changes_nothing<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "a", b"a").await;
        make(&root, "b", b"b").await;
        let before = (
            ok(root.stat(&n("a")).await),
            ok(root.stat(&n("b")).await),
            ok(root.metadata().await),
        );
        refused(
            root.rename(&n("a"), &root, &n("b"), Rename::NoReplace).await,
            Errno::EXIST,
        );
        let after = (
            ok(root.stat(&n("a")).await),
            ok(root.stat(&n("b")).await),
            ok(root.metadata().await),
        );
        same(after, before);
    }

    pub async fn unlink_removes_no_directory<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        sub(&root, "dir").await;
        refused(root.unlink(&n("dir")).await, Errno::ISDIR);
        ok(root.symlink(&n("link"), b"dir").await);
        (bench.fifo)(&n("fifo"));
        ok(root.unlink(&n("link")).await);
        ok(root.unlink(&n("fifo")).await);
        same(sorted_names(&root).await, vec![n("dir")]);
    }

    pub async fn rmdir_removes_only_empty_directories<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "dir").await;
        make(&dir, "a", b"").await;
        make(&root, "file", b"").await;
        ok(root.symlink(&n("link"), b"dir").await);
        refused(root.rmdir(&n("dir")).await, Errno::NOTEMPTY);
        refused(root.rmdir(&n("file")).await, Errno::NOTDIR);
        refused(root.rmdir(&n("link")).await, Errno::NOTDIR);
        ok(dir.unlink(&n("a")).await);
        ok(root.rmdir(&n("dir")).await);
        refused(root.stat(&n("dir")).await, Errno::NOENT);
    }

    pub async fn an_unlinked_file_stays_usable_while_open<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", b"abc").await;
        ok(root.unlink(&n("a")).await);
        ok(write_all(&file, 3, b"def").await);
        let mut buf = [0; 6];
        same(ok(read_full(&file, 0, &mut buf).await), 6);
        same(buf, *b"abcdef");
        same(ok(file.metadata().await).links, 0);
        ok(file.sync().await);
        make(&root, "a", b"other").await;
        same(ok(file.metadata().await).version.size, 6);
    }

    pub async fn nothing_is_made_in_a_removed_directory<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "dir").await;
        make(&root, "a", b"").await;
        ok(root.rmdir(&n("dir")).await);
        refused(dir.create(&n("x")).await, Errno::NOENT);
        refused(dir.mkdir(&n("x")).await, Errno::NOENT);
        refused(dir.symlink(&n("x"), b"x").await, Errno::NOENT);
        refused(root.rename(&n("a"), &dir, &n("x"), Rename::Replace).await, Errno::NOENT);
        refused(root.link(&n("a"), &dir, &n("x")).await, Errno::NOENT);
        same(content(&root, "a").await, b"".to_vec());
    }

    pub async fn a_locked_directory_refuses_another_handle<F: Fs>(bench: Bench<F>) {
        let (root, other) = (bench.root().await, bench.root().await);
        same(root.lock_holder().await, None);
        ok(root.try_lock(Lock::Exclusive).await);
        ok(root.try_lock(Lock::Exclusive).await);
        refused(other.try_lock(Lock::Exclusive).await, Errno::AGAIN);
        refused(other.try_lock(Lock::Shared).await, Errno::AGAIN);
        assert!(
            other
                .lock_holder()
                .await
                .is_none_or(|holder| holder.contains("process"))
        );
    }

    pub async fn shared_locks_go_together<F: Fs>(bench: Bench<F>) {
        let (root, other) = (bench.root().await, bench.root().await);
        ok(root.try_lock(Lock::Shared).await);
        ok(other.try_lock(Lock::Shared).await);
        refused(bench.root().await.try_lock(Lock::Exclusive).await, Errno::AGAIN);
        drop(root);
        ok(other.try_lock(Lock::Exclusive).await);
    }

    pub async fn a_lock_ends_with_the_last_clone<F: Fs>(bench: Bench<F>) {
        let (root, other) = (bench.root().await, bench.root().await);
        ok(root.try_lock(Lock::Exclusive).await);
        let clone = root.clone();
        drop(root);
        refused(other.try_lock(Lock::Exclusive).await, Errno::AGAIN);
        drop(clone);
        ok(other.try_lock(Lock::Exclusive).await);
    }

    pub async fn a_file_lock_ends_with_the_last_clone<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", b"").await;
        let other = ok(root.open(&n("a")).await);
        ok(file.try_lock(Lock::Exclusive).await);
        ok(file.unlock().await);
        ok(other.try_lock(Lock::Exclusive).await);
        refused(file.try_lock(Lock::Shared).await, Errno::AGAIN);
        ok(other.unlock().await);
        ok(file.try_lock(Lock::Exclusive).await);
        let clone = file.clone();
        drop(file);
        refused(other.try_lock(Lock::Exclusive).await, Errno::AGAIN);
        drop(clone);
        ok(other.try_lock(Lock::Exclusive).await);
    }

    pub async fn a_lease_is_refused_while_a_writer_is_open<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let writer = make(&root, "a", b"abc").await;
        let file = ok(root.open(&n("a")).await);
        same(ok(file.lease_held().await), false);
        refused(file.lease().await, Errno::AGAIN);
        drop(writer);
        ok(file.lease().await);
        same(ok(file.lease_held().await), true);
        let reader = ok(root.open(&n("a")).await);
        ok(reader.lease().await);
        same(ok(file.lease_held().await), true);
    }

    pub async fn a_lease_ends_when_somebody_opens_for_writing<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "a", b"abc").await;
        let file = ok(root.open(&n("a")).await);
        ok(file.lease().await);
        let writer = ok(root.open_write(&n("a")).await);
        same(ok(file.lease_held().await), false);
        refused(file.lease().await, Errno::AGAIN);
        drop(writer);
        ok(file.lease().await);
        same(ok(file.lease_held().await), true);
        ok(root.rename(&n("a"), &root, &n("b"), Rename::NoReplace).await);
        ok(root.unlink(&n("b")).await);
        same(ok(file.lease_held().await), true);
    }

    pub async fn the_lease_of_a_writer_ends_when_anybody_opens<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", b"abc").await;
        let reader = ok(root.open(&n("a")).await);
        refused(file.lease().await, Errno::AGAIN);
        drop(reader);
        ok(file.lease().await);
        ok(write_all(&file, 0, b"more than that").await);
        ok(file.set_len(5).await);
        ok(file.set_meta(0o640, Timestamp { secs: 5, nanos: 0 }).await);
        ok(file.drop_cache().await);
        ok(file.sync().await);
        same(ok(root.stat(&n("a")).await).version.size, 5);
        ok(root.rename(&n("a"), &root, &n("b"), Rename::NoReplace).await);
        same(ok(file.lease_held().await), true);
        let reader = ok(root.open(&n("b")).await);
        same(ok(file.lease_held().await), false);
        drop(reader);
        ok(file.lease().await);
        let writer = ok(root.open_write(&n("b")).await);
        same(ok(file.lease_held().await), false);
        refused(file.lease().await, Errno::AGAIN);
        refused(writer.lease().await, Errno::AGAIN);
        drop(writer);
        ok(file.lease().await);
        ok(root.unlink(&n("b")).await);
        same(ok(file.lease_held().await), true);
    }

    pub async fn reading_and_a_lease_change_no_times<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        make(&root, "a", b"abc").await;
        let before = ok(root.stat(&n("a")).await);
        let file = ok(root.open(&n("a")).await);
        ok(file.lease().await);
        same(content(&root, "a").await, b"abc".to_vec());
        drop(file);
        same(ok(root.stat(&n("a")).await), before);
    }

    pub async fn syncs_succeed_and_drop_cache_loses_nothing<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", &[5; 9000]).await;
        ok(file.drop_cache().await);
        ok(file.sync().await);
        ok(root.sync().await);
        ok(root.sync_fs().await);
        ok(write_all(&file, 10, b"dirty").await);
        ok(file.drop_cache().await);
        let read = content(&root, "a").await;
        same((&read[10..15], read[15], read.len()), (&b"dirty"[..], 5, 9000));
        let reader = ok(root.open(&n("a")).await);
        ok(reader.sync().await);
    }

    pub async fn places_tell_inside_from_outside<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let (a, b) = (sub(&root, "a").await, sub(&root, "ab").await);
        let below = sub(&a, "below").await;
        let inside = async |dir: &F::Dir, of: &F::Dir| {
            let of = ok(of.places().await).remove(0);
            ok(dir.places().await).iter().any(|place| place.is_within(&of))
        };
        assert!(inside(&below, &a).await && inside(&below, &root).await && inside(&a, &a).await);
        assert!(!inside(&b, &a).await && !inside(&a, &below).await && !inside(&root, &b).await);
        same(ok(a.places().await)[0].device, ok(root.places().await)[0].device);
    }

    pub async fn uncarried_tells_hard_links_and_special_bits<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let file = make(&root, "a", b"").await;
        let plain = ok(file.uncarried().await);
        assert!(!plain.hard_links && !plain.special_bits && !plain.xattrs && !plain.acl);
        ok(root.link(&n("a"), &root, &n("b")).await);
        ok(file.set_meta(0o4755, THEN).await);
        assert!(!ok(file.uncarried().await).any(), "told as it was opened");
        let uncarried = ok(ok(root.open(&n("a")).await).uncarried().await);
        assert!(uncarried.hard_links && uncarried.special_bits);
    }

    pub async fn uncarried_tells_set_id_bits_of_a_directory<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = sub(&root, "a").await;
        ok(dir.set_meta(0o1777, THEN).await);
        assert!(!ok(dir.uncarried().await).any());
        ok(dir.set_meta(0o2755, THEN).await);
        assert!(ok(dir.uncarried().await).special_bits, "told as it is now");
    }

    pub async fn an_open_file_tells_what_it_was_when_it_was_opened<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let made = ok(root.create(&n("a")).await);
        same(*made.opened(), ok(root.stat(&n("a")).await));
        ok(write_all(&made, 0, b"some").await);
        ok(made.set_meta(0o640, THEN).await);
        let found = ok(root.stat(&n("a")).await);
        let opened = [ok(root.open(&n("a")).await), ok(root.open_write(&n("a")).await)];
        ok(made.set_meta(0o600, THEN).await);
        for file in opened {
            same(*file.opened(), found);
        }
    }

    pub async fn an_offloaded_job_gives_its_value_back<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = root.clone();
        let value = bench
            .fs
            .offload(async move { dir.mkdir(&n("made")).await.map(|()| 7) })
            .await;
        same(ok(value.expect("it ended")), 7);
        same(ok(root.stat(&n("made")).await).kind, Kind::Dir);
    }

    pub async fn a_panicking_job_is_lost<F: Fs>(bench: Bench<F>) {
        let job = async { std::panic::resume_unwind(Box::new("on purpose")) };
        let lost: Result<(), _> = bench.fs.offload(job).await;
        assert!(lost.is_err());
    }

    pub async fn a_job_runs_on_when_nobody_waits<F: Fs>(bench: Bench<F>) {
        let root = bench.root().await;
        let dir = root.clone();
        let (done, ended) = futures::channel::oneshot::channel();
        let mut job = Box::pin(bench.fs.offload(async move {
            let file = make(&dir, "a", b"").await;
            for i in 0..20 {
                ok(write_all(&file, i, b"x").await);
            }
            done.send(()).expect("the test waits");
        }));
        let polled = futures::poll!(&mut job);
        drop((job, polled));
        ended.await.expect("the job ran to its end");
        same(content(&root, "a").await, vec![b'x'; 20]);
    }
}

pub use promises::*;
