//! One root: what can be done below it to one file or directory at a time, with the law kept.
//!
//! Every function here awaits nothing but [`crate::fs`], so that a caller may run it as one job. What a request
//! may contain has been checked by the types; what the disk holds is checked here.

mod hashes;
mod kept;
mod listing;
pub mod names;
mod partial;
mod publish;
mod recall;
mod rename;
mod repair;
mod scratch;
mod settle;
mod small;
mod source;
mod sweep;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::io::Errno;

pub use self::{
    listing::Walk,
    partial::Partial,
    publish::{Ours, parents},
    settle::Confirm,
    small::Prepared,
    source::{Source, SourceFile},
};
use crate::{
    fs::{BootId, Dir, File, Fs, Lock, Metadata},
    limits::Limits,
    model::{Entry, Kind, Name, RelPath, Timestamp, Version},
    plan,
    planted::{Bug, planted},
    service::{Answer, Claim, Meta, Role, RunId, ServiceError, Swept},
};

/// A root. Cheap to clone; clones are the same one.
pub struct Store<F: Fs> {
    inner: Arc<Inner<F>>,
    /// Of a batch alone: the directory that was walked to last.
    last_dir: Option<Arc<Mutex<Option<LastDir<F>>>>>,
}

/// A directory that several files of a batch are in.
struct LastDir<F: Fs> {
    path: RelPath,
    dir: F::Dir,
    /// Whether it is known to tell names apart that differ in the case of letters.
    tells_case: bool,
}

impl<F: Fs> Clone for Store<F> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            last_dir: self.last_dir.clone(),
        }
    }
}

struct Inner<F: Fs> {
    root: F::Dir,
    limits: Limits,
    accept_unsynced: bool,
    boot: BootId,
    failed_sync: FailedSync,
    /// Directories whose own names are durable, with device and inode.
    synced: Mutex<BTreeMap<RelPath, (u64, u64)>>,
    /// Until when names in a directory are durable, by its device and inode: the ctime it had before it was synced.
    names_synced: Mutex<BTreeMap<(u64, u64), Timestamp>>,
    /// Files that had a partial as a second name, by device and inode: what they were before this process removed it, and since.
    untwinned: Mutex<BTreeMap<(u64, u64), [Version; 2]>>,
    /// Whether a name of the root is found under another case too; told by the token of a claim.
    ignores_case: AtomicBool,
    /// Owner of the files that this process makes there; told by the token of a claim.
    owner: OnceLock<u32>,
    /// Partials that nobody writes to for now. Those of the roots below too: one file may be reached from several.
    keeping: Arc<kept::Keeping<F>>,
    /// Hashes of sources, those of the roots below too.
    recall: Arc<recall::Recall<F>>,
}

/// The first sync of a root that has failed, set once and for all. Clones are the same.
#[derive(Clone, Default)]
pub struct FailedSync(Arc<OnceLock<String>>);

impl FailedSync {
    /// Whether somebody else has it too, or there is one.
    pub fn is_shared_or_set(&self) -> bool {
        Arc::strong_count(&self.0) > 1 || self.0.get().is_some()
    }
}

/// A claimed root: the lock goes when this is dropped, the token by [`Claimed::release`].
pub struct Claimed<F: Fs> {
    /// What the run is told.
    pub claim: Claim,
    /// A handle of its own, with the lock.
    root: F::Dir,
    /// The token, locked for as long as the run lives: an unlocked one is a dead run's.
    _token: Option<F::File>,
}

impl<F: Fs> Claimed<F> {
    /// Removes the token. One that stays is taken for a dead run's.
    pub async fn release(&self) -> Answer<()> {
        match &self.claim.token {
            Some(token) => ignore_missing(self.root.unlink(token).await).map_err(|e| ServiceError::io("remove", &e)),
            None => Ok(()),
        }
    }
}

