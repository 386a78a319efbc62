//! Where nobody has to sign in, the controller listens on loopback, and everybody on the machine may do everything: also the
//! browser there, with whatever page it shows. A page of another site can reach this one by a name of its own that it lets
//! point to loopback ("DNS rebinding"); to the browser both are one origin then. But the name stands in each request.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};

use crate::api::error::ApiError;

/// Whether a request was sent to this machine by number or as `localhost`, which nobody else can let point anywhere, and by
/// none but a page of the same address. A program that is no browser may leave either out.
///
/// # Errors
/// It was sent to another name, or by another page.
pub(super) fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let refused = |what: &str| {
        tracing::warn!(rule = "host", "refused: {what}");
        let detail = format!(
            "rule \"host\": {what}, and this controller has no accounts, so that any page in a browser here could command it that way: use http://127.0.0.1 or http://localhost and its port, or give it accounts (`friday serve --tokens` or --identities)"
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, "host", detail))
    };
    // HTTP/2 has it in the address, HTTP/1.1 in a header.
    let host = match (uri.authority(), headers.get(header::HOST)) {
        (Some(host), _) => Some(host.clone()),
        (None, None) => None,
        (None, Some(host)) => match host.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(host) => Some(host),
            None => return refused("the request's Host is none"),
        },
    };
    if let Some(host) = &host
        && !is_near(host)
    {
        return refused(&format!("the request is for {:?}", host.host()));
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or_default();
    let page = origin.parse::<Uri>().ok();
    let page = page.as_ref().and_then(Uri::authority);
    if page.is_some() && page == host.as_ref() {
        Ok(())
    } else {
        refused(&format!("the request is of a page of {origin:?}"))
    }
}

/// Whether an address needs no name server. Which machine a number means is not asked: whoever came by it came to us.
fn is_near(authority: &Authority) -> bool {
    let host = authority.host();
    let bare = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_somebody_else_may_give_is_refused_and_so_is_another_page() {
        let ask = |uri: &str, host: Option<&str>, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            let named = [(header::HOST, host), (header::ORIGIN, origin)];
            for (name, value) in named {
                headers.extend(value.map(|value| (name, value.parse().unwrap())));
            }
            check(&uri.parse().unwrap(), &headers).map_err(|refusal| refusal.code())
        };
        let path = "/api/v1/rollouts";
        for (host, origin) in [
            (None, None),
            (Some("127.0.0.1:7070"), None),
            (Some("[::1]:7070"), Some("http://[::1]:7070")),
            (Some("localhost"), Some("https://localhost")),
            (Some("LocalHost:8000"), Some("http://localhost:8000")),
            (Some("10.0.0.5:7070"), None),
        ] {
            assert_eq!(ask(path, host, origin), Ok(()), "{host:?} {origin:?}");
        }
        for (host, origin) in [
            (Some("evil.example:7070"), None),
            (Some("evil.example:7070"), Some("http://evil.example:7070")),
            (Some("localhost.evil.example"), None),
            (Some("127.0.0.1.evil.example"), None),
            (Some("127.0.0.1:7070"), Some("http://evil.example:7070")),
            (Some("127.0.0.1:7070"), Some("http://127.0.0.1:8080")),
            (Some("127.0.0.1:7070"), Some("null")),
            (Some("not a host"), None),
            (None, Some("http://evil.example")),
        ] {
            assert_eq!(ask(path, host, origin), Err("host"), "{host:?} {origin:?}");
        }
        // As HTTP/2 has it.
        let near = format!("http://127.0.0.1:7070{path}");
        assert_eq!(ask(&near, None, None), Ok(()));
        let far = format!("http://evil.example:7070{path}");
        assert_eq!(ask(&far, Some("127.0.0.1:7070"), None), Err("host"));
    }
}
