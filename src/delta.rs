//! Signatures of what is there and deltas to what should be, by fast_rsync, in pieces and fit for what a hostile peer sends.
//!
//! fast_rsync wants both files whole in memory, and trusts what it is given: a signature of block size 0 has it loop for ever. So
//! here signatures are made of pieces and put together, are looked at before they are indexed, and deltas are parsed, cut to
//! pieces and applied by our own code, which is held against `fast_rsync::apply` by tests and fuzzing. The format is that of
//! librsync. MD4 is broken, and only some bytes of it are sent: a delta's result counts for nothing until its BLAKE3 hash agrees.

use std::{
    collections::BTreeMap,
    io,
    ops::{Range, RangeInclusive},
};

use fast_rsync::SignatureOptions;

use crate::digest::CHUNK_BYTES;

/// Smallest and largest block in bytes. All are powers of two, so that a chunk is a whole number of blocks.
pub const BLOCK_BYTES: RangeInclusive<u32> = 512..=256 << 10;

/// Bytes of each block's MD4 that are sent, beside 4 of its checksum. A block that is taken for another costs that its chunk is
/// sent whole. With 56 bits, and at most 2^18 blocks looked up at each of 2^20 positions of a chunk, that happens to one chunk in 2^18.
pub const HASH_BYTES: u32 = 3;

/// Bytes of a signature for each block.
pub const SUM_BYTES: usize = 4 + HASH_BYTES as usize;

/// Bytes of a block where a chunk is held against the one in its own place: a flipped bit then costs about as much as the sums.
pub const FINE_BLOCK_BYTES: u32 = 4096;

/// Bytes of a block where what one of `block_bytes` did not find is looked for once more: an eighth, within the smallest and [`FINE_BLOCK_BYTES`]. With
/// a fourth a tenth less was saved of the pairs of `docs/pairs.md`.
pub fn finer_block_bytes(block_bytes: u32) -> u32 {
    (block_bytes / 8).clamp(*BLOCK_BYTES.start(), FINE_BLOCK_BYTES)
}

/// Blocks of one signature at most, which is enough for a basis of 64 GiB: indexed they take up to 17 MiB, where checksums collide
/// twice that.
pub const BLOCKS_MAX: usize = 1 << 18;

/// Operations in the delta of one chunk at most: each copy but those cut at the ends is a block at least, and between two is one
/// literal. (Where those between blocks of 1 KiB or more are looked up once more there are as many.)
const OPS_MAX: usize = 2 * (CHUNK_BYTES as usize / *BLOCK_BYTES.start() as usize) + 16;

/// Bytes of the delta of one chunk at most: all of it literal, and the operations.
pub const DELTA_BYTES_MAX: usize = CHUNK_BYTES as usize + OPS_MAX * 17 + 5;

const SIGNATURE_MAGIC: u32 = 0x7273_0136;
const DELTA_MAGIC: u32 = 0x7273_0236;
const SIGNATURE_HEADER_BYTES: usize = 12;

/// Why a signature or a delta is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// The size of blocks, in bytes, for a basis of `basis_bytes`: about its square root, as rsync has it, so that signature and
/// what is sent for each difference grow alike; the power of two below it, so that chunks are whole blocks (the one above sent a fifth more of
/// a tar of 122 MB); larger where there would be too many blocks.
pub fn block_bytes(basis_bytes: u64) -> u32 {
    let root = 1 << basis_bytes.isqrt().clamp(1024, 1 << 17).ilog2();
    let fewest = basis_bytes.div_ceil(BLOCKS_MAX as u64).max(1).next_power_of_two();
    root.max(fewest).min((*BLOCK_BYTES.end()).into()) as u32
}

/// How many bytes of a basis of `basis_bytes` the sums of blocks of this size may cover.
pub fn covered_bytes(basis_bytes: u64, block_bytes: u32) -> u64 {
    basis_bytes.min(BLOCKS_MAX as u64 * u64::from(block_bytes))
}

