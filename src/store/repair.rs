//! Chunks of a file made of what the target has already: the target's blocks, the source's deltas.

use bytes::Bytes;

use super::{
    Partial, Store,
    hashes::len_of_chunk,
    scratch::Scratch,
    source::{SourceFile, has_hole},
};
use crate::{
    delta::{self, Indexed, Malformed, Op, Signature},
    digest::{CHUNK_BYTES, ChunkHash, chunk_len, hash_chunk},
    fs::{Dir, File, Fs},
    model::{Name, Version},
    planted::{Bug, planted},
    service::{Answer, Blocks, Delta, Form, ServiceError, Sums},
};

/// The final that a file is to replace, open to be read alone.
pub(super) struct Basis<F> {
    pub file: F,
    pub len: u64,
}

impl From<Malformed> for ServiceError {
    fn from(error: Malformed) -> Self {
        Self::BadRequest(error.to_string())
    }
}

impl<F: Fs> Store<F> {
    /// What is under the name `name`, if it is still `version` and can be read: if not, there is a bit more to send.
    pub(super) async fn open_basis(&self, dir: &F::Dir, name: &Name, version: &Version) -> Option<Basis<F::File>> {
        let file = dir.open(name).await.ok()?;
        let found = file.opened().version;
        let is_it = found.same_but_ctime(version) && found.size > 0;
        is_it.then_some(Basis { file, len: found.size })
    }
}

impl<F: Fs> Partial<F> {
    /// What is there of the file to be made, and how many bytes.
    pub(super) fn basis(&self) -> (&F::File, u64) {
        match &self.basis {
            Some(basis) => (&basis.file, basis.len),
            None => (&self.file, self.found_len()),
        }
    }

    /// The sums of `count` chunks of the basis, from chunk `first` on.
    pub async fn signature(&self, first: u64, count: u64, blocks: Blocks) -> Answer<Sums> {
        let (_, len) = self.basis();
        let (block_bytes, stride) = blocks.of(len);
        let start = first.saturating_mul(CHUNK_BYTES).min(len);
        let end = start.saturating_add(count.saturating_mul(CHUNK_BYTES)).min(len);
        let (mut at, mut sums) = (start, Vec::new());
        let read_bytes = if stride == 1 { CHUNK_BYTES } else { block_bytes.into() };
        // Blocks lie side by side there, for eight are summed up at once.
        let mut buf = vec![0; CHUNK_BYTES as usize];
        while at < end {
            let mut filled = 0;
            while at < end && filled < buf.len() {
                let read = &mut buf[filled..][..(end - at).min(read_bytes) as usize];
                self.read_basis(at, read).await;
                filled += read.len();
                at += read_bytes * u64::from(stride);
            }
            sums.extend(Signature::sums(block_bytes, &buf[..filled]));
        }
        Ok(Sums {
            start,
            bytes: end - start,
            block_bytes,
            stride,
            sums: sums.into(),
        })
    }

    /// Chunk `index`, made of `delta` and, where the caller may read that, of the basis. `DigestMismatch` where it is not what it should be.
    pub async fn rebuild(&self, index: u64, delta: &Delta, may_read: Answer<()>) -> Answer<Bytes> {
        let len = len_of_chunk(self.size(), index)?;
        let data = match delta.form {
            Form::Whole => delta.data.clone(),
            Form::Plain => self.rebuild_plain(&delta.data, len, may_read).await?,
            Form::Packed => {
                self.rebuild_plain(&delta::decompress(&delta.data)?, len, may_read)
                    .await?
            }
            Form::Left => return Err(ServiceError::BadRequest("a delta that was held back".into())),
        };
        let is_it = || hash_chunk(self.size(), index, &data) == delta.hash || planted(Bug::DeltaUnhashed);
        if data.len() != len || !is_it() {
            return Err(ServiceError::DigestMismatch);
        }
        Ok(data)
    }

