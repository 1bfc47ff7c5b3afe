//! Every crash state of small moves.

use std::{
    ops::Range,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use realize_sim::{
    exhaustive::{Bounds, Tally, corpus, exhaust, undisturbed},
    plan::{Plan, Scenario, plan_of},
};

/// The corpus, then the plans of `seeds` on one host without their faults.
pub fn plans(seeds: Range<u64>) -> Vec<Plan> {
    let of_seeds = seeds.map(|seed| {
        let scenario = if seed % 4 == 0 {
            Scenario::OneDisk
        } else {
            Scenario::TwoDisks
        };
        undisturbed(&plan_of(scenario, seed).current())
    });
    corpus().into_iter().chain(of_seeds).collect()
}

/// Tries `plans`, until one fails.
pub fn run(plans: Vec<Plan>, bounds: Bounds, jobs: usize) -> ExitCode {
    let begin = Instant::now();
    let (total, next) = (Mutex::new(Tally::default()), AtomicUsize::new(0));
    let failed = Mutex::new(None);
    let lock = |total: &Mutex<Tally>, tally| total.lock().unwrap_or_else(PoisonError::into_inner).add(tally);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let tally = exhaust(plan, bounds);
                    if !tally.failures.is_empty() {
                        next.store(plans.len(), Ordering::Relaxed);
                        failed
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .get_or_insert(plan);
                    }
                    lock(&total, tally);
                }
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{} effects ({} times more states than the bound), {} states checked ({} of one disk), {} recovered, and {} once more with a second power loss; {} went on after a kill; {:.0?}",
        total.effects,
        total.bounded,
        total.states,
        total.disk_states,
        total.recovered,
        total.recovered_twice,
        total.killed,
        begin.elapsed()
    );
    let Some(plan) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) else {
        return ExitCode::SUCCESS;
    };
    for failure in total.failures.iter().take(4) {
        println!("failed: {failure}");
    }
    println!("See it by:");
    println!(
        "{} exhaust --states {} --recoveries {} --kills {} --plan '{}'",
        super::command(),
        bounds.states,
        bounds.recoveries,
        bounds.kills,
        plan.text()
    );
    ExitCode::FAILURE
}
