//! The simulated world does as the real one, and the mover loses nothing in it.

mod check;
mod content;
mod contract;
mod crash;
mod differential;
mod exhaustive;
mod faults;
mod kept;
mod mover;
mod plans;
mod power_cut;
mod random;
mod recall;
mod reflink;
mod sums;
mod swaps;
mod two_hosts;
mod worst;
