//! People sign in: by OpenID Connect's authorization code with PKCE (RFC 7636) in a browser, or by a code that they confirm on
//! another device (RFC 8628). The board gets a session by cookie; the command line gets one by a code of ours, which only
//! the process that began can redeem.
//!
//! Whoever signs in is asked for at the provider's user page; what is granted follows from login and groups there. The
//! provider's tokens stay here.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Url;
use rollout::Duration;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Caller;
use super::away::Departures;
use super::bucket::Bucket;
use super::directory::People;
use super::id_token::{check_audience, check_issuer, check_times};
use super::identity::{Identity, is_login};
use super::jws::{Members, Unverified, digits};
use super::keys::Keys;
use super::provider::{Provider, ProviderError};
use super::refusal::Refusal;
use super::sessions::{Secret, Session, Sessions};
use super::waiting::Waiting;
use crate::clock::Clock;

/// How long a person may take at the provider: a password, a second factor, a look at what is asked for.
const AT_PROVIDER_MAX: Duration = Duration::from_secs(10 * 60);

/// How long the command line may take to redeem its code: it waits for it.
const CODE_MAX: Duration = Duration::from_secs(60);

/// Longest lifetime of a sign-in token. GitLab's have two minutes; it is looked at once, on the spot.
const SIGN_IN_TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Sign-ins on other devices, begun or asked about: so many at once, and so many a second. Nobody needs an account for them,
/// each is a request of ours to the provider, and the provider's limit is for keys and browsers too.
const DEVICES: (u32, u32) = (50, 5);

/// The same for browsers that come back with a code to be redeemed there. It is one limit for all who come: whoever floods it
/// makes others wait, who then load the same page again.
const BROWSERS: (u32, u32) = (50, 10);

/// What is asked for: who it is, with login and groups.
const SCOPE: &str = "openid profile";

/// Why nobody is signed in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignInError {
    /// Not begun here, begun too long ago, or come back already.
    #[error("this sign-in was not begun here, or too long ago; begin again")]
    Unknown,
    /// The person, or the provider, said no.
    #[error("the provider refused: {0}")]
    Declined(String),
    /// The person has not confirmed yet.
    #[error("nobody has confirmed yet")]
    Pending,
    /// More than the provider shall be asked for.
    #[error("too many sign in at this moment; try again in some seconds")]
    TooMany,
    /// The provider wants to be asked less often, or shall be.
    #[error("the provider is asked too often")]
    TooSoon,
    /// The provider cannot be asked.
    #[error("the provider cannot be asked")]
    Provider(#[from] ProviderError),
    /// What it says does not hold.
    #[error("rule {rule:?}: {refusal}", rule = refusal.rule())]
    Refused {
        /// Why.
        refusal: Refusal,
    },
    /// Its answer lacks something.
    #[error("the provider's answer lacks {0}")]
    Lacks(&'static str),
}

impl From<Refusal> for SignInError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { refusal }
    }
}

/// Where a person goes after the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// The board.
    Board,
    /// The command line, which listens on this machine's loopback.
    CommandLine {
        /// On which port.
        port: u16,
        /// The hash of what it will redeem its code with.
        challenge: String,
        /// What it wants to see again.
        state: String,
    },
}

/// What happens when a person comes back.
#[derive(Debug)]
pub(crate) enum Back {
    /// A session for the board.
    Board {
        /// Its token.
        token: Secret,
    },
    /// To the command line.
    CommandLine(Url),
}

/// A session as its bearer is told of it.
#[derive(Debug, Clone)]
pub(crate) struct SignedIn {
    /// Its token.
    pub(crate) token: Secret,
    /// How long it is good.
    pub(crate) good_for: Duration,
    /// Who it is.
    pub(crate) caller: Caller,
}

/// A sign-in on another device, as its person is told of it.
#[derive(Debug, Clone)]
pub(crate) struct OnDevice {
    /// What to ask for it with.
    pub(crate) name: Secret,
    /// What the person types there.
    pub(crate) user_code: String,
    /// Where.
    pub(crate) address: String,
    /// Where nothing needs to be typed, if the provider has that.
    pub(crate) whole_address: Option<String>,
    /// How long to wait between two looks.
    pub(crate) every: Duration,
    /// How long it is good.
    pub(crate) good_for: Duration,
}

