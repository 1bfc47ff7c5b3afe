//! Moves between two hosts: the real programs, keys made by keygen, TLS over real sockets.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::support::*;
use rustix::process::Signal;

/// More than one chunk, and not a whole number of them.
const LARGE: usize = (5 << 20) + 12_345;

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8 ^ seed).collect()
}

/// A daemon that serves `a` on a disk and `b` in memory.
struct Pair {
    hosts: Hosts,
    a: PathBuf,
    b: PathBuf,
    local: PathBuf,
    _scratches: [Scratch; 2],
}

impl Pair {
    fn new() -> Self {
        let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
        let (a, b, local) = (disk.dir("a"), memory.dir("b"), disk.dir("local"));
        let hosts = Hosts::serving(&[("a", &a, ALL), ("b", &b, ALL)]);
        Self {
            hosts,
            a,
            b,
            local,
            _scratches: [disk, memory],
        }
    }
}

#[test]
fn an_odd_tree_arrives_whole_in_every_combination_of_local_and_remote() {
    let pair = Pair::new();
    odd_tree(&pair.local);
    fs::write(pair.local.join("large"), bytes(LARGE, 1)).unwrap();
    for special in ["kinds/fifo", "kinds/socket"] {
        fs::remove_file(pair.local.join(special)).ok();
    }
    let before = Manifest::of(&pair.local);
    let mut from = (pair.local.clone().into_os_string(), pair.local.clone());
    // Local to remote, remote to remote, remote to local.
    let new = pair.local.parent().unwrap().join("new");
    fs::create_dir(&new).unwrap();
    for (to, path) in [
        ("nas::a".into(), pair.a.clone()),
        ("nas::b".into(), pair.b.clone()),
        (new.clone().into_os_string(), new.clone()),
    ] {
        let outcome = pair.hosts.realize().arg(&from.0).arg(&to).run();
        if outcome.status.code() != Some(0) {
            panic!("{outcome}\n{}", pair.hosts.log());
        }
        before.assert_same(&Manifest::of(&path), "sent and arrived");
        assert!(Manifest::of(&from.1).is_empty());
        let again = pair.hosts.realize().arg(&from.0).arg(&to).run().expect_code(0);
        assert!(again.stdout().contains("nothing to move"), "{again}");
        from = (to, path);
    }
}

#[test]
fn single_files_and_directories_below_are_named_as_on_one_host() {
    let pair = Pair::new();
    let run = |from: &str, to: &str| {
        let outcome = pair.hosts.realize().args([from, to]).current_dir(&pair.local).run();
        assert_eq!(outcome.status.code(), Some(0), "{outcome}\n{}", pair.hosts.log());
    };
    let write = |name: &str| fs::write(pair.local.join(name), name).unwrap();
    let reads = |path: &Path, text: &str| assert_eq!(fs::read_to_string(path).unwrap(), text);
    write("one");
    run("one", "nas::a");
    reads(&pair.a.join("one"), "one");
    write("two");
    run("two", "nas::a/other name");
    reads(&pair.a.join("other name"), "two");
    write("three");
    run("three", "nas::a/new/");
    reads(&pair.a.join("new/three"), "three");
    run("nas::a/new", "nas::b/below");
    reads(&pair.b.join("below/three"), "three");
    run("nas::b/below/three", "four");
    reads(&pair.local.join("four"), "three");
    let missing = pair
        .hosts
        .realize()
        .args(["four", "nas::a/no/such"])
        .current_dir(&pair.local)
        .run();
    assert_ne!(missing.status.code(), Some(0), "{missing}");
    reads(&pair.local.join("four"), "three");
}

#[test]
fn a_dry_run_writes_nothing_on_either_host() {
    let pair = Pair::new();
    fs::write(pair.local.join("file"), "text").unwrap();
    let outcome = pair
        .hosts
        .realize()
        .arg("-n")
        .arg(&pair.local)
        .arg("nas::a/new")
        .run()
        .expect_code(0);
    assert!(outcome.stdout().contains("would move: \"file\""), "{outcome}");
    assert!(Manifest::of(&pair.a).is_empty() && pair.local.join("file").exists());
}

