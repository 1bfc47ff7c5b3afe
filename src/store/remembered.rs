//! The hashes of those chunks of a partial that are on the disk, kept beside it: going on with a file does not read all of it again.
//!
//! The file of hashes has a header, which tells of which partial they are and when that was last written to as far as is known, and 32 bytes for
//! each chunk, zeros where nothing is known. A hash is written only after the sync of its chunk, and taken back, durably, before its chunk is
//! written again; so whatever a crash leaves of the file, a hash that is there is right. It is itself never synced but to take something back: what a crash
//! takes of it is read again.
//!
//! Whether somebody else has written to the partial since can't be told from its times, because the run that died wrote to it too, after it last
//! wrote here. But it writes here every [`DUE_SECS`] at least. So a partial that was changed more than [`DOUBT_SECS`] later, or is another or of
//! another size, or does not have in [`SPOTS`] places what it should, is read as if nothing were known.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::{Store, ignore_missing, is_any, names, partial::read_chunk_hash};
use crate::{
    digest::{CHUNK_BYTES, ChunkHash, chunk_count, chunk_len},
    fs::{Dir, File, Fs, read_full, write_all},
    model::{Name, Timestamp, Version},
    planted::{Bug, planted},
    service::{Answer, ServiceError},
};

/// After so many seconds what was written is synced and remembered, however little it is.
const DUE_SECS: i64 = 20;

/// A partial that was changed so many seconds after the last that is known may have been changed by anybody.
const DOUBT_SECS: i64 = 60;

/// How many chunks are read all the same, to see whether they are what they should be.
const SPOTS: usize = 4;

/// Files of more chunks are not remembered: 4 TiB, of which the hashes take 128 MiB on the disk, and 512 KiB of memory to know which there are.
const CHUNKS_MAX: u64 = 1 << 22;

const MAGIC: &[u8; 8] = b"realizeH";
const HEADER_BYTES: usize = 64;
const HASH_BYTES: usize = 32;

/// How many hashes are read at a time.
const HASHES_AT_ONCE: usize = 2048;

/// What is remembered of one partial.
pub(super) struct Remembered<F: Fs> {
    dir: F::Dir,
    name: Name,
    size: u64,
    state: Mutex<State<F>>,
}

struct State<F: Fs> {
    /// Whether anything is remembered at all.
    is_on: bool,
    /// Once it is made.
    file: Option<F::File>,
    /// Chunks whose hashes are in the file, or may be, a bit for each.
    known: Vec<u64>,
    /// Hashes of chunks that have been written since the last sync.
    unsynced: Vec<(u64, ChunkHash)>,
    /// When the partial was last written to as far as the file tells.
    told: Option<Timestamp>,
    /// When this process first wrote to it.
    begun: Option<Timestamp>,
}

