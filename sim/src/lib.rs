//! The simulator of realize: whole moves on virtual time and simulated disks.

pub mod random;

pub mod contract;
pub mod fs;

pub mod check;
pub mod clock;
pub mod exhaustive;
pub mod net;
pub mod plan;
pub mod service;
pub mod two_hosts;
pub mod world;
