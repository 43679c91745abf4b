//! `docker run --runtime RUNTIME` and what people do next.

mod execs;
mod files;
mod identity;
mod lifecycle;
mod limits;
mod many;
mod streams;

use std::sync::Arc;

use crate::engine::{Engine, IMAGE};
use crate::harness::running::Running;
use crate::harness::{Finished, Launch};
use crate::suite::{Case, Runtime};

/// What holds for each runtime.
pub type Promise = fn(&Docker);

/// An engine and the runtime that it is to use.
#[derive(Debug, Clone)]
pub struct Docker<'a> {
    engine: &'a Engine,
    pub runtime: Arc<Runtime>,
}

/// All cases, with `runtime`.
pub fn cases<'a>(engine: &'a Engine, runtime: &Runtime) -> Vec<Case<'a>> {
    let lists: [&[(&str, Promise)]; 7] = [
        streams::CASES,
        execs::CASES,
        lifecycle::CASES,
        limits::CASES,
        files::CASES,
        identity::CASES,
        many::CASES,
    ];
    let docker = Docker {
        engine,
        runtime: Arc::new(runtime.clone()),
    };
    let case = |(name, run): &(&str, Promise)| {
        let (docker, run) = (docker.clone(), *run);
        Case {
            name: format!(
                "{}::{}",
                docker.runtime.name,
                name.trim_start_matches("clients::")
            ),
            run: Box::new(move || run(&docker)),
            differs: None,
        }
    };
    lists.into_iter().flatten().map(case).collect()
}

impl<'a> Docker<'a> {
    /// `docker WORDS`.
    pub fn cli(&self, words: &[&str]) -> Launch {
        self.engine.docker().args(words)
    }

    /// `docker run --rm FLAGS box ARGV`, to be started.
    pub fn launch(&self, flags: &[&str], argv: &[&str]) -> Launch {
        let run = self.cli(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--runtime",
            &self.runtime.name,
        ]);
        run.args(flags).arg(IMAGE).args(argv)
    }

    /// The same to its end.
    pub fn run(&self, flags: &[&str], argv: &[&str]) -> Finished {
        self.launch(flags, argv).finish()
    }

    /// Output of `sh -c SCRIPT` in a container, which succeeds.
    pub fn shell(&self, flags: &[&str], script: &str) -> String {
        self.run(flags, &["sh", "-c", script]).success().out()
    }

    /// `docker run -d FLAGS box sh -c SCRIPT`.
    pub fn background(&self, flags: &[&str], script: &str) -> Container<'a> {
        let run = self.cli(&[
            "run",
            "-d",
            "--network",
            "none",
            "--runtime",
            &self.runtime.name,
        ]);
        self.container(run.args(flags).args([IMAGE, "sh", "-c", script]))
    }

    /// A container that a command makes and prints the id of.
    pub fn container(&self, command: Launch) -> Container<'a> {
        let id = command.finish().success().out().trim().to_owned();
        assert!(!id.is_empty());
        Container {
            docker: self.clone(),
            id,
        }
    }
}

/// One that goes on; removed when dropped.
#[derive(Debug)]
pub struct Container<'a> {
    pub docker: Docker<'a>,
    pub id: String,
}

impl Container<'_> {
    /// `docker WORDS ID`.
    pub fn cli(&self, words: &[&str]) -> Finished {
        self.docker.cli(words).arg(&self.id).finish()
    }

    /// `docker exec FLAGS ID ARGV`, to be started.
    pub fn exec_launch(&self, flags: &[&str], argv: &[&str]) -> Launch {
        self.docker
            .cli(&["exec"])
            .args(flags)
            .arg(&self.id)
            .args(argv)
    }

    /// The same to its end.
    pub fn exec(&self, flags: &[&str], argv: &[&str]) -> Finished {
        self.exec_launch(flags, argv).finish()
    }

    /// Output of `sh -c SCRIPT`, which succeeds.
    pub fn shell(&self, script: &str) -> String {
        self.exec(&[], &["sh", "-c", script]).success().out()
    }

    /// What `docker inspect` says of a Go template.
    pub fn inspect(&self, template: &str) -> String {
        let shown = self.cli(&["inspect", "--format", template]).success();
        shown.out().trim().to_owned()
    }

    /// The exit code, once there is one.
    pub fn wait(&self) -> i32 {
        let code = self.cli(&["wait"]).success().out();
        code.trim().parse().expect("a number")
    }

    /// What it has printed on stdout so far.
    pub fn logs(&self) -> String {
        self.cli(&["logs"]).success().out()
    }

    /// Waits until its output has `text`.
    pub fn wait_for(&self, text: &str) {
        let follow = self.docker.cli(&["logs", "--follow", &self.id]);
        follow.start().wait_for(text);
    }

    /// Its events from the first on, a line each: the action, its exit code.
    pub fn events(&self) -> Running {
        let format = "{{.Action}} {{.Actor.Attributes.exitCode}};";
        let events = self
            .docker
            .cli(&["events", "--since", "1", "--format", format]);
        events
            .args(["--filter", &format!("container={}", self.id)])
            .start()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // Cases may have removed it.
        let _ = self.docker.cli(&["rm", "-f", "-v", &self.id]).finish();
    }
}
