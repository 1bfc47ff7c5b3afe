//! What `realized` does, on virtual time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use realize::{
    config::{DaemonConfig, Directory, Peer},
    daemon::{Daemon, DaemonEvent},
    limits::Limits,
    net::Network,
    server::Roots,
    service::Rights,
};

use super::{DAEMON, KEYS, MOVER, PORT, Shared, daemon_limits, key, now};
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
) -> turmoil::Result {
    shared.seen(DAEMON);
    let clock = SimClock::on(disk.machine());
    let mut roots = Roots::new(Disks::of(&disk, &disk), clock.clone(), limits, [2; 16]);
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
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
    let config = DaemonConfig {
        listen: vec![address],
        key: "key".into(),
        directories,
        peers: BTreeMap::from([(key(KEYS[0]).public(), peer)]),
    };
    let listener = network.bind(address).await?;
    shared.state().daemon_open = disk.open_handles();
    let observer = {
        let shared = shared.clone();
        move |event: DaemonEvent<'_>| shared.note(DAEMON, &event)
    };
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(seed ^ now().as_nanos() as u64).to_le_bytes());
    let daemon = Daemon::new(
        Arc::new(roots),
        clock,
        daemon_limits(),
        &key(KEYS[1]),
        config,
        id,
        observer,
    );
    daemon.serve(listener, std::future::pending()).await;
    Ok(())
}
