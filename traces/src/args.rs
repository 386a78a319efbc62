//! The options of whoever records traces.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use http::uri::Scheme;

/// Where traces go, for any program that takes part.
#[derive(Debug, Clone, Default, clap::Args)]
// Those of the program have a group of this name.
#[group(skip)]
pub struct Args {
    /// Send traces to this collector by OTLP over HTTP: http://HOST:PORT, such as http://127.0.0.1:4318. Without it none are
    /// recorded
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub otlp_endpoint: Option<String>,
    /// The share of new traces that are recorded, in steps of 0.01 %. A request whose trace is recorded already stays in it
    #[arg(
        long,
        env = "FRIDAY_TRACE_PERCENT",
        value_name = "PERCENT",
        default_value = "1"
    )]
    pub trace_percent: Share,
}

/// A share in basis points: from 1, which is 0.01 %, to 10 000, which is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u16);

/// One in a hundred: at 1 000 requests a second ten traces, enough to find a slow one by, and not to notice their cost.
impl Default for Share {
    fn default() -> Self {
        Self(100)
    }
}

impl Share {
    /// Everything.
    pub const ALL: Self = Self(10_000);

    /// Whether one more belongs to it. A matter of chance.
    pub(crate) fn takes_one(self) -> bool {
        rand::random_range(0..10_000) < self.0
    }
}

impl FromStr for Share {
    type Err = String;

    /// As people write it, with or without its sign.
    fn from_str(text: &str) -> Result<Self, String> {
        let number: Option<f64> = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
        number
            .map(|percent| (percent * 100.0).round())
            .filter(|points| (1.0..=10_000.0).contains(points))
            // In that range, so it fits.
            .map(|points| Self(points as u16))
            .ok_or_else(|| "expected a percentage from 0.01 to 100, such as 1".to_owned())
    }
}

impl fmt::Display for Share {
    /// In percent, without the sign.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 100.0)
    }
}

/// Where traces go, and how many there are; checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Of the signal: what was given, with the path of traces behind it.
    pub(crate) url: String,
    /// Of new traces.
    pub(crate) share: Share,
}

/// Why options are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A collector that is to be spoken to by TLS.
    #[error(
        "--otlp-endpoint {0}: traces are sent in the clear; run a collector beside this program, name it here at http://, and let it pass them on by TLS"
    )]
    Tls(String),
    /// Not the URL of a collector.
    #[error("--otlp-endpoint: {0}; expected http://HOST:PORT, such as http://127.0.0.1:4318")]
    Url(&'static str),
}

impl Config {
    /// A collector's address, and the share of new traces that it gets.
    ///
    /// # Errors
    /// It is no address at `http://`.
    pub fn new(endpoint: &str, share: Share) -> Result<Self, ConfigError> {
        // Not shown where it has a user: there may be a password beside.
        let uri: Uri = endpoint
            .parse()
            .map_err(|_| ConfigError::Url("not a URL"))?;
        let authority = uri.authority().ok_or(ConfigError::Url("without a host"))?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(ConfigError::Url("with a query or a user"));
        }
        if uri.scheme() == Some(&Scheme::HTTPS) {
            return Err(ConfigError::Tls(endpoint.to_owned()));
        }
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(ConfigError::Url("not at http://"));
        }
        if authority.host().is_empty() || authority.port_u16() == Some(0) {
            return Err(ConfigError::Url("without a host or a port"));
        }
        // The OTLP exporter specification: the address is a base, each signal has a path below it.
        let base = uri.path().trim_end_matches('/');
        Ok(Self {
            url: format!("http://{authority}{base}/v1/traces"),
            share,
        })
    }
}

impl TryFrom<Args> for Option<Config> {
    type Error = ConfigError;

    /// Nothing without a collector. An empty variable is one that is not set, and no mistake.
    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let endpoint = args.otlp_endpoint.filter(|endpoint| !endpoint.is_empty());
        endpoint
            .map(|endpoint| Config::new(&endpoint, args.trace_percent))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_an_address_in_the_clear_and_says_what_to_do_otherwise() {
        for (given, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://otel/", "http://otel/v1/traces"),
            ("http://[::1]:4318/a/b/", "http://[::1]:4318/a/b/v1/traces"),
        ] {
            assert_eq!(Config::new(given, Share::ALL).unwrap().url, url);
        }
        let refused = |given: &str| Config::new(given, Share::ALL).unwrap_err().to_string();
        assert!(refused("https://otel:4318").contains("run a collector beside"));
        for wrong in [
            "",
            "otel",
            "otel:4318",
            "/v1",
            "ftp://otel",
            "http://otel/?x=1",
            "http://otel:0",
            "http://u:secret@otel",
            "https://u:secret@otel",
        ] {
            let words = refused(wrong);
            assert!(
                words.contains("expected http://") && !words.contains("secret"),
                "{wrong}: {words}"
            );
        }
        let of = |endpoint: Option<&str>| {
            let args = Args {
                otlp_endpoint: endpoint.map(str::to_owned),
                trace_percent: Share::default(),
            };
            Option::<Config>::try_from(args)
        };
        assert_eq!(of(None), Ok(None));
        assert_eq!(of(Some("")), Ok(None));
        assert!(of(Some("http://otel")).unwrap().is_some());
    }

    #[test]
    fn reads_a_share_as_people_write_it() {
        for (text, points) in [("1", 100), ("0.01", 1), ("100%", 10_000), ("12.5 %", 1_250)] {
            assert_eq!(text.parse(), Ok(Share(points)), "{text}");
            assert_eq!(Share(points).to_string().parse(), Ok(Share(points)));
        }
        for wrong in ["", "0", "0.001", "101", "-1", "NaN", "all"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
        assert!((0..1_000).all(|_| Share::ALL.takes_one()));
    }
}
