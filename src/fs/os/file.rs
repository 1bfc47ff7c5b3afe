//! An open regular file.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    buffer::spare_capacity,
    fs::{
        Advice, FlockOperation, SeekFrom, fadvise, flistxattr, flistxattr_query, flock, fstat, fstatfs, fsync,
        ftruncate, seek,
    },
    io::{Errno, pread, pwrite},
};

use super::{lease, metadata, set_meta};
use crate::{
    fs::{File, Metadata},
    model::{Timestamp, Uncarried},
};

/// The longest list of attribute names that Linux gives (`XATTR_LIST_MAX`).
const XATTR_NAMES_BYTES: usize = 65_536;

/// The `f_type` of file systems whose files other hosts or programs may write to unseen by this kernel: NFS, SMB 1, CIFS, SMB 2,
/// FUSE, 9p, Ceph, AFS (`linux/magic.h`).
const NETWORK_MAGICS: [u32; 8] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
];

/// A regular file of this host.
#[derive(Debug, Clone)]
pub struct OsFile(Arc<Open>);

#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    /// Whether a lease was ever taken, so that the descriptor is known to the watcher.
    leased: AtomicBool,
}

impl Drop for Open {
    fn drop(&mut self) {
        if *self.leased.get_mut() {
            // Before the descriptor closes: its number may be another file's the moment after.
            lease::forget(self.fd.as_fd());
        }
    }
}

impl OsFile {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(Open {
            fd,
            leased: AtomicBool::new(false),
        }))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl File for OsFile {
    async fn metadata(&self) -> io::Result<Metadata> {
        Ok(metadata(&fstat(self.fd())?))
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(pread(self.fd(), buf, offset)?)
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<usize> {
        Ok(pwrite(self.fd(), data, offset)?)
    }

    async fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match seek(self.fd(), SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            // A file system without holes, or an offset that no file reaches.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                let size = fstat(self.fd())?.st_size as u64;
                Ok((offset < size).then_some(offset))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(ftruncate(self.fd(), len)?)
    }

    async fn set_meta(&self, mode: u32, mtime: Timestamp) -> io::Result<()> {
        set_meta(self.fd(), mode, mtime)
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(fsync(self.fd())?)
    }

    #[expect(unsafe_code, reason = "no safe wrapper knows this call")]
    async fn start_writeback(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as `self` is; no memory is passed.
        let started = unsafe { libc::sync_file_range(self.fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
        // A file system that has no such thing loses a hint.
        match started {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::ESPIPE)) => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn drop_cache(&self) -> io::Result<()> {
        // No length: to the end.
        Ok(fadvise(self.fd(), 0, None, Advice::DontNeed)?)
    }

    async fn try_lock(&self) -> io::Result<()> {
        Ok(flock(self.fd(), FlockOperation::NonBlockingLockExclusive)?)
    }

    async fn lease(&self) -> io::Result<()> {
        // There a lease sees only the writers of this host, or is refused for want of a server's: no lease is had.
        if NETWORK_MAGICS.contains(&(fstatfs(self.fd())?.f_type as u32)) {
            return Err(Errno::OPNOTSUPP.into());
        }
        // Said before it is so: a drop can't come between, for `self` is borrowed.
        self.0.leased.store(true, Ordering::Relaxed);
        lease::take(self.fd())
    }

    async fn lease_held(&self) -> io::Result<bool> {
        if self.0.leased.load(Ordering::Relaxed) {
            lease::is_held(self.fd())
        } else {
            Ok(false)
        }
    }

    async fn uncarried(&self) -> io::Result<Uncarried> {
        let stat = fstat(self.fd())?;
        let names = xattr_names(self.fd())?;
        let mut uncarried = judge_xattrs(&names);
        uncarried.hard_links = stat.st_nlink > 1;
        uncarried.special_bits = stat.st_mode & 0o7000 != 0;
        Ok(uncarried)
    }
}

/// The names of all extended attributes, each with a NUL behind it. None on a file system without.
fn xattr_names(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    match flistxattr_query(fd) {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut names = Vec::with_capacity(XATTR_NAMES_BYTES);
    flistxattr(fd, spare_capacity(&mut names))?;
    Ok(names)
}

/// What the attributes mean. Those that the target's own kernel gives to every file do not count: labels of
/// SELinux, hashes of IMA and EVM.
fn judge_xattrs(names: &[u8]) -> Uncarried {
    let mut uncarried = Uncarried::default();
    for name in names.split(|byte| *byte == 0) {
        match name {
            b"" | b"security.selinux" | b"security.ima" | b"security.evm" => {}
            name if name.starts_with(b"system.") && contains(name, b"acl") => uncarried.acl = true,
            _ => uncarried.xattrs = true,
        }
    }
    uncarried
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_told_from_access_lists_and_labels() {
        let judge = |names: &[u8]| {
            let judged = judge_xattrs(names);
            (judged.acl, judged.xattrs)
        };
        assert_eq!(judge(b""), (false, false));
        assert_eq!(judge(b"security.selinux\0security.ima\0security.evm\0"), (false, false));
        assert_eq!(judge(b"security.selinux\0system.posix_acl_access\0"), (true, false));
        assert_eq!(judge(b"system.nfs4_acl\0"), (true, false));
        assert_eq!(judge(b"user.note\0"), (false, true));
        assert_eq!(judge(b"security.capability\0"), (false, true));
        assert_eq!(judge(b"trusted.x\0system.posix_acl_default\0"), (true, true));
    }
}
