//! Each planted bug is caught by what checks the moves, and by which property. Built by `tests/planted`; empty otherwise.
#![cfg(realize_planted)]
#![allow(clippy::disallowed_methods, reason = "how long it takes is told in real time")]

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use realize::{
    digest::CHUNK_BYTES,
    model::RelPath,
    planted::{Bug, plant},
    service::{Content, Form, RealizeServiceRequest, RealizeServiceResponse},
    throttle::Rate,
};
use realize_sim::{
    check::{Checker, Property, Violation},
    fs::{Act, At, Content as FileContent, Fault, Kind, Machine, Off, Op, Refusals},
    net::{LinePlan, Trouble, Way},
    plan::{Plan, Scenario, plan_of, shrink},
    service::SimService,
    two_hosts::{Direction, TwoHosts},
    world::{Body, Large, TARGET, World, at_source, limits, small_tree},
};
use rustix::io::Errno;
use tarpc::client::{RpcError, stub::Stub};

/// A wire that turns over a bit in every small file.
#[derive(Clone)]
struct BadWire(SimService);

impl Stub for BadWire {
    type Req = RealizeServiceRequest;
    type Resp = RealizeServiceResponse;

    async fn call(&self, context: tarpc::context::Context, mut request: Self::Req) -> Result<Self::Resp, RpcError> {
        if let RealizeServiceRequest::Put { files, .. } = &mut request {
            for file in &mut files.0 {
                if let Content::File { data, .. } = &mut file.content
                    && !data.is_empty()
                {
                    let mut bytes = data.to_vec();
                    bytes[0] ^= 1;
                    *data = Bytes::from(bytes);
                }
            }
        }
        self.0.call(context, request).await
    }
}

/// Moves with whatever makes `bug` show; the properties that were violated.
fn violated(bug: Bug) -> Vec<Property> {
    let (world, checker) = (World::small(1, false, Large::OneChunk), Arc::new(Checker::default()));
    world.watch(&checker);
    match bug {
        Bug::SkipDigest => {
            world.move_through(|service| SimService::new(BadWire(service)));
        }
        Bug::NoSourceCheck => {
            // Somebody puts another file under the name once it has been read; no lease tells of that.
            world.source.refuse(Refusals {
                lease: Some(Errno::INVAL),
                ..Refusals::default()
            });
            let replaced = at_source(&RelPath::new("d/b").unwrap());
            let act = {
                let replaced = replaced.clone();
                move |machine: &Machine| {
                    machine
                        .disk(realize_sim::world::SOURCE)
                        .replace(replaced.as_bytes(), b"somebody's new one")
                        .unwrap()
                }
            };
            let at = At::Call {
                op: Op::Rename,
                path: Some(replaced),
                nth: 0,
            };
            world.machine.inject(Fault {
                at,
                kind: Kind::Act(Act(Arc::new(act))),
            });
            world.move_all();
        }
        _ => {
            world.move_all();
        }
    }
    let mut properties: Vec<_> = checker
        .violations()
        .into_iter()
        .map(|violation| violation.property)
        .collect();
    properties.sort_unstable();
    properties.dedup();
    properties
}

#[test]
fn without_a_bug_nothing_is_violated() {
    plant(None);
    for bug in [Bug::SkipDigest, Bug::NoSourceCheck, Bug::NoDirectorySync] {
        assert_eq!(violated(bug), vec![], "the faults for {bug:?} alone");
    }
}

#[test]
fn each_bug_is_caught() {
    for (bug, property) in [
        (Bug::DeleteBeforeSync, Property::Law),
        (Bug::NoDirectorySync, Property::Law),
        (Bug::AcknowledgeBeforeRename, Property::Law),
        (Bug::SkipDigest, Property::WholeFinals),
        (Bug::NoSourceCheck, Property::Law),
    ] {
        plant(Some(bug));
        let caught = violated(bug);
        plant(None);
        println!("{bug:?}: {caught:?}");
        assert!(caught.contains(&property), "{bug:?} was seen as {caught:?}");
    }
}

