//! A bounded share of the exhaustive mode: crash states of the smallest moves.

use realize_sim::{
    exhaustive::{Bounds, Tally, corpus, exhaust},
    fs::Profile,
    plan::Plan,
};

#[test]
fn crash_states_of_small_moves_keep_the_law_and_are_gone_on_from() {
    let bounds = Bounds {
        states: 24,
        recoveries: 1,
        kills: 4,
    };
    let mut total = Tally::default();
    for plan in corpus().iter().filter(|plan| plan.profile == Profile::PosixWorst) {
        let tally = exhaust(plan, bounds);
        assert!(
            tally.failures.is_empty(),
            "{}\n{}",
            tally.failures.join("\n"),
            plan.text()
        );
        total.add(tally);
    }
    assert!(total.killed > 100, "{total:?}");
    assert!(total.states > 2000, "{total:?}");
    assert!(total.recovered > 500 && total.recovered_twice > 200, "{total:?}");
}

/// Failed once: what a killed run had put there was replaced before its name was durable, and a power loss left what should have replaced it
/// beside nothing, for a person to look at.
#[test]
fn what_is_replaced_has_a_durable_name() {
    let plan = r#"{"seed":6,"scenario":"TwoDisks","files":[{"name":3,"new":{"Link":1},"there":"Nothing"},{"name":0,"new":{"Link":1},"there":{"Other":{"Link":2}}}],"steps":[{"Lacks":"Renames"}],"profile":"PosixWorst"}"#;
    let bounds = Bounds {
        states: 256,
        recoveries: 8,
        kills: 8,
    };
    let tally = exhaust(&Plan::parse(plan).unwrap(), bounds);
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n"));
}
