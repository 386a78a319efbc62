//! What a proxy changes in heads: hop-by-hop fields go (RFC 9110, 7.6.1), its own fields come.

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::Bytes;
use http::header::{
    CONNECTION, COOKIE, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, Method, Version};
use proxy_api::Arm;
use rand::RngExt;
use rand::rngs::SmallRng;

/// A tester's choice of the side: `canary` or `stable`. Not passed on.
const RELEASE: HeaderName = HeaderName::from_static("x-friday-release");
/// On copies of requests for the canary.
const MIRROR: HeaderName = HeaderName::from_static("x-friday-mirror");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The cookie of sticky routes: 128 random bits in hexadecimal.
const COOKIE_NAME: &str = "friday-key";

/// Which of the fields that a proxy looks at are there, found in one pass: most heads have few of them, and looking for
/// each would cost more than all the rest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Present(u32);

impl Present {
    const CONNECTION: u32 = 1;
    const TE: u32 = 1 << 1;
    const UPGRADE: u32 = 1 << 2;
    const OTHER_HOP_BY_HOP: u32 = 1 << 3;
    const EXPECT: u32 = 1 << 4;
    const COOKIE: u32 = 1 << 5;
    const FORWARDED: u32 = 1 << 6;
    const FORWARDED_FOR: u32 = 1 << 7;
    const FORWARDED_HOST: u32 = 1 << 8;
    const FORWARDED_PROTO: u32 = 1 << 9;
    const REQUEST_ID: u32 = 1 << 10;
    const RELEASE: u32 = 1 << 11;
    const LENGTH: u32 = 1 << 12;
    const HOP_BY_HOP: u32 = Self::CONNECTION | Self::TE | Self::UPGRADE | Self::OTHER_HOP_BY_HOP;

    /// Looks through all names.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let bit = |name: &HeaderName| match name.as_str() {
            "connection" => Self::CONNECTION,
            "te" => Self::TE,
            "upgrade" => Self::UPGRADE,
            "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "transfer-encoding" => Self::OTHER_HOP_BY_HOP,
            "expect" => Self::EXPECT,
            "cookie" => Self::COOKIE,
            "forwarded" => Self::FORWARDED,
            "x-forwarded-for" => Self::FORWARDED_FOR,
            "x-forwarded-host" => Self::FORWARDED_HOST,
            "x-forwarded-proto" => Self::FORWARDED_PROTO,
            "x-request-id" => Self::REQUEST_ID,
            "x-friday-release" => Self::RELEASE,
            "content-length" => Self::LENGTH,
            _ => 0,
        };
        Self(headers.keys().fold(0, |all, name| all | bit(name)))
    }

    fn has(self, any_of: u32) -> bool {
        self.0 & any_of != 0
    }

    /// Whether a body's length is given.
    pub(crate) fn has_length(self) -> bool {
        self.has(Self::LENGTH)
    }
}

/// Removes what was meant for this connection only, with what `Connection` names.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap, present: Present) {
    if !present.has(Present::HOP_BY_HOP) {
        return;
    }
    if present.has(Present::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// The host a request names, in lower case and without its port; empty if it names none.
pub(crate) fn host(head: &Parts) -> Cow<'_, str> {
    let authority = head.uri.authority().map(http::uri::Authority::as_str);
    let header = || head.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = authority.or_else(header).unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let bare = match host.rsplit_once(':') {
        Some((bare, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => bare,
        Some(_) | None => host,
    };
    let bare = bare.trim_end_matches('.');
    if bare.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(bare.to_ascii_lowercase())
    } else {
        Cow::Borrowed(bare)
    }
}

/// The protocol that the request wants on its connection, if it may have it (RFC 9110, 7.8). `h2c` is not passed on: who
/// offers it is glad of HTTP/1.1 too, and upstream it would open a way around this proxy.
pub(crate) fn upgrade(head: &Parts, present: Present) -> Option<HeaderValue> {
    if !present.has(Present::UPGRADE)
        || head.version != Version::HTTP_11
        || head.method != Method::GET
    {
        return None;
    }
    let mut protocols = head.headers.get_all(UPGRADE).iter();
    let protocol = protocols.next()?;
    let names_it = head.headers.get_all(CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            let mut options = value.split(',');
            options.any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
        })
    });
    let is_h2c = protocol
        .to_str()
        .is_ok_and(|names| names.to_ascii_lowercase().contains("h2c"));
    (names_it && !is_h2c && protocols.next().is_none()).then(|| protocol.clone())
}

