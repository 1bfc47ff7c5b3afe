//! Directories, once everything in them has been dealt with.

use super::{
    ServiceStub, Shared, Why,
    calls::{self, flat},
};
use crate::{
    model::{RelPath, Uncarried},
    plan::{Outcome, Reason},
    service::{DirMeta, Meta, ServiceError},
};

/// A directory to be finished.
#[derive(Debug)]
pub struct DirJob {
    /// Its path at the target.
    pub to: RelPath,
    /// Its final mode and mtime.
    pub meta: Meta,
    /// Which sources have it, and where.
    pub sources: Vec<(usize, RelPath)>,
    /// What would be lost of it.
    pub uncarried: Uncarried,
    /// Whether it stays at the source.
    pub stays: bool,
    /// Whether everything in it has arrived, but what was left alone by option.
    pub is_complete: bool,
    /// Whether there may have been partials in it before.
    pub has_partials: bool,
}

impl<S: ServiceStub, T: ServiceStub> Shared<'_, S, T> {
    /// Makes directories at the target. What belongs below one that could not be made stays.
    pub(super) async fn make_dirs(&self, dirs: Vec<DirMeta>) {
        let paths: Vec<_> = dirs.iter().map(|dir| dir.path.clone()).collect();
        let made = match self.target.dir.clone() {
            Some(target) => flat(self.target.service.make_dirs(calls::context(), target, dirs.into())).await,
            None => Err(ServiceError::NotFound),
        };
        let count = paths.len();
        for (path, made) in paths.into_iter().zip(calls::for_each(made, count)) {
            if let Err(error) = made {
                self.leave(&path, self.refused_at_target(&path, error));
                self.unmade.borrow_mut().insert(path);
            }
        }
        self.making.set(false);
        self.made.notify_waiters();
    }

    /// Waits until the directories being made are there, or known to fail.
    pub(super) async fn dirs_made(&self) {
        while self.making.get() {
            self.made.notified().await;
        }
    }

    /// Whether `path` is in a directory of the target that could not be made.
    pub(super) fn is_below_unmade(&self, path: &RelPath) -> bool {
        let unmade = self.unmade.borrow();
        !unmade.is_empty() && std::iter::successors(path.parent(), RelPath::parent).any(|dir| unmade.contains(&dir))
    }

    /// Why the target did not take what was to go to `path`.
    pub(super) fn refused_at_target(&self, path: &RelPath, error: ServiceError) -> Why {
        if self.is_below_unmade(path) {
            Reason::DirFailed.into()
        } else {
            Why::Target(error)
        }
    }

    /// Gives directories of the target their mode and mtime, then removes those of the source.
    pub(super) async fn finish_dirs(&self, dirs: Vec<DirJob>) -> Vec<(RelPath, Outcome)> {
        let Some(target_dir) = self.target.dir.clone() else {
            return Vec::new();
        };
        self.dirs_made().await;
        let (mut dirs, unmade): (Vec<_>, Vec<_>) = dirs
            .into_iter()
            .partition(|dir| !self.unmade.borrow().contains(&dir.to));
        let mut outcomes: Vec<_> = unmade.into_iter().map(|dir| (dir.to, Outcome::Stays)).collect();
        for dir in dirs.iter().filter(|dir| dir.has_partials) {
            self.remove_orphans(&dir.to).await;
        }
        for dir in dirs.iter_mut().filter(|dir| !dir.stays || self.options.copy) {
            if let Err(reason) = self.check_losses(&dir.to, &dir.uncarried) {
                self.leave(&dir.to, reason.into());
                dir.stays = true;
            }
        }
        let metas = dirs
            .iter()
            .map(|dir| DirMeta {
                path: dir.to.clone(),
                meta: dir.meta,
                is_complete: dir.is_complete,
            })
            .collect();
        let finished = flat(self.target.service.finish_dirs(calls::context(), target_dir, metas)).await;
        let mut removable = vec![Vec::new(); self.sources.len()];
        for (dir, finished) in dirs.iter().zip(calls::for_each(finished, dirs.len())) {
            match finished {
                Err(error) => {
                    self.leave(&dir.to, Why::Target(error));
                    outcomes.push((dir.to.clone(), Outcome::Stays));
                }
                Ok(()) if dir.stays => {
                    let outcome = if dir.is_complete { Outcome::Kept } else { Outcome::Stays };
                    outcomes.push((dir.to.clone(), outcome));
                }
                Ok(()) => {
                    for (source, path) in &dir.sources {
                        removable[*source].push((dir.to.clone(), path.clone()));
                    }
                    outcomes.push((dir.to.clone(), Outcome::Gone));
                }
            }
        }
        for (source, dirs) in removable.into_iter().enumerate() {
            for to in self.remove_dirs(source, dirs).await {
                outcomes
                    .iter_mut()
                    .filter(|(path, _)| *path == to)
                    .for_each(|(_, outcome)| *outcome = Outcome::Stays);
            }
        }
        outcomes
    }

    /// Removes directories of a source; those that stay.
    async fn remove_dirs(&self, source: usize, dirs: Vec<(RelPath, RelPath)>) -> Vec<RelPath> {
        if dirs.is_empty() {
            return Vec::new();
        }
        let paths = dirs.iter().map(|(_, path)| path.clone()).collect();
        let source = &self.sources[source];
        let removed = flat(source.service.remove_dirs(calls::context(), source.dir.clone(), paths)).await;
        let mut stay = Vec::new();
        for ((to, _), removed) in dirs.iter().zip(calls::for_each(removed, dirs.len())) {
            match removed {
                Ok(()) => self.report.borrow_mut().dirs_removed += 1,
                Err(error) => {
                    self.leave(to, Why::Source(error));
                    stay.push(to.clone());
                }
            }
        }
        stay
    }

    /// Removes what nobody continued in a directory of the target. It was of no use before, so a failure is
    /// none of the move.
    pub(super) async fn remove_orphans(&self, path: &RelPath) {
        let Some(dir) = self.target.dir.clone() else { return };
        if let Ok(removed) = flat(self.target.service.remove_orphans(calls::context(), dir, path.clone())).await {
            self.report.borrow_mut().orphans_removed += removed;
        }
    }
}
