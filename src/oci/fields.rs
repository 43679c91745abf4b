//! What vmrun does with every property of the runtime-spec 1.3: the one table
//! that validation walks and docs/oci.md repeats (a test compares them).

use serde_json::Value;

use crate::Error;

/// What happens to a property that is there and asks for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It is done, there.
    Enforced(Place),
    /// The container is refused, naming the property.
    Refused,
    /// Nothing is done, and nothing is missing for it.
    Accepted,
    /// Nothing is done; a warning goes to the log.
    Warned,
}

/// Who sees to a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The guest's kernel, inside the machine.
    Guest,
    /// The host, whatever the guest tries.
    Host,
    /// Both of them.
    Both,
}

impl Treatment {
    /// As docs/oci.md and `vmrun explain` have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Enforced(Place::Guest) => "guest",
            Self::Enforced(Place::Host) => "host",
            Self::Enforced(Place::Both) => "host and guest",
            Self::Refused => "refused",
            Self::Accepted => "accepted",
            Self::Warned => "warned",
        }
    }
}

/// One property.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// JSON path; `[]` stands for every entry of a list, and a map whose members
    /// are not listed is treated as a whole.
    pub path: &'static str,
    /// What happens to it.
    pub treatment: Treatment,
    /// How it is enforced, or why not, in a few words.
    pub note: &'static str,
}

impl Field {
    /// The property's row in docs/oci.md.
    pub fn doc_row(&self) -> String {
        let word = self.treatment.word();
        format!("| `{}` | {word} | {} |", self.path, self.note)
    }

    const fn new(path: &'static str, treatment: Treatment, note: &'static str) -> Self {
        Self {
            path,
            treatment,
            note,
        }
    }
}

const fn guest(path: &'static str, note: &'static str) -> Field {
    Field::new(path, Treatment::Enforced(Place::Guest), note)
}

const fn host(path: &'static str, note: &'static str) -> Field {
    Field::new(path, Treatment::Enforced(Place::Host), note)
}

const fn both(path: &'static str, note: &'static str) -> Field {
    Field::new(path, Treatment::Enforced(Place::Both), note)
}

const fn refused(path: &'static str, note: &'static str) -> Field {
    Field::new(path, Treatment::Refused, note)
}

const fn accepted(path: &'static str, note: &'static str) -> Field {
    Field::new(path, Treatment::Accepted, note)
}

const fn warned(path: &'static str, note: &'static str) -> Field {
    Field::new(path, Treatment::Warned, note)
}

const HOST_IDS: &str = "the host's ids are those of the machine and of files in shared folders";
const NO_LSM: &str = "the guest's kernel has no security module";
const OTHER_SYSTEM: &str = "for another operating system";
const GUEST_CGROUP: &str = "BPF filter of the container's cgroup; what no rule allows is denied";
const NO_SUCH_LIMIT: &str = "cgroup v2 has no such limit";
const NO_SWITCH: &str = "cgroup v2 has no such switch";
const NO_HOST_DISKS: &str = "the machine has none of the host's disks, only files in them";
const GUEST_NODE: &str = "a node of the guest; devices of the host are refused";

