//! A file of JSON lines, read once or again and again.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::{Source, SourceError, SourceRecord};
use crate::tweet::{Ids, RECORD_BYTES_MAX};

/// A file with one record in each line. Blank lines are skipped; any other line is a record, well formed or not.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    once: bool,
    reader: BufReader<File>,
    line: u64,
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
            reader: open(path).await?,
            line: 0,
            records_of_this_pass: 0,
        })
    }
}

async fn open(path: &Path) -> Result<BufReader<File>, SourceError> {
    let file = File::open(path).await;
    file.map(BufReader::new)
        .map_err(|source| SourceError::Read {
            path: path.to_owned(),
            source,
        })
}

#[async_trait]
impl Source for JsonLines {
    async fn next(&mut self) -> Result<Option<SourceRecord>, SourceError> {
        loop {
            let mut bytes = Vec::new();
            // Two more than a record may have: one for the line's end, one to see that it is too long.
            let mut line = (&mut self.reader).take(RECORD_BYTES_MAX as u64 + 2);
            let read = line.read_until(b'\n', &mut bytes).await;
            let read = read.map_err(|source| SourceError::Read {
                path: self.path.clone(),
                source,
            })?;
            if read == 0 {
                if self.once {
                    return Ok(None);
                }
                if self.records_of_this_pass == 0 {
                    let path = self.path.clone();
                    return Err(SourceError::Empty { path });
                }
                self.reader = open(&self.path).await?;
                self.line = 0;
                self.records_of_this_pass = 0;
                continue;
            }
            self.line += 1;
            while bytes.last().is_some_and(u8::is_ascii_whitespace) {
                bytes.pop();
            }
            if bytes.len() > RECORD_BYTES_MAX {
                return Err(SourceError::TooLong {
                    path: self.path.clone(),
                    line: self.line,
                    bytes_max: RECORD_BYTES_MAX,
                });
            }
            if bytes.is_empty() {
                continue;
            }
            self.records_of_this_pass += 1;
            return Ok(Some(SourceRecord {
                key: Ids::of(&bytes).author.map(Bytes::from),
                value: bytes.into(),
                malformed_on_purpose: false,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::take;

    async fn of(text: &str, once: bool) -> (tempfile::NamedTempFile, JsonLines) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let lines = JsonLines::open(file.path(), once).await.unwrap();
        (file, lines)
    }

    #[tokio::test]
    async fn once_ends_and_a_loop_gives_the_same_records_again() {
        let text = "{\"data\":{\"id\":\"1\",\"author_id\":\"7\",\"text\":\"a\"}}\r\n\nbroken";
        let (_file, mut once) = of(text, true).await;
        let pass = take(&mut once, 10).await;
        assert_eq!(pass.len(), 2);
        assert_eq!(pass[0].key.as_deref(), Some(&b"7"[..]));
        assert_eq!((&pass[1].key, &pass[1].value[..]), (&None, &b"broken"[..]));
        let (_file, mut looped) = of(text, false).await;
        assert_eq!(take(&mut looped, 4).await, [pass.clone(), pass].concat());
    }

    #[tokio::test]
    async fn refuses_to_loop_over_nothing_and_names_a_line_that_is_too_long() {
        let (_file, mut empty) = of("\n \n", false).await;
        assert!(matches!(empty.next().await, Err(SourceError::Empty { .. })));
        let text = format!("a\n{}\n", "b".repeat(RECORD_BYTES_MAX + 1));
        let (_file, mut long) = of(&text, true).await;
        take(&mut long, 1).await;
        let error = long.next().await.unwrap_err();
        assert!(matches!(error, SourceError::TooLong { line: 2, .. }));
    }
}
