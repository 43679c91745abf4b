//! Containers that outlive the verb that made them: create, start, state, kill,
//! delete and list, next to runc.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, set_child_subreaper, waitpid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Bundle, Finished, Launch, Runtime, Terminal, unique_id};

/// A root folder of one runtime, and what is made below it.
struct Place {
    runtime: Runtime,
    folder: TempDir,
    /// Of its first container: cgroups are named after it.
    id: String,
}

/// What runs until it is told to end.
const WAITS: &str = "trap 'exit 7' TERM; trap 'echo usr1' USR1; echo ready
    while :; do sleep 1000 & wait $!; done";

impl Place {
    fn new(runtime: Runtime) -> Self {
        // Monitors become children of this process when their verb has ended.
        set_child_subreaper(Pid::from_raw(1)).unwrap();
        Self {
            runtime,
            folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            id: unique_id(),
        }
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn launch(&self, words: &[&str]) -> Launch {
        let launch = match self.runtime {
            Runtime::Vmrun => Launch::vmrun(&[]).no_machine(),
            Runtime::Runc => Launch::new("runc"),
        };
        launch.arg("--root").arg(self.root()).args(words)
    }

    /// A verb that needs no machine, or whose machine is counted already.
    fn verb(&self, words: &[&str]) -> Finished {
        self.launch(words).finish()
    }

    /// `create`, whose output goes to a file, as that of the container does.
    fn create(&self, bundle: &Bundle, id: &str) -> Finished {
        self.making("create", bundle, &[], id)
    }

    fn making(&self, verb: &str, bundle: &Bundle, flags: &[&str], id: &str) -> Finished {
        let output = fs::File::create(self.file("output")).unwrap();
        let launch = self.launch(&[verb]).arg("--bundle").arg(bundle.path());
        let launch = launch.arg("--pid-file").arg(self.file("pid")).args(flags);
        launch
            .arg(id)
            .stdout(output)
            .detached_stderr(&self.file("errors"))
            .finish()
    }

    fn output(&self) -> String {
        fs::read_to_string(self.file("output")).unwrap()
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.file("errors")).unwrap()
    }

    /// From the pid file.
    fn pid(&self) -> Pid {
        let text = fs::read_to_string(self.file("pid")).unwrap();
        Pid::from_raw(text.parse().unwrap()).unwrap()
    }

