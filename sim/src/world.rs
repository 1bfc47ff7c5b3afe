//! A machine with a source and a target, what is in them, and moves between the two.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    io,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use realize::{
    algo::{Event, Failure, MoveError, MoveOptions, MoveReport, Source, Target, Why, move_files},
    clock::timeout,
    digest::CHUNK_BYTES,
    limits::Limits,
    model::RelPath,
    server::{RealizeServer, Roots},
    service::{DirId, RunId, ServiceError, Verify},
    store::names,
};

use crate::{
    check::Checker,
    clock::SimClock,
    fs::{Content, Disk, Disks, Ino, Kind, Machine, Op},
    service::SimService,
};

/// Device number of the source's disk.
pub const SOURCE: u64 = 1;
/// Device number of the target's disk, unless both are on one.
pub const TARGET: u64 = 2;

/// What one file is on both sides, and must become.
#[derive(Debug, Clone)]
pub struct Truth {
    /// What the source has, and the target must have in the end.
    pub new: Body,
    /// What the source had before somebody else changed it: the target may have got that.
    pub before: Vec<Body>,
    /// Somebody else removed the source: nothing is owed any more.
    pub is_removed: bool,
    /// What the target had before: at first, and after each crash.
    pub olds: Vec<Old>,
    /// What somebody else put under the final name while the move went on.
    pub theirs: Vec<Body>,
}

/// One file of a world to be made.
#[derive(Debug, Clone)]
pub struct FileAt {
    /// Its path below both roots.
    pub path: RelPath,
    /// What the source has.
    pub new: Body,
    /// What the target has under its name.
    pub old: Option<Body>,
    /// Whether that is on the disk, or was written just before and never synced.
    pub old_is_durable: bool,
    /// Whether that has the mtime of the source.
    pub has_same_mtime: bool,
    /// What the target has of it as a partial.
    pub partial: Option<Vec<u8>>,
}

/// What the target has under a final name before a move.
#[derive(Debug, Clone)]
pub struct Old {
    /// What is in it.
    pub body: Body,
    /// Which inode.
    pub ino: Ino,
}

/// What is in a file or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A regular file.
    File(Content),
    /// A symbolic link's text.
    Link(Vec<u8>),
}

/// The machine, and what the disks held at first.
#[derive(Clone)]
pub struct World {
    /// The machine; the source's, when the target has one of its own.
    pub machine: Machine,
    /// The source's disk; everything is below `source`, or `beside`, which is a source of its own.
    pub source: Disk,
    /// The target's disk, which may be the same; everything is below `target`.
    pub target: Disk,
    /// How the target proves what it has written.
    pub verify: Verify,
    truth: Arc<Mutex<BTreeMap<RelPath, Truth>>>,
}

/// How a move in a [`World`] ended.
#[derive(Debug)]
pub struct Ended {
    /// What `move_files` returned; `None` when the machine went off meanwhile.
    pub result: Option<Result<MoveReport, MoveError>>,
    /// What it said of files that stay.
    pub stays: Vec<Failure>,
}

/// Sizes that take a small corpus through every path of the mover.
pub fn limits() -> Limits {
    Limits {
        small_file_bytes: 1000,
        batch_files: 3,
        job_files: 2,
        job_syncs: 1,
        batches_in_flight: 2,
        files_in_flight: 2,
        dirs_per_batch: 2,
        page_entries: 5,
        recalled_chunks: 2,
        partials_kept_for: Duration::from_secs(5),
        ..Limits::default()
    }
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).expect("written here")
}

/// Files, each with what the target has under its name. Of the large one the target has a partial, whose first chunk is wrong and whose
/// second is missing.
fn files_of(truth: Vec<(&str, Body, Option<Body>)>) -> Vec<FileAt> {
    let file = |(at, new, old): (&str, _, _)| FileAt {
        path: path(at),
        new,
        old,
        old_is_durable: false,
        has_same_mtime: false,
        partial: (at == "large").then(|| vec![7; 5000]),
    };
    truth.into_iter().map(file).collect()
}

fn body(text: &str) -> Body {
    Body::File(Content::from(text.as_bytes()))
}

/// How large the large file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Large {
    /// Of one chunk: quick to hash.
    OneChunk,
    /// Of two chunks, mostly a hole.
    TwoChunks,
}

