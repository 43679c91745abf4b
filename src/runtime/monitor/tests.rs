//! The monitor between verbs and agents, those that behave and those that do not.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tempfile::TempDir;
use vmrun_protocol::frame::{self, MAX_TO_GUEST_BYTES, MAX_TO_HOST_BYTES};
use vmrun_protocol::message::{
    Answer, ExitStatus, Failure, FailureKind, INIT, Question, Report, Request, StreamHeader,
};
use vmrun_protocol::plan::{ProcessPlan, WindowSize};

use super::client::{Client, ClientError};
use super::door::Door;
use super::messages::{Call, Reason, Reply, Status};
use super::serve::{Limits, Monitor, Stdio};
use crate::Error;
use crate::control::Control;
use crate::machine::Guest;
use crate::signals::Signals;
use crate::stdio::HostStreams;

const LONG: Duration = Duration::from_secs(30);
const PATIENT: Limits = Limits {
    start: LONG,
    kill: LONG,
};
const SHORT: Duration = Duration::from_millis(50);

/// A machine that has ended once its other end was written to; it keeps the guest's
/// ends of all streams open.
struct FakeGuest {
    ended: UnixStream,
    streams: std::cell::RefCell<Vec<UnixStream>>,
}

impl Guest for FakeGuest {
    fn ended_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    fn ending(&self) -> Option<String> {
        Some("the guest kernel panicked".to_owned())
    }

    fn connect(&self, _: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.streams.borrow_mut().push(theirs);
        Ok(ours)
    }
}

/// The agent's end of the connection, and what ends its machine.
struct Agent {
    stream: UnixStream,
    end: UnixStream,
}

impl Agent {
    fn say(&mut self, report: &Report) {
        frame::write(&mut self.stream, report, MAX_TO_HOST_BYTES).unwrap();
    }

    fn hear(&mut self) -> Request {
        frame::read(&mut self.stream, MAX_TO_GUEST_BYTES).unwrap()
    }

    fn exit(&mut self, status: ExitStatus) {
        let process = INIT;
        self.say(&Report::Exited { process, status });
    }

    /// Until the host hangs up.
    fn stay(mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }
}

fn null() -> OwnedFd {
    let mut options = std::fs::OpenOptions::new();
    let null = options.read(true).write(true).open("/dev/null").unwrap();
    null.into()
}

struct Socket(TempDir);

impl Socket {
    fn client(&self) -> Client {
        Client::connect(&self.0.path().join("s")).unwrap()
    }

    fn order(&self, call: Call) -> Result<(), ClientError> {
        self.client().order(&call)
    }

    fn status(&self) -> Status {
        self.client().status().unwrap()
    }
}

/// Serves a created container while `agent` and `verbs` run on threads of their own.
fn serve(
    limits: Limits,
    agent: impl FnOnce(Agent) + Send + 'static,
    verbs: impl FnOnce(Socket) + Send + 'static,
) -> Result<ExitStatus, Error> {
    let signals = Signals::block().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let (ended, end) = UnixStream::pair().unwrap();
    let (ours, stream) = UnixStream::pair().unwrap();
    let guest = FakeGuest {
        ended,
        streams: Default::default(),
    };
    let stdio = Stdio {
        streams: Some(HostStreams {
            stdin: null(),
            stdout: null(),
            stderr: null(),
        }),
        terminal: None,
    };
    let door = Door::new(listener).unwrap();
    let timeline = vmrun_vm::trace::Timeline::disabled();
    let mut monitor = Monitor::new(guest, &signals, door, stdio, limits, &timeline);
    monitor.created(Control::new(ours).unwrap()).unwrap();
    let agent = thread::spawn(move || agent(Agent { stream, end }));
    let verbs = thread::spawn(move || verbs(Socket(folder)));
    let result = monitor.serve();
    if matches!(result, Ok(ExitStatus::Signal(9))) {
        // The guest's streams stay open.
        monitor.drain().unwrap();
    }
    monitor.part(result.as_ref().err());
    drop(monitor.take_guest());
    monitor.flush().unwrap();
    drop(monitor);
    agent.join().unwrap();
    verbs.join().unwrap();
    result
}

fn failure(kind: FailureKind) -> Failure {
    Failure {
        kind,
        what: "run \"x\"\u{1b}[2J".to_owned(),
        errno: 2,
    }
}

