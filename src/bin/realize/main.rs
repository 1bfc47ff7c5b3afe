//! The command `realize`.

fn main() {}
