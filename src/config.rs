//! The configuration files: [`DaemonConfig`] of `realized`, [`HostsFile`] of `realize`. Both TOML.
//!
//! A file is read whole or refused whole: an error names the file, the line, what is wrong, and the way out. No keyword that is
//! not known is passed over, so a mistyped right is not a missing one.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use toml::Spanned;

use crate::{
    hostfile,
    keys::PublicKey,
    location::{DEFAULT_PORT, split_authority},
    model::Escaped,
    service::Rights,
    throttle::Rate,
};

/// The longest configuration file. A peer takes about 200 bytes: five thousand of them.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// The longest name of a directory or a peer.
pub const NAME_BYTES_MAX: usize = 255;

/// The longest piece of a faulty line that is shown.
const SHOWN_CHARS_MAX: usize = 100;

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {why}", shown(file))]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// The file says something that it may not.
    #[error("{}{}: {why}", shown(file), Line(*line))]
    Bad {
        /// Which file.
        file: PathBuf,
        /// Where in it, from 1, when that can be told.
        line: Option<usize>,
        /// The field, what is wrong with it and the way out.
        why: String,
    },
}

struct Line(Option<usize>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, " line {line}"))
    }
}

/// What `realized` serves, to whom, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// The addresses to listen at, at least one.
    pub listen: Vec<SocketAddr>,
    /// The file with the daemon's secret key.
    pub key: PathBuf,
    /// What is served, by the name that peers use.
    pub directories: BTreeMap<String, Directory>,
    /// Who may connect.
    pub peers: BTreeMap<PublicKey, Peer>,
    /// What is logged.
    pub log_level: LogLevel,
}

/// How much is logged: that and what matters more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What does not work.
    Error,
    /// Who was not let in, and whose connection was lost.
    Warn,
    /// Who comes and goes.
    #[default]
    Info,
}

/// A directory that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Where it is: absolute, without `..`.
    pub path: PathBuf,
    /// Whether moves into it count as done where the file system cannot make a name durable.
    pub accept_unsynced: bool,
}

/// A host that may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What the configuration calls it.
    pub name: String,
    /// What it may do, by directory; nothing in those that are not named.
    pub rights: BTreeMap<String, Rights>,
    /// What is sent to it at most, whatever it asks for.
    pub throttle: Option<Rate>,
}

impl DaemonConfig {
    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&load(path)?, path)
    }

    /// Reads `text`, the content of `file`; a relative path of the key is taken from the directory that `file` is in.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let source = Source { text, file };
        let raw: RawDaemon = source.parse()?;
        let listen = match &raw.listen {
            None => vec![SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, DEFAULT_PORT))],
            Some(raw) => listen_addresses(&source, raw)?,
        };
        let key = raw.key.ok_or_else(|| {
            source.bad(
                None,
                "no key is named; write at the top, before the first [section]: key = \"/etc/realize/key\"".into(),
            )
        })?;
        let key = file.parent().unwrap_or(Path::new("")).join(key);
        let directories = directories(&source, raw.directories)?;
        let peers = peers(&source, raw.peers, &directories)?;
        Ok(Self {
            listen,
            key,
            directories,
            peers,
            log_level: raw.log_level,
        })
    }

    /// The peer that holds `key`, if it may connect.
    pub fn peer(&self, key: &PublicKey) -> Option<&Peer> {
        self.peers.get(key)
    }

    /// What the holder of `key` may do in the directory `dir`: nothing when either is not known.
    pub fn rights(&self, key: &PublicKey, dir: &str) -> Rights {
        let peer = self.peer(key);
        peer.and_then(|peer| peer.rights.get(dir)).copied().unwrap_or_default()
    }
}

/// The hosts that `realize` knows, with the one key of each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostsFile {
    /// By the name that is written on the command line.
    pub hosts: BTreeMap<String, Host>,
}

/// A host that `realize` knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The key it must show.
    pub key: PublicKey,
    /// Where it is, if not where its name says.
    pub address: Option<HostAddress>,
}

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl HostsFile {
    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&load(path)?, path)
    }

    /// Reads `text`, the content of `file`.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let source = Source { text, file };
        let raw: RawHosts = source.parse()?;
        let mut hosts = BTreeMap::new();
        for (name, host) in raw.hosts {
            let field = format!("hosts.{}", quoted(name.get_ref()));
            check_name(&source, &name, &field)?;
            let key = public_key(&source, &host.key, &field)?;
            let address = host.address.map(|address| host_address(&source, &address, &field));
            let host = Host {
                key,
                address: address.transpose()?,
            };
            hosts.insert(name.into_inner(), host);
        }
        Ok(Self { hosts })
    }

    /// The host called `name`, to the letter.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.get(name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDaemon {
    listen: Option<Spanned<RawListen>>,
    key: Option<PathBuf>,
    #[serde(default)]
    log_level: LogLevel,
    #[serde(default)]
    directories: BTreeMap<Spanned<String>, RawDirectory>,
    #[serde(default)]
    peers: BTreeMap<Spanned<String>, RawPeer>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "\"listen\" is a string or a list of strings")]
