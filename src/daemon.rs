//! The called side: accepts connections, lets known peers in, and answers their calls.
//!
//! Each connection is a task of its own from its first byte on, with a limit on the handshake and on how many may be at it.
//! What is called belongs to a session (`sessions`), which outlives a lost connection for a while.

mod sessions;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use futures::{FutureExt, future::FusedFuture};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
};

use self::sessions::{Session, Sessions};
use crate::{
    clock::{Clock, timeout},
    config::DaemonConfig,
    fs::Fs,
    keys::{PublicKey, SecretKey},
    net::Listener,
    planted::{Bug, planted},
    server::{Access, CannotOpen, Notes, Roots},
    service::Rights,
    throttle::{Gate, Limited, Rate},
    tls::{Acceptor, TlsError},
    wire::{Encoded, Outbox, Reader, ToClient, ToServer, why_lost, write_messages},
};

const NOT_KNOWN: &str = "the key is not configured any more";
const ANOTHER_DIRECTORY: &str = "a directory in use was taken out of the configuration, or is another one now";

/// Waits and counts of a daemon.
#[derive(Debug, Clone)]
pub struct DaemonLimits {
    /// For the handshake and the first message.
    pub handshake: Duration,
    /// Connections that are not let in yet, at once.
    pub handshakes: usize,
    /// Connections of one peer at once.
    pub connections_per_peer: usize,
    /// Nothing heard for so long: the connection is lost.
    pub idle: Duration,
    /// How long a session waits for its run to come back.
    pub session_kept: Duration,
    /// Calls of one connection under way at once, and answers not yet known to have arrived.
    pub calls: usize,
    /// Bytes of those calls and answers.
    pub call_bytes: usize,
    /// How long connections may take to end once the daemon is to stop.
    pub drain: Duration,
}

impl Default for DaemonLimits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            handshakes: 64,
            connections_per_peer: 16,
            idle: Duration::from_secs(60),
            session_kept: Duration::from_secs(600),
            calls: 1024,
            call_bytes: 96 << 20,
            drain: Duration::from_millis(500),
        }
    }
}

/// What a daemon tells of.
#[derive(Debug)]
pub enum DaemonEvent<'a> {
    /// A peer was let in.
    Connected {
        /// Its name in the configuration.
        peer: &'a str,
        /// From where.
        from: SocketAddr,
    },
    /// A connection of a peer ended, for this reason if not at the peer's wish.
    Disconnected {
        /// Its name in the configuration.
        peer: &'a str,
        /// Why.
        why: Option<String>,
    },
    /// Somebody was not let in.
    Refused {
        /// From where.
        from: SocketAddr,
        /// Why.
        why: String,
    },
    /// No connection could be taken.
    AcceptFailed(io::Error),
}

/// Connections that are not let in yet, the oldest first.
#[derive(Default)]
struct Entering {
    next: u64,
    tasks: BTreeMap<u64, (SocketAddr, AbortHandle)>,
}

