//! `hooks` (config.md, "POSIX-platform Hooks").

use std::path::PathBuf;

use oci_spec::runtime::{Hook as SpecHook, Hooks as SpecHooks};
use serde::{Deserialize, Serialize};
use vmrun_protocol::plan::{Bytes, Hook};

use crate::{Error, process, text};

/// Most hooks of one kind.
const MAX_HOOKS: usize = 64;

/// Hooks that run on the host, in the order of their lists. Each gets the
/// container's state on its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostHooks {
    /// `prestart`: within create, before [`Self::create_runtime`].
    pub prestart: Vec<HostHook>,
    /// `createRuntime`: within create, once the namespaces are made.
    pub create_runtime: Vec<HostHook>,
    /// `poststart`: after start; a failure is an error that ends the container.
    pub poststart: Vec<HostHook>,
    /// `poststop`: after delete; a failure is a warning.
    pub poststop: Vec<HostHook>,
}

/// A program of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHook {
    /// Absolute path on the host.
    pub path: PathBuf,
    /// Arguments, the program's name among them; if empty, there is just `path`.
    pub args: Vec<String>,
    /// `NAME=value` strings, the whole environment; `None` is the caller's own, as
    /// runc has it.
    pub env: Option<Vec<String>>,
    /// After which it is killed and has failed, in seconds, at least 1.
    pub timeout_s: Option<u32>,
}

/// Hooks of both sides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// Of the host.
    pub host: HostHooks,
    /// `startContainer`, for the agent; what they read is still missing.
    pub start_container: Vec<Hook>,
}

/// Resolves all lists. `createContainer` is refused by the table of properties.
pub fn resolve(hooks: Option<&SpecHooks>) -> Result<Hooks, Error> {
    let Some(hooks) = hooks else {
        return Ok(Hooks::default());
    };
    let host = HostHooks {
        prestart: list("prestart", prestart(hooks), host_hook)?,
        create_runtime: list("createRuntime", hooks.create_runtime(), host_hook)?,
        poststart: list("poststart", hooks.poststart(), host_hook)?,
        poststop: list("poststop", hooks.poststop(), host_hook)?,
    };
    let start_container = list("startContainer", hooks.start_container(), guest_hook)?;
    Ok(Hooks {
        host,
        start_container,
    })
}

/// Deprecated, and what Docker's network is set up by.
#[allow(deprecated)]
fn prestart(hooks: &SpecHooks) -> &Option<Vec<SpecHook>> {
    hooks.prestart()
}

fn list<T>(
    kind: &str,
    hooks: &Option<Vec<SpecHook>>,
    one: fn(&str, &SpecHook) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let hooks = hooks.as_deref().unwrap_or_default();
    let path = format!("hooks.{kind}");
    text::at_most(&path, hooks.len(), MAX_HOOKS)?;
    let numbered = hooks.iter().enumerate();
    numbered
        .map(|(i, hook)| one(&format!("{path}[{i}]"), hook))
        .collect()
}

fn host_hook(path: &str, hook: &SpecHook) -> Result<HostHook, Error> {
    let (args, env) = strings(path, hook)?;
    text::absolute_path(&format!("{path}.path"), hook.path())?;
    let plain = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
    let env: Vec<String> = env.into_iter().map(plain).collect();
    Ok(HostHook {
        path: hook.path().clone(),
        args: args.into_iter().map(plain).collect(),
        env: hook.env().as_ref().map(|_| env),
        timeout_s: timeout_s(path, hook)?,
    })
}

fn guest_hook(path: &str, hook: &SpecHook) -> Result<Hook, Error> {
    let (mut args, env) = strings(path, hook)?;
    let program = text::container_path(&format!("{path}.path"), hook.path())?;
    if args.is_empty() {
        args.push(program.clone());
    }
    Ok(Hook {
        path: program,
        args,
        env,
        stdin: Bytes::new(),
        timeout_s: timeout_s(path, hook)?,
    })
}

fn strings(path: &str, hook: &SpecHook) -> Result<(Vec<Bytes>, Vec<Bytes>), Error> {
    let args = hook.args().as_deref().unwrap_or_default();
    let args = process::strings(&format!("{path}.args"), args)?;
    let env = hook.env().as_deref().unwrap_or_default();
    let env = process::variables(&format!("{path}.env"), env)?;
    process::check_total(&format!("{path}.args"), &args, &env)?;
    Ok((args, env))
}

fn timeout_s(path: &str, hook: &SpecHook) -> Result<Option<u32>, Error> {
    match hook.timeout() {
        None => Ok(None),
        Some(s) if s > 0 => Ok(Some(u32::try_from(s).unwrap_or(u32::MAX))),
        Some(_) => {
            let path = format!("{path}.timeout");
            Err(Error::property(path, "must be more than 0"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resolved(hooks: Value) -> Result<Hooks, String> {
        let hooks: SpecHooks = serde_json::from_value(hooks).unwrap();
        resolve(Some(&hooks)).map_err(|e| e.to_string())
    }

    #[test]
    fn each_list_to_its_side() {
        let hook =
            |path: &str| json!([{"path": path, "args": ["a", ""], "env": ["A=b"], "timeout": 3}]);
        let hooks = resolved(json!({
            "prestart": hook("/1"), "createRuntime": hook("/2"), "startContainer": hook("/3"),
            "poststart": hook("/4"), "poststop": [{"path": "/5"}, {"path": "/6"}]
        }))
        .unwrap();
        assert_eq!(
            hooks.host.prestart,
            [HostHook {
                path: "/1".into(),
                args: vec!["a".into(), String::new()],
                env: Some(vec!["A=b".into()]),
                timeout_s: Some(3),
            }]
        );
        assert_eq!(hooks.host.create_runtime[0].path, PathBuf::from("/2"));
        assert_eq!(hooks.host.poststart[0].path, PathBuf::from("/4"));
        assert_eq!(hooks.host.poststop[1].path, PathBuf::from("/6"));
        assert_eq!(hooks.host.poststop[0].env, None);
        assert_eq!(
            hooks.start_container,
            [Hook {
                path: b"/3".to_vec(),
                args: vec![b"a".to_vec(), vec![]],
                env: vec![b"A=b".to_vec()],
                stdin: vec![],
                timeout_s: Some(3),
            }]
        );
    }

    #[test]
    fn they_come_back_from_the_state() {
        let hooks = resolved(json!({"poststop": [{"path": "/5", "env": []}]})).unwrap();
        let text = serde_json::to_string(&hooks.host).unwrap();
        assert_eq!(
            serde_json::from_str::<HostHooks>(&text).unwrap(),
            hooks.host
        );
    }

    #[test]
    fn refusals() {
        for (hooks, message) in [
            (
                json!({"prestart": [{"path": "bin/x"}]}),
                "hooks.prestart[0].path: must be an absolute path",
            ),
            (
                json!({"poststop": [{"path": "/x"}, {"path": "/x", "timeout": 0}]}),
                "hooks.poststop[1].timeout: must be more than 0",
            ),
            (
                json!({"startContainer": [{"path": "/x", "env": ["A"]}]}),
                "hooks.startContainer[0].env[0]: must be NAME=value",
            ),
            (
                json!({"createRuntime": [{"path": "/x", "args": ["a\0"]}]}),
                "hooks.createRuntime[0].args[0]: must not contain a NUL character",
            ),
            (
                json!({"poststart": vec![json!({"path": "/x"}); 65]}),
                "hooks.poststart: has 65 entries, more than 64",
            ),
        ] {
            assert_eq!(resolved(hooks), Err(message.to_owned()));
        }
    }
}
