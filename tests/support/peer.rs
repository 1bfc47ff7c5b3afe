//! A connection of the mover's, made by hand.

use std::{io, time::Duration};

use realize::{
    service::{RealizeServiceRequest as Request, RealizeServiceResponse as Response, RunId, SERVICE_VERSION},
    tls::Connector,
    wire::{Encoded, Reader, ToClient, ToServer},
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
}

impl Peer {
    /// Shakes hands with the mover's key and is let in as `run`.
    pub async fn connect(hosts: &Hosts, run: u8) -> Self {
        let key = realize::keys::file::read(&hosts.file("mover")).unwrap();
        let expected = hosts.public("daemon").parse().unwrap();
        let stream = TcpStream::connect(("127.0.0.1", hosts.port())).await.unwrap();
        let stream = Connector::new(&key).connect(Some(&expected), stream).await.unwrap();
        let (reading, writing) = tokio::io::split(stream);
        let mut peer = Self {
            reader: Reader::new(reading),
            writing,
            next: 0,
        };
        peer.send(ToServer::Attach { run: RunId([run; 16]) }).await.unwrap();
        let attached = peer.reader.next::<ToClient>().await.unwrap().unwrap();
        assert!(matches!(attached, ToClient::Attached { .. }), "{attached:?}");
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
            answered: Vec::new(),
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
