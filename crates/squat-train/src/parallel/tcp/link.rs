//! A connection to one other process: frames, a thread that reads them, and heartbeats.
//!
//! A frame is 16 bytes (kind, three zeros, number of the collective operation as u32, length as u64, little endian), its
//! payload of at most [`MAX_PAYLOAD`] bytes and, where the group has a secret, its seal. The reading thread always reads, so
//! two processes that send to each other at the same time cannot block each other. While nothing else is sent, a heartbeat
//! goes out several times within the silence that the other side accepts; a process that is silent for longer counts as
//! lost. So every wait ends.

use super::channel::{Channel, exactly};
use super::secret::{Seal, TAG};
use crate::parallel::ParallelError;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest payload: larger things are sent in pieces.
pub(super) const MAX_PAYLOAD: usize = 1 << 22;

const HEADER: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Alive = 0,
    Data = 1,
    Stopped = 2,
    Bye = 3,
}

enum Arrival {
    Data(u32, Vec<u8>),
    Stopped(String),
    Lost(String),
}

/// The half that sends.
struct Writer {
    stream: TcpStream,
    seal: Seal,
}

/// One end of a connection.
pub(super) struct Link {
    peer: usize,
    writer: Arc<Mutex<Writer>>,
    inbox: Mutex<Receiver<Arrival>>,
    /// Hangs up when the reading thread ends.
    ended: Mutex<Receiver<()>>,
}

/// The writing half, for heartbeats.
pub(super) struct Pulse(Arc<Mutex<Writer>>);

impl Pulse {
    /// Sends a heartbeat, unless the process is sending something else.
    pub(super) fn beat(&self) {
        if let Ok(mut writer) = self.0.try_lock() {
            let _ = send(&mut writer, Kind::Alive, 0, &[]);
        }
    }
}

fn header(kind: Kind, operation: u32, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = kind as u8;
    header[4..8].copy_from_slice(&operation.to_le_bytes());
    header[8..].copy_from_slice(&(length as u64).to_le_bytes());
    header
}

fn send(writer: &mut Writer, kind: Kind, operation: u32, payload: &[u8]) -> std::io::Result<()> {
    let header = header(kind, operation, payload.len());
    let tag = writer.seal.make(&header, payload);
    writer.stream.write_all(&header)?;
    writer.stream.write_all(payload)?;
    writer.stream.write_all(&tag[..writer.seal.length()])
}

impl Link {
    /// Over an open channel; `silence` is how long the peer may say nothing.
    pub(super) fn new(peer: usize, channel: Channel, silence: Duration) -> std::io::Result<Self> {
        let Channel { stream, outgoing, incoming } = channel;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        let reading = stream.try_clone()?;
        let (sender, inbox) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new().name(format!("from rank {peer}")).spawn(move || {
            read(reading, incoming, &sender, silence);
            drop(end);
        })?;
        Ok(Self {
            peer,
            writer: Arc::new(Mutex::new(Writer { stream, seal: outgoing })),
            inbox: Mutex::new(inbox),
            ended: Mutex::new(ended),
        })
    }

    pub(super) fn pulse(&self) -> Pulse {
        Pulse(self.writer.clone())
    }

