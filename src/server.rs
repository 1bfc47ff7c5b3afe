//! [`RealizeServer`]: the service over its stores, one session per peer.
//!
//! A call is checked, cut into jobs for [`Fs::offload`], and its results put back in order. Permits and locks
//! are taken before a job begins; a job runs to its end even when its caller is gone.

#[cfg(all(debug_assertions, not(any(test, fuzzing))))]
mod compiled;
mod jobs;
mod loaded;
mod open;
mod roots;
mod session;

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use tarpc::{ServerError, context::Context, server::Serve};

pub use self::{
    jobs::Turns,
    roots::{CannotOpen, Notes, Roots},
};
use self::{
    loaded::{Loaded, finer_index_of, index_of},
    open::{Open, OpenTarget, as_file},
    session::Session,
};
use crate::{
    clock::Clock,
    digest::{CHUNK_BYTES, ChunkHash},
    fs::Fs,
    limits::Limits,
    model::{Entry, RelPath, Uncarried},
    planted::{Bug, planted},
    service::{
        Against, Answer, Blocks, Chunk, Claim, Cursor, Delete, Delta, DirId, DirMeta, Expected, FileRef, Finish,
        Finished, Got, Handle, Held, Hello, Items, NewFile, OpenFor, Opened, Page, RealizeService,
        RealizeServiceRequest, RealizeServiceResponse, RenameFile, Renamed, Right, Rights, Role, RunId,
        SERVICE_VERSION, SIGNATURE_CHUNKS_MAX, Same, ServiceError, Sums, Swept, context,
    },
    store::{Prepared, Source, Store, Walk},
    throttle::{Bucket, Rate},
};

/// What a peer may do. Asked at every call: it may be told otherwise from one to the next.
pub trait Access: Send + Sync {
    /// Its rights in the configured directory `dir`.
    fn rights(&self, dir: &str) -> Rights;
}

/// The access of who is the same process.
struct Full;

impl Access for Full {
    fn rights(&self, _: &str) -> Rights {
        Rights::ALL
    }
}

/// The service for one peer. Cheap to clone; clones are the same session.
pub struct RealizeServer<F: Fs, C: Clock> {
    session: Arc<Session<F, C>>,
}

impl<F: Fs, C: Clock> Clone for RealizeServer<F, C> {
    fn clone(&self) -> Self {
        Self {
            session: self.session.clone(),
        }
    }
}

/// How many chunks one job reads and hashes: others wait for it as long as that takes.
const CHUNKS_PER_JOB: usize = 16;

/// How many such jobs of one call are at work at once.
const HASHING_JOBS: usize = 4;

/// How many of so many chunks of a call one job has: few calls have many, and no core is to wait for another.
fn chunks_per_job(count: usize) -> usize {
    count.div_ceil(2 * HASHING_JOBS).clamp(1, CHUNKS_PER_JOB)
}

impl<F: Fs, C: Clock> RealizeServer<F, C> {
    /// A session over `roots` that may do everything.
    pub fn new(roots: Arc<Roots<F, C>>) -> Self {
        Self::with(roots, Arc::new(Full), None, Turns::default(), None)
    }

    /// A session over `roots` for a peer, whose sessions share `turns`, and what is sent to its run is taken from `sending`. Its `run` is known
    /// from the beginning: calls may come before the hello that is on its way.
    pub fn for_peer(
        roots: Arc<Roots<F, C>>,
        access: Arc<dyn Access>,
        run: RunId,
        turns: Turns,
        sending: Arc<Bucket<C>>,
    ) -> Self {
        Self::with(roots, access, Some(run), turns, Some(sending))
    }

