//! The source's side of a file: opened with a lease, read, and deleted only as what was read.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rustix::io::Errno;

use super::{
    Store, has_no_leases, hashes::len_of_chunk, ignore_missing, is_any, is_unsupported, names, recall::SourceHashes,
    scratch::Scratch,
};
use crate::{
    digest::{CHUNK_BYTES, ChunkHash, FileHasher, chunk_count, digest, hash_chunk},
    fs::{Dir, File, Fs, Lock, Metadata, Rename, Sight, read_full},
    model::{Digest, Name, RelPath, Timestamp, Uncarried, Version},
    planted::{Bug, planted},
    service::{Answer, Chunk, Content, FileRef, ServiceError},
};

/// An open source.
pub enum Source<F: Fs> {
    /// A regular file.
    File(SourceFile<F>),
    /// A symbolic link, which has no descriptor to hold.
    Link {
        /// Where it is.
        path: RelPath,
        /// Which one.
        version: Version,
        /// Its text.
        text: Bytes,
    },
}

/// A regular file that is open to be read and deleted.
pub struct SourceFile<F: Fs> {
    path: RelPath,
    /// As it was when it was opened, before its first byte was read.
    version: Version,
    /// How many names it had then.
    links: u64,
    /// Locked, where the file system can: no other run takes it for a safe copy meanwhile, nor gives it another name.
    file: F::File,
    /// Whether a lease protects it.
    pub leased: bool,
    /// What of it a move would lose.
    pub uncarried: Uncarried,
    /// What is known of its chunks, where it is large, and whoever wrote to it since could be told.
    hashes: Option<Arc<SourceHashes<F>>>,
    /// Whether a hash was given that was remembered.
    has_recalled: AtomicBool,
}

