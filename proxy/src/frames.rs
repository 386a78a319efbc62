//! Where a client of HTTP/2 is in what it sends. The HTTP library says of a head only when it is whole: one that stays half
//! would hold its connection for ever, as nothing else may come in between (RFC 9113, 6.10).

use std::sync::atomic::Ordering;

use crate::stream::{Activity, PREFACE_BYTES};

/// Length, type, flags and stream: what stands before each frame (RFC 9113, 4.1).
const HEADER_BYTES: usize = 9;

/// The type of frames that begin a head.
const HEADERS: u8 = 1;

/// The type of frames that carry one on.
const CONTINUATION: u8 = 9;

/// The flag of the frame that ends a head.
const END_HEADERS: u8 = 4;

/// Follows the frames of a client from its first byte on, without what is in them.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// Bytes of the preface so far.
    preface: usize,
    header: [u8; HEADER_BYTES],
    /// How much of it is here.
    header_bytes: usize,
    /// What is still to come of the present frame.
    rest: usize,
    is_in_head: bool,
    /// Whether the head ends with the present frame.
    ends_head: bool,
}

impl Frames {
    /// Takes note of what came, in order.
    pub(crate) fn pass(&mut self, mut bytes: &[u8], activity: &Activity) {
        let preface = bytes.len().min(PREFACE_BYTES - self.preface);
        self.preface += preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.rest > 0 {
                let passed = bytes.len().min(self.rest);
                self.rest -= passed;
                bytes = &bytes[passed..];
            } else {
                let missing = bytes.len().min(HEADER_BYTES - self.header_bytes);
                let end = self.header_bytes + missing;
                self.header[self.header_bytes..end].copy_from_slice(&bytes[..missing]);
                self.header_bytes = end;
                bytes = &bytes[missing..];
                if end == HEADER_BYTES {
                    self.begin(activity);
                }
            }
            if self.rest == 0 && self.ends_head {
                self.ends_head = false;
                self.is_in_head = false;
                count(activity);
            }
        }
    }

    fn begin(&mut self, activity: &Activity) {
        let [a, b, c, kind, flags, ..] = self.header;
        self.header_bytes = 0;
        self.rest = u32::from_be_bytes([0, a, b, c]) as usize;
        if kind == HEADERS && !self.is_in_head {
            self.is_in_head = true;
            count(activity);
        }
        // Any other frame here is an error, of which the HTTP library takes care.
        self.ends_head =
            self.is_in_head && matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0;
    }
}

fn count(activity: &Activity) {
    // One thread reads, so nothing is lost between the two.
    let heads = activity.heads.load(Ordering::Relaxed);
    activity
        .heads
        .store(heads.wrapping_add(1), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let header = [0, 0, length, kind, flags, 0, 0, 0, 1];
        [&header[..], &vec![7; usize::from(length)]].concat()
    }

    #[test]
    fn knows_when_a_head_is_half_here() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // What comes in a row, and how many heads have begun and ended by then.
        let cases = [
            (frame(4, 0, 12), 0),
            (frame(HEADERS, END_HEADERS, 20), 2),
            (frame(0, 1, 200), 2),
            (frame(HEADERS, 1, 20), 3),
            (frame(CONTINUATION, 0, 0), 3),
            (frame(CONTINUATION, END_HEADERS, 0), 4),
            (frame(HEADERS, END_HEADERS, 0), 6),
            (frame(HEADERS, END_HEADERS, 20)[..28].to_vec(), 7),
            (vec![7], 8),
        ];
        for step in [1, 5, 9, 1_000] {
            let activity = Activity::default();
            let mut frames = Frames::default();
            for (bytes, heads) in std::iter::once((preface.clone(), 0)).chain(cases.clone()) {
                for piece in bytes.chunks(step) {
                    frames.pass(piece, &activity);
                }
                assert_eq!(activity.heads.load(Ordering::Relaxed), heads, "{bytes:?}");
            }
        }
    }
}