/// Every property, in the order of the specification.
#[rustfmt::skip]
pub const FIELDS: &[Field] = &[
    host("ociVersion", "1.0 to 1.3"),
    host("root.path", "the root of the machine's share; no symbolic links on the way, as runc has it"),
    both("root.readonly", ""),
    guest("mounts[].destination", "resolved inside the root"),
    host("mounts[].source", "opened once; folders and regular files"),
    guest("mounts[].type", "proc, sysfs, tmpfs, devpts, mqueue, cgroup, cgroup2, bind; others refused"),
    both("mounts[].options", "all of the specification but remount and [r]idmap; `ro` of a bind mount on the host, too"),
    refused("mounts[].uidMappings", "the guest's kernel maps no ids of shared folders and tmpfs"),
    refused("mounts[].gidMappings", "the guest's kernel maps no ids of shared folders and tmpfs"),
    both("process.terminal", "a pseudo-terminal in the guest, and one on the host or the caller's own"),
    guest("process.consoleSize.height", "the terminal's own size comes first"),
    guest("process.consoleSize.width", "the terminal's own size comes first"),
    guest("process.cwd", ""),
    guest("process.env", "the last value of a variable counts"),
    guest("process.args", ""),
    warned("process.commandLine", OTHER_SYSTEM),
    guest("process.rlimits[].type", ""),
    guest("process.rlimits[].soft", ""),
    guest("process.rlimits[].hard", ""),
    warned("process.apparmorProfile", NO_LSM),
    warned("process.selinuxLabel", NO_LSM),
    guest("process.capabilities.bounding", ""),
    guest("process.capabilities.effective", ""),
    guest("process.capabilities.inheritable", ""),
    guest("process.capabilities.permitted", ""),
    guest("process.capabilities.ambient", ""),
    guest("process.noNewPrivileges", ""),
    guest("process.oomScoreAdj", ""),
    guest("process.scheduler.policy", "among the machine's threads; SCHED_ISO is refused"),
    guest("process.scheduler.nice", ""),
    guest("process.scheduler.priority", ""),
    guest("process.scheduler.flags", "those that clamp utilization are refused"),
    guest("process.scheduler.runtime", ""),
    guest("process.scheduler.deadline", ""),
    guest("process.scheduler.period", ""),
    guest("process.ioPriority.class", ""),
    guest("process.ioPriority.priority", ""),
    refused("process.execCPUAffinity", "it names CPUs of the host, and the process is in the guest"),
    guest("process.user.uid", ""),
    guest("process.user.gid", ""),
    guest("process.user.umask", ""),
    guest("process.user.additionalGids", ""),
    guest("process.user.username", "looked up in the container's /etc/passwd, replaces uid and gid"),
    guest("hostname", ""),
    guest("domainname", ""),
    host("hooks.prestart", "in the caller's namespaces"),
    host("hooks.createRuntime", "in the caller's namespaces"),
    refused("hooks.createContainer", "its programs are the host's and its namespaces the guest's"),
    guest("hooks.startContainer", "in the container"),
    host("hooks.poststart", "in the caller's namespaces"),
    host("hooks.poststop", "in the caller's namespaces"),
    accepted("annotations", "kept in the state; nothing of a machine can be set by them"),
    guest("linux.namespaces[].type", "mount, pid, network and ipc must be listed"),
    host("linux.namespaces[].path", "of type network: the machine is in it, the container has its own; others are refused"),
    guest("linux.uidMappings", HOST_IDS),
    guest("linux.gidMappings", HOST_IDS),
    guest("linux.timeOffsets", "monotonic and boottime"),
    guest("linux.devices[].type", GUEST_NODE),
    guest("linux.devices[].path", ""),
    guest("linux.devices[].major", GUEST_NODE),
    guest("linux.devices[].minor", GUEST_NODE),
    guest("linux.devices[].fileMode", ""),
    guest("linux.devices[].uid", ""),
    guest("linux.devices[].gid", ""),
    refused("linux.netDevices", "the machine takes no network devices of the host"),
    host("linux.cgroupsPath", "the machine's cgroup; the guest has one of its own for the container"),
    guest("linux.resources.devices[].allow", GUEST_CGROUP),
    guest("linux.resources.devices[].type", GUEST_CGROUP),
    guest("linux.resources.devices[].major", GUEST_CGROUP),
    guest("linux.resources.devices[].minor", GUEST_CGROUP),
    guest("linux.resources.devices[].access", GUEST_CGROUP),
    both("linux.resources.memory.limit", "`memory.max` in the guest; sizes the machine; on the host with what the machine needs beside it"),
    both("linux.resources.memory.reservation", "`memory.low`"),
    both("linux.resources.memory.swap", "the guest has no swap"),
    accepted("linux.resources.memory.kernel", "counted in `memory.max`, deprecated"),
    accepted("linux.resources.memory.kernelTCP", "counted in `memory.max`, deprecated"),
    accepted("linux.resources.memory.swappiness", "the guest has no swap"),
    refused("linux.resources.memory.disableOOMKiller", NO_SWITCH),
    accepted("linux.resources.memory.useHierarchy", "cgroup v2 always does"),
    accepted("linux.resources.memory.checkBeforeUpdate", "refused in an update"),
    both("linux.resources.cpu.shares", "`cpu.weight`, converted as runc does"),
    both("linux.resources.cpu.quota", "`cpu.max`"),
    both("linux.resources.cpu.burst", "`cpu.max.burst`"),
    both("linux.resources.cpu.period", "`cpu.max`"),
    refused("linux.resources.cpu.realtimeRuntime", NO_SUCH_LIMIT),
    refused("linux.resources.cpu.realtimePeriod", NO_SUCH_LIMIT),
    host("linux.resources.cpu.cpus", "affinity of all threads of the machine, and its cgroup"),
    host("linux.resources.cpu.mems", "the machine's cgroup"),
    both("linux.resources.cpu.idle", "`cpu.idle`"),
    host("linux.resources.blockIO.weight", "the machine's cgroup: its reads and writes are the host's"),
    accepted("linux.resources.blockIO.leafWeight", "of a scheduler that Linux no longer has"),
    refused("linux.resources.blockIO.weightDevice", NO_HOST_DISKS),
    refused("linux.resources.blockIO.throttleReadBpsDevice", NO_HOST_DISKS),
    refused("linux.resources.blockIO.throttleWriteBpsDevice", NO_HOST_DISKS),
    refused("linux.resources.blockIO.throttleReadIOPSDevice", NO_HOST_DISKS),
    refused("linux.resources.blockIO.throttleWriteIOPSDevice", NO_HOST_DISKS),
    accepted("linux.resources.hugepageLimits", "kept by all: the guest has no huge page file system"),
    warned("linux.resources.network", "classes and priorities are of cgroup v1, and the guest has loopback only"),
    both("linux.resources.pids.limit", "`pids.max` in the guest; on the host high enough for the machine's threads"),
    accepted("linux.resources.rdma", "kept by all: the guest has no such devices"),
    both("linux.resources.unified", "files of memory, cpu and pids in the guest; `cpuset.cpus` and `cpuset.mems` on the host; others refused"),
    refused("linux.intelRdt", "the host's cache is not divided among machines"),
    refused("linux.memoryPolicy", "the guest has one memory node"),
    guest("linux.sysctl", "what belongs to a namespace, others refused"),
    guest("linux.seccomp.defaultAction", "compiled on the host; SCMP_ACT_NOTIFY is refused"),
    guest("linux.seccomp.defaultErrnoRet", ""),
    guest("linux.seccomp.architectures", "x86-64; the guest's kernel has no entry for others"),
    guest("linux.seccomp.flags", ""),
    refused("linux.seccomp.listenerPath", "no program of the host can look into the guest"),
    refused("linux.seccomp.listenerMetadata", "no program of the host can look into the guest"),
    guest("linux.seccomp.syscalls[].names", "those that x86-64 does not have are ignored, as in runc"),
    guest("linux.seccomp.syscalls[].action", "SCMP_ACT_NOTIFY is refused"),
    guest("linux.seccomp.syscalls[].errnoRet", ""),
    guest("linux.seccomp.syscalls[].args", "of the rules that fit, the strictest counts"),
    guest("linux.rootfsPropagation", ""),
    guest("linux.maskedPaths", ""),
    guest("linux.readonlyPaths", ""),
    warned("linux.mountLabel", NO_LSM),
    guest("linux.personality.domain", "the guest has 64-bit system calls only"),
    refused("linux.personality.flags", "the specification has none yet"),
    refused("vm", "not allowed by the operator's policy"),
    warned("solaris", OTHER_SYSTEM),
    warned("windows", OTHER_SYSTEM),
    warned("zos", OTHER_SYSTEM),
];

