//! Encrypted streams between hosts that know each other's keys.
//!
//! TLS 1.3 only; both sides show a raw ed25519 key (RFC 7250) and sign with it. There are no certificates, no names and no
//! resumption: every connection is a full handshake, at which the list of allowed keys is asked anew. Works on any stream and
//! sets no time limits: the caller does.
//!
//! # Security
//!
//! A key counts only once its owner has signed the handshake with it, so no error names a key that was merely claimed, and
//! nobody learns which keys are allowed without holding one of them. In TLS 1.3 a client is through with its handshake before
//! the server has looked at its key: it learns that it is refused when it first reads ([`TlsError::of`]).

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName,
    InvalidMessage, OtherError, PeerIncompatible, PeerMisbehaved, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    time_provider::TimeProvider,
    version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::keys::{PublicKey, SecretKey};

/// What both sides must speak inside (ALPN); its number changes when they could not understand each other.
pub const PROTOCOL: &[u8] = b"realize/5";

/// The most a connection holds of what is still to be sent. The library's own 64 KiB cut a frame of 1 MiB into sixteen turns
/// of encrypting and writing; one frame at a time is enough, and bounds the memory of a slow peer's connection.
pub const BUFFER_BYTES_MAX: usize = 1 << 20;

/// Whether a peer with this key may connect.
pub type Allowed = dyn Fn(&PublicKey) -> bool + Send + Sync;

/// Why there is no stream, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No key was expected of this host.
    #[error("the host is not known; it has the key {presented}")]
    UnknownHost {
        /// The key it proved to hold.
        presented: PublicKey,
    },
    /// The host has another key than the one expected.
    #[error(
        "the host has the key {presented} and not {expected}: it was given a new key, or somebody stands in its place"
    )]
    WrongHostKey {
        /// The key it proved to hold.
        presented: PublicKey,
        /// The key it should hold.
        expected: PublicKey,
    },
    /// A peer whose key is not allowed; it has been told.
    #[error("a peer that is not allowed has the key {presented}")]
    UnknownPeer {
        /// The key it proved to hold.
        presented: PublicKey,
    },
    /// The other side does not know this side's key, or does not take it.
    #[error("the other side does not allow this host's key")]
    Refused,
    /// A peer that shows no key, or knows none but certificates.
    #[error("the other side shows no key")]
    NoCertificate,
    /// The other side speaks something else.
    #[error("the other side does not speak TLS")]
    NotTls,
    /// Another version, another protocol inside, a bad signature, damaged data.
    #[error("TLS failed: {0}")]
    Protocol(String),
    /// The stream below failed or ended.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
}

impl TlsError {
    /// What an error from reading or writing an established stream means. Refused is told by a read: after a write that
    /// failed, a read may still tell more.
    pub fn of(error: io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                let text = "the other side has closed the connection";
                Self::Io(io::Error::new(io::ErrorKind::UnexpectedEof, text))
            }
            None => Self::Io(error),
            Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => Self::Refused,
            Some(
                rustls::Error::NoCertificatesPresented
                | rustls::Error::PeerIncompatible(PeerIncompatible::IncorrectCertificateTypeExtension),
            ) => Self::NoCertificate,
            Some(
                rustls::Error::NoApplicationProtocol
                | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol),
            ) => Self::no_protocol(),
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(why))) => Self::Protocol(why.to_string()),
            Some(rustls::Error::InvalidCertificate(CertificateError::BadSignature)) => {
                Self::Protocol("the signature is not by the key that was shown".into())
            }
            Some(other) => Self::Protocol(other.to_string()),
        }
    }

    /// The same for an error of the handshake, when even the first bytes may be of another protocol.
    fn of_handshake(error: io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            )) => Self::NotTls,
            _ => Self::of(error),
        }
    }

    fn of_config(error: rustls::Error) -> Self {
        Self::Protocol(error.to_string())
    }

    fn no_protocol() -> Self {
        Self::Protocol(format!("the other side does not speak {}", PROTOCOL.escape_ascii()))
    }
}

/// Makes connections secure from the side that called.
#[derive(Debug, Clone)]
pub struct Connector {
    identity: Identity,
}

impl Connector {
    /// Connections that show `key`.
    pub fn new(key: &SecretKey) -> Self {
        Self {
            identity: Identity::new(key),
        }
    }

    /// Shakes hands over `stream` with the host that holds the key `expected`. With `None`, or when it holds another, this
    /// fails and tells the key it has; nothing but the handshake is sent then.
    pub async fn connect<S>(&self, expected: Option<&PublicKey>, stream: S) -> Result<client::TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let expected = expected.copied();
        let check = Arc::new(PeerCheck::new(
            &self.identity.provider,
            Arc::new(move |key| Some(*key) == expected),
        ));
        let config = self
            .identity
            .client_config(check.clone())
            .map_err(TlsError::of_config)?;
        // The name is neither sent (an address never is) nor checked.
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        let connected = TlsConnector::from(Arc::new(config))
            .connect_with(name, stream, |connection| {
                connection.set_buffer_limit(Some(BUFFER_BYTES_MAX))
            })
            .await;
        let stream = connected.map_err(|error| match (check.unwanted(), expected) {
            (Some(presented), Some(expected)) => TlsError::WrongHostKey { presented, expected },
            (Some(presented), None) => TlsError::UnknownHost { presented },
            (None, _) => TlsError::of_handshake(error),
        })?;
        require_protocol(stream.get_ref().1)?;
        Ok(stream)
    }
}

