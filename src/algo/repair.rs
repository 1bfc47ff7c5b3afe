//! Repairs ({#rsync}): what the target has of a large file is used, and the difference alone is sent.
//!
//! Of the chunks that are wrong a few are tried in two ways: against the ones in their own places, in fine blocks, which finds what was
//! changed, overwritten or damaged; and against samples of the whole basis, which find what has moved. Neither sends anything that was not found.
//! The rest goes the way that this shows: in place; or against the whole basis, whose sums are then asked for once; or, where neither finds
//! anything, as it is. What has been found counts for nothing until its hash is that of the chunk.

use std::collections::VecDeque;

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::sync::{MutexGuard, Semaphore};

use super::{
    Item, ServiceStub, Shared, Why,
    calls::{self, flat},
    deltas::Ends,
    large::{Reading, Sending},
    report::stops_all,
};
use crate::{
    digest::{CHUNK_BYTES, ChunkHash, chunk_len},
    service::{Blocks, Form, Handle, ServiceError},
};

/// How many chunks are tried, spread over those that are wrong, to learn what pays.
const SAMPLES: usize = 4;

/// A basis up to so many bytes is looked at as a whole and not in samples: that takes some hundredths of a second.
const WHOLE_BYTES: u64 = 128 << 20;

/// How often the samples of one basis are loaded.
const PROBES_MAX: u8 = 4;

/// After so many pages of which nothing was found there the samples of a basis are given up: 1.3 GiB.
const FRUITLESS_MAX: u8 = 8;

/// How many chunks are dealt with until it is looked at anew whether that pays.
const BATCH: usize = 32;

/// How many chunks that were not compared are dealt with at a time; after each it is looked at anew what pays.
pub(super) const PAGE: u64 = 256;

/// A shift is kept, and another one looked for, as long as at most so many chunks were wrong at it for each that was right.
const WRONG_FOR_A_RIGHT: usize = 8;

/// How a chunk is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Against the chunk in its own place.
    InPlace,
    /// Against what is loaded: all of the basis, or samples of it.
    Loaded,
    /// Against nothing: made smaller at best.
    Packed,
}

/// What is known of what pays for one file.
pub(super) struct Repair<'a> {
    basis_len: u64,
    /// Whether of the chunks that were compared last most are wrong: some alone are not worth the sums of the whole basis.
    is_mostly_wrong: bool,
    /// Whether of those none is right.
    is_all_wrong: bool,
    /// `None` before it is known.
    way: Option<Way>,
    /// How many bytes further on in the basis than in the file what is to come was found.
    shift: i64,
    /// The shift before, as long as nothing was right at this one.
    shift_before: Option<i64>,
    /// Whether to look for another shift where chunks are wrong.
    may_shift: bool,
    /// Whether what is sent as it is gets smaller when it is packed; `None` before it is known.
    packs: Option<bool>,
    /// What is loaded of the basis, as it is of one file at a time.
    loaded: Option<(Blocks, MutexGuard<'a, ()>)>,
    /// Whether another file had that just now.
    has_no_room: bool,
    /// How often its samples may still be loaded.
    probes_left: u8,
    /// For how many pages more of which nothing was found they are looked up in.
    fruitless_left: u8,
}

