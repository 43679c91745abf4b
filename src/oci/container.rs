//! A config.json, checked and resolved.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxPersonality, LinuxPersonalityDomain, Spec};
use vmrun_protocol::plan::{Bytes, ContainerPlan, namespace};

use crate::hooks::HostHooks;
use crate::host_limits::{self, HostLimits};
use crate::mounts::{self, Mount};
use crate::{
    Error, devices, hooks, id_mappings, mount_options, namespaces, process, resources, seccomp,
    sysctl, text, time_offsets, version,
};

const MAX_PATHS: usize = 1024;

/// `__NEW_UTS_LEN`.
const MAX_HOST_NAME_BYTES: usize = 64;

/// Of linux/personality.h.
const PER_LINUX32: u32 = 8;

/// What a bundle asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// `root.path`, relative to the bundle or absolute.
    pub root_path: PathBuf,
    /// `mounts`, in order.
    pub mounts: Vec<Mount>,
    /// `linux.resources.memory.limit`, when there is one.
    pub memory_limit_bytes: Option<u64>,
    /// `linux.resources.cpu.cpus`: the CPUs of the host to run on.
    pub host_cpus: Option<Vec<usize>>,
    /// What `linux.resources` asks of the machine's cgroup on the host.
    pub host_limits: HostLimits,
    /// `linux.cgroupsPath`, if there is one: see the runtime's `host_cgroup`.
    pub cgroups_path: Option<String>,
    /// Network namespace of the host that the machine is to be in, by its path; else
    /// one of its own.
    pub network_namespace: Option<PathBuf>,
    /// `hooks` that run on the host.
    pub hooks: HostHooks,
    /// `annotations`, for the state: nothing of a machine can be set by them.
    pub annotations: BTreeMap<String, String>,
    /// Everything that only the guest needs. Its mounts are still missing: they
    /// name exports, which the runtime opens.
    pub plan: ContainerPlan,
    /// What is accepted and not done, one line each, for the log.
    pub warnings: Vec<String>,
}

/// Resolves all sections.
pub fn resolve(spec: &Spec, mut warnings: Vec<String>) -> Result<Container, Error> {
    version::check(spec.version())?;
    let root = spec.root().as_ref();
    let root = root.ok_or_else(|| Error::property("root", "must be present"))?;
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| Error::property("process", "must be present"))?;
    let no_linux = empty_linux();
    let linux = spec.linux().as_ref().unwrap_or(&no_linux);

    let root_path = root_path(root.path())?;
    let mut process = process::resolve(process, &mut warnings)?;
    process.personality = linux.personality().as_ref().map(personality);
    process.seccomp = seccomp::resolve(linux.seccomp().as_ref())?;
    let hooks = hooks::resolve(spec.hooks().as_ref())?;
    let mounts = mounts::resolve(spec.mounts().as_deref().unwrap_or_default())?;
    let listed = namespaces::resolve(linux.namespaces().as_deref().unwrap_or_default())?;
    let namespaces = listed.bits;
    let (uid_mappings, gid_mappings) = id_mappings::resolve(linux, namespaces)?;
    let no_offsets = HashMap::new();
    let time_offsets = linux.time_offsets().as_ref().unwrap_or(&no_offsets);
    let no_sysctl = HashMap::new();
    let no_resources = Default::default();
    let asked = linux.resources().as_ref().unwrap_or(&no_resources);
    let resources = resources::resolve(asked, None)?;
    Ok(Container {
        root_path,
        mounts,
        memory_limit_bytes: resources.memory_limit_bytes,
        host_cpus: resources.host_cpus,
        host_limits: resources.host_limits,
        cgroups_path: host_limits::cgroups_path(linux.cgroups_path().as_deref())?,
        network_namespace: listed.network_path,
        hooks: hooks.host,
        annotations: annotations(spec),
        plan: ContainerPlan {
            root_readonly: root.readonly().unwrap_or(false),
            root_propagation: root_propagation(linux)?,
            hostname: host_name("hostname", spec.hostname(), namespaces)?,
            domainname: host_name("domainname", spec.domainname(), namespaces)?,
            namespaces,
            uid_mappings,
            gid_mappings,
            mounts: Vec::new(),
            masked_paths: paths("linux.maskedPaths", linux.masked_paths())?,
            readonly_paths: paths("linux.readonlyPaths", linux.readonly_paths())?,
            sysctl: sysctl::resolve(linux.sysctl().as_ref().unwrap_or(&no_sysctl), namespaces)?,
            devices: devices::nodes(linux.devices().as_deref().unwrap_or_default())?,
            device_rules: devices::rules(asked.devices().as_deref().unwrap_or_default())?,
            cgroup_writes: resources.cgroup_writes,
            time_offsets: time_offsets::resolve(time_offsets, namespaces)?,
            start_container_hooks: hooks.start_container,
            process,
        },
        warnings,
    })
}

