//! What only the real file system can show: links and swaps, special files, leases, locks, mounts, times.

use std::{
    collections::BTreeSet,
    ffi::{CString, OsStr},
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use futures::FutureExt;
use rustix::{
    fs::{XattrFlags, mkfifoat, setxattr},
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use tempfile::TempDir;

use super::*;
use crate::{
    fs::{Dir, File, Lock, Place, Rename, Sight},
    model::{Name, RelPath, Uncarried},
};

/// A writer must wait for no longer than this for a lease to be given up.
const GIVEN_UP_WITHIN: Duration = Duration::from_millis(100);

/// Set for a test that runs itself again in other circumstances.
const INSIDE: &str = "REALIZE_TEST_INSIDE";

/// The value of a future that is ready at its first poll, as all of them promise to be.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("ready at the first poll")
}

fn name(bytes: impl AsRef<[u8]>) -> Name {
    Name::new(bytes.as_ref()).unwrap()
}

fn path(bytes: &str) -> RelPath {
    RelPath::new(bytes).unwrap()
}

fn root(path: &Path) -> OsDir {
    now(OsFs::new().open_root(path)).unwrap()
}

fn temp() -> (TempDir, OsDir) {
    let temp = TempDir::new().unwrap();
    let dir = root(temp.path());
    (temp, dir)
}

fn errno<T>(result: io::Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => Errno::from_io_error(&error).unwrap_or_else(|| panic!("no number: {error}")),
    }
}

/// Opens as another program would: blocks while a lease is in the way.
fn open_to_write(path: &Path) -> fs::File {
    fs::File::options().append(true).open(path).unwrap()
}

/// Runs the named test of this file again: `sh -c script`, where `$@` is the test's command.
fn run_again(test: &str, wrap: &[&str], script: &str, inside: &OsStr) -> bool {
    let status = Command::new(wrap[0])
        .args(&wrap[1..])
        .args(["sh", "-ec", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("fs::os::tests::{test}")])
        .env(INSIDE, inside)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    status.success()
}

#[test]
fn links_are_refused_at_every_position_of_a_path() {
    let (temp, _) = temp();
    fs::create_dir_all(temp.path().join("root/a/b/c")).unwrap();
    fs::create_dir_all(temp.path().join("outside/b/c")).unwrap();
    for fs in [OsFs::new(), OsFs::without_openat2()] {
        let root = now(fs.open_root(&temp.path().join("root"))).unwrap();
        assert!(now(root.open_dir(&path("a/b/c"))).is_ok());
        for (link, text) in [
            ("first", "../outside"),
            ("a/middle", "../../outside/b"),
            ("a/b/last", "../../../outside/b/c"),
            ("absolute", "/"),
            ("inside", "a"),
            ("a/up", ".."),
            ("itself", "itself"),
            ("magic", "/proc/self/cwd"),
        ] {
            let link_path = temp.path().join("root").join(link);
            symlink(text, &link_path).unwrap();
            for tail in ["", "/b", "/b/c"] {
                let result = now(root.open_dir(&path(&format!("{link}{tail}"))));
                let errno = errno(result);
                assert!(matches!(errno, Errno::LOOP | Errno::NOTDIR), "{link}{tail}: {errno}");
            }
            fs::remove_file(link_path).unwrap();
        }
        assert_eq!(errno(now(root.open_dir(&path("a/none")))), Errno::NOENT);
    }
}

#[test]
fn the_fallback_opens_what_openat2_opens() {
    let (temp, _) = temp();
    fs::create_dir_all(temp.path().join("a/b/c")).unwrap();
    fs::write(temp.path().join("a/file"), "").unwrap();
    for fs in [OsFs::new(), OsFs::without_openat2()] {
        let root = now(fs.open_root(temp.path())).unwrap();
        for below in ["", "a", "a/b", "a/b/c"] {
            let expected = fs::metadata(temp.path().join(below)).unwrap().ino();
            let dir = now(root.open_dir(&path(below))).unwrap();
            assert_eq!(now(dir.metadata()).unwrap().version.ino, expected);
        }
        assert_eq!(errno(now(root.open_dir(&path("a/file")))), Errno::NOTDIR);
        assert_eq!(errno(now(root.open_dir(&path("a/file/b")))), Errno::NOTDIR);
    }
    let walking = now(OsFs::without_openat2().open_root(temp.path())).unwrap();
    let below = now(walking.open_dir(&path("a"))).unwrap();
    assert!(
        below.walks.load(Ordering::Relaxed),
        "directories below do not try again"
    );
}

