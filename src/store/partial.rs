//! The target's side of a large file: its partial, written and synced.

use std::{
    io,
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::io::Errno;

use super::{
    Store, has_no_leases,
    hashes::{Compared, Hashes},
    ignore_missing, is_any,
    kept::Remembered,
    names,
    publish::{Ours, is_ours, remove_ours, set_meta},
    repair::Basis,
    source::{BLOCK_BYTES, is_zero},
    sweep::remove_probe,
};
use crate::{
    digest::{CHUNK_BYTES, ChunkHash, chunk_len, hash_chunk},
    fs::{Dir, File, Fs, Lock, Metadata, read_full, write_all},
    model::{Name, RelPath, Version},
    planted::{Bug, planted},
    service::{Answer, Finish, ServiceError, Verify},
};

/// Whether others may have written to a partial, so that it is not what was written and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seclusion {
    /// Not as long as the lease is held.
    Leased,
    /// Somebody else has it open, or may.
    Shared,
    /// The file system does not tell.
    Unknown,
}

/// How often a partial that somebody else removes or publishes meanwhile is opened again.
const OPEN_TRIES: usize = 8;

/// Blocks of zeros in a row that become a hole where something was before: fewer are written, which is faster than to make so many holes.
const PUNCHED_BLOCKS_MIN: usize = 16;

/// A large file that is arriving. Its descriptor stays open from the first write to the sync, so that no failed
/// write-back goes unseen.
pub struct Partial<F: Fs> {
    path: RelPath,
    name: Name,
    dir: F::Dir,
    part: Name,
    pub(super) file: F::File,
    size: u64,
    pub(super) basis: Option<Basis<F::File>>,
    /// Bytes that an earlier process left, or that it shares with its basis, as far as they may count.
    found_len: u64,
    /// Whether it began as a reflink of its basis.
    reflink: Reflink,
    seclusion: Seclusion,
    /// Whether it is known that somebody else has opened it.
    was_shared: AtomicBool,
    /// As it was once all was written, with the times that it shall have.
    prepared: Mutex<Option<Version>>,
    hashes: Hashes,
    unsynced_bytes: AtomicU64,
    /// Of those of its chunks that this process wrote or read; `None` once it is not open here any more.
    remembered: Mutex<Option<Remembered>>,
    /// Set once it is given its final name: nothing may be written any more.
    may_be_final: AtomicBool,
}

impl<F: Fs> Partial<F> {
    /// Bytes that were there when it was opened.
    pub fn found_len(&self) -> u64 {
        self.found_len
    }

    /// Bytes of the final that it is made of beside, 0 where there is none.
    pub fn basis_len(&self) -> u64 {
        self.basis.as_ref().map_or(0, |basis| basis.len)
    }

    /// Bytes that it shall have.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The directory it is in, and its name there.
    pub(super) fn place(&self) -> (&F::Dir, &Name) {
        (&self.dir, &self.part)
    }

    /// A call of a connection that was lost must not reach what is final by now, or another's.
    fn ensure_partial(&self) -> Answer<()> {
        let is_over = self.may_be_final.load(Ordering::Relaxed) || self.remembered().is_none();
        if is_over && !planted(Bug::LateWrite) {
            Err(ServiceError::BadHandle)
        } else {
            Ok(())
        }
    }

    fn remembered(&self) -> MutexGuard<'_, Option<Remembered>> {
        // Nothing panics while it is held.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepared(&self) -> MutexGuard<'_, Option<Version>> {
        // Nothing panics while it is held.
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn version(&self) -> Answer<Version> {
        let metadata = self.file.metadata().await;
        Ok(metadata.map_err(|e| ServiceError::io("stat", &e))?.version)
    }

    /// Whether nobody else has opened it, as far as the file system tells.
    pub(super) async fn is_secluded(&self) -> Answer<bool> {
        match self.seclusion {
            _ if planted(Bug::PartialShared) => Ok(true),
            Seclusion::Leased => {
                let held = self.file.lease_held().await;
                held.map_err(|e| ServiceError::io("ask for the lease of", &e))
            }
            Seclusion::Shared => Ok(false),
            Seclusion::Unknown => Ok(true),
        }
    }

    /// What is known of its chunks, for the next one that opens it: nothing can be done with this handle afterwards.
    pub(super) fn retire(&self) -> Option<Remembered> {
        self.remembered().take()
    }

