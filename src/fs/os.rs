//! The file system of the operating system (Linux), by plain blocking system calls.
//!
//! Every future here is ready at its first poll. What a descriptor can do is done on the descriptor;
//! the rest is done on a directory's descriptor with one name, which is never followed.
//!
//! Left out: anything that needs a path of the host below an open root, and access times, which are
//! not kept.

#![expect(clippy::disallowed_methods, reason = "the seam itself")]

use std::{
    future::Future,
    io,
    os::fd::BorrowedFd,
    path::Path,
    sync::{Arc, LazyLock, atomic::AtomicBool},
};

use futures::FutureExt;
use rustix::{
    fs::{CWD, FileType, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, fchmod, futimens, openat},
    io::fcntl_dupfd_cloexec,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::{BootId, Fs, JobLost, Lock, Metadata};
use crate::model::{Kind, Timestamp, Version};

mod dir;
mod file;
mod holder;
mod lease;
mod place;

pub use dir::OsDir;
pub use file::OsFile;

/// The file system of this host.
#[derive(Debug, Clone, Default)]
pub struct OsFs {
    /// Whether `openat2` is not to be had. Found out at the first call, shared by all that comes from this value.
    walks: Arc<AtomicBool>,
}

impl OsFs {
    /// The file system of this host.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, but as on a kernel or in a sandbox without `openat2`: directories are opened one
    /// component at a time.
    pub fn without_openat2() -> Self {
        Self {
            walks: Arc::new(AtomicBool::new(true)),
        }
    }
}

impl Fs for OsFs {
    type Dir = OsDir;
    type File = OsFile;

    fn boot(&self) -> BootId {
        static BOOT: LazyLock<BootId> = LazyLock::new(|| {
            let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
            let number = u128::from_str_radix(&text.trim().replace('-', ""), 16);
            // Where it can't be told, all runs of the kernel count as one.
            number.unwrap_or_default().to_be_bytes()
        });
        *BOOT
    }

    async fn open_root(&self, path: &Path) -> io::Result<OsDir> {
        let fd = openat(CWD, path, dir::OPEN_DIR, Mode::empty())?;
        Ok(OsDir::new(fd, self.walks.clone()))
    }

    async fn offload<T, J>(&self, job: J) -> Result<T, JobLost>
    where
        T: Send + 'static,
        J: Future<Output = T> + Send + 'static,
    {
        let run = move || {
            job.now_or_never()
                .expect("a job awaits nothing but file system calls, which never pend here")
        };
        tokio::task::spawn_blocking(run).await.map_err(|_| JobLost)
    }
}

/// Raises this process's limit of open files to what it may have at most, makes room for the first few thousand, and tells the
/// limit that holds now. What can't be raised stays.
///
/// To be called before there are threads: the kernel's table of descriptors grows by doubling, and once threads share it each
/// time halts all of them that open files for 10 ms or more (it waits for RCU).
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised,
        Err(_) => limit,
    };
    let most = now.current.unwrap_or(u64::MAX);
    grow_table(most.min(ROOM_FOR_FILES));
    most
}

/// For how many descriptors room is made: those of a session with the default limits, and their directories. 8 bytes each.
const ROOM_FOR_FILES: u64 = 8192;

/// Makes the table of descriptors hold `count` of them. What can't be had is made when it is needed.
fn grow_table(count: u64) {
    if let Ok(any) = openat(CWD, "/", dir::OPEN_DIR, Mode::empty()) {
        drop(fcntl_dupfd_cloexec(any, count as i32 - 1));
    }
}

/// Flags of every open.
const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW);

#[allow(
    clippy::unnecessary_cast,
    reason = "the types of a stat differ from architecture to architecture"
)]
fn metadata(stat: &Stat) -> Metadata {
    Metadata {
        kind: match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            _ => Kind::Special,
        },
        version: Version {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size as u64,
            mtime: timestamp(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime: timestamp(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        },
        mode: stat.st_mode & 0o7777,
        links: stat.st_nlink as u64,
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

fn timestamp(secs: i64, nanos: u64) -> Timestamp {
    Timestamp {
        secs,
        nanos: nanos as u32,
    }
}

/// Access and modification time, both `mtime`. `EINVAL` for nanoseconds that are none: some such
/// numbers mean "now" or "leave it" to the kernel.
fn times(mtime: Timestamp) -> io::Result<Timestamps> {
    if mtime.nanos >= 1_000_000_000 {
        return Err(rustix::io::Errno::INVAL.into());
    }
    let time = Timespec {
        tv_sec: mtime.secs,
        tv_nsec: mtime.nanos.into(),
    };
    Ok(Timestamps {
        last_access: time,
        last_modification: time,
    })
}

fn set_meta(fd: BorrowedFd<'_>, mode: u32, mtime: Timestamp) -> io::Result<()> {
    let times = times(mtime)?;
    fchmod(fd, mode_bits(mode))?;
    Ok(futimens(fd, &times)?)
}

/// Never waits.
fn lock_operation(lock: Lock) -> FlockOperation {
    match lock {
        Lock::Shared => FlockOperation::NonBlockingLockShared,
        Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
    }
}

/// Permission bits as system calls take them.
fn mode_bits(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

#[cfg(test)]
mod tests;
