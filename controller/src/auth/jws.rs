//! Signed tokens in their compact form (RFC 7515, 7519) and the keys they are verified with (RFC 7517). Pure.
//!
//! One algorithm is known, RS256, and the header has no say in it. Keys come from the issuer alone. A member that is
//! written twice makes a token none: two readers might take two different ones.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::refusal::Refusal;

/// Longest token. GitLab's have some 1,500 bytes; `groups_direct` and `user_identities` may double that.
pub(super) const TOKEN_BYTES_MAX: usize = 8 << 10;

/// The one algorithm: RSASSA-PKCS1-v1_5 with SHA-256.
const ALGORITHM: &str = "RS256";

/// What a header may not have: keys that the token brings along, and what would change how it is read.
const HEADER_REFUSED: [&str; 9] = [
    "jku", "jwk", "x5u", "x5c", "x5t", "crit", "b64", "zip", "enc",
];

/// Most keys of one issuer. GitLab has two or three.
const KEYS_MAX: usize = 32;

/// Longest name of a key.
const KEY_ID_BYTES_MAX: usize = 256;

/// Shortest modulus: 2048 bits, as ring wants it too.
const MODULUS_BYTES_MIN: usize = 256;

/// The members of a JSON object, each written once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Members(pub(super) BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<String, Value>()? {
                    if members.insert(key, value).is_some() {
                        return Err(A::Error::custom("a member twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

impl Members {
    /// A text.
    pub(super) fn text(&self, name: &'static str) -> Result<&str, Refusal> {
        let text = self.0.get(name).and_then(Value::as_str);
        text.filter(|text| !text.is_empty())
            .ok_or(Refusal::Claim(name))
    }

    /// A text, if it is there and not `null`.
    pub(super) fn text_if_any(&self, name: &'static str) -> Result<Option<&str>, Refusal> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.text(name).map(Some),
        }
    }

    /// A number that GitLab writes as a text of digits.
    pub(super) fn number(&self, name: &'static str) -> Result<u64, Refusal> {
        digits(self.text(name)?).ok_or(Refusal::Claim(name))
    }

    /// A time in whole seconds since 1970.
    pub(super) fn seconds(&self, name: &'static str) -> Result<i64, Refusal> {
        let seconds = self.0.get(name).and_then(Value::as_i64);
        seconds
            .filter(|seconds| (0..=SECONDS_MAX).contains(seconds))
            .ok_or(Refusal::Claim(name))
    }
}

/// The last second that is taken for a time: the end of the year 9999. Sums of two stay far from overflowing.
const SECONDS_MAX: i64 = 253_402_300_799;

/// A whole number of digits alone, without leading zeros.
pub(super) fn digits(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let is_shortest = text == "0" || !text.starts_with('0');
    (is_plain && is_shortest).then(|| text.parse().ok())?
}

/// A token whose header was read, and nothing else of it believed.
pub(super) struct Unverified<'t> {
    key_id: String,
    /// Header and payload, as they were signed.
    signed: &'t str,
    payload: &'t str,
    signature: &'t str,
}

impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unverified")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl<'t> Unverified<'t> {
    /// Reads the header.
    pub(super) fn read(token: &'t str) -> Result<Self, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Size {
                bytes: token.len(),
                max: TOKEN_BYTES_MAX,
            });
        }
        let parts: Vec<&str> = token.split('.').collect();
        let [header, payload, signature] = parts[..] else {
            return Err(Refusal::Form("it has not three parts"));
        };
        let members = object(header).ok_or(Refusal::Form("its header is no JSON object"))?;
        let algorithm = members.0.get("alg").and_then(Value::as_str);
        if algorithm != Some(ALGORITHM) {
            let shown = algorithm.unwrap_or("nothing").chars().take(20).collect();
            return Err(Refusal::Algorithm(shown));
        }
        let refused = members
            .0
            .keys()
            .find(|name| HEADER_REFUSED.contains(&name.as_str()) || name.starts_with("x5"));
        if let Some(name) = refused {
            return Err(Refusal::Header(name.chars().take(20).collect()));
        }
        let kind = members.0.get("typ");
        if kind.is_some_and(|kind| !is_jwt(kind)) {
            return Err(Refusal::Form("its type (typ) is not JWT"));
        }
        let key_id = members.0.get("kid").and_then(Value::as_str);
        let fits = |id: &&str| (1..=KEY_ID_BYTES_MAX).contains(&id.len());
        let key_id = key_id.filter(fits).ok_or(Refusal::NoKey)?;
        Ok(Self {
            key_id: key_id.to_owned(),
            signed: &token[..header.len() + 1 + payload.len()],
            payload,
            signature,
        })
    }

    /// The name of the key that it says to be signed with.
    pub(super) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Its claims, once the signature is found to be that of the key it names.
    pub(super) fn verify(self, keys: &KeySet) -> Result<Members, Refusal> {
        let key = keys
            .0
            .get(&self.key_id)
            .ok_or_else(|| Refusal::UnknownKey(self.key_id.chars().take(64).collect()))?;
        let signature = decode(self.signature).ok_or(Refusal::Signature)?;
        let components = RsaPublicKeyComponents {
            n: key.modulus.as_slice(),
            e: key.exponent.as_slice(),
        };
        components
            .verify(
                &RSA_PKCS1_2048_8192_SHA256,
                self.signed.as_bytes(),
                &signature,
            )
            .map_err(|_| Refusal::Signature)?;
        object(self.payload).ok_or(Refusal::Form("its payload is no JSON object"))
    }
}

