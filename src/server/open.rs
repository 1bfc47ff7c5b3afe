//! What a session has open, and its handles.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::sync::OwnedRwLockWriteGuard;

use super::{CHUNKS_PER_JOB, RealizeServer};
use crate::{
    clock::{Clock, timeout},
    fs::Fs,
    model::{RelPath, Uncarried, Version},
    service::{Answer, DirId, Finish, Finished, Handle, Held, Right, ServiceError},
    store::{Confirm, Partial, Source, SourceFile, Store},
};

/// How often a partial that is locked is tried once more, and after what time each: three seconds, and what the tries take. Whoever has it may be
/// a run that has just died, with jobs still at it.
pub(super) const PARTIAL_TRIES: u32 = 30;
pub(super) const PARTIAL_PAUSE: Duration = Duration::from_millis(100);

/// Something open.
pub(super) enum Open<F: Fs> {
    /// A source, to be read and deleted.
    Source(Arc<Source<F>>),
    /// A file that is arriving.
    Partial(Arc<OpenTarget<F, Partial<F>>>),
    /// A final that may be equal.
    Confirm(Arc<OpenTarget<F, Confirm<F>>>),
}

impl<F: Fs> Clone for Open<F> {
    fn clone(&self) -> Self {
        match self {
            Self::Source(source) => Self::Source(source.clone()),
            Self::Partial(partial) => Self::Partial(partial.clone()),
            Self::Confirm(confirm) => Self::Confirm(confirm.clone()),
        }
    }
}

/// An open file of the target.
pub(super) struct OpenTarget<F: Fs, T> {
    pub store: Store<F>,
    pub file: T,
    /// Shared by jobs that write, exclusive to the one that finishes: no late write lands in a final.
    pub jobs: Arc<tokio::sync::RwLock<()>>,
    /// One chunk is written at a time: the kernel locks the inode, and threads that wait for it spin. Hashing goes on beside.
    pub turns: Arc<tokio::sync::Mutex<()>>,
    finishing: Mutex<Option<Shared<BoxFuture<'static, Answer<()>>>>>,
    /// How many chunks have been read back to finish it.
    read_back: AtomicU64,
}

impl<F: Fs, T> OpenTarget<F, T> {
    /// Nothing is at work on it yet.
    pub fn new(store: Store<F>, file: T) -> Arc<Self> {
        Arc::new(Self {
            store,
            file,
            jobs: Arc::default(),
            turns: Arc::default(),
            finishing: Mutex::new(None),
            read_back: AtomicU64::new(0),
        })
    }

    /// Ends once no job is at the file; none begins until what it gives is dropped.
    async fn quiet(&self) -> OwnedRwLockWriteGuard<()> {
        let finishing = self.finishing.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(finishing) = finishing {
            // Whoever wanted its result has gone.
            let _result = finishing.await;
        }
        self.jobs.clone().write_owned().await
    }
}

impl<F: Fs, C: Clock> RealizeServer<F, C> {
    /// Closes files; what is not open is none of them.
    pub async fn close_handles(&self, handles: &[Handle]) -> Answer<()> {
        let mut closed = Vec::new();
        {
            let mut state = self.state();
            state.loaded.take_if(|loaded| handles.contains(&loaded.handle));
            closed.extend(handles.iter().filter_map(|handle| Some(state.open.remove(handle)?.1)));
        }
        self.close_all(closed).await
    }

    /// Closes a file that is finished, beside what follows: to free what it has replaced may take long.
    pub(super) async fn close_beside(&self, handle: Handle) {
        // The semaphore is never closed.
        let turn = self.session.closing.clone().acquire_owned().await;
        let Some((_, closed)) = self.state().open.remove(&handle) else {
            return;
        };
        let closing = self.session.roots.fs.offload(async move {
            let _turn = turn;
            drop(closed);
        });
        // A job that has begun runs to its end.
        let _begun = futures::poll!(pin!(closing));
    }

