//! Makes a failing plan smaller.

use proptest::strategy::ValueTree;

use super::Plan;

/// The smallest plan that was found to fail, `fails` being asked of each as long as `goes_on` says so. The plan of `tree` must fail.
pub fn shrink(
    tree: &mut dyn ValueTree<Value = Plan>,
    fails: impl Fn(&Plan) -> bool,
    goes_on: impl Fn() -> bool,
) -> Plan {
    let mut smallest = tree.current();
    while goes_on() && tree.simplify() {
        loop {
            let plan = tree.current();
            if fails(&plan) {
                smallest = plan;
                break;
            }
            if !goes_on() || !tree.complicate() {
                return smallest;
            }
        }
    }
    smallest
}
