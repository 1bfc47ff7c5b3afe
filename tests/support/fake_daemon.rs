//! A daemon with the right key that answers some calls as it likes.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use realize::{
    clock::TokioClock,
    fs::os::OsFs,
    keys::PublicKey,
    limits::Limits,
    server::{Access, RealizeServer, Roots, Turns},
    service::{RealizeServiceRequest as Request, RealizeServiceResponse as Response, Rights},
    throttle::Bucket,
    tls::Acceptor,
    wire::{CallId, Encoded, Outbox, Reader, ToClient, ToServer, write_messages},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::{ALL, Hosts, Scratch};

/// What it does with a call.
pub enum Act {
    /// As a good one.
    Serve,
    /// Answers with this.
    Answer(Response),
    /// Does it, then dies before it has answered: all connections end and all sessions are gone. It is there again at once.
    DoAndDie,
}

type Handler = Arc<dyn Fn(&Request) -> Act + Send + Sync>;

/// A mover, and a fake daemon that it knows as `nas`, which serves `served` as `a`.
pub struct FakeDaemon {
    /// Of both.
    pub hosts: Hosts,
    /// Served as `a`.
    pub served: PathBuf,
    /// Another directory.
    pub local: PathBuf,
    _scratch: Scratch,
}

impl FakeDaemon {
    /// One that does with each call what `handler` says.
    pub fn new(handler: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        let scratch = Scratch::on_disk();
        let (served, local) = (scratch.dir("served"), scratch.dir("local"));
        let hosts = Hosts::serving(&[("a", &served, ALL)]);
        let port = listen(&hosts, &served, Arc::new(handler));
        hosts.know("nas", &hosts.public("daemon"), &format!("127.0.0.1:{port}"));
        Self {
            hosts,
            served,
            local,
            _scratch: scratch,
        }
    }
}

struct Full;

impl Access for Full {
    fn rights(&self, _: &str) -> Rights {
        Rights::ALL
    }
}

/// What its connections share.
struct Fake {
    acceptor: Acceptor,
    roots: Arc<Roots<OsFs, TokioClock>>,
    handler: Handler,
    sessions: AtomicU64,
    /// Told when it dies.
    died: Notify,
}

/// Listens with the key of the daemon of `hosts`, in a thread of its own; at which port.
fn listen(hosts: &Hosts, dir: &Path, handler: Handler) -> u16 {
    let key = realize::keys::file::read(&hosts.file("daemon")).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        runtime.unwrap().block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let roots = Roots::new(OsFs::new(), TokioClock::new(), Limits::default(), [9; 16]);
            roots.add("a", &dir, false).await.unwrap();
            let fake = Arc::new(Fake {
                acceptor: Acceptor::new(&key, Arc::new(|_: &PublicKey| true)),
                roots: Arc::new(roots),
                handler,
                sessions: AtomicU64::new(0),
                died: Notify::new(),
            });
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(fake.clone().serve(stream));
            }
        });
    });
    port
}

impl Fake {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let died = self.died.notified();
        let Ok((stream, _)) = self.acceptor.accept(stream).await else {
            return;
        };
        let (reading, mut writing) = tokio::io::split(stream);
        let mut reader = Reader::new(reading);
        let Ok(Some(ToServer::Attach { link, session: None })) = reader.next().await else {
            let why = "the session is gone".to_owned();
            // It may have gone.
            Encoded::new(ToClient::Refused { why })
                .unwrap()
                .write(&mut writing)
                .await
                .ok();
            return;
        };
        let number = self.sessions.fetch_add(1, Ordering::Relaxed) as u8;
        let server = RealizeServer::for_peer(
            self.roots.clone(),
            Arc::new(Full),
            link.run,
            Turns::default(),
            Bucket::new(TokioClock::new(), None),
        );
        let outbox = Arc::new(Outbox::default());
        outbox.push(Encoded::new(ToClient::Attached { session: [number; 16] }).unwrap());
        let clock = TokioClock::new();
        let reading = async {
            while let Ok(Some(message)) = reader.next().await {
                match message {
                    ToServer::Call { id, request, .. } => self.call(&server, &outbox, id, request),
                    ToServer::Ping { number } => outbox.push(Encoded::new(ToClient::Pong { number }).unwrap()),
                    ToServer::Cancel { .. } => {}
                    ToServer::Bye | ToServer::Attach { .. } => return,
                }
            }
        };
        tokio::select! {
            () = reading => {}
            () = died => {}
            // However that ends.
            _ = write_messages(&mut writing, &outbox, &clock) => {}
        }
        server.end().await;
    }

    fn call(
        self: &Arc<Self>,
        server: &RealizeServer<OsFs, TokioClock>,
        outbox: &Arc<Outbox>,
        id: CallId,
        request: Request,
    ) {
        let act = (self.handler)(&request);
        let (server, outbox, fake) = (server.clone(), outbox.clone(), self.clone());
        match act {
            Act::Answer(response) => outbox.push(Encoded::new(ToClient::Answer { id, response }).unwrap()),
            Act::Serve => drop(tokio::spawn(async move {
                let response = server.answer(request).await.unwrap();
                outbox.push(Encoded::new(ToClient::Answer { id, response }).unwrap());
            })),
            Act::DoAndDie => drop(tokio::spawn(async move {
                server.answer(request).await.unwrap();
                fake.died.notify_waiters();
            })),
        }
    }
}
