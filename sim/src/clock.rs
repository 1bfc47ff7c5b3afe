//! Virtual time: tokio's paused clock.
#![expect(clippy::disallowed_methods, reason = "the seam itself")]

use std::time::Duration;

use realize::{clock::Clock, model::Timestamp};
use tokio::time::{Instant, sleep_until};

use crate::fs::Machine;

/// The time of day when a program begins: an hour after the first files were made.
const MORNING_SECS: i64 = 1_700_000_000 + 3600;

/// The clock of one simulated program.
#[derive(Clone)]
pub struct SimClock {
    start: Instant,
    machine: Machine,
}

impl SimClock {
    /// Begins now, on `machine`, whose time of day may jump and drift.
    pub fn on(machine: &Machine) -> Self {
        Self {
            start: Instant::now(),
            machine: machine.clone(),
        }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Instant::now() - self.start
    }

    fn wall(&self) -> Timestamp {
        let now = self.now();
        Timestamp {
            secs: MORNING_SECS + now.as_secs() as i64 + self.machine.seconds_fast(now),
            nanos: now.subsec_nanos(),
        }
    }

    async fn sleep_until(&self, deadline: Duration) {
        sleep_until(self.start + deadline).await;
    }
}
