//! Carries a plan out: at first things go wrong, then nothing does any more, and a last run must complete.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use realize::{model::RelPath, throttle::Rate};

use super::{Act, Coverage, Errno, FaultPlan, FilePlan, Lack, NAMES, Plan, Scenario, Step, There};
use crate::{
    check::{Checker, Property, Violation, gone},
    fs::{self, At, Call, Disk, Fault, Kind, Machine, Moment, Off, Op, Refusals},
    net::LinePlan,
    random::Random,
    two_hosts::{Direction, Early, Ending, Owed, Reload, TwoHosts, count_panics},
    world::{Body, SOURCE, TARGET, World, at_source, at_target, limits, put},
};

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What was violated.
    pub violations: Vec<Violation>,
    /// What else was not as it must be.
    pub problems: Vec<String>,
    /// How many moments were checked.
    pub checks: u64,
    /// How many faults struck.
    pub struck: usize,
    /// Which steps of the move they met.
    pub coverage: Coverage,
    /// The hash of everything that happened.
    pub trace: u64,
    /// What happened, in virtual time.
    pub log: Vec<String>,
}

impl Verdict {
    /// Whether everything held.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.problems.is_empty()
    }

    /// Which properties were violated, each once. What only did not complete violates the convergence.
    pub fn properties(&self) -> Vec<Property> {
        let mut properties: Vec<_> = self.violations.iter().map(|violation| violation.property).collect();
        if !self.problems.is_empty() {
            properties.push(Property::Convergence);
        }
        properties.sort_unstable();
        properties.dedup();
        properties
    }
}

/// Under any one fault every call is answered within that, or fails: the time to notice that nothing is heard, to connect again, and for a disk
/// that stalls. On a slow line also for what goes before it.
const ANSWER: Duration = Duration::from_secs(6);

