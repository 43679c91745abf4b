//! The other direction of a connection: from the host's stream to the guest.

use std::io::ErrorKind;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileSlice};

use super::to_host::{into_io, retry};
use super::wire::PAYLOAD_MAX;

/// State of this direction. The stream is watched edge-triggered, so `readable`
/// stays set until a read has found it empty, and a stream that waits for the
/// guest causes no events.
#[derive(Debug, Default)]
pub(super) struct ToGuest {
    readable: bool,
    /// The host's end was closed, at least for writing: end of file will follow.
    hung_up: bool,
    /// End of file was read.
    ended: bool,
    /// The guest takes no more.
    deaf: bool,
    /// tx_cnt.
    sent: Wrapping<u32>,
    peer_buf_alloc: u32,
    peer_fwd_cnt: Wrapping<u32>,
}

impl ToGuest {
    /// The stream has something to read, perhaps only its end.
    pub fn wake(&mut self, hung_up: bool) {
        self.readable = true;
        self.hung_up |= hung_up;
    }

    /// What the guest says about its buffer, in each packet.
    pub fn take_credit(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        self.peer_fwd_cnt = Wrapping(fwd_cnt);
    }

    /// The guest takes no more.
    pub fn deafen(&mut self) {
        self.deaf = true;
    }

    pub fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Whether the host will send no more and the guest has got all of it.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether a read may give something for the guest.
    pub fn can_read(&self) -> bool {
        self.readable && !self.ended && !self.deaf && self.credit() > 0
    }

    /// Bytes that the guest has room for. A guest that claims to have forwarded
    /// what it never got has none.
    fn credit(&self) -> u32 {
        let in_flight = (self.sent - self.peer_fwd_cnt).0;
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    /// Reads into a buffer of the guest; returns how many bytes, 0 if there are
    /// none now.
    pub fn read<B: BitmapSlice>(
        &mut self,
        mut stream: &UnixStream,
        data: &VolatileSlice<'_, B>,
    ) -> u32 {
        if !self.can_read() {
            return 0;
        }
        let len = data.len().min(self.credit().min(PAYLOAD_MAX) as usize);
        let Ok(mut data) = data.subslice(0, len) else {
            return 0;
        };
        match retry(|| stream.read_volatile(&mut data).map_err(into_io)) {
            Ok(0) if len > 0 => self.ended = true,
            Ok(n) => {
                // Less than asked for: it is empty now, and the next byte is a new
                // event. The end is not, when it was announced already.
                self.readable = n == len || self.hung_up;
                self.sent += n as u32;
                return n as u32;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            // ECONNRESET: the host closed its end without reading all of ours.
            Err(_) => self.ended = true,
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(to_guest: &mut ToGuest, stream: &UnixStream, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let n = to_guest.read(stream, &VolatileSlice::from(&mut data[..]));
        data.truncate(n as usize);
        data
    }

    fn streams() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn no_more_is_read_than_the_guest_has_room_for() {
        let (ours, mut theirs) = streams();
        theirs.write_all(b"0123456789").unwrap();
        let mut to_guest = ToGuest::default();
        to_guest.wake(false);
        assert!(!to_guest.can_read(), "no credit yet");
        to_guest.take_credit(4, 0);
        assert_eq!(read(&mut to_guest, &ours, 100), b"0123");
        assert!(!to_guest.can_read());
        to_guest.take_credit(4, 3);
        assert_eq!(read(&mut to_guest, &ours, 100), b"456");
        to_guest.take_credit(100, 7);
        assert_eq!(read(&mut to_guest, &ours, 2), b"78");
        assert_eq!(read(&mut to_guest, &ours, 100), b"9");
        assert!(!to_guest.can_read(), "found empty");
    }

    #[test]
    fn lies_about_credit_give_none() {
        for (buf_alloc, fwd_cnt) in [
            (0, 0),
            (0, u32::MAX),
            (1000, 1),
            (u32::MAX, 1),
            (1000, 1 << 31),
        ] {
            let (ours, mut theirs) = streams();
            theirs.write_all(b"x").unwrap();
            let mut to_guest = ToGuest::default();
            to_guest.wake(false);
            to_guest.take_credit(buf_alloc, fwd_cnt);
            assert_eq!(read(&mut to_guest, &ours, 10), b"", "{buf_alloc} {fwd_cnt}");
        }
    }

    #[test]
    fn the_end_is_found_behind_a_short_read() {
        let (ours, mut theirs) = streams();
        theirs.write_all(b"last").unwrap();
        drop(theirs);
        let mut to_guest = ToGuest::default();
        to_guest.take_credit(100, 0);
        to_guest.wake(true);
        assert_eq!(read(&mut to_guest, &ours, 100), b"last");
        assert!(to_guest.can_read());
        assert_eq!(read(&mut to_guest, &ours, 100), b"");
        assert!(to_guest.is_ended());
        assert!(!to_guest.can_read());
    }

    #[test]
    fn counters_wrap() {
        let (ours, mut theirs) = streams();
        theirs.write_all(b"0123456789").unwrap();
        let mut to_guest = ToGuest {
            sent: Wrapping(u32::MAX - 3),
            ..ToGuest::default()
        };
        to_guest.wake(false);
        to_guest.take_credit(8, u32::MAX - 3);
        assert_eq!(read(&mut to_guest, &ours, 100).len(), 8);
        to_guest.take_credit(8, 4);
        assert_eq!(read(&mut to_guest, &ours, 100), b"89");
    }
}
