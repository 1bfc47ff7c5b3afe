//! Daemons that hold the right key and break the rules, or have bad luck: the mover ends, tells why, and nothing is lost.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use crate::support::*;
use bytes::Bytes;
use realize::{
    model::{Entry, Kind as EntryKind, RelPath, Timestamp, Uncarried, Version},
    service::{
        Content, Cursor, Got, Handle, Held, Page, RealizeServiceRequest as Request, RealizeServiceResponse as Response,
        ServiceError,
    },
};

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn entry(name: &str, kind: EntryKind, size: u64) -> Entry {
    let time = Timestamp { secs: 1, nanos: 0 };
    let version = Version {
        dev: 77,
        ino: 77,
        size,
        mtime: time,
        ctime: time,
    };
    Entry {
        path: path(name),
        kind,
        version,
        mode: 0o600,
        links: 1,
        uid: 0,
        gid: 0,
    }
}

#[test]
fn a_listing_that_leads_nowhere_ends_the_move() {
    for after in ["", "x"] {
        let daemon = FakeDaemon::new(move |request| match request {
            Request::List { .. } => {
                let failed = vec![(path("x"), ServiceError::Internal); 1000];
                let next = Some(Cursor {
                    after: RelPath::new(after).unwrap_or_default(),
                    skip_below: false,
                });
                Act::Answer(Response::List(Ok(Page {
                    failed,
                    next,
                    ..Page::default()
                })))
            }
            _ => Act::Serve,
        });
        let outcome = daemon.hosts.realize().arg("nas::a").arg(&daemon.local).run();
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert!(outcome.stderr().contains("a wrong answer"), "{outcome}");
    }
}

#[test]
fn a_page_of_more_than_a_page_ends_the_move() {
    let failed = Page {
        failed: vec![(path("x"), ServiceError::Internal); 100_000],
        ..Page::default()
    };
    let uncarried = Page {
        uncarried: vec![(path("x"), Uncarried::default()); 100_000],
        ..Page::default()
    };
    for page in [failed, uncarried] {
        let daemon = FakeDaemon::new(move |request| match request {
            Request::List { .. } => Act::Answer(Response::List(Ok(page.clone()))),
            _ => Act::Serve,
        });
        let run = daemon.hosts.realize();
        let outcome = run.arg("nas::a").arg(&daemon.local).run().expect_code(1);
        assert!(outcome.stderr().contains("a page of 100000 items"), "{outcome}");
    }
}

/// A name that two sources have is moved from neither: for that, each has to list its names in order.
#[test]
fn a_source_that_lists_out_of_order_replaces_nothing_of_another_source() {
    let (pages, evil) = (AtomicU64::new(0), Bytes::from_static(b"evil"));
    let daemon = FakeDaemon::new(move |request| match request {
        Request::List { .. } => {
            // Time for what the other source has to be moved.
            std::thread::sleep(Duration::from_millis(300));
            let page = pages.fetch_add(1, Ordering::Relaxed);
            let next = Some(Cursor {
                after: path(&format!("y{page}-9")),
                skip_below: false,
            });
            Act::Answer(Response::List(Ok(match page {
                0..3 => Page {
                    entries: (0..1024)
                        .map(|nth| entry(&format!("y{page}-{nth:04}"), EntryKind::Special, 0))
                        .collect(),
                    next,
                    ..Page::default()
                },
                _ => Page {
                    entries: vec![entry("x", EntryKind::File, 4)],
                    ..Page::default()
                },
            })))
        }
        Request::Get { files, .. } => {
            let got = |_| {
                let held = Held {
                    handle: Handle(5),
                    uncarried: Default::default(),
                    leased: true,
                };
                let digest = realize::digest::digest(&evil);
                let data = evil.clone();
                Ok(Got {
                    held,
                    content: Content::File { data, digest },
                })
            };
            Act::Answer(Response::Get(Ok(files.0.iter().map(got).collect())))
        }
        Request::Delete { files, .. } => Act::Answer(Response::Delete(Ok(vec![Ok(()); files.0.len()]))),
        _ => Act::Serve,
    });
    let target = daemon.local.parent().unwrap().join("target");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("somebody's"), "so that the target is not empty").unwrap();
    // On another file system, so that it is copied at once.
    let memory = Scratch::in_memory();
    let mine = memory.dir("mine");
    fs::write(mine.join("x"), vec![7; 100_000]).unwrap();
    let outcome = daemon
        .hosts
        .realize()
        .arg("-q")
        .arg(&mine)
        .arg("nas::a")
        .arg(&target)
        .run();
    assert_eq!(outcome.status.code(), Some(1));
    let at_target = fs::metadata(target.join("x")).map_or(0, |metadata| metadata.len());
    assert!(mine.join("x").exists() || at_target == 100_000, "{at_target}");
}

