//! Bringing a message to an address that a file of the controller's machine holds.
//!
//! Who writes a `friday.yml` names files, and jobs send such files: so only what is below one folder is read, and of that
//! only the first line.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use friday_tls::Authorities;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use reqwest::Url;
use ring::hmac;
use rollout::Duration;
use serde_json::{Value, json};

use super::Undelivered;
use crate::client::transport::{Transport, Trust, is_loopback};
use crate::gitlab::Secret;
use crate::gitlab::client::{answered, wait};
use crate::reconciler::chain;
use crate::spec::is_address;

/// Longest secret, in bytes.
const SECRET_BYTES_MAX: u64 = 4_096;

/// Longest wait for an answer. Receivers of webhooks are asked to answer within 15 to 30 s (Standard Webhooks).
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Most of an answer that is read; nothing is done with it.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What a signing secret begins with (Standard Webhooks); so no other file is ever signed with.
const SECRET_PREFIX: &str = "whsec_";

#[derive(Debug)]
pub(super) struct Post {
    secrets: PathBuf,
    ca: Option<PathBuf>,
    /// Whether a friday.yml may name an address of this machine by itself. What a file of ours holds may be one anyway.
    pub(super) is_open_to_near: bool,
    /// To this machine, in the clear.
    near: OnceLock<Transport>,
    /// Everywhere else, by the system's authorities.
    far: OnceLock<Transport>,
    /// To GitLab, by its own authorities.
    gitlab: OnceLock<Transport>,
}

impl Post {
    pub(super) fn new(secrets: PathBuf, ca: Option<PathBuf>) -> Self {
        Self {
            secrets,
            ca,
            is_open_to_near: false,
            near: OnceLock::new(),
            far: OnceLock::new(),
            gitlab: OnceLock::new(),
        }
    }

    pub(super) async fn slack(&self, url_file: &str, text: &str) -> Result<(), Undelivered> {
        let url = self.address(url_file)?;
        let body = json!({ "text": text });
        self.send(&url, HeaderMap::new(), body.to_string(), None, "the chat")
            .await
    }

    pub(super) async fn alert(
        &self,
        url_file: &str,
        key_file: &str,
        payload: &Value,
    ) -> Result<(), Undelivered> {
        let url = self.address(url_file)?;
        let key = self.secret(key_file)?;
        let mut headers = HeaderMap::new();
        let mut value = HeaderValue::try_from(format!("Bearer {}", key.reveal()))
            .expect("a secret is of visible ASCII characters");
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        let ca = self.ca.as_deref();
        self.send(
            &url,
            headers,
            payload.to_string(),
            ca,
            "GitLab's alert endpoint",
        )
        .await
    }

    /// Signed with the secret over id, time and body (Standard Webhooks 1.0). The id stays the same however often it is
    /// tried: by it a receiver knows what it has.
    pub(super) async fn webhook(
        &self,
        url: &str,
        secret_file: &str,
        id: &str,
        seconds: i64,
        payload: &Value,
    ) -> Result<(), Undelivered> {
        if !self.is_open_to_near && Url::parse(url).is_ok_and(|url| url.scheme() == "http") {
            let words = format!(
                "{url:?} is on the controller's own machine, where a friday.yml may send nothing: start it with --notify-loopback if it may"
            );
            return Err(Undelivered::later(words));
        }
        let secret = self.secret(secret_file)?;
        let body = payload.to_string();
        let signature = sign(&secret, id, seconds, &body).ok_or_else(|| {
            Undelivered::later(format!(
                "{secret_file:?} holds no signing secret: expected whsec_ and base64"
            ))
        })?;
        let mut headers = HeaderMap::new();
        let value = |text: String| {
            HeaderValue::try_from(text).map_err(|_| Undelivered::never("its id is no header"))
        };
        headers.insert(HeaderName::from_static("webhook-id"), value(id.to_owned())?);
        headers.insert(
            HeaderName::from_static("webhook-timestamp"),
            HeaderValue::from(seconds),
        );
        headers.insert(
            HeaderName::from_static("webhook-signature"),
            value(signature)?,
        );
        self.send(url, headers, body, None, "the webhook").await
    }