    /// What was known of its chunks may be wrong.
    fn forget(&self) {
        self.remembered().iter_mut().for_each(Remembered::forget);
    }

    /// Reads what is there of the file to be made. What the disk does not give any more, or somebody has cut off meanwhile, counts as zeros: a damaged
    /// file is there to be repaired, and whatever comes of it is held against its hash.
    pub(super) async fn read_basis(&self, offset: u64, buf: &mut [u8]) {
        let (file, _) = self.basis();
        let read = read_full(file, offset, buf).await;
        if read.is_err() && self.basis.is_none() {
            self.forget();
        }
        buf[read.unwrap_or(0)..].fill(0);
    }

    /// Which of the chunks from `first` on are those of the source; these count as written. What the basis has `shift` bytes further on
    /// is copied.
    pub async fn compare(&self, store: &Store<F>, first: u64, theirs: &[ChunkHash], shift: i64) -> Answer<Vec<bool>> {
        self.ensure_partial()?;
        self.hashes.ensure_has(first, theirs.len())?;
        // What lies behind that was written by this handle, and its hashes are known.
        let found = self.found_len.div_ceil(CHUNK_BYTES).saturating_sub(first);
        let found = match self.reflink == Reflink::Yes && shift != 0 {
            // What it shares is looked for elsewhere.
            true => 0,
            false => theirs.len().min(usize::try_from(found).unwrap_or(usize::MAX)),
        };
        let mut equal = Vec::with_capacity(theirs.len());
        for (index, theirs) in (first..).zip(&theirs[..found]) {
            equal.push(self.compare_chunk(index, *theirs).await?);
        }
        equal.resize(theirs.len(), false);
        if self.reflink == Reflink::Yes && shift == 0 {
            // The same bytes once more.
            return Ok(equal);
        }
        let wrong = (first..).zip(theirs).zip(&mut equal).filter(|(_, equal)| !**equal);
        for ((index, hash), equal) in wrong {
            *equal = self.copy_from_basis(store, index, *hash, shift).await?;
        }
        Ok(equal)
    }

    async fn compare_chunk(&self, index: u64, theirs: ChunkHash) -> Answer<bool> {
        let known = self.remembered().as_ref().and_then(|remembered| remembered.get(index));
        if known == Some(theirs) {
            self.hashes.add(index, theirs)?;
        }
        if let Some(known) = known {
            return Ok(known == theirs);
        }
        let compared = self.hashes.compare(&self.file, index, theirs).await?;
        match compared {
            Compared::Equal => self
                .remembered()
                .iter_mut()
                .for_each(|remembered| remembered.read(index, theirs)),
            Compared::Other => {}
            Compared::Unreadable => self.forget(),
        }
        Ok(compared == Compared::Equal)
    }

    /// Writes chunk `index`, which must be whole. Where `sparse`, blocks of zeros in new ground become holes.
    /// `turn` is dropped as soon as it is written.
    pub async fn write_chunk(
        &self,
        store: &Store<F>,
        index: u64,
        data: &[u8],
        sparse: bool,
        turn: impl Send,
    ) -> Answer<()> {
        self.write_hashed(store, index, data, None, sparse, turn).await
    }

