//! Where files are, as written on a command line.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::model::{Escaped, RelPath};

/// The port of `realized`.
pub const DEFAULT_PORT: u16 = 9771;

/// A SRC or DST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A path of this host.
    Local(PathBuf),
    /// A directory that `realized` serves on a host, or something below it.
    Remote {
        /// A name or an address.
        host: String,
        /// Its port, where one is written.
        port: Option<u16>,
        /// The directory's configured name.
        dir: String,
        /// What below it; the root for the directory itself.
        below: RelPath,
    },
}

/// Why text is no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLocation {
    /// Nothing at all.
    #[error("an empty path names nothing; the current directory is \".\"")]
    Empty,
    /// `HOST:PATH`, as rsync and scp write it.
    #[error("{0} has a colon: for a directory served on a host write HOST::DIR, for a local path begin it with ./")]
    SingleColon(String),
    /// A remote location whose parts are wrong.
    #[error("{0}: {1}; write HOST::DIR, HOST:PORT::DIR/SUB, [ADDRESS]:PORT::DIR or realize://HOST:PORT/DIR/SUB")]
    BadRemote(String, &'static str),
}

impl Location {
    /// Reads `HOST[:PORT]::DIR[/SUB]`, `realize://HOST[:PORT]/DIR[/SUB]`, or a local path. A colon before the first slash
    /// that is not of the first form is refused: it would be a host for rsync.
    pub fn parse(text: &OsStr) -> Result<Self, BadLocation> {
        let bytes = text.as_bytes();
        let shown = || Escaped(bytes).to_string();
        if bytes.is_empty() {
            return Err(BadLocation::Empty);
        }
        let bad = |why| BadLocation::BadRemote(shown(), why);
        if let Some(rest) = bytes.strip_prefix(b"realize://") {
            let (authority, path) = split_at_first(rest, b"/").ok_or(bad("no directory is named"))?;
            return remote(authority, path).map_err(bad);
        }
        let first_slash = bytes.iter().position(|byte| *byte == b'/').unwrap_or(bytes.len());
        // An address in brackets has colons of its own.
        let colons_from = if bytes.starts_with(b"[") {
            bytes
                .iter()
                .position(|byte| *byte == b']')
                .map_or(0, |bracket| bracket + 1)
        } else {
            0
        };
        match bytes
            .get(colons_from..first_slash)
            .filter(|front| front.contains(&b':'))
        {
            None => Ok(Self::Local(text.into())),
            Some(front) => match split_at_first(front, b"::") {
                Some((before, _)) => {
                    let authority_bytes = colons_from + before.len();
                    remote(&bytes[..authority_bytes], &bytes[authority_bytes + 2..]).map_err(bad)
                }
                None => Err(BadLocation::SingleColon(shown())),
            },
        }
    }

    /// Reads `HOST[:PORT]` or `realize://HOST[:PORT]`, which name no directory.
    pub fn parse_host(text: &OsStr) -> Result<(String, Option<u16>), BadLocation> {
        let bytes = text.as_bytes();
        let authority = bytes.strip_prefix(b"realize://").unwrap_or(bytes);
        let authority = authority.strip_suffix(b"/").unwrap_or(authority);
        let why = match std::str::from_utf8(authority) {
            Ok(text) if text.contains('/') => "a host has no slash in its name; a directory on it is HOST::DIR",
            Ok(text) => match split_authority(text) {
                Ok(host) => return Ok(host),
                Err(why) => why,
            },
            Err(_) => "the host is not UTF-8",
        };
        Err(BadLocation::BadRemote(Escaped(bytes).to_string(), why))
    }

    /// The path, of a local one.
    pub fn as_local(&self) -> Option<&Path> {
        match self {
            Self::Local(path) => Some(path),
            Self::Remote { .. } => None,
        }
    }
}

