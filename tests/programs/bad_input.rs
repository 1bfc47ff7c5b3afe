//! Whatever is wrong with the files, the directories, the disks or the command line: nothing is lost, and it is said.

#![allow(clippy::disallowed_types, reason = "tests see the host as it is")]

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::support::*;
use rustix::process::Signal;

/// Takes long enough to be met on its way, and no space: all but its ends is a hole.
const SLOW_BYTES: u64 = 1 << 30;

/// How long a condition is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A source and a target, empty.
struct Ends {
    scratches: Vec<Scratch>,
    source: PathBuf,
    target: PathBuf,
}

impl Ends {
    fn two_file_systems() -> Self {
        Self::between(vec![Scratch::in_memory(), Scratch::on_disk()])
    }

    fn one_disk() -> Self {
        Self::between(vec![Scratch::on_disk()])
    }

    /// Where files are copied, and where they are renamed.
    fn of_both_kinds() -> [Self; 2] {
        [Self::two_file_systems(), Self::one_disk()]
    }

    fn between(scratches: Vec<Scratch>) -> Self {
        Self {
            source: scratches[0].dir("source"),
            target: scratches[scratches.len() - 1].dir("target"),
            scratches,
        }
    }

    fn run(&self) -> Run {
        realize().arg(&self.source).arg(&self.target)
    }

    /// Starts a move of the file `name`, which takes a while, and stops it with SIGSTOP halfway.
    fn stopped_halfway(&self, name: &str) -> Running {
        slow_file(&self.source.join(name));
        let partial = self.target.join(format!(".{name}.realize-part"));
        let running = self.run().start();
        wait_for("the partial", || partial.exists());
        stop(&running);
        assert!(
            !self.target.join(name).exists(),
            "too fast for this test: make the file larger"
        );
        running
    }

    fn give_to_nobody(&self) {
        self.scratches.iter().for_each(|scratch| give_to_nobody(scratch));
    }
}

fn slow_file(path: &Path) {
    let mut file = File::create(path).unwrap();
    file.write_all(b"beginning").unwrap();
    file.set_len(SLOW_BYTES).unwrap();
}

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "{what} never came");
        std::thread::yield_now();
    }
}

/// Stops all threads of the program.
fn stop(running: &Running) {
    running.signal(Signal::STOP);
    let threads = PathBuf::from(format!("/proc/{}/task", running.id()));
    wait_for("the stop", || {
        let mut stats = fs::read_dir(&threads).unwrap();
        stats.all(|thread| {
            let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
            // "NUMBER (NAME) STATE …"
            stat.rsplit(") ")
                .next()
                .is_none_or(|rest| rest.is_empty() || rest.starts_with('T'))
        })
    });
}

fn go_on(running: Running) -> Outcome {
    running.signal(Signal::CONT);
    running.wait()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|error| panic!("{:?}: {error}", path.as_ref()))
}

/// That a line on standard error names `name`, says that it stays, and says `why`.
#[track_caller]
fn assert_stays(outcome: &Outcome, name: &str, why: &str) {
    let said = |line: &str| line.contains(name) && line.contains("stays") && line.contains(why);
    assert!(outcome.stderr().lines().any(said), "{name} stays: {why}?\n{outcome}");
}

#[test]
fn what_cannot_be_read_stays_and_the_rest_moves() {
    for ends in Ends::of_both_kinds() {
        fs::write(ends.source.join("secret file"), "secret").unwrap();
        fs::create_dir(ends.source.join("secret directory")).unwrap();
        fs::write(ends.source.join("secret directory/file"), "secret").unwrap();
        fs::write(ends.source.join("plain"), "plain").unwrap();
        mode(&ends.source.join("secret file"), 0o000);
        mode(&ends.source.join("secret directory"), 0o000);
        ends.give_to_nobody();
        let secret = Manifest::of(&ends.source).retain(|path, _| path != b"plain");
        let outcome = ends.run().unprivileged().run().expect_code(1);
        for name in ["secret file", "secret directory"] {
            assert_stays(&outcome, name, "chmod");
        }
        secret.assert_same(&Manifest::of(&ends.source), "before and after");
        assert_eq!(read(ends.target.join("plain")), "plain");
        assert!(!ends.target.join("secret file").exists());
    }
}