    /// What `state` says of `status`.
    fn status(&self, id: &str) -> String {
        let state = self.verb(&["state", id]).success();
        let state: Value = serde_json::from_slice(&state.stdout).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    /// The one line of a verb that fails, without what is before the message.
    fn refused(&self, words: &[&str]) -> String {
        let run = self.verb(words);
        assert_eq!(run.code(), 1, "{:?}: {words:?}: {run:?}", self.runtime);
        message(&run.err())
    }

    /// Ids, as `list -q` has them.
    fn ids(&self) -> Vec<String> {
        let list = self.verb(&["list", "-q"]).success().out();
        list.lines().map(str::to_owned).collect()
    }

    fn wait_for_output(&self, text: &str) {
        let there = || self.output().contains(text);
        let path = self.file("output");
        assert!(
            changes_until(&path, inotify::WatchFlags::MODIFY, there),
            "{:?} {:?}",
            self.output(),
            self.errors()
        );
    }

    /// A started container that runs [`WAITS`].
    fn running(&self) -> Bundle {
        let bundle = Bundle::shell(WAITS);
        self.create(&bundle, self.id()).success();
        self.verb(&["start", self.id()]).success();
        self.wait_for_output("ready\n");
        bundle
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let program = match self.runtime {
            Runtime::Vmrun => crate::harness::vmrun().as_os_str().to_owned(),
            Runtime::Runc => "runc".into(),
        };
        let Ok(entries) = fs::read_dir(self.root()) else {
            return;
        };
        for entry in entries.flatten() {
            let mut delete = Command::new(&program);
            delete
                .arg("--root")
                .arg(self.root())
                .args(["delete", "--force"]);
            let _ = delete.arg(entry.file_name()).output();
        }
    }
}

/// What is after `vmrun: ` or runc's `msg=`.
fn message(line: &str) -> String {
    let line = line.trim_end();
    if let Some(message) = line.strip_prefix("vmrun: ") {
        return message.to_owned();
    }
    let quoted = line.split_once("msg=").expect("a line of runc's").1;
    let message: String = serde_json::from_str(quoted).unwrap_or_else(|_| quoted.to_owned());
    // runc puts the verb before some.
    let verb = message.split_once(" failed: ");
    verb.map_or(message.clone(), |(_, rest)| rest.to_owned())
}

/// Waits for changes of `path` until `done`; false if there are none for long.
fn changes_until(path: &Path, kind: inotify::WatchFlags, done: impl Fn() -> bool) -> bool {
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    match inotify::add_watch(&changes, path, kind) {
        Err(Errno::NOENT) => return done(),
        watched => watched.unwrap(),
    };
    let timeout = Timespec::try_from(Duration::from_secs(60)).unwrap();
    while !done() {
        let mut fds = [PollFd::new(&changes, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout)).unwrap() == 0 {
            return false;
        }
        rustix::io::read(&changes, &mut [0; 4096]).unwrap();
    }
    true
}

/// The exit code of a process that was re-parented to this one.
fn exit_code(pid: Pid) -> i32 {
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let timeout = Timespec::try_from(Duration::from_secs(60)).unwrap();
    assert_eq!(
        poll(&mut fds, Some(&timeout)).unwrap(),
        1,
        "{pid:?} does not end"
    );
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    let status = std::process::ExitStatus::from_raw(status.as_raw());
    status.code().unwrap_or_else(|| -status.signal().unwrap())
}

/// A case, by both runtimes.
fn by_both(case: impl Fn(&Place)) {
    for runtime in Runtime::ALL {
        case(&Place::new(runtime));
    }
}

#[test]
fn created_started_ended_deleted() {
    by_both(|place| {
        let runtime = place.runtime;
        let bundle = Bundle::shell("echo out; echo err >&2; exit 9");
        place.create(&bundle, place.id()).success();
        assert_eq!(place.status(place.id()), "created", "{runtime:?}");
        assert_eq!(place.output(), "", "{runtime:?}");
        let pid = place.pid();
        place.verb(&["start", place.id()]).success();
        assert_eq!(exit_code(pid), 9, "{runtime:?}");
        assert_eq!(place.output(), "out\n", "{runtime:?}");
        assert_eq!(place.errors(), "err\n", "{runtime:?}");
        assert_eq!(place.status(place.id()), "stopped", "{runtime:?}");
        assert_eq!(place.ids(), [place.id()], "{runtime:?}");
        place.verb(&["delete", place.id()]).success();
        assert!(place.ids().is_empty(), "{runtime:?}");
    });
}

#[test]
fn texts_of_a_running_container() {
    by_both(|place| {
        let runtime = place.runtime;
        let bundle = place.running();
        assert_eq!(place.status(place.id()), "running");
        let not_stopped = format!(
            "cannot delete container {} that is not stopped: running",
            place.id()
        );
        for (words, expected) in [
            (
                &["start", place.id()][..],
                "cannot start an already running container",
            ),
            (&["delete", place.id()], not_stopped.as_str()),
            (&["kill", place.id(), "FOO"], "unknown signal \"FOO\""),
            (
                &["kill", place.id(), "99"],
                "unable to signal init: invalid argument",
            ),
            (&["resume", place.id()], "container not paused"),
        ] {
            assert_eq!(place.refused(words), expected, "{runtime:?}");
        }
        let again = place.making("create", &bundle, &[], place.id());
        assert_eq!(again.code(), 1);
        let text = "container with given ID already exists";
        assert_eq!(message(&place.errors()), text, "{runtime:?}");
        assert_eq!(place.status(place.id()), "running");
        let pid = place.pid();
        place.verb(&["kill", place.id(), "0"]).success();
        place.verb(&["kill", place.id(), "KILL"]).success();
        assert_eq!(exit_code(pid), killed(runtime), "{runtime:?}");
        for (words, expected) in [
            (
                &["start", place.id()][..],
                "cannot start a container that has stopped",
            ),
            (&["kill", place.id()], "container not running"),
            (&["pause", place.id()], "container not running"),
        ] {
            assert_eq!(place.refused(words), expected, "{runtime:?}");
        }
        place.verb(&["kill", "--all", place.id(), "KILL"]).success();
        place.verb(&["delete", place.id()]).success();
    });
}

/// How a process ends whose container was killed: the monitor tells it by its code.
fn killed(runtime: Runtime) -> i32 {
    match runtime {
        Runtime::Runc => -9,
        Runtime::Vmrun => 128 + 9,
    }
}

#[test]
fn texts_of_no_container() {
    by_both(|place| {
        let runtime = place.runtime;
        for verb in ["start", "state", "kill", "delete", "pause", "resume"] {
            let text = place.refused(&[verb, "none"]);
            assert_eq!(text, "container does not exist", "{runtime:?} {verb}");
            let text = place.refused(&[verb, "no/id"]);
            assert_eq!(text, "invalid container ID format", "{runtime:?} {verb}");
        }
        place.verb(&["delete", "--force", "none"]).success();
        assert_eq!(
            place.refused(&["list", "-f", "xml"]),
            "invalid format option"
        );
        assert_eq!(place.verb(&["list", "--format=json"]).out(), "null\n");
        let table = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n";
        assert_eq!(place.verb(&["list"]).out(), table, "{runtime:?}");
    });
}

#[test]
fn state_and_list_have_the_same_names() {
    let keys = |value: &Value| -> Vec<String> {
        let object = value.as_object().expect("an object");
        object.keys().cloned().collect()
    };
    by_both(|place| {
        let bundle = Bundle::shell("true").with("/annotations", serde_json::json!({"a": "b"}));
        place.create(&bundle, place.id()).success();
        let state = place.verb(&["state", place.id()]).success().out();
        assert!(!state.ends_with('\n'));
        let state: Value = serde_json::from_str(&state).unwrap();
        let list = place.verb(&["list", "-f", "json"]).success().out();
        let list: Value = serde_json::from_str(&list).unwrap();
        let bundle = bundle.path().canonicalize().unwrap();
        let expected = |pointer: &str| match pointer {
            "id" => Value::from(place.id()),
            "status" => Value::from("created"),
            "pid" => Value::from(place.pid().as_raw_nonzero().get()),
            "bundle" => Value::from(bundle.to_str().unwrap()),
            "rootfs" => Value::from(bundle.join("rootfs").to_str().unwrap()),
            _ => serde_json::json!({"a": "b"}),
        };
        for name in ["id", "status", "pid", "bundle", "rootfs", "annotations"] {
            assert_eq!(state[name], expected(name), "{:?}: {name}", place.runtime);
            assert_eq!(list[0][name], expected(name), "{:?}: {name}", place.runtime);
        }
        assert_eq!(
            (&state["owner"], &list[0]["owner"]),
            (&"".into(), &"root".into())
        );
        let created = state["created"].as_str().unwrap();
        assert!(created.ends_with('Z') && created.contains('T'), "{created}");
        shapes_of(place.runtime, keys(&state), keys(&list[0]));
        place.verb(&["delete", place.id()]).success();
    });
    fn shapes_of(runtime: Runtime, state: Vec<String>, list: Vec<String>) {
        let expected = "annotations bundle created id ociVersion owner pid rootfs status";
        assert_eq!(state.join(" "), expected, "{runtime:?}");
        assert_eq!(list.join(" "), expected, "{runtime:?}");
    }
}

#[test]
fn signals_by_name_number_and_to_all() {
    by_both(|place| {
        let runtime = place.runtime;
        let _bundle = place.running();
        let mut expected = "ready\n".to_owned();
        for signal in ["USR1", "SIGUSR1", "usr1", "10"] {
            place.verb(&["kill", place.id(), signal]).success();
            expected += "usr1\n";
            place.wait_for_output(&expected);
        }
        place.verb(&["kill", "-a", place.id(), "USR1"]).success();
        place.wait_for_output(&(expected + "usr1\n"));
        let pid = place.pid();
        // SIGTERM, if there is no other.
        place.verb(&["kill", place.id()]).success();
        assert_eq!(exit_code(pid), 7, "{runtime:?}");
        place.verb(&["delete", place.id()]).success();
    });
}

#[test]
fn a_created_container_can_be_deleted() {
    by_both(|place| {
        let bundle = Bundle::shell("echo never");
        place.create(&bundle, place.id()).success();
        let pid = place.pid();
        place.verb(&["delete", place.id()]).success();
        assert_eq!(exit_code(pid), -9, "{:?}", place.runtime);
        assert_eq!(place.output(), "");
        assert!(place.ids().is_empty());
    });
}

#[test]
fn deletion_by_force() {
    by_both(|place| {
        let _bundle = place.running();
        let pid = place.pid();
        place.verb(&["delete", "--force", place.id()]).success();
        assert_eq!(exit_code(pid), -9, "{:?}", place.runtime);
        assert!(place.ids().is_empty());
        // Engines delete once more.
        place.verb(&["delete", "--force", place.id()]).success();
    });
}

#[test]
fn runs_in_the_background() {
    by_both(|place| {
        let runtime = place.runtime;
        let bundle = Bundle::shell(WAITS);
        place
            .making("run", &bundle, &["--detach"], place.id())
            .success();
        place.wait_for_output("ready\n");
        assert_eq!(place.status(place.id()), "running", "{runtime:?}");
        let pid = place.pid();
        place.verb(&["kill", place.id(), "TERM"]).success();
        assert_eq!(exit_code(pid), 7, "{runtime:?}");
        assert_eq!(place.status(place.id()), "stopped");
        place.verb(&["delete", place.id()]).success();
    });
}

#[test]
fn a_run_that_keeps_its_state() {
    by_both(|place| {
        let runtime = place.runtime;
        let bundle = Bundle::shell("echo hello; exit 3");
        let run = place.making("run", &bundle, &["--keep"], place.id());
        assert_eq!(run.code(), 3, "{runtime:?}");
        assert_eq!(place.output(), "hello\n");
        assert_eq!(place.status(place.id()), "stopped");
        place.verb(&["delete", place.id()]).success();
        let run = place.making("run", &bundle, &[], place.id());
        assert_eq!(run.code(), 3);
        assert!(place.ids().is_empty(), "{runtime:?}");
    });
}

#[test]
fn a_program_that_is_missing() {
    by_both(|place| {
        let runtime = place.runtime;
        let bundle = Bundle::program(&["/missing"]);
        let created = place.create(&bundle, place.id());
        assert_ne!(created.code(), 0, "{runtime:?}");
        let text = place.errors();
        assert!(text.contains("/missing"), "{runtime:?}: {text}");
        assert!(
            text.contains("no such file or directory"),
            "{runtime:?}: {text}"
        );
        assert!(place.ids().is_empty());
    });
}

#[test]
fn terminals_need_somebody_to_show_them() {
    by_both(|place| {
        let bundle = Bundle::shell("true").with("/process/terminal", true.into());
        let refused = |flags: &[&str], text: &str| {
            assert_eq!(place.making("create", &bundle, flags, place.id()).code(), 1);
            let line = message(&place.errors()).replace("runc", "vmrun");
            assert_eq!(line, text, "{:?}", place.runtime);
        };
        refused(
            &[],
            "cannot allocate tty if vmrun will detach without setting console socket",
        );
        let bundle = Bundle::shell("true");
        let made = place.making(
            "create",
            &bundle,
            &["--console-socket", "/none"],
            place.id(),
        );
        assert_eq!(made.code(), 1);
        let line = message(&place.errors()).replace("runc", "vmrun");
        let text = "cannot use console socket if vmrun will not detach or allocate tty";
        assert_eq!(line, text, "{:?}", place.runtime);
        assert!(place.ids().is_empty());
    });
}

#[test]
fn what_cannot_be_written_undoes_the_container() {
    by_both(|place| {
        let bundle = Bundle::shell("true");
        let launch = place.launch(&["create", "--pid-file", "/nonexistent/pid", "--bundle"]);
        let run = launch.arg(bundle.path()).arg(place.id()).finish();
        assert_eq!(run.code(), 1, "{:?}: {run:?}", place.runtime);
        assert!(run.err().contains("/nonexistent/"), "{run:?}");
        assert!(place.ids().is_empty(), "{:?}", place.runtime);
    });
}

#[test]
fn the_streams_are_the_containers_only() {
    // Nobody but the container holds them: their end is seen.
    by_both(|place| {
        let bundle = Bundle::shell("echo out; exec >&- 2>&-; while :; do sleep 1; done");
        let mut create = Command::new("setsid");
        let program = match place.runtime {
            Runtime::Vmrun => crate::harness::vmrun().as_os_str().to_owned(),
            Runtime::Runc => "runc".into(),
        };
        create.arg(program).arg("--root").arg(place.root());
        create.env(crate::harness::TEMPLATE_DIR, crate::harness::template_dir());
        create
            .arg("create")
            .arg("--bundle")
            .arg(bundle.path())
            .arg(place.id());
        let (reader, writer) = std::io::pipe().unwrap();
        create
            .stdin(Stdio::null())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer);
        assert!(create.status().unwrap().success());
        drop(create);
        place.verb(&["start", place.id()]).success();
        let text = std::io::read_to_string(reader).unwrap();
        assert_eq!(text, "out\n", "{:?}", place.runtime);
        assert_eq!(place.status(place.id()), "running");
        let state = place.verb(&["state", place.id()]).success();
        let state: Value = serde_json::from_slice(&state.stdout).unwrap();
        let cwd = fs::read_link(format!("/proc/{}/cwd", state["pid"])).unwrap();
        assert_eq!(cwd, Path::new("/"), "{:?}", place.runtime);
    });
}