/// Of so many blocks one at most is looked at where a basis is only sampled.
pub const STRIDE_MAX: u32 = 8;

/// Of how many blocks of this size one is looked at to learn whether a basis has anything of a file: four of a chunk at least.
pub fn stride(block_bytes: u32) -> u32 {
    const BLOCKS_OF_A_CHUNK: u32 = 4;
    (CHUNK_BYTES as u32 / BLOCKS_OF_A_CHUNK / block_bytes).clamp(1, STRIDE_MAX)
}

/// What is known of a basis: the sums of blocks that follow each other, or of one of each so many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Where in the basis the first block begins.
    start: u64,
    block_bytes: u32,
    /// From the beginning of one block to that of the next, in blocks.
    stride: u32,
    /// As fast_rsync has it, with the header.
    serialized: Vec<u8>,
}

impl Signature {
    /// Nothing yet of a basis, from the byte `start` on, in blocks of this size, one of each `stride`; both must be powers of two, within
    /// [`BLOCK_BYTES`] and up to [`STRIDE_MAX`].
    pub fn new(start: u64, block_bytes: u32, stride: u32) -> Result<Self, Malformed> {
        if !BLOCK_BYTES.contains(&block_bytes) || !block_bytes.is_power_of_two() {
            return Err(Malformed("a block size that is none"));
        }
        if stride > STRIDE_MAX || !stride.is_power_of_two() {
            return Err(Malformed("a stride that is none"));
        }
        if start > i64::MAX as u64 {
            return Err(Malformed("a basis larger than files can be"));
        }
        let header = [SIGNATURE_MAGIC, block_bytes, HASH_BYTES].map(u32::to_be_bytes);
        Ok(Self {
            start,
            block_bytes,
            stride,
            serialized: header.concat(),
        })
    }

    /// The sums of a piece of a basis: all of its blocks are whole but the last of the basis.
    pub fn sums(block_bytes: u32, data: &[u8]) -> Vec<u8> {
        let options = SignatureOptions {
            block_size: block_bytes,
            crypto_hash_size: HASH_BYTES,
        };
        let mut sums = fast_rsync::Signature::calculate(data, options).into_serialized();
        sums.drain(..SIGNATURE_HEADER_BYTES);
        sums
    }

    /// Adds the `sums` of the next `bytes` of the basis, which must be exactly those of its blocks.
    pub fn add(&mut self, bytes: u64, sums: &[u8]) -> Result<(), Malformed> {
        let blocks = bytes.div_ceil(self.step_bytes());
        if blocks > (BLOCKS_MAX - self.blocks()) as u64 {
            return Err(Malformed("a signature of too many blocks"));
        }
        if sums.len() != blocks as usize * SUM_BYTES {
            return Err(Malformed("a signature of another length than its basis has"));
        }
        self.serialized.extend_from_slice(sums);
        Ok(())
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        (self.serialized.len() - SIGNATURE_HEADER_BYTES) / SUM_BYTES
    }

    /// Where in the basis the next block begins, if all are whole so far.
    pub fn end(&self) -> u64 {
        self.start + self.blocks() as u64 * self.step_bytes()
    }

    fn step_bytes(&self) -> u64 {
        u64::from(self.block_bytes) * u64::from(self.stride)
    }

