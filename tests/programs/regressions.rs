//! What reviews and tests found wrong once.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::support::*;

/// Where files are renamed, and where they are copied.
fn of_both_kinds() -> [(Vec<Scratch>, PathBuf, PathBuf); 2] {
    [vec![Scratch::on_disk()], vec![Scratch::on_disk(), Scratch::in_memory()]].map(|scratches| {
        let source = scratches[0].dir("source");
        let target = scratches[scratches.len() - 1].dir("target");
        (scratches, source, target)
    })
}

#[test]
fn hard_linked_files_that_are_bound_to_the_target_are_not_lost() {
    if !name_spaces_allowed() {
        return;
    }
    for (_scratches, source, target) in of_both_kinds() {
        fs::write(source.join("a"), "the only copy").unwrap();
        fs::hard_link(source.join("a"), source.join("b")).unwrap();
        let mut binds = String::new();
        for name in ["a", "b"] {
            fs::write(target.join(name), "").unwrap();
            binds += &format!("mount --bind {:?} {:?}\n", source.join(name), target.join(name));
        }
        let outcome = realize().args([&source, &target]).inside(binds).run();
        let places = [source.join("a"), source.join("b"), target.join("a"), target.join("b")];
        let holds = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text == "the only copy");
        assert!(places.iter().any(holds), "lost\n{outcome}");
        outcome.expect_code(1);
    }
}

#[test]
fn a_refused_move_into_itself_leaves_no_new_directory_behind() {
    let disk = Scratch::on_disk();
    let dir = disk.dir("dir");
    fs::write(dir.join("file"), "text").unwrap();
    realize().args([&dir, &dir.join("new")]).run().expect_code(2);
    assert!(!dir.join("new").exists(), "exit code 2 says that nothing was touched");
}

#[test]
fn a_dry_run_of_a_move_into_itself_is_refused_like_the_move() {
    let disk = Scratch::on_disk();
    let dir = disk.dir("dir");
    fs::write(dir.join("file"), "text").unwrap();
    realize().arg("-n").args([&dir, &dir.join("new")]).run().expect_code(2);
}

#[test]
fn a_read_only_directory_that_was_left_behind_moves_when_its_file_can() {
    for (scratches, source, target) in of_both_kinds() {
        let dir = source.join("read-only");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("free"), "text").unwrap();
        fs::write(dir.join("busy"), "text").unwrap();
        scratches.iter().for_each(|scratch| give_to_nobody(scratch));
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(&dir, 0o555);
        // As its owner says who moves it: it is made writable once the first run has told about it.
        let run = || realize().args([&source, &target]).unprivileged().run();
        run().expect_code(1);
        mode(&dir, 0o755);
        run().expect_code(0);
        assert!(target.join("read-only/busy").exists() && !dir.exists());
    }
}

/// As in a backup of hard links of which one was renamed: the old file at the target is one of the sources too, and is read just then.
#[test]
fn an_older_file_that_is_read_as_a_source_is_replaced() {
    let scratch = Scratch::on_disk();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    fs::write(source.join("y"), "older").unwrap();
    fs::hard_link(source.join("y"), target.join("x")).unwrap();
    fs::write(source.join("x"), "newer and longer").unwrap();
    realize().arg("--copy").args([&source, &target]).run().expect_code(0);
    assert_eq!(fs::read(target.join("x")).unwrap(), b"newer and longer");
    assert_eq!(fs::read(target.join("y")).unwrap(), b"older");
}

#[test]
fn an_older_file_of_that_size_which_may_not_be_read_is_replaced() {
    for (scratches, source, target) in of_both_kinds() {
        for (name, size) in [("small", 9), ("large", 200_000)] {
            fs::write(source.join(name), vec![1; size]).unwrap();
            fs::write(target.join(name), vec![2; size]).unwrap();
            fs::set_permissions(target.join(name), fs::Permissions::from_mode(0o000)).unwrap();
        }
        scratches.iter().for_each(|scratch| give_to_nobody(scratch));
        realize().args([&source, &target]).unprivileged().run().expect_code(0);
        assert!(fs::read(target.join("small")).unwrap() == [1; 9]);
        assert!(fs::read(target.join("large")).unwrap() == [1; 200_000]);
    }
}

