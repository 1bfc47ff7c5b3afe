use std::sync::Mutex;

use tokio::{
    io::{DuplexStream, ReadHalf, WriteHalf, duplex},
    sync::mpsc,
};

use super::*;
use crate::{
    clock::TokioClock,
    service::{DirId, Handle, RunId, SERVICE_VERSION},
    wire::{CallId, Encoded, Reader, ToClient, ToServer},
};

const SESSION: [u8; 16] = [5; 16];

/// Gives the far end of each connection to the test.
struct ToTest(mpsc::UnboundedSender<DuplexStream>);

impl Dial for ToTest {
    type Stream = DuplexStream;

    async fn dial(&self) -> Result<DuplexStream, ConnectError> {
        // Less than a frame, so that who does not read is noticed.
        let (near, far) = duplex(1000);
        self.0.send(far).unwrap();
        Ok(near)
    }
}

/// The other side of a connection.
struct Far {
    reader: Reader<ReadHalf<DuplexStream>>,
    writing: WriteHalf<DuplexStream>,
}

impl Far {
    /// Takes a connection and lets it in.
    async fn enter(streams: &mut mpsc::UnboundedReceiver<DuplexStream>) -> Self {
        let (reading, writing) = tokio::io::split(streams.recv().await.unwrap());
        let reader = Reader::new(reading);
        let mut far = Self { reader, writing };
        let first = far.reader.next().await.unwrap();
        assert!(matches!(first, Some(ToServer::Attach { .. })), "{first:?}");
        far.send(ToClient::Attached { session: SESSION }).await;
        far
    }

    async fn send(&mut self, message: ToClient) {
        // The link may have ended.
        Encoded::new(message).unwrap().write(&mut self.writing).await.ok();
    }

    async fn next_call(&mut self) -> CallId {
        loop {
            match self.reader.next().await.unwrap() {
                Some(ToServer::Call { id, .. }) => return id,
                Some(ToServer::Ping { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn link_limits() -> LinkLimits {
    const PAUSES: &[Duration] = &[Duration::from_millis(1)];
    LinkLimits {
        pauses: PAUSES,
        ..LinkLimits::default()
    }
}

type Lost = Arc<Mutex<Vec<LinkEvent>>>;

async fn linked() -> (Link, mpsc::UnboundedReceiver<DuplexStream>, Lost) {
    let (to_test, streams) = mpsc::unbounded_channel();
    let (events, id) = (
        Lost::default(),
        LinkId {
            run: RunId([1; 16]),
            attempt: 0,
            number: 0,
        },
    );
    let seen = events.clone();
    let observer = move |event| seen.lock().unwrap().push(event);
    let link = Link::connect(ToTest(to_test), TokioClock::new(), link_limits(), id, 1, observer).await;
    (link.unwrap().0, streams, events)
}

fn hello() -> RealizeServiceRequest {
    RealizeServiceRequest::Hello {
        version: SERVICE_VERSION,
        run: RunId([1; 16]),
    }
}

fn released() -> RealizeServiceResponse {
    RealizeServiceResponse::Release(Ok(()))
}

#[tokio::test]
async fn a_call_that_has_no_answer_there_fails_alone() {
    let (link, mut streams, events) = linked().await;
    let release = || link.calls.call(RealizeServiceRequest::Release { dir: DirId::new("a") });
    let far = async {
        let mut far = Far::enter(&mut streams).await;
        let (first, second) = (far.next_call().await, far.next_call().await);
        let why = "too long".into();
        far.send(ToClient::Failed { id: first, why }).await;
        let response = released();
        far.send(ToClient::Answer { id: second, response }).await;
        far
    };
    let (first, second, _far) = tokio::join!(release(), release(), far);
    assert_eq!(first.unwrap_err().why, "too long");
    second.unwrap();
    assert!(events.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_gives_the_answer_of_another_call_is_not_asked_again() {
    let (link, mut streams, events) = linked().await;
    let call = link.calls.call(hello());
    let far = async {
        let mut far = Far::enter(&mut streams).await;
        let id = far.next_call().await;
        let response = released();
        far.send(ToClient::Answer { id, response }).await;
        far
    };
    let (called, _far) = tokio::join!(call, far);
    let failed = called.unwrap_err();
    assert!(
        failed.is_lie && failed.why == "the answer of another call",
        "{failed:?}"
    );
    assert!(events.lock().unwrap().is_empty());
}

#[tokio::test]
async fn answers_that_nobody_asked_for_are_not_kept() {
    let (link, mut streams, _) = linked().await;
    let call = link.calls.call(hello());
    let flood = async {
        let mut far = Far::enter(&mut streams).await;
        let id = far.next_call().await + 1;
        far.send(ToClient::Answer {
            id,
            response: released(),
        })
        .await;
        std::future::pending().await
    };
    let why = tokio::select! {
        biased;
        called = call => called.unwrap_err(),
        () = flood => unreachable!(),
    };
    assert!(why.is_lie && why.why.contains("no call"), "{why:?}");
}

#[tokio::test]
async fn a_side_that_lets_in_and_breaks_off_is_given_up() {
    let (link, mut streams, _) = linked().await;
    let breaking = async {
        for _ in 0..100 {
            let mut far = Far::enter(&mut streams).await;
            far.next_call().await;
        }
    };
    let call = link.calls.call(hello());
    match futures::future::select(std::pin::pin!(call), std::pin::pin!(breaking)).await {
        futures::future::Either::Left((called, _)) => {
            let why = called.unwrap_err();
            assert!(!why.is_lie && why.why.contains("10 times in a row"), "{why:?}");
        }
        futures::future::Either::Right(_) => panic!("connected for ever"),
    }
}

#[tokio::test]
async fn a_link_that_ends_while_it_sends_says_so_behind_the_frame() {
    let (link, mut streams, _) = linked().await;
    let call = RealizeServiceRequest::Send {
        handle: Handle(1),
        chunk: 0,
        data: vec![7; 1 << 20].into(),
        sparse: false,
    };
    let mut far = Far::enter(&mut streams).await;
    let calls = link.calls.clone();
    let called = tokio::spawn(async move { calls.call(call).await });
    // Until the driver can write no more.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    called.abort();
    drop(link);
    let told = async {
        loop {
            match far.reader.next().await.unwrap().expect("it is told before the end") {
                ToServer::Bye => return,
                ToServer::Cancel { .. } | ToServer::Call { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    };
    told.await;
}

#[test]
fn what_the_other_side_says_does_not_steer_a_terminal() {
    for text in [
        ConnectError::Refused("\x1b[2J\nrealize: done".into()).to_string(),
        crate::service::ServiceError::Busy("\x1b[2J\n".into()).to_string(),
    ] {
        assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
    }
}