    /// As [`write_chunk`](Self::write_chunk); the `hash` of `data`, where it is known, is not computed again.
    pub async fn write_hashed(
        &self,
        store: &Store<F>,
        index: u64,
        data: &[u8],
        hash: Option<ChunkHash>,
        sparse: bool,
        turn: impl Send,
    ) -> Answer<()> {
        if chunk_len(self.size, index) != Some(data.len()) {
            return Err(ServiceError::BadRequest("not a whole chunk".into()));
        }
        self.ensure_partial()?;
        store.ensure_safe()?;
        let start = index * CHUNK_BYTES;
        let known = self.remembered().as_ref().and_then(|remembered| remembered.get(index));
        if let Some(known) = known
            && known == hash.unwrap_or_else(|| hash_chunk(self.size, index, data))
        {
            return self.hashes.add(index, known);
        }
        let is_again = self
            .remembered()
            .as_mut()
            .is_some_and(|remembered| remembered.begin(index));
        // Where a reflink was so much as tried, what nobody has written yet may be no hole.
        let is_fresh = self.reflink == Reflink::No;
        let is_new = (is_fresh && start >= self.found_len && !is_again) || planted(Bug::HolesAssumed);
        let written = match sparse {
            true => self.write_around_zeros(start, data, is_new).await,
            false => write_all(&self.file, start, data).await,
        };
        drop(turn);
        let written = match written {
            Err(error) if planted(Bug::NoSpaceIsSuccess) && is_any(&error, &[Errno::NOSPC]) => Ok(()),
            written => written.map_err(|e| ServiceError::io("write", &e)),
        };
        let hash = written.map(|()| hash.unwrap_or_else(|| hash_chunk(self.size, index, data)));
        let known = hash.clone().ok();
        self.remembered()
            .iter_mut()
            .for_each(|remembered| remembered.end(index, known));
        // A part of it may be there, over what counts as written.
        let hash = hash.inspect_err(|_| self.hashes.forget())?;
        self.hashes.add(index, hash)?;
        let unsynced_bytes = self.unsynced_bytes.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
        if unsynced_bytes >= store.inner.limits.sync_every_bytes {
            self.unsynced_bytes.store(0, Ordering::Relaxed);
            self.file.sync().await.map_err(|e| store.sync_failed("sync", &e))?;
        }
        Ok(())
    }

    /// Writes what is not zeros. In ground that `is_new` those are left out; elsewhere there may be something else: long ones become a hole.
    async fn write_around_zeros(&self, start: u64, data: &[u8], is_new: bool) -> io::Result<()> {
        let blocks_min = if is_new { 1 } else { PUNCHED_BLOCKS_MIN };
        let (mut holes, mut rest) = (Vec::new(), Vec::<Range<usize>>::new());
        let zeros: Vec<_> = data.chunks(BLOCK_BYTES).map(is_zero).collect();
        let mut at = 0;
        for blocks in zeros.chunk_by(|a, b| a == b) {
            let end = data.len().min(at + blocks.len() * BLOCK_BYTES);
            match rest.last_mut() {
                _ if blocks[0] && blocks.len() >= blocks_min => holes.push(at..end),
                Some(last) if last.end == at => last.end = end,
                _ => rest.push(at..end),
            }
            at = end;
        }
        // Holes first: to make one, what is dirty around it is written back.
        for hole in holes {
            let (offset, len) = (start + hole.start as u64, hole.len() as u64);
            if !is_new && self.file.punch(offset, len).await.is_err() {
                write_all(&self.file, offset, &data[hole]).await?;
            }
        }
        for piece in rest {
            write_all(&self.file, start + piece.start as u64, &data[piece]).await?;
        }
        Ok(())
    }

    /// The first step of finishing: length, mode and times as `finish` says, and all of it durable.
    pub async fn prepare_finish(&self, store: &Store<F>, finish: &Finish) -> Answer<()> {
        store.ensure_safe()?;
        self.ensure_partial()?;
        self.file
            .set_len(self.size)
            .await
            .map_err(|e| ServiceError::io("set the length of", &e))?;
        set_meta(&self.file, finish.meta).await?;
        if !planted(Bug::DeleteBeforeSync) {
            self.file.sync().await.map_err(|e| store.sync_failed("sync", &e))?;
        }
        if finish.verify == Verify::Disk {
            self.hashes.distrust();
        }
        *self.prepared() = Some(self.version().await?);
        Ok(())
    }

    /// The second step: up to `chunks_max` chunks are read back, where that must be. Whether it is done.
    pub async fn read_back(&self, store: &Store<F>, chunks_max: u64) -> Answer<bool> {
        self.ensure_partial()?;
        if !self.is_secluded().await? {
            self.forget();
            match self.was_shared.swap(true, Ordering::Relaxed) {
                false => {
                    // Nor does what was read back until now.
                    self.hashes.forget();
                    self.sync_shared(store).await?;
                }
                true => self.hashes.distrust(),
            }
        }
        let read = self.hashes.read_back(&self.file, chunks_max).await;
        if read.is_err() {
            self.forget();
        }
        read
    }

