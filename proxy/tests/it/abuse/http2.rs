//! From HTTP/2 to HTTP/1.1: what would be framing, or another line, on the other side.

use futures::StreamExt;
use serde_json::json;

use super::AT_ONCE;
use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Event, HEADERS, Raw, block, frame, request,
};
use super::recorder::Recorder;
use crate::world::{Proxy, table};

type Field<'a> = (&'a str, &'a str);

/// What a client sends on stream 1, what it gets, and what the upstream then has.
struct Case {
    name: String,
    sent: Vec<u8>,
    /// `200`, `reset`, `goaway`; one of these.
    answers: Vec<&'static str>,
    upstream: String,
    may_be_cut: bool,
}

/// A case of a head and what follows it; without anything, the head is the end.
fn case(
    name: &str,
    fields: &[Field<'_>],
    data: &[&str],
    answers: &'static str,
    upstream: &str,
) -> Case {
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    let end = if data.is_empty() { END_STREAM } else { 0 };
    let mut sent = Vec::new();
    let block = block(&fields);
    let mut pieces = block.chunks(16_384).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        let end = if kind == HEADERS { end } else { 0 };
        sent.extend(frame(kind, last | end, 1, piece));
        kind = CONTINUATION;
    }
    for (at, piece) in data.iter().enumerate() {
        let end = if at + 1 == data.len() { END_STREAM } else { 0 };
        sent.extend(frame(DATA, end, 1, piece.as_bytes()));
    }
    Case {
        name: format!(
            "{name} {fields:?}",
            fields = fields
                .iter()
                .map(|(name, value)| {
                    let text = format!("{}: {}", name.escape_ascii(), value.escape_ascii());
                    text.chars().take(60).collect::<String>()
                })
                .collect::<Vec<_>>()
        ),
        sent,
        answers: answers.split('|').collect(),
        upstream: upstream.to_owned(),
        may_be_cut: !data.is_empty(),
    }
}

const HEAD: [Field<'_>; 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "a"),
    (":path", "/"),
];

/// [`HEAD`] with more behind it.
fn with<'a>(more: &[Field<'a>]) -> Vec<Field<'a>> {
    [&HEAD[..], more].concat()
}

/// [`HEAD`] with another value of one field, or without it.
fn other<'a>(name: &str, value: Option<&'a str>) -> Vec<Field<'a>> {
    HEAD.iter()
        .filter_map(|&(known, was)| match (known == name, value) {
            (false, _) => Some((known, was)),
            (true, value) => Some((known, value?)),
        })
        .collect()
}

