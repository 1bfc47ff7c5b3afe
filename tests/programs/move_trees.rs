//! Whole trees and single files are moved by the built program, between file systems and within one.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use crate::support::*;
use rustix::fs::{XattrFlags, setxattr};

/// More than goes in a batch of small files.
const LARGE: usize = (5 << 20) + 7;

/// A source and a target, empty.
struct Ends {
    _scratches: Vec<Scratch>,
    source: PathBuf,
    target: PathBuf,
}

impl Ends {
    fn disk_to_memory() -> Self {
        Self::between(vec![Scratch::on_disk(), Scratch::in_memory()])
    }

    fn memory_to_disk() -> Self {
        Self::between(vec![Scratch::in_memory(), Scratch::on_disk()])
    }

    fn on_one_disk() -> Self {
        Self::between(vec![Scratch::on_disk()])
    }

    fn between(scratches: Vec<Scratch>) -> Self {
        Self {
            source: scratches[0].dir("source"),
            target: scratches[scratches.len() - 1].dir("target"),
            _scratches: scratches,
        }
    }

    /// Moves one to the other.
    fn run(&self) -> Run {
        realize().arg(&self.source).arg(&self.target)
    }

    /// Both ways: by copies and by renames.
    fn of_both_kinds() -> [Self; 2] {
        [Self::disk_to_memory(), Self::on_one_disk()]
    }
}

fn bytes(count: usize, seed: u8) -> Vec<u8> {
    (0..count)
        .map(|at| (at >> 8) as u8 ^ (at as u8).wrapping_mul(7) ^ seed)
        .collect()
}

fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Every attribute of everything in `dir`, and of itself, but for when it was read.
fn all_attributes(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        if m.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        let what = format!(
            "{:?}",
            (
                m.ino(),
                m.mode(),
                m.nlink(),
                m.uid(),
                m.gid(),
                m.size(),
                m.blocks(),
                times
            )
        );
        all.insert(path, what);
    }
    all
}

/// Panics with the first difference.
#[track_caller]
fn assert_unchanged(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) {
    assert!(before.keys().eq(after.keys()), "something came or went");
    for (path, attributes) in before {
        assert_eq!(attributes, &after[path], "{path:?}");
    }
}

