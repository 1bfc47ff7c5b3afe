//! The nouns of a move: names, paths, versions, digests, entries.
//!
//! Plain data, checked where it is made: a [`RelPath`] cannot leave its directory and a [`Name`]
//! is one component, so nothing that holds one has to ask again. No `async`, no operating system.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest file name in bytes that the file systems of Linux take (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// Longest path below a root in bytes (`PATH_MAX` less its NUL).
pub const PATH_BYTES_MAX: usize = 4095;

/// Why bytes are not a name or a path below a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// No bytes at all, or nothing between two slashes.
    #[error("a name is empty")]
    Empty,
    /// `.` or `..`, which would name another place.
    #[error("a name is \".\" or \"..\"")]
    Dots,
    /// A slash inside a single name, or at the start of a path.
    #[error("a slash where none may be")]
    Slash,
    /// A NUL byte, which no Unix file name can hold.
    #[error("a name holds a NUL byte")]
    Nul,
    /// A name over [`NAME_BYTES_MAX`] or a path over [`PATH_BYTES_MAX`].
    #[error("a name or path is too long")]
    TooLong,
}

/// One component of a path, as bytes: not empty, no slash, no NUL, not `.` or `..`, at most
/// [`NAME_BYTES_MAX`] bytes. It need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Name(Box<[u8]>);

impl Name {
    /// Checks `bytes` and makes a name of them.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, BadPath> {
        let bytes = bytes.into();
        match bytes.as_slice() {
            [] => Err(BadPath::Empty),
            b"." | b".." => Err(BadPath::Dots),
            name if name.len() > NAME_BYTES_MAX => Err(BadPath::TooLong),
            name if name.contains(&b'/') => Err(BadPath::Slash),
            name if name.contains(&0) => Err(BadPath::Nul),
            _ => Ok(Self(bytes.into_boxed_slice())),
        }
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = BadPath;
    fn try_from(bytes: Vec<u8>) -> Result<Self, BadPath> {
        Self::new(bytes)
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Self {
        name.0.into_vec()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.0))
    }
}

/// A path below a root: zero or more [`Name`]s. The empty path is the root itself.
///
/// Ordered component by component (a slash sorts below every other byte), which is the order in
/// which a sorted walk meets the entries: a directory, then all that is below it, then its next
/// sibling.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The root itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks `bytes`, components separated by single slashes, and makes a path of them.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, BadPath> {
        let bytes = bytes.into();
        if bytes.len() > PATH_BYTES_MAX {
            return Err(BadPath::TooLong);
        }
        if !bytes.is_empty() {
            for component in bytes.split(|byte| *byte == b'/') {
                Name::new(component)?;
            }
        }
        Ok(Self(bytes))
    }

    /// The bytes of the path, without a slash at either end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path of `name` in this directory; too long a path is an error.
    pub fn join(&self, name: &Name) -> Result<Self, BadPath> {
        if self.is_root() {
            return Ok(Self(name.as_bytes().to_vec()));
        }
        if self.0.len() + 1 + name.as_bytes().len() > PATH_BYTES_MAX {
            return Err(BadPath::TooLong);
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.as_bytes().len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name.as_bytes());
        Ok(Self(bytes))
    }

    /// The directory this path is in and its name there; `None` for the root.
    pub fn split(&self) -> Option<(Self, Name)> {
        if self.is_root() {
            return None;
        }
        let (parent, name) = match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&self.0[..0], &self.0[..]),
        };
        Some((Self(parent.to_vec()), Name(name.into())))
    }

    /// The directory this path is in; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        self.split().map(|(parent, _)| parent)
    }

    /// The components, outermost first.
    pub fn names(&self) -> impl Iterator<Item = Name> + '_ {
        self.0
            .split(|byte| *byte == b'/')
            .filter(|component| !component.is_empty())
            .map(|component| Name(component.into()))
    }

    /// Whether this path is `dir` or below it.
    pub fn is_within(&self, dir: &RelPath) -> bool {
        dir.is_root()
            || self
                .0
                .strip_prefix(dir.0.as_slice())
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // No component is empty, so the root (one empty component here) sorts first as it should.
        let is_slash = |byte: &u8| *byte == b'/';
        self.0.split(is_slash).cmp(other.0.split(is_slash))
    }
}

impl TryFrom<Vec<u8>> for RelPath {
    type Error = BadPath;
    fn try_from(bytes: Vec<u8>) -> Result<Self, BadPath> {
        Self::new(bytes)
    }
}

impl From<RelPath> for Vec<u8> {
    fn from(path: RelPath) -> Self {
        path.0
    }
}

impl From<Name> for RelPath {
    fn from(name: Name) -> Self {
        Self(name.0.into_vec())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.0))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.0))
    }
}

/// Shows bytes of a name in double quotes, with everything that could steer a terminal or a log
/// escaped: control bytes, what is not UTF-8, quotes, backslashes, and the characters that turn
/// the direction of text.
pub struct Escaped<'a>(pub &'a [u8]);

/// Whether a character could steer a terminal or a log, or turns the direction of text.
fn is_steering(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Shows a line of text, in which names are in quotes already, with everything that could steer a terminal or a log escaped.
pub struct Line<'a>(pub &'a str);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if is_steering(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if is_steering(c) || matches!(c, '"' | '\\') {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        f.write_str("\"")
    }
}

