//! The simulated file system against the real ones: the same random calls must get the same answers.
//!
//! Compared are results with their error numbers, bytes, holes, metadata (mtimes where they were set) and the tree in the
//! end. Not compared: inode numbers, times that the clock gave, the sizes of directories.

use std::{io, path::Path};

use proptest::{prelude::*, test_runner::TestRunner};
use realize::{
    fs::{Dir, File, Fs, Lock, Metadata, Rename, os::OsFs},
    model::{Kind, Name, RelPath, Timestamp},
};
use realize_sim::{fs::Machine, world::process};
use rustix::io::Errno;

/// How many sequences are tried in memory; `PROPTEST_CASES` does not matter here.
const CASES_IN_MEMORY: u32 = 5000;
/// And on a disk, where every sync waits for the device and for what others write.
const CASES_ON_DISK: u32 = 1000;
/// How many calls a sequence has at most.
const CALLS_MAX: usize = 120;
const SLOTS: usize = 4;

/// A slot of open directories; the first one is always the root.
type DirSlot = usize;
type FileSlot = usize;

#[derive(Debug, Clone)]
enum Call {
    OpenDir(DirSlot, RelPath, DirSlot),
    CloseDir(DirSlot),
    DirMetadata(DirSlot),
    Stat(DirSlot, Name),
    Names(DirSlot),
    Open(DirSlot, Name, FileSlot),
    OpenWrite(DirSlot, Name, FileSlot),
    Create(DirSlot, Name, FileSlot),
    Symlink(DirSlot, Name, &'static [u8]),
    Readlink(DirSlot, Name),
    Link(DirSlot, Name, DirSlot, Name),
    Rename(DirSlot, Name, DirSlot, Name, Rename),
    Unlink(DirSlot, Name),
    Mkdir(DirSlot, Name),
    Rmdir(DirSlot, Name),
    SetMtime(DirSlot, Name, Timestamp),
    DirSetMeta(DirSlot, u32, Timestamp),
    DirSync(DirSlot),
    DirLock(DirSlot, Lock),
    IsInside(DirSlot, DirSlot),
    CloseFile(FileSlot),
    FileMetadata(FileSlot),
    Read(FileSlot, u64, usize),
    Write(FileSlot, u64, usize, u8),
    NextData(FileSlot, u64),
    SetLen(FileSlot, u64),
    FileSetMeta(FileSlot, u32, Timestamp),
    FileSync(FileSlot),
    DropCache(FileSlot),
    FileLock(FileSlot),
    Lease(FileSlot),
    LeaseHeld(FileSlot),
    Uncarried(FileSlot),
}

/// What a call gave, as far as it can be compared.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Its slot is empty.
    NotAsked,
    Done,
    Count(usize),
    Bytes(Vec<u8>),
    Offset(Option<u64>),
    Is(bool),
    Names(Vec<Name>),
    Metadata(Kind, Option<u64>, u32, u64, Option<Timestamp>),
    Refused(i32),
}

fn metadata(metadata: Metadata) -> Answer {
    let size = (metadata.kind != Kind::Dir).then_some(metadata.version.size);
    // Times before this were set by a call, later ones are the clock's.
    let mtime = Some(metadata.version.mtime).filter(|mtime| mtime.secs < 1_500_000_000);
    Answer::Metadata(metadata.kind, size, metadata.mode, metadata.links, mtime)
}

fn answer<T>(result: io::Result<T>, value: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(it) => value(it),
        Err(error) => Answer::Refused(error.raw_os_error().expect("errors carry the system's number")),
    }
}

fn done(_: ()) -> Answer {
    Answer::Done
}

struct World<F: Fs> {
    dirs: Vec<Option<F::Dir>>,
    files: Vec<Option<F::File>>,
}

impl<F: Fs> World<F> {
    async fn new(fs: &F, root: &Path) -> Self {
        let root = fs.open_root(root).await.expect("the root is there");
        let mut dirs = vec![None; SLOTS];
        dirs[0] = Some(root);
        let files = vec![None; SLOTS];
        Self { dirs, files }
    }

    async fn answer(&mut self, call: &Call) -> Answer {
        self.ask(call).await.unwrap_or(Answer::NotAsked)
    }

    fn put_file(&mut self, slot: FileSlot, opened: io::Result<F::File>) -> Answer {
        answer(opened, |file| {
            self.files[slot] = Some(file);
            Answer::Done
        })
    }

