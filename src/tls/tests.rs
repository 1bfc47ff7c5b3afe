use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proptest::prelude::*;
use rustls::{
    HandshakeKind, SignatureAlgorithm,
    client::ResolvesClientCert,
    sign::{Signer, SigningKey},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::clock::{TokioClock, timeout};

type Connected = Result<client::TlsStream<DuplexStream>, TlsError>;
type Accepted = Result<(server::TlsStream<DuplexStream>, PublicKey), TlsError>;

/// A client and a server.
struct Pair {
    client: SecretKey,
    server: SecretKey,
}

impl Pair {
    fn new() -> Self {
        Self {
            client: secret(),
            server: secret(),
        }
    }

    /// The server, open to the client alone.
    fn acceptor(&self) -> Acceptor {
        let client = self.client.public();
        Acceptor::new(&self.server, Arc::new(move |key| *key == client))
    }

    async fn shake(&self, expected: Option<&PublicKey>, acceptor: &Acceptor) -> (Connected, Accepted) {
        let (near, far) = duplex(64 << 10);
        let connector = Connector::new(&self.client);
        both(connector.connect(expected, near), acceptor.accept(far)).await
    }

    /// What the server says to a client that is made in another way.
    async fn accept_rogue(&self, config: ClientConfig) -> (io::Result<client::TlsStream<DuplexStream>>, Accepted) {
        let (near, far) = duplex(64 << 10);
        both(connect_with(config, near), self.acceptor().accept(far)).await
    }

    /// What the client says to a server that is made in another way, when it expects the key of the real one.
    async fn connect_rogue(&self, config: ServerConfig) -> (Connected, io::Result<server::TlsStream<DuplexStream>>) {
        let (near, far) = duplex(64 << 10);
        let (connector, expected) = (Connector::new(&self.client), self.server.public());
        let rogue = TlsAcceptor::from(Arc::new(config));
        both(connector.connect(Some(&expected), near), async {
            rogue.accept(far).await
        })
        .await
    }
}

fn secret() -> SecretKey {
    SecretKey::generate().unwrap()
}

async fn both<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    in_time(futures::future::join(one, other)).await
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    timeout(&TokioClock::new(), limit, work).await.expect("nothing hangs")
}

