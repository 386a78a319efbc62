//! The file of `friday serve --identities`: whom GitLab vouches for, and what they may do. Pure.
//!
//! ```yaml
//! issuer: https://gitlab.example.com
//! jobs:                                   # CI jobs, by their ID tokens
//!   audience: https://friday.example.com  # what the job says in `id_tokens: … aud`
//!   grants:
//!     - { project: 4711, role: operator, services: [shop], environments: [production], refs: [main] }
//! people:                                 # who signs in, by OpenID Connect
//!   client: 4c1b0e6c
//!   secret_file: /run/secrets/gitlab-application
//!   url: https://friday.example.com
//!   grants:
//!     - { group: acme/release-managers, role: approver }
//! ```

use std::path::PathBuf;

use reqwest::Url;
use rollout::Duration;

use super::id_token::{IdTokenPolicy, LIFETIME_MAX};
use super::jws::digits;
use super::rules::Role;
use super::terms::{Grant, Pattern, SOURCES, Scope, Terms};
use crate::client::transport::is_loopback;
use crate::yaml::{Fields, Finding, Findings, Tree, Value};

/// Most grants of each kind. An instance with thousands of projects gives rights by group, or by controller.
const GRANTS_MAX: usize = 1_000;

/// Most names in one list.
const NAMES_MAX: usize = 100;

/// Longest name.
const NAME_BYTES_MAX: usize = 255;

/// How long who signed in stays so: a day at work.
const SESSION: Duration = Duration::from_secs(10 * 60 * 60);

/// Roles that an identity may have. A proxy and an agent are machines, and have tokens.
const ROLES: [Role; 4] = [Role::Viewer, Role::Operator, Role::Approver, Role::Admin];

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directory {
    /// As it stands in the `iss` of its tokens, and where its other addresses are found.
    pub(super) issuer: String,
    /// PEM file of the authorities that the issuer is verified with, in place of the system's.
    pub(super) ca: Option<PathBuf>,
    /// CI jobs, if any are let in.
    pub(super) jobs: Option<Jobs>,
    /// People, if any are let in.
    pub(super) people: Option<People>,
}

/// CI jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Jobs {
    /// What their tokens must be.
    pub(super) policy: IdTokenPolicy,
    /// File of a token that may read jobs: with it, GitLab is asked whether a job still runs before a release goes further
    /// by it. ID tokens outlive their jobs.
    pub(super) running_token_file: Option<PathBuf>,
    /// What is granted to the jobs of each project.
    pub(super) grants: Vec<(u64, Grant)>,
}

impl Jobs {
    /// The grants of a project.
    pub(super) fn of(&self, project: u64) -> Vec<Grant> {
        let own = self.grants.iter().filter(|(id, _)| *id == project);
        own.map(|(_, grant)| grant.clone()).collect()
    }
}

/// People.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct People {
    /// Our name at the issuer: the application's id.
    pub(super) client: String,
    /// File of the application's secret; none for an application that GitLab does not take for confidential.
    pub(super) secret_file: Option<PathBuf>,
    /// This controller, as browsers see it. `/auth/callback` below it is what the application is registered with.
    pub(super) url: Url,
    /// How long a session lasts.
    pub(super) session: Duration,
    /// What is granted, and to whom.
    pub(super) grants: Vec<(Whom, Grant)>,
}

/// Who is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whom {
    /// The members of a group, by its path.
    Group(String),
    /// One person, by number.
    User(u64),
    /// One person, by login. GitLab's logins change hands: who takes a name that was given up is meant then.
    Login(String),
    /// Whoever has an account.
    Everybody,
}

impl People {
    /// The grants of a person.
    pub(super) fn of(&self, user: u64, login: &str, groups: &[String]) -> Vec<Grant> {
        let is_meant = |whom: &Whom| match whom {
            Whom::Group(path) => groups.contains(path),
            Whom::User(number) => *number == user,
            Whom::Login(name) => name == login,
            Whom::Everybody => true,
        };
        let own = self.grants.iter().filter(|(whom, _)| is_meant(whom));
        own.map(|(_, grant)| grant.clone()).collect()
    }
}

