//! TCP by tokio.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpStream};

use super::{Listener, Network};

/// The network of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNetwork;

impl Network for TcpNetwork {
    type Stream = TcpStream;
    type Listener = TcpListener;

    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        #[expect(clippy::disallowed_methods, reason = "the seam itself")]
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<TcpListener> {
        #[expect(clippy::disallowed_methods, reason = "the seam itself")]
        TcpListener::bind(address).await
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn both_ends_send_at_once_and_see_the_end() {
        let listener = TcpNetwork.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = Listener::local_addr(&listener).unwrap().port();
        let (near, far) = tokio::join!(TcpNetwork.connect("127.0.0.1", port), Listener::accept(&listener));
        let (mut near, (mut far, from)) = (near.unwrap(), far.unwrap());
        assert!(near.nodelay().unwrap() && far.nodelay().unwrap());
        assert_eq!(from, near.local_addr().unwrap());
        near.write_all(b"over").await.unwrap();
        drop(near);
        let mut received = String::new();
        far.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "over");
    }
}
