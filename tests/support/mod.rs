//! What the tests of the built programs share: trees to move, what is in a tree, and how to run a program.
//!
//! Each test program has it as `mod support`. (Outside a directory of its own it would be taken for a test program by cargo.)
//! Nothing here uses the code that is tested, so a mistake there is not repeated here; only the escaping of names for
//! messages is borrowed, and `Peer` speaks the protocol by the code that does.

#![allow(dead_code, unused_imports, reason = "each test program uses a part")]
#![allow(clippy::disallowed_methods, reason = "tests see the host as it is")]

mod command;
mod fake_daemon;
mod hosts;
mod line;
mod manifest;
mod peer;
mod scratch;
mod tree;

pub use command::{
    Outcome, Run, Running, TimedOut, disk_images_allowed, name_spaces_allowed, realize, realized, run_as_root,
};
pub use fake_daemon::{Act, FakeDaemon};
pub use hosts::{ALL, Hosts};
pub use line::Line;
pub use manifest::{Entry, Kind, Manifest, is_reserved};
pub use peer::Peer;
pub use scratch::{NOBODY, Scratch, give_to_nobody};
pub use tree::{
    allocated_bytes, deep_directories, many_files, odd_kinds, odd_links, odd_modes, odd_names, odd_times, odd_tree,
    plain_tree, set_mtime, sparse_files,
};

/// How many times something is struck while it moves: as usual, or as often as REALIZE_BLOWS says.
pub fn blows(usual: usize) -> usize {
    let wanted = std::env::var("REALIZE_BLOWS").ok();
    wanted.and_then(|blows| blows.parse().ok()).unwrap_or(usual)
}
