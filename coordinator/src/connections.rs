//! Lets connections in. One that nobody has vouched for yet (no call with the right token came over it) may stay
//! for a short time only, and there are few of them: a flood or a silent client costs little and shuts nobody out.

use crate::security::Refusals;
use futures::{FutureExt, future::Fuse};
use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// For a handshake, and again for the first call that is let through.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections without such a call; the oldest makes room for the next.
const STRANGERS: usize = 256;
/// After the system refused to give a connection (out of descriptors).
const PAUSE: Duration = Duration::from_millis(100);

/// A connection's caller, as far as it is known. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Guest(Arc<Known>);

#[derive(Debug)]
struct Known {
    peer: SocketAddr,
    admitted: AtomicBool,
    shown_out: CancellationToken,
}

impl Guest {
    /// A call of it was let through: it may stay.
    pub fn admit(&self) {
        self.0.admitted.store(true, Ordering::Relaxed);
    }

    /// Where it calls from.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    fn is_admitted(&self) -> bool {
        self.0.admitted.load(Ordering::Relaxed)
    }
}

/// A stream of bytes, encrypted or not.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that fails once its guest has to leave.
pub struct Connection {
    io: Box<dyn Io>,
    guest: Guest,
    leave: Fuse<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Accepts until the receiver is dropped. With `tls`, callers must speak it.
pub fn open(listener: TcpListener, tls: Option<TlsAcceptor>) -> mpsc::Receiver<io::Result<Connection>> {
    let (to, connections) = mpsc::channel(STRANGERS);
    tokio::spawn(async move {
        let (mut strangers, refusals) = (Strangers::default(), Arc::new(Refusals::default()));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = to.closed() => return,
            };
            let Ok((stream, peer)) = accepted else {
                sleep(PAUSE).await;
                continue;
            };
            let guest = strangers.next(peer);
            let (tls, to, refusals) = (tls.clone(), to.clone(), refusals.clone());
            tokio::spawn(async move {
                match greet(stream, tls, guest).await {
                    // The server has ended.
                    Ok(connection) => drop(to.send(Ok(connection)).await),
                    Err(why) => refusals.note(Some(peer), &format!("no TLS handshake: {why}")),
                }
            });
        }
    });
    connections
}

async fn greet(stream: TcpStream, tls: Option<TlsAcceptor>, guest: Guest) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let io: Box<dyn Io> = match tls {
        None => Box::new(stream),
        Some(tls) => {
            let shaken = tokio::select! {
                shaken = timeout(PATIENCE, tls.accept(stream)) => shaken,
                () = guest.0.shown_out.cancelled() => return Err(io::Error::other("too many at once")),
            };
            Box::new(shaken.map_err(|_| io::Error::other("it took too long"))??)
        }
    };
    let out = guest.0.shown_out.clone();
    let leave: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
        // Either way it has to go.
        let _ = timeout(PATIENCE, out.cancelled()).await;
    });
    Ok(Connection { io, guest, leave: leave.fuse() })
}

/// Those that nobody has vouched for, oldest first.
#[derive(Default)]
struct Strangers(VecDeque<Weak<Known>>);

impl Strangers {
    fn next(&mut self, peer: SocketAddr) -> Guest {
        let still =
            |known: &Weak<Known>| known.upgrade().is_some_and(|k| !k.admitted.load(Ordering::Relaxed));
        if self.0.len() >= STRANGERS {
            self.0.retain(still);
        }
        if self.0.len() >= STRANGERS
            && let Some(oldest) = self.0.pop_front().and_then(|known| known.upgrade())
        {
            oldest.shown_out.cancel();
        }
        let known = Known { peer, admitted: AtomicBool::new(false), shown_out: CancellationToken::new() };
        let guest = Guest(Arc::new(known));
        self.0.push_back(Arc::downgrade(&guest.0));
        guest
    }
}

impl Connected for Connection {
    type ConnectInfo = Guest;

    fn connect_info(&self) -> Guest {
        self.guest.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.guest.is_admitted() && self.leave.poll_unpin(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_the_admitted_stay() {
        let mut strangers = Strangers::default();
        let peer = "127.0.0.1:1".parse().unwrap();
        let mut guests: Vec<Guest> = (0..STRANGERS).map(|_| strangers.next(peer)).collect();
        guests[0].admit();
        guests.push(strangers.next(peer));
        assert!(guests.iter().all(|g| !g.0.shown_out.is_cancelled()), "the admitted one is no stranger");
        guests.push(strangers.next(peer));
        let out: Vec<usize> = (0..guests.len()).filter(|&i| guests[i].0.shown_out.is_cancelled()).collect();
        assert_eq!(out, [1]);
        // Those that are gone leave room.
        guests.truncate(2);
        let new = strangers.next(peer);
        assert!(!new.0.shown_out.is_cancelled() && strangers.0.len() < STRANGERS);
    }
}