/// How many seeds it takes to find a bug, from three places on: the median; and which properties tell.
fn seeds_to_find(bug: Bug, scenario: Scenario, by: Property) -> (u64, Vec<Property>) {
    const SEEDS_MAX: u64 = 10_000;
    const STARTS: [u64; 3] = [0, 1_000_000, 2_000_000];
    let mut found = STARTS.map(|start| {
        let mut seeds = start..start + SEEDS_MAX;
        let caught = seeds.find_map(|seed| {
            let mut tree = plan_of(scenario, seed);
            let properties = tree.current().run(false).properties();
            if !properties.contains(&by) {
                return None;
            }
            let begin = Instant::now();
            let fails = |plan: &Plan| plan.run(false).properties() == properties;
            let small = shrink(tree.as_mut(), fails, || begin.elapsed() < Duration::from_secs(60));
            assert!(small.steps.len() <= 10, "{bug:?}: {}", small.text());
            plant(None);
            assert!(small.run(false).is_good(), "without {bug:?}: {}", small.text());
            plant(Some(bug));
            Some((seed - start + 1, properties))
        });
        caught.unwrap_or_else(|| panic!("{bug:?} is not found by {by:?} within {SEEDS_MAX} seeds of {scenario:?}"))
    });
    found.sort();
    found[1].clone()
}

/// Bugs that plans find, and by which property.
const BY_PLANS: [(Bug, Scenario, Property); 29] = [
    (Bug::DeleteBeforeSync, Scenario::TwoDisks, Property::Law),
    (Bug::NoDirectorySync, Scenario::TwoDisks, Property::Law),
    (Bug::AcknowledgeBeforeRename, Scenario::TwoDisks, Property::Law),
    (Bug::NoSourceCheck, Scenario::TwoDisks, Property::Law),
    (Bug::NoLookAside, Scenario::TwoDisks, Property::Law),
    (Bug::EqualUnsynced, Scenario::TwoDisks, Property::Law),
    (Bug::AncestorUnsynced, Scenario::TwoDisks, Property::Law),
    (Bug::FailedSyncForgotten, Scenario::TwoDisks, Property::Law),
    (Bug::FailedSyncUntold, Scenario::TwoDisks, Property::Law),
    (Bug::OverwriteAppeared, Scenario::TwoDisks, Property::NothingElse),
    (Bug::ResumeUnchecked, Scenario::TwoDisks, Property::Law),
    (Bug::NoSpaceIsSuccess, Scenario::TwoDisks, Property::WholeFinals),
    (Bug::TrustSizeAndMtime, Scenario::TwoDisks, Property::Law),
    (Bug::WriterIgnored, Scenario::TwoDisks, Property::Law),
    (Bug::ResumeFromCache, Scenario::TwoDisks, Property::Law),
    (Bug::ResumePastHole, Scenario::TwoDisks, Property::Law),
    (Bug::BasisUnhashed, Scenario::TwoDisks, Property::WholeFinals),
    (Bug::HolesAssumed, Scenario::TwoDisks, Property::WholeFinals),
    (Bug::SweepUnknown, Scenario::TwoDisks, Property::NothingElse),
    (Bug::RenameByPartial, Scenario::OneDisk, Property::Survivorship),
    (Bug::DeleteBeforeSync, Scenario::Send, Property::Law),
    (Bug::OverwriteAppeared, Scenario::Send, Property::NothingElse),
    (Bug::NoDirectorySync, Scenario::Fetch, Property::Law),
    (Bug::NoAnswerIsSuccess, Scenario::Send, Property::Law),
    (Bug::HalfOpenKept, Scenario::Send, Property::Convergence),
    (Bug::SilenceKept, Scenario::Fetch, Property::Answered),
    (Bug::ResumeForgotten, Scenario::Send, Property::Resent),
    (Bug::RightsRemembered, Scenario::Fetch, Property::Rights),
    (Bug::RemovedPeerServed, Scenario::Send, Property::Rights),
];

