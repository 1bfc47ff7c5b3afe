//! A bounded share of the exhaustive mode: crash states of the smallest moves.

use realize_sim::{
    exhaustive::{Bounds, Tally, corpus, exhaust},
    fs::Profile,
};

#[test]
fn crash_states_of_small_moves_keep_the_law_and_are_gone_on_from() {
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
