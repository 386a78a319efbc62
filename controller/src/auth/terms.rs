//! What is granted, to whom, for what, and on which terms. Pure.
//!
//! A grant is a role for some services in some environments. A person's grant has no terms; a CI job's has those that its
//! token must meet for what it asks for.

use super::id_token::Claims;
use super::refusal::Refusal;
use super::rules::{Role, Rule};

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The service.
    pub service: &'a str,
    /// The environment; `default` where nobody named one.
    pub environment: &'a str,
    /// The commit of the release that is to be started or to go further, if it has one; `None` for what only goes back.
    pub commit: Option<&'a str>,
    /// The project whose pipeline started the rollout, if one did.
    pub project: Option<u64>,
}

/// Which names are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// All there are.
    All,
    /// Those that one of these patterns fits.
    Only(Vec<Pattern>),
}

impl Scope {
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(patterns) => patterns.iter().any(|pattern| pattern.fits(name)),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::All => "all".to_owned(),
            Self::Only(patterns) => {
                let all: Vec<&str> = patterns.iter().map(|pattern| pattern.0.as_str()).collect();
                all.join(", ")
            }
        }
    }
}

/// A name in which `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(pub(super) String);

impl Pattern {
    /// Whether all of `name` fits.
    pub(super) fn fits(&self, name: &str) -> bool {
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        let pieces: Vec<&str> = pieces.collect();
        let Some((last, between)) = pieces.split_last() else {
            return rest.is_empty();
        };
        for piece in between {
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// What a job's token must say (rule 6 of the verifier).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// Whether the reference must be protected.
    pub(super) protected: bool,
    /// Branches and tags.
    pub(super) refs: Scope,
    /// `branch`, `tag`.
    pub(super) ref_types: Vec<String>,
    /// How pipelines may come about.
    pub(super) sources: Vec<String>,
    /// The environment's tier.
    pub(super) tier: Option<String>,
    /// `gitlab-hosted` or `self-hosted`.
    pub(super) runner_environment: Option<String>,
    /// Runners by number; any where there is none.
    pub(super) runners: Vec<u64>,
    /// Where the pipeline's definition must be from.
    pub(super) definition: Option<String>,
}

/// Ways of coming about that a grant takes where it does not say: never `merge_request_event`, whose code nobody reviewed.
pub(super) const SOURCES: [&str; 5] = ["push", "web", "schedule", "api", "trigger"];

impl Terms {
    /// Whether a job may do this.
    pub(super) fn check(&self, claims: &Claims, target: &Target<'_>) -> Result<(), Refusal> {
        if self.protected && !claims.is_protected {
            return Err(Refusal::Unprotected {
                reference: claims.reference.clone(),
            });
        }
        let is_kind = self.ref_types.contains(&claims.reference_kind);
        if !is_kind || !self.refs.has(&claims.reference) {
            let allowed = format!("{} {}", self.ref_types.join(" or "), self.refs.shown());
            return Err(Refusal::Reference {
                kind: claims.reference_kind.clone(),
                reference: claims.reference.clone(),
                allowed,
            });
        }
        if !self.sources.contains(&claims.pipeline_source) {
            return Err(Refusal::Source {
                found: claims.pipeline_source.clone(),
                allowed: self.sources.join(", "),
            });
        }
        let environment = claims.environment.as_deref();
        if environment.unwrap_or("default") != target.environment {
            return Err(Refusal::Environment {
                found: quoted(environment),
                asked: target.environment.to_owned(),
            });
        }
        if let Some(expected) = &self.tier
            && claims.tier.as_ref() != Some(expected)
        {
            return Err(Refusal::Tier {
                found: quoted(claims.tier.as_deref()),
                expected: expected.clone(),
            });
        }
        self.check_runner(claims)?;
        if let Some(commit) = target.commit
            && commit != claims.sha
        {
            return Err(Refusal::Commit {
                job: claims.sha.clone(),
                release: commit.to_owned(),
            });
        }
        if let Some(expected) = &self.definition
            && claims.definition.as_ref() != Some(expected)
        {
            return Err(Refusal::Definition {
                found: quoted(claims.definition.as_deref()),
                expected: expected.clone(),
            });
        }
        if let Some(rollout) = target.project
            && rollout != claims.project_id
        {
            return Err(Refusal::OtherProject {
                rollout,
                job: claims.project_id,
            });
        }
        Ok(())
    }

    fn check_runner(&self, claims: &Claims) -> Result<(), Refusal> {
        if let Some(expected) = &self.runner_environment
            && claims.runner_environment.as_ref() != Some(expected)
        {
            return Err(Refusal::Runner {
                found: quoted(claims.runner_environment.as_deref()),
                expected: format!("{expected:?}"),
            });
        }
        let fits = |id: u64| self.runners.contains(&id);
        if self.runners.is_empty() || claims.runner_id.is_some_and(fits) {
            return Ok(());
        }
        let ids: Vec<String> = self.runners.iter().map(ToString::to_string).collect();
        let found = claims.runner_id.map(|id| id.to_string());
        Err(Refusal::Runner {
            found: format!("runner {}", found.as_deref().unwrap_or("unknown")),
            expected: format!("runner {}", ids.join(" or ")),
        })
    }
}

fn quoted(value: Option<&str>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| format!("{value:?}"))
}

/// A role, for what, and on which terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    /// What may be done.
    pub(super) role: Role,
    /// For which services.
    pub(super) services: Scope,
    /// In which environments.
    pub(super) environments: Scope,
    /// What a job's token must say; `None` for a person.
    pub(super) terms: Option<Terms>,
}

