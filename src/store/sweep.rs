//! What earlier runs left in a directory of the target.

use std::io;

use rustix::io::Errno;

use super::{
    Store, ignore_missing, is_any, names,
    names::NameKind,
    partial::{Locked, lock_named},
    publish::{is_still_leased, lease, lock, tag},
    source::is_older,
};
use crate::{
    fs::{Dir, File, Fs, Lock, Metadata},
    model::{Kind, Name, RelPath, Timestamp},
    planted::{Bug, planted},
    service::{Answer, ServiceError, Swept},
};

/// How many marks of runs, and how many left-overs, one look at a directory tells of: they go in one answer.
const NAMES_MAX: usize = 1000;

impl<F: Fs> Store<F> {
    /// Looks through the directory at `path` before files arrive in it: see [`Swept`].
    pub async fn sweep(&self, path: &RelPath) -> Answer<Swept> {
        let dir = self.open_dir(path).await?;
        let (names, is_empty) = names_of_interest(&dir)
            .await
            .map_err(|e| ServiceError::io("read the directory", &e))?;
        let mut swept = Swept {
            is_empty,
            ..Swept::default()
        };
        for name in names {
            match names::classify(&name) {
                NameKind::Token => swept.tokens.push(name),
                NameKind::Partial => swept.partials += 1,
                NameKind::Probe => remove_probe(&dir, &name).await,
                NameKind::Unsynced => self.heed_unsynced(&dir, path, &name).await?,
                NameKind::Swap(swap) => match self.resolve_swap(&dir, &name, &swap).await {
                    // It may have become one.
                    Ok(true) => swept.partials += 1,
                    // What could not be looked at may be somebody's as well.
                    Ok(false) | Err(_) => swept.leftovers.push(name),
                },
                NameKind::Plain if planted(Bug::SweepUnknown) => dir.unlink(&name).await.unwrap_or_default(),
                _ => {}
            }
        }
        for names in [&mut swept.tokens, &mut swept.leftovers] {
            // A live run's mark among so many dead ones is not looked for.
            names.truncate(NAMES_MAX);
        }
        Ok(swept)
    }

    /// Nothing more is confirmed on this root when a sync of the directory has failed since the kernel started: what this process syncs
    /// again may be missing on the disk all the same.
    async fn heed_unsynced(&self, dir: &F::Dir, path: &RelPath, mark: &Name) -> Answer<()> {
        if *mark != names::unsynced(&self.inner.boot) {
            // What was missing is seen to be missing by now.
            return remove_mark(dir, mark).await.map_err(|e| ServiceError::io("remove", &e));
        }
        let mark = path.join(mark).unwrap_or_default();
        let text = format!(
            "in an earlier run, so what is seen there may not be on the disk: unmount and mount that file system again, or reboot, and then \
             remove {mark}"
        );
        // Only the first failure is kept.
        let _first = self.inner.failed_sync.0.get_or_init(|| text);
        self.ensure_safe()
    }

    /// Puts right what a crash left of a replacement. False when the file may be somebody's and is left alone.
    async fn resolve_swap(&self, dir: &F::Dir, left: &Name, swap: &names::Swap) -> Answer<bool> {
        let name = match &swap.name {
            Some(name) => name.clone(),
            None => {
                let names = dir
                    .names()
                    .await
                    .map_err(|e| ServiceError::io("read the directory", &e))?;
                let Some(name) = names.into_iter().find(|name| swap.is_of(name)) else {
                    return Ok(false);
                };
                name
            }
        };
        let aside = dir.stat(left).await;
        let left_tag = tag_of(dir, left, &aside).await;
        let final_tag = tag_of(dir, &name, &dir.stat(&name).await).await;
        match aside {
            Ok(_) if left_tag.as_ref() == Some(&swap.replaced) && final_tag.is_some() => {
                remove_replaced(dir, left, &name, &swap.replaced).await
            }
            // The old one still has its name, so this is the partial.
            Ok(aside) if final_tag.as_ref() == Some(&swap.replaced) => {
                self.back_to_partial(dir, left, &aside, &name).await
            }
            // Unless a run is seen to be at it just now.
            Ok(_) => match dir.open(left).await {
                Ok(file) => Ok(lock(&file, Lock::Exclusive).await.is_err()),
                Err(error) => Ok(error.kind() == io::ErrorKind::NotFound),
            },
            Err(error) => Ok(error.kind() == io::ErrorKind::NotFound),
        }
    }

    /// What is `left`, and was `aside`, becomes the partial of `name` again, to be continued, unless a run is at it just now. False when it may be somebody's.
    async fn back_to_partial(&self, dir: &F::Dir, left: &Name, aside: &Metadata, name: &Name) -> Answer<bool> {
        if is_locked(dir, left).await {
            return Ok(true);
        }
        let is_link = aside.kind == Kind::Symlink;
        // A run that took this one for a live one's may have begun another.
        let part = match is_link {
            true => {
                let part = names::link_partial(name);
                if dir.stat(&part).await.is_ok_and(|found| found.kind == Kind::Symlink) {
                    ignore_missing(dir.unlink(&part).await).map_err(|e| ServiceError::io("remove", &e))?;
                }
                part
            }
            false => {
                self.remove_partial(dir, name, None).await?;
                names::partial(name)
            }
        };
        if self.put_back(dir, left, dir, &part).await.is_err() {
            return Ok(false);
        }
        match dir.stat(&part).await {
            Ok(moved) if aside.version.is_same_inode(&moved.version) => {}
            Ok(_) => {
                // A run with a link, which can't be locked, has swapped somebody's file out just now.
                self.put_back(dir, &part, dir, left).await.ok();
                return Ok(false);
            }
            // Another run has gone on with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            // What is told is where it was.
            Err(_) => {
                self.put_back(dir, &part, dir, left).await.ok();
                return Ok(false);
            }
        }
        if is_link {
            // There is nothing in a link to continue. (A run that is at it finds that out.)
            dir.unlink(&part).await.ok();
        }
        Ok(true)
    }

