//! Other hosts: who this one is, whom it knows, and its links to them.
#![expect(
    clippy::disallowed_methods,
    reason = "the edge: looks for the configuration of the user"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use realize::{
    client::{ConnectError, Dial, LetIn, Link, LinkEvent, LinkLimits},
    clock::TokioClock,
    config::HostsFile,
    keys::{
        PublicKey, SecretKey,
        file::{self, KeyFileError},
    },
    location::DEFAULT_PORT,
    model::Line,
    net::{Network, tcp::TcpNetwork},
    service::Rights,
    throttle::{Bucket, Gate, Limited},
    tls::{Connector, TlsError},
    wire::LinkId,
};
use tokio::net::TcpStream;

use crate::{ends::shown, random};

/// Where the configuration of `realized` usually is.
const DAEMON_CONFIG: &str = "/etc/realize/realized.toml";

/// A host as named on the command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName {
    /// Its name or address.
    pub host: String,
    /// Its port, where one is written.
    pub port: Option<u16>,
}

/// A failure of this host or the other to prove who it is. Exit code 12.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotAuthenticated(pub String);

/// Where the configuration of this user is, first found first.
pub fn config_dirs() -> Vec<PathBuf> {
    let of_user = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))
        .map(|dir| dir.join("realize"));
    of_user.into_iter().chain([PathBuf::from("/etc/realize")]).collect()
}

/// The file `name` of the configuration: the one that was named, else the first that is there, else where it should be.
fn config_file(named: Option<&Path>, name: &str) -> PathBuf {
    let dirs = config_dirs();
    let mut places = dirs.iter().map(|dir| dir.join(name));
    match named {
        Some(path) => path.to_owned(),
        None => places
            .clone()
            .find(|path| fs::symlink_metadata(path).is_ok())
            .or_else(|| places.next())
            .unwrap_or_else(|| name.into()),
    }
}

/// Who this host is and whom it knows.
pub struct Identity {
    key: SecretKey,
    hosts: HostsFile,
    hosts_path: PathBuf,
}

impl Identity {
    /// Reads key and hosts, from where they usually are unless named.
    pub fn load(key: Option<&Path>, hosts: Option<&Path>) -> Result<Self> {
        let key_path = config_file(key, "key");
        let key = file::read(&key_path).map_err(|error| {
            let is_missing =
                matches!(&error, KeyFileError::Read { why, .. } if why.kind() == std::io::ErrorKind::NotFound);
            let way_out = match (is_missing, key) {
                (false, _) => String::new(),
                (true, None) => "\nTo reach other hosts this one needs a key: make it with: realize keygen".into(),
                (true, Some(path)) => {
                    format!(
                        "\nTo reach other hosts this one needs a key: make it with: realize keygen --out {}",
                        shown(path)
                    )
                }
            };
            anyhow!(NotAuthenticated(format!("{error}{way_out}")))
        })?;
        let hosts_path = config_file(hosts, "hosts.toml");
        let hosts = match fs::symlink_metadata(&hosts_path) {
            // Nobody is known: said with the first host, together with its key.
            Err(_) if hosts_is_default(hosts) => HostsFile::parse("", &hosts_path)?,
            _ => HostsFile::load(&hosts_path)?,
        };
        Ok(Self { key, hosts, hosts_path })
    }

    /// The public half of this host's key.
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// How to connect to `name`.
    pub fn dial(&self, name: &HostName, sending: Option<Arc<Bucket<TokioClock>>>) -> TcpDial {
        let known = self.hosts.host(&name.host);
        let address = known.and_then(|host| host.address.clone());
        let (host, port) = match address {
            Some(address) => (address.host, address.port),
            None => (name.host.clone(), DEFAULT_PORT),
        };
        // What is written on the command line counts.
        let port = name.port.unwrap_or(port);
        TcpDial {
            host,
            port,
            connector: Connector::new(&self.key),
            expected: known.map(|host| host.key),
            sending,
        }
    }

    /// The key of the host of this name.
    pub fn key_of(&self, name: &str) -> Option<PublicKey> {
        Some(self.hosts.host(name)?.key)
    }

