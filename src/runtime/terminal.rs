//! The terminal that vmrun was started on, when the container has one.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use vmrun_protocol::plan::WindowSize;

use crate::{Error, fatal};

/// A terminal in raw mode. Dropping it sets it back; so does the death of the
/// process by a panic or a fatal signal.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Every key goes to the container from now on.
    pub fn enter(terminal: impl AsFd) -> Result<Self, Error> {
        let what = "put the terminal into raw mode";
        let terminal = fcntl_dupfd_cloexec(terminal, 3).map_err(Error::host(what))?;
        let before = tcgetattr(&terminal).map_err(Error::host(what))?;
        fatal::restore_terminal_on_death(terminal.as_fd()).map_err(Error::host(what))?;
        let mut raw = before.clone();
        raw.make_raw();
        let guard = Self { terminal, before };
        tcsetattr(&guard.terminal, OptionalActions::Now, &raw).map_err(Error::host(what))?;
        Ok(guard)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before) {
            log::warn!("cannot set the terminal back: {error}");
        }
        fatal::leave_terminal_alone();
    }
}

/// Whether `fd` is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    isatty(fd)
}

/// Size of the terminal behind `fd`, if it is one and knows its size.
pub fn window_size(fd: impl AsFd) -> Option<WindowSize> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_row != 0 && size.ws_col != 0).then_some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, Winsize, tcsetwinsize};

    fn pty() -> (OwnedFd, OwnedFd) {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let name = ptsname(&main, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let terminal = open(name, flags, Mode::empty()).unwrap();
        (main, terminal)
    }

    fn echoes(terminal: &OwnedFd) -> bool {
        let modes = tcgetattr(terminal).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    #[test]
    fn raw_until_dropped_or_unwound() {
        let (_main, terminal) = pty();
        assert!(echoes(&terminal));
        let guard = RawTerminal::enter(&terminal).unwrap();
        assert!(!echoes(&terminal));
        drop(guard);
        assert!(echoes(&terminal));
        let unwound = std::panic::catch_unwind(|| {
            let _guard = RawTerminal::enter(&terminal).unwrap();
            assert!(echoes(&terminal), "not in raw mode");
        });
        assert!(unwound.is_err());
        assert!(echoes(&terminal));
    }

    #[test]
    fn sizes() {
        let (main, terminal) = pty();
        assert_eq!(window_size(&terminal), None);
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&main, size).unwrap();
        let expected = WindowSize {
            rows: 24,
            columns: 80,
        };
        assert_eq!(window_size(&terminal), Some(expected));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(window_size(&reader), None);
        assert!(!is_terminal(&reader));
        assert!(RawTerminal::enter(&reader).is_err());
    }

    /// The guard in a child that dies by `death`, seen from outside.
    fn after_death_by(death: fn()) -> bool {
        let (_main, terminal) = pty();
        fatal::tests::in_child(|| {
            let _guard = RawTerminal::enter(&terminal);
            death();
        });
        echoes(&terminal)
    }

    #[test]
    fn fatal_signals_and_aborts_set_it_back() {
        assert!(after_death_by(|| std::process::abort()));
        assert!(after_death_by(|| fatal::tests::raise(libc::SIGSEGV)));
        assert!(after_death_by(|| fatal::tests::raise(libc::SIGBUS)));
        assert!(after_death_by(fatal::tests::fault));
    }
}