    /// The address in a file.
    fn address(&self, file: &str) -> Result<String, Undelivered> {
        let secret = self.secret(file)?;
        let url = secret.reveal();
        if is_address(url) {
            Ok(url.to_owned())
        } else {
            // The address is a secret too: it is not repeated.
            let words =
                format!("{file:?} holds no address at https://, or http:// of this machine");
            Err(Undelivered::later(words))
        }
    }

    /// The secret in a file below the folder. Whatever is wrong with it, somebody may mend it: the message waits.
    fn secret(&self, file: &str) -> Result<Secret, Undelivered> {
        read_below(&self.secrets, file).map_err(|reason| {
            Undelivered::later(format!(
                "the file {file:?} of notify cannot be used: {reason} (--secrets-dir {})",
                self.secrets.display()
            ))
        })
    }

    fn transport(&self, url: &Url, ca: Option<&Path>) -> Result<&Transport, Undelivered> {
        let is_near = url.host_str().is_some_and(is_loopback);
        let place = match (url.scheme(), ca) {
            ("http", _) => &self.near,
            (_, Some(_)) => &self.gitlab,
            (_, None) => &self.far,
        };
        if let Some(transport) = place.get() {
            return Ok(transport);
        }
        let authorities = match (url.scheme(), ca) {
            ("http", _) => Ok(None),
            (_, Some(ca)) => Authorities::from_file(ca).map(Some),
            (_, None) => Authorities::of_system().map(Some),
        };
        let made = authorities
            .and_then(|authorities| Transport::new(authorities.map(Trust::Signed), is_near))
            .map_err(|error| Undelivered::later(chain(&error)))?;
        Ok(place.get_or_init(|| made))
    }

    async fn send(
        &self,
        url: &str,
        headers: HeaderMap,
        body: String,
        ca: Option<&Path>,
        whom: &str,
    ) -> Result<(), Undelivered> {
        let wrong = || Undelivered::never(format!("the address of {whom} is none"));
        let parsed = Url::parse(url).map_err(|_| wrong())?;
        let transport = self.transport(&parsed, ca)?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = parsed.as_str().parse().map_err(|_| wrong())?;
        *request.headers_mut() = headers;
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let sent = answered(transport, request, ANSWER_MAX, BODY_BYTES_MAX).await;
        let (status, headers) = sent.map_err(|error| {
            // Of the address only the host: the rest of it is a secret.
            let host = parsed.host_str().unwrap_or_default();
            let words = format!("{whom} at {host} is out of reach: {}", chain(&error));
            Undelivered::later(words)
        })?;
        read(whom, status, &headers)
    }
}

/// What an answer means. The address is the service's own: what is said there keeps nobody else waiting, and neither does
/// silence.
fn read(whom: &str, status: StatusCode, headers: &HeaderMap) -> Result<(), Undelivered> {
    let words = format!("{whom} answered {status}");
    if status.is_success() {
        Ok(())
    } else if matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        Err(Undelivered {
            after: wait(headers),
            ..Undelivered::later(words)
        })
    } else if status == StatusCode::GONE {
        // 410 is how a receiver of webhooks, and Slack, say that it wants no more.
        Err(Undelivered::never(words))
    } else {
        Err(Undelivered::later(words))
    }
}

/// `v1,` and the signature, or nothing where the secret is none.
pub(super) fn sign(secret: &Secret, id: &str, seconds: i64, body: &str) -> Option<String> {
    let encoded = secret.reveal().strip_prefix(SECRET_PREFIX)?;
    let bytes = STANDARD.decode(encoded).ok()?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
    let tag = hmac::sign(&key, format!("{id}.{seconds}.{body}").as_bytes());
    Some(format!("v1,{}", STANDARD.encode(tag.as_ref())))
}