    /// Where `name` is.
    fn port(&self, name: &HostName) -> u16 {
        self.dial(name, None).port
    }

    /// What `error` means to who wants to reach `name`, and what to do.
    pub fn explain(&self, name: &HostName, error: ConnectError) -> anyhow::Error {
        let host = &name.host;
        let text = match &error {
            ConnectError::Name(_) if self.hosts.host(host).is_some() => format!(
                "{host}: {error} ({}); check its spelling, or write into its section in {}: address = \"192.0.2.1:{DEFAULT_PORT}\"",
                self.tried(name),
                shown(&self.hosts_path),
            ),
            ConnectError::Name(_) => format!(
                "{host}: {error}; check its spelling, or add it to {}, with its address:\n\n\
                 [hosts.\"{host}\"]\nkey = \"THE KEY that realize keygen printed there\"\naddress = \"192.0.2.1:{DEFAULT_PORT}\"\n",
                shown(&self.hosts_path),
            ),
            ConnectError::Tcp(_) => format!(
                "{host}: {error} ({}); is realized running there, on port {}, and let through by the firewall?",
                self.tried(name),
                self.port(name)
            ),
            ConnectError::TimedOut(_) => format!(
                "{host}: {error} ({}); is the host up, and the port let through by the firewall?",
                self.tried(name)
            ),
            ConnectError::Refused(_) | ConnectError::BreaksRules(_) => format!("{host}: {error}"),
            ConnectError::Tls(tls) => match tls {
                TlsError::UnknownHost { presented } => {
                    return anyhow!(NotAuthenticated(format!(
                        "{host} is not known by that name. It has the key {presented}\nIf that is the key that \"realize keygen\" printed there, add to {}:\n\n\
                         [hosts.\"{host}\"]\nkey = \"{presented}\"\n",
                        shown(&self.hosts_path)
                    )));
                }
                TlsError::WrongHostKey { expected, .. } if *expected == self.public() => {
                    return anyhow!(NotAuthenticated(format!(
                        "{} gives {host} the key {expected}, which is this host's own. Write there the one that \
                         \"realize keygen\" printed on {host}",
                        shown(&self.hosts_path)
                    )));
                }
                TlsError::WrongHostKey { presented, expected } => {
                    return anyhow!(NotAuthenticated(format!(
                        "{host} has the key {presented}, not {expected} as {} says: it has a new key, or another host answers in its place. \
                         Compare with its key there, then change that line",
                        shown(&self.hosts_path)
                    )));
                }
                TlsError::Refused => {
                    return anyhow!(NotAuthenticated(format!(
                        "{host} does not know this host's key. Add to the configuration of realized there ({DAEMON_CONFIG}), with the rights it shall have, and \
                         have it read that anew (SIGHUP):\n\n[peers.\"{}\"]\nkey = \"{}\"\nrights.DIRECTORY = [\"read\", \"write\", \"replace\", \"delete\"]\n",
                        own_name(),
                        self.public()
                    )));
                }
                TlsError::NotTls => format!("{host}: what answers on port {} is not realized", self.port(name)),
                error => format!("{host}: {error}"),
            },
        };
        anyhow!(text)
    }

    /// Where `name` was looked for, and why there.
    fn tried(&self, name: &HostName) -> String {
        let dial = self.dial(name, None);
        let known = self.hosts.host(&name.host).is_some_and(|host| host.address.is_some());
        let from = if known {
            format!(", as {} says", shown(&self.hosts_path))
        } else {
            String::new()
        };
        format!("{} port {}{from}", dial.host, dial.port)
    }

    /// What to do where `host` says `why` not to use its directory of this `name`, which needs the rights `wanted`.
    pub fn no_right(&self, host: &HostName, name: &str, why: impl std::fmt::Display, wanted: Rights) -> String {
        let (host, name) = (&host.host, Line(name));
        format!(
            "{host}::{name}: {why}; in the configuration of realized there ({DAEMON_CONFIG}), in the section with the key {}, \
             add to rights.\"{name}\" what is missing of [{wanted}]; then have it read that anew (SIGHUP)",
            self.public()
        )
    }

