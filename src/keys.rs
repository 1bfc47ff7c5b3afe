//! The ed25519 keys that say who a host is.
//!
//! A public key is written in one line, `ed25519:` and 43 characters of base64, in configuration and in messages; on the wire
//! it is a SubjectPublicKeyInfo (RFC 8410). A secret key is a PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it.
//! [`file`](mod@file) keeps one on disk.

use std::{fmt, str::FromStr, sync::Arc};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::{CertifiedKey, SigningKey},
};
use serde::{Deserialize, Serialize};

pub mod file;

/// Bytes of an ed25519 key, public or secret.
const KEY_BYTES: usize = 32;

/// What stands before a public key's name and number.
const TEXT_PREFIX: &str = "ed25519:";

/// What stands before the 32 bytes in a SubjectPublicKeyInfo: SEQUENCE, algorithm 1.3.101.112, BIT STRING (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What stands before the 32 bytes in a PKCS#8 of version 1: the same algorithm, OCTET STRING in OCTET STRING (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Why text or bytes are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Text that does not begin as a public key does.
    #[error("a public key begins with \"{TEXT_PREFIX}\"")]
    Prefix,
    /// What follows the prefix is not exactly 32 bytes of base64.
    #[error("after \"{TEXT_PREFIX}\" a public key has 43 characters of base64 without padding")]
    Base64,
    /// A SubjectPublicKeyInfo of another algorithm, or none.
    #[error("key that is not ed25519")]
    NotEd25519,
    /// No PKCS#8 PEM with an ed25519 key.
    #[error("no unencrypted ed25519 secret key in PKCS#8 PEM (\"-----BEGIN PRIVATE KEY-----\")")]
    NotSecret,
    /// The operating system gave no random bytes.
    #[error("no random bytes to be had")]
    NoRandom,
}

