//! Against a monitor that the test plays.

use super::*;
use crate::console::{ConsoleSocket, HostTerminal};
use crate::error::chain;
use crate::monitor::messages::{MAX_TO_CLIENT_BYTES, MAX_TO_MONITOR_BYTES, Reason, Refusal};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use vmrun_protocol::frame;

struct Monitor(UnixStream);

impl Monitor {
    fn hear(&mut self) -> Call {
        frame::read(&mut self.0, MAX_TO_MONITOR_BYTES).unwrap()
    }

    fn say(&mut self, reply: &Reply) {
        frame::write(&mut self.0, reply, MAX_TO_CLIENT_BYTES).unwrap();
    }

    /// Says that the process is set up; the result is the guest's end of its terminal.
    fn create(&mut self, streams: usize) -> UnixStream {
        let Call::Exec { ignore_paused, .. } = self.hear() else {
            panic!("no exec");
        };
        assert!(ignore_paused);
        let pairs: Vec<_> = (0..streams).map(|_| UnixStream::pair().unwrap()).collect();
        let fds: Vec<_> = pairs.iter().map(|(given, _)| given.as_fd()).collect();
        let mut wire = Vec::new();
        frame::write(&mut wire, &Reply::ExecCreated, MAX_TO_CLIENT_BYTES).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let data = [IoSlice::new(&wire)];
        sendmsg(&self.0, &data, &mut control, SendFlags::empty()).unwrap();
        pairs.into_iter().next().unwrap().1
    }
}

fn size(rows: u16) -> WindowSize {
    WindowSize { rows, columns: 80 }
}

/// A proxy that asks `monitor`, and the master of its terminal.
fn asked<T: Send + 'static>(
    monitor: impl FnOnce(Monitor) -> T + Send + 'static,
) -> (Result<Proxy, ExecError>, File, JoinHandle<T>) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("monitor")).unwrap();
    let played = thread::spawn(move || monitor(Monitor(listener.accept().unwrap().0)));
    // Blocked in this thread only: signals are raised in it.
    let signals = Signals::block().unwrap();
    let console = UnixListener::bind(folder.path().join("console")).unwrap();
    let socket = ConsoleSocket::connect(&folder.path().join("console")).unwrap();
    let terminal = HostTerminal::open(&socket, Some(size(24))).unwrap();
    let master = received(&console.accept().unwrap().0);
    let client = Client::connect(&folder.path().join("monitor")).unwrap();
    let plan = ProcessPlan {
        terminal: Some(size(24)),
        ..ProcessPlan::default()
    };
    let proxy = Proxy::ask(client, signals, HostSide::Sent(terminal), plan, true);
    (proxy, master, played)
}

fn received(stream: &UnixStream) -> File {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut data = [IoSliceMut::new(&mut name)];
    recvmsg(stream, &mut data, &mut control, RecvFlags::empty()).unwrap();
    let fds = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.unwrap().into()
}

fn raise(signal: libc::c_int) {
    #[allow(unsafe_code)]
    // SAFETY: no memory is involved; the signal is blocked in this thread.
    let raised = unsafe { libc::raise(signal) };
    assert_eq!(raised, 0);
}

#[test]
fn output_arrives_before_the_exit_code() {
    let (proxy, mut master, played) = asked(|mut monitor| {
        let mut terminal = monitor.create(1);
        monitor.say(&Reply::ExecStarted);
        terminal.write_all(b"out").unwrap();
        drop(terminal);
        monitor.say(&Reply::Exited(ExitStatus::Code(7)));
        monitor.hear_end()
    });
    let mut started = 0;
    let code = proxy.unwrap().run(|_| {
        started += 1;
        Ok(())
    });
    assert_eq!((code.unwrap(), started), (7, 1));
    let mut shown = [0; 3];
    master.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"out");
    played.join().unwrap();
}

impl Monitor {
    /// The proxy hangs up.
    fn hear_end(mut self) {
        assert_eq!(self.0.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn signals_and_sizes_are_passed_on() {
    let (proxy, master, played) = asked(|mut monitor| {
        let _terminal = monitor.create(1);
        monitor.say(&Reply::ExecStarted);
        let heard = [monitor.hear(), monitor.hear()];
        monitor.say(&Reply::Exited(ExitStatus::Signal(15)));
        heard
    });
    let larger = rustix::termios::Winsize {
        ws_row: 50,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let code = proxy.unwrap().run(|_| {
        rustix::termios::tcsetwinsize(&master, larger).unwrap();
        raise(libc::SIGWINCH);
        raise(libc::SIGTERM);
        Ok(())
    });
    assert_eq!(code.unwrap(), 143);
    let heard = played.join().unwrap();
    assert_eq!(heard, [Call::Resize(size(50)), Call::Signal(15)]);
}

#[test]
fn the_end_of_the_container_is_that_of_the_process() {
    let (proxy, _master, _played) = asked(|mut monitor| {
        let _terminal = monitor.create(1);
        monitor.say(&Reply::ExecStarted);
    });
    assert_eq!(proxy.unwrap().run(|_| Ok(())).unwrap(), 137);
}

#[test]
fn refusals_have_runcs_words() {
    for (reason, expected) in [
        (Reason::State, "no"),
        (
            Reason::NotFound,
            "unable to start container process: executable file not found: no",
        ),
        (Reason::Failed, "unable to start container process: no"),
    ] {
        let refusal = Reply::Refused(Refusal {
            reason,
            line: "no".to_owned(),
        });
        let also = refusal.clone();
        let (proxy, _, played) = asked(move |mut monitor| {
            monitor.hear();
            monitor.say(&refusal);
        });
        assert_eq!(chain(&proxy.err().unwrap()), expected);
        played.join().unwrap();
        // When the program turns out not to run.
        let (proxy, _master, played) = asked(move |mut monitor| {
            let _terminal = monitor.create(1);
            monitor.say(&also);
        });
        let error = proxy.unwrap().run(|_| panic!("not started"));
        assert_eq!(chain(&error.unwrap_err()), expected);
        played.join().unwrap();
    }
}

#[test]
fn a_failure_after_the_start_kills_the_process() {
    let (proxy, _master, played) = asked(|mut monitor| {
        let _terminal = monitor.create(1);
        monitor.say(&Reply::ExecStarted);
        monitor.hear_end();
    });
    let ended = proxy.unwrap().run(|_| Err(ExecError::NoArgs));
    assert!(matches!(ended, Err(ExecError::NoArgs)));
    played.join().unwrap();
}

#[test]
fn a_signal_ends_what_has_not_started() {
    let (proxy, _master, played) = asked(|mut monitor| {
        let _terminal = monitor.create(1);
        monitor.hear_end();
    });
    let proxy = proxy.unwrap();
    raise(libc::SIGINT);
    let error = proxy.run(|_| Ok(())).unwrap_err();
    assert!(matches!(error, ExecError::Host(Error::Interrupted(2))));
    played.join().unwrap();
}

#[test]
fn streams_that_do_not_fit() {
    for streams in [2, 3] {
        let (proxy, _, played) = asked(move |mut monitor| drop(monitor.create(streams)));
        let error = proxy.err().unwrap();
        assert!(matches!(error, ExecError::Client(ClientError::Unexpected)));
        played.join().unwrap();
    }
}
