//! What must hold at every effect of a move, in whatever state a crash just then would leave the disks.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use realize::{
    model::{Kind, RelPath},
    store::names,
};

use crate::{
    fs::{Call, Ino, Moment, Node, Op},
    world::{Body, Truth, World, at_source, at_target, is, is_in_source},
};

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which property.
    pub property: Property,
    /// Of which file.
    pub path: RelPath,
    /// At which call.
    pub at: String,
}

/// A property of every moment of every move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// 1: whatever a crash leaves, a complete copy is under the source's name or the target's.
    Survivorship,
    /// 2: a source goes only when the target holds the file whatever a crash leaves.
    Law,
    /// 3: a final name holds nothing, the old version or the complete new one.
    WholeFinals,
    /// 4: what the move has nothing to do with is left alone.
    NothingElse,
    /// 5: once nothing fails any more, a run moves everything and leaves nothing of its own.
    Convergence,
    /// 7: what has arrived is sent again only as often as faults take it back.
    Resent,
    /// 8: no window of any length has more than the burst beside its rate times its length.
    Rate,
    /// 9: what is open and under way at once has a bound, however many files there are.
    Bounded,
    /// 10: every call is answered within its limit, and every run ends.
    Answered,
    /// 11: what a peer may do is what is configured, from the next call on.
    Rights,
}

impl Property {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Survivorship,
        Self::Law,
        Self::WholeFinals,
        Self::NothingElse,
        Self::Convergence,
        Self::Resent,
        Self::Rate,
        Self::Bounded,
        Self::Answered,
        Self::Rights,
    ];
}

impl Violation {
    /// One that is not about one file.
    pub fn of_run(property: Property, why: &str) -> Self {
        Self {
            property,
            path: RelPath::root(),
            at: why.into(),
        }
    }
}

/// How many effects lie between two at which every file is looked at.
const ALL_EVERY: u64 = 8;

/// Collects what is violated.
#[derive(Default)]
pub struct Checker {
    violations: Mutex<Vec<Violation>>,
    checks: Mutex<u64>,
}

impl Checker {
    /// What was violated so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many moments were checked.
    pub fn checks(&self) -> u64 {
        *self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks one moment.
    pub fn check(&self, world: &World, moment: Moment, call: &Call) {
        *self.checks.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        match moment {
            Moment::Before => {
                if call.op.is_effect() {
                    self.check_within(world, call);
                }
                if call.op == Op::Unlink {
                    self.check_law(world, call);
                }
            }
            Moment::After => {
                let view = View(world);
                // A call changes what is beside its names; now and then all is looked at, for whatever else may have changed.
                let is_all = call.index.is_multiple_of(ALL_EVERY) || call.path.is_none();
                let dirs = [&call.path, &call.to].map(|path| path.as_ref().and_then(RelPath::parent));
                let is_near = |path: &RelPath| dirs.iter().flatten().any(|dir| path.parent().as_ref() == Some(dir));
                for (path, truth) in world.truth().iter() {
                    if !is_all && !is_near(&at_source(path)) && !is_near(&at_target(path)) {
                        continue;
                    }
                    if !view.survives(path, truth) {
                        self.violated(Property::Survivorship, path, call);
                    }
                    if !view.final_is_whole(path, truth) {
                        self.violated(Property::WholeFinals, path, call);
                    }
                }
            }
        }
    }

    /// Checks what a complete run must leave.
    pub fn check_end(&self, world: &World) {
        let at_end = Call {
            index: world.machine.effects(),
            device: 0,
            op: Op::Stat,
            path: None,
            to: None,
        };
        let (target, source) = (world.target.nodes(), world.source.nodes());
        let mut expected: BTreeSet<RelPath> = [
            "target",
            "target/d",
            "target/d/e",
            "target/empty",
            "target/unrelated",
            "source",
            "beside",
        ]
        .iter()
        .map(|path| known(path))
        .collect();
        for (path, truth) in world.truth().iter() {
            let there = at_target(path);
            if !truth.is_removed && !target.get(&there).is_some_and(|node| is(node, &truth.new)) {
                self.violated(Property::Convergence, path, &at_end);
            }
            if let (true, Some((dir, name))) = (truth.is_removed, there.split()) {
                // Nobody comes to continue it: it goes after a week.
                expected.extend(dir.join(&names::partial(&name)));
            }
            expected.extend(std::iter::successors(Some(there), RelPath::parent));
        }
        // What was swapped out while somebody put theirs there may be theirs: it is left to them. So is an old version that
        // could not be removed.
        let may_be_theirs = |path: &RelPath| {
            let is_swap = |name| matches!(names::classify(&name), names::NameKind::Swap(_));
            world.is_swap_of_theirs(path)
                || (world.could_not_remove(path) && path.split().is_some_and(|(_, name)| is_swap(name)))
        };
        // A mark of an earlier run of the kernel says nothing any more: one that can't be removed stays until somebody comes by again.
        let is_old_mark = |path: &RelPath| {
            let name = path.split().map(|(_, name)| name);
            name.is_some_and(|name| names::classify(&name) == names::NameKind::Unsynced) && world.could_not_remove(path)
        };
        for path in target
            .keys()
            .chain(source.keys())
            .filter(|path| !expected.contains(path) && !may_be_theirs(path) && !is_old_mark(path))
        {
            if path.is_within(&known("target")) || is_in_source(path) {
                self.violated(Property::Convergence, path, &at_end);
            }
        }
        for (disk, path, content) in [
            (&world.source, "outside", &b"not to be touched"[..]),
            (&world.target, "target/unrelated", b"somebody's"),
        ] {
            if disk.read(path).ok().as_deref() != Some(content) {
                self.violated(
                    Property::NothingElse,
                    &RelPath::new(path).expect("written here"),
                    &at_end,
                );
            }
        }
    }

    /// A violation of the convergence that the move itself tells of.
    pub fn check_complete(&self, complete: bool, why: &str) {
        if !complete {
            self.report(Property::Convergence, why);
        }
    }

    /// A violation that is not about one file.
    pub fn report(&self, property: Property, why: &str) {
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Violation::of_run(property, why));
    }

