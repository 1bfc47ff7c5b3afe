//! How many bytes a second are sent: [`Rate`], how it is written; [`Bucket`], what is shared by all that may send so much together; and
//! [`Limited`], a stream below TLS that sends no more, so that what counts is what is on the wire.
//!
//! A bucket is GCRA by `governor`, on our [`Clock`]. It is empty when a rate is set, so nothing that sets one (a reconnect, a call) fills it.
//! How much may go at once is a fiftieth of a second's bytes: no window of any length has more than that beside rate times time.

use std::{
    fmt, io,
    num::NonZeroU32,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use governor::{Quota, RateLimiter, middleware::NoOpMiddleware, state::InMemoryState, state::NotKeyed};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    clock::Clock,
    planted::{Bug, planted},
};

/// A limit in bytes per second: from [`Rate::MIN`] to [`Rate::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

/// Why a rate is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRate {
    /// Not a number with a unit.
    #[error("write bytes per second as 800k, 1M or 1.5G (powers of 1024)")]
    NotOne,
    /// No connection could be made in time.
    #[error("at least 1k (1 KiB per second), or no connection can be made; leave it out for no limit")]
    TooLittle,
    /// More than is understood.
    #[error("at most 1T (1 TiB per second); leave it out for no limit")]
    TooMuch,
}

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

impl Rate {
    /// 1 KiB per second: a handshake takes three seconds then.
    pub const MIN: u64 = 1 << 10;

    /// 16 KiB per second: with less calls take longer than who has no limit of its own gives them.
    pub const MIN_UNTOLD: u64 = 16 << 10;

    /// 1 TiB per second.
    pub const MAX: u64 = 1 << 40;

    /// So many bytes per second.
    pub fn new(bytes_per_second: u64) -> Result<Self, BadRate> {
        match bytes_per_second {
            ..Self::MIN => Err(BadRate::TooLittle),
            Self::MIN..=Self::MAX => Ok(Self(bytes_per_second)),
            _ => Err(BadRate::TooMuch),
        }
    }

    /// Bytes per second.
    pub fn get(self) -> u64 {
        self.0
    }

    /// How many bytes may go at once: no window of any length has more than that beside rate times time. Beside it each connection may have
    /// half of that which it was allowed and its line did not take at once.
    pub fn burst_bytes(self) -> u64 {
        (self.0 / BURST_SHARE).max(BURST_BYTES) + self.cell_bytes()
    }

    fn cell_bytes(self) -> u64 {
        self.0.div_ceil(1_000_000_000 / CELL_NANOS).next_power_of_two()
    }
}

/// Reads `1500`, `800k`, `1.5M`, `1MiB`, `1 MiB/s`: bytes, or powers of 1024 of them, per second.
impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let text = text.strip_suffix("/s").unwrap_or(text);
        let split = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(BadRate::NotOne),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // Digits that say less than a byte are no help to anybody.
        if !is_number(whole) || (number.contains('.') && !is_number(part)) || part.len() > 12 {
            return Err(BadRate::NotOne);
        }
        let whole: u64 = whole.parse().map_err(|_| BadRate::TooMuch)?;
        let whole = u128::from(whole) << shift;
        let scale = 10u128.pow(part.len() as u32);
        let part = format!("0{part}").parse::<u128>().map_err(|_| BadRate::NotOne)?;
        let bytes = whole + (part << shift) / scale;
        Self::new(u64::try_from(bytes).map_err(|_| BadRate::TooMuch)?)
    }
}

/// In the largest unit that has a whole one, to two places; in bytes as well where that is not exact.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.get();
        let unit = (bytes.ilog2() / 10) as usize;
        let size = 1u64 << (10 * unit);
        let hundredths = u128::from(bytes) * 100 / u128::from(size);
        let (whole, part) = (hundredths / 100, hundredths % 100);
        match part {
            0 => write!(f, "{whole}")?,
            part if part % 10 == 0 => write!(f, "{whole}.{}", part / 10)?,
            part => write!(f, "{whole}.{part:02}")?,
        }
        write!(f, " {}/s", UNITS[unit])?;
        if u128::from(bytes) * 100 % u128::from(size) != 0 {
            write!(f, " ({bytes} B/s)")?;
        }
        Ok(())
    }
}

/// The most that is written at once.
const WRITE_BYTES: u64 = 64 << 10;

/// How much of a second may go at once.
const BURST_SHARE: u64 = 50;

/// And so many bytes at least: a record of TLS is to go out in few pieces.
const BURST_BYTES: u64 = 512;

/// The shortest interval of a cell: governor counts whole nanoseconds, so shorter ones would be off by more than one in 10,000.
const CELL_NANOS: u64 = 10_000;

