//! Moves files from one host to another and never loses one.
//!
//! A source file is deleted only after the target holds the same bytes, verified and durable, under
//! the final name. `docs/design.md` tells how and why; imports point down this list only.

pub mod model;

pub mod clock;
pub mod fs;
pub mod net;
