//! One direction of a connection: from the guest to the host's stream.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{VolatileMemoryError, VolatileSlice, WriteVolatile};

/// Bytes that a guest may send ahead of what the host's stream has taken: the
/// buf_alloc that is announced, and the most that is ever buffered for a
/// connection. Linux announces the same.
pub(super) const WINDOW: u32 = 256 * 1024;

/// A guest hears of new room when that much has come together: seldom enough to
/// cost little, early enough that a sender with the other half never waits.
const ANNOUNCE_FROM: u32 = WINDOW / 2;

/// Copied at a time when the stream does not take it directly.
const CHUNK: usize = 4096;

/// The guest sent more than it was given room for, or after it had said that it
/// would not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation;

/// State of this direction. The counters are those of virtio 1.2, 5.10.6.3.
#[derive(Debug, Default)]
pub(super) struct ToHost {
    /// What the stream did not take yet: `received - forwarded` bytes.
    buffer: VecDeque<u8>,
    received: Wrapping<u32>,
    /// fwd_cnt.
    forwarded: Wrapping<u32>,
    /// The fwd_cnt that the guest knows.
    announced: Wrapping<u32>,
    /// The guest has asked for our credit.
    asked: bool,
    /// The guest will send no more.
    done: bool,
    /// The host takes no more; what comes is dropped.
    broken: bool,
    /// The stream knows that there is no more.
    closed: bool,
}