/// Nobody sleeps longer before looking at the rate again, which may have been changed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Our clock as governor reads one.
struct Ours<C>(C);

impl<C: Clock> governor::clock::Clock for Ours<C> {
    type Instant = Duration;

    fn now(&self) -> Duration {
        if planted(Bug::RateByWallClock) {
            let wall = self.0.wall();
            return Duration::new(wall.secs.max(0) as u64, wall.nanos);
        }
        self.0.now()
    }
}

/// A rate at work.
struct Cells<C: Clock> {
    rate: Rate,
    cell_bytes: u64,
    /// What one take may be, in cells.
    most: u64,
    limiter: RateLimiter<NotKeyed, InMemoryState, Ours<C>, NoOpMiddleware<Duration>>,
}

impl<C: Clock> Cells<C> {
    fn new(rate: Rate, clock: &C) -> Self {
        const NANOS: u128 = 1_000_000_000;
        let bytes = rate.get();
        let cell_bytes = rate.cell_bytes();
        let interval = (u128::from(cell_bytes) * NANOS / u128::from(bytes)) as u64;
        let burst = (bytes / BURST_SHARE).max(BURST_BYTES) / cell_bytes;
        let burst = NonZeroU32::new(burst as u32).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(Duration::from_nanos(interval)).expect("it is not zero");
        let limiter = RateLimiter::direct_with_clock(quota.allow_burst(burst), Ours(clock.clone()));
        // Empty.
        if !planted(Bug::RateRefilled) {
            let _taken = limiter.check_n(burst);
        }
        Self {
            rate,
            cell_bytes,
            most: (WRITE_BYTES / cell_bytes).min(u64::from(burst.get()) / 2).max(1),
            limiter,
        }
    }

    /// Takes what at most `bytes` need: how many may be sent, or how long there is to wait.
    fn take(&self, bytes: u64) -> Result<u64, Duration> {
        let cells = bytes.div_ceil(self.cell_bytes).clamp(1, self.most);
        let count = NonZeroU32::new(cells as u32).unwrap_or(NonZeroU32::MIN);
        match self.limiter.check_n(count) {
            Ok(Ok(())) => Ok(cells * self.cell_bytes),
            Ok(Err(not_until)) => Err(not_until.wait_time_from(governor::clock::Clock::now(self.limiter.clock()))),
            // Not met: `most` is below the burst.
            Err(_) => Err(LOOK_AGAIN),
        }
    }
}

/// What several connections may send together. No limit at first.
pub struct Bucket<C: Clock> {
    clock: C,
    cells: Mutex<Option<Arc<Cells<C>>>>,
    /// Whoever waits does so in a row: one that sends without end must not be first each time.
    turn: tokio::sync::Mutex<()>,
}

impl<C: Clock> Bucket<C> {
    /// With this limit, or none.
    pub fn new(clock: C, rate: Option<Rate>) -> Arc<Self> {
        let bucket = Self {
            clock,
            cells: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        };
        bucket.set(rate);
        Arc::new(bucket)
    }

    fn cells(&self) -> MutexGuard<'_, Option<Arc<Cells<C>>>> {
        // Nothing panics while it is held.
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the limit. The bucket is empty then, so that nothing is gained by it; the same limit again changes nothing.
    pub fn set(&self, rate: Option<Rate>) {
        let mut cells = self.cells();
        if cells.as_ref().map(|cells| cells.rate) != rate {
            *cells = rate.map(|rate| Arc::new(Cells::new(rate, &self.clock)));
        }
    }

    /// See [`Cells::take`]; all of them where there is no limit.
    fn take(&self, bytes: u64) -> Result<u64, Duration> {
        let cells = self.cells().clone();
        cells.map_or(Ok(bytes), |cells| cells.take(bytes))
    }

    /// Takes what at most `bytes` need, if nobody waits and there is some.
    fn take_at_once(&self, bytes: u64) -> Option<u64> {
        if self.cells().is_none() {
            return Some(bytes);
        }
        let _turn = self.turn.try_lock().ok()?;
        self.take(bytes).ok()
    }

    /// Takes what at most `bytes` need, once it is this one's turn and there is some.
    async fn take_in_turn(&self, bytes: u64) -> u64 {
        let _turn = self.turn.lock().await;
        loop {
            match self.take(bytes) {
                Ok(taken) => return taken,
                Err(wait) => self.clock.sleep(wait.min(LOOK_AGAIN)).await,
            }
        }
    }

    /// Waits until `bytes` may have been sent: for what is written where there is no stream.
    pub async fn send(&self, mut bytes: u64) {
        while bytes > 0 {
            let taken = self.take_in_turn(bytes).await;
            bytes = bytes.saturating_sub(taken);
        }
    }
}

