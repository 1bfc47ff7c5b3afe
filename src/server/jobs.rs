//! Calls cut into jobs, and their results put back in order.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, atomic::Ordering},
};

use futures::{FutureExt, future::join_all};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    RealizeServer,
    open::{PARTIAL_PAUSE, PARTIAL_TRIES},
};
use crate::{
    clock::Clock,
    fs::Fs,
    model::RelPath,
    service::{Answer, ServiceError},
    store::{Ours, Store, parents},
};

/// How many jobs of one peer may be at work at once: fewer than there are threads, so that others get theirs.
const JOBS_AT_ONCE: usize = 24;

/// How many of them may be searches for differences: each takes a few mebibytes, and one that is made so on purpose takes long.
const DIFFS_AT_ONCE: usize = 4;

/// Turns of jobs, those of all sessions of one peer. Clones are the same.
#[derive(Clone)]
pub struct Turns(Arc<[Semaphore; 2]>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new([JOBS_AT_ONCE, DIFFS_AT_ONCE].map(Semaphore::new)))
    }
}

impl Turns {
    /// Whether no session has them any more but the one who asks.
    pub fn are_unshared(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// A turn of any job. The semaphores are never closed.
    async fn jobs(&self) -> Option<SemaphorePermit<'_>> {
        self.0[0].acquire().await.ok()
    }

    /// A turn to look for differences, beside that of the job.
    pub(super) async fn diffs(&self) -> Option<SemaphorePermit<'_>> {
        self.0[1].acquire().await.ok()
    }
}

impl<F: Fs, C: Clock> RealizeServer<F, C> {
    pub(super) async fn job<T: Send + 'static>(
        &self,
        job: impl Future<Output = Answer<T>> + Send + 'static,
    ) -> Answer<T> {
        self.offload(job).await.unwrap_or(Err(ServiceError::Internal))
    }

    /// Runs a job once its turn has come. `None` when the session ends before, or the job is lost.
    async fn offload<T: Send + 'static>(&self, job: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let turn = self.session.turns.jobs().await?;
        if self.session.is_stopped.load(Ordering::Relaxed) {
            return None;
        }
        let done = self.session.roots.fs.offload(job).await.ok();
        drop(turn);
        done
    }

    /// Runs `work` over `items` of `store` in jobs of a few, all at once, and gives the results in order. Each job walks
    /// once to each directory it comes to.
    pub(super) async fn jobs<I, T, W, J>(
        &self,
        store: &Store<F>,
        items: Vec<I>,
        per_job: usize,
        work: W,
    ) -> Answer<Vec<Answer<T>>>
    where
        I: Send + 'static,
        T: Send + 'static,
        W: Fn(Store<F>, I) -> J + Clone + Send + 'static,
        J: Future<Output = Answer<T>> + Send,
    {
        self.check_count(items.len(), self.limits().page_entries)?;
        let mut groups = Vec::new();
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            groups.push(items.by_ref().take(per_job).collect::<Vec<_>>());
        }
        let groups = groups.into_iter().map(|group| {
            let (count, work, store) = (group.len(), work.clone(), store.for_batch());
            let job = self.offload(async move {
                let mut results = Vec::with_capacity(group.len());
                for item in group {
                    results.push(work(store.clone(), item).await);
                }
                results
            });
            job.map(move |results| results.unwrap_or_else(|| (0..count).map(|_| Err(ServiceError::Internal)).collect()))
        });
        Ok(join_all(groups).await.into_iter().flatten().collect())
    }

    /// As [`jobs`](Self::jobs); those that find a partial locked are done once more, for a moment.
    pub(super) async fn jobs_in_turn<I, T, W, J>(
        &self,
        store: &Store<F>,
        items: Vec<I>,
        per_job: usize,
        work: W,
    ) -> Answer<Vec<Answer<T>>>
    where
        I: Clone + Send + 'static,
        T: Send + 'static,
        W: Fn(Store<F>, I) -> J + Clone + Send + 'static,
        J: Future<Output = Answer<T>> + Send,
    {
        let mut results = self.jobs(store, items.clone(), per_job, work.clone()).await?;
        for _ in 0..PARTIAL_TRIES {
            let is_busy = |result: &Answer<T>| matches!(result, Err(ServiceError::Busy(_)));
            let busy: Vec<_> = (0..results.len()).filter(|nth| is_busy(&results[*nth])).collect();
            if busy.is_empty() {
                break;
            }
            self.clock().sleep(PARTIAL_PAUSE).await;
            let again = busy.iter().map(|nth| items[*nth].clone()).collect();
            let again = self.jobs(store, again, per_job, work.clone()).await?;
            for (nth, result) in busy.into_iter().zip(again) {
                results[nth] = result;
            }
        }
        Ok(results)
    }

    pub(super) fn check_count(&self, count: usize, max: usize) -> Answer<()> {
        if count > max {
            return Err(ServiceError::BadRequest(format!("{count} items, {max} is the most")));
        }
        Ok(())
    }

    /// Makes the directories of all items that succeeded durable; an item whose directory could not be has not succeeded.
    pub(super) async fn durable<T>(
        &self,
        store: &Store<F>,
        results: Vec<Answer<T>>,
        paths: &[RelPath],
    ) -> Vec<Answer<T>> {
        const DIRS_PER_JOB: usize = 8;
        let done = results
            .iter()
            .zip(paths)
            .filter(|(result, _)| result.is_ok())
            .map(|(_, path)| path);
        let dirs: Vec<_> = parents(done).into_iter().collect();
        // A few a job and the jobs side by side, so that the disk can commit them together.
        let syncs = dirs.chunks(DIRS_PER_JOB).map(|dirs| {
            let (store, dirs) = (store.clone(), dirs.to_vec());
            let count = dirs.len();
            let job = self.offload(async move {
                let mut synced = Vec::with_capacity(dirs.len());
                for dir in dirs {
                    synced.push(store.make_names_durable(dir).await);
                }
                synced
            });
            job.map(move |synced| synced.unwrap_or_else(|| vec![Err(ServiceError::Internal); count]))
        });
        let synced = join_all(syncs).await.into_iter().flatten();
        let failed: BTreeMap<_, _> = dirs
            .iter()
            .zip(synced)
            .filter_map(|(dir, synced)| Some((dir, synced.err()?)))
            .collect();
        let with_dir = |(result, path): (Answer<T>, &RelPath)| match path.parent().and_then(|dir| failed.get(&dir)) {
            Some(error) => result.and(Err(error.clone())),
            None => result,
        };
        results.into_iter().zip(paths).map(with_dir).collect()
    }

    /// The last step for a batch: the names of all that has arrived are durable, and still theirs.
    pub(super) async fn prove_durable(
        &self,
        store: Store<F>,
        arrived: Vec<Answer<Ours>>,
        paths: Vec<RelPath>,
    ) -> Answer<Vec<Answer<()>>> {
        let durable = self.durable(&store, arrived, &paths).await;
        let prove = |store: Store<F>, (durable, path): (Answer<Ours>, RelPath)| async move {
            store.prove_there(&path, &durable?).await
        };
        let files = durable.into_iter().zip(paths).collect();
        self.jobs(&store, files, self.limits().job_files, prove).await
    }
}
