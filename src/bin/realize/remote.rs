//! Other hosts: who this one is, whom it knows, and its links to them.
#![expect(
    clippy::disallowed_methods,
    reason = "the edge: looks for the configuration of the user"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use realize::{
    client::{ConnectError, Dial, LetIn, Link, LinkEvent, LinkLimits},
    clock::TokioClock,
    config::HostsFile,
    keys::{PublicKey, SecretKey, file},
    model::Escaped,
    net::{Network, tcp::TcpNetwork},
    service::RunId,
    tls::{Connector, TlsError},
};
use tokio::net::TcpStream;

use crate::{ends::shown, random};

/// A host as named on the command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
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
            anyhow!(NotAuthenticated(format!(
                "{error}\nTo reach other hosts this one needs a key: make it with: realize keygen"
            )))
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
    pub fn dial(&self, name: &HostName) -> TcpDial {
        let known = self.hosts.host(&name.host);
        let address = known.and_then(|host| host.address.clone());
        let (host, port) = match address {
            Some(address) => (address.host, address.port),
            None => (name.host.clone(), name.port),
        };
        TcpDial {
            host,
            port,
            connector: Connector::new(&self.key),
            expected: known.map(|host| host.key),
        }
    }

    /// What `error` means to who wants to reach `name`, and what to do.
    pub fn explain(&self, name: &HostName, error: ConnectError) -> anyhow::Error {
        let host = &name.host;
        let text = match &error {
            ConnectError::Name(_) => format!(
                "{host}: {error}; check its spelling, or give its address in {} as: address = \"192.0.2.1:{}\"",
                shown(&self.hosts_path),
                name.port
            ),
            ConnectError::Tcp(_) => format!(
                "{host}: {error}; is realized running there, on port {}, and let through by the firewall?",
                self.dial(name).port
            ),
            ConnectError::TimedOut(_) => {
                format!("{host}: {error}; is the host up, and the port let through by the firewall?")
            }
            ConnectError::Refused(_) => format!("{host}: {error}"),
            ConnectError::Tls(tls) => match tls {
                TlsError::UnknownHost { presented } => {
                    return anyhow!(NotAuthenticated(format!(
                        "{host} is not known. It has the key {presented}\nIf that is the key that \"realize keygen\" printed there, add to {}:\n\n\
                         [hosts.\"{host}\"]\nkey = \"{presented}\"\n",
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
                        "{host} does not know this host's key. Add to the configuration of realized there, with the rights it shall have, and \
                         start it anew:\n\n[peers.\"{}\"]\nkey = \"{}\"\nrights.DIRECTORY = [\"read\", \"write\", \"replace\", \"delete\"]\n",
                        own_name(),
                        self.public()
                    )));
                }
                TlsError::NotTls => format!("{host}: what answers on port {} is not realized", self.dial(name).port),
                error => format!("{host}: {error}"),
            },
        };
        anyhow!(text)
    }

    /// A link to `name` for `run`.
    pub async fn link(
        &self,
        name: &HostName,
        clock: &TokioClock,
        run: RunId,
        observer: impl Fn(LinkEvent) + Send + Sync + 'static,
    ) -> Result<(Link, LetIn), ConnectError> {
        let jitter = random().map_or(0, |bytes| {
            u64::from_le_bytes([
                bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
            ])
        });
        Link::connect(
            self.dial(name),
            clock.clone(),
            LinkLimits::default(),
            run,
            jitter,
            observer,
        )
        .await
    }
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
}

impl Dial for TcpDial {
    type Stream = tokio_rustls::client::TlsStream<TcpStream>;

    async fn dial(&self) -> Result<Self::Stream, ConnectError> {
        let stream = TcpNetwork.connect(&self.host, self.port).await.map_err(|error| {
            // A failed look-up has no number of the operating system.
            if error.raw_os_error().is_none() && error.kind() != std::io::ErrorKind::TimedOut {
                ConnectError::Name(error)
            } else {
                ConnectError::Tcp(error)
            }
        })?;
        self.connector
            .connect(self.expected.as_ref(), stream)
            .await
            .map_err(ConnectError::Tls)
    }
}

/// What to do where `host` has no directory of this `name`.
pub fn no_such_directory(host: &HostName, name: &str) -> String {
    let (host, name) = (&host.host, plain(name));
    format!(
        "{host}::{name}: no such directory is configured there; add it as [directories.\"{name}\"] with its path, or check the spelling"
    )
}

/// What to do where `host` says `why` not to use its directory of this `name`.
pub fn no_right(host: &HostName, name: &str, why: impl std::fmt::Display) -> String {
    let (host, name) = (&host.host, plain(name));
    format!(
        "{host}::{name}: {why}; add to the section of this host there: rights.\"{name}\" = [\"read\", \"write\", \"replace\", \"delete\"]"
    )
}

/// A directory's name, without what could steer the terminal.
pub fn plain(name: &str) -> String {
    Escaped(name.as_bytes()).to_string().trim_matches('"').to_owned()
}

/// What this host calls itself.
pub fn own_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "this-host".into() } else { name }
}

/// Makes a key and prints what to paste on other hosts.
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
    let key = SecretKey::generate()?;
    file::write_new(&path, &key)?;
    let (name, public) = (own_name(), key.public());
    println!(
        "The secret key is in {}; keep it there. The public key:\n\n\
         {public}\n\n\
         Where realized runs and this host shall connect to it, add to its configuration, with the rights it shall have:\n\n\
         [peers.\"{name}\"]\nkey = \"{public}\"\nrights.DIRECTORY = [\"read\", \"write\", \"replace\", \"delete\"]\n\n\
         Where hosts shall connect to realized on this host, add to hosts.toml there (~/.config/realize/hosts.toml):\n\n\
         [hosts.\"{name}\"]\nkey = \"{public}\"",
        shown(&path)
    );
    Ok(())
}

/// Links by host.
pub type Links = BTreeMap<HostName, Link>;