    /// The link `id`, to `name`. What it sends is taken from `sending`, where there is such a limit.
    pub async fn link(
        &self,
        name: &HostName,
        sending: Option<Arc<Bucket<TokioClock>>>,
        limits: LinkLimits,
        clock: &TokioClock,
        id: LinkId,
        observer: impl Fn(LinkEvent) + Send + Sync + 'static,
    ) -> Result<(Link, LetIn), ConnectError> {
        Link::connect(self.dial(name, sending), clock.clone(), limits, id, jitter(), observer).await
    }
}

/// Any number.
pub fn jitter() -> u64 {
    let first = |bytes: [u8; 16]| bytes.first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(random().map_or([0; 8], first))
}

fn hosts_is_default(named: Option<&Path>) -> bool {
    named.is_none()
}

/// Connections by TCP and TLS to one host.
pub struct TcpDial {
    host: String,
    port: u16,
    connector: Connector,
    expected: Option<PublicKey>,
    sending: Option<Arc<Bucket<TokioClock>>>,
}

impl Dial for TcpDial {
    type Stream = tokio_rustls::client::TlsStream<Limited<TcpStream, TokioClock>>;

    async fn dial(&self) -> Result<Self::Stream, ConnectError> {
        let stream = TcpNetwork.connect(&self.host, self.port).await.map_err(|error| {
            // A failed look-up has no number of the operating system.
            if error.raw_os_error().is_none() && error.kind() != std::io::ErrorKind::TimedOut {
                ConnectError::Name(error)
            } else {
                ConnectError::Tcp(error)
            }
        })?;
        let stream = Limited::new(stream, Gate::new(self.sending.clone()));
        self.connector
            .connect(self.expected.as_ref(), stream)
            .await
            .map_err(ConnectError::Tls)
    }
}

/// What to do where `host` has no directory of this `name`.
pub fn no_such_directory(host: &HostName, name: &str) -> String {
    let (host, name) = (&host.host, Line(name));
    format!(
        "{host}::{name}: no such directory is configured there; check the spelling, or add to the configuration of realized there \
         ({DAEMON_CONFIG}) [directories.\"{name}\"] with its path, and have it read that anew (SIGHUP)"
    )
}

/// What this host calls itself.
pub fn own_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "this-host".into() } else { name }
}

/// Makes a key, unless there is one already, and prints what to paste on other hosts.
pub fn keygen(out: Option<&Path>) -> Result<()> {
    let path = match out {
        Some(path) => path.to_owned(),
        None => config_dirs().into_iter().next().unwrap_or_default().join("key"),
    };
    if out.is_none()
        && let Some(dir) = path.parent()
    {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", shown(dir)))?;
    }
    let new = SecretKey::generate()?;
    let (key, state) = match file::write_new(&path, &new) {
        Ok(()) => (new, "The secret key is in"),
        Err(exists @ KeyFileError::Exists { .. }) => match file::read(&path) {
            Ok(key) => (key, "There is a secret key already, which stays as it is, in"),
            Err(KeyFileError::OpenToOthers { path }) => bail!(KeyFileError::OpenToOthers { path }),
            Err(_) => bail!(exists),
        },
        Err(KeyFileError::Write { path, why }) if why.kind() == std::io::ErrorKind::NotFound => {
            bail!(
                "{}; make its directory with mkdir -p",
                KeyFileError::Write { path, why }
            )
        }
        Err(error) => bail!(error),
    };
    let (name, public) = (own_name(), key.public());
    say!(
        "{state} {}; keep it there. The public key:\n\n\
         {public}\n\n\
         Where realized runs and this host shall connect to it, add to its configuration ({DAEMON_CONFIG}), with the rights it shall have:\n\n\
         [peers.\"{name}\"]\nkey = \"{public}\"\nrights.DIRECTORY = [\"read\", \"write\", \"replace\", \"delete\"]\n\n\
         Where hosts shall connect to realized on this host, add to hosts.toml there (~/.config/realize/hosts.toml):\n\n\
         [hosts.\"{name}\"]\nkey = \"{public}\"\naddress = \"ADDRESS OF THIS HOST:{DEFAULT_PORT}\"",
        shown(&path)
    );
    Ok(())
}

/// Links by host.
pub type Links = BTreeMap<HostName, Link>;