#[test]
fn what_cannot_be_deleted_stays() {
    for ends in Ends::of_both_kinds() {
        let dir = ends.source.join("read-only");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), "text").unwrap();
        fs::write(ends.source.join("plain"), "plain").unwrap();
        mode(&dir, 0o555);
        ends.give_to_nobody();
        let before = Manifest::of(&ends.source).retain(|path, _| path != b"plain");
        let outcome = ends.run().unprivileged().run().expect_code(1);
        assert_stays(&outcome, "read-only/file", "chmod");
        before.assert_same(&Manifest::of(&ends.source), "before and after");
        assert!(ends.target.join("plain").exists());
        for dir in [dir, ends.target.join("read-only")] {
            mode(&dir, 0o755);
        }
        ends.run().unprivileged().run().expect_code(0);
        assert_eq!(read(ends.target.join("read-only/file")), "text");
    }
}

#[test]
fn a_source_mounted_read_only_is_kept_and_can_be_copied() {
    if !name_spaces_allowed() {
        return;
    }
    let ends = Ends::two_file_systems();
    fs::write(ends.source.join("file"), "text").unwrap();
    let (source, target) = (&ends.source, &ends.target);
    let read_only = format!("mount --bind {source:?} {source:?}; mount -o remount,bind,ro {source:?}");
    let outcome = ends.run().inside(&read_only).run().expect_code(1);
    assert_stays(&outcome, "file", "remount it for writing");
    assert_eq!(read(source.join("file")), "text");
    ends.run().arg("--copy").inside(&read_only).run().expect_code(0);
    assert_eq!(
        (read(source.join("file")), read(target.join("file"))),
        ("text".into(), "text".into())
    );
}

#[test]
fn a_target_that_cannot_be_written_to_loses_no_source() {
    let check = |ends: &Ends, outcome: Outcome| {
        assert!(matches!(outcome.status.code(), Some(1 | 2)), "{outcome}");
        assert!(!outcome.stderr().is_empty());
        assert_eq!(read(ends.source.join("dir/file")), "text");
        assert!(ends.source.join("large").exists());
    };
    for ends in Ends::of_both_kinds() {
        fs::create_dir(ends.source.join("dir")).unwrap();
        fs::write(ends.source.join("dir/file"), "text").unwrap();
        fs::write(ends.source.join("large"), vec![1; 1 << 20]).unwrap();
        if name_spaces_allowed() {
            let target = &ends.target;
            let read_only = format!("mount --bind {target:?} {target:?}; mount -o remount,bind,ro {target:?}");
            check(&ends, ends.run().inside(read_only).run());
        }
        ends.give_to_nobody();
        mode(&ends.target, 0o555);
        check(&ends, ends.run().unprivileged().run());
        assert!(Manifest::of(&ends.target).is_empty());
        mode(&ends.target, 0o755);
        ends.run().unprivileged().run().expect_code(0);
    }
}

#[test]
fn what_belongs_in_a_directory_that_cannot_be_made_stays_and_the_rest_moves() {
    for ends in Ends::of_both_kinds() {
        fs::create_dir_all(ends.source.join("closed/new/below")).unwrap();
        fs::write(ends.source.join("closed/new/file"), "text").unwrap();
        fs::write(ends.source.join("closed/new/below/large"), vec![1; 1 << 20]).unwrap();
        fs::create_dir(ends.source.join("open")).unwrap();
        fs::write(ends.source.join("open/file"), "text").unwrap();
        fs::create_dir(ends.target.join("closed")).unwrap();
        ends.give_to_nobody();
        mode(&ends.target.join("closed"), 0o555);
        let closed = Manifest::of(&ends.source).retain(|path, _| path.starts_with(b"closed"));
        let outcome = ends.run().unprivileged().run().expect_code(1);
        assert_stays(&outcome, "closed/new", "Permission denied");
        for name in ["closed/new/file", "closed/new/below", "closed/new/below/large"] {
            assert_stays(&outcome, name, "its directory could not be made");
        }
        closed.assert_same(&Manifest::of(&ends.source), "before and after");
        assert_eq!(read(ends.target.join("open/file")), "text");
        mode(&ends.target.join("closed"), 0o755);
        ends.run().unprivileged().run().expect_code(0);
        assert!(ends.target.join("closed/new/below/large").exists());
    }
}

