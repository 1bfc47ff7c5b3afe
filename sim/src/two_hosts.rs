//! Two hosts, each with a disk on a machine of its own, and moves between them: the real daemon, the real link, TLS, on virtual
//! time. A [`TwoHosts`] is a plan of what goes wrong; [`TwoHosts::run`] carries it out in two phases. At first things go wrong. Then
//! nothing does any more, what is left over gets the time to notice, and a last run must complete.
//!
//! The mover does what `realize` does: it begins again when the other side has lost the session. The host that dies, dies by
//! a fault of its machine: the call never returns, the process is gone with the tick, and starts anew after a while.

mod bounds;
mod calls;
mod daemon;
mod driver;
mod mover;
mod rates;
mod round_trips;

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use realize::{
    algo::{Failure, MoveError, MoveReport, TryLimits},
    client::LinkLimits,
    daemon::DaemonLimits,
    keys::SecretKey,
    limits::Limits,
    throttle::Rate,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

pub use self::{bounds::Owed, calls::Calls, round_trips::count_round_trips};
use self::{daemon::serve, driver::Driver, mover::Mover};
use crate::{
    check::{Checker, Property, Violation},
    fs::{Call, Fault, Kind, Profile},
    net::{LinePlan, SimNetwork, Way},
    random::Random,
    world::World,
};

const MOVER: &str = "mover";
const DAEMON: &str = "daemon";
const PORT: u16 = 9771;

/// The root that files go to.
const TARGET_ROOT: &[&str] = &["target"];

/// One step of the simulation. Longer ones leave fewer orders in which things may happen.
const TICK: Duration = Duration::from_millis(2);

/// How long a host that died stays down.
const DOWN: Duration = Duration::from_millis(400);

/// In this time a daemon listens.
const STARTED: Duration = Duration::from_millis(100);

/// No phase may take longer. Every wait of the programs is far shorter.
const PHASE: Duration = Duration::from_secs(90);

/// How long after the last run nothing of it may be left, but for partials that are kept open.
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

/// Tries of a mover, with short waits.
fn try_limits() -> TryLimits {
    TryLimits {
        after_loss: Duration::from_millis(20),
        pause: Duration::from_millis(500),
        held: Duration::from_secs(4),
        ..TryLimits::default()
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
    /// Whether both hosts are started anew before the last run, as they are where a sync has failed: nothing is confirmed before that.
    pub reboots: bool,
    /// What each side sends at most, in bytes per second.
    pub rate: Option<Rate>,
    /// What ends the first run of the mover before its end.
    pub early: Option<Early>,
    /// What the daemon is configured to be for a while.
    pub reload: Option<Reload>,
    /// Sizes and counts of both sides.
    pub limits: Limits,
    /// Called before each try of the mover.
    pub before_try: Arc<dyn Fn() + Send + Sync>,
}

/// What ends a run before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Early {
    /// A signal, so many milliseconds after its start.
    Signal(u16),
    /// So many milliseconds after its start its time is over.
    TimeOver(u16),
}

/// A daemon that reads another configuration, and after a while its own again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// So many milliseconds after it has started.
    pub after: u16,
    /// After so many more its own, or once nothing is to go wrong any more.
    pub lasts: u16,
    /// The other one.
    pub other: OtherConfig,
}

