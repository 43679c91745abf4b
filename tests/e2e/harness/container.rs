//! Containers that run in the background, for the verbs that need one.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use super::host::{self, MachinePermit};
use super::launch::unique_id;
use super::{Bundle, Finished, Launch, Runtime};

/// A container with a state folder of its own; removed when dropped.
#[derive(Debug)]
pub struct Container {
    runtime: Runtime,
    folder: TempDir,
    id: String,
    bundle: Bundle,
    _permit: MachinePermit,
}

impl Container {
    /// Runs `bundle` in the background, its output going nowhere.
    pub fn run(runtime: Runtime, bundle: Bundle) -> Self {
        let container = Self::new(runtime, bundle);
        let errors = container.path("errors");
        let bundle = container.bundle.path().to_str().unwrap().to_owned();
        let words = ["run", "--detach", "--bundle", &bundle, container.id()];
        let run = container
            .verb(&words)
            .stdout(Stdio::null())
            .detached_stderr(&errors)
            .finish();
        let errors = std::fs::read_to_string(&errors).unwrap();
        assert_eq!(run.code(), 0, "{runtime:?}: {errors}");
        container
    }

    /// One that is not made yet.
    pub fn new(runtime: Runtime, bundle: Bundle) -> Self {
        host::require();
        Self {
            runtime,
            folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            id: unique_id(),
            bundle,
            _permit: MachinePermit::take(usize::from(runtime == Runtime::Vmrun)),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// A file beside its state.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `RUNTIME --root ROOT WORDS`.
    pub fn verb(&self, words: &[&str]) -> Launch {
        let root = self.folder.path().join("root");
        let program = match self.runtime {
            Runtime::Vmrun => host::vmrun(),
            Runtime::Runc => Path::new("runc"),
        };
        Launch::new(program).arg("--root").arg(root).args(words)
    }

    /// `RUNTIME --root ROOT WORDS` to its end.
    pub fn done(&self, words: &[&str]) -> Finished {
        self.verb(words).finish()
    }

    /// `exec` of a script with these flags.
    pub fn exec(&self, flags: &[&str], script: &str) -> Launch {
        let words = [&["exec"], flags, &[self.id(), "sh", "-c", script]].concat();
        self.verb(&words)
    }

    /// What `state` says.
    pub fn state(&self) -> Value {
        let state = self.done(&["state", self.id()]).success();
        serde_json::from_slice(&state.stdout).unwrap()
    }

    /// Its process on the host.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().unwrap()).unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A test that fails has more to say than this.
        let _ = self.done(&["delete", "--force", self.id()]);
    }
}