/// Reads the file's text; `name` names it in findings.
///
/// # Errors
/// Everything that is wrong with it, by line; there is at least one finding.
pub(super) fn read(text: &str, name: &str) -> Result<Directory, Vec<Finding>> {
    let mut findings = Findings::new(name);
    let tree = Tree::parse(text, &mut findings);
    let read = tree.as_ref().and_then(|tree| {
        let expected = "a map with `issuer`, and `jobs` or `people`";
        let fields = Value::root(tree).map(expected, &mut findings)?;
        directory(fields, &mut findings)
    });
    let findings = findings.in_order();
    match read {
        Some(read) if findings.is_empty() => Ok(read),
        _ => Err(findings),
    }
}

fn directory(mut fields: Fields<'_>, findings: &mut Findings) -> Option<Directory> {
    let expected = "the address of GitLab as its tokens have it in `iss`, such as https://gitlab.example.com; http:// only for this machine";
    let issuer = fields.required("issuer", expected, findings);
    let issuer = issuer.and_then(|value| {
        value.text(expected, findings, |text| {
            web_address(text).map(|_| text.to_owned())
        })
    });
    let ca = file(&mut fields, "ca", findings);
    let of = issuer.clone().unwrap_or_default();
    let jobs = fields
        .sub("jobs", "a map with `audience` and `grants`", findings)
        .map(|fields| jobs(fields, of, findings));
    let people = fields
        .sub(
            "people",
            "a map with `client`, `url` and `grants`",
            findings,
        )
        .map(|fields| people(fields, findings));
    if jobs.is_none() && people.is_none() {
        let expected = "expected `jobs` or `people`: nobody is let in by this file".to_owned();
        findings.at(fields.at(), "", None, expected);
    }
    fields.finish(findings);
    Some(Directory {
        issuer: issuer?,
        ca,
        // What is wrong with either was noted.
        jobs: jobs.flatten(),
        people: people.flatten(),
    })
}

fn jobs(mut fields: Fields<'_>, issuer: String, findings: &mut Findings) -> Option<Jobs> {
    let expected =
        "the text that jobs name in `id_tokens: … aud`, such as https://friday.example.com";
    let audience = fields.required("audience", expected, findings);
    let audience = audience.and_then(|value| value.text(expected, findings, name));
    let lifetime = fields.duration("lifetime", LIFETIME_MAX, findings).value;
    let running_token_file = file(&mut fields, "running_token_file", findings);
    let grants = grants(&mut fields, findings, |fields, findings| {
        let expected = "the project's number, as its page shows it";
        let project = fields.required("project", expected, findings);
        let project = project.and_then(|value| value.scalar(expected, findings, digits));
        let terms = terms(fields, findings);
        let grant = grant(fields, terms, findings);
        Some((project?, grant?))
    });
    fields.finish(findings);
    let mut projects: Vec<u64> = grants.iter().map(|(project, _)| *project).collect();
    projects.sort_unstable();
    projects.dedup();
    Some(Jobs {
        policy: IdTokenPolicy {
            issuer,
            audience: audience?,
            lifetime_max: lifetime,
            projects,
        },
        running_token_file,
        grants,
    })
}

fn people(mut fields: Fields<'_>, findings: &mut Findings) -> Option<People> {
    let expected = "the id of the application that was made for Friday in GitLab";
    let client = fields.required("client", expected, findings);
    let client = client.and_then(|value| value.text(expected, findings, name));
    let secret_file = file(&mut fields, "secret_file", findings);
    let expected = "this controller's address as browsers see it, such as https://friday.example.com; http:// only for this machine";
    let url = fields.required("url", expected, findings);
    let url = url.and_then(|value| value.text(expected, findings, web_address));
    let session = fields.duration("session", SESSION, findings).value;
    let grants = grants(&mut fields, findings, |fields, findings| {
        let whom = whom(fields, findings);
        let grant = grant(fields, None, findings);
        Some((whom?, grant?))
    });
    fields.finish(findings);
    Some(People {
        client: client?,
        secret_file,
        url: url?,
        session,
        grants,
    })
}

