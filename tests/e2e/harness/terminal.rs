//! Pseudo-terminals, to start runtimes on.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::capture::Capture;

/// A terminal with a user in front of it.
#[derive(Debug)]
pub struct Terminal {
    user: File,
    screen: Capture,
    terminal: OwnedFd,
}

impl Terminal {
    /// A terminal of `rows` and `columns`.
    pub fn new(rows: u16, columns: u16) -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let user = File::from(user);
        let terminal = Self {
            screen: Capture::of(user.try_clone().unwrap()),
            terminal: open(name, flags, Mode::empty()).unwrap(),
            user,
        };
        terminal.resize(rows, columns);
        terminal
    }

    /// For a process to be started on it.
    pub fn stdio(&self) -> Stdio {
        self.terminal.try_clone().unwrap().into()
    }

    /// Changes its size; its foreground process gets SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.user, size).unwrap();
    }

    /// Presses keys.
    pub fn type_in(&mut self, keys: &str) {
        self.user.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is on the screen.
    pub fn wait_for(&self, text: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        let found = self
            .screen
            .wait_until(until, |bytes| String::from_utf8_lossy(bytes).contains(text));
        assert!(found, "{text:?} never came: {:?}", self.text());
    }

    /// Everything that was shown.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.so_far()).into_owned()
    }

    /// Whether keys are echoed and edited in lines here, as before any program.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Whether every key goes straight to the program.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        !modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }
}
