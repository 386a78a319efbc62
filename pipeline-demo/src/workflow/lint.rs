//! `pipeline-demo lint`: whether a `pipeline.yml` is right, before anything is built or released with it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use friday::yaml::Finding;
use serde_json::json;

use super::{Pipeline, read};

/// What `friday lint` exits with when it refuses.
const REFUSED: u8 = 20;

/// What it exits with when it was not used as it should be.
const WRONG_USAGE: u8 = 2;

/// Largest file that is read; what is in it is limited further.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What is checked: the options of `lint`.
#[derive(Debug, Args)]
pub struct LintArgs {
    /// Files to check
    #[arg(default_value = "pipeline.yml", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How to print what is found
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// A line for each finding, for people
    Text,
    /// A list of objects
    Json,
}

/// Why a `pipeline.yml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadFileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is in it is wrong.
    #[error("{} is refused:\n{}", path.display(), words(findings))]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        findings: Vec<Finding>,
    },
}

fn words(findings: &[Finding]) -> String {
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl Pipeline {
    /// What this `pipeline.yml` says; the default without one.
    ///
    /// # Errors
    /// When the file cannot be read, or something in it is wrong.
    pub fn of(path: Option<&Path>) -> Result<Self, ReadFileError> {
        path.map_or_else(|| Ok(Self::default()), read_file)
    }
}

fn read_file(path: &Path) -> Result<Pipeline, ReadFileError> {
    let text = std::fs::File::open(path).and_then(|file| {
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    });
    let text = text.map_err(|source| ReadFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    read(&text, &path.display().to_string()).map_err(|findings| ReadFileError::Refused {
        path: path.to_owned(),
        findings,
    })
}

/// Prints what is wrong with a file, for people, and says what to exit with.
#[must_use]
pub fn refuse(findings: &[Finding]) -> ExitCode {
    println!("{}", words(findings));
    ExitCode::from(REFUSED)
}

/// Checks the files and prints what is wrong with them: exit code 0, 20 if something is, 2 if one cannot be read.
#[must_use]
pub fn lint(args: &LintArgs) -> ExitCode {
    let mut all = Vec::new();
    for path in &args.files {
        match read_file(path) {
            Ok(pipeline) => {
                if matches!(args.output, Output::Text) {
                    let stages = pipeline.workflow.stages().len();
                    let jobs = pipeline.jobs.len();
                    let routes = match pipeline.workflow.routes().len() {
                        0 => String::new(),
                        routes => format!(", {routes} routes"),
                    };
                    println!(
                        "{}: ok, {stages} stages{routes} and {jobs} jobs",
                        path.display()
                    );
                }
            }
            Err(ReadFileError::Refused { findings, .. }) => {
                if matches!(args.output, Output::Text) {
                    println!("{}", words(&findings));
                }
                all.extend(findings);
            }
            Err(error @ ReadFileError::Read { .. }) => {
                eprintln!("pipeline-demo: {:#}", anyhow::Error::from(error));
                return ExitCode::from(WRONG_USAGE);
            }
        }
    }
    if matches!(args.output, Output::Json) {
        println!("{}", json!(all));
    }
    if all.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    }
}
