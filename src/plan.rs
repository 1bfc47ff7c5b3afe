//! What is to be done, decided from what was found. No `async`, no effects.

use std::collections::BTreeMap;

use crate::{
    fs::Place,
    model::{Entry, Kind, RelPath},
    service::{Expected, Meta},
};

/// What to do with one entry of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A directory that the target has not.
    MakeDir,
    /// A directory on both sides.
    EnterDir,
    /// A file whose content the target may have already: compare, then copy if it differs.
    Compare(Expected),
    /// A file or link to be copied.
    Copy(Expected),
    /// It stays.
    Leave(Reason),
}

/// Why an entry stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A FIFO, socket or device.
    #[error("not a file, directory or link: a FIFO, socket or device is not moved")]
    Special,
    /// The target has a directory of that name.
    #[error("the target has a directory of that name: rename or remove one of them")]
    TargetIsDir,
    /// The target has something else than a directory of that name.
    #[error("the target has something of that name that is not a directory: rename or remove one of them")]
    TargetIsNoDir,
    /// The source is a link, the target has a file: it may be the very file that the link leads to.
    #[error("the target has a file of that name and this is a link: rename or remove one of them")]
    TargetIsFile,
    /// The source is a file, the target has a link.
    #[error("the target has a link of that name and this is a file: rename or remove one of them")]
    TargetIsLink,
    /// The target has a FIFO, socket or device of that name.
    #[error("the target has a FIFO, socket or device of that name: rename or remove one of them")]
    TargetIsSpecial,
    /// It is the very file or directory that it would be moved to, under this name or another. (Were a hard link's source
    /// deleted, a run the other way could delete the other name at that moment.)
    #[error("source and target are the same, seen twice or linked; of two links remove one yourself")]
    Same,
    /// Two sources have it.
    #[error("another source has this name too: both stay; rename one of them")]
    Collision,
    /// It has what a copy would lose, and that was forbidden.
    #[error("a copy would lose {0}, and --strict forbids that")]
    WouldLose(Loss),
    /// A directory above it stays.
    #[error("its directory could not be made at the target")]
    DirFailed,
    /// Names realize keeps for itself.
    #[error("a name realize keeps for itself (a file that is arriving here, or left by an interrupted run)")]
    Reserved,
}

/// What a copy does not carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// That two names are one file.
    HardLinks,
    /// Extended attributes.
    Xattrs,
    /// Access control lists.
    Acls,
    /// Set-ID and sticky bits.
    SpecialBits,
    /// Owner and group.
    Owner,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HardLinks => "hard links (each name becomes a file of its own)",
            Self::Xattrs => "extended attributes",
            Self::Acls => "access control lists",
            Self::SpecialBits => "set-user-ID, set-group-ID and sticky bits",
            Self::Owner => "the owner (files belong to whoever runs the target)",
        })
    }
}

/// What to do with `source` when the target has `target` under its name. On one host, device and inode tell whether
/// they are the same.
pub fn step(source: &Entry, target: Option<&Entry>, one_host: bool) -> Step {
    if one_host && target.is_some_and(|target| target.version.is_same_inode(&source.version)) {
        return Step::Leave(Reason::Same);
    }
    match (source.kind, target.map(|target| target.kind)) {
        (Kind::Special, _) => Step::Leave(Reason::Special),
        (Kind::Dir, None) => Step::MakeDir,
        (Kind::Dir, Some(Kind::Dir)) => Step::EnterDir,
        (Kind::Dir, Some(_)) => Step::Leave(Reason::TargetIsNoDir),
        (_, Some(Kind::Dir)) => Step::Leave(Reason::TargetIsDir),
        (_, Some(Kind::Special)) => Step::Leave(Reason::TargetIsSpecial),
        (_, None) => Step::Copy(Expected::Absent),
        (Kind::File, Some(Kind::Symlink)) => Step::Leave(Reason::TargetIsLink),
        (Kind::Symlink, Some(Kind::File)) => Step::Leave(Reason::TargetIsFile),
        (kind, Some(_)) => {
            let expected = target.map_or(Expected::Absent, |target| Expected::Version(target.version));
            let same_size = target.is_some_and(|target| target.version.size == source.version.size);
            if kind == Kind::File && same_size {
                Step::Compare(expected)
            } else {
                Step::Copy(expected)
            }
        }
    }
}

/// Of the mode of a directory what is carried: the permission bits, and the sticky bit, without which others could remove what is in it.
pub const DIR_MODE: u32 = 0o1777;

/// Mode and mtime that a final gets from its source.
pub fn meta(source: &Entry) -> Meta {
    let carried = if source.kind == Kind::Dir { DIR_MODE } else { 0o777 };
    Meta {
        mode: source.mode & carried,
        mtime: source.version.mtime,
    }
}

/// How two roots lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nesting {
    /// Neither is in the other.
    Apart,
    /// They are one directory.
    Same,
    /// The source lies inside the target.
    SourceInside,
    /// The target lies inside the source.
    TargetInside,
}

