//! Who a caller is beyond the name of a token: the person, and the CI job that acts for them.

use serde::{Deserialize, Serialize};

/// How the name of a person begins whose number is certain; no token's name has blanks.
pub(crate) const PERSON: &str = "gitlab user ";

/// A person that an identity provider vouches for, alone or by a CI job of theirs. The event log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Identity {
    /// The issuer that says so, such as `https://gitlab.example.com`.
    pub provider: String,
    /// The person's number there: for a manual job, of whoever pressed play. Four eyes are counted by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<u64>,
    /// The person's login there; it may change hands, so nothing is decided by it that the number can decide.
    pub login: String,
    /// The project whose pipeline runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<u64>,
    /// Its path, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_path: Option<String>,
    /// The pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_id: Option<u64>,
    /// The job; `None` for a person who acts without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<u64>,
    /// The environment that the job is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The commit that the job works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha: Option<String>,
    /// The branch or tag that its pipeline runs for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ref_name: Option<String>,
    /// Whether that is a tag.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ref_is_tag: bool,
}

impl Identity {
    /// How the event log names it: the number, which is certain and never another's, then the login, for people to read. One
    /// person has one name, whichever job acts for them: four eyes are two names.
    #[must_use]
    pub fn name(&self) -> String {
        match self.user_id {
            Some(id) => format!("{PERSON}{id} (for {})", self.login),
            None => self.login.clone(),
        }
    }

    /// A person who acts without a job.
    #[must_use]
    pub fn of_person(provider: &str, user_id: Option<u64>, login: &str) -> Self {
        Self {
            provider: provider.to_owned(),
            user_id,
            login: login.to_owned(),
            project_id: None,
            project_path: None,
            pipeline_id: None,
            job_id: None,
            environment: None,
            sha: None,
            ref_name: None,
            ref_is_tag: false,
        }
    }

    /// Whether both are surely the same person: of one provider, by number.
    #[must_use]
    pub fn is_same_person(&self, other: &Self) -> bool {
        self.provider == other.provider && self.user_id.is_some() && self.user_id == other.user_id
    }

    /// Whether both are surely different people: of one provider, by number. Four eyes ask for this; who is not known by
    /// number is nobody else for certain.
    #[must_use]
    pub fn is_another_person(&self, other: &Self) -> bool {
        self.provider == other.provider
            && self.user_id.is_some()
            && other.user_id.is_some()
            && self.user_id != other.user_id
    }
}

/// Whether a login is one that GitLab gives: it stands in the event log, where a bracket would mean something.
pub(super) fn is_login(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=255).contains(&text.len()) && text.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_apart_by_number_and_who_has_none_is_nobody_for_certain() {
        let person = |user_id, login: &str| {
            Identity::of_person("https://gitlab.example.com", user_id, login)
        };
        let (dana, renamed) = (person(Some(42), "dana"), person(Some(42), "dan"));
        let (eve, unknown) = (person(Some(7), "dana"), person(None, "dana"));
        assert!(dana.is_same_person(&renamed) && !dana.is_another_person(&renamed));
        assert!(dana.is_another_person(&eve) && !dana.is_same_person(&eve));
        assert!(!dana.is_another_person(&unknown) && !dana.is_same_person(&unknown));
        assert_eq!(dana.name(), "gitlab user 42 (for dana)");
        let job = Identity {
            job_id: Some(5),
            project_path: Some("acme/shop".to_owned()),
            ..dana.clone()
        };
        assert_eq!(job.name(), dana.name(), "whichever job acts for them");
    }
}
