//! Which brokers, and how to speak with them.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use rdkafka::ClientConfig;

use crate::bus::{BusError, PARTITIONS};

/// Longest password file. Longer ones are something else, given by mistake.
const PASSWORD_BYTES_MAX: usize = 4_096;

/// Whether librdkafka was built with OpenSSL.
const HAS_TLS: bool = cfg!(feature = "kafka-tls");

/// Kafka brokers, and how to speak with them. The password stays in its file until a client is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `HOST:PORT[,HOST:PORT…]`, to begin with; the brokers tell the others.
    pub brokers: String,
    /// Partitions of topics that are created here, at least 1.
    pub partitions: u32,
    /// Encryption, and whether to sign in.
    pub security: Security,
    /// Certificates (PEM) that the brokers' are checked against; without it, the system's.
    pub ca: Option<PathBuf>,
    /// Who signs in.
    pub user: Option<String>,
    /// Where the password stands: one line.
    pub password_file: Option<PathBuf>,
    /// How the password is proven.
    pub mechanism: Mechanism,
}

/// How to speak with the brokers: Kafka's `security.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Security {
    /// As it is, for a network of one's own.
    Plaintext,
    /// Encrypted.
    Ssl,
    /// Signed in, and not encrypted: whoever listens sees all, with `plain` the password as well.
    SaslPlaintext,
    /// Signed in and encrypted.
    SaslSsl,
}

/// How a password is proven: Kafka's `sasl.mechanism`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mechanism {
    /// By sending it.
    Plain,
    /// By a challenge, without sending it (RFC 7677).
    #[value(name = "scram-sha-256")]
    ScramSha256,
    /// The same with SHA-512.
    #[value(name = "scram-sha-512")]
    ScramSha512,
}