/// What somebody else has put under a final name since the program started.
type Theirs = Arc<Mutex<Vec<(RelPath, Body)>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under the lock fails the test anyway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plan {
    /// Carries it out. With `is_told` all that happens is noted.
    pub fn run(&self, is_told: bool) -> Verdict {
        let panics = count_panics();
        let ran = catch_unwind(AssertUnwindSafe(|| match self.scenario {
            Scenario::OneDisk => self.run_on_one_host(true, is_told),
            Scenario::TwoDisks => self.run_on_one_host(false, is_told),
            Scenario::Send => self.run_on_two_hosts(Direction::Send),
            Scenario::Fetch => self.run_on_two_hosts(Direction::Fetch),
        }));
        let mut verdict = ran.unwrap_or_default();
        let panics = count_panics() - panics;
        if panics > 0 {
            // A task that panics tells nobody else.
            verdict.problems.push(format!("{panics} panics"));
        }
        verdict
    }

    fn run_on_two_hosts(&self, direction: Direction) -> Verdict {
        let [source, target] = [0, 1].map(|nth| Machine::new(self.seed.wrapping_mul(2).wrapping_add(nth)));
        let world = World::on(source.disk(SOURCE), target.disk(TARGET), self.files());
        let theirs = Theirs::default();
        self.prepare(&world, &theirs);
        let mut plan = TwoHosts::new(world.clone(), direction, self.seed);
        let overwritten = Arc::new(Mutex::new(Vec::new()));
        plan.before_try = Arc::new({
            let (plan, world, overwritten) = (self.clone(), world.clone(), overwritten.clone());
            move || plan.expect_theirs(&world, &theirs, &mut lock(&overwritten))
        });
        plan.profile = self.profile;
        plan.reboots = self.loses_syncs();
        let lines = self.steps.iter().filter_map(|step| match step {
            Step::Line(line) => Some(line.clone()),
            _ => None,
        });
        plan.lines = lines.collect();
        plan.rate = self.rate().and_then(|rate| Rate::new(rate).ok());
        plan.early = self.early();
        plan.reload = self.reload();
        let outcome = plan.run();
        // A fault of a line may have met several calls.
        let struck = source.struck().len() + target.struck().len() + outcome.line_faults as usize;
        let mut violations = outcome.violations.clone();
        violations.append(&mut lock(&overwritten));
        // A session may end with each configuration.
        let ends = usize::from(self.early().is_some()) + 2 * usize::from(self.reload().is_some());
        let owed = self.owed(&world, struck + ends);
        let answer = ANSWER + self.time_on_slow_lines(owed.bytes);
        violations.extend(outcome.check_resent(owed, &limits()));
        violations.extend(outcome.check_bounded(&limits()));
        let is_slow = |(took, _): &&(Duration, String)| struck <= 1 && *took > answer;
        if let Some((took, call)) = outcome.calls.slowest.as_ref().filter(is_slow) {
            violations.push(Violation::of_run(Property::Answered, &format!("{call} took {took:?}")));
        }
        let mut problems = outcome.left;
        if !outcome.last.as_ref().is_some_and(Ending::is_complete) && !world.is_left_to_others(&outcome.stays) {
            problems.push(format!("the last run: {:?} {:?}", outcome.last, outcome.stays));
        }
        let mut coverage = covered(&[&source, &target]);
        for (trouble, call) in &outcome.met {
            coverage.add_met(trouble, call);
        }
        Verdict {
            violations,
            problems,
            checks: outcome.checks,
            struck,
            coverage,
            trace: outcome.trace,
            log: outcome.log,
        }
    }

    fn run_on_one_host(&self, one_disk: bool, is_told: bool) -> Verdict {
        let machine = Machine::new(self.seed);
        let source = machine.disk(SOURCE);
        let target = if one_disk { source.clone() } else { machine.disk(TARGET) };
        let world = World::on(source, target, self.files());
        let theirs = Theirs::default();
        self.prepare(&world, &theirs);
        let (checker, notes) = (Arc::new(Checker::default()), Arc::new(Mutex::new(Notes::default())));
        watch(&world, &checker, &notes, is_told);
        let went_off = Arc::new(Mutex::new(None));
        machine.on_off({
            let went_off = went_off.clone();
            move |fault: &Fault| *lock(&went_off) = Some(matches!(fault.kind, Kind::PowerCut(_)))
        });
        let mut random = Random::new(self.seed ^ 0x6372_6173_6800);
        let (mut problems, mut overwritten) = (Vec::new(), Vec::new());
        // Who sees a sync fail may run it again at once, before anybody has looked at the disk.
        let mut runs_again = self.loses_syncs();
        // Each fault strikes once, so that is as often as it can die.
        for _ in 0..=self.steps.len() + usize::from(runs_again) {
            let ended = world.move_all();
            lock(&notes).say(is_told, || format!("ended: {ended:?}"));
            let off = lock(&went_off).take();
            match off {
                Some(true) => machine.crash(self.profile, &mut random),
                // Killed or at its end, the program is gone, and with it the clock by which a stall was told.
                Some(false) | None => machine.restart(),
            }
            self.expect_theirs(&world, &theirs, &mut overwritten);
            if off == Some(true) {
                world.rebase();
            }
            if off.is_none() && !std::mem::take(&mut runs_again) {
                break;
            }
        }
        machine.heal();
        machine.restart();
        if self.loses_syncs() || world.is_doubtful() {
            // As the error says: what a failed sync has lost shows then.
            machine.reboot();
            world.rebase();
        }
        lock(&notes).say(is_told, || "nothing goes wrong any more".into());
        let last = world.move_all();
        lock(&notes).say(is_told, || format!("ended: {last:?}"));
        let is_complete = matches!(&last.result, Some(Ok(report)) if report.is_complete());
        checker.check_end(&world);
        if is_complete {
            let again = world.move_all();
            if !matches!(&again.result, Some(Ok(report)) if report.is_complete() && (report.copied, report.bytes_sent) == (0, 0))
            {
                problems.push(format!("one run more: {again:?}"));
            }
        } else if !world.is_left_to_others(&last.stays) {
            problems.push(format!("the last run: {last:?}"));
        }
        machine.unwatch();
        let notes = std::mem::take(&mut *lock(&notes));
        Verdict {
            violations: [checker.violations(), overwritten].concat(),
            problems,
            checks: checker.checks(),
            struck: machine.struck().len(),
            coverage: covered(&[&machine]),
            trace: notes.hash,
            log: notes.log,
        }
    }

    /// What somebody put under a final name in the moment before the move did is still somewhere, until a new run finds it there.
    fn expect_theirs(&self, world: &World, theirs: &Theirs, violations: &mut Vec<Violation>) {
        let put_there = std::mem::take(&mut *lock(theirs));
        // Documented: where these are missing there is a gap.
        if put_there.is_empty() || self.lacks(Lack::Renames) {
            return;
        }
        let nodes = world.target.nodes();
        for (path, body) in put_there {
            if !nodes.values().any(|node| crate::world::is(node, &body)) {
                violations.push(Violation {
                    property: Property::NothingElse,
                    path,
                    at: "what somebody put there is gone".into(),
                });
            }
        }
    }

    /// What two hosts had to send when so many faults had struck.
    fn owed(&self, world: &World, struck: usize) -> Owed {
        let undoes = |(kind, call): &(Kind, Call)| match kind {
            Kind::PowerCut(_) | Kind::SyncLost(..) | Kind::WriteBackLost(..) | Kind::Act(_) => true,
            Kind::Error(_) => call.op.is_sync(),
            _ => false,
        };
        let struck_machines = [world.source.machine(), world.target.machine()]
            .map(Machine::struck)
            .concat();
        let truths = world.truth();
        let versions = truths
            .values()
            .flat_map(|truth| truth.before.iter().chain([&truth.new]));
        let bytes = versions.map(|body| match body {
            Body::File(content) => content.size(),
            Body::Link(_) => 0,
        });
        let slow = self
            .steps
            .iter()
            .filter(|step| matches!(step, Step::Line(LinePlan::Slow(..))));
        Owed {
            files: truths.len() as u64,
            bytes: bytes.sum(),
            faults: (struck + slow.count()) as u64,
            undone: struck_machines.into_iter().filter(undoes).count() as u64,
        }
    }

    fn lacks(&self, lack: Lack) -> bool {
        self.steps.contains(&Step::Lacks(lack))
    }

    /// How long a call may wait for all that goes before it where a line is slow.
    fn time_on_slow_lines(&self, bytes: u64) -> Duration {
        let rates = self.steps.iter().filter_map(|step| match step {
            Step::Line(LinePlan::Slow(rate, _)) => Some(*rate),
            _ => None,
        });
        rates.chain(self.rate()).min().map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(bytes as f64 / rate as f64)
        })
    }

    /// What each side sends at most, in bytes per second: enough for all of it in some seconds, for calls have limits, and phases.
    fn rate(&self) -> Option<u64> {
        const SECONDS: u64 = 4;
        let rate = self.steps.iter().find_map(|step| match step {
            Step::Throttled(rate) => Some(*rate),
            _ => None,
        });
        let bytes = self.files().into_iter().map(|file| match file.new {
            Body::File(content) => content.size(),
            Body::Link(_) => 0,
        });
        rate.map(|rate| rate.max(bytes.sum::<u64>() / SECONDS))
    }

    /// What ends the first run before its end.
    fn early(&self) -> Option<Early> {
        self.steps.iter().find_map(|step| match step {
            Step::Ended(early) => Some(*early),
            _ => None,
        })
    }

    /// What the daemon is configured to be for a while.
    fn reload(&self) -> Option<Reload> {
        self.steps.iter().find_map(|step| match step {
            Step::Reloaded(reload) => Some(*reload),
            _ => None,
        })
    }

    fn loses_syncs(&self) -> bool {
        let loses = |step: &Step| {
            let Step::Fault { kind, .. } = step else { return false };
            matches!(kind, FaultPlan::SyncLost(_) | FaultPlan::WriteBackLost(_))
        };
        self.steps.iter().any(loses)
    }

    /// Sets up what goes wrong on the machines.
    fn prepare(&self, world: &World, theirs: &Theirs) {
        if self.loses_syncs() {
            // What somebody else left unsynced, and a disk then loses, is not the move's to answer for.
            world.target.settle();
        }
        self.take_abilities(world);
        for step in &self.steps {
            match step {
                Step::Line(_) | Step::Lacks(_) | Step::Throttled(_) | Step::Ended(_) | Step::Reloaded(_) => {}
                Step::Fault {
                    at_target,
                    effect,
                    kind,
                } => {
                    // Without leases a file of the future stays until then.
                    if matches!(kind, FaultPlan::Clock(_)) && self.lacks(Lack::Leases) {
                        continue;
                    }
                    let disk = if *at_target { &world.target } else { &world.source };
                    disk.machine().inject(kind.fault(*effect));
                }
                Step::Act { effect, act } => self.inject(world, *effect, *act, theirs),
            }
        }
    }

    /// Takes from the disks what they lack.
    pub(crate) fn take_abilities(&self, world: &World) {
        for disk in [&world.source, &world.target] {
            let renames = self.lacks(Lack::Renames).then_some(rustix::io::Errno::INVAL);
            disk.refuse(Refusals {
                no_replace: renames,
                exchange: renames,
                lease: self.lacks(Lack::Leases).then_some(rustix::io::Errno::INVAL),
                reflink: (self.seed / 2)
                    .is_multiple_of(2)
                    .then_some(rustix::io::Errno::OPNOTSUPP),
                maps_tell: self.seed.is_multiple_of(2),
                ..Refusals::default()
            });
        }
    }

    fn inject(&self, world: &World, effect: u64, act: Act, theirs: &Theirs) {
        let (nth, first, at_target_disk) = match act {
            Act::ReplaceSource(nth, first) | Act::WriteSource(nth, first) | Act::MapSource(nth, first) => {
                (nth, first, false)
            }
            Act::RemoveSource(nth) => (nth, 0, false),
            Act::AppearAtTarget(nth, first) | Act::WriteTarget(nth, first) => (nth, first, true),
        };
        let name = |file: &FilePlan| file.name % NAMES.len();
        // Of two of one name only the first is there.
        let Some(file) = self
            .files
            .get(nth % self.files.len().max(1))
            .and_then(|acted_on| self.files.iter().find(|file| name(file) == name(acted_on)))
        else {
            return;
        };
        let lacks_renames = self.lacks(Lack::Renames);
        // Without leases a writer that comes between the last look and the deletion is not seen: documented.
        if matches!(act, Act::WriteSource(..) | Act::MapSource(..)) && self.lacks(Lack::Leases) {
            return;
        }
        // The new one may get the inode of the old, and then nothing tells them apart: documented.
        if at_target_disk && file.there == There::Lookalike {
            return;
        }
        let path = RelPath::new(NAMES[name(file)]).expect("written here");
        let (disk, at) = match at_target_disk {
            false => (&world.source, At::Effect(effect)),
            true => {
                let (op, nth) = match act {
                    // Compared, its sums told, copied from.
                    Act::WriteTarget(_, odd) if odd % 2 == 1 => (Op::Read, u64::from(odd / 2 % 4)),
                    _ => (Op::Rename, 0),
                };
                let path = Some(at_target(&path));
                (&world.target, At::Call { op, path, nth })
            }
        };
        let (world, theirs) = (world.clone(), theirs.clone());
        let act = move |machine: &Machine| {
            // Between a link and an unlink that stand for a rename there is a gap: documented.
            let gone = gone(&at_source(&path));
            let in_gap = lacks_renames && gone.is_some_and(|gone| world.source.node(&gone).is_some());
            if in_gap || !somebody_acts(&world, &path, act, first, &theirs) {
                machine.has_not_acted();
            }
        };
        disk.machine().inject(Fault {
            at,
            kind: Kind::Act(fs::Act(Arc::new(act))),
        });
    }
}