/// The same as `method`.
fn by<'a>(method: &'a str, more: &[Field<'a>]) -> Vec<Field<'a>> {
    [&other(":method", Some(method))[..], more].concat()
}

impl Case {
    async fn faults(&self) -> Vec<String> {
        let recorder = Recorder::new().await;
        let proxy = Proxy::alone(&table(1, &[recorder.address], json!({}))).await;
        let mut raw = Raw::new(proxy.listen, &[]).await;
        // The connection may end while we send.
        raw.send(&self.sent).await;
        let event = raw.from.event().await.to_string();
        drop(raw);
        proxy.stop().await;
        let log = recorder.end().await;
        let mut faults = log.faults;
        if !self.answers.contains(&event.as_str()) {
            faults.push(format!("answered {event}, not {:?}", self.answers));
        }
        let own: Vec<String> = log.whole.iter().map(ToString::to_string).collect();
        if own.join("; ") != self.upstream {
            faults.push(format!("upstream got {own:?}, not {:?}", self.upstream));
        }
        if !log.cut.is_empty() && !self.may_be_cut {
            faults.push(format!(
                "upstream got a request without its end: {:?}",
                log.cut
            ));
        }
        faults
            .iter()
            .map(|fault| format!("{}: {fault}", self.name))
            .collect()
    }
}

async fn check(cases: Vec<Case>) {
    let faults: Vec<String> = futures::stream::iter(&cases)
        .map(Case::faults)
        .buffer_unordered(AT_ONCE)
        .concat()
        .await;
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

const REFUSED: &str = "400|reset|goaway";

#[tokio::test]
async fn nothing_in_a_field_becomes_a_line_of_http1() {
    let mut cases = vec![
        case("honest", &HEAD, &[], "200", "GET a /"),
        case(
            "honest with TE",
            &with(&[("te", "trailers")]),
            &[],
            "200",
            "GET a /",
        ),
        case(
            "cookies in pieces",
            &with(&[("cookie", "a=1"), ("cookie", "b=2")]),
            &[],
            "200",
            "GET a /",
        ),
        case("a tab", &with(&[("x", "a\tb")]), &[], "200", "GET a /"),
    ];
    for value in [
        "a\r\ny: z",
        "a\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
        "a\nb",
        "a\rb",
        "a\0b",
        "\r\n",
        "a\u{7f}",
    ] {
        cases.push(case("value", &with(&[("x", value)]), &[], REFUSED, ""));
    }
    for name in [
        "x\r\ny",
        "x: y\r\nz",
        "x:y",
        "x y",
        "X-Upper",
        "x\0",
        "x\n",
        "",
        " x",
        "x ",
        "x(",
        "\u{e4}",
    ] {
        cases.push(case("name", &with(&[(name, "v")]), &[], REFUSED, ""));
    }
    for name in [
        "transfer-encoding",
        "connection",
        "keep-alive",
        "proxy-connection",
        "upgrade",
    ] {
        for value in ["chunked", "keep-alive", "host", "h2c"] {
            cases.push(case(
                "of HTTP/1.1",
                &by("POST", &[(name, value)]),
                &["0\r\n\r\n"],
                REFUSED,
                "",
            ));
        }
    }
    cases.push(case("TE", &with(&[("te", "chunked")]), &[], REFUSED, ""));
    cases.push(case(
        "HTTP2-Settings",
        &with(&[("http2-settings", "AAMAAABk")]),
        &[],
        "200",
        "GET a /",
    ));
    check(cases).await;
}

#[tokio::test]
async fn pseudo_fields_make_one_request_line_and_one_host() {
    let mut cases = Vec::new();
    let smuggled = "/ HTTP/1.1\r\nhost: a\r\n\r\nGET /smuggled";
    for path in [
        smuggled,
        "/x y",
        "/ HTTP/1.1",
        "/\t",
        "/\0",
        "/\n",
        "/\u{7f}",
        "",
        "x",
        "x/y",
        "*",
        "http://b/",
        "a:80",
    ] {
        cases.push(case("path", &other(":path", Some(path)), &[], REFUSED, ""));
    }
    // Without the slash that must be there, they can mean but one thing.
    for (path, passes) in [("?x", "GET a /?x"), ("#x", "GET a /")] {
        cases.push(case(
            "path",
            &other(":path", Some(path)),
            &[],
            "200",
            passes,
        ));
    }
    cases.push(case(
        "path",
        &other(":path", Some("//b/x")),
        &[],
        "200",
        "GET a //b/x",
    ));
    cases.push(case(
        "path",
        &other(":path", Some("/%0d%0a")),
        &[],
        "200",
        "GET a /%0d%0a",
    ));
    cases.push(case(
        "options",
        &[
            (":method", "OPTIONS"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "*"),
        ],
        &[],
        "200",
        "OPTIONS a *",
    ));
    let long = format!("/{}", "x".repeat(17 << 10));
    cases.push(case("path", &other(":path", Some(&long)), &[], "414", ""));
    for method in [
        "GET / HTTP/1.1\r\nx: y\r\n\r\n",
        "GET /",
        "G\r\n",
        "G\0",
        "",
        " GET",
        "G:T",
        "GET ",
    ] {
        cases.push(case(
            "method",
            &other(":method", Some(method)),
            &[],
            REFUSED,
            "",
        ));
    }
    cases.push(case(
        "method",
        &other(":method", Some("CONNECT")),
        &[],
        "400|reset|goaway|501",
        "",
    ));
    for host in [
        "a\r\nx: y",
        "a b",
        "u@a",
        "u:p@a",
        "a/b",
        "a/",
        "a,b",
        "a:x",
        "a:80:80",
        "a?b",
        "a#b",
        "a\\b",
        "a\0",
        "[::1",
        "a%00",
    ] {
        cases.push(case(
            "authority",
            &other(":authority", Some(host)),
            &[],
            REFUSED,
            "",
        ));
    }
    for scheme in ["http\r\nx: y", "ftp", "", "http://b/", "file"] {
        cases.push(case(
            "scheme",
            &other(":scheme", Some(scheme)),
            &[],
            REFUSED,
            "",
        ));
    }
    for name in [":method", ":scheme", ":path"] {
        cases.push(case("without", &other(name, None), &[], REFUSED, ""));
    }
    let bare = other(":authority", None);
    cases.push(case("no host", &bare, &[], REFUSED, ""));
    cases.push(case(
        "host alone",
        &[&bare[..], &[("host", "b")]].concat(),
        &[],
        "200",
        "GET b /",
    ));
    cases.push(case(
        "two hosts",
        &[&bare[..], &[("host", "b"), ("host", "c")]].concat(),
        &[],
        REFUSED,
        "",
    ));
    cases.push(case(
        "the same host",
        &with(&[("host", "A")]),
        &[],
        "200",
        "GET a /",
    ));
    cases.push(case(
        "another host",
        &with(&[("host", "b")]),
        &[],
        REFUSED,
        "",
    ));
    cases.push(case(
        "the same and another host",
        &with(&[("host", "a"), ("host", "b")]),
        &[],
        REFUSED,
        "",
    ));
    for (name, value) in HEAD {
        cases.push(case("twice", &with(&[(name, value)]), &[], REFUSED, ""));
        cases.push(case(
            "behind a field",
            &[&[("x", "y")][..], &other(name, None), &[(name, value)]].concat(),
            &[],
            REFUSED,
            "",
        ));
    }
    for name in [":status", ":protocol", ":x", ":", ":host"] {
        cases.push(case("unknown", &with(&[(name, "1")]), &[], REFUSED, ""));
    }
    check(cases).await;
}

#[tokio::test]
async fn a_body_is_as_long_as_it_says_or_never_complete() {
    let inner = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut cases = Vec::new();
    for method in ["POST", "PUT"] {
        let body = |body: &str| format!("{method} a / {body}");
        cases.push(case(
            "right",
            &by(method, &[("content-length", "5")]),
            &["he", "llo"],
            "200",
            &body("hello"),
        ));
        cases.push(case(
            "without",
            &by(method, &[]),
            &["hello"],
            "200",
            &body("hello"),
        ));
        cases.push(case(
            "a request",
            &by(method, &[]),
            &[inner],
            "200",
            &body(&inner.escape_default().to_string()),
        ));
        cases.push(case(
            "chunks",
            &by(method, &[]),
            &["0\r\n\r\n", inner],
            "200",
            &body(&format!("0\r\n\r\n{inner}").escape_default().to_string()),
        ));
        for (length, data) in [
            ("5", &["hell"][..]),
            ("5", &["hello", "x"]),
            ("5", &["helloxxxxx"]),
            ("0", &["hello"]),
            ("0", &[inner]),
            ("5, 6", &["hello"]),
            ("5, 5", &["hello"]),
            ("+5", &["hello"]),
            ("-1", &["hello"]),
            ("x", &["hello"]),
            ("", &["hello"]),
            ("18446744073709551616", &["hello"]),
            ("0x5", &["hello"]),
            ("5", &[]),
        ] {
            cases.push(case(
                "wrong",
                &by(method, &[("content-length", length)]),
                data,
                "400|413|reset|goaway",
                "",
            ));
        }
        let twice = [("content-length", "5"), ("content-length", "6")];
        cases.push(case("two", &by(method, &twice), &["hello"], REFUSED, ""));
        let twice = [("content-length", "0"), ("content-length", "5")];
        cases.push(case("two", &by(method, &twice), &["hello"], REFUSED, ""));
        // Trailers.
        for fields in [
            &[("transfer-encoding", "chunked")][..],
            &[(":unknown", "/x")],
            &[("x", "a\r\nb")],
            &[("X", "y")],
            &[("connection", "x")],
        ] {
            let mut trailers = case(
                "trailers",
                &by(method, &[("trailer", "x")]),
                &["hello"],
                "400|reset|goaway",
                "",
            );
            // The end comes with the trailers instead.
            let data = trailers.sent.len() - 5 - 9 + 4;
            trailers.sent[data] = 0;
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
                .collect();
            trailers
                .sent
                .extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields)));
            trailers.name = format!("{method} with trailers {fields:?}");
            cases.push(trailers);
        }
    }
    check(cases).await;
}

