//! A network that does to each connection what its plan says: cut, stalled, or a bit turned over, at an exact byte.
//!
//! Below are the streams of turmoil, which never lose a byte of a live connection; above is TLS. The faults of a connection
//! happen at the end that called, the other end sees of them what it would see of a real line. Offsets count from the
//! first byte of the connection in that direction.
//!
//! Left out: reordering below TCP.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use realize::net::{Listener, Network};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};
use turmoil::net::{TcpListener, TcpStream};

use crate::random::Random;

/// One read or write in so many is short.
const SHORT_ONE_IN: u64 = 8;

/// The most bytes of a short one.
const SHORT_BYTES: u64 = 97;

/// Seen from the side that called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// From it.
    Up,
    /// To it.
    Down,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// Both ends are told at once that it is gone.
    Reset,
    /// It ends as if each end had closed it.
    Close,
    /// The line takes nothing more that way, but lives.
    Stall,
    /// What is sent that way is accepted and lost.
    Swallow,
    /// A bit of this byte turns over.
    Flip {
        /// Which, 0 to 7.
        bit: u8,
    },
}

impl Trouble {
    /// Its name, whatever bit it is about.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "Reset",
            Self::Close => "Close",
            Self::Stall => "Stall",
            Self::Swallow => "Swallow",
            Self::Flip { .. } => "Flip",
        }
    }
}

/// Trouble at one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFault {
    /// On which way.
    pub way: Way,
    /// Before this byte, counted from 0.
    pub at: u64,
    /// What happens.
    pub trouble: Trouble,
}

/// What becomes of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinePlan {
    /// It is made, and these faults strike.
    Made(Vec<WireFault>),
    /// As that, and so many bytes a second go over it each way.
    Slow(u64, Vec<WireFault>),
    /// Nobody answers, and nobody says so.
    Hangs,
    /// It is refused.
    Refused,
}

impl LinePlan {
    /// One fault.
    pub fn fault(way: Way, at: u64, trouble: Trouble) -> Self {
        Self::Made(vec![WireFault { way, at, trouble }])
    }

    /// No fault.
    pub fn clean() -> Self {
        Self::Made(Vec::new())
    }
}

/// The network of one simulation; only to be used inside turmoil. Cheap to clone; clones are the same one.
#[derive(Clone)]
pub struct SimNetwork(Arc<Mutex<State>>);

struct State {
    random: Random,
    plans: VecDeque<LinePlan>,
    wires: BTreeMap<SocketAddr, Arc<Mutex<Wire>>>,
    /// Streams whose end cannot be told to the other side: it would be, if they were dropped.
    silent: Vec<TcpStream>,
    connections: u64,
    struck: u64,
    streams: usize,
    bytes: [u64; 2],
    /// When how much was sent, each way, if that is wanted.
    sent: Option<[Sent; 2]>,
    on_strike: Option<Hook>,
}

/// When how many bytes were sent.
pub type Sent = Vec<(Duration, u64)>;

