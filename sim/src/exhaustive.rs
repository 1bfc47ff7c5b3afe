//! Every effect of a small move, every state that a power loss just then may leave of either disk or of both, and a move from each
//! that must complete, with a second power loss in it.
//!
//! The states of one disk are listed up to a bound ([`Disk::crash_states`]), those of two are all their pairs. That the power of one of two hosts
//! goes is among them: a pair in which nothing of the other disk is lost. What is left is durable then. A program that is killed leaves a disk
//! unsynced instead: the move that goes on from there is looked at in the same way, at each of its effects.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use realize::model::RelPath;

use crate::{
    check::{Checker, gone},
    fs::{Disk, Image, Kind, Machine, Moment, Nodes, Off, Profile},
    plan::{BodyPlan, FilePlan, Lack, Plan, Scenario, Size, Step, There},
    random::Random,
    world::{Body, Ended, SOURCE, TARGET, Truth, World, at_source, at_target, cut, is},
};

/// How far it goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// States of one disk at one effect.
    pub states: usize,
    /// Moves that go on from states first seen at one effect.
    pub recoveries: usize,
    /// Effects at which the program is killed, to go on with the disks as they are then.
    pub kills: usize,
}

/// What was tried, and what did not hold.
#[derive(Debug, Default)]
pub struct Tally {
    /// Effects at which states were listed.
    pub effects: u64,
    /// How often there were more states of a disk than the bound, or as many.
    pub bounded: u64,
    /// Distinct states of one disk that were looked at.
    pub disk_states: u64,
    /// Distinct states of all disks that were looked at.
    pub states: u64,
    /// How many of them a move went on from, to its end.
    pub recovered: u64,
    /// How many of those moves were cut a second time, and gone on with to the end.
    pub recovered_twice: u64,
    /// How many moves went on where the program had been killed, to the end.
    pub killed: u64,
    /// What did not hold.
    pub failures: Vec<String>,
}

impl Tally {
    /// Adds another's.
    pub fn add(&mut self, other: Self) {
        self.effects += other.effects;
        self.bounded += other.bounded;
        self.disk_states += other.disk_states;
        self.states += other.states;
        self.recovered += other.recovered;
        self.recovered_twice += other.recovered_twice;
        self.killed += other.killed;
        self.failures.extend(other.failures);
    }
}

/// What one state of a disk holds, a bit for each file.
struct State {
    image: Image,
    digest: u64,
    /// Files that are under the source's name, or where it is while it is deleted.
    there: u64,
    /// Files that are under the final name.
    arrived: u64,
    /// What must never be.
    wrong: Option<String>,
}

/// A state of all disks that a move is to go on from.
struct Left {
    when: String,
    images: Vec<(u64, Image)>,
}

/// Tries one plan, of one host, whose faults are left out.
pub fn exhaust(plan: &Plan, bounds: Bounds) -> Tally {
    assert!(!plan.scenario.is_remote(), "both disks are looked at at once");
    let search = Arc::new(Mutex::new(Search::default()));
    let (machine, world) = made(plan);
    if let Err(why) = search_through(plan, &world, bounds, &search, "") {
        lock(&search).tally.failures.push(format!("undisturbed: {why}"));
    }
    for effect in spread(machine.effects() as usize, bounds.kills) {
        let (machine, world) = made(plan);
        machine.inject(cut(effect as u64, Kind::Kill(Off::Hang)));
        world.move_all();
        machine.restart();
        let killed = search_through(
            plan,
            &world,
            bounds,
            &search,
            &format!("a kill at effect {effect} and "),
        );
        let mut search = lock(&search);
        match killed {
            Ok(()) => search.tally.killed += 1,
            Err(why) => search
                .tally
                .failures
                .push(format!("after a kill at effect {effect}: {why}")),
        }
    }
    let Search { mut tally, lefts, .. } = std::mem::take(&mut *lock(&search));
    let mut random = Random::new(plan.seed);
    for left in lefts {
        let mut cut_at = None;
        for _ in 0..2 {
            match recover(plan, &machine, &world, &left, cut_at, &mut random) {
                Ok(effects) if cut_at.is_none() => {
                    tally.recovered += 1;
                    // Anywhere in what it took.
                    cut_at = Some(random.below(effects.max(1)));
                }
                Ok(_) => tally.recovered_twice += 1,
                Err(why) => {
                    let text = format!("after {}, cut again at {cut_at:?}: {why}", left.when);
                    tally.failures.push(text);
                    break;
                }
            }
        }
    }
    tally
}