    /// The answer to one call. Boxed, so that it is compiled where it is first used with `F` and not again by who calls that.
    pub fn answer(
        &self,
        request: RealizeServiceRequest,
    ) -> BoxFuture<'static, Result<RealizeServiceResponse, ServerError>> {
        self.clone().serve().serve(context(), request).boxed()
    }

    fn limits(&self) -> &Limits {
        &self.session.roots.limits
    }

    fn clock(&self) -> &C {
        &self.session.roots.clock
    }

    async fn get_files(&self, dir: DirId, files: Vec<FileRef>, with_data: bool) -> Answer<Vec<Answer<Got>>> {
        let store = self.store(&dir, Right::Read)?;
        let total_bytes = files
            .iter()
            .fold(0u64, |total, file| total.saturating_add(file.version.size));
        if with_data && total_bytes > 2 * self.limits().batch_bytes {
            return Err(ServiceError::BadRequest("too much for one answer".into()));
        }
        let wall = self.clock().wall();
        let read = move |store: Store<F>, wanted: FileRef| async move {
            let source = store.open_source(&wanted, wall).await?;
            let content = store.read_source(&source, with_data).await?;
            Ok((source, content))
        };
        let read = self.jobs(&store, files, self.limits().job_files, read).await?;
        Ok(read
            .into_iter()
            .map(|read| {
                read.and_then(|(source, content)| {
                    Ok(Got {
                        held: self.hold(&dir, source)?,
                        content,
                    })
                })
            })
            .collect())
    }
}

impl<F: Fs, C: Clock> RealizeService for RealizeServer<F, C> {
    async fn hello(self, _: Context, version: u32, run: RunId) -> Answer<Hello> {
        if version != SERVICE_VERSION {
            let text = format!("the mover speaks version {version}, this side {SERVICE_VERSION}: update the older one");
            return Err(ServiceError::BadRequest(text));
        }
        self.state().run = Some(run);
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let served = self.session.roots.served();
        let rights = served
            .keys()
            .map(|name| (name.clone(), self.session.access.rights(name)));
        Ok(Hello {
            rights: rights.filter(|(_, rights)| *rights != Rights::default()).collect(),
            version: SERVICE_VERSION,
            server: self.session.roots.id,
            uid,
            gid,
        })
    }

    async fn configure(self, _: Context, bytes_per_second: Option<u64>) -> Answer<()> {
        let Some(sending) = &self.session.sending else {
            return Err(ServiceError::BadRequest("there is no connection here to limit".into()));
        };
        let rate = bytes_per_second.map(Rate::new).transpose();
        sending.set(rate.map_err(|error| ServiceError::BadRequest(error.to_string()))?);
        Ok(())
    }

    async fn claim(self, _: Context, dir: DirId, role: Role) -> Answer<Claim> {
        let right = match role {
            Role::Source | Role::SourceOfFiles => Right::Read,
            Role::Target => Right::Write,
            Role::Looked => Right::Look,
        };
        self.prove_in_place(&dir.name, right).await?;
        if !dir.below.is_root() {
            self.open_below(&dir, right, role == Role::Target).await?;
        }
        let store = self.store(&dir, right)?;
        let run = self
            .state()
            .run
            .ok_or_else(|| ServiceError::BadRequest("hello comes first".into()))?;
        let claiming = self.session.claiming.clone().read_owned().await;
        let (server, claimed_store) = (self.clone(), store.clone());
        let claimed = self.job(async move {
            let _claiming = claiming;
            let claimed = Arc::new(claimed_store.claim(role, run).await?);
            // Here, because whoever asked may have gone.
            match server.take_claim(dir, claimed.clone()) {
                Ok(()) => Ok(claimed.claim.clone()),
                Err(error) => {
                    claimed.release().await.ok();
                    Err(error)
                }
            }
        });
        let mut claim = claimed.await?;
        if role == Role::Target {
            let sweeping = async move { store.sweep(&RelPath::root()).await };
            // What can't be looked through shows again, with its error, when something is put there.
            claim.swept = self.job(sweeping).await.unwrap_or_else(|_| Swept::unknown());
        }
        Ok(claim)
    }

    async fn release(self, _: Context, dir: DirId) -> Answer<()> {
        self.allow(&dir, Right::Look)?;
        // What was claimed last is given back first.
        let claimed = self.state().claims.get_mut(&dir).and_then(Vec::pop);
        match claimed {
            None => Ok(()),
            Some(claimed) => self.job(async move { claimed.release().await }).await,
        }
    }

