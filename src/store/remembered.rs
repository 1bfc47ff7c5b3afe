//! The hashes of the chunks of a partial, handed from who closes it to who goes on with it: what is on the disk and known is not read again.
//!
//! They are written beside the partial when it is closed, after a sync of all of it, and taken away, durably, before the next one writes to it.
//! So they tell of what is on the disk, and only of a partial that nobody has touched since: its inode, size, mtime and ctime have to be those of the
//! moment after that sync. After a crash or a kill there are none, and all is read.
//!
//! A hash is known for what this process itself wrote or read. A chunk that is written twice, a write that fails, bytes that are not what they should
//! be when they are read back: in the least doubt nothing is remembered of the file any more.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{ignore_missing, names};
use crate::{
    digest::{ChunkHash, chunk_count},
    fs::{Dir, File, Metadata, read_full, write_all},
    model::{Name, Version},
    planted::{Bug, planted},
};

/// How many chunks of all partials of a root are known at most, those of 512 GiB. They take about 30 MiB of memory.
const CHUNKS_MAX: usize = 1 << 19;

/// How many chunks are read all the same, to see whether they are what they should be.
pub(super) const SPOTS: usize = 4;

const MAGIC: &[u8; 8] = b"realizeH";
/// Magic, then size of the file; inode, size, mtime and ctime of the partial.
const HEADER_BYTES: usize = 8 + 8 + 4 * 8 + 2 * 4;
const ENTRY_BYTES: usize = 8 + 32;
const CHECK_BYTES: usize = 32;

/// How many chunks are known in all partials of one root.
pub(super) type Known = Arc<AtomicUsize>;

/// What is known of one partial.
pub(super) struct Remembered {
    known: Known,
    /// `None` once there was a doubt.
    chunks: Mutex<Option<BTreeMap<u64, Chunk>>>,
}

/// What is known of one chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// Its hash, from who had the partial before.
    Before(ChunkHash),
    /// It is being written.
    Written,
    /// Its hash, from what was written or read.
    Known(ChunkHash),
}

impl Remembered {
    /// What was known `before`.
    pub fn new(known: &Known, before: BTreeMap<u64, ChunkHash>) -> Self {
        let chunks = before.into_iter().map(|(index, hash)| (index, Chunk::Before(hash)));
        let chunks: BTreeMap<_, _> = chunks.collect();
        let remembered = Self {
            known: known.clone(),
            chunks: Mutex::new(None),
        };
        if remembered.take_room(chunks.len()) {
            *remembered.lock() = Some(chunks);
        }
        remembered
    }

    /// The hash of chunk `index`, if it is known.
    pub fn hash(&self, index: u64) -> Option<ChunkHash> {
        match self.lock().as_ref()?.get(&index)? {
            Chunk::Before(hash) | Chunk::Known(hash) => Some(*hash),
            Chunk::Written => None,
        }
    }

    /// Chunk `index` has been read, or is known, and has this hash.
    pub fn found(&self, index: u64, hash: ChunkHash) {
        self.set(index, Chunk::Known(hash), |before| match before {
            None => true,
            Some(Chunk::Before(before) | Chunk::Known(before)) => before == hash,
            Some(Chunk::Written) => false,
        });
    }

    /// Chunk `index` is about to be written.
    pub fn begin(&self, index: u64) {
        self.set(index, Chunk::Written, |before| {
            matches!(before, None | Some(Chunk::Before(_)))
        });
    }

    /// Chunk `index` has been written and has this hash.
    pub fn written(&self, index: u64, hash: ChunkHash) {
        self.set(index, Chunk::Known(hash), |before| before == Some(Chunk::Written));
    }

    /// Nothing is known any more, for good.
    pub fn give_up(&self) {
        if let Some(chunks) = self.lock().take() {
            self.known.fetch_sub(chunks.len(), Ordering::Relaxed);
        }
    }

    /// Sets what is known of a chunk, if that `may_be` after what was known before.
    fn set(&self, index: u64, chunk: Chunk, may_be: impl Fn(Option<Chunk>) -> bool) {
        let mut chunks = self.lock();
        let Some(all) = chunks.as_mut() else { return };
        let before = all.get(&index).copied();
        let fits = may_be(before) && (before.is_some() || self.take_room(1));
        if fits {
            all.insert(index, chunk);
        } else {
            drop(chunks);
            self.give_up();
        }
    }

