//! Why a token of an identity provider, or what its bearer asks for, is refused: each refusal names its rule. Pure.

use rollout::Duration;

/// A refusal. Nothing in it is a secret: of a token it repeats claims, never the token. The rules are in the order in which
/// they are looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is longer than any of GitLab's.
    #[error("the token has {bytes} bytes, more than the {max} allowed")]
    Size {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// It is no signed token.
    #[error("the token is not a signed one: {0}")]
    Form(&'static str),
    /// It wants to be verified in another way than ours.
    #[error("the token is signed by {0:?}; expected RS256")]
    Algorithm(String),
    /// It brings the key along that it is to be verified with, or wants something that we do not know.
    #[error("the token's header has {0:?}: keys come from the issuer alone")]
    Header(String),
    /// It does not say which key.
    #[error("the token's header names no key (kid)")]
    NoKey,
    /// The issuer has no such key.
    #[error("the issuer has no key {0:?}")]
    UnknownKey(String),
    /// Keys cannot be had now. The only refusal that may be gone in a moment.
    #[error("the keys of {issuer} are out of reach, and no good set of them is kept")]
    NoKeys {
        /// Whose.
        issuer: String,
    },
    /// The signature is another's.
    #[error("the signature is not that of the key which the token names")]
    Signature,
    /// The issuer is another.
    #[error("the issuer (iss) is {found:?}; expected {expected:?}")]
    Issuer {
        /// Whose it says to be.
        found: String,
        /// Whom we trust.
        expected: String,
    },
    /// It is for somebody else.
    #[error("the audience (aud) is {found}; expected {expected:?} alone")]
    Audience {
        /// For whom it is.
        found: String,
        /// Who we are.
        expected: String,
    },
    /// It is over.
    #[error("the token expired (exp) {} s ago", .0.as_secs())]
    Expired(Duration),
    /// It is not good yet.
    #[error("the token is good (nbf) only in {} s", .0.as_secs())]
    NotYet(Duration),
    /// It was made in the future.
    #[error("the token is from the future (iat): {} s from now", .0.as_secs())]
    FromTheFuture(Duration),
    /// It is good for too long.
    #[error("the token is good for {} s (iat to exp), longer than the {} s allowed; give the job a shorter timeout", .found.as_secs(), .max.as_secs())]
    Lifetime {
        /// For how long.
        found: Duration,
        /// The limit.
        max: Duration,
    },
    /// A claim is missing, or is not as it should be.
    #[error("the claim {0} is missing, or is not as GitLab writes it")]
    Claim(&'static str),
    /// Nobody let this project in.
    #[error("project {id} ({path}) may not act here: its number is not in the file of identities")]
    Project {
        /// Its number.
        id: u64,
        /// Its path.
        path: String,
    },
    /// A fork's merge request runs in the project's pipelines.
    #[error(
        "the token is of project {project}, but its job runs in a pipeline of project {job_project}: a fork's merge request"
    )]
    Fork {
        /// Whose token.
        project: u64,
        /// Whose pipeline.
        job_project: String,
    },
    /// Another job has shown a token of this name.
    #[error("the token's name (jti) was seen with job {first}; this is job {second}")]
    Replay {
        /// Whose it was.
        first: u64,
        /// Who shows it now.
        second: u64,
    },
    /// Nothing was granted for what is asked about.
    #[error("nothing is granted to {who} for service {service} in environment {environment}")]
    NotGranted {
        /// To whom.
        who: String,
        /// For which service.
        service: String,
        /// In which environment.
        environment: String,
    },
    /// The reference is not protected.
    #[error("{reference} is not protected in GitLab (ref_protected)")]
    Unprotected {
        /// The branch or tag.
        reference: String,
    },
    /// The reference is none of those that are let in.
    #[error("{kind} {reference} is none of those let in: {allowed}")]
    Reference {
        /// `branch` or `tag`.
        kind: String,
        /// Its name.
        reference: String,
        /// What is.
        allowed: String,
    },
    /// The pipeline came about in a way that is not let in.
    #[error("pipelines by {found:?} (pipeline_source) are not let in; expected one of {allowed}")]
    Source {
        /// How.
        found: String,
        /// What is.
        allowed: String,
    },
    /// The job is for another environment.
    #[error("the job's environment is {found}; what is asked for is {asked:?}")]
    Environment {
        /// The job's.
        found: String,
        /// Asked for.
        asked: String,
    },
    /// The environment's tier is another.
    #[error("the tier of the job's environment is {found}; expected {expected:?}")]
    Tier {
        /// The job's.
        found: String,
        /// In the file.
        expected: String,
    },
    /// The job ran elsewhere.
    #[error("the job runs on {found}; expected {expected}")]
    Runner {
        /// Where.
        found: String,
        /// Where it should.
        expected: String,
    },
    /// The release is of another commit.
    #[error("the job works on commit {job}; the release is of {release}")]
    Commit {
        /// The job's.
        job: String,
        /// The release's.
        release: String,
    },
    /// The pipeline's definition is from elsewhere.
    #[error("the pipeline is defined by {found} (ci_config_ref_uri); expected {expected:?}")]
    Definition {
        /// From where.
        found: String,
        /// From where it should be.
        expected: String,
    },
    /// The rollout is of another project.
    #[error("the rollout is of project {rollout}; the job is of project {job}")]
    OtherProject {
        /// Whose pipeline started the rollout.
        rollout: u64,
        /// Whose job asks.
        job: u64,
    },
    /// The job is over.
    #[error("job {job} is not running any more: it is {state}")]
    JobOver {
        /// Which.
        job: u64,
        /// What GitLab says of it.
        state: String,
    },
    /// Whether the job still runs cannot be asked now.
    #[error("whether job {job} still runs cannot be asked now; try again in a moment")]
    JobUnknown {
        /// Which.
        job: u64,
    },
}

