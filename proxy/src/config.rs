//! Arguments, and the configuration that they make: valid, or not there.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use http::Uri;
use http::uri::Scheme;
use proxy_api::{BasisPoints, Endpoint};

use crate::tls::CertificateFiles;

/// Longest drain that may be asked for: an hour. Longer than any orchestrator waits, so more is a slip of the unit.
const DRAIN_SECONDS_MAX: u64 = 3_600;

/// Longest name of a proxy; it stands in URLs and in every report.
const NAME_BYTES_MAX: usize = 64;

/// The command line of the proxy, for this binary and for any that embeds it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where clients connect: ADDRESS:PORT, port 0 for a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where /ready, /live, /metrics and /routes are served: ADDRESS:PORT, port 0 for a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub admin: SocketAddr,
    /// Lets --admin be an address that other machines reach; there is no sign-in
    #[arg(long)]
    pub admin_anywhere: bool,
    /// Run alone, with the route table in this JSON file; read again on SIGHUP, replaced by PUT /routes on --admin
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "controller",
        conflicts_with_all = ["controller", "state_dir", "name"]
    )]
    pub routes: Option<PathBuf>,
    /// Take route tables from this controller and report to it: https://HOST:PORT or http://HOST:PORT
    #[arg(long, value_name = "URL", requires = "state_dir")]
    pub controller: Option<String>,
    /// PEM file of the authorities that a controller at https:// is verified with, in place of those that the system
    /// trusts
    #[arg(
        long,
        env = "FRIDAY_CONTROLLER_CA",
        hide_env_values = true,
        // An empty variable is one that is not set, and no mistake.
        value_parser = OsStringValueParser::new().map(PathBuf::from),
        value_name = "FILE"
    )]
    pub controller_ca: Option<PathBuf>,
    /// File of the token by which the controller knows this proxy; read again when the controller refuses it
    #[arg(long, value_name = "FILE", requires = "controller")]
    pub token_file: Option<PathBuf>,
    /// Where the last route table is kept; made if missing
    #[arg(long, value_name = "DIR", requires = "controller")]
    pub state_dir: Option<PathBuf>,
    /// This proxy's name, unique among the proxies of the controller [default: the host's name]
    #[arg(long, requires = "controller")]
    pub name: Option<String>,
    /// Write the addresses in use to this file as JSON, once both are bound
    #[arg(long, value_name = "FILE")]
    pub addresses_file: Option<PathBuf>,
    /// Speak TLS to clients, with the certificate in this PEM file, those between it and the root behind it; read again
    /// whenever it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Most connections of clients; above it 503, by TLS only closed
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_max: u32,
    /// Longest head of a request, in bytes; above it 431
    #[arg(long, value_name = "BYTES", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(8_192..=16_777_216))]
    pub head_bytes_max: u32,
    /// Most fields of a request's head; above it 431
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    pub headers_max: u32,
    /// How long a client may take for the head of a request it has begun, or to take the next piece of an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub head_seconds: u64,
    /// How long an upstream may leave off in the middle of an answer; then the answer is broken off, and counts against its release
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub answer_idle_seconds: u64,
    /// How long nothing may pass on a stream: server-sent events, gRPC, an upgraded connection such as a WebSocket
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub stream_idle_seconds: u64,
    /// How long answers, streams and upgraded connections may go on at an endpoint that the table no longer has [default: until
    /// its task ends]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub leaving_seconds: Option<u64>,
    /// How long a client may keep a connection without a request
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub idle_seconds: u64,
    /// Write a JSON line for each request to the end of this file, - for standard output. Queries, cookies and bodies are
    /// not written. It is not opened again: rotate it by copying and truncating
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// The share of requests in --access-log, in steps of 0.01 %
    #[arg(long, value_name = "PERCENT", default_value = "100", requires = "access_log", value_parser = percent)]
    pub access_log_percent: BasisPoints,
    /// Where traces go
    #[command(flatten)]
    pub traces: friday_traces::Args,
    /// Threads that serve clients [default: as many as there are processors]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Share --listen with a proxy that runs there and is about to be stopped: new clients come to both until it drains
    #[arg(long)]
    pub takeover: bool,
    /// On SIGTERM or SIGINT, how long requests in flight may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_seconds: u64,
}

