//! A TCP connection whose small writes go out together, at the end of the worker's turn.
//!
//! A worker's turn is what it does between two looks at what has arrived, and what it finds at the second: it reads some
//! dozens of requests and answers and passes them on. Were each passed on at once, whoever waits for it on another core
//! would be woken, would do its few microseconds of work and sleep again before the next came; and waking a core that
//! sleeps costs both sides more than the request itself. So what is written waits until the turn is over, and then all of it goes out in one burst, while
//! the others are still awake. It also makes one write of several pieces: of a head and a body, of the frames of HTTP/2.
//!
//! What is written counts as taken as soon as it waits. If the kernel does not take it at the end of the turn, the next
//! write or flush has to wait for it; if the connection turns out to be broken, the next write or flush says so.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tracing::debug;

use crate::lock;

/// Most bytes of a connection that wait for the end of the turn. What is larger is not worth the copy.
const WAITING_BYTES_MAX: usize = 8 << 10;

/// Buffers that a thread keeps for what waits: a turn has some dozens of writes.
const BUFFERS_MAX: usize = 128;

/// A turn with so many connections to write to is long enough to end without another look at what has arrived.
const BURST_WRITES: usize = 32;

/// How long the other side's machine may leave what it was sent, or a question whether it is there, without a sign of
/// life. A live one says so within a round trip, whatever its programs do; one that lost its power or its cable never
/// does, and a request would wait for it as long as for a slow answer. Machines that are moved stand still for a second
/// or two.
const LIFELESS_MAX: Duration = Duration::from_secs(5);

/// After so long without a word, and then as often, the other side is asked whether it is there.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// So often it is asked in vain, where the kernel does not go by [`LIFELESS_MAX`]: the first time after [`ASKED_EVERY`],
/// and with the wait for the last answer that makes as long.
const ASKED_MAX: u32 = 4;

/// After so long without a word a client is asked whether it is there. Nothing of ours depends on it soon: what it may be
/// quiet on for hours, a stream of events or an upgraded connection, only must not stay for ever. Phones are out of reach for
/// some time, and each question wakes them.
const CLIENT_ASKED_AFTER: Duration = Duration::from_secs(60);

/// Then it is asked as often,
const CLIENT_ASKED_EVERY: Duration = Duration::from_secs(15);

/// and so many times in vain: it is gone after two minutes.
const CLIENT_ASKED_MAX: u32 = 4;

/// How long a program may leave a connection unread that many requests share: longer than a process is stopped for a snapshot or
/// cleans up its memory. The kernel takes as long to see that a machine is gone.
const FULL_MAX: Duration = Duration::from_secs(15);

/// What becomes of a connection while the other side's machine lives and has no room for more, because its program does
/// not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FullWindow {
    /// It breaks after [`LIFELESS_MAX`], as if nobody was there. Whoever sends little never sees it.
    Breaks,
    /// It is borne: a program may well stop reading a long upload for longer. Nor is it noticed then for minutes that a
    /// machine is gone which owes a receipt.
    Borne,
    /// It is borne for [`FULL_MAX`], and so long is the wait for a machine that owes a receipt: for connections of HTTP/2, whose
    /// programs always read, and keep what they have no room for from being sent (RFC 9113, 5.2).
    BorneForAWhile,
}

/// A TCP connection.
#[derive(Debug, Clone)]
pub(crate) struct Socket(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    stream: TcpStream,
    /// What the kernel has not got yet.
    waiting: Vec<u8>,
    /// Whether the end of the turn takes care of it.
    is_queued: bool,
    /// Who wrote last.
    writer: Option<Waker>,
    /// Why the last of the writes that were put off failed.
    failed: Option<io::Error>,
}

