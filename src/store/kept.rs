//! Partials that nobody writes to for now, kept open: who wrote what is in them knows its hashes, so that the move that goes on with one reads
//! nothing again.
//!
//! The descriptor is the one of the first write, so the sync before the final name still tells of every write-back that failed meanwhile, and
//! what nobody has written to since is what was written. That nobody has is told by the version: its mtime is one that no clock gives. The lock is
//! given up, for another process may go on with the file instead. A process that ends remembers nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    Store,
    partial::{Locked, Partial, Seclusion, lock_named, seclude, written_elsewhere},
};
use crate::{
    digest::ChunkHash,
    fs::{Dir, File, Fs, Sight},
    limits::Limits,
    model::{Name, Timestamp, Version},
    planted::{Bug, planted},
    service::Answer,
};

/// What is known of the chunks of a partial. What two wrote at a time, or was not written whole, is not known.
pub(super) struct Remembered {
    chunks: BTreeMap<u64, Chunk>,
    /// Whether nothing more may be added: of what is not there it is not known whether it is being written.
    is_full: bool,
    /// How many chunks all of a store's partials remember.
    total: Arc<AtomicUsize>,
    total_max: usize,
}

enum Chunk {
    Is(ChunkHash),
    Written { by: u32, by_one_alone: bool },
    Unknown,
}

impl Remembered {
    /// A write to chunk `index` begins. Whether this process may have written to it before.
    pub fn begin(&mut self, index: u64) -> bool {
        let was_there = self.chunks.contains_key(&index);
        // Not known to be there: another may have been forgotten, or never remembered.
        let Some(chunk) = self.entry(index) else { return true };
        *chunk = match chunk {
            Chunk::Written { by, .. } => Chunk::Written {
                by: *by + 1,
                by_one_alone: false,
            },
            Chunk::Is(_) | Chunk::Unknown => Chunk::Written {
                by: 1,
                by_one_alone: true,
            },
        };
        was_there
    }

    /// A write to chunk `index` has ended, whole if there is a `hash`.
    pub fn end(&mut self, index: u64, hash: Option<ChunkHash>) {
        let Some(chunk) = self.chunks.get_mut(&index) else {
            return;
        };
        *chunk = match (&chunk, hash) {
            (
                Chunk::Written {
                    by: 1,
                    by_one_alone: true,
                },
                Some(hash),
            ) => Chunk::Is(hash),
            (Chunk::Written { by, .. }, _) if *by > 1 => Chunk::Written {
                by: *by - 1,
                by_one_alone: false,
            },
            _ => Chunk::Unknown,
        };
    }

    /// Chunk `index` was read, and nobody was known to write to it before.
    pub fn read(&mut self, index: u64, hash: ChunkHash) {
        if !self.chunks.contains_key(&index)
            && let Some(chunk) = self.entry(index)
        {
            *chunk = Chunk::Is(hash);
        }
    }

    pub fn get(&self, index: u64) -> Option<ChunkHash> {
        match self.chunks.get(&index)? {
            Chunk::Is(hash) => Some(*hash),
            Chunk::Written { .. } | Chunk::Unknown => None,
        }
    }

    /// Nothing is known any more, nor will be.
    pub fn forget(&mut self) {
        self.total.fetch_sub(self.chunks.len(), Ordering::Relaxed);
        self.chunks.clear();
        self.is_full = true;
    }

    fn entry(&mut self, index: u64) -> Option<&mut Chunk> {
        if !self.is_full && !self.chunks.contains_key(&index) {
            if self.total.fetch_add(1, Ordering::Relaxed) < self.total_max {
                self.chunks.insert(index, Chunk::Unknown);
            } else {
                self.total.fetch_sub(1, Ordering::Relaxed);
                self.is_full = true;
            }
        }
        self.chunks.get_mut(&index)
    }
}

impl Drop for Remembered {
    fn drop(&mut self) {
        self.forget();
    }
}

