//! The agent without a machine: its loop as PID 1 of a pid namespace, in a mount
//! namespace whose root looks as the guest's does, unix sockets in place of
//! vsock. Needs root. The tests play the host.
#![allow(unsafe_code, dead_code)]

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::process::{Pid, Signal, WaitOptions, chdir, pivot_root, waitpid};
use tempfile::TempDir;
use vmrun_agent::container::Guest;
use vmrun_agent::prepared::Prepared;
use vmrun_agent::serve::{Channels, serve};
use vmrun_agent::sys::{self, Cloned};
use vmrun_protocol::frame;
use vmrun_protocol::message::{
    Answer, ExitStatus, Failure, INIT, ProcessId, Question, Report, Request, Stream, StreamHeader,
};
use vmrun_protocol::plan::{
    Bytes, ContainerPlan, DeviceRule, FsType, Mount, MountSource, ProcessPlan, WindowSize,
    namespace,
};

/// Whether the agent has a process that was made ahead: in the test programs that
/// keep the promises of another one with it.
fn prepares() -> bool {
    env!("CARGO_CRATE_NAME").starts_with("prepared_")
}

/// How long the agent may take for anything, and to live.
const LIMIT_S: u32 = 60;

/// The host's side of one agent.
pub struct Host {
    /// What the agent sees as `/`: `share/root` is the container's root.
    pub tree: TempDir,
    control: UnixStream,
    agent: Pid,
    cgroup: Option<PathBuf>,
}

/// What a container left behind.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: ExitStatus,
}

impl Outcome {
    pub fn text(&self) -> String {
        assert_eq!(self.status, ExitStatus::Code(0), "{self:?}");
        String::from_utf8(self.stdout.clone()).unwrap()
    }
}

impl Host {
    /// An agent and a root file system with busybox in it.
    pub fn new() -> Self {
        Self::in_cgroup(None)
    }

