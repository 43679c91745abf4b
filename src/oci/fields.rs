//! What vmrun does with every property of the runtime-spec 1.3: the one table
//! that validation walks and docs/oci.md repeats (a test compares them).

use serde_json::Value;

use crate::Error;

/// What happens to a property that is there and asks for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It is done.
    Enforced,
    /// The container is refused, naming the property.
    Refused,
    /// Nothing is done, and nothing is missing for it.
    Accepted,
    /// Nothing is done; a warning goes to the log.
    Warned,
}

/// One property.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// JSON path; `[]` stands for every entry of a list, and a map whose members
    /// are not listed is treated as a whole.
    pub path: &'static str,
    /// What happens to it.
    pub treatment: Treatment,
    /// Where it is enforced, or why not, in a few words.
    pub note: &'static str,
}

impl Field {
    /// The property's row in docs/oci.md.
    pub fn doc_row(&self) -> String {
        let treatment = match self.treatment {
            Treatment::Enforced => "enforced",
            Treatment::Refused => "refused",
            Treatment::Accepted => "accepted",
            Treatment::Warned => "accepted, warned",
        };
        format!("| `{}` | {treatment} | {} |", self.path, self.note)
    }
}

const fn enforced(path: &'static str, note: &'static str) -> Field {
    let treatment = Treatment::Enforced;
    Field {
        path,
        treatment,
        note,
    }
}

const fn refused(path: &'static str, note: &'static str) -> Field {
    let treatment = Treatment::Refused;
    Field {
        path,
        treatment,
        note,
    }
}

const fn accepted(path: &'static str, note: &'static str) -> Field {
    let treatment = Treatment::Accepted;
    Field {
        path,
        treatment,
        note,
    }
}

const fn warned(path: &'static str, note: &'static str) -> Field {
    let treatment = Treatment::Warned;
    Field {
        path,
        treatment,
        note,
    }
}

const NOT_YET: &str = "not supported yet";
const NO_ID_MAPS: &str = "ids are not mapped yet";
const NO_LSM: &str = "the guest has no security module of this kind";
const OTHER_SYSTEM: &str = "for another operating system";
const GUEST: &str = "guest";
const GUEST_CGROUP: &str = "cgroup in the guest";

