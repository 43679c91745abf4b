//! `linux.namespaces` (config-linux.md, "Namespaces").

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType as Type};
use vmrun_protocol::plan::namespace;

use crate::Error;

/// A namespace that is not listed is the caller's own. A machine of its own
/// cannot share these with the host, so leaving one out asks for something that
/// would silently not be.
const MUST_BE_LISTED: [(u64, &str); 4] = [
    (namespace::MOUNT, "mount"),
    (namespace::PID, "pid"),
    (namespace::NETWORK, "network"),
    (namespace::IPC, "ipc"),
];

/// The namespaces to be made as bits of [`namespace`].
pub fn resolve(listed: &[LinuxNamespace]) -> Result<u64, Error> {
    let mut bits = 0;
    for (i, entry) in listed.iter().enumerate() {
        let path = |name: &str| format!("linux.namespaces[{i}].{name}");
        if entry
            .path()
            .as_ref()
            .is_some_and(|p| !p.as_os_str().is_empty())
        {
            let problem = "joining a namespace is not supported yet";
            return Err(Error::property(path("path"), problem));
        }
        let bit = bit(entry.typ());
        if bit == namespace::USER {
            let problem = "user namespaces are not supported yet";
            return Err(Error::property(path("type"), problem));
        }
        if bits & bit != 0 {
            return Err(Error::property(path("type"), "is there twice"));
        }
        bits |= bit;
    }
    for (bit, name) in MUST_BE_LISTED {
        if bits & bit == 0 {
            let problem =
                format!("must have an entry of type {name}: a machine cannot share the host's");
            return Err(Error::property("linux.namespaces", problem));
        }
    }
    Ok(bits)
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

    fn resolved(entries: &str) -> Result<u64, String> {
        let base = r#"{"type":"mount"},{"type":"pid"},{"type":"network"},{"type":"ipc"}"#;
        let json = format!("[{base}{entries}]");
        let listed: Vec<LinuxNamespace> = serde_json::from_str(&json).unwrap();
        resolve(&listed).map_err(|e| e.to_string())
    }

    #[test]
    fn bits_are_those_of_clone() {
        let bits = resolved(r#",{"type":"uts"},{"type":"cgroup"},{"type":"time","path":""}"#);
        let expected = libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP
            | 0x80;
        assert_eq!(bits, Ok(expected as u64));
    }

    #[test]
    fn refusals() {
        for (entries, message) in [
            (
                r#",{"type":"uts","path":"/proc/1/ns/uts"}"#,
                "linux.namespaces[4].path: joining a namespace is not supported yet",
            ),
            (
                r#",{"type":"user"}"#,
                "linux.namespaces[4].type: user namespaces are not supported yet",
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
