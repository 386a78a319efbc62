//! Why there is no answer to work with, told apart by what the caller can do.

use friday_tls::{TlsError, Trouble};
use http::StatusCode;

use super::transport::TransportError;
use crate::api::types::Problem;

/// Why the controller gave no answer to work with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error(
        "{url:?} is not the address of a controller: {reason}; set --url or FRIDAY_URL, such as http://127.0.0.1:7070"
    )]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection, no answer in time, or a connection that broke.
    #[error(
        "could not {action}: {url} is out of reach (is `friday serve` running there? set --url or FRIDAY_URL)"
    )]
    Unreachable {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
        /// What happened.
        source: TransportError,
    },
    /// There is somebody, but not by TLS, or nobody who is trusted.
    #[error(
        "could not {action}: {url} is not trusted: {trouble}{}",
        advice(trouble)
    )]
    Untrusted {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
        /// What is wrong.
        trouble: Trouble,
    },
    /// It speaks TLS, and was asked in the clear.
    #[error("could not {action}: {url} speaks TLS; set --url or FRIDAY_URL to https://…")]
    InTheClear {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
    },
    /// Nobody could be trusted.
    #[error(
        "the authorities that a controller at https:// is verified with cannot be used; --ca or FRIDAY_CA names their PEM file"
    )]
    Authorities {
        /// What is wrong with them.
        source: TlsError,
    },
    /// It answered that something it needs is out of reach, or that it is not ready.
    #[error("could not {action}: the controller at {url} cannot do it now: {}", problem.detail)]
    Unavailable {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
        /// Its words.
        problem: Box<Problem>,
    },
    /// It refused, and will refuse again.
    #[error("could not {action}: {}", problem.detail)]
    Refused {
        /// What was tried.
        action: String,
        /// Its words.
        problem: Box<Problem>,
    },
    /// What was to be sent cannot be written.
    #[error("could not {action}: the request cannot be written")]
    Unwritable {
        /// What was tried.
        action: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// It failed.
    #[error("could not {action}: the controller at {url} failed: {}; its log says more", problem.detail)]
    Failed {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
        /// Its words.
        problem: Box<Problem>,
    },
    /// Something answered that does not speak our protocol, or another version of it.
    #[error(
        "could not {action}: {url} answered {status}, but not as a Friday controller does: {reason}; set --url or FRIDAY_URL"
    )]
    Alien {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
        /// The HTTP status.
        status: StatusCode,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl ClientError {
    /// Whether trying again may help: the controller may be restarting.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Unavailable { .. } => true,
            Self::Address { .. }
            | Self::Authorities { .. }
            | Self::Untrusted { .. }
            | Self::InTheClear { .. }
            | Self::Refused { .. }
            | Self::Failed { .. }
            | Self::Unwritable { .. }
            | Self::Alien { .. } => false,
        }
    }

    /// Whether nothing was done of what was asked: nobody heard of it, or who asked could not be told yet. Then it may be
    /// asked again, also where asking twice does it twice.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => source.is_unsent(),
            Self::Unavailable { problem, .. } => {
                matches!(problem.code.as_str(), "keys_unreachable" | "job_unknown")
            }
            Self::Address { .. }
            | Self::Authorities { .. }
            | Self::Untrusted { .. }
            | Self::InTheClear { .. }
            | Self::Refused { .. }
            | Self::Failed { .. }
            | Self::Unwritable { .. }
            | Self::Alien { .. } => false,
        }
    }

    /// The exit code of a command that ends with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Address { .. } | Self::Authorities { .. } => 2,
            // Nobody has the image: its canary can never become ready.
            Self::Refused { problem, .. } if problem.code == "unknown_image" => 14,
            Self::Refused { .. } => 20,
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::InTheClear { .. }
            | Self::Unavailable { .. }
            | Self::Alien { .. } => 30,
            Self::Failed { .. } | Self::Unwritable { .. } => 1,
        }
    }
}

/// What a person can do about it here.
fn advice(trouble: &Trouble) -> &'static str {
    if trouble.is_of_authority() {
        "; name the PEM file of the right one with --ca or FRIDAY_CA"
    } else {
        ""
    }
}