/// Signing in.
#[derive(Debug)]
pub(crate) struct SignIn {
    people: People,
    secret: Option<Secret>,
    clock: Arc<dyn Clock>,
    sessions: Sessions,
    away: Departures,
    browsers: Bucket,
    /// Codes for the command line: the challenge, and who it will be.
    codes: Waiting<(String, Session)>,
    /// Codes of the provider for other devices.
    devices: Waiting<Secret>,
    asked_by_devices: Bucket,
}

impl SignIn {
    pub(super) fn new(people: People, secret: Option<Secret>, clock: Arc<dyn Clock>) -> Self {
        Self {
            people,
            secret,
            clock,
            sessions: Sessions::default(),
            away: Departures::new(AT_PROVIDER_MAX),
            browsers: Bucket::new(BROWSERS.0, BROWSERS.1),
            codes: Waiting::new(CODE_MAX),
            devices: Waiting::new(AT_PROVIDER_MAX),
            asked_by_devices: Bucket::new(DEVICES.0, DEVICES.1),
        }
    }

    /// Whether browsers reach us by TLS, so that their cookie must never travel otherwise.
    pub(crate) fn is_tls(&self) -> bool {
        self.people.url.scheme() == "https"
    }

    /// Our address, as browsers see it, without a slash at its end.
    pub(crate) fn url(&self) -> &str {
        self.people.url.as_str().trim_end_matches('/')
    }

    /// How long a session lasts.
    pub(crate) fn session(&self) -> Duration {
        self.people.session
    }

    /// Whose session it is.
    pub(crate) fn caller(&self, token: &str) -> Option<Caller> {
        let found = self.sessions.of(token, self.clock.elapsed());
        found.map(|session| session.caller)
    }

    /// Ends a session.
    pub(crate) fn end(&self, token: &str) {
        self.sessions.end(token);
    }

