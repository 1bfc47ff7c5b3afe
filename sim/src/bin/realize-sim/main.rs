//! The long run of the simulator: as many plans as one asks for, and a failing one again with all that happens in it.
#![expect(clippy::disallowed_methods, reason = "how long it takes is told in real time")]

mod exhaust;
mod seeds;

use std::{
    io::{self, Write},
    ops::Range,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use realize_sim::{
    exhaustive::Bounds,
    plan::{Plan, Scenario, Verdict, plan_of},
};

/// Breaks moves on purpose, on virtual time, and tells what did not hold.
#[derive(Parser)]
#[command(name = "realize-sim", max_term_width = 100)]
struct Args {
    /// With this bug of src/planted.rs
    #[cfg(realize_planted)]
    #[arg(long, global = true, value_parser = bug)]
    plant: Option<realize::planted::Bug>,
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
    /// Tries every state that a power loss may leave at every effect of small moves, and ends with the first that fails
    Exhaust {
        /// The plans of these seeds, without their faults, after those of the corpus
        #[arg(long, value_name = "FIRST..END", value_parser = seeds)]
        seeds: Option<Range<u64>>,
        /// Only this plan
        #[arg(long, conflicts_with = "seeds")]
        plan: Option<String>,
        /// States of one disk at one effect, at most
        #[arg(long, default_value_t = 256)]
        states: usize,
        /// Moves that go on from the states of one effect, at most
        #[arg(long, default_value_t = 8)]
        recoveries: usize,
        /// Effects of a plan at which the program is killed, at most
        #[arg(long, default_value_t = 8)]
        kills: usize,
        /// Threads
        #[arg(long, default_value_t = 2)]
        jobs: usize,
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

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parsed = text
        .split_once("..")
        .and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?))
        .filter(|seeds: &Range<u64>| !seeds.is_empty());
    parsed.ok_or_else(|| "write FIRST..END, as 0..1000, the end being the first that is not run".into())
}

fn scenario(text: &str) -> Result<Scenario, String> {
    let known = [
        ("one-disk", Scenario::OneDisk),
        ("two-disks", Scenario::TwoDisks),
        ("send", Scenario::Send),
        ("fetch", Scenario::Fetch),
    ];
    // As plans have it too.
    let of_plan = |scenario: Scenario| format!("{scenario:?}") == text;
    let found = known
        .into_iter()
        .find(|(name, scenario)| *name == text || of_plan(*scenario));
    found
        .map(|(_, scenario)| scenario)
        .ok_or_else(|| "one-disk, two-disks, send or fetch".into())
}

#[cfg(realize_planted)]
fn bug(name: &str) -> Result<realize::planted::Bug, String> {
    realize::planted::Bug::of_name(name).ok_or_else(|| format!("one of {:?}", realize::planted::Bug::ALL))
}

fn main() -> ExitCode {
    let args = Args::parse();
    #[cfg(realize_planted)]
    realize::planted::plant_everywhere(args.plant);
    match args.command {
        Command::Run { seeds, scenario, jobs } => seeds::run(&seeds, scenario, jobs),
        Command::Exhaust {
            seeds,
            plan,
            states,
            recoveries,
            kills,
            jobs,
        } => {
            let bounds = Bounds {
                states,
                recoveries,
                kills,
            };
            match plan.as_deref().map(Plan::parse).transpose() {
                Ok(Some(plan)) if plan.scenario.is_remote() => {
                    refuse("exhaust takes plans of one host, OneDisk or TwoDisks; replay takes this one")
                }
                Ok(Some(plan)) => exhaust::run(vec![plan], bounds, 1),
                Ok(None) => exhaust::run(exhaust::plans(seeds.unwrap_or_default()), bounds, jobs),
                Err(error) => refuse(&error),
            }
        }
        Command::Replay { plan } => match Plan::parse(&plan) {
            Ok(plan) => replay(&plan),
            Err(error) => refuse(&error),
        },
        Command::Show { seed, scenario } => {
            println!("{}", plan_of(scenario, seed).current().text());
            ExitCode::SUCCESS
        }
        Command::Trace { seeds, scenario } => {
            for seed in seeds {
                let trace = plan_of(scenario, seed).current().run(false).trace;
                // Who reads them may have seen enough.
                if writeln!(io::stdout(), "{seed} {trace:016x}").is_err() {
                    break;
                }
            }
            ExitCode::SUCCESS
        }
    }
}

/// How this program is run again as it is built, before what it is to do.
fn command() -> String {
    #[cfg(realize_planted)]
    if let Some(bug) = realize::planted::planted_everywhere() {
        return format!(
            "RUSTFLAGS='--cfg realize_planted' CARGO_TARGET_DIR=target/planted cargo run -p realize-sim -- --plant {bug:?}"
        );
    }
    "cargo run -p realize-sim --profile sim --".into()
}

fn refuse(error: &str) -> ExitCode {
    eprintln!("realize-sim: {error}");
    ExitCode::from(2)
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
