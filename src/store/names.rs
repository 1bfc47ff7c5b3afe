//! The names that realize keeps for itself beside the files it moves. None is ever listed or moved.
//!
//! | name | where | what |
//! |---|---|---|
//! | `.NAME.realize-part` | target | a file that is still arriving |
//! | `.NAME.realize-link` | target | a symbolic link that is still arriving |
//! | `..NAME.realize-part.realize-probe` | target | an empty file that told whose the files are that a run makes |
//! | `.NAME.realize-swap-VERSION` | target | a file while it replaces an older one |
//! | `.NAME.realize-gone` | source | a file about to be deleted |
//! | `.realize-gone/NAME` | source | the same, where NAME is too long for the suffix |
//! | `.realize-token.RUN.END` | either root | the mark of a run |
//! | `.realize-unsynced.BOOT` | target | a sync of this directory has failed since the kernel started |
//!
//! Where NAME is too long for a suffix, the partial, the link, the probe and the swap have a hash in its place.

use crate::{
    fs::BootId,
    model::{NAME_BYTES_MAX, Name, Version},
    service::RunId,
};

const PART: &[u8] = b".realize-part";
const LINK: &[u8] = b".realize-link";
const PROBE: &[u8] = b".realize-probe";
const SWAP: &[u8] = b".realize-swap-";
const GONE: &[u8] = b".realize-gone";
const TOKEN: &[u8] = b".realize-token.";
const UNSYNCED: &[u8] = b".realize-unsynced.";

/// Length in bytes of what follows [`SWAP`].
const VERSION_BYTES: usize = 16;

/// What a name is to realize.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameKind {
    /// Nothing: the user's.
    Plain,
    /// A partial.
    Partial,
    /// What told whose the files of a run are: of no use any more.
    Probe,
    /// A file that was being swapped in or out.
    Swap(Swap),
    /// A source set aside for deletion; its name when it carries it.
    Gone(Name),
    /// The directory of sources set aside whose names are too long.
    GoneDir,
    /// The mark of a run.
    Token,
    /// Names of the directory may not be on the disk.
    Unsynced,
}

/// What the name of a swapped file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// The final name; `None` when it was too long to be carried: then [`is_of`](Self::is_of) tells which it is.
    pub name: Option<Name>,
    /// What stands for the final name.
    stem: Vec<u8>,
    /// Tells what was to be replaced.
    pub replaced: Tag,
}

impl Swap {
    /// Whether it is that of `name`.
    pub fn is_of(&self, name: &Name) -> bool {
        self.stem == stem(name, SWAP.len() + VERSION_BYTES)
    }
}

/// What `name` is.
pub fn classify(name: &Name) -> NameKind {
    let bytes = name.as_bytes();
    if bytes == GONE {
        return NameKind::GoneDir;
    }
    if bytes.strip_prefix(TOKEN).is_some_and(is_run_and_end) {
        return NameKind::Token;
    }
    if bytes.strip_prefix(UNSYNCED).is_some_and(is_hex_number) {
        return NameKind::Unsynced;
    }
    let Some(inner) = bytes.strip_prefix(b".") else {
        return NameKind::Plain;
    };
    let carried = |bytes: &[u8]| Name::new(bytes).ok();
    if let Some(stem) = inner.strip_suffix(PART).or(inner.strip_suffix(LINK)) {
        return if stem.is_empty() {
            NameKind::Plain
        } else {
            NameKind::Partial
        };
    }
    if let Some(stem) = inner.strip_suffix(PROBE) {
        // Of no other names is one made.
        let of_partial = stem.first() == Some(&b'.') && stem.ends_with(PART) && stem.len() > 1 + PART.len();
        let hashed = stem.len() == HASHED_BYTES && stem.starts_with(HASHED);
        return if of_partial || hashed {
            NameKind::Probe
        } else {
            NameKind::Plain
        };
    }
    if let Some(stem) = inner.strip_suffix(GONE) {
        return carried(stem).map_or(NameKind::Plain, NameKind::Gone);
    }
    if inner.len() > VERSION_BYTES {
        let (front, replaced) = inner.split_at(inner.len() - VERSION_BYTES);
        if let Some(stem) = front.strip_suffix(SWAP)
            && let Ok(replaced) = Tag::try_from(replaced)
            && replaced.iter().all(u8::is_ascii_hexdigit)
            && !stem.is_empty()
        {
            let hashed = stem.len() == HASHED_BYTES && stem.starts_with(HASHED);
            return NameKind::Swap(Swap {
                name: if hashed { None } else { carried(stem) },
                stem: stem.to_vec(),
                replaced,
            });
        }
    }
    NameKind::Plain
}

/// The name of the partial of `name`.
pub fn partial(name: &Name) -> Name {
    dressed(name, PART)
}

/// The name of the partial of a link. Not that of a file: a link can't be locked, so whoever finds one may remove it.
pub fn link_partial(name: &Name) -> Name {
    dressed(name, LINK)
}

/// The name of the probe that is made because of the partial `part`.
pub fn probe(part: &Name) -> Name {
    dressed(part, PROBE)
}

/// The name of a file or link while it replaces what has `tag` under `name`.
pub fn swap(name: &Name, tag: &Tag) -> Name {
    dressed(name, &[SWAP, tag.as_slice()].concat())
}

/// The `nth` name for what was found where the partial of `name` should have been, and may be somebody's: its tag is that of nothing, so no run
/// takes it for its own.
pub fn swapped_out(name: &Name, nth: u8) -> Name {
    let mut tag = [b'0'; VERSION_BYTES];
    tag[VERSION_BYTES - 2..].copy_from_slice(format!("{nth:02x}").as_bytes());
    swap(name, &tag)
}