/// Starts, and lets the agent go on from there.
fn started(agent: &mut Agent) {
    assert_eq!(agent.hear(), Request::Start);
    agent.say(&Report::Started);
}

#[test]
fn a_whole_life() {
    let (say_done, done) = std::sync::mpsc::channel();
    let status = serve(
        PATIENT,
        move |mut agent| {
            started(&mut agent);
            done.recv().unwrap();
            agent.exit(ExitStatus::Code(7));
        },
        move |socket| {
            assert_eq!(socket.status(), Status::Created);
            socket.order(Call::Start).unwrap();
            assert_eq!(socket.status(), Status::Running);
            let again = socket.order(Call::Start).unwrap_err();
            assert_eq!(
                again.to_string(),
                "cannot start an already running container"
            );
            say_done.send(()).unwrap();
        },
    );
    assert_eq!(status.unwrap(), ExitStatus::Code(7));
}

#[test]
fn signals_by_both_ways() {
    let status = serve(
        PATIENT,
        |mut agent| {
            started(&mut agent);
            let init = |signal| Request::Signal {
                process: INIT,
                signal,
            };
            assert_eq!(agent.hear(), init(10));
            assert_eq!(agent.hear(), Request::SignalAll { signal: 12 });
            agent.exit(ExitStatus::Signal(15));
        },
        |socket| {
            socket.order(Call::Start).unwrap();
            let kill = |signal, all| socket.order(Call::Kill { signal, all });
            kill(0, false).unwrap();
            let error = kill(65, false).unwrap_err();
            assert_eq!(error.to_string(), "unable to signal init: invalid argument");
            kill(10, false).unwrap();
            kill(12, true).unwrap();
        },
    );
    assert_eq!(status.unwrap().shell_code(), 143);
}

#[test]
fn a_created_container_can_be_killed() {
    let status = serve(
        PATIENT,
        |mut agent| {
            assert!(matches!(agent.hear(), Request::Signal { signal: 9, .. }));
            agent.exit(ExitStatus::Signal(9));
        },
        |socket| {
            let kill = Call::Kill {
                signal: 9,
                all: false,
            };
            socket.order(kill).unwrap();
        },
    );
    assert_eq!(status.unwrap().shell_code(), 137);
}

#[test]
fn failed_starts_decide_the_exit_code() {
    for (kind, code, reason) in [
        (FailureKind::NotFound, 127, Reason::NotFound),
        (FailureKind::NotExecutable, 126, Reason::NotExecutable),
        (FailureKind::Setup, 1, Reason::Failed),
    ] {
        let error = serve(
            PATIENT,
            move |mut agent| {
                assert_eq!(agent.hear(), Request::Start);
                agent.say(&Report::Failed(failure(kind)));
                agent.stay();
            },
            move |socket| match socket.order(Call::Start).unwrap_err() {
                ClientError::Refused(refusal) => {
                    assert_eq!(refusal.reason, reason);
                    let line = "run \"x\"\u{fffd}[2J: no such file or directory";
                    assert_eq!(refusal.line, line);
                }
                other => panic!("{other}"),
            },
        );
        assert_eq!(error.unwrap_err().exit_code(), code);
    }
}

#[test]
fn a_start_that_is_not_answered() {
    let error = serve(
        Limits {
            start: SHORT,
            ..PATIENT
        },
        |mut agent| {
            assert_eq!(agent.hear(), Request::Start);
            agent.stay();
        },
        |socket| drop(socket.order(Call::Start).unwrap_err()),
    );
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
}

#[test]
fn a_guest_that_does_not_end_what_was_killed() {
    let status = serve(
        Limits {
            kill: SHORT,
            ..PATIENT
        },
        |mut agent| {
            started(&mut agent);
            assert!(matches!(agent.hear(), Request::Signal { signal: 9, .. }));
            agent.stay();
        },
        |socket| {
            socket.order(Call::Start).unwrap();
            let kill = Call::Kill {
                signal: 9,
                all: false,
            };
            socket.order(kill).unwrap();
        },
    );
    assert_eq!(status.unwrap().shell_code(), 137);
}

