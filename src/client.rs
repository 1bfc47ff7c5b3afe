//! The calling side of a connection: calls that outlive lost lines.
//!
//! A [`Link`] is what [`crate::algo::move_files`] sees of a service on another host. When the connection is lost, it connects
//! again and asks again for every answer that is missing; the other side does no call twice and knows the session by
//! the link's own number, so that open files, locks and verified bytes stay what they were. Only when the session itself is gone (the other
//! side was started anew, or gave it up) do calls fail, with no answer: the move has to begin again.
//!
//! Nobody waits to be let in: the first calls follow at once, and [`LetIn`] tells what came of it. A connection that replaces a lost
//! one is asked for its session before any call goes out again: a new session must not be sent calls of the old one.
//!
//! A connection counts as lost when nothing was heard for [`LinkLimits::idle`]; a ping goes out every third of it.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::FusedFuture};
use tarpc::{RequestName, ServerError, client::RpcError, context::Context};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf},
    sync::{Notify, oneshot},
};

use crate::{
    clock::{Clock, timeout},
    model::Line,
    service::{ITEMS_MAX, RealizeServiceRequest, RealizeServiceResponse},
    tls::TlsError,
    wire::{CallId, Encoded, LinkId, Outbox, Reader, ToClient, ToServer, answers, why_lost, write_messages},
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
    /// Any other call, from when it was sent or the last answer came: disks may take long to sync, and lines be slow.
    pub work: Duration,
    /// So many connections lost in a row, on each of which nothing was answered, are enough.
    pub losses: u32,
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
            losses: 10,
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
    #[error("the other side refuses: {}", Line(.0))]
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
    /// It could not be made again, for this reason; the next try begins after this pause.
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
    /// Calls that nobody waits for: said again on each connection, for it may not have arrived.
    forgotten: VecDeque<CallId>,
    /// How many answers have come.
    answers: u64,
    /// When the last one came.
    progress: Duration,
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

/// A connection on which it was said whose calls follow.
struct Greeted<S> {
    halves: Halves<S>,
    /// What came of saying so. Who is refused learns why by reading, even where the write met a connection that was closed already.
    written: io::Result<()>,
}

/// Tells whether the other side lets this one in.
pub struct LetIn(oneshot::Receiver<Result<(), ConnectError>>);

impl LetIn {
    /// Waits until the other side has said so, [`LinkLimits::connect`] from the beginning at most. When it does not let this one in,
    /// all calls of the link fail, and it does not connect again.
    pub async fn wait(self) -> Result<(), ConnectError> {
        match self.0.await {
            Ok(told) => told,
            // The link was ended before.
            Err(_) => Err(io::Error::from(io::ErrorKind::NotConnected).into()),
        }
    }
}

impl Link {
    /// Connects and keeps connected, as the link `id`, which no other may ever have been, as soon as both sides have shaken hands: calls may be made at once, whatever will come of
    /// [`LetIn`]. `jitter` is any number; `observer` is told of lost connections.
    pub async fn connect<D: Dial, C: Clock>(
        dial: D,
        clock: C,
        limits: LinkLimits,
        id: LinkId,
        jitter: u64,
        observer: impl Fn(LinkEvent) + Send + Sync + 'static,
    ) -> Result<(Self, LetIn), ConnectError> {
        let since = clock.now();
        let greeted = in_time(&clock, &limits, greet(&dial, id, None)).await?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_id: 0,
                pending: BTreeMap::new(),
                answered: Vec::new(),
                forgotten: VecDeque::new(),
                answers: 0,
                progress: clock.now(),
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
            id,
            session: OnceLock::new(),
            jitter,
            observer,
        };
        // Known to the connection before any call is made.
        let outbox = shared.connected(driver.clock.now()).0;
        let (tell, let_in) = oneshot::channel();
        tokio::spawn(driver.drive(greeted, since, tell, outbox));
        let link = Self {
            _open: Arc::new(Open(shared.clone())),
            shared,
        };
        Ok((link, LetIn(let_in)))
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
            state.forget(self.id);
        }
    }
}