impl<F: Fs> State<F> {
    fn is_known(&self, index: u64) -> bool {
        let word = self.known.get((index / 64) as usize);
        word.is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    fn set_known(&mut self, index: u64, is_known: bool) {
        if let Some(word) = self.known.get_mut((index / 64) as usize) {
            *word = *word & !(1 << (index % 64)) | u64::from(is_known) << (index % 64);
        }
    }
}

impl<F: Fs> Store<F> {
    /// What is remembered of the partial `part`, which is open and locked as `file`, was found as `found` and shall have `size` bytes. In the least doubt nothing.
    pub(super) async fn remember(
        &self,
        dir: &F::Dir,
        part: &Name,
        file: &F::File,
        found: &Version,
        size: u64,
    ) -> Answer<Remembered<F>> {
        let count = chunk_count(size);
        let is_on = size >= self.inner.limits.sync_every_bytes && count <= CHUNKS_MAX;
        let remembered = Remembered {
            dir: dir.clone(),
            name: names::hashes(part),
            size,
            state: Mutex::new(State {
                is_on,
                file: None,
                known: vec![0; if is_on { count.div_ceil(64) as usize } else { 0 }],
                unsynced: Vec::new(),
                told: None,
                begun: None,
            }),
        };
        if !is_on || !remembered.load(file, found, self.owner(dir, part).await?).await {
            remembered.lock().known.fill(0);
            remembered.remove(self).await?;
        }
        Ok(remembered)
    }
}

impl<F: Fs> Remembered<F> {
    /// Takes what the file of hashes tells, if it is beyond doubt.
    async fn load(&self, part: &F::File, found: &Version, owner: u32) -> bool {
        let Ok(file) = self.dir.open_write(&self.name).await else {
            return false;
        };
        let mut header = [0; HEADER_BYTES];
        let read = read_full(&file, 0, &mut header).await;
        let Some(told) = read.ok().and_then(|_| told_at(&header, found.ino, self.size)) else {
            return false;
        };
        let latest = Timestamp {
            secs: told.secs.saturating_add(DOUBT_SECS),
            ..told
        };
        let is_ours = file.opened().links == 1 && file.opened().uid == owner;
        if !is_ours || found.ctime < told || found.ctime > latest {
            return false;
        }
        let mut indices = Vec::new();
        for first in (0..chunk_count(self.size)).step_by(HASHES_AT_ONCE) {
            let Ok(hashes) = read_hashes(&file, first, HASHES_AT_ONCE).await else {
                return false;
            };
            let some = (first..chunk_count(self.size)).zip(hashes);
            indices.extend(some.filter_map(|(index, hash)| hash.map(|_| index)));
        }
        // What is past its end was never there.
        let end = |index: &u64| index * CHUNK_BYTES + chunk_len(self.size, *index).unwrap_or(0) as u64;
        if indices.last().is_none_or(|last| end(last) > found.size) {
            return false;
        }
        for nth in 0..SPOTS.min(indices.len()) {
            let index = indices[nth * (indices.len() - 1) / (SPOTS - 1)];
            let there = read_chunk_hash(part, self.size, index).await;
            let Ok(told) = read_hashes(&file, index, 1).await else {
                return false;
            };
            if !there.is_ok_and(|there| there.is_some() && there == told[0]) {
                return false;
            }
        }
        let mut state = self.lock();
        indices.into_iter().for_each(|index| state.set_known(index, true));
        (state.file, state.told) = (Some(file), Some(told));
        true
    }

    /// The hash of chunk `index`, if it is known and on the disk.
    pub async fn hash(&self, index: u64) -> Option<ChunkHash> {
        let file = {
            let state = self.lock();
            state.file.clone().filter(|_| state.is_on && state.is_known(index))?
        };
        read_hashes(&file, index, 1).await.ok()?[0]
    }

    /// Has what is known of `indices` forgotten, before anything else is written there.
    pub async fn forget(&self, store: &Store<F>, indices: &[u64]) -> Answer<()> {
        let (file, known) = {
            let state = self.lock();
            let known: Vec<u64> = indices.iter().copied().filter(|index| state.is_known(*index)).collect();
            (state.file.clone(), known)
        };
        if known.is_empty() || planted(Bug::RememberedKept) {
            return Ok(());
        }
        let zeroed = async {
            let file = file.as_ref().ok_or(Errno::NOENT)?;
            for index in &known {
                write_all(file, place(*index), &[0; HASH_BYTES]).await?;
            }
            file.sync().await
        };
        if zeroed.await.is_err() {
            return self.give_up(store).await;
        }
        let mut state = self.lock();
        known.iter().for_each(|index| state.set_known(*index, false));
        Ok(())
    }

    /// Chunk `index` is about to be written: what is known of it must be gone before, and it must not be written twice.
    pub async fn before_write(&self, store: &Store<F>, index: u64) -> Answer<()> {
        let (is_on, is_known) = {
            let state = self.lock();
            (state.is_on, state.is_known(index))
        };
        match is_on && is_known && !planted(Bug::RememberedKept) {
            true => self.give_up(store).await,
            false => Ok(()),
        }
    }

    /// Chunk `index` has this hash, and is on the disk with the next sync.
    pub fn written(&self, index: u64, hash: ChunkHash) {
        let mut state = self.lock();
        if state.is_on {
            state.set_known(index, true);
            state.unsynced.push((index, hash));
        }
    }

    /// Whether it is time to sync what was written: `now` is when that was changed.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let mut state = self.lock();
        let begun = *state.begun.get_or_insert(now);
        let last = state.told.map_or(begun, |told| told.max(begun));
        state.is_on && last.secs.saturating_add(DUE_SECS) <= now.secs
    }

    /// What the sync that begins now will cover.
    pub fn begin_sync(&self) -> Vec<(u64, ChunkHash)> {
        std::mem::take(&mut self.lock().unsynced)
    }

