//! The calling side of a connection: calls that outlive lost lines.
//!
//! A [`Link`] is what [`crate::algo::move_files`] sees of a service on another host. When the connection is lost, it connects
//! again and asks again for every answer that is missing; the other side does no call twice and knows the session by
//! the run, so that open files, locks and verified bytes stay what they were. Only when the session itself is gone (the other
//! side was started anew, or gave it up) do calls fail, with no answer: the move has to begin again.
//!
//! A connection counts as lost when nothing was heard for [`LinkLimits::idle`]; a ping goes out every third of it.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tarpc::{RequestName, ServerError, client::RpcError, context::Context};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf},
    sync::{Notify, oneshot},
};

use crate::{
    clock::{Clock, timeout},
    service::{RealizeServiceRequest, RealizeServiceResponse, RunId},
    tls::TlsError,
    wire::{CallId, Encoded, Outbox, Reader, ToClient, ToServer, answers, write_messages},
};

/// Waits of a link.
#[derive(Debug, Clone)]
pub struct LinkLimits {
    /// To connect, shake hands and be let in.
    pub connect: Duration,
    /// Nothing heard for so long: the connection is lost.
    pub idle: Duration,
    /// A call that changes nothing and reads little, from when it was sent.
    pub control: Duration,
    /// Any other call: disks may take long to sync.
    pub work: Duration,
    /// Pauses between tries to connect again, each varied by a quarter either way; the last one repeats.
    pub pauses: &'static [Duration],
    /// No try begins later than this after the connection was lost.
    pub reconnect: Duration,
}

impl Default for LinkLimits {
    fn default() -> Self {
        const PAUSES: &[Duration] = &[
            Duration::from_secs(1),
            Duration::from_secs(5),
            Duration::from_secs(15),
            Duration::from_secs(30),
            Duration::from_secs(60),
            Duration::from_secs(120),
            Duration::from_secs(300),
        ];
        Self {
            connect: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            control: Duration::from_secs(60),
            work: Duration::from_secs(600),
            pauses: PAUSES,
            reconnect: Duration::from_secs(1800),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("the name cannot be resolved: {0}")]
    Name(#[source] io::Error),
    /// No connection by TCP.
    #[error("cannot connect: {0}")]
    Tcp(#[source] io::Error),
    /// The handshake failed.
    #[error(transparent)]
    Tls(TlsError),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The other side says why.
    #[error("the other side refuses: {0}")]
    Refused(String),
}

impl ConnectError {
    /// Whether it may be better in a while. Who is refused for who they are need not try again.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Name(_) | Self::Tcp(_) | Self::TimedOut(_) => true,
            Self::Tls(error) => matches!(error, TlsError::Io(_)),
            Self::Refused(_) => false,
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Tls(TlsError::of(error))
    }
}

/// How a link gets its connections.
pub trait Dial: Send + Sync + 'static {
    /// A connection, authenticated on both sides.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Connects. Has no limit of its own.
    fn dial(&self) -> impl Future<Output = Result<Self::Stream, ConnectError>> + Send;
}

/// What happens to the connection of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It was lost, for this reason.
    Lost(String),
    /// It is there again; so many calls were asked for again.
    Back(usize),
    /// Trying again in a while failed, for this reason.
    Waiting(String, Duration),
}

/// A service on another host. Cheap to clone; clones are the same link, which ends with the last.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    _open: Arc<Open>,
}

/// Says that nobody calls any more.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closing.notify_one();
    }
}

struct Shared {
    state: Mutex<State>,
    closing: Notify,
    closed: Notify,
}

struct State {
    next_id: CallId,
    pending: BTreeMap<CallId, Pending>,
    answered: Vec<CallId>,
    /// Of the connection there is now.
    outbox: Option<Arc<Outbox>>,
    /// Once no answer will come any more: why.
    over: Option<String>,
    /// The time, as the driver saw it last: good enough for limits of minutes.
    now: Duration,
}

