//! Every rule by itself, and a table of tokens that nobody should be let in by.

use controller_testing::identity::{Signer, encode, hmac_token, unsigned};
use rollout::{Duration, Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::auth::jws::TOKEN_BYTES_MAX;
use crate::auth::replay::Seen;
use crate::auth::rules::{Role, Rule};
use crate::auth::terms::{Denied, Grant, Pattern, SOURCES, Scope, Target, Terms, allows};

/// GitLab's own claims of a good production job.
const GOOD: &str = include_str!("../../../../tests/data/gitlab/id-token-claims.json");
const BY_ID: &str =
    include_str!("../../../../tests/data/gitlab/id-token-claims-subject-by-id.json");
const FORK: &str =
    include_str!("../../../../tests/data/gitlab/id-token-claims-fork-merge-request.json");

/// When the sample was made, in seconds since 1970.
const MADE: i64 = 1_772_442_900;

const SHA: &str = "3f1c9e0b7a5d4c2e8f6a1b0c9d8e7f6a5b4c3d2e";

/// A controller that lets one project into production, and what it has seen.
struct House {
    keys: KeySet,
    policy: IdTokenPolicy,
    grants: Vec<Grant>,
    seen: Seen,
}

impl House {
    fn new() -> Self {
        let keys = json!({ "keys": [Signer::first().public()] }).to_string();
        let only = |name: &str| Scope::Only(vec![Pattern(name.to_owned())]);
        Self {
            keys: KeySet::read(keys.as_bytes()).unwrap(),
            policy: IdTokenPolicy {
                issuer: "https://gitlab.example.com".to_owned(),
                audience: "https://cd.example.com".to_owned(),
                lifetime_max: LIFETIME_MAX,
                projects: vec![4711],
            },
            grants: vec![Grant {
                role: Role::Operator,
                services: only("shop"),
                environments: only("production"),
                terms: Some(Terms {
                    protected: true,
                    refs: only("main"),
                    ref_types: vec!["branch".to_owned()],
                    sources: SOURCES.map(str::to_owned).to_vec(),
                    tier: Some("production".to_owned()),
                    runner_environment: Some("self-hosted".to_owned()),
                    runners: vec![7],
                    definition: Some(
                        "gitlab.example.com/acme/shop//.gitlab-ci.yml@refs/heads/main".to_owned(),
                    ),
                }),
            }],
            seen: Seen::default(),
        }
    }

    /// All the rules, as the API goes through them.
    fn ask(&self, token: &str, rule: Rule, target: &Target<'_>, at: i64) -> Result<Claims, String> {
        let now = Timestamp::from_second(at).unwrap();
        let checked = Unverified::read(token)
            .and_then(|token| verify(token, &self.keys, &self.policy, now))
            .and_then(|claims| self.seen.note(&claims, now).map(|()| claims));
        let claims = checked.map_err(|refusal| refusal.rule().to_owned())?;
        match allows(&self.grants, Some(&claims), "dana", rule, target) {
            Ok(()) => Ok(claims),
            Err(Denied::By(refusal)) => Err(refusal.rule().to_owned()),
            Err(Denied::Role(role)) => Err(format!("role {role}")),
        }
    }

    fn deploy(&self, token: &str) -> Result<Claims, String> {
        self.ask(token, Rule::Operate, &PRODUCTION, MADE + 60)
    }
}

const PRODUCTION: Target<'static> = Target {
    service: "shop",
    environment: "production",
    commit: Some(SHA),
    project: Some(4711),
};

fn good() -> Value {
    serde_json::from_str(GOOD).unwrap()
}

/// The good claims with these in place of theirs; `null` takes one away.
fn with(changes: Value) -> Value {
    let mut claims = good();
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    claims
}

