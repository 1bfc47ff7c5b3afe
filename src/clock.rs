//! Time, as the core sees it.

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime},
};

use crate::model::Timestamp;

/// Two clocks: one that only goes forward, one that people set.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Time since some fixed point. Never goes back, does not jump when the wall clock is set.
    fn now(&self) -> Duration;

    /// The time of day, to be compared with the times of files. May jump either way.
    fn wall(&self) -> Timestamp;

    /// Ends once [`now`](Self::now) has reached `deadline`.
    fn sleep_until(&self, deadline: Duration) -> impl Future<Output = ()> + Send;

    /// Ends after `duration`.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send {
        self.sleep_until(self.now().saturating_add(duration))
    }
}

/// `work`'s value, or `None` when `limit` is over first; `work` is dropped then.
pub async fn timeout<C: Clock, T>(clock: &C, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let (work, sleep) = (std::pin::pin!(work), std::pin::pin!(clock.sleep(limit)));
    match futures::future::select(work, sleep).await {
        futures::future::Either::Left((value, _)) => Some(value),
        futures::future::Either::Right(((), _)) => None,
    }
}

/// The real clock; needs a tokio runtime with time.
#[derive(Debug, Clone)]
pub struct TokioClock {
    start: Instant,
}

impl TokioClock {
    /// A clock whose `now` counts from this call.
    #[expect(clippy::new_without_default, reason = "reading the time is an effect")]
    pub fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the seam itself")]
        let start = Instant::now();
        Self { start }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "the seam itself")]
        let now = SystemTime::now();
        match now.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Timestamp {
                secs: since.as_secs() as i64,
                nanos: since.subsec_nanos(),
            },
            // Before 1970: good enough in whole seconds, rounded down.
            Err(before) => Timestamp {
                secs: -(before.duration().as_secs() as i64) - 1,
                nanos: 0,
            },
        }
    }

    async fn sleep_until(&self, deadline: Duration) {
        #[expect(clippy::disallowed_methods, reason = "the seam itself")]
        tokio::time::sleep_until((self.start + deadline).into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn timeout_gives_the_value_or_gives_up() {
        let clock = TokioClock::new();
        assert_eq!(timeout(&clock, Duration::from_secs(60), async { 7 }).await, Some(7));
        let never = std::future::pending::<()>();
        assert_eq!(timeout(&clock, Duration::from_millis(1), never).await, None);
    }
}
