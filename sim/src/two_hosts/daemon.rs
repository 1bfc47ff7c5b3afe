//! What `realized` does, on virtual time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use realize::{
    clock::Clock,
    config::{DaemonConfig, Directory, LogLevel, Peer},
    daemon::{Daemon, DaemonEvent},
    limits::Limits,
    net::Network,
    server::Roots,
    service::Rights,
};

use super::{DAEMON, KEYS, MOVER, OtherConfig, PORT, Reload, Shared, daemon_limits, key, now};
use crate::{
    clock::SimClock,
    fs::{Disk, Disks},
    net::SimNetwork,
};

/// The daemon, from its start to its death.
pub(super) async fn serve(
    shared: Arc<Shared>,
    network: SimNetwork,
    disk: Disk,
    seed: u64,
    limits: Limits,
    served: &'static [&'static str],
    reload: Option<Reload>,
) -> turmoil::Result {
    shared.seen(DAEMON);
    shared.withhold(None);
    shared.state().is_reloaded = false;
    // Before the disk is asked, so that a mover that is as fast finds somebody.
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
    let listener = network.bind(address).await?;
    let clock = SimClock::on(disk.machine());
    let roots = Roots::new(Disks::of(&disk, &disk), clock.clone(), limits, [2; 16]);
    let (mut directories, mut rights) = (BTreeMap::new(), BTreeMap::new());
    for root in served {
        let path = PathBuf::from(format!("/{root}"));
        roots.add(*root, &path, false).await?;
        rights.insert((*root).to_owned(), Rights::ALL);
        let accept_unsynced = false;
        directories.insert((*root).to_owned(), Directory { path, accept_unsynced });
    }
    let peer = Peer {
        name: MOVER.into(),
        rights,
        throttle: None,
    };
    let config = DaemonConfig {
        listen: vec![address],
        key: "key".into(),
        directories,
        peers: BTreeMap::from([(key(KEYS[0]).public(), peer)]),
        log_level: LogLevel::default(),
    };
    shared.state().daemon_open = disk.open_handles();
    let observer = {
        let shared = shared.clone();
        move |event: DaemonEvent<'_>| shared.note(DAEMON, &event)
    };
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(seed ^ now().as_nanos() as u64).to_le_bytes());
    let daemon = Daemon::new(
        Arc::new(roots),
        clock.clone(),
        daemon_limits(),
        &key(KEYS[1]),
        config.clone(),
        id,
        observer,
    );
    let serving = daemon.clone().serve(listener, std::future::pending());
    let reloading = async {
        if let Some(reload) = reload {
            reload_for_a_while(&shared, &daemon, &clock, config, reload).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        () = reloading => {}
        () = serving => {}
    }
    Ok(())
}

/// Has the daemon read another configuration, and then its own again.
async fn reload_for_a_while(
    shared: &Shared,
    daemon: &Daemon<Disks, SimClock>,
    clock: &SimClock,
    config: DaemonConfig,
    Reload { after, lasts, other }: Reload,
) {
    const LOOK_EVERY: Duration = Duration::from_millis(10);
    clock.sleep(Duration::from_millis(after.into())).await;
    if shared.state().is_calm {
        return;
    }
    shared.state().is_reloaded = true;
    let key = key(KEYS[1]);
    let reloaded = daemon.reload(other.of(&config), &key).await;
    shared.note(DAEMON, &(other, reloaded.is_ok()));
    if reloaded.is_ok() {
        shared.withhold(Some(other));
    }
    let end = clock.now() + Duration::from_millis(lasts.into());
    while clock.now() < end && !shared.state().is_calm {
        clock.sleep(LOOK_EVERY).await;
    }
    shared.withhold(None);
    let reloaded = daemon.reload(config, &key).await;
    shared.note(DAEMON, &("its own", reloaded.is_ok()));
    shared.state().is_reloaded = false;
}

impl OtherConfig {
    fn of(self, config: &DaemonConfig) -> DaemonConfig {
        let mut other = config.clone();
        match self {
            Self::Same => {}
            Self::ReadOnly => {
                let peers = other.peers.values_mut();
                peers.flat_map(|peer| peer.rights.values_mut()).for_each(|rights| {
                    *rights = Rights {
                        read: true,
                        ..Rights::default()
                    };
                });
            }
            Self::WithoutPeer => other.peers.clear(),
            Self::Directories => other
                .directories
                .values_mut()
                .for_each(|directory| directory.accept_unsynced = true),
        }
        other
    }
}