    /// Of how many blocks one is known.
    pub fn stride(&self) -> u32 {
        self.stride
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Ready to be looked up in.
    pub fn index(self) -> Result<Indexed, Malformed> {
        let (start, block_bytes, stride) = (self.start, self.block_bytes, self.stride);
        let parsed = fast_rsync::Signature::deserialize(self.serialized);
        let parsed = parsed.map_err(|_| Malformed("a signature that is none"))?;
        Ok(Indexed {
            start,
            block_bytes,
            stride,
            index: Index::new(parsed, fast_rsync::Signature::index),
        })
    }
}

type Blocks<'a> = fast_rsync::IndexedSignature<'a>;

self_cell::self_cell!(
    struct Index {
        owner: fast_rsync::Signature,
        #[covariant]
        dependent: Blocks,
    }
);

/// A signature to be looked up in.
pub struct Indexed {
    start: u64,
    block_bytes: u32,
    stride: u32,
    index: Index,
}

/// What makes a piece of new data of a basis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// In librsync's format.
    pub bytes: Vec<u8>,
    /// How many bytes of the piece are in it, and not in the basis.
    pub literal_bytes: usize,
    /// How many bytes further on in the basis than in the piece the last copy is, of those longer than a block: one block alone is found in
    /// many places where all of it is zeros.
    pub shift: Option<i64>,
}

impl Delta {
    /// The delta of a piece of which the basis has nothing.
    pub fn literal(data: &[u8]) -> Self {
        let all = [Op::Literal(data)];
        Self::of(if data.is_empty() { &[] } else { &all }, 0)
    }

    fn of(ops: &[Op<'_>], block_bytes: u32) -> Self {
        let (mut at, mut literal_bytes, mut shift) = (0, 0, None);
        for op in ops {
            match op {
                Op::Literal(data) => literal_bytes += data.len(),
                Op::Copy { offset, len } if *len > block_bytes as usize => {
                    shift = i64::try_from(*offset).ok().map(|offset| offset - at as i64);
                }
                Op::Copy { .. } => {}
            }
            at += op.len();
        }
        Self {
            literal_bytes,
            shift,
            bytes: encode(ops),
        }
    }
}

/// How much of a piece of new data the sampled blocks of a basis have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// How many bytes.
    pub found_bytes: usize,
    /// How many bytes further on in the basis than in the piece most of them are, if two at least agree.
    pub shift: Option<i64>,
}

impl Indexed {
    /// Bytes of a block.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Whether only some of the blocks are known: then there is no [`diff`](Self::diff).
    pub fn is_sampled(&self) -> bool {
        self.stride > 1
    }

    /// What the blocks have of the `piece` of `data`: see [`diff`](Self::diff).
    pub fn probe(&self, data: &[u8], piece: Range<usize>) -> Result<Probed, Malformed> {
        let mut delta = Vec::new();
        let mut found = Probed {
            found_bytes: 0,
            shift: None,
        };
        let mut votes = BTreeMap::<i64, u32>::new();
        let mut at = 0;
        for op in self.ops(data, &piece, &mut delta)? {
            if let Op::Copy { mut offset, len } = op {
                found.found_bytes += len;
                // Blocks that the signature has side by side are not so in the basis.
                let (end, block) = (offset + len as u64, u64::from(self.block_bytes));
                let ahead = offset as i64 - at as i64;
                while offset < end {
                    let skipped = offset / block * block * u64::from(self.stride - 1);
                    let shift = i64::try_from(self.start + skipped)
                        .ok()
                        .and_then(|skipped| skipped.checked_add(ahead));
                    *votes.entry(shift.unwrap_or(i64::MAX)).or_default() += 1;
                    offset = (offset / block + 1) * block;
                }
            }
            at += op.len();
        }
        let best = votes
            .into_iter()
            .filter(|(_, votes)| *votes > 1)
            .max_by_key(|(_, votes)| *votes);
        found.shift = best.map(|(shift, _)| shift);
        Ok(found)
    }

    /// The delta from the basis to the `piece` of `data`, which has a block more on both sides where there is that much: so a match across
    /// an end of the piece is found. A checksum that has been wrong 1,024 times is not looked up any more (fast_rsync's bound). At most
    /// [`DELTA_BYTES_MAX`] bytes for a piece up to a chunk.
    pub fn diff(&self, data: &[u8], piece: Range<usize>) -> Result<Delta, Malformed> {
        if self.is_sampled() {
            return Err(Malformed("sums of some blocks only"));
        }
        let mut delta = Vec::new();
        let mut ops = self.ops(data, &piece, &mut delta)?;
        for op in &mut ops {
            if let Op::Copy { offset, .. } = op {
                *offset += self.start;
            }
        }
        Ok(Delta::of(&ops, self.block_bytes))
    }

