//! Two hosts, each with a disk on a machine of its own, and moves between them: the real daemon, the real link, TLS, on virtual
//! time. A [`TwoHosts`] is a plan of what goes wrong; [`TwoHosts::run`] carries it out in two phases. At first things go wrong. Then
//! nothing does any more, what is left over gets the time to notice, and a last run must complete.
//!
//! The mover does what `realize` does: it begins again when the other side has lost the session. The host that dies, dies by
//! a fault of its machine: the call never returns, the process is gone with the tick, and starts anew after a while.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use realize::{
    algo::{Event, Failure, MoveError, MoveOptions, MoveReport, Source, Target, is_unanswered, move_files},
    client::{ConnectError, Dial, LetIn, Link, LinkEvent, LinkLimits},
    clock::Clock,
    config::{DaemonConfig, Directory, Peer},
    daemon::{Daemon, DaemonLimits},
    keys::SecretKey,
    limits::Limits,
    net::Network,
    server::{RealizeServer, Roots},
    service::{DirId, RealizeServiceClient, Rights, RunId, ServiceError},
    tls::Connector,
    wire::LinkId,
};
use tarpc::client::stub::Stub;
use tokio::runtime::Handle;

use crate::{
    check::{Checker, Violation},
    clock::SimClock,
    fs::{Disk, Fault, Kind, Machine, Moment, Profile, SimFs},
    net::{LinePlan, SimNetwork, SimStream, Way},
    random::Random,
    world::{SimService, World},
};

const MOVER: &str = "mover";
const DAEMON: &str = "daemon";
const PORT: u16 = 9771;

/// One step of the simulation. Longer ones leave fewer orders in which things may happen.
const TICK: Duration = Duration::from_millis(2);

/// How long a host that died stays down.
const DOWN: Duration = Duration::from_millis(400);

/// No phase may take longer. Every wait of the programs is far shorter.
const PHASE: Duration = Duration::from_secs(90);

/// As in `realize`.
const TRIES_WITHOUT_PROGRESS: u32 = 5;

/// As in `realize`, but shorter.
const PAUSE_BEFORE_AGAIN: Duration = Duration::from_millis(500);

/// How long after the last run nothing of it may be left.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// Keys of the two hosts: the same in every run.
const KEYS: [&str; 2] = [
    "MC4CAQAwBQYDK2VwBCIEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB",
    "MC4CAQAwBQYDK2VwBCIEIAICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIC",
];

fn key(text: &str) -> SecretKey {
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    SecretKey::from_pem(pem.as_bytes()).expect("written here")
}

/// Which host the files are on at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the mover to the daemon.
    Send,
    /// From the daemon to the mover.
    Fetch,
}

/// Waits of a link, short.
pub fn link_limits() -> LinkLimits {
    const PAUSES: &[Duration] = &[
        Duration::from_millis(5),
        Duration::from_millis(200),
        Duration::from_millis(500),
    ];
    LinkLimits {
        connect: Duration::from_millis(900),
        idle: Duration::from_millis(900),
        control: Duration::from_secs(4),
        work: Duration::from_secs(15),
        pauses: PAUSES,
        reconnect: Duration::from_secs(10),
        losses: 10,
    }
}

/// Waits of a daemon, short.
pub fn daemon_limits() -> DaemonLimits {
    DaemonLimits {
        handshake: Duration::from_millis(900),
        idle: Duration::from_millis(900),
        session_kept: Duration::from_secs(20),
        ..DaemonLimits::default()
    }
}

