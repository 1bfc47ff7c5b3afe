//! Sessions: what a run has open here, and its calls, for as long as the run may come back.
//!
//! A session is known by the peer's key and the run. A call is done once however often it is asked for: while it is under way nothing
//! more is begun, and its answer is kept until the run says that it has arrived.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::future::join_all;
use tarpc::server::Serve;
use tokio::{sync::oneshot, task::JoinHandle};

use super::DaemonLimits;
use crate::{
    clock::{Clock, timeout},
    fs::Fs,
    keys::PublicKey,
    server::{Access, RealizeServer, Roots},
    service::{Handle, RealizeService, RealizeServiceRequest, RealizeServiceResponse, RunId, context},
    wire::{CallId, DATA_BYTES_MAX, Encoded, HEAD_BYTES_MAX, Outbox, ToClient},
};

type Key = (PublicKey, RunId);

/// All sessions of a daemon.
pub struct Sessions<F: Fs, C: Clock> {
    roots: Arc<Roots<F, C>>,
    clock: C,
    limits: DaemonLimits,
    state: Mutex<Known<F, C>>,
}

struct Known<F: Fs, C: Clock> {
    by_key: BTreeMap<Key, Arc<Session<F, C>>>,
    /// Sessions that are over, of which calls may be at work still.
    ending: Vec<(PublicKey, Weak<Session<F, C>>)>,
    /// What the next session is named by.
    seed: [u8; 32],
}

/// One run's session.
pub struct Session<F: Fs, C: Clock> {
    id: [u8; 16],
    server: RealizeServer<F, C>,
    limits: DaemonLimits,
    state: Mutex<State>,
}

struct State {
    running: BTreeMap<CallId, Running>,
    answers: BTreeMap<CallId, Encoded>,
    bytes: usize,
    connection: Option<Connection>,
    connections: u64,
    heard: Duration,
    is_over: bool,
}

struct Running {
    task: JoinHandle<()>,
    bytes: usize,
    is_wanted: bool,
}

struct Connection {
    number: u64,
    outbox: Arc<Outbox>,
    /// Dropped when it is not the session's any more.
    _oust: oneshot::Sender<()>,
}