    async fn rebuild_plain(&self, delta: &[u8], len: usize, may_read: Answer<()>) -> Answer<Bytes> {
        let (_, basis_len) = self.basis();
        let mut data = vec![0; len];
        let mut rest = &mut data[..];
        for op in delta::ops(delta, len)? {
            let (piece, after) = rest.split_at_mut(op.len());
            rest = after;
            match op {
                Op::Literal(literal) => piece.copy_from_slice(literal),
                Op::Copy { offset, len } => {
                    may_read.clone()?;
                    if offset.checked_add(len as u64).is_none_or(|end| end > basis_len) {
                        return Err(ServiceError::DigestMismatch);
                    }
                    self.read_basis(offset, piece).await;
                }
            }
        }
        Ok(data.into())
    }

    /// Writes chunk `index` as the basis has it `shift` bytes further on, if that is what it should be; whether it is.
    pub(super) async fn copy_from_basis(
        &self,
        store: &Store<F>,
        index: u64,
        hash: ChunkHash,
        shift: i64,
    ) -> Answer<bool> {
        let (Some(basis), Some(len)) = (&self.basis, chunk_len(self.size(), index)) else {
            return Ok(false);
        };
        let Some(start) = (index * CHUNK_BYTES).checked_add_signed(shift) else {
            return Ok(false);
        };
        if start >= basis.len {
            return Ok(false);
        }
        let mut data = Scratch::new(len);
        self.read_basis(start, &mut data).await;
        if hash_chunk(self.size(), index, &data) != hash && !planted(Bug::BasisUnhashed) {
            return Ok(false);
        }
        let sparse = has_hole(&basis.file, start, &data).await.unwrap_or(false);
        self.write_hashed(store, index, &data, Some(hash), sparse, ()).await?;
        Ok(true)
    }
}

impl<F: Fs> SourceFile<F> {
    /// What makes chunk `index` of a basis of which `signature` tells, and of what it does not tell `finer`; where nothing tells anything, or what is told is of no use, the chunk itself. None of that
    /// where more than `literal_max` bytes were not found, where there is no such number, or only samples are known.
    pub async fn diff(
        &self,
        index: u64,
        signature: Option<&Indexed>,
        finer: Option<&Indexed>,
        literal_max: Option<u64>,
    ) -> Answer<Delta> {
        let size = self.size();
        let len = len_of_chunk(size, index)?;
        let start = index * CHUNK_BYTES;
        let margin = signature.map_or(0, |signature| signature.block_bytes().into());
        let (from, to) = (start.saturating_sub(margin), (start + len as u64 + margin).min(size));
        let data = self.read_range(from, (to - from) as usize).await?;
        let piece = (start - from) as usize..(start - from) as usize + len;
        let chunk = &data[piece.clone()];
        let shift_of = |shift: Option<i64>| shift.and_then(|shift| shift.checked_sub_unsigned(start));
        let left = |literal_bytes: usize, shift| Delta {
            data: Bytes::new(),
            form: Form::Left,
            literal_bytes: literal_bytes as u64,
            shift: shift_of(shift),
            sparse: false,
            // Of what is not there nothing is to be proven.
            hash: ChunkHash([0; 32]),
        };
        let delta = match signature {
            Some(signature) if signature.is_sampled() => {
                let probed = signature.probe(&data, piece)?;
                return Ok(left(len - probed.found_bytes, probed.shift));
            }
            Some(signature) => signature.diff(&data, piece.clone())?,
            None => delta::Delta::literal(chunk),
        };
        let delta = match finer {
            Some(finer) => finer.refine(&delta, &data, piece)?,
            None => delta,
        };
        if literal_max.is_none_or(|most| delta.literal_bytes as u64 > most) {
            return Ok(left(delta.literal_bytes, delta.shift));
        }
        let hash = hash_chunk(size, index, chunk);
        self.was_read(index, hash).await?;
        let sparse = self.has_hole(start, chunk).await?;
        let packed = delta::compress(&delta.bytes).map_err(|e| ServiceError::io("compress", &e))?;
        let (form, bytes) = match packed {
            Some(packed) => (Form::Packed, packed),
            None => (Form::Plain, delta.bytes),
        };
        let (form, data) = match bytes.len() < len {
            true => (form, bytes.into()),
            // What is around it does not stay in memory with it.
            false => (Form::Whole, Bytes::copy_from_slice(chunk)),
        };
        Ok(Delta {
            data,
            form,
            literal_bytes: delta.literal_bytes as u64,
            shift: shift_of(delta.shift),
            sparse,
            hash,
        })
    }
}
