//! `linux.namespaces` (config-linux.md, "Namespaces").

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType as Type};
use vmrun_protocol::plan::namespace;

use crate::{Error, text};

/// A namespace that is not listed is the caller's own. A machine of its own
/// cannot share these with the host, so leaving one out asks for something that
/// would silently not be.
const MUST_BE_LISTED: [(u64, &str); 4] = [
    (namespace::MOUNT, "mount"),
    (namespace::PID, "pid"),
    (namespace::NETWORK, "network"),
    (namespace::IPC, "ipc"),
];

/// What `linux.namespaces` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespaces {
    /// The namespaces to be made in the guest, as bits of [`namespace`].
    pub bits: u64,
    /// Path of the host's network namespace that the machine is to be in. The
    /// container has one of its own in the guest all the same.
    pub network_path: Option<PathBuf>,
}

/// Resolves the list.
pub fn resolve(listed: &[LinuxNamespace]) -> Result<Namespaces, Error> {
    let mut resolved = Namespaces::default();
    for (i, entry) in listed.iter().enumerate() {
        let path = |name: &str| format!("linux.namespaces[{i}].{name}");
        let joined = entry.path().as_ref().filter(|p| !p.as_os_str().is_empty());
        match (entry.typ(), joined) {
            (_, None) => {}
            (Type::Network, Some(joined)) => {
                text::absolute_path(&path("path"), joined)?;
                resolved.network_path = Some(joined.clone());
            }
            (_, Some(_)) => {
                let problem = "cannot be joined: a namespace of the host is not in the machine, \
                               and no two containers share one";
                return Err(Error::property(path("path"), problem));
            }
        }
        let bit = bit(entry.typ());
        if resolved.bits & bit != 0 {
            return Err(Error::property(path("type"), "is there twice"));
        }
        resolved.bits |= bit;
    }
    for (bit, name) in MUST_BE_LISTED {
        if resolved.bits & bit == 0 {
            let problem =
                format!("must have an entry of type {name}: a machine cannot share the host's");
            return Err(Error::property("linux.namespaces", problem));
        }
    }
    Ok(resolved)
}

fn bit(typ: Type) -> u64 {
    match typ {
        Type::Mount => namespace::MOUNT,
        Type::Cgroup => namespace::CGROUP,
        Type::Uts => namespace::UTS,
        Type::Ipc => namespace::IPC,
        Type::User => namespace::USER,
        Type::Pid => namespace::PID,
        Type::Network => namespace::NETWORK,
        Type::Time => namespace::TIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(entries: &str) -> Result<Namespaces, String> {
        let base = r#"{"type":"mount"},{"type":"pid"},{"type":"network"},{"type":"ipc"}"#;
        let json = format!("[{base}{entries}]");
        let listed: Vec<LinuxNamespace> = serde_json::from_str(&json).unwrap();
        resolve(&listed).map_err(|e| e.to_string())
    }

    #[test]
    fn bits_are_those_of_clone() {
        let resolved = resolved(r#",{"type":"uts"},{"type":"cgroup"},{"type":"time","path":""}"#);
        let expected = libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP
            | 0x80;
        let expected = Namespaces {
            bits: expected as u64,
            network_path: None,
        };
        assert_eq!(resolved, Ok(expected));
    }

    #[test]
    fn the_hosts_network_is_joined_by_the_machine() {
        let of = |path: &str| {
            let json = format!(
                r#"[{{"type":"mount"}},{{"type":"pid"}},{{"type":"ipc"}},
                    {{"type":"network","path":"{path}"}}]"#
            );
            let listed: Vec<LinuxNamespace> = serde_json::from_str(&json).unwrap();
            resolve(&listed).map_err(|e| e.to_string())
        };
        let resolved = of("/var/run/netns/x").unwrap();
        assert_eq!(resolved.network_path, Some("/var/run/netns/x".into()));
        assert_ne!(resolved.bits & namespace::NETWORK, 0);
        assert_eq!(
            of("netns/x"),
            Err("linux.namespaces[3].path: must be an absolute path".to_owned())
        );
    }

    #[test]
    fn refusals() {
        for (entries, message) in [
            (
                r#",{"type":"uts","path":"/proc/1/ns/uts"}"#,
                "linux.namespaces[4].path: cannot be joined: a namespace of the host is not in \
                 the machine, and no two containers share one",
            ),
            (
                r#",{"type":"pid"}"#,
                "linux.namespaces[4].type: is there twice",
            ),
        ] {
            assert_eq!(resolved(entries), Err(message.to_owned()));
        }
        assert_eq!(
            resolve(&[]).unwrap_err().to_string(),
            "linux.namespaces: must have an entry of type mount: a machine cannot share the host's"
        );
    }
}