/// A daemon that serves `roots`.
pub struct Daemon<F: Fs, C: Clock> {
    clock: C,
    limits: DaemonLimits,
    config: Arc<RwLock<Arc<DaemonConfig>>>,
    acceptor: RwLock<Arc<Acceptor>>,
    /// Held while the configuration is changed.
    reloading: tokio::sync::Mutex<()>,
    roots: Arc<Roots<F, C>>,
    sessions: Sessions<F, C>,
    entering: Mutex<Entering>,
    observer: Box<dyn Fn(DaemonEvent<'_>) + Send + Sync>,
}

impl<F: Fs, C: Clock> Daemon<F, C> {
    /// A daemon that shows `key`. The roots are those of `config`, opened by the caller. `seed` is random: sessions are named by it.
    pub fn new(
        roots: Arc<Roots<F, C>>,
        clock: C,
        limits: DaemonLimits,
        key: &SecretKey,
        config: DaemonConfig,
        seed: [u8; 32],
        observer: impl Fn(DaemonEvent<'_>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let config = Arc::new(RwLock::new(Arc::new(config)));
        let known = config.clone();
        let allowed = move |key: &PublicKey| current(&known).peer(key).is_some();
        Arc::new(Self {
            acceptor: RwLock::new(Arc::new(Acceptor::new(key, Arc::new(allowed)))),
            reloading: tokio::sync::Mutex::default(),
            sessions: Sessions::new(roots.clone(), clock.clone(), limits.clone(), seed),
            roots,
            entering: Mutex::default(),
            clock,
            limits,
            config,
            observer: Box::new(observer),
        })
    }

    /// Follows `config` from now on and shows `key`; all of it, or nothing with an error. Where to listen is the caller's.
    ///
    /// Sessions of peers that are not known any more end, and those that have used a directory which is not served any more or which is another
    /// one now; all others go on, and their next call is measured by the rights that are configured then.
    pub async fn reload(&self, config: DaemonConfig, key: &SecretKey) -> Result<Notes, CannotOpen> {
        let _alone = self.reloading.lock().await;
        let mut replacement = self.roots.prepare(&config.directories).await?;
        let notes = std::mem::take(&mut replacement.notes);
        let config = Arc::new(config);
        let change = |gone: &BTreeSet<String>| {
            *self.config.write().unwrap_or_else(PoisonError::into_inner) = config.clone();
            let mut acceptor = self.acceptor.write().unwrap_or_else(PoisonError::into_inner);
            *acceptor = Arc::new(acceptor.with_key(key));
            self.sessions
                .limit(|peer| config.peer(peer).and_then(|peer| peer.throttle));
            self.sessions.take_for(|peer, server| match config.peer(peer) {
                None if planted(Bug::RemovedPeerServed) => None,
                None => Some(NOT_KNOWN),
                Some(_) if server.has_used(gone) => Some(ANOTHER_DIRECTORY),
                Some(_) => None,
            })
        };
        let (ended, before) = self.roots.replace(replacement, change);
        self.sessions.end_each(ended).await;
        self.roots.close(before).await;
        Ok(notes)
    }

    /// Serves what arrives at `listener` until `stop` ends; then connections are closed, and sessions ended, within
    /// [`DaemonLimits::drain`].
    pub async fn serve<L: Listener>(self: Arc<Self>, listener: L, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let tidying = async {
            loop {
                self.clock.sleep(self.limits.idle).await;
                self.sessions.end_stale().await;
            }
        };
        let mut tidying = std::pin::pin!(tidying);
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.as_mut() => break,
                () = tidying.as_mut() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => self.clone().begin(stream, from),
                Err(error) => {
                    self.tell(DaemonEvent::AcceptFailed(error));
                    // Descriptors may be short: others have to end first.
                    self.clock.sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        let _ended = timeout(&self.clock, self.limits.drain, self.sessions.end_all()).await;
    }

    fn entering(&self) -> MutexGuard<'_, Entering> {
        // Nothing panics while it is held.
        self.entering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to let a connection in. When there is no room the one that has been at it longest goes: who is known needs milliseconds.
    fn begin<S>(self: Arc<Self>, stream: S, from: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let ousted = {
            // Held until the task is known: it may end at once.
            let mut entering = self.entering();
            let number = entering.next;
            entering.next += 1;
            let daemon = self.clone();
            let task = tokio::spawn(async move { daemon.connection(stream, from, number).await });
            entering.tasks.insert(number, (from, task.abort_handle()));
            match entering.tasks.len() > self.limits.handshakes {
                true => entering.tasks.pop_first(),
                false => None,
            }
        };
        if let Some((_, (from, task))) = ousted {
            task.abort();
            let why = "too many connections are not let in yet, and this one was the oldest".into();
            self.tell(DaemonEvent::Refused { from, why });
        }
    }

    fn tell(&self, event: DaemonEvent<'_>) {
        (self.observer)(event);
    }

    async fn connection<S>(&self, stream: S, from: SocketAddr, entering: u64)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // Whose it is shows once hands are shaken: what that took counts then.
        let gate = Gate::new([]);
        let stream = Limited::new(stream, gate.clone());
        let greeting = timeout(&self.clock, self.limits.handshake, self.greet(stream)).await;
        if self.entering().tasks.remove(&entering).is_none() {
            // Ousted just now: the session is not to count this connection, which nobody would take away again.
            return;
        }
        let refused = |why: String| self.tell(DaemonEvent::Refused { from, why });
        let (mut reader, mut writing, key, session) = match greeting {
            None => return refused(format!("no handshake within {} s", self.limits.handshake.as_secs())),
            Some(Err(error)) => return refused(error.to_string()),
            Some(Ok(greeted)) => greeted,
        };
        if !planted(Bug::RateForgotten) || session.is_new() {
            session.buckets.iter().for_each(|bucket| gate.add(bucket.clone()));
        }
        let peer = current(&self.config)
            .peer(&key)
            .map_or_else(|| key.to_string(), |peer| peer.name.clone());
        self.tell(DaemonEvent::Connected { peer: &peer, from });
        let (number, outbox, mut ousted) = match session.connected(self.clock.now()) {
            Ok(connected) => connected,
            Err(error) => return refused(error.to_string()),
        };
        let ended = {
            let reading = self.read(&mut reader, &session, number, &outbox, &key);
            let mut writing = std::pin::pin!(write_messages(&mut writing, &outbox, &self.clock).fuse());
            let watching = self.watch(&session);
            let ended = tokio::select! {
                biased;
                why = &mut ousted => Err(match why {
                    Ok(why) => io::Error::new(io::ErrorKind::PermissionDenied, why),
                    Err(_) => io::Error::other("the run has a newer connection, or its session has ended"),
                }),
                ended = reading => ended,
                ended = writing.as_mut() => ended.map(|()| false),
                error = watching => Err(error),
            };
            if let Err(error) = &ended
                && matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied
                )
                && !writing.is_terminated()
                && let Ok(refused) = Encoded::new(ToClient::Refused { why: error.to_string() })
            {
                // Behind the frame that is being written. Whoever broke the rules need not hear of it.
                outbox.end_with(refused);
                let _told = timeout(&self.clock, Duration::from_secs(1), writing).await;
            }
            ended
        };
        session.disconnected(number, self.clock.now());
        let why = match ended {
            Ok(is_over) => {
                if is_over {
                    self.sessions.end(&session).await;
                }
                None
            }
            Err(error) => Some(why_lost(&error)),
        };
        self.tell(DaemonEvent::Disconnected { peer: &peer, why });
    }

