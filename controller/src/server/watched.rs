//! A connection that ends when nothing moves on it for too long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rollout::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A stream, and the end of its patience.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    silence_max: Duration,
    end: Pin<Box<Sleep>>,
}

impl<S> Watched<S> {
    /// A stream on which something has moved just now.
    pub(super) fn new(stream: S, silence_max: Duration) -> Self {
        Self {
            stream,
            silence_max,
            end: Box::pin(sleep(silence_max)),
        }
    }

    /// Takes note of what moved, or of how long nothing did.
    fn watch<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            let end = Instant::now() + self.silence_max;
            self.end.as_mut().reset(end);
            return outcome;
        }
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("nothing moved for {:?}", self.silence_max),
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(outcome, context)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.watch(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // Neither moves anything that a write has not moved before, so they are not watched when they succeed.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Pending => self.watch(Poll::Pending, context),
            flushed @ Poll::Ready(_) => flushed,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(context) {
            Poll::Pending => self.watch(Poll::Pending, context),
            ended @ Poll::Ready(_) => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const MAX: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn ends_when_nothing_moves_and_not_while_something_does() {
        let (mut near, far) = duplex(8);
        let mut far = Watched::new(far, MAX);
        for _ in 0..5 {
            sleep(MAX - Duration::from_secs(1)).await;
            near.write_all(b"x").await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), b'x');
        }
        let silent = far.read_u8().await.unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_when_the_other_side_takes_nothing() {
        let (near, far) = duplex(8);
        let mut far = Watched::new(far, MAX);
        let untaken = far.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(untaken.kind(), io::ErrorKind::TimedOut);
        drop(near);
    }
}
