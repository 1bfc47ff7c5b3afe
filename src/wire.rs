//! Messages on a stream: the envelope of the service, its frames and their limits.
//!
//! A connection carries three lanes each way: what tells that a side lives, small calls, and bulk data. Each lane's messages go in order,
//! cut into frames, and a frame of an earlier lane goes before any of a later one, so that a ping waits for one frame at most, however
//! long what is sent takes; where that is long, frames are short. A message is a head (the call, encoded by postcard) and, for the calls that carry a chunk, its data as it
//! is: chunks are not copied into a message.
//!
//! # Security
//!
//! Everything read here comes from a peer. Lengths are checked before anything is allocated, and at most one message of each lane
//! is being assembled. Deadlines and trace contexts are not on the wire.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
};

use crate::{
    clock::Clock,
    digest::CHUNK_BYTES,
    service::{ITEMS_MAX, Items, RealizeServiceRequest, RealizeServiceResponse, RunId},
};

/// The most a head may have: a page of a listing, a batch of small files. A frame of the service's design.
pub const HEAD_BYTES_MAX: usize = 2 << 20;

/// The most data that may follow a head: one chunk.
pub const DATA_BYTES_MAX: usize = CHUNK_BYTES as usize;

/// The most a frame may carry.
const FRAME_BYTES: usize = 64 << 10;

/// And what one carries however slowly it goes: headers of 26 bytes, those of TLS among them, are nothing to it.
const SLOW_FRAME_BYTES: usize = 4 << 10;

/// Frames that take longer become shorter: messages of earlier lanes wait for one.
const FRAME_TIME: Duration = Duration::from_millis(100);

/// The lengths of head and data, before them.
const PREFIX_BYTES: usize = 8;

/// Lane and length, before each frame.
const HEADER_BYTES: usize = 4;

/// The number of a call, never used twice by one link.
pub type CallId = u64;

/// Tells a link from all others of the same host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkId {
    /// The run.
    pub run: RunId,
    /// Which of the run's moves, each of which begins anew: a later one ends what is left of those before.
    pub attempt: u32,
    /// Which link of that move. (It has several to one host that was named in several ways.)
    pub number: u32,
}

/// What the side that calls sends.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToServer {
    /// First on every connection: whose calls follow.
    Attach {
        /// The link.
        link: LinkId,
        /// The session of the link's earlier connections, to go on with; `None` on its first one, which begins a session.
        session: Option<[u8; 16]>,
    },
    /// A call. One with the number of an earlier call is that call, asked for again after a lost connection.
    Call {
        /// Its number.
        id: CallId,
        /// Calls whose answers have arrived, and need not be kept.
        answered: Items<CallId>,
        /// The call.
        request: RealizeServiceRequest,
    },
    /// Nobody waits for the answer of this call any more.
    Cancel {
        /// Its number.
        id: CallId,
    },
    /// The run needs its session no more.
    Bye,
    /// To be answered by [`ToClient::Pong`] at once.
    Ping {
        /// To know the answer by.
        number: u64,
    },
}

/// What the side that is called sends.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToClient {
    /// Answers [`ToServer::Attach`].
    Attached {
        /// The session.
        session: [u8; 16],
    },
    /// The connection ends, for this reason.
    Refused {
        /// In words.
        why: String,
    },
    /// The answer of a call.
    Answer {
        /// The call's number.
        id: CallId,
        /// What came of it.
        response: RealizeServiceResponse,
    },
    /// The call was done, but its answer can't be sent.
    Failed {
        /// The call's number.
        id: CallId,
        /// In words.
        why: String,
    },
    /// Answers a ping.
    Pong {
        /// The ping's number.
        number: u64,
    },
}

/// A message of one of the two directions.
pub trait Message: Serialize + DeserializeOwned {
    /// Which lane it goes in.
    fn lane(&self) -> Lane;

    /// The chunk in it, which goes beside its head.
    fn data(&mut self) -> Option<&mut Bytes>;
}

/// One of the two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// What tells that a side lives, who it is, and that it goes: each in one frame.
    Prompt,
    /// Calls and answers without bulk data.
    Small,
    /// Chunks and batches of files.
    Bulk,
}

