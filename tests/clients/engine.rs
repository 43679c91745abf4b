//! dockerd and the containerd that it starts, with folders, sockets and cgroups of
//! their own, and without any network.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::harness::Launch;
use crate::image;
use crate::suite::{Runtime, Stage};

/// For a daemon to start or to end.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

/// For one command of a client.
const CLIENT_LIMIT_S: &str = "60";

/// Name of the image that all containers are of.
pub const IMAGE: &str = "box";

/// Where dockerd says that it is ready.
const READY: &str = "/run/ready.sock";

/// Lines of the daemon's log that are shown.
const LOG_LINES: usize = 20;

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    folder: PathBuf,
    daemon: Child,
    /// A root file system that `ctr` runs containers in.
    pub rootfs: PathBuf,
    /// Parent of the containers' cgroups.
    pub cgroup: String,
}

impl Engine {
    /// Starts it, and gives it the image.
    pub fn start(stage: &Stage, runtimes: &[Runtime]) -> Self {
        let folder = stage.path().join("engine");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("daemon.json"), "{}").unwrap();
        let rootfs = folder.join("rootfs");
        image::fill(&rootfs);
        let cgroup = format!("/{}", stage.tag());
        let ready = Notice::expect(Path::new(READY));
        let daemon = spawn(&folder, &cgroup, runtimes);
        let engine = Self {
            folder,
            daemon,
            rootfs,
            cgroup,
        };
        assert!(ready.came(), "dockerd is not ready: {}", engine.log());
        let archive = engine.folder.join("image.tar");
        image::archive(&engine.rootfs, &archive);
        let import = ["import", archive.to_str().unwrap(), IMAGE];
        engine.docker().args(import).finish().success();
        engine
    }

    /// The client, with a time limit.
    pub fn docker(&self) -> Launch {
        let socket = format!("unix://{}", docker_socket());
        let config = self.folder.join("client");
        let docker = limited("/usr/bin/docker").args(["--host", &socket]);
        docker.env("DOCKER_CONFIG", config.to_str().unwrap())
    }

    /// containerd's client, with a time limit.
    pub fn ctr(&self) -> Launch {
        let socket = format!("{}/containerd/containerd.sock", exec_root());
        limited("/usr/bin/ctr").args(["--address", &socket, "--namespace", "ctr"])
    }

    /// Ends it and the containerd of its own; the end of its log.
    pub fn stop(mut self) -> String {
        let pid = Pid::from_child(&self.daemon);
        kill_process(pid, Signal::TERM).expect("dockerd is there");
        assert!(ends(pid, DAEMON_LIMIT), "dockerd does not end");
        self.daemon.wait().unwrap();
        fs::remove_file(READY).unwrap();
        self.log()
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// A client under a time limit; it may be on a terminal.
pub fn limited(program: &str) -> Launch {
    Launch::new("timeout").args(["--foreground", "-s", "KILL", CLIENT_LIMIT_S, program])
}

// Paths of sockets are short, so they are in the suite's own /run.
fn docker_socket() -> &'static str {
    "/run/docker.sock"
}

fn exec_root() -> &'static str {
    "/run/docker"
}

fn spawn(folder: &Path, cgroup: &str, runtimes: &[Runtime]) -> Child {
    let log = File::create(folder.join("log")).unwrap();
    let mut command = Command::new("/usr/sbin/dockerd");
    let at = |name: &str| folder.join(name);
    command.arg("--config-file").arg(at("daemon.json"));
    command.arg("--data-root").arg(at("data"));
    command.args(["--exec-root", exec_root(), "--pidfile", "/run/docker.pid"]);
    command.args(["--host", &format!("unix://{}", docker_socket())]);
    command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
    command.args([
        "--ip-forward=false",
        "--ip-masq=false",
        "--userland-proxy=false",
    ]);
    command.args(["--storage-driver", "overlay2", "--cgroup-parent", cgroup]);
    for Runtime { name, program } in runtimes.iter().filter(|runtime| runtime.name != "runc") {
        command
            .arg("--add-runtime")
            .arg(format!("{name}={}", program.display()));
    }
    command.env("NOTIFY_SOCKET", READY);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    command.spawn().expect("dockerd starts")
}

/// What a daemon tells systemd once it is ready (sd_notify).
struct Notice(UnixDatagram);

impl Notice {
    fn expect(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(DAEMON_LIMIT)).unwrap();
        Self(socket)
    }

    fn came(&self) -> bool {
        let mut text = [0; 4096];
        // Other notices come before it; none in time is an error.
        while let Ok(len) = self.0.recv(&mut text) {
            if text[..len].windows(7).any(|part| part == b"READY=1") {
                return true;
            }
        }
        false
    }
}

/// Whether a process ends in time.
pub fn ends(pid: Pid, limit: Duration) -> bool {
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let limit = Timespec::try_from(limit).expect("a short time");
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).expect("poll") > 0
}