/// What is configured otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtherConfig {
    /// Nothing.
    Same,
    /// The mover may only read.
    ReadOnly,
    /// The mover is not known.
    WithoutPeer,
    /// The directories have another option, which makes them others.
    Directories,
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
    /// Before its end.
    Cut,
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
    /// What of the last run was still there when nothing should have been.
    pub left: Vec<String>,
    /// How many moments were checked.
    pub checks: u64,
    /// How many faults struck.
    pub struck: u64,
    /// How many faults struck lines, refused and unanswered connections among them.
    pub line_faults: u64,
    /// The faults of lines, each with the calls that it met.
    pub met: Vec<(&'static str, String)>,
    /// What the calls over links took.
    pub calls: Calls,
    /// The most handles that were open at once, at the mover and at the daemon.
    pub most_open: [usize; 2],
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
    calls: Calls,
    met: Vec<(&'static str, String)>,
    /// How often the daemon was told what to send at most.
    rates_told: u64,
    /// Open on the daemon's disk when nobody is connected.
    daemon_open: usize,
    /// What the mover may not do now, and how often that has changed before.
    withheld: (Option<OtherConfig>, u64),
    /// Whether the daemon is to read its own configuration again, or is about to.
    is_reloaded: bool,
    /// Whether nothing is to go wrong any more.
    is_calm: bool,
    /// What was done that nobody had the right to.
    wrongs: Vec<String>,
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
    fn effect(&self, call: &Call) {
        let text = format!("{:?} {call:?}", now());
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).add(&text);
    }

    /// The mover has the rights of this configuration from now on, where it is another.
    fn withhold(&self, other: Option<OtherConfig>) {
        let withheld = &mut self.state().withheld;
        *withheld = (other, withheld.1 + 1);
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
            rate: None,
            early: None,
            reload: None,
            limits: crate::world::limits(),
            before_try: Arc::new(|| {}),
        }
    }

    /// Carries the plan out.
    pub fn run(self) -> Outcome {
        let panics = count_panics();
        let (shared, checker) = (Arc::new(Shared::default()), Arc::new(Checker::default()));
        let network = SimNetwork::new(self.seed ^ 0x6e65_7477_6f72_6b00, self.lines);
        network.on_strike({
            let shared = shared.clone();
            move |trouble| {
                let mut state = shared.state();
                let met = state.calls.under_way();
                state.met.extend(met.into_iter().map(|call| (trouble, call)));
            }
        });
        if self.rate.is_some() {
            network.note_sent();
        }
        let (mover_disk, daemon_disk) = match self.direction {
            Direction::Send => (self.world.source.clone(), self.world.target.clone()),
            Direction::Fetch => (self.world.target.clone(), self.world.source.clone()),
        };
        let sources = self.world.source_roots();
        let mut sim = turmoil::Builder::new()
            .rng_seed(self.seed)
            .epoch(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
            .simulation_duration(8 * PHASE)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(6))
            .tcp_capacity(1024)
            .build();
        {
            let (shared, network, disk) = (shared.clone(), network.clone(), daemon_disk.clone());
            let (seed, limits, reload) = (self.seed, self.limits.clone(), self.reload);
            let served = match self.direction {
                Direction::Send => TARGET_ROOT,
                Direction::Fetch => sources,
            };
            sim.host(DAEMON, move || {
                serve(
                    shared.clone(),
                    network.clone(),
                    disk.clone(),
                    seed,
                    limits.clone(),
                    served,
                    reload,
                )
            });
        }
        let kept_for = self.limits.partials_kept_for;
        // Most runs end as soon as they can; in some a daemon without anything to do goes on doing it.
        let is_watched = self.seed.is_multiple_of(16);
        let mover = Mover {
            shared: shared.clone(),
            network: network.clone(),
            disk: mover_disk.clone(),
            direction: self.direction,
            seed: self.seed,
            rate: self.rate,
            early: self.early,
            limits: self.limits,
            sources,
            before_try: self.before_try,
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
            paused_until: None,
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
        shared.state().is_calm = true;
        disks.iter().for_each(|disk| {
            disk.machine().heal();
        });
        let sync_failed = disks.iter().any(|disk| {
            let struck = disk.machine().struck();
            struck
                .iter()
                .any(|(kind, call)| matches!(kind, Kind::Error(_)) && call.op.is_sync())
        });
        if self.reboots || sync_failed || driver.world.is_doubtful() {
            driver.sim.crash(MOVER);
            driver.sim.crash(DAEMON);
            disks.iter().for_each(|disk| disk.machine().reboot());
            driver.world.rebase();
            driver.sim.bounce(DAEMON);
        }
        // A daemon that has started anew listens. Then whoever still waits for a lost connection finds out.
        driver.pass(STARTED);
        let found_out = daemon_limits().idle * 2 + daemon_limits().handshake;
        // What a daemon is still finishing for a run that was ended would stay, because it is another by the time the next has looked at it.
        let is_still = || {
            let state = shared.state();
            network.streams() == 0 && disks[1].open_handles() <= state.daemon_open && !state.is_reloaded
        };
        driver.pass_until(found_out, || !is_watched && is_still());
        if self.comes_back {
            // What the one before had open ends with its process; a job that a disk had stalled may have been at it.
            driver.sim.crash(MOVER);
            disks[0].machine().restart();
            driver.sim.bounce(MOVER);
            driver.until_ended();
        } else {
            driver.pass(daemon_limits().session_kept);
        }
        let what_is_left = || {
            let state = shared.state();
            let tasks = |host: &str| {
                state
                    .handles
                    .get(host)
                    .map_or(0, |host| host.metrics().num_alive_tasks())
            };
            let counts = [
                ("streams", network.streams(), 0),
                ("handles at the mover", disks[0].open_handles(), 0),
                ("handles at the daemon", disks[1].open_handles(), state.daemon_open),
                ("tasks of the mover", tasks(MOVER), 0),
                ("tasks of the daemon", tasks(DAEMON), 0),
                ("panics", (count_panics() - panics) as usize, 0),
            ];
            counts.into_iter().filter(|(_, count, expected)| count != expected)
        };
        driver.pass_until(AFTERWARDS + kept_for, || !is_watched && what_is_left().next().is_none());

        disks.iter().for_each(|disk| disk.machine().unwatch());
        let left = what_is_left()
            .map(|(what, count, expected)| format!("{count} {what}, not {expected}"))
            .collect();
        if let Some(rate) = self.rate {
            let told = shared.state().rates_told;
            let sent = [Way::Up, Way::Down].map(|way| network.sent(way));
            rates::check(rate, &sent, told, &checker);
        }
        let state = shared.state();
        for wrong in &state.wrongs {
            checker.report(Property::Rights, wrong);
        }
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
            line_faults: network.struck(),
            met: state.met.clone(),
            calls: state.calls.clone(),
            most_open: [0, 1].map(|nth: usize| disks[nth].most_open_handles()),
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

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// How many panics there were on this thread, from the first call on: a task that panics tells nobody else.
pub(crate) fn count_panics() -> u64 {
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