fn large(text: &str, large: Large) -> Content {
    let mut content = Content::from(text.as_bytes());
    let chunks_bytes = if large == Large::OneChunk { 0 } else { CHUNK_BYTES };
    content.set_len(chunks_bytes + 7000);
    content.write(chunks_bytes + 6500, text.as_bytes());
    content
}

/// What [`World::small`] is made of.
pub fn small_tree(size: Large) -> Vec<(&'static str, Body, Option<Body>)> {
    let link = |text: &str| Body::Link(text.into());
    vec![
        ("a", body("alpha"), None),
        ("d/b", body("beta"), None),
        ("d/e/c", body("gamma"), None),
        ("d/e/empty", body(""), None),
        ("d/link", link("../a"), None),
        ("equal", body("the same"), Some(body("the same"))),
        ("large", Body::File(large("large", size)), None),
        ("older", body("newer than that"), Some(body("old"))),
        ("other", body("one"), Some(body("two"))),
        ("relink", link("new text"), Some(link("old text"))),
    ]
}

impl World {
    /// A small tree: files new, equal, older and half there at the target, small and large; links; directories.
    pub fn small(seed: u64, one_disk: bool, size: Large) -> Self {
        Self::of(seed, one_disk, small_tree(size))
    }

    /// Files, each with what the target has under its name; directories as in [`small`](Self::small).
    pub fn of(seed: u64, one_disk: bool, truth: Vec<(&str, Body, Option<Body>)>) -> Self {
        let machine = Machine::new(seed);
        let source = machine.disk(SOURCE);
        let target = if one_disk { source.clone() } else { machine.disk(TARGET) };
        Self::on(source, target, files_of(truth))
    }

    /// As [`of`](Self::of), the target being on a machine of its own.
    pub fn on_two_machines(seed: u64, truth: Vec<(&str, Body, Option<Body>)>) -> Self {
        let [source, target] = [0, 1].map(|nth| Machine::new(seed.wrapping_mul(2).wrapping_add(nth)));
        Self::on(source.disk(SOURCE), target.disk(TARGET), files_of(truth))
    }

    /// Makes `files` on two empty disks, the source's on one and the target's on the other, which may be the same.
    pub fn on(source: Disk, target: Disk, files: Vec<FileAt>) -> Self {
        let truth = files.iter().map(|file| {
            let truth = Truth {
                new: file.new.clone(),
                before: Vec::new(),
                is_removed: false,
                olds: Vec::new(),
                theirs: Vec::new(),
            };
            (file.path.clone(), truth)
        });
        let world = Self {
            machine: source.machine().clone(),
            verify: Verify::Written,
            truth: Arc::new(Mutex::new(truth.collect())),
            source,
            target,
        };
        world.make(&files).expect("the disks are empty and have room");
        world.rebase();
        world
    }

    /// What a crash left of a world: its disks, on machines that start anew, and its `truth` of before.
    pub fn left(source: Disk, target: Disk, mut truth: BTreeMap<RelPath, Truth>) -> Self {
        // Other files may get their inodes; what is there now counts as old in a moment.
        truth.values_mut().for_each(|truth| truth.olds.clear());
        let world = Self {
            machine: source.machine().clone(),
            verify: Verify::Written,
            truth: Arc::new(Mutex::new(truth)),
            source,
            target,
        };
        world.rebase();
        world
    }

    fn make(&self, files: &[FileAt]) -> io::Result<()> {
        for dir in ["source/empty", "source/d/e"] {
            self.source.mkdir_all(dir)?;
        }
        self.target.mkdir_all("target/d")?;
        for file in files {
            if let Some(dir) = at_source(&file.path).parent() {
                self.source.mkdir_all(dir.as_bytes())?;
            }
            put(&self.source, &at_source(&file.path), &file.new)?;
            let there = at_target(&file.path);
            let Some((dir, name)) = there.split() else { continue };
            if file.old.is_some() || file.partial.is_some() {
                self.target.mkdir_all(dir.as_bytes())?;
            }
            if let Some(partial) = &file.partial {
                let at = dir.join(&names::partial(&name)).map_err(io::Error::other)?;
                self.target.create(at.as_bytes(), partial)?;
            }
        }
        self.source.create("outside", b"not to be touched")?;
        self.target.create("target/unrelated", b"somebody's")?;
        let put_olds = |durable: bool| {
            let mut olds = files.iter().filter(|file| file.old_is_durable == durable);
            olds.try_for_each(|file| {
                let Some(old) = &file.old else { return Ok(()) };
                let there = at_target(&file.path);
                put(&self.target, &there, old)?;
                if file.has_same_mtime {
                    let mtime = self.source.stat(at_source(&file.path).as_bytes())?.version.mtime;
                    self.target.set_meta(there.as_bytes(), 0o644, mtime)?;
                }
                Ok(())
            })
        };
        put_olds(true)?;
        self.source.settle();
        self.target.settle();
        put_olds(false)
    }

