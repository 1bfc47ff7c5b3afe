//! Where a directory lies, whatever mounts lead to it: read from `/proc/self`.

#![expect(clippy::disallowed_methods, reason = "the seam itself")]

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    path::PathBuf,
};

use rustix::{
    fs::{CWD, fstat, makedev, readlinkat, stat},
    io::Errno,
};

use crate::{
    fs::Place,
    model::{BadPath, RelPath},
};

/// The place of the directory, then those of the mount points above it, innermost first. An error where `/proc`
/// is not to be had, or the directory is removed or out of this process's sight.
pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Vec<Place>> {
    let path = path(fd)?;
    let mount = mount_id(fd)?;
    let mounts = parse_mounts(&std::fs::read("/proc/self/mountinfo")?);
    Ok(locate(&mounts, mount, &path)?)
}

/// The device of the mounted file system: what `/proc` calls it, where a stat may tell one of several.
pub(super) fn mount_device(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mount = mount_id(fd)?;
    let mounts = parse_mounts(&std::fs::read("/proc/self/mountinfo")?);
    Ok(mounts.get(&mount).ok_or(Errno::OPNOTSUPP)?.device)
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    parent: u64,
    device: u64,
    /// Which directory of the file system is mounted: `/` or `/a/b`.
    root: Vec<u8>,
    /// Where it is mounted.
    point: Vec<u8>,
}

/// The host path of the directory.
fn path(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let path = readlinkat(CWD, link, Vec::new())?.into_bytes();
    if !path.starts_with(b"/") {
        // "(unreachable)/…": below no root of this process.
        return Err(Errno::OPNOTSUPP.into());
    }
    // What the kernel adds to the path of a removed directory may also be the end of a name.
    if path.ends_with(b" (deleted)") {
        let (held, named) = (fstat(fd)?, stat(&path)?);
        if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino) {
            return Err(Errno::NOENT.into());
        }
    }
    Ok(path)
}

fn mount_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let info = std::fs::read(PathBuf::from(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())))?;
    let id = info
        .split(|byte| *byte == b'\n')
        .find_map(|line| number(line.strip_prefix(b"mnt_id:")?.trim_ascii()));
    Ok(id.ok_or(Errno::OPNOTSUPP)?)
}