    /// As `delta`, which another signature gave for the `piece` of `data`; what that did not find is looked for here.
    pub fn refine(&self, delta: &Delta, data: &[u8], piece: Range<usize>) -> Result<Delta, Malformed> {
        let margin = self.block_bytes as usize;
        let (mut refined, mut at) = (Vec::new(), piece.start);
        for op in parse(&delta.bytes, piece.len(), usize::MAX)? {
            let end = at + op.len();
            match op {
                Op::Copy { .. } => refined.push(op),
                Op::Literal(_) => {
                    let around = at.saturating_sub(margin)..data.len().min(end + margin);
                    let within = at - around.start..end - around.start;
                    let found = self.diff(&data[around], within)?;
                    let mut from = at;
                    for op in parse(&found.bytes, end - at, usize::MAX)? {
                        refined.push(match op {
                            Op::Copy { offset, len } => Op::Copy { offset, len },
                            Op::Literal(_) => Op::Literal(&data[from..from + op.len()]),
                        });
                        from += op.len();
                    }
                }
            }
            at = end;
        }
        let shift = delta.shift;
        Ok(Delta {
            shift,
            ..Delta::of(&refined, self.block_bytes)
        })
    }

    /// What gives the `piece` of `data`, the blocks of the signature taken as if they lay side by side. `delta` is for its bytes.
    fn ops<'a>(&self, data: &[u8], piece: &Range<usize>, delta: &'a mut Vec<u8>) -> Result<Vec<Op<'a>>, Malformed> {
        let done = fast_rsync::diff(self.index.borrow_dependent(), data, &mut *delta);
        done.map_err(|_| Malformed("a signature that is none"))?;
        Ok(cut(&parse(delta, data.len(), usize::MAX)?, piece))
    }
}

/// One operation of a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    /// So many bytes of the basis, from an offset on.
    Copy {
        /// Where in the basis.
        offset: u64,
        /// How many bytes; at least one.
        len: usize,
    },
    /// These bytes; at least one.
    Literal(&'a [u8]),
}

#[expect(clippy::len_without_is_empty, reason = "none is empty")]
impl Op<'_> {
    /// How many bytes it gives.
    pub fn len(&self) -> usize {
        match self {
            Self::Copy { len, .. } => *len,
            Self::Literal(data) => data.len(),
        }
    }
}

/// The operations of `delta`, if it gives exactly `len` bytes, by no more operations than honest ones of a chunk have.
pub fn ops(delta: &[u8], len: usize) -> Result<Vec<Op<'_>>, Malformed> {
    parse(delta, len, OPS_MAX)
}