async fn connect_with(config: ClientConfig, stream: DuplexStream) -> io::Result<client::TlsStream<DuplexStream>> {
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// A check that takes any ed25519 key.
fn any_peer(identity: &Identity) -> Arc<PeerCheck> {
    Arc::new(PeerCheck::new(&identity.provider, Arc::new(|_| true)))
}

fn client_config(identity: &Identity) -> ClientConfig {
    identity.client_config(any_peer(identity)).unwrap()
}

fn server_config(identity: &Identity) -> ServerConfig {
    identity.server_config(any_peer(identity)).unwrap()
}

/// Shows `spki` and signs with `key`, naming `scheme`, whatever the other side offered.
#[derive(Debug, Clone)]
struct Forger {
    key: Arc<dyn SigningKey>,
    scheme: SignatureScheme,
}

impl Forger {
    fn identity(spki: Vec<u8>, key: &SecretKey, scheme: SignatureScheme) -> Identity {
        let mut identity = Identity::new(key);
        let key = identity.certified.key.clone();
        let forger = Arc::new(Self { key, scheme });
        identity.certified = Arc::new(CertifiedKey::new(vec![spki.into()], forger));
        identity
    }
}

impl SigningKey for Forger {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(self.clone()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

impl Signer for Forger {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signer = self.key.choose_scheme(&[SignatureScheme::ED25519]).unwrap();
        signer.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// Takes part in raw keys but has none to show.
#[derive(Debug)]
struct NoKey;

impl ResolvesClientCert for NoKey {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The error that the first read of an established stream gives.
async fn first_read<S: AsyncRead + AsyncWrite + Unpin>(mut stream: client::TlsStream<S>) -> TlsError {
    TlsError::of(in_time(stream.read_u8()).await.unwrap_err())
}

fn message(error: TlsError) -> String {
    match error {
        TlsError::Protocol(message) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bytes_go_both_ways_between_hosts_that_know_each_other() {
    let pair = Pair::new();
    let (client, server) = pair.shake(Some(&pair.server.public()), &pair.acceptor()).await;
    let (mut client, (mut server, peer)) = (client.unwrap(), server.unwrap());
    assert_eq!(peer, pair.client.public());
    let shown = &client.get_ref().1.peer_certificates().unwrap()[0];
    assert_eq!(PublicKey::from_spki(shown), Ok(pair.server.public()));
    // More than any buffer between the two holds.
    let sent: Vec<u8> = (0..3 * BUFFER_BYTES_MAX).map(|i| (i / 7) as u8).collect();
    let echo = async {
        let mut received = vec![0; sent.len()];
        server.read_exact(&mut received).await.unwrap();
        server.write_all(&received).await.unwrap();
        server.shutdown().await.unwrap();
    };
    let exchange = async {
        client.write_all(&sent).await.unwrap();
        client.flush().await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
    };
    both(exchange, echo).await;
}

#[tokio::test]
async fn connection_is_tls_13_with_aes_128_and_our_protocol() {
    let pair = Pair::new();
    let (client, _server) = pair.shake(Some(&pair.server.public()), &pair.acceptor()).await;
    let client = client.unwrap();
    let connection = client.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let suite = connection.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(connection.alpn_protocol(), Some(PROTOCOL));
}

#[tokio::test]
async fn host_with_another_key_is_refused_and_its_key_told() {
    let pair = Pair::new();
    let other = secret().public();
    let (client, server) = pair.shake(Some(&other), &pair.acceptor()).await;
    match client.unwrap_err() {
        TlsError::WrongHostKey { presented, expected } => {
            assert_eq!((presented, expected), (pair.server.public(), other));
        }
        error => panic!("{error:?}"),
    }
    assert!(matches!(server.unwrap_err(), TlsError::Refused));
}

#[tokio::test]
async fn unknown_host_is_refused_and_its_key_told() {
    let pair = Pair::new();
    let (client, server) = pair.shake(None, &pair.acceptor()).await;
    match client.unwrap_err() {
        TlsError::UnknownHost { presented } => assert_eq!(presented, pair.server.public()),
        error => panic!("{error:?}"),
    }
    assert!(matches!(server.unwrap_err(), TlsError::Refused));
}

#[tokio::test]
async fn unknown_peer_is_refused_and_learns_it_at_its_first_read() {
    let pair = Pair::new();
    let acceptor = Acceptor::new(&pair.server, Arc::new(|_| false));
    let (client, server) = pair.shake(Some(&pair.server.public()), &acceptor).await;
    match server.unwrap_err() {
        TlsError::UnknownPeer { presented } => assert_eq!(presented, pair.client.public()),
        error => panic!("{error:?}"),
    }
    assert!(matches!(first_read(client.unwrap()).await, TlsError::Refused));
}

#[tokio::test]
async fn key_removed_between_two_connections_is_refused_at_the_second() {
    let pair = Pair::new();
    let (is_listed, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let (list, count) = (is_listed.clone(), asked.clone());
    let acceptor = Acceptor::new(
        &pair.server,
        Arc::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            list.load(Ordering::Relaxed)
        }),
    );
    let (client, server) = pair.shake(Some(&pair.server.public()), &acceptor).await;
    client.unwrap();
    server.unwrap();
    is_listed.store(false, Ordering::Relaxed);
    let (client, server) = pair.shake(Some(&pair.server.public()), &acceptor).await;
    assert!(matches!(server.unwrap_err(), TlsError::UnknownPeer { .. }));
    assert!(matches!(first_read(client.unwrap()).await, TlsError::Refused));
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn every_connection_is_a_full_handshake_without_tickets() {
    let pair = Pair::new();
    // A client that would resume if it were let.
    let mut config = client_config(&Identity::new(&pair.client));
    config.resumption = Resumption::in_memory_sessions(8);
    for _ in 0..2 {
        let (client, server) = pair.accept_rogue(config.clone()).await;
        let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(in_time(client.read_u8()).await.unwrap(), b'x');
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn client_keeps_no_ticket_of_a_server_that_sends_them() {
    let pair = Pair::new();
    let mut config = server_config(&Identity::new(&pair.server));
    config.send_tls13_tickets = 2;
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    // One configuration for both connections: what it kept of the first would serve the second.
    let config = client_config(&Identity::new(&pair.client));
    for _ in 0..2 {
        let (near, far) = duplex(64 << 10);
        let (client, server) = both(connect_with(config.clone(), near), acceptor.accept(far)).await;
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(in_time(client.read_u8()).await.unwrap(), b'x');
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 2);
        assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn allowed_key_shown_without_its_secret_is_refused_for_the_signature() {
    let pair = Pair::new();
    let rogue = secret();
    // Refused alike whether the key shown is allowed or not: nobody learns which keys are.
    for shown in [pair.client.public(), secret().public()] {
        let forger = Forger::identity(shown.to_spki(), &rogue, SignatureScheme::ED25519);
        let (client, server) = pair.accept_rogue(client_config(&forger)).await;
        assert_eq!(
            message(server.unwrap_err()),
            "the signature is not by the key that was shown"
        );
        let told = message(first_read(client.unwrap()).await);
        assert_eq!(told, "received fatal alert: DecryptError");
    }
    // The forger does get in with a key of its own: nothing but the signature was wrong.
    let forger = Forger::identity(pair.client.public().to_spki(), &pair.client, SignatureScheme::ED25519);
    pair.accept_rogue(client_config(&forger)).await.1.unwrap();
}

#[tokio::test]
async fn host_key_shown_without_its_secret_is_refused_for_the_signature() {
    let pair = Pair::new();
    let forger = Forger::identity(pair.server.public().to_spki(), &secret(), SignatureScheme::ED25519);
    let (client, _server) = pair.connect_rogue(server_config(&forger)).await;
    assert_eq!(
        message(client.unwrap_err()),
        "the signature is not by the key that was shown"
    );
}

#[tokio::test]
async fn key_that_is_not_ed25519_is_refused() {
    let pair = Pair::new();
    // P-256: SEQUENCE, algorithm 1.2.840.10045.2.1 with curve 1.2.840.10045.3.1.7, BIT STRING, a point.
    let mut p256 = vec![
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
    ];
    p256.extend([
        0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
    ]);
    p256.extend([7; 64]);
    let forger = Forger::identity(p256, &secret(), SignatureScheme::ECDSA_NISTP256_SHA256);
    let (_client, server) = pair.accept_rogue(client_config(&forger)).await;
    assert_eq!(message(server.unwrap_err()), "key that is not ed25519");
    let (client, _server) = pair.connect_rogue(server_config(&forger)).await;
    assert_eq!(message(client.unwrap_err()), "key that is not ed25519");
}

#[tokio::test]
async fn signature_of_another_scheme_is_refused() {
    let pair = Pair::new();
    let shown = pair.client.public().to_spki();
    let forger = Forger::identity(shown, &pair.client, SignatureScheme::ECDSA_NISTP256_SHA256);
    let (_client, server) = pair.accept_rogue(client_config(&forger)).await;
    let why = message(server.unwrap_err());
    assert!(why.contains("SignedHandshakeWithUnadvertisedSigScheme"), "{why}");
}

#[tokio::test]
async fn client_that_shows_no_key_is_refused() {
    let pair = Pair::new();
    let identity = Identity::new(&pair.client);
    let mut empty = client_config(&identity);
    empty.client_auth_cert_resolver = Arc::new(NoKey);
    let ordinary = ClientConfig::builder_with_details(identity.provider.clone(), Arc::new(Timeless))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(any_peer(&identity))
        .with_no_client_auth();
    for mut config in [empty, ordinary] {
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let (_client, server) = pair.accept_rogue(config).await;
        assert!(matches!(server.unwrap_err(), TlsError::NoCertificate));
    }
}

#[tokio::test]
async fn peer_without_our_protocol_is_refused() {
    let pair = Pair::new();
    for protocols in [vec![], vec![b"realize/9".to_vec()]] {
        let mut config = client_config(&Identity::new(&pair.client));
        config.alpn_protocols = protocols.clone();
        let (_client, server) = pair.accept_rogue(config).await;
        assert_eq!(message(server.unwrap_err()), "the other side does not speak realize/5");

        let mut config = server_config(&Identity::new(&pair.server));
        config.alpn_protocols = protocols;
        let (client, _server) = pair.connect_rogue(config).await;
        assert_eq!(message(client.unwrap_err()), "the other side does not speak realize/5");
    }
}

/// What the server says to a peer that sends `bytes` and nothing more, and what it answers.
async fn accept_bytes(bytes: &[u8]) -> (TlsError, Vec<u8>) {
    let (mut near, far) = duplex(64 << 10);
    let acceptor = Pair::new().acceptor();
    let peer = async {
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let (accepted, answer) = both(acceptor.accept(far), peer).await;
    (accepted.unwrap_err(), answer)
}

/// What the client says to a host that sends `bytes` and nothing more.
async fn connect_bytes(bytes: &[u8]) -> TlsError {
    let (near, mut far) = duplex(64 << 10);
    far.write_all(bytes).await.unwrap();
    far.shutdown().await.unwrap();
    let (connector, expected) = (Connector::new(&secret()), secret().public());
    in_time(connector.connect(Some(&expected), near)).await.unwrap_err()
}

#[tokio::test]
async fn plain_text_is_told_from_tls() {
    for text in ["GET / HTTP/1.1\r\n\r\n", "SSH-2.0-OpenSSH_9.9\r\n", "\0\0\0\0\0\0"] {
        assert!(
            matches!(accept_bytes(text.as_bytes()).await.0, TlsError::NotTls),
            "{text:?}"
        );
        assert!(
            matches!(connect_bytes(text.as_bytes()).await, TlsError::NotTls),
            "{text:?}"
        );
    }
}

#[tokio::test]
async fn connection_that_ends_early_is_an_unexpected_end() {
    // Nothing at all, and a handshake record cut off.
    for cut in [&[][..], &[0x16, 0x03, 0x01, 0x01, 0x00, 0x01]] {
        for error in [accept_bytes(cut).await.0, connect_bytes(cut).await] {
            assert!(
                matches!(&error, TlsError::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof),
                "{error:?}"
            );
        }
    }
}

#[tokio::test]
async fn tls_12_is_refused() {
    // A ClientHello as RFC 5246 has it: version 3.3, random, no session, one suite (ECDHE-ECDSA-AES128-GCM-SHA256), no
    // compression; extensions: groups (x25519), signatures (ed25519), point formats.
    let extensions = [
        &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x1d][..],
        &[0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x08, 0x07],
        &[0x00, 0x0b, 0x00, 0x02, 0x01, 0x00],
    ]
    .concat();
    // Without supported_versions, and with TLS 1.2 alone in it.
    let hellos = [
        (&[][..], "SupportedVersionsExtensionRequired"),
        (&[0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x03], "Tls12NotOfferedOrEnabled"),
    ];
    for (versions, reason) in hellos {
        let extensions = [&extensions, versions].concat();
        let mut hello = vec![0x03, 0x03];
        hello.extend([9; 32]);
        hello.extend([0x00, 0x00, 0x02, 0xc0, 0x2b, 0x01, 0x00, 0x00, extensions.len() as u8]);
        hello.extend(&extensions);
        let mut record = vec![0x16, 0x03, 0x01, 0x00, hello.len() as u8 + 4];
        record.extend([0x01, 0x00, 0x00, hello.len() as u8]);
        record.extend(&hello);
        let (error, answer) = accept_bytes(&record).await;
        let why = message(error);
        assert!(why.contains(reason), "{why}");
        // A fatal alert, protocol_version.
        assert_eq!(answer, [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x46]);
    }
}

#[test]
fn errors_below_tls_stay_what_they_are() {
    let reset = TlsError::of(io::ErrorKind::ConnectionReset.into());
    assert!(matches!(reset, TlsError::Io(source) if source.kind() == io::ErrorKind::ConnectionReset));
    let other = TlsError::of(io::Error::other("no TLS error"));
    assert!(matches!(other, TlsError::Io(_)));
    let damaged = TlsError::of(io::Error::other(rustls::Error::DecryptError));
    assert!(matches!(damaged, TlsError::Protocol(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_are_refused(kind in 0x14u8..=0x18, mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        // Half of what is tried passes as a record of some kind.
        if bytes.len() > 5 && bytes[5] % 2 == 0 {
            let body_bytes = (bytes.len() - 5) as u16;
            bytes[..3].copy_from_slice(&[kind, 3, 3]);
            bytes[3..5].copy_from_slice(&body_bytes.to_be_bytes());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            // Both end in an error, or these panic.
            accept_bytes(&bytes).await;
            connect_bytes(&bytes).await;
        });
    }
}