    fn take_room(&self, count: usize) -> bool {
        let has_room = self.known.fetch_add(count, Ordering::Relaxed) + count <= CHUNKS_MAX;
        if !has_room {
            self.known.fetch_sub(count, Ordering::Relaxed);
        }
        has_room
    }

    /// Writes what is known, if it is of so many chunks at least, beside `part`, which has been synced and is `version` since.
    pub async fn write<D: Dir>(
        &self,
        dir: &D,
        part: &Name,
        version: &Version,
        size: u64,
        chunks_min: usize,
    ) -> io::Result<()> {
        let text = {
            let chunks = self.lock();
            let known = chunks.iter().flatten().filter_map(|(index, chunk)| match chunk {
                Chunk::Before(hash) | Chunk::Known(hash) => Some((*index, *hash)),
                Chunk::Written => None,
            });
            encode(version, size, known)
        };
        if text.len() < HEADER_BYTES + chunks_min * ENTRY_BYTES + CHECK_BYTES {
            return Ok(());
        }
        let name = names::hashes(part);
        // Whatever has the name is somebody's.
        let file = dir.create(&name).await?;
        let written = write_all(&file, 0, &text).await;
        if written.is_err() {
            ignore_missing(dir.unlink(&name).await)?;
        }
        written
    }

    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<u64, Chunk>>> {
        // Nothing panics while it is held.
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Remembered {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Takes away what was left beside `part`, which is `version` and locked. The caller makes that durable before it writes to the partial. What is not beyond
/// doubt is nothing, and what is not `owner`'s alone stays where it is.
pub(super) async fn take<D: Dir>(
    dir: &D,
    part: &Name,
    version: &Version,
    size: u64,
    owner: u32,
) -> io::Result<BTreeMap<u64, ChunkHash>> {
    let name = names::hashes(part);
    let file = dir.open(&name).await;
    let Some(file) = file.ok().filter(|file| is_ours(file.opened(), owner)) else {
        return Ok(BTreeMap::new());
    };
    let found = file.opened().clone();
    let most = HEADER_BYTES + CHUNKS_MAX * ENTRY_BYTES + CHECK_BYTES;
    let mut text = Vec::new();
    if found.version.size <= most as u64 {
        text.resize(found.version.size as usize, 0);
        // What can't be read tells nothing.
        let read = read_full(&file, 0, &mut text).await.unwrap_or(0);
        text.truncate(read);
    }
    ignore_missing(dir.unlink(&name).await)?;
    Ok(decode(&text, version, size).unwrap_or_default())
}

/// Removes what was left beside `part`, which is gone.
pub(super) async fn remove<D: Dir>(dir: &D, part: &Name, owner: u32) -> io::Result<()> {
    let name = names::hashes(part);
    match dir.open(&name).await {
        Ok(file) if is_ours(file.opened(), owner) => ignore_missing(dir.unlink(&name).await),
        _ => Ok(()),
    }
}

fn is_ours(found: &Metadata, owner: u32) -> bool {
    found.links == 1 && found.uid == owner
}

fn header(version: &Version, size: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    let times = [version.mtime, version.ctime];
    for number in [size, version.ino, version.size] {
        header.extend(number.to_le_bytes());
    }
    for time in times {
        header.extend(time.secs.to_le_bytes());
        header.extend(time.nanos.to_le_bytes());
    }
    header
}

fn encode(version: &Version, size: u64, known: impl Iterator<Item = (u64, ChunkHash)>) -> Vec<u8> {
    let mut text = header(version, size);
    for (index, hash) in known {
        text.extend(index.to_le_bytes());
        text.extend(hash.0);
    }
    let check = *blake3::hash(&text).as_bytes();
    text.extend(check);
    text
}

/// What `text` tells, if it is whole and of this very partial.
fn decode(text: &[u8], version: &Version, size: u64) -> Option<BTreeMap<u64, ChunkHash>> {
    let (text, check) = text.split_last_chunk::<CHECK_BYTES>()?;
    let entries = text.strip_prefix(header(version, size).as_slice());
    let entries = match entries {
        None if planted(Bug::HashesOfAnother) => text.get(HEADER_BYTES..),
        entries => entries,
    };
    let entries = entries.filter(|_| blake3::hash(text) == *check)?;
    let mut known = BTreeMap::new();
    let mut entries = entries.chunks_exact(ENTRY_BYTES);
    for entry in entries.by_ref() {
        let (index, hash) = entry.split_first_chunk::<8>()?;
        let index = u64::from_le_bytes(*index);
        if index >= chunk_count(size) {
            return None;
        }
        known.insert(index, ChunkHash(hash.try_into().ok()?));
    }
    entries.remainder().is_empty().then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest::CHUNK_BYTES, model::Timestamp};

    fn version() -> Version {
        let time = |secs| Timestamp { secs, nanos: 7 };
        Version {
            dev: 1,
            ino: 2,
            size: 3,
            mtime: time(4),
            ctime: time(5),
        }
    }

    fn hash(number: u8) -> ChunkHash {
        ChunkHash([number; 32])
    }

    const SIZE: u64 = 10 * CHUNK_BYTES;

    #[test]
    fn what_is_written_down_is_read_of_that_very_partial_alone() {
        let known = BTreeMap::from([(0, hash(1)), (9, hash(2))]);
        let text = encode(&version(), SIZE, known.clone().into_iter());
        assert_eq!(decode(&text, &version(), SIZE), Some(known));
        let changes: [fn(&mut Version); 4] = [
            |version| version.ino += 1,
            |version| version.size += 1,
            |version| version.mtime.nanos += 1,
            |version| version.ctime.nanos += 1,
        ];
        for change in changes {
            let mut other = version();
            change(&mut other);
            assert_eq!(decode(&text, &other, SIZE), None);
        }
        assert_eq!(decode(&text, &version(), SIZE + 1), None);
        for cut in 0..text.len() {
            assert_eq!(decode(&text[..cut], &version(), SIZE), None, "{cut} bytes");
            let mut flipped = text.clone();
            flipped[cut] ^= 1;
            assert_eq!(decode(&flipped, &version(), SIZE), None, "byte {cut}");
        }
        let past_end = encode(&version(), SIZE, std::iter::once((10, hash(1))));
        assert_eq!(decode(&past_end, &version(), SIZE), None);
    }

    #[test]
    fn in_the_least_doubt_nothing_is_known() {
        type Doubt = fn(&Remembered);
        let doubts: [(&str, Doubt); 6] = [
            ("written twice", |known| {
                known.begin(3);
                known.written(3, hash(3));
                known.begin(3);
            }),
            ("written at the same time", |known| {
                known.begin(3);
                known.begin(3);
            }),
            ("written while it was read", |known| {
                known.begin(3);
                known.found(3, hash(3));
            }),
            ("read in two ways", |known| known.found(1, hash(7))),
            ("never begun", |known| known.written(3, hash(3))),
            ("given up", |known| known.give_up()),
        ];
        for (what, doubt) in doubts {
            let all = Known::default();
            let known = Remembered::new(&all, BTreeMap::from([(0, hash(8))]));
            known.begin(1);
            known.written(1, hash(1));
            assert_eq!((known.hash(0), known.hash(1)), (Some(hash(8)), Some(hash(1))));
            assert_eq!(all.load(Ordering::Relaxed), 2);
            doubt(&known);
            assert_eq!((known.hash(0), known.hash(1)), (None, None), "{what}");
            known.found(5, hash(5));
            assert_eq!(known.hash(5), None, "{what}");
            assert_eq!(all.load(Ordering::Relaxed), 0, "{what}");
        }
    }

    #[test]
    fn what_was_known_before_may_be_written_once() {
        let all = Known::default();
        let known = Remembered::new(&all, BTreeMap::from([(0, hash(8))]));
        known.begin(0);
        assert_eq!(known.hash(0), None);
        known.written(0, hash(9));
        known.found(0, hash(9));
        assert_eq!(known.hash(0), Some(hash(9)));
        drop(known);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn no_more_is_known_than_there_is_room_for() {
        let all = Known::default();
        all.store(CHUNKS_MAX - 1, Ordering::Relaxed);
        let known = Remembered::new(&all, BTreeMap::new());
        known.found(0, hash(0));
        assert_eq!(known.hash(0), Some(hash(0)));
        known.found(1, hash(1));
        assert_eq!((known.hash(0), all.load(Ordering::Relaxed)), (None, CHUNKS_MAX - 1));
    }
}
