//! Small calls beside bulk data, on one real connection.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{alone, support::*};
use bytes::Bytes;
use realize::{
    clock::TokioClock,
    digest::CHUNK_BYTES,
    model::RelPath,
    service::{DirId, OpenFor, RealizeServiceRequest as Request, RealizeServiceResponse as Response},
    wire::{Encoded, Outbox, ToClient, ToServer, write_messages},
};

/// How many chunks are on their way at once: twice what a move has, and much more than the buffers of the sockets hold.
const ON_THE_WAY: u64 = 64;

/// What came of pings under load.
struct Load {
    chunks: u64,
    /// For each ping, how long its answer took, and how many chunks came to their end meanwhile.
    pings: Vec<(Duration, u64)>,
}

/// Pings while chunks are sent, or asked for.
async fn ping_under_load(push: bool) -> Load {
    const CHUNKS: u64 = 64;
    let memory = Scratch::in_memory();
    let dir = memory.dir("served");
    let size = CHUNKS * CHUNK_BYTES;
    fs::File::create(dir.join("old")).unwrap().set_len(size).unwrap();
    let hosts = Hosts::serving(&[("a", &dir, ALL)]);
    let mut peer = Peer::connect(&hosts, 1).await;
    peer.hello(1).await;
    let a = DirId::new("a");
    let paths = vec![RelPath::new("old").unwrap()].into();
    let stat = Request::Stat {
        dir: a.clone(),
        paths,
        restore: false,
    };
    let Response::Stat(Ok(found)) = peer.call(stat).await else {
        panic!("no answer")
    };
    let old = found.into_iter().next().unwrap().unwrap().unwrap();
    let (path, open_for) = if push {
        (RelPath::new("new").unwrap(), OpenFor::Write { size, basis: None })
    } else {
        (old.path, OpenFor::Read(old.version))
    };
    let open = Request::Open { dir: a, path, open_for };
    let Response::Open(Ok(opened)) = peer.call(open).await else {
        panic!("not opened")
    };
    let handle = opened.held.handle;
    let data = Bytes::from(vec![7; CHUNK_BYTES as usize]);
    let outbox = Outbox::default();
    let first = peer.next + 1;
    let call = |id: u64, answered: Vec<u64>| {
        let answered = answered.into();
        let chunk = id % CHUNKS;
        let request = if push {
            let (data, sparse) = (data.clone(), false);
            Request::Send {
                handle,
                chunk,
                data,
                sparse,
            }
        } else {
            Request::Read { handle, chunk }
        };
        outbox.push(Encoded::new(ToServer::Call { id, answered, request }).unwrap());
    };
    for id in first..first + ON_THE_WAY {
        call(id, Vec::new());
    }
    let (sent, pings) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let done = AtomicU64::new(0);
    let reading = async {
        loop {
            match peer.reader.next::<ToClient>().await.unwrap().unwrap() {
                ToClient::Answer { id, response } => {
                    let is_done = matches!(response, Response::Send(Ok(())) | Response::Read(Ok(_)));
                    assert!(is_done, "{response:?}");
                    let before = done.fetch_add(1, Ordering::Relaxed);
                    call(first + ON_THE_WAY + before, vec![id]);
                }
                ToClient::Pong { number } => {
                    let (at, before): (Instant, u64) = sent.lock().unwrap().remove(&number).unwrap();
                    let meanwhile = done.load(Ordering::Relaxed) - before;
                    pings.lock().unwrap().push((at.elapsed(), meanwhile));
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let pinging = async {
        for number in 0..60 {
            let before = done.load(Ordering::Relaxed);
            sent.lock().unwrap().insert(number, (Instant::now(), before));
            outbox.push(Encoded::new(ToServer::Ping { number }).unwrap());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        while !sent.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let clock = TokioClock::new();
    tokio::select! {
        biased;
        () = pinging => {}
        () = reading => {}
        ended = write_messages(&mut peer.writing, &outbox, &clock) => panic!("{ended:?}"),
        () = tokio::time::sleep(Duration::from_secs(60)) => panic!("not answered: {:?}", sent.lock().unwrap()),
    }
    let pings = pings.into_inner().unwrap();
    let chunks = done.into_inner();
    Load { chunks, pings }
}

#[tokio::test]
async fn a_ping_is_answered_within_a_second_under_full_load() {
    let _alone = alone();
    for push in [true, false] {
        let Load { chunks, mut pings } = ping_under_load(push).await;
        assert!(chunks > 100, "{chunks} chunks are no load");
        let slowest = pings.iter().map(|(took, _)| *took).max().unwrap();
        assert!(slowest < Duration::from_secs(1), "push {push}: {slowest:?}");
        // What stood in one line with the chunks would wait for all that are on their way, however fast the line is.
        pings.sort_by_key(|(_, meanwhile)| *meanwhile);
        let (_, meanwhile) = pings[pings.len() / 2];
        eprintln!("push {push}: {chunks} chunks, slowest ping {slowest:?}, {meanwhile} chunks beside a ping");
        assert!(meanwhile < ON_THE_WAY * 3 / 4, "push {push}: {meanwhile} chunks");
    }
}
