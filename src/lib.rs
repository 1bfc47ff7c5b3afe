//! Moves files from one host to another and never loses one.
//!
//! A source file is deleted only after the target holds the same bytes, verified and durable, under
//! the final name. `docs/design.md` tells how and why. A module uses only what stands above it here.

pub mod limits;
pub mod memory;
pub mod model;
pub mod planted;

pub mod clock;
pub mod deadline;
pub mod delta;
pub mod digest;
pub mod filter;
pub mod fs;
mod hostfile;
pub mod keys;
pub mod location;
pub mod net;
pub mod signals;
pub mod throttle;

pub mod tls;

pub mod service;

pub mod config;
pub mod wire;

pub mod plan;
pub mod store;

pub mod server;

pub mod client;
pub mod daemon;

pub mod algo;