/// Most warnings about properties nobody knows.
const MAX_UNKNOWN: usize = 16;

/// Looks up every property of `part` that asks for something; `part` is what
/// config.json has at the JSON path `at`, and comes from `document`. A property
/// that no version of the specification has is ignored with a warning, as the
/// specification demands ("Extensibility").
pub fn classify(
    part: &Value,
    document: &str,
    at: &str,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let mut unknown = 0;
    visit(part, document, at, &mut |path, field| {
        match field.map(|f| (f.treatment, f.note)) {
            Some((Treatment::Enforced(_) | Treatment::Accepted, _)) => {}
            Some((Treatment::Warned, note)) => warnings.push(format!("{path}: not done: {note}")),
            Some((Treatment::Refused, note)) => {
                return Err(Error::property(path, format!("not supported: {note}")));
            }
            None => {
                unknown += 1;
                if unknown <= MAX_UNKNOWN {
                    warnings.push(format!("{path}: unknown property, ignored"));
                }
            }
        }
        Ok(())
    })
}

/// Calls `seen` with the JSON path of every property that asks for something, and
/// with its entry in the table. The rest is as in [`classify`].
pub fn visit(part: &Value, document: &str, at: &str, seen: Visitor<'_>) -> Result<(), Error> {
    let mut walk = Walk {
        document,
        pattern: at.to_owned(),
        path: at.to_owned(),
        seen,
    };
    walk.value(part)
}