/// What they do is on the disk when they have done it. False when there was nothing to do.
fn somebody_acts(world: &World, path: &RelPath, act: Act, first: u8, theirs: &Theirs) -> bool {
    let mut truths = world.truth();
    let Some(truth) = truths.get_mut(path) else {
        return false;
    };
    // What is of another kind than what is there stays, as it should, and the move does not converge.
    if matches!(truth.new, Body::Link(_)) {
        return false;
    }
    let there = at_source(path);
    let text = format!("somebody's {first}");
    let now = |disk: &Disk| Body::File(disk.content(there.as_bytes()).expect("it is there"));
    match act {
        Act::AppearAtTarget(..) | Act::WriteTarget(..) => {
            let (disk, there) = (&world.target, at_target(path));
            let done = match (act, disk.node(&there)) {
                (Act::WriteTarget(..), _) => disk.write_at(there.as_bytes(), 0, text.as_bytes()),
                (_, None) => put(disk, &there, &Body::File(text.as_bytes().into())),
                (_, Some(_)) => disk.replace(there.as_bytes(), text),
            };
            let is_done = done.and_then(|()| disk.sync(there.as_bytes())).is_ok();
            if is_done {
                let body = Body::File(disk.content(there.as_bytes()).expect("it is there"));
                truth.theirs.push(body.clone());
                let mut theirs = lock(theirs);
                // Whoever comes last replaces what the one before put there.
                theirs.retain(|(known, _)| known != path);
                // While it is read it may be what is to be replaced.
                if !matches!(act, Act::WriteTarget(_, odd) if odd % 2 == 1) {
                    theirs.push((path.clone(), body));
                }
            }
            is_done
        }
        // Nothing is made where there is no source any more.
        _ if world.source.node(&there).is_none() => false,
        Act::RemoveSource(_) => {
            let is_removed = world.source.remove(there.as_bytes()).is_ok();
            truth.is_removed |= is_removed;
            is_removed
        }
        Act::ReplaceSource(..) => {
            let is_done = world.source.replace(there.as_bytes(), text).is_ok();
            if is_done {
                let new = now(&world.source);
                truth.before.push(std::mem::replace(&mut truth.new, new));
                world.source.sync(there.as_bytes()).expect("it is there");
            }
            is_done
        }
        Act::WriteSource(..) | Act::MapSource(..) => {
            let written = match act {
                Act::MapSource(..) => write_mapped(&world.source, &there, text.as_bytes()),
                _ => world.source.write_at(there.as_bytes(), 0, text.as_bytes()),
            };
            let is_done = matches!(truth.new, Body::File(_)) && written.is_ok();
            if is_done {
                let new = now(&world.source);
                truth.before.push(std::mem::replace(&mut truth.new, new));
                world.source.sync(there.as_bytes()).expect("it is there");
            }
            is_done
        }
    }
}

