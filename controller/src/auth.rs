//! Who may do what: machines sign in with tokens, and each token has a role; CI jobs and people come by an identity provider,
//! with roles for services and environments.
//!
//! The file of `friday serve --tokens` holds hashes alone: whoever reads it, or a copy of it, can sign in as nobody. A token
//! is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess from, which is what slow, salted hashes
//! of passwords are against, and a salt would only help against equal tokens, of which there are none. A hash is compared in
//! a time that does not depend on how much of it is right.
//!
//! `rules` says which role a request takes, `file` how tokens are read and read again. `identities` holds what an identity
//! provider brings: `directory` says whom it may vouch for, `jws` and `id_token` verify a job's token, `terms` what the job
//! may do, `people` signs people in, after `away` has let them go to their provider as often as `bucket` has it. `near` keeps
//! pages of other sites from a controller without accounts. Every [`Refusal`] names its rule, and is in the log.

mod away;
mod bucket;
mod directory;
mod file;
mod id_token;
mod identities;
mod identity;
mod jws;
mod keys;
mod near;
pub(crate) mod people;
mod provider;
mod refusal;
mod replay;
mod rules;
pub(crate) mod sessions;
mod terms;
mod waiting;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub use file::TokensError;
pub(crate) use file::{is_name, read_limited};
pub use id_token::Claims;
pub use identities::{Identities, IdentitiesError};
pub use identity::Identity;
pub(crate) use identity::PERSON;
pub use provider::ProviderError;
pub use refusal::Refusal;
pub use rules::{Role, Rule};
pub use terms::Target;

use crate::api::error::ApiError;
use crate::store::hex;
use terms::{Denied, Grant, allows, somewhere};

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
    /// What is granted to the identity; `None` for a token of ours, whose role holds everywhere.
    granted: Option<Arc<Granted>>,
}

/// What is granted to an identity.
#[derive(Debug, PartialEq, Eq)]
struct Granted {
    grants: Vec<Grant>,
    claims: Option<Claims>,
}

