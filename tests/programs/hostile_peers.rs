//! Peers that hold a key and break the rules: they are disconnected, and others are served on.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::support::*;
use bytes::Bytes;
use realize::{
    clock::TokioClock,
    digest::{CHUNK_BYTES, digest, hash_chunk},
    model::{RelPath, Timestamp, Version},
    service::{
        Against, Answer, Blocks, Content, Delta, DirId, Expected, FileRef, Finish, Form, Handle, Meta, NewFile,
        OpenFor, RealizeServiceRequest as Request, RealizeServiceResponse as Response, Role, RunId, ServiceError, Sums,
        Verify,
    },
    wire::{Encoded, Outbox, ToServer, write_messages},
};
use tokio::io::AsyncWriteExt;

fn served() -> (Scratch, Hosts, std::path::PathBuf) {
    let memory = Scratch::in_memory();
    let dir = memory.dir("served");
    let hosts = Hosts::serving(&[("a", &dir, ALL)]);
    (memory, hosts, dir)
}

/// The most memory that the daemon ever had, in MiB.
fn peak(hosts: &Hosts) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", hosts.daemon_id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

fn assert_serves(hosts: &Hosts) {
    hosts.check("nas::a").run().expect_code(0);
    assert!(peak(hosts) < 128, "{} MiB", peak(hosts));
}

#[tokio::test]
async fn who_asks_and_does_not_read_is_disconnected() {
    let (_memory, hosts, dir) = served();
    let file = fs::File::create(dir.join("large")).unwrap();
    file.set_len(64 << 20).unwrap();
    drop(file);
    let mut peer = Peer::connect(&hosts, 1).await;
    peer.hello(1).await;
    let paths = vec![RelPath::new("large").unwrap()].into();
    let found = peer
        .call(Request::Stat {
            dir: DirId::new("a"),
            paths,
            restore: false,
        })
        .await;
    let Response::Stat(Ok(found)) = found else {
        panic!("{found:?}")
    };
    let entry = found.into_iter().next().unwrap().unwrap().unwrap();
    let opened = peer
        .call(Request::Open {
            dir: DirId::new("a"),
            path: entry.path.clone(),
            open_for: OpenFor::Read(entry.version),
        })
        .await;
    let Response::Open(Ok(opened)) = opened else {
        panic!("{opened:?}")
    };
    // Two thousand chunks of a mebibyte, none of them read.
    for number in 0..2000 {
        let request = Request::Read {
            handle: opened.held.handle,
            chunk: number % 64,
        };
        if peer.begin(request).await.is_err() {
            break;
        }
    }
    let why = peer.end().await;
    assert!(why.is_none_or(|why| why.contains("too much at once")));
    hosts.expect_log("too much at once");
    assert_serves(&hosts);
}

#[tokio::test]
async fn who_pings_and_does_not_read_is_disconnected() {
    let (_memory, hosts, _dir) = served();
    let mut peer = Peer::connect(&hosts, 1).await;
    let outbox = Outbox::default();
    for number in 0..300_000 {
        outbox.push(Encoded::new(ToServer::Ping { number }).unwrap());
    }
    // Ends when the daemon closes the connection, or nothing moves any more.
    let clock = TokioClock::new();
    let flood = write_messages(&mut peer.writing, &outbox, &clock);
    tokio::time::timeout(Duration::from_secs(20), flood).await.ok();
    assert_serves(&hosts);
    hosts.expect_log("does not read the answers");
}

