//! `process` (config.md, "Process").

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use oci_spec::runtime::{Process, User as SpecUser};
use vmrun_protocol::plan::{Bytes, ProcessPlan, User, WindowSize};

use crate::{Error, capabilities, rlimits, scheduling, text};

/// Longest argument or variable that execve(2) takes (`MAX_ARG_STRLEN`), with its NUL.
const MAX_STRING_BYTES: usize = 128 << 10;

/// What execve(2) takes of arguments and environment together with the usual
/// stack of 8 MiB: a quarter of it.
const MAX_STRINGS_BYTES: usize = 2 << 20;

/// `NGROUPS_MAX`.
pub(crate) const MAX_GROUPS: usize = 65_536;

/// Resolves `process`. Its terminal gets the size that config.json names.
pub fn resolve(process: &Process, warnings: &mut Vec<String>) -> Result<ProcessPlan, Error> {
    let args = args(process.args().as_deref().unwrap_or_default())?;
    let env = variables("process.env", process.env().as_deref().unwrap_or_default())?;
    check_total("process.args", &args, &env)?;
    Ok(ProcessPlan {
        args,
        env,
        cwd: text::container_path("process.cwd", process.cwd())?,
        terminal: terminal(process)?,
        user: user(process.user())?,
        capabilities: process
            .capabilities()
            .as_ref()
            .map(|sets| capabilities::resolve(sets, warnings)),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: oom_score_adj(process)?,
        rlimits: rlimits::resolve(process.rlimits().as_deref().unwrap_or_default())?,
        scheduler: scheduling::scheduler(process.scheduler().as_ref())?,
        io_priority: scheduling::io_priority(process.io_priority().as_ref())?,
        ..ProcessPlan::default()
    })
}

/// Each string costs a pointer and its NUL as well.
pub(crate) fn check_total(path: &str, args: &[Bytes], env: &[Bytes]) -> Result<(), Error> {
    let total: usize = args.iter().chain(env).map(|s| s.len() + 9).sum();
    if total > MAX_STRINGS_BYTES {
        let problem = format!("with env takes {total} bytes, over {MAX_STRINGS_BYTES}");
        return Err(Error::property(path, problem));
    }
    Ok(())
}

/// Checks `process.args`.
pub(crate) fn args(args: &[String]) -> Result<Vec<Bytes>, Error> {
    if args.is_empty() {
        return Err(Error::property("process.args", "must not be empty"));
    }
    if args.first().is_some_and(String::is_empty) {
        return Err(Error::property("process.args[0]", "must not be empty"));
    }
    strings("process.args", args)
}

/// Checks a list of `NAME=value`. Of variables that are there twice the last value
/// counts, as in runc, which sets them one by one.
pub(crate) fn variables(path: &str, env: &[String]) -> Result<Vec<Bytes>, Error> {
    if let Some(i) = env
        .iter()
        .position(|e| e.find('=').is_none_or(|at| at == 0))
    {
        let path = format!("{path}[{i}]");
        return Err(Error::property(path, "must be NAME=value"));
    }
    let mut places = HashMap::new();
    let mut unique: Vec<Bytes> = Vec::new();
    for (variable, text) in strings(path, env)?.into_iter().zip(env) {
        let name = text.split('=').next();
        match places.entry(name) {
            Entry::Occupied(place) => unique[*place.get()] = variable,
            Entry::Vacant(place) => {
                place.insert(unique.len());
                unique.push(variable);
            }
        }
    }
    Ok(unique)
}

/// Checks a list of strings for execve(2).
pub(crate) fn strings(path: &str, strings: &[String]) -> Result<Vec<Bytes>, Error> {
    let string = |(i, string): (usize, &String)| {
        let path = format!("{path}[{i}]");
        if string.len() >= MAX_STRING_BYTES {
            let problem = format!("is not shorter than {MAX_STRING_BYTES} bytes");
            return Err(Error::property(path, problem));
        }
        text::bytes(&path, string)
    };
    strings.iter().enumerate().map(string).collect()
}

fn terminal(process: &Process) -> Result<Option<WindowSize>, Error> {
    if !process.terminal().unwrap_or(false) {
        return Ok(None);
    }
    let Some(size) = process.console_size() else {
        return Ok(Some(WindowSize::default()));
    };
    let side = |name: &str, value: u64| {
        u16::try_from(value).map_err(|_| {
            let problem = format!("must be at most {}", u16::MAX);
            Error::property(format!("process.consoleSize.{name}"), problem)
        })
    };
    Ok(Some(WindowSize {
        rows: side("height", size.height())?,
        columns: side("width", size.width())?,
    }))
}

fn user(user: &SpecUser) -> Result<User, Error> {
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    text::at_most("process.user.additionalGids", groups.len(), MAX_GROUPS)?;
    let name = match user.username().as_deref() {
        Some(name) if !name.is_empty() => Some(username(name)?),
        _ => None,
    };
    for (i, &gid) in groups.iter().enumerate() {
        check_id(&format!("process.user.additionalGids[{i}]"), gid)?;
    }
    Ok(User {
        name,
        uid: check_id("process.user.uid", user.uid())?,
        gid: check_id("process.user.gid", user.gid())?,
        additional_gids: groups.to_vec(),
        umask: match user.umask() {
            Some(mask) if mask > 0o777 => {
                let problem = format!("must be at most {}", 0o777);
                return Err(Error::property("process.user.umask", problem));
            }
            mask => mask,
        },
    })
}