    async fn ask(&mut self, call: &Call) -> Option<Answer> {
        use Call::*;
        let (dirs, files) = (self.dirs.clone(), self.files.clone());
        let dir = |slot: DirSlot| dirs[slot].as_ref();
        let file = |slot: FileSlot| files[slot].as_ref();
        Some(match call {
            OpenDir(from, path, to) => {
                let opened = dir(*from)?.open_dir(path).await;
                match answer(opened, |opened| {
                    self.dirs[(*to).max(1)] = Some(opened);
                    Answer::Done
                }) {
                    // Either is promised where a symbolic link is met.
                    Answer::Refused(errno) if errno == Errno::LOOP.raw_os_error() => {
                        Answer::Refused(Errno::NOTDIR.raw_os_error())
                    }
                    other => other,
                }
            }
            CloseDir(slot) => {
                if *slot > 0 {
                    self.dirs[*slot] = None;
                }
                Answer::Done
            }
            DirMetadata(slot) => answer(dir(*slot)?.metadata().await, metadata),
            Stat(slot, name) => answer(dir(*slot)?.stat(name).await, metadata),
            Names(slot) => answer(dir(*slot)?.names().await, |mut names| {
                names.sort();
                Answer::Names(names)
            }),
            Open(slot, name, to) => self.put_file(*to, dir(*slot)?.open(name).await),
            OpenWrite(slot, name, to) => self.put_file(*to, dir(*slot)?.open_write(name).await),
            Create(slot, name, to) => self.put_file(*to, dir(*slot)?.create(name).await),
            Symlink(slot, name, text) => answer(dir(*slot)?.symlink(name, text).await, done),
            Readlink(slot, name) => answer(dir(*slot)?.readlink(name).await, Answer::Bytes),
            Link(slot, name, to_slot, to) => answer(dir(*slot)?.link(name, dir(*to_slot)?, to).await, done),
            Rename(slot, name, to_slot, to, how) => {
                answer(dir(*slot)?.rename(name, dir(*to_slot)?, to, *how).await, done)
            }
            Unlink(slot, name) => answer(dir(*slot)?.unlink(name).await, done),
            Mkdir(slot, name) => answer(dir(*slot)?.mkdir(name).await, done),
            Rmdir(slot, name) => answer(dir(*slot)?.rmdir(name).await, done),
            SetMtime(slot, name, mtime) => answer(dir(*slot)?.set_mtime(name, *mtime).await, done),
            DirSetMeta(slot, mode, mtime) => answer(dir(*slot)?.set_meta(*mode, *mtime).await, done),
            DirSync(slot) => answer(dir(*slot)?.sync().await, done),
            DirLock(slot, lock) => answer(dir(*slot)?.try_lock(*lock).await, done),
            IsInside(slot, of) => {
                let (dir, of) = (dir(*slot)?, dir(*of)?);
                // A removed directory lies nowhere; what is said then is not promised.
                let (Ok(places), Ok(of)) = (dir.places().await, of.places().await) else {
                    return Some(Answer::Done);
                };
                match self.is_removed(*slot).await? {
                    true => Answer::Done,
                    false => Answer::Is(places.iter().any(|place| place.is_within(&of[0]))),
                }
            }
            CloseFile(slot) => {
                self.files[*slot] = None;
                Answer::Done
            }
            FileMetadata(slot) => answer(file(*slot)?.metadata().await, metadata),
            Read(slot, offset, len) => {
                let mut buf = vec![0xee; *len];
                let read = file(*slot)?.read_at(*offset, &mut buf).await;
                answer(read, |count| {
                    buf.truncate(count);
                    Answer::Bytes(buf)
                })
            }
            Write(slot, offset, len, byte) => {
                answer(file(*slot)?.write_at(*offset, &vec![*byte; *len]).await, Answer::Count)
            }
            NextData(slot, offset) => answer(file(*slot)?.next_data(*offset).await, Answer::Offset),
            SetLen(slot, len) => answer(file(*slot)?.set_len(*len).await, done),
            FileSetMeta(slot, mode, mtime) => answer(file(*slot)?.set_meta(*mode, *mtime).await, done),
            FileSync(slot) => answer(file(*slot)?.sync().await, done),
            DropCache(slot) => answer(file(*slot)?.drop_cache().await, done),
            FileLock(slot) => answer(file(*slot)?.try_lock(Lock::Exclusive).await, done),
            Lease(slot) => answer(file(*slot)?.lease().await, done),
            LeaseHeld(slot) => answer(file(*slot)?.lease_held().await, Answer::Is),
            Uncarried(slot) => answer(file(*slot)?.uncarried().await, |uncarried| {
                Answer::Names(
                    [
                        (uncarried.hard_links, "links"),
                        (uncarried.special_bits, "bits"),
                        (uncarried.xattrs, "xattrs"),
                    ]
                    .iter()
                    .filter(|(is, _)| *is)
                    .map(|(_, what)| Name::new(*what).expect("a good name"))
                    .collect(),
                )
            }),
        })
    }

