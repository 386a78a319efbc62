//! HTTP/2 by hand (RFC 9113, HPACK by RFC 7541): frames that no library would send.

use std::fmt;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::world::PATIENCE;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// On DATA and HEADERS; on SETTINGS and PING it is the acknowledgement.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields in HPACK, each by its letters, none put into the table.
pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // An integer with a prefix of 7 bits.
            if text.len() < 127 {
                block.push(u8::try_from(text.len()).unwrap());
            } else {
                block.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap());
            }
            block.extend_from_slice(text);
        }
    }
    block
}

/// The beginning of a connection, with these settings.
pub(crate) fn hello(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in settings {
        payload.extend_from_slice(&name.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    [PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()
}

/// The head of an honest request.
pub(crate) fn request(method: &str, path: &str) -> Vec<u8> {
    block(&[
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":authority", b"a"),
        (b":path", path.as_bytes()),
    ])
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The head of an answer on that stream.
    Answer(u32, u16),
    /// The end of that stream by an error.
    Reset(u32, u32),
    /// What the proxy says to a ping.
    Pong,
    /// The end of the connection, announced.
    GoAway(u32),
    /// The end of the connection.
    Closed,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(_, code) => write!(f, "{code}"),
            Self::Reset(..) => write!(f, "reset"),
            Self::Pong => write!(f, "pong"),
            Self::GoAway(_) => write!(f, "goaway"),
            Self::Closed => write!(f, "closed"),
        }
    }
}

/// A connection on which the hello was said.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) to: OwnedWriteHalf,
    pub(crate) from: Reader,
}

/// What reads the proxy's frames.
#[derive(Debug)]
pub(crate) struct Reader {
    from: OwnedReadHalf,
    bytes: Vec<u8>,
}

impl Raw {
    pub(crate) async fn new(proxy: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(proxy).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (from, mut to) = stream.into_split();
        to.write_all(&hello(settings)).await.unwrap();
        Self {
            to,
            from: Reader {
                from,
                bytes: Vec::new(),
            },
        }
    }

    /// Sends; the proxy may have closed already.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.to.write_all(bytes).await.is_ok()
    }
}

impl Reader {
    /// The next that matters.
    pub(crate) async fn event(&mut self) -> Event {
        timeout(PATIENCE, self.read())
            .await
            .expect("something happens")
    }

    async fn read(&mut self) -> Event {
        loop {
            if let Some(header) = self.bytes.first_chunk::<9>() {
                let length = usize::from(header[0]) << 16
                    | usize::from(header[1]) << 8
                    | usize::from(header[2]);
                let kind = header[3];
                let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
                if self.bytes.len() >= 9 + length {
                    let frame: Vec<u8> = self.bytes.drain(..9 + length).collect();
                    let payload = &frame[9..];
                    let word =
                        |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
                    match kind {
                        HEADERS => return Event::Answer(stream, status(payload)),
                        RST_STREAM => return Event::Reset(stream, word(0)),
                        PING => return Event::Pong,
                        GOAWAY => return Event::GoAway(word(4)),
                        _ => continue,
                    }
                }
            }
            if !matches!(self.from.read_buf(&mut self.bytes).await, Ok(1..)) {
                return Event::Closed;
            }
        }
    }
}

/// The status of an answer's head: it comes first.
fn status(block: &[u8]) -> u16 {
    // Changes of the table's size.
    let at = block.iter().position(|byte| byte & 0xe0 != 0x20).unwrap();
    let block = &block[at..];
    match block[0] {
        0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(block[0] - 0x88)],
        0x08 | 0x48 => {
            let text = &block[2..][..usize::from(block[1] & 0x7f)];
            if block[1] & 0x80 == 0 {
                return str::from_utf8(text).unwrap().parse().unwrap();
            }
            // Huffman: 0 to 2 in five bits, 3 to 9 in six (RFC 7541, appendix B).
            let bits: u32 = text
                .iter()
                .fold(0, |bits, &byte| bits << 8 | u32::from(byte));
            let mut left = u32::try_from(text.len()).unwrap() * 8;
            let mut digits = 0;
            for _ in 0..3 {
                let five = bits >> (left - 5) & 0x1f;
                let digit = if five < 3 {
                    left -= 5;
                    five
                } else {
                    left -= 6;
                    (bits >> left & 0x3f) - 0x19 + 3
                };
                digits = digits * 10 + digit;
            }
            u16::try_from(digits).unwrap()
        }
        other => panic!("a status as {other:#x}"),
    }
}