#[tokio::test]
async fn broken_frames_end_the_stream_or_the_connection() {
    let head = request("GET", "/");
    let raw = |name: &str, sent: Vec<u8>| Case {
        name: name.to_owned(),
        sent,
        answers: vec!["400", "431", "reset", "goaway", "closed"],
        upstream: String::new(),
        may_be_cut: true,
    };
    let end = END_HEADERS | END_STREAM;
    let big = "x".repeat(70_000);
    let mut cases = vec![
        raw(
            "an index beyond the table",
            frame(HEADERS, end, 1, &[0xff, 0xff, 0xff, 0x7f]),
        ),
        raw("an index of 0", frame(HEADERS, end, 1, &[0x80])),
        raw("an endless integer", frame(HEADERS, end, 1, &[0xff; 64])),
        raw(
            "a length beyond the block",
            frame(HEADERS, end, 1, &[0, 0x7f, 0xff, 0x7f, b'x']),
        ),
        raw(
            "a table of 4 GiB",
            frame(HEADERS, end, 1, &[0x3f, 0xe1, 0xff, 0xff, 0xff, 0x0f]),
        ),
        raw(
            "Huffman's end",
            frame(HEADERS, end, 1, &[0, 0x84, 0xff, 0xff, 0xff, 0xff, 0]),
        ),
        raw("stream 0", frame(HEADERS, end, 0, &head)),
        raw("a stream of the server", frame(HEADERS, end, 2, &head)),
        raw("DATA of no stream", frame(DATA, END_STREAM, 1, b"x")),
        raw(
            "CONTINUATION of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &head),
        ),
        raw(
            "another frame inside a head",
            [
                frame(HEADERS, END_STREAM, 1, &head),
                frame(DATA, END_STREAM, 1, b"x"),
            ]
            .concat(),
        ),
        raw("a stream that depends on itself", {
            let payload = [&[0, 0, 0, 1, 16][..], &head].concat();
            frame(HEADERS, end | 0x20, 1, &payload)
        }),
        raw(
            "padding longer than its frame",
            frame(HEADERS, end | 8, 1, &[0xff, 0]),
        ),
        raw("a frame of 1 MiB", frame(DATA, 0, 1, &vec![0; 1 << 20])),
        raw(
            "settings of 7 bytes",
            frame(super::frames::SETTINGS, 0, 0, &[0; 7]),
        ),
        raw(
            "a ping of 7 bytes",
            frame(super::frames::PING, 0, 0, &[0; 7]),
        ),
        raw(
            "a window of 0 more",
            frame(super::frames::WINDOW_UPDATE, 0, 0, &[0; 4]),
        ),
        raw(
            "a window beyond its end",
            [frame(
                super::frames::WINDOW_UPDATE,
                0,
                0,
                &[0x7f, 0xff, 0xff, 0xff],
            )]
            .concat()
            .repeat(2),
        ),
        raw(
            "a push",
            frame(5, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &head].concat()),
        ),
        raw(
            "settings of a window beyond its end",
            frame(
                super::frames::SETTINGS,
                0,
                0,
                &[0, 4, 0xff, 0xff, 0xff, 0xff],
            ),
        ),
        raw(
            "an answer to a ping of nobody",
            [
                frame(super::frames::PING, 1, 0, &[0; 8]),
                frame(99, 0, 1, b""),
                frame(HEADERS, end, 0, &head),
            ]
            .concat(),
        ),
    ];
    cases.push(case(
        "70 KB of fields",
        &with(&[("x", &big)]),
        &[],
        "431|reset|goaway",
        "",
    ));
    let many: Vec<Field<'_>> = (0..3_000).map(|_| ("x", "y")).collect();
    cases.push(case(
        "3,000 fields",
        &with(&many),
        &[],
        "431|reset|goaway",
        "",
    ));
    for case in &mut cases {
        case.name.truncate(100);
    }
    check(cases).await;
}

