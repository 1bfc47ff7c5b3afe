//! One machine: its disks, the effects counted over all of them, its power switch, and the faults that strike.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use realize::{
    model::{RelPath, Timestamp},
    store::names,
};
use rustix::io::Errno;
use tokio::{sync::watch, time::Instant};

use super::{
    Disk,
    crash::{Image, Profile},
    fault::{Act, At, Cache, Call, Fault, Kind, Off, Op},
    tree::Tree,
};
use crate::random::Random;

/// When the virtual wall clock starts, if nobody sets one: November 2023.
const EPOCH_SECS: i64 = 1_700_000_000;

type Watch = Arc<dyn Fn(Moment, &Call) + Send + Sync>;
type Hook = Arc<dyn Fn(&Fault) + Send + Sync>;
type Wall = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// When a watcher is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before the call takes effect (and after a third party's act that strikes there).
    Before,
    /// After it took effect, before its caller learns of it.
    After,
}

/// A machine with disks. Cheap to clone; clones are the same one.
#[derive(Clone)]
pub struct Machine(Arc<Mutex<State>>);

pub(super) struct State {
    /// Decides what faults leave.
    pub random: Random,
    /// Decides which calls stall: a stream of its own, so that a fault more or less moves nothing else.
    stalls: Random,
    pub trees: BTreeMap<u64, Tree>,
    effects: u64,
    reads: u64,
    counts: BTreeMap<(u64, Op), u64>,
    bytes: BTreeMap<(u64, Op), u64>,
    log: Option<Vec<Call>>,
    faults: Vec<(Fault, u64)>,
    struck: Vec<(Kind, Call)>,
    boots: u64,
    is_untold: bool,
    off: Option<Off>,
    /// How calls of dead handles behave.
    dead: Off,
    power: watch::Sender<bool>,
    stall_one_in: u64,
    watch: Option<Watch>,
    on_off: Option<Hook>,
    wall: Option<Wall>,
    ticks: u64,
    /// By how many seconds the time of day has jumped.
    jumped: i64,
    /// By how many thousandths it is too fast.
    drift: i64,
    stalled_until: Option<Instant>,
    /// A pause that has begun, until the lines know.
    pause: Option<Duration>,
}

/// What the faults do to one call.
#[derive(Default)]
pub(super) struct Strike {
    pub error: Option<Errno>,
    pub short: Option<usize>,
    pub sync_lost: Option<(Errno, Cache)>,
    pub write_back_lost: Option<(Errno, Cache)>,
    acts: Vec<super::fault::Act>,
    rot: Vec<(u64, RelPath, u64)>,
    off: Option<(Fault, Off)>,
}

/// On what a call works, and the second name of one that has two.
pub(super) type Paths = (Option<RelPath>, Option<RelPath>);

/// A call as it comes in.
pub(super) struct Request<'a> {
    pub device: u64,
    pub generation: u64,
    pub op: Op,
    /// Finds out on what the call works; only asked with the lock held.
    pub paths: &'a (dyn Fn(&Tree) -> Paths + Sync),
}