#[test]
fn check_and_move_tell_apart_what_is_in_the_way() {
    let mut pair = Pair::new();
    fs::write(pair.local.join("file"), "text").unwrap();
    let local = pair.local.to_str().unwrap().to_owned();
    let expect = |pair: &Pair, host: &str, code: i32, texts: &[&str]| {
        let outcome = pair.hosts.check(host).run();
        let said = format!("{}{}", outcome.stdout(), outcome.stderr());
        assert_eq!(outcome.status.code(), Some(code), "{outcome}\n{}", pair.hosts.log());
        for text in texts {
            assert!(said.contains(text), "{text:?} is not said\n{outcome}");
        }
        if code != 0 {
            let outcome = pair.hosts.realize().args([local.as_str(), host]).run();
            assert_ne!(outcome.status.code(), Some(0), "{outcome}");
            assert!(pair.local.join("file").exists(), "{outcome}");
            // What is in the way is said in the same words, but for which right is missing.
            if code != 1 {
                assert_eq!(outcome.status.code(), Some(code), "{outcome}");
            }
            if !texts.contains(&"no right to it") {
                for text in texts {
                    assert!(outcome.stderr().contains(text), "{text:?} is not said\n{outcome}");
                }
            }
        }
    };
    expect(
        &pair,
        "nas::a",
        0,
        &["reached", r#"nas::a: "read", "write", "replace", "delete""#],
    );
    expect(&pair, "nas::c", 1, &["no such directory is configured"]);
    expect(&pair, "other::a", 2, &["cannot be resolved"]);
    expect(
        &pair,
        "127.0.0.1:1::a",
        2,
        &["refused", "is realized running there", "127.0.0.1 port 1"],
    );
    // The port that is written counts, and what is said is about what was written.
    expect(&pair, "nas:1::a", 2, &["refused", "127.0.0.1 port 1", "hosts.toml"]);
    expect(&pair, "nas:a", 2, &["\"nas:a\""]);
    expect(&pair, "nas::/srv/a", 2, &["not a path"]);
    // Known under no name, it is told from whom the key comes.
    let as_address = format!("127.0.0.1:{}::a", pair.hosts.port());
    let key = pair.hosts.public("daemon");
    expect(&pair, &as_address, 12, &["is not known", &format!("key = \"{key}\"")]);
    // Another key than the one expected.
    let (address, stranger) = (
        format!("127.0.0.1:{}", pair.hosts.port()),
        pair.hosts.public("stranger"),
    );
    pair.hosts.know("nas", &stranger, &address);
    expect(
        &pair,
        "nas::a",
        12,
        &[&key, &stranger, "another host answers in its place"],
    );
    // This host's own key was written down for the other.
    pair.hosts.know("nas", &pair.hosts.public("mover"), &address);
    expect(&pair, "nas::a", 12, &["this host's own"]);
    pair.hosts.know("nas", &key, &address);
    // A right that is missing; then a key that is.
    let (a, b, mover) = (pair.a.clone(), pair.b.clone(), pair.hosts.public("mover"));
    pair.hosts.end(Signal::TERM);
    pair.hosts.configure(&[("a", &a, "[]"), ("b", &b, ALL)], &mover);
    pair.hosts.start();
    expect(&pair, "nas::a", 1, &["no right to it"]);
    expect(&pair, "nas", 0, &["nas::b: "]);
    pair.hosts.end(Signal::TERM);
    pair.hosts.configure(&[("a", &a, "[]")], &mover);
    pair.hosts.start();
    let outcome = pair.hosts.check("nas").run().expect_code(1);
    assert!(
        outcome
            .stdout()
            .contains(&format!("in the section with the key {mover}")),
        "{outcome}"
    );
    pair.hosts.end(Signal::TERM);
    pair.hosts.configure(&[("a", &a, ALL)], &stranger);
    pair.hosts.start();
    expect(
        &pair,
        "nas::a",
        12,
        &["does not know this host's key", &format!("key = \"{mover}\"")],
    );
    pair.hosts.expect_log("was not let in");
}

#[test]
fn without_a_key_the_way_to_one_is_told() {
    let disk = Scratch::on_disk();
    let outcome = realize()
        .args(["nas::films", "."])
        .current_dir(&*disk)
        .run()
        .expect_code(12);
    assert!(outcome.stderr().contains("realize keygen"), "{outcome}");
    fs::write(disk.join("key"), "no key").unwrap();
    let outcome = realize()
        .args(["--key", "key", "nas::films", "."])
        .current_dir(&*disk)
        .run();
    assert!(outcome.stderr().contains("chmod 600"), "{outcome}");
    assert!(!outcome.stderr().contains("keygen"), "{outcome}");
}

#[test]
fn a_key_that_is_there_is_kept_and_shown_again() {
    let disk = Scratch::on_disk();
    let keygen = || realize().args(["keygen", "--out", "key"]).current_dir(&*disk).run();
    let public = |outcome: &Outcome| {
        let line = outcome.stdout().lines().find(|line| line.starts_with("ed25519:"));
        line.unwrap().to_owned()
    };
    let first = keygen().expect_code(0);
    let secret = fs::read(disk.join("key")).unwrap();
    let second = keygen().expect_code(0);
    assert_eq!(public(&first), public(&second));
    assert!(second.stdout().contains("already"), "{second}");
    assert_eq!(fs::read(disk.join("key")).unwrap(), secret);
    fs::write(disk.join("key"), "my notes").unwrap();
    let outcome = keygen().expect_code(2);
    assert!(outcome.stderr().contains("never overwritten"), "{outcome}");
    assert_eq!(fs::read(disk.join("key")).unwrap(), b"my notes");
    let outcome = realize()
        .args(["keygen", "--out", "no/key"])
        .current_dir(&*disk)
        .run()
        .expect_code(2);
    assert_eq!(outcome.stderr().matches("No such file").count(), 1, "{outcome}");
    assert!(outcome.stderr().contains("mkdir -p"), "{outcome}");
}

#[test]
fn each_right_is_asked_for_at_each_call() {
    for (rights, from, to, texts) in [
        (r#"["read"]"#, "local", "nas::a", &["right to write"][..]),
        (r#"["write"]"#, "nas::a", "local", &["right to read"]),
        (r#"["read"]"#, "nas::a", "local", &["right to delete"]),
        (
            r#"["read", "write", "delete"]"#,
            "local",
            "nas::a",
            &["right to replace"],
        ),
    ] {
        let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
        let (local, served) = (disk.dir("local"), memory.dir("served"));
        let hosts = Hosts::serving(&[("a", &served, rights)]);
        let (source, target) = if from == "local" {
            (&local, &served)
        } else {
            (&served, &local)
        };
        for (name, len) in [("small", 10), ("large", LARGE)] {
            fs::write(source.join(name), bytes(len, 1)).unwrap();
        }
        if texts.iter().any(|text| text.contains("replace")) {
            for name in ["small", "large"] {
                fs::write(target.join(name), "older").unwrap();
            }
        }
        let before = Manifest::of(source);
        let outcome = hosts.realize().args([from, to]).current_dir(&*disk).run();
        assert_ne!(outcome.status.code(), Some(0), "{rights}: {outcome}");
        for text in texts {
            assert!(outcome.stderr().contains(text), "{rights}: {text:?}\n{outcome}");
        }
        // Only what is to be replaced is not known beforehand.
        let is_before = !rights.contains("write\", ");
        let section = format!("in the section with the key {}", hosts.public("mover"));
        for text in ["nas::a: ", &section, "add to rights.\"a\" what is missing of ["] {
            assert_eq!(
                outcome.stderr().contains(text),
                is_before,
                "{rights}: {text:?}\n{outcome}"
            );
        }
        before.assert_same(&Manifest::of(source), "before and after");
        assert_eq!(
            outcome.status.code(),
            Some(if is_before { 2 } else { 1 }),
            "{rights}: {outcome}"
        );
        if is_before {
            assert!(Manifest::of(target).is_empty(), "{rights}: {outcome}");
            // What can't be done is not promised either.
            let dry = hosts.realize().args(["-n", from, to]).current_dir(&*disk).run();
            dry.expect_code(2);
        }
        if texts.iter().any(|text| text.contains("replace")) {
            assert_eq!(fs::read_to_string(target.join("small")).unwrap(), "older");
            assert_eq!(fs::read_to_string(target.join("large")).unwrap(), "older");
        }
    }
}

#[test]
fn strangers_do_not_keep_others_from_being_served() {
    let pair = Pair::new();
    let connect = || TcpStream::connect(("127.0.0.1", pair.hosts.port())).unwrap();
    let garbage: Vec<u8> = bytes(10_000, 3);
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-x\r\n", &garbage] {
        let mut stream = connect();
        // It may have closed before all is written.
        stream.write_all(words).ok();
        let mut answer = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.read_to_end(&mut answer).ok();
        assert!(answer.len() < 100, "an alert at most");
    }
    // As many as may be without a word, and more.
    let silent: Vec<_> = (0..80).map(|_| connect()).collect();
    pair.hosts.expect_log("too many connections are not let in yet");
    // The oldest of them makes room.
    fs::write(pair.local.join("file"), "text").unwrap();
    pair.hosts.realize().arg(&pair.local).arg("nas::a").run().expect_code(0);
    assert!(pair.a.join("file").exists());
    drop(silent);
}

#[test]
fn a_second_run_on_one_source_waits_in_case_the_first_has_just_ended() {
    let pair = Pair::new();
    plain_tree(&pair.a, 3000, 4096, 1);
    let first = pair.hosts.realize().args(["nas::a"]).arg(&pair.local).start();
    let begin = Instant::now();
    while fs::read_dir(&pair.local).unwrap().count() < 2 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{}", pair.hosts.log());
    }
    first.signal(Signal::STOP);
    let second = pair.hosts.realize().args(["nas::a", "nas::b"]).start();
    let begin = Instant::now();
    while pair.hosts.log().matches("has connected").count() < 2 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{}", pair.hosts.log());
    }
    // For its claim to be refused.
    std::thread::sleep(Duration::from_secs(2));
    first.signal(Signal::KILL);
    first.wait();
    let second = second.wait().expect_code(0);
    assert!(second.stderr().contains("the source is in use; waiting"), "{second}");
    assert!(Manifest::of(&pair.a).is_empty());
}

#[test]
fn the_daemon_ends_at_once_when_told_to() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut pair = Pair::new();
        plain_tree(&pair.local, 3000, 4096, 1);
        let running = pair.hosts.realize().arg(&pair.local).arg("nas::a").start();
        pair.hosts.expect_log("has connected");
        let begin = Instant::now();
        let status = pair.hosts.end(signal);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        assert_eq!(status.code(), Some(0));
        running.signal(Signal::KILL);
        running.wait();
    }
}

