//! A runtime that is about to be started. vmrun and runc take the same words, so
//! that one case can be run by both: what holds for runc is a test that is right.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::host::{self, MachinePermit};
use super::running::{Finished, Running};
use super::{Bundle, Terminal};

/// A machine takes some seconds where ring 0 is emulated, and many where it has to
/// share its processor.
const LIMIT: Duration = Duration::from_secs(240);

/// What runs a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Vmrun,
    Runc,
}

impl Runtime {
    /// Every runtime that a case of the OCI specification is run by.
    pub const ALL: [Self; 2] = [Self::Runc, Self::Vmrun];

    /// `RUNTIME run --bundle BUNDLE ID`, with nothing on stdin.
    pub fn launch(self, bundle: &Bundle) -> Launch {
        self.launch_with(bundle, &[])
    }

    /// The same with further flags.
    pub fn launch_with(self, bundle: &Bundle, flags: &[&str]) -> Launch {
        let id = unique_id();
        let program = match self {
            Self::Vmrun => host::vmrun().as_os_str(),
            Self::Runc => OsStr::new("runc"),
        };
        let mut launch = Launch::new(program).args(["run"]).args(flags);
        launch.command.arg("--bundle").arg(bundle.path()).arg(&id);
        launch.machines = usize::from(self == Self::Vmrun);
        launch.runc_id = (self == Self::Runc).then_some(id);
        launch
    }

    /// Runs `bundle` to its end.
    pub fn run(self, bundle: &Bundle) -> Finished {
        self.launch(bundle).finish()
    }
}

/// An id that no other container of this machine has.
pub fn unique_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("vmrun-e2e-{}-{count}", std::process::id())
}

/// A command with what the harness knows about it.
#[derive(Debug)]
pub struct Launch {
    pub(super) command: Command,
    pub(super) limit: Duration,
    /// How many machines it counts as.
    pub(super) machines: usize,
    pub(super) runc_id: Option<String>,
    pub(super) stdin: Option<Vec<u8>>,
}

impl Launch {
    /// Any program, with nothing on stdin.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        host::require();
        // Tests that are killed leave no machine running.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program);
        command.env(host::TEMPLATE_DIR, host::template_dir());
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self {
            command,
            limit: LIMIT,
            machines: 0,
            runc_id: None,
            stdin: None,
        }
    }

    /// vmrun with these words.
    pub fn vmrun(words: &[&str]) -> Self {
        let mut launch = Self::new(host::vmrun()).args(words);
        launch.machines = 1;
        launch
    }

    /// A further word.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Further words.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Counts as two machines: for one with two vCPUs, which wait for each other.
    pub fn two_machines(mut self) -> Self {
        self.machines = 2;
        self
    }

    /// Counts as none: for what starts no machine, or is counted with another.
    pub fn no_machine(mut self) -> Self {
        self.machines = 0;
        self
    }

    /// Gives time for that many runs.
    pub fn limit(mut self, runs: u32) -> Self {
        self.limit = LIMIT + LIMIT / 4 * runs.saturating_sub(1);
        self
    }

    /// Feeds `bytes` to stdin, then closes it.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self.open_stdin()
    }

    /// Leaves stdin open, for [`Running::write`].
    pub fn open_stdin(mut self) -> Self {
        self.command.stdin(Stdio::piped());
        self
    }

    /// Somewhere else than into the harness.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command.stdout(stdout);
        self
    }

    /// Errors into a file: a pipe would stay open as long as the container runs.
    pub fn detached_stderr(mut self, path: &Path) -> Self {
        let file = std::fs::File::create(path).expect("a file for errors");
        self.command.stderr(file);
        self
    }

    /// Started by the shell command `script`, which has it as `"$@"`.
    pub fn by_shell(mut self, script: &str) -> Self {
        self.wrap("sh", &["-c", script, "sh"]);
        self
    }

    /// With all streams on `terminal`, which becomes the controlling one.
    pub fn on(mut self, terminal: &Terminal) -> Self {
        self.wrap("setsid", &["--ctty"]);
        self.command.stdin(terminal.stdio());
        self.command.stdout(terminal.stdio());
        self.command.stderr(terminal.stdio());
        self
    }

    /// Puts `program` with `args` before the command.
    fn wrap(&mut self, program: &str, args: &[&str]) {
        let mut command = Command::new(program);
        command.args(args).arg(self.command.get_program());
        command.args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            command.env(name, value.expect("variables are only set"));
        }
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command = command;
    }

    /// Starts it, as soon as a machine more may run.
    pub fn start(self) -> Running {
        let permit = MachinePermit::take(self.machines);
        Running::spawn(self, permit)
    }

    /// Runs it to its end.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }
}
