//! System calls that rustix does not have, each with a safe face.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::marker::PhantomData;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;

use rustix::io::Errno;
use rustix::io::Result;

/// Result of [`clone3`], once in each process.
pub enum Cloned {
    /// This is the new process.
    Child,
    /// This is the old one; the number of the new one.
    Parent(u32),
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The result of a system call through libc.
pub(crate) fn check(result: c_long) -> Result<c_long> {
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(result)
    }
}

/// Of linux/sched.h; libc has them in a type that is too narrow.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;
const CLONE_PARENT: u64 = libc::CLONE_PARENT as u64;

/// clone3(2) as a fork: the child gets a copy of the address space and goes on
/// from here, in new namespaces (`CLONE_NEW*` bits) and, where given, in the
/// cgroup whose folder is `cgroup`. Caught signals are back to their default.
///
/// The process must be single-threaded: locks that another thread holds (the
/// allocator's) would stay locked in the child.
pub fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    fork(namespaces, libc::SIGCHLD as u64, cgroup)
}

/// As [`clone3`], but the new process is a child of this one's parent, in the pid
/// namespace that this one has joined for its children.
pub fn clone_sibling() -> Result<Cloned> {
    // It ends with the signal that this process would end with.
    fork(CLONE_PARENT, 0, None)
}

fn fork(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    // SAFETY: all-zero is a valid value of this struct of integers.
    let mut args: libc::clone_args = unsafe { zeroed() };
    args.flags = flags | CLONE_CLEAR_SIGHAND;
    args.exit_signal = exit_signal;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and without a stack this is fork(2): the child
    // runs on its own copy of this stack. `args` lives through the call.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    })?;
    Ok(match pid {
        0 => Cloned::Child,
        pid => Cloned::Parent(pid as u32),
    })
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// mount_setattr(2) on the mount that `mount` is in: clears, then sets
/// `MOUNT_ATTR_*` bits and, where not 0, the propagation (`MS_PRIVATE`, ...).
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    attr_set: u32,
    attr_clr: u32,
    propagation: u64,
    recursive: bool,
) -> Result<()> {
    let attr = MountAttr {
        attr_set: attr_set.into(),
        attr_clr: attr_clr.into(),
        propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and `attr` lives through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// bpf(2) with a command whose attributes are `attr`.
pub fn bpf<T>(command: c_int, attr: &T) -> Result<c_long> {
    // SAFETY: `attr` is the command's part of `union bpf_attr`; the pointers in
    // it are the caller's and live as long as `attr` does.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attr as *const T, size_of::<T>()) })
}

/// As [`bpf`], for commands that return a descriptor.
pub fn bpf_fd<T>(command: c_int, attr: &T) -> Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Closes every descriptor from 3 on except `kept`. Owners of the closed ones
/// must never be dropped: only for a process about to end or to execve.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> Result<()> {
    let mut kept: Vec<_> = kept.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept {
        if kept > first {
            close_range(first, kept - 1)?;
        }
        first = first.max(kept + 1);
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: no memory is passed. What is closed has owners that the caller of
    // `close_all_but` promised not to use.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// Makes `kept` descriptor 3 and closes all others but 0, 1 and 2. As with
/// [`close_all_but`] their owners must never be dropped.
pub fn keep_as_third(kept: BorrowedFd<'_>) -> Result<OwnedFd> {
    const THIRD: RawFd = 3;
    if kept.as_raw_fd() != THIRD {
        // SAFETY: no memory is passed. What was on 3 has an owner that the caller
        // promised not to use.
        check(unsafe { libc::dup3(kept.as_raw_fd(), THIRD, libc::O_CLOEXEC) }.into())?;
    }
    // SAFETY: 3 is open now, and by the same promise owned by nobody else.
    let third = unsafe { OwnedFd::from_raw_fd(THIRD) };
    close_all_but(&[third.as_fd()])?;
    Ok(third)
}

/// Gives this process a page of its own wherever it may write, and maps all that
/// it may read, so that later accesses do not fault.
pub fn populate_memory() -> Result<()> {
    // SAFETY: neither call passes memory or changes what is in it.
    unsafe {
        check(libc::mlockall(libc::MCL_CURRENT).into())?;
        check(libc::munlockall().into())?;
    }
    Ok(())
}

/// Sets both limits of `RLIMIT_*` number `resource`.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` lives through the call; the old limits are not asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            null::<libc::rlimit64>(),
        )
    })?;
    Ok(())
}

/// Raises both limits of `RLIMIT_*` number `resource` to `hard` where the hard one is
/// lower.
pub fn raise_rlimit(resource: u32, hard: u64) -> Result<()> {
    let mut present = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `present` lives through the call; no new limits are set.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            null::<libc::rlimit64>(),
            &raw mut present,
        )
    })?;
    if present.rlim_max < hard {
        set_rlimit(resource, hard, hard)?;
    }
    Ok(())
}

/// Blocks every signal: none interrupts PID 1, and a broken pipe is an error
/// code. SIGCHLD is then read from the descriptor returned.
pub fn block_signals() -> Result<OwnedFd> {
    // SAFETY: all-zero is a valid `sigset_t`, filled by the calls below, and
    // all pointers are to locals.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigfillset(&mut set);
        check(libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()).into())?;
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Takes what the descriptor of [`block_signals`] has to say: a signal that comes
/// again before it is taken is there once.
pub fn take_signal(signals: BorrowedFd<'_>) {
    let _ = rustix::io::read(signals, &mut [0; size_of::<libc::signalfd_siginfo>()]);
}

