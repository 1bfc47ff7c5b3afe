//! The work of a move: a bounded number of tasks, and what waits for one.

use std::{collections::VecDeque, future::Future, rc::Rc};

use futures::{
    StreamExt,
    future::{Either, LocalBoxFuture, select},
    stream::FuturesUnordered,
};

use super::{Item, ServiceStub, Shared, dirs::DirJob};
use crate::{
    limits::Limits,
    model::{Kind, RelPath},
    plan::{DirTree, DoneDir, Outcome},
    service::DirMeta,
};

/// Tasks under way, and what waits.
pub struct Work<'a, S, T> {
    /// What the tasks share.
    pub shared: Rc<Shared<'a, S, T>>,
    /// Directories that are not done.
    pub tree: DirTree<DirJob>,
    ready_dirs: Vec<DirJob>,
    /// For each source, small files that wait for a batch to fill.
    waiting: Vec<Waiting>,
    large: VecDeque<(Item, bool)>,
    small_tasks: usize,
    large_tasks: usize,
    tasks: FuturesUnordered<LocalBoxFuture<'a, Done>>,
}

#[derive(Default)]
struct Waiting {
    copies: Batch,
    compares: Batch,
    renames: Batch,
}

#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    bytes: u64,
    path_bytes: usize,
}

impl Batch {
    fn push(&mut self, item: Item) {
        self.bytes = self.bytes.saturating_add(item.bytes());
        self.path_bytes += item.to.as_bytes().len() + item.entry.path.as_bytes().len();
        self.items.push(item);
    }

    /// Whether a message of it would be long enough.
    fn is_full(&self, limits: &Limits) -> bool {
        self.items.len() >= limits.batch_files || self.path_bytes >= limits.page_bytes
    }

    fn take(&mut self) -> Vec<Item> {
        std::mem::take(self).items
    }
}

/// What a task did.
struct Done {
    kind: TaskKind,
    /// Dealt with: its path at the target, and whether it is gone from the source.
    dealt_with: Vec<(RelPath, Outcome)>,
    /// What a rename could not do and goes the ordinary way.
    not_by_rename: Vec<Item>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TaskKind {
    Small,
    Large,
    Dirs,
}

impl<'a, S: ServiceStub, T: ServiceStub> Work<'a, S, T> {
    /// Nothing to do yet.
    pub fn new(shared: Shared<'a, S, T>) -> Self {
        Self {
            tree: DirTree::default(),
            ready_dirs: Vec::new(),
            waiting: std::iter::repeat_with(Waiting::default)
                .take(shared.sources.len())
                .collect(),
            large: VecDeque::new(),
            small_tasks: 0,
            large_tasks: 0,
            tasks: FuturesUnordered::new(),
            shared: Rc::new(shared),
        }
    }

    /// The listing has come to `path`.
    pub fn listing_at(&mut self, path: &RelPath) {
        let done = self.tree.listing_at(path);
        self.queue_dirs(done);
    }

    /// Takes an item, which `compare` says the target may have already, and waits until there is room for more.
    pub async fn queue(&mut self, item: Item, compare: bool) {
        if self.shared.options.dry_run {
            self.shared.would_move(&item, compare);
            return;
        }
        self.tree.add(&item.to);
        let source = item.source;
        let waiting = &mut self.waiting[source];
        if self.shared.may_rename[source].get() && item.may_be_renamed() {
            waiting.renames.push(item);
            if waiting.renames.is_full(&self.shared.options.limits) {
                self.begin_renames(source);
            }
        } else {
            self.queue_ordinary(item, compare);
        }
        self.begin_large();
        let (small_max, large_max) = (
            self.shared.options.limits.batches_in_flight,
            self.shared.options.limits.files_in_flight,
        );
        while !self.tasks.is_empty() && (self.small_tasks >= small_max || self.large.len() >= large_max) {
            self.one_done().await;
        }
    }

    /// Waits for `other` while the tasks go on.
    pub async fn run_while<O>(&mut self, other: impl Future<Output = O>) -> O {
        let mut other = std::pin::pin!(other);
        while !self.tasks.is_empty() {
            match select(other.as_mut(), self.tasks.next()).await {
                Either::Left((value, _)) => return value,
                Either::Right((done, _)) => self.take_done(done),
            }
        }
        other.await
    }

    /// Ends the work: with `complete` everything that waits is done first, else only what is under way.
    pub async fn end(&mut self, complete: bool) {
        if complete && !self.shared.has_stopped() {
            let done = self.tree.listing_ended();
            self.queue_dirs(done);
        }
        loop {
            if complete && self.has_some_waiting() && !self.shared.is_stopped() {
                self.begin_what_waits();
            }
            if self.tasks.is_empty() {
                return;
            }
            self.one_done().await;
        }
    }

    fn queue_ordinary(&mut self, item: Item, compare: bool) {
        let limits = &self.shared.options.limits;
        let source = item.source;
        if item.entry.kind == Kind::File && item.entry.version.size > limits.small_file_bytes {
            self.large.push_back((item, compare));
            return;
        }
        let waiting = &mut self.waiting[source];
        let batch = if compare {
            &mut waiting.compares
        } else {
            &mut waiting.copies
        };
        batch.push(item);
        if batch.bytes >= limits.batch_bytes || batch.is_full(limits) {
            if compare {
                self.begin_compares(source);
            } else {
                self.begin_copies(source);
            }
        }
    }