#[test]
fn a_swapped_in_link_never_leads_outside() {
    let (temp, _) = temp();
    let (inside, outside) = (temp.path().join("root"), temp.path().join("outside"));
    fs::create_dir_all(inside.join("d/x")).unwrap();
    fs::create_dir_all(outside.join("x")).unwrap();
    fs::write(inside.join("d/f"), "inside").unwrap();
    fs::write(outside.join("f"), "outside").unwrap();
    fs::write(outside.join("secret"), "outside").unwrap();
    symlink(&outside, inside.join("link-d")).unwrap();
    symlink(outside.join("secret"), inside.join("link-f")).unwrap();
    let secret = fs::metadata(outside.join("secret")).unwrap().ino();
    let outside_x = fs::metadata(outside.join("x")).unwrap().ino();

    let swapper = root(&inside);
    let d = now(swapper.open_dir(&path("d"))).unwrap();
    let swap = move || {
        now(swapper.rename(&name("d"), &swapper, &name("link-d"), Rename::Exchange)).unwrap();
        now(swapper.rename(&name("link-f"), &d, &name("f"), Rename::Exchange)).unwrap();
    };
    for fs in [OsFs::new(), OsFs::without_openat2()] {
        let root = now(fs.open_root(&inside)).unwrap();
        let (mut opened, mut refused) = (0, 0);
        while_swapping(swap.clone(), || {
            match now(root.open_dir(&path("d/x"))) {
                Ok(x) => assert_ne!(now(x.metadata()).unwrap().version.ino, outside_x),
                Err(_) => refused += 1,
            }
            if let Ok(d) = now(root.open_dir(&path("d"))) {
                for file in [now(d.open(&name("f"))), now(d.open_write(&name("f")))] {
                    match file {
                        Ok(file) => {
                            assert_ne!(now(file.metadata()).unwrap().version.ino, secret);
                            opened += 1;
                        }
                        Err(error) => assert_eq!(errno::<()>(Err(error)), Errno::LOOP),
                    }
                }
            }
            opened >= 500 && refused >= 500
        });
    }
}

#[test]
fn a_swapped_in_fifo_is_neither_opened_nor_waited_for() {
    let (temp, dir) = temp();
    fs::write(temp.path().join("file"), "").unwrap();
    mkfifoat(CWD, temp.path().join("fifo"), mode_bits(0o600)).unwrap();
    let swapper = dir.clone();
    let swap = move || now(swapper.rename(&name("file"), &swapper, &name("fifo"), Rename::Exchange)).unwrap();
    let (mut opened, mut refused) = (0, 0);
    while_swapping(swap, move || {
        for file in [now(dir.open(&name("file"))), now(dir.open_write(&name("file")))] {
            match file {
                Ok(file) => {
                    assert_eq!(now(file.metadata()).unwrap().kind, Kind::File);
                    opened += 1;
                }
                Err(error) => {
                    assert_eq!(errno::<()>(Err(error)), Errno::INVAL);
                    refused += 1;
                }
            }
        }
        opened >= 20_000 && refused >= 20_000
    });
}