#[test]
fn a_directory_named_with_a_file_of_its_own_is_not_said_to_be_moved_by_another_run() {
    for (_scratches, source, target) in of_both_kinds() {
        fs::write(source.join("file"), "text").unwrap();
        let outcome = realize().args([&source, &source.join("file"), &target]).run();
        assert_ne!(outcome.status.code(), Some(13), "{outcome}");
    }
}

#[test]
fn what_stays_in_one_source_is_told_however_much_is_in_the_other() {
    let scratch = Scratch::on_disk();
    let (first, second, target) = (scratch.dir("first"), scratch.dir("second"), scratch.dir("target"));
    fs::create_dir(first.join("z")).unwrap();
    fs::write(first.join("z/.f.realize-part"), "arriving").unwrap();
    for number in 0..1100 {
        fs::write(second.join(format!("a{number:04}")), "").unwrap();
    }
    let outcome = realize()
        .arg("--keep-dirs")
        .arg(&first)
        .arg(&second)
        .arg(&target)
        .run()
        .expect_code(1);
    let stderr = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(stderr.contains(".f.realize-part"), "{stderr}");
}

#[test]
fn a_link_to_the_file_at_the_target_does_not_replace_it() {
    for (_scratches, source, target) in of_both_kinds() {
        fs::write(target.join("film"), "long").unwrap();
        std::os::unix::fs::symlink(target.join("film"), source.join("film")).unwrap();
        realize().arg(&source).arg(&target).run().expect_code(1);
        assert_eq!(fs::read_to_string(target.join("film")).unwrap(), "long");
        assert!(source.join("film").is_symlink());
    }
}