/// Signals as a new program expects them: none blocked, SIGPIPE deadly. (PID 1
/// never ignores another one; [`clone3`] took care of the caught ones.)
pub fn restore_signals() -> Result<()> {
    // SAFETY: SIG_DFL is no function of ours; the set is a filled local.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&mut set);
        check(libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()).into())?;
    }
    Ok(())
}

/// A new cgroup namespace for this process, its own group as the root.
pub fn new_cgroup_namespace() -> Result<()> {
    // SAFETY: neither descriptors nor memory are unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
}

/// kill(2), also for real-time signals.
pub fn kill(pid: u32, signal: u8) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid as i32, signal.into()) }.into())?;
    Ok(())
}

/// Brings the loopback interface of this network namespace up.
pub fn loopback_up() -> Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { zeroed() };
    request.ifr_name[0] = b'l' as _;
    request.ifr_name[1] = b'o' as _;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as _;
    let socket = socket.as_raw_fd();
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives through the call.
    let done = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw const request) };
    check(done.into())?;
    Ok(())
}

/// Arguments and environment as execve(2) takes them: once made, running a program
/// allocates nothing, which a seccomp filter could forbid.
pub struct Arguments<'a> {
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    strings: PhantomData<&'a CString>,
}

impl<'a> Arguments<'a> {
    /// Of a program that gets `args` and `env`.
    pub fn new(args: &'a [CString], env: &'a [CString]) -> Self {
        let pointers = |strings: &[CString]| {
            let ends = std::iter::once(null());
            strings.iter().map(|s| s.as_ptr()).chain(ends).collect()
        };
        Self {
            args: pointers(args),
            env: pointers(env),
            strings: PhantomData,
        }
    }

    /// execve(2): returns only when it fails.
    pub fn execute(&self, program: &CStr) -> Errno {
        // SAFETY: a C string and arrays of them, each array ended by null; the
        // strings outlive `self`.
        unsafe { libc::execve(program.as_ptr(), self.args.as_ptr(), self.env.as_ptr()) };
        last_errno()
    }
}

/// Ends this process without running anything more of it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes no memory and does not return.
    unsafe { libc::_exit(code) }
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all-zero is a valid value of this struct of integers.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    address.svm_family = libc::AF_VSOCK as _;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn vsock_socket() -> Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor returned is new.
    unsafe {
        let fd =
            check(libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

const VSOCK_ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// A vsock socket that listens on `port` of this guest.
pub fn vsock_listen(port: u32, backlog: c_int) -> Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    // SAFETY: `address` has the length passed and lives through the call.
    unsafe {
        let address = (&raw const address).cast();
        check(libc::bind(socket.as_raw_fd(), address, VSOCK_ADDRESS_LEN).into())?;
        check(libc::listen(socket.as_raw_fd(), backlog).into())?;
    }
    Ok(socket)
}

/// A vsock stream to `port` of the host.
pub fn vsock_connect(port: u32) -> Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(libc::VMADDR_CID_HOST, port);
    // SAFETY: `address` has the length passed and lives through the call.
    unsafe {
        let address = (&raw const address).cast();
        check(libc::connect(socket.as_raw_fd(), address, VSOCK_ADDRESS_LEN).into())?;
    }
    Ok(socket)
}

/// Takes a connection from `listener`, non-blocking. None where the peer is
/// neither the host nor, in tests, a unix socket.
pub fn accept_from_host(listener: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let mut address = vsock_address(0, 0);
    let mut len = VSOCK_ADDRESS_LEN;
    // SAFETY: `address` and `len` belong together and live through the call.
    let fd = check(
        unsafe {
            libc::accept4(
                listener.as_raw_fd(),
                (&raw mut address).cast(),
                &raw mut len,
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
        }
        .into(),
    )?;
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let family: c_int = address.svm_family.into();
    let host = match family {
        libc::AF_VSOCK => address.svm_cid == libc::VMADDR_CID_HOST,
        other => other == libc::AF_UNIX,
    };
    Ok(host.then_some(socket))
}

/// Opens descriptors until 0, 1 and 2 are taken, so that none of ours is later
/// mistaken for a standard stream. (The kernel leaves them closed when there is
/// no console.)
pub fn occupy_standard_streams(file: BorrowedFd<'_>) -> Result<()> {
    for number in 0..3 {
        if file.as_raw_fd() != number {
            // SAFETY: no memory is passed; nobody owns 0, 1 and 2 yet.
            check(unsafe { libc::dup2(file.as_raw_fd(), number) }.into())?;
        }
    }
    Ok(())
}

/// Writes `line` to the kernel's log, as an error: shown on any console.
pub fn log_line(line: &str) {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    if let Ok(log) = open("/dev/kmsg", flags, Mode::empty()) {
        let _ = rustix::io::write(log.as_fd(), format!("<2>vmrun-agent: {line}\n").as_bytes());
    }
}

/// Type of the pointers in `union bpf_attr`: 64 bits wide everywhere.
pub fn bpf_pointer<T>(to: *const T) -> u64 {
    to.cast::<c_void>() as u64
}
