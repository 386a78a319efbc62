//! What may be handed in, and where: the options, and what they come to.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::clients::ClientLimits;
use crate::bus::BusConfig;
use crate::server::ServerConfig;
use crate::telemetry::Identity;

/// What one upload may hold, and how many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Bytes as they come.
    pub body_bytes_max: usize,
    /// Bytes after unpacking.
    pub unpacked_bytes_max: u64,
    /// Records.
    pub records_max: u64,
    /// Uploads of all clients at once: with `body_bytes_max`, what bounds the memory.
    pub at_once_max: usize,
}

/// Who may send what: the options of `ingest`.
#[derive(Debug, Args)]
pub struct IngestArgs {
    /// File of the clients that may POST /ingest, a line for each: NAME: SHA256 of its token
    #[arg(
        long,
        value_name = "FILE",
        requires = "state_dir",
        required_unless_present = "watch"
    )]
    clients: Option<PathBuf>,
    /// Directory in which answers are remembered by their Idempotency-Key, created if missing
    #[arg(long, value_name = "DIR", requires = "clients")]
    state_dir: Option<PathBuf>,
    /// Directory from which files are taken too, created if missing; they end up in its done/ or refused/. Names that
    /// begin with a dot or end in .tmp or .part are left alone: write under such a name, then rename
    #[arg(long, value_name = "DIR")]
    watch: Option<PathBuf>,
    /// Largest body, in MiB as it comes
    #[arg(long, value_name = "MIB", default_value = "8",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    body_mib: u16,
    /// Largest body, in MiB after unpacking
    #[arg(long, value_name = "MIB", default_value = "64",
        value_parser = clap::value_parser!(u16).range(1..=16_384))]
    unpacked_mib: u16,
    /// Most records of one upload
    #[arg(long, value_name = "N", default_value = "100000")]
    records: u64,
    /// Most uploads at once
    #[arg(long, value_name = "N", default_value = "8")]
    uploads: NonZeroUsize,
    /// Most uploads of one client at once
    #[arg(long, value_name = "N", default_value = "2")]
    client_uploads: NonZeroUsize,
    /// Uploads a second of one client, in the long run; a burst may have ten times as many
    #[arg(long, value_name = "N", default_value = "5", value_parser = crate::cli::positive)]
    client_rate: f64,
}

/// What the endpoint does.
#[derive(Debug, Clone, PartialEq)]
pub struct IngestConfig {
    /// Where to.
    pub bus: BusConfig,
    /// Who may POST; without it nobody.
    pub uploads: Option<UploadsConfig>,
    /// The directory from which files are taken.
    pub watch: Option<PathBuf>,
    /// Limits of uploads.
    pub limits: UploadLimits,
    /// Limits of each client.
    pub client_limits: ClientLimits,
    /// Where to listen.
    pub server: ServerConfig,
    /// Labels of the metrics.
    pub identity: Identity,
}

/// Who may POST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadsConfig {
    /// The file of clients.
    pub clients: PathBuf,
    /// The directory of remembered answers.
    pub state_dir: PathBuf,
}

impl IngestConfig {
    pub(crate) fn new(
        args: IngestArgs,
        bus: BusConfig,
        server: ServerConfig,
        identity: Identity,
    ) -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            bus,
            uploads: args
                .clients
                .zip(args.state_dir)
                .map(|(clients, state_dir)| UploadsConfig { clients, state_dir }),
            watch: args.watch,
            limits: UploadLimits {
                body_bytes_max: usize::from(args.body_mib) * MIB as usize,
                unpacked_bytes_max: u64::from(args.unpacked_mib) * MIB,
                records_max: args.records,
                at_once_max: args.uploads.get(),
            },
            client_limits: ClientLimits {
                at_once_max: args.client_uploads.get(),
                rate: args.client_rate,
                burst: (args.client_rate * 10.0).max(1.0),
            },
            server,
            identity,
        }
    }
}