impl<F: Fs> SourceFile<F> {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.version.size
    }

    /// Reads chunk `index`. `Changed` when the file ends before the chunk does.
    pub async fn read_chunk(&self, index: u64) -> Answer<Chunk> {
        let mut data = vec![0; len_of_chunk(self.version.size, index)?];
        let hash = self.read_and_hash(index, &mut data).await?;
        let sparse = self.has_hole(index * CHUNK_BYTES, &data).await?;
        Ok(Chunk {
            data: data.into(),
            sparse,
            hash,
        })
    }

    /// Reads `len` bytes from `offset` on, all of one state of the file.
    pub(super) async fn read_range(&self, offset: u64, len: usize) -> Answer<Vec<u8>> {
        let mut buf = vec![0; len];
        self.read_into(offset, &mut buf).await?;
        Ok(buf)
    }

    /// Fills `buf` from `offset` on, with one state of the file.
    async fn read_into(&self, offset: u64, buf: &mut [u8]) -> Answer<()> {
        // Holes too: a file system that took data for a hole would lose it.
        let read = match read_full(&self.file, offset, buf).await {
            Err(error) => {
                self.forget().await;
                return Err(ServiceError::io("read", &error));
            }
            Ok(read) => read,
        };
        if read < buf.len() {
            return Err(ServiceError::Changed);
        }
        self.prove_still().await
    }

    /// Whether any of the zeros in `data`, read at `start`, are a hole rather than written.
    pub(super) async fn has_hole(&self, start: u64, data: &[u8]) -> Answer<bool> {
        has_hole(&self.file, start, data).await
    }

    /// The hash of chunk `index`, which is read unless that is known.
    pub async fn hash_chunk(&self, index: u64) -> Answer<ChunkHash> {
        match self.hashes.as_ref().and_then(|hashes| hashes.get(index)) {
            Some(hash) => {
                self.has_recalled.store(true, Ordering::Relaxed);
                self.prove_still().await.map(|()| hash)
            }
            None => {
                let mut data = Scratch::new(len_of_chunk(self.version.size, index)?);
                self.read_and_hash(index, &mut data).await
            }
        }
    }

    /// Fills `data` with chunk `index`, whose length it has. Its hash.
    async fn read_and_hash(&self, index: u64, data: &mut [u8]) -> Answer<ChunkHash> {
        self.read_into(index * CHUNK_BYTES, data).await?;
        let hash = hash_chunk(self.version.size, index, data);
        self.was_read(index, hash).await?;
        Ok(hash)
    }

    /// Chunk `index` was read, of a state of the file that was proven. `Changed` when something else was remembered of it, and other chunks were believed.
    pub(super) async fn was_read(&self, index: u64, hash: ChunkHash) -> Answer<()> {
        if let Some(hashes) = &self.hashes {
            hashes.put(index, hash).await;
        }
        self.prove_recalled()
    }

    /// Fails when what was remembered of it and believed has turned out to be wrong since.
    fn prove_recalled(&self) -> Answer<()> {
        let is_forgotten = || self.hashes.as_ref().is_some_and(|hashes| hashes.is_forgotten());
        match self.has_recalled.load(Ordering::Relaxed) && is_forgotten() {
            true => Err(ServiceError::Changed),
            false => Ok(()),
        }
    }

    /// Nothing of it is known any more.
    async fn forget(&self) {
        if let Some(hashes) = &self.hashes {
            hashes.forget().await;
        }
    }

    /// Makes its content durable where it is.
    pub async fn sync(&self) -> io::Result<()> {
        self.file.sync().await
    }

    /// Fails when it is not as it was opened any more.
    pub async fn prove_untouched(&self) -> Answer<()> {
        self.prove_leased().await?;
        self.prove_unchanged(None).await
    }

    async fn read_whole(&self) -> Answer<Vec<u8>> {
        // Whether it has grown the proof tells.
        self.read_range(0, self.version.size as usize).await
    }

    /// Asked after each read, so that the last one proves that all of them saw one state of the file: nothing torn
    /// is ever sent to be published.
    async fn prove_still(&self) -> Answer<()> {
        self.prove_leased().await?;
        let now = self
            .file
            .metadata()
            .await
            .map_err(|e| ServiceError::io("stat", &e))?
            .version;
        // Under a lease nobody writes, so a ctime that differs tells of another name of the inode.
        if now == self.version || (self.leased && now.same_but_ctime(&self.version)) {
            return Ok(());
        }
        Err(ServiceError::Changed)
    }

    async fn digest(&self) -> Answer<Digest> {
        let size = self.version.size;
        let mut hasher = FileHasher::new(size, 1);
        for index in 0..chunk_count(size) {
            let hash = self.read_chunk(index).await?.hash;
            hasher
                .add(index, hash)
                .map_err(|error| ServiceError::BadRequest(error.to_string()))?;
        }
        hasher.digest().ok_or(ServiceError::Internal)
    }

    /// Proves that the file is still the one that was read, if its lease is held. A ctime alone that differs (another name of
    /// the inode went) is settled by reading it again.
    async fn prove_unchanged(&self, read_as: Option<Digest>) -> Answer<()> {
        if planted(Bug::NoSourceCheck) {
            return Ok(());
        }
        self.prove_recalled()?;
        let mut before = self.version;
        for _ in 0..=REREADS_MAX {
            let now = self
                .file
                .metadata()
                .await
                .map_err(|e| ServiceError::io("stat", &e))?
                .version;
            if now == before {
                return Ok(());
            }
            if !now.same_but_ctime(&self.version) {
                return Err(ServiceError::Changed);
            }
            // Nothing was read of it, and under a lease nobody writes: another name of the inode has come or gone.
            if read_as.is_none() && self.leased {
                return Ok(());
            }
            if read_as != Some(self.digest().await?) {
                return Err(ServiceError::Changed);
            }
            before = now;
        }
        Err(ServiceError::Changed)
    }

    async fn prove_leased(&self) -> Answer<()> {
        if !self.leased
            || planted(Bug::WriterIgnored)
            || self
                .file
                .lease_held()
                .await
                .map_err(|e| ServiceError::io("ask for the lease of", &e))?
        {
            return Ok(());
        }
        Err(being_written())
    }
}

