//! What `realized` does, on virtual time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
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

use super::{DAEMON, Direction, KEYS, MOVER, PORT, Shared, daemon_limits, key, now};
use crate::{clock::SimClock, fs::Disk, net::SimNetwork};

/// The daemon, from its start to its death.
pub(super) async fn serve(
    shared: Arc<Shared>,
    network: SimNetwork,
    disk: Disk,
    direction: Direction,
    seed: u64,
    limits: Limits,
) -> turmoil::Result {
    shared.seen(DAEMON);
    let clock = SimClock::on(disk.machine());
    let path = match direction {
        Direction::Send => "/target",
        Direction::Fetch => "/source",
    };
    let mut roots = Roots::new(disk.fs(), clock.clone(), limits, [2; 16]);
    roots.add("remote", Path::new(path), false).await?;
    let peer = Peer {
        name: MOVER.into(),
        rights: BTreeMap::from([("remote".to_owned(), Rights::ALL)]),
    };
    let directory = Directory {
        path: path.into(),
        accept_unsynced: false,
    };
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
    let config = DaemonConfig {
        listen: vec![address],
        key: "key".into(),
        directories: BTreeMap::from([("remote".to_owned(), directory)]),
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