/// Bugs that a world made for them shows.
const BY_WORLDS: [(Bug, Property); 12] = [
    (Bug::SkipDigest, Property::WholeFinals),
    (Bug::LateWrite, Property::WholeFinals),
    (Bug::DeltaUnhashed, Property::WholeFinals),
    (Bug::UnboundedTries, Property::Answered),
    (Bug::HandlesKept, Property::Bounded),
    (Bug::KeptUnchecked, Property::WholeFinals),
    (Bug::PartialShared, Property::WholeFinals),
    (Bug::RecallUnchecked, Property::Law),
    (Bug::RateRefilled, Property::Rate),
    (Bug::RateByWallClock, Property::Rate),
    (Bug::RateForgotten, Property::Rate),
    (Bug::LateIsSuccess, Property::Law),
];

#[test]
fn every_bug_is_found_and_every_property_finds_one() {
    let by_plans = BY_PLANS.map(|(bug, _, by)| (bug, by));
    let found = || by_plans.iter().chain(&BY_WORLDS);
    for bug in Bug::ALL {
        assert!(found().any(|(found, _)| *found == bug), "{bug:?} is not looked for");
    }
    for property in Property::ALL {
        assert!(
            found().any(|(_, by)| *by == property),
            "{property:?} has to find nothing"
        );
    }
}

#[test]
fn plans_by_seed_find_each_bug() {
    for (bug, scenario, by) in BY_PLANS {
        plant(Some(bug));
        let (seeds, properties) = seeds_to_find(bug, scenario, by);
        plant(None);
        println!("{bug:?} in {scenario:?}: {seeds} seeds, by {properties:?}");
    }
}

/// A wire on which a call of a dead connection arrives once what it writes to is final.
#[derive(Clone)]
struct LateWire(SimService, Arc<Mutex<Option<RealizeServiceRequest>>>);

impl Stub for LateWire {
    type Req = RealizeServiceRequest;
    type Resp = RealizeServiceResponse;

    async fn call(&self, context: tarpc::context::Context, request: Self::Req) -> Result<Self::Resp, RpcError> {
        if let RealizeServiceRequest::Send {
            handle,
            chunk,
            data,
            sparse,
        } = &request
        {
            *self.1.lock().unwrap() = Some(RealizeServiceRequest::Send {
                handle: *handle,
                chunk: *chunk,
                data: Bytes::from(vec![b'!'; data.len()]),
                sparse: *sparse,
            });
        }
        let is_finish = matches!(request, RealizeServiceRequest::Finish { .. });
        let answer = self.0.call(context, request).await;
        let late = self.1.lock().unwrap().take_if(|_| is_finish);
        if let Some(late) = late {
            self.0.call(context, late).await.ok();
        }
        answer
    }
}

#[test]
fn a_late_write_is_caught() {
    for (bug, expected) in [(None, false), (Some(Bug::LateWrite), true)] {
        plant(bug);
        // Under a name of which nothing is there, so that it is sent and not repaired.
        let files = small_tree(Large::OneChunk).into_iter();
        let files = files
            .filter(|(name, ..)| *name == "large")
            .map(|(_, new, _)| ("new", new, None));
        let (world, checker) = (World::of(1, false, files.collect()), Arc::new(Checker::default()));
        world.watch(&checker);
        world.move_through(|service| SimService::new(LateWire(service, Arc::default())));
        plant(None);
        let is_torn = |violation: &Violation| violation.property == Property::WholeFinals;
        assert_eq!(checker.violations().iter().any(is_torn), expected, "{bug:?}");
    }
}

/// Somebody writes to what has arrived of a file, while the rest of it arrives.
#[test]
fn a_partial_that_is_shared_is_caught() {
    for (bug, expected) in [(None, false), (Some(Bug::PartialShared), true)] {
        let body = Body::File(FileContent::from(&[7; 3 * CHUNK_BYTES as usize][..]));
        let (world, checker) = (
            World::of(1, false, vec![("new", body, None)]),
            Arc::new(Checker::default()),
        );
        world.watch(&checker);
        let part = "target/.new.realize-part";
        let write = move |machine: &Machine| machine.disk(TARGET).write_at(part, 10, b"somebody's").unwrap();
        world.machine.inject(Fault {
            at: At::call_on(part, Op::Write, 2),
            kind: Kind::Act(Act(Arc::new(write))),
        });
        plant(bug);
        world.move_all();
        plant(None);
        assert_eq!(world.machine.struck().len(), 1);
        let is_torn = |violation: &Violation| violation.property == Property::WholeFinals;
        assert_eq!(checker.violations().iter().any(is_torn), expected, "{bug:?}");
    }
}

