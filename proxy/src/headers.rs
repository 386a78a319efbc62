//! What a proxy changes in heads: hop-by-hop fields go (RFC 9110, 7.6.1), its own fields come.

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT,
    FORWARDED, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, Method, Version};
use proxy_api::Arm;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::refusal::Refusal;
use crate::retry::IDEMPOTENCY_KEY;

/// A tester's choice of the side: `canary` or `stable`. Not passed on.
const RELEASE: HeaderName = HeaderName::from_static("x-friday-release");
/// On copies of requests for the canary.
const MIRROR: HeaderName = HeaderName::from_static("x-friday-mirror");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// What came with `Upgrade: h2c` (RFC 7540, 3.2.1).
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");

/// Longest target of a request. Servers are to take 8,000 bytes at least (RFC 9112, 3), most take no more than 8 KiB.
const TARGET_BYTES_MAX: usize = 16 << 10;

/// Longest host with its port. A name has at most 253 bytes (RFC 1035), and looking for `*.…` costs a step a label.
pub(crate) const HOST_BYTES_MAX: usize = 260;

/// Fields that `Connection` cannot take away: they say where the body ends, whom the request is for, or who asks, and
/// no sender means them for one connection only. So a client cannot have removed what a proxy in front of us added.
const END_TO_END: [HeaderName; 7] = [
    FORWARDED_FOR,
    FORWARDED_HOST,
    FORWARDED_PROTO,
    REQUEST_ID,
    TRACE_PARENT,
    TRACE_STATE,
    RELEASE,
];

/// Refuses a head that we, or a server behind us, could read in another way than the client meant.
///
/// # Errors
/// What is wrong; then nothing of the request may go to an upstream.
pub(crate) fn check(head: &Parts, present: Present) -> Result<(), Refusal> {
    check_target(head)?;
    check_host(head)?;
    if !present.has(Present::TRANSFER_ENCODING) {
        return Ok(());
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        (Some(_), _) => Err(Refusal::TransferCoding),
    }
}

/// How many fields an upstream gets of a head. Of a cookie that came in pieces it gets one (RFC 9113, 8.2.3).
pub(crate) fn count(headers: &HeaderMap) -> usize {
    let cookies = headers.get_all(COOKIE).iter().count();
    headers.len() - cookies.saturating_sub(1)
}

/// RFC 9112, 3.2: the four forms of a target.
fn check_target(head: &Parts) -> Result<(), Refusal> {
    let uri = &head.uri;
    let (path, query) = (uri.path(), uri.query().unwrap_or_default());
    if path.len() + query.len() > TARGET_BYTES_MAX {
        return Err(Refusal::TargetTooLong);
    }
    if head.method == Method::CONNECT {
        return Ok(());
    }
    let is_path = path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS);
    let is_target = match (uri.scheme_str(), uri.authority()) {
        (None, None) => is_path,
        (Some("http" | "https"), Some(_)) => is_path || path.is_empty(),
        (_, _) => false,
    };
    if is_target {
        Ok(())
    } else {
        Err(Refusal::BadTarget)
    }
}

/// RFC 9112, 3.2 and RFC 9113, 8.3.1: one host, and the same in both places of HTTP/2.
fn check_host(head: &Parts) -> Result<(), Refusal> {
    let mut fields = head.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let (field, second) = (fields.next(), fields.next());
    let authority = head.uri.authority().map(|host| host.as_str().as_bytes());
    let is_http2 = head.version == Version::HTTP_2;
    let is_there = match (field, authority) {
        (None, None) => head.version == Version::HTTP_10,
        (None, Some(_)) => is_http2 || head.version == Version::HTTP_10,
        (Some(field), Some(authority)) if is_http2 => field.eq_ignore_ascii_case(authority),
        (Some(_), _) => true,
    };
    let is_host = |host: Option<&[u8]>| host.is_none_or(|host| host.is_empty() || is_host(host));
    if is_there && second.is_none() && is_host(field) && is_host(authority) {
        Ok(())
    } else {
        Err(Refusal::BadHost)
    }
}

/// Whether that is a name or an address, perhaps with a port. Users, escapes and signs that RFC 3986 would allow are in
/// no host that serves anything, and other servers read them in other ways.
fn is_host(host: &[u8]) -> bool {
    if host.len() > HOST_BYTES_MAX {
        return false;
    }
    let (rest, is_rest) = match host.strip_prefix(b"[") {
        None => {
            let end = host.iter().position(|&byte| byte == b':');
            let (name, rest) = host.split_at(end.unwrap_or(host.len()));
            let is_plain = |byte: &u8| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
            };
            (rest, !name.is_empty() && name.iter().all(is_plain))
        }
        Some(inner) => {
            let Some(end) = inner.iter().position(|&byte| byte == b']') else {
                return false;
            };
            let (address, rest) = inner.split_at(end);
            let is_plain = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
            (
                &rest[1..],
                !address.is_empty() && address.iter().all(is_plain),
            )
        }
    };
    let is_port = |port: &[u8]| {
        port.iter().all(u8::is_ascii_digit)
            && (port.is_empty()
                || str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok()))
    };
    is_rest && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port))
}

fn is_end_to_end(name: &HeaderName) -> bool {
    matches!(
        *name,
        AUTHORIZATION
            | CONTENT_ENCODING
            | CONTENT_LENGTH
            | CONTENT_TYPE
            | COOKIE
            | FORWARDED
            | HOST
    ) || *name == IDEMPOTENCY_KEY
        || END_TO_END.contains(name)
}

