//! Who holds a lock, for a message: read from `/proc/locks`.

#![expect(clippy::disallowed_methods, reason = "the seam itself")]

use std::os::fd::BorrowedFd;

use rustix::fs::{fstat, makedev};

use super::place;
use crate::model::Escaped;

/// How often the list is read. The kernel gives it a page at a time and goes on by a count of locks, so that it leaves out one for each that goes meanwhile.
const READS_MAX: usize = 16;

/// `process 4711 (realize)`, or `None` when nobody holds a lock or it can't be told.
pub(super) fn of(fd: BorrowedFd<'_>) -> Option<String> {
    let stat = fstat(fd).ok()?;
    // They differ where one file system shows several devices, as btrfs does.
    let devices = [Some(stat.st_dev), place::mount_device(fd).ok()];
    let is_it = |device, inode| devices.contains(&Some(device)) && inode == stat.st_ino;
    let pid = (0..READS_MAX).find_map(|_| find(&std::fs::read("/proc/locks").ok()?, is_it))?;
    // It may be over already, or hidden.
    let command = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(describe(pid, command.trim_ascii_end()))
}

/// The process that holds the first whole-file lock for which `is_it(device, inode)`.
fn find(locks: &[u8], is_it: impl Fn(u64, u64) -> bool) -> Option<u32> {
    std::str::from_utf8(locks).ok()?.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 7182 fe:00:5341338 0 EOF; those who wait have "->" before FLOCK.
        let mut fields = line.split_ascii_whitespace().skip(1);
        if fields.next() != Some("FLOCK") {
            return None;
        }
        let pid = fields.nth(2)?.parse().ok()?;
        let mut inode = fields.next()?.split(':');
        let major = u32::from_str_radix(inode.next()?, 16).ok()?;
        let minor = u32::from_str_radix(inode.next()?, 16).ok()?;
        is_it(makedev(major, minor), inode.next()?.parse().ok()?).then_some(pid)
    })
}

fn describe(pid: u32, command: &[u8]) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:+/".contains(byte);
    if command.is_empty() {
        format!("process {pid}")
    } else if command.iter().all(is_plain) {
        format!("process {pid} ({})", command.escape_ascii())
    } else {
        format!("process {pid} ({})", Escaped(command))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::AsFd,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    const LOCKS: &[u8] = b"\
        1: POSIX  ADVISORY  WRITE 1 08:02:77 0 EOF\n\
        2: -> FLOCK  ADVISORY  WRITE 2 08:02:77 0 EOF\n\
        3: LEASE  ACTIVE    READ 3 08:02:77 0 EOF\n\
        4: FLOCK  ADVISORY  WRITE 4 08:12:77 0 EOF\n\
        nonsense\n\
        5: FLOCK  ADVISORY  READ 4711 103:1f:77 0 EOF\n";

    #[test]
    fn only_holders_of_whole_file_locks_are_found() {
        let find = |wanted| find(LOCKS, |device, inode| (device, inode) == wanted);
        assert_eq!(find((makedev(0x08, 0x02), 77)), None);
        assert_eq!(find((makedev(0x08, 0x12), 77)), Some(4));
        assert_eq!(find((makedev(0x103, 0x1f), 77)), Some(4711));
        assert_eq!(find((makedev(0x103, 0x1f), 78)), None);
    }

    #[test]
    fn a_holder_is_found_while_other_locks_come_and_go() {
        let lock = || {
            let file = tempfile::tempfile().unwrap();
            file.lock().unwrap();
            file
        };
        let held = lock();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    drop((0..200).map(|_| lock()).collect::<Vec<_>>());
                }
            });
            let found = (0..200).filter(|_| of(held.as_fd()).is_some()).count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(found, 200);
        });
    }

    #[test]
    fn odd_commands_are_escaped() {
        assert_eq!(describe(7, b"realize"), "process 7 (realize)");
        assert_eq!(describe(7, b"\x1b[2J"), "process 7 (\"\\u{1b}[2J\")");
        assert_eq!(describe(7, b""), "process 7");
    }
}
