//! `friday health`: one question to a controller or an agent, for the health check of a container.

use friday_tls::Authorities;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use rollout::Duration;
use tokio::time::timeout;

use super::Target;
use super::output::Context;
use crate::client::transport::{Transport, TransportError, Trust, is_loopback};
use crate::client::{ClientError, address};

/// Longest answer of which something is shown. Those of `/live` and `/ready` are a line.
const SHOWN_CHARS_MAX: usize = 200;

/// Most that is read of an answer.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What is asked.
#[derive(Debug, clap::Args)]
pub(super) struct HealthArgs {
    /// Ask whether the process answers (/live), not whether it has seen every service (/ready)
    #[arg(long)]
    live: bool,
    /// Longest wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = super::duration)]
    within: Duration,
}

/// Asks, and says in one line what was answered: 0 if that was yes, else 1, as Docker wants it.
///
/// It shows no token. So on loopback it takes whatever certificate it is shown: a container's own has the names by which
/// others ask, and one that has expired is no reason to replace the container.
///
/// # Errors
/// The address is none, the authorities cannot be used, or the answer cannot be printed.
pub(super) async fn health(
    args: HealthArgs,
    context: &Context,
    target: Target<'_>,
) -> anyhow::Result<u8> {
    let base = address(target.url)?;
    let near = base.host_str().is_some_and(is_loopback);
    let trust = match (base.scheme(), near, target.ca) {
        ("https", true, _) => Ok(Some(Trust::Anybody)),
        ("https", false, Some(file)) => {
            Authorities::from_file(file).map(|all| Some(Trust::Signed(all)))
        }
        ("https", false, None) => Authorities::of_system().map(|all| Some(Trust::Signed(all))),
        _ => Ok(None),
    };
    // It asks its own container: no proxy of the environment stands in between.
    let transport = trust.and_then(|trust| Transport::new(trust, true));
    let transport = transport.map_err(|source| ClientError::Authorities { source })?;
    let path = if args.live { "live" } else { "ready" };
    let url = format!("{}/{path}", base.as_str().trim_end_matches('/'));
    let mut request = Request::new(Full::default());
    *request.uri_mut() = Uri::try_from(url.as_str())?;
    let asked = async {
        let (head, body) = transport.send(request).await?.into_parts();
        // Of a body that is too long or breaks off, nothing is shown.
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Ok::<_, TransportError>((head.status, String::from_utf8_lossy(&body).into_owned()))
    };
    let (code, said) = match timeout(args.within, asked).await {
        Ok(Ok((status, _))) if status.is_success() => (0, format!("{path}: {url}")),
        Ok(Ok((status, text))) => {
            let words: Vec<&str> = text.split_whitespace().collect();
            let words: String = words.join(" ").chars().take(SHOWN_CHARS_MAX).collect();
            (1, format!("not {path}: {url} answers {status}: {words}"))
        }
        Ok(Err(error)) => {
            let error = anyhow::Error::from(error);
            (1, format!("not {path}: {url}: {error:#}"))
        }
        Err(_) => {
            let within = args.within;
            (
                1,
                format!("not {path}: {url} gave no answer within {within:?}"),
            )
        }
    };
    context.say(&said)?;
    Ok(code)
}
