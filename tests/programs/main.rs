//! What the built programs do with real files, sockets and signals. All are one test program: each more would be linked and would
//! compile what they share once more. (What must run alone is one of its own beside this directory.)

#![allow(clippy::disallowed_methods, reason = "tests see the host as it is")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod corpora;
mod cut_lines;
mod ending;
mod helpers;
mod hostile_daemons;
mod hostile_peers;
mod kill;
mod law_order;
mod move_trees;
mod partials_of_others;
mod regressions;
mod reload;
mod remembered;
mod repair;
mod two_hosts;