#[test]
fn a_good_job_is_let_in_and_known_by_its_claims() {
    let (house, signer) = (House::new(), Signer::first());
    let claims = house.deploy(&signer.token(&good())).unwrap();
    let identity = claims.identity();
    assert_eq!(identity.user_id, Some(42));
    assert_eq!(identity.job_id, Some(500_123));
    assert_eq!(identity.pipeline_id, Some(90_001));
    assert_eq!(identity.name(), "gitlab user 42 (for dana)");
    // The subject is never read: a project may choose what it is made of.
    let by_id: Value = serde_json::from_str(BY_ID).unwrap();
    assert!(house.deploy(&signer.token(&by_id)).is_ok());
    // One job calls many times; a list of one audience is one; the clocks may differ by a minute.
    assert!(house.deploy(&signer.token(&good())).is_ok());
    let listed = with(json!({ "aud": ["https://cd.example.com"] }));
    assert!(house.deploy(&signer.token(&listed)).is_ok());
    for at in [MADE - 60, MADE + 3600 + 59] {
        let token = signer.token(&good());
        assert!(house.ask(&token, Rule::Operate, &PRODUCTION, at).is_ok());
    }
    // GitLab before 18.4 does not say whose pipeline it is.
    let old = with(json!({ "job_project_id": null }));
    assert!(house.deploy(&signer.token(&old)).is_ok());
    let lower = signer.sign(
        &json!({ "alg": "RS256", "kid": signer.key_id() }).to_string(),
        &good().to_string(),
    );
    assert!(house.deploy(&lower).is_ok());
}

