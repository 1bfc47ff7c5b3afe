//! The digest of a file from the hashes of its chunks, in any order.
//!
//! BLAKE3 is a tree: a chunk of 1 MiB (not the 1 KiB that the BLAKE3 paper calls a chunk) is a subtree
//! that is hashed alone, and merging the subtrees gives the plain digest that `b3sum` prints. So
//! either side hashes the bytes as they pass, several chunks at once, and nobody reads a file twice.

use std::collections::BTreeMap;

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
use serde::{Deserialize, Serialize};

use crate::model::Digest;

/// Bytes of a chunk. A power of two, as the tree needs; large enough that 32 bytes a chunk are nothing
/// (32 KiB a GiB) and small enough that a repair of one sends little.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// The hash of one chunk of a file: the subtree's value, or the digest itself when the file is a single
/// chunk. To be compared only with one of the same position in a file of the same size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkHash(pub [u8; 32]);

/// How many chunks a file of `size` bytes has. An empty file has one, which is empty.
pub fn chunk_count(size: u64) -> u64 {
    size.div_ceil(CHUNK_BYTES).max(1)
}

/// How many bytes chunk `index` of a file of `size` bytes has; `None` past its end.
pub fn chunk_len(size: u64, index: u64) -> Option<usize> {
    let start = index.checked_mul(CHUNK_BYTES)?;
    (index < chunk_count(size)).then(|| (size - start).min(CHUNK_BYTES) as usize)
}

/// The digest of data that is at hand whole.
pub fn digest(data: &[u8]) -> Digest {
    Digest(*blake3::hash(data).as_bytes())
}

/// The hash of chunk `index` of a file of `size` bytes. `data` must be the whole chunk.
pub fn hash_chunk(size: u64, index: u64, data: &[u8]) -> ChunkHash {
    assert_eq!(chunk_len(size, index), Some(data.len()), "a whole chunk is hashed");
    if chunk_count(size) == 1 {
        return ChunkHash(digest(data).0);
    }
    ChunkHash(
        blake3::Hasher::new()
            .set_input_offset(index * CHUNK_BYTES)
            .update(data)
            .finalize_non_root(),
    )
}

/// Collects the chunk hashes of one file and merges them into its digest. Keeps O(log n) values and
/// what came out of order.
#[derive(Debug)]
pub struct FileHasher {
    size: u64,
    /// Values of complete subtrees of chunks `0..next`, the largest first.
    stack: Vec<ChainingValue>,
    next: u64,
    ahead: BTreeMap<u64, ChunkHash>,
    ahead_max: usize,
}

/// Why a chunk hash was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It is past the end of the file.
    #[error("past the end of the file")]
    PastEnd,
    /// It was given and merged before.
    #[error("given twice")]
    Twice,
    /// Too many are waiting for an earlier one.
    #[error("too far ahead")]
    TooFarAhead,
}

impl FileHasher {
    /// For a file of `size` bytes; at most `ahead_max` hashes wait for an earlier one.
    pub fn new(size: u64, ahead_max: usize) -> Self {
        Self {
            size,
            stack: Vec::new(),
            next: 0,
            ahead: BTreeMap::new(),
            ahead_max,
        }
    }

    /// Takes the hash of chunk `index`. One that still waits for an earlier one may be replaced.
    pub fn add(&mut self, index: u64, hash: ChunkHash) -> Result<(), NotTaken> {
        if index >= chunk_count(self.size) {
            return Err(NotTaken::PastEnd);
        }
        if index < self.next {
            return Err(NotTaken::Twice);
        }
        if index > self.next && self.ahead.len() >= self.ahead_max && !self.ahead.contains_key(&index) {
            return Err(NotTaken::TooFarAhead);
        }
        self.ahead.insert(index, hash);
        while let Some(hash) = self.ahead.remove(&self.next) {
            // The last merge is the root's and needs to know that it is: so merge a value only once
            // another follows it.
            while self.stack.len() > self.next.count_ones() as usize {
                self.merge_top();
            }
            self.stack.push(hash.0);
            self.next += 1;
        }
        Ok(())
    }

