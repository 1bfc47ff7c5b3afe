//! A bounded share of what the long run does: plans by seed, none of which may fail; plans that failed once; and that a failing plan becomes a small
//! one.

use std::process::Command;

use realize_sim::{
    fs::Profile,
    plan::{BodyPlan, FilePlan, NAMES, Plan, Scenario, Size, There, plan_of},
};

/// Set in the process that only tells its traces: the seeds.
const TRACED: &str = "REALIZE_SIM_TRACED";

fn expect_good(scenario: Scenario, seeds: std::ops::Range<u64>) {
    let least = (seeds.end - seeds.start) as usize / 4;
    let mut struck = 0;
    for seed in seeds {
        let plan = plan_of(scenario, seed).current();
        let verdict = plan.run(false);
        assert!(
            verdict.is_good(),
            "seed {seed}: {:?} {:?}\ncargo run -p realize-sim --profile sim -- replay '{}'",
            verdict.violations.first(),
            verdict.problems,
            plan.text()
        );
        struck += verdict.struck;
    }
    assert!(struck > least, "only {struck} faults have struck");
}

#[test]
fn plans_on_one_disk_lose_nothing() {
    expect_good(Scenario::OneDisk, 0..500);
}

#[test]
fn plans_on_two_disks_lose_nothing() {
    expect_good(Scenario::TwoDisks, 0..500);
}

#[test]
fn plans_of_sending_lose_nothing() {
    expect_good(Scenario::Send, 0..200);
}

#[test]
fn plans_of_fetching_lose_nothing() {
    expect_good(Scenario::Fetch, 0..200);
}

#[test]
fn two_sources_move_into_one_target() {
    let file = |name| FilePlan {
        name,
        new: BodyPlan::File(Size::Small, 1),
        there: There::Nothing,
    };
    for scenario in Scenario::ALL {
        let plan = Plan {
            seed: 1,
            scenario,
            // Files of both sources in the same directories.
            files: (0..NAMES.len()).map(file).collect(),
            steps: Vec::new(),
            profile: Profile::PosixWorst,
        };
        let verdict = plan.run(true);
        assert!(
            verdict.is_good(),
            "{scenario:?}: {:?} {:?}",
            verdict.violations,
            verdict.problems
        );
    }
}

/// A rate at which a chunk took longer than a call may.
#[test]
fn a_low_rate_leaves_time_for_large_files() {
    let plan = r#"{"seed":2607508322770112288,"scenario":"Send","files":[{"name":10,"new":{"File":["Sparse",0]},"there":"Nothing"}],"steps":[{"Act":{"effect":17,"act":{"ReplaceSource":[0,0]}}},{"Throttled":35146}],"profile":"Ordered"}"#;
    let verdict = Plan::parse(plan).unwrap().run(true);
    assert!(verdict.is_good(), "{:?} {:?}", verdict.violations, verdict.problems);
}

/// A program that is killed while a disk stalls: the end of the stall was told by its clock, which the next one does not have.
#[test]
fn a_stall_takes_as_long_in_every_run() {
    let plan = Plan::parse(
        r#"{"seed":4187423301134220845,"scenario":"Fetch","files":[{"name":6,"new":{"File":["Small",223]},"there":{"Partial":[159,false]}},{"name":9,"new":{"File":["Large",27]},"there":"Nothing"},{"name":4,"new":{"File":["Blocks",81]},"there":{"Near":"Changed"}},{"name":5,"new":{"Link":2},"there":"Nothing"}],"steps":[{"Line":{"Made":[]}},{"Fault":{"at_target":true,"effect":35,"kind":{"Stall":59}}},{"Line":{"Made":[{"way":"Down","at":8113,"trouble":"Swallow"},{"way":"Up","at":6475,"trouble":{"Flip":{"bit":3}}}]}},{"Fault":{"at_target":true,"effect":96,"kind":{"Error":"NoSpace"}}},{"Fault":{"at_target":true,"effect":37,"kind":"Kill"}}],"profile":"Writeback"}"#,
    );
    let plan = plan.expect("as it was printed");
    let traces: std::collections::BTreeSet<_> = (0..12).map(|_| plan.run(false).trace).collect();
    assert_eq!(traces.len(), 1, "{traces:x?}");
}