impl<F: Fs, C: Clock> Sessions<F, C> {
    pub fn new(roots: Arc<Roots<F, C>>, clock: C, limits: DaemonLimits, seed: [u8; 32]) -> Self {
        Self {
            roots,
            clock,
            limits,
            state: Mutex::new(Known {
                by_key: BTreeMap::new(),
                ending: Vec::new(),
                seed,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, Known<F, C>> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session of `run`: the one there is, or a new one. A new run of the same peer ends the sessions of runs that are not heard of:
    /// what these had locked is free then.
    pub async fn attach(
        &self,
        peer: PublicKey,
        run: RunId,
        access: Arc<dyn Access>,
    ) -> Result<Arc<Session<F, C>>, String> {
        let now = self.clock.now();
        let (found, stale) = {
            let mut state = self.state();
            let found = state.by_key.get(&(peer, run)).cloned();
            let is_stale = |key: &Key, session: &mut Arc<Session<F, C>>| {
                let is_same_peer = key.0 == peer && key.1 != run;
                let limit = if is_same_peer {
                    self.limits.idle / 3 + self.limits.idle / 6
                } else {
                    self.limits.session_kept
                };
                (is_same_peer && !session.is_connected()) || now.saturating_sub(session.last_heard()) > limit
            };
            let stale: Vec<_> = if found.is_some() {
                Vec::new()
            } else {
                state.take(is_stale)
            };
            (found, stale)
        };
        self.end_each(stale).await;
        if let Some(session) = found {
            return Ok(session);
        }
        let mut state = self.state();
        let of_peer = state.count(&peer);
        if of_peer >= self.limits.connections_per_peer {
            return Err(format!("{of_peer} runs of this host are connected already"));
        }
        let seed = *blake3::hash(&state.seed).as_bytes();
        state.seed = seed;
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::keyed_hash(&seed, b"realize session").as_bytes()[..16]);
        let session = Arc::new(Session {
            id,
            server: RealizeServer::for_peer(self.roots.clone(), access, run),
            limits: self.limits.clone(),
            state: Mutex::new(State {
                running: BTreeMap::new(),
                answers: BTreeMap::new(),
                bytes: 0,
                connection: None,
                connections: 0,
                heard: now,
                is_over: false,
            }),
        });
        state.by_key.insert((peer, run), session.clone());
        Ok(session)
    }

    /// Ends a session that its run does not need any more.
    pub async fn end(&self, session: &Arc<Session<F, C>>) {
        let known = self.state().take(|_, known| Arc::ptr_eq(known, session));
        self.end_each(known).await;
    }

    /// Ends the sessions of runs that have not come back for too long.
    pub async fn end_stale(&self) {
        let now = self.clock.now();
        let is_stale = |_: &Key, session: &mut Arc<Session<F, C>>| {
            !session.is_connected() && now.saturating_sub(session.last_heard()) > self.limits.session_kept
        };
        let stale = self.state().take(is_stale);
        self.end_each(stale).await;
    }

    /// Ends all sessions.
    pub async fn end_all(&self) {
        let all = self.state().take(|_, _| true);
        self.end_each(all).await;
    }

    /// Waits a while only: a job that hangs in the kernel holds what it holds, and whoever wants that is told that it is busy.
    async fn end_each(&self, sessions: Vec<Arc<Session<F, C>>>) {
        let ending = sessions
            .into_iter()
            .map(|session| tokio::spawn(async move { session.end().await }));
        let _ended = timeout(&self.clock, self.limits.handshake / 2, join_all(ending)).await;
    }
}

impl<F: Fs, C: Clock> Known<F, C> {
    /// Takes the sessions that are to end.
    fn take(&mut self, is_to_end: impl FnMut(&Key, &mut Arc<Session<F, C>>) -> bool) -> Vec<Arc<Session<F, C>>> {
        let taken: Vec<_> = self.by_key.extract_if(.., is_to_end).collect();
        self.ending.retain(|(_, session)| session.strong_count() > 0);
        self.ending.extend(
            taken
                .iter()
                .map(|((peer, _), session)| (*peer, Arc::downgrade(session))),
        );
        taken.into_iter().map(|(_, session)| session).collect()
    }

    /// How many sessions of `peer` there are, those among them that calls are at work for still.
    fn count(&self, peer: &PublicKey) -> usize {
        let ending = self.ending.iter().filter(|(_, session)| session.strong_count() > 0);
        let peers = self.by_key.keys().map(|key| &key.0).chain(ending.map(|(peer, _)| peer));
        peers.filter(|of| *of == peer).count()
    }
}

impl<F: Fs, C: Clock> Session<F, C> {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new connection, in the place of the one there may be: its number, what is sent on it, and what ends once it is not the
    /// session's any more.
    pub fn connected(&self, now: Duration) -> io::Result<(u64, Arc<Outbox>, oneshot::Receiver<()>)> {
        let (oust, ousted) = oneshot::channel();
        let outbox = Arc::new(Outbox::default());
        // Before any answer.
        outbox.push(Encoded::new(ToClient::Attached { session: self.id })?);
        let mut state = self.state();
        state.connections += 1;
        state.heard = now;
        let number = state.connections;
        if !state.is_over {
            state.connection = Some(Connection {
                number,
                outbox: outbox.clone(),
                _oust: oust,
            });
        }
        Ok((number, outbox, ousted))
    }

    /// The connection of this number has ended.
    pub fn disconnected(&self, number: u64, now: Duration) {
        let mut state = self.state();
        if state
            .connection
            .as_ref()
            .is_some_and(|connection| connection.number == number)
        {
            state.connection = None;
            state.heard = now;
        }
    }

    fn is_connected(&self) -> bool {
        self.state().connection.is_some()
    }

    pub fn heard(&self, now: Duration) {
        self.state().heard = now;
    }

    pub fn last_heard(&self) -> Duration {
        self.state().heard
    }

    /// Begins a call, or sends its answer again. `InvalidData` when the run asks for more at once than it may.
    pub fn call(self: &Arc<Self>, id: CallId, answered: &[CallId], request: RealizeServiceRequest) -> io::Result<()> {
        let mut state = self.state();
        for id in answered {
            if let Some(answer) = state.answers.remove(id) {
                state.bytes -= answer.bytes();
            }
        }
        if state.is_over || state.running.contains_key(&id) {
            return Ok(());
        }
        if let Some(answer) = state.answers.get(&id) {
            let answer = answer.clone();
            state.send(answer);
            return Ok(());
        }
        let bytes = reserved_bytes(&request);
        if state.running.len() + state.answers.len() >= self.limits.calls
            || state.bytes + bytes > self.limits.call_bytes
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer asks for too much at once",
            ));
        }
        state.bytes += bytes;
        let session = self.clone();
        let task = tokio::spawn(async move {
            let answer = session.server.clone().serve().serve(context(), request).await;
            let unwanted = session.finished(id, answer);
            // Nobody could close them: nobody is told of them.
            session.server.close_handles(&unwanted).await.ok();
        });
        let running = Running {
            task,
            bytes,
            is_wanted: true,
        };
        state.running.insert(id, running);
        Ok(())
    }