    /// The files and links, by their path below both roots.
    pub fn truth(&self) -> MutexGuard<'_, BTreeMap<RelPath, Truth>> {
        // A panic under the lock fails the test anyway.
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is moved: directories of the source's disk.
    pub fn source_roots(&self) -> &'static [&'static str] {
        let has_beside = self.truth().keys().any(is_beside);
        &SOURCES[..=usize::from(has_beside)]
    }

    /// Whether a run has failed to remove this: it says so, and nobody looks there again unless something moves there.
    pub fn could_not_remove(&self, path: &RelPath) -> bool {
        let struck = [self.source.machine(), self.target.machine()]
            .map(Machine::struck)
            .concat();
        struck.iter().any(|(kind, call)| {
            matches!(kind, Kind::Error(_)) && call.op == Op::Unlink && call.path.as_ref() == Some(path)
        })
    }

    /// Whether all that `stays` may be what somebody put under a final name while that was replaced: it is left to them.
    pub fn is_left_to_others(&self, stays: &[Failure]) -> bool {
        let is_leftover = |failure: &Failure| {
            matches!(failure.why, Why::Target(ServiceError::Leftover(_)))
                && self.is_swap_of_theirs(&at_target(&failure.path))
        };
        !stays.is_empty() && stays.iter().all(is_leftover)
    }

    /// Whether `swap` is the name by which a file is replaced under whose final name somebody else has put theirs.
    pub fn is_swap_of_theirs(&self, swap: &RelPath) -> bool {
        let Some((dir, name)) = swap.split() else { return false };
        let names::NameKind::Swap(swap) = names::classify(&name) else {
            return false;
        };
        let truths = self.truth();
        let mut theirs = truths.iter().filter(|(_, truth)| !truth.theirs.is_empty());
        theirs.any(|(path, _)| {
            let at = at_target(path).split();
            at.is_some_and(|(at_dir, name)| at_dir == dir && swap.is_of(&name))
        })
    }

    /// Whether a sync of a directory has failed: what it lost shows after a reboot, and nothing goes on before.
    pub fn is_doubtful(&self) -> bool {
        let is_marked = |disk: &Disk| {
            let nodes = disk.nodes();
            let mut names = nodes.keys().filter_map(|path| Some(path.split()?.1));
            names.any(|name| names::classify(&name) == names::NameKind::Unsynced)
        };
        is_marked(&self.source) || is_marked(&self.target)
    }

    /// What the target has now counts as what it had before too: a crash may have torn what somebody left unsynced.
    pub fn rebase(&self) {
        let nodes = self.target.nodes();
        let now = |path: &RelPath| {
            let node = nodes.get(&at_target(path))?;
            let body = match node.kind {
                realize::model::Kind::Symlink => Body::Link(node.target.clone()),
                _ => Body::File(node.content.clone()),
            };
            Some(Old { body, ino: node.ino })
        };
        for (path, truth) in self.truth().iter_mut() {
            truth.olds.extend(now(path));
        }
    }

    /// Checks the law at every effect from now on, by `checker`.
    pub fn watch(&self, checker: &Arc<Checker>) {
        let (world, checker) = (self.clone(), checker.clone());
        self.machine
            .watch(move |moment, call| checker.check(&world, moment, call));
    }

    /// Moves everything, as a process of its own that ends with the move or the machine.
    pub fn move_all(&self) -> Ended {
        self.move_through(|service| service)
    }

    /// As [`move_all`](Self::move_all), the target's service being reached through `wire`.
    pub fn move_through(&self, wire: impl FnOnce(SimService) -> SimService) -> Ended {
        let stays = RefCell::new(Vec::new());
        let result = process(async {
            const MOVE: Duration = Duration::from_secs(600);
            let work = async {
                let clock = SimClock::on(&self.machine);
                let ended = timeout(&clock, MOVE, self.move_once(wire, &stays)).await;
                ended.expect("a move ends; this one stands still")
            };
            let (work, off) = (std::pin::pin!(work), std::pin::pin!(self.machine.until_off()));
            match futures::future::select(work, off).await {
                futures::future::Either::Left((result, _)) => Some(result),
                futures::future::Either::Right(((), _)) => None,
            }
        });
        Ended {
            result,
            stays: stays.into_inner(),
        }
    }

    async fn move_once(
        &self,
        wire: impl FnOnce(SimService) -> SimService,
        stays: &RefCell<Vec<Failure>>,
    ) -> Result<MoveReport, MoveError> {
        let clock = SimClock::on(&self.machine);
        let roots = Roots::new(Disks::of(&self.source, &self.target), clock, limits(), [1; 16]);
        let failed = |error: io::Error| MoveError::Side(realize::algo::Side::Source(0), sim_error(&error));
        for root in self.source_roots().iter().chain(&["target"]) {
            let path = format!("/{root}");
            roots.add(*root, Path::new(&path), false).await.map_err(failed)?;
        }
        let service = SimService::within(RealizeServer::new(Arc::new(roots)));
        let source = |root: &&str| Source {
            service: service.clone().client(),
            dir: DirId::new(*root),
            beside_target: true,
            files: None,
        };
        let sources: Vec<_> = self.source_roots().iter().map(source).collect();
        let target = Target {
            service: wire(service.clone()).client(),
            dir: Some(DirId::new("target")),
        };
        let options = MoveOptions {
            limits: limits(),
            verify: self.verify,
            ..MoveOptions::default()
        };
        let observer = |event: Event<'_>| {
            if let Event::Stays(failure) = event {
                stays.borrow_mut().push(failure.clone());
            }
        };
        move_files(&sources, &target, RunId([7; 16]), &options, &observer).await
    }
}