/// A wire on which each delta comes to give other bytes: as one does whose sums were taken for those of other blocks.
#[derive(Clone)]
struct DeltaWire(SimService);

impl Stub for DeltaWire {
    type Req = RealizeServiceRequest;
    type Resp = RealizeServiceResponse;

    async fn call(&self, context: tarpc::context::Context, mut request: Self::Req) -> Result<Self::Resp, RpcError> {
        if let RealizeServiceRequest::ApplyDelta { delta, .. } = &mut request {
            let mut other = vec![0x72, 0x73, 0x02, 0x36, 0x43];
            other.extend(u32::to_be_bytes(BLOCKS_BYTES));
            other.extend(vec![b'!'; BLOCKS_BYTES as usize]);
            other.push(0);
            (delta.form, delta.data) = (Form::Plain, other.into());
        }
        self.0.call(context, request).await
    }
}

/// Bytes of the file: one chunk of several blocks.
const BLOCKS_BYTES: u32 = 20_000;

#[test]
fn a_wrong_delta_is_caught() {
    for (bug, expected) in [(None, false), (Some(Bug::DeltaUnhashed), true)] {
        plant(bug);
        let new = vec![b'a'; BLOCKS_BYTES as usize];
        let mut old = new.clone();
        old[9000] = b'b';
        let body = |bytes: &[u8]| Body::File(bytes.into());
        let files = vec![("file", body(&new), Some(body(&old)))];
        let (world, checker) = (World::of(1, false, files), Arc::new(Checker::default()));
        world.watch(&checker);
        let ended = world.move_through(|service| SimService::new(DeltaWire(service)));
        plant(None);
        let is_torn = |violation: &Violation| violation.property == Property::WholeFinals;
        assert_eq!(checker.violations().iter().any(is_torn), expected, "{bug:?}");
        let is_complete = matches!(ended.result, Some(Ok(report)) if report.is_complete());
        assert!(expected || is_complete, "the chunk is sent whole");
    }
}

/// A daemon that is lost in the middle of a move and never comes back.
#[test]
fn tries_without_end_are_caught() {
    for (bug, expected) in [(None, false), (Some(Bug::UnboundedTries), true)] {
        let plan = || {
            let world = World::on_two_machines(1, small_tree(Large::OneChunk));
            TwoHosts::new(world, Direction::Send, 1)
        };
        let half = plan().run().up / 2;
        plant(bug);
        let mut lost = plan();
        lost.lines = vec![LinePlan::fault(Way::Up, half, Trouble::Reset)];
        lost.lines.resize(2000, LinePlan::Refused);
        let violations = lost.run().violations;
        plant(None);
        let does_not_end = violations
            .iter()
            .any(|violation| violation.property == Property::Answered);
        assert_eq!(does_not_end, expected, "{bug:?}: {violations:?}");
    }
}

