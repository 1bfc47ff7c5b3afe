//! The calls of a link: those that wait for an answer, and what is known of those before.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tarpc::RequestName;
use tokio::sync::{Notify, oneshot};

use super::LinkLimits;
use crate::{
    service::{ITEMS_MAX, RealizeServiceRequest, RealizeServiceResponse},
    wire::{CallId, Encoded, Outbox, ToServer, answers},
};

/// The calls of a link, shared by it and its driver.
pub struct Calls {
    state: Mutex<State>,
    /// Nobody calls any more.
    pub closing: Notify,
    /// The driver has ended.
    pub closed: Notify,
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer {
    /// Whether the other side broke the rules: what it may still say is not asked for.
    pub is_lie: bool,
    /// In words.
    pub why: String,
}

impl<W: Into<String>> From<W> for NoAnswer {
    fn from(why: W) -> Self {
        Self {
            is_lie: false,
            why: why.into(),
        }
    }
}

type Reply = Result<RealizeServiceResponse, NoAnswer>;

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
    over: Option<NoAnswer>,
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
    reply: oneshot::Sender<Reply>,
}

impl State {
    /// Nobody waits for the answer of this call any more.
    fn forget(&mut self, id: CallId, message: &Encoded) {
        if self.forgotten.len() >= FORGOTTEN_MAX {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(id);
        if let Some(outbox) = &self.outbox {
            outbox.take_back(message);
            // An earlier connection may have carried it.
            cancel(outbox, id);
        }
    }
}

/// How many answers may have come that are not yet known to have arrived. More than calls are ever under way.
const ANSWERED_MAX: usize = 1 << 16;

/// How many calls that nobody waits for are remembered; what more of them have opened is closed with the session.
const FORGOTTEN_MAX: usize = 4096;

fn cancel(outbox: &Outbox, id: CallId) {
    // So short a message can be encoded.
    if let Ok(message) = Encoded::new(ToServer::Cancel { id }) {
        outbox.push(message);
    }
}

impl Calls {
    /// None yet.
    pub fn new(now: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                next_id: 0,
                pending: BTreeMap::new(),
                answered: Vec::new(),
                forgotten: VecDeque::new(),
                answers: 0,
                progress: now,
                outbox: None,
                over: None,
                now,
            }),
            closing: Notify::new(),
            closed: Notify::new(),
        }
    }

    /// Calls, and waits for the answer; why there will be none. Dropped before, it is cancelled.
    pub async fn call(&self, request: RealizeServiceRequest) -> Reply {
        let (id, reply) = self.begin(request)?;
        let _cancel = CancelOnDrop { calls: self, id };
        reply.await.unwrap_or_else(|_| Err("the link has ended".into()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, request: RealizeServiceRequest) -> Result<(CallId, oneshot::Receiver<Reply>), NoAnswer> {
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

    /// A connection is there: everything unanswered goes out on it. How many calls that are.
    pub fn connected(&self, now: Duration) -> (Arc<Outbox>, usize) {
        let outbox = Arc::new(Outbox::default());
        let mut state = self.state();
        state.now = now;
        // Before the calls: these tell of answers that have arrived, and what such a one had opened is not closed by a cancel that follows.
        for id in &state.forgotten {
            cancel(&outbox, *id);
        }
        for pending in state.pending.values_mut() {
            pending.sent = now;
            outbox.push(pending.message.clone());
        }
        state.outbox = Some(outbox.clone());
        (outbox, state.pending.len())
    }

    /// The connection is gone.
    pub fn disconnected(&self) {
        self.state().outbox = None;
    }

    /// How many answers have come.
    pub fn answers(&self) -> u64 {
        self.state().answers
    }

    /// No answer will come any more.
    pub fn end(&self, why: impl Into<NoAnswer>) {
        let why = why.into();
        let mut state = self.state();
        state.over.get_or_insert_with(|| why.clone());
        state.outbox = None;
        for (_, pending) in std::mem::take(&mut state.pending) {
            // Who does not wait any more does not miss it.
            pending.reply.send(Err(why.clone())).ok();
        }
    }

    /// Takes an answer, and gives it to who waits for it. `InvalidData` when it is that of another call.
    pub fn take_answer(&self, id: CallId, response: RealizeServiceResponse, now: Duration) -> io::Result<()> {
        let mut state = self.state();
        // They are named once each with the calls that follow, so that few gather.
        if id >= state.next_id || state.answered.len() > ANSWERED_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer of no call"));
        }
        // One that was cancelled has no place any more.
        if let Some(pending) = state.pending.remove(&id) {
            if !answers(&pending.name, &response) {
                // It waits on, for what ends the link.
                state.pending.insert(id, pending);
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer of another call"));
            }
            state.answers += 1;
            state.progress = now;
            pending.reply.send(Ok(response)).ok();
        }
        state.answered.push(id);
        Ok(())
    }

    /// Takes word that a call has no answer, and why.
    pub fn take_failure(&self, id: CallId, why: String) {
        let mut state = self.state();
        if let Some(pending) = state.pending.remove(&id) {
            state.answered.push(id);
            pending.reply.send(Err(why.into())).ok();
        }
    }

    /// Ends calls whose limits are over.
    pub fn check_limits(&self, now: Duration, limits: &LinkLimits) {
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
            state.forget(id, &pending.message);
            let text = format!("{} took longer than it may", pending.name);
            pending.reply.send(Err(text.into())).ok();
        }
    }
}

/// Says that nobody waits for the answer any more.
struct CancelOnDrop<'a> {
    calls: &'a Calls,
    id: CallId,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let mut state = self.calls.state();
        if let Some(pending) = state.pending.remove(&self.id) {
            state.forget(self.id, &pending.message);
        }
    }
}
