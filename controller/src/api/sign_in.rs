//! Signing in: `/auth/login` and `/auth/callback` for browsers, `/auth/token`, `/auth/device` and `/auth/refresh` for the
//! command line, `/auth/logout` and `/auth/session` for both. Everybody may ask; what is behind is `auth::people`.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::Api;
use super::error::ApiError;
use crate::auth::people::{Back, Next, SignIn, SignInError, SignedIn};
use crate::auth::{Identities, Role, Tokens, cookie, session_cookie};
use crate::reconciler::chain;

/// Longest body: a code and a verifier.
const BODY_BYTES_MAX: usize = 4 << 10;

/// Longest text that the command line hands in.
const TEXT_BYTES_MAX: usize = 256;

/// The cookie that says which browser began a sign-in: another cannot be made to finish it.
const BROWSER_COOKIE: &str = "friday_sign_in";

/// The routes.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/auth/login", get(login))
        .route("/auth/callback", get(callback))
        .route("/auth/session", get(session))
        .route("/auth/token", post(token))
        .route("/auth/device", post(device))
        .route("/auth/refresh", post(refresh))
        .route("/auth/logout", post(logout))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// Who signs people in.
struct Door(Arc<Tokens>);

impl Door {
    fn of(api: &Api) -> Result<Self, ApiError> {
        let door = api.tokens.clone().map(Self);
        door.filter(|door| door.parts().is_some()).ok_or_else(|| {
            let detail = "nobody signs in here: `people` is not in the file of `friday serve --identities`, or there is none";
            ApiError::new(StatusCode::NOT_FOUND, "no_sign_in", detail)
        })
    }

    fn parts(&self) -> Option<(&Identities, &SignIn)> {
        let identities = self.0.identities()?;
        Some((identities, identities.sign_in()?))
    }

    fn both(&self) -> (&Identities, &SignIn) {
        self.parts().expect("a door is made with both")
    }
}

impl From<SignInError> for ApiError {
    fn from(error: SignInError) -> Self {
        let (status, code) = match &error {
            SignInError::Unknown => (StatusCode::BAD_REQUEST, "unknown_sign_in"),
            SignInError::Declined(_) => (StatusCode::FORBIDDEN, "declined"),
            SignInError::Pending => (StatusCode::BAD_REQUEST, "authorization_pending"),
            SignInError::TooSoon => (StatusCode::BAD_REQUEST, "slow_down"),
            SignInError::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too_many_sign_ins"),
            SignInError::Provider(_) | SignInError::Lacks(_) => {
                (StatusCode::BAD_GATEWAY, "provider_failed")
            }
            SignInError::Refused { .. } => (StatusCode::FORBIDDEN, "forbidden"),
        };
        match &error {
            // A question, not a failure: it is asked every few seconds.
            SignInError::Pending | SignInError::TooSoon => {}
            SignInError::Refused { refusal } => {
                tracing::warn!(rule = refusal.rule(), error = %chain(&error), "a sign-in is refused");
            }
            SignInError::Unknown
            | SignInError::TooMany
            | SignInError::Declined(_)
            | SignInError::Provider(_)
            | SignInError::Lacks(_) => {
                tracing::warn!(error = %chain(&error), "a sign-in failed");
            }
        }
        Self::new(status, code, error.to_string())
    }
}

/// A person comes, perhaps sent by the command line.
#[derive(Debug, Deserialize)]
struct LoginQuery {
    /// The command line's port on the person's machine.
    port: Option<u16>,
    /// What its code will be redeemed with, hashed.
    challenge: Option<String>,
    /// What it wants to see again.
    state: Option<String>,
}

impl LoginQuery {
    fn next(self) -> Result<Next, ApiError> {
        let plain = |text: &String| {
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
            (1..=TEXT_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain)
        };
        match (self.port, self.challenge, self.state) {
            (None, None, None) => Ok(Next::Board),
            (Some(port), Some(challenge), Some(state))
                if port > 0 && plain(&challenge) && challenge.len() == 43 && plain(&state) =>
            {
                Ok(Next::CommandLine {
                    port,
                    challenge,
                    state,
                })
            }
            _ => {
                let detail = "expected port, challenge and state, as `friday login` writes them, or none of them";
                Err(ApiError::new(
                    StatusCode::BAD_REQUEST,
                    "invalid_query",
                    detail,
                ))
            }
        }
    }
}

