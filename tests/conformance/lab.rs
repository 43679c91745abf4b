//! A runtime, and containers that cases make with it verb by verb.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use serde_json::{Value, json};

use crate::harness::{Bundle, Finished, Launch};
use crate::suite::{Runtime, Stage};

/// For one call of a runtime.
const LIMIT_S: &str = "60";

/// For a container to end.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Containers' processes become ours once their runtime has ended, as they become a
/// shim's, so that their exit status is seen.
pub fn become_subreaper() {
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).expect("a subreaper");
}

/// What a case works with.
#[derive(Debug, Clone)]
pub struct Lab {
    pub runtime: Arc<Runtime>,
    root: PathBuf,
    tag: String,
}

impl Lab {
    pub fn new(stage: &Stage, runtime: &Runtime) -> Self {
        let root = stage.path().join(format!("root-{}", runtime.name));
        Self {
            runtime: Arc::new(runtime.clone()),
            tag: stage.tag().to_owned(),
            root,
        }
    }

    /// A call of the runtime.
    pub fn call(&self, words: &[&str]) -> Finished {
        self.launch(words).finish()
    }

    /// The same, to be started.
    pub fn launch(&self, words: &[&str]) -> Launch {
        let launch = Launch::new("timeout").args(["--foreground", "-s", "KILL", LIMIT_S]);
        launch
            .arg(&self.runtime.program)
            .arg("--root")
            .arg(&self.root)
            .args(words)
    }

    /// A path for `linux.cgroupsPath`.
    pub fn cgroup(&self, id: &str) -> String {
        format!("/{}/{id}", self.tag)
    }

    /// An id that nobody has yet.
    pub fn unique_id(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("{}-{count}", self.runtime.name)
    }

    /// A container of `bundle`, not created yet.
    pub fn container(&self, bundle: Bundle) -> Container {
        let id = self.unique_id();
        let bundle = bundle.with("/linux/cgroupsPath", json!(self.cgroup(&id)));
        Container {
            lab: self.clone(),
            bundle,
            id,
        }
    }

    /// The same, created.
    pub fn created(&self, bundle: Bundle) -> Container {
        let container = self.container(bundle);
        let create = container.create();
        assert_eq!(create.code, 0, "{create:?}");
        container
    }

    /// The same, started.
    pub fn started(&self, bundle: Bundle) -> Container {
        let container = self.created(bundle);
        container.call("start").success();
        container
    }

    /// `run` to the end.
    pub fn run(&self, bundle: Bundle) -> Finished {
        let container = self.container(bundle);
        let path = container.bundle.path().to_str().unwrap().to_owned();
        self.call(&["run", "--bundle", &path, &container.id])
    }

    /// Output of a run that succeeds.
    pub fn output(&self, bundle: Bundle) -> String {
        self.run(bundle).success().out()
    }

    /// Fails unless `run` is refused, with a message that has one of `words`.
    pub fn refused(&self, bundle: Bundle, words: &[&str]) {
        let run = self.run(bundle);
        assert_ne!(run.code(), 0, "{run:?}");
        let said = run.err().to_lowercase();
        assert!(words.iter().any(|word| said.contains(word)), "{run:?}");
    }
}

/// What `create` said.
#[derive(Debug)]
pub struct Created {
    pub code: i32,
    pub err: String,
}

/// What is in a pid file.
pub fn pid_in(file: &Path) -> Pid {
    let pid = fs::read_to_string(file).expect("a pid file");
    Pid::from_raw(pid.trim().parse().expect("a pid")).expect("a positive pid")
}

/// Whether a process ends in time.
pub fn ends(pid: Pid) -> bool {
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a process");
    let limit = Timespec::try_from(END_LIMIT).expect("a short time");
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).expect("poll") > 0
}

/// Waits for the end of a process that has become ours.
pub fn wait(pid: Pid) -> i32 {
    assert!(ends(pid), "process {pid} does not end");
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())
        .unwrap()
        .expect("it ended");
    let signal = || status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or_else(signal).expect("an end")
}

/// Removed when dropped.
#[derive(Debug)]
pub struct Container {
    pub lab: Lab,
    pub bundle: Bundle,
    pub id: String,
}

impl Container {
    /// `create`. The container inherits its streams, which are files.
    pub fn create(&self) -> Created {
        self.create_with(&[])
    }

    /// The same with further flags.
    pub fn create_with(&self, flags: &[&str]) -> Created {
        let status = self.create_command(flags).status().unwrap();
        Created {
            code: status.code().unwrap_or(-1),
            err: self.read("err"),
        }
    }

    /// `create` with further flags, its streams in files.
    pub fn create_command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "-s", "KILL", LIMIT_S]);
        command.arg(&self.lab.runtime.program);
        command.arg("--root").arg(&self.lab.root);
        command.arg("create").args(flags);
        command.arg("--bundle").arg(self.bundle.path());
        command.arg("--pid-file").arg(self.pid_file()).arg(&self.id);
        let file = |name: &str| File::create(self.path(name)).unwrap();
        command.stdin(Stdio::null());
        command.stdout(file("out")).stderr(file("err"));
        command
    }

    /// `VERB ID`
    pub fn call(&self, verb: &str) -> Finished {
        self.lab.call(&[verb, &self.id])
    }

    /// `kill ID SIGNAL`
    pub fn kill(&self, signal: &str) -> Finished {
        self.lab.call(&["kill", &self.id, signal])
    }

    /// What `state` prints.
    pub fn state(&self) -> Value {
        let state = self.call("state").success();
        serde_json::from_str(&state.out()).expect("JSON")
    }

    /// Its status, as `state` has it.
    pub fn status(&self) -> String {
        self.state()["status"]
            .as_str()
            .expect("a status")
            .to_owned()
    }

    /// Where `create` writes the pid.
    pub fn pid_file(&self) -> PathBuf {
        self.path("pid")
    }

    /// What is in the pid file.
    pub fn pid(&self) -> Pid {
        pid_in(&self.pid_file())
    }

    /// Waits for its end: the exit status that a shim would see.
    pub fn wait(&self) -> i32 {
        wait(self.pid())
    }

    /// What it wrote to stdout.
    pub fn out(&self) -> String {
        self.read("out")
    }

    /// Waits until it has written `text` to stdout.
    pub fn hear(&self, text: &str) {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, self.path("out"), inotify::WatchFlags::MODIFY).unwrap();
        let limit = Timespec::try_from(END_LIMIT).expect("a short time");
        while !self.out().contains(text) {
            let heard = poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&limit));
            assert!(
                heard.expect("poll") > 0,
                "{text:?} never came: {:?}",
                self.out()
            );
            // Only that there is something new counts.
            let _ = rustix::io::read(&watch, &mut [0; 4096]);
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// A file beside the container's root.
    pub fn path(&self, name: &str) -> PathBuf {
        self.bundle.path().join(name)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may be gone; what is left is seen at the end.
        let _ = self.lab.call(&["delete", "--force", &self.id]);
        if self.pid_file().exists() {
            let _ = waitpid(Some(self.pid()), WaitOptions::NOHANG);
        }
    }
}