    /// Shakes hands and finds the session.
    async fn greet<S>(
        &self,
        stream: S,
    ) -> Result<
        (
            Reader<tokio::io::ReadHalf<tokio_rustls::server::TlsStream<S>>>,
            tokio::io::WriteHalf<tokio_rustls::server::TlsStream<S>>,
            PublicKey,
            Arc<Session<F, C>>,
        ),
        TlsError,
    >
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let acceptor = current(&self.acceptor);
        let (stream, key) = acceptor.accept(stream).await?;
        let (reading, mut writing) = tokio::io::split(stream);
        let mut reader = Reader::new(reading);
        let first = reader.next().await.map_err(TlsError::Io)?;
        let Some(ToServer::Attach { link, session }) = first else {
            return Err(TlsError::Protocol(
                "the first message does not say whose calls follow".into(),
            ));
        };
        let config = match planted(Bug::RightsRemembered) {
            false => self.config.clone(),
            true => Arc::new(RwLock::new(current(&self.config))),
        };
        let access = Arc::new(PeerAccess { key, config });
        match self.sessions.attach(key, link, session, access).await {
            Ok(session) => Ok((reader, writing, key, session)),
            Err(why) => {
                if let Ok(refused) = Encoded::new(ToClient::Refused { why: why.clone() }) {
                    refused.write(&mut writing).await.map_err(TlsError::Io)?;
                }
                Err(TlsError::Io(io::Error::other(why)))
            }
        }
    }

    /// Takes messages until the connection ends: whether the session is over with it.
    async fn read<R: AsyncRead + Unpin>(
        &self,
        reader: &mut Reader<R>,
        session: &Arc<Session<F, C>>,
        number: u64,
        outbox: &Outbox,
        key: &PublicKey,
    ) -> io::Result<bool> {
        loop {
            let message = match reader.next().await? {
                None => return Ok(false),
                Some(message) => message,
            };
            session.heard(self.clock.now());
            if outbox.bytes() > self.limits.call_bytes || outbox.len() > 2 * self.limits.calls {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the peer asks and does not read the answers",
                ));
            }
            // A key that is not known any more is not served a call more.
            if current(&self.config).peer(key).is_none() && !planted(Bug::RemovedPeerServed) {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, NOT_KNOWN));
            }
            match message {
                ToServer::Call { id, answered, request } => {
                    session.call(number, id, &answered.0, request, reader.last_bytes())?;
                }
                ToServer::Cancel { id } => session.cancel(id),
                ToServer::Ping { number } => outbox.push(Encoded::new(ToClient::Pong { number })?),
                ToServer::Bye => return Ok(true),
                ToServer::Attach { .. } => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "whose calls follow was said twice",
                    ));
                }
            }
        }
    }

    async fn watch(&self, session: &Session<F, C>) -> io::Error {
        loop {
            self.clock.sleep(self.limits.idle / 3).await;
            let unheard = self.clock.now().saturating_sub(session.last_heard());
            if unheard >= self.limits.idle && !planted(Bug::HalfOpenKept) {
                let text = format!("nothing heard for {} s", self.limits.idle.as_secs());
                return io::Error::new(io::ErrorKind::TimedOut, text);
            }
        }
    }
}

fn current<T>(changing: &RwLock<Arc<T>>) -> Arc<T> {
    // Nothing panics while it is held.
    changing.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What a peer may do as it is configured now.
struct PeerAccess {
    key: PublicKey,
    config: Arc<RwLock<Arc<DaemonConfig>>>,
}

impl PeerAccess {
    /// What is sent to it at most.
    fn throttle(&self) -> Option<Rate> {
        current(&self.config).peer(&self.key).and_then(|peer| peer.throttle)
    }
}

impl Access for PeerAccess {
    fn rights(&self, dir: &str) -> Rights {
        current(&self.config).rights(&self.key, dir)
    }
}
