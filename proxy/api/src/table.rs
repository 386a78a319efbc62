//! The route table: which requests go to which release, in which shares.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The number of a table: `term` grows with every controller that takes over, `seq` with every table it makes.
///
/// Ordered by `term`, then `seq`. A proxy refuses a table whose generation is not newer than the one it has, so a late
/// message, or a controller that was replaced and does not know it yet, can undo nothing.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// The fencing number of the controller that made the table; 0 for a file written by hand.
    pub term: u64,
    /// Counts the tables of one term.
    pub seq: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.seq)
    }
}

impl FromStr for Generation {
    type Err = TableError;

    /// Reads `TERM.SEQ`, as [`Generation`]'s `Display` writes it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || TableError::Generation(text.to_owned());
        let (term, seq) = text.split_once('.').ok_or_else(bad)?;
        Ok(Self {
            term: term.parse().map_err(|_| bad())?,
            seq: seq.parse().map_err(|_| bad())?,
        })
    }
}

/// A share of requests as a whole number of basis points: 0 is none, 10 000 is all.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(try_from = "u16", into = "u16")]
#[schema(value_type = u16, maximum = 10_000)]
pub struct BasisPoints(u16);

impl BasisPoints {
    /// No request at all.
    pub const NONE: Self = Self(0);
    /// Every request.
    pub const ALL: Self = Self(10_000);

    /// The share of `points` basis points.
    ///
    /// # Errors
    /// `points` is above 10 000.
    pub fn new(points: u16) -> Result<Self, TableError> {
        if points > 10_000 {
            return Err(TableError::BasisPoints(points));
        }
        Ok(Self(points))
    }

    /// Whether it is no request at all.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0 == 0
    }

    /// Basis points, 0 to 10 000.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }

    /// The share as a number from 0 to 1.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl TryFrom<u16> for BasisPoints {
    type Error = TableError;

    fn try_from(points: u16) -> Result<Self, Self::Error> {
        Self::new(points)
    }
}

impl From<BasisPoints> for u16 {
    fn from(share: BasisPoints) -> Self {
        share.0
    }
}

/// The address of one task of a release, `HOST:PORT`. IPv6 hosts stand in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "127.0.0.1:9000")]
pub struct Endpoint(String);

impl Endpoint {
    /// `HOST:PORT`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Endpoint {
    type Err = TableError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || TableError::Endpoint(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        let bare = host
            .strip_prefix('[')
            .map_or(Some(host), |inner| inner.strip_suffix(']'));
        let plausible = |host: &str| {
            !host.is_empty()
                && host.bytes().all(|b| {
                    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'%')
                })
        };
        if port == 0
            || !bare.is_some_and(plausible)
            || (!host.starts_with('[') && host.contains(':'))
        {
            return Err(bad());
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Endpoint {
    type Error = TableError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.0
    }
}

/// Which requests a route is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The host name of the request, without port, compared without case; `*` is every host, `*.example.org` every
    /// name below one.
    #[serde(default = "any_host")]
    pub host: String,
    /// A path prefix that ends at a segment: `/api` takes `/api` and `/api/x`, not `/apix`.
    #[serde(default = "root_path")]
    pub path: String,
}

fn any_host() -> String {
    "*".to_owned()
}

fn root_path() -> String {
    "/".to_owned()
}

impl Default for Match {
    fn default() -> Self {
        Self {
            host: any_host(),
            path: root_path(),
        }
    }
}

/// What keeps a client with the release it was given.
///
/// The choice is a seeded hash of the key against the weight. So it is the same on every proxy, needs no table, and is
/// monotone: growing the weight moves clients to the canary and none back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "by", rename_all = "lowercase", deny_unknown_fields)]
pub enum Sticky {
    /// A cookie that the proxy sets at the first answer.
    Cookie,
    /// The value of a request header, for example a tenant; requests without it are chosen at random.
    Header {
        /// The name of the header.
        name: String,
    },
    /// The request's `Idempotency-Key`; requests without it are chosen at random.
    Key,
}

/// Whether a canary's failure is replayed on stable, so that the user does not see it. The judge counts it all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Shield {
    /// What the canary answers is what the user gets.
    #[default]
    Off,
    /// Replayed where repeating is safe: idempotent methods (RFC 9110, 9.2.2), requests with an `Idempotency-Key`, and
    /// what was not sent yet.
    Idempotent,
}