    /// Removes partials in the directory at `path` that nobody has open and nobody wrote to for long.
    /// How many went.
    pub async fn remove_orphans(&self, path: &RelPath, wall: Timestamp) -> Answer<u64> {
        let dir = self.open_dir(path).await?;
        let mut removed = 0;
        for name in dir
            .names_beginning(b'.')
            .await
            .map_err(|e| ServiceError::io("read the directory", &e))?
        {
            if names::classify(&name) != NameKind::Partial {
                continue;
            }
            // The ctime: the mtime may be the source's already.
            let is_old = |found: &Metadata| is_older(found.version.ctime, self.inner.limits.orphan_age, wall);
            // One that is being written is not opened: who writes it would see somebody else.
            let Ok(found) = dir.stat(&name).await else { continue };
            if !is_old(&found) {
                continue;
            }
            if found.kind == Kind::Symlink {
                ignore_missing(dir.unlink(&name).await).map_err(|e| ServiceError::io("remove", &e))?;
                removed += 1;
                continue;
            }
            // What can't be opened or is in use is no orphan to be judged here.
            let Ok(file) = dir.open(&name).await else { continue };
            let Ok(metadata) = file.metadata().await else { continue };
            if is_old(&metadata) && matches!(lock_named(&dir, &name, &file).await?, Locked::Yes(_)) {
                self.let_go(&metadata.version);
                ignore_missing(dir.unlink(&name).await).map_err(|e| ServiceError::io("remove", &e))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Removes what is `left` of a replacement, told by `replaced`, once `name` has another, unless a run is at it just now. False when somebody may be
/// writing to it, and when it is another by now.
async fn remove_replaced<D: Dir>(dir: &D, left: &Name, name: &Name, replaced: &names::Tag) -> Answer<bool> {
    let file = match dir.open(left).await {
        Ok(file) => Some(file),
        // A link.
        Err(error) if is_any(&error, &[Errno::LOOP]) => None,
        // A run may hold it, or have put it right; of what may not be read that can't be told.
        Err(error) => return Ok(!is_any(&error, &[Errno::ACCESS])),
    };
    let is_held = match &file {
        // Who replaces it holds it by a shared lock.
        Some(file) => lock(file, Lock::Exclusive).await.is_err(),
        None => false,
    };
    if is_held || is_locked(dir, name).await {
        return Ok(true);
    }
    // Who is writing to it would lose that.
    let is_leased = match &file {
        Some(file) => lease(file).await?,
        None => false,
    };
    // Nor has anybody begun to until now, nor put another there.
    let now = dir.stat(left).await;
    if now.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(true);
    }
    if tag_of(dir, left, &now).await.as_ref() != Some(replaced)
        || !is_still_leased(file.as_ref().filter(|_| is_leased)).await?
    {
        return Ok(false);
    }
    ignore_missing(dir.unlink(left).await).map_err(|e| ServiceError::io("remove the old", &e))?;
    Ok(true)
}

/// What tells what was `found` under `name`, if anything was.
async fn tag_of<D: Dir>(dir: &D, name: &Name, found: &io::Result<Metadata>) -> Option<names::Tag> {
    match found {
        Ok(found) => tag(dir, name, found).await.ok(),
        Err(_) => None,
    }
}

/// Removes the mark of a failed sync, which is empty: whatever else has such a name is somebody's.
pub(super) async fn remove_mark<D: Dir>(dir: &D, mark: &Name) -> io::Result<()> {
    match dir.stat(mark).await {
        Ok(found) if found.kind == Kind::File && found.version.size == 0 => ignore_missing(dir.unlink(mark).await),
        looked => ignore_missing(looked.map(drop)),
    }
}

/// The names in `dir` that may be ours, and whether all of them are.
async fn names_of_interest<D: Dir>(dir: &D) -> io::Result<(Vec<Name>, bool)> {
    // All names of a directory larger than this are too many to be kept at once; it would have to be one that many were removed from.
    const SMALL_BYTES: u64 = 64 << 10;
    if dir.metadata().await?.version.size > SMALL_BYTES {
        return Ok((dir.names_beginning(b'.').await?, false));
    }
    let mut names = dir.names().await?;
    let is_empty = names.iter().all(|name| names::classify(name) != NameKind::Plain);
    names.retain(|name| name.as_bytes().first() == Some(&b'.') || planted(Bug::SweepUnknown));
    Ok((names, is_empty))
}

/// A run that just asks does not need the name any more. What has content is somebody's.
pub(super) async fn remove_probe<D: Dir>(dir: &D, name: &Name) {
    if dir
        .stat(name)
        .await
        .is_ok_and(|found| found.kind == Kind::File && found.version.size == 0)
    {
        // The next run sees it again.
        dir.unlink(name).await.unwrap_or_default();
    }
}

/// Whether another run may hold what is at `name`. Asked by a lock that others may ask by as well.
async fn is_locked<D: Dir>(dir: &D, name: &Name) -> bool {
    match dir.open(name).await {
        Ok(file) => lock(&file, Lock::Shared).await.is_err(),
        // A link, or nothing: no run can hold it. What can't be looked at may be held.
        Err(error) => error.kind() != io::ErrorKind::NotFound && !is_any(&error, &[Errno::LOOP]),
    }
}
