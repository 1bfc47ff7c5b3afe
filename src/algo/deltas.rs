//! Deltas and sums: how both ends are asked for them, and what of the answers is taken.

use futures::{StreamExt, stream};

use super::{
    Item, ServiceStub, Shared, Why,
    calls::{self, flat},
    repair::Way,
};
use crate::{
    delta::{self, SUM_BYTES},
    digest::CHUNK_BYTES,
    service::{Against, Answer, Blocks, Delta, Form, Handle, SIGNATURE_CHUNKS_MAX, ServiceError, Sums},
};

/// A chunk of which more bytes than that are not found is looked up once more, in finer blocks.
const FINER_BYTES: u64 = 64 << 10;

/// How many bytes the sums of finer blocks may take in a move beyond what they have saved there: those of all chunks that are tried at once.
pub(super) const FINER_LOSS_BYTES: i64 = 1 << 20;

/// So many times its own size of a basis are worth being looked through for a file, and so many bytes in any case.
const WORTH_TIMES: u64 = 4;
const WORTH_BYTES: u64 = 64 << 20;

/// How many calls for signatures are under way at once.
const SIGNATURES_AT_ONCE: usize = 4;

/// Sums are loaded in pieces of about that many bytes.
const LOAD_BYTES: usize = 256 << 10;

/// Both ends of a file.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub source: Handle,
    pub target: Handle,
    pub size: u64,
    pub basis_len: u64,
    /// How many bytes further on in the basis than in the file it is looked for.
    pub shift: i64,
}

impl Ends {
    /// The chunk of the basis in which that begins which is chunk `index` of the file.
    fn place(&self, index: u64) -> u64 {
        (index * CHUNK_BYTES).saturating_add_signed(self.shift) / CHUNK_BYTES
    }

    /// In how many chunks of the basis a chunk of the file is.
    fn chunks(&self) -> u64 {
        if self.shift % CHUNK_BYTES as i64 == 0 { 1 } else { 2 }
    }
}

