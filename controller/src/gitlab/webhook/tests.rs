//! GitLab's own vectors, and what an attacker would send.

use http::{HeaderName, HeaderValue};

use super::*;

/// From `tests/data/gitlab/webhook-deliveries.json`: GitLab 19.0 and later, with a signing token.
const SIGNING_TOKEN: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const ID: &str = "f5e5f430-f57b-4e6e-9fac-d9128cd7232f";
const TIME: &str = "1772444400";
const SIGNATURE: &str = "v1,e67pTJV1impkueU2QKYoZRQPnGNgF+sh8APQmNHJeXY=";
const SECRET_TOKEN: &str = "correct horse battery staple";
const BODY: &str = include_str!("../../../../tests/data/gitlab/webhook-signed-body.json");

type Pair<'a> = (&'static str, &'a str);
type Headers<'a> = &'a [Pair<'a>];
/// What it is, the keys, the headers, the body, how far our clock is off, and what is said.
type Case<'a> = (&'a str, &'a Keys, Vec<Pair<'a>>, &'a str, i64, Rejected);

fn headers(pairs: Headers<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        headers.append(HeaderName::from_static(name), value);
    }
    headers
}

fn now(offset: i64) -> Timestamp {
    Timestamp::from_second(1_772_444_400 + offset).unwrap()
}

const SIGNED: Headers<'static> = &[
    ("webhook-id", ID),
    ("webhook-timestamp", TIME),
    ("webhook-signature", SIGNATURE),
];

#[test]
fn takes_the_deliveries_of_gitlabs_own_documents() {
    let signing = Keys::new(None, Some(SIGNING_TOKEN)).unwrap();
    let id = signing.verify(&headers(SIGNED), BODY.as_bytes(), now(0));
    assert_eq!(id, Ok(Some(ID.to_owned())));
    let secret = Keys::new(Some(SECRET_TOKEN), None).unwrap();
    let plain = headers(&[("x-gitlab-token", SECRET_TOKEN), ("idempotency-key", ID)]);
    let id = secret.verify(&plain, BODY.as_bytes(), now(1_000_000));
    assert_eq!(id, Ok(Some(ID.to_owned())));
    // A version that sends no id is taken too.
    let old = headers(&[("x-gitlab-token", SECRET_TOKEN)]);
    assert_eq!(secret.verify(&old, BODY.as_bytes(), now(0)), Ok(None));
    // At the very edge of the tolerance; and a second signature beside, as while a token is replaced.
    for offset in [-TOLERANCE_SECONDS, TOLERANCE_SECONDS] {
        assert!(
            signing
                .verify(&headers(SIGNED), BODY.as_bytes(), now(offset))
                .is_ok()
        );
    }
    let two = format!("v1,AAAA v2,x {SIGNATURE}");
    let two = headers(&[SIGNED[0], SIGNED[1], ("webhook-signature", &two)]);
    assert!(signing.verify(&two, BODY.as_bytes(), now(0)).is_ok());
}

