//! What is sent keeps to its rate, in every window of time.

use realize::throttle::Rate;

use crate::{
    check::{Checker, Property},
    net::Sent,
};

/// Connections that may be there at once: a new one, and one that has not found out that it is lost. What such a one was allowed and its line
/// did not take at once it may send later.
const CONNECTIONS: u64 = 2;

/// What a daemon sends before it is told at what rate: its part of the handshake, that the mover is let in.
const BEFORE_TOLD: u64 = 4 << 10;

/// Checks what was `sent` up and down, when the daemon was `told` so often to keep to `rate`.
pub(super) fn check(rate: Rate, sent: &[Sent; 2], told: u64, checker: &Checker) {
    let most = rate.burst_bytes() + CONNECTIONS * rate.burst_bytes() / 2;
    for (sent, most) in sent.iter().zip([most, most + told * BEFORE_TOLD]) {
        let above = most_above(sent, rate);
        if above > most {
            let text = format!("{above} bytes above {rate} in some window, at most {most}");
            checker.report(Property::Rate, &text);
        }
    }
}

/// The most that any window had above `rate` times its length, in bytes.
fn most_above(sent: &Sent, rate: Rate) -> u64 {
    let (mut sum, mut least, mut most) = (0i128, 0i128, 0i128);
    for (at, bytes) in sent {
        let due = i128::from(rate.get()) * at.as_micros() as i128 / 1_000_000;
        // A window begins with any of these.
        least = least.min(sum - due);
        sum += i128::from(*bytes);
        most = most.max(sum - due - least);
    }
    most as u64
}
