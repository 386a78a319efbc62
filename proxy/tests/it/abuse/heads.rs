//! Heads: their syntax, the host they name, their target, and what they want done on the way.

use super::{case, check};

/// A GET of `/` with those lines in its head.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\n{lines}\r\n\r\n")
}

#[tokio::test]
async fn lines_of_a_head_are_well_formed() {
    let mut cases = vec![
        // RFC 9112, 2.2: a bare LF may be taken for the end of a line. What goes on has CRLF.
        case(
            "bare LF",
            "GET / HTTP/1.1\nhost: a\nx: y\n\n",
            "200 200",
            "GET a /",
        )
        .with("x", "y"),
        case(
            "some bare LF",
            "GET / HTTP/1.1\r\nhost: a\nx: y\r\n\n",
            "200 200",
            "GET a /",
        )
        .with("x", "y"),
        case(
            "empty lines before",
            "\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "200 200",
            "GET a /",
        ),
        case("an empty value", get("host: a\r\nx:"), "200 200", "GET a /"),
        case(
            "a tab in a value",
            get("host: a\r\nx: a\tb"),
            "200 200",
            "GET a /",
        )
        .with("x", "a\tb"),
        case(
            "a colon in a value",
            get("host: a\r\nx: y: z"),
            "200 200",
            "GET a /",
        )
        .with("x", "y: z"),
        case(
            "two requests",
            [get("host: a"), get("host: b")].concat(),
            "200 200 200",
            "GET a /; GET b /",
        ),
        case(
            "a request behind a close",
            [get("host: a\r\nconnection: close"), get("host: b")].concat(),
            "200",
            "GET a /",
        ),
        case(
            "a request behind close in another line",
            [
                get("host: a\r\nconnection: close\r\nconnection: keep-alive"),
                get("host: b"),
            ]
            .concat(),
            "200",
            "GET a /",
        ),
        case(
            "a request behind a fault",
            [get("host: a\r\nx"), get("host: b")].concat(),
            "400",
            "",
        ),
    ];
    for line in [
        "x: a\r\n b",
        "x: a\r\n\tb",
        "x: a\r\n \r\ny: b",
        " x: y",
        "\tx: y",
        "x : y",
        "x\t: y",
        ": y",
        "x",
        "x y: z",
        "x: a\rb",
        "x: a\r\r\ny: b",
        "x: \0",
        "x: a\0b",
        "x: a\u{7f}b",
        "x: a\u{8}b",
        "x\0: y",
        "x\u{80}: y",
        "(x): y",
        "x@y: z",
        "x\": y",
        "\r: y",
        "x\r: y",
        "[x]: y",
        "x/y: z",
    ] {
        cases.push(case(
            &format!("line {line:?}"),
            get(&format!("host: a\r\n{line}")),
            "400",
            "",
        ));
    }
    for first in [" x: y", "\tx: y", ": y"] {
        cases.push(case(
            &format!("first line {first:?}"),
            get(&format!("{first}\r\nhost: a")),
            "400",
            "",
        ));
    }
    check(cases).await;
}

