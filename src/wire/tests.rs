use super::*;
use crate::{
    clock::TokioClock,
    service::{Chunk, DirId, ServiceError},
};

fn chunk(len: usize) -> ToClient {
    ToClient::Answer {
        id: 7,
        response: RealizeServiceResponse::Read(Ok(Chunk {
            data: vec![5; len].into(),
            sparse: false,
            hash: crate::digest::hash_chunk(len as u64, 0, &vec![5; len]),
        })),
    }
}

fn stat(paths: usize) -> ToServer {
    let path = crate::model::RelPath::new("a/path/of/some/length").unwrap();
    ToServer::Call {
        id: 1,
        answered: vec![2, 3].into(),
        request: RealizeServiceRequest::Stat {
            dir: DirId::new("archive"),
            paths: vec![path; paths].into(),
            restore: false,
        },
    }
}

/// What a peer that writes `messages` has on the wire.
async fn written(messages: Vec<Encoded>) -> Vec<u8> {
    let mut wire = Vec::new();
    for message in messages {
        message.write(&mut wire).await.unwrap();
    }
    wire
}

#[tokio::test]
async fn messages_of_all_sizes_arrive_whole() {
    for len in [1, FRAME_BYTES - 100, FRAME_BYTES, DATA_BYTES_MAX] {
        let wire = written(vec![Encoded::new(chunk(len)).unwrap(), Encoded::new(chunk(1)).unwrap()]).await;
        assert!(wire.len() < len + len / 1000 + 500, "{len} bytes took {}", wire.len());
        let mut reader = Reader::new(wire.as_slice());
        for expected in [len, 1] {
            match reader.next::<ToClient>().await.unwrap().unwrap() {
                ToClient::Answer {
                    id: 7,
                    response: RealizeServiceResponse::Read(Ok(chunk)),
                } => assert_eq!(chunk.data, vec![5; expected]),
                other => panic!("{other:?}"),
            }
        }
        assert!(reader.next::<ToClient>().await.unwrap().is_none());
    }
    let wire = written(vec![Encoded::new(stat(ITEMS_MAX)).unwrap()]).await;
    let message = Reader::new(wire.as_slice()).next::<ToServer>().await.unwrap().unwrap();
    assert_eq!(format!("{message:?}"), format!("{:?}", stat(ITEMS_MAX)));
}

