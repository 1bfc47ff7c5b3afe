//! TCP by tokio.

use std::{io, net::SocketAddr, time::Duration};

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
        prepare(&stream)?;
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
        prepare(&stream)?;
        Ok((stream, from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

/// What every connection has: nothing waits for more (Nagle), little waits in the kernel (small messages are to overtake bulk
/// data), and data that nobody acknowledges ends it.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

/// How much may wait in the kernel to be sent: some frames of 64 KiB.
const UNSENT_BYTES: u32 = 256 << 10;

/// How long data may stay unacknowledged: as long as a connection may be idle.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

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