struct Pending {
    message: Encoded,
    /// Which call, to know its answer by.
    name: String,
    is_control: bool,
    /// When it was sent on the connection there is now.
    sent: Duration,
    reply: oneshot::Sender<Result<RealizeServiceResponse, String>>,
}

type Halves<S> = (Reader<ReadHalf<S>>, WriteHalf<S>);

impl Link {
    /// Connects and keeps connected, for `run`. `jitter` is any number; `observer` is told of lost connections.
    pub async fn connect<D: Dial, C: Clock>(
        dial: D,
        clock: C,
        limits: LinkLimits,
        run: RunId,
        jitter: u64,
        observer: impl Fn(LinkEvent) + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        let (halves, session) = attach(&dial, &clock, &limits, run).await?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_id: 0,
                pending: BTreeMap::new(),
                answered: Vec::new(),
                outbox: None,
                over: None,
                now: clock.now(),
            }),
            closing: Notify::new(),
            closed: Notify::new(),
        });
        let driver = Driver {
            shared: shared.clone(),
            dial,
            clock,
            limits,
            run,
            session,
            jitter,
            observer,
        };
        // Known to the connection before any call is made.
        let outbox = shared.connected(driver.clock.now()).0;
        tokio::spawn(driver.drive(halves, outbox));
        Ok(Self {
            _open: Arc::new(Open(shared.clone())),
            shared,
        })
    }

    /// Ends the link: the other side forgets the session at once. Waits until it has been told, but not for long.
    pub async fn close<C: Clock>(self, clock: &C) {
        const LIMIT: Duration = Duration::from_secs(5);
        let shared = self.shared.clone();
        drop(self);
        // Who can't be told forgets the session in time.
        let _told = timeout(clock, LIMIT, shared.closed.notified()).await;
    }
}

impl tarpc::client::stub::Stub for Link {
    type Req = RealizeServiceRequest;
    type Resp = RealizeServiceResponse;

    async fn call(&self, _: Context, request: Self::Req) -> Result<Self::Resp, RpcError> {
        let failed = |text: String| RpcError::Server(ServerError::new(io::ErrorKind::NotConnected, text));
        let (id, reply) = self.shared.begin(request).map_err(failed)?;
        let _cancel = CancelOnDrop {
            shared: &self.shared,
            id,
        };
        match reply.await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(failed("the link has ended".into())),
        }
    }
}

struct CancelOnDrop<'a> {
    shared: &'a Shared,
    id: CallId,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if state.pending.remove(&self.id).is_some() {
            state.answered.push(self.id);
            let message = Encoded::new(ToServer::Cancel { id: self.id });
            if let (Some(outbox), Ok(message)) = (&state.outbox, message) {
                outbox.push(message);
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(
        &self,
        request: RealizeServiceRequest,
    ) -> Result<(CallId, oneshot::Receiver<Result<RealizeServiceResponse, String>>), String> {
        let name = request.name().to_owned();
        let is_control = matches!(
            request,
            RealizeServiceRequest::Hello { .. }
                | RealizeServiceRequest::Configure { .. }
                | RealizeServiceRequest::Stat { .. }
        );
        let mut state = self.state();
        if let Some(why) = &state.over {
            return Err(why.clone());
        }
        let id = state.next_id;
        state.next_id += 1;
        let answered = std::mem::take(&mut state.answered);
        let message = ToServer::Call { id, answered, request };
        let message = Encoded::new(message).map_err(|error| error.to_string())?;
        let (sender, receiver) = oneshot::channel();
        if let Some(outbox) = &state.outbox {
            outbox.push(message.clone());
        }
        let pending = Pending {
            message,
            name,
            is_control,
            sent: state.now,
            reply: sender,
        };
        state.pending.insert(id, pending);
        Ok((id, receiver))
    }
}

impl Shared {
    /// A connection is there: everything unanswered goes out on it. How many calls that are.
    fn connected(&self, now: Duration) -> (Arc<Outbox>, usize) {
        let outbox = Arc::new(Outbox::default());
        let mut state = self.state();
        state.now = now;
        for pending in state.pending.values_mut() {
            pending.sent = now;
            outbox.push(pending.message.clone());
        }
        state.outbox = Some(outbox.clone());
        (outbox, state.pending.len())
    }

    /// No answer will come any more.
    fn end(&self, why: &str) {
        let mut state = self.state();
        state.over.get_or_insert_with(|| why.to_owned());
        state.outbox = None;
        for (_, pending) in std::mem::take(&mut state.pending) {
            // Who does not wait any more does not miss it.
            pending.reply.send(Err(why.to_owned())).ok();
        }
    }

    fn take_answer(&self, id: CallId, response: RealizeServiceResponse) -> io::Result<()> {
        let mut state = self.state();
        // One that was cancelled has no place any more.
        if let Some(pending) = state.pending.remove(&id) {
            if !answers(&pending.name, &response) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer of another call"));
            }
            state.answered.push(id);
            pending.reply.send(Ok(response)).ok();
        }
        Ok(())
    }

    /// Ends calls whose limits are over.
    fn check_limits(&self, now: Duration, limits: &LinkLimits) {
        let mut state = self.state();
        state.now = now;
        let is_over = |_: &CallId, pending: &mut Pending| {
            let limit = if pending.is_control {
                limits.control
            } else {
                limits.work
            };
            now.saturating_sub(pending.sent) > limit
        };
        let over: Vec<_> = state.pending.extract_if(.., is_over).collect();
        for (id, pending) in over {
            state.answered.push(id);
            let text = format!("{} took longer than it may", pending.name);
            pending.reply.send(Err(text)).ok();
        }
    }
}

