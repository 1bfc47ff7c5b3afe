//! The long run of the simulator: as many plans as one asks for, and a failing one again with all that happens in it.
#![expect(clippy::disallowed_methods, reason = "how long it takes is told in real time")]

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

use clap::{Parser, Subcommand};
use realize_sim::plan::{Plan, Scenario, Verdict, plan_of, shrink};

/// Breaks moves on purpose, on virtual time, and tells what did not hold.
#[derive(Parser)]
#[command(name = "realize-sim", max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the plans of many seeds, and ends with the first that fails, made as small as may be
    Run {
        /// Which seeds
        #[arg(long, value_name = "FIRST..END", default_value = "0..10000", value_parser = seeds)]
        seeds: Range<u64>,
        /// Only one: one-disk, two-disks, send or fetch
        #[arg(long, value_parser = scenario)]
        scenario: Option<Scenario>,
        /// Threads
        #[arg(long, default_value_t = 2)]
        jobs: u64,
    },
    /// Tells the plan of a seed
    Show {
        /// Which seed
        seed: u64,
        /// Which scenario
        #[arg(long, value_parser = scenario)]
        scenario: Scenario,
    },
    /// Runs one plan, and tells all that happens
    Replay {
        /// As a failure prints it
        plan: String,
    },
    /// Tells the trace hashes of seeds, one a line
    Trace {
        /// Which seeds
        #[arg(long, value_name = "FIRST..END", value_parser = seeds)]
        seeds: Range<u64>,
        /// Which scenario
        #[arg(long, value_parser = scenario)]
        scenario: Scenario,
    },
}

/// How long a failing plan is made smaller.
const SHRINK: Duration = Duration::from_secs(60);

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parsed = text
        .split_once("..")
        .and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    parsed.ok_or_else(|| "write FIRST..END, as 0..1000".into())
}

fn scenario(text: &str) -> Result<Scenario, String> {
    let known = [
        ("one-disk", Scenario::OneDisk),
        ("two-disks", Scenario::TwoDisks),
        ("send", Scenario::Send),
        ("fetch", Scenario::Fetch),
    ];
    let found = known.into_iter().find(|(name, _)| *name == text);
    found
        .map(|(_, scenario)| scenario)
        .ok_or_else(|| "one-disk, two-disks, send or fetch".into())
}

/// Which scenario a seed has when none is asked for: one in five goes over a network.
fn scenario_of(seed: u64) -> Scenario {
    match seed % 10 {
        0 => Scenario::Send,
        5 => Scenario::Fetch,
        1..5 => Scenario::OneDisk,
        _ => Scenario::TwoDisks,
    }
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run { seeds, scenario, jobs } => run(&seeds, scenario, jobs),
        Command::Replay { plan } => match Plan::parse(&plan) {
            Ok(plan) => replay(&plan),
            Err(error) => {
                eprintln!("realize-sim: {error}");
                ExitCode::from(2)
            }
        },
        Command::Show { seed, scenario } => {
            println!("{}", plan_of(scenario, seed).current().text());
            ExitCode::SUCCESS
        }
        Command::Trace { seeds, scenario } => {
            for seed in seeds {
                println!("{seed} {:016x}", plan_of(scenario, seed).current().run(false).trace);
            }
            ExitCode::SUCCESS
        }
    }
}

fn replay(plan: &Plan) -> ExitCode {
    let verdict = plan.run(true);
    for line in &verdict.log {
        println!("{line}");
    }
    tell(&verdict);
    ExitCode::from(u8::from(!verdict.is_good()))
}

fn tell(verdict: &Verdict) {
    const TOLD: usize = 4;
    for violation in verdict.violations.iter().take(TOLD) {
        println!("violated: {violation:?}");
    }
    if verdict.violations.len() > TOLD {
        println!("and {} times more", verdict.violations.len() - TOLD);
    }
    for problem in &verdict.problems {
        println!("problem: {problem}");
    }
    println!("{} moments checked, trace {:016x}", verdict.checks, verdict.trace);
}

fn run(seeds: &Range<u64>, only: Option<Scenario>, jobs: u64) -> ExitCode {
    let begin = Instant::now();
    let (done, checks, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let by_scenario = Mutex::new(BTreeMap::<Scenario, (u64, Duration)>::new());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for job in 0..jobs.max(1) {
            let (done, checks, failed, by_scenario, failures) = (&done, &checks, &failed, &by_scenario, &failures);
            scope.spawn(move || {
                for seed in (seeds.start + job..seeds.end).step_by(jobs.max(1) as usize) {
                    if failed.load(Ordering::Relaxed) {
                        return;
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
    for (scenario, seed) in &failures {
        tell_failure(*scenario, *seed);
    }
    ExitCode::from(u8::from(!failures.is_empty()))
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
    println!("cargo run -p realize-sim --profile sim -- replay '{}'", plan.text());
}