/// A machine, and what the plan has on it at first.
fn made(plan: &Plan) -> (Machine, World) {
    let machine = Machine::new(plan.seed);
    let source = machine.disk(SOURCE);
    let target = match plan.scenario {
        Scenario::OneDisk => source.clone(),
        _ => machine.disk(TARGET),
    };
    let world = World::on(source, target, plan.files());
    plan.take_abilities(&world);
    (machine, world)
}

/// Moves to the end; at every effect every state that a power loss may leave is looked at, those of before the first too.
fn search_through(
    plan: &Plan,
    world: &World,
    bounds: Bounds,
    search: &Arc<Mutex<Search>>,
    before: &str,
) -> Result<(), String> {
    let checker = Arc::new(Checker::default());
    let profile = plan.profile;
    world.machine.watch({
        let (world, search, checker, before) = (world.clone(), search.clone(), checker.clone(), before.to_owned());
        move |moment, call| {
            checker.check(&world, moment, call);
            if moment == Moment::After {
                let when = format!("{before}effect {}", call.index);
                lock(&search).look(&world, profile, bounds, &when);
            }
        }
    });
    lock(search).look(world, profile, bounds, &format!("{before}nothing more"));
    let ended = world.move_all();
    world.machine.unwatch();
    checker.check_end(world);
    match checker.violations() {
        none if none.is_empty() && is_complete(&ended) => Ok(()),
        violations => Err(format!("{ended:?} {violations:?}")),
    }
}

/// At most `count` numbers below `end`, spread over them, the first and the last among them.
fn spread(end: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(end);
    (0..count).map(move |nth| nth * (end - 1) / (count - 1).max(1))
}

/// Goes on from what was left, being cut again at an effect when there is one; how many effects that took.
fn recover(
    plan: &Plan,
    before: &Machine,
    world: &World,
    left: &Left,
    cut_at: Option<u64>,
    random: &mut Random,
) -> Result<u64, String> {
    let machine = before.after(random.next_u64(), left.images.iter().cloned());
    let (source, target) = (machine.disk(world.source.device()), machine.disk(world.target.device()));
    let world = World::left(source, target, world.truth().clone());
    machine.keep_log();
    let world_nodes: Nodes = left.images.iter().flat_map(|(_, image)| image.nodes()).collect();
    let checked = go_on(plan, &machine, &world, cut_at, random);
    machine.unwatch();
    checked.map_err(|why| {
        let effects = machine.log().into_iter().filter(|call| call.op.is_effect());
        let effects: Vec<_> = effects.map(|call| call.to_string()).collect();
        let left: Vec<_> = world_nodes
            .iter()
            .map(|(path, node)| format!("{path} (inode {})", node.ino))
            .collect();
        format!("{why}\nwhat was left: {}\n{}", left.join(", "), effects.join("\n"))
    })
}

fn go_on(
    plan: &Plan,
    machine: &Machine,
    world: &World,
    cut_at: Option<u64>,
    random: &mut Random,
) -> Result<u64, String> {
    let checker = Arc::new(Checker::default());
    world.watch(&checker);
    if let Some(effect) = cut_at {
        machine.inject(cut(effect, Kind::PowerCut(Off::Hang)));
        world.move_all();
        // Another order of the same may take fewer effects: the power goes at its end.
        if machine.is_on() {
            machine.power_off(Off::Hang);
        }
        machine.crash(plan.profile, random);
        world.rebase();
        machine.heal();
        machine.restart();
    }
    let last = world.move_all();
    let effects = machine.effects();
    if !is_complete(&last) {
        return Err(format!("{last:?}"));
    }
    checker.check_end(world);
    let again = world.move_all();
    let moved_nothing = matches!(&again.result, Some(Ok(report)) if (report.copied, report.bytes_sent) == (0, 0));
    if !is_complete(&again) || !moved_nothing {
        return Err(format!("one run more: {again:?}"));
    }
    match checker.violations() {
        none if none.is_empty() => Ok(effects),
        violations => Err(format!("{violations:?}")),
    }
}