#[test]
fn pauses() {
    let (say_done, done) = std::sync::mpsc::channel();
    let status = serve(
        PATIENT,
        move |mut agent| {
            started(&mut agent);
            for expected in [Question::Pause, Question::Resume] {
                let Request::Ask { tag, question } = agent.hear() else {
                    panic!("not asked");
                };
                assert_eq!(question, expected);
                let answer = Ok(Answer::Done);
                agent.say(&Report::Answer { tag, answer });
            }
            done.recv().unwrap();
            agent.exit(ExitStatus::Code(0));
        },
        move |socket| {
            socket.order(Call::Start).unwrap();
            assert!(socket.order(Call::Resume).is_err());
            socket.order(Call::Pause).unwrap();
            assert_eq!(socket.status(), Status::Paused);
            let plan = Box::default();
            let exec = Call::Exec {
                plan,
                ignore_paused: false,
            };
            let error = socket.order(exec).unwrap_err().to_string();
            assert!(
                error.starts_with("cannot exec in a paused container"),
                "{error}"
            );
            socket.order(Call::Resume).unwrap();
            assert_eq!(socket.status(), Status::Running);
            say_done.send(()).unwrap();
        },
    );
    status.unwrap();
}

fn exec() -> Call {
    Call::Exec {
        plan: Box::new(ProcessPlan::default()),
        ignore_paused: false,
    }
}

#[test]
fn a_further_process() {
    let status = serve(
        PATIENT,
        |mut agent| {
            started(&mut agent);
            let Request::Exec { process, .. } = agent.hear() else {
                panic!("no exec");
            };
            agent.say(&Report::ExecCreated { process });
            agent.say(&Report::ExecStarted { process });
            let size = WindowSize {
                rows: 1,
                columns: 2,
            };
            assert_eq!(
                agent.hear(),
                Request::Signal {
                    process,
                    signal: 15
                }
            );
            assert_eq!(agent.hear(), Request::ResizeTerminal { process, size });
            let status = ExitStatus::Code(3);
            agent.say(&Report::Exited { process, status });
            // The one whose client leaves is killed.
            let Request::Exec { process, .. } = agent.hear() else {
                panic!("no second exec");
            };
            agent.say(&Report::ExecCreated { process });
            agent.say(&Report::ExecStarted { process });
            assert_eq!(agent.hear(), Request::Signal { process, signal: 9 });
            let status = ExitStatus::Signal(9);
            agent.say(&Report::Exited { process, status });
            agent.exit(ExitStatus::Code(0));
        },
        |socket| {
            socket.order(Call::Start).unwrap();
            let mut client = socket.client();
            let (created, streams) = client.ask_with_descriptors(&exec()).unwrap();
            assert_eq!((created, streams.len()), (Reply::ExecCreated, 3));
            assert_eq!(client.receive().unwrap(), Reply::ExecStarted);
            client.send(&Call::Signal(15)).unwrap();
            let size = WindowSize {
                rows: 1,
                columns: 2,
            };
            client.send(&Call::Resize(size)).unwrap();
            let ended = client.receive().unwrap();
            assert_eq!(ended, Reply::Exited(ExitStatus::Code(3)));
            let mut client = socket.client();
            client.ask(&exec()).unwrap();
            assert_eq!(client.receive().unwrap(), Reply::ExecStarted);
        },
    );
    status.unwrap();
}

#[test]
fn processes_end_with_the_container() {
    let status = serve(
        PATIENT,
        |mut agent| {
            started(&mut agent);
            let Request::Exec { process, .. } = agent.hear() else {
                panic!("no exec");
            };
            agent.say(&Report::ExecCreated { process });
            agent.say(&Report::ExecStarted { process });
            agent.exit(ExitStatus::Code(0));
        },
        |socket| {
            socket.order(Call::Start).unwrap();
            let mut client = socket.client();
            client.ask(&exec()).unwrap();
            assert_eq!(client.receive().unwrap(), Reply::ExecStarted);
            let ended = client.receive().unwrap();
            assert_eq!(ended, Reply::Exited(ExitStatus::Signal(9)));
        },
    );
    status.unwrap();
}

/// What the guest says though nobody asked, in a running container.
fn unasked(report: Report) -> Error {
    let result = serve(
        PATIENT,
        move |mut agent| {
            started(&mut agent);
            agent.say(&report);
            agent.stay();
        },
        |socket| drop(socket.order(Call::Start)),
    );
    result.unwrap_err()
}

#[test]
fn reports_that_nobody_asked_for() {
    let status = ExitStatus::Code(0);
    let process = 5;
    for report in [
        Report::Started,
        Report::Created,
        Report::Frozen,
        Report::Failed(failure(FailureKind::NotFound)),
        Report::Exited { process, status },
        Report::ExecCreated { process },
        Report::ExecStarted { process },
        Report::ExecFailed {
            process,
            failure: failure(FailureKind::NotFound),
        },
        Report::Answer {
            tag: 0,
            answer: Ok(Answer::Done),
        },
    ] {
        let shown = format!("{report:?}");
        let error = unasked(report);
        assert!(
            matches!(error, Error::Unexpected { .. }),
            "{shown}: {error}"
        );
    }
}