/// A name that /etc/passwd can hold.
fn username(name: &str) -> Result<Bytes, Error> {
    let path = "process.user.username";
    if name.len() > 256 || name.contains([':', '\n']) {
        return Err(Error::property(path, "is not a user name"));
    }
    text::bytes(path, name)
}

/// (uid_t)-1 means "leave it as it is" to setresuid(2) and chown(2).
pub(crate) fn check_id(path: &str, id: u32) -> Result<u32, Error> {
    if id == u32::MAX {
        return Err(Error::property(path, format!("{id} is not an id")));
    }
    Ok(id)
}

fn oom_score_adj(process: &Process) -> Result<Option<i32>, Error> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => {
            let problem = "must be -1000 to 1000";
            Err(Error::property("process.oomScoreAdj", problem))
        }
        score => Ok(score),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resolved(change: Value) -> Result<ProcessPlan, String> {
        let mut process = json!({
            "user": {"uid": 0, "gid": 0}, "args": ["true"], "env": ["A=b"], "cwd": "/"
        });
        for (key, value) in change.as_object().unwrap() {
            process[key] = value.clone();
        }
        let process = serde_json::from_value(process).unwrap();
        resolve(&process, &mut Vec::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn whole() {
        let plan = resolved(json!({
            "args": ["sh", "-c", ""], "env": ["A=", "B=1=2"], "cwd": "/tmp",
            "terminal": true, "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]},
            "noNewPrivileges": true, "oomScoreAdj": -5
        }))
        .unwrap();
        assert_eq!(plan.args, [b"sh".to_vec(), b"-c".to_vec(), vec![]]);
        assert_eq!(plan.env, [b"A=".to_vec(), b"B=1=2".to_vec()]);
        let size = WindowSize {
            rows: 24,
            columns: 80,
        };
        assert_eq!(plan.terminal, Some(size));
        assert_eq!((plan.user.uid, plan.user.gid), (1, 2));
        assert_eq!(plan.user.umask, Some(0o22));
        assert_eq!(plan.oom_score_adj, Some(-5));
        assert!(plan.no_new_privileges);
        assert_eq!(plan.capabilities, None);
    }

    #[test]
    fn size_without_terminal_is_no_terminal() {
        let change = json!({"consoleSize": {"height": 24, "width": 80}});
        assert_eq!(resolved(change).unwrap().terminal, None);
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let plan = resolved(json!({"env": ["A=1", "B=2", "A=3", "AA=4"]})).unwrap();
        let expected = [&b"A=3"[..], b"B=2", b"AA=4"];
        assert_eq!(plan.env, expected);
    }

    #[test]
    fn user_name() {
        let change = json!({"user": {"uid": 0, "gid": 0, "username": "www-data"}});
        let user = resolved(change).unwrap().user;
        assert_eq!(user.name, Some(b"www-data".to_vec()));
    }

    #[test]
    fn refusals() {
        let long = "a".repeat(128 << 10);
        let many = vec!["a".repeat(100_000); 22];
        for (change, message) in [
            (json!({"args": []}), "process.args: must not be empty"),
            (json!({"args": null}), "process.args: must not be empty"),
            (json!({"args": [""]}), "process.args[0]: must not be empty"),
            (
                json!({"args": ["a", "b\0c"]}),
                "process.args[1]: must not contain a NUL character",
            ),
            (
                json!({"args": [long]}),
                "process.args[0]: is not shorter than 131072 bytes",
            ),
            (
                json!({"args": many}),
                "process.args: with env takes 2200210 bytes, over 2097152",
            ),
            (
                json!({"env": ["A=1", "B"]}),
                "process.env[1]: must be NAME=value",
            ),
            (json!({"env": ["=x"]}), "process.env[0]: must be NAME=value"),
            (
                json!({"env": ["A=\0"]}),
                "process.env[0]: must not contain a NUL character",
            ),
            (
                json!({"cwd": "tmp"}),
                "process.cwd: must be an absolute path",
            ),
            (json!({"cwd": ""}), "process.cwd: must not be empty"),
            (
                json!({"terminal": true, "consoleSize": {"height": 65536, "width": 1}}),
                "process.consoleSize.height: must be at most 65535",
            ),
            (
                json!({"user": {"uid": 4294967295u32, "gid": 0}}),
                "process.user.uid: 4294967295 is not an id",
            ),
            (
                json!({"user": {"uid": 0, "gid": 0, "umask": 512}}),
                "process.user.umask: must be at most 511",
            ),
            (
                json!({"user": {"uid": 0, "gid": 0, "username": "a:b"}}),
                "process.user.username: is not a user name",
            ),
            (
                json!({"oomScoreAdj": 1001}),
                "process.oomScoreAdj: must be -1000 to 1000",
            ),
        ] {
            assert_eq!(resolved(change).unwrap_err(), message);
        }
    }
}