fn sim_error(error: &io::Error) -> realize::service::ServiceError {
    realize::service::ServiceError::io("open", error)
}

/// The two sources; a world without files in the second has only the first.
const SOURCES: [&str; 2] = ["source", "beside"];

/// Where a path of the truth is on the source's disk: what is called `2` is in the second source.
pub fn at_source(path: &RelPath) -> RelPath {
    below(SOURCES[usize::from(is_beside(path))], path)
}

fn is_beside(path: &RelPath) -> bool {
    path.split().is_some_and(|(_, name)| name.as_bytes() == b"2")
}

/// Whether a path of the source's disk is in one of the sources.
pub fn is_in_source(path: &RelPath) -> bool {
    let first = path.names().next();
    first.is_some_and(|first| SOURCES.iter().any(|root| root.as_bytes() == first.as_bytes()))
}

/// Where a path of the truth is on the target's disk.
pub fn at_target(path: &RelPath) -> RelPath {
    below("target", path)
}

fn below(root: &str, path: &RelPath) -> RelPath {
    RelPath::new([root.as_bytes(), b"/", path.as_bytes()].concat()).expect("short paths")
}

/// Puts `body` under a name that nothing has.
pub fn put(disk: &Disk, path: &RelPath, body: &Body) -> io::Result<()> {
    match body {
        Body::Link(text) => disk.symlink(path.as_bytes(), text),
        Body::File(content) => {
            disk.create(path.as_bytes(), b"")?;
            let mut buf = vec![0; 4096];
            let mut offset = 0;
            while let Some(data) = content.next_data(offset) {
                let count = content.read(data, &mut buf);
                disk.write_at(path.as_bytes(), data, &buf[..count])?;
                offset = data + count as u64;
            }
            disk.truncate(path.as_bytes(), content.size())
        }
    }
}

/// Runs `program` as a process: virtual time, one thread, everything it started dead at its end.
pub fn process<T>(program: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    // Not by what it is: the runtime is compiled once.
    let program: Pin<&mut dyn Future<Output = T>> = std::pin::pin!(program);
    runtime.expect("a runtime needs nothing from outside").block_on(program)
}

/// Whether `node` is exactly `body`.
pub fn is(node: &crate::fs::Node, body: &Body) -> bool {
    match body {
        Body::File(content) => node.kind == realize::model::Kind::File && node.content == *content,
        Body::Link(text) => node.kind == realize::model::Kind::Symlink && node.target == *text,
    }
}

/// A fault that cuts the power at an effect, or kills the process there.
pub fn cut(effect: u64, kind: Kind) -> crate::fs::Fault {
    crate::fs::Fault {
        at: crate::fs::At::Effect(effect),
        kind,
    }
}