#[test]
fn a_directory_is_not_moved_into_itself_by_way_of_another_host() {
    let pair = Pair::new();
    fs::create_dir_all(pair.a.join("below")).unwrap();
    fs::write(pair.a.join("file"), "text").unwrap();
    fs::write(pair.a.join("below/file"), "text").unwrap();
    let before = Manifest::of(&pair.a);
    let a = pair.a.to_str().unwrap();
    let below = pair.a.join("below");
    for (from, to) in [
        (a, "nas::a"),
        ("nas::a", a),
        ("nas::a", "nas::a"),
        (a, "nas::a/below"),
        ("nas::a", below.to_str().unwrap()),
        ("nas::a", "nas::a/below"),
    ] {
        let outcome = pair.hosts.realize().args([from, to]).run();
        assert_ne!(outcome.status.code(), Some(0), "{from} {to}: {outcome}");
        for name in ["file", "below/file"] {
            assert_eq!(
                fs::read_to_string(pair.a.join(name)).unwrap(),
                "text",
                "{from} {to}: {outcome}"
            );
        }
    }
    let kept = |manifest: Manifest| manifest.retain(|_, entry| entry.kind != Kind::Dir);
    kept(before).assert_same(&kept(Manifest::of(&pair.a)), "before and after");
    // From inside to outside is a move like any other.
    fs::write(pair.a.join("below/other"), "other").unwrap();
    pair.hosts.realize().args(["nas::a/below", a]).run().expect_code(0);
    assert_eq!(fs::read_to_string(pair.a.join("other")).unwrap(), "other");
}