/// One release of a route and where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// The release's id, as it stands in reports and metrics.
    pub release: String,
    /// The tasks that serve it. Empty: every request for it fails with 503.
    pub endpoints: Vec<Endpoint>,
}

/// Upper bounds on what one request may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest request body, in bytes; above it 413. Default 1 GiB.
    pub body_bytes_max: u64,
    /// Most requests in flight to the route; above it 503. Default 10 000.
    pub in_flight_max: u32,
    /// Longest request body that is kept for a repetition, in bytes: a longer one is not shielded or retried once it
    /// was sent. Default 64 KiB, times `in_flight_max` bounds the memory.
    pub replay_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 1 << 30,
            in_flight_max: 10_000,
            replay_bytes_max: 64 << 10,
        }
    }
}

/// How long the proxy waits for an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For a connection, in milliseconds. Default 1 000: inside one data centre a connection takes microseconds, and a
    /// SYN lost once is sent again after 1 s.
    pub connect_ms: u64,
    /// For the head of the answer, in milliseconds; above it 504. Default 10 000.
    pub response_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect_ms: 1_000,
            response_ms: 10_000,
        }
    }
}

/// The version of HTTP that is spoken to endpoints.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, one request at a time on each connection.
    #[default]
    Http1,
    /// HTTP/2 from the first byte, as gRPC servers expect it: without TLS that is h2c with prior knowledge (RFC 9113, 3.3).
    H2,
}

/// How endpoints prove who they are, and how the proxy does. All files are PEM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// The name that an endpoint's certificate must be for.
    pub server_name: String,
    /// The certificates of those who may sign it.
    pub ca_file: String,
    /// The proxy's own certificate, for endpoints that ask for one; with `key_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<String>,
    /// Its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
}

/// How the proxy speaks to the endpoints of a route.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(deny_unknown_fields, default)]
pub struct Transport {
    /// The version of HTTP.
    pub protocol: Protocol,
    /// TLS; without it endpoints are spoken to in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
}

impl Transport {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One service: the requests it is for and the releases that serve it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The name of the route, unique in the table: the service's name.
    pub name: String,
    /// Which requests it takes. Of several routes that match, a whole host name wins over `*.…` over `*`, then the
    /// longest path.
    #[serde(rename = "match", default)]
    pub matches: Match,
    /// The canary's share. Without a canary it must be 0.
    #[serde(default)]
    pub canary_bp: BasisPoints,
    /// What keeps a client with its release; without it every request is chosen by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// Whether failures of the canary are hidden from users.
    #[serde(default)]
    pub shield: Shield,
    /// The release served by default.
    pub stable: Upstream,
    /// The release on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Upstream>,
    /// The share of stable's requests that are also sent to the canary, whose answers to them nobody gets. Such copies
    /// carry `x-friday-mirror: 1`, are counted apart, and are left out before they slow a user down: those of bodies
    /// above `limits.replay_bytes_max` or that take the client more than some milliseconds to send, and those beyond
    /// 128 in flight on a worker.
    #[serde(default, skip_serializing_if = "BasisPoints::is_none")]
    pub mirror_bp: BasisPoints,
    /// The header by which answers say of what kind they are, to be counted by release. Clients see it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_kind: Option<String>,
    /// How its endpoints are spoken to.
    #[serde(default, skip_serializing_if = "Transport::is_default")]
    pub transport: Transport,
    /// Upper bounds.
    #[serde(default)]
    pub limits: Limits,
    /// Waiting times.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// All routes of a proxy, swapped whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// The number of this table.
    #[serde(default)]
    pub generation: Generation,
    /// The routes, in any order.
    pub routes: Vec<Route>,
}

