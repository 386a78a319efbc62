use super::*;

const VARIABLES: &[(&str, &str)] = &[
    ("CI_PROJECT_ID", "42"),
    ("CI_PROJECT_PATH", "shop/web"),
    ("CI_PIPELINE_ID", "1001"),
    ("CI_JOB_ID", "5005"),
    ("CI_JOB_NAME", "canary: production"),
    ("CI_COMMIT_SHA", "0123456789abcdef0123456789abcdef01234567"),
    ("CI_COMMIT_REF_NAME", "main"),
    ("CI_COMMIT_TAG", ""),
    ("GITLAB_USER_LOGIN", "ada"),
    ("GITLAB_USER_ID", "7"),
    (
        "CI_PIPELINE_URL",
        "https://gitlab.example.com/shop/web/-/pipelines/1001",
    ),
    ("CI_JOB_URL", "javascript:alert(1)"),
];

fn read(changed: &[(&str, &str)]) -> Option<Origin> {
    Origin::from_environment(&|name| {
        let found = |list: &[(&str, &str)]| {
            list.iter()
                .find(|(there, _)| *there == name)
                .map(|(_, value)| (*value).to_owned())
        };
        found(changed).or_else(|| found(VARIABLES))
    })
}

#[test]
fn reads_what_a_job_knows_of_itself() {
    let origin = read(&[]).unwrap();
    assert_eq!(
        (origin.project_id, origin.pipeline_id, origin.job_id),
        (42, 1001, 5005)
    );
    assert_eq!(origin.job_name, "canary: production");
    assert!(
        !origin.ref_is_tag,
        "an empty variable is one that is not set"
    );
    assert_eq!((origin.user_id, origin.merge_request_iid), (Some(7), None));
    assert!(origin.pipeline_url.is_some());
    assert_eq!(
        origin.job_url, None,
        "a link that runs something is no link"
    );
    assert_eq!(origin.check(), Ok(()));
    let tagged = read(&[("CI_COMMIT_TAG", "v1.2.0"), ("CI_MERGE_REQUEST_IID", "9")]).unwrap();
    assert!(tagged.ref_is_tag);
    assert_eq!(tagged.merge_request_iid, Some(9));
}

#[test]
fn outside_of_a_job_there_is_none() {
    assert_eq!(Origin::from_environment(&|_| None), None);
    for missing in ["CI_PROJECT_ID", "CI_PIPELINE_ID", "CI_JOB_ID"] {
        for value in ["", "  ", "x", "-1"] {
            assert_eq!(read(&[(missing, value)]), None, "{missing}={value:?}");
        }
    }
}

#[test]
fn stands_in_json_without_what_is_not_known() {
    let origin = read(&[("GITLAB_USER_ID", ""), ("CI_PIPELINE_URL", "")]).unwrap();
    let text = serde_json::to_string(&origin).unwrap();
    for absent in [
        "user_id",
        "merge_request_iid",
        "pipeline_url",
        "job_url",
        "server_url",
    ] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    assert_eq!(serde_json::from_str::<Origin>(&text).unwrap(), origin);
}

#[test]
fn refuses_what_is_too_long_or_no_link() {
    let good = read(&[]).unwrap();
    let long = Origin {
        ref_name: "x".repeat(TEXT_BYTES_MAX + 1),
        ..good.clone()
    };
    assert!(long.check().unwrap_err().contains("origin.ref_name"));
    for bad in [
        "javascript:alert(1)",
        "file:///etc/passwd",
        "https://",
        "/x",
        "",
    ] {
        let linked = Origin {
            job_url: Some(bad.to_owned()),
            ..good.clone()
        };
        assert!(
            linked.check().unwrap_err().contains("origin.job_url"),
            "{bad:?}"
        );
    }
}

/// A member, and how it is spoilt.
type Case = (&'static str, fn(&mut Origin));

#[test]
fn an_address_is_one_word_and_a_commit_is_a_hash() {
    let good = read(&[]).unwrap();
    let table: [Case; 8] = [
        ("job_url", |origin| {
            origin.job_url = Some("https://x/\n/close\n\n@all\n".into());
        }),
        ("pipeline_url", |origin| {
            origin.pipeline_url = Some("https://x/\ta".into());
        }),
        ("server_url", |origin| {
            origin.server_url = Some(" https://x/".into());
        }),
        ("job_url", |origin| {
            origin.job_url = Some("https://x/\u{2028}/close".into());
        }),
        ("sha", |origin| origin.sha = "..".into()),
        ("sha", |origin| origin.sha = "0".repeat(65)),
        ("ref_name", |origin| origin.ref_name = "..".into()),
        ("ref_name", |origin| origin.ref_name = ".".into()),
    ];
    for (field, spoil) in table {
        let mut origin = good.clone();
        spoil(&mut origin);
        let said = origin.check().unwrap_err();
        assert!(said.contains(&format!("origin.{field} ")), "{said}");
    }
    let unknown = Origin {
        sha: String::new(),
        ..good
    };
    assert_eq!(unknown.check(), Ok(()));
}
