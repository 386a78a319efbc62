//! `friday login` and `friday logout`: a session at a controller, by a browser here or by any device.

use anyhow::{Context as _, bail};
use clap::Args;
use rollout::Duration;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::credentials::{Credentials, Kept};
use super::output::Context;
use super::{GivenUp, Usage};
use crate::auth::people::challenge;
use crate::auth::sessions::Secret;
use crate::client::{Client, Look, TokenAnswer, slower};

/// How long the browser may take to come back: as long as the controller waits for it.
const BROWSER_MAX: Duration = Duration::from_secs(10 * 60);

/// Longest time for the browser's request once it is connected.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// Longest request line of a browser that comes back.
const REQUEST_BYTES_MAX: u64 = 8 << 10;

/// Signs in.
#[derive(Debug, Args)]
pub(super) struct LoginArgs {
    /// Show a code to type on any device, in place of opening a browser on this one
    #[arg(long)]
    device: bool,
}

/// Who signed in where.
#[derive(Serialize)]
struct LoginView<'a> {
    controller: &'a str,
    name: &'a str,
    role: &'a str,
    expires_seconds: u64,
}

/// Signs in and keeps the session.
pub(super) async fn login(
    args: LoginArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let credentials = credentials()?;
    let answer = if args.device {
        by_device(context, client).await?
    } else {
        by_browser(context, client).await?
    };
    let kept = Kept::new(&answer, context.clock.now());
    credentials.keep(client.url(), Some(kept))?;
    let view = LoginView {
        controller: client.url(),
        name: &answer.name,
        role: &answer.role,
        expires_seconds: answer.expires_seconds,
    };
    context.show(&view, |view| {
        format!(
            "{} is signed in at {} with the role {}, for {}",
            view.name,
            view.controller,
            view.role,
            crate::yaml::show_duration(Duration::from_secs(view.expires_seconds))
        )
    })?;
    Ok(0)
}

/// Ends the session and forgets it, also where the controller cannot be told.
pub(super) async fn logout(context: &Context, client: &Client) -> anyhow::Result<u8> {
    let credentials = credentials()?;
    let url = client.url();
    if credentials.of(url)?.is_none() {
        context.say(&format!("nobody is signed in at {url}"))?;
        return Ok(0);
    }
    let told = client.log_out().await;
    credentials.keep(url, None)?;
    told.context("the session is forgotten here, but the controller could not be told to end it")?;
    context.say(&format!("signed out at {url}"))?;
    Ok(0)
}

fn credentials() -> anyhow::Result<Credentials> {
    Credentials::of_person().ok_or_else(|| {
        Usage("there is nowhere to keep a session: set HOME or XDG_CONFIG_HOME".to_owned()).into()
    })
}

/// With a code that the person types on any device (RFC 8628).
async fn by_device(context: &Context, client: &Client) -> anyhow::Result<TokenAnswer> {
    let begun = client.begin_on_device().await?;
    let address = begun.whole_address.as_ref().unwrap_or(&begun.address);
    context.note(&format!(
        "Open {address} on any device, and see that it shows the code {}. Waiting…",
        begun.user_code
    ))?;
    let mut every = Duration::from_secs(begun.every_seconds.clamp(1, 60));
    let good_for = Duration::from_secs(begun.expires_seconds).min(BROWSER_MAX);
    let looking = async {
        loop {
            sleep(every).await;
            match client.look_on_device(&begun.device).await? {
                Look::SignedIn(answer) => return Ok(answer),
                Look::TooSoon => every = slower(every),
                Look::NotYet => {}
            }
        }
    };
    timeout(good_for, looking).await.map_err(|_| {
        GivenUp("nobody confirmed the code in time; `friday login` again".to_owned())
    })?
}

/// By a browser on this machine, which comes back to a port of ours (RFC 8252).
async fn by_browser(context: &Context, client: &Client) -> anyhow::Result<TokenAnswer> {
    let Some(sign_in) = client.session().await?.sign_in else {
        bail!(Usage(format!(
            "nobody signs in at {}: it has no `people` in the file of --identities; use a token",
            client.url()
        )));
    };
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .context("no port of this machine can be had; try `friday login --device`")?;
    let port = listener
        .local_addr()
        .context("the port cannot be read")?
        .port();
    let (verifier, state) = (Secret::random(), Secret::random());
    let mut url =
        page(&sign_in).context("the controller's address to sign in at is no page of the web")?;
    url.query_pairs_mut()
        .append_pair("port", &port.to_string())
        .append_pair("challenge", &challenge(&verifier.0))
        .append_pair("state", &state.0);
    context.note(&format!(
        "Opening a browser. If none comes up, open this on this machine, or use --device:\n{url}"
    ))?;
    open(url.as_str());
    let code = timeout(BROWSER_MAX, come_back(&listener, &state.0))
        .await
        .map_err(|_| {
            GivenUp(
                "the browser did not come back in time; `friday login` again, or with --device"
                    .to_owned(),
            )
        })??;
    Ok(client.redeem(&code, &verifier.0).await?)
}

