//! `linux.sysctl` (config-linux.md, "Sysctl"): only what belongs to a namespace.

use std::collections::HashMap;

use vmrun_protocol::plan::{Bytes, namespace};

use crate::{Error, text};

/// Parameters of System V IPC, one set per IPC namespace.
const OF_IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

const MAX_VALUE_BYTES: usize = 4096;
const MAX_ENTRIES: usize = 1024;

/// Files below /proc/sys and their values, sorted by name.
pub fn resolve(
    entries: &HashMap<String, String>,
    namespaces: u64,
) -> Result<Vec<(Bytes, Bytes)>, Error> {
    text::at_most("linux.sysctl", entries.len(), MAX_ENTRIES)?;
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort();
    sorted
        .into_iter()
        .map(|(name, value)| {
            let path = format!("linux.sysctl.{}", shown(name));
            let file = file(name);
            check_name(&path, &file)?;
            check_namespace(&path, &file, namespaces)?;
            if value.len() > MAX_VALUE_BYTES {
                let problem = format!("value is longer than {MAX_VALUE_BYTES} bytes");
                return Err(Error::property(path, problem));
            }
            Ok((file.into_bytes(), text::bytes(&path, value)?))
        })
        .collect()
}

/// `a.b/c.d` becomes `a/b.c/d`, and `a/b.c/d` stays: sysctl(8) takes both
/// separators, and the first one that occurs is the separator.
fn file(name: &str) -> String {
    let first = name.find(['.', '/']).map(|at| name.as_bytes()[at]);
    if first != Some(b'.') {
        return name.to_owned();
    }
    name.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect()
}

fn check_name(path: &str, file: &str) -> Result<(), Error> {
    let part_ok = |part: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || b"_-.:@".contains(&b);
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(known)
    };
    if file.len() <= 256 && file.split('/').all(part_ok) {
        return Ok(());
    }
    Err(Error::property(path, "is not the name of a parameter"))
}

fn check_namespace(path: &str, file: &str, namespaces: u64) -> Result<(), Error> {
    let needed = if OF_IPC.contains(&file) || file.starts_with("fs/mqueue/") {
        Some((namespace::IPC, "ipc"))
    } else if file.starts_with("net/") {
        Some((namespace::NETWORK, "network"))
    } else if file == "kernel/domainname" {
        Some((namespace::UTS, "uts"))
    } else {
        None
    };
    match needed {
        Some((bit, _)) if namespaces & bit != 0 => Ok(()),
        Some((_, name)) => {
            let problem = format!("needs an entry of type {name} in linux.namespaces");
            Err(Error::property(path, problem))
        }
        None if file == "kernel/hostname" => Err(Error::property(path, "is set by hostname")),
        None => Err(Error::property(path, "does not belong to a namespace")),
    }
}

fn shown(name: &str) -> String {
    name.chars().take(64).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(name: &str, namespaces: u64) -> Result<String, String> {
        let entries = HashMap::from([(name.to_owned(), "1".to_owned())]);
        let mut files = resolve(&entries, namespaces).map_err(|e| e.to_string())?;
        Ok(String::from_utf8(files.remove(0).0).unwrap())
    }

    #[test]
    fn names() {
        let all = u64::MAX;
        for (name, file) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            (
                "net/ipv4/conf/eno2.100/rp_filter",
                "net/ipv4/conf/eno2.100/rp_filter",
            ),
            (
                "net.ipv4.conf.eno2/100.rp_filter",
                "net/ipv4/conf/eno2.100/rp_filter",
            ),
            ("kernel.shmmax", "kernel/shmmax"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("kernel.domainname", "kernel/domainname"),
        ] {
            assert_eq!(resolved(name, all).as_deref(), Ok(file), "{name}");
        }
    }

    #[test]
    fn refusals() {
        let all = u64::MAX;
        for name in [
            "",
            "vm.swappiness",
            "kernel.hostname",
            "kernel.core_pattern",
            "net/../kernel/core_pattern",
            "net..core",
            "net/ipv4/a b",
            "net.\0",
        ] {
            assert!(resolved(name, all).is_err(), "{name:?}");
        }
        assert_eq!(
            resolved("net.core.somaxconn", namespace::IPC),
            Err("linux.sysctl.net.core.somaxconn: needs an entry of type network in linux.namespaces".to_owned())
        );
    }
}
