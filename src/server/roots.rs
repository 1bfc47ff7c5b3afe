//! The directories of the host that are served. Which they are may change while they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use futures::{StreamExt, stream};

use crate::{
    clock::{Clock, timeout},
    config::Directory,
    fs::{Dir, Fs},
    limits::Limits,
    model::Escaped,
    service::ServiceError,
    store::{FailedSync, Store},
};

/// How long a disk may take until its directory is open: it may have to spin up.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// How long it may take to look whether those that are open are where they were: what else is configured waits for that.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// How long it is waited until what is not served any more is closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// How many directories are looked at at once.
const LOOKS_AT_ONCE: usize = 4;

/// How many may be, those whose disks hang counted in: fewer than there are threads.
const ASKED_MAX: usize = 8;

/// The roots that a server serves. Shared by its sessions.
pub struct Roots<F: Fs, C: Clock> {
    pub(super) fs: F,
    pub(super) clock: C,
    pub(super) limits: Limits,
    /// Random, to tell this process from others.
    pub(super) id: [u8; 16],
    served: RwLock<All<F>>,
    /// Syncs that have failed, by device and inode of the root: they are not forgotten when it is served anew.
    failures: Mutex<BTreeMap<(u64, u64), FailedSync>>,
    /// Paths that are being looked at: a disk that hangs holds one thread, however often it is asked for.
    asked: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Held while they are tidied up, for the same.
    tidying: Arc<tokio::sync::Mutex<()>>,
}

/// A directory of the host that is served.
pub(super) struct Served<F: Fs> {
    pub path: PathBuf,
    pub store: Store<F>,
    accept_unsynced: bool,
    /// Whether something is mounted there.
    is_mount: bool,
}

type All<F> = BTreeMap<String, Arc<Served<F>>>;

/// A directory that was opened to be served.
struct Root<F: Fs> {
    dir: F::Dir,
    /// Device and inode.
    place: (u64, u64),
    is_mount: bool,
}

/// A path that is being looked at, until this is dropped.
struct Asked {
    path: PathBuf,
    all: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.path);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to be served from now on: see [`Roots::replace`].
pub struct Replacement<F: Fs> {
    served: All<F>,
    /// Names of what is served, and will not be, or will be another directory.
    gone: BTreeSet<String>,
    /// What is not as one might think.
    pub notes: Notes,
}

/// What a replacement has made of directories whose entries are as they were.
#[derive(Debug, Default)]
pub struct Notes {
    /// Those that go on as they were, because they could not be looked at, and why.
    pub unseen: Vec<CannotOpen>,
    /// Names of those at whose path another directory is now, which is served from now on.
    pub others: Vec<String>,
}

/// What was served before, until it is closed.
pub struct Before<F: Fs> {
    _all: All<F>,
}

/// A directory that is to be served cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {} of the directory {name:?}: {why}; is its disk mounted?", Escaped(path.as_os_str().as_bytes()))]
pub struct CannotOpen {
    name: String,
    path: PathBuf,
    why: io::Error,
}

impl<F: Fs, C: Clock> Roots<F, C> {
    /// No roots yet. `id` is random, to tell this process from others.
    pub fn new(fs: F, clock: C, limits: Limits, id: [u8; 16]) -> Self {
        Self {
            fs,
            clock,
            limits,
            id,
            served: RwLock::default(),
            failures: Mutex::default(),
            asked: Arc::default(),
            tidying: Arc::default(),
        }
    }