/// See [`visit`].
type Visitor<'a> = &'a mut dyn FnMut(&str, Option<&'static Field>) -> Result<(), Error>;

struct Walk<'a> {
    document: &'a str,
    /// Path as the table has it.
    pattern: String,
    /// Path with the numbers of list entries.
    path: String,
    seen: Visitor<'a>,
}

impl Walk<'_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        if asks_for_nothing(value) {
            return Ok(());
        }
        if let Some(field) = FIELDS.iter().find(|f| f.path == self.pattern) {
            return (self.seen)(&self.path, Some(field));
        }
        match value {
            Value::Object(members) if self.has_members(".") => {
                for (name, member) in members {
                    self.member(name, member)?;
                }
                Ok(())
            }
            Value::Array(entries) if self.has_members("[].") => {
                for (i, entry) in entries.iter().enumerate() {
                    self.below("[]", &format!("[{i}]"), entry)?;
                }
                Ok(())
            }
            // Serde would take a list for an object, member by member.
            _ if self.has_members(".") => Err(self.must_be("an object")),
            _ if self.has_members("[].") => Err(self.must_be("a list")),
            _ => (self.seen)(&self.path, None),
        }
    }

    fn must_be(&self, what: &str) -> Error {
        let path = if self.path.is_empty() {
            self.document
        } else {
            &self.path
        };
        Error::property(path, format!("must be {what}"))
    }

    fn member(&mut self, name: &str, value: &Value) -> Result<(), Error> {
        let dot = if self.path.is_empty() { "" } else { "." };
        // Names of the specification are short and plain; of others only a piece is shown.
        let plain: String = name.chars().take(64).flat_map(char::escape_debug).collect();
        self.below(&format!("{dot}{name}"), &format!("{dot}{plain}"), value)
    }

    fn below(&mut self, pattern: &str, path: &str, value: &Value) -> Result<(), Error> {
        let (pattern_len, path_len) = (self.pattern.len(), self.path.len());
        self.pattern.push_str(pattern);
        self.path.push_str(path);
        let result = self.value(value);
        self.pattern.truncate(pattern_len);
        self.path.truncate(path_len);
        result
    }

    fn has_members(&self, separator: &str) -> bool {
        if self.pattern.is_empty() {
            return separator == ".";
        }
        FIELDS.iter().any(|f| {
            f.path
                .strip_prefix(self.pattern.as_str())
                .is_some_and(|rest| rest.starts_with(separator))
        })
    }
}

