//! Finding and running the container's program, inside the container and as its
//! user.

use std::ffi::CString;

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;
use vmrun_protocol::message::{Failure, FailureKind};
use vmrun_protocol::plan::{Bytes, Hook, ProcessPlan};

use crate::failure::{Named, failure, quoted, setup};
use crate::process_steps::seals_capabilities;
use crate::sys::Arguments;
use crate::{attributes, credentials, hooks};

/// Where programs are looked for when `env` has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the program, with a HOME of `home` where given, once `hooks` have succeeded:
/// returns only when it cannot, with the reason.
pub fn run(process: &ProcessPlan, hooks: &[Hook], home: Option<Bytes>) -> Failure {
    let Some(name) = process.args.first() else {
        return setup("args", Errno::INVAL);
    };
    let (Some(args), Some(mut env)) = (c_strings(&process.args), c_strings(&process.env)) else {
        return setup("args and env", Errno::INVAL);
    };
    if let Some(home) = home.and_then(|home| CString::new([b"HOME=", &*home].concat()).ok()) {
        env.push(home);
    }
    let program = Arguments::new(&args, &env);
    let Some(candidates) = c_strings(&candidates(name, search_path(&process.env))) else {
        return setup("env", Errno::INVAL);
    };
    if let Err(failure) = hooks.iter().try_for_each(|hook| hooks::run(hook, process)) {
        return failure;
    }
    let mut sealed = false;
    let mut refused = Errno::NOENT;
    for path in candidates {
        // A look costs less than an execve that fails, and a filter may forbid it.
        if !name.contains(&b'/') && !is_file(&path) {
            continue;
        }
        if !std::mem::replace(&mut sealed, true)
            && let Err(failure) = seal(process)
        {
            return failure;
        }
        match program.execute(&path) {
            Errno::NOENT | Errno::NOTDIR => {}
            // Another folder may have one that may be run.
            Errno::ACCESS => refused = Errno::ACCESS,
            other => return not_run(name, other),
        }
    }
    not_run(name, refused)
}

/// Installs the seccomp filters, as late as can be: what they must allow then is what
/// sets capabilities where that is left to do, execve, and to tell of a failure
/// write and exit_group.
pub fn seal(process: &ProcessPlan) -> Result<(), Failure> {
    for (index, filter) in process.seccomp.iter().enumerate() {
        attributes::install_filter(filter).named(|| format!("seccomp filter {index}"))?;
    }
    if seals_capabilities(process) {
        credentials::set_capabilities(&process.capabilities.unwrap_or_default())?;
    }
    Ok(())
}

/// Fails where the program is not there or may not be run. As runc does it, before
/// the start: from that failure alone engines take an exit code of 127 or 126.
pub fn look(process: &ProcessPlan) -> Result<(), Failure> {
    let Some(name) = process.args.first() else {
        return Err(setup("args", Errno::INVAL));
    };
    let Some(candidates) = c_strings(&candidates(name, search_path(&process.env))) else {
        return Err(setup("env", Errno::INVAL));
    };
    let mut refused = Errno::NOENT;
    for path in &candidates {
        match may_run(path) {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            // Another folder may have one that may be run.
            Err(Errno::ACCESS) => refused = Errno::ACCESS,
            Err(other) => return Err(not_run(name, other)),
        }
    }
    Err(not_run(name, refused))
}

/// By the rights that the process has by then; what kind of file it is shows in the
/// start.
fn may_run(path: &CString) -> Result<(), Errno> {
    if FileType::from_raw_mode(stat(path.as_c_str())?.st_mode) == FileType::Directory {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, path.as_c_str(), Access::EXEC_OK, AtFlags::EACCESS)
}

fn is_file(path: &CString) -> bool {
    let found = stat(path.as_c_str());
    found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) != FileType::Directory)
}

fn not_run(name: &[u8], errno: Errno) -> Failure {
    let kind = match errno {
        Errno::NOENT => FailureKind::NotFound,
        _ => FailureKind::NotExecutable,
    };
    failure(
        kind,
        format!("program {}", quoted(name)),
        errno.raw_os_error(),
    )
}

/// None where one has a NUL in it.
pub fn c_strings(strings: &[Bytes]) -> Option<Vec<CString>> {
    let made = strings.iter().map(|bytes| CString::new(bytes.as_slice()));
    made.collect::<Result<_, _>>().ok()
}

/// The value of PATH in `env`.
fn search_path(env: &[Bytes]) -> &[u8] {
    let found = env.iter().find_map(|entry| entry.strip_prefix(b"PATH="));
    found.unwrap_or(DEFAULT_PATH)
}

/// Paths at which to try `name`, in order: itself where it has a slash, else in
/// each folder of `search_path`, an empty one being the working folder (POSIX,
/// Environment Variables, PATH).
fn candidates(name: &[u8], search_path: &[u8]) -> Vec<Bytes> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    if name.is_empty() {
        return Vec::new();
    }
    let folders = search_path.split(|b| *b == b':');
    folders
        .map(|folder| match folder {
            b"" => [b"./", name].concat(),
            folder => [folder, b"/", name].concat(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(name: &[u8], path: &[u8]) -> Vec<String> {
        let paths = candidates(name, path).into_iter();
        paths.map(|p| String::from_utf8(p).unwrap()).collect()
    }

    #[test]
    fn the_path_is_searched_in_order() {
        assert_eq!(tried(b"sh", b"/bin:/a/b"), ["/bin/sh", "/a/b/sh"]);
        assert_eq!(tried(b"sh", b":/bin:"), ["./sh", "/bin/sh", "./sh"]);
        assert_eq!(tried(b"./sh", b"/bin"), ["./sh"]);
        assert!(tried(b"", b"/bin").is_empty());
    }

    #[test]
    fn path_comes_from_the_containers_environment() {
        let env = [b"XPATH=/no".to_vec(), b"PATH=/yes".to_vec()];
        assert_eq!(search_path(&env), b"/yes");
        assert_eq!(search_path(&env[..1]), DEFAULT_PATH);
        assert_eq!(search_path(&[b"PATH=".to_vec()]), b"");
    }

    #[test]
    fn failures_have_the_kind_of_a_shell() {
        assert_eq!(not_run(b"x", Errno::NOENT).kind, FailureKind::NotFound);
        for errno in [Errno::ACCESS, Errno::NOEXEC, Errno::ISDIR, Errno::TOOBIG] {
            assert_eq!(not_run(b"x", errno).kind, FailureKind::NotExecutable);
        }
        assert_eq!(not_run(b"a\"b", Errno::NOENT).what, r#"program "a\"b""#);
    }
}