    /// The same with a cgroup v2 tree of its own; none where this system has none.
    pub fn with_cgroup() -> Option<Self> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let root = roots
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists())?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // In one that hands no controllers on: they could not be enabled in a group
        // that has the agent in it and is not the root.
        let outer = root.join(format!("agent-test-{}-{count}", std::process::id()));
        let group = outer.join("agent");
        fs::create_dir(&outer).ok()?;
        fs::create_dir(&group).unwrap();
        Some(Self::in_cgroup(Some(group)))
    }

    fn in_cgroup(cgroup: Option<PathBuf>) -> Self {
        // A fork while another test writes its busybox would keep it busy.
        static FORK: Mutex<()> = Mutex::new(());
        let lock = FORK.lock().unwrap_or_else(PoisonError::into_inner);
        let tree = tempfile::tempdir().unwrap();
        guest_tree(tree.path());
        let listener = UnixListener::bind(tree.path().join("stream")).unwrap();
        let (control, other) = UnixStream::pair().unwrap();
        control
            .set_read_timeout(Some(Duration::from_secs(LIMIT_S.into())))
            .unwrap();
        let root = tree.path().to_owned();
        // SAFETY: glibc's fork leaves the child a usable allocator, and the child
        // never returns into the test.
        let agent = match unsafe { libc::fork() } {
            0 => agent_parent(&root, other, listener, cgroup.as_deref()),
            pid => Pid::from_raw(pid).expect("fork"),
        };
        drop(lock);
        Self {
            tree,
            control,
            agent,
            cgroup,
        }
    }

    /// Groups that the agent has left behind when it is idle.
    pub fn groups(&mut self) -> usize {
        // There is none to start, which it says when it has done all else.
        self.start().unwrap_err();
        let entries = fs::read_dir(self.group()).unwrap();
        entries
            .filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir())
            .count()
    }

    /// The folder of the agent's cgroup.
    pub fn group(&self) -> &Path {
        self.cgroup.as_ref().unwrap()
    }

    /// A path in the container's root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.tree.path().join("share/root").join(path)
    }

    pub fn request(&mut self, request: Request) {
        frame::write(&mut self.control, &request, frame::MAX_TO_GUEST_BYTES).unwrap();
    }

    pub fn report(&mut self) -> Report {
        frame::read(&mut self.control, frame::MAX_TO_HOST_BYTES).unwrap()
    }

    pub fn connect(&self, stream: Stream) -> UnixStream {
        self.connect_to(INIT, stream)
    }

    pub fn connect_to(&self, process: ProcessId, stream: Stream) -> UnixStream {
        let mut socket = UnixStream::connect(self.tree.path().join("stream")).unwrap();
        let header = StreamHeader { process, stream };
        frame::write(&mut socket, &header, StreamHeader::MAX_BYTES).unwrap();
        socket
    }

    pub fn create(&mut self, plan: &ContainerPlan) -> Result<(), Failure> {
        self.request(Request::Create(Box::new(plan.clone())));
        match self.report() {
            Report::Created => Ok(()),
            Report::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    pub fn start(&mut self) -> Result<(), Failure> {
        self.request(Request::Start);
        match self.report() {
            Report::Started => Ok(()),
            Report::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    pub fn exited(&mut self) -> ExitStatus {
        match self.report() {
            Report::Exited {
                process: INIT,
                status,
            } => status,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a container to its end, with `input` on its stdin.
    pub fn run_with(&mut self, plan: &ContainerPlan, input: Vec<u8>) -> Outcome {
        self.create(plan).unwrap();
        let mut stdin = self.connect(Stream::Stdin);
        let stdout = collect(self.connect(Stream::Stdout));
        let stderr = collect(self.connect(Stream::Stderr));
        self.start().unwrap();
        let feeder = thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let status = self.exited();
        feeder.join().unwrap();
        Outcome {
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
            status,
        }
    }

    pub fn run(&mut self, plan: &ContainerPlan) -> Outcome {
        self.run_with(plan, Vec::new())
    }

    /// Runs a container that waits, with its stdin and stdout; it is ready.
    pub fn idle(&mut self, plan: &ContainerPlan) -> (UnixStream, UnixStream) {
        let mut plan = plan.clone();
        plan.process.args = bytes(&["sh", "-c", "echo ready; exec cat"]);
        self.create(&plan).unwrap();
        let stdin = self.connect(Stream::Stdin);
        let mut stdout = self.connect(Stream::Stdout);
        let _ = collect(self.connect(Stream::Stderr));
        self.start().unwrap();
        stdout.read_exact(&mut [0; 6]).unwrap();
        (stdin, stdout)
    }

    /// Sets a further process up.
    pub fn exec(&mut self, process: ProcessId, plan: &ProcessPlan) -> Result<(), Failure> {
        let plan = Box::new(plan.clone());
        self.request(Request::Exec { process, plan });
        match self.report() {
            Report::ExecCreated { process: created } if created == process => Ok(()),
            Report::ExecFailed {
                process: failed,
                failure,
            } if failed == process => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// Connects the streams of a further process, whose program then runs: its
    /// stdin, stdout and stderr.
    pub fn exec_started(&mut self, process: ProcessId) -> [UnixStream; 3] {
        let streams =
            [Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|s| self.connect_to(process, s));
        assert_eq!(self.report(), Report::ExecStarted { process });
        streams
    }

    /// Runs a further process to its end.
    pub fn exec_run(&mut self, process: ProcessId, plan: &ProcessPlan) -> Outcome {
        self.exec(process, plan).unwrap();
        let [_stdin, stdout, stderr] = self.exec_started(process);
        let (stdout, stderr) = (collect(stdout), collect(stderr));
        let status = match self.report() {
            Report::Exited {
                process: ended,
                status,
            } if ended == process => status,
            other => panic!("{other:?}"),
        };
        Outcome {
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
            status,
        }
    }

    /// The answer to a question that is answered at once.
    pub fn ask(&mut self, question: Question) -> Result<Answer, Failure> {
        self.request(Request::Ask { tag: 77, question });
        match self.report() {
            Report::Answer { tag: 77, answer } => answer,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a shell script.
    pub fn sh(&mut self, script: &str) -> Outcome {
        self.run(&plan(&["sh", "-c", script]))
    }
}

impl Drop for Host {
    /// Ends the agent as the host does, by closing its connection.
    fn drop(&mut self) {
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        let ended = waitpid(Some(self.agent), WaitOptions::empty());
        let remove = |group: &PathBuf| {
            fs::remove_dir(group)?;
            fs::remove_dir(group.parent().unwrap())
        };
        let removed = self.cgroup.as_ref().map_or(Ok(()), remove);
        if !thread::panicking() {
            let (_, status) = ended.unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(0), "agent: {status:?}");
            removed.unwrap();
        }
    }
}

/// Reads a stream to its end.
pub fn collect(mut socket: UnixStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = socket.read_to_end(&mut all);
        all
    })
}

/// What the initramfs and the agent's boot make in a guest.
fn guest_tree(tree: &Path) {
    for folder in ["dev", "proc", "sys", "share/root"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    let null = tree.join("dev/null");
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, &null, FileType::CharacterDevice, mode, makedev(1, 3)).unwrap();
    let root = tree.join("share/root");
    for folder in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/:\nuser:x:7:8::/home/user:\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nextra:x:99:user\n").unwrap();
}

const APPLETS: [&str; 32] = [
    "cat", "chroot", "cp", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ip",
    "kill", "ls", "mkdir", "mount", "pwd", "readlink", "sh", "sleep", "stat", "stty", "touch",
    "true", "mknod", "tty", "umount", "wc", "yes", "nc", "test", "cut",
];

/// The process between the test and the agent: makes its namespaces, and ends
/// with it or at the limit.
fn agent_parent(
    root: &Path,
    control: UnixStream,
    listener: UnixListener,
    cgroup: Option<&Path>,
) -> ! {
    let (control, listener) = keep_only(control.into(), listener.into());
    // SAFETY: no memory is passed.
    unsafe { libc::alarm(LIMIT_S) };
    let mut namespaces = namespace::MOUNT | namespace::PID | namespace::NETWORK;
    if let Some(group) = cgroup {
        namespaces |= namespace::CGROUP;
        if fs::write(group.join("cgroup.procs"), "0").is_err() {
            sys::exit_now(96);
        }
    }
    match sys::clone3(namespaces, None) {
        Ok(Cloned::Child) => agent(root, control, listener, cgroup.is_some()),
        Ok(Cloned::Parent(pid)) => {
            drop((control, listener));
            let pid = Pid::from_raw(pid as i32);
            let ended = waitpid(pid, WaitOptions::empty());
            let code = ended
                .ok()
                .flatten()
                .and_then(|(_, status)| status.exit_status());
            sys::exit_now(code.unwrap_or(99))
        }
        Err(_) => sys::exit_now(98),
    }
}

/// Closes what other tests have open in this process: their streams would never
/// end.
fn keep_only(control: OwnedFd, listener: OwnedFd) -> (OwnedFd, OwnedFd) {
    const KEPT: [i32; 2] = [900, 901];
    // SAFETY: whatever else is open has no owner in this forked process that is
    // ever used again; the two made here are owned once.
    unsafe {
        libc::dup2(control.as_raw_fd(), KEPT[0]);
        libc::dup2(listener.as_raw_fd(), KEPT[1]);
        std::mem::forget((control, listener));
        libc::close_range(3, KEPT[0] as u32 - 1, 0);
        libc::close_range(KEPT[1] as u32 + 1, u32::MAX, 0);
        (OwnedFd::from_raw_fd(KEPT[0]), OwnedFd::from_raw_fd(KEPT[1]))
    }
}

/// PID 1 of the pretended guest.
fn agent(root: &Path, control: OwnedFd, listener: OwnedFd, cgroups: bool) -> ! {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let enter = || -> rustix::io::Result<OwnedFd> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)?;
        mount_bind(root, root)?;
        chdir(root)?;
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        sys::block_signals()
    };
    let Ok(signals) = enter() else {
        sys::exit_now(97)
    };
    let channels = Channels {
        control: BufReader::new(File::from(control)),
        listener,
        signals,
    };
    // The host's closing of the connection is how every test ends.
    let guest = Guest {
        cgroups,
        machine_is_ours: false,
        network_unused: true,
    };
    let prepared = prepares().then(|| Prepared::make(cgroups));
    let Ok(prepared) = prepared.transpose() else {
        sys::exit_now(95)
    };
    let _ = serve(channels, guest, prepared);
    sys::exit_now(0)
}

pub fn mount(fs_type: FsType, destination: &str, data: &str) -> Mount {
    Mount {
        destination: destination.into(),
        source: MountSource::FileSystem {
            fs_type,
            label: b"none".to_vec(),
        },
        flags: libc::MS_NOSUID,
        propagation: vec![],
        data: data.into(),
    }
}

pub fn export(name: &str, destination: &str, is_dir: bool, flags: u64) -> Mount {
    Mount {
        source: MountSource::Export {
            name: name.to_owned(),
            is_dir,
            recursive: true,
        },
        flags,
        ..mount(FsType::Tmpfs, destination, "")
    }
}

fn usual_mounts() -> Vec<Mount> {
    let closed = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;
    let devpts = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    let mut mounts = vec![
        mount(FsType::Proc, "/proc", ""),
        mount(FsType::Tmpfs, "/dev", "mode=755,size=65536k"),
        mount(FsType::Devpts, "/dev/pts", devpts),
        mount(FsType::Tmpfs, "/dev/shm", "mode=1777,size=65536k"),
        mount(FsType::Mqueue, "/dev/mqueue", ""),
        mount(FsType::Sysfs, "/sys", ""),
    ];
    let told = [
        ("proc", libc::MS_NOSUID),
        ("tmpfs", libc::MS_NOSUID | libc::MS_STRICTATIME),
        ("devpts", libc::MS_NOSUID | libc::MS_NOEXEC),
        ("shm", closed),
        ("mqueue", closed),
        ("sysfs", closed | libc::MS_RDONLY),
    ];
    for (mount, (name, flags)) in mounts.iter_mut().zip(told) {
        mount.flags = flags;
        if let MountSource::FileSystem { label, .. } = &mut mount.source {
            *label = name.into();
        }
    }
    mounts
}

pub fn bytes(strings: &[&str]) -> Vec<Bytes> {
    strings.iter().map(|s| s.as_bytes().to_vec()).collect()
}

/// A container as `runc spec` describes one.
pub fn plan(args: &[&str]) -> ContainerPlan {
    ContainerPlan {
        hostname: Some(b"inside".to_vec()),
        namespaces: namespace::PID
            | namespace::UTS
            | namespace::IPC
            | namespace::NETWORK
            | namespace::MOUNT,
        mounts: usual_mounts(),
        device_rules: vec![DeviceRule {
            allow: true,
            kind: None,
            major: None,
            minor: None,
            access: 7,
        }],
        process: ProcessPlan {
            args: bytes(args),
            env: vec![b"PATH=/sbin:/bin".to_vec(), b"TERM=dumb".to_vec()],
            cwd: b"/".to_vec(),
            ..ProcessPlan::default()
        },
        ..ContainerPlan::default()
    }
}

/// The same with a terminal of 30 by 90.
pub fn terminal_plan(args: &[&str]) -> ContainerPlan {
    let mut plan = plan(args);
    plan.process.terminal = Some(WindowSize {
        rows: 30,
        columns: 90,
    });
    plan
}
