//! The bytes of a connection, on either side: plain or by TLS.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use crate::frames::Frames;
use crate::socket::Socket;

/// Up to so many bytes in several pieces are encrypted together: one record costs less than one for each of a head and a
/// small body.
const JOIN_BYTES_MAX: usize = 4 << 10;

/// How long is what a client of HTTP/2 says first (RFC 9113, 3.4).
pub(crate) const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

thread_local! {
    static JOINED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(JOIN_BYTES_MAX));
}

/// A connection, plain or by TLS.
#[derive(Debug)]
pub(crate) enum Stream {
    /// As it is.
    Plain(Socket),
    /// Encrypted, on either side.
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// Whether the other side chose HTTP/2 when TLS was set up.
    pub(crate) fn is_h2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl Stream {
    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Waits until there is something to read, or the other side has closed; it may also be nothing after all.
    ///
    /// # Errors
    /// As of [`Socket::readable`].
    async fn readable(&self) -> io::Result<()> {
        self.socket().readable().await
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Self::Plain(stream) = &mut *self {
            return Pin::new(stream).poll_write_vectored(context, pieces);
        }
        if let [piece] = pieces {
            return self.poll_write(context, piece);
        }
        if pieces.iter().map(|piece| piece.len()).sum::<usize>() <= JOIN_BYTES_MAX {
            return JOINED.with_borrow_mut(|joined| {
                joined.clear();
                for piece in pieces {
                    joined.extend_from_slice(piece);
                }
                self.poll_write(context, joined)
            });
        }
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// What a client's connection did lately.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Whether bytes came since the last head: of the next one, unless they are a body.
    pub(crate) has_unread: AtomicBool,
    /// How many bytes came in all; not counted beyond [`PREFACE_BYTES`].
    pub(crate) heard: AtomicUsize,
    /// Whether the client did not take what was last written.
    pub(crate) is_blocked: AtomicBool,
    /// How often it took something.
    pub(crate) writes: AtomicU32,
    /// Of HTTP/2: odd while a head is on its way, and another number for each. Wraps.
    pub(crate) heads: AtomicU32,
}

impl Activity {
    fn count_write(&self) {
        // One thread writes, so nothing is lost between the two.
        let writes = self.writes.load(Ordering::Relaxed);
        self.writes.store(writes.wrapping_add(1), Ordering::Relaxed);
    }
}

/// A client's connection, whose activity can be watched, and which may begin with bytes that were read before.
#[derive(Debug)]
pub(crate) struct Watched {
    stream: Stream,
    ahead: Bytes,
    activity: Arc<Activity>,
    /// Of HTTP/2.
    frames: Option<Box<Frames>>,
}

impl Watched {
    /// A connection of which nothing was read yet.
    pub(crate) fn new(stream: Stream, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            ahead: Bytes::new(),
            activity,
            frames: None,
        }
    }

    /// The same, of a client that speaks HTTP/2 and of which nothing was read yet, or all is to be read again: from here on
    /// [`Activity::heads`] is known.
    pub(crate) fn of_h2(mut self) -> Self {
        self.frames = Some(Box::default());
        self
    }

    /// What it did lately.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Waits until there is something to read, or the client has gone; it may also be nothing after all.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        if self.ahead.is_empty() {
            self.stream.readable().await?;
        }
        Ok(())
    }

    /// As [`Socket::break_when_closed`].
    pub(crate) fn break_when_closed(&self) {
        self.stream.socket().break_when_closed();
    }

    /// The same with bytes that were read from it and are to be read again.
    pub(crate) fn rewound(mut self, bytes: Bytes) -> Self {
        self.ahead = bytes;
        self
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let length = this.ahead.len().min(buffer.remaining());
            if let Some(frames) = &mut this.frames {
                frames.pass(&this.ahead[..length], &this.activity);
            }
            buffer.put_slice(&this.ahead[..length]);
            this.ahead.advance(length);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        let length = buffer.filled().len() - before;
        if length > 0 {
            if let Some(frames) = &mut this.frames {
                frames.pass(&buffer.filled()[before..], &this.activity);
            }
            this.activity.has_unread.store(true, Ordering::Relaxed);
            // One thread reads, so nothing is lost between the two.
            let heard = this.activity.heard.load(Ordering::Relaxed);
            if heard < PREFACE_BYTES {
                let heard = PREFACE_BYTES.min(heard + length);
                this.activity.heard.store(heard, Ordering::Relaxed);
            }
        }
        read
    }
}

impl Watched {
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let blocked = written.is_pending();
        self.activity.is_blocked.store(blocked, Ordering::Relaxed);
        if !blocked {
            self.activity.count_write();
        }
        written
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        let blocked = flushed.is_pending();
        let was_blocked = self.activity.is_blocked.swap(blocked, Ordering::Relaxed);
        // HTTP flushes when all was written: now the client has taken it. Flushes of nothing are no sign of life.
        if was_blocked && !blocked {
            self.activity.count_write();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use futures::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::yield_now;

    use super::*;
    use crate::socket::take_turns;

    #[tokio::test]
    async fn what_is_taken_late_is_taken() {
        tokio::spawn(take_turns());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        let activity = Arc::<Activity>::default();
        let stream = Stream::Plain(Socket::new(ours.unwrap()));
        let mut ours = Watched::new(stream, Arc::clone(&activity));
        let is_blocked = || activity.is_blocked.load(Ordering::Relaxed);
        let writes = || activity.writes.load(Ordering::Relaxed);
        // Small pieces wait for the end of the turn, so that it is the flush behind it that meets a full window.
        let mut bytes = 0;
        while !is_blocked() {
            let Poll::Ready(written) = poll!(pin!(ours.write(&[7; 4 << 10]))) else {
                panic!("the flush before it did not see it");
            };
            bytes += written.unwrap();
            for _ in 0..4 {
                yield_now().await;
            }
            let flushed = poll!(pin!(ours.flush()));
            assert_eq!(flushed.is_ready(), !is_blocked());
        }
        let before = writes();
        let mut theirs = theirs.unwrap().0;
        let mut heard = vec![0; bytes];
        let both = async { tokio::join!(ours.flush(), theirs.read_exact(&mut heard)) };
        let both = tokio::time::timeout(Duration::from_secs(20), both);
        let (flushed, read) = both.await.expect("it goes on");
        flushed.unwrap();
        read.unwrap();
        assert!(!is_blocked());
        assert_eq!(writes(), before + 1);
        // Nothing was taken by this one.
        ours.flush().await.unwrap();
        assert_eq!(writes(), before + 1);
    }
}
