//! Signals as `kill` takes them: by name, with or without SIG, or by number.

use libc::c_int;

/// What was typed is no signal. The texts are runc's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// A name that no signal has.
    #[error("unknown signal {0:?}")]
    Unknown(String),
    /// A number that no signal has.
    #[error("unable to signal init: invalid argument")]
    Invalid,
}

/// Of x86-64 Linux.
const NAMES: &[(&str, c_int)] = &[
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGIOT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGPOLL),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

const MAX: u8 = 64;

/// The number of the signal `text`; nothing is SIGTERM, and 0 only asks whether the
/// process is there.
pub fn number(text: &str) -> Result<u8, SignalError> {
    if text.is_empty() {
        return Ok(libc::SIGTERM as u8);
    }
    if let Ok(number) = text.parse::<i64>() {
        let number = u8::try_from(number).ok().filter(|n| *n <= MAX);
        return number.ok_or(SignalError::Invalid);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let found = NAMES.iter().find(|(known, _)| *known == name);
    let number = found.and_then(|(_, number)| u8::try_from(*number).ok());
    number.ok_or_else(|| SignalError::Unknown(text.chars().take(40).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, expected) in [
            ("", 15),
            ("9", 9),
            ("0", 0),
            ("64", 64),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("hup", 1),
        ] {
            assert_eq!(number(text), Ok(expected), "{text:?}");
        }
        for text in ["-1", "65", "99", "4294967305"] {
            assert_eq!(number(text), Err(SignalError::Invalid), "{text:?}");
        }
        let unknown = number("FOO").unwrap_err().to_string();
        assert_eq!(unknown, "unknown signal \"FOO\"");
        for text in ["SIG", "SIGSIGTERM", "RTMIN", "9x"] {
            assert!(
                matches!(number(text), Err(SignalError::Unknown(_))),
                "{text:?}"
            );
        }
    }
}