/// A point in time as file systems keep it, in seconds and nanoseconds since 1970 (UTC).
/// Seconds may be negative; nanoseconds always count forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds since 1970, rounded down.
    pub secs: i64,
    /// Nanoseconds after `secs`, below 1,000,000,000.
    pub nanos: u32,
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device: never moved.
    Special,
}

/// What tells one state of a file from another. Taken when a file is listed or opened; every later
/// call on the file carries it, and whatever differs is `changed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Device that holds the inode.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

impl Version {
    /// Whether both are the same inode.
    pub fn is_same_inode(&self, other: &Version) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    /// Whether both are the same inode with the same size and mtime. A rename changes the ctime, so
    /// this is what can be compared across one.
    pub fn same_but_ctime(&self, other: &Version) -> bool {
        (self.dev, self.ino, self.size, self.mtime) == (other.dev, other.ino, other.size, other.mtime)
    }
}

/// A BLAKE3 digest of 32 bytes: of a whole file what `b3sum` prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..8] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}

/// What of a file or directory a move does not carry. Said before the first delete that it affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Uncarried {
    /// The file has other names (hard links), which become files of their own.
    pub hard_links: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// An access control list.
    pub acl: bool,
    /// Set-user-ID or set-group-ID bits; of a file the sticky bit, too.
    pub special_bits: bool,
    /// An owner or group other than the one that new files get.
    pub owner: bool,
}

impl Uncarried {
    /// Whether there is anything at all.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// What is not carried of this or of `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            hard_links: self.hard_links || other.hard_links,
            xattrs: self.xattrs || other.xattrs,
            acl: self.acl || other.acl,
            special_bits: self.special_bits || other.special_bits,
            owner: self.owner || other.owner,
        }
    }
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is below the root.
    pub path: RelPath,
    /// What it is.
    pub kind: Kind,
    /// Which state of it was seen; size and mtime are in here.
    pub version: Version,
    /// Permission bits with set-ID and sticky, masked 07777.
    pub mode: u32,
    /// Number of names the inode has; told as 1 where a mount hides which names they are.
    pub links: u64,
    /// Owner's number.
    pub uid: u32,
    /// Group's number.
    pub gid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(bytes: &[u8]) -> RelPath {
        RelPath::new(bytes).unwrap()
    }

    #[test]
    fn paths_that_could_leave_their_root_are_refused() {
        for bad in [
            &b"/"[..],
            b"/a",
            b"a/",
            b"a//b",
            b"..",
            b"a/../b",
            b".",
            b"a/./b",
            b"a\0b",
        ] {
            assert!(RelPath::new(bad).is_err(), "{}", Escaped(bad));
        }
        assert_eq!(RelPath::new(vec![b'a'; 256]), Err(BadPath::TooLong));
        assert!(RelPath::new(vec![b'a'; 255]).is_ok());
        assert_eq!(RelPath::new("a/".repeat(2048).into_bytes()), Err(BadPath::TooLong));
    }

    #[test]
    fn hostile_paths_are_refused_when_decoded() {
        use serde::de::{IntoDeserializer, value};
        let decode = |bytes: &[u8]| {
            let bytes: value::SeqDeserializer<_, value::Error> = bytes.to_vec().into_deserializer();
            RelPath::deserialize(bytes)
        };
        assert!(decode(b"../etc").is_err());
        assert_eq!(decode(b"etc").unwrap(), path(b"etc"));
    }

    #[test]
    fn a_directory_sorts_just_before_what_is_below_it() {
        let mut paths = [
            path(b"a-b"),
            path(b"a/z"),
            path(b"a"),
            path(b"a/b/c"),
            path(b""),
            path(b"a\x01"),
        ];
        paths.sort();
        let sorted: Vec<_> = paths.iter().map(RelPath::as_bytes).collect();
        assert_eq!(sorted, [&b""[..], b"a", b"a/b/c", b"a/z", b"a\x01", b"a-b"]);
    }

    #[test]
    fn is_within_looks_at_whole_components() {
        assert!(path(b"a/b").is_within(&path(b"a")));
        assert!(path(b"a").is_within(&path(b"a")));
        assert!(path(b"a").is_within(&RelPath::root()));
        assert!(!path(b"ab").is_within(&path(b"a")));
    }

    #[test]
    fn names_are_shown_without_control_bytes() {
        let shown = Escaped(b"a\x1b[31m\xff\n\"").to_string();
        assert_eq!(shown, r#""a\u{1b}[31m\xff\n\"""#);
        assert_eq!(Escaped("é\u{202e}x".as_bytes()).to_string(), "\"é\\u{202e}x\"");
    }

    proptest! {
        #[test]
        fn split_and_join_are_inverse(names in prop::collection::vec("[a-c.]{1,3}", 1..5)) {
            let bytes = names.join("/").into_bytes();
            if let Ok(path) = RelPath::new(bytes) {
                let (parent, name) = path.split().unwrap();
                prop_assert!(path.is_within(&parent));
                prop_assert_eq!(parent.join(&name).unwrap(), path);
            }
        }
    }
}
