//! `ctr run --runtime io.containerd.runc.v2 --runc-binary RUNTIME`, which is what
//! containerd's clients ask of its shim.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::engine::Engine;
use crate::harness::{Finished, Launch, Terminal};
use crate::suite::{Case, Runtime, cases};

/// What holds for each runtime.
type Promise = fn(&Ctr);

const CASES: &[(&str, Promise)] = cases![
    run_to_the_end,
    run_on_a_terminal,
    exec_and_kill,
    exec_on_a_terminal,
    pause_and_resume,
    metrics,
    events,
    checkpoint_is_refused,
    failed_start_leaves_nothing,
];

/// containerd, and the runtime that it is to use.
#[derive(Debug, Clone)]
struct Ctr<'a> {
    engine: &'a Engine,
    runtime: Arc<Runtime>,
}

/// All cases, with `runtime`.
pub fn cases<'a>(engine: &'a Engine, runtime: &Runtime) -> Vec<Case<'a>> {
    let ctr = Ctr {
        engine,
        runtime: Arc::new(runtime.clone()),
    };
    let case = |(name, run): &(&str, Promise)| {
        let (ctr, run) = (ctr.clone(), *run);
        Case {
            name: format!(
                "{}::{}",
                ctr.runtime.name,
                name.trim_start_matches("clients::")
            ),
            run: Box::new(move || run(&ctr)),
            differs: None,
        }
    };
    CASES.iter().map(case).collect()
}

impl Ctr<'_> {
    fn cli(&self, words: &[&str]) -> Launch {
        self.engine.ctr().args(words)
    }

    fn unique_id(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!(
            "{}-{}",
            self.runtime.name,
            COUNT.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// `ctr run FLAGS --rootfs ROOT ID ARGV`
    fn launch(&self, flags: &[&str], id: &str, argv: &[&str]) -> Launch {
        let cgroup = format!("{}/{id}", self.engine.cgroup);
        let run = self.cli(&[
            "run",
            "--runtime",
            "io.containerd.runc.v2",
            "--cgroup",
            &cgroup,
        ]);
        let run = run
            .arg("--runc-binary")
            .arg(&self.runtime.program)
            .args(flags);
        run.arg("--rootfs")
            .arg(&self.engine.rootfs)
            .arg(id)
            .args(argv)
    }

    fn background(&self, script: &str) -> Task<'_> {
        let id = self.unique_id();
        let run = self.launch(&["--detach", "--null-io"], &id, &["/bin/sh", "-c", script]);
        run.finish().success();
        Task { ctr: self, id }
    }
}

/// One that goes on; removed when dropped.
struct Task<'a> {
    ctr: &'a Ctr<'a>,
    id: String,
}

impl Task<'_> {
    /// `ctr task VERB FLAGS ID REST`
    fn cli(&self, words: &[&str], rest: &[&str]) -> Finished {
        self.ctr
            .cli(&["task"])
            .args(words)
            .arg(&self.id)
            .args(rest)
            .finish()
    }

    fn exec(&self, script: &str) -> Finished {
        self.cli(&["exec", "--exec-id", "e"], &["/bin/sh", "-c", script])
    }

    fn status(&self) -> String {
        let list = self.ctr.cli(&["task", "list"]).finish().success().out();
        let line = list
            .lines()
            .find(|line| line.split_whitespace().next() == Some(&self.id));
        let status = line.and_then(|line| line.split_whitespace().nth(2));
        status.unwrap_or("none").to_owned()
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        // Cases may have removed it.
        let _ = self.cli(&["delete", "--force"], &[]);
        let _ = self.ctr.cli(&["container", "delete", &self.id]).finish();
    }
}

/// Ends at SIGTERM with 7.
const ENDS_AT_TERM: &str = "trap 'exit 7' TERM; while :; do sleep 1000 & wait $!; done";

fn run_to_the_end(ctr: &Ctr) {
    let script = "echo out; echo err >&2; read line; echo $line; exit 3";
    let run = ctr.launch(&["--rm"], &ctr.unique_id(), &["/bin/sh", "-c", script]);
    let run = run.stdin("in\n").finish();
    assert_eq!(
        (run.out().as_str(), run.err().as_str()),
        ("out\nin\n", "err\n")
    );
    assert_eq!(run.code(), 3);
    let missing = ctr
        .launch(&["--rm"], &ctr.unique_id(), &["/bin/nothing"])
        .finish();
    assert_ne!(missing.code(), 0);
    assert!(
        missing.err().contains("no such file or directory"),
        "{missing:?}"
    );
}