/// Tells how a source root and a target root of one host lie to each other, from [`crate::fs::Dir::places`].
pub fn nesting(source: &[Place], target: &[Place]) -> Nesting {
    let inside = |inner: &[Place], outer: &[Place]| {
        outer
            .first()
            .is_some_and(|outer| inner.iter().any(|place| place.is_within(outer)))
    };
    match (inside(source, target), inside(target, source)) {
        (true, true) => Nesting::Same,
        (true, false) => Nesting::SourceInside,
        (false, true) => Nesting::TargetInside,
        (false, false) => Nesting::Apart,
    }
}

/// How an entry that has been dealt with leaves its directory at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is gone from the source.
    Gone,
    /// It is at the target, and still here by option: the directory stays too.
    Kept,
    /// It is still there: the directory stays too.
    Stays,
}

/// The directories that are not done yet. Each is done when it has been listed to its end and
/// everything in it has been dealt with; then its parent has one thing less to wait for.
#[derive(Debug)]
pub struct DirTree<T> {
    dirs: BTreeMap<RelPath, OpenDir<T>>,
    /// The directories being listed, outermost first; the root is always the first.
    listing: Vec<RelPath>,
}

#[derive(Debug)]
struct OpenDir<T> {
    what: Option<T>,
    pending: u64,
    listed: bool,
    stays: bool,
    failed: bool,
}

/// A directory that is done.
#[derive(Debug, PartialEq, Eq)]
pub struct DoneDir<T> {
    /// Where it is.
    pub path: RelPath,
    /// What was said of it; `None` for the root.
    pub what: Option<T>,
    /// Whether something in it stays at the source.
    pub stays: bool,
    /// Whether something of it has not arrived at the target.
    pub failed: bool,
}

impl<T> Default for DirTree<T> {
    fn default() -> Self {
        let root = OpenDir {
            what: None,
            pending: 0,
            listed: false,
            stays: false,
            failed: false,
        };
        Self {
            dirs: [(RelPath::root(), root)].into(),
            listing: vec![RelPath::root()],
        }
    }
}

impl<T> DirTree<T> {
    /// The listing has come to `path`: directories it is not in are listed to their ends. Those that are
    /// done by that.
    pub fn listing_at(&mut self, path: &RelPath) -> Vec<DoneDir<T>> {
        let mut done = Vec::new();
        while let Some(last) = self.listing.pop_if(|last| !path.is_within(last)) {
            done.extend(self.listed(&last));
        }
        done
    }

    /// The listing has ended.
    pub fn listing_ended(&mut self) -> Vec<DoneDir<T>> {
        let mut done = Vec::new();
        while let Some(last) = self.listing.pop() {
            done.extend(self.listed(&last));
        }
        done
    }

    /// A directory was met, the next thing of the listing; it is pending in its parent.
    pub fn enter(&mut self, path: RelPath, what: T) {
        self.add(&path);
        self.dirs.insert(
            path.clone(),
            OpenDir {
                what: Some(what),
                pending: 0,
                listed: false,
                stays: false,
                failed: false,
            },
        );
        self.listing.push(path);
    }

    /// Something is pending in the directory that `path` is in.
    pub fn add(&mut self, path: &RelPath) {
        if let Some(dir) = path.parent().and_then(|parent| self.dirs.get_mut(&parent)) {
            dir.pending += 1;
        }
    }

    /// What was added at `path` has been dealt with. The directory that is done by that, if any.
    pub fn dealt_with(&mut self, path: &RelPath, outcome: Outcome) -> Option<DoneDir<T>> {
        let parent = path.parent()?;
        let dir = self.dirs.get_mut(&parent)?;
        dir.pending = dir.pending.saturating_sub(1);
        dir.stays |= outcome != Outcome::Gone;
        dir.failed |= outcome == Outcome::Stays;
        self.take_if_done(&parent)
    }

    /// Something that was never added stays in the directory that `path` is in.
    pub fn stays(&mut self, path: &RelPath) {
        if let Some(dir) = path.parent().and_then(|parent| self.dirs.get_mut(&parent)) {
            dir.stays = true;
            dir.failed = true;
        }
    }

    /// Something that was never added is left by option in the directory that `path` is in.
    pub fn keeps(&mut self, path: &RelPath) {
        if let Some(dir) = path.parent().and_then(|parent| self.dirs.get_mut(&parent)) {
            dir.stays = true;
        }
    }

    /// What was said of the directory at `path`, if that is not done; nothing is of the root.
    pub fn get(&self, path: &RelPath) -> Option<&T> {
        self.dirs.get(path)?.what.as_ref()
    }

    /// Whether the directory at `path` is not done.
    pub fn contains(&self, path: &RelPath) -> bool {
        self.dirs.contains_key(path)
    }

    fn listed(&mut self, path: &RelPath) -> Option<DoneDir<T>> {
        self.dirs.get_mut(path)?.listed = true;
        self.take_if_done(path)
    }

    fn take_if_done(&mut self, path: &RelPath) -> Option<DoneDir<T>> {
        let dir = self.dirs.get(path)?;
        if !dir.listed || dir.pending > 0 {
            return None;
        }
        let dir = self.dirs.remove(path)?;
        Some(DoneDir {
            path: path.clone(),
            what: dir.what,
            stays: dir.stays,
            failed: dir.failed,
        })
    }
}

#[cfg(test)]
mod tests;