/// Writes through a mapping as much of `text` as there is room for.
fn write_mapped(disk: &Disk, path: &RelPath, text: &[u8]) -> std::io::Result<()> {
    let size = disk.content(path.as_bytes())?.size();
    let len = text.len().min(usize::try_from(size).unwrap_or(usize::MAX));
    disk.open_writer(path.as_bytes())?.map().write(0, &text[..len])
}

impl FaultPlan {
    fn fault(self, effect: u64) -> Fault {
        let call = At::call;
        let io = rustix::io::Errno::IO;
        let (at, kind) = match self {
            Self::PowerCut(off) => (At::Effect(effect), Kind::PowerCut(off)),
            Self::Kill => (At::Effect(effect), Kind::Kill(Off::Hang)),
            // Only what waits is interrupted.
            Self::Error(Errno::Interrupted) => (call(Op::Write, effect % 16), Kind::Error(rustix::io::Errno::INTR)),
            // A disk is full when something is written, more than anywhere else.
            Self::Error(errno @ (Errno::NoSpace | Errno::Quota)) if effect.is_multiple_of(2) => {
                (call(Op::Write, effect / 2 % 16), Kind::Error(errno.number()))
            }
            Self::Error(errno) => (At::Effect(effect), Kind::Error(errno.number())),
            Self::SyncLost(cache) => {
                let op = if effect.is_multiple_of(2) {
                    Op::FileSync
                } else {
                    Op::DirSync
                };
                (call(op, effect / 2 % 16), Kind::SyncLost(io, cache))
            }
            Self::WriteBackLost(cache) => (call(Op::Write, effect % 16), Kind::WriteBackLost(io, cache)),
            Self::Stall(hundredths) => {
                let stall = Duration::from_millis(10 * u64::from(hundredths));
                (At::Effect(effect), Kind::Stall(stall))
            }
            Self::Pause(hundredths) => {
                let pause = Duration::from_millis(10 * u64::from(hundredths));
                (At::Effect(effect), Kind::Pause(pause))
            }
            Self::Clock(hours) => {
                let hours = i64::from(hours);
                (At::Effect(effect), Kind::Clock(3600 * hours, hours))
            }
            Self::Short(bytes) => {
                let (op, nth) = match effect % 8 {
                    7 => (Op::Reflink, 0),
                    rest if rest % 2 == 0 => (Op::Write, effect / 2 % 16),
                    _ => (Op::Read, effect / 2 % 16),
                };
                (call(op, nth), Kind::Short(usize::from(bytes)))
            }
        };
        Fault { at, kind }
    }
}

