//! What can go wrong on a machine, as data.

use std::{fmt, sync::Arc, time::Duration};

use realize::model::RelPath;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Machine;

/// The calls of the file system traits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Op {
    OpenRoot,
    OpenDir,
    DirMetadata,
    Stat,
    Names,
    Open,
    OpenWrite,
    Create,
    Symlink,
    Readlink,
    Link,
    Rename,
    Unlink,
    Mkdir,
    Rmdir,
    SetMtime,
    DirSetMeta,
    DirSync,
    SyncFs,
    DirLock,
    LockHolder,
    Places,
    FileMetadata,
    Read,
    Write,
    NextData,
    Punch,
    Reflink,
    SetLen,
    FileSetMeta,
    FileSync,
    DropCache,
    FileLock,
    Lease,
    LeaseHeld,
    Uncarried,
}

impl Op {
    /// Whether it changes the file system or syncs it.
    pub fn is_effect(self) -> bool {
        use Op::*;
        self.is_sync()
            || matches!(
                self,
                Create | Symlink | Link | Rename | Unlink | Mkdir | Rmdir | SetMtime | DirSetMeta
            )
            || matches!(self, Write | Punch | Reflink | SetLen | FileSetMeta)
    }

    /// Whether it is a sync.
    pub fn is_sync(self) -> bool {
        matches!(self, Op::DirSync | Op::SyncFs | Op::FileSync)
    }
}

/// One call that went through the yield point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its number, counted from 0, among the effects or among the reads of its machine.
    pub index: u64,
    /// On which disk.
    pub device: u64,
    /// What.
    pub op: Op,
    /// On what: the directory joined with the name, or one name of the file; `None` when it has none.
    pub path: Option<RelPath>,
    /// The new name of a rename or link.
    pub to: Option<RelPath>,
}

/// Which call a fault strikes. Each fault strikes once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The effect of this index.
    Effect(u64),
    /// The read (every call that is no effect) of this index.
    Read(u64),
    /// The `nth` (from 0) call of this kind, on this path (or to it) when one is given.
    Call {
        /// What.
        op: Op,
        /// On what.
        path: Option<RelPath>,
        /// How many such calls to let pass.
        nth: u64,
    },
}

impl At {
    /// The `nth` (from 0) call of kind `op`, on whatever.
    pub fn call(op: Op, nth: u64) -> Self {
        Self::Call { op, path: None, nth }
    }

    /// The `nth` (from 0) call of kind `op` on `path`, or to it.
    ///
    /// # Panics
    /// Where that is no relative path.
    pub fn call_on(path: &str, op: Op, nth: u64) -> Self {
        let path = Some(RelPath::new(path).unwrap());
        Self::Call { op, path, nth }
    }
}

/// How calls behave on a machine that is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Off {
    /// They never return.
    Hang,
    /// They fail with `EIO`.
    Fail,
}

/// What a failed sync leaves in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cache {
    /// The new content, marked clean: seen until [`drop_cache`](realize::fs::File::drop_cache) or a crash.
    Kept,
    /// What the device has.
    Reverted,
}

/// What happens.
#[derive(Debug, Clone)]
pub enum Kind {
    /// The power goes. A change is applied (the crash decides whether it lasts), a sync is not; the call never returns
    /// to its caller. The machine stays off until [`Machine::crash`].
    PowerCut(Off),
    /// The process dies after the call; nothing that was cached is lost. Off until [`Machine::restart`].
    Kill(Off),
    /// The call fails and does nothing. What a sync would have covered stays dirty.
    Error(Errno),
    /// The sync fails, and what it should have covered counts as clean from now on: no later sync covers it. Some
    /// sectors may have reached the device.
    SyncLost(Errno, Cache),
    /// The write succeeds, then write-back of the file fails as in `SyncLost`; only the file's next sync says so.
    WriteBackLost(Errno, Cache),
    /// The read or write does at most so many bytes; a reflink shares so many, and says so or not.
    Short(usize),
    /// A bit on the device turns over; the cache does not see it until it is dropped.
    BitRot {
        /// Of which disk.
        device: u64,
        /// In which file, when there is one.
        path: RelPath,
        /// At which byte.
        offset: u64,
    },
    /// The machine's disks answer nothing for so long, this call included.
    Stall(Duration),
    /// As [`Stall`](Self::Stall), and nothing goes over the host's lines meanwhile. (Its programs' own timers go on.)
    Pause(Duration),
    /// The time of day jumps by so many seconds, and from then on gains so many thousandths, until the faults are healed.
    Clock(i64, i64),
    /// Somebody else acts just before the call.
    Act(Act),
}

/// What somebody else does.
#[derive(Clone)]
pub struct Act(pub Arc<dyn Fn(&Machine) + Send + Sync>);

/// One thing that goes wrong once.
#[derive(Debug, Clone)]
pub struct Fault {
    /// When.
    pub at: At,
    /// What.
    pub kind: Kind,
}

/// Abilities that a disk lacks: the error they give.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// `Rename::NoReplace`.
    pub no_replace: Option<Errno>,
    /// `Rename::Exchange`.
    pub exchange: Option<Errno>,
    /// `File::lease`.
    pub lease: Option<Errno>,
    /// `Dir::sync`.
    pub dir_sync: Option<Errno>,
    /// `Dir::link`.
    pub link: Option<Errno>,
    /// `File::punch`.
    pub punch: Option<Errno>,
    /// `File::reflink`.
    pub reflink: Option<Errno>,
    /// Not an error: names that differ in ASCII case or in dots at their end are one name, as on FAT.
    pub folds: bool,
    /// Not an error: what is written through a mapping changes the times, as on ext4. Otherwise it does not, as on tmpfs.
    pub maps_tell: bool,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "effect {}: {:?}", self.index, self.op)?;
        if let Some(path) = &self.path {
            write!(f, " {path:?}")?;
        }
        match &self.to {
            Some(to) => write!(f, " to {to:?}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Act")
    }
}