#[test]
fn a_killed_monitor_ends_the_container() {
    let place = Place::new(Runtime::Vmrun);
    let _bundle = place.running();
    let pid = place.pid();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(exit_code(pid), -9);
    assert_eq!(place.status(place.id()), "stopped");
    assert_eq!(
        place.refused(&["kill", place.id()]),
        "container not running"
    );
    assert_eq!(place.ids(), [place.id()]);
    place.verb(&["delete", place.id()]).success();
    assert!(place.ids().is_empty());
    assert_eq!(left(&place.root()), 0);
}

/// How many entries a folder has.
fn left(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// `create` that is killed at the `when`th call of `syscall`, by itself.
fn killed_create(place: &Place, bundle: &Bundle, syscall: &str, when: u32) {
    let inject = format!("inject={syscall}:signal=KILL:when={when}");
    let launch = Launch::new("strace")
        .args(["-qq", "-o", "/dev/null", "-e", &format!("trace={syscall}")])
        .args(["-e", &inject])
        .arg(crate::harness::vmrun())
        .arg("--root")
        .arg(place.root())
        .args(["create", "--bundle"])
        .args([bundle.path()])
        .arg(place.id())
        .stdout(Stdio::null())
        .detached_stderr(&place.file("errors"));
    let run = launch.finish();
    assert_eq!(run.status.signal(), Some(9), "{syscall} {when}: {run:?}");
}

#[test]
fn a_killed_create_leaves_what_delete_removes() {
    let bundle = Bundle::shell("echo never");
    for (step, syscall, when) in [
        ("once the id is taken", "flock", 1),
        ("before the socket", "bind", 1),
        ("before the monitor", "clone", 1),
        ("before the record is in its place", "renameat", 1),
        ("before the monitor may go on", "flock", 2),
        ("while the machine starts", "poll", 1),
    ] {
        let place = Place::new(Runtime::Vmrun);
        killed_create(&place, &bundle, syscall, when);
        for id in place.ids() {
            assert_eq!(id, place.id(), "{step}");
        }
        // The monitor may be about to undo everything.
        let state = place.verb(&["state", place.id()]);
        if state.code() != 0 {
            let text = message(&state.err());
            assert_eq!(text, "container does not exist", "{step}");
        }
        place.verb(&["delete", "--force", place.id()]).success();
        let gone = || left(&place.root()) == 0;
        let removed = inotify::WatchFlags::DELETE;
        assert!(changes_until(&place.root(), removed, gone), "{step}");
        // The id can be used again.
        place.create(&bundle, place.id()).success();
        assert_eq!(place.status(place.id()), "created", "{step}");
        place.verb(&["delete", place.id()]).success();
    }
}

#[test]
fn the_foreground_ends_with_its_verb() {
    let place = Place::new(Runtime::Vmrun);
    let bundle = Bundle::shell(WAITS);
    let launch = place.launch(&["run", "--bundle"]).arg(bundle.path());
    let pid_file = place.file("pid");
    let running = launch
        .arg("--pid-file")
        .arg(&pid_file)
        .arg(place.id())
        .start();
    running.wait_for("ready\n");
    assert_eq!(place.status(place.id()), "running");
    let monitor = pidfd_open(place.pid(), PidfdFlags::empty()).unwrap();
    running.signal(Signal::KILL);
    assert_eq!(running.finish().code(), -9);
    let mut fds = [PollFd::new(&monitor, PollFlags::IN)];
    let timeout = Timespec::try_from(Duration::from_secs(60)).unwrap();
    assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1);
    assert_eq!(place.status(place.id()), "stopped");
    place.verb(&["delete", place.id()]).success();
}