    async fn is_removed(&self, slot: DirSlot) -> Option<bool> {
        let dir = self.dirs[slot].as_ref()?;
        Some(dir.metadata().await.ok()?.links == 0)
    }

    /// Everything below the root.
    async fn tree(&self) -> Vec<(RelPath, Answer, Answer)> {
        let mut tree = Vec::new();
        let mut ahead = vec![RelPath::root()];
        let root = self.dirs[0].clone().expect("the root stays open");
        while let Some(path) = ahead.pop() {
            let dir = root.open_dir(&path).await.expect("a directory that was listed");
            let mut names = dir.names().await.expect("a directory that is there");
            names.sort();
            for name in names {
                let path = path.join(&name).expect("few names");
                let stat = dir.stat(&name).await.expect("a name that was listed");
                let content = match stat.kind {
                    Kind::File => self.content(&dir, &name).await,
                    Kind::Symlink => answer(dir.readlink(&name).await, Answer::Bytes),
                    Kind::Dir | Kind::Special => Answer::Done,
                };
                if stat.kind == Kind::Dir {
                    ahead.push(path.clone());
                }
                tree.push((path, metadata(stat), content));
            }
        }
        tree
    }

    /// A digest would do, but bytes tell more; what lies far out in sparse files is found by its data.
    async fn content(&self, dir: &F::Dir, name: &Name) -> Answer {
        let file = dir.open(name).await.expect("a regular file");
        let (mut bytes, mut offset) = (Vec::new(), 0);
        while let Ok(Some(data)) = file.next_data(offset).await {
            let mut page = vec![0; 4096 - (data % 4096) as usize];
            let count = file.read_at(data, &mut page).await.expect("reading");
            bytes.extend(data.to_le_bytes());
            bytes.extend(&page[..count]);
            offset = data + count as u64;
        }
        Answer::Bytes(bytes)
    }
}

fn name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(|name| Name::new(name).expect("a good name"))
}

fn path() -> impl Strategy<Value = RelPath> {
    prop::collection::vec(name(), 0..3).prop_map(|names| {
        let join = |path: RelPath, name: &Name| path.join(name).expect("short");
        names.iter().fold(RelPath::root(), join)
    })
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..20u64,
        4 => prop::sample::select(vec![511, 512, 4095, 4096, 4097, 8191, 8192, 12_288, 20_000]),
        2 => 0..30_000u64,
        1 => prop::sample::select(vec![1 << 20, (1 << 32) + 5, 1 << 40, u64::MAX, 1 << 63]),
    ]
}

fn len() -> impl Strategy<Value = u64> {
    offset().prop_filter("both file systems have limits of their own", |len| {
        *len < 1 << 41 || *len >= 1 << 63
    })
}

fn mtime() -> impl Strategy<Value = Timestamp> {
    (0..1_400_000_000i64, 0..1_000_000_000u32).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0o600, 0o644, 0o777, 0, 0o4755, 0o1777, 0o2755])
}

