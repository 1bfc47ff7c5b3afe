//! The network the core sees: streams of bytes between addresses. TLS and the service sit above it.
//!
//! [`tcp::TcpNetwork`] is the real one.

use std::{future::Future, io, net::SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};

pub mod tcp;

/// A network.
pub trait Network: Clone + Send + Sync + 'static {
    /// A connection. Nothing sent is held back waiting for more (no Nagle).
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// Where connections arrive.
    type Listener: Listener<Stream = Self::Stream>;

    /// Connects to `host` (a name or an address) and `port`, each address of the name in turn; the last error when none
    /// answers. Has no limit of its own: the caller sets one.
    fn connect(&self, host: &str, port: u16) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Listens at `address`; port 0 takes a free one.
    fn bind(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Listener>> + Send;
}

/// A bound address.
pub trait Listener: Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection and who it is from. An error concerns one connection or a passing lack
    /// of resources; the listener stays usable.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// The bound address, with the port that was given.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}
