//! `podman --runtime RUNTIME`, with conmon between the two.

use std::path::PathBuf;
use std::sync::Arc;

use crate::engine::limited;
use crate::harness::{Finished, Launch, Terminal};
use crate::image;
use crate::suite::{Case, Runtime, Stage, cases};

/// What holds for each runtime.
type Promise = fn(&Pods);

const CASES: &[(&str, Promise)] = cases![
    run_to_the_end,
    exit_codes,
    run_on_a_terminal,
    exec_and_logs,
    stats,
    kill_and_remove,
    stop,
    attach,
    attach_to_a_terminal,
    pause_and_unpause,
    limits_user_and_folder,
];

/// Storage and state of podman's, in the suite's own folders.
#[derive(Debug)]
pub struct Podman {
    folder: PathBuf,
    cgroup: String,
}

impl Podman {
    /// Gives it the image.
    pub fn prepare(stage: &Stage) -> Self {
        let podman = Self {
            folder: stage.path().join("podman"),
            cgroup: format!("/{}", stage.tag()),
        };
        let (root, archive) = (
            podman.folder.join("rootfs"),
            podman.folder.join("image.tar"),
        );
        image::fill(&root);
        image::archive(&root, &archive);
        podman
            .cli("/usr/sbin/runc")
            .arg("import")
            .args([archive.to_str().unwrap(), "box"])
            .finish()
            .success();
        podman
    }

    fn cli(&self, runtime: &str) -> Launch {
        let root = self.folder.join("storage");
        let podman = limited("/usr/bin/podman").arg("--root").arg(root);
        let podman = podman.args(["--runroot", "/run/podman", "--tmpdir", "/run/podman/tmp"]);
        let podman = podman.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        podman.args(["--storage-driver", "overlay", "--runtime", runtime])
    }

    /// Removes what it keeps while no container runs.
    pub fn clean(&self) {
        self.cli("/usr/sbin/runc")
            .args(["system", "reset", "--force"])
            .finish();
        // Other state of podman's, whatever it ran.
        for folder in [
            "/run/podman",
            "/run/libpod",
            "/run/crun",
            "/run/mount",
            "/run/lock",
            "/run/containers",
        ] {
            let _ = std::fs::remove_dir_all(folder);
        }
        let _ = std::fs::remove_file("/dev/shm/libpod_lock");
    }
}

/// podman, and the runtime that it is to use.
#[derive(Debug, Clone)]
struct Pods<'a> {
    podman: &'a Podman,
    runtime: Arc<Runtime>,
}

/// All cases, with `runtime`.
pub fn cases<'a>(podman: &'a Podman, runtime: &Runtime) -> Vec<Case<'a>> {
    let pods = Pods {
        podman,
        runtime: Arc::new(runtime.clone()),
    };
    let case = |(name, run): &(&str, Promise)| {
        let (pods, run) = (pods.clone(), *run);
        Case {
            name: format!(
                "{}::{}",
                pods.runtime.name,
                name.trim_start_matches("clients::")
            ),
            run: Box::new(move || run(&pods)),
            differs: None,
        }
    };
    CASES.iter().map(case).collect()
}

impl Pods<'_> {
    fn cli(&self, words: &[&str]) -> Launch {
        self.podman
            .cli(self.runtime.program.to_str().unwrap())
            .args(words)
    }

    /// `podman run FLAGS box ARGV`
    fn launch(&self, flags: &[&str], argv: &[&str]) -> Launch {
        let run = self.cli(&[
            "run",
            "--network",
            "none",
            "--cgroup-parent",
            &self.podman.cgroup,
        ]);
        // Its defaults are above the hard limits of some hosts.
        let run = run.args([
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
        ]);
        run.args(flags).arg("box").args(argv)
    }

    fn background(&self, flags: &[&str], script: &str) -> Container<'_> {
        let flags: Vec<_> = ["-d"].iter().chain(flags).copied().collect();
        let run = self
            .launch(&flags, &["sh", "-c", script])
            .finish()
            .success();
        Container {
            pods: self,
            id: run.out().trim().to_owned(),
        }
    }
}

struct Container<'a> {
    pods: &'a Pods<'a>,
    id: String,
}

impl Container<'_> {
    fn cli(&self, words: &[&str]) -> Finished {
        self.pods.cli(words).arg(&self.id).finish()
    }

    fn exec(&self, flags: &[&str], script: &str) -> Finished {
        let exec = self.pods.cli(&["exec"]).args(flags).arg(&self.id);
        exec.args(["sh", "-c", script]).finish()
    }

    fn wait(&self) -> i32 {
        let code = self.cli(&["wait"]).success().out();
        code.trim().parse().expect("a number")
    }

    fn wait_for(&self, text: &str) {
        let follow = self.pods.cli(&["logs", "--follow", &self.id]);
        follow.start().wait_for(text);
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // Cases may have removed it.
        let _ = self.cli(&["rm", "--force", "--time", "0"]);
    }
}

const ENDS_AT_TERM: &str =
    "trap 'echo term; exit 7' TERM; echo up; while :; do sleep 1000 & wait $!; done";

fn run_to_the_end(pods: &Pods) {
    let run = pods.launch(
        &["--rm", "-i"],
        &["sh", "-c", "echo out; echo err >&2; cat; exit 3"],
    );
    let run = run.stdin("in\n").finish();
    assert_eq!(
        (run.out().as_str(), run.err().as_str()),
        ("out\nin\n", "err\n")
    );
    assert_eq!(run.code(), 3);
}