/// A rate that does not survive what happens: many cuts of the line, a time of day that gains.
#[test]
fn rates_that_do_not_hold_are_caught() {
    for direction in [Direction::Send, Direction::Fetch] {
        // While a daemon is connected to again its bucket fills anyway.
        let at_reconnect = match direction {
            Direction::Send => Bug::RateRefilled,
            Direction::Fetch => Bug::RateForgotten,
        };
        for (bug, expected) in [
            (None, false),
            (Some(at_reconnect), true),
            (Some(Bug::RateByWallClock), true),
        ] {
            let names: Vec<_> = (0..60).map(|nth| format!("d/{nth}")).collect();
            let body = |nth: usize| Body::File(FileContent::from(&vec![nth as u8; 8000][..]));
            let files = names
                .iter()
                .enumerate()
                .map(|(nth, name)| (name.as_str(), body(nth), None));
            let mut plan = TwoHosts::new(World::on_two_machines(1, files.collect()), direction, 1);
            plan.rate = Some(Rate::new(64 << 10).unwrap());
            let way = if direction == Direction::Send {
                Way::Up
            } else {
                Way::Down
            };
            plan.lines = vec![LinePlan::fault(way, 6000, Trouble::Reset); 30];
            let gains = Fault {
                at: At::Effect(5),
                kind: Kind::Clock(7200, 300),
            };
            (plan.mover_faults, plan.daemon_faults) = (vec![gains.clone()], vec![gains]);
            plant(bug);
            let outcome = plan.run();
            plant(None);
            let is_broken = |violation: &Violation| violation.property == Property::Rate;
            assert_eq!(
                outcome.violations.iter().any(is_broken),
                expected,
                "{direction:?} {bug:?}: {:?}",
                outcome.violations
            );
        }
    }
}

/// A disk that takes longer to sync than anybody waits for, and succeeds then.
#[test]
fn a_success_that_comes_too_late_is_caught() {
    for (bug, expected) in [(None, false), (Some(Bug::LateIsSuccess), true)] {
        let files = vec![("new", Body::File(FileContent::from(&[7; 3000][..])), None)];
        let mut plan = TwoHosts::new(World::on_two_machines(1, files), Direction::Send, 1);
        (plan.limits.finish_answer, plan.limits.finish_answers) = (Duration::from_millis(500), 2);
        plan.daemon_faults = vec![Fault {
            at: At::call(Op::FileSync, 0),
            kind: Kind::Stall(Duration::from_secs(4)),
        }];
        plant(bug);
        let outcome = plan.run();
        plant(None);
        // Whoever waits no longer begins again.
        assert!(expected || outcome.connections > 1, "{:?}", outcome.runs);
        let is_broken = |violation: &Violation| violation.property == Property::Law;
        assert_eq!(
            outcome.violations.iter().any(is_broken),
            expected,
            "{bug:?}: {:?}",
            outcome.violations
        );
        assert!(expected || outcome.last.is_some_and(|last| last.is_complete()));
    }
}

/// Sources that are deleted and stay open: more of them the more files there are.
#[test]
fn handles_that_are_kept_are_caught() {
    for (bug, expected) in [(None, false), (Some(Bug::HandlesKept), true)] {
        let names: Vec<_> = (0..100).map(|nth| format!("d/{nth}")).collect();
        let body = |name: &str| Body::File(name.as_bytes().into());
        let files = names.iter().map(|name| (name.as_str(), body(name), None));
        for direction in [Direction::Send, Direction::Fetch] {
            let world = World::on_two_machines(1, files.clone().collect());
            plant(bug);
            let outcome = TwoHosts::new(world, direction, 1).run();
            plant(None);
            outcome.expect_good(&bug);
            let violations = outcome.check_bounded(&limits());
            assert_eq!(!violations.is_empty(), expected, "{bug:?}: {violations:?}");
        }
    }
}

/// The long run itself, with a bug that is always on: it fails, and says by which command to see that again.
#[test]
fn the_long_run_tells_of_a_canary() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_realize-sim"))
            .args(args)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, told) = run(&[
        "--plant",
        "DeleteBeforeSync",
        "run",
        "--scenario",
        "two-disks",
        "--seeds",
        "0..1000",
    ]);
    assert_eq!(code, Some(1), "{told}");
    let plan = told
        .split_once("replay '")
        .and_then(|(_, rest)| rest.split_once('\''))
        .unwrap()
        .0;
    let (code, told) = run(&["--plant", "DeleteBeforeSync", "replay", plan]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("violated: Violation"), "{told}");
    let (code, told) = run(&["replay", plan]);
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = run(&["--plant", "DeleteBeforeSync", "exhaust", "--jobs", "1"]);
    assert_eq!(code, Some(1), "{told}");
}

