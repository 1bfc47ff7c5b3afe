//! Leases, given up the moment somebody wants to write, or to open what is written here.
//!
//! The kernel holds whoever that is back until the lease is given up (45 s at most), and tells the holder by
//! a signal. Here that is SIGURG: ignored by whoever does not wait for it, never queued twice, never replaced by the
//! deadly SIGIO. One thread waits for it and gives up every lease that is being broken.

#![expect(unsafe_code, reason = "no safe wrapper knows these commands of fcntl")]

use std::{
    collections::BTreeMap,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
};

use libc::{F_GETLEASE, F_RDLCK, F_SETLEASE, F_SETOWN, F_UNLCK, F_WRLCK, SIGURG, c_int};
use signal_hook::iterator::Signals;

static LEASES: Mutex<Leases> = Mutex::new(Leases {
    held: BTreeMap::new(),
    watched: false,
});

/// This process, asked for once: signals of leases go to it.
static PROCESS: LazyLock<c_int> = LazyLock::new(|| rustix::process::getpid().as_raw_nonzero().get());

/// `F_SETSIG`, which the libc crate leaves out for Linux.
const F_SETSIG: c_int = 10;

struct Leases {
    /// Descriptors with a lease, and of which kind. None of them closes while its number is in here, so each number is the file's.
    held: BTreeMap<RawFd, Kind>,
    /// Whether the thread runs.
    watched: bool,
}

/// What a lease keeps others from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// To write: the descriptor is open for reading.
    Read,
    /// To open it at all: the descriptor is open for writing.
    Write,
}

impl Kind {
    fn code(self) -> c_int {
        match self {
            Self::Read => F_RDLCK,
            Self::Write => F_WRLCK,
        }
    }
}

/// Takes a lease on the file and has it watched until [`forget`].
pub(super) fn take(fd: BorrowedFd<'_>, kind: Kind) -> io::Result<()> {
    let fd = fd.as_raw_fd();
    // The watcher may give up an earlier lease of this descriptor, and with it whom to signal and how, only before or after all of this;
    // nor may it look between the lease and its registration.
    let mut leases = leases();
    leases.watch()?;
    leases.give_up_if_broken(fd);
    fcntl(fd, F_SETSIG, SIGURG)?;
    // The process: by itself the kernel would pick the calling thread, which may be gone when the writer comes.
    fcntl(fd, F_SETOWN, *PROCESS)?;
    fcntl(fd, F_SETLEASE, kind.code())?;
    leases.held.insert(fd, kind);
    Ok(())
}

/// Whether the lease is held and nobody waits for its end.
pub(super) fn is_held(fd: BorrowedFd<'_>, kind: Kind) -> io::Result<bool> {
    holds(fd.as_raw_fd(), kind)
}

/// Must be called before a descriptor with a lease closes, which ends the lease.
pub(super) fn forget(fd: BorrowedFd<'_>) {
    leases().held.remove(&fd.as_raw_fd());
}

fn leases() -> MutexGuard<'static, Leases> {
    // No step leaves the set half changed.
    LEASES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leases {
    /// Starts the thread unless it runs.
    fn watch(&mut self) -> io::Result<()> {
        if self.watched {
            return Ok(());
        }
        let mut signals = Signals::new([SIGURG])?;
        thread::Builder::new().name("leases".into()).spawn(move || {
            receive_signal();
            for _ in signals.forever() {
                leases().give_up_broken();
            }
        })?;
        self.watched = true;
        Ok(())
    }

    fn give_up_broken(&mut self) {
        self.held.retain(|&fd, kind| stays(fd, *kind));
    }

    fn give_up_if_broken(&mut self, fd: RawFd) {
        if self.held.get(&fd).is_some_and(|kind| !stays(fd, *kind)) {
            self.held.remove(&fd);
        }
    }
}

/// Whether the lease is held still; one that is being broken is given up.
fn stays(fd: RawFd, kind: Kind) -> bool {
    let is_held = holds(fd, kind).unwrap_or(false);
    if !is_held {
        // There is no lease left to give up when the kernel's own limit was faster.
        fcntl(fd, F_SETLEASE, F_UNLCK).ok();
    }
    is_held
}

/// A lease that is being broken counts as what it is being broken to: none, or a lesser one.
fn holds(fd: RawFd, kind: Kind) -> io::Result<bool> {
    Ok(fcntl(fd, F_GETLEASE, 0)? == kind.code())
}

fn fcntl(fd: RawFd, command: c_int, argument: c_int) -> io::Result<c_int> {
    // SAFETY: all commands used here take one int or nothing and touch no memory of ours. The descriptor is borrowed
    // by the caller or in the set of held leases, so it is open and the right one.
    match unsafe { libc::fcntl(fd, command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// Unblocks the signal in this thread: a parent may have left it blocked.
fn receive_signal() {
    // SAFETY: a zeroed signal set is a valid one to initialise; all pointers are to it or null, as allowed.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, SIGURG);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use futures::FutureExt;

    use super::*;
    use crate::fs::{
        File,
        os::{OsFile, metadata, raise_open_files},
    };

    #[test]
    fn a_closed_descriptor_is_not_watched() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let read_only = std::fs::File::open(&path).unwrap();
        // The highest number there is: no other test meets it.
        let number = raise_open_files().min(1 << 20) as RawFd - 1;
        let fd = rustix::io::fcntl_dupfd_cloexec(read_only.as_fd(), number).unwrap();
        drop(read_only);
        let opened = metadata(&rustix::fs::fstat(&fd).unwrap());
        let file = OsFile::new(fd, opened, None, Kind::Read);
        file.lease().now_or_never().unwrap().unwrap();
        assert!(leases().held.contains_key(&number));
        drop(file);
        assert!(!leases().held.contains_key(&number));
    }
}
