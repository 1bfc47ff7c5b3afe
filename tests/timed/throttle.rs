//! Limits of what is sent, on real sockets and measured between the programs.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{alone, support::*};
use realize::{
    model::RelPath,
    service::{DirId, OpenFor, RealizeServiceRequest as Request, RealizeServiceResponse as Response},
    throttle::Rate,
    wire::{ToClient, ToServer},
};

const MIB: u64 = 1 << 20;

/// What goes at once besides a fiftieth of a second's: a record of TLS, and what the line reads at once.
const RECORD: u64 = 16 << 10;

/// How long something is watched: so many seconds, or as REALIZE_SECONDS says.
fn seconds(usual: u64) -> u64 {
    let wanted = std::env::var("REALIZE_SECONDS").ok();
    wanted.and_then(|seconds| seconds.parse().ok()).unwrap_or(usual)
}

/// Content that can't be compressed.
fn noise(bytes: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = (0..bytes.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut noise: Vec<u8> = words.collect();
    noise.truncate(bytes as usize);
    noise
}

/// Mean and worst second of what went one way, in bytes per second. The mean is that of the data: before it and behind it are calls, and how long
/// these take tells how busy this host is.
fn rates(passed: &[(Instant, usize)]) -> (f64, u64) {
    let sum: usize = passed.iter().map(|(_, bytes)| bytes).sum();
    let mut so_far = 0;
    let mut when = passed.iter().map(|(at, bytes)| {
        so_far += bytes;
        (*at, so_far)
    });
    let first = when.find(|(_, so_far)| *so_far > sum / 100).unwrap();
    let last = when.find(|(_, so_far)| *so_far > sum - sum / 100).unwrap();
    let mut worst = 0;
    let (mut from, mut inside) = (0, 0u64);
    for (at, bytes) in passed {
        inside += *bytes as u64;
        while *at - passed[from].0 >= Duration::from_secs(1) {
            inside -= passed[from].1 as u64;
            from += 1;
        }
        worst = worst.max(inside);
    }
    ((last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64(), worst)
}

#[track_caller]
fn assert_rate(passed: &[(Instant, usize)], rate: u64) {
    let (mean, worst) = rates(passed);
    eprintln!(
        "mean {:.4} of {rate}, worst second {:.4}",
        mean / rate as f64,
        worst as f64 / rate as f64
    );
    assert!((mean / rate as f64 - 1.0).abs() < 0.03, "mean {mean}, not {rate}");
    assert!(
        worst <= rate + rate / 20 + RECORD,
        "{worst} bytes in a second of {rate}"
    );
}

/// Two hosts with a line between, a directory that is served, and one beside the mover.
struct Bench {
    hosts: Hosts,
    line: Line,
    served: std::path::PathBuf,
    near: std::path::PathBuf,
    _memory: Scratch,
}

impl Bench {
    fn new() -> Self {
        let memory = Scratch::in_memory();
        let (served, near) = (memory.dir("served"), memory.dir("near"));
        let hosts = Hosts::serving(&[("a", &served, ALL)]);
        let line = Line::to(hosts.port());
        hosts.know("nas", &hosts.public("daemon"), &format!("127.0.0.1:{}", line.port));
        Self {
            hosts,
            line,
            served,
            near,
            _memory: memory,
        }
    }

    fn run(&self, options: &[&str], is_up: bool) -> Outcome {
        let run = self.hosts.realize().args(options).time_limit(Duration::from_secs(300));
        match is_up {
            true => run.arg(&self.near).arg("nas::a").run(),
            false => run.arg("nas::a").arg(&self.near).run(),
        }
    }

    fn make(&self, is_up: bool, content: &[u8]) {
        fs::write(self.from(is_up).join("file"), content).unwrap();
    }

    fn from(&self, is_up: bool) -> &Path {
        if is_up { &self.near } else { &self.served }
    }

    fn to(&self, is_up: bool) -> &Path {
        self.from(!is_up)
    }
}

/// REALIZE_RATE and REALIZE_SECONDS are another rate and time to watch.
#[test]
fn what_is_sent_and_received_keeps_to_its_limit() {
    let _alone = alone();
    let rate = std::env::var("REALIZE_RATE").unwrap_or_else(|_| "16M".into());
    let bytes_per_second = rate.parse::<Rate>().unwrap().get();
    let content = noise(seconds(2) * bytes_per_second);
    for (is_up, option, said) in [
        (true, "--throttle-up", "sending at most"),
        (false, "--throttle-down", "receiving at most"),
    ] {
        let bench = Bench::new();
        bench.make(is_up, &content);
        let outcome = bench.run(&[option, &rate], is_up).expect_code(0);
        assert!(outcome.stderr().contains(said), "{outcome}");
        assert!(fs::read(bench.to(is_up).join("file")).unwrap() == content);
        assert_rate(&bench.line.passed()[usize::from(!is_up)], bytes_per_second);
    }
}

#[test]
fn a_connection_made_again_keeps_to_the_limit() {
    let _alone = alone();
    const RATE: u64 = 8 * MIB;
    let content = noise(12 * MIB);
    for is_up in [true, false] {
        let bench = Bench::new();
        bench.make(is_up, &content);
        let cutting = std::thread::scope(|scope| {
            let moving = scope.spawn(|| bench.run(&["--throttle=8M"], is_up));
            while bench.line.bytes() < 5 * MIB {
                std::thread::sleep(Duration::from_millis(10));
            }
            bench.line.cut();
            moving.join().unwrap()
        });
        cutting.expect_code(0);
        assert!(fs::read(bench.to(is_up).join("file")).unwrap() == content);
        let (_, worst) = rates(&bench.line.passed()[usize::from(!is_up)]);
        assert!(
            worst <= RATE + RATE / 20 + RECORD,
            "{worst} bytes in a second of {RATE}"
        );
    }
}

#[test]
fn connections_of_one_run_share_its_limit() {
    let _alone = alone();
    const RATE: u64 = 8 * MIB;
    let memory = Scratch::in_memory();
    let (a, b, near) = (memory.dir("a"), memory.dir("b"), memory.dir("near"));
    for dir in [&a, &b] {
        fs::write(dir.join(dir.file_name().unwrap()), noise(8 * MIB)).unwrap();
    }
    let hosts = Hosts::serving(&[("a", &a, ALL), ("b", &b, ALL)]);
    let lines = [Line::to(hosts.port()), Line::to(hosts.port())];
    let key = hosts.public("daemon");
    let known = ["one", "other"].iter().zip(&lines).map(|(name, line)| {
        let port = line.port;
        format!("[hosts.{name}]\nkey = \"{key}\"\naddress = \"127.0.0.1:{port}\"\n")
    });
    fs::write(hosts.file("hosts.toml"), known.collect::<String>()).unwrap();
    let run = hosts
        .realize()
        .args(["--throttle-down=8M", "one::a", "other::b"])
        .arg(&near);
    run.run().expect_code(0);
    assert!(near.join("a").exists() && near.join("b").exists());
    let mut passed: Vec<_> = lines.iter().flat_map(|line| line.passed()[1].clone()).collect();
    passed.sort();
    assert!(lines.iter().all(|line| line.bytes() > 8 * MIB), "over one line");
    assert_rate(&passed, RATE);
}

#[test]
fn the_limit_of_the_daemon_holds_whatever_is_asked_for() {
    let _alone = alone();
    let bench = Bench::new();
    let config = bench.hosts.file("realized.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("[peers.mover.rights]", "throttle = \"4M\"\n[peers.mover.rights]");
    fs::write(&config, text).unwrap();
    let mut hosts = bench.hosts;
    hosts.end(rustix::process::Signal::TERM);
    hosts.start();
    let bench = Bench { hosts, ..bench };
    for options in [&[][..], &["--throttle-down=1G"]] {
        bench.make(false, &noise(5 * MIB));
        let before = bench.line.passed()[1].len();
        bench.run(options, false).expect_code(0);
        assert_rate(&bench.line.passed()[1][before..], 4 * MIB);
        fs::remove_file(bench.near.join("file")).unwrap();
    }
}

#[tokio::test]
async fn a_ping_is_answered_within_two_seconds_on_a_slow_line_that_is_full() {
    let _alone = alone();
    let bench = Bench::new();
    bench.make(false, &noise(4 * MIB));
    let mut peer = Peer::connect(&bench.hosts, 1).await;
    peer.hello(1).await;
    let bytes_per_second = Some(64 << 10);
    let told = peer.call(Request::Configure { bytes_per_second }).await;
    assert!(matches!(told, Response::Configure(Ok(()))), "{told:?}");
    let (dir, path) = (DirId::new("a"), RelPath::new("file").unwrap());
    let stat = Request::Stat {
        dir: dir.clone(),
        paths: vec![path.clone()].into(),
        restore: false,
    };
    let Response::Stat(Ok(found)) = peer.call(stat).await else {
        panic!("no answer")
    };
    let version = found.into_iter().next().unwrap().unwrap().unwrap().version;
    let open_for = OpenFor::Read(version);
    let Response::Open(Ok(opened)) = peer.call(Request::Open { dir, path, open_for }).await else {
        panic!("not opened")
    };
    let handle = opened.held.handle;
    for chunk in 0..4 {
        peer.begin(Request::Read { handle, chunk }).await.unwrap();
    }
    let begin = Instant::now();
    for number in 0..8 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let sent = Instant::now();
        peer.send(ToServer::Ping { number }).await.unwrap();
        // The first chunk takes 16 seconds.
        let first = peer.reader.next::<ToClient>().await.unwrap().unwrap();
        assert!(
            matches!(first, ToClient::Pong { number: answered } if answered == number),
            "{first:?}"
        );
        assert!(sent.elapsed() < Duration::from_secs(2), "{:?}", sent.elapsed());
    }
    assert!(begin.elapsed() < Duration::from_secs(16), "{:?}", begin.elapsed());
}

#[test]
fn a_move_within_a_host_keeps_to_the_lower_limit() {
    let _alone = alone();
    let (memory, disk) = (Scratch::in_memory(), Scratch::on_disk());
    let (from, to) = (memory.dir("from"), disk.dir("to"));
    fs::write(from.join("large"), noise(2 * MIB)).unwrap();
    for nth in 0..64 {
        fs::write(from.join(format!("small {nth}")), noise(32 << 10)).unwrap();
    }
    let begin = Instant::now();
    let options = ["--throttle-up=4M", "--throttle-down=1G"];
    realize().args(options).arg(&from).arg(&to).run().expect_code(0);
    let took = begin.elapsed().as_secs_f64();
    // 4 MiB; a batch or a chunk that is paid for is written at once.
    assert!((0.8..2.5).contains(&took), "{took} s");
}

#[test]
fn what_is_no_limit_is_refused_with_the_reason() {
    let _alone = alone();
    let scratch = Scratch::in_memory();
    let (from, to) = (scratch.dir("from"), scratch.dir("to"));
    fs::write(from.join("file"), "stays").unwrap();
    for (text, why) in [
        ("0", "at least 1k"),
        ("-1", "powers of 1024"),
        ("fast", "powers of 1024"),
        ("2T", "at most 1T"),
        ("99999999999999999999", "at most 1T"),
    ] {
        for option in ["--throttle", "--throttle-up", "--throttle-down"] {
            let outcome = realize().arg(option).arg(text).arg(&from).arg(&to).run().expect_code(2);
            assert!(outcome.stderr().contains(why), "{option} {text}: {outcome}");
        }
    }
    assert!(from.join("file").exists());
}
