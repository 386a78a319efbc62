//! Which role a request takes. Pure.

use std::fmt;

use axum::http::Method;
use serde::Serialize;

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Of a proxy: takes tables, sends reports
    Proxy,
    /// Of a node's agent: sends reports
    Agent,
    /// Reads everything, metrics too
    Viewer,
    /// A viewer that deploys, promotes, pauses, aborts, retries and undoes
    Operator,
    /// An operator that approves and rejects at gates
    Approver,
    /// Everything
    Admin,
}

impl Role {
    const ALL: [Self; 6] = [
        Self::Proxy,
        Self::Agent,
        Self::Viewer,
        Self::Operator,
        Self::Approver,
        Self::Admin,
    ];

    /// Its name in the tokens file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Agent => "agent",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Admin => "admin",
        }
    }

    /// How far it reaches among the roles that identities have; machines have none of them.
    pub(super) fn reach(self) -> u8 {
        match self {
            Self::Proxy | Self::Agent => 0,
            Self::Viewer => 1,
            Self::Operator => 2,
            Self::Approver => 3,
            Self::Admin => 4,
        }
    }

    /// The role of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Tables for proxies, and their reports.
    Proxies,
    /// The reports of nodes' agents.
    Agents,
    /// To read: whatever the grants of who asks are for. Handlers look at that.
    Read,
    /// To read what is about every service at once.
    ReadAll,
    /// To start and to move rollouts.
    Operate,
    /// To open a gate, or to keep it shut.
    Approve,
    /// Everything that is none of these.
    Administer,
}

impl Rule {
    /// The rule of a request; `None` for what everybody may ask: whether the controller lives and is ready, the board's
    /// page with its parts, which hold nothing and read the rest as whoever signed in, signing in itself, and hooks, which
    /// prove themselves.
    #[must_use]
    pub fn of(method: &Method, path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let is_read = method == Method::GET || method == Method::HEAD;
        match parts.as_slice() {
            [""] | ["live" | "ready" | "board.css" | "board.js" | "board-draw.js"] if is_read => {
                None
            }
            // They prove themselves, by a key of their own.
            ["api", "v1", "webhooks", "gitlab"] if method == Method::POST => None,
            ["auth", "login" | "callback" | "session"] if is_read => None,
            ["auth", "token" | "device" | "refresh" | "logout"] if method == Method::POST => None,
            ["api", "v1", "proxies", _, "table" | "reports"] => Some(Self::Proxies),
            ["api", "v1", "agents", _, "reports"] => Some(Self::Agents),
            ["metrics"] | ["api", "v1", "events" | "proxies" | "agents" | "health"] if is_read => {
                Some(Self::ReadAll)
            }
            _ if is_read => Some(Self::Read),
            // Of orders, approvals need more: their handler asks for it.
            ["api", "v1", "rollouts" | "services", ..] | ["api", "v1", "alerts"]
                if method == Method::POST =>
            {
                Some(Self::Operate)
            }
            // To break somebody else's lock needs more: its handler asks for it.
            ["api", "v1", "services", _, "lock"]
                if method == Method::PUT || method == Method::DELETE =>
            {
                Some(Self::Operate)
            }
            _ => Some(Self::Administer),
        }
    }

