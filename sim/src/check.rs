//! What must hold at every effect of a move, in whatever state a crash just then would leave the disks.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use realize::{model::RelPath, store::names};

use crate::{
    fs::{Call, Ino, Moment, Node, Nodes, Op},
    world::{Body, Truth, World, at_source, at_target, is},
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
}

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
            Moment::Before if call.op == Op::Unlink => self.check_law(world, call),
            Moment::Before => {}
            Moment::After => {
                let view = View::of(world);
                for (path, truth) in world.truth.iter() {
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
        for (path, truth) in world.truth.iter() {
            if !target.get(&at_target(path)).is_some_and(|node| is(node, &truth.new)) {
                self.violated(Property::Convergence, path, &at_end);
            }
        }
        let ours = [
            "target",
            "target/d",
            "target/d/e",
            "target/empty",
            "target/unrelated",
            "source",
        ];
        let expected: BTreeSet<RelPath> = world
            .truth
            .keys()
            .map(at_target)
            .chain(ours.iter().map(|path| known(path)))
            .collect();
        for path in target
            .keys()
            .chain(source.keys())
            .filter(|path| !expected.contains(path))
        {
            if path.is_within(&known("target")) || path.is_within(&known("source")) {
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
            let violation = Violation {
                property: Property::Convergence,
                path: RelPath::root(),
                at: why.into(),
            };
            self.violations
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(violation);
        }
    }

    /// A source is about to be unlinked.
    fn check_law(&self, world: &World, call: &Call) {
        let Some(unlinked) = call.path.as_ref().filter(|_| call.device == world.source.device()) else {
            return;
        };
        let Some((path, truth)) = world.truth.iter().find(|(path, _)| {
            let source = at_source(path);
            source == *unlinked || gone(&source).as_ref() == Some(unlinked)
        }) else {
            return;
        };
        let view = View::of(world);
        let Some(node) = view.source.get(unlinked) else { return };
        if !view.target_is_safe(path, truth) || !is(node, &truth.new) {
            self.violated(Property::Law, path, call);
        }
    }

    fn violated(&self, property: Property, path: &RelPath, call: &Call) {
        let at = format!("effect {}: {:?} {:?} -> {:?}", call.index, call.op, call.path, call.to);
        let violation = Violation {
            property,
            path: path.clone(),
            at,
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

fn gone(path: &RelPath) -> Option<RelPath> {
    let (dir, name) = path.split()?;
    dir.join(&names::gone(&name)?).ok()
}

/// What is seen of both disks at one moment.
struct View<'a> {
    world: &'a World,
    source: Nodes,
    target: Nodes,
}

impl<'a> View<'a> {
    fn of(world: &'a World) -> Self {
        let target = world.target.nodes();
        let one_disk = world.source.device() == world.target.device();
        let source = if one_disk { target.clone() } else { world.source.nodes() };
        Self { world, source, target }
    }

    /// Whether every crash leaves the new content under the final name.
    fn target_is_safe(&self, path: &RelPath, truth: &Truth) -> bool {
        let path = at_target(path);
        match &truth.new {
            Body::File(content) => self.world.target.always_holds(&path, content),
            Body::Link(_) => {
                let now = self
                    .target
                    .get(&path)
                    .filter(|node| is(node, &truth.new))
                    .map(|node| node.ino);
                let possible = self.world.target.possible_values(&path).unwrap_or_default();
                now.is_some() && possible.len() == 1 && possible.contains(&now)
            }
        }
    }

    fn survives(&self, path: &RelPath, truth: &Truth) -> bool {
        if self.target_is_safe(path, truth) {
            return true;
        }
        let source = at_source(path);
        let mut names: Vec<_> = gone(&source).into_iter().chain([source]).collect();
        if self.world.source.device() == self.world.target.device() {
            names.push(at_target(path));
        }
        match &truth.new {
            Body::File(content) => self.world.source.survives(&names, content),
            // A link's text lives as long as its name; what a crash may take is shown by the files.
            Body::Link(_) => names
                .iter()
                .filter_map(|name| self.source.get(name))
                .any(|node| is(node, &truth.new)),
        }
    }

    /// Whether the final name holds nothing, the old or the complete new one, now and after every crash.
    fn final_is_whole(&self, path: &RelPath, truth: &Truth) -> bool {
        let path = at_target(path);
        let is_old = |node: &Node| truth.olds.iter().any(|old| is(node, &old.body));
        let now_is_whole = self
            .target
            .get(&path)
            .is_none_or(|node| is(node, &truth.new) || is_old(node));
        let possible = self.world.target.possible_values(&path).unwrap_or_default();
        let after_crash_is_whole = |ino: &Ino| {
            // The old one was written by somebody who did not sync it: not this move's to answer for.
            let is_old = truth.olds.iter().any(|old| old.ino == *ino);
            match &truth.new {
                Body::File(new) => is_old || self.world.target.content_guaranteed(*ino).as_ref() == Some(new),
                Body::Link(_) => true,
            }
        };
        now_is_whole && possible.iter().flatten().all(after_crash_is_whole)
    }
}
