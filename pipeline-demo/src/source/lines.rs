//! Lines of a file or an upload, unpacked on the way: the size of a line and of the whole are limited as they come out, so
//! that a small input that unpacks to a great one costs no more than one that was great from the beginning.

use std::io;
use std::pin::Pin;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::SourceRecord;
use crate::tweet::{Ids, RECORD_BYTES_MAX};

/// Bytes that are unpacked at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// Memory that a zstd frame may ask for to look back into, as a power of two: 8 MiB, which RFC 8878 wants every decoder to
/// have; by default a frame could ask for 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How the bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// What `gzip` and `zstd` files begin with (RFC 1952, RFC 8878). No line of JSON does.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

impl Packing {
    /// By the first bytes; file names are not looked at.
    fn of(first: &[u8]) -> Self {
        if first.starts_with(GZIP_MAGIC) {
            Self::Gzip
        } else if first.starts_with(ZSTD_MAGIC) {
            Self::Zstd
        } else {
            Self::Plain
        }
    }
}

type Unpacked = Pin<Box<dyn AsyncRead + Send>>;

/// What is wrong with lines.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinesError {
    /// Reading or unpacking failed.
    #[error("reading or unpacking failed")]
    Read(#[from] io::Error),
    /// A line is longer than a record may be.
    #[error("the line is longer than a record may be, {RECORD_BYTES_MAX} bytes")]
    LineTooLong,
    /// All lines together are too long.
    #[error("unpacked it is more than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
}

