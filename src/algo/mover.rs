//! Feeds what the sources hold to the work, page by page, each entry compared with the target first.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, future::join, stream};

use super::{
    Event, Item, MoveError, MoveOptions, MoveReport, ServiceStub, Shared, Side, Source, Stop, Target, Why,
    calls::{self, flat},
    claims::Ground,
    dirs::DirJob,
    feed::{Feed, Found},
    work::Work,
};
use crate::{
    model::{Entry, Kind, RelPath, Uncarried},
    plan::{self, Nesting, Reason, Step},
    service::{Answer, DirMeta, Expected, ServiceError, Swept},
};

/// How many directories of the target are looked through at once.
const SWEEPS_AT_ONCE: usize = 8;

/// Entries of a page that can't be moved, by the directory each is in.
type Troubles = BTreeMap<RelPath, Vec<(RelPath, Why)>>;

/// One move.
pub struct Mover<'a, S, T> {
    feed: Feed<'a, S>,
    ground: &'a Ground,
    work: Work<'a, S, T>,
    /// The last directory that was refused: nothing below it is tried.
    refused: Option<RelPath>,
    /// The last directory that was excluded: nothing below it is looked at.
    excluded: Option<RelPath>,
    /// What can't be moved, until its directory is met.
    troubles: Troubles,
    /// The last directory of the target that is known to have held nothing when this run came: what is below it need not be asked for.
    /// Safe even where that is not so any more, because what is expected to be absent is never replaced.
    empty: Option<RelPath>,
    /// Directories of the target, among those being gone through, that may hold partials.
    with_partials: BTreeSet<RelPath>,
}