impl<F: Fs> Store<F> {
    /// The store of the directory `root`. With `accept_unsynced` a file system that can't sync
    /// directories is taken as it is. `boot` is the run of the kernel. `failed_sync` is what is known of the root.
    pub fn new(root: F::Dir, limits: Limits, accept_unsynced: bool, boot: BootId, failed_sync: FailedSync) -> Self {
        let synced = Mutex::default();
        let recall = Arc::new(recall::Recall::new(limits.hashes_remembered));
        Self {
            inner: Arc::new(Inner {
                root,
                limits,
                accept_unsynced,
                boot,
                failed_sync,
                synced,
                names_synced: Mutex::default(),
                untwinned: Mutex::default(),
                ignores_case: AtomicBool::new(false),
                owner: OnceLock::new(),
                keeping: Arc::default(),
                recall,
            }),
            last_dir: None,
        }
    }

    /// Remembers hashes of sources in `dir` too, for later processes of the same run of the kernel. `PermissionDenied` where anybody but its `owner`, the
    /// user of this process, may write to it.
    pub async fn remember_in(&self, dir: F::Dir, owner: u32) -> io::Result<()> {
        self.inner.recall.remember_in(dir, owner).await
    }

    /// Fails with `Replaced` when `there` is not this root, or this one is gone with its mount.
    pub async fn prove_same_root(&self, there: &F::Dir) -> Answer<()> {
        let (mine, theirs) = (self.inner.root.metadata().await, there.metadata().await);
        let is_gone = |error| is_any(error, &[Errno::STALE, Errno::NOTCONN, Errno::NODEV, Errno::NXIO]);
        if mine.as_ref().is_err_and(is_gone) {
            return Err(ServiceError::Replaced);
        }
        let version =
            |metadata: io::Result<Metadata>| metadata.map(|it| it.version).map_err(|e| ServiceError::io("stat", &e));
        match version(mine)?.is_same_inode(&version(theirs)?) {
            true => Ok(()),
            false => Err(ServiceError::Replaced),
        }
    }

    /// The store of the directory at `path` below this one, as a root of its own; with `make` its last component is made when it
    /// is missing, and its name is durable.
    pub async fn below(&self, path: &RelPath, make: bool) -> Answer<Self> {
        if make {
            match self.open_dir(path).await {
                Err(ServiceError::NotFound) => {
                    let (mode, mtime) = (0o755, Timestamp { secs: 0, nanos: 0 });
                    self.make_dir(path, Meta { mode, mtime }).await?;
                }
                found => drop(found?),
            }
            self.make_dir_durable(path.clone()).await?;
        }
        let store = Self::new(
            self.open_dir(path).await?,
            self.inner.limits.clone(),
            self.inner.accept_unsynced,
            self.inner.boot,
            self.inner.failed_sync.clone(),
        );
        let Ok(mut inner) = Arc::try_unwrap(store.inner) else {
            return Err(ServiceError::Internal);
        };
        inner.keeping = self.inner.keeping.clone();
        inner.recall = self.inner.recall.clone();
        Ok(Self {
            inner: Arc::new(inner),
            last_dir: None,
        })
    }