/// What the daemon says when it does not start with this configuration.
fn refusal(files: &Scratch, config: &str) -> String {
    fs::write(files.join("realized.toml"), config).unwrap();
    let outcome = realized().arg("--config").arg(files.join("realized.toml")).run();
    assert_eq!(outcome.status.code(), Some(2), "{config}\n{outcome}");
    outcome.stderr().to_owned()
}

#[test]
fn the_daemon_says_in_words_that_can_be_pasted_why_it_does_not_start() {
    let files = Scratch::on_disk();
    let key = files.join("key");
    let of_key = |config: &str| refusal(&files, &format!("key = \"key\"\n{config}"));
    let said = of_key("");
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    assert!(
        said.contains(&format!("realize keygen --out \"{}\"", key.display())),
        "{said}"
    );
    let made = realize().args(["keygen", "--out"]).arg(&key).run().expect_code(0);
    let public = made
        .stdout()
        .lines()
        .find(|line| line.starts_with("ed25519:"))
        .unwrap()
        .to_owned();
    let said = of_key("[directories.\"archive\"]\npath = \"archive\"\n");
    assert!(
        said.contains("directories.\"archive\".path: \"archive\" is not absolute; begin it with \"/\"\n"),
        "{said}"
    );
    let said = of_key(&format!("[peers.laptop]\nkey = \"{public}\"\n"));
    assert!(
        said.contains("peers.\"laptop\".key") && said.contains("this host's own key"),
        "{said}"
    );
    let said = refusal(&files, "[directories.archive]\npath = \"/srv\"\n");
    assert!(
        said.contains("key = \"/etc/realize/key\"") && said.contains("at the top"),
        "{said}"
    );
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let said = of_key("");
    assert!(said.contains(&format!("chmod 600 \"{}\"\n", key.display())), "{said}");
    fs::remove_file(files.join("realized.toml")).unwrap();
    let outcome = realized().arg("--config").arg(files.join("realized.toml")).run();
    let said = outcome.stderr();
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    assert!(said.contains("--config"), "{said}");
}

