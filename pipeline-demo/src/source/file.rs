//! A file of JSON lines, read once or again and again.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::fs::File;

use super::lines::{Lines, LinesError, record_of};
use super::{Source, SourceError, SourceRecord};
use crate::tweet::RECORD_BYTES_MAX;

/// A file with one record in each line, plain or packed by gzip or zstd: its first bytes say which. Blank lines are
/// skipped; any other line is a record, well formed or not. A file of any length takes the memory of a few records.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    once: bool,
    lines: Lines,
    records_of_this_pass: u64,
}

impl JsonLines {
    /// Opens the file; `once` says whether its end is the end of the stream.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn open(path: &Path, once: bool) -> Result<Self, SourceError> {
        Ok(Self {
            path: path.to_owned(),
            once,
            lines: open(path).await?,
            records_of_this_pass: 0,
        })
    }

    fn failed(&self, error: LinesError) -> SourceError {
        let path = self.path.clone();
        match error {
            LinesError::Read(source) => SourceError::Read { path, source },
            LinesError::LineTooLong | LinesError::TooLarge { .. } => SourceError::TooLong {
                path,
                line: self.lines.number(),
                bytes_max: RECORD_BYTES_MAX,
            },
        }
    }
}

async fn open(path: &Path) -> Result<Lines, SourceError> {
    let lines = async { Lines::detect(File::open(path).await?, u64::MAX).await };
    lines.await.map_err(|source| SourceError::Read {
        path: path.to_owned(),
        source,
    })
}

#[async_trait]
impl Source for JsonLines {
    async fn next(&mut self) -> Result<Option<SourceRecord>, SourceError> {
        loop {
            match self.lines.next().await {
                Ok(Some(line)) => {
                    self.records_of_this_pass += 1;
                    return Ok(Some(record_of(line)));
                }
                Ok(None) if self.once => return Ok(None),
                Ok(None) if self.records_of_this_pass == 0 => {
                    let path = self.path.clone();
                    return Err(SourceError::Empty { path });
                }
                Ok(None) => {
                    self.lines = open(&self.path).await?;
                    self.records_of_this_pass = 0;
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::lines::tests::{gzip, zstd};
    use crate::source::take;

    async fn of(bytes: &[u8], once: bool) -> (tempfile::NamedTempFile, JsonLines) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let lines = JsonLines::open(file.path(), once).await.unwrap();
        (file, lines)
    }

    #[tokio::test]
    async fn once_ends_and_a_loop_gives_the_same_records_again_packed_or_not() {
        let text = b"{\"data\":{\"id\":\"1\",\"author_id\":\"7\",\"text\":\"a\"}}\r\n\nbroken";
        for bytes in [text.to_vec(), gzip(text).await, zstd(text).await] {
            let (_file, mut once) = of(&bytes, true).await;
            let pass = take(&mut once, 10).await;
            assert_eq!(pass.len(), 2);
            assert_eq!(pass[0].key.as_deref(), Some(&b"7"[..]));
            assert_eq!((&pass[1].key, &pass[1].value[..]), (&None, &b"broken"[..]));
            let (_file, mut looped) = of(&bytes, false).await;
            assert_eq!(take(&mut looped, 4).await, [pass.clone(), pass].concat());
        }
    }

    #[tokio::test]
    async fn refuses_to_loop_over_nothing_and_names_a_line_that_is_too_long() {
        let (_file, mut empty) = of(b"\n \n", false).await;
        assert!(matches!(empty.next().await, Err(SourceError::Empty { .. })));
        let text = format!("a\n{}\n", "b".repeat(RECORD_BYTES_MAX + 1));
        let (_file, mut long) = of(text.as_bytes(), true).await;
        take(&mut long, 1).await;
        let error = long.next().await.unwrap_err();
        assert!(matches!(error, SourceError::TooLong { line: 2, .. }));
    }
}