/// A large file whose mover dies on the way to a daemon that lives on. Somebody writes to what has arrived before it is gone on with.
#[test]
fn what_is_kept_and_believed_unseen_is_caught() {
    for (bug, expected) in [(None, false), (Some(Bug::KeptUnchecked), true)] {
        let bytes: Vec<u8> = (0..12 * CHUNK_BYTES).map(|at| (at / 5000) as u8).collect();
        let body = Body::File(FileContent::from(&bytes[..]));
        let world = World::on_two_machines(1, vec![("new", body, None)]);
        let mut plan = TwoHosts::new(world, Direction::Send, 1);
        let path = |text: &str| RelPath::new(text).unwrap();
        let call = |op, path, nth| At::Call {
            op,
            path: Some(path),
            nth,
        };
        plan.mover_faults = vec![Fault {
            at: call(Op::Read, at_source(&path("new")), 9),
            kind: Kind::Kill(Off::Hang),
        }];
        let part = "target/.new.realize-part";
        let write = move |machine: &Machine| {
            for chunk in 0..9 {
                let disk = machine.disk(TARGET);
                disk.write_at(part, chunk * CHUNK_BYTES + 10, b"somebody's").unwrap();
            }
        };
        plan.daemon_faults = vec![Fault {
            // Asked for twice when it is kept; then by who goes on with it.
            at: call(Op::LeaseHeld, path(part), 2),
            kind: Kind::Act(Act(Arc::new(write))),
        }];
        plant(bug);
        let outcome = plan.run();
        plant(None);
        assert_eq!(outcome.struck, 1, "{:?}", outcome.runs);
        let is_torn = |violation: &Violation| violation.property == Property::WholeFinals;
        assert_eq!(
            outcome.violations.iter().any(is_torn),
            expected,
            "{bug:?}: {:?}",
            outcome.violations
        );
    }
}

/// Whether a large file is lost whose mover dies while it comes from a daemon that lives on, where somebody writes to one chunk of it before it is gone on with.
fn is_lost(written: u64) -> bool {
    let bytes: Vec<u8> = (0..12 * CHUNK_BYTES).map(|at| (at / 5000) as u8).collect();
    let body = |bytes: &[u8]| Body::File(FileContent::from(bytes));
    let world = World::on_two_machines(1, vec![("new", body(&bytes), None)]);
    world.source.refuse(Refusals {
        maps_tell: true,
        ..Refusals::default()
    });
    let path = |text: &str| RelPath::new(text).unwrap();
    let mut plan = TwoHosts::new(world.clone(), Direction::Fetch, 1);
    plan.mover_faults = vec![Fault {
        at: At::Call {
            op: Op::Write,
            path: Some(path("target/.new.realize-part")),
            nth: 6,
        },
        kind: Kind::Kill(Off::Hang),
    }];
    let tries = AtomicU64::new(0);
    plan.before_try = Arc::new(move || {
        if tries.fetch_add(1, Ordering::Relaxed) == 1 {
            let at = at_source(&path("new"));
            let mut newer = bytes.clone();
            let offset = (written * CHUNK_BYTES) as usize + 10;
            newer[offset..offset + 10].copy_from_slice(b"somebody's");
            world.source.write(at.as_bytes(), &newer).unwrap();
            world.source.sync(at.as_bytes()).unwrap();
            let mut truths = world.truth();
            let truth = truths.get_mut(&path("new")).unwrap();
            truth.before.push(std::mem::replace(&mut truth.new, body(&newer)));
        }
    });
    let outcome = plan.run();
    assert_eq!(outcome.struck, 1, "{:?}", outcome.runs);
    let is_lost = |violation: &Violation| violation.property == Property::Law;
    outcome.violations.iter().any(is_lost)
}

#[test]
fn what_is_recalled_and_believed_unseen_is_caught() {
    assert!(!(0..12).any(is_lost));
    plant(Some(Bug::RecallUnchecked));
    let lost: Vec<_> = (0..12).filter(|written| is_lost(*written)).collect();
    plant(None);
    // Of others more is read, which tells.
    assert!(!lost.is_empty());
}
