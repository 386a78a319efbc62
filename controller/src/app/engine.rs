//! Which Docker engine a command talks to, as its arguments say it.

use std::path::PathBuf;

use crate::cli::{Usage, path};
use crate::orchestrator::swarm::{DEFAULT_ENGINE, EngineAddress};

/// A Docker engine.
#[derive(Debug, Clone, clap::Args)]
pub struct EngineArgs {
    /// Docker's engine, a swarm manager's, or for `agent` the node's own: unix:///PATH, tcp://HOST:PORT or ssh://USER@HOST
    #[arg(
        long,
        env = "DOCKER_HOST",
        hide_env_values = true,
        default_value = DEFAULT_ENGINE,
        value_name = "URL"
    )]
    pub engine: String,
    /// Folder of ca.pem, cert.pem and key.pem for an engine at tcp://
    #[arg(
        long,
        env = "DOCKER_CERT_PATH",
        hide_env_values = true,
        value_parser = path(),
        value_name = "DIR"
    )]
    pub engine_certificates: Option<PathBuf>,
}

impl EngineArgs {
    /// Where the engine is. An empty variable is one that is not set.
    ///
    /// # Errors
    /// The address is none that an engine has, or one at tcp:// comes without certificates.
    pub(crate) fn address(&self) -> Result<EngineAddress, Usage> {
        let url = match self.engine.as_str() {
            "" => DEFAULT_ENGINE,
            url => url,
        };
        let certificates = super::given(&self.engine_certificates);
        EngineAddress::parse(url, certificates.map(PathBuf::as_path))
            .map_err(|error| Usage(format!("--engine: {error}")))
    }
}

/// A Docker engine, for commands that also work without.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EngineIfAny {
    /// A swarm manager's engine: unix:///PATH, tcp://HOST:PORT or ssh://USER@HOST
    // Not of clap's `env`: whether it was typed tells what to do with an engine that is away.
    #[arg(long, value_name = "URL")]
    engine: Option<String>,
    /// Folder of ca.pem, cert.pem and key.pem for an engine at tcp://
    #[arg(
        long,
        env = "DOCKER_CERT_PATH",
        hide_env_values = true,
        value_name = "DIR"
    )]
    engine_certificates: Option<PathBuf>,
}

impl EngineIfAny {
    /// The engine that was typed.
    ///
    /// # Errors
    /// The address is none that an engine has, or one at tcp:// comes without certificates.
    pub(crate) fn typed(&self) -> Result<Option<EngineAddress>, Usage> {
        self.engine.as_deref().map(|url| self.read(url)).transpose()
    }

    /// That one, or else the one in `DOCKER_HOST`. An empty variable is one that is not set.
    ///
    /// # Errors
    /// As [`Self::typed`].
    pub(crate) fn address(&self) -> Result<Option<EngineAddress>, Usage> {
        let variable = std::env::var("DOCKER_HOST").ok();
        let of_environment = variable.as_deref().filter(|url| !url.is_empty());
        let url = self.engine.as_deref().or(of_environment);
        url.map(|url| self.read(url)).transpose()
    }

    fn read(&self, url: &str) -> Result<EngineAddress, Usage> {
        let certificates = super::given(&self.engine_certificates);
        EngineAddress::parse(url, certificates.map(PathBuf::as_path))
            .map_err(|error| Usage(format!("--engine: {error}")))
    }
}