fn run_on_a_terminal(ctr: &Ctr) {
    let mut terminal = Terminal::new(33, 77);
    let script = "tty; read line; until stty size | grep '33 77'; do usleep 20000; done; echo got $line; exit 4";
    let run = ctr.launch(
        &["--rm", "--tty"],
        &ctr.unique_id(),
        &["/bin/sh", "-c", script],
    );
    let run = run.on(&terminal).start();
    terminal.wait_for("/dev/pts/0");
    terminal.type_in("hello\r");
    terminal.wait_for("got hello");
    assert!(terminal.text().contains("33 77"), "{:?}", terminal.text());
    assert_eq!(run.finish().code(), 4);
}

fn exec_and_kill(ctr: &Ctr) {
    let task = ctr.background(ENDS_AT_TERM);
    assert_eq!(task.status(), "RUNNING");
    let exec = task.exec("echo from exec; exit 5");
    assert_eq!((exec.code(), exec.out().as_str()), (5, "from exec\n"));
    let shown = task.cli(&["ps"], &[]).success().out();
    let pid = shown
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().next());
    assert!(
        std::fs::exists(format!("/proc/{}", pid.expect("a process"))).unwrap(),
        "{shown}"
    );
    // Waits for the end; a second task would need a second container.
    let attach = ctr.cli(&["task", "attach", &task.id]).start();
    task.cli(&["kill", "--signal", "SIGTERM"], &[]).success();
    assert_eq!(attach.finish().code(), 7);
    assert_eq!(task.status(), "none");
}

fn exec_on_a_terminal(ctr: &Ctr) {
    let task = ctr.background(ENDS_AT_TERM);
    let mut terminal = Terminal::new(44, 88);
    let exec = ctr.cli(&["task", "exec", "--tty", "--exec-id", "t", &task.id]);
    let exec = exec.args([
        "/bin/sh",
        "-c",
        "read line; until stty size | grep '44 88'; do usleep 20000; done; echo got $line; exit 6",
    ]);
    let exec = exec.on(&terminal).start();
    terminal.type_in("hello\r");
    terminal.wait_for("got hello");
    assert!(terminal.text().contains("44 88"), "{:?}", terminal.text());
    assert_eq!(exec.finish().code(), 6);
}

fn pause_and_resume(ctr: &Ctr) {
    let task = ctr.background(ENDS_AT_TERM);
    task.cli(&["pause"], &[]).success();
    assert_eq!(task.status(), "PAUSED");
    task.cli(&["resume"], &[]).success();
    assert_eq!(task.status(), "RUNNING");
    assert_eq!(task.exec("echo awake").success().out(), "awake\n");
}

fn metrics(ctr: &Ctr) {
    let task = ctr.background(ENDS_AT_TERM);
    let metrics = task.cli(&["metrics"], &[]).success().out();
    let value = |name: &str| {
        let line = metrics
            .lines()
            .find(|line| line.split_whitespace().next() == Some(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        value.unwrap_or_else(|| panic!("no {name}: {metrics}"))
    };
    assert!(value("memory.usage_in_bytes") > 0, "{metrics}");
    assert!(value("cpuacct.usage") > 0, "{metrics}");
}

fn events(ctr: &Ctr) {
    let events = ctr.cli(&["events"]).start();
    let task = ctr.background(ENDS_AT_TERM);
    let id = task.id.clone();
    events.wait_for("/tasks/start");
    task.exec("exit 0").success();
    drop(task);
    for topic in [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "delete",
    ] {
        // Each line ends with the event, which names the container.
        events.wait_for(&format!("/tasks/{topic} {{\"container_id\":\"{id}\""));
    }
}

fn checkpoint_is_refused(ctr: &Ctr) {
    let task = ctr.background(ENDS_AT_TERM);
    let refused = task.cli(&["checkpoint"], &[]);
    assert_ne!(refused.code(), 0, "{refused:?}");
    assert!(!refused.err().trim().is_empty(), "{refused:?}");
    if ctr.runtime.is_vmrun() {
        assert!(refused.err().contains("checkpoint"), "{refused:?}");
    }
    assert_eq!(task.status(), "RUNNING");
    assert_eq!(
        task.exec("echo still there").success().out(),
        "still there\n"
    );
}

fn failed_start_leaves_nothing(ctr: &Ctr) {
    let id = ctr.unique_id();
    for _ in 0..2 {
        let run = ctr.launch(&["--null-io"], &id, &["/bin/nothing"]).finish();
        assert!(run.err().contains("no such file or directory"), "{run:?}");
        // The container is there, a task never was.
        let container = ctr.cli(&["container", "delete", &id]).finish();
        assert_eq!(container.code(), 0, "{container:?}");
    }
}