#[test]
fn directories_of_the_target_keep_their_modes() {
    for (_scratches, source, target) in of_both_kinds() {
        for (root, mode) in [(&source, 0o755), (&target, 0o700)] {
            fs::create_dir(root.join("private")).unwrap();
            fs::set_permissions(root.join("private"), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(source.join("private/file"), "text").unwrap();
        realize().arg(&source).arg(&target).run().expect_code(0);
        let mode = fs::metadata(target.join("private")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }
}

#[test]
fn a_path_too_long_for_realize_does_not_stop_the_others() {
    let scratch = Scratch::on_disk();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    let long = "d".repeat(250);
    let inner =
        format!("mkdir -p deep && cd deep && for i in $(seq 17); do mkdir {long} && cd {long}; done; touch file");
    let made = Run::program("sh").arg("-c").arg(inner).current_dir(&source);
    made.run().expect_code(0);
    fs::write(source.join("z_after"), "text").unwrap();
    realize().arg(&source).arg(&target).run().expect_code(1);
    assert_eq!(fs::read_to_string(target.join("z_after")).unwrap(), "text");
}

#[test]
fn files_named_like_marks_of_a_run_are_not_deleted() {
    for (_scratches, source, target) in of_both_kinds() {
        let like = ".realize-token.abc.source".to_owned();
        let exact = format!(".realize-token.{}.source", "0a".repeat(16));
        for name in [&like, &exact] {
            fs::write(source.join(name), "precious").unwrap();
        }
        fs::write(target.join(&exact), "theirs").unwrap();
        realize().arg(&source).arg(&target).run();
        assert_eq!(
            fs::read_to_string(target.join(&like)).unwrap(),
            "precious",
            "moved like any file"
        );
        assert_eq!(fs::read_to_string(source.join(&exact)).unwrap(), "precious");
        assert_eq!(fs::read_to_string(target.join(&exact)).unwrap(), "theirs");
    }
}

#[test]
fn what_replaces_something_says_so() {
    let scratch = Scratch::on_disk();
    let memory = Scratch::in_memory();
    let (source, target) = (scratch.dir("source"), memory.dir("target"));
    for name in ["new", "other", "equal"] {
        fs::write(source.join(name), "content").unwrap();
    }
    fs::write(target.join("other"), "older").unwrap();
    fs::write(target.join("equal"), "content").unwrap();
    let outcome = realize().arg("-v").args([&source, &target]).run().expect_code(0);
    for line in ["\"other\" (replaced", "1 file at the target replaced"] {
        assert!(outcome.stdout().contains(line), "{outcome}");
    }
    assert_eq!(outcome.stdout().matches("(replaced").count(), 1, "{outcome}");
}

#[test]
fn many_files_with_names_too_long_for_a_suffix_all_go() {
    let scratch = Scratch::on_disk();
    let memory = Scratch::in_memory();
    for target in [scratch.dir("target"), memory.dir("target")] {
        let source = scratch.dir("source");
        for number in 0..600 {
            fs::write(
                source.join(format!("{number:05}{}", "n".repeat(245))),
                format!("{number}"),
            )
            .unwrap();
        }
        realize().args([&source, &target]).run().expect_code(0);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 600);
        assert_eq!(fs::read_dir(&source).unwrap().count(), 0);
        fs::remove_dir(&source).unwrap();
    }
}

#[test]
fn a_file_with_a_long_name_that_was_set_aside_can_be_named() {
    for (_scratches, source, target) in of_both_kinds() {
        let name = "n".repeat(250);
        fs::create_dir(source.join(".realize-gone")).unwrap();
        fs::write(source.join(".realize-gone").join(&name), "set aside").unwrap();
        realize().args([&source.join(&name), &target]).run().expect_code(0);
        assert_eq!(fs::read_to_string(target.join(&name)).unwrap(), "set aside");
    }
}

#[test]
fn a_read_only_directory_that_is_copied_in_part_can_be_gone_on_with() {
    for options in [&["--copy"][..], &["--keep-dirs"]] {
        for (scratches, source, target) in of_both_kinds() {
            let dir = source.join("read-only");
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("free"), "text").unwrap();
            fs::write(dir.join("busy"), "text").unwrap();
            scratches.iter().for_each(|scratch| give_to_nobody(scratch));
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
            let busy = fs::File::create(dir.join("busy")).unwrap();
            let run = || realize().args(options).args([&source, &target]).unprivileged().run();
            run().expect_code(1);
            drop(busy);
            if options == ["--keep-dirs"] {
                // Files can't leave it otherwise.
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
            }
            run().expect_code(0);
            assert!(target.join("read-only/busy").exists(), "{options:?}");
        }
    }
}

#[test]
fn hard_links_on_one_file_system_all_move_at_once() {
    let scratch = Scratch::on_disk();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    fs::write(source.join("a"), vec![7; 300_000]).unwrap();
    for number in 0..300 {
        fs::hard_link(source.join("a"), source.join(format!("b{number}"))).unwrap();
    }
    realize().args([&source, &target]).run().expect_code(0);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 301);
}

#[test]
fn a_link_that_a_dead_run_was_making_is_not_in_the_way() {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (source, target) = (disk.dir("source"), memory.dir("target"));
    std::os::unix::fs::symlink("there", source.join("new")).unwrap();
    std::os::unix::fs::symlink("elsewhere", target.join(".new.realize-link")).unwrap();
    realize().args([&source, &target]).run().expect_code(0);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    assert_eq!(fs::read_link(target.join("new")).unwrap(), Path::new("there"));
}

#[test]
fn a_partial_that_somebody_else_made_is_not_continued() {
    if !run_as_root() {
        return;
    }
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (source, target) = (disk.dir("source"), memory.dir("target"));
    fs::write(source.join("large"), vec![7; 100_000]).unwrap();
    let partial = target.join(".large.realize-part");
    fs::write(&partial, vec![7; 100_000]).unwrap();
    std::os::unix::fs::chown(&partial, Some(65534), Some(65534)).unwrap();
    realize().args([&source, &target]).run().expect_code(0);
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(target.join("large")).unwrap());
    assert_eq!(owner, 0, "it may still be open for writing by whoever made it");
}