    /// The last step: makes it final, verified and under its name. `false` when somebody has opened it since it was read back, or since that was not
    /// needed: it is to be read back once more.
    pub async fn finish(&self, store: &Store<F>, finish: &Finish) -> Answer<bool> {
        store.ensure_safe()?;
        self.ensure_partial()?;
        self.prove_prepared().await?;
        if self.hashes.digest()? != finish.digest && !planted(Bug::SkipDigest) {
            self.forget();
            return Err(match self.is_secluded().await? {
                true => ServiceError::DigestMismatch,
                false => written_to(),
            });
        }
        let older = store.older(&self.dir, &self.name, finish.expected).await;
        // Right before it gets its name: to make the older one durable may have taken long.
        if older.is_ok() && !self.is_secluded().await? && !self.was_shared.swap(true, Ordering::Relaxed) {
            self.forget();
            self.sync_shared(store).await?;
            return Ok(false);
        }
        let ours = Ours::Written(self.prove_prepared().await?);
        let published = match older {
            Ok(older) => {
                // Whatever comes of it: an error does not tell that it has not got its name.
                self.may_be_final.store(true, Ordering::Relaxed);
                store
                    .publish_over(&self.dir, &self.part, &self.name, older, &ours)
                    .await
            }
            Err(error) => Err(error),
        };
        let proven = self.prove_prepared().await;
        // Any other error has to be told, whatever else there is to tell.
        if matches!(published, Ok(()) | Err(ServiceError::Changed)) {
            proven?;
        }
        match published {
            // It was what it should be when it had its name: who changes it from now on changes their own file.
            Ok(()) => store.confirm_there(&self.path, &ours.by_inode()).await?,
            Err(ServiceError::Changed) => {
                // Finished by an earlier connection, whose answer was lost?
                self.confirm_finished(store, finish).await?;
                remove_ours(&self.dir, &self.part, &ours).await;
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// What somebody else has written to it is durable before it is read back: it may be what should be there.
    async fn sync_shared(&self, store: &Store<F>) -> Answer<()> {
        self.file.sync().await.map_err(|e| store.sync_failed("sync", &e))
    }

    /// As it is now. Fails when it is not as it was once all was written: whoever has written to it since has changed its mtime, which is the source's.
    async fn prove_prepared(&self) -> Answer<Version> {
        let now = self.version().await?;
        let is_so = self.prepared().is_some_and(|prepared| now.same_but_ctime(&prepared));
        if is_so || planted(Bug::PartialShared) {
            return Ok(now);
        }
        self.forget();
        self.hashes.forget();
        Err(written_to())
    }

    /// Proves that what is under its final name is the file that was to be there.
    async fn confirm_finished(&self, store: &Store<F>, finish: &Finish) -> Answer<()> {
        let settled = store
            .settle_if_equal(&self.dir, &self.path, &self.name, finish.digest, finish.meta)
            .await?;
        store.confirm_there(&self.path, &settled).await
    }
}

impl<F: Fs> Store<F> {
    /// Opens the partial of a file of `size` bytes, made new or left by an earlier run; its bytes count for nothing
    /// until compared. Beside it the final, if it is the version that shall be the `basis`.
    pub async fn open_partial(&self, path: &RelPath, size: u64, basis: Option<&Version>) -> Answer<Partial<F>> {
        self.ensure_safe()?;
        let (dir, name) = self.parent_of(path).await?;
        let part = names::partial(&name);
        let basis = match basis {
            Some(version) => self.open_basis(&dir, &name, version).await,
            None => None,
        };
        let mut reflink = Reflink::No;
        let (file, seclusion, found_len, remembered) = match self.take_kept(&dir, &part, size).await? {
            // What was shared as whole chunks is longer than its file.
            Some((file, seclusion, len, remembered)) => (file, seclusion, len.min(size), remembered),
            None => {
                let (file, seclusion, mut found_len) = self.take_found(&dir, &part, size).await?;
                if let (0, Some(basis)) = (found_len, &basis) {
                    reflink = begin_as_reflink(&file, basis, size).await?;
                    if reflink == Reflink::Yes {
                        found_len = basis.len.min(size);
                    }
                }
                (
                    file,
                    seclusion,
                    found_len,
                    self.inner.keeping.remember(&self.inner.limits),
                )
            }
        };
        let hashes = Hashes::new(size, self.inner.limits.hashes_ahead);
        let path = path.clone();
        Ok(Partial {
            basis,
            path,
            name,
            dir,
            part,
            file,
            size,
            found_len,
            reflink,
            seclusion,
            was_shared: AtomicBool::new(false),
            prepared: Mutex::new(None),
            hashes,
            unsynced_bytes: AtomicU64::new(0),
            remembered: Mutex::new(Some(remembered)),
            may_be_final: AtomicBool::new(false),
        })
    }

    /// The partial of a file of `size` bytes, made new, or as an earlier process left it; its length.
    async fn take_found(&self, dir: &F::Dir, part: &Name, size: u64) -> Answer<(F::File, Seclusion, u64)> {
        let (file, found) = self.take_partial(dir, part, true).await?;
        // Before anything of it is read or written.
        let seclusion = seclude(&file).await;
        if self.is_kept(&found) {
            // Since it was looked for among those.
            return Err(written_elsewhere());
        }
        // What somebody wrote until then counts as found.
        let found = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?.version;
        if found.size > size {
            file.set_len(size).await.map_err(|e| ServiceError::io("cut", &e))?;
        }
        let found_len = found.size.min(size);
        if found_len > 0 && !planted(Bug::ResumeFromCache) {
            // Written by another process: its failed syncs are not told to this one, so the device has to show the bytes.
            file.sync().await.map_err(|e| self.sync_failed("sync", &e))?;
            file.drop_cache()
                .await
                .map_err(|e| ServiceError::io("drop the cache of", &e))?;
        }
        Ok((file, seclusion, found_len))
    }

    /// Removes the partial of a file that arrived in another way, unless somebody is writing to it. It may be a second name of
    /// `held`, which the caller has locked.
    pub(super) async fn remove_partial(&self, dir: &F::Dir, name: &Name, held: Option<&Version>) -> Answer<()> {
        let part = names::partial(name);
        let Ok(file) = dir.open(&part).await else {
            return Ok(());
        };
        let found = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?.version;
        let is_held = held.is_some_and(|held| held.is_same_inode(&found));
        // Locked until it is gone.
        if is_held || matches!(lock_named(dir, &part, &file).await?, Locked::Yes(_)) {
            self.let_go(&found);
            ignore_missing(dir.unlink(&part).await).map_err(|e| ServiceError::io("remove", &e))?;
        }
        Ok(())
    }

    /// The owner of what this process makes: as the root's mark told, or else a file made for that.
    async fn owner(&self, dir: &F::Dir, part: &Name) -> Answer<u32> {
        if let Some(owner) = self.inner.owner.get() {
            return Ok(*owner);
        }
        let probe = names::probe(part);
        // One that is there was left by a crash, or is another program's that asks just now and needs its name no more.
        remove_probe(dir, &probe).await;
        let file = match dir.create(&probe).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(ServiceError::Leftover(probe)),
            made => made.map_err(|e| ServiceError::io("make a file", &e))?,
        };
        let made = file.metadata().await;
        ignore_missing(dir.unlink(&probe).await).map_err(|e| ServiceError::io("remove", &e))?;
        let uid = made.map_err(|e| ServiceError::io("stat", &e))?.uid;
        Ok(*self.inner.owner.get_or_init(|| uid))
    }

    /// Takes the partial `part` for this handle alone: made new, or with `resume` the one that is there.
    pub(super) async fn take_partial(&self, dir: &F::Dir, part: &Name, resume: bool) -> Answer<(F::File, Version)> {
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
                    // Leased.
                    Err(error) if is_any(&error, &[Errno::AGAIN]) => return Err(written_elsewhere()),
                    Err(error) if is_any(&error, &[Errno::LOOP, Errno::INVAL, Errno::ISDIR]) => {
                        return Err(ServiceError::Leftover(part.clone()));
                    }
                    Err(error) => return Err(ServiceError::io("open the partial", &error)),
                },
                Err(error) => return Err(ServiceError::io("make a file", &error)),
            };
            if is_new && !resume {
                // Whether it keeps its name is looked at when it is published: a small file is written in vain at worst.
                return match lock(&file).await? {
                    true => Ok((file.clone(), file.opened().version)),
                    false => Err(written_elsewhere()),
                };
            }
            let found = match lock_named(dir, part, &file).await? {
                Locked::Yes(found) => found,
                Locked::ByOther => return Err(written_elsewhere()),
                // Its last holder published or removed it.
                Locked::NotNamed => continue,
            };
            // What somebody else made they may have open for writing.
            if is_new || (resume && found.links == 1 && found.uid == self.owner(dir, part).await?) {
                return Ok((file, found.version));
            }
            // Somebody's, or of no use: this name alone goes.
            self.remove_twin(dir, part, &file, &found)
                .await
                .map_err(|e| ServiceError::io("remove", &e))?;
        }
        Err(somebody_else())
    }
}