/// Calls `is_enough` until it says so, while another thread calls `swap` all the time. A check that blocks is
/// told from one that is slow after a minute.
fn while_swapping(swap: impl Fn() + Sync, mut is_enough: impl FnMut() -> bool + Send) {
    let (done, checks) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                swap();
            }
        });
        let checker = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) && !is_enough() {
                checks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while !checker.is_finished() {
            if Instant::now() > deadline {
                // A thread that hangs can't be joined.
                eprintln!("no end after {} checks", checks.load(Ordering::Relaxed));
                std::process::abort();
            }
            thread::sleep(Duration::from_millis(5));
        }
        checker.join().unwrap();
    });
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn only_regular_files_are_opened_and_a_fifo_does_not_block() {
    let (temp, dir) = temp();
    fs::create_dir(temp.path().join("dir")).unwrap();
    symlink("file", temp.path().join("link")).unwrap();
    fs::write(temp.path().join("file"), "text").unwrap();
    mkfifoat(CWD, temp.path().join("fifo"), mode_bits(0o600)).unwrap();
    let _socket = UnixListener::bind(temp.path().join("socket")).unwrap();
    for (entry, expected) in [
        ("dir", Errno::ISDIR),
        ("link", Errno::LOOP),
        ("fifo", Errno::INVAL),
        ("socket", Errno::INVAL),
        ("none", Errno::NOENT),
    ] {
        assert_eq!(errno(now(dir.open(&name(entry)))), expected, "{entry}");
        assert_eq!(errno(now(dir.open_write(&name(entry)))), expected, "{entry}");
    }
    let devices = root(Path::new("/dev"));
    assert_eq!(errno(now(devices.open(&name("null")))), Errno::INVAL);

    let file = now(dir.open(&name("file"))).unwrap();
    let mut buf = [0; 8];
    assert_eq!(now(file.read_at(1, &mut buf)).unwrap(), 3);
    assert_eq!(&buf[..3], b"ext");
    assert_eq!(errno(now(file.write_at(0, b"x"))), Errno::BADF);
}

#[test]
fn new_files_and_directories_are_private_whatever_the_umask() {
    const TEST: &str = "new_files_and_directories_are_private_whatever_the_umask";
    let Some(inside) = std::env::var_os(INSIDE) else {
        for umask in ["000", "022", "777"] {
            let temp = TempDir::new().unwrap();
            let script = format!("umask {umask}; exec \"$@\"");
            assert!(run_again(TEST, &["env"], &script, temp.path().as_os_str()), "{umask}");
        }
        return;
    };
    let dir = root(Path::new(&inside));
    let file = now(dir.create(&name("file"))).unwrap();
    now(dir.mkdir(&name("dir"))).unwrap();
    assert_eq!(now(file.metadata()).unwrap().mode, 0o600);
    assert_eq!(now(dir.stat(&name("dir"))).unwrap().mode, 0o700);
    assert_eq!(errno(now(dir.create(&name("file")))), Errno::EXIST);
    assert_eq!(errno(now(dir.mkdir(&name("dir")))), Errno::EXIST);
}

#[test]
fn times_before_1970_and_after_2100_are_kept() {
    for parent in [std::env::temp_dir().as_path(), Path::new("/dev/shm")] {
        let temp = TempDir::new_in(parent).unwrap();
        let dir = root(temp.path());
        let file = now(dir.create(&name("file"))).unwrap();
        now(dir.mkdir(&name("dir"))).unwrap();
        now(dir.symlink(&name("link"), b"file")).unwrap();
        let inner = now(dir.open_dir(&path("dir"))).unwrap();
        for (secs, nanos) in [
            (-2_000_000_000, 999_999_999),
            (-1, 1),
            (0, 0),
            (5_000_000_000, 123_456_789),
        ] {
            let mtime = Timestamp { secs, nanos };
            now(dir.set_mtime(&name("link"), mtime)).unwrap();
            now(file.set_meta(0o4640, mtime)).unwrap();
            now(inner.set_meta(0o100_755, mtime)).unwrap();
            for (entry, mode) in [("file", 0o4640), ("dir", 0o755), ("link", 0o777)] {
                let metadata = now(dir.stat(&name(entry))).unwrap();
                assert_eq!(metadata.version.mtime, mtime, "{entry} in {parent:?}");
                assert_eq!(metadata.mode, mode, "{entry} in {parent:?}");
                let atime = fs::symlink_metadata(temp.path().join(entry)).unwrap().atime();
                assert_eq!(atime, secs, "{entry} in {parent:?}");
            }
        }
        assert_eq!(now(dir.metadata()).unwrap().kind, Kind::Dir);
    }
}

