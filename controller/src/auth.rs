//! Who may do what: machines sign in with tokens, and each token has a role.
//!
//! The file of `friday serve --tokens` holds hashes alone: whoever reads it, or a copy of it, can sign in as nobody. A token
//! is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess from, which is what slow, salted hashes
//! of passwords are against, and a salt would only help against equal tokens, of which there are none. A hash is compared in
//! a time that does not depend on how much of it is right.
//!
//! `rules` says which role a request takes, `file` how tokens are read and read again.

mod file;
mod identity;
mod rules;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub use file::TokensError;
pub(crate) use file::{is_name, read_limited};
pub use identity::Identity;
pub use rules::{Role, Rule};

use crate::api::error::ApiError;
use crate::store::hex;

/// How a token of ours begins: programs that look for leaked secrets know it by that.
const PREFIX: &str = "friday_";

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 1024;

/// The hash of a token.
#[derive(Clone, Copy)]
struct TokenHash([u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

impl TokenHash {
    fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A line of the tokens file.
#[derive(Debug, Clone)]
struct Entry {
    caller: Caller,
    hash: TokenHash,
}

/// Who makes a request: the name and the role of its token, or the person who signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token's name, or who it is in the event log.
    pub name: String,
    /// The most that it may do anywhere.
    pub role: Role,
    /// Who an identity provider says it is; `None` for a token of ours.
    pub identity: Option<Identity>,
}

impl Caller {
    /// The bearer of a token of ours: its role holds everywhere.
    pub(crate) fn of_token(name: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            role,
            identity: None,
        }
    }

    /// How the event log names the author of a command who says to be `claimed`: first who it certainly is.
    #[must_use]
    pub fn author(&self, claimed: &str) -> String {
        if claimed == self.name || claimed == "unknown" {
            self.name.clone()
        } else {
            format!("{} (for {claimed})", self.name)
        }
    }

    /// Whether the role is one that the rule takes.
    ///
    /// # Errors
    /// It is not; the problem names the rule.
    pub fn require(&self, rule: Rule) -> Result<(), ApiError> {
        if rule.takes(self.role) {
            return Ok(());
        }
        tracing::warn!(token = %self.name, role = %self.role, rule = rule.name(), "refused");
        let roles: Vec<&str> = rule.roles().iter().map(|role| role.as_str()).collect();
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!(
                "rule {:?} takes a token with the role {}; the role of {:?} is {}",
                rule.name(),
                roles.join(" or "),
                self.name,
                self.role
            ),
        ))
    }
}

/// A new token: what is given to its bearer, once, and the line for the tokens file.
#[derive(Clone, serde::Serialize)]
pub struct NewToken {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The secret.
    pub token: String,
    /// The line for the file; it holds the hash alone.
    pub line: String,
}

impl NewToken {
    /// Makes one at random.
    #[must_use]
    pub fn random(name: &str, role: Role) -> Self {
        // The generator is a cryptographic one, seeded by the system.
        let token = format!("{PREFIX}{}", hex(&rand::random::<[u8; 32]>()));
        let line = format!("{name}: {role} {}", hex(&TokenHash::of(&token).0));
        Self {
            name: name.to_owned(),
            role,
            token,
            line,
        }
    }
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// The tokens that are good at this moment.
#[derive(Debug)]
pub struct Tokens {
    entries: RwLock<Arc<Vec<Entry>>>,
}

impl Tokens {
    /// Those of a file.
    ///
    /// # Errors
    /// It cannot be read, or is not as it should be.
    pub fn open(path: &Path) -> Result<Arc<Self>, TokensError> {
        Ok(Arc::new(Self {
            entries: RwLock::new(Arc::new(file::read(path)?)),
        }))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries().len()
    }