#[test]
fn what_a_live_run_swaps_is_left_to_it() {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (source, target) = (disk.dir("source"), memory.dir("target"));
    fs::write(source.join("b"), "text").unwrap();
    fs::write(target.join("a"), "the older").unwrap();
    let metadata = fs::metadata(target.join("a")).unwrap();
    let version = realize::model::Version {
        dev: 0,
        ino: std::os::unix::fs::MetadataExt::ino(&metadata),
        size: metadata.len(),
        mtime: realize::model::Timestamp {
            secs: std::os::unix::fs::MetadataExt::mtime(&metadata),
            nanos: std::os::unix::fs::MetadataExt::mtime_nsec(&metadata) as u32,
        },
        ctime: realize::model::Timestamp { secs: 0, nanos: 0 },
    };
    let name = realize::model::Name::new("a").unwrap();
    let swap = target.join(
        String::from_utf8(
            realize::store::names::swap(&name, &realize::store::names::version_tag(&version))
                .as_bytes()
                .to_vec(),
        )
        .unwrap(),
    );
    let held = fs::File::create(&swap).unwrap();
    held.lock().unwrap();
    realize().args([&source, &target]).run().expect_code(0);
    assert!(swap.exists(), "a live run was about to exchange it");
    held.unlock().unwrap();
    fs::write(source.join("b"), "text").unwrap();
    realize().args([&source, &target]).run().expect_code(0);
    assert!(!swap.exists(), "a dead run's is put back");
}

/// The files of `dirs` and below, each counted once however many have it, without what realize keeps for itself.
fn distinct_files(dirs: &[&Path]) -> usize {
    let mut found = std::collections::BTreeSet::new();
    for dir in dirs {
        let manifest = Manifest::of(dir).without_reserved();
        found.extend(manifest.entries().keys().cloned());
    }
    found.len()
}

#[test]
fn two_runs_in_opposite_directions_lose_no_file_that_both_ends_had() {
    const FILES: usize = 300;
    for size in [20, 100_000] {
        for round in 0..4 {
            for (_scratches, a, b) in of_both_kinds() {
                for number in 0..if size == 20 { FILES } else { FILES / 10 } {
                    let name = format!("f{number:03}");
                    fs::write(a.join(&name), vec![number as u8; size]).unwrap();
                    fs::copy(a.join(&name), b.join(&name)).unwrap();
                    std::os::unix::fs::symlink("somewhere", a.join(format!("l{number:03}"))).unwrap();
                    std::os::unix::fs::symlink("somewhere", b.join(format!("l{number:03}"))).unwrap();
                }
                let before = distinct_files(&[&a, &b]);
                let there = realize().arg("-q").args([&a, &b]).start();
                let back = realize().arg("-q").args([&b, &a]).start();
                let (there, back) = (there.wait(), back.wait());
                let after = distinct_files(&[&a, &b]);
                assert_eq!(
                    after, before,
                    "round {round}, files of {size} bytes, lost\n{there}\n{back}"
                );
            }
        }
    }
}

#[test]
fn a_source_that_is_the_target_seen_through_an_overlay_is_not_lost() {
    if !name_spaces_allowed() {
        return;
    }
    let disk = Scratch::on_disk();
    let [lower, upper, work, over] = ["lower", "upper", "work", "over"].map(|name| disk.dir(name));
    fs::create_dir(lower.join("sub")).unwrap();
    fs::write(lower.join("a"), "one").unwrap();
    fs::write(lower.join("sub/b"), "two").unwrap();
    let mount = format!(
        "mount -t overlay overlay -o lowerdir={},upperdir={},workdir={} {}",
        lower.display(),
        upper.display(),
        work.display(),
        over.display()
    );
    for below in ["", "sub"] {
        let outcome = realize()
            .args([lower.join(below), over.join(below)])
            .inside(&mount)
            .run();
        assert!(
            lower.join("a").exists() && lower.join("sub/b").exists(),
            "lost\n{outcome}"
        );
        outcome.expect_code(1);
    }
}