    /// Serves the directory at `path` of the host as `name`. With `accept_unsynced` it may be on a file system
    /// that can't make names durable.
    pub async fn add(&self, name: impl Into<String>, path: &Path, accept_unsynced: bool) -> io::Result<()> {
        let (fs, opened) = (self.fs.clone(), path.to_owned());
        let root = self.fs.offload(async move { open(&fs, &opened).await }).await;
        let served = self.serving(root.map_err(io::Error::other)??, path, accept_unsynced);
        let mut all = self.served.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.into(), served);
        Ok(())
    }

    fn serving(&self, root: Root<F>, path: &Path, accept_unsynced: bool) -> Arc<Served<F>> {
        let failed_sync = {
            let mut failures = lock(&self.failures);
            failures.retain(|_, failed| failed.is_shared_or_set());
            failures.entry(root.place).or_default().clone()
        };
        Arc::new(Served {
            path: path.to_owned(),
            store: Store::new(
                root.dir,
                self.limits.clone(),
                accept_unsynced,
                self.fs.boot(),
                failed_sync,
            ),
            accept_unsynced,
            is_mount: root.is_mount,
        })
    }

    /// Opens what `directories` has and is not served, and looks whether the others still are where they were: one whose path leads elsewhere by
    /// now is another. Those that can't be looked at stay as they are, and so do those on whose place nothing is mounted any more; that each use of
    /// them is refused while that is so is the business of their claims. Changes nothing.
    pub async fn prepare(&self, directories: &BTreeMap<String, Directory>) -> Result<Replacement<F>, CannotOpen> {
        let before = self.served().clone();
        let mut served = BTreeMap::new();
        let mut notes = Notes::default();
        let mut to_open = Vec::new();
        let mut to_look = Vec::new();
        for (name, directory) in directories {
            let same = before
                .get(name)
                .filter(|served| served.path == directory.path && served.accept_unsynced == directory.accept_unsynced);
            match same {
                Some(same) => to_look.push((name.clone(), same.clone())),
                None => to_open.push((name.clone(), directory)),
            }
        }
        let end = self.clock.now().saturating_add(LOOK_LIMIT);
        let looked = to_look.into_iter().map(|(name, same)| async move {
            let seen = self.look(same.clone(), end).await;
            (name, same, seen)
        });
        let mut looked = pin!(stream::iter(looked).buffered(LOOKS_AT_ONCE));
        while let Some((name, same, seen)) = looked.next().await {
            let now = match seen {
                Ok(None) => same,
                Ok(Some(there)) => {
                    notes.others.push(name.clone());
                    self.serving(there, &same.path, same.accept_unsynced)
                }
                Err(why) => {
                    let (name, path) = (name.clone(), same.path.clone());
                    notes.unseen.push(CannotOpen { name, path, why });
                    same
                }
            };
            served.insert(name, now);
        }
        for (name, Directory { path, accept_unsynced }) in to_open {
            let fs = self.fs.clone();
            let opened = self.ask(path, OPEN_LIMIT, move |path| async move { open(&fs, &path).await });
            let root = opened.await.map_err(|why| CannotOpen {
                name: name.clone(),
                path: path.clone(),
                why,
            })?;
            served.insert(name, self.serving(root, path, *accept_unsynced));
        }
        let is_kept = |name: &String, before: &Arc<Served<F>>| {
            let now = served.get(name);
            now.is_some_and(|now| Arc::ptr_eq(now, before))
        };
        let gone = before.iter().filter(|(name, before)| !is_kept(name, before));
        let gone = gone.map(|(name, _)| name.clone()).collect();
        Ok(Replacement { served, gone, notes })
    }

    /// What is at the path of `served` now, if that is not what is served.
    async fn look(&self, served: Arc<Served<F>>, end: Duration) -> io::Result<Option<Root<F>>> {
        let (fs, path) = (self.fs.clone(), served.path.clone());
        let left = end.saturating_sub(self.clock.now());
        let look = self.ask(&path, left, move |path| async move {
            let there = open(&fs, &path).await?;
            match served.store.prove_same_root(&there.dir).await {
                Ok(()) => Ok(None),
                Err(ServiceError::Replaced) if served.is_mount && !there.is_mount => {
                    Err(io::Error::other(
                        "nothing is mounted there any more (to serve what is there now, take it out, reload, and put it back)",
                    ))
                }
                Err(ServiceError::Replaced) => Ok(Some(there)),
                Err(error) => Err(io::Error::other(error.to_string())),
            }
        });
        look.await
    }

    /// Does `job` about `path`, for no longer than `limit`; `TimedOut` also where one before is still at it, or too many are at others.
    async fn ask<T, J>(&self, path: &Path, limit: Duration, job: impl FnOnce(PathBuf) -> J) -> io::Result<T>
    where
        T: Send + 'static,
        J: Future<Output = io::Result<T>> + Send + 'static,
    {
        let path = path.to_owned();
        let asked = {
            let mut all = lock(&self.asked);
            if limit.is_zero() || all.len() >= ASKED_MAX || !all.insert(path.clone()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Asked {
                path: path.clone(),
                all: self.asked.clone(),
            }
        };
        let job = job(path);
        let done = self.fs.offload(async move {
            let _asked = asked;
            job.await
        });
        match timeout(&self.clock, limit, done).await {
            None => Err(io::ErrorKind::TimedOut.into()),
            Some(done) => done.unwrap_or_else(|lost| Err(io::Error::other(lost))),
        }
    }

    /// Serves what was prepared and nothing else. `with` is told the names that are gone or lead elsewhere, at a moment in which no call looks
    /// anything up: what it changes of the rights changes with the directories. What was served before is to be [closed](Self::close).
    pub fn replace<T>(&self, replacement: Replacement<F>, with: impl FnOnce(&BTreeSet<String>) -> T) -> (T, Before<F>) {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *served, replacement.served);
        (with(&replacement.gone), Before { _all: before })
    }

    /// Closes what is not served any more, which may take long: a job does it.
    pub async fn close(&self, before: Before<F>) {
        let closed = self.fs.offload(async move { drop(before) });
        let _closed = timeout(&self.clock, CLOSE_LIMIT, closed).await;
    }

    /// What is served. As long as this is held, that and the rights of peers stay what they are.
    pub(super) fn served(&self) -> RwLockReadGuard<'_, All<F>> {
        // Nothing panics while it is held.
        self.served.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn stores(&self) -> Vec<Store<F>> {
        self.served().values().map(|served| served.store.clone()).collect()
    }

    /// Remembers hashes of sources in the directory at `path` of the host too, for later processes; `PermissionDenied` where anybody but this user may write
    /// to it.
    pub async fn remember_in(&self, path: &Path) -> io::Result<()> {
        let (fs, path, stores) = (self.fs.clone(), path.to_owned(), self.stores());
        let owner = rustix::process::geteuid().as_raw();
        let remembered = self.fs.offload(async move {
            let dir = fs.open_root(&path).await?;
            for store in stores {
                store.remember_in(dir.clone(), owner).await?;
            }
            Ok(())
        });
        remembered.await.map_err(io::Error::other)?
    }

    /// Closes partials that were kept open for too long.
    pub async fn tidy(&self) {
        let Ok(tidying) = self.tidying.clone().try_lock_owned() else {
            return;
        };
        let (now, stores) = (self.clock.now(), self.stores());
        let tidied = self.fs.offload(async move {
            let _tidying = tidying;
            for store in stores {
                store.tidy(now).await;
            }
        });
        // What panics there is told by who runs the jobs.
        tidied.await.ok();
    }
}

/// Opens the directory at `path`, and looks whether it is on another device than what it is in.
async fn open<F: Fs>(fs: &F, path: &Path) -> io::Result<Root<F>> {
    let dir = fs.open_root(path).await?;
    let version = dir.metadata().await?.version;
    let above = match path.parent() {
        Some(above) => fs.open_root(above).await.ok(),
        None => None,
    };
    let above = match above {
        Some(above) => above.metadata().await.ok(),
        None => None,
    };
    Ok(Root {
        dir,
        place: (version.dev, version.ino),
        is_mount: above.is_some_and(|above| above.version.dev != version.dev),
    })
}