    /// Claims the root for `run`; `Unsafe` for a target where a sync has failed.
    pub async fn claim(&self, role: Role, run: RunId) -> Answer<Claimed<F>> {
        if role == Role::Target {
            self.ensure_safe()?;
        }
        // A handle of its own: the lock ends with it.
        let lock_dir = self.inner.root.open_dir(&RelPath::root()).await;
        let lock_dir = lock_dir.map_err(|e| ServiceError::io("open the directory", &e))?;
        let lock = match role {
            Role::Source => Some(Lock::Exclusive),
            Role::SourceOfFiles => Some(Lock::Shared),
            Role::Target | Role::Looked => None,
        };
        if let Some(lock) = lock
            && let Err(error) = lock_dir.try_lock(lock).await
        {
            if is_any(&error, &[Errno::AGAIN]) {
                let holder = lock_dir.lock_holder().await;
                return Err(ServiceError::Busy(holder.unwrap_or_else(|| "another process".into())));
            }
            // NFS locks no directory. The law does not need the lock: it only spares two runs from each other.
            if !is_any(&error, &[Errno::BADF, Errno::NOLCK, Errno::OPNOTSUPP, Errno::INVAL]) {
                return Err(ServiceError::io("lock the directory", &error));
            }
        }
        if role == Role::Target {
            self.sync_one(&self.inner.root)
                .await
                .map_err(|error| match error.errno() {
                    Some(errno) if errno == Errno::INVAL.raw_os_error() => ServiceError::BadRequest(
                        "this file system cannot make names durable, so no source could be deleted safely; \
                     --accept-unsynced moves all the same"
                            .into(),
                    ),
                    _ => error,
                })?;
        }
        let (token, token_file) = match role {
            Role::Looked => (None, None),
            Role::Source | Role::SourceOfFiles | Role::Target => {
                self.remove_dead_tokens(run).await?;
                self.make_token(names::token(run, role != Role::Target)).await?
            }
        };
        let version = self
            .inner
            .root
            .metadata()
            .await
            .map_err(|e| ServiceError::io("stat", &e))?
            .version;
        // Where it can't be told (no /proc, a chroot), tokens and device and inode remain.
        let places = self.inner.root.places().await.unwrap_or_default();
        Ok(Claimed {
            claim: Claim {
                token,
                places,
                version,
                swept: Swept::default(),
            },
            root: lock_dir,
            _token: token_file,
        })
    }

    /// Which entry is at `path`, if any. With `restore`, a source that a crash left set aside gets its name
    /// back first.
    pub async fn stat(&self, path: &RelPath, restore: bool) -> Answer<Option<Entry>> {
        let Some((parent, name)) = path.split() else {
            return Err(ServiceError::BadRequest("the root has no entry".into()));
        };
        let dir = match self.walk_to(parent.clone()).await {
            Err(ServiceError::NotFound) => return Ok(None),
            walked => walked?,
        };
        if restore {
            // Usually there is none; and what does not go back is found by the next listing.
            self.restore(&dir, &name).await.ok();
        }
        match dir.stat(&name).await {
            Ok(metadata) => {
                if self.with_last_dir(&parent, |last| last.tells_case) != Some(true)
                    && self.prove_spelling(&dir, &name, &metadata).await? == Case::Told
                {
                    // Of all names only if this one was there all the while: else the other spelling was looked for in vain.
                    let again = dir.stat(&name).await;
                    let was_there = again.is_ok_and(|again| again.version.is_same_inode(&metadata.version));
                    self.with_last_dir(&parent, |last| last.tells_case = was_there);
                }
                Ok(Some(entry(path.clone(), &dir, &name, metadata).await))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ServiceError::io("stat", &error)),
        }
    }

