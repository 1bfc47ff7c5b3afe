//! The plans of many seeds.

use std::{
    collections::BTreeMap,
    ops::Range,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use realize_sim::plan::{Coverage, Plan, Scenario, plan_of, shrink};

use super::tell;

/// How long a failing plan is made smaller.
const SHRINK: Duration = Duration::from_secs(60);

/// Which scenario a seed has when none is asked for: one in five goes over a network.
fn scenario_of(seed: u64) -> Scenario {
    match seed % 10 {
        0 => Scenario::Send,
        5 => Scenario::Fetch,
        1..5 => Scenario::OneDisk,
        _ => Scenario::TwoDisks,
    }
}

pub fn run(seeds: &Range<u64>, only: Option<Scenario>, jobs: u64) -> ExitCode {
    let begin = Instant::now();
    let (done, checks, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let by_scenario = Mutex::new(BTreeMap::<Scenario, (u64, Duration)>::new());
    let (failures, covered) = (Mutex::new(Vec::new()), Mutex::new(Coverage::default()));
    std::thread::scope(|scope| {
        for job in 0..jobs.max(1) {
            let (done, checks, failed, by_scenario) = (&done, &checks, &failed, &by_scenario);
            let (failures, covered) = (&failures, &covered);
            scope.spawn(move || {
                let mut coverage = Coverage::default();
                for seed in (seeds.start + job..seeds.end).step_by(jobs.max(1) as usize) {
                    if failed.load(Ordering::Relaxed) {
                        break;
                    }
                    let scenario = only.unwrap_or_else(|| scenario_of(seed));
                    let since = Instant::now();
                    let verdict = plan_of(scenario, seed).current().run(false);
                    {
                        let mut by_scenario = by_scenario.lock().unwrap_or_else(PoisonError::into_inner);
                        let (count, took) = by_scenario.entry(scenario).or_default();
                        *count += 1;
                        *took += since.elapsed();
                    }
                    coverage.add(&verdict.coverage);
                    checks.fetch_add(verdict.checks, Ordering::Relaxed);
                    let count = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if count.is_multiple_of(10_000) {
                        eprintln!("{count} seeds, {:?}", begin.elapsed());
                    }
                    if !verdict.is_good() {
                        failed.store(true, Ordering::Relaxed);
                        failures
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push((scenario, seed));
                    }
                }
                covered.lock().unwrap_or_else(PoisonError::into_inner).add(&coverage);
            });
        }
    });
    let (done, checks) = (done.into_inner(), checks.into_inner());
    println!("{done} seeds, {checks} moments checked, {:.0?}", begin.elapsed());
    for (scenario, (count, took)) in by_scenario.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let a_minute = count as f64 * 60.0 / took.as_secs_f64();
        println!("{scenario:?}: {count} seeds, {a_minute:.0} a minute and core");
    }
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    let covered = covered.into_inner().unwrap_or_else(PoisonError::into_inner);
    let is_covered = tell_coverage(&covered, only.is_none() && done >= COVERS_ALL);
    for (scenario, seed) in &failures {
        tell_failure(*scenario, *seed);
    }
    ExitCode::from(u8::from(!failures.is_empty() || !is_covered))
}

/// A run of so many seeds of all scenarios must have tried every fault at every step.
const COVERS_ALL: u64 = 100_000;

/// Tells which fault met which step how often; whether that is enough, where it `must_be_all`.
fn tell_coverage(covered: &Coverage, must_be_all: bool) -> bool {
    let mut rows = BTreeMap::<&str, Vec<String>>::new();
    for (fault, step, count) in covered.cells() {
        rows.entry(fault).or_default().push(format!("{step} {count}"));
    }
    for (fault, cells) in rows {
        println!("{fault} met: {}", cells.join(", "));
    }
    let missing = covered.missing();
    if !must_be_all {
        println!(
            "{} meetings more are asked for, of {COVERS_ALL} seeds of all scenarios",
            missing.len()
        );
        return true;
    }
    for (fault, step) in &missing {
        println!("never tried: {fault} at: {step}");
    }
    missing.is_empty()
}

/// Makes the plan of a seed that failed smaller, and tells how to see it again.
fn tell_failure(scenario: Scenario, seed: u64) {
    let mut tree = plan_of(scenario, seed);
    let properties = tree.current().run(false).properties();
    let begin = Instant::now();
    let fails = |plan: &Plan| {
        plan.run(false)
            .properties()
            .iter()
            .any(|property| properties.contains(property))
    };
    let plan = shrink(tree.as_mut(), fails, || begin.elapsed() < SHRINK);
    println!("seed {seed} of {scenario:?} fails: {properties:?}");
    tell(&plan.run(false));
    println!(
        "{} files and {} steps are enough. See it by:",
        plan.files.len(),
        plan.steps.len()
    );
    println!("{} replay '{}'", super::command(), plan.text());
}