#[tokio::test]
async fn request_lines_are_well_formed() {
    let line = |line: &str| format!("{line}\r\nhost: a\r\n\r\n");
    let mut cases = vec![
        case("HTTP/0.9", "GET /\r\n", "400|505", ""),
        case(
            "HTTP/0.9 with more",
            "GET /\r\nhost: a\r\n\r\n",
            "400|505",
            "",
        ),
        case("any method", line("brew / HTTP/1.1"), "200 200", "brew a /"),
        case(
            "a method in small letters is another",
            line("get / HTTP/1.1"),
            "200 200",
            "get a /",
        ),
        case("HEAD", line("HEAD / HTTP/1.1"), "200 200", "HEAD a /"),
        case(
            "two slashes",
            line("GET //b/x HTTP/1.1"),
            "200 200",
            "GET a //b/x",
        ),
        case("a fragment", line("GET /x#y HTTP/1.1"), "200 200|400", ""),
        case(
            "a URL in a path",
            line("GET /http://b/ HTTP/1.1"),
            "200 200",
            "GET a /http://b/",
        ),
        case(
            "escapes stay as they are",
            line("GET /%0d%0ax:%20y?%00 HTTP/1.1"),
            "200 200",
            "GET a /%0d%0ax:%20y?%00",
        ),
        case(
            "a target of 17 KiB",
            line(&format!("GET /{} HTTP/1.1", "x".repeat(17 << 10))),
            "414",
            "",
        ),
        case(
            "a target of 17 KiB in its query",
            line(&format!("GET /?{} HTTP/1.1", "x".repeat(17 << 10))),
            "414",
            "",
        ),
        case(
            "a target of 100 KiB",
            line(&format!("GET /{} HTTP/1.1", "x".repeat(100 << 10))),
            "414|431",
            "",
        ),
        case(
            "no end of the target",
            "GET /".to_owned() + &"x".repeat(1 << 20),
            "414|431",
            "",
        ),
        case("no end of the method", "G".repeat(1 << 20), "400|431", ""),
    ];
    // A fragment is no part of a target: it goes, or all of it does.
    cases[6].upstream = "GET a /x".to_owned();
    for bad in [
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/3",
        "GET / HTTP/1.1 ",
        "GET / http/1.1",
        "GET / HTTP/1.10",
        "GET / HTTP/01.1",
        "GET / HTTPS/1.1",
        "GET / HTTP 1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET /x y HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\rx HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        " GET / HTTP/1.1",
        "G@T / HTTP/1.1",
        "GET\0 / HTTP/1.1",
        "GET( / HTTP/1.1",
        "GET: / HTTP/1.1",
        "/ HTTP/1.1",
        "GET HTTP/1.1",
        "GET / HTTP/1.1\rhost: b",
        "PRI * HTTP/2.0",
    ] {
        cases.push(case(&format!("line {bad:?}"), line(bad), "400|505", ""));
    }
    check(cases).await;
}

