//! `vmrun exec`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use vmrun_runtime::exec::{self, Asked, ExecError, ExecFlags, ExecRequest};

use vmrun_runtime::error::chain;

use super::tell_line;

/// As runc has them.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Socket that gets the master of the process's terminal
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Socket that gets a descriptor of the process on the host
    #[arg(long, value_name = "PATH")]
    pub pidfd_socket: Option<PathBuf>,
    /// Working folder in the container
    #[arg(long, value_name = "PATH")]
    pub cwd: Option<String>,
    /// Set a variable, NAME=value
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// UID[:GID], in numbers
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// A further group
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File that describes the process
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return once the process runs
    #[arg(short, long)]
    pub detach: bool,
    /// File that gets the process's pid on the host
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted as runc has it; the guest has no SELinux
    #[arg(long, value_name = "LABEL", hide = true)]
    pub process_label: Option<String>,
    /// Accepted as runc has it; the guest has no AppArmor
    #[arg(long, value_name = "PROFILE", hide = true)]
    pub apparmor: Option<String>,
    /// Keep the process from gaining privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability
    #[arg(short, long, value_name = "NAME")]
    pub cap: Vec<String>,
    /// Accepted as runc has it; descriptors of the host stay there
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub preserve_fds: u32,
    /// Sub-cgroup to run in; only the container's own
    #[arg(long, value_name = "CGROUP", hide = true)]
    pub cgroup: Vec<String>,
    /// Accept a container that is paused
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container, the program and its arguments
    #[arg(value_name = "ID [COMMAND]", trailing_var_arg = true, required = true)]
    pub words: Vec<OsString>,
}

impl ExecArgs {
    /// What they ask of a container below `root`.
    pub fn decide(self, root: PathBuf) -> Result<ExecRequest, String> {
        for (is_there, line) in [
            (
                self.process_label.is_some(),
                "--process-label: the guest has no SELinux",
            ),
            (
                self.apparmor.is_some(),
                "--apparmor: the guest has no AppArmor",
            ),
            (
                self.preserve_fds > 0,
                "--preserve-fds: descriptors of the host stay there",
            ),
        ] {
            if is_there {
                log::warn!("{line}");
            }
        }
        // The container's own, in each of its ways to be written.
        let other = |cgroup: &String| {
            let path = cgroup
                .split_once(':')
                .map_or(cgroup.as_str(), |(_, path)| path);
            !path.bytes().all(|b| b == b'/' || b == b'.')
        };
        if let Some(cgroup) = self.cgroup.iter().find(|c| other(c)) {
            let shown: String = cgroup.chars().take(40).collect();
            return Err(format!(
                "--cgroup {shown:?}: a process runs in its container's own cgroup"
            ));
        }
        let mut words = self.words.into_iter();
        let id = words.next().unwrap_or_default();
        let process = match self.process {
            Some(file) => Asked::File(file),
            None => Asked::Flags(ExecFlags {
                args: words.collect(),
                cwd: self.cwd,
                env: self.env,
                user: self.user,
                additional_gids: self.additional_gids,
                capabilities: self.cap,
                no_new_privileges: self.no_new_privs.then_some(true),
                terminal: self.tty,
            }),
        };
        Ok(ExecRequest {
            root,
            // What is no text is no id either.
            id: id.to_string_lossy().into_owned(),
            process,
            detach: self.detach,
            console_socket: self.console_socket,
            pidfd_socket: self.pidfd_socket,
            pid_file: self.pid_file,
            ignore_paused: self.ignore_paused,
        })
    }
}

/// Runs a process in a container; the exit code is its own.
pub fn run(args: ExecArgs, root: PathBuf) -> ExitCode {
    let request = match args.decide(root) {
        Ok(request) => request,
        Err(line) => return failed(&line),
    };
    match exec::run(&request) {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&chain(&error)),
    }
}

fn failed(line: &str) -> ExitCode {
    tell_line(&format!("exec failed: {line}"));
    ExitCode::from(ExecError::EXIT_CODE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Verb, parse};

    fn typed(words: &[&str]) -> ExecArgs {
        let argv = ["vmrun", "exec"].iter().chain(words);
        let args = parse(argv.map(OsString::from).collect(), |_| false);
        match args.unwrap().verb {
            Verb::Exec(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn flags(words: &[&str]) -> ExecFlags {
        match typed(words).decide("/r".into()).unwrap().process {
            Asked::Flags(flags) => flags,
            Asked::File(file) => panic!("{file:?}"),
        }
    }

    #[test]
    fn what_follows_the_id_is_the_command() {
        let flags = flags(&["-t", "c", "-t", "--env", "x", "ls", "-l", "--", "-d"]);
        assert!(flags.terminal);
        assert_eq!(flags.env, [""; 0]);
        assert_eq!(flags.args, ["-t", "--env", "x", "ls", "-l", "--", "-d"]);
    }

    #[test]
    fn every_flag() {
        let flags = flags(&[
            "--cwd",
            "/w",
            "-e",
            "A=1",
            "--env",
            "B=2",
            "-u",
            "1:2",
            "-g",
            "3",
            "--additional-gids",
            "4",
            "--cap",
            "CAP_CHOWN",
            "--no-new-privs",
            "--process-label",
            "l",
            "--apparmor",
            "p",
            "--preserve-fds",
            "0",
            "--cgroup",
            "/",
            "c",
            "x",
        ]);
        assert_eq!(flags.cwd.as_deref(), Some("/w"));
        assert_eq!(flags.env, ["A=1", "B=2"]);
        assert_eq!(flags.user.as_deref(), Some("1:2"));
        assert_eq!(flags.additional_gids, [3, 4]);
        assert_eq!(flags.capabilities, ["CAP_CHOWN"]);
        assert_eq!(flags.no_new_privileges, Some(true));
        assert!(!flags.terminal);
    }

    #[test]
    fn as_engines_call_it() {
        let request = typed(&[
            "--process",
            "/p",
            "--console-socket",
            "/s",
            "--detach",
            "--pid-file",
            "/f",
            "c",
        ]);
        let request = request.decide("/r".into()).unwrap();
        assert_eq!(request.process, Asked::File("/p".into()));
        assert!(request.detach && !request.ignore_paused);
        assert_eq!(request.console_socket, Some("/s".into()));
        assert_eq!(request.pid_file, Some("/f".into()));
        // conmon-rs.
        let request = typed(&[
            "-d",
            "--console-socket=/s",
            "--tty",
            "--pid-file=/f",
            "c",
            "a",
        ]);
        assert!(request.tty && request.detach);
    }

    #[test]
    fn another_cgroup_is_refused() {
        for cgroup in ["/sub", "cpu:a", "a/../b"] {
            let error = typed(&["--cgroup", cgroup, "c", "x"]).decide("/r".into());
            assert!(error.unwrap_err().contains("own cgroup"), "{cgroup}");
        }
    }
}