const LANES: [Lane; 3] = [Lane::Prompt, Lane::Small, Lane::Bulk];

impl Message for ToServer {
    fn lane(&self) -> Lane {
        match self {
            Self::Call {
                request:
                    RealizeServiceRequest::Send { .. }
                    | RealizeServiceRequest::ApplyDelta { .. }
                    | RealizeServiceRequest::Put { .. },
                ..
            } => Lane::Bulk,
            // One that is half out must not have the last message in its midst: what may be the last fits a frame, and its lane has nothing longer.
            Self::Attach { .. } | Self::Ping { .. } | Self::Bye => Lane::Prompt,
            Self::Call { .. } | Self::Cancel { .. } => Lane::Small,
        }
    }

    fn data(&mut self) -> Option<&mut Bytes> {
        match self {
            Self::Call {
                request: RealizeServiceRequest::Send { data, .. },
                ..
            } => Some(data),
            Self::Call {
                request: RealizeServiceRequest::ApplyDelta { delta, .. },
                ..
            } => Some(&mut delta.data),
            _ => None,
        }
    }
}

impl Message for ToClient {
    fn lane(&self) -> Lane {
        match self {
            Self::Answer {
                response:
                    RealizeServiceResponse::Read(_) | RealizeServiceResponse::Diff(_) | RealizeServiceResponse::Get(_),
                ..
            } => Lane::Bulk,
            Self::Attached { .. } | Self::Refused { .. } | Self::Pong { .. } => Lane::Prompt,
            Self::Answer { .. } | Self::Failed { .. } => Lane::Small,
        }
    }

    fn data(&mut self) -> Option<&mut Bytes> {
        match self {
            Self::Answer {
                response: RealizeServiceResponse::Read(Ok(chunk)),
                ..
            } => Some(&mut chunk.data),
            Self::Answer {
                response: RealizeServiceResponse::Diff(Ok(delta)),
                ..
            } => Some(&mut delta.data),
            _ => None,
        }
    }
}

/// A message as it goes over the wire. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Encoded {
    lane: Lane,
    head: Bytes,
    data: Bytes,
}

impl Encoded {
    /// Encodes `message`.
    pub fn new<M: Message>(mut message: M) -> io::Result<Self> {
        let lane = message.lane();
        let data = message.data().map(std::mem::take).unwrap_or_default();
        let head = postcard::to_stdvec(&message).map_err(io::Error::other)?;
        if head.len() > HEAD_BYTES_MAX || data.len() > DATA_BYTES_MAX {
            let text = format!("a message of {} and {} bytes is too long", head.len(), data.len());
            return Err(io::Error::other(text));
        }
        Ok(Self {
            lane,
            head: head.into(),
            data,
        })
    }

    /// Writes it alone, where no [`Outbox`] is written yet.
    pub async fn write<W: AsyncWrite + Unpin>(self, stream: &mut W) -> io::Result<()> {
        let mut cutter = Cutter::new(self);
        while cutter.write_frame(stream, FRAME_BYTES).await? {}
        stream.flush().await
    }

    /// Bytes of memory it holds, itself included.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.head.len() + self.data.len()
    }
}

/// Whether `response` is what the call of this name is answered by. The code that tarpc makes takes any other for a mistake of
/// its own and panics.
pub fn answers(name: &str, response: &RealizeServiceResponse) -> bool {
    use RealizeServiceResponse::*;
    let call = match response {
        Hello(_) => "hello",
        Configure(_) => "configure",
        Claim(_) => "claim",
        Release(_) => "release",
        List(_) => "list",
        Stat(_) => "stat",
        Digests(_) => "digests",
        Get(_) => "get",
        Open(_) => "open",
        Read(_) => "read",
        Hashes(_) => "hashes",
        Compare(_) => "compare",
        Put(_) => "put",
        Settle(_) => "settle",
        Send(_) => "send",
        CalculateSignature(_) => "calculate_signature",
        LoadSignature(_) => "load_signature",
        Diff(_) => "diff",
        ApplyDelta(_) => "apply_delta",
        Finish(_) => "finish",
        Close(_) => "close",
        Sweep(_) => "sweep",
        RemoveOrphans(_) => "remove_orphans",
        MakeDirs(_) => "make_dirs",
        FinishDirs(_) => "finish_dirs",
        RemoveDirs(_) => "remove_dirs",
        Delete(_) => "delete",
        Rename(_) => "rename",
    };
    name.rsplit('.').next() == Some(call)
}