impl Security {
    const fn protocol(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    const fn encrypts(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    const fn signs_in(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

impl Mechanism {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl KafkaConfig {
    /// Brokers without encryption or accounts.
    #[must_use]
    pub fn plaintext(brokers: &str) -> Self {
        Self {
            brokers: brokers.to_owned(),
            partitions: PARTITIONS,
            security: Security::Plaintext,
            ca: None,
            user: None,
            password_file: None,
            mechanism: Mechanism::Plain,
        }
    }

    /// What all our clients have in common. It holds the password: never to be logged.
    pub(super) fn client(&self) -> Result<ClientConfig, BusError> {
        self.check(HAS_TLS)?;
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "pipeline-demo")
            .set("security.protocol", self.security.protocol())
            // A broker that comes back should be found quickly; the default waits up to 10 s.
            .set("reconnect.backoff.max.ms", "1000");
        if let Some(ca) = &self.ca {
            client.set("ssl.ca.location", ca.display().to_string());
        }
        if self.security.signs_in() {
            client.set("sasl.mechanism", self.mechanism.name());
            if let (Some(user), Some(file)) = (&self.user, &self.password_file) {
                client.set("sasl.username", user);
                client.set("sasl.password", password(file)?);
            }
        }
        Ok(client)
    }

    /// Refuses options that cannot work, before any broker is asked.
    fn check(&self, has_tls: bool) -> Result<(), BusError> {
        let refused = |problem: String| Err(BusError::Options { problem });
        let needs_tls = if self.security.encrypts() {
            Some(format!(
                "--kafka-security {}",
                self.security.protocol().replace('_', "-")
            ))
        } else if self.security.signs_in() && self.mechanism != Mechanism::Plain {
            let mechanism = self.mechanism.name().to_lowercase();
            Some(format!("--kafka-mechanism {mechanism}"))
        } else {
            None
        };
        if let Some(option) = needs_tls.filter(|_| !has_tls) {
            return refused(format!(
                "{option} needs OpenSSL, which this build leaves out because it takes minutes to build; \
                 build it in: cargo build --release -p pipeline-demo --features kafka-tls"
            ));
        }
        if self.ca.is_some() && !self.security.encrypts() {
            return refused(
                "--kafka-ca is for encrypted connections; say --kafka-security ssl or sasl-ssl"
                    .to_owned(),
            );
        }
        let has_account = self.user.is_some() || self.password_file.is_some();
        if has_account && !self.security.signs_in() {
            return refused(
                "--kafka-user and --kafka-password-file are for signing in; \
                 say --kafka-security sasl-ssl, or sasl-plaintext in a network of your own"
                    .to_owned(),
            );
        }
        if self.security.signs_in() && (self.user.is_none() || self.password_file.is_none()) {
            return refused(format!(
                "--kafka-security {} needs --kafka-user and --kafka-password-file",
                self.security.protocol().replace('_', "-")
            ));
        }
        Ok(())
    }
}

/// The first line of a file. Errors name the file, never what stands in it.
fn password(file: &Path) -> Result<String, BusError> {
    let refused = |what: String| BusError::Options {
        problem: format!("the password file {} {what}", file.display()),
    };
    let bytes = std::fs::read(file).map_err(|error| refused(format!("cannot be read: {error}")))?;
    if bytes.len() > PASSWORD_BYTES_MAX {
        return Err(refused(format!(
            "has more than {PASSWORD_BYTES_MAX} bytes; expected one line with the password"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|_| refused("is not UTF-8 text".to_owned()))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        Some(_) | None => Err(refused("has an empty first line".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(security: Security) -> KafkaConfig {
        KafkaConfig {
            security,
            ..KafkaConfig::plaintext("127.0.0.1:9092")
        }
    }

    fn problem(config: &KafkaConfig, has_tls: bool) -> String {
        config.check(has_tls).unwrap_err().to_string()
    }

    #[test]
    fn a_build_without_tls_says_how_to_get_one_with_it() {
        for security in [Security::Ssl, Security::SaslSsl] {
            let text = problem(&config(security), false);
            assert!(text.contains("--features kafka-tls"), "{text}");
        }
        let mut scram = config(Security::SaslPlaintext);
        scram.mechanism = Mechanism::ScramSha256;
        let text = problem(&scram, false);
        assert!(text.contains("--kafka-mechanism scram-sha-256"), "{text}");
        assert!(config(Security::Ssl).check(true).is_ok());
        assert!(config(Security::Plaintext).check(false).is_ok());
    }

    #[test]
    fn options_that_do_not_go_together_are_named() {
        let mut with_ca = config(Security::Plaintext);
        with_ca.ca = Some("ca.pem".into());
        assert!(problem(&with_ca, true).contains("--kafka-ca"));
        let mut with_user = config(Security::Plaintext);
        with_user.user = Some("u".into());
        assert!(problem(&with_user, true).contains("--kafka-user"));
        let text = problem(&config(Security::SaslPlaintext), true);
        assert!(text.contains("--kafka-password-file"), "{text}");
    }

    #[test]
    fn the_password_is_the_files_first_line_and_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\n").unwrap();
        let config = KafkaConfig {
            user: Some("u".into()),
            password_file: Some(file.path().to_owned()),
            ..config(Security::SaslPlaintext)
        };
        let client = config.client().unwrap();
        assert_eq!(client.get("sasl.password"), Some("s3cret"));
        assert_eq!(client.get("sasl.mechanism"), Some("PLAIN"));
        assert!(!format!("{config:?}").contains("s3cret"));
        let kafka = crate::bus::Kafka::connect(&config).unwrap();
        assert!(!format!("{kafka:?}").contains("s3cret"));
        std::fs::write(file.path(), "\n").unwrap();
        let text = config.client().unwrap_err().to_string();
        assert!(text.contains("empty first line"), "{text}");
        std::fs::write(file.path(), vec![b'x'; PASSWORD_BYTES_MAX + 1]).unwrap();
        assert!(!config.client().unwrap_err().to_string().contains("xx"));
    }
}
