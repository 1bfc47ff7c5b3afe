//! Chance from a seed.

use realize_sim::random::Random;

#[test]
fn the_same_seed_gives_the_same_numbers_below_the_bound() {
    let draw = |seed| {
        let mut random = Random::new(seed);
        (0..100).map(|_| random.below(7)).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert!(draw(3).iter().all(|n| *n < 7));
    assert!((0..7).all(|n| draw(3).contains(&n)));
}