/// Each showed a fault of the mover once.
#[test]
fn plans_that_failed_once_do_not_any_more() {
    for text in [
        // A file of eight chunks on a slow line was said not to be answered: the checker's fault.
        r#"{"seed":15920727271399321709,"scenario":"Send","files":[{"name":0,"new":{"File":["Long",0]},"there":"Nothing"}],"steps":[{"Line":{"Slow":[965003,[]]}}],"profile":"Ordered"}"#,
        // A probe that could not be removed stayed for good.
        r#"{"seed":1727907580858263261,"scenario":"OneDisk","files":[{"name":4,"new":{"File":["Small",0]},"there":"Nothing"},{"name":1,"new":{"File":["Large",0]},"there":{"Partial":[0,false]}},{"name":0,"new":{"Link":0},"there":"Lookalike"},{"name":9,"new":{"File":["Small",0]},"there":{"Other":{"Link":0}}},{"name":8,"new":{"File":["Small",9]},"there":{"Near":{"Shifted":1}}}],"steps":[{"Fault":{"at_target":false,"effect":2,"kind":{"Error":"Access"}}},{"Lacks":"Leases"},{"Fault":{"at_target":false,"effect":46,"kind":{"Error":"Io"}}}],"profile":"Ordered"}"#,
        // A source that was replaced, set aside by a link and an unlink: a crash could leave the unlink alone.
        r#"{"seed":14914665856617321551,"scenario":"TwoDisks","files":[{"name":2,"new":{"File":["Small",0]},"there":"Nothing"},{"name":5,"new":{"File":["Small",0]},"there":"Nothing"}],"steps":[{"Act":{"effect":4,"act":{"ReplaceSource":[0,0]}}},{"Lacks":"Renames"}],"profile":"Ordered"}"#,
        // A directory whose sync had failed, trusted by the next process.
        r#"{"seed":13009390004158444814,"scenario":"TwoDisks","files":[{"name":8,"new":{"File":["Small",0]},"there":{"Other":{"File":["Small",1]}}}],"steps":[{"Fault":{"at_target":false,"effect":143,"kind":{"SyncLost":"Kept"}}}],"profile":"Ordered"}"#,
        // A partial that had the final name for a moment was written to again before the names were durable.
        r#"{"seed":12471029331385501385,"scenario":"TwoDisks","files":[{"name":2,"new":{"File":["Large",0]},"there":{"Other":{"File":["Small",0]}}},{"name":6,"new":{"File":["Small",0]},"there":"Equal"},{"name":0,"new":{"File":["Large",0]},"there":{"Other":{"File":["Small",0]}}},{"name":5,"new":{"File":["Small",0]},"there":"Nothing"}],"steps":[{"Fault":{"at_target":false,"effect":4,"kind":{"Error":"NoSpace"}}},{"Act":{"effect":0,"act":{"AppearAtTarget":[0,0]}}}],"profile":"Ordered"}"#,
        // Others confirmed what was in a directory while it was being marked that its sync had failed.
        r#"{"seed":16727994448262197709,"scenario":"TwoDisks","files":[{"name":4,"new":{"File":["Large",0]},"there":{"Other":{"File":["Small",0]}}},{"name":0,"new":{"File":["Large",0]},"there":"Nothing"}],"steps":[{"Fault":{"at_target":false,"effect":137,"kind":{"SyncLost":"Kept"}}},{"Act":{"effect":10,"act":{"WriteSource":[1,0]}}},{"Fault":{"at_target":false,"effect":6,"kind":{"PowerCut":"Hang"}}}],"profile":"Writeback"}"#,
        // A link that was renamed left the partial of an earlier try.
        r#"{"seed":1405172054244087761,"scenario":"OneDisk","files":[{"name":0,"new":{"Link":0},"there":"Equal"},{"name":6,"new":{"File":["Small",0]},"there":{"Partial":[0,false]}},{"name":3,"new":{"Link":0},"there":"Equal"}],"steps":[{"Fault":{"at_target":false,"effect":11,"kind":{"PowerCut":"Hang"}}}],"profile":"PosixWorst"}"#,
        // The mark of a failed sync could not be made at once.
        r#"{"seed":8548562647473258545,"scenario":"TwoDisks","files":[{"name":3,"new":{"File":["Small",0]},"there":{"Other":{"File":["Small",1]}}},{"name":9,"new":{"File":["Small",0]},"there":"Nothing"},{"name":8,"new":{"File":["Small",0]},"there":{"Other":{"File":["Small",1]}}}],"steps":[{"Fault":{"at_target":false,"effect":133,"kind":{"SyncLost":"Kept"}}},{"Fault":{"at_target":false,"effect":32,"kind":{"Error":"Io"}}}],"profile":"Ordered"}"#,
        // Written to through a mapping before it was set aside by a link and an unlink: a crash could leave the unlink alone.
        r#"{"seed":13873968478091387178,"scenario":"TwoDisks","files":[{"name":7,"new":{"File":["Small",0]},"there":"Nothing"},{"name":1,"new":{"File":["Small",0]},"there":"Nothing"},{"name":0,"new":{"File":["Small",0]},"there":"Nothing"},{"name":2,"new":{"File":["Small",0]},"there":"Equal"}],"steps":[{"Lacks":"Renames"},{"Act":{"effect":10,"act":{"MapSource":[1,0]}}}],"profile":"Ordered"}"#,
        // The sync of a name that was given back had failed, and was forgotten.
        r#"{"seed":15701735260972366606,"scenario":"OneDisk","files":[{"name":0,"new":{"File":["Large",0]},"there":"Equal"},{"name":9,"new":{"File":["Small",0]},"there":{"Other":{"File":["Small",1]}}},{"name":3,"new":{"File":["Small",0]},"there":"Nothing"}],"steps":[{"Fault":{"at_target":false,"effect":9,"kind":{"SyncLost":"Kept"}}},{"Fault":{"at_target":false,"effect":19,"kind":"Kill"}},{"Lacks":"Renames"}],"profile":"Ordered"}"#,
        // A partial that was a second name of the final: removing it was taken for a change by somebody.
        r#"{"seed":12291205422950178520,"scenario":"TwoDisks","files":[{"name":4,"new":{"File":["Small",0]},"there":{"Other":{"Link":0}}},{"name":6,"new":{"File":["Sparse",0]},"there":"Nothing"},{"name":2,"new":{"File":["Small",0]},"there":"Nothing"},{"name":3,"new":{"File":["Large",0]},"there":"Equal"},{"name":0,"new":{"File":["Small",0]},"there":"Nothing"}],"steps":[{"Lacks":"Renames"},{"Act":{"effect":33,"act":{"ReplaceSource":[0,0]}}},{"Fault":{"at_target":false,"effect":29,"kind":"Kill"}}],"profile":"Ordered"}"#,
        // An old version that could not be removed, and was said to stay.
        r#"{"seed":10231708861704707085,"scenario":"OneDisk","files":[{"name":7,"new":{"File":["Small",0]},"there":{"Other":{"File":["Small",1]}}},{"name":2,"new":{"File":["Small",0]},"there":"Equal"},{"name":6,"new":{"Link":0},"there":{"Other":{"File":["Small",0]}}},{"name":3,"new":{"File":["Small",0]},"there":"Nothing"}],"steps":[{"Fault":{"at_target":false,"effect":32,"kind":{"Error":"Io"}}},{"Fault":{"at_target":false,"effect":28,"kind":{"PowerCut":"Hang"}}}],"profile":"Ordered"}"#,
    ] {
        let verdict = Plan::parse(text).unwrap().run(false);
        assert!(
            verdict.is_good(),
            "{:?} {:?}\n{text}",
            verdict.violations,
            verdict.problems
        );
    }
}