    fn entries(&self) -> Arc<Vec<Entry>> {
        let entries = self.entries.read();
        Arc::clone(&entries.unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, entries: Vec<Entry>) {
        let mut held = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        *held = Arc::new(entries);
    }

    /// Whose token a request bears.
    ///
    /// # Errors
    /// It bears none, or one that is not in the file.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let refused = |code, detail: &str| ApiError::new(StatusCode::UNAUTHORIZED, code, detail);
        let Some(token) = bearer(headers) else {
            return Err(refused(
                "token_missing",
                "this controller wants a token: set FRIDAY_TOKEN or --token-file; `friday token` makes one, and its line goes into the file of `friday serve --tokens`",
            ));
        };
        let hash = TokenHash::of(token);
        let entries = self.entries();
        // To the end of the list, wherever it is found.
        let found = entries.iter().fold(None, |found, entry| {
            if entry.hash.is(&hash) {
                Some(entry)
            } else {
                found
            }
        });
        found.map(|entry| entry.caller.clone()).ok_or_else(|| {
            refused(
                "token_unknown",
                "this token is not in the file of `friday serve --tokens`: it was taken out of it, or is another controller's",
            )
        })
    }
}

/// The token of a request (RFC 6750).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    let fits = (1..=TOKEN_BYTES_MAX).contains(&token.len());
    (scheme.eq_ignore_ascii_case("bearer") && fits).then_some(token)
}

/// Lets requests through whose token's role is one that their rule takes, and tells handlers whose it is. Without tokens
/// everybody may do everything: `friday serve` listens on loopback alone then.
pub(crate) async fn check(
    State(tokens): State<Option<Arc<Tokens>>>,
    mut request: Request,
    next: Next,
) -> Response {
    let rule = Rule::of(request.method(), request.uri().path());
    if let (Some(tokens), Some(rule)) = (tokens, rule) {
        let caller = tokens.caller(request.headers());
        if let Err(refusal) = &caller {
            tracing::warn!(rule = rule.name(), code = refusal.code(), "refused");
        }
        let caller = caller.and_then(|caller| caller.require(rule).map(|()| caller));
        match caller {
            Ok(caller) => drop(request.extensions_mut().insert(caller)),
            Err(refusal) => {
                let mut response = refusal.into_response();
                if response.status() == StatusCode::UNAUTHORIZED {
                    let scheme = HeaderValue::from_static("Bearer");
                    let headers = response.headers_mut();
                    headers.insert(header::WWW_AUTHENTICATE, scheme);
                }
                return response;
            }
        }
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_is_good_once_its_line_is_in_the_file() {
        let new = NewToken::random("edge", Role::Proxy);
        assert_eq!(new.token.len(), PREFIX.len() + 64);
        assert!(!new.line.contains(&new.token[PREFIX.len()..]));
        assert!(!format!("{new:?}").contains(&new.token));
        assert_ne!(NewToken::random("edge", Role::Proxy).token, new.token);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, format!("# of tests\n\n{}\n", new.line)).unwrap();
        let tokens = Tokens::open(&path).unwrap();
        let ask = |authorization: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
            tokens.caller(&headers).map_err(|refusal| refusal.code())
        };
        let edge = Caller::of_token("edge", Role::Proxy);
        assert_eq!(ask(&format!("Bearer {}", new.token)), Ok(edge.clone()));
        assert_eq!(ask(&format!("bearer {}", new.token)), Ok(edge));
        assert_eq!(ask(&format!("Bearer {}x", new.token)), Err("token_unknown"));
        // The file is worth nothing to whoever reads it.
        let hash = new.line.rsplit(' ').next().unwrap();
        assert_eq!(ask(&format!("Bearer {hash}")), Err("token_unknown"));
        assert_eq!(ask("Basic ZWRnZTpw"), Err("token_missing"));
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        assert_eq!(ask(&format!("Bearer {long}")), Err("token_missing"));
        let none = tokens.caller(&HeaderMap::new()).unwrap_err();
        assert_eq!(none.code(), "token_missing");
        assert!(!format!("{tokens:?}").contains(hash));
    }

    #[test]
    fn an_author_is_first_who_it_certainly_is() {
        let caller = Caller::of_token("gitlab", Role::Operator);
        assert_eq!(caller.author("ada"), "gitlab (for ada)");
        assert_eq!(caller.author("gitlab"), "gitlab");
        assert_eq!(caller.author("unknown"), "gitlab");
    }
}
