//! When the time of a move is over: after so long, or at a time of day.

use std::{str::FromStr, time::Duration};

use chrono::{DateTime, Days, Local, LocalResult, NaiveTime, Utc};

use crate::{clock::Clock, model::Timestamp};

/// Near the end nothing is begun any more: for the last of so many parts of the time, but not for longer than this.
const LAST_PART: u32 = 20;
const LAST_PART_MAX: Duration = Duration::from_secs(5);

/// Nobody sleeps longer before looking at the time of day again, which may have been set.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long the program may take, from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxDuration(Duration);

impl FromStr for MaxDuration {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match secs(text)? {
            0 => Err("at least 1 second; leave it out for no limit"),
            secs @ 1..=MOST_SECS => Ok(Self(Duration::from_secs(secs))),
            _ => Err("at most 36500d; leave it out for no limit"),
        }
    }
}

/// For how long something is tried again. Zero is not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryFor(pub Duration);

impl FromStr for RetryFor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match secs(text)? {
            secs @ 0..=MOST_SECS => Ok(Self(Duration::from_secs(secs))),
            _ => Err("at most 36500d"),
        }
    }
}

/// Reads `90`, `90s`, `1h30m`, `2d`: how many seconds that is, `u64::MAX` for all that are more.
fn secs(text: &str) -> Result<u64, &'static str> {
    const NOT_ONE: &str = "write a time as 1h30m, of d, h, m and s in this order, or as seconds";
    let mut secs = 0u64;
    let (mut rest, mut last_unit) = (text, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        let (unit, len) = match behind.bytes().next() {
            Some(b'd') => (24 * 3600, 1),
            Some(b'h') => (3600, 1),
            Some(b'm') => (60, 1),
            Some(b's') => (1, 1),
            None if last_unit == u64::MAX => (1, 0),
            _ => return Err(NOT_ONE),
        };
        if number.is_empty() || unit >= last_unit {
            return Err(NOT_ONE);
        }
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        secs = part.and_then(|part| secs.checked_add(part)).unwrap_or(u64::MAX);
        (rest, last_unit) = (&behind[len..], unit);
    }
    if text.is_empty() { Err(NOT_ONE) } else { Ok(secs) }
}

/// A hundred years.
const MOST_SECS: u64 = 36_500 * 24 * 3600;

/// A time of day, on the clock of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopAt(NaiveTime);

impl FromStr for StopAt {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = NaiveTime::parse_from_str(text, "%H:%M").or_else(|_| NaiveTime::parse_from_str(text, "%H:%M:%S"));
        time.map(Self).map_err(|_| "write a time of day as 06:30")
    }
}

impl StopAt {
    /// When it is so late the next time after `now`. On a day on which clocks are set forward over it, an hour later.
    fn next(self, now: DateTime<Local>) -> DateTime<Local> {
        let days = (0..3).filter_map(|day| now.date_naive().checked_add_days(Days::new(day)));
        let times = days.flat_map(|day| {
            let at = day.and_time(self.0);
            match at.and_local_timezone(Local) {
                LocalResult::Single(time) => [Some(time), None],
                LocalResult::Ambiguous(first, second) => [Some(first), Some(second)],
                LocalResult::None => [
                    (at + chrono::TimeDelta::hours(1)).and_local_timezone(Local).earliest(),
                    None,
                ],
            }
        });
        let mut times = times.flatten();
        // There is one each day.
        times.find(|time| *time > now).unwrap_or(now)
    }
}

/// When the time is over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deadline {
    /// By the clock that goes on whatever is set; from the start of the program.
    after: Option<Duration>,
    /// By the time of day.
    at: Option<DateTime<Utc>>,
}

impl Deadline {
    /// The earlier of the two, seen from now.
    pub fn new(clock: &impl Clock, max: Option<MaxDuration>, stop_at: Option<StopAt>) -> Self {
        Self {
            after: max.map(|MaxDuration(after)| after),
            at: stop_at.map(|at| at.next(utc(clock.wall()).with_timezone(&Local)).to_utc()),
        }
    }

    /// How long it is till then; `None` for ever.
    fn left(&self, clock: &impl Clock) -> Option<Duration> {
        let after = self.after.map(|after| after.saturating_sub(clock.now()));
        let at = self.at.map(|at| (at - utc(clock.wall())).to_std().unwrap_or_default());
        after.into_iter().chain(at).min()
    }

    /// Waits until no more than `last` is left.
    pub async fn comes(&self, clock: &impl Clock, last: Duration) {
        while let Some(left) = self.left(clock) {
            match left.saturating_sub(last) {
                Duration::ZERO => return,
                wait => clock.sleep(wait.min(LOOK_AGAIN)).await,
            }
        }
        std::future::pending().await
    }

    /// For how long at the end nothing is begun any more.
    pub fn last_part(&self, clock: &impl Clock) -> Duration {
        let left = self.left(clock).unwrap_or_default();
        (left / LAST_PART).min(LAST_PART_MAX)
    }
}

fn utc(time: Timestamp) -> DateTime<Utc> {
    // Out of its range is no time that a host has.
    DateTime::from_timestamp(time.secs, time.nanos).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for (text, secs) in [
            ("90", 90),
            ("90s", 90),
            ("1h30m", 5400),
            ("2d", 172_800),
            ("1d1h1m1s", 90_061),
            ("120m", 7200),
        ] {
            assert_eq!(text.parse(), Ok(MaxDuration(Duration::from_secs(secs))), "{text}");
        }
        for (text, why) in [
            ("", "write a time"),
            ("h", "write a time"),
            ("-1", "write a time"),
            ("1h30", "write a time"),
            ("30m1h", "write a time"),
            ("1m1m", "write a time"),
            ("1.5h", "write a time"),
            ("1h ", "write a time"),
            ("soon", "write a time"),
            ("0", "at least 1 second"),
            ("0h0m", "at least 1 second"),
            ("36501d", "at most"),
            ("99999999999999999999d", "at most"),
        ] {
            let refused = text.parse::<MaxDuration>().unwrap_err();
            assert!(refused.starts_with(why), "{text:?}: {refused}");
        }
    }

    #[test]
    fn a_time_of_day_is_the_next_one() {
        let at = |text: &str| text.parse::<StopAt>().unwrap();
        let now = Local.with_ymd_and_hms(2026, 1, 31, 12, 0, 0).unwrap();
        for (text, expected) in [
            ("12:01", (2026, 1, 31, 12, 1)),
            ("23:59", (2026, 1, 31, 23, 59)),
            ("12:00", (2026, 2, 1, 12, 0)),
            ("6:30", (2026, 2, 1, 6, 30)),
        ] {
            let (year, month, day, hour, minute) = expected;
            let expected = Local.with_ymd_and_hms(year, month, day, hour, minute, 0).unwrap();
            assert_eq!(at(text).next(now), expected, "{text}");
        }
        for text in ["", "24:00", "630", "6:60", "noon"] {
            assert!(text.parse::<StopAt>().is_err(), "{text}");
        }
    }
}