fn is_complete(ended: &Ended) -> bool {
    matches!(&ended.result, Some(Ok(report)) if report.is_complete())
}

/// The states that were seen, and those to go on from.
#[derive(Default)]
struct Search {
    tally: Tally,
    seen: BTreeSet<u64>,
    seen_of_disk: BTreeSet<(u64, u64)>,
    /// The states of each disk at the last effect.
    disks: BTreeMap<u64, Vec<State>>,
    lefts: Vec<Left>,
}

impl Search {
    /// Lists what a power loss after `when` may leave, and looks at what is new.
    fn look(&mut self, world: &World, profile: Profile, bounds: Bounds, when: &str) {
        self.tally.effects += 1;
        let truths = world.truth();
        let devices: BTreeSet<u64> = [world.source.device(), world.target.device()].into();
        for device in &devices {
            let states = states(&world.machine.disk(*device), world, &truths, profile, bounds.states);
            self.tally.bounded += u64::from(states.len() > bounds.states);
            for state in &states {
                if self.seen_of_disk.insert((*device, state.digest)) {
                    self.tally.disk_states += 1;
                    let failures = state.wrong.iter().map(|wrong| format!("after {when}: {wrong}"));
                    self.tally.failures.extend(failures);
                }
            }
            self.disks.insert(*device, states);
        }
        let all = u64::MAX >> (64 - truths.len().clamp(1, 64));
        let (sources, targets) = (&self.disks[&world.source.device()], &self.disks[&world.target.device()]);
        let pairs = match devices.len() {
            1 => (0..sources.len()).map(|at| (at, at)).collect(),
            _ => pairs(sources.len(), targets.len()),
        };
        let mut new = Vec::new();
        for (at_source, at_target) in pairs {
            let (source, target) = (&sources[at_source], &targets[at_target]);
            let mut hasher = DefaultHasher::new();
            (source.digest, target.digest).hash(&mut hasher);
            if !self.seen.insert(hasher.finish()) {
                continue;
            }
            self.tally.states += 1;
            let survives = source.there | target.arrived;
            if survives & all != all {
                let lost: Vec<_> = truths
                    .keys()
                    .enumerate()
                    .filter(|(at, _)| survives & (1 << at) == 0)
                    .collect();
                let failure = format!("after {when}, states {at_source} and {at_target}: lost {lost:?}");
                self.tally.failures.push(failure);
            }
            new.push((at_source, at_target));
        }
        // Spread over all that is new, the first, in which most is lost, and the last, in which most is kept, among them. Where one is enough,
        // these two in turn.
        let only_last = bounds.recoveries == 1 && self.tally.effects.is_multiple_of(2);
        let from = if only_last { new.len().saturating_sub(1) } else { 0 };
        for nth in spread(new.len() - from, bounds.recoveries).map(|nth| from + nth) {
            let (at_source, at_target) = new[nth];
            let mut images = vec![(world.source.device(), sources[at_source].image.clone())];
            if devices.len() > 1 {
                images.push((world.target.device(), targets[at_target].image.clone()));
            }
            let when = when.to_owned();
            self.lefts.push(Left { when, images });
        }
    }
}

/// Every pair of so many states of two disks.
fn pairs(sources: usize, targets: usize) -> Vec<(usize, usize)> {
    (0..sources)
        .flat_map(|source| (0..targets).map(move |target| (source, target)))
        .collect()
}

/// What a power loss now may leave of a disk.
fn states(disk: &Disk, world: &World, truths: &BTreeMap<RelPath, Truth>, profile: Profile, bound: usize) -> Vec<State> {
    // Where the bound cuts the list short, that in which nothing is lost is there all the same.
    let images = disk
        .crash_states(profile, bound)
        .into_iter()
        .chain([disk.whole_state()]);
    images.map(|image| state(image, disk.device(), world, truths)).collect()
}

