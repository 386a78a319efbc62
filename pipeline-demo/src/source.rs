//! Where tweets come from.

mod file;
pub(crate) mod lines;
mod malformed;
mod synthetic;
pub mod x;

use std::fmt;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;

pub use file::JsonLines;
pub use malformed::WithMalformed;
pub use synthetic::Synthetic;

/// A stream of records, one at a time.
#[async_trait]
pub trait Source: Send + fmt::Debug {
    /// The next record; `None` when there is no more.
    async fn next(&mut self) -> Result<Option<SourceRecord>, SourceError>;
}

/// A record as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRecord {
    /// The author's id where it can be read, so that an author's tweets keep their order.
    pub key: Option<Bytes>,
    /// The bytes, not looked into any further.
    pub value: Bytes,
    /// Whether this record was made malformed on purpose.
    pub malformed_on_purpose: bool,
}

/// What is to be read.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceConfig {
    /// A file of JSON lines; without one, tweets are made up.
    pub input: Option<PathBuf>,
    /// Whether the file ends the stream or starts again, with the same ids.
    pub once: bool,
    /// Seed of what is made up.
    pub seed: u64,
    /// Share of malformed records in the whole stream, from 0 to below 1.
    pub malformed_share: f64,
}

impl SourceConfig {
    /// Opens the source.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub async fn open(&self) -> Result<Box<dyn Source>, SourceError> {
        let source: Box<dyn Source> = match &self.input {
            Some(path) => Box::new(JsonLines::open(path, self.once).await?),
            None => Box::new(Synthetic::new(self.seed)),
        };
        if self.malformed_share > 0.0 {
            let share = self.malformed_share;
            return Ok(Box::new(WithMalformed::new(source, share, self.seed)));
        }
        Ok(source)
    }
}

/// Why a source cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error("cannot read the input {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file has no record to loop over.
    #[error("the input {} has no line with a record", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The stream of X ended for good.
    #[error("the stream of X ended")]
    X(#[from] x::XError),
    /// A line is longer than a record may be.
    #[error("{}:{line}: the line is longer than a record may be, {bytes_max} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// The limit.
        bytes_max: usize,
    },
}

#[cfg(test)]
pub(crate) async fn take(source: &mut dyn Source, records: usize) -> Vec<SourceRecord> {
    let mut taken = Vec::new();
    while taken.len() < records {
        match source.next().await.unwrap() {
            Some(record) => taken.push(record),
            None => break,
        }
    }
    taken
}