/// A partial that is kept open.
struct Kept<F: Fs> {
    file: F::File,
    /// As it was left.
    version: Version,
    /// Bytes that it shall have: a chunk's hash depends on it.
    size: u64,
    remembered: Remembered,
    /// When it was first seen by [`Keeping::tidy`].
    seen: Option<Duration>,
}

/// The partials that are kept open of a root and those below it.
pub(super) struct Keeping<F: Fs> {
    /// The oldest first.
    kept: Mutex<VecDeque<Kept<F>>>,
    /// Partials that are given up and not kept yet: who takes the lock of one must see that it will be.
    given_up: Mutex<Vec<Version>>,
    /// How many there have been.
    count: AtomicU64,
    total: Arc<AtomicUsize>,
}

impl<F: Fs> Default for Keeping<F> {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            given_up: Mutex::default(),
            count: AtomicU64::new(0),
            total: Arc::default(),
        }
    }
}

impl<F: Fs> Keeping<F> {
    pub fn remember(&self, limits: &Limits) -> Remembered {
        Remembered {
            chunks: BTreeMap::new(),
            is_full: false,
            total: self.total.clone(),
            total_max: limits.hashes_remembered,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept<F>>> {
        // Nothing panics while it is held.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn given_up(&self) -> MutexGuard<'_, Vec<Version>> {
        // Nothing panics while it is held.
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partial `version` is given up, until what this gives is dropped.
    fn give_up(&self, version: Version) -> GivenUp<'_, F> {
        self.given_up().push(version);
        GivenUp(self, version)
    }

    /// What is kept that `is_it`, no more from now on.
    fn take_if(&self, is_it: impl FnMut(&Kept<F>) -> bool) -> Option<Kept<F>> {
        let mut all = self.lock();
        let at = all.iter().position(is_it)?;
        all.remove(at)
    }

    /// An mtime that no clock gives, nor another call of this: that of `version` in another nanosecond.
    fn mark(&self, version: &Version) -> Timestamp {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let drawn = blake3::hash(format!("{count} {version:?}").as_bytes());
        let [a, b, c, d, ..] = *drawn.as_bytes();
        Timestamp {
            nanos: u32::from_le_bytes([a, b, c, d]) % 1_000_000_000,
            ..version.mtime
        }
    }
}

struct GivenUp<'a, F: Fs>(&'a Keeping<F>, Version);

impl<F: Fs> Drop for GivenUp<'_, F> {
    fn drop(&mut self) {
        self.0.given_up().retain(|version| *version != self.1);
    }
}

impl<F: Fs> Store<F> {
    /// Keeps what a move has left unfinished open, where it is still a partial and something is known of it. Nobody may be at work on it, and nobody
    /// will be with this handle.
    pub async fn keep(&self, partial: &Partial<F>) {
        let Some(remembered) = partial.retire().filter(|remembered| !remembered.chunks.is_empty()) else {
            return;
        };
        let file = partial.file.clone();
        let Some(version) = self.mark_kept(partial, &file).await else {
            return;
        };
        let _given_up = self.inner.keeping.give_up(version);
        if file.unlock().await.is_err() {
            return;
        }
        let kept = Kept {
            file,
            version,
            size: partial.size(),
            remembered,
            seen: None,
        };
        // Closed outside of the lock.
        let _oldest = {
            let mut all = self.inner.keeping.lock();
            all.push_back(kept);
            let count = all.len().saturating_sub(self.inner.limits.partials_kept);
            all.drain(..count).collect::<Vec<_>>()
        };
    }

    async fn mark_kept(&self, partial: &Partial<F>, file: &F::File) -> Option<Version> {
        self.ensure_safe().ok()?;
        // Whoever goes on with it must be seen.
        if file.sight().await.ok()? < Sight::All {
            return None;
        }
        let (dir, part) = partial.place();
        let found = match lock_named(dir, part, file).await {
            Ok(Locked::Yes(found)) if found.links == 1 => found.version,
            _ => return None,
        };
        let mark = self.inner.keeping.mark(&found);
        file.set_meta(0o600, mark).await.ok()?;
        let marked = file.metadata().await.ok()?.version;
        // Nobody else has written to it until now, whose version the mark would hide.
        if !partial.is_secluded().await.ok()? {
            return None;
        }
        // Some file systems know no nanoseconds.
        (marked.mtime == mark && marked.size == found.size).then_some(marked)
    }