fn remote(authority: &[u8], path: &[u8]) -> Result<Location, &'static str> {
    let authority = std::str::from_utf8(authority).map_err(|_| "the host is not UTF-8")?;
    let (host, port) = split_authority(authority)?;
    let path = path.strip_suffix(b"/").filter(|path| !path.is_empty()).unwrap_or(path);
    let (dir, below) = split_at_first(path, b"/").unwrap_or((path, b""));
    if dir.is_empty() && !path.is_empty() {
        return Err("after the colons comes the name that the directory has in realized.toml there, not a path");
    }
    if dir.is_empty() {
        return Err("no directory is named");
    }
    let dir = String::from_utf8(dir.to_vec()).map_err(|_| "the directory's name is not UTF-8")?;
    let below = RelPath::new(below).map_err(|_| "the path below the directory has an empty part, \".\" or \"..\"")?;
    Ok(Location::Remote { host, port, dir, below })
}

/// The host and the port of `HOST[:PORT]` or `[ADDRESS][:PORT]`, or what is wrong with it.
pub(crate) fn split_authority(authority: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
            address
                .parse::<std::net::Ipv6Addr>()
                .map_err(|_| "not an IPv6 address in the brackets")?;
            match rest.strip_prefix(':') {
                None if !rest.is_empty() => return Err("something stands between the bracket and the port"),
                port => (address, port),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() || host.contains(['@', ' ']) {
        return Err("no host is named (there are no users here: a key says who you are)");
    }
    let port = port.map(|port| {
        let port = port.parse().ok().filter(|port| *port != 0);
        port.ok_or("the port is not a number from 1 to 65535")
    });
    Ok((host.into(), port.transpose()?))
}

fn split_at_first<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(separator.len()).position(|window| window == separator)?;
    Some((&bytes[..at], &bytes[at + separator.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, BadLocation> {
        Location::parse(OsStr::new(text))
    }

    fn remote(host: &str, port: Option<u16>, dir: &str, below: &str) -> Result<Location, BadLocation> {
        let below = RelPath::new(below).unwrap();
        Ok(Location::Remote {
            host: host.into(),
            port,
            dir: dir.into(),
            below,
        })
    }

    #[test]
    fn local_paths_are_taken_as_they_are() {
        for path in ["a", "./a:b", "/a:b/c::d", "a/b::c", ".", "[a]", "[a]b"] {
            assert_eq!(parse(path), Ok(Location::Local(path.into())), "{path}");
        }
    }

    #[test]
    fn hosts_are_read_in_both_spellings() {
        assert_eq!(parse("nas::films"), remote("nas", None, "films", ""));
        assert_eq!(parse("nas:1::films/a/b/"), remote("nas", Some(1), "films", "a/b"));
        assert_eq!(parse("[::1]:80::films"), remote("::1", Some(80), "films", ""));
        assert_eq!(parse("[fe80::1]::films/x"), remote("fe80::1", None, "films", "x"));
        assert_eq!(parse("realize://nas/films"), remote("nas", None, "films", ""));
        assert_eq!(
            parse("realize://[::1]:80/films/a"),
            remote("::1", Some(80), "films", "a")
        );
    }

    #[test]
    fn hosts_without_a_directory_are_read_too() {
        let host = |text: &str| Location::parse_host(OsStr::new(text));
        assert_eq!(host("nas"), Ok(("nas".into(), None)));
        assert_eq!(host("nas:80"), Ok(("nas".into(), Some(80))));
        assert_eq!(host("[::1]:80"), Ok(("::1".into(), Some(80))));
        assert_eq!(host("realize://nas/"), Ok(("nas".into(), None)));
        for text in ["nas:archive", "nas/archive", "me@nas", "", "/srv"] {
            let error = host(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?}: ")), "{error}");
        }
        let path = parse("nas::/srv/archive").unwrap_err().to_string();
        assert!(path.contains("not a path"), "{path}");
    }

    #[test]
    fn rsync_spelling_is_refused_with_both_ways_out() {
        for text in ["nas:films", "nas:/films", "c:x", ":a"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("HOST::DIR") && error.contains("./"), "{text}: {error}");
        }
    }

    #[test]
    fn broken_hosts_are_refused() {
        let broken = [
            "nas::",
            "::films",
            "nas:0::a",
            "nas:99999::a",
            "nas:x::a",
            "nas::a/../b",
            "nas::a//b",
        ];
        for text in broken
            .into_iter()
            .chain(["me@nas::a", "realize://nas", "[::1::a", "[x]::a", "[::1]80::a"])
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
