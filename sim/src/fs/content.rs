//! Bytes of a file, sparse: only pages that were written take memory.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hasher},
    sync::{Arc, OnceLock},
};

/// Size of a page in bytes: the granularity of holes, as on ext4 and tmpfs.
pub const PAGE_BYTES: u64 = 4096;

/// Size of a sector in bytes: what a power loss tears a write into.
pub const SECTOR_BYTES: u64 = 512;

type Page = [u8; PAGE_BYTES as usize];

/// The bytes of a file. Clones share pages. Equal when the bytes are equal, holes or not.
#[derive(Clone, Default)]
pub struct Content {
    size: u64,
    pages: BTreeMap<u64, Arc<Page>>,
    digest: OnceLock<u64>,
}

impl Content {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many pages are not holes.
    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// All bytes, holes as zeros. Not for huge files.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.read(0, &mut bytes);
        bytes
    }

    /// Reads at `offset`; how many bytes there were.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let count = (buf.len() as u64).min(self.size.saturating_sub(offset)) as usize;
        for (page, from, part) in pieces(offset, count, PAGE_BYTES) {
            match self.pages.get(&page) {
                Some(bytes) => buf[part.clone()].copy_from_slice(&bytes[from..from + part.len()]),
                None => buf[part].fill(0),
            }
        }
        count
    }

    /// Writes at `offset`, extending the size when need be.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.digest = OnceLock::new();
        for (page, from, part) in pieces(offset, data.len(), PAGE_BYTES) {
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            Arc::make_mut(bytes)[from..from + part.len()].copy_from_slice(&data[part]);
        }
        self.size = self.size.max(offset + data.len() as u64);
    }

    /// Makes `len` bytes at `offset` zeros, and of the whole pages among them a hole. The size stays.
    pub fn punch(&mut self, offset: u64, len: u64) {
        self.digest = OnceLock::new();
        for (page, from, part) in pieces(offset, len as usize, PAGE_BYTES) {
            if part.len() as u64 == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[from..from + part.len()].fill(0);
            }
        }
    }

    /// How many pages a write of `len` bytes at `offset` would add.
    pub fn new_pages(&self, offset: u64, len: usize) -> u64 {
        pieces(offset, len, PAGE_BYTES)
            .filter(|(page, _, _)| !self.pages.contains_key(page))
            .count() as u64
    }

    /// Cuts or extends (with a hole) to `len` bytes.
    pub fn set_len(&mut self, len: u64) {
        if len == self.size {
            return;
        }
        self.digest = OnceLock::new();
        if len < self.size {
            self.pages.split_off(&len.div_ceil(PAGE_BYTES));
            if let Some(bytes) = self.pages.get_mut(&(len / PAGE_BYTES)) {
                Arc::make_mut(bytes)[(len % PAGE_BYTES) as usize..].fill(0);
            }
        }
        self.size = len;
    }

    /// Where the next data at or after `offset` begins, if any.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let (page, _) = self.pages.range(offset / PAGE_BYTES..).next()?;
        Some(offset.max(page * PAGE_BYTES))
    }

    /// What is not a hole: where it begins, and its bytes.
    pub fn runs(&self) -> Vec<(u64, Vec<u8>)> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (page, bytes) in &self.pages {
            let offset = page * PAGE_BYTES;
            let bytes = &bytes[..(self.size - offset).min(PAGE_BYTES) as usize];
            match runs.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == offset => run.extend_from_slice(bytes),
                _ => runs.push((offset, bytes.to_vec())),
            }
        }
        runs
    }

    /// Whether the byte at `offset` is in a hole.
    pub fn is_hole(&self, offset: u64) -> bool {
        !self.pages.contains_key(&(offset / PAGE_BYTES))
    }

    /// Turns one bit over. Nothing when the byte is in a hole.
    pub fn flip(&mut self, offset: u64, bit: u32) {
        if let Some(bytes) = self.pages.get_mut(&(offset / PAGE_BYTES)) {
            self.digest = OnceLock::new();
            Arc::make_mut(bytes)[(offset % PAGE_BYTES) as usize] ^= 1 << (bit % 8);
        }
    }

    /// A hash of the bytes, kept until they change.
    pub fn digest(&self) -> u64 {
        *self.digest.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(self.size);
            for (page, bytes) in &self.pages {
                if bytes.iter().any(|byte| *byte != 0) {
                    hasher.write_u64(*page);
                    hasher.write(&bytes[..]);
                }
            }
            hasher.finish()
        })
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }
}

impl<const N: usize> From<&[u8; N]> for Content {
    fn from(bytes: &[u8; N]) -> Self {
        Self::from(&bytes[..])
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.size == other.size && self.digest() == other.digest()
    }
}

impl Eq for Content {}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes, {} pages, #{:016x}",
            self.size,
            self.pages(),
            self.digest()
        )
    }
}

/// Cuts a range of `len` bytes at `offset` at multiples of `unit`: the unit's number, where in the
/// unit it starts, and the part of the range.
pub(super) fn pieces(offset: u64, len: usize, unit: u64) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let at = offset + done as u64;
            let from = (at % unit) as usize;
            let count = (unit as usize - from).min(len - done);
            done += count;
            (at / unit, from, done - count..done)
        })
    })
}