    /// Sends and keeps an answer; of one that nobody waits for any more, what it has opened.
    fn finished(&self, id: CallId, answer: Result<RealizeServiceResponse, tarpc::ServerError>) -> Vec<Handle> {
        let mut state = self.state();
        let Some(running) = state.running.remove(&id) else {
            return Vec::new();
        };
        state.bytes -= running.bytes;
        if !running.is_wanted {
            return answer.map(|response| opened(&response)).unwrap_or_default();
        }
        let answer = answer.map_err(io::Error::other);
        match answer.and_then(|response| Encoded::new(ToClient::Answer { id, response })) {
            Ok(answer) => {
                state.bytes += answer.bytes();
                state.answers.insert(id, answer.clone());
                state.send(answer);
            }
            // An answer too long to be sent, which no call of ours is meant to have: the session is over, which the run is told.
            Err(_) => {
                state.is_over = true;
                state.connection = None;
            }
        }
        Vec::new()
    }

    /// Nobody waits for the answer any more. The call counts until its work has ended: what it holds can't be taken back.
    pub fn cancel(&self, id: CallId) {
        let mut state = self.state();
        if let Some(running) = state.running.get_mut(&id) {
            running.is_wanted = false;
        }
        if let Some(answer) = state.answers.remove(&id) {
            state.bytes -= answer.bytes();
        }
    }

    /// Ends it: its connection, and once its calls have ended what it has open.
    async fn end(&self) {
        let running = {
            let mut state = self.state();
            state.is_over = true;
            state.connection = None;
            state.answers.clear();
            state.bytes = 0;
            std::mem::take(&mut state.running)
        };
        join_all(running.into_values().map(|running| running.task)).await;
        self.server.end().await;
    }
}

impl State {
    fn send(&self, answer: Encoded) {
        if let Some(connection) = &self.connection {
            connection.outbox.push(answer);
        }
    }
}

/// What a response tells of as open.
fn opened(response: &RealizeServiceResponse) -> Vec<Handle> {
    use RealizeServiceResponse::{Digests, Get, Open};
    match response {
        Open(Ok(opened)) => vec![opened.held.handle],
        Get(Ok(files)) | Digests(Ok(files)) => files.iter().flatten().map(|file| file.held.handle).collect(),
        _ => Vec::new(),
    }
}

/// Bytes of memory that a call may take, request and answer together, but for what is small.
fn reserved_bytes(request: &RealizeServiceRequest) -> usize {
    use crate::service::Content;
    const SMALL: usize = 1024;
    SMALL
        + match request {
            RealizeServiceRequest::Send { data, .. } => data.len(),
            RealizeServiceRequest::Read { .. } => DATA_BYTES_MAX,
            RealizeServiceRequest::Get { .. } | RealizeServiceRequest::List { .. } => HEAD_BYTES_MAX,
            RealizeServiceRequest::Hashes { count, .. } => (*count).min(HEAD_BYTES_MAX as u64 / 32) as usize * 32,
            RealizeServiceRequest::Put { files, .. } => files
                .iter()
                .map(|file| match &file.content {
                    Content::File { data, .. } => data.len(),
                    Content::Symlink(text) => text.len(),
                })
                .sum(),
            _ => 0,
        }
}