    /// The hash of chunk `index` that waits for an earlier one, if it does.
    pub fn waiting(&self, index: u64) -> Option<ChunkHash> {
        self.ahead.get(&index).copied()
    }

    /// The first chunk that is still missing; the count of chunks when none is.
    pub fn next_missing(&self) -> u64 {
        self.next
    }

    /// The digest, once every chunk has been taken.
    pub fn digest(mut self) -> Option<Digest> {
        if self.next != chunk_count(self.size) {
            return None;
        }
        if self.next == 1 {
            return self.stack.pop().map(Digest);
        }
        while self.stack.len() > 2 {
            self.merge_top();
        }
        let [left, right] = self.stack[..] else {
            unreachable!("two chunks or more leave two values or more")
        };
        Some(Digest(
            *hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
        ))
    }

    fn merge_top(&mut self) {
        let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) else {
            unreachable!("only called with two values or more")
        };
        self.stack
            .push(hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunks(data: &[u8]) -> Vec<ChunkHash> {
        let size = data.len() as u64;
        (0..chunk_count(size))
            .map(|index| {
                let start = (index * CHUNK_BYTES) as usize;
                hash_chunk(size, index, &data[start..start + chunk_len(size, index).unwrap()])
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn merged_in_any_order_the_digest_is_the_plain_one(
            count in 0u64..12, extra in prop_oneof![Just(0u64), Just(1), 1..CHUNK_BYTES], seed: u64,
        ) {
            let size = count * CHUNK_BYTES + extra;
            let data: Vec<u8> = (0..size).map(|i| (i.wrapping_mul(seed | 1) >> 7) as u8).collect();
            let mut order: Vec<_> = chunks(&data).into_iter().enumerate().collect();
            order.sort_by_key(|(index, _)| (*index as u64 + 1).wrapping_mul(seed | 1));
            let mut hasher = FileHasher::new(size, 100);
            for (index, hash) in order {
                hasher.add(index as u64, hash).unwrap();
            }
            prop_assert_eq!(hasher.digest(), Some(digest(&data)));
        }
    }

    #[test]
    fn a_missing_chunk_gives_no_digest() {
        let data = vec![1; 3 * CHUNK_BYTES as usize];
        let mut hasher = FileHasher::new(data.len() as u64, 10);
        for (index, hash) in chunks(&data).into_iter().enumerate().skip(1) {
            hasher.add(index as u64, hash).unwrap();
        }
        assert_eq!(hasher.next_missing(), 0);
        assert_eq!(hasher.digest(), None);
    }

    #[test]
    fn what_a_peer_must_not_send_is_refused() {
        let hash = ChunkHash([0; 32]);
        let mut hasher = FileHasher::new(10 * CHUNK_BYTES, 2);
        assert_eq!(hasher.add(10, hash), Err(NotTaken::PastEnd));
        hasher.add(0, hash).unwrap();
        assert_eq!(hasher.add(0, hash), Err(NotTaken::Twice));
        hasher.add(2, hash).unwrap();
        hasher.add(3, hash).unwrap();
        assert_eq!(hasher.add(4, hash), Err(NotTaken::TooFarAhead));
        assert_eq!(hasher.add(1, hash), Ok(()));
        assert_eq!(hasher.next_missing(), 4);
    }

    #[test]
    fn chunks_of_huge_and_empty_files_are_counted_right() {
        assert_eq!((chunk_count(0), chunk_len(0, 0), chunk_len(0, 1)), (1, Some(0), None));
        assert_eq!(chunk_len(CHUNK_BYTES, 1), None);
        assert_eq!(chunk_len(CHUNK_BYTES + 1, 1), Some(1));
        assert_eq!(chunk_len(u64::MAX, u64::MAX), None);
    }
}
