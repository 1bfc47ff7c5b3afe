//! A move between two hosts of which one or the other is killed or told to end, or the line cut, again and again: nothing is lost or torn,
//! and what has arrived is not sent again.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::support::*;
use rustix::process::Signal;

/// What the moments are drawn from; a failure names it.
const SEED: u64 = 20_261_123;

fn next(random: &mut u64) -> u64 {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

fn make_source(dir: &Path) {
    plain_tree(dir, 800, 3000, 1);
    for (name, mebibytes) in [("large 1", 40), ("large 2", 25), ("large 3", 3)] {
        let bytes: Vec<u8> = (0..mebibytes << 20)
            .map(|at: usize| ((at * 2_654_435_761) >> 7) as u8)
            .collect();
        fs::write(dir.join(name), bytes).unwrap();
    }
}

/// That every file is whole on one side or the other.
fn assert_whole(truth: &Manifest, source: &Path, target: &Path, what: &str) {
    let (source, target) = (Manifest::of(source), Manifest::of(target));
    for (path, entry) in truth
        .entries()
        .iter()
        .filter(|(_, entry)| matches!(entry.kind, Kind::File { .. }))
    {
        let shown = String::from_utf8_lossy(path);
        let gone = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => [&path[..=at], b".", &path[at + 1..], b".realize-gone"].concat(),
            None => [b".".as_slice(), path, b".realize-gone"].concat(),
        };
        let (here, there) = (source.get(path).or(source.get(&gone)), target.get(path));
        assert!(here.is_none_or(|here| here == entry), "{what}: source changed: {shown}");
        assert!(there.is_none_or(|there| there == entry), "{what}: torn: {shown}");
        assert!(here.is_some() || there.is_some(), "{what}: lost: {shown}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    Line,
    Mover,
    Daemon,
    /// The mover is told to end by this signal.
    Signal(Signal),
    /// And the next one is given a second.
    TimeOver,
}

/// More blows than that fall on a move that takes its time.
const MANY: usize = 60;

/// Moves with blows at random moments; how many struck, and how many bytes crossed the line.
fn move_through(blows: &[Blow], count: usize, push: bool) -> (usize, u64, u64) {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    // Many files that come and go are dear on a disk: the target's do.
    let (source, target) = (&memory.dir("source"), &disk.dir("target"));
    let (local, served) = if push { (source, target) } else { (target, source) };
    make_source(source);
    let truth = Manifest::of(source);
    let size = |entry: &Entry| match entry.kind {
        Kind::File { bytes, .. } => bytes,
        _ => 0,
    };
    let size: u64 = truth.entries().values().map(size).sum();
    let mut hosts = Hosts::serving(&[("a", served, ALL)]);
    let line = Line::to(hosts.port());
    hosts.know("nas", &hosts.public("daemon"), &format!("127.0.0.1:{}", line.port));
    let ends = if push {
        [local.to_str().unwrap(), "nas::a"]
    } else {
        ["nas::a", local.to_str().unwrap()]
    };
    let mut random = SEED;
    let mut struck = 0;
    let begin = Instant::now();
    let begun = |hosts: &Hosts, options: &[&str]| {
        let slow = (count > MANY).then_some("--throttle=4M");
        let run = hosts.realize().args(slow).args(options).args(ends);
        run.time_limit(Duration::from_secs(300)).start()
    };
    let mut running = begun(&hosts, &[]);
    let mut was_cut = false;
    loop {
        let pause = Duration::from_millis(5 + next(&mut random) % 120);
        let since = Instant::now();
        while since.elapsed() < pause && running.is_running() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !running.is_running() {
            let outcome = running.wait();
            if outcome.status.code() == Some(0) {
                break;
            }
            assert!(struck > 0, "{outcome}\n{}", hosts.log());
            running = begun(&hosts, &[]);
            was_cut = false;
            assert!(begin.elapsed() < Duration::from_secs(240), "{outcome}\n{}", hosts.log());
            continue;
        }
        if struck >= count {
            continue;
        }
        struck += 1;
        match blows[next(&mut random) as usize % blows.len()] {
            Blow::Line => {
                line.cut();
                was_cut = true;
            }
            Blow::Daemon => {
                hosts.end(Signal::KILL);
                hosts.start();
            }
            Blow::Mover => {
                running.signal(Signal::KILL);
                running.wait();
                assert_whole(&truth, source, target, &format!("seed {SEED}, blow {struck}"));
                running = begun(&hosts, &[]);
                was_cut = false;
            }
            blow @ (Blow::Signal(_) | Blow::TimeOver) => {
                let (signal, options) = match blow {
                    Blow::Signal(signal) => (signal, &[][..]),
                    _ => (Signal::TERM, &["--max-duration=1"][..]),
                };
                running.signal(signal);
                let outcome = running.wait();
                let code = if signal == Signal::INT { 130 } else { 143 };
                // It may have come to its end just then, or to that of its line when that was cut before it was connected.
                let is_told = [Some(code), Some(0)].contains(&outcome.status.code());
                let is_cut_short =
                    was_cut && outcome.status.code() == Some(2) && outcome.stderr().contains("the connection failed");
                assert!(is_told || is_cut_short, "{outcome}\n{}", hosts.log());
                assert_whole(&truth, source, target, &format!("seed {SEED}, blow {struck}"));
                running = begun(&hosts, options);
                was_cut = false;
            }
        }
    }
    let kept = |manifest: Manifest| manifest.retain(|_, entry| entry.kind != Kind::Dir);
    kept(truth).assert_same(&kept(Manifest::of(target)), "sent and arrived");
    assert!(Manifest::of(source).is_empty());
    (struck, line.bytes(), size)
}

/// What may cross the line: everything once, with listings and calls; and for each blow what was on its way and not acknowledged, which
/// the buffers of the sockets bound.
fn bound(size: u64, struck: usize) -> u64 {
    const ON_THE_WAY: u64 = 6 << 20;
    size + size / 20 + struck as u64 * ON_THE_WAY
}

#[test]
fn cut_lines_lose_nothing_and_what_has_arrived_is_not_sent_again() {
    for push in [true, false] {
        let (struck, bytes, size) = move_through(&[Blow::Line], blows(8), push);
        assert!(struck >= 3, "{struck}");
        eprintln!("{struck} cuts, {bytes} bytes for {size}");
        assert!(bytes <= bound(size, struck), "{bytes} bytes for {size}, {struck} cuts");
    }
}

#[test]
fn killed_movers_and_daemons_and_cut_lines_lose_nothing() {
    for push in [true, false] {
        let (struck, bytes, size) = move_through(&[Blow::Line, Blow::Mover, Blow::Daemon], blows(16), push);
        assert!(struck >= 8, "{struck}");
        assert!(bytes <= bound(size, struck), "{bytes} bytes for {size}, {struck} blows");
        eprintln!("{struck} blows, {bytes} bytes for {size}");
    }
}

#[test]
fn runs_that_are_told_to_end_lose_nothing_and_the_next_go_on() {
    let blow = [
        Blow::Signal(Signal::TERM),
        Blow::Signal(Signal::INT),
        Blow::TimeOver,
        Blow::Line,
    ];
    for push in [true, false] {
        let (struck, bytes, size) = move_through(&blow, blows(12), push);
        assert!(struck >= 6, "{struck}");
        eprintln!("{struck} blows, {bytes} bytes for {size}");
        assert!(bytes <= bound(size, struck), "{bytes} bytes for {size}, {struck} blows");
    }
}

/// The daemon is slow to answer, so that the cut falls on a run that is not let in yet.
#[test]
fn a_line_that_is_cut_before_a_run_is_connected_ends_it_unless_it_may_try_again() {
    let scratch = Scratch::on_disk();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    fs::write(source.join("film"), vec![7; 3 << 20]).unwrap();
    let truth = Manifest::of(&source);
    let hosts = Hosts::serving(&[("a", &target, ALL)]);
    let line = Line::to(hosts.port());
    hosts.know("nas", &hosts.public("daemon"), &format!("127.0.0.1:{}", line.port));
    let daemon = rustix::process::Pid::from_raw(hosts.daemon_id() as i32).unwrap();
    let tell_daemon = |signal| rustix::process::kill_process(daemon, signal).unwrap();
    let cut_as_it_connects = |options: &[&str]| {
        tell_daemon(Signal::STOP);
        let before = line.bytes();
        let running = hosts.realize().args(options).arg(&source).arg("nas::a").start();
        while line.bytes() == before {
            assert!(running.is_running());
            std::thread::sleep(Duration::from_millis(1));
        }
        line.cut();
        running
    };
    let outcome = cut_as_it_connects(&[]).wait().expect_code(2);
    let why = "nas: the connection failed: the other side has closed the connection";
    assert!(outcome.stderr().contains(why), "{outcome}");
    truth.assert_same(&Manifest::of(&source), "before and after");
    tell_daemon(Signal::CONT);
    let running = cut_as_it_connects(&["--connect-for=1m"]);
    tell_daemon(Signal::CONT);
    running.wait().expect_code(0);
    truth.assert_same(&Manifest::of(&target), "sent and arrived");
}

/// The run before may have been killed a moment ago, and its daemon still be writing what had arrived.
#[test]
fn a_file_that_a_run_is_just_leaving_is_waited_for() {
    let scratch = Scratch::on_disk();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    let hosts = Hosts::serving(&[("a", &target, ALL)]);
    for size in [3 << 20, 100] {
        fs::write(source.join("film"), vec![7; size]).unwrap();
        fs::write(source.join("other"), "text").unwrap();
        let truth = Manifest::of(&source);
        let left = fs::File::create(target.join(".film.realize-part")).unwrap();
        rustix::fs::flock(&left, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let running = hosts.realize().arg(&source).arg("nas::a").start();
        std::thread::sleep(Duration::from_millis(700));
        assert!(running.is_running());
        drop(left);
        running.wait().expect_code(0);
        truth.assert_same(&Manifest::of(&target), "sent and arrived");
        for name in ["film", "other"] {
            fs::remove_file(target.join(name)).unwrap();
        }
    }
}
