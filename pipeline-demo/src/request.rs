//! What requests say in their headers: whose they are, and the key under which they are done once.

use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::server::problem;

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 1024;

/// Longest idempotency key.
const KEY_BYTES_MAX: usize = 255;

/// The hash of a token. To compare two takes as long however much of them is equal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenHash([u8; 32]);

impl TokenHash {
    pub(crate) fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// The hash of the bearer token (RFC 6750) of a request.
    pub(crate) fn of_bearer(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(AUTHORIZATION)?.as_bytes();
        let (scheme, token) = value.split_at_checked(7)?;
        let fits = (1..=TOKEN_BYTES_MAX).contains(&token.len());
        (scheme.eq_ignore_ascii_case(b"bearer ") && fits).then(|| Self::of(token))
    }

    /// Reads it as `sha256sum` prints it.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// The answer to a request without a token that we know.
pub(crate) fn unauthorized(code: &str, detail: &str) -> Response {
    let mut answer = problem(StatusCode::UNAUTHORIZED, code, detail);
    let scheme = HeaderValue::from_static("Bearer");
    answer.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    answer
}

/// The Idempotency-Key of a request, if it has one: a quoted string as draft-ietf-httpapi-idempotency-key-header has it, or
/// the bare key that most clients send.
///
/// # Errors
/// What is expected of a key, for the answer.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    let quoted = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    let key = quoted.unwrap_or(text);
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    if (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(plain) {
        Ok(Some(key))
    } else {
        Err(
            "expected an Idempotency-Key of 1 to 255 printable characters, such as \"8e03978e-40d5\"",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_quoted_or_bare_and_not_endless() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("idempotency-key", text.parse().unwrap());
            idempotency_key(&headers).map(|key| key.map(str::to_owned))
        };
        let key = Ok(Some("8e03978e".to_owned()));
        assert_eq!(read("\"8e03978e\""), key);
        assert_eq!(read("8e03978e"), key);
        for wrong in ["", "\"\"", "\"a", "a b", &"x".repeat(256)] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn a_hash_is_64_hexadecimal_digits() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(TokenHash::from_hex(empty).unwrap().is(&TokenHash::of(b"")));
        for wrong in [
            &empty[1..],
            &empty.replace('e', "g"),
            &empty.replace("e3", "+3"),
        ] {
            assert!(TokenHash::from_hex(wrong).is_none(), "{wrong}");
        }
    }
}