    pub(super) async fn close_all(&self, closed: Vec<Open<F>>) -> Answer<()> {
        // A close waits for every job on the file, a finish that nobody asked for again among them.
        let mut quiet = Vec::new();
        for open in closed {
            let alone = match &open {
                Open::Source(_) => None,
                Open::Partial(target) => Some(target.quiet().await),
                Open::Confirm(target) => Some(target.quiet().await),
            };
            quiet.push((open, alone));
        }
        // Closing a descriptor may block. It needs no turn: what is at the end of a session still has to be closed.
        let closing = self.session.roots.fs.offload(async move {
            for (open, _alone) in quiet {
                if let Open::Partial(target) = open {
                    target.store.keep(&target.file).await;
                }
            }
        });
        closing.await.map_err(|_| ServiceError::Internal)
    }

    /// Files, links and partials that are open now.
    pub fn open_handles(&self) -> usize {
        self.state().open.len()
    }

    /// A partial that is locked is waited for a moment.
    pub(super) async fn open_partial(
        &self,
        dir: &DirId,
        store: &Store<F>,
        path: RelPath,
        size: u64,
        basis: Option<Version>,
    ) -> Answer<Partial<F>> {
        let mut tries = 0;
        loop {
            let (store, path) = (store.clone(), path.clone());
            let opened = self.job(async move { store.open_partial(&path, size, basis.as_ref()).await });
            match opened.await {
                Err(ServiceError::Busy(_)) if tries < PARTIAL_TRIES => tries += 1,
                opened => return opened,
            }
            self.clock().sleep(PARTIAL_PAUSE).await;
            self.allow(dir, Right::Write)?;
        }
    }

    pub(super) fn keep(&self, dir: &DirId, open: Open<F>) -> Answer<Handle> {
        let (handles_max, targets_max) = (self.limits().open_handles, self.limits().open_targets);
        let is_target = |open: &Open<F>| !matches!(open, Open::Source(_));
        let mut state = self.state();
        let targets = || state.open.values().filter(|(_, open)| is_target(open)).count();
        if state.open.len() >= handles_max || (is_target(&open) && targets() >= targets_max) {
            return Err(ServiceError::Busy("too many files are open".into()));
        }
        let handle = Handle(state.next_handle);
        state.next_handle += 1;
        state.open.insert(handle, (dir.clone(), open));
        Ok(handle)
    }

    pub(super) fn hold(&self, dir: &DirId, source: Source<F>) -> Answer<Held> {
        let (uncarried, leased) = match &source {
            Source::File(file) => (file.uncarried, file.leased),
            Source::Link { .. } => (Uncarried::default(), false),
        };
        Ok(Held {
            handle: self.keep(dir, Open::Source(Arc::new(source)))?,
            uncarried,
            leased,
        })
    }

    pub(super) fn find(&self, handle: Handle, right: Right) -> Answer<Open<F>> {
        let (dir, open) = self.state().open.get(&handle).cloned().ok_or(ServiceError::BadHandle)?;
        self.allow(&dir, right)?;
        Ok(open)
    }

    pub(super) fn find_source(&self, handle: Handle, right: Right) -> Answer<Arc<Source<F>>> {
        match self.find(handle, right)? {
            Open::Source(source) => Ok(source),
            _ => Err(ServiceError::BadHandle),
        }
    }

    pub(super) fn find_partial(&self, handle: Handle) -> Answer<Arc<OpenTarget<F, Partial<F>>>> {
        match self.find(handle, Right::Write)? {
            Open::Partial(partial) => Ok(partial),
            _ => Err(ServiceError::BadHandle),
        }
    }

