//! The daemon `realized`: serves directories to the hosts that its configuration knows.

mod log;

use std::{
    net::SocketAddr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use futures::{StreamExt, future::join_all};
use realize::{
    clock::{Clock, TokioClock, timeout},
    config::{ConfigError, DaemonConfig, LogLevel},
    daemon::{Daemon, DaemonEvent, DaemonLimits},
    fs::os::{OsFs, raise_open_files},
    keys::{
        SecretKey,
        file::{self, KeyFileError},
    },
    limits::Limits,
    model::{Escaped, Line},
    net::{Listener, Network, tcp::TcpNetwork},
    server::Roots,
    signals,
};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use self::log::Amount;

/// Serves directories to other hosts, which move files to and from them with realize.
///
/// Make this host's key with "realize keygen --out FILE" first; it prints the lines for the other hosts. SIGHUP has the configuration read
/// anew. Ends with 2 when that is refused at the start, and with 1 when an address or a directory is not there.
#[derive(Debug, Parser)]
#[command(name = "realized", version, max_term_width = 100)]
struct Args {
    /// Addresses, key, directories and who may use them
    #[arg(long, value_name = "FILE", default_value = "/etc/realize/realized.toml")]
    config: PathBuf,
}

/// Threads that may block in the file system at once.
const BLOCKING_THREADS: usize = 32;

fn main() -> ExitCode {
    realize::memory::tune_allocator();
    let args = Args::parse();
    let amount = log::begin();
    let failed = |error: anyhow::Error, code: u8| {
        error!("{error:#}");
        ExitCode::from(code)
    };
    match load(&args.config) {
        Err(error) => failed(error, 2),
        // An address or a disk that is not there yet may be later.
        Ok((config, key)) => {
            run(&args, amount, config, key).map_or_else(|error| failed(error, 1), |()| ExitCode::SUCCESS)
        }
    }
}

fn run(args: &Args, amount: Amount, config: DaemonConfig, key: SecretKey) -> Result<()> {
    amount.set(config.log_level);
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start")?;
    let served = runtime.block_on(serve(&args.config, amount, config, key));
    // Nothing is waited for: what a job leaves half done is gone on with by the next run.
    runtime.shutdown_background();
    served
}

/// The configuration, and the key that it names.
fn load(path: &Path) -> Result<(DaemonConfig, SecretKey)> {
    let config = DaemonConfig::load(path).map_err(|error| match error {
        ConfigError::Read { .. } => {
            anyhow!("{error}; write it as \"Two hosts\" in the README shows, or name another with --config")
        }
        error => error.into(),
    })?;
    let key = file::read(&config.key).map_err(|error| match &error {
        KeyFileError::Read { path, why } if why.kind() == std::io::ErrorKind::NotFound => {
            let path = Escaped(path.as_os_str().as_bytes()).to_string();
            anyhow!("{error}; make it with: realize keygen --out {path}")
        }
        _ => error.into(),
    })?;
    if let Some(own) = config.peer(&key.public()) {
        bail!(
            "{} peers.{}.key is this host's own key; write there the one that realize keygen printed on the other host",
            Escaped(path.as_os_str().as_bytes()),
            Escaped(own.name.as_bytes())
        );
    }
    Ok((config, key))
}

async fn serve(path: &Path, amount: Amount, config: DaemonConfig, key: SecretKey) -> Result<()> {
    let clock = TokioClock::new();
    let roots = Roots::new(OsFs::new(), clock.clone(), Limits::default(), random()?);
    let ((), _none_before) = roots.replace(roots.prepare(&config.directories).await?, |_| ());
    let addresses = config.listen.clone();
    let public = key.public();
    let limits = DaemonLimits::default();
    let daemon = Daemon::new(Arc::new(roots), clock.clone(), limits, &key, config, random()?, told);
    let mut listeners = Vec::new();
    for address in &addresses {
        let listener = TcpNetwork.bind(*address).await;
        listeners.push(listener.with_context(|| format!("cannot listen at {address}"))?);
    }
    // Before anybody is told that there is somebody to send them to.
    let ending = signals::first_of(&[SIGTERM, SIGINT], |_| 0).context("cannot take signals")?;
    let mut hang_ups = signal_hook_tokio::Signals::new([SIGHUP]).context("cannot take signals")?;
    for listener in &listeners {
        info!("listening at {}, with the key {public}", listened(listener)?);
    }
    notify(&[NotifyState::Ready]);
    let (stop, _) = tokio::sync::watch::channel(false);
    let serving = join_all(listeners.into_iter().map(|listener| {
        let mut stopped = stop.subscribe();
        let stopped = async move {
            // The sender is kept until all have ended.
            stopped.wait_for(|stop| *stop).await.ok();
        };
        daemon.clone().serve(listener, stopped)
    }));
    // However many come while one is heeded: one more reload does for them all.
    let hung_up = Notify::new();
    let hearing = async {
        while hang_ups.next().await.is_some() {
            hung_up.notify_one();
        }
        std::future::pending().await
    };
    let reloading = async {
        loop {
            hung_up.notified().await;
            if let Ok(now) = NotifyState::monotonic_usec_now() {
                notify(&[NotifyState::Reloading, now]);
            }
            let status = match reload(&daemon, path, &amount, &addresses).await {
                Ok(()) => "serving".to_owned(),
                Err(error) => {
                    error!("the configuration stays as it was: {error:#}");
                    format!("serving what was configured before: {}", Line(&format!("{error:#}")))
                }
            };
            notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
        }
    };
    let ended = async {
        ending.await;
        stop.send_replace(true);
        info!("stopping");
        notify(&[NotifyState::Stopping]);
        std::future::pending().await
    };
    tokio::select! {
        biased;
        () = ended => {}
        _ = serving => {}
        () = hearing => {}
        () = reloading => {}
        () = watched(&clock) => {}
    }
    Ok(())
}

/// Reads the configuration at `path` and has the daemon follow it, all of it or nothing; what needs a start is told.
async fn reload(
    daemon: &Daemon<OsFs, TokioClock>,
    path: &Path,
    amount: &Amount,
    addresses: &[SocketAddr],
) -> Result<()> {
    let (config, key) = load_beside(path).await?;
    let (level, listen) = (config.log_level, config.listen.clone());
    let (directories, peers) = (config.directories.len(), config.peers.len());
    let notes = daemon.reload(config, &key).await?;
    // Whatever is to be logged: these are what one would not expect.
    for directory in notes.unseen {
        error!("{directory} It stays as it was");
    }
    for name in notes.others {
        error!("at the path of the directory {name:?} is another one than before: that is served now");
    }
    if listen != addresses {
        error!("\"listen\" is another now, which needs realized to be started anew: it listens where it did");
    }
    // Told whatever is logged otherwise: who asked for it waits for it.
    amount.set(LogLevel::Info);
    info!(
        "the configuration was loaded anew: directories: {directories}, peers: {peers}, key {}",
        key.public()
    );
    amount.set(level);
    Ok(())
}

/// As [`load`], on a thread of its own: those of the runtime may all wait for disks.
async fn load_beside(path: &Path) -> Result<(DaemonConfig, SecretKey)> {
    const LIMIT: Duration = Duration::from_secs(5);
    // So that one thread at most hangs.
    static LOADING: Mutex<()> = Mutex::new(());
    let (path, (tell, told)) = (path.to_owned(), tokio::sync::oneshot::channel());
    let loading = move || {
        let Ok(_loading) = LOADING.try_lock() else { return };
        // Who has waited long enough does not miss it.
        tell.send(load(&path)).ok();
    };
    std::thread::Builder::new().spawn(loading).context("cannot read it")?;
    let loaded = timeout(&TokioClock::new(), LIMIT, told).await;
    let loaded = loaded.context("its disk does not answer")?;
    loaded.context("its disk does not answer since an earlier time")?
}

/// Tells systemd, where it asks for it, that the program lives: as often as that takes, from where connections are served.
async fn watched(clock: &TokioClock) {
    let Some(every) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        notify(&[NotifyState::Watchdog]);
        clock.sleep(every / 2).await;
    }
}

fn listened(listener: &tokio::net::TcpListener) -> Result<SocketAddr> {
    Listener::local_addr(listener).context("cannot tell the address")
}

fn told(event: DaemonEvent<'_>) {
    match event {
        DaemonEvent::Connected { peer, from } => info!("{peer} has connected from {from}"),
        DaemonEvent::Disconnected { peer, why: None } => info!("{peer} has disconnected"),
        DaemonEvent::Disconnected { peer, why: Some(why) } => warn!("{peer}: the connection ended: {why}"),
        DaemonEvent::Refused { from, why } => warn!("{from} was not let in: {why}"),
        DaemonEvent::AcceptFailed(error) => error!("cannot take a connection: {error}"),
    }
}

/// Tells systemd, where it asks for it.
fn notify(states: &[NotifyState<'_>]) {
    // Who can't be told does without.
    sd_notify::notify(states).ok();
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let read = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    ensure!(read.context("cannot get random bytes")? == N, "too few random bytes");
    Ok(bytes)
}