#[test]
fn an_output_that_nobody_reads_is_no_reason_to_fail() {
    let disk = Scratch::on_disk();
    let script = r#""$0" keygen --out "$1" > /dev/full"#;
    let outcome = Run::program("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_realize")])
        .arg(disk.join("key"))
        .run();
    outcome.expect_code(0);
    assert!(disk.join("key").exists());
}

#[test]
fn check_foresees_what_a_move_would_meet() {
    let pair = Pair::new();
    fs::write(pair.a.join("file"), "text").unwrap();
    fs::create_dir(pair.a.join("dir")).unwrap();
    let says = |host: &str, code: i32, text: &str| {
        let checked = pair.hosts.check(host).run();
        assert_eq!(checked.status.code(), Some(code), "{checked}");
        assert!(checked.stdout().contains(text), "{checked}");
    };
    says("nas::a/file", 0, "a file");
    says("nas::a/dir", 0, "a directory");
    says("nas::a/dir/new", 0, "there is nothing yet");
    says("nas::a/no/new", 1, "mkdir -p");
    assert!(fs::read_dir(pair.a.join("dir")).unwrap().next().is_none());
    // Nothing can be made there.
    let hosts = Hosts::serving(&[("proc", Path::new("/proc"), ALL)]);
    let checked = hosts.check("nas::proc").run().expect_code(1);
    assert!(checked.stdout().contains("nothing can be moved to there"), "{checked}");
}

#[test]
fn a_directory_that_is_another_than_was_opened_is_not_moved_to() {
    let pair = Pair::new();
    fs::write(pair.local.join("file"), "text").unwrap();
    let aside = pair.a.with_extension("aside");
    fs::rename(&pair.a, &aside).unwrap();
    let refused = |way_out: &str| {
        for target in ["nas::a", "nas::a/sub"] {
            let outcome = pair.hosts.realize().arg(&pair.local).arg(target).run();
            assert_eq!(outcome.status.code(), Some(2), "{outcome}");
            assert!(outcome.stderr().contains(way_out), "{outcome}");
            let checked = pair.hosts.check(target).run();
            assert_eq!(checked.status.code(), Some(1), "{checked}");
            assert!(checked.stdout().contains(way_out), "{checked}");
        }
        assert!(pair.local.join("file").exists());
    };
    refused("is a disk not mounted?");
    // As a disk that is mounted over it would look.
    fs::create_dir(&pair.a).unwrap();
    refused("have realized read its configuration anew");
    let from = pair.hosts.realize().arg("nas::a").arg(&pair.local).run();
    assert_eq!(from.status.code(), Some(2), "{from}");
    assert!(Manifest::of(&pair.a).is_empty() && Manifest::of(&aside).is_empty());
    fs::remove_dir(&pair.a).unwrap();
    fs::rename(&aside, &pair.a).unwrap();
    pair.hosts.realize().arg(&pair.local).arg("nas::a").run().expect_code(0);
}