    /// A change is made in a root, and nowhere else.
    fn check_within(&self, world: &World, call: &Call) {
        let (to_target, to_source) = (
            call.device == world.target.device(),
            call.device == world.source.device(),
        );
        for path in [&call.path, &call.to].into_iter().flatten() {
            let is_within = (to_target && path.is_within(&known("target"))) || (to_source && is_in_source(path));
            if !is_within {
                self.violated(Property::NothingElse, path, call);
            }
        }
    }

    /// A source is about to be unlinked.
    fn check_law(&self, world: &World, call: &Call) {
        let Some(unlinked) = call.path.as_ref().filter(|_| call.device == world.source.device()) else {
            return;
        };
        let truths = world.truth();
        let Some((path, truth)) = truths.iter().find(|(path, _)| {
            let source = at_source(path);
            source == *unlinked || gone(&source).as_ref() == Some(unlinked)
        }) else {
            return;
        };
        let view = View(world);
        let Some(node) = world.source.node(unlinked) else {
            return;
        };
        let names = [Some(at_source(path)), gone(&at_source(path))];
        let mut others = names.iter().flatten().filter(|name| *name != unlinked);
        if others.any(|name| world.source.node(name).is_some_and(|other| other.ino == node.ino)) {
            // It keeps another name; whether that lasts is survivorship.
            return;
        }
        let body = body(&node);
        let is_known = truth.new == body || truth.before.contains(&body);
        if !is_known || !view.target_is_safe(path, &body) {
            self.violated(Property::Law, path, call);
        }
    }

    fn violated(&self, property: Property, path: &RelPath, call: &Call) {
        let violation = Violation {
            property,
            path: path.clone(),
            at: call.to_string(),
        };
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(violation);
    }
}

fn known(path: &str) -> RelPath {
    RelPath::new(path).expect("written here")
}

/// Where the source at `path` is while it is deleted.
pub(crate) fn gone(path: &RelPath) -> Option<RelPath> {
    let (dir, name) = path.split()?;
    match names::gone(&name) {
        Some(gone) => dir.join(&gone).ok(),
        None => dir.join(&names::gone_dir()).ok()?.join(&name).ok(),
    }
}

/// What is seen of both disks at one moment.
struct View<'a>(&'a World);

impl View<'_> {
    /// Whether every crash leaves `body` under the final name.
    fn target_is_safe(&self, path: &RelPath, body: &Body) -> bool {
        let path = at_target(path);
        match body {
            Body::File(content) => self.0.target.always_holds(&path, content),
            Body::Link(_) => {
                let now = self
                    .0
                    .target
                    .node(&path)
                    .filter(|node| is(node, body))
                    .map(|node| node.ino);
                let possible = self.0.target.possible_values(&path).unwrap_or_default();
                now.is_some() && possible.len() == 1 && possible.contains(&now)
            }
        }
    }

    fn survives(&self, path: &RelPath, truth: &Truth) -> bool {
        if truth.is_removed || self.target_is_safe(path, &truth.new) {
            return true;
        }
        let source = at_source(path);
        let mut names: Vec<_> = gone(&source).into_iter().chain([source]).collect();
        if self.0.source.device() == self.0.target.device() {
            names.push(at_target(path));
        }
        match &truth.new {
            Body::File(content) => self.0.source.survives(&names, content),
            // A link's text lives as long as its name; what a crash may take is shown by the files.
            Body::Link(_) => names
                .iter()
                .filter_map(|name| self.0.source.node(name))
                .any(|node| is(&node, &truth.new)),
        }
    }

    /// Whether the final name holds nothing, the old or the complete new one, now and after every crash.
    fn final_is_whole(&self, path: &RelPath, truth: &Truth) -> bool {
        let target = &self.0.target;
        let path = at_target(path);
        let news = || std::iter::once(&truth.new).chain(&truth.before);
        let olds = truth.olds.iter().map(|old| &old.body).chain(&truth.theirs);
        let now_is_whole = target
            .node(&path)
            .is_none_or(|node| news().chain(olds).any(|body| is(&node, body)));
        let possible = target.possible_values(&path).unwrap_or_default();
        let after_crash_is_whole = |ino: &Ino| {
            // The old one was written by somebody who did not sync it: not this move's to answer for, as long as it is the old one.
            let mut olds = truth.olds.iter().filter(|old| old.ino == *ino);
            if olds.any(|old| target.node_of(*ino).is_some_and(|node| is(&node, &old.body))) {
                return true;
            }
            let Some(content) = target.content_guaranteed(*ino) else {
                return matches!(truth.new, Body::Link(_));
            };
            let body = Body::File(content);
            news().chain(&truth.theirs).any(|known| *known == body) || matches!(truth.new, Body::Link(_))
        };
        now_is_whole && possible.iter().flatten().all(after_crash_is_whole)
    }
}

fn body(node: &Node) -> Body {
    match node.kind {
        Kind::Symlink => Body::Link(node.target.clone()),
        _ => Body::File(node.content.clone()),
    }
}
