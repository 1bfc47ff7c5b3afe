//! Finals that may be equal to the source: compared, read back from the device, made durable like a written file.

use rustix::io::Errno;

use super::{
    Store,
    hashes::{Compared, Hashes},
    is_any,
    publish::{Ours, is_still_leased, lease, lock},
    source::{being_written, locked_elsewhere},
};
use crate::{
    digest::ChunkHash,
    fs::{Dir, File, Fs, Lock},
    model::{Digest, Kind, Name, RelPath, Version},
    planted::{Bug, planted},
    service::{Answer, FileRef, Finish, Meta, Same, ServiceError},
};

/// A final that may be equal to the source.
pub struct Confirm<F: Fs> {
    path: RelPath,
    file: F::File,
    version: Version,
    hashes: Hashes,
}

impl<F: Fs> Confirm<F> {
    /// Which of the chunks from `first` on are those of the source.
    pub async fn compare(&self, first: u64, theirs: &[ChunkHash]) -> Answer<Vec<bool>> {
        self.hashes.ensure_has(first, theirs.len())?;
        let mut equal = Vec::with_capacity(theirs.len());
        for (index, theirs) in (first..).zip(theirs) {
            equal.push(self.hashes.compare(&self.file, index, *theirs).await? == Compared::Equal);
        }
        Ok(equal)
    }

    /// Bytes of the final.
    pub fn size(&self) -> u64 {
        self.version.size
    }

    /// Up to `chunks_max` chunks are read back, where that must be. Whether it is done.
    pub async fn read_back(&self, chunks_max: u64) -> Answer<bool> {
        self.hashes.read_back(&self.file, chunks_max).await
    }

    /// Makes the equal final durable, with its mode and mtime.
    pub async fn finish(&self, store: &Store<F>, finish: &Finish) -> Answer<()> {
        store.ensure_safe()?;
        if self.hashes.digest()? != finish.digest {
            return Err(ServiceError::DigestMismatch);
        }
        let settled = store
            .settle_open(&self.path, &self.file, &self.version, finish.meta)
            .await?;
        store.confirm_there(&self.path, &settled).await
    }
}

impl<F: Fs> Store<F> {
    /// Opens the final at `path`, which must be `version`, to be compared with the source.
    pub async fn open_final(&self, path: &RelPath, version: &Version) -> Answer<Confirm<F>> {
        self.ensure_safe()?;
        let (dir, name) = self.parent_of(path).await?;
        let file = self.open_to_confirm(&dir, &name, version).await?;
        let hashes = Hashes::new(version.size, self.inner.limits.hashes_ahead);
        Ok(Confirm {
            path: path.clone(),
            file,
            version: *version,
            hashes,
        })
    }

    /// Confirms a small final that may be equal: read back from the device, given its mode and mtime, synced. Not
    /// durable before [`make_names_durable`](Self::make_names_durable), and to be proven there then.
    pub async fn settle(&self, same: &Same) -> Answer<Ours> {
        let Same {
            file: FileRef { path, version },
            digest,
            meta,
            has_partial,
        } = same;
        if version.size > self.inner.limits.small_file_bytes {
            return Err(ServiceError::BadRequest("too large to be settled whole".into()));
        }
        self.ensure_safe()?;
        let (dir, name) = self.parent_of(path).await?;
        let file = if planted(Bug::TrustSizeAndMtime) && version.mtime == meta.mtime {
            self.open_to_confirm(&dir, &name, version).await?
        } else {
            self.open_equal(&dir, &name, version, *digest).await?
        };
        let is_as_wanted = (file.opened().mode, version.mtime) == (meta.mode & 0o777, meta.mtime);
        if is_as_wanted && !has_partial {
            // Nothing is to be done to it, so that one look at its name will do: the last.
            return Ok(Ours::Unchanged(*version));
        }
        self.settle_open(path, &file, version, *meta).await
    }