/// What a call holds counts until its work has ended, not until nobody waits for it.
#[tokio::test]
async fn who_calls_and_cancels_gets_no_more_memory_than_others() {
    let disk = Scratch::on_disk();
    let dir = disk.dir("served");
    let hosts = Hosts::serving(&[("a", &dir, ALL)]);
    let mut peer = Peer::connect(&hosts, 1).await;
    peer.hello(1).await;
    let data = Bytes::from(vec![7; 64 << 10]);
    for batch in 0..400 {
        let new_file = |number| NewFile {
            path: RelPath::new(format!("{batch}-{number}")).unwrap(),
            content: Content::File {
                data: data.clone(),
                digest: digest(&data),
            },
            meta: Meta {
                mode: 0o600,
                mtime: Timestamp { secs: 1, nanos: 0 },
            },
            expected: Expected::Absent,
            verify: Verify::Written,
        };
        let files = (0..15).map(new_file).collect();
        let dir = DirId::new("a");
        if peer.begin(Request::Put { dir, files }).await.is_err() {
            break;
        }
        // That one is at work by now, or waits for a thread to work on.
        let id = peer.next.saturating_sub(60);
        if peer.send(ToServer::Cancel { id }).await.is_err() {
            break;
        }
    }
    assert_serves(&hosts);
}

#[tokio::test]
async fn bytes_that_are_no_message_end_the_connection() {
    let (_memory, hosts, _dir) = served();
    for bytes in [
        &[9u8; 100][..],
        &[0, 255, 255, 255],
        &[0, 0, 0, 12, 255, 255, 255, 255, 0, 0, 0, 0],
    ] {
        let mut peer = Peer::connect(&hosts, 1).await;
        peer.writing.write_all(bytes).await.unwrap();
        peer.writing.flush().await.unwrap();
        let why = peer.end().await.expect("it is told");
        assert!(why.contains("the peer sent"), "{why}");
    }
    assert_serves(&hosts);
}

#[tokio::test]
async fn handles_and_directories_of_nobody_are_refused_call_by_call() {
    let (_memory, hosts, dir) = served();
    fs::write(dir.join("file"), "text").unwrap();
    let mut peer = Peer::connect(&hosts, 1).await;
    let failed = |response: Response| {
        let text = format!("{response:?}");
        assert!(text.contains("Err"), "{text}");
    };
    failed(
        peer.call(Request::Read {
            handle: Handle(77),
            chunk: 0,
        })
        .await,
    );
    failed(
        peer.call(Request::Send {
            handle: Handle(77),
            chunk: u64::MAX,
            data: Bytes::from_static(b"data"),
            sparse: false,
        })
        .await,
    );
    failed(
        peer.call(Request::Hashes {
            handle: Handle(0),
            first: u64::MAX,
            count: u64::MAX,
        })
        .await,
    );
    failed(
        peer.call(Request::RemoveDirs {
            dir: DirId::new("elsewhere"),
            paths: vec![RelPath::root()].into(),
        })
        .await,
    );
    let opened = peer
        .call(Request::Open {
            dir: DirId::new("a"),
            path: RelPath::new("new").unwrap(),
            open_for: OpenFor::Write {
                size: u64::MAX,
                basis: None,
            },
        })
        .await;
    if let Response::Open(opened) = opened {
        let opened: Answer<_> = opened;
        if let Ok(opened) = opened {
            failed(
                peer.call(Request::Send {
                    handle: opened.held.handle,
                    chunk: u64::MAX / CHUNK_BYTES,
                    data: vec![1; CHUNK_BYTES as usize].into(),
                    sparse: false,
                })
                .await,
            );
        }
    }
    assert!(dir.join("file").exists());
    assert_serves(&hosts);
}