impl Grant {
    /// Whether it holds for everything, on no terms.
    pub(super) fn is_everywhere(&self) -> bool {
        self.services == Scope::All && self.environments == Scope::All && self.terms.is_none()
    }
}

/// Why no grant lets a request through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// Grants there are, but their roles do not reach.
    Role(Role),
    /// Another rule.
    By(Refusal),
}

/// Whether one of the grants lets `who` do this. Of several that do not, the one that came closest says why.
pub(super) fn allows(
    grants: &[Grant],
    claims: Option<&Claims>,
    who: &str,
    rule: Rule,
    target: &Target<'_>,
) -> Result<(), Denied> {
    let is_about = |grant: &&Grant| {
        grant.services.has(target.service) && grant.environments.has(target.environment)
    };
    let mut denied = Denied::By(Refusal::NotGranted {
        who: who.to_owned(),
        service: target.service.to_owned(),
        environment: target.environment.to_owned(),
    });
    let mut is_close = false;
    for grant in grants.iter().filter(is_about) {
        if !rule.takes(grant.role) {
            if !is_close {
                denied = Denied::Role(grant.role);
            }
            continue;
        }
        let checked = match (&grant.terms, claims) {
            (None, _) => Ok(()),
            (Some(terms), Some(claims)) => terms.check(claims, target),
            // Terms are for jobs; who has no claims meets none.
            (Some(_), None) => Err(Refusal::Claim("job_id")),
        };
        match checked {
            Ok(()) => return Ok(()),
            Err(refusal) => {
                denied = Denied::By(refusal);
                is_close = true;
            }
        }
    }
    Err(denied)
}

/// Whether one of the grants lets its bearer do this for a service in some environment: a job in its own.
pub(super) fn somewhere(
    grants: &[Grant],
    claims: Option<&Claims>,
    rule: Rule,
    service: &str,
) -> bool {
    let is_met = |grant: &Grant| match (&grant.terms, claims) {
        (None, _) => true,
        (Some(terms), Some(claims)) => {
            let environment = claims.environment.as_deref().unwrap_or("default");
            let target = Target {
                service,
                environment,
                commit: None,
                project: None,
            };
            grant.environments.has(environment) && terms.check(claims, &target).is_ok()
        }
        (Some(_), None) => false,
    };
    grants
        .iter()
        .any(|grant| rule.takes(grant.role) && grant.services.has(service) && is_met(grant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_all_must_fit() {
        let fits = |pattern: &str, name: &str| Pattern(pattern.to_owned()).fits(name);
        for (pattern, name) in [
            ("main", "main"),
            ("*", "anything/at-all"),
            ("release/*", "release/1.2"),
            ("*-stable", "x-stable"),
            ("v*.*", "v1.2"),
            ("a*b*c", "abbc"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("main", "main2"),
            ("main", "Main"),
            ("main", "xmain"),
            ("release/*", "xrelease/1"),
            ("*-stable", "x-stable-"),
            ("a*b*c", "acb"),
            ("ab*ba", "aba"),
            ("", "x"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_person_may_do_what_the_grants_of_the_place_say() {
        let only = |name: &str| Scope::Only(vec![Pattern(name.to_owned())]);
        let grants = [
            Grant {
                role: Role::Viewer,
                services: Scope::All,
                environments: Scope::All,
                terms: None,
            },
            Grant {
                role: Role::Approver,
                services: only("web"),
                environments: only("staging"),
                terms: None,
            },
        ];
        let ask = |rule, service, environment| {
            let target = Target {
                service,
                environment,
                commit: None,
                project: None,
            };
            allows(&grants, None, "dana", rule, &target)
        };
        assert_eq!(ask(Rule::Read, "db", "production"), Ok(()));
        assert_eq!(ask(Rule::Approve, "web", "staging"), Ok(()));
        let viewer = Err(Denied::Role(Role::Viewer));
        assert_eq!(ask(Rule::Approve, "web", "production"), viewer);
        assert_eq!(ask(Rule::Operate, "db", "staging"), viewer);
        let none = allows(
            &grants[1..],
            None,
            "dana",
            Rule::Read,
            &Target {
                service: "db",
                environment: "staging",
                commit: None,
                project: None,
            },
        );
        assert!(matches!(none, Err(Denied::By(Refusal::NotGranted { .. }))));
    }
}
