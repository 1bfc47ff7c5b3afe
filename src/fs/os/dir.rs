//! An open directory: everything is done on its descriptor, with one name.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, Stat, StatxAttributes, StatxFlags, chmod,
        fchmod, flock, fstat, fsync, linkat, mkdirat, openat, openat2, readlinkat, renameat, renameat_with, statat,
        statx, symlinkat, syncfs, unlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    OPEN, OsFile,
    file::{leases_mean_something, uncarried_xattrs},
    holder, lease, lock_operation, metadata, mode_bits, place, set_meta, times,
};
use crate::{
    fs::{Dir, Lock, Metadata, Place, Rename},
    model::{BadPath, Name, RelPath, Timestamp, Uncarried},
};

/// How to open a directory of a host path, links followed.
pub(super) const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// How often `openat2` is tried again when a rename elsewhere disturbed it (it says `EAGAIN`).
const DISTURBED_TRIES: u32 = 100;

/// How long to wait for another program to give up a lease on a file we open, in steps of
/// [`LEASE_PAUSE`]. One that heeds its signal needs well under a step.
const LEASE_TRIES: u32 = 50;
const LEASE_PAUSE: Duration = Duration::from_millis(2);

/// Names come from the kernel in pieces of this size.
const NAMES_BYTES: usize = 32 * 1024;

/// A directory of this host.
#[derive(Debug, Clone)]
pub struct OsDir {
    fd: Arc<OwnedFd>,
    /// The device that the directory is on, and whether leases mean something there, asked for once: while it is open, neither
    /// changes, nor does another file system get the device's number.
    leases: Arc<OnceLock<(u64, bool)>>,
    /// See [`OsFs`](super::OsFs).
    pub(super) walks: Arc<AtomicBool>,
}

