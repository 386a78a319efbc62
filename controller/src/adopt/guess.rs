//! What a service says of how its users reach it: port, ready check and route. Each guess says what it is made of.

use std::collections::BTreeSet;

use reqwest::Url;
use serde::Serialize;
use serde_json::Value;

use crate::stack::image::interpolated;
use crate::stack::running::{Health, HealthCheck, Published};

/// A value that somebody should look at before it counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Guess<T> {
    /// What is written.
    pub value: T,
    /// Where it is from.
    pub source: String,
    /// What to check.
    pub check: String,
}

/// What requests are sent here, as the labels of Traefik have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// `route.host`.
    pub host: String,
    /// `route.path`.
    pub path: String,
}

/// What is looked at.
pub(super) struct Clues<'a> {
    pub(super) spec: &'a Value,
    pub(super) image: Option<&'a Value>,
    pub(super) ports: &'a [Published],
    pub(super) health: &'a Health,
}

impl Clues<'_> {
    /// The port that tasks listen on; `None` where nothing says it.
    pub(super) fn port(&self, given: Option<u16>) -> Option<Guess<u16>> {
        let users = "users' requests go to this port of a task";
        let guess = |value: u16, source: String| {
            Some(Guess {
                value,
                source,
                check: users.to_owned(),
            })
        };
        if let Some(port) = given {
            return guess(port, "of --port".to_owned());
        }
        if let Some((port, label)) = self.port_of_labels() {
            return guess(
                port,
                format!("of the label {label}, by which another proxy finds it"),
            );
        }
        let asked = self.health_url();
        let tcp: Vec<&Published> = self
            .ports
            .iter()
            .filter(|port| port.protocol == "tcp")
            .collect();
        let is_asked = |port: &&&Published| {
            asked.as_ref().and_then(|url| url.port_or_known_default()) == Some(port.target)
        };
        let of_published = tcp.iter().find(is_asked).or_else(|| tcp.first());
        if let Some(port) = of_published {
            let shown = port
                .published
                .map_or_else(|| "a free port".to_owned(), |port| format!("port {port}"));
            let others = match tcp.len() {
                1 => String::new(),
                many => format!(", one of {many} that are published"),
            };
            return guess(
                port.target,
                format!("{shown} of its nodes leads there{others}"),
            );
        }
        if let Some(port) = asked.and_then(|url| url.port_or_known_default()) {
            return guess(port, "its health check asks there".to_owned());
        }
        if let Some(port) = self.variable("PORT").and_then(|port| port.parse().ok()) {
            return guess(port, "of PORT in its environment".to_owned());
        }
        let exposed = self
            .image
            .and_then(|image| image["ExposedPorts"].as_object());
        let exposed: BTreeSet<u16> = exposed
            .into_iter()
            .flatten()
            .filter_map(|(port, _)| port.strip_suffix("/tcp")?.parse().ok())
            .collect();
        let first = *exposed.first()?;
        let others = match exposed.len() {
            1 => String::new(),
            many => format!(", the smallest of {many}"),
        };
        guess(first, format!("its image exposes it{others}"))
    }

    /// The path of our own ready check.
    pub(super) fn ready(&self, port: u16) -> Guess<String> {
        let check =
            "a task answers 2xx there once it can work, and not before; HTTP/1.1 in the clear";
        let default = |source: &str| Guess {
            value: "/ready".to_owned(),
            source: source.to_owned(),
            check: check.to_owned(),
        };
        match (self.health_url(), self.health) {
            (Some(url), Health::Check(HealthCheck { is_of_image, .. })) => {
                let whose = if *is_of_image { "its image's" } else { "its" };
                let elsewhere = if url.port_or_known_default() == Some(port) {
                    String::new()
                } else {
                    format!(", at port {}", url.port_or_known_default().unwrap_or(80))
                };
                let query = url.query().map(|query| format!("?{query}"));
                Guess {
                    value: format!("{}{}", url.path(), query.unwrap_or_default()),
                    source: format!("{whose} health check asks it{elsewhere}"),
                    check: check.to_owned(),
                }
            }
            (None, Health::Check(_)) => {
                default("the usual one: its health check is a command that names no address")
            }
            (_, Health::None) => default("the usual one: it has no health check"),
            (_, Health::Unknown) => {
                default("the usual one: its image, which may have a health check, is not here")
            }
        }
    }

    /// The route of a Traefik router, if one says it simply.
    pub(super) fn route(&self) -> Option<Guess<Route>> {
        let (label, rule) = self.labels().find(|(label, _)| {
            label.starts_with("traefik.http.routers.") && label.ends_with(".rule")
        })?;
        let argument = |name: &str| {
            let (_, rest) = rule.split_once(&format!("{name}(`"))?;
            let (argument, _) = rest.split_once('`')?;
            let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            (!argument.is_empty() && argument.chars().all(fits)).then(|| argument.to_owned())
        };
        let host = argument("Host").filter(|host| !host.contains('/'));
        let path = argument("PathPrefix").filter(|path| path.starts_with('/'));
        if host.is_none() && path.is_none() {
            return None;
        }
        Some(Guess {
            value: Route {
                host: host.unwrap_or_else(|| "*".to_owned()),
                path: path.unwrap_or_else(|| "/".to_owned()),
            },
            source: format!("of the label {label}: {rule}"),
            check: "it says the same; one host and one path are all that is read of it".to_owned(),
        })
    }

    /// Labels by which another proxy sends it requests.
    pub(super) fn labels_of_proxies(&self) -> Vec<&str> {
        let is_proxy = |label: &&str| {
            ["traefik.", "com.df.", "caddy"]
                .iter()
                .any(|begin| label.starts_with(begin))
        };
        self.labels()
            .map(|(label, _)| label)
            .filter(is_proxy)
            .collect()
    }

    fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.spec["Labels"].as_object();
        let labels = labels.into_iter().flatten();
        labels.filter_map(|(label, value)| Some((label.as_str(), value.as_str()?)))
    }

    fn port_of_labels(&self) -> Option<(u16, &str)> {
        let is_port = |label: &str| {
            label == "com.df.port"
                || (label.starts_with("traefik.http.services.")
                    && label.ends_with(".loadbalancer.server.port"))
        };
        let mut labels = self.labels().filter(|(label, _)| is_port(label));
        labels.find_map(|(label, port)| Some((port.parse().ok()?, label)))
    }

    /// The address that the health check asks, if its command names one.
    fn health_url(&self) -> Option<Url> {
        let Health::Check(HealthCheck { test, .. }) = self.health else {
            return None;
        };
        let words = test.iter().skip(1).flat_map(|word| {
            word.split(|c: char| c.is_whitespace() || "'\"`();|&".contains(c))
                .filter(|word| !word.is_empty())
        });
        words.into_iter().find_map(|word| {
            let word = interpolated(word, |name| self.variable(name)).ok()?;
            let is_local = |host: &str| {
                ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"]
                    .iter()
                    .any(|local| {
                        host.strip_prefix(local)
                            .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
                    })
            };
            let url = if word.starts_with("http://") || word.starts_with("https://") {
                Url::parse(&word).ok()?
            } else if is_local(&word) && word.contains([':', '/']) {
                Url::parse(&format!("http://{word}")).ok()?
            } else {
                return None;
            };
            url.host_str().filter(|host| !host.is_empty())?;
            Some(url)
        })
    }

    /// A variable of the tasks' environment.
    fn variable(&self, name: &str) -> Option<String> {
        let own = self.spec["TaskTemplate"]["ContainerSpec"]["Env"].as_array();
        let of_image = self.image.and_then(|image| image["Env"].as_array());
        let lists = [own, of_image].into_iter().flatten();
        let mut pairs = lists
            .flatten()
            .filter_map(|pair| pair.as_str()?.split_once('='));
        pairs.find_map(|(key, value)| (key == name).then(|| value.to_owned()))
    }
}