#[tokio::test]
async fn a_request_names_one_host() {
    let mut cases = vec![
        case("none on HTTP/1.1", get("x: y"), "400", ""),
        case("two", get("host: a\r\nhost: b"), "400", ""),
        case("two of the same", get("host: a\r\nhost: a"), "400", ""),
        case(
            "two and a whole URL",
            "GET http://a/ HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
            "400",
            "",
        ),
        // RFC 9112, 3.2: an HTTP/1.1 upstream needs the field, be it empty.
        case(
            "none on HTTP/1.0",
            "GET / HTTP/1.0\r\n\r\n",
            "200",
            "GET  /",
        ),
        case("empty", get("host:"), "200 200", "GET  /"),
        case("with port", get("host: a:8080"), "200 200", "GET a:8080 /"),
        case("IPv6", get("host: [::1]:80"), "200 200", "GET [::1]:80 /"),
        case(
            "underscore and dot",
            get("host: tasks.web_app."),
            "200 200",
            "GET tasks.web_app. /",
        ),
        // RFC 9112, 3.2.2: the target counts.
        case(
            "a whole URL",
            "GET http://b/x?y HTTP/1.1\r\nhost: a\r\n\r\n",
            "200 200",
            "GET b /x?y",
        )
        .with("x-forwarded-host", "b"),
        case(
            "a whole URL without path",
            "GET http://b HTTP/1.1\r\nhost: a\r\n\r\n",
            "200 200",
            "GET b /",
        ),
        case(
            "a whole URL with a query for a path",
            "GET http://b?x=1 HTTP/1.1\r\nhost: a\r\n\r\n",
            "200 200",
            "GET b /?x=1",
        ),
        case(
            "a whole URL without Host on HTTP/1.1",
            "GET http://b/ HTTP/1.1\r\n\r\n",
            "400",
            "",
        ),
        case(
            "a URL's user",
            "GET http://u@b/ HTTP/1.1\r\nhost: b\r\n\r\n",
            "400",
            "",
        ),
        case(
            "a URL's user and password",
            "GET http://a:80@b/ HTTP/1.1\r\nhost: b\r\n\r\n",
            "400",
            "",
        ),
        case(
            "a URL of another kind",
            "GET file:///etc/passwd HTTP/1.1\r\nhost: a\r\n\r\n",
            "400",
            "",
        ),
        case(
            "a URL without a host",
            "GET http:///x HTTP/1.1\r\nhost: a\r\n\r\n",
            "400",
            "",
        ),
        case(
            "asterisk",
            "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
            "200 200",
            "OPTIONS a *",
        ),
        case(
            "asterisk for GET",
            "GET * HTTP/1.1\r\nhost: a\r\n\r\n",
            "400",
            "",
        ),
        case(
            "authority alone",
            "GET a:80 HTTP/1.1\r\nhost: a\r\n\r\n",
            "400",
            "",
        ),
        case(
            "a word alone",
            "GET admin HTTP/1.1\r\nhost: a\r\n\r\n",
            "400",
            "",
        ),
        case(
            "a path without slash",
            "GET a/b HTTP/1.1\r\nhost: a\r\n\r\n",
            "400",
            "",
        ),
        case(
            "a query alone",
            "GET ?x HTTP/1.1\r\nhost: a\r\n\r\n",
            "400",
            "",
        ),
        case(
            "CONNECT",
            "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
            "501|501 200",
            "",
        ),
        case(
            "CONNECT to a path",
            "CONNECT / HTTP/1.1\r\nhost: a\r\n\r\n",
            "400|400 200|501|501 200",
            "",
        ),
    ];
    for host in [
        "a b", "a/b", "a/", "a,b", "a, b", "u@a", "u:p@a", "a:80:80", "a:x", "a:-1", "a:99999",
        "[::1", "::1", "[]", "a?b", "a#b", "a\\b", "a\"", "<a>", "a\tb", "a%00", "http://a", "a;b",
        "a|b", "\u{e4}", "[a]b", "{a}",
    ] {
        cases.push(case(
            &format!("host {host:?}"),
            get(&format!("host: {host}")),
            "400",
            "",
        ));
    }
    // Found by fuzzing: the library that takes the fragment away leaves no slash.
    for target in ["http://b#x", "http://b/#x", "http://b#?x"] {
        let sent = format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
        cases.push(case(target, sent, "200 200", "GET b /"));
    }
    // Each label of a host costs a look for a route of `*.…`.
    let labels = get(&format!("host: {}", "a.".repeat(30_000)));
    cases.push(case("a host of 30,000 labels", labels, "400", ""));
    check(cases).await;
}

#[tokio::test]
async fn too_many_fields_are_refused() {
    let fields = |count: usize| get(&format!("host: a{}", "\r\nx: y".repeat(count)));
    let endless = get("host: a").replace("\r\n\r\n", "\r\nx: y")
        + &"\r\nx: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy".repeat(30_000);
    check(vec![
        case("100 fields", fields(99), "200 200", "GET a /"),
        case("101 fields", fields(100), "431", ""),
        case("5,000 fields", fields(5_000), "431", ""),
        case(
            "a field of 60 KiB",
            get(&format!("host: a\r\nx: {}", "y".repeat(60_000))),
            "200 200",
            "GET a /",
        ),
        case(
            "a field of 70 KiB",
            get(&format!("host: a\r\nx: {}", "y".repeat(70_000))),
            "431",
            "",
        ),
        case(
            "a name of 70 KiB",
            get(&format!("host: a\r\n{}: y", "x".repeat(70_000))),
            "400|431",
            "",
        ),
        case("fields without end", endless, "431", ""),
        case(
            "1 MiB of blanks",
            "GET / HTTP/1.1\r\nhost: a\r\nx:".to_owned() + &" ".repeat(1 << 20),
            "431",
            "",
        ),
        case(
            "1 MiB of empty lines",
            "\r\n".repeat(1 << 19),
            "400|431|",
            "",
        )
        .hangs_up(),
    ])
    .await;
}

