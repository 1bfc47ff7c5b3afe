//! A sorted walk below a root, page by page.

use std::io;

use rustix::io::Errno;

use super::{Store, entry, is_any, names, names::NameKind, source::Care, sweep::remove_mark};
use crate::{
    fs::{Dir, File, Fs, Lock},
    model::{Kind, Name, RelPath},
    service::{Answer, Cursor, Page, ServiceError},
};

/// Where a walk is: the sorted names of the current directory and of those above it.
pub struct Walk<F: Fs> {
    levels: Vec<Level<F>>,
    restore: bool,
    store: Store<F>,
    /// Where it stands; `None` before the first entry.
    at: Option<Cursor>,
}

struct Level<F: Fs> {
    dir: F::Dir,
    path: RelPath,
    names: Vec<Name>,
    next: usize,
}

impl<F: Fs> Walk<F> {
    /// A walk of all below `store`'s root that goes on at `from`. With `restore`, sources that a crash left set
    /// aside get their names back as their directory is met.
    pub async fn begin(store: &Store<F>, from: Option<&Cursor>, restore: bool, page: &mut Page) -> Answer<Self> {
        let mut walk = Walk {
            levels: Vec::new(),
            restore,
            store: store.clone(),
            at: from.cloned(),
        };
        let root = store.inner.root.clone();
        walk.enter(root, RelPath::root(), page)
            .await
            .map_err(|e| ServiceError::io("read the directory", &e))?;
        let Some(from) = from else { return Ok(walk) };
        let mut names = from.after.names().peekable();
        while let Some(name) = names.next() {
            let Some(level) = walk.levels.last_mut() else { break };
            level.next = level.names.partition_point(|other| *other <= name);
            let path = level.path.join(&name)?;
            if names.peek().is_none() && from.skip_below {
                break;
            }
            // What is gone or no directory any more has nothing below it: go on after it.
            let Ok(dir) = level.dir.open_dir(&name.into()).await else {
                break;
            };
            if walk.enter(dir, path, page).await.is_err() {
                break;
            }
        }
        Ok(walk)
    }

    /// Where the walk stands.
    pub fn at(&self) -> Option<&Cursor> {
        self.at.as_ref()
    }

    /// Fills `page` with up to `entries_max` entries, and not many more than `bytes_max` bytes of their paths.
    pub async fn fill(&mut self, page: &mut Page, entries_max: usize, bytes_max: usize) -> Answer<()> {
        let mut bytes = 0;
        while page.entries.len() + page.failed.len() + page.reserved.len() + page.tokens.len() < entries_max
            && bytes + bytes_of_others(page) < bytes_max
        {
            let Some(level) = self.levels.last_mut() else {
                page.next = None;
                return Ok(());
            };
            let Some(name) = level.names.get(level.next).cloned() else {
                self.levels.pop();
                continue;
            };
            level.next += 1;
            let Ok(path) = level.path.join(&name) else {
                if page.too_long.last() != Some(&level.path) {
                    page.too_long.push(level.path.clone());
                }
                continue;
            };
            bytes += path.as_bytes().len();
            self.at = Some(Cursor {
                after: path.clone(),
                skip_below: false,
            });
            match level.dir.stat(&name).await {
                Ok(metadata) => {
                    let is_dir = metadata.kind == Kind::Dir;
                    page.entries
                        .push(entry(path.clone(), &level.dir, &name, metadata).await);
                    if is_dir {
                        let dir = level.dir.clone();
                        if let Err(error) = self.descend(dir, &name, path.clone(), page).await {
                            page.failed.push((path, ServiceError::io("read the directory", &error)));
                        }
                    }
                }
                // Gone since its name was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => page.failed.push((path, ServiceError::io("stat", &error))),
            }
        }
        page.next = self.at.clone();
        Ok(())
    }

    /// Passes over what is below the directory at `path`, if the walk has just entered it.
    pub fn skip_below(&mut self, path: &RelPath) {
        self.levels
            .retain(|level| !level.path.is_within(path) || path.is_root());
        if let Some(at) = &mut self.at {
            at.skip_below = true;
        }
    }

    async fn descend(&mut self, parent: F::Dir, name: &Name, path: RelPath, page: &mut Page) -> io::Result<()> {
        let dir = parent.open_dir(&name.clone().into()).await?;
        let uncarried = dir.uncarried().await?;
        if uncarried.any() {
            page.uncarried.push((path.clone(), uncarried));
        }
        self.enter(dir, path, page).await
    }

