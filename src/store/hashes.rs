//! What tells the digest of a file that was written or compared: the hashes of its chunks, or what is read back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::scratch::Scratch;
use crate::{
    digest::{CHUNK_BYTES, ChunkHash, FileHasher, NotTaken, chunk_count, chunk_len, hash_chunk},
    fs::{File, read_full},
    model::Digest,
    planted::{Bug, planted},
    service::{Answer, ServiceError},
};

/// The chunk hashes so far; once a chunk came twice the file is read back instead.
pub(super) struct Hashes {
    size: u64,
    state: Mutex<Known>,
}

enum Known {
    /// From what was written and compared.
    Chunks(FileHasher),
    /// Nothing that counts.
    Nothing,
    /// From what is being read back.
    ReadBack(FileHasher),
}

/// What came of comparing a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compared {
    Equal,
    Other,
    /// The disk does not give it: to be replaced as any other that is damaged.
    Unreadable,
}

impl Hashes {
    pub(super) fn new(size: u64, ahead_max: usize) -> Self {
        Self {
            size,
            state: Mutex::new(Known::Chunks(FileHasher::new(size, ahead_max))),
        }
    }

    /// Fails unless the file has `count` chunks from `first` on.
    pub(super) fn ensure_has(&self, first: u64, count: usize) -> Answer<()> {
        len_of_chunk(self.size, first.saturating_add(count.saturating_sub(1) as u64)).map(drop)
    }

    pub(super) fn add(&self, index: u64, hash: ChunkHash) -> Answer<()> {
        let mut state = self.lock();
        let Known::Chunks(hasher) = &mut *state else {
            // What was read back until now may not be so any more.
            *state = Known::Nothing;
            return Ok(());
        };
        // Which of two came last on the disk is not known.
        if hasher.waiting(index).is_some_and(|other| other != hash) {
            *state = Known::Nothing;
            return Ok(());
        }
        match hasher.add(index, hash) {
            Ok(()) => Ok(()),
            Err(NotTaken::Twice) => {
                *state = Known::Nothing;
                Ok(())
            }
            Err(error) => Err(ServiceError::BadRequest(format!("chunk {index}: {error}"))),
        }
    }

    /// Whether chunk `index` of `file` is `theirs`; it is added then.
    pub(super) async fn compare(&self, file: &impl File, index: u64, theirs: ChunkHash) -> Answer<Compared> {
        let read = match read_chunk_hash(file, self.size, index).await {
            Err(ServiceError::Io { .. }) => return Ok(Compared::Unreadable),
            read => read?,
        };
        let is_equal = read == Some(theirs)
            || (planted(Bug::ResumeUnchecked) && read.is_some())
            || (planted(Bug::ResumePastHole) && read.is_none());
        if !is_equal {
            return Ok(Compared::Other);
        }
        self.add(index, theirs)?;
        Ok(Compared::Equal)
    }

    /// What the file holds is not what was written and compared: all is to be read back.
    pub(super) fn forget(&self) {
        *self.lock() = Known::Nothing;
    }

    /// What was written and compared does not count: all is to be read back.
    pub(super) fn distrust(&self) {
        let mut state = self.lock();
        if matches!(&*state, Known::Chunks(hasher) if hasher.next_missing() == chunk_count(self.size)) {
            *state = Known::Nothing;
        }
    }

    /// Reads up to `chunks_max` chunks of `file` back from the device, where what was written and compared does not tell its digest. Whether
    /// that is known now, as far as it will be.
    pub(super) async fn read_back(&self, file: &impl File, chunks_max: u64) -> Answer<bool> {
        if matches!(*self.lock(), Known::Nothing) {
            file.drop_cache()
                .await
                .map_err(|e| ServiceError::io("drop the cache of", &e))?;
            *self.lock() = Known::ReadBack(FileHasher::new(self.size, 1));
        }
        for _ in 0..chunks_max {
            let index = match &*self.lock() {
                Known::Chunks(_) => return Ok(true),
                Known::ReadBack(hasher) if hasher.next_missing() >= chunk_count(self.size) => return Ok(true),
                Known::ReadBack(hasher) => hasher.next_missing(),
                Known::Nothing => return Ok(false),
            };
            let hash = read_chunk_hash(file, self.size, index)
                .await?
                .ok_or(ServiceError::DigestMismatch)?;
            if let Known::ReadBack(hasher) = &mut *self.lock() {
                hasher.add(index, hash).map_err(|_| ServiceError::Internal)?;
            }
        }
        Ok(false)
    }

    /// The digest of all chunks, once [`read_back`](Self::read_back) says that it is known.
    pub(super) fn digest(&self) -> Answer<Digest> {
        // Taken: should finishing fail and be tried again, the file is read back.
        let known = std::mem::replace(&mut *self.lock(), Known::Nothing);
        match known {
            Known::Chunks(hasher) if hasher.next_missing() < chunk_count(self.size) => {
                let next = hasher.next_missing();
                *self.lock() = Known::Chunks(hasher);
                Err(ServiceError::BadRequest(format!("chunk {next} is missing")))
            }
            Known::Chunks(hasher) | Known::ReadBack(hasher) => hasher.digest().ok_or(ServiceError::Internal),
            Known::Nothing => Err(ServiceError::Internal),
        }
    }

    /// The digest of `file` as it is read now: from the device, where its cache was dropped.
    pub(super) async fn read_whole(&self, file: &impl File) -> Answer<Digest> {
        let mut hasher = FileHasher::new(self.size, 1);
        for index in 0..chunk_count(self.size) {
            let hash = read_chunk_hash(file, self.size, index)
                .await?
                .ok_or(ServiceError::DigestMismatch)?;
            hasher.add(index, hash).map_err(|_| ServiceError::Internal)?;
        }
        hasher.digest().ok_or(ServiceError::Internal)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many bytes chunk `index`, which a peer has named, has of a file of `size` bytes.
pub(super) fn len_of_chunk(size: u64, index: u64) -> Answer<usize> {
    chunk_len(size, index).ok_or_else(|| ServiceError::BadRequest("a chunk past the end".into()))
}

/// The hash of chunk `index` of a file that shall have `size` bytes; `None` when it ends before.
async fn read_chunk_hash(file: &impl File, size: u64, index: u64) -> Answer<Option<ChunkHash>> {
    let len = len_of_chunk(size, index)?;
    let mut buf = Scratch::new(len);
    let read = read_full(file, index * CHUNK_BYTES, &mut buf)
        .await
        .map_err(|e| ServiceError::io("read back", &e))?;
    Ok((read == len).then(|| hash_chunk(size, index, &buf)))
}