#[tokio::test]
async fn a_stream_beside_a_refused_one_is_served() {
    let recorder = Recorder::new().await;
    let proxy = Proxy::alone(&table(1, &[recorder.address], json!({}))).await;
    let mut raw = Raw::new(proxy.listen, &[]).await;
    let bad = block(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"a"),
        (b":path", b"/"),
        (b"host", b"b"),
    ]);
    let end = END_HEADERS | END_STREAM;
    raw.send(&frame(HEADERS, end, 1, &bad)).await;
    assert_eq!(raw.from.event().await, Event::Answer(1, 400));
    raw.send(&frame(HEADERS, end, 3, &request("GET", "/good")))
        .await;
    let mut event = raw.from.event().await;
    while !matches!(event, Event::Answer(3, _)) {
        assert!(matches!(event, Event::Reset(1, 0)), "{event:?}");
        event = raw.from.event().await;
    }
    assert_eq!(event, Event::Answer(3, 200));
}

#[tokio::test]
async fn too_many_fields_are_refused_and_counted_as_those_of_http1() {
    let fields = |count: usize| -> Vec<Field<'static>> { [("x", "y")].repeat(count) };
    let recorder = Recorder::new().await;
    let proxy = Proxy::alone(&table(1, &[recorder.address], json!({}))).await;
    // A cookie in pieces is one field for the upstream (RFC 9113, 8.2.3).
    let cookies = [&fields(99)[..], &[("cookie", "a=b")].repeat(50)].concat();
    for (more, status) in [
        (fields(100), 200),
        (fields(101), 431),
        (fields(1_800), 431),
        (cookies, 200),
    ] {
        let case = case("fields", &with(&more), &[], "", "");
        let mut raw = Raw::new(proxy.listen, &[]).await;
        raw.send(&case.sent).await;
        assert_eq!(raw.from.event().await, Event::Answer(1, status));
    }
    let reason = ["reason=\"head_too_large\""];
    let refused = proxy.metric("friday_proxy_refusals_total", &reason).await;
    assert_eq!(refused, 2.0);
    proxy.stop().await;
    assert_eq!(recorder.end().await.whole.len(), 2);
}