/// Asks for another protocol on the connection, or says that it is spoken from here on.
pub(crate) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(UPGRADE, protocol);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Marks a copy whose answer nobody gets.
pub(crate) fn set_mirrored(headers: &mut HeaderMap) {
    headers.insert(MIRROR, HeaderValue::from_static("1"));
}

/// The side that a tester asks for. Takes the header away.
pub(crate) fn take_wish(headers: &mut HeaderMap, present: Present) -> Option<Arm> {
    if !present.has(Present::RELEASE) {
        return None;
    }
    match headers.remove(RELEASE)?.as_bytes() {
        b"canary" => Some(Arm::Canary),
        b"stable" => Some(Arm::Stable),
        _ => None,
    }
}

/// The sticky cookie's key, if the client has one of ours.
pub(crate) fn cookie_key(headers: &HeaderMap, present: Present) -> Option<String> {
    if !present.has(Present::COOKIE) {
        return None;
    }
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, key)| {
            *name == COOKIE_NAME && key.len() == 32 && key.bytes().all(|b| b.is_ascii_hexdigit())
        })
        .map(|(_, key)| key.to_owned())
}

/// A key for a client that has none: 32 hexadecimal digits.
pub(crate) fn new_key() -> [u8; 32] {
    let mut digits = [0; 32];
    let random = RANDOM.with_borrow_mut(RngExt::random::<[u8; 16]>);
    for (pair, byte) in digits.chunks_exact_mut(2).zip(random) {
        pair.copy_from_slice(&HEX[usize::from(byte)]);
    }
    digits
}

thread_local! {
    // Numbers that need to differ, not to be secret.
    static RANDOM: RefCell<SmallRng> = RefCell::new(rand::make_rng());
}

/// Every byte as two hexadecimal digits.
static HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut all = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    all
};

/// What gives the client its key.
pub(crate) fn set_cookie(key: &[u8]) -> HeaderValue {
    const AFTER: &[u8] = b"; Path=/; HttpOnly; SameSite=Lax";
    let mut cookie = Vec::with_capacity(COOKIE_NAME.len() + 1 + key.len() + AFTER.len());
    cookie.extend_from_slice(COOKIE_NAME.as_bytes());
    cookie.push(b'=');
    cookie.extend_from_slice(key);
    cookie.extend_from_slice(AFTER);
    HeaderValue::from_maybe_shared(Bytes::from(cookie))
        .expect("hexadecimal digits are visible ASCII")
}