/// Messages that wait to be written. Bounded by who pushes: a call that is not answered, an answer that is not fetched.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    lanes: [VecDeque<Encoded>; LANES.len()],
    bytes: usize,
    /// Goes before all others, and nothing after it.
    last: Option<Encoded>,
}

impl Outbox {
    /// Queues `message`.
    pub fn push(&self, message: Encoded) {
        let mut queue = self.queue();
        queue.bytes += message.bytes();
        queue.lanes[message.lane as usize].push_back(message);
        drop(queue);
        self.filled.notify_one();
    }

    /// Takes back a message, or a clone of it, of which nothing has been written yet.
    pub fn take_back(&self, message: &Encoded) {
        let mut queue = self.queue();
        let lane = &mut queue.lanes[message.lane as usize];
        let is_it = |waits: &Encoded| std::ptr::eq(waits.head.as_ptr(), message.head.as_ptr());
        if let Some(at) = lane.iter().position(is_it)
            && let Some(taken) = lane.remove(at)
        {
            queue.bytes -= taken.bytes();
        }
    }

    /// Ends what is written with `message`, as soon as the frame under way is out: whatever waits is dropped.
    pub fn end_with(&self, message: Encoded) {
        self.queue().last = Some(message);
        self.filled.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of memory that wait, each message counted with what it takes by itself.
    pub fn bytes(&self) -> usize {
        self.queue().bytes
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.queue().lanes.iter().map(VecDeque::len).sum()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn pop(&self, lane: Lane) -> Option<Encoded> {
        let mut queue = self.queue();
        let message = queue.lanes[lane as usize].pop_front()?;
        queue.bytes -= message.bytes();
        Some(message)
    }
}

/// Writes what comes into `outbox` to `stream`; ends with its first error, or with the message that ends it.
///
/// Dropped half-way it may leave a frame half written: nothing can be sent behind it then.
pub async fn write_messages<W: AsyncWrite + Unpin>(
    stream: &mut W,
    outbox: &Outbox,
    clock: &impl Clock,
) -> io::Result<()> {
    let mut lanes: [Option<Cutter>; LANES.len()] = Default::default();
    let mut frame_bytes = SLOW_FRAME_BYTES;
    loop {
        let last = outbox.queue().last.take();
        if let Some(last) = last {
            return last.write(stream).await;
        }
        let mut next = None;
        for (under_way, lane) in lanes.iter_mut().zip(LANES) {
            if under_way.is_none() {
                *under_way = outbox.pop(lane).map(Cutter::new);
            }
            if under_way.is_some() {
                next = Some(under_way);
                break;
            }
        }
        let Some(under_way) = next else {
            outbox.filled.notified().await;
            continue;
        };
        if let Some(cutter) = under_way {
            let begun = clock.now();
            let has_more = cutter.write_frame(stream, frame_bytes).await?;
            // Handed over, or a ping would have more before it than this frame.
            stream.flush().await?;
            frame_bytes = paced(frame_bytes, clock.now().saturating_sub(begun), has_more);
            if !has_more {
                *under_way = None;
            }
        }
    }
}

/// The most that the frame after one of `frame_bytes`, or of less unless it `is_full`, may carry, when that `took` so long.
fn paced(frame_bytes: usize, took: Duration, is_full: bool) -> usize {
    if took > FRAME_TIME {
        (frame_bytes / 2).max(SLOW_FRAME_BYTES)
    } else if is_full && took < FRAME_TIME / 4 {
        (frame_bytes * 2).min(FRAME_BYTES)
    } else {
        frame_bytes
    }
}

/// A message on its way, cut into frames.
struct Cutter {
    lane: Lane,
    prefix: [u8; PREFIX_BYTES],
    prefix_is_out: bool,
    head: Bytes,
    data: Bytes,
}

impl Cutter {
    fn new(message: Encoded) -> Self {
        let mut prefix = [0; PREFIX_BYTES];
        // Both have been checked to be far below 4 GiB.
        prefix[..4].copy_from_slice(&(message.head.len() as u32).to_be_bytes());
        prefix[4..].copy_from_slice(&(message.data.len() as u32).to_be_bytes());
        Self {
            lane: message.lane,
            prefix,
            prefix_is_out: false,
            head: message.head,
            data: message.data,
        }
    }

    /// Writes the next frame, of `most` bytes; false when it was the last, which may have fewer.
    async fn write_frame<W: AsyncWrite + Unpin>(&mut self, stream: &mut W, most: usize) -> io::Result<bool> {
        let prefix: &[u8] = if self.prefix_is_out { &[] } else { &self.prefix };
        let room = most - prefix.len();
        let head = self.head.split_to(self.head.len().min(room));
        let data = self.data.split_to(self.data.len().min(room - head.len()));
        let frame_bytes = prefix.len() + head.len() + data.len();
        let mut start = BytesMut::with_capacity(HEADER_BYTES + PREFIX_BYTES);
        start.put_u32((self.lane as u32) << 24 | frame_bytes as u32);
        start.extend_from_slice(prefix);
        self.prefix_is_out = true;
        let mut rest = start.freeze().chain_of([head, data]);
        while rest.has_some() {
            let written = rest.write(stream).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(!(self.head.is_empty() && self.data.is_empty()))
    }
}

/// Pieces that go out one after the other, in as few writes as can be.
struct Pieces([Bytes; 3]);

trait ChainOf {
    fn chain_of(self, others: [Bytes; 2]) -> Pieces;
}

impl ChainOf for Bytes {
    fn chain_of(self, [second, third]: [Bytes; 2]) -> Pieces {
        Pieces([self, second, third])
    }
}

impl Pieces {
    fn has_some(&self) -> bool {
        self.0.iter().any(|piece| !piece.is_empty())
    }

    async fn write<W: AsyncWrite + Unpin>(&mut self, stream: &mut W) -> io::Result<usize> {
        let written = {
            let slices = [&self.0[0], &self.0[1], &self.0[2]].map(|piece| io::IoSlice::new(piece));
            stream.write_vectored(&slices).await?
        };
        let mut left = written;
        for piece in &mut self.0 {
            let part = left.min(piece.len());
            bytes::Buf::advance(piece, part);
            left -= part;
        }
        Ok(written)
    }
}

/// Reads messages from a stream.
pub struct Reader<R> {
    stream: R,
    lanes: [Option<Assembly>; LANES.len()],
    /// Of the frame that is being read: its lane, and how many of its bytes are still to come.
    frame: Option<(usize, usize)>,
    /// See [`Reader::last_bytes`].
    last_bytes: usize,
}

/// A message that is arriving.
struct Assembly {
    head: BytesMut,
    head_bytes: usize,
    data: BytesMut,
    data_bytes: usize,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            lanes: Default::default(),
            frame: None,
            last_bytes: 0,
        }
    }

    /// Bytes of memory that the last message takes, at most: its head grows as it is decoded.
    pub fn last_bytes(&self) -> usize {
        self.last_bytes
    }

    /// The next message; `None` when the stream ended between two. `InvalidData` when the peer breaks a rule of this module.
    /// Not to be dropped half-way if it is to be called again.
    pub async fn next<M: Message>(&mut self) -> io::Result<Option<M>> {
        loop {
            let (lane, left) = match self.frame.take() {
                Some(frame) => frame,
                None => match self.read_header().await? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
            };
            let left = self.read_frame(lane, left).await?;
            if left > 0 {
                self.frame = Some((lane, left));
            }
            if let Some(whole) = self.lanes[lane].take_if(|assembly| assembly.is_whole()) {
                if left > 0 {
                    return Err(bad("more in a frame than its message has"));
                }
                self.last_bytes = whole.decoded_bytes();
                return whole.decode().map(Some);
            }
        }
    }

    async fn read_header(&mut self) -> io::Result<Option<(usize, usize)>> {
        let mut header = [0; HEADER_BYTES];
        let mut filled = 0;
        while filled < HEADER_BYTES {
            match self.stream.read(&mut header[filled..]).await? {
                0 if filled == 0 && self.lanes.iter().all(Option::is_none) => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        let header = u32::from_be_bytes(header);
        let (lane, len) = ((header >> 24) as usize, (header & 0xff_ffff) as usize);
        if lane >= LANES.len() || len == 0 || len > FRAME_BYTES {
            return Err(bad("not a frame"));
        }
        Ok(Some((lane, len)))
    }

    /// Reads up to `left` bytes of a frame into the message of `lane`; how many are left then.
    async fn read_frame(&mut self, lane: usize, mut left: usize) -> io::Result<usize> {
        if self.lanes[lane].is_none() {
            let mut prefix = [0; PREFIX_BYTES];
            left = left
                .checked_sub(PREFIX_BYTES)
                .ok_or_else(|| bad("a frame without a prefix"))?;
            self.stream.read_exact(&mut prefix).await?;
            let assembly = Assembly::new(prefix)?;
            if lane == Lane::Prompt as usize && assembly.head_bytes + assembly.data_bytes > FRAME_BYTES {
                return Err(bad("a message longer than its lane takes"));
            }
            self.lanes[lane] = Some(assembly);
        }
        let Some(assembly) = &mut self.lanes[lane] else {
            return Ok(left);
        };
        while left > 0 {
            let part = assembly.missing_part();
            if part.1 == 0 {
                break;
            }
            let mut limited = part.0.limit(part.1.min(left));
            match self.stream.read_buf(&mut limited).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => left -= read,
            }
        }
        Ok(left)
    }
}

impl Assembly {
    fn new(prefix: [u8; PREFIX_BYTES]) -> io::Result<Self> {
        let len = |at: usize| u32::from_be_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]) as usize;
        let (head_bytes, data_bytes) = (len(0), len(4));
        if head_bytes == 0 || head_bytes > HEAD_BYTES_MAX || data_bytes > DATA_BYTES_MAX {
            return Err(bad("a message longer than any may be"));
        }
        Ok(Self {
            head: BytesMut::with_capacity(head_bytes),
            head_bytes,
            data: BytesMut::with_capacity(data_bytes),
            data_bytes,
        })
    }