/// Whether any of the zeros in `data`, read from `file` at `start`, are a hole rather than written.
pub(super) async fn has_hole(file: &impl File, start: u64, data: &[u8]) -> Answer<bool> {
    let mut in_zeros = false;
    for (index, block) in data.chunks(BLOCK_BYTES).enumerate() {
        let zeros_begin = is_zero(block) && !in_zeros;
        in_zeros = is_zero(block);
        let offset = start + (index * BLOCK_BYTES) as u64;
        if zeros_begin && file.next_data(offset).await.map_err(|e| ServiceError::io("seek", &e))? != Some(offset) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How long ago a file's last change must be for its ctime to tell it from the next: many ticks of any clock.
const SETTLED: Duration = Duration::from_secs(3);

/// How often a file whose ctime alone differs is read again before it counts as changed.
const REREADS_MAX: usize = 2;

/// Granularity of holes in bytes: the page, which no file system of Linux goes below.
pub(super) const BLOCK_BYTES: usize = 4096;

pub(super) fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

impl<F: Fs> Source<F> {
    /// Fails when the file that was not found under its name has another one: it was moved, not removed. (Of a link it can't
    /// be told.)
    async fn prove_gone(&self) -> Answer<()> {
        let Self::File(file) = self else { return Ok(()) };
        let now = file.file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
        if now.links >= file.links {
            return Err(ServiceError::Changed);
        }
        Ok(())
    }
}

/// What is said of a file under somebody's lock.
pub(super) fn locked_elsewhere() -> ServiceError {
    ServiceError::Busy("another run is at it, or a program holds a lock on it; it stays for the next run".into())
}

pub(super) fn being_written() -> ServiceError {
    ServiceError::Busy("somebody has it open for writing; it stays for the next run".into())
}

impl<F: Fs> Store<F> {
    /// Opens a source, for a file with a lease. `wall` is the time of day: where no lease can be had, a file that
    /// changed lately is `Busy`.
    pub async fn open_source(&self, wanted: &FileRef, wall: Timestamp) -> Answer<Source<F>> {
        let (dir, name) = self.parent_of(&wanted.path).await?;
        let file = match dir.open(&name).await {
            Ok(file) => file,
            Err(error) if is_any(&error, &[Errno::LOOP]) => return read_link(&dir, &name, wanted).await,
            // Under somebody else's lease.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(being_written()),
            // It was listed as a file.
            Err(error) if is_any(&error, &[Errno::INVAL, Errno::ISDIR]) => return Err(ServiceError::Changed),
            Err(error) => return Err(ServiceError::io("open", &error)),
        };
        match file.try_lock(Lock::Shared).await {
            Err(error) if is_any(&error, &[Errno::AGAIN]) => return Err(locked_elsewhere()),
            // Where there are no locks the law rests on the versions alone: see "What the law needs" in docs/design.md.
            _ => {}
        }
        self.let_go(&file.opened().version);
        let leased = match file.lease().await {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => return Err(being_written()),
            Err(error) if has_no_leases(&error) => false,
            Err(error) => return Err(ServiceError::io("take a lease on", &error)),
        };
        // Older than the lock and the lease: what came in between shows once the file is read.
        let Metadata { version, links, .. } = *file.opened();
        if !version.same_but_ctime(&wanted.version) {
            return Err(ServiceError::Changed);
        }
        let youngest = version.mtime.max(version.ctime);
        if !leased && !is_older(youngest, self.inner.limits.quiet_without_lease, wall) {
            return Err(ServiceError::Busy(
                "it changed within the last seconds; it stays for the next run".into(),
            ));
        }
        let uncarried = file
            .uncarried()
            .await
            .map_err(|e| ServiceError::io("read the attributes of", &e))?;
        // A write within the same tick of the clock would not change it. (Where seconds are counted, one after a step of the clock might not.)
        let is_settled = is_older(version.ctime, SETTLED, wall) && version.ctime.nanos != 0;
        let is_large = chunk_count(version.size) >= self.inner.limits.recalled_chunks;
        let may_recall = is_large && leased && is_settled && file.sight().await.ok() == Some(Sight::AllByCtime);
        // What is not read shows nothing: under the lease it has to be the version that is remembered.
        let may_recall = may_recall && file.metadata().await.is_ok_and(|now| now.version == version);
        // A device that was taken away may have lost times of a file whose data it has: what is remembered ends with the mount.
        let mount = file.mount().await.unwrap_or(None).filter(|_| may_recall);
        let hashes = match mount {
            Some(mount) => Some(self.inner.recall.of(&version, &self.inner.boot, mount).await),
            None => None,
        };
        Ok(Source::File(SourceFile {
            hashes,
            has_recalled: AtomicBool::new(false),
            path: wanted.path.clone(),
            version,
            links,
            file,
            leased,
            uncarried,
        }))
    }

    /// Reads a small source whole. With `with_data` false only its digest is given.
    pub async fn read_source(&self, source: &Source<F>, with_data: bool) -> Answer<Content> {
        match source {
            Source::Link { text, .. } => Ok(Content::Symlink(text.clone())),
            Source::File(file) if file.version.size > self.inner.limits.small_file_bytes => {
                Err(ServiceError::BadRequest("too large to be read whole".into()))
            }
            Source::File(file) => {
                let data = file.read_whole().await?;
                let digest = digest(&data);
                Ok(Content::File {
                    data: if with_data { data.into() } else { Bytes::new() },
                    digest,
                })
            }
        }
    }

    /// Deletes a source, whose content `read_as` is safe at the target: set aside, looked at once more, unlinked.
    /// One that is gone already is fine; one that has another name by now is not.
    pub async fn delete_source(&self, source: &Source<F>, read_as: Option<Digest>) -> Answer<()> {
        let (path, version, leased) = match source {
            Source::Link { path, version, .. } => (path, version, None),
            Source::File(source) => {
                source.prove_unchanged(read_as).await?;
                (&source.path, &source.version, source.leased.then_some(&source.file))
            }
        };
        let (dir, name) = match self.parent_of(path).await {
            Err(ServiceError::NotFound) => return source.prove_gone().await,
            found => found?,
        };
        let aside = match SetAside::take(self, &dir, name, version, leased).await {
            Err(ServiceError::NotFound) => return source.prove_gone().await,
            taken => taken?,
        };
        let proof = self.prove_aside(source, &aside, version).await;
        let deleted = if proof.is_ok() || planted(Bug::NoSourceCheck) {
            let unlinked = aside.gone_dir.unlink(&aside.gone).await;
            ignore_missing(unlinked).map_err(|e| ServiceError::io("delete", &e))
        } else {
            proof
        };
        if deleted.is_err() {
            self.put_back(&aside.gone_dir, &aside.gone, aside.dir, &aside.name)
                .await
                .map_err(|_| ServiceError::Leftover(aside.gone.clone()))?;
        }
        if let (Ok(()), Source::File(file)) = (&deleted, source) {
            file.forget().await;
        }
        aside.tidy().await?;
        if planted(Bug::NoSourceCheck) { Ok(()) } else { deleted }
    }

    async fn prove_aside(&self, source: &Source<F>, aside: &SetAside<'_, F>, version: &Version) -> Answer<()> {
        if planted(Bug::NoLookAside) {
            return Ok(());
        }
        let now = aside
            .gone_dir
            .stat(&aside.gone)
            .await
            .map_err(|e| ServiceError::io("stat", &e))?;
        if !now.version.same_but_ctime(version) {
            return Err(ServiceError::Changed);
        }
        match source {
            Source::File(file) => file.prove_leased().await,
            Source::Link { text, .. } => match aside.gone_dir.readlink(&aside.gone).await {
                Ok(now) if now == *text => Ok(()),
                _ => Err(ServiceError::Changed),
            },
        }
    }
}

async fn read_link<F: Fs>(dir: &F::Dir, name: &Name, wanted: &FileRef) -> Answer<Source<F>> {
    let Metadata { version, .. } = dir.stat(name).await.map_err(|e| ServiceError::io("stat", &e))?;
    if !version.same_but_ctime(&wanted.version) {
        return Err(ServiceError::Changed);
    }
    let text = dir.readlink(name).await;
    Ok(Source::Link {
        path: wanted.path.clone(),
        version,
        text: text.map_err(|e| ServiceError::io("read the link", &e))?.into(),
    })
}

/// How often a directory for long names that another job removes meanwhile is made again.
const SET_ASIDE_TRIES: usize = 64;

/// A source under the name it has while it is deleted.
struct SetAside<'a, F: Fs> {
    dir: &'a F::Dir,
    name: Name,
    gone_dir: F::Dir,
    gone: Name,
}

impl<'a, F: Fs> SetAside<'a, F> {
    /// Sets `name` aside, which should be `version`. `NotFound` when there is nothing of that name, `Leftover` when something was set aside before.
    /// `leased` is its file, where a lease protects that.
    async fn take(
        store: &'a Store<F>,
        dir: &'a F::Dir,
        name: Name,
        version: &Version,
        leased: Option<&F::File>,
    ) -> Answer<Self> {
        for _ in 0..SET_ASIDE_TRIES {
            let (gone_dir, gone) = match names::gone(&name) {
                Some(gone) => (dir.clone(), gone),
                None => match Self::long_names(dir).await {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    made => (
                        made.map_err(|e| ServiceError::io("rename it for its deletion", &e))?,
                        name.clone(),
                    ),
                },
            };
            let aside = Self {
                dir,
                name: name.clone(),
                gone_dir,
                gone,
            };
            match store
                .move_unless_there(dir, &name, &aside.gone_dir, &aside.gone, Care::Only(version, leased))
                .await
            {
                Ok(()) => return Ok(aside),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    // Why it is not set aside is what has to be told.
                    aside.tidy().await.ok();
                    return Err(match error.kind() {
                        io::ErrorKind::AlreadyExists => ServiceError::Leftover(aside.gone),
                        _ if is_any(&error, &[Errno::STALE]) => ServiceError::Changed,
                        _ if is_any(&error, &[Errno::AGAIN]) => being_written(),
                        _ => ServiceError::io("rename it for its deletion", &error),
                    });
                }
                // Either the file has gone, or another job has just removed the directory for long names.
                Err(_) => {
                    aside.tidy().await?;
                    // An error of looking is not taken for its absence.
                    dir.stat(&name)
                        .await
                        .map_err(|e| ServiceError::io("rename it for its deletion", &e))?;
                }
            }
        }
        Err(ServiceError::Busy(
            "other files of the directory are being deleted".into(),
        ))
    }

    async fn long_names(dir: &F::Dir) -> io::Result<F::Dir> {
        let long = names::gone_dir();
        match dir.mkdir(&long).await {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        dir.open_dir(&long.into()).await
    }

    /// Removes the directory for long names, unless something is left in it.
    async fn tidy(&self) -> Answer<()> {
        if names::gone(&self.name).is_some() {
            return Ok(());
        }
        match self.dir.rmdir(&names::gone_dir()).await {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                ignore_missing(Err(error)).map_err(|e| ServiceError::io("tidy", &e))
            }
            _ => Ok(()),
        }
    }
}

