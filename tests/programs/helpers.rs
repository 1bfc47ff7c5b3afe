//! The helpers of the other tests do what they say.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use crate::support::*;
use rustix::process::Signal;

/// Copies all that is in `from` into `to`, by a program that is trusted to keep everything.
fn copy(from: &Path, to: &Path) {
    let from = from.join(".");
    Run::program("cp").arg("-a").arg(from).arg(to).run().expect_code(0);
}

#[test]
fn a_copied_odd_tree_has_the_same_manifest_on_disk_and_in_memory() {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    odd_tree(&disk);
    if !run_as_root() {
        // The trusted program can't read them either.
        for name in ["0000", "0001", "0200"] {
            fs::remove_file(disk.join("modes").join(name)).unwrap();
        }
    }
    copy(&disk, &memory);
    let manifest = Manifest::of(&disk);
    manifest.assert_same(&Manifest::of(&memory), "on disk and in memory");
    manifest.assert_same(&Manifest::of(&disk), "before and after reading");
    assert_ne!(
        fs::metadata(&*disk).unwrap().dev(),
        fs::metadata(&*memory).unwrap().dev()
    );
}

#[test]
fn an_odd_tree_holds_all_that_it_promises() {
    let scratch = Scratch::on_disk();
    odd_tree(&scratch);
    let manifest = Manifest::of(&scratch);
    let entries = manifest.entries();
    let count = |is: fn(&Entry) -> bool| entries.values().filter(|entry| is(entry)).count();
    let names = || {
        entries
            .keys()
            .map(|path| path.split(|byte| *byte == b'/').next_back().unwrap())
    };

    assert!(entries.keys().any(|path| std::str::from_utf8(path).is_err()));
    assert!(names().any(|name| name.len() == 255) && names().any(|name| name.contains(&b'\n')));
    for name in [b"Case", b"case", b"CASE"] {
        assert!(names().any(|found| found == name));
    }
    assert!(!names().any(is_reserved));
    assert!(count(|entry| entry.mtime.0 < 0) >= 10 && count(|entry| entry.mtime.0 > 4_102_444_800) >= 5);
    assert!(count(|entry| matches!(entry.kind, Kind::Link { .. })) >= 12);
    assert_eq!(count(|entry| entry.kind == Kind::Fifo), 1);
    assert_eq!(count(|entry| entry.kind == Kind::Dir && entry.mode == 0o555), 3);
    assert_eq!(entries.keys().filter(|path| path.starts_with(b"many/")).count(), 3000);
    assert_eq!(manifest.get("modes/0000").unwrap().mode, 0);
    assert!(entries.keys().map(Vec::len).max().unwrap() > 2000);
    let metadata = |path: &str| fs::symlink_metadata(scratch.join(path)).unwrap();
    assert_eq!(metadata("modes/4755").mode() & 0o7777, 0o4755);
    assert_eq!(metadata("links/hard/first").nlink(), 3);
    for (path, data) in [("only a hole", 0), ("data in the middle", 1), ("data at the start", 1)] {
        let path = scratch.join("sparse").join(path);
        let allocated = allocated_bytes(&path);
        assert!(
            allocated < 64 * 1024 && (allocated > 0) == (data > 0),
            "{path:?}: {allocated}"
        );
    }
}

#[test]
fn a_manifest_sees_every_change() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 11] = [
        ("content", |dir| {
            let before = fs::metadata(dir.join("file")).unwrap();
            fs::write(dir.join("file"), "TEXT").unwrap();
            set_mtime(&dir.join("file"), (before.mtime(), before.mtime_nsec()));
        }),
        ("mode 0644, then 0640", |dir| {
            fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        }),
        ("mtime", |dir| set_mtime(&dir.join("file"), (-5, 7))),
        ("-5+000000007", |dir| set_mtime(&dir.join("below"), (-5, 7))),
        ("mtime", |dir| set_mtime(&dir.join("link"), (0, 1))),
        ("link to \"file\", then link to \"other\"", |dir| {
            let before = fs::symlink_metadata(dir.join("link")).unwrap();
            fs::remove_file(dir.join("link")).unwrap();
            symlink("other", dir.join("link")).unwrap();
            set_mtime(&dir.join("link"), (before.mtime(), before.mtime_nsec()));
        }),
        ("only in the first", |dir| fs::remove_file(dir.join("file")).unwrap()),
        ("only in the second", |dir| fs::write(dir.join("new"), "").unwrap()),
        ("only in the second", |dir| symlink("x", dir.join("new")).unwrap()),
        ("then directory", |dir| {
            fs::remove_file(dir.join("file")).unwrap();
            fs::create_dir(dir.join("file")).unwrap();
        }),
        ("\"below/new\\nline\"", |dir| {
            fs::write(dir.join("below/new\nline"), "").unwrap()
        }),
    ];
    for (expected, change) in changes {
        let scratch = Scratch::in_memory();
        fs::create_dir(scratch.join("below")).unwrap();
        fs::write(scratch.join("file"), "text").unwrap();
        fs::set_permissions(scratch.join("file"), fs::Permissions::from_mode(0o644)).unwrap();
        symlink("file", scratch.join("link")).unwrap();
        let before = Manifest::of(&scratch);
        change(&scratch);
        let difference = before.difference(&Manifest::of(&scratch)).unwrap_or_default();
        let expected = if expected == "content" {
            "file of 4 bytes"
        } else {
            expected
        };
        assert!(difference.contains(expected), "{expected}: {difference}");
    }
}

