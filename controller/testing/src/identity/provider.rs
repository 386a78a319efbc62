//! A stand-in of an OpenID provider, as GitLab is one: a real HTTP server on loopback that signs, and refuses what is not as
//! the standards ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use reqwest::Url;
use ring::digest;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Signer, encode};

/// The application's id at the stand-in.
pub const CLIENT: &str = "friday-of-tests";

/// Its secret.
pub const CLIENT_SECRET: &str = "a secret of tests alone";

/// Who has an account there.
#[derive(Debug, Clone)]
pub struct Person {
    /// Their number.
    pub id: u64,
    /// Their login.
    pub login: String,
    /// Their groups, by path.
    pub groups: Vec<String>,
}

/// A person who has agreed, on the way back with a code.
#[derive(Debug)]
struct Agreed {
    challenge: String,
    nonce: String,
    redirect: String,
}

#[derive(Debug)]
struct House {
    issuer: String,
    now: i64,
    person: Person,
    is_failing: bool,
    has_confirmed: bool,
    /// What is said of every job.
    job_state: String,
    key_requests: usize,
    codes: BTreeMap<String, Agreed>,
    /// Access and refresh tokens that are good.
    tokens: BTreeSet<String>,
    made: u64,
}

/// The stand-in; gone when it is dropped.
#[derive(Debug)]
pub struct Provider {
    address: SocketAddr,
    house: Arc<Mutex<House>>,
    task: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Provider {
    /// One whose clock stands at `now`, in seconds since 1970, with one person.
    ///
    /// # Panics
    /// No port can be had.
    pub async fn start(now: i64, person: Person) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let house = Arc::new(Mutex::new(House {
            issuer: format!("http://{address}"),
            now,
            person,
            is_failing: false,
            has_confirmed: false,
            job_state: "running".to_owned(),
            key_requests: 0,
            codes: BTreeMap::new(),
            tokens: BTreeSet::new(),
            made: 0,
        }));
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(configuration))
            .route("/oauth/discovery/keys", get(keys))
            .route("/oauth/token", post(token))
            .route("/oauth/userinfo", get(user))
            .route("/oauth/authorize_device", post(device))
            .route("/api/v4/projects/{project}/jobs/{job}", get(job))
            .with_state(Arc::clone(&house));
        let task = tokio::spawn(async move {
            axum::serve(listener, router)
                .await
                .expect("serving loopback does not fail");
        });
        Self {
            address,
            house,
            task,
        }
    }

    fn house(&self) -> MutexGuard<'_, House> {
        held(&self.house)
    }

    /// Its address, which is also its `iss`.
    #[must_use]
    pub fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The token of a CI job with these claims, issued here and now.
    #[must_use]
    pub fn job_token(&self, claims: &Value) -> String {
        let mut claims = claims.clone();
        let now = self.house().now;
        claims["iss"] = self.issuer().into();
        claims["iat"] = now.into();
        claims["nbf"] = (now - 5).into();
        claims["exp"] = (now + 3600).into();
        Signer::first().token(&claims)
    }

    /// From now on everything fails, or no longer.
    pub fn fail(&self, is_failing: bool) {
        self.house().is_failing = is_failing;
    }

    /// The person is another from now on.
    pub fn become_person(&self, person: Person) {
        self.house().person = person;
    }

    /// The person confirms the code of the other device.
    pub fn confirm(&self) {
        self.house().has_confirmed = true;
    }

    /// Every job is in this state from now on.
    pub fn set_job_state(&self, state: &str) {
        self.house().job_state = state.to_owned();
    }

    /// How often the keys were asked for.
    #[must_use]
    pub fn key_requests(&self) -> usize {
        self.house().key_requests
    }

    /// The person agrees on the page at `url`, to which a browser was sent; where it is sent then.
    ///
    /// # Panics
    /// The page was not asked for as the standards want it.
    #[must_use]
    pub fn agree(&self, url: &str) -> String {
        let asked = Url::parse(url).expect("a browser is sent to an address");
        let pairs: BTreeMap<String, String> = asked.query_pairs().into_owned().collect();
        assert_eq!(asked.path(), "/oauth/authorize");
        assert_eq!(pairs["response_type"], "code");
        assert_eq!(pairs["client_id"], CLIENT);
        assert_eq!(pairs["code_challenge_method"], "S256");
        assert!(pairs["scope"].split(' ').any(|scope| scope == "openid"));
        let mut house = self.house();
        let code = house.make("code");
        let agreed = Agreed {
            challenge: pairs["code_challenge"].clone(),
            nonce: pairs["nonce"].clone(),
            redirect: pairs["redirect_uri"].clone(),
        };
        let mut back = Url::parse(&agreed.redirect).expect("the callback is an address");
        back.query_pairs_mut()
            .append_pair("code", &code)
            .append_pair("state", &pairs["state"]);
        house.codes.insert(code, agreed);
        back.into()
    }
}

