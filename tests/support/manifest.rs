//! What is in a directory, so that two can be compared.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::Path,
};

use realize::model::Escaped;
use sha2::{Digest, Sha256};

use super::run_as_root;

/// Differences beyond this many are only counted.
const SHOWN_MAX: usize = 10;

/// Everything below a directory, by path from there. Links are not followed; the directory itself is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest(BTreeMap<Vec<u8>, Entry>);

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// Permission bits, masked 0777.
    pub mode: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, i64),
}

/// What an entry is, with what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File { bytes: u64, sha256: [u8; 32] },
    Dir,
    Link { text: Vec<u8> },
    Fifo,
    Socket,
    Device,
}

impl Manifest {
    /// What is below `dir` now. What its owner may not read is made readable for the moment, which changes nothing but
    /// its ctime. Panics when something can't be read.
    pub fn of(dir: &Path) -> Self {
        let mut entries = BTreeMap::new();
        read_dir(dir, &[], &mut entries).unwrap_or_else(|error| panic!("{dir:?}: {error}"));
        Self(entries)
    }

    /// Without the names that realize reserves for itself, and what is below them.
    pub fn without_reserved(self) -> Self {
        self.retain(|path, _| !path.split(|byte| *byte == b'/').any(is_reserved))
    }

    /// Only what `is_wanted` says.
    pub fn retain(mut self, mut is_wanted: impl FnMut(&[u8], &Entry) -> bool) -> Self {
        self.0.retain(|path, entry| is_wanted(path, entry));
        self
    }

    /// All entries, by path.
    pub fn entries(&self) -> &BTreeMap<Vec<u8>, Entry> {
        &self.0
    }

    /// The entry at `path`.
    pub fn get(&self, path: impl AsRef<[u8]>) -> Option<&Entry> {
        self.0.get(path.as_ref())
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What differs, the first ten one to a line; `None` when nothing does.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let mut paths: Vec<_> = self.0.keys().chain(other.0.keys()).collect();
        paths.sort();
        paths.dedup();
        let lines: Vec<_> = paths
            .into_iter()
            .filter_map(|path| {
                let what = match (self.0.get(path), other.0.get(path)) {
                    (Some(entry), None) => format!("only in the first: {entry}"),
                    (None, Some(entry)) => format!("only in the second: {entry}"),
                    (Some(first), Some(second)) if first != second => first.changes(second),
                    _ => return None,
                };
                Some(format!("{}: {what}", Escaped(path)))
            })
            .collect();
        let hidden = lines.len().saturating_sub(SHOWN_MAX);
        let mut text = lines[..lines.len() - hidden].join("\n");
        if hidden > 0 {
            text += &format!("\nand {hidden} more");
        }
        (!text.is_empty()).then_some(text)
    }

    /// Panics with the differences when there are any; `what` says what was compared.
    #[track_caller]
    pub fn assert_same(&self, other: &Self, what: &str) {
        if let Some(difference) = self.difference(other) {
            panic!("{what}:\n{difference}");
        }
    }
}

impl Entry {
    fn changes(&self, other: &Self) -> String {
        let mut changes = Vec::new();
        if self.kind != other.kind {
            changes.push(format!("{}, then {}", self.kind, other.kind));
        }
        if self.mode != other.mode {
            changes.push(format!("mode {:04o}, then {:04o}", self.mode, other.mode));
        }
        if self.mtime != other.mtime {
            changes.push(format!("mtime {}, then {}", Time(self.mtime), Time(other.mtime)));
        }
        changes.join("; ")
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, mode {:04o}, mtime {}", self.kind, self.mode, Time(self.mtime))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::File { bytes, sha256 } => {
                write!(f, "file of {bytes} bytes, sha256 ")?;
                sha256[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str("…")
            }
            Kind::Dir => f.write_str("directory"),
            Kind::Link { text } => write!(f, "link to {}", Escaped(text)),
            Kind::Fifo => f.write_str("FIFO"),
            Kind::Socket => f.write_str("socket"),
            Kind::Device => f.write_str("device"),
        }
    }
}

struct Time((i64, i64));

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, nanos) = self.0;
        write!(f, "{secs}+{nanos:09}")
    }
}

/// Whether realize reserves the name: `.realize-…`, or `.NAME.realize-part`, `-link`, `-probe`, `-swap` or `-gone`.
pub fn is_reserved(name: &[u8]) -> bool {
    let suffixes = [
        &b".realize-part"[..],
        b".realize-link",
        b".realize-probe",
        b".realize-swap",
        b".realize-gone",
    ];
    name.starts_with(b".realize-")
        || name.first() == Some(&b'.')
            && suffixes
                .iter()
                .any(|suffix| name.ends_with(suffix) && name.len() > suffix.len())
}

fn read_dir(dir: &Path, below: &[u8], entries: &mut BTreeMap<Vec<u8>, Entry>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let mut path = below.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(entry.file_name().as_bytes());
        let read = read_entry(&entry.path())?;
        let is_dir = read.kind == Kind::Dir;
        entries.insert(path.clone(), read);
        if is_dir {
            readable(&entry.path(), 0o500, || read_dir(&entry.path(), &path, entries))?;
        }
    }
    Ok(())
}

fn read_entry(path: &Path) -> io::Result<Entry> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let kind = if kind.is_file() {
        let (bytes, sha256) = readable(path, 0o400, || digest(path))?;
        Kind::File { bytes, sha256 }
    } else if kind.is_dir() {
        Kind::Dir
    } else if kind.is_symlink() {
        let text = fs::read_link(path)?.into_os_string();
        Kind::Link {
            text: text.as_bytes().to_vec(),
        }
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        Kind::Device
    };
    Ok(Entry {
        kind,
        mode: metadata.mode() & 0o777,
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

fn digest(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, hasher.finalize().into())),
            count => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
}

/// Does `read` while the mode of `path` has these `bits`, which root does without.
fn readable<T>(path: &Path, bits: u32, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mode = fs::symlink_metadata(path)?.mode();
    if mode & bits == bits || run_as_root() {
        return read();
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode | bits))?;
    let result = read();
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    result
}