/// Connects, shakes hands, and is given the session of `run`.
async fn attach<D: Dial, C: Clock>(
    dial: &D,
    clock: &C,
    limits: &LinkLimits,
    run: RunId,
) -> Result<(Halves<D::Stream>, [u8; 16]), ConnectError> {
    let attach = async {
        let (reading, mut writing) = tokio::io::split(dial.dial().await?);
        let mut reader = Reader::new(reading);
        // Who is refused learns why by reading, even where the write met a connection that was closed already.
        let written = Encoded::new(ToServer::Attach { run })?.write(&mut writing).await;
        let answer = match (reader.next().await, written) {
            (Ok(None), Err(error)) => return Err(error.into()),
            (answer, _) => answer?,
        };
        match answer {
            Some(ToClient::Attached { session }) => Ok(((reader, writing), session)),
            Some(ToClient::Refused { why }) => Err(ConnectError::Refused(why)),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "not the answer to be let in").into()),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    };
    timeout(clock, limits.connect, attach)
        .await
        .unwrap_or(Err(ConnectError::TimedOut(limits.connect)))
}

/// Keeps a link connected, as a task of its own.
struct Driver<D, C, O> {
    shared: Arc<Shared>,
    dial: D,
    clock: C,
    limits: LinkLimits,
    run: RunId,
    session: [u8; 16],
    jitter: u64,
    observer: O,
}

/// How a connection ends.
enum Ended {
    Lost(io::Error),
    Closed,
}