    /// Where the next bytes go, and how many of them.
    fn missing_part(&mut self) -> (&mut BytesMut, usize) {
        if self.head.len() < self.head_bytes {
            let missing = self.head_bytes - self.head.len();
            (&mut self.head, missing)
        } else {
            let missing = self.data_bytes - self.data.len();
            (&mut self.data, missing)
        }
    }

    fn is_whole(&self) -> bool {
        self.head.len() == self.head_bytes && self.data.len() == self.data_bytes
    }

    fn decoded_bytes(&self) -> usize {
        // An empty link of a batch is 10 bytes on the wire and 200 in memory; lists have a limit (`service::Items`).
        const GROWTH: usize = 20;
        const GROWTH_BYTES_MAX: usize = ITEMS_MAX * 256;
        self.head_bytes + (GROWTH * self.head_bytes).min(GROWTH_BYTES_MAX) + self.data_bytes
    }

    fn decode<M: Message>(self) -> io::Result<M> {
        let (mut message, rest): (M, _) =
            postcard::take_from_bytes(&self.head).map_err(|_| bad("not a message of this service"))?;
        if !rest.is_empty() {
            return Err(bad("more in a head than its message has"));
        }
        match message.data() {
            Some(place) if place.is_empty() => *place = self.data.freeze(),
            None if self.data.is_empty() => {}
            _ => return Err(bad("data where there should be none")),
        }
        Ok(message)
    }
}

/// Why a connection was lost, in words: what TLS says of a plain end is no help.
pub fn why_lost(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the other side has closed the connection".into(),
        _ => error.to_string(),
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the peer sent {what}"))
}

#[cfg(test)]
mod tests;
