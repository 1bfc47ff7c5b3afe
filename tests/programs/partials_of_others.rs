//! Somebody else writes to what has arrived of a file, or frees its room, while the rest arrives or is still to be gone on with: its source does
//! not go for what is not there.

use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

use crate::support::*;
use rustix::process::Signal;

const MIB: usize = 1 << 20;

/// What somebody does to a partial.
type Harm = fn(&Path);

const HARMS: [(&str, Harm); 4] = [
    ("freed", |partial| drop(fs::File::create(partial).unwrap())),
    ("cut", |partial| write(partial).set_len(5_000_000).unwrap()),
    ("overwritten", |partial| {
        write(partial).write_all_at(b"this", 4 * MIB as u64 + 77).unwrap();
    }),
    ("overwritten, with its mtime set back", |partial| {
        let file = write(partial);
        let before = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"this", 4 * MIB as u64 + 77).unwrap();
        file.set_modified(before).unwrap();
    }),
];

fn write(partial: &Path) -> fs::File {
    fs::File::options().write(true).open(partial).unwrap()
}

/// Waits until 8 MiB of the 24 are there.
fn has_begun(running: &Running, partial: &Path) {
    while fs::metadata(partial).map_or(0, |metadata| metadata.len()) < 8 * MIB as u64 {
        assert!(running.is_running(), "it ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// 24 MiB, none of it zero.
fn content() -> Vec<u8> {
    (0..24 * MIB).map(|at| ((at * 2_654_435_761) >> 7) as u8 | 1).collect()
}

/// Moves a file into `target`, whose partial comes to `harm` once a third is there, with the mover killed before that or not.
fn move_with(hosts: &Hosts, local: bool, target: &Path, (what, harm): (&str, Harm), is_killed: bool) {
    let scratch = Scratch::on_disk();
    let source = scratch.dir("source");
    let bytes = content();
    fs::write(source.join("film"), &bytes).unwrap();
    let (partial, film) = (target.join(".film.realize-part"), target.join("film"));
    let to = if local { target.to_str().unwrap() } else { "nas::a" };
    let what = format!("{what}, local: {local}, killed: {is_killed}");
    let running = hosts.realize().arg("--throttle=12M").arg(&source).arg(to).start();
    has_begun(&running, &partial);
    if is_killed {
        running.signal(Signal::KILL);
    }
    harm(&partial);
    let outcome = running.wait();
    if !is_killed {
        assert!(
            !source.join("film").exists() || outcome.status.code() == Some(1),
            "{what}: {outcome}"
        );
    }
    if source.join("film").exists() {
        // What is wrong by now is repaired.
        hosts.realize().arg(&source).arg(to).run().expect_code(0);
    }
    assert!(fs::read(&film).unwrap() == bytes, "{what}: torn; {outcome}");
    assert!(!source.join("film").exists(), "{what}");
    fs::remove_file(film).unwrap();
}

#[test]
fn what_somebody_does_to_a_partial_on_another_host_is_seen() {
    let scratch = Scratch::on_disk();
    let target = scratch.dir("target");
    let hosts = Hosts::serving(&[("a", &target, ALL)]);
    for is_killed in [false, true] {
        for harm in HARMS {
            move_with(&hosts, false, &target, harm, is_killed);
        }
    }
}

#[test]
fn what_somebody_does_to_a_partial_on_this_host_is_seen() {
    let (scratch, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let target = memory.dir("target");
    let hosts = Hosts::serving(&[("a", &scratch.dir("unused"), ALL)]);
    for is_killed in [false, true] {
        for harm in HARMS {
            move_with(&hosts, true, &target, harm, is_killed);
        }
    }
}

/// Who only reads is in nobody's way, and nothing is sent again.
#[test]
fn a_partial_may_be_read() {
    let scratch = Scratch::on_disk();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    let hosts = Hosts::serving(&[("a", &target, ALL)]);
    let line = Line::to(hosts.port());
    hosts.know("nas", &hosts.public("daemon"), &format!("127.0.0.1:{}", line.port));
    let bytes = content();
    fs::write(source.join("film"), &bytes).unwrap();
    let running = hosts.realize().arg("--throttle=12M").arg(&source).arg("nas::a").start();
    has_begun(&running, &target.join(".film.realize-part"));
    assert!(fs::read(target.join(".film.realize-part")).unwrap().len() >= 8 * MIB);
    running.wait().expect_code(0);
    assert!(fs::read(target.join("film")).unwrap() == bytes);
    assert!(
        line.bytes() < 25 * MIB as u64,
        "{} bytes crossed the line",
        line.bytes()
    );
}