#[test]
fn a_file_that_somebody_has_open_for_writing_stays_until_it_is_closed() {
    for ends in Ends::of_both_kinds() {
        let (small, large) = (ends.source.join("small"), ends.source.join("large"));
        let mut open: Vec<File> = [&small, &large].map(|path| File::create(path).unwrap()).into();
        open[0].write_all(b"so far").unwrap();
        open[1].write_all(&[1; 1 << 20]).unwrap();
        let before = Manifest::of(&ends.source);
        let outcome = ends.run().run().expect_code(1);
        for name in ["small", "large"] {
            assert_stays(&outcome, name, "open for writing");
        }
        before.assert_same(&Manifest::of(&ends.source), "before and after");
        assert!(Manifest::of(&ends.target).is_empty());
        drop(open);
        ends.run().run().expect_code(0);
        before.assert_same(&Manifest::of(&ends.target), "before and after it was closed");
    }
}

#[test]
fn a_file_that_somebody_has_mapped_for_writing_stays() {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    for ends in Ends::of_both_kinds() {
        let path = ends.source.join("mapped");
        fs::write(&path, vec![1; 8192]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping of a file that nobody cuts while it is mapped; it is not reached through any reference.
        let mapped = unsafe { mmap(std::ptr::null_mut(), 8192, protection, flags, &file, 0) }.unwrap();
        drop(file);
        let outcome = ends.run().run().expect_code(1);
        assert_stays(&outcome, "mapped", "open for writing");
        assert!(path.exists() && Manifest::of(&ends.target).is_empty());
        // SAFETY: mapped above, with this length, and not used any more.
        unsafe { munmap(mapped, 8192) }.unwrap();
        ends.run().run().expect_code(0);
        assert!(!path.exists());
    }
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_stays() {
    let ends = Ends::two_file_systems();
    let running = ends.stopped_halfway("film");
    let path = ends.source.join("film");
    let writer = std::thread::spawn({
        let path = path.clone();
        // Held back until the lease is given up.
        move || {
            OpenOptions::new()
                .append(true)
                .open(path)
                .unwrap()
                .write_all(b"more")
                .unwrap()
        }
    });
    let blocked = format!("/proc/{}/fdinfo", running.id());
    wait_for("a broken lease", || {
        let leases = fs::read_dir(&blocked).unwrap();
        leases.flatten().any(|fd| {
            let info = fs::read_to_string(fd.path()).unwrap_or_default();
            info.lines()
                .any(|line| line.contains("LEASE") && line.contains("BREAKING"))
        })
    });
    let outcome = go_on(running).expect_code(1);
    writer.join().unwrap();
    assert_stays(&outcome, "film", "open for writing");
    assert_eq!(fs::metadata(&path).unwrap().len(), SLOW_BYTES + 4);
    assert!(!ends.target.join("film").exists(), "nothing torn is published");
    ends.run().run().expect_code(0);
    assert_eq!(fs::metadata(ends.target.join("film")).unwrap().len(), SLOW_BYTES + 4);
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_not_deleted() {
    let ends = Ends::two_file_systems();
    let running = ends.stopped_halfway("film");
    let (path, new) = (ends.source.join("film"), ends.scratches[0].join("new"));
    fs::write(&new, "the replacement").unwrap();
    fs::rename(&new, &path).unwrap();
    let outcome = go_on(running).expect_code(1);
    assert_stays(&outcome, "film", "");
    assert_eq!(read(&path), "the replacement");
    let left = Manifest::of(&ends.source);
    assert_eq!(left.entries().len(), 1, "under its own name alone: {left:?}");
}

#[test]
fn a_file_that_is_removed_while_it_is_read_does_no_harm() {
    let ends = Ends::two_file_systems();
    let running = ends.stopped_halfway("film");
    fs::remove_file(ends.source.join("film")).unwrap();
    let outcome = go_on(running);
    assert!(matches!(outcome.status.code(), Some(0 | 1)), "{outcome}");
    assert!(Manifest::of(&ends.source).is_empty());
    let final_file = fs::metadata(ends.target.join("film"));
    assert!(final_file.is_ok_and(|file| file.len() == SLOW_BYTES) || outcome.status.code() == Some(1));
}

#[test]
fn what_appears_at_the_target_meanwhile_is_not_overwritten() {
    let ends = Ends::two_file_systems();
    let running = ends.stopped_halfway("film");
    fs::write(ends.target.join("film"), "somebody else's").unwrap();
    let outcome = go_on(running).expect_code(1);
    assert_stays(&outcome, "film", "at the target");
    assert_eq!(read(ends.target.join("film")), "somebody else's");
    assert_eq!(fs::metadata(ends.source.join("film")).unwrap().len(), SLOW_BYTES);
}

#[test]
fn what_changes_at_the_target_while_it_is_being_replaced_is_not_overwritten() {
    let ends = Ends::two_file_systems();
    let older = ends.target.join("film");
    fs::write(&older, "older").unwrap();
    slow_file(&ends.source.join("film"));
    let running = ends.run().start();
    wait_for("the partial", || ends.target.join(".film.realize-part").exists());
    stop(&running);
    assert_eq!(read(&older), "older", "too fast for this test");
    fs::write(&older, "newer than what was expected").unwrap();
    let outcome = go_on(running).expect_code(1);
    assert_stays(&outcome, "film", "at the target");
    assert_eq!(read(&older), "newer than what was expected");
    assert!(ends.source.join("film").exists());
}

#[test]
fn directories_that_vanish_do_not_stop_the_rest() {
    let ends = Ends::two_file_systems();
    let truth = |path: &[u8]| path.first() != Some(&b'z');
    for dir in ["a", "z"] {
        fs::create_dir(ends.source.join(dir)).unwrap();
    }
    many_files(&ends.source.join("a"), 6000);
    many_files(&ends.source.join("z"), 100);
    let before = Manifest::of(&ends.source).retain(|path, _| truth(path));
    let running = ends.run().start();
    wait_for("the first file", || ends.target.join("a/000000").exists());
    stop(&running);
    let vanished = fs::read_dir(ends.source.join("z")).unwrap().count();
    fs::remove_dir_all(ends.source.join("z")).unwrap();
    let outcome = go_on(running);
    assert!(matches!(outcome.status.code(), Some(0 | 1)), "{outcome}");
    assert_eq!(vanished, 100, "too fast for this test");
    let arrived = Manifest::of(&ends.target).retain(|path, _| truth(path));
    before.assert_same(&arrived, "what did not vanish");
    assert!(Manifest::of(&ends.source).is_empty());
}

#[test]
fn sources_inside_one_another_are_refused_before_anything_is_made() {
    let disk = Scratch::on_disk();
    let (outer, other) = (disk.dir("outer"), disk.dir("other"));
    let inner = outer.join("sub/inner");
    fs::create_dir_all(&inner).unwrap();
    fs::write(inner.join("file"), "text").unwrap();
    let target = disk.join("target");
    for [first, second] in [[&outer, &inner], [&inner, &outer]] {
        let outcome = realize().args([&other, first, second, &target]).run().expect_code(2);
        let names = [
            format!("{:?}", inner.display().to_string()),
            format!("{:?}", outer.display().to_string()),
        ];
        assert!(names.iter().all(|name| outcome.stderr().contains(name)), "{outcome}");
        assert!(!target.exists());
    }
    let outcome = realize()
        .args([&outer, &inner.join("file"), &target])
        .run()
        .expect_code(2);
    assert!(outcome.stderr().contains("moved whole"), "{outcome}");
    assert!(!target.exists() && inner.join("file").exists());
}

#[test]
fn a_run_that_is_refused_says_which_source_it_is_and_leaves_no_target_behind() {
    let ends = Ends::two_file_systems();
    let running = ends.stopped_halfway("film");
    let other = ends.scratches[1].dir("other");
    fs::write(other.join("file"), "text").unwrap();
    let target = ends.scratches[1].join("not there");
    let outcome = realize().args([&other, &ends.source, &target]).run().expect_code(13);
    let name = format!("{:?}: the source is being moved by", ends.source.display().to_string());
    assert!(outcome.stderr().contains(&name), "{outcome}");
    assert!(!target.exists(), "{outcome}");
    drop(running);
}

#[test]
fn a_second_run_on_a_source_says_who_is_at_it() {
    let ends = Ends::two_file_systems();
    let running = ends.stopped_halfway("film");
    let other = ends.scratches[1].dir("other");
    for target in [&ends.target, &other] {
        let second = realize().args([&ends.source, target]).run().expect_code(13);
        assert!(second.stderr().contains(&running.id().to_string()), "{second}");
    }
    assert!(Manifest::of(&other).is_empty());
    go_on(running).expect_code(0);
    assert!(ends.target.join("film").exists());
}

/// That the command is refused with exit code 2, says `why`, and changes nothing in `root`.
#[track_caller]
fn assert_refused(run: Run, root: &Path, why: &str) {
    // The mark of a run may have come into a directory and gone, so their times say nothing.
    let state = || {
        let manifest = Manifest::of(root);
        let files = manifest.clone().retain(|_, entry| entry.kind != Kind::Dir);
        (files, manifest.entries().keys().cloned().collect::<Vec<_>>())
    };
    let before = state();
    let outcome = run.run().expect_code(2);
    assert!(outcome.stderr().contains(why), "{why}?\n{outcome}");
    assert!(before == state(), "something was touched\n{outcome}");
}

#[test]
fn a_source_and_a_target_that_are_one_or_one_inside_the_other_are_refused() {
    let disk = Scratch::on_disk();
    let a = disk.dir("a");
    fs::create_dir_all(a.join("sub/deep")).unwrap();
    fs::write(a.join("file"), "text").unwrap();
    fs::write(a.join("sub/file"), "text").unwrap();
    fs::write(a.join("sub/deep/file"), "text").unwrap();
    symlink(&a, disk.join("link")).unwrap();
    let link = disk.join("link");
    let sub = |dir: &Path| dir.join("sub");
    let deep = |dir: &Path| dir.join("sub/deep");
    let run = |from: &Path, to: &Path| realize().args([from, to]);
    for from in [&a, &link, &a.join("../a/."), &a.join("")] {
        for to in [&a, &link] {
            assert_refused(run(from, to), &disk, "are the same directory");
            assert_refused(run(from, &sub(to)), &disk, "the target is inside the source");
            assert_refused(run(from, &deep(to)), &disk, "the target is inside the source");
            assert_refused(run(&deep(from), to), &disk, "the source is inside the target");
            assert_refused(run(from, to).arg("--copy"), &disk, "are the same directory");
            assert_refused(
                run(from, &sub(to)).arg("--dry-run"),
                &disk,
                "the target is inside the source",
            );
        }
    }
    // One of several.
    let other = disk.dir("other");
    assert_refused(
        realize().args([&other, &a, &sub(&a)]),
        &disk,
        "the target is inside the source",
    );

    if !name_spaces_allowed() {
        return;
    }
    let bound = disk.dir("bound");
    let bind = format!("mount --bind {a:?} {bound:?}");
    for (from, to) in [(&a, &bound), (&bound, &a)] {
        assert_refused(run(from, to).inside(&bind), &disk, "are the same directory");
        assert_refused(
            run(from, &sub(to)).inside(&bind),
            &disk,
            "the target is inside the source",
        );
        assert_refused(
            run(&sub(from), to).inside(&bind),
            &disk,
            "the source is inside the target",
        );
    }
    // What is mounted is below the other, though the mount point is not.
    let bind = format!("mount --bind {:?} {bound:?}", sub(&a));
    assert_refused(run(&a, &bound).inside(&bind), &disk, "the target is inside the source");
    assert_refused(run(&bound, &a).inside(&bind), &disk, "the source is inside the target");
}

#[test]
fn sources_that_are_one_or_one_inside_the_other_lose_nothing() {
    let ends = Ends::one_disk();
    fs::create_dir(ends.source.join("sub")).unwrap();
    fs::write(ends.source.join("sub/file"), "text").unwrap();
    symlink(&ends.source, ends.scratches[0].join("link")).unwrap();
    let (source, link) = (ends.source.clone(), ends.scratches[0].join("link"));
    for other in [&source, &link] {
        realize().args([&source, other, &ends.target]).run().expect_code(2);
        realize().args([&source, &other.join("sub"), &ends.target]).run();
        let there = [
            source.join("sub/file"),
            ends.target.join("sub/file"),
            ends.target.join("file"),
        ];
        assert!(there.iter().any(|path| path.exists()));
    }
}

#[test]
fn a_directory_or_file_that_is_at_both_ends_by_a_bind_mount_is_left_alone() {
    if !name_spaces_allowed() {
        return;
    }
    for ends in Ends::of_both_kinds() {
        let (source, target) = (&ends.source, &ends.target);
        for dir in [source.join("sub"), target.join("sub")] {
            fs::create_dir(dir).unwrap();
        }
        let at = |dir: &Path, name: &str| dir.join(name).to_str().unwrap().to_owned();
        let bind =
            |from: &Path, to: &Path, name: &str| format!("mount --bind '{}' '{}'\n", at(from, name), at(to, name));
        for (from, to) in [(source, target), (target, source)] {
            fs::write(from.join("sub/small"), "small").unwrap();
            fs::write(from.join("sub/large"), vec![1; 1 << 20]).unwrap();
            fs::write(source.join("plain"), "plain").unwrap();
            for name in ["single", "single large"] {
                fs::write(from.join(name), vec![2; if name == "single" { 10 } else { 1 << 20 }]).unwrap();
                fs::write(to.join(name), "covered by the mount").unwrap();
            }
            let binds: String = ["sub", "single", "single large"]
                .map(|name| bind(from, to, name))
                .concat();
            let what = |path: &[u8], _: &Entry| path.starts_with(b"sub/") || path.starts_with(b"single");
            let (before, covered) = (Manifest::of(from).retain(what), Manifest::of(to).retain(what));
            for _ in 0..2 {
                ends.run().inside(&binds).run().expect_code(1);
                before.assert_same(&Manifest::of(from).retain(what), "what is at both ends");
                covered.assert_same(&Manifest::of(to).retain(what), "what the mounts cover");
            }
            assert_eq!(read(target.join("plain")), "plain");
            assert!(!source.join("plain").exists());
            for dir in [from, to] {
                for name in ["single", "single large", "plain", "sub/small", "sub/large"] {
                    fs::remove_file(dir.join(name)).ok();
                }
            }
        }
    }
}

#[test]
fn a_file_moved_onto_itself_is_never_lost() {
    let disk = Scratch::on_disk();
    let (a, b) = (disk.dir("a"), disk.dir("b"));
    symlink(&a, disk.join("link")).unwrap();
    let link = disk.join("link");
    let bound = disk.dir("bound");
    for content in [vec![1; 100], vec![2; 1 << 20]] {
        let x = a.join("x");
        fs::write(&x, &content).unwrap();
        let is_there = |path: &Path| fs::read(path).is_ok_and(|found| found == content);
        for to in [
            a.join(""),
            a.join("x"),
            a.clone(),
            link.clone(),
            link.join("x"),
            a.join("../a/x"),
        ] {
            for from in [&x, &link.join("x")] {
                let outcome = realize().args([from, &to]).run();
                assert!(is_there(&x), "{outcome}");
                outcome.expect_code(1);
            }
        }
        if name_spaces_allowed() {
            let bind = format!("mount --bind {a:?} {bound:?}");
            for to in [&bound, &bound.join("x")] {
                let outcome = realize().args([&x, to]).inside(&bind).run();
                assert!(is_there(&x), "{outcome}");
                outcome.expect_code(1);
            }
            let placeholder = b.join("x");
            fs::write(&placeholder, "").unwrap();
            let bind = format!("mount --bind {x:?} {placeholder:?}");
            let outcome = realize().args([&x, &b]).inside(&bind).run();
            assert!(is_there(&x), "{outcome}");
            outcome.expect_code(1);
            fs::remove_file(placeholder).unwrap();
        }
        // Its own other name: neither goes, for a run the other way could be taking the other one.
        for other in [a.join("y"), b.join("x")] {
            fs::hard_link(&x, &other).unwrap();
            realize().args([&x, &other]).run().expect_code(1);
            assert!(is_there(&other) && is_there(&x));
            fs::remove_file(&other).unwrap();
        }
        // A name that differs in case is another name here; the file has to be under one of them.
        realize().args([&x, &a.join("X")]).run();
        assert!(is_there(&x) || is_there(&a.join("X")));
        fs::rename(a.join("X"), &x).ok();
        // A link to it.
        symlink(&x, b.join("to x")).unwrap();
        realize().args([&x, &b.join("to x")]).run();
        assert!(is_there(&x) || is_there(&b.join("to x")));
        for left in [x, b.join("to x")] {
            fs::remove_file(left).ok();
        }
    }
}

#[test]
fn a_full_target_keeps_the_sources_and_the_same_command_completes_once_there_is_space() {
    if !name_spaces_allowed() {
        return;
    }
    for (count, max_bytes) in [(300, 50_000), (1, 9_000_000), (40, 900_000)] {
        let disk = Scratch::on_disk();
        let (source, target, first, last) = (
            disk.dir("source"),
            disk.dir("target"),
            disk.dir("first"),
            disk.dir("last"),
        );
        let kept = disk.dir("kept");
        if count == 1 {
            fs::write(source.join("film"), vec![3; max_bytes]).unwrap();
        } else {
            plain_tree(&source, count, max_bytes, 5);
        }
        let truth = Manifest::of(&source).retain(|_, entry| entry.kind != Kind::Dir);
        let script = r#"
            "$1" "$2" "$3" >&2 || echo $?
            cp -a "$3/." "$4"
            cp -a "$2/." "$5"
            rm "$3/ballast"
            "$1" "$2" "$3" >&2
            cp -a "$3/." "$6"
        "#;
        let program = env!("CARGO_BIN_EXE_realize");
        let outcome = Run::program("sh")
            .args(["-ec", script, "sh", program])
            .args([&source, &target, &first, &kept, &last])
            .inside(format!(
                "mount -t tmpfs -o size=40m none {target:?}; head -c 38M /dev/zero > {target:?}/ballast"
            ))
            .run()
            .expect_code(0);
        assert_eq!(outcome.stdout(), "1\n", "{outcome}");
        assert!(outcome.stderr().contains("No space left"), "{outcome}");
        assert!(outcome.stderr().contains("free some space"), "{outcome}");
        let (first, kept) = (Manifest::of(&first), Manifest::of(&kept));
        for (path, entry) in truth.entries() {
            let somewhere = [&first, &kept].iter().any(|manifest| manifest.get(path) == Some(entry));
            assert!(
                somewhere,
                "lost while the target was full: {}",
                String::from_utf8_lossy(path)
            );
        }
        let partials = first.entries().keys().filter(|path| path.ends_with(b".realize-part"));
        assert!(
            max_bytes > 64 * 1024 || partials.count() == 0,
            "no small partial is left"
        );
        truth.assert_same(
            &Manifest::of(&last).retain(|_, entry| entry.kind != Kind::Dir),
            "sent and arrived",
        );
        assert!(Manifest::of(&source).is_empty());
    }
}

#[test]
fn a_command_line_that_cannot_be_carried_out_touches_nothing() {
    let disk = Scratch::on_disk();
    let dir = disk.dir("dir");
    fs::write(dir.join("file"), "text").unwrap();
    fs::write(disk.join("a file"), "text").unwrap();
    symlink("nowhere", disk.join("dangling")).unwrap();
    let command_lines: [(&[&str], &str); 13] = [
        (&["dir", "no/such/parent"], "mkdir -p"),
        (&["a file", "no/such"], "mkdir -p"),
        (&["dir", "nas:films"], "./"),
        (&["nas:films", "dir"], "HOST::DIR"),
        (&["", "dir"], "empty path"),
        (&["dir", ""], "empty path"),
        (&["dir", "a file"], "not a directory"),
        (&["a file", "a file/"], "not a directory"),
        (&["missing", "dir"], "no such file"),
        (&["missing", "a file", "dir"], "no such file"),
        (&["a file/", "dir"], "not a directory"),
        (&["dir", "dangling"], "symbolic link"),
        (&["dir", "a file/below"], "not a directory"),
    ];
    for (args, why) in command_lines {
        let outcome = realize().args(args).current_dir(&*disk).run().expect_code(2);
        assert!(
            outcome.stderr().to_lowercase().contains(&why.to_lowercase()),
            "{args:?}: {why}?\n{outcome}"
        );
    }
    for args in [
        &[][..],
        &["dir"],
        &["--nonsense", "dir", "new"],
        &["--exclude", "{a", "dir", "new"],
    ] {
        realize().args(args).current_dir(&*disk).run().expect_code(2);
    }
    let left = Manifest::of(&disk);
    let left: Vec<_> = left
        .entries()
        .keys()
        .map(|path| String::from_utf8_lossy(path))
        .collect();
    assert_eq!(left, ["a file", "dangling", "dir", "dir/file"]);
}

#[test]
fn no_byte_of_a_name_reaches_the_terminal_as_it_is() {
    let evil = OsStr::from_bytes(b"evil \x1b[2J\x07\x9b\r\xff \xe2\x80\xae\n");
    let check = |outcome: Outcome| {
        for bytes in [&outcome.stdout, &outcome.stderr] {
            let text = std::str::from_utf8(bytes).expect("UTF-8");
            let is_fine = |c: char| c == '\n' || !c.is_control() && c != '\u{202e}';
            assert!(text.chars().all(is_fine), "{text:?}");
        }
        assert!(
            [outcome.stdout(), outcome.stderr()].concat().contains("evil"),
            "{outcome}"
        );
    };
    for ends in Ends::of_both_kinds() {
        let dir = ends.source.join(evil);
        fs::create_dir(&dir).unwrap();
        odd_kinds(&dir);
        fs::write(dir.join(evil), "text").unwrap();
        let busy = File::create(dir.join("busy")).unwrap();
        check(ends.run().arg("--dry-run").run());
        check(ends.run().arg("--verbose").run());
        drop(busy);
        check(
            realize()
                .args([&ends.source.join("no such").join(evil), &ends.target])
                .run(),
        );
        check(
            realize()
                .args([&dir, &ends.source.join("no such").join(evil).join("x")])
                .run(),
        );
        check(realize().args([&dir, &dir]).args([evil]).run());
        check(
            realize()
                .arg(&dir)
                .arg(OsStr::from_bytes(&[evil.as_bytes(), b":x"].concat()))
                .run(),
        );
    }
}
