//! The options by which every step of the pipeline is told its bus.

use std::path::PathBuf;

use clap::Args;

use super::{BusConfig, KafkaConfig, Mechanism, PARTITIONS, Security};

/// Which bus to use, on the command line.
#[derive(Debug, Args)]
pub struct BusArgs {
    /// Directory of the local log, created if missing
    #[arg(long, value_name = "DIR", required_unless_present = "kafka")]
    bus: Option<PathBuf>,
    /// Kafka brokers to use instead of the local log
    #[arg(long, value_name = "HOST:PORT,…", conflicts_with = "bus")]
    kafka: Option<String>,
    /// Partitions of topics that do not exist yet: as many feeders as that can share the work
    #[arg(long, value_name = "N", default_value_t = PARTITIONS, conflicts_with = "bus",
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    partitions: u32,
    /// How to speak with the brokers
    #[arg(long, value_enum, default_value = "plaintext", conflicts_with = "bus")]
    kafka_security: Security,
    /// File of the certificates (PEM) that the brokers' are checked against, instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "bus")]
    kafka_ca: Option<PathBuf>,
    /// Name to sign in with, for sasl-plaintext and sasl-ssl
    #[arg(long, value_name = "NAME", conflicts_with = "bus")]
    kafka_user: Option<String>,
    /// File with the password, one line
    #[arg(long, value_name = "FILE", conflicts_with = "bus")]
    kafka_password_file: Option<PathBuf>,
    /// How the password is proven
    #[arg(long, value_enum, default_value = "plain", conflicts_with = "bus")]
    kafka_mechanism: Mechanism,
}

impl From<BusArgs> for BusConfig {
    fn from(args: BusArgs) -> Self {
        let Some(brokers) = args.kafka else {
            return Self::Local(args.bus.unwrap_or_default());
        };
        Self::Kafka(Box::new(KafkaConfig {
            brokers,
            partitions: args.partitions,
            security: args.kafka_security,
            ca: args.kafka_ca,
            user: args.kafka_user,
            password_file: args.kafka_password_file,
            mechanism: args.kafka_mechanism,
        }))
    }
}