/// Makes connections secure from the side that was called.
#[derive(Clone)]
pub struct Acceptor {
    identity: Identity,
    allowed: Arc<Allowed>,
}

impl Acceptor {
    /// Connections that show `key` to peers whose key is `allowed`, which is asked at each handshake.
    pub fn new(key: &SecretKey, allowed: Arc<Allowed>) -> Self {
        Self {
            identity: Identity::new(key),
            allowed,
        }
    }

    /// One that shows `key` to the same peers.
    pub fn with_key(&self, key: &SecretKey) -> Self {
        Self::new(key, self.allowed.clone())
    }

    /// Shakes hands over `stream` and tells whose it is. A peer that is not allowed is told so, by the alert access_denied.
    pub async fn accept<S>(&self, stream: S) -> Result<(server::TlsStream<S>, PublicKey), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let check = Arc::new(PeerCheck::new(&self.identity.provider, self.allowed.clone()));
        let config = self
            .identity
            .server_config(check.clone())
            .map_err(TlsError::of_config)?;
        let stream = TlsAcceptor::from(Arc::new(config))
            .accept_with(stream, |connection| connection.set_buffer_limit(Some(BUFFER_BYTES_MAX)))
            .await
            .map_err(|error| match check.unwanted() {
                Some(presented) => TlsError::UnknownPeer { presented },
                None => TlsError::of_handshake(error),
            })?;
        require_protocol(stream.get_ref().1)?;
        let peer = check.wanted().ok_or(TlsError::NoCertificate)?;
        Ok((stream, peer))
    }
}

/// ALPN refuses a peer that offers other protocols; one that offers none gets through it, and is refused here.
fn require_protocol(connection: &CommonState) -> Result<(), TlsError> {
    match connection.alpn_protocol() {
        Some(PROTOCOL) => Ok(()),
        _ => Err(TlsError::no_protocol()),
    }
}

/// What this side shows, and the cryptography.
#[derive(Debug, Clone)]
struct Identity {
    provider: Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
}

impl Identity {
    fn new(key: &SecretKey) -> Self {
        let mut provider = aws_lc_rs::default_provider();
        // The client's order decides; AES-128-GCM is the fastest of them where the processor has AES.
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        Self {
            provider: Arc::new(provider),
            certified: key.certified(),
        }
    }

    fn client_config(&self, check: Arc<PeerCheck>) -> Result<ClientConfig, rustls::Error> {
        let resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.certified.clone()));
        let mut config = ClientConfig::builder_with_details(self.provider.clone(), Arc::new(Timeless))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(check)
            .with_client_cert_resolver(resolver);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.enable_sni = false;
        // A resumed session would pass by the check of the key.
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }

    fn server_config(&self, check: Arc<PeerCheck>) -> Result<ServerConfig, rustls::Error> {
        let resolver = Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified.clone()));
        let mut config = ServerConfig::builder_with_details(self.provider.clone(), Arc::new(Timeless))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(check)
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A resumed session would pass by the check of the key, which may have been removed since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }
}

/// Raw keys have no dates and there are no tickets to grow old, so the time of day decides nothing.
#[derive(Debug)]
struct Timeless;

impl TimeProvider for Timeless {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::ZERO))
    }
}

/// The check of the other side's key in one handshake.
struct PeerCheck {
    provider: Arc<CryptoProvider>,
    allowed: Arc<Allowed>,
    /// The key the peer proved to hold, and whether it is allowed.
    proven: OnceLock<(PublicKey, bool)>,
}

impl PeerCheck {
    fn new(provider: &Arc<CryptoProvider>, allowed: Arc<Allowed>) -> Self {
        Self {
            provider: provider.clone(),
            allowed,
            proven: OnceLock::new(),
        }
    }

    /// The key of a peer that may connect.
    fn wanted(&self) -> Option<PublicKey> {
        self.proven.get().and_then(|(key, allowed)| allowed.then_some(*key))
    }

    /// The key of a peer that may not.
    fn unwanted(&self) -> Option<PublicKey> {
        self.proven.get().and_then(|(key, allowed)| (!allowed).then_some(*key))
    }

    fn check_kind(certificate: &CertificateDer<'_>) -> Result<PublicKey, rustls::Error> {
        PublicKey::from_spki(certificate).map_err(|bad| CertificateError::Other(OtherError(Arc::new(bad))).into())
    }

    /// The signature first, then whose it is.
    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = Self::check_kind(certificate)?;
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let spki = SubjectPublicKeyInfoDer::from(certificate.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = verify_tls13_signature_with_raw_key(message, &spki, signed, algorithms)?;
        let (_, allowed) = *self.proven.get_or_init(|| (key, (self.allowed)(&key)));
        if allowed {
            Ok(valid)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn refuse_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }
}

impl std::fmt::Debug for PeerCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerCheck")
            .field("proven", &self.proven)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for PeerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Self::check_kind(end_entity).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for PeerCheck {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Self::check_kind(end_entity).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