/// What clients may do, and how long they are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clients {
    /// Most connections at a time, over all workers.
    pub connections_max: u32,
    /// Longest head of a request, in bytes.
    pub head_bytes_max: u32,
    /// Most fields of a head.
    pub headers_max: u32,
    /// Longest wait for a head that was begun, and for an answer to be taken; noticed up to a second later.
    pub head_max: Duration,
    /// Longest time without a request.
    pub idle_max: Duration,
    /// Longest time without a piece of an answer that was begun.
    pub answer_idle_max: Duration,
    /// Longest time in which nothing passes on a stream or an upgraded connection; of the latter noticed up to an eighth later.
    pub stream_idle_max: Duration,
    /// Longest time for what is in flight at an endpoint that left the table; `None`: as long as it takes.
    pub leaving_max: Option<Duration>,
}

impl Default for Clients {
    /// An idle connection costs about 10 KiB, so 200 MiB at most. A head of 64 KiB holds cookies of 4 KiB by the dozen. An answer
    /// that is made piece by piece, such as a long export, may think for minutes; on a stream there may be nothing to say for
    /// much longer, and clients that want to know sooner ask (WebSocket's ping, comments in server-sent events).
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            head_bytes_max: 64 << 10,
            headers_max: 100,
            head_max: Duration::from_secs(15),
            idle_max: Duration::from_secs(60),
            answer_idle_max: Duration::from_secs(300),
            stream_idle_max: Duration::from_secs(3_600),
            leaving_max: None,
        }
    }
}

/// All that a proxy needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the proxy itself can be asked.
    pub admin: SocketAddr,
    /// Where tables come from.
    pub source: Source,
    /// Where the addresses in use are written.
    pub addresses_file: Option<PathBuf>,
    /// What clients may do.
    pub clients: Clients,
    /// The certificate for clients; without it they are served in the clear.
    pub certificate: Option<CertificateFiles>,
    /// Where a line for each request is written, and for which share of them.
    pub access_log: Option<(PathBuf, BasisPoints)>,
    /// Where traces go, and how many; without it none are recorded.
    pub traces: Option<friday_traces::Config>,
    /// How many threads serve clients.
    pub threads: NonZeroUsize,
    /// Whether another proxy may be listening at the same address.
    pub takeover: bool,
    /// How long requests in flight may take after the shutdown began.
    pub drain_max: Duration,
}

/// Where route tables come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file; nobody gets reports.
    File(PathBuf),
    /// A controller, and the disk for when it is away.
    Controller {
        /// Where it is.
        controller: Controller,
        /// The file of the authorities that it is verified with; without one those of the system.
        ca: Option<PathBuf>,
        /// Where the last table is kept.
        state_dir: PathBuf,
        /// This proxy's name.
        name: String,
        /// The file of the token to sign in with.
        token_file: Option<PathBuf>,
    },
}

/// The address of a controller, `https://HOST:PORT` or `http://HOST:PORT`, with or without a path in front of `/api`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Where to connect.
    pub endpoint: Endpoint,
    /// What goes into `Host`.
    pub authority: String,
    /// Whose certificate it must show, if it speaks TLS.
    pub host: String,
    /// Whether it speaks TLS.
    pub is_tls: bool,
    /// What its paths begin with; empty or `/…` without a slash at the end.
    pub base: String,
}

/// Why arguments are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not the URL of a controller.
    #[error("--controller {url:?}: {problem}; expected https://HOST:PORT or http://HOST:PORT")]
    Controller {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Authorities for nobody.
    #[error("--controller-ca goes with a controller at https://; this one is asked in the clear")]
    AuthoritiesOfNobody,
    /// An admin address that others reach.
    #[error(
        "--admin {0}: everyone who reaches it can read the table, and it has no sign-in; expected a loopback address, or --admin-anywhere"
    )]
    AdminAnywhere(SocketAddr),
    /// Not a name.
    #[error("--name {0:?}: expected 1 to 64 letters, digits, dots, hyphens or underscores")]
    Name(String),
    /// Too long a drain.
    #[error("--drain-seconds {0}: expected at most 3600")]
    Drain(u64),
    /// Not the address of a collector.
    #[error(transparent)]
    Traces(#[from] friday_traces::ConfigError),
    /// No source of tables, or half of one.
    #[error("expected --routes FILE, or --controller URL with --state-dir DIR")]
    Source,
}

