//! Hashes of sources: what a move has read of a large file the next one does not read again.
//!
//! They are of one version of a file, its ctime among it, and were taken under a lease when that was some seconds old: whoever writes to the file
//! later gives it another, on file systems where mappings do too. What a crash of the host does to times is not gone into: they count for one run of the kernel, and so need not be synced.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::ignore_missing;
use crate::{
    digest::ChunkHash,
    fs::{BootId, Dir, File, Fs, read_full, write_all},
    model::{Name, Version},
    planted::{Bug, planted},
};

/// How many versions are remembered at most: in memory; and on the disk, by a process beside as many that it has found there.
const VERSIONS_MAX: usize = 32;

/// How many hashes are written at a time: what a killed process forgets.
const HASHES_AT_ONCE: usize = 16;

/// Bytes of a hash on the disk: the chunk's number, the hash, and what proves that both were written whole and of this version.
const RECORD_BYTES: usize = 8 + 32 + PROOF_BYTES;
const PROOF_BYTES: usize = 8;

/// What is remembered of the sources of a root and those below it.
pub(super) struct Recall<F: Fs> {
    /// The oldest first.
    known: Mutex<VecDeque<Arc<SourceHashes<F>>>>,
    total: Arc<AtomicUsize>,
    total_max: usize,
    /// Where it is remembered longer than this process lives, if anywhere.
    dir: OnceLock<F::Dir>,
}

/// What is known of one version of a source.
pub(super) struct SourceHashes<F: Fs> {
    key: [u8; 32],
    state: Mutex<State<F>>,
    total: Arc<AtomicUsize>,
    total_max: usize,
    dir: Option<F::Dir>,
}

struct State<F: Fs> {
    hashes: BTreeMap<u64, ChunkHash>,
    /// What is not on the disk yet.
    unwritten: Vec<u8>,
    disk: OnDisk<F::File>,
    /// Whether something was wrong with what was known: nothing is any more.
    is_forgotten: bool,
}

/// What is on the disk.
enum OnDisk<File> {
    /// So many bytes; the file, once it was written to.
    UpTo(u64, Option<File>),
    /// More is being written.
    Written,
    /// Nothing more can be, or is to be.
    Not,
}

/// What came of a hash.
enum Added {
    New,
    /// It was known, or is not to be.
    Is,
    Differs,
}

impl<F: Fs> Recall<F> {
    pub fn new(total_max: usize) -> Self {
        Self {
            known: Mutex::default(),
            total: Arc::default(),
            total_max,
            dir: OnceLock::new(),
        }
    }

    /// Remembers in `dir` too, if nobody but its owner may write to it.
    pub async fn remember_in(&self, dir: F::Dir, owner: u32) -> io::Result<()> {
        let metadata = dir.metadata().await?;
        if metadata.uid != owner || metadata.mode & 0o022 != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut found = Vec::new();
        for name in dir.names().await? {
            if name.as_bytes().ends_with(SUFFIX)
                && let Ok(metadata) = dir.stat(&name).await
            {
                found.push((metadata.version.mtime, name));
            }
        }
        found.sort();
        for (_, name) in found.iter().take(found.len().saturating_sub(VERSIONS_MAX)) {
            ignore_missing(dir.unlink(name).await)?;
        }
        // Who comes second remembers there as well: it is the same place.
        self.dir.set(dir).ok();
        Ok(())
    }

    /// What is known of `version`, which may be added to.
    pub async fn of(&self, version: &Version, boot: &BootId, mount: u64) -> Arc<SourceHashes<F>> {
        let key = key(version, boot, mount);
        let find = |all: &VecDeque<Arc<SourceHashes<F>>>| all.iter().find(|known| known.key == key).cloned();
        let found = find(&self.lock());
        if let Some(known) = found {
            return known;
        }
        // Where it can't be told, all runs of the kernel count as one.
        let dir = self.dir.get().filter(|_| *boot != BootId::default()).cloned();
        let hashes = Arc::new(self.load(key, dir).await);
        let oldest = {
            let mut all = self.lock();
            if let Some(other) = find(&all) {
                return other;
            }
            let is_full = self.total.load(Ordering::Relaxed) >= self.total_max;
            let mut oldest = Vec::new();
            while all.len() >= VERSIONS_MAX || (is_full && oldest.is_empty()) {
                // What is being read is not given up.
                let Some(at) = all.iter().position(|known| Arc::strong_count(known) == 1) else {
                    break;
                };
                oldest.extend(all.remove(at));
            }
            all.push_back(hashes.clone());
            oldest
        };
        for oldest in oldest {
            oldest.forget().await;
        }
        hashes
    }