/// The list of grants, each read by `read`.
fn grants<T>(
    fields: &mut Fields<'_>,
    findings: &mut Findings,
    mut read: impl FnMut(&mut Fields<'_>, &mut Findings) -> Option<T>,
) -> Vec<T> {
    let expected = "a list of grants, each with a `role` and who has it";
    let Some(value) = fields.required("grants", expected, findings) else {
        return Vec::new();
    };
    let (at, key) = (value.at(), value.key().to_owned());
    let list = value.list(expected, findings).unwrap_or_default();
    if list.len() > GRANTS_MAX {
        let expected = format!("expected at most {GRANTS_MAX} grants");
        findings.at(at, &key, Some(list.len().to_string()), expected);
        return Vec::new();
    }
    let mut all = Vec::new();
    for value in list {
        let Some(mut fields) = value.map("a map with a `role` and who has it", findings) else {
            continue;
        };
        all.extend(read(&mut fields, findings));
        fields.finish(findings);
    }
    all
}

fn whom(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<Whom> {
    let group = fields
        .take("group")
        .and_then(|value| value.text("the path of a group, such as acme/ops", findings, name));
    let user = fields.take("user").and_then(|value| {
        value.scalar(
            "the person's number, as their page at GitLab shows it",
            findings,
            digits,
        )
    });
    let login = fields
        .take("login")
        .and_then(|value| value.text("a login", findings, name));
    let everybody = fields
        .take("everybody")
        .and_then(|value| value.scalar("true", findings, |text| (text == "true").then_some(())));
    match (group, user, login, everybody) {
        (Some(path), None, None, None) => Some(Whom::Group(path)),
        (None, Some(number), None, None) => Some(Whom::User(number)),
        (None, None, Some(login), None) => Some(Whom::Login(login)),
        (None, None, None, Some(())) => Some(Whom::Everybody),
        _ => {
            let expected =
                "expected one of `group`, `user`, `login` and `everybody: true`".to_owned();
            findings.at(fields.at(), "", None, expected);
            None
        }
    }
}

fn grant(fields: &mut Fields<'_>, terms: Option<Terms>, findings: &mut Findings) -> Option<Grant> {
    let expected = "viewer, operator, approver or admin";
    let role = fields.required("role", expected, findings);
    let role = role.and_then(|value| {
        value.scalar(expected, findings, |text| {
            Role::named(text).filter(|role| ROLES.contains(role))
        })
    });
    let services = scope(fields, "services", findings);
    let environments = scope(fields, "environments", findings);
    Some(Grant {
        role: role?,
        services,
        environments,
        terms,
    })
}

/// What a job's token must say, strict where the file says nothing.
fn terms(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<Terms> {
    let one_of = |fields: &mut Fields<'_>,
                  findings: &mut Findings,
                  key: &'static str,
                  known: &[&str],
                  default: &[&str]| {
        let expected = format!("a list of {}", known.join(", "));
        let known = |text: &str| known.contains(&text).then(|| text.to_owned());
        match fields.take(key) {
            None => default.iter().map(|text| (*text).to_owned()).collect(),
            Some(value) => texts(value, &expected, findings, known),
        }
    };
    let protected = fields
        .take("protected")
        .and_then(|value| value.scalar("true or false", findings, |text| text.parse().ok()));
    let refs = scope(fields, "refs", findings);
    let ref_types = one_of(
        fields,
        findings,
        "ref_types",
        &["branch", "tag"],
        &["branch"],
    );
    let known = [&SOURCES[..], &["parent_pipeline", "pipeline", "chat"]].concat();
    let sources = one_of(fields, findings, "sources", &known, &SOURCES);
    let expected = "production, staging, testing, development or other";
    let tier = fields.take("tier").and_then(|value| {
        value.text(expected, findings, |text| {
            let tiers = ["production", "staging", "testing", "development", "other"];
            tiers.contains(&text).then(|| text.to_owned())
        })
    });
    let expected = "self-hosted or gitlab-hosted";
    let runner_environment = fields.take("runner_environment").and_then(|value| {
        value.text(expected, findings, |text| {
            let kinds = ["self-hosted", "gitlab-hosted"];
            kinds.contains(&text).then(|| text.to_owned())
        })
    });
    let expected = "a list of the numbers of runners";
    let runners = match fields.take("runners") {
        None => Vec::new(),
        Some(value) => texts(value, expected, findings, digits),
    };
    let expected = "where .gitlab-ci.yml must be from, as `ci_config_ref_uri` has it";
    let definition = fields
        .take("definition")
        .and_then(|value| value.text(expected, findings, name));
    Some(Terms {
        protected: protected.unwrap_or(true),
        refs,
        ref_types,
        sources,
        tier,
        runner_environment,
        runners,
        definition,
    })
}

/// Names and patterns, or all where there are none.
fn scope(fields: &mut Fields<'_>, key: &'static str, findings: &mut Findings) -> Scope {
    match fields.take(key) {
        None => Scope::All,
        Some(value) => {
            let expected = "a list of names; * stands for any characters";
            Scope::Only(texts(value, expected, findings, |text| {
                name(text).map(Pattern)
            }))
        }
    }
}

/// A list of at least one thing, read one by one.
fn texts<T>(
    value: Value<'_>,
    expected: &str,
    findings: &mut Findings,
    read: impl Fn(&str) -> Option<T>,
) -> Vec<T> {
    let (at, key) = (value.at(), value.key().to_owned());
    let Some(list) = value.list(expected, findings) else {
        return Vec::new();
    };
    if list.is_empty() || list.len() > NAMES_MAX {
        let expected = format!("expected 1 to {NAMES_MAX} of them: {expected}");
        findings.at(at, &key, Some(format!("{} of them", list.len())), expected);
    }
    let each = list.iter().take(NAMES_MAX);
    each.filter_map(|value| value.scalar(expected, findings, &read))
        .collect()
}

fn file(fields: &mut Fields<'_>, key: &'static str, findings: &mut Findings) -> Option<PathBuf> {
    let value = fields.take(key)?;
    value
        .text("the path of a file", findings, name)
        .map(PathBuf::from)
}

fn name(text: &str) -> Option<String> {
    let fits = (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    (fits && text.trim() == text).then(|| text.to_owned())
}

/// An address by TLS, or of this machine: secrets go there. Without a query, a user, or a slash at its end.
fn web_address(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let is_safe = match url.scheme() {
        "https" => url.host_str().is_some(),
        "http" => url.host_str().is_some_and(is_loopback),
        _ => false,
    };
    let is_bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    (is_safe && is_bare && !text.ends_with('/') && text.len() <= NAME_BYTES_MAX).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
issuer: https://gitlab.example.com
jobs:
  audience: https://friday.example.com
  lifetime: 30m
  grants:
    - project: 4711
      role: operator
      services: [shop]
      environments: [production]
      refs: [main, release/*]
      runners: [7]
      tier: production
    - { project: 4711, role: operator, environments: [dev], protected: false }
people:
  client: 4c1b0e6c
  secret_file: /run/secrets/application
  url: https://friday.example.com
  grants:
    - { group: acme/ops, role: approver, environments: [production] }
    - { user: 42, role: admin }
    - { login: carol, role: operator }
    - { everybody: true, role: viewer }
";

    #[test]
    fn reads_who_may_do_what() {
        let read = read(GOOD, "identities.yml").unwrap();
        let jobs = read.jobs.unwrap();
        assert_eq!(jobs.policy.projects, [4711]);
        assert_eq!(jobs.policy.lifetime_max, Duration::from_secs(1_800));
        let grants = jobs.of(4711);
        assert_eq!(grants.len(), 2);
        assert!(jobs.of(4712).is_empty());
        let terms = grants[0].terms.clone().unwrap();
        assert!(terms.protected && terms.refs.has("release/1") && !terms.refs.has("x"));
        assert_eq!(terms.sources, SOURCES);
        assert_eq!(terms.ref_types, ["branch"]);
        assert!(!grants[1].terms.clone().unwrap().protected);
        let people = read.people.unwrap();
        let roles = |user: u64, login: &str, groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
            let grants = people.of(user, login, &groups);
            grants.iter().map(|grant| grant.role).collect::<Vec<_>>()
        };
        let ops = ["acme/ops"];
        assert_eq!(roles(7, "eve", &[]), [Role::Viewer]);
        assert_eq!(roles(7, "eve", &ops), [Role::Approver, Role::Viewer]);
        assert_eq!(roles(8, "carol", &[]), [Role::Operator, Role::Viewer]);
        // Whoever has the name now, it is the number that counts.
        let admin = [Role::Admin, Role::Viewer];
        assert_eq!(roles(42, "dana", &["acme/ops-x"]), admin);
        assert_eq!(roles(42, "renamed", &[]), admin);
        assert_eq!(roles(43, "dana", &[]), [Role::Viewer]);
    }

    /// What a component has for an input that nobody gives.
    fn default_of<'a>(component: &'a str, input: &str) -> &'a str {
        let (_, rest) = component.split_once(&format!("\n    {input}:\n")).unwrap();
        let (_, value) = rest.split_once("      default: ").unwrap();
        value.lines().next().unwrap()
    }

    #[test]
    fn the_components_jobs_are_let_in_by_the_files_that_the_readme_shows() {
        let readme = include_str!("../../../README.md");
        let component = include_str!("../../../templates/canary.yml");
        let (hours, unit) = default_of(component, "timeout").split_at(1);
        assert_eq!(unit, "h");
        let timeout = Duration::from_secs(hours.parse::<u64>().unwrap() * 3_600);
        let mut files = 0;
        for (before, block) in readme
            .split("```yaml\n")
            .skip(1)
            .filter_map(|rest| rest.split_once("```"))
            .map(|(block, _)| block.split_at(block.find("issuer:").unwrap_or(block.len())))
        {
            if block.is_empty() {
                continue;
            }
            // It may stand in a list.
            let text = block.replace(&format!("\n{before}"), "\n");
            let jobs = read(&text, "identities.yml").unwrap().jobs.unwrap();
            assert_eq!(jobs.policy.audience, default_of(component, "audience"));
            assert!(
                jobs.policy.lifetime_max >= timeout,
                "GitLab makes tokens for the job's timeout"
            );
            files += 1;
        }
        assert_eq!(files, 2);
    }

    #[test]
    fn says_where_it_is_wrong() {
        let said = |from: &str, to: &str| {
            assert!(GOOD.contains(from), "{from}");
            let findings = read(&GOOD.replacen(from, to, 1), "i.yml").unwrap_err();
            let all: Vec<String> = findings.iter().map(ToString::to_string).collect();
            all.join("\n")
        };
        for (from, to, words) in [
            (
                "https://gitlab.example.com",
                "http://gitlab.example.com",
                "i.yml:1:9: issuer: ",
            ),
            (
                "https://gitlab.example.com",
                "https://gitlab.example.com/",
                "i.yml:1:9: issuer: ",
            ),
            (
                "project: 4711",
                "project: acme/shop",
                "i.yml:6:16: jobs.grants[0].project: ",
            ),
            ("project: 4711", "projects: 4711", "did you mean project?"),
            (
                "role: operator",
                "role: proxy",
                "expected viewer, operator, approver or admin",
            ),
            ("tier: production", "tier: prod", "jobs.grants[0].tier: "),
            ("[main, release/*]", "[]", "expected 1 to 100 of them"),
            (
                "tier: production",
                "sources: [merge_request_event]",
                "jobs.grants[0].sources[0]: ",
            ),
            (
                "{ login: carol,",
                "{ login: carol, group: x,",
                "expected one of `group`",
            ),
            ("{ user: 42,", "{ user: dana,", "people.grants[1].user: "),
            ("{ everybody: true,", "{", "expected one of `group`"),
            ("  client: 4c1b0e6c\n", "", "people.client: missing"),
        ] {
            let said = said(from, to);
            assert!(said.contains(words), "{said}");
        }
        let nobody = read("issuer: https://gitlab.example.com\n", "i.yml").unwrap_err();
        assert!(nobody[0].to_string().contains("nobody is let in"));
    }
}
