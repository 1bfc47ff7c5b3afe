//! Moves between two hosts over a network that fails in every way: cut, stalled and flipped at any byte, and either host dying at
//! any effect. Whatever it is, the law holds at every moment, and once nothing fails any more a further run moves what is left.

use realize_sim::{
    two_hosts::{Direction, TwoHosts},
    world::{Large, World, small_tree},
};

const BOTH: [Direction; 2] = [Direction::Send, Direction::Fetch];

fn small(direction: Direction, seed: u64) -> TwoHosts {
    TwoHosts::new(
        World::on_two_machines(seed, small_tree(Large::OneChunk)),
        direction,
        seed,
    )
}

#[test]
fn an_undisturbed_move_keeps_the_law_either_way() {
    for direction in BOTH {
        let outcome = small(direction, 1).run();
        outcome.expect_good(&direction);
        assert!(outcome.first_is_complete());
        assert!(outcome.checks > 100);
        println!(
            "{direction:?} up {} down {} {} {}",
            outcome.up, outcome.down, outcome.mover_effects, outcome.daemon_effects
        );
        println!("{}", outcome.log.join("\n"));
    }
}