/// The public half of a key: who a host is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo in DER. Nothing but an ed25519 key, to the byte, is taken.
    pub fn from_spki(der: &[u8]) -> Result<Self, BadKey> {
        let key = der.strip_prefix(&SPKI_PREFIX).ok_or(BadKey::NotEd25519)?;
        Ok(Self(key.try_into().map_err(|_| BadKey::NotEd25519)?))
    }

    /// The SubjectPublicKeyInfo in DER.
    pub fn to_spki(&self) -> Vec<u8> {
        [SPKI_PREFIX.as_slice(), &self.0].concat()
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TEXT_PREFIX}{}", BASE64_STANDARD_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;

    /// Reads what `Display` writes and nothing else: one key has one spelling.
    fn from_str(text: &str) -> Result<Self, BadKey> {
        let base64 = text.strip_prefix(TEXT_PREFIX).ok_or(BadKey::Prefix)?;
        let bytes = BASE64_STANDARD_NO_PAD.decode(base64).map_err(|_| BadKey::Base64)?;
        Ok(Self(bytes.try_into().map_err(|_| BadKey::Base64)?))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = BadKey;
    fn try_from(text: String) -> Result<Self, BadKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// The secret half of a key. `Debug` shows the public half only.
#[derive(Clone)]
pub struct SecretKey {
    pkcs8: Arc<PrivatePkcs8KeyDer<'static>>,
    signing: Arc<dyn SigningKey>,
    public: PublicKey,
}

impl SecretKey {
    /// A new key from the operating system's random bytes.
    pub fn generate() -> Result<Self, BadKey> {
        let mut seed = [0; KEY_BYTES];
        aws_lc_rs::default_provider()
            .secure_random
            .fill(&mut seed)
            .map_err(|_| BadKey::NoRandom)?;
        Self::from_pkcs8([PKCS8_PREFIX.as_slice(), &seed].concat())
    }

    /// Reads the first unencrypted PKCS#8 key of a PEM text; it must be an ed25519 key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BadKey> {
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| BadKey::NotSecret)?;
        Self::from_pkcs8(pkcs8.secret_pkcs8_der().to_vec())
    }

    /// The key as PKCS#8 PEM: whoever has this text is this host.
    pub fn to_pem(&self) -> String {
        let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
        for line in BASE64_STANDARD
            .encode(self.pkcs8.secret_pkcs8_der())
            .as_bytes()
            .chunks(64)
        {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem + "-----END PRIVATE KEY-----\n"
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// What TLS presents and signs with: the public half as a raw public key (RFC 7250).
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        let raw = CertificateDer::from(self.public.to_spki());
        Arc::new(CertifiedKey::new(vec![raw], self.signing.clone()))
    }

    fn from_pkcs8(der: Vec<u8>) -> Result<Self, BadKey> {
        let pkcs8 = PrivatePkcs8KeyDer::from(der);
        let signing = aws_lc_rs::sign::any_eddsa_type(&pkcs8).map_err(|_| BadKey::NotSecret)?;
        let spki = signing.public_key().ok_or(BadKey::NotSecret)?;
        let public = PublicKey::from_spki(&spki)?;
        Ok(Self {
            pkcs8: Arc::new(pkcs8),
            signing,
            public,
        })
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 8410 §10.3 and its public key of §10.1.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    const SPKI: &str = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

    #[test]
    fn published_example_gives_its_public_key_and_the_same_pem_again() {
        let key = SecretKey::from_pem(PEM.as_bytes()).unwrap();
        let spki = BASE64_STANDARD.decode(SPKI).unwrap();
        assert_eq!(key.public().to_spki(), spki);
        assert_eq!(PublicKey::from_spki(&spki), Ok(key.public()));
        assert_eq!(key.to_pem(), PEM);
    }

    #[test]
    fn public_key_has_one_spelling() {
        let key = SecretKey::from_pem(PEM.as_bytes()).unwrap().public();
        let text = key.to_string();
        assert_eq!(text, "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE");
        assert_eq!(text.parse(), Ok(key));
        let base64 = &text["ed25519:".len()..];
        for wrong in [
            "",
            base64,
            &format!("Ed25519:{base64}"),
            &format!(" {text}"),
            "ssh-ed25519 AAAA",
        ] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(BadKey::Prefix), "{wrong:?}");
        }
        // Padding, white space, one character fewer or more, another alphabet, bits set in the last character beyond the key.
        let short = &text[..text.len() - 1];
        for wrong in [
            "ed25519:",
            &format!("{text}="),
            &format!("{text}\n"),
            short,
            &format!("{text}A"),
        ] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(BadKey::Base64), "{wrong:?}");
        }
        for last in ['-', 'F', 'é'] {
            assert_eq!(
                format!("{short}{last}").parse::<PublicKey>(),
                Err(BadKey::Base64),
                "{last}"
            );
        }
    }

    #[test]
    fn spki_of_anything_else_is_refused() {
        let spki = SecretKey::generate().unwrap().public().to_spki();
        let mut x25519 = spki.clone();
        x25519[8] = 0x6e;
        let long = [spki.as_slice(), &[0]].concat();
        for wrong in [&spki[..43], &spki[..12], &[], &long, &x25519] {
            assert_eq!(PublicKey::from_spki(wrong), Err(BadKey::NotEd25519));
        }
        assert_eq!(BadKey::NotEd25519.to_string(), "key that is not ed25519");
    }

    #[test]
    fn generated_keys_differ_and_come_back_from_pem() {
        let (one, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        assert_ne!(one.public(), other.public());
        let again = SecretKey::from_pem(one.to_pem().as_bytes()).unwrap();
        assert_eq!(again.public(), one.public());
    }

    #[test]
    fn what_is_no_secret_key_is_refused() {
        let openssh = PEM.replace("PRIVATE", "OPENSSH PRIVATE");
        let encrypted = PEM.replace("PRIVATE", "ENCRYPTED PRIVATE");
        let cut = PEM.replace("Vh", "");
        // An X25519 key: one byte of the algorithm differs.
        let x25519 = PEM.replace("AwBQYDK2Vw", "AwBQYDK2Vu");
        for wrong in ["", "-----BEGIN PRIVATE KEY-----\n", &openssh, &encrypted, &cut, &x25519] {
            assert_eq!(
                SecretKey::from_pem(wrong.as_bytes()).unwrap_err(),
                BadKey::NotSecret,
                "{wrong}"
            );
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = SecretKey::from_pem(PEM.as_bytes()).unwrap();
        assert_eq!(format!("{key:?}"), format!("SecretKey(of {})", key.public()));
    }

    #[test]
    fn public_key_is_its_line_in_toml() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Holder {
            key: PublicKey,
        }
        let holder = Holder {
            key: SecretKey::generate().unwrap().public(),
        };
        let text = toml::to_string(&holder).unwrap();
        assert_eq!(text, format!("key = \"{}\"\n", holder.key));
        assert_eq!(toml::from_str::<Holder>(&text).unwrap(), holder);
    }
}
