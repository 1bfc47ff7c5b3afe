use std::{collections::VecDeque, future::Future};

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::model::Timestamp;

/// A clock on which sleeping takes the time it should, and up to a millisecond more: timers are that coarse.
#[derive(Clone, Default)]
struct Coarse(Arc<Mutex<Duration>>);

impl Coarse {
    fn pass(&self, duration: Duration) {
        *self.0.lock().unwrap() += duration;
    }
}

impl Clock for Coarse {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }

    fn wall(&self) -> Timestamp {
        unreachable!("a rate has nothing to do with the time of day")
    }

    fn sleep_until(&self, deadline: Duration) -> impl Future<Output = ()> + Send {
        let mut now = self.0.lock().unwrap();
        if *now < deadline {
            let millis = deadline.as_nanos().div_ceil(1_000_000);
            *now = Duration::from_millis(millis as u64);
        }
        std::future::ready(())
    }
}

/// What was written to it, and when. It takes as many bytes at once as it is told in turn, and all when it was told nothing.
struct Sink {
    clock: Coarse,
    takes: VecDeque<usize>,
    written: Arc<Mutex<Vec<(Duration, usize)>>>,
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let most = self.takes.pop_front().unwrap_or(usize::MAX);
        let count = bytes.len().min(most);
        self.written.lock().unwrap().push((self.clock.now(), count));
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

type Written = Arc<Mutex<Vec<(Duration, usize)>>>;

fn sink(clock: &Coarse, written: &Written, takes: &[usize]) -> Sink {
    Sink {
        clock: clock.clone(),
        takes: takes.iter().copied().collect(),
        written: written.clone(),
    }
}

fn bucket(clock: &Coarse, rate: u64) -> Arc<Bucket<Coarse>> {
    Bucket::new(clock.clone(), Some(Rate::new(rate).unwrap()))
}

fn send<S: AsyncWrite + Unpin>(stream: &mut Limited<S, Coarse>, mut bytes: usize) {
    const DATA: &[u8] = &[7; 1 << 16];
    while bytes > 0 {
        let count = bytes.min(DATA.len());
        stream.write_all(&DATA[..count]).now_or_never().unwrap().unwrap();
        bytes -= count;
    }
}

/// The most that any window had above what its length allows, in bytes.
fn above(written: &[(Duration, usize)], rate: u64) -> f64 {
    let mut sum = 0.0f64;
    let mut least = 0.0f64;
    let mut most = 0.0f64;
    for (at, bytes) in written {
        // Of what began with any earlier write, that write in it.
        let due = rate as f64 * at.as_secs_f64();
        least = least.min(sum - due);
        sum += *bytes as f64;
        most = most.max(sum - due - least);
    }
    most
}

fn burst(rate: u64) -> f64 {
    Rate::new(rate).unwrap().burst_bytes() as f64
}

#[test]
fn rates_are_read_as_they_are_written() {
    for (text, bytes, shown) in [
        ("1500", 1500, "1.46 KiB/s (1500 B/s)"),
        ("512k", 512 << 10, "512 KiB/s"),
        ("1M", 1 << 20, "1 MiB/s"),
        ("1m", 1 << 20, "1 MiB/s"),
        ("1.5M", 3 << 19, "1.5 MiB/s"),
        ("1k", 1024, "1 KiB/s"),
        ("1 MiB/s", 1 << 20, "1 MiB/s"),
        ("10GiB", 10 << 30, "10 GiB/s"),
        ("2048b", 2048, "2 KiB/s"),
        ("1T", 1 << 40, "1 TiB/s"),
        ("1.25k", 1280, "1.25 KiB/s"),
    ] {
        let rate: Rate = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!((rate.get(), rate.to_string()), (bytes, shown.to_owned()), "{text}");
    }
}

#[test]
fn what_is_no_rate_is_refused_with_the_reason() {
    for (text, why) in [
        ("", BadRate::NotOne),
        ("M", BadRate::NotOne),
        ("-1", BadRate::NotOne),
        ("-1M", BadRate::NotOne),
        ("+1M", BadRate::NotOne),
        ("1MB", BadRate::NotOne),
        ("1e6", BadRate::NotOne),
        ("1..5M", BadRate::NotOne),
        ("1.M", BadRate::NotOne),
        (".5M", BadRate::NotOne),
        ("1,5M", BadRate::NotOne),
        ("fast", BadRate::NotOne),
        ("\u{661}M", BadRate::NotOne),
        ("0", BadRate::TooLittle),
        ("0M", BadRate::TooLittle),
        ("0.0001", BadRate::TooLittle),
        ("1023", BadRate::TooLittle),
        ("1025G", BadRate::TooMuch),
        ("1.000001T", BadRate::TooMuch),
        ("18446744073709551615", BadRate::TooMuch),
        ("18446744073709551616", BadRate::TooMuch),
        ("18446744073709551615T", BadRate::TooMuch),
    ] {
        assert_eq!(text.parse::<Rate>(), Err(why), "{text:?}");
    }
}

#[test]
fn the_mean_is_the_rate_and_no_window_is_above_it() {
    for rate in [1024, 64 << 10, 1_000_000, 16 << 20, (1 << 30) + 12_345, 1 << 32] {
        let (clock, written) = (Coarse::default(), Written::default());
        let mut stream = Limited::new(sink(&clock, &written, &[]), Gate::new([bucket(&clock, rate)]));
        let all = (rate * 5).min(1 << 30);
        let mut left = all;
        while left > 0 {
            let record = left.min(16_407);
            send(&mut stream, record as usize);
            left -= record;
        }
        let mean = all as f64 / clock.now().as_secs_f64();
        assert!((mean / rate as f64 - 1.0).abs() < 0.01, "{rate}: {mean}");
        let above = above(&written.lock().unwrap(), rate);
        assert!(above <= burst(rate), "{rate}: {above} bytes above");
    }
}

#[test]
fn what_was_not_sent_for_a_while_is_not_made_up_for() {
    let (clock, written) = (Coarse::default(), Written::default());
    let mut stream = Limited::new(sink(&clock, &written, &[]), Gate::new([bucket(&clock, 1 << 20)]));
    send(&mut stream, 1 << 20);
    clock.pass(Duration::from_secs(3600));
    send(&mut stream, 1 << 20);
    let above = above(&written.lock().unwrap(), 1 << 20);
    assert!(above <= burst(1 << 20), "{above}");
}

#[test]
fn a_new_connection_or_a_new_rate_fills_nothing() {
    let (clock, written) = (Coarse::default(), Written::default());
    let rate = 1 << 20;
    let bucket = bucket(&clock, rate);
    for turn in 0..100 {
        let mut stream = Limited::new(sink(&clock, &written, &[]), Gate::new([bucket.clone()]));
        send(&mut stream, 5000);
        // There and back.
        bucket.set(Some(Rate::new(rate - 1 - turn).unwrap()));
        bucket.set(Some(Rate::new(rate).unwrap()));
    }
    let above = above(&written.lock().unwrap(), rate);
    assert!(above <= burst(rate), "{above}");
}

#[test]
fn what_was_sent_before_a_bucket_came_counts() {
    let (clock, written) = (Coarse::default(), Written::default());
    let gate = Gate::new([]);
    let mut stream = Limited::new(sink(&clock, &written, &[]), gate.clone());
    send(&mut stream, 3000);
    assert_eq!(clock.now(), Duration::ZERO);
    gate.add(bucket(&clock, 1024));
    send(&mut stream, 1000);
    let took = clock.now().as_secs_f64();
    assert!((3.3..4.0).contains(&took), "{took}");
}

/// One sends without end, the other wants a frame through: both get on.
#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods, reason = "a clock")]
async fn streams_that_share_a_bucket_go_in_turn() {
    #[derive(Clone)]
    struct Paused(tokio::time::Instant);
    impl Clock for Paused {
        fn now(&self) -> Duration {
            self.0.elapsed()
        }
        fn wall(&self) -> Timestamp {
            unreachable!("a rate has nothing to do with the time of day")
        }
        async fn sleep_until(&self, deadline: Duration) {
            tokio::time::sleep_until(self.0 + deadline).await;
        }
    }
    let clock = Paused(tokio::time::Instant::now());
    let bucket = Bucket::new(clock.clone(), Some(Rate::new(64 << 10).unwrap()));
    let stream = || Limited::new(tokio::io::sink(), Gate::new([bucket.clone()]));
    let (mut one, mut other) = (stream(), stream());
    let endless = async {
        loop {
            one.write_all(&[1; 4096]).await.unwrap();
        }
    };
    let wants = async {
        other.write_all(&[2; 64 << 10]).await.unwrap();
        clock.now()
    };
    let took = tokio::select! {
        biased;
        () = endless => unreachable!(),
        took = wants => took.as_secs_f64(),
    };
    // It takes a second alone.
    assert!((1.9..2.2).contains(&took), "{took}");
}

#[test]
fn the_lower_of_two_limits_holds() {
    for (one, other) in [(1 << 20, 1 << 16), (1 << 16, 1 << 20)] {
        let (clock, written) = (Coarse::default(), Written::default());
        let gate = Gate::new([bucket(&clock, one), bucket(&clock, other)]);
        let mut stream = Limited::new(sink(&clock, &written, &[]), gate);
        send(&mut stream, 1 << 18);
        let took = clock.now().as_secs_f64();
        assert!((3.9..4.1).contains(&took), "{took}");
    }
}

#[test]
fn no_limit_costs_no_time_and_can_be_set() {
    let (clock, written) = (Coarse::default(), Written::default());
    let bucket = Bucket::new(clock.clone(), None);
    let mut stream = Limited::new(sink(&clock, &written, &[]), Gate::new([bucket.clone()]));
    send(&mut stream, 1 << 24);
    assert_eq!(clock.now(), Duration::ZERO);
    bucket.set(Some(Rate::new(1 << 20).unwrap()));
    send(&mut stream, 1 << 20);
    assert!(clock.now() > Duration::from_millis(900), "{:?}", clock.now());
    bucket.set(None);
    let before = clock.now();
    send(&mut stream, 1 << 24);
    assert!(clock.now() - before < Duration::from_millis(100));
}

#[test]
fn what_is_written_without_a_stream_takes_its_time() {
    let clock = Coarse::default();
    bucket(&clock, 1 << 20).send(4 << 20).now_or_never().unwrap();
    let took = clock.now().as_secs_f64();
    assert!((3.9..4.1).contains(&took), "{took}");
}

proptest! {
    /// Several connections of one run, streams that take little at once, pauses: no window is above the rate.
    #[test]
    fn no_window_is_above_the_rate(
        rate in 1024u64..1 << 32,
        steps in proptest::collection::vec((0usize..3, 0usize..200_000, 0u64..3_000), 1..40),
        takes in proptest::collection::vec(1usize..70_000, 0..40),
    ) {
        let (clock, written) = (Coarse::default(), Written::default());
        let bucket = bucket(&clock, rate);
        let mut streams: Vec<_> = (0..3)
            .map(|_| Limited::new(sink(&clock, &written, &takes), Gate::new([bucket.clone()])))
            .collect();
        for (stream, bytes, pause) in steps {
            send(&mut streams[stream], bytes);
            clock.pass(Duration::from_millis(pause));
        }
        let above = above(&written.lock().unwrap(), rate);
        // Each connection may have kept a write's bytes that its stream did not take at once.
        let kept = 2.0 * (WRITE_BYTES.min(rate / BURST_SHARE + BURST_BYTES) as f64) + burst(rate);
        prop_assert!(above <= burst(rate) + kept, "{} bytes above", above);
    }
}
