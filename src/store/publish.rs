//! From a partial to a final name in one step, if what is there is what is expected.

use std::{collections::BTreeSet, io};

use bytes::Bytes;

use rustix::io::Errno;

use super::{
    Store, has_no_leases, ignore_missing, is_any, is_unsupported, names,
    partial::somebody_else,
    source::{Care, being_written, locked_elsewhere},
};
use crate::{
    fs::{Dir, File, Fs, Lock, Metadata, Rename},
    model::{Kind, Name, RelPath, Version},
    planted::{Bug, planted},
    service::{Answer, Expected, Meta, ServiceError},
};

/// What tells something that this process wrote from anything else under the same name.
pub enum Ours {
    /// A file: its inode.
    Inode(Version),
    /// A file as it was read: its inode, with nothing changed.
    Unchanged(Version),
    /// A file as it was once all of it was written: its inode, with nothing changed but by its new name.
    Written(Version),
    /// A link: its text. (Nobody can hold a link open or lock it.)
    Link(Bytes),
}

impl Ours {
    /// The same, whatever was done to it since.
    pub(super) fn by_inode(&self) -> Self {
        match self {
            Self::Inode(version) | Self::Unchanged(version) | Self::Written(version) => Self::Inode(*version),
            Self::Link(text) => Self::Link(text.clone()),
        }
    }
}

/// A final that is to be replaced: durable, as is its name.
pub(super) struct Older<F: Fs> {
    version: Version,
    found: Metadata,
    /// Where it can be opened, under a shared lock: who looks through the directory meanwhile leaves it alone, and who reads it is in nobody's way.
    file: Option<F::File>,
    /// Under a lease, where that can be had: who is writing to it would lose it without a word.
    is_leased: bool,
}

impl<F: Fs> Store<F> {
    /// Gives `part`, which must be `ours`, its final name, if what is there is what is expected.
    pub(super) async fn publish(
        &self,
        dir: &F::Dir,
        part: &Name,
        name: &Name,
        expected: Expected,
        ours: &Ours,
    ) -> Answer<()> {
        let older = self.older(dir, name, expected).await?;
        self.publish_over(dir, part, name, older, ours).await
    }

