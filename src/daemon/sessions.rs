//! Sessions: what a run has open here, and its calls, for as long as the run may come back.
//!
//! A session is known by the peer's key and the link. A call is done once however often it is asked for: while it is under way nothing
//! more is begun, and its answer is kept until the run says that it has arrived.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};

use super::{DaemonLimits, PeerAccess};
use crate::{
    clock::{Clock, timeout},
    fs::Fs,
    keys::PublicKey,
    planted::{Bug, planted},
    server::{RealizeServer, Roots, Turns},
    service::{Handle, RealizeServiceRequest, RealizeServiceResponse, RunId},
    throttle::{Bucket, Rate},
    wire::{CallId, DATA_BYTES_MAX, Encoded, HEAD_BYTES_MAX, LinkId, Outbox, ToClient},
};

type Key = (PublicKey, LinkId);

/// All sessions of a daemon.
pub struct Sessions<F: Fs, C: Clock> {
    roots: Arc<Roots<F, C>>,
    clock: C,
    limits: DaemonLimits,
    state: Mutex<Known<F, C>>,
}

struct Known<F: Fs, C: Clock> {
    by_key: BTreeMap<Key, Arc<Session<F, C>>>,
    /// Of each peer that has sessions.
    turns: BTreeMap<PublicKey, Turns>,
    /// What is sent to each peer that has sessions: as much as the configuration lets.
    to_peers: BTreeMap<PublicKey, Arc<Bucket<C>>>,
    /// What is sent to each run that has sessions: as much as it asked for.
    to_runs: BTreeMap<(PublicKey, RunId), Arc<Bucket<C>>>,
    /// Sessions that are over, of which calls may be at work still.
    ending: Vec<(Key, Weak<Session<F, C>>)>,
    /// What the next session is named by.
    seed: [u8; 32],
}

/// One link's session.
pub struct Session<F: Fs, C: Clock> {
    id: [u8; 16],
    server: RealizeServer<F, C>,
    /// What its connections send is taken from these.
    pub buckets: [Arc<Bucket<C>>; 2],
    limits: DaemonLimits,
    state: Mutex<State>,
    /// Closed once it has given back everything.
    ended: Semaphore,
}

struct State {
    running: BTreeMap<CallId, Running>,
    answers: BTreeMap<CallId, Kept>,
    bytes: usize,
    connection: Option<Connection>,
    connections: u64,
    heard: Duration,
    is_over: bool,
    /// Why it is over, where whoever connects is to be told.
    why_over: Option<&'static str>,
}

struct Running {
    task: JoinHandle<()>,
    bytes: usize,
    is_wanted: bool,
}

/// An answer that is not known to have arrived.
struct Kept {
    answer: Encoded,
    /// What it tells of as open.
    opened: Vec<Handle>,
}

struct Connection {
    number: u64,
    outbox: Arc<Outbox>,
    /// Dropped when it is not the session's any more; told why when it is not to come back.
    oust: oneshot::Sender<&'static str>,
}