    /// Makes the directory at `path`, with what its owner needs added to its mode for the time of the move; one that is
    /// there already is fine.
    pub async fn make_dir(&self, path: &RelPath, meta: Meta) -> Answer<()> {
        let (dir, name) = self.parent_of(path).await?;
        match dir.mkdir(&name).await {
            Ok(()) => {
                self.forget_synced(path);
                let made = self.open_dir(path).await?;
                let now = made.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
                // A set-group-ID bit that the directory above passed on belongs to the target.
                let mode = for_the_move(meta.mode) | (now.mode & SET_ID);
                if mode == now.mode {
                    return Ok(());
                }
                made.set_meta(mode, now.version.mtime)
                    .await
                    .map_err(|e| ServiceError::io("set the mode of the new directory", &e))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match dir.stat(&name).await {
                Ok(metadata) if metadata.kind == Kind::Dir => {
                    self.prove_spelling(&dir, &name, &metadata).await.map(drop)
                }
                _ => Err(ServiceError::Changed),
            },
            Err(error) => Err(ServiceError::io("make the directory", &error)),
        }
    }

    /// Gives the directory at `path` its mode and mtime and makes it durable.
    pub async fn finish_dir(&self, path: &RelPath, meta: Meta, is_complete: bool) -> Answer<()> {
        if path.is_root() {
            return Err(ServiceError::BadRequest("the root itself was named".into()));
        }
        let dir = self.open_dir(path).await?;
        let now = dir.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
        // One that `make_dir` made, in this run or an earlier one; the mode of any other is the target's own affair.
        let is_ours = for_the_move(now.mode) == for_the_move(meta.mode);
        let wanted = if is_complete {
            meta.mode & plan::DIR_MODE
        } else {
            for_the_move(meta.mode)
        };
        let mode = if is_ours {
            wanted | (now.mode & SET_ID)
        } else {
            now.mode
        };
        if (now.mode, now.version.mtime) != (mode, meta.mtime) {
            match dir.set_meta(mode, meta.mtime).await {
                // It belongs to somebody else, who let us put files into it.
                Err(error) if is_any(&error, &[Errno::PERM]) => {}
                set => set.map_err(|e| ServiceError::io("set mode and times", &e))?,
            }
        }
        drop(dir);
        self.make_names_durable(path.clone()).await
    }

    /// Removes the empty directory at `path`; one that is gone is fine.
    pub async fn remove_dir(&self, path: &RelPath) -> Answer<()> {
        let (dir, name) = match self.parent_of(path).await {
            Err(ServiceError::NotFound) => return Ok(()),
            found => found?,
        };
        ignore_missing(dir.rmdir(&name).await).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => ServiceError::NotEmpty,
            _ => ServiceError::io("remove the directory", &error),
        })
    }

    /// Makes the names in the directory at `path` durable, and the directory itself up to the root.
    pub async fn make_names_durable(&self, path: RelPath) -> Answer<()> {
        if planted(Bug::NoDirectorySync) {
            return Ok(());
        }
        self.make_durable_up_to_root(path).await?;
        self.ensure_safe()
    }

    /// Makes sure that the directory at `path` is durable itself, whatever is in it: what is renamed into one that a
    /// crash takes away would be gone from both ends.
    pub async fn make_dir_durable(&self, path: RelPath) -> Answer<()> {
        let dir = self.open_dir(&path).await?;
        let version = dir.metadata().await.map_err(|e| ServiceError::io("stat", &e))?.version;
        if self.synced().get(&path) != Some(&(version.dev, version.ino)) {
            self.make_durable_up_to_root(path).await?;
        }
        self.ensure_safe()
    }

    async fn make_durable_up_to_root(&self, path: RelPath) -> Answer<()> {
        let mut proven = Vec::new();
        let mut next = Some(path);
        while let Some(path) = next {
            let dir = self.open_dir(&path).await?;
            let version = dir.metadata().await.map_err(|e| ServiceError::io("stat", &e))?.version;
            self.sync_one(&dir).await?;
            let inode = (version.dev, version.ino);
            let known = self.synced().get(&path) == Some(&inode);
            next = if known || planted(Bug::AncestorUnsynced) {
                None
            } else {
                path.parent()
            };
            proven.push((path, inode));
        }
        let mut synced = self.synced();
        if synced.len() + proven.len() > self.inner.limits.synced_dirs {
            synced.clear();
        }
        synced.extend(proven);
        Ok(())
    }

    async fn sync_one(&self, dir: &F::Dir) -> Answer<()> {
        match self.sync_or_mark(dir).await {
            Err(error) if is_any(&error, &[Errno::INVAL]) && self.inner.accept_unsynced => Ok(()),
            synced => synced.map_err(|e| ServiceError::io(SYNC_DIR, &e)),
        }
    }

    /// Makes the name of `file`, which is in `dir`, durable, if it may not be: to give a file a name changes its ctime.
    async fn make_name_durable(&self, dir: &F::Dir, file: &Version) -> Answer<()> {
        let version = dir.metadata().await.map_err(|e| ServiceError::io("stat", &e))?.version;
        let inode = (version.dev, version.ino);
        let lock = || self.inner.names_synced.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().get(&inode).is_some_and(|until| file.ctime < *until) {
            return Ok(());
        }
        self.sync_one(dir).await?;
        let mut synced = lock();
        if synced.len() >= self.inner.limits.synced_dirs {
            synced.clear();
        }
        synced.insert(inode, version.ctime);
        Ok(())
    }

    /// As [`sync_one`](Self::sync_one), where that can be had. `EIO` where one has failed, in this process or an earlier one: it is not tried
    /// again.
    async fn sync_names(&self, dir: &F::Dir) -> io::Result<()> {
        if self.ensure_safe().is_err() || dir.stat(&names::unsynced(&self.inner.boot)).await.is_ok() {
            return Err(Errno::IO.into());
        }
        match self.sync_or_mark(dir).await {
            Err(error) if is_any(&error, &[Errno::INVAL]) => Ok(()),
            synced => synced,
        }
    }

    /// `EINVAL` where the file system can't; any other failure marks the root and the directory.
    async fn sync_or_mark(&self, dir: &F::Dir) -> io::Result<()> {
        match dir.sync().await {
            Err(error) if !is_any(&error, &[Errno::INVAL]) => {
                // Before anything is awaited: others may be about to confirm what is in it.
                let _told_by_caller = self.sync_failed(SYNC_DIR, &error);
                // Names in it may be missing on the disk without a word to a later process that syncs it again: so that is told until
                // the kernel starts anew. What can't be marked is most likely not written to any more.
                self.mark_unsynced(dir).await;
                Err(error)
            }
            synced => synced,
        }
    }

    /// Tells later processes that a sync of `dir` has failed.
    async fn mark_unsynced(&self, dir: &F::Dir) {
        const TRIES: usize = 3;
        if planted(Bug::FailedSyncUntold) {
            return;
        }
        for _ in 0..TRIES {
            match dir.create(&names::unsynced(&self.inner.boot)).await {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {}
                _ => return,
            }
        }
    }

    /// Forgets that the directory at `path` and those below were durable: it is another one now.
    fn forget_synced(&self, path: &RelPath) {
        let mut synced = self.synced();
        // Paths sort so that what is below one follows it.
        let below: Vec<_> = synced
            .range(path..)
            .map(|(known, _)| known)
            .take_while(|known| known.is_within(path))
            .cloned()
            .collect();
        for known in below {
            synced.remove(&known);
        }
    }

    /// Marks the root: a sync failed, and what it was to cover may be lost without a further word.
    fn sync_failed(&self, doing: &str, error: &io::Error) -> ServiceError {
        if planted(Bug::FailedSyncForgotten) {
            return ServiceError::io(doing, error);
        }
        // Only the first failure is kept; later ones say nothing more.
        let _first = self.inner.failed_sync.0.get_or_init(|| {
            tracing::error!("a sync failed ({error}): nothing more is confirmed there until realized is started anew");
            format!("{error}; check the disk, and restart realized if that is on another host")
        });
        ServiceError::io(doing, error)
    }

    /// Fails once any sync has failed.
    fn ensure_safe(&self) -> Answer<()> {
        match self.inner.failed_sync.0.get() {
            None => Ok(()),
            Some(error) => Err(ServiceError::Unsafe(error.clone())),
        }
    }

    /// Removes `part`, open as `file` and `found` so, which is no partial of use. When it is a second name of a file, that is changed by it.
    async fn remove_twin(&self, dir: &F::Dir, part: &Name, file: &F::File, found: &Metadata) -> io::Result<()> {
        self.let_go(&found.version);
        /// Few have any.
        const TWINS_MAX: usize = 1000;
        ignore_missing(dir.unlink(part).await)?;
        let since = file.metadata().await?;
        // Whatever else has changed is somebody's doing.
        if since.links + 1 == found.links && since.version.same_but_ctime(&found.version) {
            let since = since.version;
            let mut untwinned = self.inner.untwinned.lock().unwrap_or_else(PoisonError::into_inner);
            if untwinned.len() >= TWINS_MAX {
                untwinned.clear();
            }
            untwinned.insert((since.dev, since.ino), [found.version, since]);
        }
        Ok(())
    }

    /// Whether `found` is what was `known`, but for a second name that this process has removed.
    fn is_untwinned(&self, known: &Version, found: &Version) -> bool {
        let untwinned = self.inner.untwinned.lock().unwrap_or_else(PoisonError::into_inner);
        untwinned.get(&(known.dev, known.ino)) == Some(&[*known, *found])
    }

    fn synced(&self) -> std::sync::MutexGuard<'_, BTreeMap<RelPath, (u64, u64)>> {
        // Nothing panics while it is held.
        self.inner.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails when `found` is called something else than `name` there: a file system that ignores case finds one file under
    /// many spellings, and to replace it would lose the other name's file. Told by asking for a third spelling; for
    /// names without ASCII letters by the directory's names, where the root ignores case at all.
    async fn prove_spelling(&self, dir: &F::Dir, name: &Name, found: &Metadata) -> Answer<Case> {
        match flipped(name) {
            Some(flipped) => match dir.stat(&flipped).await {
                Ok(other) if other.version.is_same_inode(&found.version) => {}
                Ok(_) => return Ok(Case::Told),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Case::Told),
                Err(_) => return Ok(Case::Unknown),
            },
            None if !self.inner.ignores_case.load(Ordering::Relaxed) => return Ok(Case::Unknown),
            None => {}
        }
        // The directory ignores case, or somebody made a link of that very name.
        let names = dir
            .names()
            .await
            .map_err(|e| ServiceError::io("read the directory", &e))?;
        if names.contains(name) {
            Ok(Case::Unknown)
        } else {
            Err(ServiceError::OtherSpelling)
        }
    }

    async fn open_dir(&self, path: &RelPath) -> Answer<F::Dir> {
        self.inner
            .root
            .open_dir(path)
            .await
            .map_err(|error| ServiceError::io("open the directory", &error))
    }

    async fn parent_of(&self, path: &RelPath) -> Answer<(F::Dir, Name)> {
        let Some((parent, name)) = path.split() else {
            return Err(ServiceError::BadRequest("the root itself was named".into()));
        };
        if path
            .names()
            .any(|name| names::classify(&name) != names::NameKind::Plain)
        {
            return Err(ServiceError::BadRequest("a name that realize keeps for itself".into()));
        }
        Ok((self.walk_to(parent).await?, name))
    }

    /// The directory at `path`; within a batch as it was when the batch came to it.
    async fn walk_to(&self, path: RelPath) -> Answer<F::Dir> {
        if let Some(dir) = self.with_last_dir(&path, |last| last.dir.clone()) {
            return Ok(dir);
        }
        let dir = self.open_dir(&path).await?;
        if let Some(last_dir) = &self.last_dir {
            // Nothing panics while it is held.
            *last_dir.lock().unwrap_or_else(PoisonError::into_inner) = Some(LastDir {
                path,
                dir: dir.clone(),
                tells_case: false,
            });
        }
        Ok(dir)
    }

    /// What `tell` gives of the directory that was walked to last, if that is the one at `path`.
    fn with_last_dir<R>(&self, path: &RelPath, tell: impl FnOnce(&mut LastDir<F>) -> R) -> Option<R> {
        let mut last = self.last_dir.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_mut().filter(|last| last.path == *path).map(tell)
    }

    /// The same store for one step of a batch, which walks once to each directory it comes to.
    pub fn for_batch(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            last_dir: Some(Arc::default()),
        }
    }

    async fn make_token(&self, token: Name) -> Answer<(Option<Name>, Option<F::File>)> {
        const TRIES: usize = 8;
        let root = &self.inner.root;
        for _ in 0..TRIES {
            let file = match root.create(&token).await {
                Ok(file) => file,
                // A root that can't be written to, as a source that is only copied may be. What can't be marked is told
                // by device and inode.
                Err(error) if is_any(&error, &[Errno::ACCESS, Errno::PERM, Errno::ROFS]) => return Ok((None, None)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // Made by an earlier life of this program, as whom it makes everything.
                    if let Ok(made) = root.stat(&token).await {
                        self.inner.owner.get_or_init(|| made.uid);
                    }
                    return Ok((Some(token), None));
                }
                Err(error) => return Err(ServiceError::io("mark the directory", &error)),
            };
            // A run that begins just now may take it for a dead one before it is locked.
            let locked = file.try_lock(Lock::Exclusive).await.is_ok();
            let made = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
            let version = made.version;
            let is_there = root
                .stat(&token)
                .await
                .is_ok_and(|found| found.version.is_same_inode(&version));
            if locked && is_there {
                self.inner.owner.get_or_init(|| made.uid);
                if let Some(flipped) = flipped(&token) {
                    let other = root.stat(&flipped).await;
                    let is_one = other.is_ok_and(|other| other.version.is_same_inode(&version));
                    self.inner.ignores_case.store(is_one, Ordering::Relaxed);
                }
                return Ok((Some(token), Some(file)));
            }
            ignore_missing(root.unlink(&token).await).map_err(|e| ServiceError::io("mark the directory", &e))?;
        }
        Err(ServiceError::Busy(
            "other runs begin there at the same time; try again".into(),
        ))
    }

    /// Tokens of runs that were killed: nobody holds their locks. One of this very run is its other end, seen through a mount
    /// that shares no locks.
    async fn remove_dead_tokens(&self, run: RunId) -> Answer<()> {
        use crate::fs::File;
        let root = &self.inner.root;
        let names = root
            .names_beginning(b'.')
            .await
            .map_err(|e| ServiceError::io("read the directory", &e))?;
        for name in names
            .into_iter()
            .filter(|name| names::classify(name) == names::NameKind::Token)
            .filter(|name| [true, false].iter().all(|end| *name != names::token(run, *end)))
        {
            let Ok(file) = root.open(&name).await else { continue };
            // Ours are empty; whatever else has such a name is somebody's.
            let is_empty = file.metadata().await.is_ok_and(|metadata| metadata.version.size == 0);
            if is_empty && file.try_lock(Lock::Exclusive).await.is_ok() {
                // It only marks; the next run tries again.
                root.unlink(&name).await.ok();
            }
        }
        Ok(())
    }
}

