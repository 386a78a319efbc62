//! Where a release comes from, when a token says so too: the token's word counts.
//!
//! What is told to GitLab is told to the project of the origin, with the controller's own token: so nobody names a project
//! whose pipelines they are no part of.

use axum::http::StatusCode;

use super::error::ApiError;
use crate::auth::Caller;
use crate::origin::Origin;

/// The origin of a release that `caller` asks for, with what is certain of it in place of what was said. `is_known` says of
/// a project whether a machine's token may name it.
///
/// # Errors
/// The request says to be of another job than its token is.
pub(super) fn of(
    said: Option<Origin>,
    caller: Option<&Caller>,
    is_known: impl Fn(u64) -> bool,
) -> Result<Option<Origin>, ApiError> {
    let Some(caller) = caller else {
        return Ok(said);
    };
    let Some(identity) = &caller.identity else {
        return Ok(said.filter(|said| {
            let is_known = is_known(said.project_id);
            if !is_known {
                tracing::warn!(
                    caller = %caller.name, project_id = said.project_id,
                    "no grant of --identities is for this project: nothing is told to it"
                );
            }
            is_known
        }));
    };
    let (Some(project_id), Some(pipeline_id), Some(job_id)) =
        (identity.project_id, identity.pipeline_id, identity.job_id)
    else {
        // A person is in no pipeline, whatever is said.
        return Ok(None);
    };
    let sha = identity.sha.clone().unwrap_or_default();
    let certain = Origin {
        project_id,
        project_path: identity.project_path.clone().unwrap_or_default(),
        pipeline_id,
        job_id,
        job_name: String::new(),
        sha,
        ref_name: identity.ref_name.clone().unwrap_or_default(),
        ref_is_tag: identity.ref_is_tag,
        user_login: identity.login.clone(),
        user_id: identity.user_id,
        // No token says which: those of its commit are asked for.
        merge_request_iid: None,
        pipeline_url: None,
        job_url: None,
        server_url: None,
    };
    let Some(said) = said else {
        return Ok(Some(certain));
    };
    let of = |origin: &Origin| (origin.project_id, origin.pipeline_id, origin.job_id);
    if of(&said) != of(&certain) || said.sha != certain.sha {
        tracing::warn!(rule = "origin", job_id, pipeline_id, project_id, "refused");
        let detail = format!(
            "rule \"origin\": the token is of job {job_id} of pipeline {pipeline_id} of project {project_id} on commit {}; the request says job {} of pipeline {} of project {} on commit {}",
            certain.sha, said.job_id, said.pipeline_id, said.project_id, said.sha
        );
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    Ok(Some(Origin {
        job_name: said.job_name,
        pipeline_url: said.pipeline_url,
        job_url: said.job_url,
        server_url: said.server_url,
        ..certain
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Identity, Role};

    fn granted(identity: Identity) -> Caller {
        let mut caller = Caller::of_token("granted", Role::Operator);
        caller.identity = Some(identity);
        caller
    }

    #[test]
    fn what_a_token_says_counts_and_another_job_is_refused() {
        let person = Identity::of_person("https://gitlab.example.com", Some(42), "dana");
        let job = Identity {
            project_id: Some(4711),
            project_path: Some("acme/shop".to_owned()),
            pipeline_id: Some(90_001),
            job_id: Some(500_123),
            sha: Some("abc".to_owned()),
            ref_name: Some("main".to_owned()),
            ..person.clone()
        };
        let (job, person) = (granted(job), granted(person));
        let machine = Caller::of_token("ci", Role::Operator);
        let of = |said: Option<Origin>, caller: Option<&Caller>| of(said, caller, |id| id == 4711);
        let alone = of(None, Some(&job)).unwrap().unwrap();
        assert_eq!((alone.user_id, alone.ref_name.as_str()), (Some(42), "main"));
        let said = Origin {
            user_id: Some(1),
            user_login: "root".to_owned(),
            job_name: "canary".to_owned(),
            merge_request_iid: Some(7),
            ..alone.clone()
        };
        let made = of(Some(said.clone()), Some(&job)).unwrap().unwrap();
        assert_eq!((made.user_id, made.job_name.as_str()), (Some(42), "canary"));
        assert_eq!(made.merge_request_iid, None, "no token says so");
        // Where nobody has to sign in everybody may do everything.
        assert_eq!(of(Some(said.clone()), None).unwrap(), Some(said.clone()));
        assert_eq!(of(Some(said.clone()), Some(&person)).unwrap(), None);
        let made = of(Some(said.clone()), Some(&machine)).unwrap();
        assert_eq!(made, Some(said.clone()));
        let elsewhere = Origin {
            project_id: 4712,
            ..said.clone()
        };
        assert_eq!(of(Some(elsewhere), Some(&machine)).unwrap(), None);
        for other in [
            Origin {
                project_id: 1,
                ..said.clone()
            },
            Origin {
                pipeline_id: 1,
                ..said.clone()
            },
            Origin {
                job_id: 1,
                ..said.clone()
            },
            Origin {
                sha: "def".to_owned(),
                ..said
            },
        ] {
            assert_eq!(of(Some(other), Some(&job)).unwrap_err().code(), "forbidden");
        }
    }
}
