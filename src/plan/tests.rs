use super::*;
use crate::model::{Timestamp, Version};

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn entry(kind: Kind, size: u64) -> Entry {
    let time = Timestamp { secs: 1, nanos: 2 };
    let version = Version {
        dev: 1,
        ino: 1,
        size,
        mtime: time,
        ctime: time,
    };
    Entry {
        path: path("a"),
        kind,
        version,
        mode: 0o4755,
        links: 1,
        uid: 0,
        gid: 0,
    }
}

#[test]
fn what_the_target_has_decides() {
    let file = entry(Kind::File, 5);
    let there = |kind, size| {
        let mut there = entry(kind, size);
        there.version.ino = 9;
        there
    };
    let other = there(Kind::File, 6);
    assert_eq!(step(&file, None, true), Step::Copy(Expected::Absent));
    assert_eq!(
        step(&file, Some(&other), true),
        Step::Copy(Expected::Version(other.version))
    );
    let same = there(Kind::File, 5);
    assert_eq!(
        step(&file, Some(&same), true),
        Step::Compare(Expected::Version(same.version))
    );
    let mut link = there(Kind::Symlink, 5);
    link.version.ino = 10;
    assert_eq!(step(&file, Some(&link), true), Step::Leave(Reason::TargetIsLink));
    assert_eq!(step(&link, Some(&other), true), Step::Leave(Reason::TargetIsFile));
    let relinked = there(Kind::Symlink, 6);
    assert_eq!(
        step(&link, Some(&relinked), false),
        Step::Copy(Expected::Version(relinked.version))
    );
    assert_eq!(
        step(&file, Some(&there(Kind::Dir, 5)), true),
        Step::Leave(Reason::TargetIsDir)
    );
    assert_eq!(
        step(&file, Some(&there(Kind::Special, 5)), true),
        Step::Leave(Reason::TargetIsSpecial)
    );
}

#[test]
fn directories_meet_only_directories() {
    let dir = entry(Kind::Dir, 0);
    assert_eq!(step(&dir, None, false), Step::MakeDir);
    assert_eq!(step(&dir, Some(&dir), false), Step::EnterDir);
    // A link to a directory is no directory: what is below would land elsewhere.
    assert_eq!(
        step(&dir, Some(&entry(Kind::Symlink, 3)), false),
        Step::Leave(Reason::TargetIsNoDir)
    );
    assert_eq!(step(&entry(Kind::Special, 0), None, true), Step::Leave(Reason::Special));
}

#[test]
fn what_is_the_same_on_both_sides_is_left_alone() {
    for kind in [Kind::File, Kind::Dir, Kind::Symlink] {
        let same = entry(kind, 5);
        assert_eq!(step(&same, Some(&same), true), Step::Leave(Reason::Same));
        assert_ne!(
            step(&same, Some(&same), false),
            Step::Leave(Reason::Same),
            "numbers of two hosts mean nothing"
        );
    }
}

#[test]
fn set_id_bits_are_not_carried() {
    assert_eq!(meta(&entry(Kind::File, 1)).mode, 0o755);
}

fn place(device: u64, at: &str) -> Place {
    Place { device, path: path(at) }
}

#[test]
fn nesting_is_seen_through_mounts() {
    let (a, ab) = (place(1, "a"), place(1, "a/b"));
    assert_eq!(
        nesting(std::slice::from_ref(&a), std::slice::from_ref(&a)),
        Nesting::Same
    );
    assert_eq!(
        nesting(std::slice::from_ref(&a), std::slice::from_ref(&ab)),
        Nesting::TargetInside
    );
    assert_eq!(
        nesting(std::slice::from_ref(&ab), std::slice::from_ref(&a)),
        Nesting::SourceInside
    );
    assert_eq!(nesting(std::slice::from_ref(&a), &[place(1, "ab")]), Nesting::Apart);
    assert_eq!(nesting(std::slice::from_ref(&a), &[place(2, "a/b")]), Nesting::Apart);
    // Another file system, mounted below a.
    assert_eq!(nesting(&[a], &[place(2, ""), ab]), Nesting::TargetInside);
}

#[test]
fn a_directory_is_done_after_all_that_is_in_it() {
    let mut tree = DirTree::default();
    tree.enter(path("a"), 'a');
    tree.add(&path("a/1"));
    tree.enter(path("a/b"), 'b');
    tree.add(&path("a/b/2"));
    let done = tree.listing_at(&path("c"));
    assert!(done.is_empty());
    assert_eq!(tree.dealt_with(&path("a/1"), Outcome::Gone), None);
    let b = tree.dealt_with(&path("a/b/2"), Outcome::Gone).unwrap();
    assert_eq!((b.what, b.stays), (Some('b'), false));
    let a = tree.dealt_with(&path("a/b"), Outcome::Gone).unwrap();
    assert_eq!((a.what, a.stays), (Some('a'), false));
    assert_eq!(tree.dealt_with(&path("a"), Outcome::Gone), None);
    let root = tree.listing_ended();
    assert_eq!(
        root,
        vec![DoneDir {
            path: RelPath::root(),
            what: None,
            stays: false,
            failed: false
        }]
    );
}

#[test]
fn an_empty_directory_is_done_when_the_listing_goes_on() {
    let mut tree = DirTree::default();
    tree.enter(path("a"), 'a');
    let done = tree.listing_at(&path("b"));
    assert_eq!(
        done.iter().map(|dir| (dir.what, dir.stays)).collect::<Vec<_>>(),
        vec![(Some('a'), false)]
    );
}

#[test]
fn whatever_stays_keeps_every_directory_above() {
    let mut tree = DirTree::default();
    tree.enter(path("a"), 'a');
    tree.enter(path("a/b"), 'b');
    tree.stays(&path("a/b/x"));
    let done = tree.listing_at(&path("z"));
    assert_eq!(
        done.iter().map(|dir| (dir.what, dir.stays)).collect::<Vec<_>>(),
        vec![(Some('b'), true)]
    );
    let a = tree.dealt_with(&path("a/b"), Outcome::Stays).unwrap();
    assert!(a.stays);
}