/// The mounts by number. What is not understood is left out.
fn parse_mounts(mountinfo: &[u8]) -> BTreeMap<u64, Mount> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse_mount).collect()
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw`
fn parse_mount(line: &[u8]) -> Option<(u64, Mount)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let mut device = fields.next()?.split(|byte| *byte == b':');
    let (major, minor) = (number(device.next()?)?, number(device.next()?)?);
    let mount = Mount {
        parent,
        device: makedev(major.try_into().ok()?, minor.try_into().ok()?),
        root: unescape(fields.next()?),
        point: unescape(fields.next()?),
    };
    Some((id, mount))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Undoes `\040` for a space and the like.
fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    while let Some((&first, rest)) = text.split_first() {
        match (first, rest) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                text = rest;
            }
            _ => {
                bytes.push(first);
                text = rest;
            }
        }
    }
    bytes
}

/// The places of the directory at `path` of the host, which is in mount number `id`.
fn locate(mounts: &BTreeMap<u64, Mount>, id: u64, path: &[u8]) -> Result<Vec<Place>, Errno> {
    let mut mount = mounts.get(&id).ok_or(Errno::OPNOTSUPP)?;
    let mut path = path;
    let mut places = Vec::new();
    // Each mount is met at most once, whatever the table says.
    for _ in 0..mounts.len() {
        let below = strip(path, &mount.point).ok_or(Errno::OPNOTSUPP)?;
        places.push(Place {
            device: mount.device,
            path: join(&mount.root, below)?,
        });
        match mounts.get(&mount.parent) {
            Some(parent) if !std::ptr::eq(parent, mount) => {
                path = &mount.point;
                mount = parent;
            }
            // The first mount of all, or the outermost in sight.
            _ => break,
        }
    }
    Ok(places)
}

/// What follows the mount point in `path`, without a slash in front.
fn strip<'a>(path: &'a [u8], point: &[u8]) -> Option<&'a [u8]> {
    let point = point.strip_suffix(b"/").unwrap_or(point);
    match path.strip_prefix(point)? {
        [] => Some(b""),
        [b'/', below @ ..] => Some(below),
        _ => None,
    }
}

/// `root` begins with a slash; a removed one ends in `//deleted`, which is no path.
fn join(root: &[u8], below: &[u8]) -> Result<RelPath, Errno> {
    let mut path = root.strip_prefix(b"/").ok_or(Errno::OPNOTSUPP)?.to_vec();
    if !path.is_empty() && !below.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(below);
    RelPath::new(path).map_err(|bad| match bad {
        BadPath::TooLong => Errno::NAMETOOLONG,
        _ => Errno::OPNOTSUPP,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"\
        1 1 0:2 / / rw - rootfs rootfs rw\n\
        21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        30 21 0:27 / /dev/shm rw - tmpfs tmpfs rw\n\
        31 30 254:0 /srv/a\\040b /dev/shm/in\\134side\\011\\012 rw - ext4 /dev/root rw\n\
        32 21 0:40 /@home /home rw - btrfs /dev/sdb rw\n\
        33 21 254:0 /old//deleted /gone rw - ext4 /dev/root rw\n\
        not a mount\n";

    fn places(id: u64, path: &[u8]) -> Result<Vec<(u64, Vec<u8>)>, Errno> {
        let places = locate(&parse_mounts(MOUNTS), id, path)?;
        Ok(places
            .into_iter()
            .map(|place| (place.device, place.path.into()))
            .collect())
    }

    #[test]
    fn a_directory_of_the_outermost_mount_has_its_path() {
        let root = makedev(254, 0);
        assert_eq!(
            places(21, b"/srv/x").unwrap(),
            [(root, b"srv/x".to_vec()), (makedev(0, 2), b"".to_vec())]
        );
        assert_eq!(places(21, b"/").unwrap()[0], (root, b"".to_vec()));
    }

    #[test]
    fn a_bind_mount_lies_where_it_comes_from_and_where_it_is_mounted() {
        let (root, shm) = (makedev(254, 0), makedev(0, 27));
        assert_eq!(
            places(31, b"/dev/shm/in\\side\t\n/x").unwrap()[..3],
            [
                (root, b"srv/a b/x".to_vec()),
                (shm, b"in\\side\t\n".to_vec()),
                (root, b"dev/shm".to_vec()),
            ]
        );
    }

    #[test]
    fn a_mount_of_a_part_keeps_its_root() {
        assert_eq!(places(32, b"/home").unwrap()[0], (makedev(0, 40), b"@home".to_vec()));
        assert_eq!(
            places(32, b"/home/me").unwrap()[0],
            (makedev(0, 40), b"@home/me".to_vec())
        );
    }

    #[test]
    fn what_cannot_be_placed_is_an_error() {
        assert_eq!(places(99, b"/"), Err(Errno::OPNOTSUPP), "an unknown mount");
        assert_eq!(places(32, b"/homestead"), Err(Errno::OPNOTSUPP), "not below its mount");
        assert_eq!(places(33, b"/gone/x"), Err(Errno::OPNOTSUPP), "a removed root");
        let long = [b"/home".to_vec(), b"/a".repeat(2047)].concat();
        assert_eq!(places(32, &long), Err(Errno::NAMETOOLONG));
    }

    #[test]
    fn a_table_that_goes_round_ends() {
        let mounts = parse_mounts(b"1 2 0:1 / /a rw - x x rw\n2 1 0:2 / /a rw - x x rw\n");
        assert_eq!(locate(&mounts, 1, b"/a/b").unwrap().len(), 2);
    }

    #[test]
    fn only_octal_escapes_are_undone() {
        assert_eq!(unescape(b"a\\040b\\0\\09x\\400\\377"), b"a b\\0\\09x\\400\xff");
    }
}
