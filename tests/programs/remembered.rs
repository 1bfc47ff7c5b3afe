//! A large file whose move was killed is gone on with, and what was read of it before is not read again.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use crate::support::*;
use rustix::process::Signal;

const SIZE: u64 = 192 << 20;

/// How much has arrived at least when the move is killed.
const ARRIVED: u64 = 96 << 20;

/// What is read beside, at either end: the holes of chunks that were under way, once for their hashes and once for what is like them; what was not
/// remembered yet; tokens, configuration.
const SLACK: u64 = 64 << 20;

fn make(path: &Path) {
    let words = (0..SIZE / 8).flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    fs::write(path, words.collect::<Vec<u8>>()).unwrap();
    // What changed a moment ago is not remembered.
    std::thread::sleep(Duration::from_millis(3500));
}

/// Bytes that a process has read from files.
fn bytes_read(process: u32) -> u64 {
    let told = fs::read_to_string(format!("/proc/{process}/io")).unwrap();
    let line = told.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

/// Moves `ends`, and kills the mover once enough is in `partial`; how much was.
fn kill_halfway(hosts: &Hosts, ends: [&str; 2], state: &Path, partial: &Path) -> u64 {
    let running = hosts.realize().args(ends).env("XDG_STATE_HOME", state).start();
    let arrived = || fs::metadata(partial).map_or(0, |metadata| metadata.len());
    while arrived() < ARRIVED {
        assert!(running.is_running(), "it ended before it was killed");
        std::thread::sleep(Duration::from_micros(200));
    }
    running.signal(Signal::KILL);
    running.wait();
    let arrived = arrived();
    assert!(arrived < SIZE - SLACK, "{arrived} bytes were there already");
    arrived
}

/// Moves `ends` under the eyes of strace; how many bytes of the file at `path` were read.
fn go_on(hosts: &Hosts, ends: [&str; 2], state: &Path, path: &Path) -> u64 {
    let log = hosts.file("trace");
    Run::program("strace")
        .args(["-f", "-y", "-s", "1", "-e", "trace=pread64", "-e", "signal=none", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_realize"))
        .arg("--key")
        .arg(hosts.file("mover"))
        .arg("--hosts")
        .arg(hosts.file("hosts.toml"))
        .args(ends)
        .env("XDG_STATE_HOME", state)
        .run()
        .expect_code(0);
    let log = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    let of_path = format!("<{}>", path.to_str().unwrap());
    // `PID pread64(7</path>, "…"..., 1048576, 0) = 1048576`, or its end alone.
    assert!(!log.contains("unfinished") || log.contains("resumed"));
    let mut begun = std::collections::BTreeMap::new();
    let mut read = 0;
    for line in log.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let is_it = match call.contains("resumed>") {
            true => begun.remove(thread).unwrap_or(false),
            false => call.contains(&of_path),
        };
        if call.ends_with("<unfinished ...>") {
            begun.insert(thread, is_it);
        } else if is_it {
            let (_, result) = call.rsplit_once("= ").unwrap();
            read += result.parse::<u64>().unwrap();
        }
    }
    read
}

#[test]
fn what_was_sent_is_not_read_again_by_either_side() {
    let scratch = Scratch::on_disk();
    let (source, target, state) = (scratch.dir("source"), scratch.dir("target"), scratch.dir("state"));
    let hosts = Hosts::serving(&[("a", &target, ALL)]);
    let line = Line::to(hosts.port());
    hosts.know("nas", &hosts.public("daemon"), &format!("127.0.0.1:{}", line.port));
    make(&source.join("film"));
    let truth = Manifest::of(&source);
    let ends = [source.to_str().unwrap(), "nas::a"];
    let arrived = kill_halfway(&hosts, ends, &state, &target.join(".film.realize-part"));
    let remembered = state.join("realize/hashes");
    assert_eq!(fs::metadata(&remembered).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(&remembered).unwrap().count(), 1);

    let before = bytes_read(hosts.daemon_id());
    let read = go_on(&hosts, ends, &state, &source.join("film"));
    let read_by_daemon = bytes_read(hosts.daemon_id()) - before;
    assert!(
        read <= SIZE - arrived + SLACK,
        "{read} bytes of the source were read, {arrived} had arrived"
    );
    assert!(
        read_by_daemon <= SLACK,
        "{read_by_daemon} bytes were read at the target"
    );
    truth.assert_same(&Manifest::of(&target), "sent and arrived");
    assert!(Manifest::of(&source).is_empty());
    assert_eq!(fs::read_dir(&remembered).unwrap().count(), 0, "of a file that is gone");
}

#[test]
fn what_was_fetched_is_not_read_again_at_the_source() {
    let scratch = Scratch::on_disk();
    let (source, target, state) = (scratch.dir("source"), scratch.dir("target"), scratch.dir("state"));
    let hosts = Hosts::serving(&[("a", &source, ALL)]);
    let line = Line::to(hosts.port());
    hosts.know("nas", &hosts.public("daemon"), &format!("127.0.0.1:{}", line.port));
    make(&source.join("film"));
    let truth = Manifest::of(&source);
    let ends = ["nas::a", target.to_str().unwrap()];
    let partial = target.join(".film.realize-part");
    let arrived = kill_halfway(&hosts, ends, &state, &partial);
    let before = bytes_read(hosts.daemon_id());
    let read = go_on(&hosts, ends, &state, &partial);
    let read_by_daemon = bytes_read(hosts.daemon_id()) - before;
    assert!(
        read_by_daemon <= SIZE - arrived + SLACK,
        "{read_by_daemon} bytes of the source were read, {arrived} had arrived"
    );
    // Written by another process.
    assert!(read >= arrived, "{read} bytes were read of {arrived}");
    truth.assert_same(&Manifest::of(&target), "sent and arrived");
    assert!(Manifest::of(&source).is_empty());
}

#[test]
fn a_source_that_was_written_to_since_is_read_again() {
    let scratch = Scratch::on_disk();
    let (source, target, state) = (scratch.dir("source"), scratch.dir("target"), scratch.dir("state"));
    let hosts = Hosts::serving(&[("a", &target, ALL)]);
    let line = Line::to(hosts.port());
    hosts.know("nas", &hosts.public("daemon"), &format!("127.0.0.1:{}", line.port));
    let film = source.join("film");
    make(&film);
    let ends = [source.to_str().unwrap(), "nas::a"];
    kill_halfway(&hosts, ends, &state, &target.join(".film.realize-part"));
    // Size and mtime stay.
    let mtime = fs::metadata(&film).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&film).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"newer", 5 << 20).unwrap();
    file.set_modified(mtime).unwrap();
    drop(file);
    let truth = Manifest::of(&source).without_reserved();
    let read = go_on(&hosts, ends, &state, &film);
    assert!(read >= SIZE, "{read}");
    truth.assert_same(&Manifest::of(&target), "sent and arrived");
}
