//! The carrier for processes without MPI: a TCP connection between every pair.

mod channel;
mod connect;
mod door;
mod link;
mod secret;

pub use secret::{SECRET_VARIABLE, Secret};

use super::carrier::Carrier;
use super::{Launch, ParallelError};
use link::{Link, MAX_PAYLOAD};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest wait for processes that stop with an error.
const PARTING: Duration = Duration::from_secs(2);

/// Connections with heartbeats to every other process.
pub(super) struct Tcp {
    rank: usize,
    links: Vec<Option<Link>>,
    failed: AtomicBool,
    silence: Duration,
    heart: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl Tcp {
    /// As [`super::Group::join`].
    pub(super) fn connect(launch: &Launch, key: &str, patience: Duration) -> Result<Self, ParallelError> {
        let channels = connect::connect(launch, key, patience)?;
        let broken =
            |error: std::io::Error| ParallelError::Rendezvous(format!("a connection broke: {error}"));
        let mut links = Vec::with_capacity(channels.len());
        for (peer, channel) in channels.into_iter().enumerate() {
            links.push(channel.map(|c| Link::new(peer, c, patience)).transpose().map_err(broken)?);
        }
        let pulses: Vec<_> = links.iter().flatten().map(Link::pulse).collect();
        let (stop, stopped) = channel::<()>();
        let pause = (patience / 4).min(Duration::from_secs(10));
        let heart = std::thread::Builder::new().name("heartbeats".into()).spawn(move || {
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                pulses.iter().for_each(link::Pulse::beat);
            }
        });
        Ok(Self {
            rank: launch.rank,
            links,
            failed: AtomicBool::new(false),
            silence: patience,
            heart: Mutex::new(Some((stop, heart.map_err(broken)?))),
        })
    }

    /// The other processes, from the next rank on, so that not all send to the same one at once.
    fn others(&self) -> impl Iterator<Item = (usize, &Link)> {
        let world = self.links.len();
        (1..world)
            .map(move |step| (self.rank + step) % world)
            .filter_map(|peer| self.links[peer].as_ref().map(|link| (peer, link)))
    }
}

impl Carrier for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.links.len()
    }

    fn exchange(
        &self,
        operation: u32,
        mut outgoing: Vec<Vec<u8>>,
        longest: usize,
    ) -> Result<Vec<Vec<u8>>, ParallelError> {
        for (peer, link) in self.others() {
            for piece in pieces(&outgoing[peer]) {
                link.send(operation, piece)?;
            }
        }
        for (peer, link) in self.others() {
            let incoming = &mut outgoing[peer];
            incoming.clear();
            loop {
                let piece = link.receive(operation)?;
                if incoming.len() + piece.len() > longest {
                    return Err(link.lost(&format!("it sends more than {longest} bytes")));
                }
                incoming.extend_from_slice(&piece);
                // The last piece is a short one.
                if piece.len() < MAX_PAYLOAD {
                    break;
                }
            }
        }
        Ok(outgoing)
    }

    fn stop(&self, message: &str) {
        self.failed.store(true, Ordering::Relaxed);
        self.links.iter().flatten().for_each(|link| link.stop(message));
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        let heart = self.heart.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = heart {
            drop(stop);
            let _ = thread.join();
        }
        self.links.iter().flatten().for_each(Link::leave);
        let limit = if self.failed.load(Ordering::Relaxed) { PARTING } else { self.silence };
        self.links.iter().flatten().for_each(|link| link.close(limit));
    }
}

/// A message in pieces, of which the last one is short, if need be empty.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = bytes.len() / MAX_PAYLOAD * MAX_PAYLOAD;
    bytes[..whole].chunks(MAX_PAYLOAD).chain([&bytes[whole..]])
}

/// Reads frames until they end.
pub(super) fn read_frames(mut bytes: &[u8]) {
    link::read_frames(&mut bytes, &mut Secret::default().seal("", &[0; 64]));
}

/// Reads what is said before the first frame.
pub(super) fn read_message(bytes: &[u8]) {
    connect::read_message(bytes);
}

/// Frames and a message.
pub(super) fn seeds() -> [Vec<u8>; 2] {
    [link::seed(), connect::seed()]
}

#[cfg(test)]
mod tests;
