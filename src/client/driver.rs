//! Keeps a link connected, and takes what arrives.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::FusedFuture};
use tokio::{
    io::{ReadHalf, WriteHalf},
    sync::oneshot,
};

use super::{
    ConnectError, Dial, LinkEvent, LinkLimits,
    calls::{Calls, NoAnswer},
};
use crate::{
    clock::{Clock, timeout},
    planted::{Bug, planted},
    wire::{Encoded, LinkId, Outbox, Reader, ToClient, ToServer, why_lost, write_messages},
};

type Halves<S> = (Reader<ReadHalf<S>>, WriteHalf<S>);

/// A connection on which it was said whose calls follow.
struct Greeted<S> {
    halves: Halves<S>,
    /// What came of saying so. Who is refused learns why by reading, even where the write met a connection that was closed already.
    written: io::Result<()>,
}

/// Connects, shakes hands, and says whose calls follow.
async fn greet<D: Dial>(dial: &D, link: LinkId, session: Option<[u8; 16]>) -> Result<Greeted<D::Stream>, ConnectError> {
    let (reading, mut writing) = tokio::io::split(dial.dial().await?);
    let written = Encoded::new(ToServer::Attach { link, session })?
        .write(&mut writing)
        .await;
    Ok(Greeted {
        halves: (Reader::new(reading), writing),
        written,
    })
}

/// Connects again, and waits to be let in to the session there was.
async fn attach<D: Dial>(
    dial: &D,
    link: LinkId,
    session: Option<[u8; 16]>,
) -> Result<(Halves<D::Stream>, [u8; 16]), ConnectError> {
    let Greeted { mut halves, written } = greet(dial, link, session).await?;
    let answer = match (halves.0.next().await, written) {
        (Ok(None), Err(error)) => return Err(error.into()),
        (answer, _) => answer?,
    };
    Ok((halves, session_in(answer)?))
}