impl ToHost {
    /// Takes the data of a packet.
    pub fn accept<B: BitmapSlice>(
        &mut self,
        stream: &UnixStream,
        data: &VolatileSlice<'_, B>,
    ) -> Result<(), Violation> {
        let len = u32::try_from(data.len()).map_err(|_| Violation)?;
        let waiting = (self.received - self.forwarded).0;
        if self.done || len > WINDOW.saturating_sub(waiting) {
            return Err(Violation);
        }
        self.received += len;
        let mut written = 0;
        // Straight from guest memory while nothing is ahead of it.
        while self.buffer.is_empty() && !self.broken && written < data.len() {
            let Ok(rest) = data.offset(written) else {
                return Err(Violation);
            };
            match retry(|| write_volatile(stream, &rest)) {
                Ok(n) if n > 0 => {
                    written += n;
                    self.forwarded += n as u32;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                _ => self.give_up(),
            }
        }
        if self.broken {
            self.forwarded = self.received;
            return Ok(());
        }
        self.keep(data, written)
    }

    /// Buffers `data` from `from` on.
    fn keep<B: BitmapSlice>(
        &mut self,
        data: &VolatileSlice<'_, B>,
        mut from: usize,
    ) -> Result<(), Violation> {
        let mut chunk = [0; CHUNK];
        while from < data.len() {
            let rest = data.offset(from).map_err(|_| Violation)?;
            let n = rest.copy_to(&mut chunk[..]);
            self.buffer.extend(&chunk[..n]);
            from += n;
        }
        Ok(())
    }

    /// Gives the stream what it takes now.
    pub fn flush(&mut self, stream: &UnixStream) {
        while !self.buffer.is_empty() && !self.broken {
            let (front, back) = self.buffer.as_slices();
            let parts = [IoSlice::new(front), IoSlice::new(back)];
            match retry(|| (&*stream).write_vectored(&parts)) {
                Ok(n) if n > 0 => {
                    self.buffer.drain(..n);
                    self.forwarded += n as u32;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => self.give_up(),
            }
        }
        if self.buffer.is_empty() {
            self.buffer = VecDeque::new();
            self.close_if_done(stream);
        }
    }

    /// The guest will send no more. The stream is told when it has taken the rest.
    pub fn finish(&mut self, stream: &UnixStream) {
        self.done = true;
        self.flush(stream);
    }

    fn close_if_done(&mut self, stream: &UnixStream) {
        if self.done && !self.closed {
            self.closed = true;
            // Fails only when the other end is gone, which is the same to us.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// The host takes no more.
    pub fn give_up(&mut self) {
        self.broken = true;
        self.buffer = VecDeque::new();
        self.forwarded = self.received;
    }

    /// Whether the host takes no more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the guest will send no more, and all of it has been passed on.
    pub fn is_complete(&self) -> bool {
        self.done && self.buffer.is_empty()
    }

    /// The guest wants to know its credit.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// Whether the guest should hear of its credit.
    pub fn credit_owed(&self) -> bool {
        self.asked || !self.done && (self.forwarded - self.announced).0 >= ANNOUNCE_FROM
    }

    /// The fwd_cnt for a header that is being sent.
    pub fn announce(&mut self) -> u32 {
        self.asked = false;
        self.announced = self.forwarded;
        self.forwarded.0
    }
}

fn write_volatile<B: BitmapSlice>(
    mut stream: &UnixStream,
    data: &VolatileSlice<'_, B>,
) -> io::Result<usize> {
    stream.write_volatile(data).map_err(into_io)
}

/// The I/O error in a volatile memory error.
pub(super) fn into_io(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// Repeats what a signal has interrupted.
pub(super) fn retry<T>(mut action: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match action() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn streams() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    fn send(to_host: &mut ToHost, stream: &UnixStream, data: &mut [u8]) -> Result<(), Violation> {
        to_host.accept(stream, &VolatileSlice::from(data))
    }

    /// Sends until the stream takes no more and the window is used up.
    fn fill(to_host: &mut ToHost, stream: &UnixStream) -> usize {
        let mut sent = 0;
        while send(to_host, stream, &mut [sent as u8; 1000]).is_ok() {
            sent += 1;
        }
        sent * 1000
    }

    #[test]
    fn a_sender_beyond_its_window_is_caught_and_memory_stays_bounded() {
        let (ours, mut theirs) = streams();
        let mut to_host = ToHost::default();
        let sent = fill(&mut to_host, &ours);
        assert!(to_host.buffer.len() <= WINDOW as usize);
        assert!(to_host.buffer.len() > WINDOW as usize - 1000);
        let mut received = Vec::new();
        while received.len() < sent {
            let mut chunk = [0; 5000];
            match theirs.read(&mut chunk) {
                Ok(n) => received.extend(&chunk[..n]),
                Err(_) => to_host.flush(&ours),
            }
        }
        let in_order = |(i, &byte): (usize, &u8)| byte == (i / 1000) as u8;
        assert!(received.iter().enumerate().all(in_order));
        assert_eq!(to_host.buffer.capacity(), 0);
    }

    #[test]
    fn credit_is_owed_from_half_a_window_on_and_when_asked() {
        let (ours, mut theirs) = streams();
        let mut to_host = ToHost::default();
        let mut sent = 0;
        while !to_host.credit_owed() {
            send(&mut to_host, &ours, &mut [1; 1024]).unwrap();
            theirs.read_exact(&mut [0; 1024]).unwrap();
            sent += 1024;
        }
        assert_eq!(sent, ANNOUNCE_FROM);
        assert_eq!(to_host.announce(), sent);
        assert!(!to_host.credit_owed());
        to_host.ask();
        assert!(to_host.credit_owed());
    }

    #[test]
    fn a_host_that_is_gone_swallows_data_and_credit_flows_on() {
        let (ours, theirs) = streams();
        drop(theirs);
        let mut to_host = ToHost::default();
        for _ in 0..1000 {
            send(&mut to_host, &ours, &mut [1; 1000]).unwrap();
        }
        assert!(to_host.is_broken());
        assert_eq!(to_host.announce(), 1_000_000);
    }

    #[test]
    fn the_end_is_passed_on_behind_the_data() {
        let (ours, mut theirs) = streams();
        let mut to_host = ToHost::default();
        let sent = fill(&mut to_host, &ours);
        to_host.finish(&ours);
        assert!(!to_host.is_complete());
        assert_eq!(send(&mut to_host, &ours, &mut [1]), Err(Violation));
        let mut received = 0;
        let mut chunk = [0; 5000];
        loop {
            match theirs.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => received += n,
                Err(_) => to_host.flush(&ours),
            }
        }
        assert_eq!(received, sent);
        assert!(to_host.is_complete());
    }
}