/// What a look at one name has told of all names of its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    /// Names that differ in the case of letters are different names there.
    Told,
    /// Nothing.
    Unknown,
}

/// What is being done, in an error.
const SYNC_DIR: &str = "sync the directory";

/// The bits of a mode that stay as the target's directory has them.
const SET_ID: u32 = 0o6000;

/// What a directory is given of its mode, with what its owner needs to put files into it.
fn for_the_move(mode: u32) -> u32 {
    (mode & plan::DIR_MODE) | 0o700
}

async fn entry<D: Dir>(path: RelPath, dir: &D, name: &Name, metadata: Metadata) -> Entry {
    let Metadata {
        kind,
        version,
        mode,
        mut links,
        uid,
        gid,
    } = metadata;
    // Where a file is mounted over a name, its inode's other names may be the very one on the other side: so it is told
    // like a file of one name, which is never taken for a second name of itself.
    if links > 1 && kind == Kind::File && dir.is_mount_point(name).await.unwrap_or(true) {
        links = 1;
    }
    Entry {
        path,
        kind,
        version,
        mode,
        links,
        uid,
        gid,
    }
}

/// `name` with its ASCII letters in the other case; `None` where it has none.
fn flipped(name: &Name) -> Option<Name> {
    let flip = |byte: &u8| {
        if byte.is_ascii_lowercase() {
            byte.to_ascii_uppercase()
        } else {
            byte.to_ascii_lowercase()
        }
    };
    let flipped: Vec<u8> = name.as_bytes().iter().map(flip).collect();
    Name::new(flipped).ok().filter(|flipped| flipped != name)
}

fn is_any(error: &io::Error, errnos: &[Errno]) -> bool {
    errnos
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether the file system does not know the flag of a rename, or the call.
fn is_unsupported(error: &io::Error) -> bool {
    is_any(error, &[Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP])
}

/// Whether it is the file system, not the file, that has no leases for this process.
fn has_no_leases(error: &io::Error) -> bool {
    is_any(
        error,
        &[
            Errno::ACCESS,
            Errno::PERM,
            Errno::INVAL,
            Errno::OPNOTSUPP,
            Errno::NOSYS,
            Errno::NOLCK,
        ],
    )
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