    /// Remembers what was on the disk when the partial was `version`, which it was or has been since.
    pub async fn synced(&self, store: &Store<F>, covered: Vec<(u64, ChunkHash)>, version: &Version) -> Answer<()> {
        {
            let mut state = self.lock();
            if !state.is_on || covered.is_empty() {
                return Ok(());
            }
            covered.iter().for_each(|(index, _)| state.set_known(*index, true));
        }
        let written = async {
            let made = self.lock().file.clone();
            let file = match made {
                Some(file) => file,
                None => self.make().await?,
            };
            for (index, hash) in &covered {
                write_all(&file, place(*index), &hash.0).await?;
            }
            let latest = self.lock().told.is_none_or(|told| told < version.ctime);
            match latest {
                true => write_all(&file, 0, &header(version, self.size)).await,
                false => Ok(()),
            }
        };
        match written.await {
            Ok(()) => {
                let mut state = self.lock();
                state.told = state.told.max(Some(version.ctime));
                Ok(())
            }
            // On a full disk, say: it does not matter.
            Err(_) => self.give_up(store).await,
        }
    }

    async fn make(&self) -> io::Result<F::File> {
        let made = self.dir.create(&self.name).await;
        let mut state = self.lock();
        match made {
            Ok(file) => Ok(state.file.insert(file).clone()),
            // Another job was quicker.
            Err(error) => state.file.clone().ok_or(error),
        }
    }

    /// Remembers nothing any more. What there is must not be found by a later run.
    pub async fn give_up(&self, store: &Store<F>) -> Answer<()> {
        {
            let mut state = self.lock();
            state.is_on = false;
            state.unsynced = Vec::new();
        }
        self.remove(store).await
    }

    /// Removes the file of hashes, durably: another partial may get its inode.
    async fn remove(&self, store: &Store<F>) -> Answer<()> {
        match self.dir.unlink(&self.name).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if is_any(&error, &[Errno::ISDIR]) => Err(ServiceError::Leftover(self.name.clone())),
            Err(error) => Err(ServiceError::io("remove", &error)),
            Ok(()) => store.sync_one(&self.dir).await,
        }
    }

    /// The partial is about to become final: there is nothing to be remembered. That it is gone becomes durable with the final name.
    pub async fn end(&self) -> Answer<()> {
        let had = {
            let mut state = self.lock();
            state.is_on = false;
            state.file.take().is_some()
        };
        match had {
            true => ignore_missing(self.dir.unlink(&self.name).await).map_err(|e| ServiceError::io("remove", &e)),
            false => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<F>> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the hash of chunk `index` is.
fn place(index: u64) -> u64 {
    HEADER_BYTES as u64 + index * HASH_BYTES as u64
}

/// Up to `count` hashes from chunk `first` on; `None` for those that are not known.
async fn read_hashes(file: &impl File, first: u64, count: usize) -> io::Result<Vec<Option<ChunkHash>>> {
    let mut bytes = vec![0; count * HASH_BYTES];
    read_full(file, place(first), &mut bytes).await?;
    let (hashes, _) = bytes.as_chunks::<HASH_BYTES>();
    let some = hashes
        .iter()
        .map(|hash| (*hash != [0; HASH_BYTES]).then_some(ChunkHash(*hash)));
    Ok(some.collect())
}

/// What tells of which partial the hashes are, that it shall have `size` bytes, and when it was written to.
fn header(version: &Version, size: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let fields = [
        *MAGIC,
        version.ino.to_le_bytes(),
        size.to_le_bytes(),
        version.ctime.secs.to_le_bytes(),
        u64::from(version.ctime.nanos).to_le_bytes(),
    ];
    let (told, sum) = header.split_at_mut(fields.concat().len());
    told.copy_from_slice(&fields.concat());
    sum.copy_from_slice(&blake3::hash(told).as_bytes()[..sum.len()]);
    header
}

/// When the partial of this inode and size was written to, if the header tells of that.
fn told_at(bytes: &[u8; HEADER_BYTES], ino: u64, size: u64) -> Option<Timestamp> {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let ctime = Timestamp {
        secs: number(24) as i64,
        nanos: u32::try_from(number(32)).ok()?,
    };
    let (dev, mtime) = (0, ctime);
    let version = Version {
        dev,
        ino,
        size,
        mtime,
        ctime,
    };
    (*bytes == header(&version, size)).then_some(ctime)
}