    /// What has to be done, and may take its time, before what is `expected` under `name` is replaced.
    pub(super) async fn older(&self, dir: &F::Dir, name: &Name, expected: Expected) -> Answer<Option<Older<F>>> {
        let Expected::Version(version) = expected else {
            return Ok(None);
        };
        let found = self.ensure_final_is(dir, name, &version).await?;
        // Were its name lost by a crash, what should have replaced it would be beside nothing, and nobody could tell whose that is.
        self.make_name_durable(dir, &found.version).await?;
        self.let_go(&found.version);
        let file = match dir.open(name).await {
            Ok(file) => Some(file),
            Err(error) if is_any(&error, &[Errno::AGAIN]) => return Err(being_written()),
            // A link, or one that may not be read.
            Err(error) if is_any(&error, &[Errno::LOOP, Errno::ACCESS, Errno::PERM]) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ServiceError::Changed),
            Err(error) => return Err(ServiceError::io("open", &error)),
        };
        let mut is_leased = false;
        if let Some(file) = &file {
            lock(file, Lock::Shared).await?;
            is_leased = lease(file).await?;
            // After a crash the old one is known by its version, so that must be on the disk.
            file.sync().await.map_err(|e| self.sync_failed("sync", &e))?;
        }
        Ok(Some(Older {
            version,
            found,
            file,
            is_leased,
        }))
    }

    /// As [`publish`](Self::publish), in the place of `older`, or of nothing: a few calls that wait for no disk.
    pub(super) async fn publish_over(
        &self,
        dir: &F::Dir,
        part: &Name,
        name: &Name,
        older: Option<Older<F>>,
        ours: &Ours,
    ) -> Answer<()> {
        // Looked at before and never after: what is under the final name once it was ours is whoever's put it there.
        if !is_ours(dir, part, ours).await? {
            return Err(somebody_else());
        }
        match older {
            None if planted(Bug::OverwriteAppeared) => dir
                .rename(part, dir, name, Rename::Replace)
                .await
                .map_err(|e| ServiceError::io("rename", &e)),
            None => self
                .move_unless_there(dir, part, dir, name, Care::Ours)
                .await
                .map_err(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => ServiceError::Changed,
                    _ => ServiceError::io("rename", &error),
                }),
            Some(older) => self.replace(dir, part, name, older, ours).await,
        }
    }

    /// Makes the name of `path` durable and proves that it is still that of `ours`.
    pub(super) async fn confirm_there(&self, path: &RelPath, ours: &Ours) -> Answer<()> {
        self.make_names_durable(path.parent().unwrap_or_default()).await?;
        self.prove_there(path, ours).await
    }

    /// Proves that who looks for `path` now finds `ours`: its directory may have been moved away meanwhile.
    pub async fn prove_there(&self, path: &RelPath, ours: &Ours) -> Answer<()> {
        let (dir, name) = self.parent_of(path).await?;
        if is_ours(&dir, &name, ours).await? {
            Ok(())
        } else {
            Err(ServiceError::Changed)
        }
    }

    /// Puts `part` in the place of `older`, by way of a name that tells a crash what was going on.
    async fn replace(&self, dir: &F::Dir, part: &Name, name: &Name, older: Older<F>, ours: &Ours) -> Answer<()> {
        let Older {
            version,
            found,
            file,
            is_leased,
        } = older;
        let leased = file.as_ref().filter(|_| is_leased);
        let swap = names::swap(name, &tag(dir, name, &found).await?);
        self.move_unless_there(dir, part, dir, &swap, Care::Ours)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => ServiceError::Leftover(swap.clone()),
                _ => ServiceError::io("rename", &error),
            })?;
        let back_to_partial = async {
            // An exchange that was said to have failed may have been made.
            match is_ours(dir, &swap, &ours.by_inode()).await {
                Ok(true) => {}
                Ok(false) => return Err(self.swapped_out(dir, &swap, name).await),
                // The next run looks whether it is the older one or ours.
                Err(_) => return Err(ServiceError::Leftover(swap.clone())),
            }
            self.move_unless_there(dir, &swap, dir, part, Care::Ours)
                .await
                .map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => somebody_else(),
                    _ => ServiceError::Leftover(swap.clone()),
                })
        };
        if !is_ours(dir, &swap, ours).await? {
            back_to_partial.await?;
            return Err(somebody_else());
        }
        match dir.rename(&swap, dir, name, Rename::Exchange).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                back_to_partial.await?;
                return Err(ServiceError::Changed);
            }
            Err(error) if is_unsupported(&error) => {
                // Who writes a new file between the look and the rename loses it: documented for such file systems.
                let may_go = match is_still_leased(leased).await {
                    Ok(true) => self.ensure_final_is(dir, name, &version).await.map(drop),
                    Ok(false) => Err(being_written()),
                    Err(error) => Err(error),
                };
                if let Err(error) = may_go {
                    back_to_partial.await?;
                    return Err(error);
                }
                if !is_leased {
                    // A network file system may first give what is open another name, or refuse.
                    drop(file);
                }
                let replaced = dir.rename(&swap, dir, name, Rename::Replace).await;
                return replaced.map_err(|e| ServiceError::io("rename", &e));
            }
            Err(error) => {
                back_to_partial.await?;
                return Err(ServiceError::io("rename", &error));
            }
        }
        let looked = self.was_right(dir, &swap, name, &version, leased, ours).await;
        if looked == Ok(true) {
            return ignore_missing(dir.unlink(&swap).await).map_err(|e| ServiceError::io("remove the old", &e));
        }
        // Somebody put another there in between, or is writing to it, or to ours, or may be: it gets its name back, unless somebody has put another there
        // since. (If that is done only now it is swapped out: which of theirs is the newer only they know, and both stay.)
        if is_ours(dir, name, &ours.by_inode()).await == Ok(false) {
            return Err(self.swapped_out(dir, &swap, name).await);
        }
        let exchanged = dir.rename(&swap, dir, name, Rename::Exchange).await;
        let is_back = is_ours(dir, &swap, &ours.by_inode()).await;
        if exchanged.is_err() && is_back != Ok(true) {
            return Err(self.swapped_out(dir, &swap, name).await);
        }
        // A crash could leave the first exchange alone: until the second is durable, ours is neither written to nor removed.
        match (self.sync_one(dir).await, is_back) {
            (Err(error), Ok(true) | Err(_)) => return Err(error),
            _ => back_to_partial.await?,
        }
        looked.and(Err(ServiceError::Changed))
    }

    /// What is under the name `swap` may be somebody's: it gets a name by which no run takes it for its own, and which is told.
    async fn swapped_out(&self, dir: &F::Dir, swap: &Name, name: &Name) -> ServiceError {
        const NAMES: u8 = 16;
        for nth in 0..NAMES {
            let told = names::swapped_out(name, nth);
            match self.move_unless_there(dir, swap, dir, &told, Care::Somebodys).await {
                Ok(()) => {
                    // What is told is true after a crash too. (Where that fails nothing more is confirmed, nor synced.)
                    if self.ensure_safe().is_ok() {
                        self.sync_one(dir).await.ok();
                    }
                    return ServiceError::Leftover(told);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // Removed, or another run that looks through the directory has it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return somebody_else(),
                Err(_) => break,
            }
        }
        ServiceError::Leftover(swap.clone())
    }

    /// Whether what is out of the way under the name `swap` is the final `version`, which nobody is writing to, and nobody has written to `ours` until
    /// it had its `name`.
    async fn was_right(
        &self,
        dir: &F::Dir,
        swap: &Name,
        name: &Name,
        version: &Version,
        leased: Option<&F::File>,
        ours: &Ours,
    ) -> Answer<bool> {
        match dir.stat(swap).await {
            Ok(out) if out.version.same_but_ctime(version) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(ServiceError::io("stat", &error)),
        }
        if let Ours::Written(written) = ours {
            match dir.stat(name).await {
                Ok(now) if !now.version.is_same_inode(written) || now.version.same_but_ctime(written) => {}
                Ok(_) => return Ok(false),
                // Another that is there by now, or nothing, is whoever's put it there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(ServiceError::io("stat", &error)),
            }
        }
        is_still_leased(leased).await
    }

    async fn ensure_final_is(&self, dir: &F::Dir, name: &Name, version: &Version) -> Answer<Metadata> {
        match dir.stat(name).await {
            Ok(found) if found.version == *version || self.is_untwinned(version, &found.version) => Ok(found),
            // A link's text can't change; its ctime does when the second name that a crash left it goes.
            Ok(found) if found.kind == Kind::Symlink && found.version.same_but_ctime(version) => Ok(found),
            Ok(_) => Err(ServiceError::Changed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ServiceError::Changed),
            Err(error) => Err(ServiceError::io("stat", &error)),
        }
    }
}