    /// Sends the payload of an operation.
    pub(super) fn send(&self, operation: u32, payload: &[u8]) -> Result<(), ParallelError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        send(&mut writer, Kind::Data, operation, payload).map_err(|error| {
            // The peer's last message tells more than a broken pipe.
            self.last_words().unwrap_or_else(|| self.lost(&describe(&error, None)))
        })
    }

    /// The next payload, which must be of this operation.
    pub(super) fn receive(&self, operation: u32) -> Result<Vec<u8>, ParallelError> {
        let arrival = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match arrival {
            Ok(Arrival::Data(found, payload)) if found == operation => Ok(payload),
            Ok(Arrival::Data(found, _)) => {
                Err(self.lost(&format!("it is at operation {found}, this process at {operation}")))
            }
            Ok(Arrival::Stopped(message)) => Err(ParallelError::Stopped { rank: self.peer, message }),
            Ok(Arrival::Lost(reason)) => Err(self.lost(&reason)),
            Err(_) => Err(self.lost("its connection is closed")),
        }
    }

    /// Tells the peer why this process stops.
    pub(super) fn stop(&self, message: &str) {
        if let Ok(mut writer) = self.writer.lock() {
            let end = message.floor_char_boundary(MAX_PAYLOAD);
            let _ = send(&mut writer, Kind::Stopped, 0, &message.as_bytes()[..end]);
        }
    }

    /// Announces the end. The peer may still be reading: nothing that was sent is lost.
    pub(super) fn leave(&self) {
        if let Ok(mut writer) = self.writer.lock() {
            let _ = send(&mut writer, Kind::Bye, 0, &[]);
            let _ = writer.stream.shutdown(Shutdown::Write);
        }
    }

    /// Waits until the peer has announced its end too, at most `limit`; then closes.
    pub(super) fn close(&self, limit: Duration) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(limit);
        if let Ok(writer) = self.writer.lock() {
            let _ = writer.stream.shutdown(Shutdown::Both);
        }
    }

    fn last_words(&self) -> Option<ParallelError> {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        // The peer's message may not have arrived yet.
        while let Ok(arrival) = inbox.recv_timeout(Duration::from_millis(200)) {
            match arrival {
                Arrival::Data(..) => {}
                Arrival::Stopped(message) => {
                    return Some(ParallelError::Stopped { rank: self.peer, message });
                }
                Arrival::Lost(reason) => return Some(self.lost(&reason)),
            }
        }
        None
    }

    pub(super) fn lost(&self, reason: &str) -> ParallelError {
        ParallelError::Lost { rank: self.peer, reason: reason.to_owned() }
    }
}

fn describe(error: &std::io::Error, silence: Option<Duration>) -> String {
    match (error.kind(), silence) {
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, Some(silence)) => {
            format!("no heartbeat for {} s", silence.as_secs_f64())
        }
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, None) => "it takes no data".to_owned(),
        (ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe, _) => {
            "it closed the connection without a word, so it was killed or crashed".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Reads frames until the connection ends.
fn read(mut stream: TcpStream, mut seal: Seal, sender: &Sender<Arrival>, silence: Duration) {
    // A process that needs nothing more still reads until the peer ends: closing earlier would destroy data that the
    // peer has not read yet.
    let deliver = |arrival| drop(sender.send(arrival));
    let mut ended = false;
    loop {
        match frame(&mut stream, &mut seal) {
            Ok((Kind::Alive, ..)) => {}
            Ok((Kind::Data, operation, payload)) => deliver(Arrival::Data(operation, payload)),
            Ok((Kind::Stopped, _, text)) => {
                ended = true;
                deliver(Arrival::Stopped(String::from_utf8_lossy(&text).into_owned()));
            }
            Ok((Kind::Bye, ..)) => {
                if !ended {
                    deliver(Arrival::Lost("it has ended already".to_owned()));
                }
                ended = true;
            }
            Err(error) => {
                if !ended {
                    deliver(Arrival::Lost(describe(&error, Some(silence))));
                }
                return;
            }
        }
    }
}

fn frame(stream: &mut impl Read, seal: &mut Seal) -> std::io::Result<(Kind, u32, Vec<u8>)> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let strange = || std::io::Error::new(ErrorKind::InvalidData, "it sends something else than frames");
    let kind = match header[0] {
        0 => Kind::Alive,
        1 => Kind::Data,
        2 => Kind::Stopped,
        3 => Kind::Bye,
        _ => return Err(strange()),
    };
    let [_, _, _, _, a, b, c, d, length @ ..] = header;
    let length = u64::from_le_bytes(length);
    if header[1..4] != [0; 3] || length > MAX_PAYLOAD as u64 {
        return Err(strange());
    }
    let payload = exactly(stream, length as usize)?;
    let mut tag = [0; TAG];
    let tag = &mut tag[..seal.length()];
    stream.read_exact(tag)?;
    if !seal.check(&header, &payload, tag) {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "it sends frames that are not its own"));
    }
    Ok((kind, u32::from_le_bytes([a, b, c, d]), payload))
}

/// Reads frames until they end, for fuzzing.
pub(super) fn read_frames(stream: &mut impl Read, seal: &mut Seal) {
    while frame(stream, seal).is_ok() {}
}

/// Some frames.
pub(super) fn seed() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, payload) in [(Kind::Alive, &b""[..]), (Kind::Data, b"data"), (Kind::Bye, b"")] {
        bytes.extend(header(kind, 3, payload.len()));
        bytes.extend(payload);
    }
    bytes
}
