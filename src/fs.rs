//! The file system the core sees: handle-relative, one name at a time, with a durability contract.
//!
//! [`os::OsFs`] is the real one; the simulator brings its own. Both pass one contract suite.
//!
//! # Escaping the root
//!
//! Everything happens relative to an open [`Dir`]. [`Fs::open_root`] is the only call that takes a
//! host path and follows symbolic links (the user named it). From there on no call follows one, nor
//! leaves the root: [`Dir::open_dir`] walks a [`RelPath`] and fails with `ELOOP` or `ENOTDIR` at a
//! symbolic link, and every other call takes a single [`Name`].
//!
//! # What survives a crash
//!
//! After a power loss each of these is either there or not, independently of the others and in any
//! order, unless a sync that covers it has returned success:
//! - the bytes of each write, per sector of 512 bytes; the size; mode and times;
//! - each change of a directory's names (`create`, `symlink`, `link`, `unlink`, `mkdir`, `rmdir`, `rename`). Two changes
//!   of the same name keep their order. A rename is atomic: all its names change or none does.
//!
//! [`File::sync`] covers the content, size, mode and times of the file, not its name.
//! [`Dir::sync`] covers the names in that directory (and so the whole of a rename into or out of it, a symbolic
//! link's text, and the mode and times of the directory), not the directory's own name, nor the times of a link.
//! [`Dir::sync_fs`] covers everything on that file system.
//! A sync that fails covers nothing, and one tried again after it may succeed without having
//! covered anything: it must not be tried again.
//! A crash of the process alone loses nothing that a call has returned for.
//!
//! # Errors
//!
//! All errors are [`io::Error`]s with the operating system's number (`raw_os_error`). `EINTR`, short
//! reads and short writes reach the caller; [`read_full`] and [`write_all`] deal with them.
//!
//! # Futures
//!
//! In production every future here is ready at its first poll: calls block, so they are made inside
//! a job given to [`Fs::offload`], one job for a whole store operation. In simulation they may
//! pend at every call. So a job awaits nothing but calls of this module.

use std::{future::Future, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::model::{Kind, Name, RelPath, Timestamp, Uncarried, Version};

pub mod os;

/// What a stat tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// Device, inode, size, mtime, ctime. The size of a symbolic link is that of its text; that of a
    /// directory means nothing.
    pub version: Version,
    /// Permission bits with set-ID and sticky, masked 07777.
    pub mode: u32,
    /// Number of names.
    pub links: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a rename does when the new name exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rename {
    /// Replaces it.
    Replace,
    /// Fails with `EEXIST`. A file system that can't do it says `EINVAL` or `ENOSYS`.
    NoReplace,
    /// Swaps the two; fails with `ENOENT` when the new name does not exist. A file system that can't
    /// do it says `EINVAL` or `ENOSYS`.
    Exchange,
}

/// Which lock on a directory or file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// With others that are shared.
    Shared,
    /// Alone.
    Exclusive,
}

/// How much of the changes of a file its kernel sees. Each sees what those before it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// Another host or program may change it unseen.
    Some,
    /// All of them; not always by the times.
    All,
    /// Each gives it another ctime, stores to mappings too.
    AllByCtime,
}

/// One run of a kernel.
pub type BootId = [u8; 16];

/// A job did not end: it panicked, or the program is going down.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("a file system job panicked or was stopped")]
pub struct JobLost;

/// A file system. Cheap to clone; clones are the same one.
pub trait Fs: Clone + Send + Sync + 'static {
    /// Its directories.
    type Dir: Dir<File = Self::File>;
    /// Its files.
    type File: File;

    /// Tells one run of the kernel from the next: what a cache may hide is gone after that.
    fn boot(&self) -> BootId;

    /// Opens the directory at `path` of the host, symbolic links followed. `ENOTDIR` when it is
    /// something else.
    fn open_root(&self, path: &Path) -> impl Future<Output = io::Result<Self::Dir>> + Send;

    /// Runs `job`, which awaits nothing but calls of this module, where blocking is allowed, and
    /// gives its value back. The job runs to its end even when the returned future is dropped; only
    /// the end of the process stops it.
    fn offload<T, J>(&self, job: J) -> impl Future<Output = Result<T, JobLost>> + Send
    where
        T: Send + 'static,
        J: Future<Output = T> + Send + 'static;
}

