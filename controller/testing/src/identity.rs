//! Tokens as an identity provider signs them, and as nobody should: for tests alone.
//!
//! The two keys in `data` were made for these tests and sign nothing else; a real one is never in a repository.

mod provider;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding, RsaKeyPair};
use ring::{digest, hmac};
use serde_json::{Value, json};

pub use provider::{CLIENT, CLIENT_SECRET, Person, Provider};

/// A key that signs tokens.
#[derive(Debug)]
pub struct Signer {
    pair: RsaKeyPair,
    modulus: String,
    key_id: String,
}

impl Signer {
    /// The issuer's.
    #[must_use]
    pub fn first() -> Self {
        Self::of(include_str!("../data/rsa-for-tests-alone-1.pem"))
    }

    /// Another's.
    #[must_use]
    pub fn second() -> Self {
        Self::of(include_str!("../data/rsa-for-tests-alone-2.pem"))
    }

    fn of(pem: &str) -> Self {
        let base64: String = pem.lines().filter(|line| !line.contains("-----")).collect();
        let der = STANDARD.decode(base64).expect("the file is PEM");
        let pair = RsaKeyPair::from_pkcs8(&der).expect("the file holds an RSA key");
        let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let modulus = encode(&public.n);
        // The exponent of both is 65537. The name is the key's thumbprint (RFC 7638).
        let canonical = format!(r#"{{"e":"AQAB","kty":"RSA","n":"{modulus}"}}"#);
        let thumbprint = digest::digest(&digest::SHA256, canonical.as_bytes());
        Self {
            pair,
            modulus,
            key_id: encode(thumbprint.as_ref()),
        }
    }

    /// Its name.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The modulus of its public half, as its issuer publishes it.
    #[must_use]
    pub fn modulus(&self) -> &str {
        &self.modulus
    }

    /// Its public half, as its issuer publishes it.
    #[must_use]
    pub fn public(&self) -> Value {
        json!({
            "kty": "RSA", "kid": self.key_id, "e": "AQAB", "n": self.modulus, "use": "sig", "alg": "RS256",
        })
    }

    /// The header that goes with it.
    #[must_use]
    pub fn header(&self) -> Value {
        json!({ "alg": "RS256", "kid": self.key_id, "typ": "JWT" })
    }

    /// A token with these claims.
    #[must_use]
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&self.header().to_string(), &claims.to_string())
    }

    /// A token of this header and payload, whatever they are.
    #[must_use]
    pub fn sign(&self, header: &str, payload: &str) -> String {
        self.sign_by(&RSA_PKCS1_SHA256, header, payload)
    }

    /// The same with SHA-512, which is RS512.
    #[must_use]
    pub fn sign_sha512(&self, header: &str, payload: &str) -> String {
        self.sign_by(&RSA_PKCS1_SHA512, header, payload)
    }

    fn sign_by(&self, how: &'static dyn RsaEncoding, header: &str, payload: &str) -> String {
        let signed = unsigned(header, payload);
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair
            .sign(how, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .expect("the signature is as long as the modulus");
        format!("{signed}.{}", encode(&signature))
    }
}

/// Header and payload of a token, without a signature.
#[must_use]
pub fn unsigned(header: &str, payload: &str) -> String {
    format!(
        "{}.{}",
        encode(header.as_bytes()),
        encode(payload.as_bytes())
    )
}

/// A token that is authenticated by HMAC with this secret.
#[must_use]
pub fn hmac_token(secret: &[u8], header: &str, payload: &str) -> String {
    let signed = unsigned(header, payload);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", encode(tag.as_ref()))
}

/// Base64 for addresses, without padding.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}