    /// The provider's page to send a browser to, and the cookie by which it is known when it comes back.
    pub(super) async fn begin(
        &self,
        provider: &Provider,
        next: Next,
    ) -> Result<(Url, Secret), SignInError> {
        let mut url = provider.endpoints().await?.authorize.clone();
        let (away, cookie) = self.away.leave(next, self.clock.elapsed());
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.people.client)
            .append_pair("redirect_uri", &self.callback())
            .append_pair("scope", SCOPE)
            .append_pair("state", &away.state.0)
            .append_pair("nonce", &away.nonce.0)
            .append_pair("code_challenge", &challenge(&away.verifier.0))
            .append_pair("code_challenge_method", "S256");
        Ok((url, cookie))
    }

    fn callback(&self) -> String {
        format!("{}/auth/callback", self.url())
    }

    /// A browser comes back from the provider, with its cookie and a code, or with a refusal.
    pub(super) async fn finish(
        &self,
        provider: &Provider,
        keys: &Keys,
        (cookie, state): (&str, &str),
        code: Result<&str, &str>,
    ) -> Result<Back, SignInError> {
        let now = self.clock.elapsed();
        let away = self.away.knock(cookie, state, now);
        let (away, since) = away.ok_or(SignInError::Unknown)?;
        // A refusal is nothing to ask the provider about.
        let code = code.map_err(|said| SignInError::Declined(said.chars().take(200).collect()))?;
        // Whoever has to wait comes back with the same code.
        if !self.browsers.take(now) {
            return Err(SignInError::TooMany);
        }
        if !self.away.come_back(&away, since, now) {
            return Err(SignInError::Unknown);
        }
        let callback = self.callback();
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &callback),
            ("code_verifier", &away.verifier.0),
        ];
        let answer = self.tokens(provider, &form).await?;
        let id_token = text(&answer, "id_token")?;
        let subject = self
            .check_id_token(provider, keys, id_token, Some(&away.nonce.0))
            .await?;
        let session = self.person(provider, &answer, Some(&subject)).await?;
        let now = self.clock.elapsed();
        match away.next {
            Next::Board => Ok(Back::Board {
                token: self.sessions.begin(session, now),
            }),
            Next::CommandLine {
                port,
                challenge,
                state,
            } => {
                let code = self.codes.put((challenge, session), now);
                let mut url = Url::parse(&format!("http://127.0.0.1:{port}/"))
                    .expect("a port makes an address");
                url.query_pairs_mut()
                    .append_pair("code", &code.0)
                    .append_pair("state", &state);
                Ok(Back::CommandLine(url))
            }
        }
    }

    /// The command line redeems its code.
    pub(crate) fn redeem(&self, code: &str, verifier: &str) -> Result<SignedIn, SignInError> {
        let now = self.clock.elapsed();
        let (expected, session) = self.codes.take(code, now).ok_or(SignInError::Unknown)?;
        let shown = challenge(verifier);
        if !bool::from(shown.as_bytes().ct_eq(expected.as_bytes())) {
            return Err(SignInError::Unknown);
        }
        Ok(self.signed_in(session))
    }

    fn signed_in(&self, session: Session) -> SignedIn {
        let now = self.clock.elapsed();
        let caller = session.caller.clone();
        let good_for = session.ends.saturating_sub(now);
        SignedIn {
            token: self.sessions.begin(session, now),
            good_for,
            caller,
        }
    }

    /// Begins a sign-in on another device.
    pub(super) async fn begin_on_device(
        &self,
        provider: &Provider,
    ) -> Result<OnDevice, SignInError> {
        /// Wait between two looks where the provider says nothing (RFC 8628, 3.2).
        const EVERY: u64 = 5;
        if !self.asked_by_devices.take(self.clock.elapsed()) {
            return Err(SignInError::TooMany);
        }
        let url = provider.endpoints().await?.device.clone();
        let form = [("client_id", self.people.client.as_str()), ("scope", SCOPE)];
        let answer = provider.post(&url, &form).await?;
        let seconds = |name: &str| answer.get(name).and_then(Value::as_u64);
        let device = Secret(text(&answer, "device_code")?.to_owned());
        let good_for = Duration::from_secs(seconds("expires_in").unwrap_or(300));
        Ok(OnDevice {
            name: self.devices.put(device, self.clock.elapsed()),
            user_code: text(&answer, "user_code")?.to_owned(),
            address: text(&answer, "verification_uri")?.to_owned(),
            whole_address: text(&answer, "verification_uri_complete")
                .ok()
                .map(str::to_owned),
            every: Duration::from_secs(seconds("interval").unwrap_or(EVERY).clamp(1, 60)),
            good_for: good_for.min(AT_PROVIDER_MAX),
        })
    }

    /// Whether the person has confirmed on the other device.
    pub(super) async fn look_on_device(
        &self,
        provider: &Provider,
        name: &str,
    ) -> Result<SignedIn, SignInError> {
        let now = self.clock.elapsed();
        let device = self.devices.look(name, now).ok_or(SignInError::Unknown)?;
        if !self.asked_by_devices.take(now) {
            return Err(SignInError::TooSoon);
        }
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
            ("device_code", device.0.as_str()),
        ];
        let answer = self.tokens(provider, &form).await;
        if !matches!(answer, Err(SignInError::Pending | SignInError::TooSoon)) {
            self.devices.take(name, now);
        }
        let session = self.person(provider, &answer?, None).await?;
        Ok(self.signed_in(session))
    }

    /// A new session after one that is still good, which lasts until its end: other commands may wait with it. The provider is
    /// asked again who it is.
    pub(super) async fn refresh(
        &self,
        provider: &Provider,
        token: &str,
    ) -> Result<SignedIn, SignInError> {
        let now = self.clock.elapsed();
        let old = self.sessions.of(token, now).ok_or(SignInError::Unknown)?;
        let refresh = old.refresh.ok_or(SignInError::Lacks("a refresh token"))?;
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh.0.as_str()),
        ];
        let answer = self.tokens(provider, &form).await?;
        let mut session = self.person(provider, &answer, None).await?;
        let same = |caller: &Caller| caller.identity.as_ref().and_then(|who| who.user_id);
        if same(&session.caller) != same(&old.caller) {
            return Err(SignInError::Unknown);
        }
        session.refresh.get_or_insert(refresh);
        Ok(self.signed_in(session))
    }

    /// Asks the token endpoint, as the application that we are.
    async fn tokens(
        &self,
        provider: &Provider,
        form: &[(&str, &str)],
    ) -> Result<Value, SignInError> {
        let url = provider.endpoints().await?.token.clone();
        let mut form = form.to_vec();
        form.push(("client_id", &self.people.client));
        if let Some(Secret(secret)) = &self.secret {
            form.push(("client_secret", secret));
        }
        let refused = match provider.post(&url, &form).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let ProviderError::Refused { error, reason, .. } = &refused else {
            return Err(refused.into());
        };
        Err(match error.as_str() {
            "authorization_pending" => SignInError::Pending,
            "slow_down" => SignInError::TooSoon,
            "access_denied" | "expired_token" | "invalid_grant" => {
                SignInError::Declined(reason.clone())
            }
            _ => refused.into(),
        })
    }

    /// Verifies the token that says who signed in; whom it names.
    async fn check_id_token(
        &self,
        provider: &Provider,
        keys: &Keys,
        token: &str,
        nonce: Option<&str>,
    ) -> Result<String, SignInError> {
        let unverified = Unverified::read(token)?;
        let set = keys.with(unverified.key_id(), provider).await?;
        let members: Members = unverified.verify(&set)?;
        check_issuer(&members, provider.issuer())?;
        check_audience(&members, &self.people.client)?;
        check_times(&members, SIGN_IN_TOKEN_LIFETIME_MAX, self.clock.now())?;
        if let Some(nonce) = nonce {
            let shown = members.text("nonce")?;
            if !bool::from(shown.as_bytes().ct_eq(nonce.as_bytes())) {
                return Err(Refusal::Claim("nonce").into());
            }
        }
        Ok(members.text("sub")?.to_owned())
    }

    /// Who the bearer of the provider's access token is, and what is granted to them.
    async fn person(
        &self,
        provider: &Provider,
        answer: &Value,
        subject: Option<&str>,
    ) -> Result<Session, SignInError> {
        let access = text(answer, "access_token")?;
        let user = provider.user(access).await?;
        let found = text(&user, "sub")?;
        // OpenID Connect Core 1.0, 5.3.2: else it may be somebody else's page.
        if subject.is_some_and(|subject| subject != found) {
            return Err(Refusal::Claim("sub").into());
        }
        let login = text(&user, "nickname").or_else(|_| text(&user, "preferred_username"))?;
        if !is_login(login) {
            return Err(Refusal::Claim("nickname").into());
        }
        let groups = user.get("groups").and_then(Value::as_array);
        let groups: Vec<String> = groups
            .into_iter()
            .flatten()
            .filter_map(|group| group.as_str().map(str::to_owned))
            .collect();
        // Four eyes are counted by number.
        let id = digits(found).ok_or(Refusal::Claim("sub"))?;
        let identity = Identity::of_person(provider.issuer(), Some(id), login);
        let grants = self.people.of(id, login, &groups);
        let Some(caller) = Caller::of_identity(identity, grants, None) else {
            return Err(Refusal::NotGranted {
                who: login.to_owned(),
                service: "*".to_owned(),
                environment: "*".to_owned(),
            }
            .into());
        };
        let refresh = text(answer, "refresh_token").ok();
        Ok(Session {
            caller,
            refresh: refresh.map(|token| Secret(token.to_owned())),
            ends: self.clock.elapsed() + self.people.session,
        })
    }
}

/// The challenge of a verifier (RFC 7636, 4.2).
pub(crate) fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()))
}

fn text<'v>(value: &'v Value, name: &'static str) -> Result<&'v str, SignInError> {
    let text = value.get(name).and_then(Value::as_str);
    text.filter(|text| !text.is_empty())
        .ok_or(SignInError::Lacks(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_that_of_the_standard() {
        // RFC 7636, appendix B.
        assert_eq!(
            challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }
}