fn exit_codes(pods: &Pods) {
    let missing = pods.launch(&["--rm"], &["/bin/nothing"]).finish();
    assert_eq!(missing.code(), 127, "{missing:?}");
    let plain = pods.launch(&["--rm"], &["/etc/plain"]).finish();
    assert_eq!(plain.code(), 126, "{plain:?}");
}

fn run_on_a_terminal(pods: &Pods) {
    let mut terminal = Terminal::new(33, 77);
    let script = "tty; read line; until stty size | grep '33 77'; do usleep 20000; done; echo got $line; exit 4";
    let run = pods
        .launch(&["--rm", "-i", "-t"], &["sh", "-c", script])
        .on(&terminal)
        .start();
    terminal.wait_for("/dev/pts/0");
    terminal.type_in("hello\r");
    terminal.wait_for("got hello");
    assert!(terminal.text().contains("33 77"), "{:?}", terminal.text());
    assert_eq!(run.finish().code(), 4);
}

fn exec_and_logs(pods: &Pods) {
    let container = pods.background(&[], "echo out; echo err >&2; sleep 1000");
    container.wait_for("out");
    let logs = container.cli(&["logs"]).success();
    assert_eq!(
        (logs.out().as_str(), logs.err().as_str()),
        ("out\n", "err\n")
    );
    let exec = container.exec(
        &["-u", "1000", "-w", "/tmp", "-e", "A=a"],
        "id -u; pwd; echo $A; exit 5",
    );
    assert_eq!((exec.code(), exec.out().as_str()), (5, "1000\n/tmp\na\n"));
    let missing = pods.cli(&["exec", &container.id, "/bin/nothing"]).finish();
    assert_eq!(missing.code(), 127, "{missing:?}");
}

fn stats(pods: &Pods) {
    let container = pods.background(&[], "sleep 1000");
    let stats = container.cli(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.MemUsage}}|{{.PIDS}}",
    ]);
    let stats = stats.success().out();
    let (memory, pids) = stats.trim().split_once('|').expect("two fields");
    assert!(!memory.starts_with("0B"), "{stats}");
    assert!(pids.parse::<u32>().unwrap() > 0, "{stats}");
}

fn kill_and_remove(pods: &Pods) {
    let container = pods.background(
        &[],
        "trap 'echo usr1; exit 2' USR1; echo up; while :; do sleep 1000 & wait $!; done",
    );
    container.wait_for("up");
    container.cli(&["kill", "--signal", "USR1"]).success();
    assert_eq!(container.wait(), 2);
    let container = pods.background(&[], "sleep 1000");
    container.cli(&["kill"]).success();
    assert_eq!(container.wait(), 128 + 9);
    container.cli(&["rm"]).success();
    assert_ne!(container.cli(&["inspect"]).code(), 0);
}

fn stop(pods: &Pods) {
    let container = pods.background(&[], ENDS_AT_TERM);
    container.wait_for("up");
    container.cli(&["stop", "--time", "50"]).success();
    assert_eq!(container.wait(), 7);
}

fn attach(pods: &Pods) {
    let container = pods.background(&["-i"], "echo up; read line; echo got $line; exit 6");
    container.wait_for("up");
    let attach = pods
        .cli(&["attach", &container.id])
        .stdin("hello\n")
        .finish();
    assert!(attach.out().contains("got hello"), "{attach:?}");
    assert_eq!(container.wait(), 6);
}

fn attach_to_a_terminal(pods: &Pods) {
    let container = pods.background(
        &["-i", "-t"],
        "read line; until stty size | grep '44 88'; do usleep 20000; done; echo got $line; exit 6",
    );
    let mut terminal = Terminal::new(44, 88);
    let attach = pods.cli(&["attach", &container.id]).on(&terminal).start();
    terminal.type_in("hello\r");
    terminal.wait_for("got hello");
    assert!(terminal.text().contains("44 88"), "{:?}", terminal.text());
    attach.finish();
    assert_eq!(container.wait(), 6);
}

fn pause_and_unpause(pods: &Pods) {
    let container = pods.background(&[], ENDS_AT_TERM);
    container.wait_for("up");
    container.cli(&["pause"]).success();
    let status = container
        .cli(&["inspect", "--format", "{{.State.Status}}"])
        .success()
        .out();
    assert_eq!(status, "paused\n");
    container.cli(&["unpause"]).success();
    assert_eq!(container.exec(&[], "echo awake").success().out(), "awake\n");
}

fn limits_user_and_folder(pods: &Pods) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let volume = format!("{}:/data", folder.path().display());
    let script = "id -u; pwd; hostname; ulimit -n; echo x >/data/file
        cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes";
    let flags = [
        "--rm",
        "-v",
        &volume,
        "-w",
        "/tmp",
        "--hostname",
        "boxed",
        "--memory",
        "64m",
    ];
    let run = pods
        .launch(&flags, &["sh", "-c", script])
        .finish()
        .success();
    assert_eq!(run.out(), "0\n/tmp\nboxed\n1024\n67108864\n");
    assert_eq!(
        std::fs::read_to_string(folder.path().join("file")).unwrap(),
        "x\n"
    );
}
