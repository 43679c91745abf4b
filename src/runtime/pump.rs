//! Moves bytes from one descriptor to another until one of them ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

/// Most bytes on their way, those of a pipe's usual size.
const PIECE_BYTES: usize = 64 << 10;

/// Why the pump stopped.
#[derive(Debug)]
pub enum End {
    /// End of file on the reading side.
    Input,
    /// Nobody reads the writing side any more.
    Output,
}

/// Moves everything from `from` to `to`, byte for byte, whether they block or
/// not. It waits for the slower one, and notices without data, too, that nobody
/// reads `to`.
pub fn pump(from: impl AsFd, to: impl AsFd) -> io::Result<End> {
    let (from, to) = (from.as_fd(), to.as_fd());
    if is_pipe(from) || is_pipe(to) {
        // In the kernel, without a copy. Not every kind of file can do it.
        match splice_all(from, to) {
            Err(Errno::INVAL) => {}
            other => return Ok(other?),
        }
    }
    Ok(copy_all(from, to)?)
}

fn is_pipe(fd: BorrowedFd) -> bool {
    fstat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Fifo)
}

fn splice_all(from: BorrowedFd, to: BorrowedFd) -> rustix::io::Result<End> {
    loop {
        if !wait_for_input(from, to)? {
            return Ok(End::Output);
        }
        match splice(from, None, to, None, PIECE_BYTES, SpliceFlags::MOVE) {
            Ok(0) => return Ok(End::Input),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for_output(to)?,
            Err(error) => return ended(error),
        }
    }
}

fn copy_all(from: BorrowedFd, to: BorrowedFd) -> rustix::io::Result<End> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        if !wait_for_input(from, to)? {
            return Ok(End::Output);
        }
        let read = match rustix::io::read(from, &mut buffer[..]) {
            // EIO: a terminal that hung up, or that belongs to the foreground.
            Ok(0) | Err(Errno::IO | Errno::CONNRESET) => return Ok(End::Input),
            Ok(read) => read,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => return Err(error),
        };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for_output(to)?,
                Err(error) => return ended(error),
            }
        }
    }
}

fn ended(error: Errno) -> rustix::io::Result<End> {
    match error {
        Errno::PIPE => Ok(End::Output),
        Errno::CONNRESET | Errno::IO => Ok(End::Input),
        other => Err(other),
    }
}

/// Waits until `from` has something (or its end), or until nobody reads `to`:
/// then the answer is no.
fn wait_for_input(from: BorrowedFd, to: BorrowedFd) -> rustix::io::Result<bool> {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(from, PollFlags::IN),
            // Nothing but errors and hang-ups, which always are reported.
            PollFd::from_borrowed_fd(to, PollFlags::empty()),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        if fds[1].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return Ok(false);
        }
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
    }
}

fn wait_for_output(to: BorrowedFd) -> rustix::io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::hash::Hasher;
    use std::io::{Read, Seek, Write, pipe};
    use std::os::unix::net::UnixStream;
    use std::thread;

    const MANY_BYTES: usize = 64 << 20;

    /// 64 MiB that look different everywhere, and their checksum.
    fn write_many(mut to: impl Write) -> u64 {
        let mut sum = std::hash::DefaultHasher::new();
        let mut state = 1u64;
        let mut piece = vec![0; 1 << 20];
        for _ in 0..MANY_BYTES >> 20 {
            for word in piece.chunks_exact_mut(8) {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                word.copy_from_slice(&state.to_le_bytes());
            }
            sum.write(&piece);
            to.write_all(&piece).unwrap();
        }
        sum.finish()
    }

    fn checksum(mut from: impl Read) -> (usize, u64) {
        let mut sum = std::hash::DefaultHasher::new();
        let mut piece = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            let mut at = 0;
            while at < piece.len() {
                match from.read(&mut piece[at..]).unwrap() {
                    0 => break,
                    n => at += n,
                }
            }
            if at == 0 {
                return (total, sum.finish());
            }
            total += at;
            sum.write(&piece[..at]);
        }
    }

    #[test]
    fn pipe_to_socket_to_pipe_keeps_the_checksum() {
        let (first, writer) = pipe().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let (reader, last) = pipe().unwrap();
        let write = thread::spawn(move || write_many(writer));
        let input = thread::spawn(move || pump(first, near).unwrap());
        let output = thread::spawn(move || pump(far, last).unwrap());
        let (total, sum) = checksum(reader);
        assert_eq!(total, MANY_BYTES);
        assert_eq!(sum, write.join().unwrap());
        assert!(matches!(input.join().unwrap(), End::Input));
        assert!(matches!(output.join().unwrap(), End::Input));
    }

    #[test]
    fn socket_to_socket_is_copied() {
        let (writer, from) = UnixStream::pair().unwrap();
        let (to, reader) = UnixStream::pair().unwrap();
        // The pump must cope with descriptors that somebody made non-blocking.
        from.set_nonblocking(true).unwrap();
        to.set_nonblocking(true).unwrap();
        let write = thread::spawn(move || write_many(writer));
        let relay = thread::spawn(move || pump(from, to).unwrap());
        assert_eq!(checksum(reader), (MANY_BYTES, write.join().unwrap()));
        assert!(matches!(relay.join().unwrap(), End::Input));
    }

    #[test]
    fn append_only_file() {
        let (mut writer, from) = UnixStream::pair().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "a").unwrap();
        let to = OpenOptions::new().append(true).open(&path).unwrap();
        writer.write_all(b"bc").unwrap();
        drop(writer);
        assert!(matches!(pump(from, to).unwrap(), End::Input));
        assert_eq!(std::fs::read_to_string(path).unwrap(), "abc");
    }

    #[test]
    fn file_as_input() {
        let (to, mut reader) = UnixStream::pair().unwrap();
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(b"text").unwrap();
        from.rewind().unwrap();
        assert!(matches!(pump(from, to).unwrap(), End::Input));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }

    #[test]
    fn a_closed_reader_is_noticed_without_data() {
        let (_writer, from) = UnixStream::pair().unwrap();
        let (reader, to) = pipe().unwrap();
        drop(reader);
        assert!(matches!(pump(from, to).unwrap(), End::Output));
    }

    #[test]
    fn a_reader_that_closes_in_the_middle() {
        let (mut writer, from) = UnixStream::pair().unwrap();
        let (mut reader, to) = pipe().unwrap();
        let relay = thread::spawn(move || pump(from, to).unwrap());
        let flood = thread::spawn(move || while writer.write_all(&[0; 4096]).is_ok() {});
        reader.read_exact(&mut [0; 10_000]).unwrap();
        drop(reader);
        assert!(matches!(relay.join().unwrap(), End::Output));
        flood.join().unwrap();
    }

    #[test]
    fn dev_null_on_both_sides() {
        let null = || OpenOptions::new().read(true).write(true).open("/dev/null");
        let (from, to): (File, File) = (null().unwrap(), null().unwrap());
        assert!(matches!(pump(from, to).unwrap(), End::Input));
    }
}