    async fn list(self, _: Context, dir: DirId, from: Option<Cursor>, restore: bool) -> Answer<Page> {
        let store = self.store(&dir, Right::Read)?;
        let kept = self.state().walks.remove(&dir);
        let (page_entries, page_bytes) = (self.limits().page_entries, self.limits().page_bytes);
        let filled = self.job(async move {
            let mut page = Page::default();
            let mut walk = match (kept, &from) {
                (Some(mut walk), Some(from))
                    if walk.at().is_some_and(|at| {
                        at.after == from.after || (from.skip_below && at.after.is_within(&from.after))
                    }) =>
                {
                    if from.skip_below {
                        walk.skip_below(&from.after);
                    }
                    walk
                }
                _ => Walk::begin(&store, from.as_ref(), restore, &mut page).await?,
            };
            walk.fill(&mut page, page_entries, page_bytes).await?;
            Ok((page, walk))
        });
        let (page, walk) = filled.await?;
        if page.next.is_some() {
            self.state().walks.insert(dir, walk);
        }
        Ok(page)
    }

    async fn stat(
        self,
        _: Context,
        dir: DirId,
        Items(paths): Items<RelPath>,
        restore: bool,
    ) -> Answer<Vec<Answer<Option<Entry>>>> {
        const STATS_PER_JOB: usize = 256;
        let store = self.store(&dir, Right::Look)?;
        if self.state().claims.get(&dir).is_none_or(Vec::is_empty) {
            self.prove_in_place(&dir.name, Right::Look).await?;
        }
        let stat = move |store: Store<F>, path: RelPath| async move { store.stat(&path, restore).await };
        self.jobs(&store, paths, STATS_PER_JOB, stat).await
    }

    async fn digests(self, _: Context, dir: DirId, Items(files): Items<FileRef>) -> Answer<Vec<Answer<Got>>> {
        self.get_files(dir, files, false).await
    }

    async fn get(self, _: Context, dir: DirId, Items(files): Items<FileRef>) -> Answer<Vec<Answer<Got>>> {
        self.get_files(dir, files, true).await
    }

    async fn open(self, _: Context, dir: DirId, path: RelPath, open_for: OpenFor) -> Answer<Opened> {
        let right = match open_for {
            OpenFor::Read(_) => Right::Read,
            OpenFor::Confirm(_) | OpenFor::Write { .. } => Right::Write,
        };
        let store = self.store(&dir, right)?;
        let bare = |handle| Held {
            handle,
            uncarried: Uncarried::default(),
            leased: false,
        };
        match open_for {
            OpenFor::Read(version) => {
                let (wall, wanted) = (self.clock().wall(), FileRef { path, version });
                let source = self.job(async move { store.open_source(&wanted, wall).await }).await?;
                let len = as_file(&source)?.size();
                Ok(Opened {
                    held: self.hold(&dir, source)?,
                    len,
                    basis_len: 0,
                })
            }
            OpenFor::Confirm(version) => {
                let opened = store.clone();
                let confirm = self
                    .job(async move { opened.open_final(&path, &version).await })
                    .await?;
                let len = confirm.size();
                Ok(Opened {
                    held: bare(self.keep(&dir, Open::Confirm(OpenTarget::new(store, confirm)))?),
                    len,
                    basis_len: 0,
                })
            }
            OpenFor::Write { size, basis } => {
                // What is made of it would tell what is in it.
                let basis = basis.filter(|_| self.allow(&dir, Right::Read).is_ok());
                let partial = self.open_partial(&dir, &store, path, size, basis).await?;
                let (len, basis_len) = (partial.found_len(), partial.basis_len());
                Ok(Opened {
                    held: bare(self.keep(&dir, Open::Partial(OpenTarget::new(store, partial)))?),
                    len,
                    basis_len,
                })
            }
        }
    }

    async fn read(self, _: Context, handle: Handle, chunk: u64) -> Answer<Chunk> {
        let source = self.find_source(handle, Right::Read)?;
        self.job(async move { as_file(&source)?.read_chunk(chunk).await }).await
    }