impl House {
    fn make(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("{kind}-{}", self.made)
    }

    /// What is given for a good code.
    fn give(&mut self, nonce: Option<&str>) -> Value {
        let (access, refresh) = (self.make("access"), self.make("refresh"));
        self.tokens.extend([access.clone(), refresh.clone()]);
        let mut given = json!({
            "access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": 7200,
        });
        if let Some(nonce) = nonce {
            given["id_token"] = Signer::second()
                .token(&json!({
                    "iss": self.issuer, "aud": CLIENT, "sub": self.person.id.to_string(), "nonce": nonce,
                    "iat": self.now, "exp": self.now + 120,
                }))
                .into();
        }
        given
    }
}

fn held(house: &Mutex<House>) -> MutexGuard<'_, House> {
    house.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failure() -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, "500 We're sorry").into_response()
}

fn refusal(error: &str) -> Response {
    let words = json!({ "error": error, "error_description": format!("refused: {error}") });
    (StatusCode::BAD_REQUEST, Json(words)).into_response()
}

async fn configuration(State(house): State<Arc<Mutex<House>>>) -> Response {
    let house = held(&house);
    if house.is_failing {
        return failure();
    }
    let issuer = &house.issuer;
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/oauth/authorize"),
        "token_endpoint": format!("{issuer}/oauth/token"),
        "userinfo_endpoint": format!("{issuer}/oauth/userinfo"),
        "jwks_uri": format!("{issuer}/oauth/discovery/keys"),
    }))
    .into_response()
}

async fn keys(State(house): State<Arc<Mutex<House>>>) -> Response {
    let mut house = held(&house);
    house.key_requests += 1;
    if house.is_failing {
        return failure();
    }
    // One for jobs, and one for people who sign in.
    Json(json!({ "keys": [Signer::first().public(), Signer::second().public()] })).into_response()
}

async fn token(State(house): State<Arc<Mutex<House>>>, body: String) -> Response {
    let mut house = held(&house);
    if house.is_failing {
        return failure();
    }
    let form = form(&body);
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    if field("client_id") != CLIENT || field("client_secret") != CLIENT_SECRET {
        return refusal("invalid_client");
    }
    match field("grant_type") {
        "authorization_code" => {
            let Some(agreed) = house.codes.remove(field("code")) else {
                return refusal("invalid_grant");
            };
            let shown = digest::digest(&digest::SHA256, field("code_verifier").as_bytes());
            let fits = encode(shown.as_ref()) == agreed.challenge;
            if !fits || field("redirect_uri") != agreed.redirect {
                return refusal("invalid_grant");
            }
            Json(house.give(Some(&agreed.nonce))).into_response()
        }
        "refresh_token" if house.tokens.remove(field("refresh_token")) => {
            Json(house.give(None)).into_response()
        }
        "urn:ietf:params:oauth:grant-type:device_code" if field("device_code") == "device-1" => {
            if house.has_confirmed {
                Json(house.give(None)).into_response()
            } else {
                refusal("authorization_pending")
            }
        }
        _ => refusal("invalid_grant"),
    }
}

async fn device(State(house): State<Arc<Mutex<House>>>, body: String) -> Response {
    let house = held(&house);
    if house.is_failing {
        return failure();
    }
    if form(&body).get("client_id").map(String::as_str) != Some(CLIENT) {
        return refusal("invalid_client");
    }
    let issuer = &house.issuer;
    Json(json!({
        "device_code": "device-1", "user_code": "0A44L90H", "interval": 1, "expires_in": 300,
        "verification_uri": format!("{issuer}/oauth/device"),
    }))
    .into_response()
}

async fn user(State(house): State<Arc<Mutex<House>>>, headers: HeaderMap) -> Response {
    let house = held(&house);
    if house.is_failing {
        return failure();
    }
    let shown = headers.get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.to_str().ok());
    let token = shown.and_then(|value| value.strip_prefix("Bearer "));
    if !token.is_some_and(|token| house.tokens.contains(token)) {
        return (
            StatusCode::UNAUTHORIZED,
            Json(json!({ "error": "invalid_token" })),
        )
            .into_response();
    }
    let person = &house.person;
    Json(json!({
        "sub": person.id.to_string(), "nickname": person.login, "groups": person.groups,
    }))
    .into_response()
}

async fn job(State(house): State<Arc<Mutex<House>>>, headers: HeaderMap) -> Response {
    let house = held(&house);
    if house.is_failing {
        return failure();
    }
    if headers
        .get("private-token")
        .is_none_or(|token| token != CLIENT_SECRET)
    {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    Json(json!({ "id": 500_123, "status": house.job_state })).into_response()
}

fn form(body: &str) -> BTreeMap<String, String> {
    let whole = Url::parse(&format!("http://127.0.0.1/?{body}"));
    let pairs = whole.map(|url| url.query_pairs().into_owned().collect());
    pairs.unwrap_or_default()
}
