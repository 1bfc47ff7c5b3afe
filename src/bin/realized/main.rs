//! The daemon `realized`: serves directories to the hosts that its configuration knows.

use std::{
    future::Future, io::Write, net::SocketAddr, os::unix::ffi::OsStrExt, path::PathBuf, process::ExitCode, sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use futures::StreamExt;
use realize::{
    clock::TokioClock,
    config::{ConfigError, DaemonConfig},
    daemon::{Daemon, DaemonEvent, DaemonLimits},
    fs::os::{OsFs, raise_open_files},
    keys::file::{self, KeyFileError},
    limits::Limits,
    model::{Escaped, Line},
    net::{Listener, Network, tcp::TcpNetwork},
    server::Roots,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Serves directories to other hosts, which move files to and from them with realize.
///
/// Make this host's key with "realize keygen --out FILE" first; it prints the lines for the other hosts.
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
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let config = DaemonConfig::load(&args.config).map_err(|error| match error {
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
            Escaped(args.config.as_os_str().as_bytes()),
            Escaped(own.name.as_bytes())
        );
    }
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start")?;
    let served = runtime.block_on(serve(config, key));
    // Nothing is waited for: what a job leaves half done is gone on with by the next run.
    runtime.shutdown_background();
    served
}

async fn serve(config: DaemonConfig, key: realize::keys::SecretKey) -> Result<()> {
    let clock = TokioClock::new();
    let mut server = [0; 16];
    let mut seed = [0; 32];
    random(&mut server)?;
    random(&mut seed)?;
    let mut roots = Roots::new(OsFs::new(), clock.clone(), Limits::default(), server);
    for (name, directory) in &config.directories {
        let opened = roots
            .add(name.clone(), &directory.path, directory.accept_unsynced)
            .await;
        opened.with_context(|| {
            let path = directory.path.as_os_str().as_bytes();
            format!(
                "cannot open {} of the directory {name:?}; is its disk mounted?",
                Escaped(path)
            )
        })?;
    }
    let addresses = config.listen.clone();
    let public = key.public();
    let daemon = Daemon::new(
        Arc::new(roots),
        clock,
        DaemonLimits::default(),
        &key,
        config,
        seed,
        told,
    );
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpNetwork.bind(address).await;
        listeners.push(listener.with_context(|| format!("cannot listen at {address}"))?);
    }
    // Before anybody is told that there is somebody to send them to.
    let mut signals = signal_hook_tokio::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot take signals")?;
    for listener in &listeners {
        log(&format!("listening at {}, with the key {public}", listened(listener)?));
    }
    ready();
    let (stop, _) = tokio::sync::watch::channel(false);
    let serving = listeners.into_iter().map(|listener| {
        let mut stopped = stop.subscribe();
        let stopped = async move {
            // The sender is kept until all have ended.
            stopped.wait_for(|stop| *stop).await.ok();
        };
        daemon.clone().serve(listener, stopped)
    });
    let serving = futures::future::join_all(serving);
    let signal = async {
        while signals.next().await == Some(SIGHUP) {
            log("SIGHUP changes nothing: the configuration is read at the start; start realized anew to have it read");
        }
        log("stopping");
        stop.send_replace(true);
        std::future::pending::<()>().await;
    };
    serve_until(serving, signal).await;
    Ok(())
}

async fn serve_until<T>(serving: impl Future<Output = T>, signal: impl Future<Output = ()>) {
    let (serving, signal) = (std::pin::pin!(serving), std::pin::pin!(signal));
    futures::future::select(serving, signal).await;
}

fn listened(listener: &tokio::net::TcpListener) -> Result<SocketAddr> {
    Listener::local_addr(listener).context("cannot tell the address")
}

fn told(event: DaemonEvent<'_>) {
    match event {
        DaemonEvent::Connected { peer, from } => log(&format!("{peer} has connected from {from}")),
        DaemonEvent::Disconnected { peer, why: None } => log(&format!("{peer} has disconnected")),
        DaemonEvent::Disconnected { peer, why: Some(why) } => log(&format!("{peer}: the connection ended: {why}")),
        DaemonEvent::Refused { from, why } => log(&format!("{from} was not let in: {why}")),
        DaemonEvent::AcceptFailed(error) => log(&format!("cannot take a connection: {error}")),
    }
}

/// A line of the log, on standard error.
fn log(line: &str) {
    // Nobody to tell is no reason to stop. What peers send has no place in a line unescaped.
    writeln!(std::io::stderr(), "realized: {}", Line(line)).ok();
}

/// Tells systemd, where it asks for it, that connections are taken.
fn ready() {
    // Who can't be told does without.
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
}

fn random(bytes: &mut [u8]) -> Result<()> {
    let read = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty());
    anyhow::ensure!(
        read.context("cannot get random bytes")? == bytes.len(),
        "too few random bytes"
    );
    Ok(())
}