#[test]
fn nothing_is_left_where_one_directory_is_source_and_target() {
    let pair = Pair::new();
    fs::write(pair.a.join("one"), "text").unwrap();
    pair.hosts
        .realize()
        .args(["nas::a/one", "nas::a/two"])
        .run()
        .expect_code(0);
    let names: Vec<_> = fs::read_dir(&pair.a)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["two"]);
}

#[test]
fn runs_of_one_host_that_begin_together_do_not_end_each_other() {
    let pair = Pair::new();
    let runs: Vec<_> = (0..60).map(|nth| pair.local.join(format!("{nth}"))).collect();
    for (nth, dir) in runs.iter().enumerate() {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join(format!("f{nth}")), "text").unwrap();
    }
    for together in runs.chunks(12) {
        let started: Vec<_> = together
            .iter()
            .map(|dir| pair.hosts.realize().arg("-q").arg(dir).arg("nas::b").start())
            .collect();
        for run in started {
            run.wait().expect_code(0);
        }
    }
    assert_eq!(fs::read_dir(&pair.b).unwrap().count(), 60);
}

#[test]
fn two_names_of_one_daemon_are_two_hosts() {
    let pair = Pair::new();
    let hosts = fs::read_to_string(pair.hosts.file("hosts.toml")).unwrap();
    let other = hosts.replace("\"nas\"", "\"other\"");
    fs::write(pair.hosts.file("hosts.toml"), hosts + &other).unwrap();
    plain_tree(&pair.a, 300, 4096, 1);
    fs::write(pair.a.join("large"), bytes(LARGE, 1)).unwrap();
    let before = Manifest::of(&pair.a);
    pair.hosts.realize().args(["nas::a", "other::b"]).run().expect_code(0);
    before.assert_same(&Manifest::of(&pair.b), "sent and arrived");
    assert!(Manifest::of(&pair.a).is_empty());
    // Nothing is moved to itself by way of two names.
    let same = pair.hosts.realize().args(["nas::b", "other::b"]).run();
    assert_eq!(same.status.code(), Some(2), "{same}");
    before.assert_same(&Manifest::of(&pair.b), "sent and left alone");
}

/// More of them than one message has room for.
#[test]
fn a_directory_full_of_marks_of_runs_takes_files() {
    let pair = Pair::new();
    let memory = Scratch::in_memory();
    let local = memory.dir("local");
    let target = pair.b.join("sub");
    for dir in [local.join("sub"), target.clone()] {
        fs::create_dir(&dir).unwrap();
    }
    fs::write(local.join("sub/file"), "text").unwrap();
    for number in 0..40_000 {
        fs::write(target.join(format!(".realize-token.{number:032x}.target")), "").unwrap();
    }
    pair.hosts.realize().arg(&local).arg("nas::b").run().expect_code(0);
    assert!(target.join("file").exists());
}

#[test]
fn a_daemon_started_anew_in_the_midst_is_told_of_once() {
    let mut pair = Pair::new();
    let source = pair.b.with_extension("source");
    fs::create_dir(&source).unwrap();
    plain_tree(&source, 10_000, 4096, 1);
    let before = Manifest::of(&source);
    let running = pair.hosts.realize().arg(&source).arg("nas::b").start();
    let begin = Instant::now();
    while fs::read_dir(pair.b.join("d0")).map_or(0, Iterator::count) < 3 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{}", pair.hosts.log());
    }
    pair.hosts.end(Signal::KILL);
    pair.hosts.start();
    let outcome = running.wait().expect_code(0);
    assert!(outcome.stderr().contains("beginning again"), "{outcome}");
    // Everything has moved in the end.
    assert!(!outcome.stderr().contains(" stays"), "{outcome}");
    let files = |manifest: Manifest| manifest.retain(|_, entry| entry.kind != Kind::Dir);
    files(before).assert_same(&files(Manifest::of(&pair.b)), "sent and arrived");
    assert!(Manifest::of(&source).is_empty());
}