/// An address that may be shown: whatever else there is would open a file or start a program.
fn page(url: &str) -> Option<reqwest::Url> {
    let url = reqwest::Url::parse(url).ok()?;
    matches!(url.scheme(), "https" | "http").then_some(url)
}

/// Asks the system to show an address; that it cannot is no failure, the person can.
fn open(url: &str) {
    let program = if cfg!(target_os = "macos") {
        "open"
    } else {
        "xdg-open"
    };
    let quiet = std::process::Stdio::null;
    let mut command = Command::new(program);
    command
        .arg(url)
        .stdin(quiet())
        .stdout(quiet())
        .stderr(quiet());
    if let Err(error) = command.spawn() {
        tracing::debug!(%error, program, "no browser was opened");
    }
}

/// The code that a browser brings, whoever else knocks.
async fn come_back(listener: &TcpListener, state: &str) -> anyhow::Result<String> {
    loop {
        let (stream, _) = listener.accept().await.context("the port failed")?;
        if let Ok(Some(code)) = timeout(REQUEST_MAX, answer(stream, state)).await {
            return Ok(code);
        }
    }
}

/// Reads one request and answers it; the code, if it is the browser's that we wait for.
async fn answer(mut stream: TcpStream, state: &str) -> Option<String> {
    let mut line = String::new();
    let (reading, mut writing) = stream.split();
    let mut reading = BufReader::new(reading.take(REQUEST_BYTES_MAX));
    reading.read_line(&mut line).await.ok()?;
    let code = code_of(&line, state);
    // The rest of the head is read, so that closing does not cut off the answer.
    let mut rest = String::new();
    while reading
        .read_line(&mut rest)
        .await
        .is_ok_and(|read| read > 2)
    {
        rest.clear();
    }
    let (status, words) = match &code {
        Some(_) => (
            "200 OK",
            "Signed in. You may close this page and go back to the terminal.",
        ),
        None => (
            "400 Bad Request",
            "This is not the sign-in that the terminal waits for.",
        ),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{words}\n",
        words.len() + 1
    );
    // A browser that is gone has signed in all the same.
    drop(writing.write_all(answer.as_bytes()).await);
    drop(writing.shutdown().await);
    code
}

/// The code in `GET /?code=…&state=… HTTP/1.1`, if the state is ours.
fn code_of(line: &str, state: &str) -> Option<String> {
    let target = line.strip_prefix("GET ")?.split(' ').next()?;
    let url = reqwest::Url::parse("http://127.0.0.1")
        .ok()?
        .join(target)
        .ok()?;
    let value = |name: &str| {
        let mut pairs = url.query_pairs();
        pairs
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    (value("state")? == state).then(|| value("code"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_code_of_our_own_sign_in_alone() {
        let code = |line: &str| code_of(line, "s1");
        assert_eq!(
            code("GET /?code=c1&state=s1 HTTP/1.1\r\n"),
            Some("c1".to_owned())
        );
        for line in [
            "GET /?code=c1&state=s2 HTTP/1.1\r\n",
            "GET /?code=c1 HTTP/1.1\r\n",
            "GET /?state=s1 HTTP/1.1\r\n",
            "POST /?code=c1&state=s1 HTTP/1.1\r\n",
            "GET /favicon.ico HTTP/1.1\r\n",
            "",
        ] {
            assert_eq!(code(line), None, "{line}");
        }
    }

    #[test]
    fn shows_pages_of_the_web_alone() {
        for good in [
            "https://friday.example.com/auth/login",
            "http://127.0.0.1:7070/",
        ] {
            assert!(page(good).is_some(), "{good}");
        }
        for bad in [
            "file:///etc/passwd",
            "vnc://x",
            "javascript:alert(1)",
            "/auth/login",
            "",
        ] {
            assert!(page(bad).is_none(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_browser_brings_the_code_to_the_port_and_strangers_bring_nothing() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let knock = async |path: &str| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            said
        };
        let browser = async {
            let stranger = knock("/?code=evil&state=x").await;
            (stranger, knock("/?code=c1&state=s1").await)
        };
        let (code, (stranger, said)) = tokio::join!(come_back(&listener, "s1"), browser);
        assert_eq!(code.unwrap(), "c1");
        assert!(stranger.starts_with("HTTP/1.1 400 "), "{stranger}");
        assert!(
            said.starts_with("HTTP/1.1 200 ") && said.contains("Signed in"),
            "{said}"
        );
    }
}