/// Sums and deltas are looked at before anything is done with them.
#[tokio::test]
async fn sums_and_deltas_that_cannot_be_are_refused() {
    let (_memory, hosts, dir) = served();
    let data: Vec<u8> = (0..2 * CHUNK_BYTES)
        .map(|at| ((at * 2_654_435_761) >> 9) as u8)
        .collect();
    fs::write(dir.join("source"), &data).unwrap();
    fs::write(dir.join("target"), &data).unwrap();
    let mut peer = Peer::connect(&hosts, 1).await;
    peer.hello(1).await;
    let a = || DirId::new("a");
    let paths = ["source", "target"].map(|name| RelPath::new(name).unwrap());
    let stat = Request::Stat {
        dir: a(),
        paths: paths.to_vec().into(),
        restore: false,
    };
    let Response::Stat(Ok(found)) = peer.call(stat).await else {
        panic!("no answer")
    };
    let versions: Vec<_> = found.into_iter().map(|entry| entry.unwrap().unwrap().version).collect();
    let size = data.len() as u64;
    let mut handles = Vec::new();
    for (path, open_for) in paths.into_iter().zip([
        OpenFor::Read(versions[0]),
        OpenFor::Write {
            size,
            basis: Some(versions[1]),
        },
    ]) {
        let open = Request::Open {
            dir: a(),
            path,
            open_for,
        };
        let Response::Open(Ok(opened)) = peer.call(open).await else {
            panic!("not opened")
        };
        handles.push(opened.held.handle);
    }
    let (source, target) = (handles[0], handles[1]);
    let sums = |start, bytes, block_bytes, stride, count: usize| Sums {
        start,
        bytes,
        block_bytes,
        stride,
        sums: vec![7; count].into(),
    };
    for (start, bytes, block_bytes, stride, count) in [
        (0, 4096, 0, 1, 7),
        (0, 4096, 1, 1, 7 * 4096),
        (0, 4096, 4095, 1, 14),
        (0, 4096, u32::MAX, 1, 7),
        (0, u64::MAX, 4096, 1, 7),
        (0, 4096, 4096, 1, 6),
        (0, 4096, 4096, 1, 70),
        (4096, 4096, 4096, 1, 7),
        (u64::MAX, 4096, 4096, 1, 7),
        (0, 4096, 4096, 0, 7),
        (0, 3 * 4096, 4096, 3, 7),
        (0, 4096, 4096, u32::MAX, 7),
        (0, 2 * 4096, 4096, 2, 14),
    ] {
        let what = (start, bytes, block_bytes, stride, count);
        let load = Request::LoadSignature {
            handle: source,
            sums: sums(start, bytes, block_bytes, stride, count),
        };
        let loaded = peer.call(load).await;
        assert!(
            matches!(loaded, Response::LoadSignature(Err(_))),
            "{what:?}: {loaded:?}"
        );
        if start == 4096 {
            continue;
        }
        let diff = Request::Diff {
            handle: source,
            chunk: 0,
            against: Against::Sums(sums(start, bytes, block_bytes, stride, count)),
            finer: None,
            literal_max: Some(CHUNK_BYTES),
        };
        let made = peer.call(diff).await;
        assert!(matches!(made, Response::Diff(Err(_))), "{what:?}: {made:?}");
        let diff = Request::Diff {
            handle: source,
            chunk: 0,
            against: Against::Nothing,
            finer: Some(sums(start, bytes, block_bytes, stride, count)),
            literal_max: Some(CHUNK_BYTES),
        };
        let made = peer.call(diff).await;
        assert!(matches!(made, Response::Diff(Err(_))), "finer {what:?}: {made:?}");
    }
    // Blocks that are none of finer ones.
    for (block_bytes, stride) in [(8192, 1), (262_144, 1), (4096, 2)] {
        let bytes = u64::from(block_bytes * stride);
        let diff = Request::Diff {
            handle: source,
            chunk: 0,
            against: Against::Nothing,
            finer: Some(sums(0, bytes, block_bytes, stride, 7)),
            literal_max: Some(CHUNK_BYTES),
        };
        let made = peer.call(diff).await;
        assert!(
            matches!(made, Response::Diff(Err(ServiceError::BadRequest(_)))),
            "{made:?}"
        );
    }
    for (handle, chunk, against) in [
        (source, 0, Against::Loaded),
        (source, 2, Against::Nothing),
        (source, u64::MAX, Against::Nothing),
        (target, 0, Against::Nothing),
    ] {
        let diff = Request::Diff {
            handle,
            chunk,
            against,
            finer: None,
            literal_max: Some(CHUNK_BYTES),
        };
        let made = peer.call(diff).await;
        assert!(matches!(made, Response::Diff(Err(_))), "{handle:?} {chunk}: {made:?}");
    }
    for (handle, first, count, expected) in [
        (source, 0, 1, None),
        (target, 0, 17, None),
        (target, 0, u64::MAX, None),
        (target, u64::MAX, 16, Some(0)),
        (target, 0, 16, Some(size)),
        (target, 1, 16, Some(CHUNK_BYTES)),
    ] {
        let calculate = Request::CalculateSignature {
            handle,
            first,
            count,
            blocks: Blocks::Fine,
        };
        let Response::CalculateSignature(answer) = peer.call(calculate).await else {
            panic!("another answer")
        };
        assert_eq!(answer.ok().map(|sums| sums.bytes), expected, "{first} {count}");
    }
    let hash = hash_chunk(size, 0, &data[..CHUNK_BYTES as usize]);
    let bomb = [&0x7273_0236_u32.to_be_bytes()[..], &[0x45, 0, 1].repeat(100_000), &[0]].concat();
    let outside = [
        &0x7273_0236_u32.to_be_bytes()[..],
        &[0x4d, 0xff, 0xff, 0xff, 0xff, 1, 0],
    ]
    .concat();
    for (form, delta) in [
        (Form::Whole, &b"too short"[..]),
        (Form::Left, b""),
        (Form::Plain, b""),
        (Form::Plain, b"rs\x026no delta"),
        (Form::Plain, &bomb),
        (Form::Plain, &outside),
        (Form::Packed, b"not packed"),
        (Form::Whole, &vec![0; CHUNK_BYTES as usize]),
    ] {
        let delta = Delta {
            data: Bytes::copy_from_slice(delta),
            form,
            literal_bytes: 0,
            shift: None,
            sparse: false,
            hash,
        };
        let apply = Request::ApplyDelta {
            handle: target,
            chunk: 0,
            delta,
        };
        let applied = peer.call(apply).await;
        assert!(matches!(applied, Response::ApplyDelta(Err(_))), "{form:?}: {applied:?}");
    }
    let partial = fs::metadata(dir.join(".target.realize-part")).unwrap();
    assert_eq!(partial.len(), 0, "nothing was written");
    assert_eq!(fs::read(dir.join("target")).unwrap(), data);
    assert_serves(&hosts);
}

