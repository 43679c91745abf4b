//! A further process in a container that runs: from a process.json, or from the
//! flags of `exec` on what the container's own process has.
//!
//! What a process does not say itself it has from the container, as in runc.

use std::ffi::OsString;

use oci_spec::runtime::Process;
use vmrun_protocol::plan::{Bytes, Capabilities, ProcessPlan, WindowSize};

use crate::process::{self, check_id};
use crate::{Container, Error, capabilities, load, text};

/// A process to be made in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FurtherProcess {
    /// For the agent. A terminal has the size that process.json names, if any.
    pub plan: ProcessPlan,
    /// What is accepted and not done, one line each, for the log.
    pub warnings: Vec<String>,
}

/// Checks the text of a process.json: `process` of a config.json by itself.
///
/// Of `container` the process has the seccomp filters and the personality, which
/// are not its own to choose, and what it does not name of capabilities, rlimits,
/// oomScoreAdj, scheduler and ioPriority.
pub fn load_process(json: &[u8], container: &Container) -> Result<FurtherProcess, Error> {
    if json.len() as u64 > load::MAX_BYTES {
        return Err(Error::property(
            "process.json",
            format!("over the limit of {} bytes", load::MAX_BYTES),
        ));
    }
    let mut warnings = Vec::new();
    let process: Process = load::part(json, "process.json", "process", &mut warnings)?;
    let mut plan = process::resolve(&process, &mut warnings)?;
    let of_container = &container.plan.process;
    plan.seccomp.clone_from(&of_container.seccomp);
    plan.personality = of_container.personality;
    plan.capabilities = plan.capabilities.or(of_container.capabilities);
    plan.oom_score_adj = plan.oom_score_adj.or(of_container.oom_score_adj);
    plan.scheduler = plan.scheduler.or(of_container.scheduler);
    plan.io_priority = plan.io_priority.or(of_container.io_priority);
    if plan.rlimits.is_empty() {
        plan.rlimits.clone_from(&of_container.rlimits);
    }
    Ok(FurtherProcess { plan, warnings })
}

/// What was typed after `exec`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecFlags {
    /// The program and its arguments.
    pub args: Vec<OsString>,
    /// `--cwd`.
    pub cwd: Option<String>,
    /// `--env`, each `NAME=value`.
    pub env: Vec<String>,
    /// `--user`: `uid` or `uid:gid`, in numbers.
    pub user: Option<String>,
    /// `--additional-gids`.
    pub additional_gids: Vec<u32>,
    /// `--cap`, each a name.
    pub capabilities: Vec<String>,
    /// `--no-new-privs`; `None` leaves it as the container has it.
    pub no_new_privileges: Option<bool>,
    /// `--tty`.
    pub terminal: bool,
}

/// The container's own process, changed as the flags say.
pub fn process_from_flags(
    flags: &ExecFlags,
    container: &Container,
) -> Result<FurtherProcess, Error> {
    let mut plan = container.plan.process.clone();
    plan.args = args(&flags.args)?;
    if let Some(cwd) = &flags.cwd {
        plan.cwd = text::container_path("--cwd", cwd.as_ref())?;
    }
    plan.env = env(plan.env, &flags.env)?;
    process::check_total("process.args", &plan.args, &plan.env)?;
    if let Some(user) = &flags.user {
        (plan.user.uid, plan.user.gid) = user_and_group(user, plan.user.gid)?;
        plan.user.name = None;
    }
    for &gid in &flags.additional_gids {
        let gid = check_id("--additional-gids", gid)?;
        plan.user.additional_gids.push(gid);
    }
    let groups = plan.user.additional_gids.len();
    text::at_most("--additional-gids", groups, process::MAX_GROUPS)?;
    if !flags.capabilities.is_empty() {
        let sets = plan.capabilities.get_or_insert_default();
        add_capabilities(sets, &flags.capabilities)?;
    }
    plan.no_new_privileges = flags.no_new_privileges.unwrap_or(plan.no_new_privileges);
    plan.terminal = flags.terminal.then(WindowSize::default);
    Ok(FurtherProcess {
        plan,
        warnings: Vec::new(),
    })
}

fn args(typed: &[OsString]) -> Result<Vec<Bytes>, Error> {
    // What is not UTF-8 has no NUL either; it is only checked as if it were.
    let shown: Vec<_> = typed
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    process::args(&shown)?;
    let bytes = |arg: &OsString| arg.as_encoded_bytes().to_vec();
    Ok(typed.iter().map(bytes).collect())
}

