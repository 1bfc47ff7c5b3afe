//! A bounded share of the exhaustive mode: every crash state of the smallest moves.

use realize_sim::{
    exhaustive::{Bounds, Tally, corpus, exhaust},
    fs::Profile,
};

#[test]
fn every_crash_state_of_a_small_move_is_gone_on_from() {
    let bounds = Bounds {
        states: 64,
        recoveries: 2,
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
    assert!(total.states > 2000, "{total:?}");
    assert!(total.recovered > 500 && total.recovered_twice > 200, "{total:?}");
}