impl Errno {
    fn number(self) -> rustix::io::Errno {
        use rustix::io::Errno as Number;
        match self {
            Self::Io => Number::IO,
            Self::NoSpace => Number::NOSPC,
            Self::Quota => Number::DQUOT,
            Self::Access => Number::ACCESS,
            Self::Interrupted => Number::INTR,
        }
    }
}

fn covered(machines: &[&Machine]) -> Coverage {
    let mut coverage = Coverage::default();
    for (kind, call) in machines.iter().flat_map(|machine| machine.struck()) {
        coverage.add_struck(&kind, &call);
    }
    coverage
}

/// What happened on one host.
#[derive(Default)]
struct Notes {
    hash: u64,
    log: Vec<String>,
}

impl Notes {
    fn say(&mut self, is_told: bool, text: impl FnOnce() -> String) {
        if is_told {
            self.log.push(text());
        }
    }
}

/// Checks the law at every effect, and hashes it.
fn watch(world: &World, checker: &Arc<Checker>, notes: &Arc<Mutex<Notes>>, is_told: bool) {
    let (watched, checker, notes) = (world.clone(), checker.clone(), notes.clone());
    world.machine.watch(move |moment, call| {
        if moment == Moment::After {
            let mut notes = lock(&notes);
            notes.hash = trace(notes.hash, call);
            notes.say(is_told, || call.to_string());
        }
        checker.check(&watched, moment, call);
    });
}

/// FNV-1a over what tells one call from another.
fn trace(hash: u64, call: &Call) -> u64 {
    let paths = [&call.path, &call.to]
        .into_iter()
        .flatten()
        .flat_map(|path| path.as_bytes());
    let numbers = [call.index, call.device, call.op as u64];
    let bytes = numbers.into_iter().flat_map(u64::to_le_bytes).chain(paths.copied());
    bytes.fold(hash, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
