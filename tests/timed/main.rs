//! The built programs where it is time that is measured: alone, and one test at a time.

#![allow(clippy::disallowed_methods, reason = "tests see the host as it is")]
#![allow(clippy::await_holding_lock, reason = "each test has a runtime of its own")]

#[path = "../support/mod.rs"]
mod support;

mod full_load;
mod throttle;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// There are few cores.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
