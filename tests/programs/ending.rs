//! Runs that end before everything is moved, by a signal or because their time is over: at once, leaving nothing of their own but what the next
//! run goes on with.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::support::*;
use rustix::process::Signal;

/// Whatever ends a run, it is gone within a second; so much more is for a host that is busy with other tests.
const AT_ONCE: Duration = Duration::from_millis(1500);

/// Two directories, one of them served, and files that take longer than a test.
struct Ends {
    hosts: Hosts,
    near: PathBuf,
    served: PathBuf,
    _scratch: Scratch,
}

const RATE: &str = "--throttle=1M";

impl Ends {
    fn new() -> Self {
        let scratch = Scratch::in_memory();
        let (near, served) = (scratch.dir("near"), scratch.dir("served"));
        plain_tree(&near, 40, 3000, 1);
        fs::write(near.join("large"), vec![7; 12 << 20]).unwrap();
        let hosts = Hosts::serving(&[("a", &served, ALL)]);
        Self {
            hosts,
            near,
            served,
            _scratch: scratch,
        }
    }

    fn sending(&self) -> Run {
        self.hosts.realize().arg(RATE).arg(&self.near).arg("nas::a")
    }

    /// A move to a host that accepts and says nothing, whose port is held as long as what is given.
    fn sending_to_silence(&self) -> (TcpListener, Run) {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("127.0.0.1:{}", silent.local_addr().unwrap().port());
        self.hosts.know("silent", &self.hosts.public("daemon"), &address);
        (silent, self.hosts.realize().arg(&self.near).arg("silent::a"))
    }

