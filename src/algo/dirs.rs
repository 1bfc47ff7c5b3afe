//! Directories, once everything in them has been dealt with.

use super::{
    ServiceStub, Shared, Why,
    calls::{self, flat},
};
use crate::{
    model::RelPath,
    plan::Outcome,
    service::{DirMeta, Meta},
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
    /// Whether it stays at the source.
    pub stays: bool,
    /// Whether everything in it has arrived, but what was left alone by option.
    pub is_complete: bool,
    /// Whether partials were seen in it before.
    pub has_partials: bool,
}

impl<S: ServiceStub, T: ServiceStub> Shared<'_, S, T> {
    /// Gives directories of the target their mode and mtime, then removes those of the source.
    pub(super) async fn finish_dirs(&self, dirs: Vec<DirJob>) -> Vec<(RelPath, Outcome)> {
        let Some(target_dir) = self.target.dir.clone() else {
            return Vec::new();
        };
        for dir in dirs.iter().filter(|dir| dir.has_partials) {
            self.remove_orphans(&dir.to).await;
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
        let mut outcomes = Vec::with_capacity(dirs.len());
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