    async fn enter(&mut self, dir: F::Dir, path: RelPath, page: &mut Page) -> io::Result<()> {
        let (mut plain, mut reserved, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        for name in dir.names().await? {
            match names::classify(&name) {
                NameKind::Plain => plain.push(name),
                NameKind::Token => tokens.push(name),
                NameKind::Gone(original) if self.restore => {
                    match self.store.give_back(&dir, &name, &dir, &original).await {
                        Ok(()) => plain.push(original),
                        Err(error) => report_leftover(&path, name, &error, page),
                    }
                }
                NameKind::GoneDir if self.restore => {
                    self.store
                        .restore_long_names(&dir, &path, &name, &mut plain, page)
                        .await?
                }
                // Of an earlier run of the kernel: it has said what it had to say.
                NameKind::Unsynced if self.restore && name != names::unsynced(&self.store.inner.boot) => {
                    remove_mark(&dir, &name).await?;
                }
                NameKind::Partial
                | NameKind::Probe
                | NameKind::Swap(_)
                | NameKind::Gone(_)
                | NameKind::GoneDir
                | NameKind::Unsynced => {
                    if let Ok(path) = path.join(&name) {
                        reserved.push(path);
                    }
                }
            }
        }
        reserved.sort_unstable();
        if tokens.len() > RESERVED_MAX {
            tokens.truncate(RESERVED_MAX);
            let text = format!("more than {RESERVED_MAX} names in it are marks of runs: remove .realize-token.* there");
            page.failed.push((path.clone(), ServiceError::BadRequest(text)));
        }
        page.tokens
            .extend(tokens.into_iter().map(|token| (path.clone(), token)));
        if reserved.len() > RESERVED_MAX {
            reserved.truncate(RESERVED_MAX);
            let text = format!("more than {RESERVED_MAX} names in it are such as realize keeps for itself");
            page.failed.push((path.clone(), ServiceError::BadRequest(text)));
        }
        page.reserved.append(&mut reserved);
        plain.sort_unstable();
        plain.dedup();
        self.levels.push(Level {
            dir,
            path,
            names: plain,
            next: 0,
        });
        Ok(())
    }
}

/// How many names of one directory are told that no move takes, and how many marks of runs: they go in one page.
const RESERVED_MAX: usize = 100;

/// Bytes of what is in a page beside its entries.
fn bytes_of_others(page: &Page) -> usize {
    let paths = page
        .reserved
        .iter()
        .chain(&page.too_long)
        .map(|path| path.as_bytes().len());
    let tokens = page
        .tokens
        .iter()
        .map(|(dir, token)| dir.as_bytes().len() + token.as_bytes().len());
    let uncarried = page.uncarried.iter().map(|(dir, _)| dir.as_bytes().len());
    paths.chain(tokens).chain(uncarried).sum()
}

impl<F: Fs> Store<F> {
    /// Gives the files in `.realize-gone` their places back and removes it.
    async fn restore_long_names(
        &self,
        dir: &F::Dir,
        path: &RelPath,
        gone: &Name,
        plain: &mut Vec<Name>,
        page: &mut Page,
    ) -> io::Result<()> {
        let Ok(gone_dir) = dir.open_dir(&gone.clone().into()).await else {
            report_leftover(path, gone.clone(), &Errno::EXIST.into(), page);
            return Ok(());
        };
        let mut is_busy = false;
        for name in gone_dir.names().await? {
            match self.give_back(&gone_dir, &name, dir, &name).await {
                Ok(()) => plain.push(name),
                Err(error) => is_busy |= is_any(&error, &[Errno::AGAIN]),
            }
        }
        if dir.rmdir(gone).await.is_err() {
            let error = if is_busy { Errno::AGAIN } else { Errno::EXIST };
            report_leftover(path, gone.clone(), &error.into(), page);
        }
        Ok(())
    }

    /// Gives `name` back what was set aside of it, if anything was.
    pub(super) async fn restore(&self, dir: &F::Dir, name: &Name) -> io::Result<()> {
        match names::gone(name) {
            Some(gone) => self.give_back(dir, &gone, dir, name).await,
            None => {
                let long = names::gone_dir();
                let gone_dir = dir.open_dir(&long.clone().into()).await?;
                self.give_back(&gone_dir, name, dir, name).await?;
                dir.rmdir(&long).await
            }
        }
    }

    /// Gives what a dead run set aside its name back. `EAGAIN` when a run is just deleting it: once that had looked at it for the
    /// last time, nothing else may get the name. (A link can't be locked.)
    async fn give_back(&self, gone_dir: &F::Dir, gone: &Name, dir: &F::Dir, name: &Name) -> io::Result<()> {
        let file = gone_dir.open(gone).await;
        if let Ok(file) = &file
            && let Err(error) = file.try_lock(Lock::Exclusive).await
            && is_any(&error, &[Errno::AGAIN])
        {
            return Err(error);
        }
        // Locked until it has its name.
        self.put_back(gone_dir, gone, dir, name).await
    }

    /// Gives what was set aside its name back. Where that took a link and an unlink, a crash may have left both names.
    pub(super) async fn put_back(&self, gone_dir: &F::Dir, gone: &Name, dir: &F::Dir, name: &Name) -> io::Result<()> {
        match self.move_unless_there(gone_dir, gone, dir, name, Care::Somebodys).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let (aside, named) = (gone_dir.stat(gone).await?, dir.stat(name).await?);
                if !aside.version.is_same_inode(&named.version) {
                    return Err(error);
                }
                self.sync_names(dir).await?;
                gone_dir.unlink(gone).await
            }
            result => result,
        }
    }
}

fn report_leftover(dir: &RelPath, name: Name, error: &io::Error, page: &mut Page) {
    if let Ok(path) = dir.join(&name) {
        let why = if is_any(error, &[Errno::AGAIN]) {
            ServiceError::Busy("another run is deleting it".into())
        } else {
            ServiceError::Leftover(name)
        };
        page.failed.push((path, why));
    }
}