async fn login(
    State(api): State<Api>,
    query: Result<Query<LoginQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let door = Door::of(&api)?;
    let (identities, sign_in) = door.both();
    let Query(query) = query?;
    let (url, begun) = identities.begin(sign_in, query.next()?).await?;
    let cookie = format!(
        "{BROWSER_COOKIE}={}; Path=/auth; Max-Age=600; HttpOnly; SameSite=Lax{}",
        begun.0,
        secure(sign_in)
    );
    Ok(redirect(url.as_str(), &[cookie]))
}

/// A person comes back from the provider (RFC 6749, 4.1.2).
#[derive(Debug, Deserialize)]
struct CallbackQuery {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// What a person sees: the board, or why not.
async fn callback(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Result<Query<CallbackQuery>, QueryRejection>,
) -> Response {
    let error = match come_back(&api, &headers, query).await {
        Ok(response) => return response,
        Err(error) => error,
    };
    let accepted = headers.get(header::ACCEPT);
    let is_browser = accepted
        .and_then(|accepted| accepted.to_str().ok())
        .is_some_and(|accepted| accepted.contains("text/html"));
    let words = format!(
        "Nobody is signed in: {}.\n\nGo back to where you came from, and sign in again.\n",
        error.detail()
    );
    let mut response = error.into_response();
    if is_browser {
        *response.body_mut() = words.into();
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, plain);
        headers.remove(header::CONTENT_LENGTH);
    }
    response
}

async fn come_back(
    api: &Api,
    headers: &HeaderMap,
    query: Result<Query<CallbackQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let door = Door::of(api)?;
    let (identities, sign_in) = door.both();
    let Query(query) = query?;
    let state = query.state.unwrap_or_default();
    let begun = cookie(headers, BROWSER_COOKIE).ok_or(SignInError::Unknown)?;
    let said = query.error_description.or(query.error).unwrap_or_default();
    let code = query.code.as_deref().ok_or(said.as_str());
    let back = identities.finish(sign_in, (begun, &state), code).await?;
    let done = format!(
        "{BROWSER_COOKIE}=; Path=/auth; Max-Age=0; HttpOnly; SameSite=Lax{}",
        secure(sign_in)
    );
    Ok(match back {
        Back::Board { token } => {
            let seconds = sign_in.session().as_secs();
            let session = session_line(sign_in, &token.0, seconds);
            redirect(&format!("{}/", sign_in.url()), &[done, session])
        }
        Back::CommandLine(url) => redirect(url.as_str(), &[done]),
    })
}

fn session_line(sign_in: &SignIn, token: &str, seconds: u64) -> String {
    format!(
        "{}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{}",
        session_cookie(sign_in.is_tls()),
        secure(sign_in)
    )
}

fn secure(sign_in: &SignIn) -> &'static str {
    if sign_in.is_tls() { "; Secure" } else { "" }
}

/// To another address, with cookies; nothing keeps it, and nobody is told where it came from.
fn redirect(to: &str, cookies: &[String]) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    for (name, text) in [
        (header::LOCATION, to),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        let value = HeaderValue::try_from(text).expect("an address is visible ASCII");
        headers.insert(name, value);
    }
    for cookie in cookies {
        let mut value = HeaderValue::try_from(cookie).expect("a cookie of ours is visible ASCII");
        value.set_sensitive(true);
        headers.append(header::SET_COOKIE, value);
    }
    response
}

/// Who asks, for the board: it shows who is signed in, or where to sign in.
#[derive(Debug, Serialize)]
struct SessionView {
    /// Where a browser signs in; `null` where nobody does.
    sign_in: Option<String>,
    /// Who is signed in.
    name: Option<String>,
    /// The most that they may do anywhere.
    role: Option<Role>,
}

