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
//! Who breaks the rules of the protocol is not connected to again: its calls fail with `InvalidData`, all others that have no answer with
//! `NotConnected`.
//!
//! A connection counts as lost when nothing was heard for [`LinkLimits::idle`]; a ping goes out every third of it.

mod calls;
mod driver;

use std::{future::Future, io, sync::Arc, time::Duration};

use tarpc::{ServerError, client::RpcError, context::Context};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};

use self::calls::{Calls, NoAnswer};
use crate::{
    clock::{Clock, timeout},
    model::Line,
    service::{RealizeServiceRequest, RealizeServiceResponse},
    tls::TlsError,
    wire::{DATA_BYTES_MAX, HEAD_BYTES_MAX, LinkId},
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
    /// No try begins later than this after the connection was lost. None is made when it is zero.
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

impl LinkLimits {
    /// How long one try to connect may take where all have so long.
    pub fn connect_within(&self, left: Duration) -> Duration {
        const LEAST: Duration = Duration::from_secs(1);
        self.connect.min(left.max(LEAST))
    }

    /// The pauses between tries, varied by `jitter`, which is any number.
    pub fn pauses(&self, jitter: u64) -> impl Iterator<Item = Duration> + use<> {
        let varied = 0.75 + (jitter >> 40) as f64 / (1u64 << 25) as f64;
        let last = self.pauses.last().into_iter().cycle();
        self.pauses.iter().chain(last).map(move |pause| pause.mul_f64(varied))
    }

    /// These, with time enough for the longest call and answer at so many bytes per second.
    pub fn at(self, bytes_per_second: u64) -> Self {
        let longest = 2 * (HEAD_BYTES_MAX + DATA_BYTES_MAX) as u64;
        let takes = Duration::from_secs(longest / bytes_per_second.max(1));
        Self {
            control: self.control.max(takes),
            work: self.work.max(takes),
            ..self
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
    /// The other side says what it may not.
    #[error("the other side breaks the rules: {0}")]
    BreaksRules(String),
}

impl ConnectError {
    /// Whether it may be better in a while. Who is refused for who they are need not try again.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Name(_) | Self::Tcp(_) | Self::TimedOut(_) => true,
            Self::Tls(error) => matches!(error, TlsError::Io(_)),
            Self::Refused(_) | Self::BreaksRules(_) => false,
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        match driver::breaks_rules(&error) {
            true => Self::BreaksRules(error.to_string()),
            false => Self::Tls(TlsError::of(error)),
        }
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
    /// The other side is there again, and does not go on with what was.
    Over,
    /// It could not be made again, for this reason; the next try begins after this pause.
    Waiting(String, Duration),
}

/// A service on another host. Cheap to clone; clones are the same link, which ends with the last.
#[derive(Clone)]
pub struct Link {
    calls: Arc<Calls>,
    _open: Arc<Open>,
}

/// Says that nobody calls any more.
struct Open(Arc<Calls>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closing.notify_one();
    }
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
    /// Connects and keeps connected, as the link `id`, which no other may ever have been. As soon as both sides have shaken hands calls
    /// may be made, whatever will come of [`LetIn`]. `jitter` is any number; `observer` is told of lost connections.
    pub async fn connect<D: Dial, C: Clock>(
        dial: D,
        clock: C,
        limits: LinkLimits,
        id: LinkId,
        jitter: u64,
        observer: impl Fn(LinkEvent) + Send + Sync + 'static,
    ) -> Result<(Self, LetIn), ConnectError> {
        let (calls, let_in) = driver::connect(dial, clock, limits, id, jitter, observer).await?;
        let link = Self {
            _open: Arc::new(Open(calls.clone())),
            calls,
        };
        Ok((link, LetIn(let_in)))
    }

    /// Ends the link: the other side forgets the session at once. Waits until it has been told, but not for long.
    pub async fn close<C: Clock>(self, clock: &C) {
        const LIMIT: Duration = Duration::from_secs(5);
        let calls = self.calls.clone();
        drop(self);
        // Who can't be told forgets the session in time.
        let _told = timeout(clock, LIMIT, calls.closed.notified()).await;
    }
}

impl tarpc::client::stub::Stub for Link {
    type Req = RealizeServiceRequest;
    type Resp = RealizeServiceResponse;

    async fn call(&self, _: Context, request: Self::Req) -> Result<Self::Resp, RpcError> {
        let failed = |NoAnswer { is_lie, why }| {
            let kind = match is_lie {
                true => io::ErrorKind::InvalidData,
                false => io::ErrorKind::NotConnected,
            };
            RpcError::Server(ServerError::new(kind, why))
        };
        self.calls.call(request).await.map_err(failed)
    }
}

#[cfg(test)]
mod tests;