/// Who may write and not read learns nothing of what is there by making files of it.
#[tokio::test]
async fn who_may_not_read_makes_nothing_of_what_is_there() {
    let memory = Scratch::in_memory();
    let dir = memory.dir("served");
    let hosts = Hosts::serving(&[("a", &dir, r#"["write"]"#)]);
    fs::write(dir.join("secret"), "secret").unwrap();
    fs::write(dir.join(".secret.realize-part"), "secret").unwrap();
    let mut peer = Peer::connect(&hosts, 1).await;
    peer.hello(1).await;
    let path = RelPath::new("secret").unwrap();
    let stat = Request::Stat {
        dir: DirId::new("a"),
        paths: vec![path.clone()].into(),
        restore: false,
    };
    let Response::Stat(Ok(mut found)) = peer.call(stat).await else {
        panic!("no answer")
    };
    let version = found.remove(0).unwrap().unwrap().version;
    let open = Request::Open {
        dir: DirId::new("a"),
        path,
        open_for: OpenFor::Write {
            size: 1,
            basis: Some(version),
        },
    };
    let Response::Open(Ok(opened)) = peer.call(open).await else {
        panic!("not opened")
    };
    assert_eq!(opened.basis_len, 0);
    let handle = opened.held.handle;
    let calculate = Request::CalculateSignature {
        handle,
        first: 0,
        count: 1,
        blocks: Blocks::Fine,
    };
    let Response::CalculateSignature(Err(error)) = peer.call(calculate).await else {
        panic!("sums")
    };
    assert!(error.to_string().contains("right to read"), "{error}");
    let delta = Delta {
        data: Bytes::from_static(b"rs\x026\x45\x00\x01\x00"),
        form: Form::Plain,
        literal_bytes: 0,
        shift: None,
        sparse: false,
        hash: hash_chunk(1, 0, b"s"),
    };
    let apply = Request::ApplyDelta {
        handle,
        chunk: 0,
        delta,
    };
    let Response::ApplyDelta(Err(error)) = peer.call(apply).await else {
        panic!("told")
    };
    assert!(error.to_string().contains("right to read"), "{error}");
}

/// No breach: the connection has said whose calls follow.
#[tokio::test]
async fn a_claim_need_not_wait_for_hello() {
    let (_memory, hosts, dir) = served();
    let mut peer = Peer::connect(&hosts, 1).await;
    let claimed = peer
        .call(Request::Claim {
            dir: DirId::new("a"),
            role: Role::Target,
        })
        .await;
    let Response::Claim(Ok(claim)) = claimed else {
        panic!("{claimed:?}")
    };
    let token = claim.token.expect("it can be written to").to_string();
    assert!(token.contains(&RunId([1; 16]).to_string()), "{token}");
    assert!(fs::read_dir(&dir).unwrap().next().is_some());
}

#[tokio::test]
async fn one_run_in_two_connections_is_served_on_the_newer() {
    let (_memory, hosts, _dir) = served();
    let older = Peer::connect(&hosts, 1).await;
    let mut newer = Peer::come_back(&hosts, 1, older.session).await;
    older.end().await;
    newer.hello(1).await;
    hosts.expect_log("a newer connection");
}

#[tokio::test]
async fn paths_as_long_as_may_be_cross_the_line() {
    let (_memory, hosts, dir) = served();
    let disk = Scratch::on_disk();
    let local = disk.dir("local");
    // Made from inside: the whole path is longer than the kernel takes at once.
    let script = format!(
        "i=0; while [ $i -lt 15 ]; do mkdir {0}; cd -P {0}; i=$((i+1)); done; i=0; while [ $i -lt 700 ]; do echo x > f$i; i=$((i+1)); done",
        "d".repeat(250)
    );
    Run::program("sh")
        .args(["-ec", &script])
        .current_dir(&local)
        .run()
        .expect_code(0);
    hosts.realize().arg(&local).arg("nas::a").run().expect_code(0);
    assert!(fs::read_dir(&local).unwrap().next().is_none());
    let found = Run::program("sh")
        .args(["-ec", "find . -type f | wc -l"])
        .current_dir(&dir)
        .run();
    assert_eq!(found.stdout().trim(), "700");
}

/// The version of `path` in the directory that is served.
async fn version(peer: &mut Peer, path: &RelPath) -> Version {
    let stat = Request::Stat {
        dir: DirId::new("a"),
        paths: vec![path.clone()].into(),
        restore: false,
    };
    let Response::Stat(Ok(found)) = peer.call(stat).await else {
        panic!("no answer")
    };
    found.into_iter().next().unwrap().unwrap().unwrap().version
}

#[tokio::test]
async fn a_call_cancelled_after_its_end_leaves_nothing_open() {
    let (_memory, hosts, dir) = served();
    fs::write(dir.join("file"), "text").unwrap();
    let mut peer = Peer::connect(&hosts, 1).await;
    let path = RelPath::new("file").unwrap();
    let version = version(&mut peer, &path).await;
    let files = vec![FileRef { path, version }].into();
    let got = peer
        .call(Request::Get {
            dir: DirId::new("a"),
            files,
        })
        .await;
    assert!(matches!(got, Response::Get(Ok(_))), "{got:?}");
    let file = fs::File::open(dir.join("file")).unwrap();
    let lock = || rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    assert!(lock().is_err(), "it is held for who may still ask for the answer");
    let id = peer.next;
    peer.send(ToServer::Cancel { id }).await.unwrap();
    let begin = Instant::now();
    while lock().is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20), "still held");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_says_it_is_new_is_never_given_what_an_older_one_had() {
    let (_memory, hosts, _dir) = served();
    let mut older = Peer::connect(&hosts, 1).await;
    older.hello(1).await;
    let mut newer = Peer::connect(&hosts, 1).await;
    assert_ne!(older.session, newer.session);
    // Its first call has the number that the older one's had.
    newer.hello(1).await;
    older.end().await;
}

#[tokio::test]
async fn one_peer_that_has_much_hashed_does_not_stop_the_others() {
    let (_memory, hosts, dir) = served();
    let file = fs::File::create(dir.join("file")).unwrap();
    file.set_len(4096 << 20).unwrap();
    drop(file);
    let mut peer = Peer::connect(&hosts, 1).await;
    let path = RelPath::new("file").unwrap();
    let version = version(&mut peer, &path).await;
    let open = Request::Open {
        dir: DirId::new("a"),
        path,
        open_for: OpenFor::Read(version),
    };
    let Response::Open(Ok(opened)) = peer.call(open).await else {
        panic!("not opened")
    };
    for _ in 0..100 {
        let handle = opened.held.handle;
        let (first, count) = (0, 4096);
        peer.begin(Request::Hashes { handle, first, count }).await.unwrap();
    }
    hosts
        .check("nas::a/sub")
        .time_limit(Duration::from_secs(30))
        .run()
        .expect_code(0);
    assert!(peak(&hosts) < 128, "{} MiB", peak(&hosts));
}

#[tokio::test]
async fn a_batch_longer_than_any_may_be_ends_the_connection() {
    let (_memory, hosts, _dir) = served();
    let mut peer = Peer::connect(&hosts, 1).await;
    let (mode, mtime) = (0, Timestamp { secs: 0, nanos: 0 });
    let empty = NewFile {
        path: RelPath::new("x").unwrap(),
        content: Content::Symlink(Bytes::new()),
        meta: Meta { mode, mtime },
        expected: Expected::Absent,
        verify: Verify::Written,
    };
    let files = vec![empty; 150_000].into();
    let dir = DirId::new("a");
    peer.begin(Request::Put { dir, files }).await.unwrap();
    let why = peer.end().await.expect("it is told");
    assert!(why.contains("not a message"), "{why}");
    assert_serves(&hosts);
}

/// Files whose chunks came twice are read back whole: in turns with others, and no longer than somebody waits for it.
#[tokio::test]
async fn one_peer_that_finishes_large_files_does_not_stop_the_others() {
    let disk = Scratch::on_disk();
    let dir = disk.dir("served");
    let hosts = Hosts::serving(&[("a", &dir, ALL)]);
    let mut peer = Peer::connect(&hosts, 1).await;
    let data = Bytes::from(vec![0; CHUNK_BYTES as usize]);
    let mut handles = Vec::new();
    for nth in 0..40 {
        let open = Request::Open {
            dir: DirId::new("a"),
            path: RelPath::new(format!("f{nth}")).unwrap(),
            open_for: OpenFor::Write {
                size: 1 << 40,
                basis: None,
            },
        };
        let Response::Open(Ok(opened)) = peer.call(open).await else {
            panic!("not opened")
        };
        let handle = opened.held.handle;
        for _ in 0..2 {
            let data = data.clone();
            let (chunk, sparse) = (0, false);
            let send = Request::Send {
                handle,
                chunk,
                data,
                sparse,
            };
            assert!(matches!(peer.call(send).await, Response::Send(Ok(()))));
        }
        handles.push(handle);
    }
    for handle in handles {
        let finish = Finish {
            digest: digest(b""),
            meta: Meta {
                mode: 0o600,
                mtime: Timestamp { secs: 1, nanos: 0 },
            },
            expected: Expected::Absent,
            verify: Verify::Written,
        };
        peer.begin(Request::Finish { handle, finish }).await.unwrap();
    }
    let check = || hosts.check("nas::a/sub").time_limit(Duration::from_secs(20)).run();
    check().expect_code(0);
    // It goes: what it asked for ends.
    drop(peer);
    check().expect_code(0);
    assert!(peak(&hosts) < 128, "{} MiB", peak(&hosts));
    let begin = Instant::now();
    // Another run of the same key, which ends what is left of the first.
    let mut peer = Peer::connect(&hosts, 2).await;
    peer.hello(2).await;
    let processor_time = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", hosts.daemon_id())).unwrap();
        let fields: Vec<_> = stat.split_whitespace().skip(13).take(2).collect();
        fields.iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    loop {
        let before = processor_time();
        tokio::time::sleep(Duration::from_millis(500)).await;
        if processor_time() - before < 10 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "it is still reading");
    }
}