/// Has whoever else opens `file` from now on seen.
pub(super) async fn seclude(file: &impl File) -> Seclusion {
    match file.lease().await {
        Ok(()) => Seclusion::Leased,
        Err(error) if has_no_leases(&error) => Seclusion::Unknown,
        Err(_) => Seclusion::Shared,
    }
}

/// Whether a partial began as a reflink.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reflink {
    Yes,
    /// Nothing was done.
    No,
    /// It was tried; there should be nothing of it any more.
    Failed,
}

/// Has a partial that is empty share the blocks of the final that it is to replace, where the file system can: what is equal is neither copied nor takes
/// room. What is there then counts once it is compared, however much it is.
async fn begin_as_reflink<F: File>(partial: &F, basis: &Basis<F>, size: u64) -> Answer<Reflink> {
    let len = size
        .checked_next_multiple_of(CHUNK_BYTES)
        .unwrap_or(size)
        .min(basis.len);
    match partial.reflink(&basis.file, len).await {
        Ok(()) => Ok(Reflink::Yes),
        Err(error) if is_any(&error, &[Errno::OPNOTSUPP, Errno::NOTTY, Errno::XDEV]) => Ok(Reflink::No),
        Err(_) => {
            let emptied = partial.set_len(0).await;
            emptied
                .map(|()| Reflink::Failed)
                .map_err(|e| ServiceError::io("cut", &e))
        }
    }
}