fn state(image: Image, device: u64, world: &World, truths: &BTreeMap<RelPath, Truth>) -> State {
    let nodes = image.nodes();
    let has =
        |path: Option<RelPath>, body: &Body| path.and_then(|path| Some(is(nodes.get(&path)?, body))).unwrap_or(false);
    let mut state = State {
        digest: image.digest(),
        image,
        there: 0,
        arrived: 0,
        wrong: None,
    };
    for (nth, (path, truth)) in truths.iter().enumerate() {
        let source = at_source(path);
        let is_there = has(gone(&source), &truth.new) || has(Some(source), &truth.new);
        state.there |= u64::from(device == world.source.device() && is_there) << nth;
        if device != world.target.device() {
            continue;
        }
        state.arrived |= u64::from(has(Some(at_target(path)), &truth.new)) << nth;
        if !is_whole(&nodes, path, truth) {
            state.wrong = Some(format!("{path} is neither nothing nor the old nor the new one"));
        }
    }
    for (at, path) in [
        (world.source.device(), "outside"),
        (world.target.device(), "target/unrelated"),
    ] {
        if device == at && !nodes.contains_key(&RelPath::new(path).expect("written here")) {
            state.wrong = Some(format!("{path} is gone"));
        }
    }
    state
}

fn is_whole(nodes: &Nodes, path: &RelPath, truth: &Truth) -> bool {
    let Some(node) = nodes.get(&at_target(path)) else {
        return true;
    };
    // What somebody had not synced a crash may have torn: not this move's to answer for.
    let is_old = truth.olds.iter().any(|old| old.ino == node.ino || is(node, &old.body));
    is_old || is(node, &truth.new)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under the lock fails the test anyway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The plan without what goes wrong: what a file system lacks stays.
pub fn undisturbed(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    plan.steps.retain(|step| matches!(step, Step::Lacks(_)));
    plan
}

/// Small plans in which little happens at once, so that all states of each moment can be looked at: each way that one file or two can go,
/// on one disk and on two, under each profile.
pub fn corpus() -> Vec<Plan> {
    let file = |size, first| BodyPlan::File(size, first);
    let at = |name, new, there| FilePlan { name, new, there };
    let trees = [
        vec![
            at(0, file(Size::Small, 1), There::Nothing),
            at(3, file(Size::Small, 2), There::Nothing),
        ],
        vec![at(2, file(Size::Small, 1), There::Other(file(Size::Small, 2)))],
        vec![
            at(7, file(Size::Large, 1), There::Nothing),
            at(1, file(Size::Empty, 0), There::Nothing),
        ],
        vec![at(3, file(Size::Large, 1), There::Other(file(Size::Large, 2)))],
        vec![
            at(0, file(Size::Large, 1), There::Partial(500, true)),
            at(2, file(Size::Large, 1), There::Partial(1000, false)),
        ],
        vec![
            at(5, file(Size::Small, 1), There::Equal),
            at(6, file(Size::Large, 1), There::Equal),
        ],
        vec![
            at(3, BodyPlan::Link(1), There::Nothing),
            at(0, BodyPlan::Link(1), There::Other(BodyPlan::Link(2))),
        ],
        vec![
            at(8, file(Size::Small, 1), There::Other(file(Size::Small, 2))),
            at(4, file(Size::Small, 1), There::Nothing),
        ],
    ];
    let mut plans = Vec::new();
    for (nth, files) in trees.into_iter().enumerate() {
        for scenario in [Scenario::OneDisk, Scenario::TwoDisks] {
            for profile in Profile::ALL {
                for steps in [vec![], vec![Step::Lacks(Lack::Renames)]] {
                    plans.push(Plan {
                        seed: nth as u64,
                        scenario,
                        files: files.clone(),
                        steps,
                        profile,
                    });
                }
            }
        }
    }
    plans
}