/// A plan of a move and of what goes wrong.
#[derive(Clone)]
pub struct TwoHosts {
    /// Both disks, on two machines.
    pub world: World,
    /// Which way the files go.
    pub direction: Direction,
    /// Latencies, short reads and pauses.
    pub seed: u64,
    /// What becomes of the first connections.
    pub lines: Vec<LinePlan>,
    /// What happens on the mover's machine.
    pub mover_faults: Vec<Fault>,
    /// What happens on the daemon's machine.
    pub daemon_faults: Vec<Fault>,
    /// What a power cut leaves.
    pub profile: Profile,
    /// Whether the mover starts anew when it has died, and runs once more in the end. Otherwise only what is left of it is looked
    /// at, once the daemon has given it up.
    pub comes_back: bool,
    /// Whether both hosts are started anew before the last run: where a sync has failed nothing is confirmed before that.
    pub reboots: bool,
    /// Sizes and counts of both sides.
    pub limits: Limits,
}

/// How one run of the mover ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With the report of all its moves.
    Report(MoveReport),
    /// The move could not begin.
    Failed(MoveError),
    /// There was no connection to begin with.
    NotConnected(String),
}

impl Ending {
    /// Whether everything was moved.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Report(report) if report.is_complete())
    }
}

/// What came of a plan.
#[derive(Debug)]
pub struct Outcome {
    /// How the runs of the mover ended while things went wrong; none for one that died.
    pub runs: Vec<Ending>,
    /// How the last one ended; `None` when the mover did not come back.
    pub last: Option<Ending>,
    /// What the last one said of files that stay.
    pub stays: Vec<Failure>,
    /// What was violated.
    pub violations: Vec<Violation>,
    /// What of the last run was still there three seconds after it.
    pub left: Vec<String>,
    /// How many moments were checked.
    pub checks: u64,
    /// How many faults struck.
    pub struck: u64,
    /// How many connections were tried before the last run.
    pub connections: u64,
    /// Bytes that went from the mover to the daemon before the last run.
    pub up: u64,
    /// Bytes that went from the daemon to the mover before the last run.
    pub down: u64,
    /// Content that all runs sent, as far as they lived to tell.
    pub bytes_sent: u64,
    /// How many effects the mover's machine saw before the last run.
    pub mover_effects: u64,
    /// How many effects the daemon's machine saw before the last run.
    pub daemon_effects: u64,
    /// The hash of everything that happened, in its order and at its time.
    pub trace: u64,
    /// The events of both programs.
    pub log: Vec<String>,
}

impl Outcome {
    /// Fails unless everything held, `what` being what was tried.
    #[track_caller]
    pub fn expect_good(&self, what: &dyn Debug) {
        let log = || self.log.join("\n");
        assert_eq!(self.violations, vec![], "{what:?}\n{}", log());
        assert!(
            self.last.as_ref().is_none_or(Ending::is_complete),
            "{what:?}: {:?} {:?}\n{}",
            self.last,
            self.stays,
            log()
        );
        assert!(self.left.is_empty(), "{what:?}: left {:?}\n{}", self.left, log());
    }

    /// Whether the first run of the mover moved everything.
    pub fn first_is_complete(&self) -> bool {
        self.runs.first().is_some_and(Ending::is_complete)
    }
}

/// A rolling hash of what happens.
#[derive(Default)]
struct Trace {
    hash: u64,
    log: Vec<String>,
}

/// What the driver and the programs share.
#[derive(Default)]
struct Shared {
    trace: Mutex<Trace>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often the mover was started.
    started: u8,
    ended: Vec<Ending>,
    stays: Vec<Failure>,
    bytes_sent: u64,
    handles: BTreeMap<&'static str, Handle>,
    /// Open on the daemon's disk when nobody is connected.
    daemon_open: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event, with its time.
    fn note(&self, host: &str, event: &dyn Debug) {
        let text = format!("{:?} {host} {event:?}", now());
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        trace.add(&text);
        trace.log.push(text);
    }

    /// Notes an effect, with its time, in the hash alone.
    fn effect(&self, call: &crate::fs::Call) {
        let text = format!("{:?} {call:?}", now());
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).add(&text);
    }

    fn seen(&self, host: &'static str) {
        self.state().handles.insert(host, Handle::current());
    }
}