impl Machine {
    /// A machine whose stalls, torn sectors and the like `seed` decides.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: Random::new(seed),
            stalls: Random::new(seed ^ 0x0073_7461_6c6c_7300),
            trees: BTreeMap::new(),
            effects: 0,
            reads: 0,
            counts: BTreeMap::new(),
            bytes: BTreeMap::new(),
            log: None,
            faults: Vec::new(),
            struck: Vec::new(),
            boots: 1,
            is_untold: false,
            off: None,
            dead: Off::Fail,
            power: watch::Sender::new(true),
            stall_one_in: 8,
            watch: None,
            on_off: None,
            wall: None,
            ticks: 0,
            jumped: 0,
            drift: 0,
            stalled_until: None,
            pause: None,
        })))
    }

    /// The disk of this device number, made empty when it is not there yet.
    pub fn disk(&self, device: u64) -> Disk {
        let mut state = self.lock();
        let now = state.tick();
        state.trees.entry(device).or_insert_with(|| Tree::new(device, now));
        Disk::new(self.clone(), device)
    }

    /// A machine that has the past of this one, and whose disks (by device number) a power loss left so.
    pub fn after(&self, seed: u64, disks: impl IntoIterator<Item = (u64, Image)>) -> Self {
        let after = Self::new(seed);
        {
            let (before, mut state) = (self.lock(), after.lock());
            (state.ticks, state.boots) = (before.ticks, before.boots + 1);
            for (device, image) in disks {
                let mut tree = Tree::new(device, state.tick());
                tree.refusals = before.trees[&device].refusals;
                tree.reset(image.inodes, image.names);
                state.trees.insert(device, tree);
            }
        }
        after
    }

    /// All its disks.
    pub fn disks(&self) -> Vec<Disk> {
        let devices: Vec<u64> = self.lock().trees.keys().copied().collect();
        devices
            .into_iter()
            .map(|device| Disk::new(self.clone(), device))
            .collect()
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push((fault, 0));
    }

    /// Takes away the faults that have not struck, and what lasts of those that have; what they were.
    pub fn heal(&self) -> Vec<Fault> {
        let mut state = self.lock();
        (state.jumped, state.drift, state.stalled_until) = (0, 0, None);
        std::mem::take(&mut state.faults)
            .into_iter()
            .map(|(fault, _)| fault)
            .collect()
    }

    /// How often it was started: more after each [`crash`](Self::crash).
    pub fn boots(&self) -> u64 {
        self.lock().boots
    }

    /// Nothing is lost but what a failed sync has lost already: all else is written back, and the machine starts anew.
    pub fn reboot(&self) {
        self.disks().iter().for_each(Disk::write_back);
        self.crash(Profile::Ordered, &mut Random::new(0));
    }

    /// The faults that have struck, and which calls they met.
    pub fn struck(&self) -> Vec<(Kind, Call)> {
        self.lock().struck.clone()
    }

    /// Says of the act that strikes just now that it did nothing: it does not count among the faults that have struck.
    pub fn has_not_acted(&self) {
        let mut state = self.lock();
        if let Some(last) = state.struck.iter().rposition(|(kind, _)| matches!(kind, Kind::Act(_))) {
            state.struck.remove(last);
        }
    }

    /// One call in `n` sleeps a millisecond; none when 0. It starts at 8.
    pub fn stall_one_in(&self, n: u64) {
        self.lock().stall_one_in = n;
    }

    /// Takes the times of files from `wall`, as they come, coarse or going back. Without it every change has its own
    /// microsecond. `wall` is called with the machine locked: it must not look at it.
    pub fn set_wall(&self, wall: impl Fn() -> Timestamp + Send + Sync + 'static) {
        self.lock().wall = Some(Arc::new(wall));
    }

    /// Calls `watch` before and after every effect. It may look at disks, but not await.
    pub fn watch(&self, watch: impl Fn(Moment, &Call) + Send + Sync + 'static) {
        self.lock().watch = Some(Arc::new(watch));
    }

    /// Calls `hook` at the moment a power cut or a kill strikes, before anything else runs.
    pub fn on_off(&self, hook: impl Fn(&Fault) + Send + Sync + 'static) {
        self.lock().on_off = Some(Arc::new(hook));
    }

    /// Nobody watches any more: who does holds the machine as long as that holds them.
    pub fn unwatch(&self) {
        let mut state = self.lock();
        (state.watch, state.on_off) = (None, None);
        state.faults.clear();
    }

    /// Ends once the machine is off.
    pub async fn until_off(&self) {
        let mut power = self.lock().power.subscribe();
        power
            .wait_for(|on| !on)
            .await
            .expect("this handle keeps the machine and its sender");
    }

    /// Whether it runs.
    pub fn is_on(&self) -> bool {
        self.lock().off.is_none()
    }

    /// Switches the power off between two calls.
    pub fn power_off(&self, off: Off) {
        self.lock().switch_off(off);
    }

    /// What a power loss leaves, on every disk; then the power is back. Handles and locks of before are dead.
    pub fn crash(&self, profile: Profile, random: &mut Random) {
        let mut state = self.lock();
        for tree in state.trees.values_mut() {
            let image = tree.crash_image(profile, random);
            tree.reset(image.inodes, image.names);
        }
        state.boots += 1;
        state.switch_on();
    }

    /// The program starts anew: its handles, locks and leases of before are gone, the disks are as they were seen.
    pub fn restart(&self) {
        let mut state = self.lock();
        state.trees.values_mut().for_each(Tree::kill);
        state.switch_on();
    }

    /// How many effects there were: changes and syncs, failed ones too.
    pub fn effects(&self) -> u64 {
        self.lock().effects
    }

    /// How many calls there were that are no effects.
    pub fn reads(&self) -> u64 {
        self.lock().reads
    }

    /// How many calls of one kind there were on a disk.
    pub fn count(&self, device: u64, op: Op) -> u64 {
        self.lock().counts.get(&(device, op)).copied().unwrap_or(0)
    }

    /// How many bytes were read or written on a disk.
    pub fn bytes(&self, device: u64, op: Op) -> u64 {
        self.lock().bytes.get(&(device, op)).copied().unwrap_or(0)
    }

    /// Starts to note every call.
    pub fn keep_log(&self) {
        self.lock().log.get_or_insert_default();
    }

    /// The calls noted so far. The index of each counts effects, or else reads.
    pub fn log(&self) -> Vec<Call> {
        self.lock().log.clone().unwrap_or_default()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a failed assertion of the simulator: the test fails anyway.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// By how many milliseconds the time of day is fast, for a program that began `elapsed` ago.
    pub fn millis_fast(&self, elapsed: Duration) -> i64 {
        let state = self.lock();
        state.jumped * 1000 + elapsed.as_millis() as i64 * state.drift / 1000
    }

    /// For how long the host's lines carry nothing from now on; told once.
    pub fn take_pause(&self) -> Option<Duration> {
        self.lock().pause.take()
    }

    /// The yield point of every call.
    #[expect(clippy::disallowed_methods, reason = "below the seam: the disk itself takes time")]
    async fn step(&self) {
        let stalls = {
            let mut state = self.lock();
            let one_in = state.stall_one_in;
            state.stalls.one_in(one_in)
        };
        if stalls {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.wait_out().await;
    }

    /// Waits for the end of a stall.
    #[expect(clippy::disallowed_methods, reason = "below the seam: the disk itself takes time")]
    async fn wait_out(&self) {
        let until = self.lock().stalled_until;
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
    }

    /// One call: the yield point, the faults, then `work` under the lock.
    pub(super) async fn call<T>(
        &self,
        request: Request<'_>,
        work: impl FnOnce(&mut Tree, &Strike, &mut Random) -> Result<T, Errno>,
    ) -> io::Result<T> {
        self.step().await;
        match self.call_now(request, work) {
            Ok(result) => {
                self.wait_out().await;
                result.map_err(io::Error::from)
            }
            Err(Off::Fail) => Err(Errno::IO.into()),
            Err(Off::Hang) => std::future::pending().await,
        }
    }

    /// `Err` when the caller gets no answer.
    fn call_now<T>(
        &self,
        request: Request<'_>,
        work: impl FnOnce(&mut Tree, &Strike, &mut Random) -> Result<T, Errno>,
    ) -> Result<Result<T, Errno>, Off> {
        let (call, mut strike, watch) = {
            let mut state = self.lock();
            state.check_alive(request.device, request.generation)?;
            let (path, to) = match state.wants_paths(request.op) {
                true => (request.paths)(&state.trees[&request.device]),
                false => (None, None),
            };
            let call = state.count(request.device, request.op, path, to);
            let strike = state.strike(&call);
            (call, strike, state.watch.clone().filter(|_| request.op.is_effect()))
        };
        for act in std::mem::take(&mut strike.acts) {
            (act.0)(self);
        }
        if let Some(watch) = &watch {
            watch(Moment::Before, &call);
        }
        let result = {
            let mut state = self.lock();
            // An act may have cut the power.
            state.check_alive(request.device, request.generation)?;
            let now = state.tick();
            let State { trees, random, .. } = &mut *state;
            for (device, path, offset) in &strike.rot {
                if let Some(tree) = trees.get_mut(device)
                    && let Some((dir, name)) = path.split()
                    && let Ok(ino) = tree
                        .walk(super::tree::ROOT, &dir)
                        .and_then(|dir| tree.lookup(dir, &name))
                {
                    tree.rot(ino, *offset);
                }
            }
            let tree = trees.get_mut(&request.device).expect("disks are never taken away");
            tree.now = now;
            let is_kill = matches!(
                &strike.off,
                Some((
                    Fault {
                        kind: Kind::Kill(_),
                        ..
                    },
                    _
                ))
            );
            let result = match (strike.error, &strike.off) {
                (Some(errno), _) => Err(errno),
                (None, Some(_)) if request.op.is_sync() && !is_kill => Err(Errno::IO),
                (None, _) => work(tree, &strike, random),
            };
            if let Some((_, off)) = &strike.off {
                state.switch_off(*off);
            }
            result
        };
        if let Some(watch) = &watch {
            watch(Moment::After, &call);
        }
        if let Some((fault, off)) = strike.off {
            let hook = self.lock().on_off.clone();
            if let Some(hook) = hook {
                hook(&fault);
            }
            return Err(off);
        }
        Ok(result)
    }

    pub(super) fn add_bytes(&self, device: u64, op: Op, count: usize) {
        *self.lock().bytes.entry((device, op)).or_default() += count as u64;
    }
}

impl State {
    fn check_alive(&self, device: u64, generation: u64) -> Result<(), Off> {
        match self.off {
            Some(off) => Err(off),
            None if self.trees[&device].generation != generation => Err(self.dead),
            None => Ok(()),
        }
    }

    /// The wall clock now.
    pub fn tick(&mut self) -> Timestamp {
        self.ticks += 1;
        match &self.wall {
            Some(wall) => wall(),
            None => Timestamp {
                secs: EPOCH_SECS + self.jumped + (self.ticks / 1_000_000) as i64,
                nanos: (self.ticks % 1_000_000) as u32 * 1000,
            },
        }
    }

    fn switch_off(&mut self, off: Off) {
        (self.off, self.dead) = (Some(off), off);
        self.power.send_replace(false);
    }

    fn switch_on(&mut self) {
        self.off = None;
        self.is_untold = false;
        // It was to end by the clock of a program that is gone.
        self.stalled_until = None;
        self.power.send_replace(true);
    }

    fn wants_paths(&self, op: Op) -> bool {
        let logged = self.log.is_some() || (op.is_effect() && self.watch.is_some());
        logged
            || self
                .faults
                .iter()
                .any(|(fault, _)| matches!(fault.at, At::Call { path: Some(_), .. }))
    }

    fn count(&mut self, device: u64, op: Op, path: Option<RelPath>, to: Option<RelPath>) -> Call {
        *self.counts.entry((device, op)).or_default() += 1;
        let counter = if op.is_effect() {
            &mut self.effects
        } else {
            &mut self.reads
        };
        let index = *counter;
        *counter += 1;
        let call = Call {
            index,
            device,
            op,
            path,
            to,
        };
        if let Some(log) = self.log.as_mut() {
            log.push(call.clone());
        }
        call
    }

    /// Takes out the faults that strike this call.
    fn strike(&mut self, call: &Call) -> Strike {
        let mut strike = Strike::default();
        let mut met = Vec::new();
        self.faults.retain_mut(|(fault, seen)| {
            if !strikes(&fault.at, seen, call) {
                return true;
            }
            match fault.kind.clone() {
                Kind::PowerCut(off) | Kind::Kill(off) => strike.off = Some((fault.clone(), off)),
                Kind::Error(errno) => strike.error = Some(errno),
                Kind::SyncLost(errno, cache) => strike.sync_lost = Some((errno, cache)),
                Kind::WriteBackLost(errno, cache) => strike.write_back_lost = Some((errno, cache)),
                Kind::Short(bytes) => strike.short = Some(bytes),
                Kind::BitRot { device, path, offset } => strike.rot.push((device, path, offset)),
                #[expect(clippy::disallowed_methods, reason = "below the seam: the disk itself takes time")]
                Kind::Stall(duration) | Kind::Pause(duration) => {
                    self.stalled_until = Some(Instant::now() + duration);
                    self.pause = matches!(fault.kind, Kind::Pause(_)).then_some(duration).or(self.pause);
                }
                Kind::Clock(seconds, drift) => (self.jumped, self.drift) = (self.jumped + seconds, drift),
                Kind::Act(act) => strike.acts.push(act),
            }
            let kind = match &fault.kind {
                // What it would do holds on to the machine.
                Kind::Act(_) => Kind::Act(Act(Arc::new(|_| {}))),
                kind => kind.clone(),
            };
            met.push(kind);
            false
        });
        // A process that is killed before it could tell of a failed sync of a directory has nobody to tell it: documented, and left out.
        let name = call.path.as_ref().and_then(RelPath::split).map(|(_, name)| name);
        let is_mark = name.is_some_and(|name| names::classify(&name) == names::NameKind::Unsynced);
        self.is_untold &= call.op != Op::Create || !is_mark;
        self.is_untold |= strike.sync_lost.is_some() && call.op == Op::DirSync;
        if self.is_untold
            && matches!(
                &strike.off,
                Some((
                    Fault {
                        kind: Kind::Kill(_),
                        ..
                    },
                    _
                ))
            )
        {
            strike.off = None;
            met.retain(|kind| !matches!(kind, Kind::Kill(_)));
        }
        self.struck.extend(met.into_iter().map(|kind| (kind, call.clone())));
        strike
    }
}

fn strikes(at: &At, seen: &mut u64, call: &Call) -> bool {
    match at {
        At::Effect(index) => call.op.is_effect() && call.index == *index,
        At::Read(index) => !call.op.is_effect() && call.index == *index,
        At::Call { op, path, nth } => {
            let matches = *op == call.op && (path.is_none() || *path == call.path || *path == call.to);
            *seen += u64::from(matches);
            matches && *seen == nth + 1
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Machine")
    }
}
