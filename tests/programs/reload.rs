//! A daemon that is told to read its configuration anew while it serves.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::support::*;
use rustix::process::Signal;

const READ: &str = r#"["read"]"#;

/// A host with two directories, one of them served, and a file that takes longer than a test.
struct Served {
    hosts: Hosts,
    near: PathBuf,
    a: PathBuf,
    b: PathBuf,
    _scratch: Scratch,
}

impl Served {
    fn new() -> Self {
        let scratch = Scratch::in_memory();
        let (near, a, b) = (scratch.dir("near"), scratch.dir("a"), scratch.dir("b"));
        fs::write(near.join("large"), content()).unwrap();
        let hosts = Hosts::serving(&[("a", &a, ALL)]);
        Self {
            hosts,
            near,
            a,
            b,
            _scratch: scratch,
        }
    }

    /// Serves these, to the mover.
    fn configure(&self, dirs: &[(&str, &Path, &str)]) {
        self.hosts.configure(dirs, &self.hosts.public("mover"));
    }

    /// A move of all that is near.
    fn move_to_a(&self) -> Run {
        self.hosts.realize().arg(&self.near).arg("nas::a")
    }

    /// A move that takes seconds, and has begun to send.
    fn sending(&self) -> Running {
        let running = self.move_to_a().args(["-v", "--throttle=2M"]).start();
        self.expect_partial(&self.a);
        running
    }