impl FromStr for Controller {
    type Err = ConfigError;

    fn from_str(url: &str) -> Result<Self, ConfigError> {
        let refused = |problem| ConfigError::Controller {
            url: url.to_owned(),
            problem,
        };
        let uri: Uri = url.parse().map_err(|_| refused("not a URL"))?;
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        if !is_tls && uri.scheme() != Some(&Scheme::HTTP) {
            return Err(refused("neither https nor http"));
        }
        let authority = uri.authority().ok_or_else(|| refused("without a host"))?;
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err(refused("with a query or a user"));
        }
        let port = authority
            .port_u16()
            .unwrap_or(if is_tls { 443 } else { 80 });
        let endpoint = format!("{}:{port}", authority.host())
            .parse()
            .map_err(|_| refused("not a host and a port"))?;
        Ok(Self {
            endpoint,
            authority: authority.to_string(),
            host: authority.host().to_owned(),
            is_tls,
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        if !args.admin.ip().is_loopback() && !args.admin_anywhere {
            return Err(ConfigError::AdminAnywhere(args.admin));
        }
        if args.drain_seconds > DRAIN_SECONDS_MAX {
            return Err(ConfigError::Drain(args.drain_seconds));
        }
        let source = match (args.routes, args.controller, args.state_dir) {
            (Some(file), None, None) => Source::File(file),
            (None, Some(url), Some(state_dir)) => Source::Controller {
                ca: authorities(&url.parse()?, args.controller_ca)?,
                controller: url.parse()?,
                state_dir,
                name: checked_name(args.name.unwrap_or_else(host_name))?,
                token_file: args.token_file,
            },
            (_, _, _) => return Err(ConfigError::Source),
        };
        Ok(Self {
            listen: args.listen,
            admin: args.admin,
            source,
            addresses_file: args.addresses_file,
            clients: Clients {
                connections_max: args.connections_max,
                head_bytes_max: args.head_bytes_max,
                headers_max: args.headers_max,
                head_max: Duration::from_secs(args.head_seconds),
                idle_max: Duration::from_secs(args.idle_seconds),
                answer_idle_max: Duration::from_secs(args.answer_idle_seconds),
                stream_idle_max: Duration::from_secs(args.stream_idle_seconds),
                leaving_max: args.leaving_seconds.map(Duration::from_secs),
            },
            certificate: args
                .tls_cert
                .zip(args.tls_key)
                .map(|(certificate, key)| CertificateFiles { certificate, key }),
            access_log: args.access_log.map(|path| (path, args.access_log_percent)),
            traces: args.traces.try_into()?,
            threads: args.threads.unwrap_or_else(processors),
            takeover: args.takeover,
            drain_max: Duration::from_secs(args.drain_seconds),
        })
    }
}

/// The file of the authorities that the controller is verified with. An empty variable is one that is not set.
fn authorities(
    controller: &Controller,
    file: Option<PathBuf>,
) -> Result<Option<PathBuf>, ConfigError> {
    let file = file.filter(|file| !file.as_os_str().is_empty());
    if file.is_some() && !controller.is_tls {
        return Err(ConfigError::AuthoritiesOfNobody);
    }
    Ok(file)
}

fn checked_name(name: String) -> Result<String, ConfigError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_plain) {
        return Err(ConfigError::Name(name));
    }
    Ok(name)
}

/// A share as people write it, with or without its sign.
fn percent(text: &str) -> Result<BasisPoints, String> {
    let number: Option<f64> = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    let points = number
        .map(|percent| (percent * 100.0).round())
        .filter(|points| (1.0..=10_000.0).contains(points));
    // In that range, so it fits.
    points
        .and_then(|points| BasisPoints::new(points as u16).ok())
        .ok_or_else(|| "expected a percentage from 0.01 to 100, such as 1".to_owned())
}

