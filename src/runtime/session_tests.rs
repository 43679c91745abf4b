//! The session against agents that behave, and against those that do not.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use vmrun_protocol::frame::{self, MAX_TO_GUEST_BYTES, MAX_TO_HOST_BYTES};
use vmrun_protocol::message::FailureKind;

/// A machine that has ended once something was written to its event.
struct FakeGuest {
    ended: UnixStream,
    end: UnixStream,
}

impl FakeGuest {
    fn new() -> Self {
        let (ended, end) = UnixStream::pair().unwrap();
        Self { ended, end }
    }
}

impl Guest for FakeGuest {
    fn ended_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.ended)
    }

    fn ending(&self) -> Option<String> {
        Some("the guest kernel panicked".to_owned())
    }

    fn connect(&self, _: u32) -> std::io::Result<UnixStream> {
        unreachable!("no streams here")
    }
}

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(30);

/// Runs `host` against an agent thread that runs `agent` on the other end.
fn talk<T>(
    deadline: Duration,
    agent: impl FnOnce(UnixStream, UnixStream) + Send + 'static,
    host: impl FnOnce(&mut Session<FakeGuest>) -> Result<T, Error>,
) -> Result<T, Error> {
    talk_within(deadline, agent, |mut session| host(&mut session))
}

/// For what takes the session.
fn talk_once<T>(
    agent: impl FnOnce(UnixStream, UnixStream) + Send + 'static,
    host: impl FnOnce(Session<FakeGuest>) -> Result<T, Error>,
) -> Result<T, Error> {
    talk_within(LONG, agent, host)
}

fn talk_within<T>(
    deadline: Duration,
    agent: impl FnOnce(UnixStream, UnixStream) + Send + 'static,
    host: impl FnOnce(Session<FakeGuest>) -> Result<T, Error>,
) -> Result<T, Error> {
    let signals = Signals::block().unwrap();
    let guest = FakeGuest::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let end = guest.end.try_clone().unwrap();
    let agent = thread::spawn(move || agent(theirs, end));
    let deadlines = Deadlines {
        agent_ready: deadline,
        create: deadline,
        start: deadline,
    };
    let control = Control::new(ours).unwrap();
    let session = Session::new(control, &guest, &signals, deadlines);
    let result = host(session);
    agent.join().unwrap();
    result
}

fn say<T: serde::Serialize>(stream: &mut UnixStream, message: &T) {
    frame::write(stream, message, MAX_TO_HOST_BYTES).unwrap();
}

fn hear<T: DeserializeOwned>(stream: &mut UnixStream) -> T {
    frame::read(stream, MAX_TO_GUEST_BYTES).unwrap()
}

fn hello(version: u32) -> Hello {
    Hello {
        version,
        kernel_release: "6.1".to_owned(),
    }
}

/// Until the host hangs up.
fn stay(mut stream: UnixStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn up_to_a_container() {
    let created = talk_once(
        |mut stream, _| {
            say(&mut stream, &hello(VERSION));
            assert_eq!(hear::<Welcome>(&mut stream).version, VERSION);
            assert!(matches!(hear(&mut stream), Request::Create(_)));
            say(&mut stream, &Report::Created);
        },
        |mut session| {
            session.greet()?;
            session.create(ContainerPlan::default())
        },
    );
    created.unwrap();
}

#[test]
fn freezing_keeps_the_connection_open() {
    let (say_end, hear_end) = std::sync::mpsc::channel();
    let control = talk_once(
        move |mut stream, _| {
            say(&mut stream, &hello(VERSION));
            assert_eq!(hear::<Welcome>(&mut stream).task, Task::Freeze);
            say(&mut stream, &Report::Frozen);
            say_end.send(stream).unwrap();
        },
        |session| session.freeze(),
    );
    let control = control.unwrap();
    let stream: UnixStream = hear_end.recv().unwrap();
    stream.set_nonblocking(true).unwrap();
    let nothing = (&stream).read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    drop(control);
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_agent_that_cannot_freeze() {
    let result = talk_once(
        |mut stream, _| {
            say(&mut stream, &hello(VERSION));
            hear::<Welcome>(&mut stream);
            say(&mut stream, &Report::Created);
            stay(stream);
        },
        |session| session.freeze(),
    );
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Unexpected { .. }), "{error}");
}

#[test]
fn each_start_gets_another_seed() {
    let seed = || {
        let (tell, told) = std::sync::mpsc::channel();
        let greeted = talk(
            LONG,
            move |mut stream, _| {
                say(&mut stream, &hello(VERSION));
                let Task::Start(renewal) = hear::<Welcome>(&mut stream).task else {
                    panic!("not a start");
                };
                assert!(renewal.realtime_ns > 1_600_000_000_000_000_000);
                tell.send(renewal.seed).unwrap();
            },
            |session| session.greet(),
        );
        greeted.unwrap();
        told.recv().unwrap()
    };
    assert_ne!(seed(), seed());
}

#[test]
fn a_signal_before_there_is_a_container() {
    for (signal, code) in [
        (libc::SIGINT, 130),
        (libc::SIGTERM, 143),
        (libc::SIGHUP, 129),
    ] {
        let error = talk(
            LONG,
            |stream, _| stay(stream),
            |session| {
                crate::fatal::tests::raise(libc::SIGUSR1);
                crate::fatal::tests::raise(signal);
                session.greet()
            },
        )
        .unwrap_err();
        assert_eq!(error.exit_code(), code);
    }
}

#[test]
fn silence_ends_at_the_deadline() {
    let error = talk(SHORT, |stream, _| stay(stream), |session| session.greet()).unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
}

#[test]
fn half_a_frame_ends_at_the_deadline() {
    let half = |mut stream: UnixStream, _| {
        stream.write_all(&[8, 0, 0, 0, 1]).unwrap();
        stay(stream);
    };
    let error = talk(SHORT, half, |session| session.greet()).unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
}

#[test]
fn an_oversize_frame() {
    let oversize = |mut stream: UnixStream, _| {
        stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
        stay(stream);
    };
    let error = talk(LONG, oversize, |session| session.greet()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("over the limit"), "{source}");
}

#[test]
fn another_version() {
    let stale = |mut stream: UnixStream, _| {
        say(&mut stream, &hello(VERSION + 1));
        stay(stream);
    };
    let error = talk(LONG, stale, |session| session.greet()).unwrap_err();
    assert!(matches!(error, Error::AgentVersion { .. }), "{error}");
}

#[test]
fn failures_decide_the_exit_code() {
    for (kind, code) in [
        (FailureKind::NotFound, 127),
        (FailureKind::NotExecutable, 126),
        (FailureKind::Setup, 1),
        (FailureKind::State, 1),
    ] {
        let failing = move |mut stream: UnixStream, _| {
            say(
                &mut stream,
                &Report::Failed(Failure {
                    kind,
                    what: "run \"x\"\u{1b}[2J".to_owned(),
                    errno: 2,
                }),
            );
            stay(stream);
        };
        let create = |session: Session<FakeGuest>| session.create(ContainerPlan::default());
        let error = talk_once(failing, create).unwrap_err();
        assert_eq!(error.exit_code(), code);
        assert_eq!(error.to_string(), "run \"x\"\u{fffd}[2J");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "no such file or directory");
    }
}

#[test]
fn an_early_close_tells_how_the_machine_ended() {
    let dying = |stream: UnixStream, mut end: UnixStream| {
        drop(stream);
        end.write_all(&[1]).unwrap();
    };
    let error = talk(LONG, dying, |session| session.greet()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "waiting for the agent in the guest: the guest kernel panicked"
    );
    assert_eq!(error.exit_code(), 1);
}
