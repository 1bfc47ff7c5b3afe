//! Large files, chunk by chunk.

use std::{cell::Cell, collections::VecDeque, pin::pin};

use futures::{
    StreamExt,
    future::{Either, OptionFuture, join, select},
    stream,
    stream::FuturesUnordered,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    Event, How, Item, ServiceStub, Shared, Why,
    calls::{self, flat},
    repair::{PAGE, Repair},
};
use crate::{
    digest::{CHUNK_BYTES, ChunkHash, FileHasher, chunk_count, chunk_len},
    model::{Digest, RelPath},
    plan::{self, Outcome},
    planted::{Bug, planted},
    service::{Delete, Expected, Finish, Finished, Handle, OpenFor, Opened, ServiceError},
};

/// A source file that is open, and its chunk hashes as they become known.
pub(super) struct Reading {
    pub handle: Handle,
    pub size: u64,
    hasher: FileHasher,
}

impl Reading {
    fn new(handle: Handle, size: u64, ahead_max: usize) -> Self {
        Self {
            handle,
            size,
            hasher: FileHasher::new(size, ahead_max),
        }
    }

    pub fn add(&mut self, index: u64, hash: ChunkHash) -> Result<(), Why> {
        self.hasher
            .add(index, hash)
            .map_err(|error| Why::Source(ServiceError::BadRequest(error.to_string())))
    }

    fn digest(self) -> Result<Digest, Why> {
        self.hasher.digest().ok_or(Why::Source(ServiceError::Internal))
    }
}

/// Chunks to be compared, page by page: small ones first, so that little is hashed in vain where the first differs.
struct Pages {
    rest: std::ops::Range<u64>,
    at_once: u64,
    at_most: u64,
    /// The source's hashes of the next page, where they are known.
    hashed: Option<Vec<ChunkHash>>,
    /// Whether those are worth to be known before it is its turn.
    goes_on: bool,
}

impl Pages {
    /// The first `count` chunks, `at_most` on a page.
    fn of(count: u64, at_most: u64) -> Self {
        const AT_FIRST: u64 = 8;
        Self {
            rest: 0..count,
            at_once: AT_FIRST.min(at_most),
            at_most,
            hashed: None,
            goes_on: true,
        }
    }

    fn peek(&self) -> Option<std::ops::Range<u64>> {
        let end = self.rest.end.min(self.rest.start + self.at_once);
        (!self.rest.is_empty()).then_some(self.rest.start..end)
    }

    /// The first `count` chunks are to be compared, those that were taken counted in.
    fn extend(&mut self, count: u64) {
        self.rest.end = self.rest.end.max(count);
    }

    fn take(&mut self) -> Option<std::ops::Range<u64>> {
        let page = self.peek()?;
        self.rest.start = page.end;
        self.at_once = (2 * self.at_once).min(self.at_most);
        Some(page)
    }
}

/// Some chunks of a file in a row, and which of them the target has.
struct Compared {
    first: u64,
    /// The source's.
    hashes: Vec<ChunkHash>,
    equal: Vec<bool>,
}

impl Compared {
    fn wrong(&self) -> VecDeque<u64> {
        let wrong = (self.first..).zip(&self.equal).filter(|(_, equal)| !**equal);
        wrong.map(|(index, _)| index).collect()
    }

    fn hash(&self, index: u64) -> ChunkHash {
        self.hashes[(index - self.first) as usize]
    }
}

/// One of the files that are being sent.
pub(super) struct Sending<'a>(&'a Cell<u64>);

