//! Sessions: what a run has open here, and its calls, for as long as the run may come back.
//!
//! A session is known by the peer's key and the run. A call is done once however often it is asked for: while it is under way nothing
//! more is begun, and its answer is kept until the run says that it has arrived.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tarpc::server::Serve;
use tokio::{sync::oneshot, task::AbortHandle};

use super::DaemonLimits;
use crate::{
    clock::{Clock, timeout},
    fs::Fs,
    keys::PublicKey,
    server::{Access, RealizeServer, Roots},
    service::{RealizeService, RealizeServiceRequest, RunId, context},
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
    /// What the next session is named by.
    seed: [u8; 32],
}

/// One run's session.
pub struct Session<F: Fs, C: Clock> {
    id: [u8; 16],
    key: Key,
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
    task: AbortHandle,
    bytes: usize,
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
                state
                    .by_key
                    .extract_if(.., is_stale)
                    .map(|(_, session)| session)
                    .collect()
            };
            (found, stale)
        };
        for session in stale {
            // A job that hangs in the kernel holds what it holds; whoever wants that is told that it is busy.
            let _ended = timeout(&self.clock, self.limits.handshake / 2, session.end()).await;
        }
        if let Some(session) = found {
            return Ok(session);
        }
        let mut state = self.state();
        let of_peer = state.by_key.keys().filter(|key| key.0 == peer).count();
        if of_peer >= self.limits.connections_per_peer {
            return Err(format!("{of_peer} runs of this host are connected already"));
        }
        let seed = *blake3::hash(&state.seed).as_bytes();
        state.seed = seed;
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::keyed_hash(&seed, b"realize session").as_bytes()[..16]);
        let session = Arc::new(Session {
            id,
            key: (peer, run),
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
        {
            let mut state = self.state();
            if state
                .by_key
                .get(&session.key)
                .is_some_and(|known| Arc::ptr_eq(known, session))
            {
                state.by_key.remove(&session.key);
            }
        }
        session.end().await;
    }

    /// Ends the sessions of runs that have not come back for too long.
    pub async fn end_stale(&self) {
        let now = self.clock.now();
        let is_stale = |_: &Key, session: &mut Arc<Session<F, C>>| {
            !session.is_connected() && now.saturating_sub(session.last_heard()) > self.limits.session_kept
        };
        let stale: Vec<_> = self.state().by_key.extract_if(.., is_stale).collect();
        for (_, session) in stale {
            session.end().await;
        }
    }

    /// Ends all sessions.
    pub async fn end_all(&self) {
        let all = std::mem::take(&mut self.state().by_key);
        futures::future::join_all(all.values().map(|session| session.end())).await;
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
            session.finished(id, answer.map(|response| ToClient::Answer { id, response }));
        });
        let task = task.abort_handle();
        state.running.insert(id, Running { task, bytes });
        Ok(())
    }

    fn finished(&self, id: CallId, answer: Result<ToClient, tarpc::ServerError>) {
        let answer = answer.map_err(io::Error::other).and_then(Encoded::new);
        let mut state = self.state();
        let Some(running) = state.running.remove(&id) else {
            return;
        };
        state.bytes -= running.bytes;
        match answer {
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
    }

    /// Nobody waits for the answer any more. A job under way ends by itself.
    pub fn cancel(&self, id: CallId) {
        let mut state = self.state();
        if let Some(running) = state.running.remove(&id) {
            state.bytes -= running.bytes;
            running.task.abort();
        }
        if let Some(answer) = state.answers.remove(&id) {
            state.bytes -= answer.bytes();
        }
    }

    /// Ends it: its connection, its calls, what it has open.
    async fn end(&self) {
        {
            let mut state = self.state();
            state.is_over = true;
            state.connection = None;
            for running in std::mem::take(&mut state.running).into_values() {
                running.task.abort();
            }
            state.answers.clear();
            state.bytes = 0;
        }
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