#[test]
fn an_answer_of_another_kind() {
    let error = serve(
        PATIENT,
        |mut agent| {
            let Request::Ask { tag, .. } = agent.hear() else {
                panic!("not asked");
            };
            let answer = Ok(Answer::Statistics(Vec::new()));
            agent.say(&Report::Answer { tag, answer });
            agent.stay();
        },
        |socket| drop(socket.client().ask(&Call::Processes).unwrap_err()),
    );
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Unexpected { .. }), "{error}");
}

#[test]
fn watchers_are_told_of_each_lack_of_memory() {
    let (say_done, done) = std::sync::mpsc::channel();
    let status = serve(
        PATIENT,
        move |mut agent| {
            done.recv().unwrap();
            agent.say(&Report::OutOfMemory);
            agent.say(&Report::OutOfMemory);
            agent.exit(ExitStatus::Signal(9));
        },
        move |socket| {
            let mut client = socket.client();
            client.send(&Call::Watch).unwrap();
            assert_eq!(client.status().unwrap(), Status::Created);
            say_done.send(()).unwrap();
            for _ in 0..2 {
                assert_eq!(client.receive().unwrap(), Reply::OutOfMemory);
            }
            let gone = client.receive().unwrap_err();
            assert!(matches!(gone, ClientError::NotRunning), "{gone}");
        },
    );
    status.unwrap();
}

#[test]
fn visitors_that_do_not_behave() {
    let status = serve(
        PATIENT,
        |mut agent| {
            started(&mut agent);
            agent.exit(ExitStatus::Code(0));
        },
        |socket| {
            let path = socket.0.path().join("s");
            let mut oversize = UnixStream::connect(&path).unwrap();
            oversize.write_all(&u32::MAX.to_le_bytes()).unwrap();
            assert_eq!(oversize.read(&mut [0]).unwrap_or(0), 0);
            let mut nonsense = UnixStream::connect(&path).unwrap();
            nonsense.write_all(&[1, 0, 0, 0, 0xff]).unwrap();
            assert_eq!(nonsense.read(&mut [0]).unwrap_or(0), 0);
            let mut half = UnixStream::connect(&path).unwrap();
            half.write_all(&[9, 0]).unwrap();
            // Signals without a process are for nobody.
            let mut client = socket.client();
            client.send(&Call::Signal(9)).unwrap();
            assert_eq!(client.status().unwrap(), Status::Created);
            client.order(&Call::Start).unwrap();
        },
    );
    status.unwrap();
}

#[test]
fn an_early_close_tells_how_the_machine_ended() {
    let error = serve(
        PATIENT,
        |mut agent| {
            drop(agent.stream);
            agent.end.write_all(&[1]).unwrap();
        },
        drop,
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "waiting for the container's start: the guest kernel panicked"
    );
}

#[test]
fn a_machine_that_ends_while_the_program_runs() {
    let error = serve(
        PATIENT,
        |mut agent| {
            started(&mut agent);
            agent.end.write_all(&[1]).unwrap();
            agent.stay();
        },
        |socket| drop(socket.order(Call::Start)),
    );
    let line = error.unwrap_err().to_string();
    assert_eq!(line, "running the container: the guest kernel panicked");
}

#[test]
fn the_last_report_counts_though_the_machine_has_ended() {
    let status = serve(
        PATIENT,
        |mut agent| {
            agent.exit(ExitStatus::Code(3));
            agent.end.write_all(&[1]).unwrap();
        },
        drop,
    );
    assert_eq!(status.unwrap(), ExitStatus::Code(3));
}

#[test]
fn streams_have_their_headers() {
    let guest = FakeGuest {
        ended: UnixStream::pair().unwrap().0,
        streams: Default::default(),
    };
    crate::stdio::GuestStreams::open(&guest, 3, false).unwrap();
    for stream in guest.streams.borrow_mut().iter_mut() {
        let header: StreamHeader = read(stream);
        assert_eq!(header.process, 3);
    }
}

fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> T {
    frame::read(stream, StreamHeader::MAX_BYTES).unwrap()
}