#[tokio::test]
async fn what_is_wanted_of_a_connection_stays_there() {
    let put = |lines: &str| {
        format!("PUT / HTTP/1.1\r\nhost: a\r\n{lines}\r\ncontent-length: 5\r\n\r\nhello")
    };
    let passed = "PUT a / hello";
    let h2c = "upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__";
    let mut cases = vec![
        case(
            "h2c",
            put(&format!("connection: upgrade, http2-settings\r\n{h2c}")),
            "200 200",
            passed,
        ),
        case("h2c without Connection", put(h2c), "200 200", passed),
        case(
            "h2c, half of Connection",
            put(&format!("connection: upgrade\r\n{h2c}")),
            "200 200",
            passed,
        ),
        case(
            "100-continue",
            put("expect: 100-continue"),
            "100 200 200|200 200",
            passed,
        )
        .with("expect", ""),
        // RFC 9110, 10.1.1: 417 is allowed, not asked for. What we do not pass on, we need not understand.
        case(
            "another expectation",
            put("expect: a-miracle"),
            "200 200",
            passed,
        )
        .with("expect", ""),
        case(
            "two expectations",
            put("expect: 100-continue\r\nexpect: a-miracle"),
            "100 200 200|200 200",
            passed,
        )
        .with("expect", ""),
        case(
            "a list of expectations",
            put("expect: 100-continue, x"),
            "100 200 200|200 200",
            passed,
        )
        .with("expect", ""),
        case(
            "a field of its own",
            put("connection: x-mine, X-Too\r\nx-mine: 1\r\nx-too: 1"),
            "200 200",
            passed,
        )
        .with("x-mine", "")
        .with("x-too", ""),
        case(
            "Connection twice",
            put("connection: x-mine\r\nconnection: x-too\r\nx-mine: 1\r\nx-too: 1"),
            "200 200",
            passed,
        )
        .with("x-mine", "")
        .with("x-too", ""),
        case(
            "Connection that is no name",
            put("connection: ,, \u{1}, a b, x-mine;, x-too\r\nx-too: 1"),
            "400",
            "",
        ),
        case(
            "Connection with odd names",
            put("connection: ,,a b,x-mine;,(),x-too\r\nx-too: 1"),
            "200 200",
            passed,
        )
        .with("x-too", ""),
        case(
            "Connection beyond ASCII",
            put("connection: \u{e4}, x-too\r\nx-too: 1"),
            "200 200",
            passed,
        )
        .with("x-too", ""),
        case("TE", put("te: gzip, trailers, chunked"), "200 200", passed).with("te", "trailers"),
        case(
            "proxy's own",
            put("proxy-connection: x\r\nproxy-authorization: x\r\nkeep-alive: 1"),
            "200 200",
            passed,
        ),
    ];
    // What says where the body ends, whom it is for, or who asked, is nobody's to take away.
    for (name, value) in [
        ("x-forwarded-for", "1.2.3.4, 127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "b"),
        ("x-request-id", "1"),
        ("traceparent", "00-1-1-00"),
        ("authorization", "x"),
        ("cookie", "a=b"),
        ("idempotency-key", "k"),
        ("content-type", "x/y"),
        ("content-encoding", "x"),
    ] {
        let sent = value.split(", ").next().unwrap_or_default();
        let lines = format!("connection: {name}\r\n{name}: {sent}");
        cases.push(
            case(
                &format!("Connection: {name}"),
                put(&lines),
                "200 200",
                passed,
            )
            .with(name, value),
        );
    }
    for name in [
        "host",
        "content-length",
        "Host, Content-Length, close-not",
        "transfer-encoding",
        "connection",
        "te",
        "expect",
        "trailer",
        "x-friday-release",
    ] {
        cases.push(case(
            &format!("Connection: {name}"),
            put(&format!("connection: {name}")),
            "200 200",
            passed,
        ));
    }
    let chunked = "PUT / HTTP/1.1\r\nhost: a\r\nconnection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    cases.push(case(
        "Connection: transfer-encoding, chunked",
        chunked,
        "200 200",
        passed,
    ));
    check(cases).await;
}