/// What is to be minded of a file that gets another name by a link and an unlink: a crash may leave the unlink alone.
#[derive(Clone, Copy)]
pub(super) enum Care<'a, F> {
    /// It can be made again.
    Ours,
    /// If it is this version (else `ESTALE`), and the lease of the file holds where there is one (else `EAGAIN`), it is safe elsewhere;
    /// nothing else loses its name.
    Only(&'a Version, Option<&'a F>),
    /// It may be somebody's only copy: the new name is durable first.
    Somebodys,
}

impl<F: Fs> Store<F> {
    /// Renames without replacing anything; where the file system does not know how, by a link and an unlink, with `care`.
    pub(super) async fn move_unless_there(
        &self,
        from_dir: &F::Dir,
        from: &Name,
        to_dir: &F::Dir,
        to: &Name,
        care: Care<'_, F::File>,
    ) -> io::Result<()> {
        match from_dir.rename(from, to_dir, to, Rename::NoReplace).await {
            Err(error) if is_unsupported(&error) => {}
            result => return result,
        }
        match from_dir.link(from, to_dir, to).await {
            Ok(()) => {
                // Who replaced `from` since keeps what they put there; a gap of one call is left.
                let (named, linked) = (from_dir.stat(from).await?, to_dir.stat(to).await?);
                if !named.version.is_same_inode(&linked.version) {
                    return Err(Errno::EXIST.into());
                }
                match care {
                    Care::Ours => {}
                    Care::Only(version, leased) => {
                        let is_held = match leased {
                            Some(file) => planted(Bug::WriterIgnored) || file.lease_held().await?,
                            None => true,
                        };
                        if !is_held || !linked.version.same_but_ctime(version) {
                            to_dir.unlink(to).await?;
                            let errno = if is_held { Errno::STALE } else { Errno::AGAIN };
                            return Err(errno.into());
                        }
                    }
                    Care::Somebodys => self.sync_names(to_dir).await?,
                }
                from_dir.unlink(from).await
            }
            // No links either (FAT): look, then rename. Who makes the name in between is overwritten; documented.
            Err(error) if is_any(&error, &[Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK]) => {
                match to_dir.stat(to).await {
                    Ok(_) => Err(Errno::EXIST.into()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        from_dir.rename(from, to_dir, to, Rename::Replace).await
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether `time` is at least `age` before `wall`. A time in the future is not.
pub(super) fn is_older(time: Timestamp, age: Duration, wall: Timestamp) -> bool {
    let limit = Timestamp {
        secs: wall.secs.saturating_sub_unsigned(age.as_secs()),
        nanos: wall.nanos,
    };
    time <= limit
}