impl Caller {
    /// The bearer of a token of ours: its role holds everywhere.
    pub(crate) fn of_token(name: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            role,
            identity: None,
            granted: None,
        }
    }

    /// A person, or a job with its claims; `None` where nothing is granted.
    fn of_identity(identity: Identity, grants: Vec<Grant>, claims: Option<Claims>) -> Option<Self> {
        let reach = |role: Role| role.reach();
        let role = grants
            .iter()
            .map(|grant| grant.role)
            .max_by_key(|role| reach(*role))?;
        Some(Self {
            name: identity.name(),
            role,
            identity: Some(identity),
            granted: Some(Arc::new(Granted { grants, claims })),
        })
    }

    /// Whether it may do this for this service in this environment: by the rule, and on the terms of what is granted.
    ///
    /// # Errors
    /// It may not; the problem names the rule, and so does the log.
    pub fn require_for(&self, rule: Rule, target: &Target<'_>) -> Result<(), ApiError> {
        let Some(granted) = &self.granted else {
            return self.require(rule);
        };
        let claims = granted.claims.as_ref();
        let denied = match allows(&granted.grants, claims, &self.name, rule, target) {
            Ok(()) => return Ok(()),
            Err(denied) => denied,
        };
        let (service, environment) = (target.service, target.environment);
        match denied {
            Denied::By(refusal) => {
                tracing::warn!(caller = %self.name, service, environment, rule = refusal.rule(), error = %refusal, "refused");
                Err(refusal.into())
            }
            Denied::Role(role) => {
                tracing::warn!(caller = %self.name, %role, service, environment, rule = rule.name(), "refused");
                let roles: Vec<&str> = rule.roles().iter().map(|role| role.as_str()).collect();
                let detail = format!(
                    "rule {:?} takes the role {}; that of {:?} for service {service} in environment {environment} is {role}",
                    rule.name(),
                    roles.join(" or "),
                    self.name
                );
                Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail))
            }
        }
    }

    /// Whether it may; nothing is said of it in the log.
    #[must_use]
    pub fn may(&self, rule: Rule, target: &Target<'_>) -> bool {
        let Some(granted) = &self.granted else {
            return rule.takes(self.role);
        };
        let claims = granted.claims.as_ref();
        allows(&granted.grants, claims, &self.name, rule, target).is_ok()
    }

    /// Whether it may do this for a service in one environment at least: for a job its own.
    #[must_use]
    pub fn may_somewhere(&self, rule: Rule, service: &str) -> bool {
        let Some(granted) = &self.granted else {
            return rule.takes(self.role);
        };
        somewhere(&granted.grants, granted.claims.as_ref(), rule, service)
    }

    /// The commit that a job works on: what it starts is of this one.
    #[must_use]
    pub fn commit(&self) -> Option<&str> {
        self.identity.as_ref()?.sha.as_deref()
    }

    /// How the event log names the author of a command who says to be `claimed`: first who it certainly is.
    #[must_use]
    pub fn author(&self, claimed: &str) -> String {
        // Of an identity more is certain than anybody could claim.
        let is_certain = self.identity.is_some();
        if claimed == self.name || claimed == "unknown" || is_certain {
            self.name.clone()
        } else {
            format!("{} (for {claimed})", self.name)
        }
    }

    /// How people call it: a person's login, or a token's name.
    #[must_use]
    pub fn login(&self) -> &str {
        let identity = self.identity.as_ref();
        identity.map_or(&self.name, |identity| &identity.login)
    }

    /// Whether it may do this for everything there is: by a role that holds for every service, everywhere and on no terms.
    #[must_use]
    pub fn may_everywhere(&self, rule: Rule) -> bool {
        self.role_everywhere().is_some_and(|role| rule.takes(role))
    }

    /// The same.
    ///
    /// # Errors
    /// It may not; the problem names the rule.
    pub fn require_everywhere(&self, rule: Rule) -> Result<(), ApiError> {
        if self.may_everywhere(rule) {
            return Ok(());
        }
        let which = match (&self.granted, self.role_everywhere()) {
            (None, _) => return Err(self.refused(rule, "", &self.role.to_string())),
            (Some(_), Some(role)) => role.to_string(),
            (Some(_), None) => format!("{} for some of them, or on terms", self.role),
        };
        Err(self.refused(rule, " for every service and environment", &which))
    }

    /// The role that holds for everything, if there is one.
    fn role_everywhere(&self) -> Option<Role> {
        let Some(granted) = &self.granted else {
            return Some(self.role);
        };
        let everywhere = granted.grants.iter().filter(|grant| grant.is_everywhere());
        everywhere
            .map(|grant| grant.role)
            .max_by_key(|role| role.reach())
    }

    /// Whether the role is one that the rule takes. What is about no service, and so about every one, takes a role that holds
    /// everywhere.
    ///
    /// # Errors
    /// It is not; the problem names the rule.
    pub fn require(&self, rule: Rule) -> Result<(), ApiError> {
        if rule.is_about_all() {
            return self.require_everywhere(rule);
        }
        if rule.takes(self.role) {
            return Ok(());
        }
        Err(self.refused(rule, "", &self.role.to_string()))
    }

    fn refused(&self, rule: Rule, reach: &str, which: &str) -> ApiError {
        tracing::warn!(token = %self.name, role = %self.role, rule = rule.name(), "refused");
        let roles: Vec<&str> = rule.roles().iter().map(|role| role.as_str()).collect();
        let detail = format!(
            "rule {:?} takes the role {}{reach}; that of {:?} is {which}",
            rule.name(),
            roles.join(" or "),
            self.name
        );
        ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail)
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

/// Who is let in: the bearers of tokens that are good at this moment, and whoever an identity provider vouches for.
#[derive(Debug)]
pub struct Tokens {
    entries: RwLock<Arc<Vec<Entry>>>,
    identities: Option<Identities>,
}

impl Tokens {
    /// Those of a file.
    ///
    /// # Errors
    /// It cannot be read, or is not as it should be.
    pub fn open(path: &Path) -> Result<Arc<Self>, TokensError> {
        Self::with(Some(path), None)
    }

    /// Those of a file, if there is one, and identities, if there are any.
    ///
    /// # Errors
    /// The file cannot be read, or is not as it should be.
    pub fn with(
        path: Option<&Path>,
        identities: Option<Identities>,
    ) -> Result<Arc<Self>, TokensError> {
        let entries = path.map(file::read).transpose()?.unwrap_or_default();
        Ok(Arc::new(Self {
            entries: RwLock::new(Arc::new(entries)),
            identities,
        }))
    }

    /// Whether a caller's job still runs, where that is to be asked before a release goes further.
    ///
    /// # Errors
    /// It does not, or nobody knows.
    pub(crate) async fn check_running(&self, caller: &Caller) -> Result<(), ApiError> {
        let (Some(identities), Some(identity)) = (&self.identities, &caller.identity) else {
            return Ok(());
        };
        identities.check_running(identity).await.map_err(|refusal| {
            tracing::warn!(caller = %caller.name, rule = refusal.rule(), error = %refusal, "refused");
            refusal.into()
        })
    }

