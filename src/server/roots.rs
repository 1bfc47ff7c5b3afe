//! The directories of the host that are served. Which they are may change while they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use futures::future::join_all;

use crate::{
    clock::{Clock, timeout},
    config::Directory,
    fs::Fs,
    limits::Limits,
    model::Escaped,
    service::ServiceError,
    store::Store,
};

/// How long a disk may take until its directory is open.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// The roots that a server serves. Shared by its sessions.
pub struct Roots<F: Fs, C: Clock> {
    pub(super) fs: F,
    pub(super) clock: C,
    pub(super) limits: Limits,
    /// Random, to tell this process from others.
    pub(super) id: [u8; 16],
    served: RwLock<BTreeMap<String, Arc<Served<F>>>>,
    /// Held while directories are opened that were not served before: a disk that hangs holds one thread, however often it is asked for.
    opening: Arc<tokio::sync::Mutex<()>>,
    /// The same while they are tidied up.
    tidying: Arc<tokio::sync::Mutex<()>>,
}

/// A directory of the host that is served.
pub(super) struct Served<F: Fs> {
    pub path: PathBuf,
    pub store: Store<F>,
    accept_unsynced: bool,
    /// Held while it is looked whether it still is where it was.
    looking: Arc<tokio::sync::Mutex<()>>,
}

/// What is to be served from now on: see [`Roots::replace`].
pub struct Replacement<F: Fs> {
    served: BTreeMap<String, Arc<Served<F>>>,
    /// Names of what is served, and will not be, or will be another directory.
    gone: BTreeSet<String>,
    /// What goes on as it was, because it could not be looked at, and why.
    pub unseen: Vec<CannotOpen>,
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
            opening: Arc::default(),
            tidying: Arc::default(),
        }
    }

    /// Serves the directory at `path` of the host as `name`. With `accept_unsynced` it may be on a file system
    /// that can't make names durable.
    pub async fn add(&self, name: impl Into<String>, path: &Path, accept_unsynced: bool) -> io::Result<()> {
        let (fs, opened) = (self.fs.clone(), path.to_owned());
        let root = self.fs.offload(async move { fs.open_root(&opened).await }).await;
        let served = self.serving(root.map_err(io::Error::other)??, path, accept_unsynced);
        let mut all = self.served.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.into(), served);
        Ok(())
    }

    fn serving(&self, root: F::Dir, path: &Path, accept_unsynced: bool) -> Arc<Served<F>> {
        Arc::new(Served {
            path: path.to_owned(),
            store: Store::new(root, self.limits.clone(), accept_unsynced, self.fs.boot()),
            accept_unsynced,
            looking: Arc::default(),
        })
    }

    /// Opens what `directories` has and is not served, and looks whether the others still are where they were: one whose path leads elsewhere by
    /// now is another. Those that can't be looked at stay as they are; that each use of them is refused while that is so is the business of
    /// their claims. Changes nothing.
    pub async fn prepare(&self, directories: &BTreeMap<String, Directory>) -> Result<Replacement<F>, CannotOpen> {
        let before = self.served().clone();
        let mut replacement = Replacement {
            served: BTreeMap::new(),
            gone: BTreeSet::new(),
            unseen: Vec::new(),
        };
        let mut to_open = Vec::new();
        let mut to_look = Vec::new();
        for (name, directory) in directories {
            let same = before
                .get(name)
                .filter(|served| served.path == directory.path && served.accept_unsynced == directory.accept_unsynced);
            match same {
                Some(served) => to_look.push(self.look(name, served.clone())),
                None => to_open.push((name.clone(), directory.clone())),
            }
        }
        for (name, served, seen) in join_all(to_look).await {
            let served = match seen {
                Ok(None) => served,
                Ok(Some(there)) => self.serving(there, &served.path, served.accept_unsynced),
                Err(why) => {
                    let path = served.path.clone();
                    replacement.unseen.push(CannotOpen {
                        name: name.clone(),
                        path,
                        why,
                    });
                    served
                }
            };
            replacement.served.insert(name, served);
        }
        for (name, served) in self.open(to_open).await? {
            replacement.served.insert(name, served);
        }
        let is_kept = |name: &String, served: &Arc<Served<F>>| {
            let now = replacement.served.get(name);
            now.is_some_and(|now| Arc::ptr_eq(now, served))
        };
        let gone = before.iter().filter(|(name, served)| !is_kept(name, served));
        replacement.gone = gone.map(|(name, _)| name.clone()).collect();
        Ok(replacement)
    }

    /// What is at the path of `served` now, if that is not what is served.
    async fn look(&self, name: &str, served: Arc<Served<F>>) -> (String, Arc<Served<F>>, io::Result<Option<F::Dir>>) {
        let looking = served.looking.clone().try_lock_owned();
        let (fs, looked_at) = (self.fs.clone(), served.clone());
        let look = self.fs.offload(async move {
            let _looking = looking.map_err(|_| io::ErrorKind::TimedOut)?;
            let there = fs.open_root(&looked_at.path).await?;
            match looked_at.store.prove_same_root(&there).await {
                Ok(()) => Ok(None),
                Err(ServiceError::Replaced) => Ok(Some(there)),
                Err(error) => Err(io::Error::other(error.to_string())),
            }
        });
        let seen = match timeout(&self.clock, OPEN_LIMIT, look).await {
            None => Err(io::ErrorKind::TimedOut.into()),
            Some(seen) => seen.unwrap_or_else(|lost| Err(io::Error::other(lost))),
        };
        (name.to_owned(), served, seen)
    }

    async fn open(&self, directories: Vec<(String, Directory)>) -> Result<Vec<(String, Arc<Served<F>>)>, CannotOpen> {
        let mut opened = Vec::new();
        for (name, Directory { path, accept_unsynced }) in directories {
            let opening = self.opening.clone().try_lock_owned();
            let (fs, there) = (self.fs.clone(), path.clone());
            let open = self.fs.offload(async move {
                let _opening = opening.map_err(|_| io::ErrorKind::TimedOut)?;
                fs.open_root(&there).await
            });
            let root = match timeout(&self.clock, OPEN_LIMIT, open).await {
                None => Err(io::ErrorKind::TimedOut.into()),
                Some(root) => root.unwrap_or_else(|lost| Err(io::Error::other(lost))),
            };
            match root {
                Ok(root) => opened.push((name, self.serving(root, &path, accept_unsynced))),
                Err(why) => return Err(CannotOpen { name, path, why }),
            }
        }
        Ok(opened)
    }

    /// Serves what was prepared and nothing else. `with` is told the names that are gone or lead elsewhere, at a moment in which no call looks
    /// anything up: what it changes of the rights changes with the directories.
    pub async fn replace<T: Send>(
        &self,
        replacement: Replacement<F>,
        with: impl FnOnce(&BTreeSet<String>) -> T + Send,
    ) -> T {
        let (before, done) = {
            let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *served, replacement.served);
            (before, with(&replacement.gone))
        };
        // Closing may block.
        let closed = self.fs.offload(async move { drop(before) });
        let _closed = timeout(&self.clock, OPEN_LIMIT, closed).await;
        done
    }

    /// What is served. As long as this is held, that and the rights of peers stay what they are.
    pub(super) fn served(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Served<F>>>> {
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
