//! Signing in at a controller: what `friday login` asks of it.

use bytes::Bytes;
use http::Method;
use reqwest::Url;
use rollout::Duration;
use serde::{Deserialize, Serialize};

use super::{Client, ClientError};

/// Who asks, and where a browser signs in.
#[derive(Debug, Clone, Deserialize)]
pub struct SessionAnswer {
    /// The address for a browser; `None` where nobody signs in.
    pub sign_in: Option<String>,
}

/// A session. Its `Debug` shows no token.
#[derive(Clone, Deserialize)]
pub struct TokenAnswer {
    /// Its token.
    pub token: String,
    /// How long it is good, in seconds.
    pub expires_seconds: u64,
    /// Who signed in.
    pub name: String,
    /// The most that they may do anywhere.
    pub role: String,
}

impl std::fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenAnswer")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// A sign-in on another device.
#[derive(Clone, Deserialize)]
pub struct DeviceAnswer {
    /// What to ask for it with.
    pub device: String,
    /// What the person types there.
    pub user_code: String,
    /// Where.
    pub address: String,
    /// Where nothing needs to be typed.
    pub whole_address: Option<String>,
    /// Seconds between two looks.
    pub every_seconds: u64,
    /// How long it is good, in seconds.
    pub expires_seconds: u64,
}

impl std::fmt::Debug for DeviceAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceAnswer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What comes of a look at a sign-in on another device.
#[derive(Debug, Clone)]
pub enum Look {
    /// A session.
    SignedIn(TokenAnswer),
    /// Nobody has confirmed yet.
    NotYet,
    /// The same, and the next look is to be later.
    TooSoon,
}

/// What a session is asked for with.
#[derive(Serialize)]
#[serde(tag = "grant", rename_all = "snake_case")]
enum Ask<'a> {
    Code { code: &'a str, verifier: &'a str },
    Device { device: &'a str },
}

impl Client {
    /// Where a browser signs in.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all that follow.
    pub async fn session(&self) -> Result<SessionAnswer, ClientError> {
        self.get("ask where to sign in", &self.auth("session"))
            .await
    }

    /// Redeems the code that a browser brought back.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn redeem(&self, code: &str, verifier: &str) -> Result<TokenAnswer, ClientError> {
        self.ask_session(&Ask::Code { code, verifier }).await
    }

    /// Begins a sign-in on another device.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn begin_on_device(&self) -> Result<DeviceAnswer, ClientError> {
        let action = "begin to sign in";
        let request = self.with_body(action, &self.auth("device"), &())?;
        self.answer(action, request).await
    }

    /// Whether the person has confirmed on the other device.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn look_on_device(&self, device: &str) -> Result<Look, ClientError> {
        let (action, problem) = match self.ask_session(&Ask::Device { device }).await {
            Ok(answer) => return Ok(Look::SignedIn(answer)),
            Err(ClientError::Refused { action, problem }) => (action, problem),
            Err(error) => return Err(error),
        };
        match problem.code.as_str() {
            "authorization_pending" => Ok(Look::NotYet),
            "slow_down" => Ok(Look::TooSoon),
            _ => Err(ClientError::Refused { action, problem }),
        }
    }

    /// A new session after this one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn refresh(&self) -> Result<TokenAnswer, ClientError> {
        let action = "renew the session";
        let request = self.request(Method::POST, &self.auth("refresh"), Bytes::new());
        self.answer(action, request).await
    }

    /// Ends this session.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn log_out(&self) -> Result<(), ClientError> {
        let request = self.request(Method::POST, &self.auth("logout"), Bytes::new());
        self.exchange("sign out", request).await.map(drop)
    }

    async fn ask_session(&self, ask: &Ask<'_>) -> Result<TokenAnswer, ClientError> {
        let action = "sign in";
        let request = self.with_body(action, &self.auth("token"), ask)?;
        self.answer(action, request).await
    }

    fn auth(&self, what: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["auth", what]);
        }
        url
    }
}

/// The wait between two looks, longer after each `slow_down` (RFC 8628, 3.5).
#[must_use]
pub fn slower(every: Duration) -> Duration {
    /// By how much.
    const BY: Duration = Duration::from_secs(5);
    every + BY
}