#[test]
fn runs_can_be_killed_and_deleted_by_others() {
    by_both(|place| {
        let bundle = Bundle::shell(WAITS);
        for (words, code) in [
            (&["kill", place.id(), "KILL"][..], 137),
            (&["delete", "--force", place.id()], 137),
        ] {
            let launch = place.launch(&["run", "--bundle"]).arg(bundle.path());
            let running = launch.arg(place.id()).start();
            running.wait_for("ready\n");
            place.verb(words).success();
            let run = running.finish();
            assert_eq!(run.code(), code, "{:?} {words:?}: {run:?}", place.runtime);
            assert!(place.ids().is_empty());
        }
    });
}

#[test]
fn checkpoints_are_refused() {
    let place = Place::new(Runtime::Vmrun);
    for words in [
        &["checkpoint", "--help"][..],
        &["checkpoint", "--image-path", "/x", place.id()],
        &["restore", "--lsm-mount-context"],
        &["restore", "-no-subreaper", "--bundle", "/x", place.id()],
    ] {
        let text = place.refused(words);
        let expected = format!(
            "{} is not supported: a machine cannot be saved yet",
            words[0]
        );
        assert_eq!(text, expected);
    }
}

#[test]
fn an_id_is_made_up() {
    let place = Place::new(Runtime::Vmrun);
    let bundle = Bundle::shell("echo ready; read -r line");
    let launch = place.launch(&["run"]).arg(bundle.path()).open_stdin();
    let running = launch.start();
    running.wait_for("ready\n");
    let ids = place.ids();
    assert_eq!(ids.len(), 1);
    assert_eq!(ids[0].len(), 16, "{ids:?}");
    running.finish();
    assert!(place.ids().is_empty());
}

#[test]
fn a_terminal_that_is_kept_by_nobody_else() {
    // Raw while it runs, set back when somebody else ends the container.
    let place = Place::new(Runtime::Vmrun);
    let bundle = Bundle::shell(WAITS).with("/process/terminal", true.into());
    let terminal = Terminal::new(24, 80);
    let launch = place.launch(&["run", "--bundle"]).arg(bundle.path());
    let running = launch.arg(place.id()).on(&terminal).start();
    terminal.wait_for("ready\r\n");
    assert!(terminal.is_raw());
    place.verb(&["delete", "--force", place.id()]).success();
    assert_eq!(running.finish().code(), 137, "{}", terminal.text());
    assert!(terminal.is_cooked());
}