    /// The identities, if there are any.
    pub(crate) fn identities(&self) -> Option<&Identities> {
        self.identities.as_ref()
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

    /// Who makes a request: by the token that it bears, else by its cookie.
    ///
    /// # Errors
    /// Nobody who is known.
    pub(crate) async fn identify(
        &self,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Caller, ApiError> {
        let Some(identities) = &self.identities else {
            return self.caller(headers);
        };
        let sign_in = identities.sign_in();
        let ended = || {
            let detail =
                "this session has ended: sign in again, with `friday login` or on the board";
            ApiError::new(StatusCode::UNAUTHORIZED, "session_ended", detail)
        };
        if let Some(token) = bearer(headers) {
            if identities.takes(token) {
                return identities.job(token).await.map_err(|refusal| {
                    tracing::warn!(rule = refusal.rule(), error = %refusal, "a job's token is refused");
                    refusal.into()
                });
            }
            return match sign_in {
                Some(sign_in) if token.starts_with(sessions::PREFIX) => {
                    sign_in.caller(token).ok_or_else(ended)
                }
                Some(_) | None => self.caller(headers),
            };
        }
        let Some(sign_in) = sign_in else {
            return self.caller(headers);
        };
        let Some(token) = cookie(headers, session_cookie(sign_in.is_tls())) else {
            return self.caller(headers);
        };
        let is_read = method == Method::GET || method == Method::HEAD;
        if !is_read && !headers.contains_key(ORDER_HEADER) {
            // Another site can make a browser send a form with our cookie, but no header.
            let detail =
                format!("rule \"csrf\": an order by cookie needs the header {ORDER_HEADER}");
            tracing::warn!(rule = "csrf", "refused");
            return Err(ApiError::new(StatusCode::FORBIDDEN, "csrf", detail));
        }
        sign_in.caller(token).ok_or_else(ended)
    }

    /// Whose token a request bears.
    ///
    /// # Errors
    /// It bears none, or one that is not in the file.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let refused = |code, detail: &str| ApiError::new(StatusCode::UNAUTHORIZED, code, detail);
        if self.identities.is_none() && bearer(headers).is_some_and(is_signed) {
            return Err(refused(
                "no_identities",
                "this is the ID token of a CI job, and this controller knows none: start it with --identities FILE (`swarm/up --identities FILE`), or set FRIDAY_TOKEN in the project's settings to a token of `friday token`",
            ));
        }
        let Some(token) = bearer(headers).filter(|token| token.len() <= TOKEN_BYTES_MAX) else {
            if self.identities.is_some() {
                return Err(refused(
                    "token_missing",
                    "this controller wants to know who asks: sign in with `friday login` or on the board, give a CI job an ID token (id_tokens) in FRIDAY_TOKEN, or a machine a token (`friday token`)",
                ));
            }
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
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whether it has the three parts of a signed token (RFC 7515, 3.1); ours have no dot.
fn is_signed(token: &str) -> bool {
    token.matches('.').count() == 2
}

/// What an order by cookie must have beside it. Another site cannot set it without being asked about, and is refused then.
pub(crate) const ORDER_HEADER: &str = "x-friday-order";

/// The cookie of a session. By TLS a browser takes the first from this very host alone.
pub(crate) fn session_cookie(is_tls: bool) -> &'static str {
    if is_tls {
        "__Host-friday_session"
    } else {
        "friday_session"
    }
}

/// The value of a cookie (RFC 6265).
pub(crate) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(header::COOKIE).into_iter();
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'));
    let mut named = pairs.filter_map(|pair| pair.trim().split_once('='));
    named
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .filter(|value| !value.is_empty())
}

/// Lets requests through whose token's role is one that their rule takes, and tells handlers whose it is. Without tokens
/// everybody on this machine may do everything, but no page of another site: `friday serve` listens on loopback alone then.
pub(crate) async fn check(
    State(tokens): State<Option<Arc<Tokens>>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(rule) = Rule::of(request.method(), request.uri().path()) else {
        return next.run(request).await;
    };
    if let Some(tokens) = tokens {
        let caller = tokens.identify(request.method(), request.headers()).await;
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
    } else if let Err(refusal) = near::check(request.uri(), request.headers()) {
        return refusal.into_response();
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
        let of_job = format!("Bearer {long}.{long}.{long}");
        assert_eq!(ask(&of_job), Err("no_identities"), "no word of ours");
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