#[tokio::test]
async fn a_list_longer_than_any_may_be_is_no_message() {
    let wire = written(vec![Encoded::new(stat(ITEMS_MAX + 1)).unwrap()]).await;
    let read = Reader::new(wire.as_slice()).next::<ToServer>().await;
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn the_last_message_comes_behind_the_frame_under_way_and_before_all_that_waits() {
    let (mut near, far) = tokio::io::duplex(SLOW_FRAME_BYTES / 3);
    let clock = TokioClock::new();
    let outbox = Outbox::default();
    outbox.push(Encoded::new(chunk(DATA_BYTES_MAX)).unwrap());
    let mut writing = std::pin::pin!(write_messages(&mut near, &outbox, &clock));
    // A frame of the chunk is half out.
    assert!(futures::poll!(writing.as_mut()).is_pending());
    outbox.push(Encoded::new(ToClient::Pong { number: 2 }).unwrap());
    let why = "enough".to_owned();
    outbox.end_with(Encoded::new(ToClient::Refused { why }).unwrap());
    let mut reader = Reader::new(far);
    let (written, first) = tokio::join!(writing, reader.next::<ToClient>());
    written.unwrap();
    assert!(matches!(first.unwrap(), Some(ToClient::Refused { .. })));
}

#[tokio::test]
async fn a_small_message_overtakes_a_bulk_one_between_two_frames() {
    let (near, far) = tokio::io::duplex(FRAME_BYTES);
    let outbox = std::sync::Arc::new(Outbox::default());
    outbox.push(Encoded::new(chunk(DATA_BYTES_MAX)).unwrap());
    let writing = {
        let outbox = outbox.clone();
        async move { write_messages(&mut { near }, &outbox, &TokioClock::new()).await }
    };
    let reading = async {
        let mut reader = Reader::new(far);
        // Some of the chunk is in the pipe before the pong is pushed.
        tokio::task::yield_now().await;
        outbox.push(Encoded::new(ToClient::Pong { number: 1 }).unwrap());
        let first = reader.next::<ToClient>().await.unwrap().unwrap();
        let second = reader.next::<ToClient>().await.unwrap().unwrap();
        (first, second)
    };
    tokio::select! {
        biased;
        ended = writing => panic!("{ended:?}"),
        (first, second) = reading => {
            assert!(matches!(first, ToClient::Pong { number: 1 }), "{first:?}");
            assert!(matches!(second, ToClient::Answer { .. }));
        }
    }
}

#[test]
fn frames_that_take_long_become_short_and_grow_again() {
    let (slow, quick) = (Duration::from_secs(1), Duration::from_millis(1));
    let shorter = |frame_bytes, took| paced(frame_bytes, took, true);
    assert_eq!(shorter(FRAME_BYTES, slow), FRAME_BYTES / 2);
    assert_eq!(shorter(SLOW_FRAME_BYTES, slow), SLOW_FRAME_BYTES);
    assert_eq!(shorter(SLOW_FRAME_BYTES, quick), 2 * SLOW_FRAME_BYTES);
    assert_eq!(shorter(FRAME_BYTES, quick), FRAME_BYTES);
    assert_eq!(shorter(8 << 10, Duration::from_millis(60)), 8 << 10);
    // One that carries little goes quickly on any line.
    assert_eq!(paced(8 << 10, quick, false), 8 << 10);
}

/// The mover says goodbye while a call is half out.
#[tokio::test]
async fn a_goodbye_in_the_midst_of_a_call_is_understood() {
    let (mut near, far) = tokio::io::duplex(SLOW_FRAME_BYTES / 3);
    let (outbox, clock) = (Outbox::default(), TokioClock::new());
    outbox.push(Encoded::new(stat(ITEMS_MAX)).unwrap());
    let mut writing = std::pin::pin!(write_messages(&mut near, &outbox, &clock));
    assert!(futures::poll!(writing.as_mut()).is_pending());
    outbox.end_with(Encoded::new(ToServer::Bye).unwrap());
    let mut reader = Reader::new(far);
    let (written, first) = tokio::join!(writing, reader.next::<ToServer>());
    written.unwrap();
    assert!(matches!(first.unwrap(), Some(ToServer::Bye)));
}

#[tokio::test]
async fn what_is_taken_back_does_not_go_out() {
    let outbox = Outbox::default();
    let messages = [1000, 2000].map(|len| Encoded::new(chunk(len)).unwrap());
    messages.iter().for_each(|message| outbox.push(message.clone()));
    outbox.take_back(&messages[0]);
    assert_eq!((outbox.len(), outbox.bytes()), (1, messages[1].bytes()));
    outbox.end_with(Encoded::new(ToClient::Pong { number: 1 }).unwrap());
    assert_eq!(outbox.len(), 1);
}

#[tokio::test]
async fn a_prompt_message_is_short() {
    let why = "w".repeat(FRAME_BYTES);
    let wire = written(vec![Encoded::new(ToClient::Refused { why }).unwrap()]).await;
    let read = Reader::new(wire.as_slice()).next::<ToClient>().await;
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_ping_overtakes_a_long_page_and_a_chunk() {
    let (near, far) = tokio::io::duplex(SLOW_FRAME_BYTES);
    let outbox = std::sync::Arc::new(Outbox::default());
    let page = RealizeServiceResponse::Hashes(Ok(vec![crate::digest::hash_chunk(4, 0, b"data"); 4096]));
    outbox.push(Encoded::new(ToClient::Answer { id: 1, response: page }).unwrap());
    outbox.push(Encoded::new(chunk(DATA_BYTES_MAX)).unwrap());
    let writing = {
        let outbox = outbox.clone();
        async move { write_messages(&mut { near }, &outbox, &TokioClock::new()).await }
    };
    let reading = async {
        let mut reader = Reader::new(far);
        tokio::task::yield_now().await;
        outbox.push(Encoded::new(ToClient::Pong { number: 1 }).unwrap());
        let mut numbers = Vec::new();
        for _ in 0..3 {
            numbers.push(match reader.next::<ToClient>().await.unwrap().unwrap() {
                ToClient::Pong { .. } => 0,
                ToClient::Answer { id, .. } => id,
                other => panic!("{other:?}"),
            });
        }
        numbers
    };
    tokio::select! {
        biased;
        ended = writing => panic!("{ended:?}"),
        numbers = reading => assert_eq!(numbers, [0, 1, 7]),
    }
}

#[tokio::test]
async fn what_breaks_the_rules_is_refused() {
    let good = written(vec![Encoded::new(stat(1)).unwrap()]).await;
    let error = async |wire: &[u8]| Reader::new(wire).next::<ToServer>().await.unwrap_err().kind();
    let with = |at: usize, byte: u8| {
        let mut wire = good.clone();
        wire[at] = byte;
        wire
    };
    let data = io::ErrorKind::InvalidData;
    assert_eq!(error(b"GET / HTTP/1.1\r\n\r\n").await, data, "another protocol");
    assert_eq!(error(&with(0, 3)).await, data, "a lane that is none");
    assert_eq!(error(&with(1, 1)).await, data, "a frame over the limit");
    assert_eq!(error(&[0, 0, 0, 0]).await, data, "an empty frame");
    assert_eq!(
        error(&[0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0]).await,
        data,
        "no room for the prefix"
    );
    assert_eq!(error(&with(4, 1)).await, data, "a head over the limit");
    assert_eq!(error(&with(8, 1)).await, data, "data over the limit");
    assert_eq!(
        error(&with(11, 1)).await,
        io::ErrorKind::UnexpectedEof,
        "data that does not come"
    );
    assert_eq!(error(&with(12, 250)).await, data, "a message that is none");
    for cut in 1..good.len() {
        assert_eq!(error(&good[..cut]).await, io::ErrorKind::UnexpectedEof, "cut at {cut}");
    }
}

#[tokio::test]
async fn data_beside_a_message_that_has_none_is_refused() {
    let mut message = Encoded::new(stat(1)).unwrap();
    message.data = Bytes::from_static(b"more");
    let wire = written(vec![message]).await;
    let error = Reader::new(wire.as_slice()).next::<ToServer>().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn an_answer_is_known_by_its_call() {
    let response = RealizeServiceResponse::RemoveOrphans(Err(ServiceError::NotFound));
    assert!(answers("RealizeService.remove_orphans", &response));
    assert!(!answers("RealizeService.sweep", &response));
}

proptest::proptest! {
    #[test]
    fn any_bytes_give_a_message_or_an_error(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let read = async {
            let mut reader = Reader::new(bytes.as_slice());
            while let Ok(Some(_)) = reader.next::<ToServer>().await {}
        };
        futures::FutureExt::now_or_never(read).expect("a slice never pends");
    }

    #[test]
    fn any_head_gives_a_message_or_an_error(head in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..300)) {
        let len = head.len() as u32;
        let wire = [&(len + 8).to_be_bytes(), &len.to_be_bytes(), &0u32.to_be_bytes(), head.as_slice()].concat();
        let read = async {
            let mut reader = Reader::new(wire.as_slice());
            // Only that it returns.
            reader.next::<ToClient>().await.is_ok()
        };
        futures::FutureExt::now_or_never(read).expect("a slice never pends");
    }
}