fn parse(mut delta: &[u8], len: usize, ops_max: usize) -> Result<Vec<Op<'_>>, Malformed> {
    let rest = &mut delta;
    if take_number(rest, 4)? != u64::from(DELTA_MAGIC) {
        return Err(Malformed("not a delta"));
    }
    let (mut ops, mut missing) = (Vec::new(), len);
    loop {
        let op = match take_number(rest, 1)? as u8 {
            0 => break,
            code @ 0x01..=0x40 => Op::Literal(take(rest, code.into())?),
            code @ 0x41..=0x44 => {
                let len = take_number(rest, 1 << (code - 0x41))?;
                Op::Literal(take(rest, usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            code @ 0x45..=0x54 => {
                let sizes = code - 0x45;
                let offset = take_number(rest, 1 << (sizes / 4))?;
                let len = take_number(rest, 1 << (sizes % 4))?;
                Op::Copy {
                    offset,
                    len: usize::try_from(len).unwrap_or(usize::MAX),
                }
            }
            _ => return Err(Malformed("an operation that is none")),
        };
        if op.len() == 0 {
            return Err(Malformed("an operation that does nothing"));
        }
        missing = missing
            .checked_sub(op.len())
            .ok_or(Malformed("a delta that gives too much"))?;
        if ops.len() == ops_max {
            return Err(Malformed("a delta of too many operations"));
        }
        ops.push(op);
    }
    match (missing, rest.is_empty()) {
        (0, true) => Ok(ops),
        (0, false) => Err(Malformed("something behind a delta")),
        _ => Err(Malformed("a delta that gives too little")),
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], Malformed> {
    rest.split_off(..count).ok_or(Malformed("a delta that ends too early"))
}

/// A number of up to 8 bytes, the highest first.
fn take_number(rest: &mut &[u8], count: usize) -> Result<u64, Malformed> {
    let bytes = take(rest, count)?;
    Ok(bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
}

/// What of `ops` gives the bytes of `piece`.
fn cut<'a>(ops: &[Op<'a>], piece: &Range<usize>) -> Vec<Op<'a>> {
    let mut start = 0;
    let mut within = Vec::new();
    for op in ops {
        let (from, to) = (piece.start.max(start), piece.end.min(start + op.len()));
        if from < to {
            let (skipped, len) = (from - start, to - from);
            within.push(match op {
                Op::Copy { offset, .. } => Op::Copy {
                    offset: offset + skipped as u64,
                    len,
                },
                Op::Literal(data) => Op::Literal(&data[skipped..skipped + len]),
            });
        }
        start += op.len();
    }
    within
}

/// The delta that consists of `ops`.
fn encode(ops: &[Op<'_>]) -> Vec<u8> {
    const OP_BYTES: usize = 17;
    let literal = |op: &Op<'_>| if let Op::Literal(data) = op { data.len() } else { 0 };
    let mut delta = Vec::with_capacity(5 + ops.iter().map(|op| OP_BYTES + literal(op)).sum::<usize>());
    delta.extend_from_slice(&DELTA_MAGIC.to_be_bytes());
    for op in ops {
        match op {
            Op::Literal(data) => {
                let code = literal_code(data.len());
                delta.push(code);
                if code > 0x40 {
                    put_number(&mut delta, data.len() as u64);
                }
                delta.extend_from_slice(data);
            }
            Op::Copy { offset, len } => {
                delta.push(0x45 + 4 * size_class(*offset) + size_class(*len as u64));
                put_number(&mut delta, *offset);
                put_number(&mut delta, *len as u64);
            }
        }
    }
    delta.push(0);
    delta
}

fn literal_code(len: usize) -> u8 {
    match len {
        1..=0x40 => len as u8,
        _ => 0x41 + size_class(len as u64),
    }
}

/// Which of 1, 2, 4 and 8 bytes `number` takes.
fn size_class(number: u64) -> u8 {
    match number {
        0..0x100 => 0,
        0x100..0x1_0000 => 1,
        0x1_0000..0x1_0000_0000 => 2,
        _ => 3,
    }
}

fn put_number(delta: &mut Vec<u8>, number: u64) {
    let bytes = number.to_be_bytes();
    delta.extend_from_slice(&bytes[8 - (1 << size_class(number))..]);
}

/// Level of zstd for deltas: the highest that keeps up with a fast network on one core.
const ZSTD_LEVEL: i32 = 3;

/// `delta` compressed, where that makes it smaller.
pub fn compress(delta: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut packed = zstd::bulk::compress(delta, ZSTD_LEVEL)?;
    if packed.len() >= delta.len() {
        return Ok(None);
    }
    // It was made as large as it might have become.
    packed.shrink_to_fit();
    Ok(Some(packed))
}

/// What was [`compress`]ed. Fails where it would be longer than a delta can be.
pub fn decompress(packed: &[u8]) -> Result<Vec<u8>, Malformed> {
    zstd::bulk::decompress(packed, DELTA_BYTES_MAX).map_err(|_| Malformed("what can't be decompressed"))
}

#[cfg(test)]
mod tests;