impl Trace {
    /// FNV-1a.
    fn add(&mut self, text: &str) {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// Connections to the daemon.
struct SimDial {
    network: SimNetwork,
    connector: Connector,
}

impl Dial for SimDial {
    type Stream = tokio_rustls::client::TlsStream<SimStream>;

    async fn dial(&self) -> Result<Self::Stream, ConnectError> {
        let stream = self.network.connect(DAEMON, PORT).await.map_err(ConnectError::Tcp)?;
        let expected = key(KEYS[1]).public();
        self.connector
            .connect(Some(&expected), stream)
            .await
            .map_err(ConnectError::Tls)
    }
}

/// A service on this host or on the other.
#[derive(Clone)]
enum Service {
    Local(SimService<SimFs>),
    Remote(Link),
}

impl Stub for Service {
    type Req = realize::service::RealizeServiceRequest;
    type Resp = realize::service::RealizeServiceResponse;

    async fn call(
        &self,
        context: tarpc::context::Context,
        request: Self::Req,
    ) -> Result<Self::Resp, tarpc::client::RpcError> {
        match self {
            Self::Local(service) => service.call(context, request).await,
            Self::Remote(link) => link.call(context, request).await,
        }
    }
}

/// What the mover is made of, each time it starts.
#[derive(Clone)]
struct Mover {
    shared: Arc<Shared>,
    network: SimNetwork,
    disk: Disk,
    direction: Direction,
    seed: u64,
    limits: Limits,
}

impl Mover {
    async fn run(self) -> turmoil::Result {
        self.shared.seen(MOVER);
        let number = {
            let mut state = self.shared.state();
            state.started += 1;
            state.stays.clear();
            state.started
        };
        self.shared.note(MOVER, &"starts");
        let ending = self.realize(number).await;
        self.shared.note(MOVER, &ending);
        self.shared.state().ended.push(ending);
        Ok(())
    }

    /// What `realize` does between its first look at the command line and its last word.
    async fn realize(&self, number: u8) -> Ending {
        let clock = SimClock::new();
        let run = RunId([number; 16]);
        let mut link = LinkId {
            run,
            attempt: 0,
            number: 0,
        };
        // They outlive every try: a sync that failed is not forgotten.
        let (path, name) = match self.direction {
            Direction::Send => ("/source", "local"),
            Direction::Fetch => ("/target", "local"),
        };
        let mut roots = Roots::new(self.disk.fs(), clock.clone(), self.limits.clone(), [1; 16]);
        if let Err(error) = roots.add(name, Path::new(path), false).await {
            let side = realize::algo::Side::Source(0);
            return Ending::Failed(MoveError::Side(side, ServiceError::io("open", &error)));
        }
        let roots = Arc::new(roots);
        let mut moved_before = MoveReport::default();
        let mut tries = 0;
        loop {
            link.attempt += 1;
            let moved = match self.connect_and_move(&clock, link, &roots).await {
                Err(_) if tries > 0 && tries < TRIES_WITHOUT_PROGRESS => {
                    tries += 1;
                    clock.sleep(PAUSE_BEFORE_AGAIN).await;
                    continue;
                }
                Err(error) => return Ending::NotConnected(error.to_string()),
                Ok(moved) => moved,
            };
            let is_lost = is_unanswered(&moved);
            let did_something = moved.as_ref().is_ok_and(MoveReport::did_something);
            tries = if did_something { 1 } else { tries + 1 };
            if let Ok(report) = &moved {
                self.shared.state().bytes_sent += report.bytes_sent;
                moved_before.add(report);
            }
            if is_lost && tries <= TRIES_WITHOUT_PROGRESS {
                continue;
            }
            return match moved {
                Ok(_) => Ending::Report(moved_before),
                Err(error) => Ending::Failed(error),
            };
        }
    }

    /// One move, if there is a connection.
    async fn connect_and_move(
        &self,
        clock: &SimClock,
        id: LinkId,
        roots: &Arc<Roots<SimFs, SimClock>>,
    ) -> Result<Result<MoveReport, MoveError>, ConnectError> {
        let (link, let_in) = self.link(clock, id).await?;
        let local = RealizeServer::new(roots.clone());
        let moved = self.move_once(local.clone(), &link, id).await;
        local.end().await;
        link.close(clock).await;
        if is_unanswered(&moved) {
            let_in.wait().await?;
        }
        Ok(moved)
    }

    async fn link(&self, clock: &SimClock, id: LinkId) -> Result<(Link, LetIn), ConnectError> {
        let dial = SimDial {
            network: self.network.clone(),
            connector: Connector::new(&key(KEYS[0])),
        };
        let shared = self.shared.clone();
        let observer = move |event: LinkEvent| shared.note(MOVER, &event);
        Link::connect(dial, clock.clone(), link_limits(), id, self.seed << 40, observer).await
    }

    async fn move_once(
        &self,
        local: RealizeServer<SimFs, SimClock>,
        link: &Link,
        id: LinkId,
    ) -> Result<MoveReport, MoveError> {
        let local = Service::Local(SimService(local));
        let local = (RealizeServiceClient::from(local), DirId::new("local"));
        let remote = Service::Remote(link.clone());
        let remote = (RealizeServiceClient::from(remote), DirId::new("remote"));
        let (source, target) = match self.direction {
            Direction::Send => (local, remote),
            Direction::Fetch => (remote, local),
        };
        let sources = [Source {
            service: source.0,
            dir: source.1,
            beside_target: false,
            files: None,
        }];
        let target = Target {
            service: target.0,
            dir: Some(target.1),
        };
        let options = MoveOptions {
            limits: self.limits.clone(),
            is_again: id.attempt > 1,
            ..MoveOptions::default()
        };
        let observer = |event: Event<'_>| {
            self.shared.note(MOVER, &event);
            if let Event::Stays(failure) = event {
                self.shared.state().stays.push(failure.clone());
            }
        };
        move_files(&sources, &target, id.run, &options, &observer).await
    }
}

/// The daemon, from its start to its death.
async fn serve(
    shared: Arc<Shared>,
    network: SimNetwork,
    disk: Disk,
    direction: Direction,
    seed: u64,
    limits: Limits,
) -> turmoil::Result {
    shared.seen(DAEMON);
    let clock = SimClock::new();
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
        move |event: realize::daemon::DaemonEvent<'_>| shared.note(DAEMON, &event)
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

/// A simulation under way.
struct Driver<'a> {
    sim: turmoil::Sim<'a>,
    shared: Arc<Shared>,
    checker: Arc<Checker>,
    world: World,
    direction: Direction,
    profile: Profile,
    random: Random,
    /// Hosts that are down, and when they start anew.
    down: BTreeMap<&'static str, (Duration, bool)>,
    deaths: u64,
    comes_back: bool,
    /// The hosts whose power went, and not only their program.
    unpowered: Arc<Mutex<BTreeSet<&'static str>>>,
}

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
        serve(shared, network, disk.clone(), Direction::Send, 1, Limits::default())
    });
    let mover = Mover {
        shared: shared.clone(),
        network,
        disk: from.clone(),
        direction: Direction::Send,
        seed: 1,
        limits: Limits::default(),
    };
    sim.host(MOVER, move || mover.clone().run());
    while shared.state().ended.is_empty() {
        sim.step().expect("a program of the simulation failed");
    }
    let ended = shared.state().ended.remove(0);
    (ended, sim.elapsed().as_secs_f64() / round_trip.as_secs_f64())
}