/// Removes from trailers what only a head may say: an upstream that adds them to the head would believe it.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers, Present::of(trailers));
    for name in [
        AUTHORIZATION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_TYPE,
        COOKIE,
        EXPECT,
        FORWARDED,
        HOST,
        TRAILER,
    ]
    .iter()
    .chain(&END_TO_END)
    {
        trailers.remove(name);
    }
}

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
    const TRANSFER_ENCODING: u32 = 1 << 13;
    const HOP_BY_HOP: u32 = Self::CONNECTION
        | Self::TE
        | Self::UPGRADE
        | Self::TRANSFER_ENCODING
        | Self::OTHER_HOP_BY_HOP;

    /// Looks through all names.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let bit = |name: &HeaderName| match name.as_str() {
            "connection" => Self::CONNECTION,
            "te" => Self::TE,
            "upgrade" => Self::UPGRADE,
            "transfer-encoding" => Self::TRANSFER_ENCODING,
            "keep-alive"
            | "http2-settings"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "x-friday-mirror" => Self::OTHER_HOP_BY_HOP,
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

/// Readies the head of an upstream's answer for the client: as [`remove_hop_by_hop`], and of two lengths the one that does
/// not count goes, too (RFC 9112, 6.3: the transfer coding overrides it). The client would be told that one alone.
pub(crate) fn for_client(headers: &mut HeaderMap, present: Present) {
    if present.has(Present::TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers, present);
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
            .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !is_end_to_end(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        HTTP2_SETTINGS,
        // Ours to say.
        MIRROR,
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

/// Whether that is gRPC, of whatever kind: then each side may wait for the other's word in the middle of a body.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let kind = kind.and_then(|kind| kind.get(..GRPC.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(GRPC))
}

/// The request's name, if it has one.
pub(crate) fn request_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(REQUEST_ID)?.to_str().ok()
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
    // HTTP/1.0 need not name one; HTTP/1.1 must, be it empty (RFC 9112, 3.2).
    headers.entry(HOST).or_insert(HeaderValue::from_static(""));
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
        && let Some(host) = headers.get(HOST).filter(|host| !host.is_empty()).cloned()
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

    // Of `http://host#fragment` nothing is left, and nothing would be written where the target belongs.
    let target = head.uri.path_and_query().filter(|target| *target != "/");
    let target = target.cloned();
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

    fn checked(head: &Parts) -> Result<(), Refusal> {
        check(head, Present::of(&head.headers))
    }

    #[test]
    fn takes_one_host_that_is_one() {
        for host in [
            "",
            "a",
            "A-b.c_d.",
            "a:80",
            "a:",
            "127.0.0.1:1",
            "[::1]",
            "[::ffff:1.2.3.4]:65535",
        ] {
            assert_eq!(checked(&head("/", &[("host", host)])), Ok(()), "{host}");
        }
        for host in [
            "a b", "a,b", "u@a", "a/", "a:80:80", "a:x", "a:65536", ":80", "[::1", "[]", "[a]b",
            "::1", "a%41", "http://a",
        ] {
            let refused = checked(&head("/", &[("host", host)]));
            assert_eq!(refused, Err(Refusal::BadHost), "{host}");
        }
        let long = "a.".repeat(131);
        assert_eq!(
            checked(&head("/", &[("host", &long)])),
            Err(Refusal::BadHost)
        );
        assert_eq!(checked(&head("/", &[])), Err(Refusal::BadHost));
        let two = [("host", "a"), ("host", "a")];
        assert_eq!(checked(&head("/", &two)), Err(Refusal::BadHost));
        assert_eq!(checked(&head("http://b/", &[("host", "a")])), Ok(()));
        let mut http2 = head("http://b/", &[("host", "a")]);
        http2.version = Version::HTTP_2;
        assert_eq!(checked(&http2), Err(Refusal::BadHost));
    }

    #[test]
    fn takes_targets_and_codings_that_mean_one_thing() {
        let host = ("host", "a");
        for target in ["*", "a", "a:80", "ftp://a/"] {
            let refused = checked(&head(target, &[host]));
            assert_eq!(refused, Err(Refusal::BadTarget), "{target}");
        }
        let long = format!("/{}", "x".repeat(TARGET_BYTES_MAX));
        let refused = checked(&head(&long, &[host]));
        assert_eq!(refused, Err(Refusal::TargetTooLong));
        for coding in [
            "gzip, chunked",
            "chunked, chunked",
            "identity",
            "",
            "chunked,",
        ] {
            let refused = checked(&head("/", &[host, ("transfer-encoding", coding)]));
            assert_eq!(refused, Err(Refusal::TransferCoding), "{coding}");
        }
        let chunked = [host, ("transfer-encoding", "Chunked")];
        assert_eq!(checked(&head("/", &chunked)), Ok(()));
    }

    #[test]
    fn connection_takes_no_field_away_that_is_for_the_upstream() {
        let mut head = head(
            "/",
            &[
                ("host", "a"),
                (
                    "connection",
                    "Host, x-forwarded-for, x-mine, \u{e4}, idempotency-key",
                ),
                ("x-forwarded-for", "10.0.0.9"),
                ("idempotency-key", "k"),
                ("x-mine", "1"),
            ],
        );
        let present = Present::of(&head.headers);
        let [client, proto] = ["10.0.0.1", "http"].map(HeaderValue::from_static);
        for_upstream(&mut head, present, &client, &proto);
        assert_eq!(head.headers[HOST], "a");
        assert_eq!(head.headers[FORWARDED_FOR], "10.0.0.9, 10.0.0.1");
        assert_eq!(head.headers[IDEMPOTENCY_KEY], "k");
        assert!(head.headers.get("x-mine").is_none());
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
