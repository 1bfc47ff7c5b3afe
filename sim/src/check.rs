//! What must hold at every effect of a move, in whatever state a crash just then would leave the disks. The numbers are those
//! of the properties in `docs/simulation.md`.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use realize::{
    model::{Kind, RelPath},
    store::names,
};

use crate::{
    fs::{Call, Moment, Op},
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
                for (path, truth) in world.truth.iter() {
                    if !survives(world, path, truth) {
                        self.violated(Property::Survivorship, path, call);
                    }
                    if !final_is_whole(world, path, truth) {
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
        let nodes = world.source.nodes();
        let Some(node) = nodes.get(unlinked) else { return };
        if !target_is_safe(world, path, truth) || !is(node, &truth.new) {
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

/// Whether every crash leaves the new content under the final name.
fn target_is_safe(world: &World, path: &RelPath, truth: &Truth) -> bool {
    let target = at_target(path);
    match &truth.new {
        Body::File(content) => world.target.always_holds(&target, content),
        Body::Link(_) => {
            let nodes = world.target.nodes();
            let now = nodes
                .get(&target)
                .filter(|node| is(node, &truth.new))
                .map(|node| node.ino);
            let possible = world.target.possible_values(&target).unwrap_or_default();
            now.is_some() && possible.len() == 1 && possible.contains(&now)
        }
    }
}

fn survives(world: &World, path: &RelPath, truth: &Truth) -> bool {
    if target_is_safe(world, path, truth) {
        return true;
    }
    let (source, target) = (at_source(path), at_target(path));
    let mut names = vec![source.clone()];
    names.extend(gone(&source));
    if world.source.device() == world.target.device() {
        names.push(target);
    }
    match &truth.new {
        Body::File(content) => world.source.survives(&names, content),
        // A link's text lives as long as its name; what may be lost is shown by the files.
        Body::Link(_) => {
            let nodes = world.source.nodes();
            names
                .iter()
                .any(|name| nodes.get(name).is_some_and(|node| is(node, &truth.new)))
        }
    }
}

fn final_is_whole(world: &World, path: &RelPath, truth: &Truth) -> bool {
    let target = at_target(path);
    let nodes = world.target.nodes();
    let now_is_whole = nodes
        .get(&target)
        .is_none_or(|node| is(node, &truth.new) || truth.old.as_ref().is_some_and(|old| is(node, old)));
    // The old one was written by somebody who did not sync it; that is not this move's to answer for.
    let old = truth.old.is_some();
    let possible = world.target.possible_values(&target).unwrap_or_default();
    let possible_are_whole = possible.iter().flatten().all(|ino| {
        let Some(Body::File(new)) = Some(&truth.new) else {
            return true;
        };
        let is_link = nodes
            .values()
            .any(|node| node.ino == *ino && node.kind == Kind::Symlink);
        is_link || old || world.target.content_guaranteed(*ino).as_ref() == Some(new)
    });
    now_is_whole && possible_are_whole
}