fn call() -> impl Strategy<Value = Call> {
    let (d, f) = (0..SLOTS, 0..SLOTS);
    let d = || d.clone();
    let f = || f.clone();
    let how = prop::sample::select(vec![Rename::Replace, Rename::NoReplace, Rename::Exchange]);
    let lock = prop::sample::select(vec![Lock::Shared, Lock::Exclusive]);
    let text = prop::sample::select(vec![&b"a"[..], b"..", b"/", b"b/c", b"nowhere"]);
    let tree = prop_oneof![
        5 => (d(), path(), d()).prop_map(|(d, p, to)| Call::OpenDir(d, p, to)),
        1 => d().prop_map(Call::CloseDir),
        1 => d().prop_map(Call::DirMetadata),
        2 => (d(), name()).prop_map(|(d, n)| Call::Stat(d, n)),
        1 => d().prop_map(Call::Names),
        5 => (d(), name(), f()).prop_map(|(d, n, f)| Call::Create(d, n, f)),
        3 => (d(), name(), f()).prop_map(|(d, n, f)| Call::Open(d, n, f)),
        3 => (d(), name(), f()).prop_map(|(d, n, f)| Call::OpenWrite(d, n, f)),
        2 => (d(), name(), text).prop_map(|(d, n, t)| Call::Symlink(d, n, t)),
        1 => (d(), name()).prop_map(|(d, n)| Call::Readlink(d, n)),
        3 => (d(), name(), d(), name()).prop_map(|(d, n, e, m)| Call::Link(d, n, e, m)),
        9 => (d(), name(), d(), name(), how).prop_map(|(d, n, e, m, how)| Call::Rename(d, n, e, m, how)),
        3 => (d(), name()).prop_map(|(d, n)| Call::Unlink(d, n)),
        4 => (d(), name()).prop_map(|(d, n)| Call::Mkdir(d, n)),
        3 => (d(), name()).prop_map(|(d, n)| Call::Rmdir(d, n)),
        1 => (d(), name(), mtime()).prop_map(|(d, n, t)| Call::SetMtime(d, n, t)),
        1 => (d(), mode(), mtime()).prop_map(|(d, m, t)| Call::DirSetMeta(d, m, t)),
        2 => (d(), lock).prop_map(|(d, lock)| Call::DirLock(d, lock)),
        1 => (d(), d()).prop_map(|(d, e)| Call::IsInside(d, e)),
    ];
    let file = prop_oneof![
        6 => f().prop_map(Call::CloseFile),
        2 => f().prop_map(Call::FileMetadata),
        3 => (f(), offset(), 0..10_000usize).prop_map(|(f, o, l)| Call::Read(f, o, l)),
        6 => (f(), offset(), 0..6000usize, 1..255u8).prop_map(|(f, o, l, b)| Call::Write(f, o % (1 << 41), l, b)),
        3 => (f(), offset()).prop_map(|(f, o)| Call::NextData(f, o % (1 << 62))),
        4 => (f(), len()).prop_map(|(f, l)| Call::SetLen(f, l)),
        1 => (f(), mode(), mtime()).prop_map(|(f, m, t)| Call::FileSetMeta(f, m, t)),
        1 => f().prop_map(Call::DropCache),
        2 => f().prop_map(Call::FileLock),
        5 => f().prop_map(Call::Lease),
        5 => f().prop_map(Call::LeaseHeld),
        1 => f().prop_map(Call::Uncarried),
    ];
    let sync = prop_oneof![(0..SLOTS).prop_map(Call::DirSync), (0..SLOTS).prop_map(Call::FileSync)];
    prop_oneof![30 => tree, 25 => file, 1 => sync]
}

fn compare(real_place: &Path, cases: u32) {
    let mut config = ProptestConfig::with_cases(cases);
    config.failure_persistence = None;
    let calls = prop::collection::vec(call(), 1..CALLS_MAX);
    let result = TestRunner::new(config).run(&calls, |calls| {
        let place = tempfile::tempdir_in(real_place).expect("a place for a directory");
        process(async {
            let mut real = World::new(&OsFs::new(), place.path()).await;
            let disk = Machine::new(1).disk(1);
            let mut simulated = World::new(&disk.fs(), Path::new("/")).await;
            for (at, call) in calls.iter().enumerate() {
                let (is, should_be) = (simulated.answer(call).await, real.answer(call).await);
                prop_assert_eq!(is, should_be, "call {}: {:?}", at, call);
            }
            prop_assert_eq!(simulated.tree().await, real.tree().await);
            Ok(())
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn answers_are_those_of_the_disk_that_we_build_on() {
    compare(Path::new(env!("CARGO_TARGET_TMPDIR")), CASES_ON_DISK);
}

#[test]
fn answers_are_those_of_tmpfs() {
    compare(Path::new("/dev/shm"), CASES_IN_MEMORY);
}