/// The lines that are not blank, one after the other.
pub(crate) struct Lines {
    reader: BufReader<Unpacked>,
    number: u64,
    bytes: u64,
    bytes_max: u64,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines")
            .field("number", &self.number)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Lines {
    /// Lines of bytes packed in this way. Several members or frames one after the other are one text.
    pub(crate) fn of<R>(reader: R, packing: Packing, bytes_max: u64) -> Self
    where
        R: AsyncBufRead + Send + Unpin + 'static,
    {
        let unpacked: Unpacked = match packing {
            Packing::Plain => Box::pin(reader),
            Packing::Gzip => {
                let mut decoder = GzipDecoder::new(reader);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            Packing::Zstd => {
                let window = DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX);
                let mut decoder = ZstdDecoder::with_params(reader, &[window]);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
        };
        Self {
            reader: BufReader::with_capacity(BUFFER_BYTES, unpacked),
            number: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// The same, packed as the first bytes say.
    pub(crate) async fn detect<R>(reader: R, bytes_max: u64) -> io::Result<Self>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
        // A file gives all of its first bytes at once.
        let packing = Packing::of(reader.fill_buf().await?);
        Ok(Self::of(reader, packing, bytes_max))
    }

    /// The number of the line that was read last, from 1; blank ones count.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The next line that is not blank, without the blanks at its end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, LinesError> {
        loop {
            let mut line = Vec::new();
            // Two more than a record may have: one for the line's end, one to see that it is too long.
            let mut reader = (&mut self.reader).take(RECORD_BYTES_MAX as u64 + 2);
            let read = match reader.read_until(b'\n', &mut line).await {
                Ok(0) => return Ok(None),
                Ok(read) => read,
                Err(error) => {
                    self.number += 1;
                    return Err(error.into());
                }
            };
            self.number += 1;
            self.bytes += read as u64;
            if self.bytes > self.bytes_max {
                let bytes_max = self.bytes_max;
                return Err(LinesError::TooLarge { bytes_max });
            }
            // Blanks count: they could go on for ever.
            let is_cut = read == RECORD_BYTES_MAX + 2 && !line.ends_with(b"\n");
            line.truncate(line.trim_ascii_end().len());
            if is_cut || line.len() > RECORD_BYTES_MAX {
                return Err(LinesError::LineTooLong);
            }
            if !line.is_empty() {
                return Ok(Some(line.into()));
            }
        }
    }
}

/// A line as a record, well formed or not.
pub(crate) fn record_of(line: Bytes) -> SourceRecord {
    SourceRecord {
        key: Ids::of(&line).author.map(Bytes::from),
        value: line,
        malformed_on_purpose: false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
    use tokio::io::AsyncWriteExt;

    use super::*;

    pub(crate) async fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzipEncoder::new(Vec::new());
        encoder.write_all(bytes).await.unwrap();
        encoder.shutdown().await.unwrap();
        encoder.into_inner()
    }

    pub(crate) async fn zstd(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZstdEncoder::new(Vec::new());
        encoder.write_all(bytes).await.unwrap();
        encoder.shutdown().await.unwrap();
        encoder.into_inner()
    }

    async fn read(packed: Vec<u8>, bytes_max: u64) -> Result<Vec<Bytes>, (u64, LinesError)> {
        let mut lines = Lines::detect(Cursor::new(packed), bytes_max).await.unwrap();
        let mut read = Vec::new();
        loop {
            match lines.next().await {
                Ok(Some(line)) => read.push(line),
                Ok(None) => return Ok(read),
                Err(error) => return Err((lines.number(), error)),
            }
        }
    }

    #[tokio::test]
    async fn packed_or_not_the_lines_are_the_same() {
        let text = b"{\"a\":1}\r\n\n  {\"b\":2} \n{\"c\":3}";
        let expected = read(text.to_vec(), 1_000).await.unwrap();
        assert_eq!(expected.len(), 3);
        assert_eq!(expected[1], "  {\"b\":2}");
        assert_eq!(read(gzip(text).await, 1_000).await.unwrap(), expected);
        assert_eq!(read(zstd(text).await, 1_000).await.unwrap(), expected);
        // As `cat a.gz b.gz` makes them.
        let twice = [zstd(b"a\n").await, zstd(b"b\n").await].concat();
        assert_eq!(read(twice, 1_000).await.unwrap(), ["a", "b"]);
        let twice = [gzip(b"a\n").await, gzip(b"b\n").await].concat();
        assert_eq!(read(twice, 1_000).await.unwrap(), ["a", "b"]);
        assert_eq!(read(Vec::new(), 0).await.unwrap(), Vec::<Bytes>::new());
    }

    #[tokio::test]
    async fn a_bomb_is_refused_before_it_takes_memory() {
        // 64 MiB in one line, and in many.
        let line = vec![b'x'; 64 * 1024 * 1024];
        let blanks = vec![b' '; 64 * 1024 * 1024];
        for packed in [gzip(&line).await, zstd(&line).await, gzip(&blanks).await] {
            assert!(packed.len() < 100 * 1024);
            let refused = read(packed, u64::MAX).await;
            assert!(matches!(refused, Err((1, LinesError::LineTooLong))));
        }
        let lines = b"{}\n".repeat(4 * 1024 * 1024);
        let refused = read(gzip(&lines).await, 1024 * 1024).await;
        let too_large = LinesError::TooLarge {
            bytes_max: 1024 * 1024,
        };
        let (number, error) = refused.unwrap_err();
        assert_eq!(
            (number, error.to_string()),
            (349_526, too_large.to_string())
        );
    }

    #[tokio::test]
    async fn what_is_cut_off_or_damaged_is_an_error_at_its_line() {
        let text: String = (0..20_000)
            .map(|n| format!("{{\"n\":{}}}\n", n * 7_919 % 10_007))
            .collect();
        for packed in [gzip(text.as_bytes()).await, zstd(text.as_bytes()).await] {
            let cut = packed[..packed.len() / 2].to_vec();
            let (_, error) = read(cut, u64::MAX).await.unwrap_err();
            assert!(matches!(error, LinesError::Read(_)), "{error}");
        }
        // gzip has a checksum at its end; zstd has one where its writer wants it.
        let mut damaged = gzip(text.as_bytes()).await;
        let last = damaged.len() - 6;
        damaged[last] ^= 0xff;
        read(damaged, u64::MAX).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_zstd_frame_that_wants_more_memory_than_allowed_is_refused() {
        // A frame header without its size and with a window of 128 MiB (RFC 8878, 3.1.1.1.2), then one raw block.
        let frame = [ZSTD_MAGIC, &[0x00, 17 << 3, 0x19, 0x00, 0x00], b"{}\n"].concat();
        let refused = read(frame, u64::MAX).await;
        assert!(
            matches!(refused, Err((1, LinesError::Read(_)))),
            "{refused:?}"
        );
    }
}