/// What is told of each fault that strikes.
type Hook = Arc<dyn Fn(&'static str) + Send + Sync>;

/// What both ends of a connection share.
#[derive(Default)]
struct Wire {
    is_reset: bool,
}

impl SimNetwork {
    /// A network whose first connections go as `plans` say, and later ones well.
    pub fn new(seed: u64, plans: Vec<LinePlan>) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: Random::new(seed),
            plans: plans.into(),
            wires: BTreeMap::new(),
            silent: Vec::new(),
            connections: 0,
            struck: 0,
            streams: 0,
            bytes: [0; 2],
            sent: None,
            on_strike: None,
        })))
    }

    /// From now on connections go well; those there are stay as they are.
    pub fn heal(&self) {
        self.state().plans.clear();
    }

    /// How many connections were tried.
    pub fn connections(&self) -> u64 {
        self.state().connections
    }

    /// How many faults have struck, refused and unanswered connections among them.
    pub fn struck(&self) -> u64 {
        self.state().struck
    }

    /// How many streams are open at either end.
    pub fn streams(&self) -> usize {
        self.state().streams
    }

    /// Bytes that went over all connections one way.
    pub fn bytes(&self, way: Way) -> u64 {
        self.state().bytes[way as usize]
    }

    /// From now on notes when how much is sent.
    pub fn note_sent(&self) {
        self.state().sent = Some(Default::default());
    }

    /// When how much was sent one way, over all connections, since that is noted.
    pub fn sent(&self, way: Way) -> Sent {
        let state = self.state();
        state
            .sent
            .as_ref()
            .map(|sent| sent[way as usize].clone())
            .unwrap_or_default()
    }

    /// Calls `hook` with the name of each fault that strikes, and of each slow line.
    pub fn on_strike(&self, hook: impl Fn(&'static str) + Send + Sync + 'static) {
        self.state().on_strike = Some(Arc::new(hook));
    }

    fn struck_by(&self, name: &'static str) {
        self.state().struck += 1;
        self.tell_of(name);
    }

    fn tell_of(&self, name: &'static str) {
        let hook = self.state().on_strike.clone();
        if let Some(hook) = hook {
            hook(name);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock fails the test anyway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stream(&self, inner: TcpStream, caller: SocketAddr, plan: Option<(Option<u64>, Vec<WireFault>)>) -> SimStream {
        let is_caller = plan.is_some();
        let (rate, faults) = plan.unwrap_or_default();
        let mut state = self.state();
        state.streams += 1;
        let random = Random::new(state.random.next_u64());
        let wire = state.wires.entry(caller).or_default().clone();
        drop(state);
        SimStream {
            inner: Some(inner),
            wire,
            network: self.clone(),
            random,
            is_caller,
            faults,
            pace: rate.map(|rate| [Pace::new(rate), Pace::new(rate)]),
            bytes: [0; 2],
            lasting: [None; 2],
            ended: None,
        }
    }
}

impl Network for SimNetwork {
    type Stream = SimStream;
    type Listener = SimListener;

    async fn connect(&self, host: &str, port: u16) -> io::Result<SimStream> {
        let plan = {
            let mut state = self.state();
            state.connections += 1;
            state.plans.pop_front().unwrap_or_else(LinePlan::clean)
        };
        let plan = match plan {
            LinePlan::Made(faults) => (None, faults),
            LinePlan::Slow(rate, faults) => {
                self.tell_of("Slow");
                (Some(rate), faults)
            }
            LinePlan::Hangs => {
                self.struck_by("Hangs");
                std::future::pending().await
            }
            LinePlan::Refused => {
                self.struck_by("Refused");
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
        };
        let inner = TcpStream::connect((host, port)).await?;
        let caller = inner.local_addr()?;
        Ok(self.stream(inner, caller, Some(plan)))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<SimListener> {
        let listener = TcpListener::bind(address).await?;
        let network = self.clone();
        Ok(SimListener { listener, network })
    }
}

/// A bound address.
pub struct SimListener {
    listener: TcpListener,
    network: SimNetwork,
}

impl Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&self) -> io::Result<(SimStream, SocketAddr)> {
        let (inner, from) = self.listener.accept().await?;
        Ok((self.network.stream(inner, from, None), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One end of a connection.
pub struct SimStream {
    inner: Option<TcpStream>,
    wire: Arc<Mutex<Wire>>,
    network: SimNetwork,
    random: Random,
    is_caller: bool,
    faults: Vec<WireFault>,
    /// How slow it is, each way; only at the end that called.
    pace: Option<[Pace; 2]>,
    bytes: [u64; 2],
    /// What has struck and lasts, on each way.
    lasting: [Option<Trouble>; 2],
    /// Cut, and whether by a reset.
    ended: Option<bool>,
}

/// One way of a slow line.
struct Pace {
    bytes_per_second: u64,
    /// Ends when the next byte may go.
    sleep: Pin<Box<Sleep>>,
}

#[expect(clippy::disallowed_methods, reason = "below the seam: the line itself takes time")]
impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    fn went(&mut self, bytes: u64) {
        let took = Duration::from_micros(bytes * 1_000_000 / self.bytes_per_second.max(1));
        let from = self.sleep.deadline().max(Instant::now());
        self.sleep.as_mut().reset(from + took);
    }
}

/// What the plan says of the next bytes.
enum Next {
    /// So many go well.
    Clear(u64),
    /// This strikes now.
    Strikes(Trouble),
}

impl SimStream {
    /// What the next bytes on `way` meet.
    fn next(&self, way: Way) -> Next {
        if let Some(trouble) = self.lasting[way as usize] {
            return Next::Strikes(trouble);
        }
        let at = self.bytes[way as usize];
        let ahead = self.faults.iter().filter(|fault| fault.way == way && fault.at >= at);
        match ahead.min_by_key(|fault| fault.at) {
            Some(fault) if fault.at == at => Next::Strikes(fault.trouble),
            Some(fault) => Next::Clear(fault.at - at),
            None => Next::Clear(u64::MAX),
        }
    }

    /// How many of `wanted` bytes are tried at once.
    fn part(&mut self, wanted: usize, clear: u64) -> usize {
        let short = match self.random.one_in(SHORT_ONE_IN) {
            true => 1 + self.random.below(SHORT_BYTES),
            false => u64::MAX,
        };
        clear.min(short).min(wanted as u64) as usize
    }

    fn went(&mut self, way: Way, count: usize) {
        self.bytes[way as usize] += count as u64;
        if self.is_caller {
            self.network.state().bytes[way as usize] += count as u64;
        }
        if let Some(pace) = &mut self.pace {
            pace[way as usize].went(count as u64);
        }
    }

    /// Waits until a byte may go that way.
    fn poll_pace(&mut self, way: Way, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.pace {
            Some(pace) => pace[way as usize].sleep.as_mut().poll(cx),
            None => Poll::Ready(()),
        }
    }

    /// A fault that is not passed by strikes.
    fn strike(&mut self, way: Way, trouble: Trouble) {
        match trouble {
            Trouble::Flip { .. } => {}
            Trouble::Reset | Trouble::Close => {
                let is_reset = trouble == Trouble::Reset;
                self.wire.lock().unwrap_or_else(PoisonError::into_inner).is_reset = is_reset;
                self.ended = Some(is_reset);
                self.hang_up();
            }
            Trouble::Stall | Trouble::Swallow => {
                if self.lasting[way as usize].replace(trouble).is_some() {
                    return;
                }
            }
        }
        self.network.struck_by(trouble.name());
    }

    /// Ends this end. The other is not told where nothing reaches it any more.
    fn hang_up(&mut self) {
        if let Some(inner) = self.inner.take()
            && self.lasting[Way::Up as usize].is_some()
        {
            self.network.state().silent.push(inner);
        }
    }

    fn is_reset(&self) -> bool {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner).is_reset
    }

    /// One read of at most `max` bytes from below.
    fn read_some(&mut self, cx: &mut Context<'_>, max: usize, flip: u8, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(Ok(()));
        };
        let mut part = vec![0; max];
        let mut part = ReadBuf::new(&mut part);
        let result = Pin::new(inner).poll_read(cx, &mut part);
        std::task::ready!(result)?;
        let count = part.filled().len();
        if count > 0 {
            part.filled_mut()[0] ^= flip;
        }
        buf.put_slice(part.filled());
        let way = if self.is_caller { Way::Down } else { Way::Up };
        self.went(way, count);
        match count == 0 && self.is_reset() {
            true => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            false => Poll::Ready(Ok(())),
        }
    }

    /// One write from below.
    fn write_some(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let written = std::task::ready!(Pin::new(inner).poll_write(cx, buf))?;
        let way = if self.is_caller { Way::Up } else { Way::Down };
        self.went(way, written);
        if let Some(sent) = &mut self.network.state().sent {
            let now = turmoil::sim_elapsed().unwrap_or_default();
            sent[way as usize].push((now, written as u64));
        }
        Poll::Ready(Ok(written))
    }
}

/// What a stream that was cut says.
fn cut(is_reset: bool) -> io::Error {
    match is_reset {
        true => io::ErrorKind::ConnectionReset.into(),
        false => io::ErrorKind::BrokenPipe.into(),
    }
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        match stream.ended {
            Some(true) => return Poll::Ready(Err(cut(true))),
            Some(false) => return Poll::Ready(Ok(())),
            None if buf.remaining() == 0 => return Poll::Ready(Ok(())),
            None => {}
        }
        if stream.is_caller {
            std::task::ready!(stream.poll_pace(Way::Down, cx));
        }
        let next = if stream.is_caller {
            stream.next(Way::Down)
        } else {
            Next::Clear(u64::MAX)
        };
        match next {
            Next::Clear(clear) => {
                let max = stream.part(buf.remaining(), clear);
                stream.read_some(cx, max, 0, buf)
            }
            Next::Strikes(Trouble::Flip { bit }) => {
                let before = buf.filled().len();
                std::task::ready!(stream.read_some(cx, 1, 1 << bit, buf))?;
                if buf.filled().len() > before {
                    stream.strike(Way::Down, Trouble::Flip { bit });
                }
                Poll::Ready(Ok(()))
            }
            // What arrives is lost, and nobody is woken: only a limit ends this.
            Next::Strikes(trouble @ (Trouble::Stall | Trouble::Swallow)) => {
                stream.strike(Way::Down, trouble);
                Poll::Pending
            }
            Next::Strikes(trouble) => {
                stream.strike(Way::Down, trouble);
                match trouble {
                    Trouble::Reset => Poll::Ready(Err(cut(true))),
                    _ => Poll::Ready(Ok(())),
                }
            }
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        if let Some(is_reset) = stream.ended {
            return Poll::Ready(Err(cut(is_reset)));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if stream.is_caller {
            std::task::ready!(stream.poll_pace(Way::Up, cx));
        }
        let next = if stream.is_caller {
            stream.next(Way::Up)
        } else {
            Next::Clear(u64::MAX)
        };
        match next {
            Next::Clear(clear) => {
                let part = stream.part(buf.len(), clear);
                stream.write_some(cx, &buf[..part])
            }
            Next::Strikes(Trouble::Flip { bit }) => {
                let written = std::task::ready!(stream.write_some(cx, &[buf[0] ^ (1 << bit)]))?;
                stream.strike(Way::Up, Trouble::Flip { bit });
                Poll::Ready(Ok(written))
            }
            Next::Strikes(trouble @ (Trouble::Stall | Trouble::Swallow)) => {
                stream.strike(Way::Up, trouble);
                match trouble {
                    Trouble::Stall => Poll::Pending,
                    _ => Poll::Ready(Ok(buf.len())),
                }
            }
            Next::Strikes(trouble) => {
                stream.strike(Way::Up, trouble);
                Poll::Ready(Err(cut(trouble == Trouble::Reset)))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        match &mut stream.inner {
            Some(inner) if stream.lasting[Way::Up as usize].is_none() => Pin::new(inner).poll_shutdown(cx),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.hang_up();
        self.network.state().streams -= 1;
    }
}