    async fn hashes(self, _: Context, handle: Handle, first: u64, count: u64) -> Answer<Vec<ChunkHash>> {
        self.check_count(count.try_into().unwrap_or(usize::MAX), self.limits().page_hashes)?;
        let source = self.find_source(handle, Right::Read)?;
        let end = first.saturating_add(count);
        let per_job = chunks_per_job(count as usize);
        let some = (first..end).step_by(per_job).map(|begin| {
            let (source, end) = (source.clone(), end.min(begin.saturating_add(per_job as u64)));
            self.job(async move {
                let mut hashes = Vec::new();
                for index in begin..end {
                    hashes.push(as_file(&source)?.hash_chunk(index).await?);
                }
                Ok(hashes)
            })
        });
        let hashes: Vec<Vec<_>> = stream::iter(some).buffered(HASHING_JOBS).try_collect().await?;
        Ok(hashes.concat())
    }

    async fn compare(
        self,
        _: Context,
        handle: Handle,
        first: u64,
        Items(hashes): Items<ChunkHash>,
        shift: i64,
    ) -> Answer<Vec<bool>> {
        self.check_count(hashes.len(), self.limits().page_hashes)?;
        let open = self.find(handle, Right::Write)?;
        let per_job = chunks_per_job(hashes.len());
        let pieces: Vec<_> = hashes.chunks(per_job).map(<[_]>::to_vec).collect();
        let some = pieces.into_iter().enumerate().map(|(nth, hashes)| {
            let first = first.saturating_add((nth * per_job) as u64);
            let (server, open) = (self.clone(), open.clone());
            async move {
                match open {
                    Open::Source(_) => Err(ServiceError::BadHandle),
                    Open::Partial(target) => {
                        let with_others = target.jobs.clone().read_owned().await;
                        server
                            .job(async move {
                                let _with_others = with_others;
                                target.file.compare(&target.store, first, &hashes, shift).await
                            })
                            .await
                    }
                    Open::Confirm(target) => {
                        server
                            .job(async move { target.file.compare(first, &hashes).await })
                            .await
                    }
                }
            }
        });
        let equal: Vec<Vec<_>> = stream::iter(some).buffered(HASHING_JOBS).try_collect().await?;
        Ok(equal.concat())
    }

    async fn put(self, _: Context, dir: DirId, Items(files): Items<NewFile>) -> Answer<Vec<Answer<()>>> {
        self.check_count(files.len(), self.limits().batch_files)?;
        self.allow(&dir, Right::Write)?;
        drop(self.session.making_dirs.lock().await);
        // Rights may have changed meanwhile.
        let store = self.store(&dir, Right::Write)?;
        let may_replace = self.allow(&dir, Right::Replace);
        let paths: Vec<_> = files.iter().map(|file| file.path.clone()).collect();
        let (names_per_job, syncs_per_job) = (self.limits().job_files, self.limits().job_syncs);
        let prepare = move |store: Store<F>, file: NewFile| {
            let may_replace = may_replace.clone();
            async move {
                if file.expected != Expected::Absent {
                    may_replace?;
                }
                store.prepare(file).await
            }
        };
        let sync = |store: Store<F>, prepared: Answer<Prepared<F>>| async move { store.sync_prepared(prepared?).await };
        let publish =
            |store: Store<F>, prepared: Answer<Prepared<F>>| async move { store.publish_prepared(prepared?).await };
        let prepared = self.jobs_in_turn(&store, files, names_per_job, prepare).await?;
        let synced = self.jobs(&store, prepared, syncs_per_job, sync).await?;
        let published = self.jobs(&store, synced, names_per_job, publish).await?;
        if planted(Bug::AcknowledgeBeforeRename) {
            return Ok(published.into_iter().map(|result| result.map(drop)).collect());
        }
        self.prove_durable(store, published, paths).await
    }

    async fn settle(self, _: Context, dir: DirId, Items(files): Items<Same>) -> Answer<Vec<Answer<()>>> {
        let store = self.store(&dir, Right::Write)?;
        let paths: Vec<_> = files.iter().map(|same| same.file.path.clone()).collect();
        let settle = |store: Store<F>, same: Same| async move { store.settle(&same).await };
        let settled = self.jobs(&store, files, self.limits().job_files, settle).await?;
        self.prove_durable(store, settled, paths).await
    }