impl Refusal {
    /// The name of the rule, in refusals and logs.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Size { .. } => "size",
            Self::Form(_) => "form",
            Self::Algorithm(_) => "algorithm",
            Self::Header(_) => "header",
            Self::NoKey => "key-named",
            Self::UnknownKey(_) => "key-known",
            Self::NoKeys { .. } => "keys-reachable",
            Self::Signature => "signature",
            Self::Issuer { .. } => "issuer",
            Self::Audience { .. } => "audience",
            Self::Expired(_) => "expiry",
            Self::NotYet(_) => "not-before",
            Self::FromTheFuture(_) => "issued-at",
            Self::Lifetime { .. } => "lifetime",
            Self::Claim(_) => "claims",
            Self::Project { .. } => "project",
            Self::Fork { .. } => "fork",
            Self::Replay { .. } => "replay",
            Self::NotGranted { .. } => "grant",
            Self::Unprotected { .. } => "protected-ref",
            Self::Reference { .. } => "ref",
            Self::Source { .. } => "source",
            Self::Environment { .. } => "environment",
            Self::Tier { .. } => "tier",
            Self::Runner { .. } => "runner",
            Self::Commit { .. } => "commit",
            Self::Definition { .. } => "definition",
            Self::OtherProject { .. } => "own-project",
            Self::JobOver { .. } | Self::JobUnknown { .. } => "job-running",
        }
    }

    /// Whether it is about who asks (401), and not about what is asked for (403).
    #[must_use]
    pub fn is_about_the_token(&self) -> bool {
        match self {
            Self::Size { .. }
            | Self::Form(_)
            | Self::Algorithm(_)
            | Self::Header(_)
            | Self::NoKey
            | Self::UnknownKey(_)
            | Self::NoKeys { .. }
            | Self::Signature
            | Self::Issuer { .. }
            | Self::Audience { .. }
            | Self::Expired(_)
            | Self::NotYet(_)
            | Self::FromTheFuture(_)
            | Self::Lifetime { .. }
            | Self::Claim(_)
            | Self::Replay { .. } => true,
            Self::Project { .. }
            | Self::Fork { .. }
            | Self::NotGranted { .. }
            | Self::Unprotected { .. }
            | Self::Reference { .. }
            | Self::Source { .. }
            | Self::Environment { .. }
            | Self::Tier { .. }
            | Self::Runner { .. }
            | Self::Commit { .. }
            | Self::Definition { .. }
            | Self::OtherProject { .. }
            | Self::JobOver { .. }
            | Self::JobUnknown { .. } => false,
        }
    }
}