    /// The partial `part` of a file of `size` bytes, locked, if it was kept open and nobody has written to it since; its length. `Busy` when somebody
    /// has it locked: it stays kept.
    pub(super) async fn take_kept(
        &self,
        dir: &F::Dir,
        part: &Name,
        size: u64,
    ) -> Answer<Option<(F::File, Seclusion, u64, Remembered)>> {
        let Ok(found) = dir.stat(part).await else {
            return Ok(None);
        };
        let keeping = &self.inner.keeping;
        // It is kept until the lock is had, so that whoever else looks sees it.
        let seen = {
            let all = keeping.lock();
            let kept = all.iter().find(|kept| kept.version.is_same_inode(&found.version));
            kept.map(|kept| (kept.file.clone(), kept.version))
        };
        let Some((file, version)) = seen else { return Ok(None) };
        let locked = lock_named(dir, part, &file).await;
        if matches!(locked, Ok(Locked::ByOther)) {
            return Err(written_elsewhere());
        }
        let Some(kept) = keeping.take_if(|kept| kept.version == version) else {
            // Taken by another call meanwhile, which has this descriptor, and so the lock too.
            return Err(written_elsewhere());
        };
        let Ok(Locked::Yes(_)) = locked else { return Ok(None) };
        // Nobody has opened it since it was left, or else its times tell of all that they did. A lease that is held is not taken anew: who opens it
        // just now would not be seen.
        let is_held = kept.file.lease_held().await.unwrap_or(false);
        let is_told = is_held || kept.file.sight().await.is_ok_and(|sight| sight == Sight::AllByCtime);
        // Before its version is looked at.
        let seclusion = match is_held {
            true => Seclusion::Leased,
            false => seclude(&kept.file).await,
        };
        let Ok(now) = kept.file.metadata().await else {
            return Ok(None);
        };
        let is_it = is_told && now.links == 1 && now.version == kept.version || planted(Bug::KeptUnchecked);
        if is_it && kept.size == size {
            return Ok(Some((kept.file, seclusion, now.version.size, kept.remembered)));
        }
        // Who tidies up may have it open for a moment more.
        kept.file.unlock().await.ok();
        Ok(None)
    }

    /// Whether the partial `found`, which was just locked, is kept, or about to be.
    pub(super) fn is_kept(&self, found: &Version) -> bool {
        let keeping = &self.inner.keeping;
        // In this order: it is kept before it is no longer given up.
        keeping.given_up().iter().any(|version| version.is_same_inode(found))
            || keeping.lock().iter().any(|kept| kept.version.is_same_inode(found))
    }

    /// Closes what was kept open for too long by `now`, a time of a monotonic clock, or is not what it was.
    pub async fn tidy(&self, now: Duration) {
        let keeping = &self.inner.keeping;
        let all: Vec<_> = {
            let mut all = keeping.lock();
            all.iter_mut()
                .map(|kept| (kept.version, *kept.seen.get_or_insert(now)))
                .collect()
        };
        for (version, since) in all {
            let file = {
                let all = keeping.lock();
                all.iter()
                    .find(|kept| kept.version == version)
                    .map(|kept| kept.file.clone())
            };
            let Some(file) = file else { continue };
            let found = file.metadata().await.map(|found| found.version);
            let is_old = now.saturating_sub(since) >= self.inner.limits.partials_kept_for;
            if is_old || !found.is_ok_and(|found| found == version) {
                drop(keeping.take_if(|kept| kept.version == version));
            }
        }
    }

    /// Nobody else shall see `found` open for writing here, nor its room taken once it is gone.
    pub(super) fn let_go(&self, found: &Version) {
        while self
            .inner
            .keeping
            .take_if(|kept| kept.version.is_same_inode(found))
            .is_some()
        {}
    }
}
