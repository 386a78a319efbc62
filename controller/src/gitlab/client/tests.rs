use super::*;

fn exchanged(status: u16, headers: &[(&'static str, &str)], body: &str) -> Exchanged {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(HeaderName::from_static(name), value.parse().unwrap());
    }
    Exchanged {
        status: StatusCode::from_u16(status).unwrap(),
        headers: map,
        body: Bytes::from(body.to_owned()),
    }
}

#[test]
fn a_refusals_words_are_found_in_every_form_of_them() {
    let cases = [
        (
            r#"{"message":"404 Project Not Found"}"#,
            "404 Project Not Found",
        ),
        (
            r#"{"message":{"status":["Cannot transition status via :run from :success"]}}"#,
            "status: Cannot transition status via :run from :success",
        ),
        (
            r#"{"error":"status does not have a valid value"}"#,
            "status does not have a valid value",
        ),
        (
            r#"{"error":"insufficient_scope","error_description":"needs more","scope":"api"}"#,
            "insufficient_scope: needs more",
        ),
        ("Retry later\n", "Retry later"),
        ("", "no words"),
        ("{}", "no words"),
    ];
    for (body, expected) in cases {
        assert_eq!(message(body.as_bytes()), expected, "{body}");
    }
    assert_eq!(
        message("x".repeat(5_000).as_bytes()).len(),
        MESSAGE_CHARS_MAX
    );
}

#[test]
fn says_how_long_to_wait() {
    let date = "Mon, 02 Mar 2026 09:40:00 GMT";
    let seconds = |headers: &[(&'static str, &str)]| {
        wait(&exchanged(429, headers, "").headers).map(|wait| wait.as_secs())
    };
    assert_eq!(
        seconds(&[("retry-after", "30"), ("ratelimit-reset", "1")]),
        Some(30)
    );
    assert_eq!(
        seconds(&[
            ("retry-after", "Mon, 02 Mar 2026 09:41:00 GMT"),
            ("date", date)
        ]),
        Some(60)
    );
    assert_eq!(
        seconds(&[("ratelimit-reset", "1772444430"), ("date", date)]),
        Some(30)
    );
    assert_eq!(seconds(&[("ratelimit-reset", "1772444430")]), None);
    assert_eq!(seconds(&[]), None);
    assert_eq!(
        seconds(&[("retry-after", "99999999")]),
        Some(WAIT_MAX.as_secs())
    );
    assert_eq!(seconds(&[("retry-after", "soon")]), None);
}

#[test]
fn finds_the_next_page() {
    let link = "<https://g.example/api/v4/x?page=1>; rel=\"first\", <https://g.example/api/v4/x?page=3>; rel=\"next\"";
    assert_eq!(
        next_page(link).as_deref(),
        Some("https://g.example/api/v4/x?page=3")
    );
    assert_eq!(next_page("<https://g.example/>; rel=\"last\""), None);
}

#[test]
fn tells_apart_what_may_succeed_later() {
    let temporary = |status: u16, body: &str| {
        read("GET /x".to_owned(), &exchanged(status, &[], body))
            .unwrap_err()
            .is_temporary()
    };
    for status in [408, 409, 429, 500, 502, 503, 599] {
        assert!(temporary(status, "{}"), "{status}");
    }
    for status in [400, 401, 403, 404, 422] {
        assert!(!temporary(status, "{}"), "{status}");
    }
    assert!(temporary(200, "<html>Deploy in progress</html>"));
    let answer = read("DELETE /x".to_owned(), &exchanged(204, &[], "")).unwrap();
    assert_eq!(answer.body, Value::Null);
}

#[test]
fn a_secret_is_one_word_and_is_never_printed() {
    let secret = Secret::from_text(" glpat-abc\n").unwrap();
    assert_eq!(secret.reveal(), "glpat-abc");
    assert!(!format!("{secret:?} {:?}", Credential::Job(secret.clone())).contains("abc"));
    assert!(secret.header("").is_sensitive());
    for text in ["", " \n", "two words", "ü"] {
        assert!(Secret::from_text(text).is_none(), "{text:?}");
    }
}

#[test]
fn tokens_go_to_gitlab_alone_and_never_in_the_clear() {
    for url in [
        "http://gitlab.example.com",
        "ftp://gitlab.example.com",
        "gitlab",
        "https://me:pw@gitlab.example.com",
    ] {
        let error = Gitlab::new(url, None, None).unwrap_err().to_string();
        assert!(!error.contains("pw@"), "{error}");
    }
    let gitlab = Gitlab::new("http://127.0.0.1:9/git/", None, None).unwrap();
    assert_eq!(gitlab.url(), "http://127.0.0.1:9/git");
    assert!(
        gitlab
            .within(&Method::GET, "http://127.0.0.1:10/git/x")
            .is_err()
    );
    assert!(
        gitlab
            .within(&Method::GET, "http://127.0.0.1:9/oauth/discovery/keys")
            .is_ok()
    );
    assert_eq!(encode("acme/shop ü"), "acme%2Fshop%20%C3%BC");
}