#[test]
fn nanoseconds_that_mean_something_else_to_the_kernel_are_refused() {
    let (_temp, dir) = temp();
    let file = now(dir.create(&name("file"))).unwrap();
    // UTIME_NOW, UTIME_OMIT, and simply too many.
    for nanos in [0x3fff_ffff, 0x3fff_fffe, 1_000_000_000] {
        let mtime = Timestamp { secs: 0, nanos };
        assert_eq!(errno(now(dir.set_mtime(&name("file"), mtime))), Errno::INVAL);
        assert_eq!(errno(now(file.set_meta(0o600, mtime))), Errno::INVAL);
        assert_eq!(errno(now(dir.set_meta(0o700, mtime))), Errno::INVAL);
    }
}

#[test]
fn all_names_are_listed_at_every_call() {
    let (temp, dir) = temp();
    let expected: BTreeSet<_> = (0..2000)
        .map(|number| name(format!("{number:0200}")))
        .chain([name(b"\xff\n\x01"), name([b'x'; 255])])
        .inspect(|name| fs::write(temp.path().join(OsStr::from_bytes(name.as_bytes())), "").unwrap())
        .collect();
    for _ in 0..2 {
        let names = now(dir.names()).unwrap();
        assert_eq!(names.len(), expected.len());
        assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
fn holes_are_passed_over() {
    let (_temp, dir) = temp();
    let file = now(dir.create(&name("file"))).unwrap();
    now(file.write_at(1 << 20, b"data")).unwrap();
    now(file.set_len(3 << 20)).unwrap();
    now(file.sync()).unwrap();
    assert_eq!(now(file.next_data(0)).unwrap(), Some(1 << 20));
    assert_eq!(now(file.next_data((1 << 20) + 2)).unwrap(), Some((1 << 20) + 2));
    assert_eq!(now(file.next_data(2 << 20)).unwrap(), None);
    for beyond in [3 << 20, 1 << 40, u64::MAX] {
        assert_eq!(now(file.next_data(beyond)).unwrap(), None, "{beyond}");
    }
    let mut buf = [1; 4];
    assert_eq!(now(file.read_at((1 << 20) - 2, &mut buf)).unwrap(), 4);
    assert_eq!(&buf, b"\0\0da", "the search moves no read");
    now(file.drop_cache()).unwrap();
    now(dir.sync()).unwrap();
    now(dir.sync_fs()).unwrap();
}

#[test]
fn renames_replace_refuse_or_swap() {
    let (temp, dir) = temp();
    let write = |entry: &str| fs::write(temp.path().join(entry), entry).unwrap();
    let read = |entry: &str| fs::read_to_string(temp.path().join(entry)).unwrap();
    write("a");
    write("b");
    let rename = |how| now(dir.rename(&name("a"), &dir, &name("b"), how));
    assert_eq!(errno(rename(Rename::NoReplace)), Errno::EXIST);
    rename(Rename::Exchange).unwrap();
    assert_eq!((read("a"), read("b")), ("b".into(), "a".into()));
    rename(Rename::Replace).unwrap();
    assert_eq!(read("b"), "b");
    assert_eq!(errno(rename(Rename::NoReplace)), Errno::NOENT);
    write("a");
    now(dir.unlink(&name("b"))).unwrap();
    assert_eq!(errno(rename(Rename::Exchange)), Errno::NOENT);
    rename(Rename::NoReplace).unwrap();
    assert_eq!(read("b"), "a");

    now(dir.link(&name("b"), &dir, &name("c"))).unwrap();
    assert_eq!(now(dir.stat(&name("c"))).unwrap().links, 2);
    assert_eq!(errno(now(dir.link(&name("b"), &dir, &name("c")))), Errno::EXIST);
    now(dir.mkdir(&name("d"))).unwrap();
    write("d/x");
    assert_eq!(errno(now(dir.rmdir(&name("d")))), Errno::NOTEMPTY);
    assert_eq!(errno(now(dir.rmdir(&name("b")))), Errno::NOTDIR);
    assert_eq!(errno(now(dir.unlink(&name("d")))), Errno::ISDIR);
}

#[test]
fn links_are_made_read_and_removed_but_not_followed() {
    let (temp, dir) = temp();
    fs::write(temp.path().join("file"), "text").unwrap();
    let text = [b'x'; 4095];
    now(dir.symlink(&name("long"), &text)).unwrap();
    now(dir.symlink(&name("link"), b"file")).unwrap();
    assert_eq!(now(dir.readlink(&name("long"))).unwrap(), text);
    assert_eq!(errno(now(dir.readlink(&name("file")))), Errno::INVAL);
    let metadata = now(dir.stat(&name("link"))).unwrap();
    assert_eq!((metadata.kind, metadata.version.size), (Kind::Symlink, 4));
    now(dir.link(&name("link"), &dir, &name("link2"))).unwrap();
    assert_eq!(now(dir.readlink(&name("link2"))).unwrap(), b"file");
    now(dir.unlink(&name("link"))).unwrap();
    assert_eq!(fs::read(temp.path().join("file")).unwrap(), b"text");
}

#[test]
fn locks_exclude_other_handles_and_end_with_the_last_clone() {
    let (temp, first) = temp();
    let second = root(temp.path());
    now(first.try_lock(Lock::Shared)).unwrap();
    now(second.try_lock(Lock::Shared)).unwrap();
    assert_eq!(errno(now(second.try_lock(Lock::Exclusive))), Errno::AGAIN);
    drop(second);
    let second = now(first.open_dir(&RelPath::root())).unwrap();
    now(first.try_lock(Lock::Exclusive)).unwrap();
    let clone = first.clone();
    drop(first);
    assert_eq!(errno(now(second.try_lock(Lock::Shared))), Errno::AGAIN);
    let holder = now(second.lock_holder()).unwrap();
    let prefix = format!("process {} (", std::process::id());
    assert!(holder.starts_with(&prefix) && holder.ends_with(')'), "{holder}");
    drop(clone);
    // A program that another test starts just now has all that is open until it is executed.
    let begin = Instant::now();
    while now(second.lock_holder()).is_some() && begin.elapsed() < Duration::from_secs(5) {
        thread::yield_now();
    }
    assert_eq!(now(second.lock_holder()), None);
    now(second.try_lock(Lock::Exclusive)).unwrap();

    let file = now(second.create(&name("file"))).unwrap();
    let other = now(second.open(&name("file"))).unwrap();
    now(file.try_lock(Lock::Exclusive)).unwrap();
    assert_eq!(errno(now(other.try_lock(Lock::Exclusive))), Errno::AGAIN);
    drop(file);
    now(other.try_lock(Lock::Exclusive)).unwrap();
}

#[test]
fn a_lease_is_refused_while_the_file_is_open_for_writing() {
    let (temp, dir) = temp();
    let writer = fs::File::create(temp.path().join("file")).unwrap();
    let file = now(dir.open(&name("file"))).unwrap();
    assert_eq!(errno(now(file.lease())), Errno::AGAIN);
    assert!(!now(file.lease_held()).unwrap());
    drop(writer);
    take_lease(&file);
    assert!(now(file.lease_held()).unwrap());
}

#[test]
fn a_lease_is_refused_while_the_file_is_mapped_for_writing() {
    let (temp, dir) = temp();
    fs::write(temp.path().join("file"), [0; 4096]).unwrap();
    let writer = fs::File::options()
        .read(true)
        .write(true)
        .open(temp.path().join("file"));
    // SAFETY: a new mapping at no particular address, never dereferenced.
    let map = unsafe {
        let (read_write, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        mmap(
            std::ptr::null_mut(),
            4096,
            read_write,
            shared,
            writer.as_ref().unwrap(),
            0,
        )
        .unwrap()
    };
    drop(writer);
    let file = now(dir.open(&name("file"))).unwrap();
    assert_eq!(errno(now(file.lease())), Errno::AGAIN);
    // SAFETY: exactly the mapping made above.
    unsafe { munmap(map, 4096).unwrap() };
    take_lease(&file);
}

#[test]
fn a_lease_is_given_up_at_once_when_a_writer_comes() {
    let (temp, dir) = temp();
    for how in ["open", "truncate", "our own open"] {
        let file_path = temp.path().join("file");
        fs::write(&file_path, "text").unwrap();
        let file = now(dir.open(&name("file"))).unwrap();
        take_lease(&file);
        assert!(now(file.lease_held()).unwrap());
        let start = Instant::now();
        match how {
            "open" => drop(open_to_write(&file_path)),
            "truncate" => {
                let path = CString::new(file_path.as_os_str().as_bytes()).unwrap();
                // SAFETY: a path with its NUL.
                assert_eq!(unsafe { libc::truncate(path.as_ptr(), 1) }, 0);
            }
            _ => drop(now(dir.open_write(&name("file"))).unwrap()),
        }
        let waited = start.elapsed();
        assert!(waited < GIVEN_UP_WITHIN, "{how}: {waited:?}");
        assert!(!now(file.lease_held()).unwrap(), "{how}");
    }
}

#[test]
fn a_lease_outlives_the_thread_that_took_it() {
    let (temp, dir) = temp();
    fs::write(temp.path().join("file"), "text").unwrap();
    let file = thread::spawn(move || {
        let file = now(dir.open(&name("file"))).unwrap();
        take_lease(&file);
        file
    });
    let file = file.join().unwrap();
    assert!(now(file.lease_held()).unwrap());
    let start = Instant::now();
    drop(open_to_write(&temp.path().join("file")));
    assert!(start.elapsed() < GIVEN_UP_WITHIN);
    assert!(!now(file.lease_held()).unwrap());
}

/// Takes a lease that nothing stands against. A test beside this one may just be starting a program, which has our
/// descriptors, those for writing too, until it runs.
fn take_lease(file: &OsFile) {
    const TRIES: usize = 100_000;
    let taken = (0..TRIES).find_map(|_| match now(file.lease()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            std::thread::yield_now();
            None
        }
        taken => Some(taken),
    });
    taken.expect("no program takes that long to start").unwrap();
}

#[test]
fn a_blocked_signal_keeps_no_writer_waiting() {
    const TEST: &str = "a_blocked_signal_keeps_no_writer_waiting";
    if std::env::var_os(INSIDE).is_none() {
        let again = run_again(TEST, &["env", "--block-signal=URG"], "exec \"$@\"", OsStr::new("1"));
        assert!(again);
        return;
    }
    let (temp, dir) = temp();
    fs::write(temp.path().join("file"), "text").unwrap();
    let file = now(dir.open(&name("file"))).unwrap();
    take_lease(&file);
    let start = Instant::now();
    drop(open_to_write(&temp.path().join("file")));
    assert!(start.elapsed() < GIVEN_UP_WITHIN);
}

#[test]
fn two_thousand_leases_are_told_apart() {
    raise_open_files();
    let (temp, dir) = temp();
    let files: Vec<_> = (0..2000)
        .map(|number| {
            let name = name(number.to_string());
            drop(now(dir.create(&name)).unwrap());
            let file = now(dir.open(&name)).unwrap();
            take_lease(&file);
            file
        })
        .collect();
    let start = Instant::now();
    for number in (0..2000).step_by(100) {
        let path = temp.path().join(number.to_string());
        drop(open_to_write(&path));
    }
    let waited = start.elapsed() / 20;
    assert!(waited < GIVEN_UP_WITHIN, "{waited:?} each");
    for (number, file) in files.iter().enumerate() {
        assert_eq!(now(file.lease_held()).unwrap(), number % 100 != 0, "{number}");
    }
}

#[test]
fn closing_ends_a_lease_and_its_watch() {
    let (temp, dir) = temp();
    fs::write(temp.path().join("file"), "text").unwrap();
    let file = now(dir.open(&name("file"))).unwrap();
    take_lease(&file);
    let clone = file.clone();
    drop(file);
    assert!(now(clone.lease_held()).unwrap(), "the last clone holds it");
    drop(clone);
    // Would be EAGAIN, with O_NONBLOCK, under a lease.
    let writer = rustix::fs::open(
        temp.path().join("file"),
        OFlags::WRONLY | OFlags::NONBLOCK,
        Mode::empty(),
    );
    // The next file may have the same descriptor number; it has no lease and takes its own.
    let file = now(dir.open(&name("file"))).unwrap();
    assert!(!now(file.lease_held()).unwrap());
    assert_eq!(errno(now(file.lease())), Errno::AGAIN);
    drop(writer.unwrap());
    take_lease(&file);
    assert!(now(file.lease_held()).unwrap());
}

#[test]
fn what_a_move_does_not_carry_is_found() {
    let (temp, dir) = temp();
    let file_path = temp.path().join("file");
    fs::write(&file_path, "text").unwrap();
    let file = now(dir.open(&name("file"))).unwrap();
    assert!(!now(file.uncarried()).unwrap().any());
    setxattr(&file_path, "user.note", b"x", XattrFlags::empty()).unwrap();
    fs::hard_link(&file_path, temp.path().join("other")).unwrap();
    fs::set_permissions(&file_path, fs::Permissions::from_mode(0o4700)).unwrap();
    // A list with an entry for user 1: version 2, then tag, permissions and number of each entry.
    let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &4u16.to_le_bytes(), &id.to_le_bytes()].concat();
    let entries = [(1, !0), (2, 1), (4, !0), (0x10, !0), (0x20, !0)].map(|(tag, id)| entry(tag, id));
    let acl = [&2u32.to_le_bytes()[..], &entries.concat()].concat();
    setxattr(&file_path, "system.posix_acl_access", &acl, XattrFlags::empty()).unwrap();
    let expected = Uncarried {
        hard_links: true,
        xattrs: true,
        acl: true,
        special_bits: true,
        owner: false,
    };
    let file = now(dir.open(&name("file"))).unwrap();
    assert_eq!(now(file.uncarried()).unwrap(), expected);
}

#[test]
fn what_a_move_does_not_carry_of_a_directory_is_found() {
    let (temp, dir) = temp();
    let path = temp.path().join("sub");
    fs::create_dir(&path).unwrap();
    let sub = || now(dir.open_dir(&name("sub").into())).unwrap();
    assert!(!now(sub().uncarried()).unwrap().any());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(!now(sub().uncarried()).unwrap().any(), "the sticky bit is carried");
    setxattr(&path, "user.note", b"x", XattrFlags::empty()).unwrap();
    let xattrs = Uncarried {
        xattrs: true,
        ..Uncarried::default()
    };
    assert_eq!(now(sub().uncarried()).unwrap(), xattrs);
}

#[test]
fn places_are_the_same_through_links_and_nested_for_nested_directories() {
    let (temp, dir) = temp();
    fs::create_dir_all(temp.path().join("a/b")).unwrap();
    fs::create_dir(temp.path().join("a b (deleted)")).unwrap();
    symlink("a", temp.path().join("link")).unwrap();
    let places = |dir: &OsDir| now(dir.places()).unwrap();
    let (a, b) = (root(&temp.path().join("link")), root(&temp.path().join("link/b")));
    let expected = now(root(&temp.path().join("a")).places()).unwrap();
    assert_eq!(places(&a), expected);
    assert!(places(&b)[0].is_within(&places(&a)[0]));
    assert!(!places(&a)[0].is_within(&places(&b)[0]));
    assert!(places(&a)[0].is_within(&places(&dir)[0]));
    let odd = now(dir.open_dir(&path("a b (deleted)"))).unwrap();
    assert!(places(&odd)[0].path.as_bytes().ends_with(b"/a b (deleted)"));
    now(dir.rmdir(&name("a b (deleted)"))).unwrap();
    assert_eq!(errno(now(odd.places())), Errno::NOENT);
}

#[test]
fn places_are_told_across_bind_mounts() {
    const TEST: &str = "places_are_told_across_bind_mounts";
    const SPACES: &str = "unshare -Urm";
    let Some(inside) = std::env::var_os(INSIDE) else {
        let unshare: Vec<_> = SPACES.split(' ').collect();
        let allowed = Command::new("unshare").args(&unshare[1..]).arg("true").status();
        if !allowed.is_ok_and(|status| status.success()) {
            eprintln!("not tested: this host forbids user name spaces");
            return;
        }
        let temp = TempDir::new().unwrap();
        let script = "cd \"$REALIZE_TEST_INSIDE\"
            mkdir -p disk/films/new \"a view\" other tmpfs
            mount --bind disk/films \"a view\"
            mount -t tmpfs none tmpfs
            mkdir tmpfs/mnt
            mount --bind other tmpfs/mnt
            exec \"$@\"";
        assert!(run_again(TEST, &unshare, script, temp.path().as_os_str()));
        return;
    };
    let dir = root(Path::new(&inside));
    let places = |below: &str| now(now(dir.open_dir(&path(below))).unwrap().places()).unwrap();
    let is_inside = |inner: &str, outer: &str| {
        let outer: Place = places(outer)[0].clone();
        places(inner).iter().any(|place| place.is_within(&outer))
    };
    assert_eq!(places("a view/new")[0], places("disk/films/new")[0]);
    assert!(is_inside("a view/new", "disk/films") && is_inside("disk/films/new", "a view"));
    assert!(is_inside("a view", "disk"), "where it comes from");
    assert!(is_inside("a view", ""), "where it is mounted");
    assert!(is_inside("tmpfs/mnt", "tmpfs") && is_inside("tmpfs/mnt", "other") && is_inside("tmpfs/mnt", ""));
    assert!(!is_inside("tmpfs/mnt", "disk") && !is_inside("disk", "a view") && !is_inside("tmpfs", "other"));
}

#[test]
fn the_limit_of_open_files_is_raised_to_the_hard_one() {
    let now = raise_open_files();
    let limit = getrlimit(Resource::Nofile);
    assert_eq!(limit.current, limit.maximum);
    assert_eq!(now, limit.maximum.unwrap_or(u64::MAX));
}

#[tokio::test]
async fn a_job_runs_to_its_end_and_a_panic_is_told() {
    let fs = OsFs::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let (dir_fs, temp) = (fs.clone(), TempDir::new().unwrap());
    let path = temp.path().to_owned();
    let names = fs.offload(async move { dir_fs.open_root(&path).await?.names().await });
    assert_eq!(names.await.unwrap().unwrap(), []);
    let dropped = fs.offload(async move { sender.send(7).unwrap() });
    // Started by its first poll, then dropped.
    let polled = dropped.now_or_never();
    assert!(polled.is_none_or(|ended| ended.is_ok()));
    assert_eq!(receiver.recv().unwrap(), 7);
    assert!(fs.offload(async { panic!("on purpose") as u8 }).await.is_err());
}

#[test]
fn room_for_files_is_made_before_they_are_opened() {
    let most = raise_open_files();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let room = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
    let room: u64 = room.trim().parse().unwrap();
    assert!(room >= most.min(4096), "room for {room} of {most}");
}

/// What hashes of sources rest on: on a file system that says so, a store to a mapping changes the ctime.
#[test]
#[expect(unsafe_code, reason = "maps a file for writing, as other programs do")]
fn where_the_ctime_tells_it_tells_of_a_store_to_a_mapping() {
    let in_memory = TempDir::new_in("/dev/shm").unwrap();
    let (on_disk, _) = temp();
    for temp in [&on_disk, &in_memory] {
        let path = temp.path().join("file");
        fs::write(&path, [1; 8192]).unwrap();
        let dir = root(temp.path());
        let tells = now(now(dir.open(&name("file"))).unwrap().sight()).unwrap() == Sight::AllByCtime;
        // Clean pages, whose first change the file system is asked about.
        fs::File::open(&path).unwrap().sync_all().unwrap();
        let before = now(dir.stat(&name("file"))).unwrap().version;
        thread::sleep(Duration::from_millis(50));
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let read_write = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of two pages of a file that has them; it is stored to within its bounds, and unmapped once.
        unsafe {
            let mapping = mmap(std::ptr::null_mut(), 8192, read_write, MapFlags::SHARED, &file, 0).unwrap();
            mapping.cast::<u8>().add(5000).write_volatile(2);
            munmap(mapping, 8192).unwrap();
        }
        drop(file);
        assert_eq!(fs::read(&path).unwrap()[5000], 2);
        let after = now(dir.stat(&name("file"))).unwrap().version;
        assert!(!tells || after.ctime > before.ctime, "{path:?}: {before:?}");
    }
    let file = now(root(in_memory.path()).open(&name("file"))).unwrap();
    assert_eq!(now(file.sight()).unwrap(), Sight::All);
}