impl<'a, S: ServiceStub, T: ServiceStub> Mover<'a, S, T> {
    /// A move over claimed ground.
    pub fn new(
        sources: &'a [Source<S>],
        target: &'a Target<T>,
        ground: &'a Ground,
        options: &'a MoveOptions,
        observer: &'a dyn Fn(Event<'_>),
    ) -> Self {
        Self {
            feed: Feed::new(sources, options, ground),
            ground,
            work: Work::new(Shared::new(sources, target, ground, options, observer)),
            refused: None,
            excluded: None,
            troubles: Troubles::new(),
            empty: None,
            with_partials: BTreeSet::new(),
        }
    }

    /// Moves everything; what is under way comes to its end whatever happens. Once nothing is listed any more, `all_listed` is carried out
    /// beside.
    pub async fn run(mut self, all_listed: impl Future<Output = ()>) -> MoveReport {
        let fed = self.feed_all().await;
        join(self.work.end(fed.is_ok()), all_listed).await;
        if let Err(error) = fed {
            self.work.shared.report.borrow_mut().stopped = Some(Stop::Move(error));
        }
        if self.with_partials.contains(&RelPath::root()) {
            self.work.shared.remove_orphans(&RelPath::root()).await;
        }
        self.work.shared.report.take()
    }

    async fn feed_all(&mut self) -> Result<(), MoveError> {
        if let Some(claim) = &self.ground.target_claim {
            self.empty = claim.swept.is_empty.then(RelPath::root);
            self.take_swept(RelPath::root(), claim.swept.clone())?;
        }
        while !self.work.shared.has_stopped() {
            let page = self.work.run_while(self.feed.next_page()).await?;
            for (dir, mut troubles) in page.troubles {
                troubles.retain(|(path, _)| !self.work.shared.options.filter.excludes(path, false));
                self.troubles.entry(dir).or_default().append(&mut troubles);
            }
            let wanted = self.take_wanted(page.found);
            if !wanted.is_empty() && self.work.shared.is_stopped() {
                break;
            }
            self.deal_with(wanted).await?;
            if page.is_last {
                break;
            }
        }
        // What is left is in directories that were refused, or excluded.
        let dirs: Vec<_> = self
            .troubles
            .keys()
            .filter(|dir| !self.is_excluded(dir))
            .cloned()
            .collect();
        for dir in dirs {
            self.say_troubles(&dir);
        }
        Ok(())
    }

    /// Leaves out what is excluded.
    fn take_wanted(&mut self, found: Vec<Found>) -> Vec<Found> {
        let filter = &self.work.shared.options.filter;
        let mut wanted = Vec::with_capacity(found.len());
        for found in found {
            if self.excluded.as_ref().is_some_and(|dir| found.to.is_within(dir)) {
                continue;
            }
            if filter.excludes(&found.to, found.is_dir()) {
                if found.is_dir() {
                    self.feed.skip_below(&found.to);
                    self.excluded = Some(found.to.clone());
                }
                self.work.shared.report.borrow_mut().excluded += 1;
                // Not to be dealt with, but its directory has to know.
                wanted.push(Found {
                    entries: Vec::new(),
                    ..found
                });
            } else {
                wanted.push(found);
            }
        }
        wanted
    }

    async fn deal_with(&mut self, found: Vec<Found>) -> Result<(), MoveError> {
        let states = self.states_at_target(&found).await?;
        let steps: Vec<_> = found
            .iter()
            .zip(states)
            .map(|(found, state)| self.decide(found, state))
            .collect();
        self.sweep_existing(&found, &steps).await?;
        self.make_dirs(&found, &steps).await;
        let known: Vec<_> = self
            .troubles
            .keys()
            .filter(|dir| self.work.tree.contains(dir))
            .cloned()
            .collect();
        for dir in known {
            self.say_troubles(&dir);
        }
        for (found, step) in found.into_iter().zip(steps) {
            if self.work.shared.is_stopped() {
                return Ok(());
            }
            self.work.listing_at(&found.to);
            if found.entries.is_empty() {
                self.work.tree.keeps(&found.to);
                continue;
            }
            let is_refused = self.refused.as_ref().is_some_and(|dir| found.to.is_within(dir));
            if is_refused || self.work.shared.is_below_unmade(&found.to) {
                self.refuse(found, Reason::DirFailed.into());
                continue;
            }
            match step {
                Ok(Step::MakeDir | Step::EnterDir) => {
                    let path = found.to.clone();
                    if step == Ok(Step::MakeDir) && !self.is_known_absent(&path) {
                        self.empty = Some(path.clone());
                    }
                    self.enter_dir(found);
                    self.say_troubles(&path);
                }
                Ok(Step::Leave(reason)) => self.refuse(found, reason.into()),
                Err(error) => self.refuse(found, Why::Target(error)),
                Ok(Step::Copy(expected)) => self.queue(found, expected, false).await,
                Ok(Step::Compare(expected)) => self.queue(found, expected, true).await,
            }
        }
        Ok(())
    }

    fn decide(&self, found: &Found, state: Answer<Option<Entry>>) -> Answer<Step> {
        let Some((_, first)) = found.entries.first() else {
            return Ok(Step::Leave(Reason::DirFailed));
        };
        if found.collides() {
            return Ok(Step::Leave(Reason::Collision));
        }
        let state = state?;
        for (source, entry) in &found.entries {
            let in_place = self.ground.same_dir[*source] && entry.path == found.to;
            let step = plan::step(entry, state.as_ref(), self.ground.one_host);
            if in_place || step == Step::Leave(Reason::Same) {
                return Ok(Step::Leave(Reason::Same));
            }
        }
        Ok(plan::step(first, state.as_ref(), self.ground.one_host))
    }

    /// Whether `dir` or a directory above it is left alone by option.
    fn is_excluded(&self, dir: &RelPath) -> bool {
        let above = std::iter::successors(Some(dir.clone()), RelPath::parent);
        above
            .filter(|dir| !dir.is_root())
            .any(|dir| self.work.shared.options.filter.excludes(&dir, true))
    }

    fn say_troubles(&mut self, dir: &RelPath) {
        for (path, why) in self.troubles.remove(dir).unwrap_or_default() {
            self.work.tree.stays(&path);
            self.work.shared.leave(&path, why);
        }
    }

    /// Leaves an entry; what is below it, if it is a directory, is left too.
    fn refuse(&mut self, found: Found, why: Why) {
        self.work.tree.stays(&found.to);
        self.work.shared.leave(&found.to, why);
        // A collision may be of a file with a directory.
        let has_dir = found.entries.iter().any(|(_, entry)| entry.kind == Kind::Dir);
        if has_dir && !self.refused.as_ref().is_some_and(|dir| found.to.is_within(dir)) {
            self.refused = Some(found.to);
        }
    }

    fn enter_dir(&mut self, found: Found) {
        let options = self.work.shared.options;
        let Some((_, entry)) = found.entries.first() else {
            return;
        };
        let is_anothers = |(_, entry): &(usize, Entry)| self.work.shared.is_anothers(entry);
        let job = DirJob {
            to: found.to.clone(),
            meta: plan::meta(entry),
            sources: found
                .entries
                .iter()
                .map(|(source, entry)| (*source, entry.path.clone()))
                .collect(),
            stays: options.keep_dirs || options.copy,
            uncarried: Uncarried {
                owner: found.entries.iter().any(is_anothers),
                ..found.uncarried
            },
            is_complete: true,
            has_partials: self.with_partials.remove(&found.to),
        };
        self.work.tree.enter(found.to, job);
    }

    async fn queue(&mut self, found: Found, expected: Expected, compare: bool) {
        let Some((source, entry)) = found.entries.into_iter().next() else {
            return;
        };
        self.work.shared.found(&entry);
        let has_partial = self.may_have_partials(&found.to.parent().unwrap_or_default());
        let item = Item {
            source,
            entry,
            to: found.to,
            expected,
            has_partial,
        };
        self.work.queue(item, compare).await;
    }

    /// Whether there may be partials in a directory of the target that is being gone through.
    fn may_have_partials(&self, dir: &RelPath) -> bool {
        self.with_partials.contains(dir) || self.work.tree.get(dir).is_some_and(|job| job.has_partials)
    }

    /// What the target has at each path, asked of it where that is not known.
    async fn states_at_target(&mut self, found: &[Found]) -> Result<Vec<Answer<Option<Entry>>>, MoveError> {
        let is_known = |found: &&Found| !self.is_known_absent(&found.to);
        let asked: Vec<_> = found.iter().filter(is_known).map(|found| found.to.clone()).collect();
        let Some(dir) = self.work.shared.target.dir.clone().filter(|_| !asked.is_empty()) else {
            return Ok(vec![Ok(None); found.len()]);
        };
        let count = asked.len();
        let service = self.work.shared.target.service.clone();
        let states = self
            .work
            .run_while(flat(service.stat(calls::context(), dir, asked.into(), false)))
            .await;
        let states = states.and_then(|states| calls::check_count(states, count));
        let mut states = states
            .map_err(|error| MoveError::Side(Side::Target, error))?
            .into_iter();
        let state = |found: &Found| match self.is_known_absent(&found.to) {
            true => Ok(None),
            false => states.next().unwrap_or(Err(ServiceError::Internal)),
        };
        Ok(found.iter().map(state).collect())
    }

    fn is_known_absent(&self, path: &RelPath) -> bool {
        self.empty.as_ref().is_some_and(|dir| path.is_within(dir))
    }

    /// Begins to make the directories that the target has not, once those of the page before are made.
    async fn make_dirs(&mut self, found: &[Found], steps: &[Answer<Step>]) {
        let new = found.iter().zip(steps).filter(|(_, step)| **step == Ok(Step::MakeDir));
        let dir_meta = |found: &Found| {
            Some(DirMeta {
                path: found.to.clone(),
                meta: plan::meta(&found.entries.first()?.1),
                is_complete: false,
            })
        };
        let dirs: Vec<_> = new.filter_map(|(found, _)| dir_meta(found)).collect();
        let shared = self.work.shared.clone();
        if !dirs.is_empty() && !shared.options.dry_run {
            self.work.run_while(shared.dirs_made()).await;
            self.work.begin_make_dirs(dirs);
        }
    }

    /// Looks through directories of the target before anything arrives in them.
    async fn sweep_existing(&mut self, found: &[Found], steps: &[Answer<Step>]) -> Result<(), MoveError> {
        let there = found
            .iter()
            .zip(steps)
            .filter(|(found, step)| !found.entries.is_empty() && **step == Ok(Step::EnterDir));
        let dirs: Vec<_> = there.map(|(found, _)| found.to.clone()).collect();
        self.sweep(dirs).await
    }

    async fn sweep(&mut self, dirs: Vec<RelPath>) -> Result<(), MoveError> {
        let target = self.work.shared.target;
        let Some(id) = target.dir.clone().filter(|_| !self.work.shared.options.dry_run) else {
            return Ok(());
        };
        let sweeps = stream::iter(dirs.clone())
            .map(|dir| flat(target.service.sweep(calls::context(), id.clone(), dir)))
            .buffered(SWEEPS_AT_ONCE)
            .collect::<Vec<_>>();
        let swept = self.work.run_while(sweeps).await;
        for (dir, swept) in dirs.into_iter().zip(swept) {
            match swept {
                // What can't be looked through shows again, with its error, when something is put there.
                Err(_) => drop(self.with_partials.insert(dir)),
                Ok(swept) => self.take_swept(dir, swept)?,
            }
        }
        Ok(())
    }

    fn take_swept(&mut self, dir: RelPath, swept: Swept) -> Result<(), MoveError> {
        // Single files may go to another name in their own directory, if that is sure to be what is met.
        let may_meet = dir.is_root() && self.ground.all_in_target();
        if !may_meet && swept.tokens.iter().any(|token| self.ground.is_source_token(token)) {
            return Err(MoveError::Nested(None, Nesting::SourceInside));
        }
        for leftover in swept.leftovers {
            if let Ok(path) = dir.join(&leftover) {
                self.work
                    .shared
                    .leave(&path, Why::Target(ServiceError::Leftover(leftover)));
            }
        }
        if swept.partials > 0 {
            self.with_partials.insert(dir);
        }
        Ok(())
    }
}