    /// As [`settle`](Self::settle) with whatever is at `name` now; `Changed` when that is not the wanted content.
    pub(super) async fn settle_if_equal(
        &self,
        dir: &F::Dir,
        path: &RelPath,
        name: &Name,
        wanted: Digest,
        meta: Meta,
    ) -> Answer<Ours> {
        let Ok(found) = dir.stat(name).await else {
            return Err(ServiceError::Changed);
        };
        if found.kind != Kind::File {
            return Err(ServiceError::Changed);
        }
        self.prove_spelling(dir, name, &found).await.map(drop)?;
        let file = self.open_equal(dir, name, &found.version, wanted).await;
        let file = file.map_err(|error| match error {
            ServiceError::DigestMismatch => ServiceError::Changed,
            error => error,
        })?;
        self.settle_open(path, &file, &found.version, meta).await
    }

    /// A final as [`open_to_confirm`](Self::open_to_confirm) opens it, read back and found to have the digest `wanted`.
    async fn open_equal(&self, dir: &F::Dir, name: &Name, version: &Version, wanted: Digest) -> Answer<F::File> {
        // What can't be read is to be replaced as what is another.
        let file = match self.open_to_confirm(dir, name, version).await {
            Err(error) if error.is_no_access() => return Err(ServiceError::DigestMismatch),
            opened => opened?,
        };
        let hashes = Hashes::new(version.size, 1);
        match hashes.read_whole(&file).await {
            Ok(digest) if digest == wanted => Ok(file),
            Ok(_) | Err(ServiceError::Io { .. }) => Err(ServiceError::DigestMismatch),
            Err(error) => Err(error),
        }
    }

    /// A final open for reading, its content on the device and out of the cache; `Busy` while a run may delete it: of two runs
    /// in opposite directions each would take the other's source for its own safe copy.
    pub(super) async fn open_to_confirm(&self, dir: &F::Dir, name: &Name, version: &Version) -> Answer<F::File> {
        let file = dir
            .open(name)
            .await
            .map_err(|error| match is_any(&error, &[Errno::AGAIN]) {
                true => locked_elsewhere(),
                false => ServiceError::io("open", &error),
            })?;
        lock(&file, Lock::Exclusive).await?;
        // Older than the lock: what came in between shows when its name is looked at for the last time.
        if file.opened().version != *version {
            return Err(ServiceError::Changed);
        }
        if planted(Bug::EqualUnsynced) {
            return Ok(file);
        }
        file.sync().await.map_err(|e| self.sync_failed("sync", &e))?;
        file.drop_cache()
            .await
            .map_err(|e| ServiceError::io("drop the cache of", &e))?;
        Ok(file)
    }

    /// Gives a final that was found equal its mode and mtime; `Changed` when it is another by now.
    pub(super) async fn settle_open(
        &self,
        path: &RelPath,
        file: &F::File,
        version: &Version,
        meta: Meta,
    ) -> Answer<Ours> {
        let (dir, name) = self.parent_of(path).await?;
        // What has this name now is the open file, for its inode is the same; and as it was, for its version is.
        let now = dir.stat(&name).await.map_err(|e| ServiceError::io("stat", &e))?;
        if now.version != *version {
            return Err(ServiceError::Changed);
        }
        self.remove_partial(&dir, &name, Some(version)).await?;
        if (now.mode, now.version.mtime) != (meta.mode & 0o777, meta.mtime) {
            // Who writes to it before it has its mtime would not be seen by that.
            self.let_go(version);
            let is_leased = lease(file).await?;
            let before = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
            if !before.version.same_but_ctime(version) {
                return Err(ServiceError::Changed);
            }
            let is_set = match file.set_meta(meta.mode & 0o777, meta.mtime).await {
                // It belongs to somebody else; its content is what counts.
                Err(error) if is_any(&error, &[Errno::PERM]) => false,
                set => set
                    .map(|()| true)
                    .map_err(|e| ServiceError::io("set mode and times", &e))?,
            };
            // Before it is synced: who writes to it from now on changes its mtime.
            let settled = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
            let is_it = match is_set {
                true => settled.version.size == version.size,
                false => settled.version.same_but_ctime(version),
            };
            if !is_it {
                return Err(ServiceError::Changed);
            }
            if !is_still_leased(is_leased.then_some(file)).await? {
                return Err(being_written());
            }
            file.sync().await.map_err(|e| self.sync_failed("sync", &e))?;
            return Ok(Ours::Written(settled.version));
        }
        Ok(Ours::Written(now.version))
    }
}