    async fn send(self, _: Context, handle: Handle, chunk: u64, data: Bytes, sparse: bool) -> Answer<()> {
        if data.len() as u64 > CHUNK_BYTES {
            return Err(ServiceError::BadRequest("more than a chunk".into()));
        }
        let target = self.find_partial(handle)?;
        let with_others = target.jobs.clone().read_owned().await;
        let turn = target.turns.clone().lock_owned().await;
        self.job(async move {
            let _with_others = with_others;
            target.file.write_chunk(&target.store, chunk, &data, sparse, turn).await
        })
        .await
    }

    async fn calculate_signature(
        self,
        _: Context,
        handle: Handle,
        first: u64,
        count: u64,
        blocks: Blocks,
    ) -> Answer<Sums> {
        self.check_count(count.try_into().unwrap_or(usize::MAX), SIGNATURE_CHUNKS_MAX as usize)?;
        let target = self.find_partial(handle)?;
        self.find(handle, Right::Read)?;
        let with_others = target.jobs.clone().read_owned().await;
        self.job(async move {
            let _with_others = with_others;
            target.file.signature(first, count, blocks).await
        })
        .await
    }

    async fn load_signature(self, _: Context, handle: Handle, sums: Sums) -> Answer<()> {
        self.find_source(handle, Right::Read)?;
        Loaded::add(&mut self.state().loaded, handle, &sums)
    }

    async fn diff(
        self,
        _: Context,
        handle: Handle,
        chunk: u64,
        against: Against,
        finer: Option<Sums>,
        literal_max: Option<u64>,
    ) -> Answer<Delta> {
        let source = self.find_source(handle, Right::Read)?;
        let loaded = match &against {
            Against::Loaded => {
                let state = self.state();
                let loaded = state.loaded.as_ref().filter(|loaded| loaded.handle == handle);
                let none = || ServiceError::BadRequest("no signature is loaded".into());
                Some(loaded.ok_or_else(none)?.clone())
            }
            _ => None,
        };
        let diff = async move {
            let file = as_file(&source)?;
            let finer = finer.as_ref().map(finer_index_of).transpose()?;
            let diff = |first| file.diff(chunk, first, finer.as_ref(), literal_max);
            match (against, loaded) {
                (Against::Sums(sums), _) => diff(Some(&index_of(&sums)?)).await,
                (Against::Loaded, Some(loaded)) => diff(Some(loaded.index()?)).await,
                _ => diff(None).await,
            }
        };
        let _turn = self.session.turns.diffs().await;
        self.job(diff).await
    }

    async fn apply_delta(self, _: Context, handle: Handle, chunk: u64, delta: Delta) -> Answer<()> {
        let target = self.find_partial(handle)?;
        let may_read = self.find(handle, Right::Read).map(drop);
        let with_others = Arc::new(target.jobs.clone().read_owned().await);
        let (rebuilt, sparse, hash) = (target.clone(), delta.sparse, delta.hash);
        let beside = with_others.clone();
        let rebuild = self.job(async move {
            let _beside = beside;
            rebuilt.file.rebuild(chunk, &delta, may_read).await
        });
        let data = rebuild.await?;
        let turn = target.turns.clone().lock_owned().await;
        self.job(async move {
            let _with_others = with_others;
            let (file, store) = (&target.file, &target.store);
            file.write_hashed(store, chunk, &data, Some(hash), sparse, turn).await
        })
        .await
    }

    async fn finish(self, _: Context, handle: Handle, finish: Finish) -> Answer<Finished> {
        let right = match finish.expected {
            Expected::Absent => Right::Write,
            Expected::Version(_) => Right::Replace,
        };
        let finished = match self.find(handle, Right::Write)? {
            Open::Source(_) => Err(ServiceError::BadHandle),
            Open::Partial(_) if self.find(handle, right).is_err() => Err(ServiceError::Denied(right)),
            Open::Partial(target) => self.finish_target(target, finish).await,
            Open::Confirm(target) => self.finish_target(target, finish).await,
        };
        if finished == Ok(Finished::Done) && !planted(Bug::LateWrite) {
            // It is durable whatever becomes of its descriptor, and of what it has replaced.
            self.close_beside(handle).await;
        }
        finished
    }

    async fn close(self, _: Context, Items(handles): Items<Handle>) -> Answer<()> {
        self.close_handles(&handles).await
    }

