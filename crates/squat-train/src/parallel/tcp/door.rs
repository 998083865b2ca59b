//! Where processes come in. Every visitor is heard by a thread of its own, for a few seconds at most, so that none can
//! keep the others waiting.

use super::channel::Channel;
use super::connect::{Hello, PATIENCE, PAUSE};
use super::secret::Secret;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

/// Visitors that are heard at the same time; more are turned away, and members among them call again.
const MAX_VISITORS: usize = 64;

/// Someone who came through the handshake and said what it is.
pub(super) struct Visitor {
    pub(super) channel: Channel,
    pub(super) hello: Hello,
    pub(super) from: SocketAddr,
}

/// A listener, open until it is dropped.
pub(super) struct Door {
    visitors: Receiver<Visitor>,
    closed: Arc<AtomicBool>,
    listening: Option<std::thread::JoinHandle<()>>,
}

impl Door {
    pub(super) fn open(listener: TcpListener, secret: &Secret) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let closed = Arc::new(AtomicBool::new(false));
        let (sender, visitors) = channel();
        let (is_closed, secret) = (closed.clone(), secret.clone());
        let listening = std::thread::Builder::new().name("door".into()).spawn(move || {
            let inside = Arc::new(AtomicUsize::new(0));
            while !is_closed.load(Ordering::Relaxed) {
                // A connection that broke before it was accepted, or too many open files: look again later.
                let Ok((stream, from)) = listener.accept() else {
                    std::thread::sleep(PAUSE);
                    continue;
                };
                if inside.fetch_add(1, Ordering::Relaxed) >= MAX_VISITORS {
                    inside.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (sender, secret, left) = (sender.clone(), secret.clone(), inside.clone());
                let heard = std::thread::Builder::new().name("visitor".into()).spawn(move || {
                    let until = Instant::now() + PATIENCE;
                    let visitor = stream
                        .set_nonblocking(false)
                        .and_then(|()| Channel::answer(stream, &secret, until))
                        .and_then(|mut channel| Ok((channel.hear::<Hello>(until)?, channel)));
                    // Whoever does not say the right words in time does not belong here.
                    if let Ok((hello, channel)) = visitor {
                        let _ = sender.send(Visitor { channel, hello, from });
                    }
                    left.fetch_sub(1, Ordering::Relaxed);
                });
                if heard.is_err() {
                    inside.fetch_sub(1, Ordering::Relaxed);
                }
            }
        })?;
        Ok(Self { visitors, closed, listening: Some(listening) })
    }

    /// The next visitor within [`PAUSE`], if there is one.
    pub(super) fn next(&self) -> Option<Visitor> {
        match self.visitors.recv_timeout(PAUSE) {
            Ok(visitor) => Some(visitor),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(PAUSE);
                None
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}