    async fn load(&self, key: [u8; 32], dir: Option<F::Dir>) -> SourceHashes<F> {
        let mut hashes = SourceHashes {
            key,
            state: Mutex::new(State {
                hashes: BTreeMap::new(),
                unwritten: Vec::new(),
                disk: if dir.is_some() {
                    OnDisk::UpTo(0, None)
                } else {
                    OnDisk::Not
                },
                is_forgotten: false,
            }),
            total: self.total.clone(),
            total_max: self.total_max,
            dir,
        };
        if let Some(bytes) = hashes.read(self.total_max * RECORD_BYTES).await {
            let SourceHashes { state, total, .. } = &mut hashes;
            let state = state.get_mut().unwrap_or_else(PoisonError::into_inner);
            let records = bytes.chunks_exact(RECORD_BYTES);
            state.disk = OnDisk::UpTo((records.len() * RECORD_BYTES) as u64, None);
            state.hashes = records.filter_map(|record| from_record(&key, record)).collect();
            total.fetch_add(state.hashes.len(), Ordering::Relaxed);
        }
        hashes
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<SourceHashes<F>>>> {
        // Nothing panics while it is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Fs> SourceHashes<F> {
    pub fn get(&self, index: u64) -> Option<ChunkHash> {
        self.lock().hashes.get(&index).copied()
    }

    /// Chunk `index` was read. When something else was known of it, nothing is any more.
    pub async fn put(&self, index: u64, hash: ChunkHash) {
        match self.add(index, hash) {
            Added::Is => {}
            Added::New => self.write().await,
            Added::Differs => self.forget().await,
        }
    }

    /// Whether what was known was wrong, or the file is gone.
    pub fn is_forgotten(&self) -> bool {
        self.lock().is_forgotten
    }

    fn add(&self, index: u64, hash: ChunkHash) -> Added {
        let mut state = self.lock();
        match state.hashes.get(&index) {
            Some(known) if *known == hash => return Added::Is,
            Some(_) => return Added::Differs,
            None => {}
        }
        if state.is_forgotten {
            return Added::Is;
        }
        if self.total.fetch_add(1, Ordering::Relaxed) >= self.total_max {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Added::Is;
        }
        state.hashes.insert(index, hash);
        if !matches!(state.disk, OnDisk::Not) {
            state.unwritten.extend(to_record(&self.key, index, hash));
        }
        Added::New
    }

    /// Nothing is known any more: it is wrong, or the file is gone.
    pub async fn forget(&self) {
        {
            let mut state = self.lock();
            self.total.fetch_sub(state.hashes.len(), Ordering::Relaxed);
            state.hashes.clear();
            state.unwritten.clear();
            (state.disk, state.is_forgotten) = (OnDisk::Not, true);
        }
        self.remove().await;
    }

    async fn remove(&self) {
        let Some(dir) = &self.dir else { return };
        match dir.unlink(&self.name()).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // Else every later process would believe what is in it.
                if let Ok(file) = dir.open_write(&self.name()).await {
                    file.set_len(0).await.ok();
                }
            }
            _ => {}
        }
    }

    /// Writes what is not on the disk, once that is enough.
    async fn write(&self) {
        let Some(dir) = &self.dir else { return };
        let (file, at, bytes) = {
            let mut state = self.lock();
            if state.unwritten.len() < HASHES_AT_ONCE * RECORD_BYTES {
                return;
            }
            match std::mem::replace(&mut state.disk, OnDisk::Written) {
                OnDisk::UpTo(at, file) => (file, at, std::mem::take(&mut state.unwritten)),
                other => {
                    state.disk = other;
                    return;
                }
            }
        };
        let written = self.write_at(dir, file, at, &bytes).await;
        let is_forgotten = {
            let mut state = self.lock();
            if !state.is_forgotten {
                state.disk = match written {
                    Ok(file) => OnDisk::UpTo(at + bytes.len() as u64, Some(file)),
                    Err(_) => OnDisk::Not,
                };
            }
            state.is_forgotten
        };
        if is_forgotten {
            // It may have been made anew meanwhile.
            self.remove().await;
        }
    }

    async fn write_at(&self, dir: &F::Dir, file: Option<F::File>, at: u64, bytes: &[u8]) -> io::Result<F::File> {
        let file = match file {
            Some(file) => file,
            None => match dir.create(&self.name()).await {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => dir.open_write(&self.name()).await?,
                made => made?,
            },
        };
        write_all(&file, at, bytes).await?;
        Ok(file)
    }

    async fn read(&self, bytes_max: usize) -> Option<Vec<u8>> {
        let file = self.dir.as_ref()?.open(&self.name()).await.ok()?;
        let len = usize::try_from(file.opened().version.size)
            .ok()
            .filter(|len| *len <= bytes_max)?;
        let mut bytes = vec![0; len];
        let read = read_full(&file, 0, &mut bytes).await.ok()?;
        bytes.truncate(read);
        Some(bytes)
    }

    fn name(&self) -> Name {
        let hex: String = self.key[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = [hex.as_bytes(), SUFFIX].concat();
        Name::new(name).unwrap_or_else(|_| unreachable!("digits and letters are a name"))
    }

    fn lock(&self) -> MutexGuard<'_, State<F>> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Fs> Drop for SourceHashes<F> {
    fn drop(&mut self) {
        let count = self.lock().hashes.len();
        self.total.fetch_sub(count, Ordering::Relaxed);
    }
}

const SUFFIX: &[u8] = b".hashes";

/// What a version of a file is known by, as long as the kernel runs and the file system stays mounted.
fn key(version: &Version, boot: &BootId, mount: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("realize 2026-11 hashes of a source");
    let Version {
        dev,
        ino,
        size,
        mtime,
        ctime,
    } = version;
    hasher.update(boot);
    for number in [mount, *dev, *ino, *size] {
        hasher.update(&number.to_le_bytes());
    }
    for time in [mtime, ctime] {
        if !planted(Bug::RecallUnchecked) {
            hasher.update(&time.secs.to_le_bytes());
            hasher.update(&time.nanos.to_le_bytes());
        }
    }
    *hasher.finalize().as_bytes()
}

fn to_record(key: &[u8; 32], index: u64, hash: ChunkHash) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..8].copy_from_slice(&index.to_le_bytes());
    record[8..40].copy_from_slice(&hash.0);
    let proof = blake3::keyed_hash(key, &record[..40]);
    record[40..].copy_from_slice(&proof.as_bytes()[..PROOF_BYTES]);
    record
}

fn from_record(key: &[u8; 32], record: &[u8]) -> Option<(u64, ChunkHash)> {
    let index = u64::from_le_bytes(record.get(..8)?.try_into().ok()?);
    let hash = ChunkHash(record.get(8..40)?.try_into().ok()?);
    (record == to_record(key, index, hash)).then_some((index, hash))
}