impl RouteTable {
    /// Checks what the types do not: names are unique, no two routes match the same, and a share has a canary to go to.
    ///
    /// # Errors
    /// The first thing that is wrong, with the route's name.
    pub fn check(&self) -> Result<(), TableError> {
        let mut names = HashSet::new();
        let mut matches = HashSet::new();
        for route in &self.routes {
            if !names.insert(route.name.as_str()) {
                return Err(TableError::DuplicateName(route.name.clone()));
            }
            if !matches.insert((
                route.matches.host.to_ascii_lowercase(),
                route.matches.path.as_str(),
            )) {
                return Err(TableError::DuplicateMatch {
                    route: route.name.clone(),
                    host: route.matches.host.clone(),
                    path: route.matches.path.clone(),
                });
            }
            if !route.matches.path.starts_with('/') {
                return Err(TableError::Path {
                    route: route.name.clone(),
                    path: route.matches.path.clone(),
                });
            }
            if route.canary.is_none() && route.canary_bp != BasisPoints::NONE {
                return Err(TableError::NoCanary {
                    route: route.name.clone(),
                    points: route.canary_bp.get(),
                });
            }
        }
        Ok(())
    }
}

/// Why a table, or a part of one, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Not `TERM.SEQ`.
    #[error("generation {0:?} is not two whole numbers like 3.14")]
    Generation(String),
    /// Above the whole.
    #[error("{0} basis points is more than 10000, which is all requests")]
    BasisPoints(u16),
    /// Not `HOST:PORT`.
    #[error("endpoint {0:?} is not HOST:PORT with a port from 1 to 65535")]
    Endpoint(String),
    /// Two routes of one name.
    #[error("route {0:?} stands in the table twice")]
    DuplicateName(String),
    /// Two routes for the same requests.
    #[error(
        "route {route:?} matches host {host:?} and path {path:?}, which another route has already"
    )]
    DuplicateMatch {
        /// The second of the two.
        route: String,
        /// What both match.
        host: String,
        /// What both match.
        path: String,
    },
    /// A path that no request can have.
    #[error("route {route:?}: path {path:?} must begin with /")]
    Path {
        /// The route.
        route: String,
        /// Its path.
        path: String,
    },
    /// A share for nobody.
    #[error("route {route:?} gives {points} basis points to a canary it does not have")]
    NoCanary {
        /// The route.
        route: String,
        /// Its share.
        points: u16,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(json: &str) -> Result<RouteTable, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn reads_the_shortest_table() {
        let table = table(
            r#"{"routes":[{"name":"web","canary_bp":1000,
                "stable":{"release":"v1","endpoints":["127.0.0.1:9001"]},
                "canary":{"release":"v2","endpoints":["[::1]:9002"]}}]}"#,
        )
        .unwrap();
        table.check().unwrap();
        assert_eq!(table.routes[0].matches, Match::default());
        assert_eq!(table.routes[0].canary_bp.ratio(), 0.1);
    }

    #[test]
    fn refuses_a_misspelt_key_and_names_it() {
        let error = table(
            r#"{"routes":[{"name":"web","canary_pb":1,"stable":{"release":"v1","endpoints":[]}}]}"#,
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("canary_pb") && error.contains("line 1"),
            "{error}"
        );
    }

    #[test]
    fn refuses_a_share_above_the_whole_and_a_share_for_nobody() {
        assert!(table(r#"{"routes":[{"name":"a","canary_bp":10001,"stable":{"release":"v1","endpoints":[]}}]}"#).is_err());
        let alone = table(
            r#"{"routes":[{"name":"a","canary_bp":1,"stable":{"release":"v1","endpoints":[]}}]}"#,
        )
        .unwrap();
        assert!(matches!(alone.check(), Err(TableError::NoCanary { .. })));
    }

    #[test]
    fn refuses_addresses_that_are_none() {
        for text in [
            "",
            "host",
            ":80",
            "host:",
            "host:0",
            "host:70000",
            "::1:80",
            "[::1:80",
            "a b:80",
            "http://a:80",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        for text in ["a:1", "10.0.0.1:65535", "[::1]:80", "tasks.web_app-1:9000"] {
            assert!(text.parse::<Endpoint>().is_ok(), "{text}");
        }
    }

    #[test]
    fn orders_generations_by_term_first() {
        let newer: Generation = "2.0".parse().unwrap();
        let older: Generation = "1.99".parse().unwrap();
        assert!(newer > older);
        assert_eq!(newer.to_string(), "2.0");
        assert!("2".parse::<Generation>().is_err());
    }
}