#[test]
fn refuses_every_hostile_delivery() {
    let signing = Keys::new(None, Some(SIGNING_TOKEN)).unwrap();
    let secret = Keys::new(Some(SECRET_TOKEN), None).unwrap();
    let both = Keys::new(Some(SECRET_TOKEN), Some(SIGNING_TOKEN)).unwrap();
    let other = Keys::new(
        None,
        Some("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    )
    .unwrap();
    let none = Keys::default();
    let [id, time, signature] = [SIGNED[0], SIGNED[1], SIGNED[2]];
    let token = ("x-gitlab-token", SECRET_TOKEN);
    let long_id = "i".repeat(ID_BYTES_MAX + 1);
    let many = format!("{}{SIGNATURE}", "v1,AAAA ".repeat(SIGNATURES_MAX));
    let long = format!("{}{SIGNATURE}", "x ".repeat(HEADER_BYTES_MAX / 2));
    let table: Vec<Case<'_>> = vec![
        (
            "nothing",
            &signing,
            vec![],
            BODY,
            0,
            Rejected::Header("webhook-id"),
        ),
        (
            "no signature, though id and time are there",
            &signing,
            vec![id, time],
            BODY,
            0,
            Rejected::Header("webhook-signature"),
        ),
        (
            "no time",
            &signing,
            vec![id, signature],
            BODY,
            0,
            Rejected::Header("webhook-timestamp"),
        ),
        (
            "no id",
            &signing,
            vec![time, signature],
            BODY,
            0,
            Rejected::Header("webhook-id"),
        ),
        (
            "the secret token in place of a signature",
            &both,
            vec![token],
            BODY,
            0,
            Rejected::Header("webhook-id"),
        ),
        (
            "a signature without the secret token",
            &both,
            vec![id, time, signature],
            BODY,
            0,
            Rejected::Token,
        ),
        (
            "another key",
            &other,
            vec![id, time, signature],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "another body",
            &signing,
            vec![id, time, signature],
            "{}",
            0,
            Rejected::Signature,
        ),
        (
            "the body with a line's end",
            &signing,
            vec![id, time, signature],
            "\n",
            0,
            Rejected::Signature,
        ),
        (
            "an empty body",
            &signing,
            vec![id, time, signature],
            "",
            0,
            Rejected::Signature,
        ),
        (
            "another id",
            &signing,
            vec![("webhook-id", "another"), time, signature],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "another time",
            &signing,
            vec![id, ("webhook-timestamp", "1772444401"), signature],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "id and time that only together say the same",
            &signing,
            vec![
                ("webhook-id", "f5e5f430-f57b-4e6e-9fac-d9128cd7232f.1"),
                ("webhook-timestamp", "772444400"),
                signature,
            ],
            BODY,
            -1_000_000_000,
            Rejected::Signature,
        ),
        (
            "kept for later",
            &signing,
            vec![id, time, signature],
            BODY,
            TOLERANCE_SECONDS + 1,
            Rejected::Stale,
        ),
        (
            "from the future",
            &signing,
            vec![id, time, signature],
            BODY,
            -TOLERANCE_SECONDS - 1,
            Rejected::Stale,
        ),
        (
            "a time with a sign",
            &signing,
            vec![id, ("webhook-timestamp", "+1772444400"), signature],
            BODY,
            0,
            Rejected::Malformed("webhook-timestamp"),
        ),
        (
            "a time with blanks",
            &signing,
            vec![id, ("webhook-timestamp", " 1772444400"), signature],
            BODY,
            0,
            Rejected::Malformed("webhook-timestamp"),
        ),
        (
            "a time that is none",
            &signing,
            vec![id, ("webhook-timestamp", "now"), signature],
            BODY,
            0,
            Rejected::Malformed("webhook-timestamp"),
        ),
        (
            "a time too large for a number",
            &signing,
            vec![id, ("webhook-timestamp", "99999999999999999999"), signature],
            BODY,
            0,
            Rejected::Malformed("webhook-timestamp"),
        ),
        (
            "two ids",
            &signing,
            vec![id, id, time, signature],
            BODY,
            0,
            Rejected::Header("webhook-id"),
        ),
        (
            "two times",
            &signing,
            vec![id, time, ("webhook-timestamp", "0"), signature],
            BODY,
            0,
            Rejected::Header("webhook-timestamp"),
        ),
        (
            "two headers of signatures",
            &signing,
            vec![id, time, ("webhook-signature", "v1,AAAA"), signature],
            BODY,
            0,
            Rejected::Header("webhook-signature"),
        ),
        (
            "an id too long",
            &signing,
            vec![("webhook-id", &long_id), time, signature],
            BODY,
            0,
            Rejected::Malformed("webhook-id"),
        ),
        (
            "an id of blanks",
            &signing,
            vec![("webhook-id", "a b"), time, signature],
            BODY,
            0,
            Rejected::Malformed("webhook-id"),
        ),
        (
            "an empty id",
            &signing,
            vec![("webhook-id", ""), time, signature],
            BODY,
            0,
            Rejected::Malformed("webhook-id"),
        ),
        (
            "an empty signature",
            &signing,
            vec![id, time, ("webhook-signature", "")],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "a version without a signature",
            &signing,
            vec![id, time, ("webhook-signature", "v1,")],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "a signature without a version",
            &signing,
            vec![id, time, ("webhook-signature", &SIGNATURE[3..])],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "another version",
            &signing,
            vec![
                id,
                time,
                (
                    "webhook-signature",
                    "v1a,e67pTJV1impkueU2QKYoZRQPnGNgF+sh8APQmNHJeXY=",
                ),
            ],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "no base64",
            &signing,
            vec![id, time, ("webhook-signature", "v1,***")],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "a signature cut short",
            &signing,
            vec![
                id,
                time,
                (
                    "webhook-signature",
                    "v1,e67pTJV1impkueU2QKYoZRQPnGNgF+sh8APQmNHJeQ==",
                ),
            ],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "the right one behind very many",
            &signing,
            vec![id, time, ("webhook-signature", &many)],
            BODY,
            0,
            Rejected::Signature,
        ),
        (
            "a header too long",
            &signing,
            vec![id, time, ("webhook-signature", &long)],
            BODY,
            0,
            Rejected::Malformed("webhook-signature"),
        ),
        ("no secret token", &secret, vec![], BODY, 0, Rejected::Token),
        (
            "an empty secret token",
            &secret,
            vec![("x-gitlab-token", "")],
            BODY,
            0,
            Rejected::Token,
        ),
        (
            "a part of it",
            &secret,
            vec![("x-gitlab-token", "correct horse")],
            BODY,
            0,
            Rejected::Token,
        ),
        (
            "it and more",
            &secret,
            vec![("x-gitlab-token", "correct horse battery staple ")],
            BODY,
            0,
            Rejected::Token,
        ),
        (
            "in capitals",
            &secret,
            vec![("x-gitlab-token", "CORRECT HORSE BATTERY STAPLE")],
            BODY,
            0,
            Rejected::Token,
        ),
        (
            "twice",
            &secret,
            vec![token, token],
            BODY,
            0,
            Rejected::Token,
        ),
        (
            "in another header",
            &secret,
            vec![("authorization", SECRET_TOKEN)],
            BODY,
            0,
            Rejected::Token,
        ),
        (
            "a signature where a secret token is expected",
            &secret,
            vec![id, time, signature],
            BODY,
            0,
            Rejected::Token,
        ),
        (
            "anything, where there is no key",
            &none,
            vec![id, time, signature, token],
            BODY,
            0,
            Rejected::Token,
        ),
        (
            "nothing, where there is no key",
            &none,
            vec![],
            BODY,
            0,
            Rejected::Token,
        ),
    ];
    assert!(table.len() >= 40, "{}", table.len());
    for (what, keys, pairs, body, offset, expected) in table {
        let (headers, now) = (headers(&pairs), now(offset));
        let outcome = keys.verify(&headers, body.as_bytes(), now);
        assert_eq!(outcome, Err(expected), "{what}");
        // Whatever is not the signature's own is known before the body.
        let head = keys.check_head(&headers, now);
        let by_head = (expected != Rejected::Signature).then_some(expected);
        assert_eq!(head.err(), by_head, "{what}");
    }
}

#[test]
fn takes_no_key_that_is_none_and_shows_no_key() {
    let table = [
        (Some(""), None),
        (Some("\n"), None),
        (None, Some("")),
        (None, Some("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")),
        (None, Some("whsec_")),
        (None, Some("whsec_AAECAwQF")),
        (None, Some("whsec_***")),
    ];
    for (secret, signing) in table {
        assert!(
            Keys::new(secret, signing).is_err(),
            "{secret:?} {signing:?}"
        );
    }
    let keys = Keys::new(Some("hunter2\n"), Some(SIGNING_TOKEN)).unwrap();
    assert_eq!(format!("{keys:?}"), "Keys { secret: true, signing: true }");
}

#[test]
fn reads_what_it_acts_on_and_lets_the_rest_be() {
    let sample = |text: &str| hint(text.as_bytes()).unwrap();
    let pipeline = include_str!("../../../../tests/data/gitlab/webhook-pipeline.json");
    let expected = Hint::Pipeline {
        project_id: 4711,
        pipeline_id: 90_001,
        status: "manual".to_owned(),
    };
    assert_eq!(sample(pipeline), expected);
    let push = include_str!("../../../../tests/data/gitlab/webhook-push.json");
    assert_eq!(sample(push), Hint::Push { project_id: 4711 });
    for other in [
        BODY,
        "{}",
        r#"{"object_kind":"pipeline"}"#,
        r#"{"object_kind":"pipeline","project":{"id":1},"object_attributes":{"id":null}}"#,
        r#"{"object_kind":"wiki_page","project":{"id":1}}"#,
    ] {
        assert_eq!(sample(other), Hint::Other, "{other}");
    }
    let deep = "[".repeat(100_000);
    for broken in [
        "",
        "null",
        "7",
        "{",
        "\u{0}",
        r#"{"object_kind":7}"#,
        r#"{"project":{"id":-1}}"#,
        &deep,
    ] {
        assert!(hint(broken.as_bytes()).is_err(), "{broken:.20}");
    }
}