/// `Linux::default()` is full of things that nobody asked for.
fn empty_linux() -> Linux {
    let mut linux = Linux::default();
    linux
        .set_namespaces(None)
        .set_resources(None)
        .set_masked_paths(None)
        .set_readonly_paths(None);
    linux
}

fn root_path(path: &std::path::Path) -> Result<PathBuf, Error> {
    let text = text::bytes("root.path", path.to_str().unwrap_or_default())?;
    if text.is_empty() {
        return Err(Error::property("root.path", "must not be empty"));
    }
    Ok(path.to_path_buf())
}

fn annotations(spec: &Spec) -> BTreeMap<String, String> {
    let pairs = spec.annotations().iter().flatten();
    pairs.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The number of personality(2): it changes what uname(2) says of the machine.
fn personality(asked: &LinuxPersonality) -> u32 {
    match asked.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    }
}

/// Private is what the guest's own mounts are; runc's default of slave means the
/// same where nothing is shared.
fn root_propagation(linux: &Linux) -> Result<u64, Error> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(libc::MS_PRIVATE | libc::MS_REC),
        Some(word) => mount_options::propagation(word).ok_or_else(|| {
            let path = "linux.rootfsPropagation";
            Error::property(
                path,
                "must be [r]shared, [r]slave, [r]private or [r]unbindable",
            )
        }),
    }
}

fn host_name(path: &str, name: &Option<String>, namespaces: u64) -> Result<Option<Bytes>, Error> {
    let Some(name) = name.as_deref().filter(|n| !n.is_empty()) else {
        return Ok(None);
    };
    if namespaces & namespace::UTS == 0 {
        let problem = "needs an entry of type uts in linux.namespaces";
        return Err(Error::property(path, problem));
    }
    if name.len() > MAX_HOST_NAME_BYTES {
        let problem = format!("is longer than {MAX_HOST_NAME_BYTES} bytes");
        return Err(Error::property(path, problem));
    }
    text::bytes(path, name).map(Some)
}

