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
        Advice, AtFlags, FallocateFlags, FlockOperation, SeekFrom, StatxFlags, fadvise, fallocate, flistxattr,
        flistxattr_query, flock, fstat, fstatfs, fsync, ftruncate, seek, statx,
    },
    io::{Errno, pread, pwrite},
    ioctl::{Opcode, Setter, ioctl, opcode},
};

use super::{lease, lock_operation, metadata, set_meta};
use crate::{
    fs::{File, Lock, Metadata, Sight},
    model::{Timestamp, Uncarried},
};

/// The longest list of attribute names that Linux gives (`XATTR_LIST_MAX`).
const XATTR_NAMES_BYTES: usize = 65_536;

/// The `f_type` of file systems whose writers are all known to this kernel (`linux/magic.h`):
/// ext2 to 4, XFS, Btrfs, tmpfs, ZFS, F2FS, bcachefs, overlayfs, JFS, NILFS, ReiserFS, FAT, exFAT, NTFS (two drivers), HFS, HFS+,
/// UDF, ISO 9660, squashfs, EROFS, UBIFS, ramfs. On any other one (another host or program may write there unseen) none is had.
const LEASE_MAGICS: [u32; 23] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0x2fc1_2fc1,
    0xf2f5_2010,
    0xca45_1a4e,
    0x794c_7630,
    0x3153_464a,
    0x3434,
    0x5265_4973,
    0x4d44,
    0x2011_bab0,
    0x7366_746e,
    0x5346_544e,
    0x4244,
    0x482b,
    0x1501_3346,
    0x9660,
    0x7371_7368,
    0xe0f5_e1e2,
    0x2405_1905,
    0x8584_58f6,
];

/// The `f_type` of those among them that are told of the first write to each page of a mapping, and change the ctime then: ext2 to 4, XFS, Btrfs, F2FS.
/// (tmpfs is not.)
const MAPPINGS_TOLD_MAGICS: [u32; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// What `FICLONERANGE` takes (`linux/fs.h`).
#[repr(C)]
struct FileCloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

const FICLONERANGE: Opcode = opcode::write::<FileCloneRange>(0x94, 13);

/// A regular file of this host.
#[derive(Debug, Clone)]
pub struct OsFile(Arc<Open>);

#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    opened: Metadata,
    /// Whether a lease on it would mean something, where its directory knows.
    leases: Option<bool>,
    /// What a lease keeps others from.
    lease: lease::Kind,
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
    /// The file open as `fd`, with its metadata and what the directory knows of [`leases_mean_something`] there.
    pub(super) fn new(fd: OwnedFd, opened: Metadata, leases: Option<bool>, lease: lease::Kind) -> Self {
        Self(Arc::new(Open {
            fd,
            opened,
            leases,
            lease,
            leased: AtomicBool::new(false),
        }))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// Whether all writers of the file system that `fd` is on are known to this kernel, so that a lease means what it says.
pub(super) fn leases_mean_something(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(LEASE_MAGICS.contains(&(fstatfs(fd)?.f_type as u32)))
}

impl File for OsFile {
    fn opened(&self) -> &Metadata {
        &self.0.opened
    }

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

    #[expect(unsafe_code, reason = "no safe wrapper knows this call")]
    async fn reflink(&self, from: &Self, len: u64) -> io::Result<()> {
        let range = FileCloneRange {
            src_fd: from.fd().as_raw_fd().into(),
            src_offset: 0,
            src_length: len,
            dest_offset: 0,
        };
        // SAFETY: the call is FICLONERANGE, which reads such a structure; both descriptors are open for as long as the files are.
        Ok(unsafe { ioctl(self.fd(), Setter::<FICLONERANGE, _>::new(range)) }?)
    }

    async fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(self.fd(), hole, offset, len)?)
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

    async fn try_lock(&self, lock: Lock) -> io::Result<()> {
        Ok(flock(self.fd(), lock_operation(lock))?)
    }

    async fn unlock(&self) -> io::Result<()> {
        Ok(flock(self.fd(), FlockOperation::Unlock)?)
    }

    async fn lease(&self) -> io::Result<()> {
        let is_known = match self.0.leases {
            Some(known) => known,
            None => leases_mean_something(self.fd())?,
        };
        if !is_known {
            return Err(Errno::OPNOTSUPP.into());
        }
        // Said before it is so: a drop can't come between, for `self` is borrowed.
        self.0.leased.store(true, Ordering::Relaxed);
        lease::take(self.fd(), self.0.lease)
    }

    async fn lease_held(&self) -> io::Result<bool> {
        if self.0.leased.load(Ordering::Relaxed) {
            lease::is_held(self.fd(), self.0.lease)
        } else {
            Ok(false)
        }
    }

    async fn sight(&self) -> io::Result<Sight> {
        let magic = fstatfs(self.fd())?.f_type as u32;
        Ok(match magic {
            magic if MAPPINGS_TOLD_MAGICS.contains(&magic) => Sight::AllByCtime,
            magic if LEASE_MAGICS.contains(&magic) => Sight::All,
            _ => Sight::Some,
        })
    }

    async fn mount(&self) -> io::Result<Option<u64>> {
        // STATX_MNT_ID_UNIQUE, since Linux 6.8.
        let unique = StatxFlags::from_bits_retain(0x4000);
        let found = statx(self.fd(), "", AtFlags::EMPTY_PATH, unique)?;
        let is_told = found.stx_mask & unique.bits() != 0;
        Ok(is_told.then_some(found.stx_mnt_id))
    }

    async fn uncarried(&self) -> io::Result<Uncarried> {
        let mut uncarried = uncarried_xattrs(self.fd())?;
        uncarried.hard_links = self.0.opened.links > 1;
        uncarried.special_bits = self.0.opened.mode & 0o7000 != 0;
        Ok(uncarried)
    }
}

/// What the extended attributes of an open file or directory are.
pub(super) fn uncarried_xattrs(fd: BorrowedFd<'_>) -> io::Result<Uncarried> {
    Ok(judge_xattrs(&xattr_names(fd)?))
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
