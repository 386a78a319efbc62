//! Handing the listening sockets of a running proxy to the one that takes its place.
//!
//! Two sockets can listen at one address, but each has a queue of its own: clients that wait there for a handshake to
//! end, or to be accepted, are reset when their socket is closed. So the new proxy gets the very sockets of the old one
//! (`SCM_RIGHTS`), and a queue ends only with the last process that holds it.
//!
//! The two meet at a Unix socket whose abstract name is the address they listen at. Such a name is as unique as the
//! address (both belong to the network namespace) and is free again when its holder ends. Both sides check that the
//! other is run by the same user.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use tokio::net::UnixListener;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Longest wait for the other proxy, which has nothing to do but to pass on numbers.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Most sockets that are taken; one for each thread of the largest machines.
const SOCKETS_MAX: usize = 4_096;

fn name(address: SocketAddr) -> String {
    format!("\0friday-proxy {address}")
}

fn check_user(stream: &tokio::net::UnixStream) -> io::Result<()> {
    if stream.peer_cred()?.uid() == geteuid().as_raw() {
        Ok(())
    } else {
        let text = "the other proxy is run by another user";
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }
}

fn blocking(stream: tokio::net::UnixStream) -> io::Result<UnixStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(WAIT_MAX))?;
    stream.set_write_timeout(Some(WAIT_MAX))?;
    Ok(stream)
}

/// The sockets of the proxy that listens at that address. It goes on listening there until it ends.
///
/// # Errors
/// Nobody hands them over; most likely nobody is there.
pub(crate) async fn take(address: SocketAddr) -> io::Result<Vec<TcpListener>> {
    let stream = tokio::net::UnixStream::connect(name(address)).await?;
    check_user(&stream)?;
    let stream = blocking(stream)?;
    let sockets = spawn_blocking(move || receive(&stream)).await??;
    for socket in &sockets {
        if socket.local_addr()? != address {
            return Err(io::Error::other("the other proxy listens elsewhere"));
        }
    }
    info!(sockets = sockets.len(), %address, "took over the sockets");
    Ok(sockets)
}

fn receive(stream: &UnixStream) -> io::Result<Vec<TcpListener>> {
    let mut sockets = Vec::new();
    while sockets.len() < SOCKETS_MAX {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let parts = &mut [IoSliceMut::new(&mut byte)];
        let received = recvmsg(stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            break;
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                sockets.extend(passed.map(TcpListener::from));
            }
        }
    }
    Ok(sockets)
}

fn send(stream: &UnixStream, sockets: &[TcpListener]) -> io::Result<()> {
    for socket in sockets {
        let passed = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&passed));
        // Nothing is passed on but behind at least one byte.
        let parts = &[IoSlice::new(b"s")];
        sendmsg(stream, parts, &mut control, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Sockets that the next proxy may have.
#[derive(Debug)]
pub(crate) struct Offer {
    listener: UnixListener,
    sockets: Vec<TcpListener>,
}

impl Offer {
    /// Offers these sockets, which listen at that address.
    ///
    /// # Errors
    /// Another proxy offers its own.
    pub(crate) fn new(address: SocketAddr, sockets: Vec<TcpListener>) -> io::Result<Self> {
        let listener = UnixListener::bind(name(address))?;
        Ok(Self { listener, sockets })
    }

    /// Hands the sockets to the first that comes and may have them; gives up at `stop`.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let Self { listener, sockets } = self;
        let coming = async {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => match check_user(&stream) {
                        Ok(()) => break stream,
                        Err(error) => warn!(%error, "the sockets are not handed over"),
                    },
                    Err(error) => {
                        warn!(%error, "cannot hand the sockets over");
                        tokio::time::sleep(WAIT_MAX).await;
                    }
                }
            }
        };
        let Some(stream) = stop.run_until_cancelled(coming).await else {
            return;
        };
        // The name is the next one's from now on.
        drop(listener);
        let passed = spawn_blocking(move || send(&blocking(stream)?, &sockets)).await;
        match passed.map_err(io::Error::other).flatten() {
            Ok(()) => info!("handed the sockets over"),
            Err(error) => warn!(%error, "could not hand the sockets over"),
        }
    }
}