/// Each token, and the rule that refuses it.
#[test]
fn hostile_tokens_are_refused_each_by_its_rule() {
    let signer = Signer::first();
    let other = Signer::second();
    let header = |changes: Value| {
        let mut header = signer.header();
        for (name, value) in changes.as_object().unwrap() {
            header[name] = value.clone();
        }
        header.to_string()
    };
    let payload = good().to_string();
    let named = |name: &str| json!({ "alg": name, "kid": signer.key_id() }).to_string();
    let public = serde_json::to_vec(&signer.public()).unwrap();
    let whole = signer.token(&good());
    let parts: Vec<&str> = whole.split('.').collect();
    let stranger = json!({ "alg": "RS256", "kid": other.key_id(), "typ": "JWT" }).to_string();
    let fork: Value = serde_json::from_str(FORK).unwrap();
    let evil = with(json!({ "user_login": "mallory" })).to_string();
    let claim = |changes: Value| signer.token(&with(changes));

    let table: Vec<(&str, String, &str)> = vec![
        // Form, algorithm, header, key.
        (
            "too large",
            format!("{whole}{}", "A".repeat(TOKEN_BYTES_MAX)),
            "size",
        ),
        (
            "too large by its claims",
            claim(json!({ "groups_direct": "g".repeat(TOKEN_BYTES_MAX) })),
            "size",
        ),
        ("two parts", format!("{}.{}", parts[0], parts[1]), "form"),
        ("four parts", format!("{whole}.x"), "form"),
        ("encrypted, five parts", "a.b.c.d.e".to_owned(), "form"),
        (
            "header is no base64",
            format!("e30=.{}.{}", parts[1], parts[2]),
            "form",
        ),
        (
            "header is no JSON",
            format!("{}.{}.{}", encode(b"alg"), parts[1], parts[2]),
            "form",
        ),
        ("header is a list", signer.sign("[]", &payload), "form"),
        (
            "header says alg twice",
            signer.sign(
                &format!(
                    r#"{{"alg":"none","alg":"RS256","kid":"{}"}}"#,
                    signer.key_id()
                ),
                &payload,
            ),
            "form",
        ),
        (
            "another type",
            signer.sign(&header(json!({ "typ": "at+jwt" })), &payload),
            "form",
        ),
        (
            "alg none, unsigned",
            format!("{}.", unsigned(&named("none"), &payload)),
            "algorithm",
        ),
        (
            "alg None",
            format!("{}.", unsigned(&named("None"), &payload)),
            "algorithm",
        ),
        (
            "alg none, signed",
            signer.sign(&named("none"), &payload),
            "algorithm",
        ),
        (
            "alg missing",
            signer.sign(&json!({ "kid": signer.key_id() }).to_string(), &payload),
            "algorithm",
        ),
        (
            "alg null",
            signer.sign(&header(json!({ "alg": null })), &payload),
            "algorithm",
        ),
        (
            "alg a list",
            signer.sign(&header(json!({ "alg": ["RS256"] })), &payload),
            "algorithm",
        ),
        (
            "HS256 with the public key",
            hmac_token(&public, &named("HS256"), &payload),
            "algorithm",
        ),
        (
            "HS256 with the modulus",
            hmac_token(signer.modulus().as_bytes(), &named("HS256"), &payload),
            "algorithm",
        ),
        (
            "RS512",
            signer.sign_sha512(&named("RS512"), &payload),
            "algorithm",
        ),
        ("PS256", signer.sign(&named("PS256"), &payload), "algorithm"),
        ("ES256", signer.sign(&named("ES256"), &payload), "algorithm"),
        (
            "rs256 in small letters",
            signer.sign(&named("rs256"), &payload),
            "algorithm",
        ),
        (
            "jku",
            signer.sign(
                &header(json!({ "jku": "https://evil.example.net/keys" })),
                &payload,
            ),
            "header",
        ),
        (
            "jku null",
            signer.sign(&header(json!({ "jku": null })), &payload),
            "header",
        ),
        (
            "x5u",
            signer.sign(
                &header(json!({ "x5u": "https://evil.example.net/c.pem" })),
                &payload,
            ),
            "header",
        ),
        (
            "x5c",
            signer.sign(&header(json!({ "x5c": ["MII"] })), &payload),
            "header",
        ),
        (
            "x5t#S256",
            signer.sign(&header(json!({ "x5t#S256": "x" })), &payload),
            "header",
        ),
        (
            "jwk of another",
            other.sign(&header(json!({ "jwk": other.public() })), &payload),
            "header",
        ),
        (
            "crit",
            signer.sign(&header(json!({ "crit": ["exp"] })), &payload),
            "header",
        ),
        (
            "zip",
            signer.sign(&header(json!({ "zip": "DEF" })), &payload),
            "header",
        ),
        (
            "kid missing",
            signer.sign(r#"{"alg":"RS256"}"#, &payload),
            "key-named",
        ),
        (
            "kid empty",
            signer.sign(&header(json!({ "kid": "" })), &payload),
            "key-named",
        ),
        (
            "kid a number",
            signer.sign(&header(json!({ "kid": 1 })), &payload),
            "key-named",
        ),
        (
            "kid too long",
            signer.sign(&header(json!({ "kid": "k".repeat(300) })), &payload),
            "key-named",
        ),
        ("kid unknown", other.sign(&stranger, &payload), "key-known"),
        (
            "kid a path",
            signer.sign(&header(json!({ "kid": "../../dev/null" })), &payload),
            "key-known",
        ),
        // Signature.
        (
            "signed by another",
            other.sign(&header(json!({})), &payload),
            "signature",
        ),
        (
            "claims changed",
            format!("{}.{}.{}", parts[0], encode(evil.as_bytes()), parts[2]),
            "signature",
        ),
        (
            "header changed",
            format!(
                "{}.{}.{}",
                encode(header(json!({ "cty": "x" })).as_bytes()),
                parts[1],
                parts[2]
            ),
            "signature",
        ),
        (
            "signature missing",
            format!("{}.{}.", parts[0], parts[1]),
            "signature",
        ),
        (
            "signature cut",
            format!("{}.{}.{}", parts[0], parts[1], &parts[2][..300]),
            "signature",
        ),
        ("signature padded", format!("{whole}="), "signature"),
        (
            "signature of zeros",
            format!("{}.{}.{}", parts[0], parts[1], encode(&[0; 256])),
            "signature",
        ),
        (
            "RS512 said to be RS256",
            signer.sign_sha512(&header(json!({})), &payload),
            "signature",
        ),
        // Payload, issuer, audience.
        (
            "payload is a list",
            signer.sign(&header(json!({})), "[]"),
            "form",
        ),
        (
            "payload says aud twice",
            signer.sign(
                &header(json!({})),
                &payload.replacen('{', r#"{"aud":"https://cd.example.com","#, 1),
            ),
            "form",
        ),
        (
            "issuer is another",
            claim(json!({ "iss": "https://gitlab.example.net" })),
            "issuer",
        ),
        (
            "issuer with a slash",
            claim(json!({ "iss": "https://gitlab.example.com/" })),
            "issuer",
        ),
        (
            "issuer in capitals",
            claim(json!({ "iss": "https://GitLab.example.com" })),
            "issuer",
        ),
        ("issuer missing", claim(json!({ "iss": null })), "issuer"),
        (
            "issuer a list",
            claim(json!({ "iss": ["https://gitlab.example.com"] })),
            "issuer",
        ),
        (
            "a sign-in token of the same issuer",
            claim(json!({ "aud": "4c1b0e6c" })),
            "audience",
        ),
        (
            "audience missing",
            claim(json!({ "aud": null })),
            "audience",
        ),
        (
            "audience an empty list",
            claim(json!({ "aud": [] })),
            "audience",
        ),
        (
            "audience shared with another",
            claim(json!({ "aud": ["https://cd.example.com", "https://vault.example.com"] })),
            "audience",
        ),
        (
            "audience longer than ours",
            claim(json!({ "aud": "https://cd.example.com.evil.example.net" })),
            "audience",
        ),
        // Times.
        (
            "expired",
            claim(json!({ "iat": MADE - 7200, "nbf": MADE - 7205, "exp": MADE - 3600 })),
            "expiry",
        ),
        (
            "just expired",
            claim(json!({ "iat": MADE - 3600, "nbf": MADE - 3605, "exp": MADE })),
            "expiry",
        ),
        ("no end", claim(json!({ "exp": null })), "claims"),
        (
            "an end as text",
            claim(json!({ "exp": "1772446500" })),
            "claims",
        ),
        (
            "an end with a fraction",
            claim(json!({ "exp": 1_772_446_500.5 })),
            "claims",
        ),
        (
            "an end past all time",
            claim(json!({ "exp": i64::MAX })),
            "claims",
        ),
        (
            "a negative beginning",
            claim(json!({ "iat": -1 })),
            "claims",
        ),
        (
            "not yet good",
            claim(json!({ "nbf": MADE + 200 })),
            "not-before",
        ),
        (
            "from the future",
            claim(json!({ "iat": MADE + 200, "exp": MADE + 400 })),
            "issued-at",
        ),
        (
            "ends before it begins",
            claim(json!({ "exp": MADE + 10, "iat": MADE + 10 })),
            "claims",
        ),
        (
            "good for a day",
            claim(json!({ "exp": MADE + 86_400 })),
            "lifetime",
        ),
        (
            "good for a second too long",
            claim(json!({ "exp": MADE + 3 * 3_600 + 1 })),
            "lifetime",
        ),
        // Claims.
        ("no job", claim(json!({ "job_id": null })), "claims"),
        (
            "no pipeline",
            claim(json!({ "pipeline_id": null })),
            "claims",
        ),
        ("no commit", claim(json!({ "sha": null })), "claims"),
        (
            "a short commit",
            claim(json!({ "sha": "3f1c9e0b" })),
            "claims",
        ),
        ("no project", claim(json!({ "project_id": null })), "claims"),
        ("no name", claim(json!({ "jti": null })), "claims"),
        ("an empty job", claim(json!({ "job_id": "" })), "claims"),
        (
            "a job that is a number",
            claim(json!({ "job_id": 500_123 })),
            "claims",
        ),
        (
            "a project with a sign",
            claim(json!({ "project_id": "+4711" })),
            "claims",
        ),
        (
            "a project with a zero",
            claim(json!({ "project_id": "04711" })),
            "claims",
        ),
        ("no user", claim(json!({ "user_id": null })), "claims"),
        (
            "a login with a bracket",
            claim(json!({ "user_login": "x (for dana)" })),
            "claims",
        ),
        (
            "a login with a line break",
            claim(json!({ "user_login": "dana\nroot" })),
            "claims",
        ),
        (
            "protected as a truth value",
            claim(json!({ "ref_protected": true })),
            "claims",
        ),
        // Project and fork.
        (
            "another project",
            claim(json!({ "project_id": "4712", "job_project_id": "4712" })),
            "project",
        ),
        (
            "our path, another number",
            claim(json!({ "project_id": "8888" })),
            "project",
        ),
        ("a fork's merge request", signer.token(&fork), "project"),
        (
            "our token in a fork's pipeline",
            claim(json!({ "job_project_id": "8888" })),
            "fork",
        ),
        (
            "a pipeline of a project that is no text",
            claim(json!({ "job_project_id": 4711 })),
            "fork",
        ),
        // What the job may do.
        (
            "an unprotected branch",
            claim(json!({ "ref_protected": "false" })),
            "protected-ref",
        ),
        (
            "not said to be protected",
            claim(json!({ "ref_protected": null })),
            "protected-ref",
        ),
        (
            "another branch",
            claim(json!({ "ref": "maintenance" })),
            "ref",
        ),
        (
            "a tag of the branch's name",
            claim(json!({ "ref_type": "tag" })),
            "ref",
        ),
        (
            "a merge request's pipeline",
            claim(json!({ "pipeline_source": "merge_request_event" })),
            "source",
        ),
        (
            "a parent's pipeline",
            claim(json!({ "pipeline_source": "parent_pipeline" })),
            "source",
        ),
        (
            "another environment",
            claim(json!({ "environment": "staging" })),
            "environment",
        ),
        (
            "no environment",
            claim(json!({ "environment": null })),
            "environment",
        ),
        (
            "another tier",
            claim(json!({ "deployment_tier": "development" })),
            "tier",
        ),
        (
            "a runner of GitLab's",
            claim(json!({ "runner_environment": "gitlab-hosted" })),
            "runner",
        ),
        ("another runner", claim(json!({ "runner_id": 8 })), "runner"),
        ("no runner", claim(json!({ "runner_id": null })), "runner"),
        (
            "another commit",
            claim(json!({ "sha": "0".repeat(40) })),
            "commit",
        ),
        (
            "defined elsewhere",
            claim(json!({ "ci_config_ref_uri": "gitlab.example.com/mallory/ci//x.yml@main" })),
            "definition",
        ),
        (
            "defined nowhere",
            claim(json!({ "ci_config_ref_uri": null })),
            "definition",
        ),
    ];
    assert!(table.len() >= 40);
    let mut wrong = Vec::new();
    for (name, token, rule) in &table {
        // A house of its own for each, so that none is refused for another's sake.
        match House::new().deploy(token) {
            Err(refused) if refused == *rule => {}
            other => wrong.push(format!("{name}: expected {rule}, got {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_fork_let_in_by_its_number_is_still_a_fork() {
    let mut house = House::new();
    house.policy.projects.push(8888);
    let fork: Value = serde_json::from_str(FORK).unwrap();
    let refused = house.deploy(&Signer::first().token(&fork)).unwrap_err();
    assert_eq!(refused, "fork");
}

#[test]
fn a_name_that_one_job_showed_is_no_other_jobs() {
    let (house, signer) = (House::new(), Signer::first());
    let (mine, other) = (signer.token(&good()), with(json!({ "job_id": "500124" })));
    assert!(house.deploy(&mine).is_ok());
    assert_eq!(house.deploy(&signer.token(&other)).unwrap_err(), "replay");
    assert!(house.deploy(&mine).is_ok(), "the job itself calls again");
}

#[test]
fn a_job_acts_only_where_it_was_let_in() {
    let (house, signer) = (House::new(), Signer::first());
    let token = signer.token(&good());
    let ask = |rule, change: &dyn Fn(&mut Target<'static>)| {
        let mut target = PRODUCTION;
        change(&mut target);
        house.ask(&token, rule, &target, MADE + 60).unwrap_err()
    };
    let operate = Rule::Operate;
    assert_eq!(ask(operate, &|to| to.service = "db"), "grant");
    assert_eq!(ask(operate, &|to| to.environment = "staging"), "grant");
    assert_eq!(ask(operate, &|to| to.commit = Some("abc")), "commit");
    assert_eq!(ask(operate, &|to| to.project = Some(8888)), "own-project");
    assert_eq!(ask(Rule::Approve, &|_| ()), "role operator");
    assert_eq!(ask(Rule::Administer, &|_| ()), "role operator");
    // Back needs no commit: the job of an older pipeline may say so.
    let back = Target {
        commit: None,
        ..PRODUCTION
    };
    assert!(house.ask(&token, operate, &back, MADE + 60).is_ok());
}

#[test]
fn the_longest_lifetime_is_a_setting() {
    let mut house = House::new();
    house.policy.lifetime_max = Duration::from_secs(300);
    let refused = house.deploy(&Signer::first().token(&good()));
    assert_eq!(refused.unwrap_err(), "lifetime");
}

#[test]
fn a_refusal_repeats_no_token() {
    let token = Signer::first().token(&with(json!({ "iss": "https://else.example.com" })));
    let unverified = Unverified::read(&token).unwrap();
    let shown = format!("{unverified:?}");
    let house = House::new();
    let now = Timestamp::from_second(MADE).unwrap();
    let refusal = verify(unverified, &house.keys, &house.policy, now).unwrap_err();
    for part in token.split('.').skip(1) {
        assert!(!refusal.to_string().contains(part) && !shown.contains(part));
    }
    assert!(refusal.to_string().contains("else.example.com"));
}
