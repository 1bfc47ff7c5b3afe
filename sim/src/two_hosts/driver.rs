//! Lets time pass, and hosts die and start anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{DAEMON, DOWN, Direction, MOVER, PHASE, Shared};
use crate::{
    check::{Checker, Property},
    fs::{Disk, Moment, Profile},
    random::Random,
    world::World,
};

/// A simulation under way.
pub(super) struct Driver<'a> {
    pub sim: turmoil::Sim<'a>,
    pub shared: Arc<Shared>,
    pub checker: Arc<Checker>,
    pub world: World,
    pub direction: Direction,
    pub profile: Profile,
    pub random: Random,
    /// Hosts that are down, and when they start anew.
    pub down: BTreeMap<&'static str, (Duration, bool)>,
    pub deaths: u64,
    pub comes_back: bool,
    /// The hosts whose power went, and not only their program.
    pub unpowered: Arc<Mutex<BTreeSet<&'static str>>>,
    /// Until when a host pauses: nothing goes over the line, and nothing is lost.
    pub paused_until: Option<Duration>,
}

impl Driver<'_> {
    /// Checks the law on both machines, and hashes their effects.
    pub fn watch(&self) {
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

    /// Runs until the mover has ended, or died for good. One that does not end violates [`Property::Answered`].
    pub fn until_ended(&mut self) {
        let before = self.shared.state().ended.len();
        let limit = self.sim.elapsed() + PHASE;
        let is_dead = |driver: &Self| !driver.comes_back && driver.deaths > 0;
        while (self.shared.state().ended.len() == before || !self.down.is_empty()) && !is_dead(self) {
            if self.sim.elapsed() >= limit {
                self.checker.report(Property::Answered, "the mover does not end");
                return;
            }
            self.step();
        }
    }

    pub fn pass(&mut self, duration: Duration) {
        self.pass_until(duration, || false);
    }

    /// Lets time pass until `is_over` and no host pauses, at most as long as `most`.
    pub fn pass_until(&mut self, most: Duration, is_over: impl Fn() -> bool) {
        let end = self.sim.elapsed() + most;
        while self.sim.elapsed() < end && (self.paused_until.is_some() || !is_over()) {
            self.step();
        }
    }

    fn step(&mut self) {
        self.sim.step().expect("a program of the simulation failed");
        self.hold_or_release();
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

    /// Holds what goes over the line while a host pauses. Where the power is gone the line is cut anyway.
    fn hold_or_release(&mut self) {
        let now = self.sim.elapsed();
        let pauses = [MOVER, DAEMON].map(|host| self.disk(host).machine().take_pause());
        let is_cut = self.down.values().any(|(_, is_power)| *is_power)
            || !self.unpowered.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if is_cut {
            self.paused_until = None;
        } else if let Some(pause) = pauses.into_iter().flatten().max() {
            self.paused_until = self.paused_until.max(Some(now + pause));
            self.sim.hold(MOVER, DAEMON);
        } else if self.paused_until.is_some_and(|until| now >= until) {
            self.paused_until = None;
            self.sim.release(MOVER, DAEMON);
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
