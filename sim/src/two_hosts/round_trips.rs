//! How many round trips a move takes.

use std::{sync::Arc, time::Duration};

use realize::limits::Limits;

use super::{DAEMON, Direction, Ending, MOVER, Mover, PHASE, Shared, TARGET_ROOT, serve};
use crate::{
    fs::{Disk, Machine},
    net::SimNetwork,
};

/// Moves `files` of the mover, each by its path, into an empty directory of the daemon, over a line of this `round_trip` and nothing
/// else: disks take no time, and nothing fails. How it ended, and how many round trips it took; the first connects by TCP.
pub fn count_round_trips(files: &[(String, Vec<u8>)], round_trip: Duration) -> (Ending, f64) {
    let disks = [0, 1].map(|seed| {
        let machine = Machine::new(seed);
        machine.stall_one_in(0);
        machine.disk(1)
    });
    let [from, to] = &disks;
    for (path, content) in files {
        let path = format!("source/{path}");
        let (dir, _) = path.rsplit_once('/').expect("there is one");
        from.mkdir_all(dir).expect("the disk has room");
        from.create(path.as_str(), content).expect("the disk has room");
    }
    to.mkdir_all("target").expect("the disk has room");
    disks.iter().for_each(Disk::settle);
    let (shared, network) = (Arc::new(Shared::default()), SimNetwork::new(1, Vec::new()));
    let mut sim = turmoil::Builder::new()
        .rng_seed(1)
        .epoch(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .simulation_duration(PHASE)
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(round_trip / 2)
        .max_message_latency(round_trip / 2)
        .tcp_capacity(1 << 16)
        .build();
    let (daemon, disk) = ((shared.clone(), network.clone()), to.clone());
    sim.host(DAEMON, move || {
        let (shared, network) = daemon.clone();
        serve(shared, network, disk.clone(), 1, Limits::default(), TARGET_ROOT, None)
    });
    let mover = Mover {
        shared: shared.clone(),
        network,
        disk: from.clone(),
        direction: Direction::Send,
        seed: 1,
        rate: None,
        early: None,
        limits: Limits::default(),
        sources: &["source"],
        before_try: Arc::new(|| {}),
    };
    sim.host(MOVER, move || mover.clone().run());
    while shared.state().ended.is_empty() {
        sim.step().expect("a program of the simulation failed");
    }
    let ended = shared.state().ended.remove(0);
    (ended, sim.elapsed().as_secs_f64() / round_trip.as_secs_f64())
}