/// Turns a client's head into one for an upstream. The client's `Host` is kept: it is the user's own service on both
/// sides.
/// `client` is its address, `proto` what it spoke: `http` or `https`.
pub(crate) fn for_upstream(
    head: &mut Parts,
    present: Present,
    client: &HeaderValue,
    proto: &HeaderValue,
) {
    let takes_trailers = present.has(Present::TE)
        && head
            .headers
            .get_all(TE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|coding| {
                coding
                    .split(';')
                    .next()
                    .is_some_and(|name| name.trim().eq_ignore_ascii_case("trailers"))
            });
    remove_hop_by_hop(&mut head.headers, present);
    let headers = &mut head.headers;
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    // We have asked for the body by reading it; the upstream gets it at once.
    if present.has(Present::EXPECT) {
        headers.remove(EXPECT);
    }
    // The request target's authority counts, whatever the field says (RFC 9112, 3.2.2).
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(HOST, host);
    }
    // HTTP/2 may split cookies; HTTP/1.1 must not (RFC 9113, 8.2.3).
    if present.has(Present::COOKIE) && headers.get_all(COOKIE).iter().nth(1).is_some() {
        let parts: Vec<&[u8]> = headers
            .get_all(COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
            headers.insert(COOKIE, joined);
        }
    }

    if present.has(Present::FORWARDED_FOR) {
        let mut route: Vec<u8> = Vec::new();
        for hop in headers.get_all(&FORWARDED_FOR) {
            route.extend_from_slice(hop.as_bytes());
            route.extend_from_slice(b", ");
        }
        route.extend_from_slice(client.as_bytes());
        if let Ok(route) = HeaderValue::from_bytes(&route) {
            headers.insert(FORWARDED_FOR, route);
        }
    } else {
        headers.insert(FORWARDED_FOR, client.clone());
    }
    // A proxy in front of this one knows better what the user saw.
    if !present.has(Present::FORWARDED_HOST)
        && let Some(host) = headers.get(HOST).cloned()
    {
        headers.insert(FORWARDED_HOST, host);
    }
    if !present.has(Present::FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, proto.clone());
    }
    // Where the chain is told by RFC 7239, it must not end before us.
    if present.has(Present::FORWARDED) {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let quoted = |address: String| match address.contains(':') {
            true => format!("\"[{address}]\""),
            false => address,
        };
        let hop = format!("for={};proto={}", quoted(text(client)), text(proto));
        if let Ok(hop) = HeaderValue::try_from(hop) {
            headers.append(FORWARDED, hop);
        }
    }
    if !present.has(Present::REQUEST_ID) {
        let id = HeaderValue::from_bytes(&new_key());
        headers.insert(
            REQUEST_ID,
            id.expect("hexadecimal digits are visible ASCII"),
        );
    }

    let target = head.uri.path_and_query().cloned();
    head.uri = Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
    head.version = Version::HTTP_11;
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn finds_the_host_without_port_and_case() {
        let cases = [
            ("/", "Shop.Example.org:8080", "shop.example.org"),
            ("/", "shop.example.org.", "shop.example.org"),
            ("/", "[::1]:80", "[::1]"),
            ("/", "[::1]", "[::1]"),
            (
                "http://other.example/x",
                "shop.example.org",
                "other.example",
            ),
        ];
        for (uri, field, host_name) in cases {
            assert_eq!(host(&head(uri, &[("host", field)])), host_name);
        }
        assert_eq!(host(&head("/", &[])), "");
    }

    #[test]
    fn removes_hop_by_hop_fields_and_those_that_connection_names() {
        let mut head = head(
            "http://a.example:81/x?y=1",
            &[
                ("host", "b.example"),
                ("connection", "close, X-Mine"),
                ("x-mine", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("transfer-encoding", "chunked"),
                ("te", "gzip, trailers;q=0.5"),
                ("trailer", "x-sum"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("x-forwarded-for", "10.0.0.9"),
                ("x-forwarded-proto", "https"),
                ("x-request-id", "mine"),
            ],
        );
        let http = HeaderValue::from_static("http");
        let present = Present::of(&head.headers);
        for_upstream(
            &mut head,
            present,
            &HeaderValue::from_static("10.0.0.1"),
            &http,
        );
        let mut left: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "cookie: a=1; b=2",
                "host: a.example:81",
                "te: trailers",
                "trailer: x-sum",
                "x-forwarded-for: 10.0.0.9, 10.0.0.1",
                "x-forwarded-host: a.example:81",
                "x-forwarded-proto: https",
                "x-request-id: mine",
            ]
        );
        assert_eq!(head.uri, "/x?y=1");
    }

    #[test]
    fn takes_only_a_key_of_its_own_make_from_the_cookie() {
        let key_of = |cookie: &str| {
            let headers = head("/", &[("cookie", cookie)]).headers;
            cookie_key(&headers, Present::of(&headers))
        };
        let key = new_key();
        let key = String::from_utf8(key.to_vec()).unwrap();
        let cookie = format!("a=b; {COOKIE_NAME}={key}; c=d");
        assert_eq!(key_of(&cookie), Some(key));
        for cookie in ["friday-key=short", "x=1", "friday-key", ""] {
            assert_eq!(key_of(cookie), None);
        }
    }

    #[test]
    fn takes_the_testers_header_away() {
        let mut headers = head("/", &[("x-friday-release", "canary")]).headers;
        let present = Present::of(&headers);
        assert_eq!(take_wish(&mut headers, present), Some(Arm::Canary));
        assert!(headers.is_empty());
    }

    #[test]
    fn passes_on_an_upgrade_that_connection_names_and_never_to_h2c() {
        let asked = |head: &Parts| upgrade(head, Present::of(&head.headers));
        let cases = [
            (
                &[
                    ("upgrade", "websocket"),
                    ("connection", "keep-alive, Upgrade"),
                ][..],
                true,
            ),
            (&[("upgrade", "websocket")], false),
            (&[("upgrade", "h2c"), ("connection", "upgrade")], false),
            (
                &[("upgrade", "websocket, H2C"), ("connection", "upgrade")],
                false,
            ),
            (&[("connection", "upgrade")], false),
        ];
        for (headers, passed) in cases {
            assert_eq!(asked(&head("/", headers)).is_some(), passed, "{headers:?}");
        }
        let mut post = head("/", cases[0].0);
        post.method = Method::POST;
        assert_eq!(asked(&post), None);
    }
}