/// The container's variables, then those that were typed: the last value counts.
fn env(of_container: Vec<Bytes>, typed: &[String]) -> Result<Vec<Bytes>, Error> {
    let typed = process::variables("--env", typed)?;
    let name = |variable: &[u8]| variable.split(|&b| b == b'=').next().map(<[u8]>::to_vec);
    let replaced: std::collections::HashSet<_> = typed.iter().map(|v| name(v)).collect();
    let mut env = of_container;
    env.retain(|variable| !replaced.contains(&name(variable)));
    env.extend(typed);
    Ok(env)
}

fn user_and_group(typed: &str, gid: u32) -> Result<(u32, u32), Error> {
    let id = |text: &str| {
        let id = text.parse().map_err(|_| {
            Error::property(
                "--user",
                format!("{typed:?} must be uid or uid:gid, in numbers"),
            )
        })?;
        check_id("--user", id)
    };
    match typed.split_once(':') {
        Some((uid, gid)) => Ok((id(uid)?, id(gid)?)),
        None => Ok((id(typed)?, gid)),
    }
}

/// A capability becomes ambient, too, where it is inheritable: else the kernel
/// would not have it (capabilities(7)).
fn add_capabilities(sets: &mut Capabilities, names: &[String]) -> Result<(), Error> {
    for name in names {
        let bit = capabilities::named(name).ok_or_else(|| {
            let shown: String = name.chars().take(40).collect();
            Error::property("--cap", format!("{shown:?} is not a capability"))
        })?;
        sets.bounding |= bit;
        sets.permitted |= bit;
        sets.effective |= bit;
        sets.ambient |= bit & sets.inheritable;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use vmrun_protocol::plan::{Rlimit, Scheduler};

    fn container() -> Container {
        let mut config: Value =
            serde_json::from_str(include_str!("testdata/runc-spec.json")).unwrap();
        config["process"]["user"] =
            json!({"uid": 5, "gid": 6, "username": "www", "additionalGids": [7], "umask": 63});
        config["process"]["oomScoreAdj"] = json!(9);
        config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 1});
        config["process"]["env"] = json!(["PATH=/bin", "TERM=xterm"]);
        config["process"]["capabilities"]["inheritable"] = json!(["CAP_CHOWN"]);
        load::parse(config.to_string().as_bytes()).unwrap()
    }

    fn typed(flags: ExecFlags) -> Result<ProcessPlan, String> {
        process_from_flags(&flags, &container())
            .map(|further| further.plan)
            .map_err(|e| e.to_string())
    }

    fn flags(args: &[&str]) -> ExecFlags {
        ExecFlags {
            args: args.iter().map(OsString::from).collect(),
            ..ExecFlags::default()
        }
    }

    fn loaded(process: Value) -> Result<FurtherProcess, String> {
        load_process(process.to_string().as_bytes(), &container()).map_err(|e| e.to_string())
    }

    #[test]
    fn without_flags_it_is_the_containers_process_with_other_arguments() {
        let plan = typed(flags(&["ls", "-l"])).unwrap();
        let mut expected = container().plan.process;
        expected.args = vec![b"ls".to_vec(), b"-l".to_vec()];
        expected.terminal = None;
        assert_eq!(plan, expected);
    }

    #[test]
    fn every_flag() {
        let plan = typed(ExecFlags {
            args: vec!["x".into()],
            cwd: Some("/tmp".into()),
            env: vec!["A=1".into(), "TERM=dumb".into(), "A=2".into()],
            user: Some("1000:100".into()),
            additional_gids: vec![8],
            capabilities: vec!["CAP_CHOWN".into(), "net_raw".into()],
            no_new_privileges: Some(false),
            terminal: true,
        })
        .unwrap();
        assert_eq!(plan.cwd, b"/tmp");
        assert_eq!(plan.env, [&b"PATH=/bin"[..], b"A=2", b"TERM=dumb"]);
        assert_eq!((plan.user.uid, plan.user.gid), (1000, 100));
        assert_eq!(plan.user.name, None);
        assert_eq!(plan.user.umask, Some(0o77));
        assert_eq!(plan.user.additional_gids, [7, 8]);
        let (before, now) = (
            container().plan.process.capabilities.unwrap(),
            plan.capabilities.unwrap(),
        );
        let added = 1 | 1 << 13;
        assert_eq!(now.bounding, before.bounding | added);
        assert_eq!(now.permitted, before.permitted | added);
        assert_eq!(now.effective, before.effective | added);
        assert_eq!(now.ambient, before.ambient | 1);
        assert_eq!(now.inheritable, before.inheritable);
        assert!(!plan.no_new_privileges);
        assert_eq!(plan.terminal, Some(WindowSize::default()));
    }

    #[test]
    fn a_user_alone_keeps_the_group() {
        let plan = typed(ExecFlags {
            user: Some("9".into()),
            ..flags(&["x"])
        })
        .unwrap();
        assert_eq!((plan.user.uid, plan.user.gid), (9, 6));
    }

    #[test]
    fn flags_that_cannot_be() {
        let with = |change: fn(&mut ExecFlags)| {
            let mut flags = flags(&["x"]);
            change(&mut flags);
            typed(flags).unwrap_err()
        };
        assert_eq!(with(|f| f.args.clear()), "process.args: must not be empty");
        assert_eq!(
            with(|f| f.cwd = Some("tmp".into())),
            "--cwd: must be an absolute path"
        );
        assert_eq!(
            with(|f| f.env = vec!["A".into()]),
            "--env[0]: must be NAME=value"
        );
        for user in ["www", "1:", ":1", "1:2:3", "-1", "4294967296", ""] {
            let mut flags = flags(&["x"]);
            flags.user = Some(user.into());
            let message = typed(flags).unwrap_err();
            assert!(message.starts_with("--user: "), "{message}");
        }
        assert_eq!(
            with(|f| f.user = Some("4294967295".into())),
            "--user: 4294967295 is not an id"
        );
        assert_eq!(
            with(|f| f.capabilities = vec!["CAP_FLY".into()]),
            "--cap: \"CAP_FLY\" is not a capability"
        );
        assert_eq!(
            with(|f| f.additional_gids = vec![1; 65_536]),
            "--additional-gids: has 65537 entries, more than 65536"
        );
    }

    #[test]
    fn a_process_file_falls_back_on_the_container() {
        let further = loaded(json!({"user": {"uid": 1}, "args": ["x"], "cwd": "/"})).unwrap();
        let (plan, of_container) = (further.plan, container().plan.process);
        assert_eq!(further.warnings, [""; 0]);
        assert_eq!((plan.user.uid, plan.user.gid), (1, 0));
        assert_eq!(plan.user.name, None);
        assert_eq!(plan.env, [b""; 0]);
        assert!(!plan.no_new_privileges);
        assert_eq!(plan.rlimits, of_container.rlimits);
        assert_eq!(plan.capabilities, of_container.capabilities);
        assert_eq!(plan.oom_score_adj, Some(9));
        assert_eq!(plan.io_priority, Some(2 << 13 | 1));
    }

    #[test]
    fn what_a_process_file_names_is_its_own() {
        let further = loaded(json!({
            "user": {"uid": 1}, "args": ["x"], "cwd": "/", "terminal": true,
            "consoleSize": {"height": 2, "width": 3}, "oomScoreAdj": 0,
            "capabilities": {}, "apparmorProfile": "docker-default",
            "rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 2}],
            "scheduler": {"policy": "SCHED_BATCH"}
        }))
        .unwrap();
        let plan = further.plan;
        assert_eq!(
            plan.terminal,
            Some(WindowSize {
                rows: 2,
                columns: 3
            })
        );
        assert_eq!(plan.oom_score_adj, Some(0));
        assert_eq!(plan.capabilities, Some(Capabilities::default()));
        let limit = Rlimit {
            resource: libc::RLIMIT_CPU,
            soft: 1,
            hard: 2,
        };
        assert_eq!(plan.rlimits, [limit]);
        let batch = Scheduler {
            policy: 3,
            ..Scheduler::default()
        };
        assert_eq!(plan.scheduler, Some(batch));
        assert_eq!(further.warnings.len(), 1, "{:?}", further.warnings);
    }

    #[test]
    fn process_files_that_are_none() {
        for (json, message) in [
            (
                json!({"user": {}, "cwd": "/"}),
                "process.args: must not be empty",
            ),
            (
                json!({"user": {}, "cwd": "", "args": ["x"]}),
                "process.cwd: must not be empty",
            ),
            (json!([1]), "process.json: [0]"),
            (
                json!({"user": {}, "cwd": "/", "args": [1]}),
                "process.json: args[0]",
            ),
        ] {
            assert_eq!(loaded(json), Err(message.to_owned()));
        }
    }

    #[test]
    fn capabilities_nobody_knows_are_left_out() {
        let further = loaded(
            json!({"user": {}, "args": ["x"], "cwd": "/", "capabilities":
            {"bounding": ["CAP_CHOWN", "CAP_FLY"]}}),
        )
        .unwrap();
        assert_eq!(further.plan.capabilities.unwrap().bounding, 1);
        assert_eq!(
            further.warnings,
            ["process.capabilities.bounding: 1 not known and left out: \"CAP_FLY\""]
        );
    }
}