/// Engines written in Go send properties that nobody set as empty ones
/// (`"blockIO": {"weight": 0}`).
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        Value::Object(members) => members.values().all(asks_for_nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn classified(config: Value) -> Result<Vec<String>, String> {
        let mut warnings = Vec::new();
        classify(&config, "config.json", "", &mut warnings).map_err(|e| e.to_string())?;
        Ok(warnings)
    }

    /// A document in which exactly the property at `path` is set.
    fn document(path: &str) -> Value {
        path.rsplit('.')
            .fold(json!("x"), |inner, part| match part.strip_suffix("[]") {
                Some(list) => json!({list: [inner]}),
                None => json!({part: inner}),
            })
    }

    #[test]
    fn every_property_is_found_by_its_path() {
        for field in FIELDS {
            let result = classified(document(field.path));
            match field.treatment {
                Treatment::Enforced(_) | Treatment::Accepted => {
                    assert_eq!(result, Ok(vec![]), "{}", field.path);
                }
                Treatment::Warned => assert_eq!(result.unwrap().len(), 1, "{}", field.path),
                Treatment::Refused => {
                    let path = field.path.replace("[]", "[0]");
                    let message = result.unwrap_err();
                    assert!(
                        message.starts_with(&format!("{path}: not supported")),
                        "{message}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_asks_for_nothing_is_not_refused() {
        let config = json!({
            "hooks": {}, "vm": null,
            "linux": {"seccomp": null, "uidMappings": [], "resources": {
                "blockIO": {"weight": 0}, "memory": {"disableOOMKiller": false}}}
        });
        assert_eq!(classified(config), Ok(vec![]));
    }

    #[test]
    fn path_of_a_refusal_has_the_entry() {
        let config = json!({"mounts": [{}, {"uidMappings": [{"size": 1}]}]});
        let message = classified(config).unwrap_err();
        assert!(
            message.starts_with("mounts[1].uidMappings: not supported: "),
            "{message}"
        );
    }

    #[test]
    fn unknown_properties_are_named_and_counted() {
        let config = json!({"linux": {"newThing": {"a": 1}}, "mounts": [{"\u{1b}[2J": "x"}]});
        assert_eq!(
            classified(config),
            Ok(vec![
                "linux.newThing: unknown property, ignored".to_owned(),
                "mounts[0].\\u{1b}[2J: unknown property, ignored".to_owned(),
            ])
        );
        let many: Value = (0..1000).map(|i| (format!("x{i}"), json!(1))).collect();
        assert_eq!(classified(many).unwrap().len(), MAX_UNKNOWN);
    }

    #[test]
    fn a_list_is_no_object() {
        for (config, message) in [
            (json!([1]), "config.json: must be an object"),
            (json!({"linux": [null, 1]}), "linux: must be an object"),
            (json!({"mounts": {"a": 1}}), "mounts: must be a list"),
            (json!({"mounts": [["/x"]]}), "mounts[0]: must be an object"),
        ] {
            assert_eq!(classified(config), Err(message.to_owned()));
        }
    }

    #[test]
    fn annotations_and_maps_are_opaque() {
        let config = json!({
            "annotations": {"a.b": "c"},
            "linux": {"sysctl": {"net.core.somaxconn": "1"},
                      "resources": {"unified": {"memory.high": "1"}}}
        });
        assert_eq!(classified(config), Ok(vec![]));
    }

    #[test]
    fn docs_list_every_property() {
        let doc = include_str!("../../docs/oci.md");
        let table = doc.split("\n## ").next().unwrap_or_default();
        let mut rows = table.lines().filter(|l| l.starts_with("| `"));
        for field in FIELDS {
            assert_eq!(rows.next(), Some(field.doc_row().as_str()));
        }
        assert_eq!(rows.next(), None, "docs/oci.md has a row more than FIELDS");
    }
}
