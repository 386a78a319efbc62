//! Who runs the tasks: chosen by the arguments of `friday serve`, opened at its start and let go at its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;

use super::EngineArgs;
use super::given;
use crate::cli::path;
use crate::clock::Clock;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::process::{Process, ProcessConfig};
use crate::orchestrator::swarm::{Swarm, SwarmConfig};

/// Who runs the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Child processes of this machine, as --processes says
    Process,
    /// The services of a Docker Swarm
    Swarm,
}

/// Who runs the tasks, and where.
#[derive(Debug, Clone, clap::Args)]
pub struct TaskArgs {
    /// Who runs the tasks
    #[arg(
        long,
        env = "FRIDAY_ORCHESTRATOR",
        value_enum,
        default_value = "process",
        value_name = "WHO"
    )]
    pub orchestrator: Kind,
    /// What runs as child processes: a YAML file of images and services
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "orchestrator",
        required_if_eq("orchestrator", "process")
    )]
    pub processes: Option<PathBuf>,
    /// End the tasks too when the controller ends; without it they run on, and the next controller adopts them. The
    /// services of a swarm always run on
    #[arg(long)]
    pub stop_tasks: bool,
    /// The engine of a swarm's manager
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Folder of Docker's config.json, which says who we are to registries; ~/.docker where it is not given
    #[arg(long, env = "DOCKER_CONFIG", value_parser = path(), value_name = "DIR")]
    pub docker_config: Option<PathBuf>,
    /// The overlay network that proxy, controller and tasks share; needed where a service is on several
    #[arg(long, env = "FRIDAY_NETWORK", value_name = "NAME")]
    pub network: Option<String>,
}

/// Whoever runs the tasks.
#[derive(Debug)]
pub(super) enum Tasks {
    /// Processes, and whether they end with us.
    Process(Arc<Process>, bool),
    /// Services.
    Swarm(Arc<Swarm>),
}

impl Tasks {
    /// Opens whoever was chosen.
    pub(super) async fn open(
        args: &TaskArgs,
        state_dir: &Path,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        match args.orchestrator {
            Kind::Process => {
                let catalog = args
                    .processes
                    .clone()
                    .context("--orchestrator process needs --processes FILE")?;
                let config = ProcessConfig::new(state_dir.join("processes"), catalog);
                let process = Process::open(config, clock).await?;
                Ok(Self::Process(process, args.stop_tasks))
            }
            Kind::Swarm => {
                let config = SwarmConfig {
                    engine: args.engine.address()?,
                    state_dir: state_dir.join("swarm"),
                    network: args.network.clone().filter(|name| !name.is_empty()),
                    docker_config: given(&args.docker_config)
                        .cloned()
                        .or_else(own_docker_config),
                };
                Ok(Self::Swarm(Swarm::open(config, clock).await?))
            }
        }
    }

    pub(super) fn orchestrator(&self) -> Arc<dyn Orchestrator> {
        match self {
            Self::Process(process, _) => process.clone(),
            Self::Swarm(swarm) => swarm.clone(),
        }
    }

    /// Lets go of them, or ends them.
    pub(super) async fn close(self) {
        match self {
            Self::Process(process, true) => process.stop_all().await,
            Self::Process(process, false) => process.shutdown_detached().await,
            // The swarm runs its tasks without us.
            Self::Swarm(_) => {}
        }
    }
}

/// The folder of Docker's configuration: of `DOCKER_CONFIG`, or the one at home.
pub(crate) fn docker_config() -> Option<PathBuf> {
    let named = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty());
    named.map(PathBuf::from).or_else(own_docker_config)
}

fn own_docker_config() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(".docker"))
}