    fn begin(&mut self, task: LocalBoxFuture<'a, Done>, kind: TaskKind) {
        match kind {
            TaskKind::Small => self.small_tasks += 1,
            TaskKind::Large => self.large_tasks += 1,
            TaskKind::Dirs => {}
        }
        self.tasks.push(task);
    }

    /// Begins to make directories at the target. Files may be sent right behind them.
    pub fn begin_make_dirs(&mut self, dirs: Vec<DirMeta>) {
        self.shared.making.set(true);
        let shared = self.shared.clone();
        let task = async move {
            shared.make_dirs(dirs).await;
            Done::with(TaskKind::Dirs, Vec::new())
        };
        self.begin(Box::pin(task), TaskKind::Dirs);
    }

    fn begin_copies(&mut self, source: usize) {
        let (shared, items) = (self.shared.clone(), self.waiting[source].copies.take());
        let task = async move { Done::with(TaskKind::Small, shared.copy_small(source, items).await) };
        self.begin(Box::pin(task), TaskKind::Small);
    }

    fn begin_compares(&mut self, source: usize) {
        let (shared, items) = (self.shared.clone(), self.waiting[source].compares.take());
        let task = async move { Done::with(TaskKind::Small, shared.compare_small(source, items).await) };
        self.begin(Box::pin(task), TaskKind::Small);
    }

    fn begin_renames(&mut self, source: usize) {
        let (shared, items) = (self.shared.clone(), self.waiting[source].renames.take());
        let task = async move {
            let (dealt_with, not_by_rename) = shared.rename(source, items).await;
            Done {
                not_by_rename,
                ..Done::with(TaskKind::Small, dealt_with)
            }
        };
        self.begin(Box::pin(task), TaskKind::Small);
    }

    fn begin_large(&mut self) {
        let at_once = self.shared.options.limits.files_in_flight;
        while self.large_tasks < at_once && !self.large.is_empty() && !self.shared.is_stopped() {
            let Some((item, compare)) = self.large.pop_front() else {
                return;
            };
            let shared = self.shared.clone();
            let task = async move { Done::with(TaskKind::Large, vec![shared.move_large(&item, compare).await]) };
            self.begin(Box::pin(task), TaskKind::Large);
        }
    }

    fn has_some_waiting(&self) -> bool {
        let waits = |waiting: &Waiting| {
            let batches = [&waiting.renames, &waiting.copies, &waiting.compares];
            batches.iter().any(|batch| !batch.items.is_empty())
        };
        self.waiting.iter().any(waits) || !self.large.is_empty() || !self.ready_dirs.is_empty()
    }

    /// Begins what waits for more that will not come.
    fn begin_what_waits(&mut self) {
        for source in 0..self.waiting.len() {
            if !self.waiting[source].renames.items.is_empty() {
                self.begin_renames(source);
            }
            if !self.waiting[source].copies.items.is_empty() {
                self.begin_copies(source);
            }
            if !self.waiting[source].compares.items.is_empty() {
                self.begin_compares(source);
            }
        }
        self.begin_large();
        self.begin_dirs(1);
    }

    fn queue_dirs(&mut self, done: impl IntoIterator<Item = DoneDir<DirJob>>) {
        for dir in done {
            // The root is not finished: it is neither removed nor given times.
            if let Some(job) = dir.what {
                self.ready_dirs.push(DirJob {
                    stays: job.stays || dir.stays,
                    is_complete: !dir.failed,
                    ..job
                });
            }
        }
        self.begin_dirs(self.shared.options.limits.dirs_per_batch);
    }

    /// Finishes the directories that are done, once there are `at_least` so many.
    fn begin_dirs(&mut self, at_least: usize) {
        if self.ready_dirs.len() < at_least || self.shared.options.dry_run {
            return;
        }
        let (shared, dirs) = (self.shared.clone(), std::mem::take(&mut self.ready_dirs));
        let task = async move { Done::with(TaskKind::Dirs, shared.finish_dirs(dirs).await) };
        self.begin(Box::pin(task), TaskKind::Dirs);
    }

    async fn one_done(&mut self) {
        let done = self.tasks.next().await;
        self.take_done(done);
    }

    fn take_done(&mut self, done: Option<Done>) {
        let Some(done) = done else { return };
        match done.kind {
            TaskKind::Small => self.small_tasks -= 1,
            TaskKind::Large => self.large_tasks -= 1,
            TaskKind::Dirs => {}
        }
        for (path, outcome) in done.dealt_with {
            let done = self.tree.dealt_with(&path, outcome);
            self.queue_dirs(done);
        }
        for item in done.not_by_rename {
            let compare = item.seems_equal();
            self.queue_ordinary(item, compare);
        }
        self.begin_large();
    }
}

impl Done {
    fn with(kind: TaskKind, dealt_with: Vec<(RelPath, Outcome)>) -> Self {
        Self {
            kind,
            dealt_with,
            not_by_rename: Vec::new(),
        }
    }
}