enum RawListen {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDirectory {
    path: Spanned<String>,
    #[serde(default)]
    accept_unsynced: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    key: Spanned<String>,
    #[serde(default)]
    rights: BTreeMap<Spanned<String>, Spanned<Vec<RawRight>>>,
    throttle: Option<Spanned<String>>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum RawRight {
    Read,
    Write,
    Replace,
    Delete,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHosts {
    #[serde(default)]
    hosts: BTreeMap<Spanned<String>, RawHost>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    key: Spanned<String>,
    address: Option<Spanned<String>>,
}

/// A text and where it is from, for errors.
struct Source<'a> {
    text: &'a str,
    file: &'a Path,
}

impl Source<'_> {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        if self.text.len() as u64 > FILE_BYTES_MAX {
            return Err(self.bad(None, format!("more than {FILE_BYTES_MAX} bytes")));
        }
        toml::from_str(self.text).map_err(|error| {
            // The line itself names the field.
            let line = error
                .span()
                .map(|span| self.line_at(span.start))
                .filter(|line| !line.is_empty());
            let mut what = printable(error.message());
            let is_misplaced = |field| what.starts_with(&format!("unknown field `{field}`,"));
            if ["listen", "log_level"].into_iter().any(is_misplaced) {
                what += " (what is not of a section stands above the first [section])";
            }
            let why = line.map_or(what.clone(), |line| format!("{what}, in {}", Escaped(line.as_bytes())));
            self.bad(error.span(), why)
        })
    }

    fn bad(&self, at: Option<Range<usize>>, why: String) -> ConfigError {
        let line = at
            .and_then(|span| self.text.get(..span.start))
            .map(|before| before.matches('\n').count() + 1);
        ConfigError::Bad {
            file: self.file.to_owned(),
            line,
            why,
        }
    }

    /// The line around a place, cut where it gets long.
    fn line_at(&self, at: usize) -> String {
        let before = self.text.get(..at).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = self
            .text
            .get(start..)
            .and_then(|rest| rest.lines().next())
            .unwrap_or_default();
        line.trim().chars().take(SHOWN_CHARS_MAX).collect()
    }
}