/// The session that the first message of the other side gives.
fn session_in(first: Option<ToClient>) -> Result<[u8; 16], ConnectError> {
    match first {
        Some(ToClient::Attached { session }) => Ok(session),
        Some(ToClient::Refused { why }) => Err(ConnectError::Refused(why)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "not the answer to be let in").into()),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

/// What comes of `connecting`, if it comes within `limit`.
async fn in_time<T, C: Clock>(
    clock: &C,
    limit: Duration,
    connecting: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(clock, limit, connecting)
        .await
        .unwrap_or(Err(ConnectError::TimedOut(limit)))
}

/// Connects, and keeps the link connected by a task of its own as soon as both sides have shaken hands: its calls, and what tells whether
/// the other side lets it in.
pub async fn connect<D: Dial, C: Clock>(
    dial: D,
    clock: C,
    limits: LinkLimits,
    id: LinkId,
    jitter: u64,
    observer: impl Fn(LinkEvent) + Send + Sync + 'static,
) -> Result<(Arc<Calls>, oneshot::Receiver<Result<(), ConnectError>>), ConnectError> {
    let since = clock.now();
    let greeted = in_time(&clock, limits.connect, greet(&dial, id, None)).await?;
    let calls = Arc::new(Calls::new(clock.now()));
    // Known to the connection before any call is made.
    let outbox = calls.connected(clock.now()).0;
    let (tell, let_in) = oneshot::channel();
    let driver = Driver {
        calls: calls.clone(),
        dial,
        clock,
        limits,
        id,
        session: OnceLock::new(),
        jitter,
        observer,
    };
    tokio::spawn(driver.drive(greeted, since, tell, outbox));
    Ok((calls, let_in))
}

/// Keeps a link connected.
struct Driver<D, C, O> {
    calls: Arc<Calls>,
    dial: D,
    clock: C,
    limits: LinkLimits,
    id: LinkId,
    /// Once it is let in.
    session: OnceLock<[u8; 16]>,
    jitter: u64,
    observer: O,
}

/// What is still to come on the first connection.
struct First {
    /// When it was begun.
    since: Duration,
    /// What came of saying whose calls follow.
    written: io::Result<()>,
    tell: oneshot::Sender<Result<(), ConnectError>>,
}

/// Whether the other side said what it may not: what TLS finds wrong may be the line's.
pub fn breaks_rules(error: &io::Error) -> bool {
    let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    error.kind() == io::ErrorKind::InvalidData && !is_tls
}

/// How a connection ends.
enum Ended {
    Lost(io::Error),
    /// The other side has ended it and will not go on, for this reason.
    Refused(String),
    /// Nobody was let in: nothing is to be connected again. Told already.
    NotLetIn,
    Closed,
}

impl<D: Dial, C: Clock, O: Fn(LinkEvent) + Send + Sync + 'static> Driver<D, C, O> {
    async fn drive(
        self,
        Greeted { halves, written }: Greeted<D::Stream>,
        since: Duration,
        tell: oneshot::Sender<Result<(), ConnectError>>,
        mut outbox: Arc<Outbox>,
    ) {
        let mut jitter = self.jitter;
        let mut first = Some(First { since, written, tell });
        let mut losses = 0;
        let mut connection = halves;
        loop {
            let answers = self.calls.answers();
            let why = match self.serve(connection, &outbox, first.take()).await {
                Ended::Closed | Ended::NotLetIn => break,
                Ended::Lost(error) if breaks_rules(&error) => {
                    self.calls.end(NoAnswer {
                        is_lie: true,
                        why: error.to_string(),
                    });
                    break;
                }
                Ended::Lost(error) => why_lost(&error),
                Ended::Refused(why) => {
                    self.calls.end(ConnectError::Refused(why).to_string());
                    break;
                }
            };
            losses = if self.calls.answers() == answers { losses + 1 } else { 0 };
            if losses >= self.limits.losses {
                self.calls.end(format!(
                    "lost {losses} times in a row before anything was answered; at last: {why}"
                ));
                break;
            }
            if self.limits.reconnect.is_zero() {
                self.calls.end(why);
                break;
            }
            self.calls.disconnected();
            (self.observer)(LinkEvent::Lost(why.clone()));
            let reconnect = self.reconnect(jitter);
            let (reconnect, closing) = (std::pin::pin!(reconnect), std::pin::pin!(self.calls.closing.notified()));
            let again = match futures::future::select(reconnect, closing).await {
                futures::future::Either::Left((again, _)) => again,
                futures::future::Either::Right(_) => break,
            };
            match again {
                Err(error) => {
                    if !error.is_passing() {
                        (self.observer)(LinkEvent::Over);
                    }
                    self.calls.end(NoAnswer {
                        is_lie: matches!(error, ConnectError::BreaksRules(_)),
                        why: format!("{why}; then: {error}"),
                    });
                    break;
                }
                Ok((_, session)) if self.session.get() != Some(&session) => {
                    (self.observer)(LinkEvent::Over);
                    self.calls
                        .end("the other side has lost the session: it was started anew, or waited too long");
                    break;
                }
                Ok((again, _)) => {
                    connection = again;
                    let (filled, calls) = self.calls.connected(self.clock.now());
                    outbox = filled;
                    (self.observer)(LinkEvent::Back(calls));
                }
            }
            jitter = jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
        self.calls.end("the link has ended");
        self.calls.closed.notify_one();
    }

    /// Reads and writes until the connection is lost or not wanted any more. It is closed then.
    async fn serve(
        &self,
        (mut reader, mut writing): Halves<D::Stream>,
        outbox: &Outbox,
        first: Option<First>,
    ) -> Ended {
        let (ended, is_told) = {
            let written = async {
                let written = write_messages(&mut writing, outbox, &self.clock).await;
                written.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into())
            };
            let mut written = std::pin::pin!(written.fuse());
            let entered = match first {
                Some(first) => self.enter(&mut reader, written.as_mut(), first).await,
                None => Ok(()),
            };
            let ended = match entered {
                Ok(()) => self.exchange(&mut reader, written.as_mut(), outbox).await,
                Err(ended) => ended,
            };
            let mut is_told = false;
            if let (Ended::Closed, false, Ok(bye)) = (&ended, written.is_terminated(), Encoded::new(ToServer::Bye)) {
                // Behind the frame that is being written. Who can't be told forgets the session in time.
                outbox.end_with(bye);
                is_told = timeout(&self.clock, self.limits.connect, written).await.is_some();
            }
            (ended, is_told)
        };
        if is_told {
            // The other side has read all there is, or will not.
            let shutdown = tokio::io::AsyncWriteExt::shutdown(&mut writing);
            let _ended = timeout(&self.clock, self.limits.connect, shutdown).await;
        }
        ended
    }

    /// Waits to be let in, and tells. What was called meanwhile goes out, and fails when that is of no use.
    async fn enter(
        &self,
        reader: &mut Reader<ReadHalf<D::Stream>>,
        mut written: Pin<&mut impl Future<Output = io::Error>>,
        First {
            since,
            written: first,
            tell,
        }: First,
    ) -> Result<(), Ended> {
        let mut failed = first.err();
        let answer = async {
            let mut answer = std::pin::pin!(reader.next());
            let answer = loop {
                tokio::select! {
                    biased;
                    answer = answer.as_mut() => break answer,
                    error = written.as_mut(), if failed.is_none() => failed = Some(error),
                }
            };
            match (answer, failed.take()) {
                (Ok(None), Some(error)) => Err(error.into()),
                (answer, error) => Ok((session_in(answer?)?, error)),
            }
        };
        let end = since.saturating_add(self.limits.connect);
        let left = end.saturating_sub(self.clock.now());
        let answer = timeout(&self.clock, left, answer);
        let answer = tokio::select! {
            biased;
            () = self.calls.closing.notified() => return Err(Ended::Closed),
            answer = answer => answer.unwrap_or(Err(ConnectError::TimedOut(self.limits.connect))),
        };
        match answer {
            Ok((session, error)) => {
                self.session.get_or_init(|| session);
                // Who does not ask need not know.
                tell.send(Ok(())).ok();
                error.map_or(Ok(()), |error| Err(Ended::Lost(error)))
            }
            Err(error) => {
                let failed = NoAnswer {
                    is_lie: matches!(error, ConnectError::BreaksRules(_)),
                    why: error.to_string(),
                };
                // Before any call fails, so that who sees one fail finds the reason here.
                tell.send(Err(error)).ok();
                self.calls.end(failed);
                Err(Ended::NotLetIn)
            }
        }
    }

    /// Takes messages, while what is to be sent is written. One task does both, so that a reset that only one of the two sees ends
    /// both.
    async fn exchange(
        &self,
        reader: &mut Reader<ReadHalf<D::Stream>>,
        written: Pin<&mut impl Future<Output = io::Error>>,
        outbox: &Outbox,
    ) -> Ended {
        let heard = Mutex::new(self.clock.now());
        let reading = async {
            loop {
                match reader.next().await {
                    Ok(Some(message)) => {
                        *heard.lock().unwrap_or_else(PoisonError::into_inner) = self.clock.now();
                        if let Err(ended) = self.take(message) {
                            return ended;
                        }
                    }
                    Ok(None) => return Ended::Lost(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) => return Ended::Lost(error),
                }
            }
        };
        tokio::select! {
            biased;
            () = self.calls.closing.notified() => Ended::Closed,
            ended = reading => ended,
            error = written => Ended::Lost(error),
            error = self.watch(&heard, outbox) => Ended::Lost(error),
        }
    }

    fn take(&self, message: ToClient) -> Result<(), Ended> {
        match message {
            ToClient::Answer { id, response } => {
                let taken = self.calls.take_answer(id, response, self.clock.now());
                taken.map_err(Ended::Lost)
            }
            ToClient::Failed { id, why } => {
                self.calls.take_failure(id, why);
                Ok(())
            }
            ToClient::Pong { .. } => Ok(()),
            ToClient::Refused { why } => Err(Ended::Refused(why)),
            ToClient::Attached { .. } => Err(Ended::Lost(io::Error::new(io::ErrorKind::InvalidData, "let in twice"))),
        }
    }

    async fn watch(&self, heard: &Mutex<Duration>, outbox: &Outbox) -> io::Error {
        let mut number = 0;
        loop {
            self.clock.sleep(self.limits.idle / 3).await;
            let now = self.clock.now();
            let heard = *heard.lock().unwrap_or_else(PoisonError::into_inner);
            if now.saturating_sub(heard) >= self.limits.idle && !planted(Bug::SilenceKept) {
                let text = format!("nothing heard for {} s", self.limits.idle.as_secs());
                return io::Error::new(io::ErrorKind::TimedOut, text);
            }
            self.calls.check_limits(now, &self.limits);
            number += 1;
            match Encoded::new(ToServer::Ping { number }) {
                Ok(ping) => outbox.push(ping),
                Err(error) => return error,
            }
        }
    }

    /// Connects again, with pauses between tries.
    async fn reconnect(&self, jitter: u64) -> Result<(Halves<D::Stream>, [u8; 16]), ConnectError> {
        let since = self.clock.now();
        let session = self.session.get().copied();
        let mut pauses = self.limits.pauses(jitter);
        let mut pause = pauses.next().unwrap_or_default();
        loop {
            self.clock.sleep(pause).await;
            let left = || {
                let waited = self.clock.now().saturating_sub(since);
                self.limits.reconnect.saturating_sub(waited)
            };
            let limit = self.limits.connect_within(left());
            let tried = in_time(&self.clock, limit, attach(&self.dial, self.id, session)).await;
            let left = left();
            match tried {
                Err(error) if error.is_passing() && !left.is_zero() => {
                    pause = pauses.next().unwrap_or_default().min(left);
                    (self.observer)(LinkEvent::Waiting(error.to_string(), pause));
                }
                result => return result,
            }
        }
    }
}