impl<F: Fs, C: Clock> Sessions<F, C> {
    pub fn new(roots: Arc<Roots<F, C>>, clock: C, limits: DaemonLimits, seed: [u8; 32]) -> Self {
        Self {
            roots,
            clock,
            limits,
            state: Mutex::new(Known {
                by_key: BTreeMap::new(),
                turns: BTreeMap::new(),
                to_peers: BTreeMap::new(),
                to_runs: BTreeMap::new(),
                ending: Vec::new(),
                seed,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, Known<F, C>> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session `session` of `link` with what it has open, or a new one. A new one ends those of earlier moves of its run, and those of
    /// other runs of the same peer that are not heard of: what these had locked is free then.
    pub async fn attach(
        &self,
        peer: PublicKey,
        link: LinkId,
        session: Option<[u8; 16]>,
        access: Arc<PeerAccess>,
    ) -> Result<Arc<Session<F, C>>, String> {
        let key = (peer, link);
        if let Some(id) = session {
            let found = self.state().by_key.get(&key).cloned();
            return found
                .filter(|found| found.id == id && !found.is_over())
                .ok_or_else(|| "the session is gone: this side was started anew, or waited too long".into());
        }
        // Before earlier sessions of the run end, which is when nobody else has it.
        let buckets = {
            let mut state = self.state();
            let buckets = state.buckets(peer, link.run, &self.clock);
            // Under the lock that `limit` takes once the configuration has changed.
            buckets[0].set(access.throttle());
            buckets
        };
        let now = self.clock.now();
        let is_to_end = |known: &Key, session: &mut Arc<Session<F, C>>| {
            let unheard = now.saturating_sub(session.last_heard());
            if known.0 != peer {
                return unheard > self.limits.session_kept;
            }
            if known.1.run != link.run {
                let is_entering = session.is_new() && unheard < self.limits.handshake;
                let is_live = session.is_connected() || is_entering;
                let is_unheard = unheard > self.limits.idle / 3 + self.limits.idle / 6;
                return !is_live || (is_unheard && !planted(Bug::HalfOpenKept));
            }
            // The very same is there when the answer to its first connection was lost.
            known.1.attempt < link.attempt || known.1 == link
        };
        let stale = self.state().take(is_to_end);
        self.end_each(stale).await;
        // Those of the run that were ended otherwise too: what they give back is not to be what a new one has claimed.
        self.wait_for(|known| known.0 == peer && known.1.run == link.run).await;
        let mut state = self.state();
        let is_of_run = |known: &Key| known.0 == peer && known.1.run == link.run;
        if state
            .by_key
            .keys()
            .any(|known| is_of_run(known) && (known.1.attempt > link.attempt || known.1 == link))
        {
            return Err("a later connection of the same run was there first".into());
        }
        let of_peer = state.count(&peer);
        if of_peer >= self.limits.connections_per_peer {
            return Err(format!("{of_peer} runs of this host are connected already"));
        }
        let seed = *blake3::hash(&state.seed).as_bytes();
        state.seed = seed;
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::keyed_hash(&seed, b"realize session").as_bytes()[..16]);
        state.turns.retain(|_, turns| !turns.are_unshared());
        let turns = state.turns.entry(peer).or_default().clone();
        let session = Arc::new(Session {
            id,
            server: RealizeServer::for_peer(self.roots.clone(), access, link.run, turns, buckets[1].clone()),
            buckets,
            limits: self.limits.clone(),
            state: Mutex::new(State {
                running: BTreeMap::new(),
                answers: BTreeMap::new(),
                bytes: 0,
                connection: None,
                connections: 0,
                heard: now,
                is_over: false,
                why_over: None,
            }),
            ended: Semaphore::new(0),
        });
        state.by_key.insert(key, session.clone());
        Ok(session)
    }

    /// Ends a session that its run does not need any more.
    pub async fn end(&self, session: &Arc<Session<F, C>>) {
        let known = self.state().take(|_, known| Arc::ptr_eq(known, session));
        self.end_each(known).await;
    }

    /// Takes the sessions that are to end for a reason that their runs are told. No more of their jobs begin from now on; [`Self::end_each`] ends them.
    pub fn take_for(
        &self,
        why: impl Fn(&PublicKey, &RealizeServer<F, C>) -> Option<&'static str>,
    ) -> Vec<Arc<Session<F, C>>> {
        self.state().take(|(peer, _), session| {
            let why = why(peer, &session.server);
            why.inspect(|why| session.stop(Some(why))).is_some()
        })
    }

    /// Limits what is sent to each peer that is connected.
    pub fn limit(&self, throttle: impl Fn(&PublicKey) -> Option<Rate>) {
        for (peer, bucket) in &self.state().to_peers {
            bucket.set(throttle(peer));
        }
    }

    /// Ends the sessions of runs that have not come back for too long, and closes what was kept open for too long.
    pub async fn end_stale(&self) {
        let now = self.clock.now();
        let is_stale = |_: &Key, session: &mut Arc<Session<F, C>>| {
            !session.is_connected() && now.saturating_sub(session.last_heard()) > self.limits.session_kept
        };
        let stale = self.state().take(is_stale);
        self.end_each(stale).await;
        // A disk that hangs is not waited for.
        let _tidied = timeout(&self.clock, self.limits.handshake / 2, self.roots.tidy()).await;
    }

    /// Ends all sessions.
    pub async fn end_all(&self) {
        let all = self.state().take(|_, _| true);
        self.end_each(all).await;
        self.wait_for(|_| true).await;
    }

    /// Waits a while until sessions that are over have given back everything.
    async fn wait_for(&self, is_waited_for: impl Fn(&Key) -> bool) {
        let ending: Vec<_> = {
            let state = self.state();
            let waited_for = state.ending.iter().filter(|(known, _)| is_waited_for(known));
            waited_for.filter_map(|(_, session)| session.upgrade()).collect()
        };
        // That it is closed is the news.
        let ended = join_all(ending.iter().map(|session| session.ended.acquire()));
        let _ended = timeout(&self.clock, self.limits.handshake / 2, ended).await;
    }

    /// Waits a while only: a job that hangs in the kernel holds what it holds, and whoever wants that is told that it is busy.
    pub async fn end_each(&self, sessions: Vec<Arc<Session<F, C>>>) {
        let ending = sessions
            .into_iter()
            .map(|session| tokio::spawn(async move { session.end().await }));
        let _ended = timeout(&self.clock, self.limits.handshake / 2, join_all(ending)).await;
    }
}

impl<F: Fs, C: Clock> Known<F, C> {
    /// What is sent to a peer, and to one of its runs, is taken from these. Those that no session has are forgotten.
    fn buckets(&mut self, peer: PublicKey, run: RunId, clock: &C) -> [Arc<Bucket<C>>; 2] {
        self.to_peers.retain(|_, bucket| Arc::strong_count(bucket) > 1);
        self.to_runs.retain(|_, bucket| Arc::strong_count(bucket) > 1);
        let unlimited = || Bucket::new(clock.clone(), None);
        [
            self.to_peers.entry(peer).or_insert_with(unlimited).clone(),
            self.to_runs.entry((peer, run)).or_insert_with(unlimited).clone(),
        ]
    }

    /// Takes the sessions that are to end. No more of their jobs begin from now on.
    fn take(&mut self, is_to_end: impl FnMut(&Key, &mut Arc<Session<F, C>>) -> bool) -> Vec<Arc<Session<F, C>>> {
        let taken: Vec<_> = self.by_key.extract_if(.., is_to_end).collect();
        self.ending.retain(|(_, session)| session.strong_count() > 0);
        taken.iter().for_each(|(_, session)| session.stop(None));
        self.ending
            .extend(taken.iter().map(|(key, session)| (*key, Arc::downgrade(session))));
        taken.into_iter().map(|(_, session)| session).collect()
    }

    /// How many sessions of `peer` there are, those among them that calls are at work for still.
    fn count(&self, peer: &PublicKey) -> usize {
        let ending = self.ending.iter().filter(|(_, session)| session.strong_count() > 0);
        let keys = self.by_key.keys().chain(ending.map(|(key, _)| key));
        keys.filter(|key| key.0 == *peer).count()
    }
}

impl<F: Fs, C: Clock> Session<F, C> {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new connection, in the place of the one there may be: its number, what is sent on it, and what ends once it is not the
    /// session's any more.
    pub fn connected(&self, now: Duration) -> io::Result<(u64, Arc<Outbox>, oneshot::Receiver<&'static str>)> {
        let (oust, ousted) = oneshot::channel();
        let outbox = Arc::new(Outbox::default());
        // Before any answer.
        outbox.push(Encoded::new(ToClient::Attached { session: self.id })?);
        let mut state = self.state();
        state.connections += 1;
        state.heard = now;
        let number = state.connections;
        match (state.is_over, state.why_over) {
            (false, _) => {
                state.connection = Some(Connection {
                    number,
                    outbox: outbox.clone(),
                    oust,
                });
            }
            // Whoever let it in hears of it at once.
            (true, Some(why)) => drop(oust.send(why)),
            (true, None) => {}
        }
        Ok((number, outbox, ousted))
    }

    /// The connection of this number has ended.
    pub fn disconnected(&self, number: u64, now: Duration) {
        let mut state = self.state();
        if state.is_on(number) {
            state.connection = None;
            state.heard = now;
        }
    }

    /// Whether no connection has come to it yet: its first one is being let in.
    pub fn is_new(&self) -> bool {
        self.state().connections == 0
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

    fn is_over(&self) -> bool {
        self.state().is_over
    }

    /// Begins a call that came on the connection of this number, or sends its answer again. `bytes` it takes by itself. `InvalidData`
    /// when the link asks for more at once than it may.
    pub fn call(
        self: &Arc<Self>,
        connection: u64,
        id: CallId,
        answered: &[CallId],
        request: RealizeServiceRequest,
        bytes: usize,
    ) -> io::Result<()> {
        let mut state = self.state();
        // What comes late on a connection that was replaced may have been answered and forgotten.
        if state.is_over || !state.is_on(connection) {
            return Ok(());
        }
        for id in answered {
            // What it has opened is the link's now.
            state.take_answer(*id);
        }
        if state.running.contains_key(&id) {
            return Ok(());
        }
        if let Some(kept) = state.answers.get(&id) {
            let answer = kept.answer.clone();
            state.send(answer);
            return Ok(());
        }
        let bytes = bytes + answer_bytes(&request);
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
            let answer = session.server.answer(request).await;
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
        let mut opened = answer.as_ref().map(opened_by).unwrap_or_default();
        if !running.is_wanted {
            return opened;
        }
        let answer = answer.map_err(io::Error::other);
        let mut unwanted = Vec::new();
        let answer = answer.and_then(|response| Encoded::new(ToClient::Answer { id, response }));
        let answer = answer.or_else(|error| {
            // One that can't be sent, which no call of ours is meant to have.
            unwanted.append(&mut opened);
            let why = error.to_string();
            Encoded::new(ToClient::Failed { id, why })
        });
        if let Ok(answer) = answer {
            state.bytes += answer.bytes();
            state.send(answer.clone());
            state.answers.insert(id, Kept { answer, opened });
        }
        unwanted
    }

    /// Nobody waits for the answer any more. The call counts until its work has ended: what it holds can't be taken back.
    pub fn cancel(self: &Arc<Self>, id: CallId) {
        let opened = {
            let mut state = self.state();
            if let Some(running) = state.running.get_mut(&id) {
                running.is_wanted = false;
            }
            state.take_answer(id)
        };
        if !opened.is_empty() {
            let session = self.clone();
            tokio::spawn(async move {
                // Who has it open any more?
                session.server.close_handles(&opened).await.ok();
            });
        }
    }

    /// Ends its connection, and tells it why where it is not to come back; begins no more jobs.
    fn stop(&self, why: Option<&'static str>) {
        let mut state = self.state();
        state.is_over = true;
        state.why_over = state.why_over.or(why);
        if let (Some(connection), Some(why)) = (state.connection.take(), why) {
            // A connection that has just ended need not know.
            connection.oust.send(why).ok();
        }
        // Not before: no answer is to tell that something failed for this.
        self.server.stop();
    }

    /// Ends it once it was stopped: when its calls have ended, what it has open.
    async fn end(&self) {
        let running = {
            let mut state = self.state();
            state.answers.clear();
            state.bytes = 0;
            std::mem::take(&mut state.running)
        };
        join_all(running.into_values().map(|running| running.task)).await;
        self.server.end().await;
        self.ended.close();
    }
}

impl State {
    fn is_on(&self, connection: u64) -> bool {
        self.connection.as_ref().is_some_and(|now| now.number == connection)
    }

    /// Keeps an answer no longer; what it had opened.
    fn take_answer(&mut self, id: CallId) -> Vec<Handle> {
        let Some(kept) = self.answers.remove(&id) else {
            return Vec::new();
        };
        self.bytes -= kept.answer.bytes();
        kept.opened
    }

    fn send(&self, answer: Encoded) {
        if let Some(connection) = &self.connection {
            connection.outbox.push(answer);
        }
    }
}

/// What a response tells of as open.
fn opened_by(response: &RealizeServiceResponse) -> Vec<Handle> {
    use RealizeServiceResponse::{Digests, Get, Open};
    match response {
        Open(Ok(opened)) => vec![opened.held.handle],
        Get(Ok(files)) | Digests(Ok(files)) => files.iter().flatten().map(|file| file.held.handle).collect(),
        _ => Vec::new(),
    }
}

/// Bytes of memory that the answer of a call may take, but for what is small.
fn answer_bytes(request: &RealizeServiceRequest) -> usize {
    match request {
        RealizeServiceRequest::Read { .. } | RealizeServiceRequest::Diff { .. } => DATA_BYTES_MAX,
        // Not the answer, but what is made before it is written.
        RealizeServiceRequest::ApplyDelta { .. } => DATA_BYTES_MAX,
        RealizeServiceRequest::Get { .. } | RealizeServiceRequest::List { .. } => HEAD_BYTES_MAX,
        RealizeServiceRequest::Hashes { count, .. } => (*count).min(HEAD_BYTES_MAX as u64 / 32) as usize * 32,
        _ => 0,
    }
}