/// An odd tree of which only the FIFO and the socket can't be moved.
fn movable_odd_tree(dir: &Path) {
    odd_tree(dir);
    if !run_as_root() {
        for name in ["0000", "0001", "0200"] {
            fs::remove_file(dir.join("modes").join(name)).unwrap();
        }
        for name in ["", "full", "empty"] {
            let path = dir.join("modes/read-only").join(name);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}

fn an_odd_tree_moves(ends: &Ends) {
    movable_odd_tree(&ends.source);
    let special = |entry: &Entry| matches!(entry.kind, Kind::Fifo | Kind::Socket);
    let before = Manifest::of(&ends.source);
    let sparse: BTreeMap<_, _> = fs::read_dir(ends.source.join("sparse"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name(), allocated_bytes(&entry.path())))
        .collect();

    let outcome = ends.run().run().expect_code(1);
    let moved = before.clone().retain(|_, entry| !special(entry));
    moved.assert_same(&Manifest::of(&ends.target), "the source before and the target after");
    for (name, allocated) in sparse {
        let now = allocated_bytes(&ends.target.join("sparse").join(&name));
        assert!(now <= allocated + 4096, "{name:?} had {allocated} bytes and has {now}");
    }
    let stays = |path: &[u8], entry: &Entry| special(entry) || path == b"kinds";
    before
        .retain(stays)
        .assert_same(&Manifest::of(&ends.source), "what is said to stay and what stays");
    for name in ["kinds/fifo", "kinds/socket"] {
        assert!(
            outcome
                .stderr()
                .lines()
                .any(|line| line.contains(name) && line.contains("FIFO")),
            "{outcome}"
        );
    }

    let again = ends.run().run().expect_code(1);
    assert!(
        again.stderr().contains("kinds/fifo") && again.stdout().contains("moved 0 files"),
        "{again}"
    );
    moved.assert_same(&Manifest::of(&ends.target), "after the first and the second run");

    for name in ["fifo", "socket"] {
        fs::remove_file(ends.source.join("kinds").join(name)).unwrap();
    }
    ends.run().run().expect_code(0);
    assert!(Manifest::of(&ends.source).is_empty());
}

#[test]
fn an_odd_tree_moves_from_disk_to_memory() {
    an_odd_tree_moves(&Ends::disk_to_memory());
}

#[test]
fn an_odd_tree_moves_from_memory_to_disk() {
    an_odd_tree_moves(&Ends::memory_to_disk());
}

#[test]
fn an_odd_tree_moves_within_a_disk_by_renames() {
    let ends = Ends::on_one_disk();
    fs::write(ends.source.join("probe"), "").unwrap();
    let number = ino(&ends.source.join("probe"));
    an_odd_tree_moves(&ends);
    assert_eq!(ino(&ends.target.join("probe")), number, "renamed, not copied");
}

#[test]
fn thousands_of_plain_files_move_and_a_second_run_finds_nothing() {
    for ends in [Ends::disk_to_memory(), Ends::memory_to_disk(), Ends::on_one_disk()] {
        plain_tree(&ends.source, 3000, 3000, 7);
        let before = Manifest::of(&ends.source);
        ends.run().run().expect_code(0);
        before.assert_same(&Manifest::of(&ends.target), "before and after");
        assert!(Manifest::of(&ends.source).is_empty());
        let again = ends.run().run().expect_code(0);
        assert_eq!(again.stdout(), "nothing to move\n");
        before.assert_same(&Manifest::of(&ends.target), "after the second run");
    }
}

#[test]
fn a_file_of_200_mb_moves() {
    let ends = Ends::disk_to_memory();
    fs::write(ends.source.join("film"), bytes(200_000_001, 3)).unwrap();
    let before = Manifest::of(&ends.source);
    ends.run().run().expect_code(0);
    before.assert_same(&Manifest::of(&ends.target), "before and after");
    assert!(Manifest::of(&ends.source).is_empty());
}

#[test]
fn holes_stay_holes_in_a_huge_file() {
    const TB: u64 = 1 << 40;
    const GB: u64 = 1 << 30;
    // Between file systems every byte is hashed, zeros too, so it is smaller there.
    for (ends, len) in [(Ends::on_one_disk(), TB), (Ends::memory_to_disk(), 2 * GB)] {
        let (from, to) = (ends.source.join("sparse"), ends.target.join("sparse"));
        let file = fs::File::create(&from).unwrap();
        file.set_len(len).unwrap();
        let places = [0, len / 3, len - 5];
        for place in places {
            file.write_all_at(b"data!", place).unwrap();
        }
        drop(file);
        let allocated = allocated_bytes(&from);
        ends.run().run().expect_code(0);
        assert!(!from.exists());
        assert_eq!(fs::metadata(&to).unwrap().len(), len);
        assert!(
            allocated_bytes(&to) <= allocated + 64 * 1024,
            "{}",
            allocated_bytes(&to)
        );
        let file = fs::File::open(&to).unwrap();
        for place in places {
            let mut found = [0; 5];
            file.read_exact_at(&mut found, place).unwrap();
            assert_eq!(&found, b"data!");
        }
    }
}

#[test]
fn several_sources_files_and_directories_move_into_one_directory() {
    for ends in Ends::of_both_kinds() {
        let source = |name: &str| ends.source.join(name);
        for dir in ["a", "b", "a/common", "b/common", "c"] {
            fs::create_dir(source(dir)).unwrap();
        }
        for (file, text) in [
            ("a/common/1", "1"),
            ("b/common/2", "2"),
            ("c/single", "3"),
            ("c/other", "stays"),
        ] {
            fs::write(source(file), text).unwrap();
        }
        let args = [source("a"), source("b/"), source("c/single"), ends.target.join("")];
        realize().args(args).run().expect_code(0);
        for (file, text) in [("common/1", "1"), ("common/2", "2"), ("single", "3")] {
            assert_eq!(fs::read_to_string(ends.target.join(file)).unwrap(), text);
        }
        let left = Manifest::of(&ends.source);
        let left: Vec<_> = left
            .entries()
            .keys()
            .map(|path| String::from_utf8_lossy(path))
            .collect();
        assert_eq!(
            left,
            ["a", "b", "c", "c/other"],
            "the roots and what was not named stay"
        );
        assert_eq!(Manifest::of(&ends.target).entries().len(), 4);
    }
}

#[test]
fn one_file_moves_into_a_directory_or_to_a_new_name() {
    for ends in Ends::of_both_kinds() {
        for (to, arrives) in [
            ("", "file"),
            ("new", "new"),
            ("./there/", "there/file"),
            ("made/", "made/file"),
        ] {
            fs::create_dir_all(ends.target.join("there")).unwrap();
            let from = ends.source.join("file");
            fs::write(&from, to).unwrap();
            let args = [&from, &ends.target.join(to)];
            if to == "made/" {
                // A directory that is still to be made.
                assert!(!ends.target.join("made").exists());
            }
            realize().args(args).run().expect_code(0);
            assert!(!from.exists());
            assert_eq!(fs::read_to_string(ends.target.join(arrives)).unwrap(), to);
        }
        assert_eq!(Manifest::of(&ends.target).entries().len(), 6);
    }
}

#[test]
fn a_link_named_as_source_moves_as_a_link_and_one_to_a_directory_names_the_directory() {
    for ends in Ends::of_both_kinds() {
        let apart = ends.source.join("apart");
        fs::create_dir(&apart).unwrap();
        fs::write(apart.join("file"), "text").unwrap();
        symlink("apart/file", ends.source.join("to file")).unwrap();
        symlink("nowhere", ends.source.join("dangling")).unwrap();
        symlink("apart", ends.source.join("to dir")).unwrap();
        for name in ["to file", "dangling"] {
            realize()
                .args([&ends.source.join(name), &ends.target])
                .run()
                .expect_code(0);
            assert!(fs::read_link(ends.target.join(name)).is_ok());
            assert!(fs::symlink_metadata(ends.source.join(name)).is_err());
        }
        assert_eq!(fs::read_to_string(apart.join("file")).unwrap(), "text");
        realize()
            .args([&ends.source.join("to dir"), &ends.target])
            .run()
            .expect_code(0);
        assert_eq!(fs::read_to_string(ends.target.join("file")).unwrap(), "text");
        assert!(fs::read_link(ends.source.join("to dir")).is_ok() && apart.is_dir());
    }
}

#[test]
fn a_missing_last_component_of_the_target_is_made() {
    for ends in Ends::of_both_kinds() {
        plain_tree(&ends.source, 20, 300, 1);
        let before = Manifest::of(&ends.source);
        let new = ends.target.join("new");
        realize().args([&ends.source, &new]).run().expect_code(0);
        before.assert_same(&Manifest::of(&new), "before and after");
    }
}

#[test]
fn emptied_directories_stay_with_keep_dirs() {
    for ends in Ends::of_both_kinds() {
        plain_tree(&ends.source, 100, 300, 1);
        fs::create_dir(ends.source.join("empty")).unwrap();
        let before = Manifest::of(&ends.source);
        ends.run().arg("--keep-dirs").run().expect_code(0);
        before.assert_same(&Manifest::of(&ends.target), "before and after");
        let names = |manifest: Manifest| manifest.entries().keys().cloned().collect::<Vec<_>>();
        let dirs = before.retain(|_, entry| entry.kind == Kind::Dir);
        assert_eq!(names(Manifest::of(&ends.source)), names(dirs));
    }
}

#[test]
fn a_copy_deletes_nothing_at_the_source() {
    for ends in Ends::of_both_kinds() {
        plain_tree(&ends.source, 100, 100_000, 1);
        odd_links(&ends.source);
        let attributes = || {
            let mut all = all_attributes(&ends.source);
            // The mark of the run came into it and went.
            all.remove(&ends.source);
            all
        };
        let before = attributes();
        let manifest = Manifest::of(&ends.source);
        for _ in 0..2 {
            ends.run().arg("--copy").run().expect_code(0);
            manifest.assert_same(&Manifest::of(&ends.target), "source and copy");
            assert_unchanged(&before, &attributes());
        }
        ends.run().run().expect_code(0);
        assert!(Manifest::of(&ends.source).is_empty(), "a move after a copy");
        manifest.assert_same(&Manifest::of(&ends.target), "after the move");
    }
}

#[test]
fn a_dry_run_writes_nothing_anywhere() {
    for ends in Ends::of_both_kinds() {
        movable_odd_tree(&ends.source);
        fs::write(ends.source.join(".set aside.realize-gone"), "a crash left it").unwrap();
        fs::write(ends.source.join("large"), bytes(LARGE, 1)).unwrap();
        for name in ["empty file", "large", ".large.realize-part", ".x.realize-part"] {
            fs::write(ends.target.join(name), "older").unwrap();
        }
        fs::create_dir(ends.target.join("names")).unwrap();
        let attributes = || {
            let mut all = all_attributes(&ends.source);
            all.extend(all_attributes(&ends.target));
            all
        };
        let before = attributes();
        let outcome = ends.run().arg("--dry-run").run();
        assert!(outcome.stdout().contains("would move"), "{outcome}");
        assert!(
            outcome.stdout().contains("replacing what is there: \"large\""),
            "{outcome}"
        );
        assert_unchanged(&before, &attributes());

        let missing = ends.target.join("missing");
        realize().arg("-n").args([&ends.source, &missing]).run();
        let file = ends.source.join("large");
        realize().arg("-n").args([&file, &missing]).run().expect_code(0);
        assert!(!missing.exists());
        assert_unchanged(&before, &attributes());
    }
}

#[test]
fn what_is_excluded_stays_and_is_no_failure() {
    for ends in Ends::of_both_kinds() {
        for dir in ["keep", "keep/deep", "skip"] {
            fs::create_dir(ends.source.join(dir)).unwrap();
        }
        for file in [
            "1.tmp",
            "1.txt",
            "keep/2.tmp",
            "keep/2.txt",
            "keep/deep/3.txt",
            "skip/4.txt",
            "keep/wanted.tmp",
        ] {
            fs::write(ends.source.join(file), file).unwrap();
        }
        let filters = ["--exclude", "*.tmp", "--include", "wanted.tmp", "--exclude", "/skip/"];
        ends.run().args(filters).run().expect_code(0);
        let files = |dir: &Path| -> Vec<_> {
            let files = Manifest::of(dir).retain(|_, entry| entry.kind != Kind::Dir);
            let names = files.entries().keys();
            names.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
        };
        assert_eq!(
            files(&ends.target),
            ["1.txt", "keep/2.txt", "keep/deep/3.txt", "keep/wanted.tmp"]
        );
        assert_eq!(files(&ends.source), ["1.tmp", "keep/2.tmp", "skip/4.txt"]);
        assert!(!ends.source.join("keep/deep").exists() && !ends.target.join("skip").exists());

        ends.run().args(["--include", "4.*"]).run().expect_code(0);
        assert_eq!(files(&ends.source), ["1.tmp", "keep/2.tmp"]);
        assert!(ends.target.join("skip/4.txt").exists());
    }
}

/// Files of which a copy loses something, each with what the program calls it.
fn files_that_lose(dir: &Path) -> Vec<(&'static str, &'static str)> {
    let write = |name: &str| {
        fs::write(dir.join(name), name).unwrap();
        dir.join(name)
    };
    fs::hard_link(write("link 1"), dir.join("link 2")).unwrap();
    fs::set_permissions(write("set-ID"), fs::Permissions::from_mode(0o4755)).unwrap();
    setxattr(write("attribute"), "user.note", b"text", XattrFlags::empty()).unwrap();
    let mut names = vec![
        ("link 1", "hard links"),
        ("link 2", "hard links"),
        ("set-ID", "set-user-ID"),
        ("attribute", "extended attributes"),
    ];
    if run_as_root() {
        chown(write("owner"), Some(NOBODY), None).unwrap();
        names.push(("owner", "the owner"));
    }
    // Too large for a batch.
    fs::write(dir.join("large"), bytes(LARGE, 1)).unwrap();
    fs::hard_link(dir.join("large"), dir.join("large too")).unwrap();
    names.extend([("large", "hard links"), ("large too", "hard links")]);
    names
}

#[test]
fn what_a_copy_would_lose_stays_when_strict() {
    let ends = Ends::disk_to_memory();
    let losing = files_that_lose(&ends.source);
    fs::write(ends.source.join("plain"), "plain").unwrap();
    let before = Manifest::of(&ends.source);
    let outcome = ends.run().arg("--strict").run().expect_code(1);
    let left = before.retain(|path, _| path != b"plain");
    left.assert_same(&Manifest::of(&ends.source), "what loses something and what stays");
    for (name, loss) in &losing {
        let said = |line: &str| line.contains(name) && line.contains(loss) && line.contains("stays");
        assert!(outcome.stderr().lines().any(said), "{name}: {outcome}");
    }
    assert_eq!(Manifest::of(&ends.target).entries().len(), 1, "only the plain one came");

    let outcome = ends.run().run().expect_code(0);
    left.assert_same(
        &Manifest::of(&ends.target).retain(|path, _| path != b"plain"),
        "moved without --strict",
    );
    for (_, loss) in losing {
        assert!(outcome.stderr().contains(loss), "{loss}: {outcome}");
    }
}

#[test]
fn a_rename_loses_nothing_even_when_strict() {
    let ends = Ends::on_one_disk();
    files_that_lose(&ends.source);
    let numbers = (ino(&ends.source.join("link 1")), ino(&ends.source.join("large")));
    let before = Manifest::of(&ends.source);
    ends.run().arg("--strict").run().expect_code(0);
    before.assert_same(&Manifest::of(&ends.target), "before and after");
    let target = |name: &str| fs::metadata(ends.target.join(name)).unwrap();
    assert_eq!((target("link 1").ino(), target("link 2").ino()), (numbers.0, numbers.0));
    assert_eq!(
        (target("large").ino(), target("large too").ino()),
        (numbers.1, numbers.1)
    );
    assert_eq!(target("set-ID").mode() & 0o7777, 0o4755);
}

#[test]
fn a_directory_keeps_its_sticky_bit() {
    for ends in Ends::of_both_kinds() {
        fs::create_dir(ends.source.join("shared")).unwrap();
        fs::write(ends.source.join("shared/file"), "text").unwrap();
        fs::set_permissions(ends.source.join("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
        let before = Manifest::of(&ends.source);
        ends.run().arg("--strict").run().expect_code(0);
        before.assert_same(&Manifest::of(&ends.target), "before and after");
    }
}

#[test]
fn what_a_directory_would_lose_is_told_and_it_stays_when_strict() {
    for ends in Ends::of_both_kinds() {
        let mut losing = vec![("set-ID", "set-user-ID"), ("attribute", "extended attributes")];
        if run_as_root() {
            losing.push(("owner", "the owner"));
        }
        for (name, _) in &losing {
            fs::create_dir(ends.source.join(name)).unwrap();
            fs::write(ends.source.join(name).join("file"), "text").unwrap();
        }
        fs::set_permissions(ends.source.join("set-ID"), fs::Permissions::from_mode(0o2755)).unwrap();
        setxattr(ends.source.join("attribute"), "user.note", b"text", XattrFlags::empty()).unwrap();
        if run_as_root() {
            chown(ends.source.join("owner"), Some(NOBODY), None).unwrap();
        }
        let outcome = ends.run().arg("--strict").run().expect_code(1);
        for (name, loss) in &losing {
            let said = |line: &str| line.contains(name) && line.contains(loss) && line.contains("stays");
            assert!(outcome.stderr().lines().any(said), "{name}: {outcome}");
            assert!(ends.source.join(name).is_dir(), "{name}");
            assert!(!ends.source.join(name).join("file").exists(), "{name}: {outcome}");
            assert!(ends.target.join(name).join("file").exists(), "{name}: {outcome}");
        }
        let outcome = ends.run().run().expect_code(0);
        for (name, loss) in &losing {
            assert!(outcome.stderr().contains(loss), "{loss}: {outcome}");
            assert!(!ends.source.join(name).exists(), "{name}");
        }
    }
}

#[test]
fn whatever_version_is_at_the_target_the_source_comes_through_and_goes() {
    let time = (1_500_000_000, 123);
    for ends in Ends::of_both_kinds() {
        for (size, kind) in [(900, "small"), (LARGE, "large")] {
            let (right, wrong) = (bytes(size, 1), bytes(size, 2));
            let mut last_differs = right.clone();
            *last_differs.last_mut().unwrap() ^= 1;
            let there = [
                ("shorter", &right[..size / 2], (1_400_000_000, 0)),
                ("equal", &right[..], time),
                ("equal but for time and mode", &right[..], (1_400_000_000, 0)),
                ("of equal size", &wrong[..], (1_400_000_000, 0)),
                ("of equal size and time", &last_differs[..], time),
                ("empty", &[][..], (1_400_000_000, 0)),
            ];
            for (name, bytes, time_there) in there {
                let (from, to) = (ends.source.join(name), ends.target.join(name));
                fs::write(&from, &right).unwrap();
                fs::set_permissions(&from, fs::Permissions::from_mode(0o640)).unwrap();
                set_mtime(&from, time);
                fs::write(&to, bytes).unwrap();
                set_mtime(&to, time_there);
            }
            let inode = |name: &str| ino(&ends.target.join(name));
            let equal = [inode("equal"), inode("equal but for time and mode")];
            let before = Manifest::of(&ends.source);
            let outcome = ends.run().run().expect_code(0);
            before.assert_same(&Manifest::of(&ends.target), &format!("{kind}: before and after"));
            assert!(Manifest::of(&ends.source).is_empty());
            assert!(outcome.stdout().contains("2 verified in place"), "{kind}: {outcome}");
            assert_eq!([inode("equal"), inode("equal but for time and mode")], equal);
        }
    }
}

#[test]
fn a_partial_that_an_earlier_run_left_is_used_for_what_is_right_in_it() {
    for ends in Ends::of_both_kinds() {
        for size in [900, LARGE] {
            let right = bytes(size, 1);
            let mut damaged = right.clone();
            damaged[size / 2] ^= 1;
            let too_long = [&right[..], b"and more"].concat();
            let partials = [
                ("beginning", &right[..size / 2]),
                ("complete", &right),
                ("damaged", &damaged),
                ("too long", &too_long),
                ("empty", b""),
            ];
            let partial = |name: &str| ends.target.join(format!(".{name}.realize-part"));
            for (name, bytes) in partials {
                fs::write(ends.source.join(name), &right).unwrap();
                fs::write(partial(name), bytes).unwrap();
            }
            let numbers: Vec<_> = partials.map(|(name, _)| ino(&partial(name))).into();
            let before = Manifest::of(&ends.source);
            ends.run().run().expect_code(0);
            before.assert_same(&Manifest::of(&ends.target), &format!("{size} bytes: before and after"));
            assert!(Manifest::of(&ends.source).is_empty());
            if size == LARGE {
                let now: Vec<_> = partials.map(|(name, _)| ino(&ends.target.join(name))).into();
                assert_eq!(now, numbers, "the partials were continued");
            }
            for (name, _) in partials {
                fs::remove_file(ends.target.join(name)).unwrap();
            }
        }
    }
}

#[test]
fn nothing_is_written_through_a_partial_that_is_somebodys() {
    for ends in Ends::of_both_kinds() {
        for size in [900, LARGE] {
            let right = bytes(size, 1);
            for name in ["hard", "link", "dir"] {
                fs::write(ends.source.join(name), &right).unwrap();
            }
            for victim in ["victim of hard", "victim of link"] {
                fs::write(ends.target.join(victim), "not to be touched").unwrap();
            }
            let partial = |name: &str| ends.target.join(format!(".{name}.realize-part"));
            fs::hard_link(ends.target.join("victim of hard"), partial("hard")).unwrap();
            symlink("victim of link", partial("link")).unwrap();
            fs::create_dir(partial("dir")).unwrap();
            fs::write(partial("dir").join("inside"), "not to be touched").unwrap();

            let outcome = ends.run().run().expect_code(1);
            for victim in ["victim of hard", "victim of link", ".dir.realize-part/inside"] {
                let text = fs::read_to_string(ends.target.join(victim)).unwrap();
                assert_eq!(text, "not to be touched", "{victim}");
            }
            assert!(fs::read(ends.target.join("hard")).unwrap() == right);
            assert!(!ends.source.join("hard").exists());
            assert!(fs::symlink_metadata(partial("hard")).is_err(), "the name alone goes");
            for name in ["link", "dir"] {
                assert!(fs::read(ends.source.join(name)).unwrap() == right, "it stays");
                assert!(!ends.target.join(name).exists());
                assert!(outcome.stderr().contains(&format!("{name:?} stays")), "{outcome}");
                assert!(
                    fs::symlink_metadata(partial(name)).is_ok(),
                    "no partial of ours is a {name}"
                );
            }
            fs::remove_file(partial("link")).unwrap();
            fs::remove_dir_all(partial("dir")).unwrap();
            ends.run().run().expect_code(0);
            for name in ["hard", "link", "dir"] {
                assert!(fs::read(ends.target.join(name)).unwrap() == right);
                fs::remove_file(ends.target.join(name)).unwrap();
            }
            for victim in ["victim of hard", "victim of link"] {
                fs::remove_file(ends.target.join(victim)).unwrap();
            }
            assert!(Manifest::of(&ends.source).is_empty() && Manifest::of(&ends.target).is_empty());
        }
    }
}

#[test]
fn a_name_that_two_sources_have_is_moved_from_neither_however_often_it_is_tried() {
    for ends in Ends::of_both_kinds() {
        let (a, b) = (ends.source.join("a"), ends.source.join("b"));
        for (dir, text) in [(&a, "from a"), (&b, "from b")] {
            fs::create_dir_all(dir.join("below")).unwrap();
            fs::write(dir.join("below/same"), text).unwrap();
            fs::write(dir.join(text), text).unwrap();
        }
        // A file in one and a directory in the other.
        fs::write(a.join("kind"), "file").unwrap();
        fs::create_dir(b.join("kind")).unwrap();
        fs::write(b.join("kind/file"), "in a directory").unwrap();
        for _ in 0..2 {
            let outcome = realize().args([&a, &b, &ends.target]).run().expect_code(1);
            for name in ["below/same", "kind"] {
                let said = |line: &str| line.contains(name) && line.contains("another source has this name too");
                assert!(outcome.stderr().lines().any(said), "{outcome}");
            }
            assert!(
                !outcome.stderr().contains("no such file"),
                "nothing below is tried: {outcome}"
            );
            for (path, text) in [
                (a.join("below/same"), "from a"),
                (b.join("below/same"), "from b"),
                (a.join("kind"), "file"),
                (b.join("kind/file"), "in a directory"),
                (ends.target.join("from a"), "from a"),
                (ends.target.join("from b"), "from b"),
            ] {
                assert_eq!(
                    fs::read_to_string(&path).ok().as_deref(),
                    Some(text),
                    "{path:?} {outcome}"
                );
            }
            assert!(!ends.target.join("below/same").exists() && !ends.target.join("kind").exists());
        }
        // The same of single files.
        let args = [a.join("below/same"), b.join("below/same"), ends.target.clone()];
        realize().args(args).run().expect_code(1);
        assert!(!ends.target.join("same").exists());
        assert!(a.join("below/same").exists() && b.join("below/same").exists());
    }
}

#[test]
fn a_source_that_a_crash_left_set_aside_is_moved_under_its_own_name() {
    for ends in Ends::of_both_kinds() {
        fs::write(ends.source.join(".file.realize-gone"), "text").unwrap();
        let long = "n".repeat(250);
        fs::create_dir(ends.source.join(".realize-gone")).unwrap();
        fs::write(ends.source.join(".realize-gone").join(&long), "long").unwrap();
        ends.run().run().expect_code(0);
        assert_eq!(fs::read_to_string(ends.target.join("file")).unwrap(), "text");
        assert_eq!(fs::read_to_string(ends.target.join(&long)).unwrap(), "long");
        assert!(Manifest::of(&ends.source).is_empty());

        // Named on the command line, it is known by its own name.
        fs::write(ends.source.join(".single.realize-gone"), "single").unwrap();
        realize()
            .args([&ends.source.join("single"), &ends.target])
            .run()
            .expect_code(0);
        assert_eq!(fs::read_to_string(ends.target.join("single")).unwrap(), "single");

        // Unless a new file has that name by now.
        fs::write(ends.source.join(".file.realize-gone"), "older").unwrap();
        fs::write(ends.source.join("file"), "newer").unwrap();
        ends.run().run().expect_code(1);
        assert_eq!(fs::read_to_string(ends.target.join("file")).unwrap(), "newer");
        assert_eq!(
            fs::read_to_string(ends.source.join(".file.realize-gone")).unwrap(),
            "older"
        );
    }
}