    /// Its name in refusals and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Proxies => "proxies",
            Self::Agents => "agents",
            Self::Read => "read",
            Self::ReadAll => "read-all",
            Self::Operate => "operate",
            Self::Approve => "approve",
            Self::Administer => "administer",
        }
    }

    /// Whether it is about everything there is, and so takes a role that holds everywhere.
    pub(super) fn is_about_all(self) -> bool {
        match self {
            Self::Proxies | Self::Agents | Self::ReadAll | Self::Administer => true,
            Self::Read | Self::Operate | Self::Approve => false,
        }
    }

    /// The roles that it takes, the smallest first.
    #[must_use]
    pub fn roles(self) -> &'static [Role] {
        match self {
            Self::Proxies => &[Role::Proxy, Role::Admin],
            Self::Agents => &[Role::Agent, Role::Admin],
            Self::Read | Self::ReadAll => {
                &[Role::Viewer, Role::Operator, Role::Approver, Role::Admin]
            }
            Self::Operate => &[Role::Operator, Role::Approver, Role::Admin],
            Self::Approve => &[Role::Approver, Role::Admin],
            Self::Administer => &[Role::Admin],
        }
    }

    /// Whether it takes this role.
    #[must_use]
    pub fn takes(self, role: Role) -> bool {
        self.roles().contains(&role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every path of the API, and some that there are not.
    #[test]
    fn every_request_has_a_rule_but_life_the_page_hooks_and_signing_in() {
        let table = [
            ("GET", "/", "-"),
            ("GET", "/live", "-"),
            ("GET", "/ready", "-"),
            ("POST", "/api/v1/webhooks/gitlab", "-"),
            ("PUT", "/api/v1/webhooks/gitlab", "administer"),
            ("GET", "/board.css", "-"),
            ("GET", "/board.js", "-"),
            ("GET", "/board-draw.js", "-"),
            ("GET", "/api/v1/me", "read"),
            ("GET", "/api/v1/rollouts/web-1/series", "read"),
            ("GET", "/api/v1/rollouts/web-1/card.svg", "read"),
            ("GET", "/auth/login", "-"),
            ("GET", "/auth/callback", "-"),
            ("GET", "/auth/session", "-"),
            ("POST", "/auth/token", "-"),
            ("POST", "/auth/device", "-"),
            ("POST", "/auth/refresh", "-"),
            ("POST", "/auth/logout", "-"),
            ("POST", "/auth/login", "administer"),
            ("GET", "/auth/token", "read"),
            ("GET", "/metrics", "read-all"),
            ("GET", "/api/v1/openapi.json", "read"),
            ("GET", "/api/v1/rollouts", "read"),
            ("POST", "/api/v1/rollouts", "operate"),
            ("GET", "/api/v1/rollouts/web", "read"),
            ("POST", "/api/v1/rollouts/web-1/orders", "operate"),
            ("GET", "/api/v1/rollouts/web-1/events", "read"),
            ("GET", "/api/v1/events", "read-all"),
            ("GET", "/api/v1/services", "read"),
            ("POST", "/api/v1/services/web/undo", "operate"),
            ("POST", "/api/v1/services/web/retry", "operate"),
            ("GET", "/api/v1/services/web/lock", "read"),
            ("PUT", "/api/v1/services/web/lock", "operate"),
            ("DELETE", "/api/v1/services/web/lock", "operate"),
            ("DELETE", "/api/v1/services/web", "administer"),
            ("POST", "/api/v1/alerts", "operate"),
            ("POST", "/api/v1/alerts/x", "administer"),
            ("GET", "/api/v1/stream", "read"),
            ("GET", "/api/v1/proxies", "read-all"),
            ("GET", "/api/v1/proxies/p1/table", "proxies"),
            ("POST", "/api/v1/proxies/p1/reports", "proxies"),
            ("GET", "/api/v1/agents", "read-all"),
            ("GET", "/api/v1/health", "read-all"),
            ("POST", "/api/v1/agents/n1/reports", "agents"),
            ("POST", "/", "administer"),
            ("DELETE", "/live", "administer"),
            ("POST", "/api/v1/agents//n1/reports", "administer"),
            ("PUT", "/api/v1/rollouts", "administer"),
            ("POST", "/api/v2/rollouts", "administer"),
            ("GET", "//live", "read"),
        ];
        for (method, path, name) in table {
            let method: Method = method.parse().unwrap();
            let rule = Rule::of(&method, path).map_or("-", Rule::name);
            assert_eq!(rule, name, "{method} {path}");
        }
    }

    #[test]
    fn roles_reach_as_far_as_their_names() {
        let rules = [
            Rule::Proxies,
            Rule::Agents,
            Rule::Read,
            Rule::ReadAll,
            Rule::Operate,
            Rule::Approve,
            Rule::Administer,
        ];
        let allowed = |role: Role| {
            let taken = rules.iter().filter(|rule| rule.takes(role));
            taken.map(|rule| rule.name()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(allowed(Role::Proxy), "proxies");
        assert_eq!(allowed(Role::Agent), "agents");
        assert_eq!(allowed(Role::Viewer), "read read-all");
        assert_eq!(allowed(Role::Operator), "read read-all operate");
        assert_eq!(allowed(Role::Approver), "read read-all operate approve");
        assert_eq!(
            allowed(Role::Admin),
            "proxies agents read read-all operate approve administer"
        );
        for role in Role::ALL {
            assert_eq!(Role::named(role.as_str()), Some(role));
        }
    }
}
