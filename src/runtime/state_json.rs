//! The state of a container as the OCI runtime specification has it (runtime.md,
//! "State"), which hooks read, and as runc shows it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};
use vmrun_oci::version::SPEC;

use crate::state::{Record, Status};
use crate::verbs::Described;

/// What `state` and `list` show, with runc's names in runc's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Of the specification.
    pub oci_version: &'static str,
    /// The container's id.
    pub id: String,
    /// Of its monitor; 0 once it has ended.
    pub pid: u32,
    /// What it is doing.
    pub status: &'static str,
    /// Folder of the bundle.
    pub bundle: String,
    /// Root file system.
    pub rootfs: String,
    /// When it was created: RFC 3339.
    pub created: String,
    /// Of config.json.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Name of who created it; `state` leaves it empty.
    pub owner: String,
}

impl Shown {
    /// For `state`.
    pub fn of(container: &Described) -> Self {
        let Described { record, status } = container;
        let stopped = *status == Status::Stopped;
        Self {
            oci_version: SPEC,
            id: record.id.to_string(),
            pid: if stopped { 0 } else { record.monitor.pid },
            status: status.as_str(),
            bundle: record.bundle.to_string_lossy().into_owned(),
            rootfs: record.rootfs.to_string_lossy().into_owned(),
            created: rfc3339(record.created_ns),
            annotations: record.annotations.clone(),
            owner: String::new(),
        }
    }

    /// For `list`.
    pub fn with_owner(container: &Described) -> Self {
        let uid = container.record.owner_uid;
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self {
            owner: user_name(&users, uid).unwrap_or_else(|| format!("#{uid}")),
            ..Self::of(container)
        }
    }

    /// As `state` prints it: without a line end.
    pub fn to_pretty_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// As `list -f json` prints it.
    pub fn list_json(list: &[Self]) -> String {
        if list.is_empty() {
            return "null\n".to_owned();
        }
        let text = serde_json::to_string(list).unwrap_or_default();
        format!("{text}\n")
    }
}

/// Without zeroes at the end of the fraction, as Go has it.
fn rfc3339(ns: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(ns);
    let text = humantime::format_rfc3339_nanos(time).to_string();
    let text = text.trim_end_matches('Z').trim_end_matches('0');
    format!("{}Z", text.trim_end_matches('.'))
}

fn user_name(users: &str, uid: u32) -> Option<String> {
    let mut users = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let uid = uid.to_string();
    let found = users.find(|fields| fields.get(2) == Some(&uid.as_str()))?;
    Some(found[0].to_owned())
}

/// For hooks. A container that has ended has no pid.
pub fn state_json(record: &Record, status: Status) -> Vec<u8> {
    state(record, status).to_string().into_bytes()
}

fn state(record: &Record, status: Status) -> Value {
    let mut state = json!({
        "ociVersion": SPEC,
        "id": record.id,
        "status": status.as_str(),
        "bundle": record.bundle.to_string_lossy(),
    });
    if status != Status::Stopped {
        state["pid"] = record.monitor.pid.into();
    }
    if !record.annotations.is_empty() {
        state["annotations"] = json!(record.annotations);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Id, ProcessName};

    fn described(status: Status) -> Described {
        let record = Record {
            version: 1,
            id: Id::new("c1").unwrap(),
            monitor: ProcessName {
                pid: 7,
                start_ticks: 1,
            },
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created_ns: 1_700_000_000_120_000_000,
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            owner_uid: 0,
            cgroup: None,
            hooks: Default::default(),
        };
        Described { record, status }
    }

    #[test]
    fn names_and_order_are_runcs() {
        let text = Shown::of(&described(Status::Running)).to_pretty_json();
        let expected = format!(
            r#"{{
  "ociVersion": "{SPEC}",
  "id": "c1",
  "pid": 7,
  "status": "running",
  "bundle": "/b",
  "rootfs": "/b/rootfs",
  "created": "2023-11-14T22:13:20.12Z",
  "annotations": {{
    "a": "b"
  }},
  "owner": ""
}}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn lists() {
        assert_eq!(Shown::list_json(&[]), "null\n");
        let one = Shown::with_owner(&described(Status::Stopped));
        assert_eq!((one.pid, one.owner.as_str()), (0, "root"));
        assert!(Shown::list_json(&[one]).starts_with("[{\"ociVersion\":"));
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nme:x:1000:1000::/:/bin/sh\n";
        assert_eq!(user_name(users, 1000).as_deref(), Some("me"));
        assert_eq!(user_name(users, 7), None);
    }

    #[test]
    fn whole_seconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn hooks_read_what_the_specification_has() {
        let state = |status| state(&described(status).record, status);
        let creating = state(Status::Creating);
        assert_eq!(creating["pid"], 7);
        assert_eq!(creating["status"], "creating");
        assert_eq!(creating["annotations"]["a"], "b");
        assert!(state(Status::Stopped).get("pid").is_none());
    }
}
