//! When a move that was cut short begins again, and when it is over.

use std::time::Duration;

use super::{MoveError, MoveReport, is_unanswered};
use crate::planted::{Bug, planted};

/// Counts and waits of [`Tries`].
#[derive(Debug, Clone)]
pub struct TryLimits {
    /// So often in a row a move begins again without having sent anything.
    pub without_progress: u32,
    /// So often in a row without having moved a file: a large one may arrive in parts.
    pub without_a_file: u32,
    /// Before it begins again where the other side was lost, so that one that is lost again and again costs little.
    pub after_loss: Duration,
    /// Before it tries to connect once more, or looks whether a source is free.
    pub pause: Duration,
    /// How long a source of another host that is in use is waited for: the run that has it may be an earlier one of this host, of whose
    /// end that host has not heard yet. Longer than it takes there to miss a ping.
    pub held: Duration,
}

impl Default for TryLimits {
    fn default() -> Self {
        Self {
            without_progress: 5,
            without_a_file: 50,
            after_loss: Duration::from_secs(1),
            pause: Duration::from_secs(5),
            held: Duration::from_secs(45),
        }
    }
}

/// The tries of one move, of which the first that could not connect is the last, and later ones are given time.
#[derive(Debug, Default)]
pub struct Tries {
    limits: TryLimits,
    without_progress: u32,
    without_a_file: u32,
    held_since: Option<Duration>,
    moved: MoveReport,
}

/// What to do after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Begin again after this pause.
    Again(Duration),
    /// As that, and it is the first time that a source is found in use.
    WaitsForSource(Duration),
    /// That was the last.
    Over,
}

impl Tries {
    /// None made yet.
    pub fn new(limits: TryLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// What all tries have moved.
    pub fn moved(&self) -> &MoveReport {
        &self.moved
    }

    /// There was no connection, which may be better in a while or not.
    pub fn not_connected(&mut self, is_passing: bool) -> Next {
        // It worked a moment ago: whoever was started anew is given time.
        if self.without_progress == 0 || !is_passing || self.is_enough() {
            return Next::Over;
        }
        self.without_progress += 1;
        Next::Again(self.limits.pause)
    }

    /// Somebody else has a source that is on another host.
    pub fn held(&mut self, now: Duration) -> Next {
        let is_first = self.held_since.is_none();
        let since = *self.held_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.limits.held {
            return Next::Over;
        }
        match is_first {
            true => Next::WaitsForSource(self.limits.pause),
            false => Next::Again(self.limits.pause),
        }
    }

    /// A move has ended so, of which a part may be `is_remote`: whom it loses may come back.
    pub fn ended(&mut self, ended: &Result<MoveReport, MoveError>, is_remote: bool) -> Next {
        let has_moved = ended.as_ref().is_ok_and(MoveReport::did_something);
        let has_sent = has_moved || ended.as_ref().is_ok_and(|report| report.bytes_sent > 0);
        self.without_progress = if has_sent { 1 } else { self.without_progress + 1 };
        self.without_a_file = if has_moved { 1 } else { self.without_a_file + 1 };
        if let Ok(report) = ended {
            self.moved.add(report);
        }
        if is_remote && is_unanswered(ended) && !self.is_more_than_enough() {
            Next::Again(self.limits.after_loss)
        } else {
            Next::Over
        }
    }

    fn is_enough(&self) -> bool {
        !planted(Bug::UnboundedTries) && self.without_progress >= self.limits.without_progress
    }

    fn is_more_than_enough(&self) -> bool {
        let TryLimits {
            without_progress,
            without_a_file,
            ..
        } = self.limits;
        !planted(Bug::UnboundedTries)
            && (self.without_progress > without_progress || self.without_a_file > without_a_file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{algo::Side, service::ServiceError};

    fn lost(bytes_sent: u64, copied: u64) -> Result<MoveReport, MoveError> {
        let lost = MoveError::Side(Side::Target, ServiceError::NoAnswer("gone".into()));
        Ok(MoveReport {
            bytes_sent,
            copied,
            stopped: Some(crate::algo::Stop::Move(lost)),
            ..MoveReport::default()
        })
    }

    fn count_until_over(mut next: impl FnMut() -> Next) -> usize {
        (1..1000).find(|_| next() == Next::Over).unwrap()
    }

    #[test]
    fn a_first_connection_that_fails_is_the_last() {
        assert_eq!(Tries::default().not_connected(true), Next::Over);
    }

    #[test]
    fn tries_without_progress_are_few() {
        let mut tries = Tries::default();
        assert_eq!(count_until_over(|| tries.ended(&lost(0, 0), true)), 6);
        let mut tries = Tries::default();
        tries.ended(&lost(1, 0), true);
        assert_eq!(count_until_over(|| tries.not_connected(true)), 5);
        let mut tries = Tries::default();
        tries.ended(&lost(1, 0), true);
        assert_eq!(tries.not_connected(false), Next::Over);
    }

    #[test]
    fn a_large_file_may_arrive_in_parts_but_not_for_ever() {
        let mut tries = Tries::default();
        assert_eq!(count_until_over(|| tries.ended(&lost(1, 0), true)), 51);
        let mut tries = Tries::default();
        assert!((0..900).all(|_| tries.ended(&lost(1, 1), true) == Next::Again(Duration::from_secs(1))));
        assert_eq!(tries.moved().bytes_sent, 900);
    }

    #[test]
    fn whom_this_process_serves_itself_is_not_tried_again() {
        assert_eq!(Tries::default().ended(&lost(1, 1), false), Next::Over);
    }

    #[test]
    fn a_source_in_use_is_waited_for_and_said_once() {
        let (mut tries, pause) = (Tries::default(), Duration::from_secs(5));
        assert_eq!(tries.held(Duration::from_secs(100)), Next::WaitsForSource(pause));
        assert_eq!(tries.held(Duration::from_secs(144)), Next::Again(pause));
        assert_eq!(tries.held(Duration::from_secs(145)), Next::Over);
    }
}