#[test]
fn the_text_of_a_plan_says_it_again() {
    for seed in 0..50 {
        for scenario in Scenario::ALL {
            let plan = plan_of(scenario, seed).current();
            assert_eq!(Plan::parse(&plan.text()), Ok(plan));
        }
    }
}

#[test]
fn a_seed_gives_the_same_trace_in_another_process() {
    const SEEDS: u64 = 40;
    let traces = || -> Vec<String> {
        let seeds = (0..SEEDS).flat_map(|seed| Scenario::ALL.map(|scenario| (scenario, seed)));
        seeds
            .map(|(scenario, seed)| format!("{:016x}", plan_of(scenario, seed).current().run(false).trace))
            .collect()
    };
    if std::env::var_os(TRACED).is_some() {
        for trace in traces() {
            println!("trace {trace}");
        }
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "plans::a_seed_gives_the_same_trace_in_another_process",
            "--nocapture",
        ])
        .env(TRACED, "yes")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let there: Vec<_> = text
        .lines()
        .filter_map(|line| Some(line.split_once("trace ")?.1.to_owned()))
        .collect();
    assert_eq!(traces(), there);
    let different: std::collections::BTreeSet<_> = there.iter().collect();
    assert!(
        different.len() > there.len() / 2,
        "{} traces of {}",
        different.len(),
        there.len()
    );
}