impl Socket {
    /// A connection that may have been used before.
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream,
            waiting: Vec::new(),
            is_queued: false,
            writer: None,
            failed: None,
        })))
    }

    /// Waits until there is something to read, or the other side has closed; it may also be nothing after all.
    ///
    /// # Errors
    /// As of [`TcpStream::readable`].
    pub(crate) async fn readable(&self) -> io::Result<()> {
        poll_fn(|context| lock(&self.0).stream.poll_read_ready(context)).await
    }

    /// From here on it breaks, with [`io::ErrorKind::TimedOut`], when the other side's machine shows no sign of life for
    /// [`LIFELESS_MAX`]: by RFC 5482 while it owes a receipt for what was sent, by RFC 9293, 3.8.4 after that.
    pub(crate) fn break_when_lifeless(&self) {
        self.set_full_window(FullWindow::Breaks);
        self.ask(ASKED_EVERY, ASKED_EVERY, ASKED_MAX);
    }

    /// From here on it breaks when a client's machine is gone, in minutes: a client may be out of reach for a while, and idle
    /// for long.
    pub(crate) fn break_when_client_is_gone(&self) {
        self.ask(CLIENT_ASKED_AFTER, CLIENT_ASKED_EVERY, CLIENT_ASKED_MAX);
    }

    /// From here on the other side's machine is asked whether it is there when it has nothing to say (RFC 9293, 3.8.4).
    fn ask(&self, after: Duration, every: Duration, times_max: u32) {
        let stream = &lock(&self.0).stream;
        let set = sockopt::set_tcp_keepidle(stream, after)
            .and_then(|()| sockopt::set_tcp_keepintvl(stream, every))
            .and_then(|()| sockopt::set_tcp_keepcnt(stream, times_max))
            .and_then(|()| sockopt::set_socket_keepalive(stream, true));
        if let Err(error) = set {
            debug!(%error, "a machine that is gone will be noticed later");
        }
    }

    /// Says what a full window means from here on: takes back the part of [`Self::break_when_lifeless`] that also counts
    /// the time in which a live machine has no room, or makes it count again.
    pub(crate) fn set_full_window(&self, full_window: FullWindow) {
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let user_timeout = match full_window {
            FullWindow::Breaks => milliseconds(LIFELESS_MAX),
            FullWindow::BorneForAWhile => milliseconds(FULL_MAX),
            FullWindow::Borne => 0,
        };
        if let Err(error) = sockopt::set_tcp_user_timeout(&lock(&self.0).stream, user_timeout) {
            debug!(%error, ?full_window, "a connection breaks too soon, or too late");
        }
    }

    /// From here on closing it throws away what the kernel has not delivered yet, and tells the other side that the
    /// connection broke. Else the kernel would go on trying for minutes: an endpoint that was out of reach would get a
    /// request long after it was given up and made elsewhere; and a client could take half an answer for a whole one.
    pub(crate) fn break_when_closed(&self) {
        let mut inner = lock(&self.0);
        inner.waiting.clear();
        // If it fails the connection is broken already.
        drop(inner.stream.set_zero_linger());
    }

    /// Puts a write off, if it is small and this thread has turns.
    fn put_off(&self, inner: &mut Inner, pieces: &[IoSlice<'_>], context: &Context<'_>) -> bool {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        if inner.waiting.len() + bytes > WAITING_BYTES_MAX {
            return false;
        }
        if !inner.is_queued {
            inner.is_queued = TURN.with_borrow_mut(|turn| {
                let Some(turn) = turn else {
                    return false;
                };
                inner.waiting = turn.buffers.pop().unwrap_or_default();
                turn.written.push(self.clone());
                if let Some(end) = turn.end.take() {
                    end.wake();
                }
                true
            });
            if !inner.is_queued {
                return false;
            }
        }
        for piece in pieces {
            inner.waiting.extend_from_slice(piece);
        }
        match &mut inner.writer {
            Some(writer) => writer.clone_from(context.waker()),
            None => inner.writer = Some(context.waker().clone()),
        }
        true
    }

    fn poll_write_pieces(
        &self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        let inner = &mut *inner;
        if let Some(error) = inner.failed.take() {
            return Poll::Ready(Err(error));
        }
        if !inner.is_queued {
            ready!(inner.poll_drain(context))?;
        }
        if self.put_off(inner, pieces, context) {
            let bytes = pieces.iter().map(|piece| piece.len()).sum();
            return Poll::Ready(Ok(bytes));
        }
        ready!(inner.poll_drain(context))?;
        match pieces {
            [piece] => Pin::new(&mut inner.stream).poll_write(context, piece),
            pieces => Pin::new(&mut inner.stream).poll_write_vectored(context, pieces),
        }
    }
}