impl Repair<'_> {
    /// Of a file of which the target has `basis_len` bytes, in the final if `is_final`, else in the partial itself, which is not looked at
    /// in other places.
    pub fn new(basis_len: u64, is_final: bool) -> Self {
        Self {
            basis_len,
            is_mostly_wrong: false,
            is_all_wrong: false,
            way: None,
            shift: 0,
            shift_before: None,
            may_shift: is_final,
            packs: None,
            loaded: None,
            has_no_room: false,
            probes_left: PROBES_MAX,
            fruitless_left: FRUITLESS_MAX,
        }
    }

    /// So many chunks of a page are right or wrong.
    pub fn compared(&mut self, right: usize, wrong: usize) {
        self.judge_shift(right, wrong);
        let is_mostly_wrong = wrong > right;
        if is_mostly_wrong && !self.is_mostly_wrong {
            // What was good enough for some may not be the best for all.
            self.way.take_if(|way| *way != Way::Loaded);
        }
        self.is_mostly_wrong = is_mostly_wrong;
        self.is_all_wrong = right == 0;
    }

    /// Whether nothing of what was compared last was found anywhere, so that the next chunks most likely are not there either.
    pub fn finds_nothing(&self) -> bool {
        self.is_all_wrong && self.way == Some(Way::Packed) && !self.has_no_room
    }

    /// What tells whether the basis has anything of the file: all of it, where that is soon read or its blocks are as large as the steps of samples.
    fn samples(&self) -> Blocks {
        let (_, stride) = Blocks::Sampled.of(self.basis_len);
        if self.basis_len <= WHOLE_BYTES || stride == 1 {
            Blocks::Coarse
        } else {
            Blocks::Sampled
        }
    }

    /// Something is right after all.
    pub fn finds_something(&mut self) {
        self.way = None;
        self.fruitless_left = FRUITLESS_MAX;
    }

    /// So many chunks are right where they were looked for, or wrong there too.
    pub fn judge_shift(&mut self, right: usize, wrong: usize) {
        let Some(before) = self.shift_before.take() else { return };
        if WRONG_FOR_A_RIGHT * right < wrong {
            (self.shift, self.may_shift) = (before, false);
        }
    }

    /// How many bytes further on in the basis than in the file the next chunks are.
    pub fn shift(&self) -> i64 {
        self.shift
    }

    /// The end of that part of the file of which the basis has something, as far as is known.
    pub fn reach(&self) -> u64 {
        self.basis_len.saturating_add_signed(self.shift.saturating_neg())
    }

    /// Whether what was found is elsewhere than it was looked for, and what is to come is to be looked for there.
    fn learn(&mut self, tally: &Tally) -> bool {
        let shift = tally.shift.map(|(_, shift)| shift).filter(|shift| *shift != self.shift);
        let (Some(shift), true) = (shift, self.may_shift) else {
            return false;
        };
        self.shift_before = Some(std::mem::replace(&mut self.shift, shift));
        true
    }

    /// Whether the whole basis is looked through for each chunk.
    pub fn is_loaded(&self) -> bool {
        self.way == Some(Way::Loaded)
    }

    fn ends(&self, reading: &Reading, target: Handle) -> Ends {
        Ends {
            source: reading.handle,
            target,
            size: reading.size,
            basis_len: self.basis_len,
            shift: self.shift,
        }
    }
}

/// What came of some chunks.
#[derive(Debug, Default)]
struct Tally {
    chunks: usize,
    /// Of how many enough was found.
    found: usize,
    /// Which are still wrong, because too little was.
    left: Vec<u64>,
    bytes: u64,
    sent_bytes: u64,
    /// The shift that the first of those that tell one tells.
    shift: Option<(u64, i64)>,
}

impl Tally {
    fn add(&mut self, len: u64, index: u64, tried: &Tried) {
        self.chunks += 1;
        self.found += usize::from(tried.is_found);
        match tried.sent {
            Some((_, sent_bytes)) => {
                self.bytes += len;
                self.sent_bytes += sent_bytes;
            }
            None => self.left.push(index),
        }
        let told = tried.shift.map(|shift| (index, shift));
        self.shift = [self.shift, told].into_iter().flatten().min();
    }

    fn pays(&self) -> bool {
        2 * self.found >= self.chunks
    }

    /// What a mebibyte takes, in bytes; of a chunk that is left about half, once it is packed.
    fn price(&self) -> u64 {
        let left = self.left.len() as u64 * CHUNK_BYTES;
        let (bytes, sent_bytes) = (self.bytes + left, self.sent_bytes + left / 2);
        CHUNK_BYTES.saturating_mul(sent_bytes) / bytes.max(1)
    }

    /// Whether nearly all was found.
    fn is_cheap(&self) -> bool {
        self.left.is_empty() && self.sent_bytes <= self.bytes / 8
    }

    /// Whether a tenth at least was saved.
    fn is_smaller(&self) -> bool {
        self.sent_bytes <= self.bytes - self.bytes / 10
    }
}