/// The buckets that what a connection sends is taken from; they may come when it has sent something.
pub struct Gate<C: Clock>(Mutex<Inside<C>>);

struct Inside<C: Clock> {
    /// Each with what was taken and not sent. Below zero is what was sent and not taken.
    buckets: Vec<(Arc<Bucket<C>>, i64)>,
    /// What was sent so far: a bucket that comes later takes it first.
    sent: i64,
}

impl<C: Clock> Gate<C> {
    /// With these.
    pub fn new(buckets: impl IntoIterator<Item = Arc<Bucket<C>>>) -> Arc<Self> {
        let gate = Arc::new(Self(Mutex::new(Inside {
            buckets: Vec::new(),
            sent: 0,
        })));
        buckets.into_iter().for_each(|bucket| gate.add(bucket));
        gate
    }

    fn inside(&self) -> MutexGuard<'_, Inside<C>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes from this bucket too, what was sent already first.
    pub fn add(&self, bucket: Arc<Bucket<C>>) {
        if planted(Bug::RateRefilled) {
            let rate = bucket.cells().take().map(|cells| cells.rate);
            bucket.set(rate);
        }
        let mut inside = self.inside();
        let sent = inside.sent;
        inside.buckets.push((bucket, -sent));
    }

    /// How much of `bytes` may be sent now, or from which bucket how much has to be taken first.
    fn take(&self, bytes: u64) -> Result<u64, (Arc<Bucket<C>>, u64)> {
        let mut most = bytes;
        for (bucket, taken) in &mut self.inside().buckets {
            while *taken <= 0 {
                let wanted = most.saturating_add(taken.unsigned_abs());
                let some = bucket.take_at_once(wanted).ok_or_else(|| (bucket.clone(), wanted))?;
                *taken += some as i64;
            }
            most = most.min(*taken as u64);
        }
        Ok(most)
    }

    /// So much was taken from `from`.
    fn taken(&self, from: &Arc<Bucket<C>>, bytes: u64) {
        let mut inside = self.inside();
        if let Some((_, taken)) = inside.buckets.iter_mut().find(|(bucket, _)| Arc::ptr_eq(bucket, from)) {
            *taken += bytes as i64;
        }
    }

    fn sent(&self, bytes: u64) {
        let mut inside = self.inside();
        inside.sent = inside.sent.saturating_add(bytes as i64);
        for (_, taken) in &mut inside.buckets {
            *taken -= bytes as i64;
        }
    }
}

/// A stream that sends no more than its gate allows. What it receives is not its business.
pub struct Limited<S, C: Clock> {
    stream: S,
    gate: Arc<Gate<C>>,
    /// For what is to be taken from a bucket.
    waiting: Option<BoxFuture<'static, (Arc<Bucket<C>>, u64)>>,
}

impl<S, C: Clock> Limited<S, C> {
    /// `stream`, through `gate`.
    pub fn new(stream: S, gate: Arc<Gate<C>>) -> Self {
        Self {
            stream,
            gate,
            waiting: None,
        }
    }

    /// How much of `bytes` may be sent, once any may.
    fn allowed(&mut self, cx: &mut Context<'_>, bytes: u64) -> Poll<u64> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                let (bucket, taken) = ready!(waiting.poll_unpin(cx));
                self.waiting = None;
                self.gate.taken(&bucket, taken);
            }
            match self.gate.take(bytes) {
                Ok(most) => return Poll::Ready(most),
                Err((bucket, wanted)) => {
                    let waiting = async move {
                        let taken = bucket.take_in_turn(wanted).await;
                        (bucket, taken)
                    };
                    self.waiting = Some(waiting.boxed());
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin, C: Clock> AsyncWrite for Limited<S, C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let most = ready!(self.allowed(cx, bytes.len() as u64)) as usize;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &bytes[..most]))?;
        self.gate.sent(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        if all == 0 {
            return Poll::Ready(Ok(0));
        }
        let most = ready!(self.allowed(cx, all));
        let mut left = most;
        // Those that may go whole.
        let count = bufs.iter().take_while(|buf| {
            let fits = buf.len() as u64 <= left;
            left = left.saturating_sub(buf.len() as u64);
            fits
        });
        let written = match count.count() {
            0 => {
                let first = bufs.first().map_or(&[][..], |buf| buf);
                let first = &first[..first.len().min(most as usize)];
                ready!(Pin::new(&mut self.stream).poll_write(cx, first))?
            }
            count => ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &bufs[..count]))?,
        };
        self.gate.sent(written as u64);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin, C: Clock> AsyncRead for Limited<S, C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests;