impl OsDir {
    pub(super) fn new(fd: OwnedFd, walks: Arc<AtomicBool>) -> Self {
        Self {
            fd: Arc::new(fd),
            leases: Arc::default(),
            walks,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn open_below(&self, path: &RelPath) -> io::Result<OwnedFd> {
        if path.is_root() {
            return Ok(open_again(self.fd())?);
        }
        if !self.walks.load(Ordering::Relaxed) {
            match open_beneath(self.fd(), path) {
                // An old kernel, or a sandbox that does not know the call.
                Err(Errno::NOSYS | Errno::PERM) => self.walks.store(true, Ordering::Relaxed),
                result => return Ok(result?),
            }
        }
        Ok(walk(self.fd(), path)?)
    }

    fn open_regular(&self, name: &Name, access: OFlags) -> io::Result<OsFile> {
        // Looked at before it is opened: to open a device can rewind a tape. And after: it may have been swapped.
        expect_regular(&self.lstat(name)?)?;
        let fd = self.open_past_leases(name, OPEN | access | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = fstat(&fd)?;
        expect_regular(&stat)?;
        // A file may be mounted there from elsewhere.
        let leases = self.leases().filter(|(device, _)| *device == stat.st_dev);
        let lease = match access {
            OFlags::RDONLY => lease::Kind::Read,
            _ => lease::Kind::Write,
        };
        Ok(OsFile::new(
            fd,
            metadata(&stat),
            leases.map(|(_, leases)| leases),
            lease,
        ))
    }

    /// See the field; `None` when it can't be told.
    fn leases(&self) -> Option<(u64, bool)> {
        if let Some(known) = self.leases.get() {
            return Some(*known);
        }
        let (device, leases) = (fstat(self.fd()).ok()?.st_dev, leases_mean_something(self.fd()).ok()?);
        Some(*self.leases.get_or_init(|| (device, leases)))
    }

    /// Opens the file. One that is leased is `EAGAIN` (it is opened without blocking) and its holder is told:
    /// most likely it is free a moment later.
    fn open_past_leases(&self, name: &Name, flags: OFlags) -> io::Result<OwnedFd> {
        for _ in 0..LEASE_TRIES {
            match openat(self.fd(), name.as_bytes(), flags, Mode::empty()) {
                Err(Errno::AGAIN) => pause(),
                result => return Ok(result?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    fn lstat(&self, name: &Name) -> rustix::io::Result<Stat> {
        statat(self.fd(), name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW)
    }
}

impl OsDir {
    /// A name that is no [`Name`] (longer than 255 bytes, say) is an error: a listing hides nothing.
    fn read_names(&self, is_wanted: impl Fn(&[u8]) -> bool) -> io::Result<Vec<Name>> {
        // A descriptor of its own: clones share the offset of ours.
        let fd = open_again(self.fd())?;
        let mut buffer = Vec::with_capacity(NAMES_BYTES);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            match entry?.file_name().to_bytes() {
                b"." | b".." => {}
                bytes if is_wanted(bytes) => names.push(Name::new(bytes).map_err(not_a_name)?),
                _ => {}
            }
        }
        Ok(names)
    }
}

impl Dir for OsDir {
    type File = OsFile;

    async fn open_dir(&self, path: &RelPath) -> io::Result<Self> {
        Ok(Self::new(self.open_below(path)?, self.walks.clone()))
    }

    async fn metadata(&self) -> io::Result<Metadata> {
        Ok(metadata(&fstat(self.fd())?))
    }

    async fn stat(&self, name: &Name) -> io::Result<Metadata> {
        Ok(metadata(&self.lstat(name)?))
    }

    async fn is_mount_point(&self, name: &Name) -> io::Result<bool> {
        let found = statx(
            self.fd(),
            name.as_bytes(),
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::empty(),
        )?;
        // A kernel before 5.8 does not tell: then it may be.
        let is_told = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
        Ok(!is_told || found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }

    async fn names(&self) -> io::Result<Vec<Name>> {
        self.read_names(|_| true)
    }

    async fn names_beginning(&self, prefix: u8) -> io::Result<Vec<Name>> {
        self.read_names(|name| name.first() == Some(&prefix))
    }

    async fn open(&self, name: &Name) -> io::Result<OsFile> {
        self.open_regular(name, OFlags::RDONLY)
    }

    async fn open_write(&self, name: &Name) -> io::Result<OsFile> {
        self.open_regular(name, OFlags::RDWR)
    }

    async fn create(&self, name: &Name) -> io::Result<OsFile> {
        let flags = OPEN | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = openat(self.fd(), name.as_bytes(), flags, mode_bits(0o600))?;
        // The umask or a default ACL may have taken bits away.
        let mut stat = fstat(&fd)?;
        if stat.st_mode & 0o7777 != 0o600 {
            unless_dictated(fchmod(&fd, mode_bits(0o600)))?;
            stat = fstat(&fd)?;
        }
        Ok(OsFile::new(fd, metadata(&stat), None, lease::Kind::Write))
    }

    async fn symlink(&self, name: &Name, target: &[u8]) -> io::Result<()> {
        Ok(symlinkat(target, self.fd(), name.as_bytes())?)
    }

    async fn readlink(&self, name: &Name) -> io::Result<Vec<u8>> {
        Ok(readlinkat(self.fd(), name.as_bytes(), Vec::new())?.into_bytes())
    }

    async fn link(&self, name: &Name, to_dir: &Self, to: &Name) -> io::Result<()> {
        Ok(linkat(
            self.fd(),
            name.as_bytes(),
            to_dir.fd(),
            to.as_bytes(),
            AtFlags::empty(),
        )?)
    }

    async fn rename(&self, name: &Name, to_dir: &Self, to: &Name, how: Rename) -> io::Result<()> {
        let (from, to) = (name.as_bytes(), to.as_bytes());
        Ok(match how {
            Rename::Replace => renameat(self.fd(), from, to_dir.fd(), to),
            Rename::NoReplace => renameat_with(self.fd(), from, to_dir.fd(), to, RenameFlags::NOREPLACE),
            Rename::Exchange => renameat_with(self.fd(), from, to_dir.fd(), to, RenameFlags::EXCHANGE),
        }?)
    }

    async fn unlink(&self, name: &Name) -> io::Result<()> {
        Ok(unlinkat(self.fd(), name.as_bytes(), AtFlags::empty())?)
    }

    /// A set-group-ID bit that the directory inherits from this one stays.
    async fn mkdir(&self, name: &Name) -> io::Result<()> {
        mkdirat(self.fd(), name.as_bytes(), mode_bits(0o700))?;
        let made = self.lstat(name)?;
        if made.st_mode & 0o777 != 0o700 {
            unless_dictated(chmod_dir(self.fd(), name, made.st_mode & 0o7000 | 0o700))?;
        }
        Ok(())
    }

    async fn rmdir(&self, name: &Name) -> io::Result<()> {
        Ok(unlinkat(self.fd(), name.as_bytes(), AtFlags::REMOVEDIR)?)
    }

    async fn set_mtime(&self, name: &Name, mtime: Timestamp) -> io::Result<()> {
        Ok(utimensat(
            self.fd(),
            name.as_bytes(),
            &times(mtime)?,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    async fn set_meta(&self, mode: u32, mtime: Timestamp) -> io::Result<()> {
        set_meta(self.fd(), mode, mtime)
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(fsync(self.fd())?)
    }

    async fn sync_fs(&self) -> io::Result<()> {
        Ok(syncfs(self.fd())?)
    }

    async fn try_lock(&self, lock: Lock) -> io::Result<()> {
        Ok(flock(self.fd(), lock_operation(lock))?)
    }

    async fn lock_holder(&self) -> Option<String> {
        holder::of(self.fd())
    }

    async fn uncarried(&self) -> io::Result<Uncarried> {
        let mut uncarried = uncarried_xattrs(self.fd())?;
        uncarried.special_bits = fstat(self.fd())?.st_mode & 0o6000 != 0;
        Ok(uncarried)
    }

    async fn places(&self) -> io::Result<Vec<Place>> {
        place::of(self.fd())
    }
}

/// Opens `path` below `dir` in one call that refuses every symbolic link.
fn open_beneath(dir: BorrowedFd<'_>, path: &RelPath) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..DISTURBED_TRIES {
        match openat2(dir, path.as_bytes(), OPEN_DIR | OPEN, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens `path` below `dir` one component at a time.
fn walk(dir: BorrowedFd<'_>, path: &RelPath) -> rustix::io::Result<OwnedFd> {
    let mut below: Option<OwnedFd> = None;
    for name in path.names() {
        let dir = below.as_ref().map_or(dir, |fd| fd.as_fd());
        below = Some(openat(dir, name.as_bytes(), OPEN_DIR | OPEN, Mode::empty())?);
    }
    below.map_or_else(|| open_again(dir), Ok)
}

/// Another description of the same directory: its own offset, its own locks.
fn open_again(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    openat(dir, ".", OPEN_DIR | OPEN, Mode::empty())
}

/// Sets the mode of a directory that its mode may forbid to open, without following a link swapped in for it.
fn chmod_dir(dir: BorrowedFd<'_>, name: &Name, mode: u32) -> rustix::io::Result<()> {
    let fd = openat(
        dir,
        name.as_bytes(),
        OPEN | OFlags::PATH | OFlags::DIRECTORY,
        Mode::empty(),
    )?;
    chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode_bits(mode))
}

/// A file system that keeps no modes (its mount options give them) may refuse to set one on what was just
/// made: then that is the mode, and no error.
fn unless_dictated(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        result => result,
    }
}

fn expect_regular(stat: &Stat) -> rustix::io::Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        FileType::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::INVAL),
    }
}

fn not_a_name(bad: BadPath) -> Errno {
    match bad {
        BadPath::TooLong => Errno::NAMETOOLONG,
        _ => Errno::IO,
    }
}

fn pause() {
    #[expect(clippy::disallowed_methods, reason = "the seam itself; calls block here")]
    std::thread::sleep(LEASE_PAUSE);
}