fn load(path: &Path) -> Result<String, ConfigError> {
    let failed = |why| ConfigError::Read {
        file: path.to_owned(),
        why,
    };
    let (bytes, _) = hostfile::read(path, FILE_BYTES_MAX).map_err(failed)?;
    String::from_utf8(bytes).map_err(|_| failed(io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text")))
}

fn listen_addresses(source: &Source<'_>, raw: &Spanned<RawListen>) -> Result<Vec<SocketAddr>, ConfigError> {
    let bad = |why: String| source.bad(Some(raw.span()), format!("listen: {why}"));
    let texts = match raw.get_ref() {
        RawListen::One(text) => std::slice::from_ref(text),
        RawListen::Many(texts) => texts,
    };
    if texts.is_empty() {
        return Err(bad(
            "the list is empty; name an address, or leave the field out for \"[::]:9771\"".into(),
        ));
    }
    let mut addresses = Vec::new();
    for text in texts {
        let address = text.parse().map_err(|_| {
            let text = quoted(text);
            bad(format!(
                "{text} is no address and port; write \"0.0.0.0:9771\" or \"[::]:9771\""
            ))
        })?;
        if addresses.contains(&address) {
            return Err(bad(format!("{address} is named twice; name it once")));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn directories(
    source: &Source<'_>,
    raw: BTreeMap<Spanned<String>, RawDirectory>,
) -> Result<BTreeMap<String, Directory>, ConfigError> {
    let mut directories = BTreeMap::new();
    let mut by_path: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (id, raw) in raw {
        let field = format!("directories.{}", quoted(id.get_ref()));
        check_name(source, &id, &field)?;
        let bad = |why: String| source.bad(Some(id.span()), format!("{field}: {why}"));
        if matches!(id.get_ref().as_str(), "." | "..") || id.get_ref().contains(['/', ':']) {
            return Err(bad(
                "peers write HOST::NAME/SUB; choose a name without \"/\" and \":\" that is not \".\" or \"..\"".into(),
            ));
        }
        let path = directory_path(source, &raw.path, &field)?;
        if let Some(other) = by_path.insert(path.clone(), id.get_ref().clone()) {
            let (other, path) = (quoted(&other), shown(&path));
            let why = format!("{field}.path: {path} is directories.{other} already; give it one name");
            return Err(source.bad(Some(raw.path.span()), why));
        }
        let directory = Directory {
            path,
            accept_unsynced: raw.accept_unsynced,
        };
        directories.insert(id.into_inner(), directory);
    }
    Ok(directories)
}

/// The path without a slash at its end and without `.`, so that one directory has one spelling (links aside).
fn directory_path(source: &Source<'_>, raw: &Spanned<String>, field: &str) -> Result<PathBuf, ConfigError> {
    let bad = |why: &str| {
        let text = quoted(raw.get_ref());
        source.bad(Some(raw.span()), format!("{field}.path: {text} {why}"))
    };
    let path = Path::new(raw.get_ref());
    if !path.is_absolute() {
        return Err(bad("is not absolute; begin it with \"/\""));
    }
    if raw.get_ref().contains('\0') {
        return Err(bad("has a NUL character; remove it"));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(bad("has a \"..\"; write the path that it leads to"));
    }
    Ok(path.components().collect())
}

fn peers(
    source: &Source<'_>,
    raw: BTreeMap<Spanned<String>, RawPeer>,
    directories: &BTreeMap<String, Directory>,
) -> Result<BTreeMap<PublicKey, Peer>, ConfigError> {
    let mut peers: BTreeMap<PublicKey, Peer> = BTreeMap::new();
    for (name, raw) in raw {
        let field = format!("peers.{}", quoted(name.get_ref()));
        check_name(source, &name, &field)?;
        let key = public_key(source, &raw.key, &field)?;
        if let Some(other) = peers.get(&key) {
            let why = format!(
                "is that of peers.{} already; give each host a key of its own",
                quoted(&other.name)
            );
            return Err(source.bad(Some(raw.key.span()), format!("{field}.key {why}")));
        }
        let mut rights = BTreeMap::new();
        for (dir, raw) in raw.rights {
            let field = format!("{field}.rights.{}", quoted(dir.get_ref()));
            if !directories.contains_key(dir.get_ref()) {
                let why = format!(
                    "there is no [directories.{}]; add it, or correct the name",
                    quoted(dir.get_ref())
                );
                return Err(source.bad(Some(dir.span()), format!("{field}: {why}")));
            }
            rights.insert(dir.into_inner(), rights_of(source, &raw, &field)?);
        }
        let throttle = raw.throttle.map(|raw| {
            let refused = |why: &dyn std::fmt::Display| {
                let text = quoted(raw.get_ref());
                source.bad(Some(raw.span()), format!("{field}.throttle: {text} is no rate: {why}"))
            };
            match raw.get_ref().parse::<Rate>() {
                Ok(rate) if rate.get() < Rate::MIN_UNTOLD => Err(refused(&"at least 16k, or its calls take too long")),
                parsed => parsed.map_err(|why| refused(&why)),
            }
        });
        let peer = Peer {
            name: name.into_inner(),
            rights,
            throttle: throttle.transpose()?,
        };
        peers.insert(key, peer);
    }
    Ok(peers)
}

fn rights_of(source: &Source<'_>, raw: &Spanned<Vec<RawRight>>, field: &str) -> Result<Rights, ConfigError> {
    let has = |right| raw.get_ref().contains(&right);
    let rights = Rights {
        read: has(RawRight::Read),
        write: has(RawRight::Write),
        replace: has(RawRight::Replace),
        delete: has(RawRight::Delete),
    };
    if rights.replace && !rights.write {
        let why =
            "\"replace\" is of no use without \"write\": what replaces a file must be written first; add \"write\"";
        return Err(source.bad(Some(raw.span()), format!("{field}: {why}")));
    }
    Ok(rights)
}

/// A name that can be shown in a line and written on a command line.
fn check_name(source: &Source<'_>, name: &Spanned<String>, field: &str) -> Result<(), ConfigError> {
    let text = name.get_ref();
    let why = if text.is_empty() {
        "the name is empty; give it one".into()
    } else if text.len() > NAME_BYTES_MAX {
        format!("the name is longer than {NAME_BYTES_MAX} bytes; shorten it")
    } else if text.chars().any(char::is_control) {
        "the name has a control character; remove it".into()
    } else {
        return Ok(());
    };
    Err(source.bad(Some(name.span()), format!("{field}: {why}")))
}

fn public_key(source: &Source<'_>, raw: &Spanned<String>, field: &str) -> Result<PublicKey, ConfigError> {
    raw.get_ref().parse().map_err(|why| {
        let way_out = "copy the whole line that realize keygen printed";
        source.bad(Some(raw.span()), format!("{field}.key: {why}; {way_out}"))
    })
}

fn host_address(source: &Source<'_>, raw: &Spanned<String>, field: &str) -> Result<HostAddress, ConfigError> {
    let bad = |why: &str| {
        let text = quoted(raw.get_ref());
        let way_out = "write NAME, NAME:PORT, ADDRESS:PORT or [ADDRESS]:PORT";
        source.bad(Some(raw.span()), format!("{field}.address: {text}: {why}; {way_out}"))
    };
    if raw.get_ref().chars().any(|c| c.is_control() || c == '/') {
        return Err(bad("a slash or a control character"));
    }
    let (host, port) = split_authority(raw.get_ref()).map_err(bad)?;
    let port = port.unwrap_or(DEFAULT_PORT);
    Ok(HostAddress { host, port })
}

fn quoted(text: &str) -> String {
    let mut start: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    Escaped(start.as_bytes()).to_string()
}

/// What the parser says, which may repeat what the file says, in one line that steers no terminal.
fn printable(message: &str) -> String {
    let mut line = String::new();
    for c in message.trim().chars() {
        match c {
            '\n' => line.push_str(", "),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

fn shown(path: &Path) -> String {
    Escaped(path.as_os_str().as_bytes()).to_string()
}

#[cfg(test)]
mod tests;