fn paths(path: &str, list: &Option<Vec<String>>) -> Result<Vec<Bytes>, Error> {
    let list = list.as_deref().unwrap_or_default();
    text::at_most(path, list.len(), MAX_PATHS)?;
    let one = |(i, entry): (usize, &String)| {
        text::container_path(&format!("{path}[{i}]"), entry.as_ref())
    };
    list.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::parse;
    use serde_json::{Value, json};
    use vmrun_protocol::plan::{FsType, WindowSize};

    /// What `runc spec` of runc 1.1 writes.
    const RUNC_SPEC: &str = include_str!("testdata/runc-spec.json");

    fn changed(path: &[&str], value: Value) -> Result<Container, String> {
        let mut config: Value = serde_json::from_str(RUNC_SPEC).unwrap();
        let mut at = &mut config;
        for key in path {
            at = match key.parse::<usize>() {
                Ok(i) => &mut at[i],
                Err(_) => &mut at[key],
            };
        }
        *at = value;
        parse(config.to_string().as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_runc_writes_is_enforced_in_full() {
        let container = parse(RUNC_SPEC.as_bytes()).unwrap();
        let plan = &container.plan;
        assert_eq!(container.root_path, PathBuf::from("rootfs"));
        assert!(plan.root_readonly);
        assert_eq!(plan.hostname.as_deref(), Some(&b"runc"[..]));
        assert_eq!(plan.process.args, [b"sh".to_vec()]);
        assert_eq!(plan.process.terminal, Some(WindowSize::default()));
        assert!(plan.process.no_new_privileges);
        assert_eq!(plan.process.rlimits.len(), 1);
        let sets = plan.process.capabilities.unwrap();
        assert_eq!(sets.bounding, 1 << 29 | 1 << 5 | 1 << 10);
        assert_eq!(sets.permitted, sets.bounding);
        // runc spec asks for ambient capabilities that are not inheritable.
        assert_eq!((sets.inheritable, sets.ambient), (0, 0));
        assert_eq!(plan.masked_paths.len(), 10);
        assert_eq!(plan.readonly_paths.len(), 5);
        assert_eq!(container.mounts.len(), 7);
        let mounts::Source::FileSystem { fs_type, .. } = &container.mounts[6].source else {
            panic!("cgroup is a file system");
        };
        assert_eq!(*fs_type, FsType::Cgroup2);
        assert!(!plan.device_rules[0].allow);
        assert_eq!(container.warnings.len(), 1, "{:?}", container.warnings);
    }

    #[test]
    fn a_config_without_linux_has_no_defaults_of_ours() {
        assert_eq!(
            changed(&["linux"], Value::Null).unwrap_err(),
            "linux.namespaces: must have an entry of type mount: a machine cannot share the host's"
        );
    }

    #[test]
    fn refusals() {
        let long = "h".repeat(65);
        for (path, value, message) in [
            (
                &["ociVersion"][..],
                json!("2.0.0"),
                "ociVersion: \"2.0.0\" is not supported, only 1.0 to 1.3",
            ),
            (&["root"], Value::Null, "root: must be present"),
            (&["root", "path"], json!(""), "root.path: must not be empty"),
            (
                &["root", "path"],
                json!("a\0"),
                "root.path: must not contain a NUL character",
            ),
            (&["process"], Value::Null, "process: must be present"),
            (
                &["process", "args"],
                json!([]),
                "process.args: must not be empty",
            ),
            (
                &["mounts", "3", "destination"],
                json!("dev/shm"),
                "mounts[3].destination: must be an absolute path",
            ),
            (
                &["linux", "namespaces", "2", "path"],
                json!("/proc/1/ns/ipc"),
                "linux.namespaces[2].path: cannot be joined: a namespace of the host is not in \
                 the machine, and no two containers share one",
            ),
            (
                &["linux", "seccomp"],
                json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
                "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY is not supported: no program of \
                 the host can look into the guest",
            ),
            (
                &["linux", "seccomp"],
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}),
                "linux.seccomp.listenerPath: not supported: no program of the host can look into \
                 the guest",
            ),
            (
                &["linux", "rootfsPropagation"],
                json!("open"),
                "linux.rootfsPropagation: must be [r]shared, [r]slave, [r]private or [r]unbindable",
            ),
            (
                &["linux", "maskedPaths", "0"],
                json!("proc"),
                "linux.maskedPaths[0]: must be an absolute path",
            ),
            (
                &["hostname"],
                json!(long),
                "hostname: is longer than 64 bytes",
            ),
            (
                &["hooks"],
                json!({"createContainer": [{"path": "/bin/true"}]}),
                "hooks.createContainer: not supported: its programs are the host's and its \
                 namespaces the guest's",
            ),
            (
                &["linux", "uidMappings"],
                json!([{"containerID": 0, "hostID": 1, "size": 1}]),
                "linux.uidMappings: needs an entry of type user in linux.namespaces",
            ),
        ] {
            assert_eq!(changed(path, value).unwrap_err(), message);
        }
    }

    #[test]
    fn what_the_runtime_keeps() {
        let kept = changed(&["annotations"], json!({"a.b": "c"})).unwrap();
        assert_eq!(kept.annotations.get("a.b").unwrap(), "c");
        let path = json!("/proc/7/ns/net");
        let kept = changed(&["linux", "namespaces", "1", "path"], path).unwrap();
        assert_eq!(kept.network_namespace, Some("/proc/7/ns/net".into()));
        let hooks = json!({"poststop": [{"path": "/p"}], "startContainer": [{"path": "/s"}]});
        let kept = changed(&["hooks"], hooks).unwrap();
        assert_eq!(kept.hooks.poststop.len(), 1);
        assert_eq!(kept.plan.start_container_hooks[0].args, [b"/s"]);
        let kept = changed(&["linux", "cgroupsPath"], json!("a:b:c")).unwrap();
        assert_eq!(kept.cgroups_path.as_deref(), Some("a:b:c"));
    }

    #[test]
    fn personalities() {
        let of =
            |value| changed(&["linux", "personality"], value).map(|c| c.plan.process.personality);
        assert_eq!(of(json!({"domain": "LINUX"})), Ok(Some(0)));
        assert_eq!(of(json!({"domain": "LINUX32"})), Ok(Some(8)));
        assert_eq!(of(Value::Null), Ok(None));
        assert_eq!(
            of(json!({"domain": "LINUX", "flags": ["X"]})),
            Err(
                "linux.personality.flags: not supported: the specification has none yet".to_owned()
            )
        );
    }

    #[test]
    fn propagation_words() {
        let of = |word| changed(&["linux", "rootfsPropagation"], json!(word)).unwrap();
        let default = libc::MS_PRIVATE | libc::MS_REC;
        assert_eq!(of("").plan.root_propagation, default);
        assert_eq!(of("slave").plan.root_propagation, libc::MS_SLAVE);
    }
}