impl<D: Dial, C: Clock, O: Fn(LinkEvent) + Send + Sync + 'static> Driver<D, C, O> {
    async fn drive(self, mut halves: Halves<D::Stream>, mut outbox: Arc<Outbox>) {
        let mut jitter = self.jitter;
        loop {
            let why = match self.serve(&mut halves, &outbox).await {
                Ended::Closed => break,
                Ended::Lost(error) => error.to_string(),
            };
            self.shared.state().outbox = None;
            (self.observer)(LinkEvent::Lost(why.clone()));
            let reconnect = self.reconnect(jitter);
            let (reconnect, closing) = (
                std::pin::pin!(reconnect),
                std::pin::pin!(self.shared.closing.notified()),
            );
            let again = match futures::future::select(reconnect, closing).await {
                futures::future::Either::Left((again, _)) => again,
                futures::future::Either::Right(_) => break,
            };
            match again {
                Err(error) => {
                    self.shared.end(&format!("{why}; then: {error}"));
                    break;
                }
                Ok((_, session)) if session != self.session => {
                    self.shared
                        .end("the other side has lost the session: it was started anew, or waited too long");
                    break;
                }
                Ok((again, _)) => {
                    halves = again;
                    let (filled, calls) = self.shared.connected(self.clock.now());
                    outbox = filled;
                    (self.observer)(LinkEvent::Back(calls));
                }
            }
            jitter = jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
        self.shared.end("the link has ended");
        self.shared.closed.notify_one();
    }

    /// Reads and writes until the connection is lost or not wanted any more. One task does both, so that a reset that only one of
    /// the two sees ends both.
    async fn serve(&self, (reader, writing): &mut Halves<D::Stream>, outbox: &Outbox) -> Ended {
        let heard = Mutex::new(self.clock.now());
        let closed = {
            let reading = async {
                loop {
                    match reader.next().await {
                        Ok(Some(message)) => {
                            *heard.lock().unwrap_or_else(PoisonError::into_inner) = self.clock.now();
                            if let Err(error) = self.take(message) {
                                return error;
                            }
                        }
                        Ok(None) => {
                            return io::Error::new(
                                io::ErrorKind::UnexpectedEof,
                                "the other side has closed the connection",
                            );
                        }
                        Err(error) => return error,
                    }
                }
            };
            let writing = write_messages(writing, outbox);
            let watching = self.watch(&heard, outbox);
            tokio::select! {
                biased;
                () = self.shared.closing.notified() => None,
                error = reading => Some(error),
                result = writing => Some(result.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into())),
                error = watching => Some(error),
            }
        };
        match closed {
            Some(error) => Ended::Lost(error),
            None => {
                let bye = async {
                    Encoded::new(ToServer::Bye)?.write(writing).await?;
                    tokio::io::AsyncWriteExt::shutdown(writing).await
                };
                // Who can't be told forgets the session in time.
                let _told = timeout(&self.clock, self.limits.connect, bye).await;
                Ended::Closed
            }
        }
    }

    fn take(&self, message: ToClient) -> io::Result<()> {
        match message {
            ToClient::Answer { id, response } => self.shared.take_answer(id, response),
            ToClient::Pong { .. } => Ok(()),
            ToClient::Refused { why } => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)),
            ToClient::Attached { .. } => Err(io::Error::new(io::ErrorKind::InvalidData, "let in twice")),
        }
    }

    async fn watch(&self, heard: &Mutex<Duration>, outbox: &Outbox) -> io::Error {
        let mut number = 0;
        loop {
            self.clock.sleep(self.limits.idle / 3).await;
            let now = self.clock.now();
            let heard = *heard.lock().unwrap_or_else(PoisonError::into_inner);
            if now.saturating_sub(heard) >= self.limits.idle {
                let text = format!("nothing heard for {} s", self.limits.idle.as_secs());
                return io::Error::new(io::ErrorKind::TimedOut, text);
            }
            self.shared.check_limits(now, &self.limits);
            number += 1;
            match Encoded::new(ToServer::Ping { number }) {
                Ok(ping) => outbox.push(ping),
                Err(error) => return error,
            }
        }
    }

    async fn reconnect(&self, jitter: u64) -> Result<(Halves<D::Stream>, [u8; 16]), ConnectError> {
        let since = self.clock.now();
        let mut pauses = self.limits.pauses.iter().copied();
        let mut pause = Duration::ZERO;
        loop {
            pause = pauses.next().unwrap_or(pause);
            let pause = pause.mul_f64(0.75 + (jitter >> 40) as f64 / (1u64 << 25) as f64);
            self.clock.sleep(pause).await;
            match attach(&self.dial, &self.clock, &self.limits, self.run).await {
                Err(error) if error.is_passing() && self.clock.now().saturating_sub(since) < self.limits.reconnect => {
                    (self.observer)(LinkEvent::Waiting(error.to_string(), pause));
                }
                result => return result,
            }
        }
    }
}
