//! A connection of the mover's, made by hand.

use std::{io, time::Duration};

use realize::{
    service::{Items, RealizeServiceRequest as Request, RealizeServiceResponse as Response, RunId, SERVICE_VERSION},
    tls::Connector,
    wire::{Encoded, LinkId, Reader, ToClient, ToServer},
};
use tokio::{
    io::{ReadHalf, WriteHalf},
    net::TcpStream,
};

use super::Hosts;

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

/// A connection of the mover's that does what it likes.
pub struct Peer {
    /// What the daemon sends.
    pub reader: Reader<ReadHalf<Stream>>,
    /// What it is sent.
    pub writing: WriteHalf<Stream>,
    /// The number of the last call.
    pub next: u64,
    /// The session it was let in to.
    pub session: [u8; 16],
}

impl Peer {
    /// Shakes hands with the mover's key and is let in as the first link of `run`.
    pub async fn connect(hosts: &Hosts, run: u8) -> Self {
        Self::attach(hosts, run, None).await
    }

    /// Comes back to `session` on another connection.
    pub async fn come_back(hosts: &Hosts, run: u8, session: [u8; 16]) -> Self {
        Self::attach(hosts, run, Some(session)).await
    }

    async fn attach(hosts: &Hosts, run: u8, session: Option<[u8; 16]>) -> Self {
        let key = realize::keys::file::read(&hosts.file("mover")).unwrap();
        let expected = hosts.public("daemon").parse().unwrap();
        let stream = TcpStream::connect(("127.0.0.1", hosts.port())).await.unwrap();
        let stream = Connector::new(&key).connect(Some(&expected), stream).await.unwrap();
        let (reading, writing) = tokio::io::split(stream);
        let mut peer = Self {
            reader: Reader::new(reading),
            writing,
            next: 0,
            session: [0; 16],
        };
        let link = LinkId {
            run: RunId([run; 16]),
            attempt: 0,
            number: 0,
        };
        peer.send(ToServer::Attach { link, session }).await.unwrap();
        match peer.reader.next::<ToClient>().await.unwrap().unwrap() {
            ToClient::Attached { session } => peer.session = session,
            other => panic!("{other:?}"),
        }
        peer
    }

    /// Sends one message.
    pub async fn send(&mut self, message: ToServer) -> io::Result<()> {
        Encoded::new(message)?.write(&mut self.writing).await
    }

    /// Calls and does not wait for the answer.
    pub async fn begin(&mut self, request: Request) -> io::Result<()> {
        self.next += 1;
        let id = self.next;
        self.send(ToServer::Call {
            id,
            answered: Items::default(),
            request,
        })
        .await
    }

    /// Calls and waits for the answer.
    pub async fn call(&mut self, request: Request) -> Response {
        self.begin(request).await.unwrap();
        loop {
            match self.reader.next::<ToClient>().await.unwrap().unwrap() {
                ToClient::Answer { id, response } if id == self.next => return response,
                ToClient::Answer { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Says hello as `run`.
    pub async fn hello(&mut self, run: u8) {
        let hello = self
            .call(Request::Hello {
                version: SERVICE_VERSION,
                run: RunId([run; 16]),
            })
            .await;
        assert!(matches!(hello, Response::Hello(Ok(_))), "{hello:?}");
    }

    /// Reads until the daemon ends the connection; why, if it says so.
    pub async fn end(mut self) -> Option<String> {
        let read = async {
            loop {
                match self.reader.next::<ToClient>().await {
                    Ok(Some(ToClient::Refused { why })) => return Some(why),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("the daemon ends the connection")
    }
}