/// The name for `name` while it is deleted; `None` when it is too long and goes to [`gone_dir`].
pub fn gone(name: &Name) -> Option<Name> {
    let fits = name.as_bytes().len() + 1 + GONE.len() <= NAME_BYTES_MAX;
    fits.then(|| dressed(name, GONE))
}

/// The directory for sources whose names are too long for a suffix.
pub fn gone_dir() -> Name {
    valid(GONE.to_vec())
}

/// The mark of a run at one of its ends.
pub fn token(run: RunId, at_source: bool) -> Name {
    let end = if at_source { "source" } else { "target" };
    valid([TOKEN, format!("{run}.{end}").as_bytes()].concat())
}

/// Tells that a sync of the directory it is in has failed in this run of the kernel.
pub fn unsynced(boot: &BootId) -> Name {
    valid([UNSYNCED, format!("{:032x}", u128::from_be_bytes(*boot)).as_bytes()].concat())
}

/// Sixteen characters for what of a file or link survives a rename and a reboot.
pub type Tag = [u8; VERSION_BYTES];

/// The tag of a file: inode, size, mtime. (A device may have another number after a reboot.)
pub fn version_tag(version: &Version) -> Tag {
    let mut hasher = blake3::Hasher::new();
    for number in [
        version.ino,
        version.size,
        version.mtime.secs as u64,
        version.mtime.nanos.into(),
    ] {
        hasher.update(&number.to_le_bytes());
    }
    tag(&hasher)
}

/// The tag of a link: inode and text. (Nothing makes its times durable before those of the whole file system.)
pub fn link_tag(version: &Version, text: &[u8]) -> Tag {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&version.ino.to_le_bytes()).update(text);
    tag(&hasher)
}

fn tag(hasher: &blake3::Hasher) -> Tag {
    let mut tag = Tag::default();
    tag.copy_from_slice(&hasher.finalize().to_hex().as_bytes()[..VERSION_BYTES]);
    tag
}

/// Whether `rest` of a token's name is what [`token`] makes: anything else is a user's file.
fn is_run_and_end(rest: &[u8]) -> bool {
    let run = rest.strip_suffix(b".source").or(rest.strip_suffix(b".target"));
    run.is_some_and(is_hex_number)
}

/// Whether `text` is sixteen bytes as they are written in names.
fn is_hex_number(text: &[u8]) -> bool {
    text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit)
}

const HASHED: &[u8] = b"realize-long-";
const HASHED_BYTES: usize = HASHED.len() + 64;

fn dressed(name: &Name, suffix: &[u8]) -> Name {
    valid([b".", stem(name, suffix.len()).as_slice(), suffix].concat())
}

/// What stands for `name` before a suffix: itself, or its hash where it is too long.
fn stem(name: &Name, suffix_bytes: usize) -> Vec<u8> {
    if name.as_bytes().len() + 1 + suffix_bytes <= NAME_BYTES_MAX {
        name.as_bytes().to_vec()
    } else {
        [HASHED, blake3::hash(name.as_bytes()).to_hex().as_bytes()].concat()
    }
}

fn valid(bytes: Vec<u8>) -> Name {
    Name::new(bytes).unwrap_or_else(|error| unreachable!("made of a name and a short suffix: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use proptest::prelude::*;

    fn name(bytes: &[u8]) -> Name {
        Name::new(bytes).unwrap()
    }

    fn version() -> Version {
        let mtime = Timestamp { secs: -5, nanos: 7 };
        Version {
            dev: 1,
            ino: 2,
            size: 3,
            mtime,
            ctime: mtime,
        }
    }

    proptest! {
        #[test]
        fn own_names_are_told_from_any_name(bytes in prop::collection::vec(any::<u8>(), 1..=255)) {
            if let Ok(name) = Name::new(bytes) {
                prop_assert_eq!(classify(&partial(&name)), NameKind::Partial);
                prop_assert_eq!(classify(&link_partial(&name)), NameKind::Partial);
                prop_assert_eq!(classify(&probe(&partial(&name))), NameKind::Probe);
                let NameKind::Swap(swap) = classify(&swap(&name, &version_tag(&version()))) else { panic!("not a swap") };
                prop_assert!(swap.is_of(&name));
                prop_assert!(swap.name.is_none_or(|carried| carried == name));
                prop_assert_eq!(swap.replaced, version_tag(&version()));
                match gone(&name) {
                    Some(gone) => prop_assert_eq!(classify(&gone), NameKind::Gone(name)),
                    None => prop_assert!(name.as_bytes().len() > 241),
                }
            }
        }
    }

    #[test]
    fn names_of_users_are_plain() {
        for plain in [
            &b"a"[..],
            b".a",
            b"realize-part",
            b"a.realize-part",
            b".realize-part",
            b".a.realize-swap-x",
            b".realize-token.a.source",
        ] {
            assert_eq!(classify(&name(plain)), NameKind::Plain, "{}", name(plain));
        }
        assert_eq!(classify(&token(RunId([1; 16]), true)), NameKind::Token);
        assert_eq!(classify(&gone_dir()), NameKind::GoneDir);
        assert_eq!(classify(&unsynced(&[7; 16])), NameKind::Unsynced);
    }

    #[test]
    fn two_long_names_have_two_partials() {
        let (a, b) = (name(&[b'a'; 255]), name(&[b'b'; 255]));
        assert_ne!(partial(&a), partial(&b));
        assert!(partial(&a).as_bytes().len() <= NAME_BYTES_MAX);
    }
}