    /// Waits until some of the large file has arrived.
    fn expect_partial(&self) {
        let partial = self.served.join(".large.realize-part");
        let begin = Instant::now();
        while fs::metadata(&partial).map_or(0, |partial| partial.len()) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", self.hosts.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Without any limit a further run moves what is left.
    fn expect_rest(&self) {
        self.hosts.realize().arg(&self.near).arg("nas::a").run().expect_code(0);
        assert!(Manifest::of(&self.near).is_empty());
        assert_eq!(fs::read(self.served.join("large")).unwrap(), vec![7; 12 << 20]);
    }
}

/// That no mark of a run is left in `dir`, soon.
#[track_caller]
fn assert_no_token(dir: &Path) {
    let begin = Instant::now();
    let has_token = || {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names
            .into_iter()
            .any(|name| name.to_string_lossy().contains("realize-token"))
    };
    while has_token() {
        assert!(begin.elapsed() < AT_ONCE, "a token is left in {dir:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a run: it must be gone at once, with the exit code that shells expect.
#[track_caller]
fn end(running: Running, signal: Signal) -> Outcome {
    let begin = Instant::now();
    running.signal(signal);
    let outcome = running.wait();
    assert!(begin.elapsed() < AT_ONCE, "{:?}\n{outcome}", begin.elapsed());
    outcome.expect_code(if signal == Signal::INT { 130 } else { 143 })
}

#[test]
fn a_signal_ends_a_run_that_sends_at_once_and_the_next_goes_on() {
    for signal in [Signal::TERM, Signal::INT] {
        let ends = Ends::new();
        let running = ends.sending().start();
        ends.expect_partial();
        let outcome = end(running, signal);
        assert!(outcome.stderr().contains("run the same command again"), "{outcome}");
        assert_no_token(&ends.near);
        assert_no_token(&ends.served);
        ends.hosts.expect_log("mover has disconnected");
        ends.expect_rest();
    }
}

#[test]
fn a_signal_ends_a_move_within_a_host() {
    let (memory, disk) = (Scratch::in_memory(), Scratch::on_disk());
    let (from, to) = (memory.dir("from"), disk.dir("to"));
    fs::write(from.join("large"), vec![7; 12 << 20]).unwrap();
    let running = realize().arg(RATE).arg(&from).arg(&to).start();
    while !to.join(".large.realize-part").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    end(running, Signal::TERM);
    assert_no_token(&from);
    assert_no_token(&to);
    realize().arg(&from).arg(&to).run().expect_code(0);
    assert_eq!(fs::read(to.join("large")).unwrap(), vec![7; 12 << 20]);
}

#[test]
fn a_signal_ends_a_run_that_shakes_hands_or_waits_to_connect_again() {
    let ends = Ends::new();
    let (silent, run) = ends.sending_to_silence();
    let running = run.start();
    let (_stream, _) = silent.accept().unwrap();
    end(running, Signal::TERM);

    let mut ends = Ends::new();
    let running = ends.sending().start();
    ends.expect_partial();
    ends.hosts.end(Signal::KILL);
    // Until it has found out, and tries in vain.
    std::thread::sleep(Duration::from_millis(1500));
    let outcome = end(running, Signal::INT);
    assert!(outcome.stderr().contains("connect"), "{outcome}");
    assert_no_token(&ends.near);
    ends.hosts.start();
    ends.expect_rest();
}

#[test]
fn a_host_that_is_lost_is_tried_again_as_long_as_is_asked_for() {
    let mut ends = Ends::new();
    let running = ends.sending().arg("--retry-for=0").start();
    ends.expect_partial();
    ends.hosts.end(Signal::KILL);
    let begin = Instant::now();
    let outcome = running.wait().expect_code(1);
    assert!(begin.elapsed() < AT_ONCE, "{outcome}");
    assert!(!outcome.stderr().contains("again,"), "{outcome}");
    ends.hosts.start();
    fs::remove_file(ends.served.join(".large.realize-part")).unwrap();
    let running = ends.sending().arg("--retry-for=3s").start();
    ends.expect_partial();
    ends.hosts.end(Signal::KILL);
    let begin = Instant::now();
    let outcome = running.wait().expect_code(1);
    let took = begin.elapsed().as_secs_f64();
    assert!((2.5..6.0).contains(&took), "{took} {outcome}");
    assert!(outcome.stderr().contains("for 3 s at most"), "{outcome}");
    assert!(outcome.stderr().contains("trying again in"), "{outcome}");
    ends.hosts.start();
    ends.expect_rest();
}

#[test]
fn a_host_that_is_not_there_yet_is_waited_for_where_that_is_asked_for() {
    let mut ends = Ends::new();
    fs::remove_file(ends.near.join("large")).unwrap();
    ends.hosts.end(Signal::TERM);
    let to_nas = || ends.hosts.realize().arg(&ends.near).arg("nas::a");
    let once = to_nas().run().expect_code(2);
    assert!(!once.stderr().contains("trying again"), "{once}");
    let begin = Instant::now();
    to_nas().arg("--connect-for=2s").run().expect_code(2);
    assert!((1.5..5.0).contains(&begin.elapsed().as_secs_f64()));
    let running = to_nas().arg("--connect-for=1m").start();
    std::thread::sleep(Duration::from_millis(500));
    ends.hosts.start();
    let outcome = running.wait().expect_code(0);
    assert!(outcome.stderr().contains("trying again in"), "{outcome}");
    // What does not get better is told at once.
    ends.hosts.know(
        "nas",
        &ends.hosts.public("stranger"),
        &format!("127.0.0.1:{}", ends.hosts.port()),
    );
    let refused = ends
        .hosts
        .realize()
        .arg("--connect-for=1m")
        .arg(&ends.near)
        .arg("nas::a")
        .run();
    assert!(refused.took < Duration::from_secs(5), "{refused}");
    refused.expect_code(12);
}

#[test]
fn what_comes_twice_at_once_is_one_signal() {
    let ends = Ends::new();
    let running = ends.sending().start();
    ends.expect_partial();
    // As `timeout` does.
    running.signal(Signal::TERM);
    running.signal(Signal::HUP);
    let outcome = running.wait();
    assert!(matches!(outcome.status.code(), Some(143 | 129)), "{outcome}");
    assert_no_token(&ends.near);
}

#[test]
fn what_is_to_be_ignored_is_ignored() {
    let ends = Ends::new();
    let program = env!("CARGO_BIN_EXE_realize");
    // As shells start a program in the background.
    let script = format!("trap '' INT; exec {program} {RATE} \"$@\"");
    let running = Run::program("sh")
        .args(["-c", &script, "sh"])
        .arg("--key")
        .arg(ends.hosts.file("mover"))
        .arg("--hosts")
        .arg(ends.hosts.file("hosts.toml"))
        .arg(&ends.near)
        .arg("nas::a")
        .start();
    ends.expect_partial();
    running.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.is_running());
    end(running, Signal::TERM);
}

#[test]
fn the_time_that_was_given_ends_a_run_and_the_next_goes_on() {
    let ends = Ends::new();
    let outcome = ends.sending().arg("--max-duration=2").run().expect_code(11);
    assert!(outcome.took < Duration::from_millis(3500), "{outcome}");
    assert!(outcome.stderr().contains("the time is over"), "{outcome}");
    assert_no_token(&ends.near);
    assert_no_token(&ends.served);
    assert!(ends.near.join("large").exists() && ends.served.join(".large.realize-part").exists());
    ends.expect_rest();
}

#[test]
fn a_time_of_day_ends_a_run() {
    let ends = Ends::new();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let at = now.as_secs() + 5;
    let at = format!("{:02}:{:02}:{:02}", at / 3600 % 24, at / 60 % 60, at % 60);
    let outcome = ends
        .sending()
        .env("TZ", "UTC")
        .arg("--stop-at")
        .arg(at)
        .run()
        .expect_code(11);
    let took = outcome.took.as_secs_f64();
    assert!((2.0..7.0).contains(&took), "{outcome}");
    ends.expect_rest();
}

#[test]
fn the_time_that_was_given_ends_what_does_not_answer() {
    let ends = Ends::new();
    let (_silent, run) = ends.sending_to_silence();
    let outcome = run.arg("--max-duration=1").run().expect_code(11);
    assert!(outcome.took < Duration::from_secs(2), "{outcome}");
}

#[test]
fn a_run_with_time_enough_ends_as_always() {
    let ends = Ends::new();
    let run = ends
        .hosts
        .realize()
        .arg("--max-duration=1d")
        .arg(&ends.near)
        .arg("nas::a");
    run.run().expect_code(0);
    assert!(Manifest::of(&ends.near).is_empty());
}

#[test]
fn what_is_no_time_is_refused_with_the_reason() {
    let scratch = Scratch::in_memory();
    let (from, to) = (scratch.dir("from"), scratch.dir("to"));
    for (option, why) in [
        ("--max-duration=0", "at least 1 second"),
        ("--max-duration=-5", "1h30m"),
        ("--max-duration=1h30", "1h30m"),
        ("--max-duration=99999999d", "at most"),
        ("--stop-at=25:00", "06:30"),
        ("--stop-at=noon", "06:30"),
    ] {
        let outcome = realize().arg(option).arg(&from).arg(&to).run().expect_code(2);
        assert!(outcome.stderr().contains(why), "{option}: {outcome}");
    }
}