#[test]
fn a_file_locked_by_another_program_stays_until_it_is_free() {
    for (_scratches, source, target) in of_both_kinds() {
        fs::write(source.join("a"), "text").unwrap();
        let held = fs::File::open(source.join("a")).unwrap();
        held.lock().unwrap();
        let outcome = realize().args([&source, &target]).run().expect_code(1);
        assert!(outcome.stderr().contains("lock"), "{outcome}");
        // Not by closing it: a child that another test starts just now has it open as well.
        held.unlock().unwrap();
        realize().args([&source, &target]).run().expect_code(0);
    }
}

#[test]
fn a_target_that_somebody_has_open_for_writing_is_not_replaced() {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (source, target) = (disk.dir("source"), memory.dir("target"));
    for size in [5, 200_000] {
        fs::write(source.join("log"), vec![7; size]).unwrap();
        fs::write(target.join("log"), "older").unwrap();
        let open = fs::File::options().append(true).open(target.join("log")).unwrap();
        let outcome = realize().args([&source, &target]).run().expect_code(1);
        assert!(outcome.stderr().contains("open for writing"), "{outcome}");
        assert_eq!(fs::read(target.join("log")).unwrap(), b"older");
        drop(open);
        realize().args([&source, &target]).run().expect_code(0);
        assert_eq!(fs::read(target.join("log")).unwrap(), vec![7; size]);
    }
}

#[test]
fn a_partial_below_a_root_that_cannot_be_written_to_is_continued() {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (source, target) = (disk.dir("source"), memory.dir("target"));
    fs::create_dir(source.join("dir")).unwrap();
    fs::create_dir(target.join("dir")).unwrap();
    let content: Vec<u8> = (0..4_000_000u32).map(|number| (number >> 8) as u8).collect();
    fs::write(source.join("dir/large"), &content).unwrap();
    fs::write(target.join("dir/.large.realize-part"), &content[..3 << 20]).unwrap();
    for path in [&source, &target] {
        give_to_nobody(path);
        for dir in [path.as_path(), &disk, &memory] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    fs::set_permissions(&target, fs::Permissions::from_mode(0o555)).unwrap();
    let inode = |path: PathBuf| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let partial = inode(target.join("dir/.large.realize-part"));
    let outcome = realize().args([&source, &target]).unprivileged().run();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(fs::read(target.join("dir/large")).unwrap(), content);
    assert_eq!(inode(target.join("dir/large")), partial, "begun anew\n{outcome}");
}

#[test]
fn the_mark_of_a_failed_sync_goes_after_a_reboot_and_a_file_of_its_name_stays() {
    let disk = Scratch::on_disk();
    let (source, target) = (disk.dir("source"), disk.dir("target"));
    let [old, mine] = ["1", "2"].map(|nth| format!(".realize-unsynced.{}", nth.repeat(32)));
    for dir in [&source, &target] {
        fs::write(dir.join(&old), "").unwrap();
        fs::write(dir.join(&mine), "somebody's").unwrap();
    }
    fs::write(source.join("file"), "text").unwrap();
    realize().args([&source, &target]).run();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "text");
    for dir in [&source, &target] {
        assert!(!dir.join(&old).exists());
        assert_eq!(fs::read_to_string(dir.join(&mine)).unwrap(), "somebody's");
    }
}

#[test]
fn a_probe_goes_and_what_has_only_its_name_stays() {
    let scratch = Scratch::on_disk();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    fs::write(source.join("new"), "new").unwrap();
    fs::write(target.join("..old.realize-part.realize-probe"), "").unwrap();
    fs::write(target.join("..new.realize-part.realize-probe"), "theirs").unwrap();
    fs::write(target.join(".film.realize-probe"), "").unwrap();
    realize().arg(&source).arg(&target).run().expect_code(0);
    assert!(!target.join("..old.realize-part.realize-probe").exists());
    assert_eq!(
        fs::read(target.join("..new.realize-part.realize-probe")).unwrap(),
        b"theirs"
    );
    assert!(target.join(".film.realize-probe").exists());
}
