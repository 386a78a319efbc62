//! The changes of a rollout, as the controller streams them.

use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use rollout::Duration;

use super::BODY_BYTES_MAX;
use crate::api::types::RolloutView;

/// Longest silence of a stream, heartbeats included, before it counts as broken. The controller's heartbeats come
/// several times in this.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(60);

/// The changes of one rollout.
#[derive(Debug)]
pub struct Changes {
    stream: Option<Incoming>,
    decoder: Decoder,
}

impl Changes {
    /// Those that come in this answer; without one there are none.
    pub(super) fn of(stream: Option<Incoming>) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
        }
    }

    /// The next change. `None` once the stream ended, broke or fell silent: whoever wants to go on watches anew.
    ///
    /// # Cancel safety
    /// A call that is given up loses nothing that the next one would have returned.
    pub async fn next(&mut self) -> Option<RolloutView> {
        loop {
            if let Some(data) = self.decoder.take("rollout") {
                match serde_json::from_str(&data) {
                    Ok(view) => return Some(view),
                    // Another version's document. What is asked for by itself will say so.
                    Err(_) => return None,
                }
            }
            let stream = self.stream.as_mut()?;
            let piece = tokio::time::timeout(STREAM_SILENCE_MAX, stream.frame()).await;
            match piece.map(|frame| frame.map(|frame| frame.map(Frame::into_data))) {
                Ok(Some(Ok(Ok(piece)))) if self.decoder.push(&piece) => {}
                _ => self.stream = None,
            }
        }
    }
}

/// Server-sent events out of bytes (WHATWG HTML, 9.2.6), as much of them as the API uses: `event` and `data`.
#[derive(Debug, Default)]
struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes more bytes; whether they fit.
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        self.bytes.len() <= BODY_BYTES_MAX
    }

    /// The data of the next whole event of this kind. Other kinds and comments are passed over.
    fn take(&mut self, kind: &str) -> Option<String> {
        loop {
            let (end, next) = self.event_end()?;
            let event: Vec<u8> = self.bytes.drain(..next).collect();
            let text = String::from_utf8_lossy(&event[..end]);
            let (mut name, mut data) = ("message", Vec::new());
            for line in text.lines() {
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "event" => name = value,
                    "data" => data.push(value),
                    _ => {}
                }
            }
            if name == kind && !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
    }

    /// Where the first event ends, and where what follows the empty line after it begins.
    fn event_end(&self) -> Option<(usize, usize)> {
        let mut line_start = 0;
        for (at, byte) in self.bytes.iter().enumerate() {
            if *byte == b'\n' {
                let line = &self.bytes[line_start..at];
                if line.is_empty() || line == b"\r" {
                    return Some((line_start, at + 1));
                }
                line_start = at + 1;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(decoder: &mut Decoder) -> Vec<String> {
        std::iter::from_fn(|| decoder.take("rollout")).collect()
    }

    #[test]
    fn reads_events_however_their_bytes_are_cut() {
        let stream = ": heartbeat\n\nevent: rollout\ndata: {\"a\":\ndata: 1}\n\nevent: other\ndata: x\n\n\
                      event:rollout\r\ndata:2\r\n\r\ndata: no kind\n\nevent: rollout\n\nevent: rollout\ndata: unfinished";
        for cut in 0..stream.len() {
            let mut decoder = Decoder::default();
            assert!(decoder.push(&stream.as_bytes()[..cut]));
            let mut seen = take_all(&mut decoder);
            assert!(decoder.push(&stream.as_bytes()[cut..]));
            seen.extend(take_all(&mut decoder));
            assert_eq!(seen, ["{\"a\":\n1}", "2"], "cut at {cut}");
        }
    }

    #[test]
    fn refuses_an_event_without_end() {
        let mut decoder = Decoder::default();
        assert!(decoder.push(&vec![b'x'; BODY_BYTES_MAX]));
        assert!(!decoder.push(b"x"));
    }
}