    /// Waits until some of the large file has come to `dir`.
    fn expect_partial(&self, dir: &Path) {
        let partial = dir.join(".large.realize-part");
        let begin = Instant::now();
        while fs::metadata(&partial).map_or(0, |partial| partial.len()) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", self.hosts.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn content() -> Vec<u8> {
    (0..6u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn directories_and_rights_are_what_is_configured_from_the_next_call_on() {
    let served = Served::new();
    let check = |dir: &str, code: i32| served.hosts.check(&format!("nas::{dir}")).run().expect_code(code);
    check("b", 1);
    served.configure(&[("a", &served.a, READ), ("b", &served.b, ALL)]);
    served.hosts.reload();
    check("b", 0);
    let refused = served.move_to_a().run().expect_code(2);
    assert!(refused.stderr().contains("write"), "{refused}");
    assert!(served.near.join("large").exists());
    // The same name, another place.
    served.configure(&[("a", &served.b, ALL)]);
    served.hosts.reload();
    served.move_to_a().run().expect_code(0);
    assert_eq!(fs::read(served.b.join("large")).unwrap(), content());
    // The same path, another directory.
    fs::rename(&served.b, served.b.with_extension("away")).unwrap();
    fs::create_dir(&served.b).unwrap();
    let replaced = check("a", 1);
    assert!(replaced.stdout().contains("SIGHUP"), "{replaced}");
    served.hosts.reload();
    check("a", 0);
}

#[test]
fn a_configuration_that_is_refused_changes_nothing_and_says_where() {
    let served = Served::new();
    let file = served.hosts.file("realized.toml");
    let before = fs::read_to_string(&file).unwrap();
    let refused = |text: &str, why: &str| {
        fs::write(&file, text).unwrap();
        served.hosts.hang_up();
        served.hosts.expect_log(why);
        served.hosts.check("nas::a").run().expect_code(0);
    };
    let without_peers = before.split("[peers").next().unwrap();
    refused(
        &format!("{without_peers}[peers.mover]\nkee = 1\n"),
        "realized.toml\" line 6: unknown field",
    );
    let missing = format!("{without_peers}[directories.gone]\npath = \"/nowhere/at/all\"\n");
    refused(&missing, "cannot open \"/nowhere/at/all\" of the directory \"gone\"");
    refused(
        &before.replace("key = \"daemon\"", "key = \"none\""),
        "realize keygen --out",
    );
    fs::remove_file(&file).unwrap();
    served.hosts.hang_up();
    served.hosts.expect_log("No such file");
    served.hosts.check("nas::a").run().expect_code(0);
    assert_eq!(
        served.hosts.log().matches("stays as it was").count(),
        4,
        "{}",
        served.hosts.log()
    );
    assert!(!served.hosts.log().contains("loaded anew"), "{}", served.hosts.log());
}

#[test]
fn a_peer_that_is_taken_out_is_disconnected_and_its_source_stays() {
    let served = Served::new();
    let running = served.sending();
    let begin = Instant::now();
    served
        .hosts
        .configure(&[("a", &served.a, ALL)], &served.hosts.public("stranger"));
    served.hosts.reload();
    served.hosts.expect_log("the key is not configured any more");
    assert!(begin.elapsed() < Duration::from_secs(2), "{}", served.hosts.log());
    let outcome = running.wait().expect_code(12);
    assert!(outcome.stderr().contains("not configured any more"), "{outcome}");
    assert!(served.near.join("large").exists() && !served.a.join("large").exists());
    // Let in again it goes on.
    served.configure(&[("a", &served.a, ALL)]);
    served.hosts.reload();
    served.move_to_a().run().expect_code(0);
    assert_eq!(fs::read(served.a.join("large")).unwrap(), content());
}

#[test]
fn a_right_that_is_withdrawn_holds_for_a_move_that_runs() {
    let served = Served::new();
    // From there, so that it is the right to delete which is missing at the end.
    fs::rename(served.near.join("large"), served.a.join("large")).unwrap();
    let running = served
        .hosts
        .realize()
        .arg("--throttle=2M")
        .arg("nas::a")
        .arg(&served.near)
        .start();
    served.expect_partial(&served.near);
    served.configure(&[("a", &served.a, READ)]);
    served.hosts.reload();
    let outcome = running.wait().expect_code(1);
    assert!(outcome.stderr().contains("delete"), "{outcome}");
    assert_eq!(fs::read(served.a.join("large")).unwrap(), content());
}

#[test]
fn a_move_goes_on_while_other_directories_come_and_go() {
    let served = Served::new();
    let running = served.sending();
    let dirs = [("a", served.a.as_path(), ALL), ("b", served.b.as_path(), ALL)];
    for turn in 0..6 {
        served.configure(&dirs[..1 + turn % 2]);
        served.hosts.reload();
    }
    let outcome = running.wait().expect_code(0);
    assert!(!outcome.stderr().contains("lost"), "{outcome}");
    assert_eq!(fs::read(served.a.join("large")).unwrap(), content());
}

#[test]
fn a_move_whose_directory_becomes_another_begins_again_there() {
    let served = Served::new();
    let running = served.sending();
    served.configure(&[("a", &served.b, ALL)]);
    served.hosts.reload();
    served.hosts.expect_log("another one now");
    running.wait().expect_code(0);
    assert_eq!(fs::read(served.b.join("large")).unwrap(), content());
    assert!(!served.a.join("large").exists() && !served.near.join("large").exists());
    for (name, dir) in [("a", &served.a), ("near", &served.near)] {
        let left = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|left| left != ".large.realize-part").collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}

/// What is not there has not been moved, where that is another directory.
#[test]
fn a_source_that_becomes_another_directory_ends_the_move() {
    for named in ["nas::a/large", "nas::a"] {
        let served = Served::new();
        fs::rename(served.near.join("large"), served.a.join("large")).unwrap();
        let running = served
            .hosts
            .realize()
            .arg("--throttle=2M")
            .arg(named)
            .arg(&served.near)
            .start();
        served.expect_partial(&served.near);
        served.configure(&[("a", &served.b, ALL)]);
        served.hosts.reload();
        let outcome = running.wait().expect_code(1);
        assert!(
            outcome.stderr().contains("another directory than when the move began"),
            "{outcome}"
        );
        assert_eq!(fs::read(served.a.join("large")).unwrap(), content());
    }
}

#[test]
fn what_cannot_be_looked_at_goes_on_as_it_was_and_the_rest_is_heeded() {
    let served = Served::new();
    let away = served.b.with_extension("away");
    let dirs = [("a", served.a.as_path(), ALL), ("b", served.b.as_path(), ALL)];
    served.configure(&dirs);
    served.hosts.reload();
    fs::rename(&served.b, &away).unwrap();
    served.hosts.configure(&dirs, &served.hosts.public("stranger"));
    served.hosts.reload();
    served.hosts.expect_log("It stays as it was");
    served.hosts.check("nas::a").run().expect_code(12);
    fs::rename(&away, &served.b).unwrap();
    served.configure(&dirs);
    served.hosts.reload();
    served.hosts.check("nas::b").run().expect_code(0);
    assert!(
        !served.hosts.log().contains("is another one than before"),
        "{}",
        served.hosts.log()
    );
}

/// Nothing goes where its owner does not look for it: a disk that is not mounted leaves an empty directory.
#[test]
fn a_disk_that_is_not_mounted_any_more_is_not_replaced_by_what_it_was_mounted_on() {
    if !name_spaces_allowed() {
        return;
    }
    let served = Served::new();
    served.configure(&[("b", &served.b, ALL)]);
    let realized = env!("CARGO_BIN_EXE_realized");
    // The daemon in mounts of its own, of which one goes.
    let script = r#"mount -t tmpfs none "$1"; "$2" --config "$3" 2> "$4" & daemon=$!
        until grep -q listening "$4"; do sleep 0.05; done
        umount -l "$1"; kill -HUP $daemon
        until grep -q "loaded anew" "$4"; do sleep 0.05; done
        kill $daemon; wait $daemon; cat "$4""#;
    let outcome = Run::program("unshare")
        .args(["-Urm", "sh", "-c", script, "sh"])
        .arg(&served.b)
        .arg(realized)
        .arg(config_on_any_port(&served))
        .arg(served.hosts.file("log"))
        .run()
        .expect_code(0);
    assert!(
        outcome.stdout().contains("nothing is mounted there any more"),
        "{outcome}"
    );
}

/// The daemon's configuration for another one beside it.
fn config_on_any_port(served: &Served) -> PathBuf {
    let text = fs::read_to_string(served.hosts.file("realized.toml")).unwrap();
    let port = format!(":{}\"", served.hosts.port());
    let other = served.hosts.file("other.toml");
    fs::write(&other, text.replace(&port, ":0\"")).unwrap();
    other
}

#[test]
fn a_new_key_is_shown_from_the_next_connection_on() {
    let served = Served::new();
    let running = served.sending();
    let file = served.hosts.file("realized.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("key = \"daemon\"", "key = \"stranger\"")).unwrap();
    served.hosts.reload();
    served.hosts.expect_log(&served.hosts.public("stranger"));
    running.wait().expect_code(0);
    let refused = served.hosts.check("nas::a").run().expect_code(12);
    assert!(refused.stderr().contains(&served.hosts.public("stranger")), "{refused}");
    let address = format!("127.0.0.1:{}", served.hosts.port());
    served.hosts.know("nas", &served.hosts.public("stranger"), &address);
    served.hosts.check("nas::a").run().expect_code(0);
}

#[test]
fn what_needs_a_start_says_so_and_the_log_says_what_it_is_asked_for() {
    let served = Served::new();
    let file = served.hosts.file("realized.toml");
    let text = fs::read_to_string(&file).unwrap();
    let reload_with = |text: String| {
        fs::write(&file, text).unwrap();
        served.hosts.reload();
    };
    reload_with(text.replace("127.0.0.1:0", "127.0.0.1:9"));
    served.hosts.expect_log("needs realized to be started anew");
    let connections = || served.hosts.log().matches("has connected").count();
    served.hosts.check("nas::a").run().expect_code(0);
    assert_eq!(connections(), 1);
    // That it was loaded is told before the log is what is asked for.
    reload_with(format!("log_level = \"warn\"\n{text}"));
    served.hosts.check("nas::a").run().expect_code(0);
    assert_eq!(connections(), 1);
    fs::write(&file, text).unwrap();
    served.hosts.hang_up();
    let begin = Instant::now();
    while connections() == 1 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{}", served.hosts.log());
        served.hosts.check("nas::a").run().expect_code(0);
    }
}

#[test]
fn a_thousand_reloads_during_a_move_lose_nothing() {
    let served = Served::new();
    plain_tree(&served.near, 200, 3000, 1);
    let before = Manifest::of(&served.near);
    let running = served.sending();
    let dirs = [("a", served.a.as_path(), ALL), ("b", served.b.as_path(), ALL)];
    for turn in 0..1000 {
        // What is read may be half of what is written.
        served.configure(&dirs[..1 + turn % 2]);
        served.hosts.hang_up();
        std::thread::sleep(Duration::from_millis(2));
    }
    let outcome = running.wait().expect_code(0);
    assert!(!outcome.stderr().contains("lost"), "{outcome}");
    before.assert_same(&Manifest::of(&served.a), "sent and arrived");
    assert!(Manifest::of(&served.near).is_empty());
    let loaded = served.hosts.log().matches("loaded anew").count();
    assert!(loaded > 100, "{loaded}");
}

#[test]
fn systemd_is_told_of_readiness_reloads_life_and_the_end() {
    let mut served = Served::new();
    let socket = served.hosts.file("notify");
    let notified = UnixDatagram::bind(&socket).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let expect = |wanted: &str| {
        let mut bytes = [0; 512];
        loop {
            let count = notified
                .recv(&mut bytes)
                .unwrap_or_else(|error| panic!("{wanted}: {error}"));
            let told = std::str::from_utf8(&bytes[..count]).unwrap();
            if told.contains(wanted) {
                return told.to_owned();
            }
        }
    };
    served.hosts.end(Signal::TERM);
    served.hosts.start_with(&[
        ("NOTIFY_SOCKET", socket.as_os_str()),
        ("WATCHDOG_USEC", "200000".as_ref()),
    ]);
    expect("READY=1");
    let begin = Instant::now();
    for _ in 0..4 {
        expect("WATCHDOG=1");
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    served.hosts.hang_up();
    assert!(expect("RELOADING=1").contains("MONOTONIC_USEC="));
    expect("READY=1");
    assert!(served.hosts.end(Signal::TERM).success());
    expect("STOPPING=1");
}