impl TwoHosts {
    /// A plan in which nothing goes wrong.
    pub fn new(world: World, direction: Direction, seed: u64) -> Self {
        Self {
            world,
            direction,
            seed,
            lines: Vec::new(),
            mover_faults: Vec::new(),
            daemon_faults: Vec::new(),
            profile: Profile::PosixWorst,
            comes_back: true,
            reboots: false,
            limits: crate::world::limits(),
        }
    }

    /// Carries the plan out.
    pub fn run(self) -> Outcome {
        let panics = count_panics();
        let (shared, checker) = (Arc::new(Shared::default()), Arc::new(Checker::default()));
        let network = SimNetwork::new(self.seed ^ 0x6e65_7477_6f72_6b00, self.lines);
        let (mover_disk, daemon_disk) = match self.direction {
            Direction::Send => (self.world.source.clone(), self.world.target.clone()),
            Direction::Fetch => (self.world.target.clone(), self.world.source.clone()),
        };
        let mut sim = turmoil::Builder::new()
            .rng_seed(self.seed)
            .epoch(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
            .simulation_duration(2 * PHASE)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(6))
            .tcp_capacity(1024)
            .build();
        {
            let (shared, network, disk) = (shared.clone(), network.clone(), daemon_disk.clone());
            let (direction, seed, limits) = (self.direction, self.seed, self.limits.clone());
            sim.host(DAEMON, move || {
                serve(
                    shared.clone(),
                    network.clone(),
                    disk.clone(),
                    direction,
                    seed,
                    limits.clone(),
                )
            });
        }
        let mover = Mover {
            shared: shared.clone(),
            network: network.clone(),
            disk: mover_disk.clone(),
            direction: self.direction,
            seed: self.seed,
            limits: self.limits,
        };
        sim.host(MOVER, move || mover.clone().run());
        let mut driver = Driver {
            sim,
            shared: shared.clone(),
            checker: checker.clone(),
            world: self.world,
            direction: self.direction,
            profile: self.profile,
            random: Random::new(self.seed ^ 0x6372_6173_6800),
            down: BTreeMap::new(),
            deaths: 0,
            comes_back: self.comes_back,
            unpowered: Arc::default(),
        };
        let disks = [mover_disk, daemon_disk];
        driver.watch();
        let faults = [(MOVER, self.mover_faults), (DAEMON, self.daemon_faults)];
        for (disk, (host, faults)) in disks.iter().zip(faults) {
            faults.into_iter().for_each(|fault| disk.machine().inject(fault));
            let unpowered = driver.unpowered.clone();
            disk.machine().on_off(move |fault| {
                if matches!(fault.kind, Kind::PowerCut(_)) {
                    // Nothing of this tick leaves the host any more.
                    turmoil::partition(MOVER, DAEMON);
                    unpowered.lock().unwrap_or_else(PoisonError::into_inner).insert(host);
                }
            });
        }
        // Each death is followed by a new start.
        driver.until_ended();
        let runs = std::mem::take(&mut shared.state().ended);
        let [mover_effects, daemon_effects] = [0, 1].map(|nth: usize| disks[nth].machine().effects());
        let struck = network.struck() + driver.deaths;
        let [up, down] = [Way::Up, Way::Down].map(|way| network.bytes(way));
        let connections = network.connections();

        network.heal();
        disks.iter().for_each(|disk| {
            disk.machine().heal();
        });
        if self.reboots {
            driver.sim.crash(MOVER);
            driver.sim.crash(DAEMON);
            disks.iter().for_each(|disk| disk.machine().reboot());
            driver.world.rebase();
            driver.sim.bounce(DAEMON);
        }
        // Whoever still waits for a lost connection finds out.
        driver.pass(daemon_limits().idle * 2 + daemon_limits().handshake);
        if self.comes_back {
            driver.sim.bounce(MOVER);
            driver.until_ended();
        } else {
            driver.pass(daemon_limits().session_kept);
        }
        driver.pass(AFTERWARDS);

        let mut left = Vec::new();
        let mut expect = |what: &str, count: usize, expected: usize| {
            if count != expected {
                left.push(format!("{count} {what}, not {expected}"));
            }
        };
        let state = shared.state();
        expect("streams", network.streams(), 0);
        expect("handles at the mover", disks[0].open_handles(), 0);
        expect("handles at the daemon", disks[1].open_handles(), state.daemon_open);
        for (host, handle) in &state.handles {
            expect(&format!("tasks of the {host}"), handle.metrics().num_alive_tasks(), 0);
        }
        expect("panics", (count_panics() - panics) as usize, 0);
        let last = state.ended.last().cloned();
        if let Some(last) = &last {
            let is_complete = last.is_complete() || driver.world.is_left_to_others(&state.stays);
            checker.check_complete(is_complete, "the last run");
            checker.check_end(&driver.world);
        }
        let mut trace = shared.trace.lock().unwrap_or_else(PoisonError::into_inner);
        Outcome {
            runs,
            last,
            stays: state.stays.clone(),
            violations: checker.violations(),
            left,
            checks: checker.checks(),
            struck,
            connections,
            up,
            down,
            bytes_sent: state.bytes_sent,
            mover_effects,
            daemon_effects,
            trace: trace.hash,
            log: std::mem::take(&mut trace.log),
        }
    }
}