impl State {
    /// Nobody waits for the answer of this call any more.
    fn forget(&mut self, id: CallId) {
        if self.forgotten.len() >= FORGOTTEN_MAX {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(id);
        if let Some(outbox) = &self.outbox {
            cancel(outbox, id);
        }
    }
}

/// How many calls that nobody waits for are remembered; what more of them have opened is closed with the session.
const FORGOTTEN_MAX: usize = 4096;

fn cancel(outbox: &Outbox, id: CallId) {
    // So short a message can be encoded.
    if let Ok(message) = Encoded::new(ToServer::Cancel { id }) {
        outbox.push(message);
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
        let count = state.answered.len().min(ITEMS_MAX);
        let rest = state.answered.split_off(count);
        let answered = std::mem::replace(&mut state.answered, rest).into();
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
        for id in &state.forgotten {
            cancel(&outbox, *id);
        }
        state.outbox = Some(outbox.clone());
        (outbox, state.pending.len())
    }

    fn answers(&self) -> u64 {
        self.state().answers
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

    fn take_answer(&self, id: CallId, response: RealizeServiceResponse, now: Duration) -> io::Result<()> {
        let mut state = self.state();
        state.answers += 1;
        state.progress = now;
        // One that was cancelled has no place any more.
        if let Some(pending) = state.pending.remove(&id) {
            if !answers(&pending.name, &response) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer of another call"));
            }
            pending.reply.send(Ok(response)).ok();
        }
        state.answered.push(id);
        Ok(())
    }

    fn take_failure(&self, id: CallId, why: String) {
        let mut state = self.state();
        if let Some(pending) = state.pending.remove(&id) {
            state.answered.push(id);
            pending.reply.send(Err(why)).ok();
        }
    }

    /// Ends calls whose limits are over.
    fn check_limits(&self, now: Duration, limits: &LinkLimits) {
        let mut state = self.state();
        state.now = now;
        let progress = state.progress;
        let is_over = |_: &CallId, pending: &mut Pending| {
            // On a slow line what is sent in bulk waits for what was sent before.
            let (since, limit) = if pending.is_control {
                (pending.sent, limits.control)
            } else {
                (pending.sent.max(progress), limits.work)
            };
            now.saturating_sub(since) > limit
        };
        let over: Vec<_> = state.pending.extract_if(.., is_over).collect();
        for (id, pending) in over {
            state.forget(id);
            let text = format!("{} took longer than it may", pending.name);
            pending.reply.send(Err(text)).ok();
        }
    }
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

/// What comes of `connecting`, if it comes in time.
async fn in_time<T, C: Clock>(
    clock: &C,
    limits: &LinkLimits,
    connecting: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(clock, limits.connect, connecting)
        .await
        .unwrap_or(Err(ConnectError::TimedOut(limits.connect)))
}

/// Keeps a link connected, as a task of its own.
struct Driver<D, C, O> {
    shared: Arc<Shared>,
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
        Greeted { mut halves, written }: Greeted<D::Stream>,
        since: Duration,
        tell: oneshot::Sender<Result<(), ConnectError>>,
        mut outbox: Arc<Outbox>,
    ) {
        let mut jitter = self.jitter;
        let mut first = Some(First { since, written, tell });
        let mut losses = 0;
        loop {
            let answers = self.shared.answers();
            let why = match self.serve(&mut halves, &outbox, first.take()).await {
                Ended::Closed | Ended::NotLetIn => break,
                Ended::Lost(error) => why_lost(&error),
                Ended::Refused(why) => {
                    self.shared.end(&ConnectError::Refused(why).to_string());
                    break;
                }
            };
            losses = if self.shared.answers() == answers {
                losses + 1
            } else {
                0
            };
            if losses >= self.limits.losses {
                self.shared.end(&format!(
                    "lost {losses} times in a row before anything was answered; at last: {why}"
                ));
                break;
            }
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
                Ok((_, session)) if self.session.get() != Some(&session) => {
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

    /// Reads and writes until the connection is lost or not wanted any more.
    async fn serve(&self, (reader, writing): &mut Halves<D::Stream>, outbox: &Outbox, first: Option<First>) -> Ended {
        let (ended, is_told) = {
            let written = async {
                let written = write_messages(writing, outbox).await;
                written.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into())
            };
            let mut written = std::pin::pin!(written.fuse());
            let entered = match first {
                Some(first) => self.enter(reader, written.as_mut(), first).await,
                None => Ok(()),
            };
            let ended = match entered {
                Ok(()) => self.exchange(reader, written.as_mut(), outbox).await,
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
            let shutdown = tokio::io::AsyncWriteExt::shutdown(writing);
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
            () = self.shared.closing.notified() => return Err(Ended::Closed),
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
                let why = error.to_string();
                // Before any call fails, so that who sees one fail finds the reason here.
                tell.send(Err(error)).ok();
                self.shared.end(&why);
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
            () = self.shared.closing.notified() => Ended::Closed,
            ended = reading => ended,
            error = written => Ended::Lost(error),
            error = self.watch(&heard, outbox) => Ended::Lost(error),
        }
    }

    fn take(&self, message: ToClient) -> Result<(), Ended> {
        match message {
            ToClient::Answer { id, response } => {
                let taken = self.shared.take_answer(id, response, self.clock.now());
                taken.map_err(Ended::Lost)
            }
            ToClient::Failed { id, why } => {
                self.shared.take_failure(id, why);
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

    /// Connects again, with pauses between tries.
    async fn reconnect(&self, jitter: u64) -> Result<(Halves<D::Stream>, [u8; 16]), ConnectError> {
        let since = self.clock.now();
        let session = self.session.get().copied();
        let varied = 0.75 + (jitter >> 40) as f64 / (1u64 << 25) as f64;
        let (all, last) = (self.limits.pauses, self.limits.pauses.last());
        let mut pauses = all
            .iter()
            .chain(last.into_iter().cycle())
            .map(|pause| pause.mul_f64(varied));
        let mut pause = pauses.next().unwrap_or_default();
        loop {
            self.clock.sleep(pause).await;
            pause = pauses.next().unwrap_or_default();
            match in_time(&self.clock, &self.limits, attach(&self.dial, self.id, session)).await {
                Err(error) if error.is_passing() && self.clock.now().saturating_sub(since) < self.limits.reconnect => {
                    (self.observer)(LinkEvent::Waiting(error.to_string(), pause));
                }
                result => return result,
            }
        }
    }
}
