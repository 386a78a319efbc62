//! Lines out of the chunks of a stream, wherever a chunk ends.

use bytes::{Buf, Bytes, BytesMut};

use crate::tweet::RECORD_BYTES_MAX;

/// What a line of the stream is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A blank line: the connection lives.
    KeepAlive,
    /// An object.
    Object(Bytes),
    /// A line longer than a record may be; it was left out.
    TooLong,
}

/// What has arrived and is no whole line yet: at most a record and a chunk.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: BytesMut,
    /// How much of the buffer holds no line's end.
    searched: usize,
    /// Whether what comes next belongs to a line that is too long.
    skipping: bool,
}

impl Frames {
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole line. What follows the last line's end stays; if the stream ends there, it was cut off.
    pub(super) fn next(&mut self) -> Option<Frame> {
        let fresh = &self.buffer[self.searched..];
        let Some(found) = fresh.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            // One more for a carriage return.
            if self.buffer.len() > RECORD_BYTES_MAX + 1 {
                self.buffer.clear();
                self.searched = 0;
                self.skipping = true;
            }
            return None;
        };
        let line = self.buffer.split_to(self.searched + found).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        let trimmed = line.trim_ascii();
        let too_long = std::mem::take(&mut self.skipping) || trimmed.len() > RECORD_BYTES_MAX;
        Some(if too_long {
            Frame::TooLong
        } else if trimmed.is_empty() {
            Frame::KeepAlive
        } else {
            Frame::Object(line.slice_ref(trimmed))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(frames: &mut Frames) -> Vec<Frame> {
        std::iter::from_fn(|| frames.next()).collect()
    }

    fn object(text: &'static str) -> Frame {
        Frame::Object(Bytes::from_static(text.as_bytes()))
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_chunks_end(cuts in prop::collection::vec(0_usize..40, 0..6)) {
            let stream = b"{\"a\":1}\r\n\r\n\n  {\"b\":\"\xc3\xa4\"}\n{\"cut";
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for chunk in cuts.windows(2) {
                frames.push(&stream[chunk[0]..chunk[1]]);
                seen.extend(all(&mut frames));
            }
            let expected = [object("{\"a\":1}"), Frame::KeepAlive, Frame::KeepAlive, object("{\"b\":\"ä\"}")];
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_left_out_and_takes_no_memory() {
        let mut frames = Frames::default();
        for _ in 0..100 {
            frames.push(&[b'x'; 64 * 1024]);
            assert_eq!(frames.next(), None);
            assert!(frames.buffer.len() <= RECORD_BYTES_MAX + 64 * 1024);
        }
        frames.push(b"\n{}\n");
        assert_eq!(all(&mut frames), [Frame::TooLong, object("{}")]);
    }
}