/// The secret in a file below a folder, whichever links lead there.
fn read_below(folder: &Path, file: &str) -> Result<Secret, String> {
    let folder = folder
        .canonicalize()
        .map_err(|error| format!("its folder: {error}"))?;
    let path = folder.join(file);
    let path = path.canonicalize().map_err(|error| error.to_string())?;
    if !path.starts_with(&folder) {
        return Err("it is not below the folder of secrets".to_owned());
    }
    let length = std::fs::metadata(&path).map_err(|error| error.to_string())?;
    if !length.is_file() || length.len() > SECRET_BYTES_MAX {
        return Err(format!(
            "expected a file of at most {SECRET_BYTES_MAX} bytes"
        ));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
    Secret::from_text(&text)
        .ok_or_else(|| "expected one line of visible ASCII characters".to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::Reach;
    use super::*;

    #[test]
    fn reads_only_below_the_folder_of_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = folder.path().join("secrets");
        std::fs::create_dir(&secrets).unwrap();
        std::fs::write(secrets.join("a"), "one\n").unwrap();
        std::fs::write(folder.path().join("b"), "two").unwrap();
        std::os::unix::fs::symlink(secrets.join("a"), secrets.join("inside")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("b"), secrets.join("outside")).unwrap();
        let read = |file: &str| read_below(&secrets, file);
        assert_eq!(read("a").unwrap().reveal(), "one");
        assert_eq!(read("inside").unwrap().reveal(), "one");
        let absolute = secrets.join("a").display().to_string();
        assert_eq!(read(&absolute).unwrap().reveal(), "one");
        for file in ["../b", "outside", "/etc/passwd", ".", "missing"] {
            assert!(read(file).is_err(), "{file}");
        }
    }

    #[test]
    fn what_a_service_has_told_of_it_keeps_no_other_waiting() {
        for (status, reach, after) in [
            (429, Reach::Rollout, Some(3_600)),
            (503, Reach::Rollout, Some(3_600)),
            (500, Reach::Rollout, None),
            (404, Reach::Rollout, None),
            (410, Reach::Never, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::RETRY_AFTER, HeaderValue::from_static("3600"));
            let status = StatusCode::from_u16(status).unwrap();
            let undelivered = read("the webhook", status, &headers).unwrap_err();
            let seconds = undelivered.after.map(|after| after.as_secs());
            assert_eq!((undelivered.reach, seconds), (reach, after), "{status}");
        }
    }

    /// Sends something to an address of this machine.
    async fn send_to(address: SocketAddr) -> Result<(), Undelivered> {
        let post = Post::new(PathBuf::from("/nowhere"), None);
        let url = format!("http://{address}/hook");
        let sent = post.send(&url, HeaderMap::new(), "{}".into(), None, "the webhook");
        sent.await
    }

    #[tokio::test]
    async fn an_address_that_is_out_of_reach_keeps_no_other_service_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let undelivered = send_to(address).await.unwrap_err();
        assert_eq!(undelivered.reach, Reach::Rollout, "{undelivered:?}");
        assert!(undelivered.words.contains("127.0.0.1 is out of reach"));
    }

    #[tokio::test]
    async fn what_was_taken_is_told_however_long_the_answer_is() {
        // Longer than what is read of it; and one that breaks off.
        for (length, sent) in [(BODY_BYTES_MAX + 1, BODY_BYTES_MAX + 1), (2, 1)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let answering = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                // To its end: what is left unread breaks the connection before the answer is read.
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n{}") {
                    assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                }
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                let answer = [head.as_bytes(), &vec![b'x'; sent]].concat();
                // Whoever has enough of it may leave.
                drop(stream.write_all(&answer).await);
            });
            assert_eq!(send_to(address).await, Ok(()), "{sent} of {length}");
            answering.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_friday_yml_sends_nothing_to_what_listens_on_this_machine() {
        let mut post = Post::new(PathBuf::from("/nowhere"), None);
        let url = "http://127.0.0.1:9090/-/quit";
        let sent = post.webhook(url, "hook-key", "id", 1, &Value::Null).await;
        let said = sent.unwrap_err().words;
        assert!(said.contains("--notify-loopback"), "{said}");
        post.is_open_to_near = true;
        let sent = post.webhook(url, "hook-key", "id", 1, &Value::Null).await;
        let said = sent.unwrap_err().words;
        assert!(said.contains("--secrets-dir"), "{said}");
    }

    #[test]
    fn signs_as_standard_webhooks_has_it() {
        // The example of github.com/standard-webhooks/standard-webhooks.
        let secret = Secret::from_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = r#"{"test": 2432232314}"#;
        assert_eq!(
            sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body).as_deref(),
            Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
        );
        let other = Secret::from_text("password").unwrap();
        assert_eq!(sign(&other, "id", 1, body), None);
    }
}