    /// Finishes a file, exclusive of every other job on it, and waits for that as long as an answer may take.
    pub(super) async fn finish_target<T: Finishable<F>>(
        &self,
        target: Arc<OpenTarget<F, T>>,
        finish: Finish,
    ) -> Answer<Finished> {
        let running = {
            let mut finishing = target.finishing.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = || self.finishing(target.clone(), finish).shared();
            finishing.get_or_insert_with(begin).clone()
        };
        match timeout(self.clock(), self.limits().finish_answer, running).await {
            None => Ok(Finished::Working {
                read_back: target.read_back.load(Ordering::Relaxed),
            }),
            Some(result) => {
                // A call after this one begins anew, and finds what it wants.
                *target.finishing.lock().unwrap_or_else(PoisonError::into_inner) = None;
                result.map(|()| Finished::Done)
            }
        }
    }

    fn finishing<T: Finishable<F>>(
        &self,
        target: Arc<OpenTarget<F, T>>,
        finish: Finish,
    ) -> BoxFuture<'static, Answer<()>> {
        let server = self.clone();
        async move {
            let alone = Arc::new(target.jobs.clone().write_owned().await);
            let prepare = {
                let (target, finish, alone) = (target.clone(), finish.clone(), alone.clone());
                async move {
                    let _alone = alone;
                    target.file.prepare_finish(&target.store, &finish).await
                }
            };
            server.job(prepare).await?;
            loop {
                // The last job is the one that has nothing left to read.
                let (target, finish, alone) = (target.clone(), finish.clone(), alone.clone());
                let is_done = server.job(async move {
                    let _alone = alone;
                    let is_read = target.file.read_back(&target.store, CHUNKS_PER_JOB as u64).await?;
                    let is_done = is_read && target.file.finish(&target.store, &finish).await?;
                    if !is_done {
                        target.read_back.fetch_add(CHUNKS_PER_JOB as u64, Ordering::Relaxed);
                    }
                    Ok(is_done)
                });
                if is_done.await? {
                    return Ok(());
                }
            }
        }
        .boxed()
    }
}

/// What a `finish` may be about.
pub(super) trait Finishable<F: Fs>: Send + Sync + 'static {
    /// Makes everything durable but the name.
    fn prepare_finish(&self, store: &Store<F>, finish: &Finish) -> impl Future<Output = Answer<()>> + Send;

    /// Reads up to `chunks_max` chunks back; whether no more has to be.
    fn read_back(&self, store: &Store<F>, chunks_max: u64) -> impl Future<Output = Answer<bool>> + Send;

    /// Verifies and publishes. `false` when it has to be read back once more: once at most.
    fn finish(&self, store: &Store<F>, finish: &Finish) -> impl Future<Output = Answer<bool>> + Send;
}

impl<F: Fs> Finishable<F> for Partial<F> {
    async fn prepare_finish(&self, store: &Store<F>, finish: &Finish) -> Answer<()> {
        Partial::prepare_finish(self, store, finish).await
    }

    async fn read_back(&self, store: &Store<F>, chunks_max: u64) -> Answer<bool> {
        Partial::read_back(self, store, chunks_max).await
    }

    async fn finish(&self, store: &Store<F>, finish: &Finish) -> Answer<bool> {
        Partial::finish(self, store, finish).await
    }
}

impl<F: Fs> Finishable<F> for Confirm<F> {
    /// It was made durable when it was opened.
    async fn prepare_finish(&self, _: &Store<F>, _: &Finish) -> Answer<()> {
        Ok(())
    }

    async fn read_back(&self, _: &Store<F>, chunks_max: u64) -> Answer<bool> {
        Confirm::read_back(self, chunks_max).await
    }

    async fn finish(&self, store: &Store<F>, finish: &Finish) -> Answer<bool> {
        Confirm::finish(self, store, finish).await.map(|()| true)
    }
}

/// The file that is open, of a source that is one.
pub(super) fn as_file<F: Fs>(source: &Source<F>) -> Answer<&SourceFile<F>> {
    match source {
        Source::File(file) => Ok(file),
        Source::Link { .. } => Err(ServiceError::BadHandle),
    }
}