/// Every property, in the order of the specification.
#[rustfmt::skip]
pub const FIELDS: &[Field] = &[
    enforced("ociVersion", "host: 1.0 to 1.3"),
    enforced("root.path", "host: the share's root; no symbolic links on the way, as runc has it"),
    enforced("root.readonly", "host and guest"),
    enforced("mounts[].destination", "guest: resolved inside the root"),
    enforced("mounts[].source", "host: opened once; folders and regular files"),
    enforced("mounts[].type", "proc, sysfs, tmpfs, devpts, mqueue, cgroup, cgroup2, bind; others refused"),
    enforced("mounts[].options", "guest; `ro` of a bind mount on the host as well"),
    refused("mounts[].uidMappings", NO_ID_MAPS),
    refused("mounts[].gidMappings", NO_ID_MAPS),
    enforced("process.terminal", "guest: a pseudo-terminal; host: needs a terminal on stdin"),
    enforced("process.consoleSize.height", "guest; the terminal's own size comes first"),
    enforced("process.consoleSize.width", "guest; the terminal's own size comes first"),
    enforced("process.cwd", GUEST),
    enforced("process.env", GUEST),
    enforced("process.args", GUEST),
    accepted("process.commandLine", OTHER_SYSTEM),
    enforced("process.rlimits[].type", GUEST),
    enforced("process.rlimits[].soft", GUEST),
    enforced("process.rlimits[].hard", GUEST),
    warned("process.apparmorProfile", NO_LSM),
    warned("process.selinuxLabel", NO_LSM),
    enforced("process.capabilities.bounding", GUEST),
    enforced("process.capabilities.effective", GUEST),
    enforced("process.capabilities.inheritable", GUEST),
    enforced("process.capabilities.permitted", GUEST),
    enforced("process.capabilities.ambient", GUEST),
    enforced("process.noNewPrivileges", GUEST),
    enforced("process.oomScoreAdj", GUEST),
    enforced("process.scheduler", GUEST),
    enforced("process.ioPriority", GUEST),
    refused("process.execCPUAffinity", NOT_YET),
    enforced("process.user.uid", GUEST),
    enforced("process.user.gid", GUEST),
    enforced("process.user.umask", GUEST),
    enforced("process.user.additionalGids", GUEST),
    enforced("process.user.username", "guest: looked up in the container's /etc/passwd, replaces uid and gid"),
    enforced("hostname", GUEST),
    enforced("domainname", GUEST),
    refused("hooks", NOT_YET),
    accepted("annotations", "nothing of a machine can be set by them"),
    enforced("linux.namespaces[].type", "guest; mount, pid, network and ipc must be listed, user is refused"),
    enforced("linux.namespaces[].path", "refused unless empty: joining a namespace is not supported yet"),
    refused("linux.uidMappings", NO_ID_MAPS),
    refused("linux.gidMappings", NO_ID_MAPS),
    refused("linux.timeOffsets", NOT_YET),
    enforced("linux.devices[].type", "guest: a node of the guest's device with that number"),
    enforced("linux.devices[].path", GUEST),
    enforced("linux.devices[].major", GUEST),
    enforced("linux.devices[].minor", GUEST),
    enforced("linux.devices[].fileMode", GUEST),
    enforced("linux.devices[].uid", GUEST),
    enforced("linux.devices[].gid", GUEST),
    refused("linux.netDevices", NOT_YET),
    enforced("linux.cgroupsPath", "host: the machine's cgroup; the guest has its own"),
    enforced("linux.resources.devices[].allow", GUEST_CGROUP),
    enforced("linux.resources.devices[].type", GUEST_CGROUP),
    enforced("linux.resources.devices[].major", GUEST_CGROUP),
    enforced("linux.resources.devices[].minor", GUEST_CGROUP),
    enforced("linux.resources.devices[].access", GUEST_CGROUP),
    enforced("linux.resources.memory.limit", "`memory.max` in the guest; also sizes the machine"),
    enforced("linux.resources.memory.reservation", "`memory.low` in the guest"),
    enforced("linux.resources.memory.swap", "the guest has no swap"),
    accepted("linux.resources.memory.kernel", "counted in `memory.max`, deprecated"),
    accepted("linux.resources.memory.kernelTCP", "counted in `memory.max`, deprecated"),
    accepted("linux.resources.memory.swappiness", "the guest has no swap"),
    refused("linux.resources.memory.disableOOMKiller", "cgroup v2 has no such switch"),
    accepted("linux.resources.memory.useHierarchy", "cgroup v2 always does"),
    accepted("linux.resources.memory.checkBeforeUpdate", "only concerns updates"),
    enforced("linux.resources.cpu.shares", "`cpu.weight` in the guest, converted as runc does"),
    enforced("linux.resources.cpu.quota", "`cpu.max` in the guest"),
    enforced("linux.resources.cpu.burst", "`cpu.max.burst` in the guest"),
    enforced("linux.resources.cpu.period", "`cpu.max` in the guest"),
    refused("linux.resources.cpu.realtimeRuntime", "cgroup v2 has no such limit"),
    refused("linux.resources.cpu.realtimePeriod", "cgroup v2 has no such limit"),
    enforced("linux.resources.cpu.cpus", "host: affinity of all threads of the machine"),
    enforced("linux.resources.cpu.mems", "host cgroup"),
    enforced("linux.resources.cpu.idle", "`cpu.idle` in the guest"),
    enforced("linux.resources.blockIO.weight", "host cgroup: the machine's reads and writes are the host's"),
    accepted("linux.resources.blockIO.leafWeight", "of a scheduler that Linux no longer has"),
    refused("linux.resources.blockIO.weightDevice", NOT_YET),
    refused("linux.resources.blockIO.throttleReadBpsDevice", NOT_YET),
    refused("linux.resources.blockIO.throttleWriteBpsDevice", NOT_YET),
    refused("linux.resources.blockIO.throttleReadIOPSDevice", NOT_YET),
    refused("linux.resources.blockIO.throttleWriteIOPSDevice", NOT_YET),
    accepted("linux.resources.hugepageLimits", "the guest has no huge page file system"),
    refused("linux.resources.network", NOT_YET),
    enforced("linux.resources.pids.limit", "`pids.max` in the guest"),
    accepted("linux.resources.rdma", "the guest has no such devices"),
    enforced("linux.resources.unified", "cgroup v2 files in the guest"),
    refused("linux.intelRdt", NOT_YET),
    refused("linux.memoryPolicy", NOT_YET),
    enforced("linux.sysctl", "guest: what belongs to a namespace, others refused"),
    refused("linux.seccomp", NOT_YET),
    enforced("linux.rootfsPropagation", GUEST),
    enforced("linux.maskedPaths", GUEST),
    enforced("linux.readonlyPaths", GUEST),
    warned("linux.mountLabel", NO_LSM),
    refused("linux.personality", NOT_YET),
    refused("vm", "the bundle does not choose the machine, its operator does"),
    accepted("solaris", OTHER_SYSTEM),
    accepted("windows", OTHER_SYSTEM),
    accepted("zos", OTHER_SYSTEM),
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
    let mut walk = Walk {
        document,
        pattern: at.to_owned(),
        path: at.to_owned(),
        unknown: 0,
        warnings,
    };
    walk.value(part)
}

struct Walk<'a> {
    document: &'a str,
    /// Path as the table has it.
    pattern: String,
    /// Path with the numbers of list entries.
    path: String,
    unknown: usize,
    warnings: &'a mut Vec<String>,
}

impl Walk<'_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        if asks_for_nothing(value) {
            return Ok(());
        }
        if let Some(field) = FIELDS.iter().find(|f| f.path == self.pattern) {
            return self.found(field);
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
            _ => {
                self.note_unknown();
                Ok(())
            }
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

    fn found(&mut self, field: &Field) -> Result<(), Error> {
        match field.treatment {
            Treatment::Enforced | Treatment::Accepted => {}
            Treatment::Warned => self
                .warnings
                .push(format!("{}: not done: {}", self.path, field.note)),
            Treatment::Refused if field.note == NOT_YET => {
                return Err(Error::property(&self.path, NOT_YET));
            }
            Treatment::Refused => {
                let problem = format!("not supported: {}", field.note);
                return Err(Error::property(&self.path, problem));
            }
        }
        Ok(())
    }

    fn note_unknown(&mut self) {
        self.unknown += 1;
        if self.unknown <= MAX_UNKNOWN {
            self.warnings
                .push(format!("{}: unknown property, ignored", self.path));
        }
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
                Treatment::Enforced | Treatment::Accepted => {
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
        assert_eq!(
            classified(config),
            Err("mounts[1].uidMappings: not supported: ids are not mapped yet".to_owned())
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