/// The daemon dies between a deletion and its answer.
#[test]
fn a_deletion_that_was_not_answered_is_not_called_a_failure() {
    let has_died = AtomicBool::new(false);
    let daemon = FakeDaemon::new(move |request| match request {
        Request::Delete { .. } if !has_died.swap(true, Ordering::Relaxed) => Act::DoAndDie,
        _ => Act::Serve,
    });
    let names = ["f1", "f2", "f3"];
    for name in names {
        fs::write(daemon.served.join(name), name).unwrap();
    }
    let mut run = daemon.hosts.realize();
    for name in names {
        run = run.arg(format!("nas::a/{name}"));
    }
    run.arg(&daemon.local).run().expect_code(0);
    for name in names {
        assert_eq!(fs::read_to_string(daemon.local.join(name)).unwrap(), name);
        assert!(!daemon.served.join(name).exists());
    }
}

#[test]
fn what_was_moved_is_told_when_the_move_cannot_begin_again() {
    let deletes = AtomicU64::new(0);
    let daemon = FakeDaemon::new(move |request| match request {
        // So many after the first that its answer has arrived: eight batches are under way at once.
        Request::Delete { .. } if deletes.fetch_add(1, Ordering::Relaxed) == 10 => Act::DoAndDie,
        Request::Claim { .. } if deletes.load(Ordering::Relaxed) > 10 => Act::Answer(Response::Claim(Err(
            ServiceError::BadRequest("\x1b[2J\nrealize: moved 9 files".into()),
        ))),
        _ => Act::Serve,
    });
    for nth in 0..1600 {
        fs::write(daemon.served.join(format!("f{nth}")), "text").unwrap();
    }
    let outcome = daemon.hosts.realize().arg("nas::a").arg(&daemon.local).run();
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(
        outcome.stdout().contains(" files, ") && outcome.stdout().contains(" copied)"),
        "{outcome}"
    );
    // What the other side says stays in its line.
    assert!(!outcome.stderr().contains(['\x1b']), "{outcome}");
    assert!(!outcome.stderr().contains("\nrealize: moved 9 files"), "{outcome}");
}

#[test]
fn who_answers_what_was_not_asked_is_not_asked_again() {
    let lists = std::sync::Arc::new(AtomicU64::new(0));
    let listed = lists.clone();
    let daemon = FakeDaemon::new(move |request| match request {
        Request::List { .. } => {
            listed.fetch_add(1, Ordering::Relaxed);
            Act::Answer(Response::Release(Ok(())))
        }
        _ => Act::Serve,
    });
    fs::write(daemon.served.join("file"), "text").unwrap();
    let outcome = daemon
        .hosts
        .realize()
        .arg("nas::a")
        .arg(&daemon.local)
        .run()
        .expect_code(1);
    assert!(
        outcome.stderr().contains("a wrong answer: the answer of another call"),
        "{outcome}"
    );
    assert!(!outcome.stderr().contains("again"), "{outcome}");
    assert_eq!(lists.load(Ordering::Relaxed), 1);
    assert!(daemon.served.join("file").exists());
}

/// The state of one file is answered with that of another.
#[test]
fn the_state_of_another_file_is_none() {
    let daemon = FakeDaemon::new(|request| match request {
        Request::Stat { paths, .. } if paths.0.len() == 1 => {
            Act::Answer(Response::Stat(Ok(vec![Ok(Some(entry("other", EntryKind::File, 4)))])))
        }
        _ => Act::Serve,
    });
    fs::write(daemon.served.join("other"), "text").unwrap();
    let outcome = daemon.hosts.realize().arg("nas::a/file").arg(&daemon.local).run();
    assert_ne!(outcome.status.code(), Some(0), "{outcome}");
    assert!(daemon.served.join("other").exists() && Manifest::of(&daemon.local).is_empty());
}
