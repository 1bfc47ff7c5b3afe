//! The target's side of a file: a partial, written and synced, that becomes final in one step.

use std::{
    collections::BTreeSet,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use rustix::io::Errno;

use super::{
    Store, ignore_missing, is_any, is_unsupported,
    listing::put_back,
    names,
    names::NameKind,
    source::{BLOCK_BYTES, is_older, is_zero, move_unless_there},
};
use crate::{
    digest::{CHUNK_BYTES, ChunkHash, FileHasher, NotTaken, chunk_count, chunk_len, digest, hash_chunk},
    fs::{Dir, File, Fs, Rename, read_full, write_all},
    model::{Digest, Kind, Name, RelPath, Timestamp, Version},
    planted::{Bug, planted},
    service::{Answer, Content, Expected, FileRef, Finish, Meta, NewFile, Same, ServiceError, Swept},
};

/// How often a partial that somebody else removes or publishes meanwhile is opened again.
const OPEN_TRIES: usize = 8;

/// A large file that is arriving. Its descriptor stays open from the first write to the sync, so that no failed
/// write-back goes unseen.
pub struct Partial<F: Fs> {
    path: RelPath,
    name: Name,
    dir: F::Dir,
    part: Name,
    file: F::File,
    size: u64,
    /// Bytes that an earlier process left, as far as they may count.
    found_len: u64,
    hashes: Hashes,
    unsynced_bytes: AtomicU64,
    /// Set once it has its final name: nothing may be written any more.
    is_final: AtomicBool,
}

/// A final that may be equal to the source.
pub struct Confirm<F: Fs> {
    path: RelPath,
    file: F::File,
    version: Version,
    hashes: Hashes,
}

/// A small file or link that is written, but has not its final name.
pub struct Prepared<F: Fs> {
    new: NewFile,
    dir: F::Dir,
    name: Name,
    part: Name,
    state: PreparedState<F>,
}

enum PreparedState<F: Fs> {
    /// Held open up to its sync, so that no failed write-back goes unseen, and locked.
    File(F::File),
    Link,
    /// A link that is there already.
    WasThere,
}

/// The chunk hashes so far; once a chunk came twice the file is read back instead.
struct Hashes {
    size: u64,
    hasher: Mutex<Option<FileHasher>>,
}

impl Hashes {
    fn new(size: u64, ahead_max: usize) -> Self {
        Self {
            size,
            hasher: Mutex::new(Some(FileHasher::new(size, ahead_max))),
        }
    }

    fn add(&self, index: u64, hash: ChunkHash) -> Answer<()> {
        let mut hasher = self.lock();
        match hasher.as_mut().map_or(Ok(()), |hasher| hasher.add(index, hash)) {
            Ok(()) => Ok(()),
            Err(NotTaken::Twice) => {
                *hasher = None;
                Ok(())
            }
            Err(error) => Err(ServiceError::BadRequest(format!("chunk {index}: {error}"))),
        }
    }

    /// The digest of all chunks; reads `file` back when they are not all known.
    async fn digest(&self, file: &impl File) -> Answer<Digest> {
        // Taken: should finishing fail and be tried again, the file is read back.
        let hasher = self.lock().take();
        let Some(hasher) = hasher else {
            return self.read_back(file).await;
        };
        let next = hasher.next_missing();
        if next < chunk_count(self.size) {
            *self.lock() = Some(hasher);
            return Err(ServiceError::BadRequest(format!("chunk {next} is missing")));
        }
        hasher.digest().ok_or(ServiceError::Internal)
    }

    async fn read_back(&self, file: &impl File) -> Answer<Digest> {
        file.drop_cache()
            .await
            .map_err(|e| ServiceError::io("drop the cache of", &e))?;
        let mut hasher = FileHasher::new(self.size, 1);
        for index in 0..chunk_count(self.size) {
            let hash = read_chunk_hash(file, self.size, index)
                .await?
                .ok_or(ServiceError::DigestMismatch)?;
            hasher.add(index, hash).map_err(|_| ServiceError::Internal)?;
        }
        hasher.digest().ok_or(ServiceError::Internal)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<FileHasher>> {
        // Nothing panics while it is held.
        self.hasher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hash of chunk `index` of a file that shall have `size` bytes; `None` when it ends before.
async fn read_chunk_hash(file: &impl File, size: u64, index: u64) -> Answer<Option<ChunkHash>> {
    let Some(len) = chunk_len(size, index) else {
        return Err(ServiceError::BadRequest("a chunk past the end".into()));
    };
    let mut buf = vec![0; len];
    let read = read_full(file, index * CHUNK_BYTES, &mut buf)
        .await
        .map_err(|e| ServiceError::io("read back", &e))?;
    Ok((read == len).then(|| hash_chunk(size, index, &buf)))
}

async fn compare_chunks(file: &impl File, hashes: &Hashes, first: u64, theirs: &[ChunkHash]) -> Answer<Vec<bool>> {
    let mut equal = Vec::with_capacity(theirs.len());
    for (index, theirs) in (first..).zip(theirs) {
        let same = read_chunk_hash(file, hashes.size, index).await? == Some(*theirs);
        if same {
            hashes.add(index, *theirs)?;
        }
        equal.push(same);
    }
    Ok(equal)
}

impl<F: Fs> Partial<F> {
    /// Bytes that were there when it was opened.
    pub fn found_len(&self) -> u64 {
        self.found_len
    }

    /// A call of a connection that was lost must not reach what is final by now.
    fn ensure_partial(&self) -> Answer<()> {
        if self.is_final.load(Ordering::Relaxed) {
            Err(ServiceError::BadHandle)
        } else {
            Ok(())
        }
    }

    /// Which of the chunks from `first` on are those of the source; these count as written.
    pub async fn compare(&self, first: u64, theirs: &[ChunkHash]) -> Answer<Vec<bool>> {
        self.ensure_partial()?;
        compare_chunks(&self.file, &self.hashes, first, theirs).await
    }

    /// Writes chunk `index`, which must be whole. Where `sparse`, blocks of zeros in new ground become holes.
    /// `turn` is dropped as soon as it is written.
    pub async fn write_chunk(
        &self,
        store: &Store<F>,
        index: u64,
        data: &Bytes,
        sparse: bool,
        turn: impl Send,
    ) -> Answer<()> {
        if chunk_len(self.size, index) != Some(data.len()) {
            return Err(ServiceError::BadRequest("not a whole chunk".into()));
        }
        self.ensure_partial()?;
        store.ensure_safe()?;
        let start = index * CHUNK_BYTES;
        let written = if sparse && start >= self.found_len {
            self.write_around_zeros(start, data).await
        } else {
            write_all(&self.file, start, data).await
        };
        drop(turn);
        written.map_err(|e| ServiceError::io("write", &e))?;
        self.hashes.add(index, hash_chunk(self.size, index, data))?;
        let unsynced_bytes = self.unsynced_bytes.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
        if unsynced_bytes >= store.inner.limits.sync_every_bytes {
            self.unsynced_bytes.store(0, Ordering::Relaxed);
            self.file.sync().await.map_err(|e| store.sync_failed("sync", &e))?;
        }
        Ok(())
    }

    async fn write_around_zeros(&self, start: u64, data: &[u8]) -> io::Result<()> {
        for (block_index, block) in data.chunks(BLOCK_BYTES).enumerate() {
            if !is_zero(block) {
                write_all(&self.file, start + (block_index * BLOCK_BYTES) as u64, block).await?;
            }
        }
        Ok(())
    }

    /// Cuts or extends it to `len` bytes.
    pub async fn truncate(&self, len: u64) -> Answer<()> {
        self.ensure_partial()?;
        if len > self.size {
            return Err(ServiceError::BadRequest("past the end of the file".into()));
        }
        self.file.set_len(len).await.map_err(|e| ServiceError::io("cut", &e))
    }

    /// Makes it final: durable, verified, under its name.
    pub async fn finish(&self, store: &Store<F>, finish: &Finish) -> Answer<()> {
        store.ensure_safe()?;
        if self.is_final.load(Ordering::Relaxed) {
            // Asked again after the answer to the first time was lost.
            store
                .settle_if_equal(&self.dir, &self.path, &self.name, finish.digest, finish.meta)
                .await?;
            return store.make_names_durable(self.path.parent().unwrap_or_default()).await;
        }
        self.file
            .set_len(self.size)
            .await
            .map_err(|e| ServiceError::io("set the length of", &e))?;
        set_meta(&self.file, finish.meta).await?;
        if !planted(Bug::DeleteBeforeSync) {
            self.file.sync().await.map_err(|e| store.sync_failed("sync", &e))?;
        }
        if self.hashes.digest(&self.file).await? != finish.digest && !planted(Bug::SkipDigest) {
            return Err(ServiceError::DigestMismatch);
        }
        let ours = Ours::Inode(
            self.file
                .metadata()
                .await
                .map_err(|e| ServiceError::io("stat", &e))?
                .version,
        );
        match store
            .publish(&self.dir, &self.part, &self.name, finish.expected, &ours)
            .await
        {
            Ok(()) => self.is_final.store(true, Ordering::Relaxed),
            Err(ServiceError::Changed) => {
                // Finished by an earlier connection, whose answer was lost?
                store
                    .settle_if_equal(&self.dir, &self.path, &self.name, finish.digest, finish.meta)
                    .await?;
                ignore_missing(self.dir.unlink(&self.part).await).map_err(|e| ServiceError::io("remove", &e))?;
                return store.make_names_durable(self.path.parent().unwrap_or_default()).await;
            }
            Err(error) => return Err(error),
        }
        store.make_names_durable(self.path.parent().unwrap_or_default()).await?;
        store.prove_there(&self.path, &ours).await
    }
}

impl<F: Fs> Confirm<F> {
    /// Which of the chunks from `first` on are those of the source.
    pub async fn compare(&self, first: u64, theirs: &[ChunkHash]) -> Answer<Vec<bool>> {
        compare_chunks(&self.file, &self.hashes, first, theirs).await
    }

    /// Bytes of the final.
    pub fn size(&self) -> u64 {
        self.version.size
    }

    /// Makes the equal final durable, with its mode and mtime.
    pub async fn finish(&self, store: &Store<F>, finish: &Finish) -> Answer<()> {
        store.ensure_safe()?;
        if self.hashes.digest(&self.file).await? != finish.digest {
            return Err(ServiceError::DigestMismatch);
        }
        store
            .settle_open(&self.path, &self.file, &self.version, finish.meta)
            .await?;
        store.make_names_durable(self.path.parent().unwrap_or_default()).await
    }
}

impl<F: Fs> Store<F> {
    /// Opens the partial of a file of `size` bytes, made new or left by an earlier run; its bytes count for nothing
    /// until compared.
    pub async fn open_partial(&self, path: &RelPath, size: u64) -> Answer<Partial<F>> {
        self.ensure_safe()?;
        let (dir, name) = self.parent_of(path).await?;
        let part = names::partial(&name);
        let (file, found_len) = self.take_partial(&dir, &part, true).await?;
        if found_len > size {
            file.set_len(size).await.map_err(|e| ServiceError::io("cut", &e))?;
        }
        let found_len = found_len.min(size);
        if found_len > 0 {
            // Written by another process: its failed syncs are not told to this one, so the device has to show the bytes.
            file.sync().await.map_err(|e| self.sync_failed("sync", &e))?;
            file.drop_cache()
                .await
                .map_err(|e| ServiceError::io("drop the cache of", &e))?;
        }
        let hashes = Hashes::new(size, self.inner.limits.hashes_ahead);
        let path = path.clone();
        Ok(Partial {
            path,
            name,
            dir,
            part,
            file,
            size,
            found_len,
            hashes,
            unsynced_bytes: AtomicU64::new(0),
            is_final: AtomicBool::new(false),
        })
    }

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

    /// Writes a whole small file or link beside its final name: the first of three steps, each taken for all files of a
    /// batch before the next, so that the disk can bring them out together.
    pub async fn prepare(&self, new: NewFile) -> Answer<Prepared<F>> {
        self.ensure_safe()?;
        let (dir, name) = self.parent_of(&new.path).await?;
        let part = names::partial(&name);
        let state = match &new.content {
            Content::File { data, digest } => {
                PreparedState::File(self.prepare_file(&dir, &part, &new, data, *digest).await?)
            }
            Content::Symlink(text) => self.prepare_link(&dir, &name, &part, &new, text).await?,
        };
        Ok(Prepared {
            new,
            dir,
            name,
            part,
            state,
        })
    }

    async fn prepare_file(
        &self,
        dir: &F::Dir,
        part: &Name,
        new: &NewFile,
        data: &Bytes,
        wanted: Digest,
    ) -> Answer<F::File> {
        if data.len() as u64 > self.inner.limits.small_file_bytes {
            return Err(ServiceError::BadRequest("too large to be put whole".into()));
        }
        if digest(data) != wanted && !planted(Bug::SkipDigest) {
            return Err(ServiceError::DigestMismatch);
        }
        let (file, _) = self.take_partial(dir, part, false).await?;
        let written = async {
            write_all(&file, 0, data)
                .await
                .map_err(|e| ServiceError::io("write", &e))?;
            set_meta(&file, new.meta).await?;
            file.start_writeback().await.map_err(|e| self.sync_failed("write", &e))
        };
        let written = written.await;
        self.unless_failed(dir, part, written).await?;
        Ok(file)
    }

    async fn prepare_link(
        &self,
        dir: &F::Dir,
        name: &Name,
        part: &Name,
        new: &NewFile,
        text: &Bytes,
    ) -> Answer<PreparedState<F>> {
        let mtime = new.meta.mtime;
        if is_link_to(dir, name, text).await? {
            self.remove_partial(dir, name).await?;
            dir.set_mtime(name, mtime)
                .await
                .map_err(|e| ServiceError::io("set times", &e))?;
            return Ok(PreparedState::WasThere);
        }
        self.remove_partial(dir, name).await?;
        dir.symlink(part, text)
            .await
            .map_err(|e| ServiceError::io("make the link", &e))?;
        let timed = dir
            .set_mtime(part, mtime)
            .await
            .map_err(|e| ServiceError::io("set times", &e));
        self.unless_failed(dir, part, timed).await?;
        Ok(PreparedState::Link)
    }

    /// The second step: its content is durable. (A link's is with its name.)
    pub async fn sync_prepared(&self, prepared: Prepared<F>) -> Answer<Prepared<F>> {
        if let PreparedState::File(file) = &prepared.state
            && !planted(Bug::DeleteBeforeSync)
        {
            let synced = file.sync().await.map_err(|e| self.sync_failed("sync", &e));
            self.unless_failed(&prepared.dir, &prepared.part, synced).await?;
        }
        Ok(prepared)
    }

    /// The third step: it has its final name, which is not durable before
    /// [`make_names_durable`](Self::make_names_durable) has covered its directory. What is to be found there then.
    pub async fn publish_prepared(&self, prepared: Prepared<F>) -> Answer<Ours> {
        self.ensure_safe()?;
        let Prepared {
            new,
            dir,
            name,
            part,
            state,
        } = &prepared;
        let ours = match (state, &new.content) {
            (PreparedState::File(file), _) => {
                Ours::Inode(file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?.version)
            }
            (_, Content::Symlink(text)) => Ours::Link(text.clone()),
            (_, Content::File { .. }) => return Err(ServiceError::Internal),
        };
        if matches!(state, PreparedState::WasThere) || planted(Bug::AcknowledgeBeforeRename) {
            return Ok(ours);
        }
        let published = self.publish(dir, part, name, new.expected, &ours).await;
        match (self.unless_failed(dir, part, published).await, &new.content) {
            // Put again after the answer to the first time was lost?
            (Err(ServiceError::Changed), Content::File { digest, .. }) => {
                self.settle_if_equal(dir, &new.path, name, *digest, new.meta).await?;
                let found = dir.stat(name).await.map_err(|e| ServiceError::io("stat", &e))?;
                Ok(Ours::Inode(found.version))
            }
            (published, _) => published.map(|()| ours),
        }
    }

    /// Removes a small partial that came to nothing: nothing would be gained by keeping it, and on a full disk it would be
    /// in the way.
    async fn unless_failed(&self, dir: &F::Dir, part: &Name, done: Answer<()>) -> Answer<()> {
        if done.is_err() {
            // What can't be removed is taken over by the next run.
            dir.unlink(part).await.ok();
        }
        done
    }

    /// Confirms a small final that may be equal: read back from the device, given its mode and mtime, synced. Not
    /// durable before [`make_names_durable`](Self::make_names_durable).
    pub async fn settle(&self, same: &Same) -> Answer<()> {
        let Same {
            file: FileRef { path, version },
            digest,
            meta,
        } = same;
        if version.size > self.inner.limits.small_file_bytes {
            return Err(ServiceError::BadRequest("too large to be settled whole".into()));
        }
        self.ensure_safe()?;
        let (dir, name) = self.parent_of(path).await?;
        self.settle_final(&dir, path, &name, version, *digest, *meta).await
    }

    /// As [`settle`](Self::settle) with whatever is at `name` now; `Changed` when that is not the wanted content.
    async fn settle_if_equal(
        &self,
        dir: &F::Dir,
        path: &RelPath,
        name: &Name,
        wanted: Digest,
        meta: Meta,
    ) -> Answer<()> {
        let Ok(found) = dir.stat(name).await else {
            return Err(ServiceError::Changed);
        };
        if found.kind != Kind::File {
            return Err(ServiceError::Changed);
        }
        self.settle_final(dir, path, name, &found.version, wanted, meta)
            .await
            .map_err(|error| match error {
                ServiceError::DigestMismatch => ServiceError::Changed,
                error => error,
            })
    }

    async fn settle_final(
        &self,
        dir: &F::Dir,
        path: &RelPath,
        name: &Name,
        version: &Version,
        wanted: Digest,
        meta: Meta,
    ) -> Answer<()> {
        let file = self.open_to_confirm(dir, name, version).await?;
        let hashes = Hashes::new(version.size, 1);
        if hashes.read_back(&file).await? != wanted {
            return Err(ServiceError::DigestMismatch);
        }
        self.settle_open(path, &file, version, meta).await
    }

    /// A final open for reading, its content on the device and out of the cache.
    async fn open_to_confirm(&self, dir: &F::Dir, name: &Name, version: &Version) -> Answer<F::File> {
        let file = dir.open(name).await.map_err(|e| ServiceError::io("open", &e))?;
        let now = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
        if now.version != *version {
            return Err(ServiceError::Changed);
        }
        file.sync().await.map_err(|e| self.sync_failed("sync", &e))?;
        file.drop_cache()
            .await
            .map_err(|e| ServiceError::io("drop the cache of", &e))?;
        Ok(file)
    }

    /// Gives a final that was found equal its mode and mtime; `Changed` when it is another by now.
    async fn settle_open(&self, path: &RelPath, file: &F::File, version: &Version, meta: Meta) -> Answer<()> {
        let (dir, name) = self.parent_of(path).await?;
        let now = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
        let named = dir.stat(&name).await.map_err(|e| ServiceError::io("stat", &e))?;
        if now.version != *version || named.version != *version {
            return Err(ServiceError::Changed);
        }
        self.remove_partial(&dir, &name).await?;
        if (now.mode, now.version.mtime) != (meta.mode & 0o777, meta.mtime) {
            match file.set_meta(meta.mode & 0o777, meta.mtime).await {
                // It belongs to somebody else; its content is what counts.
                Err(error) if is_any(&error, &[Errno::PERM]) => {}
                set => set.map_err(|e| ServiceError::io("set mode and times", &e))?,
            }
            file.sync().await.map_err(|e| self.sync_failed("sync", &e))?;
        }
        Ok(())
    }

    /// Removes the partial of a file that arrived in another way, unless somebody is writing to it.
    pub(super) async fn remove_partial(&self, dir: &F::Dir, name: &Name) -> Answer<()> {
        let part = names::partial(name);
        let is_removable = match dir.open(&part).await {
            Ok(file) => lock_named(dir, &part, &file).await? == Locked::Yes,
            // Nobody can lock a link: a run that is at it finds that out when it publishes.
            Err(error) => is_any(&error, &[Errno::LOOP]),
        };
        if !is_removable {
            return Ok(());
        }
        ignore_missing(dir.unlink(&part).await).map_err(|e| ServiceError::io("remove", &e))
    }

    /// Takes the partial `part` for this handle alone: made new, or with `resume` the one that is there. How
    /// many bytes it has.
    async fn take_partial(&self, dir: &F::Dir, part: &Name, resume: bool) -> Answer<(F::File, u64)> {
        for _ in 0..OPEN_TRIES {
            let (file, is_new) = match dir.create(part).await {
                Ok(file) => (file, true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match dir.open_write(part).await {
                    Ok(file) => (file, false),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) if is_any(&error, &[Errno::ACCESS]) => {
                        make_writable(dir, part).await?;
                        continue;
                    }
                    Err(error) if is_any(&error, &[Errno::INVAL, Errno::LOOP, Errno::ISDIR]) => {
                        return Err(ServiceError::Leftover(part.clone()));
                    }
                    Err(error) => return Err(ServiceError::io("open the partial", &error)),
                },
                Err(error) => return Err(ServiceError::io("make a file", &error)),
            };
            match lock_named(dir, part, &file).await? {
                Locked::Yes => {}
                Locked::ByOther => return Err(ServiceError::Busy("another run is writing this file".into())),
                // Its last holder published or removed it.
                Locked::NotNamed => continue,
            }
            let metadata = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
            if is_new || (resume && metadata.links == 1) {
                return Ok((file, metadata.version.size));
            }
            // Somebody's second name, or of no use: this name alone goes.
            ignore_missing(dir.unlink(part).await).map_err(|e| ServiceError::io("remove", &e))?;
        }
        Err(somebody_else())
    }

    /// Gives `part`, which must be `ours`, its final name, if what is there is what is expected.
    async fn publish(&self, dir: &F::Dir, part: &Name, name: &Name, expected: Expected, ours: &Ours) -> Answer<()> {
        match expected {
            Expected::Absent => {
                move_unless_there(dir, part, dir, name)
                    .await
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::AlreadyExists => ServiceError::Changed,
                        _ => ServiceError::io("rename", &error),
                    })?;
                if is_ours(dir, name, ours).await? {
                    return Ok(());
                }
                // Somebody had put another under the partial's name.
                move_unless_there(dir, name, dir, part)
                    .await
                    .map_err(|e| ServiceError::io("rename back", &e))?;
                Err(somebody_else())
            }
            Expected::Version(version) => self.replace(dir, part, name, &version, ours).await,
        }
    }

    /// Proves that who looks for `path` now finds `ours`: its directory may have been moved away meanwhile.
    pub async fn prove_there(&self, path: &RelPath, ours: &Ours) -> Answer<()> {
        let (dir, name) = self.parent_of(path).await?;
        if is_ours(&dir, &name, ours).await? {
            Ok(())
        } else {
            Err(ServiceError::Changed)
        }
    }

    /// Puts `part` in the place of `version`, by way of a name that tells a crash what was going on.
    async fn replace(&self, dir: &F::Dir, part: &Name, name: &Name, version: &Version, ours: &Ours) -> Answer<()> {
        self.ensure_final_is(dir, name, version).await?;
        if let Ok(old) = dir.open(name).await {
            // After a crash the old one is known by its version, so that must be on the disk.
            old.sync().await.map_err(|e| self.sync_failed("sync", &e))?;
        }
        let swap = names::swap(name, version);
        move_unless_there(dir, part, dir, &swap)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => ServiceError::Leftover(swap.clone()),
                _ => ServiceError::io("rename", &error),
            })?;
        let back_to_partial = async {
            move_unless_there(dir, &swap, dir, part)
                .await
                .map_err(|_| ServiceError::Leftover(swap.clone()))
        };
        if !is_ours(dir, &swap, ours).await? {
            back_to_partial.await?;
            return Err(somebody_else());
        }
        match dir.rename(&swap, dir, name, Rename::Exchange).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                back_to_partial.await?;
                return Err(ServiceError::Changed);
            }
            Err(error) if is_unsupported(&error) => {
                // Who writes a new file between the look and the rename loses it: documented for such file systems.
                if let Err(error) = self.ensure_final_is(dir, name, version).await {
                    back_to_partial.await?;
                    return Err(error);
                }
                let replaced = dir.rename(&swap, dir, name, Rename::Replace).await;
                return replaced.map_err(|e| ServiceError::io("rename", &e));
            }
            Err(error) => {
                back_to_partial.await?;
                return Err(ServiceError::io("rename", &error));
            }
        }
        let out = dir.stat(&swap).await.map_err(|e| ServiceError::io("stat", &e))?;
        if out.version.same_but_ctime(version) {
            return ignore_missing(dir.unlink(&swap).await).map_err(|e| ServiceError::io("remove the old", &e));
        }
        // Somebody put another there in between: it gets its name back.
        dir.rename(&swap, dir, name, Rename::Exchange)
            .await
            .map_err(|_| ServiceError::Leftover(swap.clone()))?;
        back_to_partial.await?;
        Err(ServiceError::Changed)
    }

    async fn ensure_final_is(&self, dir: &F::Dir, name: &Name, version: &Version) -> Answer<()> {
        match dir.stat(name).await {
            Ok(found) if found.version == *version => Ok(()),
            Ok(_) => Err(ServiceError::Changed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ServiceError::Changed),
            Err(error) => Err(ServiceError::io("stat", &error)),
        }
    }

    /// Looks through the directory at `path` before files arrive in it: see [`Swept`].
    pub async fn sweep(&self, path: &RelPath) -> Answer<Swept> {
        let dir = self.open_dir(path).await?;
        let mut swept = Swept::default();
        for name in dir
            .names_beginning(b'.')
            .await
            .map_err(|e| ServiceError::io("read the directory", &e))?
        {
            match names::classify(&name) {
                NameKind::Token => swept.tokens.push(name),
                NameKind::Partial => swept.partials += 1,
                NameKind::Swap(swap) if !self.resolve_swap(&dir, &name, &swap).await? => swept.leftovers.push(name),
                _ => {}
            }
        }
        Ok(swept)
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
        let name = &name;
        let tag = |found: io::Result<crate::fs::Metadata>| found.ok().map(|found| names::version_tag(&found.version));
        let (left_tag, final_tag) = (tag(dir.stat(left).await), tag(dir.stat(name).await));
        if left_tag.as_ref() == Some(&swap.replaced) && final_tag.is_some() {
            // The old one, which had been replaced.
            ignore_missing(dir.unlink(left).await).map_err(|e| ServiceError::io("remove the old", &e))?;
            return Ok(true);
        }
        if final_tag.as_ref() == Some(&swap.replaced) {
            // The old one still has its name, so this is the partial: to be continued.
            return Ok(put_back(dir, left, dir, &names::partial(name)).await.is_ok());
        }
        Ok(false)
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
            // What can't be opened or is in use is no orphan to be judged here.
            let Ok(file) = dir.open(&name).await else { continue };
            let Ok(metadata) = file.metadata().await else { continue };
            // The ctime: the mtime may be the source's already.
            let is_old = is_older(metadata.version.ctime, self.inner.limits.orphan_age, wall);
            if is_old && lock_named(&dir, &name, &file).await? == Locked::Yes {
                ignore_missing(dir.unlink(&name).await).map_err(|e| ServiceError::io("remove", &e))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

async fn set_meta(file: &impl File, meta: Meta) -> Answer<()> {
    file.set_meta(meta.mode & 0o777, meta.mtime)
        .await
        .map_err(|e| ServiceError::io("set mode and times", &e))
}

/// What tells something that this process wrote from anything else under the same name.
pub enum Ours {
    /// A file: its inode.
    Inode(Version),
    /// A link: its text. (Nobody can hold a link open or lock it.)
    Link(Bytes),
}

async fn is_ours<D: Dir>(dir: &D, name: &Name, ours: &Ours) -> Answer<bool> {
    match ours {
        Ours::Inode(version) => match dir.stat(name).await {
            Ok(found) => Ok(found.version.is_same_inode(version)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ServiceError::io("stat", &error)),
        },
        Ours::Link(text) => is_link_to(dir, name, text).await,
    }
}

async fn is_link_to<D: Dir>(dir: &D, name: &Name, text: &Bytes) -> Answer<bool> {
    match dir.stat(name).await {
        Ok(found) if found.kind == Kind::Symlink => Ok(dir
            .readlink(name)
            .await
            .map_err(|e| ServiceError::io("read the link", &e))?
            == *text),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ServiceError::io("stat", &error)),
    }
}

/// What came of locking a partial.
#[derive(PartialEq, Eq)]
enum Locked {
    /// It is ours alone, and still has its name.
    Yes,
    /// Another run has it.
    ByOther,
    /// It has lost its name since it was opened.
    NotNamed,
}

/// Locks `file`, which was opened as `part`.
async fn lock_named<D: Dir>(dir: &D, part: &Name, file: &D::File) -> Answer<Locked> {
    if let Err(error) = file.try_lock().await {
        if is_any(&error, &[Errno::AGAIN]) {
            return Ok(Locked::ByOther);
        }
        return Err(ServiceError::io("lock the partial", &error));
    }
    let version = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?.version;
    Ok(if is_ours(dir, part, &Ours::Inode(version)).await? {
        Locked::Yes
    } else {
        Locked::NotNamed
    })
}

/// Makes a partial writable again that got its final mode just before a crash. One that a live run holds stays as it is.
async fn make_writable<D: Dir>(dir: &D, part: &Name) -> Answer<()> {
    let file = dir.open(part).await.map_err(|_| ServiceError::Leftover(part.clone()))?;
    match lock_named(dir, part, &file).await? {
        Locked::Yes => {
            let mtime = file
                .metadata()
                .await
                .map_err(|e| ServiceError::io("stat", &e))?
                .version
                .mtime;
            file.set_meta(0o600, mtime)
                .await
                .map_err(|e| ServiceError::io("set the mode of", &e))
        }
        Locked::ByOther => Err(ServiceError::Busy("another run is writing this file".into())),
        Locked::NotNamed => Ok(()),
    }
}

fn somebody_else() -> ServiceError {
    ServiceError::Busy("another run is at this file".into())
}

/// The directories that `paths` are in.
pub fn parents<'a>(paths: impl IntoIterator<Item = &'a RelPath>) -> BTreeSet<RelPath> {
    paths.into_iter().filter_map(RelPath::parent).collect()
}