impl Inner {
    /// Writes what waits.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        let drained = loop {
            let rest = &self.waiting[written..];
            if rest.is_empty() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(context, rest) {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => written += bytes,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
            }
        };
        match &drained {
            // Nothing more can be done for it.
            Poll::Ready(_) => self.waiting.clear(),
            Poll::Pending => drop(self.waiting.drain(..written)),
        }
        drained
    }

    /// The turn is over: what waits goes out. Its buffer is given back if it is needed no longer.
    fn end_turn(&mut self) -> Option<Vec<u8>> {
        self.is_queued = false;
        let writer = self.writer.take();
        // If it blocks, the connection's own task is to be woken, and flushes it.
        let mut context = Context::from_waker(writer.as_ref().unwrap_or(Waker::noop()));
        if let Poll::Ready(Err(error)) = self.poll_drain(&mut context) {
            self.failed = Some(error);
        }
        self.writer = writer;
        self.waiting
            .is_empty()
            .then(|| mem::take(&mut self.waiting))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_pieces(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_pieces(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Done as well while the end of the turn takes care of it.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if let Some(error) = inner.failed.take() {
            return Poll::Ready(Err(error));
        }
        if inner.is_queued {
            return Poll::Ready(Ok(()));
        }
        inner.poll_drain(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        ready!(inner.poll_drain(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

/// What was written in the present turn of a thread.
#[derive(Debug, Default)]
struct Turn {
    written: Vec<Socket>,
    /// Wakes who ends the turn; gone once that is woken.
    end: Option<Waker>,
    buffers: Vec<Vec<u8>>,
}

thread_local! {
    /// Of threads that have turns.
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

/// From here on this thread has turns. The future ends them, again and again: it has to run as a task of a runtime that
/// has only this thread and takes its tasks in the order in which they are woken. Woken by the first write of a turn, it
/// comes behind all tasks that were woken with the writer.
pub(crate) fn take_turns() -> impl Future<Output = ()> {
    TURN.set(Some(Turn::default()));
    async {
        loop {
            poll_fn(first_write).await;
            // What has arrived meanwhile belongs to the turn: a longer burst wakes the others less often. Once, and only after
            // a short one, so that what was written first does not wait for a whole stream of others.
            if writes() < BURST_WRITES {
                yield_now().await;
            }
            end_turn();
        }
    }
}

/// Connections that wait for the end of the turn.
fn writes() -> usize {
    TURN.with_borrow(|turn| turn.as_ref().map_or(0, |turn| turn.written.len()))
}

/// Waits for the first write of a turn.
fn first_write(context: &mut Context<'_>) -> Poll<()> {
    TURN.with_borrow_mut(|turn| match turn {
        Some(turn) if turn.written.is_empty() => {
            turn.end = Some(context.waker().clone());
            Poll::Pending
        }
        Some(_) => Poll::Ready(()),
        None => Poll::Pending,
    })
}

/// Ends the last turn of this thread: from here on all writes go out at once.
pub(crate) fn take_no_more_turns() {
    end_turn();
    TURN.set(None);
}

fn end_turn() {
    TURN.with_borrow_mut(|turn| {
        let Some(turn) = turn else {
            return;
        };
        for socket in turn.written.drain(..) {
            if let Some(mut buffer) = lock(&socket.0).end_turn()
                && turn.buffers.len() < BUFFERS_MAX
            {
                buffer.clear();
                turn.buffers.push(buffer);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::yield_now;

    use super::*;

    /// The two ends of a connection.
    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Socket::new(ours.unwrap()), theirs.unwrap().0)
    }

    /// What has arrived by now, without waiting for more.
    fn arrived(stream: &TcpStream) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        match stream.try_read(&mut bytes) {
            Ok(length) => bytes.truncate(length),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                bytes.clear();
            }
        }
        bytes
    }

    #[tokio::test]
    async fn small_writes_of_a_turn_go_out_together_at_its_end() {
        tokio::spawn(take_turns());
        let (mut ours, theirs) = pair().await;
        theirs.writable().await.unwrap();
        ours.write_all(b"head, ").await.unwrap();
        ours.write_all(b"body").await.unwrap();
        ours.flush().await.unwrap();
        assert_eq!(arrived(&theirs), b"");
        theirs.readable().await.unwrap();
        assert_eq!(arrived(&theirs), b"head, body");
    }

    #[tokio::test]
    async fn a_thread_without_turns_writes_at_once() {
        let (mut ours, theirs) = pair().await;
        ours.write_all(b"now").await.unwrap();
        theirs.readable().await.unwrap();
        assert_eq!(arrived(&theirs), b"now");
        tokio::spawn(take_turns());
        yield_now().await;
        ours.write_all(b", last words").await.unwrap();
        take_no_more_turns();
        assert_eq!(arrived(&theirs), b", last words");
        ours.write_all(b", more").await.unwrap();
        assert_eq!(arrived(&theirs), b", more");
    }

    #[tokio::test]
    async fn large_and_small_writes_keep_their_order_also_when_nobody_reads() {
        tokio::spawn(take_turns());
        let (mut ours, mut theirs) = pair().await;
        let mut sent = Vec::new();
        let mut blocked = 0;
        for number in 0..2_000_u32 {
            let size = if number % 3 == 0 { 20_000 } else { 700 };
            let piece = vec![number as u8; size];
            let mut rest = &piece[..];
            while !rest.is_empty() {
                tokio::select! {
                    biased;
                    written = ours.write(rest) => rest = &rest[written.unwrap()..],
                    // Nothing but reading helps; what was not written yet is tried again.
                    () = std::future::ready(()) => {
                        blocked += 1;
                        let mut some = vec![0; 50_000];
                        match theirs.try_read(&mut some) {
                            Ok(read) => sent.extend_from_slice(&some[..read]),
                            Err(_) => yield_now().await,
                        }
                    }
                }
            }
            if number % 50 == 0 {
                yield_now().await;
            }
        }
        let finish = async {
            ours.flush().await.unwrap();
            ours.shutdown().await.unwrap();
        };
        let mut rest = Vec::new();
        let (read, ()) = tokio::join!(theirs.read_to_end(&mut rest), finish);
        read.unwrap();
        sent.extend(rest);
        assert!(blocked > 0, "the kernel took it all: nothing was tried");
        let expected: Vec<u8> = (0..2_000_u32)
            .flat_map(|n| std::iter::repeat_n(n as u8, if n % 3 == 0 { 20_000 } else { 700 }))
            .collect();
        assert!(
            sent == expected,
            "{} of {} bytes",
            sent.len(),
            expected.len()
        );
    }

    #[tokio::test]
    async fn a_machine_has_as_long_for_a_sign_of_life_whether_or_not_a_full_window_is_borne() {
        let (ours, _theirs) = pair().await;
        let user_timeout = || {
            let milliseconds = sockopt::tcp_user_timeout(&lock(&ours.0).stream).unwrap();
            Duration::from_millis(milliseconds.into())
        };
        ours.break_when_lifeless();
        assert_eq!(user_timeout(), LIFELESS_MAX);
        ours.set_full_window(FullWindow::Borne);
        assert_eq!(user_timeout(), Duration::ZERO);
        ours.set_full_window(FullWindow::BorneForAWhile);
        assert_eq!(user_timeout(), FULL_MAX);
        ours.set_full_window(FullWindow::Breaks);
        assert_eq!(user_timeout(), LIFELESS_MAX);
        // By these the kernel goes without the other.
        let stream = &lock(&ours.0).stream;
        assert!(sockopt::socket_keepalive(stream).unwrap());
        let first = sockopt::tcp_keepidle(stream).unwrap();
        let others = sockopt::tcp_keepintvl(stream).unwrap();
        let times = sockopt::tcp_keepcnt(stream).unwrap();
        assert_eq!(first + others * times, LIFELESS_MAX);
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_noticed_in_two_minutes_and_one_that_does_not_read_is_not_gone()
     {
        let (ours, _theirs) = pair().await;
        ours.break_when_client_is_gone();
        let stream = &lock(&ours.0).stream;
        assert!(sockopt::socket_keepalive(stream).unwrap());
        let first = sockopt::tcp_keepidle(stream).unwrap();
        let others = sockopt::tcp_keepintvl(stream).unwrap();
        let times = sockopt::tcp_keepcnt(stream).unwrap();
        assert_eq!(
            (first, others, times),
            (CLIENT_ASKED_AFTER, CLIENT_ASKED_EVERY, CLIENT_ASKED_MAX)
        );
        assert_eq!(first + others * times, Duration::from_secs(120));
        assert_eq!(sockopt::tcp_user_timeout(stream).unwrap(), 0);
    }

    #[tokio::test]
    async fn says_with_a_later_write_that_an_earlier_one_failed() {
        tokio::spawn(take_turns());
        let (mut ours, theirs) = pair().await;
        // With unread bytes it is not closed but reset.
        ours.write_all(b"unread").await.unwrap();
        theirs.readable().await.unwrap();
        drop(theirs);
        let failed = async {
            loop {
                if let Err(error) = ours.write_all(b"more").await {
                    break error.kind();
                }
                yield_now().await;
            }
        };
        let failed = tokio::time::timeout(std::time::Duration::from_secs(20), failed);
        let kind = failed.await.expect("nobody was told");
        assert!(matches!(
            kind,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        ));
    }
}