impl<'a> Sending<'a> {
    pub fn begin(count: &'a Cell<u64>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<S: ServiceStub, T: ServiceStub> Shared<'_, S, T> {
    /// Moves one large file; with `compare` the target has one of its size.
    pub(super) async fn move_large(&self, item: &Item, compare: bool) -> (RelPath, Outcome) {
        let handle = match self.open_source(item).await {
            Ok(handle) => handle,
            Err(why) => return self.stays(item, why),
        };
        let safe = self.bring_over(item, handle, compare).await;
        let (digest, how) = match safe {
            Ok(safe) => safe,
            Err(why) => {
                self.close(item.source, vec![handle]).await;
                return self.stays(item, why);
            }
        };
        if self.options.copy {
            self.close(item.source, vec![handle]).await;
            return self.deleted(item, how, Ok(()));
        }
        let deleted = self
            .delete_files(
                item.source,
                vec![Delete {
                    handle,
                    digest: Some(digest),
                }],
            )
            .await;
        let deleted = calls::for_each(deleted, 1).pop().unwrap_or(Err(ServiceError::Internal));
        self.deleted(item, how, deleted)
    }

    async fn open_source(&self, item: &Item) -> Result<Handle, Why> {
        let source = &self.sources[item.source];
        let (path, version) = (item.entry.path.clone(), item.entry.version);
        let opened = source
            .service
            .open(calls::context(), source.dir.clone(), path, OpenFor::Read(version));
        let opened = flat(opened).await.map_err(Why::Source)?;
        if let Err(reason) = self.check_held(item, &opened.held) {
            self.close(item.source, vec![opened.held.handle]).await;
            return Err(reason.into());
        }
        Ok(opened.held.handle)
    }

    /// Gets the content to its final name at the target; its digest.
    async fn bring_over(&self, item: &Item, source: Handle, compare: bool) -> Result<(Digest, How), Why> {
        if compare
            && let Expected::Version(version) = item.expected
            && let Some(digest) = self.confirm(item, source, OpenFor::Confirm(version)).await?
        {
            return Ok((digest, How::Verified));
        }
        let size = item.entry.version.size;
        let basis = match item.expected {
            Expected::Version(version) => Some(version),
            Expected::Absent => None,
        };
        let opened = self.open_target(item, OpenFor::Write { size, basis }).await?;
        let target = opened.held.handle;
        if opened.basis_len > 0 && basis.is_none_or(|basis| basis.size != opened.basis_len) {
            let text = "another basis than was asked for".into();
            return Err(Why::Target(ServiceError::BadAnswer(text)));
        }
        let copied = self.fill_and_finish(item, source, &opened).await;
        if copied.is_err() {
            self.close_target(target).await;
        }
        Ok((copied?, How::Copied))
    }

    async fn fill_and_finish(&self, item: &Item, source: Handle, opened: &Opened) -> Result<Digest, Why> {
        let digest = self.in_time(self.fill(item, source, opened)).await?;
        self.finish(item, opened.held.handle, digest).await?;
        Ok(digest)
    }

    /// What comes of `work`, which is left where it is when the time is over.
    async fn in_time<O>(&self, work: impl Future<Output = Result<O, Why>>) -> Result<O, Why> {
        self.options.halt.unless_over(work).await.unwrap_or(Err(Why::TimeOver))
    }

    async fn open_target(&self, item: &Item, open_for: OpenFor) -> Result<Opened, Why> {
        let dir = self.target.dir.clone().ok_or(Why::Target(ServiceError::NotFound))?;
        self.dirs_made().await;
        let opened = self
            .target
            .service
            .open(calls::context(), dir, item.to.clone(), open_for);
        let opened = flat(opened).await;
        opened.map_err(|error| self.refused_at_target(&item.to, error))
    }

    /// Closes what was not finished: that closes by itself.
    async fn close_target(&self, handle: Handle) {
        // Whatever comes of it, the session's end closes it too.
        flat(self.target.service.close(calls::context(), vec![handle].into()))
            .await
            .ok();
    }

    /// The digest when the target's final has the source's content; it is durable then.
    async fn confirm(&self, item: &Item, source: Handle, open_for: OpenFor) -> Result<Option<Digest>, Why> {
        let target = match self.open_target(item, open_for).await {
            // What can't be read is to be replaced as what is another.
            Err(Why::Target(error)) if error.is_no_access() => return Ok(None),
            opened => opened?.held.handle,
        };
        (self.observer)(Event::Checking(&item.to));
        let confirmed = self.confirm_open(item, source, target).await;
        if !matches!(confirmed, Ok(Some(_))) {
            self.close_target(target).await;
        }
        confirmed
    }

    async fn confirm_open(&self, item: &Item, source: Handle, target: Handle) -> Result<Option<Digest>, Why> {
        let digest = self.in_time(self.digest_if_equal(item, source, target)).await?;
        if let Some(digest) = digest {
            self.finish(item, target, digest).await?;
            self.advanced(item.entry.version.size);
        }
        Ok(digest)
    }

    /// The digest, when all chunks of the target's final are the source's.
    async fn digest_if_equal(&self, item: &Item, source: Handle, target: Handle) -> Result<Option<Digest>, Why> {
        let size = item.entry.version.size;
        let mut reading = Reading::new(source, size, self.options.limits.hashes_ahead);
        let mut pages = Pages::of(chunk_count(size), self.compare_at_once());
        while let Some(page) = self.compare_page(item, &mut reading, target, &mut pages, 0).await? {
            if page.equal.contains(&false) {
                return Ok(None);
            }
        }
        reading.digest().map(Some)
    }

    /// How many chunks are compared in one call: few enough that the answer comes soon.
    fn compare_at_once(&self) -> u64 {
        const CHUNKS_AT_ONCE: u64 = 256;
        CHUNKS_AT_ONCE.min(self.options.limits.page_hashes as u64)
    }

    /// The next of `pages`, compared with what is `shift` bytes further on in the basis. Meanwhile the source hashes the one after it.
    async fn compare_page(
        &self,
        item: &Item,
        reading: &mut Reading,
        target: Handle,
        pages: &mut Pages,
        shift: i64,
    ) -> Result<Option<Compared>, Why> {
        let Some(page) = pages.take() else { return Ok(None) };
        let (first, hashed) = match pages.hashed.take() {
            Some(hashed) => {
                // More may have turned out to be there since it was asked for.
                pages.rest.start = page.start + hashed.len() as u64;
                (page.start, hashed)
            }
            None => (page.start, self.hashes(item, reading.handle, page).await?),
        };
        let next = pages.peek().filter(|_| pages.goes_on);
        let next = OptionFuture::from(next.map(|page| self.hashes(item, reading.handle, page)));
        let (equal, next) = join(self.compare(target, first, hashed.clone(), shift), next).await;
        pages.hashed = next.transpose()?;
        let page = Compared {
            first,
            hashes: hashed,
            equal: equal?,
        };
        self.take_equal(reading, &page)?;
        Ok(Some(page))
    }

    /// As [`compare_page`](Self::compare_page), where most likely nothing is right: one chunk of many is looked at, and the others where that is
    /// right, or elsewhere. `None` where it is not: what is sent then need not be hashed before.
    async fn sample_page(
        &self,
        item: &Item,
        reading: &mut Reading,
        target: Handle,
        page: std::ops::Range<u64>,
        repair: &mut Repair<'_>,
    ) -> Result<Option<Compared>, Why> {
        const ONE_OF: usize = 16;
        const AT_ONCE: usize = 8;
        let (source, shift) = (reading.handle, repair.shift());
        let samples = page.clone().step_by(ONE_OF).map(|index| async move {
            let hashes = self.hashes(item, source, index..index + 1).await?;
            let equal = self.compare(target, index, hashes.clone(), shift).await?;
            Ok::<_, Why>(Compared {
                first: index,
                hashes,
                equal,
            })
        });
        let mut samples = pin!(stream::iter(samples).buffered(AT_ONCE));
        let mut right = Vec::new();
        while let Some(sample) = samples.next().await.transpose()? {
            self.take_equal(reading, &sample)?;
            right.extend(sample.equal.contains(&true).then_some(sample.first));
        }
        if right.is_empty() && !self.is_elsewhere(item, reading, target, &page, repair).await? {
            return Ok(None);
        }
        let mut found = Compared {
            first: page.start,
            hashes: self.hashes(item, source, page.clone()).await?,
            equal: page.map(|index| right.contains(&index)).collect(),
        };
        self.advanced_by(reading.size, &found);
        self.look_elsewhere(reading, target, &mut found, repair).await?;
        Ok(Some(found))
    }

    /// Compares what is wrong of a page with what is at the shift that was learned.
    async fn look_elsewhere(
        &self,
        reading: &mut Reading,
        target: Handle,
        page: &mut Compared,
        repair: &mut Repair<'_>,
    ) -> Result<(), Why> {
        let before = page.wrong();
        let wrong = self
            .compare_shifted(reading, target, page, before.clone(), repair.shift())
            .await?;
        for index in before.iter().filter(|index| !wrong.contains(index)) {
            page.equal[(index - page.first) as usize] = true;
        }
        repair.judge_shift(before.len() - wrong.len(), wrong.len());
        repair.finds_something();
        Ok(())
    }

    /// What the source has.
    async fn hashes(&self, item: &Item, source: Handle, page: std::ops::Range<u64>) -> Result<Vec<ChunkHash>, Why> {
        let count = page.end - page.start;
        let service = &self.sources[item.source].service;
        let hashes = flat(service.hashes(calls::context(), source, page.start, count)).await;
        hashes
            .and_then(|hashes| calls::check_count(hashes, count as usize))
            .map_err(Why::Source)
    }

    async fn compare(&self, target: Handle, first: u64, hashes: Vec<ChunkHash>, shift: i64) -> Result<Vec<bool>, Why> {
        let count = hashes.len();
        let service = &self.target.service;
        let equal = flat(service.compare(calls::context(), target, first, hashes.into(), shift)).await;
        equal
            .and_then(|equal| calls::check_count(equal, count))
            .map_err(Why::Target)
    }

    /// What the target has need not be sent.
    fn take_equal(&self, reading: &mut Reading, page: &Compared) -> Result<(), Why> {
        let hashed = (page.first..).zip(&page.hashes).zip(&page.equal);
        for ((index, hash), _) in hashed.filter(|(_, equal)| **equal) {
            reading.add(index, *hash)?;
        }
        Ok(())
    }

    /// Which of `wrong` chunks of a page are not what is at another place of the basis either.
    async fn compare_shifted(
        &self,
        reading: &mut Reading,
        target: Handle,
        page: &Compared,
        wrong: VecDeque<u64>,
        shift: i64,
    ) -> Result<VecDeque<u64>, Why> {
        const RUNS_AT_ONCE: usize = 4;
        let indices: Vec<_> = wrong.into_iter().collect();
        let runs = indices.chunk_by(|one, next| one + 1 == *next).map(|run| async {
            let first = run[0];
            let hashes: Vec<_> = run.iter().map(|index| page.hash(*index)).collect();
            let equal = self.compare(target, first, hashes.clone(), shift).await?;
            Ok::<_, Why>(Compared { first, hashes, equal })
        });
        let mut runs = pin!(stream::iter(runs).buffered(RUNS_AT_ONCE));
        let mut still_wrong = VecDeque::new();
        while let Some(run) = runs.next().await.transpose()? {
            self.take_equal(reading, &run)?;
            self.advanced_by(reading.size, &run);
            still_wrong.extend(run.wrong());
        }
        Ok(still_wrong)
    }

    fn advanced_by(&self, size: u64, page: &Compared) {
        let equal = (page.first..).zip(&page.equal).filter(|(_, equal)| **equal);
        let bytes = equal.map(|(index, _)| chunk_len(size, index).unwrap_or(0) as u64);
        self.advanced(bytes.sum());
    }

    /// Completes the partial: what is right stays, what is wrong is repaired, what is missing is sent. The digest of all.
    async fn fill(&self, item: &Item, source: Handle, opened: &Opened) -> Result<Digest, Why> {
        let (size, target) = (item.entry.version.size, opened.held.handle);
        let mut reading = Reading::new(source, size, self.options.limits.hashes_ahead);
        let partial_len = if planted(Bug::ResumeForgotten) { 0 } else { opened.len };
        let found = partial_len.max(opened.basis_len).min(size);
        let found_chunks = if found == 0 { 0 } else { chunk_count(found) };
        if found_chunks > 0 {
            (self.observer)(Event::Checking(&item.to));
        }
        // Of both the basis is what chunks are made of.
        let mut repair = Repair::new(
            if opened.basis_len > 0 { opened.basis_len } else { found },
            opened.basis_len > 0,
        );
        let mut pages = Pages::of(found_chunks, self.compare_at_once());
        loop {
            let page = if repair.finds_nothing() && pages.hashed.is_none() {
                let Some(page) = pages.take() else { break };
                let sampled = self.sample_page(item, &mut reading, target, page.clone(), &mut repair);
                let Some(found) = sampled.await? else {
                    self.repair_all(item, &mut reading, target, page, &mut repair).await?;
                    continue;
                };
                found
            } else {
                pages.goes_on = !repair.finds_nothing();
                let compared = self.compare_page(item, &mut reading, target, &mut pages, repair.shift());
                let Some(mut page) = compared.await? else { break };
                self.advanced_by(size, &page);
                let indices = page.first..page.first + page.equal.len() as u64;
                if repair.finds_nothing()
                    && !page.equal.contains(&true)
                    && self
                        .is_elsewhere(item, &mut reading, target, &indices, &mut repair)
                        .await?
                {
                    self.look_elsewhere(&mut reading, target, &mut page, &mut repair)
                        .await?;
                }
                page
            };
            let mut wrong = page.wrong();
            let right = page.equal.len() - wrong.len();
            repair.compared(right, wrong.len());
            loop {
                wrong = self
                    .repair_chunks(item, &mut reading, target, wrong, &mut repair)
                    .await?;
                if wrong.is_empty() {
                    break;
                }
                let before = wrong.len();
                wrong = self
                    .compare_shifted(&mut reading, target, &page, wrong, repair.shift())
                    .await?;
                repair.judge_shift(before - wrong.len(), wrong.len());
            }
            pages.extend(chunk_count(repair.reach().min(size)));
            if right == 0 && repair.is_loaded() {
                // Most likely all is, and then nothing of it is in its own place.
                pages.at_most = PAGE;
                while let Some(page) = pages.take() {
                    self.repair_all(item, &mut reading, target, page, &mut repair).await?;
                }
            }
        }
        let missing = pages.rest.end..chunk_count(size);
        self.send_missing(item, &mut reading, target, missing, &mut repair)
            .await?;
        reading.digest()
    }

    /// Reads chunks from the source and sends them to the target, several at once.
    pub(super) async fn send_chunks(
        &self,
        item: &Item,
        reading: &mut Reading,
        target: Handle,
        chunks: impl Iterator<Item = u64>,
    ) -> Result<(), Why> {
        let _sending = Sending::begin(&self.sending);
        let own = Semaphore::new(1);
        let (source, size) = (reading.handle, reading.size);
        let mut in_flight = FuturesUnordered::new();
        let mut chunks = chunks.peekable();
        while chunks.peek().is_some() || !in_flight.is_empty() {
            while in_flight.len() < self.chunks_at_once()
                && let Some(index) = chunks.next()
            {
                in_flight.push(self.send_chunk(item, source, target, size, index, &own));
            }
            if let Some(sent) = in_flight.next().await {
                let (index, hash) = sent?;
                reading.add(index, hash)?;
            }
        }
        Ok(())
    }

    /// How many chunks of one file may be on their way now.
    pub(super) fn chunks_at_once(&self) -> usize {
        let limits = &self.options.limits;
        let share_bytes = limits.window_bytes / self.sending.get().max(1);
        (limits.file_window_bytes.min(share_bytes) / CHUNK_BYTES).max(1) as usize
    }

    /// Waits until a chunk more may be on its way: the one that the file has as its `own`, or one of the window of all.
    pub(super) async fn room<'b>(&'b self, own: &'b Semaphore) -> Result<SemaphorePermit<'b>, Why> {
        let permits = (CHUNK_BYTES >> 10) as u32;
        let (own, shared) = (pin!(own.acquire()), pin!(self.window.acquire_many(permits)));
        let (Either::Left((permit, _)) | Either::Right((permit, _))) = select(own, shared).await;
        // The semaphores are never closed.
        permit.map_err(|_| Why::Source(ServiceError::Internal))
    }

    pub(super) async fn send_chunk(
        &self,
        item: &Item,
        source: Handle,
        target: Handle,
        size: u64,
        index: u64,
        own: &Semaphore,
    ) -> Result<(u64, ChunkHash), Why> {
        let len = chunk_len(size, index).ok_or(Why::Source(ServiceError::Internal))?;
        let _room = self.room(own).await?;
        let service = &self.sources[item.source].service;
        let chunk = flat(service.read(calls::context(), source, index))
            .await
            .map_err(Why::Source)?;
        if chunk.data.len() != len {
            return Err(Why::Source(ServiceError::Changed));
        }
        let sent = self
            .target
            .service
            .send(calls::context(), target, index, chunk.data, chunk.sparse);
        flat(sent).await.map_err(Why::Target)?;
        self.sent(len as u64);
        self.advanced(len as u64);
        Ok((index, chunk.hash))
    }

    async fn finish(&self, item: &Item, target: Handle, digest: Digest) -> Result<(), Why> {
        let finish = Finish {
            verify: self.options.verify,
            digest,
            meta: plan::meta(&item.entry),
            expected: item.expected,
        };
        let (mut known, mut in_vain) = (0, 0);
        while in_vain < self.options.limits.finish_answers {
            let finished = flat(self.target.service.finish(calls::context(), target, finish.clone())).await;
            match finished {
                Ok(Finished::Done) => return Ok(()),
                Ok(Finished::Working { read_back }) => {
                    // Whatever it says, there are no more chunks than those, and they are read twice at most.
                    let read_back = read_back.min(2 * chunk_count(item.entry.version.size));
                    in_vain = if read_back > known { 0 } else { in_vain + 1 };
                    known = known.max(read_back);
                }
                Err(error) => return Err(Why::Target(error)),
            }
        }
        if planted(Bug::LateIsSuccess) {
            return Ok(());
        }
        Err(Why::Target(ServiceError::NoAnswer("finishing takes too long".into())))
    }
}