/// What came of one chunk.
struct Tried {
    /// Whether enough of it was found: a fourth, or anything where it is only told.
    is_found: bool,
    /// Its hash, and how many bytes were sent, if it is right now.
    sent: Option<(ChunkHash, u64)>,
    shift: Option<i64>,
}

/// How far one goes with chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// They are right afterwards.
    All,
    /// Those of which too little is found are left for another way.
    Found,
    /// It is only looked how much is found.
    Told,
}

impl<'s, S: ServiceStub, T: ServiceStub> Shared<'s, S, T> {
    /// As [`repair_chunks`](Self::repair_chunks), wherever they are found.
    pub(super) async fn repair_all<'a>(
        &'a self,
        item: &Item,
        reading: &mut Reading,
        target: Handle,
        wrong: std::ops::Range<u64>,
        repair: &mut Repair<'a>,
    ) -> Result<(), Why> {
        let mut wrong: VecDeque<u64> = wrong.collect();
        while !wrong.is_empty() {
            wrong = self.repair_chunks(item, reading, target, wrong, repair).await?;
        }
        Ok(())
    }

    /// Brings `wrong` chunks of the target to what they are at the source. Those that are left are to be looked for with a shift that was learned.
    pub(super) async fn repair_chunks<'a>(
        &'a self,
        item: &Item,
        reading: &mut Reading,
        target: Handle,
        mut wrong: VecDeque<u64>,
        repair: &mut Repair<'a>,
    ) -> Result<VecDeque<u64>, Why> {
        let ends = repair.ends(reading, target);
        while !wrong.is_empty() {
            let Some(way) = repair.way else {
                if self.find_way(item, reading, ends, &mut wrong, repair).await? {
                    break;
                }
                continue;
            };
            if way == Way::Packed && repair.packs == Some(false) {
                self.send_chunks(item, reading, target, wrong.drain(..)).await?;
                break;
            }
            // One tells whether it pays to pack the others.
            let is_unknown = way == Way::Packed && repair.packs.is_none();
            let count = if is_unknown { 1 } else { BATCH };
            let batch: Vec<_> = wrong.drain(..wrong.len().min(count)).collect();
            let tally = self.repair_batch(item, reading, ends, batch, (way, Aim::All)).await?;
            match way {
                Way::Packed => repair.packs = Some(tally.is_smaller()),
                // It may be better later on; until then this page is sent.
                Way::Loaded if tally.found == 0 => {
                    self.send_chunks(item, reading, target, wrong.drain(..)).await?;
                }
                Way::InPlace if repair.learn(&tally) => break,
                Way::InPlace if !tally.pays() => repair.way = None,
                _ => {}
            }
        }
        Ok(wrong)
    }

    /// Sends chunks of which the target has nothing in their places.
    pub(super) async fn send_missing<'a>(
        &'a self,
        item: &Item,
        reading: &mut Reading,
        target: Handle,
        missing: std::ops::Range<u64>,
        repair: &mut Repair<'a>,
    ) -> Result<(), Why> {
        if missing.is_empty() || repair.basis_len == 0 {
            return self.send_chunks(item, reading, target, missing).await;
        }
        if repair.way != Some(Way::Loaded) {
            repair.way = Some(Way::Packed);
        }
        let mut missing = missing;
        while !missing.is_empty() {
            let some = missing.start..missing.end.min(missing.start + PAGE);
            missing.start = some.end;
            self.repair_all(item, reading, target, some, repair).await?;
        }
        Ok(())
    }

    /// Tries some of the `wrong` chunks, to learn what pays. Whether the others may be where these were found, and are to be looked for there.
    async fn find_way<'a>(
        &'a self,
        item: &Item,
        reading: &mut Reading,
        ends: Ends,
        wrong: &mut VecDeque<u64>,
        repair: &mut Repair<'a>,
    ) -> Result<bool, Why> {
        let some = spread(wrong, SAMPLES);
        let in_place = self
            .repair_batch(item, reading, ends, some.clone(), (Way::InPlace, Aim::Found))
            .await?;
        wrong.retain(|index| !some.contains(index) || in_place.left.contains(index));
        if repair.learn(&in_place) {
            return Ok(true);
        }
        if in_place.pays() && (!repair.is_mostly_wrong || in_place.is_cheap()) {
            repair.way = Some(Way::InPlace);
            return Ok(false);
        }
        // Samples are an eighth of the basis: a few chunks are not worth reading that.
        let is_worth = repair.is_mostly_wrong || (repair.may_shift && wrong.len() >= SAMPLES);
        let probed = match is_worth && self.load(item, ends, repair, repair.samples()).await? {
            true => {
                let some = spread(wrong, SAMPLES);
                self.repair_batch(item, reading, ends, some, (Way::Loaded, Aim::Told))
                    .await?
            }
            false => Tally::default(),
        };
        if repair.learn(&probed) {
            return Ok(true);
        }
        if probed.found > 0 && self.load(item, ends, repair, Blocks::Coarse).await? {
            repair.way = Some(Way::Loaded);
            if !in_place.pays() {
                return Ok(false);
            }
            // Both find something.
            let some = spread(wrong, SAMPLES);
            wrong.retain(|index| !some.contains(index));
            let loaded = self
                .repair_batch(item, reading, ends, some, (Way::Loaded, Aim::All))
                .await?;
            if loaded.price() <= in_place.price() {
                return Ok(false);
            }
        }
        if probed.found > 0 {
            repair.loaded = None;
        }
        if repair.has_no_room {
            // Another file has it just now: asked again with the next page.
            repair.is_mostly_wrong = false;
        }
        repair.way = Some(if in_place.pays() { Way::InPlace } else { Way::Packed });
        Ok(false)
    }

    /// Looks for a chunk of the middle of a page of which nothing is where it should be, after another one of which nothing was found: whether
    /// anything of it is somewhere.
    pub(super) async fn is_elsewhere(
        &self,
        item: &Item,
        reading: &mut Reading,
        target: Handle,
        page: &std::ops::Range<u64>,
        repair: &mut Repair<'_>,
    ) -> Result<bool, Why> {
        let Some(left) = repair.fruitless_left.checked_sub(1) else {
            // For another file.
            repair.loaded = None;
            return Ok(false);
        };
        if repair.loaded.is_none() {
            return Ok(false);
        }
        repair.fruitless_left = left;
        let middle = page.start + (page.end - page.start) / 2;
        let ends = repair.ends(reading, target);
        let probed = self
            .repair_batch(item, reading, ends, vec![middle], (Way::Loaded, Aim::Told))
            .await?;
        Ok(repair.learn(&probed) || probed.found > 0)
    }

    /// Repairs chunks, several at once.
    async fn repair_batch(
        &self,
        item: &Item,
        reading: &mut Reading,
        ends: Ends,
        chunks: Vec<u64>,
        how: (Way, Aim),
    ) -> Result<Tally, Why> {
        let _sending = Sending::begin(&self.sending);
        let own = Semaphore::new(1);
        let (mut tally, mut chunks) = (Tally::default(), chunks.into_iter().peekable());
        let mut in_flight = FuturesUnordered::new();
        while chunks.peek().is_some() || !in_flight.is_empty() {
            while in_flight.len() < self.chunks_at_once()
                && let Some(index) = chunks.next()
            {
                in_flight.push(
                    self.repair_chunk(item, ends, index, how, &own)
                        .map(move |tried| (index, tried)),
                );
            }
            if let Some((index, tried)) = in_flight.next().await {
                let tried = tried?;
                if let Some((hash, _)) = tried.sent {
                    reading.add(index, hash)?;
                }
                let len = chunk_len(ends.size, index).unwrap_or(0) as u64;
                tally.add(len, index, &tried);
            }
        }
        Ok(tally)
    }

    /// Repairs one chunk, or sends it where that can't be done.
    async fn repair_chunk(
        &self,
        item: &Item,
        ends: Ends,
        index: u64,
        how: (Way, Aim),
        own: &Semaphore,
    ) -> Result<Tried, Why> {
        let len = chunk_len(ends.size, index).ok_or(Why::Source(ServiceError::Internal))? as u64;
        let room = self.room(own).await?;
        match self.try_repair(item, ends, index, how).await {
            Ok(tried) => {
                if let Some((_, sent_bytes)) = tried.sent {
                    self.sent(sent_bytes);
                    self.advanced(len);
                }
                Ok(tried)
            }
            Err(why) if stops_all(&why) => Err(why),
            Err(_) if how.1 == Aim::Told => Ok(Tried {
                is_found: false,
                sent: None,
                shift: None,
            }),
            // Something was taken for something else, the basis is another by now, the target may not be read: whatever it is, if it is in
            // the way of the chunk itself too, that tells.
            Err(_) => {
                drop(room);
                let (_, hash) = self
                    .send_chunk(item, ends.source, ends.target, ends.size, index, own)
                    .await?;
                Ok(Tried {
                    is_found: false,
                    sent: Some((hash, len)),
                    shift: None,
                })
            }
        }
    }

    async fn try_repair(&self, item: &Item, ends: Ends, index: u64, (way, aim): (Way, Aim)) -> Result<Tried, Why> {
        let len = chunk_len(ends.size, index).ok_or(Why::Source(ServiceError::Internal))?;
        let enough = len - len / 4;
        let literal_max = match aim {
            Aim::All => Some(len as u64),
            Aim::Found => Some(enough as u64),
            Aim::Told => None,
        };
        let (delta, saved) = self.delta(item, ends, (index, len), way, literal_max).await?;
        let (shift, sent) = (delta.shift, (delta.hash, delta.data.len() as u64));
        let service = &self.target.service;
        let applied = match delta.form {
            Form::Left => {
                return Ok(Tried {
                    // Of samples one block: where little is as it was, few of them are.
                    is_found: aim == Aim::Told && delta.literal_bytes < len as u64,
                    sent: None,
                    shift,
                });
            }
            Form::Whole => {
                let sent = flat(service.send(calls::context(), ends.target, index, delta.data, delta.sparse)).await;
                sent.map(|()| false)
            }
            Form::Plain | Form::Packed => {
                let is_found = delta.literal_bytes <= enough as u64;
                let applied = flat(service.apply_delta(calls::context(), ends.target, index, delta)).await;
                applied.map(|()| is_found)
            }
        };
        let is_found = applied.map_err(Why::Target)?;
        self.finer_left.set(self.finer_left.get() + saved);
        Ok(Tried {
            is_found,
            sent: Some(sent),
            shift,
        })
    }

    /// Gives the source sums of the whole basis, as far as there may be so many and it is worth that; whether it has them now.
    async fn load<'a>(&'a self, item: &Item, ends: Ends, repair: &mut Repair<'a>, blocks: Blocks) -> Result<bool, Why> {
        // An index takes memory, so one file at a time has one.
        let room = match repair.loaded.take() {
            Some((loaded, room)) if loaded == blocks => {
                repair.loaded = Some((loaded, room));
                return Ok(true);
            }
            Some((_, room)) => Some(room),
            None => self.loading.try_lock().ok(),
        };
        repair.has_no_room = room.is_none();
        let Some(room) = room else { return Ok(false) };
        if blocks == Blocks::Sampled {
            let Some(left) = repair.probes_left.checked_sub(1) else {
                return Ok(false);
            };
            repair.probes_left = left;
        }
        match self.load_signature(item, ends, blocks).await {
            Ok(()) => {
                repair.loaded = Some((blocks, room));
                Ok(true)
            }
            Err(why) if stops_all(&why) => Err(why),
            Err(_) => Ok(false),
        }
    }
}

/// Up to `count` of `chunks`, spread evenly.
fn spread(chunks: &VecDeque<u64>, count: usize) -> Vec<u64> {
    let (len, count) = (chunks.len(), count.min(chunks.len()));
    (0..count).map(|nth| chunks[nth * len / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread() {
        let chunks: VecDeque<u64> = (10..20).collect();
        assert_eq!(spread(&chunks, 4), [10, 12, 15, 17]);
        assert_eq!(spread(&chunks, 20), (10..20).collect::<Vec<_>>());
        assert_eq!(spread(&VecDeque::new(), 4), [0; 0]);
    }
}