/// Locks `file`, where there are locks; `Busy` when another run is in the way.
pub(super) async fn lock(file: &impl File, lock: Lock) -> Answer<()> {
    match file.try_lock(lock).await {
        Err(error) if is_any(&error, &[Errno::AGAIN]) => Err(locked_elsewhere()),
        // Where there are no locks, two runs in opposite directions can't see each other.
        _ => Ok(()),
    }
}

/// Takes a lease on `file`, where there are any; `Busy` when somebody has it open for writing.
pub(super) async fn lease(file: &impl File) -> Answer<bool> {
    match file.lease().await {
        Ok(()) => Ok(true),
        Err(error) if is_any(&error, &[Errno::AGAIN]) => Err(being_written()),
        Err(error) if has_no_leases(&error) => Ok(false),
        Err(error) => Err(ServiceError::io("take a lease on", &error)),
    }
}

/// Whether nobody has opened the file for writing since it was `leased`, if it was.
pub(super) async fn is_still_leased(leased: Option<&impl File>) -> Answer<bool> {
    match leased {
        Some(file) => file
            .lease_held()
            .await
            .map_err(|e| ServiceError::io("ask for the lease of", &e)),
        None => Ok(true),
    }
}

/// What tells `found`, which is under `name`, after a crash.
pub(super) async fn tag<D: Dir>(dir: &D, name: &Name, found: &Metadata) -> Answer<names::Tag> {
    if found.kind != Kind::Symlink {
        return Ok(names::version_tag(&found.version));
    }
    match dir.readlink(name).await {
        Ok(text) => Ok(names::link_tag(&found.version, &text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_any(&error, &[Errno::INVAL]) => {
            Err(ServiceError::Changed)
        }
        Err(error) => Err(ServiceError::io("read the link", &error)),
    }
}

pub(super) async fn is_ours<D: Dir>(dir: &D, name: &Name, ours: &Ours) -> Answer<bool> {
    if let Ours::Link(text) = ours {
        return is_link_to(dir, name, text).await;
    }
    match (dir.stat(name).await, ours) {
        (Ok(found), Ours::Inode(version)) => Ok(found.version.is_same_inode(version)),
        (Ok(found), Ours::Unchanged(version)) => Ok(found.version == *version),
        (Ok(found), Ours::Written(version)) => Ok(found.version.same_but_ctime(version)),
        (Ok(_), Ours::Link(_)) => Ok(false),
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        (Err(error), _) => Err(ServiceError::io("stat", &error)),
    }
}

/// Removes a partial that came to nothing: nothing would be gained by keeping it, and on a full disk it would be in the way.
/// What somebody else put under its name stays.
pub(super) async fn remove_ours<D: Dir>(dir: &D, part: &Name, ours: &Ours) {
    // What can't be removed is taken over by the next run.
    if is_ours(dir, part, ours).await == Ok(true) {
        dir.unlink(part).await.ok();
    }
}

pub(super) async fn is_link_to<D: Dir>(dir: &D, name: &Name, text: &Bytes) -> Answer<bool> {
    match dir.stat(name).await {
        Ok(found) if found.kind == Kind::Symlink => Ok(dir
            .readlink(name)
            .await
            .map_err(|e| ServiceError::io("read the link", &e))?
            == *text),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ServiceError::io("stat", &error)),
    }
}

pub(super) async fn set_meta(file: &impl File, meta: Meta) -> Answer<()> {
    file.set_meta(meta.mode & 0o777, meta.mtime)
        .await
        .map_err(|e| ServiceError::io("set mode and times", &e))
}

/// The directories that `paths` are in.
pub fn parents<'a>(paths: impl IntoIterator<Item = &'a RelPath>) -> BTreeSet<RelPath> {
    paths.into_iter().filter_map(RelPath::parent).collect()
}