async fn session(State(api): State<Api>, headers: HeaderMap) -> Response {
    let view = match &api.tokens {
        None => SessionView {
            sign_in: None,
            name: None,
            role: None,
        },
        Some(tokens) => {
            let caller = tokens.identify(&Method::GET, &headers).await.ok();
            let identities = tokens.identities();
            SessionView {
                sign_in: identities
                    .and_then(Identities::sign_in)
                    .map(|sign_in| format!("{}/auth/login", sign_in.url())),
                role: caller.as_ref().map(|caller| caller.role),
                name: caller.map(|caller| caller.login().to_owned()),
            }
        }
    };
    no_store(Json(view))
}

fn no_store(body: impl IntoResponse) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// What the command line asks for a session with.
#[derive(Debug, Deserialize)]
#[serde(tag = "grant", rename_all = "snake_case")]
pub(crate) enum TokenRequest {
    /// The browser came back to it.
    Code {
        /// With this.
        code: String,
        /// What its challenge was made of.
        verifier: String,
    },
    /// A person confirms on another device.
    Device {
        /// The name of the sign-in.
        device: String,
    },
}

/// A session of the command line.
#[derive(Debug, Serialize)]
struct TokenView {
    token: String,
    expires_seconds: u64,
    name: String,
    role: Role,
}

impl From<SignedIn> for TokenView {
    fn from(signed_in: SignedIn) -> Self {
        Self {
            token: signed_in.token.0,
            expires_seconds: signed_in.good_for.as_secs(),
            name: signed_in.caller.login().to_owned(),
            role: signed_in.caller.role,
        }
    }
}

async fn token(
    State(api): State<Api>,
    body: Result<Json<TokenRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let door = Door::of(&api)?;
    let (identities, sign_in) = door.both();
    let Json(body) = body?;
    let signed_in = match body {
        TokenRequest::Code { code, verifier } => sign_in.redeem(&code, &verifier)?,
        TokenRequest::Device { device } => identities.look_on_device(sign_in, &device).await?,
    };
    tracing::info!(name = %signed_in.caller.name, role = %signed_in.caller.role, "signed in");
    Ok(no_store(Json(TokenView::from(signed_in))))
}

/// A sign-in on another device.
#[derive(Debug, Serialize)]
struct DeviceView {
    device: String,
    user_code: String,
    address: String,
    whole_address: Option<String>,
    every_seconds: u64,
    expires_seconds: u64,
}

async fn device(State(api): State<Api>) -> Result<Response, ApiError> {
    let door = Door::of(&api)?;
    let (identities, sign_in) = door.both();
    let begun = identities.begin_on_device(sign_in).await?;
    Ok(no_store(Json(DeviceView {
        device: begun.name.0,
        user_code: begun.user_code,
        address: begun.address,
        whole_address: begun.whole_address,
        every_seconds: begun.every.as_secs(),
        expires_seconds: begun.good_for.as_secs(),
    })))
}

async fn refresh(State(api): State<Api>, headers: HeaderMap) -> Result<Response, ApiError> {
    let door = Door::of(&api)?;
    let (identities, sign_in) = door.both();
    let token = crate::auth::bearer(&headers).ok_or(SignInError::Unknown)?;
    let signed_in = identities.refresh(sign_in, token).await?;
    Ok(no_store(Json(TokenView::from(signed_in))))
}

async fn logout(State(api): State<Api>, headers: HeaderMap) -> Result<Response, ApiError> {
    let door = Door::of(&api)?;
    let (_, sign_in) = door.both();
    if let Some(token) = crate::auth::bearer(&headers) {
        sign_in.end(token);
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    if !headers.contains_key(crate::auth::ORDER_HEADER) {
        let detail = format!(
            "rule \"csrf\": signing out by cookie needs the header {}",
            crate::auth::ORDER_HEADER
        );
        return Err(ApiError::new(StatusCode::FORBIDDEN, "csrf", detail));
    }
    if let Some(token) = cookie(&headers, session_cookie(sign_in.is_tls())) {
        sign_in.end(token);
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    let gone = session_line(sign_in, "", 0);
    let gone = HeaderValue::try_from(gone).expect("a cookie of ours is visible ASCII");
    response.headers_mut().insert(header::SET_COOKIE, gone);
    Ok(response)
}