/// How many threads can run at the same time, by the process's share of the machine.
fn processors() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The host's name as the kernel knows it; in a container that is the container's.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "proxy".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn config(args: &[&str]) -> Result<Config, String> {
        let cli = Cli::try_parse_from([&["friday-proxy"], args].concat())
            .map_err(|error| error.to_string())?;
        Config::try_from(cli.args).map_err(|error| error.to_string())
    }

    #[test]
    fn takes_a_file_or_a_controller_but_not_both() {
        let alone = config(&["--routes", "r.json", "--listen", "0.0.0.0:0"]).unwrap();
        assert!(matches!(alone.source, Source::File(_)));
        let led = config(&[
            "--controller",
            "http://c:7070",
            "--state-dir",
            "d",
            "--name",
            "p",
        ]);
        assert!(matches!(led.unwrap().source, Source::Controller { .. }));
        for wrong in [
            &[][..],
            &["--controller", "http://c:7070"],
            &[
                "--routes",
                "r.json",
                "--controller",
                "http://c:1",
                "--state-dir",
                "d",
            ],
            &["--state-dir", "d"],
            &["--routes", "r.json", "--listen", "nowhere"],
            &["--routes", "r.json", "--drain-seconds", "999999"],
        ] {
            assert!(config(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn endpoints_that_leave_have_no_limit_but_the_one_that_is_given() {
        let leaving = |args: &[&str]| config(args).unwrap().clients.leaving_max;
        let alone = ["--routes", "r.json"];
        let led = [
            "--controller",
            "http://c",
            "--state-dir",
            "d",
            "--name",
            "p",
        ];
        for source in [&alone[..], &led] {
            assert_eq!(leaving(source), None);
            let given = [source, &["--leaving-seconds", "7"]].concat();
            assert_eq!(leaving(&given), Some(Duration::from_secs(7)));
        }
    }

    #[test]
    fn keeps_the_admin_address_on_this_machine_unless_told_otherwise() {
        let open = ["--routes", "r.json", "--admin", "0.0.0.0:1"];
        let refused = config(&open).unwrap_err();
        assert!(refused.contains("--admin-anywhere"), "{refused}");
        config(&[&open[..], &["--admin-anywhere"]].concat()).unwrap();
        config(&["--routes", "r.json", "--admin", "[::1]:1"]).unwrap();
    }

    #[test]
    fn reads_the_controllers_url() {
        let parts = |url: &str| {
            let Controller { endpoint, base, .. } = url.parse().unwrap();
            (endpoint.to_string(), base)
        };
        assert_eq!(parts("http://c"), ("c:80".into(), String::new()));
        assert_eq!(parts("http://[::1]:7/"), ("[::1]:7".into(), String::new()));
        assert_eq!(parts("http://c:7/a/b/"), ("c:7".into(), "/a/b".into()));
        assert_eq!(parts("https://c/a"), ("c:443".into(), "/a".into()));
        let by_tls: Controller = "https://[::1]:7".parse().unwrap();
        assert!(by_tls.is_tls && by_tls.host == "[::1]", "{by_tls:?}");
        for url in [
            "",
            "c:7",
            "ftp://c",
            "http://u@c:7",
            "http://c:7/?x",
            "http://c:0",
        ] {
            assert!(url.parse::<Controller>().is_err(), "{url}");
        }
    }

    #[test]
    fn authorities_are_for_a_controller_that_speaks_tls() {
        let led = |url, ca| {
            config(&[
                "--controller",
                url,
                "--state-dir",
                "d",
                "--controller-ca",
                ca,
            ])
        };
        led("https://c:7070", "ca.pem").unwrap();
        led("http://c:7070", "").unwrap();
        let refused = led("http://c:7070", "ca.pem").unwrap_err();
        assert!(refused.contains("--controller-ca"), "{refused}");
    }

    #[test]
    fn traces_go_to_a_collector_in_the_clear() {
        let with = |more: &[&str]| config(&[&["--routes", "r.json"], more].concat());
        assert_eq!(with(&[]).unwrap().traces, None);
        let given = with(&["--otlp-endpoint", "http://c:4318", "--trace-percent", "5"]);
        assert!(given.unwrap().traces.is_some());
        let refused = with(&["--otlp-endpoint", "https://c:4318"]).unwrap_err();
        assert!(refused.contains("run a collector beside"), "{refused}");
        assert!(with(&["--trace-percent", "0"]).is_err());
    }

    #[test]
    fn refuses_a_name_that_does_not_fit_into_a_url() {
        for name in ["", "a/b", "a b", &"x".repeat(65)] {
            assert!(checked_name(name.to_owned()).is_err(), "{name}");
        }
        assert!(checked_name("proxy-1.eu_west".to_owned()).is_ok());
    }
}