impl Driver<'_> {
    /// Checks the law on both machines, and hashes their effects.
    fn watch(&self) {
        for machine in [self.world.source.machine(), self.world.target.machine()] {
            let (world, checker, shared) = (self.world.clone(), self.checker.clone(), self.shared.clone());
            machine.watch(move |moment, call| {
                if moment == Moment::After {
                    shared.effect(call);
                }
                checker.check(&world, moment, call);
            });
        }
    }

    fn disk(&self, host: &str) -> &Disk {
        match (host == MOVER) == (self.direction == Direction::Send) {
            true => &self.world.source,
            false => &self.world.target,
        }
    }

    /// Runs until the mover has ended, or died for good.
    fn until_ended(&mut self) {
        let before = self.shared.state().ended.len();
        let limit = self.sim.elapsed() + PHASE;
        let is_dead = |driver: &Self| !driver.comes_back && driver.deaths > 0;
        while (self.shared.state().ended.len() == before || !self.down.is_empty()) && !is_dead(self) {
            assert!(
                self.sim.elapsed() < limit,
                "the mover does not end:\n{}",
                self.shared
                    .trace
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .log
                    .join("\n")
            );
            self.step();
        }
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.sim.elapsed() + duration;
        while self.sim.elapsed() < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.sim.step().expect("a program of the simulation failed");
        for host in [MOVER, DAEMON] {
            if !self.disk(host).machine().is_on() {
                self.die(host);
            }
            let back = self.down.get(host).filter(|(until, _)| self.sim.elapsed() >= *until);
            if let Some((_, is_power)) = back.copied() {
                self.down.remove(host);
                self.sim.bounce(host);
                if is_power {
                    self.sim.repair(MOVER, DAEMON);
                }
            }
        }
    }

    /// The host has died at a call: what is left of it goes.
    fn die(&mut self, host: &'static str) {
        self.deaths += 1;
        let mut unpowered = self.unpowered.lock().unwrap_or_else(PoisonError::into_inner);
        let is_power = unpowered.remove(host);
        drop(unpowered);
        self.sim.crash(host);
        let disk = self.disk(host).clone();
        if is_power {
            disk.machine().crash(self.profile, &mut self.random);
            self.world.rebase();
            self.watch();
        } else {
            disk.machine().restart();
        }
        if self.comes_back || host != MOVER {
            self.down.insert(host, (self.sim.elapsed() + DOWN, is_power));
        }
    }
}

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// How many panics there were on this thread, from the first call on: a task that panics tells nobody else.
fn count_panics() -> u64 {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            before(info);
        }));
    });
    PANICS.with(Cell::get)
}