/// What came of locking a partial.
pub(super) enum Locked {
    /// It is ours alone, and still has its name.
    Yes(Metadata),
    /// Another run has it.
    ByOther,
    /// It has lost its name since it was opened.
    NotNamed,
}

/// Locks `file`, which was opened as `part`.
pub(super) async fn lock_named<D: Dir>(dir: &D, part: &Name, file: &D::File) -> Answer<Locked> {
    if !lock(file).await? {
        return Ok(Locked::ByOther);
    }
    let found = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
    Ok(if is_ours(dir, part, &Ours::Inode(found.version)).await? {
        Locked::Yes(found)
    } else {
        Locked::NotNamed
    })
}

/// Locks a partial; false when another run has it.
async fn lock(file: &impl File) -> Answer<bool> {
    match file.try_lock(Lock::Exclusive).await {
        Ok(()) => Ok(true),
        Err(error) if is_any(&error, &[Errno::AGAIN]) => Ok(false),
        Err(error) => Err(ServiceError::io("lock the partial", &error)),
    }
}

/// Makes a partial writable again that got its final mode just before a crash. One that a live run holds stays as it is, and
/// one that can't even be looked at: it may be.
async fn make_writable<D: Dir>(dir: &D, part: &Name) -> Answer<()> {
    let file = match dir.open(part).await {
        Ok(file) => file,
        Err(error) if is_any(&error, &[Errno::AGAIN]) => return Err(written_elsewhere()),
        Err(_) => return Err(ServiceError::Leftover(part.clone())),
    };
    match lock_named(dir, part, &file).await? {
        Locked::Yes(found) => file
            .set_meta(0o600, found.version.mtime)
            .await
            .map_err(|e| ServiceError::io("set the mode of", &e)),
        Locked::ByOther => Err(written_elsewhere()),
        Locked::NotNamed => Ok(()),
    }
}

pub(super) fn written_elsewhere() -> ServiceError {
    ServiceError::Busy("another run is writing this file; it stays for the next run".into())
}

fn written_to() -> ServiceError {
    ServiceError::Busy(
        "another program has had it open while it arrived, and it is not what was sent; it stays for the next run"
            .into(),
    )
}

pub(super) fn somebody_else() -> ServiceError {
    ServiceError::Busy(
        "another run is at this file, or somebody has removed or replaced its partial; it stays for the next run"
            .into(),
    )
}