fn is_jwt(kind: &Value) -> bool {
    kind.as_str()
        .is_some_and(|kind| kind.eq_ignore_ascii_case("jwt"))
}

fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

fn object(part: &str) -> Option<Members> {
    serde_json::from_slice(&decode(part)?).ok()
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PublicKey {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

/// The keys of an issuer that a token may be signed with, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeySet(BTreeMap<String, PublicKey>);

/// A key as it is published; what is none of ours is left out.
#[derive(serde::Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

#[derive(serde::Deserialize)]
struct RawKeys {
    keys: Vec<Value>,
}

impl KeySet {
    /// The keys of an issuer's document that are for RS256; of two with one name, the first. `None` where it is no such
    /// document, or has none of them: nothing could be verified with it.
    pub(super) fn read(document: &[u8]) -> Option<Self> {
        let raw: RawKeys = serde_json::from_slice(document).ok()?;
        let mut keys = BTreeMap::new();
        for value in raw.keys.into_iter().take(KEYS_MAX) {
            if let Some((name, key)) = serde_json::from_value(value).ok().and_then(rsa) {
                keys.entry(name).or_insert(key);
            }
        }
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// Whether there is a key of this name.
    pub(super) fn has(&self, key_id: &str) -> bool {
        self.0.contains_key(key_id)
    }
}

fn rsa(raw: RawKey) -> Option<(String, PublicKey)> {
    let is_ours = raw.kty == "RSA"
        && raw.purpose.is_none_or(|purpose| purpose == "sig")
        && raw.alg.is_none_or(|algorithm| algorithm == ALGORITHM);
    let whole = |text: Option<String>| {
        let bytes = decode(&text?)?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Some(bytes[zeros..].to_vec())
    };
    let key = PublicKey {
        modulus: whole(raw.n)?,
        exponent: whole(raw.e)?,
    };
    let fits = key.modulus.len() >= MODULUS_BYTES_MIN && !key.exponent.is_empty();
    (is_ours && fits).then_some((raw.kid?, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_keys_is_of_those_that_can_sign_for_us() {
        let modulus = URL_SAFE_NO_PAD.encode([0x81; 256]);
        let short = URL_SAFE_NO_PAD.encode([0x81; 128]);
        let key = |change: &dyn Fn(&mut Value)| {
            let mut key = serde_json::json!({
                "kty": "RSA", "kid": "a", "use": "sig", "alg": "RS256", "n": modulus, "e": "AQAB"
            });
            change(&mut key);
            key
        };
        let read = |keys: Vec<Value>| {
            KeySet::read(serde_json::json!({ "keys": keys }).to_string().as_bytes())
        };
        assert!(read(vec![key(&|_| ())]).unwrap().has("a"));
        for change in [
            (|key: &mut Value| key["kty"] = "oct".into()) as fn(&mut Value),
            |key| key["use"] = "enc".into(),
            |key| key["alg"] = "HS256".into(),
            |key| key["kid"] = Value::Null,
            |key| key["e"] = "".into(),
            |key| key["n"] = "REPLACE-with".into(),
        ] {
            assert_eq!(read(vec![key(&change)]), None);
        }
        assert_eq!(
            read(vec![key(&|key| key["n"] = short.clone().into())]),
            None
        );
        let many = (0..40).map(|n: u32| key(&|key| key["kid"] = n.to_string().into()));
        assert_eq!(read(many.collect()).unwrap().0.len(), KEYS_MAX);
        assert_eq!(KeySet::read(b"<html>"), None);
    }

    #[test]
    fn numbers_are_digits_alone() {
        assert_eq!(digits("4711"), Some(4711));
        for text in [
            "",
            "+1",
            "-1",
            "007",
            "1e3",
            " 1",
            "1.0",
            "99999999999999999999",
        ] {
            assert_eq!(digits(text), None, "{text}");
        }
    }
}