impl<S: ServiceStub, T: ServiceStub> Shared<'_, S, T> {
    /// What the source makes of a chunk, in finer blocks where much is not found and that may pay; and about how many bytes these save.
    pub(super) async fn delta(
        &self,
        item: &Item,
        ends: Ends,
        (index, len): (u64, usize),
        way: Way,
        literal_max: Option<u64>,
    ) -> Result<(Delta, i64), Why> {
        let (against, finer) = match way {
            Way::InPlace => {
                let sums = self.signature(ends, ends.place(index), ends.chunks(), Blocks::Fine);
                (Against::Sums(sums.await?), Some(Blocks::FinerThanFine))
            }
            Way::Loaded => (Against::Loaded, Some(Blocks::FinerThanCoarse)),
            Way::Packed => (Against::Nothing, None),
        };
        let service = &self.sources[item.source].service;
        let diff = async |finer, literal_max| {
            let delta = service.diff(
                calls::context(),
                ends.source,
                index,
                against.clone(),
                finer,
                literal_max,
            );
            let delta = flat(delta).await.and_then(|delta| check_delta(delta, len, literal_max));
            delta.map_err(Why::Source)
        };
        let may_pay = || self.finer_left.get() > 0;
        let (Some(blocks), Some(max)) = (finer.filter(|_| may_pay()), literal_max) else {
            return Ok((diff(None, literal_max).await?, 0));
        };
        let first = diff(None, Some(max.min(FINER_BYTES))).await?;
        if first.form != Form::Left || first.literal_bytes > max {
            return Ok((first, 0));
        }
        if !may_pay() {
            return Ok((diff(None, literal_max).await?, 0));
        }
        let shift = match way {
            Way::Loaded => first.shift.unwrap_or(ends.shift),
            _ => ends.shift,
        };
        let near = Ends { shift, ..ends };
        // Those in flight must not have it twice.
        let (block_bytes, _) = blocks.of(ends.basis_len);
        let cost = sums_of(near.chunks() * CHUNK_BYTES, block_bytes, 1) * SUM_BYTES;
        self.finer_left.set(self.finer_left.get() - cost as i64);
        let sums = self.signature(near, near.place(index), near.chunks(), blocks).await?;
        let delta = diff(Some(sums), Some(max)).await?;
        let saved = saved(&first, &delta);
        Ok((delta, saved))
    }

    async fn signature(&self, ends: Ends, first: u64, count: u64, blocks: Blocks) -> Result<Sums, Why> {
        let service = &self.target.service;
        let sums = flat(service.calculate_signature(calls::context(), ends.target, first, count, blocks)).await;
        let sums = sums.and_then(|sums| check_sums(sums, ends.basis_len, first, count, blocks));
        sums.map_err(Why::Target)
    }

    /// Gives the source sums of the whole basis, as far as it is worth that.
    pub(super) async fn load_signature(&self, item: &Item, ends: Ends, blocks: Blocks) -> Result<(), Why> {
        let (block_bytes, stride) = blocks.of(ends.basis_len);
        let worth = ends.size.saturating_mul(WORTH_TIMES).max(WORTH_BYTES);
        let covered = delta::covered_bytes(ends.basis_len, block_bytes).min(worth);
        let service = &self.sources[item.source].service;
        let step = SIGNATURE_CHUNKS_MAX as usize;
        let pieces = stream::iter((0..covered / CHUNK_BYTES + 1).step_by(step))
            .map(|first| self.signature(ends, first, SIGNATURE_CHUNKS_MAX, blocks))
            .buffered(SIGNATURES_AT_ONCE);
        let mut pieces = std::pin::pin!(pieces);
        let (mut start, mut bytes, mut sums) = (0, 0, Vec::new());
        loop {
            let piece = pieces.next().await.transpose()?;
            let is_last = piece.is_none();
            if let Some(piece) = piece {
                let room = covered.saturating_sub(start + bytes);
                let taken = piece.bytes.min(room);
                let count = sums_of(taken, block_bytes, stride);
                bytes += taken;
                sums.extend_from_slice(&piece.sums[..count * SUM_BYTES]);
            }
            if bytes > 0 && (is_last || sums.len() >= LOAD_BYTES) {
                let next = Sums {
                    start,
                    bytes,
                    block_bytes,
                    stride,
                    sums: std::mem::take(&mut sums).into(),
                };
                (start, bytes) = (start + bytes, 0);
                let loaded = service.load_signature(calls::context(), ends.source, next);
                flat(loaded).await.map_err(Why::Source)?;
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

/// How many sums tell of so many bytes of a basis.
fn sums_of(bytes: u64, block_bytes: u32, stride: u32) -> usize {
    bytes.div_ceil(u64::from(block_bytes) * u64::from(stride)) as usize
}

/// About how many bytes it has saved that `finer` was made, where `coarse` was left.
fn saved(coarse: &Delta, finer: &Delta) -> i64 {
    let found = coarse.literal_bytes.saturating_sub(finer.literal_bytes);
    let (sent, literal) = (finer.data.len() as u64, finer.literal_bytes.max(1));
    (found * sent.min(literal) / literal) as i64
}

fn check_delta(delta: Delta, len: usize, literal_max: Option<u64>) -> Answer<Delta> {
    let is_sound = match delta.form {
        Form::Left => literal_max.is_none_or(|max| delta.literal_bytes > max) && delta.data.is_empty(),
        _ if literal_max.is_none_or(|max| delta.literal_bytes > max) => false,
        Form::Whole => delta.data.len() == len,
        Form::Plain | Form::Packed => delta.data.len() <= len,
    };
    if !is_sound || delta.literal_bytes > len as u64 {
        return Err(ServiceError::BadAnswer("a delta that is none of the chunk".into()));
    }
    Ok(delta)
}

/// Fails unless `sums` are of the blocks that were asked for.
fn check_sums(sums: Sums, basis_len: u64, first: u64, count: u64, blocks: Blocks) -> Answer<Sums> {
    let (block_bytes, stride) = blocks.of(basis_len);
    let [start, end] = [first, first + count].map(|chunk| chunk.saturating_mul(CHUNK_BYTES).min(basis_len));
    let count = sums_of(end - start, block_bytes, stride);
    if (sums.start, sums.bytes, sums.block_bytes, sums.stride, sums.sums.len())
        != (start, end - start, block_bytes, stride, count * SUM_BYTES)
    {
        return Err(ServiceError::BadAnswer(
            "sums of other blocks than were asked for".into(),
        ));
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::FINE_BLOCK_BYTES;

    #[test]
    fn only_the_sums_that_were_asked_for_are_taken() {
        let basis_len = 3 * CHUNK_BYTES + 10;
        let sums = Sums {
            start: 2 * CHUNK_BYTES,
            bytes: CHUNK_BYTES + 10,
            block_bytes: FINE_BLOCK_BYTES,
            stride: 1,
            sums: vec![0; 257 * SUM_BYTES].into(),
        };
        let check = |sums: &Sums| check_sums(sums.clone(), basis_len, 2, 16, Blocks::Fine).is_ok();
        assert!(check(&sums));
        let others: [fn(&mut Sums); 5] = [
            |sums| sums.stride = 2,
            |sums| sums.start = 0,
            |sums| sums.bytes = 0,
            |sums| sums.block_bytes = 512,
            |sums| sums.sums = vec![0; 2 << 20].into(),
        ];
        for change in others {
            let mut sums = sums.clone();
            change(&mut sums);
            assert!(!check(&sums), "{} {} {}", sums.start, sums.bytes, sums.block_bytes);
        }
    }
}