#[test]
fn only_the_first_ten_differences_are_shown() {
    let scratch = Scratch::in_memory();
    let empty = Manifest::of(&scratch);
    many_files(&scratch, 25);
    let difference = empty.difference(&Manifest::of(&scratch)).unwrap();
    assert_eq!(difference.lines().count(), 11);
    assert!(difference.ends_with("and 15 more"), "{difference}");
    assert!(empty.is_empty());
}

#[test]
fn reserved_names_are_left_out_only_when_asked() {
    let scratch = Scratch::in_memory();
    fs::create_dir(scratch.join(".realize-gone")).unwrap();
    for name in [
        ".realize-token",
        ".realize-gone/film",
        ".film.realize-part",
        ".film.realize-swap",
        "..film.realize-part.realize-probe",
        ".film.realize-gone",
        "film.realize-part",
        ".realize",
        "film",
    ] {
        fs::write(scratch.join(name), "").unwrap();
    }
    let manifest = Manifest::of(&scratch);
    assert_eq!(manifest.entries().len(), 10);
    let left: Vec<_> = manifest.without_reserved().entries().keys().cloned().collect();
    assert_eq!(left, [&b".realize"[..], b"film", b"film.realize-part"]);
}

#[test]
fn a_plain_tree_is_the_same_for_the_same_seed() {
    let trees: Vec<_> = [1, 1, 2]
        .map(|seed| {
            let scratch = Scratch::in_memory();
            let bytes = plain_tree(&scratch, 200, 5000, seed);
            let manifest = Manifest::of(&scratch);
            let sizes = manifest.entries().values().filter_map(|entry| match entry.kind {
                Kind::File { bytes, .. } => Some(bytes),
                _ => None,
            });
            let sizes: Vec<_> = sizes.collect();
            assert_eq!((sizes.len(), sizes.iter().sum()), (200, bytes));
            assert!(*sizes.iter().max().unwrap() <= 5000);
            manifest
        })
        .into();
    trees[0].assert_same(&trees[1], "the same seed");
    assert!(trees[0].difference(&trees[2]).is_some());
}

#[test]
fn what_a_program_prints_and_how_it_ends_is_kept() {
    let script = "echo out; echo \"$HOME$WORD\" >&2; exit 7";
    let outcome = Run::program("sh")
        .args(["-c", script])
        .env("WORD", "err")
        .run()
        .expect_code(7);
    assert_eq!((outcome.stdout(), outcome.stderr()), ("out\n", "err\n"));

    let running = Run::program("sleep").arg("1000").start();
    assert!(running.is_running());
    running.signal(Signal::TERM);
    running.wait().expect_signal(Signal::TERM);

    let ended = Run::program("true").start();
    while ended.is_running() {
        std::thread::yield_now();
    }
    ended.signal(Signal::TERM);
    ended.wait().expect_code(0);
}

#[test]
fn a_program_that_takes_too_long_is_killed_with_all_it_started() {
    let limit = Duration::from_millis(200);
    let script = "echo begun; sleep 1000 & sleep 1000";
    let running = Run::program("sh").args(["-c", script]).time_limit(limit).start();
    let TimedOut(outcome) = running.wait_or_kill().unwrap_err();
    assert_eq!(outcome.stdout(), "begun\n");
    assert!(outcome.took >= limit && outcome.took < Duration::from_secs(30));
    outcome.expect_signal(Signal::KILL);
}

#[test]
fn a_program_can_run_without_privileges() {
    let scratch = Scratch::on_disk();
    fs::write(scratch.join("file"), "").unwrap();
    fs::set_permissions(scratch.join("file"), fs::Permissions::from_mode(0o4600)).unwrap();
    give_to_nobody(&scratch);
    assert_eq!(fs::metadata(scratch.join("file")).unwrap().mode() & 0o7777, 0o4600);
    let id = |flag: &str| {
        let outcome = Run::program("id").arg(flag).unprivileged().run().expect_code(0);
        outcome.stdout().trim().to_owned()
    };
    assert_ne!(id("-u"), "0");
    if run_as_root() {
        assert_eq!((id("-u"), id("-G")), (NOBODY.to_string(), NOBODY.to_string()));
    }
    let list = Run::program("ls")
        .current_dir(&*scratch)
        .unprivileged()
        .run()
        .expect_code(0);
    assert_eq!(list.stdout(), "file\n");
    realize().arg("--version").unprivileged().run().expect_code(0);
}

#[test]
fn a_program_can_see_mounts_of_its_own() {
    if !name_spaces_allowed() {
        return;
    }
    let scratch = Scratch::on_disk();
    let (from, to) = (scratch.dir("from"), scratch.dir("to"));
    fs::write(from.join("file"), "").unwrap();
    give_to_nobody(&scratch);
    let list = || {
        Run::program("ls")
            .arg(&to)
            .inside(format!("mount --bind {from:?} {to:?}"))
    };
    assert_eq!(list().run().expect_code(0).stdout(), "file\n");
    assert_eq!(list().unprivileged().run().expect_code(0).stdout(), "file\n");
    assert!(Manifest::of(&to).is_empty(), "nobody else sees them");
    list().inside("false").run().expect_code(1);
}

#[test]
fn what_its_owner_may_not_read_is_in_the_manifest_unchanged() {
    let scratch = Scratch::in_memory();
    let secret = scratch.dir("secret");
    fs::write(secret.join("file"), "text").unwrap();
    fs::set_permissions(secret.join("file"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let manifest = Manifest::of(&scratch);
    assert_eq!(manifest.get("secret").unwrap().mode, 0);
    assert!(matches!(
        manifest.get("secret/file"),
        Some(Entry {
            kind: Kind::File { bytes: 4, .. },
            mode: 0,
            ..
        })
    ));
    manifest.assert_same(&Manifest::of(&scratch), "before and after reading");
}