    async fn sweep(self, _: Context, dir: DirId, path: RelPath) -> Answer<Swept> {
        let store = self.store(&dir, Right::Write)?;
        self.job(async move { store.sweep(&path).await }).await
    }

    async fn remove_orphans(self, _: Context, dir: DirId, path: RelPath) -> Answer<u64> {
        let (store, wall) = (self.store(&dir, Right::Write)?, self.clock().wall());
        self.job(async move { store.remove_orphans(&path, wall).await }).await
    }

    async fn make_dirs(self, _: Context, dir: DirId, Items(dirs): Items<DirMeta>) -> Answer<Vec<Answer<()>>> {
        let _making = self.session.making_dirs.lock().await;
        let store = self.store(&dir, Right::Write)?;
        let one_job = dirs.len().max(1);
        // One job: a directory comes before what is below it.
        let make = |store: Store<F>, dir: DirMeta| async move { store.make_dir(&dir.path, dir.meta).await };
        self.jobs(&store, dirs, one_job, make).await
    }

    async fn finish_dirs(self, _: Context, dir: DirId, Items(dirs): Items<DirMeta>) -> Answer<Vec<Answer<()>>> {
        let store = self.store(&dir, Right::Write)?;
        let finish =
            |store: Store<F>, dir: DirMeta| async move { store.finish_dir(&dir.path, dir.meta, dir.is_complete).await };
        self.jobs(&store, dirs, 8, finish).await
    }

    async fn remove_dirs(self, _: Context, dir: DirId, Items(paths): Items<RelPath>) -> Answer<Vec<Answer<()>>> {
        let store = self.store(&dir, Right::Delete)?;
        let one_job = paths.len().max(1);
        let remove = |store: Store<F>, path: RelPath| async move { store.remove_dir(&path).await };
        self.jobs(&store, paths, one_job, remove).await
    }

    async fn delete(self, _: Context, dir: DirId, Items(files): Items<Delete>) -> Answer<Vec<Answer<()>>> {
        let store = self.store(&dir, Right::Delete)?;
        let files: Vec<_> = files
            .into_iter()
            .map(|file| (self.find_source(file.handle, Right::Delete), file))
            .collect();
        let handles: Vec<_> = files.iter().map(|(_, file)| file.handle).collect();
        let delete = |store: Store<F>, (source, file): (Answer<Arc<Source<F>>>, Delete)| async move {
            store.delete_source(&*source?, file.digest).await
        };
        let results = self.jobs(&store, files, self.limits().job_files, delete).await;
        let closed: Vec<_> = {
            let mut state = self.state();
            state.loaded.take_if(|loaded| handles.contains(&loaded.handle));
            let kept = planted(Bug::HandlesKept);
            handles
                .iter()
                .filter_map(|handle| if kept { None } else { state.open.remove(handle) })
                .collect()
        };
        self.job(async move {
            drop(closed);
            Ok(())
        })
        .await?;
        results
    }

    async fn rename(
        self,
        _: Context,
        from: DirId,
        to: DirId,
        Items(files): Items<RenameFile>,
    ) -> Answer<Vec<Answer<Renamed>>> {
        self.allow(&from, Right::Read)?;
        let to = self.store(&to, Right::Write)?;
        let from = match self.store(&from, Right::Delete) {
            // Open in another session: this host was named in two ways.
            Err(ServiceError::NotFound) => return Ok(vec![Ok(Renamed::OtherDevice); files.len()]),
            found => found?,
        };
        let wall = self.clock().wall();
        let mut from_paths = Vec::new();
        let mut to_paths = Vec::new();
        for file in &files {
            from_paths.push(file.from.path.clone());
            to_paths.push(file.to.clone());
        }
        let rename = {
            let to = to.clone();
            move |from: Store<F>, file: RenameFile| {
                let to = to.clone();
                async move { from.rename_into(&to, &file, wall).await }
            }
        };
        let results = self.jobs(&from, files, self.limits().job_files, rename).await?;
        // What a rename could not do has changed no name, but a sync more is the simpler rule.
        let results = self.durable(&to, results, &to_paths).await;
        let results = self.durable(&from, results, &from_paths).await;
        Ok(results)
    }
}
