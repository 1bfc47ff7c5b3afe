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
        let millis = now.as_millis() as i64 + self.machine.millis_fast(now);
        Timestamp {
            secs: MORNING_SECS + millis.div_euclid(1000),
            nanos: millis.rem_euclid(1000) as u32 * 1_000_000 + now.subsec_nanos() % 1_000_000,
        }
    }

    async fn sleep_until(&self, deadline: Duration) {
        sleep_until(self.start + deadline).await;
    }
}