/// An open directory. Cheap to clone; the descriptor closes with the last clone.
///
/// Calls that take a name never follow a symbolic link of that name.
pub trait Dir: Clone + Send + Sync + 'static {
    /// Its files.
    type File: File;

    /// Opens the directory at `path` below this one, itself when `path` is the root. `ELOOP` or
    /// `ENOTDIR` where a component is a symbolic link, `ENOTDIR` where it is something else.
    fn open_dir(&self, path: &RelPath) -> impl Future<Output = io::Result<Self>> + Send;

    /// The directory's own metadata.
    fn metadata(&self) -> impl Future<Output = io::Result<Metadata>> + Send;

    /// The metadata of `name`, a link itself when it is one.
    fn stat(&self, name: &Name) -> impl Future<Output = io::Result<Metadata>> + Send;

    /// Whether something is mounted over `name`, which may then be reached under another name as well.
    fn is_mount_point(&self, name: &Name) -> impl Future<Output = io::Result<bool>> + Send;

    /// All names in the directory in no particular order, `.` and `..` left out. Names that come and
    /// go meanwhile may or may not be among them.
    fn names(&self) -> impl Future<Output = io::Result<Vec<Name>>> + Send;

    /// As [`names`](Self::names), only those that begin with `prefix`.
    fn names_beginning(&self, prefix: u8) -> impl Future<Output = io::Result<Vec<Name>>> + Send {
        async move {
            let mut names = self.names().await?;
            names.retain(|name| name.as_bytes().first() == Some(&prefix));
            Ok(names)
        }
    }

    /// Opens the regular file `name` for reading. Never blocks on a FIFO: what is not a regular file
    /// is `EINVAL` (a symbolic link `ELOOP`, a directory `EISDIR`).
    fn open(&self, name: &Name) -> impl Future<Output = io::Result<Self::File>> + Send;

    /// Opens the regular file `name` for reading and writing, as [`open`](Self::open) otherwise.
    fn open_write(&self, name: &Name) -> impl Future<Output = io::Result<Self::File>> + Send;

    /// Makes the regular file `name` with mode 0600, open for reading and writing. `EEXIST` when
    /// there is anything of that name.
    fn create(&self, name: &Name) -> impl Future<Output = io::Result<Self::File>> + Send;

    /// Makes the symbolic link `name` with the text `target` (1 to 4,095 bytes, on XFS 1,023; no NUL).
    fn symlink(&self, name: &Name, target: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// The text of the symbolic link `name`; `EINVAL` when it is none.
    fn readlink(&self, name: &Name) -> impl Future<Output = io::Result<Vec<u8>>> + Send;

    /// Gives the file `name` the further name `to` in `to_dir`. `EEXIST` when there is one.
    fn link(&self, name: &Name, to_dir: &Self, to: &Name) -> impl Future<Output = io::Result<()>> + Send;

    /// Renames `name` to `to` in `to_dir`. Atomic, but not durable. When both names are links to one
    /// inode, `Replace` does nothing and succeeds: the old name stays.
    fn rename(&self, name: &Name, to_dir: &Self, to: &Name, how: Rename)
    -> impl Future<Output = io::Result<()>> + Send;

    /// Removes the name of something that is not a directory (`EISDIR` when it is one).
    fn unlink(&self, name: &Name) -> impl Future<Output = io::Result<()>> + Send;

    /// Makes the directory `name` with mode 0700, and the set-group-ID bit where this directory has it.
    fn mkdir(&self, name: &Name) -> impl Future<Output = io::Result<()>> + Send;

    /// Removes the empty directory `name` (`ENOTEMPTY`, `ENOTDIR` otherwise).
    fn rmdir(&self, name: &Name) -> impl Future<Output = io::Result<()>> + Send;

    /// Sets the mtime of `name`, of the link itself when it is one. The atime becomes the same.
    fn set_mtime(&self, name: &Name, mtime: Timestamp) -> impl Future<Output = io::Result<()>> + Send;

    /// Sets the mode (permission bits, masked 07777) and mtime of the directory itself.
    fn set_meta(&self, mode: u32, mtime: Timestamp) -> impl Future<Output = io::Result<()>> + Send;

    /// Makes the names in this directory durable, and its mode and times. `EINVAL` where the file
    /// system can't.
    fn sync(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Makes everything on this file system durable. An error of an earlier write-back may or may
    /// not be told here.
    fn sync_fs(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Takes a lock on the directory that ends when the last clone of this handle closes. `EAGAIN`
    /// when another handle, of this or another process, holds one against it; a lock this handle held before is lost
    /// then. Advisory.
    fn try_lock(&self, lock: Lock) -> impl Future<Output = io::Result<()>> + Send;

    /// Who holds a lock on this directory, for a message: `process 4711 (realize)`. `None` when
    /// nobody does or it can't be told.
    fn lock_holder(&self) -> impl Future<Output = Option<String>> + Send;

    /// What of the directory itself a move does not carry: set-ID bits, attributes, access lists. The owner is not judged here.
    fn uncarried(&self) -> impl Future<Output = io::Result<Uncarried>> + Send;

    /// Where the directory lies, whatever symbolic links and bind mounts lead to it: first its own
    /// place, then those of the mount points above it, innermost first. A directory is inside
    /// another exactly when the other's first place is one of these or above one of them.
    fn places(&self) -> impl Future<Output = io::Result<Vec<Place>>> + Send;
}

/// A position on a file system: see [`Dir::places`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Which file system.
    pub device: u64,
    /// The path from that file system's own root.
    pub path: RelPath,
}

impl Place {
    /// Whether this is `other` or inside it.
    pub fn is_within(&self, other: &Place) -> bool {
        self.device == other.device && self.path.is_within(&other.path)
    }
}

/// An open regular file. Cheap to clone; the descriptor, its lock and its lease end with the last
/// clone.
pub trait File: Clone + Send + Sync + 'static {
    /// The file's metadata as it was when it was opened or made: at no cost, for that is how it was found to be a regular file.
    fn opened(&self) -> &Metadata;

    /// The file's metadata now.
    fn metadata(&self) -> impl Future<Output = io::Result<Metadata>> + Send;

    /// Reads at `offset` (bytes) into `buf`; how many were read, 0 only at the end of the file (or
    /// for an empty `buf`).
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;

    /// Writes at `offset` (bytes); how many were written. Extends the file when need be; what lies
    /// between is a hole.
    fn write_at(&self, offset: u64, data: &[u8]) -> impl Future<Output = io::Result<usize>> + Send;

    /// Where the next data at or after `offset` begins (bytes), `None` when only a hole is left up to
    /// the end. A file system that keeps no holes has data everywhere.
    fn next_data(&self, offset: u64) -> impl Future<Output = io::Result<Option<u64>>> + Send;

    /// Makes this file, which is empty, share the first `len` bytes that `from` has on the device, until either is written to: a reflink. `len` is a
    /// multiple of 1 MiB, or all that `from` has. What is dirty of `from` is written first. `EOPNOTSUPP`, `ENOTTY` or `EXDEV` where the file
    /// system can't, and nothing has changed then; after any other error, and where it says that it succeeded, this file may have less, or more.
    fn reflink(&self, from: &Self, len: u64) -> impl Future<Output = io::Result<()>> + Send;

    /// Makes `len` bytes at `offset` zeros, and of the whole blocks among them a hole. Any error where the file system can't; a part may be done then.
    fn punch(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>> + Send;

    /// Cuts the file or extends it with a hole to `len` bytes.
    fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>> + Send;

    /// Sets the mode (permission bits, masked 07777) and mtime. The atime becomes the same.
    fn set_meta(&self, mode: u32, mtime: Timestamp) -> impl Future<Output = io::Result<()>> + Send;

    /// Makes content, size, mode and times durable.
    fn sync(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Has what was written begin on its way to the device, without waiting. A hint: it makes nothing durable, but lets the
    /// syncs of many files share the disk's work.
    fn start_writeback(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Drops the file's clean pages from the cache, so that the next read comes from the device. A
    /// hint: what can't be dropped stays.
    fn drop_cache(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Takes an advisory lock on the file that ends with this handle's last clone. `EAGAIN` when another handle, of this or
    /// another process, holds one against it.
    fn try_lock(&self, lock: Lock) -> impl Future<Output = io::Result<()>> + Send;

    /// Gives up the lock that this handle holds, if it holds one.
    fn unlock(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Takes a lease. On a file from [`Dir::open`] one that ends once somebody opens it for writing or truncates it: refused with `EAGAIN`
    /// while anybody has it open or mapped for writing. On a file that is open for writing one that ends once anybody else opens or truncates
    /// it: refused with `EAGAIN` while anybody else has it open or mapped. `EACCES` when the caller may not (neither owner nor
    /// privileged), `EINVAL` or `EOPNOTSUPP` where the file system has none. Who is held back by a lease is let in at once.
    fn lease(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Whether the lease taken is still held.
    fn lease_held(&self) -> impl Future<Output = io::Result<bool>> + Send;

    /// How much the kernel sees of who changes the files of its file system.
    fn sight(&self) -> impl Future<Output = io::Result<Sight>> + Send;

    /// Tells the mount that the file was reached by from all others of this run of the kernel, later ones too; `None` where the kernel does not.
    fn mount(&self) -> impl Future<Output = io::Result<Option<u64>>> + Send;

    /// What of the file a move does not carry; names and mode are judged as they were when it was opened. The owner is not judged here.
    fn uncarried(&self) -> impl Future<Output = io::Result<Uncarried>> + Send;
}

/// Reads at `offset` until `buf` is full or the file ends; how many bytes were read.
pub async fn read_full(file: &impl File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(offset + done as u64, &mut buf[done..]).await {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all of `data` at `offset`.
pub async fn write_all(file: &impl File, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        match file.write_at(offset + done as u64, &data[done..]).await {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
